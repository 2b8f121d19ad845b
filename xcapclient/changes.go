package xcapclient

import (
	"maps"
	"slices"
	"sync"
)

// changes is a set of selectors on their way to somebody. It never blocks who adds; it is bounded by the number of
// documents, since a selector is in it once.
type changes struct {
	mu     sync.Mutex
	set    map[string]struct{}
	signal chan struct{} // holds a value when the set does
}

func newChanges() *changes {
	return &changes{set: map[string]struct{}{}, signal: make(chan struct{}, 1)}
}

func (c *changes) add(selectors ...string) {
	if len(selectors) == 0 {
		return
	}
	c.mu.Lock()
	for _, s := range selectors {
		c.set[s] = struct{}{}
	}
	c.mu.Unlock()
	select {
	case c.signal <- struct{}{}:
	default:
	}
}

// take empties the set.
func (c *changes) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := slices.Sorted(maps.Keys(c.set))
	clear(c.set)
	return all
}
