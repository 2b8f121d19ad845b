// Package auth is SIP digest authentication (RFC 3261 section 22, RFC 8760) on
// both sides. It owns the text of challenges and credentials and the memory of
// nonces. It does no I/O and knows no clock.
package auth
