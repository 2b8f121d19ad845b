package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rollcall/e2e/peer"
	"rollcall/rls/rlmi"
)

// binary is the server as it is shipped, built once.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "rollcall-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "rollcall")
	out, err := exec.Command("go", "build", "-o", binary, "rollcall/cmd/rollcall").CombinedOutput()
	code := 1
	if err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// instance is a running server.
type instance struct {
	*peer.Process
	t    testing.TB
	addr string // SIP, UDP and TCP
	http string
	at   map[string]string // address by kind of listener
	args []string
	want string // its ready line
}

// start runs `rollcall serve` and waits for its ready line.
func start(t testing.TB, args ...string) *instance {
	t.Helper()
	return startOn(t, nil, args...)
}

// startOn listens on further transports too, each on a port of its own.
func startOn(t testing.TB, more []string, args ...string) *instance {
	t.Helper()
	free := func() string { return fmt.Sprintf("127.0.0.1:%d", peer.FreePort(t)) }
	in := &instance{t: t, addr: free(), http: free(), at: make(map[string]string), args: []string{"serve"}, want: "rollcall ready"}
	for _, kind := range append([]string{"udp", "tcp"}, more...) {
		in.at[kind] = in.addr
		if kind != "udp" && kind != "tcp" {
			in.at[kind] = free()
		}
		in.args = append(in.args, "--listen", kind+":"+in.at[kind])
		in.want += " " + kind + "=" + in.at[kind]
	}
	in.args = append(append(in.args, "--http", in.http), args...)
	in.want += " http=" + in.http
	in.run()
	return in
}

func (in *instance) run() {
	in.t.Helper()
	r, w := io.Pipe()
	in.Process = peer.Start(in.t, peer.Command{Path: binary, Args: in.args, Stdout: w, Grace: 8 * time.Second})
	line := make(chan string, 1)
	go func() {
		sc := bufio.NewScanner(r)
		for sc.Scan() {
			select {
			case line <- sc.Text():
			default:
			}
		}
	}()
	select {
	case l := <-line:
		if l != in.want {
			in.t.Fatalf("ready line is %q, want %q", l, in.want)
		}
	case <-time.After(20 * time.Second):
		in.t.Fatalf("server not ready after 20 s:\n%s", in.Log())
	}
}

// get reads the admin API.
func (in *instance) get(path string, into any) int {
	in.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+in.http+path, nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		in.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		in.t.Fatal(err)
	}
	switch v := into.(type) {
	case nil:
	case *string:
		*v = string(body)
	default:
		if err := json.Unmarshal(body, into); err != nil {
			in.t.Fatalf("%s: %v in %q", path, err, body)
		}
	}
	return resp.StatusCode
}

// metric reads one value from /metrics; name includes labels.
func (in *instance) metric(name string) float64 {
	in.t.Helper()
	var text string
	in.get("/metrics", &text)
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			var v float64
			fmt.Sscan(rest, &v)
			return v
		}
	}
	in.t.Fatalf("no metric %s", name)
	return 0
}

// clean checks the counters that must stay 0.
func (in *instance) clean() {
	in.t.Helper()
	for _, name := range []string{"panics", "revived", "two_in_flight", "repeated", "orphan_timers"} {
		if v := in.metric("rollcall_dialog_" + name + "_total"); v != 0 {
			in.t.Errorf("%s: %v, want 0", name, v)
		}
	}
}

// idle waits until nobody is subscribed to anything, here or elsewhere.
func (in *instance) idle() {
	in.t.Helper()
	peer.Eventually(in.t, 10*time.Second, "all subscriptions gone", func() bool {
		return in.metric("rollcall_dialog_subscriptions") == 0 && in.metric("rollcall_rls_views") == 0 &&
			in.metric("rollcall_rls_members") == 0 && in.metric("rollcall_dialog_remote_subscriptions") == 0
	})
	in.clean()
}

// documents writes XCAP documents into a directory.
func documents(t testing.TB, docs map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, body := range docs {
		put(t, dir, name, body)
	}
	return dir
}

// put replaces a document in one step.
func put(t testing.TB, dir, name, body string) {
	t.Helper()
	path := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

// pidf is a small presence document.
func pidf(uri, basic, note string) []byte {
	return fmt.Appendf(nil, `<?xml version="1.0" encoding="UTF-8"?>
<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="%s"><tuple id="t1"><status><basic>%s</basic></status><note>%s</note></tuple></presence>`, uri, basic, note)
}

// service is an rls-services document with one inline list for presence.
func service(uri string, members ...string) string { return serviceFor("presence", uri, members...) }

func serviceFor(pkg, uri string, members ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<?xml version="1.0" encoding="UTF-8"?>
<rls-services xmlns="urn:ietf:params:xml:ns:rls-services" xmlns:rl="urn:ietf:params:xml:ns:resource-lists"><service uri="%s"><list>`, uri)
	for _, m := range members {
		fmt.Fprintf(&b, `<rl:entry uri="%s"/>`, m)
	}
	b.WriteString(`</list><packages><package>` + pkg + `</package></packages></service></rls-services>`)
	return b.String()
}

// listView is what a watcher of a list knows after the NOTIFYs so far.
type listView struct {
	t       testing.TB
	uri     string
	next    uint32
	cseq    uint32
	state   map[string]string // by path of URIs: "active open: note", "pending", "terminated rejected", "unknown"
	nested  map[string]uint32 // next version of each nested list
	dialogs map[string]uint32 // next version of each member's dialog information
	changed []string          // paths in the newest NOTIFY
	full    bool
}

func newView(t testing.TB, uri string) *listView {
	return &listView{t: t, uri: uri, state: make(map[string]string), nested: make(map[string]uint32), dialogs: make(map[string]uint32)}
}

// apply checks a NOTIFY against the rules and xmllint and takes it in.
func (v *listView) apply(n peer.Trace) {
	t := v.t
	t.Helper()
	if n.Header("Require") != "eventlist" {
		t.Errorf("RL-01: NOTIFY has Require %q", n.Header("Require"))
	}
	if c := n.CSeq(); c <= v.cseq {
		t.Errorf("CORE-12: CSeq %d after %d", c, v.cseq)
	} else {
		v.cseq = c
	}
	msg, err := rlmi.Options{First: v.next == 0}.Parse(n.ContentType(), n.Body())
	if err != nil {
		t.Fatalf("list body: %v\n%s", err, n.Raw)
	}
	if msg.List.URI != v.uri {
		t.Errorf("RL-12: list uri %q, want %q", msg.List.URI, v.uri)
	}
	v.changed, v.full = nil, msg.List.FullState
	v.next = v.list(msg, "", v.next)
}

func (v *listView) list(msg *rlmi.Notification, path string, version uint32) uint32 {
	t := v.t
	t.Helper()
	if msg.List.Version != version {
		t.Errorf("RL-13: version %d of %s, want %d", msg.List.Version, msg.List.URI, version)
	}
	peer.ValidateXML(t, "rlmi", rlmi.AppendList(nil, msg.List))
	if msg.List.FullState {
		for k := range v.state {
			if rest, ok := strings.CutPrefix(k, path); ok && !strings.Contains(rest, " > ") {
				delete(v.state, k)
			}
		}
	} else if version == 0 {
		t.Errorf("RL-14: first document of %s is partial", msg.List.URI)
	}
	for _, r := range msg.List.Resources {
		key := path + r.URI
		v.changed = append(v.changed, key)
		if len(r.Instances) == 0 {
			v.state[key] = "unknown"
			continue
		}
		in := r.Instances[0]
		if in.State != rlmi.StateActive {
			v.state[key] = strings.TrimSpace(in.State + " " + in.Reason)
			continue
		}
		part, ok := msg.Part(in.CID)
		if !ok {
			t.Errorf("RL-18: cid %s resolves to nothing", in.CID)
			continue
		}
		if sub := msg.Nested[in.CID]; sub != nil {
			v.state[key] = "list"
			v.nested[key] = v.list(sub, key+" > ", v.nested[key])
			continue
		}
		if strings.HasPrefix(part.ContentType, "application/dialog-info+xml") {
			v.dialogs[key] = dialogInfo(t, part.Body, v.dialogs[key])
		} else {
			peer.ValidateXML(t, "presence-all", part.Body)
		}
		v.state[key] = "active " + describe(part.Body)
	}
	return version + 1
}

// describe makes a document short: "open: note", of dialogs their states.
func describe(body []byte) string {
	if bytes.Contains(body, []byte("<dialog-info")) {
		var states []string
		for _, m := range dialogState.FindAllSubmatch(body, -1) {
			states = append(states, string(m[1]))
		}
		return strings.Join(states, ", ")
	}
	between := func(a, b string) string {
		_, rest, ok := strings.Cut(string(body), a)
		if !ok {
			return ""
		}
		s, _, _ := strings.Cut(rest, b)
		return s
	}
	s := between("<basic>", "</basic>")
	if n := between("<note>", "</note>"); n != "" {
		s += ": " + n
	}
	return s
}

// holds tells whether the view has all of want.
func (v *listView) holds(want map[string]string) bool {
	for k, s := range want {
		if v.state[k] != s {
			return false
		}
	}
	return true
}
