package b2b_test

import (
	"strings"
	"testing"
	"time"

	"rollcall/server/servertest"
)

// Dialogs of users elsewhere: changes that another server tells become full
// state, with versions of ours (DI-02, checked by servertest), for a lamp of its
// own and in a list.
func TestRemoteDialogs(t *testing.T) {
	scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
		const lines = "sip:lines@example.com"
		com.Put("rls-services/global/index", servertest.Services(servertest.ServiceFor("dialog", lines, ann, bob)))
		w.Settle(time.Second)
		one, list := w.UA(alice).Dialog(com, ann), w.UA(alice).Dialog(com, lines)
		one.Event, list.Event = "dialog", "dialog"
		one.MustSubscribe(3600)
		in := p.Next(5 * time.Second)
		if h := string(in.Raw); !strings.Contains(h, "Event: dialog\r\n") || !strings.Contains(h, "Accept: application/dialog-info+xml\r\n") {
			t.Errorf("asked with\n%s", h)
		}
		in.Answer(200, "")
		list.MustSubscribe(3600)
		say := func(state, body, want string) {
			t.Helper()
			if status := in.Notify(active, strings.Replace(body, `"full"`, `"`+state+`"`, 1)); status != 200 {
				t.Errorf("NOTIFY: %d", status)
			}
			w.Settle(time.Second)
			one.Drain()
			list.Drain()
			all := one.All()
			if got := all[len(all)-1].Text(); got != want {
				t.Errorf("alone: %q, want %q", got, want)
			}
			list.WantView("list", state2(want))
		}
		say("full", strings.Replace(servertest.DialogInfo(ann, "1", "c1", "early"), `version="0"`, `version="41"`, 1), "1 early")
		say("partial", strings.Replace(servertest.DialogInfo(ann, "2", "c2", "confirmed"), `version="0"`, `version="42"`, 1), "1 early, 2 confirmed")
		say("partial", servertest.DialogInfo(ann, "1", "c1", "terminated"), "1 terminated, 2 confirmed")
		say("partial", servertest.DialogInfo(ann, "3", "c3", "trying"), "2 confirmed, 3 trying")
		say("full", servertest.DialogInfo(ann, "3", "c3", "early"), "3 early")
		if status := in.Notify(active, "<nonsense"); status != 400 {
			t.Errorf("a body that is none: %d", status)
		}
		say("partial", servertest.DialogInfo(ann, "4", "c4", "early"), "3 early, 4 early")
	})
}

func state2(ann2 string) state { return state{ann: ann2, bob: ""} }

// What was known is shown after a restart at once, and changes go on from there.
func TestRemoteDialogsRestart(t *testing.T) {
	stored(t, "write-through", func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
		sub := w.UA(alice).Dialog(com, ann)
		sub.Event = "dialog"
		sub.MustSubscribe(3600)
		in := p.Next(5 * time.Second)
		in.Answer(200, "")
		in.Notify(active, servertest.DialogInfo(ann, "1", "c1", "early"))
		w.Settle(3 * time.Second)
		sub.Drain()
		com.Restart(time.Second)
		again := p.Next(10 * time.Second)
		again.Answer(200, "")
		again.Notify(active, strings.Replace(servertest.DialogInfo(ann, "2", "c2", "trying"), `"full"`, `"partial"`, 1))
		w.Settle(time.Second)
		sub.Drain()
		all := sub.All()
		if got := all[len(all)-1].Text(); got != "1 early, 2 trying" {
			t.Errorf("after a restart: %q", got)
		}
	})
}
