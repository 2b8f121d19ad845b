package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// StartPostgres starts a PostgreSQL of its own in a directory of its own and
// gives the address of an empty database. It needs PostgreSQL's programs, and
// as root the user postgres.
func StartPostgres() (dsn string, stop func(), err error) {
	all, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(all, func(a, b string) int { return pgVersion(b) - pgVersion(a) })
	bin := ""
	if len(all) > 0 {
		bin = all[0]
	} else if p, err := exec.LookPath("initdb"); err == nil {
		bin = filepath.Dir(p)
	} else {
		return "", nil, errors.New("PostgreSQL is missing: neither /usr/lib/postgresql/*/bin nor initdb in PATH (package postgresql)")
	}
	dir, err := os.MkdirTemp("", "rollcall-crash-pg")
	if err != nil {
		return "", nil, err
	}
	var cmd *exec.Cmd
	done := make(chan struct{})
	stop = func() {
		if cmd != nil {
			cmd.Process.Signal(syscall.SIGINT) // fast shutdown
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				cmd.Process.Kill()
				<-done
			}
		}
		os.RemoveAll(dir)
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	attr := &syscall.SysProcAttr{Setpgid: true}
	if os.Getuid() == 0 { // it refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			return "", nil, fmt.Errorf("running as root, and there is no user postgres to run PostgreSQL as: %w", err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			return "", nil, err
		}
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	command := func(name string, args ...string) *exec.Cmd {
		c := exec.Command(filepath.Join(bin, name), args...)
		c.Dir, c.SysProcAttr = dir, attr
		c.Env = append(os.Environ(), "LC_ALL=C", "HOME="+dir)
		return c
	}
	data := filepath.Join(dir, "data")
	if out, err := command("initdb", "-D", data, "-U", "rollcall", "-A", "trust", "-E", "UTF8", "--no-sync").CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	logFile, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return "", nil, err
	}
	defer logFile.Close()
	c := command("postgres", "-D", data, "-k", dir, "-p", strconv.Itoa(port), "-h", "127.0.0.1")
	c.Stdout, c.Stderr = logFile, logFile
	c.SysProcAttr = dieWithParent(attr, syscall.SIGINT)
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // this thread lives as long as PostgreSQL does
		err := c.Start()
		started <- err
		if err == nil {
			c.Wait()
			close(done)
		}
	}()
	if err := <-started; err != nil {
		return "", nil, err
	}
	cmd = c
	if err := createDatabase(func() error {
		out, err := command("createdb", "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-U", "rollcall", "crash").CombinedOutput()
		if err != nil {
			return fmt.Errorf("createdb: %w: %s", err, out)
		}
		return nil
	}, done); err != nil {
		text, _ := os.ReadFile(logFile.Name())
		return "", nil, fmt.Errorf("%w\n%s", err, text)
	}
	return fmt.Sprintf("postgres://rollcall@127.0.0.1:%d/crash?sslmode=disable", port), stop, nil
}

// createDatabase tries until PostgreSQL has started.
func createDatabase(try func() error, done chan struct{}) error {
	for limit := time.Now().Add(time.Minute); ; {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-done:
			return errors.New("PostgreSQL ended")
		}
		if time.Now().After(limit) {
			return err
		}
	}
}

func pgVersion(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}
