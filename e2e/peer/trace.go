package peer

import (
	"bytes"
	"strconv"
	"strings"
)

// Trace is one SIP message as a peer saw it on the wire.
type Trace struct {
	Sent bool // by the peer; otherwise it received it
	Raw  []byte
}

// StartLine is the request line or the status line.
func (m Trace) StartLine() string {
	line, _, _ := bytes.Cut(m.Raw, []byte("\n"))
	return strings.TrimRight(string(line), "\r")
}

// Method is the request's method, or for a response the CSeq's.
func (m Trace) Method() string {
	if m.Status() != 0 {
		_, method, _ := strings.Cut(m.Header("CSeq"), " ")
		return strings.TrimSpace(method)
	}
	method, _, _ := strings.Cut(m.StartLine(), " ")
	return method
}

// Status is the response's code, 0 for a request.
func (m Trace) Status() int {
	rest, ok := strings.CutPrefix(m.StartLine(), "SIP/2.0 ")
	if !ok {
		return 0
	}
	code, _, _ := strings.Cut(rest, " ")
	n, _ := strconv.Atoi(code)
	return n
}

// IsRequest reports whether the message is a request of that method.
func (m Trace) IsRequest(method string) bool { return m.Status() == 0 && m.Method() == method }

func (m Trace) split() (head, body []byte) {
	if head, body, ok := bytes.Cut(m.Raw, []byte("\r\n\r\n")); ok {
		return head, body
	}
	head, body, _ = bytes.Cut(m.Raw, []byte("\n\n"))
	return head, body
}

// Header returns the first field of that name, "" when there is none. Names are compared without case; the compact forms of
// RFC 3261 and RFC 6665 are known for the fields that tests ask for.
func (m Trace) Header(name string) string {
	if all := m.Headers(name); len(all) > 0 {
		return all[0]
	}
	return ""
}

// Headers returns every field of that name, in order, folded lines joined.
func (m Trace) Headers(name string) []string {
	short := compact[strings.ToLower(name)]
	head, _ := m.split()
	lines := strings.Split(string(head), "\n")
	var out []string
	take := false
	for _, line := range lines[1:] {
		line = strings.TrimRight(line, "\r")
		if line != "" && (line[0] == ' ' || line[0] == '\t') {
			if take {
				out[len(out)-1] += " " + strings.TrimSpace(line)
			}
			continue
		}
		key, value, _ := strings.Cut(line, ":")
		key = strings.TrimSpace(key)
		take = strings.EqualFold(key, name) || short != "" && strings.EqualFold(key, short)
		if take {
			out = append(out, strings.TrimSpace(value))
		}
	}
	return out
}

var compact = map[string]string{
	"call-id": "i", "contact": "m", "content-encoding": "e", "content-length": "l", "content-type": "c", "event": "o",
	"from": "f", "supported": "k", "to": "t", "via": "v", "allow-events": "u",
}

// Body is what follows the headers.
func (m Trace) Body() []byte {
	_, body := m.split()
	return body
}

// ContentType is the body's type with its parameters, as RLMI's multipart needs them.
func (m Trace) ContentType() string { return m.Header("Content-Type") }

// CSeq is the number of the CSeq field, 0 when it is missing.
func (m Trace) CSeq() uint32 {
	num, _, _ := strings.Cut(m.Header("CSeq"), " ")
	n, _ := strconv.ParseUint(num, 10, 32)
	return uint32(n)
}

// SubscriptionState is the state word of a NOTIFY ("active", "pending", "terminated") and its parameters, names in lower case.
func (m Trace) SubscriptionState() (state string, params map[string]string) {
	fields := strings.Split(m.Header("Subscription-State"), ";")
	params = map[string]string{}
	for _, f := range fields[1:] {
		k, v, _ := strings.Cut(strings.TrimSpace(f), "=")
		params[strings.ToLower(strings.TrimSpace(k))] = strings.Trim(strings.TrimSpace(v), `"`)
	}
	return strings.TrimSpace(fields[0]), params
}

// Notifies are the NOTIFYs among the messages that the peer received, without retransmissions.
func Notifies(all []Trace) []Trace {
	return Requests(all, false, "NOTIFY")
}

// Requests are the requests of that method that the peer sent or received, without retransmissions (same branch).
func Requests(all []Trace, sent bool, method string) []Trace {
	var out []Trace
	seen := map[string]bool{}
	for _, m := range all {
		if m.Sent != sent || !m.IsRequest(method) {
			continue
		}
		via := m.Header("Via")
		if seen[via] {
			continue
		}
		seen[via] = true
		out = append(out, m)
	}
	return out
}

// Responses are the final responses to that method that the peer sent or received.
func Responses(all []Trace, sent bool, method string) []Trace {
	var out []Trace
	for _, m := range all {
		if m.Sent == sent && m.Status() >= 200 && m.Method() == method {
			out = append(out, m)
		}
	}
	return out
}
