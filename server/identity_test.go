package server_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sip"
	"rollcall/sip/auth"
)

// ID-01: a trusted peer's P-Asserted-Identity goes before its From; nobody else
// is believed at all.
func TestIdentify(t *testing.T) {
	for _, c := range []struct {
		name, from, pai, trust string
		status                 int
		watcher                string
	}{
		{"From of a trusted peer", "sip:alice@example.com", "", "192.0.2.0/24", 200, alice},
		{"single address", "sip:alice@example.com", "", "192.0.2.101", 200, alice},
		{"CORE-26 canonical", "SIP:%61lice@EXAMPLE.com:5060;transport=tcp", "", "192.0.2.0/24", 200, alice},
		{"a port of another domain counts", "sip:alice@example.org:5070", "", "192.0.2.0/24", 200, "sip:alice@example.org:5070"},
		{"P-Asserted-Identity first", "sip:anonymous@anonymous.invalid", "<sip:alice@example.com>", "192.0.2.0/24", 200, alice},
		{"two asserted identities", "sip:bob@example.com", `"Alice, A." <sip:alice@example.com>, <tel:+12025550100>`, "192.0.2.0/24", 200, alice},
		{"asserted tel", "sip:bob@example.com", "<tel:+1-202-555-0100>", "192.0.2.0/24", 200, "tel:+12025550100"},
		{"untrusted peer", "sip:alice@example.com", "", "198.51.100.0/24", 401, ""},
		{"untrusted peer with an asserted identity", "sip:bob@example.com", "<sip:alice@example.com>", "198.51.100.0/24", 401, ""},
		{"From that names nobody", "mailto:alice@example.com", "", "192.0.2.0/24", 400, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := servertest.New(t)
				n := w.Node("192.0.2.1", func(cfg *server.Config) { cfg.Trust = []string{c.trust} })
				sub := w.UA(c.from).Dialog(n, bob)
				if sub.Headers = ""; c.pai != "" {
					sub.Headers = "P-Asserted-Identity: " + c.pai + "\n"
				}
				m := sub.Subscribe(600)
				if m.Status() != c.status {
					t.Fatalf("ID-01: %d %s, want %d", m.Status(), m.Reason(), c.status)
				}
				synctest.Wait()
				var subs server.Subscriptions
				n.Get("/api/v1/subscriptions", &subs)
				switch {
				case c.status == 200 && (len(subs.Subscriptions) != 1 || subs.Subscriptions[0].Watcher != c.watcher):
					t.Errorf("ID-01: watcher is %+v, want %s", subs.Subscriptions, c.watcher)
				case c.status != 200 && len(subs.Subscriptions) != 0:
					t.Errorf("a refused SUBSCRIBE left %+v", subs.Subscriptions)
				}
			})
		})
	}
}

// An untrusted peer can publish nothing, and its NOTIFYs and OPTIONS are
// answered without it.
func TestUntrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", func(cfg *server.Config) { cfg.Trust = nil })
		u := w.UA(alice)
		if m := u.Publication(n).Send(servertest.PIDF(alice, "open", "x"), 600); m.Status() != 401 {
			t.Errorf("PUBLISH: %d, want 401", m.Status())
		}
		for method, want := range map[string]int{"OPTIONS": 200, "NOTIFY": 481, "INVITE": 405, "REGISTER": 405, "MESSAGE": 481, "FROB": 501} {
			m := u.Raw(n.Addr, method+" "+alice+" SIP/2.0\nVia: {via}\nMax-Forwards: 70\nFrom: <{aor}>;tag={tag}\nTo: <{aor}>;tag=x\nCall-ID: {callid}\nCSeq: {cseq} "+method+"\nEvent: presence\nSubscription-State: active\n")
			if m.Status() != want {
				t.Errorf("%s: %d, want %d", method, m.Status(), want)
			}
			if allow := m.H(sip.HdrAllow); (want == 405 || want == 501 || want == 200) && !strings.Contains(allow, "SUBSCRIBE") {
				t.Errorf("CORE-01 %s: Allow %q", method, allow)
			}
			if method == "OPTIONS" && (m.H(sip.HdrSupported) != "eventlist" || m.H(sip.HdrAllowEvents) != "presence, presence.winfo, dialog, dialog.winfo, message-summary, message-summary.winfo") {
				t.Errorf("CORE-25: Supported %q, Allow-Events %q", m.H(sip.HdrSupported), m.H(sip.HdrAllowEvents))
			}
		}
	})
}

// A resource is the same by whatever port or spelling of our domain it is
// reached (LS-10, CORE-26), and a list by any spelling of its URI.
func TestResourceKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", func(cfg *server.Config) { cfg.Domain = []string{"Example.COM", "192.0.2.1", "[2001:db8::1]"} })
		n.List("sip:Friends@EXAMPLE.com;pres-list=x", "sip:bob@example.com:5060", "sip:bob@192.0.2.1", "sip:ann@[2001:DB8::1]:5070", "sips:bob@example.com", "pres:bob@example.com")
		w.UA(bob).Publication(n).Say("open", "here")
		for _, uri := range []string{bob, "sip:bob@EXAMPLE.com:5070", "sip:%62ob@example.com;transport=tcp", "sip:bob@example.com.", "sips:bob@example.com", "pres:bob@example.com", "sip:bob@example.com;user=phone"} {
			s := w.UA(alice).Dialog(n, uri)
			s.MustSubscribe(600)
			if got := s.Next().Text(); got != "open: here" && !strings.Contains(uri, "user=") {
				t.Errorf("%s: %q", uri, got)
			}
		}
		list := w.UA(alice).Watch(n, "sip:Friends@example.com:5060;pres-list=x")
		list.Next()
		list.WantView("each member once", state{"sip:bob@example.com:5060": "open: here", "sip:bob@192.0.2.1": "closed", "sip:ann@[2001:DB8::1]:5070": "closed"})
		if m := w.UA(alice).Dialog(n, "sip:friends@example.com;pres-list=x").Subscribe(600); m.Status() != 200 || m.H(sip.HdrRequire) != "" {
			t.Errorf("CORE-26: user parts differ by case: %d, Require %q", m.Status(), m.H(sip.HdrRequire))
		}
	})
}

// Whoever is not trusted logs in with a user of the store (CORE-22, DG-01,
// DG-05): challenged with every hash, most preferred first, with a wrong
// password as with none, and never believed beyond who logged in.
func TestLogIn(t *testing.T) {
	for _, c := range []struct {
		name, user, password, from string
		algorithms                 []auth.Algorithm
		status                     int
		watcher                    string
	}{
		{name: "SHA-256", user: "alice", password: "secret", from: alice, algorithms: []auth.Algorithm{auth.SHA256}, status: 200, watcher: alice},
		{name: "DG-05 MD5", user: "alice", password: "secret", from: alice, algorithms: []auth.Algorithm{auth.MD5}, status: 200, watcher: alice},
		{name: "anonymous", user: "alice", password: "secret", from: "sip:anonymous@anonymous.invalid", status: 200, watcher: alice},
		{name: "wrong password", user: "alice", password: "guess", from: alice, status: 401},
		{name: "unknown user", user: "mallory", password: "secret", from: "sip:mallory@example.com", status: 401},
		{name: "another user's From", user: "alice", password: "secret", from: bob, status: 403},
		{name: "a user of another domain", user: "alice@example.org", password: "secret", from: alice, algorithms: []auth.Algorithm{auth.MD5}, status: 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := servertest.New(t)
				n := w.Node("192.0.2.1", func(cfg *server.Config) { cfg.Trust = nil })
				n.AddUser("alice", "example.com", "secret")
				sub := w.UA(c.from).Dialog(n, bob)
				login := auth.NewClient(map[string]auth.Login{"example.com": {User: c.user, Password: c.password}}, auth.ClientOptions{Algorithms: c.algorithms})
				var at auth.Attempt
				ask := func() servertest.Msg {
					credentials := strings.ReplaceAll(string(login.Append(nil, "k", "SUBSCRIBE", bob, nil, &at)), "\r\n", "\n")
					sub.Headers = "P-Asserted-Identity: <sip:boss@example.com>\n" + credentials
					return sub.Subscribe(600)
				}
				m := ask()
				var hashes []string
				for v := range m.Headers(sip.HdrWWWAuthenticate) {
					h, _ := sip.Param([]byte(strings.ReplaceAll(strings.TrimPrefix(string(v), "Digest "), ", ", ";")), "algorithm")
					hashes = append(hashes, string(h))
				}
				if m.Status() != 401 || strings.Join(hashes, " ") != "SHA-256 MD5" {
					t.Fatalf("DG-01: %d with %q", m.Status(), hashes)
				}
				if !login.Challenged("k", m.Message, &at) {
					t.Fatalf("no challenge to answer in\n%s", m.Raw)
				}
				if m = ask(); m.Status() != c.status {
					t.Fatalf("%d %s, want %d", m.Status(), m.Reason(), c.status)
				}
				if c.status == 401 && login.Challenged("k", m.Message, &at) {
					t.Error("CORE-22: a wrong password is challenged as stale")
				}
				synctest.Wait()
				var subs server.Subscriptions
				n.Get("/api/v1/subscriptions", &subs)
				if c.status == 200 && (len(subs.Subscriptions) != 1 || subs.Subscriptions[0].Watcher != c.watcher) || c.status != 200 && len(subs.Subscriptions) != 0 {
					t.Errorf("subscriptions: %+v", subs.Subscriptions)
				}
				if c.status != 200 {
					return
				}
				u2 := w.UA(c.from)
				replay := string(login.Append(nil, "k", "SUBSCRIBE", bob, nil, &at))
				for i, want := range []int{200, 401} { // DG-04: the same count again
					m := u2.Raw(n.Addr, "SUBSCRIBE "+bob+" SIP/2.0\nVia: {via}\nFrom: <{aor}>;tag={tag}\nTo: <"+bob+">\nCall-ID: {callid}\nCSeq: {cseq} SUBSCRIBE\nContact: {contact}\nEvent: presence\nExpires: 0\n"+strings.ReplaceAll(replay, "\r\n", "\n"))
					if m.Status() != want || want == 401 && !strings.Contains(m.H(sip.HdrWWWAuthenticate), "stale=true") {
						t.Errorf("DG-04 use %d: %d, %s", i, m.Status(), m.H(sip.HdrWWWAuthenticate))
					}
				}
			})
		})
	}
}
