package sip

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var wheelStart = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// pendingTimer is an entry of the naive model: a list.
type pendingTimer struct {
	at    time.Time // asked for
	due   time.Time // or the moment of asking, if that was later
	key   uint64
	timer Timer
}

// TestWheelModel drives a wheel and a plain list with the same operations.
// Entries fire once, at or up to one tick after their instant, never before;
// cancelled ones never; Next is never later than the first entry.
func TestWheelModel(t *testing.T) {
	spans := []time.Duration{10 * time.Millisecond, time.Second, time.Minute, time.Hour, 30 * 24 * time.Hour, 12 * 365 * 24 * time.Hour}
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		now := wheelStart
		w := NewWheel(now)
		var model, gone []pendingTimer
		key := uint64(0)
		add := func(at time.Time) {
			key++
			model = append(model, pendingTimer{at, maxTime(at, now), key, w.Add(at, key)})
		}
		cancel := func() {
			i := rng.IntN(len(model))
			w.Cancel(model[i].timer)
			gone = append(gone, model[i])
			model = slices.Delete(model, i, i+1)
		}
		for step := range 400 {
			span := spans[rng.IntN(len(spans))]
			switch op := rng.IntN(10); {
			case op < 5 || len(model) == 0:
				add(now.Add(time.Duration(rng.Int64N(int64(span))) - 20*time.Millisecond))
			case op < 6:
				cancel()
			case op < 7 && len(gone) > 0: // of an entry that fired or was cancelled: its slot may be in use again
				w.Cancel(gone[rng.IntN(len(gone))].timer)
			default:
				before := now
				if next, ok := w.Next(); ok && rng.IntN(2) == 0 {
					now = next
				} else {
					now = now.Add(time.Duration(rng.Int64N(int64(span))))
				}
				w.Advance(now, func(k uint64) {
					i := slices.IndexFunc(model, func(p pendingTimer) bool { return p.key == k })
					if i < 0 {
						t.Fatalf("seed %d step %d: key %d fired, which is not pending", seed, step, k)
					}
					p := model[i]
					if p.at.After(now) {
						t.Fatalf("seed %d step %d: key %d fired %v too early", seed, step, k, p.at.Sub(now))
					}
					gone = append(gone, p)
					model = slices.Delete(model, i, i+1)
					switch rng.IntN(8) {
					case 0:
						add(now.Add(time.Duration(rng.Int64N(int64(span)))))
					case 1:
						add(before) // long ago: as soon as possible, but not in this call again and again
					case 2:
						if len(model) > 0 {
							cancel()
						}
					}
				})
			}
			if w.Len() != len(model) {
				t.Fatalf("seed %d step %d: Len %d, want %d", seed, step, w.Len(), len(model))
			}
			first := now.AddDate(1000, 0, 0)
			for _, p := range model {
				if late := now.Sub(p.due); late > wheelTick {
					t.Fatalf("seed %d step %d: key %d is %v late", seed, step, p.key, late)
				}
				if p.due.Before(first) {
					first = p.due
				}
			}
			next, ok := w.Next()
			if ok != (len(model) > 0) {
				t.Fatalf("seed %d step %d: Next %v with %d pending", seed, step, ok, len(model))
			}
			if ok && next.After(first.Add(wheelTick)) {
				t.Fatalf("seed %d step %d: Next is %v later than the first entry", seed, step, next.Sub(first))
			}
		}
	}
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// TestWheelFollowsNext advances only to what Next says, as a shard does, and
// checks each entry's lateness to the millisecond.
func TestWheelFollowsNext(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	w := NewWheel(wheelStart)
	due := map[uint64]time.Time{}
	for k := range uint64(2000) {
		at := wheelStart.Add(time.Duration(rng.Int64N(int64(time.Hour) << rng.IntN(14))))
		due[k] = at
		w.Add(at, k)
	}
	last := wheelStart
	for {
		next, ok := w.Next()
		if !ok {
			break
		}
		if !next.After(last) {
			t.Fatalf("Next stands still at %v", next)
		}
		last = next
		w.Advance(next, func(k uint64) {
			if late := next.Sub(due[k]); late < 0 || late >= wheelTick {
				t.Fatalf("key %d: %v late", k, late)
			}
			delete(due, k)
		})
	}
	if len(due) > 0 || w.Len() != 0 {
		t.Fatalf("%d entries never fired, Len %d", len(due), w.Len())
	}
}

func TestWheelFarTimers(t *testing.T) {
	for _, c := range []struct {
		name string
		at   time.Time
	}{
		{"beyond the horizon of eight years", wheelStart.AddDate(20, 0, 0)},
		{"beyond what a Duration holds", wheelStart.AddDate(1000, 0, 0)},
		{"the end of the calendar", time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := NewWheel(wheelStart)
			w.Add(c.at, 1)
			fired := false
			for now := wheelStart; now.Before(wheelStart.AddDate(15, 0, 0)); now = now.AddDate(0, 1, 0) {
				w.Advance(now, func(uint64) { fired = true })
				if fired {
					t.Fatalf("fired at %v, wanted %v", now, c.at)
				}
				if _, ok := w.Next(); !ok || w.Len() != 1 {
					t.Fatalf("lost at %v", now)
				}
			}
		})
	}
}

func TestWheelCancel(t *testing.T) {
	w := NewWheel(wheelStart)
	w.Cancel(0)
	w.Cancel(Timer(1<<32 | 99))
	a := w.Add(wheelStart.Add(time.Second), 1)
	b := w.Add(wheelStart.Add(time.Second), 2)
	c := w.Add(wheelStart.Add(time.Second), 3)
	w.Cancel(b)
	w.Cancel(b)
	d := w.Add(wheelStart.Add(2*time.Second), 4) // in b's place
	w.Cancel(b)
	var got []uint64
	w.Advance(wheelStart.Add(time.Second), func(k uint64) {
		got = append(got, k)
		w.Cancel(a) // one of these is firing, the other stands in the same slot
		w.Cancel(c)
	})
	if len(got) != 1 || w.Len() != 1 {
		t.Fatalf("fired %v, Len %d", got, w.Len())
	}
	w.Cancel(d)
	if _, ok := w.Next(); ok || w.Len() != 0 {
		t.Fatalf("something is pending, Len %d", w.Len())
	}
}

// TestWheelAddInCallback: an entry for now or the past that is added while the
// wheel advances fires, but a chain of them does not keep Advance for ever.
func TestWheelAddInCallback(t *testing.T) {
	w := NewWheel(wheelStart)
	n := 0
	w.Add(wheelStart, 0)
	for i := 1; i <= 5; i++ {
		w.Advance(wheelStart.Add(time.Duration(i)*wheelTick), func(uint64) {
			n++
			w.Add(wheelStart, 0)
		})
		if n != i {
			t.Fatalf("after %d ticks %d have fired", i, n)
		}
	}
	w.Advance(wheelStart, func(uint64) { t.Fatal("fired although time went back") })
}
