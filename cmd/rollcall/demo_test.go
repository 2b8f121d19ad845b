package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestDemo(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	began := time.Now()
	code, out, errw := execute(t, "demo", "--for", "3s")
	if d := time.Since(began); code != 0 || d < 3*time.Second || d > 12*time.Second {
		t.Errorf("exit code %d after %v", code, d)
	}
	tables := strings.Split(out, demoList+"  version ")[1:]
	if len(tables) < 2 {
		t.Fatalf("%d tables:\n%s", len(tables), out)
	}
	// All have published before the list was asked for.
	if m := regexp.MustCompile(`^0  1 NOTIFY  newest change took -

Buddy +State +Note +Since
Alice +(open|closed) .*
Bob +(open|closed) .*
Carol +(open|closed) .*
Dave +(open|closed) .*
Family +list +2 members +\d\d:\d\d:\d\d
  Mum +(open|closed) .*
  Dad +(open|closed) .*

$`); !m.MatchString(tables[0]) {
		t.Errorf("first table:\n%s", tables[0])
	}
	if !regexp.MustCompile(`newest change took \d+\.\d ms`).MatchString(tables[len(tables)-1]) {
		t.Errorf("last table:\n%s", tables[len(tables)-1])
	}
	if !regexp.MustCompile(`\n3(\.\d)?s: \d+ PUBLISH sent, \d+ NOTIFYs received, change to NOTIFY median \d+\.\d ms, slowest \d+\.\d ms\n$`).MatchString(out) {
		t.Errorf("closing line: %q", out[max(0, len(out)-200):])
	}
	for l := range strings.Lines(errw) {
		if !strings.HasPrefix(l, "note: from another terminal: rollcall ") {
			t.Errorf("stderr: %s", l)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(tmp, "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDemoInterrupted(t *testing.T) {
	s := begin(t, "demo", "--listen", "udp:0.0.0.0:0")
	eventually(t, "a table", func() bool { return strings.Contains(s.out.String(), "Dad") })
	s.interrupt()
	if code := s.wait(); code != 0 || !strings.Contains(s.out.String(), "PUBLISH sent, ") {
		t.Errorf("exit code %d\n%s", code, s.out.String())
	}
}

func TestScreen(t *testing.T) {
	t.Run("a file gets tables now and then, the newest last", func(t *testing.T) {
		var out buffer
		s := &screen{w: &out}
		for _, f := range []string{"one\n", "two\n", "three\n"} {
			s.offer([]byte(f))
		}
		if got := out.String(); got != "one\n\n" {
			t.Errorf("%q", got)
		}
		eventually(t, "the newest", func() bool { return out.String() == "one\n\nthree\n\n" })
		s.offer([]byte("four\n"))
		s.flush()
		s.flush()
		if got := out.String(); got != "one\n\nthree\n\nfour\n\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("a terminal is drawn over", func(t *testing.T) {
		var out buffer
		s := &screen{w: &out, terminal: true}
		s.offer([]byte("one\ntwo\n"))
		s.offer([]byte("three\n"))
		s.offer([]byte("four\n"))
		want := "\x1b[?7lone\ntwo\n\x1b[?7h" + "\x1b[2A\x1b[J\x1b[?7lthree\n\x1b[?7h" + "\x1b[1A\x1b[J\x1b[?7lfour\n\x1b[?7h"
		if got := out.String(); got != want {
			t.Errorf("%q", got)
		}
	})
	if f, err := os.Create(filepath.Join(t.TempDir(), "x")); err != nil || isTerminal(f) {
		t.Errorf("a file is no terminal (%v)", err)
	}
}

// A change counts from its own PUBLISH, and one that was overtaken not at all.
func TestTally(t *testing.T) {
	y := &tally{sent: make(map[string][]sending)}
	y.sending("a", mood{"open", "x"})
	y.sending("a", mood{"closed", ""})
	y.sending("a", mood{"open", "x"})
	y.sending("b", mood{"open", ""})
	now := time.Now().Add(time.Hour)
	y.seen([]member{{URI: "a", Basic: "closed", Changed: true}, {URI: "b", Basic: "open"}}, now)
	y.seen([]member{{URI: "a", Basic: "closed", Changed: true}}, now)
	if len(y.all) != 1 || len(y.sent["a"]) != 1 || len(y.sent["b"]) != 1 {
		t.Errorf("%v %v", y.all, y.sent)
	}
	y.seen([]member{{URI: "a", Basic: "open", Note: "x", Changed: true}, {URI: "b", Basic: "open", Changed: true}}, now)
	if len(y.all) != 3 || len(y.sent["a"]) != 0 || y.published.Load() != 4 {
		t.Errorf("%v %v", y.all, y.sent)
	}
}
