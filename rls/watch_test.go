package rls_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sip"
	"rollcall/xcapclient"
)

const (
	team  = "sip:team@example.com"
	alice = "sip:alice@example.com"
	bob   = "sip:bob@example.com"
	carol = "sip:carol@example.com"
	dave  = "sip:dave@example.com"
)

type state = map[string]string

// world runs f with a server that is open to everybody, unless change says
// otherwise.
func world(t *testing.T, change func(*server.Config), f func(w *servertest.World, n *servertest.Node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		f(w, w.Node("192.0.2.1", change))
	})
}

func publisher(w *servertest.World, n *servertest.Node, aor string) *servertest.Publication {
	return w.UA(aor).Publication(n)
}

// The life of a list subscription: RL-01, RL-09 to RL-17 and RL-21 are checked
// in every NOTIFY by servertest.
func TestListLife(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		n.List(team, bob, carol+" Carol", dave)
		b, c := publisher(w, n, bob), publisher(w, n, carol)
		b.Say("open", "one")
		sub := w.UA(alice).Watch(n, team)
		first := sub.Next()
		if first.State != "active" || !sub.List().Full || sub.List().Next != 1 {
			t.Errorf("RL-14: first NOTIFY is %s, full %v, version %d", first.State, sub.List().Full, sub.List().Next-1)
		}
		sub.WantView("RL-14 first", state{bob: "open: one", carol: "closed", dave: "closed"})
		if got := sub.List().Rows[carol].Name; got != "Carol" {
			t.Errorf("LS-12: name %q", got)
		}
		b.Say("open", "two")
		sub.Next()
		if sub.List().Full || !slices.Equal(sub.List().Changed, []string{bob}) {
			t.Errorf("RL-21: change came full %v with %v", sub.List().Full, sub.List().Changed)
		}
		id := sub.List().Rows[bob].Instance
		c.Say("open", "here")
		sub.Next()
		sub.WantView("change", state{bob: "open: two", carol: "open: here", dave: "closed"})
		b.Send("", 3600)
		sub.Quiet(10*time.Second, "a refreshed publication is no change")
		sub.Refresh()
		sub.Next()
		if !sub.List().Full || len(sub.List().Rows) != 3 || sub.List().Rows[bob].Instance != id {
			t.Errorf("RL-14: after a refresh: full %v, rows %v; RL-17: instance %q, before %q", sub.List().Full, sub.List().Rows, sub.List().Rows[bob].Instance, id)
		}
		w.Settle(time.Hour - 6*time.Second) // RL-22: publications end, the list goes on
		sub.Drain()
		sub.WantView("PUB-14", state{bob: "closed", carol: "closed", dave: "closed"})
		sub.Unsubscribe()
		if !sub.List().Full || len(sub.List().Rows) != 3 {
			t.Errorf("RL-14, RL-26: last NOTIFY is full %v with %d rows", sub.List().Full, len(sub.List().Rows))
		}
		n.CheckIdle()
	})
}

// EV-11, RL-26, RL-37: a subscription that is not refreshed ends in time, with
// the list once more, and holds nothing afterwards.
func TestListExpires(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		n.List(team, bob, carol)
		sub := w.UA(alice).Dialog(n, team)
		sub.MustSubscribe(60)
		sub.Next()
		at := time.Now()
		w.Settle(time.Minute)
		last := sub.Last("timeout")
		if d := last.At.Sub(at); d < 59*time.Second || d > 61*time.Second || last.RLMI == nil || !sub.List().Full {
			t.Errorf("expired after %v, with RLMI %v", d, last.RLMI != nil)
		}
		n.CheckIdle()
	})
}

// RL-25, EV-10: a poll gets the whole list at once.
func TestListPoll(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		n.List(team, bob, carol, "sip:ann@example.org")
		publisher(w, n, bob).Say("open", "here")
		sub := w.UA(alice).Dialog(n, team)
		at := time.Now()
		sub.MustSubscribe(0)
		got := sub.Last("timeout")
		if !sub.List().Full || got.At.Sub(at) > time.Second {
			t.Errorf("RL-25: full %v after %v", sub.List().Full, got.At.Sub(at))
		}
		sub.WantView("RL-25", state{bob: "open: here", carol: "closed", "sip:ann@example.org": "unknown"})
		w.Settle(2 * time.Minute) // the remote subscription is given up
		n.CheckIdle()
	})
}

// RL-02, RL-04, RL-05, LS-07: who cannot have the list as it is.
func TestListRefused(t *testing.T) {
	const accept = "Accept: application/pidf+xml, application/rlmi+xml, multipart/related\n"
	services := servertest.Services(servertest.Service(team, bob), servertest.ServiceFor("dialog", "sip:lines@example.com", bob),
		`<service uri="sip:any@example.com"><list>`+servertest.Entries(bob)+`</list></service>`,
		`<service uri="sip:none@example.com"><list>`+servertest.Entries(bob)+`</list><packages/></service>`)
	for _, c := range []struct {
		name, uri, event, headers string
		status                    int
		want                      map[sip.HeaderID]string
	}{
		{"RL-01 list", team, "presence", "Supported: eventlist\n" + accept, 200, nil},
		{"RL-02 Require implies support", team, "presence", "Require: eventlist\n" + accept, 200, nil},
		{"RL-04 wildcard", team, "presence", "Supported: eventlist\nAccept: */*\n", 200, nil},
		{"RL-04 wildcards", team, "presence", "Supported: eventlist\nAccept: multipart/*, application/*\n", 200, nil},
		{"RL-02 without eventlist", team, "presence", accept, 421, map[sip.HeaderID]string{sip.HdrRequire: "eventlist"}},
		{"RL-02 another extension", team, "presence", "Supported: 100rel\n" + accept, 421, map[sip.HeaderID]string{sip.HdrRequire: "eventlist"}},
		{"RL-04 no multipart", team, "presence", "Supported: eventlist\nAccept: application/pidf+xml, application/rlmi+xml\n", 406, nil},
		{"RL-04 no RLMI", team, "presence", "Supported: eventlist\nAccept: application/pidf+xml, multipart/related\n", 406, nil},
		{"RL-04 no presence", team, "presence", "Supported: eventlist\nAccept: application/rlmi+xml, multipart/related\n", 406, nil},
		{"LS-07 package not of the list", "sip:lines@example.com", "presence", "Supported: eventlist\n" + accept, 489, nil},
		{"LS-07 no packages element: any", "sip:any@example.com", "presence", "Supported: eventlist\n" + accept, 200, nil},
		{"LS-07 empty packages element: none", "sip:none@example.com", "presence", "Supported: eventlist\n" + accept, 489, nil},
		{"RL-05 package not for lists", team, "presence.winfo", "Supported: eventlist\nAccept: */*\n", 489, nil},
		{"unknown package", team, "weather", "Supported: eventlist\n" + accept, 489, map[sip.HeaderID]string{sip.HdrAllowEvents: "presence, presence.winfo, dialog, dialog.winfo, message-summary, message-summary.winfo"}},
		{"LS-07 package of the list", "sip:lines@example.com", "dialog", "Supported: eventlist\nAccept: application/dialog-info+xml, application/rlmi+xml, multipart/related\n", 200, nil},
		{"RL-04 no dialogs", "sip:lines@example.com", "dialog", "Supported: eventlist\n" + accept, 406, nil},
		{"RL-05 packages for lists", team, "dialog.winfo", "Supported: eventlist\nAccept: */*\n", 489, map[sip.HeaderID]string{sip.HdrAllowEvents: "presence, dialog, message-summary"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			world(t, nil, func(w *servertest.World, n *servertest.Node) {
				n.Put("rls-services/global/index", services)
				sub := w.UA(alice).Dialog(n, c.uri)
				sub.Event, sub.Headers = c.event, c.headers
				m := sub.Subscribe(600)
				if m.Status() != c.status {
					t.Errorf("status %d %s, want %d", m.Status(), m.Reason(), c.status)
				}
				for h, want := range c.want {
					if m.H(h) != want {
						t.Errorf("%v is %q, want %q", h, m.H(h), want)
					}
				}
				if c.status == 489 && m.H(sip.HdrAllowEvents) == "" && c.uri != "sip:none@example.com" || c.status == 406 && !strings.Contains(m.H(sip.HdrAccept), "multipart/related") {
					t.Errorf("EV-03, EV-04: %d without Allow-Events or Accept", m.Status())
				}
				if c.status != 200 {
					sub.Quiet(time.Minute, "a refused SUBSCRIBE has no NOTIFY")
					n.CheckIdle()
				}
			})
		})
	}
}

// RL-07: a user's list is for its owner; a list without owner for everybody
// who is known; with --presence-auth open anybody may.
func TestListOwner(t *testing.T) {
	for _, c := range []struct {
		selector, watcher, auth string
		status                  int
	}{
		{"rls-services/users/sip:alice@example.com/index", alice, "confirm", 200},
		{"rls-services/users/sip:alice@example.com/index", bob, "confirm", 403},
		{"rls-services/users/sip:alice@example.com/index", bob, "allow", 403},
		{"rls-services/users/sip:alice@example.com/index", bob, "open", 200},
		{"rls-services/users/sip:alice@example.com/index", "sip:alice@example.org", "confirm", 403},
		{"rls-services/users/alice/index", alice, "confirm", 200},
		{"rls-services/users/alice/index", "sip:alice@example.org", "confirm", 403},
		{"rls-services/users/alice/index", bob, "confirm", 403},
		{"rls-services/global/index", bob, "confirm", 200},
	} {
		t.Run(c.selector+" "+c.watcher+" "+c.auth, func(t *testing.T) {
			world(t, func(cfg *server.Config) { cfg.PresenceAuth = c.auth }, func(w *servertest.World, n *servertest.Node) {
				n.Put(c.selector, servertest.Services(servertest.Service(team, bob)))
				if m := w.UA(c.watcher).Dialog(n, team).Subscribe(600); m.Status() != c.status {
					t.Errorf("RL-07: %d %s, want %d", m.Status(), m.Reason(), c.status)
				}
			})
		})
	}
}

// RL-27, RL-37: members come, go and change their names while the list is
// watched.
func TestListChanges(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		publisher(w, n, bob).Say("open", "bob")
		publisher(w, n, dave).Say("open", "dave")
		n.List(team, bob, carol)
		sub := w.UA(alice).Watch(n, team)
		sub.Next()
		step := func(what string, changed []string, view state, members ...string) {
			t.Helper()
			n.List(team, members...)
			sub.Next()
			slices.Sort(sub.List().Changed)
			if sub.List().Full || !slices.Equal(sub.List().Changed, changed) {
				t.Errorf("%s: full %v, changed %v, want %v", what, sub.List().Full, sub.List().Changed, changed)
			}
			sub.WantView(what, view)
			if got, want := int(n.Metric("rls_members")), len(members); got != want {
				t.Errorf("RL-37 %s: %d attachments for %d members", what, got, want)
			}
		}
		step("RL-27 added", []string{dave}, state{bob: "open: bob", carol: "closed", dave: "open: dave"}, bob, carol, dave)
		step("RL-27 removed", []string{bob}, state{bob: "terminated noresource", carol: "closed", dave: "open: dave"}, carol, dave)
		step("LS-12 renamed", []string{carol}, state{bob: "terminated noresource", carol: "closed", dave: "open: dave"}, carol+" Caroline", dave)
		if got := sub.List().Rows[carol].Name; got != "Caroline" {
			t.Errorf("LS-12: name %q", got)
		}
		n.List(team, dave, carol+" Caroline")
		sub.Quiet(10*time.Second, "another order is no change")
		n.List(team, dave, carol+" Caroline", carol+" Again", "sip:car%6fl@EXAMPLE.com")
		sub.Quiet(10*time.Second, "LS-09: a duplicate is no change")
		n.Put("rls-services/global/index", servertest.Services(servertest.Service(team, dave, carol+" Caroline"), servertest.Service("sip:other@example.com", bob)))
		sub.Quiet(10*time.Second, "another service of the document is no change")
		sub.Refresh()
		sub.Next()
		sub.WantView("RL-27 absent from full state", state{carol: "closed", dave: "open: dave"})
		step("back again", []string{bob}, state{bob: "open: bob", carol: "closed", dave: "open: dave"}, bob, carol+" Caroline", dave)
		step("empty", []string{bob, carol, dave}, state{bob: "terminated noresource", carol: "terminated noresource", dave: "terminated noresource"})
		sub.Unsubscribe()
		sub.WantView("RL-14 empty list", state{})
		n.CheckIdle()
	})
}

// RL-16: a member that is taken off and put back before its watcher could be
// told is one row.
func TestMemberBackBeforeTold(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		publisher(w, n, bob).Say("open", "bob")
		n.List(team, bob, carol)
		sub := w.UA(alice).Watch(n, team)
		sub.Next()
		n.List(team, bob)
		sub.Next() // the interval begins
		n.List(team)
		n.List(team, carol)
		n.List(team, bob, carol)
		sub.Next()
		sub.WantView("back", state{bob: "open: bob", carol: "closed"})
		sub.Quiet(10*time.Second, "told already")
		n.List(team, bob, carol, dave)
		sub.Next()
		n.List(team, carol) // bob away, back and away
		n.List(team, carol, bob)
		n.List(team, carol)
		n.List(team, carol, "sip:eve@example.com") // eve comes and goes
		n.List(team, carol)
		sub.Next()
		sub.WantView("away", state{bob: "terminated noresource", carol: "closed", dave: "terminated noresource"})
		sub.Unsubscribe()
		n.CheckIdle()
	})
}

// A list of which nothing is left: RL-27, LS-07, RL-07.
func TestListEnds(t *testing.T) {
	const own = "rls-services/users/sip:alice@example.com/index"
	for _, c := range []struct {
		name, reason string
		end          func(n *servertest.Node)
	}{
		{"RL-27 document deleted", "noresource", func(n *servertest.Node) { n.Delete(own) }},
		{"RL-27 service removed", "noresource", func(n *servertest.Node) {
			n.Put(own, servertest.Services(servertest.Service("sip:other@example.com", bob)))
		}},
		{"LS-07 for another package", "noresource", func(n *servertest.Node) { n.Put(own, servertest.Services(servertest.ServiceFor("dialog", team, bob))) }},
		{"RL-27 another owner", "rejected", func(n *servertest.Node) {
			n.Put("rls-services/users/sip:bob@example.com/index", servertest.Services(servertest.Service(team, bob)))
			n.Delete(own)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			world(t, func(cfg *server.Config) { cfg.PresenceAuth = "allow" }, func(w *servertest.World, n *servertest.Node) {
				n.Put(own, servertest.Services(servertest.Service(team, bob, carol)))
				sub := w.UA(alice).Watch(n, team)
				sub.Next()
				c.end(n)
				if got := sub.Last(c.reason); got.RLMI == nil {
					t.Errorf("RL-26: the last NOTIFY has no RLMI")
				}
				if m := sub.Refresh(); m.Status() != 481 {
					t.Errorf("refresh after the end: %d, want 481", m.Status())
				}
				n.CheckIdle()
			})
		})
	}
}

// RL-14: an empty list is 200 and an empty RLMI document; a URI of no list is a
// presentity like any other.
func TestEmptyListAndNoList(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		n.List(team)
		sub := w.UA(alice).Watch(n, team)
		sub.Next()
		sub.WantView("RL-14 empty", state{})
		single := w.UA(alice).Watch(n, "sip:nolist@example.com")
		if got := single.Next(); got.RLMI != nil || got.Text() != "closed" {
			t.Errorf("no list: %q", got.Text())
		}
		// RL-09: it becomes a list, but a subscription never does: those who watch it already must come again.
		n.Put("rls-services/global/index", servertest.Services(servertest.Service(team), servertest.Service("sip:nolist@example.com", bob)))
		single.Last("deactivated")
		list := w.UA(alice).Watch(n, "sip:nolist@example.com")
		list.Next()
		list.WantView("RL-09 now a list", state{bob: "closed"})
		list.Unsubscribe()
		sub.Unsubscribe()
		n.CheckIdle()
	})
}

// RL-18, RL-19: a list within a list has its own versions; a change within
// comes as a partial document within a partial one.
func TestNestedList(t *testing.T) {
	const inner, third = "sip:inner@example.com", "sip:third@example.com"
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		put := func(top, in, deep []string) {
			t.Helper()
			n.Put("rls-services/global/index", servertest.Services(servertest.Service(team, top...), servertest.Service(inner, in...), servertest.Service(third, deep...)))
		}
		c := publisher(w, n, carol)
		c.Say("open", "one")
		put([]string{bob, inner + " Inner"}, []string{carol, third}, []string{dave})
		sub := w.UA(alice).Watch(n, team)
		sub.Next()
		at := func(in string) string { return inner + " > " + in }
		sub.WantView("nested", state{bob: "closed", inner: "list", at(carol): "open: one", at(third): "list", at(third + " > " + dave): "closed"})
		c.Say("open", "two")
		sub.Next()
		in := sub.List().Rows[inner].List
		if sub.List().Full || in.Full || !slices.Equal(sub.List().Changed, []string{inner}) || !slices.Equal(in.Changed, []string{carol}) || in.Next != 2 {
			t.Errorf("RL-19: changed %v in %v, full %v in %v, inner version %d", in.Changed, sub.List().Changed, in.Full, sub.List().Full, in.Next-1)
		}
		publisher(w, n, bob).Say("open", "bob")
		sub.Next()
		if in := sub.List().Rows[inner].List; in.Next != 2 {
			t.Errorf("RL-19: the inner list is at version %d although it did not change", in.Next-1)
		}
		publisher(w, n, dave).Say("open", "deep")
		sub.Next()
		sub.WantView("deep change", state{bob: "open: bob", inner: "list", at(carol): "open: two", at(third): "list", at(third + " > " + dave): "open: deep"})
		if d := sub.List().Rows[inner].List.Rows[third].List; d.Full || d.Next != 2 {
			t.Errorf("RL-19: deepest list full %v, version %d", d.Full, d.Next-1)
		}
		put([]string{bob, inner + " Inner"}, []string{carol, bob, third}, []string{dave})
		sub.Next()
		sub.WantView("added within", state{bob: "open: bob", inner: "list", at(carol): "open: two", at(bob): "open: bob", at(third): "list", at(third + " > " + dave): "open: deep"})
		put([]string{bob, inner + " Inner"}, []string{carol, bob}, []string{dave})
		sub.Next()
		sub.WantView("nested removed", state{bob: "open: bob", inner: "list", at(carol): "open: two", at(bob): "open: bob", at(third): "terminated noresource"})
		if got := n.Metric("rls_members"); got != 3 {
			t.Errorf("RL-37: %v attachments, want 3", got)
		}
		sub.Refresh()
		sub.Next()
		sub.WantView("full", state{bob: "open: bob", inner: "list", at(carol): "open: two", at(bob): "open: bob"})
		// A member that was a list is one no more, and is one again.
		n.Put("rls-services/global/index", servertest.Services(servertest.Service(team, bob, inner)))
		sub.Next()
		sub.WantView("a list no more", state{bob: "open: bob", inner: "closed"})
		put([]string{bob, inner}, []string{carol}, nil)
		sub.Next()
		sub.WantView("a list again", state{bob: "open: bob", inner: "list", at(carol): "open: two"})
		sub.Unsubscribe()
		n.CheckIdle()
	})
}

// RL-34: lists that contain each other, or themselves, end.
func TestListLoop(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		const other = "sip:other@example.com"
		n.Put("rls-services/global/index", servertest.Services(servertest.Service(team, bob, other, team), servertest.Service(other, carol, team)))
		sub := w.UA(alice).Watch(n, team)
		sub.Next()
		sub.WantView("RL-34", state{bob: "closed", other: "list", other + " > " + carol: "closed"})
		var tree struct{ Problems []struct{ Kind, URI string } }
		n.Get("/api/v1/list?uri="+team, &tree)
		if len(tree.Problems) != 1 || tree.Problems[0].Kind != "loop" {
			t.Errorf("LS-08: problems %v", tree.Problems)
		}
		sub.Unsubscribe()
		n.CheckIdle()
	})
}

// RL-07: a list within another is shown only to who may watch it by itself, and
// only in a package it is for (LS-07).
func TestNestedListOfOthers(t *testing.T) {
	const his, lines = "sip:his@example.com", "sip:lines@example.com"
	world(t, func(c *server.Config) { c.PresenceAuth = "allow" }, func(w *servertest.World, n *servertest.Node) {
		n.Put("rls-services/users/sip:alice@example.com/index", servertest.Services(servertest.Service(team, dave, his, lines), servertest.ServiceFor("dialog", lines, carol)))
		n.Put("rls-services/users/sip:bob@example.com/index", servertest.Services(servertest.Service(his, carol)))
		sub := w.UA(alice).Watch(n, team)
		sub.Next()
		sub.WantView("RL-07", state{dave: "closed", his: "terminated rejected", lines: "terminated noresource"})
		publisher(w, n, carol).Say("open", "private")
		sub.Quiet(10*time.Second, "RL-07: somebody else's list")
		n.Put("rls-services/users/sip:bob@example.com/index", servertest.Services())
		n.Put("rls-services/global/index", servertest.Services(servertest.Service(his, carol)))
		for sub.Next(); sub.View()[his] != "list"; sub.Next() {
		}
		sub.WantView("everybody's now", state{dave: "closed", his: "list", his + " > " + carol: "open: private", lines: "terminated noresource"})
		sub.Unsubscribe()
		n.CheckIdle()
	})
}

// LS-08: references, and what becomes of a list when they fail.
func TestListReference(t *testing.T) {
	const root, doc = "http://xcap.example.com/xcap-root/", "resource-lists/users/sip:alice@example.com/index"
	const ref = root + doc + "/~~/resource-lists/list%5b@name=%22l1%22%5d"
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		n.Put("rls-services/users/sip:alice@example.com/index", servertest.Services(servertest.ServiceRef(team, ref)))
		sub := w.UA(alice).Dialog(n, team)
		if m := sub.Subscribe(600); m.Status() != 502 {
			t.Errorf("LS-08: no document: %d, want 502", m.Status())
		}
		n.Put(doc, servertest.ResourceLists("l2", bob))
		if m := w.UA(alice).Dialog(n, team).Subscribe(600); m.Status() != 502 {
			t.Errorf("LS-08: no such list: %d, want 502", m.Status())
		}
		n.Put(doc, servertest.ResourceLists("l1", bob))
		sub = w.UA(alice).Watch(n, team)
		sub.Next()
		sub.WantView("reference", state{bob: "closed"})
		n.Put(doc, servertest.ResourceLists("l1", bob, carol))
		sub.Next()
		sub.WantView("document changed", state{bob: "closed", carol: "closed"})
		n.Delete(doc)
		sub.Quiet(10*time.Second, "LS-08: the list keeps its members while the reference fails")
		n.Put(doc, servertest.ResourceLists("l1", carol))
		sub.Next()
		sub.WantView("document is back", state{bob: "terminated noresource", carol: "closed"})
		sub.Unsubscribe()
		n.CheckIdle()
	})
}

// LS-04: the service that was first keeps its URI; when it goes, the other
// takes over.
func TestDuplicateService(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		n.Put("rls-services/users/sip:alice@example.com/index", servertest.Services(servertest.Service(team, bob)))
		n.Put("rls-services/users/sip:bob@example.com/index", servertest.Services(servertest.Service(team, carol)))
		sub := w.UA(alice).Watch(n, team)
		sub.Next()
		sub.WantView("LS-04", state{bob: "closed"})
		n.Put("rls-services/users/sip:alice@example.com/index", servertest.Services(servertest.Service(team, bob, dave)))
		sub.Next()
		sub.WantView("LS-04 changed", state{bob: "closed", dave: "closed"})
		n.Delete("rls-services/users/sip:alice@example.com/index")
		sub.Next()
		sub.WantView("LS-04 the other one", state{bob: "terminated noresource", dave: "terminated noresource", carol: "closed"})
		n.Delete("rls-services/users/sip:bob@example.com/index")
		sub.Last("noresource")
		n.CheckIdle()
	})
}

// RL-40, RL-41, RL-30: members are shown to each watcher by its own right.
func TestMemberAuthorization(t *testing.T) {
	rules := func(handling ...string) string {
		var b strings.Builder
		b.WriteString(`<cr:ruleset xmlns:cr="urn:ietf:params:xml:ns:common-policy" xmlns:pr="urn:ietf:params:xml:ns:pres-rules">`)
		for i := 0; i < len(handling); i += 2 {
			fmt.Fprintf(&b, `<cr:rule id="r%d"><cr:conditions><cr:identity><cr:one id="%s"/></cr:identity></cr:conditions><cr:actions><pr:sub-handling>%s</pr:sub-handling></cr:actions>
<cr:transformations><pr:provide-services><pr:all-services/></pr:provide-services><pr:provide-note>true</pr:provide-note></cr:transformations></cr:rule>`, i, handling[i], handling[i+1])
		}
		return b.String() + `</cr:ruleset>`
	}
	world(t, func(c *server.Config) { c.PresenceAuth = "confirm" }, func(w *servertest.World, n *servertest.Node) {
		n.List(team, bob, carol, dave, "sip:eve@example.com")
		for _, p := range []string{bob, carol, dave, "sip:eve@example.com"} {
			publisher(w, n, p).Say("open", "secret")
		}
		n.Put("pres-rules/users/sip:bob@example.com/index", rules(alice, "allow"))
		n.Put("pres-rules/users/sip:carol@example.com/index", rules(alice, "polite-block", dave, "allow"))
		n.Put("pres-rules/users/sip:eve@example.com/index", rules(alice, "block"))
		sub := w.UA(alice).Watch(n, team)
		sub.Next()
		sub.WantView("RL-41", state{bob: "open: secret", carol: "closed", dave: "pending", "sip:eve@example.com": "terminated rejected"})
		other := w.UA(dave).Watch(n, team)
		other.Next()
		other.WantView("RL-30", state{bob: "pending", carol: "open: secret", dave: "open: secret", "sip:eve@example.com": "pending"})
		n.Put("pres-rules/users/sip:dave@example.com/index", rules(alice, "allow"))
		sub.Next()
		sub.WantView("PR-17", state{bob: "open: secret", carol: "closed", dave: "open: secret", "sip:eve@example.com": "terminated rejected"})
		n.Put("pres-rules/users/sip:bob@example.com/index", rules(alice, "block"))
		sub.Next()
		sub.WantView("PR-17", state{bob: "terminated rejected", carol: "closed", dave: "open: secret", "sip:eve@example.com": "terminated rejected"})
		other.Quiet(10*time.Second, "RL-30: rules for somebody else")
		n.Put("pres-rules/users/sip:eve@example.com/index", rules(alice, "allow"))
		sub.Next()
		sub.WantView("PR-17, RL-20: blocked no more", state{bob: "terminated rejected", carol: "closed", dave: "open: secret", "sip:eve@example.com": "open: secret"})
		publisher(w, n, bob).Say("open", "more secret")
		sub.Quiet(10*time.Second, "RL-40: blocked")
		// RL-40: the watcher of a list is in the presentity's watcher information.
		win := w.UA(carol).Dialog(n, carol)
		win.Event, win.Headers = "presence.winfo", ""
		win.MustSubscribe(600)
		if got := string(win.Next().Body()); !strings.Contains(got, alice) || !strings.Contains(got, dave) || strings.Count(got, "<watcher ") != 2 {
			t.Errorf("RL-40: watcher information is\n%s", got)
		}
		n.Put("pres-rules/users/sip:eve@example.com/index", rules(alice, "block"))
		sub.Next()
		hers := w.UA("sip:eve@example.com").Dialog(n, "sip:eve@example.com")
		hers.Event, hers.Headers = "presence.winfo", ""
		hers.MustSubscribe(600)
		if got := string(hers.Next().Body()); strings.Contains(got, alice) || !strings.Contains(got, dave) {
			t.Errorf("WI-04: watcher information has a blocked member\n%s", got)
		}
		hers.Unsubscribe()
		for _, s := range []*servertest.Sub{sub, other} {
			s.Refresh()
			s.Next()
			s.Unsubscribe()
		}
		win.Unsubscribe()
		n.CheckIdle()
	})
}

// RL-38: many changes at once are few NOTIFYs, each with the next version; a
// SUBSCRIBE is answered with the newest state at once.
func TestBatching(t *testing.T) {
	world(t, func(c *server.Config) { c.NotifyInterval = map[string]string{"list": "5s"} }, func(w *servertest.World, n *servertest.Node) {
		var members []string
		for i := range 50 {
			members = append(members, fmt.Sprintf("sip:p%d@example.com", i))
		}
		n.List(team, members...)
		var pubs []*servertest.Publication
		for _, m := range members {
			pubs = append(pubs, publisher(w, n, m))
		}
		sub := w.UA(alice).Watch(n, team)
		sub.Next()
		pubs[0].Say("open", "first")
		at := time.Now()
		if d := sub.Next().At.Sub(at); d > 100*time.Millisecond {
			t.Errorf("the first change went after %v", d)
		}
		for round := range 3 {
			for _, p := range pubs {
				p.Say("open", fmt.Sprint("round ", round))
			}
			time.Sleep(time.Second)
		}
		w.Settle(0)
		if got := len(sub.All()); got != 2 {
			t.Errorf("RL-38: %d NOTIFYs within the interval, want 2", got)
		}
		sub.Refresh()
		sub.Next()
		if !sub.List().Full {
			t.Errorf("RL-14: after a refresh not full")
		}
		want := state{}
		for _, m := range members {
			want[m] = "open: round 2"
		}
		sub.WantView("RL-38 flush", want)
		sub.Quiet(30*time.Second, "RL-38: said already")
		sub.Unsubscribe()
		n.CheckIdle()
	})
}

// RL-37: a watcher that answers 481, or not at all, is forgotten with its
// members.
func TestWatcherGone(t *testing.T) {
	for _, status := range []int{481, 0} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			world(t, nil, func(w *servertest.World, n *servertest.Node) {
				n.List(team, bob, "sip:ann@example.org")
				sub := w.UA(alice).Watch(n, team)
				sub.Next()
				sub.Answer = func(*servertest.Notify) (int, string) { return status, "" }
				publisher(w, n, bob).Say("open", "here")
				w.Settle(2 * time.Minute)
				n.CheckIdle()
				if m := sub.Refresh(); m.Status() != 481 {
					t.Errorf("EV-30: refresh of a forgotten dialog: %d, want 481", m.Status())
				}
			})
		})
	}
}

// EV-15: a watcher that cannot take a NOTIFY now keeps its subscription and
// gets all of it later.
func TestNotifyFailsOnce(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		n.List(team, bob, carol)
		sub := w.UA(alice).Watch(n, team)
		sub.Next()
		at := time.Now()
		sub.Answer = func(*servertest.Notify) (int, string) {
			sub.Answer = nil
			return 503, "Retry-After: 7\r\n"
		}
		publisher(w, n, bob).Say("open", "here")
		sub.Next()
		got := sub.Next()
		if d := got.At.Sub(at); !sub.List().Full || d < 7*time.Second || d > 8*time.Second {
			t.Errorf("EV-15: repeated after %v, full %v", d, sub.List().Full)
		}
		sub.WantView("EV-15", state{bob: "open: here", carol: "closed"})
	})
}

// docs is a source in memory whose documents can be unreadable or slow.
type docs struct {
	mu      sync.Mutex
	bodies  map[string]string
	err     error
	gate    chan struct{} // if set, reading a resource list or rules waits for it
	changed func([]string)
}

func (d *docs) Document(_ context.Context, sel string) (xcapclient.Document, error) {
	d.mu.Lock()
	body, ok := d.bodies[sel]
	err, gate := d.err, d.gate
	d.mu.Unlock()
	if gate != nil && !strings.HasPrefix(sel, "rls-services/") {
		<-gate
	}
	switch {
	case err != nil:
		return xcapclient.Document{}, err
	case !ok:
		return xcapclient.Document{}, fs.ErrNotExist
	}
	return xcapclient.Document{Selector: sel, Body: []byte(body), ETag: xcapclient.ContentTag([]byte(body))}, nil
}

func (d *docs) Selectors(_ context.Context, auid string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []string
	for sel := range d.bodies {
		if strings.HasPrefix(sel, auid+"/") {
			all = append(all, sel)
		}
	}
	return all, d.err
}

func (d *docs) Run(ctx context.Context, changed func([]string)) error {
	d.mu.Lock()
	d.changed = changed
	d.mu.Unlock()
	<-ctx.Done()
	return nil
}

// set changes documents and tells of it.
func (d *docs) set(err error, bodies map[string]string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err, d.bodies = err, maps.Clone(bodies)
	if d.changed != nil {
		d.changed(slices.Collect(maps.Keys(bodies)))
	}
}

const (
	refDoc     = "resource-lists/users/sip:alice@example.com/index"
	serviceDoc = "rls-services/users/sip:alice@example.com/index"
	refURI     = "http://xcap.example.com/xcap-root/" + refDoc + "/~~/resource-lists/list%5b@name=%22l1%22%5d"
)

func refDocs(members ...string) map[string]string {
	return map[string]string{serviceDoc: servertest.Services(servertest.ServiceRef(team, refURI)), refDoc: servertest.ResourceLists("l1", members...)}
}

// LS-08: a list that cannot be read for a while is refused, or keeps its
// members, and is read again without anybody's help.
func TestListUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		src := &docs{bodies: refDocs(bob)}
		n := w.Node("192.0.2.1", nil, server.WithSource(src))
		src.mu.Lock()
		src.err = errors.New("server unreachable")
		src.mu.Unlock()
		if m := w.UA(alice).Dialog(n, team).Subscribe(600); m.Status() != 502 {
			t.Errorf("unreadable: %d, want 502", m.Status())
		}
		src.mu.Lock()
		src.err = nil // without a word
		src.mu.Unlock()
		sub := w.UA(alice).Watch(n, team)
		sub.Next()
		sub.WantView("readable", state{bob: "closed"})
		src.set(errors.New("server unreachable"), refDocs(carol))
		sub.Quiet(time.Minute, "LS-08: keeps its members")
		src.mu.Lock()
		src.err = nil // without a word
		src.mu.Unlock()
		w.Settle(5 * time.Minute)
		sub.WantView("readable again", state{bob: "terminated noresource", carol: "closed"})
		sub.Drain()
		sub.Unsubscribe()
		n.CheckIdle()
	})
}

// EV-14, RL-15: the first NOTIFY does not wait for members whose rules are slow
// to read; they are unknown in it and follow.
func TestSlowMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		gate := make(chan struct{})
		src := &docs{bodies: map[string]string{serviceDoc: servertest.Services(servertest.Service(team, alice, bob, carol))}, gate: gate}
		n := w.Node("192.0.2.1", func(c *server.Config) { c.PresenceAuth = "allow" }, server.WithSource(src))
		at := time.Now()
		sub := w.UA(alice).Watch(n, team)
		if d := sub.Next().At.Sub(at); d < 50*time.Millisecond || d > 200*time.Millisecond {
			t.Errorf("EV-07: first NOTIFY after %v", d)
		}
		for uri, s := range sub.View() {
			if s != "unknown" {
				t.Errorf("RL-15: %s is %q before its rules were read", uri, s)
			}
		}
		close(gate)
		w.Settle(2 * time.Second)
		sub.WantView("rules were read", state{alice: "closed", bob: "closed", carol: "closed"})
		sub.Drain()
		sub.Unsubscribe()
		n.CheckIdle()
	})
}

// A list that changes while it is being read is read again.
func TestListChangesWhileRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		src := &docs{bodies: refDocs(bob)}
		n := w.Node("192.0.2.1", nil, server.WithSource(src))
		gate := make(chan struct{})
		src.mu.Lock()
		src.gate = gate
		src.mu.Unlock()
		sub := w.UA(alice).Dialog(n, team)
		done := make(chan struct{})
		go func() {
			defer close(done)
			sub.MustSubscribe(600)
		}()
		synctest.Wait() // the old document is on its way
		src.set(nil, refDocs(carol))
		synctest.Wait()
		src.mu.Lock()
		src.gate = nil
		src.mu.Unlock()
		close(gate)
		<-done
		w.Settle(10 * time.Second)
		if got := sub.View(); got[carol] != "closed" || got[bob] == "closed" {
			t.Errorf("the list is %v, want only carol", got)
		}
	})
}
