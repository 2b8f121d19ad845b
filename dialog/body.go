package dialog

import (
	"errors"

	"rollcall/sip"
	"rollcall/sip/body"
)

// Body gives what a request brings of the types that accept, an Accept value,
// admits: its body without content codings, or a part of that if it is a
// multipart. Without its codings it may have limit octets. The text may lie
// within the message. The error is a 415 that says what would do (CORE-05), a
// 413, or a 400 for a coding that is not what it claims to be.
func Body(m *sip.Message, limit int, accept string) (mediaType string, text []byte, err *Error) {
	text, cause := body.Decode(joined(m, sip.HdrContentEncoding), m.Body(), limit)
	switch {
	case errors.Is(cause, body.ErrEncoding):
		return "", nil, Refuse(415, "", "Accept-Encoding", body.AcceptEncoding)
	case errors.Is(cause, body.ErrTooLarge):
		return "", nil, &Error{Status: 413, Err: cause}
	case cause != nil:
		return "", nil, &Error{Status: 400, Reason: "Body Not As Content-Encoding Says", Err: cause}
	}
	mediaType, text, ok := body.Find(string(m.Header(sip.HdrContentType)), text, func(t string) bool { return AcceptsType(accept, t) })
	if !ok {
		return "", nil, Refuse(415, "", "Accept", accept)
	}
	return mediaType, text, nil
}
