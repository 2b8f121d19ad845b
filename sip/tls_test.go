package sip

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"rollcall/sip/siptest"
)

// TL-01: the identities of a certificate.
func TestCertificateNames(t *testing.T) {
	ca := siptest.NewCA(t)
	for _, c := range []struct {
		name string
		leaf siptest.Leaf
		want string
	}{
		{"a sip URI", siptest.Leaf{CommonName: "cn.example", URIs: []string{"sip:Example.COM"}}, "[example.com]"},
		{"several, with port and parameters", siptest.Leaf{URIs: []string{"sip:a.example:5061", "SIP:b.example;transport=tls", "sip:a.example"}}, "[a.example b.example]"},
		{"a sip URI hides DNS names", siptest.Leaf{URIs: []string{"sip:a.example"}, DNS: []string{"b.example"}}, "[a.example]"},
		{"a user is no domain", siptest.Leaf{URIs: []string{"sip:alice@a.example"}, DNS: []string{"b.example"}}, "[b.example]"},
		{"another scheme", siptest.Leaf{URIs: []string{"sips:a.example", "https://c.example"}, DNS: []string{"b.example"}}, "[b.example]"},
		{"DNS names", siptest.Leaf{CommonName: "cn.example", DNS: []string{"A.example", "b.example"}}, "[a.example b.example]"},
		{"wildcards are nobody", siptest.Leaf{DNS: []string{"*.example.com"}}, "[]"},
		{"CN without alternative names", siptest.Leaf{CommonName: "CN.example"}, "[cn.example]"},
		{"CN that is no name", siptest.Leaf{CommonName: "Example Ltd"}, "[]"},
		{"CN beside an alternative name of another kind", siptest.Leaf{CommonName: "cn.example", IPs: []string{"192.0.2.1"}}, "[]"},
		{"nothing", siptest.Leaf{}, "[]"},
	} {
		if got := fmt.Sprint(CertificateNames(ca.Issue(t, c.leaf).Leaf)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func serverConfig(certs ...tls.Certificate) *tls.Config { return &tls.Config{Certificates: certs} }

// secureEnd is an endpoint that accepts TLS.
func secureEnd(t *testing.T, opt EndpointOptions) (*wireEnd, netip.AddrPort) {
	w := newWireEnd(t, opt)
	return w, w.listen(TLS)
}

// dialTLS is a peer over TLS that believes everything.
func dialTLS(t *testing.T, to netip.AddrPort, cfg *tls.Config) *peer {
	t.Helper()
	p := dialPeer(t, "tcp", to)
	c := cfg.Clone()
	c.InsecureSkipVerify = true
	tc := tls.Client(p.Conn, c)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	p.Conn = tc
	return p
}

func TestTLSServer(t *testing.T) {
	ca := siptest.NewCA(t)
	cert := ca.Issue(t, siptest.Leaf{URIs: []string{"sip:example.com"}})
	w, to := secureEnd(t, EndpointOptions{ServerTLS: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS10}})
	t.Run("messages both ways, keep-alives", func(t *testing.T) {
		p := dialTLS(t, to, new(tls.Config))
		body := framed(40000, nil)
		p.write("\r\n\r\n" + body[:100])
		p.write(body[100:] + framed(0, nil) + framed(0, nil))
		for range 3 {
			m := w.receive()
			if m.Flow.Proto != TLS || m.Flow.Conn == 0 || m.Flow.Local != to || m.Flow.Remote != p.addr() || m.Names != nil {
				t.Errorf("%+v %v", m.Flow, m.Names)
			}
			respond(t, w, m, 200)
		}
		b := make([]byte, 2)
		if _, err := p.Read(b); err != nil || string(b) != "\r\n" {
			t.Errorf("OB-01: %q, %v", b, err)
		}
		for range 3 {
			p.message()
		}
		p.Close()
		w.log("connection closed")
		if n := w.Stats().Closed[ClosedPeer].Load(); n != 1 {
			t.Errorf("%d closed by the peer", n)
		}
	})
	for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(v), func(t *testing.T) {
			c, err := tls.Dial("tcp", to.String(), &tls.Config{MinVersion: v, MaxVersion: v, InsecureSkipVerify: true})
			if want := v >= tls.VersionTLS12; (err == nil) != want {
				t.Errorf("accepted: %v, want %v", err, want)
			}
			if err == nil {
				c.Close()
			}
		})
	}
	t.Run("what is no TLS", func(t *testing.T) {
		before := w.Stats().TLSHandshakeErrors.Load()
		p := dialPeer(t, "tcp", to)
		p.write(framed(0, nil))
		p.closed()
		w.log("TLS handshake failed remote=" + p.addr().String())
		if n := w.Stats().TLSHandshakeErrors.Load(); n != before+1 {
			t.Errorf("%d counted", n-before)
		}
		w.none()
	})
	t.Run("a refusal arrives before the close", func(t *testing.T) {
		p := dialTLS(t, to, new(tls.Config))
		p.write(request(nil))
		if m := p.message(); m.Status() != 400 {
			t.Errorf("%s", m.Raw)
		}
		if rest := p.closed(); rest != "" {
			t.Errorf("then %q", rest)
		}
	})
	t.Run("new certificate for new connections", func(t *testing.T) {
		p := dialTLS(t, to, new(tls.Config))
		w.SetTLS(serverConfig(ca.Issue(t, siptest.Leaf{CommonName: "new.example"})), nil)
		q := dialTLS(t, to, new(tls.Config))
		if cn := q.Conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName; cn != "new.example" {
			t.Errorf("certificate of %q", cn)
		}
		p.write(framed(0, nil))
		w.receive()
	})
	if _, err := newWireEnd(t, EndpointOptions{}).Listen(TLS, "127.0.0.1:0"); err == nil {
		t.Error("listens without a certificate")
	}
}

// A peer that connects and does not go on is closed.
func TestTLSHandshakeTimeout(t *testing.T) {
	cert := siptest.NewCA(t).Issue(t, siptest.Leaf{CommonName: "example.com"})
	w, to := secureEnd(t, EndpointOptions{ServerTLS: serverConfig(cert), HandshakeTimeout: 20 * time.Millisecond})
	dialPeer(t, "tcp", to).closed()
	w.log("connection closed")
	if w.Stats().TLSHandshakeErrors.Load() != 1 || w.Stats().Closed[ClosedSlow].Load() != 1 {
		t.Error("not counted")
	}
}

// TL-01: a server's certificate names the domain that the URI had, or the
// connection is closed before a message goes out.
func TestTLSClient(t *testing.T) {
	ca, other := siptest.NewCA(t), siptest.NewCA(t)
	for _, c := range []struct {
		name   string
		leaf   siptest.Leaf
		by     *siptest.CA
		domain string
		good   bool
	}{
		{"URI", siptest.Leaf{URIs: []string{"sip:example.com"}}, ca, "example.com", true},
		{"case and final dot", siptest.Leaf{URIs: []string{"sip:example.com"}}, ca, "EXAMPLE.com.", true},
		{"DNS", siptest.Leaf{DNS: []string{"example.com"}}, ca, "example.com", true},
		{"CN", siptest.Leaf{CommonName: "example.com"}, ca, "example.com", true},
		{"CN beside a DNS name", siptest.Leaf{CommonName: "example.com", DNS: []string{"example.org"}}, ca, "example.com", false},
		{"DNS name beside a sip URI", siptest.Leaf{DNS: []string{"example.com"}, URIs: []string{"sip:example.org"}}, ca, "example.com", false},
		{"another name", siptest.Leaf{URIs: []string{"sip:example.org"}}, ca, "example.com", false},
		{"suffix", siptest.Leaf{DNS: []string{"example.com"}}, ca, "sip.example.com", false},
		{"wildcard", siptest.Leaf{DNS: []string{"*.example.com"}}, ca, "sip.example.com", false},
		{"nobody's certificate", siptest.Leaf{}, ca, "example.com", false},
		{"address", siptest.Leaf{IPs: []string{"127.0.0.1"}}, ca, "", true},
		{"address in a URI", siptest.Leaf{URIs: []string{"sip:127.0.0.1"}}, ca, "", true},
		{"name instead of the address", siptest.Leaf{DNS: []string{"example.com"}}, ca, "", false},
		{"another address", siptest.Leaf{IPs: []string{"127.0.0.2"}}, ca, "", false},
		{"unknown authority", siptest.Leaf{URIs: []string{"sip:example.com"}}, other, "example.com", false},
		{"expired", siptest.Leaf{URIs: []string{"sip:example.com"}, NotAfter: time.Now().Add(-time.Hour)}, ca, "example.com", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			sni := make(chan string, 1)
			cert := c.by.Issue(t, c.leaf)
			srv, to := secureEnd(t, EndpointOptions{ServerTLS: &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
				sni <- h.ServerName
				return &cert, nil
			}}})
			w := newWireEnd(t, EndpointOptions{ClientTLS: &tls.Config{RootCAs: ca.Pool(), InsecureSkipVerify: true}})
			flow := Flow{Proto: TLS, Remote: to, Domain: c.domain}
			if !c.good {
				undelivered(t, w, flow, 7)
			} else if err := w.Send(flow, []byte(framed(0, nil)), 7); err != nil {
				t.Fatal(err)
			}
			if got, want := wait(t, sni, "handshake"), strings.TrimSuffix(strings.ToLower(c.domain), "."); got != want {
				t.Errorf("SNI %q, want %q", got, want)
			}
			if !c.good {
				for w.Conns() > 0 {
					w.log("connection closed")
				}
				if w.Stats().TLSHandshakeErrors.Load() != 1 || w.Conns() != 0 {
					t.Errorf("%d errors, %d connections", w.Stats().TLSHandshakeErrors.Load(), w.Conns())
				}
				srv.none()
				return
			}
			m := srv.receive()
			respond(t, srv, m, 200)
			if r := w.receive(); r.Flow.Remote != to || !slices.Equal(r.Names, CertificateNames(cert.Leaf)) {
				t.Errorf("%+v %v", r.Flow, r.Names)
			}
		})
	}
}

func TestTLSVersionClient(t *testing.T) {
	ca := siptest.NewCA(t)
	cert := ca.Issue(t, siptest.Leaf{CommonName: "example.com"})
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	w := newWireEnd(t, EndpointOptions{ClientTLS: &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS10}})
	undelivered(t, w, Flow{Proto: TLS, Remote: netip.MustParseAddrPort(l.Addr().String()), Domain: "example.com"}, 3)
}

// undelivered sends what cannot arrive: that is an error or a report.
func undelivered(t *testing.T, w *wireEnd, f Flow, token ClientID) {
	t.Helper()
	if w.Send(f, []byte(framed(0, nil)), uint64(token)) != nil {
		return
	}
	if id := wait(t, w.failed, "report"); id != token {
		t.Errorf("reported %d, want %d", id, token)
	}
}

// Connections are used again for the domain they were verified for, and for no
// other at the same address.
func TestTLSReuse(t *testing.T) {
	ca := siptest.NewCA(t)
	a, b := ca.Issue(t, siptest.Leaf{DNS: []string{"a.example"}}), ca.Issue(t, siptest.Leaf{DNS: []string{"b.example"}})
	srv, to := secureEnd(t, EndpointOptions{ServerTLS: &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if h.ServerName == "b.example" {
			return &b, nil
		}
		return &a, nil
	}}})
	w := newWireEnd(t, EndpointOptions{ClientTLS: &tls.Config{RootCAs: ca.Pool()}})
	conns := make(map[string]uint32)
	for _, domain := range []string{"a.example", "b.example", "A.example", "b.example", "a.example"} {
		if err := w.Send(Flow{Proto: TLS, Remote: to, Domain: domain}, []byte(framed(0, nil)), 0); err != nil {
			t.Fatal(err)
		}
		m := srv.receive()
		key := strings.ToLower(domain)
		if old := conns[key]; old != 0 && old != m.Flow.Conn {
			t.Errorf("a second connection for %s", domain)
		}
		conns[key] = m.Flow.Conn
	}
	if len(conns) != 2 || conns["a.example"] == conns["b.example"] {
		t.Errorf("%v", conns)
	}
}

// The identities of a client's verified certificate are on its messages.
func TestTLSClientCertificate(t *testing.T) {
	ca, other := siptest.NewCA(t), siptest.NewCA(t)
	cert := ca.Issue(t, siptest.Leaf{DNS: []string{"example.com"}})
	known := ca.Issue(t, siptest.Leaf{URIs: []string{"sip:a.example", "sip:b.example"}})
	for _, c := range []struct {
		name   string
		auth   tls.ClientAuthType
		shown  []tls.Certificate
		refuse bool
		want   []string
	}{
		{"none: not asked for", tls.NoClientCert, []tls.Certificate{known}, false, nil},
		{"optional: verified", tls.VerifyClientCertIfGiven, []tls.Certificate{known}, false, []string{"a.example", "b.example"}},
		{"optional: without", tls.VerifyClientCertIfGiven, nil, false, nil},
		{"optional: unknown authority", tls.VerifyClientCertIfGiven, []tls.Certificate{other.Issue(t, siptest.Leaf{DNS: []string{"a.example"}})}, true, nil},
		{"optional: expired", tls.VerifyClientCertIfGiven, []tls.Certificate{ca.Issue(t, siptest.Leaf{NotAfter: time.Now().Add(-time.Hour)})}, true, nil},
		{"require: verified", tls.RequireAndVerifyClientCert, []tls.Certificate{known}, false, []string{"a.example", "b.example"}},
		{"require: without", tls.RequireAndVerifyClientCert, nil, true, nil},
		{"asked for but not verified", tls.RequireAnyClientCert, []tls.Certificate{known}, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, to := secureEnd(t, EndpointOptions{ServerTLS: &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: c.auth, ClientCAs: ca.Pool()}})
			p := dialTLS(t, to, &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if len(c.shown) == 0 {
					return new(tls.Certificate), nil
				}
				return &c.shown[0], nil
			}})
			p.Write([]byte(framed(0, nil) + framed(0, nil)))
			if c.refuse {
				w.log("TLS handshake failed")
				p.closed()
				w.none()
				return
			}
			for range 2 {
				m := w.receive()
				if !slices.Equal(m.Names, c.want) {
					t.Errorf("%v, want %v", m.Names, c.want)
				}
				m.Release()
			}
		})
	}
}

// A flow never leads to anybody but the peer it was made for.
func TestFlowMismatch(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{})
	to := w.listen(TCP)
	connect := func() (*peer, Flow) {
		p := dialPeer(t, "tcp", to)
		p.write(framed(0, nil))
		return p, w.receive().Flow
	}
	a, first := connect()
	w.mu.Lock()
	w.nextConn = first.Conn - 2 // numbers come round: 0 and those in use are left out
	w.mu.Unlock()
	_, second := connect()
	if second.Conn == 0 || second.Conn == first.Conn {
		t.Fatalf("number %d is given twice", second.Conn)
	}
	a.Close()
	w.log("connection closed")
	w.mu.Lock()
	w.nextConn = first.Conn - 1
	w.mu.Unlock()
	b, third := connect()
	if third.Conn != first.Conn {
		t.Fatalf("number %d, want %d again", third.Conn, first.Conn)
	}
	for name, f := range map[string]Flow{
		"number used again": first, "another transport": {Proto: TLS, Local: third.Local, Remote: third.Remote, Conn: third.Conn},
		"unknown number": {Proto: TCP, Local: third.Local, Remote: third.Remote, Conn: 999},
	} {
		if err := w.Send(f, []byte(framed(0, nil)), 1); !errors.Is(err, ErrFlowGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Without a number the connection it accepted is not one to the peer.
	undelivered(t, w, Flow{Proto: TCP, Remote: third.Remote}, 5)
	respond(t, w, parseWith(t, third), 200)
	if m := b.message(); m.Status() != 200 {
		t.Errorf("%s", m.Raw)
	}
}

func parseWith(t *testing.T, f Flow) *Message {
	m := parseText(t, framed(0, nil), true)
	m.Flow = f
	return m
}

// StreamFlow: RFC 3261 section 18.1.1.
func TestStreamFlow(t *testing.T) {
	w := newWireEnd(t, EndpointOptions{})
	udp := w.listen(UDP)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	remote := netip.MustParseAddrPort(l.Addr().String())
	if f, ok := w.StreamFlow(Flow{Local: udp, Remote: remote}); ok {
		t.Errorf("without a TCP listener: %+v", f)
	}
	tcp := w.listen(TCP)
	if _, ok := w.StreamFlow(Flow{Proto: TCP, Local: tcp, Remote: remote}); ok {
		t.Error("for a flow that is a stream")
	}
	if f, ok := w.StreamFlow(Flow{Local: udp, Remote: netip.MustParseAddrPort("[2001:db8::1]:5060")}); ok {
		t.Errorf("to another family: %+v", f)
	}
	f, ok := w.StreamFlow(Flow{Local: udp, Remote: remote})
	if !ok || f.Proto != TCP || f.Local != tcp || f.Remote != remote || f.Conn != 0 {
		t.Fatalf("%+v, %v", f, ok)
	}
	if same, err := w.Listen(TCP, udp.String()); err == nil { // else somebody has that port
		if f, ok := w.StreamFlow(Flow{Local: udp, Remote: remote}); !ok || f.Local != same {
			t.Errorf("%+v: not from the listener of the same address", f)
		}
	}
	if err := w.Send(f, []byte(framed(70000, nil)), 1); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	if m := (&peer{Conn: c, t: t}).message(); len(m.Body()) != 70000 {
		t.Errorf("body of %d", len(m.Body()))
	}
	l.Close()
	c.Close()
	w.log("connection closed")
	undelivered(t, w, f, 2)
	if f, ok := w.StreamFlow(Flow{Local: udp, Remote: remote}); ok {
		t.Errorf("refused, and tried again: %+v", f)
	}
	if _, ok := w.StreamFlow(Flow{Local: udp, Remote: netip.AddrPortFrom(remote.Addr(), 1)}); !ok {
		t.Error("another port is refused too")
	}
}

func TestRefusals(t *testing.T) {
	var r refusals
	at := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 5060)
	}
	now := wheelStart
	r.note(at(0), false, now)
	if r.recent(at(0), now) || len(r.at) != 0 {
		t.Error("an address that never refused is kept")
	}
	for i := range maxRefusals {
		r.note(at(i), true, now)
	}
	r.note(at(1), true, now.Add(time.Minute))
	r.note(at(2), false, now)
	if !r.recent(at(0), now.Add(refusalLife-1)) || r.recent(at(0), now.Add(refusalLife)) || !r.recent(at(1), now.Add(refusalLife)) || r.recent(at(2), now) {
		t.Error("ten minutes")
	}
	r.note(at(maxRefusals), true, now)
	if r.recent(at(0), now) || !r.recent(at(maxRefusals), now) || len(r.at) != maxRefusals {
		t.Errorf("the oldest stays, %d kept", len(r.at))
	}
}
