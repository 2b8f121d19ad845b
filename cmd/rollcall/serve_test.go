package main

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"rollcall/sip/siptest"
)

// start runs serve on free ports and gives the addresses by kind.
func start(t *testing.T, args ...string) (*session, map[string]string) {
	t.Helper()
	s := begin(t, append([]string{
		"serve", "--listen", "udp:127.0.0.1:0", "--listen", "tcp:127.0.0.1:0", "--http", "127.0.0.1:0", "--domain", "example.com",
		"--presence-auth", "open",
	}, args...)...)
	eventually(t, "the ready line", func() bool { return strings.HasSuffix(s.out.String(), "\n") })
	if !regexp.MustCompile(`^rollcall ready udp=127\.0\.0\.1:\d+ tcp=127\.0\.0\.1:\d+ http=127\.0\.0\.1:\d+\n$`).MatchString(s.out.String()) {
		t.Fatalf("stdout %q", s.out.String())
	}
	addrs := make(map[string]string)
	for _, f := range strings.Fields(s.out.String())[2:] {
		kind, addr, _ := strings.Cut(f, "=")
		addrs[kind] = addr
	}
	return s, addrs
}

// The commands against the real server, over both transports.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "rls-services", "global", "index")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(demoServices, demoDomain, "example.com")), 0o600); err != nil {
		t.Fatal(err)
	}
	srv, addrs := start(t, "--xcap", dir, "--store", "memory")
	udp, tcp := "sip:"+addrs["udp"], "sip:"+addrs["tcp"]+";transport=tcp"

	code, out, _ := execute(t, "publish", "sip:alice@example.com", "--status", "open", "--note", "Here", "--server", udp, "--json")
	if code != 0 {
		t.Fatalf("publish: exit code %d", code)
	}
	etag, _ := lines(t, out)[0]["etag"].(string)

	w := begin(t, "watch", "sip:friends@example.com", "--server", tcp, "--json")
	eventually(t, "full state", func() bool { return strings.Count(w.out.String(), "\n") == 1 })
	code, out, _ = execute(t, "publish", "sip:alice@example.com", "--status", "closed", "--etag", etag, "--server", tcp, "--json")
	if code != 0 {
		t.Errorf("second publish: exit code %d", code)
	}
	next, _ := lines(t, out)[0]["etag"].(string)
	eventually(t, "the change", func() bool { return strings.Count(w.out.String(), "\n") == 2 })
	code, _, errw := execute(t, "publish", "sip:alice@example.com", "--etag", etag, "--server", udp)
	if code != 1 || errw != "rollcall: refused: 412 Conditional Request Failed\n" {
		t.Errorf("stale tag: exit code %d, %q", code, errw)
	}
	if code, _, _ := execute(t, "publish", "sip:alice@example.com", "--remove", "--etag", next, "--server", udp); code != 0 {
		t.Errorf("remove: exit code %d", code)
	}
	if code, out, _ := execute(t, "subscription", "list", "--json", "--http", addrs["http"]); code != 0 || lines(t, out)[0]["resource"] != "sip:friends@example.com" {
		t.Errorf("subscription list: exit code %d, %s", code, out)
	}
	w.interrupt()
	if code := w.wait(); code != 0 {
		t.Errorf("watch: exit code %d", code)
	}
	got := lines(t, w.out.String())
	first, second := got[0], got[1]
	if first["version"] != 0.0 || first["full_state"] != true || second["version"] != 1.0 || second["full_state"] != false || len(got) < 3 ||
		got[len(got)-1]["state"] != "terminated" {
		t.Errorf("%v", got)
	}
	members := second["members"].([]any)
	if len(members) != 7 {
		t.Fatalf("%d members", len(members))
	}
	alice, mum := members[0].(map[string]any), members[5].(map[string]any)
	if alice["name"] != "Alice" || alice["basic"] != "closed" || alice["changed"] != true || alice["depth"] != 0.0 || mum["depth"] != 1.0 || mum["changed"] != false {
		t.Errorf("%v\n%v", alice, mum)
	}
	if code, out, _ := execute(t, "list", "show", "sip:friends@example.com", "--http", addrs["http"]); code != 0 || !strings.Contains(out, "\n  sip:mum@example.com ") {
		t.Errorf("list show: exit code %d\n%s", code, out)
	}
	if code, _, _ := execute(t, "list", "show", "sip:nobody@example.com", "--http", addrs["http"]); code != 3 {
		t.Errorf("list show: exit code %d", code)
	}
	if code, _, errw := execute(t, "watch", "sip:friends@example.com", "--no-list", "--server", udp); code != 1 || !strings.Contains(errw, "421 Extension Required") {
		t.Errorf("no-list: exit code %d, %q", code, errw)
	}
	if runtime.GOOS != "windows" {
		self, err := os.FindProcess(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		self.Signal(syscall.SIGHUP)
		eventually(t, "the log line", func() bool { return strings.Contains(srv.errw.String(), "SIGHUP") })
	}
	srv.interrupt()
	if code := srv.wait(); code != 0 || strings.Count(srv.out.String(), "\n") != 1 {
		t.Errorf("serve: exit code %d, %q", code, srv.out.String())
	}
}

// Every transport is in the ready line, and SIGHUP reads certificates.
func TestServeTransports(t *testing.T) {
	cert, key := siptest.PEM(t, siptest.NewCA(t).Issue(t, siptest.Leaf{CommonName: "example.com"}))
	s := begin(t, "serve", "--http", "", "--store", "memory", "--tls-certificate", writeFile(t, string(cert))+","+writeFile(t, string(key)),
		"--listen", "udp:127.0.0.1:0", "--listen", "tls:127.0.0.1:0", "--listen", "ws:127.0.0.1:0", "--listen", "wss:127.0.0.1:0")
	eventually(t, "the ready line", func() bool { return strings.HasSuffix(s.out.String(), "\n") })
	if !regexp.MustCompile(`^rollcall ready udp=127\.0\.0\.1:\d+ tls=127\.0\.0\.1:\d+ ws=127\.0\.0\.1:\d+ wss=127\.0\.0\.1:\d+\n$`).MatchString(s.out.String()) {
		t.Errorf("stdout %q", s.out.String())
	}
	if runtime.GOOS != "windows" {
		self, err := os.FindProcess(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		self.Signal(syscall.SIGHUP)
		eventually(t, "the log line", func() bool { return strings.Contains(s.errw.String(), "certificates reloaded") })
	}
	s.interrupt()
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A start that fails at run time is no matter of configuration.
func TestServeStartFails(t *testing.T) {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	code, out, errw := execute(t, "serve", "--listen", "udp:"+l.LocalAddr().String(), "--http", "", "--store", "memory")
	if code != 1 || out != "" || !strings.Contains(errw, "rollcall: listen UDP:") {
		t.Errorf("exit code %d, %q, %q", code, out, errw)
	}
	code, _, errw = execute(t, "serve", "--listen", "udp:127.0.0.1:0", "--http", "", "--store", "sqlite:"+t.TempDir())
	if code != 1 || !strings.Contains(errw, "rollcall: store sqlite:") {
		t.Errorf("exit code %d, %q", code, errw)
	}
}
