package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rollcall/e2e/child"
)

// Command describes a program to start.
type Command struct {
	Path  string   // a name looked up in PATH, or a path
	Args  []string // without the program's name
	Dir   string   // working directory; empty: the test's own
	Env   []string // added to the environment
	Grace time.Duration
	// Grace is how long Stop waits after SIGTERM before it kills the whole group; zero kills at once.

	// DeathSignal is sent to the program when the test binary dies; zero means SIGKILL. A program that has children of its own
	// needs one that it can pass on.
	DeathSignal syscall.Signal
	// Stdout takes the standard output when it is not nil; the log then holds the standard error alone.
	Stdout io.Writer
	// Quiet keeps the log out of a failed test's output.
	Quiet bool
}

// Process is a running program in a process group of its own. Its methods may be called from any goroutine, except those that
// take a testing.TB.
type Process struct {
	Name  string
	Stdin io.WriteCloser

	cmd   *exec.Cmd
	grace time.Duration
	quiet bool
	log   *logBuffer
	done  chan struct{}
	err   error // valid after done
	stop  sync.Once
}

// Start starts a program and stops it when the test ends. When the test has failed by then, the end of the program's log is
// added to the test's.
func Start(t testing.TB, c Command) *Process {
	t.Helper()
	p, err := start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cleanup(t) })
	return p
}

func start(c Command) (*Process, error) {
	path, err := lookPath(c.Path)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, c.Args...)
	cmd.Dir = c.Dir
	cmd.Env = append(os.Environ(), c.Env...)
	sig := c.DeathSignal
	if sig == 0 {
		sig = syscall.SIGKILL
	}
	cmd.WaitDelay = time.Second
	p := &Process{Name: filepath.Base(path), cmd: cmd, grace: c.Grace, quiet: c.Quiet, log: newLogBuffer(), done: make(chan struct{})}
	cmd.Stderr = p.log
	cmd.Stdout = p.log
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	if p.Stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := child.Start(cmd, sig); err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
		p.log.wake()
		if l, ok := c.Stdout.(*logBuffer); ok {
			l.wake()
		}
	}()
	return p, nil
}

func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil && !filepath.IsAbs(name) {
		// Daemons are in sbin, which is not in everybody's PATH.
		if path, err2 := exec.LookPath(filepath.Join("/usr/sbin", name)); err2 == nil {
			return path, nil
		}
	}
	if err != nil {
		return "", fmt.Errorf("%s is not installed; run scripts/setup (%w)", name, err)
	}
	return path, nil
}

// run runs a short command to its end and returns its standard output and error together.
func run(timeout time.Duration, stdin []byte, name string, args ...string) ([]byte, error) {
	path, err := lookPath(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := child.Start(cmd, syscall.SIGKILL); err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		err = fmt.Errorf("%s took longer than %v: %w", name, timeout, ctx.Err())
	}
	return out.Bytes(), err
}

// PID is the process's, and its group's, number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log is what the program has written so far.
func (p *Process) Log() string { return string(p.log.bytes()) }

// Signal sends a signal to the whole group; SIGSTOP and SIGCONT make a peer that hangs.
func (p *Process) Signal(sig syscall.Signal) error { return syscall.Kill(-p.PID(), sig) }

// Exited reports whether the program has ended.
func (p *Process) Exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Wait waits for the program's end and returns its exit code (-1: killed by a signal). It fails the test at the deadline.
func (p *Process) Wait(t testing.TB, timeout time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(timeout):
		t.Fatalf("%s has not ended within %v", p.Name, timeout)
	}
	return p.cmd.ProcessState.ExitCode()
}

// WaitLog waits until the log holds the text; it fails the test at the deadline or when the program ends without it.
func (p *Process) WaitLog(t testing.TB, text string, timeout time.Duration) {
	t.Helper()
	if err := p.waitLog(text, timeout); err != nil {
		t.Fatal(err)
	}
}

func (p *Process) waitLog(text string, timeout time.Duration) error {
	found := false
	ok := p.log.wait(timeout, func(b []byte) bool {
		found = bytes.Contains(b, []byte(text))
		return found || p.Exited()
	})
	switch {
	case found:
		return nil
	case ok:
		return fmt.Errorf("%s ended (%v) before it logged %q; log:\n%s", p.Name, p.err, text, tail(p.log.bytes()))
	default:
		return fmt.Errorf("%s has not logged %q within %v; log:\n%s", p.Name, text, timeout, tail(p.log.bytes()))
	}
}

// Stop ends the program and everything it started. It may be called more than once.
func (p *Process) Stop() {
	p.stop.Do(func() {
		if p.grace > 0 && !p.Exited() {
			// A stopped group must run to take the signal.
			_ = syscall.Kill(-p.PID(), syscall.SIGCONT)
			_ = syscall.Kill(p.PID(), syscall.SIGTERM)
			select {
			case <-p.done:
			case <-time.After(p.grace):
			}
		}
		_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
		<-p.done
		_ = poll(2*time.Second, func() bool { return !groupAlive(p.PID()) })
	})
}

// groupAlive reports whether a process of the group is left. Dead grandchildren stay until init reaps them and do not count.
func groupAlive(group int) bool {
	if errors.Is(syscall.Kill(-group, 0), syscall.ESRCH) {
		return false
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		// "PID (NAME) STATE PPID PGRP ...", and the name may hold anything.
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) > 2 && fields[2] == strconv.Itoa(group) && fields[0] != "Z" && fields[0] != "X" {
			return true
		}
	}
	return false
}

func (p *Process) cleanup(t testing.TB) {
	p.Stop()
	if t.Failed() && !p.quiet {
		t.Logf("%s log (end):\n%s", p.Name, tail(p.log.bytes()))
	}
}

func tail(b []byte) []byte {
	const most = 6000
	if len(b) > most {
		return b[len(b)-most:]
	}
	return b
}

// Eventually polls the condition until it holds and fails the test at the deadline.
func Eventually(t testing.TB, timeout time.Duration, what string, cond func() bool) {
	t.Helper()
	if err := poll(timeout, cond); err != nil {
		t.Fatalf("%s: not within %v", what, timeout)
	}
}

func poll(timeout time.Duration, cond func() bool) error {
	deadline := time.Now().Add(timeout)
	for wait := time.Millisecond; !cond(); wait = min(2*wait, 20*time.Millisecond) {
		if time.Now().After(deadline) {
			return context.DeadlineExceeded
		}
		time.Sleep(wait)
	}
	return nil
}

// logBuffer keeps everything written to it and wakes those who wait for more.
type logBuffer struct {
	mu   sync.Mutex
	buf  []byte
	more chan struct{} // closed and replaced at each write
}

func newLogBuffer() *logBuffer { return &logBuffer{more: make(chan struct{})} }

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, b...)
	close(l.more)
	l.more = make(chan struct{})
	return len(b), nil
}

func (l *logBuffer) wake() { _, _ = l.Write(nil) }

// bytes returns what has been written; the caller must not change it.
func (l *logBuffer) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf[:len(l.buf):len(l.buf)]
}

// wait calls cond with the content after each write until it is true.
func (l *logBuffer) wait(timeout time.Duration, cond func([]byte) bool) bool {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		l.mu.Lock()
		b, more := l.buf[:len(l.buf):len(l.buf)], l.more
		l.mu.Unlock()
		if cond(b) {
			return true
		}
		select {
		case <-more:
		case <-timer.C:
			return cond(l.bytes())
		}
	}
}

// FreePort returns a port of 127.0.0.1 that is free for UDP and TCP and that it has not returned before. It lies below the
// kernel's ephemeral range, so that no connection made meanwhile takes it.
func FreePort(t testing.TB) int {
	t.Helper()
	port, err := child.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}
