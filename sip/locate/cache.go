package locate

import "time"

// bounded is a map of at most max elements. At the bound the one of eight taken
// at random that ends first makes room.
type bounded[K comparable, V any] struct {
	m       map[K]V
	max     int
	ends    func(K, V) time.Time
	evicted uint64
}

func newBounded[K comparable, V any](max int, ends func(K, V) time.Time) bounded[K, V] {
	return bounded[K, V]{m: map[K]V{}, max: max, ends: ends}
}

func (b *bounded[K, V]) put(k K, v V) {
	if _, ok := b.m[k]; !ok && len(b.m) >= b.max {
		var victim K
		var end time.Time
		n := 0
		for k, v := range b.m { // begins anywhere
			if t := b.ends(k, v); n == 0 || t.Before(end) {
				victim, end = k, t
			}
			if n++; n == 8 {
				break
			}
		}
		delete(b.m, victim)
		b.evicted++
	}
	b.m[k] = v
}
