package pa_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/pa/winfo"
	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sip"
	"rollcall/xcapclient"
)

const aliceRules = "pres-rules/users/sip:alice@example.com/index"

// rules is a pres-rules document.
func rules(rule ...string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>
<cr:ruleset xmlns:cr="urn:ietf:params:xml:ns:common-policy" xmlns:pr="urn:ietf:params:xml:ns:pres-rules">` + strings.Join(rule, "") + `</cr:ruleset>`
}

// everything is a transformation that hides nothing.
const everything = `<pr:provide-services><pr:all-services/></pr:provide-services><pr:provide-persons><pr:all-persons/></pr:provide-persons>` +
	`<pr:provide-devices><pr:all-devices/></pr:provide-devices><pr:provide-all-attributes/>`

func rule(id, conditions, handling, transformations string) string {
	return `<cr:rule id="` + id + `"><cr:conditions>` + conditions + `</cr:conditions><cr:actions><pr:sub-handling>` + handling +
		`</pr:sub-handling></cr:actions><cr:transformations>` + transformations + `</cr:transformations></cr:rule>`
}

func one(uri string) string { return `<cr:identity><cr:one id="` + uri + `"/></cr:identity>` }

func mode(m string) func(*server.Config) {
	return func(c *server.Config) { c.PresenceAuth = m }
}

// confirmed runs f with a server where only rules give access.
func confirmed(t *testing.T, f func(w *servertest.World, n *servertest.Node)) {
	t.Helper()
	world(t, mode("confirm"), f)
}

// PR-05 to PR-08, PR-10: what a new watcher gets, by its rule.
func TestSubHandling(t *testing.T) {
	for _, c := range []struct {
		name, rules, mode string
		status            int
		state, text       string
	}{
		{"PR-07 allow", rules(rule("a", one(bob), "allow", everything)), "confirm", 200, "active", "open: here"},
		{"PR-08 confirm", rules(rule("a", one(bob), "confirm", everything)), "allow", 200, "pending", ""},
		{"PR-10 polite-block", rules(rule("a", one(bob), "polite-block", everything)), "allow", 200, "active", "closed"},
		{"PR-06 block", rules(rule("a", one(bob), "block", everything)), "allow", 403, "", ""},
		{"PR-05 max wins", rules(rule("a", one(bob), "block", ""), rule("b", one(bob), "allow", everything), rule("c", one(bob), "confirm", "")), "block", 200, "active", "open: here"},
		{"CP-01 unknown condition is false", rules(rule("a", `<x:moon xmlns:x="urn:x"/>`, "allow", everything)), "confirm", 200, "pending", ""},
		{"CP-02 no condition is everybody", rules(rule("a", "", "allow", everything)), "confirm", 200, "active", "open: here"},
		{"PR-11 allow without transformations shows nothing", rules(rule("a", one(bob), "allow", "")), "confirm", 200, "active", ""},
		{"PA-03 no rules, confirm", "", "confirm", 200, "pending", ""},
		{"PA-03 no rules, allow", "", "allow", 200, "active", "open: here"},
		{"PA-03 no rules, block", "", "block", 403, "", ""},
		{"open reads no rules", rules(rule("a", one(bob), "block", "")), "open", 200, "active", "open: here"},
		{"PR-18 a document that is not understood gives less", "<ruleset/>", "allow", 200, "pending", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			world(t, mode(c.mode), func(w *servertest.World, n *servertest.Node) {
				if c.rules != "" {
					n.Put(aliceRules, c.rules)
				}
				synctest.Wait()
				p := w.UA(alice).Publication(n)
				p.Say("open", "here")
				sub := w.UA(bob).Dialog(n, alice)
				if m := sub.Subscribe(600); m.Status() != c.status {
					t.Fatalf("SUBSCRIBE: %d, want %d", m.Status(), c.status)
				}
				if c.status != 200 {
					sub.Quiet(10*time.Second, "no NOTIFY without a dialog")
					n.CheckIdle()
					return
				}
				got := sub.Next()
				if got.State != c.state || got.Text() != c.text {
					t.Errorf("first NOTIFY is %s %q, want %s %q", got.State, got.Text(), c.state, c.text)
				}
				if c.state == "pending" && len(got.Body()) > 0 {
					t.Errorf("PR-08: a pending NOTIFY has a body\n%s", got.Body())
				}
				p.Say("closed", "gone")
				if c.text == "open: here" {
					if got := sub.Next().Text(); got != "closed: gone" {
						t.Errorf("change: %q", got)
					}
				}
				sub.Quiet(10*time.Second, "no change that this watcher may see")
				sub.Unsubscribe()
				n.CheckIdle()
			})
		})
	}
}

// PR-17, PR-09: a change of the rules acts on live subscriptions at once, in
// every direction.
func TestRulesChange(t *testing.T) {
	confirmed(t, func(w *servertest.World, n *servertest.Node) {
		p := w.UA(alice).Publication(n)
		p.Say("open", "here")
		sub := w.UA(bob).Watch(n, alice)
		if got := sub.Next(); got.State != "pending" {
			t.Errorf("PA-03: %s, want pending", got.State)
		}
		step := func(what, handling, transformations, state, text string) {
			t.Helper()
			at := time.Now()
			n.Put(aliceRules, rules(rule("a", one(bob), handling, transformations)))
			got := sub.Next()
			if got.State != state || got.Text() != text {
				t.Errorf("PR-17 %s: %s %q, want %s %q", what, got.State, got.Text(), state, text)
			}
			if d := got.At.Sub(at); d > time.Second {
				t.Errorf("PR-17 %s: told after %v", what, d)
			}
		}
		step("approved", "allow", everything, "active", "open: here")
		step("to confirm (PR-09)", "confirm", everything, "pending", "")
		p.Say("open", "secret")
		sub.Quiet(10*time.Second, "PR-09: no document while pending")
		step("approved again", "allow", everything, "active", "open: secret")
		step("note taken away", "allow", `<pr:provide-services><pr:all-services/></pr:provide-services>`, "active", "open")
		step("polite-block", "polite-block", everything, "active", "closed")
		n.Put(aliceRules, rules(rule("other-id", one(bob), "polite-block", everything)))
		sub.Quiet(10*time.Second, "rules that decide the same tell nobody")
		step("allowed", "allow", everything, "active", "open: secret")
		n.Delete(aliceRules)
		if got := sub.Next(); got.State != "pending" || len(got.Body()) > 0 {
			t.Errorf("PR-17 rules deleted: %s %q", got.State, got.Text())
		}
		n.Put(aliceRules, rules(rule("a", one(bob), "block", "")))
		if got := sub.Last("rejected"); len(got.Body()) > 0 {
			t.Errorf("PR-06: the last NOTIFY has a body\n%s", got.Body())
		}
		if m := sub.Refresh(); m.Status() != 481 {
			t.Errorf("refresh after the end: %d, want 481", m.Status())
		}
		n.CheckIdle()
	})
}

// CP-06: a window opens and closes by time alone, also one that is far away.
func TestValidityWindow(t *testing.T) {
	confirmed(t, func(w *servertest.World, n *servertest.Node) {
		start := time.Now()
		from, until := start.Add(20*time.Minute), start.Add(50*time.Minute)
		window := fmt.Sprintf(`<cr:validity><cr:from>%s</cr:from><cr:until>%s</cr:until></cr:validity>`, from.Format(time.RFC3339), until.Format(time.RFC3339))
		n.Put(aliceRules, rules(rule("a", one(bob)+window, "allow", everything)))
		w.UA(alice).Publication(n).Say("open", "here")
		sub := w.UA(bob).Watch(n, alice)
		if got := sub.Next(); got.State != "pending" {
			t.Errorf("before the window: %s", got.State)
		}
		sub.Quiet(20*time.Minute-time.Second, "CP-06: before the window")
		if got := sub.Next(); got.State != "active" || got.Text() != "open: here" || got.At.Before(from) || got.At.After(from.Add(time.Second)) {
			t.Errorf("CP-06: the window opens with %s %q at %v, want %v", got.State, got.Text(), got.At, from)
		}
		sub.Quiet(30*time.Minute-time.Second, "CP-06: within the window")
		if got := sub.Next(); got.State != "pending" || got.At.Before(until) || got.At.After(until.Add(time.Second)) {
			t.Errorf("CP-06: the window closes with %s at %v, want %v", got.State, got.At, until)
		}
	})
}

func sphereDoc(sphere string) string {
	return `<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid" entity="` + alice + `">` +
		`<tuple id="t"><status><basic>open</basic></status></tuple><dm:person id="p"><r:sphere><r:` + sphere + `/></r:sphere></dm:person></presence>`
}

// PR-04: what is published decides which rules apply.
func TestSphere(t *testing.T) {
	atWork := rules(rule("a", one(bob)+`<cr:sphere value="work"/>`, "allow", everything))
	t.Run("published before the watcher comes", func(t *testing.T) {
		confirmed(t, func(w *servertest.World, n *servertest.Node) {
			n.Put(aliceRules, atWork)
			w.UA(alice).Publication(n).Send(sphereDoc("work"), 600)
			if got := w.UA(bob).Watch(n, alice).Next(); got.State != "active" {
				t.Errorf("PR-04: %s, want active", got.State)
			}
		})
	})
	t.Run("changes", func(t *testing.T) {
		confirmed(t, func(w *servertest.World, n *servertest.Node) {
			n.Put(aliceRules, atWork)
			p, second := w.UA(alice).Publication(n), w.UA(alice).Publication(n)
			p.Send(sphereDoc("home"), 600)
			sub := w.UA(bob).Watch(n, alice)
			if got := sub.Next(); got.State != "pending" {
				t.Errorf("at home: %s", got.State)
			}
			p.Send(sphereDoc("work"), 600)
			if got := sub.Next(); got.State != "active" || got.Text() != "open" {
				t.Errorf("PR-04 at work: %s %q", got.State, got.Text())
			}
			second.Send(sphereDoc("home"), 600)
			if got := sub.Next(); got.State != "pending" {
				t.Errorf("PR-04: publications disagree: %s", got.State)
			}
			for _, got := range sub.All() {
				if got.State == "pending" && len(got.Body()) > 0 {
					t.Errorf("PR-09: pending with a document")
				}
				if strings.Contains(string(got.Body()), "home") {
					t.Errorf("PR-04: a document for another sphere was shown\n%s", got.Body())
				}
			}
			second.Send("", 0)
			if got := sub.Next(); got.State != "active" {
				t.Errorf("PR-04: publications agree again: %s", got.State)
			}
		})
	})
}

// PR-10: the document of a polite block is that of a presentity of whom nothing
// is published, byte for byte, at all times, and no change shows through.
func TestPoliteBlock(t *testing.T) {
	confirmed(t, func(w *servertest.World, n *servertest.Node) {
		n.Put(aliceRules, rules(rule("a", one(bob), "polite-block", everything)))
		n.Put("pres-rules/users/sip:carol@example.com/index", rules(rule("a", one(bob), "allow", everything)))
		p := w.UA(alice).Publication(n)
		sub := w.UA(bob).Watch(n, alice)
		first := string(sub.Next().Body())
		really := string(w.UA(bob).Watch(n, "sip:carol@example.com").Next().Body())
		if first != strings.ReplaceAll(really, "carol", "alice") {
			t.Errorf("PR-10: %q is not what offline looks like: %q", first, really)
		}
		p.Say("open", "here")
		sub.Quiet(10*time.Second, "PR-10: no NOTIFY on a real change")
		if sub.Refresh(); string(sub.Next().Body()) != first {
			t.Errorf("PR-10: refresh shows another document")
		}
		poll := w.UA(bob).Dialog(n, alice)
		poll.MustSubscribe(0)
		if got := poll.Last("timeout"); string(got.Body()) != first {
			t.Errorf("PR-10: poll shows another document\n%s", got.Body())
		}
		p.Send("", 0)
		sub.Quiet(10*time.Second, "PR-10: no NOTIFY on a real change")
		sub.Unsubscribe()
	})
}

// The presentity sees itself, whatever its rules say, and so does nobody else.
func TestSelfSubscription(t *testing.T) {
	world(t, mode("block"), func(w *servertest.World, n *servertest.Node) {
		u := w.UA(alice)
		u.Publication(n).Say("open", "me")
		if got := u.Watch(n, alice).Next(); got.Text() != "open: me" {
			t.Errorf("self: %q", got.Text())
		}
		if m := w.UA("sip:ALICE@example.com").Dialog(n, alice).Subscribe(600); m.Status() != 403 {
			t.Errorf("CORE-26: user parts differ by case: %d, want 403", m.Status())
		}
	})
}

// EV-04: a watcher must take the document.
func TestAccept(t *testing.T) {
	for _, c := range []struct {
		event, accept string
		status        int
	}{
		{"presence", "", 200}, {"presence", "Accept: */*\n", 200}, {"presence", "Accept: application/*;q=0.5\n", 200},
		{"presence", "Accept: text/plain, application/cpim-pidf+xml;q=0.2, APPLICATION/PIDF+XML\n", 200}, {"presence", "Accept: text/plain\nAccept: application/pidf+xml\n", 200},
		{"presence", "Accept: text/plain\n", 406}, {"presence", "Accept: application/pidf+xml;q=0.0\n", 406},
		{"presence.winfo", "Accept: application/pidf+xml\n", 406}, {"presence.winfo", "Accept: application/watcherinfo+xml\n", 200},
	} {
		t.Run(c.event+" "+strings.TrimSpace(c.accept), func(t *testing.T) {
			world(t, nil, func(w *servertest.World, n *servertest.Node) {
				sub := w.UA(alice).Dialog(n, alice)
				sub.Event, sub.Headers = c.event, c.accept
				if m := sub.Subscribe(600); m.Status() != c.status || c.status == 406 && m.H(sip.HdrAccept) == "" {
					t.Errorf("EV-04: %d with Accept %q, want %d", m.Status(), m.H(sip.HdrAccept), c.status)
				}
				if c.status == 406 {
					n.CheckIdle()
				}
				if v := n.Metric("pa_presentities"); c.status == 406 && v != 0 {
					t.Errorf("a refused watcher leaves %v presentities", v)
				}
			})
		})
	}
}

// faulty is a source whose rules cannot be read while err is set, and are read
// slowly while gate is.
type faulty struct {
	mu   sync.Mutex
	err  error
	gate chan struct{}
	body string

	changed func([]string)
}

// Run implements xcapclient.Runner.
func (f *faulty) Run(ctx context.Context, changed func([]string)) error {
	f.mu.Lock()
	f.changed = changed
	f.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (f *faulty) set(err error, body string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.body = err, body
}

func (f *faulty) signal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed([]string{aliceRules})
}

func (f *faulty) Document(ctx context.Context, selector string) (xcapclient.Document, error) {
	f.mu.Lock()
	err, body, gate := f.err, f.body, f.gate
	if selector != aliceRules {
		gate = nil
	}
	f.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return xcapclient.Document{}, ctx.Err()
		}
	}
	switch {
	case !strings.HasPrefix(selector, "pres-rules/"), err == nil && body == "":
		return xcapclient.Document{}, fs.ErrNotExist
	case err != nil:
		return xcapclient.Document{}, err
	}
	return xcapclient.Document{Selector: selector, Body: []byte(body), ETag: xcapclient.ContentTag([]byte(body))}, nil
}

func (f *faulty) Selectors(context.Context, string) ([]string, error) { return nil, nil }

// PR-18: rules that cannot be read give less, never more, and are read again.
func TestRulesUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		src := &faulty{}
		allow := rules(rule("a", `<cr:identity><cr:many/></cr:identity>`, "allow", everything))
		src.set(nil, allow)
		n := w.Node("192.0.2.1", mode("allow"), server.WithSource(src))
		w.UA(alice).Publication(n).Say("open", "here")
		early := w.UA(bob).Watch(n, alice)
		if got := early.Next(); got.State != "active" {
			t.Errorf("readable: %s", got.State)
		}
		src.set(errors.New("server unreachable"), "")
		src.signal()
		early.Quiet(10*time.Second, "PR-18: who was let in stays as it is")
		late := w.UA("sip:carol@example.com").Watch(n, alice)
		if got := late.Next(); got.State != "pending" || len(got.Body()) > 0 {
			t.Errorf("PR-18: %s %q, want pending although the default is allow", got.State, got.Text())
		}
		late.Quiet(5*time.Minute, "PR-18: as long as they are not readable")
		src.set(nil, rules(rule("a", one(bob), "block", ""), rule("b", one("sip:carol@example.com"), "allow", everything)))
		w.Settle(5 * time.Minute)
		if got := late.Next(); got.State != "active" || got.Text() != "open: here" {
			t.Errorf("rules readable again: %s %q", got.State, got.Text())
		}
		early.Last("rejected")
	})
}

// EV-14: rules that cannot be read for a long time do not keep a SUBSCRIBE
// waiting for as long: the watcher is pending.
func TestRulesHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		src := &faulty{gate: make(chan struct{})}
		n := w.Node("192.0.2.1", mode("allow"), server.WithSource(src))
		at := time.Now()
		sub := w.UA(bob).Watch(n, alice)
		if got := sub.Next(); got.State != "pending" || got.At.Sub(at) > 10*time.Second {
			t.Errorf("EV-14, PR-18: %s after %v", got.State, got.At.Sub(at))
		}
		close(src.gate)
		w.Settle(2 * time.Minute)
		if got := sub.Next(); got.State != "active" || got.Text() != "closed" {
			t.Errorf("rules readable: %s %q", got.State, got.Text())
		}
	})
}

// PR-17: rules that change while they are being read are read again.
func TestRulesChangeWhileRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		src := &faulty{gate: make(chan struct{})}
		src.set(nil, rules(rule("a", one(bob), "allow", everything)))
		n := w.Node("192.0.2.1", mode("confirm"), server.WithSource(src))
		w.UA(alice).Publication(n).Say("open", "here")
		sub := w.UA(bob).Dialog(n, alice)
		answer := make(chan int)
		go func() { answer <- sub.Subscribe(600).Status() }()
		synctest.Wait() // the old rules are on their way
		src.set(nil, rules(rule("a", one(bob), "block", "")))
		src.signal()
		synctest.Wait()
		close(src.gate)
		status := <-answer
		w.Settle(10 * time.Second)
		if status == 200 {
			sub.Last("rejected")
		} else if status != 403 {
			t.Errorf("SUBSCRIBE: %d, want 403 or a rejected NOTIFY", status)
		}
		n.CheckIdle()
	})
}

// Many publications of one presentity: beyond the limit no more.
func TestTooManyPublications(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		u := w.UA(alice)
		var last *servertest.Publication
		for range 64 {
			last = u.Publication(n)
			last.Say("open", "x")
		}
		m := u.Publication(n).Send(servertest.PIDF(alice, "open", "one too many"), 600)
		if m.Status() != 503 || m.H(sip.HdrRetryAfter) == "" {
			t.Errorf("PUB-11: %d with Retry-After %q, want 503", m.Status(), m.H(sip.HdrRetryAfter))
		}
		last.Say("open", "y")
	})
}

// winfoOf reads a watcher information document as "status event uri" by id.
func winfoOf(t *testing.T, n *servertest.Notify, version uint32) map[string]winfo.Watcher {
	t.Helper()
	d, err := winfo.Parse(n.Body())
	if err != nil {
		t.Fatalf("%v\n%s", err, n.Body())
	}
	if d.Version != version || !d.Full || len(d.Lists) != 1 || d.Lists[0].Resource != alice || d.Lists[0].Package != "presence" {
		t.Errorf("WI-08: version %d (want %d), full %v, lists %v", d.Version, version, d.Full, d.Lists)
	}
	out := make(map[string]winfo.Watcher)
	for _, x := range d.Lists[0].Watchers {
		if _, dup := out[x.URI]; dup {
			t.Errorf("WI-09: %s is listed twice\n%s", x.URI, n.Body())
		}
		out[x.URI] = x
	}
	return out
}

// WI-03, WI-08 to WI-10: the owner sees who watches.
func TestWatcherInfo(t *testing.T) {
	confirmed(t, func(w *servertest.World, n *servertest.Node) {
		watch := func(aor string) *servertest.Sub {
			s := w.UA(aor).Dialog(n, alice)
			s.Event, s.Headers = "presence.winfo", ""
			return s
		}
		if m := watch(bob).Subscribe(600); m.Status() != 403 {
			t.Errorf("WI-03: somebody else gets %d, want 403", m.Status())
		}
		own := watch(alice)
		own.MustSubscribe(3600)
		version := uint32(0)
		next := func() map[string]winfo.Watcher {
			t.Helper()
			m := winfoOf(t, own.Next(), version)
			version++
			return m
		}
		if m := next(); len(m) != 0 {
			t.Errorf("nobody watches: %v", m)
		}
		sub := w.UA(bob).Watch(n, alice)
		got := next()[bob]
		if got.Status != "pending" || got.Event != "subscribe" || got.ID == "" {
			t.Errorf("WI-04: new watcher is %+v", got)
		}
		n.Put(aliceRules, rules(rule("a", one(bob), "allow", everything)))
		if m := next()[bob]; m.ID != got.ID || m.Status != "active" || m.Event != "approved" {
			t.Errorf("WI-09: approved watcher is %+v, before %+v", m, got)
		}
		w.UA(alice).Publication(n).Say("open", "here")
		own.Quiet(10*time.Second, "a publication changes no watcher")
		n.Put(aliceRules, rules(rule("b", one(bob), "allow", everything)))
		own.Quiet(10*time.Second, "rules that decide the same change no watcher")
		own.Refresh()
		if m := next()[bob]; m.ID != got.ID || m.Status != "active" {
			t.Errorf("WI-08: after a refresh %+v", m)
		}
		n.Put(aliceRules, rules(rule("b", one(bob), "block", everything)))
		if m := next()[bob]; m.ID != got.ID || m.Status != "terminated" || m.Event != "rejected" {
			t.Errorf("WI-10: rejected watcher is %+v", m)
		}
		sub.Last("rejected")
		if m := w.UA(bob).Dialog(n, alice).Subscribe(600); m.Status() != 403 {
			t.Errorf("blocked: %d", m.Status())
		}
		own.Quiet(10*time.Second, "WI-06: a refused watcher is nobody's news")
		n.Delete(aliceRules)
		again := w.UA(bob).Watch(n, alice)
		m := next()
		if x := m[bob]; x.Status != "pending" || x.ID == got.ID {
			t.Errorf("WI-09: a new subscription is %+v, before %+v", x, got)
		}
		carol := w.UA("sip:carol@example.com").Watch(n, alice)
		if m := next(); len(m) != 2 || m["sip:carol@example.com"].Status != "pending" {
			t.Errorf("two watchers: %v", m)
		}
		again.Unsubscribe()
		if m := next()[bob]; m.Status != "terminated" || m.Event != "timeout" {
			t.Errorf("WI-10: gone watcher is %+v", m)
		}
		own.Refresh()
		if m := next(); len(m) != 1 {
			t.Errorf("WI-10: gone watchers are reported once: %v", m)
		}
		carol.Unsubscribe()
		next()
		if got := own.Unsubscribe(); len(got.Body()) > 0 {
			winfoOf(t, got, version)
		}
		n.CheckIdle()
		if v := n.Metric("pa_presentities"); v != 1 { // alice publishes
			t.Errorf("%v presentities", v)
		}
	})
}

// gate is a source of rules that cannot be read until it is opened.
type gate struct {
	xcapclient.Source
	open chan struct{}
}

func (g gate) Document(ctx context.Context, selector string) (xcapclient.Document, error) {
	if strings.HasPrefix(selector, "pres-rules/") {
		<-g.open
	}
	return xcapclient.Document{}, fs.ErrNotExist
}
func (gate) Selectors(context.Context, string) ([]string, error) { return nil, nil }
func (gate) Refresh(context.Context) ([]string, error)           { return nil, nil }
func (gate) Run(ctx context.Context, _ func([]string)) error     { <-ctx.Done(); return nil }

// WI-08: a watcher that was reported as pending while its rules were read is
// reported again when they say otherwise.
func TestWatcherInfoWhileRulesAreRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate{open: make(chan struct{})}
		w := servertest.New(t)
		n := w.Node("192.0.2.1", mode("allow"), server.WithSource(g))
		sub := w.UA(bob).Dialog(n, alice)
		answer := make(chan int, 1)
		go func() { answer <- sub.Subscribe(600).Status() }()
		w.Settle(time.Second)
		own := w.UA(alice).Dialog(n, alice)
		own.Event, own.Headers = "presence.winfo", ""
		own.MustSubscribe(600)
		for _, m := range winfoOf(t, own.Next(), 0) {
			if m.Status != winfo.Pending {
				t.Errorf("WI-08: %+v while the rules are read", m)
			}
		}
		close(g.open)
		if st := <-answer; st != 200 {
			t.Fatalf("SUBSCRIBE: %d", st)
		}
		got := winfoOf(t, own.Next(), 1)
		if len(got) != 1 {
			t.Errorf("WI-08: %v", got)
		}
		for _, m := range got {
			if m.Status != winfo.Active {
				t.Errorf("WI-08: %+v after the rules allowed it", m)
			}
		}
	})
}
