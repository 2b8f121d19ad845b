package sip

import (
	"container/heap"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// Fault says what a MemNet does to datagrams. Probabilities are 0 to 1.
type Fault struct {
	Loss, Duplicate, Reorder float64
	Delay                    time.Duration // of every datagram
	Jitter                   time.Duration // a reordered datagram is late by up to this
}

// MemNet is an in-memory datagram network for tests. Inside a
// testing/synctest bubble its delays are virtual. Faults are drawn from a
// seeded source.
type MemNet struct {
	mu    sync.Mutex
	rng   *rand.Rand
	fault Fault
	hosts map[netip.AddrPort]Receiver
	queue memQueue
	seq   uint64
	wake  chan struct{}
	done  chan struct{}
	over  sync.WaitGroup

	closeOnce sync.Once

	sent, lost, delivered uint64
	tap                   func(from, to netip.AddrPort, b []byte)
}

// Receiver takes a received message. It owns the message from then on and
// returns without waiting.
type Receiver func(m *Message)

type memPacket struct {
	at       time.Time
	seq      uint64
	from, to netip.AddrPort
	b        []byte
}

type memQueue []memPacket

func (q memQueue) Len() int { return len(q) }
func (q memQueue) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].seq < q[j].seq
}
func (q memQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *memQueue) Push(x any)   { *q = append(*q, x.(memPacket)) }
func (q *memQueue) Pop() any {
	old := *q
	p := old[len(old)-1]
	*q = old[:len(old)-1]
	return p
}

// NewMemNet starts a network. Close ends it.
func NewMemNet(seed uint64, fault Fault) *MemNet {
	n := &MemNet{
		rng: rand.New(rand.NewPCG(seed, seed)), fault: fault,
		hosts: make(map[netip.AddrPort]Receiver), wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	n.over.Go(n.run)
	return n
}

// Close stops delivery. It is idempotent.
func (n *MemNet) Close() {
	n.closeOnce.Do(func() { close(n.done) })
	n.over.Wait()
}

// SetFault changes the faults for datagrams sent from now on.
func (n *MemNet) SetFault(f Fault) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fault = f
}

// Tap calls fn for every datagram that is delivered. fn must not keep b.
func (n *MemNet) Tap(fn func(from, to netip.AddrPort, b []byte)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tap = fn
}

// Counts gives the datagrams sent, lost and delivered so far.
func (n *MemNet) Counts() (sent, lost, delivered uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent, n.lost, n.delivered
}

// MemHost is one address on a MemNet; it is a Sender.
type MemHost struct {
	net  *MemNet
	addr netip.AddrPort
}

// Host attaches an address. Datagrams to it are parsed and given to recv;
// unparsable ones are answered as an [Endpoint] does. A second call replaces the receiver, nil detaches.
func (n *MemNet) Host(addr netip.AddrPort, recv Receiver) *MemHost {
	n.mu.Lock()
	defer n.mu.Unlock()
	if recv == nil {
		delete(n.hosts, addr)
	} else {
		n.hosts[addr] = recv
	}
	return &MemHost{net: n, addr: addr}
}

// Send queues a datagram from the host's address.
func (h *MemHost) Send(f Flow, b []byte, _ uint64) error {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sent++
	if n.rng.Float64() < n.fault.Loss {
		n.lost++
		return nil
	}
	copies := 1
	if n.rng.Float64() < n.fault.Duplicate {
		copies = 2
	}
	for range copies {
		at := time.Now().Add(n.fault.Delay)
		if n.fault.Jitter > 0 && n.rng.Float64() < n.fault.Reorder {
			at = at.Add(time.Duration(n.rng.Int64N(int64(n.fault.Jitter))))
		}
		n.seq++
		heap.Push(&n.queue, memPacket{at: at, seq: n.seq, from: h.addr, to: f.Remote, b: append([]byte(nil), b...)})
	}
	select {
	case n.wake <- struct{}{}:
	default:
	}
	return nil
}

func (n *MemNet) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := time.Hour
		for {
			n.mu.Lock()
			if len(n.queue) == 0 {
				n.mu.Unlock()
				break
			}
			if d := time.Until(n.queue[0].at); d > 0 {
				wait = d
				n.mu.Unlock()
				break
			}
			p := heap.Pop(&n.queue).(memPacket)
			recv, tap := n.hosts[p.to], n.tap
			n.delivered++
			n.mu.Unlock()
			if tap != nil {
				tap(p.from, p.to, p.b)
			}
			if recv != nil {
				m := NewMessage()
				m.Flow = Flow{Proto: UDP, Local: p.to, Remote: p.from}
				m.At = time.Now()
				err := m.Parse(p.b, false)
				if err == nil {
					recv(m)
					continue
				}
				var pe *ParseError
				if errors.As(err, &pe) && pe.Answerable {
					h := MemHost{net: n, addr: p.to}
					h.Send(ResponseFlow(m), appendRefusal(nil, m, pe), 0)
				}
				m.Release()
			}
		}
		timer.Reset(wait)
		select {
		case <-n.done:
			return
		case <-n.wake:
		case <-timer.C:
		}
	}
}
