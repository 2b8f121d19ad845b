package peer

import (
	"bytes"
	"embed"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"text/template"
	"time"
)

//go:embed scenarios/*.tmpl
var sippScenarios embed.FS

// SIPpOptions say where a SIPp run sends its requests and how long it may take.
type SIPpOptions struct {
	Server    string        // "127.0.0.1:PORT"
	Transport string        // "udp" (default) or "tcp"
	Timeout   time.Duration // of the whole run; default 20 s
}

// PublishOptions describe one publication (RFC 3903) made by SIPp.
type PublishOptions struct {
	SIPpOptions
	URI         string // of the presentity: Request-URI and To
	From        string // default: URI
	Event       string // default "presence"
	ContentType string // default "application/pidf+xml"
	Headers     []string
	Steps       []PublishStep
}

// PublishStep is one PUBLISH. The entity-tag of the last successful answer is sent as SIP-If-Match from the second step on.
type PublishStep struct {
	Body    []byte // nil: no body (refresh, removal)
	Expires int    // seconds; negative: no Expires field
	IfMatch string // a tag to send instead of the one known; "-": none
	Want    int    // status; default 200
}

// WatchOptions describe one subscription (RFC 6665) made by SIPp: initial SUBSCRIBE, then the further phases in order.
type WatchOptions struct {
	SIPpOptions
	URI         string // Request-URI and To
	From        string
	Event       string // default "presence"
	Accept      string // default: RLMI, multipart/related and PIDF
	Supported   string // default "eventlist"; "-": no such field
	WantRequire string // a regular expression that the Require field of each 2xx must match; empty: not looked at
	Headers     []string
	ContentType string // of Body
	Body        []byte // of the initial SUBSCRIBE (RFC 5367)
	Phases      []WatchPhase
}

// WatchPhase is one SUBSCRIBE in the dialog, its answer and the NOTIFYs awaited after it. Answer and first NOTIFY may come in
// either order. SIPp does not answer a NOTIFY that comes when it awaits none, or, over TCP, before it has answered the one before;
// and it takes messages of 64 KB at most, and scenarios too: there is room for two phases with Until.
type WatchPhase struct {
	Expires  int    // seconds; negative: no Expires field
	Want     int    // status; default 200. 300 and more: no NOTIFY is awaited and the run ends
	Notifies int    // NOTIFYs to await, retransmissions not counted; default 1
	Until    string // instead of a number: wait for a NOTIFY, of 64 at most, that matches this POSIX extended expression
}

// Unsubscribe is the phase that ends a subscription: it waits for the terminated NOTIFY.
func Unsubscribe() WatchPhase {
	return WatchPhase{Expires: 0, Until: "Subscription-State:[[:space:]]*terminated"}
}

// DefaultAccept is what a watcher of lists accepts.
const DefaultAccept = "application/rlmi+xml, multipart/related, application/pidf+xml"

// SIPp is a run of SIPp.
type SIPp struct {
	*Process
	t       testing.TB
	dir     string
	timeout time.Duration
}

// mediaPort is the first of four ports for the media sockets that SIPp binds though nobody uses them: it takes the next but one
// for video without asking. They lie below those of FreePort, so that they cannot be somebody else's.
func mediaPort(t testing.TB) int { return 10000 + FreePort(t)%2000*4 }

// StartPublish starts a publication.
func StartPublish(t testing.TB, o PublishOptions) *SIPp {
	t.Helper()
	dir := t.TempDir()
	o.From = or(o.From, o.URI)
	o.Event = or(o.Event, "presence")
	o.ContentType = or(o.ContentType, "application/pidf+xml")
	type step struct {
		PublishStep
		BodyFile        string
		UseTag, TakeTag bool
	}
	steps := make([]step, len(o.Steps))
	tagUsed := false
	for i, s := range o.Steps {
		if s.Want == 0 {
			s.Want = 200
		}
		steps[i] = step{PublishStep: s, BodyFile: writeBody(t, dir, i, s.Body)}
		steps[i].TakeTag = s.Expires != 0
		tagUsed = tagUsed || steps[i].TakeTag && s.Want < 300
		switch {
		case s.IfMatch == "-":
			steps[i].IfMatch = ""
		case s.IfMatch == "":
			for _, before := range steps[:i] {
				steps[i].UseTag = steps[i].UseTag || before.TakeTag && before.Want < 300
			}
		}
	}
	return startSIPp(t, dir, "publish.xml.tmpl", o.SIPpOptions, map[string]any{
		"URI": o.URI, "From": o.From, "Event": o.Event, "ContentType": o.ContentType, "Headers": o.Headers,
		"Steps": steps, "NameTag": tagUsed,
	})
}

// Publish runs a publication to its end and fails the test when any step was not answered as wanted. The tag is the last one
// that the server gave.
func Publish(t testing.TB, o PublishOptions) (tag string, trace []Trace) {
	t.Helper()
	s := StartPublish(t, o)
	trace = s.WaitOK()
	for _, m := range Responses(trace, false, "PUBLISH") {
		if e := m.Header("SIP-ETag"); e != "" && m.Status() < 300 {
			tag = e
		}
	}
	return tag, trace
}

// StartWatch starts a subscription.
func StartWatch(t testing.TB, o WatchOptions) *SIPp {
	t.Helper()
	dir := t.TempDir()
	o.Event = or(o.Event, "presence")
	o.Accept = or(o.Accept, DefaultAccept)
	o.Supported = or(o.Supported, "eventlist")
	if o.Supported == "-" {
		o.Supported = ""
	}
	type phase struct {
		WatchPhase
		Index int
		Most  int // NOTIFYs
	}
	var variables []string
	if o.WantRequire != "" {
		variables = append(variables, "require")
	}
	phases := make([]phase, len(o.Phases))
	for i, p := range o.Phases {
		if p.Want == 0 {
			p.Want = 200
		}
		if p.Notifies == 0 {
			p.Notifies = 1
		}
		phases[i] = phase{WatchPhase: p, Index: i, Most: p.Notifies}
		if p.Until != "" {
			phases[i].Most = 64
			variables = append(variables, "done"+strconv.Itoa(i))
		}
	}
	return startSIPp(t, dir, "watch.xml.tmpl", o.SIPpOptions, map[string]any{
		"URI": o.URI, "From": o.From, "Event": o.Event, "Accept": o.Accept, "Supported": o.Supported,
		"WantRequire": o.WantRequire, "Headers": o.Headers, "ContentType": o.ContentType,
		"BodyFile": writeBody(t, dir, 0, o.Body), "Phases": phases, "Variables": strings.Join(variables, ","),
		"Early": map[string]string{"via": "Via", "from": "From", "to": "To", "cseq": "CSeq"},
	})
}

// Watch runs a subscription to its end and fails the test when it did not go as described.
func Watch(t testing.TB, o WatchOptions) []Trace {
	t.Helper()
	return StartWatch(t, o).WaitOK()
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func writeBody(t testing.TB, dir string, i int, body []byte) string {
	t.Helper()
	if body == nil {
		return ""
	}
	name := filepath.Join(dir, "body"+strconv.Itoa(i))
	if err := os.WriteFile(name, body, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

var sippFuncs = template.FuncMap{
	"add": func(a, b int) int { return a + b },
	"ge":  func(a, b int) bool { return a >= b },
	// Square brackets are SIPp's keywords, and an XML CDATA section cannot hold its own end. Bodies are read from files, as they are.
	"text": func(s string) (string, error) {
		if strings.Contains(s, "]]>") || strings.ContainsAny(s, "[\r\n") {
			return "", fmt.Errorf("%q cannot be put into a scenario", s)
		}
		return s, nil
	},
	"xml": func(s string) string {
		var b bytes.Buffer
		_ = xml.EscapeText(&b, []byte(s))
		return b.String()
	},
}

func startSIPp(t testing.TB, dir, scenario string, o SIPpOptions, data map[string]any) *SIPp {
	t.Helper()
	var doc bytes.Buffer
	tmpl := template.Must(template.New(scenario).Funcs(sippFuncs).ParseFS(sippScenarios, "scenarios/"+scenario))
	if err := tmpl.Execute(&doc, data); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "scenario.xml")
	if err := os.WriteFile(file, doc.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second
	}
	transport := map[string]string{"": "u1", "udp": "u1", "tcp": "t1"}[o.Transport]
	if transport == "" {
		t.Fatalf("SIPp: transport %q is neither udp nor tcp", o.Transport)
	}
	s := &SIPp{t: t, dir: dir, timeout: o.Timeout}
	s.Process = Start(t, Command{
		Path: "sipp",
		Args: []string{
			o.Server, "-sf", file, "-i", "127.0.0.1", "-t", transport, "-m", "1", "-nostdin",
			// One message a turn: the answer leaves before the next message is looked at.
			"-nd", "-max_recv_loops", "1",
			"-timeout", strconv.Itoa(int((o.Timeout + time.Second - 1) / time.Second)), "-timeout_error",
			"-ci", "127.0.0.1", "-p", strconv.Itoa(FreePort(t)), "-cp", strconv.Itoa(FreePort(t)), "-mi", "127.0.0.1", "-mp", strconv.Itoa(mediaPort(t)),
			"-trace_msg", "-message_file", filepath.Join(dir, "messages"),
			"-trace_err", "-error_file", filepath.Join(dir, "errors"),
		},
		Dir:   dir,
		Quiet: true, // its screen says less than describe
	})
	return s
}

// Trace returns the messages so far, oldest first, retransmissions included.
func (s *SIPp) Trace() []Trace {
	b, err := os.ReadFile(filepath.Join(s.dir, "messages"))
	if err != nil {
		return nil // not written yet
	}
	return parseSIPpTrace(b)
}

// WaitNotify waits for the first NOTIFY, counted from the start, for which pred is true, and returns it; nil takes any.
func (s *SIPp) WaitNotify(pred func(Trace) bool, timeout time.Duration) Trace {
	s.t.Helper()
	var found Trace
	look := func() bool {
		for _, m := range Notifies(s.Trace()) {
			if pred == nil || pred(m) {
				found = m
				return true
			}
		}
		return false
	}
	// Exited is read before the file: what was written before the end must count.
	err := poll(timeout, func() bool { ended := s.Exited(); return look() || ended })
	if err != nil || found.Raw == nil {
		s.t.Fatalf("SIPp: no such NOTIFY within %v (ended: %v)\n%s", timeout, s.Exited(), s.describe())
	}
	return found
}

// A message that does not fit the scenario is passed over (-nd); a failure among them will not be followed by what is waited for.
var sippRefused = regexp.MustCompile(`on unexpected message for [^\n]*received 'SIP/2\.0 [3-6]`)

// WaitOK waits for the end of the run and returns all messages; it fails the test when the scenario failed, or as soon as a
// request was answered with a failure that the scenario does not want.
func (s *SIPp) WaitOK() []Trace {
	s.t.Helper()
	refused := false
	err := poll(s.timeout+5*time.Second, func() bool {
		if b, err := os.ReadFile(filepath.Join(s.dir, "errors")); err == nil {
			refused = sippRefused.Match(b)
		}
		return s.Exited() || refused
	})
	switch {
	case refused:
		s.t.Fatalf("SIPp: unexpected answer\n%s", s.describe())
	case err != nil:
		s.t.Fatalf("SIPp has not ended\n%s", s.describe())
	case s.Wait(s.t, time.Second) != 0:
		s.t.Fatalf("SIPp ended with %d\n%s", s.cmd.ProcessState.ExitCode(), s.describe())
	}
	return s.Trace()
}

func (s *SIPp) describe() string {
	var b strings.Builder
	if e, err := os.ReadFile(filepath.Join(s.dir, "errors")); err == nil {
		fmt.Fprintf(&b, "errors:\n%s\n", tail(e))
	} else {
		fmt.Fprintf(&b, "output:\n%s\n", tail(s.log.bytes()))
	}
	for _, m := range s.Trace() {
		dir := "received"
		if m.Sent {
			dir = "sent"
		}
		fmt.Fprintf(&b, "%s %s (%d bytes)\n", dir, m.StartLine(), len(m.Raw))
	}
	return b.String()
}

// "UDP message sent (436 bytes):" or "TCP message received [512] bytes :" and an empty line; the message follows.
var sippHead = regexp.MustCompile(`(?m)^(?:UDP|TCP) message (?:(sent) \((\d+) bytes\):|received \[(\d+)\] bytes :)\r?\n\r?\n`)

// parseSIPpTrace reads a -trace_msg file. Lengths in it delimit the messages, so a body may hold anything; a message that is not
// written to its end yet is left out.
func parseSIPpTrace(b []byte) []Trace {
	var out []Trace
	for {
		at := sippHead.FindSubmatchIndex(b)
		if at == nil {
			return out
		}
		m := Trace{Sent: at[2] >= 0}
		num := at[4:6]
		if !m.Sent {
			num = at[6:8]
		}
		n, err := strconv.Atoi(string(b[num[0]:num[1]]))
		if err != nil || at[1]+n > len(b) {
			return out
		}
		m.Raw = bytes.Clone(b[at[1] : at[1]+n])
		out = append(out, m)
		b = b[at[1]+n:]
	}
}
