package mwi

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// MediaType is that of a message summary.
const MediaType = "application/simple-message-summary"

// maxClasses bounds the summary lines of a document; RFC 3458 knows six.
const maxClasses = 32

// Document is a message summary. It is immutable.
type Document struct {
	body    []byte // without headers of messages
	waiting bool
	account string
	classes []class
}

// class is a line of the summary: how many messages of a kind there are.
type class struct {
	name      string // as written
	new, old  uint32
	urgent    bool // the next are known
	newUrgent uint32
	oldUrgent uint32
}

// Error is why a body was refused.
type Error struct {
	Line   int // 1-based
	Detail string
}

func (e *Error) Error() string { return fmt.Sprintf("message summary: line %d: %s", e.Line, e.Detail) }

// Parse reads a body, which the document keeps. Names and values are compared
// without regard to case, lines end with LF or CRLF, and counts over 2^32-1 are
// taken for that (RFC 3842 section 3.5). Errors are *Error.
func Parse(body []byte) (*Document, error) {
	d := &Document{body: body}
	rest, n := body, 0
	for len(rest) > 0 {
		line, after, ended := bytes.Cut(rest, []byte("\n"))
		line = bytes.TrimSuffix(line, []byte("\r"))
		if len(line) == 0 {
			break // what follows are headers of messages
		}
		n++
		name, value, ok := strings.Cut(string(line), ":")
		name, value = strings.TrimRight(name, " \t"), strings.Trim(value, " \t")
		if !ok || !token(name) {
			return nil, &Error{n, "not a name, a colon and a value"}
		}
		switch {
		case n == 1:
			if !strings.EqualFold(name, "Messages-Waiting") {
				return nil, &Error{n, "Messages-Waiting must come first"}
			}
			d.waiting = strings.EqualFold(value, "yes")
			if !d.waiting && !strings.EqualFold(value, "no") {
				return nil, &Error{n, "Messages-Waiting is neither yes nor no"}
			}
		case n == 2 && strings.EqualFold(name, "Message-Account"):
			if !address(value) {
				return nil, &Error{n, "Message-Account is not a URI"}
			}
			d.account = value
		default:
			c, ok := counts(name, value)
			if !ok {
				return nil, &Error{n, "counts are not NEW/OLD or NEW/OLD (NEW-URGENT/OLD-URGENT)"}
			}
			if d.class(name) != nil {
				return nil, &Error{n, "the class is there twice"}
			}
			if len(d.classes) >= maxClasses {
				return nil, &Error{n, "more than " + strconv.Itoa(maxClasses) + " classes"}
			}
			d.classes = append(d.classes, c)
		}
		rest = after
		if !ended {
			d.body = append(bytes.TrimSuffix(slices.Clone(body), []byte("\r")), "\r\n"...)
			return d, nil
		}
	}
	if n == 0 {
		return nil, &Error{1, "Messages-Waiting is missing"}
	}
	d.body = body[: len(body)-len(rest) : len(body)-len(rest)]
	return d, nil
}

func token(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("()<>@,;:\\\"/[]?={}", c) >= 0 {
			return false
		}
	}
	return s != ""
}

// address tells whether a string may be a URI: visible octets, a scheme, no
// brackets around it.
func address(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("<>\"", c) >= 0 {
			return false
		}
	}
	return strings.IndexByte(s, ':') > 0
}

// counts reads the value of a summary line.
func counts(name, value string) (c class, ok bool) {
	c.name = name
	all, urgent, both := strings.Cut(value, "(")
	if c.new, c.old, ok = pair(all); !ok || !both {
		return c, ok
	}
	urgent, closed := strings.CutSuffix(urgent, ")")
	c.urgent = true
	c.newUrgent, c.oldUrgent, ok = pair(urgent)
	return c, ok && closed
}

func pair(s string) (a, b uint32, ok bool) {
	x, y, both := strings.Cut(s, "/")
	a, ok = count(x)
	b, ok2 := count(y)
	return a, b, both && ok && ok2
}

func count(s string) (uint32, bool) {
	s = strings.Trim(s, " \t")
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	if v, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(v), true
	}
	return math.MaxUint32, true
}

func (d *Document) class(name string) *class {
	for i := range d.classes {
		if strings.EqualFold(d.classes[i].name, name) {
			return &d.classes[i]
		}
	}
	return nil
}

// Bytes returns the summary as it was published. The caller must not change it.
func (d *Document) Bytes() []byte { return d.body }

// Waiting tells whether messages wait.
func (d *Document) Waiting() bool { return d.waiting }

// Basic is always "": a mail box is neither open nor closed.
func (d *Document) Basic() string { return "" }

// Note returns the summary in one line, for a person to read.
func (d *Document) Note() string {
	parts := []string{"no messages waiting"}
	if d.waiting {
		parts[0] = "messages waiting"
	}
	for _, c := range d.classes {
		parts = append(parts, string(c.append(nil)))
	}
	return strings.Join(parts, ", ")
}

func (c *class) append(dst []byte) []byte {
	dst = append(append(dst, c.name...), ": "...)
	dst = appendPair(dst, c.new, c.old)
	if c.urgent {
		dst = append(appendPair(append(dst, " ("...), c.newUrgent, c.oldUrgent), ')')
	}
	return dst
}

func appendPair(dst []byte, a, b uint32) []byte {
	return strconv.AppendUint(append(strconv.AppendUint(dst, uint64(a), 10), '/'), uint64(b), 10)
}

// Compose makes one summary of those of a presentity (RFC 3842 section 3.10).
// None gives the one that says no, one gives its own bytes. Of several,
// messages wait if they do anywhere, and counts are added if every one has
// some. The account is theirs if they agree, else the presentity.
func Compose(entity string, docs []*Document) []byte {
	switch len(docs) {
	case 0:
		return []byte("Messages-Waiting: no\r\n")
	case 1:
		return docs[0].body
	}
	var sum Document
	account, all := docs[0].account, true
	for _, d := range docs {
		sum.waiting = sum.waiting || d.waiting
		all = all && len(d.classes) > 0
		if d.account != account {
			account = entity
		}
		for _, c := range d.classes {
			s := sum.class(c.name)
			if s == nil {
				sum.classes = append(sum.classes, c)
				continue
			}
			s.new, s.old = add(s.new, c.new), add(s.old, c.old)
			s.urgent = s.urgent || c.urgent
			s.newUrgent, s.oldUrgent = add(s.newUrgent, c.newUrgent), add(s.oldUrgent, c.oldUrgent)
		}
	}
	b := []byte("Messages-Waiting: no\r\n")
	if sum.waiting {
		b = []byte("Messages-Waiting: yes\r\n")
	}
	if account != "" {
		b = append(append(append(b, "Message-Account: "...), account...), "\r\n"...)
	}
	if !all {
		return b
	}
	slices.SortFunc(sum.classes, func(a, b class) int {
		x, y := strings.ToLower(a.name), strings.ToLower(b.name)
		return cmp.Or(cmp.Compare(rank(x), rank(y)), cmp.Compare(x, y))
	})
	for i := range sum.classes {
		b = append(sum.classes[i].append(b), "\r\n"...)
	}
	return b
}

// rank puts the classes of RFC 3458 in its order, before others.
func rank(name string) int {
	known := []string{"voice-message", "fax-message", "pager-message", "multimedia-message", "text-message", "none"}
	if i := slices.Index(known, name); i >= 0 {
		return i
	}
	return len(known)
}

func add(a, b uint32) uint32 {
	if s := a + b; s >= a {
		return s
	}
	return math.MaxUint32
}
