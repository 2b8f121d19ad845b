package dialoginfo

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"time"
)

// Of dialogs that ended, so many are remembered for so long after somebody
// spoke of them last: a publication that was sent before their end, and
// repeated over UDP, comes within 32 seconds. Of more the oldest are forgotten.
const (
	rememberFor  = 2 * time.Minute
	rememberMost = 256
)

// Table is what is known of a presentity's dialogs, all publications together.
// The zero value knows nothing.
type Table struct {
	ended map[key]*ending
	shown []shown // sorted by key
	rest  []byte
	pass  *Document // shown alone says just that
	news  bool      // since the last Render
}

// key is a dialog's identity.
type key struct{ id, callID string }

func (k key) compare(o key) int {
	return cmp.Or(cmp.Compare(k.id, o.id), cmp.Compare(k.callID, o.callID))
}

// ending is a dialog that is over.
type ending struct {
	dialog *Dialog // nil when it is no longer shown
	since  time.Time
	seen   time.Time // somebody spoke of it last
}

// shown is a dialog in the document.
type shown struct {
	key
	name   string // its id there
	dialog *Dialog
}

// Observe takes what all publishers say now, the newest last. A dialog that has
// ended is shown for linger, so that nobody misses it whom pacing holds up, and
// in one document at least.
func (t *Table) Observe(docs []*Document, now time.Time, linger time.Duration) {
	best := make(map[key]*Dialog)
	var rest []byte
	for _, doc := range docs {
		for _, d := range doc.dialogs {
			k := key{d.ID, d.CallID}
			o := best[k]
			if o == nil || d.CallID == "" || d.State > o.State || d.State == o.State && d.State != Terminated {
				best[k] = d
			}
		}
		rest = append(rest, doc.rest...)
	}
	next := make([]shown, 0, len(best))
	fresh := false
	for k, d := range best {
		e := t.ended[k]
		switch {
		case e != nil && (k.callID != "" || d.State == Terminated): // it stays so
			e.seen = now
			continue
		case e != nil:
			delete(t.ended, k)
		case d.State == Terminated:
			if t.ended == nil {
				t.ended = make(map[key]*ending)
			}
			t.ended[k] = &ending{d, now, now}
			fresh = true
			continue
		}
		next = append(next, shown{key: k, dialog: d})
	}
	for k, e := range t.ended {
		if e.dialog != nil && now.Sub(e.since) < max(linger, time.Millisecond) { // what ends in this turn, too
			next = append(next, shown{key: k, dialog: e.dialog})
		} else {
			e.dialog = nil
		}
	}
	t.forget(now)
	slices.SortFunc(next, func(a, b shown) int { return a.compare(b.key) })
	t.name(next)
	if fresh || !sameLive(t.shown, next) || !bytes.Equal(t.rest, rest) {
		t.news = true
	}
	t.shown, t.rest, t.pass = next, rest, nil
	if len(docs) == 1 && docs[0].whole && t.is(docs[0]) {
		t.pass = docs[0]
	}
}

// name gives every dialog an id of its own in the document (DI-02), the one it
// had in the last if it was there.
func (t *Table) name(next []shown) {
	used := make(map[string]bool, len(next))
	for i := range next {
		if j, ok := slices.BinarySearchFunc(t.shown, next[i].key, func(s shown, k key) int { return s.compare(k) }); ok {
			next[i].name = t.shown[j].name
			used[next[i].name] = true
		}
	}
	for i := range next {
		s := &next[i]
		if s.name != "" {
			continue
		}
		s.name = s.id
		for n := 2; used[s.name]; n++ {
			s.name = s.id + "-" + strconv.Itoa(n)
		}
		used[s.name] = true
	}
}

// sameLive tells whether two lists have the same dialogs that go on.
func sameLive(a, b []shown) bool {
	live := func(s []shown) []shown {
		return slices.DeleteFunc(slices.Clone(s), func(x shown) bool { return x.dialog.State == Terminated })
	}
	return slices.EqualFunc(live(a), live(b), func(x, y shown) bool {
		return x.key == y.key && x.name == y.name && (x.dialog == y.dialog || bytes.Equal(x.dialog.rest, y.dialog.rest))
	})
}

// is tells whether what is shown is one document.
func (t *Table) is(d *Document) bool {
	if len(t.shown) != len(d.dialogs) {
		return false
	}
	for _, x := range d.dialogs {
		i, ok := slices.BinarySearchFunc(t.shown, key{x.ID, x.CallID}, func(s shown, k key) int { return s.compare(k) })
		if !ok || t.shown[i].dialog != x || t.shown[i].name != x.ID {
			return false
		}
	}
	return true
}

// forget bounds what is remembered.
func (t *Table) forget(now time.Time) {
	for k, e := range t.ended {
		if now.Sub(e.seen) > rememberFor {
			delete(t.ended, k)
		}
	}
	for len(t.ended) > rememberMost {
		var oldest key
		var at time.Time
		for k, e := range t.ended {
			if at.IsZero() || e.seen.Before(at) || e.seen.Equal(at) && k.compare(oldest) < 0 {
				oldest, at = k, e.seen
			}
		}
		delete(t.ended, oldest)
	}
}

// News tells whether watchers have to hear of what Observe found since the last
// Render. That a dialog which has ended is no longer shown is nobody's news.
func (t *Table) News() bool { return t.news }

// Render returns the document, full state, for watchers of entity, and where in
// it the version belongs.
func (t *Table) Render(entity string) (body []byte, versionAt int) {
	t.news = false
	if t.pass != nil {
		return t.pass.passed(entity)
	}
	dialogs, names := make([]*Dialog, len(t.shown)), make([]string, len(t.shown))
	for i, s := range t.shown {
		dialogs[i], names[i] = s.dialog, s.name
	}
	return numbered(entity, dialogs, names, t.rest)
}
