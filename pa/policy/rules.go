package policy

import (
	"strings"
	"time"

	"rollcall/pa/pidf/xmltree"
)

// Namespaces of rule documents.
const (
	SpaceCommon    = "urn:ietf:params:xml:ns:common-policy" // RFC 4745
	SpaceRules     = "urn:ietf:params:xml:ns:pres-rules"    // RFC 5025
	SpaceOMACommon = "urn:oma:xml:xdm:common-policy"
	SpaceOMARules  = "urn:oma:xml:prs:pres-rules"
)

// limits of a rule document. Rules are long where a presentity lists many
// watchers, and they are not parsed for every message.
var limits = xmltree.Limits{Bytes: 1 << 20, Depth: 32, Elements: 65536}

// Error is why a rule document was refused.
type Error = xmltree.Error

// Ruleset is one parsed document. It is immutable.
type Ruleset struct {
	rules []rule
	oma   bool // uses external-list or other-identity
	lists []string
}

type rule struct {
	id         string
	conditions []condition
	class      class
	handling   Handling
	transform  Transform
}

// class orders rules that OMA lets outrank one another.
type class uint8

const (
	classNone     class = iota // no condition on who the watcher is
	classOther                 // other-identity
	classExternal              // external-list
	classIdentity              // identity
)

type kind uint8

const (
	kindUnknown kind = iota
	kindIdentity
	kindSphere
	kindValidity
	kindExternal
	kindOther
	kindAnonymous
)

type condition struct {
	kind     kind
	name     string // for a trace
	identity identity
	spheres  []string
	windows  []window
	anchors  []string
}

// window is one pair of <from> and <until>: from <= t < until.
type window struct{ from, until time.Time }

// Parse reads a document of common policy with presence rules. Errors are
// *Error. Rules are accepted as far as they are understood, see the package
// comment.
func Parse(body []byte) (*Ruleset, error) {
	root, err := xmltree.Parse(body, limits)
	if err != nil {
		return nil, err
	}
	if !root.Is(SpaceCommon, "ruleset") {
		return nil, &Error{Kind: xmltree.KindRoot, Detail: "the root element is not <ruleset> of " + SpaceCommon}
	}
	rs := &Ruleset{}
	for e := range root.Elements() {
		if e.Is(SpaceCommon, "rule") {
			rs.rules = append(rs.rules, parseRule(e))
		}
	}
	for i := range rs.rules {
		for _, c := range rs.rules[i].conditions {
			rs.lists = append(rs.lists, c.anchors...)
			rs.oma = rs.oma || c.kind == kindExternal || c.kind == kindOther
		}
	}
	return rs, nil
}

// Len returns the number of rules.
func (rs *Ruleset) Len() int { return len(rs.rules) }

// ExternalLists returns the XCAP URIs of the lists that OMA external-list
// conditions name, as they are written, for a caller that fetches them before
// Evaluate.
func (rs *Ruleset) ExternalLists() []string { return append([]string(nil), rs.lists...) }

func parseRule(e *xmltree.Element) rule {
	var r rule
	r.id, _ = e.Attr("id")
	for part := range e.Elements() {
		if part.Space != SpaceCommon {
			continue
		}
		switch part.Local {
		case "conditions":
			for c := range part.Elements() {
				r.addCondition(parseCondition(c))
			}
		case "actions":
			for a := range part.Elements() {
				if a.Is(SpaceRules, "sub-handling") {
					r.handling = max(r.handling, parseHandling(a.Content()))
				}
			}
		case "transformations":
			for t := range part.Elements() {
				r.transform.grant(t)
			}
		}
	}
	return r
}

func (r *rule) addCondition(c condition) {
	r.conditions = append(r.conditions, c)
	switch c.kind {
	case kindIdentity:
		r.class = max(r.class, classIdentity)
	case kindExternal:
		r.class = max(r.class, classExternal)
	case kindOther:
		r.class = max(r.class, classOther)
	}
}

func parseCondition(e *xmltree.Element) condition {
	c := condition{name: e.Local}
	switch {
	case e.Is(SpaceCommon, "identity"):
		c.kind, c.identity = kindIdentity, parseIdentity(e)
	case e.Is(SpaceCommon, "any-identity"): // draft syntax
		c.kind = kindIdentity
		c.identity.addMany("", false, e, false)
	case e.Is(SpaceCommon, "sphere"):
		c.kind = kindSphere
		value, ok := e.Attr("value")
		if !ok {
			value = e.Content() // draft syntax
		}
		c.spheres = strings.Fields(value)
		c.name = "sphere " + strings.Join(c.spheres, " ")
	case e.Is(SpaceCommon, "validity"):
		c.kind, c.windows = kindValidity, parseValidity(e)
	case e.Is(SpaceOMACommon, "external-list"):
		c.kind = kindExternal
		for entry := range e.Elements() {
			if anchor, ok := entry.Attr("anc"); ok && entry.Is(SpaceOMACommon, "entry") {
				c.anchors = append(c.anchors, strings.TrimSpace(anchor))
			}
		}
	case e.Is(SpaceOMACommon, "other-identity"):
		c.kind = kindOther
	case e.Is(SpaceOMACommon, "anonymous-request"):
		c.kind = kindAnonymous
	default:
		c.name = "unknown condition {" + e.Space + "}" + e.Local
	}
	return c
}

// parseValidity reads pairs of <from> and <until>. A time without a zone could
// be any of many instants and a half pair has no other end: neither is true.
func parseValidity(e *xmltree.Element) []window {
	var windows []window
	var from time.Time
	open := false
	for c := range e.Elements() {
		t, err := time.Parse(time.RFC3339, c.Content())
		switch {
		case c.Is(SpaceCommon, "from"):
			from, open = t, err == nil
		case c.Is(SpaceCommon, "until"):
			if open && err == nil && from.Before(t) {
				windows = append(windows, window{from, t})
			}
			open = false
		}
	}
	return windows
}

// Handling is what becomes of a subscription (RFC 5025, 3.2.1). Higher values
// give more.
type Handling uint8

// The values of sub-handling.
const (
	Block       Handling = 0
	Confirm     Handling = 10
	PoliteBlock Handling = 20
	Allow       Handling = 30
)

// String returns the value as it stands in rules.
func (h Handling) String() string {
	switch h {
	case Block:
		return "block"
	case Confirm:
		return "confirm"
	case PoliteBlock:
		return "polite-block"
	case Allow:
		return "allow"
	}
	return "unknown"
}

func parseHandling(s string) Handling {
	for _, h := range [...]Handling{Confirm, PoliteBlock, Allow} {
		if s == h.String() {
			return h
		}
	}
	return Block
}
