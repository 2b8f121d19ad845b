package dialog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rollcall/sip"
)

// logBuffer keeps the log of a rig.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func logged(l *logBuffer, more func(*Options)) func(*Options) {
	return func(o *Options) {
		o.Log = slog.New(slog.NewTextHandler(l, nil))
		if more != nil {
			more(o)
		}
	}
}

// wantUnavailable wants a 503 that says when to come again.
func (c *call) wantUnavailable(m *sip.Message) {
	c.p.t.Helper()
	if m == nil || m.Status() != 503 {
		c.p.t.Fatalf("no 503: %v", m)
	}
	if n, err := strconv.Atoi(header(m, sip.HdrRetryAfter)); err != nil || n < 5 || n > 10 {
		c.p.t.Errorf("Retry-After is %q", header(m, sip.HdrRetryAfter))
	}
}

// A store that fails, or that hangs, in write-through: what is new gets 503 at
// once, what waits is settled within answerLimit, and all is as if the refused
// requests had never come.
func TestOutageWriteThrough(t *testing.T) {
	for _, fails := range []bool{true, false} {
		name := "hangs"
		if fails {
			name = "fails"
		}
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var log logBuffer
				r, p := phoneRig(t, logged(&log, nil))
				old, refreshed := p.call(bob, alice), p.call(bob, alice)
				for _, c := range []*call{old, refreshed} {
					c.subscribe(200)
					c.notified()
				}
				block := r.store.hold()
				c := p.call(bob, alice)
				if m := c.ask(); m != nil {
					t.Fatalf("answered\n%s", m.Raw)
				}
				p.send(refreshed.text("Expires: 7200"))
				if fails {
					r.store.fail(errors.New("disk full"))
					r.store.release(block)
				}
				c.wantTrying()
				if r.Healthy() || !r.StoreState().Down || r.StoreState().Err == nil || r.StoreState().Waiting != 2 {
					t.Errorf("%+v", r.StoreState())
				}
				step(t, "refused at once", func(t *testing.T) {
					late := p.call(bob, alice)
					late.wantUnavailable(late.ask())
					old.wantUnavailable(old.ask())
					pub := p.call(alice, alice)
					pub.method = "PUBLISH"
					pub.wantUnavailable(pub.ask())
					poll := p.call(bob, alice)
					poll.wantUnavailable(poll.ask("Expires: 0"))
				})
				time.Sleep(answerLimit - 3500*time.Millisecond)
				settle()
				c.wantUnavailable(c.answer())
				if m := refreshed.answer(); m == nil || m.Status() != 100 {
					t.Fatalf("no 100: %v", m)
				}
				refreshed.wantUnavailable(refreshed.answer())
				if n := r.Stats().Withdrawn.Load(); n != 2 {
					t.Errorf("%d withdrawn", n)
				}
				time.Sleep(10 * time.Minute)
				r.store.fail(nil)
				if !fails {
					r.store.release(block)
				}
				time.Sleep(3 * time.Second)
				settle()
				if !r.Healthy() || r.StoreState().Waiting != 0 || r.store.count() != 2 || r.Stats().Subscriptions.Load() != 2 {
					t.Errorf("healthy %v, %+v, %d rows, %d subscriptions", r.Healthy(), r.StoreState(), r.store.count(), r.Stats().Subscriptions.Load())
				}
				if n := p.take(func(m *sip.Message) bool { return m.IsRequest() && string(m.CallID()) == c.id }); n != nil {
					t.Errorf("a NOTIFY without a subscription\n%s", n.Raw)
				}
				if log.count("store is down") != 1 || log.count("store works again") != 1 || log.count("\n") != 2 {
					t.Errorf("log:\n%s", log.b.String())
				}
				step(t, "the next try is answered", func(t *testing.T) {
					c.subscribe(200)
					c.wantNotify("active;expires=3600", "first")
					for refreshed.notified() != nil { // of the refresh that was refused
					}
					refreshed.subscribe(200)
					refreshed.wantNotify("active;expires=3600", "first")
				})
				for _, c := range []*call{c, old, refreshed} {
					c.subscribe(200, "Expires: 0")
					c.notified()
				}
				r.empty()
				if r.store.count() != 0 {
					t.Errorf("%d rows left", r.store.count())
				}
			})
		})
	}
}

// A short outage costs nobody anything: the answer comes when the row is stored.
func TestShortOutage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		r.store.fail(errors.New("restarting"))
		c := p.call(bob, alice)
		p.send(c.text())
		time.Sleep(3 * time.Second)
		r.store.fail(nil)
		time.Sleep(2 * time.Second)
		settle()
		if m := c.answer(); m == nil || m.Status() != 200 || r.store.count() != 1 || r.Stats().Withdrawn.Load() != 0 {
			t.Fatalf("%v, %d rows", m, r.store.count())
		}
		c.wantNotify("active;expires=3600", "first")
		time.Sleep(time.Minute)
		c.wantSilence()
	})
}

// What has to be taken back besides subscriptions.
func TestOnWithdraw(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		taken := 0
		r.src.publish = func(t *Turn, req *Request) {
			t.Persist(PutSubscription{Row: SubscriptionRow{ID: "publication"}})
			t.Reply(req, 200, "")
			t.OnWithdraw(func(t *Turn) {
				taken++
				t.Persist(DeleteSubscription{ID: "publication"})
			})
		}
		pub := func() *call {
			c := p.call(alice, alice)
			c.method = "PUBLISH"
			return c
		}
		c := pub()
		if m := c.ask(); m == nil || m.Status() != 200 {
			t.Fatal(m)
		}
		time.Sleep(time.Minute)
		r.store.fail(errors.New("disk full"))
		c = pub()
		c.ask()
		time.Sleep(answerLimit + time.Second)
		r.store.fail(nil)
		time.Sleep(3 * time.Second)
		settle()
		if c.answer() == nil || taken != 1 || r.store.count() != 0 { // 100 first
			t.Errorf("taken back %d times, %d rows", taken, r.store.count())
		}
		c.wantUnavailable(c.answer())
	})
}

// A write that the store refuses for good stops nobody else: in write-through
// its request is refused, and in both modes it is left out and counted.
func TestUnstorable(t *testing.T) {
	for _, durability := range []Durability{WriteThrough, WriteBack} {
		bubble(t, func(t *testing.T) {
			var log logBuffer
			r, p := phoneRig(t, logged(&log, func(o *Options) { o.Durability = durability }))
			r.store.poison = func(w Write) bool {
				put, ok := w.(PutSubscription)
				return ok && put.Row.UserAgent == "poison"
			}
			block := r.store.hold()
			var good, bad []*call
			p.send(p.call(bob, alice).text()) // its commit blocks, the others gather
			for i := range 40 {
				c := p.call(bob, fmt.Sprintf("sip:user%d@example.com", i))
				if i%13 == 5 {
					p.send(c.text("User-Agent: poison"))
					bad = append(bad, c)
				} else {
					p.send(c.text())
					good = append(good, c)
				}
			}
			time.Sleep(flushInterval)
			close(block)
			time.Sleep(time.Second)
			settle()
			for _, c := range good {
				if m := c.answer(); m == nil || m.Status() != 200 {
					t.Fatalf("durability %d: %v", durability, m)
				}
			}
			left := len(good) + 1
			for _, c := range bad {
				m := c.answer()
				switch {
				case m == nil:
					t.Fatal("no answer")
				case durability == WriteThrough && m.Status() != 500:
					t.Errorf("answered\n%s", m.Raw)
				case durability == WriteBack && m.Status() != 200:
					t.Errorf("answered\n%s", m.Raw)
				}
			}
			if r.store.count() != left || r.Stats().Unstorable.Load() != uint64(len(bad)) || !r.Healthy() || r.Stats().CommitErrors.Load() != 0 {
				t.Errorf("durability %d: %d rows, want %d; %d left out", durability, r.store.count(), left, r.Stats().Unstorable.Load())
			}
			if n := log.count("write left out"); n != len(bad) || log.count("subscription ") != n {
				t.Errorf("log\n%s", log.b.String())
			}
			if durability == WriteThrough && r.Stats().Subscriptions.Load() != int64(left) {
				t.Errorf("%d subscriptions", r.Stats().Subscriptions.Load())
			}
		})
	}
}

// Write-back serves without a store, until too much waits.
func TestOutageWriteBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var log logBuffer
		r, p := phoneRig(t, logged(&log, func(o *Options) { o.Durability = WriteBack }))
		old := p.call(bob, alice)
		old.subscribe(200)
		old.notified()
		time.Sleep(time.Second)
		r.store.fail(errors.New("gone"))
		c := p.call(bob, alice)
		c.subscribe(200)
		c.wantNotify("active;expires=3600", "first")
		time.Sleep(time.Minute)
		old.subscribe(200)
		old.wantNotify("active;expires=3600", "first")
		last := ""
		for i := range 2 * cseqBlock { // more than are reserved
			last = fmt.Sprint(i)
			r.set(alice, active(last))
		}
		step(t, "CORE-12: no CSeq beyond the ceiling leaves", func(t *testing.T) {
			r.store.mu.Lock()
			ceiling := r.store.rows[old.toTag].CSeqCeiling
			r.store.mu.Unlock()
			n := uint32(0)
			for m := old.notified(); m != nil; m = old.notified() {
				n = m.CSeq()
			}
			if n != ceiling {
				t.Errorf("CSeq %d, ceiling %d", n, ceiling)
			}
		})
		other := p.call(bob, alice)
		other.subscribe(200)
		other.wantNotify("active;expires=3600", last)
		if r.Healthy() || log.count("store is down; writes wait") != 1 {
			t.Errorf("%+v\n%s", r.StoreState(), log.b.String())
		}
		step(t, "the bound", func(t *testing.T) {
			waiting := r.commit.writes.Load()
			r.commit.writes.Store(backlogLimit + 1)
			c := p.call(bob, alice)
			c.subscribe(503)
			other.subscribe(200)
			other.notified()
			if !r.StoreState().Full {
				t.Error("not full")
			}
			r.commit.writes.Store(2*backlogLimit + 1)
			other.subscribe(503)
			r.commit.writes.Store(waiting + 1) // the refresh
		})
		r.store.fail(nil)
		time.Sleep(3 * time.Second)
		settle()
		old.wantNotify("active;expires=3599", last)
		if !r.Healthy() || r.store.count() != 3 || r.StoreState().Waiting != 0 {
			t.Errorf("%d rows, %+v", r.store.count(), r.StoreState())
		}
	})
}

// checkedStore is a store that can be asked.
type checkedStore struct {
	*fakeStore
	mu   sync.Mutex
	gone error
}

func (s *checkedStore) Check(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone
}

func (s *checkedStore) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = err
}

// A store that goes while nothing is written is noticed, and so is its return.
func TestStoreChecked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		store := &checkedStore{fakeStore: &fakeStore{rows: map[string]SubscriptionRow{}}}
		r, p := phoneRig(t, func(o *Options) { o.Store = store })
		store.set(errors.New("another server has it"))
		time.Sleep(checkInterval + time.Second)
		c := p.call(bob, alice)
		c.wantUnavailable(c.ask())
		if r.Healthy() {
			t.Error("healthy")
		}
		store.set(nil)
		time.Sleep(checkInterval)
		settle()
		c.subscribe(200)
		c.wantNotify("active;expires=3600", "first")
	})
}
