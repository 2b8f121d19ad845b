package dialog

import (
	"slices"
	"time"

	"rollcall/sip"
)

// What waits for the store.
//
// In write-through the messages of a turn that wrote something, and those of
// later turns, wait until it is stored: sh.held, in order. An answer that has
// waited for answerLimit becomes 503 with Retry-After, and its request is taken
// back: a new subscription ends without a word, a publication becomes what it
// was (OnWithdraw). A refresh stays as it is: it gives its watcher more than it
// was told. So a client gets its 200 after the commit, or a 503 after which its
// next try finds what it knows; and what it was told is stored. A server that
// is killed in between may come back with something that was taken back, because
// the commit happened and nobody knew: a watcher without that dialog answers its
// NOTIFY with 481, and a publication expires.
//
// In write-back only a dialog waits whose next CSeq is not reserved yet, or
// whose row must be gone first: sh.parked. Its NOTIFY is not even rendered.

// send is a message on its way out.
type send struct {
	server sip.ServerID // a response, or
	client sip.ClientID // a request
	user   uint64       // of a response to a SUBSCRIBE that opened a dialog: that
	flow   sip.Flow
	head   []byte // the message is head and body
	body   []byte
	after  uint64      // the batch that must be stored
	at     time.Time   // when it began to wait
	undo   func(*Turn) // see OnWithdraw
	now    bool        // waits for nothing: a refusal that depends on no state
}

// OnWithdraw is called right after Reply: f takes back what the request changed,
// in a later turn, if the answer is withdrawn because the store does not take
// what it promises. The client got 503 then.
func (t *Turn) OnWithdraw(f func(*Turn)) {
	if n := len(t.sends); n > 0 && t.sh.rt.opt.Durability == WriteThrough {
		t.sends[n-1].undo = f
	}
}

// hold queues the turn's messages behind the commit with that number.
func (sh *shard) hold(t *Turn, after uint64) {
	for _, s := range t.sends {
		if s.now {
			sh.transmit(t, s)
			continue
		}
		s.after, s.at = after, t.Now
		sh.held = append(sh.held, s)
	}
	sh.watchHeld(t.Now.Add(answerLimit))
}

// watchHeld has the held messages looked at.
func (sh *shard) watchHeld(at time.Time) {
	if !sh.watching && len(sh.held) > 0 {
		sh.watching = true
		sh.wheel.Add(at, uint64(heldComponent)<<56)
	}
}

// overdue withdraws the answers that have waited too long.
func (sh *shard) overdue(t *Turn) {
	sh.watching = false
	next := t.Now.Add(answerLimit)
	sh.withdraw(t, 503, func(s *send) bool {
		due := s.at.Add(answerLimit)
		if t.Now.Before(due) {
			next = earlier(next, due)
			return false
		}
		return true
	})
	sh.watchHeld(next)
}

// withdraw sends the responses among the held messages that which picks:
// those that promise something as a refusal, the others as they are.
func (sh *shard) withdraw(t *Turn, status int, which func(*send) bool) {
	var undo []send
	sh.held = slices.DeleteFunc(sh.held, func(s send) bool {
		if s.server == 0 || !which(&s) {
			return false
		}
		if promises(s.head) && sh.rt.opt.Durability == WriteThrough {
			retry := time.Duration(0)
			if status == 503 {
				retry = sh.comeAgain()
			}
			s.head = sip.RefusalFrom(s.head, status, retry)
			sh.rt.stats.Withdrawn.Add(1)
			undo = append(undo, s)
		}
		sh.tx.Respond(t.Now, s.server, s.head)
		return true
	})
	for _, s := range undo {
		sh.guard(func() {
			if s.undo != nil {
				s.undo(t)
			}
			if s.user != 0 {
				sh.unsubscribe(t, s.user)
			}
		})
	}
}

// promises tells whether a response is 2xx.
func promises(resp []byte) bool { return len(resp) > 8 && resp[8] == '2' }

// unsubscribe takes a new subscription back with its NOTIFY, which is held too.
func (sh *shard) unsubscribe(t *Turn, user uint64) {
	sh.held = slices.DeleteFunc(sh.held, func(s send) bool {
		if s.client == 0 || s.user != user {
			return false
		}
		sh.tx.Abandon(s.client)
		return true
	})
	if s := sh.subs.get(user & idMask); s != nil {
		s.waiting = false
		sh.step(t, s, notifierEvent{kind: evWithdrawn})
	}
}

// parked is a dialog that waits for a batch.
type parked struct {
	id    uint64
	batch uint64
}

// park has a dialog wait until the writes of this turn are stored.
func (sh *shard) park(t *Turn, s *subscription) {
	if sh.parkedBy == nil {
		sh.parkedBy = make(map[uint64]uint64)
	}
	p := parked{s.id, sh.batch + 1}
	sh.parkedBy[p.id] = p.batch
	sh.parked = append(sh.parked, p)
	t.hurry = true
}

// parks tells whether a NOTIFY must wait for the store, in write-back.
func (sh *shard) parks(t *Turn, s *subscription) bool {
	if sh.rt.opt.Durability != WriteBack {
		return false
	}
	if _, waits := sh.parkedBy[s.id]; waits {
		return true
	}
	if !s.stored || s.n.cseq < s.n.ceiling {
		return false
	}
	s.n.ceiling = s.n.cseq + cseqBlock
	t.persist(SetCSeqCeiling{ID: formatTag(s.id), Ceiling: s.n.ceiling})
	sh.park(t, s)
	return true
}

// unpark lets the dialogs go whose writes are stored.
func (sh *shard) unpark() {
	n := 0
	for n < len(sh.parked) && sh.parked[n].batch <= sh.durable {
		p := sh.parked[n]
		n++
		if sh.parkedBy[p.id] != p.batch {
			continue
		}
		delete(sh.parkedBy, p.id)
		if s := sh.subs.get(p.id); s != nil {
			sh.touch(s)
		}
	}
	if n > 0 {
		sh.parked = slices.Delete(sh.parked, 0, n)
	}
}
