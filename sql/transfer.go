package sql

import (
	"bufio"
	"bytes"
	"context"
	stdsql "database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"

	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/sip/auth"
)

// An export is lines of JSON: a Header, an object with one key for each row, whose name is the row's table, and at last the
// number of rows of each table, by which one that was cut off is known:
//
//	{"rollcall_store":1,"schema":5,"engine":"sqlite","exported":"2026-01-02T03:04:05Z"}
//	{"subscription":{"id":"...","shard":7,...}}
//	{"end":{"subscription":1,"remote_subscription":0,"publication":0,"document":0,"meta":0,"subscriber":0}}
//
// A string or body that is not UTF-8 is {"base64":"..."}. Times are Unix milliseconds, as in the tables. Users have hashes
// only: one whose password another program keeps in plain text is exported with hashes of it.

// exportFormat is the version of the format. A later one is refused.
const exportFormat = 1

// lineLimit bounds a line of an export in bytes: a document of 4 MiB in base64 fits.
const lineLimit = 16 << 20

// importRows is how many rows are written at once.
const importRows = 1000

// Header is the first line of an export.
type Header struct {
	Format   int       `json:"rollcall_store"`
	Schema   int64     `json:"schema"`
	Engine   string    `json:"engine"`
	Exported time.Time `json:"exported"`
}

// Counts are rows by table.
type Counts struct {
	Subscriptions int64 `json:"subscription"`
	Remotes       int64 `json:"remote_subscription"`
	Publications  int64 `json:"publication"`
	Documents     int64 `json:"document"`
	Meta          int64 `json:"meta"`
	Subscribers   int64 `json:"subscriber"`
}

// ErrNotEmpty says that an Import would mix two stores.
var ErrNotEmpty = errors.New("sql: the store is not empty")

var documents = newTable("document", 1, []column[Document]{
	{"selector", func(r *Document) any { return &r.Selector }},
	{"etag", func(r *Document) any { return &r.ETag }},
	{"content_type", func(r *Document) any { return &r.ContentType }},
	{"body", func(r *Document) any { return &r.Body }},
	{"updated_ms", func(r *Document) any { return &r.UpdatedMS }},
})

// metaRow is a value about the database.
type metaRow struct{ Key, Value string }

var metas = newTable("meta", 1, []column[metaRow]{
	{"key", func(r *metaRow) any { return &r.Key }},
	{"value", func(r *metaRow) any { return &r.Value }},
})

// exportedSubscriber is how a Subscriber is written. It is no table of ours alone, hence not by columns.
var exportedSubscriber = newTable("subscriber", 2, []column[Subscriber]{
	{"username", func(r *Subscriber) any { return &r.Username }},
	{"domain", func(r *Subscriber) any { return &r.Domain }},
	{"md5", func(r *Subscriber) any { return &r.Secrets[auth.MD5] }},
	{"sha256", func(r *Subscriber) any { return &r.Secrets[auth.SHA256] }},
	{"sha512_256", func(r *Subscriber) any { return &r.Secrets[auth.SHA512256] }},
	{"ha1b", func(r *Subscriber) any { return &r.HA1B }},
})

// Export writes all rows as of one moment. It holds a row at a time, and a server may run meanwhile.
func (s *Store) Export(ctx context.Context, to io.Writer) (Counts, error) {
	var n Counts
	if s.mem != nil {
		return n, errors.New("sql: export: the memory store has no rows")
	}
	schema, err := s.current(ctx)
	if err != nil {
		return n, fmt.Errorf("sql: export: %w", err)
	}
	w := bufio.NewWriterSize(to, 64<<10)
	head, err := json.Marshal(Header{exportFormat, schema, s.Engine(), time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return n, err
	}
	w.Write(append(head, '\n'))
	err = s.snapshot(ctx, func(q sqlx.QueryerContext) error {
		err := loadFrom(ctx, s, q, subscriptions, writeRows(w, subscriptions, &n.Subscriptions))
		if err == nil {
			err = loadFrom(ctx, s, q, remotes, writeRows(w, remotes, &n.Remotes))
		}
		if err == nil {
			err = loadFrom(ctx, s, q, publications, writeRows(w, publications, &n.Publications))
		}
		if err == nil {
			err = loadFrom(ctx, s, q, documents, writeRows(w, documents, &n.Documents))
		}
		if err == nil {
			write := writeRows(w, metas, &n.Meta)
			err = loadFrom(ctx, s, q, metas, func(r metaRow) error {
				if r.Key == ownerMeta {
					return nil
				}
				return write(r)
			})
		}
		if err == nil {
			users := writeRows(w, exportedSubscriber, &n.Subscribers)
			err = s.eachSubscriberFrom(ctx, q, "", nil, func(r *subscriberRow) error {
				if r.password != "" && r.HA1B == "" {
					r.HA1B = auth.MD5.Sum(r.Username + "@" + r.Domain + ":" + r.Domain + ":" + r.password)
				}
				return users(r.Subscriber)
			})
		}
		return err
	})
	if err != nil {
		return n, fmt.Errorf("sql: export: %w", err)
	}
	end, err := json.Marshal(map[string]Counts{"end": n})
	if err != nil {
		return n, err
	}
	w.Write(append(end, '\n'))
	return n, w.Flush()
}

// snapshot runs f with queries that all see the same moment.
func (s *Store) snapshot(ctx context.Context, f func(sqlx.QueryerContext) error) error {
	opt := &stdsql.TxOptions{ReadOnly: true}
	if s.engine == enginePostgres {
		opt.Isolation = stdsql.LevelRepeatableRead
	}
	tx, err := s.r.BeginTxx(ctx, opt)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	return f(tx)
}

// writeRows gives a function that writes rows as lines and counts them.
func writeRows[R any](w *bufio.Writer, t *table[R], n *int64) func(R) error {
	var b []byte
	return func(row R) error {
		b = append(b[:0], `{"`...)
		b = append(b, t.name...)
		b = append(b, `":{`...)
		for i, c := range t.columns {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, '"')
			b = append(b, c.name...)
			b = append(b, `":`...)
			switch p := c.at(&row).(type) {
			case *string:
				b = appendText(b, *p)
			case *[]byte:
				b = appendText(b, string(*p))
			case *bool:
				b = strconv.AppendBool(b, *p)
			default:
				b = strconv.AppendInt(b, integer(p), 10)
			}
		}
		b = append(b, "}}\n"...)
		*n++
		_, err := w.Write(b)
		return err
	}
}

func appendText(b []byte, v string) []byte {
	if !utf8.ValidString(v) {
		b = append(b, `{"base64":"`...)
		b = base64.StdEncoding.AppendEncode(b, []byte(v))
		return append(b, `"}`...)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.Encode(v) // of a string: cannot fail
	return append(b, bytes.TrimSuffix(out.Bytes(), []byte("\n"))...)
}

// BadLine is a line that Import left out.
type BadLine struct {
	Line int64 // from 1
	Err  error
}

func (e *BadLine) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }
func (e *BadLine) Unwrap() error { return e.Err }

// ImportOptions of Import.
type ImportOptions struct {
	Merge bool // into a store with rows; those of the same keys are replaced
	Check bool // read and check all, write nothing
	// Bad is told of each line that is left out; nil ends the import at the first one.
	Bad func(*BadLine)
	// Row may refuse a dialog.SubscriptionRow, dialog.RemoteRow or pa.PublicationRow; nil takes all.
	Row func(row any) error
}

// Import reads what Export wrote, on whatever engine, and tells how many rows it stored. Rows are written in pieces as they
// are read: what was written before an error stays. A line that cannot be read is left out; a header that is none, a
// format or schema that is too new, an input that was cut off and every error of the database are errors.
func (s *Store) Import(ctx context.Context, from io.Reader, opt ImportOptions) (Counts, error) {
	in := &importer{s: s, opt: opt}
	if err := in.run(ctx, from); err != nil {
		return in.n, fmt.Errorf("sql: import: %w", err)
	}
	return in.n, nil
}

type importer struct {
	s    *Store
	opt  ImportOptions
	old  bool // exported before the newest columns were there
	n    Counts
	read Counts
	bad  int64

	subs    []dialog.SubscriptionRow
	remotes []dialog.RemoteRow
	pubs    []pa.PublicationRow
	docs    []Document
	meta    []metaRow
	users   []Subscriber
}

func (in *importer) run(ctx context.Context, from io.Reader) error {
	s := in.s
	if s.mem != nil {
		return errors.New("the memory store keeps no rows")
	}
	if s.beside && !in.opt.Check {
		return errors.New("the database was opened beside a server")
	}
	lines := bufio.NewScanner(from)
	lines.Buffer(make([]byte, 64<<10), lineLimit)
	var head Header
	if !lines.Scan() {
		return cmpErr(lines.Err(), errors.New("nothing to read"))
	}
	if err := json.Unmarshal(lines.Bytes(), &head); err != nil || head.Format == 0 {
		return errors.New("line 1 is not the header of an export")
	}
	if head.Format > exportFormat {
		return fmt.Errorf("the export has format %d, this program knows %d", head.Format, exportFormat)
	}
	schema, err := s.current(ctx)
	if err != nil {
		return err
	}
	if head.Schema > schema {
		return fmt.Errorf("%w: the export has version %d, the store %d", ErrNewerSchema, head.Schema, schema)
	}
	in.old = head.Schema < schema
	if !in.opt.Merge && !in.opt.Check {
		if err := in.empty(ctx); err != nil {
			return err
		}
	}
	ended := false
	for at := int64(2); lines.Scan(); at++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		if ended {
			return fmt.Errorf("line %d: there is something after the end", at)
		}
		var err error
		if ended, err = in.line(lines.Bytes()); err != nil {
			bad := &BadLine{at, err}
			if ended || in.opt.Bad == nil {
				return bad
			}
			in.bad++
			in.opt.Bad(bad)
		}
		if len(in.subs)+len(in.remotes)+len(in.pubs)+len(in.docs)+len(in.meta)+len(in.users) >= importRows {
			if err := in.flush(ctx); err != nil {
				return fmt.Errorf("up to line %d: %w", at, err)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if err := in.flush(ctx); err != nil {
		return err
	}
	if !ended {
		return errors.New("the export is cut off: its last line is missing")
	}
	return nil
}

func cmpErr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// empty is ErrNotEmpty when there are rows; values about the database do not count.
func (in *importer) empty(ctx context.Context) error {
	for _, name := range []string{"subscription", "remote_subscription", "publication", "document", "subscriber"} {
		var n int
		if err := in.s.r.GetContext(ctx, &n, `SELECT count(*) FROM (SELECT 1 FROM `+name+` LIMIT 1) AS x`); err != nil {
			return err
		}
		if n > 0 {
			return fmt.Errorf("%w: table %s has rows", ErrNotEmpty, name)
		}
	}
	return nil
}

// line takes a row, or the end.
func (in *importer) line(b []byte) (end bool, err error) {
	var row map[string]json.RawMessage
	if err := json.Unmarshal(b, &row); err != nil {
		return false, err
	}
	if len(row) != 1 {
		return false, fmt.Errorf("%d keys, want the name of a table", len(row))
	}
	for name, v := range row {
		switch name {
		case "subscription":
			err = take(in, subscriptions, v, &in.subs, &in.read.Subscriptions)
		case "remote_subscription":
			err = take(in, remotes, v, &in.remotes, &in.read.Remotes)
		case "publication":
			err = take(in, publications, v, &in.pubs, &in.read.Publications)
		case "document":
			err = take(in, documents, v, &in.docs, &in.read.Documents)
		case "meta":
			err = take(in, metas, v, &in.meta, &in.read.Meta)
		case "subscriber":
			err = take(in, exportedSubscriber, v, &in.users, &in.read.Subscribers)
		case "end":
			var want Counts
			if err := json.Unmarshal(v, &want); err != nil {
				return true, err
			}
			if want != in.read && in.bad == 0 {
				return true, fmt.Errorf("the export has lost lines: %+v were written, %+v are there", want, in.read)
			}
			return true, nil
		default:
			err = fmt.Errorf("no table is called %q", name)
		}
	}
	return false, err
}

func take[R any](in *importer, t *table[R], v json.RawMessage, to *[]R, n *int64) error {
	var row R
	if err := t.decode(v, &row, in.old); err != nil {
		return fmt.Errorf("%s: %w", t.name, err)
	}
	if in.opt.Row != nil {
		if err := in.opt.Row(row); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	*to = append(*to, row)
	*n++
	return nil
}

// decode reads a row; of an old one columns may be missing.
func (t *table[R]) decode(b []byte, row *R, old bool) error {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(b, &values); err != nil {
		return err
	}
	for i, c := range t.columns {
		v, ok := values[c.name]
		if !ok && old && i >= t.keys {
			continue
		}
		if !ok {
			return fmt.Errorf("%s is missing", c.name)
		}
		delete(values, c.name)
		var err error
		switch p := c.at(row).(type) {
		case *string:
			var b []byte
			b, err = decodeText(v)
			*p = string(b)
		case *[]byte:
			*p, err = decodeText(v)
		default:
			if string(v) == "null" { // which json would ignore
				err = errors.New("null")
			} else {
				err = json.Unmarshal(v, p)
			}
			if n, ok := p.(*uint64); ok && *n > math.MaxInt64 {
				err = fmt.Errorf("%d is above 2^63-1", *n)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	for name := range values {
		return fmt.Errorf("there is no column %q", name)
	}
	return nil
}

func decodeText(v json.RawMessage) ([]byte, error) {
	if len(v) > 0 && v[0] == '{' {
		var b struct {
			Base64 *[]byte `json:"base64"`
		}
		dec := json.NewDecoder(bytes.NewReader(v))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&b); err != nil {
			return nil, err
		}
		if b.Base64 == nil {
			return nil, errors.New("neither a string nor base64")
		}
		return *b.Base64, nil
	}
	var s *string
	if err := json.Unmarshal(v, &s); err != nil {
		return nil, err
	}
	if s == nil {
		return nil, errors.New("null")
	}
	return []byte(*s), nil
}

// flush writes what was read.
func (in *importer) flush(ctx context.Context) error {
	s := in.s
	if !in.opt.Check {
		batch := make([]dialog.Write, 0, len(in.subs)+len(in.remotes)+len(in.pubs))
		for _, r := range in.subs {
			batch = append(batch, dialog.PutSubscription{Row: r})
		}
		for _, r := range in.remotes {
			batch = append(batch, dialog.PutRemote{Row: r})
		}
		for _, r := range in.pubs {
			batch = append(batch, pa.PutPublication{Row: r})
		}
		if err := s.Commit(ctx, batch); err != nil {
			return err
		}
		if err := putRows(ctx, s, documents, in.docs); err != nil {
			return err
		}
		if err := putRows(ctx, s, metas, in.meta); err != nil {
			return err
		}
		for _, u := range in.users {
			if _, err := s.PutSubscriber(ctx, u, Precondition{}); err != nil {
				return fmt.Errorf("user %s@%s: %w", u.Username, u.Domain, err)
			}
		}
	}
	in.n.Subscriptions += int64(len(in.subs))
	in.n.Remotes += int64(len(in.remotes))
	in.n.Publications += int64(len(in.pubs))
	in.n.Documents += int64(len(in.docs))
	in.n.Meta += int64(len(in.meta))
	in.n.Subscribers += int64(len(in.users))
	in.subs, in.remotes, in.pubs, in.docs, in.meta, in.users = in.subs[:0], in.remotes[:0], in.pubs[:0], in.docs[:0], in.meta[:0], in.users[:0]
	return nil
}

// putRows inserts or replaces rows of which no Write is made.
func putRows[R any](ctx context.Context, s *Store, t *table[R], rows []R) error {
	if len(rows) == 0 {
		return nil
	}
	// Of one key the last counts; one statement must not have it twice.
	seen := make(map[string]bool, len(rows))
	var last []R
	for i := range slices.Backward(rows) {
		if key := *t.columns[0].at(&rows[i]).(*string); !seen[key] {
			seen[key] = true
			last = append(last, rows[i])
		}
	}
	return s.retry(ctx, "import "+t.name, func(ctx context.Context) error {
		return s.transaction(ctx, true, func(exec execer) error {
			if s.engine == enginePostgres {
				return exec(t.upsertPG, t.arrays(last)...)
			}
			var args []any
			for i := range last {
				if err := exec(t.upsertSQLite, t.args(args[:0], &last[i])...); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// Integrity has the database check itself and gives what it finds: SQLite's integrity_check, at most 100 findings.
// PostgreSQL has no such check within a statement, so its pages are not looked at.
func (s *Store) Integrity(ctx context.Context) ([]string, error) {
	if s.engine != engineSQLite {
		return nil, nil
	}
	var found []string
	if err := s.r.SelectContext(ctx, &found, `PRAGMA integrity_check`); err != nil {
		return nil, fmt.Errorf("sql: integrity: %w", err)
	}
	if len(found) == 1 && found[0] == "ok" {
		return nil, nil
	}
	return found, nil
}
