package sip

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var limitEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// addr4 is the n-th IPv4 address.
func addr4(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// tally counts the verdicts on n messages that come at the same time.
func tally(l *Limiter, at time.Duration, src string, k Kind, n int) string {
	var v [3]int
	for range n {
		v[l.Admit(limitEpoch.Add(at), netip.MustParseAddr(src), k)]++
	}
	return fmt.Sprintf("%d pass %d reject %d drop", v[Pass], v[Reject], v[Drop])
}

func TestLimiter(t *testing.T) {
	type step struct {
		at   time.Duration
		src  string
		kind Kind
		n    int
		want string
	}
	for _, c := range []struct {
		name  string
		opt   LimiterOptions
		steps []step
	}{
		{"no limit", LimiterOptions{}, []step{{0, "192.0.2.1", KindNew, 100_000, "100000 pass 0 reject 0 drop"}}},
		{"a phone with 200 keys starts", LimiterOptions{PerSource: 100}, []step{
			{0, "192.0.2.1", KindNew, 200, "200 pass 0 reject 0 drop"},
			{500 * time.Millisecond, "192.0.2.1", KindNew, 200, "200 pass 0 reject 0 drop"}, // all of them retransmitted
		}},
		{"new work first, then everything", LimiterOptions{PerSource: 100}, []step{
			{0, "192.0.2.1", KindNew, 800, "750 pass 10 reject 40 drop"},
			{0, "192.0.2.1", KindOngoing, 250, "250 pass 0 reject 0 drop"},
			{0, "192.0.2.1", KindOngoing, 1, "0 pass 0 reject 1 drop"},
			{0, "192.0.2.1", KindNew, 1, "0 pass 0 reject 1 drop"},
			{0, "192.0.2.1", KindResponse, 1000, "1000 pass 0 reject 0 drop"},
			{0, "192.0.2.2", KindNew, 10, "10 pass 0 reject 0 drop"}, // somebody else
			{time.Second, "192.0.2.1", KindNew, 1, "0 pass 1 reject 0 drop"},
			{time.Second, "192.0.2.1", KindOngoing, 101, "100 pass 0 reject 1 drop"},
			{11 * time.Second, "192.0.2.1", KindNew, 751, "750 pass 1 reject 0 drop"}, // full again, and no more than full
		}},
		{"its rate and no more", LimiterOptions{PerSource: 10}, []step{
			{0, "192.0.2.1", KindOngoing, 100, "100 pass 0 reject 0 drop"},
			{time.Second, "192.0.2.1", KindOngoing, 100, "10 pass 0 reject 90 drop"},
			{2 * time.Second, "192.0.2.1", KindOngoing, 100, "10 pass 0 reject 90 drop"},
			{time.Second, "192.0.2.1", KindOngoing, 1, "0 pass 0 reject 1 drop"}, // a clock that lags behind gives nothing
		}},
		{"one a second", LimiterOptions{PerSource: 1}, []step{{0, "192.0.2.1", KindNew, 9, "7 pass 2 reject 0 drop"}}},
		{"IPv6 by /64", LimiterOptions{PerSource: 1}, []step{
			{0, "2001:db8:0:1::1", KindOngoing, 10, "10 pass 0 reject 0 drop"},
			{0, "2001:db8:0:1:ffff::2", KindOngoing, 1, "0 pass 0 reject 1 drop"},
			{0, "2001:db8:0:2::1", KindOngoing, 1, "1 pass 0 reject 0 drop"},
			{0, "::1", KindOngoing, 11, "10 pass 0 reject 1 drop"},
		}},
		{"IPv4 in IPv6 is IPv4", LimiterOptions{PerSource: 1}, []step{
			{0, "192.0.2.1", KindOngoing, 10, "10 pass 0 reject 0 drop"},
			{0, "::ffff:192.0.2.1", KindOngoing, 1, "0 pass 0 reject 1 drop"},
		}},
		{"exempt", LimiterOptions{PerSource: 1, Exempt: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}}, []step{
			{0, "192.0.2.1", KindNew, 1000, "1000 pass 0 reject 0 drop"},
			{0, "::ffff:192.0.2.1", KindNew, 1000, "1000 pass 0 reject 0 drop"},
			{0, "2001:db8::1", KindNew, 1000, "1000 pass 0 reject 0 drop"},
			{0, "198.51.100.1", KindNew, 8, "7 pass 1 reject 0 drop"},
		}},
		{"total holds for exempt ones too", LimiterOptions{PerSource: 100, Total: 10, Exempt: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}}, []step{
			{0, "192.0.2.1", KindNew, 50, "50 pass 0 reject 0 drop"},
			{0, "198.51.100.1", KindNew, 50, "25 pass 10 reject 15 drop"},
			{0, "192.0.2.1", KindNew, 990, "0 pass 990 reject 0 drop"},
			{0, "192.0.2.1", KindNew, 10, "0 pass 0 reject 10 drop"}, // 1,000 answers in all
			{0, "198.51.100.2", KindOngoing, 26, "25 pass 0 reject 1 drop"},
			{0, "198.51.100.2", KindNew, 1, "0 pass 0 reject 1 drop"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := NewLimiter(c.opt, limitEpoch)
			for i, s := range c.steps {
				if got := tally(l, s.at, s.src, s.kind, s.n); got != s.want {
					t.Errorf("step %d: %s, want %s", i, got, s.want)
				}
			}
		})
	}
	var none *Limiter
	if none.Admit(limitEpoch, netip.Addr{}, KindNew) != Pass || !none.Answer(limitEpoch, netip.Addr{}) {
		t.Error("nil refuses")
	}
}

// Refusals that Admit does not know of are bounded too: a malformed message
// costs an answer as well.
func TestLimiterAnswers(t *testing.T) {
	l := NewLimiter(LimiterOptions{PerSource: 100}, limitEpoch)
	answered := 0
	for i := range uint32(2000) {
		for range 20 {
			if l.Answer(limitEpoch, addr4(i)) {
				answered++
			}
		}
	}
	if answered != answersTotal {
		t.Errorf("%d answers at once, want %d", answered, answersTotal)
	}
	if !l.Answer(limitEpoch.Add(time.Second), addr4(0)) {
		t.Error("none a second later")
	}
}

// A flood from a million forged addresses keeps no well-behaved source out, and
// an offender that sends in its shelter stays limited.
func TestLimiterFlood(t *testing.T) {
	l := NewLimiter(LimiterOptions{PerSource: 100}, limitEpoch)
	good, bad := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	passed := 0
	for i := range uint32(1_000_000) {
		now := limitEpoch.Add(time.Duration(i) * 10 * time.Microsecond) // 100,000 a second for ten seconds
		if v := l.Admit(now, addr4(0x0a000000+i*2654435761>>8), KindNew); v != Pass {
			t.Fatalf("forged source %d: verdict %d", i, v)
		}
		if i%1000 == 0 { // 100 a second, as it may
			if v := l.Admit(now, good, KindNew); v != Pass {
				t.Fatalf("good source after %d forged ones: verdict %d", i, v)
			}
		}
		if i%100 == 0 { // 1,000 a second
			if l.Admit(now, bad, KindOngoing) == Pass {
				passed++
			}
		}
	}
	if passed > 2000+20 { // a bucket and ten seconds' worth
		t.Errorf("offender: %d of 10,000 passed, want about 2,000", passed)
	}
	if n := len(l.sets) * sourceWays; n != 40_960 {
		t.Errorf("table has %d buckets", n)
	}
}

// Goroutines together get what one would get.
func TestLimiterConcurrent(t *testing.T) {
	l := NewLimiter(LimiterOptions{PerSource: 1000, Total: 5000}, limitEpoch)
	var passed atomic.Int64
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range uint32(20_000) {
				if l.Admit(limitEpoch, addr4(i%uint32(10)), KindOngoing) == Pass {
					passed.Add(1)
				}
				l.Answer(limitEpoch, addr4(uint32(g)))
			}
		})
	}
	wg.Wait()
	if passed.Load() != 50_000 {
		t.Errorf("%d passed, want 50000", passed.Load())
	}
}

func TestKindOf(t *testing.T) {
	for _, c := range []struct {
		name string
		text string
		want Kind
	}{
		{"SUBSCRIBE", request(nil), KindNew},
		{"refresh", request(map[string]string{"To": "<sip:bob@example.com>;tag=x"}), KindOngoing},
		{"OPTIONS", request(map[string]string{"": "OPTIONS sip:example.com SIP/2.0", "CSeq": "1 OPTIONS"}), KindNew},
		{"PUBLISH", request(map[string]string{"": "PUBLISH sip:example.com SIP/2.0", "CSeq": "1 PUBLISH"}), KindNew},
		{"PUBLISH with a tag", request(map[string]string{"": "PUBLISH sip:example.com SIP/2.0", "CSeq": "1 PUBLISH", "To": "<sip:bob@example.com>;tag=x"}), KindNew},
		{"PUBLISH that refreshes", request(map[string]string{"": "PUBLISH sip:example.com SIP/2.0", "CSeq": "1 PUBLISH"}, "SIP-If-Match: x"), KindOngoing},
		{"PUBLISH that modifies", request(map[string]string{"": "PUBLISH sip:example.com SIP/2.0", "CSeq": "1 PUBLISH"}, "SIP-If-Match: x", "Content-Length: 1") + "x", KindNew},
		{"response", crlf("SIP/2.0 200 OK\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKx\nFrom: <sip:a@example.com>;tag=a\nTo: <sip:b@example.com>;tag=b\nCall-ID: c\nCSeq: 1 NOTIFY\n\n"), KindResponse},
	} {
		var m Message
		if err := m.Parse([]byte(c.text), false); err != nil {
			t.Fatalf("%s: %v\n%s", c.name, err, c.text)
		}
		if got := KindOf(&m); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func BenchmarkLimiter(b *testing.B) {
	for _, c := range []struct {
		name    string
		sources uint32
		total   int
	}{{"one source", 1, 0}, {"10000 sources", 10_000, 0}, {"million forged", 1 << 20, 0}, {"million forged, total", 1 << 20, 1_000_000}} {
		b.Run(c.name, func(b *testing.B) {
			start := time.Now()
			l := NewLimiter(LimiterOptions{PerSource: 100, Total: c.total, Exempt: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}, start)
			b.ReportAllocs()
			var g atomic.Uint32
			b.RunParallel(func(pb *testing.PB) {
				i := g.Add(1) * 7919
				for pb.Next() {
					i++
					l.Admit(start.Add(time.Duration(i)*time.Microsecond), addr4(0x0a000000+i*2654435761%c.sources), KindNew)
				}
			})
		})
	}
}
