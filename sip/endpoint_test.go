package sip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds every wait for the network; nothing waits that long unless
// the test has failed.
const patience = 10 * time.Second

// wireEnd is an Endpoint on loopback sockets.
type wireEnd struct {
	*Endpoint
	t      *testing.T
	in     chan *Message
	failed chan ClientID
	logs   chan string
}

// logLines is a slog.Handler that hands out each record as one line.
type logLines chan string

func (logLines) Enabled(context.Context, slog.Level) bool { return true }
func (l logLines) WithAttrs([]slog.Attr) slog.Handler     { return l }
func (l logLines) WithGroup(string) slog.Handler          { return l }
func (l logLines) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	l <- b.String()
	return nil
}

func newWireEnd(t *testing.T, opt EndpointOptions) *wireEnd {
	w := &wireEnd{t: t, in: make(chan *Message, 1024), failed: make(chan ClientID, 4096), logs: make(chan string, 4096)}
	opt.Receive = func(m *Message) { w.in <- m }
	opt.Failed = func(id ClientID, err error) {
		if !errors.Is(err, ErrAnswerLost) { // what did not leave
			w.failed <- id
		}
	}
	opt.Log = slog.New(logLines(w.logs))
	opt.ReadBuffer = 1 << 16
	w.Endpoint = NewEndpoint(opt)
	t.Cleanup(w.Close)
	return w
}

func (w *wireEnd) listen(p Proto) netip.AddrPort {
	w.t.Helper()
	a, err := w.Listen(p, "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (w *wireEnd) receive() *Message {
	w.t.Helper()
	return wait(w.t, w.in, "message")
}

func wait[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// log waits for a line that holds text.
func (w *wireEnd) log(text string) string {
	w.t.Helper()
	for {
		if l := wait(w.t, w.logs, "log line with "+text); strings.Contains(l, text) {
			return l
		}
	}
}

func (w *wireEnd) none() {
	w.t.Helper()
	select {
	case m := <-w.in:
		w.t.Fatalf("received %q", m.Raw)
	default:
	}
}

// peer is the other end: a plain socket.
type peer struct {
	net.Conn
	t   *testing.T
	buf []byte
}

func dialPeer(t *testing.T, network string, to netip.AddrPort) *peer {
	t.Helper()
	c, err := net.Dial(network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &peer{Conn: c, t: t}
}

func (p *peer) addr() netip.AddrPort { return netip.MustParseAddrPort(p.LocalAddr().String()) }

func (p *peer) write(s string) {
	p.t.Helper()
	if _, err := p.Write([]byte(s)); err != nil {
		p.t.Fatal(err)
	}
}

// message reads the next message.
func (p *peer) message() *Message {
	p.t.Helper()
	b := make([]byte, 65536)
	if p.LocalAddr().Network() == "udp" {
		n, err := p.Read(b)
		if err != nil {
			p.t.Fatal(err)
		}
		return parseText(p.t, string(b[:n]), false)
	}
	for {
		n, err := FrameLen(p.buf)
		if err != nil {
			p.t.Fatal(err)
		}
		if n > 0 {
			m := parseText(p.t, string(p.buf[:n]), true)
			p.buf = p.buf[n:]
			return m
		}
		n, err = p.Read(b)
		p.buf = append(p.buf, b[:n]...)
		if err != nil {
			p.t.Fatalf("%v after %q", err, p.buf)
		}
	}
}

// closed reads to the end and gives what came before it.
func (p *peer) closed() string {
	p.t.Helper()
	b, err := io.ReadAll(p)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		p.t.Fatalf("not closed, read %q", b)
	}
	return string(p.buf) + string(b)
}

// framed is a request for a stream with a body of n octets.
func framed(n int, change map[string]string) string {
	r := request(change, fmt.Sprint("Content-Length: ", n))
	return r + strings.Repeat("b", n)
}

func respond(t *testing.T, w *wireEnd, m *Message, status int) {
	t.Helper()
	b := AppendBody(AppendResponse(nil, m, status, "", "srv"), "", nil)
	if err := w.Send(ResponseFlow(m), b, 0); err != nil {
		t.Fatal(err)
	}
}

// Responses find their way back: the Via of the request and the socket it came
// in on decide (RFC 3261 section 18.2.2, RFC 3581 section 4).
func TestEndpointResponseRouting(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{})
	udp, tcp := w.listen(UDP), w.listen(TCP)
	for _, c := range []struct {
		name, network, sentBy, params string
		elsewhere                     bool // the response comes to the sent-by port, not the source port
		via                           string
	}{
		{
			name: "NAT-01 rport: source port, rport and received filled", network: "udp", sentBy: "192.0.2.200:5062", params: ";rport",
			via: ";rport=SOURCE;received=127.0.0.1",
		},
		{
			name: "NAT-01 rport and the true address: received all the same", network: "udp", sentBy: "SELF", params: ";rport",
			via: ";rport=SOURCE;received=127.0.0.1",
		},
		{
			name: "NAT-01 the peer's own rport and received are replaced", network: "udp", sentBy: "192.0.2.200", params: ";rport=9;received=192.0.2.3",
			via: ";rport=SOURCE;received=127.0.0.1",
		},
		{
			name: "CORE-19 a name in sent-by: received, sent-by port", network: "udp", sentBy: "phone.example.org:OTHER", elsewhere: true,
			via: ";received=127.0.0.1",
		},
		{
			name: "CORE-19 another address in sent-by", network: "udp", sentBy: "192.0.2.200:OTHER", elsewhere: true,
			via: ";received=127.0.0.1",
		},
		{name: "CORE-19 the true address in sent-by: nothing added", network: "udp", sentBy: "127.0.0.1:OTHER", elsewhere: true},
		{
			name: "CORE-19 maddr", network: "udp", sentBy: "192.0.2.200:OTHER", params: ";maddr=127.0.0.1;rport", elsewhere: true,
			via: ";maddr=127.0.0.1;rport=SOURCE;received=127.0.0.1",
		},
		{name: "CORE-19 TCP: the connection", network: "tcp", sentBy: "192.0.2.200:5062", via: ";received=127.0.0.1"},
		{name: "NAT-01 TCP with rport", network: "tcp", sentBy: "phone.invalid", params: ";rport", via: ";rport=SOURCE;received=127.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			to := udp
			if c.network == "tcp" {
				to = tcp
			}
			p := dialPeer(t, c.network, to)
			other, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			fill := strings.NewReplacer("OTHER", fmt.Sprint(netip.MustParseAddrPort(other.LocalAddr().String()).Port()),
				"SOURCE", fmt.Sprint(p.addr().Port()), "SELF", p.addr().String()).Replace
			via := "SIP/2.0/" + strings.ToUpper(c.network) + " " + fill(c.sentBy) + ";branch=z9hG4bK1"
			p.write(framed(0, map[string]string{"Via": via + c.params}))
			m := w.receive()
			if m.Flow.Remote != p.addr() || m.Flow.Local != to || (m.Flow.Conn != 0) != (c.network == "tcp") || m.At.IsZero() {
				t.Fatalf("flow %+v, peer %v", m.Flow, p.addr())
			}
			respond(t, w, m, 200)
			var got *Message
			if c.elsewhere {
				b := make([]byte, 2048)
				other.SetReadDeadline(time.Now().Add(patience))
				n, from, err := other.ReadFromUDPAddrPort(b)
				if err != nil {
					t.Fatal(err)
				}
				if from != udp {
					t.Errorf("NAT-01: sent from %v, want %v", from, udp)
				}
				got = parseText(t, string(b[:n]), false)
			} else {
				got = p.message() // a connected socket takes nothing from another address
			}
			want := via + fill(c.via)
			if string(got.Header(HdrVia)) != want {
				t.Errorf("Via %s, want %s", got.Header(HdrVia), want)
			}
		})
	}
}

func TestEndpointUDP(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{})
	p := dialPeer(t, "udp", w.listen(UDP))
	t.Run("keep-alives are not messages", func(t *testing.T) {
		for _, s := range []string{"", "\r\n", "\r\n\r\n", "\x00", "\x00\x00\x00\x00"} {
			p.write(s)
		}
		p.write(framed(0, nil))
		if m := w.receive(); m.Method() != SUBSCRIBE {
			t.Errorf("%s", m.MethodToken())
		}
		if n := w.Stats().Received.Load(); n != 1 {
			t.Errorf("%d received", n)
		}
	})
	t.Run("CORE-18 a datagram of 60 kB", func(t *testing.T) {
		p.write(framed(60000, nil))
		if m := w.receive(); len(m.Body()) != 60000 {
			t.Errorf("body of %d", len(m.Body()))
		}
	})
	t.Run("CORE-20 a short body is answered 400", func(t *testing.T) {
		p.write(request(nil, "Via: SIP/2.0/UDP 192.0.2.7", "Content-Length: 10") + "short")
		p2 := dialPeer(t, "udp", w.groups()[0].local)
		p2.write(strings.Replace(request(nil, "Content-Length: 10"), ";branch", ";rport;branch", 1) + "short")
		m := p2.message()
		if m.Status() != 400 || len(m.To().Tag()) == 0 || string(m.CallID()) != "c1@192.0.2.1" {
			t.Errorf("%s", m.Raw)
		}
	})
	t.Run("400 to garbage that can be answered, with the same tag each time", func(t *testing.T) {
		bad := strings.Replace(request(map[string]string{"CSeq": "7 NOTIFY"}), ";branch", ";rport;branch", 1)
		p.write(bad)
		p.write(bad)
		a, b := p.message(), p.message()
		if a.Status() != 400 || !bytes.Equal(a.Raw, b.Raw) || len(a.To().Tag()) == 0 {
			t.Errorf("CORE-08:\n%s\n%s", a.Raw, b.Raw)
		}
	})
	t.Run("no answer to what cannot be answered", func(t *testing.T) {
		for _, s := range []string{
			strings.Repeat("garbage ", 10), "SIP/2.0 200 OK\r\nVia: x\r\n\r\n", request(map[string]string{"Via": "-"}),
			request(map[string]string{"": "ACK sip:alice@example.com SIP/2.0", "CSeq": "x"}),
		} {
			p.write(s)
		}
		p.write(strings.Replace(framed(0, nil), ";branch", ";rport;branch", 1))
		respond(t, w, w.receive(), 200)
		if m := p.message(); m.Status() != 200 {
			t.Errorf("%s", m.Raw)
		}
	})
	w.none()
}

// A flood of bad messages writes at most ten lines a second, and says how many
// it kept back.
func TestEndpointLogsGarbageOnce(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{})
	p := dialPeer(t, "udp", w.listen(UDP))
	p.write(strings.Replace(request(map[string]string{"CSeq": "7 NOTIFY"}), ";branch", ";rport;branch", 1))
	p.message()
	if l := w.log("malformed message"); !strings.Contains(l, "status=400") || !strings.Contains(l, "answered=true") || strings.Contains(l, "alice") {
		t.Errorf("logged %s", l)
	}
	var l LogLimit
	lines, suppressed := 0, 0
	for i := range 2500 { // one each millisecond
		if n, ok := l.Allow(wheelStart.Add(time.Duration(i) * time.Millisecond)); ok {
			lines++
			suppressed += n
		}
	}
	if n, ok := l.Allow(wheelStart.Add(time.Minute)); !ok || lines != 30 || suppressed+n+lines != 2500 {
		t.Errorf("%d lines, %d suppressed, then %d", lines, suppressed, n)
	}
}

func TestEndpointTCPFraming(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{})
	to := w.listen(TCP)
	body := strings.Repeat("x", 3000)
	one := request(nil, fmt.Sprint("Content-Length: ", len(body))) + body
	check := func(t *testing.T, n int) {
		t.Helper()
		w.t = t
		for range n {
			if m := w.receive(); string(m.Raw) != one {
				t.Fatalf("received %d octets: %.60q", len(m.Raw), m.Raw)
			}
		}
	}
	t.Run("octet by octet", func(t *testing.T) {
		p := dialPeer(t, "tcp", to)
		for i := range len(one) {
			p.write(one[i : i+1])
		}
		check(t, 1)
	})
	t.Run("several messages in one segment", func(t *testing.T) {
		p := dialPeer(t, "tcp", to)
		p.write(strings.Repeat(one, 20))
		check(t, 20)
	})
	t.Run("split at every place of interest", func(t *testing.T) {
		p := dialPeer(t, "tcp", to)
		head := strings.Index(one, "\r\n\r\n")
		for _, at := range []int{1, 10, head, head + 1, head + 2, head + 3, head + 4, head + 5, len(one) - 1} {
			p.write(one[:at])
			p.write(one[at:] + one[:at])
			p.write(one[at:])
		}
		check(t, 18)
	})
	t.Run("line ends before and between messages", func(t *testing.T) {
		p := dialPeer(t, "tcp", to)
		p.write("\r\n" + one + "\r\n" + one)
		p.write("\r\n")
		p.write(one)
		check(t, 3)
	})
	t.Run("OB-01 CRLF CRLF gets CRLF", func(t *testing.T) {
		p := dialPeer(t, "tcp", to)
		b := make([]byte, 2)
		for _, parts := range [][]string{{"\r\n\r\n"}, {"\r\n", "\r\n"}, {"\r", "\n\r\n"}, {one + "\r\n\r\n"}} {
			for _, s := range parts {
				p.write(s)
			}
			if _, err := io.ReadFull(p, b); err != nil || string(b) != "\r\n" {
				t.Fatalf("%q: %q, %v", parts, b, err)
			}
		}
		check(t, 1)
		p.write(one)
		check(t, 1)
	})
	t.Run("a large message and small ones after it", func(t *testing.T) {
		p := dialPeer(t, "tcp", to)
		p.write(framed(900<<10, nil) + one)
		if m := w.receive(); len(m.Body()) != 900<<10 {
			t.Fatalf("body of %d", len(m.Body()))
		}
		check(t, 1)
	})
	w.none()
}

func TestEndpointTCPRefusals(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{})
	to := w.listen(TCP)
	good := framed(0, nil)
	t.Run("CORE-20 no Content-Length: 400, then the connection is closed", func(t *testing.T) {
		for range 20 { // the answer must not lose a race with the close
			p := dialPeer(t, "tcp", to)
			p.write(request(nil))
			if m := p.message(); m.Status() != 400 {
				t.Fatalf("%s", m.Raw)
			}
			if rest := p.closed(); rest != "" {
				t.Fatalf("then %q", rest)
			}
		}
	})
	t.Run("400 and the stream goes on when its framing is whole", func(t *testing.T) {
		p := dialPeer(t, "tcp", to)
		p.write(framed(3, map[string]string{"CSeq": "7 NOTIFY"}) + good)
		if m := p.message(); m.Status() != 400 {
			t.Errorf("%s", m.Raw)
		}
		w.receive()
	})
	t.Run("garbage closes the connection", func(t *testing.T) {
		p := dialPeer(t, "tcp", to)
		p.write("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
		if s := p.closed(); s != "" {
			t.Errorf("read %q", s)
		}
	})
	t.Run("CORE-23 header fields of 70 kB: 513 and closed", func(t *testing.T) {
		p := dialPeer(t, "tcp", to)
		p.write(request(nil, "Content-Length: 0", "X: "+strings.Repeat("x", 70000)))
		if s := p.closed(); !strings.HasPrefix(s, "SIP/2.0 513 ") {
			t.Errorf("read %q", s)
		}
	})
	t.Run("CORE-23 a body of more than a MiB: 513 and closed, without reading it", func(t *testing.T) {
		p := dialPeer(t, "tcp", to)
		p.write(request(nil, "Content-Length: 1100000"))
		if s := p.closed(); !strings.HasPrefix(s, "SIP/2.0 513 ") {
			t.Errorf("read %q", s)
		}
	})
	w.none()
	w.t = t
	for w.Conns() > 0 {
		w.log("connection closed")
	}
}

func TestEndpointConnectionLimit(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{MaxConns: 2})
	to := w.listen(TCP)
	a, b := dialPeer(t, "tcp", to), dialPeer(t, "tcp", to)
	a.write(framed(0, nil))
	b.write(framed(0, nil))
	w.receive()
	w.receive()
	if s := dialPeer(t, "tcp", to).closed(); s != "" {
		t.Errorf("read %q", s)
	}
	if n := w.Stats().Refused.Load(); n != 1 || w.Conns() != 2 {
		t.Errorf("%d refused, %d open", n, w.Conns())
	}
	if err := w.Send(Flow{Proto: TCP, Remote: netip.MustParseAddrPort("127.0.0.1:9")}, []byte("x"), 0); err == nil {
		t.Error("a third connection was opened")
	}
	a.Close()
	w.log("connection closed")
	c := dialPeer(t, "tcp", to)
	c.write(framed(0, nil))
	w.receive()
}

// A peer that stops reading costs its own connection and nothing else.
func TestEndpointPeerThatStopsReading(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{WriteQueue: 16 << 20}) // more than the kernel takes for a peer that does not read
	to := w.listen(TCP)
	deaf, good := dialPeer(t, "tcp", to), dialPeer(t, "tcp", to)
	deaf.Conn.(*net.TCPConn).SetReadBuffer(4096)
	deaf.write(framed(0, nil))
	flow := w.receive().Flow
	big := []byte(framed(60000, nil))
	var err error
	sent := ClientID(0)
	for err == nil && sent < 2000 {
		sent++
		before := time.Now()
		if err = w.Send(flow, big, uint64(sent)); time.Since(before) > patience/2 {
			t.Fatal("Send blocked")
		}
	}
	if !errors.Is(err, ErrFlowGone) {
		t.Fatalf("after %d messages: %v", sent, err)
	}
	good.write(framed(0, nil))
	respond(t, w, w.receive(), 200)
	if m := good.message(); m.Status() != 200 {
		t.Errorf("%s", m.Raw)
	}
	w.log("connection closed")
	first := wait(t, w.failed, "report of what was not sent")
	for id := first + 1; id < sent; id++ { // in order, up to the one that Send itself refused
		if got := wait(t, w.failed, "report"); got != id {
			t.Fatalf("reported %d, want %d", got, id)
		}
	}
	if err := w.Send(flow, big, 1); !errors.Is(err, ErrFlowGone) {
		t.Errorf("later: %v", err)
	}
	if w.Conns() != 1 {
		t.Errorf("%d connections", w.Conns())
	}
}

func TestEndpointWriteTimeout(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{WriteTimeout: 20 * time.Millisecond, WriteQueue: 64 << 20})
	deaf := dialPeer(t, "tcp", w.listen(TCP))
	deaf.Conn.(*net.TCPConn).SetReadBuffer(4096)
	deaf.write(framed(0, nil))
	flow := w.receive().Flow
	big := []byte(framed(60000, nil))
	for i := range 400 {
		if w.Send(flow, big, uint64(i+1)) != nil {
			break
		}
	}
	w.log("connection closed")
	wait(t, w.failed, "report of what was not sent")
	if err := w.Send(flow, big, 1); !errors.Is(err, ErrFlowGone) || w.Conns() != 0 {
		t.Errorf("later: %v, %d connections", err, w.Conns())
	}
}

func TestEndpointIdle(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{IdleTimeout: 20 * time.Millisecond})
	p := dialPeer(t, "tcp", w.listen(TCP))
	p.write(framed(0, nil)[:20])
	if s := p.closed(); s != "" {
		t.Errorf("read %q", s)
	}
	if l := w.log("connection closed"); !strings.Contains(l, "idle") {
		t.Error(l)
	}
}

func TestEndpointDial(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := netip.MustParseAddrPort(l.Addr().String())
	t.Run("one connection for many messages, in order, both ways", func(t *testing.T) {
		flow := Flow{Proto: TCP, Remote: to}
		for i := range 3 {
			if err := w.Send(flow, []byte(framed(0, map[string]string{"CSeq": fmt.Sprint(i, " SUBSCRIBE")})), uint64(i+1)); err != nil {
				t.Fatal(err)
			}
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		p := &peer{Conn: c, t: t}
		for i := range uint32(3) {
			if m := p.message(); m.CSeq() != i {
				t.Errorf("CSeq %d, want %d", m.CSeq(), i)
			}
		}
		p.write(string(AppendBody(AppendResponse(nil, parseText(t, framed(0, nil), true), 200, "", "x"), "", nil)))
		m := w.receive()
		if m.Status() != 200 || m.Flow.Remote != to || m.Flow.Conn == 0 || w.Conns() != 1 {
			t.Errorf("%+v, %d connections", m.Flow, w.Conns())
		}
		c.Close()
		w.log("connection closed")
		if err := w.Send(m.Flow, []byte("x"), 0); !errors.Is(err, ErrFlowGone) {
			t.Errorf("flow of a closed connection: %v", err)
		}
	})
	t.Run("CORE-17 refused: an error or a report for each token, never both", func(t *testing.T) {
		l.Close()
		for id := ClientID(71); id < 75; id++ {
			if err := w.Send(Flow{Proto: TCP, Remote: to}, []byte(framed(0, nil)), uint64(id)); err != nil {
				continue // refused before it was queued
			}
			if got := wait(t, w.failed, "report"); got != id {
				t.Errorf("reported %d, want %d", got, id)
			}
		}
		if len(w.failed) > 0 {
			t.Errorf("reported %d as well", <-w.failed)
		}
	})
	t.Run("wrong flows", func(t *testing.T) {
		for _, p := range []Proto{WS, WSS} {
			if err := w.Send(Flow{Proto: p, Remote: to}, []byte("x"), 0); err == nil || !strings.Contains(err.Error(), "cannot connect over WS") {
				t.Errorf("%v: %v", p, err)
			}
		}
		if err := w.Send(Flow{Proto: UDP, Remote: to}, []byte("x"), 0); err == nil {
			t.Error("UDP without a listener")
		}
		if n := w.Stats().SendErrors.Load(); n < 2 {
			t.Errorf("%d errors counted", n)
		}
	})
}

func TestEndpointUDPSend(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{})
	a, b := w.listen(UDP), w.listen(UDP)
	p, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.SetDeadline(time.Now().Add(patience))
	to := netip.MustParseAddrPort(p.LocalAddr().String())
	buf := make([]byte, 100)
	for _, c := range []struct{ local, want netip.AddrPort }{{a, a}, {b, b}, {netip.AddrPort{}, a}} {
		if err := w.Send(Flow{Proto: UDP, Local: c.local, Remote: to}, []byte("datagram"), 0); err != nil {
			t.Fatal(err)
		}
		n, from, err := p.ReadFromUDPAddrPort(buf)
		if err != nil || from != c.want || string(buf[:n]) != "datagram" {
			t.Errorf("%q from %v (%v), want from %v", buf[:n], from, err, c.want)
		}
	}
	if err := w.Send(Flow{Proto: UDP, Local: netip.MustParseAddrPort("192.0.2.9:5060"), Remote: to}, []byte("x"), 0); err == nil {
		t.Error("sent from an address that is not ours")
	}
}

// A socket bound to all addresses tells which of them a peer sees.
func TestEndpointWildcard(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{})
	at, err := w.Listen(UDP, "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	p := dialPeer(t, "udp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port()))
	for range 2 {
		p.write(strings.Replace(framed(0, nil), ";branch", ";rport;branch", 1))
		m := w.receive()
		if m.Flow.Local.Addr().String() != "127.0.0.1" || m.Flow.Local.Port() != at.Port() || m.Flow.Remote != p.addr() {
			t.Errorf("flow %+v", m.Flow)
		}
		respond(t, w, m, 200)
		p.message()
	}
}

// Close ends every goroutine: of listeners, of open and of half-open
// connections, of a dial under way.
func TestEndpointClose(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{})
	to := w.listen(TCP)
	w.listen(UDP)
	for range 5 {
		p := dialPeer(t, "tcp", to)
		p.write(framed(0, nil)[:50])
		q := dialPeer(t, "tcp", to)
		q.write(framed(0, nil))
		w.receive()
	}
	dialing := w.Send(Flow{Proto: TCP, Remote: netip.MustParseAddrPort("192.0.2.1:5060")}, []byte("x"), 9)
	var over sync.WaitGroup
	for range 2 { // idempotent
		over.Go(w.Close)
	}
	over.Wait()
	if dialing == nil {
		if id := wait(t, w.failed, "report of the dial"); id != 9 {
			t.Errorf("reported %d", id)
		}
	}
	if _, err := w.Listen(UDP, "127.0.0.1:0"); err == nil {
		t.Error("listens after Close")
	}
	for until := time.Now().Add(patience); ; runtime.Gosched() { // a goroutine that has ended its work may still be seen
		buf := make([]byte, 1<<20)
		stacks := string(buf[:runtime.Stack(buf, true)])
		if !strings.Contains(stacks, "sip.(*Endpoint)") && !strings.Contains(stacks, "sip.(*streamConn)") {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("left:\n%s", stacks)
		}
	}
}

func TestParseListen(t *testing.T) {
	for _, c := range []struct{ in, addr, err string }{
		{"udp:127.0.0.1:5060", "UDP 127.0.0.1:5060", ""},
		{"TCP:[::1]:0", "TCP [::1]:0", ""},
		{"tls:127.0.0.1:5061", "TLS 127.0.0.1:5061", ""},
		{"ws:127.0.0.1:80", "WS 127.0.0.1:80", ""},
		{"WSS:0.0.0.0:443", "WSS 0.0.0.0:443", ""},
		{"sctp:127.0.0.1:5060", "", "unknown transport"},
		{"127.0.0.1", "", "want TRANSPORT:HOST:PORT"},
		{"udp:127.0.0.1", "", "missing port"},
	} {
		p, addr, err := ParseListen(c.in)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v", c.in, err)
			}
		case err != nil || p.String()+" "+addr != c.addr:
			t.Errorf("%s: %v %s %v", c.in, p, addr, err)
		}
	}
}

// TestSendersWriteALongQueue: when the writer does not get its turn, senders
// write, in order.
func TestSendersWriteALongQueue(t *testing.T) {
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	e := NewEndpoint(EndpointOptions{Receive: func(m *Message) { m.Release() }})
	defer e.Close()
	port := func(c *net.UDPConn) netip.AddrPort { return unmap(c.LocalAddr().(*net.UDPAddr).AddrPort()) }
	s := &packetSocket{conn: conn, local: port(conn), wake: make(chan struct{}, 1)} // without a writer
	if s.raw, err = conn.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	s.writer = newPacketWriter(s)
	e.packets.Store(&[]*packetGroup{{local: s.local, socks: []*packetSocket{s}}})
	for i := range 3*flushAt + 10 {
		if err := e.Send(Flow{Local: s.local, Remote: port(peer)}, fmt.Append(nil, i), 0); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.queue); n > flushAt {
		t.Errorf("%d wait", n)
	}
	last, buf := -1, make([]byte, 64)
	for last < 63 { // the peer's buffer holds some of them
		peer.SetReadDeadline(time.Now().Add(patience))
		n, err := peer.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		i, err := strconv.Atoi(string(buf[:n]))
		if err != nil || i <= last {
			t.Fatalf("%q after %d", buf[:n], last)
		}
		last = i
	}
}
