package sql

import (
	"fmt"
	"strings"

	"github.com/lib/pq"

	"rollcall/dialog"
	"rollcall/pa"
)

// column names a column and finds its value in a row. The pointer's type is the column's.
type column[R any] struct {
	name string
	at   func(*R) any
}

// table is what both engines' statements are made of. The first keys columns are the primary key.
type table[R any] struct {
	name    string
	keys    int
	columns []column[R]

	sel          string
	upsertSQLite string
	upsertPG     string
}

var subscriptions = newTable("subscription", 1, []column[dialog.SubscriptionRow]{
	{"id", func(r *dialog.SubscriptionRow) any { return &r.ID }},
	{"shard", func(r *dialog.SubscriptionRow) any { return &r.Shard }},
	{"event", func(r *dialog.SubscriptionRow) any { return &r.Event }},
	{"event_id", func(r *dialog.SubscriptionRow) any { return &r.EventID }},
	{"resource", func(r *dialog.SubscriptionRow) any { return &r.Resource }},
	{"watcher", func(r *dialog.SubscriptionRow) any { return &r.Watcher }},
	{"call_id", func(r *dialog.SubscriptionRow) any { return &r.CallID }},
	{"local_uri", func(r *dialog.SubscriptionRow) any { return &r.LocalURI }},
	{"remote_uri", func(r *dialog.SubscriptionRow) any { return &r.RemoteURI }},
	{"local_tag", func(r *dialog.SubscriptionRow) any { return &r.LocalTag }},
	{"remote_tag", func(r *dialog.SubscriptionRow) any { return &r.RemoteTag }},
	{"remote_target", func(r *dialog.SubscriptionRow) any { return &r.RemoteTarget }},
	{"route_set", func(r *dialog.SubscriptionRow) any { return &r.RouteSet }},
	{"local_contact", func(r *dialog.SubscriptionRow) any { return &r.LocalContact }},
	{"flow", func(r *dialog.SubscriptionRow) any { return &r.Flow }},
	{"accept", func(r *dialog.SubscriptionRow) any { return &r.Accept }},
	{"encoding", func(r *dialog.SubscriptionRow) any { return &r.Encoding }},
	{"user_agent", func(r *dialog.SubscriptionRow) any { return &r.UserAgent }},
	{"remote_cseq", func(r *dialog.SubscriptionRow) any { return &r.RemoteCSeq }},
	{"cseq_ceiling", func(r *dialog.SubscriptionRow) any { return &r.CSeqCeiling }},
	{"version_offset", func(r *dialog.SubscriptionRow) any { return &r.VersionOffset }},
	{"list", func(r *dialog.SubscriptionRow) any { return &r.List }},
	{"told", func(r *dialog.SubscriptionRow) any { return &r.Told }},
	{"created_ms", func(r *dialog.SubscriptionRow) any { return &r.CreatedMS }},
	{"expires_ms", func(r *dialog.SubscriptionRow) any { return &r.ExpiresMS }},
})

var publications = newTable("publication", 3, []column[pa.PublicationRow]{
	{"resource", func(r *pa.PublicationRow) any { return &r.Resource }},
	{"event", func(r *pa.PublicationRow) any { return &r.Event }},
	{"id", func(r *pa.PublicationRow) any { return &r.ID }},
	{"etag", func(r *pa.PublicationRow) any { return &r.ETag }},
	{"content_type", func(r *pa.PublicationRow) any { return &r.ContentType }},
	{"body", func(r *pa.PublicationRow) any { return &r.Body }},
	{"seq", func(r *pa.PublicationRow) any { return &r.Seq }},
	{"updated_ms", func(r *pa.PublicationRow) any { return &r.UpdatedMS }},
	{"expires_ms", func(r *pa.PublicationRow) any { return &r.ExpiresMS }},
})

var remotes = newTable("remote_subscription", 1, []column[dialog.RemoteRow]{
	{"id", func(r *dialog.RemoteRow) any { return &r.ID }},
	{"shard", func(r *dialog.RemoteRow) any { return &r.Shard }},
	{"event", func(r *dialog.RemoteRow) any { return &r.Event }},
	{"resource", func(r *dialog.RemoteRow) any { return &r.Resource }},
	{"watcher", func(r *dialog.RemoteRow) any { return &r.Watcher }},
	{"call_id", func(r *dialog.RemoteRow) any { return &r.CallID }},
	{"local_uri", func(r *dialog.RemoteRow) any { return &r.LocalURI }},
	{"remote_tag", func(r *dialog.RemoteRow) any { return &r.RemoteTag }},
	{"remote_target", func(r *dialog.RemoteRow) any { return &r.RemoteTarget }},
	{"route_set", func(r *dialog.RemoteRow) any { return &r.RouteSet }},
	{"accept", func(r *dialog.RemoteRow) any { return &r.Accept }},
	{"remote_cseq", func(r *dialog.RemoteRow) any { return &r.RemoteCSeq }},
	{"cseq_ceiling", func(r *dialog.RemoteRow) any { return &r.CSeqCeiling }},
	{"state", func(r *dialog.RemoteRow) any { return (*uint8)(&r.State) }},
	{"leaving", func(r *dialog.RemoteRow) any { return &r.Leaving }},
	{"content_type", func(r *dialog.RemoteRow) any { return &r.ContentType }},
	{"body", func(r *dialog.RemoteRow) any { return &r.Body }},
	{"want_ms", func(r *dialog.RemoteRow) any { return &r.WantMS }},
	{"created_ms", func(r *dialog.RemoteRow) any { return &r.CreatedMS }},
	{"expires_ms", func(r *dialog.RemoteRow) any { return &r.ExpiresMS }},
})

// newTable writes
//
//	INSERT INTO t (k, a) VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET a = excluded.a
//	INSERT INTO t (k, a) SELECT * FROM unnest($1::text[], $2::bigint[]) ON CONFLICT ...
func newTable[R any](name string, keys int, columns []column[R]) *table[R] {
	var names, marks, arrays, sets []string
	var zero R
	for i, c := range columns {
		names = append(names, c.name)
		marks = append(marks, "?")
		var typ string
		switch c.at(&zero).(type) {
		case *string:
			typ = "text"
		case *[]byte:
			typ = "bytea"
		case *bool:
			typ = "boolean"
		default:
			typ = "bigint"
		}
		arrays = append(arrays, fmt.Sprintf("$%d::%s[]", i+1, typ))
		if i >= keys {
			sets = append(sets, c.name+" = excluded."+c.name)
		}
	}
	list := strings.Join(names, ", ")
	conflict := " ON CONFLICT (" + strings.Join(names[:keys], ", ") + ") DO UPDATE SET " + strings.Join(sets, ", ")
	return &table[R]{
		name: name, keys: keys, columns: columns,
		sel:          "SELECT " + list + " FROM " + name,
		upsertSQLite: "INSERT INTO " + name + " (" + list + ") VALUES (" + strings.Join(marks, ", ") + ")" + conflict,
		upsertPG:     "INSERT INTO " + name + " (" + list + ") SELECT * FROM unnest(" + strings.Join(arrays, ", ") + ")" + conflict,
	}
}

// args appends a row's values as SQLite takes them.
func (t *table[R]) args(dst []any, r *R) []any {
	for _, c := range t.columns {
		switch p := c.at(r).(type) {
		case *string:
			dst = append(dst, *p)
		case *[]byte:
			if *p == nil {
				dst = append(dst, []byte{}) // nil would be NULL
			} else {
				dst = append(dst, *p)
			}
		case *bool:
			dst = append(dst, *p)
		default:
			dst = append(dst, integer(p))
		}
	}
	return dst
}

// arrays gives one array per column, as PostgreSQL's unnest takes them.
func (t *table[R]) arrays(rows []R) []any {
	out := make([]any, len(t.columns))
	for i, c := range t.columns {
		switch c.at(&rows[0]).(type) {
		case *string:
			a := make(pq.StringArray, len(rows))
			for j := range rows {
				a[j] = escape(*c.at(&rows[j]).(*string))
			}
			out[i] = a
		case *[]byte:
			a := make(pq.ByteaArray, len(rows))
			for j := range rows {
				a[j] = *c.at(&rows[j]).(*[]byte)
			}
			out[i] = a
		case *bool:
			a := make(pq.BoolArray, len(rows))
			for j := range rows {
				a[j] = *c.at(&rows[j]).(*bool)
			}
			out[i] = a
		default:
			a := make(pq.Int64Array, len(rows))
			for j := range rows {
				a[j] = integer(c.at(&rows[j]))
			}
			out[i] = a
		}
	}
	return out
}

func integer(p any) int64 {
	switch p := p.(type) {
	case *int64:
		return *p
	case *uint64:
		return int64(*p)
	case *uint32:
		return int64(*p)
	case *uint8:
		return int64(*p)
	}
	panic(fmt.Sprintf("sql: column of type %T", p))
}
