package sip

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memRun sends n numbered requests from one host to another and gives the
// numbers in the order of their arrival with the time of each.
func memRun(t *testing.T, seed uint64, fault Fault, n int) (got []string) {
	synctest.Test(t, func(t *testing.T) {
		net := NewMemNet(seed, fault)
		defer net.Close()
		start := time.Now()
		net.Host(ourAddr, func(m *Message) {
			if m.Flow != (Flow{Proto: UDP, Local: ourAddr, Remote: peerAddr}) || !m.At.Equal(time.Now()) {
				t.Errorf("flow %+v at %v", m.Flow, m.At)
			}
			got = append(got, fmt.Sprintf("%d@%v", m.CSeq(), m.At.Sub(start)))
		})
		host := net.Host(peerAddr, func(*Message) {})
		for i := range n {
			host.Send(Flow{Remote: ourAddr}, []byte(request(map[string]string{"CSeq": fmt.Sprint(i, " SUBSCRIBE")})), 0)
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		sent, lost, delivered := net.Counts()
		if sent != uint64(n) || delivered != uint64(len(got)) || lost > sent {
			t.Errorf("counts %d %d %d, arrived %d", sent, lost, delivered, len(got))
		}
	})
	return got
}

func TestMemNet(t *testing.T) {
	t.Run("no faults: all, in order, after the delay", func(t *testing.T) {
		got := memRun(t, 1, Fault{Delay: 5 * time.Millisecond}, 3)
		if want := []string{"0@5ms", "1@15ms", "2@25ms"}; !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	})
	t.Run("spread: nothing at the same distance", func(t *testing.T) {
		got := memRun(t, 1, Fault{Delay: time.Millisecond, Spread: time.Millisecond}, 20)
		late := make(map[string]bool)
		for i, g := range got {
			var seq int
			_, at, _ := strings.Cut(g, "@")
			fmt.Sscan(g, &seq)
			d, err := time.ParseDuration(at)
			if d -= time.Duration(seq) * 10 * time.Millisecond; err != nil || seq != i || d < time.Millisecond || d >= 2*time.Millisecond {
				t.Errorf("%s: late by %v, %v", g, d, err)
			}
			late[d.String()] = true
		}
		if len(late) != 20 {
			t.Errorf("%d different delays of 20", len(late))
		}
	})
	t.Run("faults of one message do not depend on others", func(t *testing.T) {
		fault := Fault{Loss: 0.5, Spread: time.Second}
		all := memRun(t, 3, fault, 200)
		synctest.Test(t, func(t *testing.T) {
			net := NewMemNet(3, fault)
			defer net.Close()
			start := time.Now()
			net.Host(ourAddr, func(m *Message) {
				if got := fmt.Sprintf("%d@%v", m.CSeq(), m.At.Sub(start)); !slices.Contains(all, got) {
					t.Errorf("%s is not what it was among others", got)
				}
			})
			host := net.Host(peerAddr, nil)
			for i := 0; i < 200; i++ {
				if i%2 == 0 {
					host.Send(Flow{Remote: ourAddr}, []byte(request(map[string]string{"CSeq": fmt.Sprint(i, " SUBSCRIBE")})), 0)
				}
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(time.Minute)
		})
	})
	t.Run("isolated: neither to nor from, nor what is under way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := NewMemNet(1, Fault{Delay: time.Second})
			defer net.Close()
			n := 0
			recv := func(*Message) { n++ }
			net.Host(ourAddr, recv)
			net.Host(peerAddr, recv)
			send := func() {
				for _, h := range []struct{ from, to netip.AddrPort }{{peerAddr, ourAddr}, {ourAddr, peerAddr}} {
					(&MemHost{net: net, addr: h.from}).Send(Flow{Remote: h.to}, []byte(request(nil)), 0)
				}
			}
			send()
			net.Isolate(peerAddr, true)
			send()
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if n != 1 { // what had left
				t.Errorf("%d messages arrived, want 1", n)
			}
			net.Isolate(peerAddr, false)
			send()
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if n != 3 {
				t.Errorf("%d messages arrived, want 3", n)
			}
		})
	})
	t.Run("no faults: in order also within an instant", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := NewMemNet(1, Fault{Delay: time.Second})
			defer net.Close()
			last := uint32(0)
			net.Host(ourAddr, func(m *Message) {
				if m.CSeq() != last+1 {
					t.Errorf("%d after %d", m.CSeq(), last)
				}
				last = m.CSeq()
			})
			host := net.Host(peerAddr, nil)
			for i := range 50 {
				host.Send(Flow{Remote: ourAddr}, []byte(request(map[string]string{"CSeq": fmt.Sprint(i+1, " SUBSCRIBE")})), 0)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if last != 50 {
				t.Errorf("%d arrived", last)
			}
		})
	})
	t.Run("faults are seeded and repeatable", func(t *testing.T) {
		fault := Fault{Loss: 0.2, Duplicate: 0.1, Reorder: 0.3, Delay: time.Millisecond, Jitter: 200 * time.Millisecond}
		a, b, c := memRun(t, 1, fault, 1000), memRun(t, 1, fault, 1000), memRun(t, 2, fault, 1000)
		if !slices.Equal(a, b) {
			t.Error("the same seed gives another run")
		}
		if slices.Equal(a, c) {
			t.Error("another seed gives the same run")
		}
		seen := map[string]int{}
		swapped, last := 0, -1
		for _, g := range a {
			var n int
			fmt.Sscanf(g, "%d@", &n)
			seen[fmt.Sprint(n)]++
			if n < last {
				swapped++
			}
			last = max(last, n)
		}
		twice := 0
		for _, n := range seen {
			if n == 2 {
				twice++
			}
		}
		if lost := 1000 - len(seen); lost < 150 || lost > 250 || twice < 50 || twice > 120 || swapped < 100 {
			t.Errorf("lost %d, duplicated %d, out of order %d", lost, twice, swapped)
		}
	})
	t.Run("unknown hosts, detached hosts and garbage", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := NewMemNet(1, Fault{})
			n := 0
			net.Tap(func(from, to netip.AddrPort, b []byte) { n++ })
			net.Host(ourAddr, func(*Message) { t.Error("received") })
			host := net.Host(peerAddr, nil)
			host.Send(Flow{Remote: ourAddr}, []byte("garbage\r\n\r\n"), 0)
			host.Send(Flow{Remote: peerAddr}, []byte(request(nil)), 0)
			synctest.Wait()
			net.Host(ourAddr, nil)
			host.Send(Flow{Remote: ourAddr}, []byte(request(nil)), 0)
			synctest.Wait()
			if n != 3 {
				t.Errorf("tapped %d", n)
			}
			net.Close()
			net.Close() // idempotent
		})
	})
}

// Ways in which a server answers, by the number of the request.
const (
	answersAtOnce  = iota
	answersLate    // after several retransmissions
	answersStored  // has its answer at once, but it may leave late only
	answersTooLate // when the client has given up
	answersTrying  // sends 100 at once by itself, and answers late
	answersNever   // does not even see the request
	answersWays    // how many there are
)

const (
	late         = 9 * time.Second
	tooLate      = TimerF + 5*time.Second
	wheelsLate   = 20 * wheelTick // a chain of timers
	lossyDelay   = 10 * time.Millisecond
	lossyJitter  = 300 * time.Millisecond
	lossyBetween = 2 * time.Millisecond // two requests
)

func wayOf(i uint64) int {
	if i%4 > 0 {
		return answersAtOnce
	}
	return int(i / 4 % answersWays)
}

// txNode runs a table of transactions in a goroutine, as a shard does. It is
// the sender of its own table, so that it knows what leaves when.
type txNode struct {
	*MemHost
	tx   *Transactions
	in   chan *Message
	do   chan func(now time.Time)
	done chan struct{}
	stop sync.WaitGroup

	seen    map[uint64]*txSeen // by number
	replies map[uint64]func(now time.Time)
	wheel   *Wheel // of replies
}

// txSeen is what happened to a transaction at one of its ends, and when.
type txSeen struct {
	executed int
	arrived  time.Time
	sent     []time.Time // requests
	tryings  []time.Time // sent or, by a client, received
	outcomes []int
	ended    time.Time
}

func newTxNode(net *MemNet, addr netip.AddrPort, shard uint8) *txNode {
	n := &txNode{
		in: make(chan *Message, 1024), do: make(chan func(time.Time)), done: make(chan struct{}),
		seen: map[uint64]*txSeen{}, replies: map[uint64]func(time.Time){}, wheel: NewWheel(time.Now()),
	}
	n.MemHost = net.Host(addr, func(m *Message) { n.in <- m })
	n.tx = NewTransactions(shard, n, time.Now())
	n.stop.Go(n.run)
	return n
}

func (n *txNode) of(i uint64) *txSeen {
	if n.seen[i] == nil {
		n.seen[i] = &txSeen{}
	}
	return n.seen[i]
}

// numberIn finds the number of the transaction a message belongs to.
func numberIn(b []byte) (i uint64) {
	_, rest, _ := bytes.Cut(b, []byte("Call-ID: c"))
	number, _, _ := bytes.Cut(rest, []byte{'\r'})
	i, _ = strconv.ParseUint(string(number), 10, 64)
	return i
}

func (n *txNode) Send(f Flow, b []byte, token uint64) error {
	if token != 0 {
		s := n.of(numberIn(b))
		s.sent = append(s.sent, time.Now())
	} else if bytes.HasPrefix(b, []byte("SIP/2.0 100 ")) {
		s := n.of(numberIn(b))
		s.tryings = append(s.tryings, time.Now())
	}
	return n.MemHost.Send(f, b, token)
}

func (n *txNode) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := time.Hour
		for _, next := range []func() (time.Time, bool){n.tx.Next, n.wheel.Next} {
			if at, ok := next(); ok {
				wait = min(wait, time.Until(at))
			}
		}
		timer.Reset(wait)
		select {
		case <-n.done:
			return
		case m := <-n.in:
			if m.IsRequest() {
				n.request(time.Now(), m)
			} else {
				n.response(time.Now(), m)
			}
		case f := <-n.do:
			f(time.Now())
		case <-timer.C:
		}
		n.tx.Advance(time.Now(), func(o Outcome) { n.end(time.Now(), o) })
		n.wheel.Advance(time.Now(), func(i uint64) {
			n.replies[i](time.Now())
			delete(n.replies, i)
		})
	}
}

func (n *txNode) end(now time.Time, o Outcome) {
	s := n.of(o.User)
	s.outcomes, s.ended = append(s.outcomes, o.Status), now
}

func (n *txNode) response(now time.Time, m *Message) {
	defer m.Release()
	out, final, ok := n.tx.Response(now, m)
	switch {
	case ok && final:
		n.end(now, out)
	case ok:
		s := n.of(out.User)
		s.tryings = append(s.tryings, now)
	}
}

// request is a server that answers in the way of the request's number.
func (n *txNode) request(now time.Time, m *Message) {
	i := numberIn(m.Raw)
	way := wayOf(i)
	if way == answersNever {
		m.Release()
		return
	}
	id, how := n.tx.Receive(now, m)
	if how == Repeat {
		m.Release()
		return
	}
	s := n.of(i)
	s.executed++
	s.arrived = now
	answer := AppendBody(AppendResponse(nil, m, 200, "", "srv"), "", nil)
	wait := late
	switch way {
	case answersAtOnce:
		n.tx.Respond(now, id, answer)
		m.Release()
		return
	case answersStored:
		n.tx.Answered(id, answer)
		m.Release()
		m = nil
	case answersTrying:
		n.MemHost.Send(ResponseFlow(m), AppendBody(AppendResponse(nil, m, 100, "", ""), "", nil), 0)
		n.tx.Keep(id, m)
	case answersTooLate:
		wait = tooLate
		n.tx.Keep(id, m)
	default:
		n.tx.Keep(id, m)
	}
	n.replies[i] = func(now time.Time) {
		if m != nil {
			m.Release()
		}
		n.tx.Respond(now, id, answer)
	}
	n.wheel.Add(now.Add(wait), i)
}

// checkTimerE tells whether a client sent when it should have: timer E doubles
// from T1 to T2, and is T2 from the first timer that starts after a 100.
func checkTimerE(sent []time.Time, slow, end time.Time) error {
	gap := T1
	for k := 1; k <= len(sent); k++ {
		due := sent[k-1].Add(gap)
		if k == len(sent) {
			if due.Add(wheelsLate).Before(end) {
				return fmt.Errorf("no retransmission %v after number %d", gap, k)
			}
			return nil
		}
		if d := sent[k].Sub(due); d < 0 || d > wheelsLate {
			return fmt.Errorf("retransmission %d came %v after the one before, want %v", k, sent[k].Sub(sent[k-1]), gap)
		}
		if gap = min(2*gap, T2); !slow.IsZero() && slow.Before(sent[k]) {
			gap = T2
		}
	}
	return nil
}

// TestTransactionsOnALossyNetwork: with a fifth of the datagrams lost, a tenth
// doubled and many out of order, at servers that answer at once, late, too late
// or never, every client transaction still ends once, with a final status or
// with 408 at timer F, and repeats its request when it should; the server
// executes each request at most once (exactly once when it was answered) and
// sends 100 once, and only when the answer takes time; all that the tables hold
// is gone in the end (CORE-16, CORE-17, RFC 4320).
func TestTransactionsOnALossyNetwork(t *testing.T) {
	for _, c := range []struct {
		seed  uint64
		loss  float64
		count int
	}{{1, 0.2, 10000}, {2, 0.2, 10000}, {3, 0.2, 10000}, {4, 0.8, 2000}} {
		t.Run(fmt.Sprintf("seed %d loss %v", c.seed, c.loss), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := NewMemNet(c.seed, Fault{Loss: c.loss, Duplicate: 0.1, Reorder: 0.3, Delay: lossyDelay, Jitter: lossyJitter})
				server, client := newTxNode(net, ourAddr, 1), newTxNode(net, peerAddr, 2)
				for i := range uint64(c.count) {
					client.do <- func(now time.Time) {
						id := client.tx.Open(i)
						req := request(map[string]string{
							"Call-ID": fmt.Sprint("c", i),
							"Via":     "SIP/2.0/UDP 192.0.2.1:5070;rport;branch=" + string(client.tx.AppendBranch(nil, id)),
						})
						client.tx.Request(now, id, Flow{Proto: UDP, Local: peerAddr, Remote: ourAddr}, []byte(req), nil)
					}
					time.Sleep(lossyBetween)
				}
				time.Sleep(tooLate + TimerF + TimerJ) // nothing is under way any more
				close(server.done)
				close(client.done)
				server.stop.Wait()
				client.stop.Wait()
				net.Close()

				answered := map[int]int{}
				for i := range uint64(c.count) {
					if err := checkTransaction(i, client.of(i), server.of(i)); err != nil {
						t.Errorf("transaction %d: %v", i, err)
					} else if client.of(i).outcomes[0] == 200 {
						answered[wayOf(i)]++
					}
				}
				for way, most := range map[int]int{answersAtOnce: 1, answersLate: 1, answersStored: 1, answersTrying: 1, answersTooLate: 0, answersNever: 0} {
					all := 0
					for i := range uint64(c.count) {
						if wayOf(i) == way {
							all++
						}
					}
					least := all * most * 98 / 100
					if c.loss > 0.5 {
						least = all * most / 20
					}
					if n := answered[way]; n < least || n > most*all {
						t.Errorf("way %d: %d of %d answered", way, n, all)
					}
				}
				for _, n := range []*txNode{server, client} {
					if left := n.tx.held(); left != "" {
						t.Errorf("left: %s", left)
					}
				}
				sent, lost, delivered := net.Counts()
				t.Logf("answered by way %v; %d datagrams sent, %d lost, %d delivered", answered, sent, lost, delivered)
			})
		})
	}
}

// checkTransaction holds both ends of a transaction to RFC 3261 section 17.
func checkTransaction(i uint64, c, s *txSeen) error {
	way := wayOf(i)
	if len(c.outcomes) != 1 || len(c.sent) == 0 {
		return fmt.Errorf("outcomes %v", c.outcomes)
	}
	took := c.ended.Sub(c.sent[0])
	switch status := c.outcomes[0]; {
	case status == 200 && s.executed != 1, status == 408 && s.executed > 1, status != 200 && status != 408:
		return fmt.Errorf("outcome %d, executed %d times", status, s.executed)
	case status == 408 && (took < TimerF || took > TimerF+wheelTick):
		return fmt.Errorf("timer F after %v", took)
	case status == 200 && took > TimerF:
		return fmt.Errorf("answered after %v", took)
	}
	var slow time.Time
	if len(c.tryings) > 0 {
		slow = c.tryings[0]
	}
	if err := checkTimerE(c.sent, slow, c.ended); err != nil {
		return err
	}
	// The 100 of the table comes once, when the client's timer E is at T2.
	if way == answersAtOnce || s.executed == 0 {
		if len(s.tryings) > 0 || len(c.tryings) > 0 {
			return fmt.Errorf("100 sent %d times, received %d times", len(s.tryings), len(c.tryings))
		}
		return nil
	}
	if len(s.tryings) != 1 || !s.tryings[0].Equal(s.arrived.Add(3500*time.Millisecond)) {
		return fmt.Errorf("100 at %v of a request that came at %v", s.tryings, s.arrived)
	}
	return nil
}

// held says what a table still holds.
func (t *Transactions) held() string {
	servers, clients := t.Live()
	if servers+clients+t.servers.n+t.merged.n+t.wheel.Len() == 0 && t.done == (queue{}) && t.waiting == (queue{}) {
		return ""
	}
	return fmt.Sprintf("%d server and %d client transactions, %d and %d keys, %d timers, queues %v and %v",
		servers, clients, t.servers.n, t.merged.n, t.wheel.Len(), t.done, t.waiting)
}

func TestLiteralHop(t *testing.T) {
	for _, c := range []struct{ name, uri, want, err string }{
		{"DNS-01 address, default port", "sip:bob@192.0.2.1", "UDP 192.0.2.1:5060", ""},
		{"DNS-01 explicit port", "sip:bob@192.0.2.1:5099", "UDP 192.0.2.1:5099", ""},
		{"DNS-01 transport parameter", "sip:bob@192.0.2.1;transport=TCP", "TCP 192.0.2.1:5060", ""},
		{"DNS-01 tls has another default port", "sip:192.0.2.1;transport=tls", "TLS 192.0.2.1:5061", ""},
		{"DNS-01 sips", "sips:bob@192.0.2.1", "TLS 192.0.2.1:5061", ""},
		{"maddr", "sip:bob@example.com:5077;maddr=192.0.2.3", "UDP 192.0.2.3:5077", ""},
		{"IPv6", "sip:bob@[2001:db8::1]:5099;transport=tcp", "TCP [2001:db8::1]:5099", ""},
		{"IPv4 in IPv6", "sip:bob@[::ffff:192.0.2.1]", "UDP 192.0.2.1:5060", ""},
		{"a name", "sip:bob@example.com", "", "not an address"},
		{"a transport that is not there", "sip:bob@192.0.2.1;transport=sctp", "", "not supported"},
		{"no URI", "bob", "", "bad URI"},
	} {
		t.Run(c.name, func(t *testing.T) {
			proto, remote, err := LiteralHop(c.uri)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := proto.String() + " " + remote.String(); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}
