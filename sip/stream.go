package sip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

// CloseReason says why a stream connection ended.
type CloseReason uint8

// The reasons. A connection that the endpoint's own Close ends has none.
const (
	ClosedIdle  CloseReason = iota // nothing came for IdleTimeout
	ClosedPeer                     // the peer closed or reset it
	ClosedError                    // lost framing, a handshake or a dial that failed, a network error
	ClosedSlow                     // a message took too long to arrive or to be taken
	ClosedLimit                    // a full write queue, a message beyond the limits
	CloseReasons
)

// String gives the reason as a metric's label.
func (r CloseReason) String() string {
	return [...]string{"idle", "peer", "error", "slow", "limit", "unknown"}[min(r, CloseReasons)]
}

var (
	errIdle  = errors.New("idle for too long")
	errSlow  = errors.New("a message took too long to arrive")
	errQueue = errors.New("write queue is full")
	errLost  = errors.New("malformed message")
)

func reasonOf(err error) CloseReason {
	switch {
	case errors.Is(err, errIdle):
		return ClosedIdle
	case errors.Is(err, errSlow), errors.Is(err, os.ErrDeadlineExceeded):
		return ClosedSlow
	case errors.Is(err, errQueue), errors.Is(err, websocket.ErrMessageTooBig):
		return ClosedLimit
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE),
		websocket.CloseStatus(err) >= 0:
		return ClosedPeer
	}
	return ClosedError
}

// connKey names a connection that we opened and use again. A TLS connection is
// one to a domain, because that is whom it was verified for (RFC 5923 section 5).
type connKey struct {
	proto  Proto
	remote netip.AddrPort
	domain string
}

func keyOf(f Flow) connKey {
	k := connKey{proto: f.Proto, remote: f.Remote}
	if f.Proto == TLS {
		k.domain = domainOf(f)
	}
	return k
}

type streamListener struct {
	net.Listener
	proto Proto
	local netip.AddrPort
}

func (e *Endpoint) listenStreams(proto Proto, family, addr string) (netip.AddrPort, error) {
	if (proto == TLS || proto == WSS) && e.tls.Load().server == nil {
		return netip.AddrPort{}, fmt.Errorf("sip: %v needs a certificate", proto)
	}
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
	e.streams = append(e.streams, streamListener{l, proto, local})
	if (proto == WS || proto == WSS) && e.upgrades == nil {
		e.serveUpgrades()
	}
	e.over.Go(func() { e.accept(l, proto) })
	return local, nil
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
		c := e.admit(Flow{
			Proto: proto, Local: unmap(nc.LocalAddr().(*net.TCPAddr).AddrPort()), Remote: unmap(nc.RemoteAddr().(*net.TCPAddr).AddrPort()),
		})
		if c == nil {
			e.stats.Refused.Add(1)
			nc.Close()
			continue
		}
		e.stats.Accepted.Add(1)
		e.over.Go(func() { c.serve(nc) })
	}
}

// admit registers an accepted connection, nil if that is one too many.
func (e *Endpoint) admit(f Flow) *streamConn {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || len(e.conns) >= e.opt.MaxConns {
		return nil
	}
	counted := e.opt.Exempt == nil || !e.opt.Exempt(f.Remote.Addr())
	if counted && e.perSource[sourceOf(f.Remote)] >= e.opt.MaxConnsPerAddr {
		return nil
	}
	c := e.addConn(f)
	c.accepted, c.counted = true, counted
	if counted {
		e.perSource[sourceOf(f.Remote)]++
	}
	return c
}

// sourceOf is what MaxConnsPerAddr counts: an address, or the /64 that one IPv6
// host has to itself.
func sourceOf(a netip.AddrPort) netip.Prefix {
	bits := 32
	if a.Addr().Is6() {
		bits = 64
	}
	p, _ := a.Addr().Prefix(bits)
	return p
}

// addConn registers a connection; e.mu is held.
func (e *Endpoint) addConn(f Flow) *streamConn {
	for e.nextConn++; e.nextConn == 0 || e.conns[e.nextConn] != nil; e.nextConn++ {
	}
	f.Conn = e.nextConn
	c := &streamConn{e: e, flow: f}
	e.conns[f.Conn] = c
	return c
}

// connFor is the connection a message leaves on. An accepted one is used only
// when the flow names it: nothing proves that its peer is who answers at the
// address it came from (RFC 5923 section 3).
func (e *Endpoint) connFor(f Flow) (*streamConn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f.Conn != 0 {
		if c := e.conns[f.Conn]; c != nil && c.flow.Remote == f.Remote && c.flow.Proto == f.Proto {
			return c, nil
		}
		return nil, ErrFlowGone
	}
	if f.Proto != TCP && f.Proto != TLS {
		return nil, fmt.Errorf("sip: cannot connect over %v: only the client opens such a connection", f.Proto)
	}
	k := keyOf(f)
	if c := e.byRemote[k]; c != nil && c.live() {
		return c, nil
	}
	if e.closed {
		return nil, net.ErrClosed
	}
	if len(e.conns) >= e.opt.MaxConns {
		return nil, errors.New("sip: too many connections")
	}
	c := e.addConn(Flow{Proto: f.Proto, Local: f.Local, Remote: f.Remote, Domain: k.domain})
	e.byRemote[k] = c
	timeout := e.opt.DialTimeout
	if f.Upgraded {
		timeout = e.opt.UpgradeDialTimeout
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	c.cancel = cancel
	e.over.Go(func() { c.dial(ctx) })
	return c, nil
}

// streamConn is one connection: TCP, TLS or WebSocket. Its goroutine reads;
// another one writes while something is queued.
type streamConn struct {
	e     *Endpoint
	flow  Flow
	names []string // verified SIP identities of the peer

	accepted, counted bool

	mu      sync.Mutex
	out     *batch // waits for the writer; nil: nothing does
	queued  int    // octets that wait or are being written, at most WriteQueue
	unsent  []uint64
	awaited []awaited // requests that were written, the oldest first
	err     error
	cancel  context.CancelFunc // of the dial
	raw     net.Conn           // the TCP connection
	nc      net.Conn           // raw or TLS over it; nil until messages may be written
	ws      *websocket.Conn    // over nc
	writing bool
	closing bool // what is queued is still written, nothing more is queued
	ponging bool // a pong waits
	settled chan struct{}
}

func (c *streamConn) live() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err == nil && !c.closing
}

func (c *streamConn) dial(ctx context.Context) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.flow.Remote.String())
	if c.flow.Proto == TCP && ctx.Err() != context.Canceled {
		c.e.refusals.note(c.flow.Remote, err != nil, time.Now())
	}
	c.cancel()
	if err != nil {
		c.end(err)
		return
	}
	c.serve(raw)
}

// serve opens what is above TCP, reads until the connection ends, and clears up.
func (c *streamConn) serve(raw net.Conn) {
	c.mu.Lock()
	c.raw = raw
	err := c.err
	c.mu.Unlock()
	nc := raw
	if err == nil && (c.flow.Proto == TLS || c.flow.Proto == WSS) {
		nc, err = c.secure(raw)
	}
	p := pace{c: c}
	if c.accepted {
		p.since = time.Now()
	}
	var ws *websocket.Conn
	if err == nil && (c.flow.Proto == WS || c.flow.Proto == WSS) {
		ws, err = c.upgrade(nc, &p)
	}
	if err == nil {
		c.mu.Lock()
		c.nc, c.ws = nc, ws
		c.start()
		c.mu.Unlock()
		if ws != nil {
			err = c.readMessages(&p)
		} else {
			err = c.read(&p)
		}
		if pe := (*ParseError)(nil); errors.As(err, &pe) || errors.Is(err, websocket.ErrMessageTooBig) {
			c.linger()
		}
	}
	c.end(err)
}

// end closes the connection and reports what it could not send.
func (c *streamConn) end(err error) {
	e := c.e
	e.mu.Lock()
	if k := keyOf(c.flow); e.byRemote[k] == c {
		delete(e.byRemote, k)
	}
	e.mu.Unlock()

	c.mu.Lock()
	if c.err != nil {
		err = c.err
	}
	c.err = err
	polite := !c.writing
	c.mu.Unlock()
	if c.raw != nil {
		if polite && c.nc != nil {
			c.farewell(err)
		}
		c.raw.Close()
	}
	c.settle()
	if c.ws != nil {
		c.ws.CloseNow()
	}

	e.mu.Lock()
	closed := e.closed
	delete(e.conns, c.flow.Conn)
	if c.counted {
		if s := sourceOf(c.flow.Remote); e.perSource[s] > 1 {
			e.perSource[s]--
		} else {
			delete(e.perSource, s)
		}
	}
	e.mu.Unlock()
	if !closed {
		e.stats.Closed[reasonOf(err)].Add(1)
	}
	unsent := c.unsent
	if c.out != nil {
		unsent = c.out.tokens(unsent, 0)
	}
	if e.opt.Failed != nil {
		for _, token := range unsent {
			e.opt.Failed(ClientID(token), ErrFlowGone)
		}
		for _, a := range c.awaited {
			if !closed && time.Since(a.at) < TimerF {
				e.opt.Failed(ClientID(a.token), ErrAnswerLost)
			}
		}
	}
	e.opt.Log.Debug("connection closed", "remote", c.flow.Remote.String(), "err", err)
}

// farewell tells the peer that the end is meant, where the protocol can.
func (c *streamConn) farewell(err error) {
	c.raw.SetDeadline(time.Now().Add(time.Second))
	switch {
	case c.ws != nil && errors.Is(err, errIdle):
		c.ws.Close(websocket.StatusGoingAway, "idle")
	case c.ws != nil && errors.Is(err, errSlow):
		c.ws.Close(websocket.StatusPolicyViolation, "slow")
	case c.nc != c.raw:
		c.nc.Close()
	}
}

// linger lets the writer finish and the peer read the answer to what it did
// wrong: closing with octets unread would take it back.
func (c *streamConn) linger() {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.settle()
	if h, ok := c.nc.(interface{ CloseWrite() error }); ok && c.ws == nil {
		h.CloseWrite()
	}
	c.raw.SetReadDeadline(time.Now().Add(time.Second))
	io.CopyN(io.Discard, c.raw, MaxBodyBytes)
}

// fail ends a connection from outside its goroutine. The first cause counts.
func (c *streamConn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	if c.cancel != nil {
		c.cancel()
	}
	if c.raw != nil {
		c.raw.Close()
	}
}

// batch is what the writer takes at once.
type batch struct {
	b     []byte
	marks []mark // where each message ends
}

type mark struct {
	end   int
	token uint64
}

var batches = sync.Pool{New: func() any { return new(batch) }}

func (b *batch) release() {
	if cap(b.b) <= 512<<10 {
		b.b, b.marks = b.b[:0], b.marks[:0]
		batches.Put(b)
	}
}

// tokens appends those of the messages that end after the first n octets.
func (b *batch) tokens(to []uint64, n int) []uint64 {
	for _, m := range b.marks {
		if m.end > n && m.token != 0 {
			to = append(to, m.token)
		}
	}
	return to
}

// send queues a copy of a message. A full queue means that the peer has stopped
// reading: the connection is closed.
func (c *streamConn) send(head, body []byte, token uint64) error {
	c.mu.Lock()
	if c.err != nil || c.closing {
		c.mu.Unlock()
		return ErrFlowGone
	}
	if c.queued+len(head)+len(body) > c.e.opt.WriteQueue {
		c.mu.Unlock()
		c.fail(errQueue)
		return ErrFlowGone
	}
	c.queue(head, body, token)
	c.mu.Unlock()
	return nil
}

// pong answers a keep-alive (RFC 5626 section 4.4.1). A flood of pings gets one
// pong for all that came before it could be written.
func (c *streamConn) pong() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && !c.closing && !c.ponging {
		c.ponging = true
		c.queue([]byte("\r\n"), nil, 0)
	}
}

// queue appends to what is to be written; c.mu is held.
func (c *streamConn) queue(head, body []byte, token uint64) {
	if c.out == nil {
		c.out = batches.Get().(*batch)
	}
	n := len(c.out.b)
	c.out.b = append(append(c.out.b, head...), body...)
	c.out.marks = append(c.out.marks, mark{len(c.out.b), token})
	c.queued += len(c.out.b) - n
	c.start()
}

// start sees to it that what is queued is written; c.mu is held.
func (c *streamConn) start() {
	if !c.writing && c.nc != nil && c.out != nil && c.err == nil {
		c.writing = true
		go c.write()
	}
}

// settle waits for the writer to have nothing to do. Only the connection's
// goroutine calls it.
func (c *streamConn) settle() {
	c.mu.Lock()
	if !c.writing {
		c.mu.Unlock()
		return
	}
	settled := make(chan struct{})
	c.settled = settled
	c.mu.Unlock()
	<-settled
}

func (c *streamConn) write() {
	for {
		c.mu.Lock()
		b := c.out
		if c.err != nil || b == nil {
			c.writing = false
			if c.settled != nil {
				close(c.settled)
				c.settled = nil
			}
			c.mu.Unlock()
			return
		}
		c.out, c.ponging = nil, false
		c.mu.Unlock()
		n, err := c.put(b)
		c.mu.Lock()
		c.queued -= len(b.b)
		if err != nil {
			c.unsent = b.tokens(c.unsent, n)
		}
		c.await(b, n)
		c.mu.Unlock()
		if err != nil {
			c.fail(err)
			continue
		}
		b.release()
	}
}

// awaited is a request that was written at some time and may be unanswered.
type awaited struct {
	token uint64
	at    time.Time
}

// maxAwaited bounds them. Beyond it the oldest half is forgotten: those wait for
// timer F if the connection ends.
const maxAwaited = 8192

// await remembers the requests among the first n octets of a batch for as long
// as their transactions may live; c.mu is held.
func (c *streamConn) await(b *batch, n int) {
	var now time.Time
	for _, m := range b.marks {
		if m.token == 0 || m.end > n {
			continue
		}
		if now.IsZero() {
			now = time.Now()
		}
		if len(c.awaited) == cap(c.awaited) { // no room: what is over goes first
			over := 0
			for over < len(c.awaited) && now.Sub(c.awaited[over].at) >= TimerF {
				over++
			}
			if over == 0 && len(c.awaited) >= maxAwaited {
				over = maxAwaited / 2
			}
			c.awaited = c.awaited[:copy(c.awaited, c.awaited[over:])]
		}
		c.awaited = append(c.awaited, awaited{m.token, now})
	}
}

// writeChunk is what must go out within WriteTimeout.
const writeChunk = 64 << 10

// put writes a batch and tells how many octets have left for sure.
func (c *streamConn) put(b *batch) (n int, err error) {
	if c.ws != nil {
		return c.putMessages(b)
	}
	for n < len(b.b) && err == nil {
		c.raw.SetWriteDeadline(time.Now().Add(c.e.opt.WriteTimeout))
		var k int
		k, err = c.nc.Write(b.b[n:min(n+writeChunk, len(b.b))])
		n += k
	}
	return n, err
}

// pace keeps the read deadline of a connection: IdleTimeout, or MessageTimeout
// once a message has begun and, for an accepted connection, until the first one
// or keep-alive is there.
type pace struct {
	c     *streamConn
	since time.Time // when what is not complete began; zero: nothing has
	set   time.Time // the deadline in force
	slow  bool      // it is that of a message

	inside bool // a WebSocket message: control frames come between its parts
}

// arm sets the deadline for a read. A deadline that is nearly right stays.
func (p *pace) arm(now time.Time) {
	opt := &p.c.e.opt
	d, slow, near := now.Add(opt.IdleTimeout), false, opt.IdleTimeout/64
	if !p.since.IsZero() {
		if m := p.since.Add(opt.MessageTimeout); m.Before(d) {
			d, slow, near = m, true, opt.MessageTimeout/64
		}
	}
	if slow == p.slow && d.Sub(p.set).Abs() < near {
		return
	}
	p.set, p.slow = d, slow
	p.c.raw.SetReadDeadline(d)
}

// end names the error of a read.
func (p *pace) end(err error) error {
	switch {
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case p.slow:
		return errSlow
	}
	return errIdle
}

const readSize = 8 << 10

var readBuffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// input is the receiving end of a stream. It has a buffer only while something
// is in it: most connections are idle most of the time.
type input struct {
	pace  *pace
	first [64]byte
	small *[readSize]byte // buf, as long as that fits
	buf   []byte
	start int // what is before it is done with
	ready readiness
}

func (in *input) take() {
	if in.buf == nil {
		in.small = readBuffers.Get().(*[readSize]byte)
		in.buf = in.small[:0]
	}
}

func (in *input) drop() {
	if in.small != nil {
		readBuffers.Put(in.small)
	}
	in.small, in.buf, in.start = nil, nil, 0
}

// fill waits for more octets.
func (in *input) fill() error {
	now := time.Now()
	switch rest := in.buf[in.start:]; {
	case len(rest) == 0:
		in.drop()
	case in.pace.since.IsZero():
		in.pace.since = now
		fallthrough
	default:
		if len(in.buf) < cap(in.buf) {
			break
		}
		if in.start > 0 {
			in.buf, in.start = in.buf[:copy(in.buf, rest)], 0
			break
		}
		// FrameLen bounds what has to fit.
		grown := append(make([]byte, 0, 2*cap(in.buf)), rest...)
		in.drop()
		in.buf = grown
	}
	in.pace.arm(now)
	n, err := in.read()
	if n == 0 && err != nil {
		return in.pace.end(err)
	}
	return nil
}

// readAny is for what cannot be asked whether there is something to read: an
// idle connection reads into a few octets.
func (in *input) readAny() (n int, err error) {
	nc := in.pace.c.nc
	if in.buf != nil {
		n, err = nc.Read(in.buf[len(in.buf):cap(in.buf)])
		in.buf = in.buf[:len(in.buf)+n]
		return n, err
	}
	if n, err = nc.Read(in.first[:]); n > 0 {
		in.take()
		in.buf = append(in.buf, in.first[:n]...)
	}
	return n, err
}

// read frames the stream. CRLF CRLF between messages is a keep-alive ping and
// gets CRLF (RFC 5626 section 4.4.1).
func (c *streamConn) read(p *pace) error {
	in := &input{pace: p}
	defer in.drop()
	ends := 0 // octets of line ends since the last message
	for {
		rest := in.buf[in.start:]
		if n := SkipLineEnds(rest); n > 0 {
			ends += n
			in.start += n
			rest = rest[n:]
			p.since = time.Time{}
		}
		if ends >= 4 {
			c.pong()
			ends = 0
		}
		if len(rest) > 0 {
			ends = 0
			n, err := FrameLen(rest)
			if err != nil {
				c.e.lost(c.flow, rest, err)
				return err
			}
			if n > 0 {
				m := NewMessage()
				m.Raw = append(m.Raw[:0], rest[:n]...)
				m.Flow, m.Names = c.flow, c.names
				in.start += n
				p.since = time.Time{}
				c.e.stats.Received.Add(1)
				if !c.e.parse(m, true, c.e) {
					return errLost
				}
				continue
			}
		}
		if err := in.fill(); err != nil {
			return err
		}
	}
}

// refusals remembers the last 4096 addresses that were dialled and whether they
// refused; the one that has been there longest makes room.
type refusals struct {
	mu   sync.Mutex
	at   map[netip.AddrPort]time.Time // zero: it has answered since
	ring [maxRefusals]netip.AddrPort
	next int
}

const (
	maxRefusals = 4096
	refusalLife = 10 * time.Minute
)

func (r *refusals) note(a netip.AddrPort, refused bool, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, known := r.at[a]
	switch {
	case !refused && known:
		r.at[a] = time.Time{}
	case refused && known:
		r.at[a] = now
	case refused:
		if r.at == nil {
			r.at = make(map[netip.AddrPort]time.Time)
		}
		delete(r.at, r.ring[r.next])
		r.ring[r.next] = a
		r.next = (r.next + 1) % maxRefusals
		r.at[a] = now
	}
}

func (r *refusals) recent(a netip.AddrPort, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.at[a]
	return ok && now.Sub(t) < refusalLife
}

// StreamFlow is the TCP flow for a message that is too large for a UDP flow
// (RFC 3261 section 18.1.1), to the same address. There is none when no TCP
// listener can send to it, or when the address did not take a TCP connection
// within the last ten minutes. A dial for such a flow takes at most
// UpgradeDialTimeout; when it fails, Failed is told and StreamFlow remembers.
func (e *Endpoint) StreamFlow(f Flow) (Flow, bool) {
	if f.Proto != UDP || e.refusals.recent(f.Remote, time.Now()) {
		return Flow{}, false
	}
	s := Flow{Proto: TCP, Remote: f.Remote, Upgraded: true}
	e.mu.Lock()
	for _, l := range e.streams {
		if l.proto == TCP && (l.local == f.Local || l.local.Addr().IsUnspecified() && l.local.Port() == f.Local.Port()) {
			s.Local = f.Local
			break
		}
	}
	e.mu.Unlock()
	if s.Local.IsValid() {
		return s, true
	}
	other, err := e.FlowTo(TCP, f.Remote)
	s.Local = other.Local
	return s, err == nil
}
