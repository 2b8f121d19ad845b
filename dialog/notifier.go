package dialog

import (
	"math"
	"slices"
	"time"
)

// The notifier side of a subscription (RFC 6665 section 4.2, figure 5).
//
//	state       event                       next         effects
//	init        subscribe                   waiting      attach
//	waiting     update pending|active       that         respond 200, store, NOTIFY full
//	            (fetch: Expires 0)          terminated   respond 200, detach, NOTIFY full
//	            update terminated           gone         respond with its error
//	            subscribe                   waiting      500: the first one is not answered yet
//	            timer                       gone         respond 504, detach
//	pending,    subscribe > 0               same         respond 200, store, NOTIFY full
//	active      subscribe 0                 terminated   respond 200, forget, detach, NOTIFY full
//	            update                      that         NOTIFY, paced
//	            update terminated           terminated   forget, NOTIFY
//	            timer at expiry             terminated   forget, detach, NOTIFY
//	            answer 2xx                  same         next NOTIFY if one is owed
//	            answer EV-15, 408           gone         forget, detach
//	            answer other                same         NOTIFY full later
//	            unsent                      same         NOTIFY full again, with the same CSeq
//	            withdrawn                   gone         forget, detach
//	restored    update                      that         NOTIFY full, spread, if it is not what the watcher was told
//	            update, not all is known    that         NOTIFY only if a SUBSCRIBE asked for it
//	terminated  subscribe                   same         respond 481
//	            answer to the last NOTIFY   gone
//
// NOTIFYs are owed, not queued: flush sends one when none is in flight.

// cseqBlock is how many CSeq numbers are reserved by one write.
const cseqBlock = 256

// lastWait bounds how long a terminated subscription waits to say so.
const lastWait = 32 * time.Second

// sourceTimeout bounds the wait for a source's first Update.
const sourceTimeout = 10 * time.Second

type notifierPhase uint8

const (
	phaseInit notifierPhase = iota
	phaseWaiting
	phasePending
	phaseActive
	phaseTerminated
	phaseGone
)

func (p notifierPhase) String() string {
	return [...]string{"init", "waiting", "pending", "active", "terminated", "gone"}[p]
}

// Notifier is the machine of one subscription. Step is its only entry.
type Notifier struct {
	phase     notifierPhase
	inFlight  bool
	owed      bool // a NOTIFY must be sent
	urgent    bool // ... without regard to the interval
	full      bool // ... with full state
	fetch     bool
	recovery  recovery
	failures  uint8  // NOTIFYs in a row that failed without ending the subscription
	why       uint8  // it was terminated: index in reasons
	interval  uint32 // ms
	cseq      uint32 // of the last NOTIFY
	ceiling   uint32 // reserved in the store
	offset    uint32 // cseq - offset is the body version
	after     uint32 // retry-after of the termination in seconds
	expires   moment
	notBefore moment // next NOTIFY that nobody asked for
	lostUntil moment // the flow is gone; not zero: nothing is sent, and the subscription ends then
}

// recovery is how far a subscription has got after a restart.
type recovery uint8

const (
	settled recovery = iota
	silent           // nothing was heard of the source yet, so nothing can be sent
	partly           // the source does not know all yet: nothing is sent but what somebody asks for
	spread           // a NOTIFY is owed, at a time drawn so that not all go at once
)

// reasons are those of RFC 6665 section 4.1.3. Another one, which a remote server
// may give, says nothing to a watcher.
var reasons = []Reason{"", Deactivated, Probation, Rejected, Timeout, Giveup, NoResource, Invariant}

// reason is why the subscription was terminated.
func (n *Notifier) reason() Reason { return reasons[n.why] }

func (n *Notifier) retryAfter() time.Duration { return time.Duration(n.after) * time.Second }

// pace is when the next NOTIFY may go that nobody asked for.
func (n *Notifier) pace(now moment) moment {
	return now.add(time.Duration(n.interval) * time.Millisecond)
}

// moment is nanoseconds on the monotonic clock of the runtime. Zero is never.
type moment int64

func (m moment) add(d time.Duration) moment { return m + moment(d) }

func (m moment) sub(o moment) time.Duration { return time.Duration(m - o) }

type eventKind uint8

const (
	evSubscribe eventKind = iota
	evUpdate
	evAnswer
	evUnsent // the NOTIFY did not leave; at once again with expires 0, else later
	evTimer
	evFlush
	evAgain     // the NOTIFY in flight has to be sent otherwise
	evLost      // the NOTIFY did not leave: its flow is gone, and there is no other way
	evWithdrawn // the SUBSCRIBE that began it was refused after all; no NOTIFY has left
)

// notifierEvent is what happens to a subscription.
type notifierEvent struct {
	kind        eventKind
	expires     time.Duration // granted, of evSubscribe
	state       SubState      // of evUpdate
	reason      Reason
	whole, same bool          // of evUpdate after a restart: all is known again; it is what the watcher was told before
	retryAfter  time.Duration // of evUpdate, or of an answer
	err         *Error
	status      int // of evAnswer
}

type effectKind uint8

const (
	fxRespond effectKind = iota // answer the waiting SUBSCRIBE
	fxAttach
	fxDetach
	fxStore   // insert or replace the row
	fxForget  // delete the row
	fxCeiling // raise the stored CSeq ceiling
	fxNotify
	fxTimer // call again at
	fxRemove
)

// notifierEffect is what the runtime must do.
type notifierEffect struct {
	kind effectKind
	err  *Error // of fxRespond; nil is 200
	at   moment
	full bool // of fxNotify
}

type effects []notifierEffect

func (f *effects) add(k effectKind) { *f = append(*f, notifierEffect{kind: k}) }

func (n *Notifier) become(p notifierPhase) { n.phase = p }

// step applies one event and appends what must be done.
func (n *Notifier) step(now moment, ev notifierEvent, fx *effects) {
	switch ev.kind {
	case evSubscribe:
		n.subscribe(now, ev, fx)
	case evUpdate:
		n.update(now, ev, fx)
	case evAnswer:
		n.answer(now, ev, fx)
	case evUnsent:
		n.unsent(now, ev, fx)
	case evTimer:
		n.timer(now, fx)
	case evFlush:
		n.flush(now, fx)
	case evAgain:
		if n.inFlight {
			n.inFlight = false
			n.owed, n.full, n.urgent = true, true, true
		}
	case evLost:
		n.lost(now, fx)
	case evWithdrawn:
		n.withdrawn(fx)
	}
}

// withdrawn ends a subscription of which the watcher knows nothing.
func (n *Notifier) withdrawn(fx *effects) {
	if n.phase == phasePending || n.phase == phaseActive {
		fx.add(fxForget)
		fx.add(fxDetach)
	}
	n.owed, n.inFlight = false, false
	n.become(phaseGone)
	fx.add(fxRemove)
}

func (n *Notifier) subscribe(now moment, ev notifierEvent, fx *effects) {
	switch n.phase {
	case phaseInit:
		n.become(phaseWaiting)
		n.fetch = ev.expires == 0
		n.offset = 1
		n.expires = now.add(ev.expires)
		*fx = append(*fx, notifierEffect{kind: fxTimer, at: now.add(sourceTimeout)})
		fx.add(fxAttach)
	case phaseWaiting:
		*fx = append(*fx, notifierEffect{kind: fxRespond, err: &Error{Status: 500, Reason: "Earlier SUBSCRIBE Not Answered Yet", RetryAfter: time.Second}})
	case phasePending, phaseActive:
		fx.add(fxRespond)
		n.lostUntil, n.why, n.after = 0, 0, 0
		n.owed, n.urgent, n.full = true, true, true
		n.expires = now.add(ev.expires)
		if ev.expires == 0 {
			n.terminate(Timeout, 0, fx)
			fx.add(fxDetach)
			return
		}
		fx.add(fxStore)
		*fx = append(*fx, notifierEffect{kind: fxTimer, at: n.expires})
	default:
		*fx = append(*fx, notifierEffect{kind: fxRespond, err: Refuse(481, "")})
	}
}

// terminate ends the subscription; the last NOTIFY is still owed.
func (n *Notifier) terminate(why Reason, retryAfter time.Duration, fx *effects) {
	n.become(phaseTerminated)
	n.why = uint8(max(slices.Index(reasons, why), 0))
	n.after = uint32(min((retryAfter+time.Second-1)/time.Second, math.MaxUint32))
	n.owed, n.urgent = true, true
	if !n.fetch {
		fx.add(fxForget)
	}
}

func (n *Notifier) update(now moment, ev notifierEvent, fx *effects) {
	next := phaseActive
	if ev.state == Pending || ev.state == Unknown {
		next = phasePending
	}
	switch n.phase {
	case phaseWaiting:
		if ev.state == Terminated {
			err := ev.err
			if err == nil {
				err = Refuse(404, "")
			}
			*fx = append(*fx, notifierEffect{kind: fxRespond, err: err})
			n.become(phaseGone)
			fx.add(fxRemove)
			return
		}
		n.become(next)
		fx.add(fxRespond)
		n.owed, n.urgent, n.full = true, true, true
		if n.fetch {
			n.terminate(Timeout, 0, fx)
			fx.add(fxDetach)
			return
		}
		n.ceiling = n.cseq + cseqBlock
		fx.add(fxStore)
		*fx = append(*fx, notifierEffect{kind: fxTimer, at: n.expires})
	case phasePending, phaseActive:
		if ev.state == Terminated {
			n.terminate(ev.reason, ev.retryAfter, fx)
			return
		}
		if n.recovery == silent || n.recovery == partly {
			switch {
			case n.owed:
				n.recovery = spread
			case !ev.whole:
				n.recovery = partly
			case ev.same:
				n.recovery, n.notBefore = settled, 0
			default:
				n.recovery, n.owed, n.full = spread, true, true
			}
			n.become(next)
			return
		}
		if n.recovery == spread { // now it is a change
			n.recovery, n.notBefore = settled, 0
		}
		if next != n.phase { // a change of authorization is not paced (RC-03)
			n.urgent = true
		}
		n.become(next)
		n.owed = true
	}
}

// flowGrace is how long a subscription waits for its watcher to come back after
// its connection is gone.
const flowGrace = 5 * time.Minute

// lost takes back a NOTIFY for which there is no way, and waits for a SUBSCRIBE
// over another flow.
func (n *Notifier) lost(now moment, fx *effects) {
	if n.inFlight {
		n.inFlight = false
		n.cseq--
		n.owed, n.full, n.urgent = true, true, true
	}
	if n.phase == phaseTerminated {
		n.become(phaseGone)
		fx.add(fxRemove)
		return
	}
	if n.lostUntil == 0 {
		n.lostUntil = now.add(flowGrace)
		*fx = append(*fx, notifierEffect{kind: fxTimer, at: n.lostUntil})
	}
}

func (n *Notifier) timer(now moment, fx *effects) {
	if n.lostUntil != 0 && (n.phase == phasePending || n.phase == phaseActive) {
		if end := min(n.lostUntil, n.expires); now < end {
			*fx = append(*fx, notifierEffect{kind: fxTimer, at: end})
			return
		}
		n.owed = false
		n.become(phaseGone)
		fx.add(fxForget)
		fx.add(fxDetach)
		fx.add(fxRemove)
		return
	}
	switch n.phase {
	case phaseWaiting:
		*fx = append(*fx, notifierEffect{kind: fxRespond, err: Refuse(504, "")})
		fx.add(fxDetach)
		n.become(phaseGone)
		fx.add(fxRemove)
	case phaseTerminated:
		if n.owed && !n.inFlight && now < n.notBefore {
			*fx = append(*fx, notifierEffect{kind: fxTimer, at: n.notBefore})
		}
	case phasePending, phaseActive:
		if now < n.expires { // due to pacing, or set before a refresh
			*fx = append(*fx, notifierEffect{kind: fxTimer, at: n.expires})
			return
		}
		n.full = true
		n.terminate(Timeout, 0, fx)
		fx.add(fxDetach)
	}
}

// endsSubscription is the rule of RFC 6665 section 4.2.2 (EV-15); a timeout
// counts as the end too.
func endsSubscription(status int) bool {
	switch status {
	case 404, 405, 408, 410, 416, 480, 481, 482, 483, 484, 485, 489, 501, 604:
		return true
	}
	return false
}

func (n *Notifier) answer(now moment, ev notifierEvent, fx *effects) {
	if !n.inFlight {
		return
	}
	n.inFlight = false
	last := n.phase == phaseTerminated && !n.owed
	switch {
	case endsSubscription(ev.status):
		if n.phase == phasePending || n.phase == phaseActive {
			fx.add(fxForget)
			fx.add(fxDetach)
		}
		last = true
	case ev.status >= 300: // the peer did not take the state: say all of it again, later
		if !last {
			n.again(now, ev.retryAfter, fx)
		}
	case n.failures > 0: // the peer is back, and a pause it asked for is over
		n.failures, n.notBefore = 0, n.pace(now)
	}
	if last {
		n.owed = false
		n.become(phaseGone)
		fx.add(fxRemove)
	}
}

// again owes a NOTIFY with full state after a failure, with back-off.
func (n *Notifier) again(now moment, wait time.Duration, fx *effects) {
	n.failures = min(n.failures+1, 10)
	if wait == 0 {
		wait = min(time.Second<<(n.failures-1), 5*time.Minute)
	}
	if n.phase == phaseTerminated { // kept for this NOTIFY only: not for as long as a peer likes
		wait = min(wait, lastWait)
	}
	n.notBefore = now.add(wait)
	n.owed, n.full, n.urgent = true, true, false
	*fx = append(*fx, notifierEffect{kind: fxTimer, at: n.notBefore})
}

// unsent takes back a NOTIFY that did not reach the network, and its CSeq.
func (n *Notifier) unsent(now moment, ev notifierEvent, fx *effects) {
	if !n.inFlight {
		return
	}
	n.inFlight = false
	n.cseq--
	if ev.err == nil {
		n.owed, n.full, n.urgent = true, true, true
		return
	}
	if n.phase == phaseTerminated && n.failures >= 3 {
		n.become(phaseGone)
		fx.add(fxRemove)
		return
	}
	n.again(now, 0, fx)
}

// mayFlush tells whether flush would send a NOTIFY now.
func (n *Notifier) mayFlush(now moment) bool {
	return n.owed && !n.inFlight && n.phase > phaseWaiting && n.phase != phaseGone && n.lostUntil == 0 &&
		(n.recovery != silent || n.phase == phaseTerminated) && (n.urgent || now >= n.notBefore)
}

// flush sends the NOTIFY that is owed, if it may go now.
func (n *Notifier) flush(now moment, fx *effects) {
	if !n.owed || n.inFlight || n.phase <= phaseWaiting || n.phase == phaseGone {
		return
	}
	if n.lostUntil != 0 {
		if n.phase == phaseTerminated { // nobody can be told
			n.owed = false
			n.become(phaseGone)
			fx.add(fxRemove)
		}
		return
	}
	if n.phase != phaseTerminated && now >= n.expires { // the timer has a grain, and a restart takes time
		n.timer(now, fx)
	}
	if n.recovery == silent && n.phase != phaseTerminated { // there is nothing to show yet
		return
	}
	if !n.urgent && now < n.notBefore {
		*fx = append(*fx, notifierEffect{kind: fxTimer, at: n.notBefore})
		return
	}
	n.cseq++
	if n.cseq > n.ceiling && n.phase != phaseTerminated {
		n.ceiling = n.cseq + cseqBlock
		fx.add(fxCeiling)
	}
	*fx = append(*fx, notifierEffect{kind: fxNotify, full: n.full})
	if !n.urgent { // what somebody asked for does not delay the first change after it
		n.notBefore = n.pace(now)
	}
	if n.recovery != silent {
		n.recovery = settled
	}
	n.inFlight, n.owed, n.urgent, n.full = true, false, false, false
}

// state is what Subscription-State says.
func (n *Notifier) state() SubState {
	switch n.phase {
	case phaseActive:
		return Active
	case phaseTerminated, phaseGone:
		return Terminated
	}
	return Pending
}

// restored brings a stored subscription back: it waits for its source and
// answers nobody. With notify the watcher is owed a NOTIFY whatever the source
// says, otherwise if that is not what it was told; it goes at that moment.
func (n *Notifier) restored(row *SubscriptionRow, expires, at moment, notify bool) {
	n.phase = phaseActive
	n.cseq, n.ceiling, n.offset = row.CSeqCeiling, row.CSeqCeiling, row.VersionOffset
	n.expires, n.notBefore = expires, at
	n.owed, n.full, n.recovery = notify, notify, silent
}
