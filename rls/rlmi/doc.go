// Package rlmi writes and reads the body of a list NOTIFY: resource list
// meta-information (RLMI) as the root of a multipart/related document
// (RFC 4662 section 5, RFC 2387).
//
// It owns the format only. It does no I/O, has no clock and no state: who is
// on the list, which version comes next (section 5.2) and what a subscriber
// does with a gap (section 5.6) are the caller's business.
//
// Invariants:
//   - Everything appended is well formed whatever the strings hold: markup is
//     escaped, characters XML 1.0 forbids become U+FFFD, line ends in header
//     values become spaces. A [List] that passes [List.Validate] gives a
//     document valid against the RLMI schema.
//   - The Append functions allocate nothing beyond the growth of dst.
//   - Parsing is bounded: 4 MiB of RLMI, no DTD, 64 levels of XML, [MaxParts]
//     parts, 8 levels of nested lists. Parsed part bodies alias the input.
//   - A nested list is a [Part] whose Body is a finished inner multipart and
//     whose ContentType is the inner [ContentType]; every cid of a list names
//     a top-level part of its own multipart (section 5.5).
//
// Example:
//
//	l := rlmi.List{URI: "sip:friends@example.com", FullState: true, Resources: []rlmi.Resource{{URI: "sip:bob@example.com", Instances: []rlmi.Instance{rlmi.Active("i1", "b@example.com")}}}}
//	body := rlmi.AppendMultipart(nil, "b7", "root@example.com", &l, []rlmi.Part{{CID: "b@example.com", ContentType: "application/pidf+xml", Body: pidf}})
package rlmi
