package sip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

type connKey struct {
	proto  Proto
	remote netip.AddrPort
}

func (e *Endpoint) listenStreams(proto Proto, family, addr string) (netip.AddrPort, error) {
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

// send queues a copy of a message. A full queue means that the peer has stopped
// reading: the connection is closed.
func (c *streamConn) send(head, body []byte, token uint64) error {
	c.mu.Lock()
	if c.err != nil || c.closing {
		c.mu.Unlock()
		return ErrFlowGone
	}
	n := len(head) + len(body)
	if c.queued+n > c.e.opt.WriteQueue {
		c.mu.Unlock()
		c.fail(errors.New("write queue is full"))
		return ErrFlowGone
	}
	c.queue = append(c.queue, outgoing{append(append(make([]byte, 0, n), head...), body...), token})
	c.queued += n
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
			e.opt.Failed(ClientID(o.token), ErrFlowGone)
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
			c.send([]byte("\r\n"), nil, 0)
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
