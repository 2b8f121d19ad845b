package pa

import (
	"time"

	"rollcall/dialog"
	"rollcall/pa/policy"
)

// Question is a pair whose relation is asked for.
type Question struct {
	Watcher  string   // canonical key; empty: not authenticated
	Aliases  []string // further identities of the watcher
	Resource string   // canonical key of the presentity
	Package  string   // event package; empty for presence
	Message  bool     // a MESSAGE instead of a subscription
	Sphere   string   // of the presentity; see Shard.Sphere
	Sets     []*policy.Ruleset
	Now      time.Time
}

// What a decision rests on.
const (
	ByOwner   = "owner"      // the presentity asks for itself
	ByOpen    = "open"       // everybody may; no rules are read
	OwnerOnly = "owner-only" // the package is for the presentity alone
	ByRules   = "rules"      // at least one rule counted
	ByDefault = "default"    // none did: the local policy
)

// Decide is the decision for a pair about an event package, and what it rests on.
func (a *Agent) Decide(q Question) (policy.Decision, string) { return a.decide(&q, nil) }

func (a *Agent) decide(q *Question, reports *[]policy.RuleReport) (policy.Decision, string) {
	everything := policy.Decision{Handling: policy.Allow, Message: true, Transform: policy.Everything()}
	if q.Watcher != "" && q.Watcher == q.Resource {
		return everything, ByOwner
	}
	if !q.Message {
		switch a.basis(q.Package) {
		case policy.Anybody:
			return everything, ByOpen
		case policy.Owner:
			return policy.Decision{Handling: policy.Block}, OwnerOnly
		}
	}
	r := policy.Request{Watcher: q.Watcher, Aliases: q.Aliases, Sphere: q.Sphere, Package: q.Package, Now: q.Now}
	var d policy.Decision
	if reports != nil {
		d, *reports = policy.Explain(q.Sets, r)
	} else {
		d = policy.Evaluate(q.Sets, r)
	}
	switch {
	case d.Matched:
		return d, ByRules
	case q.Message: // whoever has a list of whom to allow means nobody else (IM-02)
		d.Message = len(q.Sets) == 0 && a.opt.MessageAllowed
	case a.opt.Mode == Allow || a.opt.Mode == Open:
		d.Handling, d.Transform = policy.Allow, policy.Everything()
	case a.opt.Mode == Block:
		d.Handling = policy.Block
	default:
		d.Handling = policy.Confirm
	}
	return d, ByDefault
}

// basis is what decides about a package.
func (a *Agent) basis(pkg string) policy.Basis {
	if pkg == "" {
		pkg = "presence"
	}
	if b, ok := a.opt.Bases[pkg]; ok {
		return b
	}
	if a.opt.Mode == Open {
		return policy.Anybody
	}
	return policy.BasisOf(pkg)
}

// Explanation is a decision with all that led to it.
type Explanation struct {
	Watcher    string     `json:"watcher"`
	Aliases    []string   `json:"aliases,omitempty"`
	Presentity string     `json:"presentity"`
	Package    string     `json:"package,omitempty"`
	Method     string     `json:"method"`                // SUBSCRIBE or MESSAGE
	Allowed    bool       `json:"allowed"`               // the watcher sees the state, the MESSAGE may be delivered
	Status     string     `json:"status"`                // of a subscription: active, pending, terminated; of a MESSAGE active or terminated
	Handling   string     `json:"handling"`              // sub-handling or im-handling
	Basis      string     `json:"basis"`                 // one of the constants above
	Default    string     `json:"default,omitempty"`     // the local policy that was applied
	Sphere     string     `json:"sphere,omitempty"`      // of the presentity
	Grants     []string   `json:"grants,omitempty"`      // what is shown
	NextChange *time.Time `json:"next_change,omitempty"` // when time alone may change it
	// Rules are all rules that were read, in the order of the documents.
	Rules []policy.RuleReport `json:"rules"`
}

// Explain is Decide with its reasons.
func (a *Agent) Explain(q Question) Explanation {
	reports := []policy.RuleReport{}
	d, basis := a.decide(&q, &reports)
	out := Explanation{Watcher: q.Watcher, Aliases: q.Aliases, Presentity: q.Resource, Package: q.Package, Method: "SUBSCRIBE", Basis: basis, Sphere: q.Sphere, Rules: reports}
	if !d.NextChange.IsZero() {
		at := d.NextChange.UTC()
		out.NextChange = &at
	}
	if q.Message {
		out.Method, out.Allowed, out.Status, out.Handling = "MESSAGE", d.Message, "terminated", "block"
		if d.Message {
			out.Status, out.Handling = "active", "allow"
		}
		if basis == ByDefault {
			out.Default = "message-auth " + map[bool]string{true: "allow", false: "block"}[a.opt.MessageAllowed]
			if len(q.Sets) > 0 {
				out.Default = "block, because the recipient has rules"
			}
		}
		return out
	}
	out.Allowed, out.Handling, out.Status = d.Handling == policy.Allow, d.Handling.String(), "active"
	switch d.Handling {
	case policy.Block:
		out.Status = "terminated"
	case policy.Confirm:
		out.Status = "pending"
	case policy.Allow:
		out.Grants = d.Transform.Grants()
	}
	switch basis {
	case ByDefault:
		out.Default = "presence-auth " + a.opt.Mode.String()
	case ByOpen, OwnerOnly:
		if b, ok := a.opt.Bases[q.Package]; ok {
			out.Default = "package-auth " + q.Package + "=" + b.String()
		} else if basis == ByOpen {
			out.Default = "presence-auth open"
		}
	}
	return out
}

// Sphere is where a presentity says it is, as rules ask for it; empty when that
// is undefined.
func (s *Shard) Sphere(resource string) string {
	if s.a.sphere >= 0 {
		if p := s.all[s.a.sphere][resource]; p != nil {
			return p.sphere()
		}
	}
	return ""
}

// changePiece is how many presentities are looked at in one turn after a change
// that concerns all of them.
const changePiece = 64

// AllRulesChanged decides anew for every watcher, after something changed that
// the rules of anybody may depend on: the default rules or a list for all.
func (s *Shard) AllRulesChanged(t *dialog.Turn) {
	var watched []*presentity
	for _, all := range s.all {
		for _, p := range all {
			if p.watchers.live > 0 {
				watched = append(watched, p)
			}
		}
	}
	var piece func(t *dialog.Turn)
	piece = func(t *dialog.Turn) {
		n := min(changePiece, len(watched))
		now := watched[:n]
		if watched = watched[n:]; len(watched) > 0 {
			t.Later(piece)
		}
		for _, p := range now {
			if s.all[p.pkg][p.key] == p {
				s.rulesChanged(t, p)
			}
		}
	}
	piece(t)
}
