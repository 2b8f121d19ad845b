package sql

import (
	"strings"
	"unicode/utf8"
)

// PostgreSQL's text holds UTF-8 without NUL; what comes from the wire may be anything. Each byte that does not fit, and
// each byte of the few private characters used here, is stored as the character U+10FF00 plus the byte.
const escapeBase = 0x10FF00

const escapeLead = "\xF4\x8F" // how all characters from escapeBase begin

func escape(s string) string {
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 && !strings.Contains(s, escapeLead) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 16)
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 || r == 0 || r >= escapeBase {
			for i := range n {
				b.WriteRune(escapeBase + rune(s[i]))
			}
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

func unescape(s string) string {
	if !strings.Contains(s, escapeLead) {
		return s
	}
	b := make([]byte, 0, len(s))
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r >= escapeBase {
			b = append(b, byte(r-escapeBase))
		} else {
			b = append(b, s[:n]...)
		}
		s = s[n:]
	}
	return string(b)
}
