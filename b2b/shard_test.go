package b2b

import (
	"context"
	"net/netip"
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
