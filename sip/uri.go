package sip

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ErrScheme is the error of ParseURI for a scheme other than sip, sips, tel,
// pres and im. A request for such a URI gets 416 (RFC 3261 section 8.2.2.1).
var ErrScheme = errors.New("sip: URI scheme is not supported")

// URI is a sip, sips, pres, im or tel URI, its parts as they were written and
// still escaped, except that the scheme is in lower case.
type URI struct {
	Scheme   string
	User     string // empty if absent; of a tel URI the number
	Password string
	Host     string // empty in a tel URI; an IPv6 address without its brackets
	Port     uint16 // 0 if absent
	Params   string // "transport=tcp;lr", without the first ';'
	Headers  string // "subject=x&priority=y", without the '?'
}

// maxURIParams bounds the work of Equal, which compares each parameter with each.
const maxURIParams = 64

type uriError string

func (e uriError) Error() string { return "sip: bad URI: " + string(e) }

// ParseURI reads a URI of RFC 3261 section 19.1, RFC 3859 (pres), RFC 3860 (im)
// or RFC 3966 (tel). It rejects spaces, control characters, quotes, angle
// brackets, '%' without two hexadecimal digits, an empty host, an empty user
// before '@', ports other than 1 to 65535, and more than 64 parameters. Octets
// above 127 are let pass in all parts but the host. An unknown scheme gives
// ErrScheme.
func ParseURI(s string) (URI, error) {
	colon := strings.IndexByte(s, ':')
	if colon <= 0 {
		return URI{}, uriError("no scheme")
	}
	for i := 0; i < len(s); i++ {
		if class[s[i]]&cURI == 0 {
			return URI{}, uriError("space, quote, angle bracket or control character")
		}
		if s[i] == '%' && (i+2 >= len(s) || class[s[i+1]]&cHex == 0 || class[s[i+2]]&cHex == 0) {
			return URI{}, uriError("% without two hexadecimal digits")
		}
	}
	var u URI
	for _, known := range [...]string{"sip", "sips", "pres", "tel", "im"} {
		if foldEqual(s[:colon], known) {
			u.Scheme = known
		}
	}
	s = s[colon+1:]
	switch u.Scheme {
	case "":
		return URI{}, ErrScheme
	case "tel":
		return parseTel(u, s)
	}

	if at := strings.IndexByte(s, '@'); at >= 0 {
		u.User = s[:at]
		s = s[at+1:]
		if strings.IndexByte(s, '@') >= 0 {
			return URI{}, uriError("more than one @")
		}
		if c := strings.IndexByte(u.User, ':'); c >= 0 {
			u.User, u.Password = u.User[:c], u.User[c+1:]
		}
		if u.User == "" {
			return URI{}, uriError("no user before @")
		}
	}
	if q := strings.IndexByte(s, '?'); q >= 0 {
		s, u.Headers = s[:q], s[q+1:]
	}
	if p := strings.IndexByte(s, ';'); p >= 0 {
		s, u.Params = s[:p], s[p+1:]
	}
	if strings.Count(u.Params, ";") >= maxURIParams {
		return URI{}, uriError("more than 64 parameters")
	}

	port := ""
	hasPort := false
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return URI{}, uriError("no ] after the IPv6 address")
		}
		u.Host = s[1:end]
		addr, err := netip.ParseAddr(u.Host)
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return URI{}, uriError("bad IPv6 address")
		}
		if s = s[end+1:]; s != "" && s[0] != ':' {
			return URI{}, uriError("text after the host")
		} else if s != "" {
			port, hasPort = s[1:], true
		}
	} else {
		u.Host, port, hasPort = strings.Cut(s, ":")
		if u.Host == "" {
			return URI{}, uriError("no host")
		}
		for i := 0; i < len(u.Host); i++ {
			if class[u.Host[i]]&cHost == 0 || u.Host[i] == '.' && (i == 0 || u.Host[i-1] == '.') {
				return URI{}, uriError("bad host name")
			}
		}
	}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return URI{}, uriError("port is not a number from 1 to 65535")
		}
		u.Port = uint16(n)
	}
	return u, nil
}

func parseTel(u URI, s string) (URI, error) {
	u.User, u.Params, _ = strings.Cut(s, ";")
	if strings.Count(u.Params, ";") >= maxURIParams {
		return URI{}, uriError("more than 64 parameters")
	}
	digits := 0
	for i := 0; i < len(u.User); i++ {
		switch c := u.User[i]; {
		case class[c]&cHex != 0 || c == '*' || c == '#':
			digits++
		case c == '+' && i == 0 || isVisual(c):
		default:
			return URI{}, uriError("telephone number has other characters than digits and - . ( )")
		}
	}
	if digits == 0 {
		return URI{}, uriError("telephone number has no digits")
	}
	return u, nil
}

// isVisual tells the visual separators of RFC 3966 section 5.1.1.
func isVisual(c byte) bool { return c == '-' || c == '.' || c == '(' || c == ')' }

// String writes the URI. ParseURI of the result gives u again.
func (u URI) String() string {
	var buf [128]byte
	return string(u.append(buf[:0]))
}

func (u URI) append(b []byte) []byte {
	b = append(b, u.Scheme...)
	b = append(b, ':')
	b = append(b, u.User...)
	if u.Password != "" {
		b = append(b, ':')
		b = append(b, u.Password...)
	}
	if u.Host != "" {
		if u.User != "" {
			b = append(b, '@')
		}
		b = appendHost(b, u.Host)
	}
	if u.Port != 0 {
		b = append(b, ':')
		b = strconv.AppendUint(b, uint64(u.Port), 10)
	}
	if u.Params != "" {
		b = append(b, ';')
		b = append(b, u.Params...)
	}
	if u.Headers != "" {
		b = append(b, '?')
		b = append(b, u.Headers...)
	}
	return b
}

func appendHost(b []byte, host string) []byte {
	if strings.IndexByte(host, ':') >= 0 {
		b = append(b, '[')
		b = append(b, host...)
		return append(b, ']')
	}
	return append(b, host...)
}

// Param gives the value of a URI parameter, unescaped. Names are compared
// without regard to case and escapes.
func (u URI) Param(name string) (value string, ok bool) {
	for p := range strings.SplitSeq(u.Params, ";") {
		if p == "" {
			continue
		}
		n, v, _ := strings.Cut(p, "=")
		if foldEqual(n, name) || strings.IndexByte(n, '%') >= 0 && foldEqual(unescape(n), name) {
			return unescape(v), true
		}
	}
	return "", false
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	default:
		return c&^0x20 - 'A' + 10
	}
}

// escaped gives the octet of the escape at s[i], if there is one.
func escaped(s string, i int) (c byte, ok bool) {
	if s[i] != '%' || i+2 >= len(s) || class[s[i+1]]&cHex == 0 || class[s[i+2]]&cHex == 0 {
		return 0, false
	}
	return unhex(s[i+1])<<4 | unhex(s[i+2]), true
}

func unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if e, ok := escaped(s, i); ok {
			c = e
			i += 2
		}
		b = append(b, c)
	}
	return string(b)
}

// canonical appends s with one spelling for equivalent escapes: an escaped
// octet of class plain is written as itself, any other escape stays with
// upper case digits, and what should have been escaped is. With fold set
// letters become lower case, before that an escape is undone, never after.
func canonical(b []byte, s string, plain uint16, fold bool) []byte {
	const digits = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		c := s[i]
		e, isEsc := escaped(s, i)
		if isEsc {
			c = e
			i += 2
		}
		if isEsc && class[c]&plain == 0 || class[c]&cRaw == 0 {
			b = append(b, '%', digits[c>>4], digits[c&15])
			continue
		}
		if fold {
			c = lower(c)
		}
		b = append(b, c)
	}
	return b
}

// Equal compares by RFC 3261 section 19.1.4: for instance an absent port is
// not 5060, sip is not sips, and parameters other than user, ttl, method,
// maddr and transport count only where both URIs have them. It is therefore
// not transitive; what makes a good map key is [URI.Key]. Tel URIs are compared
// by RFC 3966 section 4.
func (u URI) Equal(v URI) bool {
	if u.Scheme != v.Scheme {
		return false
	}
	if u.Scheme == "tel" {
		return u.Key() == v.Key()
	}
	if u.Port != v.Port || !sameHost(u.Host, v.Host) ||
		!same(u.User, v.User, false) || !same(u.Password, v.Password, false) {
		return false
	}
	return sameParams(u.Params, v.Params) && sameParams(v.Params, u.Params) &&
		slices.Equal(headerSet(u.Headers), headerSet(v.Headers))
}

func same(a, b string, fold bool) bool {
	if a == b {
		return true
	}
	var x, y [64]byte
	return string(canonical(x[:0], a, cUnreserved, fold)) == string(canonical(y[:0], b, cUnreserved, fold))
}

func sameHost(a, b string) bool {
	if strings.IndexByte(a, ':') >= 0 {
		x, err1 := netip.ParseAddr(a)
		y, err2 := netip.ParseAddr(b)
		return err1 == nil && err2 == nil && x == y
	}
	return foldEqual(a, b)
}

// sameParams tells whether each parameter of a agrees with b.
func sameParams(a, b string) bool {
	for p := range strings.SplitSeq(a, ";") {
		if p == "" {
			continue
		}
		n, v, _ := strings.Cut(p, "=")
		named, found := false, false
		for q := range strings.SplitSeq(b, ";") {
			if n2, v2, _ := strings.Cut(q, "="); q != "" && same(n, n2, true) {
				named = true
				found = found || same(v, v2, true)
			}
		}
		if named && !found {
			return false
		}
		if !found {
			switch strings.ToLower(unescape(n)) {
			case "user", "ttl", "method", "maddr", "transport":
				return false
			}
		}
	}
	return true
}

func headerSet(s string) []string {
	if s == "" {
		return nil
	}
	var set []string
	for h := range strings.SplitSeq(s, "&") {
		set = append(set, string(canonical(nil, h, cUnreserved, true)))
	}
	slices.Sort(set)
	return set
}

// Key names the resource a URI means: two URIs with the same key are the same
// presentity, list or watcher. It is itself a URI, and its own key.
//
//   - pres:, im: and sips: become sip:, because they name the same person
//     (RFC 3856 section 5, RFC 3861); how it is reached is no part of who it is.
//   - The host is in lower case without a final dot, an IPv6 address in its
//     shortest form. A port is kept: sip:a@h:5070 is another server's user.
//   - The user keeps its case (RFC 3261 section 19.1.4). Escapes it does not
//     need are undone, including those of & = + $ , ? and /, which a user part
//     may hold as they are and which some clients escape; %3B, %3A and %40 stay,
//     since ; : @ have a meaning there. Octets that need an escape get one.
//   - Password and headers go, and so do the parameters about the way there:
//     transport, ttl, method, maddr, user, lr, ob and gr (RFC 5627: a GRUU without
//     gr is its address of record). Others stay, in lower case and sorted.
//   - tel: stays tel:, its number in lower case without - . ( ) (RFC 3966).
//
// Unlike Equal it is an equivalence. It joins URIs that Equal keeps apart, by
// scheme or transport, and keeps apart those that differ in a parameter Equal
// ignores.
func (u URI) Key() string {
	var buf [128]byte
	b := buf[:0]
	if u.Scheme == "tel" {
		b = append(b, "tel:"...)
		b = appendDigits(b, u.User)
		return string(appendKeyParams(b, u.Params, true))
	}
	b = append(b, "sip:"...)
	if u.User != "" {
		b = canonical(b, u.User, cUser, false)
		b = append(b, '@')
	}
	if strings.IndexByte(u.Host, ':') >= 0 {
		host := strings.ToLower(u.Host)
		if addr, err := netip.ParseAddr(host); err == nil {
			host = addr.String()
		}
		b = appendHost(b, host)
	} else {
		for i := 0; i < len(u.Host); i++ {
			b = append(b, lower(u.Host[i]))
		}
		if n := len(u.Host); n > 1 && u.Host[n-1] == '.' {
			b = b[:len(b)-1]
		}
	}
	if u.Port != 0 {
		b = append(b, ':')
		b = strconv.AppendUint(b, uint64(u.Port), 10)
	}
	if u.Params != "" {
		b = appendKeyParams(b, u.Params, false)
	}
	return string(b)
}

// Plain divides a URI that is its own Key: sip:user@host or sip:user@host:port,
// without capitals in the host, escapes, parameters or headers. Nearly all are,
// and need neither parsing nor a copy. aor is the URI without its port.
func Plain[T []byte | string](uri T) (aor, host T, ok bool) {
	const scheme = "sip:"
	if len(uri) < len(scheme) || string(uri[:len(scheme)]) != scheme {
		return aor, host, false
	}
	i := len(scheme)
	for i < len(uri) && class[uri[i]]&cUser != 0 {
		i++
	}
	if i == len(scheme) || i == len(uri) || uri[i] != '@' {
		return aor, host, false
	}
	begin := i + 1
	last := byte('.') // none may be first, last or follow another
	for i = begin; i < len(uri) && uri[i] != ':'; i++ {
		c := uri[i]
		if class[c]&cHost == 0 || c != lower(c) || c == '.' && last == '.' {
			return aor, host, false
		}
		last = c
	}
	if last == '.' {
		return aor, host, false
	}
	if i < len(uri) && !plainPort(uri[i+1:]) {
		return aor, host, false
	}
	return uri[:i], uri[begin:i], true
}

// plainPort tells whether a port is written in its shortest form.
func plainPort[T []byte | string](s T) bool {
	if len(s) == 0 || len(s) > 5 || s[0] == '0' {
		return false
	}
	n := 0
	for i := 0; i < len(s); i++ {
		if class[s[i]]&cDigit == 0 {
			return false
		}
		n = 10*n + int(s[i]-'0')
	}
	return n <= 65535
}

func appendDigits(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if !isVisual(s[i]) {
			b = append(b, lower(s[i]))
		}
	}
	return b
}

func appendKeyParams(b []byte, params string, tel bool) []byte {
	var keep []string
	for p := range strings.SplitSeq(params, ";") {
		if p == "" {
			continue
		}
		var buf [64]byte
		k := canonical(buf[:0], p, cUnreserved, true)
		name, value, hasValue := bytes.Cut(k, []byte{'='})
		if tel {
			number := string(name) == "ext" || string(name) == "phone-context" && bytes.HasPrefix(value, []byte{'+'})
			if number && hasValue {
				k = append(k[:len(name)+1], appendDigits(nil, string(value))...)
			}
		} else {
			switch string(name) {
			case "transport", "ttl", "method", "maddr", "lr", "ob", "gr", "user":
				continue
			}
		}
		keep = append(keep, string(k))
	}
	slices.Sort(keep)
	for _, k := range slices.Compact(keep) {
		b = append(b, ';')
		b = append(b, k...)
	}
	return b
}
