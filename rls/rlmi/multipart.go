package rlmi

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxParts bounds the parts of one multipart that [Parse] reads.
const MaxParts = 20000

const (
	defaultDepth   = 8
	maxHeaderBytes = 16 << 10 // of one part
)

// ErrLimit reports a body with more parts, larger part headers or deeper
// nesting than allowed.
var ErrLimit = errors.New("rlmi: too large or too deeply nested")

// Notification is a decoded body of a list NOTIFY.
type Notification struct {
	List    *List
	RootCID string
	// Parts are the top-level parts without the root, in the order received.
	// Their bodies alias the bytes given to Parse.
	Parts []Part
	// Nested has the decoded form of each part that is a list itself, by CID.
	Nested map[string]*Notification
	// Signed tells that the list came inside multipart/signed (RFC 4662
	// section 7.3). The signature has not been looked at.
	Signed bool

	byCID map[string]int
}

// Part returns the top-level part with the given CID.
func (n *Notification) Part(cid string) (Part, bool) {
	i, ok := n.byCID[cid]
	if !ok {
		return Part{}, false
	}
	return n.Parts[i], true
}

// Options of reading. The zero value is strict, also with nested lists, which
// a list server may have passed on as it received them.
type Options struct {
	// Lenient takes what servers in the field send: quoted boundaries, no type
	// or start parameter, Content-IDs without angle brackets or missing, active
	// instances without state, terminated ones without reason, cids that
	// resolve to nothing, a missing last delimiter. What cannot be read as a
	// list is still an error.
	Lenient bool
	// First tells that this is the first NOTIFY of its subscription: it must
	// have full state and, unless Lenient (Kamailio starts at 1, as the example
	// of RFC 4662 section 6 does), version 0.
	First bool
	// Depth is how many lists may be nested within the outermost; 0 means 8.
	Depth int
}

// Parse reads the body of a list NOTIFY strictly: see [Options.Parse].
func Parse(contentType string, body []byte) (*Notification, error) {
	return Options{}.Parse(contentType, body)
}

// Parse reads the body of a list NOTIFY. The root part is the one the start
// parameter names; if Lenient, failing that, the first RLMI part. Lines may end in LF alone. Nested lists are
// decoded too, through multipart/signed if need be.
//
// Errors are a [*RuleError] for a broken rule of RFC 4662 (RL-10 to RL-18), or
// wrap [ErrNotWellFormed] or [ErrLimit]; the message of an error in a nested
// list starts with the CID of its part.
func (o Options) Parse(contentType string, body []byte) (*Notification, error) {
	if o.Depth == 0 {
		o.Depth = defaultDepth
	}
	n, err := o.parse(contentType, body, 0)
	if err != nil {
		return nil, err
	}
	if o.First {
		if !n.List.FullState {
			return nil, broken("RL-14", "first NOTIFY without full state")
		}
		if n.List.Version != 0 && !o.Lenient {
			return nil, broken("RL-13", "first NOTIFY with version "+strconv.FormatUint(uint64(n.List.Version), 10))
		}
	}
	return n, nil
}

func (o Options) parse(contentType string, body []byte, depth int) (*Notification, error) {
	if depth > o.Depth {
		return nil, fmt.Errorf("%w: more than %d lists within each other", ErrLimit, o.Depth)
	}
	ct, err := parseMedia(contentType)
	if err != nil {
		return nil, broken("RL-10", err.Error())
	}
	if ct.media == "multipart/signed" {
		return o.parseSigned(&ct, body, depth)
	}
	if ct.media != MultipartMediaType {
		return nil, broken("RL-10", "body is "+strconv.Quote(ct.media))
	}
	if typ, ok := ct.param("type"); !strings.EqualFold(typ, MediaType) && (ok || !o.Lenient) {
		return nil, broken("RL-10", "multipart/related with type "+strconv.Quote(typ))
	}
	if !ct.quoted("type") && !o.Lenient {
		return nil, broken("RL-10", "type parameter without quotes")
	}
	parts, err := o.parts(&ct, body)
	if err != nil {
		return nil, err
	}
	root, err := o.root(&ct, parts)
	if err != nil {
		return nil, err
	}
	n := &Notification{RootCID: parts[root].CID, byCID: make(map[string]int, len(parts))}
	if n.List, err = parseList(parts[root].Body, o.Lenient); err != nil {
		return nil, err
	}
	n.Parts = append(parts[:root:root], parts[root+1:]...)
	for i := range n.Parts {
		p := &n.Parts[i]
		if p.CID == "" {
			continue
		}
		if _, dup := n.byCID[p.CID]; dup || p.CID == n.RootCID {
			if !o.Lenient {
				return nil, broken("RL-11", "Content-ID <"+p.CID+"> appears twice")
			}
			continue
		}
		n.byCID[p.CID] = i
	}
	if err := o.nested(n, depth); err != nil {
		return nil, err
	}
	if !o.Lenient {
		if err := n.resolve(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// parseSigned reads the signed part of a multipart/signed, the first one
// (RFC 1847 section 2.1).
func (o Options) parseSigned(ct *media, body []byte, depth int) (*Notification, error) {
	raw, err := o.split(ct, body)
	if err != nil {
		return nil, err
	}
	h, inner, err := o.header(raw[0], 0)
	if err != nil {
		return nil, err
	}
	if in, err := parseMedia(h.contentType); err != nil || in.media != MultipartMediaType {
		return nil, broken("RL-10", "signed body is "+strconv.Quote(h.contentType))
	}
	n, err := o.parse(h.contentType, inner, depth)
	if err != nil {
		return nil, err
	}
	n.Signed = true
	return n, nil
}

func (o Options) nested(n *Notification, depth int) error {
	for i := range n.Parts {
		p := &n.Parts[i]
		ct, err := parseMedia(p.ContentType)
		if err != nil || !o.isList(&ct, p.Body) {
			continue
		}
		sub, err := o.parse(p.ContentType, p.Body, depth+1)
		if err != nil {
			if o.Lenient && !errors.Is(err, ErrLimit) {
				continue
			}
			return fmt.Errorf("in part <%s>: %w", p.CID, err)
		}
		if at, ok := n.byCID[p.CID]; !ok || at != i {
			continue
		}
		if n.Nested == nil {
			n.Nested = make(map[string]*Notification)
		}
		n.Nested[p.CID] = sub
	}
	return nil
}

// isList tells a nested list from other multiparts, such as a presence
// document with pictures.
func (o Options) isList(ct *media, body []byte) bool {
	switch ct.media {
	case MultipartMediaType:
		typ, _ := ct.param("type")
		return strings.EqualFold(typ, MediaType)
	case "multipart/signed":
		raw, err := o.split(ct, body)
		if err != nil {
			return false
		}
		h, inner, err := o.header(raw[0], 0)
		if err != nil {
			return false
		}
		in, err := parseMedia(h.contentType)
		// Signed within signed is left alone: nothing says what it means.
		return err == nil && in.media == MultipartMediaType && o.isList(&in, inner)
	}
	return false
}

// resolve checks RFC 4662 section 5.5: a cid refers to a top-level part of the
// same multipart.
func (n *Notification) resolve() error {
	check := func(cid, of string) error {
		if cid == "" {
			return nil
		}
		if _, ok := n.byCID[cid]; ok {
			return nil
		}
		why := " resolves to no part"
		switch {
		case cid == n.RootCID:
			why = " is the RLMI part itself"
		case n.holds(cid):
			why = " is a part of a nested list"
		}
		return broken("RL-18", "cid "+strconv.Quote(cid)+" of "+strconv.Quote(of)+why)
	}
	if err := check(n.List.CID, n.List.URI); err != nil {
		return err
	}
	for i := range n.List.Resources {
		r := &n.List.Resources[i]
		for j := range r.Instances {
			if err := check(r.Instances[j].CID, r.URI); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *Notification) holds(cid string) bool {
	for _, sub := range n.Nested {
		if _, ok := sub.byCID[cid]; ok || sub.RootCID == cid || sub.holds(cid) {
			return true
		}
	}
	return false
}

func (o Options) root(ct *media, parts []Part) (int, error) {
	isRLMI := func(i int) bool {
		m, err := parseMedia(parts[i].ContentType)
		return err == nil && m.media == MediaType
	}
	start, ok := ct.param("start")
	cid, bracketed := unbracket(start)
	if o.Lenient && !bracketed {
		cid, bracketed = start, start != ""
	}
	if bracketed {
		for i := range parts {
			if parts[i].CID != cid {
				continue
			}
			if !isRLMI(i) {
				return 0, broken("RL-10", "root part is "+strconv.Quote(parts[i].ContentType))
			}
			return i, nil
		}
	}
	if !o.Lenient {
		if !ok {
			return 0, broken("RL-10", "no start parameter")
		}
		return 0, broken("RL-10", "start "+strconv.Quote(start)+" names no part")
	}
	for i := range parts {
		if isRLMI(i) {
			return i, nil
		}
	}
	return 0, broken("RL-10", "no RLMI part")
}

func (o Options) parts(ct *media, body []byte) ([]Part, error) {
	raw, err := o.split(ct, body)
	if err != nil {
		return nil, err
	}
	parts := make([]Part, len(raw))
	for i, r := range raw {
		h, content, err := o.header(r, i)
		if err != nil {
			return nil, err
		}
		cid, ok := unbracket(h.contentID)
		if !ok {
			if !o.Lenient {
				return nil, broken("RL-11", "part "+strconv.Itoa(i)+" with Content-ID "+strconv.Quote(h.contentID))
			}
			cid = h.contentID
		}
		if h.contentType == "" && !o.Lenient {
			return nil, broken("RL-11", "part "+strconv.Itoa(i)+" without Content-Type")
		}
		switch strings.ToLower(h.encoding) {
		case "binary", "8bit", "7bit":
		case "":
			if !o.Lenient {
				return nil, broken("RL-11", "part "+strconv.Itoa(i)+" without Content-Transfer-Encoding")
			}
		default:
			return nil, broken("RL-11", "part "+strconv.Itoa(i)+" with Content-Transfer-Encoding "+strconv.Quote(h.encoding))
		}
		parts[i] = Part{CID: cid, ContentType: h.contentType, Body: content}
	}
	return parts, nil
}

// split cuts body at the delimiter lines (RFC 2046 section 5.1.1). There is at
// least one part when it returns no error.
func (o Options) split(ct *media, body []byte) ([][]byte, error) {
	boundary, ok := ct.param("boundary")
	if !ok || !validBoundary(boundary) {
		return nil, broken("RL-10", "boundary "+strconv.Quote(boundary))
	}
	// multipart/signed is somebody else's work; the bare token is our rule.
	if ct.quoted("boundary") && !o.Lenient && ct.media == MultipartMediaType {
		return nil, broken("RL-10", "quoted boundary")
	}
	delim := []byte("--" + boundary)
	var parts [][]byte
	start, closed := -1, false
	for pos := 0; pos < len(body) && !closed; {
		i := bytes.Index(body[pos:], delim)
		if i < 0 {
			break
		}
		i += pos
		pos = i + len(delim)
		if i > 0 && body[i-1] != '\n' {
			continue
		}
		next, last, ok := delimiterEnd(body, pos)
		if !ok {
			continue
		}
		if start >= 0 {
			if len(parts) == MaxParts {
				return nil, fmt.Errorf("%w: more than %d parts", ErrLimit, MaxParts)
			}
			parts = append(parts, body[start:max(start, lineBefore(body, i))])
		}
		start, pos, closed = next, next, last
	}
	if !closed {
		if !o.Lenient || start < 0 {
			return nil, broken("RL-10", "no closing delimiter of boundary "+strconv.Quote(boundary))
		}
		parts = append(parts, body[start:])
	}
	if len(parts) == 0 {
		return nil, broken("RL-10", "multipart without parts")
	}
	return parts, nil
}

// delimiterEnd reads what may follow "--boundary" on its line.
func delimiterEnd(body []byte, pos int) (next int, last, ok bool) {
	if bytes.HasPrefix(body[pos:], []byte("--")) {
		pos, last = pos+2, true
	}
	for pos < len(body) && (body[pos] == ' ' || body[pos] == '\t') {
		pos++
	}
	switch {
	case pos == len(body):
		return pos, last, true
	case body[pos] == '\n':
		return pos + 1, last, true
	case body[pos] == '\r' && pos+1 < len(body) && body[pos+1] == '\n':
		return pos + 2, last, true
	}
	return 0, false, false
}

// lineBefore returns the end of the line before position i: the line end
// belongs to the delimiter.
func lineBefore(body []byte, i int) int {
	if i > 0 && body[i-1] == '\n' {
		i--
		if i > 0 && body[i-1] == '\r' {
			i--
		}
	}
	return i
}

type partHeader struct{ contentID, contentType, encoding string }

// header reads the header fields of part number at; the rest is its body.
func (o Options) header(part []byte, at int) (partHeader, []byte, error) {
	var h partHeader
	for read := 0; len(part) > 0; {
		line, rest := nextLine(part)
		if len(line) == 0 {
			return h, rest, nil
		}
		for len(rest) > 0 && (rest[0] == ' ' || rest[0] == '\t') {
			_, rest = nextLine(rest)
		}
		if read += len(part) - len(rest); read > maxHeaderBytes {
			return h, nil, fmt.Errorf("%w: header of part %d", ErrLimit, at)
		}
		name, value, ok := bytes.Cut(part[:len(part)-len(rest)], []byte{':'})
		if !ok || line[0] == '<' {
			if o.Lenient && line[0] == '<' {
				return h, part, nil // no blank line, as in RFC 4662 section 6 step 13
			}
			if !o.Lenient {
				return h, nil, broken("RL-11", "part "+strconv.Itoa(at)+" with header line "+strconv.Quote(clip(line)))
			}
			part = rest
			continue
		}
		var field *string
		switch strings.ToLower(string(bytes.TrimSpace(name))) {
		case "content-id":
			field = &h.contentID
		case "content-type":
			field = &h.contentType
		case "content-transfer-encoding":
			field = &h.encoding
		}
		if field != nil && *field == "" {
			*field = unfold(value)
		}
		part = rest
	}
	return h, nil, nil
}

// unfold joins the lines of a header value (RFC 5322 section 2.2.3).
func unfold(value []byte) string {
	value = bytes.TrimSpace(value)
	if bytes.IndexByte(value, '\n') < 0 {
		return string(value)
	}
	return string(bytes.ReplaceAll(bytes.ReplaceAll(value, []byte("\r\n"), nil), []byte("\n"), nil))
}

func clip(b []byte) string {
	if len(b) > 60 {
		b = b[:60]
	}
	return string(b)
}

func nextLine(b []byte) (line, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return b, nil
	}
	line, rest = b[:i], b[i+1:]
	if i > 0 && line[i-1] == '\r' {
		line = line[:i-1]
	}
	return line, rest
}

func unbracket(s string) (string, bool) {
	if len(s) > 2 && s[0] == '<' && s[len(s)-1] == '>' {
		return s[1 : len(s)-1], true
	}
	return "", false
}

// validBoundary follows RFC 2046 section 5.1.1.
func validBoundary(s string) bool {
	if s == "" || len(s) > 70 || s[len(s)-1] == ' ' {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !isAlnum(c) && strings.IndexByte("'()+_,-./:=? ", c) < 0 {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// media is a Content-Type that remembers which values were quoted.
type media struct {
	media  string
	params []mediaParam
}

type mediaParam struct {
	name, value string
	quoted      bool
}

func (m *media) find(name string) *mediaParam {
	for i := range m.params {
		if m.params[i].name == name {
			return &m.params[i]
		}
	}
	return nil
}

func (m *media) param(name string) (string, bool) {
	if p := m.find(name); p != nil {
		return p.value, true
	}
	return "", false
}

func (m *media) quoted(name string) bool { p := m.find(name); return p != nil && p.quoted }

func parseMedia(s string) (media, error) {
	const space = " \t\r\n"
	typ, rest, more := strings.Cut(s, ";")
	m := media{media: strings.ToLower(strings.Trim(typ, space))}
	if m.media == "" {
		return m, errors.New("no Content-Type")
	}
	for more {
		rest = strings.TrimLeft(rest, space)
		i := strings.IndexAny(rest, "=;")
		if i < 0 || rest[i] == ';' {
			// A parameter without a value says nothing to us.
			_, rest, more = strings.Cut(rest, ";")
			continue
		}
		p := mediaParam{name: strings.ToLower(strings.Trim(rest[:i], space))}
		rest = strings.TrimLeft(rest[i+1:], space)
		if rest != "" && rest[0] == '"' {
			p.quoted = true
			var b strings.Builder
			j := 1
			for ; j < len(rest) && rest[j] != '"'; j++ {
				if rest[j] == '\\' && j+1 < len(rest) {
					j++
				}
				b.WriteByte(rest[j])
			}
			if j >= len(rest) {
				return m, errors.New("Content-Type with an open quote")
			}
			p.value = b.String()
			_, rest, more = strings.Cut(rest[j+1:], ";")
		} else {
			var v string
			v, rest, more = strings.Cut(rest, ";")
			p.value = strings.Trim(v, space)
		}
		if m.find(p.name) == nil {
			if len(m.params) == 32 {
				return m, errors.New("Content-Type with too many parameters")
			}
			m.params = append(m.params, p)
		}
	}
	return m, nil
}
