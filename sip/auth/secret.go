package auth

import (
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
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

// Sum gives the hash of text in lower case hexadecimal digits: 64, or 32 of MD5.
func (a Algorithm) Sum(text string) string {
	switch a {
	case SHA256:
		h := sha256.Sum256([]byte(text))
		return hex.EncodeToString(h[:])
	case SHA512256:
		h := sha512.Sum512_256([]byte(text))
		return hex.EncodeToString(h[:])
	default:
		h := md5.Sum([]byte(text))
		return hex.EncodeToString(h[:])
	}
}

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
