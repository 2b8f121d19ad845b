package dialog

import (
	"testing"
	"time"
)

func TestAdmission(t *testing.T) {
	// What a shard took in each of so many milliseconds, and how many were left.
	type spell struct{ ms, n, waiting int }
	for _, c := range []struct {
		name   string
		spells []spell
		want   int64
	}{
		{"nothing is known", nil, backlogFirst},
		{"5 a millisecond are 500 in 100 ms", []spell{{3000, 5, 1000}}, 500},
		{"20 a millisecond", []spell{{3000, 20, 1000}}, 2000},
		{"slow: never too few to keep them busy", []spell{{3000, 1, 1000}}, backlogLeast},
		{"fast: never too many", []spell{{3000, 100, 1000}}, backlogMost},
		{"half as fast", []spell{{3000, 20, 1000}, {3000, 10, 1000}}, 1000},
		{"little to do tells nothing", []spell{{3000, 20, 1000}, {3000, 1, 0}}, 2000},
		{"little to do, and yet faster than that", []spell{{3000, 5, 1000}, {3000, 20, paceBusy - 1}}, 2000},
		{"one lull in an interval", []spell{{3000, 20, 1000}, {99, 1, 1000}, {1, 1, 0}}, 2000},
		{"a pause is no slowness", []spell{{3000, 20, 1000}, {1, 1, 1000}, {-10000, 0, 0}, {1, 1, 1000}}, 2000},
	} {
		t.Run(c.name, func(t *testing.T) {
			var a admission
			a.limit.Store(backlogFirst)
			now := time.Unix(1e9, 0)
			for _, s := range c.spells {
				if s.ms < 0 {
					now = now.Add(time.Duration(-s.ms) * time.Millisecond)
				}
				for range s.ms {
					now = now.Add(time.Millisecond)
					a.taken(now, s.n, int64(s.waiting))
				}
			}
			if got := a.limit.Load(); got < c.want*95/100 || got > c.want*105/100 {
				t.Errorf("limit %d, want %d", got, c.want)
			}
		})
	}
	t.Run("twice as slow is known after half a second", func(t *testing.T) {
		var a admission
		a.limit.Store(2000)
		now := time.Unix(1e9, 0)
		for range 700 { // the first interval only begins
			now = now.Add(time.Millisecond)
			a.taken(now, 10, 1000)
		}
		if got := a.limit.Load(); got > 1100 {
			t.Errorf("limit %d", got)
		}
	})
}
