package dialog

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"rollcall/sip"
)

// A proxy that is down has a bounded number of NOTIFYs in flight, fewer and
// fewer; those of others go out at once meanwhile; what waits goes out, with the
// newest state, when the proxy is back. Nothing is left behind.
func TestWindow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNet(t)
		r := newRig(t, net, serverAddr, func(o *Options) { o.Durability = Memory })
		dead, well := newPhone(t, net, phoneAddr), newPhone(t, net, netip.MustParseAddrPort("192.0.2.2:5070"))
		const watchers = firstWindow + 300
		var calls []*call
		for i := range watchers {
			c := dead.call(fmt.Sprintf("sip:w%d@example.org", i), alice)
			c.subscribe(200, "Expires: 7200")
			calls = append(calls, c)
		}
		other := well.call(bob, alice)
		other.subscribe(200, "Expires: 7200")
		other.wantNotify("active;expires=7200", "first")
		for _, c := range calls {
			c.wantNotify("active;expires=7200", "first")
		}
		up := false
		open := map[string]bool{} // dialogs whose NOTIFY was not answered
		dead.mu.Lock()
		dead.notify = func(m *sip.Message) int {
			if up {
				return 200
			}
			open[string(m.CallID())] = true
			return 0
		}
		dead.mu.Unlock()
		count := func() int {
			dead.mu.Lock()
			defer dead.mu.Unlock()
			n := len(open)
			clear(open)
			return n
		}
		state := func(text string) {
			r.set(alice, Update{State: Active, Doc: &Document{Type: pidfType, Body: []byte(text)}})
		}
		state("third")
		other.notified()
		if n := count(); n != firstWindow {
			t.Fatalf("%d NOTIFYs in flight to the proxy, want %d", n, firstWindow)
		}
		state("fourth")
		if n := other.notified(); n == nil || string(n.Body()) != "fourth" {
			t.Error("another watcher waits for the proxy")
		}
		if n := count(); n != 0 {
			t.Errorf("%d more NOTIFYs to the proxy", n)
		}
		time.Sleep(31900 * time.Millisecond) // after the last repetition
		settle()
		count()
		time.Sleep(1100 * time.Millisecond) // after timer F
		settle()
		if n := count(); n == 0 || n > 2 {
			t.Errorf("%d NOTIFYs at a time after the first have timed out", n)
		}
		if n := r.Stats().Subscriptions.Load(); n != watchers-firstWindow+1 {
			t.Errorf("%d subscriptions, want those whose NOTIFY waits, and one", n)
		}
		dead.mu.Lock()
		up = true
		dead.mu.Unlock()
		time.Sleep(70 * time.Second)
		settle()
		last := map[string]string{}
		for m := dead.take(func(m *sip.Message) bool { return m.IsRequest() }); m != nil; m = dead.take(func(m *sip.Message) bool { return m.IsRequest() }) {
			last[string(m.CallID())] = string(m.Body())
		}
		live := 0
		r.Each(func(t2 *Turn) {
			for s := range t2.sh.subs.all() {
				live++
				if id := string(t2.sh.own(s).t[txCallID]); id != other.id && last[id] != "fourth" {
					t.Errorf("%s has %q at last", id, last[id])
				}
				if s.queued || s.window != 0 || s.n.owed {
					t.Errorf("something waits: %+v", s)
				}
			}
			if w := t2.sh.windows; len(w.index) > 0 || len(w.all) > 0 {
				t.Errorf("windows left: %+v", w)
			}
		})
		if live < 250 {
			t.Errorf("%d subscriptions left", live)
		}
	})
}
