package sip

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What cannot be parsed, and what is over its rate, gives ten lines a second,
// however much there is of it.
func TestEndpointLogIsBounded(t *testing.T) {
	for name, text := range map[string]string{
		"no SIP":      "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
		"no Via":      request(map[string]string{"Via": "-"}),
		"bad CSeq":    request(map[string]string{"CSeq": "x SUBSCRIBE"}),
		"bad reply":   "SIP/2.0 200 OK\r\n\r\n",
		"version":     request(map[string]string{"": "SUBSCRIBE sip:alice@example.com SIP/3.0"}),
		"well-formed": request(nil),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logs := make(logLines, 20_000)
				log := slog.New(logs)
				taken := 0
				e := NewEndpoint(EndpointOptions{
					Log: log, Receive: func(m *Message) { taken++; m.Release() },
					Guard: &Guard{Log: log, Limit: NewLimiter(LimiterOptions{PerSource: 1}, time.Now())},
				})
				defer e.Close()
				for range 10_000 {
					m := NewMessage()
					m.Raw = append(m.Raw[:0], text...)
					m.Flow = traceFlow
					e.parse(m, false, e)
				}
				close(logs)
				kinds := map[string]int{}
				for l := range logs {
					kind, _, _ := strings.Cut(l, " remote=")
					kinds[kind]++
				}
				want := "map[malformed message:10]"
				if name == "well-formed" {
					want = "map[request over the rate:10]"
				}
				if got := fmt.Sprint(kinds); got != want || (taken == 7) != (name == "well-formed") {
					t.Errorf("%s, want %s; %d taken", got, want, taken)
				}
			})
		})
	}
}

// counting is a Refuser.
type counting int

func (c *counting) Refuse(*Message) { *c++ }

func TestGuardBusy(t *testing.T) {
	ack := request(map[string]string{"": "ACK sip:alice@example.com SIP/2.0", "CSeq": "1 ACK"})
	for _, c := range []struct {
		name    string
		text    string
		limit   int
		verdict Verdict
		passes  bool
		asked   int
		refused counting
		note    string
	}{
		{"time enough", request(nil), 0, Pass, true, 1, 0, ""},
		{"refused", request(nil), 0, Reject, false, 1, 1, "busy, answered 503"},
		{"dropped", request(nil), 0, Drop, false, 1, 0, "busy, dropped"},
		{"ACK is never answered", ack, 0, Reject, false, 1, 0, "busy, dropped"},
		{"over its rate: not asked", request(nil), 1, Pass, false, 0, 1, "over the rate, answered 503"},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := time.Now()
			asked := 0
			g := &Guard{Trace: new(Trace), Stats: new(Stats), Busy: func(*Message) Verdict { asked++; return c.verdict }}
			receive := func(no Refuser) bool {
				m := NewMessage()
				if err := m.Parse([]byte(c.text), false); err != nil {
					t.Fatal(err)
				}
				m.Flow, m.At = traceFlow, now
				return g.Received(m, no)
			}
			if c.limit > 0 {
				g.Limit = NewLimiter(LimiterOptions{PerSource: c.limit}, now)
				for n := counting(0); n == 0; {
					receive(&n)
				}
				asked = 0
			}
			tap, err := g.Trace.Start(TraceFilter{Peer: netip.PrefixFrom(traceFlow.Remote.Addr(), traceFlow.Remote.Addr().BitLen())}, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			defer tap.Stop()
			n := counting(0)
			if got := receive(&n); got != c.passes || n != c.refused || asked != c.asked {
				t.Errorf("passes %v, refused %d, asked %d", got, n, asked)
			}
			e, err := tap.Next(t.Context())
			if err != nil || e.Note != c.note {
				t.Errorf("note %q, %v", e.Note, err)
			}
		})
	}
}

// What a reader refuses is answered from the socket and address it came to, and
// each answer is that of Overloaded.
func TestEndpointRefusesInBatches(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
		t.Run(listen, func(t *testing.T) {
			stats := new(Stats)
			e := NewEndpoint(EndpointOptions{
				Receive: func(m *Message) { t.Error("received"); m.Release() }, PacketSockets: 2,
				Guard: &Guard{Stats: stats, Busy: func(m *Message) Verdict {
					if m.Method() == OPTIONS {
						return Drop
					}
					return Reject
				}},
			})
			defer e.Close()
			at, err := e.Listen(UDP, listen)
			if err != nil {
				t.Fatal(err)
			}
			to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port())
			if runtime.GOOS == "linux" && listen == "0.0.0.0:0" {
				to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.3"), at.Port())
			}
			c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			text := func(i int) string {
				h := map[string]string{"Call-ID": fmt.Sprint(i), "Via": "SIP/2.0/UDP 192.0.2.77:5062;rport;branch=z9hG4bK" + fmt.Sprint(i)}
				if i%10 == 0 {
					h[""], h["CSeq"] = "OPTIONS sip:alice@example.com SIP/2.0", "1 OPTIONS"
				}
				return request(h)
			}
			const n = 100 // whose answers fit into the buffer of c
			for i := range n {
				if _, err := c.WriteToUDPAddrPort([]byte(text(i)), to); err != nil {
					t.Fatal(err)
				}
			}
			seen := map[string]bool{}
			buf := make([]byte, 4096)
			for range n - n/10 {
				c.SetReadDeadline(time.Now().Add(patience))
				k, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					t.Fatalf("after %d: %v", len(seen), err)
				}
				var got, req Message
				if err := got.Parse(buf[:k], false); err != nil {
					t.Fatal(err)
				}
				id := string(got.CallID())
				var i int
				fmt.Sscan(id, &i)
				if err := req.Parse([]byte(text(i)), false); err != nil {
					t.Fatal(err)
				}
				req.Flow = Flow{Proto: UDP, Local: to, Remote: c.LocalAddr().(*net.UDPAddr).AddrPort()}
				strip := func(b []byte) string {
					head, rest, _ := strings.Cut(string(b), "Retry-After: ")
					_, rest, _ = strings.Cut(rest, "\r\n")
					return head + rest
				}
				if want := strip(Overloaded(&req)); unmap(from) != to || strip(got.Raw) != want || seen[id] {
					t.Fatalf("from %v:\n%s\nwant\n%s", from, got.Raw, want)
				}
				if after, ok, _ := got.Uint(HdrRetryAfter); !ok || after < 5 || after > 10 {
					t.Fatalf("Retry-After %d", after)
				}
				seen[id] = true
			}
			out := uint64(0)
			stats.Responses(func(d Direction, p Proto, m Method, class int, n uint64) {
				if d == Out && m == SUBSCRIBE && class == 5 {
					out = n
				}
			})
			for end := time.Now().Add(patience); e.Stats().Sent.Load() != n-n/10 && time.Now().Before(end); {
				time.Sleep(time.Millisecond) // the last batch is counted after it was sent
			}
			if out != n-n/10 || e.Stats().Sent.Load() != n-n/10 || e.Stats().SendErrors.Load() != 0 {
				t.Errorf("%d responses counted, %d sent, %d errors", out, e.Stats().Sent.Load(), e.Stats().SendErrors.Load())
			}
		})
	}
}
