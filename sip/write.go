package sip

import (
	"net/netip"
	"strconv"
	"strings"
)

// AppendResponse starts a response to req: the status line, every Via, From,
// To, Call-ID and CSeq (RFC 3261 section 8.2.6.2), each as it was received. A
// request that Parse refused may lack some of them; so does its response.
// The caller adds its own fields and ends with AppendBody.
//
// An empty reason becomes ReasonPhrase(code). toTag is added to To unless the
// request's To has a tag already or toTag is empty.
//
// The topmost Via gets received when its sent-by host is not the source
// address of req.Flow, and rport and received when rport was asked for
// (RFC 3261 section 18.2.1, RFC 3581 section 4). Values the peer put there
// itself are replaced. Without a valid req.Flow.Remote it is left alone.
func AppendResponse(dst []byte, req *Message, code int, reason, toTag string) []byte {
	if reason == "" {
		reason = ReasonPhrase(code)
	}
	dst = append(dst, "SIP/2.0 "...)
	dst = strconv.AppendUint(dst, uint64(code), 10)
	dst = append(dst, ' ')
	dst = appendClean(dst, reason)
	dst = append(dst, '\r', '\n')
	if req.Has(HdrVia) {
		for i := int(req.first[HdrVia]); i < req.n; i++ {
			f := req.field(i)
			if f.id != HdrVia {
				continue
			}
			dst = append(dst, "Via: "...)
			value := req.Raw[f.value:f.end]
			if i == int(req.first[HdrVia]) {
				dst = req.via.appendAnswer(dst, value, req.Flow.Remote)
			} else {
				dst = append(dst, value...)
			}
			dst = append(dst, '\r', '\n')
		}
	}
	dst = appendField(dst, "From: ", req.Header(HdrFrom))
	if to := req.Header(HdrTo); to != nil {
		dst = append(dst, "To: "...)
		dst = append(dst, to...)
		if toTag != "" && req.toOK && req.to.tag == nil {
			dst = append(dst, ";tag="...)
			dst = appendClean(dst, toTag)
		}
		dst = append(dst, '\r', '\n')
	}
	dst = appendField(dst, "Call-ID: ", req.Header(HdrCallID))
	return appendField(dst, "CSeq: ", req.Header(HdrCSeq))
}

func appendField(dst []byte, name string, value []byte) []byte {
	if value == nil {
		return dst
	}
	dst = append(dst, name...)
	dst = append(dst, value...)
	return append(dst, '\r', '\n')
}

// appendAnswer writes field, whose first value is v, with received and rport
// as they belong into a response.
func (v *Via) appendAnswer(dst, field []byte, src netip.AddrPort) []byte {
	if v.head == nil || !src.IsValid() {
		return append(dst, field...)
	}
	addr := src.Addr().Unmap().WithZone("")
	var buf [64]byte
	text := addr.AppendTo(buf[:0])
	differs := !foldEqual(text, v.Host)
	if !differs && !v.HasRPort && v.Received == nil {
		return append(dst, field...)
	}
	dst = append(dst, v.head...)
	for i := 0; i < len(v.Params); {
		p, ok := nextParam(v.Params, i)
		if !ok {
			break // cannot happen: parse went over the same text
		}
		name := v.Params[p.name:p.nameEnd]
		switch {
		case foldEqual(name, "rport"):
			dst = append(dst, ";rport="...)
			dst = strconv.AppendUint(dst, uint64(src.Port()), 10)
		case foldEqual(name, "received"):
		default:
			dst = append(dst, v.Params[i:p.next]...)
		}
		i = p.next
	}
	if differs || v.HasRPort {
		dst = append(dst, ";received="...)
		dst = append(dst, text...)
	}
	// What follows the first value is another Via of the same list.
	_, rest := nextItem(field)
	if rest != nil {
		dst = append(dst, ',')
		dst = append(dst, rest...)
	}
	return dst
}

// appendRefusal answers a request that Parse refused and that is Answerable,
// without state (RFC 3261 section 8.2.7).
func appendRefusal(dst []byte, req *Message, pe *ParseError) []byte {
	return AppendBody(AppendResponse(dst, req, pe.Code, pe.Reason, StatelessTag(req)), "", nil)
}

// AppendHeader writes one header field. Line ends in value become spaces, so
// no value can start a field of its own.
func AppendHeader(dst []byte, name, value string) []byte {
	dst = append(dst, name...)
	dst = append(dst, ':', ' ')
	dst = appendClean(dst, value)
	return append(dst, '\r', '\n')
}

func appendClean(dst []byte, s string) []byte {
	n := len(dst)
	dst = append(dst, s...)
	if strings.IndexByte(s, '\r') >= 0 || strings.IndexByte(s, '\n') >= 0 {
		for i := n; i < len(dst); i++ {
			if dst[i] == '\r' || dst[i] == '\n' {
				dst[i] = ' '
			}
		}
	}
	return dst
}

// AppendBody ends a message: Content-Type if there is a body, Content-Length,
// the empty line and the body.
func AppendBody(dst []byte, contentType string, body []byte) []byte {
	return append(AppendBodyHead(dst, contentType, len(body)), body...)
}

// AppendBodyHead is AppendBody without the body, which is sent from where it is.
func AppendBodyHead(dst []byte, contentType string, size int) []byte {
	if size > 0 {
		dst = AppendHeader(dst, "Content-Type", contentType)
	}
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendUint(dst, uint64(size), 10)
	return append(dst, "\r\n\r\n"...)
}

// ReasonPhrase gives the usual reason phrase of a status code. A code without
// one gets that of its class (RFC 3261 section 8.1.3.2).
func ReasonPhrase(code int) string {
	switch code {
	case 100:
		return "Trying"
	case 180:
		return "Ringing"
	case 181:
		return "Call Is Being Forwarded"
	case 182:
		return "Queued"
	case 183:
		return "Session Progress"
	case 200:
		return "OK"
	case 202:
		return "Accepted"
	case 204:
		return "No Notification"
	case 300:
		return "Multiple Choices"
	case 301:
		return "Moved Permanently"
	case 302:
		return "Moved Temporarily"
	case 305:
		return "Use Proxy"
	case 380:
		return "Alternative Service"
	case 400:
		return "Bad Request"
	case 401:
		return "Unauthorized"
	case 402:
		return "Payment Required"
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 405:
		return "Method Not Allowed"
	case 406:
		return "Not Acceptable"
	case 407:
		return "Proxy Authentication Required"
	case 408:
		return "Request Timeout"
	case 410:
		return "Gone"
	case 412:
		return "Conditional Request Failed"
	case 413:
		return "Request Entity Too Large"
	case 414:
		return "Request-URI Too Long"
	case 415:
		return "Unsupported Media Type"
	case 416:
		return "Unsupported URI Scheme"
	case 420:
		return "Bad Extension"
	case 421:
		return "Extension Required"
	case 423:
		return "Interval Too Brief"
	case 428:
		return "Use Identity Header"
	case 429:
		return "Provide Referrer Identity"
	case 430:
		return "Flow Failed"
	case 436:
		return "Bad Identity Info"
	case 437:
		return "Unsupported Credential"
	case 438:
		return "Invalid Identity Header"
	case 439:
		return "First Hop Lacks Outbound Support"
	case 470:
		return "Consent Needed"
	case 480:
		return "Temporarily Unavailable"
	case 481:
		return "Call/Transaction Does Not Exist"
	case 482:
		return "Loop Detected"
	case 483:
		return "Too Many Hops"
	case 484:
		return "Address Incomplete"
	case 485:
		return "Ambiguous"
	case 486:
		return "Busy Here"
	case 487:
		return "Request Terminated"
	case 488:
		return "Not Acceptable Here"
	case 489:
		return "Bad Event"
	case 491:
		return "Request Pending"
	case 493:
		return "Undecipherable"
	case 494:
		return "Security Agreement Required"
	case 500:
		return "Server Internal Error"
	case 501:
		return "Not Implemented"
	case 502:
		return "Bad Gateway"
	case 503:
		return "Service Unavailable"
	case 504:
		return "Server Time-out"
	case 505:
		return "Version Not Supported"
	case 513:
		return "Message Too Large"
	case 580:
		return "Precondition Failure"
	case 600:
		return "Busy Everywhere"
	case 603:
		return "Decline"
	case 604:
		return "Does Not Exist Anywhere"
	case 606:
		return "Not Acceptable"
	}
	switch code / 100 {
	case 1:
		return "Session Progress"
	case 2:
		return "OK"
	case 3:
		return "Multiple Choices"
	case 4:
		return "Bad Request"
	case 5:
		return "Server Internal Error"
	case 6:
		return "Busy Everywhere"
	}
	return "Unknown"
}
