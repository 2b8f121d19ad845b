// Package body undoes and does what may be done to the body of a SIP message
// between the two who understand it: content codings (RFC 3261 section 20.12)
// and multipart (RFC 2046 section 5.1, RFC 2387, RFC 5621).
//
// It owns the formats only. It does no I/O, has no clock and no state but pools
// of compressors. All functions may be called by any number of goroutines.
//
// Invariants:
//
//   - What comes from a peer is bounded: Decode never makes more than its limit,
//     at most four codings deep; there are at most MaxParts parts in a multipart,
//     MaxDepth multiparts within each other and 16 KiB of header in a part.
//   - Parts lie within the bytes given; nothing is copied.
//   - Decode undoes Encode.
//
// What is lenient: line feeds alone as line ends, quoted boundaries, a missing
// last delimiter, header lines that are none, deflate without its zlib frame.
//
//	b, err := body.Decode("deflate", m.Body(), 64<<10)
//	mediaType, part, ok := body.Find(contentType, b, func(t string) bool { return t == "application/pidf+xml" })
package body
