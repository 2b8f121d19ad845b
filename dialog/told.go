package dialog

import (
	"crypto/sha256"
	"encoding/binary"
)

// What watchers were told, across a stop in order. The stop stores a digest of
// what each has confirmed (SubscriptionRow.Told); after the start it is compared
// with the first state of which the source knows all. Running subscriptions have
// no room for a digest and need none: what they show is what was told when
// nothing is owed.

// resuming is the content of a subscription that was restored, until its source
// knows all again.
type resuming struct {
	Content        // what is there so far; may be nil
	told    uint64 // SubscriptionRow.Told
}

// shown is the content of a subscription as its source gave it.
func (sh *shard) shown(s *subscription) Content {
	if r, ok := sh.ptr(s).content.(*resuming); ok {
		return r.Content
	}
	return sh.ptr(s).content
}

// before is what the row of a restored subscription says its watcher was told, 0
// when that means nothing any more.
func (sh *shard) before(s *subscription) uint64 {
	if r, ok := sh.ptr(s).content.(*resuming); ok {
		return r.told
	}
	return 0
}

// told is the digest of what the watcher has, 0 when that is not known.
func (sh *shard) told(s *subscription) uint64 {
	if s.n.owed || s.n.inFlight {
		return 0
	}
	if s.n.recovery == silent || s.n.recovery == partly {
		return sh.before(s)
	}
	sum, whole := sh.digest(s.n.state(), sh.ptr(s).content)
	if !whole {
		return 0
	}
	return sum
}

// digested is the document whose digest was wanted last: often the next
// watcher's too.
type digested struct {
	doc   *Document
	state SubState
	sum   uint64
}

// digest is a digest of a state, 0 of one that cannot be compared.
func (sh *shard) digest(state SubState, c Content) (sum uint64, whole bool) {
	switch c := c.(type) {
	case nil:
		return digestOf(state, nil), true
	case *Document:
		if d := &sh.digested; d.doc != c || d.state != state {
			*d = digested{c, state, digestOf(state, c)}
		}
		return sh.digested.sum, true
	case Digester:
		sum, whole = c.Digest()
		h := sha256.Sum256(binary.BigEndian.AppendUint64([]byte{2, byte(state)}, sum))
		return nonzero(h), whole
	}
	return 0, true
}

func digestOf(state SubState, d *Document) uint64 {
	h := sha256.New()
	if d == nil {
		h.Write([]byte{0, byte(state)})
	} else {
		h.Write([]byte{1, byte(state)})
		h.Write(append([]byte(d.Type), 0))
		h.Write(d.Body)
	}
	return nonzero([32]byte(h.Sum(nil)))
}

// nonzero makes a digest of a hash: not 0, and no number that a database takes
// for negative.
func nonzero(h [32]byte) uint64 { return max(binary.BigEndian.Uint64(h[:])>>1, 1) }
