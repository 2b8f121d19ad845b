package pa

import (
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
	p        *presentity
	gone     []winfo.Watcher // those that left since the last document
	rendered bool            // since the start
}

// maxGone bounds the watchers a document reports as gone; of more the oldest
// are left out, as RFC 3857 section 4.7.2 lets transient ones be.
const maxGone = 100

// attachWatcherInfo serves presence.winfo: to the presentity itself, and in
// open mode to everybody (WI-03), unless the package has a basis of its own.
func (s *Shard) attachWatcherInfo(t *dialog.Turn, p *presentity, in dialog.Interest, to dialog.SinkRef) {
	if d, _ := s.a.Decide(Question{Watcher: in.Watcher.URI, Resource: in.Resource, Package: in.Package.Name, Now: t.Now}); d.Handling != policy.Allow {
		t.Update(dialog.Update{To: to, State: dialog.Terminated, Reason: dialog.Rejected,
			Err: dialog.Refuse(403, "Only The Owner Sees Watchers")})
		return
	}
	l := &watcherList{p: p}
	if p.winfos == nil {
		p.winfos = make(map[dialog.SinkRef]*watcherList)
	}
	p.winfos[to] = l
	t.Update(dialog.Update{To: to, State: dialog.Active, View: l})
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
		t.Update(dialog.Update{To: to, State: dialog.Active, View: l})
	}
}

// watcherBack tells of a watcher that came back after a restart, if there was a
// document without it: after a crash, or when something else changed first.
func (s *Shard) watcherBack(t *dialog.Turn, p *presentity) {
	for to, l := range p.winfos {
		if l.rendered {
			t.Update(dialog.Update{To: to, State: dialog.Active, View: l})
		}
	}
}

// watcherGone tells of a watcher that has ended. One that was never reported is
// nobody's news (RFC 3857 section 4.7.2).
func (s *Shard) watcherGone(t *dialog.Turn, p *presentity, w *watcher, event string) {
	if w.is&reported != 0 {
		s.watchersChanged(t, p, &winfo.Watcher{ID: w.token(), URI: p.watchers.uri(w), Status: winfo.Terminated, Event: event})
	}
}

// Render implements dialog.Content (WI-08, WI-09).
func (l *watcherList) Render(dst []byte, v dialog.View) ([]byte, string) {
	set := &l.p.watchers
	ws := make([]winfo.Watcher, 0, set.live+len(l.gone))
	for w := range set.each() {
		if w.blocked() {
			continue
		}
		w.is |= reported
		ws = append(ws, winfo.Watcher{ID: w.token(), URI: set.uri(w), Status: w.status(), Event: w.event(),
			Duration: v.Now.Sub(w.started()).Truncate(time.Second)})
	}
	slices.SortFunc(ws, func(a, b winfo.Watcher) int { return strings.Compare(a.ID, b.ID) })
	ws = append(ws, l.gone...)
	l.gone, l.rendered = nil, true
	return winfo.Append(dst, v.Version, true, l.p.key, "presence", ws), "application/watcherinfo+xml"
}
