package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"rollcall/sip"
)

const patience = 5 * time.Second

// buffer is written by commands and read by tests.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// session is a command under way.
type session struct {
	t         *testing.T
	out, errw buffer
	interrupt context.CancelFunc
	done      chan int
}

// begin runs a command in the process.
func begin(t *testing.T, args ...string) *session {
	t.Helper()
	return beginInput(t, "", args...)
}

func beginInput(t *testing.T, input string, args ...string) *session {
	ctx, cancel := context.WithCancel(t.Context())
	s := &session{t: t, interrupt: cancel, done: make(chan int, 1)}
	go func() {
		s.done <- run(ctx, append([]string{"rollcall"}, args...), strings.NewReader(input), &s.out, &s.errw)
	}()
	t.Cleanup(func() {
		cancel()
		if t.Failed() {
			t.Logf("%v\nstdout:\n%.3000s\nstderr:\n%.3000s", args, s.out.String(), s.errw.String())
		}
	})
	return s
}

// wait gives the exit code.
func (s *session) wait() int {
	s.t.Helper()
	select {
	case code := <-s.done:
		s.done <- code
		return code
	case <-time.After(4 * patience):
		s.t.Fatal("the command does not end")
		return -1
	}
}

// execute runs a command to its end.
func execute(t *testing.T, args ...string) (code int, out, errw string) {
	t.Helper()
	s := begin(t, args...)
	code = s.wait()
	return code, s.out.String(), s.errw.String()
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

// lines decodes JSON lines.
func lines(t *testing.T, text string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for l := range strings.Lines(text) {
		var m map[string]any
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatalf("%v in %q", err, l)
		}
		out = append(out, m)
	}
	return out
}

// peer is a scripted server on UDP. It compares and writes bytes.
type peer struct {
	t    *testing.T
	conn *net.UDPConn
	to   *net.UDPAddr // who wrote last
	seen map[string]bool
}

func newPeer(t *testing.T) *peer {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &peer{t: t, conn: conn, seen: make(map[string]bool)}
}

func (p *peer) addr() string { return p.conn.LocalAddr().String() }

// read gives the next datagram.
func (p *peer) read(limit time.Duration) (string, bool) {
	p.t.Helper()
	b := make([]byte, 65536)
	p.conn.SetReadDeadline(time.Now().Add(limit))
	n, from, err := p.conn.ReadFromUDP(b)
	if err != nil {
		return "", false
	}
	p.to = from
	return string(b[:n]), true
}

// expect reads a message whose first line begins with start. Retransmissions
// of requests are passed over.
func (p *peer) expect(start string) string {
	p.t.Helper()
	for {
		m, ok := p.read(patience)
		if !ok {
			p.t.Fatalf("no %q came", start)
		}
		if strings.HasPrefix(m, start) {
			if !strings.HasPrefix(start, "SIP/2.0") {
				p.seen[m] = true
			}
			return m
		}
		if !p.seen[m] {
			p.t.Fatalf("want %q, got\n%s", start, m)
		}
	}
}

// send writes a message; lines may end in LF alone.
func (p *peer) send(text string) {
	p.t.Helper()
	if _, err := p.conn.WriteToUDP([]byte(crlf(text)), p.to); err != nil {
		p.t.Fatal(err)
	}
}

// crlf ends header lines properly and leaves the body alone.
func crlf(text string) string {
	head, body, ok := strings.Cut(text, "\n\n")
	if !ok {
		return strings.ReplaceAll(text, "\n", "\r\n")
	}
	return strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n" + body
}

// field gives a header field's value.
func field(m, name string) string {
	for l := range strings.Lines(m) {
		if n, v, ok := strings.Cut(l, ":"); ok && strings.EqualFold(n, name) {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// tagOf gives the tag of a From or To value.
func tagOf(v string) string {
	_, tag, _ := strings.Cut(v, ";tag=")
	return tag
}

// answer writes the response to a request; extra are whole header lines.
func answer(req, status, toTag string, extra ...string) string {
	to := field(req, "To")
	if tagOf(to) == "" && toTag != "" {
		to += ";tag=" + toTag
	}
	s := fmt.Sprintf("SIP/2.0 %s\nVia: %s\nFrom: %s\nTo: %s\nCall-ID: %s\nCSeq: %s\n", status, field(req, "Via"), field(req, "From"), to,
		field(req, "Call-ID"), field(req, "CSeq"))
	for _, l := range extra {
		s += l + "\n"
	}
	return s + "Content-Length: 0\n\n"
}

var branches int

// notification writes a NOTIFY within the dialog of a SUBSCRIBE.
func (p *peer) notification(sub, tag string, cseq int, substate, contentType, body string, extra ...string) string {
	branches++
	contact, _ := sip.ParseNameAddr([]byte(field(sub, "Contact")))
	from, _ := sip.ParseNameAddr([]byte(field(sub, "To")))
	s := fmt.Sprintf("NOTIFY %s SIP/2.0\nVia: SIP/2.0/UDP %s;branch=z9hG4bKn%d\nMax-Forwards: 70\nFrom: <%s>;tag=%s\nTo: %s\nCall-ID: %s\nCSeq: %d NOTIFY\n"+
		"Contact: <sip:server@%s>\nEvent: %s\nSubscription-State: %s\n", contact.URI, p.addr(), branches, from.URI, tag, field(sub, "From"),
		field(sub, "Call-ID"), cseq, p.addr(), field(sub, "Event"), substate)
	for _, l := range extra {
		s += l + "\n"
	}
	if body != "" {
		s += "Content-Type: " + contentType + "\n"
	}
	return s + fmt.Sprintf("Content-Length: %d\n\n%s", len(body), body)
}

const pidfOpen = `<?xml version="1.0"?><presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:bob@example.com"><tuple id="a"><status><basic>open</basic></status><note>Here</note></tuple></presence>`

// multipart writes a list body: RLMI and a PIDF part per cid.
func multipart(rlmi string, parts map[string]string) (contentType, body string) {
	var b strings.Builder
	part := func(cid, ctype, text string) {
		fmt.Fprintf(&b, "--bb\r\nContent-Transfer-Encoding: binary\r\nContent-ID: <%s>\r\nContent-Type: %s\r\n\r\n%s\r\n", cid, ctype, text)
	}
	part("root@x", "application/rlmi+xml;charset=\"UTF-8\"", rlmi)
	for cid, text := range parts {
		part(cid, "application/pidf+xml", text)
	}
	b.WriteString("--bb--\r\n")
	return `multipart/related;type="application/rlmi+xml";start="<root@x>";boundary=bb`, b.String()
}

func pidfOf(basic, note string) string {
	return fmt.Sprintf(`<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:x@example.com"><tuple id="a"><status><basic>%s</basic></status><note>%s</note></tuple></presence>`, basic, note)
}

// normal replaces what changes from run to run in printed text.
func normal(s string) string {
	s = regexp.MustCompile(`\d\d:\d\d:\d\d(\.\d{3})?`).ReplaceAllStringFunc(s, func(m string) string {
		if len(m) > 8 {
			return "HH:MM:SS.mmm"
		}
		return "HH:MM:SS"
	})
	return s
}
