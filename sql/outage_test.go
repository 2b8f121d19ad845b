package sql

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"rollcall/dialog"
	"rollcall/pa"
)

// proxy stands between a Store and PostgreSQL. While it is stalled it takes
// connections and forwards nothing.
type proxy struct {
	l  net.Listener
	to string

	mu      sync.Mutex
	stalled chan struct{} // nil: forwards
	conns   []net.Conn
}

func newProxy(t *testing.T, dsn string) (*proxy, string) {
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{to: u.Host}
	if p.l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.l.Close()
		p.resume()
		p.cut()
	})
	go func() {
		for {
			c, err := p.l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", p.to)
			if err != nil {
				c.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, c, s)
			p.mu.Unlock()
			go p.pump(c, s)
			go p.pump(s, c)
		}
	}()
	u.Host = p.l.Addr().String()
	return p, u.String()
}

func (p *proxy) pump(from, to net.Conn) {
	defer to.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		p.mu.Lock()
		stalled := p.stalled
		p.mu.Unlock()
		if stalled != nil {
			<-stalled
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *proxy) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled = make(chan struct{})
}

func (p *proxy) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stalled != nil {
		close(p.stalled)
		p.stalled = nil
	}
}

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// calls are all that may wait for the database.
func calls(s *Store) map[string]func(context.Context) error {
	doc := Document{Selector: "a/global/b", ETag: "1"}
	return map[string]func(context.Context) error{
		"commit one": func(ctx context.Context) error { return s.Commit(ctx, puts(0, 1)) },
		"commit many": func(ctx context.Context) error {
			return s.Commit(ctx, append(puts(0, 5), pa.PutPublication{Row: pubRow(1)}))
		},
		"document":        func(ctx context.Context) error { _, err := s.Document(ctx, "a/global/b"); return err },
		"put document":    func(ctx context.Context) error { _, err := s.PutDocument(ctx, doc, Precondition{}); return err },
		"delete document": func(ctx context.Context) error { return s.DeleteDocument(ctx, "a/global/none", Precondition{}) },
		"selectors":       func(ctx context.Context) error { _, err := s.Selectors(ctx, "a"); return err },
		"meta":            func(ctx context.Context) error { _, err := s.Meta(ctx, "k"); return err },
		"set meta":        func(ctx context.Context) error { return s.SetMeta(ctx, "k", "v") },
		"subscriber":      func(ctx context.Context) error { _, err := s.Subscriber(ctx, "u", "d"); return err },
		"subscribers":     func(ctx context.Context) error { return s.Subscribers(ctx, "", func(Subscriber) error { return nil }) },
		"put subscriber": func(ctx context.Context) error {
			_, err := s.PutSubscriber(ctx, derived("u", "d", "p"), Precondition{})
			return err
		},
		"delete subscriber": func(ctx context.Context) error { return s.DeleteSubscriber(ctx, "none", "d") },
		"check":             s.Check,
		"status":            func(ctx context.Context) error { _, err := s.Status(ctx); return err },
		"subscriptions": func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return s.Subscriptions(ctx, func(dialog.SubscriptionRow) error { return nil })
		},
		"export": func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := s.Export(ctx, io.Discard)
			return err
		},
	}
}

// openImpatient opens a store whose calls end soon; opening may take its time.
func openImpatient(t *testing.T, dsn string) *Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := Open(ctx, dsn, Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A PostgreSQL that does not answer holds no call for longer than its deadline
// and a bit; afterwards each works again, in a session with the lock.
func TestPostgresHangs(t *testing.T) {
	p, dsn := newProxy(t, postgresDatabase(t))
	s := openImpatient(t, dsn)
	all := calls(s)
	for name, f := range all {
		if err := f(t.Context()); err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	p.stall()
	var wg sync.WaitGroup
	for name, f := range all {
		wg.Go(func() {
			start := time.Now()
			if err := f(t.Context()); err == nil || errors.Is(err, ErrNotFound) {
				t.Errorf("%s: %v without a database", name, err)
			}
			if d := time.Since(start); d > 12*time.Second {
				t.Errorf("%s took %v", name, d)
			}
		})
	}
	wg.Wait()
	p.resume()
	for name, f := range all {
		err := f(t.Context())
		for range 5 { // what waited in the proxy, and our old session, go first
			if err == nil || errors.Is(err, ErrNotFound) {
				break
			}
			err = f(t.Context())
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("%s, afterwards: %v", name, err)
		}
	}
	if _, err := Open(t.Context(), dsn, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("second server: %v", err)
	}
}

// A commit whose answer is lost, and then its undoing: the first one must not be
// done after the second, by a session that was left behind.
func TestPostgresAnswerLost(t *testing.T) {
	p, dsn := newProxy(t, postgresDatabase(t))
	s := openImpatient(t, dsn)
	commit(t, s, puts(0, 1)...)
	for range 3 {
		p.stall()
		if err := s.Commit(t.Context(), puts(1, 4)); err == nil {
			t.Fatal("committed")
		}
		p.resume() // what was sent arrives now
		var err error
		for range 20 {
			if err = s.Commit(t.Context(), []dialog.Write{dialog.DeleteSubscription{ID: subRow(1).ID}, dialog.DeleteSubscription{ID: subRow(2).ID}, dialog.DeleteSubscription{ID: subRow(3).ID}}); err == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		if n := len(loadSubs(t, s)); n != 1 {
			t.Fatalf("%d rows: what was left behind was done afterwards", n)
		}
	}
}

// A server whose session broke cannot write once another one has the lock, nor
// when that has ended: it does not know the rows.
func TestPostgresTakenOver(t *testing.T) {
	direct := postgresDatabase(t)
	p, dsn := newProxy(t, direct)
	s := open(t, dsn, Options{})
	commit(t, s, puts(0, 1)...)
	p.cut()
	var other *Store
	var err error
	for range 50 { // until PostgreSQL has noticed
		if other, err = Open(t.Context(), direct, Options{}); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 5} {
		if err := s.Commit(t.Context(), puts(10, 10+n)); !errors.Is(err, ErrInUse) {
			t.Errorf("beside another server: %v", err)
		}
	}
	if err := s.Check(t.Context()); !errors.Is(err, ErrInUse) {
		t.Errorf("check: %v", err)
	}
	commit(t, other, puts(1, 2)...)
	other.Close()
	for range 2 {
		if err := s.Commit(t.Context(), puts(2, 3)); !errors.Is(err, ErrTakenOver) {
			t.Errorf("after another server: %v", err)
		}
	}
	if n := len(loadSubs(t, s)); n != 2 {
		t.Errorf("%d rows", n)
	}
	next := open(t, direct, Options{}) // and does not keep the lock
	commit(t, next, puts(2, 3)...)
}

// A SQLite file that another program keeps locked holds no call for longer than
// its deadline; reading goes on.
func TestSQLiteBusy(t *testing.T) {
	dsn := "sqlite:" + t.TempDir() + "/a.db"
	s := openImpatient(t, dsn)
	commit(t, s, puts(0, 3)...)
	other := open(t, dsn, Options{Beside: true})
	tx, err := other.w.Beginx()
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range calls(s) {
		writes := strings.HasPrefix(name, "commit") || strings.HasPrefix(name, "put") || strings.HasPrefix(name, "delete") || strings.HasPrefix(name, "set")
		start := time.Now()
		err := f(t.Context())
		if writes && (err == nil || errors.Is(err, dialog.ErrUnstorable)) || !writes && err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		if d := time.Since(start); d > 8*time.Second {
			t.Errorf("%s took %v", name, d)
		}
	}
	tx.Rollback()
	commit(t, s, puts(3, 4)...)
}
