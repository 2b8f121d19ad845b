package dialog

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rollcall/sip"
)

func TestWriteThroughHoldsAnswers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		block := r.store.hold()
		c := p.call(bob, alice)
		text := c.text()
		p.send(text)
		step(t, "a poll has nothing to store, but must not overtake", func(t *testing.T) {
			if m := p.call(bob, alice).ask("Expires: 0"); m != nil {
				t.Errorf("\n%s", m.Raw)
			}
		})
		c.wantTrying()
		time.Sleep(2 * time.Second)
		p.send(text)
		if m := c.answer(); m != nil || r.store.begun() != 1 {
			t.Fatalf("answered before the commit, or no commit: %v", m)
		}
		c.wantSilence()
		step(t, "another shard does not wait", func(t *testing.T) {
			o := p.call(bob, "sip:carol@example.com")
			o.method = "OPTIONS"
			o.subscribe(200)
		})
		close(block)
		settle()
		if m := c.answer(); m == nil || m.Status() != 200 {
			t.Fatalf("%v", m)
		}
		c.wantNotify("active;expires=3600", "first")
		p.mu.Lock()
		in := slices.DeleteFunc(slices.Clone(p.in), func(m *sip.Message) bool { return !m.IsRequest() && m.Status() == 100 })
		p.mu.Unlock()
		if len(in) != 2 || in[0].IsRequest() || !in[1].IsRequest() {
			t.Errorf("the poll's 200 and NOTIFY: %d messages", len(in))
		}
		c.subscribe(200, "Expires: 0")
		c.notified()
		r.empty()
	})
}

// The messages leave in the order of the turns that made them.
func TestHeldInOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		block := r.store.hold()
		var want []string
		for range 20 {
			c := p.call(bob, alice)
			p.send(c.text())
			want = append(want, "200 "+c.id, "NOTIFY "+c.id)
		}
		close(block)
		settle()
		var got []string
		for _, m := range p.in {
			if m.IsRequest() {
				got = append(got, "NOTIFY "+string(m.CallID()))
			} else {
				got = append(got, fmt.Sprint(m.Status(), " ", string(m.CallID())))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if r.store.done() != 2 { // the first while the others gathered
			t.Errorf("%d commits", r.store.done())
		}
	})
}

// Writes of several turns that are committed together keep their order.
func TestWritesInOrder(t *testing.T) {
	for _, durability := range []Durability{WriteThrough, WriteBack} {
		bubble(t, func(t *testing.T) {
			r, p := phoneRig(t, func(o *Options) { o.Durability = durability })
			block := r.store.hold()
			p.call(bob, "sip:dave@example.com").ask()
			time.Sleep(time.Second)
			c := p.call(bob, alice)
			p.send(c.text())
			r.Do(alice, func(t *Turn) { // its tag did not arrive: end it as an operator would
				for s := range t.sh.subs.all() {
					if string(t.sh.own(s).t[txCallID]) == c.id {
						t.sh.step(t, s, notifierEvent{kind: evUpdate, state: Terminated, reason: Deactivated})
					}
				}
			})
			settle()
			close(block)
			time.Sleep(time.Second)
			settle()
			if row := r.store.row(t); row.Resource != "sip:dave@example.com" || r.store.done() != 2 {
				t.Errorf("%d commits, left %+v", r.store.done(), row)
			}
		})
	}
}

func TestWriteBackAnswersAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, func(o *Options) { o.Durability = WriteBack })
		block := r.store.hold()
		c := p.call(bob, alice)
		c.subscribe(200)
		c.wantNotify("active;expires=3600", "first")
		for range 10 {
			p.call(bob, alice).subscribe(200)
		}
		if r.store.begun() != 0 {
			t.Error("committed at once")
		}
		time.Sleep(flushInterval)
		settle()
		if r.store.begun() != 1 {
			t.Errorf("%d commits after %v", r.store.begun(), flushInterval)
		}
		close(block)
		settle()
		if r.store.count() != 11 || len(r.store.batches) != 1 {
			t.Errorf("%d rows in %d batches", r.store.count(), len(r.store.batches))
		}
	})
}

func TestMemoryStoresNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, func(o *Options) { o.Durability, o.Store = Memory, nil })
		c := p.call(bob, alice)
		c.subscribe(200)
		c.wantNotify("active;expires=3600", "first")
		c.subscribe(200, "Expires: 0")
		c.wantNotify("terminated;reason=timeout", "first")
		r.empty()
	})
}

func TestStoreOverload(t *testing.T) {
	for _, c := range []struct {
		name string
		full func(r *rig)
	}{
		{"too many writes wait", func(r *rig) {
			r.commit.writes.Add(backlogLimit)
		}},
		{"too many messages wait", func(r *rig) {
			r.Do(alice, func(t *Turn) { t.sh.held = append(t.sh.held, make([]send, heldLimit+1)...) })
			r.Do(alice, func(t *Turn) {
				for i := range t.sh.held {
					t.sh.held[i].after = 1 << 60
				}
			})
		}},
	} {
		t.Run(c.name+": 503 for new SUBSCRIBE and PUBLISH", func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				block := make(chan struct{})
				r, p := phoneRig(t, nil)
				r.store.block = block
				first := p.call(bob, alice)
				first.ask()
				c.full(r)
				refused := 0
				pub := p.call(alice, alice)
				pub.method = "PUBLISH"
				for _, c := range []*call{p.call(bob, alice), pub} {
					if m := c.ask(); m != nil && m.Status() == 503 && header(m, sip.HdrRetryAfter) == "10" { // at once
						refused++
					}
				}
				close(block)
				r.Do(alice, func(t *Turn) { // let go what is held
					for i := range t.sh.held {
						t.sh.held[i].after = 0
					}
				})
				settle()
				if refused != 2 || r.Stats().Overload.Load() != 2 {
					t.Errorf("%d refused, %d counted", refused, r.Stats().Overload.Load())
				}
			})
		})
	}
}

// restart stops a rig, with kill as kill -9 would, and starts another one with
// what is stored.
func restart(t *testing.T, r *rig, kill bool, change func(*Options)) *rig {
	t.Helper()
	if kill {
		r.kill()
	} else {
		r.stop()
	}
	store := r.store
	store.fail(nil)
	next := newRig(t, r.net, r.addr, func(o *Options) {
		o.Store = store
		if change != nil {
			change(o)
		}
	})
	next.store = store
	next.wire.cseq, next.wire.last, next.wire.jump = r.wire.cseq, r.wire.last, true
	next.src.state = r.src.state
	for _, row := range slices.Collect(maps.Values(store.rows)) {
		if err := restore(next, row, kill); err != nil {
			t.Error(err)
		}
	}
	settle()
	return next
}

func TestCleanRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		c := p.call(bob, alice)
		c.subscribe(200, "Event: presence;id=7", "Accept: application/xml, "+pidfType, "User-Agent: Phone/1")
		c.notified()
		r.set(alice, active("second"))
		c.notified()
		r = restart(t, r, false, nil)
		if row := r.store.row(t); row.CSeqCeiling != 2 {
			t.Errorf("CORE-12: exact CSeq not stored: %+v", row)
		}
		time.Sleep(time.Minute)
		step(t, "EV-30 the watcher notices nothing", func(t *testing.T) { c.wantSilence() })
		if in := r.src.attached; len(in) != 1 || !in[0].Resumed || in[0].Resource != alice || in[0].Watcher.URI != bob || in[0].Accept != "application/xml, "+pidfType {
			t.Errorf("attached %+v", in)
		}
		r.set(alice, active("third"))
		step(t, "CORE-12, EV-23 CSeq and id go on", func(t *testing.T) {
			n := c.wantNotify("active;expires=3540", "third")
			if n.CSeq() != 3 || header(n, sip.HdrEvent) != "presence;id=7" || string(n.From().Tag()) != c.toTag || string(n.To().Tag()) != c.tag {
				t.Errorf("\n%s", n.Raw)
			}
		})
		step(t, "EV-30 a refresh is honoured", func(t *testing.T) {
			c.subscribe(200, "Event: presence;id=7")
			c.wantNotify("active;expires=3600", "third")
		})
		step(t, "CORE-13 the remote CSeq is known", func(t *testing.T) {
			c.cseq -= 2
			c.subscribe(500, "Event: presence;id=7")
			c.cseq += 2
		})
		c.subscribe(200, "Event: presence;id=7", "Expires: 0")
		c.wantNotify("terminated;reason=timeout", "third")
		r.empty()
	})
}

// What waits in a mailbox when a stop begins is worked on before it ends: nothing
// is answered whose watcher is then told nothing, before or after the restart.
func TestStopWithBacklog(t *testing.T) {
	for _, durability := range []Durability{WriteThrough, WriteBack} {
		bubble(t, func(t *testing.T) {
			r, p := phoneRig(t, func(o *Options) { o.Durability = durability })
			busy := make(chan struct{})
			r.Post(ShardOf(alice), func(*Turn) { <-busy })
			settle()
			open := make([]*call, 5*turnBudget)
			for i := range open {
				open[i] = p.call(bob, alice)
				p.send(open[i].text())
			}
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				r.stop()
			}()
			settle()
			late := p.call(bob, alice)
			p.send(late.text())
			close(busy)
			<-stopped
			settle()
			for i, c := range open {
				m := c.answer()
				if m == nil || m.Status() != 200 {
					t.Fatalf("SUBSCRIBE %d: %v", i, m)
				}
				if c.notified() == nil && !slices.Contains(r.Unsettled(), string(m.To().Tag())) {
					t.Errorf("EV-30: SUBSCRIBE %d is answered, and its watcher never told", i)
				}
			}
			if m := late.answer(); m != nil {
				t.Errorf("answered after the stop began: %s", m.Raw)
			}
		})
	}
}

// A SUBSCRIBE that was stored but not answered is repeated to the next life of
// the server, whose transactions do not know it.
func TestRepeatAfterRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		c := p.call(bob, alice)
		c.subscribe(200)
		c.notified()
		c.subscribe(200)
		c.notified()
		for _, kill := range []bool{true, false} {
			if r = restart(t, r, kill, nil); kill {
				c.notified()
			}
			step(t, "CORE-13 lower: 500", func(t *testing.T) {
				c.cseq -= 2
				c.subscribe(500)
				c.cseq++
			})
			step(t, "the last one again", func(t *testing.T) {
				c.cseq--
				c.subscribe(200)
				c.wantNotify("active;expires=3600", "first")
			})
			step(t, "and once more, in another transaction: 500", func(t *testing.T) {
				c.cseq--
				c.subscribe(500)
			})
		}
	})
}

func TestKilled(t *testing.T) {
	for _, durability := range []Durability{WriteThrough, WriteBack} {
		bubble(t, func(t *testing.T) {
			mode := func(o *Options) { o.Durability = durability }
			r, p := phoneRig(t, mode)
			c := p.call(bob, alice)
			c.subscribe(200)
			last := c.notified().CSeq()
			for i := range 5 {
				time.Sleep(time.Second)
				for j := range 100 * i {
					r.set(alice, active(fmt.Sprint(i, ".", j)))
					last = c.notified().CSeq()
				}
				r = restart(t, r, true, mode)
				n := c.notified()
				if n == nil {
					t.Fatal("EV-30: no NOTIFY after a crash")
				}
				if n.CSeq() <= last {
					t.Fatalf("CORE-12: CSeq %d after %d", n.CSeq(), last)
				}
				last = n.CSeq()
			}
			c.subscribe(200, "Expires: 0")
			if n := c.notified(); n.CSeq() != last+1 {
				t.Errorf("CSeq %d after %d", n.CSeq(), last)
			}
			r.empty()
			if r.store.count() != 0 {
				t.Error("the row is still there")
			}
		})
	}
}

// A crash at any moment: no CSeq above the stored ceiling ever leaves, not even
// in write-back and not for the last NOTIFY of a subscription, whose row may be
// brought back by the crash (CORE-12).
func TestCeilingBeforeNotify(t *testing.T) {
	for _, durability := range []Durability{WriteThrough, WriteBack} {
		bubble(t, func(t *testing.T) {
			r, p := phoneRig(t, func(o *Options) { o.Durability = durability })
			c := p.call(bob, alice)
			c.subscribe(200)
			time.Sleep(time.Second)
			checked := 0
			r.wire.fail = func(_ sip.Flow, m *sip.Message) error {
				if m.Method() != sip.NOTIFY {
					return nil
				}
				r.store.mu.Lock()
				defer r.store.mu.Unlock()
				row, stored := r.store.rows[c.toTag]
				if stored && m.CSeq() > row.CSeqCeiling {
					t.Errorf("CSeq %d left with the ceiling at %d", m.CSeq(), row.CSeqCeiling)
				}
				checked++
				return nil
			}
			for i := range 2*cseqBlock - 1 { // up to the second ceiling exactly
				r.set(alice, active(fmt.Sprint(i)))
			}
			if row := r.store.row(t); c.p.t != nil && row.CSeqCeiling < 2*cseqBlock {
				t.Errorf("ceiling %d", row.CSeqCeiling)
			}
			r.Do(alice, func(t *Turn) {
				for s := range t.sh.subs.all() {
					s.n.ceiling = s.n.cseq // at the very end of the block
				}
			})
			r.store.mu.Lock()
			row := r.store.rows[c.toTag]
			row.CSeqCeiling = 2 * cseqBlock
			r.store.rows[c.toTag] = row
			r.store.mu.Unlock()
			block := r.store.hold()
			p.send(c.text("Expires: 0"))
			for n := c.notified(); n != nil; n = c.notified() {
				if strings.HasPrefix(header(n, sip.HdrSubscriptionState), "terminated") {
					t.Errorf("durability %d: the last NOTIFY left before its row was deleted", durability)
				}
			}
			close(block)
			settle()
			c.wantNotify("terminated;reason=timeout", fmt.Sprint(2*cseqBlock-2))
			if checked < 2*cseqBlock {
				t.Errorf("%d NOTIFYs checked", checked)
			}
		})
	}
}

// In write-back the interval counts from the oldest write, not from the end of
// the commit before: that is how much a kill may lose.
func TestWriteBackInterval(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, func(o *Options) { o.Durability = WriteBack })
		slow := r.store.hold()
		p.call(bob, alice).subscribe(200)
		time.Sleep(flushInterval + time.Millisecond) // the commit has begun
		p.call(bob, alice).subscribe(200)
		time.Sleep(flushInterval - 10*time.Millisecond)
		r.store.release(slow)
		time.Sleep(5 * time.Millisecond)
		if n := r.store.count(); n != 1 {
			t.Errorf("%d rows before the interval is over, want 1", n)
		}
		time.Sleep(10 * time.Millisecond)
		if n := r.store.count(); n != 2 {
			t.Errorf("%d rows after it, want 2", n)
		}
	})
}

// In write-back a dialog whose ceiling must be raised waits for that commit, and
// nobody else does.
func TestWriteBackParks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, func(o *Options) { o.Durability = WriteBack })
		c := p.call(bob, alice)
		c.subscribe(200)
		c.notified()
		time.Sleep(time.Second)
		r.Do(alice, func(t *Turn) {
			for s := range t.sh.subs.all() {
				s.n.ceiling = s.n.cseq
			}
		})
		first := r.store.hold()
		r.set(alice, active("second")) // must raise the ceiling
		c.wantSilence()
		c2 := p.call(bob, alice)
		c2.subscribe(200)
		c2.wantNotify("active;expires=3600", "second")
		r.set(alice, active("third"))
		c2.wantNotify("active;expires=3600", "third")
		second := r.store.hold()
		close(first)
		settle()
		c.wantNotify("active;expires=3599", "third")
		close(second)
		for _, c := range []*call{c, c2} {
			c.subscribe(200, "Expires: 0")
			c.notified()
		}
		r.empty()
		r.Do(alice, func(turn *Turn) {
			if len(turn.sh.parked)+len(turn.sh.parkedBy) != 0 {
				t.Error("something is parked still")
			}
		})
	})
}

// What pacing keeps back is sent before a clean stop: after it nobody would
// know that it was owed.
func TestStopSendsWhatIsPaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		c := p.call(bob, alice)
		c.subscribe(200, "Event: presence.winfo", "-Accept")
		c.notified()
		r.set(alice, active("second"))
		c.notified()
		r.set(alice, active("third"))
		c.wantSilence()
		r = restart(t, r, false, nil)
		if n := c.wantNotify("active;expires=3600", "third"); r.store.row(t).CSeqCeiling != n.CSeq() {
			t.Errorf("row %+v after CSeq %d", r.store.row(t), n.CSeq())
		}
	})
}

func TestStopWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		p.notify = func(*sip.Message) int { return 0 }
		c := p.call(bob, alice)
		c.subscribe(200)
		n := c.notified()
		var stopped sync.WaitGroup
		start := time.Now()
		stopped.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := r.Stop(ctx); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(2 * time.Second)
		if m := c.ask(); m != nil {
			t.Errorf("a request was taken\n%s", m.Raw)
		}
		p.respond(n, 200)
		stopped.Wait()
		r.stopped = true
		if d := time.Since(start); d < 2*time.Second || d > 2100*time.Millisecond {
			t.Errorf("stopped after %v", d)
		}
		if row := r.store.row(t); row.CSeqCeiling != 1 {
			t.Errorf("row %+v", row)
		}
	})
	bubble(t, func(t *testing.T) { // a watcher that never answers: as after a crash
		r, p := phoneRig(t, nil)
		p.notify = func(*sip.Message) int { return 0 }
		c := p.call(bob, alice)
		c.subscribe(200)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Stop(ctx); err == nil {
			t.Error("reported as clean")
		}
		r.stopped = true
		if row := r.store.row(t); row.CSeqCeiling != cseqBlock {
			t.Errorf("row %+v", row)
		}
	})
}

// An answer that waits for a commit still leaves while the runtime stops.
func TestStopReleasesAnswers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		block := r.store.hold()
		c := p.call(bob, alice)
		p.send(c.text())
		var stopped sync.WaitGroup
		stopped.Go(func() { r.Stop(t.Context()) })
		time.Sleep(time.Second)
		close(block)
		stopped.Wait()
		r.stopped = true
		settle()
		if m := c.answer(); m == nil || m.Status() != 200 {
			t.Errorf("%v", m)
		}
	})
}

func TestRestore(t *testing.T) {
	row := SubscriptionRow{
		ID: "88112233445566", Shard: 0x88, Event: "presence", Resource: alice, Watcher: bob, CallID: "c@x", LocalURI: alice, RemoteURI: bob,
		RemoteTag: "r", RemoteTarget: "sip:phone@192.0.2.1:5070", LocalContact: "sip:192.0.2.9:5060", RemoteCSeq: 4, CSeqCeiling: 9, VersionOffset: 1,
	}
	for _, c := range []struct {
		name   string
		change func(r *SubscriptionRow)
		to     netip.AddrPort
		state  string
		uri    string
	}{
		{
			name: "by the stored flow", to: proxyAddr, state: "active;expires=600", uri: row.RemoteTarget,
			change: func(r *SubscriptionRow) { r.Flow = "UDP 192.0.2.9:5060 192.0.2.7:5060" },
		},
		{name: "by the remote target", to: phoneAddr, state: "active;expires=600", uri: row.RemoteTarget},
		{
			name: "a connection does not survive: by the remote target at the same address", to: phoneAddr, state: "active;expires=600", uri: row.RemoteTarget,
			change: func(r *SubscriptionRow) { r.Flow = "TCP 192.0.2.9:5060 192.0.2.1:40000" },
		},
		{
			name: "OB-02 a connection does not survive: nobody else is told", to: phoneAddr,
			change: func(r *SubscriptionRow) { r.Flow = "TCP 192.0.2.9:5060 192.0.2.7:40000" },
		},
		{
			name: "WS-01 a browser is gone", to: phoneAddr,
			change: func(r *SubscriptionRow) { r.Flow = "WSS 192.0.2.9:5060 192.0.2.1:40000" },
		},
		{
			name: "by the route set", to: proxyAddr, state: "active;expires=600", uri: row.RemoteTarget,
			change: func(r *SubscriptionRow) { r.RouteSet = "<sip:192.0.2.7;lr>, <sip:p2.example.org;lr>" },
		},
		{
			name: "EV-11 expired meanwhile", to: phoneAddr, state: "terminated;reason=timeout", uri: row.RemoteTarget,
			change: func(r *SubscriptionRow) { r.ExpiresMS = 1 },
		},
		{
			name: "the resource is gone", to: phoneAddr, state: "terminated;reason=noresource", uri: row.RemoteTarget,
			change: func(r *SubscriptionRow) { r.Resource = "sip:gone@example.com" },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				net := newNet(t)
				r := newRig(t, net, serverAddr, nil)
				next := r.wire.next
				r.wire.next = senderFunc(func(f sip.Flow, b []byte, token uint64) error {
					if f.Conn != 0 {
						return sip.ErrFlowGone
					}
					return next.Send(f, b, token)
				})
				r.src.state["sip:gone@example.com"] = Update{State: Terminated, Reason: NoResource}
				p := newPhone(t, net, c.to)
				row := row
				row.Shard = ShardOf(alice)
				row.ID = fmt.Sprintf("%02x112233445566", row.Shard)
				row.ExpiresMS = time.Now().Add(10 * time.Minute).UnixMilli()
				if c.change != nil {
					c.change(&row)
				}
				r.store.rows[row.ID] = row
				if err := restore(r, row, true); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond)
				settle()
				n := p.take(func(m *sip.Message) bool { return m.IsRequest() })
				if c.state == "" {
					if n != nil {
						t.Errorf("\n%s", n.Raw)
					}
					return
				}
				if n == nil {
					t.Fatal("no NOTIFY")
				}
				if header(n, sip.HdrSubscriptionState) != c.state || string(n.RequestURI()) != c.uri || n.CSeq() != 10 || string(n.From().Tag()) != row.ID {
					t.Errorf("\n%s", n.Raw)
				}
			})
		})
	}
	bubble(t, func(t *testing.T) {
		r, _ := phoneRig(t, nil)
		for name, change := range map[string]func(*SubscriptionRow){"package": func(r *SubscriptionRow) { r.Event = "conference" }, "id": func(r *SubscriptionRow) { r.ID = "x" }} {
			row := row
			change(&row)
			if restore(r, row, false) == nil {
				t.Errorf("restored with a bad %s", name)
			}
		}
	})
}

// RL-09: what was a list before a restart and is none any more ends, so that the
// watcher subscribes to what it is now.
func TestRestoredNoList(t *testing.T) {
	for name, now := range map[string]Update{
		"active":  {State: Active, Doc: &Document{Type: pidfType, Body: []byte("first")}},
		"pending": {State: Pending},
	} {
		bubble(t, func(t *testing.T) {
			r, p := phoneRig(t, nil)
			r.src.state[alice] = Update{State: Active, View: listView{}}
			c := p.call(bob, alice)
			c.subscribe(200, "Supported: eventlist")
			c.notified()
			r.stop()
			next := newRig(t, r.net, serverAddr, func(o *Options) { o.Store = r.store })
			next.src.state[alice] = now
			restore(next, r.store.row(t), false)
			settle()
			m := c.wantNotify("terminated;reason=deactivated", "")
			if m.Has(sip.HdrRequire) {
				t.Errorf("%s: Require in\n%s", name, m.Raw)
			}
			if n := len(next.src.detached); n != 1 || r.store.count() != 0 {
				t.Errorf("%s: detached %d times, %d rows", name, n, r.store.count())
			}
			next.empty()
		})
	}
}

// A restored list stays a list: in the row, in Require and for its source, also
// before the source has answered.
func TestRestoredList(t *testing.T) {
	bubble(t, func(t *testing.T) {
		list := listView{}
		r, p := phoneRig(t, nil)
		r.src.state[alice] = Update{State: Active, View: list}
		c := p.call(bob, alice)
		m := c.subscribe(200, "Supported: eventlist")
		wantHeader(t, m, sip.HdrRequire, "eventlist")
		wantHeader(t, c.wantNotify("active;expires=3600", "list version 0 full true"), sip.HdrRequire, "eventlist")
		r.set(alice, Update{State: Active, View: list})
		c.wantNotify("active;expires=3600", "list version 1 full false")
		for i := range 2 {
			r.stop()
			silent := func(o *Options) {}
			next := restart(t, r, false, silent)
			_ = next
			r = next
			if in := r.src.attached; len(in) != 1 || !in[0].EventList {
				t.Fatalf("restart %d: attached %+v", i, in)
			}
			m := c.subscribe(200, "Supported: eventlist")
			wantHeader(t, m, sip.HdrRequire, "eventlist")
			wantHeader(t, c.wantNotify("active;expires=3600", fmt.Sprintf("list version %d full true", 2+i)), sip.HdrRequire, "eventlist")
			if !r.store.row(t).List {
				t.Error("the row forgot that it is a list")
			}
		}
	})
	bubble(t, func(t *testing.T) { // refreshed while the source is silent
		r, p := phoneRig(t, nil)
		r.src.state[alice] = Update{State: Active, View: listView{}}
		c := p.call(bob, alice)
		c.subscribe(200, "Supported: eventlist")
		c.notified()
		r.stop()
		row := r.store.row(t)
		next := newRig(t, r.net, serverAddr, func(o *Options) { o.Store = r.store })
		next.src.silent = true
		restore(next, row, false)
		settle()
		m := c.subscribe(200, "Supported: eventlist")
		wantHeader(t, m, sip.HdrRequire, "eventlist")
		c.wantSilence()
		if !r.store.row(t).List {
			t.Error("the row forgot that it is a list")
		}
		next.src.state[alice] = Update{State: Active, View: listView{}}
		next.set(alice, Update{State: Active, View: listView{}})
		wantHeader(t, c.wantNotify("active;expires=3600", "list version 1 full true"), sip.HdrRequire, "eventlist")
	})
}

// listView is the content of a list that shows what it was asked for.
type listView struct{}

func (listView) EventList() bool { return true }

func (listView) Render(dst []byte, v View) ([]byte, string) {
	return fmt.Appendf(dst, "list version %d full %v", v.Version, v.Full), "multipart/related"
}

func TestSubscriptionInfo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		c := p.call(bob, alice)
		c.subscribe(200, "User-Agent: "+strings.Repeat("x", 300))
		c.notified()
		r.Do(alice, func(turn *Turn) {
			in := turn.Subscriptions()
			if len(in) != 1 || in[0].Dialog != c.toTag || in[0].Resource != alice || in[0].Watcher != bob || in[0].State != "active" || in[0].CSeq != 1 ||
				in[0].CallID != c.id || in[0].InFlight || len(in[0].Agent) != 120 {
				t.Errorf("%+v", in)
			}
		})
	})
}

func restore(r *rig, row SubscriptionRow, notify bool) error {
	rec := r.Recover(0)
	defer rec.Done()
	return rec.Add(row, notify)
}
