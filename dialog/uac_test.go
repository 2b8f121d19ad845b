package dialog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"rollcall/sip"
	"rollcall/sip/body"
)

// carol is a resource elsewhere; her server is a phone at remoteAddr.
const carol = "sip:carol@192.0.2.50"

var remoteAddr = netip.MustParseAddrPort("192.0.2.50:5060")

// elsewhere is a notifier played by the test.
type elsewhere struct {
	*phone
	sub  *sip.Message // the newest SUBSCRIBE
	tag  string
	cseq int
}

// remoteRig is a runtime that subscribes and the other server.
func remoteRig(t *testing.T, change func(*Options)) (*rig, *elsewhere) {
	net := newNet(t)
	r := newRig(t, net, serverAddr, change)
	e := &elsewhere{phone: newPhone(t, net, remoteAddr), tag: "far"}
	e.phone.notify = func(*sip.Message) int { return 0 }
	return r, e
}

// open subscribes for user 1 and gives the subscription's number.
func (r *rig) open(change func(*SubscribeTo)) (id uint64) {
	p := SubscribeTo{User: 1, URI: carol, From: bob, Event: "presence", Accept: pidfType + ", application/xml", Expires: 10 * time.Minute}
	if change != nil {
		change(&p)
	}
	r.Do(alice, func(t *Turn) { id = t.Subscribe(p) })
	settle()
	return id
}

func (r *rig) remote(id uint64) (in RemoteInfo, ok bool) {
	r.Do(alice, func(t *Turn) { in, ok = t.Remote(id) })
	return in, ok
}

func (r *rig) unsubscribe(id uint64) {
	r.Do(alice, func(t *Turn) { t.Unsubscribe(id) })
	settle()
}

// wantHeard checks what user 1 was told since last asked.
func (r *rig) wantHeard(want ...string) {
	r.t.Helper()
	r.src.mu.Lock()
	defer r.src.mu.Unlock()
	if got := r.src.heard[1]; !slices.Equal(got, want) {
		r.t.Fatalf("heard %q, want %q", got, want)
	}
	delete(r.src.heard, 1)
}

// subscribed takes the next SUBSCRIBE and checks its Expires.
func (e *elsewhere) subscribed(expires string) *sip.Message {
	e.t.Helper()
	m := e.take(func(m *sip.Message) bool { return m.Method() == sip.SUBSCRIBE && m.IsRequest() })
	if m == nil {
		e.t.Fatalf("no SUBSCRIBE, want one with Expires %s", expires)
	}
	wantHeader(e.t, m, sip.HdrExpires, expires)
	e.sub = m
	return m
}

func (e *elsewhere) quiet() {
	e.t.Helper()
	if m := e.take(func(m *sip.Message) bool { return m.IsRequest() }); m != nil {
		e.t.Fatalf("unexpected\n%s", m.Raw)
	}
}

// answer responds to the newest SUBSCRIBE.
func (e *elsewhere) answer(status int, headers ...string) {
	b := sip.AppendResponse(nil, e.sub, status, "", e.tag)
	for _, h := range headers {
		b = append(b, h+"\r\n"...)
	}
	e.host.Send(sip.Flow{Remote: e.sub.Flow.Remote}, sip.AppendBody(b, "", nil), 0)
	settle()
}

func (e *elsewhere) accept(expires int) {
	e.answer(200, fmt.Sprint("Expires: ", expires), "Contact: <sip:192.0.2.50:5060>")
}

// notifyText is the next NOTIFY of the dialog.
func (e *elsewhere) notifyText(state, body string, headers ...string) string {
	e.cseq++
	e.branch++
	defaults := []string{
		fmt.Sprintf("Via: SIP/2.0/UDP %s;rport;branch=z9hG4bKn%d", e.addr, e.branch), "Max-Forwards: 70",
		fmt.Sprintf("From: <%s>;tag=%s", carol, e.tag), fmt.Sprintf("To: <%s>;tag=%s", bob, e.sub.From().Tag()), "Call-ID: " + string(e.sub.CallID()),
		fmt.Sprintf("CSeq: %d NOTIFY", e.cseq), "Contact: <sip:192.0.2.50:5060>", "Event: presence", "Subscription-State: " + state,
	}
	if body != "" {
		defaults = append(defaults, "Content-Type: "+pidfType)
	}
	contact, _ := sip.ParseNameAddr(e.sub.Header(sip.HdrContact))
	return e.text("NOTIFY "+string(contact.URI)+" SIP/2.0", defaults, append(slices.Clone(headers), "body:"+body)...)
}

// notify sends one and wants an answer.
func (e *elsewhere) notify(status int, state, body string, headers ...string) *sip.Message {
	e.t.Helper()
	e.send(e.notifyText(state, body, headers...))
	m := e.take(func(m *sip.Message) bool { return !m.IsRequest() && m.Method() == sip.NOTIFY })
	if m == nil || m.Status() != status {
		e.t.Fatalf("answered %v, want %d", m, status)
	}
	return m
}

// live brings a subscription into its live phase.
func (e *elsewhere) live(r *rig) uint64 {
	e.t.Helper()
	id := r.open(nil)
	e.subscribed("600")
	e.accept(600)
	e.notify(200, "active;expires=600", "one")
	r.wantHeard("active one")
	return id
}

func TestRemoteSubscribe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, e := remoteRig(t, nil)
		id := r.open(nil)
		m := e.subscribed("600")
		if string(m.RequestURI()) != carol || string(m.To().URI) != carol || m.To().Tag() != nil || string(m.From().URI) != bob || len(m.From().Tag()) != tagSize {
			t.Errorf("CORE-09:\n%s", m.Raw)
		}
		for h, want := range map[sip.HeaderID]string{
			sip.HdrEvent: "presence", sip.HdrAccept: pidfType + ", application/xml",
			sip.HdrContact: "<sip:192.0.2.9:5060>", sip.HdrMaxForwards: "70", sip.HdrCSeq: "1 SUBSCRIBE", sip.HdrAllow: allow,
		} {
			wantHeader(t, m, h, want)
		}
		e.accept(500)
		r.wantHeard()
		e.notify(200, "pending;expires=500", "")
		e.notify(200, "active", "one")
		e.notify(200, "ACTIVE ; expires=400", "two", "Content-Type: Application/PIDF+xml;charset=utf-8")
		e.notify(200, "waiting", "") // an extension: as pending
		r.wantHeard("pending", "active one", "active two", "pending")
		if in, ok := r.remote(id); !ok || in.Phase != "live" || in.URI != carol || in.CSeq != 1 || in.CallID != string(m.CallID()) {
			t.Errorf("%+v", in)
		}
		step(t, "refresh at four fifths of the 400 s", func(t *testing.T) {
			time.Sleep(319 * time.Second)
			settle()
			e.quiet()
			time.Sleep(time.Second + 10*time.Millisecond)
			settle()
			m2 := e.subscribed("600")
			if m2.CSeq() != 2 || string(m2.To().Tag()) != "far" || string(m2.RequestURI()) != "sip:192.0.2.50:5060" || !bytes.Equal(m2.CallID(), m.CallID()) ||
				!bytes.Equal(m2.From().Tag(), m.From().Tag()) {
				t.Errorf("CORE-11, CORE-12:\n%s", m2.Raw)
			}
			e.accept(600)
			e.notify(200, "active;expires=600", "three")
			r.wantHeard("active three")
		})
		step(t, "unsubscribe", func(t *testing.T) {
			r.unsubscribe(id)
			if m := e.subscribed("0"); m.CSeq() != 3 {
				t.Errorf("CSeq %d", m.CSeq())
			}
			e.accept(0)
			e.notify(200, "terminated;reason=timeout", "last")
			r.wantHeard() // the user is not called any more
			e.notify(481, "active;expires=600", "")
		})
		r.empty()
	})
}

// EV-19: the NOTIFY makes the dialog, whether the 2xx came before or not, and
// brings the route set (CORE-10: of the 2xx reversed, until then).
func TestRemoteRouteSet(t *testing.T) {
	hop := netip.MustParseAddrPort("192.0.2.7:5060")
	for _, c := range []struct {
		name        string
		in2xx, inNY []string
		first       string // "2xx" or "NOTIFY"
		to          netip.AddrPort
		uri, route  string
	}{
		{
			name: "EV-19 NOTIFY first", first: "NOTIFY", inNY: []string{"Record-Route: <sip:192.0.2.7;lr>, <sip:b.example.org;lr>"}, in2xx: []string{"Record-Route: <sip:x.example.org;lr>"},
			to: hop, uri: "sip:carol@192.0.2.51", route: "<sip:192.0.2.7;lr>, <sip:b.example.org;lr>",
		},
		{
			name: "EV-19 2xx first, the NOTIFY counts", first: "2xx", in2xx: []string{"Record-Route: <sip:x.example.org;lr>"}, inNY: []string{"Record-Route: <sip:192.0.2.7;lr>"},
			to: hop, uri: "sip:carol@192.0.2.51", route: "<sip:192.0.2.7;lr>",
		},
		{
			name: "CORE-11 strict route", first: "2xx", inNY: []string{"Record-Route: <sip:192.0.2.7>, <sip:b.example.org;lr>"},
			to: hop, uri: "sip:192.0.2.7", route: "<sip:b.example.org;lr>, <sip:carol@192.0.2.51>",
		},
		{name: "CORE-11 no route: the Contact", first: "2xx", to: netip.MustParseAddrPort("192.0.2.51:5060"), uri: "sip:carol@192.0.2.51"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, e := remoteRig(t, nil)
				there := newPhone(t, r.net, c.to)
				id := r.open(nil)
				e.subscribed("600")
				accept := func() {
					e.answer(200, append(slices.Clone(c.in2xx), "Expires: 600", "Contact: <sip:wrong@192.0.2.52>")...)
				}
				if c.first == "2xx" {
					accept()
				}
				e.notify(200, "active;expires=600", "one", append(slices.Clone(c.inNY), "Contact: <sip:carol@192.0.2.51>")...)
				r.wantHeard("active one")
				if c.first != "2xx" {
					e.answer(200, append(slices.Clone(c.in2xx), "Expires: 600")...)
				}
				r.unsubscribe(id)
				m := there.take(func(m *sip.Message) bool { return m.IsRequest() })
				if m == nil {
					t.Fatal("no SUBSCRIBE there")
				}
				if string(m.RequestURI()) != c.uri || header(m, sip.HdrRoute) != c.route || string(m.To().Tag()) != "far" {
					t.Errorf("\n%s", m.Raw)
				}
			})
		})
	}
	t.Run("CORE-10 of the 2xx, reversed, when it must unsubscribe before any NOTIFY", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r, e := remoteRig(t, nil)
			there := newPhone(t, r.net, hop)
			id := r.open(nil)
			e.subscribed("600")
			e.answer(200, "Expires: 600", "Record-Route: <sip:b.example.org;lr>, <sip:192.0.2.7;lr>", "Contact: <sip:carol@192.0.2.51>")
			r.unsubscribe(id)
			m := there.take(func(m *sip.Message) bool { return m.IsRequest() })
			if m == nil || header(m, sip.HdrRoute) != "<sip:192.0.2.7;lr>, <sip:b.example.org;lr>" || string(m.RequestURI()) != "sip:carol@192.0.2.51" {
				t.Errorf("%v", m)
			}
		})
	})
	t.Run("CORE-13 the 2xx to a refresh may bring a new target", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r, e := remoteRig(t, nil)
			id := e.live(r)
			there := newPhone(t, r.net, netip.MustParseAddrPort("192.0.2.51:5060"))
			time.Sleep(8*time.Minute + 10*time.Millisecond)
			settle()
			e.subscribed("600")
			e.answer(200, "Expires: 600", "Contact: <sip:carol@192.0.2.51>")
			r.unsubscribe(id)
			if m := there.take(func(m *sip.Message) bool { return m.IsRequest() }); m == nil {
				t.Error("no SUBSCRIBE there")
			}
		})
	})
}

// A NOTIFY that is refused changes nothing.
func TestRemoteNotifyRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, e := remoteRig(t, nil)
		e.live(r)
		e.cseq = 100
		for _, c := range []struct {
			name    string
			status  int
			field   sip.HeaderID
			want    string
			headers []string
		}{
			{name: "EV-20 another tag of ours", status: 481, headers: []string{"To: <" + bob + ">;tag=00112233445566"}},
			{name: "EV-20 another Call-ID", status: 481, headers: []string{"Call-ID: other"}},
			{name: "EV-21 a fork", status: 481, headers: []string{"From: <" + carol + ">;tag=fork"}},
			{name: "400 no From tag", status: 400, headers: []string{"From: <" + carol + ">"}},
			{name: "EV-02 another package", status: 489, field: sip.HdrAllowEvents, want: "presence, presence.winfo", headers: []string{"Event: dialog"}},
			{name: "EV-02 an id we did not ask with", status: 489, headers: []string{"Event: presence;id=3"}},
			{name: "400 no Subscription-State", status: 400, headers: []string{"-Subscription-State"}},
			{name: "CORE-13 a lower CSeq", status: 500, headers: []string{"CSeq: 1 NOTIFY"}},
			{name: "CORE-05 a type we did not ask for", status: 415, field: sip.HdrAccept, want: pidfType + ", application/xml", headers: []string{"Content-Type: text/plain"}},
			{name: "CORE-05 an encoding", status: 415, field: sip.HdrAcceptEncoding, want: body.AcceptEncoding, headers: []string{"Content-Encoding: br"}},
			{name: "CORE-05 an encoding that it is not", status: 400, headers: []string{"Content-Encoding: deflate"}},
			{name: "CORE-05 a multipart without anything we asked for", status: 415, field: sip.HdrAccept, want: pidfType + ", application/xml", headers: []string{"Content-Type: multipart/mixed;boundary=b"}},
		} {
			m := e.notify(c.status, "terminated;reason=rejected", "x", c.headers...)
			if c.field != 0 && header(m, c.field) != c.want {
				t.Errorf("%s: %s: %s", c.name, c.field, header(m, c.field))
			}
		}
		r.wantHeard()
		e.notify(200, "active;expires=600", "two")
		r.wantHeard("active two")
		for _, coding := range []string{"deflate", "gzip"} { // CORE-05
			b, err := body.Encode(coding, nil, []byte("in "+coding))
			if err != nil {
				t.Fatal(err)
			}
			e.notify(200, "active;expires=600", string(b), "Content-Encoding: "+coding)
			r.wantHeard("active in " + coding)
		}
		e.notify(200, "active;expires=600", "--b\r\n\r\nhello\r\n--b\r\nContent-Type: "+pidfType+"\r\n\r\na part\r\n--b--\r\n", "Content-Type: multipart/alternative;boundary=b")
		r.wantHeard("active a part")
		step(t, "CORE-16 a retransmission is answered alike and delivered once", func(t *testing.T) {
			text := e.notifyText("active;expires=600", "three")
			var first *sip.Message
			for range 3 {
				e.send(text)
				m := e.take(func(m *sip.Message) bool { return m.Status() == 200 })
				if first == nil {
					first = m
				} else if m == nil || !bytes.Equal(m.Raw, first.Raw) {
					t.Errorf("%v", m)
				}
			}
			r.wantHeard("active three")
		})
	})
}

func TestRemoteEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		play func(r *rig, e *elsewhere)
		want []string
	}{
		{"EV-17 481 to the refresh", func(r *rig, e *elsewhere) {
			time.Sleep(8*time.Minute + 10*time.Millisecond)
			settle()
			e.subscribed("600")
			e.answer(481)
		}, []string{"ended 481"}},
		{"EV-17 503 to the refresh, then recovery", func(r *rig, e *elsewhere) {
			time.Sleep(8*time.Minute + 10*time.Millisecond)
			settle()
			e.subscribed("600")
			e.answer(503, "Retry-After: 30")
			time.Sleep(30*time.Second + 10*time.Millisecond)
			settle()
			e.subscribed("600")
			e.accept(600)
			e.notify(200, "active;expires=600", "two")
			time.Sleep(7 * time.Minute)
			e.notify(200, "terminated;reason=deactivated", "")
		}, []string{"active two", "terminated", "ended 0 deactivated"}},
		{"EV-17 423 to the refresh", func(r *rig, e *elsewhere) {
			time.Sleep(8*time.Minute + 10*time.Millisecond)
			settle()
			e.subscribed("600")
			e.answer(423, "Min-Expires: 1800")
			e.subscribed("1800")
			e.answer(404)
		}, []string{"ended 404"}},
		{"EV-17 nobody answers until it expires", func(r *rig, e *elsewhere) { time.Sleep(10*time.Minute + 10*time.Millisecond) }, []string{"ended 0 timeout"}},
		{"EV-18 the refresh is taken, but no NOTIFY comes", func(r *rig, e *elsewhere) {
			time.Sleep(8*time.Minute + 10*time.Millisecond)
			settle()
			e.subscribed("600")
			e.accept(600)
			time.Sleep(32 * time.Second)
		}, []string{"ended 408"}},
		{"EV-12 rejected", func(r *rig, e *elsewhere) { e.notify(200, "terminated;reason=rejected", "") }, []string{"terminated", "ended 0 rejected"}},
		{"EV-12 with retry-after", func(r *rig, e *elsewhere) { e.notify(200, "terminated;retry-after=77;reason=Giveup", "") }, []string{"terminated", "ended 0 giveup"}},
		{"EV-12 no reason", func(r *rig, e *elsewhere) { e.notify(200, "terminated", "bye") }, []string{"terminated bye", "ended 0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, e := remoteRig(t, nil)
				e.live(r)
				c.play(r, e)
				settle()
				r.wantHeard(c.want...)
				r.empty()
			})
		})
	}
}

func TestRemoteNeverStarts(t *testing.T) {
	lookup := func(f sip.Flow, err error) func(*Options) {
		return func(o *Options) {
			o.Resolve = func(context.Context, string) ([]sip.Flow, error) {
				time.Sleep(time.Second)
				return []sip.Flow{f}, err
			}
		}
	}
	named := func(p *SubscribeTo) { p.URI = "sip:carol@far.example.org" }
	for _, c := range []struct {
		name    string
		options func(*Options)
		open    func(*SubscribeTo)
		play    func(e *elsewhere)
		fail    error
		want    []string
	}{
		{name: "refused", play: func(e *elsewhere) { e.subscribed("600"); e.answer(403) }, want: []string{"ended 403"}},
		{name: "EV-06 202 counts as 200", play: func(e *elsewhere) {
			e.subscribed("600")
			e.answer(202, "Expires: 600")
			e.notify(200, "terminated;reason=noresource", "")
		}, want: []string{"terminated", "ended 0 noresource"}},
		{name: "CORE-17 no answer", play: func(e *elsewhere) { time.Sleep(33 * time.Second) }, want: []string{"ended 408"}},
		{name: "EV-18 200 but no NOTIFY", play: func(e *elsewhere) { e.subscribed("600"); e.accept(600); time.Sleep(33 * time.Second) }, want: []string{"ended 408"}},
		{name: "EV-19 terminated before the 2xx", play: func(e *elsewhere) {
			e.subscribed("600")
			e.notify(200, "terminated;reason=rejected", "")
			e.accept(600)
		}, want: []string{"terminated", "ended 0 rejected"}},
		{name: "it cannot be sent", fail: errors.New("no route"), want: []string{"ended 503"}},
		{name: "DNS-01 the name is not known", options: lookup(sip.Flow{}, errors.New("no such host")), open: named, want: []string{"ended 503"}},
		{name: "a name, and nobody to look it up", open: named, want: []string{"ended 503"}},
		{name: "a URI that is none", open: func(p *SubscribeTo) { p.URI = "carol" }, want: []string{"ended 503"}},
		{
			name: "DNS-01 the name is found", options: lookup(sip.Flow{Local: serverAddr, Remote: remoteAddr}, nil), open: named,
			play: func(e *elsewhere) { e.subscribed("600"); e.answer(404) }, want: []string{"ended 404"},
		},
		{
			name: "a next hop by configuration", open: func(p *SubscribeTo) { named(p); p.NextHop = "sip:192.0.2.50;lr" },
			play: func(e *elsewhere) {
				if m := e.subscribed("600"); string(m.RequestURI()) != "sip:carol@far.example.org" {
					e.t.Errorf("%s", m.RequestURI())
				}
				e.answer(404)
			}, want: []string{"ended 404"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, e := remoteRig(t, c.options)
				r.wire.fail = func(sip.Flow, *sip.Message) error { return c.fail }
				r.open(c.open)
				time.Sleep(2 * time.Second)
				settle()
				if c.play != nil {
					c.play(e)
				}
				settle()
				r.wantHeard(c.want...)
				r.empty()
			})
		})
	}
}

// A user may unsubscribe while it is being told something. The dialog is then
// left, and not forgotten until its refresh would have been due.
func TestUnsubscribeInCallback(t *testing.T) {
	for _, state := range []string{"active;expires=600", "terminated;reason=deactivated"} {
		t.Run(strings.ReplaceAll(state, ";", " "), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				net := newNet(t)
				quitter := &quitter{}
				r := newRig(t, net, serverAddr, func(o *Options) {
					shard := o.Components[0]
					o.Components = []func(uint8) Component{shard, func(uint8) Component { return quitter }}
				})
				e := &elsewhere{phone: newPhone(t, net, remoteAddr), tag: "far"}
				e.phone.notify = func(*sip.Message) int { return 0 }
				quitter.id = r.open(func(p *SubscribeTo) { p.Component = 1 })
				e.subscribed("600")
				e.accept(600)
				e.notify(200, state, "one")
				if strings.HasPrefix(state, "active") {
					e.subscribed("0")
					e.accept(0)
					time.Sleep(33 * time.Second) // no NOTIFY comes
				}
				if _, ok := r.remote(quitter.id); ok || quitter.notified != 1 || quitter.ended != 0 {
					t.Errorf("still there: %v; notified %d times, ended %d times", ok, quitter.notified, quitter.ended)
				}
				r.empty()
			})
		})
	}
}

type quitter struct {
	id              uint64
	notified, ended int
}

func (q *quitter) Timer(*Turn, uint64) {}

func (q *quitter) Notified(t *Turn, _ uint64, _ SubState, _ *Document) {
	q.notified++
	t.Unsubscribe(q.id)
}

func (q *quitter) Ended(*Turn, uint64, Ending) { q.ended++ }
