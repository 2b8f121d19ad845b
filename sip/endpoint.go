package sip

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
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
	m.Flow, m.Names, m.Crowded = Flow{}, nil, false
	messagePool.Put(m)
}

// EndpointOptions configures an Endpoint. Zero values take the defaults.
type EndpointOptions struct {
	Receive Receiver              // whole, parsed messages; required
	Failed  func(ClientID, error) // a message sent with this token did not leave, or ErrAnswerLost; it may be over already
	Log     *slog.Logger
	Guard   *Guard // counts, shows and limits messages; may be nil

	ServerTLS *tls.Config // for tls and wss listeners, which need it; its ClientAuth decides whether peers show certificates
	ClientTLS *tls.Config // for connections we open: roots and our own certificate; nil: the system's roots, none
	Origins   []string    // of web pages that may open a WebSocket, see path.Match; without: those of the host they ask, and programs

	ReadBuffer         int                   // UDP receive and send buffers in bytes, default 16 MiB
	PacketSockets      int                   // sockets per UDP listener, default one per processor, at most 8
	MaxConns           int                   // stream connections in all, default 10,000; more are closed on accept
	MaxConnsPerAddr    int                   // ... accepted from one IPv4 address or IPv6 /64, default 1,000
	Exempt             func(netip.Addr) bool // addresses that MaxConnsPerAddr does not count: proxies
	WriteQueue         int                   // bytes queued per connection, default 4 MiB; more closes it
	WriteTimeout       time.Duration         // for 64 KiB, default 10 s
	IdleTimeout        time.Duration         // without a byte received, default 65 min: longer than a default subscription
	MessageTimeout     time.Duration         // from a message's first byte to its last, and from accept to the first one; default 30 s
	HandshakeTimeout   time.Duration         // of TLS, and again of WebSocket, default 5 s
	DialTimeout        time.Duration         // default 5 s
	UpgradeDialTimeout time.Duration         // for a flow of StreamFlow, default 1 s
}

// Endpoint is the transport layer of RFC 3261 section 18: it owns the sockets,
// frames and parses what arrives and sends what it is given. Unparsable
// requests are answered 400 here, without state, when they can be answered.
type Endpoint struct {
	opt EndpointOptions

	tls      atomic.Pointer[tlsConfigs]
	refusals refusals

	packets   atomic.Pointer[[]*packetGroup]
	gone      chan struct{} // closed by Close
	mu        sync.Mutex
	streams   []streamListener
	upgrades  *upgrader // of WebSocket handshakes, nil without a listener
	conns     map[uint32]*streamConn
	byRemote  map[connKey]*streamConn // that we opened
	perSource map[netip.Prefix]int    // accepted connections that MaxConnsPerAddr counts
	nextConn  uint32
	closed    bool
	over      sync.WaitGroup

	stats EndpointStats
	limit LogLimit
}

// EndpointStats counts what happened on the wire. Read with atomic loads.
type EndpointStats struct {
	Received, Sent, Malformed, SendErrors, Accepted, Refused atomic.Uint64

	TLSHandshakeErrors atomic.Uint64
	Closed             [CloseReasons]atomic.Uint64 // stream connections by reason
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
	def(&opt.MaxConnsPerAddr, 1000)
	def(&opt.WriteQueue, 4<<20)
	defd(&opt.WriteTimeout, 10*time.Second)
	defd(&opt.IdleTimeout, 65*time.Minute)
	defd(&opt.MessageTimeout, 30*time.Second)
	defd(&opt.HandshakeTimeout, 5*time.Second)
	defd(&opt.DialTimeout, 5*time.Second)
	def(&opt.PacketSockets, runtime.GOMAXPROCS(0))
	opt.PacketSockets = min(opt.PacketSockets, maxPacketSockets)
	defd(&opt.UpgradeDialTimeout, time.Second)
	e := &Endpoint{
		opt: opt, gone: make(chan struct{}), conns: make(map[uint32]*streamConn), byRemote: make(map[connKey]*streamConn), perSource: make(map[netip.Prefix]int),
	}
	e.SetTLS(opt.ServerTLS, opt.ClientTLS)
	return e
}

// Stats gives the counters.
func (e *Endpoint) Stats() *EndpointStats { return &e.stats }

// Conns is the number of open stream connections.
func (e *Endpoint) Conns() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
}

// Listen binds an address and starts to receive. Port 0 picks one.
func (e *Endpoint) Listen(proto Proto, addr string) (netip.AddrPort, error) {
	family := ""
	if a, err := netip.ParseAddrPort(addr); err == nil && a.Addr().Is4() {
		family = "4" // else 0.0.0.0 would listen on IPv6 too
	}
	switch proto {
	case UDP:
		return e.listenPackets(family, addr)
	case TCP, TLS, WS, WSS:
		return e.listenStreams(proto, family, addr)
	}
	return netip.AddrPort{}, fmt.Errorf("transport %v is not supported", proto)
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Close closes every socket and waits for their goroutines. It is idempotent.
func (e *Endpoint) Close() {
	e.mu.Lock()
	if !e.closed {
		close(e.gone)
	}
	e.closed = true
	for _, g := range e.groups() {
		for _, s := range g.socks {
			s.conn.Close()
		}
	}
	for _, l := range e.streams {
		l.Close()
	}
	if e.upgrades != nil {
		e.upgrades.web.Close()
	}
	for _, c := range e.conns {
		c.fail(net.ErrClosed)
	}
	e.mu.Unlock()
	e.over.Wait()
}

// FlowTo is the flow over which a new request to an address goes: from the
// first listener of the transport that is of the address's family.
func (e *Endpoint) FlowTo(proto Proto, remote netip.AddrPort) (Flow, error) {
	var locals []netip.AddrPort
	switch proto {
	case UDP:
		for _, g := range e.groups() {
			locals = append(locals, g.local)
		}
	case TCP, TLS:
		e.mu.Lock()
		for _, l := range e.streams {
			if l.proto == proto {
				locals = append(locals, l.local)
			}
		}
		e.mu.Unlock()
	}
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

// parse hands a message on, or refuses a bad one. What the Guard answers leaves
// over no. It returns false when a stream cannot go on.
func (e *Endpoint) parse(m *Message, stream bool, no Refuser) bool {
	m.At = time.Now()
	err := m.Parse(m.Raw, stream)
	if err == nil {
		if e.opt.Guard.Received(m, no) {
			e.opt.Receive(m)
		}
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
	if e.opt.Guard.Malformed(m, pe.Reason) && pe.Answerable && m.IsRequest() && m.Method() != ACK {
		answered = e.Send(ResponseFlow(m), appendRefusal(nil, m, &pe), 0) == nil
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
	return string(appendStatelessTag(make([]byte, 0, statelessTagLen), m))
}

const statelessTagLen = 18

func appendStatelessTag(dst []byte, m *Message) []byte {
	h := uint64(14695981039346656037)
	for _, part := range [][]byte{m.CallID(), m.Via().Branch, m.From().Tag()} {
		for _, c := range part {
			h = (h ^ uint64(c)) * 1099511628211
		}
	}
	return appendHex(append(dst, "e-"...), h, 16)
}

// Refuse implements Refuser.
func (e *Endpoint) Refuse(m *Message) { e.Send(ResponseFlow(m), Overloaded(m), 0) }

// Send implements Sender.
func (e *Endpoint) Send(f Flow, b []byte, token uint64) error { return e.SendParts(f, b, nil, token) }

// SendParts implements PartsSender.
func (e *Endpoint) SendParts(f Flow, head, body []byte, token uint64) error {
	e.opt.Guard.Sent(f, head, body)
	var err error
	if f.Proto == UDP {
		err = e.sendPacket(f, head, body, token)
	} else {
		var c *streamConn
		if c, err = e.connFor(f); err == nil {
			err = c.send(head, body, token)
		}
	}
	if err != nil {
		e.stats.SendErrors.Add(1)
		return err
	}
	e.stats.Sent.Add(1)
	return nil
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
	case "tls":
		p = TLS
	case "ws":
		p = WS
	case "wss":
		p = WSS
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

// Log writes a line that a peer can cause, if Allow allows it.
func (l *LogLimit) Log(now time.Time, log *slog.Logger, level slog.Level, msg string, args ...any) {
	if n, ok := l.Allow(now); ok {
		log.Log(context.Background(), level, msg, append(args, "suppressed", n)...)
	}
}
