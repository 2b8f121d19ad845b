package b2b

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/dialog"
	"rollcall/sip"
)

// sinks takes the Updates of a shard.
type sinks struct {
	got map[dialog.SinkRef]dialog.Update
}

func (s *sinks) Timer(*dialog.Turn, uint64)             {}
func (s *sinks) Update(_ *dialog.Turn, u dialog.Update) { s.got[u.To] = u }

type nowhere struct{}

func (nowhere) Send(sip.Flow, []byte, uint64) error { return nil }

// Beyond Max a shard opens no more; one that ends makes room.
func TestMax(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{Max: 2, Local: func(string) bool { return false }, Self: "sip:rollcall@example.com"})
		presence := &dialog.Package{Name: "presence", Types: []string{"application/pidf+xml"}}
		rt := dialog.New(dialog.Options{
			Packages: dialog.NewRegistry(presence), Durability: dialog.Memory, Sender: nowhere{},
			Components: []func(uint8) dialog.Component{g.Shard, func(uint8) dialog.Component { return &sinks{got: make(map[dialog.SinkRef]dialog.Update)} }},
			Route:      func(string) int { return 0 },
			FlowTo: func(p sip.Proto, to netip.AddrPort) (sip.Flow, error) {
				return sip.Flow{Proto: p, Local: netip.MustParseAddrPort("192.0.2.1:5060"), Remote: to}, nil
			},
		})
		rt.Start()
		defer rt.Stop(context.Background())
		const ann = "sip:ann@192.0.2.99"
		in := func(watcher string) dialog.Interest {
			return dialog.Interest{Package: presence, Resource: ann, URI: ann, Watcher: dialog.Identity{URI: watcher}}
		}
		to := func(i uint64) dialog.SinkRef {
			return dialog.SinkRef{ID: i, Shard: dialog.ShardOf(ann), Component: 1}
		}
		turn := func(f func(t *dialog.Turn, s *Shard, got map[dialog.SinkRef]dialog.Update)) {
			rt.Do(ann, func(t *dialog.Turn) { f(t, t.Component(0).(*Shard), t.Component(1).(*sinks).got) })
			synctest.Wait()
		}
		turn(func(tn *dialog.Turn, s *Shard, _ map[dialog.SinkRef]dialog.Update) {
			s.Attach(tn, in("sip:a@example.com"), to(1))
			s.Attach(tn, in("sip:a@example.com"), to(2)) // shares the first one's
			s.Attach(tn, in("sip:b@example.com"), to(3))
			s.Attach(tn, in("sip:c@example.com"), to(4))
		})
		turn(func(tn *dialog.Turn, s *Shard, got map[dialog.SinkRef]dialog.Update) {
			if u := got[to(4)]; u.State != dialog.Terminated || u.Err == nil || u.Err.Status != 503 || u.Retrying {
				t.Errorf("beyond Max: %+v", u)
			}
			for i := range uint64(3) {
				if u := got[to(i+1)]; u.State != dialog.Unknown {
					t.Errorf("sink %d: %+v, want nothing known yet", i+1, u)
				}
			}
			s.Detach(tn, in("sip:a@example.com"), to(1))
			s.Detach(tn, in("sip:a@example.com"), to(9)) // of nobody
			if n := g.stats.Live.Load(); n != 2 {
				t.Errorf("%d live, want 2", n)
			}
			s.Detach(tn, in("sip:a@example.com"), to(2))
			s.Attach(tn, in("sip:c@example.com"), to(4))
		})
		turn(func(tn *dialog.Turn, s *Shard, got map[dialog.SinkRef]dialog.Update) {
			if u := got[to(4)]; u.State != dialog.Unknown {
				t.Errorf("after one ended: %+v", u)
			}
			s.Detach(tn, in("sip:b@example.com"), to(3))
			s.Detach(tn, in("sip:c@example.com"), to(4))
			if len(s.byKey)+len(s.byID) != 0 || g.stats.Live.Load() != 0 {
				t.Errorf("left over: %v", s.byKey)
			}
		})
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := rt.Stats().Remote.Load(); n != 0 {
			t.Errorf("RL-37: %d dialogs left", n)
		}
	})
}

// rig is a runtime with a gateway, for turns of ann's shard.
type rig struct {
	*dialog.Runtime
	g    *Gateway
	sent *wire
	got  map[dialog.SinkRef]dialog.Update
}

const ann = "sip:ann@192.0.2.99"

// wire counts what leaves, without repetitions, and is a peer that knows its
// dialogs but has nothing to say (204), or answers as the test wants.
type wire struct {
	answer func(m *sip.Message) []byte
	to     func(m *sip.Message)
	mu     sync.Mutex
	seen   map[string]bool
	out    []string // Call-ID, Expires and second of each SUBSCRIBE
	from   time.Time
}

func (w *wire) Send(_ sip.Flow, b []byte, _ uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := new(sip.Message)
	if err := m.Parse(bytes.Clone(b), false); err != nil {
		panic(err)
	}
	if branch := string(m.Via().Branch); !w.seen[branch] {
		w.seen[branch] = true
		id := string(m.CallID())
		if strings.HasSuffix(id, "@rollcall") {
			id = "new"
		}
		var b []byte
		switch {
		case w.answer != nil:
			b = w.answer(m)
		case len(m.To().Tag()) > 0:
			b = sip.AppendResponse(nil, m, 204, "", "")
		}
		if b != nil {
			answer := new(sip.Message)
			if err := answer.Parse(sip.AppendBody(b, "", nil), false); err != nil {
				panic(err)
			}
			w.to(answer)
		}
		w.out = append(w.out, fmt.Sprintf("%s %s %.0f", id, m.Header(sip.HdrExpires), time.Since(w.from).Truncate(time.Second).Seconds()))
	}
	return nil
}

func newRig(t *testing.T) *rig {
	g := New(Options{Local: func(string) bool { return false }, Self: "sip:rollcall@example.com"})
	presence := &dialog.Package{Name: "presence", Types: []string{"application/pidf+xml"}}
	r := &rig{g: g, sent: &wire{seen: make(map[string]bool), from: time.Now()}, got: make(map[dialog.SinkRef]dialog.Update)}
	r.Runtime = dialog.New(dialog.Options{
		Packages: dialog.NewRegistry(presence), Durability: dialog.Memory, Sender: r.sent,
		Components: []func(uint8) dialog.Component{g.Shard, func(uint8) dialog.Component { return &sinks{got: r.got} }},
		Route:      func(string) int { return 0 },
		FlowTo: func(p sip.Proto, to netip.AddrPort) (sip.Flow, error) {
			return sip.Flow{Proto: p, Local: netip.MustParseAddrPort("192.0.2.1:5060"), Remote: to}, nil
		},
	})
	r.sent.to = r.Receive
	r.Start()
	return r
}

// restore brings a subscription for a watcher back.
func (r *rig) restore(t *testing.T, n int, watcher string) {
	row := dialog.RemoteRow{
		ID: fmt.Sprintf("%02x%012x", dialog.ShardOf(ann), n), Event: "presence", Resource: ann, Watcher: watcher, CallID: watcher, LocalURI: watcher,
		RemoteTag: "far", RemoteTarget: ann, Accept: "application/pidf+xml", CSeqCeiling: 9, State: dialog.Active, ContentType: "application/pidf+xml",
		Body: []byte("stored"), WantMS: 3_600_000, CreatedMS: time.Now().Add(-time.Hour).UnixMilli(), ExpiresMS: time.Now().Add(time.Hour).UnixMilli(),
	}
	if err := r.RestoreRemote(0, row); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func (r *rig) turn(f func(t *dialog.Turn, s *Shard)) {
	r.Do(ann, func(t *dialog.Turn) { f(t, t.Component(0).(*Shard)) })
	synctest.Wait()
}

func interest(watcher string) dialog.Interest {
	return dialog.Interest{Package: &dialog.Package{Name: "presence", Types: []string{"application/pidf+xml"}}, Resource: ann, URI: ann,
		Watcher: dialog.Identity{URI: watcher}, Resumed: true}
}

func sink(i uint64) dialog.SinkRef {
	return dialog.SinkRef{ID: i, Shard: dialog.ShardOf(ann), Component: 1}
}

// What is restored waits a minute for somebody who wants it.
func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.Stop(context.Background())
		r.restore(t, 1, "sip:a@example.com")
		r.restore(t, 2, "sip:b@example.com")
		r.restore(t, 3, "sip:c@example.com")
		r.restore(t, 4, "sip:a@example.com") // a second one for the same: too many
		time.Sleep(grace - time.Second)
		synctest.Wait()
		r.turn(func(tn *dialog.Turn, s *Shard) { s.Attach(tn, interest("sip:a@example.com"), sink(1)) })
		if u := r.got[sink(1)]; u.State != dialog.Active || u.Doc == nil || string(u.Doc.Body) != "stored" {
			t.Errorf("attached: %+v", u)
		}
		if n := r.g.stats.Live.Load(); n != 3 {
			t.Errorf("%d live, want 3", n)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if n := r.g.stats.Live.Load(); n != 1 || r.g.stats.Opened.Load() != 0 {
			t.Errorf("after the grace %d live, %d opened", n, r.g.stats.Opened.Load())
		}
		want := []string{
			"sip:a@example.com 0 0", "sip:a@example.com 3600 0", "sip:b@example.com 3600 1", "sip:c@example.com 3600 2", // at least RecoveryGap apart
			"sip:b@example.com 0 61", "sip:c@example.com 0 62",
		}
		if !slices.Equal(r.sent.out, want) {
			t.Errorf("RL-37: sent %q, want %q", r.sent.out, want)
		}
	})
}

// The other server has forgotten the dialogs: the one that is wanted is replaced
// without a word, and when that fails tried again as late as it asks; the other
// is no more.
func TestRestoredLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.Stop(context.Background())
		r.sent.answer = func(m *sip.Message) []byte {
			if len(m.To().Tag()) > 0 {
				return sip.AppendResponse(nil, m, 480, "", "")
			}
			return sip.AppendHeader(sip.AppendResponse(nil, m, 503, "", "x"), "Retry-After", "300")
		}
		r.restore(t, 1, "sip:a@example.com")
		r.restore(t, 2, "sip:b@example.com")
		r.turn(func(tn *dialog.Turn, s *Shard) { s.Attach(tn, interest("sip:a@example.com"), sink(1)) })
		time.Sleep(301 * time.Second)
		synctest.Wait()
		want := []string{"sip:a@example.com 3600 0", "new 3600 0", "sip:b@example.com 3600 1", "new 3600 300"}
		if !slices.Equal(r.sent.out, want) {
			t.Errorf("sent %q, want %q", r.sent.out, want)
		}
		if u := r.got[sink(1)]; u.State != dialog.Terminated || u.Reason != dialog.Probation || r.g.stats.Live.Load() != 1 {
			t.Errorf("%+v, %d live", u, r.g.stats.Live.Load())
		}
	})
}

// Members whose subscriptions ran out while the server was down are opened one
// after the other, and one that nobody wants any more is not.
func TestSpreadOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.Stop(context.Background())
		const n = 10
		watcher := func(i int) string { return fmt.Sprintf("sip:w%d@example.com", i) }
		r.turn(func(tn *dialog.Turn, s *Shard) {
			for i := range n {
				s.Attach(tn, interest(watcher(i)), sink(uint64(i)))
			}
			s.Detach(tn, interest(watcher(4)), sink(4))
			new := interest("sip:new@example.com") // not of before the restart: it does not wait
			new.Resumed = false
			s.Attach(tn, new, sink(99))
		})
		time.Sleep(n * time.Second)
		synctest.Wait()
		if u := r.got[sink(9)]; u.State != dialog.Unknown {
			t.Errorf("meanwhile: %+v", u)
		}
		var want []string
		for i := range n {
			if i == 0 {
				want = append(want, "new 3600 0")
			}
			if i != 4 {
				want = append(want, fmt.Sprintf("new 3600 %d", i))
			}
		}
		if !slices.Equal(r.sent.out, want) {
			t.Errorf("sent %q, want %q", r.sent.out, want)
		}
	})
}
