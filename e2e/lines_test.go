package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"rollcall/e2e/peer"
)

var (
	dialogState   = regexp.MustCompile(`<state[^>]*>([a-z]+)</state>`)
	dialogVersion = regexp.MustCompile(`<dialog-info [^>]*version="([0-9]+)" state="full"`)
)

// dialogInfo checks a dialog information document with full state: it is valid,
// and has the version. It returns the next one.
func dialogInfo(t testing.TB, body []byte, version uint32) uint32 {
	t.Helper()
	peer.ValidateXML(t, "dialog-info", body)
	m := dialogVersion.FindSubmatch(body)
	if m == nil || string(m[1]) != strconv.Itoa(int(version)) {
		t.Errorf("DI-02: not full state of version %d:\n%s", version, body)
	}
	return version + 1
}

// call is what a phone or a proxy says of one call.
func call(uri, id, state string) []byte {
	return fmt.Appendf(nil, `<?xml version="1.0"?>
<dialog-info xmlns="urn:ietf:params:xml:ns:dialog-info" version="17" state="full" entity="%s">
  <dialog id="%s" call-id="%s@pbx.example.com" direction="recipient">
    <state>%s</state>
    <remote><identity display="Caller">sip:caller@example.com</identity><target uri="sip:caller@example.com"/></remote>
  </dialog>
</dialog-info>
`, uri, id, id, state)
}

// TestLampsEndToEnd is a busy lamp field on two servers: a phone subscribes once
// to a list for dialogs with two users of its server and one of another; two
// devices publish a call's states, in order and late.
func TestLampsEndToEnd(t *testing.T) {
	const lines, bob, carol, ann = "sip:lines@example.com", "sip:bob@example.com", "sip:carol@example.com", "sip:ann@example.org"
	for _, transport := range []string{"udp", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			dir := documents(t, map[string]string{"rls-services/global/index": serviceFor("dialog", lines, bob, carol, ann)})
			org := start(t, "--domain", "example.org", "--store", "memory", "--presence-auth", "open")
			com := start(t, "--domain", "example.com", "--store", "sqlite:"+t.TempDir()+"/a.db", "--presence-auth", "allow", "--xcap", dir,
				"--remote", fmt.Sprintf("example.org=sip:%s;transport=%s", org.addr, transport), "--notify-interval", "list=0")
			phone := func(in *instance, aor string) *peer.Sofia {
				return peer.StartSofia(t, peer.SofiaOptions{AOR: aor, Server: in.addr, Transport: transport})
			}
			publish := func(s *peer.Sofia, uri, id, state string) *peer.SofiaPublication {
				t.Helper()
				p, a := s.PublishEvent(uri, "dialog", "application/dialog-info+xml", call(uri, id, state), 600)
				if a.Status != 200 {
					t.Fatalf("PUBLISH %s: %d %s", state, a.Status, a.Phrase)
				}
				return p
			}
			publish(phone(org, ann), ann, "a1", "early")
			desk, proxy := phone(com, bob), phone(com, bob)
			watcher := phone(com, "sip:alice@example.com")
			const accept = "multipart/related, application/rlmi+xml, application/dialog-info+xml"
			sub, a := watcher.Subscribe(peer.SofiaSubscribe{URI: lines, Event: "dialog", Accept: accept, Expires: 600})
			if a.Status != 200 || a.Message.Header("Require") != "eventlist" {
				t.Fatalf("RL-01: SUBSCRIBE: %d, Require %q", a.Status, a.Message.Header("Require"))
			}
			v := newView(t, lines)
			v.apply(sub.WaitNotify(nil, 5*time.Second))
			if !v.full || !v.holds(map[string]string{bob: "active ", carol: "active "}) {
				t.Errorf("first NOTIFY: full %v, %v", v.full, v.state)
			}
			follow(t, v, sub, map[string]string{ann: "active early"})

			one := publish(desk, bob, "b1", "trying")
			follow(t, v, sub, map[string]string{bob: "active trying"})
			two := publish(proxy, bob, "b1", "early")
			follow(t, v, sub, map[string]string{bob: "active early"})
			change := func(p *peer.SofiaPublication, state string) {
				t.Helper()
				if a := p.Modify(call(bob, "b1", state), 600); a.Status != 200 {
					t.Fatalf("PUBLISH %s: %d", state, a.Status)
				}
			}
			change(one, "confirmed")
			follow(t, v, sub, map[string]string{bob: "active confirmed"})
			change(two, "terminated")
			follow(t, v, sub, map[string]string{bob: "active terminated"})
			before := v.next
			change(one, "early") // late
			change(two, "confirmed")
			three := publish(desk, bob, "b1", "trying")
			publish(phone(com, carol), carol, "c1", "confirmed")
			follow(t, v, sub, map[string]string{bob: "active terminated", carol: "active confirmed"})
			if v.next != before+1 {
				t.Errorf("DI-03: late states of a call that ended came in %d NOTIFYs", v.next-before-1)
			}
			for _, p := range []*peer.SofiaPublication{one, two, three} {
				p.Remove()
			}
			if a := sub.Refresh(600); a.Status != 200 {
				t.Fatalf("refresh: %d", a.Status)
			}
			peer.Eventually(t, 10*time.Second, "full state after a refresh", func() bool {
				v.apply(sub.WaitNotify(nil, 10*time.Second))
				return v.full
			})
			if !v.holds(map[string]string{carol: "active confirmed", ann: "active early"}) {
				t.Errorf("full state after a refresh: %v", v.state)
			}

			// A lamp of its own, and its owner's watcher information.
			lamp, a := watcher.Subscribe(peer.SofiaSubscribe{URI: carol, Event: "dialog", Accept: "application/dialog-info+xml", Expires: 600})
			if a.Status != 200 {
				t.Fatalf("SUBSCRIBE: %d", a.Status)
			}
			n := lamp.WaitNotify(nil, 5*time.Second)
			next := dialogInfo(t, n.Body(), 0)
			if want := strings.NewReplacer(`version="17"`, `version="0"`).Replace(string(call(carol, "c1", "confirmed"))); string(n.Body()) != want {
				t.Errorf("one publication passes as it is:\n%s\nwant\n%s", n.Body(), want)
			}
			owner := phone(com, carol)
			info, a := owner.Subscribe(peer.SofiaSubscribe{URI: carol, Event: "dialog.winfo", Accept: "application/watcherinfo+xml", Expires: 600})
			if a.Status != 200 {
				t.Fatalf("SUBSCRIBE dialog.winfo: %d", a.Status)
			}
			if n := info.WaitNotify(nil, 5*time.Second); !strings.Contains(string(n.Body()), `package="dialog"`) || !strings.Contains(string(n.Body()), "sip:alice@example.com") {
				t.Errorf("WI-09: %s", n.Body())
			} else {
				peer.ValidateXML(t, "watcherinfo", n.Body())
			}
			if a := lamp.Unsubscribe(); a.Status != 200 {
				t.Errorf("unsubscribe: %d", a.Status)
			}
			last := lamp.WaitNotify(func(m peer.Trace) bool { return strings.HasPrefix(m.Header("Subscription-State"), "terminated") }, 5*time.Second)
			dialogInfo(t, last.Body(), next)
			if a := sub.Unsubscribe(); a.Status != 200 {
				t.Errorf("unsubscribe: %d", a.Status)
			}
			com.clean()
		})
	}
}

// TestMailboxEndToEnd is message waiting with Sofia-SIP, and a declared package.
func TestMailboxEndToEnd(t *testing.T) {
	const alice, summary = "sip:alice@example.com", "application/simple-message-summary"
	in := start(t, "--domain", "example.com", "--store", "memory", "--packages", "as-feature-event=application/x-as-feature-event+xml")
	s := peer.StartSofia(t, peer.SofiaOptions{AOR: alice, Server: in.addr, Transport: "udp"})
	sub, a := s.Subscribe(peer.SofiaSubscribe{URI: alice, Event: "message-summary", Accept: summary, Expires: 600})
	if a.Status != 200 {
		t.Fatalf("SUBSCRIBE: %d", a.Status)
	}
	if n := sub.WaitNotify(nil, 5*time.Second); string(n.Body()) != "Messages-Waiting: no\r\n" || n.ContentType() != summary {
		t.Errorf("first NOTIFY %q %q", n.ContentType(), n.Body())
	}
	const body = "Messages-Waiting: yes\r\nMessage-Account: sip:alice@vmail.example.com\r\nVoice-Message: 2/8 (0/2)\r\n"
	if _, a := s.PublishEvent(alice, "message-summary", summary, []byte(body), 600); a.Status != 200 {
		t.Fatalf("PUBLISH: %d", a.Status)
	}
	if n := sub.WaitNotify(nil, 5*time.Second); string(n.Body()) != body {
		t.Errorf("MW-01: %q", n.Body())
	}
	sub, a = s.Subscribe(peer.SofiaSubscribe{URI: alice, Event: "as-feature-event", Accept: "application/x-as-feature-event+xml", Expires: 600})
	if a.Status != 200 || !strings.Contains(a.Message.Header("Allow-Events"), "message-summary.winfo, as-feature-event") {
		t.Fatalf("EV-24: SUBSCRIBE: %d, Allow-Events %q", a.Status, a.Message.Header("Allow-Events"))
	}
	sub.WaitNotify(nil, 5*time.Second)
	if _, a := s.PublishEvent(alice, "as-feature-event", "application/x-as-feature-event+xml", []byte("<DoNotDisturbEvent/>"), 600); a.Status != 200 {
		t.Fatalf("PUBLISH: %d", a.Status)
	}
	if n := sub.WaitNotify(nil, 5*time.Second); string(n.Body()) != "<DoNotDisturbEvent/>" {
		t.Errorf("passed on as %q", n.Body())
	}
	in.clean()
}
