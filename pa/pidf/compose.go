package pidf

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"rollcall/pa/pidf/xmltree"
)

const xmlDecl = `<?xml version="1.0" encoding="UTF-8"?>` + "\n"

// Offline returns the document of a presentity of whom nothing is published:
// one service, which is closed. Its bytes depend on the entity alone.
func Offline(entity string) []byte {
	b := append(make([]byte, 0, 224), xmlDecl+`<presence xmlns="`+Space+`" entity="`...)
	b = xmltree.AppendAttr(b, xmltree.URI(entity))
	return append(b, `"><tuple id="offline"><status><basic>closed</basic></status></tuple></presence>`...)
}

// Compose makes one document of all publications of a presentity, given oldest
// first. No document gives Offline, one in the shape of the schemas gives its
// own bytes unchanged (RFC 3903, 14.4).
//
// Several, or one out of shape (baresip puts person before tuple), give all
// tuples, then all notes, persons, devices and other elements, valid against
// the schemas of RFC 3863 and RFC 4479. Ids that are no xs:ID are repaired. Ids
// are scoped to a publication, so of those that occur again the oldest keeps
// its name and the others get a number appended. What the schemas cannot hold
// is left out: elements without a namespace or unknown in the PIDF namespace,
// wrong values of basic, priority, lang and timestamp, a device without
// deviceID. A tuple without any status is closed.
func Compose(entity string, docs []*Document) []byte { return Merge(entity, docs).body }

// Merge is Compose for a caller that goes on with the document, for instance
// to filter it. One document in the shape of the schemas is returned as it is.
func Merge(entity string, docs []*Document) *Document {
	switch len(docs) {
	case 0:
		return &Document{body: Offline(entity), entity: strings.TrimSpace(entity), basic: "closed", tuples: 1, whole: true}
	case 1:
		if docs[0].whole {
			return docs[0]
		}
	}
	roots := make([]*xmltree.Element, len(docs))
	for i, d := range docs {
		roots[i] = d.Tree()
	}
	return fromRoot(merge(entity, roots, true))
}

func fromRoot(root *xmltree.Element) *Document {
	body := root.Append(append(make([]byte, 0, 2048), xmlDecl...))
	return newDocument(append(body, '\n'), root)
}

// merge builds the composed tree. It takes the children out of the given trees
// and changes them.
func merge(entity string, roots []*xmltree.Element, uniqueIDs bool) *xmltree.Element {
	out := &xmltree.Element{Space: Space, Local: "presence"}
	names := newPrefixes(roots)
	// tuples, notes, persons, devices, the rest: each oldest first
	var parts [5][]*xmltree.Element
	for _, r := range roots {
		renamed, unset := names.adopt(r)
		for c := range r.Elements() {
			class, e := normal(c)
			if e == nil {
				continue
			}
			if len(renamed) > 0 {
				rename(e, renamed)
			}
			if unset && inherits(e) {
				e.Attrs = slices.Insert(e.Attrs, 0, declaration(xmltree.Scope{}))
			}
			parts[class] = append(parts[class], e)
		}
	}
	for _, s := range names.scopes {
		out.Attrs = append(out.Attrs, declaration(s))
	}
	out.Attrs = append(out.Attrs, xmltree.Attr{Local: "entity", Value: xmltree.URI(entity)})
	out.Children = slices.Concat(parts[:]...)
	if uniqueIDs {
		renameIDs(out)
	}
	return out
}

// Classes of children of <presence>, in the order of the schema.
const (
	classTuple = iota
	classNote
	classPerson
	classDevice
	classOther
)

// normal repairs a child of <presence> in place. It returns nil for what has
// no place in the schema.
func normal(c *xmltree.Element) (class int, e *xmltree.Element) {
	switch {
	case c.Is(Space, "tuple"):
		return classTuple, tuple(c)
	case c.Is(Space, "note"):
		return classNote, note(c)
	case c.Is(SpaceData, "person"):
		return classPerson, occurrence(c)
	case c.Is(SpaceData, "device"):
		return classDevice, occurrence(c)
	case foreign(c, Space):
		return classOther, c
	}
	return 0, nil
}

// foreign reports whether c fits a wildcard for other namespaces than space,
// which elements of no namespace do not.
func foreign(c *xmltree.Element, space string) bool { return c.Space != space && c.Space != "" }

// tuple gives a tuple the content of RFC 3863, 4.4: status, extensions,
// contact, notes, timestamp.
func tuple(t *xmltree.Element) *xmltree.Element {
	var status, contact, stamp *xmltree.Element
	var ext, notes []*xmltree.Element
	for c := range t.Elements() {
		switch {
		case c.Is(Space, "status"):
			keepFirst(&status, c)
		case c.Is(Space, "contact"):
			keepFirst(&contact, c)
		case c.Is(Space, "note"):
			notes = append(notes, note(c))
		case c.Is(Space, "timestamp"):
			keepFirst(&stamp, timestamp(c))
		case foreign(c, Space):
			ext = append(ext, c)
		}
	}
	if status == nil {
		status = &xmltree.Element{Prefix: t.Prefix, Space: Space, Local: "status"}
	}
	t.Children = append(t.Children[:0:0], fixStatus(status))
	t.Children = append(t.Children, ext...)
	if contact != nil {
		t.Children = append(t.Children, fixContact(contact))
	}
	t.Children = append(t.Children, notes...)
	if stamp != nil {
		t.Children = append(t.Children, stamp)
	}
	keepAttrs(t, "id")
	return t
}

func keepFirst(dst **xmltree.Element, e *xmltree.Element) {
	if *dst == nil {
		*dst = e
	}
}

func fixStatus(s *xmltree.Element) *xmltree.Element {
	var basic *xmltree.Element
	var ext []*xmltree.Element
	for c := range s.Elements() {
		switch {
		case c.Is(Space, "basic"):
			if v := basicValue(c); v != "" && basic == nil {
				basic = simple(c, v)
			}
		case foreign(c, Space):
			ext = append(ext, c)
		}
	}
	if basic == nil && len(ext) == 0 {
		// RFC 3863, 4.1.4 wants a child; who does not say that he is open is not.
		basic = simple(&xmltree.Element{Prefix: s.Prefix, Space: Space, Local: "basic"}, "closed")
	}
	s.Children = s.Children[:0:0]
	if basic != nil {
		s.Children = append(s.Children, basic)
	}
	s.Children = append(s.Children, ext...)
	keepAttrs(s)
	return s
}

func fixContact(c *xmltree.Element) *xmltree.Element {
	keepAttrs(c, "priority")
	c.Attrs = slices.DeleteFunc(c.Attrs, func(a xmltree.Attr) bool {
		return a.Space == "" && !qvalue(a.Value)
	})
	return simple(c, xmltree.URI(c.Content()))
}

// occurrence gives a person or device the content of RFC 4479: extensions, the
// deviceID of a device, notes, timestamp. A device without deviceID is nil.
func occurrence(p *xmltree.Element) *xmltree.Element {
	var id, stamp *xmltree.Element
	var ext, notes []*xmltree.Element
	for c := range p.Elements() {
		switch {
		case c.Is(SpaceData, "note"):
			notes = append(notes, note(c))
		case c.Is(SpaceData, "timestamp"):
			keepFirst(&stamp, timestamp(c))
		case c.Is(SpaceData, "deviceID"):
			keepFirst(&id, c)
		case foreign(c, SpaceData):
			ext = append(ext, c)
		}
	}
	p.Children = append(p.Children[:0:0], ext...)
	if p.Local == "device" {
		if id == nil {
			return nil
		}
		keepAttrs(id)
		p.Children = append(p.Children, simple(id, xmltree.URI(id.Content())))
	}
	p.Children = append(p.Children, notes...)
	if stamp != nil {
		p.Children = append(p.Children, stamp)
	}
	keepAttrs(p, "id")
	return p
}

func note(n *xmltree.Element) *xmltree.Element {
	n.Attrs = slices.DeleteFunc(n.Attrs, func(a xmltree.Attr) bool {
		lang := a.Space == xmltree.SpaceXML && a.Local == "lang" && language(a.Value)
		return !lang && a.Space != xmltree.SpaceXMLNS
	})
	return simple(n, n.Content())
}

// timestamp returns nil when the value is no xs:dateTime.
func timestamp(t *xmltree.Element) *xmltree.Element {
	v := strings.ToUpper(t.Content())
	if _, err := time.Parse(time.RFC3339, v); err != nil {
		if _, err := time.Parse("2006-01-02T15:04:05", v); err != nil {
			return nil
		}
	}
	keepAttrs(t)
	return simple(t, v)
}

// simple gives e text as its only content.
func simple(e *xmltree.Element, text string) *xmltree.Element {
	e.Children = append(e.Children[:0:0], xmltree.Text(text))
	return e
}

// keepAttrs drops all attributes but namespace declarations and those named.
func keepAttrs(e *xmltree.Element, names ...string) {
	e.Attrs = slices.DeleteFunc(e.Attrs, func(a xmltree.Attr) bool {
		named := a.Space == "" && slices.Contains(names, a.Local)
		return !named && a.Space != xmltree.SpaceXMLNS
	})
}

// qvalue reports whether s is a priority (RFC 3863, 4.1.5): 0 to 1 with at
// most three decimals.
func qvalue(s string) bool {
	whole, frac, dot := strings.Cut(s, ".")
	if whole != "0" && whole != "1" || len(frac) > 3 || dot && frac == "" {
		return false
	}
	for _, c := range frac {
		if c < '0' || c > '9' || whole == "1" && c != '0' {
			return false
		}
	}
	return true
}

// language reports whether s is an xs:language.
func language(s string) bool {
	for i, sub := range strings.Split(s, "-") {
		if len(sub) == 0 || len(sub) > 8 {
			return false
		}
		for _, c := range []byte(sub) {
			if !letter(c) && (i == 0 || !digit(c)) {
				return false
			}
		}
	}
	return true
}

func letter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func digit(c byte) bool  { return c >= '0' && c <= '9' }

// renameIDs makes all values of type xs:ID valid and unique. Tuples, persons,
// devices, RPID elements and xml:id share one space of ids.
func renameIDs(root *xmltree.Element) {
	var ids []*xmltree.Attr
	taken := map[string]bool{}
	collectIDs(root, func(a *xmltree.Attr) {
		ids = append(ids, a)
		taken[a.Value] = true
	})
	seen := make(map[string]bool, len(ids))
	next := map[string]int{}
	for _, a := range ids {
		id := validID(a.Value)
		if seen[id] || id != a.Value && taken[id] {
			base, n := id, max(next[id], 2)
			for ; ; n++ {
				id = base + "-" + strconv.Itoa(n)
				if !seen[id] && !taken[id] {
					break
				}
			}
			next[base] = n + 1
		}
		seen[id] = true
		a.Value = id
	}
}

func collectIDs(e *xmltree.Element, f func(*xmltree.Attr)) {
	component := e.Is(Space, "tuple") || e.Is(SpaceData, "person") || e.Is(SpaceData, "device")
	if component {
		if _, ok := e.Attr("id"); !ok {
			e.Attrs = append(e.Attrs, xmltree.Attr{Local: "id", Value: e.Local})
		}
	}
	for i := range e.Attrs {
		a := &e.Attrs[i]
		if a.Local == "id" && (a.Space == "" && (component || e.Space == SpaceRPID) || a.Space == xmltree.SpaceXML) {
			f(a)
		}
	}
	for c := range e.Elements() {
		collectIDs(c, f)
	}
}

// validID makes an xs:ID of s. Letters beyond ASCII are replaced too: which of
// them are allowed depends on the edition of XML.
func validID(s string) string {
	s = strings.TrimSpace(s)
	b := []byte(s)
	for i, c := range b {
		if !letter(c) && !digit(c) && c != '_' && c != '-' && c != '.' {
			b[i] = '_'
		}
	}
	if len(b) == 0 || !letter(b[0]) && b[0] != '_' {
		return "_" + string(b)
	}
	return string(b)
}
