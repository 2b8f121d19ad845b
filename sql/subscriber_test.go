package sql

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"rollcall/sip/auth"
)

// derived is a user as rollcall user add makes it.
func derived(username, domain, password string) Subscriber {
	return Subscriber{
		Username: username, Domain: domain, Secrets: auth.Derive(username, domain, password),
		HA1B: auth.MD5.Sum(username + "@" + domain + ":" + domain + ":" + password),
	}
}

func subscribersOf(t *testing.T, s interface {
	Subscribers(context.Context, string, func(Subscriber) error) error
}, domain string,
) []Subscriber {
	t.Helper()
	var all []Subscriber
	if err := s.Subscribers(t.Context(), domain, func(sub Subscriber) error { all = append(all, sub); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestSubscribers(t *testing.T) {
	t.Run("memory", func(t *testing.T) { testSubscribers(t, open(t, "memory", Options{})) })
	engines(t, func(t *testing.T, dsn string) { testSubscribers(t, open(t, dsn, Options{})) })
}

// testSubscribers is what every store must do with users.
func testSubscribers(t *testing.T, s *Store) {
	ctx := t.Context()
	alice, bob, other := derived("alice", "example.com", "secret"), derived("bob", "example.com", "p"), derived("alice", "example.org", "q")
	if _, err := s.Subscriber(ctx, "alice", "example.com"); !errors.Is(err, ErrNotFound) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nobody: %v", err)
	}
	if err := s.DeleteSubscriber(ctx, "alice", "example.com"); !errors.Is(err, ErrNotFound) {
		t.Errorf("delete of nobody: %v", err)
	}
	if _, err := s.PutSubscriber(ctx, alice, Precondition{Match: "*"}); !errors.Is(err, ErrConflict) {
		t.Errorf("replace of nobody: %v", err)
	}
	for _, sub := range []Subscriber{other, bob, alice} {
		if created, err := s.PutSubscriber(ctx, sub, Precondition{Absent: true}); err != nil || !created {
			t.Fatalf("put: %v, %v", created, err)
		}
	}
	if _, err := s.PutSubscriber(ctx, alice, Precondition{Absent: true}); !errors.Is(err, ErrConflict) {
		t.Errorf("second insert: %v", err)
	}
	ha1b := auth.Secrets{auth.MD5: alice.HA1B}
	for _, tt := range []struct {
		user, domain string
		want         auth.Secrets // zero: ErrNotFound
	}{
		{"alice", "example.com", alice.Secrets},
		{"alice", "example.org", other.Secrets},
		{"alice@example.com", "example.com", ha1b},
		{"alice@EXAMPLE.com", "example.com", ha1b},
		{"alice@example.org", "example.com", auth.Secrets{}},
		{"Alice", "example.com", auth.Secrets{}},
		{"alice", "example.net", auth.Secrets{}},
		{"", "example.com", auth.Secrets{}},
		{"@example.com", "example.com", auth.Secrets{}},
		{"' OR ''='", "example.com", auth.Secrets{}},
		{"a\x00\xff", "example.com", auth.Secrets{}},
	} {
		got, err := s.Subscriber(ctx, tt.user, tt.domain)
		if got != tt.want || tt.want.Known() != (err == nil) || err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("%q at %q: %v, %v", tt.user, tt.domain, got, err)
		}
	}
	if got, want := subscribersOf(t, s, ""), []Subscriber{alice, bob, other}; !reflect.DeepEqual(got, want) {
		t.Errorf("all: %v", got)
	}
	if got, want := subscribersOf(t, s, "example.org"), []Subscriber{other}; !reflect.DeepEqual(got, want) {
		t.Errorf("of a domain: %v", got)
	}
	stop := errors.New("stop")
	if err := s.Subscribers(ctx, "", func(Subscriber) error { return stop }); err != stop {
		t.Errorf("callback's error: %v", err)
	}

	// Another password replaces every hash, those that are not given too.
	md5 := Subscriber{Username: "alice", Domain: "example.com", Secrets: auth.Secrets{auth.MD5: auth.MD5.Sum("x")}}
	if created, err := s.PutSubscriber(ctx, md5, Precondition{Match: "*"}); err != nil || created {
		t.Errorf("replace: %v, %v", created, err)
	}
	if got, err := s.Subscriber(ctx, "alice", "example.com"); got != md5.Secrets || err != nil {
		t.Errorf("replaced: %v, %v", got, err)
	}
	if got, err := s.Subscriber(ctx, "alice@example.com", "example.com"); !errors.Is(err, ErrNotFound) {
		t.Errorf("name with domain after replacement: %v, %v", got, err)
	}
	if err := s.DeleteSubscriber(ctx, "alice", "example.com"); err != nil {
		t.Fatal(err)
	}
	if got, want := subscribersOf(t, s, ""), []Subscriber{bob, other}; !reflect.DeepEqual(got, want) {
		t.Errorf("after delete: %v", got)
	}
}

// layouts are the tables other programs make, column by column.
var layouts = map[string]struct{ postgres, sqlite string }{
	"kamailio": { // table version 7; 5.x
		`id SERIAL PRIMARY KEY NOT NULL, username VARCHAR(64) DEFAULT '' NOT NULL, domain VARCHAR(64) DEFAULT '' NOT NULL, password VARCHAR(64) DEFAULT '' NOT NULL,
		 ha1 VARCHAR(128) DEFAULT '' NOT NULL, ha1b VARCHAR(128) DEFAULT '' NOT NULL, CONSTRAINT subscriber_account_idx UNIQUE (username, domain)`,
		`id INTEGER PRIMARY KEY NOT NULL, username VARCHAR(64) DEFAULT '' NOT NULL, domain VARCHAR(64) DEFAULT '' NOT NULL, password VARCHAR(64) DEFAULT '' NOT NULL,
		 ha1 VARCHAR(128) DEFAULT '' NOT NULL, ha1b VARCHAR(128) DEFAULT '' NOT NULL, CONSTRAINT subscriber_account_idx UNIQUE (username, domain)`,
	},
	"opensips": { // table version 8; 3.2 and newer
		`id SERIAL PRIMARY KEY NOT NULL, username VARCHAR(64) DEFAULT '' NOT NULL, domain VARCHAR(64) DEFAULT '' NOT NULL, password VARCHAR(25) DEFAULT '' NOT NULL,
		 ha1 VARCHAR(64) DEFAULT '' NOT NULL, ha1_sha256 VARCHAR(64) DEFAULT '' NOT NULL, ha1_sha512t256 VARCHAR(64) DEFAULT '' NOT NULL, CONSTRAINT subscriber_account_idx UNIQUE (username, domain)`,
		`id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, username CHAR(64) DEFAULT '' NOT NULL, domain CHAR(64) DEFAULT '' NOT NULL, password CHAR(25) DEFAULT '' NOT NULL,
		 ha1 CHAR(64) DEFAULT '' NOT NULL, ha1_sha256 CHAR(64) DEFAULT '' NOT NULL, ha1_sha512t256 CHAR(64) DEFAULT '' NOT NULL, CONSTRAINT subscriber_account_idx UNIQUE (username, domain)`,
	},
	"old opensips": { // table version 6, as older versions of both make it
		`id SERIAL PRIMARY KEY NOT NULL, username CHAR(64) DEFAULT '' NOT NULL, domain CHAR(64) DEFAULT '' NOT NULL, password VARCHAR(25) DEFAULT '' NOT NULL,
		 email_address VARCHAR(64) DEFAULT '' NOT NULL, ha1 CHAR(64) DEFAULT '' NOT NULL, ha1b CHAR(64), rpid VARCHAR(64) DEFAULT NULL, CONSTRAINT subscriber_account_idx UNIQUE (username, domain)`,
		`id INTEGER PRIMARY KEY NOT NULL, username CHAR(64) DEFAULT '' NOT NULL, domain CHAR(64) DEFAULT '' NOT NULL, password CHAR(25) DEFAULT '' NOT NULL,
		 email_address CHAR(64) DEFAULT '' NOT NULL, ha1 CHAR(64) DEFAULT '' NOT NULL, ha1b CHAR(64), rpid CHAR(64) DEFAULT NULL, CONSTRAINT subscriber_account_idx UNIQUE (username, domain)`,
	},
}

// foreign makes a database of another program with its table, and a connection to write into it.
func foreign(t *testing.T, dsn, layout string) *sqlx.DB {
	t.Helper()
	driver, source, columns := "postgres", dsn, layouts[layout].postgres
	if path, ok := strings.CutPrefix(dsn, "sqlite:"); ok {
		driver, columns = "sqlite", layouts[layout].sqlite
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		source = "file:" + strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23", " ", "%20").Replace(path)
	}
	db, err := sqlx.Open(driver, source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	execute(t, db, "CREATE TABLE subscriber ("+columns+")")
	return db
}

func execute(t *testing.T, db *sqlx.DB, text string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), db.Rebind(text), args...); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// Rows of other programs' tables, read as an external database and as our own.
func TestSubscriberLayouts(t *testing.T) {
	a := derived("alice", "example.com", "secret")
	sha256b := auth.SHA256.Sum("alice@example.com:example.com:secret")
	type columns map[string]string
	tests := []struct {
		layout, name string
		row          columns
		user         string
		want         auth.Secrets // zero: ErrNotFound
	}{
		{"kamailio", "MD5", columns{"ha1": a.Secrets[auth.MD5], "ha1b": a.HA1B}, "alice", auth.Secrets{auth.MD5: a.Secrets[auth.MD5]}},
		{"kamailio", "upper case", columns{"ha1": strings.ToUpper(a.Secrets[auth.MD5])}, "alice", auth.Secrets{auth.MD5: a.Secrets[auth.MD5]}},
		{"kamailio", "MD5, name with domain", columns{"ha1": a.Secrets[auth.MD5], "ha1b": a.HA1B}, "alice@example.com", auth.Secrets{auth.MD5: a.HA1B}},
		{"kamailio", "SHA-256", columns{"ha1": a.Secrets[auth.SHA256], "ha1b": sha256b}, "alice", auth.Secrets{auth.SHA256: a.Secrets[auth.SHA256]}},
		{"kamailio", "SHA-256, name with domain", columns{"ha1": a.Secrets[auth.SHA256], "ha1b": sha256b}, "alice@example.com", auth.Secrets{auth.SHA256: sha256b}},
		{"kamailio", "plain text", columns{"password": "secret"}, "alice", a.Secrets},
		{"kamailio", "plain text, name with domain", columns{"password": "secret"}, "alice@example.com", auth.Derive("alice@example.com", "example.com", "secret")},
		{"kamailio", "plain text beside hashes", columns{"password": "other", "ha1": a.Secrets[auth.MD5]}, "alice", auth.Secrets{auth.MD5: a.Secrets[auth.MD5]}},
		{"kamailio", "nothing", nil, "alice", auth.Secrets{}},
		{"kamailio", "no hash", columns{"ha1": "*disabled*", "ha1b": strings.Repeat("x", 32)}, "alice", auth.Secrets{}},
		{
			"opensips", "all", columns{"ha1": a.Secrets[auth.MD5], "ha1_sha256": a.Secrets[auth.SHA256], "ha1_sha512t256": a.Secrets[auth.SHA512256]},
			"alice", a.Secrets,
		},
		{"opensips", "one", columns{"ha1_sha256": a.Secrets[auth.SHA256]}, "alice", auth.Secrets{auth.SHA256: a.Secrets[auth.SHA256]}},
		{"opensips", "name with domain, no hash of it", columns{"ha1": a.Secrets[auth.MD5]}, "alice@example.com", auth.Secrets{}},
		{"opensips", "plain text", columns{"password": "secret"}, "alice", a.Secrets},
		{"old opensips", "padded", columns{"ha1": a.Secrets[auth.MD5]}, "alice", auth.Secrets{auth.MD5: a.Secrets[auth.MD5]}},
		{"old opensips", "plain text", columns{"password": "secret"}, "alice", a.Secrets},
		{"old opensips", "null", columns{"ha1": a.Secrets[auth.MD5]}, "alice@example.com", auth.Secrets{}},
		{"old opensips", "name with domain", columns{"ha1b": a.HA1B}, "alice@example.com", auth.Secrets{auth.MD5: a.HA1B}},
	}
	engines(t, func(t *testing.T, dsn string) {
		for layout := range layouts {
			t.Run(layout, func(t *testing.T) {
				dsn := dsn // each layout has a database of its own
				if strings.HasPrefix(dsn, "sqlite:") {
					dsn += layout
				} else {
					dsn = postgresDatabase(t)
				}
				db := foreign(t, dsn, layout)
				external, err := OpenSubscribers(t.Context(), dsn)
				if err != nil {
					t.Fatal(err)
				}
				defer external.Close()
				own := open(t, dsn, Options{}) // migrates a database with the table in it
				for _, tt := range tests {
					if tt.layout != layout {
						continue
					}
					names, marks, args := "username, domain", "?, ?", []any{"alice", "example.com"}
					for c, v := range tt.row {
						names, marks, args = names+", "+c, marks+", ?", append(args, v)
					}
					execute(t, db, "INSERT INTO subscriber ("+names+") VALUES ("+marks+")", args...)
					for where, s := range map[string]interface {
						Subscriber(context.Context, string, string) (auth.Secrets, error)
					}{"external": external, "own": own} {
						got, err := s.Subscriber(t.Context(), tt.user, "example.com")
						if got != tt.want || tt.want.Known() != (err == nil) || err != nil && !errors.Is(err, ErrNotFound) {
							t.Errorf("%s, %s: %v, %v; want %v", tt.name, where, got, err, tt.want)
						}
					}
					if all := subscribersOf(t, external, "example.com"); len(all) != 1 || all[0].Username != "alice" {
						t.Errorf("%s: listed %v", tt.name, all)
					}
					execute(t, db, "DELETE FROM subscriber")
				}
			})
		}
	})
}

// Writing into a table of another program fills the columns it has, as its rows have them.
func TestPutSubscriberForeign(t *testing.T) {
	a, b := derived("alice", "example.com", "secret"), derived("bob", "example.com", "p")
	tests := []struct {
		name, layout, before string // before: a statement
		want                 string // ha1 and ha1b of alice
		secrets              auth.Secrets
	}{
		{"MD5", "kamailio", "", a.Secrets[auth.MD5] + " " + a.HA1B, auth.Secrets{auth.MD5: a.Secrets[auth.MD5]}},
		{
			"SHA-256", "kamailio", "INSERT INTO subscriber (username, domain, ha1) VALUES ('bob', 'example.com', '" + b.Secrets[auth.SHA256] + "')",
			a.Secrets[auth.SHA256] + " ", auth.Secrets{auth.SHA256: a.Secrets[auth.SHA256]},
		},
		{"all", "opensips", "", a.Secrets[auth.MD5], a.Secrets},
	}
	engines(t, func(t *testing.T, dsn string) {
		for i, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				dsn := dsn
				if strings.HasPrefix(dsn, "sqlite:") {
					dsn += fmt.Sprint(i)
				} else {
					dsn = postgresDatabase(t)
				}
				db := foreign(t, dsn, tt.layout)
				if tt.before != "" {
					execute(t, db, tt.before)
				}
				s := open(t, dsn, Options{})
				for _, only := range []Precondition{{Absent: true}, {Match: "*"}} {
					if _, err := s.PutSubscriber(t.Context(), a, only); err != nil {
						t.Fatal(err)
					}
				}
				look := "SELECT ha1 || ' ' || ha1b FROM subscriber WHERE username = 'alice'"
				if tt.layout == "opensips" {
					look = "SELECT ha1 FROM subscriber WHERE username = 'alice'"
				}
				var got string
				if err := db.Get(&got, look); err != nil || got != tt.want {
					t.Errorf("%q, %v", got, err)
				}
				if got, err := s.Subscriber(t.Context(), "alice", "example.com"); got != tt.secrets || err != nil {
					t.Errorf("%v, %v", got, err)
				}
				execute(t, db, "UPDATE subscriber SET password = 'plain' WHERE username = 'alice'")
				if _, err := s.PutSubscriber(t.Context(), a, Precondition{}); !errors.Is(err, ErrPlaintext) {
					t.Errorf("row with a password: %v", err)
				}
				if err := s.DeleteSubscriber(t.Context(), "alice", "example.com"); err != nil {
					t.Error(err)
				}
				if tt.layout == "kamailio" {
					only512 := Subscriber{Username: "carol", Domain: "example.com", Secrets: auth.Secrets{auth.SHA512256: a.Secrets[auth.SHA512256]}}
					if _, err := s.PutSubscriber(t.Context(), only512, Precondition{}); err == nil || !strings.Contains(err.Error(), "no column for the algorithms") {
						t.Errorf("algorithm without a column: %v", err)
					}
				}
			})
		}
	})
}

// A table that is there survives the migration up and down, and so do the users in our own.
func TestSubscriberMigration(t *testing.T) {
	engines(t, func(t *testing.T, dsn string) {
		db := foreign(t, dsn, "kamailio")
		a := derived("alice", "example.com", "secret")
		execute(t, db, "INSERT INTO subscriber (username, domain, ha1, ha1b) VALUES ('alice', 'example.com', ?, ?)", a.Secrets[auth.MD5], a.HA1B)
		s := open(t, dsn, Options{NoMigrate: true})
		for range 2 {
			if err := s.MigrateUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			if all := subscribersOf(t, s, ""); len(all) != 1 || all[0].HA1B != a.HA1B {
				t.Errorf("up: %v", all)
			}
			if err := s.MigrateDown(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
		var n int
		if err := db.Get(&n, "SELECT count(*) FROM subscriber"); err != nil || n != 1 {
			t.Errorf("%d rows after down, %v", n, err)
		}
	})
}

func TestOpenSubscribers(t *testing.T) {
	engines(t, func(t *testing.T, dsn string) {
		db := foreign(t, dsn, "kamailio")
		s, err := OpenSubscribers(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.s.r.Exec(`DELETE FROM subscriber`); err == nil || !strings.Contains(err.Error(), "read") {
			t.Errorf("a write: %v", err)
		}
		a := derived("alice", "example.com", "secret")
		execute(t, db, "INSERT INTO subscriber (username, domain, ha1) VALUES ('alice', 'example.com', ?)", a.Secrets[auth.MD5])
		if strings.HasPrefix(dsn, "postgres") { // a restart of the server, as a client sees it
			for range 3 {
				execute(t, db, `SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
				if _, err := s.Subscriber(t.Context(), "alice", "example.com"); err != nil {
					t.Errorf("after the connection broke: %v", err)
				}
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Subscriber(ctx, "alice", "example.com"); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		execute(t, db, "DROP TABLE subscriber")
		if _, err := s.Subscriber(t.Context(), "alice", "example.com"); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("without the table: %v", err)
		}
		for columns, want := range map[string]string{
			"": "there is no table", "id INTEGER": "no columns username and domain", "username TEXT, domain TEXT": "neither column ha1 nor password",
		} {
			if columns != "" {
				execute(t, db, "CREATE TABLE subscriber ("+columns+")")
			}
			if _, err := OpenSubscribers(t.Context(), dsn); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v", columns, err)
			}
			if columns != "" {
				execute(t, db, "DROP TABLE subscriber")
			}
		}
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	for _, dsn := range []string{"memory", "", "mysql://u:hush@db/x", "sqlite:", "sqlite:" + filepath.Join(t.TempDir(), "none"), "postgres://u:hush@127.0.0.1:1/x?sslmode=disable"} {
		if _, err := OpenSubscribers(t.Context(), dsn); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v", dsn, err)
		}
	}
}
