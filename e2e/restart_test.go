package e2e

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"rollcall/e2e/peer"
	"rollcall/rls/rlmi"
)

// TestRestart kills the server in the middle of its work and starts it again.
// In write-through no acknowledged publication or subscription is lost; in no
// mode is a CSeq or a list version used twice.
func TestRestart(t *testing.T) {
	for _, mode := range []string{"write-through", "write-back"} {
		for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
			t.Run(fmt.Sprintf("%s %v", mode, sig), func(t *testing.T) { restart(t, mode, sig) })
		}
	}
}

func restart(t *testing.T, mode string, sig syscall.Signal) {
	const people = 20
	list := make([]string, people)
	for i := range list {
		list[i] = fmt.Sprintf("sip:p%d@example.com", i)
	}
	dir := documents(t, map[string]string{"rls-services/global/index": service("sip:team@example.com", list...)})
	in := start(t, "--domain", "example.com", "--store", "sqlite:"+t.TempDir()+"/r.db", "--durability", mode, "--presence-auth", "open", "--xcap", dir)
	u := newUA(t, in.addr)
	tags := make([]string, people)
	seq := 0
	publish := func(i int) {
		t.Helper()
		seq++
		status, tag := u.publish(list[i], tags[i], string(pidf(list[i], "open", fmt.Sprintf("s%d", seq))), 600)
		if status != 200 {
			t.Fatalf("PUBLISH for %s: %d", list[i], status)
		}
		tags[i] = tag
	}
	for i := range list {
		publish(i)
	}
	direct, watch := u.dialog("sip:adam@example.com", list[0]), u.dialog("sip:adam@example.com", "sip:team@example.com")
	for _, d := range []*dialog{direct, watch} {
		if a := u.subscribe(d, 600, listHeaders...); a.Status() != 200 {
			t.Fatalf("SUBSCRIBE: %d", a.Status())
		}
	}
	cseq, version := map[*dialog]uint32{}, int64(-1)
	state := map[string]string{} // what the watchers were told last, by URI
	take := func(d *dialog, n peer.Trace) {
		t.Helper()
		if n.CSeq() <= cseq[d] {
			t.Fatalf("CORE-12: CSeq %d after %d", n.CSeq(), cseq[d])
		}
		cseq[d] = n.CSeq()
		if d == direct {
			state["direct"] = describe(n.Body())
			return
		}
		msg, err := rlmi.Parse(n.ContentType(), n.Body())
		if err != nil {
			t.Fatal(err)
		}
		if v := int64(msg.List.Version); v <= version || !msg.List.FullState && v != version+1 {
			t.Fatalf("RL-13: version %d (full %v) after %d", v, msg.List.FullState, version)
		}
		version = int64(msg.List.Version)
		for _, r := range msg.List.Resources {
			if len(r.Instances) == 1 {
				p, _ := msg.Part(r.Instances[0].CID)
				state[r.URI] = describe(p.Body)
			}
		}
	}
	drain := func(wait time.Duration) {
		for _, d := range []*dialog{direct, watch} {
			for {
				n, ok := u.notify(d, wait)
				if !ok {
					break
				}
				take(d, n)
			}
		}
	}
	for i := range 40 { // enough changes that NOTIFYs are on their way
		publish(i % people)
	}
	if mode == "write-back" {
		time.Sleep(300 * time.Millisecond) // longer than its promise
	}
	if sig == syscall.SIGKILL {
		publish(3)
		if mode == "write-back" {
			time.Sleep(300 * time.Millisecond)
		}
	} else {
		drain(700 * time.Millisecond)
	}
	in.Signal(sig)
	if sig == syscall.SIGTERM {
		if code := in.Wait(t, 12*time.Second); code != 0 {
			t.Fatalf("exit code %d after SIGTERM, want 0\n%s", code, in.Log())
		}
	}
	in.Stop()
	drain(50 * time.Millisecond)
	in.run()

	// The phone's refresh is answered, and its NOTIFY has a higher CSeq.
	for _, d := range []*dialog{direct, watch} {
		if a := u.subscribe(d, 600); a.Status() != 200 {
			t.Fatalf("EV-30: refresh after restart: %d", a.Status())
		}
	}
	drain(700 * time.Millisecond)
	// No publication is lost: each tag is good for a refresh, each state is shown.
	for i, uri := range list {
		status, tag := u.publish(uri, tags[i], "", 600)
		if status != 200 {
			t.Errorf("publication of %s is lost: refresh got %d", uri, status)
		}
		tags[i] = tag
	}
	publish(0)
	publish(5)
	drain(700 * time.Millisecond)
	if want := fmt.Sprintf("open: s%d", seq-1); state["direct"] != want || state[list[0]] != want {
		t.Errorf("watchers have %q and %q, want %q", state["direct"], state[list[0]], want)
	}
	if want := fmt.Sprintf("open: s%d", seq); state[list[5]] != want {
		t.Errorf("list watcher has %q, want %q", state[list[5]], want)
	}
	if len(state) != people+1 {
		t.Errorf("state of %d members, want %d", len(state)-1, people)
	}
	for _, d := range []*dialog{direct, watch} {
		if a := u.subscribe(d, 0); a.Status() != 200 {
			t.Errorf("unsubscribe: %d", a.Status())
		}
	}
	drain(200 * time.Millisecond)
	in.idle()
}

// TestRestartKamailioMember kills and restarts the server while one member of a
// list is served by Kamailio: the dialog there goes on, what it says meanwhile
// arrives, and there is never a second one.
func TestRestartKamailioMember(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			const list, joe, annURI = "sip:team@example.com", "sip:joe@example.com", "sip:ann@example.org"
			k := peer.StartKamailio(t, "example.org")
			dir := documents(t, map[string]string{"rls-services/global/index": service(list, joe, annURI)})
			com := start(t, "--domain", "example.com", "--store", "sqlite:"+t.TempDir()+"/r.db", "--presence-auth", "open", "--xcap", dir,
				"--remote", "example.org=sip:"+k.Addr)
			ann := peer.StartSofia(t, peer.SofiaOptions{AOR: annURI, Server: k.Addr})
			pub, a := ann.Publish(annURI, pidf(annURI, "open", "At Kamailio"), 600)
			if a.Status != 200 {
				t.Fatalf("PUBLISH to Kamailio: %d", a.Status)
			}
			adam := peer.StartSofia(t, peer.SofiaOptions{AOR: "sip:adam@example.com", Server: com.addr})
			sub, ans := adam.Subscribe(peer.SofiaSubscribe{URI: list, Expires: 600})
			if ans.Status != 200 {
				t.Fatalf("SUBSCRIBE: %d", ans.Status)
			}
			v := newView(t, list)
			follow(t, v, sub, map[string]string{joe: "active closed", annURI: "active open: At Kamailio"})
			for i, note := range []string{"Lunch", "Back", "Home"} {
				com.Signal(sig)
				if sig == syscall.SIGTERM {
					if code := com.Wait(t, 12*time.Second); code != 0 {
						t.Fatalf("exit code %d after SIGTERM, want 0\n%s", code, com.Log())
					}
				}
				com.Stop()
				before := len(peer.Requests(k.Trace(), false, "SUBSCRIBE"))
				if i == 1 { // while nobody listens
					if a := pub.Modify(pidf(annURI, "open", note), 600); a.Status != 200 {
						t.Fatalf("modify: %d", a.Status)
					}
				}
				com.run()
				if sig == syscall.SIGKILL { // a full NOTIFY, with the member's newest state that we knew
					n := sub.WaitNotify(nil, 10*time.Second)
					msg, err := rlmi.Parse(n.ContentType(), n.Body())
					if err != nil || !msg.List.FullState || msg.List.Version <= v.next-1 {
						t.Fatalf("RL-13, RL-14: after the crash %v\n%s", err, n.Raw)
					}
					v.next = msg.List.Version
					v.apply(n)
					if got := v.state[annURI]; got[:11] != "active open" {
						t.Errorf("after the crash the member is %q", got)
					}
				}
				k.WaitTrace(10*time.Second, "a refresh", func(all []peer.Trace) bool { return len(peer.Requests(all, false, "SUBSCRIBE")) > before })
				if i != 1 {
					if a := pub.Modify(pidf(annURI, "open", note), 600); a.Status != 200 {
						t.Fatalf("modify: %d", a.Status)
					}
				}
				follow(t, v, sub, map[string]string{joe: "active closed", annURI: "active open: " + note})
			}
			if a := sub.Unsubscribe(); a.Status != 200 {
				t.Fatalf("unsubscribe: %d", a.Status)
			}
			all := k.WaitTrace(10*time.Second, "RL-37: Kamailio is unsubscribed from", func(all []peer.Trace) bool {
				return slices.ContainsFunc(peer.Requests(all, false, "SUBSCRIBE"), func(m peer.Trace) bool { return m.Header("Expires") == "0" })
			})
			subs := peer.Requests(all, false, "SUBSCRIBE")
			for i, m := range subs[1:] {
				if m.Header("Call-ID") != subs[0].Header("Call-ID") || m.CSeq() <= subs[i].CSeq() {
					t.Errorf("CORE-12: another dialog, or CSeq %d after %d\n%s", m.CSeq(), subs[i].CSeq(), m.Raw)
				}
			}
			for _, m := range peer.Responses(all, true, "SUBSCRIBE") {
				if m.Status() >= 300 && m.Status() != 401 {
					t.Errorf("Kamailio answered\n%s", m.Raw)
				}
			}
			answers := peer.Responses(all, false, "NOTIFY")
			for _, m := range answers {
				// Kamailio's processes may send two NOTIFYs at once: the older one that comes second is refused (CORE-13).
				overtaken := m.Status() == 500 && slices.ContainsFunc(answers, func(o peer.Trace) bool { return o.Status() == 200 && o.CSeq() > m.CSeq() })
				if m.Status() != 200 && !overtaken {
					t.Errorf("we answered\n%s", m.Raw)
				}
			}
			com.idle()
		})
	}
}
