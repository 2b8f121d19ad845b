// Package servertest runs whole servers and scripted user agents on a network
// in memory, in the virtual time of a testing/synctest bubble. UAs can also talk
// over loopback sockets, in real time, to a server that a test started itself.
//
// A World is the network, a Node a server with everything it is made of, a UA
// a phone that publishes and watches, a Peer another server whose every message
// a test writes itself. What a UA is notified of is checked against the rules
// as it arrives: order of CSeq, Subscription-State, dialog headers, the nature
// of the body, and for lists RLMI and its versions, of nested lists too, on the
// way into a View, which is what a phone would show.
//
// The package is for tests only and nothing else imports it. RFC 6665, 3903 and
// 4662 from the other side.
//
//	w := servertest.New(t)               // within synctest.Test
//	n := w.Node("192.0.2.1", nil)
//	sub := w.UA("sip:alice@example.com").Watch(n, "sip:friends@example.com")
package servertest
