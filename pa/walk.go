package pa

import (
	"rollcall/dialog"
	"rollcall/pa/policy"
)

// walkPiece is how many watchers are looked at in one turn. A presentity with
// more is walked in pieces, each in a turn of its own, so that others in the
// shard, and the answer to the PUBLISH that began it, do not wait for all.
const walkPiece = 256

// walk visits the watchers of a presentity after a change. Each knows what it
// was told last, so those who come, go or are told meanwhile do no harm; a
// change during a walk is seen by those not visited yet, and by the others in
// another pass. The zero value tells those whose document is a newer one.
type walk struct {
	at       int     // place of the next one
	rules    *ruling // decide by these first; nil: keep what was decided
	released bool    // end all instead

	again bool // another pass is due
	fresh bool // the rules came during this pass
	news  bool // a status changed, as winfo shows it
}

// ruling is the rules to decide by, or why there are none.
type ruling struct {
	sets []*policy.Ruleset
	err  error
}

// walk visits all watchers: those of a small presentity at once.
func (s *Shard) walk(t *dialog.Turn, p *presentity, want walk) {
	w := p.walk
	if w == nil {
		p.walk = &want
		if len(p.watchers.all) > walkPiece {
			t.Later(func(t *dialog.Turn) { s.walkOn(t, p) })
		} else {
			s.walkOn(t, p)
		}
		return
	}
	w.released = w.released || want.released
	if w.at > 0 {
		w.again = true
	}
	if want.rules != nil {
		w.rules, w.fresh = want.rules, w.again
	}
}

// walkOn is the next piece.
func (s *Shard) walkOn(t *dialog.Turn, p *presentity) {
	w := p.walk
	later := func() { t.Later(func(t *dialog.Turn) { s.walkOn(t, p) }) }
	whole := false
	defer func() {
		if !whole { // a panic: go on behind who caused it
			w.at++
			later()
		}
	}()
	for n := min(walkPiece, len(p.watchers.all)-w.at); n > 0; n-- {
		s.visit(t, p, w.at)
		w.at++
	}
	whole = true
	p.compact()
	switch {
	case w.at < len(p.watchers.all):
		later()
		return
	case w.again:
		w.at, w.again = 0, false
		if !w.fresh {
			w.rules = nil
		}
		w.fresh = false
		later()
		return
	}
	p.walk = nil
	if w.news {
		s.watchersChanged(t, p, nil)
	}
	s.tidy(p)
}

func (s *Shard) visit(t *dialog.Turn, p *presentity, i int) {
	walk, w := p.walk, &p.watchers.all[i]
	switch {
	case w.is&gone != 0:
		return
	case walk.released:
		t.Update(dialog.Update{To: w.ref(), State: dialog.Terminated, Reason: dialog.Deactivated})
		s.a.stats.Watchers.Add(-1)
		p.remove(i)
		return
	case walk.rules == nil:
	case walk.rules.err == nil:
		walk.news = s.decide(t, p, i, p.watchers.uri(w), walk.rules.sets) || walk.news
	case w.is&(decided|resumed) == resumed: // it has a state, which stands until the rules are read
		t.Update(dialog.Update{To: w.ref(), State: dialog.Unknown})
	case w.is&decided == 0:
		w.is |= decided
		w.handling = policy.Confirm
		walk.news = walk.news || !w.listed()
		s.tell(t, p, w)
	}
	if w.is&(decided|gone) == decided && w.handling == policy.Allow && !p.held {
		if _, rev := s.document(t, p, w.view); rev != w.told {
			s.tell(t, p, w)
		}
	}
}
