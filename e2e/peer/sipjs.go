package peer

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

//go:embed sipjs/package.json sipjs/package-lock.json sipjs/peer.mjs
var sipjsFiles embed.FS

// SIPJSOptions describe a SIP.js user agent in Node.
type SIPJSOptions struct {
	AOR           string        // its own address, the From of its requests
	URL           string        // "ws://127.0.0.1:PORT" or "wss://..."
	Origin        string        // of the web page; empty: a program, which has none
	CA            string        // file of the authority that a wss server is verified by, besides Node's own
	AnswerTimeout time.Duration // for the answer to a request; default 10 s
}

// SIPJS is a user agent as it runs in a web page. Nobody can reach the host in its Via and Contact (RFC 7118 section 5), which
// ends in ".invalid". It answers NOTIFYs by itself. Its methods must be called from the test's goroutine.
type SIPJS struct {
	*Process
	t       testing.TB
	timeout time.Duration
	out     *logBuffer
	parsed  int // bytes of out
	events  []sipjsEvent
	ids     int
}

type sipjsEvent struct {
	Event  string `json:"event"`
	ID     string `json:"id"`
	Text   string `json:"text"`
	Socket int    `json:"socket"`
	Sent   bool   `json:"sent"`
	Raw    []byte `json:"raw"`
}

// nodeStart is how long Node may take to load SIP.js on a busy machine.
const nodeStart = 30 * time.Second

// WebSocketTrace is a message and the connection, numbered from 1, that it was on.
type WebSocketTrace struct {
	Trace
	Socket int
}

// StartSIPJS installs SIP.js when that has not been done yet, starts a user agent and connects it.
func StartSIPJS(t testing.TB, o SIPJSOptions) *SIPJS {
	t.Helper()
	s := startSIPJS(t, o)
	if e := s.await(0, nodeStart, "the connection", func(e sipjsEvent) bool { return e.Event == "open" }); e.Text != "sip" {
		t.Fatalf("SIP.js: the server chose the subprotocol %q, want sip (RFC 7118 section 4)", e.Text)
	}
	s.await(0, nodeStart, "ready", func(e sipjsEvent) bool { return e.Event == "ready" })
	return s
}

// SIPJSRefused starts a user agent that must not get a connection, and returns why it did not.
func SIPJSRefused(t testing.TB, o SIPJSOptions) string {
	t.Helper()
	return startSIPJS(t, o).await(0, nodeStart, "a failed connection", func(e sipjsEvent) bool { return e.Event == "failed" }).Text
}

func startSIPJS(t testing.TB, o SIPJSOptions) *SIPJS {
	t.Helper()
	dir, err := sipjsDir()
	if err != nil {
		t.Fatal(err)
	}
	s := &SIPJS{t: t, timeout: o.AnswerTimeout, out: newLogBuffer()}
	if s.timeout == 0 {
		s.timeout = 10 * time.Second
	}
	c := Command{Path: "node", Args: []string{filepath.Join(dir, "peer.mjs"), o.URL, o.AOR}, Stdout: s.out}
	if o.Origin != "" {
		c.Args = append(c.Args, o.Origin)
	}
	if o.CA != "" {
		c.Env = []string{"NODE_EXTRA_CA_CERTS=" + o.CA}
	}
	s.Process = Start(t, c)
	return s
}

var sipjsDir = sync.OnceValues(installSIPJS)

// installSIPJS puts the script and the packages of its lock file into a folder named after them.
func installSIPJS() (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	files := map[string][]byte{}
	for _, name := range []string{"package.json", "package-lock.json", "peer.mjs"} {
		if files[name], err = sipjsFiles.ReadFile("sipjs/" + name); err != nil {
			return "", err
		}
		_, _ = sum.Write(files[name])
	}
	dir := filepath.Join(cache, fmt.Sprintf("sipjs-%x", sum.Sum(nil)[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(cache, "npm")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(tmp, name), text, 0o600); err != nil {
			return "", err
		}
	}
	out, err := run(3*time.Minute, nil, "npm", "--prefix", tmp, "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund")
	if err != nil {
		return "", fmt.Errorf("install SIP.js with npm: %w\n%s", err, out)
	}
	// Another test binary may have done the same at this moment.
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		if _, err2 := os.Stat(dir); err2 != nil {
			return "", err
		}
	}
	return dir, nil
}

// SIPJSPublication is one publication.
type SIPJSPublication struct {
	s       *SIPJS
	id, uri string
	expires int
}

// Publish publishes a presence document and returns the answer.
func (s *SIPJS) Publish(uri string, body []byte, expires int) (*SIPJSPublication, Trace) {
	s.t.Helper()
	p := &SIPJSPublication{s: s, id: s.newID("p"), uri: uri, expires: expires}
	return p, p.Modify(body)
}

// Modify publishes a new document; SIP.js sends the entity-tag of the last answer.
func (p *SIPJSPublication) Modify(body []byte) Trace {
	p.s.t.Helper()
	return p.s.ask("PUBLISH", map[string]any{"command": "publish", "id": p.id, "uri": p.uri, "expires": p.expires, "body": string(body)})
}

// Remove ends the publication.
func (p *SIPJSPublication) Remove() Trace {
	p.s.t.Helper()
	return p.s.ask("PUBLISH", map[string]any{"command": "unpublish", "id": p.id})
}

// SIPJSSubscribe describes a subscription.
type SIPJSSubscribe struct {
	URI     string
	Event   string   // default "presence"
	Expires int      // seconds; default 600
	Headers []string // default: those of a watcher of lists
}

// SIPJSSubscription is one subscription.
type SIPJSSubscription struct {
	s     *SIPJS
	id    string
	first int // event from which WaitNotify looks on
	// CallID of its dialog; SIP.js makes a new one when it subscribes again by itself.
	CallID string
}

// Subscribe sends a SUBSCRIBE and waits for its answer.
func (s *SIPJS) Subscribe(o SIPJSSubscribe) (*SIPJSSubscription, Trace) {
	s.t.Helper()
	if o.Expires == 0 {
		o.Expires = 600
	}
	if o.Headers == nil {
		o.Headers = []string{"Supported: eventlist", "Accept: " + DefaultAccept}
	}
	n := &SIPJSSubscription{s: s, id: s.newID("s")}
	n.first = s.now()
	answer := s.ask("SUBSCRIBE", map[string]any{
		"command": "subscribe", "id": n.id, "uri": o.URI, "event": or(o.Event, "presence"), "expires": o.Expires, "headers": o.Headers,
	})
	n.CallID = answer.Header("Call-ID")
	return n, answer
}

// Refresh sends a SUBSCRIBE in the dialog.
func (n *SIPJSSubscription) Refresh() Trace {
	n.s.t.Helper()
	return n.s.ask("SUBSCRIBE", map[string]any{"command": "refresh", "id": n.id})
}

// Unsubscribe sends a SUBSCRIBE with Expires: 0 in the dialog.
func (n *SIPJSSubscription) Unsubscribe() Trace {
	n.s.t.Helper()
	return n.s.ask("SUBSCRIBE", map[string]any{"command": "unsubscribe", "id": n.id})
}

// WaitNotify waits for a NOTIFY for which pred is true (nil: any) among those after the one that it returned last, and returns
// it; it fails the test at the deadline.
func (n *SIPJSSubscription) WaitNotify(pred func(Trace) bool, timeout time.Duration) WebSocketTrace {
	n.s.t.Helper()
	var found WebSocketTrace
	at := n.s.wait(n.first, timeout, func(e sipjsEvent) bool {
		m := Trace{Raw: e.Raw}
		if e.Event != "message" || e.Sent || !m.IsRequest("NOTIFY") || m.Header("Call-ID") != n.CallID || pred != nil && !pred(m) {
			return false
		}
		found = WebSocketTrace{m, e.Socket}
		return true
	})
	if at < 0 {
		n.s.t.Fatalf("SIP.js: no such NOTIFY within %v; events:\n%s", timeout, n.s.describe())
	}
	n.first = at + 1
	return found
}

// Notified is how many NOTIFYs SIP.js has given to its application, and Refused how many it answered with a failure.
func (n *SIPJSSubscription) Notified() (given, refused int) {
	n.s.now()
	for _, e := range n.s.events {
		m := Trace{Raw: e.Raw}
		switch {
		case e.Event == "notify" && e.ID == n.id:
			given++
		case e.Event == "message" && e.Sent && m.Status() >= 300 && m.Method() == "NOTIFY" && m.Header("Call-ID") == n.CallID:
			refused++
		}
	}
	return given, refused
}

// Destroy ends the connection without a word, as when a browser dies.
func (s *SIPJS) Destroy() {
	s.t.Helper()
	from := s.now()
	s.send(map[string]any{"command": "destroy"})
	s.await(from, s.timeout, "the connection's end", func(e sipjsEvent) bool { return e.Event == "closed" })
}

// Reconnect opens a new connection for the same user agent: its dialogs live on.
func (s *SIPJS) Reconnect() {
	s.t.Helper()
	from := s.now()
	s.send(map[string]any{"command": "reconnect"})
	s.await(from, s.timeout, "the new connection", func(e sipjsEvent) bool { return e.Event == "open" })
}

// Trace returns all messages so far, oldest first.
func (s *SIPJS) Trace() []WebSocketTrace {
	s.now()
	var out []WebSocketTrace
	for _, e := range s.events {
		if e.Event == "message" {
			out = append(out, WebSocketTrace{Trace{Sent: e.Sent, Raw: e.Raw}, e.Socket})
		}
	}
	return out
}

// Quit lets SIP.js take back its publications and subscriptions and close the connection.
func (s *SIPJS) Quit() {
	s.t.Helper()
	s.send(map[string]any{"command": "quit"})
	if code := s.Wait(s.t, s.timeout); code != 0 {
		s.t.Errorf("SIP.js ended with %d", code)
	}
}

func (s *SIPJS) newID(kind string) string {
	s.ids++
	return kind + strconv.Itoa(s.ids)
}

func (s *SIPJS) send(command map[string]any) {
	s.t.Helper()
	b, err := json.Marshal(command)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.Stdin.Write(append(b, '\n')); err != nil {
		s.t.Fatalf("SIP.js: %v", err)
	}
}

// ask gives a command that makes SIP.js send one request and waits for the request's answer.
func (s *SIPJS) ask(method string, command map[string]any) Trace {
	s.t.Helper()
	from := s.now()
	s.send(command)
	var request Trace
	e := s.await(from, s.timeout, "the answer to "+method, func(e sipjsEvent) bool {
		m := Trace{Raw: e.Raw}
		if e.Event == "message" && e.Sent && m.IsRequest(method) {
			request = m
		}
		return e.Event == "message" && !e.Sent && m.Status() >= 200 && request.Raw != nil &&
			m.Header("Call-ID") == request.Header("Call-ID") && m.Header("CSeq") == request.Header("CSeq")
	})
	return Trace{Raw: e.Raw}
}

func (s *SIPJS) await(from int, timeout time.Duration, what string, cond func(sipjsEvent) bool) sipjsEvent {
	s.t.Helper()
	at := s.wait(from, timeout, func(e sipjsEvent) bool { return e.Event == "error" || cond(e) })
	if at < 0 || s.events[at].Event == "error" {
		s.t.Fatalf("SIP.js: %s: not within %v; events:\n%s", what, timeout, s.describe())
	}
	return s.events[at]
}

// wait gives the number of the first event from the given one on for which cond is true, -1 at the deadline.
func (s *SIPJS) wait(from int, timeout time.Duration, cond func(sipjsEvent) bool) int {
	at := -1
	s.out.wait(timeout, func(b []byte) bool {
		s.parse(b)
		for ; from < len(s.events); from++ {
			if cond(s.events[from]) {
				at = from
				return true
			}
		}
		return s.Exited()
	})
	return at
}

// now is the number of the next event.
func (s *SIPJS) now() int {
	s.parse(s.out.bytes())
	return len(s.events)
}

func (s *SIPJS) parse(b []byte) {
	for {
		line, _, whole := bytes.Cut(b[s.parsed:], []byte("\n"))
		if !whole {
			return
		}
		s.parsed += len(line) + 1
		var e sipjsEvent
		if err := json.Unmarshal(line, &e); err != nil {
			s.t.Errorf("SIP.js wrote %q: %v", line, err)
			continue
		}
		s.events = append(s.events, e)
	}
}

func (s *SIPJS) describe() string {
	var b strings.Builder
	for _, e := range s.events {
		fmt.Fprintf(&b, "%s %s %s", e.Event, e.ID, e.Text)
		if e.Raw != nil {
			m := Trace{Raw: e.Raw}
			fmt.Fprintf(&b, "on %d, sent %v: %s, %s %s (%d bytes)", e.Socket, e.Sent, m.StartLine(), m.Header("CSeq"), m.Header("Subscription-State"), len(e.Raw))
		}
		b.WriteByte('\n')
	}
	return b.String()
}
