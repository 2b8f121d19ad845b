package sip

import (
	"bytes"
	"iter"
	"strconv"
	"time"
)

// Limits of what is accepted. A message beyond them is refused with 513.
const (
	MaxHeaderBytes = 65535   // start line and header fields together
	MaxBodyBytes   = 1 << 20 // Content-Length on a stream
	MaxFields      = 256     // header fields in a message
)

const inlineFields = 48

type field struct {
	name, nameEnd, value, end uint16 // offsets into Raw
	id                        HeaderID
}

// Message is a request or a response. It is made to be reused: Parse forgets
// the message before and allocates nothing for an ordinary one. A Message must
// not be copied while in use, and its slices live as long as Raw is left alone.
type Message struct {
	Raw  []byte    // the message itself, set by Parse: no leading line ends, nothing after the body
	Flow Flow      // where it came from; not touched by Parse
	At   time.Time // when it came; not touched by Parse

	// Crowded says that so much waits behind it in its socket that there is no time
	// for a refusal. Not touched by Parse.
	Crowded bool

	// Names are the SIP identities of the peer's verified certificate
	// (RFC 5922 section 7.4), nil when there is none. The slice is that of the
	// connection: it must not be changed. Not touched by Parse.
	Names []string

	present uint64 // bit per HeaderID
	n       int    // fields in use
	status  int    // 0 in a request
	method  Method
	toOK    bool // the To field could be read
	cseq    uint32

	token, uri [2]uint16 // method and Request-URI; in a response uri is the reason phrase
	body       int

	via      Via
	from, to NameAddr

	first  [64]uint8 // index of the first field of a HeaderID, valid when its bit is set
	fields [inlineFields]field
	more   []field
	err    ParseError
}

// ParseError says why a message was refused.
type ParseError struct {
	Code       int    // status code for a response: 400, 501, 505 or 513
	Reason     string // for people; holds nothing the peer sent
	Answerable bool   // a request with a Via that says where to and a CSeq: AppendResponse works
}

func (e *ParseError) Error() string { return strconv.Itoa(e.Code) + " " + e.Reason }

func (m *Message) fail(code int, reason string) {
	if m.err.Code == 0 {
		m.err.Code, m.err.Reason = code, reason
	}
}

func (m *Message) failLine(line int, reason string) {
	if m.err.Code == 0 {
		m.err.Code, m.err.Reason = 400, "line "+strconv.Itoa(line)+": "+reason
	}
}

func (m *Message) field(i int) *field {
	if i < inlineFields {
		return &m.fields[i]
	}
	return &m.more[i-inlineFields]
}

// exactlyOnce are the fields that identify a request; a second one is an
// error even if it says the same. mustAgree are single-valued fields where a
// repetition is harmless only if it says the same.
const (
	exactlyOnce = 1<<HdrFrom | 1<<HdrTo | 1<<HdrCallID | 1<<HdrCSeq
	mustAgree   = 1<<HdrContentLength | 1<<HdrContentType | 1<<HdrEvent | 1<<HdrExpires | 1<<HdrMinExpires |
		1<<HdrMaxForwards | 1<<HdrSubscriptionState | 1<<HdrSIPETag | 1<<HdrSIPIfMatch | 1<<HdrSuppressIfMatch
	matching = 1<<HdrVia | 1<<HdrCSeq // what a client finds its transaction by (RFC 3261 section 17.1.3)
)

// Parse reads the message in b. It keeps b and may change it: folded lines
// are joined by turning their line ends into spaces. With stream set, b came
// from a stream and Content-Length is required; otherwise b is a datagram,
// whose body without Content-Length reaches to its end (RFC 3261 section
// 18.3). Octets after the body are cut off.
//
// The error is a *ParseError. Even then as much as could be read is there, so
// that an Answerable request can be answered. A refused response is dropped
// (RFC 3261 section 18.3).
func (m *Message) Parse(b []byte, stream bool) error {
	m.present, m.n, m.status, m.method, m.toOK, m.cseq = 0, 0, 0, MethodUnknown, false, 0
	m.token, m.uri, m.body = [2]uint16{}, [2]uint16{}, 0
	m.via, m.from, m.to = Via{}, NameAddr{}, NameAddr{}
	m.more, m.err = m.more[:0], ParseError{}

	b = b[SkipLineEnds(b):]
	m.Raw = b
	head := b
	if len(head) > MaxHeaderBytes {
		head = head[:MaxHeaderBytes]
	}
	isReq := true
	if end := bytes.IndexByte(head, '\n'); end < 0 {
		m.fail(400, "start line has no end")
	} else {
		isReq = m.startLine(head[:end])
		m.body = len(head)
		if ok := m.lines(head, end+1); ok {
			m.values()
			m.frame(stream)
		} else if m.n > 0 {
			m.values()
		}
	}
	if m.err.Code == 0 {
		return nil
	}
	m.err.Answerable = isReq && m.method != ACK && m.via.Host != nil && m.present&matching == matching
	err := m.err
	return &err
}

// startLine reads a request or status line and tells whether it is a request.
func (m *Message) startLine(l []byte) bool {
	if n := len(l); n > 0 && l[n-1] == '\r' {
		l = l[:n-1]
	}
	if len(l) >= 4 && foldEqual(l[:4], "SIP/") {
		m.statusLine(l)
		return false
	}
	i := 0
	for i < len(l) && class[l[i]]&cToken != 0 {
		i++
	}
	if i == 0 || i == len(l) || l[i] != ' ' {
		m.fail(400, "request line does not start with a method and one space")
		return true
	}
	m.token = [2]uint16{0, uint16(i)}
	m.method = lookupMethod(l[:i])
	s := i + 1
	e := bytes.LastIndexByte(l, ' ')
	if e < s {
		m.fail(400, "request line has no SIP version")
		return true
	}
	m.uri = [2]uint16{uint16(s), uint16(e)}
	u := l[s:e]
	for _, c := range u {
		if class[c]&cURI == 0 {
			m.fail(400, "Request-URI has a space, quote, bracket or control character")
			break
		}
	}
	if c := bytes.IndexByte(u, ':'); c <= 0 || c == len(u)-1 {
		m.fail(400, "Request-URI is not a URI")
	}
	m.version(l[e+1:])
	return true
}

func (m *Message) version(v []byte) {
	if string(v) == "SIP/2.0" || foldEqual(v, "SIP/2.0") {
		return
	}
	dot := bytes.IndexByte(v, '.')
	if len(v) > 4 && foldEqual(v[:4], "SIP/") && dot > 4 {
		_, _, ok1 := number(v[4:dot])
		_, _, ok2 := number(v[dot+1:])
		if ok1 && ok2 {
			m.fail(505, "SIP version is not 2.0")
			return
		}
	}
	m.fail(400, "start line has no SIP version")
}

func (m *Message) statusLine(l []byte) {
	sp := bytes.IndexByte(l, ' ')
	if sp < 0 {
		m.fail(400, "status line has no status code")
		m.status = 400 // keeps it a response
		return
	}
	m.version(l[:sp])
	e := sp + 1
	for e < len(l) && class[l[e]]&cDigit != 0 {
		e++
	}
	code, _, _ := number(l[sp+1 : e])
	m.status = int(code)
	if e-sp != 4 || code < 100 || code > 699 || e < len(l) && l[e] != ' ' {
		m.fail(400, "status code is not a number from 100 to 699")
		m.status = 400
	}
	if e < len(l) {
		m.uri = [2]uint16{uint16(e + 1), uint16(len(l))}
	}
}

// lines finds the header fields from i on and sets m.body after the empty
// line. It tells whether that line was found.
func (m *Message) lines(b []byte, i int) bool {
	returns := 0        // carriage returns that belong to a line end
	if b[i-2] == '\r' { // the start line is not empty, so i > 1
		returns++
	}
	for line := 2; ; line++ {
		if i >= len(b) || b[i] == '\r' && i+1 == len(b) {
			m.truncated(len(b))
			return false
		}
		if c := b[i]; c == '\n' {
			i++
			break
		} else if c == '\r' && i+1 < len(b) && b[i+1] == '\n' {
			returns++
			i += 2
			break
		}
		s := i
		for i < len(b) && class[b[i]]&cToken != 0 {
			i++
		}
		e := i
		if i < len(b) && b[i] != ':' {
			i = skipSpace(b, i)
		}
		if i >= len(b) {
			m.truncated(i)
			return false
		}
		good := true
		if b[i] != ':' || e == s {
			good = false
			if b[s] == ' ' || b[s] == '\t' {
				m.failLine(line, "header name starts with a space")
			} else {
				m.failLine(line, "no header name and colon")
			}
		} else {
			i++
		}
		v := i
		nl := bytes.IndexByte(b[i:], '\n')
		if nl < 0 {
			m.truncated(len(b))
			return false
		}
		i += nl
		for i+1 < len(b) && (b[i+1] == ' ' || b[i+1] == '\t') { // RFC 3261 section 7.3.1
			b[i] = ' '
			if i > v && b[i-1] == '\r' {
				b[i-1] = ' '
			}
			if nl = bytes.IndexByte(b[i:], '\n'); nl < 0 {
				m.truncated(len(b))
				return false
			}
			i += nl
			line++
		}
		ve := i
		if ve > v && b[ve-1] == '\r' {
			ve--
			returns++
		}
		i++
		if !good {
			continue
		}
		for v < ve && (b[v] == ' ' || b[v] == '\t') {
			v++
		}
		for ve > v && (b[ve-1] == ' ' || b[ve-1] == '\t') {
			ve--
		}
		if !m.add(field{uint16(s), uint16(e), uint16(v), uint16(ve), lookupHeader(b[s:e])}) {
			return false
		}
	}
	m.body = i
	if bytes.Count(b[:i], cr) != returns {
		m.fail(400, "carriage return without line feed in a header field")
	}
	for p, off := bytes.IndexByte(b[:i], 0), 0; p >= 0; p = bytes.IndexByte(b[off:i], 0) {
		if off += p + 1; off < 2 || b[off-2] != '\\' { // a quoted pair may hold one
			m.fail(400, "NUL octet in a header field")
			break
		}
	}
	return true
}

var cr = []byte{'\r'}

func (m *Message) truncated(at int) {
	if at >= MaxHeaderBytes {
		m.fail(513, "header fields are longer than 65535 octets")
		return
	}
	m.fail(400, "no empty line after the header fields")
}

func (m *Message) add(f field) bool {
	if m.n >= MaxFields {
		m.fail(513, "more than 256 header fields")
		return false
	}
	bit := uint64(1) << f.id
	if m.present&bit == 0 {
		m.present |= bit
		m.first[f.id] = uint8(m.n)
	} else if bit&(exactlyOnce|mustAgree) != 0 {
		if bit&exactlyOnce != 0 {
			m.fail(400, f.id.String()+" is there more than once")
		} else if string(m.Header(f.id)) != string(m.Raw[f.value:f.end]) {
			m.fail(400, f.id.String()+" is there twice with different values")
		}
	}
	if m.n < inlineFields {
		m.fields[m.n] = f
	} else {
		m.more = append(m.more, f)
	}
	m.n++
	return true
}

// values reads the fields every message needs.
func (m *Message) values() {
	if v := m.Header(HdrVia); v == nil {
		m.fail(400, "Via is missing")
	} else if _, reason := m.via.parse(v); reason != "" {
		// With bad parameters it still says where the answer goes; the answer
		// then has it as it came (RFC 4475 section 3.1.2.1).
		if m.via.Params = nil; m.via.head == nil {
			m.via = Via{}
		}
		m.via.head = nil
		m.fail(400, reason)
	} else if m.status == 0 && string(m.via.Branch) == "z9hG4bK" {
		m.fail(400, "Via branch is nothing but the cookie z9hG4bK")
	}
	m.address(HdrFrom, &m.from)
	m.toOK = m.address(HdrTo, &m.to)
	if v := m.Header(HdrCallID); len(v) == 0 {
		m.fail(400, "Call-ID is missing")
	} else {
		for _, c := range v {
			if c <= ' ' || c == 0x7f {
				m.fail(400, "Call-ID has a space or control character")
				break
			}
		}
	}
	m.readCSeq()
	if m.Has(HdrContentType) {
		m.squeezeContentType()
	}
}

func (m *Message) address(h HeaderID, n *NameAddr) bool {
	v := m.Header(h)
	if v == nil {
		m.fail(400, h.String()+" is missing")
		return false
	}
	if reason := n.parse(v); reason != "" {
		*n = NameAddr{}
		m.fail(400, h.String()+": "+reason)
		return false
	}
	return true
}

func (m *Message) readCSeq() {
	v := m.Header(HdrCSeq)
	if v == nil {
		m.fail(400, "CSeq is missing")
		return
	}
	i := 0
	for i < len(v) && class[v[i]]&cDigit != 0 {
		i++
	}
	n, over, ok := number(v[:i])
	s := skipSpace(v, i)
	if !ok || over || s == i || s == len(v) {
		m.fail(400, "CSeq is not a 32-bit number and a method")
		return
	}
	m.cseq = n
	name := v[s:]
	for _, c := range name {
		if class[c]&cToken == 0 {
			m.fail(400, "CSeq is not a 32-bit number and a method")
			return
		}
	}
	if m.status == 0 {
		if string(name) != string(m.MethodToken()) {
			code := 400
			if m.method == MethodUnknown {
				code = 501 // RFC 4475 section 3.1.2.18
			}
			m.fail(code, "CSeq has another method than the request line")
		}
		return
	}
	f := m.field(int(m.first[HdrCSeq]))
	m.token = [2]uint16{f.end - uint16(len(name)), f.end}
	m.method = lookupMethod(name)
}

// squeezeContentType removes the white space that may stand around the slash
// of a media type, by moving the text to the right within its field.
func (m *Message) squeezeContentType() {
	f := m.field(int(m.first[HdrContentType]))
	v := m.Raw[f.value:f.end]
	e := bytes.IndexByte(v, ';')
	if e < 0 {
		e = len(v)
	}
	for e > 0 && (v[e-1] == ' ' || v[e-1] == '\t') {
		e--
	}
	if bytes.IndexByte(v[:e], ' ') < 0 && bytes.IndexByte(v[:e], '\t') < 0 {
		return
	}
	slash := bytes.IndexByte(v[:e], '/')
	if slash < 0 {
		return
	}
	l, r := slash, slash+1
	for l > 0 && (v[l-1] == ' ' || v[l-1] == '\t') {
		l--
	}
	for r < e && (v[r] == ' ' || v[r] == '\t') {
		r++
	}
	v[r-1] = '/'
	shift := r - 1 - l
	copy(v[shift:r-1], v[:l])
	for i := range shift {
		v[i] = ' '
	}
	f.value += uint16(shift)
}

// frame checks Content-Length against what is there and cuts Raw to the
// message (CORE-20).
func (m *Message) frame(stream bool) {
	v := m.Header(HdrContentLength)
	if v == nil {
		if stream {
			m.fail(400, "Content-Length is missing")
		}
		return
	}
	n, over, ok := number(v)
	if !ok {
		m.fail(400, "Content-Length is not a number")
		return
	}
	have := len(m.Raw) - m.body
	if over || uint64(n) > uint64(have) {
		m.fail(400, "body is shorter than Content-Length")
		return
	}
	m.Raw = m.Raw[:m.body+int(n)]
}

// IsRequest tells a request from a response.
func (m *Message) IsRequest() bool { return m.status == 0 }

// Method gives the request's method, in a response that of CSeq.
func (m *Message) Method() Method { return m.method }

// MethodToken gives the method as it was written.
func (m *Message) MethodToken() []byte { return m.Raw[m.token[0]:m.token[1]] }

// RequestURI gives the Request-URI as it was written, nil in a response.
func (m *Message) RequestURI() []byte {
	if m.status != 0 {
		return nil
	}
	return m.Raw[m.uri[0]:m.uri[1]]
}

// Status gives the status code of a response, 100 to 699; 0 in a request.
func (m *Message) Status() int { return m.status }

// Reason gives the reason phrase of a response, which may be empty.
func (m *Message) Reason() []byte {
	if m.status == 0 {
		return nil
	}
	return m.Raw[m.uri[0]:m.uri[1]]
}

// Has tells whether a field is present.
func (m *Message) Has(h HeaderID) bool { return m.present>>(h&63)&1 != 0 && h != HdrOther }

// Header gives the value of the first field of that name, white space at both
// ends removed; nil when there is none, not nil but empty when it is empty.
func (m *Message) Header(h HeaderID) []byte {
	if !m.Has(h) {
		return nil
	}
	f := m.field(int(m.first[h&63]))
	return m.Raw[f.value:f.end:f.end]
}

// Headers gives the value of every field of that name in order, comma lists
// in one piece.
func (m *Message) Headers(h HeaderID) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if !m.Has(h) {
			return
		}
		for i := int(m.first[h&63]); i < m.n; i++ {
			if f := m.field(i); f.id == h && !yield(m.Raw[f.value:f.end:f.end]) {
				return
			}
		}
	}
}

// Values gives the items of every field of that name, comma lists taken
// apart (RFC 3261 section 7.3.1), white space and empty items left out. It is
// not for the Authorization family and Date, where a comma separates nothing.
func (m *Message) Values(h HeaderID) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if !m.Has(h) {
			return
		}
		for i := int(m.first[h&63]); i < m.n; i++ {
			f := m.field(i)
			if f.id != h {
				continue
			}
			for rest := m.Raw[f.value:f.end:f.end]; len(rest) > 0; {
				var item []byte
				item, rest = nextItem(rest)
				if item = trim(item); len(item) > 0 && !yield(item) {
					return
				}
			}
		}
	}
}

// Other gives the first field of a name without a HeaderID; the name is
// compared without regard to case and its compact form is known. Names with a
// HeaderID work too.
func (m *Message) Other(name string) []byte {
	if name == "" {
		return nil
	}
	if id := lookupHeader(name); id != HdrOther {
		return m.Header(id)
	}
	if m.present&1 == 0 {
		return nil
	}
	short := compactOther(name)
	for i := int(m.first[HdrOther]); i < m.n; i++ {
		f := m.field(i)
		if f.id != HdrOther {
			continue
		}
		if n := m.Raw[f.name:f.nameEnd]; foldEqual(n, name) || len(n) == 1 && lower(n[0]) == short {
			return m.Raw[f.value:f.end:f.end]
		}
	}
	return nil
}

// CSeq gives the sequence number.
func (m *Message) CSeq() uint32 { return m.cseq }

// CallID gives the Call-ID, which is compared octet by octet.
func (m *Message) CallID() []byte { return m.Header(HdrCallID) }

// Body gives the body, empty when there is none.
func (m *Message) Body() []byte { return m.Raw[m.body:] }

// Via gives the topmost Via value.
func (m *Message) Via() *Via { return &m.via }

// From gives the From value.
func (m *Message) From() *NameAddr { return &m.from }

// To gives the To value.
func (m *Message) To() *NameAddr { return &m.to }

// Uint reads a field that is a number: Expires, Min-Expires, Max-Forwards,
// Content-Length in their units, Retry-After in seconds with comment and
// parameters ignored. Numbers above 2^32-1 become 2^32-1. The error is an
// answerable *ParseError.
func (m *Message) Uint(h HeaderID) (v uint32, present bool, err error) {
	b := m.Header(h)
	if b == nil {
		return 0, false, nil
	}
	if h == HdrRetryAfter {
		if i := bytes.IndexAny(b, ";("); i >= 0 {
			b = trim(b[:i])
		}
	}
	v, _, ok := number(b)
	if !ok {
		return 0, true, &ParseError{Code: 400, Reason: h.String() + " is not a number", Answerable: m.status == 0}
	}
	return v, true, nil
}

// ContentType gives the media type, white space around its slash removed, and
// its parameters from the first ';'. Media types are compared without regard
// to case. Both are nil when the field is missing.
func (m *Message) ContentType() (mediaType, params []byte) {
	return splitParams(m.Header(HdrContentType))
}

// Event gives the event package, the id parameter (nil if absent) and all
// parameters from the first ';'. Package and id are compared octet by octet
// (RFC 6665 section 8.2.1).
func (m *Message) Event() (pkg, id, params []byte) {
	pkg, params = splitParams(m.Header(HdrEvent))
	if params != nil {
		id, _ = Param(params, "id")
	}
	return pkg, id, params
}

func splitParams(v []byte) (value, params []byte) {
	if i := bytes.IndexByte(v, ';'); i >= 0 {
		return trim(v[:i]), v[i:]
	}
	return v, nil
}
