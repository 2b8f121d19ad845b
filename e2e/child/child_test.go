package child

import (
	"database/sql"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/lib/pq"
)

func TestPostgres(t *testing.T) {
	p, err := NewPostgres()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var open []*sql.DB
	for range 2 {
		dsn, err := p.Database()
		if err != nil {
			t.Fatal(err)
		}
		db, err := sql.Open("postgres", dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec(`CREATE TABLE x (y int)`); err != nil { // fails when two have one name
			t.Fatal(err)
		}
		open = append(open, db)
	}
	answers := func() bool {
		done := make(chan error, 1)
		go func() { done <- open[0].Ping() }()
		select {
		case err := <-done:
			return err == nil
		case <-time.After(time.Second):
			return false
		}
	}
	for _, c := range []struct {
		name    string
		do      func() error
		answers bool
	}{
		{"running", func() error { return nil }, true},
		{"hanging", func() error { p.Signal(syscall.SIGSTOP); return nil }, false},
		{"going on", func() error { p.Signal(syscall.SIGCONT); return nil }, true},
		{"stopped", func() error { p.Stop(syscall.SIGINT); return nil }, false},
		{"stopped again", func() error { p.Stop(syscall.SIGINT); p.Signal(syscall.SIGCONT); return nil }, false},
		{"started", p.Start, true},
		{"killed", func() error { p.Stop(syscall.SIGQUIT); return nil }, false},
		{"started after that", p.Start, true},
	} {
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := answers(); got != c.answers {
			t.Errorf("%s: answers %v", c.name, got)
		}
	}
	p.Stop(syscall.SIGINT)
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err == nil || !strings.Contains(err.Error(), "Address already in use") {
		t.Errorf("started on a port in use: %v", err)
	}
	l.Close()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	p.Signal(syscall.SIGSTOP)
	began := time.Now()
	p.Close()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("closing one that hangs took %v", took)
	}
	if _, err := os.Stat(p.dir); !os.IsNotExist(err) {
		t.Errorf("the directory is left: %v", err)
	}
}

func TestStart(t *testing.T) {
	if err := Start(exec.Command("/none/such"), syscall.SIGKILL); err == nil {
		t.Error("started nothing")
	}
	cmd := exec.Command("sleep", "60")
	if err := Start(cmd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Errorf("no group of its own: %v", err)
		cmd.Process.Kill()
	}
	cmd.Wait()
}
