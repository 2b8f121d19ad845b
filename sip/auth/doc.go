// Package auth is SIP digest authentication (RFC 3261 section 22, RFC 8760) on
// both sides: Verifier challenges and checks the requests of others, Client
// answers the challenges to ours. It owns the text of challenges and
// credentials, the nonces, and the memory of both. It does no I/O, knows no
// clock and starts no goroutine; Verifier and Client lock themselves.
//
// Invariants:
//
//   - A nonce and count are accepted once. Nonces are known by a keyed hash, so
//     one that was only given out costs no memory; one that was used has a window
//     of its 64 newest counts, so that requests may overtake each other. Where
//     the bounded memory forgets a nonce it refuses all that are not younger.
//   - Nothing is looked up for credentials whose nonce is not ours, too old or
//     used up. An unknown user and a wrong password are the same.
//   - A response is computed for the server that asked only, with the login of
//     the realm it named, and never with an algorithm that is switched off.
//   - No password or secret leaves the package, Basic is neither offered nor
//     answered.
//
// What is lenient: values in quotes that should have none and the reverse,
// upper case in names and hexadecimal digits, a uri other than the Request-URI
// (RFC 8760 section 2.6), and with AllowNoQop responses of RFC 2069. What is
// not: a parameter twice, a response of the wrong length, a qop without cnonce
// or count. Absent are username* and userhash (RFC 7616 section 3.4),
// Authentication-Info, and 407 as a proxy would send it.
//
// A clock that is set back lengthens the life of the nonces given out by as much.
//
//	cred, res := v.Parse(now, m, isOurs)
//	if res == auth.Claimed { res = v.Check(now, cred, secretsOf(cred.User, cred.Realm)) }
package auth
