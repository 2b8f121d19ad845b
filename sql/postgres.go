package sql

import (
	"context"
	"errors"
	"net/url"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq" // database/sql driver "postgres"
)

func (s *Store) openPostgres(ctx context.Context, dsn string, opt Options) error {
	s.engine, s.name = enginePostgres, "postgres"
	u, err := url.Parse(dsn)
	if err != nil {
		return errors.New("the postgres:// address is not a URL") // the cause would show the password
	}
	q := u.Query()
	if q.Has("password") {
		shown := *u
		sq := u.Query()
		sq.Set("password", "xxxxx")
		shown.RawQuery = sq.Encode()
		s.name = shown.Redacted()
	} else {
		s.name = u.Redacted()
	}
	for k, v := range map[string]string{"connect_timeout": "5", "application_name": "rollcall"} {
		if !q.Has(k) {
			q.Set(k, v)
		}
	}
	if opt.Sync == SyncFull {
		q.Set("synchronous_commit", "on")
	}
	if opt.readOnly {
		q.Set("default_transaction_read_only", "on")
	}
	u.RawQuery = q.Encode()
	db, err := sqlx.Open("postgres", u.String())
	if err != nil {
		return err
	}
	s.w, s.r = db, db
	db.SetMaxOpenConns(opt.Conns)
	db.SetMaxIdleConns(opt.Conns)
	db.SetConnMaxIdleTime(5 * time.Minute)
	if err := db.PingContext(ctx); err != nil {
		return err
	}
	if opt.Beside {
		return nil
	}
	lock := &sessionLock{db: db}
	// The session of a server that was just killed may live a moment longer.
	deadline := time.Now().Add(time.Second)
	for {
		err := lock.check(ctx)
		if err == nil {
			s.lock = lock
			return nil
		}
		if !errors.Is(err, ErrInUse) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// awaitPredecessor waits for what a server that was just killed still has in the database: its last transaction may be
// committing in a backend that has not noticed yet, and must not appear between the reads of a recovery.
func (s *Store) awaitPredecessor(ctx context.Context) error {
	tx, err := s.w.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	_, err = tx.ExecContext(ctx, `LOCK TABLE subscription, publication, document, meta IN EXCLUSIVE MODE`)
	return err
}

// sessionLock is an advisory lock held by a connection of its own. When that connection breaks the lock is gone until
// check takes it again: it keeps a second server from being started by mistake and is no fence for a cluster.
type sessionLock struct {
	db *sqlx.DB

	mu   sync.Mutex
	conn *sqlx.Conn
}

func (l *sessionLock) check(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		if l.conn.PingContext(ctx) == nil {
			return nil
		}
		l.conn.Close()
		l.conn = nil
	}
	conn, err := l.db.Connx(ctx)
	if err != nil {
		return err
	}
	var got bool
	// The address of a dead machine must not hold the lock for hours.
	_, err = conn.ExecContext(ctx, `SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3`)
	if err == nil {
		err = conn.GetContext(ctx, &got, `SELECT pg_try_advisory_lock(1919904620, hashtext(current_schema()))`)
	}
	if err != nil || !got {
		conn.Close()
		if err == nil {
			err = ErrInUse
		}
		return err
	}
	l.conn = conn
	return nil
}

func (l *sessionLock) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return nil
	}
	err := l.conn.Close()
	l.conn = nil
	return err
}
