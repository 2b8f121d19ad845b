package main

import (
	"sync/atomic"
	"time"
)

// Kinds of subscriptions of a stream.
const (
	kindClosed uint8 = iota
	kindOpen
	kindOngoing
)

// stream is a load of subscriptions over presentities: a closed loop, an open
// one, and the refreshing of dialogs that are there. It belongs to its
// generator's goroutine, but for the counters at its end.
type stream struct {
	g       *generator
	targets int
	next    int // target
	expires int // of new subscriptions

	closed int // how many are to be under way
	out    int // how many are, or wait to be tried again
	left   int // how many may be begun, -1 for any
	loop   *tally

	pace    pacer
	open    *tally
	most    int64 // under way at a time; more are missed
	ongoing []uint32
	turn    int
	renew   pacer
	kept    *tally
	busy    int // refreshes left out since the one before had not ended

	good  atomic.Int64 // new subscriptions completed, whichever loop they are of
	tried atomic.Int64 // and all that ended
}

// retryAfter is how long one place of a closed loop waits when it was refused:
// a client that comes back at once is no closed loop.
const retryAfter = 100 * time.Millisecond

func newStream(g *generator, targets, first int) *stream {
	s := &stream{g: g, targets: targets, next: first, left: -1, loop: &tally{}, open: &tally{}, kept: &tally{}, most: 1 << 20}
	g.do(func(time.Time) {
		g.tick, g.ended = s.tick, s.ended
		g.later = func(time.Time, uint32) { s.out-- }
	})
	return s
}

func (s *stream) begin(now time.Time, kind uint8, t *tally) uint32 {
	expires := s.expires
	if kind == kindOngoing {
		expires = 3600
	}
	s.next++
	return s.g.subscribe(now, s.next%s.targets, expires, kind, t)
}

func (s *stream) tick(now time.Time) (time.Time, bool) {
	for s.out < s.closed && s.left != 0 {
		s.out++
		if s.left > 0 {
			s.left--
		}
		s.begin(now, kindClosed, s.loop)
	}
	for range s.pace.due(now) {
		if s.g.underway.Load() >= s.most {
			s.pace.missed++
			continue
		}
		s.begin(now, kindOpen, s.open)
	}
	for range s.renew.due(now) {
		i := s.ongoing[s.turn%len(s.ongoing)]
		s.turn++
		switch sub := &s.g.subs[i]; {
		case sub.tally != nil:
			s.busy++
		case sub.over.IsZero():
			s.g.refresh(now, i, s.kept)
		}
	}
	at, ok := s.pace.next()
	if renew, any := s.renew.next(); any && (!ok || renew.Before(at)) {
		at, ok = renew, true
	}
	return at, ok
}

func (s *stream) ended(now time.Time, i uint32, status int) {
	kind := s.g.subs[i].kind
	if kind == kindOngoing {
		return
	}
	s.tried.Add(1)
	if status == 200 {
		s.good.Add(1)
	}
	switch {
	case kind != kindClosed:
	case status == 200:
		s.out--
	default:
		s.g.after(now, retryAfter, 0)
	}
}

// establish opens dialogs that stay and waits for them.
func (s *stream) establish(n int) {
	if n == 0 {
		return
	}
	done := make(chan struct{})
	s.g.do(func(now time.Time) {
		ended, left := s.g.ended, n
		more := func(now time.Time) {
			if len(s.ongoing) < n {
				s.ongoing = append(s.ongoing, s.begin(now, kindOngoing, s.kept))
			}
		}
		s.g.ended = func(now time.Time, _ uint32, _ int) {
			if left--; left == 0 {
				s.g.ended = ended
				close(done)
			}
			more(now)
		}
		for range window {
			more(now)
		}
	})
	<-done
}
