package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Request is who asks, and when.
type Request struct {
	// Watcher is the authenticated identity as a canonical key (sip: for sip,
	// sips, pres and im URIs), empty when the watcher is not authenticated. A URI
	// of anonymous.invalid (RFC 3323, 4.1.1.3) is nobody's: it is a request for
	// anonymity without an identity.
	Watcher string
	// Aliases are further identities asserted for the same request (RFC 5025,
	// 3.1.1.2). An exception for one of them excludes the watcher.
	Aliases []string
	// Sphere of the presentity, empty when it is undefined; see pidf.Sphere.
	Sphere string
	// Anonymous tells that the watcher asked for privacy (OMA anonymous-request).
	Anonymous bool
	// Package is the event package that is asked for; empty means presence. The
	// transformations of RFC 5025 take presence documents apart, so of any other
	// package whoever is allowed sees everything.
	Package string
	Now     time.Time
}

// Decision is the combined outcome of all rules.
type Decision struct {
	Matched   bool // whether any rule counted; if none did, local policy may differ from Block
	Handling  Handling
	Message   bool // a rule that counted allows a MESSAGE (im-rules)
	Transform Transform
	// NextChange is the next instant at which time alone can change the
	// outcome; zero when it cannot.
	NextChange time.Time
}

// RuleReport says why a rule counted or not.
type RuleReport struct {
	Document   string            `json:"document,omitempty"` // see Ruleset.Source
	ID         string            `json:"id"`
	Matched    bool              `json:"matched"`             // the rule counted
	Outranked  bool              `json:"outranked,omitempty"` // its conditions hold, but a rule of a higher class counted (OMA)
	Handling   string            `json:"handling"`            // sub-handling
	Message    string            `json:"im_handling"`
	Grants     []string          `json:"grants,omitempty"`
	Conditions []ConditionReport `json:"conditions,omitempty"`
}

// ConditionReport is one condition with what it asks for and what was there.
type ConditionReport struct {
	Condition string `json:"condition"`
	Holds     bool   `json:"holds"`
	Wants     string `json:"wants,omitempty"`
	Is        string `json:"is,omitempty"`
}

// Evaluate combines all rules of all documents that match the request (RFC
// 4745, 10.2): the highest handling, and the union of what transformations
// grant.
//
// OMA precedence is kept among rules whose documents use external-list or
// other-identity: one that matched by external-list counts only when none
// matched by identity, one that matched by other-identity only when none
// matched by either.
func Evaluate(sets []*Ruleset, r Request) Decision { return combine(sets, &r, nil) }

// Explain is Evaluate with a report on each rule, in the order of the documents.
func Explain(sets []*Ruleset, r Request) (Decision, []RuleReport) {
	reports := []RuleReport{}
	return combine(sets, &r, &reports), reports
}

// combine evaluates, and reports on each rule where that is wanted.
func combine(sets []*Ruleset, r *Request, reports *[]RuleReport) Decision {
	var d Decision
	in := input{Request: r}
	var room [4]watcher
	in.watchers = room[:0]
	if r.Watcher != "" {
		w := newWatcher(r.Watcher)
		if w.domain == anonymousHost {
			in.anonymous = true
		} else {
			in.watchers = append(in.watchers, w)
			for _, a := range r.Aliases {
				in.watchers = append(in.watchers, newWatcher(a))
			}
		}
	}
	in.anonymous = in.anonymous || r.Anonymous
	ranked := false
	for _, s := range sets {
		ranked = ranked || s.oma
		in.doubt = in.doubt || s.doubt
	}
	var bits [64]bool
	holds, best := bits[:0], classNone
	for _, s := range sets {
		for j := range s.rules {
			ok := s.rules[j].holds(&in, &d.NextChange)
			if ok {
				best = max(best, s.rules[j].class)
			}
			holds = append(holds, ok)
		}
	}
	n := 0
	for _, s := range sets {
		for j := range s.rules {
			rule, ok := &s.rules[j], holds[n]
			n++
			outranked := ok && ranked && rule.class != classNone && rule.class < best
			ok = ok && !outranked
			if ok {
				d.Matched = true
				d.Handling = max(d.Handling, rule.handling)
				d.Message = d.Message || rule.message
				d.Transform.add(&rule.transform)
			}
			if reports != nil {
				*reports = append(*reports, rule.report(s.Source, &in, ok, outranked))
			}
		}
	}
	d.Transform.settle()
	if r.Package != "" && r.Package != "presence" {
		d.Transform = Transform{}
		if d.Handling == Allow {
			d.Transform = Everything()
		}
	}
	return d
}

// anonymousHost is the host of those who want to be nobody (RFC 3323, 4.1.1.3).
const anonymousHost = "anonymous.invalid"

// input is a request made ready for the conditions.
type input struct {
	*Request
	watchers  []watcher // empty: not authenticated
	anonymous bool
	doubt     bool // an external list is not known to its end
}

// holds tests all conditions, and moves next forward to when a window of an
// otherwise matching rule opens or closes.
func (rule *rule) holds(in *input, next *time.Time) bool {
	var edge time.Time
	ok, onlyTime := true, true
	for i := range rule.conditions {
		c := &rule.conditions[i]
		if c.holds(in, &edge) {
			continue
		}
		ok = false
		if c.kind != kindValidity {
			onlyTime = false
		}
	}
	if onlyTime && !edge.IsZero() {
		earlier(next, edge)
	}
	return ok
}

// holds tests a condition. That no other rule matched, which other-identity asks
// for as well, is seen when all have been tested.
func (c *condition) holds(in *input, edge *time.Time) bool {
	switch c.kind {
	case kindIdentity:
		return c.identity.matches(in.watchers)
	case kindSphere:
		return c.matchesSphere(in.Sphere)
	case kindValidity:
		return c.valid(in.Now, edge)
	case kindExternal:
		return c.lists.has(in.watchers)
	case kindOther:
		// A watcher who may be in a list that nobody can read is not known to be
		// another.
		return len(in.watchers) > 0 && !in.doubt
	case kindAnonymous:
		return in.anonymous
	}
	return false
}

func (c *condition) matchesSphere(sphere string) bool {
	return sphere != "" && slices.ContainsFunc(c.spheres, func(s string) bool { return strings.EqualFold(s, sphere) })
}

func (c *condition) valid(now time.Time, edge *time.Time) bool {
	ok := false
	for _, w := range c.windows {
		switch {
		case now.Before(w.from):
			earlier(edge, w.from)
		case now.Before(w.until):
			earlier(edge, w.until)
			ok = true
		}
	}
	return ok
}

// earlier sets t to u when t is zero or later.
func earlier(t *time.Time, u time.Time) {
	if t.IsZero() || u.Before(*t) {
		*t = u
	}
}

func (rule *rule) report(document string, in *input, matched, outranked bool) RuleReport {
	out := RuleReport{
		Document: document, ID: rule.id, Matched: matched, Outranked: outranked, Handling: rule.handling.String(),
		Message: "block", Grants: rule.transform.Grants(),
	}
	if rule.message {
		out.Message = "allow"
	}
	var edge time.Time
	for i := range rule.conditions {
		c := &rule.conditions[i]
		r := ConditionReport{Condition: c.name, Holds: c.holds(in, &edge)}
		switch c.kind {
		case kindIdentity:
			r.Wants, r.Is = c.identity.String(), in.who()
		case kindSphere:
			r.Wants, r.Is = some(c.spheres, " or "), in.Sphere
			if in.Sphere == "" {
				r.Is = "undefined"
			}
		case kindValidity:
			r.Wants, r.Is = c.times(), in.Now.UTC().Format(time.RFC3339)
		case kindExternal:
			r.Wants, r.Is = c.lists.String(), in.who()
		case kindOther:
			r.Wants, r.Is = "an identity that no other rule names", in.who()
			if in.doubt {
				r.Is += ", but an external list is not readable"
			}
		case kindAnonymous:
			r.Wants, r.Is = "a request for anonymity", "none"
			if in.anonymous {
				r.Is = r.Wants
			}
		case kindUnknown:
			r.Is = "not understood"
		}
		out.Conditions = append(out.Conditions, r)
	}
	return out
}

// who are the identities of a watcher for a person.
func (in *input) who() string {
	if len(in.watchers) == 0 {
		return "not authenticated"
	}
	keys := make([]string, len(in.watchers))
	for i, w := range in.watchers {
		keys[i] = w.key
	}
	return some(keys, " and ")
}

func (c *condition) times() string {
	all := make([]string, len(c.windows))
	for i, w := range c.windows {
		all[i] = w.from.UTC().Format(time.RFC3339) + " to " + w.until.UTC().Format(time.RFC3339)
	}
	if len(all) == 0 {
		return "no time"
	}
	return some(all, " or ")
}

// someMost bounds how many of a long enumeration a report shows.
const someMost = 8

// some joins the first of many names.
func some(all []string, by string) string {
	if more := len(all) - someMost; more > 0 {
		return strings.Join(all[:someMost], by) + fmt.Sprintf("%sone of %d more", by, more)
	}
	return strings.Join(all, by)
}
