package sip

import (
	"container/heap"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Fault says what a MemNet does to datagrams. Probabilities are 0 to 1.
type Fault struct {
	Loss, Duplicate, Reorder float64
	Delay                    time.Duration // of every datagram
	Spread                   time.Duration // every datagram is late by up to this, besides
	Jitter                   time.Duration // a reordered datagram is late by up to this
}

// MemNet is an in-memory datagram network for tests. Inside a
// testing/synctest bubble its delays are virtual. Faults are drawn from a
// seed and from what a datagram is: between whom, of which dialog and CSeq, the
// how manieth. So they do not depend on what others sent meanwhile.
type MemNet struct {
	mu    sync.Mutex
	seed  uint64
	kinds map[uint64]uint64 // datagrams so far, by what they are
	fault Fault
	hosts map[netip.AddrPort]Receiver
	away  map[netip.AddrPort]bool // cut off
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
		seed: seed, kinds: make(map[uint64]uint64), fault: fault,
		hosts: make(map[netip.AddrPort]Receiver), away: make(map[netip.AddrPort]bool), wake: make(chan struct{}, 1), done: make(chan struct{}),
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

// Isolate cuts an address off, or connects it again. What is under way to it is
// lost too.
func (n *MemNet) Isolate(addr netip.AddrPort, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if cut {
		n.away[addr] = true
	} else {
		delete(n.away, addr)
	}
}

// quietSource serves where there is nothing to draw.
var quietSource = rand.New(zeroSource{})

type zeroSource struct{}

func (zeroSource) Uint64() uint64 { return 0 }

// draw is the source of a datagram's faults.
func (n *MemNet) draw(from, to netip.AddrPort, b []byte) *rand.Rand {
	h := fnv.New64a()
	h.Write(from.AppendTo(nil))
	h.Write(to.AppendTo([]byte{' '}))
	m := NewMessage()
	if m.Parse(append([]byte(nil), b...), false) == nil {
		for _, part := range [][]byte{strconv.AppendInt(nil, int64(m.Status()), 10), m.CallID(), m.Header(HdrCSeq)} {
			h.Write(part)
			h.Write([]byte{' '})
		}
	}
	m.Release()
	kind := h.Sum64()
	n.kinds[kind]++
	return rand.New(rand.NewPCG(n.seed^kind, n.kinds[kind]))
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
	rng := quietSource
	if n.fault != (Fault{Delay: n.fault.Delay}) {
		rng = n.draw(h.addr, f.Remote, b)
	}
	if rng.Float64() < n.fault.Loss || n.away[h.addr] {
		n.lost++
		return nil
	}
	copies := 1
	if rng.Float64() < n.fault.Duplicate {
		copies = 2
	}
	for range copies {
		at := time.Now().Add(n.fault.Delay)
		if n.fault.Spread > 0 {
			at = at.Add(time.Duration(rng.Int64N(int64(n.fault.Spread))))
		}
		if n.fault.Jitter > 0 && rng.Float64() < n.fault.Reorder {
			at = at.Add(time.Duration(rng.Int64N(int64(n.fault.Jitter))))
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
			if n.away[p.to] {
				n.lost++
				n.mu.Unlock()
				continue
			}
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
