package rlmi

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/beevik/etree"
)

// Bounds of what is read from a peer.
const (
	maxXMLBytes = 4 << 20
	maxXMLDepth = 64
	maxXMLTags  = 1 << 18
	maxXMLAttrs = 64 // of one element
)

// ErrNotWellFormed reports an RLMI document that is no XML, has a DTD, or
// exceeds the bounds of the package.
var ErrNotWellFormed = errors.New("rlmi: not well-formed")

// ParseList reads an RLMI document strictly: it must keep the rules of
// [List.Validate] and the schema's order of elements. The error is a
// [*RuleError] or wraps [ErrNotWellFormed].
func ParseList(b []byte) (*List, error) { return parseList(b, false) }

func parseList(b []byte, lenient bool) (*List, error) {
	root, err := readXML(b)
	if err != nil {
		return nil, err
	}
	p := listParser{lenient: lenient}
	l, err := p.list(root)
	if err != nil {
		return nil, err
	}
	if !lenient {
		if err := l.Validate(); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// readXML returns the root element of a bounded document without DTD.
func readXML(b []byte) (*etree.Element, error) {
	if len(b) > maxXMLBytes || bytes.Count(b, []byte{'<'}) > maxXMLTags {
		return nil, fmt.Errorf("%w: too large", ErrNotWellFormed)
	}
	doc := etree.NewDocument()
	doc.ReadSettings.MaxDepth = maxXMLDepth
	if err := doc.ReadFromBytes(b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotWellFormed, err)
	}
	var root *etree.Element
	for _, t := range doc.Child {
		switch t := t.(type) {
		case *etree.Directive:
			return nil, fmt.Errorf("%w: DTD", ErrNotWellFormed)
		case *etree.CharData:
			if strings.Trim(t.Data, "\uFEFF \t\r\n") != "" {
				return nil, fmt.Errorf("%w: text outside the root element", ErrNotWellFormed)
			}
		case *etree.Element:
			if root != nil {
				return nil, fmt.Errorf("%w: two root elements", ErrNotWellFormed)
			}
			root = t
		}
	}
	if root == nil {
		return nil, fmt.Errorf("%w: no root element", ErrNotWellFormed)
	}
	return root, nil
}

type listParser struct{ lenient bool }

func (p *listParser) list(e *etree.Element) (*List, error) {
	if err := bounded(e); err != nil {
		return nil, err
	}
	if !p.is(e, "list") {
		return nil, broken("RL-10", "root part is <"+e.FullTag()+">, not an RLMI list")
	}
	l := &List{URI: attr(e, "uri"), CID: p.cid(e)}
	version := attr(e, "version")
	v, err := strconv.ParseUint(strings.TrimSpace(version), 10, 32)
	if err != nil {
		return nil, broken("RL-12", "list version "+strconv.Quote(version))
	}
	l.Version = uint32(v)
	switch full := strings.TrimSpace(attr(e, "fullState")); full {
	case "true", "1":
		l.FullState = true
	case "false", "0":
	default:
		return nil, broken("RL-12", "list fullState "+strconv.Quote(full))
	}
	for _, t := range e.Child {
		c, ok := t.(*etree.Element)
		if !ok {
			continue
		}
		if err := bounded(c); err != nil {
			return nil, err
		}
		switch {
		case p.is(c, "name"):
			if len(l.Resources) > 0 && !p.lenient {
				return nil, broken("RL-12", "list name after a resource")
			}
			l.Names = append(l.Names, name(c))
		case p.is(c, "resource"):
			r, err := p.resource(c)
			if err != nil {
				return nil, err
			}
			l.Resources = append(l.Resources, r)
		case !p.lenient:
			return nil, broken("RL-12", "list with <"+c.FullTag()+">")
		}
	}
	return l, nil
}

func (p *listParser) resource(e *etree.Element) (Resource, error) {
	r := Resource{URI: attr(e, "uri")}
	for _, t := range e.Child {
		c, ok := t.(*etree.Element)
		if !ok {
			continue
		}
		if err := bounded(c); err != nil {
			return r, err
		}
		switch {
		case p.is(c, "name"):
			if len(r.Instances) > 0 && !p.lenient {
				return r, broken("RL-16", "resource "+strconv.Quote(r.URI)+" with a name after an instance")
			}
			r.Names = append(r.Names, name(c))
		case p.is(c, "instance"):
			r.Instances = append(r.Instances, Instance{
				ID: attr(c, "id"), State: attr(c, "state"), Reason: attr(c, "reason"), CID: p.cid(c),
			})
		case !p.lenient:
			return r, broken("RL-16", "resource "+strconv.Quote(r.URI)+" with <"+c.FullTag()+">")
		}
	}
	return r, nil
}

// is looks at the namespace too; servers that forget it are known, so the
// lenient form takes the local name alone.
func (p *listParser) is(e *etree.Element, local string) bool {
	return e.Tag == local && (p.lenient || e.NamespaceURI() == Namespace)
}

func (p *listParser) cid(e *etree.Element) string {
	v := attr(e, "cid")
	if p.lenient {
		v = strings.TrimSpace(v)
		if inner, ok := unbracket(v); ok {
			v = inner
		}
	}
	return v
}

// bounded keeps the search for namespaces cheap.
func bounded(e *etree.Element) error {
	if len(e.Attr) > maxXMLAttrs {
		return fmt.Errorf("%w: more than %d attributes", ErrNotWellFormed, maxXMLAttrs)
	}
	return nil
}

func attr(e *etree.Element, local string) string {
	for i := range e.Attr {
		if e.Attr[i].Key == local && e.Attr[i].Space == "" {
			return e.Attr[i].Value
		}
	}
	return ""
}

func name(e *etree.Element) Name {
	var n Name
	for i := range e.Attr {
		if e.Attr[i].Key == "lang" && e.Attr[i].Space == "xml" {
			n.Lang = e.Attr[i].Value
		}
	}
	var text []string
	for _, t := range e.Child {
		if c, ok := t.(*etree.CharData); ok {
			text = append(text, c.Data)
		}
	}
	n.Text = strings.Join(text, "")
	return n
}
