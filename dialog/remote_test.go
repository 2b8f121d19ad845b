package dialog

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"rollcall/sip"
)

// Restored implements Restorer: user 1 goes on, unless it is not interested.
func (s *fakeShard) Restored(_ *Turn, r Restored) uint64 {
	body := ""
	if r.Doc != nil {
		body = " " + string(r.Doc.Body)
	}
	s.hear(1, fmt.Sprintf("restored %s for %s %s%s", r.URI, r.Watcher, r.State, body))
	if r.Watcher == "nobody" {
		return 0
	}
	return 1
}

// remote gives the only remote row.
func (s *fakeStore) remote(t *testing.T) RemoteRow {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.remotes) != 1 {
		t.Fatalf("%d rows", len(s.remotes))
	}
	for _, r := range s.remotes {
		return r
	}
	panic("unreachable")
}

func (s *fakeStore) remoteCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.remotes)
}

// restartRemote stops or kills a rig and starts another on its store.
func restartRemote(t *testing.T, r *rig, kill bool) *rig {
	t.Helper()
	next := restart(t, r, kill, nil)
	next.wire.jump = kill
	for _, row := range slices.Collect(maps.Values(r.store.remotes)) {
		if err := next.RestoreRemote(0, row); err != nil {
			t.Error(err)
		}
	}
	settle()
	return next
}

func forAlice(p *SubscribeTo) { p.Watcher = alice }

// awaited takes the next SUBSCRIBE, before it is repeated.
func (e *elsewhere) awaited(within time.Duration, expires string) *sip.Message {
	e.t.Helper()
	isRequest := func(m *sip.Message) bool { return m.IsRequest() }
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		settle()
		e.mu.Lock()
		there := slices.ContainsFunc(e.in, isRequest)
		e.mu.Unlock()
		if there {
			break
		}
	}
	return e.subscribed(expires)
}

// What is stored when: the row before the SUBSCRIBE, the peer's tag before the
// 200 to its first NOTIFY, the rest behind.
func TestRemoteStored(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, e := remoteRig(t, nil)
		block := r.store.hold()
		id := r.open(forAlice)
		e.quiet()
		close(block)
		settle()
		m := e.subscribed("600")
		row := r.store.remote(t)
		want := RemoteRow{
			ID: formatTag(id), Shard: ShardOf(alice), Event: "presence", Resource: carol, Watcher: alice, CallID: string(m.CallID()), LocalURI: bob,
			RemoteTarget: carol, Accept: pidfType + ", application/xml", CSeqCeiling: cseqBlock, WantMS: 600_000, CreatedMS: time.Now().UnixMilli(),
		}
		if got := fmt.Sprintf("%+v", row); got != fmt.Sprintf("%+v", want) {
			t.Errorf("before the SUBSCRIBE\n%s\nwant\n%+v", got, want)
		}
		e.accept(500)

		block = r.store.hold()
		e.send(e.notifyText("active;expires=500", "one", "Record-Route: <sip:192.0.2.50;lr>"))
		answered := func(m *sip.Message) bool { return !m.IsRequest() && m.Method() == sip.NOTIFY }
		if m := e.take(answered); m != nil {
			t.Errorf("answered before the dialog was stored:\n%s", m.Raw)
		}
		close(block)
		settle()
		if m := e.take(answered); m == nil || m.Status() != 200 {
			t.Errorf("first NOTIFY answered %v", m)
		}
		want.RemoteTag, want.RemoteTarget, want.RouteSet, want.RemoteCSeq = "far", "sip:192.0.2.50:5060", "<sip:192.0.2.50;lr>", 1
		want.State, want.ContentType, want.Body, want.ExpiresMS = Active, pidfType, []byte("one"), time.Now().UnixMilli()+500_000
		if got := fmt.Sprintf("%+v", r.store.remote(t)); got != fmt.Sprintf("%+v", want) {
			t.Errorf("dialog\n%s\nwant\n%+v", got, want)
		}

		step(t, "later NOTIFYs wait for nobody, and many are one write", func(t *testing.T) {
			time.Sleep(2 * time.Second)
			settle()
			before := r.store.begun()
			block := r.store.hold()
			for i := range 20 {
				e.notify(200, "active;expires=490", fmt.Sprint("number ", i))
				time.Sleep(10 * time.Millisecond)
			}
			if n := r.store.begun(); n != before {
				t.Errorf("%d commits at once", n-before)
			}
			close(block)
			time.Sleep(saveDelay + flushInterval)
			settle()
			row := r.store.remote(t)
			if n := r.store.begun() - before; n != 1 || string(row.Body) != "number 19" || row.RemoteCSeq != 21 {
				t.Errorf("%d commits, row %+v", n, row)
			}
		})
		step(t, "the refresh", func(t *testing.T) {
			e.awaited(8*time.Minute, "600")
			e.accept(600)
			e.notify(200, "pending;expires=600", "")
			at := time.Now()
			time.Sleep(saveDelay + flushInterval + 20*time.Millisecond)
			settle()
			row := r.store.remote(t)
			if row.ExpiresMS != at.UnixMilli()+600_000 || row.State != Pending || row.Body != nil || row.ContentType != "" {
				t.Errorf("row %+v", row)
			}
		})
		step(t, "the end", func(t *testing.T) {
			r.unsubscribe(id)
			time.Sleep(flushInterval)
			settle()
			if row := r.store.remote(t); !row.Leaving {
				t.Errorf("row %+v", row)
			}
			e.subscribed("0")
			e.accept(0)
			block := r.store.hold()
			e.send(e.notifyText("terminated;reason=timeout", ""))
			if m := e.take(answered); m != nil {
				t.Errorf("answered before the end was stored:\n%s", m.Raw)
			}
			close(block)
			settle()
			if m := e.take(answered); m == nil || m.Status() != 200 || r.store.remoteCount() != 0 {
				t.Errorf("last NOTIFY answered %v, %d rows", m, r.store.remoteCount())
			}
		})
		r.empty()
	})
}

// A restart loses neither dialog nor state, and never uses a CSeq again.
func TestRemoteRestart(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprint("kill ", kill), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, e := remoteRig(t, nil)
				id := r.open(forAlice)
				first := e.subscribed("600")
				e.accept(600)
				e.notify(200, "active;expires=600", "one", "Record-Route: <sip:192.0.2.50;lr>")
				e.notify(200, "active;expires=600", "two")
				r.wantHeard("active one", "active two")
				time.Sleep(saveDelay + flushInterval + 20*time.Millisecond)
				settle()
				last := e.notifyText("active;expires=590", "three")
				e.send(last)
				e.take(func(m *sip.Message) bool { return !m.IsRequest() })
				r.wantHeard("active three")
				stored := "three"
				if kill {
					stored = "two" // it was written behind
				}

				r = restartRemote(t, r, kill)
				r.wantHeard("restored " + carol + " for " + alice + " active " + stored)
				e.take(func(m *sip.Message) bool { return !m.IsRequest() })
				e.send(last) // its 200 was lost: the peer repeats
				if m := e.take(func(m *sip.Message) bool { return !m.IsRequest() }); m == nil || m.Status() != 200 {
					t.Errorf("the newest NOTIFY again: %v", m)
				}
				r.wantHeard("active three")
				old := e.cseq
				e.cseq = 0
				e.notify(500, "active;expires=600", "old")
				e.cseq = old
				e.notify(200, "active;expires=590", "four") // without Record-Route: the route set stays
				r.wantHeard("active four")

				m := e.awaited(2*RecoveryGap, "600")
				if m.CSeq() <= first.CSeq() || !kill && m.CSeq() != 2 || string(m.To().Tag()) != "far" || string(m.CallID()) != string(first.CallID()) ||
					string(m.From().Tag()) != string(first.From().Tag()) || header(m, sip.HdrRoute) != "<sip:192.0.2.50;lr>" {
					t.Errorf("refresh\n%s", m.Raw)
				}
				e.accept(600)
				e.notify(200, "active;expires=600", "five")
				r.wantHeard("active five")
				r.unsubscribe(id)
				e.subscribed("0")
				e.accept(0)
				e.notify(200, "terminated;reason=timeout", "")
				r.empty()
				if n := r.store.remoteCount(); n != 0 {
					t.Errorf("%d rows left", n)
				}
			})
		})
	}
}

// A CSeq above what is stored is reserved before it is used, in every mode.
func TestRemoteCeiling(t *testing.T) {
	for _, d := range []Durability{WriteThrough, WriteBack} {
		t.Run(fmt.Sprint(d), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, e := remoteRig(t, func(o *Options) { o.Durability = d })
				e.live(r)
				var last *sip.Message
				for range cseqBlock { // the last one is the first beyond the block
					time.Sleep(8*time.Minute + 10*time.Millisecond)
					settle()
					last = e.subscribed("600")
					if row := r.store.remote(t); row.CSeqCeiling < last.CSeq() {
						t.Fatalf("CSeq %d was sent, %d is stored", last.CSeq(), row.CSeqCeiling)
					}
					e.accept(600)
					e.notify(200, "active;expires=600", "one")
				}
				if last.CSeq() != cseqBlock+1 {
					t.Errorf("CSeq %d", last.CSeq())
				}
				r = restartRemote(t, r, true)
				if m := e.awaited(2*RecoveryGap, "600"); m.CSeq() <= last.CSeq() {
					t.Errorf("CORE-12: CSeq %d after %d", m.CSeq(), last.CSeq())
				}
			})
		})
	}
}

// What the store may hold, and what becomes of it.
func TestRemoteRestore(t *testing.T) {
	wants := func(expires string) func(*rig, *elsewhere) {
		return func(r *rig, e *elsewhere) {
			m := e.awaited(2*RecoveryGap, expires)
			if m.CSeq() != 257 || string(m.To().Tag()) != "far" {
				e.t.Errorf("%s", m.Raw)
			}
		}
	}
	for _, c := range []struct {
		name   string
		change func(row *RemoteRow, now int64)
		heard  []string
		play   func(r *rig, e *elsewhere)
		kept   int
	}{
		{name: "live", heard: []string{"restored sip:carol@192.0.2.50 for sip:alice@example.com active stored"}, play: wants("600"), kept: 1},
		{name: "pending without a document", change: func(row *RemoteRow, _ int64) { row.State, row.ContentType, row.Body = Pending, "", nil },
			heard: []string{"restored sip:carol@192.0.2.50 for sip:alice@example.com pending"}, play: wants("600"), kept: 1},
		{name: "2xx, but no NOTIFY yet", change: func(row *RemoteRow, _ int64) {
			row.State, row.ContentType, row.Body, row.RemoteCSeq = Unknown, "", nil, 0
		},
			heard: []string{"restored sip:carol@192.0.2.50 for sip:alice@example.com unknown"}, play: wants("600"), kept: 1},
		{name: "the route set stays", change: func(row *RemoteRow, _ int64) { row.RemoteCSeq, row.RouteSet = 1, "<sip:192.0.2.50;lr>" },
			heard: []string{"restored sip:carol@192.0.2.50 for sip:alice@example.com active stored", "active new"}, play: func(r *rig, e *elsewhere) {
				e.notify(200, "active;expires=600", "new")
				if m := e.awaited(2*RecoveryGap, "600"); header(m, sip.HdrRoute) != "<sip:192.0.2.50;lr>" {
					e.t.Errorf("CORE-11:\n%s", m.Raw)
				}
			}, kept: 1},
		{name: "expired", change: func(row *RemoteRow, now int64) { row.ExpiresMS = now }},
		{name: "leaving", change: func(row *RemoteRow, _ int64) { row.Leaving = true }, play: wants("0"), kept: 1},
		{name: "leaving, and no tag", change: func(row *RemoteRow, _ int64) { row.Leaving, row.RemoteTag = true, "" }, play: func(r *rig, e *elsewhere) {
			e.notify(200, "active;expires=600", "late")
			e.subscribed("0")
		}, kept: 1},
		{name: "nobody wants it", change: func(row *RemoteRow, _ int64) { row.Watcher = "nobody" },
			heard: []string{"restored sip:carol@192.0.2.50 for nobody active stored"}, play: wants("0"), kept: 1},
		{name: "early", change: func(row *RemoteRow, now int64) {
			row.RemoteTag, row.State, row.RemoteCSeq, row.ExpiresMS, row.ContentType, row.CreatedMS = "", Unknown, 0, 0, "", now-2000
		}, heard: []string{"restored sip:carol@192.0.2.50 for sip:alice@example.com unknown", "active late"}, play: func(r *rig, e *elsewhere) {
			time.Sleep(29 * time.Second)
			e.quiet()
			e.notify(200, "active;expires=600", "late")
			if row := r.store.remote(e.t); row.RemoteTag != "far" {
				e.t.Errorf("row %+v", row)
			}
		}, kept: 1},
		{name: "early, and nothing comes", change: func(row *RemoteRow, now int64) {
			row.RemoteTag, row.State, row.RemoteCSeq, row.ExpiresMS, row.ContentType, row.CreatedMS = "", Unknown, 0, 0, "", now-2000
		}, heard: []string{"restored sip:carol@192.0.2.50 for sip:alice@example.com unknown", "ended 408"}, play: func(r *rig, e *elsewhere) {
			time.Sleep(31 * time.Second)
			e.quiet()
		}},
		{name: "early, long ago", change: func(row *RemoteRow, now int64) {
			row.RemoteTag, row.State, row.RemoteCSeq, row.ExpiresMS, row.ContentType, row.CreatedMS = "", Unknown, 0, 0, "", now-32_000
		}, play: func(r *rig, e *elsewhere) { e.notify(481, "active;expires=600", "ghost") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, e := remoteRig(t, nil)
				now := time.Now().UnixMilli()
				row := RemoteRow{
					ID: formatTag(uint64(ShardOf(alice))<<48 | 77), Shard: ShardOf(alice), Event: "presence", Resource: carol, Watcher: alice, CallID: "stored@rollcall",
					LocalURI: bob, RemoteTag: "far", RemoteTarget: "sip:192.0.2.50:5060", Accept: pidfType, RemoteCSeq: 4, CSeqCeiling: 256,
					State: Active, ContentType: pidfType, Body: []byte("stored"), WantMS: 600_000, CreatedMS: now - 90_000, ExpiresMS: now + 500_000,
				}
				if c.change != nil {
					c.change(&row, now)
				}
				r.store.remotes[row.ID] = row
				e.cseq = 10
				e.sub = parse(t, []byte("SUBSCRIBE "+carol+" SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.9:5060;branch=z9hG4bK1\r\nFrom: <"+bob+">;tag="+row.ID+
					"\r\nTo: <"+carol+">\r\nCall-ID: stored@rollcall\r\nCSeq: 1 SUBSCRIBE\r\nContact: <sip:192.0.2.9:5060>\r\nContent-Length: 0\r\n\r\n"))
				if err := r.RestoreRemote(0, row); err != nil {
					t.Fatal(err)
				}
				settle()
				if c.play != nil {
					c.play(r, e)
				}
				time.Sleep(flushInterval)
				settle()
				r.wantHeard(c.heard...)
				if n := r.store.remoteCount(); n != c.kept {
					t.Errorf("%d rows, want %d", n, c.kept)
				}
				if n := r.Stats().Remote.Load(); int(n) != c.kept {
					t.Errorf("%d subscriptions, want %d", n, c.kept)
				}
			})
		})
	}
	t.Run("bad rows", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r, _ := remoteRig(t, nil)
			for _, row := range []RemoteRow{{ID: "x", Event: "presence"}, {ID: formatTag(1), Event: "other"}} {
				if err := r.RestoreRemote(0, row); err == nil || !strings.Contains(err.Error(), row.ID) {
					t.Errorf("%v", err)
				}
			}
		})
	})
}

// What a restart causes is spread, and what is due at its own time is then.
func TestRemoteSpread(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, e := remoteRig(t, nil)
		start := time.Now()
		const n = 30
		for i := range n {
			row := RemoteRow{
				ID: formatTag(uint64(ShardOf(alice))<<48 | uint64(i+1)), Shard: ShardOf(alice), Event: "presence", Resource: carol, Watcher: alice,
				CallID: fmt.Sprint("c", i), LocalURI: bob, RemoteTag: "far", RemoteTarget: "sip:192.0.2.50:5060", Accept: pidfType, CSeqCeiling: 1,
				State: Active, WantMS: 600_000, ExpiresMS: start.UnixMilli() + 100_000,
			}
			if i == n-1 {
				row.ExpiresMS = start.UnixMilli() + 120_000 + 4_500 // due in 4.5 s
			}
			if err := r.RestoreRemote(0, row); err != nil {
				t.Fatal(err)
			}
		}
		var gaps []time.Duration
		own := time.Duration(0)
		for last := start; len(gaps) < n-1; last = time.Now() {
			m := e.awaited(2*time.Second, "600")
			if string(m.CallID()) == fmt.Sprint("c", n-1) {
				own = time.Since(start)
				e.accept(600)
				m = e.awaited(2*time.Second, "600")
			}
			gaps = append(gaps, time.Since(last))
			e.accept(600)
		}
		if slices.Min(gaps[1:]) < RecoveryGap-200*time.Millisecond || slices.Max(gaps) > RecoveryGap+200*time.Millisecond {
			t.Errorf("gaps %v", gaps)
		}
		if own < 4500*time.Millisecond || own > 4700*time.Millisecond {
			t.Errorf("what is due after 4.5 s came after %v", own)
		}
	})
}

// While a stop waits for the store nothing is sent any more: its CSeq is stored.
func TestRemoteStopping(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, e := remoteRig(t, nil)
		e.live(r)
		time.Sleep(8*time.Minute - 2*time.Second)
		block := r.store.hold()
		done := make(chan error)
		r.stopped = true
		go func() { done <- r.Stop(context.Background()) }()
		time.Sleep(5 * time.Second)
		settle()
		e.quiet()
		close(block)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if row := r.store.remote(t); row.CSeqCeiling != 1 {
			t.Errorf("row %+v", row)
		}
		e.quiet()
	})
}

// In memory mode nothing is stored and nothing waits.
func TestRemoteInMemory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, e := remoteRig(t, func(o *Options) { o.Durability = Memory })
		id := e.live(r)
		r.unsubscribe(id)
		e.subscribed("0")
		e.accept(0)
		e.notify(200, "terminated;reason=timeout", "")
		r.empty()
		if n := r.store.begun(); n != 0 {
			t.Errorf("%d commits", n)
		}
	})
}
