package rls

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"rollcall/dialog"
	"rollcall/rls/list"
	"rollcall/rls/rlmi"
	"rollcall/sip"
)

// readyTimeout is how long the first NOTIFY of a list, and one about new members,
// waits for members that have not answered. Local members answer within the same or the next turn of
// their shard; remote ones answer "not known yet" at once.
const readyTimeout = 100 * time.Millisecond

// resumeLimit is how long a list waits after a restart until all its members are
// known. Then it is what it is, and its watcher is told if it had another state.
const resumeLimit = 10 * time.Second

// Back-off between attempts to read a list that a live view could not get.
const (
	firstRetry   = 30 * time.Second
	resumedRetry = time.Second // after a restart
	lastRetry    = 10 * time.Minute
)

// Options configures the list server.
type Options struct {
	Component uint8 // the list server's index among the runtime's components
	Catalog   *Catalog
	Packages  []*dialog.Package      // those registered, to tell which may be asked for
	Open      bool                   // anybody may subscribe to any list
	Local     func(host string) bool // the domains of users whose documents name no domain
	MaxViews  int                    // list subscriptions per shard, default 100,000; beyond it 503
	Log       *slog.Logger
}

// Stats counts; read with atomic loads.
type Stats struct {
	Views, Members atomic.Int64
	Rendered       atomic.Uint64
}

// Server makes the shards and holds what they share.
type Server struct {
	opt   Options
	stats Stats
	limit sip.LogLimit
}

// New returns a list server.
func New(opt Options) *Server {
	if opt.MaxViews == 0 {
		opt.MaxViews = 100_000
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{opt: opt}
}

// offers names the packages of lists.
func (s *Server) offers() string {
	var names []string
	for _, p := range s.opt.Packages {
		if p.Lists {
			names = append(names, p.Name)
		}
	}
	return dialog.AllowEvents(names)
}

// Stats gives the counters.
func (s *Server) Stats() *Stats { return &s.stats }

// Shard makes one shard's part.
func (s *Server) Shard(id uint8) dialog.Component {
	return &Shard{s: s, id: id, views: make(map[uint64]*view), byRef: make(map[dialog.SinkRef]*view), byList: make(map[string]map[*view]struct{})}
}

// Shard is the list server of one shard. Only that shard's turns use it.
type Shard struct {
	s      *Server
	id     uint8
	next   uint64
	views  map[uint64]*view
	byRef  map[dialog.SinkRef]*view
	byList map[string]map[*view]struct{}
}

// Attach implements dialog.Source: a subscription to a list.
func (s *Shard) Attach(t *dialog.Turn, in dialog.Interest, to dialog.SinkRef) {
	if err := s.admit(in); err != nil {
		refuse(t, to, err)
		return
	}
	s.next++
	v := &view{s: s, id: s.next, to: to, in: in, members: make(map[uint32]*member), token: newToken()}
	s.views[v.id], s.byRef[to] = v, v
	if s.byList[in.Resource] == nil {
		s.byList[in.Resource] = make(map[*view]struct{})
	}
	s.byList[in.Resource][v] = struct{}{}
	s.s.stats.Views.Add(1)
	s.resolve(t, v)
}

func refuse(t *dialog.Turn, to dialog.SinkRef, err *dialog.Error) {
	reason := dialog.NoResource
	switch err.Status {
	case 403:
		reason = dialog.Rejected
	case 421: // a subscription of before a restart, when this was no list (EV-31)
		reason = dialog.Deactivated
	}
	t.Update(dialog.Update{To: to, State: dialog.Terminated, Reason: reason, RetryAfter: err.RetryAfter, Err: err})
}

// admit checks what does not depend on the list (RL-02, RL-04).
func (s *Shard) admit(in dialog.Interest) *dialog.Error {
	switch {
	case !in.EventList:
		return dialog.Refuse(421, "", "Require", "eventlist")
	case !in.Package.Lists:
		return dialog.Refuse(489, "Not For Lists", "Allow-Events", s.s.offers())
	case in.Accept != "" && !(dialog.AcceptsType(in.Accept, rlmi.MultipartMediaType) &&
		dialog.AcceptsType(in.Accept, rlmi.MediaType) && in.Package.Accepts(in.Accept)):
		return dialog.Refuse(406, "", "Accept", strings.Join(append([]string{rlmi.MultipartMediaType, rlmi.MediaType}, in.Package.Types...), ", "))
	case len(s.views) >= s.s.opt.MaxViews:
		return &dialog.Error{Status: 503, Reason: "Too Many List Subscriptions", RetryAfter: time.Minute}
	}
	return nil
}

// resolve gets the list's tree, at once when it is known, and builds or
// rebuilds the view from it.
func (s *Shard) resolve(t *dialog.Turn, v *view) {
	cat := s.s.opt.Catalog
	v.asked++
	asked := v.asked
	if tree, ok := cat.Cached(v.in.Resource); ok {
		s.resolved(t, v, tree, nil)
		return
	}
	var tree *list.Tree
	err := errors.New("reading the list failed")
	ok := t.Async(func(ctx context.Context) { tree, err = cat.Tree(ctx, v.in.Resource) }, func(t *dialog.Turn) {
		if s.views[v.id] == v && v.asked == asked { // else a newer answer is here or on its way
			s.resolved(t, v, tree, err)
		}
	})
	if !ok {
		s.resolved(t, v, nil, errors.New("too many lists are being read"))
	}
}

func (s *Shard) resolved(t *dialog.Turn, v *view, tree *list.Tree, err error) {
	var refusal *dialog.Error
	switch {
	case errors.Is(err, list.ErrNotService):
		refusal = dialog.Refuse(404, "No Such List")
	case err != nil:
		refusal = &dialog.Error{Status: 503, Reason: "List Not Readable Now", RetryAfter: firstRetry, Err: err}
	case tree.Err != nil:
		refusal = &dialog.Error{Status: 502, Reason: "Resource List Reference Failed", Err: tree.Err} // LS-08
	case !tree.Accepts(v.in.Package.Name):
		refusal = dialog.Refuse(489, "Package Not Offered By This List")
		if len(tree.Packages) > 0 {
			refusal.Headers = []string{"Allow-Events", strings.Join(tree.Packages, ", ")}
		}
	case !s.allowed(tree, v.in.Watcher):
		refusal = dialog.Refuse(403, "Not Your List")
	}
	switch {
	case refusal == nil:
		v.retries = 0
		v.build(t, tree)
	case v.root == nil && v.in.Resumed && refusal.Status >= 500: // its watcher has a state meanwhile
		s.s.limit.Log(t.Now, s.s.opt.Log, slog.LevelWarn, "list of before the restart is not readable yet", "list", v.in.Resource, "err", refusal.Err)
		t.Update(dialog.Update{To: v.to, State: dialog.Unknown})
		s.again(t, v)
	case v.root == nil:
		refuse(t, v.to, refusal)
		s.remove(t, v)
	case refusal.Status >= 500: // may pass: the list keeps its members meanwhile
		s.s.limit.Log(t.Now, s.s.opt.Log, slog.LevelWarn, "list keeps its members: not readable now", "list", v.in.Resource, "err", refusal.Err)
		s.again(t, v)
	default:
		reason := dialog.NoResource
		if refusal.Status == 403 {
			reason = dialog.Rejected
		}
		t.Update(dialog.Update{To: v.to, State: dialog.Terminated, Reason: reason, View: v})
		s.remove(t, v)
	}
}

// again reads a view's list once more after a while.
func (s *Shard) again(t *dialog.Turn, v *view) {
	first := firstRetry
	if v.root == nil { // its watcher would be shown nothing
		first = resumedRetry
	}
	wait := min(first<<min(v.retries, 10), lastRetry)
	v.retries++
	t.CancelTimer(v.retry)
	v.retry = t.SetTimer(s.s.opt.Component, v.id|retryTimer, t.Now.Add(wait))
}

// allowed is the default list policy (RL-07): a user's list is for its owner; a
// global service has none and is for every watcher who is known.
func (s *Shard) allowed(tree *list.Tree, watcher dialog.Identity) bool {
	if s.s.opt.Open {
		return true
	}
	if watcher.URI == "" {
		return false
	}
	rest, ok := strings.CutPrefix(tree.Document, servicesAUID+"/users/")
	if !ok {
		return true
	}
	xui, _, _ := strings.Cut(rest, "/")
	if u, err := sip.ParseURI(xui); err == nil {
		return u.Key() == watcher.URI
	}
	u, err := sip.ParseURI(watcher.URI)
	return err == nil && u.User == xui && (s.s.opt.Local == nil || s.s.opt.Local(u.Host))
}

// Detach implements dialog.Source.
func (s *Shard) Detach(t *dialog.Turn, _ dialog.Interest, to dialog.SinkRef) {
	if v := s.byRef[to]; v != nil {
		s.remove(t, v)
	}
}

// remove ends a view and every attachment of its members (RL-37). Its last
// state can still be rendered.
func (s *Shard) remove(t *dialog.Turn, v *view) {
	for _, m := range v.members {
		v.detach(t, m)
	}
	delete(s.views, v.id)
	delete(s.byRef, v.to)
	if set := s.byList[v.in.Resource]; set != nil {
		delete(set, v)
		if len(set) == 0 {
			delete(s.byList, v.in.Resource)
		}
	}
	t.CancelTimer(v.timer)
	t.CancelTimer(v.retry)
	s.s.stats.Views.Add(-1)
}

// ListChanged rebuilds the live views of a list whose documents changed.
func (s *Shard) ListChanged(t *dialog.Turn, key string) {
	for v := range s.byList[key] {
		s.resolve(t, v)
	}
}

// Marks of timers that are not about the first NOTIFY: a list is to be read
// again, or has waited long enough after a restart.
const (
	retryTimer  = 1 << 55
	resumeTimer = 1 << 54
)

// Timer implements dialog.Component: a NOTIFY has waited long enough for its
// members, or a list is to be read again.
func (s *Shard) Timer(t *dialog.Turn, id uint64) {
	v := s.views[id&^(retryTimer|resumeTimer)]
	switch {
	case v == nil:
	case id&resumeTimer != 0:
		if v.back {
			v.whole(t)
		}
	case id&retryTimer != 0:
		s.resolve(t, v)
	default:
		v.begin(t)
	}
}

// Update implements dialog.Sink: news of a member.
func (s *Shard) Update(t *dialog.Turn, u dialog.Update) {
	v := s.views[u.To.ID]
	if v == nil {
		return
	}
	if m := v.members[u.To.Member]; m != nil {
		v.update(t, m, u)
	}
}

func newToken() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// ViewInfo describes a list subscription to an operator.
type ViewInfo struct {
	List    string       `json:"list"`
	Watcher string       `json:"watcher"`
	Members []MemberInfo `json:"members"`
}

// MemberInfo describes a member of a view.
type MemberInfo struct {
	URI     string    `json:"uri"`
	Depth   int       `json:"depth"`
	State   string    `json:"state"`
	Reason  string    `json:"reason,omitempty"`
	Changed time.Time `json:"changed"`
}

// Describe lists the views of a list in this shard.
func (s *Shard) Describe(key string) []ViewInfo {
	var out []ViewInfo
	for v := range s.byList[key] {
		in := ViewInfo{List: key, Watcher: v.in.Watcher.URI, Members: []MemberInfo{}}
		if v.root != nil {
			v.root.describe(&in, 0)
		}
		out = append(out, in)
	}
	return out
}

// Tables counts what the shard holds, as dialog.Runtime.Tables wants it.
func (s *Shard) Tables(add func(name string, n int)) {
	add("rls views", len(s.views)+len(s.byRef)+len(s.byList))
	for _, v := range s.views {
		add("rls members", len(v.members))
	}
}
