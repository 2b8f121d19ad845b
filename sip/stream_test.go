package sip

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"rollcall/sip/siptest"
)

// A peer that does not read costs its own connection and nothing else, on each
// transport: others are answered while it fills up, it is closed, and each of
// its messages is reported once at most.
func TestDeafPeer(t *testing.T) {
	cert := siptest.NewCA(t).Issue(t, siptest.Leaf{IPs: []string{"127.0.0.1"}})
	for _, proto := range []Proto{TCP, TLS, WS, WSS} {
		for _, c := range []struct {
			name   string
			opt    EndpointOptions
			reason CloseReason
		}{
			{"queue", EndpointOptions{WriteQueue: 2 << 20, WriteTimeout: time.Minute}, ClosedLimit},
			{"timeout", EndpointOptions{WriteQueue: 64 << 20, WriteTimeout: 30 * time.Millisecond}, ClosedSlow},
		} {
			t.Run(proto.String()+" "+c.name, func(t *testing.T) {
				c.opt.ServerTLS = serverConfig(cert)
				w := newWireEnd(t, c.opt)
				to, tcp := w.listen(proto), w.listen(TCP)
				deaf := dialPeer(t, "tcp", to)
				deaf.Conn.(*net.TCPConn).SetReadBuffer(4096)
				switch proto {
				case TLS, WSS:
					tc := tls.Client(deaf.Conn, &tls.Config{InsecureSkipVerify: true})
					deaf.Conn = tc
				}
				text := framed(0, nil)
				if proto == WS || proto == WSS {
					deaf.write("GET / HTTP/1.1\r\nHost: x\r\n" + upgradeRequest + "Sec-WebSocket-Protocol: sip\r\n\r\n")
					text = clientFrame(text)
				}
				deaf.write(text)
				flow := w.receive().Flow
				good := dialPeer(t, "tcp", tcp)
				big := []byte(framed(60000, nil))
				reported := make(map[ClientID]bool)
				var err error
				for id := ClientID(1); err == nil && id < 3000; id++ {
					if err = w.Send(flow, big, uint64(id)); err != nil {
						reported[id] = true
					}
					if id%20 == 0 {
						good.SetDeadline(time.Now().Add(patience))
						good.write(framed(0, nil))
						respond(t, w, w.receive(), 200)
						if m := good.message(); m.Status() != 200 {
							t.Errorf("%s", m.Raw)
						}
					}
				}
				if err != nil && !errors.Is(err, ErrFlowGone) {
					t.Fatal(err)
				}
				for w.Stats().Closed[c.reason].Load() == 0 {
					w.log("connection closed")
				}
				if err := w.Send(flow, big, 9999); !errors.Is(err, ErrFlowGone) {
					t.Errorf("later: %v", err)
				}
				if len(w.failed) == 0 {
					t.Error("nothing reported")
				}
				for len(w.failed) > 0 {
					id := <-w.failed
					if reported[id] {
						t.Errorf("%d reported twice", id)
					}
					reported[id] = true
				}
				if w.Conns() != 1 {
					t.Errorf("%d connections", w.Conns())
				}
			})
		}
	}
}

// clientFrame is a masked WebSocket text frame with a key of zeroes.
func clientFrame(s string) string {
	return string([]byte{0x81, 0x80 | 126, byte(len(s) >> 8), byte(len(s)), 0, 0, 0, 0}) + s
}

// What begins and does not go on is closed after MessageTimeout; what only
// keeps alive is not.
func TestSlowPeers(t *testing.T) {
	cert := siptest.NewCA(t).Issue(t, siptest.Leaf{IPs: []string{"127.0.0.1"}})
	w := newWireEnd(t, EndpointOptions{MessageTimeout: 250 * time.Millisecond, ServerTLS: serverConfig(cert)})
	tcp, ws, secure := w.listen(TCP), w.listen(WS), w.listen(TLS)
	whole := framed(0, nil)
	alive := dialPeer(t, "tcp", tcp)
	ping := func() {
		t.Helper()
		alive.SetDeadline(time.Now().Add(patience))
		alive.write("\r\n\r\n")
		if _, err := io.ReadFull(alive, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
	}
	ping()
	upgrade := "GET / HTTP/1.1\r\nHost: x\r\n" + upgradeRequest + "Sec-WebSocket-Protocol: sip\r\n\r\n"
	for _, c := range []struct {
		name   string
		to     netip.AddrPort
		text   string
		secure bool
		drips  string // sent octet by octet until that fails
	}{
		{"nothing at all", tcp, "", false, ""},
		{"half a message", tcp, whole[:40], false, ""},
		{"a message and half a one", tcp, whole + whole[:40], false, ""},
		{"half a line end before half a message", tcp, "\r\n" + whole[:40], false, ""},
		{"drips", tcp, "", false, whole[:len(whole)-4] + strings.Repeat("X: y\r\n", 1000)},
		{"nothing over TLS", secure, "", true, ""},
		{"half a message over TLS", secure, whole[:70], true, ""},
		{"nothing over WebSocket", ws, upgrade, false, ""},
		{"half a frame over WebSocket", ws, upgrade + clientFrame(whole)[:40], false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			before := w.Stats().Closed[ClosedSlow].Load()
			p := dialPeer(t, "tcp", c.to)
			if c.secure {
				p = dialTLS(t, c.to, new(tls.Config))
			}
			p.write(c.text)
			for i := range c.drips {
				if _, err := p.Write([]byte(c.drips[i : i+1])); err != nil {
					break
				}
				time.Sleep(time.Millisecond / 2)
			}
			p.closed()
			for w.Stats().Closed[ClosedSlow].Load() == before {
				w.log("connection closed")
			}
			for len(w.in) > 0 {
				<-w.in
			}
		})
	}
	w.t = t
	ping()
}

func TestConnectionsPerAddress(t *testing.T) {
	exempt := false
	w := newWireEnd(t, EndpointOptions{MaxConnsPerAddr: 2, Exempt: func(a netip.Addr) bool { return exempt && a.IsLoopback() }})
	to := w.listen(TCP)
	open := func() *peer {
		p := dialPeer(t, "tcp", to)
		p.write(framed(0, nil))
		return p
	}
	a := open()
	w.receive()
	open()
	w.receive()
	dialPeer(t, "tcp", to).closed()
	if n := w.Stats().Refused.Load(); n != 1 || w.Conns() != 2 {
		t.Errorf("%d refused, %d open", n, w.Conns())
	}
	a.Close()
	w.log("connection closed")
	open()
	w.receive()
	w.mu.Lock()
	exempt = true
	w.mu.Unlock()
	for range 3 {
		open()
		w.receive()
	}
	for _, c := range []struct{ a, b string }{{"192.0.2.1:1", "192.0.2.1:2"}, {"[2001:db8::1]:1", "[2001:db8::ffff:0:1]:2"}} {
		if a, b := netip.MustParseAddrPort(c.a), netip.MustParseAddrPort(c.b); sourceOf(a) != sourceOf(b) {
			t.Errorf("%v and %v are two", a, b)
		}
	}
	for _, c := range []struct{ a, b string }{{"192.0.2.1:1", "192.0.2.2:1"}, {"[2001:db8::1]:1", "[2001:db8:0:1::1]:1"}} {
		if a, b := netip.MustParseAddrPort(c.a), netip.MustParseAddrPort(c.b); sourceOf(a) == sourceOf(b) {
			t.Errorf("%v and %v are one", a, b)
		}
	}
	w.Close()
	if len(w.perSource) != 0 || len(w.conns) != 0 || len(w.byRemote) != 0 {
		t.Errorf("left: %v %v %v", w.perSource, w.conns, w.byRemote)
	}
}

// OB-01: a peer that only pings, and does not read, cannot make us queue.
func TestPingFlood(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{WriteQueue: 1 << 10, WriteTimeout: patience})
	p := dialPeer(t, "tcp", w.listen(TCP))
	p.Conn.(*net.TCPConn).SetReadBuffer(4096)
	p.write(strings.Repeat(strings.Repeat("\r\n\r\n", 1000)+framed(0, nil), 200))
	for range 200 {
		w.receive()
	}
	respond(t, w, parseWith(t, only(w)), 200)
	if m := p.message(); m.Status() != 200 {
		t.Errorf("%s", m.Raw)
	}
}

// only is the flow of the one connection there is.
func only(w *wireEnd) (f Flow) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		f = c.flow
	}
	return f
}

// Buffers are used again by other connections: what is in a message stays.
func TestStreamBuffers(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{})
	to := w.listen(TCP)
	const n = 8
	for i := range n {
		go func() {
			c, err := net.Dial("tcp", to.String())
			if err != nil {
				return
			}
			defer c.Close()
			for j := range 100 {
				body := strings.Repeat(string(rune('a'+i)), 1+(j*997)%20000)
				text := request(nil, fmt.Sprint("Content-Length: ", len(body))) + body
				cut := (j * 31) % len(text)
				io.WriteString(c, text[:cut])
				io.WriteString(c, text[cut:])
			}
			io.Copy(io.Discard, c)
		}()
	}
	for range n * 100 {
		b := w.receive().Body()
		if len(b) == 0 || strings.Trim(string(b), string(b[:1])) != "" {
			t.Fatalf("mixed: %.80q", b)
		}
	}
	w.Close()
}
