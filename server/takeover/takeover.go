package takeover

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/sql"
)

// Peer is the kind of server that owned the state.
type Peer string

// The peers whose tables are known.
const (
	Kamailio Peer = "kamailio"
	OpenSIPS Peer = "opensips"
)

// Options says what the store's server is like. Key, Package, Check and Decide are needed.
type Options struct {
	Peer Peer
	// Key is the canonical key of a URI and whether its domain is local.
	Key func(uri string) (key string, local bool, err error)
	// Package finds an event package, nil when it is not served.
	Package func(name string) *dialog.Package
	// Check tells why a publication is of no use to the server.
	Check func(row *pa.PublicationRow) error
	// Decide is what a watcher of a presentity gets: active, pending or terminated. docs has the documents that were
	// taken, or would be.
	Decide func(ctx context.Context, docs *sql.Store, presentity, watcher string) (status string, err error)
	// Unclean is called before the first dialog is stored: it has each dialog notified at the next start.
	Unclean func(ctx context.Context) error
	// NoUsers is why users are not taken, "" when they are.
	NoUsers string
	DryRun  bool
	Each    func(Row) // sees every row; may be nil
	Now     time.Time
}

// batchSize is how many rows one transaction takes.
const batchSize = 500

// takenMeta is the meta value that says what was taken, for as long as the peer's row counts: lines of a Unix time in ms
// and hashes in hex.
const takenMeta = "import_taken"

// run is an import under way.
type run struct {
	Options
	ctx   context.Context
	src   *sql.PeerDB
	dst   *sql.Store
	docs  *sql.Store // where taken documents are
	now   int64      // Unix ms
	table *Table
	all   []*Table

	known    map[string]bool      // hashes of what was taken, now or earlier
	fresh    map[string]bool      // ... now
	until    int64                // when the last of fresh expires
	earlier  string               // lines of takenMeta that still count
	dialogs  map[string]bool      // IDs in the store
	calls    map[[3]string]bool   // dialogs in the store as the peers know them
	pubs     map[string]*pubState // by resource and event
	batch    []dialog.Write
	waiting  []Row // reported once the batch is stored
	unclean  bool
	backEnds map[string]bool // Call-IDs of the peer's own subscriptions
}

type pubState struct {
	ids  map[string]bool
	tags map[string]bool
	seq  uint64
}

// Run takes what it can. An error ends it where it is; what was taken stays, and the next run goes on.
func Run(ctx context.Context, src *sql.PeerDB, dst *sql.Store, opt Options) ([]*Table, error) {
	if opt.Peer != Kamailio && opt.Peer != OpenSIPS {
		return nil, fmt.Errorf("%q is neither kamailio nor opensips", opt.Peer)
	}
	if opt.Now.IsZero() {
		opt.Now = time.Now()
	}
	r := &run{
		Options: opt, ctx: ctx, src: src, dst: dst, docs: dst, now: opt.Now.UnixMilli(), known: make(map[string]bool), fresh: make(map[string]bool),
		dialogs: make(map[string]bool), calls: make(map[[3]string]bool), pubs: make(map[string]*pubState), backEnds: make(map[string]bool),
	}
	if opt.DryRun {
		docs, err := sql.Open(ctx, "memory", sql.Options{})
		if err != nil {
			return nil, err
		}
		defer docs.Close()
		r.docs = docs
	}
	if err := r.load(); err != nil {
		return nil, err
	}
	err := r.tables()
	if err == nil {
		err = r.flush()
	}
	return r.all, errors.Join(err, r.remember())
}

func (r *run) tables() error {
	found := 0
	for _, t := range []struct {
		name    string
		columns []string // needed
		more    []string // taken when they are there
		order   []string
		row     func(row) (Outcome, string)
	}{
		{"xcap", []string{"username", "domain", "doc", "doc_type", "doc_uri"}, nil, []string{"id"}, r.document},
		{"presentity", []string{"username", "domain", "event", "etag", "expires", "body"}, []string{"received_time"}, []string{"received_time", "id"}, r.publication},
		{"rls_watchers", dialogColumns, dialogExtras, []string{"id"}, func(v row) (Outcome, string) { return r.dialog(v, true) }},
		{"active_watchers", dialogColumns, dialogExtras, []string{"id"}, func(v row) (Outcome, string) { return r.dialog(v, false) }},
		{"subscriber", []string{"username", "domain"}, []string{"password", "ha1", "ha1b", "ha1_sha256", "ha1_sha512t256"}, []string{"id"}, r.subscriber},
		{"watchers", []string{"presentity_uri", "watcher_username", "watcher_domain", "event", "status"}, []string{"reason"}, []string{"id"}, r.watcher},
	} {
		r.table = &Table{Table: t.name}
		r.all = append(r.all, r.table)
		has, err := r.src.Columns(r.ctx, t.name)
		if err != nil {
			return err
		}
		if len(has) == 0 {
			r.table.Fault = "there is no such table"
			continue
		}
		if i := slices.IndexFunc(t.columns, func(c string) bool { return !slices.Contains(has, c) }); i >= 0 {
			r.table.Fault = "the table has no column " + t.columns[i]
			continue
		}
		if t.name == "subscriber" && r.NoUsers != "" {
			r.table.Fault = r.NoUsers
			continue
		}
		if t.name == "active_watchers" {
			if err := r.loadBackEnds(); err != nil {
				return err
			}
		}
		found++
		columns := slices.Concat([]string{"id"}, t.columns, t.more)
		order := slices.DeleteFunc(t.order, func(c string) bool { return !slices.Contains(has, c) })
		err = r.src.Each(r.ctx, t.name, columns, order, func(values []sql.NullString) error {
			v := row{columns, values}
			for _, c := range t.columns {
				if x := v.value(c); !x.Valid {
					r.report(v, NotTaken, "column "+c+" is NULL")
					return nil
				}
			}
			outcome, reason := t.row(v)
			if outcome == "" { // a fault of ours
				return errors.New(reason)
			}
			r.report(v, outcome, reason)
			if len(r.batch) >= batchSize {
				return r.flush()
			}
			return nil
		})
		if err == nil {
			err = r.flush()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	if found == 0 {
		return fmt.Errorf("none of %s's tables is there: is it the right database?", r.Peer)
	}
	return nil
}

// report tells of a row, of one that waits for its batch only when that is stored.
func (r *run) report(v row, outcome Outcome, reason string) {
	x := Row{Table: r.table.Table, ID: v.text("id"), Row: v.about(), Outcome: outcome, Reason: reason}
	if len(r.batch) > 0 {
		r.waiting = append(r.waiting, x)
		return
	}
	r.tell(x)
}

func (r *run) tell(x Row) {
	r.table.add(x)
	if r.Each != nil {
		r.Each(x)
	}
}

// flush stores what waits.
func (r *run) flush() error {
	if len(r.batch) > 0 && !r.DryRun {
		if err := r.store(); err != nil {
			return err
		}
	}
	r.batch = r.batch[:0]
	for _, x := range r.waiting {
		r.tell(x)
	}
	r.waiting = r.waiting[:0]
	return nil
}

func (r *run) store() error {
	if !r.unclean && r.Unclean != nil && slices.ContainsFunc(r.batch, func(w dialog.Write) bool { _, ok := w.(dialog.PutSubscription); return ok }) {
		if err := r.Unclean(r.ctx); err != nil {
			return err
		}
		r.unclean = true
	}
	return r.dst.Commit(r.ctx, r.batch)
}

// remember notes what was taken, so that it is not taken again when it has ended here.
func (r *run) remember() error {
	if len(r.fresh) == 0 || r.DryRun {
		return nil
	}
	var b strings.Builder
	b.WriteString(r.earlier)
	b.WriteString(strconv.FormatInt(r.until, 10))
	for h := range r.fresh {
		b.WriteString(" " + h)
	}
	return r.dst.SetMeta(r.ctx, takenMeta, b.String()+"\n")
}

// load reads what the store has.
func (r *run) load() error {
	taken, err := r.dst.Meta(r.ctx, takenMeta)
	if err != nil && !errors.Is(err, sql.ErrNotFound) {
		return err
	}
	for line := range strings.Lines(taken) {
		hashes := strings.Fields(line)
		if len(hashes) == 0 {
			continue
		}
		if until, err := strconv.ParseInt(hashes[0], 10, 64); err != nil || until < r.now {
			continue // the rows have expired where they came from, too
		}
		r.earlier += line
		for _, h := range hashes[1:] {
			r.known[h] = true
		}
	}
	err = r.dst.Subscriptions(r.ctx, func(s dialog.SubscriptionRow) error {
		r.dialogs[s.ID] = true
		if s.LocalTag != "" {
			r.calls[[3]string{s.CallID, s.LocalTag, s.RemoteTag}] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.dst.Publications(r.ctx, func(p pa.PublicationRow) error {
		st := r.published(p.Resource, p.Event)
		st.ids[p.ID], st.tags[p.ETag], st.seq = true, true, max(st.seq, p.Seq)
		return nil
	})
}

func (r *run) published(resource, event string) *pubState {
	k := resource + " " + event
	if r.pubs[k] == nil {
		r.pubs[k] = &pubState{ids: make(map[string]bool), tags: make(map[string]bool)}
	}
	return r.pubs[k]
}

// hash is a number that the same words always give.
func hash(words ...string) uint64 {
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return binary.BigEndian.Uint64(sum[:])
}

// once tells whether something has not been taken before, and that it is now.
func (r *run) once(h uint64, expiresMS int64) bool {
	s := fmt.Sprintf("%016x", h)
	if r.known[s] {
		return false
	}
	r.known[s], r.fresh[s], r.until = true, true, max(r.until, expiresMS)
	return true
}

// row is a row of the peer's.
type row struct {
	columns []string
	values  []sql.NullString
}

func (v row) value(column string) sql.NullString {
	if i := slices.Index(v.columns, column); i >= 0 {
		return v.values[i]
	}
	return sql.NullString{}
}

// text is a column without the spaces that columns of type CHAR are filled up with; "" for NULL.
func (v row) text(column string) string { return strings.TrimRight(v.value(column).String, " ") }

// number is a column as an integer.
func (v row) number(column string) (int64, error) {
	n, err := strconv.ParseInt(v.text(column), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("column %s is not a number", column)
	}
	return n, nil
}

// about says in a few words what a row is about.
func (v row) about() string {
	var s string
	switch {
	case v.value("doc_uri").Valid:
		return clip(v.text("doc_uri") + " of " + v.text("username") + "@" + v.text("domain"))
	case v.value("presentity_uri").Valid:
		s = v.text("watcher_username") + "@" + v.text("watcher_domain") + " watches " + v.text("presentity_uri")
	default:
		s = v.text("username") + "@" + v.text("domain")
	}
	if e := v.text("event"); e != "" {
		s += " (" + e + ")"
	}
	return clip(s)
}

// clip bounds what a column can put into a report.
func clip(s string) string {
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return s
}

// expires reads a time in Unix seconds and tells whether it is over.
func (r *run) expires(v row) (ms int64, over bool, err error) {
	sec, err := v.number("expires")
	if err != nil {
		return 0, false, err
	}
	if sec > 1<<40 {
		return 0, false, errors.New("column expires is not a time in seconds")
	}
	return sec * 1000, sec*1000 <= r.now, nil
}

// local is the key of a URI of a local domain, or why it is not taken.
func (r *run) local(uri string) (key, reason string) {
	key, local, err := r.Key(uri)
	switch {
	case err != nil:
		return "", "not a SIP URI: " + clip(uri)
	case !local:
		_, domain, _ := strings.Cut(key, "@")
		return "", "domain " + clip(domain) + " is not one of ours; name it with --domain"
	}
	return key, ""
}
