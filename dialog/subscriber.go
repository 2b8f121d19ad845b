package dialog

import "time"

// The subscriber side of a subscription (RFC 6665 section 4.1, figure 1).
//
//	phase     event                          next      effects
//	idle      start                          waiting   SUBSCRIBE, Timer N
//	waiting   NOTIFY active|pending          live      deliver (it may precede the 2xx, EV-19)
//	          NOTIFY terminated              gone      end with its reason
//	          answer 2xx                     same      Timer N goes on (EV-18)
//	          answer 423                     same      SUBSCRIBE with Min-Expires
//	          answer other                   gone      end with the status
//	          Timer N                        gone      end 408
//	any       again                          same      SUBSCRIBE as before, Timer N anew
//	live      NOTIFY                         live      deliver; terminated: gone
//	          refresh is due                 live      SUBSCRIBE, Timer N
//	          answer 2xx                     live      new expiry
//	          Timer N, no NOTIFY since       gone      end 408 (EV-18)
//	          answer 404,405,410,416,480-485,
//	                 489,501,604             gone      end with the status (EV-17)
//	          answer other                   live      refresh again, later and later, until expiry
//	          expiry                         gone      end: timeout
//	waiting,  stop                           leaving   SUBSCRIBE 0, when the dialog is known
//	live
//	leaving   NOTIFY terminated, Timer N,
//	          answer >= 300                  gone      end
//
// After a restart (restored) a machine is waiting, live or leaving again; its
// SUBSCRIBE goes when its turn comes.

type subscriberPhase uint8

const (
	suIdle subscriberPhase = iota
	suWaiting
	suLive
	suLeaving
	suGone
)

func (p subscriberPhase) String() string {
	return [...]string{"idle", "waiting", "live", "leaving", "gone"}[p]
}

// timerN is how long a SUBSCRIBE may stay without NOTIFY (RFC 6665 section
// 4.1.2.4).
const timerN = 32 * time.Second

// Subscriber is the machine of one subscription that we hold elsewhere.
type Subscriber struct {
	phase     subscriberPhase
	busy      bool          // a SUBSCRIBE is in flight
	dialog    bool          // the remote tag is known
	bye       bool          // SUBSCRIBE 0 was sent
	silent    bool          // a NOTIFY is due: none came since the last SUBSCRIBE
	retries   uint8         // refreshes in a row that failed
	want      time.Duration // asked for
	asked     time.Duration // in the newest SUBSCRIBE
	deadline  time.Time     // Timer N
	refreshAt time.Time
	expires   time.Time
}

type subscriberKind uint8

const (
	suStart subscriberKind = iota
	suAnswer
	suNotify
	suTimer
	suStop
	suAgain // the SUBSCRIBE in flight goes to another target, or with credentials
)

type subscriberEvent struct {
	kind       subscriberKind
	status     int           // of suAnswer
	minExpires time.Duration // of a 423
	expires    time.Duration // granted, or of Subscription-State; 0 when not said
	state      SubState      // of suNotify
	reason     Reason
	retryAfter time.Duration
}

type subscriberEffectKind uint8

const (
	sfSubscribe subscriberEffectKind = iota // send SUBSCRIBE with expires
	sfTimer
	sfDeliver
	sfEnd
)

type subscriberEffect struct {
	kind       subscriberEffectKind
	expires    time.Duration
	at         time.Time
	status     int
	reason     Reason
	retryAfter time.Duration
}

func (s *Subscriber) step(now time.Time, ev subscriberEvent, fx *[]subscriberEffect) {
	if s.phase == suGone {
		return
	}
	switch ev.kind {
	case suStart:
		s.phase = suWaiting
		s.send(now, s.want, fx)
	case suStop:
		if s.phase == suLeaving {
			return
		}
		s.phase = suLeaving
		s.deadline = now.Add(timerN)
		s.leave(now, fx)
	case suAnswer:
		s.answer(now, ev, fx)
	case suNotify:
		s.notified(now, ev, fx)
	case suTimer:
		s.timer(now, fx)
	case suAgain:
		if s.busy {
			s.send(now, s.asked, fx)
		}
	}
	if s.phase != suGone {
		*fx = append(*fx, subscriberEffect{kind: sfTimer, at: s.next()})
	}
}

// next is the earliest instant at which something is due.
func (s *Subscriber) next() time.Time {
	if s.leaveDue() {
		return s.refreshAt
	}
	if s.phase == suWaiting || s.phase == suLeaving {
		return s.deadline
	}
	at := s.expires
	if !s.busy && s.refreshAt.Before(at) {
		at = s.refreshAt
	}
	if !s.busy && s.silent && s.deadline.Before(at) {
		at = s.deadline
	}
	return at
}

func (s *Subscriber) send(now time.Time, expires time.Duration, fx *[]subscriberEffect) {
	s.busy, s.silent, s.asked = true, true, expires
	s.deadline = now.Add(timerN)
	*fx = append(*fx, subscriberEffect{kind: sfSubscribe, expires: expires})
}

// leave unsubscribes as soon as that can be said: in a known dialog, with no
// other SUBSCRIBE in flight.
func (s *Subscriber) leave(now time.Time, fx *[]subscriberEffect) {
	if s.dialog && !s.busy && !s.bye {
		s.bye = true
		s.send(now, 0, fx)
	}
}

// leaveDue: only after a restart has it not been said at once.
func (s *Subscriber) leaveDue() bool {
	return s.phase == suLeaving && s.dialog && !s.busy && !s.bye
}

// restored brings a stored subscription back; false: it is over.
func (s *Subscriber) restored(now time.Time, row *RemoteRow) bool {
	stored := func(ms int64) time.Time { return now.Add(time.UnixMilli(ms).Sub(now)) } // no longer depends on the wall clock
	s.dialog = row.RemoteTag != ""
	s.want = time.Duration(row.WantMS) * time.Millisecond
	s.asked = s.want
	switch {
	case row.Leaving:
		s.phase = suLeaving
		s.deadline = now.Add(timerN)
		return true
	case !s.dialog: // the NOTIFY may still come (EV-19)
		s.phase = suWaiting
		s.deadline = stored(row.CreatedMS).Add(timerN)
		return now.Before(s.deadline)
	}
	s.phase = suLive
	s.expires = stored(row.ExpiresMS)
	s.refreshAt = s.expires.Add(-s.want / 5)
	return now.Before(s.expires)
}

// resume sets when a restored subscription speaks again: at at, or when that is
// due anyway. Its peer may have said something meanwhile, to nobody.
func (s *Subscriber) resume(now, at time.Time) {
	if s.phase == suLeaving || !s.refreshAt.After(now) || at.Before(s.refreshAt) {
		s.refreshAt = at
	}
}

func (s *Subscriber) end(status int, why Reason, retryAfter time.Duration, fx *[]subscriberEffect) {
	s.phase = suGone
	*fx = append(*fx, subscriberEffect{kind: sfEnd, status: status, reason: why, retryAfter: retryAfter})
}

func (s *Subscriber) answer(now time.Time, ev subscriberEvent, fx *[]subscriberEffect) {
	s.busy = false
	ok := ev.status < 300
	if ok {
		s.dialog = true
	}
	if !ok || ev.status == 204 { // no NOTIFY will come of it
		s.silent = false
	}
	switch s.phase {
	case suLeaving:
		if !ok {
			s.end(ev.status, "", 0, fx)
			return
		}
		s.leave(now, fx)
	case suWaiting, suLive:
		switch {
		case ok:
			s.retries = 0
			granted := ev.expires
			if granted == 0 || granted > s.want {
				granted = s.want
			}
			s.lasts(now, granted)
		case ev.status == 423 && ev.minExpires > s.want:
			s.want = ev.minExpires
			s.send(now, s.want, fx)
		case s.phase == suWaiting || ev.status != 408 && endsSubscription(ev.status):
			s.end(ev.status, "", ev.retryAfter, fx)
		default: // still valid until it expires
			s.retries = min(s.retries+1, 6)
			wait := max(ev.retryAfter, 2*time.Second<<s.retries)
			s.refreshAt = now.Add(wait)
		}
	}
}

// lasts sets expiry, and the refresh at four fifths of the time.
func (s *Subscriber) lasts(now time.Time, d time.Duration) {
	s.expires = now.Add(d)
	s.refreshAt = now.Add(d - d/5)
}

func (s *Subscriber) notified(now time.Time, ev subscriberEvent, fx *[]subscriberEffect) {
	s.dialog, s.silent = true, false
	if ev.state == Terminated {
		if s.phase != suLeaving {
			*fx = append(*fx, subscriberEffect{kind: sfDeliver})
		}
		s.end(0, ev.reason, ev.retryAfter, fx)
		return
	}
	switch s.phase {
	case suLeaving:
		s.leave(now, fx)
		return
	case suWaiting:
		s.phase = suLive
		if s.expires.IsZero() { // before the 2xx
			s.lasts(now, s.want)
		}
	}
	if ev.expires > 0 && now.Add(ev.expires).Before(s.expires) { // the refresh moves forward only
		refreshAt := s.refreshAt
		s.lasts(now, ev.expires)
		if refreshAt.Before(s.refreshAt) {
			s.refreshAt = refreshAt
		}
	}
	*fx = append(*fx, subscriberEffect{kind: sfDeliver})
}

func (s *Subscriber) timer(now time.Time, fx *[]subscriberEffect) {
	switch s.phase {
	case suWaiting:
		if !now.Before(s.deadline) {
			s.end(408, "", 0, fx)
		}
	case suLeaving:
		switch {
		case s.leaveDue():
			if !now.Before(s.refreshAt) {
				s.leave(now, fx)
			}
		case !now.Before(s.deadline):
			s.end(0, Timeout, 0, fx)
		}
	case suLive:
		switch {
		case !now.Before(s.expires):
			s.end(0, Timeout, 0, fx)
		case s.silent && !s.busy && !now.Before(s.deadline):
			s.end(408, "", 0, fx)
		case !s.busy && !now.Before(s.refreshAt):
			s.send(now, s.want, fx)
		}
	}
}
