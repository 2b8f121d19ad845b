package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"rollcall/e2e/peer"
)

// command runs the binary to its end.
func command(t *testing.T, args ...string) (stdout string, code int) {
	t.Helper()
	return commandWith(t, "", args...)
}

// commandWith runs the binary with a standard input.
func commandWith(t *testing.T, input string, args ...string) (stdout string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	c := exec.Command(binary, args...)
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(input), &out, &errs
	done := time.AfterFunc(30*time.Second, func() { c.Process.Kill() })
	defer done.Stop()
	err := c.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatal(err)
	}
	t.Logf("rollcall %s: exit %d\n%s%s", strings.Join(args, " "), c.ProcessState.ExitCode(), &out, &errs)
	return out.String(), c.ProcessState.ExitCode()
}

// TestCommands uses the command line against a server as an operator would.
func TestCommands(t *testing.T) {
	dir := rfcDocuments(t, nil)
	in := start(t, "--domain", "example.com", "--store", "memory", "--presence-auth", "open", "--xcap", dir, "--xcap-root", "http://xcap.example.com")
	server := "sip:" + in.addr
	if _, code := command(t, "publish", "sip:joe@example.com", "--server", server, "--status", "open", "--note", "At my desk"); code != 0 {
		t.Errorf("publish: exit %d", code)
	}
	out, code := command(t, "watch", "sip:adam-friends@example.com", "--server", server, "--from", "sip:adam@example.com", "--json", "--count", "1")
	var n struct {
		State   string
		Version *int
		Full    *bool `json:"full_state"`
		Members []struct {
			URI, State, Basic, Note string
			Depth                   int
		}
	}
	if err := json.Unmarshal([]byte(strings.SplitN(out, "\n", 2)[0]), &n); err != nil || code != 0 {
		t.Fatalf("watch: exit %d, %v", code, err)
	}
	found := false
	for _, m := range n.Members {
		found = found || m.URI == "sip:joe@example.com" && m.Basic == "open" && m.Note == "At my desk" && m.Depth == 1
	}
	if n.State != "active" || n.Version == nil || *n.Version != 0 || n.Full == nil || !*n.Full || !found {
		t.Errorf("watch printed %s", out)
	}
	if out, code := command(t, "list", "show", "sip:mybuddies@example.com", "--http", in.http); code != 0 || !strings.Contains(out, "sip:nancy@example.com") ||
		!strings.Contains(out, "reference") { // the entry-ref and the external of RFC 4826 section 3.3 lead nowhere
		t.Errorf("list show: exit %d", code)
	}
	if _, code := command(t, "list", "show", "sip:nobody@example.com", "--http", in.http); code != 3 {
		t.Errorf("list show of no list: exit %d, want 3", code)
	}
	if _, code := command(t, "list", "show", "sip:x@example.com", "--http", fmt.Sprintf("127.0.0.1:%d", peer.FreePort(t))); code != 4 {
		t.Errorf("list show without a server: exit %d, want 4", code)
	}
	if _, code := command(t, "watch", "sip:joe@example.com", "--server", fmt.Sprintf("sip:127.0.0.1:%d", peer.FreePort(t)), "--count", "1"); code != 4 {
		t.Errorf("watch without a server: exit %d, want 4", code)
	}
	if _, code := command(t, "serve", "--durability", "forever"); code != 2 {
		t.Errorf("serve with a bad value: exit %d, want 2", code)
	}
	if out, code := command(t, "presentity", "show", "sip:joe@example.com", "--http", in.http, "--json"); code != 0 || !strings.Contains(out, "At my desk") {
		t.Errorf("presentity show: exit %d", code)
	}
	in.idle()
}

// TestDemo runs the main job of the README.
func TestDemo(t *testing.T) {
	out, code := command(t, "demo", "--for", "4s")
	if code != 0 || !strings.Contains(out, "Alice") || !strings.Contains(out, "version") {
		t.Errorf("demo: exit %d", code)
	}
}

// TestXCAPOverHTTP has one server read its lists from another's XCAP root, over
// HTTP with entity tags.
func TestXCAPOverHTTP(t *testing.T) {
	docs := start(t, "--domain", "docs.example", "--store", "sqlite:"+t.TempDir()+"/x.db")
	root := "http://" + docs.http + "/xcap-root"
	do := func(method, sel, body string, headers ...string) *http.Response {
		t.Helper()
		req, err := http.NewRequest(method, root+"/"+sel, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	const sel = "rls-services/global/index"
	list := service("sip:team@example.com", "sip:joe@example.com", "sip:nancy@example.com")
	put := do("PUT", sel, list, "Content-Type", "application/rls-services+xml")
	tag := put.Header.Get("ETag")
	for _, c := range []struct {
		name, method, sel, body string
		headers                 []string
		status                  int
	}{
		{"XC-26 PUT again", "PUT", sel, list, nil, 200},
		{"XC-04 not modified", "GET", sel, "", []string{"If-None-Match", tag}, 304},
		{"XC-04 wrong version", "PUT", sel, list, []string{"If-Match", `"other"`}, 412},
		{"XC-04 create only", "PUT", sel, list, []string{"If-None-Match", "*"}, 412},
		{"XC-22 not well-formed", "PUT", sel, "<rls-services>", nil, 409},
		{"XC-20 unknown AUID", "GET", "nonsense/global/index", "", nil, 404},
		{"XC-20 no document", "GET", "resource-lists/users/sip:joe@example.com/index", "", nil, 404},
		{"XC-20 POST", "POST", sel, list, nil, 405},
		{"node selector", "GET", sel + "/~~/rls-services", "", nil, 501},
	} {
		if r := do(c.method, c.sel, c.body, c.headers...); r.StatusCode != c.status {
			t.Errorf("%s: %d, want %d", c.name, r.StatusCode, c.status)
		}
	}
	if put.StatusCode != 201 || tag == "" {
		t.Errorf("PUT: %d with ETag %q", put.StatusCode, tag)
	}
	in := start(t, "--domain", "example.com", "--store", "memory", "--presence-auth", "open", "--xcap", root)
	all := peer.Watch(t, peer.WatchOptions{SIPpOptions: peer.SIPpOptions{Server: in.addr}, URI: "sip:team@example.com", From: "sip:bill@example.com",
		WantRequire: "eventlist", Phases: []peer.WatchPhase{{Expires: 600, Notifies: 1}, peer.Unsubscribe()}})
	v := newView(t, "sip:team@example.com")
	for _, n := range peer.Notifies(all) {
		v.apply(n)
	}
	if !v.holds(map[string]string{"sip:joe@example.com": "active closed", "sip:nancy@example.com": "active closed"}) {
		t.Errorf("list is %v", v.state)
	}
	in.idle()
}
