package dialog

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"rollcall/sip"
	"rollcall/sip/auth"
)

// Shards is how many owners state is divided among; fixed for the life of a
// database.
const Shards = 256

// Bounds of the requests that wait to be worked on. Beyond them new work gets
// 503 with Retry-After; whatever else came in a datagram is dropped, to be
// retransmitted, and what came on a connection gets 503 too. Responses are let
// in up to twice as many: we asked for them, and without one a request comes
// again or counts as unanswered.
const (
	backlogAll   = 32768 // in all; how many may wait before new work is refused, admission finds out
	mailboxLimit = 8192  // for one shard
	maxWait      = 5 * time.Second
)

// turnBudget is how many messages a turn takes. Who reads from the sockets, to let
// in or refuse, waits for the turns of many shards.
const turnBudget = 16

// Work that can be done later is put off while half of the new work waits that
// may; laterPause is when it is tried again, and laterMost when it is done all the
// same.
const (
	laterPause = time.Millisecond
	laterMost  = 20 * time.Millisecond
)

// yieldAt is the backlog from which a shard lets others run after its turn: those
// who read and write sockets. The scheduler prefers whom a shard has just woken,
// another shard as a rule, and looks at the rest every 61 turns.
const yieldAt = 64

// heldLimit bounds the messages of one shard that wait for a commit. Beyond it
// new SUBSCRIBE and PUBLISH get 503 at once; what is added then is NOTIFYs, one
// for each dialog at most.
const heldLimit = 16384

// Durability is when an answer may leave (design: persistence is a policy of
// the runtime).
type Durability uint8

// The durability modes.
const (
	WriteThrough Durability = iota // after the commit of what it acknowledges
	WriteBack                      // at once; rows follow within flushInterval
	Memory                         // nothing is stored
)

// Options wires a Runtime.
type Options struct {
	Sender     sip.Sender
	Packages   *Registry
	Store      Store // may be nil with Memory
	Durability Durability
	Log        *slog.Logger
	Stats      *sip.Stats // of transactions; may be nil

	// Components are made once per shard. Route picks one by its index for a
	// resource's canonical key; it must be a Source.
	Components []func(shard uint8) Component
	Route      func(resource string) int

	// Key gives a resource's canonical key and whether its domain is local.
	Key func(uri []byte) (key string, local bool, err error)
	// Identify tells who sent a request, or why it is refused. When it must look
	// something up first it gives a function that does, and is asked once more
	// afterwards.
	Identify func(m *sip.Message, now time.Time) (id Identity, fetch func(ctx context.Context), err *Error)
	// Login answers challenges to our own requests; nil for never.
	Login Login
	// FlowTo is the flow for a new request to an address (sip.Endpoint.FlowTo).
	FlowTo func(p sip.Proto, remote netip.AddrPort) (sip.Flow, error)
	// StreamFlow is the TCP flow to where a UDP flow leads, for requests that are
	// too large; false when the peer refused one of late
	// (sip.Endpoint.StreamFlow). nil for never.
	StreamFlow func(f sip.Flow) (sip.Flow, bool)
	// Resolve finds where a URI's requests go, best first, at least one (RFC
	// 3263). It may block.
	Resolve func(ctx context.Context, uri string) ([]sip.Flow, error)
	// Unsent is how many messages wait to be written; may be nil.
	Unsent func() int
	// Unreachable is told of a flow on which a request failed; may be nil.
	Unreachable func(f sip.Flow)

	// Random is what a shard draws its tags and Call-IDs from; nil for the
	// kernel. It is for tests that are to repeat.
	Random func(shard uint8) io.Reader

	MinExpires time.Duration // shorter SUBSCRIBEs and PUBLISHes get 423; default 60 s
	MaxExpires time.Duration // longer ones are shortened; default 2 h
	// ExpiresJitter takes up to that many per cent, at random, off the expiry that
	// is granted to a SUBSCRIBE, so that refreshes spread; never below MinExpires.
	ExpiresJitter int
	ListPace      time.Duration // shortest gap between two NOTIFYs of a list subscription
	MaxPerShard   int           // subscriptions per shard, default 1<<20; beyond it 503
}

// Login is the credentials for our own requests (RFC 3261 section 22.2;
// auth.Client). domain is that of the server a request is for; what was learnt
// from its challenge is used for the next request to it. It is safe for
// concurrent use.
type Login interface {
	// Challenged takes a 401 or 407 and tells whether to try again.
	Challenged(domain string, resp *sip.Message, at *auth.Attempt) bool
	// Append adds the fields with credentials that are known to be wanted.
	Append(b []byte, domain, method, uri string, body []byte, at *auth.Attempt) []byte
}

// Runtime runs the shards.
type Runtime struct {
	opt    Options
	base   time.Time // an hour before the first moment, so that this is not 0
	shared *interner
	shards [Shards]*shard
	commit *committer
	over   sync.WaitGroup
	done   chan struct{}
	work   chan func() // asynchronous work, bounded
	// A place for each shard that has its turn, two for a processor: the readers
	// and writers of sockets compete with few shards and not with 256, so that under
	// load messages are let in or refused in time, not lost in the kernel.
	running chan struct{}
	backlog atomic.Int64
	admit   admission
	closed  atomic.Bool // no requests are taken any more
	started atomic.Bool
	stopped chan struct{} // nothing runs any more
	stats   Stats
	limit   sip.LogLimit
	failed  sip.LogLimit // NOTIFYs; apart, so that refusals do not hide them
	panics  sip.LogLimit

	unsettled []string // see Unsettled

	// Dialogs that another server began, by appendDialogKey. A Recovery fills it before
	// there are messages; afterwards it only is read, so it needs no lock.
	foreign map[string]uint64
}

// Stats counts; read with atomic loads. The last group must stay 0.
type Stats struct {
	Requests      [16]atomic.Uint64 // by sip.Method
	Rejected      atomic.Uint64     // requests answered 4xx to 6xx
	Notifies      atomic.Uint64     // NOTIFYs sent, without retransmissions
	NotifyOK      atomic.Uint64
	NotifyFailed  atomic.Uint64
	Coalesced     atomic.Uint64 // updates replaced before they were read
	Overload      atomic.Uint64 // requests refused or dropped because a queue was full
	Subscriptions atomic.Int64
	Remote        atomic.Int64 // subscriber-side dialogs
	Commits       atomic.Uint64
	CommitErrors  atomic.Uint64
	StoreRefused  atomic.Uint64 // requests refused because the store was down
	Withdrawn     atomic.Uint64 // answers that became refusals while they waited for the store
	Unstorable    atomic.Uint64 // writes left out because the store will never take them
	Panics        atomic.Uint64
	TwoInFlight   atomic.Uint64
	Revived       atomic.Uint64
	Repeated      atomic.Uint64 // NOTIFYs whose CSeq, and so version, was not above the last
	Orphans       atomic.Uint64 // timers of nothing
}

// New makes a Runtime; Start runs it.
func New(opt Options) *Runtime {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.MinExpires == 0 {
		opt.MinExpires = time.Minute
	}
	if opt.MaxExpires == 0 {
		opt.MaxExpires = 2 * time.Hour
	}
	if opt.MaxPerShard == 0 {
		opt.MaxPerShard = 1 << 20
	}
	rt := &Runtime{opt: opt, done: make(chan struct{}), work: make(chan func(), 1024), stopped: make(chan struct{})}
	rt.running = make(chan struct{}, 2*runtime.GOMAXPROCS(0))
	now := time.Now()
	rt.base, rt.shared = now.Add(-time.Hour), newInterner()
	for i := range rt.shards {
		sh := &shard{
			rt: rt, id: uint8(i), wake: make(chan struct{}, 1),
			tx: sip.NewTransactions(uint8(i), opt.Sender, now), wheel: sip.NewWheel(now),
			uacs: make(map[uint64]*remote),
		}
		sh.tx.Stats = opt.Stats
		if opt.Random != nil {
			sh.random.From = opt.Random(uint8(i))
		}
		sh.turn = &Turn{sh: sh}
		sh.box.index = make(map[SinkRef]int)
		for _, mk := range opt.Components {
			sh.components = append(sh.components, mk(uint8(i)))
		}
		rt.shards[i] = sh
	}
	rt.admit.limit.Store(backlogFirst)
	rt.commit = newCommitter(rt)
	return rt
}

// Stats gives the counters.
func (rt *Runtime) Stats() *Stats { return &rt.stats }

// Healthy is false while the store is down; see StoreState.
func (rt *Runtime) Healthy() bool { return !rt.commit.down.Load() }

// Start runs the shards, the committer and the workers.
func (rt *Runtime) Start() {
	rt.started.Store(true)
	rt.over.Go(rt.commit.run)
	for range asyncWorkers {
		rt.over.Go(func() {
			for {
				select {
				case <-rt.done:
					return
				case f := <-rt.work:
					f()
				}
			}
		})
	}
	for _, sh := range rt.shards {
		rt.over.Go(sh.run)
	}
}

// asyncWorkers bounds how many resolutions and fetches block at a time.
const asyncWorkers = 16

// Stop waits, as long as ctx allows, for NOTIFYs in flight, stores the exact
// CSeq of each dialog and ends the goroutines. Requests that arrive meanwhile
// are dropped: their senders repeat them, and the next start answers. It is
// idempotent.
func (rt *Runtime) Stop(ctx context.Context) error {
	if rt.closed.Swap(true) {
		<-rt.stopped
		return nil
	}
	var err error
	if rt.started.Load() {
		rt.quiesce(ctx)
		err = rt.flush(ctx)
	}
	close(rt.done)
	for _, sh := range rt.shards {
		sh.poke()
	}
	rt.over.Wait()
	close(rt.stopped)
	return err
}

// quiesceLimit is how long a stop waits for watchers to answer.
const quiesceLimit = 3 * time.Second

// quietRounds is how often in a row all shards must have nothing to do: what one
// has done may reach a watcher through two others, a list's shard and back.
const quietRounds = 4

// quiesce waits until what was received is handled and no NOTIFY is in flight
// or owed, but for those to peers that failed before, and no longer than
// quiesceLimit. What only pacing keeps back goes now: after the restart nobody
// would know of it.
func (rt *Runtime) quiesce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, quiesceLimit)
	defer cancel()
	for quiet := 0; ; {
		var busy atomic.Int64
		busy.Store(rt.backlog.Load()) // which does not grow any more
		rt.each(func(t *Turn) {
			busy.Add(int64(len(t.sh.later) + len(t.sh.local)))
			for s := range t.sh.subs.all() {
				if s.n.owed && s.n.failures == 0 {
					s.n.urgent = true
					t.sh.touch(s)
				}
				if s.n.inFlight || s.n.owed && s.n.urgent && s.n.recovery != silent && s.n.lostUntil == 0 {
					busy.Add(1)
				}
			}
		})
		if busy.Load() == 0 {
			if quiet++; quiet == quietRounds {
				return
			}
			continue
		}
		quiet = 0
		select {
		case <-ctx.Done():
			return // the rest is Unsettled
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Unsettled names, after Stop, the stored dialogs whose watchers have not
// confirmed the newest state: they want a NOTIFY after the restart.
func (rt *Runtime) Unsettled() []string { return rt.unsettled }

// flush stores the exact CSeq of every quiet dialog and waits for the commit.
func (rt *Runtime) flush(ctx context.Context) error {
	if rt.opt.Durability == Memory {
		return nil
	}
	var mu sync.Mutex
	unsettled := make(map[string]bool)
	rt.each(func(t *Turn) {
		t.sh.frozen = true
		for s := range t.sh.subs.all() {
			if s.stored && s.n.inFlight { // its ceiling stays what it is
				mu.Lock()
				unsettled[formatTag(s.id)] = true
				mu.Unlock()
			}
			if s.stored && !s.n.inFlight {
				s.n.ceiling = s.n.cseq // exact: nothing will be sent any more
				row := t.sh.row(t, s)
				row.Told = t.sh.told(s)
				t.persist(PutSubscription{Row: row})
			}
		}
		for _, r := range t.sh.uacs {
			t.sh.settleRemote(t, r)
		}
	})
	if err := rt.commit.drain(ctx); err != nil {
		return err
	}
	rt.each(func(t *Turn) { // answers that waited for the commit leave
		for s := range t.sh.subs.all() {
			if s.stored && s.n.owed { // what came from another shard since, too
				mu.Lock()
				unsettled[formatTag(s.id)] = true
				mu.Unlock()
			}
		}
	})
	rt.unsettled = slices.Sorted(maps.Keys(unsettled))
	return nil
}

// each runs f in a turn of every shard and waits for all.
func (rt *Runtime) each(f func(t *Turn)) {
	var wg sync.WaitGroup
	for i := range rt.shards {
		wg.Add(1)
		rt.Post(uint8(i), func(t *Turn) {
			defer wg.Done()
			f(t)
		})
	}
	wg.Wait()
}

// Each runs f in a turn of every shard, one after the other, and waits. f must
// not call the Runtime. It does nothing in shards that have stopped.
func (rt *Runtime) Each(f func(t *Turn)) {
	for i := range rt.shards {
		rt.do(uint8(i), f)
	}
}

// Do runs f in a turn of the shard that owns a resource and waits. It does
// nothing when the Runtime has stopped.
func (rt *Runtime) Do(resource string, f func(t *Turn)) { rt.do(ShardOf(resource), f) }

func (rt *Runtime) do(shard uint8, f func(t *Turn)) {
	done := make(chan struct{})
	rt.Post(shard, func(t *Turn) {
		defer close(done)
		f(t)
	})
	select {
	case <-done:
	case <-rt.stopped:
	}
}

// ShardOf is the shard that owns a resource.
func ShardOf(resource string) uint8 {
	s := uint32(2166136261) // FNV-1a
	for i := 0; i < len(resource); i++ {
		s = (s ^ uint32(resource[i])) * 16777619
	}
	return uint8(s ^ s>>8 ^ s>>16 ^ s>>24)
}

// Post runs f in a turn of a shard. It is not bounded: callers post at most a
// fixed number of times per object they hold.
func (rt *Runtime) Post(shard uint8, f func(*Turn)) {
	sh := rt.shards[shard]
	sh.box.mu.Lock()
	sh.box.calls = append(sh.box.calls, f)
	sh.box.mu.Unlock()
	sh.poke()
}

// Receive takes a message from the transport. It owns m.
func (rt *Runtime) Receive(m *sip.Message) {
	if m.IsRequest() && rt.closed.Load() {
		m.Release()
		return
	}
	if v := rt.Admit(m); v != sip.Pass {
		rt.overflow(m, v)
		return
	}
	in := incoming{m: m}
	sh := rt.shards[rt.owner(&in)]
	limit := mailboxLimit
	if !m.IsRequest() {
		limit *= 2
	}
	sh.box.mu.Lock()
	n := len(sh.box.msgs)
	if n < limit {
		sh.box.msgs = append(sh.box.msgs, in)
		rt.backlog.Add(1)
	}
	sh.box.mu.Unlock()
	switch {
	case n >= limit:
		rt.overflow(m, rt.surplus(m, isNewWork(m)))
	case n == 0:
		sh.poke()
	}
}

// waiting is how many messages wait to be worked on or to be sent: what cannot
// be sent any faster is as good as not done.
func (rt *Runtime) waiting() int64 {
	n := rt.backlog.Load()
	if rt.opt.Unsent != nil {
		n += int64(rt.opt.Unsent())
	}
	return n
}

// crowded tells whether what can be done later should be.
func (rt *Runtime) crowded() bool { return rt.waiting() >= rt.admit.limit.Load()/2 }

// Admit tells whether there is time for a message, and counts those for which
// there is none; Receive asks as well. It is safe for concurrent use.
func (rt *Runtime) Admit(m *sip.Message) sip.Verdict {
	isNew := isNewWork(m)
	waiting := rt.backlog.Load()
	if isNew {
		waiting = rt.waiting()
	}
	switch {
	case m.IsRequest() && rt.closed.Load(): // Receive drops it
	case isNew && waiting >= rt.admit.limit.Load(), waiting >= 2*backlogAll, waiting >= backlogAll && m.IsRequest():
		return rt.surplus(m, isNew)
	}
	return sip.Pass
}

// surplus decides how to be rid of a message that nobody has the time for. Who is
// refused goes away and who hears nothing asks ten times more, so new work is
// refused as long as the readers of sockets keep up.
func (rt *Runtime) surplus(m *sip.Message, isNew bool) sip.Verdict {
	rt.stats.Overload.Add(1)
	if m.IsRequest() && (m.Flow.Proto.Reliable() || isNew && !m.Crowded) {
		return sip.Reject
	}
	return sip.Drop
}

// overflow refuses or drops a message.
func (rt *Runtime) overflow(m *sip.Message, v sip.Verdict) {
	if v == sip.Reject && m.Method() != sip.ACK {
		rt.opt.Sender.Send(sip.ResponseFlow(m), sip.Overloaded(m), 0)
	}
	m.Release()
}

// Failed takes the transport's report that a request could not be sent: it has
// not left, or with sip.ErrAnswerLost it may have, and there will be no answer.
func (rt *Runtime) Failed(id sip.ClientID, err error) {
	if errors.Is(err, sip.ErrAnswerLost) {
		err = nil
	}
	rt.Post(id.Shard(), func(t *Turn) {
		if out, ok := t.sh.tx.Fail(id); ok {
			t.sh.outcome(t, out, err)
		}
	})
}

// isNewWork tells the requests that are refused first when there is too much to
// do. What belongs to a dialog or a publication that is there goes on.
func isNewWork(m *sip.Message) bool {
	if !m.IsRequest() || len(m.To().Tag()) > 0 && m.Method() != sip.PUBLISH {
		return false
	}
	switch m.Method() {
	case sip.ACK, sip.CANCEL:
		return false
	case sip.PUBLISH:
		return !m.Has(sip.HdrSIPIfMatch)
	}
	return true
}

// incoming is a message in a mailbox, with the resource it is for when that
// named its shard.
type incoming struct {
	m     *sip.Message
	key   string
	err   error
	keyed bool
	local bool
}

// owner is the shard of a message: named by our branch in a response, by our
// tag in a request within a dialog, by the resource otherwise.
func (rt *Runtime) owner(in *incoming) uint8 {
	m := in.m
	if !m.IsRequest() {
		id, _, _ := sip.ParseBranch(m.Via().Branch)
		return id.Shard()
	}
	if tag := m.To().Tag(); len(tag) > 0 && m.Method() != sip.PUBLISH { // which belongs to no dialog
		if id, ok := rt.dialogOf(m); ok {
			return tagShard(id)
		}
	}
	in.key, in.local, in.err = rt.opt.Key(m.RequestURI())
	in.keyed = true
	if in.err != nil {
		return 0
	}
	return ShardOf(in.key)
}

// dialogOf is the dialog that a request with a tag of ours names.
func (rt *Runtime) dialogOf(m *sip.Message) (uint64, bool) {
	if len(rt.foreign) > 0 {
		var buf [256]byte
		if id, ok := rt.foreign[string(appendDialogKey(buf[:0], m.CallID(), m.To().Tag(), m.From().Tag()))]; ok {
			return id, true
		}
	}
	return parseTag(m.To().Tag())
}

// appendDialogKey writes a dialog's identification (RFC 3261 section 12): tags
// of others need not be unique by themselves.
func appendDialogKey[S []byte | string](b []byte, callID, local, remote S) []byte {
	b = append(append(b, callID...), 0)
	b = append(append(b, local...), 0)
	return append(b, remote...)
}

type mailbox struct {
	mu      sync.Mutex
	msgs    []incoming
	calls   []func(*Turn)
	updates []Update
	index   map[SinkRef]int
	durable uint64 // newest committed batch

	unstorable []uint64 // batches of which something was left out
}

// shard is one owner: a goroutine and everything it owns.
type shard struct {
	rt         *Runtime
	id         uint8
	box        mailbox
	wake       chan struct{}
	tx         *sip.Transactions
	wheel      *sip.Wheel
	components []Component
	subs       table
	gone       []*subscription // in this turn
	arena      arena
	uacs       map[uint64]*remote
	refreshes  Spread // of restored remote subscriptions
	turn       *Turn
	dirty      []*subscription
	frozen     bool          // what is stored is final: nothing is sent any more
	later      []func(*Turn) // see Turn.Later; bounded by the objects that have such work
	laterAt    time.Time     // when the last of them ran

	local    []Update // updates to sinks of this shard
	held     []send   // sends that wait for commits
	watching bool     // held is looked at by a timer
	parked   []parked // dialogs that wait for commits, in the order of these
	parkedBy map[uint64]uint64
	batch    uint64 // number of the newest batch handed to the committer
	durable  uint64
	windows  windows
	via      via
	scratch  effects
	random   sip.Random
	packed   packed
	digested digested
	headBuf  []byte
	bodyBuf  []byte
	textBuf  []byte

	spareMore []*more
	spare     mailboxSpare
	taken     []incoming // from the mailbox
	rest      []incoming // of taken, for the turns to come
	handling  *Request   // being handled

	contact      []byte // our Contact at contactAt
	contactAt    netip.AddrPort
	contactProto sip.Proto
}

// mailboxSpare are emptied slices that go back into the mailbox.
type mailboxSpare struct {
	msgs    []incoming
	calls   []func(*Turn)
	updates []Update
}

func (sh *shard) poke() {
	select {
	case sh.wake <- struct{}{}:
	default:
	}
}

func (sh *shard) run() {
	var armed time.Time // when the timer will poke
	timer := time.AfterFunc(time.Hour, sh.poke)
	defer timer.Stop()
	for {
		sh.rt.running <- struct{}{}
		now := time.Now()
		if !armed.IsZero() && !now.Before(armed) {
			armed = time.Time{}
		}
		next, pending := sh.work(now)
		if sh.rt.backlog.Load() >= yieldAt {
			runtime.Gosched() // still holding the place, so that it is not another shard that runs
		}
		<-sh.rt.running
		// A poke that comes too early costs less than moving the timer each turn.
		if pending && (armed.IsZero() || next.Before(armed)) {
			armed = next
			timer.Reset(time.Until(next))
		}
		<-sh.wake
		select {
		case <-sh.rt.done:
			return
		default:
		}
	}
}

// work is one turn. It returns when the next one is due without new input.
func (sh *shard) work(now time.Time) (time.Time, bool) {
	b := &sh.box
	b.mu.Lock()
	msgs, calls, updates := sh.rest, b.calls, b.updates
	b.calls, b.updates = sh.spare.calls[:0], sh.spare.updates[:0]
	fresh := len(msgs) == 0
	if fresh {
		msgs, b.msgs = b.msgs, sh.spare.msgs[:0]
		sh.taken = msgs
	}
	if len(updates) > 0 {
		clear(b.index)
	}
	sh.durable = b.durable
	unstorable := b.unstorable
	b.unstorable = nil
	b.mu.Unlock()
	budget := min(len(msgs), turnBudget)
	sh.rest = msgs[budget:]
	if msgs = msgs[:budget]; budget > 0 {
		sh.rt.admit.taken(now, budget, sh.rt.backlog.Add(int64(-budget)))
	}
	if len(sh.rest) > 0 || !fresh { // there is more, or there may be: who added it saw no need to poke
		sh.poke()
	}

	t := sh.turn
	t.Now, t.now = now, moment(now.Sub(sh.rt.base))
	if len(unstorable) > 0 {
		sh.withdraw(t, 500, func(s *send) bool { return slices.Contains(unstorable, s.after) })
	}
	sh.release(now)
	sh.tx.Advance(now, func(out sip.Outcome) { sh.guard(func() { sh.outcome(t, out, nil) }) })
	sh.wheel.Advance(now, func(key uint64) { sh.guard(func() { sh.timer(t, key) }) })
	if len(sh.later) > 0 && (!sh.rt.crowded() || now.Sub(sh.laterAt) >= laterMost) {
		sh.laterAt = now
		f := sh.later[0]
		sh.later[0] = nil
		sh.later = sh.later[1:]
		sh.guard(func() { f(t) })
	}
	for i, f := range calls {
		sh.guard(func() { f(t) })
		calls[i] = nil
	}
	for i := range updates {
		sh.guard(func() { sh.deliver(t, updates[i]) })
		updates[i] = Update{}
	}
	for i := range msgs {
		if sh.frozen && msgs[i].m.IsRequest() { // as Receive does
			msgs[i].m.Release()
			msgs[i] = incoming{}
			continue
		}
		if !sh.guard(func() { sh.message(t, &msgs[i]) }) {
			sh.crashed(t)
		}
		msgs[i] = incoming{}
	}
	sh.settle(t)
	sh.bury()
	sh.spare.calls, sh.spare.updates = calls, updates
	if len(sh.rest) == 0 {
		sh.spare.msgs, sh.rest = sh.taken, nil
	}
	sh.finish(t)

	next, ok := sh.wheel.Next()
	if len(sh.later) > 0 {
		if !sh.rt.crowded() {
			sh.poke()
		} else if pause := now.Add(laterPause); !ok || pause.Before(next) {
			next, ok = pause, true
		}
	}
	if n2, ok2 := sh.tx.Next(); ok2 && (!ok || n2.Before(next)) {
		next, ok = n2, true
	}
	return next, ok
}

// settle delivers updates within the shard and sends the NOTIFYs that are
// owed, until nothing is left to do in this turn.
func (sh *shard) settle(t *Turn) {
	for len(sh.local) > 0 || len(sh.dirty) > 0 {
		for i := 0; i < len(sh.local); i++ {
			u := sh.local[i]
			sh.guard(func() { sh.deliver(t, u) })
		}
		clear(sh.local)
		sh.local = sh.local[:0]
		dirty := sh.dirty
		sh.dirty = nil
		for _, s := range dirty {
			s.dirty = false
			if !sh.frozen && !sh.parks(t, s) && sh.hasRoom(t, s) {
				sh.flush(t, s)
			}
		}
	}
}

// flush lets a subscription send the NOTIFY that it owes, if it may go now.
func (sh *shard) flush(t *Turn, s *subscription) {
	if !sh.guard(func() { sh.step(t, s, notifierEvent{kind: evFlush}) }) && s.n.inFlight {
		t.unsent(s, errors.New("NOTIFY not rendered"))
	}
	sh.via.s = nil
}

// guard keeps a panic to the message that caused it; it returns false after one.
func (sh *shard) guard(f func()) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			sh.rt.stats.Panics.Add(1)
			sh.rt.panics.Log(time.Now(), sh.rt.opt.Log, slog.LevelError, "panic", "shard", sh.id, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	f()
	return true
}

// finish hands the turn's writes to the committer, its updates to the other
// shards, and its sends to the network or, behind a commit, to the held queue.
func (sh *shard) finish(t *Turn) {
	rt := sh.rt
	if len(t.writes) > 0 {
		sh.batch++
		wait := t.mustCommit || t.relies && rt.opt.Durability == WriteThrough
		rt.commit.submit(sh, sh.batch, t.writes, wait || t.hurry)
		t.hold = t.hold || wait
		t.writes, t.mustCommit, t.relies, t.hurry = nil, false, false, false
	}
	if n := len(sh.held); n > 0 || t.hold {
		after := sh.batch
		if !t.hold { // only not to overtake
			after = sh.held[n-1].after
		}
		sh.hold(t, after)
		t.hold = false
	} else {
		for _, s := range t.sends {
			sh.transmit(t, s)
		}
	}
	clear(t.sends)
	t.sends = t.sends[:0]
	for i, id := range t.outShard {
		o := &t.out[i]
		dst := rt.shards[id]
		b := &dst.box
		b.mu.Lock()
		b.calls = append(b.calls, o.calls...)
		for _, u := range o.updates {
			rt.stats.Coalesced.Add(b.put(u))
		}
		b.mu.Unlock()
		dst.poke()
		t.outIndex[id] = 0
		clear(o.calls)
		clear(o.updates)
		o.calls, o.updates = o.calls[:0], o.updates[:0]
	}
	t.outShard = t.outShard[:0]
}

// put adds an update; a newer one replaces an older one, but nothing replaces
// the end. It returns how many were replaced.
func (b *mailbox) put(u Update) uint64 {
	if i, ok := b.index[u.To]; ok {
		if b.updates[i].State != Terminated || b.updates[i].Retrying {
			b.updates[i] = u
		}
		return 1
	}
	b.index[u.To] = len(b.updates)
	b.updates = append(b.updates, u)
	return 0
}

// release sends what waited for commits that are done.
func (sh *shard) release(now time.Time) {
	n := 0
	for n < len(sh.held) && sh.held[n].after <= sh.durable {
		sh.transmit(sh.turn, sh.held[n])
		n++
	}
	if n > 0 {
		rest := copy(sh.held, sh.held[n:])
		clear(sh.held[rest:])
		sh.held = sh.held[:rest]
	}
	sh.unpark()
}

func (sh *shard) transmit(t *Turn, s send) {
	if s.server != 0 {
		sh.tx.Respond(t.Now, s.server, s.head)
		return
	}
	if err := sh.tx.Request(t.Now, s.client, s.flow, s.head, s.body); err != nil {
		// Not now: the state that sent this may be in the middle of its step.
		out := sip.Outcome{User: s.user, Status: 503}
		sh.rt.Post(sh.id, func(t *Turn) { sh.outcome(t, out, err) })
	}
}

func (sh *shard) deliver(t *Turn, u Update) {
	if u.To.Component == notifierComponent {
		sh.notifierUpdate(t, u)
		return
	}
	sh.components[u.To.Component].(Sink).Update(t, u)
}

// Users of client transactions and owners of timers, in the top byte.
const (
	notifierComponent   = 0xff
	subscriberComponent = 0xfe
	heldComponent       = 0xfd
)

func (sh *shard) timer(t *Turn, key uint64) {
	id := key & idMask
	switch c := uint8(key >> 56); c {
	case notifierComponent:
		if s := sh.subs.get(id); s != nil {
			s.timer = 0
			sh.step(t, s, notifierEvent{kind: evTimer})
			sh.touch(s)
		} else {
			sh.rt.stats.Orphans.Add(1)
		}
	case subscriberComponent:
		if r := sh.uacs[id]; r != nil {
			r.timer = 0
			sh.stepRemote(t, r, subscriberEvent{kind: suTimer})
		} else {
			sh.rt.stats.Orphans.Add(1)
		}
	case heldComponent:
		sh.overdue(t)
	default:
		sh.components[c].Timer(t, id)
	}
}

// outcome is how one of our requests ended without a response; cause is set
// when it did not even leave.
func (sh *shard) outcome(t *Turn, out sip.Outcome, cause error) {
	id := out.User & idMask
	switch uint8(out.User >> 56) {
	case notifierComponent:
		if s := sh.subs.get(id); s != nil {
			if cause != nil {
				sh.notifyUnsent(t, s, cause)
			} else {
				sh.notifyAnswered(t, s, out.Status, nil)
			}
		}
	case subscriberComponent:
		if r := sh.uacs[id]; r != nil {
			sh.subscribeFailed(t, r, out.Status, cause)
		}
	}
}
