package sip

import (
	"math/rand/v2"
	"testing"
)

// TestIndex holds an index to a map through growth, churn and shrinking. Some
// keys are alike in what the index looks at first.
func TestIndex(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	keys := make([]uint64, 5000)
	for i := range keys {
		keys[i] = rng.Uint64()
		if i%3 > 0 {
			keys[i] = keys[i-1] ^ uint64(i%3)<<30 // same place and tag
		}
	}
	x := index{key: func(slot uint32) uint64 { return keys[slot] }}
	want := map[uint32]bool{}
	for round := range 200000 {
		// Waves: up to all, down to few.
		slot := uint32(rng.IntN(len(keys)))
		grow := round/20000%2 == 0
		switch {
		case want[slot] && (!grow || rng.IntN(10) == 0):
			x.remove(keys[slot], slot)
			delete(want, slot)
		case !want[slot] && (grow || rng.IntN(50) == 0):
			x.add(keys[slot], slot)
			want[slot] = true
		}
		if x.n != len(want) || x.used < x.n || 8*x.used > 7*len(x.tags) {
			t.Fatalf("round %d: %d entries, want %d; %d used of %d", round, x.n, len(want), x.used, len(x.tags))
		}
		probe := uint32(rng.IntN(len(keys)))
		if got, ok := x.find(keys[probe]); ok != want[probe] || ok && got != probe {
			t.Fatalf("round %d: slot %d found as %d %v, want %v", round, probe, got, ok, want[probe])
		}
	}
	for slot := range want {
		x.remove(keys[slot], slot)
	}
	if x.n != 0 || len(x.tags) != indexLeast {
		t.Errorf("%d entries and %d places are left", x.n, len(x.tags))
	}
}
