package sip

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Kind is what a message asks for, as far as a Limiter cares.
type Kind uint8

// The kinds, in the order in which they are given up.
const (
	KindNew      Kind = iota // work we do not have yet: it is refused first
	KindOngoing              // keeps or ends what is there
	KindResponse             // to a request of ours
)

// KindOf tells the kind of a message. Ongoing is what has a To tag, and a
// PUBLISH that names an entity tag and has no body (a refresh or removal). It
// looks at the message alone: that there is such a dialog only its shard knows.
func KindOf(m *Message) Kind {
	switch {
	case !m.IsRequest():
		return KindResponse
	case m.Method() == PUBLISH: // belongs to no dialog
		if m.Has(HdrSIPIfMatch) && len(m.Body()) == 0 {
			return KindOngoing
		}
	case len(m.To().Tag()) > 0:
		return KindOngoing
	}
	return KindNew
}

// Verdict is what becomes of a message.
type Verdict uint8

// The verdicts.
const (
	Pass   Verdict = iota
	Reject         // answer 503 with Retry-After (RFC 3261 section 21.5.4)
	Drop           // without an answer
)

const (
	// burstTime is how many seconds of its rate a bucket holds: 1,000 requests
	// at 100 a second. A quarter of that is kept for ongoing work.
	burstTime = 10 * time.Second
	reserve   = burstTime / 4

	// Refusals are answered this often, so that answering neither costs much nor
	// serves to flood somebody whose address is forged. Per second.
	answersPerSource, answersTotal = 10, 1000

	sourceSets = 8192
	sourceWays = 5 // with the lock a set is two cache lines
)

// LimiterOptions configures a Limiter. Rates are in requests per second, 0
// (or above a million) for none; a bucket holds ten seconds' worth.
type LimiterOptions struct {
	PerSource int            // for one IPv4 address or one IPv6 /64
	Total     int            // for all sources together
	Exempt    []netip.Prefix // sources without a limit of their own: proxies, which speak for many
}

// Limiter decides which requests are taken, by two token buckets: that of the
// source and one for all. While less than a quarter is left in a bucket, new
// work is rejected and ongoing work passes, so that who is served already stays
// so. From an empty bucket everything is dropped. What a bucket refuses costs it
// no token. Responses always pass: we asked for them, and they are bounded by what
// we send and by the mailboxes.
//
// Sources are kept in a table of 8,192 sets of five (1 MiB). In a full set the
// one whose bucket is fullest gives way, since forgetting it loses least, and
// who is not in the table has a full bucket. So a flood from forged addresses
// pushes out its own entries, keeps neither a well-behaved source out nor an
// offender's record from being kept, and no memory grows. It also passes the
// limit per source, as every forged packet is a source of its own: against it
// there is Total. A source whose own address is forged shares its bucket
// with the forger; over UDP nobody can tell them apart. Beyond five offenders
// in a set, which takes tens of thousands at the same time, some are forgotten
// and start again with a full bucket.
//
// Refusals are answered ten times a second per source and 1,000 times in all,
// with a second's worth of burst; the rest is dropped.
//
// A nil Limiter lets everything pass. Any number of goroutines may use one.
type Limiter struct {
	source, total bucketRate
	exempt        []netip.Prefix
	start         time.Time
	seed          [2]uint64
	all, answers  sharedBucket
	sets          []sourceSet

	stats LimiterStats
}

// LimiterStats counts what did not pass. Read with atomic loads.
type LimiterStats struct {
	SourceRejected, SourceDropped atomic.Uint64 // by the limit of the source
	TotalRejected, TotalDropped   atomic.Uint64 // by that for all
}

// bucketRate is a token bucket as a virtual schedule (GCRA): all there is to
// remember is the time at which the bucket will be full again. Times are in
// nanoseconds since the start.
type bucketRate struct {
	every int64 // what a token costs; 0 for no limit
	depth int64 // how far ahead of now the time may be
}

func newRate(perSecond int, depth time.Duration) bucketRate {
	if perSecond <= 0 || perSecond > 1_000_000 {
		return bucketRate{}
	}
	return bucketRate{every: int64(time.Second) / int64(perSecond), depth: int64(depth)}
}

// spend gives the new time when a token is there and kept is left in the
// bucket afterwards.
func (r bucketRate) spend(full, now, kept int64) (next int64, ok bool) {
	next = max(full, now) + r.every
	return next, next-now <= r.depth-kept
}

// sharedBucket is one that all goroutines use.
type sharedBucket struct {
	_    [56]byte // a cache line of its own
	full atomic.Int64
	_    [56]byte
}

func (b *sharedBucket) spend(r bucketRate, now, kept int64) bool {
	for {
		full := b.full.Load()
		next, ok := r.spend(full, now, kept)
		if !ok || b.full.CompareAndSwap(full, next) {
			return ok
		}
	}
}

type sourceSet struct {
	mu   sync.Mutex
	slot [sourceWays]source
}

type source struct {
	key      uint64 // 0: free
	full     int64  // when its bucket is full again
	answered int64  // when the bucket for answers is
}

var (
	answerRate      = newRate(answersPerSource, time.Second)
	answerRateTotal = newRate(answersTotal, time.Second)
)

// NewLimiter returns a Limiter whose buckets are full.
func NewLimiter(opt LimiterOptions, now time.Time) *Limiter {
	l := &Limiter{
		source: newRate(opt.PerSource, burstTime), total: newRate(opt.Total, burstTime),
		exempt: opt.Exempt, start: now, seed: [2]uint64{rand.Uint64(), rand.Uint64() | 1},
	}
	if l.source.every > 0 {
		l.sets = make([]sourceSet, sourceSets)
	}
	return l
}

// Stats gives the counters; l must not be nil.
func (l *Limiter) Stats() *LimiterStats { return &l.stats }

// Admit decides on one message that came at now from src.
func (l *Limiter) Admit(now time.Time, src netip.Addr, kind Kind) Verdict {
	if l == nil || kind == KindResponse || l.source.every|l.total.every == 0 {
		return Pass
	}
	t, kept := int64(now.Sub(l.start)), int64(0)
	if kind == KindNew {
		kept = int64(reserve)
	}
	limited := l.limited(src)
	if limited {
		switch l.admitSource(t, sourceKey(src), kept) {
		case Reject:
			l.stats.SourceRejected.Add(1)
			return Reject
		case Drop:
			l.stats.SourceDropped.Add(1)
			return Drop
		}
	}
	if l.total.every == 0 || l.all.spend(l.total, t, kept) {
		return Pass
	}
	if _, some := l.total.spend(l.all.full.Load(), t, 0); some && l.answer(t, src, limited) {
		l.stats.TotalRejected.Add(1)
		return Reject
	}
	l.stats.TotalDropped.Add(1)
	return Drop
}

// Answer tells whether one more refusal may be answered, and counts it. Admit
// has done so when it says Reject.
func (l *Limiter) Answer(now time.Time, src netip.Addr) bool {
	return l == nil || l.answer(int64(now.Sub(l.start)), src, l.limited(src))
}

func (l *Limiter) answer(t int64, src netip.Addr, limited bool) bool {
	if limited {
		key := sourceKey(src)
		set := l.set(key)
		set.mu.Lock()
		s := set.find(key)
		next, ok := answerRate.spend(s.answered, t, 0)
		if ok {
			s.answered = next
		}
		set.mu.Unlock()
		if !ok {
			return false
		}
	}
	return l.answers.spend(answerRateTotal, t, 0)
}

// limited tells whether a source has a bucket of its own.
func (l *Limiter) limited(src netip.Addr) bool {
	if l.source.every == 0 {
		return false
	}
	for _, p := range l.exempt {
		if p.Contains(src.Unmap()) {
			return false
		}
	}
	return true
}

func (l *Limiter) admitSource(t int64, key uint64, kept int64) Verdict {
	set := l.set(key)
	set.mu.Lock()
	defer set.mu.Unlock()
	s := set.find(key)
	next, ok := l.source.spend(s.full, t, kept)
	if ok {
		s.full = next
		return Pass
	}
	if next-t > l.source.depth {
		return Drop // empty
	}
	if next, ok = answerRate.spend(s.answered, t, 0); !ok || !l.answers.spend(answerRateTotal, t, 0) {
		return Drop
	}
	s.answered = next
	return Reject
}

// set is where a source is kept; which one nobody outside can tell.
func (l *Limiter) set(key uint64) *sourceSet {
	hi, lo := bits.Mul64(key^l.seed[0], l.seed[1])
	return &l.sets[(hi^lo)%sourceSets]
}

// find gives the slot of a source, taking that of another if need be.
func (s *sourceSet) find(key uint64) *source {
	least := &s.slot[0]
	for i := range s.slot {
		c := &s.slot[i]
		if c.key == key {
			return c
		}
		if c.full < least.full {
			least = c
		}
	}
	*least = source{key: key}
	return least
}

// sourceKey is an IPv4 address, or the /64 of an IPv6 address, that is what one
// host or site can choose addresses from. Never 0.
func sourceKey(a netip.Addr) uint64 {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return 1<<32 | uint64(binary.BigEndian.Uint32(b[:])) // 0:1::/32, which nobody has
	}
	b := a.As16()
	if k := binary.BigEndian.Uint64(b[:]); k != 0 {
		return k
	}
	return 2 << 32
}
