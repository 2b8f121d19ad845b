package sip

import (
	"crypto/rand"
	"io"
)

// Random gives random octets that nobody can guess, and asks the kernel once
// for many. It has one owner; the zero value is ready.
type Random struct {
	From io.Reader // instead of the kernel, for tests; it must not fail
	buf  [256]byte
	left []byte
}

// Next gives n octets, at most 256, which are valid until the next call.
func (r *Random) Next(n int) []byte {
	if len(r.left) < n {
		r.left = r.buf[:]
		if r.From == nil {
			rand.Read(r.left)
		} else if _, err := io.ReadFull(r.From, r.left); err != nil {
			panic(err)
		}
	}
	b := r.left[:n]
	r.left = r.left[n:]
	return b
}
