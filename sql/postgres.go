package sql

import (
	"context"
	"crypto/rand"
	stdsql "database/sql"
	"database/sql/driver"
	"errors"
	"net"
	"net/url"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq" // database/sql driver "postgres"
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
	connector, err := pq.NewConnector(u.String())
	if err != nil {
		return err
	}
	s.patient = u.String()
	connector.Dialer(impatient{s.timeout * 3 / 2})
	db := sqlx.NewDb(stdsql.OpenDB(connector), "postgres")
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
	lock := newSessionLock(db)
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

// sessionLock is an advisory lock held by a connection of its own, on which the
// commits run, too. So a commit is a proof that the lock is held: when the
// connection breaks, the lock goes with it, and neither a transaction left
// behind there can be done after the lock was taken again, nor one of ours after
// another server has it.
type sessionLock struct {
	db *sqlx.DB

	turn chan struct{} // holds a token while nobody uses what follows
	conn *sqlx.Conn
	pid  int64 // of the backend of conn, also when that is gone
	born string
	stmt map[string]*sqlx.Stmt

	owner string // what we wrote into meta under ownerMeta; "" when nothing was
}

// ownerMeta is the key under which a server leaves a random word, to see after a broken session whether another server
// was there. It is no part of an export.
const ownerMeta = "owner"

// own leaves the word.
func (l *sessionLock) own(ctx context.Context) error {
	word := rand.Text()
	err := l.use(ctx, func(c *sqlx.Conn, _ map[string]*sqlx.Stmt) error {
		_, err := c.ExecContext(ctx, `INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value`, ownerMeta, word)
		return err
	})
	if err == nil {
		l.owner = word
	}
	return err
}

func newSessionLock(db *sqlx.DB) *sessionLock {
	l := &sessionLock{db: db, turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l
}

// use runs f on the connection that has the lock, which is taken again if it was
// lost: ErrInUse when another server has it now. One f runs at a time; it runs
// again when the connection turns out to be broken.
func (l *sessionLock) use(ctx context.Context, f func(*sqlx.Conn, map[string]*sqlx.Stmt) error) error {
	select {
	case <-l.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { l.turn <- struct{}{} }()
	if l.db == nil {
		return ErrClosed
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		fresh := l.conn == nil
		if fresh {
			if err := l.take(ctx); err != nil {
				return err
			}
		}
		err := f(l.conn, l.stmt)
		if err == nil || answered(err) {
			return err
		}
		l.drop()
		if fresh {
			return err
		}
	}
}

// answered tells whether an error is the database's own, so that its session
// goes on.
func answered(err error) bool {
	e, ok := errors.AsType[*pq.Error](err)
	return ok && e.Code.Class() != "57" && e.Code.Class() != "08" && e.Severity != "FATAL" && e.Severity != "PANIC"
}

// drop closes the connection and with it gives up the lock.
func (l *sessionLock) drop() {
	if l.conn == nil {
		return
	}
	// Not back into the pool, where it would keep the lock.
	l.conn.Raw(func(any) error { return driver.ErrBadConn })
	l.conn.Close()
	l.conn, l.stmt = nil, nil
}

func (l *sessionLock) check(ctx context.Context) error {
	return l.use(ctx, func(c *sqlx.Conn, _ map[string]*sqlx.Stmt) error { return c.PingContext(ctx) })
}

func (l *sessionLock) take(ctx context.Context) error {
	conn, err := l.db.Connx(ctx)
	for err == nil && conn.PingContext(ctx) != nil { // one of the pool that broke, too
		conn.Close()
		if err = ctx.Err(); err == nil {
			conn, err = l.db.Connx(ctx)
		}
	}
	if err != nil {
		return err
	}
	l.conn, l.stmt = conn, make(map[string]*sqlx.Stmt)
	// The address of a dead machine must not hold the lock for hours.
	_, err = conn.ExecContext(ctx, `SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3`)
	if err == nil && l.pid != 0 {
		// Our own session may live on behind a broken network.
		_, err = conn.ExecContext(ctx, `SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2 AND pid <> pg_backend_pid()`, l.pid, l.born)
	}
	var got bool
	if err == nil {
		err = conn.GetContext(ctx, &got, `SELECT pg_try_advisory_lock(1919904620, hashtext(current_schema()))`)
	}
	if err == nil && !got {
		err = ErrInUse
	}
	if err == nil && l.owner != "" {
		var now string
		err = conn.GetContext(ctx, &now, `SELECT coalesce(max(value), '') FROM meta WHERE key = $1`, ownerMeta)
		if err == nil && now != l.owner {
			err = ErrTakenOver
		}
	}
	if err == nil {
		err = conn.QueryRowxContext(ctx, `SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()`).Scan(&l.pid, &l.born)
	}
	if err != nil {
		l.drop()
	}
	return err
}

func (l *sessionLock) close() error {
	<-l.turn
	defer func() { l.turn <- struct{}{} }()
	l.drop()
	l.db = nil
	return nil
}

// impatient makes connections on which nothing waits longer than that for the
// other end. The driver watches contexts by asking the server to cancel, which a
// server that is stopped, or behind a broken network, does not do.
type impatient struct{ limit time.Duration }

func (d impatient) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

func (d impatient) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

func (d impatient) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &impatientConn{c, d.limit}, nil
}

type impatientConn struct {
	net.Conn
	limit time.Duration
}

func (c *impatientConn) Read(b []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(c.limit))
	return c.Conn.Read(b)
}

func (c *impatientConn) Write(b []byte) (int, error) {
	c.SetWriteDeadline(time.Now().Add(c.limit))
	return c.Conn.Write(b)
}
