package sip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
)

// packetQueue bounds the datagrams that wait for one socket. Beyond it they are
// dropped, as the network does: transactions repeat them.
const packetQueue = 16384

// flushAt is the length of a queue from which whoever adds to it also writes
// it. A writer that takes turns with hundreds of busy shards would fall behind
// for good, and what is lost then comes again as more work.
const flushAt = 16 * writeBatch

// maxPacketSockets bounds the sockets of one UDP listener.
const maxPacketSockets = 8

var errPacketQueue = errors.New("sip: UDP send queue is full")

// packetGroup is a UDP listener: sockets that share an address. The kernel
// gives all datagrams of a peer to the same one, and answers leave by one
// chosen by the peer's address, so that their order is kept.
type packetGroup struct {
	local netip.AddrPort
	socks []*packetSocket
}

// packetSocket is a socket, its reader and its writer. What shards send is
// queued, so that one call to the kernel takes many datagrams.
type packetSocket struct {
	conn     *net.UDPConn
	raw      syscall.RawConn
	local    netip.AddrPort
	wildcard bool
	wake     chan struct{}

	mu     sync.Mutex
	queue  []datagram
	queued atomic.Int32 // its length, for who only looks

	writing sync.Mutex // held by who takes the queue and writes it: datagrams leave in order
	writer  *packetWriter
	spare   []datagram
}

// datagram is one message on its way out. Its bytes do not change any more.
type datagram struct {
	head, body []byte
	to         netip.AddrPort
	from       netip.Addr // source address, of a wildcard socket
	token      uint64
}

func (e *Endpoint) listenPackets(family, addr string) (netip.AddrPort, error) {
	n := e.opt.PacketSockets
	if !canShareAddress {
		n = 1
	}
	g := &packetGroup{}
	fail := func(err error) (netip.AddrPort, error) {
		for _, s := range g.socks {
			s.conn.Close()
		}
		return netip.AddrPort{}, err
	}
	// The first socket finds out whether somebody else has the address: with
	// SO_REUSEPORT another process of ours would share it without a word.
	if n > 1 {
		c, err := net.ListenPacket("udp"+family, addr)
		if err != nil {
			return fail(err)
		}
		addr = c.LocalAddr().String()
		c.Close()
	}
	for len(g.socks) < n {
		lc := net.ListenConfig{}
		if n > 1 {
			lc.Control = shareAddress
		}
		pc, err := lc.ListenPacket(context.Background(), "udp"+family, addr)
		if err != nil {
			return fail(err)
		}
		c := pc.(*net.UDPConn)
		local := unmap(c.LocalAddr().(*net.UDPAddr).AddrPort())
		s := &packetSocket{conn: c, local: local, wildcard: local.Addr().IsUnspecified(), wake: make(chan struct{}, 1)}
		s.writer = newPacketWriter(s)
		g.local = local
		g.socks = append(g.socks, s)
		if s.raw, err = c.SyscallConn(); err == nil {
			err = s.prepare(e)
		}
		if err != nil {
			return fail(fmt.Errorf("UDP socket options: %w", err))
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return fail(net.ErrClosed)
	}
	groups := append([]*packetGroup(nil), e.groups()...)
	groups = append(groups, g)
	e.packets.Store(&groups)
	for _, s := range g.socks {
		e.over.Go(func() { e.readPackets(s) })
		e.over.Go(func() { e.writePackets(s) })
	}
	return g.local, nil
}

// checkBuffer tells the operator what became of the receive buffer: a burst
// that does not fit is lost in the kernel.
func (e *Endpoint) checkBuffer(got int) {
	if got < e.opt.ReadBuffer {
		e.opt.Log.Warn("UDP receive buffer is smaller than asked for: bursts will be lost; raise net.core.rmem_max",
			"asked_bytes", e.opt.ReadBuffer, "got_bytes", got)
		return
	}
	e.opt.Log.Info("UDP receive buffer", "bytes", got)
}

// groups are the UDP listeners; the slice does not change.
func (e *Endpoint) groups() []*packetGroup {
	if g := e.packets.Load(); g != nil {
		return *g
	}
	return nil
}

// group finds the listener of a local address, or any for none.
func (e *Endpoint) group(local netip.AddrPort) *packetGroup {
	groups := e.groups()
	for _, g := range groups {
		if g.local == local || g.socks[0].wildcard && g.local.Port() == local.Port() {
			return g
		}
	}
	if !local.IsValid() && len(groups) > 0 {
		return groups[0]
	}
	return nil
}

// sendPacket queues a datagram.
func (e *Endpoint) sendPacket(f Flow, head, body []byte, token uint64) error {
	g := e.group(f.Local)
	switch {
	case g == nil:
		return fmt.Errorf("sip: no UDP listener for %v", f.Local)
	case len(head)+len(body) > maxPayload(f.Remote.Addr()):
		return fmt.Errorf("sip: %w: %d bytes do not fit into a datagram", syscall.EMSGSIZE, len(head)+len(body))
	case f.Remote.Addr().Is4() != g.local.Addr().Is4() && !g.socks[0].wildcard:
		return fmt.Errorf("sip: %v cannot be reached from %v", f.Remote, g.local)
	}
	s := g.socks[0]
	if n := len(g.socks); n > 1 {
		a := f.Remote.Addr().As16()
		s = g.socks[int(a[15]^a[14]^byte(f.Remote.Port())^byte(f.Remote.Port()>>8))%n]
	}
	d := datagram{head: head, body: body, to: f.Remote, token: token}
	if s.wildcard {
		d.from = f.Local.Addr()
	}
	s.mu.Lock()
	n := len(s.queue)
	if n < packetQueue {
		s.queue = append(s.queue, d)
		s.queued.Store(int32(n + 1))
	}
	s.mu.Unlock()
	switch {
	case n >= flushAt && s.writing.TryLock():
		e.flush(s, false)
		s.writing.Unlock()
	case n == 0:
		s.poke()
	}
	if n >= packetQueue {
		return errPacketQueue
	}
	return nil
}

func (s *packetSocket) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// maxPayload is the largest UDP payload towards an address.
func maxPayload(a netip.Addr) int {
	if a.Is4() {
		return 65535 - 20 - 8
	}
	return 65535 - 8
}

// writePackets sends what is queued.
func (e *Endpoint) writePackets(s *packetSocket) {
	for {
		select {
		case <-e.gone:
			return
		case <-s.wake:
		}
		// Shards that are about to run have more for this call.
		runtime.Gosched()
		s.writing.Lock()
		e.flush(s, true)
		s.writing.Unlock()
	}
}

// flush writes what is queued; s.writing is held. Who must not wait leaves to
// the writer what the kernel does not take at once.
func (e *Endpoint) flush(s *packetSocket, wait bool) {
	s.mu.Lock()
	batch := s.queue
	s.queue, s.spare = s.spare[:0], nil
	s.queued.Store(0)
	s.mu.Unlock()
	rest := s.writer.write(batch, wait, func(d *datagram, err error) {
		if errors.Is(err, net.ErrClosed) {
			return
		}
		e.stats.SendErrors.Add(1)
		if d.token != 0 && e.opt.Failed != nil {
			e.opt.Failed(ClientID(d.token), err)
		}
	})
	if len(rest) > 0 {
		s.mu.Lock()
		s.queue = append(rest, s.queue...)
		s.mu.Unlock()
		s.poke()
		return
	}
	clear(batch)
	if cap(batch) <= 4*flushAt {
		s.spare = batch[:0]
	}
}

// refused are a reader's answers to what the Guard refused of a batch. They leave
// when it is done, past the queue: who refuses pays for it at once, and does
// not put 503s before the answers of who works.
type refused struct {
	e      *Endpoint
	s      *packetSocket
	writer *packetWriter
	batch  []datagram
	text   []byte // of all of them
}

func newRefused(e *Endpoint, s *packetSocket) *refused {
	return &refused{e: e, s: s, writer: newPacketWriter(s)}
}

// Refuse implements Refuser.
func (r *refused) Refuse(m *Message) {
	f := ResponseFlow(m)
	if f.Proto != UDP || f.Remote.Addr().Is4() != r.s.local.Addr().Is4() {
		r.e.Refuse(m)
		return
	}
	n := len(r.text)
	r.text = appendOverloaded(r.text, m)
	d := datagram{head: r.text[n:len(r.text):len(r.text)], to: f.Remote}
	if r.s.wildcard {
		d.from = f.Local.Addr()
	}
	if len(d.head) > maxPayload(f.Remote.Addr()) {
		r.text = r.text[:n]
		r.e.stats.SendErrors.Add(1)
		return
	}
	r.e.opt.Guard.Sent(f, d.head, nil)
	r.batch = append(r.batch, d)
}

// flush sends them; what the kernel has no room for is dropped.
func (r *refused) flush() {
	if len(r.batch) == 0 {
		return
	}
	lost := 0
	lost += len(r.writer.write(r.batch, false, func(*datagram, error) { lost++ }))
	r.e.stats.SendErrors.Add(uint64(lost))
	r.e.stats.Sent.Add(uint64(len(r.batch) - lost))
	clear(r.batch)
	r.batch, r.text = r.batch[:0], r.text[:0]
}

// receivePacket takes a datagram that is in m.Raw.
func (e *Endpoint) receivePacket(s *packetSocket, m *Message, from netip.AddrPort, to netip.Addr, no Refuser) {
	e.stats.Received.Add(1)
	local := s.local
	if s.wildcard {
		if !to.IsValid() {
			to = routed(s.local, from).Addr()
		}
		local = netip.AddrPortFrom(to, local.Port())
	}
	m.Flow = Flow{Proto: UDP, Local: local, Remote: from}
	e.parse(m, false, no)
}

// shortPacket tells keep-alives from messages: CRLF, CRLFCRLF or a few zero
// bytes, as phones send through NATs.
func shortPacket(n int) bool { return n < 12 }

// routed is the local address that packets to a peer leave from, with the port
// of a listener on a wildcard.
func routed(listener, remote netip.AddrPort) netip.AddrPort {
	c, err := net.Dial("udp", remote.String()) // sends nothing
	if err != nil {
		return listener
	}
	defer c.Close()
	return netip.AddrPortFrom(unmap(c.LocalAddr().(*net.UDPAddr).AddrPort()).Addr(), listener.Port())
}

// Unsent is how many datagrams wait for the fullest of the sockets.
func (e *Endpoint) Unsent() int {
	most := 0
	for _, g := range e.groups() {
		for _, s := range g.socks {
			most = max(most, int(s.queued.Load()))
		}
	}
	return most
}

// KernelDrops is the datagrams that the kernel threw away because a receive
// buffer was full; 0 where it does not tell.
func (e *Endpoint) KernelDrops() uint64 {
	var n uint64
	for _, g := range e.groups() {
		for _, s := range g.socks {
			n += s.drops()
		}
	}
	return n
}
