package server

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"rollcall/sip/auth"
	"rollcall/sql"
)

const (
	// maxUsers bounds the users whose secrets are kept; beyond it another one is
	// forgotten and read again.
	maxUsers = 100_000
	// maxStrangers bounds the names known to be nobody's; beyond it another one
	// is forgotten. They are counted apart, so that a flood of them costs no user
	// his place.
	maxStrangers = 10_000
	// maxUserName is in bytes, of the name and the realm together. Longer ones
	// are nobody's.
	maxUserName = 512

	strangerLife = 5 * time.Second  // so that a new user need not wait
	foreignLife  = 60 * time.Second // of secrets another program may change
)

// userOrigin is where secrets come from. Unknown users are sql.ErrNotFound.
type userOrigin interface {
	Subscriber(ctx context.Context, user, realm string) (auth.Secrets, error)
	Subscribers(ctx context.Context, realm string, f func(sql.Subscriber) error) error
}

// userWriter is an origin whose users are ours to change.
type userWriter interface {
	PutSubscriber(ctx context.Context, sub sql.Subscriber, only sql.Precondition) (created bool, err error)
	DeleteSubscriber(ctx context.Context, user, realm string) error
}

// userSource keeps the secrets of users for digest authentication.
type userSource struct {
	name   string // for people, without a password
	origin userOrigin
	writer userWriter    // nil: another program's users
	life   time.Duration // of known users; 0: until they change
	run    func(context.Context)
	close  func() error

	mu        sync.Mutex
	known     map[userKey]userEntry
	strangers map[userKey]time.Time // until when
	epoch     uint64                // of changes
}

type userKey struct{ user, realm string }

type userEntry struct {
	secrets auth.Secrets
	until   time.Time // zero: for ever
}

// openUsers opens a source as Config.Users names it.
func openUsers(ctx context.Context, source string, store *sql.Store, log *slog.Logger) (*userSource, error) {
	u := &userSource{
		name: Mask(source), run: func(context.Context) {}, close: func() error { return nil },
		known: make(map[userKey]userEntry), strangers: make(map[userKey]time.Time),
	}
	path, file := strings.CutPrefix(source, "file:")
	switch {
	case source == "" || source == "store":
		u.name, u.origin, u.writer = "store", store, store
		if store.Engine() == "postgres" { // whose table may be a proxy's too
			u.life = foreignLife
		}
	case file:
		f, err := openUserFile(path, u.forget, log)
		if err != nil {
			return nil, err
		}
		u.origin, u.writer, u.run = f, f, f.watch
	default:
		db, err := sql.OpenSubscribers(ctx, source)
		if err != nil {
			return nil, err
		}
		u.name, u.origin, u.life, u.close = db.String(), db, foreignLife, db.Close
	}
	return u, nil
}

// Cached gives what is known of a user without waiting. The user name is as the
// client wrote it. Known with no secrets: there is no such user. Not known: Fetch.
func (u *userSource) Cached(user, realm string) (secrets auth.Secrets, known bool) {
	if len(user)+len(realm) > maxUserName {
		return auth.Secrets{}, true
	}
	key, now := userKey{user, realm}, time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	if e, ok := u.known[key]; ok && (e.until.IsZero() || now.Before(e.until)) {
		return e.secrets, true
	}
	until, ok := u.strangers[key]
	return auth.Secrets{}, ok && now.Before(until)
}

// Fetch reads the secrets of a user where they come from, which may block, and
// keeps them for Cached. No secrets and no error: there is no such user. An
// error says that it is not known whether there is.
func (u *userSource) Fetch(ctx context.Context, user, realm string) (auth.Secrets, error) {
	if len(user)+len(realm) > maxUserName {
		return auth.Secrets{}, nil
	}
	u.mu.Lock()
	epoch := u.epoch
	u.mu.Unlock()
	secrets, err := u.origin.Subscriber(ctx, user, realm)
	if err != nil && !errors.Is(err, sql.ErrNotFound) {
		return auth.Secrets{}, err
	}
	key, now := userKey{strings.Clone(user), strings.Clone(realm)}, time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.epoch != epoch { // what was read may be old already
		return secrets, nil
	}
	delete(u.known, key)
	delete(u.strangers, key)
	if !secrets.Known() {
		room(u.strangers, maxStrangers)
		u.strangers[key] = now.Add(strangerLife)
		return secrets, nil
	}
	room(u.known, maxUsers)
	e := userEntry{secrets: secrets}
	if u.life > 0 {
		e.until = now.Add(u.life)
	}
	u.known[key] = e
	return secrets, nil
}

// room makes place for one more entry.
func room[V any](m map[userKey]V, limit int) {
	for k := range m {
		if len(m) < limit {
			return
		}
		delete(m, k)
	}
}

// forget drops what is kept of a user whose secrets changed, of all users when
// the name is empty.
func (u *userSource) forget(user, realm string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.epoch++
	if user == "" {
		clear(u.known)
		clear(u.strangers)
		return
	}
	for _, name := range []string{user, user + "@" + realm} {
		delete(u.known, userKey{name, realm})
		delete(u.strangers, userKey{name, realm})
	}
}
