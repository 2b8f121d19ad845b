// Package peer starts and drives programs of other people as black boxes for end-to-end tests: Kamailio as a presence server,
// SIPp, Sofia-SIP and baresip as publishers and watchers (RFC 3903, RFC 3856, RFC 4662), xmllint as the judge of documents.
//
// Invariants: everything is on 127.0.0.1 and on ports that were free; every wait has a deadline; a program that is missing fails
// the test (scripts/setup installs them), it never skips; no started process outlives the test, nor the test binary when that is
// killed. The package owns no protocol code of the server: messages are looked at as text (Trace), so it can serve as a second
// opinion. Functions taking a testing.TB must be called from the test's goroutine.
//
//	k := peer.StartKamailio(t, "remote.example")
//	s := peer.StartSofia(t, peer.SofiaOptions{AOR: "sip:bob@remote.example", Server: k.Addr, Transport: "udp"})
package peer
