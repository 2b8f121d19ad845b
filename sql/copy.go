package sql

import (
	"context"
	"fmt"

	"github.com/lib/pq"
)

// Copy is what an XCAP server said last about a document. It is a cache: no part of an export.
type Copy struct {
	Root     string // of the server
	Selector string
	Missing  bool   // there is no such document
	ETag     string // as the server wrote it
	Body     []byte
}

var copies = newTable("xcap_copy", 2, []column[Copy]{
	{"root", func(r *Copy) any { return &r.Root }},
	{"selector", func(r *Copy) any { return &r.Selector }},
	{"missing", func(r *Copy) any { return &r.Missing }},
	{"etag", func(r *Copy) any { return &r.ETag }},
	{"body", func(r *Copy) any { return &r.Body }},
})

const (
	deleteCopy    = `DELETE FROM xcap_copy WHERE root = ? AND selector = ?`
	deleteCopies  = `DELETE FROM xcap_copy WHERE root = $1 AND selector = ANY ($2::text[])`
	copyRootsLeft = `SELECT DISTINCT root FROM xcap_copy`
	dropCopies    = `DELETE FROM xcap_copy WHERE root = ?`
)

// Copies calls f with every copy; see Subscriptions.
func (s *Store) Copies(ctx context.Context, f func(Copy) error) error { return load(ctx, s, copies, f) }

// SaveCopies adds or replaces copies and removes others of a root, in one transaction. A selector must occur once.
func (s *Store) SaveCopies(ctx context.Context, root string, put []Copy, gone []string) error {
	if s.mem != nil || len(put)+len(gone) == 0 {
		return nil
	}
	return s.retry(ctx, "save copies", func(ctx context.Context) error {
		return s.transaction(ctx, true, func(exec execer) error {
			if s.engine == enginePostgres {
				err := chunks(put, func(rows []Copy) error { return exec(copies.upsertPG, copies.arrays(rows)...) })
				if err == nil && len(gone) > 0 {
					err = exec(deleteCopies, escape(root), pq.StringArray(escapeAll(gone)))
				}
				return err
			}
			for i := range put {
				if err := exec(copies.upsertSQLite, copies.args(nil, &put[i])...); err != nil {
					return err
				}
			}
			for _, sel := range gone {
				if err := exec(deleteCopy, root, sel); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// KeepCopies removes the copies of all roots but these.
func (s *Store) KeepCopies(ctx context.Context, roots ...string) error {
	if s.mem != nil {
		return nil
	}
	keep := make(map[string]bool, len(roots))
	for _, r := range roots {
		keep[s.text(r)] = true
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var there []string
	if err := s.r.SelectContext(ctx, &there, copyRootsLeft); err != nil {
		return fmt.Errorf("sql: keep copies: %w", err)
	}
	for _, root := range there {
		if keep[root] {
			continue
		}
		err := s.retry(ctx, "keep copies", func(ctx context.Context) error {
			_, err := s.w.ExecContext(ctx, s.w.Rebind(dropCopies), root)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
