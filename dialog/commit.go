package dialog

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// flushInterval is how long a write may wait that nothing relies on, from when it
// is handed in. A commit that runs then is waited for too.
const flushInterval = 100 * time.Millisecond

// backlogLimit bounds the writes not yet stored. Beyond it the runtime refuses
// new SUBSCRIBE and PUBLISH.
const backlogLimit = 200_000

// commitTimeout bounds one commit.
const commitTimeout = 15 * time.Second

// committer stores the writes of all shards in one transaction at a time
// (group commit): while one runs, the next one gathers.
type committer struct {
	rt      *Runtime
	mu      sync.Mutex
	pending []commitBatch
	writes  int
	since   time.Time // when the oldest of pending was handed in
	urgent  bool
	wake    chan struct{}
	idle    *sync.Cond
	busy    bool
	healthy atomic.Bool
}

type commitBatch struct {
	sh     *shard
	seq    uint64
	writes []Write
}

func newCommitter(rt *Runtime) *committer {
	c := &committer{rt: rt, wake: make(chan struct{}, 1)}
	c.idle = sync.NewCond(&c.mu)
	c.healthy.Store(true)
	return c
}

func (c *committer) submit(sh *shard, seq uint64, writes []Write, urgent bool) {
	c.mu.Lock()
	if len(c.pending) == 0 {
		c.since = time.Now()
	}
	c.pending = append(c.pending, commitBatch{sh, seq, writes})
	c.writes += len(writes)
	c.urgent = c.urgent || urgent
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// overloaded is true when the store does not keep up.
func (c *committer) overloaded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes > backlogLimit
}

// drain waits until everything submitted is stored.
func (c *committer) drain(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.idle.Broadcast()
	})
	defer stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.urgent = true
	select {
	case c.wake <- struct{}{}:
	default:
	}
	for (c.busy || len(c.pending) > 0) && ctx.Err() == nil {
		c.idle.Wait()
	}
	return ctx.Err()
}

func (c *committer) run() {
	for {
		select {
		case <-c.rt.done:
			return
		case <-c.wake:
		}
		c.mu.Lock()
		urgent, wait := c.urgent, flushInterval-time.Since(c.since)
		c.mu.Unlock()
		for flush := time.After(wait); !urgent; {
			select {
			case <-c.rt.done:
				return
			case <-flush:
				urgent = true
			case <-c.wake:
				c.mu.Lock()
				urgent = c.urgent
				c.mu.Unlock()
			}
		}
		c.mu.Lock()
		batch := c.pending
		c.pending, c.urgent, c.busy = nil, false, true
		c.mu.Unlock()
		c.commit(batch)
		c.mu.Lock()
		c.busy = false
		c.idle.Broadcast()
		c.mu.Unlock()
	}
}

// commit stores a batch and repeats until it is stored: what was promised
// waits, it is not dropped.
func (c *committer) commit(batch []commitBatch) {
	var all []Write
	for _, b := range batch {
		all = append(all, b.writes...)
	}
	for wait := 50 * time.Millisecond; len(all) > 0; wait = min(2*wait, 2*time.Second) {
		ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
		err := c.rt.opt.Store.Commit(ctx, all)
		cancel()
		if err == nil {
			c.rt.stats.Commits.Add(1)
			if !c.healthy.Swap(true) {
				c.rt.opt.Log.Info("store works again")
			}
			break
		}
		c.rt.stats.CommitErrors.Add(1)
		if c.healthy.Swap(false) {
			c.rt.opt.Log.Error("store refuses writes; answers that depend on it wait", "err", err)
		}
		select {
		case <-c.rt.done:
			return
		case <-time.After(wait):
		}
	}
	c.mu.Lock()
	c.writes -= len(all)
	c.mu.Unlock()
	for _, b := range batch {
		box := &b.sh.box
		box.mu.Lock()
		box.durable = max(box.durable, b.seq)
		box.mu.Unlock()
		b.sh.poke()
	}
}
