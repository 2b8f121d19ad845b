package dialog

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestNotifierWalk feeds random events to the notifier machine, in the order
// and with the timer the runtime would give them, and checks what must hold
// whatever happens: one NOTIFY in flight, CSeq up by one for each that left and
// never above what the store holds, nothing after the end, always a timer while
// the subscription lives, one final answer to each SUBSCRIBE, and an attachment
// that is given up exactly once.
func TestNotifierWalk(t *testing.T) {
	statuses := []int{200, 200, 200, 200, 202, 204, 302, 400, 401, 403, 500, 503, 503, 603}
	final := []int{404, 405, 408, 410, 416, 480, 481, 482, 483, 484, 485, 489, 501, 604}
	steps := 0
	expires := func(rng *rand.Rand) time.Duration {
		if rng.IntN(12) == 0 {
			return 0
		}
		return time.Duration(1+rng.IntN(600)) * time.Second
	}
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 2))
		w := &notifierWalk{t: t, seed: seed, attached: false}
		w.n.interval = uint32(rng.IntN(3)) * 1000
		if rng.IntN(4) == 0 {
			w.n.cseq = uint32(rng.IntN(600)) // as if after many NOTIFYs; also above the first ceiling
			w.left = w.n.cseq
		}
		if rng.IntN(4) == 0 {
			w.restore(rng)
		} else {
			w.event(notifierEvent{kind: evSubscribe, expires: expires(rng)})
		}
		for step := 0; step < 200 && w.n.phase != phaseGone; step++ {
			steps++
			switch op := rng.IntN(12); {
			case op < 4:
				if !w.attached { // an update on its way when the attachment ended
					if rng.IntN(4) > 0 {
						continue
					}
				}
				ev := notifierEvent{kind: evUpdate, state: SubState(rng.IntN(4)), reason: Rejected, whole: rng.IntN(2) == 0, same: rng.IntN(2) == 0}
				if ev.state == Terminated && rng.IntN(15) > 0 {
					ev.state = Active
				}
				w.event(ev)
			case op < 7:
				if w.n.inFlight {
					ev := notifierEvent{kind: evAnswer, status: statuses[rng.IntN(len(statuses))], retryAfter: time.Duration(rng.IntN(2)*rng.IntN(1e6)) * time.Second}
					if rng.IntN(25) == 0 {
						ev.status = final[rng.IntN(len(final))]
					}
					w.event(ev)
				}
			case op < 8:
				if w.n.inFlight {
					ev := notifierEvent{kind: evUnsent}
					if rng.IntN(2) == 0 {
						ev.err = Refuse(503, "")
					}
					w.event(ev)
				}
			case op < 9:
				w.event(notifierEvent{kind: evSubscribe, expires: expires(rng)})
			case op < 10: // events that make no sense
				w.event(notifierEvent{kind: evAnswer, status: 200})
			default:
				w.advance(time.Duration(rng.Int64N(int64(time.Minute))))
			}
		}
		// Left alone, with every NOTIFY answered, it ends and leaves nothing.
		for range 2000 {
			if w.n.phase == phaseGone {
				break
			}
			if w.n.inFlight {
				w.event(notifierEvent{kind: evAnswer, status: 200})
			} else {
				w.advance(time.Minute)
			}
		}
		if w.n.phase != phaseGone || w.attached || w.stored || w.timer != 0 {
			w.fail("left alone it does not end: %s, attached %v, stored %v", w.n.phase, w.attached, w.stored)
		}
		if t.Failed() {
			return
		}
	}
	if steps < 40_000 {
		t.Errorf("%d steps: the walks end too early to find anything", steps)
	}
}

type notifierWalk struct {
	t       *testing.T
	seed    uint64
	n       Notifier
	now     time.Duration
	timer   moment
	log     []string
	left    uint32 // CSeq of the last NOTIFY that left
	took    bool   // it came back unsent
	ceiling uint32 // in the store

	attached, stored, asked, gone bool
}

func (w *notifierWalk) fail(format string, args ...any) {
	w.t.Errorf("seed %d: %s\n%s", w.seed, fmt.Sprintf(format, args...), strings.Join(w.log[max(0, len(w.log)-25):], "\n"))
}

func (w *notifierWalk) at() moment { return start.add(w.now) }

func (w *notifierWalk) restore(rng *rand.Rand) {
	row := &SubscriptionRow{CSeqCeiling: 300, VersionOffset: 1}
	expires := w.at().add(time.Duration(rng.IntN(200)) * time.Second)
	interval := w.n.interval
	w.n = Notifier{interval: interval}
	w.n.restored(row, expires, w.at().add(time.Duration(rng.IntN(3))*time.Second), rng.IntN(2) == 0)
	w.left, w.ceiling, w.attached, w.stored = 300, 300, true, true
	w.timer = w.n.expires
}

func (w *notifierWalk) advance(d time.Duration) {
	end := w.now + d
	for i := 0; w.timer != 0 && w.timer <= start.add(end) && w.n.phase != phaseGone; i++ {
		if i > 1000 {
			w.fail("the timer fires again and again at %v", w.now)
			return
		}
		w.now = max(w.now, w.timer.sub(start))
		w.timer = 0
		w.event(notifierEvent{kind: evTimer})
	}
	w.now = end
}

func (w *notifierWalk) event(ev notifierEvent) {
	before := w.n.phase
	w.log = append(w.log, fmt.Sprintf("%v %s: event %+v", w.now, before, ev))
	if ev.kind == evUnsent && w.n.inFlight {
		w.took = true
	}
	inFlight := w.n.inFlight
	if ev.kind == evAnswer || ev.kind == evUnsent {
		inFlight = false
	}
	if ev.kind == evSubscribe {
		w.asked = true
	}
	if ev.kind == evUpdate && ev.state == Terminated {
		w.attached = false
	}
	step := func(ev notifierEvent) {
		var fx effects
		w.n.step(w.at(), ev, &fx)
		for _, e := range fx {
			w.effect(e, &inFlight)
		}
	}
	step(ev)
	if w.n.owed && !w.n.inFlight {
		step(notifierEvent{kind: evFlush})
	}
	if inFlight != w.n.inFlight {
		w.fail("in flight %v, machine says %v", inFlight, w.n.inFlight)
	}
	if before >= phaseTerminated && w.n.phase < before {
		w.fail("revived: %s after %s", w.n.phase, before)
	}
	if w.asked && w.n.phase != phaseWaiting {
		w.fail("a SUBSCRIBE was not answered")
	}
	switch {
	case w.n.phase == phaseGone:
		if !w.gone {
			w.fail("gone without being removed")
		}
	case w.n.phase == phaseTerminated:
		if w.timer == 0 && !w.n.inFlight {
			w.fail("terminated, and nothing will ever happen")
		}
	case w.timer == 0:
		w.fail("no timer in %s", w.n.phase)
	case w.n.phase != phaseWaiting && w.timer > w.n.expires:
		w.fail("the timer, %v, is after the expiry, %v", w.timer, w.n.expires)
	}
	if w.n.owed && !w.n.inFlight && w.n.recovery != silent && w.n.phase != phaseGone && (w.timer == 0 || w.timer > w.n.notBefore) && w.n.phase > phaseWaiting {
		w.fail("a NOTIFY is owed and no timer set for it")
	}
	if (w.n.phase == phasePending || w.n.phase == phaseActive) != w.attached {
		if w.n.phase != phaseWaiting || !w.attached {
			w.fail("%s, attached %v", w.n.phase, w.attached)
		}
	}
	if stored := w.n.phase == phasePending || w.n.phase == phaseActive; stored != w.stored {
		w.fail("%s, stored %v", w.n.phase, w.stored)
	}
}

func (w *notifierWalk) effect(e notifierEffect, inFlight *bool) {
	if w.gone {
		w.fail("effect %d after the end", e.kind)
	}
	switch e.kind {
	case fxRespond:
		if !w.asked {
			w.fail("an answer to nothing")
		}
		if e.err == nil && w.n.phase == phaseWaiting {
			w.fail("200 while waiting for the source")
		}
		w.asked = w.asked && w.n.phase == phaseWaiting // the first one still waits
	case fxAttach:
		if w.attached {
			w.fail("attached twice")
		}
		w.attached = true
	case fxDetach:
		if !w.attached {
			w.fail("detached without attachment")
		}
		w.attached = false
	case fxStore:
		w.stored, w.ceiling = true, w.n.ceiling
	case fxCeiling:
		if w.n.ceiling <= w.ceiling {
			w.fail("ceiling %d after %d", w.n.ceiling, w.ceiling)
		}
		w.ceiling = w.n.ceiling
	case fxForget:
		if !w.stored {
			w.fail("forgotten but not stored")
		}
		w.stored = false
	case fxNotify:
		if *inFlight {
			w.fail("two NOTIFYs in flight")
		}
		*inFlight = true
		want := w.left + 1
		if w.took {
			want = w.left
		}
		if w.n.cseq != want {
			w.fail("CSeq %d, want %d", w.n.cseq, want)
		}
		if w.stored && w.n.cseq > w.ceiling {
			w.fail("CSeq %d above the stored ceiling %d", w.n.cseq, w.ceiling)
		}
		w.left, w.took = w.n.cseq, false
	case fxTimer:
		if w.timer == 0 || e.at < w.timer {
			w.timer = e.at
		}
	case fxRemove:
		w.gone, w.timer = true, 0
	}
}

// TestSubscriberWalk does the same for the subscriber machine: one SUBSCRIBE in
// flight, one end, a timer while it lives, Expires 0 once and last, and it ends
// when everybody falls silent. Every other walk begins with a restart.
func TestSubscriberWalk(t *testing.T) {
	statuses := []int{200, 200, 200, 200, 202, 204, 400, 401, 408, 423, 423, 500, 503, 603}
	final := []int{404, 405, 410, 416, 480, 481, 482, 483, 484, 485, 489, 501, 604}
	steps := 0
	reasons := []Reason{Deactivated, Probation, Rejected, Timeout, Giveup, NoResource, Invariant, ""}
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 3))
		w := &subscriberWalk{t: t, seed: seed}
		w.s.want = time.Duration(1+rng.IntN(1000)) * time.Second
		if seed%2 == 0 {
			w.event(subscriberEvent{kind: suStart})
		} else if !w.restored(rng) {
			continue
		}
		for step := 0; step < 200 && w.s.phase != suGone; step++ {
			steps++
			switch op := rng.IntN(10); {
			case op < 4:
				if w.inFlight {
					ev := subscriberEvent{
						kind: suAnswer, status: statuses[rng.IntN(len(statuses))], expires: time.Duration(rng.IntN(1000)) * time.Second,
						minExpires: time.Duration(rng.IntN(2000)) * time.Second, retryAfter: time.Duration(rng.IntN(2)*rng.IntN(1000)) * time.Second,
					}
					switch {
					case rng.IntN(25) == 0:
						ev.status = final[rng.IntN(len(final))]
					case w.s.phase == suWaiting && rng.IntN(4) > 0:
						ev.status = 200
					}
					w.event(ev)
				}
			case op < 7:
				ev := subscriberEvent{kind: suNotify, state: Pending + SubState(rng.IntN(2)), expires: time.Duration(rng.IntN(4)*rng.IntN(1000)) * time.Second}
				if rng.IntN(60) == 0 {
					ev.state, ev.reason = Terminated, reasons[rng.IntN(len(reasons))]
				}
				w.event(ev)
			case op < 8 && rng.IntN(10) == 0:
				w.event(subscriberEvent{kind: suStop})
			default:
				w.advance(time.Duration(rng.Int64N(int64(time.Minute))))
			}
		}
		for i := 0; w.s.phase != suGone && i < 3000; i++ { // the network is cut: every SUBSCRIBE ends with 408
			w.advance(32 * time.Second)
			if w.inFlight && w.s.phase != suGone {
				w.event(subscriberEvent{kind: suAnswer, status: 408})
			}
		}
		if w.ends != 1 {
			w.fail("ended %d times, phase %s", w.ends, w.s.phase)
		}
		if t.Failed() {
			return
		}
	}
	if steps < 40_000 {
		t.Errorf("%d steps: the walks end too early to find anything", steps)
	}
}

type subscriberWalk struct {
	t        *testing.T
	seed     uint64
	s        Subscriber
	now      time.Duration
	timer    time.Time
	log      []string
	inFlight bool
	bye      bool
	ends     int
}

// restored begins with a row; it is false when the subscription is over.
func (w *subscriberWalk) restored(rng *rand.Rand) bool {
	row := RemoteRow{WantMS: 1 + rng.Int64N(1_000_000), Leaving: rng.IntN(4) == 0}
	row.CreatedMS = epoch.UnixMilli() - rng.Int64N(40_000)
	if rng.IntN(4) > 0 {
		row.RemoteTag, row.ExpiresMS = "far", epoch.UnixMilli()+rng.Int64N(2_000_000)-100_000
	}
	if !w.s.restored(epoch, &row) {
		if ok := !row.Leaving && (row.RemoteTag != "" && row.ExpiresMS <= epoch.UnixMilli() || row.RemoteTag == "" && row.CreatedMS <= epoch.Add(-timerN).UnixMilli()); !ok {
			w.fail("over: %+v", row)
		}
		return false
	}
	if w.s.dialog {
		w.s.resume(epoch, epoch.Add(time.Duration(rng.Int64N(int64(time.Hour)))))
	}
	w.timer = w.s.next()
	w.log = append(w.log, fmt.Sprintf("restored %+v", row))
	return true
}

func (w *subscriberWalk) fail(format string, args ...any) {
	w.t.Errorf("seed %d: %s\n%s", w.seed, fmt.Sprintf(format, args...), strings.Join(w.log[max(0, len(w.log)-25):], "\n"))
}

func (w *subscriberWalk) advance(d time.Duration) {
	end := w.now + d
	for i := 0; !w.timer.IsZero() && !w.timer.After(epoch.Add(end)) && w.s.phase != suGone; i++ {
		if i > 1000 {
			w.fail("the timer fires again and again at %v", w.now)
			return
		}
		w.now = max(w.now, w.timer.Sub(epoch))
		w.timer = time.Time{}
		w.event(subscriberEvent{kind: suTimer})
	}
	w.now = end
}

func (w *subscriberWalk) event(ev subscriberEvent) {
	w.log = append(w.log, fmt.Sprintf("%v %s: event %+v", w.now, w.s.phase, ev))
	before := w.s
	if ev.kind == suAnswer {
		w.inFlight = false
	}
	var fx []subscriberEffect
	w.s.step(epoch.Add(w.now), ev, &fx)
	for _, e := range fx {
		switch e.kind {
		case sfSubscribe:
			if w.inFlight {
				w.fail("two SUBSCRIBEs in flight")
			}
			if w.bye {
				w.fail("SUBSCRIBE after the one that unsubscribed")
			}
			if (e.expires == 0) != (w.s.phase == suLeaving) {
				w.fail("Expires %v in %s", e.expires, w.s.phase)
			}
			if before.phase == suLive && w.s.phase == suLive && !before.expires.After(epoch.Add(w.now)) {
				w.fail("refreshed after the expiry")
			}
			w.inFlight, w.bye = true, e.expires == 0
		case sfTimer:
			w.timer = e.at
		case sfEnd:
			w.ends++
		case sfDeliver:
			if before.phase == suLeaving || w.ends > 0 {
				w.fail("delivered in %s", before.phase)
			}
		}
	}
	if w.s.phase != suGone && w.timer.IsZero() {
		w.fail("no timer in %s", w.s.phase)
	}
	if w.s.phase == suLive && w.timer.After(w.s.expires) {
		w.fail("the timer is after the expiry")
	}
	if before.phase == suLive && ev.kind == suNotify && w.s.phase == suLive && w.s.refreshAt.After(before.refreshAt) {
		w.fail("a NOTIFY put off the refresh")
	}
	if slices.ContainsFunc(fx, func(e subscriberEffect) bool { return e.kind == sfEnd }) != (w.s.phase == suGone && before.phase != suGone) {
		w.fail("%s after %s without saying so", w.s.phase, before.phase)
	}
}
