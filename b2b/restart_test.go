package b2b_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server"
	"rollcall/server/servertest"
)

// stored runs f with a server that has a database and a scripted example.org.
func stored(t *testing.T, durability string, f func(w *servertest.World, com *servertest.Node, p *servertest.Peer)) {
	t.Helper()
	db := "sqlite:" + t.TempDir() + "/rollcall.db"
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		com := w.Node("192.0.2.1", func(c *server.Config) { c.Store, c.Durability = db, durability })
		f(w, com, w.Peer(remoteAt+":5060"))
	})
}

// kinds are the ways a server may come back.
var kinds = []struct {
	name string
	gap  servertest.Gap
	do   func(n *servertest.Node, pause time.Duration)
}{
	{"in order", servertest.Restart, (*servertest.Node).Restart},
	{"crash", servertest.Crash, (*servertest.Node).Crash},
}

// After a restart the subscription there goes on: its dialog, its state at
// once, and one refresh, of which the watchers hear nothing unless something
// has changed.
func TestRestartRemote(t *testing.T) {
	for _, durability := range []string{"write-through", "write-back"} {
		for _, k := range kinds {
			t.Run(durability+" "+k.name, func(t *testing.T) {
				stored(t, durability, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
					com.List(team, bob, ann)
					sub, direct := w.UA(alice).Watch(com, team), w.UA(alice).Watch(com, ann)
					in := p.Next(time.Second)
					in.Answer(200, "")
					in.Notify(active, doc("here"))
					w.Settle(5 * time.Second)
					sub.WantView("before", state{bob: "closed", ann: "open: here"})
					sub.Drain()
					direct.Drain()

					for i := range 3 {
						sub.Expect(k.gap)
						direct.Expect(k.gap)
						p.Expect(k.gap)
						k.do(com, time.Second)
						if sub.Refresh().Status() != 200 {
							t.Errorf("EV-30: refresh refused")
						}
						w.Settle(0)
						sub.WantView("at once", state{bob: "closed", ann: "open: here"})
						again := p.Next(2 * time.Second)
						if !again.InDialog() || string(again.CallID()) != string(in.CallID()) || again.Wants() != 3600 || p.Dialogs() != 1 {
							t.Errorf("after restart %d:\n%s", i+1, again.Raw)
						}
						w.Settle(time.Second)
						sub.Drain()
						direct.Drain()
						again.Answer(200, "")
						if status := again.Notify(active, doc("here")); status != 200 {
							t.Errorf("NOTIFY after the refresh got %d", status)
						}
						sub.Quiet(10*time.Second, "nothing has changed")
						direct.Quiet(0, "nothing has changed")
						p.Quiet(10*time.Minute, "one refresh is enough")
						in = again
					}
					if status := in.Notify(active, doc("later")); status != 200 {
						t.Errorf("NOTIFY in the old dialog got %d", status)
					}
					w.Settle(2 * time.Second)
					sub.WantView("after", state{bob: "closed", ann: "open: later"})
					if got := direct.Next(); got.Text() != "open: later" {
						t.Errorf("direct watcher: %q", got.Text())
					}
					sub.Unsubscribe()
					direct.Unsubscribe()
					bye := p.Next(time.Second)
					if !bye.InDialog() || bye.Wants() != 0 {
						t.Errorf("RL-37: in dialog %v, Expires %d", bye.InDialog(), bye.Wants())
					}
					bye.Answer(200, "")
					bye.Notify("terminated;reason=timeout", "")
					com.CheckIdle()
					com.Restart(0)
					com.CheckIdle()
					p.Quiet(2*time.Minute, "RL-37: forgotten")
				})
			})
		}
	}
}

// What changed there while nobody listened is known soon after the start.
func TestRestartRemoteChanged(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			stored(t, "write-through", func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
				com.List(team, ann)
				sub := w.UA(alice).Watch(com, team)
				in := p.Next(time.Second)
				in.Answer(200, "")
				in.Notify(active, doc("here"))
				w.Settle(5 * time.Second)
				sub.Drain()
				sub.Expect(k.gap)
				p.Expect(k.gap)
				k.do(com, 10*time.Minute)
				again := p.Next(2 * time.Second)
				if !again.InDialog() {
					t.Errorf("a second dialog")
				}
				again.Answer(200, "")
				again.Notify(active, doc("gone fishing"))
				w.Settle(2 * time.Second)
				sub.WantView("after", state{ann: "open: gone fishing"})
			})
		})
	}
}

// A subscription that ran out, or that the other server has given up, while we
// were down is opened anew.
func TestRestartRemoteOver(t *testing.T) {
	for name, pause := range map[string]time.Duration{"expired": 65 * time.Minute, "given up": 10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			stored(t, "write-through", func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
				com.List(team, ann)
				sub := w.UA(alice).Dialog(com, team)
				sub.MustSubscribe(7200)
				in := p.Next(time.Second)
				in.Answer(200, "")
				in.Notify(active, doc("here"))
				w.Settle(5 * time.Second)
				sub.Drain()
				sub.Expect(servertest.Restart)
				com.Restart(pause)
				again := p.Next(2 * time.Second)
				if name == "given up" {
					again.Answer(481, "")
					again = p.Next(time.Second)
				}
				if again.InDialog() || string(again.CallID()) == string(in.CallID()) {
					t.Errorf("not a new dialog:\n%s", again.Raw)
				}
				again.Answer(200, "")
				again.Notify(active, doc("back"))
				w.Settle(2 * time.Second)
				sub.WantView("after", state{ann: "open: back"})
				if v := com.Metric("dialog_remote_subscriptions"); v != 1 {
					t.Errorf("%v subscriptions, want 1", v)
				}
			})
		})
	}
}

// A crash before the first answer: the NOTIFY still makes the dialog, and there
// is no second one (EV-19).
func TestCrashEarly(t *testing.T) {
	for _, answered := range []bool{false, true} {
		t.Run(fmt.Sprint("answered ", answered), func(t *testing.T) {
			stored(t, "write-through", func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
				com.List(team, ann)
				sub := w.UA(alice).Watch(com, team)
				in := p.Next(time.Second)
				if answered {
					in.Answer(200, "")
				}
				w.Settle(2 * time.Second) // the first NOTIFY to the watcher is over, too
				sub.Expect(servertest.Crash)
				p.Expect(servertest.Crash)
				com.Crash(time.Second)
				if status := in.Notify(active, doc("early")); status != 200 {
					t.Errorf("EV-19: NOTIFY after the crash got %d", status)
				}
				w.Settle(time.Second)
				sub.WantView("EV-19", state{ann: "open: early"})
				if answered {
					again := p.Next(2 * time.Second)
					again.Answer(200, "")
					again.Notify(active, doc("early"))
				}
				w.Settle(time.Minute)
				if p.Dialogs() != 1 {
					t.Errorf("%d dialogs", p.Dialogs())
				}
			})
		})
	}
}

// A NOTIFY that arrives while the server starts waits, and finds its dialog.
func TestNotifyDuringStart(t *testing.T) {
	stored(t, "write-through", func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
		com.List(team, ann)
		sub := w.UA(alice).Watch(com, team)
		in := p.Next(time.Second)
		in.Answer(200, "")
		in.Notify(active, doc("here"))
		w.Settle(5 * time.Second)
		sub.Drain()
		answer := make(chan int, 1)
		w.Bound = func() {
			go func() { answer <- in.Notify(active, doc("meanwhile")) }()
			synctest.Wait()
		}
		sub.Expect(servertest.Restart)
		com.Restart(time.Second)
		if status := <-answer; status != 200 {
			t.Errorf("NOTIFY during the start: %d, want 200", status)
		}
		w.Settle(2 * time.Second)
		sub.WantView("after", state{ann: "open: meanwhile"})
	})
}

// Two servers, one of which crashes again and again: one subscription for each
// member, the newest state, and nothing left at the end.
func TestRestartPair(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			db := "sqlite:" + t.TempDir() + "/rollcall.db"
			synctest.Test(t, func(t *testing.T) {
				w := servertest.New(t)
				org := w.Node(remoteAt, func(c *server.Config) { c.Domain, c.Remote = []string{"example.org"}, nil })
				com := w.Node("192.0.2.1", func(c *server.Config) { c.Store = db })
				const members = 20
				var uris []string
				want := state{}
				for i := range members {
					uris = append(uris, fmt.Sprintf("sip:m%d@example.org", i))
					want[uris[i]] = "closed"
				}
				com.List(team, uris...)
				sub := w.UA(alice).Watch(com, team)
				pub := w.UA(uris[0]).Publication(org)
				w.Settle(5 * time.Second)
				for i := range 6 {
					pub.Say("open", fmt.Sprint("step ", i))
					want[uris[0]] = fmt.Sprint("open: step ", i)
					w.Settle(time.Duration(i) * 30 * time.Millisecond) // in the middle of things
					sub.Expect(k.gap)
					k.do(com, time.Duration(i)*time.Second)
					w.Settle(10 * time.Second)
					sub.WantView("after a restart", want)
					if v := org.Metric("dialog_subscriptions"); v != members {
						t.Errorf("%v subscriptions there, want %d", v, members)
					}
					if v := com.Metric("b2b_opened_total"); v != 0 {
						t.Errorf("%v subscriptions were opened anew", v)
					}
				}
				sub.Unsubscribe()
				w.Settle(time.Second)
				com.CheckIdle()
				org.CheckIdle()
			})
		})
	}
}
