package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"rollcall/e2e/child"
	"rollcall/e2e/peer"
)

// TestOutage takes the store away under load and gives it back, in
// write-through. While it is gone requests are refused, soon and with
// Retry-After; when it is back all goes on; and what was acknowledged at any time
// is there after kill -9, nothing else.
func TestOutage(t *testing.T) {
	t.Run("PostgreSQL stopped", func(t *testing.T) {
		db := startDatabase(t)
		outage(t, db.dsn(t), func() { db.Stop(syscall.SIGINT) }, func() {
			db.start()
			db.Stop(syscall.SIGQUIT) // at once, without a word
			db.start()
		})
	})
	t.Run("PostgreSQL hangs", func(t *testing.T) {
		db := startDatabase(t)
		outage(t, db.dsn(t), func() { db.Signal(syscall.SIGSTOP) }, func() { db.Signal(syscall.SIGCONT) })
	})
	t.Run("SQLite on a full disk", func(t *testing.T) {
		dir := mount(t, "-t", "tmpfs", "-o", "size=40m", "none")
		filler := filepath.Join(dir, "filler")
		outage(t, "sqlite:"+dir+"/r.db", func() {
			f, err := os.Create(filler)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for err == nil {
				_, err = f.Write(make([]byte, 4096))
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		}, func() {
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("SQLite on a frozen disk", func(t *testing.T) {
		image := filepath.Join(t.TempDir(), "image")
		system(t, "truncate", "-s", "32M", image)
		system(t, "mkfs.ext4", "-q", "-F", image)
		dir := mount(t, "-o", "loop", image)
		frozen := false
		thaw := func() {
			if frozen {
				system(t, "fsfreeze", "-u", dir)
				frozen = false
			}
		}
		t.Cleanup(thaw)
		outage(t, "sqlite:"+dir+"/r.db", func() {
			system(t, "fsfreeze", "-f", dir)
			frozen = true
		}, thaw)
	})
}

// A store that cannot be written is refused at start, and untouched by that.
func TestReadOnlyStore(t *testing.T) {
	dir := mount(t, "-t", "tmpfs", "-o", "size=8m", "none")
	in := start(t, "--domain", "example.com", "--store", "sqlite:"+dir+"/r.db", "--presence-auth", "open")
	u := newUA(t, in.addr)
	status, tag := u.publish("sip:joe@example.com", "", string(pidf("sip:joe@example.com", "open", "safe")), 600)
	if status != 200 {
		t.Fatalf("PUBLISH: %d", status)
	}
	in.Signal(syscall.SIGKILL)
	in.Stop()
	system(t, "mount", "-o", "remount,ro", dir)
	p := peer.Start(t, peer.Command{Path: binary, Args: in.args, Quiet: true})
	if code := p.Wait(t, 10*time.Second); code != 1 || !strings.Contains(p.Log(), "read-only") && !strings.Contains(p.Log(), "readonly") {
		t.Errorf("exit code %d on a read-only disk\n%s", code, p.Log())
	}
	system(t, "mount", "-o", "remount,rw", dir)
	in.run()
	if status, _ := u.publish("sip:joe@example.com", tag, "", 600); status != 200 {
		t.Errorf("the publication is lost: refresh got %d", status)
	}
}

// client publishes and subscribes, and holds what was acknowledged.
type client struct {
	*ua
	uri     string
	tag     string
	note    string
	dialogs []*dialog
	refused int
	slowest time.Duration
	bad     string
}

// step does one thing, the next of three.
func (c *client) step(n int) {
	start := time.Now()
	var m peer.Trace
	switch n % 3 {
	case 0:
		note := fmt.Sprint("n", n)
		headers := []string{"Event: presence", "Expires: 3600", "Content-Type: application/pidf+xml"}
		if c.tag != "" {
			headers = append(headers, "SIP-If-Match: "+c.tag)
		}
		m = c.do(c.request(c.dialog(c.uri, c.uri), "PUBLISH", c.uri, string(pidf(c.uri, "open", note)), headers...))
		if m.Status() == 200 {
			c.tag, c.note = m.Header("SIP-ETag"), note
		}
	case 1:
		if len(c.dialogs) == 20 {
			return
		}
		d := c.dialog("sip:adam@example.com", c.uri)
		if m = c.subscribe(d, 3600); m.Status() == 200 {
			c.dialogs = append(c.dialogs, d)
		}
	case 2:
		if len(c.dialogs) == 0 {
			return
		}
		m = c.subscribe(c.dialogs[n%len(c.dialogs)], 3600)
	}
	c.slowest = max(c.slowest, time.Since(start))
	switch m.Status() {
	case 200:
	case 503:
		c.refused++
		if m.Header("Retry-After") == "" {
			c.bad = "503 without Retry-After"
		}
	default:
		c.bad = fmt.Sprintf("step %d: %d", n, m.Status())
	}
}

func outage(t *testing.T, dsn string, away, back func()) {
	t.Helper()
	in := start(t, "--domain", "example.com", "--store", dsn, "--presence-auth", "open")
	clients := make([]*client, 4)
	var stop atomic.Bool
	var all sync.WaitGroup
	var steps atomic.Int64
	for i := range clients {
		c := &client{ua: newUA(t, in.addr), uri: fmt.Sprintf("sip:c%d@example.com", i)}
		clients[i] = c
		all.Go(func() {
			for n := i; !stop.Load() && c.bad == ""; n++ {
				c.step(n)
				steps.Add(1)
				if c.refused > 0 {
					time.Sleep(50 * time.Millisecond) // a phone would heed Retry-After
				}
			}
		})
	}
	finish := sync.OnceFunc(func() { stop.Store(true); all.Wait() })
	defer finish()
	more := func(n int64, what string) {
		t.Helper()
		from := steps.Load()
		peer.Eventually(t, 40*time.Second, what, func() bool { return steps.Load() >= from+n })
	}
	readyz := func() (code int, text string) {
		code = in.get("/readyz", &text)
		return code, text
	}
	more(200, "load")
	away()
	peer.Eventually(t, 10*time.Second, "not ready", func() bool { code, _ := readyz(); return code == 503 })
	more(40, "answers without a store")
	time.Sleep(12 * time.Second) // longer than an answer may wait
	if code, text := readyz(); code != 503 || !strings.Contains(text, "the store is down since") {
		t.Errorf("readyz: %d %q", code, text)
	}
	back()
	peer.Eventually(t, 30*time.Second, "ready", func() bool { code, _ := readyz(); return code == 200 })
	more(200, "load afterwards")
	finish()
	refused, dialogs, slowest := 0, 0, time.Duration(0)
	for i, c := range clients {
		if c.bad != "" {
			t.Errorf("client %d: %s", i, c.bad)
		}
		refused, dialogs, slowest = refused+c.refused, dialogs+len(c.dialogs), max(slowest, c.slowest)
	}
	if refused == 0 || slowest > 12*time.Second {
		t.Errorf("%d refused, the slowest answer took %v", refused, slowest)
	}
	peer.Eventually(t, 10*time.Second, "only what was acknowledged", func() bool {
		return in.metric("rollcall_dialog_subscriptions") == float64(dialogs) && in.metric("rollcall_pa_publications") == float64(len(clients))
	})
	if n := strings.Count(in.Log(), "store is down"); n < 1 || n > 4 || strings.Count(in.Log(), "store works again") != n {
		t.Errorf("%d lines in the log about the store", n)
	}
	if in.metric("rollcall_store_unstorable_total") != 0 {
		t.Error("something was left out")
	}
	t.Logf("%d steps, %d refused, %v withdrawn, the slowest answer took %v", steps.Load(), refused, in.metric("rollcall_store_withdrawn_total"), slowest)
	in.clean()
	in.Signal(syscall.SIGKILL)
	in.Stop()
	in.run()
	for _, c := range clients {
		if status, _ := c.publish(c.uri, c.tag, "", 3600); status != 200 {
			t.Errorf("%s is lost: %d", c.uri, status)
		}
		for _, d := range c.dialogs {
			if m := c.subscribe(d, 3600); m.Status() != 200 {
				t.Errorf("a subscription to %s is lost: %d", c.uri, m.Status())
			}
		}
		d := c.dialog("sip:eve@example.com", c.uri)
		c.subscribe(d, 0)
		if n, ok := c.notify(d, 5*time.Second); !ok || describe(n.Body()) != "open: "+c.note {
			t.Errorf("%s is %q, acknowledged was %q", c.uri, describe(n.Body()), c.note)
		}
	}
	if got := in.metric("rollcall_dialog_subscriptions"); got != float64(dialogs) {
		t.Errorf("%v subscriptions, %d were acknowledged", got, dialogs)
	}
	if got := in.metric("rollcall_pa_publications"); got != float64(len(clients)) {
		t.Errorf("%v publications, want %d", got, len(clients))
	}
	in.clean()
	in.Stop()
}

func system(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// mount makes a file system of the test's own. That takes root.
func mount(t testing.TB, args ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting takes root")
	}
	dir := t.TempDir()
	system(t, "mount", append(args, dir)...)
	t.Cleanup(func() {
		for range 50 {
			if exec.Command("umount", dir).Run() == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		exec.Command("umount", "-l", dir).Run()
	})
	return dir
}

// database is a PostgreSQL of the test's own, which can be stopped.
type database struct {
	*child.Postgres
	t testing.TB
}

func startDatabase(t testing.TB) database {
	t.Helper()
	p, err := child.NewPostgres()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return database{p, t}
}

func (db database) start() {
	db.t.Helper()
	if err := db.Start(); err != nil {
		db.t.Fatal(err)
	}
}

// dsn makes an empty database.
func (db database) dsn(t testing.TB) string {
	t.Helper()
	dsn, err := db.Database()
	if err != nil {
		t.Fatal(err)
	}
	return dsn
}
