package sql

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
)

// Document is an XCAP document (RFC 4825) kept in the database.
type Document struct {
	Selector    string // AUID/users/XUI/FILE or AUID/global/FILE, decoded
	ETag        string // without quotes
	ContentType string
	Body        []byte
	UpdatedMS   int64 // Unix milliseconds
}

// Precondition is what must hold for a change (RFC 4825 7.11). The zero value always holds.
type Precondition struct {
	Match  string // the ETag the document must have; "*": it must exist
	Absent bool   // it must not exist
}

// Document reads one document, or ErrNotFound.
func (s *Store) Document(ctx context.Context, selector string) (Document, error) {
	if s.mem != nil {
		return s.mem.document(selector)
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	d := Document{Selector: selector}
	row := s.r.QueryRowxContext(ctx, s.r.Rebind(`SELECT etag, content_type, body, updated_ms FROM document WHERE selector = ?`), s.text(selector))
	err := row.Scan(&d.ETag, &d.ContentType, &d.Body, &d.UpdatedMS)
	if errors.Is(err, stdsql.ErrNoRows) {
		return Document{}, ErrNotFound
	}
	if err != nil {
		return Document{}, fmt.Errorf("sql: document: %w", err)
	}
	d.ETag, d.ContentType = s.plain(d.ETag), s.plain(d.ContentType)
	return d, nil
}

// DocumentBody is Document in plain values, for callers that do not know this package.
func (s *Store) DocumentBody(ctx context.Context, selector string) (body []byte, etag string, err error) {
	d, err := s.Document(ctx, selector)
	return d.Body, d.ETag, err
}

// PutDocument inserts or replaces a document when the condition holds, otherwise it fails with ErrConflict.
func (s *Store) PutDocument(ctx context.Context, d Document, only Precondition) (created bool, err error) {
	if s.mem != nil {
		return s.mem.put(d, only)
	}
	if d.Body == nil {
		d.Body = []byte{}
	}
	err = s.change(ctx, "put document", d.Selector, only, func(ctx context.Context, tx execContext, exists bool) error {
		created = !exists
		_, err := tx.ExecContext(ctx, s.w.Rebind(`INSERT INTO document (selector, etag, content_type, body, updated_ms) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (selector) DO UPDATE SET etag = excluded.etag, content_type = excluded.content_type,
			body = excluded.body, updated_ms = excluded.updated_ms`),
			s.text(d.Selector), s.text(d.ETag), s.text(d.ContentType), d.Body, d.UpdatedMS)
		return err
	})
	return created, err
}

// DeleteDocument removes a document when the condition holds; ErrNotFound when there is none and none was asked for.
func (s *Store) DeleteDocument(ctx context.Context, selector string, only Precondition) error {
	if s.mem != nil {
		return s.mem.remove(selector, only)
	}
	return s.change(ctx, "delete document", selector, only, func(ctx context.Context, tx execContext, exists bool) error {
		if !exists {
			return ErrNotFound
		}
		_, err := tx.ExecContext(ctx, s.w.Rebind(`DELETE FROM document WHERE selector = ?`), s.text(selector))
		return err
	})
}

type execContext interface {
	ExecContext(ctx context.Context, query string, args ...any) (stdsql.Result, error)
}

// change runs f in a transaction in which nobody else changes the document, once the condition has been found to hold.
func (s *Store) change(ctx context.Context, what, selector string, only Precondition, f func(context.Context, execContext, bool) error) error {
	return s.retry(ctx, what, func(ctx context.Context) error {
		tx, err := s.w.BeginTxx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if s.engine == enginePostgres { // a row that does not exist yet cannot be locked
			if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(1919904621, hashtext($1))`, s.text(selector)); err != nil {
				return err
			}
		}
		var etag string
		err = tx.GetContext(ctx, &etag, s.w.Rebind(`SELECT etag FROM document WHERE selector = ?`), s.text(selector))
		exists := err == nil
		if err != nil && !errors.Is(err, stdsql.ErrNoRows) {
			return err
		}
		if err := only.check(exists, s.plain(etag)); err != nil {
			return err
		}
		if err := f(ctx, tx, exists); err != nil {
			return err
		}
		return tx.Commit()
	})
}

func (p Precondition) check(exists bool, etag string) error {
	if p.Absent && exists || p.Match != "" && !exists || p.Match != "" && p.Match != "*" && p.Match != etag {
		return ErrConflict
	}
	return nil
}

// Selectors lists the documents of an application usage, in byte order.
func (s *Store) Selectors(ctx context.Context, auid string) ([]string, error) {
	if s.mem != nil {
		return s.mem.selectors(auid), nil
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var all []string
	// '0' follows '/': the range holds exactly what begins with "auid/".
	err := s.r.SelectContext(ctx, &all, s.r.Rebind(`SELECT selector FROM document WHERE selector >= ? AND selector < ? ORDER BY selector`),
		s.text(auid)+"/", s.text(auid)+"0")
	if err != nil {
		return nil, fmt.Errorf("sql: selectors: %w", err)
	}
	for i := range all {
		all[i] = s.plain(all[i])
	}
	return all, nil
}

// Meta reads a value about the database, or ErrNotFound.
func (s *Store) Meta(ctx context.Context, key string) (string, error) {
	if s.mem != nil {
		return s.mem.get(key)
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var v string
	err := s.r.GetContext(ctx, &v, s.r.Rebind(`SELECT value FROM meta WHERE key = ?`), s.text(key))
	if errors.Is(err, stdsql.ErrNoRows) {
		return "", ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("sql: meta: %w", err)
	}
	return s.plain(v), nil
}

// SetMeta stores a value about the database.
func (s *Store) SetMeta(ctx context.Context, key, value string) error {
	if s.mem != nil {
		s.mem.set(key, value)
		return nil
	}
	return s.retry(ctx, "set meta", func(ctx context.Context) error {
		_, err := s.w.ExecContext(ctx, s.w.Rebind(`INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value`),
			s.text(key), s.text(value))
		return err
	})
}

// text is a string as the engine can store it, plain the way back.
func (s *Store) text(v string) string {
	if s.engine == enginePostgres {
		return escape(v)
	}
	return v
}

func (s *Store) plain(v string) string {
	if s.engine == enginePostgres {
		return unescape(v)
	}
	return v
}
