package sip

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// crlf turns the line ends of a raw string literal into those of SIP.
func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

// request builds a SUBSCRIBE from the five fields every request needs, with
// some replaced or left out (value "-"), and more lines added.
func request(change map[string]string, more ...string) string {
	b := new(strings.Builder)
	line, ok := change[""]
	if !ok {
		line = "SUBSCRIBE sip:alice@example.com SIP/2.0"
	}
	b.WriteString(line + "\r\n")
	for _, f := range [][2]string{
		{"Via", "SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bKabc"},
		{"From", "<sip:bob@example.org>;tag=b1"},
		{"To", "<sip:alice@example.com>"},
		{"Call-ID", "c1@192.0.2.1"},
		{"CSeq", "7 SUBSCRIBE"},
	} {
		v, ok := change[f[0]]
		if !ok {
			v = f[1]
		}
		if v != "-" {
			b.WriteString(f[0] + ": " + v + "\r\n")
		}
	}
	for _, l := range more {
		b.WriteString(l + "\r\n")
	}
	return b.String() + "\r\n"
}

func parseText(t testing.TB, s string, stream bool) *Message {
	t.Helper()
	m := new(Message)
	if err := m.Parse([]byte(s), stream); err != nil {
		t.Fatalf("Parse: %v\n%s", err, s)
	}
	return m
}

func TestParseRequest(t *testing.T) {
	const text = `SUBSCRIBE sip:friends@example.com;x=1 SIP/2.0
Via: SIP/2.0/TCP [2001:db8::9]:5071;branch=z9hG4bK77;rport;alias, SIP/2.0/UDP 192.0.2.7
via: SIP/2.0/UDP host.example.org;branch=z9hG4bK11;received=192.0.2.9
Max-Forwards: 69
f: "Bob \"B\" B" <sip:bob@example.org;user=phone>;tag=77;epid=12
t: sip:friends@example.com
i: 1234@host
CSeq:	4294967295  SUBSCRIBE
m: <sip:bob@192.0.2.1:5070;transport=tcp>;expires=60, "x, y" <sip:a,b@example.org>
o: presence ; id = a1
k: eventlist,  gruu ,, outbound
SUPPORTED: path
Accept: application/pidf+xml;q=0.5, multipart/related
Expires: 600
c: multipart / related ; boundary="a;b"
Subject: hello
b: <sip:carol@example.net>
X-Empty:
l: 4

body`
	m := parseText(t, crlf(text), true)
	check := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	if !m.IsRequest() || m.Method() != SUBSCRIBE || m.Status() != 0 || m.Reason() != nil {
		t.Errorf("not a SUBSCRIBE request: %v %d", m.Method(), m.Status())
	}
	check("method", string(m.MethodToken()), "SUBSCRIBE")
	check("uri", string(m.RequestURI()), "sip:friends@example.com;x=1")
	check("CORE-21 Call-ID", string(m.CallID()), "1234@host")
	if m.CSeq() != 4294967295 {
		t.Errorf("CSeq %d", m.CSeq())
	}
	v := m.Via()
	check("via transport", string(v.Transport), "TCP")
	check("via host", string(v.Host), "2001:db8::9")
	check("via branch", string(v.Branch), "z9hG4bK77")
	check("via params", string(v.Params), ";branch=z9hG4bK77;rport;alias")
	if v.Port != 5071 || !v.HasRPort || len(v.RPort) != 0 || v.Received != nil {
		t.Errorf("via %+v", v)
	}
	check("from display", string(m.From().Display), `Bob \"B\" B`)
	check("from uri", string(m.From().URI), "sip:bob@example.org;user=phone")
	check("from tag", string(m.From().Tag()), "77")
	check("to uri", string(m.To().URI), "sip:friends@example.com")
	if m.To().Tag() != nil {
		t.Errorf("To has a tag")
	}
	list := func(seq func(func([]byte) bool)) string {
		var s []string
		for v := range seq {
			s = append(s, string(v))
		}
		return strings.Join(s, "|")
	}
	check("CORE-21 Via values", list(m.Values(HdrVia)), "SIP/2.0/TCP [2001:db8::9]:5071;branch=z9hG4bK77;rport;alias|"+
		"SIP/2.0/UDP 192.0.2.7|SIP/2.0/UDP host.example.org;branch=z9hG4bK11;received=192.0.2.9")
	check("contacts", list(m.Values(HdrContact)), `<sip:bob@192.0.2.1:5070;transport=tcp>;expires=60|"x, y" <sip:a,b@example.org>`)
	check("supported", list(m.Values(HdrSupported)), "eventlist|gruu|outbound|path")
	check("supported fields", list(m.Headers(HdrSupported)), "eventlist,  gruu ,, outbound|path")
	check("accept", list(m.Values(HdrAccept)), "application/pidf+xml;q=0.5|multipart/related")
	check("none", list(m.Values(HdrRoute))+list(m.Headers(HdrRoute)), "")
	pkg, id, params := m.Event()
	check("event", string(pkg)+"|"+string(id)+"|"+string(params), "presence|a1|; id = a1")
	mt, params := m.ContentType()
	check("content type", string(mt)+"|"+string(params), `multipart/related|; boundary="a;b"`)
	if b, ok := Param(params, "Boundary"); !ok || string(b) != "a;b" {
		t.Errorf("boundary %q", b)
	}
	if n, present, err := m.Uint(HdrExpires); n != 600 || !present || err != nil {
		t.Errorf("Expires %d %v %v", n, present, err)
	}
	if _, present, err := m.Uint(HdrMinExpires); present || err != nil {
		t.Errorf("Min-Expires present")
	}
	check("other", string(m.Other("subject")), "hello")
	check("other compact", string(m.Other("Referred-By")), "<sip:carol@example.net>")
	check("other known", string(m.Other("call-id")), "1234@host")
	if e := m.Other("x-empty"); e == nil || len(e) != 0 {
		t.Errorf("empty field: %v", e)
	}
	if m.Other("X-None") != nil || m.Header(HdrRoute) != nil || m.Has(HdrRoute) || m.Has(HdrOther) || m.Header(HdrOther) != nil {
		t.Error("absent field found")
	}
	check("body", string(m.Body()), "body")
}

func TestParseKeepsFlowAndForgetsTheRest(t *testing.T) {
	m := parseText(t, request(nil, "Event: presence", "X-A: 1"), false)
	m.Flow = Flow{Proto: TCP, Remote: netip.MustParseAddrPort("192.0.2.1:5070"), Conn: 3}
	m.At = time.Unix(1, 0)
	flow := m.Flow
	res := "SIP/2.0 200 OK\r\n" + strings.SplitN(request(map[string]string{"CSeq": "1 NOTIFY"}), "\r\n", 2)[1]
	if err := m.Parse([]byte(res), false); err != nil {
		t.Fatal(err)
	}
	if m.Flow != flow || !m.At.Equal(time.Unix(1, 0)) {
		t.Error("Flow or At changed")
	}
	if m.IsRequest() || m.Status() != 200 || string(m.Reason()) != "OK" || m.Method() != NOTIFY ||
		string(m.MethodToken()) != "NOTIFY" || m.RequestURI() != nil || m.Has(HdrEvent) || m.Other("X-A") != nil {
		t.Error("something of the old message is left")
	}
}

func TestParseWhiteSpaceAndLineEnds(t *testing.T) {
	for name, text := range map[string]string{
		"CORE-21 white space in Via":  request(map[string]string{"Via": "SIP / 2.0 / UDP 192.0.2.1 : 5070 ; branch = z9hG4bKabc"}),
		"CORE-21 folded Via":          request(map[string]string{"Via": "SIP/2.0/UDP\r\n 192.0.2.1:5070\r\n\t;branch=z9hG4bKabc"}),
		"line feeds only":             strings.ReplaceAll(request(nil), "\r\n", "\n"),
		"line feeds only, folded":     strings.ReplaceAll(request(map[string]string{"Via": "SIP/2.0/UDP\n  192.0.2.1:5070;branch=z9hG4bKabc"}), "\r\n", "\n"),
		"line ends before start line": "\r\n\r\n" + request(nil),
		"space before colon": strings.NewReplacer("Via:", "vIA \t:", "From:", "FROM :", "CSeq:", "cseq:").
			Replace(request(nil)),
		"no angle brackets":     request(map[string]string{"From": "sip:bob@example.org;tag=b1", "To": "sip:alice@example.com"}),
		"space around params":   request(map[string]string{"From": "Bob<sip:bob@example.org> ; tag = b1 "}),
		"unquoted display name": request(map[string]string{"From": "Bob, the 2nd (x) <sip:bob@example.org>;tag=b1"}),
		"quoted > in display":   request(map[string]string{"From": `"> \" <" <sip:bob@example.org>;tag=b1`}),
		"quoted tag":            request(map[string]string{"From": `<sip:bob@example.org>;x="a;tag=9";tag=b1`}),
	} {
		t.Run(name, func(t *testing.T) {
			m := parseText(t, text, false)
			v := m.Via()
			if string(v.Host) != "192.0.2.1" || v.Port != 5070 || string(v.Branch) != "z9hG4bKabc" || string(v.Transport) != "UDP" {
				t.Errorf("via %s", m.Header(HdrVia))
			}
			if string(m.From().URI) != "sip:bob@example.org" || string(m.From().Tag()) != "b1" || m.CSeq() != 7 {
				t.Errorf("from %s", m.Header(HdrFrom))
			}
			if m.Raw[0] != 'S' || len(m.Body()) != 0 {
				t.Errorf("raw %q", m.Raw)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	many := make([]string, 300)
	for i := range many {
		many[i] = fmt.Sprintf("X-%d: y", i)
	}
	type M = map[string]string
	ch := func(k, v string) string { return request(M{k: v}) }
	tests := []struct {
		name, text string
		code       int
		reason     string
		answerable bool
	}{
		{"no Via", ch("Via", "-"), 400, "Via is missing", false},
		{"no From", ch("From", "-"), 400, "From is missing", true},
		{"no To", ch("To", "-"), 400, "To is missing", true},
		{"no Call-ID", ch("Call-ID", "-"), 400, "Call-ID is missing", true},
		{"no CSeq", ch("CSeq", "-"), 400, "CSeq is missing", false},
		{"two From", request(nil, "f: <sip:x@example.com>;tag=2"), 400, "From is there more than once", true},
		{"two To", request(nil, "To: <sip:alice@example.com>"), 400, "To is there more than once", true},
		{"two Call-ID", request(nil, "i: c1@192.0.2.1"), 400, "Call-ID is there more than once", true},
		{"two CSeq", request(nil, "CSeq: 7 SUBSCRIBE"), 400, "CSeq is there more than once", true},
		{"EV-02 two Event", request(nil, "Event: presence", "o: dialog"), 400, "Event is there twice with different values", true},
		{"PUB-01 two SIP-If-Match", request(nil, "SIP-If-Match: a", "SIP-If-Match: b"), 400, "SIP-If-Match is there twice with different values", true},
		{"two Content-Length", request(nil, "l: 0", "Content-Length: 1"), 400, "Content-Length is there twice with different values", true},
		{"method mismatch", ch("CSeq", "7 NOTIFY"), 400, "CSeq has another method than the request line", true},
		{"unknown method mismatch", request(M{"": "FROB sip:a@example.com SIP/2.0", "CSeq": "7 NOTIFY"}), 501, "CSeq has another method than the request line", true},
		{"method case", ch("CSeq", "7 subscribe"), 400, "CSeq has another method than the request line", true},
		{"CSeq too large", ch("CSeq", "4294967296 SUBSCRIBE"), 400, "CSeq is not a 32-bit number and a method", true},
		{"CSeq no number", ch("CSeq", "x SUBSCRIBE"), 400, "CSeq is not a 32-bit number and a method", true},
		{"CSeq no method", ch("CSeq", "7"), 400, "CSeq is not a 32-bit number and a method", true},
		{"CSeq two methods", ch("CSeq", "7 SUBSCRIBE NOTIFY"), 400, "CSeq is not a 32-bit number and a method", true},
		{"Call-ID with space", ch("Call-ID", "a b"), 400, "Call-ID has a space or control character", true},
		{"CORE-20 short body", request(nil, "Content-Length: 5"), 400, "body is shorter than Content-Length", true},
		{"CORE-20 huge Content-Length", request(nil, "Content-Length: 99999999999999999999"), 400, "body is shorter than Content-Length", true},
		{"negative Content-Length", request(nil, "Content-Length: -1"), 400, "Content-Length is not a number", true},
		{"SIP/3.0", ch("", "SUBSCRIBE sip:a@example.com SIP/3.0"), 505, "SIP version is not 2.0", true},
		{"not SIP", ch("", "GET /index.html HTTP/1.1"), 400, "Request-URI is not a URI", true},
		{"no version", ch("", "SUBSCRIBE sip:a@example.com"), 400, "request line has no SIP version", true},
		{"two spaces", ch("", "SUBSCRIBE  sip:a@example.com SIP/2.0"), 400, "Request-URI has a space, quote, bracket or control character", true},
		{"no URI scheme", ch("", "SUBSCRIBE alice SIP/2.0"), 400, "Request-URI is not a URI", true},
		{"NUL in name", request(nil, "X\x00Y: z"), 400, "line 7: no header name and colon", true},
		{"control in name", request(nil, "Ev\x01ent: presence"), 400, "line 7: no header name and colon", true},
		{"empty name", request(nil, ": presence"), 400, "line 7: no header name and colon", true},
		{"space in name", request(nil, "Ev ent: presence"), 400, "line 7: no header name and colon", true},
		{"no colon", request(nil, "nonsense"), 400, "line 7: no header name and colon", true},
		{"bare CR", request(nil, "Event: presence\rVia: x"), 400, "carriage return without line feed in a header field", true},
		{"NUL in value", request(nil, "Event: pre\x00sence"), 400, "NUL octet in a header field", true},
		{"starts with fold", strings.Replace(request(nil), "\r\nVia", "\r\n Via", 1), 400, "line 2: header name starts with a space", false},
		{"no empty line", strings.TrimSuffix(request(nil), "\r\n"), 400, "no empty line after the header fields", true},
		{"cut off", request(nil, "X-Y: z")[:150], 400, "no empty line after the header fields", false},
		{"one line", "SUBSCRIBE sip:a@example.com SIP/2.0", 400, "start line has no end", false},
		{"empty", "", 400, "start line has no end", false},
		{"ACK", request(M{"": "ACK sip:a@example.com SIP/2.0", "CSeq": "7 BYE"}), 400, "CSeq has another method than the request line", false},
		{"too many fields", request(nil, many...), 513, "more than 256 header fields", true},
		{"too long", request(nil, "X: "+strings.Repeat("y", 70000)), 513, "header fields are longer than 65535 octets", true},
		{"Via port", ch("Via", "SIP/2.0/UDP 192.0.2.1:65536"), 400, "Via has a bad port", false},
		{"Via port 0", ch("Via", "SIP/2.0/UDP 192.0.2.1:0"), 400, "Via has a bad port", false},
		{"Via no host", ch("Via", "SIP/2.0/UDP ;branch=z9hG4bK1"), 400, "Via has no sent-by host", false},
		{"Via no transport", ch("Via", "SIP/2.0 192.0.2.1"), 400, "Via does not start with SIP/2.0/transport", false},
		{"Via two branches", ch("Via", "SIP/2.0/UDP 192.0.2.1;branch=a;Branch=b"), 400, "Via has two branch parameters", true},
		{"Via empty branch", ch("Via", "SIP/2.0/UDP 192.0.2.1;branch"), 400, "Via has an empty branch", true},
		{"Via bare cookie", ch("Via", "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK"), 400, "Via branch is nothing but the cookie z9hG4bK", true},
		{"Via semicolons", ch("Via", "SIP/2.0/UDP 192.0.2.1;;branch=z9hG4bK1"), 400, "Via has a bad parameter", true},
		{"Via two words", ch("Via", "SIP/2.0/UDP 192.0.2.1 x"), 400, "Via has text after its host", true},
		{"Via bad IPv6", ch("Via", "SIP/2.0/UDP [192.0.2.1:z]"), 400, "Via has a bad IPv6 address", false},
		{"Via bad rport", ch("Via", "SIP/2.0/UDP 192.0.2.1;rport=x"), 400, "Via has a bad rport", true},
		{"From unclosed quote", ch("From", `"Bob <sip:bob@example.org>;tag=1`), 400, "From: display name has no closing quote", true},
		{"From unclosed <", ch("From", `<sip:bob@example.org;tag=1`), 400, "From: address has no closing >", true},
		{"From empty", ch("From", `<>;tag=1`), 400, "From: address has no URI", true},
		{"From blank", ch("From", ``), 400, "From: address is empty", true},
		{"From space", ch("From", `<sip:bob @example.org>;tag=1`), 400, "From: URI has a space or control character", true},
		{"From two tags", ch("From", `<sip:bob@example.org>;tag=1;TAG=1`), 400, "From: address has two tags", true},
		{"From empty tag", ch("From", `<sip:bob@example.org>;tag`), 400, "From: address has an empty tag", true},
		{"From comma", ch("From", `sip:bob@example.org,sip:x@example.org`), 400, "From: URI with a comma or ? needs angle brackets", true},
		{"To two", ch("To", `<sip:bob@example.org>, <sip:x@example.org>`), 400, "To: address has text after the URI", true},
		{"To semicolons", ch("To", `<sip:bob@example.org>;;`), 400, "To: address has a bad parameter", true},
		{"response code", ch("", "SIP/2.0 2000 OK"), 400, "status code is not a number from 100 to 699", false},
		{"response no code", ch("", "SIP/2.0"), 400, "status line has no status code", false},
		{"response version", ch("", "SIP/2.1 200 OK"), 505, "SIP version is not 2.0", false},
	}
	var m Message // reused: nothing of a bad message may stay
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := m.Parse([]byte(tt.text), false)
			var pe *ParseError
			if !errors.As(err, &pe) {
				t.Fatalf("got %v, want a ParseError", err)
			}
			if pe.Code != tt.code || pe.Reason != tt.reason || pe.Answerable != tt.answerable {
				t.Errorf("got  %d %q %v\nwant %d %q %v", pe.Code, pe.Reason, pe.Answerable, tt.code, tt.reason, tt.answerable)
			}
			if pe.Answerable {
				m.Flow.Remote = netip.MustParseAddrPort("192.0.2.1:5070")
				b := AppendBody(AppendResponse(nil, &m, pe.Code, pe.Reason, "t"), "", nil)
				var r Message
				// What was wrong with the request may be wrong with its echo.
				if rerr := r.Parse(b, true); rerr != nil && !strings.HasSuffix(rerr.Error(), tt.reason) {
					t.Errorf("response: %v\n%s", rerr, b)
				}
			}
			if err := m.Parse([]byte(request(nil)), false); err != nil {
				t.Errorf("good message afterwards: %v", err)
			}
		})
	}
}

func TestStreamNeedsContentLength(t *testing.T) {
	var m Message
	err := m.Parse([]byte(request(nil)), true)
	if pe, ok := err.(*ParseError); !ok || pe.Reason != "Content-Length is missing" || !pe.Answerable {
		t.Errorf("CORE-20: got %v", err)
	}
	text := request(nil) + "body to the end"
	if err := m.Parse([]byte(text), false); err != nil || string(m.Body()) != "body to the end" {
		t.Errorf("CORE-20 datagram without Content-Length: %v %q", err, m.Body())
	}
	text = request(nil, "Content-Length: 4", "l: 4") + "bodyNOTIFY"
	if err := m.Parse([]byte(text), false); err != nil || string(m.Body()) != "body" || !bytes.HasSuffix(m.Raw, []byte("\r\n\r\nbody")) {
		t.Errorf("CORE-20 longer datagram: %v %q", err, m.Body())
	}
}

func TestFieldLimit(t *testing.T) {
	more := make([]string, MaxFields-5)
	for i := range more {
		more[i] = fmt.Sprintf("X-%d: v%d", i, i)
	}
	m := parseText(t, request(nil, more...), false)
	for i := range more {
		if got := string(m.Other(fmt.Sprintf("x-%d", i))); got != fmt.Sprintf("v%d", i) {
			t.Fatalf("field %d: %q", i, got)
		}
	}
	more[len(more)-1] = "Event: late"
	if m = parseText(t, request(nil, more...), false); string(m.Header(HdrEvent)) != "late" {
		t.Errorf("last field: %q", m.Header(HdrEvent))
	}
}

func TestUint(t *testing.T) {
	for _, tt := range []struct {
		h    HeaderID
		line string
		want uint32
		ok   bool
	}{
		{HdrExpires, "Expires: 3600", 3600, true},
		{HdrExpires, "Expires: 0068", 68, true},
		{HdrExpires, "Expires: 4294967295", 4294967295, true},
		{HdrExpires, "Expires: 10000000000000000000000000000", 4294967295, true},
		{HdrExpires, "Expires:", 0, false},
		{HdrExpires, "Expires: -1", 0, false},
		{HdrExpires, "Expires: 3600;x", 0, false},
		{HdrExpires, "Expires: 36 00", 0, false},
		{HdrExpires, "Expires: Thu, 01 Dec 1994 16:00:00 GMT", 0, false},
		{HdrRetryAfter, "Retry-After: 120 (in a meeting)", 120, true},
		{HdrRetryAfter, "Retry-After: 18000;duration=3600", 18000, true},
	} {
		m := parseText(t, request(nil, tt.line), false)
		v, present, err := m.Uint(tt.h)
		if v != tt.want || !present || (err == nil) != tt.ok {
			t.Errorf("%s: got %d %v %v", tt.line, v, present, err)
		}
	}
}

func TestHeaderNames(t *testing.T) {
	for id := HdrOther + 1; id < hdrCount; id++ {
		name := id.String()
		if name == "" {
			t.Fatalf("header %d has no name", id)
		}
		for _, s := range []string{name, strings.ToUpper(name), strings.ToLower(name)} {
			if got := lookupHeader(s); got != id {
				t.Errorf("%s: got %v", s, got)
			}
		}
		if got := lookupHeader(name + "x"); got != HdrOther {
			t.Errorf("%sx: got %v", name, got)
		}
	}
	for c, want := range map[string]HeaderID{
		"v": HdrVia, "f": HdrFrom, "t": HdrTo, "i": HdrCallID, "m": HdrContact, "c": HdrContentType,
		"e": HdrContentEncoding, "l": HdrContentLength, "k": HdrSupported, "o": HdrEvent, "u": HdrAllowEvents,
		"s": HdrOther, "z": HdrOther,
	} {
		if lookupHeader(c) != want || lookupHeader(strings.ToUpper(c)) != want {
			t.Errorf("CORE-21 compact %s: got %v, want %v", c, lookupHeader(c), want)
		}
	}
	for name, short := range map[string]string{
		"Subject": "s", "refer-to": "r", "Identity": "y", "Referred-By": "b", "Accept-Contact": "a",
		"Reject-Contact": "J", "Session-Expires": "x", "Request-Disposition": "D",
	} {
		m := parseText(t, request(nil, "X-Other: no", short+": yes"), false)
		if got := string(m.Other(name)); got != "yes" {
			t.Errorf("CORE-21 compact %s of %s: %q", short, name, got)
		}
	}
	for m := INVITE; m <= REFER; m++ {
		if got := lookupMethod([]byte(m.String())); got != m {
			t.Errorf("%v: got %v", m, got)
		}
		if got := lookupMethod([]byte(strings.ToLower(m.String()))); got != MethodUnknown {
			t.Errorf("lower case %v: got %v", m, got)
		}
	}
}

func TestParam(t *testing.T) {
	for _, tt := range []struct {
		params, name, want string
		ok                 bool
	}{
		{";a=b;c", "A", "b", true},
		{";a=b;c", "c", "", true},
		{"a=b;c", "a", "b", true},
		{"a=b;c", "c", "", true},
		{" ; a = b ; c", "a", "b", true},
		{`;x="a;c=\"1\"";c=2`, "c", "2", true},
		{`;x="a;c=\"1\""`, "x", `a;c=\"1\"`, true},
		{";id=x=y", "id", "x=y", true},
		{";a=b", "d", "", false},
		{"", "a", "", false},
		{";;a", "a", "", false},
		{";a=", "a", "", false},
		{`;a="b`, "a", "", false},
	} {
		v, ok := Param([]byte(tt.params), tt.name)
		if string(v) != tt.want || ok != tt.ok {
			t.Errorf("%q %s: got %q %v", tt.params, tt.name, v, ok)
		}
	}
}

func TestParseViaAndNameAddr(t *testing.T) {
	v, err := ParseVia([]byte("SIP/2.0/TLS h.example.com;maddr=192.0.2.5;received=2001:db8::1;rport=77;branch=x"))
	if err != nil || string(v.Maddr) != "192.0.2.5" || string(v.Received) != "2001:db8::1" || string(v.RPort) != "77" || !v.HasRPort {
		t.Errorf("%+v %v", v, err)
	}
	if _, err = ParseVia([]byte("SIP/2.0/UDP a, SIP/2.0/UDP b")); err == nil {
		t.Error("two Via values accepted")
	}
	n, err := ParseNameAddr([]byte(`"A" <sip:a@example.com?x=y>;q=0.5;expires=5`))
	if q, _ := Param(n.Params, "q"); err != nil || string(n.URI) != "sip:a@example.com?x=y" || string(q) != "0.5" || n.Tag() != nil {
		t.Errorf("%+v %v", n, err)
	}
	n = NameAddr{Params: []byte(";tag=9")}
	if string(n.Tag()) != "9" {
		t.Error("tag of a NameAddr built by hand")
	}
	if n, err = ParseNameAddr([]byte("*")); err != nil || string(n.URI) != "*" {
		t.Errorf("Contact *: %v", err)
	}
	if _, err = ParseNameAddr([]byte("sip:a@example.com?x=y")); err == nil {
		t.Error("? without angle brackets accepted")
	}
}

// TestClientMessages reads what real clients sent.
func TestClientMessages(t *testing.T) {
	files, err := filepath.Glob("testdata/messages/*.sip")
	if err != nil || len(files) < 12 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			raw, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := FrameLen(raw); n != len(raw) || err != nil {
				t.Fatalf("FrameLen %d of %d, %v", n, len(raw), err)
			}
			m := parseText(t, string(raw), true)
			kind := strings.TrimSuffix(f[strings.LastIndexByte(f, '-')+1:], ".sip")
			if m.IsRequest() && m.Method().String() != kind || !m.IsRequest() && fmt.Sprintf("R%d", m.Status()) != kind {
				t.Errorf("got %v %d", m.Method(), m.Status())
			}
			line := func(name string) string { // the naive way
				for l := range strings.SplitSeq(string(raw), "\r\n") {
					if v, ok := strings.CutPrefix(l, name+": "); ok {
						return v
					}
				}
				return ""
			}
			for id := HdrOther + 1; id < hdrCount; id++ {
				if got, want := string(m.Header(id)), line(id.String()); got != want {
					t.Errorf("%v: got %q, want %q", id, got, want)
				}
			}
			_, body, _ := strings.Cut(string(raw), "\r\n\r\n")
			if string(m.Body()) != body {
				t.Errorf("body %q", m.Body())
			}
			for _, n := range []*NameAddr{m.From(), m.To()} {
				if _, err := ParseURI(string(n.URI)); err != nil {
					t.Errorf("%s: %v", n.URI, err)
				}
			}
			if !strings.HasPrefix(string(m.Via().Branch), "z9hG4bK") || string(m.Via().Host) != "127.0.0.1" || m.From().Tag() == nil {
				t.Errorf("Via %s, From %s", m.Header(HdrVia), m.Header(HdrFrom))
			}
			if m.IsRequest() {
				if pkg, _, _ := m.Event(); !strings.HasPrefix(string(pkg), "presence") {
					t.Errorf("Event %s", pkg)
				}
			}
		})
	}
}

// TestTorture reads the messages of RFC 4475; what a whole server does with
// them stands in package server. Where the RFC leaves a choice, the comment says
// what was chosen.
func TestTorture(t *testing.T) {
	want := map[string]int{ // status a request gets, 1 for a dropped response, 0 for a good message
		"badaspec": 0, // space inside <>: ignored
		"baddn":    0, // unquoted display name with a comma: the whole text is the name
		"baddate":  0, // Date is not read here
		"escruri":  0, // headers in the Request-URI: URI.Key drops them
		"regbadct": 0, // Contact is not read here

		"badbranch": 400, "badinv01": 400, "clerr": 400, "insuf": 400, "ltgtruri": 400,
		"lwsruri": 400, "lwsstart": 400, "mcl01": 400, "mismatch01": 400, "multi01": 400,
		"ncl": 400, "quotbal": 400, "scalar02": 400, "trws": 400,
		"badvers": 505, "mismatch02": 501,
		"bigcode": 1, "scalarlg": 1,
	}
	files, err := filepath.Glob("testdata/torture/*.dat")
	if err != nil || len(files) < 49 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".dat")
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if name == "baddn" { // the archive has it without its empty line
				raw = append(raw, "\r\n"...)
			}
			var m Message
			err = m.Parse(raw, false)
			got := 0
			if pe, ok := err.(*ParseError); ok {
				if got = pe.Code; !m.IsRequest() {
					got = 1
				}
				if pe.Answerable != m.IsRequest() {
					t.Errorf("answerable: %v, %v", pe.Answerable, pe)
				}
			}
			if got != want[name] {
				t.Errorf("got %d %v, want %d", got, err, want[name])
			}
		})
	}

	load := func(name string) *Message {
		raw, err := os.ReadFile("testdata/torture/" + name + ".dat")
		if err != nil {
			t.Fatal(err)
		}
		return parseText(t, string(raw), false)
	}
	m := load("wsinv")
	if string(m.To().Tag()) != "1918181833n" || string(m.From().Tag()) != "98asjd8" || m.CSeq() != 9 ||
		string(m.Via().Host) != "192.0.2.2" || string(m.From().Display) != `J Rosenberg \\\"` {
		t.Errorf("wsinv: %+v %+v", m.To(), m.From())
	}
	if m.Other("Subject") == nil || string(m.Other("unknownheaderwithunusualvalue")) != ";;,,;;,;" {
		t.Error("wsinv: other fields")
	}
	m = load("intmeth")
	if m.Method() != MethodUnknown || string(m.From().Tag()) != "_token~1'+`*%!-." {
		t.Errorf("intmeth: %v %s", m.Method(), m.From().Tag())
	}
	u, err := ParseURI(string(m.RequestURI()))
	if err != nil || u.User != "1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*" || u.Host != "example.com" {
		t.Errorf("intmeth: %+v %v", u, err)
	}
	u, err = ParseURI(string(load("semiuri").RequestURI()))
	if err != nil || u.User != "user;par=u%40example.net" || u.Host != "example.com" {
		t.Errorf("semiuri: %+v %v", u, err)
	}
	if m = load("dblreq"); len(m.Body()) != 0 || m.Method() != REGISTER {
		t.Error("CORE-20 dblreq: octets after the body")
	}
	if m = load("noreason"); m.Status() != 100 || len(m.Reason()) != 0 {
		t.Error("noreason")
	}
	if _, err = ParseURI(string(load("unkscm").RequestURI())); !errors.Is(err, ErrScheme) {
		t.Errorf("CORE-02 unkscm: %v", err)
	}
	n := 0
	for range load("longreq").Values(HdrVia) {
		n++
	}
	if n != 34 {
		t.Errorf("longreq: %d Via values", n)
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	text := []byte(subscribe768)
	var m Message
	if n := testing.AllocsPerRun(100, func() {
		if err := m.Parse(text, true); err != nil {
			t.Fatal(err)
		}
		for range m.Values(HdrAccept) {
		}
		for range m.Headers(HdrVia) {
		}
		m.Uint(HdrExpires)
		m.Event()
		m.ContentType()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
