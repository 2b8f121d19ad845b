package pa

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/dialog"
	"rollcall/pa/pidf"
	"rollcall/pa/policy"
	"rollcall/sip"
)

const alice = "sip:alice@example.com"

// sinks takes the Updates of a shard.
type sinks struct {
	got   map[dialog.SinkRef][]dialog.Update
	order []dialog.SinkRef
}

func (s *sinks) Timer(*dialog.Turn, uint64) {}
func (s *sinks) Update(_ *dialog.Turn, u dialog.Update) {
	s.got[u.To] = append(s.got[u.To], u)
	s.order = append(s.order, u.To)
}

// last empties a sink and returns its newest Update.
func (s *sinks) last(to dialog.SinkRef) dialog.Update {
	all := s.got[to]
	delete(s.got, to)
	if len(all) == 0 {
		return dialog.Update{State: 99}
	}
	return all[len(all)-1]
}

// stillRules is a RuleSource that always knows.
type stillRules struct {
	mu   sync.Mutex
	sets []*policy.Ruleset
}

func (r *stillRules) Cached(string) ([]*policy.Ruleset, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sets, true
}

func (r *stillRules) Fetch(context.Context, string) ([]*policy.Ruleset, error) { return r.sets, nil }

// inShard runs f in turns of alice's shard: each call of turn is one.
func inShard(t *testing.T, opt Options, f func(turn func(func(t *dialog.Turn, s *Shard, out *sinks)))) {
	synctest.Test(t, func(t *testing.T) {
		agent := New(opt)
		rt := dialog.New(dialog.Options{
			Packages: dialog.NewRegistry(Events(Presence())...), Durability: dialog.Memory, Sender: nowhere{},
			Components: []func(uint8) dialog.Component{agent.Shard, func(uint8) dialog.Component { return &sinks{got: make(map[dialog.SinkRef][]dialog.Update)} }},
			Route:      func(string) int { return 0 },
		})
		rt.Start()
		defer rt.Stop(context.Background())
		f(func(g func(*dialog.Turn, *Shard, *sinks)) {
			rt.Do(alice, func(t *dialog.Turn) { g(t, t.Component(0).(*Shard), t.Component(1).(*sinks)) })
			synctest.Wait()
		})
	})
}

type nowhere struct{}

func (nowhere) Send(sip.Flow, []byte, uint64) error { return nil }

func sink(i int) dialog.SinkRef {
	return dialog.SinkRef{ID: uint64(i + 1), Shard: dialog.ShardOf(alice), Component: 1}
}

func interest(watcher string) dialog.Interest {
	return dialog.Interest{Package: &Presence().Package, Resource: alice, URI: alice, Watcher: dialog.Identity{URI: watcher}}
}

func stored(seq uint64, note string, expires time.Time) PublicationRow {
	return PublicationRow{Resource: alice, Event: "presence", ID: fmt.Sprint("p", seq), ETag: fmt.Sprint("tag", seq), ContentType: pidf.MediaType, Seq: seq,
		Body:      fmt.Appendf(nil, `<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="%s"><tuple id="t"><status><basic>open</basic></status><note>%s</note></tuple></presence>`, alice, note),
		ExpiresMS: expires.UnixMilli()}
}

func mustRules(t testing.TB, body string) []*policy.Ruleset {
	t.Helper()
	set, err := policy.Parse([]byte(`<cr:ruleset xmlns:cr="urn:ietf:params:xml:ns:common-policy" xmlns:pr="urn:ietf:params:xml:ns:pres-rules">` + body + `</cr:ruleset>`))
	if err != nil {
		t.Fatal(err)
	}
	return []*policy.Ruleset{set}
}

// A document is rendered once per view, not once per watcher: 1,000 watchers of
// three views share three documents, before and after a change.
func TestOneDocumentPerView(t *testing.T) {
	rule := func(domain, handling, what string) string {
		return `<cr:rule id="` + domain + `"><cr:conditions><cr:identity><cr:many domain="` + domain + `"/></cr:identity></cr:conditions><cr:actions><pr:sub-handling>` + handling +
			`</pr:sub-handling></cr:actions><cr:transformations>` + what + `</cr:transformations></cr:rule>`
	}
	const services = `<pr:provide-services><pr:all-services/></pr:provide-services>`
	rules := &stillRules{sets: mustRules(t, rule("a.example", "allow", services+`<pr:provide-persons><pr:all-persons/></pr:provide-persons><pr:provide-devices><pr:all-devices/></pr:provide-devices><pr:provide-all-attributes/>`)+
		rule("b.example", "allow", services)+rule("c.example", "polite-block", ""))}
	inShard(t, Options{Rules: rules}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		docs := func(out *sinks) map[*dialog.Document]int {
			n := make(map[*dialog.Document]int)
			for to := range out.got {
				if len(out.got[to]) != 1 {
					t.Errorf("sink %v got %d updates, want 1", to, len(out.got[to]))
				}
				n[out.last(to).Doc]++
			}
			return n
		}
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			if err := s.Restore(tn, stored(1, "one", tn.Now.Add(time.Hour))); err != nil {
				t.Fatal(err)
			}
			for i := range 1000 {
				s.Attach(tn, interest(fmt.Sprintf("sip:w%d@%c.example", i, 'a'+i%3)), sink(i))
			}
		})
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			if n := docs(out); len(n) != 3 {
				t.Errorf("%d documents for 3 views: %v", len(n), n)
			}
			if err := s.Restore(tn, stored(2, "two", tn.Now.Add(time.Hour))); err != nil {
				t.Fatal(err)
			}
			s.changed(tn, s.all[0][alice])
		})
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			n := docs(out)
			if len(n) != 2 {
				t.Errorf("%d documents after a change that two views see", len(n))
			}
			for d := range n {
				if strings.Contains(string(d.Body), "two") != strings.Contains(string(d.Body), "<note>") {
					t.Errorf("document\n%s", d.Body)
				}
			}
			// A change that only one view sees: notes are hidden from the other.
			p := s.all[0][alice]
			s.drop(tn, p, p.pubs[1])
			if err := s.Restore(tn, stored(3, "three", tn.Now.Add(time.Hour))); err != nil {
				t.Fatal(err)
			}
			s.changed(tn, p)
		})
		turn(func(_ *dialog.Turn, s *Shard, out *sinks) {
			for i := range 1000 {
				u := out.got[sink(i)]
				switch {
				case i%3 == 0 && (len(u) != 1 || !strings.Contains(string(u[0].Doc.Body), "three")), i%3 != 0 && len(u) != 0:
					t.Errorf("watcher %d got %d updates", i, len(u))
				}
			}
			if n := len(s.all[0][alice].views.byKey); n != 2 {
				t.Errorf("%d views are kept, want 2 besides the whole", n)
			}
		})
	})
}

// Beyond MaxWatchers new ones are refused with 503; a detached one makes room.
func TestMaxWatchers(t *testing.T) {
	inShard(t, Options{Mode: Open, MaxWatchers: 2}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			for i := range 3 {
				s.Attach(tn, interest("sip:w@example.com"), sink(i))
			}
		})
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			if u := out.last(sink(2)); u.State != dialog.Terminated || u.Err == nil || u.Err.Status != 503 || u.Err.RetryAfter == 0 {
				t.Errorf("third watcher got %+v, want 503", u)
			}
			s.Detach(tn, interest("sip:w@example.com"), sink(0))
			s.Attach(tn, interest("sip:w@example.com"), sink(3))
		})
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			if u := out.last(sink(3)); u.State != dialog.Active {
				t.Errorf("after one left: %+v", u)
			}
			if n := s.a.stats.Watchers.Load(); n != 2 {
				t.Errorf("%d watchers, want 2", n)
			}
			for _, i := range []int{1, 3, 0, 7} { // also those that are not there
				s.Detach(tn, interest("sip:w@example.com"), sink(i))
			}
			if n, p := s.a.stats.Watchers.Load(), s.a.stats.Presentities.Load(); n != 0 || p != 0 {
				t.Errorf("%d watchers and %d presentities, want 0", n, p)
			}
		})
	})
}

// Restored publications keep entity tag, order and expiry; those that ran out
// while nobody could refresh them get a minute.
func TestRestore(t *testing.T) {
	inShard(t, Options{Mode: Open}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			for _, row := range []PublicationRow{stored(7, "newest", tn.Now.Add(-time.Hour)), stored(3, "oldest", tn.Now.Add(time.Hour)), stored(5, "middle", tn.Now.Add(90*time.Second))} {
				if err := s.Restore(tn, row); err != nil {
					t.Fatal(err)
				}
			}
			p := s.all[0][alice]
			if p.pubs[0].row.ETag != "tag3" || p.pubs[1].row.ETag != "tag5" || p.pubs[2].row.ETag != "tag7" || p.byTag("tag7") == nil || p.seq != 7 {
				t.Errorf("restored: %v, seq %d", p.pubs, p.seq)
			}
			if err := s.Restore(tn, PublicationRow{Resource: "sip:bob@example.com", Event: "presence", Body: []byte("<broken")}); err == nil || s.all[0]["sip:bob@example.com"] != nil {
				t.Errorf("a broken row is restored")
			}
			s.Attach(tn, interest("sip:w@example.com"), sink(0))
		})
		for _, want := range []struct {
			wait time.Duration
			note string
			pubs int64
		}{{59 * time.Second, "oldest", 3}, {2 * time.Second, "middle", 2}, {30 * time.Second, "oldest", 1}, {time.Hour, "", 0}} {
			time.Sleep(want.wait)
			synctest.Wait()
			turn(func(_ *dialog.Turn, s *Shard, out *sinks) {
				if n := s.a.stats.Publications.Load(); n != want.pubs {
					t.Errorf("after %v: %d publications, want %d", want.wait, n, want.pubs)
				}
				if u := out.last(sink(0)); u.Doc == nil || !strings.Contains(string(u.Doc.Body), want.note) {
					t.Errorf("PUB-14 after %v: watcher got %+v", want.wait, u)
				}
			})
		}
	})
}

// PR-04: a restored publication says the sphere too.
func TestRestoreSphere(t *testing.T) {
	rules := &stillRules{sets: mustRules(t, `<cr:rule id="a"><cr:conditions><cr:sphere value="work"/></cr:conditions><cr:actions><pr:sub-handling>allow</pr:sub-handling></cr:actions></cr:rule>`)}
	inShard(t, Options{Rules: rules}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		turn(func(tn *dialog.Turn, s *Shard, _ *sinks) {
			row := stored(1, "", tn.Now.Add(time.Hour))
			row.Body = []byte(`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid" entity="` + alice +
				`"><dm:person id="p"><r:sphere><r:work/></r:sphere></dm:person></presence>`)
			if err := s.Restore(tn, row); err != nil {
				t.Fatal(err)
			}
			s.Attach(tn, interest("sip:w@example.com"), sink(0))
		})
		turn(func(_ *dialog.Turn, _ *Shard, out *sinks) {
			if u := out.last(sink(0)); u.State != dialog.Active {
				t.Errorf("PR-04: %+v, want active", u)
			}
		})
	})
}

// A watcher that leaves while rules are being read is not brought back.
func TestDetachWhileFetching(t *testing.T) {
	inShard(t, Options{Rules: slowRules{}}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		turn(func(tn *dialog.Turn, s *Shard, _ *sinks) { s.Attach(tn, interest("sip:w@example.com"), sink(0)) })
		turn(func(tn *dialog.Turn, s *Shard, _ *sinks) { s.Detach(tn, interest("sip:w@example.com"), sink(0)) })
		time.Sleep(time.Minute)
		synctest.Wait()
		turn(func(_ *dialog.Turn, s *Shard, out *sinks) {
			if len(out.got) != 0 || len(s.all[0]) != 0 || len(s.timers) != 0 || s.a.stats.Presentities.Load() != 0 {
				t.Errorf("left over: %v, %v, %v", out.got, s.all[0], s.timers)
			}
		})
	})
}

// slowRules are never cached and take a second.
type slowRules struct{}

func (slowRules) Cached(string) ([]*policy.Ruleset, bool) { return nil, false }
func (slowRules) Fetch(context.Context, string) ([]*policy.Ruleset, error) {
	time.Sleep(time.Second)
	return nil, nil
}
