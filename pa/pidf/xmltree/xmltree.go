package xmltree

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"iter"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Namespace names every XML processor knows.
const (
	SpaceXML   = "http://www.w3.org/XML/1998/namespace"
	SpaceXMLNS = "http://www.w3.org/2000/xmlns/"
)

// Default limits, used for zero fields of Limits.
const (
	DefaultBytes    = 64 << 10
	DefaultDepth    = 64
	DefaultElements = 4096
	DefaultAttrs    = 256
	DefaultScopes   = 256
)

// Limits bounds what Parse accepts. A zero field means the default.
type Limits struct {
	Bytes    int // length of the document
	Depth    int // nested elements, the root counts as 1
	Elements int // elements in all
	Attrs    int // attributes of one element
	Scopes   int // namespace declarations in scope at one element
}

// Unlimited is for documents that were checked before, or made here.
var Unlimited = Limits{Bytes: math.MaxInt, Depth: math.MaxInt, Elements: math.MaxInt, Attrs: math.MaxInt, Scopes: math.MaxInt}

func (l Limits) withDefaults() Limits {
	for _, f := range [...]struct {
		limit *int
		def   int
	}{{&l.Bytes, DefaultBytes}, {&l.Depth, DefaultDepth}, {&l.Elements, DefaultElements}, {&l.Attrs, DefaultAttrs}, {&l.Scopes, DefaultScopes}} {
		if *f.limit <= 0 {
			*f.limit = f.def
		}
	}
	return l
}

// Element is an element, or a piece of character data when Local is empty.
type Element struct {
	Prefix, Space, Local string     // as written; resolved namespace name; local name
	Attrs                []Attr     // in document order, with namespace declarations
	Children             []*Element // elements and character data
	Text                 string     // character data only
}

// Attr is an attribute. A namespace declaration has Space SpaceXMLNS; its
// Local is the declared prefix, or empty for the default namespace.
type Attr struct {
	Prefix, Space, Local, Value string
}

// Is reports whether e is an element with this expanded name.
func (e *Element) Is(space, local string) bool {
	return e.Local == local && e.Space == space
}

// Elements iterates over the child elements, without character data.
func (e *Element) Elements() iter.Seq[*Element] {
	return func(yield func(*Element) bool) {
		for _, c := range e.Children {
			if c.Local != "" && !yield(c) {
				return
			}
		}
	}
}

// Attr returns the value of an attribute without a namespace.
func (e *Element) Attr(local string) (value string, ok bool) {
	for i := range e.Attrs {
		if a := &e.Attrs[i]; a.Local == local && a.Space == "" {
			return a.Value, true
		}
	}
	return "", false
}

// Content returns all character data below e, joined and without white space
// at its ends.
func (e *Element) Content() string {
	if len(e.Children) == 1 && e.Children[0].Local == "" {
		return trim(e.Children[0].Text)
	}
	var b strings.Builder
	e.content(&b)
	return trim(b.String())
}

func (e *Element) content(b *strings.Builder) {
	b.WriteString(e.Text)
	for _, c := range e.Children {
		c.content(b)
	}
}

func trim(s string) string { return strings.Trim(s, " \t\r\n") }

// Text returns a node of character data.
func Text(s string) *Element { return &Element{Text: s} }

// Scope is one namespace binding; Prefix is empty for the default namespace.
type Scope struct{ Prefix, Space string }

// Declared returns the bindings e itself declares.
func (e *Element) Declared() []Scope {
	var s []Scope
	for i := range e.Attrs {
		if a := &e.Attrs[i]; a.Space == SpaceXMLNS {
			s = append(s, Scope{a.Local, a.Value})
		}
	}
	return s
}

var errCharset = errors.New("charset")

// Parse reads a document and returns its root element. The tree shares no
// memory with b. Errors are *Error.
func Parse(b []byte, limits Limits) (*Element, error) {
	limits = limits.withDefaults()
	if len(b) > limits.Bytes {
		return nil, &Error{Kind: KindTooLarge, Detail: "longer than " + strconv.Itoa(limits.Bytes) + " bytes"}
	}
	if bytes.HasPrefix(b, []byte("\xfe\xff")) || bytes.HasPrefix(b, []byte("\xff\xfe")) {
		return nil, &Error{Kind: KindEncoding, Detail: "UTF-16, UTF-8 is required"}
	}
	if !utf8.Valid(b) {
		return nil, &Error{Kind: KindEncoding, Detail: "a byte sequence that is not UTF-8"}
	}
	p := parser{body: bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")), limits: limits}
	p.dec = xml.NewDecoder(bytes.NewReader(p.body))
	p.dec.CharsetReader = func(charset string, input io.Reader) (io.Reader, error) {
		if strings.EqualFold(charset, "us-ascii") || strings.EqualFold(charset, "utf8") {
			return input, nil
		}
		return nil, errCharset
	}
	return p.run()
}

type parser struct {
	dec     *xml.Decoder
	body    []byte
	limits  Limits
	count   int
	pending []byte // text not yet in the tree
	stack   []*Element
	marks   []int // length of scopes before each open element
	scopes  []Scope
}

func (p *parser) fault(k Kind, detail string) error {
	line, _ := p.dec.InputPos()
	return &Error{Kind: k, Line: line, Detail: detail}
}

func (p *parser) run() (*Element, error) {
	var root *Element
	for {
		from := p.dec.InputOffset()
		tok, err := p.dec.RawToken()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, p.lexical(err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			p.flush()
			if root != nil && len(p.stack) == 0 {
				return nil, p.fault(KindNotWellFormed, "an element after the root element")
			}
			e, err := p.start(t, int(from))
			if err != nil {
				return nil, err
			}
			if root == nil {
				root = e
			}
		case xml.EndElement:
			p.flush()
			n := len(p.stack) - 1
			if n < 0 || p.stack[n].Local != t.Name.Local || p.stack[n].Prefix != t.Name.Space {
				return nil, p.fault(KindNotWellFormed, "the end tag </"+clip(qname(t.Name.Space, t.Name.Local))+"> does not fit the start tag")
			}
			p.stack = p.stack[:n]
			p.scopes = p.scopes[:p.marks[n]]
			p.marks = p.marks[:n]
		case xml.CharData:
			if err := p.text(t); err != nil {
				return nil, err
			}
		case xml.Directive:
			return nil, p.fault(KindForbidden, "a document type or entity declaration")
		case xml.ProcInst:
			if strings.EqualFold(t.Target, "xml") && (from != 0 || t.Target != "xml") {
				return nil, p.fault(KindNotWellFormed, "an XML declaration that is not at the start")
			}
		}
	}
	if len(p.stack) > 0 {
		return nil, p.fault(KindNotWellFormed, "<"+clip(p.stack[len(p.stack)-1].Local)+"> is never closed")
	}
	if root == nil {
		return nil, p.fault(KindNotWellFormed, "no element")
	}
	return root, nil
}

func (p *parser) lexical(err error) error {
	if errors.Is(err, errCharset) {
		return p.fault(KindEncoding, "the declared encoding is not UTF-8")
	}
	var s *xml.SyntaxError
	if errors.As(err, &s) {
		return &Error{Kind: KindNotWellFormed, Line: s.Line, Detail: clip(s.Msg)}
	}
	return p.fault(KindNotWellFormed, clip(err.Error()))
}

func (p *parser) text(t xml.CharData) error {
	if len(p.stack) == 0 {
		if len(bytes.Trim(t, " \t\r\n")) > 0 {
			return p.fault(KindNotWellFormed, "text outside the root element")
		}
		return nil
	}
	p.pending = append(p.pending, t...)
	return nil
}

// flush makes a node of the text since the last tag; comments and the ends of
// CDATA sections do not part it.
func (p *parser) flush() {
	if len(p.pending) > 0 {
		top := p.stack[len(p.stack)-1]
		top.Children = append(top.Children, Text(string(p.pending)))
		p.pending = p.pending[:0]
	}
}

func (p *parser) start(t xml.StartElement, from int) (*Element, error) {
	if len(p.stack) >= p.limits.Depth {
		return nil, p.fault(KindTooLarge, "more than "+strconv.Itoa(p.limits.Depth)+" nested elements")
	}
	if p.count++; p.count > p.limits.Elements {
		return nil, p.fault(KindTooLarge, "more than "+strconv.Itoa(p.limits.Elements)+" elements")
	}
	if len(t.Attr) > p.limits.Attrs {
		return nil, p.fault(KindTooLarge, "more than "+strconv.Itoa(p.limits.Attrs)+" attributes in one element")
	}
	if len(t.Attr) > 1 && !spaced(p.body[from:p.dec.InputOffset()]) {
		return nil, p.fault(KindNotWellFormed, "no space between two attributes")
	}
	p.marks = append(p.marks, len(p.scopes))
	e := &Element{Prefix: t.Name.Space, Local: t.Name.Local}
	if len(t.Attr) > 0 {
		e.Attrs = make([]Attr, len(t.Attr))
	}
	for i, a := range t.Attr {
		e.Attrs[i] = Attr{Prefix: a.Name.Space, Local: a.Name.Local, Value: normalize(a.Value)}
		d := &e.Attrs[i]
		switch {
		case d.Prefix == "xmlns":
			d.Space = SpaceXMLNS
		case d.Prefix == "" && d.Local == "xmlns":
			d.Space, d.Local = SpaceXMLNS, ""
		case !ncname(d.Local):
			return nil, p.fault(KindNotWellFormed, "the attribute name "+clip(d.Local))
		default:
			continue
		}
		if err := p.declare(d); err != nil {
			return nil, err
		}
	}
	var ok bool
	if e.Space, ok = p.resolve(e.Prefix, true); !ok || e.Prefix == "xmlns" {
		return nil, p.fault(KindNotWellFormed, "the namespace prefix "+clip(e.Prefix)+" is not declared")
	}
	if !ncname(e.Local) {
		return nil, p.fault(KindNotWellFormed, "the element name "+clip(e.Local))
	}
	for i := range e.Attrs {
		a := &e.Attrs[i]
		if a.Space == "" {
			if a.Space, ok = p.resolve(a.Prefix, false); !ok {
				return nil, p.fault(KindNotWellFormed, "the namespace prefix "+clip(a.Prefix)+" is not declared")
			}
		}
		for j := range i {
			if e.Attrs[j].Local == a.Local && e.Attrs[j].Space == a.Space {
				return nil, p.fault(KindNotWellFormed, "the attribute "+clip(qname(a.Prefix, a.Local))+" is there twice")
			}
		}
	}
	if n := len(p.stack); n > 0 {
		p.stack[n-1].Children = append(p.stack[n-1].Children, e)
	}
	p.stack = append(p.stack, e)
	return e, nil
}

// normalize makes spaces of tabs and line ends in an attribute, as XML 1.0,
// 3.3.3 wants; that it does so for character references too is more than that.
func normalize(s string) string {
	if !strings.ContainsAny(s, "\t\r\n") {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\r' || r == '\n' {
			return ' '
		}
		return r
	}, s)
}

// declare checks a namespace declaration (Namespaces in XML 1.0, 3 and 5) and
// brings it into scope.
func (p *parser) declare(d *Attr) error {
	switch {
	case d.Prefix == "xmlns" && !ncname(d.Local),
		d.Local == "xmlns",
		d.Local != "" && d.Value == "",
		d.Value == SpaceXMLNS,
		(d.Local == "xml") != (d.Value == SpaceXML):
		return p.fault(KindNotWellFormed, "the namespace declaration "+clip(qname(d.Prefix, d.Local)))
	case len(p.scopes) >= p.limits.Scopes:
		return p.fault(KindTooLarge, "more than "+strconv.Itoa(p.limits.Scopes)+" namespace declarations in scope")
	}
	p.scopes = append(p.scopes, Scope{d.Local, d.Value})
	return nil
}

func (p *parser) resolve(prefix string, element bool) (string, bool) {
	switch {
	case prefix == "xml":
		return SpaceXML, true
	case prefix == "" && !element:
		return "", true
	}
	for i := len(p.scopes) - 1; i >= 0; i-- {
		if p.scopes[i].Prefix == prefix {
			return p.scopes[i].Space, true
		}
	}
	return "", prefix == ""
}

// spaced reports whether white space follows each attribute value in a start
// tag; encoding/xml does not ask for it, every other parser does.
func spaced(tag []byte) bool {
	for i := 0; i < len(tag); i++ {
		if q := tag[i]; q == '"' || q == '\'' {
			n := bytes.IndexByte(tag[i+1:], q)
			if i += n + 2; n < 0 || i >= len(tag) {
				return true
			}
			switch tag[i] {
			case ' ', '\t', '\r', '\n', '/', '>':
			default:
				return false
			}
		}
	}
	return true
}

// ncname reports whether the local part of a name that encoding/xml took for
// an XML name has no colon and may stand after a prefix.
func ncname(s string) bool {
	if s == "" || strings.IndexByte(s, ':') >= 0 {
		return false
	}
	c := s[0]
	return c != '-' && c != '.' && (c < '0' || c > '9')
}

func qname(prefix, local string) string {
	switch {
	case prefix == "":
		return local
	case local == "":
		return prefix
	}
	return prefix + ":" + local
}

// clip shortens input that an error text quotes.
func clip(s string) string {
	if len(s) <= 64 {
		return s
	}
	return strings.ToValidUTF8(s[:61], "") + "..."
}

// Append appends the serialised element to dst, without an XML declaration.
// Namespace declarations are written where the tree has them.
func (e *Element) Append(dst []byte) []byte {
	if e.Local == "" {
		return AppendText(dst, e.Text)
	}
	dst = e.AppendStart(dst)
	if len(e.Children) == 0 {
		return append(dst[:len(dst)-1], '/', '>')
	}
	for _, c := range e.Children {
		dst = c.Append(dst)
	}
	return e.AppendEnd(dst)
}

// AppendStart appends the start tag of e.
func (e *Element) AppendStart(dst []byte) []byte {
	dst = append(dst, '<')
	dst = appendName(dst, e.Prefix, e.Local)
	for i := range e.Attrs {
		a := &e.Attrs[i]
		dst = append(dst, ' ')
		switch {
		case a.Space == SpaceXMLNS && a.Local == "":
			dst = append(dst, "xmlns"...)
		case a.Space == SpaceXMLNS:
			dst = appendName(dst, "xmlns", a.Local)
		default:
			dst = appendName(dst, a.Prefix, a.Local)
		}
		dst = append(dst, '=', '"')
		dst = AppendAttr(dst, a.Value)
		dst = append(dst, '"')
	}
	return append(dst, '>')
}

// AppendEnd appends the end tag of e.
func (e *Element) AppendEnd(dst []byte) []byte {
	dst = append(dst, '<', '/')
	dst = appendName(dst, e.Prefix, e.Local)
	return append(dst, '>')
}

func appendName(dst []byte, prefix, local string) []byte {
	if prefix != "" {
		dst = append(dst, prefix...)
		dst = append(dst, ':')
	}
	return append(dst, local...)
}

// AppendText appends character data, escaped.
func AppendText(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '&':
			dst = append(dst, "&amp;"...)
		case '<':
			dst = append(dst, "&lt;"...)
		case '>':
			dst = append(dst, "&gt;"...)
		case '\r':
			dst = append(dst, "&#xD;"...)
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

// AppendAttr appends an attribute value for double quotes, escaped. Line ends
// and tabs become spaces, as in every parser that normalises attributes.
func AppendAttr(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '&':
			dst = append(dst, "&amp;"...)
		case '<':
			dst = append(dst, "&lt;"...)
		case '"':
			dst = append(dst, "&quot;"...)
		case '\t', '\r', '\n':
			dst = append(dst, ' ')
		default:
			dst = append(dst, c)
		}
	}
	return dst
}
