package pa

import (
	"bytes"
	"log/slog"

	"rollcall/dialog"
	"rollcall/pa/policy"
)

// view is what some watchers of a presentity see, other than the whole.
type view struct {
	key       string
	transform policy.Transform
	polite    bool // the polite-block document instead
	stale     bool // doc is of before the last change
	watchers  int
	doc       *dialog.Document
	rev       uint32 // of doc: one more for each that differs from the one before
}

// views are the views of a presentity. A watcher holds the number of its view:
// 0 is the whole, the others are places in list, plus 1.
type views struct {
	list    []*view // nil where free
	free    []uint32
	byKey   map[string]uint32
	sweepAt int // how many views make it worth looking for those nobody has
}

// keptViews are kept for the next watcher when nobody has them.
const keptViews = 8

const politeKey = "polite-block"

// viewOf is the number of the view that a decision gives.
// What rules take out of a document counts only with a transformer.
func (p *presentity) viewOf(d *policy.Decision, tr transformer) uint32 {
	var buf [256]byte
	key := buf[:0]
	switch {
	case d.Handling == policy.PoliteBlock:
		key = append(key, politeKey...)
	case d.Handling == policy.Allow && tr != nil && !d.Transform.IsEverything():
		key = d.Transform.AppendKey(key)
	default:
		return 0
	}
	vs := p.views
	if vs == nil {
		vs = &views{byKey: make(map[string]uint32), sweepAt: keptViews}
		p.views = vs
	}
	if n, ok := vs.byKey[string(key)]; ok {
		return n
	}
	if len(vs.byKey) >= vs.sweepAt {
		vs.sweep()
		vs.sweepAt = max(keptViews, 2*len(vs.byKey))
	}
	v := &view{key: string(key), polite: d.Handling == policy.PoliteBlock, stale: true}
	if !v.polite {
		v.transform = d.Transform
	}
	var n uint32
	if last := len(vs.free) - 1; last >= 0 {
		n, vs.free = vs.free[last], vs.free[:last]
		vs.list[n-1] = v
	} else {
		vs.list = append(vs.list, v)
		n = uint32(len(vs.list))
	}
	vs.byKey[v.key] = n
	return n
}

// sweep forgets the views that nobody has.
func (vs *views) sweep() {
	for i, v := range vs.list {
		if v != nil && v.watchers == 0 {
			delete(vs.byKey, v.key)
			vs.list[i] = nil
			vs.free = append(vs.free, uint32(i+1))
		}
	}
}

// show gives a watcher another view.
func (p *presentity) show(w *watcher, view uint32) {
	if w.view != 0 {
		p.views.list[w.view-1].watchers--
	}
	if view != 0 {
		p.views.list[view-1].watchers++
	}
	w.view = view
}

// document is what a view shows now, and its revision. It is rendered when it
// is first asked for, and stays the same when nothing of a change is seen in it.
func (s *Shard) document(t *dialog.Turn, p *presentity, n uint32) (*dialog.Document, uint32) {
	if n == 0 {
		if p.doc == nil {
			s.compose(p)
		}
		return p.doc, p.rev
	}
	v := p.views.list[n-1]
	if v.stale {
		doc := s.render(t, p, v)
		if v.rev == 0 || !v.doc.Equal(doc) {
			v.doc = doc
			v.rev++
		}
		v.stale = false
	}
	return v.doc, v.rev
}

// compose makes the whole of all publications. It returns whether watchers have
// to hear of it.
func (s *Shard) compose(p *presentity) bool {
	s.a.stats.Rendered.Add(1)
	doc, differs := s.pkg(p).code.compose(p.key, p.kept, p.pubs, p.doc)
	p.doc = doc
	if differs {
		p.rev++
	}
	return differs
}

// outdate has every view rendered anew when it is next wanted.
func (p *presentity) outdate() {
	if p.views == nil {
		return
	}
	p.views.sweep()
	if len(p.views.byKey) == 0 {
		p.views = nil
		return
	}
	for _, v := range p.views.list {
		if v != nil && !v.polite { // which never changes
			v.stale = true
		}
	}
}

func (s *Shard) render(t *dialog.Turn, p *presentity, v *view) *dialog.Document {
	s.a.stats.Rendered.Add(1)
	tr := s.transformer(p)
	switch {
	case v.polite && tr != nil:
		return presenceDocument(policy.PoliteBlockDocument(p.key))
	case v.polite:
		return s.empty(p)
	}
	doc, err := tr.transform(p.key, p.pubs, v.transform)
	if err != nil {
		s.a.limit.Log(t.Now, s.a.opt.Log, slog.LevelError, "document not filtered; shown as offline", "presentity", p.key, "err", err)
		return s.empty(p)
	}
	return doc
}

// exact is a body as it is kept for long: without much room behind it.
func exact(body []byte) []byte {
	if cap(body) > len(body)+len(body)/4 {
		return bytes.Clone(body)
	}
	return body
}
