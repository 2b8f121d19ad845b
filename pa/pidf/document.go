package pidf

import (
	"slices"
	"strings"

	"rollcall/pa/pidf/xmltree"
)

// Media type and namespaces of presence documents.
const (
	MediaType = "application/pidf+xml"

	Space     = "urn:ietf:params:xml:ns:pidf"            // RFC 3863
	SpaceData = "urn:ietf:params:xml:ns:pidf:data-model" // RFC 4479
	SpaceRPID = "urn:ietf:params:xml:ns:pidf:rpid"       // RFC 4480
)

// Limits bounds what Parse accepts; a zero field means the default (64 KiB,
// 64 levels, 4096 elements, and for one element 256 attributes and 256
// namespaces).
type Limits = xmltree.Limits

// Error is why a body was refused; its Code is the status of the response.
type Error = xmltree.Error

// Document is a presence document that Parse accepted. It is immutable.
type Document struct {
	body    []byte
	entity  string
	basic   string
	note    string
	spheres []string
	tuples  int
	whole   bool // has the shape of the schema: see conforms
}

// Parse checks a body and reads what policy and people want to know of it.
// The document keeps body, which must not be changed afterwards. Errors are
// *Error: 413 for what is over the limits, 415 for an encoding other than
// UTF-8, 400 for anything else.
func Parse(body []byte, limits Limits) (*Document, error) {
	root, err := xmltree.Parse(body, limits)
	if err != nil {
		return nil, err
	}
	if !root.Is(Space, "presence") {
		return nil, &Error{Kind: xmltree.KindRoot, Detail: "the root element is " + describe(root) + ", not <presence> of " + Space}
	}
	return newDocument(body, root), nil
}

func describe(e *xmltree.Element) string {
	name, space := e.Local, e.Space
	if len(name)+len(space) > 200 {
		return "another"
	}
	if space == "" {
		return "<" + name + "> of no namespace"
	}
	return "<" + name + "> of " + space
}

func newDocument(body []byte, root *xmltree.Element) *Document {
	d := &Document{body: body, whole: conforms(root)}
	d.entity, _ = root.Attr("entity")
	d.entity = strings.TrimSpace(d.entity)
	var personNote, tupleNote string
	for c := range root.Elements() {
		switch {
		case c.Is(Space, "tuple"):
			d.tuples++
			for f := range c.Elements() {
				switch {
				case f.Is(Space, "status"):
					d.readStatus(f)
				case f.Is(Space, "note"):
					first(&tupleNote, f)
				}
			}
		case c.Is(Space, "note"):
			first(&d.note, c)
		case c.Is(SpaceData, "person"):
			for f := range c.Elements() {
				switch {
				case f.Is(SpaceRPID, "sphere"):
					d.readSphere(f)
				case f.Local == "note" && (f.Space == SpaceData || f.Space == Space):
					first(&personNote, f)
				}
			}
		}
	}
	for _, s := range [...]string{personNote, tupleNote} {
		if d.note == "" {
			d.note = s
		}
	}
	return d
}

func first(dst *string, e *xmltree.Element) {
	if *dst == "" {
		*dst = e.Content()
	}
}

func (d *Document) readStatus(status *xmltree.Element) {
	for b := range status.Elements() {
		if !b.Is(Space, "basic") {
			continue
		}
		switch v := basicValue(b); {
		case v == "open", v == "closed" && d.basic == "":
			d.basic = v
		}
	}
}

// basicValue returns open or closed, or "" for anything else.
func basicValue(b *xmltree.Element) string {
	switch v := strings.ToLower(b.Content()); v {
	case "open", "closed":
		return v
	}
	return ""
}

// readSphere takes the value from a child element, as the schema of RFC 4480
// has it, or from text, as its example has it.
func (d *Document) readSphere(e *xmltree.Element) {
	n := len(d.spheres)
	for v := range e.Elements() {
		d.addSphere(v.Local)
	}
	if len(d.spheres) == n {
		d.addSphere(e.Content())
	}
}

func (d *Document) addSphere(v string) {
	v = strings.ToLower(v)
	if v != "" && !slices.Contains(d.spheres, v) {
		d.spheres = append(d.spheres, v)
	}
}

// Bytes returns the document as it was published. The caller must not change
// it.
func (d *Document) Bytes() []byte { return d.body }

// Entity returns the presentity's URI as the document has it, or "".
func (d *Document) Entity() string { return d.entity }

// Basic returns open when any tuple is open, closed when none is and any is
// closed, else "".
func (d *Document) Basic() string { return d.basic }

// Note returns the first note of the presentity, its person or its services,
// for a person to read, or "".
func (d *Document) Note() string { return d.note }

// Tuples returns the number of tuples.
func (d *Document) Tuples() int { return d.tuples }

// Spheres returns the distinct values of the <sphere> elements of all persons
// (RFC 4480, 3.9), in lower case.
func (d *Document) Spheres() []string { return slices.Clone(d.spheres) }

// Sphere returns the sphere of a presentity: the one value on which all
// documents that have a <sphere> agree, else "" for undefined (RFC 5025,
// 3.1.2).
func Sphere(docs []*Document) string {
	sphere := ""
	for _, d := range docs {
		for _, v := range d.spheres {
			if sphere != "" && sphere != v {
				return ""
			}
			sphere = v
		}
	}
	return sphere
}

// Tree returns the document as a tree of its own, which the caller may change.
func (d *Document) Tree() *xmltree.Element {
	root, err := xmltree.Parse(d.body, xmltree.Unlimited)
	if err != nil {
		panic("pidf: a parsed document does not parse: " + err.Error())
	}
	return root
}

// FromTree makes a document of a changed tree. Elements are put into the order
// of the schema and repaired as in Compose, except that ids are kept as they
// are. It takes root over and changes it.
func FromTree(root *xmltree.Element) *Document {
	entity, _ := root.Attr("entity")
	return fromRoot(merge(entity, []*xmltree.Element{root}, false))
}
