package crash

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ledger counts what was seen and holds what was wrong.
type ledger struct {
	epoch  int           // of the server's process: kills and stops so far
	killed []time.Time   // when each epoch ended; zero for a stop in order
	window time.Duration // an acknowledgement this young may be lost in a kill; 0: none may
	faults map[string]int
	notes  []string // the first faults in detail
	oldest time.Duration
	lost   int // acknowledgements, within the window
	began  time.Time
}

// maxNotes bounds the faults that are described.
const maxNotes = 40

func (l *ledger) fault(kind, format string, args ...any) {
	if l.faults == nil {
		l.faults = make(map[string]int)
	}
	if l.faults[kind]++; len(l.notes) < maxNotes {
		l.notes = append(l.notes, fmt.Sprintf("%7.3fs, life %d: %s: ", time.Since(l.began).Seconds(), l.epoch, kind)+fmt.Sprintf(format, args...))
	}
}

// mayBeLost tells whether an acknowledgement given in an epoch may be gone now,
// and how old it was when the server was killed.
func (l *ledger) mayBeLost(epoch int, at time.Time) (age time.Duration, ok bool) {
	if l.window == 0 || epoch >= l.epoch || l.killed[epoch].IsZero() {
		return 0, false
	}
	age = l.killed[epoch].Sub(at)
	return age, age < l.window
}

func (l *ledger) excuse(age time.Duration) {
	l.lost++
	l.oldest = max(l.oldest, age)
}

// mark is the text by which a state is known again: which publisher's, and its
// number.
func mark(publisher, seq int) string { return fmt.Sprintf("crash %d.%d;", publisher, seq) }

// marks finds the states in a document.
func marks(doc []byte) map[[2]int]bool {
	found := make(map[[2]int]bool)
	for rest := string(doc); ; {
		_, after, ok := strings.Cut(rest, "crash ")
		if !ok {
			return found
		}
		var id [2]int
		text, _, ok := strings.Cut(after, ";")
		who, seq, ok2 := strings.Cut(text, ".")
		var err, err2 error
		id[0], err = strconv.Atoi(who)
		id[1], err2 = strconv.Atoi(seq)
		if ok && ok2 && err == nil && err2 == nil {
			found[id] = true
		}
		rest = after
	}
}

// Requests of a publisher.
const (
	pubInitial = "initial PUBLISH"
	pubModify  = "modifying PUBLISH"
	pubRefresh = "refreshing PUBLISH"
	pubRemove  = "removing PUBLISH"
)

// acked is a state that was acknowledged, for the time in which a write-back
// server may fall back to it.
type acked struct {
	seq   int // 0: none, it was removed
	epoch int
	at    time.Time
}

// publisher is one publication of a presentity.
type publisher struct {
	l       *ledger
	id      int
	of      int // presentity
	etag    string
	last    int          // number of the last state that was sent
	now     int          // state that is acknowledged, 0: none
	unsure  bool         // now may have been lost with its server
	twice   map[int]bool // initial ones sent to two lives of the server: maybe there are two
	may     map[int]bool // states that may be seen
	ghosts  map[int]bool // stored, but their entity tag never arrived: to be seen
	history []acked      // the newest last

	kind  string // of the request under way, "" for none
	seq   int
	epoch int // when it was first sent
	began time.Time
}

func newPublisher(l *ledger, id, of int) *publisher {
	return &publisher{l: l, id: id, of: of, twice: map[int]bool{}, may: map[int]bool{}, ghosts: map[int]bool{}}
}

// begin notes a request before it is sent.
func (p *publisher) begin(kind string, at time.Time) {
	if p.kind = kind; kind == pubInitial || kind == pubModify {
		p.last++
	}
	p.seq, p.epoch, p.began = p.last, p.l.epoch, at
}

// replace puts a state in the place of the acknowledged one.
func (p *publisher) replace(seq int, at time.Time) {
	if p.twice[p.now] {
		p.may[p.now] = true
	}
	p.now = seq
	p.history = append(p.history, acked{seq, p.l.epoch, at})
	if len(p.history) > 64 {
		p.history = slices.Delete(p.history, 0, 32)
	}
}

// died notes that the server was killed.
func (p *publisher) died() {
	if p.l.window == 0 {
		return
	}
	for i := len(p.history) - 1; i >= 0; i-- {
		h := p.history[i]
		if _, ok := p.l.mayBeLost(h.epoch, h.at); !ok {
			break
		}
		p.unsure = true
		if i > 0 && p.history[i-1].seq != 0 { // it may be this again
			p.may[p.history[i-1].seq] = true
		}
	}
	if p.unsure && p.now != 0 {
		p.may[p.now] = true
	}
}

// answered notes how the request ended: 408 without an answer.
func (p *publisher) answered(status int, etag string, at time.Time) {
	kind, spanned := p.kind, p.epoch != p.l.epoch
	p.kind = ""
	adds := kind == pubInitial || kind == pubModify
	switch {
	case status == 200:
		p.unsure = false
		if p.etag = etag; kind == pubRemove {
			p.etag = ""
			p.replace(0, at)
			return
		}
		if etag == "" {
			p.l.fault("200 without entity tag", "publisher %d, %s", p.id, kind)
		}
		if kind == pubInitial && spanned {
			p.twice[p.seq] = true
		}
		if adds {
			p.replace(p.seq, at)
		} else if p.now != 0 {
			p.history = append(p.history, acked{p.now, p.l.epoch, at})
		}
	case status == 412 && kind != pubInitial:
		before := p.now
		switch {
		case p.unsure:
			h := p.history[len(p.history)-1]
			p.l.excuse(p.l.killed[h.epoch].Sub(h.at))
			if before != 0 {
				p.may[before] = true
			}
			if adds {
				p.may[p.seq] = true
			}
		case !spanned:
			p.l.fault("acknowledged publication is lost", "publisher %d of presentity %d: %s with the acknowledged entity tag %s of state %d gets 412", p.id, p.of, kind, p.etag, before)
		case kind == pubModify:
			p.ghost(p.seq)
		case kind == pubRefresh:
			p.ghost(before)
		}
		p.unsure, p.etag = false, ""
		p.replace(0, at)
		p.history = nil // a fresh publication
	case status == 408, status == 503:
		if status == 503 && !spanned { // refused: nothing has changed
			return
		}
		if adds {
			p.may[p.seq] = true
		}
		if kind != pubInitial { // the entity tag may be another one by now
			p.may[p.now] = true
			p.unsureWithout(at)
		}
	default:
		p.l.fault("status "+strconv.Itoa(status), "publisher %d, %s, state %d over %d", p.id, kind, p.seq, p.now)
	}
}

// unsureWithout gives up a publication of which nobody knows any more.
func (p *publisher) unsureWithout(at time.Time) {
	p.etag = ""
	p.replace(0, at)
	p.history = nil
}

// ghost notes a state that stays without anybody who could change it.
func (p *publisher) ghost(seq int) {
	if p.l.window > 0 {
		p.may[seq] = true
		return
	}
	p.ghosts[seq] = true
}

// check compares what somebody sees of this publisher's states with the truth.
func (p *publisher) check(who string, seen map[[2]int]bool) {
	var mine []int
	for id := range seen {
		if id[0] == p.id {
			mine = append(mine, id[1])
		}
	}
	slices.Sort(mine)
	has := func(seq int) bool { return slices.Contains(mine, seq) }
	tell := func(kind string, seq int) {
		p.l.fault(kind, "%s sees states %v of publisher %d of presentity %d; state %d is at fault: acknowledged %d (unsure %v), ghosts %v, possible %v",
			who, mine, p.id, p.of, seq, p.now, p.unsure, slices.Sorted(maps.Keys(p.ghosts)), slices.Sorted(maps.Keys(p.may)))
	}
	if p.now != 0 && !p.unsure && !has(p.now) {
		tell("newest state not seen", p.now)
	}
	for seq := range p.ghosts {
		if !has(seq) {
			tell("stored publication is lost", seq)
		}
	}
	for _, seq := range mine {
		if seq != p.now && !p.ghosts[seq] && !p.may[seq] && !(p.twice[seq] && seq == p.now) {
			tell("old state seen", seq)
		}
	}
}

// Requests of a watcher.
const (
	subInitial = "initial SUBSCRIBE"
	subRefresh = "refreshing SUBSCRIBE"
	subEnd     = "ending SUBSCRIBE"
)

type watchKind uint8

const (
	watchPresence watchKind = iota
	watchList
	watchWatchers
)

func (k watchKind) String() string { return [...]string{"presence", "list", "presence.winfo"}[k] }

// dialog is one subscription dialog of a watcher, and forked ones beside it: a
// SUBSCRIBE that was sent to two lives of the server may have opened two.
type dialog struct {
	l       *ledger
	kind    watchKind
	watcher int
	target  int // presentity, or list
	callID  string
	tag     string // ours
	to      string // To with the server's tag, "" before the 200
	remote  string // that tag
	contact string
	cseq    uint32 // of our last SUBSCRIBE
	legs    map[string]*leg

	open  bool // acknowledged and not ended
	acked acked
	ended bool // by an acknowledgement, or by the server
	over  bool // the last NOTIFY has come
	gone  bool // lost within the promise of write-back
	twice bool // there may be another dialog of the same watcher

	req    string // under way, "" for none
	epoch  int
	began  time.Time
	wanted int // NOTIFYs with full state that 200s have promised, in epoch owed
	owed   int
}

// leg is what the server sent with one tag of its own.
type leg struct {
	cseq    uint32
	epoch   int
	hashes  map[uint32]uint64
	version int64 // -1: none yet
	members map[string]map[[2]int]bool
	active  bool // as Subscription-State said last
	seen    map[[2]int]bool
	who     map[string]bool // active watchers
}

func (d *dialog) String() string {
	return fmt.Sprintf("%v dialog %s of watcher %d to %d", d.kind, d.callID, d.watcher, d.target)
}

func (d *dialog) begin(req string, at time.Time) {
	d.req, d.epoch, d.began = req, d.l.epoch, at
	d.cseq++
	if req != subEnd {
		d.wanted, d.owed = d.wanted+1, d.l.epoch
	}
}

// own is the leg of the dialog itself.
func (d *dialog) own() *leg { return d.legs[d.remote] }

// answered notes how the request ended; again tells that it is to be tried again.
func (d *dialog) answered(status int, at time.Time) (again bool) {
	req, spanned := d.req, d.epoch != d.l.epoch
	d.req = ""
	age, risk := d.l.mayBeLost(d.acked.epoch, d.acked.at)
	switch {
	case status == 200 && req == subEnd:
		d.open, d.ended = false, true
		d.acked = acked{epoch: d.l.epoch, at: at}
	case status == 200:
		if d.ended {
			if risk {
				d.l.excuse(age)
				return true
			}
			d.l.fault("ended subscription is revived", "%v: %s is answered 200", d, req)
			return true
		}
		if req == subInitial {
			d.acked = acked{epoch: d.l.epoch, at: at}
		}
		d.open, d.twice = true, d.twice || req == subInitial && spanned
	case status == 481 && req != subInitial:
		switch {
		case d.ended: // as it should
			d.gone = true
		case spanned && req == subEnd:
		case risk:
			d.l.excuse(age)
			d.gone = true
		default:
			d.l.fault("acknowledged subscription is lost", "%v: %s gets 481; acknowledged in life %d", d, req, d.acked.epoch)
		}
		d.open, d.ended = false, true
	case status == 408 || status == 503:
		if status == 408 || spanned {
			d.twice = d.twice || req == subInitial
		}
		return true
	default:
		d.l.fault("status "+strconv.Itoa(status), "%v: %s, sent in life %d", d, req, d.epoch)
		return true
	}
	return false
}

// body is what a NOTIFY says.
type body struct {
	versioned bool
	version   int64
	full      bool
	shows     bool // there is a document at all
	members   map[string]map[[2]int]bool
	seen      map[[2]int]bool
	who       map[string]bool
}

// notified notes a NOTIFY and gives the answer. parse is called for one that is
// new.
func (d *dialog) notified(tag string, cseq uint32, hash uint64, state string, parse func() (body, error)) int {
	l := d.l
	g := d.legs[tag]
	if g == nil {
		g = &leg{hashes: make(map[uint32]uint64), version: -1, epoch: -1}
		d.legs[tag] = g
	}
	foreign := d.remote != "" && tag != d.remote
	status := 200
	if foreign || d.over || d.gone {
		status = 481
	}
	if old, ok := g.hashes[cseq]; ok {
		if old != hash {
			l.fault("CSeq used again", "%v, tag %s: CSeq %d came with other bytes before", d, tag, cseq)
		}
		return status
	}
	first := g.epoch < 0
	switch {
	case cseq <= g.cseq && !first:
		l.fault("CSeq went down", "%v, tag %s: %d after %d", d, tag, cseq, g.cseq)
	case !first && g.epoch == l.epoch && cseq != g.cseq+1:
		l.fault("CSeq left out", "%v, tag %s: %d after %d in the same life", d, tag, cseq, g.cseq)
	}
	same := g.epoch == l.epoch
	g.hashes[cseq], g.cseq, g.epoch = hash, cseq, l.epoch
	active := state != "terminated"
	if active && !foreign && (d.over || d.ended && d.acked.epoch < l.epoch) {
		if age, ok := l.mayBeLost(d.acked.epoch, d.acked.at); ok {
			if !d.gone {
				l.excuse(age)
			}
			d.gone = true
			status = 481
		} else if !d.gone {
			l.fault("ended subscription is revived", "%v, tag %s: NOTIFY %d is %s", d, tag, cseq, state)
		}
	}
	g.active = active
	if !active && !foreign {
		if !d.ended && d.req != subEnd {
			l.fault("subscription ended by the server", "%v: NOTIFY %d", d, cseq)
		}
		d.over, d.open = true, false
		d.ended = d.ended || d.req != subEnd // the 200 is still to come otherwise
	}
	b, err := parse()
	if err != nil {
		l.fault("bad body", "%v: NOTIFY %d: %v", d, cseq, err)
		return status
	}
	if b.versioned {
		switch {
		case first && !b.full:
			l.fault("first NOTIFY not full", "%v, tag %s: CSeq %d", d, tag, cseq)
		case b.version <= g.version:
			l.fault("version used again", "%v, tag %s: NOTIFY %d has version %d after %d", d, tag, cseq, b.version, g.version)
		case g.version >= 0 && b.version != g.version+1 && (same || !b.full):
			l.fault("version left out", "%v, tag %s: NOTIFY %d has version %d (full %v) after %d", d, tag, cseq, b.version, b.full, g.version)
		}
		g.version = b.version
	}
	if b.full {
		d.wanted = 0
		g.members = b.members
	} else {
		for uri, seen := range b.members {
			if g.members != nil {
				g.members[uri] = seen
			}
		}
	}
	g.seen, g.who = b.seen, b.who
	return status
}

// quiet checks, when nothing is under way, that no promise is open.
func (d *dialog) quiet() {
	if d.open && d.wanted > 0 && d.owed == d.l.epoch {
		d.l.fault("200 and no NOTIFY", "%v", d)
	}
	d.wanted = 0
}
