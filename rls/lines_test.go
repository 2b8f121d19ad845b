package rls_test

import (
	"testing"
	"time"

	"rollcall/server"
	"rollcall/server/servertest"
)

const lines = "sip:lines@example.com"

// A busy lamp field: a list for dialogs. Versions of each member's documents
// (DI-02), RL-12 to RL-18 and RL-21 are checked in every NOTIFY by servertest.
func TestLamps(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		n.Put("rls-services/global/index", servertest.Services(servertest.ServiceFor("dialog", lines, bob+" Bob", carol, dave)))
		w.Settle(time.Second)
		b, c := w.UA(bob).Lines(n), w.UA(carol).Lines(n)
		c.Call("7", "c7", "confirmed")
		sub := w.UA(alice).Dialog(n, lines)
		sub.Event = "dialog"
		sub.MustSubscribe(3600)
		sub.Next()
		sub.WantView("RL-17 an active member has a document, idle or not", state{bob: "", carol: "7 confirmed", dave: ""})
		for _, s := range []string{"trying", "early", "confirmed", "terminated"} {
			w.Settle(time.Second)
			b.Call("1", "c1", s)
			sub.Next()
			if l := sub.List(); l.Full || len(l.Changed) != 1 || l.Changed[0] != bob {
				t.Errorf("RL-21: change came full %v with %v", l.Full, l.Changed)
			}
			sub.WantView(s, state{bob: "1 " + s, carol: "7 confirmed", dave: ""})
		}
		b.Call("1", "c1", "early")
		sub.Quiet(10*time.Second, "terminated is final")
		w.UA(bob).Publication(n).Say("open", "here")
		sub.Quiet(10*time.Second, "presence is another package")
		sub.Refresh()
		sub.Next()
		w.Settle(time.Second)
		c.Send("", 0)
		sub.Next()
		sub.WantView("after a publisher left", state{bob: "1 terminated", carol: "", dave: ""})
		sub.Unsubscribe()
		n.CheckIdle()
	})
}

// The same over a restart and a crash: the lamps go on, and versions grow.
func TestLampsRestart(t *testing.T) {
	for _, crash := range []bool{false, true} {
		world(t, func(c *server.Config) { c.Store, c.Durability = "sqlite:"+t.TempDir()+"/r.db", "write-through" }, func(w *servertest.World, n *servertest.Node) {
			n.Put("rls-services/global/index", servertest.Services(servertest.ServiceFor("dialog", lines, bob, carol)))
			w.Settle(time.Second)
			b := w.UA(bob).Lines(n)
			sub := w.UA(alice).Dialog(n, lines)
			sub.Event = "dialog"
			sub.MustSubscribe(3600)
			sub.Next()
			for _, s := range []string{"trying", "early"} {
				w.Settle(time.Second)
				b.Call("1", "c1", s)
				sub.Next()
			}
			w.Settle(time.Second)
			if crash {
				sub.Expect(servertest.Crash)
				n.Crash(time.Second)
				sub.Next()
			} else {
				sub.Expect(servertest.Restart)
				n.Restart(time.Second)
				sub.Quiet(30*time.Second, "nothing has changed")
			}
			sub.WantView("after a restart", state{bob: "1 early", carol: ""})
			b.Call("1", "c1", "confirmed")
			sub.Next()
			sub.WantView("change after a restart", state{bob: "1 confirmed", carol: ""})
			w.Settle(time.Second)
			b.Call("1", "c1", "terminated")
			sub.Next()
			sub.WantView("and another", state{bob: "1 terminated", carol: ""})
		})
	}
}
