package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Postgres is a PostgreSQL of its own, in a directory of its own. Its methods
// are for one goroutine.
type Postgres struct {
	bin, dir   string
	port       int
	credential *syscall.Credential
	databases  int

	cmd  *exec.Cmd     // nil: not running
	done chan struct{} // closed when cmd has ended
}

// NewPostgres makes and starts one. It needs PostgreSQL's programs, and as root
// the user postgres. Close ends it.
func NewPostgres() (p *Postgres, err error) {
	p = &Postgres{}
	if p.bin, err = postgresPrograms(); err != nil {
		return nil, err
	}
	if p.port, err = FreePort(); err != nil {
		return nil, err
	}
	if p.dir, err = os.MkdirTemp("", "rollcall-pg"); err != nil {
		return nil, err
	}
	if err := p.prepare(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// postgresPrograms finds the directory of the newest version's programs.
func postgresPrograms() (string, error) {
	all, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	version := func(bin string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
		return n
	}
	slices.SortFunc(all, func(a, b string) int { return version(b) - version(a) })
	if len(all) > 0 {
		return all[0], nil
	}
	initdb, err := exec.LookPath("initdb")
	if err != nil {
		return "", errors.New("PostgreSQL is missing: neither /usr/lib/postgresql/*/bin nor initdb in PATH (package postgresql)")
	}
	return filepath.Dir(initdb), nil
}

func (p *Postgres) prepare() error {
	if os.Getuid() == 0 { // it refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			return fmt.Errorf("running as root, and there is no user postgres to run PostgreSQL as: %w", err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(p.dir, uid, gid); err != nil {
			return err
		}
		p.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	if err := p.run("initdb", "-D", "data", "-U", "rollcall", "-A", "trust", "-E", "UTF8", "--no-sync"); err != nil {
		return err
	}
	return p.Start()
}

func (p *Postgres) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.bin, name), args...)
	cmd.Dir, cmd.Env = p.dir, append(os.Environ(), "LC_ALL=C", "HOME="+p.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.credential}
	return cmd
}

// run runs a program to its end.
func (p *Postgres) run(name string, args ...string) error {
	if out, err := p.command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

// client runs a program that connects.
func (p *Postgres) client(name string, args ...string) error {
	return p.run(name, append([]string{"-h", "127.0.0.1", "-p", strconv.Itoa(p.port), "-U", "rollcall"}, args...)...)
}

// Start starts it, after Stop again, and waits until it takes connections.
func (p *Postgres) Start() error {
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := p.command("postgres", "-D", "data", "-k", p.dir, "-p", strconv.Itoa(p.port), "-h", "127.0.0.1")
	cmd.Stdout, cmd.Stderr = log, log
	if err := Start(cmd, syscall.SIGINT); err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	p.cmd, p.done = cmd, done
	for limit := time.Now().Add(time.Minute); ; {
		err := p.client("pg_isready")
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-done:
			p.cmd = nil
			err = errors.New("PostgreSQL ended")
		}
		if p.cmd == nil || time.Now().After(limit) {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%w\n%s", err, text)
		}
	}
}

// Database makes an empty database and gives its address.
func (p *Postgres) Database() (dsn string, err error) {
	p.databases++
	name := fmt.Sprint("d", p.databases)
	if err := p.client("createdb", name); err != nil {
		return "", err
	}
	return fmt.Sprintf("postgres://rollcall@127.0.0.1:%d/%s?sslmode=disable", p.port, name), nil
}

// Signal reaches the server and the processes that serve its sessions, which
// have groups of their own: SIGSTOP and SIGCONT make a server that hangs.
func (p *Postgres) Signal(sig syscall.Signal) {
	if p.cmd == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, "pgrep", "-P", strconv.Itoa(p.cmd.Process.Pid)).Output()
	_ = p.cmd.Process.Signal(sig)
	for pid := range strings.FieldsSeq(string(out)) {
		if n, err := strconv.Atoi(pid); err == nil {
			_ = syscall.Kill(n, sig)
		}
	}
}

// Stop ends it: SIGINT is in order, SIGQUIT at once. One that has not ended
// after 30 s is killed.
func (p *Postgres) Stop(sig syscall.Signal) {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	p.cmd = nil
}

// Close ends it and removes its directory.
func (p *Postgres) Close() {
	p.Signal(syscall.SIGCONT) // it may have been stopped
	p.Stop(syscall.SIGQUIT)
	_ = os.RemoveAll(p.dir)
}
