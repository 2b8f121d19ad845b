package sql

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jmoiron/sqlx"
)

// mariadb starts a MariaDB of its own on a socket and a loopback port in a directory of its own; it ends with the test.
func mariadb(t *testing.T) (socket string, port int) {
	t.Helper()
	server, err := exec.LookPath("mariadbd")
	if err != nil {
		server = "/usr/sbin/mariadbd"
	}
	if _, err := os.Stat(server); err != nil {
		t.Fatal("MariaDB is missing: this test starts one of its own (package mariadb-server)")
	}
	dir, err := os.MkdirTemp("", "rollcall-my") // the name of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	who := ""
	if os.Getuid() == 0 {
		u, err := user.Lookup("mysql")
		if err != nil {
			t.Fatal(err)
		}
		who = "mysql"
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	} else if u, err := user.Current(); err == nil {
		who = u.Username
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	data := filepath.Join(dir, "data")
	out, err := exec.Command("mariadb-install-db", "--no-defaults", "--datadir="+data, "--user="+who, "--skip-test-db", "--auth-root-authentication-method=normal").CombinedOutput()
	if err != nil {
		t.Fatalf("mariadb-install-db: %v\n%s", err, out)
	}
	socket = filepath.Join(dir, "s")
	cmd := exec.Command(server, "--no-defaults", "--user="+who, "--datadir="+data, "--socket="+socket, "--pid-file="+filepath.Join(dir, "pid"),
		"--bind-address=127.0.0.1", "--port="+strconv.Itoa(port), "--skip-log-bin", "--innodb-flush-log-at-trx-commit=0", "--log-error="+filepath.Join(dir, "log"))
	attr := &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(attr)
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-done
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket, port
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Fatalf("MariaDB does not answer:\n%s", log)
		}
	}
}

// script runs one of Debian's scripts for Kamailio's tables.
func script(t *testing.T, db *sqlx.DB, kind, name string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/usr/share/kamailio", kind, name+"-create.sql"))
	if err != nil {
		t.Fatalf("%v (packages kamailio-sqlite-modules, kamailio-postgres-modules, kamailio-mysql-modules)", err)
	}
	if _, err := db.ExecContext(t.Context(), string(text)); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// The same look at each kind of database, with the tables that Kamailio makes there.
func TestPeerDB(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "kamailio.db")
		db, err := sqlx.Open("sqlite", file)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		testPeerDB(t, db, "db_sqlite", "sqlite:///"+file)
	})
	t.Run("postgres", func(t *testing.T) {
		dsn := postgresDatabase(t)
		db, err := sqlx.Open("postgres", dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		testPeerDB(t, db, "postgres", dsn)
	})
	t.Run("mysql", func(t *testing.T) {
		socket, port := mariadb(t)
		root := mysql.NewConfig()
		root.User, root.Net, root.Addr, root.MultiStatements = "root", "unix", socket, true
		open := func(dbname string) *sqlx.DB {
			root.DBName = dbname
			db, err := sqlx.Open("mysql", root.FormatDSN())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			return db
		}
		admin := open("")
		for _, q := range []string{"CREATE USER kam@'%' IDENTIFIED BY 'p@ss'", "CREATE USER kam@localhost IDENTIFIED BY 'p@ss'"} {
			if _, err := admin.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		for _, charset := range []string{"utf8mb4", "latin1"} {
			for _, q := range []string{"CREATE DATABASE k_" + charset + " CHARACTER SET " + charset, "GRANT SELECT ON k_" + charset + ".* TO kam@'%'", "GRANT SELECT ON k_" + charset + ".* TO kam@localhost"} {
				if _, err := admin.Exec(q); err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Run("utf8mb4 over TCP", func(t *testing.T) {
			testPeerDB(t, open("k_utf8mb4"), "mysql", fmt.Sprintf("mysql://kam:p%%40ss@127.0.0.1:%d/k_utf8mb4", port))
		})
		t.Run("latin1 over a socket", func(t *testing.T) {
			root.Params = map[string]string{"charset": "latin1"} // the connection of a Kamailio that was told nothing
			testPeerDB(t, open("k_latin1"), "mysql", "mysql://kam:p%40ss@localhost/k_latin1?socket="+url.QueryEscape(socket))
		})
		for dsn, want := range map[string]string{
			fmt.Sprintf("mysql://kam:wrong@127.0.0.1:%d/k_latin1", port):           "Access denied",
			fmt.Sprintf("mysql://kam:p%%40ss@127.0.0.1:%d/", port):                 "names no database",
			fmt.Sprintf("mysql://kam:p%%40ss@127.0.0.1:%d/k_latin1?speed=1", port): `unknown parameter "speed"`,
			"mysql://kam:p%zz@h/x": "not a URL",
		} {
			db, err := OpenPeer(t.Context(), dsn)
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "ss@") || strings.Contains(err.Error(), "wrong@") {
				t.Errorf("%s: %v, want %q and no password", dsn, err, want)
			}
			if err == nil {
				db.Close()
			}
		}
	})
	for _, dsn := range []string{"", "memory", "oracle://x", "sqlite:" + filepath.Join(t.TempDir(), "none"), "postgres://nobody@127.0.0.1:1/x?connect_timeout=1"} {
		if db, err := OpenPeer(t.Context(), dsn); err == nil {
			db.Close()
			t.Errorf("%q was opened", dsn)
		}
	}
}

func testPeerDB(t *testing.T, db *sqlx.DB, kind, dsn string) {
	ctx := t.Context()
	for _, name := range []string{"standard", "presence", "rls", "auth_db"} {
		script(t, db, kind, name)
	}
	body := []byte("<note>Zo\xc3\xab \xff\x00</note>")
	for i, name := range []string{"alice", "zo\xc3\xab"} {
		_, err := db.ExecContext(ctx, db.Rebind(`INSERT INTO presentity (id, username, domain, event, etag, expires, received_time, body, sender, priority) VALUES (?, ?, 'example.com', 'presence', ?, 1800000000, 0, ?, '', 0)`),
			9-i, name, fmt.Sprint("e", i), body)
		if err != nil {
			t.Fatal(err)
		}
	}
	p, err := OpenPeer(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if strings.Contains(p.String(), "p%40ss") || p.String() == "" {
		t.Errorf("called %q", p)
	}
	if cols, err := p.Columns(ctx, "presentity"); err != nil || len(cols) != 11 {
		t.Errorf("columns: %q, %v", cols, err)
	}
	if cols, err := p.Columns(ctx, "nothing"); err != nil || len(cols) != 0 {
		t.Errorf("columns of no table: %q, %v", cols, err)
	}
	// It is a look at one moment.
	if kind != "db_sqlite" { // which would have the writer wait
		if _, err := db.ExecContext(ctx, `DELETE FROM presentity WHERE id = 9`); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		var got [][]string
		err := p.Each(ctx, "presentity", []string{"username", "expires", "ruid", "no_such", "body"}, []string{"id"}, func(row []NullString) error {
			if row[2].Valid || row[3].Valid {
				t.Errorf("not NULL: %v", row)
			}
			got = append(got, []string{row[0].String, row[1].String, row[4].String})
			return nil
		})
		want := [][]string{{"zo\xc3\xab", "1800000000", string(body)}, {"alice", "1800000000", string(body)}}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %q, %v\nwant %q", got, err, want)
		}
	}
	stop := errors.New("stop")
	if err := p.Each(ctx, "presentity", []string{"id"}, nil, func([]NullString) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped with %v", err)
	}
	if err := p.Each(ctx, "nothing", []string{"id"}, nil, func([]NullString) error { return nil }); err == nil {
		t.Error("read a table that is not there")
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := p.Each(gone, "presentity", []string{"id"}, nil, func([]NullString) error { return nil }); err == nil {
		t.Error("read after the end")
	}
	if err := p.Close(); err != nil && !errors.Is(err, context.Canceled) {
		t.Logf("close: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}
