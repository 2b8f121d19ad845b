package rls

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"strconv"
	"strings"
	"time"

	"rollcall/dialog"
	"rollcall/rls/list"
	"rollcall/rls/rlmi"
	"rollcall/sip"
)

// view is one list subscription: what its watcher should see, and how much of
// it was sent. It is the Content of the subscription's NOTIFYs.
type view struct {
	s       *Shard
	id      uint64
	to      dialog.SinkRef
	in      dialog.Interest
	token   string // makes Content-IDs and boundaries ours
	root    *node
	members map[uint32]*member // by number of the attachment
	next    uint32
	waiting int // members that have not answered yet
	unknown int // ... or only that they do not know yet
	ready   bool
	back    bool      // after a restart: until all members are known, or resumeLimit
	timer   sip.Timer // set while new members are waited for
	asked   uint64    // for the tree, so far
	retry   sip.Timer
	retries int
}

// node is a list: the one subscribed to, or one nested in it.
type node struct {
	tree    *list.Tree
	names   []rlmi.Name
	items   []*member
	version uint32 // of the next document about a nested list
	within  uint32 // version of the list around, in the newest document
	sent    bool
	renamed bool // since it was sent
	resumed bool // it was sent before a restart
}

// member is a row of a list. It is served by somebody, or is a list itself, or
// is a list that is not for this watcher.
type member struct {
	num      uint32
	version  uint32 // of its next document, in packages whose documents have one
	uri, key string
	names    []rlmi.Name
	child    *node
	state    dialog.SubState
	counted  bool   // version is known
	within   uint32 // version of the list around, in the newest document
	reason   dialog.Reason
	doc      *dialog.Document
	changed  time.Time
	barred   bool
	attached bool
	heard    bool
	known    bool // what was heard is a state
	shown    bool // the watcher has a row of this URI
	dirty    bool // not sent as it is now
	gone     bool // no longer on the list; to be said once (RL-27)
}

// EventList marks the content as a list (RL-01).
func (v *view) EventList() bool { return true }

// build makes the view equal to a tree: at first, and when the list changed.
func (v *view) build(t *dialog.Turn, tree *list.Tree) {
	if v.root == nil {
		v.root = &node{}
	}
	before := v.next
	v.merge(t, v.root, tree)
	switch {
	case v.waiting == 0 || v.next == before && v.timer == 0:
		v.begin(t)
	case v.timer == 0:
		v.timer = t.SetTimer(v.s.s.opt.Component, v.id, t.Now.Add(readyTimeout))
	}
}

// merge gives a node the members of a tree. Members that stay keep their
// state and their attachment.
func (v *view) merge(t *dialog.Turn, n *node, tree *list.Tree) {
	old := make(map[string]*member, len(n.items))
	for _, m := range n.items {
		if !m.gone {
			old[m.key] = m
		}
	}
	n.tree = tree
	if now := names(tree.Names); !sameNames(n.names, now) {
		n.names, n.renamed = now, true
	}
	items := make([]*member, 0, len(tree.Nodes))
	present := make(map[string]*member, len(tree.Nodes))
	for i := range tree.Nodes {
		nd := &tree.Nodes[i]
		sub, why := v.nested(nd.List)
		m := old[nd.Key]
		if m != nil && (m.child != nil) == (sub != nil) && m.barred == (why != "") {
			delete(old, nd.Key)
			if now := names(nd.Names); !sameNames(m.names, now) {
				m.names, m.dirty = now, true
			}
		} else {
			v.next++
			m = &member{num: v.next, uri: nd.URI, key: nd.Key, names: names(nd.Names), dirty: true, changed: t.Now}
			switch {
			case sub != nil:
				m.child = &node{}
			case why != "":
				m.barred, m.state, m.reason = true, dialog.Terminated, why
			default:
				v.attach(t, m)
			}
		}
		if sub != nil && (sub.Err == nil || m.child.tree == nil) { // else it keeps its members while it cannot be read
			v.merge(t, m.child, sub)
		}
		items = append(items, m)
		present[m.uri] = m
	}
	for _, m := range n.items { // in the order they had
		if old[m.key] != m && !m.gone {
			continue
		}
		v.drop(t, m)
		if again := present[m.uri]; again != nil { // one row says all (RL-16)
			again.shown = again.shown || m.shown
		} else if m.shown {
			items = append(items, m)
		}
	}
	n.items = items
}

// nested is the list that a member is, or why its watcher does not see it as
// one: it is for another package (LS-07), or not for the watcher (RL-07).
func (v *view) nested(tree *list.Tree) (*list.Tree, dialog.Reason) {
	switch {
	case tree == nil:
		return nil, ""
	case !tree.Accepts(v.in.Package.Name):
		return nil, dialog.NoResource
	case !v.s.allowed(tree, v.in.Watcher):
		return nil, dialog.Rejected
	}
	return tree, ""
}

// drop takes a member, and what is nested in it, off the list.
func (v *view) drop(t *dialog.Turn, m *member) {
	if m.gone {
		return
	}
	v.detach(t, m)
	m.gone, m.dirty, m.changed = true, true, t.Now
	m.state, m.reason, m.doc = dialog.Terminated, dialog.NoResource, nil
	if m.child != nil {
		for _, c := range m.child.items {
			v.drop(t, c)
		}
		m.child = nil
	}
}

func (v *view) attach(t *dialog.Turn, m *member) {
	v.members[m.num] = m
	v.waiting++
	v.unknown++
	m.attached = true
	v.s.s.stats.Members.Add(1)
	t.Attach(v.interest(m), v.ref(m))
}

func (v *view) detach(t *dialog.Turn, m *member) {
	if !m.attached {
		return
	}
	v.lost(m)
	t.Detach(v.interest(m), v.ref(m))
}

// lost forgets a member's attachment.
func (v *view) lost(m *member) {
	m.attached = false
	delete(v.members, m.num)
	v.s.s.stats.Members.Add(-1)
	v.hear(m, true)
}

// hear notes that a member has answered, and whether with a state.
func (v *view) hear(m *member, known bool) {
	if !m.heard {
		m.heard = true
		v.waiting--
	}
	if known && !m.known {
		m.known = true
		v.unknown--
	}
}

func (v *view) interest(m *member) dialog.Interest {
	return dialog.Interest{Package: v.in.Package, Resource: m.key, URI: m.uri, Watcher: v.in.Watcher, Depth: v.in.Depth + 1,
		Accept: v.in.Accept, Resumed: v.in.Resumed && !v.ready} // later ones are new to everybody
}

func (v *view) ref(m *member) dialog.SinkRef {
	return dialog.SinkRef{ID: v.id, Member: m.num, Shard: v.s.id, Component: v.s.s.opt.Component}
}

// update takes a member's news.
func (v *view) update(t *dialog.Turn, m *member, u dialog.Update) {
	v.hear(m, u.State != dialog.Unknown)
	if u.State == dialog.Terminated && !u.Retrying {
		v.lost(m)
	}
	news := m.state != u.State || m.reason != u.Reason || m.doc != u.Doc
	if news {
		m.state, m.reason, m.doc, m.changed, m.dirty = u.State, u.Reason, u.Doc, t.Now, true
	}
	switch {
	case v.timer != 0: // others have a moment to answer
		if v.waiting == 0 {
			v.begin(t)
		}
	case v.back && v.unknown == 0:
		v.whole(t)
	case news:
		v.tell(t)
	}
}

// begin ends the wait for new members: the subscription is answered and its
// first NOTIFY may go, or the one about the new members.
func (v *view) begin(t *dialog.Turn) {
	t.CancelTimer(v.timer)
	v.timer = 0
	if v.ready {
		if v.back && v.unknown == 0 {
			v.whole(t)
		} else if v.root.unsent() {
			v.tell(t)
		}
		return
	}
	v.ready = true
	if !v.in.Resumed {
		v.tell(t)
		return
	}
	v.in.Resumed, v.back = false, true // members to come are new
	v.root.clean()
	if v.unknown == 0 {
		v.whole(t)
		return
	}
	t.SetTimer(v.s.s.opt.Component, v.id|resumeTimer, t.Now.Add(resumeLimit))
	v.tell(t)
}

// whole ends the wait for what members are after a restart. The watcher has all
// of it already, or gets full state.
func (v *view) whole(t *dialog.Turn) {
	v.back = false
	v.root.clean()
	v.tell(t)
}

// clean marks everything as sent.
func (n *node) clean() {
	n.renamed, n.resumed = false, true
	for _, m := range n.items {
		m.dirty, m.shown = false, true
		if m.child != nil {
			m.child.clean()
		}
	}
}

func (v *view) tell(t *dialog.Turn) {
	t.Update(dialog.Update{To: v.to, State: dialog.Active, View: v})
}

// Digest implements dialog.Digester.
func (v *view) Digest() (sum uint64, whole bool) {
	h := sha256.New()
	v.root.digest(h, nil)
	return binary.BigEndian.Uint64(h.Sum(nil)), !v.back
}

// digest writes what a node's document says: not its version, numbers of
// instances and Content-IDs.
func (n *node) digest(h hash.Hash, b []byte) {
	text := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	write := func() {
		h.Write(b)
		b = b[:0]
	}
	head := func(names []rlmi.Name) {
		b = binary.AppendUvarint(b, uint64(len(names)))
		for _, n := range names {
			text(n.Text)
			text(n.Lang)
		}
	}
	head(n.names)
	for _, m := range n.items {
		if m.gone {
			continue
		}
		text(m.uri)
		head(m.names)
		switch {
		case m.child != nil:
			b = append(b, 'l')
			write()
			m.child.digest(h, b)
		case m.state == dialog.Active && m.doc != nil:
			b = append(b, 'd')
			text(m.doc.Type)
			b = binary.AppendUvarint(b, uint64(len(m.doc.Body)))
			write()
			h.Write(m.doc.Body)
		default:
			b = append(b, 's', byte(m.state))
			text(string(m.reason))
			write()
		}
	}
	b = append(b, 'e')
	write()
}

// Render implements dialog.Content: the multipart body of the NOTIFY that is
// about to be sent (RFC 4662 section 5). What it renders counts as sent.
func (v *view) Render(dst []byte, w dialog.View) ([]byte, string) {
	v.s.s.stats.Rendered.Add(1)
	v.back = false // what members say from now on is news
	r := renderer{v: v, w: w, stamp: strconv.FormatUint(uint64(w.Version), 10) + "." + v.token + "@" + hostOf(v.in.Resource)}
	return r.node(dst, v.root, v.in.URI, w.Version, w.Full || !v.root.sent, "l0.")
}

type renderer struct {
	v     *view
	w     dialog.View
	stamp string // end of every Content-ID of this NOTIFY
}

// node renders one list with its nested lists; version and full are its own.
func (r *renderer) node(dst []byte, n *node, uri string, version uint32, full bool, id string) ([]byte, string) {
	l := rlmi.List{URI: uri, Version: version, FullState: full, Names: n.names}
	instances := make([]rlmi.Instance, len(n.items))
	l.Resources = make([]rlmi.Resource, 0, len(n.items))
	parts := make([]rlmi.Part, 0, len(n.items))
	kept := n.items[:0]
	for i, m := range n.items {
		if !m.gone {
			kept = append(kept, m)
		} else if full {
			continue // absent from full state
		}
		if !full && !m.dirty && (m.child == nil || !m.child.unsent()) {
			continue
		}
		m.dirty, m.shown = false, true
		res := rlmi.Resource{URI: m.uri, Names: m.names}
		if inst, part, ok := r.member(m, full, n.resumed); ok {
			instances[i] = inst
			res.Instances = instances[i : i+1]
			if part.CID != "" {
				parts = append(parts, part)
			}
		}
		l.Resources = append(l.Resources, res)
	}
	clear(n.items[len(kept):])
	n.items, n.sent, n.renamed = kept, true, false
	boundary := "b" + r.v.token
	for rlmi.BoundaryOccurs(boundary, parts) {
		boundary = "b" + newToken()
	}
	root := id + r.stamp
	return rlmi.AppendMultipart(dst, boundary, root, &l, parts), rlmi.ContentType(boundary, root)
}

// member renders a member's instance and the part that holds its state.
func (r *renderer) member(m *member, full, resumed bool) (inst rlmi.Instance, part rlmi.Part, ok bool) {
	num := strconv.FormatUint(uint64(m.num), 10)
	cid := "m" + num + "." + r.stamp
	if c := m.child; c != nil {
		if !c.sent && c.resumed { // nested versions are not stored: this is above any that was sent
			c.version = r.w.Version
		}
		if c.sent && c.within == r.w.Version { // that NOTIFY did not leave, and is rendered again
			c.version--
		}
		c.within = r.w.Version
		body, ctype := r.nested(c, m.uri, full || !c.sent, "l"+num+".")
		c.version++
		return rlmi.Active("i"+num, cid), rlmi.Part{CID: cid, ContentType: ctype, Body: body}, true
	}
	switch m.state {
	case dialog.Active:
		doc := m.doc
		if doc == nil {
			if r.v.in.Package.Empty == nil {
				return rlmi.Pending("i" + num), part, true
			}
			doc = r.v.in.Package.Empty(m.uri)
		}
		body, ctype := doc.Body, doc.Type
		if doc.Version > 0 {
			body, ctype = doc.Render(nil, dialog.View{Version: m.take(r.w.Version, resumed)})
		}
		return rlmi.Active("i"+num, cid), rlmi.Part{CID: cid, ContentType: ctype, Body: body}, true
	case dialog.Pending:
		return rlmi.Pending("i" + num), part, true
	case dialog.Terminated:
		return rlmi.Terminated("i"+num, string(m.reason)), part, true
	}
	return inst, part, false
}

// take gives a member's next version. list is that of the list in the NOTIFY,
// resumed whether the list was sent before a restart: then it is above any that
// the member's documents had.
func (m *member) take(list uint32, resumed bool) uint32 {
	switch {
	case !m.counted && resumed:
		m.version = list
	case m.counted && m.within == list: // that NOTIFY did not leave, and is rendered again
		m.version--
	}
	m.counted, m.within = true, list
	m.version++
	return m.version - 1
}

func (r *renderer) nested(c *node, uri string, full bool, id string) ([]byte, string) {
	return r.node(nil, c, uri, c.version, full, id)
}

// unsent tells whether anything in a nested list is still to be said.
func (n *node) unsent() bool {
	if n.renamed {
		return true
	}
	for _, m := range n.items {
		if m.dirty || m.child != nil && m.child.unsent() {
			return true
		}
	}
	return false
}

func (n *node) describe(in *ViewInfo, depth int) {
	for _, m := range n.items {
		in.Members = append(in.Members, MemberInfo{URI: m.uri, Depth: depth, State: m.state.String(), Reason: string(m.reason), Changed: m.changed.UTC()})
		if m.child != nil {
			m.child.describe(in, depth+1)
		}
	}
}

func names(in []list.Name) []rlmi.Name {
	out := make([]rlmi.Name, len(in))
	for i, n := range in {
		out[i] = rlmi.Name(n)
	}
	return out
}

func sameNames(a, b []rlmi.Name) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// hostOf is the host of a key, for Content-IDs.
func hostOf(key string) string {
	h := key[strings.LastIndexByte(key, '@')+1:]
	h = strings.TrimPrefix(h, "sip:")
	if i := strings.IndexAny(h, ":;["); i >= 0 {
		h = h[:i]
	}
	if h == "" {
		return "invalid"
	}
	return h
}
