package sql

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
)

// One PostgreSQL serves all tests of a run. It listens on a socket and a loopback port of its own, in a directory of its
// own, and dies with the run.
var pg struct {
	once sync.Once
	dir  string
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
	dsn  func(database string) string
	err  error
	n    atomic.Int32
}

// postgresDatabase makes an empty database. Without PostgreSQL's programs the test fails: a server that was never tested
// on it should not claim to run there.
func postgresDatabase(t testing.TB) string {
	t.Helper()
	pg.once.Do(startPostgres)
	if pg.err != nil {
		t.Fatal(pg.err)
	}
	admin, err := sqlx.Open("postgres", pg.dsn("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	name := fmt.Sprintf("test%d", pg.n.Add(1))
	if _, err := admin.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	return pg.dsn(name)
}

func startPostgres() {
	all, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(all, func(a, b string) int { return version(b) - version(a) })
	bin := ""
	if len(all) > 0 {
		bin = all[0]
	} else if p, err := exec.LookPath("initdb"); err == nil {
		bin = filepath.Dir(p)
	} else {
		pg.err = fmt.Errorf("PostgreSQL is missing: these tests start one of their own from /usr/lib/postgresql/*/bin or PATH (package postgresql)")
		return
	}
	if pg.dir, pg.err = os.MkdirTemp("", "rollcall-pg"); pg.err != nil {
		return
	}
	// PostgreSQL refuses to run as root.
	attr := &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(attr)
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			pg.err = fmt.Errorf("running as root, and there is no user postgres to run PostgreSQL as: %w", err)
			return
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if pg.err = os.Chown(pg.dir, uid, gid); pg.err != nil {
			return
		}
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	run := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Dir, cmd.SysProcAttr = pg.dir, attr
		cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+pg.dir)
		return cmd
	}
	data := filepath.Join(pg.dir, "data")
	// Not UTC and not the C locale's order is what an operator has; the encoding is what we need.
	if out, err := run("initdb", "-D", data, "-U", "rollcall", "-A", "trust", "-E", "UTF8", "--no-sync").CombinedOutput(); err != nil {
		pg.err = fmt.Errorf("initdb: %w\n%s", err, out)
		return
	}
	for range 3 { // another process may take the port first
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			pg.err = err
			return
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		logFile, err := os.Create(filepath.Join(pg.dir, "log"))
		if err != nil {
			pg.err = err
			return
		}
		cmd := run("postgres", "-D", data, "-k", pg.dir, "-p", strconv.Itoa(port), "-h", "127.0.0.1", "-c", "max_connections=200")
		cmd.Stdout, cmd.Stderr = logFile, logFile
		err = cmd.Start()
		logFile.Close()
		if err != nil {
			pg.err = err
			return
		}
		pg.cmd = cmd
		done := make(chan struct{})
		pg.done = done
		go func() { cmd.Wait(); close(done) }()
		pg.dsn = func(database string) string {
			u := url.URL{Scheme: "postgres", User: url.User("rollcall"), Host: "127.0.0.1:" + strconv.Itoa(port), Path: "/" + database, RawQuery: "sslmode=disable"}
			return u.String()
		}
		if pg.err = waitPostgres(done); pg.err == nil {
			return
		}
		log, _ := os.ReadFile(logFile.Name())
		pg.err = fmt.Errorf("%w\n%s", pg.err, log)
	}
}

func waitPostgres(done chan struct{}) error {
	db, err := sqlx.Open("postgres", pg.dsn("postgres"))
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-done:
			return fmt.Errorf("PostgreSQL ended")
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not answer: %w", err)
		}
	}
}

func version(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}

func stopPostgres() {
	if pg.cmd != nil {
		pg.cmd.Process.Signal(syscall.SIGINT) // fast shutdown
		select {
		case <-pg.done:
		case <-time.After(10 * time.Second):
			pg.cmd.Process.Kill()
			<-pg.done
		}
	}
	if pg.dir != "" {
		os.RemoveAll(pg.dir)
	}
}
