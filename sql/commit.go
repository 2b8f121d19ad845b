package sql

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"modernc.org/sqlite"
	sqlitelib "modernc.org/sqlite/lib"

	"rollcall/dialog"
	"rollcall/pa"
)

// Commit applies a batch in one transaction. It takes dialog.PutSubscription, dialog.DeleteSubscription,
// dialog.SetCSeqCeiling, dialog.PutRemote, dialog.DeleteRemote, pa.PutPublication and pa.DeletePublication; any other type
// is an error and nothing is written.
// Of several writes of one key the last counts, and a ceiling is only ever raised except by a Put. An error can follow
// a transaction that did happen (the answer was lost), so repeat a failed batch or read the rows again: every write is
// idempotent. An error that comes of the values of a row wraps dialog.ErrUnstorable: repeating is in vain. ErrInUse and
// ErrTakenOver on PostgreSQL mean that our session was lost and another server has taken the database since.
//
// On SQLite Commits run one after the other; a caller with many small changes gets more done by joining them.
func (s *Store) Commit(ctx context.Context, batch []dialog.Write) error {
	p, err := plan(batch)
	if err != nil || p.statements() == 0 || s.mem != nil {
		return err
	}
	err = s.retry(ctx, "commit", func(ctx context.Context) error {
		if s.engine == enginePostgres {
			return s.commitPostgres(ctx, p)
		}
		return s.commitSQLite(ctx, p)
	})
	if err != nil && unstorable(err) {
		err = fmt.Errorf("%w: %w", dialog.ErrUnstorable, err)
	}
	return err
}

// unstorable tells the errors that come of a row's values, whatever state the database is in.
func unstorable(err error) bool {
	if e, ok := errors.AsType[*pq.Error](err); ok {
		switch e.Code.Class() {
		case "22", "23", "54": // data exception, constraint, limit of the program
			return true
		}
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		switch e.Code() & 0xff {
		case sqlitelib.SQLITE_CONSTRAINT, sqlitelib.SQLITE_TOOBIG, sqlitelib.SQLITE_MISMATCH:
			return true
		}
	}
	return false
}

// pubKey is the primary key of a publication; the write that deletes it is just that.
type pubKey = pa.DeletePublication

// writes is a batch in which each key occurs once, so their order means nothing.
type writes struct {
	subs     []dialog.SubscriptionRow
	subsGone []string
	ceilings []dialog.SetCSeqCeiling
	pubs     []pa.PublicationRow
	pubsGone []pubKey

	remotes     []dialog.RemoteRow
	remotesGone []string
}

func (p *writes) statements() int {
	return len(p.subs) + len(p.subsGone) + len(p.ceilings) + len(p.pubs) + len(p.pubsGone) + len(p.remotes) + len(p.remotesGone)
}

// plan keeps the last write of each key.
func plan(batch []dialog.Write) (*writes, error) {
	type subState struct {
		done bool // a later Put or Delete decides
		at   int  // 1 + index in ceilings, 0: none
	}
	p := &writes{}
	var subs map[string]subState
	var pubs map[pubKey]bool
	var remotes map[string]bool // made when there is one
	single := len(batch) == 1
	if !single {
		subs, pubs = make(map[string]subState, len(batch)), map[pubKey]bool{}
	}
	for i := len(batch) - 1; i >= 0; i-- {
		switch w := batch[i].(type) {
		case dialog.PutSubscription:
			if st := subs[w.Row.ID]; !st.done {
				p.subs = append(p.subs, w.Row)
				if st.at > 0 { // ceilings set after this Put
					last := &p.subs[len(p.subs)-1]
					last.CSeqCeiling = max(last.CSeqCeiling, p.ceilings[st.at-1].Ceiling)
					p.ceilings[st.at-1].ID = ""
				}
				if !single {
					subs[w.Row.ID] = subState{done: true}
				}
			}
		case dialog.DeleteSubscription:
			if st := subs[w.ID]; !st.done {
				p.subsGone = append(p.subsGone, w.ID)
				if st.at > 0 { // a ceiling for a row that is gone
					p.ceilings[st.at-1].ID = ""
				}
				if !single {
					subs[w.ID] = subState{done: true}
				}
			}
		case dialog.SetCSeqCeiling:
			st := subs[w.ID]
			switch {
			case st.done || w.ID == "":
			case st.at > 0:
				c := &p.ceilings[st.at-1]
				c.Ceiling = max(c.Ceiling, w.Ceiling)
			default:
				p.ceilings = append(p.ceilings, w)
				if !single {
					subs[w.ID] = subState{at: len(p.ceilings)}
				}
			}
		case pa.PutPublication:
			if w.Row.Seq > math.MaxInt64 {
				return nil, fmt.Errorf("sql: commit: %w: sequence number %d of a publication is above 2^63-1", dialog.ErrUnstorable, w.Row.Seq)
			}
			k := pubKey{Resource: w.Row.Resource, Event: w.Row.Event, ID: w.Row.ID}
			if !pubs[k] {
				p.pubs = append(p.pubs, w.Row)
				if !single {
					pubs[k] = true
				}
			}
		case pa.DeletePublication:
			if !pubs[w] {
				p.pubsGone = append(p.pubsGone, w)
				if !single {
					pubs[w] = true
				}
			}
		case dialog.PutRemote:
			if !remotes[w.Row.ID] {
				p.remotes = append(p.remotes, w.Row)
				remotes = mark(remotes, w.Row.ID)
			}
		case dialog.DeleteRemote:
			if !remotes[w.ID] {
				p.remotesGone = append(p.remotesGone, w.ID)
				remotes = mark(remotes, w.ID)
			}
		default:
			return nil, fmt.Errorf("sql: commit: %w: unknown write %T", dialog.ErrUnstorable, w)
		}
	}
	kept := p.ceilings[:0]
	for _, c := range p.ceilings {
		if c.ID != "" {
			kept = append(kept, c)
		}
	}
	p.ceilings = kept
	return p, nil
}

func mark(m map[string]bool, id string) map[string]bool {
	if m == nil {
		m = make(map[string]bool)
	}
	m[id] = true
	return m
}

const (
	deleteSubscription = `DELETE FROM subscription WHERE id = ?`
	raiseCeiling       = `UPDATE subscription SET cseq_ceiling = ? WHERE id = ? AND cseq_ceiling < ?`
	deletePublication  = `DELETE FROM publication WHERE resource = ? AND event = ? AND id = ?`
	deleteRemote       = `DELETE FROM remote_subscription WHERE id = ?`

	deleteSubscriptionsPG = `DELETE FROM subscription WHERE id = ANY ($1::text[])`
	raiseCeilingsPG       = `UPDATE subscription s SET cseq_ceiling = k.ceiling
		FROM unnest($1::text[], $2::bigint[]) AS k (id, ceiling) WHERE s.id = k.id AND s.cseq_ceiling < k.ceiling`
	deletePublicationsPG = `DELETE FROM publication p
		USING unnest($1::text[], $2::text[], $3::text[]) AS k (resource, event, id)
		WHERE p.resource = k.resource AND p.event = k.event AND p.id = k.id`
	deleteRemotesPG = `DELETE FROM remote_subscription WHERE id = ANY ($1::text[])`
)

var commitStatements = map[engine][]string{
	engineSQLite: {subscriptions.upsertSQLite, deleteSubscription, raiseCeiling, publications.upsertSQLite, deletePublication,
		remotes.upsertSQLite, deleteRemote, documents.upsertSQLite, metas.upsertSQLite, copies.upsertSQLite, deleteCopy},
	enginePostgres: {subscriptions.upsertPG, deleteSubscriptionsPG, raiseCeilingsPG, publications.upsertPG, deletePublicationsPG,
		remotes.upsertPG, deleteRemotesPG, documents.upsertPG, metas.upsertPG, copies.upsertPG, deleteCopies},
}

// execer runs a prepared statement, within a transaction or, for a single one, without.
type execer func(text string, args ...any) error

func (s *Store) commitSQLite(ctx context.Context, p *writes) error {
	return s.transaction(ctx, p.statements() > 1, func(exec execer) error {
		args := make([]any, 0, 32)
		for i := range p.subs {
			if err := exec(subscriptions.upsertSQLite, subscriptions.args(args, &p.subs[i])...); err != nil {
				return err
			}
		}
		for _, id := range p.subsGone {
			if err := exec(deleteSubscription, id); err != nil {
				return err
			}
		}
		for _, c := range p.ceilings {
			if err := exec(raiseCeiling, int64(c.Ceiling), c.ID, int64(c.Ceiling)); err != nil {
				return err
			}
		}
		for i := range p.pubs {
			if err := exec(publications.upsertSQLite, publications.args(args, &p.pubs[i])...); err != nil {
				return err
			}
		}
		for _, k := range p.pubsGone {
			if err := exec(deletePublication, k.Resource, k.Event, k.ID); err != nil {
				return err
			}
		}
		for i := range p.remotes {
			if err := exec(remotes.upsertSQLite, remotes.args(args, &p.remotes[i])...); err != nil {
				return err
			}
		}
		for _, id := range p.remotesGone {
			if err := exec(deleteRemote, id); err != nil {
				return err
			}
		}
		return nil
	})
}

// pgRows bounds the rows, and so the memory, of one statement.
const pgRows = 4096

func (s *Store) commitPostgres(ctx context.Context, p *writes) error {
	kinds := 0
	for _, n := range []int{len(p.subs), len(p.subsGone), len(p.ceilings), len(p.pubs), len(p.pubsGone), len(p.remotes), len(p.remotesGone)} {
		kinds += (n + pgRows - 1) / pgRows
	}
	return s.transaction(ctx, kinds > 1, func(exec execer) error {
		err := chunks(p.subs, func(rows []dialog.SubscriptionRow) error {
			return exec(subscriptions.upsertPG, subscriptions.arrays(rows)...)
		})
		if err != nil {
			return err
		}
		err = chunks(p.subsGone, func(ids []string) error { return exec(deleteSubscriptionsPG, escapeAll(ids)) })
		if err != nil {
			return err
		}
		err = chunks(p.ceilings, func(cs []dialog.SetCSeqCeiling) error {
			ids, ns := make(pq.StringArray, len(cs)), make(pq.Int64Array, len(cs))
			for i, c := range cs {
				ids[i], ns[i] = escape(c.ID), int64(c.Ceiling)
			}
			return exec(raiseCeilingsPG, ids, ns)
		})
		if err != nil {
			return err
		}
		err = chunks(p.pubs, func(rows []pa.PublicationRow) error {
			return exec(publications.upsertPG, publications.arrays(rows)...)
		})
		if err != nil {
			return err
		}
		err = chunks(p.remotes, func(rows []dialog.RemoteRow) error { return exec(remotes.upsertPG, remotes.arrays(rows)...) })
		if err != nil {
			return err
		}
		err = chunks(p.remotesGone, func(ids []string) error { return exec(deleteRemotesPG, escapeAll(ids)) })
		if err != nil {
			return err
		}
		return chunks(p.pubsGone, func(ks []pubKey) error {
			rs, es, ids := make(pq.StringArray, len(ks)), make(pq.StringArray, len(ks)), make(pq.StringArray, len(ks))
			for i, k := range ks {
				rs[i], es[i], ids[i] = escape(k.Resource), escape(k.Event), escape(k.ID)
			}
			return exec(deletePublicationsPG, rs, es, ids)
		})
	})
}

func escapeAll(ids []string) pq.StringArray {
	a := make(pq.StringArray, len(ids))
	for i, id := range ids {
		a[i] = escape(id)
	}
	return a
}

func chunks[T any](all []T, f func([]T) error) error {
	for len(all) > 0 {
		n := min(len(all), pgRows)
		if err := f(all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

// transaction runs f with prepared statements, between BEGIN and COMMIT when several is set. A server's transactions on
// PostgreSQL run in the session that has the lock.
func (s *Store) transaction(ctx context.Context, several bool, f func(execer) error) error {
	if l, ok := s.lock.(*sessionLock); ok {
		return l.use(ctx, func(c *sqlx.Conn, stmts map[string]*sqlx.Stmt) error {
			return s.transactionOn(ctx, c, several, f, func(text string) (*sqlx.Stmt, error) {
				if st := stmts[text]; st != nil {
					return st, nil
				}
				st, err := c.PreparexContext(ctx, text)
				if err == nil {
					stmts[text] = st
				}
				return st, err
			})
		})
	}
	return s.transactionOn(ctx, s.w, several, f, func(text string) (*sqlx.Stmt, error) { return s.prepared(ctx, text) })
}

type beginner interface {
	BeginTxx(ctx context.Context, opt *stdsql.TxOptions) (*sqlx.Tx, error)
}

func (s *Store) transactionOn(ctx context.Context, on beginner, several bool, f func(execer) error, prepared func(string) (*sqlx.Stmt, error)) error {
	if !several {
		return f(func(text string, args ...any) error {
			st, err := prepared(text)
			if err != nil {
				return err
			}
			_, err = st.ExecContext(ctx, args...)
			return err
		})
	}
	// A statement of SQLite takes microseconds, watching a context for each costs as much again. The transaction
	// watches it: when it ends, so does the transaction, and the next statement fails.
	stmtCtx := ctx
	if s.engine == engineSQLite {
		stmtCtx = context.WithoutCancel(ctx)
	}
	// Before BEGIN: on SQLite the transaction has the only connection.
	var all []*sqlx.Stmt
	texts := commitStatements[s.engine]
	for _, text := range texts {
		st, err := prepared(text)
		if err != nil {
			return err
		}
		all = append(all, st)
	}
	tx, err := on.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	inTx := make([]*sqlx.Stmt, len(all))
	err = f(func(text string, args ...any) error {
		i := slices.Index(texts, text)
		if inTx[i] == nil {
			inTx[i] = tx.StmtxContext(ctx, all[i])
		}
		_, err := inTx[i].ExecContext(stmtCtx, args...)
		return err
	})
	if err != nil {
		return err
	}
	return tx.Commit()
}
