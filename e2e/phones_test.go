package e2e

import (
	"strings"
	"testing"
	"time"

	"rollcall/e2e/peer"
)

// TestSIPp: subscribe, notify, refresh, unsubscribe; publish, modify, refresh,
// remove, and an entity-tag that is known no more.
func TestSIPp(t *testing.T) {
	in := start(t, "--domain", "example.com", "--store", "memory", "--presence-auth", "open", "--notify-interval", "presence=0")
	for _, transport := range []string{"udp", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			o := peer.SIPpOptions{Server: in.addr, Transport: transport}
			uri := "sip:sipp-" + transport + "@example.com"
			w := peer.StartWatch(t, peer.WatchOptions{
				SIPpOptions: o, URI: uri, From: "sip:adam@example.com",
				Phases: []peer.WatchPhase{{Expires: 600, Until: "three"}, {Expires: 600}, peer.Unsubscribe()},
			})
			w.WaitNotify(nil, 10*time.Second)
			publish := func(steps ...peer.PublishStep) string {
				t.Helper()
				tag, _ := peer.Publish(t, peer.PublishOptions{SIPpOptions: o, URI: uri, Steps: steps})
				return tag
			}
			// One NOTIFY is answered before the next change: SIPp takes one message a turn.
			tag := publish(peer.PublishStep{Body: pidf(uri, "open", "one"), Expires: 600})
			w.WaitNotify(func(m peer.Trace) bool { return describe(m.Body()) == "open: one" }, 10*time.Second)
			tag = publish(peer.PublishStep{Body: pidf(uri, "closed", "two"), IfMatch: tag, Expires: 600}, peer.PublishStep{Expires: 1200})
			w.WaitNotify(func(m peer.Trace) bool { return describe(m.Body()) == "closed: two" }, 10*time.Second)
			tag = publish(peer.PublishStep{Body: pidf(uri, "open", "three"), IfMatch: tag, Expires: 600})
			all := w.WaitOK()
			publish(peer.PublishStep{IfMatch: tag, Expires: 0})
			publish(peer.PublishStep{IfMatch: tag, Expires: 600, Want: 412})

			var got []string
			for i, n := range peer.Notifies(all) {
				state, p := n.SubscriptionState()
				got = append(got, strings.TrimSpace(state+" "+p["reason"])+" "+describe(n.Body()))
				if n.CSeq() != uint32(i)+peer.Notifies(all)[0].CSeq() {
					t.Errorf("CORE-12: CSeq %d of NOTIFY %d", n.CSeq(), i)
				}
			}
			want := "active closed, active open: one, active closed: two, active open: three, active open: three, terminated timeout open: three"
			if s := strings.Join(got, ", "); s != want {
				t.Errorf("NOTIFYs: %s\nwant %s", s, want)
			}
		})
	}
	in.idle()
}

// TestBaresip: a softphone watches another; the publisher comes, goes and takes
// its state back when it ends, the watcher unsubscribes when it ends.
func TestBaresip(t *testing.T) {
	certs := newCertificates(t)
	in := startOn(t, []string{"tls"}, "--domain", "example.com", "--store", "memory", "--presence-auth", "open", "--notify-interval", "presence=0",
		"--tls-certificate", certs.server)
	for _, transport := range []string{"udp", "tcp", "tls"} {
		t.Run(transport, func(t *testing.T) {
			uri := "sip:baresip-" + transport + "@example.com"
			o := peer.BaresipOptions{AOR: "sip:adam@example.com", Server: in.at[transport], Transport: transport, CA: certs.caFile, Contacts: []string{uri}}
			watcher := peer.StartBaresip(t, o)
			o.AOR, o.Contacts, o.Publish = uri, nil, true
			publisher := peer.StartBaresip(t, o)
			for _, status := range []string{peer.BaresipOnline, peer.BaresipOffline, peer.BaresipOnline} {
				publisher.SetPresence(status)
				watcher.WaitContact(uri, status, 10*time.Second)
			}
			publisher.Quit()
			watcher.WaitContact(uri, peer.BaresipOffline, 10*time.Second)
			sent := peer.Requests(publisher.Trace(), true, "PUBLISH")
			if last := sent[len(sent)-1]; len(sent) != 5 || last.Header("Expires") != "0" || last.Header("SIP-If-Match") == "" {
				t.Errorf("%d PUBLISHes, the last\n%s", len(sent), last.Raw)
			}
			watcher.Quit()
			subscribes := peer.Requests(watcher.Trace(), true, "SUBSCRIBE")
			if last := subscribes[len(subscribes)-1]; len(subscribes) < 2 || last.Header("Expires") != "0" {
				t.Errorf("the last SUBSCRIBE is\n%s", last.Raw)
			}
			in.t = t
			in.idle()
		})
	}
	in.t = t
}
