package pidf

import (
	"slices"
	"strconv"
	"strings"

	"rollcall/pa/pidf/xmltree"
)

const spaceXSI = "http://www.w3.org/2001/XMLSchema-instance"

// prefixes are the namespace declarations of a composed root. A prefix that
// stands for one namespace in one document and for another in the next gets a
// new name in the latter. To declare the namespaces anew at each element would
// be simpler, but then a document could make a composed one that is a thousand
// times as long.
type prefixes struct {
	scopes []xmltree.Scope
	bound  map[string]string // prefix to namespace
	fresh  map[string]string // namespace to a prefix made here
	used   map[string]bool   // prefixes declared anywhere, only if one has to be made
	roots  []*xmltree.Element
}

func newPrefixes(roots []*xmltree.Element) *prefixes {
	return &prefixes{
		scopes: []xmltree.Scope{{Space: Space}},
		bound:  map[string]string{"": Space},
		fresh:  map[string]string{},
		roots:  roots,
	}
}

// adopt takes over the declarations of a root. It returns what its prefixes
// are called now if not as before, and whether names without a prefix are in
// no namespace.
func (p *prefixes) adopt(root *xmltree.Element) (renamed map[string]string, unset bool) {
	unset = true
	for _, s := range root.Declared() {
		if s.Prefix == "" {
			unset = s.Space == ""
			if unset {
				continue
			}
		}
		space, ok := p.bound[s.Prefix]
		if !ok {
			p.bind(s)
		} else if space != s.Space {
			if renamed == nil {
				renamed = map[string]string{}
			}
			renamed[s.Prefix] = p.other(s)
		}
	}
	return renamed, unset
}

func (p *prefixes) bind(s xmltree.Scope) {
	p.bound[s.Prefix] = s.Space
	p.scopes = append(p.scopes, s)
}

// other returns a prefix for a namespace that no document declares.
func (p *prefixes) other(s xmltree.Scope) string {
	if name, ok := p.fresh[s.Space]; ok {
		return name
	}
	if p.used == nil {
		p.used = map[string]bool{"xml": true, "xmlns": true}
		for _, r := range p.roots {
			declared(r, p.used)
		}
	}
	base := s.Prefix
	if base == "" {
		base = "ns"
	}
	name := base
	for n := 2; p.used[name] || name == s.Prefix; n++ {
		name = base + strconv.Itoa(n)
	}
	p.used[name] = true
	p.fresh[s.Space] = name
	p.bind(xmltree.Scope{Prefix: name, Space: s.Space})
	return name
}

func declared(e *xmltree.Element, used map[string]bool) {
	for i := range e.Attrs {
		if a := &e.Attrs[i]; a.Space == xmltree.SpaceXMLNS {
			used[a.Local] = true
		}
	}
	for c := range e.Elements() {
		declared(c, used)
	}
}

// rename puts the new prefixes into the names of e and below, and into
// xsi:type, the one attribute known to hold a name.
func rename(e *xmltree.Element, names map[string]string) {
	for i := range e.Attrs {
		a := &e.Attrs[i]
		if _, ok := names[a.Local]; ok && a.Space == xmltree.SpaceXMLNS {
			// from here on the prefix means what this element says
			inner := make(map[string]string, len(names))
			for k, v := range names {
				if !slices.ContainsFunc(e.Attrs, func(a xmltree.Attr) bool { return a.Space == xmltree.SpaceXMLNS && a.Local == k }) {
					inner[k] = v
				}
			}
			names = inner
			break
		}
	}
	if name, ok := names[e.Prefix]; ok {
		e.Prefix = name
	}
	for i := range e.Attrs {
		a := &e.Attrs[i]
		if a.Space == spaceXSI && a.Local == "type" {
			a.Value = renameValue(a.Value, names)
		}
		if name, ok := names[a.Prefix]; ok && a.Prefix != "" {
			a.Prefix = name
		}
	}
	for c := range e.Elements() {
		rename(c, names)
	}
}

func renameValue(v string, names map[string]string) string {
	v = strings.TrimSpace(v)
	prefix, local, ok := strings.Cut(v, ":")
	if !ok {
		prefix, local = "", v
	}
	if name, ok := names[prefix]; ok {
		return name + ":" + local
	}
	return v
}

func declaration(s xmltree.Scope) xmltree.Attr {
	a := xmltree.Attr{Space: xmltree.SpaceXMLNS, Local: s.Prefix, Value: s.Space}
	if s.Prefix != "" {
		a.Prefix = "xmlns"
	}
	return a
}

// inherits reports whether e or an element below it has no prefix and takes
// the default namespace from above e.
func inherits(e *xmltree.Element) bool {
	for i := range e.Attrs {
		if a := &e.Attrs[i]; a.Space == xmltree.SpaceXMLNS && a.Local == "" {
			return false
		}
	}
	if e.Local != "" && e.Prefix == "" {
		return true
	}
	return slices.ContainsFunc(e.Children, inherits)
}
