// Package pidf reads and composes presence documents (PIDF).
//
// It owns what RFC 3863 (PIDF) and RFC 4479 (data model) say about the shape
// of a document: which bodies are accepted, how the publications of one
// presentity become one document, and what is said when there are none.
//
// Invariants:
//   - What Parse accepted is well-formed, has <presence> of the PIDF namespace
//     as its root and stays within Limits. It need not be valid against the
//     schema: clients publish <basic>unknown</basic>, ids that are no xs:ID
//     and elements in any order.
//   - One publication in the shape of the schemas passes through unchanged,
//     byte for byte (RFC 3903, 14.4). Several, or one out of shape, become a
//     document whose PIDF and data-model parts are valid against the schemas;
//     the contents of extension elements are kept as they were published.
//   - Compose is a pure function: the same documents in the same order give
//     the same bytes.
//   - A Document is immutable and may be shared between goroutines.
//
// The package does no I/O, reads no clock and writes no log.
//
//	doc, err := pidf.Parse(body, pidf.Limits{})
//	out := pidf.Compose("sip:alice@example.com", []*pidf.Document{doc, other})
package pidf
