package dialog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/sip"
	"rollcall/sip/body"
)

const (
	alice = "sip:alice@example.com" // the resource
	bob   = "sip:bob@example.org"   // the watcher
)

// phoneRig is the usual cast: a runtime and a phone.
func phoneRig(t *testing.T, change func(*Options)) (*rig, *phone) {
	net := newNet(t)
	r := newRig(t, net, serverAddr, change)
	return r, newPhone(t, net, phoneAddr)
}

func TestSubscribe(t *testing.T) {
	var c *call
	var ok, n, n2 *sip.Message
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		c = p.call(bob, alice)
		ok = c.subscribe(200, "Expires: 600", "Record-Route: <sip:192.0.2.1:5070;lr;x=1>, \"P\" <sip:p2.example.com;lr>;y=\"a,b\"", "Record-Route: <sip:p3.example.com;lr>")
		n = c.notified()
		r.set(alice, active("second"))
		n2 = c.wantNotify("active;expires=600", "second")
	})
	t.Run("EV-01 Expires as asked", func(t *testing.T) { wantHeader(t, ok, sip.HdrExpires, "600") })
	t.Run("EV-06 200, not 202", func(t *testing.T) {
		if ok.Status() != 200 {
			t.Error(ok.Status())
		}
	})
	t.Run("EV-24 Allow-Events", func(t *testing.T) { wantHeader(t, ok, sip.HdrAllowEvents, "presence, presence.winfo") })
	t.Run("CORE-08 fields of the request, a tag of ours", func(t *testing.T) {
		wantHeader(t, ok, sip.HdrFrom, "<sip:bob@example.org>;tag="+c.tag)
		wantHeader(t, ok, sip.HdrCallID, c.id)
		wantHeader(t, ok, sip.HdrCSeq, "1 SUBSCRIBE")
		if to := string(ok.To().URI); to != alice || len(ok.To().Tag()) != tagSize {
			t.Errorf("To %s", ok.Header(sip.HdrTo))
		}
	})
	t.Run("CORE-10 Record-Route copied in order, Contact", func(t *testing.T) {
		got := slices.Collect(func(yield func(string) bool) {
			for v := range ok.Headers(sip.HdrRecordRoute) {
				if !yield(string(v)) {
					return
				}
			}
		})
		want := []string{"<sip:192.0.2.1:5070;lr;x=1>, \"P\" <sip:p2.example.com;lr>;y=\"a,b\"", "<sip:p3.example.com;lr>"}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		wantHeader(t, ok, sip.HdrContact, "<sip:192.0.2.9:5060>")
	})
	t.Run("EV-07 NOTIFY at once, on the dialog", func(t *testing.T) {
		if n == nil {
			t.Fatal("none")
		}
		if !bytes.Equal(n.From().Tag(), ok.To().Tag()) || string(n.To().Tag()) != c.tag || string(n.CallID()) != c.id || n.CSeq() != 1 {
			t.Errorf("\n%s", n.Raw)
		}
		wantHeader(t, n, sip.HdrEvent, "presence")
		wantHeader(t, n, sip.HdrSubscriptionState, "active;expires=600")
		wantHeader(t, n, sip.HdrContact, "<sip:192.0.2.9:5060>")
		wantHeader(t, n, sip.HdrContentType, pidfType)
		if string(n.Body()) != "first" {
			t.Errorf("body %q", n.Body())
		}
	})
	t.Run("CORE-11 the URIs of the dialog, not the Contacts", func(t *testing.T) {
		if string(n.From().URI) != alice || string(n.To().URI) != bob || string(n.RequestURI()) != "sip:phone@192.0.2.1:5070" {
			t.Errorf("\n%s", n.Raw)
		}
		wantHeader(t, n, sip.HdrRoute, "<sip:192.0.2.1:5070;lr;x=1>, \"P\" <sip:p2.example.com;lr>;y=\"a,b\", <sip:p3.example.com;lr>")
	})
	t.Run("CORE-12 CSeq up by one", func(t *testing.T) {
		if n2.CSeq() != 2 {
			t.Error(n2.CSeq())
		}
	})
}

func TestSubscribeExpires(t *testing.T) {
	for _, c := range []struct {
		name, expires string
		event         string
		status        int
		granted       string
	}{
		{"EV-01 the package's default", "-Expires", "presence", 200, "3600"},
		{"EV-01 the default of another package", "-Expires", "presence.winfo", 200, "3000"},
		{"EV-01 shortened", "Expires: 86400", "presence", 200, "7200"},
		{"EV-01 larger than a number holds", "Expires: 99999999999999999999", "presence", 200, "7200"},
		{"EV-05 too short: 423", "Expires: 299", "presence", 423, ""},
		{"EV-05 one second", "Expires: 1", "presence", 423, ""},
		{"EV-05 the minimum", "Expires: 300", "presence", 200, "300"},
		{"EV-05 zero is never 423", "Expires: 0", "presence", 200, "0"},
		{"400 not a number", "Expires: soon", "presence", 400, ""},
		{"400 negative", "Expires: -1", "presence", 400, ""},
		{"400 with a comment", "Expires: 5 (minutes)", "presence", 400, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				_, p := phoneRig(t, func(o *Options) { o.MinExpires, o.MaxExpires = 5*time.Minute, 2*time.Hour })
				m := p.call(bob, alice).subscribe(c.status, c.expires, "Event: "+c.event, "-Accept")
				wantHeader(t, m, sip.HdrExpires, c.granted)
				if c.status == 423 {
					wantHeader(t, m, sip.HdrMinExpires, "300")
				}
			})
		})
	}
	t.Run("EV-05 an hour is never 423", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			_, p := phoneRig(t, func(o *Options) { o.MinExpires = 90 * time.Minute })
			p.call(bob, alice).subscribe(200, "Expires: 3600")
			p.call(bob, alice).subscribe(423, "Expires: 3599")
		})
	})
}

// Requests that are refused, with what the answer must say. Each changes no
// state (RFC 3261 section 8.2).
func TestRefusals(t *testing.T) {
	const allowEvents = "presence, presence.winfo"
	for _, c := range []struct {
		name    string
		line    string // method and Request-URI, if not SUBSCRIBE for alice
		headers []string
		status  int
		field   sip.HeaderID
		want    string
	}{
		{name: "CORE-01 a known method: 405", line: "REGISTER sip:example.com", status: 405, field: sip.HdrAllow, want: allow},
		{name: "CORE-01 INVITE: 405", line: "INVITE " + alice, status: 405, field: sip.HdrAllow, want: allow},
		{name: "CORE-01 an unknown method: 501", line: "FETCH " + alice, status: 501},
		{name: "CORE-01 the method comes before Require", line: "MESSAGE " + alice, headers: []string{"Require: x"}, status: 405},
		{name: "CORE-02 a scheme we do not know: 416", line: "SUBSCRIBE http://example.com/", status: 416},
		{name: "CORE-02 in OPTIONS, too", line: "OPTIONS http://example.com/", headers: []string{"Require: x"}, status: 416},
		{name: "CORE-02 no URI: 400", line: "SUBSCRIBE sip:alice@@example.com", status: 400},
		{name: "CORE-04 Require: 420 with exactly the unknown tags", headers: []string{"Require: 100rel, eventlist, x"}, status: 420, field: sip.HdrUnsupported, want: "100rel, x"},
		{name: "CORE-04 in OPTIONS, too", line: "OPTIONS " + alice, headers: []string{"Require: x"}, status: 420, field: sip.HdrUnsupported, want: "x"},
		{name: "CORE-04 in NOTIFY, too", line: "NOTIFY " + alice, headers: []string{"Require: x"}, status: 420, field: sip.HdrUnsupported, want: "x"},
		{name: "CORE-05 a body nobody understands: 415", headers: []string{"Content-Type: application/simple-filter+xml", "body:<x/>"}, status: 415},
		{name: "CORE-05 handling=required", headers: []string{"Content-Type: text/plain", "Content-Disposition: render;handling=required", "body:x"}, status: 415},
		{name: "CORE-05 handling=optional is no reason to refuse", headers: []string{"Content-Type: text/plain", "Content-Disposition: render;handling=Optional", "Expires: 0", "body:x"}, status: 200},
		{name: "CORE-05 an encoding", headers: []string{"Content-Type: text/plain", "Content-Encoding: deflate", "body:x"}, status: 415, field: sip.HdrAcceptEncoding, want: body.AcceptEncoding},
		{name: "CORE-05 an encoding of nothing", headers: []string{"Content-Encoding: deflate", "Expires: 0"}, status: 200},
		{name: "EV-03 an unknown package: 489 with Allow-Events", headers: []string{"Event: conference"}, status: 489, field: sip.HdrAllowEvents, want: allowEvents},
		{name: "EV-02 packages are compared octet by octet", headers: []string{"Event: Presence"}, status: 489},
		{name: "EV-03 no Event: 489", headers: []string{"-Event"}, status: 489, field: sip.HdrAllowEvents, want: allowEvents},
		{name: "EV-03 an unknown package in PUBLISH", line: "PUBLISH " + alice, headers: []string{"Event: conference"}, status: 489, field: sip.HdrAllowEvents, want: allowEvents},
		{name: "400 no From tag", headers: []string{"From: <" + bob + ">"}, status: 400},
		{name: "400 no Contact", headers: []string{"-Contact"}, status: 400},
		{name: "400 a Contact that is no SIP URI", headers: []string{"Contact: <mailto:bob@example.org>"}, status: 400},
		{name: "400 Contact: *", headers: []string{"Contact: *"}, status: 400},
		{name: "400 a malformed Contact", headers: []string{"Contact: <sip:bob"}, status: 400},
		{name: "EV-13 refused by identity: 403", headers: []string{"From: <sip:mallory@example.org>;tag=m"}, status: 403},
		{name: "EV-13 denied by policy: 403", line: "SUBSCRIBE sip:denied@example.com", status: 403},
		{name: "404 by the source", line: "SUBSCRIBE sip:nobody@example.com", status: 404},
		{name: "EV-04 406 by the source", line: "SUBSCRIBE sip:picky@example.com", status: 406, field: sip.HdrAccept, want: pidfType},
		{name: "503 with Retry-After by the source", line: "SUBSCRIBE sip:busy@example.com", status: 503, field: sip.HdrRetryAfter, want: "60"},
		{name: "CORE-13 a To tag of ours that names no dialog: 481", headers: []string{"To: <" + alice + ">;tag=00112233445566"}, status: 481},
		{name: "CORE-13 a To tag of somebody else: 481", headers: []string{"To: <" + alice + ">;tag=x"}, status: 481},
		{name: "CORE-24 CANCEL that matches nothing: 481", line: "CANCEL " + alice, status: 481},
		{
			name: "EV-20 NOTIFY for an unknown dialog: 481", line: "NOTIFY sip:192.0.2.9",
			headers: []string{"Subscription-State: active;expires=60", "To: <" + bob + ">;tag=00112233445566"}, status: 481,
		},
		{name: "EV-20 NOTIFY without To tag: 481", line: "NOTIFY sip:192.0.2.9", headers: []string{"Subscription-State: active;expires=60"}, status: 481},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, p := phoneRig(t, nil)
				r.src.state = map[string]Update{
					"sip:denied@example.com": {State: Terminated, Reason: Rejected, Err: Refuse(403, "")},
					"sip:nobody@example.com": {State: Terminated, Reason: NoResource},
					"sip:picky@example.com":  {State: Terminated, Err: Refuse(406, "", "Accept", pidfType)},
					"sip:busy@example.com":   {State: Terminated, Err: &Error{Status: 503, RetryAfter: time.Minute}},
				}
				call := p.call(bob, alice)
				if c.line != "" {
					call.method, call.target, _ = strings.Cut(c.line, " ")
				}
				m := call.ask(c.headers...)
				if m == nil || m.Status() != c.status {
					t.Fatalf("got %v, want %d", m, c.status)
				}
				if c.field != 0 {
					wantHeader(t, m, c.field, c.want)
				}
				if len(m.To().Tag()) == 0 {
					t.Errorf("CORE-08: no To tag\n%s", m.Raw)
				}
				if n := call.notified(); (n != nil) != (c.status == 200 && call.method == "SUBSCRIBE") {
					t.Errorf("NOTIFY: %v", n)
				}
				if r.store.count() != 0 {
					t.Error("something is stored")
				}
				r.empty()
			})
		})
	}
}

// CORE-16, CORE-08: a retransmission is answered with the same octets and
// executed once.
func TestRetransmittedSubscribe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		c := p.call(bob, alice)
		text := c.text()
		var first *sip.Message
		for i := range 12 {
			p.send(text)
			m := c.answer()
			if first == nil {
				first = m
			} else if m == nil || !bytes.Equal(m.Raw, first.Raw) {
				t.Fatalf("retransmission %d: %v", i, m)
			}
			time.Sleep(2500 * time.Millisecond)
		}
		if c.notified() == nil || c.notified() != nil || r.Stats().Subscriptions.Load() != 1 || len(r.src.attached) != 1 {
			t.Errorf("%d subscriptions, %d attachments", r.Stats().Subscriptions.Load(), len(r.src.attached))
		}
	})
}

func TestRetransmittedPublish(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		c := p.call(alice, alice)
		c.method = "PUBLISH"
		text := c.text()
		p.send(text)
		a := c.answer()
		p.send(text)
		b := c.answer()
		if a == nil || b == nil || !bytes.Equal(a.Raw, b.Raw) || r.src.published != 1 || string(b.Header(sip.HdrSIPETag)) != "e1" {
			t.Errorf("CORE-16: executed %d times, %v, %v", r.src.published, a, b)
		}
	})
}

// A component may answer in a later turn, with an error, and store its own rows,
// which are committed before the answer leaves.
func TestPublishAnsweredLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		var waiting *Request
		r.src.publish = func(_ *Turn, rq *Request) {
			if rq.Resource != alice || rq.Package.Name != "presence" || rq.Watcher.URI != alice {
				t.Errorf("%+v", rq)
			}
			rq.Keep()
			waiting = rq
		}
		c := p.call(alice, alice)
		c.method = "PUBLISH"
		if m := c.ask(); m != nil {
			t.Fatalf("answered\n%s", m.Raw)
		}
		time.Sleep(time.Second)
		block := r.store.hold()
		r.Do(alice, func(turn *Turn) {
			turn.Persist("a row of mine")
			turn.Fail(waiting, &Error{Status: 412, RetryAfter: 1500 * time.Millisecond, Err: errors.New("for the log")})
		})
		settle()
		if m := c.answer(); m != nil {
			t.Fatalf("before the commit\n%s", m.Raw)
		}
		close(block)
		settle()
		m := c.answer()
		if m == nil || m.Status() != 412 || header(m, sip.HdrRetryAfter) != "2" || bytes.Contains(m.Raw, []byte("for the log")) {
			t.Errorf("%v", m)
		}
		if b := r.store.batches; len(b) != 1 || b[0][0] != "a row of mine" {
			t.Errorf("%v", b)
		}
	})
}

func TestPublishWithoutPublisher(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, p := phoneRig(t, func(o *Options) { o.Components = []func(uint8) Component{func(uint8) Component { return &listener{} }} })
		c := p.call(alice, alice)
		c.method = "PUBLISH"
		wantHeader(t, c.subscribe(405), sip.HdrAllow, allow)
	})
}

func TestRouteSet(t *testing.T) {
	for _, c := range []struct {
		set, first, start, route string
		loose                    bool
	}{
		{"", "", "NOTIFY sip:t@192.0.2.1 SIP/2.0", "", true},
		{"<sip:a;lr>", "sip:a;lr", "NOTIFY sip:t@192.0.2.1 SIP/2.0", "<sip:a;lr>", true},
		{"<sip:a;LR=on>,<sip:b>", "sip:a;LR=on", "NOTIFY sip:t@192.0.2.1 SIP/2.0", "<sip:a;LR=on>,<sip:b>", true},
		{`"a, <b>" <sip:u,1@a;lr> ;x="," , <sip:b>`, "sip:u,1@a;lr", "NOTIFY sip:t@192.0.2.1 SIP/2.0", `"a, <b>" <sip:u,1@a;lr> ;x="," , <sip:b>`, true},
		{"<sip:a>;lr", "sip:a", "NOTIFY sip:a SIP/2.0", "<sip:t@192.0.2.1>", false},
		{"<sip:a>, <sip:b;lr>, <sip:c>", "sip:a", "NOTIFY sip:a SIP/2.0", "<sip:b;lr>, <sip:c>, <sip:t@192.0.2.1>", false},
		{"not a route", "", "NOTIFY sip:t@192.0.2.1 SIP/2.0", "not a route", true},
		{"<http://example.com>", "", "NOTIFY sip:t@192.0.2.1 SIP/2.0", "<http://example.com>", true},
	} {
		first, loose := routeSet(c.set)
		start, route := appendStart(nil, "NOTIFY", "sip:t@192.0.2.1", c.set)
		if first != c.first || loose != c.loose || string(start) != c.start+"\r\n" || route != c.route {
			t.Errorf("CORE-11 %q: first %q, loose %v, %q, Route %q", c.set, first, loose, start, route)
		}
	}
}

// A PUBLISH belongs to the shard of its resource, whatever tag it comes with.
func TestPublishWithTag(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, p := phoneRig(t, nil)
		for shard := range 4 {
			c := p.call(alice, alice)
			c.method = "PUBLISH"
			c.subscribe(200, fmt.Sprintf("To: <%s>;tag=%02x112233445566", alice, shard))
		}
	})
}

func TestOptions(t *testing.T) {
	var m *sip.Message
	bubble(t, func(t *testing.T) {
		_, p := phoneRig(t, nil)
		c := p.call(bob, alice)
		c.method = "OPTIONS"
		m = c.subscribe(200, "Max-Forwards: 0")
	})
	for h, want := range map[sip.HeaderID]string{
		sip.HdrAllow: "SUBSCRIBE, NOTIFY, PUBLISH, OPTIONS", sip.HdrSupported: "eventlist",
		sip.HdrAllowEvents: "presence, presence.winfo", sip.HdrAcceptEncoding: body.AcceptEncoding,
		sip.HdrAccept: pidfType + ", application/watcherinfo+xml",
	} {
		t.Run("CORE-25 "+h.String(), func(t *testing.T) { wantHeader(t, m, h, want) })
	}
	if string(m.Other("Accept-Language")) != "en" {
		t.Error("CORE-25 Accept-Language")
	}
}

func TestCancel(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		cancel := func(text string) *sip.Message {
			p.send(strings.ReplaceAll(strings.Replace(text, "SUBSCRIBE ", "CANCEL ", 1), " SUBSCRIBE\r\n", " CANCEL\r\n"))
			return p.take(func(m *sip.Message) bool { return !m.IsRequest() && m.Method() == sip.CANCEL })
		}
		step(t, "CORE-24 after the answer: 200, no effect", func(t *testing.T) {
			c := p.call(bob, alice)
			text := c.text()
			p.send(text)
			if m := c.answer(); m == nil || m.Status() != 200 {
				t.Fatal(m)
			}
			if m := cancel(text); m == nil || m.Status() != 200 {
				t.Errorf("%v", m)
			}
			c.wantNotify("active;expires=3600", "first")
			r.set(alice, active("second"))
			c.wantNotify("active;expires=3600", "second")
		})
		step(t, "CORE-24 before the answer: 200, no effect; Require is ignored", func(t *testing.T) {
			r.src.silent = true
			c := p.call(bob, alice)
			text := c.text()
			p.send(text)
			if m := cancel(strings.Replace(text, "Event", "Require: x\r\nEvent", 1)); m == nil || m.Status() != 200 {
				t.Errorf("%v", m)
			}
			r.set(alice, active("third"))
			if m := c.answer(); m == nil || m.Status() != 200 {
				t.Errorf("%v", m)
			}
		})
	})
}

func TestACKIsIgnored(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		c := p.call(bob, alice)
		c.method = "ACK"
		if m := c.ask(); m != nil {
			t.Errorf("answered\n%s", m.Raw)
		}
		r.empty()
	})
}

func TestRefresh(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		c := p.call(bob, alice)
		c.subscribe(200, "Event: presence;id=a7")
		n := c.wantNotify("active;expires=3600", "first")
		wantHeader(t, n, sip.HdrEvent, "presence;id=a7")
		created := r.store.row(t)

		step(t, "EV-07 full state at once, EV-01", func(t *testing.T) {
			time.Sleep(10 * time.Minute)
			m := c.subscribe(200, "Expires: 1800", "Event: presence;id=a7;x=y")
			wantHeader(t, m, sip.HdrExpires, "1800")
			n := c.wantNotify("active;expires=1800", "first")
			step(t, "EV-23 the id stays", func(t *testing.T) { wantHeader(t, n, sip.HdrEvent, "presence;id=a7") })
			row := r.store.row(t)
			if row.ExpiresMS != time.Now().Add(30*time.Minute).UnixMilli() || row.RemoteCSeq != c.cseq || row.CreatedMS != created.CreatedMS || row.CSeqCeiling < n.CSeq() {
				t.Errorf("row %+v", row)
			}
		})
		step(t, "CORE-13 Contact is a new target", func(t *testing.T) {
			c.subscribe(200, "Event: presence;id=a7", "Contact: <sip:other@192.0.2.1:5070>")
			if n := c.wantNotify("active;expires=3600", "first"); string(n.RequestURI()) != "sip:other@192.0.2.1:5070" {
				t.Errorf("%s", n.RequestURI())
			}
			c.subscribe(200, "Event: presence;id=a7", "-Contact")
			if n := c.wantNotify("active;expires=3600", "first"); string(n.RequestURI()) != "sip:other@192.0.2.1:5070" {
				t.Errorf("%s", n.RequestURI())
			}
			c.subscribe(400, "Event: presence;id=a7", "Contact: <mailto:x>")
		})
		step(t, "CORE-13 gaps in CSeq are fine", func(t *testing.T) {
			c.cseq += 100
			c.subscribe(200, "Event: presence;id=a7")
			c.wantNotify("active;expires=3600", "first")
		})
		step(t, "CORE-13 a lower CSeq: 500", func(t *testing.T) {
			before := c.cseq
			c.cseq -= 50
			c.subscribe(500, "Event: presence;id=a7")
			c.cseq = before - 1 // the same as the last one, in another transaction
			c.subscribe(500, "Event: presence;id=a7")
		})
		step(t, "EV-05 too short", func(t *testing.T) { c.subscribe(423, "Event: presence;id=a7", "Expires: 10") })
		for name, event := range map[string]string{"without id": "presence", "with another id": "presence;id=A7", "for another package": "presence.winfo;id=a7"} {
			step(t, "EV-02, EV-22 "+name, func(t *testing.T) { c.subscribe(403, "Event: "+event) })
		}
		step(t, "by somebody else: 481", func(t *testing.T) {
			c.subscribe(481, "Event: presence;id=a7", "From: <sip:carol@example.org>;tag="+c.tag)
			c.subscribe(481, "Event: presence;id=a7", "From: <"+bob+">;tag=other")
			other := *c
			other.id = "other@192.0.2.1"
			other.subscribe(481, "Event: presence;id=a7")
			c.subscribe(403, "Event: presence;id=a7", "From: <sip:mallory@example.org>;tag="+c.tag)
		})
		c.wantSilence()
		step(t, "EV-09 unsubscribe", func(t *testing.T) {
			m := c.subscribe(200, "Event: presence;id=a7", "Expires: 0")
			wantHeader(t, m, sip.HdrExpires, "0")
			c.wantNotify("terminated;reason=timeout", "first")
			if r.store.count() != 0 || len(r.src.detached) != 1 {
				t.Errorf("%d rows, detached %v", r.store.count(), r.src.detached)
			}
			c.subscribe(481, "Event: presence;id=a7")
		})
		r.empty()
	})
}

func TestExpiry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		c := p.call(bob, alice)
		c.subscribe(200, "Expires: 60")
		c.wantNotify("active;expires=60", "first")
		time.Sleep(30*time.Second + 500*time.Millisecond)
		r.set(alice, active("second"))
		step(t, "EV-08 what remains, never more than granted", func(t *testing.T) { c.wantNotify("active;expires=30", "second") })
		time.Sleep(29 * time.Second)
		c.wantSilence()
		time.Sleep(time.Second)
		settle()
		step(t, "EV-11 terminated;reason=timeout", func(t *testing.T) { c.wantNotify("terminated;reason=timeout", "second") })
		if r.store.count() != 0 {
			t.Error("the row is still there")
		}
		r.empty()
	})
}

// EV-11: an expiry that is due but has not fired yet, as the wheel has a grain,
// is not put off by a NOTIFY that must wait longer.
func TestExpiryNotPutOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		p.notify = func(m *sip.Message) int {
			if m.CSeq() > 1 {
				return 200
			}
			p.respond(m, 503, "Retry-After: 1000")
			return 0
		}
		time.Sleep(time.Millisecond) // off the grain
		c := p.call(bob, alice)
		c.subscribe(200, "Expires: 60")
		c.wantNotify("active;expires=60", "first")
		time.Sleep(time.Minute + time.Millisecond)
		r.set(alice, active("second"))
		time.Sleep(10 * time.Millisecond)
		settle()
		c.wantNotify("terminated;reason=timeout", "second")
		r.empty()
	})
}

func TestPoll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		c := p.call(bob, alice)
		m := c.subscribe(200, "Expires: 0")
		wantHeader(t, m, sip.HdrExpires, "0")
		c.wantNotify("terminated;reason=timeout", "first")
		if r.store.begun() != 0 || len(r.src.detached) != 1 {
			t.Errorf("EV-10: %d commits, detached %v", r.store.begun(), r.src.detached)
		}
		c.subscribe(481)
		r.set(alice, active("second"))
		c.wantSilence()
		r.empty()
	})
}

func TestPendingThenActive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		r.src.state[alice] = Update{State: Pending}
		c := p.call(bob, alice)
		c.subscribe(200)
		step(t, "EV-07 NOTIFY also when pending, without document", func(t *testing.T) { c.wantNotify("pending;expires=3600", "") })
		time.Sleep(time.Minute)
		r.set(alice, active("shown"))
		step(t, "authorized", func(t *testing.T) { c.wantNotify("active;expires=3540", "shown") })
		for name, u := range map[string]Update{"PR-08 pending again": {State: Pending}, "unknown": {State: Unknown}} {
			step(t, name+": the document is taken away", func(t *testing.T) {
				r.set(alice, u)
				c.wantNotify("pending;expires=3540", "")
				r.set(alice, active("shown"))
				c.wantNotify("active;expires=3540", "shown")
			})
		}
		step(t, "active with nothing to show", func(t *testing.T) {
			r.set(alice, Update{State: Active})
			c.wantNotify("active;expires=3540", "")
			r.set(alice, active("shown"))
			c.wantNotify("active;expires=3540", "shown")
		})
		step(t, "a source that looks for its source", func(t *testing.T) {
			r.set(alice, Update{State: Terminated, Retrying: true, Reason: Probation})
			c.wantNotify("pending;expires=3540", "")
		})
		step(t, "EV-12 rejected", func(t *testing.T) {
			r.set(alice, Update{State: Terminated, Reason: Rejected})
			c.wantNotify("terminated;reason=rejected", "")
		})
		r.empty()
	})
}

func TestTerminatedBySource(t *testing.T) {
	for _, c := range []struct {
		name, want string
		u          Update
	}{
		{"EV-12 deactivated", "terminated;reason=deactivated", Update{State: Terminated, Reason: Deactivated}},
		{"EV-12 probation with retry-after", "terminated;reason=probation;retry-after=60", Update{State: Terminated, Reason: Probation, RetryAfter: time.Minute}},
		{"EV-12 giveup, rounded up", "terminated;reason=giveup;retry-after=2", Update{State: Terminated, Reason: Giveup, RetryAfter: 1100 * time.Millisecond}},
		{"EV-12 noresource", "terminated;reason=noresource", Update{State: Terminated, Reason: NoResource}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, p := phoneRig(t, nil)
				call := p.call(bob, alice)
				call.subscribe(200)
				call.notified()
				r.set(alice, c.u)
				call.wantNotify(c.want, "")
				call.subscribe(481)
				if r.store.count() != 0 {
					t.Error("the row is still there")
				}
				r.empty()
			})
		})
	}
}

// What a watcher's answer to a NOTIFY does (RFC 6665 section 4.2.2).
func TestNotifyAnswers(t *testing.T) {
	for _, status := range []int{404, 405, 410, 416, 480, 481, 482, 483, 484, 485, 489, 501, 604} {
		t.Run(fmt.Sprintf("EV-15 %d removes", status), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, p := phoneRig(t, nil)
				p.notify = func(*sip.Message) int { return status }
				c := p.call(bob, alice)
				c.subscribe(200)
				c.notified()
				r.set(alice, active("second"))
				time.Sleep(time.Minute)
				c.wantSilence() // EV-16: not even to say so
				if r.store.count() != 0 || len(r.src.detached) != 1 {
					t.Errorf("%d rows, %d detached", r.store.count(), len(r.src.detached))
				}
				c.subscribe(481)
				r.empty()
			})
		})
	}
	t.Run("EV-15 no answer: removed by timer F", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r, p := phoneRig(t, nil)
			p.notify = func(*sip.Message) int { return 0 }
			c := p.call(bob, alice)
			start := time.Now()
			c.subscribe(200)
			time.Sleep(time.Minute)
			var at []time.Duration
			for n := c.notified(); n != nil; n = c.notified() {
				at = append(at, n.At.Sub(start))
			}
			want := []time.Duration{0, 5, 15, 35, 75, 115, 155, 195, 235, 275, 315}
			for i := range want {
				want[i] *= 100 * time.Millisecond
			}
			if !slices.Equal(at, want) {
				t.Errorf("CORE-17: NOTIFY at %v, want %v", at, want)
			}
			r.empty()
		})
	})
	for _, status := range []int{302, 400, 401, 403, 407, 500, 503, 603} {
		t.Run(fmt.Sprintf("EV-15 %d keeps", status), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, p := phoneRig(t, nil)
				p.notify = func(m *sip.Message) int { return map[bool]int{true: status, false: 200}[m.CSeq() == 1] }
				c := p.call(bob, alice)
				c.subscribe(200)
				c.wantNotify("active;expires=3600", "first")
				c.wantSilence()
				time.Sleep(1100 * time.Millisecond)
				settle()
				c.wantNotify("active;expires=3599", "first")
				r.set(alice, active("second"))
				c.wantNotify("active;expires=3599", "second")
			})
		})
	}
	t.Run("EV-15 503 with Retry-After", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			_, p := phoneRig(t, nil)
			p.notify = func(m *sip.Message) int {
				if m.CSeq() > 1 {
					return 200
				}
				p.respond(m, 503, "Retry-After: 100 (maintenance)")
				return 0
			}
			c := p.call(bob, alice)
			c.subscribe(200)
			c.wantNotify("active;expires=3600", "first")
			time.Sleep(99 * time.Second)
			settle()
			c.wantSilence()
			time.Sleep(time.Second + 10*time.Millisecond)
			settle()
			c.wantNotify("active;expires=3500", "first")
		})
	})
}

// EV-29: one NOTIFY in flight; what changes meanwhile collapses into the next.
func TestCoalescing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		p.notify = func(*sip.Message) int { return 0 }
		c := p.call(bob, alice)
		c.subscribe(200)
		first := c.wantNotify("active;expires=3600", "first")
		for i := range 50 {
			r.set(alice, active(fmt.Sprint("state ", i)))
		}
		c.wantSilence()
		p.respond(first, 200)
		settle()
		if n := c.wantNotify("active;expires=3600", "state 49"); n.CSeq() != 2 {
			t.Errorf("CSeq %d", n.CSeq())
		}
		p.notify = nil
	})
}

// Updates between shards that were not read yet are replaced by newer ones;
// nothing replaces the end.
func TestMailboxKeepsTheNewest(t *testing.T) {
	b := mailbox{index: map[SinkRef]int{}}
	x, y := SinkRef{ID: 1}, SinkRef{ID: 2}
	var replaced uint64
	for _, u := range []Update{
		{To: x, State: Active},
		{To: y, State: Pending},
		{To: x, State: Pending},
		{To: x, State: Terminated, Retrying: true},
		{To: x, State: Active, Reason: "newest"},
		{To: y, State: Terminated, Reason: Rejected},
		{To: y, State: Active},
	} {
		replaced += b.put(u)
	}
	if len(b.updates) != 2 || replaced != 5 || b.updates[0].Reason != "newest" || b.updates[1].State != Terminated {
		t.Errorf("%d replaced, left %+v", replaced, b.updates)
	}
}

func TestPacing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		c := p.call(bob, alice)
		c.subscribe(200, "Event: presence.winfo", "-Accept") // its interval is 5 s
		c.wantNotify("active;expires=3600", "first")
		time.Sleep(20 * time.Second)
		start := time.Now()
		for i := range 14 {
			r.set(alice, active(fmt.Sprint(i)))
			time.Sleep(900 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		settle()
		var got []string
		for n := c.notified(); n != nil; n = c.notified() {
			got = append(got, fmt.Sprintf("%v %s", n.At.Sub(start).Round(100*time.Millisecond), n.Body()))
		}
		if want := []string{"0s 0", "5s 5", "10s 11", "15s 13"}; !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	})
}

// Where a NOTIFY goes (RFC 3261 section 12.2.1.1).
func TestNotifyRoute(t *testing.T) {
	nat := netip.MustParseAddrPort("203.0.113.5:1024")
	home := netip.MustParseAddrPort("192.0.2.33:5060")
	for _, c := range []struct {
		name    string
		from    netip.AddrPort // where the SUBSCRIBE comes from
		headers []string
		resolve map[string]sip.Flow
		to      netip.AddrPort
		uri     string
		route   string
	}{
		{
			name: "CORE-11 loose route", from: proxyAddr, to: proxyAddr, uri: "sip:phone@192.0.2.1:5070",
			headers: []string{"Record-Route: <sip:192.0.2.7;lr>, <sip:p2.example.org;lr>"}, route: "<sip:192.0.2.7;lr>, <sip:p2.example.org;lr>",
		},
		{
			name: "CORE-11 strict route", from: proxyAddr, to: proxyAddr, uri: "sip:192.0.2.7",
			headers: []string{"Record-Route: <sip:192.0.2.7>, <sip:p2.example.org;lr>"}, route: "<sip:p2.example.org;lr>, <sip:phone@192.0.2.1:5070>",
		},
		{
			name: "CORE-11 strict route alone", from: proxyAddr, to: proxyAddr, uri: "sip:192.0.2.7",
			headers: []string{"Record-Route: <sip:192.0.2.7>"}, route: "<sip:phone@192.0.2.1:5070>",
		},
		{
			name: "CORE-11 a route at another port", from: proxyAddr, to: netip.MustParseAddrPort("192.0.2.7:5099"), uri: "sip:phone@192.0.2.1:5070",
			headers: []string{"Record-Route: <sip:192.0.2.7:5099;lr>"}, route: "<sip:192.0.2.7:5099;lr>",
		},
		{
			name: "CORE-11 through a proxy that does not record: the Contact", from: proxyAddr, to: phoneAddr, uri: "sip:phone@192.0.2.1:5070",
			headers: []string{"Via: SIP/2.0/UDP 192.0.2.7;branch=z9hG4bKp, SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bKx"},
		},
		{
			name: "CORE-11 no rport, another port than sent-by: the Contact", from: nat, to: home, uri: "sip:phone@192.0.2.33",
			headers: []string{"Via: SIP/2.0/UDP 203.0.113.5:5060;branch=z9hG4bKx", "Contact: <sip:phone@192.0.2.33>"},
		},
		{
			name: "NAT-01 rport: back to the source", from: nat, to: nat, uri: "sip:phone@10.0.0.5:5060",
			headers: []string{"Via: SIP/2.0/UDP 10.0.0.5:5060;rport;branch=z9hG4bKx", "Contact: <sip:phone@10.0.0.5:5060>"},
		},
		{
			name: "NAT-01 sent from the sent-by port: back to the source", from: phoneAddr, to: phoneAddr, uri: "sip:phone@10.0.0.5:5060",
			headers: []string{"Via: SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bKx", "Contact: <sip:phone@10.0.0.5:5060>"},
		},
		{
			name: "DNS-01 a name in the route is looked up", from: proxyAddr, to: home, uri: "sip:phone@192.0.2.1:5070", route: "<sip:p1.example.org;lr>",
			headers: []string{"Record-Route: <sip:p1.example.org;lr>"}, resolve: map[string]sip.Flow{"sip:p1.example.org;lr": {Local: serverAddr, Remote: home}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				net := newNet(t)
				r := newRig(t, net, serverAddr, func(o *Options) {
					o.Resolve = func(_ context.Context, uri string) ([]sip.Flow, error) {
						time.Sleep(300 * time.Millisecond)
						f, ok := c.resolve[uri]
						if !ok {
							return nil, errors.New("no such host")
						}
						return []sip.Flow{f}, nil
					}
				})
				p := newPhone(t, net, c.from)
				there := p
				if c.to != c.from {
					there = newPhone(t, net, c.to)
				}
				call := p.call(bob, alice)
				headers := c.headers
				if !slices.ContainsFunc(headers, func(h string) bool { return strings.HasPrefix(h, "Contact") }) {
					headers = append(slices.Clone(headers), "Contact: <sip:phone@192.0.2.1:5070>")
				}
				p.send(call.text(headers...))
				time.Sleep(time.Second)
				settle()
				for range 2 {
					n := there.take(func(m *sip.Message) bool { return m.IsRequest() })
					if n == nil {
						t.Fatal("no NOTIFY")
					}
					if string(n.RequestURI()) != c.uri || header(n, sip.HdrRoute) != c.route || n.Flow.Remote != serverAddr {
						t.Errorf("\n%s\nwant %s, Route %s", n.Raw, c.uri, c.route)
					}
					r.set(alice, active("second"))
				}
			})
		})
	}
}

// The SUBSCRIBE of a connection is answered and notified on that connection and
// on no other. When it is gone, only a Contact at the very address that the
// SUBSCRIBE came from is tried, less and less often; for anybody else the state
// waits for a SUBSCRIBE on a new connection, and not for ever (WS-01).
func TestConnectionGone(t *testing.T) {
	contactFlow := sip.Flow{Proto: sip.TCP, Local: serverAddr, Remote: netip.MustParseAddrPort("192.0.2.1:5071")}
	for _, c := range []struct {
		name, contact string
		proto         sip.Proto
		fallback      bool
		later         bool // the transport finds out later that it cannot send
		back          bool // the watcher comes back in time
	}{
		{name: "the same address", contact: "sip:phone@192.0.2.1:5071;transport=tcp", proto: sip.TCP, fallback: true},
		{name: "the same address, connection refused", contact: "sip:phone@192.0.2.1:5071;transport=tcp", proto: sip.TCP, fallback: true, later: true},
		{name: "behind NAT", contact: "sip:phone@10.0.0.5:5071;transport=tcp", proto: sip.TCP},
		{name: "behind NAT, back in time", contact: "sip:phone@10.0.0.5:5071;transport=tcp", proto: sip.TCP, back: true},
		{name: "a name", contact: "sip:phone@client.example.org;transport=tcp", proto: sip.TCP},
		{name: "WS-01 a browser", contact: "sip:phone@df7jal23ls0d.invalid;transport=ws", proto: sip.WSS},
		{name: "WS-01 a browser that reconnects", contact: "sip:phone@df7jal23ls0d.invalid;transport=ws", proto: sip.WSS, back: true},
		{name: "TLS", contact: "sip:phone@192.0.2.1:5071;transport=tls", proto: sip.TLS},
	} {
		t.Run("OB-02 "+c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRig(t, newNet(t), serverAddr, func(o *Options) {
					o.Resolve = func(_ context.Context, uri string) ([]sip.Flow, error) {
						t.Errorf("%s was looked up", uri)
						return nil, errors.New("no")
					}
				})
				conn := sip.Flow{Proto: c.proto, Local: serverAddr, Remote: phoneAddr, Conn: 7}
				var mu sync.Mutex // of what follows
				live := conn
				var notifies []*sip.Message
				var tries []time.Duration
				start := time.Now()
				r.wire.next = senderFunc(func(f sip.Flow, b []byte, token uint64) error {
					m := parse(t, b)
					mu.Lock()
					defer mu.Unlock()
					switch {
					case !m.IsRequest():
						return nil
					case f == live:
						notifies = append(notifies, m)
						return nil
					case f == contactFlow && c.fallback:
						tries = append(tries, time.Since(start))
						if c.later {
							r.Failed(sip.ClientID(token), sip.ErrFlowGone)
							return errLater
						}
					case f != conn:
						t.Errorf("NOTIFY on %v", f)
					}
					return sip.ErrFlowGone
				})
				p := &phone{t: t, addr: phoneAddr}
				calls++
				call := p.call(bob, alice)
				send := func(flow sip.Flow, headers ...string) {
					m := sip.NewMessage()
					if err := m.Parse([]byte(call.text(append(headers, "Contact: <"+c.contact+">", "Via: SIP/2.0/"+c.proto.String()+" 192.0.2.1:5071;branch=z9hG4bK"+fmt.Sprint(call.cseq))...)), true); err != nil {
						t.Fatal(err)
					}
					m.Flow = flow
					r.Receive(m)
					settle()
				}
				unlocked := func(f func()) {
					mu.Unlock()
					defer mu.Lock()
					f()
				}
				confirm := func() {
					ok := sip.NewMessage()
					if err := ok.Parse(sip.AppendBody(sip.AppendResponse(nil, notifies[len(notifies)-1], 200, "", ""), "", nil), true); err != nil {
						t.Fatal(err)
					}
					unlocked(func() {
						r.Receive(ok)
						settle()
					})
				}
				send(conn)
				mu.Lock()
				defer mu.Unlock()
				if len(notifies) != 1 {
					t.Fatalf("%d NOTIFYs on the connection", len(notifies))
				}
				confirm()
				call.toTag = string(notifies[0].From().Tag())
				live = sip.Flow{}
				start = time.Now()
				unlocked(func() {
					r.set(alice, active("second"))
					time.Sleep(4 * time.Minute)
					settle()
				})
				if r.Stats().Subscriptions.Load() != 1 {
					t.Fatal("forgotten too early")
				}
				if c.fallback != (len(tries) > 0) || len(tries) > 15 {
					t.Errorf("tried the Contact %d times: %v", len(tries), tries[:min(len(tries), 20)])
				}
				if c.back {
					live = conn
					live.Conn = 8
					call.cseq++
					unlocked(func() { send(live) })
					if len(notifies) != 2 || string(notifies[1].Body()) != "second" || notifies[1].CSeq() != notifies[0].CSeq()+1 {
						t.Fatalf("after the return: %d NOTIFYs", len(notifies))
					}
					confirm()
				}
				unlocked(func() {
					time.Sleep(2 * time.Minute)
					settle()
				})
				want := int64(0)
				if c.back || c.fallback {
					want = 1
				}
				if n := r.Stats().Subscriptions.Load(); n != want {
					t.Errorf("%d subscriptions, want %d", n, want)
				}
			})
		})
	}
}

// CORE-10, WS-01: the Contact of the 200 and of the NOTIFY by the transport, and
// sips when the SUBSCRIBE said so.
func TestContactByTransport(t *testing.T) {
	for _, c := range []struct {
		name    string
		proto   sip.Proto
		uri     string
		headers []string
		want    string
	}{
		{"TCP", sip.TCP, "sip:", nil, "<sip:192.0.2.9:5060;transport=tcp>"},
		{"TLS", sip.TLS, "sip:", nil, "<sip:192.0.2.9:5060;transport=tls>"},
		{"TLS, sips in the Request-URI", sip.TLS, "SIPS:", nil, "<sips:192.0.2.9:5060>"},
		{"TLS, sips in Contact", sip.TLS, "sip:", []string{"Contact: <sips:bob@192.0.2.1>"}, "<sips:192.0.2.9:5060>"},
		{"TLS, sips in the top Record-Route", sip.TLS, "sip:", []string{"Record-Route: <sips:p1.example.org;lr>, <sip:p2.example.org;lr>"}, "<sips:192.0.2.9:5060>"},
		{
			"TLS, sips in Contact behind a Record-Route", sip.TLS, "sip:", []string{"Record-Route: <sip:p1.example.org;lr>", "Contact: <sips:bob@192.0.2.1>"},
			"<sip:192.0.2.9:5060;transport=tls>",
		},
		{"TCP from a proxy that ended the TLS", sip.TCP, "sips:", nil, "<sip:192.0.2.9:5060;transport=tcp>"},
		{"WS", sip.WS, "sip:", []string{"Contact: <sip:bob@df7jal23ls0d.invalid;transport=ws>"}, "<sip:192.0.2.9:5060;transport=ws>"},
		{"WSS", sip.WSS, "sip:", []string{"Contact: <sip:bob@df7jal23ls0d.invalid;transport=ws>"}, "<sip:192.0.2.9:5060;transport=ws>"},
		{"WSS, sips in the Request-URI", sip.WSS, "sips:", nil, "<sips:192.0.2.9:5060;transport=ws>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRig(t, newNet(t), serverAddr, nil)
				conn := sip.Flow{Proto: c.proto, Local: serverAddr, Remote: phoneAddr, Conn: 7}
				var sent []*sip.Message
				r.wire.next = senderFunc(func(f sip.Flow, b []byte, _ uint64) error {
					if f != conn {
						t.Errorf("sent on %+v", f)
					}
					sent = append(sent, parse(t, b))
					return nil
				})
				p := &phone{t: t, addr: phoneAddr}
				text := p.call(bob, alice).text(append(c.headers, "Via: SIP/2.0/"+c.proto.String()+" df7jal23ls0d.invalid;branch=z9hG4bK1")...)
				m := sip.NewMessage()
				if err := m.Parse([]byte(strings.Replace(text, "SUBSCRIBE sip:", "SUBSCRIBE "+c.uri, 1)), true); err != nil {
					t.Fatal(err)
				}
				m.Flow = conn
				r.Receive(m)
				settle()
				if len(sent) != 2 {
					t.Fatalf("%d messages", len(sent))
				}
				for _, m := range sent {
					wantHeader(t, m, sip.HdrContact, c.want)
				}
				if v := sent[1].Via(); sent[1].Method() != sip.NOTIFY || string(v.Transport) != c.proto.String() {
					t.Errorf("%s", sent[1].Raw)
				}
			})
		})
	}
}

type senderFunc func(f sip.Flow, b []byte, token uint64) error

func (s senderFunc) Send(f sip.Flow, b []byte, token uint64) error { return s(f, b, token) }

// A refresh that arrives while a name is looked up decides where NOTIFYs go,
// not the look-up for the target before it.
func TestRefreshDuringLookup(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNet(t)
		r := newRig(t, net, serverAddr, func(o *Options) {
			o.Resolve = func(context.Context, string) ([]sip.Flow, error) {
				time.Sleep(2 * time.Second)
				return []sip.Flow{{Local: serverAddr, Remote: proxyAddr}}, nil
			}
		})
		old, p := newPhone(t, net, proxyAddr), newPhone(t, net, phoneAddr)
		c := old.call(bob, alice)
		c.subscribe(200, "Contact: <sip:phone@client.example.org>", "Via: SIP/2.0/UDP 192.0.2.7;branch=z9hG4bK1, SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bK2")
		time.Sleep(time.Second)
		c.p = p
		c.subscribe(200)
		time.Sleep(5 * time.Second)
		settle()
		c.wantNotify("active;expires=3599", "first")
		c.wantSilence()
		if n := old.take(func(m *sip.Message) bool { return m.IsRequest() }); n != nil {
			t.Errorf("sent where the target was before\n%s", n.Raw)
		}
		r.set(alice, active("second"))
		c.wantNotify("active;expires=3595", "second")
	})
}

func TestUnsentNotify(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		fails := 2
		r.wire.fail = func(_ sip.Flow, m *sip.Message) error {
			if m.IsRequest() && fails > 0 {
				fails--
				return errors.New("network is unreachable")
			}
			return nil
		}
		c := p.call(bob, alice)
		c.subscribe(200)
		c.wantSilence()
		time.Sleep(3100 * time.Millisecond)
		settle()
		step(t, "CORE-12 the CSeq is taken back", func(t *testing.T) {
			if n := c.wantNotify("active;expires=3597", "first"); n.CSeq() != 1 {
				t.Errorf("CSeq %d", n.CSeq())
			}
		})
		r.set(alice, active("second"))
		c.wantNotify("active;expires=3597", "second")
		fails = 1000
		step(t, "a terminated subscription is given up", func(t *testing.T) {
			r.set(alice, Update{State: Terminated, Reason: NoResource})
			time.Sleep(time.Minute)
			if n := r.Stats().Subscriptions.Load(); n != 0 {
				t.Errorf("%d left", n)
			}
		})
		r.wire.fail = nil
		r.empty()
	})
}

// The transport finds out later that a NOTIFY was not sent (Runtime.Failed).
func TestNotifyFailedLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		next := r.wire.next
		lost := true
		r.wire.next = senderFunc(func(f sip.Flow, b []byte, token uint64) error {
			if token != 0 && lost {
				lost = false
				r.Failed(sip.ClientID(token), errors.New("connection refused"))
				return errLater
			}
			return next.Send(f, b, token)
		})
		c := p.call(bob, alice)
		c.subscribe(200)
		c.wantSilence()
		time.Sleep(1100 * time.Millisecond)
		settle()
		if n := c.wantNotify("active;expires=3599", "first"); n.CSeq() != 1 {
			t.Errorf("CORE-12 CSeq %d: the first did not leave", n.CSeq())
		}
		c.subscribe(200, "Expires: 0")
		c.notified()
		r.empty()
	})
}

// A message that makes a component panic is answered 500; what it had begun
// does not stay, and the shard goes on.
func TestPanic(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		r.src.panics = true
		p.call(bob, alice).subscribe(500)
		pub := p.call(alice, alice)
		pub.method = "PUBLISH"
		pub.subscribe(200)
		r.src.panics = false
		if n := r.Stats().Panics.Load(); n != 2 {
			t.Errorf("%d panics counted", n)
		}
		p.call(bob, alice).subscribe(200)
		step(t, "a body that cannot be rendered", func(t *testing.T) {
			c := p.call(bob, alice)
			c.subscribe(200)
			c.wantNotify("active;expires=3600", "first")
			r.set(alice, Update{State: Active, View: brokenView{}})
			r.set(alice, active("whole again"))
			time.Sleep(2 * time.Second)
			settle()
			c.wantNotify("active;expires=3599", "whole again")
		})
		r.src.panics = true // they are expected
	})
}

type brokenView struct{}

func (brokenView) Render([]byte, View) ([]byte, string) { panic("Render") }

func TestSilentSource(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, p := phoneRig(t, nil)
		r.src.silent = true
		c := p.call(bob, alice)
		text := c.text()
		p.send(text)
		p.send(text)
		if m := c.answer(); m != nil {
			t.Fatalf("CORE-07: provisional or early\n%s", m.Raw)
		}
		c.wantTrying()
		time.Sleep(7*time.Second + 10*time.Millisecond)
		settle()
		if m := c.answer(); m == nil || m.Status() != 504 {
			t.Fatalf("EV-14: %v", m)
		}
		r.empty()
	})
}

func TestOverload(t *testing.T) {
	send := func(r *rig, p *phone, text string) {
		m := sip.NewMessage()
		if err := m.Parse([]byte(text), false); err != nil {
			t.Fatal(err)
		}
		m.Flow = sip.Flow{Proto: sip.UDP, Local: serverAddr, Remote: p.addr}
		r.Receive(m)
	}
	t.Run("a full mailbox: 503 with Retry-After to new work, silence to the rest", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r, p := phoneRig(t, nil)
			c := p.call(bob, alice)
			c.subscribe(200)
			first := c.wantNotify("active;expires=3600", "first")
			block := make(chan struct{})
			r.Post(ShardOf(alice), func(*Turn) { <-block })
			settle()
			c2 := p.call(bob, alice)
			for range mailboxLimit {
				send(r, p, c2.text("To: <"+alice+">;tag="+c.toTag))
			}
			var tags []string
			c3 := p.call(bob, alice)
			text := c3.text()
			for range 2 {
				p.send(text)
				m := c3.answer()
				if m == nil || m.Status() != 503 || retryAfter(m) < 5*time.Second || retryAfter(m) > 10*time.Second {
					t.Fatalf("%v", m)
				}
				tags = append(tags, string(m.To().Tag()))
			}
			if tags[0] != tags[1] || tags[0] == "" {
				t.Errorf("CORE-08: tags %q", tags)
			}
			c3.toTag = ""
			if m := c.ask(); m != nil {
				t.Errorf("a refresh was answered\n%s", m.Raw)
			}
			if n := r.Stats().Overload.Load(); n != 3 {
				t.Errorf("%d counted", n)
			}
			p.respond(first, 200)
			settle()
			close(block)
			settle()
			c3.subscribe(200)
		})
	})
	t.Run("a full mailbox: responses, and requests on a connection", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r, p := phoneRig(t, nil)
			p.notify = func(*sip.Message) int { return 0 }
			c := p.call(bob, alice)
			c.subscribe(200)
			n := c.wantNotify("active;expires=3600", "first")
			block := make(chan struct{})
			r.Post(ShardOf(alice), func(*Turn) { <-block })
			settle()
			o := p.call(bob, alice)
			for range mailboxLimit {
				send(r, p, o.text("To: <"+alice+">;tag="+c.toTag))
			}
			p.respond(n, 200)
			settle()
			for text, status := range map[string]int{c.text(): 503, strings.ReplaceAll(p.call(bob, alice).text(), "SUBSCRIBE", "ACK"): 0} {
				m := sip.NewMessage()
				if err := m.Parse([]byte(strings.ReplaceAll(text, "/UDP", "/TCP")), true); err != nil {
					t.Fatal(err)
				}
				m.Flow = sip.Flow{Proto: sip.TCP, Local: serverAddr, Remote: phoneAddr, Conn: 1}
				r.Receive(m)
				settle()
				m = p.take(func(m *sip.Message) bool { return !m.IsRequest() })
				if status == 0 && m != nil || status != 0 && (m == nil || m.Status() != status) {
					t.Errorf("%v, want %d", m, status)
				}
			}
			close(block)
			time.Sleep(time.Minute)
			if r.Stats().NotifyOK.Load() != 1 || r.Stats().Subscriptions.Load() != 1 {
				t.Error("the answer to the NOTIFY was dropped")
			}
		})
	})
	const refusedAtOnce = 20500
	t.Run("too much waits in all: new work is refused, what is there goes on", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r, p := phoneRig(t, nil)
			c := p.call(bob, alice)
			c.subscribe(200)
			c.wantNotify("active;expires=3600", "first")
			var blocks []chan struct{}
			for i := range Shards {
				block := make(chan struct{})
				blocks = append(blocks, block)
				r.Post(uint8(i), func(*Turn) { <-block })
			}
			settle()
			for i := range backlogFirst {
				send(r, p, p.call(bob, fmt.Sprintf("sip:u%d@example.com", i)).text())
			}
			settle()
			if n := r.Stats().Overload.Load(); n != 0 {
				t.Fatalf("%d refused before the bound", n)
			}
			for range refusedAtOnce {
				send(r, p, p.call(bob, alice).text())
			}
			settle()
			refused := 0
			for p.take(func(m *sip.Message) bool { return m.Status() == 503 }) != nil {
				refused++
			}
			if n := r.Stats().Overload.Load(); n != refusedAtOnce || refused != refusedAtOnce {
				t.Errorf("%d counted, %d answered", n, refused)
			}
			send(r, p, c.text()) // a refresh
			send(r, p, c.text("Expires: 0"))
			settle()
			m := sip.NewMessage()
			if err := m.Parse([]byte(p.call(bob, alice).text()), false); err != nil {
				t.Fatal(err)
			}
			m.Flow, m.Crowded = sip.Flow{Proto: sip.UDP, Local: serverAddr, Remote: p.addr}, true
			for proto, want := range map[sip.Proto]sip.Verdict{sip.UDP: sip.Drop, sip.TCP: sip.Reject} {
				m.Flow.Proto = proto
				if v := r.Admit(m); v != want {
					t.Errorf("in a crowd over %v: %d, want %d", proto, v, want)
				}
			}
			r.Stats().Overload.Add(^uint64(1)) // these two
			if n := r.Stats().Overload.Load(); n != refusedAtOnce {
				t.Error("a refresh was refused")
			}
			for _, b := range blocks {
				close(b)
			}
			settle()
			for p.take(func(m *sip.Message) bool { return m.Status() == 200 && string(m.CallID()) != c.id }) != nil {
				refused++
			}
			if refused != refusedAtOnce+backlogFirst {
				t.Errorf("%d of those that were let in got no answer", refusedAtOnce+backlogFirst-refused)
			}
			if n := r.Stats().Subscriptions.Load(); n != backlogFirst {
				t.Errorf("%d subscriptions", n)
			}
		})
	})
	t.Run("what has waited too long", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r, p := phoneRig(t, nil)
			old := p.call(bob, alice)
			m := sip.NewMessage()
			if err := m.Parse([]byte(old.text()), false); err != nil {
				t.Fatal(err)
			}
			m.Flow, m.At = sip.Flow{Proto: sip.UDP, Local: serverAddr, Remote: p.addr}, time.Now().Add(-maxWait-time.Millisecond)
			r.Receive(m)
			settle()
			if m := old.answer(); m == nil || m.Status() != 503 || r.Stats().Subscriptions.Load() != 0 {
				t.Errorf("%v", m)
			}
		})
	})
	t.Run("MaxPerShard", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r, p := phoneRig(t, func(o *Options) { o.MaxPerShard = 2 })
			for range 2 {
				p.call(bob, alice).subscribe(200)
			}
			m := p.call(bob, alice).subscribe(503)
			wantHeader(t, m, sip.HdrRetryAfter, "60")
			if r.Stats().Overload.Load() != 1 {
				t.Error("not counted")
			}
		})
	})
}

// Do, Each and Stop return, whatever happened to the runtime.
func TestStopTwice(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, _ := phoneRig(t, nil)
		for range 2 {
			if err := r.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		}
		r.stopped = true
		r.Do(alice, func(*Turn) { t.Error("run") })
		r.Each(func(*Turn) { t.Error("run") })
		synctest.Wait()
	})
}
