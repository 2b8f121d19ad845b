package pa

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"rollcall/dialog"
)

// discard takes Updates and counts them.
type discard struct{ n int }

func (d *discard) Timer(*dialog.Turn, uint64)         {}
func (d *discard) Update(*dialog.Turn, dialog.Update) { d.n++ }

// benchShard gives turns of alice's shard.
func benchShard(b *testing.B, opt Options) func(func(*dialog.Turn, *Shard, *discard)) {
	agent := New(opt)
	rt := dialog.New(dialog.Options{
		Packages: dialog.NewRegistry(Events(Presence())...), Durability: dialog.Memory, Sender: nowhere{},
		Components: []func(uint8) dialog.Component{agent.Shard, func(uint8) dialog.Component { return &discard{} }},
		Route:      func(string) int { return 0 },
	})
	rt.Start()
	b.Cleanup(func() { rt.Stop(context.Background()) })
	return func(f func(*dialog.Turn, *Shard, *discard)) {
		rt.Do(alice, func(t *dialog.Turn) { f(t, t.Component(0).(*Shard), t.Component(1).(*discard)) })
	}
}

// heap is the live heap in bytes and how long a full collection took.
func heap() (uint64, time.Duration) {
	runtime.GC()
	start := time.Now()
	runtime.GC()
	d := time.Since(start)
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, d
}

// servicesOnly lets everybody see the tuples without their notes.
const servicesOnly = `<cr:rule id="a"><cr:conditions/><cr:actions><pr:sub-handling>allow</pr:sub-handling></cr:actions>` +
	`<cr:transformations><pr:provide-services><pr:all-services/></pr:provide-services></cr:transformations></cr:rule>`

// BenchmarkAttach is the live heap of 100,000 watchers, its part of the
// presentities included, of whom nobody publishes.
func BenchmarkAttach(b *testing.B) {
	const watchers = 100_000
	for _, c := range []struct {
		name  string
		each  int // watchers of a presentity
		rules string
	}{{"open/1", 1, ""}, {"open/10", 10, ""}, {"open/100000", watchers, ""}, {"view/10", 10, servicesOnly}, {"view/100000", watchers, servicesOnly}} {
		b.Run(c.name, func(b *testing.B) {
			opt := Options{Mode: Open}
			if c.rules != "" {
				opt = Options{Rules: &stillRules{sets: mustRules(b, c.rules)}}
			}
			for b.Loop() {
				turn := benchShard(b, opt)
				presence := &Presence().Package
				before, _ := heap()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				allocs := m.Mallocs
				start := time.Now()
				for i := 0; i < watchers; i += 1000 {
					turn(func(t *dialog.Turn, s *Shard, _ *discard) {
						for j := i; j < i+1000; j++ {
							resource := fmt.Sprintf("sip:presentity%06d@example.com", j/c.each)
							s.Attach(t, dialog.Interest{Package: presence, Resource: resource, URI: resource,
								Watcher: dialog.Identity{URI: fmt.Sprintf("sip:watcher%06d@example.com", j)}}, sink(j))
						}
					})
				}
				took := time.Since(start)
				runtime.ReadMemStats(&m)
				after, gc := heap()
				b.ReportMetric(float64(after-before)/watchers, "B/watcher")
				b.ReportMetric(float64(m.Mallocs-allocs)/watchers, "allocs/watcher")
				b.ReportMetric(float64(took.Nanoseconds())/watchers, "ns/watcher")
				b.ReportMetric(float64(gc.Microseconds())/1000, "ms/GC")
				turn(func(_ *dialog.Turn, s *Shard, d *discard) { // alive until here
					if d.n != watchers || len(s.all[0]) == 0 {
						b.Errorf("%d updates, %d presentities", d.n, len(s.all[0]))
					}
				})
			}
		})
	}
}

// BenchmarkChange is one change of a presentity with 1,000 watchers.
func BenchmarkChange(b *testing.B) {
	const watchers = 1000
	for _, c := range []struct{ name, rules string }{{"open", ""}, {"view", servicesOnly}} {
		b.Run(c.name, func(b *testing.B) {
			opt := Options{Mode: Open}
			if c.rules != "" {
				opt = Options{Rules: &stillRules{sets: mustRules(b, c.rules)}}
			}
			turn := benchShard(b, opt)
			turn(func(t *dialog.Turn, s *Shard, _ *discard) {
				for i := range watchers {
					s.Attach(t, interest(fmt.Sprintf("sip:watcher%d@example.com", i)), sink(i))
				}
			})
			basic := [2]string{"open", "closed"}
			total, start := 0, 0
			turn(func(_ *dialog.Turn, _ *Shard, d *discard) { start = d.n })
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				turn(func(t *dialog.Turn, s *Shard, _ *discard) {
					p := s.presentity(0, alice)
					for _, pub := range p.pubs {
						t.CancelTimer(pub.timer)
						delete(s.timers, pub.id)
					}
					p.pubs = nil
					row := stored(1, "", t.Now.Add(time.Hour))
					row.Body = fmt.Appendf(nil, `<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="%s"><tuple id="t"><status><basic>%s</basic></status></tuple></presence>`, alice, basic[i%2])
					if err := s.Restore(t, row); err != nil {
						b.Fatal(err)
					}
					s.changed(t, p)
				})
				total += watchers
				for done := false; !done; {
					turn(func(_ *dialog.Turn, _ *Shard, d *discard) { done = d.n-start >= total })
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*watchers), "ns/watcher")
		})
	}
}
