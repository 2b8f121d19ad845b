package sip

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// subscribe768 is an ordinary list SUBSCRIBE of 768 octets.
var subscribe768 = func() string {
	s := crlf(`SUBSCRIBE sip:friends@example.com SIP/2.0
Via: SIP/2.0/UDP 192.0.2.17:5062;branch=z9hG4bK.x7Hq3PzLk;rport
From: "Alice Example" <sip:alice@example.com>;tag=q6Tb1xYpE
To: <sip:friends@example.com>
CSeq: 20 SUBSCRIBE
Call-ID: mU9pCq0vXn
Max-Forwards: 70
Supported: eventlist, replaces, outbound, gruu
Event: presence
Expires: 600
Accept: multipart/related, application/rlmi+xml, application/pidf+xml
Contact: <sip:alice@192.0.2.17:5062;transport=udp>;+sip.instance="<urn:uuid:8f0e3b52-6f0c-0031-a3a1-3e21d7a14c52>"
Allow: INVITE, ACK, CANCEL, OPTIONS, BYE, REFER, NOTIFY, MESSAGE, SUBSCRIBE, INFO, PRACK, UPDATE
User-Agent: Phone/5.1
Content-Length: 0

`)
	return strings.Replace(s, "Phone/5.1", "Phone/5.1 "+strings.Repeat("x", 768-1-len(s)), 1)
}()

func BenchmarkParseSubscribe(b *testing.B) {
	text := []byte(subscribe768)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	var m Message
	for b.Loop() {
		if err := m.Parse(text, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFrameLen(b *testing.B) {
	text := []byte(subscribe768)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if n, _ := FrameLen(text); n != len(text) {
			b.Fatal(n)
		}
	}
}

func BenchmarkAppendResponse(b *testing.B) {
	var m Message
	if err := m.Parse([]byte(subscribe768), false); err != nil {
		b.Fatal(err)
	}
	m.Flow.Remote = netip.MustParseAddrPort("192.0.2.17:40000")
	buf := make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendResponse(buf[:0], &m, 200, "", "0a1b2c3d")
		buf = AppendHeader(buf, "Expires", "600")
		buf = AppendBody(buf, "", nil)
	}
}

// BenchmarkRefuse is what new work costs that is refused, without the kernel's
// part of it.
func BenchmarkRefuse(b *testing.B) {
	text := []byte(subscribe768)
	b.ReportAllocs()
	var m Message
	m.Flow.Remote = netip.MustParseAddrPort("192.0.2.17:40000")
	for b.Loop() {
		if err := m.Parse(text, false); err != nil {
			b.Fatal(err)
		}
		if len(Overloaded(&m)) == 0 {
			b.Fatal("no answer")
		}
	}
}

func BenchmarkURIKey(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		u, err := ParseURI("sip:alice@Example.com;transport=tcp")
		if err != nil || u.Key() != "sip:alice@example.com" {
			b.Fatal(err)
		}
	}
}

func BenchmarkPlain(b *testing.B) {
	uri := []byte("sip:alice@example.com:5070")
	b.ReportAllocs()
	for b.Loop() {
		if aor, _, ok := Plain(uri); !ok || string(aor) != "sip:alice@example.com" {
			b.Fatal(string(aor))
		}
	}
}

// BenchmarkServerTransaction is a request that is answered at once, in a table
// of 20,000 from which as many leave as come.
func BenchmarkServerTransaction(b *testing.B) {
	const held = 20000
	texts := make([][]byte, 2*held) // more than are held, so that none is a repetition
	for i := range texts {
		texts[i] = fmt.Appendf(nil, "SUBSCRIBE sip:alice@example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.17:5062;branch=z9hG4bK.x7Hq3P%06x;rport\r\n"+
			"From: \"Bob Example\" <sip:bob@example.org>;tag=q6Tb%06x\r\nTo: <sip:alice@example.com>\r\nCall-ID: mU9pCq0vXn%06x\r\nCSeq: 20 SUBSCRIBE\r\n\r\n", i, i, i)
	}
	now := time.Now()
	tx := NewTransactions(0, discard{}, now)
	resp := []byte("SIP/2.0 200 OK\r\n\r\n")
	flow := Flow{Local: ourAddr, Remote: peerAddr}
	var m Message
	i := 0
	one := func() {
		if err := m.Parse(texts[i%len(texts)], false); err != nil {
			b.Fatal(err)
		}
		m.Flow = flow
		id, arrival := tx.Receive(now, &m)
		if arrival != Fresh {
			b.Fatal(arrival)
		}
		tx.Respond(now, id, resp)
		now = now.Add(TimerJ / held)
		tx.Advance(now, nil)
		i++
	}
	for range held + 1 {
		one()
	}
	b.ReportAllocs()
	for b.Loop() {
		one()
	}
}
