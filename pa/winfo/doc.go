// Package winfo writes and reads watcher information documents.
//
// It owns the format of RFC 3858: application/watcherinfo+xml, the body of
// notifications of the <package>.winfo event packages (RFC 3857).
//
// Invariants:
//   - Append is a pure function: the same watchers in the same order give the
//     same bytes, valid against the schema as long as Status and Event are
//     among the constants of this package.
//   - Parse accepts only documents with everything RFC 3858 makes mandatory,
//     and gives back what Append was given.
//   - Versions are the caller's: 0 in the first document of a subscription and
//     one more in each that follows, refreshes included (RFC 3858, 3).
//
// The package does no I/O, reads no clock and writes no log.
//
//	body := winfo.Append(nil, 0, true, "sip:alice@example.com", "presence", watchers)
//	doc, err := winfo.Parse(body)
package winfo
