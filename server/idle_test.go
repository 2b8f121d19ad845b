package server_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"rollcall/server"
	"rollcall/sip"
)

// instantNet is a network on which every NOTIFY is answered 200 at once.
type instantNet struct {
	recv     sip.Receiver
	addr     netip.AddrPort
	notified atomic.Int64
}

func (c *instantNet) Send(f sip.Flow, b []byte, _ uint64) error {
	if strings.HasPrefix(string(b[:min(len(b), 8)]), "SIP/2.0 ") {
		return nil
	}
	m, resp := sip.NewMessage(), sip.NewMessage()
	if err := m.Parse(append(m.Raw[:0], b...), false); err != nil {
		return err
	}
	if err := resp.Parse(sip.AppendBody(sip.AppendResponse(resp.Raw[:0], m, 200, "", ""), "", nil), false); err != nil {
		return err
	}
	resp.Flow = f
	m.Release()
	c.notified.Add(1)
	c.recv(resp)
	return nil
}

func (c *instantNet) Listen(sip.Proto, string) (netip.AddrPort, error) { return c.addr, nil }

func (c *instantNet) FlowTo(p sip.Proto, remote netip.AddrPort) (sip.Flow, error) {
	return sip.Flow{Proto: p, Local: c.addr, Remote: remote}, nil
}

func (c *instantNet) Close() {}

// BenchmarkIdleDialogs is what an idle subscription costs in memory, with ten
// watchers to each presentity, and what they cost a collection:
//
//	go test ./server -run - -bench IdleDialogs -benchtime 1000000x
func BenchmarkIdleDialogs(b *testing.B) {
	cfg := server.Default()
	cfg.Listen, cfg.HTTP, cfg.Domain = []string{"udp:192.0.2.9:5060"}, "", []string{"example.com"}
	cfg.Store, cfg.Durability, cfg.PresenceAuth, cfg.Trust, cfg.RatePerSource = "memory", "memory", "open", []string{"0.0.0.0/0"}, 0
	net := &instantNet{addr: netip.MustParseAddrPort("192.0.2.9:5060")}
	s, err := server.New(cfg, slog.New(slog.DiscardHandler), server.OnNetwork(func(recv sip.Receiver) server.Network {
		net.recv = recv
		return net
	}))
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Start(context.Background()); err != nil {
		b.Fatal(err)
	}
	defer s.Stop(context.Background())
	live := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, done := live(), 0
	notified := func() int { return int(net.notified.Load()) }
	for n := range b.N {
		m := sip.NewMessage()
		watcher := fmt.Sprintf("user%06d@example.com", (n/10+n%10*7919)%(b.N/10+1))
		host := fmt.Sprintf("10.%d.%d.%d", n>>14&127, n>>7&127, n&127)
		raw := fmt.Appendf(m.Raw[:0], "SUBSCRIBE sip:user%06d@example.com SIP/2.0\r\nVia: SIP/2.0/UDP %s:5060;rport;branch=z9hG4bK%d\r\n"+
			"From: \"User\" <sip:%s>;tag=%010d\r\nTo: <sip:user%06d@example.com>\r\nCall-ID: %032x\r\nCSeq: 1 SUBSCRIBE\r\nMax-Forwards: 70\r\n"+
			"Contact: <sip:user%06d@%s:5060;transport=udp>\r\nEvent: presence\r\nAccept: application/pidf+xml, application/xpidf+xml\r\nExpires: 3600\r\n"+
			"User-Agent: Phone T46S 66.84.0.15 %d\r\nContent-Length: 0\r\n\r\n", n/10, host, n, watcher, n, n/10, n, n/10, host, n%20)
		if err := m.Parse(raw, false); err != nil {
			b.Fatal(err)
		}
		m.At = time.Now()
		m.Flow = sip.Flow{Proto: sip.UDP, Local: net.addr, Remote: netip.MustParseAddrPort(host + ":5060")}
		net.recv(m)
		for done++; done-notified() > 128; {
			time.Sleep(time.Millisecond)
		}
	}
	for notified() < done {
		time.Sleep(time.Millisecond)
	}
	b.StopTimer()
	time.Sleep(sip.TimerJ + 3*time.Second) // no transaction is left
	b.ReportMetric((float64(live())-float64(before))/float64(done), "B/dialog")
	best := time.Hour
	for range 5 {
		start := time.Now()
		runtime.GC()
		best = min(best, time.Since(start))
	}
	b.ReportMetric(float64(best.Microseconds())/1000, "ms/GC")
	b.ReportMetric(resident(b)/1e6, "MB-resident")
}

func resident(b *testing.B) float64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, pages float64
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		b.Fatal(err)
	}
	return pages * float64(os.Getpagesize())
}
