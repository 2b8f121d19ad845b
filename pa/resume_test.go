package pa

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/dialog"
	"rollcall/pa/policy"
)

// readRules are never cached; what reading them gives can be set.
type readRules struct {
	wait time.Duration
	give atomic.Pointer[readResult]
	n    atomic.Int32
}

type readResult struct {
	sets []*policy.Ruleset
	err  error
}

func (r *readRules) Cached(string) ([]*policy.Ruleset, bool) { return nil, false }

func (r *readRules) Fetch(context.Context, string) ([]*policy.Ruleset, error) {
	r.n.Add(1)
	time.Sleep(r.wait)
	g := r.give.Load()
	return g.sets, g.err
}

// PR-18: a publication that changes the sphere is not shown by the decision for
// the old one, neither while the rules are read nor when they cannot be, and
// neither is a later one.
func TestSphereWhileRulesAreRead(t *testing.T) {
	rules := &readRules{wait: time.Second}
	atHome := &readResult{sets: mustRules(t, `<cr:rule id="a"><cr:conditions><cr:sphere value="home"/></cr:conditions><cr:actions><pr:sub-handling>allow</pr:sub-handling></cr:actions>
		<cr:transformations><pr:provide-persons><pr:all-persons/></pr:provide-persons><pr:provide-all-attributes/></cr:transformations></cr:rule>`)}
	rules.give.Store(atHome)
	row := func(seq uint64, sphere, note string) PublicationRow {
		r := stored(seq, "", time.Now().Add(time.Hour))
		r.Body = fmt.Appendf(nil, `<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid" entity="%s"><dm:person id="p"><r:sphere><r:%s/></r:sphere><dm:note>%s</dm:note></dm:person></presence>`, alice, sphere, note)
		return r
	}
	inShard(t, Options{Rules: rules}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		publish := func(seq uint64, before, sphere, note string) {
			turn(func(tn *dialog.Turn, s *Shard, _ *sinks) {
				if p := s.all[0][alice]; p != nil {
					p.pubs = nil
				}
				if err := s.Restore(tn, row(seq, sphere, note)); err != nil {
					t.Fatal(err)
				}
				if p := s.all[0][alice]; before != "" {
					p.kept = presenceSphere(before)
					s.changed(tn, p)
				}
			})
		}
		look := func() (u dialog.Update) {
			turn(func(_ *dialog.Turn, _ *Shard, out *sinks) { u = out.last(sink(0)) })
			return u
		}
		const nobody = 99 // see sinks.last
		publish(1, "", "home", "at home")
		turn(func(tn *dialog.Turn, s *Shard, _ *sinks) { s.Attach(tn, interest("sip:w@example.com"), sink(0)) })
		time.Sleep(2 * time.Second)
		if u := look(); u.State != dialog.Active || u.Doc == nil || !strings.Contains(string(u.Doc.Body), "at home") {
			t.Fatalf("at home: %+v", u)
		}
		rules.give.Store(&readResult{err: errors.New("server unreachable")})
		publish(2, "home", "work", "secret")
		if u := look(); u.State != nobody {
			t.Errorf("while the rules are read: %+v", u)
		}
		time.Sleep(30 * time.Second)
		if u := look(); u.State != nobody {
			t.Errorf("when they cannot be read: %+v", u)
		}
		publish(3, "work", "work", "secret too")
		time.Sleep(5 * time.Second)
		if u := look(); u.State != nobody {
			t.Errorf("what is published later: %+v", u)
		}
		rules.give.Store(atHome)
		time.Sleep(2 * rulesRetry)
		if u := look(); u.State != dialog.Pending || u.Doc != nil {
			t.Errorf("when the rules are read: %+v, want pending", u)
		}
		publish(4, "work", "home", "home again")
		time.Sleep(2 * time.Second)
		if u := look(); u.State != dialog.Active || !strings.Contains(string(u.Doc.Body), "home again") {
			t.Errorf("home again: %+v", u)
		}
	})
}

// After a restart nobody's rules are known. They are read for all, many as they
// are, and a new watcher does not wait for those who came back.
func TestRulesOfManyAfterRestart(t *testing.T) {
	const people = 6000
	rules := &readRules{wait: 50 * time.Millisecond}
	rules.give.Store(&readResult{})
	synctest.Test(t, func(t *testing.T) {
		agent := New(Options{Mode: Allow, Rules: rules})
		rt := dialog.New(dialog.Options{
			Packages: dialog.NewRegistry(Events(Presence())...), Durability: dialog.Memory, Sender: nowhere{},
			Components: []func(uint8) dialog.Component{agent.Shard, func(uint8) dialog.Component { return &sinks{got: make(map[dialog.SinkRef][]dialog.Update)} }},
			Route:      func(string) int { return 0 },
		})
		rt.Start()
		defer rt.Stop(context.Background())
		attach := func(i int, who string, ref uint64, resumed bool) {
			key := fmt.Sprintf("sip:p%d@example.com", i)
			in := dialog.Interest{Package: &Presence().Package, Resource: key, URI: key, Watcher: dialog.Identity{URI: who}, Resumed: resumed}
			to := dialog.SinkRef{ID: ref, Shard: dialog.ShardOf(key), Component: 1}
			rt.Do(key, func(t *dialog.Turn) { t.Component(0).(*Shard).Attach(t, in, to) })
		}
		for i := range people {
			attach(i, "sip:old@example.com", uint64(i+1), true)
		}
		attach(0, "sip:new@example.com", people+1, false) // whose rules are among the first that were wanted, or the last
		attach(people-1, "sip:new@example.com", people+2, false)
		time.Sleep(4 * time.Second)
		states := func() map[dialog.SinkRef][]dialog.Update {
			all := make(map[dialog.SinkRef][]dialog.Update)
			rt.Each(func(t *dialog.Turn) {
				for to, us := range t.Component(1).(*sinks).got {
					all[to] = us
				}
			})
			return all
		}
		fresh := 0
		for to := range states() {
			if to.ID > people {
				fresh++
			}
		}
		if fresh != 2 {
			t.Errorf("%d of 2 new watchers are answered within 4 s, while all take 19", fresh)
		}
		time.Sleep(people / 16 * 50 * time.Millisecond)
		synctest.Wait()
		got := states()
		if len(got) != people+2 {
			t.Errorf("%d watchers have heard, want %d", len(got), people+2)
		}
		for to, us := range got {
			if len(us) != 1 || us[0].State != dialog.Active {
				t.Fatalf("watcher %d: %+v", to.ID, us)
			}
		}
		if n := rules.n.Load(); n > people+100 {
			t.Errorf("%d reads", n)
		}
	})
}

// PR-18: rules that cannot be read after a restart take nothing from who came
// back, and give nothing.
func TestRulesUnreadableAfterRestart(t *testing.T) {
	rules := &readRules{}
	rules.give.Store(&readResult{err: errors.New("server unreachable")})
	inShard(t, Options{Mode: Allow, Rules: rules}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		turn(func(tn *dialog.Turn, s *Shard, _ *sinks) {
			if err := s.Restore(tn, stored(1, "x", tn.Now.Add(time.Hour))); err != nil {
				t.Fatal(err)
			}
			in := interest("sip:w@example.com")
			in.Resumed = true
			s.Attach(tn, in, sink(0))
			s.Attach(tn, interest("sip:new@example.com"), sink(1))
		})
		time.Sleep(time.Second)
		turn(func(_ *dialog.Turn, _ *Shard, out *sinks) {
			if u := out.last(sink(0)); u.State != dialog.Unknown || u.Doc != nil {
				t.Errorf("of before the restart: %+v", u)
			}
			if u := out.last(sink(1)); u.State != dialog.Pending || u.Doc != nil {
				t.Errorf("new: %+v", u)
			}
		})
		rules.give.Store(&readResult{})
		time.Sleep(2 * rulesRetry)
		turn(func(_ *dialog.Turn, _ *Shard, out *sinks) {
			for i := range 2 {
				if u := out.last(sink(i)); u.State != dialog.Active || u.Doc == nil {
					t.Errorf("when they are read: %d %+v", i, u)
				}
			}
		})
	})
}

// presenceSphere is what presence remembers: a parameter may hide its type.
func presenceSphere(v string) any { return sphere(v) }
