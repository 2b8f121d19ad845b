package auth

import (
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"strings"
)

// Algorithm is a hash of RFC 8760 section 2.2.
type Algorithm uint8

// The algorithms, most preferred first (DG-01).
const (
	SHA256 Algorithm = iota
	SHA512256
	MD5
	algorithms
)

// String gives the name as it stands in a challenge.
func (a Algorithm) String() string {
	return [...]string{"SHA-256", "SHA-512-256", "MD5"}[a]
}

// ParseAlgorithm reads a name without regard to case. session tells that it
// ended in "-sess" (RFC 7616 section 3.4.2).
func ParseAlgorithm(name string) (a Algorithm, session, ok bool) {
	const sess = "-sess"
	if n := len(name) - len(sess); n > 0 && strings.EqualFold(name[n:], sess) {
		name, session = name[:n], true
	}
	for a = range algorithms {
		if strings.EqualFold(name, a.String()) {
			return a, session, true
		}
	}
	return 0, false, false
}

// size gives the length of a hash in octets.
func (a Algorithm) size() int {
	if a == MD5 {
		return md5.Size
	}
	return sha256.Size
}

// sum gives the hash of text in the first size octets.
func (a Algorithm) sum(text []byte) (h [sha256.Size]byte) {
	switch a {
	case SHA256:
		return sha256.Sum256(text)
	case SHA512256:
		return sha512.Sum512_256(text)
	default:
		m := md5.Sum(text)
		copy(h[:], m[:])
		return h
	}
}

func (a Algorithm) appendHex(dst, text []byte) []byte {
	h := a.sum(text)
	return hex.AppendEncode(dst, h[:a.size()])
}

// Sum gives the hash of text in lower case hexadecimal digits: 64, or 32 of MD5.
func (a Algorithm) Sum(text string) string { return string(a.appendHex(nil, []byte(text))) }

// Secrets is what is kept of a user's password in a realm: the hash of
// user:realm:password (HA1 of RFC 7616 section 3.4.2) by algorithm, in lower
// case hexadecimal digits. An empty one is not known, so the user cannot be
// authenticated with that algorithm.
type Secrets [algorithms]string

// Derive makes all secrets out of a password.
func Derive(user, realm, password string) Secrets {
	var s Secrets
	for a := range algorithms {
		s[a] = a.Sum(user + ":" + realm + ":" + password)
	}
	return s
}

// Known tells whether there is any secret.
func (s Secrets) Known() bool { return s != Secrets{} }
