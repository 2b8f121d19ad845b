package server

import (
	"context"
	"net/url"
	"strings"

	"rollcall/sql"
	"rollcall/xcapclient"
)

// copies is where an XCAP server's documents outlive a restart: in the store.
type copies struct {
	store *sql.Store
	root  string
}

// copyRoot names an XCAP root in the store, where its password does not belong.
func copyRoot(root string) string {
	if u, err := url.Parse(root); err == nil {
		u.User = nil
		root = u.String()
	}
	return strings.TrimRight(root, "/")
}

// Load implements xcapclient.Copies.
func (c copies) Load(ctx context.Context, f func(xcapclient.Copy) error) error {
	return c.store.Copies(ctx, func(r sql.Copy) error {
		if r.Root != c.root {
			return nil
		}
		return f(xcapclient.Copy{Selector: r.Selector, Missing: r.Missing, ETag: r.ETag, Body: r.Body})
	})
}

// Save implements xcapclient.Copies.
func (c copies) Save(ctx context.Context, put []xcapclient.Copy, gone []string) error {
	rows := make([]sql.Copy, len(put))
	for i, k := range put {
		rows[i] = sql.Copy{Root: c.root, Selector: k.Selector, Missing: k.Missing, ETag: k.ETag, Body: k.Body}
	}
	return c.store.SaveCopies(ctx, c.root, rows, gone)
}

// restoreDocuments takes what the XCAP servers said before the restart. Without it
// the start goes on: they may well be there.
func (s *Server) restoreDocuments(ctx context.Context) {
	var roots []string
	for _, x := range s.cfg.XCAP {
		if strings.HasPrefix(x, "http") {
			roots = append(roots, copyRoot(x))
		}
	}
	if err := s.store.KeepCopies(ctx, roots...); err != nil {
		s.log.Warn("copies of other XCAP servers' documents not removed", "err", err)
	}
	for _, h := range s.remote {
		if err := h.Restore(ctx); err != nil {
			s.log.Warn("XCAP documents of before the restart not usable", "err", err)
		}
	}
}
