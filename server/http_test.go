package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server"
	"rollcall/server/servertest"
)

// real is a server on loopback sockets of any port.
func real(t *testing.T, change func(*server.Config)) (s *server.Server, get func(path string) (int, string)) {
	t.Helper()
	cfg := server.Default()
	cfg.Listen, cfg.HTTP = []string{"udp:127.0.0.1:0", "tcp:127.0.0.1:0"}, "127.0.0.1:0"
	cfg.Store, cfg.PresenceAuth, cfg.Domain = "memory", "open", []string{"example.com"}
	if change != nil {
		change(&cfg)
	}
	s, err := server.New(cfg, servertest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
		if err := s.Stop(context.Background()); err != nil {
			t.Errorf("second stop: %v", err)
		}
	})
	addr := s.Addrs()
	if len(addr) != 3 || !strings.HasPrefix(addr[0], "udp=127.0.0.1:") || !strings.HasPrefix(addr[1], "tcp=127.0.0.1:") || !strings.HasPrefix(addr[2], "http=127.0.0.1:") {
		t.Fatalf("addresses are %v", addr)
	}
	return s, func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get("http://" + strings.TrimPrefix(addr[2], "http=") + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
}

// Health, readiness and metrics over a socket; readiness ends with Stop.
func TestHealth(t *testing.T) {
	s, get := real(t, nil)
	if code, body := get("/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("healthz: %d %q", code, body)
	}
	if code, body := get("/readyz"); code != 200 || body != "ready\n" {
		t.Errorf("readyz: %d %q", code, body)
	}
	if code, _ := get("/api/v1/nothing"); code != 404 {
		t.Errorf("unknown path: %d", code)
	}
	code, body := get("/metrics")
	if code != 200 {
		t.Errorf("metrics: %d", code)
	}
	line := regexp.MustCompile(`^(# (HELP|TYPE) [a-z_:0-9]+ .*|[a-zA-Z_:0-9]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [-+0-9.eEIinNaAf]+)$`)
	seen := map[string]bool{}
	for l := range strings.Lines(body) {
		l = strings.TrimSuffix(l, "\n")
		if !line.MatchString(l) {
			t.Errorf("metrics line %q", l)
		}
		if name, _, _ := strings.Cut(l, " "); strings.HasPrefix(name, "rollcall_") {
			if seen[name] {
				t.Errorf("metric %s twice", name)
			}
			seen[name] = true
			base, _, _ := strings.Cut(name, "{")
			if typ := fmt.Sprintf("# TYPE %s counter\n", base); strings.HasSuffix(base, "_total") != strings.Contains(body, typ) {
				t.Errorf("%s: a counter ends in _total and nothing else does", base)
			}
		}
	}
	for _, want := range []string{"rollcall_dialog_panics_total", "rollcall_sip_messages_received_total", `rollcall_dialog_requests_total{method="subscribe"}`, `rollcall_sip_limited_total{limit="source",verdict="dropped"}`, "rollcall_pa_publications", "rollcall_rls_views", "rollcall_dialog_remote_subscriptions"} {
		if !seen[want] {
			t.Errorf("no metric %s", want)
		}
	}
	if err := s.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

// The admin API says what is so.
func TestAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", nil)
		if code := n.Get("/api/v1/list?uri="+team, nil); code != 404 {
			t.Errorf("no such list: %d", code)
		}
		if code := n.Get("/api/v1/presentity?uri="+bob, nil); code != 404 {
			t.Errorf("unknown presentity: %d", code)
		}
		for _, path := range []string{"list", "presentity", "views"} {
			for _, uri := range []string{"", "bob", "http://example.com"} {
				var e struct{ Error string }
				if code := n.Get("/api/v1/"+path+"?uri="+uri, &e); code != 400 || e.Error == "" {
					t.Errorf("%s of %q: %d %q, want 400", path, uri, code, e.Error)
				}
			}
		}
		n.Put("rls-services/users/sip:alice@example.com/index", servertest.Services(
			servertest.Service(team, bob+" Bob &lt;b&gt;", "sip:ann@example.org", inner, bob), servertest.Service(inner, carol),
			servertest.ServiceRef("sip:broken@example.com", "http://xcap.example.com/xcap-root/resource-lists/users/sip:alice@example.com/index/~~/resource-lists/list")))
		var lists server.Lists
		n.Get("/api/v1/lists", &lists)
		if fmt.Sprint(lists) != "{[{sip:broken@example.com} {sip:inner@example.com} {sip:team@example.com}]}" {
			t.Errorf("lists: %v", lists)
		}
		var list server.List
		n.Get("/api/v1/list?uri=sip:TEAM@example.com", nil)
		if code := n.Get("/api/v1/list?uri="+team, &list); code != 200 || list.Members != 4 || list.Document != "rls-services/users/sip:alice@example.com/index" || list.ETag == "" {
			t.Errorf("list: %d %+v", code, list)
		}
		var got []string
		for _, e := range list.Entries {
			got = append(got, e.Key+" "+e.Route)
		}
		if strings.Join(got, ", ") != "sip:bob@example.com pa, sip:ann@example.org b2b, sip:inner@example.com list" || list.Entries[2].List == nil || list.Entries[0].Names[0].Text != "Bob <b>" {
			t.Errorf("entries: %v", list.Entries)
		}
		if len(list.Problems) != 1 || list.Problems[0].Kind != "duplicate" {
			t.Errorf("problems: %v", list.Problems)
		}
		var broken server.List
		if code := n.Get("/api/v1/list?uri=sip:broken@example.com", &broken); code != 200 || broken.Error == "" {
			t.Errorf("LS-08 broken list: %d %+v", code, broken)
		}
		w.UA(bob).Publication(n).Say("open", "in a meeting")
		sub := w.UA(alice).Watch(n, team)
		sub.Next()
		var p server.Presentity
		if code := n.Get("/api/v1/presentity?uri=sip:bob@EXAMPLE.com:5060", &p); code != 200 || p.Basic != "open" || p.Note != "in a meeting" || len(p.Publications) != 1 ||
			len(p.Watchers) != 1 || p.Watchers[0].URI != alice || p.Watchers[0].Status != "active" || p.Publications[0].Expires.Sub(time.Now()) != time.Hour {
			t.Errorf("presentity: %d %+v", code, p)
		}
		var views server.Views
		n.Get("/api/v1/views?uri="+team, &views)
		if len(views.Views) != 1 || views.Views[0].Watcher != alice || len(views.Views[0].Members) != 4 {
			t.Errorf("views: %+v", views)
		}
		var subs server.Subscriptions
		n.Get("/api/v1/subscriptions", &subs)
		if len(subs.Subscriptions) != 1 || subs.Subscriptions[0].State != "active" || subs.Subscriptions[0].CSeq != 1 || subs.Subscriptions[0].InFlight {
			t.Errorf("subscriptions: %+v", subs)
		}
		sub.Unsubscribe()
		n.Get("/api/v1/views?uri="+team, &views)
		n.Get("/api/v1/subscriptions", &subs)
		if len(views.Views) != 0 || len(subs.Subscriptions) != 0 {
			t.Errorf("after the end: %+v, %+v", views, subs)
		}
	})
}

// XC-04, XC-20 to XC-26 for whole documents, and a live list that follows.
func TestXCAP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", nil)
		const doc = "/xcap-root/resource-lists/users/sip:alice@example.com/index"
		n.Put("rls-services/global/index", servertest.Services(servertest.ServiceRef(team,
			"http://xcap.example.com"+doc+"/~~/resource-lists/list%5b@name=%22l1%22%5d")))
		var etag string
		step := func(method, path, body, condition string, want int) *http.Response {
			t.Helper()
			h := http.Header{}
			if name, value, ok := strings.Cut(condition, ": "); ok {
				h.Set(name, strings.ReplaceAll(value, "ETAG", etag))
			}
			r := n.Do(method, path, h, body)
			if r.StatusCode != want {
				t.Errorf("%s %s %s: %d, want %d", method, path, condition, r.StatusCode, want)
			}
			if tag := r.Header.Get("ETag"); tag != "" {
				etag = tag
			}
			return r
		}
		one, two := servertest.ResourceLists("l1", bob), servertest.ResourceLists("l1", bob, carol)
		step("GET", doc, "", "", 404)
		step("DELETE", doc, "", "", 404)
		step("PUT", doc, two, `If-Match: "nothing"`, 412)
		step("PUT", doc, "<resource-lists", "", 409)
		step("GET", doc, "", "", 404)
		if r := step("PUT", doc, one, "If-None-Match: *", 201); r.Header.Get("ETag") == "" {
			t.Errorf("XC-26: PUT without ETag")
		}
		first := etag
		r := step("GET", doc, "", "", 200)
		if b, _ := io.ReadAll(r.Body); string(b) != one || r.Header.Get("ETag") != first {
			t.Errorf("XC-26: GET gives %s\n%s", r.Header.Get("ETag"), b)
		}
		step("GET", doc, "", "If-None-Match: ETAG", 304)
		step("GET", "/xcap-root/resource-lists/users/sip%3Aalice%40example.com/index", "", "", 200) // LS-13
		step("HEAD", doc, "", "", 200)
		step("PUT", doc, two, "If-None-Match: *", 412)
		step("PUT", doc, two, `If-Match: "nothing"`, 412)
		sub := w.UA(alice).Watch(n, team)
		sub.Next()
		sub.WantView("before", state{bob: "closed"})
		step("PUT", doc, two, "If-Match: ETAG", 200)
		if etag == first {
			t.Errorf("XC-04: another document has the same ETag")
		}
		sub.Next()
		sub.WantView("a live list follows", state{bob: "closed", carol: "closed"})
		if r := step("PUT", doc, "<a><b></a>", "", 409); !strings.Contains(bodyOf(r), "not-well-formed") || r.Header.Get("Content-Type") != "application/xcap-error+xml" {
			t.Errorf("XC-22: 409 is %s", r.Header.Get("Content-Type"))
		}
		sub.Quiet(10*time.Second, "a refused PUT changes nothing")
		step("POST", doc, one, "", 405)
		step("PUT", "/xcap-root/unknown/users/sip:alice@example.com/index", one, "", 404)
		step("PUT", "/xcap-root/resource-lists/users/index", one, "", 404)
		step("PUT", "/xcap-root/resource-lists/others/sip:alice@example.com/index", one, "", 404)
		step("GET", doc+"/~~/resource-lists/list", "", "", 501)
		step("PUT", doc, strings.Repeat("x", 4<<20+1), "", 413)
		step("DELETE", doc, "", `If-Match: "nothing"`, 412)
		step("DELETE", doc, "", "", 200)
		step("GET", doc, "", "", 404)
		sub.Quiet(10*time.Second, "LS-08: the list keeps its members")
	})
}

func bodyOf(r *http.Response) string {
	b, _ := io.ReadAll(r.Body)
	return string(b)
}

// Without the store there is no XCAP server.
func TestNoXCAP(t *testing.T) {
	_, get := real(t, func(c *server.Config) { c.XCAP = []string{t.TempDir()} })
	if code, _ := get("/xcap-root/resource-lists/global/index"); code != 404 {
		t.Errorf("XCAP without a store: %d, want 404", code)
	}
}

// Only trusted peers and this machine may ask.
func TestAdminTrust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", func(c *server.Config) { c.Trust = []string{"192.0.2.0/24"} })
		for from, want := range map[string]int{"192.0.2.7:99": 200, "[::ffff:192.0.2.7]:99": 200, "127.0.0.1:99": 200, "[::1]:99": 200, "198.51.100.1:99": 403, "": 403} {
			for _, path := range []string{"/healthz", "/metrics", "/api/v1/lists", "/debug/pprof/"} {
				if got := n.DoFrom(from, "GET", path).StatusCode; got != want {
					t.Errorf("%s from %q: %d, want %d", path, from, got, want)
				}
			}
		}
	})
}

// A directory of documents, end to end on real sockets and files: a file that
// is written changes a list that is being watched.
func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	put := func(selector, body string) {
		t.Helper()
		path := filepath.Join(dir, filepath.FromSlash(selector))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("rls-services/global/index", servertest.Services(servertest.Service(team, bob)))
	s, get := real(t, func(c *server.Config) {
		c.XCAP, c.PresenceAuth = []string{dir}, "allow"
	})
	w := servertest.NewReal(t)
	n := w.Of(s)
	sub := w.UA(alice).Watch(n, team)
	sub.Next()
	sub.WantView("first", state{bob: "closed"})
	put("rls-services/global/index", servertest.Services(servertest.Service(team, bob, carol)))
	sub.Next()
	sub.WantView("the file was written", state{bob: "closed", carol: "closed"})
	put("pres-rules/users/sip:carol@example.com/index", `<cr:ruleset xmlns:cr="urn:ietf:params:xml:ns:common-policy" xmlns:pr="urn:ietf:params:xml:ns:pres-rules">
<cr:rule id="a"><cr:conditions/><cr:actions><pr:sub-handling>block</pr:sub-handling></cr:actions></cr:rule></cr:ruleset>`)
	sub.Next()
	sub.WantView("rules were written", state{bob: "closed", carol: "terminated rejected"})
	w.UA(bob).Publication(n).Say("open", "here")
	sub.Next()
	sub.WantView("published", state{bob: "open: here", carol: "terminated rejected"})
	var subs server.Subscriptions
	if _, body := get("/api/v1/subscriptions"); json.Unmarshal([]byte(body), &subs) != nil || len(subs.Subscriptions) != 1 {
		t.Errorf("subscriptions: %s", body)
	}
	if err := os.Remove(filepath.Join(dir, "rls-services/global/index")); err != nil {
		t.Fatal(err)
	}
	sub.Last("noresource")
}
