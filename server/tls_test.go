package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sip/siptest"
)

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take gives what was logged since the last call.
func (l *logBuffer) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

func write(t *testing.T, file string, parts ...[]byte) string {
	t.Helper()
	if err := os.WriteFile(file, bytes.Join(parts, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Certificates are chosen by the name a client asks for, read again by Reload,
// and kept when the new ones are bad.
func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	ca := siptest.NewCA(t)
	put := func(name string, l siptest.Leaf) string {
		cert, key := siptest.PEM(t, ca.Issue(t, l))
		return write(t, filepath.Join(dir, name), cert, key)
	}
	a := siptest.Leaf{CommonName: "first", DNS: []string{"a.example"}}
	put("a.pem", a)
	cert, key := siptest.PEM(t, ca.Issue(t, siptest.Leaf{CommonName: "second", URIs: []string{"sip:b.example"}}))
	write(t, filepath.Join(dir, "b.pem"), cert)
	write(t, filepath.Join(dir, "b.key"), key)
	put("c.pem", siptest.Leaf{CommonName: "third", DNS: []string{"*.c.example"}, NotAfter: time.Now().Add(13 * 24 * time.Hour)})
	put("d.pem", siptest.Leaf{CommonName: "fourth", NotAfter: time.Now().Add(-time.Hour)})

	cfg := server.Default()
	cfg.Store, cfg.HTTP = "memory", ""
	cfg.Listen = []string{"tls:127.0.0.1:0", "ws:127.0.0.1:0", "wss:127.0.0.1:0"}
	cfg.TLSCertificate = []string{dir + "/a.pem", dir + "/b.pem," + dir + "/b.key", dir + "/c.pem", dir + "/d.pem"}
	logs := new(logBuffer)
	s, err := server.New(cfg, slog.New(slog.NewTextHandler(logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer s.Stop(t.Context())
	addrs := make(map[string]string)
	for _, a := range s.Addrs() {
		kind, addr, _ := strings.Cut(a, "=")
		addrs[kind] = addr
	}
	if len(addrs) != 3 || addrs["ws"] == "" {
		t.Fatalf("%v", addrs)
	}
	shown := func(kind, name string) string {
		t.Helper()
		c, err := tls.Dial("tcp", addrs[kind], &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	for _, kind := range []string{"tls", "wss"} {
		for name, want := range map[string]string{
			"": "first", "a.example": "first", "B.example": "second", "x.c.example": "third", "unknown.example": "first",
		} {
			if got := shown(kind, name); got != want {
				t.Errorf("%s, %q: %s, want %s", kind, name, got, want)
			}
		}
	}
	warned := func(when string) {
		t.Helper()
		l := logs.take()
		if strings.Count(l, "certificate expires soon") != 1 || strings.Count(l, "certificate has expired") != 1 || !strings.Contains(l, "c.pem") || !strings.Contains(l, "d.pem") {
			t.Errorf("%s: %s", when, l)
		}
	}
	warned("start")

	a.CommonName = "renewed"
	put("a.pem", a)
	if err := s.Reload(); err != nil {
		t.Error(err)
	}
	if got := shown("tls", ""); got != "renewed" {
		t.Errorf("%s after Reload", got)
	}
	warned("reload")
	write(t, filepath.Join(dir, "b.key"), []byte("nothing"))
	if err := s.Reload(); err == nil || !strings.Contains(logs.take(), "level=ERROR") {
		t.Errorf("a bad file: %v", err)
	}
	for name, want := range map[string]string{"": "renewed", "b.example": "second"} {
		if got := shown("wss", name); got != want {
			t.Errorf("%q after a bad file: %s, want %s", name, got, want)
		}
	}
}

func TestTLSFaults(t *testing.T) {
	dir := t.TempDir()
	ca := siptest.NewCA(t)
	cert, key := siptest.PEM(t, ca.Issue(t, siptest.Leaf{CommonName: "example.com"}))
	_, other := siptest.PEM(t, ca.Issue(t, siptest.Leaf{}))
	c := write(t, filepath.Join(dir, "cert.pem"), cert)
	k := write(t, filepath.Join(dir, "key.pem"), key)
	o := write(t, filepath.Join(dir, "other.pem"), other)
	both := write(t, filepath.Join(dir, "both.pem"), key, cert)
	empty := write(t, filepath.Join(dir, "empty.pem"), []byte("# nothing\n"))
	ok := write(t, filepath.Join(dir, "ca.pem"), ca.PEM())
	for _, x := range []struct {
		name   string
		change func(*server.Config)
		want   string
	}{
		{"as in YAML", func(s *server.Config) { s.TLSCertificate = []string{c + "," + k, both} }, ""},
		{"as a flag divides it", func(s *server.Config) { s.TLSCertificate = []string{both, c, " " + k} }, ""},
		{"authorities", func(s *server.Config) { s.TLSCA, s.TLSClientAuth = ok, "require" }, ""},
		{"origins", func(s *server.Config) { s.WSOrigin = []string{"*.example.com", "https://example.org:8443", "*"} }, ""},
		{"no key", func(s *server.Config) { s.TLSCertificate = []string{c, both} }, "tls_certificate: " + c + ": no private key"},
		{"no key at the end", func(s *server.Config) { s.TLSCertificate = []string{c} }, "tls_certificate: " + c + ": no private key"},
		{"the key first", func(s *server.Config) { s.TLSCertificate = []string{k, c} }, "tls_certificate: " + k + ": a private key without"},
		{"two keys", func(s *server.Config) { s.TLSCertificate = []string{c, k, k} }, "tls_certificate: " + k + ": a private key without"},
		{"another's key", func(s *server.Config) { s.TLSCertificate = []string{c + "," + o} }, "tls_certificate: " + c + ": tls: private key does not match"},
		{"nothing in it", func(s *server.Config) { s.TLSCertificate = []string{empty} }, "tls_certificate: " + empty + ": neither"},
		{"no file", func(s *server.Config) { s.TLSCertificate = []string{dir + "/none.pem"} }, "tls_certificate: open"},
		{"no authorities", func(s *server.Config) { s.TLSCA = empty }, "tls_ca: " + empty + ": no certificate"},
		{"no file of authorities", func(s *server.Config) { s.TLSCA = dir + "/none.pem" }, "tls_ca: open"},
		{"client auth", func(s *server.Config) { s.TLSClientAuth = "maybe" }, `tls_client_auth: "maybe"`},
		{"origin", func(s *server.Config) { s.WSOrigin = []string{"[a-"} }, `ws_origin: "[a-"`},
		{"tls without certificate", func(s *server.Config) { s.Listen = []string{"tls:127.0.0.1:0"} }, `listen: listener "tls:127.0.0.1:0" needs a tls_certificate`},
		{"wss without certificate", func(s *server.Config) { s.Listen = []string{"ws:127.0.0.1:0", "WSS:127.0.0.1:0"} }, `listen: listener "WSS:127.0.0.1:0" needs a tls_certificate`},
		{"wss with one", func(s *server.Config) {
			s.Listen, s.TLSCertificate = []string{"tls:127.0.0.1:0", "wss:127.0.0.1:0"}, []string{both}
		}, ""},
	} {
		cfg := server.Default()
		x.change(&cfg)
		err := cfg.Validate()
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.HasPrefix(err.Error(), x.want) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: %v, want %q", x.name, err, x.want)
		}
	}
}

// WS-01, OB-02: a browser behind a name that nobody can resolve gets its NOTIFYs
// on its WebSocket.
func TestSubscribeOverWebSocket(t *testing.T) {
	cfg := server.Default()
	cfg.Store, cfg.HTTP, cfg.PresenceAuth, cfg.Domain, cfg.Listen = "memory", "", "allow", []string{"example.com"}, []string{"ws:127.0.0.1:0"}
	s, err := server.New(cfg, servertest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer s.Stop(t.Context())
	_, addr, _ := strings.Cut(s.Addrs()[0], "=")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "ws://"+addr, &websocket.DialOptions{Subprotocols: []string{"sip"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	if err := c.Write(ctx, websocket.MessageText, []byte(strings.ReplaceAll(`SUBSCRIBE sip:alice@example.com SIP/2.0
Via: SIP/2.0/WS df7jal23ls0d.invalid;branch=z9hG4bK56sdasks
From: <sip:bob@example.com>;tag=asdyka899
To: <sip:alice@example.com>
Call-ID: asidkj3ss
CSeq: 1 SUBSCRIBE
Max-Forwards: 70
Event: presence
Expires: 600
Contact: <sip:bob@df7jal23ls0d.invalid;transport=ws>

`, "\n", "\r\n"))); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"SIP/2.0 200 ", "NOTIFY sip:bob@df7jal23ls0d.invalid;transport=ws "} {
		_, b, err := c.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if text := string(b); !strings.HasPrefix(text, want) || !strings.Contains(text, "\r\nContact: <sip:"+addr+";transport=ws>\r\n") ||
			!strings.Contains(text, "\r\nVia: SIP/2.0/WS ") {
			t.Errorf("%s", text)
		}
	}
}
