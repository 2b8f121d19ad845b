package sip

import (
	"fmt"
	"net/netip"
	"slices"
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

// txNode runs a table of transactions in a goroutine, as a shard does.
type txNode struct {
	tx   *Transactions
	in   chan *Message
	do   chan func(now time.Time)
	done chan struct{}

	requests map[string]int // by Call-ID: how often the user got it
	outcomes map[uint64][]int
	stop     sync.WaitGroup
}

func newTxNode(net *MemNet, addr netip.AddrPort, shard uint8) *txNode {
	n := &txNode{
		in: make(chan *Message, 64), do: make(chan func(time.Time)), done: make(chan struct{}),
		requests: map[string]int{}, outcomes: map[uint64][]int{},
	}
	host := net.Host(addr, func(m *Message) { n.in <- m })
	n.tx = NewTransactions(shard, host, time.Now())
	n.stop.Go(n.run)
	return n
}

func (n *txNode) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := time.Hour
		if at, ok := n.tx.Next(); ok {
			wait = time.Until(at)
		}
		timer.Reset(wait)
		select {
		case <-n.done:
			return
		case m := <-n.in:
			n.message(time.Now(), m)
		case f := <-n.do:
			f(time.Now())
		case <-timer.C:
		}
		n.tx.Advance(time.Now(), func(o Outcome) { n.outcomes[o.User] = append(n.outcomes[o.User], o.Status) })
	}
}

func (n *txNode) message(now time.Time, m *Message) {
	defer m.Release()
	if !m.IsRequest() {
		if out, final, ok := n.tx.Response(now, m); ok && final {
			n.outcomes[out.User] = append(n.outcomes[out.User], out.Status)
		}
		return
	}
	id, how := n.tx.Receive(now, m)
	if how == Repeat {
		return
	}
	n.requests[string(m.CallID())]++
	n.tx.Respond(now, id, AppendBody(AppendResponse(nil, m, 200, "", "srv"), "", nil))
}

// TestTransactionsOnALossyNetwork: with a fifth of the datagrams lost, a tenth
// doubled and many out of order, every client transaction still ends once,
// with a final status or 408, the server executes each request at most once
// (exactly once when it was answered), and both tables end empty (CORE-16,
// CORE-17).
func TestTransactionsOnALossyNetwork(t *testing.T) {
	for _, c := range []struct {
		seed          uint64
		loss          float64
		atLeast, most int // answered
	}{{1, 0.2, 995, 1000}, {2, 0.2, 995, 1000}, {3, 0.2, 995, 1000}, {4, 0.8, 100, 900}} {
		t.Run(fmt.Sprintf("seed %d loss %v", c.seed, c.loss), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const count = 1000
				net := NewMemNet(c.seed, Fault{Loss: c.loss, Duplicate: 0.1, Reorder: 0.3, Delay: 10 * time.Millisecond, Jitter: 300 * time.Millisecond})
				server, client := newTxNode(net, ourAddr, 1), newTxNode(net, peerAddr, 2)
				for i := range uint64(count) {
					client.do <- func(now time.Time) {
						id := client.tx.Open(i)
						req := request(map[string]string{
							"Call-ID": fmt.Sprint("c", i),
							"Via":     "SIP/2.0/UDP 192.0.2.1:5070;rport;branch=" + string(client.tx.AppendBranch(nil, id)),
						})
						client.tx.Request(now, id, Flow{Proto: UDP, Local: peerAddr, Remote: ourAddr}, []byte(req), nil)
					}
					time.Sleep(5 * time.Millisecond)
				}
				time.Sleep(2 * time.Minute)
				close(server.done)
				close(client.done)
				server.stop.Wait()
				client.stop.Wait()
				net.Close()

				ok, timeouts := 0, 0
				for i := range uint64(count) {
					got, seen := client.outcomes[i], server.requests[fmt.Sprint("c", i)]
					switch {
					case slices.Equal(got, []int{200}) && seen == 1:
						ok++
					case slices.Equal(got, []int{408}) && seen <= 1:
						timeouts++
					default:
						t.Errorf("transaction %d: outcomes %v, executed %d times", i, got, seen)
					}
				}
				if ok < c.atLeast || ok > c.most {
					t.Errorf("%d answered, %d timed out", ok, timeouts)
				}
				for _, n := range []*txNode{server, client} {
					s, c := n.tx.Live()
					if s != 0 || c != 0 || len(n.tx.servers) != 0 || n.tx.wheel.Len() != 0 {
						t.Errorf("left: %d server and %d client transactions, %d keys, %d timers", s, c, len(n.tx.servers), n.tx.wheel.Len())
					}
				}
				sent, lost, delivered := net.Counts()
				t.Logf("%d answered, %d timed out; %d datagrams sent, %d lost, %d delivered", ok, timeouts, sent, lost, delivered)
			})
		})
	}
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
