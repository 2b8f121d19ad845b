package peer

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// SofiaOptions describe a Sofia-SIP user agent.
type SofiaOptions struct {
	AOR           string        // its own address, the From of its requests
	Server        string        // "127.0.0.1:PORT", where all requests go
	Transport     string        // "udp" (default), "tcp" or "tls"
	Certificates  string        // for tls: a folder with cafile.pem and agent.pem (certificate and key)
	AnswerTimeout time.Duration // for the answer to a request; default 10 s
}

// Sofia is a user agent on Sofia-SIP's nua: it publishes, subscribes, refreshes both by itself before they expire, and answers
// NOTIFYs by itself. Its methods must be called from the test's goroutine.
type Sofia struct {
	*Process
	t       testing.TB
	timeout time.Duration
	out     *logBuffer
	parsed  int // bytes of out
	events  []sofiaEvent
	ids     int
}

type sofiaEvent struct {
	Event  string `json:"event"`
	ID     string `json:"id"`
	Status int    `json:"status"`
	Phrase string `json:"phrase"`
	Raw    []byte `json:"raw"`
}

// SofiaAnswer is the final answer to a request. Message.Raw is empty when the stack made the status up (408 after a time-out,
// 503 when nobody listens).
type SofiaAnswer struct {
	Status  int
	Phrase  string
	Message Trace
}

// ETag is the entity-tag of the answer to a PUBLISH.
func (a SofiaAnswer) ETag() string { return a.Message.Header("SIP-ETag") }

// StartSofia compiles the driver when that has not been done yet and starts a user agent.
func StartSofia(t testing.TB, o SofiaOptions) *Sofia {
	t.Helper()
	o.Transport = or(o.Transport, "udp")
	if o.AnswerTimeout == 0 {
		o.AnswerTimeout = 10 * time.Second
	}
	program, err := sofiaProgram()
	if err != nil {
		t.Fatal(err)
	}
	s := &Sofia{t: t, timeout: o.AnswerTimeout, out: newLogBuffer()}
	args := []string{"<" + strings.Trim(o.AOR, "<>") + ">", "sip:" + o.Server + ";transport=" + o.Transport}
	if o.Transport == "tls" {
		args = append(args, "sips:127.0.0.1:*", o.Certificates) // it does not take ;transport=tls here
	} else {
		args = append(args, "sip:127.0.0.1:*;transport="+o.Transport)
	}
	s.Process = Start(t, Command{Path: program, Args: args, Stdout: s.out})
	s.await("ready", "", 0, o.AnswerTimeout)
	return s
}

var sofiaProgram = sync.OnceValues(buildSofia)

func buildSofia() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	source := filepath.Join(root, "e2e", "testdata", "sofia", "sofia_peer.c")
	text, err := os.ReadFile(source)
	if err != nil {
		return "", err
	}
	flags, err := run(20*time.Second, nil, "pkg-config", "--cflags", "--libs", "sofia-sip-ua")
	if err != nil {
		return "", fmt.Errorf("pkg-config does not know sofia-sip-ua; run scripts/setup (%w)\n%s", err, flags)
	}
	args := strings.Fields(string(flags))
	sum := sha256.Sum256(append(bytes.Clone(flags), text...))

	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, fmt.Sprintf("sofia_peer-%x", sum[:8]))
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	tmp, err := os.MkdirTemp(dir, "build")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	built := filepath.Join(tmp, "sofia_peer")
	out, err := run(2*time.Minute, nil, "gcc", append([]string{"-O1", "-Wall", "-o", built, source}, args...)...)
	if err != nil {
		return "", fmt.Errorf("compile %s: %w\n%s", source, err, out)
	}
	// Another test binary may do the same at this moment.
	return program, os.Rename(built, program)
}

// SofiaPublication is one publication.
type SofiaPublication struct {
	s  *Sofia
	id string
}

// Publish publishes a presence document for the agent's own or another address.
func (s *Sofia) Publish(uri string, body []byte, expires int) (*SofiaPublication, SofiaAnswer) {
	s.t.Helper()
	return s.PublishEvent(uri, "presence", "application/pidf+xml", body, expires)
}

// PublishEvent publishes a document of any event package.
func (s *Sofia) PublishEvent(uri, event, contentType string, body []byte, expires int) (*SofiaPublication, SofiaAnswer) {
	s.t.Helper()
	p := &SofiaPublication{s: s, id: s.newID("p")}
	return p, s.ask("published", p.id, "publish", p.id, uri, event, contentType, strconv.Itoa(expires), encode(body))
}

// Modify publishes a new document under the entity-tag of the last answer.
func (p *SofiaPublication) Modify(body []byte, expires int) SofiaAnswer {
	p.s.t.Helper()
	return p.s.ask("published", p.id, "republish", p.id, strconv.Itoa(expires), encode(body))
}

// Refresh prolongs the publication without a body.
func (p *SofiaPublication) Refresh(expires int) SofiaAnswer {
	p.s.t.Helper()
	return p.s.ask("published", p.id, "republish", p.id, strconv.Itoa(expires), "-")
}

// Remove ends the publication.
func (p *SofiaPublication) Remove() SofiaAnswer {
	p.s.t.Helper()
	return p.s.ask("unpublished", p.id, "unpublish", p.id)
}

// SofiaSubscribe describes a subscription.
type SofiaSubscribe struct {
	URI         string
	Event       string // default "presence"
	Accept      string // default DefaultAccept
	Supported   string // default "eventlist"; "-": what Sofia-SIP says by itself
	Expires     int    // seconds; default 60
	ContentType string // of Body
	Body        []byte
}

// SofiaSubscription is one subscription.
type SofiaSubscription struct {
	s     *Sofia
	id    string
	first int // event from which WaitNotify looks on
}

// Subscribe sends a SUBSCRIBE and waits for its answer.
func (s *Sofia) Subscribe(o SofiaSubscribe) (*SofiaSubscription, SofiaAnswer) {
	s.t.Helper()
	n := s.TrySubscribe(o)
	return n, s.answer("subscribed", n.id, n.first)
}

// TrySubscribe sends a SUBSCRIBE.
func (s *Sofia) TrySubscribe(o SofiaSubscribe) *SofiaSubscription {
	s.t.Helper()
	if o.Expires == 0 {
		o.Expires = 60
	}
	s.parse(s.out.bytes())
	n := &SofiaSubscription{s: s, id: s.newID("s"), first: len(s.events)}
	s.send("subscribe", n.id, o.URI, or(o.Event, "presence"), or(o.Accept, DefaultAccept),
		or(o.Supported, "eventlist"), strconv.Itoa(o.Expires), or(o.ContentType, "-"), encode(o.Body))
	return n
}

// Refresh sends a SUBSCRIBE in the dialog.
func (n *SofiaSubscription) Refresh(expires int) SofiaAnswer {
	n.s.t.Helper()
	return n.s.ask("subscribed", n.id, "resubscribe", n.id, strconv.Itoa(expires))
}

// Unsubscribe sends a SUBSCRIBE with Expires: 0 in the dialog. The answer is that to the SUBSCRIBE; the last NOTIFY may come
// before or after it.
func (n *SofiaSubscription) Unsubscribe() SofiaAnswer {
	n.s.t.Helper()
	return n.s.ask("unsubscribed", n.id, "unsubscribe", n.id)
}

// WaitNotify waits for a NOTIFY for which pred is true (nil: any) among those after the one that it returned last, and returns
// it; it fails the test at the deadline.
func (n *SofiaSubscription) WaitNotify(pred func(Trace) bool, timeout time.Duration) Trace {
	n.s.t.Helper()
	var found Trace
	ok := n.s.wait(timeout, func() bool {
		for i, e := range n.s.events[n.first:] {
			m := Trace{Raw: e.Raw}
			if e.Event == "notify" && e.ID == n.id && (pred == nil || pred(m)) {
				found = m
				n.first += i + 1
				return true
			}
		}
		return false
	})
	if !ok {
		n.s.t.Fatalf("sofia: no such NOTIFY within %v; received:\n%s", timeout, n.s.describe())
	}
	return found
}

// Notifies are all NOTIFYs of the subscription so far.
func (n *SofiaSubscription) Notifies() []Trace {
	n.s.parse(n.s.out.bytes())
	var out []Trace
	for _, e := range n.s.events {
		if e.Event == "notify" && e.ID == n.id {
			out = append(out, Trace{Raw: e.Raw})
		}
	}
	return out
}

// Quit ends all subscriptions and publications and then the agent.
func (s *Sofia) Quit() {
	s.t.Helper()
	s.send("quit")
	s.Wait(s.t, s.timeout)
}

func (s *Sofia) newID(kind string) string {
	s.ids++
	return kind + strconv.Itoa(s.ids)
}

func encode(body []byte) string {
	if len(body) == 0 {
		return "-"
	}
	return base64.StdEncoding.EncodeToString(body)
}

func (s *Sofia) send(fields ...string) {
	s.t.Helper()
	if _, err := s.Stdin.Write([]byte(strings.Join(fields, "\t") + "\n")); err != nil {
		s.t.Fatalf("sofia: %v", err)
	}
}

func (s *Sofia) ask(event, id string, fields ...string) SofiaAnswer {
	s.t.Helper()
	s.parse(s.out.bytes())
	from := len(s.events)
	s.send(fields...)
	return s.answer(event, id, from)
}

func (s *Sofia) answer(event, id string, from int) SofiaAnswer {
	s.t.Helper()
	e := s.await(event, id, from, s.timeout)
	return SofiaAnswer{Status: e.Status, Phrase: e.Phrase, Message: Trace{Raw: e.Raw}}
}

func (s *Sofia) await(event, id string, from int, timeout time.Duration) sofiaEvent {
	s.t.Helper()
	var found sofiaEvent
	ok := s.wait(timeout, func() bool {
		for _, e := range s.events[from:] {
			if e.Event == "error" {
				found = e
				return true
			}
			if e.Event == event && e.ID == id && (e.Status >= 200 || event == "ready") {
				found = e
				return true
			}
		}
		return false
	})
	if !ok || found.Event == "error" {
		s.t.Fatalf("sofia: no %q for %q within %v; events:\n%s", event, id, timeout, s.describe())
	}
	return found
}

func (s *Sofia) wait(timeout time.Duration, cond func() bool) bool {
	ok := false
	s.out.wait(timeout, func(b []byte) bool {
		s.parse(b)
		ok = cond()
		return ok || s.Exited()
	})
	return ok
}

func (s *Sofia) parse(b []byte) {
	for {
		line, _, whole := bytes.Cut(b[s.parsed:], []byte("\n"))
		if !whole {
			return
		}
		s.parsed += len(line) + 1
		var e sofiaEvent
		if err := json.Unmarshal(line, &e); err != nil {
			s.t.Errorf("sofia wrote %q: %v", line, err)
			continue
		}
		s.events = append(s.events, e)
	}
}

func (s *Sofia) describe() string {
	var b strings.Builder
	for _, e := range s.events {
		state := Trace{Raw: e.Raw}.Header("Subscription-State")
		fmt.Fprintf(&b, "%s %s %d %s %s (%d bytes)\n", e.Event, e.ID, e.Status, e.Phrase, state, len(e.Raw))
	}
	return b.String()
}
