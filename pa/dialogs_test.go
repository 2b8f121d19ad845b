package pa_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/pa/dialoginfo"
	"rollcall/pa/winfo"
	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sip"
)

// lamp is a subscription to the dialogs of a user.
func lamp(w *servertest.World, n *servertest.Node, watcher, uri string) *servertest.Sub {
	s := w.UA(watcher).Dialog(n, uri)
	s.Event = "dialog"
	return s
}

// A call as a lamp shows it: DI-02 (versions from 0, one more each) and DI-03
// (the shape) are checked in every NOTIFY by servertest.
func TestDialogCall(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		ua := w.UA(alice)
		phone, proxy := ua.Lines(n), ua.Lines(n)
		sub := lamp(w, n, bob, alice)
		sub.MustSubscribe(3600)
		first := sub.Next()
		if first.State != "active" || first.Text() != "" || !strings.Contains(string(first.Body()), `entity="`+alice+`"`) {
			t.Errorf("DI-05 no dialogs: %s\n%s", first.State, first.Body())
		}
		say := func(p *servertest.Publication, id, call, state, want string) {
			t.Helper()
			w.Settle(time.Second)
			at := time.Now()
			p.Call(id, call, state)
			if want == "" {
				sub.Quiet(10*time.Second, "no change")
				return
			}
			got := sub.Next()
			if got.Text() != want || got.At.Sub(at) > 50*time.Millisecond {
				t.Errorf("%s %s: %q after %v, want %q", call, state, got.Text(), got.At.Sub(at), want)
			}
		}
		say(phone, "1", "c1", "trying", "1 trying")
		say(phone, "1", "c1", "early", "1 early")
		say(proxy, "1", "c1", "early", "")  // the same call
		say(proxy, "1", "c1", "trying", "") // late
		say(phone, "1", "c1", "confirmed", "1 confirmed")
		say(proxy, "1", "c1", "terminated", "1 terminated")
		say(phone, "1", "c1", "confirmed", "")  // late
		say(phone, "1", "c1", "terminated", "") // said already
		say(phone, "1", "c2", "early", "1 early")
		say(proxy, "1", "c3", "early", "1 early, 1-2 early")
		w.Settle(time.Second)
		phone.Send("", 0)
		if got := sub.Next().Text(); got != "1-2 early" {
			t.Errorf("after a publisher left: %q", got)
		}
		sub.Refresh()
		if got := sub.Next().Text(); got != "1-2 early" {
			t.Errorf("DI-02 full state after a refresh: %q", got)
		}
		w.Settle(time.Hour - 500*time.Millisecond)
		sub.Drain()
		all := sub.All()
		if got := all[len(all)-1].Text(); got != "" {
			t.Errorf("PUB-14: after the publications ran out: %q", got)
		}
		sub.Unsubscribe()
		n.CheckIdle()
	})
}

// NOTIFYs of dialogs are paced by a tenth of a second, and no end is missed.
func TestDialogPace(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		p := w.UA(alice).Lines(n)
		sub := lamp(w, n, bob, alice)
		sub.MustSubscribe(3600)
		sub.Next()
		w.Settle(time.Second)
		at := time.Now()
		for _, s := range []string{"trying", "early", "confirmed", "terminated"} {
			p.Call("1", "c1", s)
		}
		p.Call("1", "c2", "trying")
		for i, want := range []string{"1 trying", "1 terminated, 1-2 trying"} {
			got := sub.Next()
			if d := got.At.Sub(at); got.Text() != want || d > 150*time.Millisecond || i > 0 && d < 100*time.Millisecond {
				t.Errorf("%q after %v, want %q", got.Text(), d, want)
			}
		}
		sub.Quiet(10*time.Second, "all was said")
		n2 := w.Node("192.0.2.2", func(c *server.Config) { c.NotifyInterval = map[string]string{"dialog": "3s"} })
		p, sub = w.UA(alice).Lines(n2), lamp(w, n2, bob, alice)
		sub.MustSubscribe(3600)
		sub.Next()
		at = time.Now()
		p.Call("1", "c1", "early")
		sub.Next()
		p.Call("1", "c1", "terminated")
		w.Settle(time.Second)
		p.Call("2", "c2", "early")
		if got := sub.Next(); got.Text() != "1 terminated, 2 early" || got.At.Sub(at) < 3*time.Second {
			t.Errorf("--notify-interval dialog=3s: %q after %v", got.Text(), got.At.Sub(at))
		}
	})
}

// Presence and dialogs of a user have nothing to do with each other: neither
// publications, entity tags, watchers nor watcher information.
func TestPackagesApart(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		ua := w.UA(alice)
		presence, lines := ua.Publication(n), ua.Lines(n)
		buddy, blf := w.UA(bob).Watch(n, alice), lamp(w, n, "sip:carol@example.com", alice)
		buddy.Next()
		blf.MustSubscribe(3600)
		blf.Next()
		presence.Say("open", "here")
		if got := buddy.Next().Text(); got != "open: here" {
			t.Errorf("presence: %q", got)
		}
		blf.Quiet(5*time.Second, "presence is not about dialogs")
		lines.Call("1", "c1", "early")
		if got := blf.Next().Text(); got != "1 early" {
			t.Errorf("dialogs: %q", got)
		}
		buddy.Quiet(5*time.Second, "dialogs are not about presence")
		for _, c := range []struct{ event, watcher string }{{"presence", bob}, {"dialog", "sip:carol@example.com"}} {
			own := ua.Dialog(n, alice)
			own.Event = c.event + ".winfo"
			own.Headers = ""
			own.MustSubscribe(60)
			got := own.Next()
			d, err := winfo.Parse(got.Body())
			if err != nil || len(d.Lists) != 1 || d.Lists[0].Package != c.event || len(d.Lists[0].Watchers) != 1 || d.Lists[0].Watchers[0].URI != c.watcher {
				t.Errorf("WI-01, WI-09: %s: %v\n%s", own.Event, err, got.Body())
			}
			if m := w.UA(bob).Raw(n.Addr, strings.NewReplacer("{event}", own.Event).Replace(
				"SUBSCRIBE {aor} SIP/2.0\nVia: {via}\nMax-Forwards: 70\nFrom: <{aor}>;tag={tag}\nTo: <{aor}>\nCall-ID: {callid}\nCSeq: {cseq} SUBSCRIBE\nContact: <sip:b@192.0.2.9>\nEvent: {event}\nAccept: application/pidf+xml\n\n")); m.Status() != 406 {
				t.Errorf("WI-02: %s with another Accept: %d", own.Event, m.Status())
			}
			own.Unsubscribe()
		}
		var info struct {
			Publications []struct{ Event, Note string }
			Watchers     []struct{ Event, URI string }
		}
		if n.Get("/api/v1/presentity?uri="+alice, &info) != 200 || len(info.Publications) != 2 || len(info.Watchers) != 2 ||
			info.Publications[1].Event != "dialog" || info.Publications[1].Note != "early" || info.Watchers[0].Event != "presence" {
			t.Errorf("described as %+v", info)
		}
	})
}

// Who sees dialogs is decided by the rules of presence, all or nothing (DI-04);
// a changed rule acts at once.
func TestDialogRules(t *testing.T) {
	world(t, mode("confirm"), func(w *servertest.World, n *servertest.Node) {
		p := w.UA(alice).Lines(n)
		p.Call("1", "c1", "confirmed")
		own := lamp(w, n, alice, alice)
		own.MustSubscribe(3600)
		if got := own.Next(); got.State != "active" || got.Text() != "1 confirmed" {
			t.Errorf("the owner sees %s %q", got.State, got.Text())
		}
		sub := lamp(w, n, bob, alice)
		sub.MustSubscribe(7200)
		if got := sub.Next(); got.State != "pending" || len(got.Body()) > 0 {
			t.Errorf("PA-03: %s\n%s", got.State, got.Body())
		}
		step := func(what, handling, transformations, state, text string) {
			t.Helper()
			n.Put(aliceRules, rules(rule("a", one(bob), handling, transformations)))
			if got := sub.Next(); got.State != state || got.Text() != text {
				t.Errorf("%s: %s %q, want %s %q", what, got.State, got.Text(), state, text)
			}
		}
		step("DI-02 the first document has version 0; transformations are about presence", "allow", "", "active", "1 confirmed")
		step("PR-10 polite block has no dialogs", "polite-block", everything, "active", "")
		sub.Quiet(10*time.Second, "no change")
		p.Call("1", "c1", "terminated")
		own.Next()
		sub.Quiet(10*time.Second, "PR-10: no change that this watcher may see")
		p.Call("1", "c2", "early")
		own.Next()
		step("PR-09 pending again", "confirm", "", "pending", "")
		step("active again", "allow", "", "active", "1 early")
		n.Put(aliceRules, rules(rule("a", one(bob), "block", "")))
		if got := sub.Next(); got.State != "terminated" || got.Reason != "rejected" {
			t.Errorf("PR-06: %s %s", got.State, got.Reason)
		}
		if m := lamp(w, n, bob, alice).Subscribe(600); m.Status() != 403 {
			t.Errorf("PR-06: %d", m.Status())
		}
		if m := w.UA(bob).Raw(n.Addr, strings.NewReplacer("PUBLISH {aor}", "PUBLISH "+alice).Replace(head)+"Event: dialog\nContent-Type: application/dialog-info+xml\n\n"+servertest.DialogInfo(alice, "1", "x", "early")); m.Status() != 403 {
			t.Errorf("PUB-09: %d", m.Status())
		}
	})
}

// CP-09: the sphere that presence publishes counts for dialogs, too.
func TestDialogSphere(t *testing.T) {
	confirmed(t, func(w *servertest.World, n *servertest.Node) {
		n.Put(aliceRules, rules(rule("a", one(bob)+`<cr:sphere value="work"/>`, "allow", everything)))
		p := w.UA(alice).Publication(n)
		w.UA(alice).Lines(n).Call("1", "c1", "early")
		sub := lamp(w, n, bob, alice)
		sub.MustSubscribe(3600)
		if got := sub.Next().State; got != "pending" {
			t.Errorf("without a sphere: %s", got)
		}
		in := func(sphere string) string {
			return `<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:d="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid" entity="` + alice +
				`"><d:person id="p"><r:sphere><r:` + sphere + `/></r:sphere></d:person></presence>`
		}
		for _, c := range []struct{ sphere, state, text string }{{"work", "active", "1 early"}, {"home", "pending", ""}} {
			if m := p.Send(in(c.sphere), 3600); m.Status() != 200 {
				t.Fatalf("PUBLISH: %d", m.Status())
			}
			if got := sub.Next(); got.State != c.state || got.Text() != c.text {
				t.Errorf("at %s: %s %q", c.sphere, got.State, got.Text())
			}
		}
	})
}

// Publications and subscriptions of each package are there after a restart, and
// after a crash.
func TestPackagesRestart(t *testing.T) {
	for _, crash := range []bool{false, true} {
		world(t, func(c *server.Config) { c.Store, c.Durability = "sqlite:"+t.TempDir()+"/r.db", "write-through" }, func(w *servertest.World, n *servertest.Node) {
			phone, presence := w.UA(alice).Lines(n), w.UA(alice).Publication(n)
			presence.Say("open", "here")
			phone.Call("1", "c1", "early")
			partial := strings.Replace(servertest.DialogInfo(alice, "2", "c2", "confirmed"), `"full"`, `"partial"`, 1)
			if m := phone.Send(partial, 3600); m.Status() != 200 {
				t.Fatalf("partial state: %d", m.Status())
			}
			blf, buddy := lamp(w, n, bob, alice), w.UA(bob).Watch(n, alice)
			blf.MustSubscribe(3600)
			if got := blf.Next().Text(); got != "1 early, 2 confirmed" {
				t.Errorf("partial publication: %q", got)
			}
			buddy.Next()
			w.Settle(time.Second)
			if crash {
				blf.Expect(servertest.Crash)
				buddy.Expect(servertest.Crash)
				n.Crash(time.Second)
				if got := blf.Next().Text(); got != "1 early, 2 confirmed" {
					t.Errorf("after a crash: %q", got)
				}
				if got := buddy.Next().Text(); got != "open: here" {
					t.Errorf("after a crash: %q", got)
				}
			} else {
				n.Restart(time.Second)
				blf.Quiet(30*time.Second, "nothing has changed")
				buddy.Quiet(time.Second, "nothing has changed")
			}
			phone.Call("1", "c1", "terminated") // with the entity tag of before, full state
			if got := blf.Next().Text(); got != "1 terminated" {
				t.Errorf("after a restart: %q", got)
			}
			buddy.Quiet(10*time.Second, "not about presence")
		})
	}
}

// EV-04, EV-21: what a watcher of dialogs must take, and what it may have.
func TestDialogAccept(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		for _, c := range []struct {
			accept string
			status int
		}{{"", 200}, {"Accept: application/dialog-info+xml\n", 200}, {"Accept: */*\n", 200}, {"Accept: application/pidf+xml\n", 406}} {
			sub := lamp(w, n, bob, alice)
			sub.Headers = c.accept
			m := sub.Subscribe(60)
			if m.Status() != c.status || c.status == 406 && m.H(sip.HdrAccept) != dialoginfo.MediaType {
				t.Errorf("%q: %d, Accept %q", c.accept, m.Status(), m.H(sip.HdrAccept))
			}
		}
	})
}

// Each of the examples of RFC 4235 that a publisher may send reaches a watcher.
func TestDialogExamples(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", nil)
		sub := lamp(w, n, bob, alice)
		sub.MustSubscribe(3600)
		sub.Next()
		for _, e := range examples(t, "dialoginfo/testdata/rfc4235/*.xml") {
			p := w.UA(alice).Lines(n)
			m := p.Send(e.body, 3600)
			if strings.Contains(e.name, "s4.1.1-3") {
				if m.Status() != 400 {
					t.Errorf("%s: %d", e.name, m.Status())
				}
				continue
			}
			if m.Status() != 200 {
				t.Errorf("%s: %d %s", e.name, m.Status(), m.Reason())
				continue
			}
			w.Settle(time.Second)
			if m := p.Send("", 0); m.Status() != 200 {
				t.Errorf("%s: removal %d", e.name, m.Status())
			}
			w.Settle(time.Second)
		}
		sub.Drain()
		if len(sub.All()) < 15 {
			t.Errorf("%d NOTIFYs", len(sub.All()))
		}
	})
}
