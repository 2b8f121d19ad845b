package sql

import (
	"context"
	stdsql "database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/pressly/goose/v3"
)

// A file is never edited once released: a change is a new number in both folders.
//
//go:embed migrations
var migrations embed.FS

// Migration is one step of the schema.
type Migration struct {
	Version int64     `json:"version"`
	Name    string    `json:"name"`
	Applied time.Time `json:"applied,omitzero"` // zero: pending
}

// Status tells where a database stands.
type Status struct {
	Engine     string      `json:"engine"`
	Store      string      `json:"store"`   // without password
	Current    int64       `json:"current"` // version of the schema; 0: none
	Target     int64       `json:"target"`  // version this program wants
	Migrations []Migration `json:"migrations"`
}

// provider gives what migrates, to be closed with the function. On PostgreSQL it has connections of its own: a step may
// work on a large table without a sign of life.
func (s *Store) provider() (*goose.Provider, func(), error) {
	dialect, db, done := goose.DialectSQLite3, s.w.DB, func() {}
	if s.engine == enginePostgres {
		dialect = goose.DialectPostgres
		var err error
		if db, err = stdsql.Open("postgres", s.patient); err != nil {
			return nil, nil, err
		}
		done = func() { db.Close() }
	}
	fsys, err := fs.Sub(migrations, "migrations/"+s.engine.String())
	var p *goose.Provider
	if err == nil {
		p, err = goose.NewProvider(dialect, db, fsys, goose.WithTableName("schema_version"),
			goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	return p, done, nil
}

// prepareSchema migrates up, or for a tool beside a server only looks.
func (s *Store) prepareSchema(ctx context.Context) error {
	p, done, err := s.provider()
	if err != nil {
		return err
	}
	defer done()
	if s.beside {
		current, err := s.current(ctx)
		if err == nil {
			err = compare(current, latest(p))
		}
		return err
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return err
	}
	if current > target {
		return compare(current, target)
	}
	_, err = p.Up(ctx)
	return err
}

func compare(current, target int64) error {
	switch {
	case current > target:
		return fmt.Errorf("%w: the database has version %d, the program knows %d", ErrNewerSchema, current, target)
	case current < target:
		return fmt.Errorf("the database has schema version %d, the program needs %d: migrate first", current, target)
	}
	return nil
}

func latest(p *goose.Provider) int64 {
	all := p.ListSources()
	return all[len(all)-1].Version
}

// current reads the version without making goose's table: 0 where there is none.
func (s *Store) current(ctx context.Context) (int64, error) {
	look := `SELECT count(*) FROM sqlite_master WHERE name = 'schema_version'`
	if s.engine == enginePostgres {
		look = `SELECT count(*) FROM pg_tables WHERE tablename = 'schema_version' AND schemaname = current_schema()`
	}
	var n, version int64
	if err := s.r.GetContext(ctx, &n, look); err != nil || n == 0 {
		return 0, err
	}
	err := s.r.GetContext(ctx, &version, `SELECT coalesce(max(version_id), 0) FROM schema_version`)
	return version, err
}

// Status reads the schema's version and which migrations have been applied. It writes nothing.
func (s *Store) Status(ctx context.Context) (Status, error) {
	st := Status{Engine: s.Engine(), Store: s.name}
	if s.mem != nil {
		return st, nil
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	p, done, err := s.provider()
	if err != nil {
		return st, err
	}
	defer done()
	st.Target = latest(p)
	if st.Current, err = s.current(ctx); err != nil {
		return st, fmt.Errorf("sql: status: %w", err)
	}
	applied := map[int64]time.Time{}
	if st.Current > 0 {
		rows, err := s.r.QueryxContext(ctx, `SELECT version_id, tstamp FROM schema_version`)
		if err != nil {
			return st, fmt.Errorf("sql: status: %w", err)
		}
		defer rows.Close()
		for rows.Next() {
			var v int64
			var at time.Time
			if err := rows.Scan(&v, &at); err != nil {
				return st, fmt.Errorf("sql: status: %w", err)
			}
			applied[v] = at.UTC()
		}
		if err := rows.Err(); err != nil {
			return st, fmt.Errorf("sql: status: %w", err)
		}
	}
	for _, m := range p.ListSources() {
		st.Migrations = append(st.Migrations, Migration{Version: m.Version, Name: m.Path, Applied: applied[m.Version]})
	}
	return st, nil
}

// MigrateUp applies every pending migration, MigrateDown undoes those above a version (0: all of them, rows included, but
// for table subscriber, which other programs may use).
// Both need the lock, so they fail on a Store opened with Options.Beside.
func (s *Store) MigrateUp(ctx context.Context) error {
	return s.migrate(ctx, func(p *goose.Provider) error {
		_, err := p.Up(ctx)
		return err
	})
}

// MigrateDown undoes every migration above a version; see MigrateUp.
func (s *Store) MigrateDown(ctx context.Context, version int64) error {
	return s.migrate(ctx, func(p *goose.Provider) error {
		_, err := p.DownTo(ctx, version)
		return err
	})
}

// MigrateTo goes up or down to a version; 0 is none. See MigrateUp and MigrateDown.
func (s *Store) MigrateTo(ctx context.Context, version int64) error {
	return s.migrate(ctx, func(p *goose.Provider) error {
		if version < 0 || version > latest(p) {
			return fmt.Errorf("there is no version %d, the newest is %d", version, latest(p))
		}
		current, err := s.current(ctx)
		if err == nil && version < current {
			_, err = p.DownTo(ctx, version)
		} else if err == nil && version > current { // goose refuses 0
			_, err = p.UpTo(ctx, version)
		}
		return err
	})
}

func (s *Store) migrate(ctx context.Context, f func(*goose.Provider) error) error {
	if s.mem != nil {
		return nil
	}
	if s.beside {
		return errors.New("sql: migrate: the database was opened beside a server")
	}
	p, done, err := s.provider()
	if err != nil {
		return err
	}
	defer done()
	current, err := s.current(ctx)
	if err == nil && current > latest(p) {
		err = compare(current, latest(p))
	}
	if err == nil {
		err = f(p)
	}
	if err != nil {
		return fmt.Errorf("sql: migrate: %w", err)
	}
	return nil
}
