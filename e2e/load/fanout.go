package main

import (
	"errors"
	"flag"
	"sync/atomic"
	"time"

	"rollcall/sip"
)

type fanoutReport struct {
	report
	Changes   int     `json:"changes"` // that reached every watcher
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"notifies_per_second"`
	Latency   latency `json:"publish_to_last_notify_ms"`
}

// fan is presentities that change again as soon as every watcher has the
// change. It belongs to its generator's goroutine, but for running.
type fan struct {
	g       *generator
	watched []presentity // by target
	have    []int        // version that each subscription was counted for
	watch   tally        // of the subscriptions
	changes tally
	rounds  int // per presentity, 0 for any
	end     time.Time
	running atomic.Int64 // presentities
}

type presentity struct {
	version  int
	missing  int // watchers without it
	watchers int
	accepted bool // the PUBLISH
	etag     string
	at       time.Time
	stale    bool // gave up
}

// fanout publishes and waits for the NOTIFYs.
func fanout(c *common, f *flag.FlagSet, args []string) (any, error) {
	presentities := f.Int("k", 20, "presentities, which change independently")
	watchers := f.Int("w", 100, "watchers of each")
	rounds := f.Int("n", 0, "end after `N` changes of each")
	long := f.Duration("for", 10*time.Second, "end after this time unless -n is given")
	if err := c.parse(f, args); err != nil {
		return nil, err
	}
	if *presentities < 1 || *watchers < 1 {
		return nil, errors.New("-k and -w must be at least 1")
	}
	if err := c.start(*presentities); err != nil {
		return nil, err
	}
	defer c.close()
	fans := make([]*fan, len(c.gens))
	for i, g := range c.gens {
		fans[i] = &fan{g: g, watched: make([]presentity, *presentities), rounds: *rounds}
		fans[i].subscribe(c.targets(i, *presentities), *watchers)
	}
	notifies := func() (n int64) {
		for _, g := range c.gens {
			n += g.notifies.Load()
		}
		return n
	}
	proc, err := watch(c.pid)
	if err != nil {
		return nil, err
	}
	began, before := time.Now(), notifies()
	for i, fn := range fans {
		fn.begin(c.targets(i, *presentities), *long)
	}
	c.until(func(time.Time) bool {
		for _, fn := range fans {
			if fn.running.Load() > 0 {
				return false
			}
		}
		return true
	})
	lasted := time.Since(began)
	n := notifies() - before
	changes := merged()
	var tallies []*tally
	for _, fn := range fans {
		fn.g.do(func(time.Time) {
			changes.add(&fn.changes)
			tallies = append(tallies, &fn.watch, &fn.changes)
			fn.check()
		})
	}
	r := fanoutReport{report: c.report(tallies...), Changes: changes.done, Seconds: round(lasted.Seconds(), 3),
		PerSecond: round(float64(n)/lasted.Seconds(), 1), Latency: summary(changes.took)}
	r.Process = proc.used(int(n))
	return r, nil
}

// subscribe opens the subscriptions and waits for them.
func (fn *fan) subscribe(targets []int, watchers int) {
	if len(targets) == 0 {
		return
	}
	done := make(chan struct{})
	fn.g.do(func(now time.Time) {
		next, left := 0, len(targets)*watchers
		more := func(now time.Time) {
			if next < len(targets)*watchers {
				target := targets[next/watchers]
				next++
				fn.watched[target].watchers++
				fn.g.subscribe(now, target, 3600, 0, &fn.watch)
			}
		}
		fn.g.ended = func(now time.Time, _ uint32, _ int) {
			if left--; left == 0 {
				close(done)
			}
			more(now)
		}
		for range window {
			more(now)
		}
	})
	<-done
}

func (fn *fan) begin(targets []int, long time.Duration) {
	fn.running.Store(int64(len(targets)))
	fn.g.do(func(now time.Time) {
		fn.end = now.Add(long)
		fn.have = make([]int, len(fn.g.subs))
		fn.g.state, fn.g.posted, fn.g.later = fn.notified, fn.posted, fn.late
		for _, target := range targets {
			fn.watched[target].etag = fn.g.etags[target]
			fn.change(now, target)
		}
	})
}

// change publishes the next state of a presentity, or stops.
func (fn *fan) change(now time.Time, target int) {
	p := &fn.watched[target]
	if fn.rounds > 0 && p.version >= fn.rounds || fn.rounds == 0 && !now.Before(fn.end) {
		fn.running.Add(-1)
		return
	}
	p.version++
	p.missing, p.accepted, p.at = p.watchers, false, now
	fn.changes.started++
	fn.g.publish(now, target, p.version, p.etag)
	fn.g.after(now, patience, uint32(target))
}

func (fn *fan) posted(now time.Time, target int, m *sip.Message) {
	p := &fn.watched[target]
	if m == nil {
		p.stale = true
		fn.running.Add(-1)
		return
	}
	p.accepted, p.etag = true, string(m.Header(sip.HdrSIPETag))
	fn.complete(now, target)
}

func (fn *fan) notified(now time.Time, i uint32, _ *sip.Message) {
	s := &fn.g.subs[i]
	p := &fn.watched[s.target]
	if s.version == p.version && fn.have[i] != s.version {
		fn.have[i] = s.version
		p.missing--
		fn.complete(now, s.target)
	}
}

func (fn *fan) complete(now time.Time, target int) {
	if p := &fn.watched[target]; p.accepted && p.missing == 0 && !p.stale {
		fn.changes.end(200, now.Sub(p.at))
		fn.change(now, target)
	}
}

// late gives up on a change that has not reached everybody.
func (fn *fan) late(now time.Time, key uint32) {
	p := &fn.watched[key]
	if !p.stale && (p.missing > 0 || !p.accepted) && now.Sub(p.at) >= patience {
		p.stale = true
		fn.running.Add(-1)
	}
}

// check counts the watchers that do not hold the newest state.
func (fn *fan) check() {
	for i := range fn.g.subs {
		if s := &fn.g.subs[i]; s.over.IsZero() && s.version != fn.watched[s.target].version {
			fn.changes.fault("watcher without the newest state", 1)
		}
	}
}
