package pa

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"rollcall/dialog"
	"rollcall/pa/policy"
	"rollcall/pa/winfo"
	"rollcall/sip"
)

// Mode is what a watcher gets when no rule matches.
type Mode uint8

// The modes of --presence-auth.
const (
	Confirm Mode = iota // pending until a rule says otherwise
	Allow
	Block
	Open // no rules are read at all; everybody sees everything
)

var modes = []string{"confirm", "allow", "block", "open"}

// ParseMode reads a mode's name.
func ParseMode(s string) (Mode, bool) {
	i := slices.Index(modes, s)
	return Mode(max(i, 0)), i >= 0
}

// String returns the mode's name.
func (m Mode) String() string { return modes[m] }

// RuleSource gives the rules of a presentity, all documents of its owner
// together (PR-02).
type RuleSource interface {
	// Cached answers without waiting; ok is false when it cannot.
	Cached(resource string) (sets []*policy.Ruleset, ok bool)
	// Fetch may wait. An error means that the rules are not known.
	Fetch(ctx context.Context, resource string) ([]*policy.Ruleset, error)
}

// Options configures the agent. A presentity here is a resource and a package:
// the limits are of each.
type Options struct {
	Component uint8 // the agent's index among the runtime's components
	Mode      Mode
	Rules     RuleSource              // not used with Open
	Bases     map[string]policy.Basis // what decides about a package, where it is not policy.BasisOf
	Messages  RuleSource              // of MESSAGE
	// MessageAllowed is what the sender of a MESSAGE gets whose recipient has no
	// rules at all.
	MessageAllowed bool
	Log            *slog.Logger
	Packages       []*Package // those served, default Presence alone

	MaxPublications int // per presentity, default 64; beyond it 503
	MaxBody         int // bytes of a publication, default 64 KiB; beyond it 413
	MaxWatchers     int // per presentity, default 100,000; beyond it 503
}

// Stats counts; read with atomic loads.
type Stats struct {
	Presentities, Publications, Watchers  atomic.Int64
	Published, Refreshed, Expired, Denied atomic.Uint64
	Rendered                              atomic.Uint64 // documents: of the whole and of views
	MessagesAllowed, MessagesDenied       atomic.Uint64 // by the recipients' rules
}

// Agent makes the shards and holds what they share.
type Agent struct {
	opt    Options
	stats  Stats
	limit  sip.LogLimit
	sphere int // which package knows the sphere of a resource; -1: none
}

// New returns an agent.
func New(opt Options) *Agent {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.MaxPublications == 0 {
		opt.MaxPublications = 64
	}
	if opt.MaxBody == 0 {
		opt.MaxBody = 64 << 10
	}
	if opt.MaxWatchers == 0 {
		opt.MaxWatchers = 100_000
	}
	if opt.Packages == nil {
		opt.Packages = []*Package{Presence()}
	}
	return &Agent{opt: opt, sphere: slices.IndexFunc(opt.Packages, func(p *Package) bool { return p.Name == presenceName })}
}

// Stats gives the counters.
func (a *Agent) Stats() *Stats { return &a.stats }

// Shard makes one shard's part.
func (a *Agent) Shard(id uint8) dialog.Component {
	s := &Shard{a: a, id: id, all: make([]map[string]*presentity, len(a.opt.Packages)), timers: make(map[uint64]timed)}
	for i := range s.all {
		s.all[i] = make(map[string]*presentity)
	}
	return s
}

// Shard is the presence agent of one shard. Only that shard's turns use it.
type Shard struct {
	a      *Agent
	id     uint8
	all    []map[string]*presentity // by package and canonical key
	timers map[uint64]timed
	nextID uint64
	random sip.Random

	fetches int           // of rules, under way
	wanted  []*presentity // those that wait for room, some more than once
}

// maxFetches bounds the reads of rules that a shard has under way, so that all
// shards together leave room in the runtime's queue (Turn.Async) after a restart,
// when nobody's rules are known.
const maxFetches = 3

// timed is what a timer belongs to: a publication, a subscription to watcher
// information that waits after a restart, or a presentity whose rules change with
// time.
type timed struct {
	p    *presentity
	pub  *publication
	info *watcherList
}

// presentity is a local resource that somebody publishes or watches, with its
// state in one package.
type presentity struct {
	key      string
	pubs     []*publication // oldest change first
	seq      uint64
	kept     any              // what the package's code remembers; see composer
	doc      *dialog.Document // all publications composed; nil until somebody wants it
	views    *views           // nil when all see the whole
	watchers watcherSet
	winfos   map[dialog.SinkRef]*watcherList
	walk     *walk      // under way
	clock    *ruleClock // nil until time alone may change a decision
	rev      uint32     // of doc
	pkg      uint8      // the package's number
	listed   bool       // watcher information was sent since the start
	fetching bool
	waits    bool // ... no, it is among the wanted
	stale    bool // the rules changed while they were being read
	held     bool // no decision yet for the sphere that was published: nobody is shown anything newer
}

// ruleClock is when time alone may change a decision, and its timer.
type ruleClock struct {
	at time.Time // zero: not known of any
	id uint64
}

type publication struct {
	row   PublicationRow
	doc   content
	timer sip.Timer
	id    uint64 // of the timer
}

func (s *Shard) presentity(pkg uint8, key string) *presentity {
	p := s.all[pkg][key]
	if p == nil {
		key = strings.Clone(key) // the caller's may be a part of something larger
		p = &presentity{key: key, pkg: pkg}
		s.all[pkg][key] = p
		s.a.stats.Presentities.Add(1)
	}
	return p
}

// tidy forgets a presentity that nobody publishes or watches.
func (s *Shard) tidy(p *presentity) {
	if len(p.pubs) == 0 && p.watchers.live == 0 && len(p.winfos) == 0 && s.all[p.pkg][p.key] == p {
		if p.clock != nil {
			delete(s.timers, p.clock.id)
		}
		delete(s.all[p.pkg], p.key)
		s.a.stats.Presentities.Add(-1)
	}
}

// Attach implements dialog.Source.
func (s *Shard) Attach(t *dialog.Turn, in dialog.Interest, to dialog.SinkRef) {
	if !in.Package.Accepts(in.Accept) {
		t.Update(dialog.Update{To: to, State: dialog.Terminated, Reason: dialog.NoResource,
			Err: dialog.Refuse(406, "", "Accept", strings.Join(in.Package.Types, ", "))})
		return
	}
	pkg, winfo, ok := s.a.find(in.Package.Name)
	if !ok {
		t.Update(dialog.Update{To: to, State: dialog.Terminated, Reason: dialog.NoResource, Err: dialog.Refuse(489, "", "Allow-Events", s.a.events())})
		return
	}
	p := s.presentity(pkg, in.Resource)
	if winfo {
		s.attachWatcherInfo(t, p, in, to)
		s.tidy(p)
		return
	}
	i := p.watchers.find(to)
	if i >= 0 { // anew
		s.a.stats.Watchers.Add(-1)
		p.remove(i)
		p.compact()
	}
	if p.watchers.live >= s.a.opt.MaxWatchers || !p.watchers.fits(in.Watcher.URI) {
		t.Update(dialog.Update{To: to, State: dialog.Terminated, Reason: dialog.Giveup, RetryAfter: time.Minute,
			Err: &dialog.Error{Status: 503, Reason: "Too Many Watchers", RetryAfter: time.Minute}})
		return
	}
	s.a.stats.Watchers.Add(1)
	if p.watchers.live == 0 {
		p.held = false
	}
	i = p.watchers.add(to, in.Watcher.URI)
	w := &p.watchers.all[i]
	s.begin(t, w)
	if in.Depth > 0 {
		w.is |= member
	}
	if in.Resumed {
		w.is |= resumed
	}
	sets, known := s.rules(p.key)
	if !known {
		s.fetchRules(t, p, !in.Resumed)
		return
	}
	if s.decide(t, p, i, in.Watcher.URI, sets) {
		s.watchersChanged(t, p, nil)
	}
	p.compact()
	s.tidy(p)
}

// begin makes a watcher a new subscription.
func (s *Shard) begin(t *dialog.Turn, w *watcher) {
	w.id, w.since = binary.BigEndian.Uint64(s.random.Next(8)), t.Now.UnixMilli()
	w.is &^= approved | resumed | listedAs
}

// Detach implements dialog.Source.
func (s *Shard) Detach(t *dialog.Turn, in dialog.Interest, to dialog.SinkRef) {
	pkg, _, ok := s.a.find(in.Package.Name)
	if !ok {
		return
	}
	p := s.all[pkg][in.Resource]
	if p == nil {
		return
	}
	if i := p.watchers.find(to); i >= 0 {
		s.a.stats.Watchers.Add(-1)
		s.watcherGone(t, p, &p.watchers.all[i], winfo.Timeout)
		p.remove(i)
		p.compact()
	}
	delete(p.winfos, to)
	s.tidy(p)
}

// remove takes a watcher out; its place is free until compact.
func (p *presentity) remove(i int) {
	p.show(&p.watchers.all[i], 0)
	p.watchers.remove(i)
}

// compact closes the gaps that watchers left.
func (p *presentity) compact() {
	if p.walk != nil {
		p.walk.at = p.watchers.compact(p.walk.at)
	} else {
		p.watchers.compact(0)
	}
}

// Released ends every subscription to a resource that somebody else serves
// from now on, a list for instance. Watchers subscribe anew at once, and then
// reach whom they should (EV-31).
func (s *Shard) Released(t *dialog.Turn, resource string) {
	for p := range s.packagesOf(resource) {
		for to := range p.winfos {
			t.Update(dialog.Update{To: to, State: dialog.Terminated, Reason: dialog.Deactivated})
		}
		clear(p.winfos)
		s.walk(t, p, walk{released: true})
		s.tidy(p)
	}
}

// packagesOf gives a resource's presentity of each package that has one.
func (s *Shard) packagesOf(resource string) iter.Seq[*presentity] {
	return func(yield func(*presentity) bool) {
		for _, all := range s.all {
			if p := all[resource]; p != nil && !yield(p) {
				return
			}
		}
	}
}

// rules are those that apply to a presentity; ok is false when they must be
// fetched first.
func (s *Shard) rules(resource string) ([]*policy.Ruleset, bool) {
	if s.a.opt.Mode == Open || s.a.opt.Rules == nil {
		return nil, true
	}
	return s.a.opt.Rules.Cached(resource)
}

// fetchRules reads the rules elsewhere and then decides for every watcher. The
// newest goes first, and again who is asked: somebody waits for the answer, but
// nobody does when a restart is the reason.
func (s *Shard) fetchRules(t *dialog.Turn, p *presentity, asked bool) {
	if p.fetching && !(p.waits && asked) {
		return
	}
	p.fetching = true
	if s.fetches >= maxFetches {
		s.want(p)
		return
	}
	p.waits = false
	var sets []*policy.Ruleset
	err := errNotRead
	ok := t.Async(func(ctx context.Context) { sets, err = s.a.opt.Rules.Fetch(ctx, p.key) }, func(t *dialog.Turn) {
		s.fetches--
		defer s.fetchNext(t)
		p.fetching = false
		if p.stale {
			p.stale = false
			s.rulesChanged(t, p)
			return
		}
		if err != nil {
			s.a.limit.Log(t.Now, s.a.opt.Log, slog.LevelWarn, "rules not readable", "presentity", p.key, "err", err)
			s.decideAll(t, p, nil, err)
			return
		}
		s.decideAll(t, p, sets, nil)
	})
	switch {
	case ok:
		s.fetches++
	case s.fetches > 0: // when one of them is done
		s.want(p)
	default:
		p.fetching = false
		s.decideAll(t, p, nil, errors.New("too much is being read"))
	}
}

func (s *Shard) want(p *presentity) {
	p.waits = true
	s.wanted = append(s.wanted, p)
}

// fetchNext goes on with those who wait.
func (s *Shard) fetchNext(t *dialog.Turn) {
	for len(s.wanted) > 0 && s.fetches < maxFetches {
		last := len(s.wanted) - 1
		p := s.wanted[last]
		s.wanted[last] = nil
		s.wanted = s.wanted[:last]
		if !p.waits {
			continue
		}
		p.fetching, p.waits, p.stale = false, false, false
		if s.all[p.pkg][p.key] == p && p.watchers.live > 0 {
			s.rulesChanged(t, p)
		}
		if p.waits { // no room after all
			return
		}
	}
	if len(s.wanted) == 0 {
		s.wanted = nil
	}
}

// errNotRead stands where reading did not come to an end, a panic for instance:
// that is not the same as no rules.
var errNotRead = errors.New("the rules were not read")

// rulesRetry is when rules that could not be read are read again.
const rulesRetry = time.Minute

// decideAll decides anew for every watcher of a presentity. With an error
// those already decided keep what they have, and so do those of before a restart;
// the others wait (PR-18).
func (s *Shard) decideAll(t *dialog.Turn, p *presentity, sets []*policy.Ruleset, err error) {
	if err == nil {
		p.held = false
	} else if p.watchers.live > 0 {
		s.ruleTimer(t, p, t.Now.Add(rulesRetry))
	}
	s.walk(t, p, walk{rules: &ruling{sets, err}})
	s.tidy(p)
}

// RulesChanged decides anew for every watcher of a resource, after its rules
// changed (PR-17).
func (s *Shard) RulesChanged(t *dialog.Turn, resource string) {
	for p := range s.packagesOf(resource) {
		s.rulesChanged(t, p)
	}
}

func (s *Shard) rulesChanged(t *dialog.Turn, p *presentity) {
	if p.watchers.live == 0 {
		return
	}
	if p.fetching {
		p.stale = true
	} else if sets, ok := s.rules(p.key); ok {
		s.decideAll(t, p, sets, nil)
	} else {
		s.fetchRules(t, p, false)
	}
}

// decide applies the rules to the watcher at a place and tells it what changed
// by that. It returns whether its status in watcher information is another. A
// watcher that is refused leaves a gap.
func (s *Shard) decide(t *dialog.Turn, p *presentity, i int, uri string, sets []*policy.Ruleset) bool {
	d, _ := s.a.Decide(Question{Watcher: uri, Resource: p.key, Package: s.pkg(p).Name, Sphere: s.sphereOf(p), Sets: sets, Now: t.Now})
	s.ruleTimer(t, p, d.NextChange)
	w, view := &p.watchers.all[i], p.viewOf(&d, s.transformer(p))
	if w.is&decided != 0 && w.handling == d.Handling && w.view == view {
		return false
	}
	fresh := w.is&decided == 0
	if !fresh && w.handling != policy.Block && d.Handling >= policy.PoliteBlock && w.handling < policy.PoliteBlock {
		w.is |= approved
	}
	w.is |= decided
	w.handling = d.Handling
	p.show(w, view)
	if d.Handling == policy.Block {
		s.a.stats.Denied.Add(1)
		stays := w.is&member != 0
		t.Update(dialog.Update{To: w.ref(), State: dialog.Terminated, Reason: dialog.Rejected, Err: dialog.Refuse(403, ""), Retrying: stays})
		if !fresh || !stays { // else it may have been so before a restart
			s.watcherGone(t, p, w, winfo.Rejected)
		}
		s.begin(t, w) // the next subscription
		if !stays {
			p.remove(i)
			s.a.stats.Watchers.Add(-1)
		}
		return false
	}
	s.tell(t, p, w)
	if fresh && w.is&resumed != 0 && !p.listed {
		w.list()
	}
	return !w.listed()
}

// tell sends a watcher what it may see now.
func (s *Shard) tell(t *dialog.Turn, p *presentity, w *watcher) {
	u := dialog.Update{To: w.ref(), State: dialog.Active}
	if w.handling == policy.Confirm {
		u.State = dialog.Pending
	} else {
		u.Doc, w.told = s.document(t, p, w.view)
	}
	t.Update(u)
}

// ruleTimer looks again when time alone can change a decision.
func (s *Shard) ruleTimer(t *dialog.Turn, p *presentity, at time.Time) {
	if at.IsZero() {
		return
	}
	c := p.clock
	switch {
	case c == nil:
		s.nextID++
		c = &ruleClock{id: s.nextID}
		p.clock = c
		s.timers[c.id] = timed{p: p}
	case !c.at.IsZero() && !at.Before(c.at) && c.at.After(t.Now):
		return
	}
	c.at = at
	t.SetTimer(s.a.opt.Component, c.id, at)
}

// Timer implements dialog.Component.
func (s *Shard) Timer(t *dialog.Turn, id uint64) {
	e, ok := s.timers[id]
	if !ok {
		return
	}
	if e.pub != nil {
		s.expired(t, e.p, e.pub)
		return
	}
	if e.info != nil {
		delete(s.timers, id)
		s.infoBack(t, e.p, e.info)
		return
	}
	if !t.Now.Before(e.p.clock.at) {
		e.p.clock.at = time.Time{}
		s.rulesChanged(t, e.p)
	}
}

// changed composes anew and tells those who see a difference.
func (s *Shard) changed(t *dialog.Turn, p *presentity) {
	before := p.sphere()
	s.observe(t, p)
	moved := p.sphere() != before
	if moved {
		for o := range s.packagesOf(p.key) {
			if o != p && o.watchers.live > 0 {
				o.held = true
				s.rulesChanged(t, o)
			}
		}
	}
	if p.watchers.live == 0 {
		p.doc, p.views = nil, nil
		return
	}
	differs := s.compose(p)
	if differs {
		p.outdate()
	}
	if moved {
		p.held = true // nobody is shown a document of the new sphere before
		s.rulesChanged(t, p)
	}
	if differs && !p.held {
		s.walk(t, p, walk{})
	}
}

// newToken is an entity tag or the like.
func (s *Shard) newToken() string { return hex.EncodeToString(s.random.Next(8)) }

// Tables counts what the shard holds, as dialog.Runtime.Tables wants it.
func (s *Shard) Tables(add func(name string, n int)) {
	add("pa timers", len(s.timers))
	for _, all := range s.all {
		add("pa presentities", len(all))
		for _, p := range all {
			add("pa publications", len(p.pubs))
			add("pa watchers", p.watchers.live+len(p.winfos))
		}
	}
}
