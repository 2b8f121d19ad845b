package policy

import (
	"strings"
	"time"
)

// Request is who asks, and when.
type Request struct {
	// Watcher is the authenticated identity as a canonical key (sip: for sip,
	// sips, pres and im URIs), empty when the watcher is not authenticated.
	Watcher string
	// Aliases are further identities asserted for the same request (RFC 5025,
	// 3.1.1.2). An exception for one of them excludes the watcher.
	Aliases []string
	// Sphere of the presentity, empty when it is undefined; see pidf.Sphere.
	Sphere string
	// Anonymous tells that the watcher asked for privacy (OMA anonymous-request).
	Anonymous bool
	// Member reports whether the watcher is in the list an OMA external-list
	// names. It must not block; nil means that it is in none.
	Member func(anchor string) bool
	Now    time.Time
}

// RuleTrace says why a rule counted or not.
type RuleTrace struct {
	Set     int    // index of the Ruleset
	ID      string // the rule's id
	Matched bool
	Failed  string // the first condition that was false, or "outranked"
}

// Decision is the combined outcome of all rules.
type Decision struct {
	Matched   bool // whether any rule counted; if none did, local policy may differ from Block
	Handling  Handling
	Transform Transform
	Rules     []RuleTrace // one for each rule, in the order of the documents
	// NextChange is the next instant at which time alone can change the
	// outcome; zero when it cannot.
	NextChange time.Time
}

// Evaluate combines all rules of all documents that match the request (RFC
// 4745, 10.2): the highest handling, and the union of what transformations
// grant.
//
// OMA precedence is kept among rules whose documents use external-list or
// other-identity: one that matched by external-list counts only when none
// matched by identity, one that matched by other-identity only when none
// matched by either.
func Evaluate(sets []*Ruleset, r Request) Decision {
	var d Decision
	total, oma := 0, false
	for _, s := range sets {
		total += len(s.rules)
		oma = oma || s.oma
	}
	var room [4]watcher
	watchers := room[:0]
	if r.Watcher != "" {
		watchers = append(watchers, newWatcher(r.Watcher))
		for _, a := range r.Aliases {
			watchers = append(watchers, newWatcher(a))
		}
	}
	d.Rules = make([]RuleTrace, 0, total)
	best := classNone
	for i, s := range sets {
		for j := range s.rules {
			t := s.rules[j].evaluate(&r, watchers, &d.NextChange)
			t.Set = i
			if t.Matched {
				best = max(best, s.rules[j].class)
			}
			d.Rules = append(d.Rules, t)
		}
	}
	n := 0
	for _, s := range sets {
		for j := range s.rules {
			rule, t := &s.rules[j], &d.Rules[n]
			n++
			if !t.Matched {
				continue
			}
			if oma && rule.class != classNone && rule.class < best {
				t.Matched, t.Failed = false, "outranked"
				continue
			}
			d.Matched = true
			d.Handling = max(d.Handling, rule.handling)
			d.Transform.union(&rule.transform)
		}
	}
	return d
}

// evaluate tests all conditions but other-identity, which depends on the other
// rules, and moves next forward to when a window of an otherwise matching rule
// opens or closes.
func (rule *rule) evaluate(r *Request, watchers []watcher, next *time.Time) RuleTrace {
	t := RuleTrace{ID: rule.id, Matched: true}
	var edge time.Time
	onlyTime := true
	for i := range rule.conditions {
		c := &rule.conditions[i]
		ok := false
		switch c.kind {
		case kindIdentity:
			ok = c.identity.matches(watchers)
		case kindSphere:
			ok = c.matchesSphere(r.Sphere)
		case kindValidity:
			ok = c.valid(r.Now, &edge)
		case kindExternal:
			ok = len(watchers) > 0 && r.Member != nil && c.anyList(r.Member)
		case kindOther:
			ok = len(watchers) > 0
		case kindAnonymous:
			ok = r.Anonymous
		case kindUnknown:
		}
		if !ok {
			if t.Matched {
				t.Matched, t.Failed = false, c.name
			}
			if c.kind != kindValidity {
				onlyTime = false
			}
		}
	}
	if onlyTime && !edge.IsZero() {
		earlier(next, edge)
	}
	return t
}

func (c *condition) matchesSphere(sphere string) bool {
	if sphere == "" {
		return false
	}
	for _, s := range c.spheres {
		if strings.EqualFold(s, sphere) {
			return true
		}
	}
	return false
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

func (c *condition) anyList(member func(string) bool) bool {
	for _, a := range c.anchors {
		if member(a) {
			return true
		}
	}
	return false
}

// earlier sets t to u when t is zero or later.
func earlier(t *time.Time, u time.Time) {
	if t.IsZero() || u.Before(*t) {
		*t = u
	}
}
