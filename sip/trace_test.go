package sip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var traceFlow = Flow{Proto: UDP, Local: netip.MustParseAddrPort("192.0.2.9:5060"), Remote: netip.MustParseAddrPort("192.0.2.1:5070")}

// all takes what waits in a tap.
func all(p *Tap) (got []TraceEntry) {
	for p.Waiting() {
		e, err := p.Next(context.Background())
		if err != nil {
			break
		}
		got = append(got, e)
	}
	return got
}

func TestTraceFilter(t *testing.T) {
	subscribe := request(map[string]string{"From": `"Bob" <sip:bob@Example.ORG;user=phone>;tag=b`, "Call-ID": "c1@192.0.2.1"},
		"Contact: <sip:bob@192.0.2.1:5070>", "P-Asserted-Identity: <sip:robert@example.org>, <tel:+1-202-555-0100>")
	for _, c := range []struct {
		filter TraceFilter
		want   bool
	}{
		{ofPeer("192.0.2.1"), true},
		{ofPeer("192.0.2.1:5070"), true},
		{ofPeer("192.0.2.1:5060"), false},
		{ofPeer("192.0.2.0/24"), true},
		{ofPeer("::ffff:192.0.2.1"), true},
		{ofPeer("192.0.2.9"), false}, // ourselves
		{ofPeer("2001:db8::/32"), false},
		{TraceFilter{CallID: "c1@192.0.2.1"}, true},
		{TraceFilter{CallID: "C1@192.0.2.1"}, false},
		{TraceFilter{URI: "sip:alice@example.com"}, true}, // Request-URI and To
		{TraceFilter{URI: "sips:%61lice@EXAMPLE.com;transport=tls"}, true},
		{TraceFilter{URI: "sip:bob@example.org"}, true}, // From
		{TraceFilter{URI: "sip:Bob@example.org"}, false},
		{TraceFilter{URI: "sip:bob@192.0.2.1"}, true}, // Contact
		{TraceFilter{URI: "sip:bob@192.0.2.1:5070"}, true},
		{TraceFilter{URI: "sip:bob@192.0.2.1:5060"}, false},
		{TraceFilter{URI: "sip:robert@example.org"}, true}, // P-Asserted-Identity
		{TraceFilter{URI: "tel:+12025550100"}, true},
		{TraceFilter{URI: "sip:carol@example.com"}, false},
		{TraceFilter{URI: "sip:alice@example.com", CallID: "other"}, false},
		{TraceFilter{Peer: ofPeer("192.0.2.2").Peer, URI: "sip:alice@example.com"}, false},
	} {
		tr := new(Trace)
		p, err := tr.Start(c.filter, time.Minute)
		if err != nil {
			t.Fatalf("%+v: %v", c.filter, err)
		}
		var m Message
		if err := m.Parse([]byte(subscribe), false); err != nil {
			t.Fatal(err)
		}
		m.Flow, m.At = traceFlow, limitEpoch
		tr.Received(&m, "")
		tr.Sent(traceFlow, []byte(subscribe[:50]), []byte(subscribe[50:]))
		got := all(p)
		if c.want != (len(got) == 2) || len(got) == 1 {
			t.Errorf("%+v: %d messages", c.filter, len(got))
		}
		for i, e := range got {
			if string(e.Raw) != subscribe || e.Dir != Direction(i) || e.Flow != traceFlow || (i == 0) != e.Time.Equal(limitEpoch) {
				t.Errorf("%+v: entry %d is %+v", c.filter, i, e)
			}
		}
		p.Stop()
		p.Stop()
		if tr.Running() != 0 || tr.taps.Load() != nil {
			t.Error("still running")
		}
	}
}

func ofPeer(s string) TraceFilter {
	f, err := ParsePeer(s)
	if err != nil {
		panic(err)
	}
	return f
}

func TestParsePeer(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1/32 0", "192.0.2.1:5060": "192.0.2.1/32 5060", "192.0.2.0/24": "192.0.2.0/24 0", "2001:db8::1": "2001:db8::1/128 0",
		"[2001:db8::1]": "2001:db8::1/128 0", "[2001:db8::1]:5061": "2001:db8::1/128 5061", "2001:db8::/32": "2001:db8::/32 0",
		"": "", "example.com": "", "192.0.2.1:sip": "", "192.0.2.1/33": "",
	} {
		f, err := ParsePeer(in)
		if got := fmt.Sprint(f.Peer, f.Port); (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%q: %s, %v", in, got, err)
		}
	}
}

// Traces are few, bounded in length and in time.
func TestTraceBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := new(Trace)
		for _, c := range []struct {
			f    TraceFilter
			d    time.Duration
			want error
		}{
			{TraceFilter{}, time.Minute, ErrTraceFilter}, {TraceFilter{Port: 5060}, time.Minute, ErrTraceFilter},
			{ofPeer("192.0.2.1"), 0, ErrTraceTime}, {ofPeer("192.0.2.1"), MaxTraceTime + 1, ErrTraceTime}, {TraceFilter{URI: "mailto:x"}, time.Minute, ErrScheme},
		} {
			if _, err := tr.Start(c.f, c.d); !errors.Is(err, c.want) {
				t.Errorf("%+v for %v: %v, want %v", c.f, c.d, err, c.want)
			}
		}
		var taps []*Tap
		for i := range maxTraces {
			p, err := tr.Start(ofPeer("192.0.2.1"), time.Duration(i+1)*time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			taps = append(taps, p)
		}
		if _, err := tr.Start(ofPeer("192.0.2.1"), time.Minute); err != ErrTraceCount {
			t.Errorf("one too many: %v", err)
		}
		// A reader that does not read loses messages, and is told how many.
		small, big := bytes.Repeat([]byte("x"), 100), bytes.Repeat([]byte("x"), 1<<20)
		for range traceQueue + 5 {
			tr.Sent(traceFlow, small, nil)
		}
		got := all(taps[0])
		tr.Sent(traceFlow, small, nil)
		if next := all(taps[0]); len(got) != traceQueue || len(next) != 1 || next[0].Lost != 5 || taps[0].Lost() != 0 || got[0].Lost != 0 {
			t.Errorf("queue: %d, then %+v, lost %d", len(got), next, taps[0].Lost())
		}
		for range 6 {
			tr.Sent(traceFlow, big, nil)
		}
		if n := len(all(taps[0])); n != 4 || taps[0].Lost() != 2 || taps[0].waits.Load() != 0 {
			t.Errorf("octets: %d messages, %d lost", n, taps[0].Lost())
		}
		if len(taps[1].queue) != traceQueue || taps[1].Lost() != 12 {
			t.Errorf("another: %d waiting, %d lost", len(taps[1].queue), taps[1].Lost())
		}
		// The time is over.
		time.Sleep(61 * time.Second)
		if _, err := taps[0].Next(context.Background()); err != ErrTraceOver || tr.Running() != maxTraces-1 {
			t.Errorf("after its time: %v, %d running", err, tr.Running())
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		all(taps[2])
		if _, err := taps[2].Next(ctx); err != context.Canceled {
			t.Errorf("reader goes: %v", err)
		}
		// A reader that waits is woken by the end; what was queued is still read.
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := taps[2].Next(context.Background()); err != ErrTraceClosed {
				t.Errorf("closed: %v", err)
			}
		})
		synctest.Wait()
		tr.Close()
		wg.Wait()
		if n := len(all(taps[1])); n != traceQueue {
			t.Errorf("%d read after the end", n)
		}
		if _, err := taps[1].Next(context.Background()); err != ErrTraceClosed {
			t.Errorf("closed: %v", err)
		}
		if _, err := tr.Start(ofPeer("192.0.2.1"), time.Minute); err != ErrTraceClosed {
			t.Errorf("start after the end: %v", err)
		}
		tr.Sent(traceFlow, small, nil)
	})
}

func TestMaskSecrets(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`Authorization: Digest username="a", nonce="n", response="0123", qop=auth`, `Authorization: Digest username="a", nonce="n", response="xxxx", qop=auth`},
		{`authorization : digest response=0123,uri="sip:a@example.com"`, `authorization : digest response=xxxx,uri="sip:a@example.com"`},
		{`Proxy-Authorization:Digest username="response=1, x", RESPONSE = "0123"`, `Proxy-Authorization:Digest username="response=x, x", RESPONSE = "xxxx"`},
		{`Authorization: Digest username="a\", response=\"" response="0123"`, `Authorization: Digest username="a\", response=xxx response="xxxx"`},
		{`Authorization: Digest username="a response=" , response="0123"`, `Authorization: Digest username="a response=" x xxxxxxxxx"xxxx"`},
		{"Authorization: Digest username=\"a\",\r\n  response=\r\n \"0123\"\r\nTo: x", "Authorization: Digest username=\"a\",\r\n  response=\r\n \"xxxx\"\r\nTo: x"},
		{`Authorization: Digest response="0123`, `Authorization: Digest response="xxxx`},
		{`Authorization: Digest username="a, response="0123"`, `Authorization: Digest username="a, response="xxxx"`},
		{`Authorization: Basic c2VjcmV0`, `Authorization: Basic xxxxxxxx`},
		{`Authorization: Bearer a.b.c`, `Authorization: Bearer xxxxx`},
		{`Authentication-Info: rspauth="0123", nextnonce="n"`, `Authentication-Info: rspauth="xxxx", nextnonce="n"`},
		{`WWW-Authenticate: Digest realm="r", nonce="n"`, `WWW-Authenticate: Digest realm="r", nonce="n"`},
		{"From: x\nAuthorization: Digest response=0123\nTo: y", "From: x\nAuthorization: Digest response=xxxx\nTo: y"},
		{"From: x\rAuthorization: Digest response=0123\rTo: y", "From: x\rAuthorization: Digest response=xxxx\rTo: y"},
		{"Authorization", "Authorization"}, {"Authorization:", "Authorization:"}, {"", ""},
		{`X-Authorization: Digest response="0123"`, `X-Authorization: Digest response="0123"`},
	} {
		if got := string(maskSecrets([]byte(c.in))); got != c.want {
			t.Errorf("%q\n%q, want\n%q", c.in, got, c.want)
		}
	}
}

// Masking keeps the length and every line end, and is done after one time.
func FuzzMaskSecrets(f *testing.F) {
	f.Add([]byte("REGISTER sip:a SIP/2.0\r\nAuthorization: Digest a=\"b\",\r\n response=\"x\\\"y\"\r\n\r\n"))
	f.Add([]byte("Authorization:\"\r\n =,response=\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		one := maskSecrets(bytes.Clone(in))
		if len(one) != len(in) || bytes.Count(one, []byte("\n")) != bytes.Count(in, []byte("\n")) {
			t.Fatalf("%q became %q", in, one)
		}
		for i := range in {
			if one[i] != in[i] && one[i] != 'x' {
				t.Fatalf("%q became %q", in, one)
			}
		}
	})
}

// While no trace runs nothing is done.
func TestTraceOff(t *testing.T) {
	tr := new(Trace)
	var m Message
	if err := m.Parse([]byte(subscribe768), false); err != nil {
		t.Fatal(err)
	}
	raw := []byte(subscribe768)
	if n := testing.AllocsPerRun(100, func() { tr.Received(&m, ""); tr.Sent(traceFlow, raw, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	var none *Trace
	none.Received(&m, "")
	none.Sent(traceFlow, raw, nil)
}

// On the wire: messages in and out, what is malformed, and what is over its
// rate, with what became of it.
func TestGuardOnEndpoint(t *testing.T) {
	g := &Guard{Stats: new(Stats), Trace: new(Trace), Limit: NewLimiter(LimiterOptions{PerSource: 1}, time.Now())}
	p, err := g.Trace.Start(ofPeer("127.0.0.1"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	us := newWireEnd(t, EndpointOptions{Guard: g})
	addr := us.listen(UDP)
	it := newWireEnd(t, EndpointOptions{})
	flow := Flow{Proto: UDP, Local: it.listen(UDP), Remote: addr}
	text := func(n int) []byte {
		return []byte(request(map[string]string{"Via": fmt.Sprintf("SIP/2.0/UDP %v;branch=z9hG4bK%d", flow.Local, n)}))
	}
	exchange := func(b []byte) string { // the status, or 0 when the request was taken
		t.Helper()
		it.Send(flow, b, 0)
		select {
		case m := <-it.in:
			return fmt.Sprint(m.Status(), " ", string(m.Header(HdrRetryAfter)))
		case m := <-us.in:
			if err := us.Send(ResponseFlow(m), AppendBody(AppendResponse(nil, m, 200, "", "x"), "", nil), 0); err != nil {
				t.Error(err)
			}
			return fmt.Sprint((<-it.in).Status())
		case <-time.After(patience):
			t.Fatal("nothing came")
			return ""
		}
	}
	var got []string
	for i := range 7 {
		got = append(got, exchange(text(i)))
	}
	if s := strings.Join(got, " "); s != "200 200 200 200 200 200 200" {
		t.Errorf("before the limit: %s", s)
	}
	if s := exchange(text(7)); !strings.HasPrefix(s, "503 ") || len(s) < 5 {
		t.Errorf("at the limit: %q", s)
	}
	// Malformed ones count as new work, so this one is not answered.
	it.Send(flow, []byte(strings.Replace(string(text(8)), "CSeq: 7", "CSeq: x", 1)), 0)
	for g.Limit.Stats().SourceRejected.Load()+g.Limit.Stats().SourceDropped.Load() < 2 {
		<-us.logs
	}
	notes := map[string]int{}
	for _, e := range all(p) {
		notes[fmt.Sprint(e.Dir, " ", e.Note)]++
	}
	if notes["0 "] != 7 || notes["1 "] != 8 || notes["0 over the rate, answered 503"] != 1 || len(notes) != 4 {
		t.Errorf("traced: %v", notes)
	}
	s := map[string]uint64{}
	g.Stats.Requests(func(d Direction, p Proto, m Method, n uint64) { s[fmt.Sprint(d, p, m)] = n })
	g.Stats.Responses(func(d Direction, p Proto, m Method, c int, n uint64) { s[fmt.Sprint(d, p, m, c)] = n })
	if len(s) != 3 || s["0 UDP SUBSCRIBE"] != 8 || s["1 UDP SUBSCRIBE 2"] != 7 || s["1 UDP SUBSCRIBE 5"] != 1 {
		t.Errorf("counted: %v", s)
	}
}

func BenchmarkGuard(b *testing.B) {
	start := time.Now()
	var m Message
	if err := m.Parse([]byte(subscribe768), false); err != nil {
		b.Fatal(err)
	}
	m.Flow = traceFlow
	g := &Guard{Stats: new(Stats), Trace: new(Trace), Limit: NewLimiter(LimiterOptions{PerSource: 1_000_000}, start)}
	on := &Trace{}
	p, err := on.Start(TraceFilter{URI: "sip:nobody@example.com"}, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	defer p.Stop()
	raw := []byte(subscribe768)
	n := 0
	for _, c := range []struct {
		name string
		f    func()
	}{
		{"received", func() { n++; m.At = start.Add(time.Duration(n) * time.Microsecond); g.Received(&m, nil) }},
		{"trace off", func() { g.Trace.Sent(traceFlow, raw, nil) }},
		{"trace of another URI, received", func() { on.Received(&m, "") }},
		{"trace of another URI, sent", func() { on.Sent(traceFlow, raw, nil) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.f()
			}
		})
	}
}
