package sql

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"modernc.org/sqlite"
)

var (
	// ErrNotFound says that there is no such document, meta key or subscriber. It is fs.ErrNotExist to errors.Is.
	ErrNotFound = fmt.Errorf("sql: not found: %w", fs.ErrNotExist)
	// ErrConflict says that a Precondition did not hold.
	ErrConflict = errors.New("sql: precondition failed")
	// ErrInUse says that another server has the database open.
	ErrInUse = errors.New("database is in use by another server")
	// ErrTakenOver says that another server has used the database since our session broke. Its rows are not those we
	// know: there is no way back but a restart.
	ErrTakenOver = errors.New("another server has used the database meanwhile; restart this one")
	// ErrNewerSchema says that a newer program has migrated the database.
	ErrNewerSchema = errors.New("database schema is newer than this program")
	// ErrClosed says that the Store was closed.
	ErrClosed = errors.New("sql: store is closed")
)

// Sync says what an acknowledged Commit survives.
type Sync uint8

const (
	// SyncNormal survives the death of the process: SQLite's synchronous=normal, PostgreSQL's own setting.
	SyncNormal Sync = iota
	// SyncFull survives a power cut: SQLite's synchronous=full, PostgreSQL's synchronous_commit=on.
	SyncFull
)

// Options of Open. The zero value is a server's.
type Options struct {
	Sync Sync
	// Beside is for a tool that looks into a database while a server may be using it: no lock is taken, nothing is
	// created or migrated.
	Beside bool
	// NoMigrate leaves the schema as it is, for the commands that migrate or look at it.
	NoMigrate bool
	// Timeout bounds a call whose context has no deadline, but for Subscriptions and Publications; 0 means 10 s.
	Timeout time.Duration
	// Conns is the most connections used on PostgreSQL; 0 means 8. SQLite has one writer whatever this says.
	Conns int

	readOnly bool // for a database of another program
}

type engine uint8

const (
	engineMemory engine = iota
	engineSQLite
	enginePostgres
)

func (e engine) String() string { return [...]string{"memory", "sqlite", "postgres"}[e] }

// Store is an open database. Its methods may be called by many goroutines at once.
type Store struct {
	engine  engine
	name    string
	timeout time.Duration
	beside  bool
	mem     *memory

	w, r    *sqlx.DB // on PostgreSQL the same pool
	lock    locker
	patient string // address of PostgreSQL, for what may take long

	stmtMu sync.Mutex
	stmts  map[string]*sqlx.Stmt // by statement text, on w

	subscriberMu   sync.Mutex
	subscriberCols []string // of table subscriber; nil: not looked up yet

	closeOnce sync.Once
	closeErr  error
}

type locker interface {
	check(ctx context.Context) error
	close() error
}

// Open opens a database and brings its schema up to date. The dsn is one of
//
//	memory                 keeps no rows at all, documents and meta values until Close
//	sqlite:PATH            a file, created with its directories when missing; PATH.lock beside it is the lock
//	postgres://...         as lib/pq reads it; connect to the server itself, not to a pooler that shares sessions
func Open(ctx context.Context, dsn string, opt Options) (*Store, error) {
	if opt.Timeout <= 0 {
		opt.Timeout = 10 * time.Second
	}
	if opt.Conns <= 0 {
		opt.Conns = 8
	}
	s := &Store{timeout: opt.Timeout, beside: opt.Beside, stmts: map[string]*sqlx.Stmt{}}
	ctx, cancel := s.bound(ctx)
	defer cancel()

	if dsn == "memory" {
		s.name, s.mem = "memory", newMemory()
		return s, nil
	}
	err := s.connect(ctx, dsn, opt)
	if err == nil && !opt.NoMigrate {
		err = s.prepareSchema(ctx)
		if l, ok := s.lock.(*sessionLock); err == nil && ok {
			if err = s.awaitPredecessor(ctx); err == nil {
				err = l.own(ctx)
			}
		}
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("sql: open %s: %w", s.name, err)
	}
	return s, nil
}

// connect opens a database other than memory.
func (s *Store) connect(ctx context.Context, dsn string, opt Options) error {
	switch kind, rest, _ := strings.Cut(dsn, ":"); kind {
	case "sqlite":
		return s.openSQLite(ctx, rest, opt)
	case "postgres", "postgresql":
		return s.openPostgres(ctx, dsn, opt)
	default:
		s.name = strconv.Quote(kind)
		return errors.New("unknown kind of database: want memory, sqlite:PATH or a postgres:// address")
	}
}

// Engine is "memory", "sqlite" or "postgres".
func (s *Store) Engine() string { return s.engine.String() }

// String names the database for logs, without a password.
func (s *Store) String() string { return s.name }

// Check says whether the database answers and is still ours. It writes nothing.
func (s *Store) Check(ctx context.Context) error {
	if s.mem != nil {
		return nil
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	if s.lock != nil {
		if err := s.lock.check(ctx); err != nil {
			return fmt.Errorf("sql: check %s: %w", s.name, err)
		}
	}
	var n int
	if err := s.r.GetContext(ctx, &n, `SELECT count(*) FROM meta`); err != nil {
		return fmt.Errorf("sql: check %s: %w", s.name, err)
	}
	return nil
}

// Close waits for calls under way, closes the database and gives up the lock. Later calls of Close do nothing.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		var errs []error
		s.stmtMu.Lock()
		for _, st := range s.stmts {
			errs = append(errs, st.Close())
		}
		s.stmts = nil
		s.stmtMu.Unlock()
		if s.r != nil && s.r != s.w {
			errs = append(errs, s.r.Close())
		}
		if s.w != nil {
			errs = append(errs, s.w.Close())
		}
		if s.lock != nil { // last: nobody may open the file before it is closed here
			errs = append(errs, s.lock.close())
		}
		s.closeErr = errors.Join(errs...)
	})
	return s.closeErr
}

// bound gives a context without a deadline the default one.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, s.timeout)
}

// prepared returns the one prepared statement of a text.
func (s *Store) prepared(ctx context.Context, text string) (*sqlx.Stmt, error) {
	s.stmtMu.Lock()
	defer s.stmtMu.Unlock()
	if s.stmts == nil {
		return nil, ErrClosed
	}
	if st := s.stmts[text]; st != nil {
		return st, nil
	}
	st, err := s.w.PreparexContext(ctx, text)
	if err != nil {
		return nil, err
	}
	s.stmts[text] = st
	return st, nil
}

// retry runs f again when the database asked for that: busy, deadlock or serialization failure.
func (s *Store) retry(ctx context.Context, what string, f func(context.Context) error) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	pause := 5 * time.Millisecond
	for try := 0; ; try++ {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if try < 8 && retryable(err) {
			t := time.NewTimer(pause/2 + rand.N(pause))
			select {
			case <-t.C:
				pause = min(2*pause, 200*time.Millisecond)
				continue
			case <-ctx.Done():
				t.Stop()
			}
		}
		if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return fmt.Errorf("sql: %s: %w", what, err)
	}
}

func retryable(err error) bool {
	if e, ok := errors.AsType[*pq.Error](err); ok {
		return e.Code == "40001" || e.Code == "40P01"
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code()&0xff == 5 || e.Code()&0xff == 6 // SQLITE_BUSY, SQLITE_LOCKED
	}
	return false
}
