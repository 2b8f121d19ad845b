package server_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/pa/winfo"
	"rollcall/server"
	"rollcall/server/servertest"
)

const (
	team  = "sip:team@example.com"
	inner = "sip:inner@example.com"
	alice = "sip:alice@example.com"
	bob   = "sip:bob@example.com"
	carol = "sip:carol@example.com"
)

type state = map[string]string

// deployment is a server with a database, somebody who publishes, and a watcher
// of each kind.
type deployment struct {
	*servertest.World
	n                        *servertest.Node
	bob, carol               *servertest.Publication
	list, direct, pend, info *servertest.Sub
}

// deployed runs f with a deployment in which all is quiet.
func deployed(t *testing.T, change func(*server.Config), f func(d *deployment)) {
	t.Helper()
	db := "sqlite:" + t.TempDir() + "/rollcall.db"
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", func(c *server.Config) {
			c.Store, c.PresenceAuth = db, "allow"
			if change != nil {
				change(c)
			}
		})
		n.Put("rls-services/global/index", servertest.Services(servertest.Service(team, bob, carol, inner), servertest.Service(inner, bob)))
		n.Put("pres-rules/users/sip:carol@example.com/index", `<cr:ruleset xmlns:cr="urn:ietf:params:xml:ns:common-policy" xmlns:pr="urn:ietf:params:xml:ns:pres-rules">
<cr:rule id="a"><cr:conditions/><cr:actions><pr:sub-handling>confirm</pr:sub-handling></cr:actions></cr:rule></cr:ruleset>`)
		d := &deployment{World: w, n: n, bob: w.UA(bob).Publication(n), carol: w.UA(carol).Publication(n)}
		d.bob.Say("open", "one")
		d.carol.Say("open", "hidden")
		d.list, d.direct, d.pend = w.UA(alice).Watch(n, team), w.UA(alice).Watch(n, bob), w.UA(alice).Watch(n, carol)
		d.info = w.UA(bob).Dialog(n, bob)
		d.info.Event, d.info.Headers = "presence.winfo;id=7", ""
		d.info.MustSubscribe(3600)
		d.bob.Say("open", "two")
		w.Settle(5 * time.Second)
		for _, s := range d.all() {
			s.Drain()
		}
		f(d)
	})
}

func (d *deployment) all() []*servertest.Sub {
	return []*servertest.Sub{d.list, d.direct, d.pend, d.info}
}

func (d *deployment) quiet(wait time.Duration, why string) {
	d.T.Helper()
	d.Settle(wait)
	for _, s := range d.all() {
		s.Quiet(0, why)
	}
}

func (d *deployment) members(bobs string) state {
	return state{bob: bobs, carol: "pending", inner: "list", inner + " > " + bob: bobs}
}

// After a stop in order and a start clients notice nothing: no NOTIFY until
// something changes; then CSeq and version go on by one (CORE-12, RL-13, EV-30).
// servertest checks both in each NOTIFY.
func TestRestart(t *testing.T) {
	for _, durability := range []string{"write-through", "write-back"} {
		for _, pause := range []time.Duration{0, 10 * time.Minute} {
			t.Run(fmt.Sprint(durability, " ", pause), func(t *testing.T) {
				deployed(t, func(c *server.Config) { c.Durability = durability }, func(d *deployment) {
					d.n.Restart(pause)
					d.quiet(5*time.Minute, "after a restart nothing has changed")
					if v := d.n.Metric("dialog_subscriptions"); v != 4 {
						t.Errorf("%v subscriptions came back, want 4", v)
					}
					d.list.Expect(servertest.Restart)
					d.bob.Say("open", "three") // PUB-05: its entity tag is good
					d.list.Next()
					d.list.WantView("after the restart", d.members("open: three"))
					if got := d.direct.Next(); got.Text() != "open: three" {
						t.Errorf("direct watcher: %q", got.Text())
					}
					if m := d.carol.Send("", 3600); m.Status() != 200 {
						t.Errorf("PUB-02: refresh of a publication after the restart: %d", m.Status())
					}
					d.quiet(10*time.Second, "nothing more")
					for _, s := range d.all() {
						if m := s.Refresh(); m.Status() != 200 {
							t.Errorf("EV-30: refresh of %s: %d", s.URI, m.Status())
						}
						s.Next()
					}
					d.n.Restart(0)
					d.n.Restart(time.Second)
					d.quiet(time.Minute, "two more restarts")
					d.list.Expect(servertest.Restart)
					for _, s := range d.all() {
						s.Unsubscribe()
					}
					d.n.CheckIdle()
					d.n.Restart(0)
					d.n.CheckIdle()
				})
			})
		}
	}
}

// What happened while the server was down is told when it is up.
func TestRestartExpiry(t *testing.T) {
	deployed(t, nil, func(d *deployment) {
		gone := d.UA("sip:eve@example.com").Publication(d.n)
		gone.Say("open", "bye")
		gone.Send("", 0)
		short := d.UA(alice).Dialog(d.n, team)
		short.MustSubscribe(90)
		short.Next()
		brief := d.UA("sip:dave@example.com").Publication(d.n)
		brief.Send(servertest.PIDF("sip:dave@example.com", "open", "brief"), 60)
		watch := d.UA(alice).Watch(d.n, "sip:dave@example.com")
		watch.Next()
		d.Settle(time.Second)
		d.n.Restart(10 * time.Minute)
		at := time.Now()
		if got := d.UA(alice).Watch(d.n, "sip:eve@example.com").Next().Text(); got != "closed" {
			t.Errorf("a removed publication is back: %q", got)
		}
		// EV-11: the subscription ran out; its watcher is told, with the list (RL-26).
		short.Expect(servertest.Restart)
		if got := short.Last("timeout"); got.RLMI == nil {
			t.Errorf("RL-26: the last NOTIFY has no RLMI")
		}
		// The publication, which nobody could refresh meanwhile, has a minute.
		watch.Quiet(50*time.Second, "the publication is kept for a minute")
		got := watch.Next()
		if d := got.At.Sub(at); got.Text() != "closed" || d < time.Minute || d > 62*time.Second {
			t.Errorf("PUB-14: %q after %v", got.Text(), d)
		}
	})
}

// Lists that changed while the server was down are told.
func TestRestartListChanged(t *testing.T) {
	deployed(t, nil, func(d *deployment) {
		d.n.Restart(0)
		d.n.Put("rls-services/global/index", servertest.Services(servertest.Service(team, bob, carol, inner), servertest.Service(inner, bob), servertest.Service("sip:x@example.com")))
		d.quiet(10*time.Second, "another service of the document is no change")
		d.list.Expect(servertest.Restart)
		d.n.Put("rls-services/global/index", servertest.Services(servertest.Service(team, carol, inner), servertest.Service(inner, bob), servertest.Service("sip:new@example.com")))
		d.list.Next()
		d.list.WantView("after", state{carol: "pending", inner: "list", inner + " > " + bob: "open: two"})
		// A list nested after the restart begins at version 0.
		d.n.Put("rls-services/global/index", servertest.Services(servertest.Service(team, carol, "sip:new@example.com"), servertest.Service("sip:new@example.com", bob)))
		d.list.Next()
		if l := d.list.List().Rows["sip:new@example.com"].List; l == nil || l.Next != 1 {
			t.Errorf("RL-13: a new nested list begins with %+v", l)
		}
	})
}

// After a crash each watcher gets its whole state again, with a CSeq that was
// never used and a version above all before.
func TestCrash(t *testing.T) {
	for name, last := range map[string]func(d *deployment){
		"quiet":  func(d *deployment) {},
		"busy":   func(d *deployment) { d.bob.Say("open", "last words"); d.carol.Say("open", "hidden too") },
		"silent": func(d *deployment) { d.list.Answer = mute; d.direct.Answer = mute; d.bob.Say("open", "last words") },
		"used up": func(d *deployment) { // more CSeqs than are reserved at once
			for i := range 300 {
				d.bob.Say("open", fmt.Sprint("words ", i))
				d.Settle(1100 * time.Millisecond)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			deployed(t, nil, func(d *deployment) {
				last(d)
				synctest.Wait()
				used := make([]uint32, 4)
				for i, s := range d.all() {
					s.Answer = nil
					s.Drain()
					all := s.All()
					used[i] = all[len(all)-1].CSeq()
					s.Expect(servertest.Crash)
				}
				d.n.Crash(time.Second)
				w := d.Settle
				w(time.Second)
				for i, s := range d.all() {
					all := s.All()
					if n := all[len(all)-1]; n.CSeq() <= used[i] {
						t.Errorf("CORE-12: %s got nothing, or CSeq %d again", s.URI, n.CSeq())
					}
					s.Drain()
				}
				text := d.direct.All()[len(d.direct.All())-1].Text()
				if !d.list.List().Full {
					t.Errorf("RL-14: after a crash not full")
				}
				d.list.WantView("after the crash", d.members(text))
				d.bob.Say("open", "again")
				d.list.Next()
				d.list.WantView("after the crash", d.members("open: again"))
				d.direct.Next()
				d.quiet(10*time.Second, "nothing more")
				for _, s := range d.all() {
					s.Unsubscribe()
				}
				d.n.CheckIdle()
			})
		})
	}
}

func mute(*servertest.Notify) (int, string) { return 0, "" }

// A crash loses nothing that was acknowledged in write-through.
func TestCrashKeepsWhatWasAcknowledged(t *testing.T) {
	deployed(t, nil, func(d *deployment) {
		p := d.UA("sip:dave@example.com").Publication(d.n)
		p.Say("open", "just now")
		s := d.UA(alice).Watch(d.n, "sip:dave@example.com")
		d.Settle(0)
		for _, x := range append(d.all(), s) {
			x.Expect(servertest.Crash)
		}
		d.n.Crash(0)
		if m := p.Send("", 600); m.Status() != 200 {
			t.Errorf("an acknowledged publication is lost: %d", m.Status())
		}
		if m := s.Refresh(); m.Status() != 200 {
			t.Errorf("an acknowledged subscription is lost: %d", m.Status())
		}
	})
}

// What arrives while the server starts waits until everything is recovered.
func TestRefreshDuringStart(t *testing.T) {
	deployed(t, nil, func(d *deployment) {
		answers := make(chan int, 4)
		d.Bound = func() {
			for _, s := range d.all() {
				go func() { answers <- s.Refresh().Status() }()
			}
			synctest.Wait()
		}
		d.list.Expect(servertest.Restart)
		d.n.Restart(time.Second)
		for _, s := range d.all() {
			if status := <-answers; status != 200 {
				t.Errorf("EV-30: a refresh during the start: %d, want 200", status)
			}
			s.Next()
		}
	})
}

// A start that fails leaves the store as it was: the next one is still after a
// stop in order.
func TestFailedStart(t *testing.T) {
	deployed(t, nil, func(d *deployment) {
		if err := d.n.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		cfg := d.n.Config()
		cfg.Listen = []string{"udp:203.0.113.1:5060"} // not ours
		s, err := server.New(cfg, servertest.Log(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start(context.Background()); err == nil || !strings.Contains(err.Error(), "listen") {
			t.Errorf("Start: %v", err)
		}
		if err := s.Stop(context.Background()); err != nil {
			t.Errorf("Stop after a failed start: %v", err)
		}
		d.n.Restart(0)
		d.quiet(time.Minute, "the failed start changed nothing")
	})
}

// WI-09: after a crash the owner is told of every watcher, in whatever order the
// subscriptions came back; after a stop in order of none.
func TestRestartWatcherInfo(t *testing.T) {
	deployed(t, nil, func(d *deployment) {
		watchers := map[string]bool{alice: true}
		for i := range 20 { // some come back before the owner's subscription, some after
			who := fmt.Sprintf("sip:w%d@example.com", i)
			watchers[who] = true
			uri := bob
			if i%2 == 0 {
				uri = team
			}
			s := d.UA(who).Watch(d.n, uri)
			s.Expect(servertest.Crash)
		}
		d.Settle(5 * time.Second)
		for _, s := range d.all() {
			s.Drain()
			s.Expect(servertest.Crash)
		}
		d.n.Restart(0)
		d.Settle(time.Minute)
		d.info.Quiet(0, "after a stop in order nothing has changed")
		d.n.Crash(0)
		d.Settle(10 * time.Second)
		all := d.info.All()
		doc, err := winfo.Parse(all[len(all)-1].Body())
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, w := range doc.Lists[0].Watchers {
			if got[w.URI] = true; !watchers[w.URI] || w.Status != winfo.Active {
				t.Errorf("watcher %+v", w)
			}
		}
		if len(got) != len(watchers) {
			t.Errorf("%d watchers are told, want %d: %v", len(got), len(watchers), got)
		}
	})
}

// What is published while the server starts reaches the watchers, though their
// subscriptions may come back after it: their first state is then not the one
// they have.
func TestPublishDuringStart(t *testing.T) {
	for name, c := range map[string]struct {
		expires int
		want    string
	}{"changed": {3600, "open: three"}, "removed": {0, "closed"}} {
		t.Run(name, func(t *testing.T) {
			deployed(t, nil, func(d *deployment) {
				answer := make(chan int, 1)
				d.Bound = func() {
					go func() {
						doc := servertest.PIDF(bob, "open", "three")
						if c.expires == 0 {
							doc = ""
						}
						answer <- d.bob.Send(doc, c.expires).Status()
					}()
					synctest.Wait()
				}
				d.list.Expect(servertest.Restart)
				d.n.Restart(time.Second)
				if status := <-answer; status != 200 {
					t.Fatalf("PUBLISH during the start: %d", status)
				}
				if got := d.direct.Next().Text(); got != c.want {
					t.Errorf("direct watcher has %q, want %q", got, c.want)
				}
				d.list.Next()
				d.list.WantView("after the start", d.members(c.want))
				d.quiet(10*time.Second, "nothing more")
			})
		})
	}
}

// The same for somebody of whom nothing was published before.
func TestFirstPublishDuringStart(t *testing.T) {
	deployed(t, nil, func(d *deployment) {
		dave := d.UA("sip:dave@example.com")
		watch := d.UA(alice).Watch(d.n, dave.AOR)
		watch.Next()
		d.Settle(5 * time.Second)
		p := dave.Publication(d.n)
		d.Bound = func() {
			go p.Say("open", "first")
			synctest.Wait()
		}
		d.n.Restart(time.Second)
		if got := watch.Next().Text(); got != "open: first" {
			t.Errorf("watcher has %q", got)
		}
	})
}

// What is published while the server stops is told, before the end or after
// the next start: whatever was acknowledged or stored reaches the watchers.
func TestPublishDuringStop(t *testing.T) {
	const people = 60
	db := "sqlite:" + t.TempDir() + "/rollcall.db"
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", func(c *server.Config) { c.Store, c.PresenceAuth = db, "open" })
		var members []string
		var pubs []*servertest.Publication
		for i := range people {
			members = append(members, fmt.Sprintf("sip:p%d@example.com", i))
			pubs = append(pubs, w.UA(members[i]).Publication(n))
			pubs[i].Say("open", "before")
		}
		n.List(team, members...)
		list, direct := w.UA(alice).Watch(n, team), w.UA(alice).Watch(n, members[0])
		w.Settle(5 * time.Second)
		for round := range 30 {
			note := fmt.Sprint("round ", round)
			want := state{}
			var all sync.WaitGroup
			for i, p := range pubs {
				all.Go(func() {
					if m := p.Send(servertest.PIDF(members[i], "open", note), 3600); m.Status() != 200 {
						t.Errorf("PUBLISH: %d", m.Status())
					}
				})
				want[members[i]] = "open: " + note
			}
			list.Expect(servertest.Restart)
			direct.Expect(servertest.Restart)
			for range round * 20 { // how far the server gets with them before it stops
				runtime.Gosched()
			}
			n.Restart(0)
			all.Wait()
			w.Settle(5 * time.Second)
			list.WantView(note, want)
			if got := direct.All(); got[len(got)-1].Text() != "open: "+note {
				t.Errorf("%s: direct watcher has %q", note, got[len(got)-1].Text())
			}
			list.Drain()
			direct.Drain()
		}
	})
}

// watchers are those in the newest watcher information of the deployment.
func (d *deployment) watchers() int {
	all := d.info.All()
	return strings.Count(string(all[len(all)-1].Body()), `status="active"`)
}

// After a restart watcher information tells of a watcher that came with a later
// member of a list, and after a crash of those that were found only after the
// first document.
func TestRestartWatchers(t *testing.T) {
	for name, crash := range map[string]bool{"restart": false, "crash": true} {
		t.Run(name, func(t *testing.T) {
			deployed(t, nil, func(d *deployment) {
				if crash {
					for _, s := range d.all() {
						s.Expect(servertest.Crash)
					}
					d.n.Crash(0)
				} else {
					d.n.Restart(0)
				}
				d.Settle(3 * time.Second)
				if n := d.watchers(); n != 3 { // direct, on the list, on the list in it
					t.Errorf("WI-08: %d watchers after the restart, want 3", n)
				}
				d.list.Expect(servertest.Restart)
				d.n.Put("rls-services/global/index", servertest.Services(servertest.Service(team, bob, carol, inner, "sip:more@example.com"), servertest.Service(inner, bob), servertest.Service("sip:more@example.com", bob)))
				d.Settle(3 * time.Second)
				if n := d.watchers(); n != 4 {
					t.Errorf("WI-08: %d watchers after another came, want 4", n)
				}
			})
		})
	}
}
