package dialog

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"rollcall/sip"
)

// instantPeer is a Sender whose peer answers every request 200 at once. Its own
// work, parsing the request and writing and parsing the response, is part of
// what is measured; the second parse is what an Endpoint would do.
type instantPeer struct {
	rt *Runtime
}

func (p *instantPeer) Send(f sip.Flow, b []byte, _ uint64) error {
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
	resp.Flow = sip.Flow{Proto: sip.UDP, Local: f.Local, Remote: f.Remote}
	m.Release()
	p.rt.Receive(resp)
	return nil
}

// benchSource answers with one shared document.
type benchSource struct {
	sinks []SinkRef
	doc   *Document
}

func (s *benchSource) Timer(*Turn, uint64) {}

func (s *benchSource) Attach(t *Turn, _ Interest, to SinkRef) {
	s.sinks = append(s.sinks, to)
	t.Update(Update{To: to, State: Active, Doc: s.doc})
}

func (s *benchSource) Detach(*Turn, Interest, SinkRef) {}

type nullStore struct{}

func (nullStore) Commit(context.Context, []Write) error { return nil }

func newBench(b *testing.B, durability Durability) (*Runtime, *benchSource) {
	peer := &instantPeer{}
	src := &benchSource{doc: &Document{Type: pidfType, Body: []byte(strings.Repeat("x", 600))}}
	local := netip.MustParseAddrPort("192.0.2.9:5060")
	rt := New(Options{
		Sender: peer, Store: nullStore{}, Durability: durability,
		Packages:   NewRegistry(&Package{Name: "presence", Types: []string{pidfType}, DefaultExpires: time.Hour}),
		Components: []func(uint8) Component{func(uint8) Component { return src }},
		Route:      func(string) int { return 0 },
		Key:        func(uri []byte) (string, bool, error) { return string(uri), true, nil },
		Identify: func(*sip.Message, time.Time) (Identity, func(context.Context), *Error) {
			return Identity{URI: bob}, nil, nil
		},
		FlowTo: func(p sip.Proto, remote netip.AddrPort) (sip.Flow, error) {
			return sip.Flow{Proto: p, Local: local, Remote: remote}, nil
		},
	})
	peer.rt = rt
	rt.Start()
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		rt.Stop(ctx)
	})
	return rt, src
}

// subscribe hands the n-th SUBSCRIBE to the runtime.
func subscribe(rt *Runtime, n, expires int) {
	m := sip.NewMessage()
	raw := fmt.Appendf(m.Raw[:0], "SUBSCRIBE sip:alice@example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5070;rport;branch=z9hG4bK%d\r\n"+
		"From: <sip:bob@example.org>;tag=t%d\r\nTo: <sip:alice@example.com>\r\nCall-ID: %d@192.0.2.1\r\nCSeq: 1 SUBSCRIBE\r\nMax-Forwards: 70\r\n"+
		"Contact: <sip:bob@192.0.2.1:5070>\r\nEvent: presence\r\nAccept: application/pidf+xml\r\nExpires: %d\r\nUser-Agent: Phone/1\r\nContent-Length: 0\r\n\r\n",
		n, n, n, expires)
	if err := m.Parse(raw, false); err != nil {
		panic(err)
	}
	m.Flow = sip.Flow{Proto: sip.UDP, Local: netip.MustParseAddrPort("192.0.2.9:5060"), Remote: netip.MustParseAddrPort("192.0.2.1:5070")}
	rt.Receive(m)
}

func waitFor(rt *Runtime, notifies uint64) {
	for rt.Stats().NotifyOK.Load() < notifies {
		runtime.Gosched()
	}
}

// BenchmarkNotify is one change of a resource with 1,000 subscriptions: 1,000
// NOTIFYs made, sent and answered, in one shard.
func BenchmarkNotify(b *testing.B) {
	const watchers = 1000
	for name, durability := range map[string]Durability{"memory": Memory, "write-through": WriteThrough} {
		b.Run(name, func(b *testing.B) {
			rt, src := newBench(b, durability)
			for i := range watchers {
				subscribe(rt, i, 3600)
			}
			waitFor(rt, watchers)
			done := uint64(watchers)
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				doc := &Document{Type: pidfType, Body: src.doc.Body}
				rt.Post(ShardOf(alice), func(t *Turn) {
					for _, to := range src.sinks {
						t.Update(Update{To: to, State: Active, Doc: doc})
					}
				})
				done += watchers
				waitFor(rt, done)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*watchers), "ns/NOTIFY")
		})
	}
}

// BenchmarkSubscribe is SUBSCRIBE, 200, NOTIFY, 200 in one shard, with up to
// 256 under way: a new subscription, which stays, or a poll.
func BenchmarkSubscribe(b *testing.B) {
	for _, c := range []struct {
		name       string
		expires    int
		durability Durability
	}{{"new/memory", 3600, Memory}, {"new/write-through", 3600, WriteThrough}, {"poll", 0, Memory}} {
		b.Run(c.name, func(b *testing.B) {
			rt, _ := newBench(b, c.durability)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				subscribe(rt, n, c.expires)
				n++
				if n > 256 {
					waitFor(rt, uint64(n-256))
				}
			}
			waitFor(rt, uint64(n))
		})
	}
}
