package peer

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// notifier is a minimal list server on UDP: onSubscribe is called for each SUBSCRIBE and sends what it likes.
type notifier struct {
	conn *net.UDPConn
	cseq int
}

func startNotifier(t *testing.T, onSubscribe func(n *notifier, req Trace, from *net.UDPAddr)) string {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		n := &notifier{conn: conn}
		buf := make([]byte, 65536)
		for {
			k, from, err := conn.ReadFromUDP(buf)
			if err != nil {
				return
			}
			if m := (Trace{Raw: bytes.Clone(buf[:k])}); m.IsRequest("SUBSCRIBE") {
				onSubscribe(n, m, from)
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return conn.LocalAddr().String()
}

func (n *notifier) answer(req Trace, to *net.UDPAddr, status, more string) {
	tag := ""
	if !strings.Contains(req.Header("To"), "tag=") {
		tag = ";tag=rls"
	}
	n.send(to, fmt.Sprintf("SIP/2.0 %s\r\nVia: %s\r\nFrom: %s\r\nTo: %s%s\r\nCall-ID: %s\r\nCSeq: %s\r\n%sContact: <sip:%s>\r\nContent-Length: 0\r\n\r\n",
		status, req.Header("Via"), req.Header("From"), req.Header("To"), tag, req.Header("Call-ID"), req.Header("CSeq"), more,
		n.conn.LocalAddr()))
}

// notify sends a NOTIFY and takes its answer: a list server has one in flight.
func (n *notifier) notify(req Trace, to *net.UDPAddr, state, contentType, body string) {
	n.sendNotify(req, to, state, contentType, body)
	n.waitAnswer()
}

func (n *notifier) sendNotify(req Trace, to *net.UDPAddr, state, contentType, body string) {
	n.cseq++
	target := strings.Trim(req.Header("Contact"), "<>")
	from := req.Header("To")
	if !strings.Contains(from, "tag=") {
		from += ";tag=rls"
	}
	n.send(to, fmt.Sprintf("NOTIFY %s SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=z9hG4bK%d\r\nMax-Forwards: 70\r\nFrom: %s\r\nTo: %s\r\nCall-ID: %s\r\nCSeq: %d NOTIFY\r\n"+
		"Event: presence\r\nRequire: eventlist\r\nSubscription-State: %s\r\nContact: <sip:%s>\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
		target, n.conn.LocalAddr(), n.cseq, from, req.Header("From"), req.Header("Call-ID"), n.cseq, state, n.conn.LocalAddr(),
		contentType, len(body), body))
}

func (n *notifier) waitAnswer() {
	buf := make([]byte, 65536)
	for {
		k, _, err := n.conn.ReadFromUDP(buf)
		if m := (Trace{Raw: buf[:k]}); err != nil || m.Method() == "NOTIFY" && m.CSeq() == uint32(n.cseq) {
			return
		}
	}
}

func (n *notifier) send(to *net.UDPAddr, text string) { _, _ = n.conn.WriteToUDP([]byte(text), to) }

const (
	eventlist = "Require: eventlist\r\nExpires: 60\r\n"
	multipart = `multipart/related;type="application/rlmi+xml";start="<root@example.com>";boundary=b1`
)

func TestSIPpWatchesList(t *testing.T) {
	// A large body with what could upset a reader of the trace: its own head line, colons, empty lines.
	large := "--b1\r\n" + strings.Repeat("UDP message received [5] bytes :\r\n\r\n[keyword] $1\r\n", 900) + "--b1--\r\n"
	server := startNotifier(t, func(n *notifier, req Trace, from *net.UDPAddr) {
		switch {
		case req.Header("Expires") == "0":
			n.answer(req, from, "200 OK", eventlist)
			n.notify(req, from, "terminated;reason=timeout", multipart, "end")
		case req.CSeq() == 1:
			// The first NOTIFY overtakes the answer.
			n.sendNotify(req, from, "active;expires=60", multipart, large)
			n.answer(req, from, "200 OK", eventlist)
			n.waitAnswer()
			n.notify(req, from, "active;expires=60", multipart, "two")
			n.notify(req, from, "active;expires=60", multipart, "three")
		default:
			n.answer(req, from, "200 OK", eventlist)
			n.notify(req, from, "active;expires=60", multipart, "refreshed")
		}
	})
	all := Watch(t, WatchOptions{
		SIPpOptions: SIPpOptions{Server: server}, URI: "sip:friends@example.com", From: "sip:alice@example.com",
		WantRequire: "eventlist", ContentType: "application/resource-lists+xml", Body: []byte("<resource-lists/>"),
		Headers: []string{"Require: recipient-list-subscribe", "X-Odd: call_id \\n"},
		Phases:  []WatchPhase{{Expires: 60, Notifies: 3}, {Expires: 60, Until: "refreshed"}, Unsubscribe()},
	})
	var bodies []string
	for _, m := range Notifies(all) {
		if m.ContentType() != multipart {
			t.Errorf("Content-Type %q", m.ContentType())
		}
		bodies = append(bodies, string(m.Body()))
	}
	want := []string{large, "two", "three", "refreshed", "end"}
	if fmt.Sprint(bodies) != fmt.Sprint(want) {
		t.Errorf("bodies are %.200q", bodies)
	}
	first := Requests(all, true, "SUBSCRIBE")[0]
	for name, want := range map[string]string{
		"Supported": "eventlist", "Accept": DefaultAccept, "Require": "recipient-list-subscribe", "X-Odd": "call_id \\n",
	} {
		if got := first.Header(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if string(first.Body()) != "<resource-lists/>" {
		t.Errorf("body %q", first.Body())
	}
	if n := len(Responses(all, true, "NOTIFY")); n != 5 {
		t.Errorf("%d answers to NOTIFYs, want 5", n)
	}
}

func TestSIPpFails(t *testing.T) {
	for name, status := range map[string]string{
		"refused": "403 Forbidden", "no Require": "200 OK",
	} {
		t.Run(name, func(t *testing.T) {
			server := startNotifier(t, func(n *notifier, req Trace, from *net.UDPAddr) {
				n.answer(req, from, status, "Expires: 60\r\n")
				if status == "200 OK" {
					n.notify(req, from, "active", multipart, "")
				}
			})
			start := time.Now()
			got := failure(t, func(t testing.TB) {
				Watch(t, WatchOptions{
					SIPpOptions: SIPpOptions{Server: server}, URI: "sip:friends@example.com", From: "sip:alice@example.com",
					WantRequire: "eventlist", Phases: []WatchPhase{{Expires: 60}},
				})
			})
			if !strings.Contains(got, "received SIP/2.0 "+status) {
				t.Errorf("failed with %s", got)
			}
			if time.Since(start) > 5*time.Second {
				t.Errorf("failed after %v", time.Since(start))
			}
		})
	}
	t.Run("silence", func(t *testing.T) {
		server := startNotifier(t, func(*notifier, Trace, *net.UDPAddr) {})
		failure(t, func(t testing.TB) {
			Watch(t, WatchOptions{
				SIPpOptions: SIPpOptions{Server: server, Timeout: time.Second}, URI: "sip:friends@example.com",
				From: "sip:alice@example.com", Phases: []WatchPhase{{Expires: 60}},
			})
		})
	})
}

func TestSofiaWatchesList(t *testing.T) {
	large := "--b1\r\n" + strings.Repeat("\x7f \"quoted\" \\ line\r\n", 2200) + "--b1--\r\n"
	server := startNotifier(t, func(n *notifier, req Trace, from *net.UDPAddr) {
		n.answer(req, from, "200 OK", "Require: eventlist\r\nExpires: "+req.Header("Expires")+"\r\n")
		if req.Header("Expires") == "0" {
			n.notify(req, from, "terminated;reason=timeout", multipart, "end")
			return
		}
		n.notify(req, from, "active;expires=60", multipart, large)
		n.notify(req, from, "active;expires=60", multipart, "two")
	})
	s := StartSofia(t, SofiaOptions{AOR: "sip:alice@example.com", Server: server})
	sub, a := s.Subscribe(SofiaSubscribe{
		URI: "sip:friends@example.com", ContentType: "application/resource-lists+xml", Body: []byte("<resource-lists/>"),
	})
	if a.Status != 200 || a.Message.Header("Require") != "eventlist" {
		t.Errorf("SUBSCRIBE: %d %s\n%s", a.Status, a.Phrase, a.Message.Raw)
	}
	for _, want := range []string{large, "two"} {
		m := sub.WaitNotify(nil, soon)
		if string(m.Body()) != want || m.ContentType() != multipart || m.Header("Require") != "eventlist" {
			t.Errorf("NOTIFY:\n%.600s", m.Raw)
		}
	}
	sub.Unsubscribe()
	if m := sub.WaitNotify(nil, soon); !state("terminated")(m) {
		t.Errorf("NOTIFY:\n%s", m.Raw)
	}
}
