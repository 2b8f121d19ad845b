package dialog

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"rollcall/sip"
	"rollcall/sip/auth"
	"rollcall/sip/body"
)

// streams is a network where some addresses take TCP. It stands before the
// datagram network and remembers refusals, as an Endpoint does.
type streams struct {
	mu      sync.Mutex
	next    sip.Sender
	takes   map[netip.AddrPort]bool
	refused map[netip.AddrPort]bool
	rt      func() *rig
	sent    []*sip.Message
	dials   int
}

func (s *streams) flow(f sip.Flow) (sip.Flow, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.Proto = sip.TCP
	return f, !s.refused[f.Remote]
}

func (s *streams) Send(f sip.Flow, b []byte, token uint64) error {
	if f.Proto == sip.UDP {
		return s.next.Send(f, b, token)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dials++
	if !s.takes[f.Remote] {
		s.refused[f.Remote] = true
		s.rt().Failed(sip.ClientID(token), errors.New("connection refused"))
		return errLater
	}
	m := new(sip.Message)
	if err := m.Parse(append([]byte(nil), b...), true); err != nil {
		return err
	}
	m.Flow = f
	s.sent = append(s.sent, m)
	return nil
}

func (s *streams) take() *sip.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sent) == 0 {
		return nil
	}
	m := s.sent[0]
	s.sent = s.sent[1:]
	return m
}

// withStreams makes a rig on such a network.
func withStreams(t *testing.T, change func(*Options)) (*rig, *sip.MemNet, *streams) {
	net := newNet(t)
	s := &streams{takes: map[netip.AddrPort]bool{}, refused: map[netip.AddrPort]bool{}}
	var r *rig
	s.rt = func() *rig { return r }
	r = newRig(t, net, serverAddr, func(o *Options) {
		o.StreamFlow = s.flow
		if change != nil {
			change(o)
		}
	})
	s.next, r.wire.next = r.wire.next, s
	return r, net, s
}

// CORE-18: a request over 1,300 bytes goes over TCP where the next hop takes
// it, its Via says so, and over UDP where TCP is refused; with one attempt.
func TestLargeNotify(t *testing.T) {
	big := strings.Repeat("x", 1400)
	for _, c := range []struct {
		name    string
		takes   bool
		headers []string
		tcp     bool
		tried   bool
	}{
		{name: "the Contact takes TCP", takes: true, tcp: true, tried: true},
		{name: "TCP is refused", tried: true},
		{name: "behind NAT there is no other way than back", takes: true, headers: []string{"Contact: <sip:phone@10.0.0.5:5060>"}},
		{name: "another port than it sent from", takes: true, headers: []string{"Contact: <sip:phone@192.0.2.1:5099>"}},
		{
			name: "a proxy that takes TCP", takes: true, tcp: true, tried: true,
			headers: []string{"Record-Route: <sip:192.0.2.1:5070;lr>", "Via: SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bKp, SIP/2.0/UDP 10.0.0.5;branch=z9hG4bKx"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, net, s := withStreams(t, nil)
				s.takes[phoneAddr] = c.takes
				p := newPhone(t, net, phoneAddr)
				call := p.call(bob, alice)
				call.subscribe(200, c.headers...)
				settle()
				first := call.wantNotify("active;expires=3600", "first")
				for n := range uint32(2) {
					r.set(alice, active(big+string(rune('a'+n))))
					time.Sleep(2 * time.Second)
					settle()
					var m *sip.Message
					if c.tcp {
						m = s.take()
					} else {
						m = call.notified()
					}
					if m == nil {
						t.Fatalf("no NOTIFY %d; %d attempts over TCP", n, s.dials)
					}
					want := "UDP"
					if c.tcp {
						want = "TCP"
						resp := new(sip.Message)
						if err := resp.Parse(sip.AppendBody(sip.AppendResponse(nil, m, 200, "", ""), "", nil), true); err != nil {
							t.Fatal(err)
						}
						resp.Flow = m.Flow
						r.Receive(resp)
						settle()
					}
					if string(m.Via().Transport) != want || m.CSeq() != first.CSeq()+1+n || len(m.Body()) != len(big)+1 {
						t.Errorf("Via %s, CSeq %d after %d, body of %d", m.Via().Transport, m.CSeq(), first.CSeq(), len(m.Body()))
					}
				}
				if c.tried && !c.tcp && s.dials != 1 || !c.tried && s.dials != 0 {
					t.Errorf("%d attempts over TCP", s.dials)
				}
				r.set(alice, active("small again"))
				time.Sleep(2 * time.Second)
				settle()
				if m := call.notified(); m == nil || string(m.Body()) != "small again" {
					t.Error("CORE-18: a small one does not go over UDP")
				}
			})
		})
	}
}

// DNS-02: after 503, a transport error or timer F the next target of a name is
// tried, in a new transaction.
func TestNextTarget(t *testing.T) {
	first, second := netip.MustParseAddrPort("192.0.2.61:5060"), netip.MustParseAddrPort("192.0.2.62:5060")
	targets := func(down *[]netip.AddrPort) func(*Options) {
		return func(o *Options) {
			o.Resolve = func(context.Context, string) ([]sip.Flow, error) {
				return []sip.Flow{{Local: serverAddr, Remote: first}, {Local: serverAddr, Remote: second}}, nil
			}
			var mu sync.Mutex
			o.Unreachable = func(f sip.Flow) {
				mu.Lock()
				defer mu.Unlock()
				*down = append(*down, f.Remote)
			}
		}
	}
	for name, fail := range map[string]struct {
		status int // of the first target; 0: silence
		err    error
		after  time.Duration
	}{
		"503":               {status: 503},
		"timer F":           {after: 33 * time.Second},
		"a transport error": {err: errors.New("no route to host")},
	} {
		broken := func(f sip.Flow, m *sip.Message) error {
			if f.Remote == first && m.IsRequest() {
				return fail.err
			}
			return nil
		}
		t.Run("SUBSCRIBE "+name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				net := newNet(t)
				var down []netip.AddrPort
				r := newRig(t, net, serverAddr, targets(&down))
				r.wire.fail = broken
				a := newPhone(t, net, first)
				a.notify = func(*sip.Message) int { return fail.status }
				e := &elsewhere{phone: newPhone(t, net, second), tag: "far"}
				e.phone.notify = func(*sip.Message) int { return 0 }
				r.open(func(p *SubscribeTo) { p.URI = "sip:carol@far.example.org" })
				time.Sleep(fail.after)
				settle()
				m := e.subscribed("600")
				if old := a.take(func(m *sip.Message) bool { return m.IsRequest() }); old != nil {
					if string(old.Via().Branch) == string(m.Via().Branch) || string(old.CallID()) != string(m.CallID()) || string(old.From().Tag()) != string(m.From().Tag()) {
						t.Errorf("not the same request in a new transaction:\n%s\n%s", old.Raw, m.Raw)
					}
				}
				e.accept(600)
				if len(down) != 1 || down[0] != first {
					t.Errorf("reported as unreachable: %v", down)
				}
				r.wantHeard()
			})
		})
		t.Run("NOTIFY "+name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				net := newNet(t)
				var down []netip.AddrPort
				r := newRig(t, net, serverAddr, targets(&down))
				r.wire.fail = broken
				a, b := newPhone(t, net, first), newPhone(t, net, second)
				a.notify = func(*sip.Message) int { return fail.status }
				p := newPhone(t, net, proxyAddr)
				call := p.call(bob, alice)
				p.send(call.text("Record-Route: <sip:edge.example.org;lr>"))
				time.Sleep(fail.after)
				settle()
				m := b.take(func(m *sip.Message) bool { return m.IsRequest() })
				if m == nil || string(m.Body()) != "first" || header(m, sip.HdrRoute) != "<sip:edge.example.org;lr>" {
					t.Fatalf("at the second target: %v", m)
				}
				time.Sleep(time.Minute)
				r.set(alice, active("second"))
				time.Sleep(time.Second)
				settle()
				if m = b.take(func(m *sip.Message) bool { return m.IsRequest() }); m == nil || string(m.Body()) != "second" {
					t.Errorf("the target that works is not kept: %v", m)
				}
			})
		})
	}
}

// plainLogin answers every challenge with one field, if it is told to.
type plainLogin struct {
	mu    sync.Mutex
	know  bool
	hops  []string
	asked int
}

func (l *plainLogin) Challenged(domain string, _ *sip.Message, _ *auth.Attempt) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	l.hops = append(l.hops, domain)
	return l.know && l.asked < 4
}

func (l *plainLogin) Append(b []byte, _, method, uri string, _ []byte, _ *auth.Attempt) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked == 0 {
		return b
	}
	return sip.AppendHeader(b, "Authorization", "Digest "+method+" "+uri)
}

// CORE-22: a challenged request goes again with credentials, the same Call-ID
// and From tag and a higher CSeq; as long as the login says so.
func TestChallenged(t *testing.T) {
	for _, status := range []int{401, 407} {
		bubble(t, func(t *testing.T) {
			l := &plainLogin{know: true}
			r, e := remoteRig(t, func(o *Options) { o.Login = l })
			r.open(nil)
			m := e.subscribed("600")
			e.answer(status)
			again := e.subscribed("600")
			if header(again, sip.HdrAuthorization) != "Digest SUBSCRIBE "+carol || again.CSeq() != m.CSeq()+1 ||
				string(again.CallID()) != string(m.CallID()) || string(again.From().Tag()) != string(m.From().Tag()) || len(again.To().Tag()) != 0 {
				t.Errorf("CORE-22:\n%s\n%s", m.Raw, again.Raw)
			}
			e.accept(600)
			e.notify(200, "active;expires=600", "one")
			for range 2 {
				time.Sleep(480*time.Second + 10*time.Millisecond)
				settle()
				e.subscribed("600")
				e.answer(status)
				e.subscribed("600")
				e.accept(600)
				e.notify(200, "active;expires=600", "one")
			}
			time.Sleep(480*time.Second + 10*time.Millisecond)
			settle()
			e.subscribed("600")
			e.answer(status) // the login gives up now
			e.quiet()
			if l.hops[0] != "192.0.2.50" {
				t.Errorf("hop %q", l.hops[0])
			}
		})
	}
	bubble(t, func(t *testing.T) {
		r, e := remoteRig(t, func(o *Options) { o.Login = &plainLogin{} })
		r.open(nil)
		e.subscribed("600")
		e.answer(401)
		e.quiet()
		r.wantHeard("ended 401")
	})
	bubble(t, func(t *testing.T) {
		l := &plainLogin{know: true}
		r, p := phoneRig(t, func(o *Options) { o.Login = l })
		p.notify = func(m *sip.Message) int {
			if !m.Has(sip.HdrAuthorization) {
				return 407
			}
			return 200
		}
		c := p.call(bob, alice)
		c.subscribe(200)
		a, b := c.notified(), c.notified()
		if a == nil || b == nil || b.CSeq() != a.CSeq()+1 || header(b, sip.HdrAuthorization) != "Digest NOTIFY sip:phone@"+phoneAddr.String() {
			t.Fatalf("NOTIFY: %v %v", a, b)
		}
		r.set(alice, active("second"))
		time.Sleep(time.Second)
		if n := c.wantNotify("active;expires=3600", "second"); header(n, sip.HdrAuthorization) == "" {
			t.Error("challenged again for nothing")
		}
	})
}

// An identity that must be looked up first lets the request wait, and other
// requests pass.
func TestIdentityLater(t *testing.T) {
	for name, c := range map[string]struct {
		fails  bool
		status int
	}{"found": {status: 200}, "not readable": {fails: true, status: 503}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var mu sync.Mutex
				known, asked := false, 0
				r, p := phoneRig(t, func(o *Options) {
					plain := o.Identify
					o.Identify = func(m *sip.Message, now time.Time) (Identity, func(context.Context), *Error) {
						mu.Lock()
						defer mu.Unlock()
						if string(m.From().URI) != bob || known {
							return plain(m, now)
						}
						return Identity{}, func(context.Context) {
							time.Sleep(2 * time.Second)
							mu.Lock()
							defer mu.Unlock()
							asked++
							known = !c.fails
						}, nil
					}
				})
				slow, quick := p.call(bob, alice), p.call("sip:dan@example.org", alice)
				text := slow.text()
				p.send(text)
				p.send(text)
				quick.subscribe(200)
				if m := slow.answer(); m != nil {
					t.Fatalf("early\n%s", m.Raw)
				}
				time.Sleep(2 * time.Second)
				settle()
				if m := slow.answer(); m == nil || m.Status() != c.status {
					t.Fatalf("%v", m)
				}
				if asked != 1 {
					t.Errorf("looked up %d times", asked)
				}
				if c.status == 200 {
					slow.wantNotify("active;expires=3600", "first")
				}
				_ = r
			})
		})
	}
}

// CORE-03: the same request that arrives by another way is refused with 482 and
// opens no second dialog; one that was refused may come again.
func TestMergedRequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		c := p.call(bob, alice)
		text := c.text()
		p.send(text)
		p.send(strings.Replace(text, ";branch=z9hG4bK", ";branch=z9hG4bKother", 1))
		if m := c.answer(); m == nil || m.Status() != 200 {
			t.Fatalf("%v", m)
		}
		if m := c.answer(); m == nil || m.Status() != 482 {
			t.Fatalf("CORE-03: %v", m)
		}
		c.wantNotify("active;expires=3600", "first")
		c.wantSilence()
		if n := r.Stats().Subscriptions.Load(); n != 1 {
			t.Errorf("%d subscriptions", n)
		}
		bad := p.call(bob, alice)
		text = bad.text("Event: nonsense")
		p.send(text)
		p.send(strings.Replace(text, ";branch=z9hG4bK", ";branch=z9hG4bKother", 1))
		for range 2 {
			if m := bad.answer(); m == nil || m.Status() != 489 {
				t.Fatalf("%v", m)
			}
		}
		time.Sleep(40 * time.Second) // timer J is over
		p.send(strings.Replace(c.text("CSeq: 1 SUBSCRIBE", "To: <"+alice+">"), ";branch=z9hG4bK", ";branch=z9hG4bKlate", 1))
		c.cseq = 1
		if m := c.answer(); m == nil || m.Status() != 200 {
			t.Errorf("later: %v", m)
		}
	})
}

// A body is compressed for a watcher whose newest SUBSCRIBE says so (RFC 3261 section 20.2).
func TestNotifyEncoding(t *testing.T) {
	big := strings.Repeat("<tuple/>", 200)
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		for _, c := range []struct{ accept, want string }{
			{"Accept-Encoding: deflate", "deflate"}, {"Accept-Encoding: gzip;q=1, deflate;q=0.5", "gzip"},
			{"Accept-Encoding: identity", ""}, {"Accept-Encoding:", ""}, {"X: y", ""}, {"Accept-Encoding: br", ""},
		} {
			call := p.call(bob, alice)
			call.subscribe(200, c.accept)
			if n := call.notified(); n == nil || n.Has(sip.HdrContentEncoding) {
				t.Fatalf("%s: a small body: %v", c.accept, n)
			}
			time.Sleep(2 * time.Second)
			r.set(alice, active(big))
			settle()
			n := call.notified()
			if n == nil || header(n, sip.HdrContentEncoding) != c.want {
				t.Fatalf("%s: %v", c.accept, n)
			}
			text, err := body.Decode(header(n, sip.HdrContentEncoding), n.Body(), 1<<20)
			if err != nil || string(text) != big || c.want != "" && len(n.Body()) > len(big)/4 {
				t.Errorf("%s: %d bytes became %d, %v", c.accept, len(n.Body()), len(text), err)
			}
			call.subscribe(200, "Accept-Encoding: identity")
			if n := call.notified(); n == nil || n.Has(sip.HdrContentEncoding) {
				t.Errorf("after a SUBSCRIBE without it: %v", n)
			}
			call.subscribe(200, "Expires: 0")
			call.notified()
			r.set(alice, active("first"))
		}
	})
}
