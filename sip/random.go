package sip

import "crypto/rand"

// Random gives random octets that nobody can guess, and asks the kernel once
// for many. It has one owner; the zero value is ready.
type Random struct {
	buf  [256]byte
	left []byte
}

// Next gives n octets, at most 256, which are valid until the next call.
func (r *Random) Next(n int) []byte {
	if len(r.left) < n {
		r.left = r.buf[:]
		rand.Read(r.left)
	}
	b := r.left[:n]
	r.left = r.left[n:]
	return b
}
