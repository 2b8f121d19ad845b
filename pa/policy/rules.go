package policy

import (
	"strconv"
	"strings"
	"time"

	"rollcall/pa/pidf/xmltree"
)

// Namespaces of rule documents.
const (
	SpaceCommon    = "urn:ietf:params:xml:ns:common-policy" // RFC 4745
	SpaceRules     = "urn:ietf:params:xml:ns:pres-rules"    // RFC 5025
	SpaceMessage   = "urn:iptel:xml:ns:im-rules"            // SER's rules for MESSAGE
	SpaceOMACommon = "urn:oma:xml:xdm:common-policy"
	SpaceOMARules  = "urn:oma:xml:prs:pres-rules"
)

// limits of a rule document. Rules are long where a presentity lists many
// watchers, and they are not parsed for every message.
var limits = xmltree.Limits{Bytes: 1 << 20, Depth: 32, Elements: 65536}

// Bounds of a document beyond limits, so that no document makes a decision
// long. One that goes beyond is refused as too large. What is looked up in a
// table, such as <one>, is bounded by limits alone.
const (
	maxRules     = 1000
	maxMany      = 1000 // <many> and its draft forms
	maxWindows   = 1000 // pairs of <from> and <until>
	maxSpheres   = 1000
	maxLists     = 32  // external lists
	maxSelectors = 256 // members of provide-services and so on, and provide-unknown-attribute
)

// Error is why a rule document was refused.
type Error = xmltree.Error

// Ruleset is one parsed document. It is immutable, but for Source before it is
// shared.
type Ruleset struct {
	// Source says where the document is from, for a person.
	Source string

	rules []rule
	oma   bool // uses external-list or other-identity
	doubt bool // an external list is not known to its end
}

type rule struct {
	id         string
	conditions []condition
	class      class
	handling   Handling
	message    bool // im-handling is allow
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
	name     string
	identity identity
	spheres  []string
	windows  []window
	lists    lists
}

// window is one pair of <from> and <until>: from <= t < until.
type window struct{ from, until time.Time }

// Parse reads a document of common policy with presence rules or im-rules.
// Errors are *Error. Rules are accepted as far as they are understood, see the
// package comment.
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
			if len(rs.rules) >= maxRules {
				return nil, tooMany(maxRules, "rules")
			}
			rs.rules = append(rs.rules, parseRule(e))
		}
	}
	if err := rs.bounded(); err != nil {
		return nil, err
	}
	for i := range rs.rules {
		for _, c := range rs.rules[i].conditions {
			rs.oma = rs.oma || c.kind == kindExternal || c.kind == kindOther
			rs.doubt = rs.doubt || len(c.lists) > 0 // until they are known
		}
	}
	return rs, nil
}

// bounded checks the bounds of a document.
func (rs *Ruleset) bounded() error {
	var many, windows, spheres, lists, selectors int
	for i := range rs.rules {
		r := &rs.rules[i]
		for j := range r.conditions {
			c := &r.conditions[j]
			many += len(c.identity.many)
			windows += len(c.windows)
			spheres += len(c.spheres)
			lists += len(c.lists)
		}
		t := &r.transform
		selectors += len(t.services.members) + len(t.persons.members) + len(t.devices.members) + len(t.unknown)
	}
	for _, b := range []struct {
		n, most int
		what    string
	}{
		{many, maxMany, "elements <many>"},
		{windows, maxWindows, "windows of validity"},
		{spheres, maxSpheres, "spheres"},
		{lists, maxLists, "external lists"},
		{selectors, maxSelectors, "members of transformations"},
	} {
		if b.n > b.most {
			return tooMany(b.most, b.what)
		}
	}
	return nil
}

func tooMany(most int, what string) error {
	return &Error{Kind: xmltree.KindTooLarge, Detail: "more than " + strconv.Itoa(most) + " " + what}
}

// Len returns the number of rules.
func (rs *Ruleset) Len() int { return len(rs.rules) }

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
				switch {
				case a.Is(SpaceRules, "sub-handling"):
					r.handling = max(r.handling, parseHandling(a.Content()))
				case a.Is(SpaceMessage, "im-handling"):
					r.message = r.message || a.Content() == "allow"
				}
			}
		case "transformations":
			for t := range part.Elements() {
				r.transform.grant(t)
			}
		}
	}
	r.transform.settle()
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
		if m := exceptions(e, false); m != nil {
			c.identity.addMany(*m, "", false)
		}
	case e.Is(SpaceCommon, "sphere"):
		c.kind = kindSphere
		value, ok := e.Attr("value")
		if !ok {
			value = e.Content() // draft syntax
		}
		c.spheres = strings.Fields(value)
	case e.Is(SpaceCommon, "validity"):
		c.kind, c.windows = kindValidity, parseValidity(e)
	case e.Is(SpaceOMACommon, "external-list"):
		c.kind = kindExternal
		for entry := range e.Elements() {
			if anchor, ok := entry.Attr("anc"); ok && entry.Is(SpaceOMACommon, "entry") {
				c.lists = append(c.lists, external{anchor: strings.TrimSpace(anchor), List: List{Missing: "not read"}})
			}
		}
	case e.Is(SpaceOMACommon, "other-identity"):
		c.kind = kindOther
	case e.Is(SpaceOMACommon, "anonymous-request"):
		c.kind = kindAnonymous
	default:
		c.name = "{" + e.Space + "}" + e.Local
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
