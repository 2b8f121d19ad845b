package e2e

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"rollcall/e2e/peer"
)

// ua sends and receives raw messages over UDP. It answers NOTIFYs when it
// reads them.
type ua struct {
	t      testing.TB
	conn   *net.UDPConn
	server *net.UDPAddr
	n      int
	seen   map[string]bool // branches of NOTIFYs
	queue  []peer.Trace    // NOTIFYs not asked for yet
	mute   bool            // does not answer NOTIFYs
}

var uaSerial atomic.Int64

func newUA(t testing.TB, server string) *ua {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadBuffer(4 << 20)
	t.Cleanup(func() { conn.Close() })
	addr, err := net.ResolveUDPAddr("udp4", server)
	if err != nil {
		t.Fatal(err)
	}
	return &ua{t: t, conn: conn, server: addr, seen: make(map[string]bool)}
}

// dialog is what a request repeats of its dialog.
type dialog struct {
	user, target, callID, tag, to string
	cseq                          int
}

func (u *ua) dialog(user, target string) *dialog {
	s := uaSerial.Add(1)
	return &dialog{user: user, target: target, callID: fmt.Sprintf("call-%d-%d", s, time.Now().UnixNano()), tag: fmt.Sprintf("t%d", s), to: "<" + target + ">"}
}

// request builds a request with the next CSeq of the dialog.
func (u *ua) request(d *dialog, method, uri, body string, headers ...string) []byte {
	d.cseq++
	u.n++
	var b strings.Builder
	local := u.conn.LocalAddr()
	fmt.Fprintf(&b, "%s %s SIP/2.0\r\nVia: SIP/2.0/UDP %s;rport;branch=z9hG4bK%s-%d\r\nMax-Forwards: 70\r\nFrom: <%s>;tag=%s\r\nTo: %s\r\nCall-ID: %s\r\nCSeq: %d %s\r\nContact: <sip:ua@%s>\r\n",
		method, uri, local, d.tag, u.n, d.user, d.tag, d.to, d.callID, d.cseq, method, local)
	for _, h := range headers {
		b.WriteString(h + "\r\n")
	}
	fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(body), body)
	return []byte(b.String())
}

func (u *ua) write(b []byte) {
	if _, err := u.conn.WriteToUDP(b, u.server); err != nil {
		u.t.Helper()
		u.t.Fatal(err)
	}
}

// read gets one message; false at the deadline.
func (u *ua) read(deadline time.Time) (peer.Trace, bool) {
	buf := make([]byte, 65536)
	u.conn.SetReadDeadline(deadline)
	n, _, err := u.conn.ReadFromUDP(buf)
	if err != nil {
		return peer.Trace{}, false
	}
	m := peer.Trace{Raw: buf[:n]}
	if m.IsRequest("NOTIFY") {
		if !u.mute {
			u.write(answer(m, "200 OK"))
		}
		if via := m.Header("Via"); !u.seen[via] {
			u.seen[via] = true
			u.queue = append(u.queue, m)
		}
	}
	return m, true
}

func answer(m peer.Trace, status string) []byte {
	var b strings.Builder
	b.WriteString("SIP/2.0 " + status + "\r\n")
	for _, v := range m.Headers("Via") {
		b.WriteString("Via: " + v + "\r\n")
	}
	fmt.Fprintf(&b, "From: %s\r\nTo: %s\r\nCall-ID: %s\r\nCSeq: %s\r\nContent-Length: 0\r\n\r\n", m.Header("From"), m.Header("To"), m.Header("Call-ID"), m.Header("CSeq"))
	return []byte(b.String())
}

// do sends a request, with retransmissions, and returns its final response.
func (u *ua) do(req []byte) peer.Trace {
	u.t.Helper()
	callID, cseq := peer.Trace{Raw: req}.Header("Call-ID"), peer.Trace{Raw: req}.Header("CSeq")
	for try, wait := 0, 500*time.Millisecond; try < 6; try, wait = try+1, 2*wait {
		u.write(req)
		for end := time.Now().Add(wait); ; {
			m, ok := u.read(end)
			if !ok {
				break
			}
			if m.Status() >= 200 && m.Header("Call-ID") == callID && m.Header("CSeq") == cseq {
				return m
			}
		}
	}
	u.t.Fatalf("no answer to %s", strings.SplitN(string(req), "\r\n", 2)[0])
	return peer.Trace{}
}

// notify waits for the next NOTIFY of a dialog.
func (u *ua) notify(d *dialog, timeout time.Duration) (peer.Trace, bool) {
	for end := time.Now().Add(timeout); ; {
		for i, m := range u.queue {
			if m.Header("Call-ID") == d.callID {
				u.queue = append(u.queue[:i:i], u.queue[i+1:]...)
				return m, true
			}
		}
		if _, ok := u.read(end); !ok {
			return peer.Trace{}, false
		}
	}
}

// subscribe opens a dialog, or refreshes or ends it.
func (u *ua) subscribe(d *dialog, expires int, headers ...string) peer.Trace {
	u.t.Helper()
	headers = append([]string{"Event: presence", fmt.Sprintf("Expires: %d", expires)}, headers...)
	m := u.do(u.request(d, "SUBSCRIBE", d.target, "", headers...))
	if m.Status() == 200 {
		d.to = m.Header("To")
	}
	return m
}

var listHeaders = []string{"Supported: eventlist", "Accept: multipart/related, application/rlmi+xml, application/pidf+xml"}

// publish sends one PUBLISH; etag "" is an initial one.
func (u *ua) publish(uri, etag, body string, expires int) (status int, newTag string) {
	u.t.Helper()
	headers := []string{"Event: presence", fmt.Sprintf("Expires: %d", expires)}
	if body != "" {
		headers = append(headers, "Content-Type: application/pidf+xml")
	}
	if etag != "" {
		headers = append(headers, "SIP-If-Match: "+etag)
	}
	m := u.do(u.request(u.dialog(uri, uri), "PUBLISH", uri, body, headers...))
	return m.Status(), m.Header("SIP-ETag")
}

// TestBadInput sends what must be refused: with the right status, without any
// change of state, without a panic, with one line in the log each.
func TestBadInput(t *testing.T) {
	dir := rfcDocuments(t, map[string]string{
		"resource-lists/users/sip:eve@example.com/index": "<resource-lists xmlns='urn:ietf:params:xml:ns:resource-lists'/>",
		"rls-services/users/sip:eve@example.com/index": `<rls-services xmlns="urn:ietf:params:xml:ns:rls-services"><service uri="sip:broken@example.com"><resource-list>` +
			`http://xcap.example.com/resource-lists/users/sip:eve@example.com/index/~~/resource-lists/list%5b@name=%22none%22%5d</resource-list></service></rls-services>`,
	})
	in := start(t, "--domain", "example.com", "--store", "memory", "--presence-auth", "open", "--xcap", dir, "--xcap-root", "http://xcap.example.com")
	u := newUA(t, in.addr)
	joe, doc := "sip:joe@example.com", string(pidf("sip:joe@example.com", "open", "safe"))
	status, tag := u.publish(joe, "", doc, 600)
	if status != 200 {
		t.Fatalf("PUBLISH: %d", status)
	}
	watch := u.dialog("sip:adam@example.com", joe)
	u.subscribe(watch, 600)
	if n, ok := u.notify(watch, 5*time.Second); !ok || describe(n.Body()) != "open: safe" {
		t.Fatalf("no state: %s", n.Raw)
	}
	sub := func(target string, headers ...string) func() []byte {
		return func() []byte {
			return u.request(u.dialog("sip:bill@example.com", target), "SUBSCRIBE", target, "", headers...)
		}
	}
	pub := func(body string, headers ...string) func() []byte {
		return func() []byte { return u.request(u.dialog(joe, joe), "PUBLISH", joe, body, headers...) }
	}
	cut := func(f func() []byte, from, to string) func() []byte {
		return func() []byte { return bytes.Replace(f(), []byte(from), []byte(to), 1) }
	}
	event, typ := "Event: presence", "Content-Type: application/pidf+xml"
	for _, c := range []struct {
		name   string
		req    func() []byte
		status int
		header string // must be in the answer
	}{
		{"PUB-01 malformed XML", pub("<presence><tuple>", event, typ), 400, ""},
		{"PUB-01 other root", pub("<html/>", event, typ), 400, ""},
		{"PUB-01 entity expansion", pub(`<!DOCTYPE a [<!ENTITY b "c">]><presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:joe@example.com">&b;</presence>`, event, typ), 400, ""},
		{"PUB-01 no body", pub("", event), 400, ""},
		{"PUB-01 other type", pub("hello", event, "Content-Type: text/plain"), 415, "Accept"},
		{"CORE-05 encoding", pub(doc, event, typ, "Content-Encoding: br"), 415, "Accept-Encoding"},
		{"PUB-05 stale tag", pub(doc, event, typ, "SIP-If-Match: stale"), 412, ""},
		{"PUB-01 two tags", pub(doc, event, typ, "SIP-If-Match: a, b"), 400, ""},
		{"EV-05 brief", pub(doc, event, typ, "Expires: 5"), 423, "Min-Expires"},
		{"EV-03 unknown event", pub(doc, "Event: weather", typ), 489, "Allow-Events"},
		{"PUB-09 for somebody else", func() []byte {
			return u.request(u.dialog("sip:eve@example.com", joe), "PUBLISH", joe, doc, event, typ)
		}, 403, ""},
		{"PUB-01 not our domain", func() []byte {
			return u.request(u.dialog("sip:x@example.net", "sip:x@example.net"), "PUBLISH", "sip:x@example.net", doc, event, typ)
		}, 404, ""},
		{"CORE-20 body cut short", func() []byte {
			b := pub(doc, event, typ)()
			return b[:len(b)-40]
		}, 400, ""},
		{"EV-03 no event", sub(joe), 489, "Allow-Events"},
		{"EV-03 unknown event", sub(joe, "Event: weather"), 489, "Allow-Events"},
		{"EV-04 no acceptable type", sub(joe, event, "Accept: text/plain"), 406, ""},
		{"EV-05 brief", sub(joe, event, "Expires: 10"), 423, "Min-Expires"},
		{"bad Expires", sub(joe, event, "Expires: soon"), 400, ""},
		{"CORE-04 unknown extension", sub(joe, event, "Require: time-travel"), 420, "Unsupported"},
		{"RQ-01 recipient list", sub(joe, event, "Require: recipient-list-subscribe"), 420, "Unsupported"},
		{"CORE-02 scheme", sub("mailto:joe@example.com", event), 416, ""},
		{"no Contact", cut(sub(joe, event), "Contact:", "X-Contact:"), 400, ""},
		{"CORE-08 no Call-ID", cut(sub(joe, event), "Call-ID:", "X-Call-ID:"), 400, ""},
		{"bad CSeq", cut(sub(joe, event), "CSeq: 1 SUBSCRIBE", "CSeq: one SUBSCRIBE"), 400, ""},
		{"CORE-13 unknown dialog", cut(sub(joe, event), "To: <sip:joe@example.com>", "To: <sip:joe@example.com>;tag=00112233445566"), 481, ""},
		{"EV-20 unknown NOTIFY", func() []byte {
			return u.request(u.dialog(joe, joe), "NOTIFY", joe, "", event, "Subscription-State: active")
		}, 481, ""},
		{"RL-02 no eventlist", sub("sip:marketing@example.com", event), 421, "Require"},
		{"RL-04 no multipart", sub("sip:marketing@example.com", event, "Supported: eventlist", "Accept: application/pidf+xml"), 406, "Accept"},
		{"LS-08 broken reference", sub("sip:broken@example.com", append([]string{event}, listHeaders...)...), 502, ""},
		{"CORE-01 INVITE", func() []byte { return u.request(u.dialog(joe, joe), "INVITE", joe, "") }, 405, "Allow"},
		{"CORE-01 unknown method", func() []byte { return u.request(u.dialog(joe, joe), "FROB", joe, "") }, 501, "Allow"},
		{"SIP version", cut(sub(joe, event), " SIP/2.0\r\n", " SIP/3.0\r\n"), 505, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			u.t = t
			before := strings.Count(in.Log(), "\n")
			req := c.req()
			if c.status == 0 {
				u.write(req)
			} else if m := u.do(req); m.Status() != c.status || c.header != "" && m.Header(c.header) == "" {
				t.Errorf("answer to\n%s\nis\n%s\nwant %d with %s", req, m.Raw, c.status, c.header)
			}
			peer.Eventually(t, 3*time.Second, "a log line", func() bool { return strings.Count(in.Log(), "\n") > before })
			if lines := strings.Count(in.Log(), "\n") - before; lines != 1 {
				t.Errorf("%d log lines, want 1", lines)
			}
		})
		time.Sleep(110 * time.Millisecond) // the log takes ten lines a second of such
	}
	u.t = t
	// RL-07 needs an owner: under "open" any watcher may see the list, so the list that does not exist is just a presentity.
	if n, ok := u.notify(watch, 100*time.Millisecond); ok {
		t.Errorf("refused requests changed state: %s", n.Raw)
	}
	if status, _ := u.publish(joe, tag, "", 600); status != 200 {
		t.Errorf("the publication is not what it was: refresh got %d", status)
	}
	if got := in.metric("rollcall_dialog_subscriptions"); got != 1 {
		t.Errorf("%v subscriptions, want 1", got)
	}
	// Garbage of all kinds is dropped without an answer or a panic.
	for _, g := range []string{"", "\r\n\r\n", "hello", "\x00\x01\x02", "SIP/2.0 200 OK\r\n\r\n", "SUBSCRIBE\r\n\r\n", strings.Repeat("A", 65000), "SUBSCRIBE sip:a SIP/2.0\r\nVia: \r\n\r\n"} {
		u.write([]byte(g))
	}
	if a := u.subscribe(watch, 600); a.Status() != 200 {
		t.Errorf("refresh after garbage: %d", a.Status())
	}
	if _, ok := u.notify(watch, 5*time.Second); !ok {
		t.Error("no NOTIFY after garbage")
	}
	in.clean()
}

// TestUntrustedPeer: nobody speaks for a user from an address that is not
// trusted.
func TestUntrustedPeer(t *testing.T) {
	in := start(t, "--domain", "example.com", "--store", "memory", "--trust", "192.0.2.0/24")
	u := newUA(t, in.addr)
	if status, _ := u.publish("sip:joe@example.com", "", string(pidf("sip:joe@example.com", "open", "x")), 600); status != 403 {
		t.Errorf("PUBLISH: %d, want 403", status)
	}
	if a := u.subscribe(u.dialog("sip:adam@example.com", "sip:joe@example.com"), 600); a.Status() != 403 {
		t.Errorf("SUBSCRIBE: %d, want 403", a.Status())
	}
}

// TestListAppears: a URI that was a presentity becomes a list while it is
// watched. The nature of a subscription never changes (RL-09), so its watcher
// is sent away to come back at once (EV-31).
func TestListAppears(t *testing.T) {
	dir := documents(t, nil)
	in := start(t, "--domain", "example.com", "--store", "memory", "--presence-auth", "open", "--xcap", dir)
	u := newUA(t, in.addr)
	const uri = "sip:late@example.com"
	d := u.dialog("sip:adam@example.com", uri)
	if a := u.subscribe(d, 600, listHeaders...); a.Status() != 200 || a.Header("Require") != "" {
		t.Fatalf("SUBSCRIBE to a presentity: %s", a.Raw)
	}
	if n, ok := u.notify(d, 5*time.Second); !ok || n.ContentType() != "application/pidf+xml" {
		t.Fatalf("not a presentity's NOTIFY: %s", n.Raw)
	}
	put(t, dir, "rls-services/global/index", service(uri, "sip:joe@example.com"))
	n, ok := u.notify(d, 5*time.Second)
	if state, p := n.SubscriptionState(); !ok || state != "terminated" || p["reason"] != "deactivated" {
		t.Fatalf("Subscription-State is %q, want terminated;reason=deactivated", n.Header("Subscription-State"))
	}
	d = u.dialog("sip:adam@example.com", uri)
	if a := u.subscribe(d, 600, listHeaders...); a.Status() != 200 || a.Header("Require") != "eventlist" {
		t.Fatalf("SUBSCRIBE to the list: %s", a.Raw)
	}
	n, _ = u.notify(d, 5*time.Second)
	v := newView(t, uri)
	v.apply(n)
	if !v.holds(map[string]string{"sip:joe@example.com": "active closed"}) {
		t.Errorf("list is %v", v.state)
	}
	u.subscribe(d, 0)
	u.notify(d, 5*time.Second)
	in.idle()
}
