package dialoginfo

import (
	"slices"
	"strconv"
	"strings"

	"rollcall/pa/pidf/xmltree"
)

const spaceXSI = "http://www.w3.org/2001/XMLSchema-instance"

// shape is what the schema of RFC 4235 section 4.4 says of an element, as data.
type shape struct {
	attrs []attr
	parts []part
	text  func(string) (string, bool) // makes the content valid; nil: there are elements only
	open  bool                        // elements of other namespaces may follow
}

// attr is an attribute. also is a name that is found in documents instead.
type attr struct {
	name, also string
	must       bool
	value      func(string) (string, bool) // nil: any
}

// part is a child element, in the schema's order.
type part struct {
	name       string
	must, many bool
	shape      *shape
}

// dialogShape is <dialog>. The display name of an address is the attribute
// display, as in all examples and phones, not display-name as in the RFC's
// schema.
var dialogShape = func() *shape {
	nameaddr := &shape{attrs: []attr{{name: "display", also: "display-name"}}, text: uri}
	participant := &shape{open: true, parts: []part{
		{name: "identity", shape: nameaddr},
		{name: "target", shape: &shape{attrs: []attr{{name: "uri", must: true}}, parts: []part{
			{name: "param", many: true, shape: &shape{attrs: []attr{{name: "pname", must: true}, {name: "pval", must: true}}}},
		}}},
		{name: "session-description", shape: &shape{attrs: []attr{{name: "type", must: true}}, text: anyText}},
		{name: "cseq", shape: &shape{text: number}},
	}}
	return &shape{
		open: true,
		attrs: []attr{
			{name: "id", must: true}, {name: "call-id"}, {name: "local-tag"}, {name: "remote-tag"},
			{name: "direction", value: direction},
		},
		parts: []part{
			{name: "state", must: true, shape: &shape{
				attrs: []attr{
					{name: "event", also: "reason", value: oneOf("cancelled", "rejected", "replaced", "local-bye", "remote-bye", "error", "timeout")},
					{name: "code", value: statusCode},
				},
				text: func(s string) (string, bool) { return s, stateOf(s) != 0 },
			}},
			{name: "duration", shape: &shape{text: number}},
			{name: "replaces", shape: &shape{attrs: []attr{{name: "call-id", must: true}, {name: "local-tag", must: true}, {name: "remote-tag", must: true}}}},
			{name: "referred-by", shape: nameaddr},
			{name: "route-set", shape: &shape{parts: []part{{name: "hop", must: true, many: true, shape: &shape{text: anyText}}}}},
			{name: "local", shape: participant},
			{name: "remote", shape: participant},
		},
	}
}()

func anyText(s string) (string, bool) { return s, true }

func uri(s string) (string, bool) { return xmltree.URI(s), true }

func number(s string) (string, bool) {
	s = trim(s)
	return s, s != "" && len(s) <= 20 && strings.Trim(s, "0123456789") == ""
}

func statusCode(s string) (string, bool) {
	n, err := strconv.Atoi(trim(s))
	return strconv.Itoa(n), err == nil && n >= 100 && n <= 699
}

func oneOf(values ...string) func(string) (string, bool) {
	return func(s string) (string, bool) { return s, slices.Contains(values, s) }
}

func direction(s string) (string, bool) {
	if s == "receiver" { // of the RFC's examples
		s = "recipient"
	}
	return s, s == "initiator" || s == "recipient"
}

func trim(s string) string { return strings.Trim(s, " \t\r\n") }

// mender gives elements the shape of the schema.
type mender struct{ changed bool }

// mend works in place and returns false when nothing can be made of e. White
// space between elements is dropped, which does not count as a change.
func (m *mender) mend(e *xmltree.Element, sh *shape) bool {
	return m.attrs(e, sh) && m.content(e, sh)
}

func (m *mender) attrs(e *xmltree.Element, sh *shape) bool {
	kept := make([]xmltree.Attr, 0, len(e.Attrs))
	found := make([]bool, len(sh.attrs))
	for _, a := range e.Attrs {
		if a.Space == xmltree.SpaceXMLNS || a.Space == spaceXSI {
			kept = append(kept, a)
			continue
		}
		i := -1
		if a.Space == "" {
			i = slices.IndexFunc(sh.attrs, func(s attr) bool { return s.name == a.Local || s.also == a.Local })
		}
		if i < 0 || found[i] {
			m.changed = true
			continue
		}
		v, ok := a.Value, true
		if f := sh.attrs[i].value; f != nil {
			v, ok = f(v)
		}
		m.changed = m.changed || !ok || v != a.Value || a.Local != sh.attrs[i].name
		if ok {
			found[i] = true
			kept = append(kept, xmltree.Attr{Local: sh.attrs[i].name, Value: v})
		}
	}
	e.Attrs = kept
	for i, s := range sh.attrs {
		if s.must && !found[i] {
			return false
		}
	}
	return true
}

func (m *mender) content(e *xmltree.Element, sh *shape) bool {
	if sh.text != nil {
		before := e.Content()
		for range e.Elements() {
			m.changed = true
		}
		text, ok := sh.text(before)
		m.changed = m.changed || text != before
		e.Children = append(e.Children[:0:0], xmltree.Text(text))
		return ok
	}
	byPart := make([][]*xmltree.Element, len(sh.parts)+1) // the last are of other namespaces
	last := 0
	for _, c := range e.Children {
		i := len(sh.parts)
		switch {
		case c.Local == "":
			m.changed = m.changed || trim(c.Text) != ""
			continue
		case c.Space == Space:
			i = slices.IndexFunc(sh.parts, func(p part) bool { return p.name == c.Local })
			if i < 0 || len(byPart[i]) > 0 && !sh.parts[i].many || !m.mend(c, sh.parts[i].shape) {
				m.changed = true
				continue
			}
		case c.Space == "" || !sh.open:
			m.changed = true
			continue
		}
		m.changed = m.changed || i < last
		last = max(last, i)
		byPart[i] = append(byPart[i], c)
	}
	for i, p := range sh.parts {
		if p.must && len(byPart[i]) == 0 {
			return false
		}
	}
	e.Children = slices.Concat(byPart...)
	return true
}

// settle makes an element say the same below a root of ours, where names without
// a prefix are of dialog information and nothing else is declared: every
// declaration that it needs is put where it is needed first. scope is what its
// prefixes mean where it comes from, have what they mean where it goes.
func settle(e *xmltree.Element, scope, have map[string]string) {
	if e.Local == "" {
		return
	}
	var own []xmltree.Scope
	attrs := e.Attrs[:0:0]
	for _, a := range e.Attrs {
		if a.Space != xmltree.SpaceXMLNS {
			attrs = append(attrs, a)
		}
	}
	scope = with(scope, e.Declared()...)
	need := func(prefix, space string) {
		if prefix != "xml" && have[prefix] != space {
			own = append(own, xmltree.Scope{Prefix: prefix, Space: space})
			have = with(have, own[len(own)-1])
		}
	}
	if e.Space == Space {
		e.Prefix = ""
	}
	need(e.Prefix, e.Space)
	for _, a := range attrs {
		if a.Prefix != "" {
			need(a.Prefix, a.Space)
		}
		if a.Space == spaceXSI && a.Local == "type" {
			if prefix, _, ok := strings.Cut(trim(a.Value), ":"); ok && scope[prefix] != "" {
				need(prefix, scope[prefix])
			}
		}
	}
	for _, s := range own {
		a := xmltree.Attr{Space: xmltree.SpaceXMLNS, Local: s.Prefix, Value: s.Space}
		if s.Prefix != "" {
			a.Prefix = "xmlns"
		}
		attrs = append(attrs, a)
	}
	e.Attrs = attrs
	for _, c := range e.Children {
		settle(c, scope, have)
	}
}

// with is a copy of a scope with more in it.
func with(scope map[string]string, more ...xmltree.Scope) map[string]string {
	if len(more) == 0 {
		return scope
	}
	out := make(map[string]string, len(scope)+len(more))
	for k, v := range scope {
		out[k] = v
	}
	for _, s := range more {
		out[s.Prefix] = s.Space
	}
	return out
}
