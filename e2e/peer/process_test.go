package peer

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

const orphanVariable = "ROLLCALL_PEER_ORPHANS"

// The test runs itself as a child that starts one of each program, and kills the child.
func TestNoOrphans(t *testing.T) {
	if os.Getenv(orphanVariable) != "" {
		k := StartKamailio(t, domain)
		s := StartSofia(t, SofiaOptions{AOR: alice, Server: k.Addr})
		b := StartBaresip(t, BaresipOptions{AOR: bob, Server: k.Addr})
		w := StartWatch(t, WatchOptions{
			SIPpOptions: SIPpOptions{Server: k.Addr}, URI: bob, From: alice, Phases: []WatchPhase{{Expires: 60, Notifies: 99}},
		})
		w.WaitNotify(nil, soon)
		fmt.Printf("groups: %d %d %d %d\n", k.p.PID(), s.PID(), b.PID(), w.PID())
		time.Sleep(time.Minute)
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The child's temporary folders are not removed, so they go into one that is.
	child := Start(t, Command{
		Path: self, Args: []string{"-test.run", "^TestNoOrphans$", "-test.v"},
		Env: []string{orphanVariable + "=1", "TMPDIR=" + t.TempDir()},
	})
	child.WaitLog(t, "groups: ", 30*time.Second)
	var groups [4]int
	line := child.Log()
	line = line[strings.Index(line, "groups: "):]
	if _, err := fmt.Sscanf(line, "groups: %d %d %d %d", &groups[0], &groups[1], &groups[2], &groups[3]); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	for _, g := range groups {
		if !groupAlive(g) {
			t.Errorf("group %d is not alive", g)
		}
	}
	_ = syscall.Kill(child.PID(), syscall.SIGKILL)
	Eventually(t, soon, "the end of the programs", func() bool {
		for _, g := range groups {
			if groupAlive(g) {
				return false
			}
		}
		return true
	})
}

func TestProcess(t *testing.T) {
	t.Run("exit code and log", func(t *testing.T) {
		p := Start(t, Command{Path: "sh", Args: []string{"-c", "echo here; echo there >&2; exit 3"}})
		if code := p.Wait(t, soon); code != 3 || p.Log() != "here\nthere\n" {
			t.Errorf("code %d, log %q", code, p.Log())
		}
	})
	t.Run("children and a program that ignores SIGTERM", func(t *testing.T) {
		p := Start(t, Command{
			Path: "sh", Args: []string{"-c", "trap '' TERM; sleep 60 & echo started; sleep 60"}, Grace: 50 * time.Millisecond,
		})
		p.WaitLog(t, "started", soon)
		p.Stop()
		if groupAlive(p.PID()) || !p.Exited() {
			t.Error("alive after Stop")
		}
		p.Stop()
	})
	t.Run("missing program", func(t *testing.T) {
		got := failure(t, func(t testing.TB) { Start(t, Command{Path: "no-such-program"}) })
		if !strings.Contains(got, "scripts/setup") {
			t.Errorf("failed with %q", got)
		}
	})
	t.Run("end before the awaited text", func(t *testing.T) {
		start := time.Now()
		got := failure(t, func(t testing.TB) {
			Start(t, Command{Path: "sh", Args: []string{"-c", "echo something else"}}).WaitLog(t, "text", time.Minute)
		})
		if !strings.Contains(got, "something else") || time.Since(start) > soon {
			t.Errorf("failed with %q after %v", got, time.Since(start))
		}
	})
}

func TestFreePort(t *testing.T) {
	seen := map[int]bool{}
	for range 50 {
		port := FreePort(t)
		if seen[port] || port < 1024 || port > 32767 {
			t.Errorf("port %d", port)
		}
		seen[port] = true
	}
}

// failing is a test that records its failure instead of failing.
type failing struct {
	testing.TB
	text string
}

func (f *failing) Failed() bool { return false }

func (f *failing) Fatalf(format string, args ...any) { f.Fatal(fmt.Sprintf(format, args...)) }

func (f *failing) Fatal(args ...any) {
	f.text = fmt.Sprint(args...)
	panic(f)
}

func failure(t *testing.T, do func(testing.TB)) (text string) {
	t.Helper()
	f := &failing{TB: t}
	defer func() {
		if r := recover(); r != nil && r != any(f) {
			panic(r)
		}
		text = f.text
	}()
	do(f)
	t.Error("did not fail")
	return ""
}
