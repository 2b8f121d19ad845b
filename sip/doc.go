// Package sip is RFC 3261 as far as a server of event packages needs it:
// messages, URIs, transports and non-INVITE transactions.
//
// This half of the package is the message part. It owns the text of messages:
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
//	var m sip.Message
//	err := m.Parse(datagram, false)
//	b := sip.AppendResponse(buf[:0], &m, 200, "", tag); b = sip.AppendBody(b, "", nil)
package sip
