package e2e

import (
	"strings"
	"testing"
	"time"

	"rollcall/e2e/peer"
)

// TestBrowserGoesAway: a page's connection ends without a word while it watches
// a presentity and a list. What changes meanwhile reaches it in the same dialogs
// when it is back on a new connection (WS-01); another page that starts afresh
// is a watcher of its own.
func TestBrowserGoesAway(t *testing.T) {
	const joe, team = "sip:joe@example.com", "sip:team@example.com"
	dir := documents(t, map[string]string{"rls-services/global/index": service(team, joe, "sip:nancy@example.com")})
	in := startOn(t, []string{"ws"}, "--domain", "example.com", "--store", "memory", "--presence-auth", "open", "--xcap", dir,
		"--notify-interval", "presence=0", "--notify-interval", "list=0")
	u := newUA(t, in.addr)
	_, tag := u.publish(joe, "", string(pidf(joe, "open", "one")), 600)
	publish := func(note string) {
		t.Helper()
		var status int
		if status, tag = u.publish(joe, tag, string(pidf(joe, "open", note)), 600); status != 200 {
			t.Fatalf("PUBLISH: %d", status)
		}
	}
	o := peer.SIPJSOptions{AOR: "sip:adam@example.com", URL: "ws://" + in.at["ws"]}
	page := peer.StartSIPJS(t, o)
	type tab struct {
		direct, list *peer.SIPJSSubscription
		view         *listView
	}
	open := func(page *peer.SIPJS) tab {
		t.Helper()
		direct, a := page.Subscribe(peer.SIPJSSubscribe{URI: joe})
		list, b := page.Subscribe(peer.SIPJSSubscribe{URI: team})
		if a.Status() != 200 || b.Status() != 200 {
			t.Fatalf("SUBSCRIBE:\n%s\n%s", a.Raw, b.Raw)
		}
		return tab{direct, list, newView(t, team)}
	}
	see := func(w tab, note string, socket int) (direct, list peer.Trace) {
		t.Helper()
		a := w.direct.WaitNotify(func(m peer.Trace) bool { return describe(m.Body()) == "open: "+note }, 10*time.Second)
		b := w.list.WaitNotify(nil, 10*time.Second)
		for w.view.apply(b.Trace); !w.view.holds(map[string]string{joe: "active open: " + note}); w.view.apply(b.Trace) {
			b = w.list.WaitNotify(nil, 10*time.Second)
		}
		if a.Socket != socket || b.Socket != socket {
			t.Errorf("NOTIFYs of %q on connections %d and %d, want %d", note, a.Socket, b.Socket, socket)
		}
		return a.Trace, b.Trace
	}
	first := open(page)
	before, _ := see(first, "one", 1)

	page.Destroy()
	publish("two")
	publish("three")
	page.Reconnect()
	for _, s := range []*peer.SIPJSSubscription{first.direct, first.list} {
		if m := s.Refresh(); m.Status() != 200 {
			t.Fatalf("WS-01: refresh on a new connection:\n%s", m.Raw)
		}
	}
	if after, _ := see(first, "three", 2); after.CSeq() != before.CSeq()+1 {
		t.Errorf("CORE-12: CSeq %d after %d", after.CSeq(), before.CSeq())
	}
	publish("four")
	see(first, "four", 2)

	page.Destroy()
	page.Stop()
	page = peer.StartSIPJS(t, o)
	second := open(page)
	see(second, "four", 1)
	publish("five")
	see(second, "five", 1)
	for _, s := range []*peer.SIPJSSubscription{second.direct, second.list} {
		if m := s.Unsubscribe(); m.Status() != 200 {
			t.Errorf("unsubscribe:\n%s", m.Raw)
		}
		s.WaitNotify(func(m peer.Trace) bool { s, _ := m.SubscriptionState(); return s == "terminated" }, 10*time.Second)
		if given, refused := s.Notified(); given == 0 || refused != 0 {
			t.Errorf("SIP.js took %d NOTIFYs and refused %d", given, refused)
		}
	}
	page.Quit()
	in.clean()
}

// TestWebPages: a page may open a WebSocket when its origin is allowed; a
// browser that does not know the server's authority does not open one.
func TestWebPages(t *testing.T) {
	certs := newCertificates(t)
	in := startOn(t, []string{"ws", "wss"}, "--domain", "example.com", "--store", "memory", "--presence-auth", "open",
		"--tls-certificate", certs.server, "--ws-origin", "*.example.com")
	o := peer.SIPJSOptions{AOR: "sip:adam@example.com", URL: "ws://" + in.at["ws"], Origin: "https://app.example.net"}
	if got := peer.SIPJSRefused(t, o); !strings.Contains(got, "403") {
		t.Errorf("a page of another domain: %s", got)
	}
	o.URL, o.Origin = "wss://"+in.at["wss"], "https://app.example.com"
	if got := peer.SIPJSRefused(t, o); !strings.Contains(got, "certificate") {
		t.Errorf("an unknown authority: %s", got)
	}
	o.CA = certs.caFile
	page := peer.StartSIPJS(t, o)
	pub, m := page.Publish("sip:adam@example.com", pidf("sip:adam@example.com", "open", "here"), 600)
	if m.Status() != 200 {
		t.Errorf("PUBLISH:\n%s", m.Raw)
	}
	if m := pub.Remove(); m.Status() != 200 {
		t.Errorf("PUBLISH that removes:\n%s", m.Raw)
	}
	page.Quit()
}
