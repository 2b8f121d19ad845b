package server_test

import (
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sip"
)

// readyz asks a server whether it is ready.
func readyz(n *servertest.Node) (int, string) {
	r := n.Do("GET", "/readyz", nil, "")
	b, _ := io.ReadAll(r.Body)
	return r.StatusCode, strings.TrimSpace(string(b))
}

// take moves the tables away, and back, which no statement survives.
func take(t *testing.T, dsn string, away bool) {
	t.Helper()
	db, err := sqlx.Open("sqlite", strings.TrimPrefix(dsn, "sqlite:"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, table := range []string{"publication", "subscription"} {
		from, to := table, table+"_away"
		if !away {
			from, to = to, from
		}
		if _, err := db.Exec("ALTER TABLE " + from + " RENAME TO " + to); err != nil {
			t.Fatal(err)
		}
	}
}

// A store that goes and comes back: in write-through each request that it could
// not store is as if it had never been, so that its sender's next try succeeds.
func TestOutage(t *testing.T) {
	deployed(t, nil, func(d *deployment) {
		if code, text := readyz(d.n); code != 200 || text != "ready" {
			t.Errorf("readyz: %d %q", code, text)
		}
		take(t, d.n.Config().Store, true)
		tag, anna := d.bob.ETag, d.UA("sip:anna@example.com").Publication(d.n)
		see := d.direct
		var all sync.WaitGroup
		status := make([]int, 4)
		for i, f := range []func() int{
			func() int { return d.bob.Send(servertest.PIDF(bob, "closed", "three"), 600).Status() },
			func() int { return d.carol.Send("", 600).Status() },
			func() int {
				return anna.Send(servertest.PIDF("sip:anna@example.com", "open", "new"), 600).Status()
			},
			func() int { return d.pend.Subscribe(7200).Status() },
		} {
			all.Go(func() { status[i] = f() })
		}
		all.Wait()
		for i, st := range status {
			if st != 503 {
				t.Errorf("request %d: %d, want 503", i, st)
			}
		}
		if d.n.Metric("store_withdrawn_total") == 0 || d.n.Metric("store_up") != 0 {
			t.Errorf("%v withdrawn, up %v", d.n.Metric("store_withdrawn_total"), d.n.Metric("store_up"))
		}
		if code, text := readyz(d.n); code != 503 || !strings.Contains(text, "the store is down since") || !strings.Contains(text, "no such table") {
			t.Errorf("readyz: %d %q", code, text)
		}
		if m := d.bob.Send("", 600); m.Status() != 503 || m.H(sip.HdrRetryAfter) == "" {
			t.Errorf("while it is down: %d", m.Status())
		}
		take(t, d.n.Config().Store, false)
		d.Settle(5 * time.Second)
		if code, text := readyz(d.n); code != 200 || text != "ready" {
			t.Errorf("readyz: %d %q", code, text)
		}
		d.bob.ETag = tag
		if m := d.bob.Send("", 600); m.Status() != 200 {
			t.Errorf("the entity tag that bob knows: %d", m.Status())
		}
		if m := d.carol.Send("", 600); m.Status() != 200 {
			t.Errorf("the entity tag that carol knows: %d", m.Status())
		}
		if v := d.n.Metric("pa_publications"); v != 2 {
			t.Errorf("%v publications: anna's was not acknowledged", v)
		}
		d.Settle(5 * time.Second)
		told := see.All()
		if last := told[len(told)-1].Text(); last != "open: two" {
			t.Errorf("bob is seen as %q, what he was acknowledged is %q", last, "open: two")
		}
		d.pend.MustSubscribe(3600)
	})
}

// Write-back serves meanwhile, and says so.
func TestOutageWriteBack(t *testing.T) {
	deployed(t, func(c *server.Config) { c.Durability = "write-back" }, func(d *deployment) {
		take(t, d.n.Config().Store, true)
		d.bob.Say("closed", "three")
		d.Settle(time.Minute)
		if code, text := readyz(d.n); code != 200 || !strings.HasPrefix(text, "ready; the store is down since") {
			t.Errorf("readyz: %d %q", code, text)
		}
		d.bob.Say("open", "four")
		d.direct.MustSubscribe(3600)
		if d.n.Metric("store_waiting_writes") == 0 || d.n.Metric("store_up") != 0 {
			t.Error("nothing waits")
		}
		take(t, d.n.Config().Store, false)
		d.Settle(5 * time.Second)
		if d.n.Metric("store_waiting_writes") != 0 || d.n.Metric("store_up") != 1 {
			t.Error("not stored")
		}
		for _, s := range d.all() {
			s.Expect(servertest.Crash)
		}
		d.n.Crash(time.Second)
		if m := d.bob.Send("", 600); m.Status() != 200 {
			t.Errorf("after a crash: %d", m.Status())
		}
	})
}
