package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"rollcall/e2e/peer"
)

// rfcDocuments are the RFCs' own example documents as a server's tree, and a
// list of our own that nests one of theirs and has a remote member.
func rfcDocuments(t testing.TB, extra map[string]string) string {
	joe := strings.Replace(string(peer.ReadTestData(t, "rfc", "rfc4826-s3.3-1-resource-lists.xml")), `<list name="friends">`, `<list name="l1">`, 1)
	docs := map[string]string{
		"rls-services/global/index":                       string(peer.ReadTestData(t, "rfc", "rfc4826-s4.3-2-rls-services.xml")),
		"resource-lists/users/sip:joe@example.com/index":  joe,
		"rls-services/users/sip:bill@example.com/index":   string(peer.ReadTestData(t, "rfc", "rfc4825-s13-4-rls-services.xml")),
		"resource-lists/users/sip:bill@example.com/index": string(peer.ReadTestData(t, "rfc", "rfc4825-s13-5-resource-lists.xml")),
		"rls-services/users/sip:adam@example.com/index": service("sip:adam-friends@example.com",
			"sip:joe@example.com", "sip:ann@example.org", "sip:marketing@example.com"),
	}
	for k, v := range extra {
		docs[k] = v
	}
	return documents(t, docs)
}

// follow applies NOTIFYs to a view until it holds what is wanted.
func follow(t testing.TB, v *listView, sub *peer.SofiaSubscription, want map[string]string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !v.holds(want) {
		if time.Now().After(deadline) {
			t.Fatalf("list is %v, want %v", v.state, want)
		}
		v.apply(sub.WaitNotify(nil, time.Until(deadline)))
	}
}

// TestListEndToEnd is the whole path on two servers: a phone (Sofia-SIP)
// subscribes once to a list with local members, a remote member at the other
// server and a nested list; Sofia-SIP, baresip and SIPp publish.
func TestListEndToEnd(t *testing.T) {
	for _, transport := range []string{"udp", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			dir := rfcDocuments(t, nil)
			org := start(t, "--domain", "example.org", "--store", "memory", "--presence-auth", "open")
			com := start(t, "--domain", "example.com", "--store", "sqlite:"+t.TempDir()+"/a.db", "--presence-auth", "open", "--xcap", dir,
				"--xcap-root", "http://xcap.example.com", "--remote", fmt.Sprintf("example.org=sip:%s;transport=%s", org.addr, transport))

			joe := peer.StartSofia(t, peer.SofiaOptions{AOR: "sip:joe@example.com", Server: com.addr, Transport: transport})
			pub, a := joe.Publish("sip:joe@example.com", pidf("sip:joe@example.com", "open", "At my desk"), 600)
			if a.Status != 200 || a.ETag() == "" {
				t.Fatalf("PUBLISH: %d %s", a.Status, a.Phrase)
			}
			sudhir := peer.StartBaresip(t, peer.BaresipOptions{AOR: "sip:sudhir@example.com", Server: com.addr, Transport: transport,
				Contacts: []string{"sip:joe@example.com"}, Publish: true})
			sudhir.SetPresence(peer.BaresipOnline)
			sudhir.WaitContact("sip:joe@example.com", peer.BaresipOnline, 10*time.Second)
			ann := peer.StartPublish(t, peer.PublishOptions{
				SIPpOptions: peer.SIPpOptions{Server: org.addr, Transport: transport}, URI: "sip:ann@example.org",
				Steps: []peer.PublishStep{{Body: pidf("sip:ann@example.org", "open", "In Berlin"), Expires: 600}}})
			ann.WaitOK()

			adam := peer.StartSofia(t, peer.SofiaOptions{AOR: "sip:adam@example.com", Server: com.addr, Transport: transport})
			sub, ans := adam.Subscribe(peer.SofiaSubscribe{URI: "sip:adam-friends@example.com", Expires: 600})
			if ans.Status != 200 || ans.Message.Header("Require") != "eventlist" {
				t.Fatalf("RL-01: SUBSCRIBE: %d, Require %q", ans.Status, ans.Message.Header("Require"))
			}
			v := newView(t, "sip:adam-friends@example.com")
			v.apply(sub.WaitNotify(nil, 5*time.Second))
			first := map[string]string{
				"sip:joe@example.com":                                "active open: At my desk",
				"sip:marketing@example.com":                          "list",
				"sip:marketing@example.com > sip:joe@example.com":    "active open: At my desk",
				"sip:marketing@example.com > sip:sudhir@example.com": "active open",
			}
			if !v.full || !v.holds(first) {
				t.Errorf("first NOTIFY lacks known states: %v", v.state)
			}
			if _, ok := v.state["sip:ann@example.org"]; !ok {
				t.Error("RL-15: the remote member is missing in the first NOTIFY")
			}
			follow(t, v, sub, map[string]string{"sip:ann@example.org": "active open: In Berlin"})

			// One change of a member that is in both lists: one NOTIFY, partial, with both.
			before := v.next
			if a := pub.Modify(pidf("sip:joe@example.com", "closed", "Gone fishing"), 600); a.Status != 200 {
				t.Fatalf("modify: %d", a.Status)
			}
			follow(t, v, sub, map[string]string{
				"sip:joe@example.com":                             "active closed: Gone fishing",
				"sip:marketing@example.com > sip:joe@example.com": "active closed: Gone fishing",
			})
			if v.next != before+1 || v.full || slices.Contains(v.changed, "sip:ann@example.org") {
				t.Errorf("RL-21: change came in %d NOTIFYs, full %v, with %v", v.next-before, v.full, v.changed)
			}
			sudhir.WaitContact("sip:joe@example.com", peer.BaresipOffline, 10*time.Second)
			sudhir.SetPresence(peer.BaresipOffline)
			follow(t, v, sub, map[string]string{"sip:marketing@example.com > sip:sudhir@example.com": "active closed"})

			// The remote member changes at its own server.
			peer.Publish(t, peer.PublishOptions{SIPpOptions: peer.SIPpOptions{Server: org.addr, Transport: transport}, URI: "sip:ann@example.org",
				Steps: []peer.PublishStep{{Body: pidf("sip:ann@example.org", "closed", "Asleep"), Expires: 600}}})
			peer.Eventually(t, 10*time.Second, "the remote change", func() bool {
				v.apply(sub.WaitNotify(nil, 10*time.Second))
				return strings.Contains(v.state["sip:ann@example.org"], "active")
			})

			// The list gains and loses members while it is watched.
			put(t, dir, "rls-services/users/sip:adam@example.com/index", service("sip:adam-friends@example.com",
				"sip:joe@example.com", "sip:nancy@example.com", "sip:marketing@example.com"))
			follow(t, v, sub, map[string]string{"sip:nancy@example.com": "active closed", "sip:ann@example.org": "terminated noresource"})
			peer.Eventually(t, 10*time.Second, "RL-37: the remote subscription ends", func() bool {
				return com.metric("rollcall_dialog_remote_subscriptions") == 0 && org.metric("rollcall_dialog_subscriptions") == 0
			})

			// A refresh brings full state, and the same dialog goes on.
			if a := sub.Refresh(600); a.Status != 200 {
				t.Fatalf("refresh: %d", a.Status)
			}
			peer.Eventually(t, 10*time.Second, "RL-14: full state after a refresh", func() bool {
				v.apply(sub.WaitNotify(nil, 10*time.Second))
				return v.full
			})
			if _, ok := v.state["sip:ann@example.org"]; ok || !v.holds(map[string]string{"sip:joe@example.com": "active closed: Gone fishing"}) {
				t.Errorf("full state after refresh: %v", v.state)
			}
			if a := sub.Unsubscribe(); a.Status != 200 {
				t.Fatalf("unsubscribe: %d", a.Status)
			}
			last := sub.WaitNotify(func(n peer.Trace) bool { s, _ := n.SubscriptionState(); return s == "terminated" }, 10*time.Second)
			v.apply(last) // RL-26: with RLMI
			if _, p := last.SubscriptionState(); p["reason"] != "timeout" || p["expires"] != "" {
				t.Errorf("EV-09: Subscription-State %q", last.Header("Subscription-State"))
			}
			sudhir.Quit()
			adam.Quit()
			joe.Quit()
			com.idle()
			org.idle()
		})
	}
}

// TestSIPpWatchesRFCLists has SIPp subscribe to the RFCs' own lists.
func TestSIPpWatchesRFCLists(t *testing.T) {
	dir := rfcDocuments(t, nil)
	com := start(t, "--domain", "example.com", "--store", "memory", "--presence-auth", "open", "--xcap", dir, "--xcap-root", "http://xcap.example.com")
	peer.Publish(t, peer.PublishOptions{SIPpOptions: peer.SIPpOptions{Server: com.addr}, URI: "sip:joe@example.com",
		Steps: []peer.PublishStep{{Body: pidf("sip:joe@example.com", "open", "Here"), Expires: 600}}})
	for _, transport := range []string{"udp", "tcp"} {
		for uri, want := range map[string][]string{
			"sip:marketing@example.com": {"sip:joe@example.com active open: Here", "sip:sudhir@example.com active closed"},
			// RFC 4826 section 3.3 with a nested <list>; its entry-ref and external lead elsewhere and are left out.
			"sip:mybuddies@example.com": {"sip:bill@example.com active closed", "sip:joe@example.com active open: Here", "sip:nancy@example.com active closed"},
			// RFC 4825 section 13: a reference into another document.
			"sip:myfriends@example.com": {"sip:bob@example.com active closed"},
		} {
			t.Run(transport+" "+uri, func(t *testing.T) {
				all := peer.Watch(t, peer.WatchOptions{
					SIPpOptions: peer.SIPpOptions{Server: com.addr, Transport: transport}, URI: uri, From: "sip:bill@example.com", WantRequire: "eventlist",
					Phases: []peer.WatchPhase{{Expires: 600, Notifies: 1}, {Expires: 600, Notifies: 1}, peer.Unsubscribe()}})
				v := newView(t, uri)
				for _, n := range peer.Notifies(all) {
					v.apply(n)
					if !v.full {
						t.Errorf("RL-14: partial state after a SUBSCRIBE")
					}
					var got []string
					for k, s := range v.state {
						got = append(got, k+" "+s)
					}
					slices.Sort(got)
					if !slices.Equal(got, want) {
						t.Errorf("list is %v, want %v", got, want)
					}
				}
				if v.next != 3 {
					t.Errorf("EV-07: %d NOTIFYs after three SUBSCRIBEs", v.next)
				}
			})
		}
	}
	com.idle()
}

// TestKamailioMember has one member of a list served by Kamailio.
func TestKamailioMember(t *testing.T) {
	k := peer.StartKamailio(t, "example.org")
	dir := documents(t, map[string]string{"rls-services/global/index": service("sip:team@example.com", "sip:joe@example.com", "sip:ann@example.org")})
	com := start(t, "--domain", "example.com", "--store", "memory", "--presence-auth", "open", "--xcap", dir, "--remote", "example.org=sip:"+k.Addr)
	ann := peer.StartSofia(t, peer.SofiaOptions{AOR: "sip:ann@example.org", Server: k.Addr})
	pub, a := ann.Publish("sip:ann@example.org", pidf("sip:ann@example.org", "open", "At Kamailio"), 600)
	if a.Status != 200 {
		t.Fatalf("PUBLISH to Kamailio: %d", a.Status)
	}
	adam := peer.StartSofia(t, peer.SofiaOptions{AOR: "sip:adam@example.com", Server: com.addr})
	sub, ans := adam.Subscribe(peer.SofiaSubscribe{URI: "sip:team@example.com", Expires: 600})
	if ans.Status != 200 {
		t.Fatalf("SUBSCRIBE: %d", ans.Status)
	}
	v := newView(t, "sip:team@example.com")
	follow(t, v, sub, map[string]string{"sip:joe@example.com": "active closed", "sip:ann@example.org": "active open: At Kamailio"})
	if a := pub.Modify(pidf("sip:ann@example.org", "closed", "Lunch"), 600); a.Status != 200 {
		t.Fatalf("modify: %d", a.Status)
	}
	follow(t, v, sub, map[string]string{"sip:ann@example.org": "active closed: Lunch"})

	// RL-31: the subscription there is in the watcher's name.
	for _, m := range peer.Requests(k.Trace(), false, "SUBSCRIBE") {
		if !strings.Contains(m.Header("From"), "sip:adam@example.com") {
			t.Errorf("RL-31: From at Kamailio is %q", m.Header("From"))
		}
	}
	if a := sub.Unsubscribe(); a.Status != 200 {
		t.Fatalf("unsubscribe: %d", a.Status)
	}
	k.WaitTrace(10*time.Second, "RL-37: Kamailio is unsubscribed from", func(all []peer.Trace) bool {
		return slices.ContainsFunc(peer.Requests(all, false, "SUBSCRIBE"), func(m peer.Trace) bool { return m.Header("Expires") == "0" })
	})
	com.idle()
}

// TestRemoteServerDown: while the remote server is away its members say so and
// stay listed; when it is back their state arrives without anybody's doing.
func TestRemoteServerDown(t *testing.T) {
	k := peer.StartKamailio(t, "example.org")
	k.Stop()
	dir := documents(t, map[string]string{"rls-services/global/index": service("sip:team@example.com", "sip:joe@example.com", "sip:ann@example.org")})
	com := start(t, "--domain", "example.com", "--store", "memory", "--presence-auth", "open", "--xcap", dir,
		"--remote", "example.org=sip:"+k.Addr+";transport=tcp")
	adam := peer.StartSofia(t, peer.SofiaOptions{AOR: "sip:adam@example.com", Server: com.addr})
	sub, ans := adam.Subscribe(peer.SofiaSubscribe{URI: "sip:team@example.com", Expires: 600})
	if ans.Status != 200 {
		t.Fatalf("SUBSCRIBE: %d", ans.Status)
	}
	v := newView(t, "sip:team@example.com")
	follow(t, v, sub, map[string]string{"sip:joe@example.com": "active closed", "sip:ann@example.org": "terminated probation"})
	k.Restart()
	ann := peer.StartSofia(t, peer.SofiaOptions{AOR: "sip:ann@example.org", Server: k.Addr})
	if _, a := ann.Publish("sip:ann@example.org", pidf("sip:ann@example.org", "open", "Back"), 600); a.Status != 200 {
		t.Fatalf("PUBLISH to Kamailio: %d", a.Status)
	}
	deadline := time.Now().Add(50 * time.Second) // retries come after 5, 15 and 35 s, give or take a fifth
	for v.state["sip:ann@example.org"] != "active open: Back" && time.Now().Before(deadline) {
		v.apply(sub.WaitNotify(nil, time.Until(deadline)))
	}
	if v.state["sip:ann@example.org"] != "active open: Back" {
		t.Errorf("RL-36: the member is %q after its server came back", v.state["sip:ann@example.org"])
	}
	sub.Unsubscribe()
	com.idle()
}
