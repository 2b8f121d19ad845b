package auth

import (
	"bytes"
	"slices"
	"strings"
)

// Bounds of one field value. What is beyond them is malformed.
const (
	maxValue  = 4096 // octets
	maxParams = 32
	maxFields = 8 // fields of one name that are looked at; the others are ignored
)

type param uint8

// The parameters that are read, in the order in which they are written.
const (
	pUsername param = iota
	pRealm
	pNonce
	pURI
	pResponse
	pAlgorithm
	pCnonce
	pOpaque
	pQop
	pNc
	pStale
	pUserhash
	pUsernameExt
	paramCount
)

var paramNames = [paramCount]string{
	"username", "realm", "nonce", "uri", "response", "algorithm", "cnonce", "opaque", "qop", "nc", "stale", "userhash", "username*",
}

// params is a challenge or credentials: values without quotes and escapes, nil
// where the parameter is missing. Other parameters are left out (RFC 7616
// section 3.3: unknown ones are ignored).
type params [paramCount][]byte

// parse reads a value such as `Digest realm="x", nonce="y"`. Of a scheme other
// than Digest it tells only that. The values lie within v unless they had
// escapes. The reason is empty when all is well and holds nothing of v.
func parse(v []byte) (p params, digest bool, reason string) {
	if v = trim(v); len(v) > maxValue {
		return p, true, "credentials are longer than 4096 octets"
	}
	i := token(v, 0)
	if digest = strings.EqualFold(string(v[:i]), "digest"); !digest {
		return p, false, ""
	}
	if i == len(v) || v[i] != ' ' && v[i] != '\t' {
		return p, true, "no space after the scheme"
	}
	for n := 0; ; {
		for i = space(v, i); i < len(v) && v[i] == ','; i = space(v, i+1) { // empty items are harmless
		}
		if i == len(v) {
			return p, true, ""
		}
		if n++; n > maxParams {
			return p, true, "more than 32 parameters"
		}
		s := i
		i = token(v, i)
		name := v[s:i]
		if i = space(v, i); len(name) == 0 || i == len(v) || v[i] != '=' {
			return p, true, "parameter without name or value"
		}
		i = space(v, i+1)
		var value []byte
		if i < len(v) && v[i] == '"' {
			if value, i = unquote(v, i); value == nil {
				return p, true, "quoted string has no end or a control character"
			}
		} else {
			s = i
			for i < len(v) && v[i] > ' ' && v[i] != ',' && v[i] != '"' && v[i] != 0x7f {
				i++
			}
			if value = v[s:i:i]; s == i {
				return p, true, "parameter without name or value"
			}
		}
		if i = space(v, i); i < len(v) && v[i] != ',' {
			return p, true, "no comma between parameters"
		}
		k := paramOf(name)
		if k == paramCount {
			continue
		}
		if p[k] != nil {
			return p, true, "a parameter is there twice"
		}
		p[k] = value
	}
}

// append writes the value that parse reads. qop is quoted in a challenge and
// bare in credentials (RFC 7616 sections 3.3 and 3.4). Control characters,
// which parse never gives, are left out.
func (p *params) append(dst []byte) []byte {
	dst = append(dst, "Digest"...)
	sep := byte(' ')
	for k, v := range p {
		if v == nil {
			continue
		}
		if sep == ',' {
			dst = append(dst, sep)
		}
		dst = append(dst, ' ')
		sep = ','
		dst = append(dst, paramNames[k]...)
		dst = append(dst, '=')
		switch param(k) {
		case pAlgorithm, pNc, pStale, pUserhash, pQop:
			if len(v) > 0 && token(v, 0) == len(v) && (param(k) != pQop || p[pResponse] != nil) {
				dst = append(dst, v...)
				continue
			}
		}
		dst = append(dst, '"')
		for _, c := range v {
			if c == '"' || c == '\\' {
				dst = append(dst, '\\')
			}
			if !control(c) {
				dst = append(dst, c)
			}
		}
		dst = append(dst, '"')
	}
	return dst
}

func paramOf(name []byte) param {
	for k, s := range paramNames {
		if len(s) == len(name) && strings.EqualFold(string(name), s) {
			return param(k)
		}
	}
	return paramCount
}

// unquote reads the quoted string at v[i] and gives the index after it; nil
// when it has no end or a control character, even an escaped one.
func unquote(v []byte, i int) (value []byte, end int) {
	s := i + 1
	escapes := false
	for i = s; i < len(v) && v[i] != '"'; i++ {
		if v[i] == '\\' {
			escapes = true
			i++
		}
		if i < len(v) && control(v[i]) {
			return nil, 0
		}
	}
	if i >= len(v) {
		return nil, 0
	}
	if value = v[s:i:i]; escapes {
		value = make([]byte, 0, i-s)
		for j := s; j < i; j++ {
			if v[j] == '\\' {
				j++
			}
			value = append(value, v[j])
		}
	}
	return value, i + 1
}

func control(c byte) bool { return c < ' ' && c != '\t' || c == 0x7f }

// token gives the end of the token of RFC 3261 section 25.1 at v[i].
func token(v []byte, i int) int {
	for i < len(v) && tokenChar[v[i]] {
		i++
	}
	return i
}

var tokenChar = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c < 0x80 && strings.IndexByte("-.!%*_+`'~", byte(c)) >= 0
	}
	return t
}()

func space(v []byte, i int) int {
	for i < len(v) && (v[i] == ' ' || v[i] == '\t') {
		i++
	}
	return i
}

func trim(v []byte) []byte { return bytes.Trim(v, " \t") }

// hasItem tells whether a comma list such as the qop of a challenge has an item.
func hasItem(list []byte, item string) bool {
	return slices.ContainsFunc(bytes.Split(list, []byte(",")), func(v []byte) bool {
		return strings.EqualFold(string(trim(v)), item)
	})
}
