package list

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Reference is a resolved XCAP URI (RFC 4825 section 6).
type Reference struct {
	// Document is the document selector, "AUID/users/XUI/FILE" or
	// "AUID/global/FILE", percent-decoded but for "%2F" and "%25", which stay
	// so that a name with a slash cannot be taken for a path.
	Document string
	// Node selects within the document; nil means the whole of it.
	Node *Selector
}

// String is the form used in [Problem.Source].
func (r Reference) String() string {
	if r.Node == nil {
		return r.Document
	}
	return r.Document + " ~~ " + r.Node.String()
}

var errForeign = errors.New("not under one of our XCAP roots")

// ParseReference resolves an XCAP URI against roots, the XCAP root URIs that
// mean our own documents (XC-01). A URI without scheme is relative to the root
// (RFC 4826 section 3.1), with or without the root's path before it. Hosts are
// compared without case and default port, paths decoded (LS-13). White space
// left by line folding is ignored.
//
// Any other host, and any path with empty or dot segments, is an error: the
// caller must not fetch it.
func ParseReference(uri string, roots []string) (Reference, error) {
	uri = compactURI(uri)
	if uri == "" {
		return Reference{}, errors.New("empty reference")
	}
	if len(uri) > 2*maxURI {
		return Reference{}, fmt.Errorf("reference of %d bytes", len(uri))
	}
	if strings.Contains(uri, "#") {
		return Reference{}, errors.New("reference with a fragment")
	}
	rest, query, _ := strings.Cut(uri, "?")
	path, err := ownPath(rest, roots)
	if err != nil {
		return Reference{}, err
	}
	return parsePath(path, query)
}

// ownPath returns the segments, still encoded, below the XCAP root: the one
// with the longest path where roots lie within each other.
func ownPath(uri string, roots []string) ([]string, error) {
	site, path, absolute := splitAuthority(uri)
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	own := segments
	found := !absolute
	for _, root := range roots {
		rootSite, rootPath, _ := splitAuthority(root)
		if absolute && site != rootSite {
			continue
		}
		below, ok := trimSegments(segments, strings.Trim(rootPath, "/"))
		if ok && (!found || len(below) < len(own)) {
			own, found = below, true
		}
	}
	if !found {
		return nil, errForeign
	}
	return own, nil
}

// splitAuthority returns scheme and authority in comparable form, and the path.
func splitAuthority(uri string) (site, path string, absolute bool) {
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok || strings.ContainsAny(scheme, "/%") {
		return "", uri, false
	}
	host, path, slash := strings.Cut(rest, "/")
	if slash {
		path = "/" + path
	}
	scheme, host = strings.ToLower(scheme), strings.ToLower(host)
	switch scheme {
	case "http":
		host = strings.TrimSuffix(host, ":80")
	case "https":
		host = strings.TrimSuffix(host, ":443")
	}
	return scheme + "://" + host, path, true
}

func trimSegments(segments []string, root string) ([]string, bool) {
	if root == "" {
		return segments, true
	}
	for _, r := range strings.Split(root, "/") {
		if len(segments) == 0 {
			return nil, false
		}
		a, errA := decode(segments[0])
		b, errB := decode(r)
		if errA != nil || errB != nil || a != b {
			return nil, false
		}
		segments = segments[1:]
	}
	return segments, true
}

func parsePath(segments []string, query string) (Reference, error) {
	var ref Reference
	var doc strings.Builder
	n := 0
	for i, raw := range segments {
		s, err := decode(raw)
		if err != nil {
			return ref, err
		}
		if s == "~~" {
			if ref.Node, err = ParseSelector(strings.Join(segments[i+1:], "/"), query, defaultNamespace(segments[0])); err != nil {
				return ref, err
			}
			break
		}
		switch s {
		case "", ".", "..":
			return ref, fmt.Errorf("path segment %q", s)
		}
		if strings.ContainsAny(s, "\x00\\") {
			return ref, fmt.Errorf("path segment %q", s)
		}
		if n++; n > 1 {
			doc.WriteByte('/')
		}
		doc.WriteString(slashKeeper.Replace(s))
		if n == 2 && s != "users" && s != "global" {
			return ref, fmt.Errorf("%q where users or global belongs", s)
		}
	}
	ref.Document = doc.String()
	if shape := strings.SplitN(ref.Document, "/", 4); len(shape) < 3 || shape[1] == "users" && len(shape) < 4 {
		return ref, fmt.Errorf("%q names no document", ref.Document)
	}
	return ref, nil
}

var slashKeeper = strings.NewReplacer("%", "%25", "/", "%2F")

// defaultNamespace returns the default document namespace of an application
// usage (RFC 4826 sections 3.4.3 and 4.4.3); the ones this package reads.
func defaultNamespace(auid string) string {
	switch auid {
	case "resource-lists":
		return NamespaceLists
	case "rls-services":
		return NamespaceServices
	}
	return ""
}

// decode undoes percent-encoding. The result is UTF-8.
func decode(s string) (string, error) {
	i := strings.IndexByte(s, '%')
	if i < 0 && utf8.ValidString(s) {
		return s, nil
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			if i+2 >= len(s) {
				return "", fmt.Errorf("bad percent-encoding in %q", s)
			}
			v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", fmt.Errorf("bad percent-encoding in %q", s)
			}
			c = byte(v)
			i += 2
		}
		out = append(out, c)
	}
	if !utf8.Valid(out) {
		return "", fmt.Errorf("%q is not UTF-8", s)
	}
	return string(out), nil
}

// compactURI removes the white space that line folding leaves in a URI, as in
// the examples of RFC 4826. A single space within a quoted attribute value is
// kept: unencoded list names with spaces are common, folded ones have more.
func compactURI(s string) string {
	if !strings.ContainsAny(s, " \t\r\n") {
		return s
	}
	s = strings.Trim(s, " \t\r\n")
	out := make([]byte, 0, len(s))
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch c {
		case ' ', '\t', '\r', '\n':
			alone := i+1 < len(s) && !isSpace(s[i+1]) && !isSpace(s[i-1])
			if c == ' ' && alone && quote != 0 {
				out = append(out, c)
			}
			continue
		case '"', '\'':
			quote = toggle(quote, c)
		case '%':
			if i+2 < len(s) {
				switch s[i+1 : i+3] {
				case "22":
					quote = toggle(quote, '"')
				case "27":
					quote = toggle(quote, '\'')
				}
			}
		}
		out = append(out, c)
	}
	return string(out)
}

func toggle(quote, c byte) byte {
	switch quote {
	case 0:
		return c
	case c:
		return 0
	}
	return quote
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// Selector is a node selector (RFC 4825 section 6.3). It is immutable.
type Selector struct {
	steps []step
	// terminal is an attribute or namespace selector at the end, which selects
	// no element.
	terminal string
	text     string
}

type step struct {
	any      bool
	ns, name string
	position int // 1 and up; 0 without
	byAttr   bool
	attr     attribute
}

// Errors of selection.
var (
	ErrNoMatch   = errors.New("list: the selector matches nothing")
	ErrAmbiguous = errors.New("list: the selector matches more than one element")
)

// ParseSelector reads a node selector and the query of its URI, both percent-
// encoded (XC-02, XC-03). Unprefixed element names are in defaultNS, prefixed
// ones need an xmlns() part in the query.
func ParseSelector(node, query, defaultNS string) (*Selector, error) {
	if len(node)+len(query) > 2*maxURI {
		return nil, errors.New("selector too long")
	}
	text, err := decode(node)
	if err != nil {
		return nil, err
	}
	if query, err = decode(query); err != nil {
		return nil, err
	}
	p := selectorParser{in: text, defaultNS: defaultNS}
	if p.bindings, err = parseBindings(query); err != nil {
		return nil, err
	}
	s := &Selector{text: text}
	for {
		if strings.HasPrefix(p.in, "@") || p.in == "namespace::*" {
			if len(s.steps) == 0 {
				return nil, errors.New("selector without element")
			}
			s.terminal = p.in
			if p.in == "namespace::*" {
				return s, nil
			}
			p.in = p.in[1:]
			if _, err := p.attributeName(); err != nil {
				return nil, err
			}
			if p.in != "" {
				return nil, fmt.Errorf("selector goes on after an attribute: %q", p.in)
			}
			return s, nil
		}
		st, err := p.step()
		if err != nil {
			return nil, err
		}
		s.steps = append(s.steps, st)
		if p.in == "" {
			return s, nil
		}
		if p.in[0] != '/' {
			return nil, fmt.Errorf("selector step followed by %q", p.in)
		}
		p.in = p.in[1:]
	}
}

// String returns the selector decoded.
func (s *Selector) String() string { return s.text }

// Select returns the one element chosen in the document with the given root.
// Each step must yield exactly one element: the error is [ErrNoMatch] or
// [ErrAmbiguous], or says that an attribute is selected.
func (s *Selector) Select(root *Element) (*Element, error) {
	e, _, err := s.selectCounted(root)
	return e, err
}

// selectCounted also returns how many elements it looked at.
func (s *Selector) selectCounted(root *Element) (*Element, int, error) {
	if s.terminal != "" {
		return nil, 0, fmt.Errorf("selects %s, not an element", s.terminal)
	}
	seen := 0
	context := []*Element{root}
	var found *Element
	for i := range s.steps {
		st := &s.steps[i]
		found = nil
		position := 0
		for _, e := range context {
			seen++
			if !st.any && (e.name != st.name || e.ns != st.ns) {
				continue
			}
			if position++; st.position > 0 && position != st.position {
				continue
			}
			if st.byAttr {
				if v, ok := e.attrNS(st.attr.ns, st.attr.name); !ok || v != st.attr.value {
					continue
				}
			}
			if found != nil {
				return nil, seen, ErrAmbiguous
			}
			found = e
		}
		if found == nil {
			return nil, seen, ErrNoMatch
		}
		context = found.kids
	}
	return found, seen, nil
}

// selectorParser works on the decoded text, as a slash within a quoted value
// must not end a step.
type selectorParser struct {
	in        string
	defaultNS string
	bindings  map[string]string
}

func (p *selectorParser) step() (step, error) {
	var st step
	if strings.HasPrefix(p.in, "*") {
		st.any = true
		p.in = p.in[1:]
	} else {
		prefix, local, err := p.qname()
		if err != nil {
			return st, err
		}
		st.name, st.ns = local, p.defaultNS
		if prefix != "" {
			if st.ns, err = p.namespace(prefix); err != nil {
				return st, err
			}
		}
	}
	for strings.HasPrefix(p.in, "[") {
		p.in = p.in[1:]
		if err := p.predicate(&st); err != nil {
			return st, err
		}
		if !strings.HasPrefix(p.in, "]") {
			return st, fmt.Errorf("predicate not closed before %q", p.in)
		}
		p.in = p.in[1:]
	}
	return st, nil
}

// predicate reads a position or an attribute test; the grammar has at most one
// of each, the position first.
func (p *selectorParser) predicate(st *step) error {
	if !strings.HasPrefix(p.in, "@") {
		if st.byAttr || st.position != 0 {
			return fmt.Errorf("position out of place at %q", p.in)
		}
		n := 0
		for n < len(p.in) && p.in[n] >= '0' && p.in[n] <= '9' {
			n++
		}
		v, err := strconv.Atoi(p.in[:n])
		if err != nil || v < 1 {
			return fmt.Errorf("bad position at %q", p.in)
		}
		st.position, p.in = v, p.in[n:]
		return nil
	}
	if st.byAttr {
		return fmt.Errorf("second attribute test at %q", p.in)
	}
	p.in = p.in[1:]
	a, err := p.attributeName()
	if err != nil {
		return err
	}
	if len(p.in) < 2 || p.in[0] != '=' || p.in[1] != '"' && p.in[1] != '\'' {
		return fmt.Errorf("no quoted value at %q", p.in)
	}
	end := strings.IndexByte(p.in[2:], p.in[1])
	if end < 0 {
		return fmt.Errorf("value not closed at %q", p.in)
	}
	a.value = unescape(p.in[2 : 2+end])
	st.attr, st.byAttr = a, true
	p.in = p.in[2+end+1:]
	return nil
}

func (p *selectorParser) attributeName() (attribute, error) {
	prefix, local, err := p.qname()
	if err != nil {
		return attribute{}, err
	}
	a := attribute{name: local}
	if prefix != "" {
		a.ns, err = p.namespace(prefix)
	}
	return a, err
}

func (p *selectorParser) qname() (prefix, local string, err error) {
	if local, err = p.ncname(); err != nil {
		return "", "", err
	}
	// "::" belongs to an XPath axis, which is no part of the grammar.
	if strings.HasPrefix(p.in, ":") && !strings.HasPrefix(p.in, "::") {
		p.in = p.in[1:]
		prefix = local
		local, err = p.ncname()
	}
	return prefix, local, err
}

func (p *selectorParser) ncname() (string, error) {
	n := strings.IndexFunc(p.in, func(r rune) bool { return r < 0x80 && !nameChar(byte(r)) })
	if n < 0 {
		n = len(p.in)
	}
	if n == 0 || p.in[0] == '-' || p.in[0] == '.' || p.in[0] >= '0' && p.in[0] <= '9' {
		return "", fmt.Errorf("no name at %q", p.in)
	}
	s := p.in[:n]
	p.in = p.in[n:]
	return s, nil
}

func nameChar(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.'
}

func (p *selectorParser) namespace(prefix string) (string, error) {
	if ns, ok := p.bindings[prefix]; ok {
		return ns, nil
	}
	if prefix == "xml" {
		return namespaceXML, nil
	}
	return "", fmt.Errorf("prefix %q without xmlns() in the query", prefix)
}

// unescape undoes the references an AttValue of XML may hold. A bare ampersand
// stays.
func unescape(s string) string {
	if strings.IndexByte(s, '&') < 0 {
		return s
	}
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '&')
		if i < 0 {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		s = s[i:]
		end := strings.IndexByte(s, ';')
		var r rune
		ok := end > 0
		if ok {
			r, ok = entity(s[1:end])
		}
		if !ok {
			b.WriteByte('&')
			s = s[1:]
			continue
		}
		b.WriteRune(r)
		s = s[end+1:]
	}
}

func entity(name string) (rune, bool) {
	switch name {
	case "amp":
		return '&', true
	case "lt":
		return '<', true
	case "gt":
		return '>', true
	case "quot":
		return '"', true
	case "apos":
		return '\'', true
	}
	digits, ok := strings.CutPrefix(name, "#")
	base := 10
	if hex, isHex := strings.CutPrefix(digits, "x"); isHex {
		digits, base = hex, 16
	}
	v, err := strconv.ParseUint(digits, base, 21)
	return rune(v), ok && err == nil && utf8.ValidRune(rune(v))
}

// parseBindings reads the xmlns() parts of an XPointer (RFC 4825 section 6.4);
// other schemes are ignored. Parentheses in a part are balanced or escaped by a
// circumflex.
func parseBindings(query string) (map[string]string, error) {
	var bindings map[string]string
	for {
		query = strings.TrimLeft(query, " \t\r\n")
		if query == "" {
			return bindings, nil
		}
		scheme, rest, ok := strings.Cut(query, "(")
		if !ok {
			return nil, fmt.Errorf("query %q is no XPointer", query)
		}
		data, n := xpointerData(rest)
		if n < 0 {
			return nil, fmt.Errorf("query %q is not closed", query)
		}
		query = rest[n:]
		if scheme != "xmlns" {
			continue
		}
		prefix, ns, ok := strings.Cut(data, "=")
		prefix, ns = strings.TrimSpace(prefix), strings.TrimSpace(ns)
		if !ok || prefix == "" {
			return nil, fmt.Errorf("xmlns(%s) binds nothing", data)
		}
		if bindings == nil {
			bindings = make(map[string]string)
		}
		bindings[prefix] = ns
	}
}

// xpointerData reads up to the parenthesis that closes, and returns how many
// bytes that took.
func xpointerData(s string) (string, int) {
	var b strings.Builder
	depth := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '^':
			if i++; i == len(s) {
				return "", -1
			}
			b.WriteByte(s[i])
			continue
		case '(':
			depth++
		case ')':
			if depth == 0 {
				return b.String(), i + 1
			}
			depth--
		}
		b.WriteByte(s[i])
	}
	return "", -1
}
