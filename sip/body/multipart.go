package body

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"strings"
)

const (
	// MaxParts bounds the parts of one multipart.
	MaxParts = 20000
	// MaxDepth bounds the multiparts within each other that Find looks into.
	MaxDepth = 8

	maxHeader = 16 << 10 // octets of header in one part
	maxParams = 32       // of a media type
)

// The errors of reading a multipart.
var (
	ErrBoundary = errors.New("body: no boundary as RFC 2046 section 5.1.1 wants it")
	ErrNoParts  = errors.New("body: multipart without parts")
	ErrOpen     = errors.New("body: no closing delimiter")
	ErrLimit    = errors.New("body: too many parts, or too large a header of a part")
)

// Media is a Content-Type value that remembers which parameters were quoted.
type Media struct {
	Type   string // media type in lower case
	params []mediaParam
}

type mediaParam struct {
	name, value string
	quoted      bool
}

// ParseMedia reads a Content-Type value, which may be folded. Parameters
// without a value are left out, of two of the same name the first counts. The
// error is for an empty value, a quote that does not end and more than 32
// parameters.
func ParseMedia(s string) (Media, error) {
	const space = " \t\r\n"
	typ, rest, more := strings.Cut(s, ";")
	m := Media{Type: mediaType(typ)}
	if m.Type == "" {
		return m, errors.New("no Content-Type")
	}
	for more {
		rest = strings.TrimLeft(rest, space)
		i := strings.IndexAny(rest, "=;")
		if i < 0 || rest[i] == ';' {
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
			if len(m.params) == maxParams {
				return m, errors.New("Content-Type with too many parameters")
			}
			m.params = append(m.params, p)
		}
	}
	return m, nil
}

// mediaType is a media type in lower case without white space around its parts.
func mediaType(s string) string {
	major, minor, slash := strings.Cut(s, "/")
	major, minor = strings.TrimSpace(major), strings.TrimSpace(minor)
	if slash && len(major)+1+len(minor) != len(s) {
		s = major + "/" + minor
	} else if !slash {
		s = major
	}
	return strings.ToLower(s)
}

func (m *Media) find(name string) *mediaParam {
	for i := range m.params {
		if m.params[i].name == name {
			return &m.params[i]
		}
	}
	return nil
}

// Param gives the value of a parameter, without its quotes. name is in lower
// case.
func (m *Media) Param(name string) (value string, ok bool) {
	if p := m.find(name); p != nil {
		return p.value, true
	}
	return "", false
}

// Quoted tells whether a parameter is there and was quoted.
func (m *Media) Quoted(name string) bool { p := m.find(name); return p != nil && p.quoted }

// Part is one part of a multipart. Its Body lies within the multipart.
type Part struct {
	ID       string // Content-ID as it was written, with its angle brackets
	Type     string // Content-Type as it was written; "" means text/plain
	Encoding string // Content-Transfer-Encoding as it was written
	Body     []byte

	// BadLine is a line in the header that is no header field, clipped to 60
	// octets. It was skipped, but one that starts with < begins the body: its
	// empty line is missing, as in RFC 4662 section 6 step 13.
	BadLine string
}

// Parts goes through the parts of a multipart body in order. An error is the
// last thing it gives: ErrBoundary, ErrNoParts, ErrLimit, or ErrOpen after the
// last part, which then reaches to the end of the body. Lines may end in LF.
func (m *Media) Parts(body []byte) iter.Seq2[Part, error] {
	return func(yield func(Part, error) bool) {
		boundary, _ := m.Param("boundary")
		if !validBoundary(boundary) {
			yield(Part{}, ErrBoundary)
			return
		}
		delim := []byte("--" + boundary)
		n := 0
		give := func(raw []byte) bool {
			if n++; n > MaxParts {
				yield(Part{}, fmt.Errorf("%w: more than %d parts", ErrLimit, MaxParts))
				return false
			}
			p, err := readPart(raw)
			if err != nil {
				yield(Part{}, err)
				return false
			}
			return yield(p, nil)
		}
		start := -1
		for pos := 0; pos < len(body); {
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
			if start >= 0 && !give(body[start:max(start, lineBefore(body, i))]) {
				return
			}
			if last {
				if n == 0 {
					yield(Part{}, ErrNoParts)
				}
				return
			}
			start, pos = next, next
		}
		if start < 0 || give(body[start:]) {
			yield(Part{}, ErrOpen)
		}
	}
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

// lineBefore gives the end of the line before position i: the line end
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

// readPart reads the header fields of a part; the rest is its body.
func readPart(raw []byte) (p Part, err error) {
	for read := 0; len(raw) > 0; {
		line, rest := nextLine(raw)
		if len(line) == 0 {
			p.Body = rest
			return p, nil
		}
		for len(rest) > 0 && (rest[0] == ' ' || rest[0] == '\t') {
			_, rest = nextLine(rest)
		}
		if read += len(raw) - len(rest); read > maxHeader {
			return p, fmt.Errorf("%w: more than %d octets of header", ErrLimit, maxHeader)
		}
		name, value, ok := bytes.Cut(raw[:len(raw)-len(rest)], []byte{':'})
		if !ok || line[0] == '<' {
			if p.BadLine == "" {
				p.BadLine = string(line[:min(len(line), 60)])
			}
			if line[0] == '<' {
				p.Body = raw
				return p, nil
			}
			raw = rest
			continue
		}
		var field *string
		switch name = bytes.TrimSpace(name); {
		case bytes.EqualFold(name, []byte("Content-ID")):
			field = &p.ID
		case bytes.EqualFold(name, []byte("Content-Type")):
			field = &p.Type
		case bytes.EqualFold(name, []byte("Content-Transfer-Encoding")):
			field = &p.Encoding
		}
		if field != nil && *field == "" {
			*field = unfold(value)
		}
		raw = rest
	}
	return p, nil
}

// unfold joins the lines of a header value (RFC 5322 section 2.2.3).
func unfold(value []byte) string {
	value = bytes.TrimSpace(value)
	if bytes.IndexByte(value, '\n') < 0 {
		return string(value)
	}
	return string(bytes.ReplaceAll(bytes.ReplaceAll(value, []byte("\r\n"), nil), []byte("\n"), nil))
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

// validBoundary follows RFC 2046 section 5.1.1.
func validBoundary(s string) bool {
	if s == "" || len(s) > 70 || s[len(s)-1] == ' ' {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && strings.IndexByte("'()+_,-./:=? ", c) < 0 {
			return false
		}
	}
	return true
}

// Find gives the media type, in lower case, and the text of the body or body
// part that the caller accepts. accept is asked about media types in lower
// case, without parameters. Of a multipart/alternative it is the last one that
// will do (RFC 2046 section 5.1.4), of a multipart/related the root or nothing
// (RFC 2387), of a multipart/signed what is signed, of any other multipart the
// first one that will do. Parts in base64 or quoted-printable will not do, which
// nobody needs where binary is transparent. A multipart that cannot be read to
// its end is as good as what could be read of it.
func Find(contentType string, body []byte, accept func(mediaType string) bool) (mediaType string, part []byte, ok bool) {
	return find(contentType, body, accept, MaxDepth)
}

func find(contentType string, body []byte, accept func(string) bool, depth int) (string, []byte, bool) {
	m, err := ParseMedia(contentType)
	if err != nil {
		return "", nil, false
	}
	kind, multi := strings.CutPrefix(m.Type, "multipart/")
	if accept(m.Type) {
		return m.Type, body, true
	}
	if !multi || depth == 0 {
		return "", nil, false
	}
	start, rooted := "", false
	if kind == "related" {
		start, rooted = m.Param("start")
	}
	var typ string
	var part []byte
	found := false
	for p, err := range m.Parts(body) {
		if err != nil {
			break
		}
		if rooted && strings.Trim(p.ID, "<>") != strings.Trim(start, "<>") {
			continue
		}
		if !plain(p.Encoding) {
			p.Type = "?"
		} else if p.Type == "" {
			p.Type = "text/plain"
		}
		if t, b, ok := find(p.Type, p.Body, accept, depth-1); ok {
			typ, part, found = t, b, true
		}
		if found && kind != "alternative" || kind == "related" || kind == "signed" {
			break
		}
	}
	return typ, part, found
}

// plain tells a Content-Transfer-Encoding that changes nothing.
func plain(encoding string) bool {
	switch strings.ToLower(encoding) {
	case "", "binary", "8bit", "7bit":
		return true
	}
	return false
}
