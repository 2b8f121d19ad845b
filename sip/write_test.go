package sip

import (
	"net/netip"
	"strings"
	"testing"
)

func TestAppendResponse(t *testing.T) {
	const tail = "From: <sip:bob@example.org>;tag=b1\r\nTo: <sip:alice@example.com>;tag=new\r\n" +
		"Call-ID: c1@192.0.2.1\r\nCSeq: 7 SUBSCRIBE\r\n"
	for _, tt := range []struct{ name, via, src, want string }{
		{"CORE-19 same address", "SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bK1", "192.0.2.1:9999", "SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bK1"},
		{"CORE-19 other address", "SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bK1", "192.0.2.9:5070", "SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bK1;received=192.0.2.9"},
		{"CORE-19 host name", "SIP/2.0/UDP phone.example.org", "192.0.2.9:5070", "SIP/2.0/UDP phone.example.org;received=192.0.2.9"},
		{"NAT-01 rport, same address", "SIP/2.0/UDP 192.0.2.1:5070;rport;branch=z9hG4bK1", "192.0.2.1:5070", "SIP/2.0/UDP 192.0.2.1:5070;rport=5070;branch=z9hG4bK1;received=192.0.2.1"},
		{"NAT-01 rport, NAT", "SIP/2.0/UDP 10.0.0.1;branch=z9hG4bK1;rport", "192.0.2.1:40000", "SIP/2.0/UDP 10.0.0.1;branch=z9hG4bK1;rport=40000;received=192.0.2.1"},
		{"NAT-01 forged received and rport", "SIP/2.0/UDP 10.0.0.1;received=203.0.113.1;rport=1;branch=z9hG4bK1", "192.0.2.1:40000", "SIP/2.0/UDP 10.0.0.1;rport=40000;branch=z9hG4bK1;received=192.0.2.1"},
		{"forged received, same address", "SIP/2.0/UDP 192.0.2.1;received=203.0.113.1;branch=z9hG4bK1", "192.0.2.1:5060", "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1"},
		{"IPv6 same", "SIP/2.0/UDP [2001:DB8::1]:5070;branch=z9hG4bK1", "[2001:db8::1]:5070", "SIP/2.0/UDP [2001:DB8::1]:5070;branch=z9hG4bK1"},
		{"IPv6 other", "SIP/2.0/UDP [2001:db8::1]:5070;branch=z9hG4bK1", "[2001:db8::2%eth0]:5070", "SIP/2.0/UDP [2001:db8::1]:5070;branch=z9hG4bK1;received=2001:db8::2"},
		{"IPv4 on a dual-stack socket", "SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bK1", "[::ffff:192.0.2.1]:5070", "SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bK1"},
		{"no flow", "SIP/2.0/UDP 192.0.2.1:5070;rport", "", "SIP/2.0/UDP 192.0.2.1:5070;rport"},
		{"CORE-08 list in one field", "SIP / 2.0 / UDP 192.0.2.1 ; rport ;branch=z9hG4bK1 , SIP/2.0/TCP a;x=\",\",SIP/2.0/TCP b", "192.0.2.1:5060", "SIP / 2.0 / UDP 192.0.2.1;rport=5060;branch=z9hG4bK1;received=192.0.2.1, SIP/2.0/TCP a;x=\",\",SIP/2.0/TCP b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := parseText(t, request(map[string]string{"Via": tt.via}, "v: SIP/2.0/TCP p1.example.com;branch=2", "Via: SIP/2.0/TCP p2.example.com"), false)
			if tt.src != "" {
				m.Flow.Remote = netip.MustParseAddrPort(tt.src)
			}
			want := "SIP/2.0 200 OK\r\nVia: " + tt.want + "\r\nVia: SIP/2.0/TCP p1.example.com;branch=2\r\nVia: SIP/2.0/TCP p2.example.com\r\n" + tail
			got := AppendResponse(nil, m, 200, "", "new")
			if string(got) != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			parseText(t, string(AppendBody(got, "text/plain", []byte("x"))), true)
		})
	}
}

func TestAppendResponseTag(t *testing.T) {
	m := parseText(t, request(map[string]string{"To": "sip:alice@example.com;Tag=old"}), false)
	if b := string(AppendResponse(nil, m, 481, "Gone Fishing", "new")); !strings.Contains(b, "\r\nTo: sip:alice@example.com;Tag=old\r\n") ||
		!strings.HasPrefix(b, "SIP/2.0 481 Gone Fishing\r\n") {
		t.Errorf("CORE-08 tag kept: %s", b)
	}
	m = parseText(t, request(nil), false)
	if b := string(AppendResponse(nil, m, 100, "", "")); !strings.Contains(b, "\r\nTo: <sip:alice@example.com>\r\n") {
		t.Errorf("no tag: %s", b)
	}
}

func TestAppendHeaderAndBody(t *testing.T) {
	b := AppendHeader(nil, "Event", "presence\r\nVia: evil")
	if string(b) != "Event: presence  Via: evil\r\n" {
		t.Errorf("%q", b)
	}
	if b = AppendBody(nil, "", nil); string(b) != "Content-Length: 0\r\n\r\n" {
		t.Errorf("%q", b)
	}
	if b = AppendBody(nil, "text/plain", []byte("hi")); string(b) != "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi" {
		t.Errorf("%q", b)
	}
}

func TestReasonPhrase(t *testing.T) {
	// standards.md 0.4 and RFC 3261 section 21
	for _, code := range []int{
		100, 180, 181, 182, 183, 200, 202, 204, 300, 301, 302, 305, 380, 400, 401, 402, 403, 404, 405, 406,
		407, 408, 410, 412, 413, 414, 415, 416, 420, 421, 423, 480, 481, 482, 483, 484, 485, 486, 487, 488, 489, 491,
		493, 500, 501, 502, 503, 504, 505, 513, 600, 603, 604, 606,
	} {
		if p := ReasonPhrase(code); p == "" || p == "Unknown" || code%100 != 0 && p == ReasonPhrase(code/100*100) {
			t.Errorf("%d: %q", code, p)
		}
	}
	if ReasonPhrase(499) != "Bad Request" || ReasonPhrase(299) != "OK" || ReasonPhrase(42) != "Unknown" {
		t.Error("unknown codes")
	}
}
