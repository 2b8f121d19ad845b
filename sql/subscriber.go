package sql

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"rollcall/sip/auth"
)

// ErrPlaintext says that a row of table subscriber has its password in plain text, so another program owns it. Writing
// hashes beside it would give the user two passwords.
var ErrPlaintext = errors.New("sql: the password is kept in plain text by another program")

// Subscriber is a user of a domain, a row of table subscriber.
type Subscriber struct {
	Username string
	Domain   string       // and the realm of the hashes; compared byte for byte
	Secrets  auth.Secrets // also those made from a password in plain text
	// HA1B is the hash of username@domain:domain:password, for clients that write user@domain as their name: MD5, or
	// SHA-256 when it has 64 digits. May be empty.
	HA1B string
}

// subscriberRow is a row as read.
type subscriberRow struct {
	Subscriber
	password string
}

// as gives the secrets for a user name as the client wrote it.
func (r *subscriberRow) as(name string) auth.Secrets {
	if !strings.Contains(name, "@") {
		return r.Secrets
	}
	s := auth.Secrets{auth.MD5: hexDigits(r.HA1B, 32), auth.SHA256: hexDigits(r.HA1B, 64)}
	if !s.Known() && r.password != "" {
		s = auth.Derive(name, r.Domain, r.password)
	}
	return s
}

// hexDigits gives v in lower case when it is a hash of that many digits. Anything else in a column is as good as nothing.
func hexDigits(v string, digits int) string {
	v = strings.ToLower(strings.TrimSpace(v))
	if len(v) != digits || strings.Trim(v, "0123456789abcdef") != "" {
		return ""
	}
	return v
}

// account takes a user name apart as the client wrote it: alone or with its domain, which must be the one asked for.
func account(name, domain string) (username string, ok bool) {
	if i := strings.LastIndexByte(name, '@'); i >= 0 {
		return name[:i], name[i+1:] == domain // as it is in the hash
	}
	return name, true
}

// Subscriber reads what authenticates a user: ErrNotFound when there is no such user, or nothing to authenticate it with.
// The username is as the client wrote it; for user@domain the secrets are those of that spelling.
func (s *Store) Subscriber(ctx context.Context, username, domain string) (auth.Secrets, error) {
	user, ok := account(username, domain)
	if !ok {
		return auth.Secrets{}, ErrNotFound
	}
	var secrets auth.Secrets
	if s.mem != nil {
		r := subscriberRow{Subscriber: s.mem.subscriber(user, domain)}
		secrets = r.as(username)
	} else {
		ctx, cancel := s.bound(ctx)
		defer cancel()
		err := s.eachSubscriber(ctx, ` WHERE username = ? AND domain = ?`, []any{s.text(user), s.text(domain)}, func(r *subscriberRow) error {
			secrets = r.as(username)
			return nil
		})
		if err != nil {
			return auth.Secrets{}, fmt.Errorf("sql: subscriber: %w", err)
		}
	}
	if !secrets.Known() {
		return auth.Secrets{}, ErrNotFound
	}
	return secrets, nil
}

// Subscribers calls f with each user of a domain, or of all domains when that is empty, by domain and name in byte order.
// An error of f ends it and is returned as it is.
func (s *Store) Subscribers(ctx context.Context, domain string, f func(Subscriber) error) error {
	if s.mem != nil {
		for _, sub := range s.mem.subscribers(domain) {
			if err := f(sub); err != nil {
				return err
			}
		}
		return nil
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	order, where, args := ` ORDER BY domain, username`, ``, []any(nil)
	if s.engine == enginePostgres {
		order = ` ORDER BY domain COLLATE "C", username COLLATE "C"`
	}
	if domain != "" {
		where, args = ` WHERE domain = ?`, []any{s.text(domain)}
	}
	var own error
	err := s.eachSubscriber(ctx, where+order, args, func(r *subscriberRow) error {
		own = f(r.Subscriber)
		return own
	})
	if err != nil && own == nil {
		err = fmt.Errorf("sql: subscribers: %w", err)
	}
	return err
}

// eachSubscriber reads rows.
func (s *Store) eachSubscriber(ctx context.Context, tail string, args []any, f func(*subscriberRow) error) error {
	return s.eachSubscriberFrom(ctx, s.r, tail, args, f)
}

func (s *Store) eachSubscriberFrom(ctx context.Context, q sqlx.QueryerContext, tail string, args []any, f func(*subscriberRow) error) error {
	cols, err := s.subscriberColumns(ctx)
	if err != nil {
		return err
	}
	col := func(name string) string {
		if slices.Contains(cols, name) {
			return ", coalesce(" + name + ", '')"
		}
		return ", ''"
	}
	rows, err := q.QueryxContext(ctx, s.r.Rebind(`SELECT username, domain`+
		col("password")+col("ha1")+col("ha1b")+col("ha1_sha256")+col("ha1_sha512t256")+` FROM subscriber`+tail), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var username, domain, password, ha1, ha1b, sha256, sha512 string
		if err := rows.Scan(&username, &domain, &password, &ha1, &ha1b, &sha256, &sha512); err != nil {
			return err
		}
		r := newSubscriberRow(s.plain(strings.TrimRight(username, " ")), s.plain(strings.TrimRight(domain, " ")), password, ha1, ha1b, sha256, sha512)
		if err := f(r); err != nil {
			return err
		}
	}
	return rows.Err()
}

// newSubscriberRow makes a row of a table's values.
func newSubscriberRow(username, domain, password, ha1, ha1b, sha256, sha512 string) *subscriberRow {
	// Columns of type CHAR are filled up with spaces.
	r := &subscriberRow{Subscriber{Username: strings.TrimRight(username, " "), Domain: strings.TrimRight(domain, " "), HA1B: ha1b}, password}
	r.Secrets[auth.MD5], r.Secrets[auth.SHA256], r.Secrets[auth.SHA512256] = hexDigits(ha1, 32), hexDigits(sha256, 64), hexDigits(sha512, 64)
	if r.Secrets[auth.SHA256] == "" { // Kamailio has one column whatever its algorithm
		r.Secrets[auth.SHA256] = hexDigits(ha1, 64)
	}
	if !r.Secrets.Known() && r.password != "" {
		r.Secrets = auth.Derive(r.Username, r.Domain, r.password)
	}
	return r
}

// subscriberColumns tells which of the columns we know the table has. It is looked up once: a table that is changed later
// is seen as it was until the database is opened again.
func (s *Store) subscriberColumns(ctx context.Context) ([]string, error) {
	s.subscriberMu.Lock()
	defer s.subscriberMu.Unlock()
	if s.subscriberCols != nil {
		return s.subscriberCols, nil
	}
	look := `SELECT name FROM pragma_table_info('subscriber')`
	if s.engine == enginePostgres { // as the search path finds it, like the statements do
		look = `SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('subscriber') AND attnum > 0 AND NOT attisdropped`
	}
	var cols []string
	if err := s.r.SelectContext(ctx, &cols, look); err != nil {
		return nil, err
	}
	switch {
	case len(cols) == 0:
		return nil, errors.New("there is no table subscriber")
	case !slices.Contains(cols, "username") || !slices.Contains(cols, "domain"):
		return nil, errors.New("table subscriber has no columns username and domain")
	case !slices.Contains(cols, "ha1") && !slices.Contains(cols, "password"):
		return nil, errors.New("table subscriber has neither column ha1 nor password")
	}
	s.subscriberCols = cols
	return cols, nil
}

// PutSubscriber inserts or replaces a user when the condition holds, which cannot name an ETag; otherwise it fails with
// ErrConflict, and with ErrPlaintext when the row's password is not ours to change. What the table has no column for is
// left out: a table made by Kamailio takes the hash of one algorithm, SHA-256 when its rows have that and MD5 otherwise.
func (s *Store) PutSubscriber(ctx context.Context, sub Subscriber, only Precondition) (created bool, err error) {
	if s.mem != nil {
		return s.mem.putSubscriber(sub, only)
	}
	err = s.retry(ctx, "put subscriber", func(ctx context.Context) error {
		cols, err := s.subscriberColumns(ctx)
		if err != nil {
			return err
		}
		tx, err := s.w.BeginTxx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if s.engine == enginePostgres { // a row that does not exist yet cannot be locked
			if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(1919904622, hashtext($1))`, s.text(sub.Username)); err != nil {
				return err
			}
		}
		key := []any{s.text(sub.Username), s.text(sub.Domain)}
		var password string
		look := `SELECT '' FROM subscriber WHERE username = ? AND domain = ?`
		if slices.Contains(cols, "password") {
			look = `SELECT coalesce(password, '') FROM subscriber WHERE username = ? AND domain = ?`
		}
		err = tx.GetContext(ctx, &password, tx.Rebind(look), key...)
		exists := err == nil
		switch {
		case err != nil && !errors.Is(err, stdsql.ErrNoRows):
			return err
		case strings.TrimSpace(password) != "":
			return ErrPlaintext
		}
		if err := only.check(exists, ""); err != nil {
			return err
		}
		created = !exists
		values, err := subscriberValues(ctx, tx, cols, sub)
		if err != nil {
			return err
		}
		var names, marks, sets []string
		var args []any
		for _, v := range values {
			names, marks, sets, args = append(names, v.column), append(marks, "?"), append(sets, v.column+" = ?"), append(args, v.hash)
		}
		text := `UPDATE subscriber SET ` + strings.Join(sets, ", ") + ` WHERE username = ? AND domain = ?`
		if created {
			text = `INSERT INTO subscriber (` + strings.Join(names, ", ") + `, username, domain) VALUES (` + strings.Join(marks, ", ") + `, ?, ?)`
		}
		if _, err := tx.ExecContext(ctx, tx.Rebind(text), append(args, key...)...); err != nil {
			return err
		}
		return tx.Commit()
	})
	return created, err
}

type subscriberValue struct{ column, hash string }

// subscriberValues picks what to write into a table with these columns.
func subscriberValues(ctx context.Context, tx *sqlx.Tx, cols []string, sub Subscriber) ([]subscriberValue, error) {
	if !slices.Contains(cols, "ha1") {
		return nil, errors.New("table subscriber has no column ha1")
	}
	all := []subscriberValue{
		{"ha1", sub.Secrets[auth.MD5]}, {"ha1b", sub.HA1B},
		{"ha1_sha256", sub.Secrets[auth.SHA256]}, {"ha1_sha512t256", sub.Secrets[auth.SHA512256]},
	}
	if !slices.Contains(cols, "ha1_sha256") {
		var long int
		if err := tx.GetContext(ctx, &long, `SELECT count(*) FROM (SELECT 1 FROM subscriber WHERE length(ha1) = 64 LIMIT 1) AS x`); err != nil {
			return nil, err
		}
		if long > 0 {
			all[0].hash, all[1].hash = sub.Secrets[auth.SHA256], hexDigits(sub.HA1B, 64)
		}
		if all[0].hash == "" {
			return nil, errors.New("table subscriber has no column for the algorithms given")
		}
	}
	return slices.DeleteFunc(all, func(v subscriberValue) bool { return !slices.Contains(cols, v.column) }), nil
}

// DeleteSubscriber removes a user, or fails with ErrNotFound.
func (s *Store) DeleteSubscriber(ctx context.Context, username, domain string) error {
	if s.mem != nil {
		return s.mem.deleteSubscriber(username, domain)
	}
	return s.retry(ctx, "delete subscriber", func(ctx context.Context) error {
		res, err := s.w.ExecContext(ctx, s.w.Rebind(`DELETE FROM subscriber WHERE username = ? AND domain = ?`), s.text(username), s.text(domain))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, ErrNotFound)
		}
		return nil
	})
}

// SubscriberDB is table subscriber of another program's database, only read. Connections that broke are opened anew.
type SubscriberDB struct{ s *Store }

// OpenSubscribers opens a database with a table subscriber as Kamailio or OpenSIPS make it: sqlite:PATH or postgres://...
// A call whose context has no deadline ends after 5 s.
func OpenSubscribers(ctx context.Context, dsn string) (*SubscriberDB, error) {
	s := &Store{timeout: 5 * time.Second, beside: true}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	err := s.connect(ctx, dsn, Options{Beside: true, Conns: 4, readOnly: true})
	if err == nil {
		_, err = s.subscriberColumns(ctx)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("sql: open %s: %w", s.name, err)
	}
	return &SubscriberDB{s}, nil
}

// Subscriber is that of Store.
func (d *SubscriberDB) Subscriber(ctx context.Context, username, domain string) (auth.Secrets, error) {
	return d.s.Subscriber(ctx, username, domain)
}

// Subscribers is that of Store.
func (d *SubscriberDB) Subscribers(ctx context.Context, domain string, f func(Subscriber) error) error {
	return d.s.Subscribers(ctx, domain, f)
}

// String names the database for logs, without a password.
func (d *SubscriberDB) String() string { return d.s.name }

// Close waits for calls under way and closes the connections. Later calls do nothing.
func (d *SubscriberDB) Close() error { return d.s.Close() }
