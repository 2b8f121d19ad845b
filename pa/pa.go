package pa

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"rollcall/dialog"
	"rollcall/pa/pidf"
	"rollcall/pa/policy"
	"rollcall/pa/winfo"
	"rollcall/sip"
)

// Presence is the event package of RFC 3856.
func Presence() *dialog.Package {
	return &dialog.Package{Name: "presence", Types: []string{pidf.MediaType}, DefaultExpires: time.Hour,
		MinInterval: time.Second, Publish: true, Lists: true, Empty: pidf.Offline}
}

// WatcherInfo is the watcher information of presence (RFC 3857).
func WatcherInfo() *dialog.Package {
	return &dialog.Package{Name: "presence.winfo", Types: []string{"application/watcherinfo+xml"}, DefaultExpires: time.Hour,
		MinInterval: time.Second}
}

// Mode is what a watcher gets when no rule matches.
type Mode uint8

// The modes of --presence-auth.
const (
	Confirm Mode = iota // pending until a rule says otherwise
	Allow
	Block
	Open // no rules are read at all; everybody sees everything
)

// ParseMode reads a mode's name.
func ParseMode(s string) (Mode, bool) {
	i := slices.Index([]string{"confirm", "allow", "block", "open"}, s)
	return Mode(max(i, 0)), i >= 0
}

// RuleSource gives the rules of a presentity, all documents of its owner
// together (PR-02).
type RuleSource interface {
	// Cached answers without waiting; ok is false when it cannot.
	Cached(resource string) (sets []*policy.Ruleset, ok bool)
	// Fetch may wait. An error means that the rules are not known.
	Fetch(ctx context.Context, resource string) ([]*policy.Ruleset, error)
}

// Options configures the agent.
type Options struct {
	Component uint8 // the agent's index among the runtime's components
	Mode      Mode
	Rules     RuleSource // not used with Open
	Log       *slog.Logger

	MaxPublications int // per presentity, default 64; beyond it 503
	MaxBody         int // bytes of a publication, default 64 KiB; beyond it 413
	MaxWatchers     int // per presentity, default 100,000; beyond it 503
}

// Stats counts; read with atomic loads.
type Stats struct {
	Presentities, Publications, Watchers  atomic.Int64
	Published, Refreshed, Expired, Denied atomic.Uint64
}

// Agent makes the shards and holds what they share.
type Agent struct {
	opt   Options
	stats Stats
	limit sip.LogLimit
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
	return &Agent{opt: opt}
}

// Stats gives the counters.
func (a *Agent) Stats() *Stats { return &a.stats }

// Shard makes one shard's part.
func (a *Agent) Shard(id uint8) dialog.Component {
	return &Shard{a: a, id: id, all: make(map[string]*presentity), timers: make(map[uint64]timed)}
}

// Shard is the presence agent of one shard. Only that shard's turns use it.
type Shard struct {
	a      *Agent
	id     uint8
	all    map[string]*presentity // by canonical key
	timers map[uint64]timed
	nextID uint64
}

// timed is what a timer belongs to: a publication, or a presentity whose rules
// change with time.
type timed struct {
	p   *presentity
	pub *publication
}

// presentity is a local resource that somebody publishes or watches.
type presentity struct {
	key      string
	pubs     []*publication // oldest change first
	seq      uint64
	sphere   string
	doc      *dialog.Document            // all publications composed
	views    map[string]*dialog.Document // by key of the transformation
	watchers map[dialog.SinkRef]*watcher
	winfos   map[dialog.SinkRef]*watcherList
	listed   bool      // watcher information was sent since the start
	ruleTime time.Time // when time alone may change a decision
	ruleID   uint64
	fetching bool
	stale    bool // the rules changed while they were being read
}

type publication struct {
	row   PublicationRow
	doc   *pidf.Document
	timer sip.Timer
	id    uint64 // of the timer
}

// watcher is an attachment to presence.
type watcher struct {
	id       string
	uri      string
	since    time.Time
	decided  bool
	handling policy.Handling
	view     policy.Transform
	event    string // of winfo: subscribe or approved
	told     string // status in the newest watcher information, "" for none
	resumed  bool   // it was told before a restart
	member   bool   // of a list: stays when it is blocked, for the day it is not
}

// status is the watcher's state as watcher information says it.
func (w *watcher) status() string {
	switch {
	case w.decided && w.handling >= policy.PoliteBlock:
		return winfo.Active
	case w.blocked():
		return winfo.Terminated
	}
	return winfo.Pending
}

func (w *watcher) blocked() bool { return w.decided && w.handling == policy.Block }

func (s *Shard) presentity(key string) *presentity {
	p := s.all[key]
	if p == nil {
		p = &presentity{key: key, watchers: make(map[dialog.SinkRef]*watcher), views: make(map[string]*dialog.Document)}
		s.all[key] = p
		s.a.stats.Presentities.Add(1)
	}
	return p
}

// tidy forgets a presentity that nobody publishes or watches.
func (s *Shard) tidy(p *presentity) {
	if len(p.pubs) == 0 && len(p.watchers) == 0 && len(p.winfos) == 0 && s.all[p.key] == p {
		delete(s.timers, p.ruleID)
		delete(s.all, p.key)
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
	p := s.presentity(in.Resource)
	if in.Package.Name != "presence" {
		s.attachWatcherInfo(t, p, in, to)
		s.tidy(p)
		return
	}
	if len(p.watchers) >= s.a.opt.MaxWatchers && p.watchers[to] == nil {
		t.Update(dialog.Update{To: to, State: dialog.Terminated, Reason: dialog.Giveup, RetryAfter: time.Minute,
			Err: &dialog.Error{Status: 503, Reason: "Too Many Watchers", RetryAfter: time.Minute}})
		return
	}
	if p.watchers[to] == nil {
		s.a.stats.Watchers.Add(1)
	}
	w := &watcher{id: newToken(), uri: in.Watcher.URI, since: t.Now, event: winfo.Subscribe, member: in.Depth > 0,
		resumed: in.Resumed}
	p.watchers[to] = w
	sets, ok := s.rules(p.key)
	if !ok {
		s.fetchRules(t, p)
		return
	}
	if s.decide(t, p, to, w, sets) {
		s.watchersChanged(t, p, nil)
	}
	s.tidy(p)
}

// Detach implements dialog.Source.
func (s *Shard) Detach(t *dialog.Turn, in dialog.Interest, to dialog.SinkRef) {
	p := s.all[in.Resource]
	if p == nil {
		return
	}
	if w := p.watchers[to]; w != nil {
		delete(p.watchers, to)
		s.a.stats.Watchers.Add(-1)
		s.watcherGone(t, p, w, winfo.Timeout)
	}
	delete(p.winfos, to)
	s.tidy(p)
}

// Released ends every subscription to a resource that somebody else serves
// from now on, a list for instance. Watchers subscribe anew at once, and then
// reach whom they should (EV-31).
func (s *Shard) Released(t *dialog.Turn, resource string) {
	p := s.all[resource]
	if p == nil {
		return
	}
	end := func(to dialog.SinkRef) {
		t.Update(dialog.Update{To: to, State: dialog.Terminated, Reason: dialog.Deactivated})
	}
	for to := range p.watchers {
		end(to)
	}
	for to := range p.winfos {
		end(to)
	}
	s.a.stats.Watchers.Add(-int64(len(p.watchers)))
	clear(p.watchers)
	clear(p.winfos)
	s.tidy(p)
}

// rules are those that apply to a presentity; ok is false when they must be
// fetched first.
func (s *Shard) rules(resource string) ([]*policy.Ruleset, bool) {
	if s.a.opt.Mode == Open || s.a.opt.Rules == nil {
		return nil, true
	}
	return s.a.opt.Rules.Cached(resource)
}

// fetchRules reads the rules elsewhere and then decides for every watcher.
func (s *Shard) fetchRules(t *dialog.Turn, p *presentity) {
	if p.fetching {
		return
	}
	p.fetching = true
	var sets []*policy.Ruleset
	var err error
	ok := t.Async(func(ctx context.Context) { sets, err = s.a.opt.Rules.Fetch(ctx, p.key) }, func(t *dialog.Turn) {
		p.fetching = false
		if p.stale {
			p.stale = false
			s.RulesChanged(t, p.key)
			return
		}
		if err != nil {
			s.a.limit.Log(t.Now, s.a.opt.Log, slog.LevelWarn, "rules not readable", "presentity", p.key, "err", err)
			s.decideAll(t, p, nil, err)
			return
		}
		s.decideAll(t, p, sets, nil)
	})
	if !ok {
		p.fetching = false
		s.decideAll(t, p, nil, context.DeadlineExceeded)
	}
}

// rulesRetry is when rules that could not be read are read again.
const rulesRetry = time.Minute

// decideAll decides anew for every watcher of a presentity. With an error
// those already decided keep what they have and the others wait (PR-18).
func (s *Shard) decideAll(t *dialog.Turn, p *presentity, sets []*policy.Ruleset, err error) {
	if err != nil && len(p.watchers) > 0 {
		s.ruleTimer(t, p, t.Now.Add(rulesRetry))
	}
	news := false
	for to, w := range p.watchers {
		switch {
		case err == nil:
			news = s.decide(t, p, to, w, sets) || news
		case !w.decided:
			w.decided, w.handling, news = true, policy.Confirm, true
			s.tell(t, p, to, w)
		}
	}
	if news {
		s.watchersChanged(t, p, nil)
	}
	s.tidy(p)
}

// RulesChanged decides anew for every watcher of a resource, after its rules
// changed (PR-17).
func (s *Shard) RulesChanged(t *dialog.Turn, resource string) {
	p := s.all[resource]
	if p == nil || len(p.watchers) == 0 {
		return
	}
	if p.fetching {
		p.stale = true
	} else if sets, ok := s.rules(resource); ok {
		s.decideAll(t, p, sets, nil)
	} else {
		s.fetchRules(t, p)
	}
}

// Decide is the rule decision for a pair, with the trace that explains it.
func (a *Agent) Decide(watcher, resource, sphere string, sets []*policy.Ruleset, now time.Time) (policy.Decision, string) {
	switch {
	case a.opt.Mode == Open:
		return policy.Decision{Handling: policy.Allow, Transform: policy.Everything()}, "open to everybody"
	case watcher != "" && watcher == resource:
		return policy.Decision{Handling: policy.Allow, Transform: policy.Everything()}, "the presentity itself"
	}
	d := policy.Evaluate(sets, policy.Request{Watcher: watcher, Sphere: sphere, Now: now})
	if d.Matched {
		return d, "rules"
	}
	switch a.opt.Mode {
	case Allow:
		d.Handling, d.Transform = policy.Allow, policy.Everything()
	case Block:
		d.Handling = policy.Block
	default:
		d.Handling = policy.Confirm
	}
	return d, "no rule matched"
}

// decide applies the rules to one watcher and tells it what changed by that. It
// returns whether its status in watcher information is another.
func (s *Shard) decide(t *dialog.Turn, p *presentity, to dialog.SinkRef, w *watcher, sets []*policy.Ruleset) bool {
	d, _ := s.a.Decide(w.uri, p.key, p.sphere, sets, t.Now)
	s.ruleTimer(t, p, d.NextChange)
	if w.decided && w.handling == d.Handling && w.view.Key() == d.Transform.Key() {
		return false
	}
	fresh := !w.decided
	if !fresh && w.handling != policy.Block && d.Handling >= policy.PoliteBlock && w.handling < policy.PoliteBlock {
		w.event = winfo.Approved
	}
	w.decided, w.handling, w.view = true, d.Handling, d.Transform
	if d.Handling == policy.Block {
		s.a.stats.Denied.Add(1)
		if !w.member {
			delete(p.watchers, to)
			s.a.stats.Watchers.Add(-1)
		}
		t.Update(dialog.Update{To: to, State: dialog.Terminated, Reason: dialog.Rejected, Err: dialog.Refuse(403, ""), Retrying: w.member})
		s.watcherGone(t, p, w, winfo.Rejected)
		w.id, w.since, w.event, w.told, w.resumed = newToken(), t.Now, winfo.Subscribe, "", false // of the next subscription
		return false
	}
	s.tell(t, p, to, w)
	if fresh && w.resumed && !p.listed {
		w.told = w.status()
	}
	return w.status() != w.told
}

// tell sends a watcher what it may see now.
func (s *Shard) tell(t *dialog.Turn, p *presentity, to dialog.SinkRef, w *watcher) {
	u := dialog.Update{To: to, State: dialog.Active}
	switch w.handling {
	case policy.Confirm:
		u.State = dialog.Pending
	case policy.PoliteBlock:
		u.Doc = p.view("polite-block", func() []byte { return policy.PoliteBlockDocument(p.key) })
	default:
		u.Doc = s.visible(p, w.view)
	}
	t.Update(u)
}

// view renders a document of the presentity once.
func (p *presentity) view(key string, render func() []byte) *dialog.Document {
	d := p.views[key]
	if d == nil {
		d = &dialog.Document{Type: pidf.MediaType, Body: render()}
		p.views[key] = d
	}
	return d
}

// whole is the document composed of all publications.
func (s *Shard) whole(p *presentity) *dialog.Document {
	if p.doc == nil {
		p.doc = &dialog.Document{Type: pidf.MediaType, Body: pidf.Compose(p.key, p.docs())}
	}
	return p.doc
}

// docs are the published documents, oldest first.
func (p *presentity) docs() []*pidf.Document {
	docs := make([]*pidf.Document, len(p.pubs))
	for i, pub := range p.pubs {
		docs[i] = pub.doc
	}
	return docs
}

func (s *Shard) visible(p *presentity, tr policy.Transform) *dialog.Document {
	whole := s.whole(p)
	if tr.IsEverything() {
		return whole
	}
	return p.view("t:"+tr.Key(), func() []byte {
		doc, err := tr.Apply(pidf.Merge(p.key, p.docs()))
		if err != nil {
			s.a.limit.Log(time.Now(), s.a.opt.Log, slog.LevelError, "document not filtered; shown as offline", "presentity", p.key, "err", err)
			return pidf.Offline(p.key)
		}
		return doc.Bytes()
	})
}

// ruleTimer looks again when time alone can change a decision.
func (s *Shard) ruleTimer(t *dialog.Turn, p *presentity, at time.Time) {
	if at.IsZero() || !p.ruleTime.IsZero() && !at.Before(p.ruleTime) && p.ruleTime.After(t.Now) {
		return
	}
	if p.ruleID == 0 {
		s.nextID++
		p.ruleID = s.nextID
		s.timers[p.ruleID] = timed{p: p}
	}
	p.ruleTime = at
	t.SetTimer(s.a.opt.Component, p.ruleID, at)
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
	if !t.Now.Before(e.p.ruleTime) {
		e.p.ruleTime = time.Time{}
		s.RulesChanged(t, e.p.key)
	}
}

// changed composes anew and tells those who see a difference.
func (s *Shard) changed(t *dialog.Turn, p *presentity) {
	before := p.doc
	polite := p.views["polite-block"]
	old := p.views
	p.doc, p.views = nil, make(map[string]*dialog.Document)
	if polite != nil {
		p.views["polite-block"] = polite
	}
	if sphere := pidf.Sphere(p.docs()); sphere != p.sphere {
		p.sphere = sphere
		s.RulesChanged(t, p.key) // before anybody is shown a document of the new sphere
	}
	if len(p.watchers) == 0 {
		return
	}
	if now := s.whole(p); before != nil && bytes.Equal(before.Body, now.Body) {
		p.doc, p.views = before, old
		return
	}
	for to, w := range p.watchers {
		if !w.decided || w.handling != policy.Allow {
			continue
		}
		if !w.view.IsEverything() {
			key := "t:" + w.view.Key()
			if was := old[key]; was != nil && bytes.Equal(was.Body, s.visible(p, w.view).Body) {
				p.views[key] = was // what changed is hidden from it
				continue
			}
		}
		s.tell(t, p, to, w)
	}
}

func newToken() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Info describes a presentity to an operator.
type Info struct {
	URI          string            `json:"uri"`
	Basic        string            `json:"basic"`
	Note         string            `json:"note,omitempty"`
	Publications []PublicationInfo `json:"publications"`
	Watchers     []WatcherInfoRow  `json:"watchers"`
}

// PublicationInfo describes a publication.
type PublicationInfo struct {
	ETag    string    `json:"etag"`
	Basic   string    `json:"basic"`
	Note    string    `json:"note,omitempty"`
	Updated time.Time `json:"updated"`
	Expires time.Time `json:"expires"`
	Bytes   int       `json:"bytes"`
}

// WatcherInfoRow describes a watcher and what was decided for it.
type WatcherInfoRow struct {
	URI      string    `json:"uri"`
	Status   string    `json:"status"`
	Handling string    `json:"handling"`
	Since    time.Time `json:"since"`
}

// Describe tells what is known of a presentity; false when nobody publishes or
// watches it.
func (s *Shard) Describe(resource string) (Info, bool) {
	p := s.all[resource]
	if p == nil {
		return Info{}, false
	}
	in := Info{URI: p.key, Publications: []PublicationInfo{}, Watchers: []WatcherInfoRow{}}
	doc := pidf.Merge(p.key, p.docs())
	in.Basic, in.Note = doc.Basic(), doc.Note()
	for _, pub := range p.pubs {
		in.Publications = append(in.Publications, PublicationInfo{ETag: pub.row.ETag, Basic: pub.doc.Basic(), Note: pub.doc.Note(),
			Updated: time.UnixMilli(pub.row.UpdatedMS).UTC(), Expires: time.UnixMilli(pub.row.ExpiresMS).UTC(), Bytes: len(pub.row.Body)})
	}
	for _, w := range p.watchers {
		in.Watchers = append(in.Watchers, WatcherInfoRow{URI: w.uri, Status: w.status(), Handling: w.handling.String(), Since: w.since.UTC()})
	}
	slices.SortFunc(in.Watchers, func(a, b WatcherInfoRow) int { return strings.Compare(a.URI, b.URI) })
	return in, true
}

// Tables counts what the shard holds, as dialog.Runtime.Tables wants it.
func (s *Shard) Tables(add func(name string, n int)) {
	add("pa presentities", len(s.all))
	add("pa timers", len(s.timers))
	for _, p := range s.all {
		add("pa publications", len(p.pubs))
		add("pa watchers", len(p.watchers)+len(p.winfos))
	}
}
