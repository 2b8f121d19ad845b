package sql

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jmoiron/sqlx"
)

// NullString is a value that may be NULL, then it is not Valid.
type NullString = stdsql.NullString

// PeerDB is the database of another presence server, only read and as of the moment it was opened. One goroutine uses it.
type PeerDB struct {
	name string
	kind string // sqlite, postgres, mysql
	s    *Store // of sqlite and postgres
	db   *sqlx.DB
	tx   *sqlx.Tx
}

// OpenPeer opens a database:
//
//	sqlite:PATH                              a file
//	postgres://USER:PASSWORD@HOST/DATABASE   as lib/pq reads it
//	mysql://USER:PASSWORD@HOST:PORT/DATABASE MySQL or MariaDB; ?socket=PATH for a socket, ?tls=true for TLS
//
// Kamailio's and OpenSIPS's own db_url is mostly just that.
func OpenPeer(ctx context.Context, dsn string) (*PeerDB, error) {
	p := &PeerDB{}
	kind, rest, _ := strings.Cut(dsn, ":")
	var err error
	switch kind {
	case "mysql":
		err = p.openMySQL(dsn)
	case "sqlite", "postgres", "postgresql":
		p.kind = kind
		p.s = &Store{timeout: 10 * time.Second, beside: true}
		octx, cancel := p.s.bound(ctx)
		err = p.s.connect(octx, kind+":"+rest, Options{Beside: true, Conns: 2, readOnly: true})
		cancel()
		p.name, p.db = p.s.name, p.s.r
		if kind == "postgresql" {
			p.kind = "postgres"
		}
	default:
		return nil, errors.New("unknown kind of database: want sqlite:PATH, postgres://... or mysql://...")
	}
	if err == nil {
		err = p.begin(ctx)
	}
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("sql: open %s: %w", p.name, err)
	}
	return p, nil
}

// begin fixes the moment.
func (p *PeerDB) begin(ctx context.Context) (err error) {
	opt, first := (*stdsql.TxOptions)(nil), ""
	switch p.kind {
	case "sqlite":
		first = `SELECT count(*) FROM sqlite_master`
	case "postgres":
		opt, first = &stdsql.TxOptions{ReadOnly: true, Isolation: stdsql.LevelRepeatableRead}, `SELECT 1`
	case "mysql": // which takes the moment of the first read of a row, if it is not told otherwise
		p.db.SetMaxOpenConns(1)
		if _, err := p.db.ExecContext(ctx, `SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ`); err != nil {
			return err
		}
		first = `START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY`
	}
	if p.tx, err = p.db.BeginTxx(ctx, opt); err != nil {
		return err
	}
	_, err = p.tx.ExecContext(ctx, first)
	return err
}

func (p *PeerDB) openMySQL(dsn string) error {
	p.kind, p.name = "mysql", "mysql"
	u, err := url.Parse(dsn)
	if err != nil || u.Opaque != "" {
		return errors.New("the mysql:// address is not a URL") // the cause would show the password
	}
	p.name = u.Redacted()
	cfg := mysql.NewConfig()
	cfg.User, cfg.DBName, cfg.Net, cfg.Addr = u.User.Username(), strings.TrimPrefix(u.Path, "/"), "tcp", u.Host
	cfg.Passwd, _ = u.User.Password()
	cfg.Timeout, cfg.ReadTimeout = 5*time.Second, time.Minute
	if u.Port() == "" {
		cfg.Addr += ":3306"
	}
	if cfg.DBName == "" {
		return errors.New("the mysql:// address names no database")
	}
	for k, v := range u.Query() {
		switch k {
		case "socket":
			cfg.Net, cfg.Addr = "unix", v[0]
		case "tls":
			cfg.TLSConfig = v[0]
		default:
			return fmt.Errorf("unknown parameter %q: there are socket and tls", k)
		}
	}
	// The bytes as they were written: what a peer says its characters are is often not what they are.
	if err := cfg.Apply(mysql.Charset("binary", "")); err != nil {
		return err
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return err
	}
	p.db = sqlx.NewDb(stdsql.OpenDB(connector), "mysql")
	return nil
}

// String names the database for people, without a password.
func (p *PeerDB) String() string { return p.name }

// Close ends the look at the database. Later calls do nothing.
func (p *PeerDB) Close() error {
	var err error
	if p.tx != nil {
		err = p.tx.Rollback()
		p.tx = nil
	}
	if p.s != nil {
		return errors.Join(err, p.s.Close())
	}
	if p.db != nil {
		err = errors.Join(err, p.db.Close())
		p.db = nil
	}
	return err
}

// Columns lists a table's columns, none when there is no such table.
func (p *PeerDB) Columns(ctx context.Context, table string) ([]string, error) {
	look := `SELECT name FROM pragma_table_info(?)`
	switch p.kind {
	case "postgres":
		look = `SELECT attname FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped`
	case "mysql":
		look = `SELECT column_name FROM information_schema.columns WHERE table_schema = database() AND table_name = ?`
	}
	var cols []string
	if err := p.tx.SelectContext(ctx, &cols, look, table); err != nil {
		return nil, fmt.Errorf("sql: columns of %s: %w", table, err)
	}
	return cols, nil
}

// Each calls f with the values of some columns of every row of a table, ordered by some of them; NULL is not Valid, and
// a column that the table has not is NULL. Table and columns are the program's own words. An error of f ends it. f must
// not use the PeerDB.
func (p *PeerDB) Each(ctx context.Context, table string, columns, order []string, f func(row []NullString) error) error {
	has, err := p.Columns(ctx, table)
	if err != nil {
		return err
	}
	var names []string
	for _, c := range columns {
		if !slices.Contains(has, c) {
			c = "NULL"
		}
		names = append(names, c)
	}
	text := "SELECT " + strings.Join(names, ", ") + " FROM " + table
	if len(order) > 0 {
		text += " ORDER BY " + strings.Join(order, ", ")
	}
	rows, err := p.tx.QueryContext(ctx, text)
	if err != nil {
		return fmt.Errorf("sql: read %s: %w", table, err)
	}
	defer rows.Close()
	row, to := make([]NullString, len(columns)), make([]any, len(columns))
	for i := range row {
		to[i] = &row[i]
	}
	for rows.Next() {
		if err := rows.Scan(to...); err != nil {
			return fmt.Errorf("sql: read %s: %w", table, err)
		}
		if err := f(row); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("sql: read %s: %w", table, err)
	}
	return nil
}

// PeerSubscriber makes a user of the values of table subscriber: user name, domain, password, ha1, ha1b, ha1_sha256 and
// ha1_sha512t256. It has no secrets when there are none.
func PeerSubscriber(username, domain, password, ha1, ha1b, sha256, sha512 string) Subscriber {
	return newSubscriberRow(username, domain, password, ha1, ha1b, sha256, sha512).Subscriber
}
