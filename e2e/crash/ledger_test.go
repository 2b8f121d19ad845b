package crash

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var start = time.Unix(1000, 0)

// script runs against a fresh ledger; want is the faults, by kind.
type script struct {
	name string
	back time.Duration // window of write-back, 0: write-through
	run  func(l *ledger)
	want []string
}

func (s script) test(t *testing.T) {
	l := &ledger{began: start, window: s.back}
	s.run(l)
	if got := slices.Sorted(maps.Keys(l.faults)); !slices.Equal(got, s.want) {
		t.Errorf("faults %v, want %v\n%s", got, s.want, strings.Join(l.notes, "\n"))
	}
}

// die ends a life of the server at a time.
func die(l *ledger, at time.Time, pubs ...*publisher) {
	l.killed = append(l.killed, at)
	l.epoch++
	for _, p := range pubs {
		p.died()
	}
}

func at(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }

// sees gives the states of publisher 7 that somebody sees.
func sees(p *publisher, seqs ...int) {
	seen := map[[2]int]bool{{8, 1}: true} // another's are not its business
	for _, s := range seqs {
		seen[[2]int{7, s}] = true
	}
	p.check("watcher", seen)
}

func TestPublisher(t *testing.T) {
	const window = 100 * time.Millisecond
	// published is a publisher whose first state was acknowledged at 0.
	published := func(l *ledger) *publisher {
		p := newPublisher(l, 7, 3)
		p.begin(pubInitial, at(0))
		p.answered(200, "e1", at(0))
		return p
	}
	// over sends a request to one life of the server and gets its answer in the next.
	over := func(l *ledger, p *publisher, kind string, status int) {
		p.begin(kind, at(1000))
		die(l, at(1010), p)
		p.answered(status, "e2", at(2000))
	}
	for _, c := range []script{
		{"seen", 0, func(l *ledger) { sees(published(l), 1) }, nil},
		{"not seen", 0, func(l *ledger) { sees(published(l)) }, []string{"newest state not seen"}},
		{"lost", 0, func(l *ledger) {
			p := published(l)
			die(l, at(1), p)
			p.begin(pubRefresh, at(10))
			p.answered(412, "", at(11))
		}, []string{"acknowledged publication is lost"}},
		{"no entity tag", 0, func(l *ledger) {
			p := newPublisher(l, 7, 3)
			p.begin(pubInitial, at(0))
			p.answered(200, "", at(0))
		}, []string{"200 without entity tag"}},
		{"other status", 0, func(l *ledger) {
			p := published(l)
			p.begin(pubModify, at(1))
			p.answered(500, "", at(2))
		}, []string{"status 500"}},
		{"refused", 0, func(l *ledger) {
			p := published(l)
			p.begin(pubModify, at(1))
			p.answered(503, "", at(2))
			sees(p, 1)
		}, nil},
		{"old state", 0, func(l *ledger) {
			p := published(l)
			p.begin(pubModify, at(1))
			p.answered(200, "e2", at(2))
			sees(p, 2)
			sees(p, 1, 2)
		}, []string{"old state seen"}},
		{"removed", 0, func(l *ledger) {
			p := published(l)
			p.begin(pubRemove, at(1))
			p.answered(200, "e2", at(2))
			sees(p)
			sees(p, 1)
		}, []string{"old state seen"}},
		{"initial twice", 0, func(l *ledger) {
			p := newPublisher(l, 7, 3)
			over(l, p, pubInitial, 200)
			p.begin(pubModify, at(3000))
			p.answered(200, "e3", at(3001))
			sees(p, 2)
			sees(p, 1, 2) // the first copy was stored too
		}, nil},
		{"change stored, not answered", 0, func(l *ledger) {
			p := published(l)
			over(l, p, pubModify, 412)
			sees(p, 2)
			sees(p) // it is stored: else the entity tag were good
		}, []string{"stored publication is lost"}},
		{"change not stored", 0, func(l *ledger) {
			p := published(l)
			over(l, p, pubModify, 200)
			sees(p, 2)
			sees(p, 1)
		}, []string{"newest state not seen", "old state seen"}},
		{"refresh stored, not answered", 0, func(l *ledger) {
			p := published(l)
			over(l, p, pubRefresh, 412)
			sees(p, 1)
			sees(p)
		}, []string{"stored publication is lost"}},
		{"removal stored, not answered", 0, func(l *ledger) {
			p := published(l)
			over(l, p, pubRemove, 412)
			sees(p)
			sees(p, 1)
		}, []string{"old state seen"}},
		{"never answered", 0, func(l *ledger) {
			p := published(l)
			over(l, p, pubModify, 408)
			sees(p, 1)
			sees(p, 2)
			p.begin(pubInitial, at(3000))
			p.answered(200, "e3", at(3001))
			sees(p, 1, 3)
			sees(p, 1, 2)
		}, []string{"newest state not seen"}},
		{"write-back, young", window, func(l *ledger) {
			p := published(l)
			p.begin(pubModify, at(1000))
			p.answered(200, "e2", at(1001))
			die(l, at(1050), p)
			sees(p, 1) // fallen back
			p.begin(pubModify, at(1100))
			p.answered(412, "", at(1101))
			sees(p, 1)
			sees(p, 3) // was sent once: cannot be, but is not known
			if l.lost != 1 || l.oldest != 49*time.Millisecond {
				l.fault("lost", "%d %v", l.lost, l.oldest)
			}
		}, nil},
		{"write-back, young removal", window, func(l *ledger) {
			p := published(l)
			p.begin(pubRemove, at(1000))
			p.answered(200, "e2", at(1001))
			die(l, at(1050), p)
			sees(p, 1)
		}, nil},
		{"write-back, kept", window, func(l *ledger) {
			p := published(l)
			p.begin(pubModify, at(1000))
			p.answered(200, "e2", at(1001))
			die(l, at(1050), p)
			p.begin(pubRefresh, at(1100))
			p.answered(200, "e3", at(1101))
			sees(p)
		}, []string{"newest state not seen"}},
		{"write-back, old", window, func(l *ledger) {
			p := published(l)
			die(l, at(101), p)
			sees(p)
			p.begin(pubModify, at(200))
			p.answered(412, "", at(201))
		}, []string{"acknowledged publication is lost", "newest state not seen"}},
		{"write-back, stopped in order", window, func(l *ledger) {
			p := published(l)
			die(l, time.Time{}, p)
			p.begin(pubModify, at(2))
			p.answered(412, "", at(3))
		}, []string{"acknowledged publication is lost"}},
	} {
		t.Run(c.name, c.test)
	}
}

func TestDialog(t *testing.T) {
	const window = 100 * time.Millisecond
	opened := func(l *ledger) *dialog {
		d := &dialog{l: l, kind: watchList, legs: map[string]*leg{}}
		d.begin(subInitial, at(0))
		d.remote = "a"
		d.answered(200, at(0))
		return d
	}
	notify := func(d *dialog, tag string, cseq uint32, hash uint64, state string, version int64, full bool) int {
		return d.notified(tag, cseq, hash, state, func() (body, error) {
			return body{versioned: true, version: version, full: full}, nil
		})
	}
	next := func(d *dialog, cseq uint32) int {
		return notify(d, "a", cseq, uint64(cseq), "active", int64(cseq)-1, true)
	}
	ask := func(d *dialog, req string, ms, status int) {
		d.begin(req, at(ms))
		d.answered(status, at(ms+1))
	}
	answer := func(l *ledger, got, want int) {
		if got != want {
			l.fault("answer", "%d, want %d", got, want)
		}
	}
	for _, c := range []script{
		{"all well", 0, func(l *ledger) {
			d := opened(l)
			answer(l, next(d, 1), 200)
			answer(l, notify(d, "a", 2, 2, "active", 1, false), 200)
			answer(l, next(d, 1), 200) // comes again
			die(l, at(10))
			answer(l, next(d, 257), 200)
			ask(d, subRefresh, 20, 200)
			next(d, 258)
			d.quiet()
			ask(d, subEnd, 30, 200)
			answer(l, notify(d, "a", 259, 259, "terminated", 258, true), 200)
			ask(d, subRefresh, 40, 481)
		}, nil},
		{"refresh without NOTIFY", 0, func(l *ledger) {
			d := opened(l)
			next(d, 1)
			ask(d, subRefresh, 10, 200)
			d.quiet()
		}, []string{"200 and no NOTIFY"}},
		{"refresh without full state", 0, func(l *ledger) {
			d := opened(l)
			next(d, 1)
			ask(d, subRefresh, 10, 200)
			notify(d, "a", 2, 2, "active", 1, false)
			d.quiet()
		}, []string{"200 and no NOTIFY"}},
		{"lost", 0, func(l *ledger) {
			d := opened(l)
			die(l, at(10))
			ask(d, subRefresh, 20, 481)
		}, []string{"acknowledged subscription is lost"}},
		{"in doubt and lost", 0, func(l *ledger) {
			d := opened(l)
			d.begin(subRefresh, at(5))
			die(l, at(10))
			d.answered(481, at(20))
		}, []string{"acknowledged subscription is lost"}},
		{"end in doubt", 0, func(l *ledger) {
			d := opened(l)
			d.begin(subEnd, at(5))
			die(l, at(10))
			d.answered(481, at(20))
		}, nil},
		{"out of order", 0, func(l *ledger) {
			d := opened(l)
			d.begin(subRefresh, at(5))
			die(l, at(10))
			d.answered(500, at(20))
		}, []string{"status 500"}},
		{"revived", 0, func(l *ledger) {
			d := opened(l)
			ask(d, subEnd, 5, 200)
			die(l, at(10))
			answer(l, next(d, 300), 200)
		}, []string{"ended subscription is revived"}},
		{"revived after its end", 0, func(l *ledger) {
			d := opened(l)
			ask(d, subEnd, 5, 200)
			notify(d, "a", 1, 1, "terminated", 0, true)
			answer(l, next(d, 2), 481)
		}, []string{"ended subscription is revived"}},
		{"answers after its end", 0, func(l *ledger) {
			d := opened(l)
			ask(d, subEnd, 5, 200)
			ask(d, subRefresh, 20, 200)
		}, []string{"ended subscription is revived"}},
		{"ended by the server", 0, func(l *ledger) {
			d := opened(l)
			notify(d, "a", 1, 1, "terminated", 0, true)
		}, []string{"subscription ended by the server"}},
		{"CSeq again", 0, func(l *ledger) {
			d := opened(l)
			next(d, 1)
			die(l, at(10))
			notify(d, "a", 1, 99, "active", 1, true)
		}, []string{"CSeq used again"}},
		{"CSeq lower", 0, func(l *ledger) {
			d := opened(l)
			next(d, 5)
			die(l, at(10))
			notify(d, "a", 4, 4, "active", 5, true)
		}, []string{"CSeq went down"}},
		{"CSeq left out", 0, func(l *ledger) {
			d := opened(l)
			next(d, 1)
			notify(d, "a", 3, 3, "active", 1, true)
		}, []string{"CSeq left out"}},
		{"version again", 0, func(l *ledger) {
			d := opened(l)
			next(d, 1)
			notify(d, "a", 2, 2, "active", 0, true)
		}, []string{"version used again"}},
		{"version left out", 0, func(l *ledger) {
			d := opened(l)
			next(d, 1)
			notify(d, "a", 2, 2, "active", 2, true)
		}, []string{"version left out"}},
		{"version left out over a crash, not full", 0, func(l *ledger) {
			d := opened(l)
			next(d, 1)
			die(l, at(10))
			notify(d, "a", 257, 2, "active", 256, false)
		}, []string{"version left out"}},
		{"first not full", 0, func(l *ledger) { notify(opened(l), "a", 1, 1, "active", 0, false) }, []string{"first NOTIFY not full"}},
		{"bad body", 0, func(l *ledger) {
			opened(l).notified("a", 1, 1, "active", func() (body, error) { return body{}, errors.New("broken") })
		}, []string{"bad body"}},
		{"forked", 0, func(l *ledger) {
			d := &dialog{l: l, kind: watchList, legs: map[string]*leg{}}
			d.begin(subInitial, at(0))
			answer(l, notify(d, "b", 1, 1, "active", 0, true), 200) // before any 200
			die(l, at(10))
			d.remote = "a"
			d.answered(200, at(20))
			answer(l, notify(d, "b", 257, 2, "active", 256, true), 481)
			answer(l, next(d, 1), 200)
			if !d.twice {
				l.fault("twice", "")
			}
		}, nil},
		{"write-back, young", window, func(l *ledger) {
			d := opened(l)
			die(l, at(50))
			ask(d, subRefresh, 60, 481)
		}, nil},
		{"write-back, old", window, func(l *ledger) {
			d := opened(l)
			die(l, at(150))
			ask(d, subRefresh, 160, 481)
		}, []string{"acknowledged subscription is lost"}},
		{"write-back, young end", window, func(l *ledger) {
			d := opened(l)
			ask(d, subEnd, 1000, 200)
			die(l, at(1050))
			answer(l, next(d, 257), 481)
			ask(d, subRefresh, 1100, 481)
		}, nil},
		{"write-back, old end", window, func(l *ledger) {
			d := opened(l)
			ask(d, subEnd, 1000, 200)
			die(l, at(1200))
			next(d, 257)
		}, []string{"ended subscription is revived"}},
		{"write-back, CSeq", window, func(l *ledger) {
			d := opened(l)
			next(d, 1)
			die(l, at(10))
			notify(d, "a", 1, 99, "active", 1, true)
		}, []string{"CSeq used again"}},
	} {
		t.Run(c.name, c.test)
	}
}

func TestMarks(t *testing.T) {
	got := marks([]byte("<note>" + mark(3, 14) + "</note><note>" + mark(0, 2) + "</note>crash x.1; crash 5;crash 6.7"))
	if want := (map[[2]int]bool{{3, 14}: true, {0, 2}: true}); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// The same seed gives the same moments; they are of all kinds.
func TestPlan(t *testing.T) {
	o := Default()
	o.Seed = 9
	a, b := plan(o), plan(o)
	if !reflect.DeepEqual(a, b) {
		t.Error("the same seed gives other moments")
	}
	n := map[string]int{}
	for _, m := range a {
		n[m.how]++
		if m.after < 0 || m.after > o.Load || m.then < 0 || m.then > time.Second {
			t.Errorf("%+v", m)
		}
	}
	if len(a) != o.Kills+o.Stops || n[momentStop] != o.Stops || len(n) != 5 || a[0].how == momentRecovery {
		t.Errorf("%v, first %+v", n, a[0])
	}
	if o.Seed = 10; reflect.DeepEqual(a, plan(o)) {
		t.Error("another seed gives the same moments")
	}
}

func TestValidate(t *testing.T) {
	for want, change := range map[string]func(o *Options){
		"durability":    func(o *Options) { o.Durability = "memory" },
		"nothing to do": func(o *Options) { o.Kills, o.Stops = 0, 0 },
		"must be pres":  func(o *Options) { o.Presentities = 0 },
		"need lists":    func(o *Options) { o.Lists = 0 },
		"rate":          func(o *Options) { o.Rate = 0 },
	} {
		o := Default()
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if o := Default(); o.Validate() != nil {
		t.Error("the default is refused")
	}
}
