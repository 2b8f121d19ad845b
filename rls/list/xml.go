package list

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/beevik/etree"
)

// Namespaces of the two formats (RFC 4826 sections 3.1 and 4.1), which are also
// the default document namespaces of their XCAP usages.
const (
	NamespaceLists    = "urn:ietf:params:xml:ns:resource-lists"
	NamespaceServices = "urn:ietf:params:xml:ns:rls-services"
)

const namespaceXML = "http://www.w3.org/XML/1998/namespace"

// MaxBytes is the size of the largest document read.
const MaxBytes = 4 << 20

const (
	maxXMLDepth = 64
	maxXMLTags  = 1 << 18 // start and end tags of a document
)

// ErrNotWellFormed reports a document that is not XML, has a DTD, exceeds the
// bounds of the package or has another root element than expected.
var ErrNotWellFormed = errors.New("list: not well-formed")

// Element is an XML element with its names expanded. It is immutable and
// opaque: a [Service] carries its inline list as one.
type Element struct {
	ns, name string
	attrs    []attribute // without namespace declarations
	kids     []*Element
	text     string // character data directly within
}

type attribute struct{ ns, name, value string }

// attr returns the value of an attribute without namespace.
func (e *Element) attr(name string) (string, bool) { return e.attrNS("", name) }

func (e *Element) attrNS(ns, name string) (string, bool) {
	for i := range e.attrs {
		if a := &e.attrs[i]; a.name == name && a.ns == ns {
			return a.value, true
		}
	}
	return "", false
}

// parseXML returns the root element and the number of tags. Elements without
// any namespace declaration, and prefixes nobody declared, belong to defaultNS:
// an XCAP server answers an element request without the declarations of the
// ancestors (XC-07), and RFC 4826 section 4.4.8 itself prints such documents.
func parseXML(body []byte, defaultNS string) (*Element, int, error) {
	tags := bytes.Count(body, []byte{'<'})
	if len(body) > MaxBytes || tags > maxXMLTags {
		return nil, 0, fmt.Errorf("%w: too large", ErrNotWellFormed)
	}
	doc := etree.NewDocument()
	doc.ReadSettings.MaxDepth = maxXMLDepth
	if err := doc.ReadFromBytes(body); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrNotWellFormed, err)
	}
	var root *etree.Element
	for _, t := range doc.Child {
		switch t := t.(type) {
		case *etree.Directive:
			return nil, 0, fmt.Errorf("%w: DTD", ErrNotWellFormed)
		case *etree.CharData:
			if strings.Trim(t.Data, "\uFEFF \t\r\n") != "" {
				return nil, 0, fmt.Errorf("%w: text outside the root element", ErrNotWellFormed)
			}
		case *etree.Element:
			if root != nil {
				return nil, 0, fmt.Errorf("%w: two root elements", ErrNotWellFormed)
			}
			root = t
		}
	}
	if root == nil {
		return nil, 0, fmt.Errorf("%w: no root element", ErrNotWellFormed)
	}
	c := converter{defaultNS: defaultNS, scope: map[string][]string{"xml": {namespaceXML}}}
	return c.element(root), tags, nil
}

// converter keeps the bindings in scope as one stack per prefix: walking up
// the tree for each name would let a document cost much more than its size.
type converter struct {
	defaultNS string
	scope     map[string][]string
}

func (c *converter) element(e *etree.Element) *Element {
	out := &Element{name: e.Tag}
	var declared []string
	for i := range e.Attr {
		if prefix, ok := declares(&e.Attr[i]); ok {
			c.scope[prefix] = append(c.scope[prefix], e.Attr[i].Value)
			declared = append(declared, prefix)
		}
	}
	out.ns = c.resolve(e.Space)
	if n := len(e.Attr) - len(declared); n > 0 {
		out.attrs = make([]attribute, 0, n)
	}
	for i := range e.Attr {
		a := &e.Attr[i]
		if _, ok := declares(a); ok {
			continue
		}
		ns := ""
		if a.Space != "" {
			ns = c.resolve(a.Space)
		}
		out.attrs = append(out.attrs, attribute{ns, a.Key, a.Value})
	}
	var text []string
	for _, t := range e.Child {
		switch t := t.(type) {
		case *etree.Element:
			out.kids = append(out.kids, c.element(t))
		case *etree.CharData:
			if !t.IsWhitespace() {
				text = append(text, t.Data)
			}
		}
	}
	out.text = strings.Join(text, "")
	for _, prefix := range declared {
		s := c.scope[prefix]
		c.scope[prefix] = s[:len(s)-1]
	}
	return out
}

func declares(a *etree.Attr) (prefix string, ok bool) {
	if a.Space == "xmlns" {
		return a.Key, true
	}
	return "", a.Space == "" && a.Key == "xmlns"
}

func (c *converter) resolve(prefix string) string {
	if s := c.scope[prefix]; len(s) > 0 {
		return s[len(s)-1]
	}
	return c.defaultNS
}
