package pa

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"rollcall/dialog"
	"rollcall/pa/policy"
	"rollcall/pa/winfo"
)

// watcherList is a subscription to a presentity's watcher information. Its
// documents are always full (RFC 3858 section 3), so a lost one is repaired by
// the next.
type watcherList struct {
	p     *presentity
	to    dialog.SinkRef
	event string          // the package watched
	gone  []winfo.Watcher // those that left since the last document
	back  bool            // after a restart: for infoTime
}

// infoTime is how long the watchers of before a restart may take to come back.
const infoTime = 10 * time.Second

// maxGone bounds the watchers a document reports as gone; of more the oldest
// are left out, as RFC 3857 section 4.7.2 lets transient ones be.
const maxGone = 100

// attachWatcherInfo serves a package's watcher information: to the presentity
// itself, and in open mode to everybody (WI-03), unless the package has a basis of
// its own.
func (s *Shard) attachWatcherInfo(t *dialog.Turn, p *presentity, in dialog.Interest, to dialog.SinkRef) {
	if d, _ := s.a.Decide(Question{Watcher: in.Watcher.URI, Resource: in.Resource, Package: in.Package.Name, Now: t.Now}); d.Handling != policy.Allow {
		t.Update(dialog.Update{To: to, State: dialog.Terminated, Reason: dialog.Rejected,
			Err: dialog.Refuse(403, "Only The Owner Sees Watchers")})
		return
	}
	l := &watcherList{p: p, to: to, event: s.pkg(p).Name, back: in.Resumed}
	if l.back {
		s.nextID++
		s.timers[s.nextID] = timed{p: p, info: l}
		t.SetTimer(s.a.opt.Component, s.nextID, t.Now.Add(infoTime))
	}
	if p.winfos == nil {
		p.winfos = make(map[dialog.SinkRef]*watcherList)
	}
	p.winfos[to] = l
	t.Update(dialog.Update{To: to, State: dialog.Active, View: l})
}

// infoBack tells a subscription of before a restart that what there is now is all.
func (s *Shard) infoBack(t *dialog.Turn, p *presentity, l *watcherList) {
	if p.winfos[l.to] == l && l.back {
		l.back = false
		t.Update(dialog.Update{To: l.to, State: dialog.Active, View: l})
	}
}

// Digest implements dialog.Digester: who watches, and how. Identifiers do not
// survive a restart, and those that have gone are told at once or not at all.
func (l *watcherList) Digest() (sum uint64, whole bool) {
	for w := range l.p.watchers.each() {
		if !w.blocked() {
			h := sha256.Sum256([]byte(w.status() + " " + l.p.watchers.uri(w)))
			sum += binary.BigEndian.Uint64(h[:]) // in any order
		}
	}
	return sum, !l.back
}

// watchersChanged tells the subscribers of watcher information.
func (s *Shard) watchersChanged(t *dialog.Turn, p *presentity, gone *winfo.Watcher) {
	for to, l := range p.winfos {
		if gone != nil {
			if len(l.gone) >= maxGone {
				l.gone = slices.Delete(l.gone, 0, 1)
			}
			l.gone = append(l.gone, *gone)
		}
		l.back = false // it has changed, whoever is still to come back
		t.Update(dialog.Update{To: to, State: dialog.Active, View: l})
	}
}

// watcherGone tells of a watcher that has ended. One that was never reported is
// nobody's news (RFC 3857 section 4.7.2).
func (s *Shard) watcherGone(t *dialog.Turn, p *presentity, w *watcher, event string) {
	if w.is&(listedAs|resumed) != 0 {
		s.watchersChanged(t, p, &winfo.Watcher{ID: w.token(), URI: p.watchers.uri(w), Status: winfo.Terminated, Event: event})
	}
}

// Render implements dialog.Content (WI-08, WI-09).
func (l *watcherList) Render(dst []byte, v dialog.View) ([]byte, string) {
	set := &l.p.watchers
	l.p.listed = true
	ws := make([]winfo.Watcher, 0, set.live+len(l.gone))
	for w := range set.each() {
		if w.blocked() {
			continue
		}
		w.list()
		ws = append(ws, winfo.Watcher{ID: w.token(), URI: set.uri(w), Status: w.status(), Event: w.event(),
			Duration: v.Now.Sub(w.started()).Truncate(time.Second)})
	}
	slices.SortFunc(ws, func(a, b winfo.Watcher) int { return strings.Compare(a.ID, b.ID) })
	ws = append(ws, l.gone...)
	l.gone, l.back = nil, false
	return winfo.Append(dst, v.Version, true, l.p.key, l.event, ws), winfo.MediaType
}
