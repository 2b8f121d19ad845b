package sip

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"rollcall/sip/siptest"
)

// webPeer is a WebSocket client.
type webPeer struct {
	*websocket.Conn
	t    *testing.T
	ctx  context.Context
	pong chan string
}

func dialWeb(t *testing.T, url string, cfg *tls.Config) *webPeer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	p := &webPeer{t: t, ctx: ctx, pong: make(chan string, 1)}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
	c, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{
		Subprotocols: []string{"sip"}, HTTPClient: client, OnPongReceived: func(_ context.Context, b []byte) { p.pong <- string(b) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.CloseNow() })
	c.SetReadLimit(MaxBodyBytes + MaxHeaderBytes)
	p.Conn = c
	return p
}

func (p *webPeer) send(typ websocket.MessageType, s string) {
	p.t.Helper()
	if err := p.Write(p.ctx, typ, []byte(s)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *webPeer) next() (websocket.MessageType, []byte) {
	p.t.Helper()
	typ, b, err := p.Read(p.ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	return typ, b
}

func (p *webPeer) message() *Message {
	p.t.Helper()
	_, b := p.next()
	return parseText(p.t, string(b), false)
}

const upgradeRequest = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

// WS-01: the handshake.
func TestWebSocketHandshake(t *testing.T) {
	plain := newWireEnd(t, EndpointOptions{})
	open := newWireEnd(t, EndpointOptions{Origins: []string{"*.example.com", "https://example.org"}})
	toPlain, toOpen := plain.listen(WS), open.listen(WS)
	for _, c := range []struct {
		name, head string
		to         netip.AddrPort
		want       int
	}{
		{"sip", upgradeRequest + "Sec-WebSocket-Protocol: sip\r\n", toPlain, 101},
		{"sip among others, in two fields", upgradeRequest + "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: x,  sip\r\n", toPlain, 101},
		{"no subprotocol", upgradeRequest, toPlain, 400},
		{"another subprotocol", upgradeRequest + "Sec-WebSocket-Protocol: sipx, xsip\r\n", toPlain, 400},
		{"compression is not taken", upgradeRequest + "Sec-WebSocket-Protocol: sip\r\nSec-WebSocket-Extensions: permessage-deflate\r\n", toPlain, 101},
		{"no upgrade", "", toPlain, 426},
		{"old version", strings.Replace(upgradeRequest, "13", "8", 1) + "Sec-WebSocket-Protocol: sip\r\n", toPlain, 400},
		{"origin is the host", upgradeRequest + "Sec-WebSocket-Protocol: sip\r\nOrigin: https://sip.example.com\r\n", toPlain, 101},
		{"another origin", upgradeRequest + "Sec-WebSocket-Protocol: sip\r\nOrigin: https://www.example.com\r\n", toPlain, 403},
		{"no page's origin", upgradeRequest + "Sec-WebSocket-Protocol: sip\r\nOrigin: null\r\n", toPlain, 403},
		{"origin by pattern", upgradeRequest + "Sec-WebSocket-Protocol: sip\r\nOrigin: https://www.example.com\r\n", toOpen, 101},
		{"origin with its scheme", upgradeRequest + "Sec-WebSocket-Protocol: sip\r\nOrigin: https://example.org\r\n", toOpen, 101},
		{"origin with another scheme", upgradeRequest + "Sec-WebSocket-Protocol: sip\r\nOrigin: http://example.org\r\n", toOpen, 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := dialPeer(t, "tcp", c.to)
			p.write("GET /any/path?x HTTP/1.1\r\nHost: sip.example.com\r\n" + c.head + "\r\n")
			r, err := http.ReadResponse(bufio.NewReader(p), nil)
			if err != nil {
				t.Fatal(err)
			}
			if r.StatusCode != c.want || r.Header.Get("Sec-WebSocket-Extensions") != "" {
				t.Errorf("status %d %v", r.StatusCode, r.Header)
			}
			if c.want == 101 {
				if got := r.Header.Values("Sec-WebSocket-Protocol"); !slices.Equal(got, []string{"sip"}) {
					t.Errorf("subprotocol %q", got)
				}
				return
			}
			io.Copy(io.Discard, r.Body)
			p.closed()
		})
	}
	plain.none()
	open.none()
}

func TestWebSocketHandshakeTimeout(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{HandshakeTimeout: 20 * time.Millisecond})
	to := w.listen(WS)
	for _, s := range []string{"", "GET / HTTP/1.1\r\nHost: x\r\n", framed(0, nil), "\x16\x03\x01\x00\xa5"} {
		p := dialPeer(t, "tcp", to)
		p.write(s)
		p.closed()
		w.log("connection closed")
	}
	if w.Conns() != 0 {
		t.Errorf("%d connections", w.Conns())
	}
	w.none()
}

// WS-01: messages, over both transports.
func TestWebSocketMessages(t *testing.T) {
	ca := siptest.NewCA(t)
	cert := ca.Issue(t, siptest.Leaf{IPs: []string{"127.0.0.1"}})
	phone := ca.Issue(t, siptest.Leaf{DNS: []string{"a.example"}})
	for _, proto := range []Proto{WS, WSS} {
		t.Run(proto.String(), func(t *testing.T) {
			w := newWireEnd(t, EndpointOptions{
				ServerTLS: &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ca.Pool()},
			})
			to := w.listen(proto)
			connect := func(t *testing.T) *webPeer {
				w.t = t
				return dialWeb(t, strings.ToLower(proto.String())+"://"+to.String()+"/ws", &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{phone}})
			}
			via := map[string]string{"Via": "SIP/2.0/" + proto.String() + " df7jal23ls0d.invalid;branch=z9hG4bK1"}
			t.Run("text, binary, without Content-Length; the same connection back", func(t *testing.T) {
				p := connect(t)
				for _, typ := range []websocket.MessageType{websocket.MessageText, websocket.MessageBinary} {
					for _, text := range []string{framed(30000, via), request(via) + "body without a length", "\r\n" + framed(0, via) + "\r\n"} {
						p.send(typ, text)
						m := w.receive()
						if string(m.Raw) != strings.Trim(text, "\r\n") && string(m.Raw) != strings.TrimPrefix(strings.TrimSuffix(text, "\r\n"), "\r\n") {
							t.Errorf("%.80q", m.Raw)
						}
						if m.Flow.Proto != proto || m.Flow.Conn == 0 || m.Flow.Local != to {
							t.Errorf("%+v", m.Flow)
						}
						if want := proto == WSS; slices.Equal(m.Names, []string{"a.example"}) != want {
							t.Errorf("names %v", m.Names)
						}
						respond(t, w, m, 200)
						if r := p.message(); r.Status() != 200 {
							t.Errorf("%s", r.Raw)
						}
						// What a NOTIFY does later.
						if err := w.Send(m.Flow, []byte(framed(0, map[string]string{"": "NOTIFY sip:a@df7jal23ls0d.invalid;transport=ws SIP/2.0", "CSeq": "9 NOTIFY"})), 1); err != nil {
							t.Fatal(err)
						}
						if r := p.message(); r.Method() != NOTIFY {
							t.Errorf("%s", r.Raw)
						}
					}
				}
			})
			t.Run("text is UTF-8, all else is binary", func(t *testing.T) {
				p := connect(t)
				p.send(websocket.MessageText, framed(0, via))
				f := w.receive().Flow
				for text, want := range map[string]websocket.MessageType{
					"plain": websocket.MessageText, "größer": websocket.MessageText, "gr\xf6\xdfer": websocket.MessageBinary,
				} {
					if err := w.Send(f, []byte(text), 0); err != nil {
						t.Fatal(err)
					}
					if typ, b := p.next(); typ != want || string(b) != text {
						t.Errorf("%q as %v", b, typ)
					}
				}
			})
			t.Run("a batch stays single messages", func(t *testing.T) {
				p := connect(t)
				p.send(websocket.MessageText, framed(0, via))
				f := w.receive().Flow
				for i := range 200 {
					if err := w.Send(f, []byte(strings.Repeat("x", i+1)), 0); err != nil {
						t.Fatal(err)
					}
				}
				for i := range 200 {
					if _, b := p.next(); len(b) != i+1 {
						t.Fatalf("%d octets, want %d", len(b), i+1)
					}
				}
			})
			t.Run("fragments", func(t *testing.T) {
				p := connect(t)
				text := framed(5000, via)
				out, err := p.Writer(p.ctx, websocket.MessageText)
				if err != nil {
					t.Fatal(err)
				}
				for part := range slices.Chunk([]byte(text), 1000) {
					if _, err := out.Write(part); err != nil {
						t.Fatal(err)
					}
				}
				if err := out.Close(); err != nil {
					t.Fatal(err)
				}
				if m := w.receive(); string(m.Raw) != text {
					t.Errorf("%.80q", m.Raw)
				}
			})
			t.Run("ping gets pong, CRLF CRLF gets CRLF", func(t *testing.T) {
				p := connect(t)
				over := make(chan error, 1)
				go func() { over <- p.Ping(p.ctx) }()
				p.send(websocket.MessageText, "\r\n")
				p.send(websocket.MessageText, "\r\n\r\n")
				if _, b := p.next(); string(b) != "\r\n" {
					t.Errorf("%q", b)
				}
				p.CloseRead(p.ctx)
				if err := wait(t, over, "pong"); err != nil {
					t.Error(err)
				}
			})
			t.Run("refused, and the connection goes on", func(t *testing.T) {
				p := connect(t)
				for _, c := range []struct {
					name, text string
					status     int // 0: no answer
				}{
					{"two messages in one", framed(0, via) + framed(0, via), 400},
					{"octets after the body", framed(3, via) + "x", 400},
					{"a body shorter than it says", request(via, "Content-Length: 9") + "short", 400},
					{"garbage", "hello", 0},
					{"a bad response", "SIP/2.0 200 OK\r\nVia: x\r\n\r\n", 0},
					{"two ACKs", strings.Repeat(framed(0, map[string]string{"": "ACK sip:a@example.com SIP/2.0", "CSeq": "1 ACK"}), 2), 0},
					{"body of more than a MiB without its length", request(via) + strings.Repeat("b", MaxBodyBytes+1), 513},
				} {
					before := w.Stats().Malformed.Load()
					p.send(websocket.MessageText, c.text)
					if c.status != 0 {
						if m := p.message(); m.Status() != c.status {
							t.Errorf("%s: %s", c.name, m.Raw)
						}
					}
					p.send(websocket.MessageText, framed(0, via))
					respond(t, w, w.receive(), 200)
					if m := p.message(); m.Status() != 200 {
						t.Errorf("%s: then %s", c.name, m.Raw)
					}
					if n := w.Stats().Malformed.Load() - before; n != 1 {
						t.Errorf("%s: %d malformed", c.name, n)
					}
				}
			})
			t.Run("too large: closed with 1009", func(t *testing.T) {
				p := connect(t)
				before := w.Stats().Closed[ClosedLimit].Load()
				p.Write(p.ctx, websocket.MessageBinary, bytes.Repeat([]byte("x"), MaxHeaderBytes+MaxBodyBytes+1))
				if _, _, err := p.Read(p.ctx); websocket.CloseStatus(err) != websocket.StatusMessageTooBig {
					t.Error(err)
				}
				for w.Stats().Closed[ClosedLimit].Load() == before {
					w.log("connection closed")
				}
			})
			t.Run("closed by the peer: its flow is gone", func(t *testing.T) {
				p := connect(t)
				p.send(websocket.MessageText, framed(0, via))
				f := w.receive().Flow
				before := w.Stats().Closed[ClosedPeer].Load()
				if err := p.Close(websocket.StatusNormalClosure, ""); err != nil {
					t.Error(err)
				}
				for w.Stats().Closed[ClosedPeer].Load() == before {
					w.log("connection closed")
				}
				if err := w.Send(f, []byte("x"), 3); !errors.Is(err, ErrFlowGone) {
					t.Error(err)
				}
			})
			w.none()
			if len(w.failed) > 0 {
				t.Errorf("reported %d", <-w.failed)
			}
		})
	}
}

func TestWebSocketIdle(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{IdleTimeout: 200 * time.Millisecond})
	p := dialWeb(t, "ws://"+w.listen(WS).String(), nil)
	p.send(websocket.MessageText, framed(0, nil))
	w.receive()
	if _, _, err := p.Read(p.ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Error(err)
	}
	w.log("connection closed")
	if w.Stats().Closed[ClosedIdle].Load() != 1 {
		t.Error("not counted")
	}
}
