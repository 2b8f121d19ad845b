package server_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sip"
)

// stream is the reader of a trace.
type stream struct {
	*httptest.ResponseRecorder
	free bool // no read deadline ends it
}

func (s *stream) SetReadDeadline(t time.Time) error {
	s.free = t.IsZero()
	return nil
}

// lines are what it got.
func (s *stream) lines(t *testing.T) (all []server.TraceLine) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(s.Body.String()))
	for dec.More() {
		var l server.TraceLine
		if err := dec.Decode(&l); err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

// trace asks for one in the background; done is closed when it is over.
func trace(ctx context.Context, n *servertest.Node, query string) (s *stream, done chan struct{}) {
	s, done = &stream{ResponseRecorder: httptest.NewRecorder()}, make(chan struct{})
	r := httptest.NewRequestWithContext(ctx, "GET", "/api/v1/trace?"+query, nil)
	r.RemoteAddr = "127.0.0.1:1"
	h := n.Handler()
	go func() {
		defer close(done)
		h.ServeHTTP(s, r)
	}()
	synctest.Wait()
	return s, done
}

// A trace shows what a user sends and gets, for as long as was asked.
func TestTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", nil)
		a := w.UA(alice)
		byURI, over := trace(t.Context(), n, "uri=sip:alice@EXAMPLE.com&for=30s")
		byPeer, end1 := trace(t.Context(), n, "peer="+a.Addr.String()+"&for=24h")
		other, end2 := trace(t.Context(), n, "uri=sip:carol@example.com")
		if v := n.Metric("sip_traces"); v != 3 {
			t.Errorf("%v traces are running", v)
		}
		sub := a.Dialog(n, bob)
		sub.Headers = "Authorization: Digest username=\"alice\", response=\"secret\"\n"
		sub.MustSubscribe(600)
		sub.Next()
		w.UA(carol).Publication(n).Say("open", "x")
		w.Settle(29 * time.Second)
		select {
		case <-over:
			t.Error("over before its time")
		default:
		}
		w.Settle(2 * time.Second)
		<-over
		sub.Unsubscribe()
		w.Settle(time.Second)
		n.Stop(context.Background())
		<-end1
		<-end2

		got := byURI.lines(t)
		var kinds []string
		for _, l := range got {
			first, _, _ := strings.Cut(l.Message, "\r\n")
			if l.Message != "" && (l.Transport != "UDP" || l.Local != n.Addr.String() || l.Remote != a.Addr.String() || l.Bytes != len(l.Message) || l.Lost != 0 || l.Note != "") {
				t.Errorf("line %+v", l)
			}
			kinds = append(kinds, strings.TrimSpace(l.Direction+" "+first+l.End))
		}
		if s := strings.Join(kinds, "\n"); !byURI.free || byURI.Header().Get("Content-Type") != "application/x-ndjson" ||
			s != "in SUBSCRIBE sip:bob@example.com SIP/2.0\nout SIP/2.0 200 OK\nout NOTIFY sip:"+a.Addr.String()+" SIP/2.0\nin SIP/2.0 200 OK\nthe time is over" {
			t.Errorf("traced:\n%s", s)
		}
		if body := byURI.Body.String(); strings.Contains(body, "secret") || !strings.Contains(body, `response=\"xxxxxx\"`) {
			t.Errorf("the answer of digest authentication is shown:\n%s", body)
		}
		if n := len(byPeer.lines(t)); n != 8+1 {
			t.Errorf("%d lines about the peer, want 8 and the end", n)
		}
		if n := len(other.lines(t)); n != 2+1 {
			t.Errorf("%d lines about somebody else, want 2 and the end", n)
		}
	})
}

// The end of the client or of the server ends a trace, and a stop does not wait
// for it.
func TestTraceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", nil)
		ctx, cancel := context.WithCancel(t.Context())
		_, gone := trace(ctx, n, "peer=192.0.2.0/24")
		cancel()
		<-gone
		if v := n.Metric("sip_traces"); v != 0 {
			t.Errorf("%v traces are left", v)
		}
		s, done := trace(t.Context(), n, "peer=192.0.2.0/24")
		if err := n.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		<-done
		if l := s.lines(t); len(l) != 1 || l[0].End != "the server stops" {
			t.Errorf("%+v", l)
		}
		if code := n.Get("/api/v1/trace?peer=192.0.2.1", nil); code != 503 {
			t.Errorf("after the stop: %d", code)
		}
	})
}

func TestTraceFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := servertest.New(t).Node("192.0.2.1", nil)
		for query, want := range map[string]string{
			"": "a trace needs", "for=1m": "a trace needs", "peer=example.com": "peer: ", "uri=bob": "uri: ", "uri=http:x": "uri: ",
			"peer=192.0.2.1&for=soon": "for: invalid duration", "peer=192.0.2.1&for=25h": "at most 24 h", "peer=192.0.2.1&for=-1s": "more than 0",
		} {
			var e struct{ Error string }
			if code := n.Get("/api/v1/trace?"+query, &e); code != 400 || !strings.Contains(e.Error, want) {
				t.Errorf("%s: %d %q, want %q", query, code, e.Error, want)
			}
		}
		for range 8 {
			trace(t.Context(), n, "call_id=x")
		}
		if code := n.Get("/api/v1/trace?call_id=x", nil); code != 503 {
			t.Errorf("the ninth: %d", code)
		}
	})
}

// Over a real socket: lines come as they happen, and Stop is not held up.
func TestTraceOverHTTP(t *testing.T) {
	s, _ := real(t, nil)
	w := servertest.NewReal(t)
	n := w.Of(s)
	resp, err := http.Get("http://" + strings.TrimPrefix(s.Addrs()[2], "http=") + "/api/v1/trace?peer=127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	if m := w.UA(alice).Publication(n).Send(servertest.PIDF(alice, "open", "x"), 600); m.Status() != 200 {
		t.Fatalf("PUBLISH: %d", m.Status())
	}
	for _, want := range []string{"in", "out"} {
		line, err := in.ReadString('\n')
		if err != nil || !strings.Contains(line, `"direction":"`+want+`"`) {
			t.Fatalf("%q, %v", line, err)
		}
	}
	at := time.Now()
	if err := s.Stop(context.Background()); err != nil {
		t.Error(err)
	}
	if took := time.Since(at); took > 3*time.Second {
		t.Errorf("stop took %v", took)
	}
	if line, _ := in.ReadString('\n'); line != `{"end":"the server stops"}`+"\n" {
		t.Errorf("last line %q", line)
	}
}

// Traffic is counted by direction, transport, method and class.
func TestTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", nil)
		sub := w.UA(alice).Watch(n, bob)
		sub.Next()
		w.Settle(time.Second)
		w.UA(bob).Raw(n.Addr, "FROB {aor} SIP/2.0\nVia: {via}\nMax-Forwards: 70\nFrom: <{aor}>;tag={tag}\nTo: <{aor}>\nCall-ID: {callid}\nCSeq: {cseq} FROB\n")
		for name, want := range map[string]float64{
			`sip_requests_total{direction="in",method="subscribe",transport="udp"}`:               1,
			`sip_requests_total{direction="out",method="notify",transport="udp"}`:                 1,
			`sip_responses_total{class="2xx",direction="out",method="subscribe",transport="udp"}`: 1,
			`sip_responses_total{class="2xx",direction="in",method="notify",transport="udp"}`:     1,
			`sip_requests_total{direction="in",method="unknown",transport="udp"}`:                 1,
			`sip_responses_total{class="5xx",direction="out",method="unknown",transport="udp"}`:   1,
			`sip_server_transaction_seconds_count{method="subscribe"}`:                            1,
			`sip_client_transaction_seconds_count{method="notify"}`:                               1,
			`dialog_requests_total{method="subscribe"}`:                                           1,
		} {
			if got := n.Metric(name); got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
		}
	})
}

// An address that is not trusted gets its rate and no more; who is trusted is
// not counted.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", func(c *server.Config) { c.RatePerSource, c.Trust = 1, []string{"192.0.2.102/32"} })
		options := "OPTIONS sip:example.com SIP/2.0\nVia: {via}\nMax-Forwards: 70\nFrom: <{aor}>;tag={tag}\nTo: <{aor}>\nCall-ID: {callid}\nCSeq: {cseq} OPTIONS\n"
		a, b := w.UA(alice), w.UA(bob) // 192.0.2.101 and .102
		for i := range 20 {
			if m := b.Raw(n.Addr, options); m.Status() != 200 {
				t.Errorf("trusted, %d: %d", i, m.Status())
			}
			want := 200
			if i >= 7 {
				want = 503
			}
			if i > 12 {
				continue
			}
			if m := a.Raw(n.Addr, options); m.Status() != want || (want == 503) != (m.H(sip.HdrRetryAfter) != "") {
				t.Errorf("not trusted, %d: %d, want %d", i, m.Status(), want)
			}
		}
		if v := n.Metric(`sip_limited_total{limit="source",verdict="rejected"}`); v != 6 {
			t.Errorf("%v rejected", v)
		}
		w.Settle(10 * time.Second)
		if m := a.Raw(n.Addr, options); m.Status() != 200 {
			t.Errorf("ten seconds later: %d", m.Status())
		}
	})
}
