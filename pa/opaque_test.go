package pa_test

import (
	"strings"
	"testing"
	"time"

	"rollcall/pa"
	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sip"
)

// What can be declared as a package, and what cannot.
func TestDeclare(t *testing.T) {
	for _, c := range []struct{ name, types, fault string }{
		{"as-feature-event", "application/x-as-feature-event+xml", ""},
		{"dialog;sla", "application/dialog-info+xml application/x-sla", ""},
		{"reg", "application/reginfo+xml", ""},
		{"presence", "text/plain", "served already"},
		{"dialog", "text/plain", "served already"},
		{"presence.winfo", "text/plain", "meaning of its own"},
		{"reg.winfo", "text/plain", "meaning of its own"},
		{"list", "text/plain", "meaning of its own"},
		{"", "text/plain", "not an event type"},
		{"a b", "text/plain", "not an event type"},
		{"a,b", "text/plain", "not an event type"},
		{"a;", "text/plain", "not an event type"},
		{"a;id", "text/plain", "not an event type"},
		{"a;b;c", "text/plain", "not an event type"},
		{"a;b=c", "text/plain", "not an event type"},
		{"a\r\nb", "text/plain", "not an event type"},
		{"a", "", "not a media type"},
		{"a", "text", "not a media type"},
		{"a", "text/*", "not a media type"},
		{"a", "text/plain, text/html", "not a media type"},
		{"a", "text/plain;charset=utf-8", "not a media type"},
	} {
		all, err := pa.Declare(map[string]string{c.name: c.types})
		switch {
		case c.fault == "" && (err != nil || len(all) != len(pa.Packages())+1):
			t.Errorf("%q %q: %v", c.name, c.types, err)
		case c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)):
			t.Errorf("%q %q: %v, want %q", c.name, c.types, err, c.fault)
		}
	}
	many := map[string]string{}
	for i := range 100 {
		many["p"+strings.Repeat("q", i)] = "a/b"
	}
	if _, err := pa.Declare(many); err == nil || !strings.Contains(err.Error(), "more than 64") {
		t.Errorf("100 packages: %v", err)
	}
}

// A declared package: the newest publication is passed on octet for octet, with
// its Content-Type; a package told by a parameter is one of its own.
func TestOpaque(t *testing.T) {
	declared := func(c *server.Config) {
		c.Packages = map[string]string{"as-feature-event": "application/x-as-feature-event+xml multipart/mixed", "dialog;sla": "application/dialog-info+xml"}
		c.Store, c.Durability = "sqlite:"+t.TempDir()+"/r.db", "write-through"
		c.NotifyInterval = map[string]string{"as-feature-event": "0", "dialog;sla": "0"}
	}
	world(t, declared, func(w *servertest.World, n *servertest.Node) {
		ua := w.UA(alice)
		one, two := ua.Publication(n), ua.Publication(n)
		one.Event, one.Type, two.Event, two.Type = "as-feature-event", "Multipart/Mixed; Boundary=\"a b\"", "as-feature-event", "application/x-as-feature-event+xml;charset=UTF-8"
		sub := ua.Dialog(n, alice)
		sub.Event, sub.Headers = "as-feature-event", "Accept: */*\n"
		sub.MustSubscribe(3600)
		if first := sub.Next(); first.State != "active" || len(first.Body()) > 0 {
			t.Errorf("nothing published: %s %q", first.State, first.Body())
		}
		say := func(p *servertest.Publication, body, ctype, want string) {
			t.Helper()
			if m := p.Send(body, 600); m.Status() != 200 {
				t.Fatalf("PUBLISH: %d %s", m.Status(), m.Reason())
			}
			w.Settle(time.Second)
			got := sub.Next()
			if string(got.Body()) != want || got.H(sip.HdrContentType) != ctype {
				t.Errorf("%q %q, want %q %q", got.H(sip.HdrContentType), got.Body(), ctype, want)
			}
		}
		say(one, "--a b\r\n\r\nx\r\n--a b--", one.Type, "--a b\r\n\r\nx\r\n--a b--")
		say(two, "<not closed \x00\xff", two.Type, "<not closed \x00\xff")
		say(one, "newer", one.Type, "newer")
		one.Send("newer", 600)
		sub.Quiet(5*time.Second, "an equal body is a refresh")
		one.Type = "application/x-as-feature-event+xml"
		say(one, "newer", one.Type, "newer")
		n.Restart(time.Second)
		sub.Quiet(10*time.Second, "nothing has changed")
		one.Send("", 0)
		if got := sub.Next(); string(got.Body()) != "<not closed \x00\xff" || got.H(sip.HdrContentType) != two.Type {
			t.Errorf("after the newest left: %q %q", got.H(sip.HdrContentType), got.Body())
		}
		two.Send("", 0)
		if got := sub.Next(); got.State != "active" || len(got.Body()) > 0 {
			t.Errorf("after all left: %s %q", got.State, got.Body())
		}

		blf, sla := lamp(w, n, bob, alice), ua.Dialog(n, alice)
		sla.Event = "dialog;sla;id=7"
		blf.MustSubscribe(600)
		sla.MustSubscribe(600)
		blf.Next()
		if got := sla.Next().H(sip.HdrEvent); got != "dialog;sla;id=7" {
			t.Errorf("Event %q", got)
		}
		shared := ua.Lines(n)
		shared.Event = "dialog;ma=1;SLA"
		shared.Call("1", "c1", "early")
		if got := sla.Next(); string(got.Body()) != servertest.DialogInfo(alice, "1", "c1", "early") {
			t.Errorf("dialog;sla: %q", got.Body())
		}
		blf.Quiet(5*time.Second, "dialog;sla is another package")
		ua.Lines(n).Call("2", "c2", "early")
		if got := blf.Next().Text(); got != "2 early" {
			t.Errorf("dialog: %q", got)
		}
		sla.Quiet(5*time.Second, "dialog is another package")

		m := ua.Raw(n.Addr, "OPTIONS {aor} SIP/2.0\nVia: {via}\nMax-Forwards: 70\nFrom: <{aor}>;tag={tag}\nTo: <{aor}>\nCall-ID: {callid}\nCSeq: {cseq} OPTIONS\n\n")
		if got := m.H(sip.HdrAllowEvents); got != "presence, presence.winfo, dialog, dialog.winfo, message-summary, message-summary.winfo, as-feature-event, as-feature-event.winfo" {
			t.Errorf("EV-03: Allow-Events %q", got)
		}
	})
}
