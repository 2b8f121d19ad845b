package b2b

import (
	"bytes"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"rollcall/dialog"
	"rollcall/sip"
)

// Back-off between attempts: doubled from the first to the last, with a fifth
// of jitter either way.
const (
	firstRetry = 5 * time.Second
	lastRetry  = 10 * time.Minute
)

// settled is how long a subscription must have lived for its end to count as
// the first failure, so that a server which ends each at once is not hammered.
const settled = 30 * time.Second

// grace is how long a subscription of before a restart waits for somebody to
// attach; then it is unsubscribed.
const grace = time.Minute

// AnyDomain is the route of domains that have none: an outbound proxy.
const AnyDomain = "*"

// Options configures the B2BUA.
type Options struct {
	Component uint8             // its index among the runtime's components
	Routes    map[string]string // next hop (SIP URI) by remote domain, lower case, or AnyDomain; others go by RFC 3263
	Local     func(host string) bool
	Self      string        // our own URI, for watchers of other domains (RL-32)
	Expires   time.Duration // asked for; default 1 h
	Max       int           // remote subscriptions per shard, default 10,000; beyond it members end with giveup
	Log       *slog.Logger
}

// Stats counts; read with atomic loads.
type Stats struct {
	Opened, Retried, Refused atomic.Uint64
	Live                     atomic.Int64
}

// Gateway makes the shards and holds what they share.
type Gateway struct {
	opt   Options
	stats Stats
	limit sip.LogLimit
}

// New returns a gateway.
func New(opt Options) *Gateway {
	if opt.Expires == 0 {
		opt.Expires = time.Hour
	}
	if opt.Max == 0 {
		opt.Max = 10_000
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Gateway{opt: opt}
}

// Stats gives the counters.
func (g *Gateway) Stats() *Stats { return &g.stats }

// Shard makes one shard's part.
func (g *Gateway) Shard(id uint8) dialog.Component {
	return &Shard{g: g, id: id, byKey: make(map[key]*subscription), byID: make(map[uint64]*subscription)}
}

// Shard is the B2BUA of one shard. Only that shard's turns use it.
type Shard struct {
	g     *Gateway
	id    uint8
	next  uint64
	byKey map[key]*subscription
	byID  map[uint64]*subscription

	opens, drops dialog.Spread // of what a restart causes
}

// key is what one remote subscription serves (RL-30).
type key struct {
	resource, watcher, pkg string
}

type subscription struct {
	id      uint64
	key     key
	uri     string
	pkg     *dialog.Package
	sinks   map[dialog.SinkRef]struct{} // empty only after a restart, for as long as grace
	dialog  uint64                      // 0 while waiting for the next attempt
	state   dialog.SubState
	reason  dialog.Reason
	doc     *dialog.Document
	retries int
	live    time.Time // since the first NOTIFY of the newest attempt
	timer   sip.Timer
}

// Attach implements dialog.Source.
func (s *Shard) Attach(t *dialog.Turn, in dialog.Interest, to dialog.SinkRef) {
	if !in.Package.Accepts(in.Accept) {
		t.Update(dialog.Update{To: to, State: dialog.Terminated, Reason: dialog.NoResource,
			Err: dialog.Refuse(406, "", "Accept", strings.Join(in.Package.Types, ", "))})
		return
	}
	k := key{in.Resource, in.Watcher.URI, in.Package.Name}
	sub := s.byKey[k]
	if sub == nil {
		if len(s.byKey) >= s.g.opt.Max {
			s.g.stats.Refused.Add(1)
			t.Update(dialog.Update{To: to, State: dialog.Terminated, Reason: dialog.Giveup, RetryAfter: time.Minute,
				Err: &dialog.Error{Status: 503, Reason: "Too Many Remote Subscriptions", RetryAfter: time.Minute}})
			return
		}
		sub = s.add(k, in.Package)
		at := t.Now
		if in.Resumed { // its dialog ran out while we were down, as many others did
			at = s.opens.At(t.Now)
		}
		if at.After(t.Now) {
			sub.timer = t.SetTimer(s.g.opt.Component, sub.id, at)
		} else {
			s.open(t, sub)
		}
	} else if len(sub.sinks) == 0 {
		t.CancelTimer(sub.timer)
	}
	sub.sinks[to] = struct{}{}
	s.tell(t, sub, to)
}

func (s *Shard) add(k key, pkg *dialog.Package) *subscription {
	s.next++
	sub := &subscription{id: s.next, key: k, uri: k.resource, pkg: pkg, sinks: make(map[dialog.SinkRef]struct{})}
	s.byKey[k], s.byID[sub.id] = sub, sub
	s.g.stats.Live.Add(1)
	return sub
}

// Restored implements dialog.Restorer: the subscription waits for its sinks.
func (s *Shard) Restored(t *dialog.Turn, r dialog.Restored) uint64 {
	k := key{r.URI, r.Watcher, r.Package.Name}
	if s.byKey[k] != nil {
		return 0
	}
	sub := s.add(k, r.Package)
	sub.dialog, sub.state, sub.doc = r.ID, r.State, r.Doc
	if r.State != dialog.Unknown {
		sub.live = r.Created
	}
	sub.timer = t.SetTimer(s.g.opt.Component, sub.id, s.drops.At(t.Now.Add(grace)))
	return sub.id
}

// Detach implements dialog.Source.
func (s *Shard) Detach(t *dialog.Turn, in dialog.Interest, to dialog.SinkRef) {
	sub := s.byKey[key{in.Resource, in.Watcher.URI, in.Package.Name}]
	if sub == nil {
		return
	}
	delete(sub.sinks, to)
	if len(sub.sinks) == 0 {
		s.leave(t, sub)
	}
}

// leave ends a subscription that nobody wants.
func (s *Shard) leave(t *dialog.Turn, sub *subscription) {
	if sub.dialog != 0 {
		t.Unsubscribe(sub.dialog)
	}
	s.remove(t, sub)
}

func (s *Shard) remove(t *dialog.Turn, sub *subscription) {
	t.CancelTimer(sub.timer)
	delete(s.byKey, sub.key)
	delete(s.byID, sub.id)
	s.g.stats.Live.Add(-1)
}

// open subscribes at the remote server, in the watcher's name when the watcher
// is of a domain of ours, otherwise in our own (RL-31, RL-32).
func (s *Shard) open(t *dialog.Turn, sub *subscription) {
	from := s.g.opt.Self
	if u, err := sip.ParseURI(sub.key.watcher); err == nil && s.g.opt.Local(u.Host) {
		from = sub.key.watcher
	}
	hop := ""
	if u, err := sip.ParseURI(sub.uri); err == nil {
		var routed bool
		if hop, routed = s.g.opt.Routes[strings.ToLower(u.Host)]; !routed {
			hop = s.g.opt.Routes[AnyDomain]
		}
	}
	s.g.stats.Opened.Add(1)
	sub.live = time.Time{}
	sub.dialog = t.Subscribe(dialog.SubscribeTo{Component: s.g.opt.Component, User: sub.id, URI: sub.uri, From: from, NextHop: hop,
		Event: sub.pkg.Name, Accept: strings.Join(sub.pkg.Types, ", "), Expires: s.g.opt.Expires, Watcher: sub.key.watcher})
}

func (s *Shard) tell(t *dialog.Turn, sub *subscription, to dialog.SinkRef) {
	t.Update(dialog.Update{To: to, State: sub.state, Reason: sub.reason, Doc: sub.doc, Retrying: sub.state == dialog.Terminated})
}

func (s *Shard) tellAll(t *dialog.Turn, sub *subscription) {
	for to := range sub.sinks {
		s.tell(t, sub, to)
	}
}

// Notified implements dialog.SubscriberUser.
func (s *Shard) Notified(t *dialog.Turn, id uint64, state dialog.SubState, doc *dialog.Document) {
	sub := s.byID[id]
	if sub == nil || state == dialog.Terminated { // Ended follows
		return
	}
	if sub.live.IsZero() {
		sub.live = t.Now
	}
	if sub.doc != nil && doc != nil && sub.doc.Type == doc.Type && bytes.Equal(sub.doc.Body, doc.Body) {
		doc = sub.doc
	}
	if sub.state == state && sub.doc == doc {
		return // the answer to a refresh
	}
	sub.state, sub.reason, sub.doc = state, "", doc
	s.tellAll(t, sub)
}

// Ended implements dialog.SubscriberUser (RL-36).
func (s *Shard) Ended(t *dialog.Turn, id uint64, e dialog.Ending) {
	sub := s.byID[id]
	if sub == nil {
		return
	}
	sub.dialog = 0
	if len(sub.sinks) == 0 {
		s.remove(t, sub)
		return
	}
	lived := !sub.live.IsZero() && t.Now.Sub(sub.live) > settled
	if lived {
		sub.retries = 0
	}
	switch v := outcome(e); v {
	case again, later:
		sub.retries++
		// A dialog that was well and got lost is replaced without a word, if
		// that works: nobody needs to know.
		lost := v == again || lived && e.Status != 0 && e.RetryAfter == 0
		if lost && sub.retries == 1 {
			s.g.stats.Retried.Add(1)
			s.open(t, sub)
			return
		}
		s.later(t, sub, e.RetryAfter)
	case rejected:
		s.over(t, sub, dialog.Rejected, 403)
	case absent:
		s.over(t, sub, dialog.NoResource, 404)
	}
}

// later tries again after a while; until then the members say probation.
func (s *Shard) later(t *dialog.Turn, sub *subscription, retryAfter time.Duration) {
	wait := min(firstRetry<<min(sub.retries-1, 10), lastRetry)
	wait = max(wait*4/5+time.Duration(rand.Int64N(int64(wait)*2/5+1)), retryAfter)
	sub.timer = t.SetTimer(s.g.opt.Component, sub.id, t.Now.Add(wait))
	if sub.state != dialog.Terminated {
		sub.state, sub.reason, sub.doc = dialog.Terminated, dialog.Probation, nil
		s.tellAll(t, sub)
	}
	s.g.limit.Log(t.Now, s.g.opt.Log, slog.LevelInfo, "remote subscription will be tried again", "resource", sub.key.resource, "watcher", sub.key.watcher, "in", wait.Round(time.Millisecond).String())
}

// over ends the subscription for everybody.
func (s *Shard) over(t *dialog.Turn, sub *subscription, why dialog.Reason, status int) {
	for to := range sub.sinks {
		t.Update(dialog.Update{To: to, State: dialog.Terminated, Reason: why, Err: dialog.Refuse(status, "")})
	}
	s.g.limit.Log(t.Now, s.g.opt.Log, slog.LevelInfo, "remote subscription refused", "resource", sub.key.resource, "watcher", sub.key.watcher, "reason", string(why))
	s.remove(t, sub)
}

// Timer implements dialog.Component: time for the next attempt, or to give up
// one of before a restart.
func (s *Shard) Timer(t *dialog.Turn, id uint64) {
	sub := s.byID[id]
	switch {
	case sub == nil:
	case len(sub.sinks) == 0:
		s.leave(t, sub)
	case sub.dialog == 0:
		if sub.retries > 0 {
			s.g.stats.Retried.Add(1)
		}
		s.open(t, sub)
	}
}

type verdict uint8

const (
	again    verdict = iota // subscribe anew at once
	later                   // try again with back-off
	rejected                // the presentity said no
	absent                  // there is nothing to subscribe to
)

// outcome judges how a remote subscription ended (EV-12, EV-17, RL-36).
func outcome(e dialog.Ending) verdict {
	switch e.Status {
	case 0:
		switch e.Reason {
		case dialog.Deactivated, dialog.Timeout:
			return again
		case dialog.Rejected:
			return rejected
		case dialog.NoResource, dialog.Invariant:
			return absent
		}
		return later
	case 481:
		return again
	case 401, 403, 407, 603:
		return rejected
	case 404, 405, 406, 410, 415, 416, 420, 421, 484, 485, 489, 501, 604:
		return absent
	}
	return later
}

// Tables counts what the shard holds, as dialog.Runtime.Tables wants it.
func (s *Shard) Tables(add func(name string, n int)) {
	add("b2b subscriptions", len(s.byKey)+len(s.byID))
}
