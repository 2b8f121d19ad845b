package server_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
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
	dave       = "sip:dave@example.com"
	anonymous  = "sip:anonymous@anonymous.invalid"
	xcapRoot   = "http://xcap.example.com/xcap-root/"
	aliceRules = "pres-rules/users/sip:alice@example.com/index"
	aliceOMA   = "org.openmobilealliance.pres-rules/users/sip:alice@example.com/pres-rules"
	aliceLists = "resource-lists/users/sip:alice@example.com/index"
	all        = `<pr:provide-services><pr:all-services/></pr:provide-services><pr:provide-persons><pr:all-persons/></pr:provide-persons>` +
		`<pr:provide-devices><pr:all-devices/></pr:provide-devices><pr:provide-all-attributes/>`
)

func ruleset(rules ...string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>
<cr:ruleset xmlns="urn:ietf:params:xml:ns:pres-rules" xmlns:pr="urn:ietf:params:xml:ns:pres-rules" xmlns:cr="urn:ietf:params:xml:ns:common-policy" xmlns:ocp="urn:oma:xml:xdm:common-policy" xmlns:im="urn:iptel:xml:ns:im-rules">` +
		strings.Join(rules, "") + `</cr:ruleset>`
}

func presRule(id, conditions, handling string) string {
	return `<cr:rule id="` + id + `"><cr:conditions>` + conditions + `</cr:conditions><cr:actions><pr:sub-handling>` + handling +
		`</pr:sub-handling></cr:actions><cr:transformations>` + all + `</cr:transformations></cr:rule>`
}

func imRule(id, conditions, handling string) string {
	return `<cr:rule id="` + id + `"><cr:conditions>` + conditions + `</cr:conditions><cr:actions><im:im-handling>` + handling + `</im:im-handling></cr:actions><cr:transformations/></cr:rule>`
}

func only(uris ...string) string {
	s := `<cr:identity>`
	for _, u := range uris {
		s += `<cr:one id="` + u + `"/>`
	}
	return s + `</cr:identity>`
}

// external is an external-list condition on lists of a document.
func external(document string, names ...string) string {
	s := `<ocp:external-list>`
	for _, n := range names {
		s += `<ocp:entry anc="` + xcapRoot + document + `/~~/resource-lists/list%5b@name=%22` + n + `%22%5d"/>`
	}
	return s + `</ocp:external-list>`
}

// lists is a resource-lists document: name, members, name, members.
func lists(parts ...[]string) string {
	s := `<rl:resource-lists xmlns:rl="urn:ietf:params:xml:ns:resource-lists">`
	for _, p := range parts {
		s += `<rl:list name="` + p[0] + `">` + servertest.Entries(p[1:]...) + `</rl:list>`
	}
	return s + `</rl:resource-lists>`
}

// rcs are the default rules of RCS (OMA-04).
func rcs() string {
	return ruleset(presRule("wp_prs_allow_own", only(alice), "allow"), presRule("wp_prs_grantedcontacts", external(aliceLists, "oma_grantedcontacts"), "allow"),
		presRule("wp_prs_unlisted", `<ocp:other-identity/>`, "confirm"), presRule("wp_prs_block_anonymous", `<ocp:anonymous-request/>`, "block"),
		presRule("wp_prs_blockedcontacts", external(aliceLists, "oma_blockedcontacts"), "polite-block"))
}

func ruled(t *testing.T, change func(*server.Config), f func(w *servertest.World, n *servertest.Node), opts ...server.Option) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		f(w, w.Node("192.0.2.1", func(c *server.Config) {
			c.PresenceAuth = "confirm"
			if change != nil {
				change(c)
			}
		}, opts...))
	})
}

// asked asks the admin API about a pair; query is the rest of it.
func asked(t *testing.T, n *servertest.Node, watcher, presentity, query string) server.Authorization {
	t.Helper()
	var a server.Authorization
	path := "/api/v1/auth?watcher=" + url.QueryEscape(watcher) + "&presentity=" + url.QueryEscape(presentity) + query
	if code := n.Get(path, &a); code != 200 {
		t.Fatalf("%s: %d", path, code)
	}
	return a
}

// OMA-01, OMA-04: the rules of RCS with a contact on each list and on none, also
// a telephone number, and what the API says of each.
func TestExternalLists(t *testing.T) {
	ruled(t, nil, func(w *servertest.World, n *servertest.Node) {
		n.Put(aliceLists, lists([]string{"oma_buddylist", bob, dave}, []string{"oma_grantedcontacts", "sip:BOB@example.com", "tel:+1-201-555-0123", "sip:bob@EXAMPLE.com"}, []string{"oma_blockedcontacts", carol}))
		n.Put(aliceOMA, rcs())
		w.UA(alice).Publication(n).Say("open", "here")
		for _, c := range []struct {
			watcher, state, text, rule string
		}{
			{bob, "active", "open: here", "wp_prs_grantedcontacts"},
			{carol, "active", "closed", "wp_prs_blockedcontacts"},
			{dave, "pending", "", "wp_prs_unlisted"},
			{alice, "active", "open: here", ""},
			{"sip:ann@example.org", "pending", "", "wp_prs_unlisted"},
		} {
			if got := w.UA(c.watcher).Watch(n, alice).Next(); got.State != c.state || got.Text() != c.text {
				t.Errorf("OMA-02 %s: %s %q, want %s %q", c.watcher, got.State, got.Text(), c.state, c.text)
			}
			a := asked(t, n, c.watcher, alice, "")
			var counted []string
			for _, r := range a.Rules {
				if r.Matched {
					counted = append(counted, r.ID)
				}
			}
			if a.Status != c.state || strings.Join(counted, " ") != c.rule {
				t.Errorf("OMA-02 %s: the API says %s by %v", c.watcher, a.Status, counted)
			}
		}
		if a := asked(t, n, "tel:+12015550123", alice, ""); a.Handling != "allow" {
			t.Errorf("a telephone number on the list: %+v", a)
		}
		if a := asked(t, n, "sip:x@example.org", alice, "&watcher=tel:%2B12015550123"); a.Handling != "allow" || len(a.Aliases) != 1 {
			t.Errorf("PR-03 a second identity on the list: %+v", a)
		}
		if m := w.UA(anonymous).Dialog(n, alice).Subscribe(600); m.Status() != 403 {
			t.Errorf("OMA-01 anonymous: %d, want 403", m.Status())
		}
	})
}

// PR-17: a list that changes decides anew at once: pending becomes active, active
// polite-blocked and back, and a list that is nobody's concern disturbs nobody.
func TestExternalListChanges(t *testing.T) {
	ruled(t, nil, func(w *servertest.World, n *servertest.Node) {
		n.Put(aliceOMA, rcs())
		w.UA(alice).Publication(n).Say("open", "here")
		sub := w.UA(bob).Watch(n, alice)
		step := func(what, state, text string) {
			t.Helper()
			at := time.Now()
			if got := sub.Next(); got.State != state || got.Text() != text {
				t.Errorf("PR-17 %s: %s %q, want %s %q", what, got.State, got.Text(), state, text)
			} else if d := got.At.Sub(at); d > time.Second {
				t.Errorf("PR-17 %s: told after %v", what, d)
			}
		}
		step("no lists: unlisted", "pending", "")
		n.Put(aliceLists, lists([]string{"oma_grantedcontacts", bob}))
		step("granted", "active", "open: here")
		n.Put(aliceLists, lists([]string{"oma_grantedcontacts", bob}, []string{"oma_buddylist", carol}))
		n.Put("resource-lists/users/"+bob+"/index", lists([]string{"oma_blockedcontacts", bob}))
		n.Put("resource-lists/global/index", lists([]string{"oma_blockedcontacts", bob}))
		sub.Quiet(10*time.Second, "PR-17: nothing that the rules name")
		n.Put(aliceLists, lists([]string{"oma_blockedcontacts", bob}))
		step("blocked", "active", "closed")
		n.Delete(aliceLists)
		step("deleted", "pending", "")
		n.Put(aliceLists, lists([]string{"oma_grantedcontacts", bob}))
		step("granted again", "active", "open: here")
		n.Put(aliceOMA, ruleset(presRule("a", external(aliceLists, "oma_grantedcontacts"), "block")))
		sub.Last("rejected")
	})
}

// A list for all decides anew for everybody whose rules name it.
func TestGlobalList(t *testing.T) {
	const staff = "resource-lists/global/staff"
	ruled(t, nil, func(w *servertest.World, n *servertest.Node) {
		n.Put(aliceRules, ruleset(presRule("a", external(staff, "all"), "allow")))
		n.Put("pres-rules/users/sip:carol@example.com/index", ruleset(presRule("a", external(staff, "all"), "allow")))
		subs := []*servertest.Sub{w.UA(bob).Watch(n, alice), w.UA(bob).Watch(n, carol), w.UA(bob).Watch(n, dave)}
		for _, s := range subs {
			if got := s.Next(); got.State != "pending" {
				t.Errorf("no list: %s", got.State)
			}
		}
		n.Put(staff, lists([]string{"all", bob}))
		for _, s := range subs[:2] {
			if got := s.Next(); got.State != "active" {
				t.Errorf("PR-17 %s: %s", s.URI, got.State)
			}
		}
		subs[2].Quiet(10*time.Second, "no rule of his names the list")
	})
}

// PR-18: a list that is not ours, another user's, no list at all, or not
// readable: nobody is in it, and nobody is another identity.
func TestExternalListUnknown(t *testing.T) {
	other := presRule("others", `<ocp:other-identity/>`, "allow")
	for name, anchor := range map[string]string{
		"another server":   "http://elsewhere.example.org/xcap-root/" + aliceLists + "/~~/resource-lists/list",
		"another user":     xcapRoot + "resource-lists/users/sip:bob@example.com/index/~~/resource-lists/list",
		"a whole document": xcapRoot + aliceLists,
		"no reference":     "friends",
		"not lists":        xcapRoot + "pres-rules/users/sip:alice@example.com/index/~~/ruleset",
		"not a list":       xcapRoot + aliceLists + "/~~/resource-lists",
		"holds another's":  xcapRoot + "resource-lists/users/sip:alice@example.com/refers/~~/resource-lists/list",
	} {
		ruled(t, nil, func(w *servertest.World, n *servertest.Node) {
			n.Put("resource-lists/users/"+bob+"/index", lists([]string{"x", bob}))
			n.Put(aliceLists, lists([]string{"x", carol}))
			n.Put("resource-lists/users/sip:alice@example.com/refers", strings.Replace(lists([]string{"x", carol}), "</rl:list>", `<rl:external anchor="`+xcapRoot+`resource-lists/users/sip:bob@example.com/index/~~/resource-lists/list"/></rl:list>`, 1))
			n.Put(aliceRules, ruleset(presRule("blocked", `<ocp:external-list><ocp:entry anc="`+anchor+`"/></ocp:external-list>`, "block"), other))
			if got := w.UA(bob).Watch(n, alice).Next(); got.State != "pending" {
				t.Errorf("%s: %s, want pending: he may be on the list", name, got.State)
			}
			a := asked(t, n, bob, alice, "")
			if len(a.Rules) != 2 || a.Basis != "default" || a.Default != "presence-auth confirm" || !strings.Contains(a.Rules[0].Conditions[0].Wants, "(") {
				t.Errorf("%s: %+v", name, a)
			}
		})
	}
}

// brittle has documents that may become unreadable.
type brittle struct {
	mu     sync.Mutex
	docs   map[string]string
	broken string // selector
	signal chan []string
}

func (b *brittle) set(selector, body, broken string) {
	b.mu.Lock()
	b.docs[selector], b.broken = body, broken
	b.mu.Unlock()
	b.signal <- []string{selector}
	synctest.Wait()
}

func (b *brittle) Document(_ context.Context, selector string) (xcapclient.Document, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if selector == b.broken {
		return xcapclient.Document{}, errors.New("server unreachable")
	}
	if body, ok := b.docs[selector]; ok {
		return xcapclient.Document{Selector: selector, Body: []byte(body), ETag: fmt.Sprint(len(body))}, nil
	}
	return xcapclient.Document{}, os.ErrNotExist
}

func (b *brittle) Selectors(context.Context, string) ([]string, error) { return nil, nil }

func (b *brittle) Run(ctx context.Context, changed func([]string)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-b.signal:
			changed(s)
		}
	}
}

// PR-18: a list that cannot be read now is as rules that cannot: who was decided
// for keeps what he has, others wait, and it is read again.
func TestExternalListUnreadable(t *testing.T) {
	src := &brittle{docs: map[string]string{}, signal: make(chan []string)}
	src.docs[aliceRules] = ruleset(presRule("friends", external(aliceLists, "x"), "allow"))
	src.docs[aliceLists] = lists([]string{"x", bob, carol})
	synctest.Test(t, func(t *testing.T) {
		src.signal = make(chan []string)
		w := servertest.New(t)
		n := w.Node("192.0.2.1", func(c *server.Config) { c.PresenceAuth = "allow" }, server.WithSource(src))
		sub := w.UA(bob).Watch(n, alice)
		if got := sub.Next(); got.State != "active" {
			t.Errorf("readable: %s", got.State)
		}
		src.set(aliceLists, lists([]string{"x", carol}), aliceLists)
		sub.Quiet(10*time.Second, "PR-18: who was let in stays")
		late := w.UA(dave).Watch(n, alice)
		if got := late.Next(); got.State != "pending" {
			t.Errorf("PR-18: %s, want pending although the default is allow", got.State)
		}
		if code := n.Get("/api/v1/auth?watcher="+dave+"&presentity="+alice, nil); code != 503 {
			t.Errorf("PR-18: the API says %d, want 503", code)
		}
		src.mu.Lock()
		src.broken = ""
		src.mu.Unlock()
		w.Settle(2 * time.Minute)
		if got := late.Next(); got.State != "active" {
			t.Errorf("readable again: %s", got.State)
		}
	})
}

// CP-06: windows of one rule open and close one after the other by time alone;
// with presence_auth block, a window that closes ends the subscription.
func TestSeveralWindows(t *testing.T) {
	for _, mode := range []string{"confirm", "block"} {
		ruled(t, func(c *server.Config) { c.PresenceAuth = mode }, func(w *servertest.World, n *servertest.Node) {
			start := time.Now()
			minute := func(m int) string { return start.Add(time.Duration(m) * time.Minute).Format(time.RFC3339) }
			n.Put(aliceRules, ruleset(presRule("a", only(bob)+`<cr:validity><cr:from>`+minute(-5)+`</cr:from><cr:until>`+minute(10)+`</cr:until><cr:from>`+minute(20)+`</cr:from><cr:until>`+minute(30)+`</cr:until></cr:validity>`, "allow"),
				presRule("b", only(bob)+`<cr:validity><cr:from>`+minute(25)+`</cr:from><cr:until>`+minute(40)+`</cr:until></cr:validity>`, "polite-block")))
			w.UA(alice).Publication(n).Say("open", "here")
			sub := w.UA(bob).Watch(n, alice)
			want := []struct {
				minute      int
				state, text string
			}{{0, "active", "open: here"}, {10, "pending", ""}, {20, "active", "open: here"}, {30, "active", "closed"}, {40, "pending", ""}}
			if mode == "block" {
				want = want[:2]
				want[1].state = "terminated"
			}
			for _, c := range want {
				w.Settle(time.Until(start.Add(time.Duration(c.minute)*time.Minute + time.Second)))
				if got := sub.Next(); got.State != c.state || got.Text() != c.text || got.At.Before(start.Add(time.Duration(c.minute)*time.Minute)) {
					t.Errorf("CP-06 %s, minute %d: %s %q at %v", mode, c.minute, got.State, got.Text(), got.At.Sub(start))
				}
			}
			if mode == "confirm" {
				sub.Quiet(15*time.Minute, "CP-06: no window is left")
			} else if !sub.Over() {
				t.Error("CP-06: the subscription is not over")
			}
		})
	}
}

// The default rules are for whoever has no document of his own, and SIGHUP reads
// them again, for live subscriptions too.
func TestDefaultRules(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "users", alice) // which makes it no document of hers
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "rules.xml")
	write := func(rules ...string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(ruleset(rules...)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(presRule("colleagues", `<cr:identity><cr:many domain="example.com"/></cr:identity>`, "allow"))
	ruled(t, func(c *server.Config) { c.DefaultRules = file }, func(w *servertest.World, n *servertest.Node) {
		n.Put("pres-rules/users/sip:carol@example.com/index", ruleset(presRule("a", only(dave), "allow")))
		sub, strange, own := w.UA(bob).Watch(n, alice), w.UA("sip:ann@example.org").Watch(n, alice), w.UA(bob).Watch(n, carol)
		for _, c := range []struct {
			sub   *servertest.Sub
			state string
		}{{sub, "active"}, {strange, "pending"}, {own, "pending"}} {
			if got := c.sub.Next(); got.State != c.state {
				t.Errorf("%s: %s, want %s", c.sub.URI, got.State, c.state)
			}
		}
		if a := asked(t, n, bob, alice, ""); a.Rules[0].Document != "default rules "+file {
			t.Errorf("%+v", a)
		}
		n.Put(aliceRules, ruleset())
		if got := sub.Next(); got.State != "pending" {
			t.Errorf("a document of her own, without rules: %s", got.State)
		}
		n.Delete(aliceRules)
		if got := sub.Next(); got.State != "active" {
			t.Errorf("no document any more: %s", got.State)
		}
		write(presRule("colleagues", `<cr:identity><cr:many domain="example.org"/></cr:identity>`, "allow"), presRule("others", "", "confirm"))
		if err := n.Reload(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := sub.Next(); got.State != "pending" {
			t.Errorf("other default rules: %s", got.State)
		}
		if got := strange.Next(); got.State != "active" {
			t.Errorf("other default rules: %s", got.State)
		}
		own.Quiet(10*time.Second, "she has a document of her own")
		if err := os.WriteFile(file, []byte("<ruleset/>"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := n.Reload(); err == nil {
			t.Error("a bad file is taken")
		}
		strange.Quiet(10*time.Second, "a bad file changes nothing")
		// The default rules may name lists for all, but nobody's own.
		write(presRule("a", external("resource-lists/global/staff", "all"), "allow"), presRule("b", external("resource-lists/users/sip:alice@example.com/index", "all"), "allow"))
		n.Put("resource-lists/global/staff", lists([]string{"all", bob}))
		n.Put(aliceLists, lists([]string{"all", "sip:ann@example.org"}))
		if err := n.Reload(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := sub.Next(); got.State != "active" {
			t.Errorf("on a list for all: %s", got.State)
		}
		if got := strange.Next(); got.State != "pending" {
			t.Errorf("on a user's list: %s", got.State)
		}
	})
}

// WI-03 and package_auth: who may subscribe to a package when rules do not say.
func TestPackageAuth(t *testing.T) {
	for _, c := range []struct {
		name, mode      string
		packages        map[string]string
		presence, winfo int // of bob
	}{
		{"WI-03 watcher information is for its owner", "allow", nil, 200, 403},
		{"open is open", "open", nil, 200, 200},
		{"presence for owners", "allow", map[string]string{"presence": "owner"}, 403, 403},
		{"presence for everybody", "block", map[string]string{"presence": "open"}, 200, 403},
		{"watcher information for everybody", "block", map[string]string{"presence.winfo": "open"}, 403, 200},
		{"open but for watcher information", "open", map[string]string{"presence.winfo": "owner"}, 200, 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			ruled(t, func(cfg *server.Config) { cfg.PresenceAuth, cfg.PackageAuth = c.mode, c.packages }, func(w *servertest.World, n *servertest.Node) {
				for event, want := range map[string]int{"presence": c.presence, "presence.winfo": c.winfo} {
					for _, watcher := range []string{bob, alice} {
						s := w.UA(watcher).Dialog(n, alice)
						s.Event, s.Headers = event, ""
						if watcher == alice {
							want = 200
						}
						if m := s.Subscribe(600); m.Status() != want {
							t.Errorf("%s of %s: %d, want %d", event, watcher, m.Status(), want)
						}
						a := asked(t, n, watcher, alice, "&package="+event)
						if a.Allowed != (want == 200) || (a.Status == "terminated") != (want == 403) || a.Package != event {
							t.Errorf("%s of %s: the API says %+v", event, watcher, a)
						}
					}
				}
			})
		})
	}
}

// The API explains a pair that never subscribed, and refuses what makes no sense.
func TestAuthAPI(t *testing.T) {
	ruled(t, nil, func(w *servertest.World, n *servertest.Node) {
		until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
		n.Put(aliceRules, ruleset(presRule("friends", only(bob), "allow"), presRule("work", `<cr:sphere value="work"/>`, "polite-block"),
			presRule("today", only(carol)+`<cr:validity><cr:from>2000-01-01T00:00:00Z</cr:from><cr:until>`+until.Format(time.RFC3339)+`</cr:until></cr:validity>`, "allow")))
		n.List(team, bob)
		a := asked(t, n, "pres:bob@example.com;transport=tcp", "sip:alice@EXAMPLE.com:5070", "")
		if !a.Allowed || a.Status != "active" || a.Handling != "allow" || a.Basis != "rules" || a.Default != "" || a.NextChange != nil || len(a.Rules) != 3 || !a.Rules[0].Matched ||
			a.Rules[0].Document != aliceRules || a.Rules[1].Matched || fmt.Sprint(a.Rules[1].Conditions) != "[{sphere false work undefined}]" || len(a.Grants) != 4 {
			t.Errorf("%+v", a)
		}
		if a := asked(t, n, carol, alice, ""); a.NextChange == nil || !a.NextChange.Equal(until) {
			t.Errorf("CP-06: %+v", a)
		}
		w.UA(alice).Publication(n).Send(`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid" entity="sip:alice@example.com"><dm:person id="p"><r:sphere><r:work/></r:sphere></dm:person></presence>`, 600)
		if a := asked(t, n, dave, alice, ""); a.Allowed || a.Handling != "polite-block" || a.Status != "active" || a.Sphere != "work" || a.Grants != nil {
			t.Errorf("PR-04: %+v", a)
		}
		if a := asked(t, n, anonymous, dave, ""); a.Status != "pending" || a.Default != "presence-auth confirm" || a.Basis != "default" || len(a.Rules) != 0 {
			t.Errorf("nobody: %+v", a)
		}
		for _, c := range []struct {
			query string
			want  int
		}{
			{"", 400},
			{"watcher=" + bob, 400},
			{"presentity=" + alice, 400},
			{"watcher=bob&presentity=" + alice, 400},
			{"watcher=&presentity=" + alice, 400},
			{"watcher=" + bob + "&presentity=sip:ann@example.org", 404},
			{"watcher=" + bob + "&presentity=" + team, 404},
			{"watcher=" + bob + "&presentity=" + alice + "&package=weather", 400},
			{"watcher=" + bob + "&presentity=" + alice + "&method=INVITE", 400},
			{"watcher=" + bob + "&presentity=" + alice + "&method=MESSAGE&package=presence", 400},
			{"watcher=" + bob + "&presentity=" + alice + "&method=SUBSCRIBE", 200},
			{strings.Repeat("watcher="+bob+"&", 17) + "presentity=" + alice, 400},
		} {
			var e struct{ Error string }
			if code := n.Get("/api/v1/auth?"+c.query, &e); code != c.want || (e.Error == "") != (c.want == 200) {
				t.Errorf("%.80s: %d %q, want %d", c.query, code, e.Error, c.want)
			}
		}
	})
}

// message sends a MESSAGE.
func message(u *servertest.UA, n *servertest.Node, to, extra string) servertest.Msg {
	return u.Raw(n.Addr, "MESSAGE "+to+" SIP/2.0\nVia: {via}\nMax-Forwards: 70\nFrom: <{aor}>;tag={tag}\nTo: <"+to+">\nCall-ID: {callid}\nCSeq: {cseq} MESSAGE\n"+extra+"Content-Type: text/plain\n\nhello")
}

// IM-01 to IM-06: a MESSAGE is refused with 403, or would be let through and gets
// 480, because nobody is reached from here; the API says the same.
func TestMessage(t *testing.T) {
	const draft = `<ruleset xmlns="urn:ietf:params:xml:ns:common-policy" xmlns:im="urn:iptel:xml:ns:im-rules"><rule id="w"><conditions><identity><id>sip:bob@example.com</id></identity></conditions>` +
		`<actions><im:im-handling>allow</im:im-handling></actions><transformations/></rule></ruleset>`
	for _, c := range []struct {
		name, selector, rules, mode string
		bob, carol                  int
	}{
		{"IM-01 by the name of the user", "im-rules/users/alice/im-rules.xml", draft, "block", 480, 403},
		{"IM-01 by the address", "im-rules/users/sip:alice@example.com/im-rules.xml", draft, "allow", 480, 403},
		{"IM-01 index", "im-rules/users/sip:alice@example.com/index", ruleset(imRule("a", only(bob), "allow")), "allow", 480, 403},
		{"IM-02 block", "im-rules/users/alice/im-rules.xml", ruleset(imRule("a", only(bob), "block"), imRule("b", `<cr:identity><cr:many/></cr:identity>`, "allow"), imRule("c", only(carol), "block")), "block", 480, 480},
		{"IM-05 nobody's document, block", "im-rules/users/dave/im-rules.xml", draft, "block", 403, 403},
		{"IM-05 nobody's document, allow", "im-rules/users/dave/im-rules.xml", draft, "allow", 480, 480},
		{"IM-05 a document in which nothing matches", "im-rules/users/alice/im-rules.xml", ruleset(imRule("a", only(dave), "allow")), "allow", 403, 403},
		{"presence rules do not count", aliceRules, ruleset(presRule("a", only(bob), "allow"), imRule("b", only(bob), "allow")), "block", 403, 403},
		{"PR-18 a document that is not understood", "im-rules/users/alice/im-rules.xml", "<ruleset/>", "allow", 503, 503},
	} {
		t.Run(c.name, func(t *testing.T) {
			ruled(t, func(cfg *server.Config) { cfg.MessageAuth = c.mode }, func(w *servertest.World, n *servertest.Node) {
				n.Put(c.selector, c.rules)
				for who, want := range map[string]int{bob: c.bob, carol: c.carol} {
					m := message(w.UA(who), n, alice, "")
					if m.Status() != want || m.Has(sip.HdrContact) || len(m.Body()) > 0 {
						t.Errorf("IM-06 %s:\n%s", who, m.Raw)
					}
					if want == 503 {
						if m.H(sip.HdrRetryAfter) == "" {
							t.Error("503 without Retry-After")
						}
						continue
					}
					if a := asked(t, n, who, alice, "&method=MESSAGE"); a.Allowed != (want == 480) || a.Method != "MESSAGE" || a.Package != "" {
						t.Errorf("%s: the API says %+v", who, a)
					}
				}
				if m := message(w.UA(alice), n, alice, ""); m.Status() != 480 && c.bob != 503 {
					t.Errorf("to oneself: %d", m.Status())
				}
			})
		})
	}
	t.Run("PR-17 changed rules count at once", func(t *testing.T) {
		ruled(t, nil, func(w *servertest.World, n *servertest.Node) {
			u := w.UA(bob)
			for i, c := range []struct {
				rules string
				want  int
			}{{"", 403}, {draft, 480}, {ruleset(imRule("a", external(aliceLists, "x"), "allow")), 403}} {
				if c.rules != "" {
					n.Put("im-rules/users/sip:alice@example.com/im-rules.xml", c.rules)
				}
				if m := message(u, n, alice, ""); m.Status() != c.want {
					t.Errorf("step %d: %d, want %d", i, m.Status(), c.want)
				}
			}
			n.Put(aliceLists, lists([]string{"x", bob}))
			if m := message(u, n, alice, ""); m.Status() != 480 {
				t.Errorf("OMA-01 on a list that changed: %d", m.Status())
			}
			n.Put("im-rules/users/alice/im-rules.xml", draft)
			n.Delete("im-rules/users/sip:alice@example.com/im-rules.xml")
			if m := message(w.UA(carol), n, alice, ""); m.Status() != 403 {
				t.Errorf("the document under the short name: %d", m.Status())
			}
			if v := n.Metric(`pa_messages_total{verdict="block"}`); v != 3 {
				t.Errorf("%v blocked", v)
			}
		})
	})
	t.Run("IM-01 a short name is one of the first domain", func(t *testing.T) {
		ruled(t, func(c *server.Config) { c.Domain = append(c.Domain, "example.net") }, func(w *servertest.World, n *servertest.Node) {
			n.Put("im-rules/users/alice/im-rules.xml", draft)
			if m := message(w.UA(bob), n, "sip:alice@example.net", ""); m.Status() != 403 {
				t.Errorf("%d", m.Status())
			}
		})
	})
	t.Run("IM-02 sphere and time", func(t *testing.T) {
		ruled(t, nil, func(w *servertest.World, n *servertest.Node) {
			n.Put("im-rules/users/alice/im-rules.xml", ruleset(imRule("a", `<cr:sphere value="work"/><cr:validity><cr:from>2000-01-01T00:00:00Z</cr:from><cr:until>`+
				time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+`</cr:until></cr:validity>`, "allow")))
			u := w.UA(bob)
			if m := message(u, n, alice, ""); m.Status() != 403 {
				t.Errorf("sphere undefined: %d", m.Status())
			}
			w.UA(alice).Publication(n).Send(`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid" entity="sip:alice@example.com"><dm:person id="p"><r:sphere><r:work/></r:sphere></dm:person></presence>`, 7200)
			if m := message(u, n, alice, ""); m.Status() != 480 {
				t.Errorf("at work: %d", m.Status())
			}
			w.Settle(time.Hour)
			if m := message(u, n, alice, ""); m.Status() != 403 {
				t.Errorf("after hours: %d", m.Status())
			}
		})
	})
	t.Run("CORE-01, CORE-04 order", func(t *testing.T) {
		ruled(t, func(c *server.Config) { c.MessageAuth = "allow" }, func(w *servertest.World, n *servertest.Node) {
			u := w.UA(bob)
			if m := message(u, n, alice, "Require: x\n"); m.Status() != 420 {
				t.Errorf("Require: %d", m.Status())
			}
			if m := message(u, n, "sip:ann@example.org", ""); m.Status() != 404 {
				t.Errorf("another domain: %d", m.Status())
			}
			if m := message(w.UA(anonymous), n, alice, ""); m.Status() != 480 {
				t.Errorf("anonymous, no rules: %d", m.Status())
			}
			m := u.Raw(n.Addr, "OPTIONS "+alice+" SIP/2.0\nVia: {via}\nMax-Forwards: 70\nFrom: <{aor}>;tag={tag}\nTo: <{aor}>\nCall-ID: {callid}\nCSeq: {cseq} OPTIONS\n")
			if !strings.HasSuffix(m.H(sip.HdrAllow), ", MESSAGE") {
				t.Errorf("Allow: %q", m.H(sip.HdrAllow))
			}
			a, b := u.Retransmit(n.Addr, "MESSAGE "+alice+" SIP/2.0\nVia: {via}\nMax-Forwards: 70\nFrom: <{aor}>;tag={tag}\nTo: <"+alice+">\nCall-ID: {callid}\nCSeq: {cseq} MESSAGE\n")
			if string(a.Raw) != string(b.Raw) || n.Metric(`pa_messages_total{verdict="allow"}`) != 2 {
				t.Errorf("CORE-07: a retransmission counts\n%s\n%s", a.Raw, b.Raw)
			}
		})
	})
	t.Run("PR-03 a stranger logs in first", func(t *testing.T) {
		ruled(t, func(c *server.Config) { c.Trust = nil }, func(w *servertest.World, n *servertest.Node) {
			if m := message(w.UA(bob), n, alice, ""); m.Status() != 401 {
				t.Errorf("%d", m.Status())
			}
		})
	})
}
