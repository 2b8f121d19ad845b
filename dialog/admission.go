package dialog

import (
	"sync/atomic"
	"time"
)

// Bounds of the new work that waits. What is not answered within T1 (500 ms)
// comes again and costs twice, and so does a NOTIFY whose 200 waits behind it. So
// the bound is a time, and the number follows from how fast the shards are at
// the moment.
const (
	waitTarget   = 100 * time.Millisecond
	backlogLeast = 256  // of new work; fewer would not keep the shards busy
	backlogFirst = 1024 // until it is known how fast they are
	backlogMost  = 4096 // bounds the memory

	paceInterval = 100 * time.Millisecond
	paceBusy     = 32 // messages: with fewer waiting, shards may have had nothing to do
)

// admission measures how many messages the shards take in a time in which there
// was always one for them, and so how many may wait.
type admission struct {
	limit atomic.Int64
	n     atomic.Int64 // taken in this interval
	began atomic.Int64 // when it began, in nanoseconds
	idle  atomic.Bool  // something less than busy was seen in it
}

// taken notes that a shard took n messages and how many wait now.
func (a *admission) taken(now time.Time, n int, waiting int64) {
	a.n.Add(int64(n))
	if waiting < paceBusy && !a.idle.Load() {
		a.idle.Store(true)
	}
	t, began := now.UnixNano(), a.began.Load()
	long := time.Duration(t - began)
	if long < paceInterval || !a.began.CompareAndSwap(began, t) {
		return
	}
	count, idle, limit := a.n.Swap(0), a.idle.Swap(false), a.limit.Load()
	if long > 2*paceInterval { // there was a pause
		return
	}
	able := int64(float64(count) * float64(waitTarget) / float64(long))
	if idle {
		able = max(able, limit) // that many at least
	}
	a.limit.Store(min(max((limit+able)/2, backlogLeast), backlogMost))
}
