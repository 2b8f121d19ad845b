package dialog

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/sip"
)

// followers keep a subscription to each of a number of people: one that ends is
// opened again, as the B2BUA does.
type followers struct {
	mu   sync.Mutex
	ids  map[uint64]uint64 // subscription by number of the person
	quit bool
}

type follower struct {
	*fakeShard
	all *followers
}

func person(n uint64) string { return fmt.Sprintf("sip:p%d@192.0.2.50", n) }

func (f follower) follow(t *Turn, n uint64) {
	id := t.Subscribe(SubscribeTo{User: n, URI: person(n), From: bob, Event: "presence", Accept: pidfType, Expires: 3 * time.Minute})
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	f.all.ids[n] = id
}

func (f follower) Ended(t *Turn, n uint64, e Ending) {
	f.fakeShard.Ended(t, n, e)
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	if !f.all.quit {
		t.SetTimer(0, n, t.Now.Add(time.Second))
	}
}

func (f follower) Timer(t *Turn, n uint64) { f.follow(t, n) }

// TestPairOnALossyNetwork lets one runtime subscribe to another one over a
// network that loses a fifth of the datagrams, doubles a tenth and reorders
// many. Within a subscription nobody is shown an older state after a newer one;
// everybody ends with the newest; after unsubscribing nothing is left on either
// side. A notifier that is killed twice meanwhile makes no difference (EV-29,
// EV-30, CORE-12).
func TestPairOnALossyNetwork(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3, 4, 5} {
		kills := seed > 3
		t.Run(fmt.Sprintf("seed %d kills %v", seed, kills), func(t *testing.T) {
			bubble(t, func(t *testing.T) { pair(t, seed, kills) })
		})
	}
}

func pair(t *testing.T, seed uint64, kills bool) {
	const people, changes = 30, 400
	net := sip.NewMemNet(seed, sip.Fault{})
	t.Cleanup(net.Close)
	all := &followers{ids: map[uint64]uint64{}}
	a := newRig(t, net, serverAddr, func(o *Options) {
		shard := o.Components[0]
		o.Components[0] = func(id uint8) Component { return follower{shard(id).(*fakeShard), all} }
	})
	b := newRig(t, net, remoteAddr, nil)
	net.SetFault(sip.Fault{Loss: 0.2, Duplicate: 0.1, Reorder: 0.3, Delay: 10 * time.Millisecond, Jitter: 300 * time.Millisecond})
	rng := rand.New(rand.NewPCG(seed, 9))
	pause := func(most time.Duration) { time.Sleep(time.Duration(rng.Int64N(int64(most)))) }

	version := make([]int, people+1)
	set := func(n uint64, u Update) { b.Do(person(n), func(t *Turn) { b.src.set(t, person(n), u) }) }
	for n := uint64(1); n <= people; n++ {
		set(n, active("0"))
		a.Do(person(n), func(t *Turn) { t.sh.components[0].(follower).follow(t, n) })
	}
	for c := range changes {
		if kills && c%150 == 149 {
			b = restart(t, b, true, nil)
		}
		n := uint64(1 + rng.IntN(people))
		version[n]++
		u := active(fmt.Sprint(version[n]))
		if rng.IntN(10) == 0 {
			u = Update{State: Pending}
		}
		set(n, u)
		pause(3 * time.Second)
	}
	for n := uint64(1); n <= people; n++ { // all change at the end, some more than once
		for range 1 + rng.IntN(3) {
			version[n]++
			set(n, active(fmt.Sprint(version[n])))
			pause(100 * time.Millisecond)
		}
	}
	time.Sleep(5 * time.Minute) // a NOTIFY lost for good is made up for by the next refresh
	synctest.Wait()
	ended := 0
	a.src.mu.Lock()
	for n := uint64(1); n <= people; n++ {
		heard, last := a.src.heard[n], -1
		for _, h := range heard {
			if strings.HasPrefix(h, "ended") {
				ended++
				last = -1
			}
			var v int
			if _, err := fmt.Sscanf(h, "active %d", &v); err == nil {
				if v < last {
					t.Errorf("%s: went back from %d to %d", person(n), last, v)
				}
				last = v
			}
		}
		if want := fmt.Sprint("active ", version[n]); len(heard) == 0 || heard[len(heard)-1] != want {
			t.Errorf("%s: ends with %q, want %s", person(n), heard[max(0, len(heard)-3):], want)
		}
	}
	a.src.mu.Unlock()
	if ended > people/10 {
		t.Errorf("%d subscriptions were lost", ended)
	}
	if n := b.Stats().Subscriptions.Load(); n < people {
		t.Errorf("%d subscriptions", n)
	}
	all.mu.Lock()
	all.quit = true
	all.mu.Unlock()
	for n, id := range all.ids {
		a.Do(person(n), func(t *Turn) { t.Unsubscribe(id) })
	}
	time.Sleep(5 * time.Minute) // one that was lost for good ends by expiry
	synctest.Wait()
	a.empty()
	b.empty()
	if n := b.store.count(); n != 0 {
		t.Errorf("%d rows left", n)
	}
	sent, lost, delivered := net.Counts()
	t.Logf("%d NOTIFYs and %d SUBSCRIBEs since the start of the notifier, %d subscriptions lost; %d datagrams sent, %d lost, %d delivered",
		b.Stats().Notifies.Load(), b.Stats().Requests[sip.SUBSCRIBE].Load(), ended, sent, lost, delivered)
}
