package pa

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/dialog"
	"rollcall/pa/policy"
)

// A watcherSet agrees with a plain list of the same watchers, in order, through
// arrivals and departures, and its cursor stays before the same one.
func TestWatcherSet(t *testing.T) {
	type entry struct {
		to  dialog.SinkRef
		uri string
	}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		var set watcherSet
		var want []entry
		at, behind := 0, dialog.SinkRef{} // the cursor, and whom it stands before
		for step := range 3000 {
			if grow := step/500%2 == 0; len(want) == 0 || r.IntN(10) < 4 || grow && r.IntN(2) == 0 {
				// Numbers as dialogs and as lists give them: random, and one sink with many members.
				to := dialog.SinkRef{ID: r.Uint64() >> 8, Shard: uint8(r.Uint32()), Component: 0xff}
				if r.IntN(2) == 0 {
					to = dialog.SinkRef{ID: 7, Member: uint32(step), Shard: 3, Component: 2}
				}
				e := entry{to, fmt.Sprintf("sip:%d@example.com", r.Uint64()>>r.IntN(64))}
				want = append(want, e)
				set.add(e.to, e.uri)
			} else {
				i := r.IntN(len(want))
				if want[i].to == behind {
					behind = dialog.SinkRef{}
					if i+1 < len(want) {
						behind = want[i+1].to
					}
				}
				set.remove(set.find(want[i].to))
				want = slices.Delete(want, i, i+1)
				at = set.compact(at)
			}
			if r.IntN(50) == 0 {
				at, behind = len(set.all), dialog.SinkRef{}
				if len(want) > 0 {
					behind = want[r.IntN(len(want))].to
					at = set.find(behind)
				}
			}
			if behind != (dialog.SinkRef{}) {
				next := at
				for set.all[next].is&gone != 0 {
					next++
				}
				if set.all[next].ref() != behind {
					t.Fatalf("seed %d, step %d: the cursor stands before %v, want %v", seed, step, set.all[next].ref(), behind)
				}
			}
			if len(set.all) > 2*max(len(want), fewWatchers) {
				t.Fatalf("seed %d, step %d: %d places for %d", seed, step, len(set.all), len(want))
			}
		}
		var got []entry
		for w := range set.each() {
			got = append(got, entry{w.ref(), set.uri(w)})
		}
		if !slices.Equal(got, want) || set.live != len(want) {
			t.Fatalf("seed %d: %d watchers %v,\nwant %d %v", seed, set.live, got, len(want), want)
		}
		for i, e := range want {
			if p := set.find(e.to); p < 0 || set.all[p].ref() != e.to {
				t.Fatalf("seed %d: watcher %d is not found", seed, i)
			}
			set.remove(set.find(e.to))
			if set.find(e.to) >= 0 {
				t.Fatalf("seed %d: watcher %d is found after it left", seed, i)
			}
			set.compact(0)
		}
		if set.all != nil || set.text != nil || set.index != nil {
			t.Errorf("seed %d: an empty set keeps %d, %d, %d", seed, cap(set.all), cap(set.text), len(set.index))
		}
	}
}

// domainRule gives the watchers of a domain a handling and a view.
func domainRule(domain, handling, what string) string {
	return `<cr:rule id="` + domain + `"><cr:conditions><cr:identity><cr:many domain="` + domain + `"/></cr:identity></cr:conditions><cr:actions><pr:sub-handling>` + handling +
		`</pr:sub-handling></cr:actions><cr:transformations>` + what + `</cr:transformations></cr:rule>`
}

const (
	provideAll      = `<pr:provide-services><pr:all-services/></pr:provide-services><pr:provide-persons><pr:all-persons/></pr:provide-persons><pr:provide-devices><pr:all-devices/></pr:provide-devices><pr:provide-all-attributes/>`
	provideServices = `<pr:provide-services><pr:all-services/></pr:provide-services>`
	provideNotes    = provideServices + `<pr:provide-note>true</pr:provide-note>`
)

// publish sets what alice publishes and tells her watchers.
func publish(t testing.TB, tn *dialog.Turn, s *Shard, basic, note string) {
	t.Helper()
	p := s.presentity(0, alice)
	for _, pub := range p.pubs {
		tn.CancelTimer(pub.timer)
		delete(s.timers, pub.id)
	}
	p.pubs = nil
	row := stored(1, note, tn.Now.Add(24*time.Hour))
	row.Body = fmt.Appendf(nil, `<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="%s"><tuple id="t"><status><basic>%s</basic></status><note>%s</note></tuple></presence>`, alice, basic, note)
	if err := s.Restore(tn, row); err != nil {
		t.Fatal(err)
	}
	s.changed(tn, p)
}

// 10,000 watchers in three views: a change is rendered three times, and once
// when only the whole shows it differs, though every view had to be looked at.
func TestRenderedOncePerView(t *testing.T) {
	rules := &stillRules{sets: mustRules(t, domainRule("a.example", "allow", provideAll)+domainRule("b.example", "allow", provideServices)+domainRule("c.example", "allow", provideNotes))}
	inShard(t, Options{Rules: rules}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		const watchers = 10_000
		var before uint64
		turn(func(tn *dialog.Turn, s *Shard, _ *sinks) {
			publish(t, tn, s, "open", "one")
			for i := range watchers {
				s.Attach(tn, interest(fmt.Sprintf("sip:w%d@%c.example", i, 'a'+i%3)), sink(i))
			}
		})
		for i, want := range []struct {
			basic, note string
			told        int
		}{{"closed", "one", watchers}, {"closed", "two", watchers - watchers/3}, {"open", "two", watchers}} {
			turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
				if n := s.a.stats.Rendered.Load() - before; i > 0 && n != 3 || n > 4 {
					t.Errorf("before change %d: rendered %d times, want 3", i, n)
				}
				clear(out.got)
				before = s.a.stats.Rendered.Load()
				publish(t, tn, s, want.basic, want.note)
			})
			turn(func(_ *dialog.Turn, s *Shard, out *sinks) {
				if n := s.a.stats.Rendered.Load() - before; n != 3 {
					t.Errorf("change %d: rendered %d times, want 3", i, n)
				}
				docs := make(map[*dialog.Document]bool)
				for to, us := range out.got {
					if len(us) != 1 {
						t.Errorf("change %d: %v is told %d times", i, to, len(us))
					}
					docs[us[0].Doc] = true
				}
				if len(out.got) != want.told || len(docs) > 3 {
					t.Errorf("change %d: %d are told %d documents, want %d", i, len(out.got), len(docs), want.told)
				}
			})
		}
	})
}

// chain runs f in turns of its own, with pieces of walks in between, until it
// returns false.
func chain(tn *dialog.Turn, f func(tn *dialog.Turn) bool) {
	tn.Later(func(tn *dialog.Turn) {
		if f(tn) {
			chain(tn, f)
		}
	})
}

// A change with many watchers tells none of them in its own turn, in which the
// PUBLISH is answered, and a piece in each turn after it, in the order in which
// they came.
func TestWalkInPieces(t *testing.T) {
	inShard(t, Options{Mode: Open}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		const watchers = 10*walkPiece + 1
		turn(func(tn *dialog.Turn, s *Shard, _ *sinks) {
			for i := range watchers {
				s.Attach(tn, interest("sip:w@example.com"), sink(i))
			}
			for i := range watchers / 3 { // with gaps
				s.Detach(tn, interest("sip:w@example.com"), sink(3*i))
			}
		})
		var told []int
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			clear(out.got)
			out.order = nil
			chain(tn, func(*dialog.Turn) bool {
				told = append(told, len(out.order))
				return s.all[0][alice].walk != nil
			})
			publish(t, tn, s, "open", "one")
		})
		turn(func(_ *dialog.Turn, s *Shard, out *sinks) {
			if len(told) != 12 || told[0] != 0 {
				t.Errorf("told after each turn: %v, want 11 pieces, the first after the change", told)
			}
			for i := 1; i < len(told); i++ {
				if n := told[i] - told[i-1]; n > walkPiece {
					t.Errorf("%d are told in a turn", n)
				}
			}
			want := 0
			for _, to := range out.order {
				if want%3 == 0 && want < watchers/3*3 {
					want++
				}
				if to != sink(want) {
					t.Errorf("%v is told, want %v", to, sink(want))
				}
				want++
			}
			if len(out.order) != watchers-watchers/3 {
				t.Errorf("%d are told, want %d", len(out.order), watchers-watchers/3)
			}
		})
	})
}

// Whatever changes, comes and goes during a walk: when all is quiet, each
// watcher was told last what it may see now, nobody was told the same twice in
// a row, and who had left was told nothing.
func TestWalkUnderChange(t *testing.T) {
	domains := []string{"a.example", "b.example", "c.example", "d.example"}
	ruleSets := [][]*policy.Ruleset{
		mustRules(t, domainRule("a.example", "allow", provideAll)+domainRule("b.example", "allow", provideServices)+domainRule("c.example", "polite-block", "")),
		mustRules(t, domainRule("a.example", "allow", provideServices)+domainRule("b.example", "allow", provideNotes)+domainRule("c.example", "allow", provideAll)+domainRule("d.example", "allow", provideAll)),
		mustRules(t, domainRule("a.example", "polite-block", "")+domainRule("b.example", "confirm", "")+domainRule("d.example", "allow", provideServices)),
	}
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 2))
		rules := &stillRules{sets: ruleSets[0]}
		inShard(t, Options{Rules: rules}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
			watcher := make(map[int]string)
			next := 0
			attach := func(tn *dialog.Turn, s *Shard) {
				watcher[next] = fmt.Sprintf("sip:w%d@%s", next, domains[r.IntN(len(domains))])
				s.Attach(tn, interest(watcher[next]), sink(next))
				next++
			}
			turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
				publish(t, tn, s, "open", "start")
				for range 4 * walkPiece {
					attach(tn, s)
				}
				steps := 0
				chain(tn, func(tn *dialog.Turn) bool {
					switch r.IntN(6) {
					case 0, 1:
						publish(t, tn, s, []string{"open", "closed"}[r.IntN(2)], []string{"one", "two"}[r.IntN(2)])
					case 2:
						rules.mu.Lock()
						rules.sets = ruleSets[r.IntN(len(ruleSets))]
						rules.mu.Unlock()
						s.RulesChanged(tn, alice)
					case 3:
						for range r.IntN(walkPiece) {
							attach(tn, s)
						}
					case 4: // from anywhere, also from where the walk has been
						n := r.IntN(2 * walkPiece)
						for i := range next {
							if uri, ok := watcher[i]; ok && n > 0 && r.IntN(4) == 0 {
								s.Detach(tn, interest(uri), sink(i))
								delete(watcher, i)
								n--
							}
						}
					}
					steps++
					return steps < 60
				})
			})
			turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
				p := s.all[0][alice]
				if p.walk != nil {
					t.Errorf("seed %d: a walk without end", seed)
				}
				live := 0
				for i := range next {
					us := out.got[sink(i)]
					for j := 1; j < len(us); j++ {
						if us[j].State == us[j-1].State && us[j].Doc == us[j-1].Doc {
							t.Errorf("seed %d: watcher %d is told %v %p twice in a row", seed, i, us[j].State, us[j].Doc)
						}
					}
					place := p.watchers.find(sink(i))
					uri, attached := watcher[i]
					if place < 0 {
						if last := us[len(us)-1]; attached && last.State != dialog.Terminated {
							t.Errorf("seed %d: watcher %d is lost, told last %+v", seed, i, last)
						}
						continue
					}
					live++
					d, _ := s.a.Decide(Question{Watcher: uri, Resource: alice, Sphere: p.sphere(), Sets: rules.sets, Now: tn.Now})
					var body []byte
					switch d.Handling {
					case policy.Allow, policy.PoliteBlock:
						body = s.render(tn, p, &view{transform: d.Transform, polite: d.Handling == policy.PoliteBlock}).Body
					case policy.Block:
						t.Errorf("seed %d: watcher %d is blocked and attached", seed, i)
					}
					last := us[len(us)-1]
					if (body == nil) != (last.State == dialog.Pending) || body != nil && string(last.Doc.Body) != string(body) {
						t.Errorf("seed %d: watcher %d (%v) was told last %v %v, want\n%s", seed, i, d.Handling, last.State, last.Doc, body)
					}
				}
				if int64(live) != s.a.stats.Watchers.Load() || live != p.watchers.live {
					t.Errorf("seed %d: %d watchers, counted %d and %d", seed, live, s.a.stats.Watchers.Load(), p.watchers.live)
				}
				counts := make(map[uint32]int)
				for w := range p.watchers.each() {
					counts[w.view]++
				}
				if p.views != nil {
					for i, v := range p.views.list {
						if v != nil && v.watchers != counts[uint32(i+1)] {
							t.Errorf("seed %d: view %s counts %d watchers, has %d", seed, v.key, v.watchers, counts[uint32(i+1)])
						}
					}
				}
			})
		})
	}
}

// Views that rules made and nobody has any more are forgotten, and their
// numbers are used again.
func TestViewsForgotten(t *testing.T) {
	rules := &stillRules{}
	inShard(t, Options{Rules: rules}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		for i := range 200 {
			rules.sets = mustRules(t, domainRule("example.com", "allow", fmt.Sprintf(`<pr:provide-services><pr:occurrence-id>t%d</pr:occurrence-id></pr:provide-services>`, i)))
			turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
				if i == 0 {
					for j := range 3 {
						s.Attach(tn, interest("sip:w@example.com"), sink(j))
					}
				}
				s.RulesChanged(tn, alice)
				if vs := s.all[0][alice].views; len(vs.byKey) > keptViews+1 || len(vs.list) > keptViews+1 {
					t.Errorf("after %d rules: %d views in %d places", i, len(vs.byKey), len(vs.list))
				}
			})
		}
	})
}

// A resource that somebody else serves from now on: every watcher is told so
// once, however many there are, and nothing is left.
func TestReleasedInPieces(t *testing.T) {
	inShard(t, Options{Mode: Open}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		const watchers = 5 * walkPiece
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			for i := range watchers {
				s.Attach(tn, interest("sip:w@example.com"), sink(i))
			}
		})
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			clear(out.got)
			publish(t, tn, s, "open", "one")
			turns := 0
			chain(tn, func(tn *dialog.Turn) bool {
				if turns++; turns == 2 { // in the middle of a walk
					s.Released(tn, alice)
					s.drop(tn, s.all[0][alice], s.all[0][alice].pubs[0])
				}
				return turns < 20
			})
		})
		turn(func(_ *dialog.Turn, s *Shard, out *sinks) {
			for i := range watchers {
				us := out.got[sink(i)]
				if len(us) == 0 || us[len(us)-1].Reason != dialog.Deactivated || slices.ContainsFunc(us[:len(us)-1], func(u dialog.Update) bool { return u.State == dialog.Terminated }) {
					t.Errorf("watcher %d got %+v, want one end", i, us)
				}
			}
			if len(s.all[0]) != 0 || s.a.stats.Watchers.Load() != 0 || s.a.stats.Presentities.Load() != 0 {
				t.Errorf("left over: %v, %d watchers", s.all, s.a.stats.Watchers.Load())
			}
		})
	})
}

// A panic at a watcher ends neither the walk nor the ones to come.
func TestWalkPanic(t *testing.T) {
	rules := &stillRules{sets: mustRules(t, domainRule("example.com", "allow", provideAll))}
	inShard(t, Options{Rules: rules}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		for _, watchers := range []int{3, 2 * walkPiece} {
			turn(func(tn *dialog.Turn, s *Shard, _ *sinks) {
				for i := range watchers {
					s.Attach(tn, interest(fmt.Sprintf("sip:w%d@example.com", i)), sink(i))
				}
			})
			good := rules.sets
			turn(func(tn *dialog.Turn, s *Shard, _ *sinks) {
				rules.sets = []*policy.Ruleset{nil} // which Evaluate cannot read
				s.RulesChanged(tn, alice)
			})
			time.Sleep(time.Second)
			synctest.Wait()
			turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
				rules.sets = good
				clear(out.got)
				publish(t, tn, s, "open", fmt.Sprint(watchers))
			})
			turn(func(_ *dialog.Turn, s *Shard, out *sinks) {
				if len(out.got) != watchers {
					t.Errorf("%d of %d watchers are told after a walk that panicked", len(out.got), watchers)
				}
			})
		}
	})
}
