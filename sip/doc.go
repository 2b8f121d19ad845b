// Package sip is RFC 3261 as far as a server of event packages needs it:
// messages, URIs, transports and non-INVITE transactions.
//
// The first half of the package is the message part. It owns the text of messages:
// Parse finds the fields of a request or response in one pass and leaves them
// where they are, the Append functions write messages, FrameLen finds their
// ends in a stream. It does no I/O, knows no clock, keeps no state between
// calls and starts no goroutine.
//
// Invariants:
//
//   - Every slice an accessor of Message gives out lies within Message.Raw, and
//     so lives and dies with the buffer given to Parse. Copy what must stay.
//   - A message that Parse accepted has a Via, From, To, Call-ID and CSeq that
//     could be read, the last four exactly once, and the CSeq method is that
//     of the request line.
//   - No value holds a line end, so values of a request can be written into a
//     response or another request as they are.
//   - Parse and FrameLen agree on where a message ends.
//   - Parse of an ordinary message allocates nothing, nor do the Append
//     functions when dst has room. A Message belongs to one goroutine while it
//     is parsed; after that any number may read it.
//
// What is lenient: white space wherever the grammar allows it, folded lines,
// compact names, bare line feeds as line ends, line ends before the start line,
// display names without quotes, a status line without reason phrase, a
// datagram without Content-Length. What is not: anything that two parsers
// could read differently.
//
// A Guard stands where messages pass between a transport and its user: Stats
// counts and times them, Trace shows them to whoever asks, Limiter refuses
// those of a source that sends too much. Its parts know a clock and are used by
// many goroutines; none starts one.
//
// RFC 3261 sections 7, 18.3, 19.1, 20 and 25; RFC 3581; RFC 3966, 3859 and 3860 for
// URIs; RFC 4475 as test.
//
// The second half carries messages. Endpoint owns the sockets: UDP, TCP, TLS,
// WebSocket and secure WebSocket. Its invariants:
//
//   - Send never waits for a peer. A connection has one goroutine that reads and
//     another one while something is to be written; what a peer does not take
//     waits in a bounded queue and then costs that peer its connection.
//   - For a message that Send took with a token, Failed is called at most once,
//     and never when Send gave an error.
//   - A message leaves on a connection that its Flow names, or on one that we
//     opened to its address and, with TLS, verified for its domain; never on one
//     that merely came from that address.
//   - A connection we open over TLS is verified as RFC 5922 says. WebSockets are
//     opened by clients only (RFC 7118).
//
// RFC 3261 section 18, RFC 5626 section 4.4.1, RFC 5922, RFC 5923 and RFC 7118.
//
//	var m sip.Message
//	err := m.Parse(datagram, false)
//	b := sip.AppendResponse(buf[:0], &m, 200, "", tag); b = sip.AppendBody(b, "", nil)
package sip
