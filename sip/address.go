package sip

import "bytes"

// Via is one Via header field value (RFC 3261 section 20.42). Its slices
// belong to the text it was parsed from.
type Via struct {
	Transport []byte // as written, "UDP"
	Host      []byte // sent-by host; an IPv6 address without its brackets
	Port      uint16 // sent-by port, 0 if absent
	Branch    []byte
	Received  []byte
	RPort     []byte // value of rport; empty when it was only asked for
	Maddr     []byte
	Params    []byte // all parameters from the first ';', or nil
	HasRPort  bool   // rport is present, with or without a value (RFC 3581)

	head []byte // what stands before Params
}

// ParseVia reads one Via value. Any white space the grammar allows is
// accepted, so is any protocol name and version, so that a request of another
// SIP version can still be answered. The error is a *ParseError.
func ParseVia(b []byte) (Via, error) {
	var v Via
	n, reason := v.parse(b)
	if reason == "" && skipSpace(b, n) != len(b) {
		reason = "Via has more than one value"
	}
	if reason != "" {
		return Via{}, &ParseError{Code: 400, Reason: reason}
	}
	return v, nil
}

// parse reads the first value of b and gives the index of the comma or end
// that follows it.
func (v *Via) parse(b []byte) (n int, reason string) {
	const proto = "SIP/2.0/"
	i := skipSpace(b, 0)
	start := i
	if len(b)-i > len(proto) && string(b[i:i+len(proto)]) == proto {
		i += len(proto)
	} else {
		for range 2 {
			s := i
			for i < len(b) && class[b[i]]&cToken != 0 {
				i++
			}
			e := i
			i = skipSpace(b, i)
			if e == s || i == len(b) || b[i] != '/' {
				return i, "Via does not start with SIP/2.0/transport"
			}
			i = skipSpace(b, i+1)
		}
	}
	i = skipSpace(b, i)
	s := i
	for i < len(b) && class[b[i]]&cToken != 0 {
		i++
	}
	v.Transport = b[s:i]
	s = i
	i = skipSpace(b, i)
	if len(v.Transport) == 0 || i == s {
		return i, "Via does not start with SIP/2.0/transport"
	}

	s = i
	if i < len(b) && b[i] == '[' {
		e := bytes.IndexByte(b[i:], ']')
		if e < 2 {
			return i, "Via has a bad IPv6 address"
		}
		v.Host = b[i+1 : i+e]
		for _, c := range v.Host {
			if class[c]&cHex == 0 && c != ':' && c != '.' {
				return i, "Via has a bad IPv6 address"
			}
		}
		i += e + 1
	} else {
		for i < len(b) && class[b[i]]&cHost != 0 {
			i++
		}
		if v.Host = b[s:i]; i == s {
			return i, "Via has no sent-by host"
		}
	}
	e := i
	i = skipSpace(b, i)
	if i < len(b) && b[i] == ':' {
		i = skipSpace(b, i+1)
		s = i
		for i < len(b) && class[b[i]]&cDigit != 0 {
			i++
		}
		p, _, ok := number(b[s:i])
		if !ok || p == 0 || p > 65535 {
			return i, "Via has a bad port"
		}
		v.Port = uint16(p)
		e = i
		i = skipSpace(b, i)
	}
	v.head = b[start:e]

	ps := i
	for i < len(b) && b[i] == ';' {
		p, ok := nextParam(b, i)
		if !ok {
			return i, "Via has a bad parameter"
		}
		if reason := v.param(b[p.name:p.nameEnd], b[p.value:p.valueEnd]); reason != "" {
			return i, reason
		}
		i = p.next
	}
	if i > ps {
		v.Params = b[ps:i]
		for c := v.Params[len(v.Params)-1]; c == ' ' || c == '\t'; c = v.Params[len(v.Params)-1] {
			v.Params = v.Params[:len(v.Params)-1]
		}
	}
	if i < len(b) && b[i] != ',' {
		return i, "Via has text after its host"
	}
	return i, ""
}

func (v *Via) param(name, value []byte) (reason string) {
	switch len(name) {
	case 6:
		if foldEqual(name, "branch") {
			if v.Branch != nil {
				return "Via has two branch parameters"
			}
			if len(value) == 0 {
				return "Via has an empty branch"
			}
			v.Branch = value
		}
	case 5:
		if foldEqual(name, "rport") {
			if v.HasRPort {
				return "Via has two rport parameters"
			}
			v.HasRPort = true
			if len(value) > 0 {
				if p, _, ok := number(value); !ok || p > 65535 {
					return "Via has a bad rport"
				}
				v.RPort = value
			}
		} else if foldEqual(name, "maddr") {
			if v.Maddr != nil || len(value) == 0 {
				return "Via has a bad maddr"
			}
			v.Maddr = value
		}
	case 8:
		if foldEqual(name, "received") {
			if v.Received != nil || len(value) == 0 {
				return "Via has a bad received parameter"
			}
			v.Received = value
		}
	}
	return ""
}

// NameAddr is the value of From, To, Contact, Route and their like: a name-addr
// or addr-spec with header parameters (RFC 3261 section 20.10).
type NameAddr struct {
	Display []byte // without its quotes, backslash escapes left as they are
	URI     []byte // without angle brackets
	Params  []byte // header parameters from the first ';', or nil

	tag []byte
}

// ParseNameAddr reads one value, with or without angle brackets. Without them
// everything after the first ';' is a header parameter, and a URI holding a
// comma or question mark is an error. A display name need not be quoted. The
// error is a *ParseError.
func ParseNameAddr(b []byte) (NameAddr, error) {
	var n NameAddr
	if reason := n.parse(b); reason != "" {
		return NameAddr{}, &ParseError{Code: 400, Reason: reason}
	}
	return n, nil
}

func (n *NameAddr) parse(b []byte) (reason string) {
	b = trim(b)
	if len(b) == 0 {
		return "address is empty"
	}
	lt := 0
	switch b[0] {
	case '<':
	case '"':
		e := quotedEnd(b, 0)
		if e < 0 {
			return "display name has no closing quote"
		}
		n.Display = b[1 : e-1]
		if lt = skipSpace(b, e); lt == len(b) || b[lt] != '<' {
			return "display name is not followed by <"
		}
	default:
		lt = -1
		for i, c := range b {
			if c == '<' {
				n.Display, lt = trim(b[:i]), i
				break
			}
			if c == ':' || c == ';' || c == '"' {
				break // no display name has one of these unquoted
			}
		}
	}
	i := lt
	if lt >= 0 {
		gt := bytes.IndexByte(b[lt:], '>')
		if gt < 0 {
			return "address has no closing >"
		}
		n.URI = trim(b[lt+1 : lt+gt])
		i = lt + gt + 1
	} else {
		for i = 0; i < len(b) && class[b[i]]&cURI != 0 && b[i] != ';'; i++ {
			if b[i] == ',' || b[i] == '?' {
				return "URI with a comma or ? needs angle brackets"
			}
		}
		n.URI = b[:i]
	}
	if len(n.URI) == 0 {
		return "address has no URI"
	}
	if lt >= 0 {
		for _, c := range n.URI {
			if class[c]&cURI == 0 {
				return "URI has a space or control character"
			}
		}
	}
	i = skipSpace(b, i)
	if i == len(b) {
		return ""
	}
	n.Params = b[i:]
	for i < len(b) {
		if b[i] != ';' {
			return "address has text after the URI"
		}
		p, ok := nextParam(b, i)
		if !ok {
			return "address has a bad parameter"
		}
		if p.nameEnd-p.name == 3 && foldEqual(b[p.name:p.nameEnd], "tag") {
			if n.tag != nil {
				return "address has two tags"
			}
			if n.tag = b[p.value:p.valueEnd]; len(n.tag) == 0 {
				return "address has an empty tag"
			}
		}
		i = p.next
	}
	return ""
}

// Tag gives the tag parameter, nil if there is none.
func (n *NameAddr) Tag() []byte {
	if n.tag != nil || n.Params == nil {
		return n.tag
	}
	v, _ := Param(n.Params, "tag")
	return v
}
