package server_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server"
	"rollcall/server/servertest"
)

var dayOps = flag.Int("day.ops", 3000, "what phones and publishers do in the day of TestDay")

// After a day in which everybody comes and goes, a server holds what it held
// before: no table has an entry, no goroutine is left, and the heap is as small.
func TestDay(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := newDay(t, dir)
		d.live(4*time.Hour, *dayOps/6)
		d.end("before the day")
		heap := liveHeap()
		goroutines := runtime.NumGoroutine()
		d.live(24*time.Hour, *dayOps)
		d.end("after the day")
		now := liveHeap()
		n := runtime.NumGoroutine()
		for i := 0; n != goroutines && i < 10_000; i++ { // those of the database's driver end outside the bubble
			runtime.Gosched()
			n = runtime.NumGoroutine()
		}
		if n != goroutines {
			t.Errorf("%d goroutines, %d before", n, goroutines)
		}
		t.Logf("%d operations, %v requests; live heap %d KiB before, %d KiB after", d.done, d.n.Metric(`dialog_requests_total{method="subscribe"}`), heap>>10, now>>10)
		// A dialog takes more than 256 octets: a third of the operations leaving one would be more.
		if allowed := heap + 256<<10; now > allowed {
			t.Errorf("live heap %d, %d before", now, heap)
		}
	})
}

// liveHeap is what is left of the heap when it is cleaned.
func liveHeap() uint64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

type day struct {
	t        *testing.T
	w        *servertest.World
	n, far   *servertest.Node
	rng      *rand.Rand
	watchers []*dayWatcher
	pubs     []*servertest.Publication
	authors  []*servertest.UA
	done     int
}

type dayWatcher struct {
	ua     *servertest.UA
	sub    *servertest.Sub
	silent bool // to NOTIFYs
}

func newDay(t *testing.T, dir string) *day {
	d := &day{t: t, w: servertest.New(t), rng: rand.New(rand.NewPCG(24, 60))}
	d.w.Mute = true
	node := func(ip, domain, auth string) *servertest.Node {
		return d.w.Node(ip, func(c *server.Config) {
			c.Store, c.PresenceAuth, c.Domain = "sqlite:"+filepath.Join(dir, domain+".db"), auth, []string{domain}
		})
	}
	d.far, d.n = node("192.0.2.99", "example.org", "allow"), node("192.0.2.1", "example.com", "allow")
	for i := range 30 {
		d.watchers = append(d.watchers, &dayWatcher{ua: d.w.UA(fmt.Sprintf("sip:w%d@example.com", i%10))})
	}
	for _, u := range append(slices.Clone(simUsers), simFar) {
		n := d.n
		if u == simFar {
			n = d.far
		}
		ua := d.w.UA(u)
		d.authors = append(d.authors, ua)
		d.pubs = append(d.pubs, ua.Publication(n))
	}
	d.change(0)
	return d
}

// live has so many things happen in so much time.
func (d *day) live(long time.Duration, ops int) {
	for range ops {
		d.w.Settle(long / time.Duration(ops))
		d.done++
		switch i := d.rng.IntN(20); {
		case i < 12:
			d.watch(d.watchers[d.rng.IntN(len(d.watchers))])
		case i < 19:
			d.publish(d.rng.IntN(len(d.pubs)))
		default:
			d.change(d.rng.IntN(6))
		}
	}
}

// end lets all run out; phones that answered nothing forget what they knew.
func (d *day) end(when string) {
	for _, w := range d.watchers {
		d.forget(w)
	}
	d.w.Settle(2*time.Hour + 10*time.Minute)
	for _, w := range d.watchers {
		w.ua.Reboot()
	}
	for i, u := range d.authors {
		u.Reboot()
		d.pubs[i].ETag = ""
	}
	d.n.CheckEmpty(when)
	d.far.CheckEmpty(when)
}

func (d *day) forget(w *dayWatcher) {
	w.ua.Reboot()
	w.sub, w.silent = nil, false
}

func (d *day) watch(w *dayWatcher) {
	if w.sub != nil && w.sub.Over() {
		d.forget(w)
	}
	expires := []int{60, 600, 7200}[d.rng.IntN(3)]
	if w.sub == nil {
		targets := append(append(slices.Clone(simUsers), simLists...), simFar)
		w.sub = w.ua.Dialog(d.n, targets[d.rng.IntN(len(targets))])
		if d.rng.IntN(8) == 0 {
			w.sub.URI, w.sub.Event, w.sub.Headers = w.ua.AOR, "presence.winfo", ""
		}
		if st := w.sub.Subscribe(expires).Status(); st != 200 {
			if st != 403 { // blocked
				d.t.Errorf("SUBSCRIBE to %s: %d", w.sub.URI, st)
			}
			d.forget(w)
		}
		return
	}
	switch d.rng.IntN(6) {
	case 0: // without a word: the next NOTIFY gets 481
		d.forget(w)
	case 1: // the next one gets nothing
		w.sub.Silence()
		w.silent = true
	case 2:
		if !w.silent {
			w.sub.Subscribe(0)
		}
		d.w.Settle(time.Second)
		d.forget(w)
	default:
		if st := w.sub.Subscribe(expires).Status(); st != 200 {
			if !w.silent && !w.sub.Over() {
				d.t.Errorf("refresh of %s: %d", w.sub.URI, st)
			}
			d.forget(w)
		}
	}
}

func (d *day) publish(i int) {
	p, u := d.pubs[i], d.authors[i].AOR
	switch d.rng.IntN(6) {
	case 0:
		if p.ETag != "" {
			p.Send("", 0)
		}
		p.ETag = ""
	case 1: // a publisher that starts again
		p.ETag = ""
		d.authors[i].Reboot()
	default:
		if m := p.Send(servertest.PIDF(u, "open", fmt.Sprint(d.done)), []int{60, 600, 3600}[d.rng.IntN(3)]); m.Status() != 200 {
			p.ETag = "" // it had run out
			if m.Status() != 412 {
				d.t.Errorf("PUBLISH of %s: %d", u, m.Status())
			}
		}
	}
}

// change puts other lists or rules in place.
func (d *day) change(kind int) {
	desk := servertest.Service(simDesk, simUsers[kind%2], simUsers[3])
	staff := servertest.Service(simStaff, simUsers[0], simUsers[1+kind%3], simDesk, simFar)
	round := servertest.Service(simRound, simUsers[2], simFar)
	switch kind {
	case 3:
		d.n.Put("rls-services/global/index", servertest.Services(staff, round))
	case 4:
		handling := []string{"allow", "block", "polite-block", "confirm"}[d.rng.IntN(4)]
		d.n.Put("pres-rules/users/"+simUsers[1]+"/index", `<cr:ruleset xmlns:cr="urn:ietf:params:xml:ns:common-policy" xmlns:pr="urn:ietf:params:xml:ns:pres-rules">
<cr:rule id="a"><cr:conditions/><cr:actions><pr:sub-handling>`+handling+`</pr:sub-handling></cr:actions></cr:rule></cr:ruleset>`)
	default:
		d.n.Put("rls-services/global/index", servertest.Services(desk, staff, round))
	}
}
