package xmltree

import "strings"

// URI escapes what may not stand in an xs:anyURI, where a client sent it.
func URI(s string) string {
	s = strings.TrimSpace(s)
	bad := func(i int) bool {
		switch c := s[i]; {
		case c == '%':
			return i+2 >= len(s) || !hex(s[i+1]) || !hex(s[i+2])
		case c <= ' ', c == 0x7f:
			return true
		default:
			return strings.IndexByte("<>\"{}|\\^`", c) >= 0
		}
	}
	for i := range len(s) {
		if bad(i) {
			b := []byte(s[:i])
			for ; i < len(s); i++ {
				if bad(i) {
					const digits = "0123456789ABCDEF"
					b = append(b, '%', digits[s[i]>>4], digits[s[i]&15])
				} else {
					b = append(b, s[i])
				}
			}
			return string(b)
		}
	}
	return s
}

func hex(c byte) bool { return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f' }
