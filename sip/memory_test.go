package sip

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"
)

// liveHeap is the bytes of live objects.
func liveHeap() uint64 {
	runtime.GC()
	runtime.GC() // what the first freed is swept now
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// discard is a Sender that keeps nothing.
type discard struct{}

func (discard) Send(Flow, []byte, uint64) error              { return nil }
func (discard) SendParts(Flow, []byte, []byte, uint64) error { return nil }

const inTable = 100000 // transactions of the memory benchmarks

// BenchmarkServerTransactionMemory is the memory of a completed server
// transaction, which lives for timer J: an ordinary SUBSCRIBE and its 200.
func BenchmarkServerTransactionMemory(b *testing.B) {
	for b.Loop() {
		now := time.Now()
		before := liveHeap()
		tx := NewTransactions(0, discard{}, now)
		var m Message
		var raw, buf []byte
		for i := range inTable {
			raw = fmt.Appendf(raw[:0], "SUBSCRIBE sip:alice@example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.17:5062;branch=z9hG4bK.x7Hq3P%06x;rport\r\n"+
				"From: \"Bob Example\" <sip:bob@example.org>;tag=q6Tb%06x\r\nTo: <sip:alice@example.com>\r\nCall-ID: mU9pCq0vXn%06x\r\nCSeq: 20 SUBSCRIBE\r\n"+
				"Contact: <sip:bob@192.0.2.17:5062>\r\nEvent: presence\r\nExpires: 600\r\nContent-Length: 0\r\n\r\n", i, i, i)
			if err := m.Parse(raw, false); err != nil {
				b.Fatal(err)
			}
			m.Flow = Flow{Local: ourAddr, Remote: netip.MustParseAddrPort("192.0.2.17:40000")}
			id, arrival := tx.Receive(now, &m)
			if arrival != Fresh {
				b.Fatal(arrival)
			}
			buf = AppendResponse(buf[:0], &m, 200, "OK", "0a1b2c3d4e5f")
			buf = AppendHeader(buf, "Contact", "<sip:192.0.2.9:5060>")
			buf = AppendHeader(buf, "Expires", "600")
			buf = AppendHeader(buf, "Allow-Events", "presence, presence.winfo")
			buf = AppendHeader(buf, "Server", strings.Repeat("x", 450-len(buf)-len("Server: \r\nContent-Length: 0\r\n\r\n")))
			buf = AppendBody(buf, "", nil)
			tx.Respond(now, id, bytes.Clone(buf))
		}
		b.ReportMetric(float64(liveHeap()-before)/inTable, "B/tx")
		if n, _ := tx.Live(); n != inTable {
			b.Fatal(n)
		}
	}
}

// BenchmarkUnansweredNotifyMemory is the memory of a NOTIFY that waits for its
// answer: a head of 450 bytes, and a body it shares with the others.
func BenchmarkUnansweredNotifyMemory(b *testing.B) {
	body := []byte(strings.Repeat("x", 600))
	flow := Flow{Local: ourAddr, Remote: peerAddr}
	for b.Loop() {
		now := time.Now()
		before := liveHeap()
		tx := NewTransactions(0, discard{}, now)
		for i := range uint64(inTable) {
			id := tx.Open(i)
			if err := tx.Request(now, id, flow, bytes.Repeat([]byte{'h'}, 450), body); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(liveHeap()-before)/inTable, "B/tx")
		if _, n := tx.Live(); n != inTable {
			b.Fatal(n)
		}
	}
}
