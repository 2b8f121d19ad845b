package dialog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"rollcall/sip"
)

// flushInterval is how long a write may wait that nothing relies on, from when it
// is handed in. A commit that runs then is waited for too.
const flushInterval = 100 * time.Millisecond

// backlogLimit bounds the writes not yet stored. Beyond it the runtime answers
// new SUBSCRIBE and PUBLISH with 503, beyond twice as many refreshes and ends,
// too. What is added then comes of expiry: one write for each object at most.
const backlogLimit = 200_000

// commitTimeout bounds one commit, commitWrites what it is made of, so that the
// one is enough for the other.
const (
	commitTimeout = 15 * time.Second
	commitWrites  = 10_000
)

// stallLimit is how long a commit may take before the store counts as down.
const stallLimit = 2 * time.Second

// answerLimit is how long an answer waits for its commit. After it the request
// is refused and taken back. It is well below timer F, so that a client hears of
// it: a refresh that times out ends the subscription (RFC 5057 section 5.1).
const answerLimit = 8 * time.Second

// checkInterval is how often a Checker is asked while nothing is written.
const checkInterval = 5 * time.Second

var errStalled = fmt.Errorf("no answer for %v", stallLimit)

// committer stores the writes of all shards in one transaction at a time
// (group commit): while one runs, the next one gathers.
//
// A commit that fails is repeated until it succeeds: what was promised waits, it
// is not dropped. The store is down from the first failure, or from stallLimit
// into a commit, to the next success. A write that the store will never take
// (ErrUnstorable) is left out, so that it does not stop all others.
type committer struct {
	rt      *Runtime
	mu      sync.Mutex
	pending []commitBatch
	since   time.Time // when the oldest of pending was handed in
	urgent  bool
	wake    chan struct{}
	idle    *sync.Cond
	busy    bool
	writes  atomic.Int64 // not stored yet
	down    atomic.Bool  // also in state
	limit   sip.LogLimit

	stateMu sync.Mutex
	state   StoreState
	attempt uint64 // of a commit; a watch for an earlier one says nothing
}

// StoreState tells how the store does.
type StoreState struct {
	Down    bool
	Since   time.Time // when it went down
	Err     error     // the newest failure while it is down
	Waiting int       // writes that are not stored yet
	Full    bool      // more wait than may: new SUBSCRIBE and PUBLISH are refused
}

type commitBatch struct {
	sh     *shard
	seq    uint64
	writes []Write
}

func newCommitter(rt *Runtime) *committer {
	c := &committer{rt: rt, wake: make(chan struct{}, 1)}
	c.idle = sync.NewCond(&c.mu)
	return c
}

func (c *committer) submit(sh *shard, seq uint64, writes []Write, urgent bool) {
	c.writes.Add(int64(len(writes)))
	c.mu.Lock()
	if len(c.pending) == 0 {
		c.since = time.Now()
	}
	c.pending = append(c.pending, commitBatch{sh, seq, writes})
	c.urgent = c.urgent || urgent
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
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
	var check <-chan time.Time
	checker, _ := c.rt.opt.Store.(Checker)
	for {
		if checker != nil && c.rt.opt.Durability != Memory {
			check = time.After(checkInterval)
		}
		select {
		case <-c.rt.done:
			return
		case <-check:
			c.check(checker)
			continue
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
		for len(batch) > 0 && c.commit(&batch) {
		}
		c.mu.Lock()
		c.busy = false
		c.idle.Broadcast()
		c.mu.Unlock()
	}
}

// commit stores the first turns of a batch and takes them off it. It is false
// when the runtime ended before.
func (c *committer) commit(batch *[]commitBatch) bool {
	var all []Write
	n := 0
	for n < len(*batch) && (n == 0 || len(all)+len((*batch)[n].writes) <= commitWrites) {
		all = append(all, (*batch)[n].writes...)
		n++
	}
	turns := (*batch)[:n]
	*batch = (*batch)[n:]
	var bad []int
	if !c.store(all, 0, &bad) {
		return false
	}
	c.writes.Add(int64(-len(all)))
	end := 0
	for _, b := range turns {
		end += len(b.writes)
		refused := false
		for len(bad) > 0 && bad[0] < end {
			bad, refused = bad[1:], true
		}
		box := &b.sh.box
		box.mu.Lock()
		box.durable = max(box.durable, b.seq)
		if refused {
			box.unstorable = append(box.unstorable, b.seq)
		}
		box.mu.Unlock()
		b.sh.poke()
	}
	return true
}

// store commits writes; first is the number of the first one. What the store
// will never take is searched by halves, left out and added to bad.
func (c *committer) store(writes []Write, first int, bad *[]int) bool {
	err := c.repeat(writes)
	switch {
	case err == nil:
		return true
	case !errors.Is(err, ErrUnstorable):
		return false
	case len(writes) > 1:
		half := len(writes) / 2
		return c.store(writes[:half], first, bad) && c.store(writes[half:], first+half, bad)
	}
	c.rt.stats.Unstorable.Add(1)
	c.limit.Log(time.Now(), c.rt.opt.Log, slog.LevelError, "write left out: the store will never take it", "write", describe(writes[0]), "err", err)
	*bad = append(*bad, first)
	return true
}

// describe names a write for the log.
func describe(w Write) string {
	if s, ok := w.(fmt.Stringer); ok {
		return clip([]byte(s.String()))
	}
	return fmt.Sprintf("%T", w)
}

// repeat commits until that succeeds, is refused for good, or the runtime ends.
func (c *committer) repeat(writes []Write) error {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := c.once(commitTimeout, func(ctx context.Context) error { return c.rt.opt.Store.Commit(ctx, writes) })
		if err == nil {
			c.rt.stats.Commits.Add(1)
			return nil
		}
		if errors.Is(err, ErrUnstorable) {
			return err
		}
		c.rt.stats.CommitErrors.Add(1)
		select {
		case <-c.rt.done:
			return err
		case <-time.After(wait):
		}
	}
}

func (c *committer) check(s Checker) { c.once(commitTimeout, s.Check) }

// once asks the store for something and learns from it whether it is down.
func (c *committer) once(limit time.Duration, f func(context.Context) error) error {
	c.stateMu.Lock()
	c.attempt++
	n := c.attempt
	c.stateMu.Unlock()
	watch := time.AfterFunc(stallLimit, func() { c.learn(n, errStalled) })
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	err := f(ctx)
	cancel()
	watch.Stop()
	if errors.Is(err, ErrUnstorable) {
		c.learn(n, nil)
	} else {
		c.learn(n, err)
	}
	return err
}

// learn takes the outcome of the newest attempt. A change of state is one line
// in the log.
func (c *committer) learn(attempt uint64, err error) {
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	if attempt != c.attempt {
		return
	}
	was := c.state.Down
	log := c.rt.opt.Log
	switch {
	case err == nil && was:
		log.Info("store works again", "down", time.Since(c.state.Since).Round(time.Millisecond), "waiting", c.writes.Load())
		c.state = StoreState{}
	case err != nil:
		if !was {
			c.state.Since = time.Now()
			what := "new and changed subscriptions and publications are refused"
			if c.rt.opt.Durability == WriteBack {
				what = "writes wait"
			}
			log.Error("store is down; "+what, "err", err)
		}
		c.state.Down, c.state.Err = true, err
	default:
		return
	}
	c.down.Store(err != nil)
}

// StoreState tells how the store does.
func (rt *Runtime) StoreState() StoreState {
	c := rt.commit
	c.stateMu.Lock()
	st := c.state
	c.stateMu.Unlock()
	st.Waiting = int(c.writes.Load())
	st.Full = st.Waiting > backlogLimit
	return st
}

// storable refuses a request whose outcome would have to be stored, when the store
// cannot take it. Write-back goes on while it is down, up to the bound.
func (sh *shard) storable(m *sip.Message) *Error {
	rt := sh.rt
	limit := int64(backlogLimit)
	if !isNewWork(m) {
		limit *= 2
	}
	switch c := rt.commit; {
	case rt.opt.Durability == Memory:
		return nil
	case rt.opt.Durability == WriteThrough && c.down.Load():
		rt.stats.StoreRefused.Add(1)
		return &Error{Status: 503, Reason: "Store Not Available", RetryAfter: sh.comeAgain(), Quiet: true}
	case c.writes.Load() > limit, len(sh.held) > heldLimit && isNewWork(m):
		rt.stats.Overload.Add(1)
		return &Error{Status: 503, Reason: "Store Too Slow", RetryAfter: 10 * time.Second}
	}
	return nil
}

// comeAgain is a time to come again, spread so that not all come at once.
func (sh *shard) comeAgain() time.Duration {
	return time.Duration(5+sh.random.Next(1)[0]%6) * time.Second
}
