package sip

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
)

// upgrader is the HTTP server of WebSocket handshakes. It is given connections
// that were admitted and, for WSS, are secure already, and gives them back when
// they are WebSockets.
type upgrader struct {
	web  *http.Server
	in   chan *upgrading
	over chan struct{}
	once sync.Once
}

// upgrading is a connection that belongs to the upgrader for a while.
type upgrading struct {
	net.Conn
	c    *streamConn
	pace *pace
	done chan *websocket.Conn // nil: it was closed instead
}

type upgradingKey struct{}

// serveUpgrades starts the HTTP server; e.mu is held.
func (e *Endpoint) serveUpgrades() {
	u := &upgrader{in: make(chan *upgrading), over: make(chan struct{})}
	t := e.opt.HandshakeTimeout
	u.web = &http.Server{
		Handler: http.HandlerFunc(e.handshake), ReadTimeout: t, WriteTimeout: t, MaxHeaderBytes: 16 << 10,
		ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			return context.WithValue(ctx, upgradingKey{}, nc)
		},
		ConnState: func(nc net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				nc.(*upgrading).done <- nil
			}
		},
	}
	u.web.SetKeepAlivesEnabled(false)
	e.upgrades = u
	e.over.Go(func() { u.web.Serve(u) })
}

// Accept implements net.Listener.
func (u *upgrader) Accept() (net.Conn, error) {
	select {
	case c := <-u.in:
		return c, nil
	case <-u.over:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (u *upgrader) Close() error {
	u.once.Do(func() { close(u.over) })
	return nil
}

// Addr implements net.Listener.
func (u *upgrader) Addr() net.Addr { return &net.TCPAddr{} }

// upgrade waits for the WebSocket handshake on a connection.
func (c *streamConn) upgrade(nc net.Conn, p *pace) (*websocket.Conn, error) {
	u := &upgrading{Conn: nc, c: c, pace: p, done: make(chan *websocket.Conn, 1)}
	select {
	case c.e.upgrades.in <- u:
	case <-c.e.upgrades.over:
		return nil, net.ErrClosed
	}
	ws := <-u.done
	if ws == nil {
		return nil, errors.New("no WebSocket handshake")
	}
	return ws, nil
}

// handshake answers a WebSocket handshake (RFC 7118 section 4.1), on any path.
func (e *Endpoint) handshake(w http.ResponseWriter, r *http.Request) {
	u := r.Context().Value(upgradingKey{}).(*upgrading)
	offered := strings.FieldsFunc(strings.ToLower(strings.Join(r.Header.Values("Sec-WebSocket-Protocol"), ",")), func(c rune) bool {
		return c == ',' || c == ' ' || c == '\t'
	})
	if r.Header.Get("Upgrade") != "" && !slices.Contains(offered, "sip") {
		http.Error(w, "the WebSocket subprotocol must be sip (RFC 7118)", http.StatusBadRequest)
		return
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: []string{"sip"}, OriginPatterns: e.opt.Origins, CompressionMode: websocket.CompressionDisabled,
		OnPingReceived: func(context.Context, []byte) bool { u.pace.alive(); return true },
		OnPongReceived: func(context.Context, []byte) { u.pace.alive() },
	})
	if err != nil { // and answered
		if n, ok := e.limit.Allow(time.Now()); ok {
			e.opt.Log.Info("WebSocket handshake refused", "remote", u.c.flow.Remote.String(), "err", err, "suppressed", n)
		}
		return
	}
	ws.SetReadLimit(MaxHeaderBytes + MaxBodyBytes)
	u.done <- ws
}

// alive counts a control frame as a sign of life, but not in the midst of a
// message, which it would let take forever.
func (p *pace) alive() {
	if !p.inside {
		p.since = time.Time{}
		p.arm(time.Now())
	}
}

// readMessages takes one SIP message from each WebSocket message.
func (c *streamConn) readMessages(p *pace) error {
	for {
		p.arm(time.Now())
		_, r, err := c.ws.Reader(context.Background())
		if err != nil {
			return p.end(err)
		}
		m := NewMessage()
		p.since, p.inside = time.Now(), true
		p.arm(p.since)
		if m.Raw, err = readAll(m.Raw[:0], r); err != nil {
			m.Release()
			return p.end(err)
		}
		p.since, p.inside = time.Time{}, false
		if n := SkipLineEnds(m.Raw); n == len(m.Raw) {
			m.Release()
			if n >= 4 { // RFC 7118 section 6
				c.pong()
			}
			continue
		}
		m.Flow, m.Names = c.flow, c.names
		c.e.stats.Received.Add(1)
		c.e.parseMessage(m)
	}
}

func readAll(b []byte, r io.Reader) ([]byte, error) {
	for {
		if len(b) == cap(b) {
			b = append(make([]byte, 0, max(2048, 2*cap(b))), b...)
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err != nil {
			if err == io.EOF {
				err = nil
			}
			return b, err
		}
	}
}

// parseMessage is parse for a WebSocket message: Content-Length may be missing,
// as in a datagram, but what is behind the body is refused, because it may be a
// second message (RFC 7118 section 5). The connection goes on: its framing does
// not depend on what is in the messages.
func (e *Endpoint) parseMessage(m *Message) {
	m.At = time.Now()
	whole := m.Raw[SkipLineEnds(m.Raw):]
	var pe *ParseError
	switch err := m.Parse(m.Raw, false); {
	case errors.As(err, &pe):
	case len(bytes.Trim(whole[len(m.Raw):], "\r\n")) > 0:
		pe = &ParseError{Code: 400, Reason: "octets after the message in its WebSocket message", Answerable: m.IsRequest()}
	case len(m.Body()) > MaxBodyBytes:
		pe = &ParseError{Code: 513, Reason: "body is longer than 1 MiB", Answerable: m.IsRequest()}
	default:
		e.opt.Receive(m)
		return
	}
	e.refuse(m, *pe)
}

// putMessages writes each message of a batch as a WebSocket message: text when
// it is UTF-8 (RFC 7118 section 4.2).
func (c *streamConn) putMessages(b *batch) (n int, err error) {
	// A deadline left behind would fail the library's next pong.
	defer c.raw.SetWriteDeadline(time.Time{})
	for _, m := range b.marks {
		text := b.b[n:m.end]
		typ := websocket.MessageText
		if !utf8.Valid(text) {
			typ = websocket.MessageBinary
		}
		c.raw.SetWriteDeadline(time.Now().Add(c.e.opt.WriteTimeout * time.Duration(1+len(text)/writeChunk)))
		if err := c.ws.Write(context.Background(), typ, text); err != nil {
			return n, err
		}
		n = m.end
	}
	return n, nil
}
