package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"rollcall/sip"
)

// A subscription from end to end against a peer that answers late, sends the
// NOTIFY first, records a route and repeats itself.
func TestWatchDialog(t *testing.T) {
	p := newPeer(t)
	s := begin(t, "watch", "sip:bob@example.com", "--server", "sip:"+p.addr(), "--from", "sip:alice@example.com", "--json")

	first := p.expect("SUBSCRIBE sip:bob@example.com SIP/2.0\r\n")
	for name, want := range map[string]string{
		"To": "<sip:bob@example.com>", "Max-Forwards": "70", "Event": "presence", "Expires": "600", "Supported": "eventlist",
		"Accept": "application/pidf+xml, application/rlmi+xml, multipart/related", "CSeq": "1 SUBSCRIBE", "Content-Length": "0",
		"Contact": "<sip:rollcall@" + p.to.String() + ">",
	} {
		if got := field(first, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	from := field(first, "From")
	if !strings.HasPrefix(from, "<sip:alice@example.com>;tag=") || len(tagOf(from)) < 16 {
		t.Errorf("From: %q", from)
	}
	via := field(first, "Via")
	if !strings.HasPrefix(via, "SIP/2.0/UDP "+p.to.String()+";branch=z9hG4bK") || !strings.HasSuffix(via, ";rport") {
		t.Errorf("CORE-09, NAT-02: Via: %q", via)
	}
	// CORE-17: timer E sends the same bytes again.
	if again, _ := p.read(2 * time.Second); again != first {
		t.Fatalf("retransmission:\n%s", again)
	}

	// EV-19: the NOTIFY may come before the 200 and makes the dialog.
	rr := []string{"Record-Route: <sip:" + p.addr() + ";lr;x=1>", "Record-Route: <sip:192.0.2.7;lr>"}
	notify := p.notification(first, "srv", 10, "active;expires=500", "application/pidf+xml", pidfOpen, rr...)
	p.send(notify)
	ok := p.expect("SIP/2.0 200 OK\r\n")
	if field(ok, "CSeq") != "10 NOTIFY" || field(ok, "To") != from || field(ok, "Via") != field(notify, "Via") {
		t.Errorf("response to NOTIFY:\n%s", ok)
	}
	// CORE-16: a repeated NOTIFY gets the same bytes and is no news.
	p.send(notify)
	if again := p.expect("SIP/2.0 200 OK\r\n"); again != ok {
		t.Errorf("second response differs:\n%s\n%s", ok, again)
	}
	p.send(answer(first, "200 OK", "srv", "Expires: 600", "Contact: <sip:server@"+p.addr()+">"))

	// CORE-13: a CSeq that goes back.
	p.send(p.notification(first, "srv", 9, "active;expires=500", "application/pidf+xml", pidfOpen))
	p.expect("SIP/2.0 500 CSeq Out Of Order\r\n")
	// EV-21: another dialog of a fork. EV-20: another Call-ID, another event.
	p.send(p.notification(first, "fork", 11, "active;expires=500", "application/pidf+xml", pidfOpen))
	p.expect("SIP/2.0 481 ")
	p.send(p.notification(strings.Replace(first, "Call-ID: ", "Call-ID: x", 1), "srv", 11, "active;expires=500", "", ""))
	p.expect("SIP/2.0 481 ")
	p.send(strings.Replace(p.notification(first, "srv", 11, "active;expires=500", "", ""), "Event: presence", "Event: presence;id=2", 1))
	p.expect("SIP/2.0 481 ")
	p.send("INVITE sip:x SIP/2.0\nVia: SIP/2.0/UDP " + p.addr() + ";branch=z9hG4bKi\nFrom: <sip:a@b>;tag=1\nTo: <sip:x>\nCall-ID: q\nCSeq: 1 INVITE\nContent-Length: 0\n\n")
	if no := p.expect("SIP/2.0 405 "); field(no, "Allow") != "NOTIFY, OPTIONS" {
		t.Errorf("CORE-01:\n%s", no)
	}

	// Ctrl-C: a SUBSCRIBE within the dialog (CORE-11, CORE-12).
	eventually(t, "the first line", func() bool { return strings.Count(s.out.String(), "\n") == 1 })
	s.interrupt()
	last := p.expect("SUBSCRIBE sip:server@" + p.addr() + " SIP/2.0\r\n")
	for name, want := range map[string]string{
		"From": from, "To": "<sip:bob@example.com>;tag=srv", "Call-ID": field(first, "Call-ID"), "CSeq": "2 SUBSCRIBE", "Expires": "0",
		"Route": "<sip:" + p.addr() + ";lr;x=1>",
	} {
		if got := field(last, name); got != want {
			t.Errorf("un-subscribe, %s: %q, want %q", name, got, want)
		}
	}
	if !strings.Contains(last, "Route: <sip:"+p.addr()+";lr;x=1>\r\nRoute: <sip:192.0.2.7;lr>\r\n") {
		t.Errorf("EV-19: route set in the order of the NOTIFY:\n%s", last)
	}
	p.send(answer(last, "200 OK", "srv", "Expires: 0"))
	p.send(p.notification(last, "srv", 12, "terminated;reason=timeout", "", ""))
	p.expect("SIP/2.0 200 OK\r\n")
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	got := lines(t, s.out.String())
	if len(got) != 2 {
		t.Fatalf("%d NOTIFYs printed", len(got))
	}
	delete(got[0], "time")
	if want := fmt.Sprint(map[string]any{
		"uri": "sip:bob@example.com", "event": "presence", "state": "active", "reason": "", "expires": 500.0,
		"cseq": 10.0, "content_type": "application/pidf+xml", "basic": "open", "note": "Here",
	}); fmt.Sprint(got[0]) != want {
		t.Errorf("got %v\nwant %s", got[0], want)
	}
	if got[1]["state"] != "terminated" || got[1]["reason"] != "timeout" || got[1]["expires"] != nil {
		t.Errorf("got %v", got[1])
	}
}

func TestStrictRoute(t *testing.T) {
	p := newPeer(t)
	s := begin(t, "watch", "sip:bob@example.com", "--server", p.addr(), "--count", "1")
	sub := p.expect("SUBSCRIBE ")
	p.send(answer(sub, "200 OK", "srv", "Expires: 600", "Contact: <sip:server@"+p.addr()+">"))
	p.send(p.notification(sub, "srv", 1, "active;expires=600", "", "", "Record-Route: <sip:"+p.addr()+">, <sip:192.0.2.7;lr>"))
	p.expect("SIP/2.0 200")
	last := p.expect("SUBSCRIBE sip:" + p.addr() + " SIP/2.0\r\n")
	if !strings.Contains(last, "Route: <sip:192.0.2.7;lr>\r\nRoute: <sip:server@"+p.addr()+">\r\n") {
		t.Errorf("CORE-11:\n%s", last)
	}
	p.send(answer(last, "200 OK", "srv", "Expires: 0"))
	p.send(p.notification(last, "srv", 2, "terminated;reason=timeout", "", ""))
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestWatchExitCodes(t *testing.T) {
	tests := []struct {
		name, status string
		extra        []string
		code         int
		text         string
	}{
		{"not found", "404 Not Found", nil, 3, "rollcall: refused: 404 Not Found\n"},
		{"forbidden", "403 Forbidden", nil, 1, "rollcall: refused: 403 Forbidden\n"},
		{"bad event", "489 Bad Event", []string{"Warning: 399 x \"no such package\""}, 1, "rollcall: refused: 489 Bad Event (399 x \"no such package\")\n"},
		{"server error", "503 Service Unavailable", nil, 1, "rollcall: refused: 503 Service Unavailable\n"},
		{"control characters", "603 No\x1b[31m", nil, 1, "rollcall: refused: 603 No [31m\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPeer(t)
			s := begin(t, "watch", "sip:bob@example.com", "--server", p.addr())
			p.send(answer(p.expect("SUBSCRIBE "), tt.status, "x", tt.extra...))
			if code := s.wait(); code != tt.code || s.errw.String() != tt.text {
				t.Errorf("exit code %d, %q", code, s.errw.String())
			}
		})
	}
	t.Run("silent server", func(t *testing.T) {
		p := newPeer(t)
		code, _, text := execute(t, "watch", "sip:bob@example.com", "--server", p.addr(), "--timeout", "300ms")
		if code != 4 || text != "rollcall: no answer from "+p.addr()+": timeout\n" {
			t.Errorf("exit code %d, %q", code, text)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Skip("the system does not tell")
		}
		p := newPeer(t)
		p.conn.Close()
		for _, transport := range []string{"udp", "tcp"} {
			server := "sip:" + p.addr() + ";transport=" + transport
			code, _, text := execute(t, "watch", "sip:bob@example.com", "--server", server)
			if code != 4 || text != "rollcall: no answer from "+server+": connection refused\n" {
				t.Errorf("exit code %d, %q", code, text)
			}
		}
	})
	t.Run("EV-18 no NOTIFY", func(t *testing.T) {
		p := newPeer(t)
		s := begin(t, "watch", "sip:bob@example.com", "--server", p.addr(), "--timeout", "300ms")
		p.send(answer(p.expect("SUBSCRIBE "), "200 OK", "srv", "Expires: 600", "Contact: <sip:server@"+p.addr()+">"))
		p.send(answer(p.expect("SUBSCRIBE "), "200 OK", "srv", "Expires: 0")) // it tidies up
		if code := s.wait(); code != 1 || !strings.Contains(s.errw.String(), "no NOTIFY came within 300ms") {
			t.Errorf("exit code %d, %q", code, s.errw.String())
		}
	})
	t.Run("EV-12 rejected and noresource", func(t *testing.T) {
		for reason, want := range map[string]int{"rejected": 1, "noresource": 3, "invariant": 1} {
			p := newPeer(t)
			s := begin(t, "watch", "sip:bob@example.com", "--server", p.addr())
			sub := p.expect("SUBSCRIBE ")
			p.send(answer(sub, "200 OK", "srv", "Expires: 600", "Contact: <sip:server@"+p.addr()+">"))
			p.send(p.notification(sub, "srv", 1, "terminated;reason="+reason, "", ""))
			p.expect("SIP/2.0 200")
			if code := s.wait(); code != want {
				t.Errorf("%s: exit code %d", reason, code)
			}
		}
	})
	t.Run("EV-10 poll", func(t *testing.T) {
		p := newPeer(t)
		s := begin(t, "watch", "sip:bob@example.com", "--server", p.addr(), "--expires", "0")
		sub := p.expect("SUBSCRIBE ")
		if field(sub, "Expires") != "0" {
			t.Errorf("Expires: %q", field(sub, "Expires"))
		}
		p.send(answer(sub, "200 OK", "srv", "Expires: 0", "Contact: <sip:server@"+p.addr()+">"))
		p.send(p.notification(sub, "srv", 1, "terminated;reason=timeout", "application/pidf+xml", pidfOpen))
		p.expect("SIP/2.0 200")
		if code := s.wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}

func TestWatchIntervalTooBrief(t *testing.T) {
	p := newPeer(t)
	s := begin(t, "watch", "sip:bob@example.com", "--server", p.addr(), "--expires", "5", "--count", "1")
	p.send(answer(p.expect("SUBSCRIBE "), "423 Interval Too Brief", "x", "Min-Expires: 60"))
	sub := p.expect("SUBSCRIBE ")
	if field(sub, "Expires") != "60" {
		t.Errorf("EV-05: Expires %q", field(sub, "Expires"))
	}
	p.send(answer(sub, "200 OK", "srv", "Expires: 60", "Contact: <sip:server@"+p.addr()+">"))
	p.send(p.notification(sub, "srv", 1, "active;expires=60", "application/pidf+xml", pidfOpen))
	p.expect("SIP/2.0 200")
	last := p.expect("SUBSCRIBE ")
	p.send(p.notification(last, "srv", 2, "terminated;reason=timeout", "", ""))
	p.send(answer(last, "200 OK", "srv", "Expires: 0"))
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A refresh goes out before expiry; when the server has lost the dialog a new
// one is opened (EV-17).
func TestWatchRefresh(t *testing.T) {
	p := newPeer(t)
	s := begin(t, "watch", "sip:bob@example.com", "--server", p.addr(), "--expires", "2")
	sub := p.expect("SUBSCRIBE ")
	p.send(answer(sub, "200 OK", "srv", "Expires: 2", "Contact: <sip:server@"+p.addr()+">"))
	p.send(p.notification(sub, "srv", 1, "active;expires=2", "application/pidf+xml", pidfOpen))
	p.expect("SIP/2.0 200")
	began := time.Now()
	again := p.expect("SUBSCRIBE sip:server@")
	if d := time.Since(began); d > 1950*time.Millisecond || d < time.Second {
		t.Errorf("refreshed after %v", d)
	}
	if field(again, "Call-ID") != field(sub, "Call-ID") || field(again, "CSeq") != "2 SUBSCRIBE" || field(again, "Expires") != "2" {
		t.Errorf("refresh:\n%s", again)
	}
	p.send(answer(again, "481 Subscription Does Not Exist", "srv"))
	fresh := p.expect("SUBSCRIBE sip:bob@example.com ")
	if field(fresh, "Call-ID") == field(sub, "Call-ID") || field(fresh, "From") == field(sub, "From") || field(fresh, "To") != "<sip:bob@example.com>" || field(fresh, "CSeq") != "1 SUBSCRIBE" {
		t.Errorf("new subscription:\n%s", fresh)
	}
	p.send(p.notification(sub, "srv", 2, "active;expires=2", "", "")) // of the old dialog
	p.expect("SIP/2.0 481 ")
	p.send(answer(fresh, "200 OK", "srv2", "Expires: 600", "Contact: <sip:server@"+p.addr()+">"))
	p.send(p.notification(fresh, "srv2", 1, "terminated;reason=deactivated", "", ""))
	p.expect("SIP/2.0 200")
	// EV-12, but not in a circle at network speed.
	if m, ok := p.read(300 * time.Millisecond); ok {
		t.Errorf("asked again at once:\n%s", m)
	}
	third := p.expect("SUBSCRIBE sip:bob@example.com ")
	s.interrupt()
	p.send(answer(third, "500 Server Internal Error", "x"))
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if text := s.errw.String(); !strings.Contains(text, "note: the subscription is gone (481 Subscription Does Not Exist), opening a new one\n") {
		t.Errorf("notes: %q", text)
	}
}

// RL-24: partial state is applied, a gap is told and full state asked for.
func TestWatchList(t *testing.T) {
	p := newPeer(t)
	s := begin(t, "watch", "sip:friends@example.com", "--server", p.addr())
	sub := p.expect("SUBSCRIBE ")
	p.send(answer(sub, "200 OK", "srv", "Expires: 600", "Contact: <sip:server@"+p.addr()+">", "Require: eventlist"))
	cseq := 0
	notify := func(rlmi string, parts map[string]string) {
		t.Helper()
		cseq++
		ctype, body := multipart(rlmi, parts)
		p.send(p.notification(sub, "srv", cseq, "active;expires=600", ctype, body, "Require: eventlist"))
		p.expect("SIP/2.0 200")
	}
	list := func(version int, full bool, rows string) string {
		return fmt.Sprintf(`<list xmlns="urn:ietf:params:xml:ns:rlmi" uri="sip:friends@example.com" version="%d" fullState="%v">%s</list>`, version, full, rows)
	}
	bob := `<resource uri="sip:bob@example.com"><name>Bob</name><instance id="1" state="active" cid="b"/></resource>`
	carol := `<resource uri="sip:carol@example.com"><instance id="1" state="pending"/></resource>`
	dave := `<resource uri="sip:dave@example.com"/>`
	notify(list(0, true, bob+carol+dave), map[string]string{"b": pidfOf("open", "Here")})
	notify(list(1, false, `<resource uri="sip:carol@example.com"><instance id="1" state="terminated" reason="rejected"/></resource>`), nil)
	notify(list(1, false, bob), map[string]string{"b": pidfOf("closed", "stale")})
	notify(list(4, false, bob), map[string]string{"b": pidfOf("closed", "Gone")})
	again := p.expect("SUBSCRIBE sip:server@") // for full state
	if field(again, "Expires") != "600" || tagOf(field(again, "To")) != "srv" {
		t.Errorf("%s", again)
	}
	p.send(answer(again, "200 OK", "srv", "Expires: 600"))
	notify(list(5, true, bob), map[string]string{"b": pidfOf("open", "Back")})
	eventually(t, "five tables", func() bool { return strings.Count(s.out.String(), "sip:friends@example.com") == 5 })
	s.interrupt()
	last := p.expect("SUBSCRIBE ")
	p.send(answer(last, "200 OK", "srv", "Expires: 0"))
	p.send(p.notification(last, "srv", 100, "terminated;reason=timeout", "", ""))
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	want := `HH:MM:SS.mmm  sip:friends@example.com  active  expires 10m0s  version 0 full  3 members
Buddy                  State    Note  Since
Bob                    open     Here  HH:MM:SS
sip:carol@example.com  pending        HH:MM:SS
sip:dave@example.com   unknown        HH:MM:SS

HH:MM:SS.mmm  sip:friends@example.com  active  expires 10m0s  version 1 partial  3 members
Buddy                  State       Note        Since
Bob                    open        Here        HH:MM:SS
sip:carol@example.com  terminated  (rejected)  HH:MM:SS
sip:dave@example.com   unknown                 HH:MM:SS

HH:MM:SS.mmm  sip:friends@example.com  active  expires 10m0s  version 1 partial  3 members
Buddy                  State       Note        Since
Bob                    open        Here        HH:MM:SS
sip:carol@example.com  terminated  (rejected)  HH:MM:SS
sip:dave@example.com   unknown                 HH:MM:SS

HH:MM:SS.mmm  sip:friends@example.com  active  expires 10m0s  version 4 partial  3 members
Buddy                  State       Note        Since
Bob                    closed      Gone        HH:MM:SS
sip:carol@example.com  terminated  (rejected)  HH:MM:SS
sip:dave@example.com   unknown                 HH:MM:SS

HH:MM:SS.mmm  sip:friends@example.com  active  expires 10m0s  version 5 full  1 member
Buddy  State  Note  Since
Bob    open   Back  HH:MM:SS

HH:MM:SS.mmm  sip:friends@example.com  terminated  reason timeout  version 5 full  1 member

`
	if got := normal(s.out.String()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	notes := "note: list sip:friends@example.com: version 1 after 1, ignored\n" +
		"note: list sip:friends@example.com: version 4 after 1, updates were lost\n"
	if s.errw.String() != notes {
		t.Errorf("notes %q", s.errw.String())
	}
}

func TestWatchNoList(t *testing.T) {
	p := newPeer(t)
	begin(t, "watch", "sip:friends@example.com", "--no-list", "--server", p.addr())
	sub := p.expect("SUBSCRIBE ")
	if field(sub, "Supported") != "" || field(sub, "Accept") != "application/pidf+xml" {
		t.Errorf("%s", sub)
	}
	p.send(answer(sub, "421 Extension Required", "x", "Require: eventlist"))
}

// stream is a scripted server on TCP.
type stream struct {
	t *testing.T
	l net.Listener
	c net.Conn
	r *bufio.Reader
}

func newStream(t *testing.T) *stream {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &stream{t: t, l: l}
}

func (s *stream) accept() {
	s.t.Helper()
	s.l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	c, err := s.l.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patience))
	s.c, s.r = c, bufio.NewReader(c)
}

// expect reads a message without a body.
func (s *stream) expect(start string) string {
	s.t.Helper()
	var b strings.Builder
	for {
		l, err := s.r.ReadString('\n')
		if err != nil {
			s.t.Fatalf("%v after %q", err, b.String())
		}
		b.WriteString(l)
		if l == "\r\n" {
			break
		}
	}
	if !strings.HasPrefix(b.String(), start) {
		s.t.Fatalf("want %q, got\n%s", start, b.String())
	}
	return b.String()
}

// TCP: messages in pieces and several in one, no retransmission, a connection
// that breaks.
func TestWatchTCP(t *testing.T) {
	p := newPeer(t) // writes the texts
	st := newStream(t)
	server := "sip:" + st.l.Addr().String() + ";transport=tcp"
	s := begin(t, "watch", "sip:bob@example.com", "--server", server, "--json")
	st.accept()
	sub := st.expect("SUBSCRIBE sip:bob@example.com ")
	if !strings.HasPrefix(field(sub, "Via"), "SIP/2.0/TCP ") || field(sub, "Contact") != "<sip:rollcall@"+st.c.RemoteAddr().String()+";transport=tcp>" {
		t.Errorf("%s", sub)
	}
	tcp := func(m string) string { return strings.Replace(crlf(m), "SIP/2.0/UDP", "SIP/2.0/TCP", 1) }
	both := "\r\n\r\n" + tcp(answer(sub, "200 OK", "srv", "Expires: 600", "Contact: <sip:server@"+st.l.Addr().String()+";transport=tcp>")) +
		tcp(p.notification(sub, "srv", 1, "active;expires=600", "application/pidf+xml", pidfOpen))
	for len(both) > 0 {
		n := min(97, len(both))
		st.c.Write([]byte(both[:n]))
		both = both[n:]
	}
	st.expect("SIP/2.0 200 OK")
	st.c.Close()

	st.accept()
	again := st.expect("SUBSCRIBE sip:server@")
	if field(again, "Call-ID") != field(sub, "Call-ID") || field(again, "CSeq") != "2 SUBSCRIBE" ||
		field(again, "Contact") != "<sip:rollcall@"+st.c.RemoteAddr().String()+";transport=tcp>" {
		t.Errorf("%s", again)
	}
	st.c.Write([]byte(tcp(answer(again, "200 OK", "srv", "Expires: 600"))))
	st.c.Write([]byte(tcp(p.notification(again, "srv", 2, "active;expires=600", "application/pidf+xml", pidfOpen))))
	st.expect("SIP/2.0 200 OK")
	eventually(t, "two lines", func() bool { return strings.Count(s.out.String(), "\n") == 2 })
	s.interrupt()
	last := st.expect("SUBSCRIBE ")
	st.c.Write([]byte(tcp(answer(last, "200 OK", "srv", "Expires: 0")) + tcp(p.notification(last, "srv", 3, "terminated;reason=timeout", "", ""))))
	st.expect("SIP/2.0 200 OK")
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if text := s.errw.String(); text != "note: connection closed by the server; connecting again\n" {
		t.Errorf("notes %q", text)
	}
}

func TestPublish(t *testing.T) {
	p := newPeer(t)
	s := begin(t, "publish", "sip:bob@example.com", "--status", "open", "--note", "Tea & <cake>", "--server", p.addr(), "--json")
	pub := p.expect("PUBLISH sip:bob@example.com SIP/2.0\r\n")
	if field(pub, "Event") != "presence" || field(pub, "Expires") != "3600" || field(pub, "Content-Type") != "application/pidf+xml" ||
		field(pub, "SIP-If-Match") != "" || !strings.HasPrefix(field(pub, "From"), "<sip:bob@example.com>;tag=") || field(pub, "To") != "<sip:bob@example.com>" {
		t.Errorf("%s", pub)
	}
	if _, body, _ := strings.Cut(pub, "\r\n\r\n"); body != `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+
		`<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:bob@example.com"><tuple id="rollcall"><status><basic>open</basic></status>`+
		`<note>Tea &amp; &lt;cake&gt;</note></tuple></presence>`+"\n" {
		t.Errorf("body %q", body)
	}
	p.send(answer(pub, "200 OK", "x", "SIP-ETag: tag1", "Expires: 1800"))
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	got := lines(t, s.out.String())[0]
	if got["etag"] != "tag1" || got["expires"] != 1800.0 || got["uri"] != "sip:bob@example.com" {
		t.Errorf("%v", got)
	}
}

// PUB-07: refresh and removal have no body; 412 means publishing anew.
func TestPublishKeep(t *testing.T) {
	p := newPeer(t)
	s := begin(t, "publish", "bob@example.com", "--keep", "--status", "closed", "--expires", "1", "--server", p.addr())
	pub := p.expect("PUBLISH ")
	p.send(answer(pub, "423 Interval Too Brief", "x", "Min-Expires: 2"))
	pub = p.expect("PUBLISH ")
	if field(pub, "Expires") != "2" || field(pub, "CSeq") != "2 PUBLISH" {
		t.Errorf("%s", pub)
	}
	p.send(answer(pub, "200 OK", "x", "SIP-ETag: one", "Expires: 1"))
	again := p.expect("PUBLISH ")
	if field(again, "SIP-If-Match") != "one" || field(again, "Content-Length") != "0" || field(again, "Content-Type") != "" || field(again, "CSeq") != "3 PUBLISH" {
		t.Errorf("refresh:\n%s", again)
	}
	p.send(answer(again, "412 Conditional Request Failed", "x"))
	anew := p.expect("PUBLISH ")
	if field(anew, "SIP-If-Match") != "" || field(anew, "Content-Type") == "" {
		t.Errorf("anew:\n%s", anew)
	}
	p.send(answer(anew, "200 OK", "x", "SIP-ETag: two", "Expires: 600"))
	eventually(t, "the second line", func() bool { return strings.Count(s.out.String(), "\n") == 2 })
	s.interrupt()
	gone := p.expect("PUBLISH ")
	if field(gone, "SIP-If-Match") != "two" || field(gone, "Expires") != "0" || field(gone, "Content-Length") != "0" {
		t.Errorf("removal:\n%s", gone)
	}
	p.send(answer(gone, "200 OK", "x", "SIP-ETag: three", "Expires: 0"))
	if code := s.wait(); code != 0 || s.out.String() != "etag one  expires 1\netag two  expires 600\n" {
		t.Errorf("exit code %d, %q", code, s.out.String())
	}
}

func TestPublishRemoveAndFile(t *testing.T) {
	p := newPeer(t)
	s := begin(t, "publish", "sip:bob@example.com", "--remove", "--etag", "abc", "--server", p.addr())
	pub := p.expect("PUBLISH ")
	if field(pub, "SIP-If-Match") != "abc" || field(pub, "Expires") != "0" || field(pub, "Content-Length") != "0" {
		t.Errorf("%s", pub)
	}
	p.send(answer(pub, "412 Conditional Request Failed", "x"))
	if code := s.wait(); code != 1 || s.errw.String() != "rollcall: refused: 412 Conditional Request Failed\n" {
		t.Errorf("exit code %d, %q", code, s.errw.String())
	}

	file := filepath.Join(t.TempDir(), "doc.xml")
	if err := os.WriteFile(file, []byte(pidfOpen), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, "-"} {
		s = beginInput(t, pidfOpen, "publish", "sip:bob@example.com", "--file", name, "--server", p.addr())
		pub = p.expect("PUBLISH ")
		if !strings.HasSuffix(pub, "\r\n\r\n"+pidfOpen) {
			t.Errorf("%s", pub)
		}
		p.send(answer(pub, "404 Not Found", "x"))
		if code := s.wait(); code != 3 {
			t.Errorf("exit code %d", code)
		}
	}
}

func TestPublishEvent(t *testing.T) {
	p := newPeer(t)
	for _, c := range []struct {
		args           []string
		in, event, typ string
		note           string
	}{
		{[]string{"--event", "dialog"}, `<dialog-info xmlns="urn:ietf:params:xml:ns:dialog-info" version="0" state="full" entity="sip:b@c"/>`, "dialog", "application/dialog-info+xml", ""},
		{[]string{"--event", "dialog"}, "<x/>", "dialog", "application/dialog-info+xml", "it is sent all the same"},
		{[]string{"--event", "message-summary"}, "Messages-Waiting: no\r\n", "message-summary", "application/simple-message-summary", ""},
		{[]string{"--event", "message-summary"}, "hello", "message-summary", "application/simple-message-summary", "it is sent all the same"},
		{[]string{"--event", "dialog;sla"}, "anything", "dialog;sla", "application/dialog-info+xml", ""},
		{[]string{"--event", "weather", "--type", "text/plain"}, "rain", "weather", "text/plain", ""},
	} {
		s := beginInput(t, c.in, append([]string{"publish", "sip:bob@example.com", "--file", "-", "--server", p.addr()}, c.args...)...)
		pub := p.expect("PUBLISH ")
		if field(pub, "Event") != c.event || field(pub, "Content-Type") != c.typ || !strings.HasSuffix(pub, "\r\n\r\n"+c.in) {
			t.Errorf("%s", pub)
		}
		p.send(answer(pub, "200 OK", "x", "SIP-ETag: one", "Expires: 60"))
		if code := s.wait(); code != 0 || strings.Contains(s.errw.String(), "all the same") != (c.note != "") {
			t.Errorf("exit code %d, %q", code, s.errw.String())
		}
	}
}

func TestSummary(t *testing.T) {
	for _, c := range []struct{ ctype, body, basic, note string }{
		{"application/pidf+xml", pidfOpen, "open", ""},
		{"application/dialog-info+xml;charset=utf-8", `<dialog-info xmlns="urn:ietf:params:xml:ns:dialog-info"><dialog id="1"><state>early</state></dialog></dialog-info>`, "", "early"},
		{"application/dialog-info+xml", `<dialog-info xmlns="urn:ietf:params:xml:ns:dialog-info"/>`, "", "idle"},
		{"application/dialog-info+xml", "x", "", "not readable: not well-formed XML: line 1: text outside the root element"},
		{"application/simple-message-summary", "Messages-Waiting: yes\r\nVoice-Message: 2/8\r\n", "", "messages waiting, Voice-Message: 2/8"},
		{"application/simple-message-summary", "x", "", "not readable: message summary: line 1: not a name, a colon and a value"},
		{"text/plain", "x", "", ""},
	} {
		basic, note := summary(c.ctype, []byte(c.body))
		if basic != c.basic || !strings.HasPrefix(note, c.note) {
			t.Errorf("%s: %q %q, want %q %q", c.ctype, basic, note, c.basic, c.note)
		}
	}
}

func TestParseServer(t *testing.T) {
	tests := []struct {
		in    string
		proto sip.Proto
		host  string
		port  uint16
		ok    bool
	}{
		{"sip:192.0.2.1", sip.UDP, "192.0.2.1", 5060, true},
		{"192.0.2.1:5080", sip.UDP, "192.0.2.1", 5080, true},
		{"sip:sip.example.com;transport=tcp", sip.TCP, "sip.example.com", 5060, true},
		{"sip:[2001:db8::1]:5070;transport=UDP", sip.UDP, "2001:db8::1", 5070, true},
		{"sip:192.0.2.1;transport=tls", 0, "", 0, false},
		{"sips:192.0.2.1", 0, "", 0, false},
		{"sip:", 0, "", 0, false},
	}
	for _, tt := range tests {
		proto, host, port, err := parseServer(tt.in)
		if (err == nil) != tt.ok || tt.ok && (proto != tt.proto || host != tt.host || port != tt.port) {
			t.Errorf("%s: %v %s %d %v", tt.in, proto, host, port, err)
		}
	}
}

func TestServerOf(t *testing.T) {
	for uri, want := range map[string]string{
		"sip:alice@example.com":                  defaultServer,
		"sip:alice@192.0.2.1":                    "sip:192.0.2.1",
		"sip:alice@192.0.2.1:5070;transport=tcp": "sip:192.0.2.1:5070;transport=tcp",
		"sip:alice@example.com:5070":             "sip:example.com:5070",
		"pres:alice@example.com":                 defaultServer,
		"tel:+1234":                              defaultServer,
	} {
		if got := serverOf(uri); got != want {
			t.Errorf("%s: %s, want %s", uri, got, want)
		}
	}
}
