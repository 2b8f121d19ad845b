package sip

// Method is a request method. Method names are case-sensitive (RFC 3261
// section 7.1); anything not listed is MethodUnknown.
type Method uint8

// The methods the server knows by name.
const (
	MethodUnknown Method = iota
	INVITE
	ACK
	BYE
	CANCEL
	OPTIONS
	REGISTER
	SUBSCRIBE
	NOTIFY
	PUBLISH
	MESSAGE
	INFO
	UPDATE
	PRACK
	REFER
)

var methodNames = [...]string{
	MethodUnknown: "UNKNOWN", INVITE: "INVITE", ACK: "ACK", BYE: "BYE", CANCEL: "CANCEL",
	OPTIONS: "OPTIONS", REGISTER: "REGISTER", SUBSCRIBE: "SUBSCRIBE", NOTIFY: "NOTIFY",
	PUBLISH: "PUBLISH", MESSAGE: "MESSAGE", INFO: "INFO", UPDATE: "UPDATE", PRACK: "PRACK",
	REFER: "REFER",
}

// String gives the name as it stands in a request line.
func (m Method) String() string {
	if int(m) < len(methodNames) {
		return methodNames[m]
	}
	return methodNames[MethodUnknown]
}

func lookupMethod(token []byte) Method {
	switch string(token) {
	case "SUBSCRIBE":
		return SUBSCRIBE
	case "NOTIFY":
		return NOTIFY
	case "PUBLISH":
		return PUBLISH
	case "OPTIONS":
		return OPTIONS
	case "REGISTER":
		return REGISTER
	case "INVITE":
		return INVITE
	case "ACK":
		return ACK
	case "BYE":
		return BYE
	case "CANCEL":
		return CANCEL
	case "MESSAGE":
		return MESSAGE
	case "INFO":
		return INFO
	case "UPDATE":
		return UPDATE
	case "PRACK":
		return PRACK
	case "REFER":
		return REFER
	}
	return MethodUnknown
}

// HeaderID names a header field the server reads or writes. Fields that are
// not listed are HdrOther and are found by name.
type HeaderID uint8

// The header fields known by number.
const (
	HdrOther HeaderID = iota
	HdrVia
	HdrFrom
	HdrTo
	HdrCallID
	HdrCSeq
	HdrMaxForwards
	HdrContact
	HdrExpires
	HdrMinExpires
	HdrEvent
	HdrAllowEvents
	HdrAccept
	HdrAcceptEncoding
	HdrSupported
	HdrRequire
	HdrProxyRequire
	HdrUnsupported
	HdrRoute
	HdrRecordRoute
	HdrContentType
	HdrContentLength
	HdrContentEncoding
	HdrContentDisposition
	HdrSubscriptionState
	HdrSIPETag
	HdrSIPIfMatch
	HdrSuppressIfMatch
	HdrUserAgent
	HdrServer
	HdrAllow
	HdrRetryAfter
	HdrAuthorization
	HdrPAssertedIdentity
	HdrPrivacy
	HdrWarning
	HdrDate
	HdrWWWAuthenticate
	HdrProxyAuthenticate
	HdrProxyAuthorization
	hdrCount
)

var headerNames = [hdrCount]string{
	HdrVia: "Via", HdrFrom: "From", HdrTo: "To", HdrCallID: "Call-ID", HdrCSeq: "CSeq",
	HdrMaxForwards: "Max-Forwards", HdrContact: "Contact", HdrExpires: "Expires",
	HdrMinExpires: "Min-Expires", HdrEvent: "Event", HdrAllowEvents: "Allow-Events",
	HdrAccept: "Accept", HdrAcceptEncoding: "Accept-Encoding", HdrSupported: "Supported",
	HdrRequire: "Require", HdrProxyRequire: "Proxy-Require", HdrUnsupported: "Unsupported",
	HdrRoute: "Route", HdrRecordRoute: "Record-Route", HdrContentType: "Content-Type",
	HdrContentLength: "Content-Length", HdrContentEncoding: "Content-Encoding",
	HdrContentDisposition: "Content-Disposition", HdrSubscriptionState: "Subscription-State",
	HdrSIPETag: "SIP-ETag", HdrSIPIfMatch: "SIP-If-Match", HdrSuppressIfMatch: "Suppress-If-Match",
	HdrUserAgent: "User-Agent", HdrServer: "Server", HdrAllow: "Allow",
	HdrRetryAfter: "Retry-After", HdrAuthorization: "Authorization",
	HdrPAssertedIdentity: "P-Asserted-Identity", HdrPrivacy: "Privacy", HdrWarning: "Warning",
	HdrDate: "Date", HdrWWWAuthenticate: "WWW-Authenticate",
	HdrProxyAuthenticate: "Proxy-Authenticate", HdrProxyAuthorization: "Proxy-Authorization",
}

// String gives the long form of the name, empty for HdrOther.
func (h HeaderID) String() string {
	if h < hdrCount {
		return headerNames[h]
	}
	return ""
}

// compactIDs are the one-letter names of RFC 3261 section 7.3.3 and RFC 6665
// section 8.2 that stand for fields known by number.
var compactIDs = [128]HeaderID{
	'v': HdrVia, 'f': HdrFrom, 't': HdrTo, 'i': HdrCallID, 'm': HdrContact,
	'c': HdrContentType, 'l': HdrContentLength, 'e': HdrContentEncoding, 'k': HdrSupported,
	'o': HdrEvent, 'u': HdrAllowEvents,
	'V': HdrVia, 'F': HdrFrom, 'T': HdrTo, 'I': HdrCallID, 'M': HdrContact,
	'C': HdrContentType, 'L': HdrContentLength, 'E': HdrContentEncoding, 'K': HdrSupported,
	'O': HdrEvent, 'U': HdrAllowEvents,
}

// compactOther gives the compact form of fields known only by name.
func compactOther(name string) byte {
	switch len(name) {
	case 7:
		if foldEqual(name, "Subject") {
			return 's'
		}
	case 8:
		if foldEqual(name, "Refer-To") {
			return 'r'
		}
		if foldEqual(name, "Identity") {
			return 'y'
		}
	case 11:
		if foldEqual(name, "Referred-By") {
			return 'b'
		}
	case 14:
		if foldEqual(name, "Accept-Contact") {
			return 'a'
		}
		if foldEqual(name, "Reject-Contact") {
			return 'j'
		}
	case 15:
		if foldEqual(name, "Session-Expires") {
			return 'x'
		}
	case 19:
		if foldEqual(name, "Request-Disposition") {
			return 'd'
		}
	}
	return 0
}

// headerTable is an open-addressed table keyed by headerHash.
var headerTable = func() (t [256]HeaderID) {
	for id := HdrOther + 1; id < hdrCount; id++ {
		h := headerHash(headerNames[id])
		for t[h] != HdrOther {
			h++
		}
		t[h] = id
	}
	return t
}()

func headerHash[T []byte | string](name T) uint8 {
	n := len(name)
	return uint8(n)*29 ^ (name[0]|0x20)*11 ^ (name[n-1]|0x20)*3
}

// lookupHeader finds the number of a non-empty header name, HdrOther if it
// has none.
func lookupHeader[T []byte | string](name T) HeaderID {
	if len(name) == 1 {
		return compactIDs[name[0]&0x7f]
	}
	for h := headerHash(name); ; h++ {
		id := headerTable[h]
		if id == HdrOther {
			return HdrOther
		}
		if s := headerNames[id]; len(s) == len(name) && (string(name) == s || foldEqual(name, s)) {
			return id
		}
	}
}

// Classes of octets.
const (
	cToken = 1 << iota // token of RFC 3261 section 25.1
	cSpace             // SP and HTAB
	cURI               // what may stand in a URI: no control, space, quote or angle bracket
	cValue             // unquoted parameter value, lenient: cURI without ; and ,
	cHost              // host name or IPv4 address
	cDigit
	cHex
	cUnreserved // unreserved of RFC 3261 section 25.1
	cUser       // user-unreserved whose escapes are needless, see [URI.Key]
	cRaw        // unreserved and reserved: what a URI holds without an escape
)

var class = func() (t [256]uint16) {
	for c := 0; c < 256; c++ {
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		in := func(s string) bool {
			for i := 0; i < len(s); i++ {
				if int(s[i]) == c {
					return true
				}
			}
			return false
		}
		if alnum || in("-.!%*_+`'~") {
			t[c] |= cToken
		}
		if alnum || in("-.!~*'()_") {
			t[c] |= cUnreserved
		}
		if alnum || in("-.!~*'()_&=+$,?/") {
			t[c] |= cUser
		}
		if alnum || in("-.!~*'()_;/?:@&=+$,") {
			t[c] |= cRaw
		}
		if in(" \t") {
			t[c] |= cSpace
		}
		if c > ' ' && c != 0x7f && !in(`"<>`) {
			t[c] |= cURI
			if !in(";,") {
				t[c] |= cValue
			}
		}
		if alnum || in("-._") {
			t[c] |= cHost
		}
		if c >= '0' && c <= '9' {
			t[c] |= cDigit | cHex
		}
		if c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' {
			t[c] |= cHex
		}
	}
	return t
}()

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// foldEqual compares ASCII text without regard to case.
func foldEqual[A, B []byte | string](a A, b B) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if a[i] != b[i] && lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t') {
		i++
	}
	return i
}

func trim(b []byte) []byte {
	i, j := 0, len(b)
	for i < j && (b[i] == ' ' || b[i] == '\t') {
		i++
	}
	for j > i && (b[j-1] == ' ' || b[j-1] == '\t') {
		j--
	}
	return b[i:j]
}

// number reads 1*DIGIT. Values above 2^32-1 saturate and set over.
func number(b []byte) (v uint32, over, ok bool) {
	if len(b) == 0 {
		return 0, false, false
	}
	var n uint64
	for _, c := range b {
		c -= '0'
		if c > 9 {
			return 0, false, false
		}
		if n = n*10 + uint64(c); n > 1<<32-1 {
			n, over = 1<<32-1, true
		}
	}
	return uint32(n), over, true
}

// quotedEnd gives the index after the closing quote of the quoted string that
// starts at b[i], -1 if it is not closed.
func quotedEnd(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '"':
			return i + 1
		case '\\':
			i++
		}
	}
	return -1
}

// nextItem splits the first item off a comma list. Commas inside quoted
// strings and angle brackets do not count.
func nextItem(b []byte) (item, rest []byte) {
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case ',':
			return b[:i], b[i+1:]
		case '"':
			if i = quotedEnd(b, i) - 1; i < 0 {
				return b, nil
			}
		case '<':
			for i < len(b) && b[i] != '>' {
				i++
			}
		}
	}
	return b, nil
}

// span is one ";name=value" found by nextParam; offsets into the scanned text.
type span struct {
	name, nameEnd   int
	value, valueEnd int // equal when there is no value
	next            int // where the scan ended: a ';', a ',' or the end
	quoted, hasEq   bool
}

// nextParam reads the parameter whose ';' is at b[i]. Reading stops before
// the next ';' or ','.
func nextParam(b []byte, i int) (p span, ok bool) {
	i = skipSpace(b, i+1)
	p.name = i
	for i < len(b) && class[b[i]]&cToken != 0 {
		i++
	}
	p.nameEnd = i
	if i == p.name {
		return p, false
	}
	if i < len(b) && b[i] != '=' && b[i] != ';' {
		i = skipSpace(b, i)
	}
	if i < len(b) && b[i] == '=' {
		p.hasEq = true
		i = skipSpace(b, i+1)
		p.value = i
		if i < len(b) && b[i] == '"' {
			e := quotedEnd(b, i)
			if e < 0 {
				return p, false
			}
			p.value, p.valueEnd, p.quoted = i+1, e-1, true
			i = e
		} else {
			for i < len(b) && class[b[i]]&cValue != 0 {
				i++
			}
			p.valueEnd = i
			if i == p.value {
				return p, false
			}
		}
		i = skipSpace(b, i)
	}
	p.next = i
	return p, i == len(b) || b[i] == ';' || b[i] == ','
}

// Param finds a parameter in text such as ";a=b;c" or "a=b;c". Names are
// compared without regard to case. The value of a quoted string is what
// stands between the quotes, backslash escapes left as they are; a parameter
// without "=" has a nil value. Text that is not well-formed ends the search.
func Param(params []byte, name string) (value []byte, ok bool) {
	i := skipSpace(params, 0)
	if i == len(params) {
		return nil, false
	}
	if params[i] != ';' {
		i-- // as if a ';' stood before the first name
	}
	for {
		p, valid := nextParam(params, i)
		if p.nameEnd-p.name == len(name) && foldEqual(params[p.name:p.nameEnd], name) && (valid || !p.hasEq) {
			if !p.hasEq {
				return nil, true
			}
			return params[p.value:p.valueEnd], true
		}
		if !valid || p.next == len(params) {
			return nil, false
		}
		i = p.next
	}
}
