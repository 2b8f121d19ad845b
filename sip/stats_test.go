package sip

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestStats(t *testing.T) {
	s := new(Stats)
	var req, resp Message
	if err := req.Parse([]byte(request(nil)), false); err != nil {
		t.Fatal(err)
	}
	req.Flow = Flow{Proto: TCP, Remote: netip.MustParseAddrPort("192.0.2.1:5060")}
	answer := AppendBody(AppendResponse(nil, &req, 489, "", "x"), "", nil)
	if err := resp.Parse(slices.Clone(answer), false); err != nil {
		t.Fatal(err)
	}
	s.received(&req)
	s.received(&req)
	s.received(&resp)
	s.sent(TLS, answer, 0)
	written := 0
	for _, text := range []string{
		"NOTIFY sip:a@example.com SIP/2.0\r\nCSeq: 1 NOTIFY\r\n\r\n", "FROB sip:a@example.com SIP/2.0\r\n\r\n", "SIP/2.0 200 OK\r\n\r\n",
		"SIP/2.0 200 OK\r\nCSeq: 1", "SIP/2.0 ", "",
	} {
		s.sent(UDP, []byte(text), 0)
		written += len(text)
	}
	s.CountResponse(Out, UDP, NOTIFY, 99)
	s.CountResponse(Out, UDP, NOTIFY, 700)
	s.CountRequest(In, Proto(99), Method(99))
	s.CountAbsorbed(PUBLISH)
	s.CountFailure(NOTIFY, TimedOut)
	s.CountFailure(NOTIFY, Undelivered)
	s.CountFailure(NOTIFY, Undelivered)
	var got []string
	add := func(format string, a ...any) { got = append(got, fmt.Sprintf(format, a...)) }
	s.Requests(func(d Direction, p Proto, m Method, n uint64) { add("request %d %v %v %d", d, p, m, n) })
	s.Responses(func(d Direction, p Proto, m Method, c int, n uint64) { add("response %d %v %v %d %d", d, p, m, c, n) })
	s.Bytes(func(d Direction, p Proto, n uint64) { add("bytes %d %v %d", d, p, n) })
	want := []string{
		"request 0 TCP SUBSCRIBE 2", "request 1 UDP UNKNOWN 3", "request 1 UDP NOTIFY 1", "response 0 UDP SUBSCRIBE 4 1",
		"response 1 UDP UNKNOWN 2 2", "response 1 TLS SUBSCRIBE 4 1",
		fmt.Sprint("bytes 0 TCP ", 2*len(req.Raw)), fmt.Sprint("bytes 0 UDP ", len(resp.Raw)), fmt.Sprint("bytes 1 TLS ", len(answer)),
		fmt.Sprint("bytes 1 UDP ", written),
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s.Absorbed(PUBLISH) != 1 || s.Failures(NOTIFY, TimedOut) != 1 || s.Failures(NOTIFY, Undelivered) != 2 {
		t.Error("absorbed or failures")
	}
	var none *Stats
	none.received(&req)
	none.sent(UDP, answer, 0)
	none.CountAbsorbed(NOTIFY)
	none.CountFailure(NOTIFY, TimedOut)
	none.ObserveServer(NOTIFY, 1)
	none.ObserveClient(NOTIFY, 1)
}

// Each duration falls into the first bucket whose bound it does not exceed.
func TestHistogram(t *testing.T) {
	for _, d := range []time.Duration{-1, 0, 1, 49 * time.Microsecond, 50 * time.Microsecond, 50*time.Microsecond + 1, 100 * time.Microsecond,
		100*time.Microsecond + 1, time.Millisecond, time.Second, 26214400 * time.Microsecond, 26214400*time.Microsecond + 1, 32 * time.Second,
		32*time.Second + 1, time.Minute, time.Hour, math.MaxInt64} {
		var h Histogram
		h.Observe(d)
		count, sum, atMost := h.Read()
		if count != 1 || sum != max(d, 0) || len(atMost) != 21 {
			t.Fatalf("%v: count %d, sum %v, %d bounds", d, count, sum, len(atMost))
		}
		for bound, n := range atMost {
			if (n == 1) != (max(d, 0) <= time.Duration(math.Round(bound*1e9))) {
				t.Errorf("%v: %d at most %v", d, n, bound)
			}
		}
	}
	s := new(Stats)
	s.ObserveServer(SUBSCRIBE, time.Millisecond)
	s.ObserveServer(SUBSCRIBE, time.Second)
	s.ObserveClient(NOTIFY, 2*time.Second)
	s.ObserveClient(Method(200), time.Second)
	if n, sum, _ := s.Server(SUBSCRIBE).Read(); n != 2 || sum != 1001*time.Millisecond {
		t.Errorf("server: %d, %v", n, sum)
	}
	if n, sum, _ := s.Client(NOTIFY).Read(); n != 1 || sum != 2*time.Second {
		t.Errorf("client: %d, %v", n, sum)
	}
}

func BenchmarkStats(b *testing.B) {
	var m Message
	if err := m.Parse([]byte(subscribe768), false); err != nil {
		b.Fatal(err)
	}
	answer := AppendBody(AppendHeader(AppendResponse(nil, &m, 200, "", "x"), "Expires", "600"), "", nil)
	notify := []byte(strings.Replace(subscribe768, "SUBSCRIBE", "NOTIFY", 2))
	s := new(Stats)
	for name, f := range map[string]func(){
		"received":         func() { s.received(&m) },
		"sent a response":  func() { s.sent(UDP, answer, 0) },
		"sent a request":   func() { s.sent(UDP, notify, 0) },
		"observe a server": func() { s.ObserveServer(SUBSCRIBE, 300*time.Microsecond) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}
