package peer

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	domain = "remote.example"
	bob    = "sip:bob@" + domain
	alice  = "sip:alice@" + domain
	soon   = 10 * time.Second
)

var transports = []string{"udp", "tcp"}

// presence is a PIDF document as a client would publish it.
func presence(uri, basic, note string) []byte {
	return fmt.Appendf(nil, `<?xml version="1.0" encoding="UTF-8"?>
<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="%s"><tuple id="t1"><status><basic>%s</basic></status><note>%s</note></tuple></presence>
`, uri, basic, note)
}

func has(text string) func(Trace) bool {
	return func(m Trace) bool { return bytes.Contains(m.Body(), []byte(text)) }
}

func state(want string) func(Trace) bool {
	return func(m Trace) bool {
		got, _ := m.SubscriptionState()
		return got == want
	}
}

func TestKamailio(t *testing.T) {
	k := StartKamailio(t, domain)
	tag, _ := Publish(t, PublishOptions{
		SIPpOptions: SIPpOptions{Server: k.Addr}, URI: bob,
		Steps: []PublishStep{{Body: presence(bob, "open", "here"), Expires: 60}},
	})
	all := k.WaitTrace(soon, "the PUBLISH and its answer", func(all []Trace) bool { return len(all) >= 2 })
	if len(all) != 2 || all[0].Sent || !all[0].IsRequest("PUBLISH") || !all[1].Sent || all[1].Status() != 200 {
		t.Errorf("trace is %+v", all)
	}
	if got := all[1].Header("sip-etag"); got == "" || got != tag {
		t.Errorf("entity-tag %q in the trace, %q at the client", got, tag)
	}

	k.Pause()
	if pingUDP(k.Addr) {
		t.Error("a paused server answers")
	}
	k.Resume()
	Eventually(t, soon, "an answer after Resume", func() bool { return pingUDP(k.Addr) })

	addr := k.Addr
	k.Stop()
	if pingUDP(addr) || dialTCP(addr) {
		t.Error("a stopped server answers")
	}
	k.Restart()
	if k.Addr != addr {
		t.Errorf("restarted on %s, was on %s", k.Addr, addr)
	}
	Publish(t, PublishOptions{
		SIPpOptions: SIPpOptions{Server: k.Addr}, URI: bob,
		Steps: []PublishStep{{IfMatch: tag, Expires: 60, Want: 412}},
	})
	// Old and new records are one trace.
	k.WaitTrace(soon, "two PUBLISHes", func(all []Trace) bool { return len(Requests(all, false, "PUBLISH")) == 2 })
}

func TestSIPp(t *testing.T) {
	k := StartKamailio(t, domain)
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			o := SIPpOptions{Server: k.Addr, Transport: transport}
			uri := "sip:sipp-" + transport + "@" + domain
			w := StartWatch(t, WatchOptions{
				SIPpOptions: o, URI: uri, From: alice,
				Phases: []WatchPhase{{Expires: 60, Until: "[[]two]"}, {Expires: 70}, Unsubscribe()},
			})
			if m := w.WaitNotify(nil, soon); len(m.Body()) != 0 || m.Header("Event") != "presence" {
				t.Errorf("first NOTIFY:\n%s", m.Raw)
			}
			// One step at a time: Kamailio does not wait for the answer to a NOTIFY before it sends the next.
			tag, _ := Publish(t, PublishOptions{SIPpOptions: o, URI: uri, Steps: []PublishStep{
				{Body: presence(uri, "open", "[one] \\ ]]"), Expires: 60},
			}})
			w.WaitNotify(has("[one]"), soon)
			tag, trace := Publish(t, PublishOptions{SIPpOptions: o, URI: uri, Steps: []PublishStep{
				{Body: presence(uri, "closed", "[two]"), IfMatch: tag, Expires: 60},
			}})
			all := w.WaitOK()
			if n := len(Requests(all, true, "SUBSCRIBE")); n != 3 {
				t.Errorf("%d SUBSCRIBEs, want 3", n)
			}
			notifies := Notifies(all)
			if last := notifies[len(notifies)-1]; !state("terminated")(last) {
				t.Errorf("last NOTIFY:\n%s", last.Raw)
			}
			if sent := Requests(trace, true, "PUBLISH"); !bytes.Equal(sent[0].Body(), presence(uri, "closed", "[two]")) {
				t.Errorf("the body was not sent as it is:\n%s", sent[0].Raw)
			}

			_, trace = Publish(t, PublishOptions{SIPpOptions: o, URI: uri, Steps: []PublishStep{
				{IfMatch: tag, Expires: 90},
				{Body: presence(uri, "open", "three"), Expires: 60},
				{Expires: 0},
				{IfMatch: tag, Expires: 90, Want: 412},
			}})
			var tags []string
			for _, m := range Responses(trace, false, "PUBLISH")[:3] {
				tags = append(tags, m.Header("SIP-ETag"))
			}
			for i, m := range Requests(trace, true, "PUBLISH")[1:3] {
				if got := m.Header("SIP-If-Match"); got != tags[i] {
					t.Errorf("step %d: SIP-If-Match %q, want %q", i+2, got, tags[i])
				}
			}
			Watch(t, WatchOptions{SIPpOptions: o, URI: uri, From: alice, Event: "nothing", Phases: []WatchPhase{{Want: 489}}})
		})
	}
}

func TestSofia(t *testing.T) {
	k := StartKamailio(t, domain)
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			uri := "sip:sofia-" + transport + "@" + domain
			publisher := StartSofia(t, SofiaOptions{AOR: uri, Server: k.Addr, Transport: transport})
			watcher := StartSofia(t, SofiaOptions{AOR: alice, Server: k.Addr, Transport: transport})
			sub, a := watcher.Subscribe(SofiaSubscribe{URI: uri})
			if a.Status != 200 {
				t.Fatalf("SUBSCRIBE: %d %s", a.Status, a.Phrase)
			}
			sub.WaitNotify(state("active"), soon)

			pub, a := publisher.Publish(uri, presence(uri, "open", "one"), 60)
			tags := map[string]bool{a.ETag(): true}
			m := sub.WaitNotify(has("one"), soon)
			if m.ContentType() != "application/pidf+xml" {
				t.Errorf("Content-Type %q", m.ContentType())
			}
			ValidateXML(t, "presence-all", m.Body())
			for _, step := range []func() SofiaAnswer{
				func() SofiaAnswer { return pub.Refresh(70) },
				func() SofiaAnswer { return pub.Modify(presence(uri, "closed", "two"), 80) },
			} {
				if a = step(); a.Status != 200 || a.ETag() == "" || tags[a.ETag()] {
					t.Errorf("PUBLISH: %d %s, entity-tag %q", a.Status, a.Phrase, a.ETag())
				}
				tags[a.ETag()] = true
			}
			sub.WaitNotify(has("two"), soon)
			if a := sub.Refresh(90); a.Status != 200 {
				t.Errorf("refresh: %d %s", a.Status, a.Phrase)
			}
			sub.WaitNotify(has("two"), soon)
			if a := pub.Remove(); a.Status != 200 {
				t.Errorf("removal: %d %s", a.Status, a.Phrase)
			}
			if a := sub.Unsubscribe(); a.Status != 200 {
				t.Errorf("unsubscribe: %d %s", a.Status, a.Phrase)
			}
			sub.WaitNotify(state("terminated"), soon)
			seen := map[uint32]bool{}
			for _, m := range sub.Notifies() {
				if seen[m.CSeq()] {
					t.Errorf("CSeq %d twice", m.CSeq())
				}
				seen[m.CSeq()] = true
			}
			if _, a := watcher.Subscribe(SofiaSubscribe{URI: uri, Event: "nothing"}); a.Status != 489 {
				t.Errorf("SUBSCRIBE to an unknown package: %d %s", a.Status, a.Phrase)
			}
			watcher.Quit()
		})
	}
}

func TestBaresip(t *testing.T) {
	k := StartKamailio(t, domain)
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			uri := "sip:baresip-" + transport + "@" + domain
			publisher := StartBaresip(t, BaresipOptions{AOR: uri, Server: k.Addr, Transport: transport, Publish: true})
			watcher := StartBaresip(t, BaresipOptions{
				AOR: alice, Server: k.Addr, Transport: transport, Contacts: []string{bob, uri},
			})
			publisher.SetPresence(BaresipOnline)
			watcher.WaitContact(uri, BaresipOnline, soon)
			publisher.SetPresence(BaresipOffline)
			watcher.WaitContact(uri, BaresipOffline, soon)
			publisher.SetPresence(BaresipOnline)
			watcher.WaitContact(uri, BaresipOnline, soon)

			Eventually(t, soon, "NOTIFYs in the trace", func() bool { return len(Notifies(watcher.Trace())) >= 3 })
			for _, m := range Notifies(watcher.Trace()) {
				if m.Header("Event") != "presence" {
					t.Errorf("NOTIFY:\n%s", m.Raw)
				}
			}
			publisher.Quit()
			all := k.WaitTrace(soon, "the removal", func(all []Trace) bool {
				sent := Requests(all, false, "PUBLISH")
				return sent[len(sent)-1].Header("Expires") == "0"
			})
			if n := len(Requests(all, false, "PUBLISH")); n < 5 {
				t.Errorf("%d PUBLISHes, want 5", n)
			}
		})
	}
}

// Each program publishes, each other one sees it.
func TestTogether(t *testing.T) {
	k := StartKamailio(t, domain)
	sofia := StartSofia(t, SofiaOptions{AOR: alice, Server: k.Addr})
	phone := StartBaresip(t, BaresipOptions{AOR: bob, Server: k.Addr, Contacts: []string{alice}, Publish: true})
	sub, _ := sofia.Subscribe(SofiaSubscribe{URI: bob})
	w := StartWatch(t, WatchOptions{
		SIPpOptions: SIPpOptions{Server: k.Addr, Transport: "tcp"}, URI: bob, From: alice,
		Phases: []WatchPhase{{Expires: 60, Until: "<basic>open"}, Unsubscribe()},
	})
	w.WaitNotify(nil, soon)

	phone.SetPresence(BaresipOnline)
	sub.WaitNotify(has("<basic>open"), soon)
	w.WaitOK()
	pub, _ := sofia.Publish(alice, presence(alice, "open", ""), 60)
	phone.WaitContact(alice, BaresipOnline, soon)
	if a := pub.Modify(presence(alice, "closed", ""), 60); a.Status != 200 {
		t.Errorf("PUBLISH: %d %s", a.Status, a.Phrase)
	}
	phone.WaitContact(alice, BaresipOffline, soon)
}

func TestXML(t *testing.T) {
	for file, schema := range map[string]string{
		"rfc4662-s6-3-presence.xml": "presence-all", "rfc4662-s6-4-presence.xml": "presence-all",
		"rfc4662-s6-5-list.xml": "rlmi", "rfc4662-s6-8-list.xml": "rlmi", "rfc4662-s6-9-list.xml": "rlmi",
		"rfc4825-s13-3-resource-lists.xml": "resource-lists", "rfc4825-s13-5-resource-lists.xml": "resource-lists",
		"rfc4825-s13-4-rls-services.xml": "rls-services", "rfc4826-s3.3-1-resource-lists.xml": "resource-lists",
		"rfc4826-s4.3-2-rls-services.xml": "rls-services",
	} {
		ValidateXML(t, schema, ReadTestData(t, "rfc", file))
	}
	ValidateXML(t, "watcherinfo", []byte(`<watcherinfo xmlns="urn:ietf:params:xml:ns:watcherinfo" version="0" state="full"/>`))
	for _, bad := range []string{
		"", "<presence", `<presence xmlns="urn:ietf:params:xml:ns:pidf"/>`,
		string(presence(bob, "unknown", "")),
		strings.Replace(string(presence(bob, "open", "")), `id="t1"`, "", 1),
	} {
		if CheckXML(t, "presence-all", []byte(bad)) == nil {
			t.Errorf("valid: %q", bad)
		}
	}
}
