package sip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// maxDatagram is the largest UDP payload there is (CORE-18).
const maxDatagram = 65535

var messagePool = sync.Pool{New: func() any { return new(Message) }}

// NewMessage takes a message from the pool.
func NewMessage() *Message { return messagePool.Get().(*Message) }

// Release gives a message back. Nothing that points into Raw may be used
// afterwards.
func (m *Message) Release() {
	if cap(m.Raw) > 16<<10 {
		m.Raw = nil
	}
	m.Flow = Flow{}
	messagePool.Put(m)
}

// EndpointOptions configures an Endpoint. Zero values take the defaults.
type EndpointOptions struct {
	Receive Receiver       // whole, parsed messages; required
	Failed  func(ClientID) // a message sent with this token could not be delivered
	Log     *slog.Logger

	ReadBuffer   int           // socket receive buffer in bytes, default 16 MiB
	MaxConns     int           // stream connections in all, default 10,000; more are closed on accept
	WriteQueue   int           // bytes queued per connection, default 4 MiB; more closes it
	WriteTimeout time.Duration // for one write, default 10 s
	IdleTimeout  time.Duration // without a byte received, default 65 min: longer than a default subscription
	DialTimeout  time.Duration // default 5 s
}

// Endpoint is the transport layer of RFC 3261 section 18: it owns the sockets,
// frames and parses what arrives and sends what it is given. Unparsable
// requests are answered 400 here, without state, when they can be answered.
type Endpoint struct {
	opt EndpointOptions

	mu       sync.Mutex
	packets  []*packetSocket
	streams  []net.Listener
	conns    map[uint32]*streamConn
	byRemote map[connKey]*streamConn
	nextConn uint32
	closed   bool
	over     sync.WaitGroup

	stats EndpointStats
	limit LogLimit
}

// EndpointStats counts what happened on the wire. Read with atomic loads.
type EndpointStats struct {
	Received, Sent, Malformed, SendErrors, Accepted, Refused atomic.Uint64
}

type connKey struct {
	proto  Proto
	remote netip.AddrPort
}

type packetSocket struct {
	conn  *net.UDPConn
	local netip.AddrPort
	cache sync.Map // of a wildcard socket: remote address to the local one that reaches it
	size  atomic.Int32
}

// NewEndpoint returns an endpoint without listeners.
func NewEndpoint(opt EndpointOptions) *Endpoint {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	defd := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	def(&opt.ReadBuffer, 16<<20)
	def(&opt.MaxConns, 10000)
	def(&opt.WriteQueue, 4<<20)
	defd(&opt.WriteTimeout, 10*time.Second)
	defd(&opt.IdleTimeout, 65*time.Minute)
	defd(&opt.DialTimeout, 5*time.Second)
	return &Endpoint{opt: opt, conns: make(map[uint32]*streamConn), byRemote: make(map[connKey]*streamConn)}
}

// Stats gives the counters.
func (e *Endpoint) Stats() *EndpointStats { return &e.stats }

// Conns is the number of open stream connections.
func (e *Endpoint) Conns() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
}

// Listen binds a UDP or TCP address and starts to receive. Port 0 picks one.
func (e *Endpoint) Listen(proto Proto, addr string) (netip.AddrPort, error) {
	family := ""
	if a, err := netip.ParseAddrPort(addr); err == nil && a.Addr().Is4() {
		family = "4" // else 0.0.0.0 would listen on IPv6 too
	}
	switch proto {
	case UDP:
		ua, err := net.ResolveUDPAddr("udp"+family, addr)
		if err != nil {
			return netip.AddrPort{}, err
		}
		c, err := net.ListenUDP("udp"+family, ua)
		if err != nil {
			return netip.AddrPort{}, err
		}
		if err := c.SetReadBuffer(e.opt.ReadBuffer); err != nil {
			e.opt.Log.Warn("receive buffer not set", "err", err)
		}
		local := unmap(c.LocalAddr().(*net.UDPAddr).AddrPort())
		s := &packetSocket{conn: c, local: local}
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.closed {
			c.Close()
			return netip.AddrPort{}, net.ErrClosed
		}
		e.packets = append(e.packets, s)
		e.over.Go(func() { e.readPackets(s) })
		return local, nil
	case TCP:
		l, err := net.Listen("tcp"+family, addr)
		if err != nil {
			return netip.AddrPort{}, err
		}
		local := unmap(l.Addr().(*net.TCPAddr).AddrPort())
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.closed {
			l.Close()
			return netip.AddrPort{}, net.ErrClosed
		}
		e.streams = append(e.streams, l)
		e.over.Go(func() { e.accept(l, proto) })
		return local, nil
	}
	return netip.AddrPort{}, fmt.Errorf("transport %v is not supported", proto)
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Close closes every socket and waits for their goroutines. It is idempotent.
func (e *Endpoint) Close() {
	e.mu.Lock()
	e.closed = true
	for _, s := range e.packets {
		s.conn.Close()
	}
	for _, l := range e.streams {
		l.Close()
	}
	for _, c := range e.conns {
		c.fail(net.ErrClosed)
	}
	e.mu.Unlock()
	e.over.Wait()
}

func (e *Endpoint) readPackets(s *packetSocket) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of an earlier send
		}
		if n < 12 { // keep-alive: CRLF, CRLFCRLF or a few zero bytes
			continue
		}
		e.stats.Received.Add(1)
		m := NewMessage()
		m.Raw = append(m.Raw[:0], buf[:n]...)
		from = unmap(from)
		m.Flow = Flow{Proto: UDP, Local: s.localFor(from), Remote: from}
		e.parse(m, false)
	}
}

// localFor is the address a peer sees us at. A socket bound to a wildcard asks
// the routing table once per peer address; the memory of it is bounded.
func (s *packetSocket) localFor(remote netip.AddrPort) netip.AddrPort {
	if !s.local.Addr().IsUnspecified() {
		return s.local
	}
	if a, ok := s.cache.Load(remote.Addr()); ok {
		return netip.AddrPortFrom(a.(netip.Addr), s.local.Port())
	}
	local := routed(s.local, remote)
	if s.size.Add(1) > 4096 {
		s.cache.Clear()
		s.size.Store(1)
	}
	s.cache.Store(remote.Addr(), local.Addr())
	return local
}

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

// FlowTo is the flow over which a new request to an address goes: from the
// first listener of the transport that is of the address's family.
func (e *Endpoint) FlowTo(proto Proto, remote netip.AddrPort) (Flow, error) {
	e.mu.Lock()
	var locals []netip.AddrPort
	switch proto {
	case UDP:
		for _, s := range e.packets {
			locals = append(locals, s.local)
		}
	case TCP:
		for _, l := range e.streams {
			locals = append(locals, unmap(l.Addr().(*net.TCPAddr).AddrPort()))
		}
	}
	e.mu.Unlock()
	for _, l := range locals {
		if l.Addr().IsUnspecified() && (l.Addr().Is6() || remote.Addr().Is4()) { // [::] takes both
			l = routed(l, remote)
		}
		if l.Addr().Is4() == remote.Addr().Is4() {
			return Flow{Proto: proto, Local: l, Remote: remote}, nil
		}
	}
	return Flow{}, fmt.Errorf("sip: no %v listener to reach %v from", proto, remote.Addr())
}

// parse hands a message on, or refuses a bad one. It returns false when a
// stream cannot go on.
func (e *Endpoint) parse(m *Message, stream bool) bool {
	m.At = time.Now()
	err := m.Parse(m.Raw, stream)
	if err == nil {
		e.opt.Receive(m)
		return true
	}
	var pe *ParseError
	errors.As(err, &pe) // it always is one
	return e.refuse(m, *pe) || !stream
}

// lost refuses what is at the start of a stream whose framing is lost, as far
// as it can be read.
func (e *Endpoint) lost(f Flow, b []byte, framing error) {
	m := NewMessage()
	m.Raw, m.Flow, m.At = append(m.Raw[:0], b...), f, time.Now()
	pe := ParseError{Code: 400, Reason: framing.Error()}
	if fe := (*ParseError)(nil); errors.As(framing, &fe) {
		pe = *fe
	}
	var found *ParseError
	if err := m.Parse(m.Raw, true); errors.As(err, &found) {
		pe.Answerable = found.Answerable
	} else {
		pe.Answerable = m.IsRequest()
	}
	e.refuse(m, pe)
}

// refuse answers a bad message if it can be answered, reports and releases it.
func (e *Endpoint) refuse(m *Message, pe ParseError) (answered bool) {
	e.stats.Malformed.Add(1)
	if pe.Answerable && m.IsRequest() && m.Method() != ACK {
		resp := AppendResponse(nil, m, pe.Code, pe.Reason, StatelessTag(m))
		resp = AppendBody(resp, "", nil)
		answered = e.Send(ResponseFlow(m), resp, 0) == nil
	}
	if n, ok := e.limit.Allow(m.At); ok {
		e.opt.Log.Warn("malformed message", "remote", m.Flow.Remote.String(), "status", pe.Code, "reason", pe.Reason,
			"answered", answered, "suppressed", n)
	}
	m.Release()
	return answered
}

// StatelessTag is a To tag that is the same for each retransmission of a
// request that is answered without state (RFC 3261 section 8.2.7).
func StatelessTag(m *Message) string {
	h := uint64(14695981039346656037)
	for _, part := range [][]byte{m.CallID(), m.Via().Branch, m.From().Tag()} {
		for _, c := range part {
			h = (h ^ uint64(c)) * 1099511628211
		}
	}
	return string(appendHex([]byte("e-"), h, 16))
}

// Send implements Sender.
func (e *Endpoint) Send(f Flow, b []byte, token uint64) error {
	if f.Proto == UDP {
		s := e.packetFor(f.Local)
		if s == nil {
			e.stats.SendErrors.Add(1)
			return fmt.Errorf("sip: no UDP listener for %v", f.Local)
		}
		if _, err := s.conn.WriteToUDPAddrPort(b, f.Remote); err != nil {
			e.stats.SendErrors.Add(1)
			return err
		}
		e.stats.Sent.Add(1)
		return nil
	}
	c, err := e.connFor(f)
	if err == nil {
		err = c.send(b, token)
	}
	if err != nil {
		e.stats.SendErrors.Add(1)
		return err
	}
	e.stats.Sent.Add(1)
	return nil
}

func (e *Endpoint) packetFor(local netip.AddrPort) *packetSocket {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.packets {
		if s.local == local || s.local.Addr().IsUnspecified() && s.local.Port() == local.Port() {
			return s
		}
	}
	if !local.IsValid() && len(e.packets) > 0 {
		return e.packets[0]
	}
	return nil
}

func (e *Endpoint) connFor(f Flow) (*streamConn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f.Conn != 0 {
		if c := e.conns[f.Conn]; c != nil && c.flow.Remote == f.Remote {
			return c, nil
		}
		return nil, ErrFlowGone
	}
	if c := e.byRemote[connKey{f.Proto, f.Remote}]; c != nil {
		return c, nil
	}
	if f.Proto != TCP {
		return nil, fmt.Errorf("sip: cannot connect over %v", f.Proto)
	}
	if e.closed {
		return nil, net.ErrClosed
	}
	if len(e.conns) >= e.opt.MaxConns {
		return nil, errors.New("sip: too many connections")
	}
	c := e.addConn(Flow{Proto: f.Proto, Local: f.Local, Remote: f.Remote})
	e.byRemote[connKey{f.Proto, f.Remote}] = c
	e.over.Go(func() { c.dial() })
	return c, nil
}

// addConn registers a connection; e.mu is held.
func (e *Endpoint) addConn(f Flow) *streamConn {
	for e.nextConn++; e.nextConn == 0 || e.conns[e.nextConn] != nil; e.nextConn++ {
	}
	f.Conn = e.nextConn
	c := &streamConn{e: e, flow: f, wake: make(chan struct{}, 1), gone: make(chan struct{})}
	e.conns[f.Conn] = c
	return c
}

func (e *Endpoint) accept(l net.Listener, proto Proto) {
	for {
		nc, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors: let some close
			continue
		}
		tc := nc.(*net.TCPConn)
		f := Flow{
			Proto: proto, Local: unmap(tc.LocalAddr().(*net.TCPAddr).AddrPort()),
			Remote: unmap(tc.RemoteAddr().(*net.TCPAddr).AddrPort()),
		}
		e.mu.Lock()
		if e.closed || len(e.conns) >= e.opt.MaxConns {
			e.mu.Unlock()
			e.stats.Refused.Add(1)
			nc.Close()
			continue
		}
		c := e.addConn(f)
		e.mu.Unlock()
		e.stats.Accepted.Add(1)
		e.over.Go(func() { c.run(nc) })
	}
}

// streamConn is one TCP connection: a reader, a writer and a bounded queue
// between the shards and the writer.
type streamConn struct {
	e    *Endpoint
	flow Flow

	mu      sync.Mutex
	queue   []outgoing
	queued  int
	err     error
	closing bool // what is queued is still written, nothing more is queued
	nc      net.Conn

	wake chan struct{}
	gone chan struct{}
}

type outgoing struct {
	b     []byte
	token uint64
}

// send queues a copy of b. A full queue means that the peer has stopped
// reading: the connection is closed.
func (c *streamConn) send(b []byte, token uint64) error {
	c.mu.Lock()
	if c.err != nil || c.closing {
		c.mu.Unlock()
		return ErrFlowGone
	}
	if c.queued+len(b) > c.e.opt.WriteQueue {
		c.mu.Unlock()
		c.fail(errors.New("write queue is full"))
		return ErrFlowGone
	}
	c.queue = append(c.queue, outgoing{append([]byte(nil), b...), token})
	c.queued += len(b)
	c.mu.Unlock()
	c.poke()
	return nil
}

func (c *streamConn) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// fail marks the connection as gone and wakes both of its goroutines.
func (c *streamConn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	close(c.gone)
	if c.nc != nil {
		c.nc.Close()
	}
}

// drop removes the connection and reports what it could not send.
func (c *streamConn) drop() {
	e := c.e
	e.mu.Lock()
	delete(e.conns, c.flow.Conn)
	if k := (connKey{c.flow.Proto, c.flow.Remote}); e.byRemote[k] == c {
		delete(e.byRemote, k)
	}
	e.mu.Unlock()
	c.mu.Lock()
	left := c.queue
	c.queue = nil
	c.mu.Unlock()
	if e.opt.Failed == nil {
		return
	}
	for _, o := range left {
		if o.token != 0 {
			e.opt.Failed(ClientID(o.token))
		}
	}
}

func (c *streamConn) dial() {
	ctx, cancel := context.WithTimeout(context.Background(), c.e.opt.DialTimeout)
	stop := make(chan struct{})
	go func() {
		select {
		case <-c.gone:
			cancel()
		case <-stop:
		}
	}()
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.flow.Remote.String())
	close(stop)
	cancel()
	if err != nil {
		c.fail(err)
		c.drop()
		return
	}
	c.run(nc)
}

// run serves an open connection until it ends.
func (c *streamConn) run(nc net.Conn) {
	c.mu.Lock()
	c.nc = nc
	failed := c.err != nil
	c.mu.Unlock()
	if failed {
		nc.Close()
	}
	writer := make(chan struct{})
	go func() {
		defer close(writer)
		c.write(nc)
	}()
	err := c.read(nc)
	if pe := (*ParseError)(nil); errors.As(err, &pe) {
		c.linger(nc, writer)
	}
	c.fail(err)
	<-writer
	nc.Close()
	c.drop()
	c.e.opt.Log.Debug("connection closed", "remote", c.flow.Remote.String(), "err", err)
}

// linger lets the writer finish and the peer read the answer to what it did
// wrong: closing with octets unread would take it back.
func (c *streamConn) linger(nc net.Conn, writer <-chan struct{}) {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.poke()
	<-writer
	if tc, ok := nc.(*net.TCPConn); ok {
		tc.CloseWrite()
	}
	nc.SetReadDeadline(time.Now().Add(time.Second))
	io.CopyN(io.Discard, nc, MaxBodyBytes)
}

func (c *streamConn) write(nc net.Conn) {
	for {
		c.mu.Lock()
		batch := c.queue
		if c.err == nil {
			c.queue, c.queued = nil, 0
		}
		over := c.err != nil || c.closing && len(batch) == 0
		c.mu.Unlock()
		if over {
			return
		}
		for i, o := range batch {
			nc.SetWriteDeadline(time.Now().Add(c.e.opt.WriteTimeout))
			if _, err := nc.Write(o.b); err != nil {
				c.mu.Lock()
				c.queue = append(batch[i:len(batch):len(batch)], c.queue...)
				c.mu.Unlock()
				c.fail(err)
				return
			}
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-c.gone:
			return
		case <-c.wake:
		}
	}
}

var errIdle = errors.New("idle for too long")

// read frames the stream. CRLF CRLF between messages is a keep-alive ping and
// gets CRLF (RFC 5626 section 4.4.1).
func (c *streamConn) read(nc net.Conn) error {
	buf := make([]byte, 0, 4096)
	for {
		start := 0
		for start < len(buf) && (buf[start] == '\r' || buf[start] == '\n') {
			start++
		}
		if start >= 4 {
			c.send([]byte("\r\n"), 0)
		}
		// A lone CRLF may be half of a ping: keep it until more arrives.
		if start > 0 && (start >= 4 || start < len(buf)) {
			buf = buf[:copy(buf, buf[start:])]
		}
		if len(buf) > 0 && buf[0] != '\r' && buf[0] != '\n' {
			n, err := FrameLen(buf)
			if err != nil {
				c.e.lost(c.flow, buf, err)
				return err
			}
			if n > 0 {
				m := NewMessage()
				m.Raw = append(m.Raw[:0], buf[:n]...)
				m.Flow = c.flow
				buf = buf[:copy(buf, buf[n:])]
				c.e.stats.Received.Add(1)
				if !c.e.parse(m, true) {
					return errors.New("malformed message")
				}
				continue
			}
		}
		switch { // FrameLen bounds what has to fit
		case len(buf) == cap(buf):
			buf = append(make([]byte, 0, 2*cap(buf)), buf...)
		case len(buf) == 0 && cap(buf) > 64<<10:
			buf = make([]byte, 0, 4096)
		}
		nc.SetReadDeadline(time.Now().Add(c.e.opt.IdleTimeout))
		n, err := nc.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if n == 0 && err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				return errIdle
			}
			return err
		}
	}
}

// ParseListen reads TRANSPORT:HOST:PORT.
func ParseListen(s string) (Proto, string, error) {
	name, addr, ok := strings.Cut(s, ":")
	if !ok {
		return 0, "", fmt.Errorf("listener %q: want TRANSPORT:HOST:PORT", s)
	}
	var p Proto
	switch strings.ToLower(name) {
	case "udp":
		p = UDP
	case "tcp":
		p = TCP
	case "tls", "ws", "wss":
		return 0, "", fmt.Errorf("listener %q: transport %s is not supported yet", s, name)
	default:
		return 0, "", fmt.Errorf("listener %q: unknown transport %q", s, name)
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return 0, "", fmt.Errorf("listener %q: %w", s, err)
	}
	return p, addr, nil
}

// LogLimit lets ten lines a second through, so that a peer cannot flood the
// log, and counts the rest.
type LogLimit struct {
	mu         sync.Mutex
	since      time.Time
	n, dropped int
}

// Allow tells whether a line may be written now and how many were suppressed
// before it.
func (l *LogLimit) Allow(now time.Time) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.since) >= time.Second {
		l.since, l.n = now, 0
	}
	if l.n++; l.n > 10 {
		l.dropped++
		return 0, false
	}
	suppressed, l.dropped = l.dropped, 0
	return suppressed, true
}
