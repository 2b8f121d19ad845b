package xmltree

import "fmt"

// Kind says what is wrong with a document, so that a caller can choose a
// response code.
type Kind uint8

// The kinds of faults.
const (
	KindNotWellFormed Kind = iota // not XML, or not namespace-well-formed
	KindForbidden                 // DOCTYPE or another markup declaration
	KindEncoding                  // not UTF-8
	KindTooLarge                  // more bytes, elements or levels than allowed
	KindRoot                      // well-formed, but another kind of document
	KindInvalid                   // the right kind of document, but without something it must have
)

// String returns the kind in a few words.
func (k Kind) String() string {
	switch k {
	case KindNotWellFormed:
		return "not well-formed XML"
	case KindForbidden:
		return "forbidden markup"
	case KindEncoding:
		return "unsupported character encoding"
	case KindTooLarge:
		return "document too large"
	case KindRoot:
		return "not the expected document"
	case KindInvalid:
		return "invalid document"
	}
	return "unknown fault"
}

// Error is a document that was refused.
type Error struct {
	Kind   Kind
	Line   int    // 1-based line of the fault; 0 when it concerns the whole document
	Detail string // what is wrong, for a person; quotes at most a short piece of the input
}

// Error returns the text for logs and for a Warning header.
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Kind.String() + ": " + e.Detail
	}
	return fmt.Sprintf("%s: line %d: %s", e.Kind, e.Line, e.Detail)
}

// Code returns the SIP status code for a request that carried the document:
// 413 when it is too large, 415 when its encoding is not supported, else 400.
func (e *Error) Code() int {
	switch e.Kind {
	case KindTooLarge:
		return 413
	case KindEncoding:
		return 415
	}
	return 400
}
