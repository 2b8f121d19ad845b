// Package peer starts and drives programs of other people as black boxes for end-to-end tests: Kamailio as a presence server,
// SIPp, Sofia-SIP, baresip and SIP.js in Node as publishers and watchers (RFC 3903, RFC 3856, RFC 4662, RFC 7118), openssl
// s_client as the judge of TLS, xmllint as the judge of documents.
//
// Invariants: everything is on 127.0.0.1 and on ports that were free; every wait has a deadline; a program that is missing fails
// the test, it never skips (scripts/setup installs them; SIP.js comes from npm when it is first used); no started process outlives
// the test, nor the test binary when that is killed. The package owns no protocol code of the server: messages are looked at as
// text (Trace), so it can serve as a second opinion. Functions taking a testing.TB must be called from the test's goroutine.
//
//	k := peer.StartKamailio(t, "remote.example")
//	s := peer.StartSofia(t, peer.SofiaOptions{AOR: "sip:bob@remote.example", Server: k.Addr, Transport: "udp"})
package peer
