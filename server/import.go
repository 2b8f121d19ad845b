package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/pa/policy"
	"rollcall/server/takeover"
	"rollcall/sql"
	"rollcall/xcapclient"
)

// ImportRow and ImportTable are what an import reports.
type (
	ImportRow   = takeover.Row
	ImportTable = takeover.Table
)

// ImportOptions says how to import.
type ImportOptions struct {
	DryRun bool
	Each   func(ImportRow) // sees every row; may be nil
}

// Import takes the state of another server, "kamailio" or "opensips", out of its database into the configured store.
// No server may be running on that, but with DryRun, which changes nothing.
func Import(ctx context.Context, cfg Config, peer, dsn string, opt ImportOptions, log *slog.Logger) ([]*ImportTable, error) {
	set, err := cfg.settings()
	if err != nil {
		return nil, err
	}
	if cfg.Store == "memory" {
		return nil, errors.New("the store is memory: nothing would be left when the import ends")
	}
	src, err := sql.OpenPeer(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	s := &Server{cfg: cfg, set: set, log: log}
	if s.store, err = openImportStore(ctx, cfg, set, opt.DryRun); err != nil {
		return nil, err
	}
	defer s.store.Close()
	agent := pa.New(pa.Options{Mode: set.mode})
	reg := dialog.NewRegistry(pa.Events(set.packages...)...)
	o := takeover.Options{
		Peer: takeover.Peer(peer), DryRun: opt.DryRun, Each: opt.Each, Package: reg.Find, Check: func(row *pa.PublicationRow) error { return pa.Check(set.packages, row) },
		Key:     func(uri string) (string, bool, error) { return s.key([]byte(uri)) },
		Unclean: func(ctx context.Context) error { return s.store.SetMeta(ctx, cleanMeta, "no") },
	}
	if cfg.Users != "" && cfg.Users != "store" {
		o.NoUsers = "users are read from " + Mask(cfg.Users) + ", not from the store"
	}
	// Documents are read as the server will, those that a dry run only would have taken included.
	var rules *ruleCache
	o.Decide = func(ctx context.Context, docs *sql.Store, presentity, watcher string) (string, error) {
		if rules == nil {
			s.sources = nil
			if docs != s.store {
				s.sources = []xcapclient.Source{xcapclient.Stored(docs)}
			}
			if err := s.openDocuments(); err != nil {
				return "", err
			}
			rules = newRuleCache(s.docs, presenceRules, s.roots(), s.normalize)
			rules.setDefault(set.defaultRules)
		}
		var sets []*policy.Ruleset
		if set.mode != pa.Open {
			var err error
			if sets, err = rules.Fetch(ctx, presentity); err != nil {
				return "", err
			}
		}
		d, _ := agent.Decide(pa.Question{Watcher: watcher, Resource: presentity, Package: "presence", Sets: sets, Now: time.Now()})
		switch d.Handling {
		case policy.Block:
			return "terminated", nil
		case policy.Confirm:
			return "pending", nil
		}
		return "active", nil
	}
	return takeover.Run(ctx, src, s.store, o)
}

// openImportStore opens the store to import into. A dry run looks at it beside a server, or at an empty one when there
// is none yet.
func openImportStore(ctx context.Context, cfg Config, set *settings, dry bool) (*sql.Store, error) {
	opt := sql.Options{Beside: dry}
	if set.fullSync {
		opt.Sync = sql.SyncFull
	}
	if dry {
		none, err := storeMissing(ctx, cfg.Store)
		if err != nil {
			return nil, err
		}
		if none {
			return sql.Open(ctx, "memory", sql.Options{})
		}
	}
	st, err := sql.Open(ctx, cfg.Store, opt)
	switch {
	case errors.Is(err, sql.ErrInUse):
		return nil, fmt.Errorf("a server is running on %s: stop it first, or look with --dry-run", Mask(cfg.Store))
	case err != nil:
		return nil, fmt.Errorf("store %s: %w", Mask(cfg.Store), err)
	}
	return st, nil
}

// storeMissing tells whether nothing was ever stored in a database.
func storeMissing(ctx context.Context, dsn string) (bool, error) {
	if path, ok := strings.CutPrefix(dsn, "sqlite:"); ok {
		if _, err := os.Stat(filepath.Clean(path)); errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
	}
	st, err := sql.Open(ctx, dsn, sql.Options{Beside: true, NoMigrate: true})
	if err != nil {
		return false, fmt.Errorf("store %s: %w", Mask(dsn), err)
	}
	defer st.Close()
	status, err := st.Status(ctx)
	return status.Current == 0, err
}
