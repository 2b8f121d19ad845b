package auth

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// TestWindow: DG-04, counts in any order, each once, none older than 64.
func TestWindow(t *testing.T) {
	for _, tc := range []struct {
		name   string
		counts []uint32
		fresh  []bool
	}{
		{"in order", []uint32{1, 2, 3}, []bool{true, true, true}},
		{"repeated", []uint32{1, 1, 2, 1, 2}, []bool{true, false, true, false, false}},
		{"overtaken", []uint32{2, 1, 4, 3, 3}, []bool{true, true, true, true, false}},
		{"edge of the window", []uint32{100, 37, 36, 164, 101, 100}, []bool{true, true, false, true, true, false}},
		{"jump", []uint32{1, math.MaxUint32, math.MaxUint32 - 63, math.MaxUint32 - 64, 1}, []bool{true, true, true, false, false}},
		{"no count after counts", []uint32{1, 0}, []bool{true, false}},
		{"counts after no count", []uint32{0, 0, 1, math.MaxUint32, math.MaxUint32 - 64}, []bool{true, false, false, false, false}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNonces(nil, time.Minute, 8)
			k, ok := n.open(start, n.mint(start, "r"), "r")
			if !ok {
				t.Fatal("own nonce is not known")
			}
			for i, nc := range tc.counts {
				if got := n.use(start, k, nc, false); got != tc.fresh[i] {
					t.Errorf("%d. count %d looks fresh: %v", i, nc, got)
				}
				if got := n.use(start, k, nc, true); got != tc.fresh[i] {
					t.Errorf("%d. count %d is accepted: %v", i, nc, got)
				}
			}
		})
	}
}

// TestForgedNonce: only whole, own, young nonces of the realm are opened.
func TestForgedNonce(t *testing.T) {
	n := newNonces(nil, time.Minute, 8)
	good := n.mint(start, "example.com")
	open := func(text []byte, realm string, after time.Duration) bool {
		_, ok := n.open(start.Add(after), text, realm)
		return ok
	}
	if !open(good, "example.com", 0) || !open(good, "example.com", time.Minute) {
		t.Error("own nonce is not known")
	}
	if open(good, "example.com", time.Minute+1) {
		t.Error("nonce outlives its life")
	}
	if open(good, "example.org", 0) {
		t.Error("nonce is good in another realm")
	}
	if _, ok := newNonces(nil, time.Minute, 8).open(start, good, "example.com"); ok {
		t.Error("nonce is good with another key")
	}
	for i := range good {
		for _, c := range []byte("A-\n=") {
			bad := append([]byte(nil), good...)
			if bad[i] == c {
				continue
			}
			if bad[i] = c; open(bad, "example.com", 0) {
				t.Errorf("nonce with octet %d changed to %q is good", i, c)
			}
		}
	}
	for _, bad := range []string{"", "x", string(good) + "AAAA", string(good[1:])} {
		if open([]byte(bad), "example.com", 0) {
			t.Errorf("nonce %q is good", bad)
		}
	}
	if one, two := n.mint(start, "r"), n.mint(start, "r"); string(one) == string(two) {
		t.Error("two nonces are the same")
	}
}

// TestEvictionOpensNoReplay: under any order of use, with a table far too small
// and a clock that jumps, no nonce and count are accepted twice (DG-04), and
// a new nonce always works.
func TestEvictionOpensNoReplay(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		limit := 1 + r.IntN(4)
		n := newNonces(nil, time.Minute, limit)
		now := start
		type used struct {
			k  nonceID
			nc uint32
		}
		accepted := map[used]bool{}
		whole := map[nonceID]bool{}
		var known []nonceID
		for step := range 400 {
			switch r.IntN(4) {
			case 0:
				k, ok := n.open(now, n.mint(now, "r"), "r")
				if !ok {
					t.Fatalf("seed %d step %d: a new nonce is not good", seed, step)
				}
				if r.IntN(2) == 0 {
					if !n.use(now, k, 1, true) {
						t.Fatalf("seed %d step %d: a new nonce does not work", seed, step)
					}
					accepted[used{k, 1}] = true
				}
				known = append(known, k)
			case 1:
				now = now.Add(time.Duration(r.Int64N(int64(20*time.Second))) - 5*time.Second)
			default:
				if len(known) == 0 {
					continue
				}
				k, nc := known[len(known)-1-r.IntN(min(len(known), 12))], uint32(r.IntN(80))
				if !n.use(now, k, nc, true) {
					continue
				}
				if accepted[used{k, nc}] || whole[k] || nc == 0 && anyOf(accepted, func(u used) bool { return u.k == k }) {
					t.Fatalf("seed %d step %d: count %d is accepted again", seed, step, nc)
				}
				accepted[used{k, nc}], whole[k] = true, nc == 0
			}
			if s := &n.stripes[0]; len(s.index) > limit || int(s.n) != len(s.index) {
				t.Fatalf("seed %d step %d: %d nonces in the ring, %d in the index, limit %d", seed, step, s.n, len(s.index), limit)
			}
		}
	}
}

func anyOf[K comparable](set map[K]bool, f func(K) bool) bool {
	for k := range set {
		if f(k) {
			return true
		}
	}
	return false
}

// TestExpiredNoncesGo: what is too old makes room without a limit being reached.
func TestExpiredNoncesGo(t *testing.T) {
	n := newNonces(nil, time.Minute, 100)
	for i := range 50 {
		now := start.Add(time.Duration(i) * 10 * time.Second)
		k, _ := n.open(now, n.mint(now, "r"), "r")
		n.use(now, k, 1, true)
	}
	if got := n.stripes[0].n; got != 7 {
		t.Errorf("%d nonces are kept, want the 7 of the last minute", got)
	}
}
