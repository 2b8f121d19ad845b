package e2e

import (
	"fmt"
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
