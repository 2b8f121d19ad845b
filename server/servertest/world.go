package servertest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server"
	"rollcall/sip"
	"rollcall/sip/auth"
)

// World is a network in memory. Everything on it belongs to one bubble. A World
// made by NewReal is that of loopback sockets, in real time.
type World struct {
	T   testing.TB
	Net *sip.MemNet // nil on sockets
	// Bound, if set, is called when a Node has bound its address, in the middle
	// of its start.
	Bound func()
	// Ledger, if set, keeps account of every NOTIFY. UAs then bear what a faulty
	// network and crashes bring: no answer, old NOTIFYs, forks.
	Ledger *Ledger
	// Describe, if set, says what Notify.Text and Row.Text make of a presence
	// document.
	Describe func(body []byte) string
	// Mute leaves the servers' logs out of the test's, which keeps all of them.
	Mute bool
	last int // UAs so far
}

// New makes a network without faults. It must be called within synctest.Test;
// what is on it ends with the test.
func New(t testing.TB) *World { return NewFaulty(t, 1, sip.Fault{}) }

// NewFaulty makes a network whose faults are drawn from a seed.
func NewFaulty(t testing.TB, seed uint64, fault sip.Fault) *World {
	w := &World{T: t, Net: sip.NewMemNet(seed, fault)}
	t.Cleanup(w.Net.Close)
	return w
}

// NewReal is for UAs that talk over loopback sockets to a server that a test
// started by itself.
func NewReal(t testing.TB) *World { return &World{T: t} }

// Of is the Node of a server on sockets.
func (w *World) Of(s *server.Server) *Node {
	addr, err := netip.ParseAddrPort(strings.TrimPrefix(s.Addrs()[0], "udp="))
	if err != nil {
		w.T.Fatal(err)
	}
	return &Node{Server: s, Addr: addr, w: w, admin: s.Handler()}
}

// Settle lets d pass and then, in a bubble, waits until nobody has anything to
// do.
func (w *World) Settle(d time.Duration) {
	time.Sleep(d)
	w.wait()
}

func (w *World) wait() {
	if w.Net != nil {
		synctest.Wait()
	}
}

// Node is a running server.
type Node struct {
	*server.Server
	Addr  netip.AddrPort
	w     *World
	cfg   server.Config
	opts  []server.Option
	net   *network
	admin http.Handler
	disk  *Disk
	gen   atomic.Int32 // starts so far
}

// Node starts a server at an address, port 5060, for example.com, open to
// everybody, with an empty memory store, and with nobody at example.org, unless
// change says otherwise.
func (w *World) Node(ip string, change func(*server.Config), opts ...server.Option) *Node {
	w.T.Helper()
	return w.node(nil, ip, change, opts...)
}

func (w *World) node(disk *Disk, ip string, change func(*server.Config), opts ...server.Option) *Node {
	w.T.Helper()
	addr := netip.AddrPortFrom(netip.MustParseAddr(ip), 5060)
	cfg := server.Default()
	cfg.Listen, cfg.HTTP, cfg.Domain = []string{"udp:" + addr.String()}, "", []string{"example.com"}
	cfg.Store, cfg.PresenceAuth, cfg.Trust = "memory", "open", []string{"192.0.2.0/24"}
	cfg.XCAPRoot = []string{"http://xcap.example.com/xcap-root"}
	cfg.Remote = map[string]string{"example.org": "sip:192.0.2.99:5060"} // names are not looked up in a bubble
	if change != nil {
		change(&cfg)
	}
	n := &Node{Addr: addr, w: w, cfg: cfg, opts: opts, disk: disk}
	n.start()
	return n
}

// NodeOn is Node with a store whose commits go by way of a Disk.
func (w *World) NodeOn(disk *Disk, ip string, change func(*server.Config)) *Node {
	w.T.Helper()
	return w.node(disk, ip, change)
}

// start makes and starts the server of a node.
func (n *Node) start() {
	t := n.w.T
	t.Helper()
	attach := func(recv sip.Receiver) server.Network {
		n.gen.Add(1)
		n.net = &network{net: n.w.Net, recv: recv, bound: n.w.Bound, ledger: n.w.Ledger, gen: int(n.gen.Load())}
		return n.net
	}
	opts := append(slices.Clone(n.opts), server.OnNetwork(attach))
	if n.disk != nil {
		opts = append(opts, server.WithCommits(n.disk.begin), server.WithRandom(func(shard uint8) io.Reader {
			return rand.NewChaCha8([32]byte(fmt.Appendf(make([]byte, 0, 64), "%032x", n.disk.seed<<32^uint64(n.gen.Load())<<16^uint64(n.Addr.Addr().As4()[3])<<8^uint64(shard))))
		}))
	}
	log := Log(t)
	if n.w.Mute {
		log = slog.New(slog.DiscardHandler)
	}
	s, err := server.New(n.cfg, log, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	n.Server, n.admin = s, s.Handler()
	n.w.wait()
	t.Cleanup(func() {
		s.Stop(context.Background())
		h := &Node{w: n.w, admin: s.Handler()}
		for _, name := range []string{"panics", "revived", "two_in_flight", "repeated", "orphan_timers"} {
			if v := h.Metric("dialog_" + name + "_total"); v != 0 {
				t.Errorf("server %v: %v %s, want 0", n.Addr, v, name)
			}
		}
	})
}

// Restart stops the server in order, lets pause pass and starts it again on
// the same store.
func (n *Node) Restart(pause time.Duration) {
	n.w.T.Helper()
	if err := n.Stop(context.Background()); err != nil {
		n.w.T.Errorf("stop: %v", err)
	}
	time.Sleep(pause)
	n.start()
}

// Crash cuts the server off in the middle of whatever it does, lets pause pass
// and starts another one on what is in its database file now.
func (n *Node) Crash(pause time.Duration) {
	t := n.w.T
	t.Helper()
	n.net.cut()
	if n.disk != nil {
		n.disk.end()
	}
	from := strings.TrimPrefix(n.cfg.Store, "sqlite:")
	to := filepath.Join(t.TempDir(), "crashed.db")
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(from + suffix)
		if err == nil {
			err = os.WriteFile(to+suffix, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	n.Stop(ctx) // what it does from now on nobody sees
	time.Sleep(pause)
	n.cfg.Store = "sqlite:" + to
	n.start()
}

// Starts is how often the node was started.
func (n *Node) Starts() int { return int(n.gen.Load()) }

// CheckEmpty reports every table that holds something.
func (n *Node) CheckEmpty(why string) {
	n.w.T.Helper()
	n.w.wait()
	for name, v := range n.Tables() {
		if v != 0 {
			n.w.T.Errorf("%s: server %v: %s: %d, want 0", why, n.Addr, name, v)
		}
	}
}

// Config is a copy of the node's configuration.
func (n *Node) Config() server.Config { return n.cfg }

// Log is a logger that writes into a test's log.
func Log(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(testLog{t}, nil)) }

// testLog puts a server's log into the test's.
type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// network is one server's part of the network.
type network struct {
	net  *sip.MemNet
	recv sip.Receiver
	host *sip.MemHost
	addr netip.AddrPort
	dead atomic.Bool

	bound  func()
	ledger *Ledger
	gen    int
}

// cut ends the server's part of the network.
func (n *network) cut() {
	n.dead.Store(true)
	n.net.Host(n.addr, nil)
}

func (n *network) Listen(_ sip.Proto, addr string) (netip.AddrPort, error) {
	var err error
	if n.addr, err = netip.ParseAddrPort(addr); err == nil {
		recv := n.recv
		if n.ledger != nil {
			recv = func(m *sip.Message) {
				n.ledger.received(m)
				n.recv(m)
			}
		}
		n.host = n.net.Host(n.addr, recv)
		if n.bound != nil {
			n.bound()
		}
	}
	return n.addr, err
}

func (n *network) FlowTo(p sip.Proto, remote netip.AddrPort) (sip.Flow, error) {
	return sip.Flow{Proto: p, Local: n.addr, Remote: remote}, nil
}

func (n *network) Send(f sip.Flow, b []byte, token uint64) error {
	if f.Proto != sip.UDP {
		return fmt.Errorf("no %v here", f.Proto)
	}
	if n.dead.Load() {
		return nil
	}
	if n.ledger != nil {
		n.ledger.sent(b, n.gen)
	}
	return n.host.Send(f, b, token)
}

func (n *network) Close() {
	if !n.dead.Load() {
		n.cut()
	}
}

// Do asks the admin API, or XCAP, without a socket. header may be nil.
func (n *Node) Do(method, path string, header http.Header, body string) *http.Response {
	return n.do("127.0.0.1:1", method, path, header, body)
}

// DoFrom is Do for another peer.
func (n *Node) DoFrom(remote, method, path string) *http.Response {
	return n.do(remote, method, path, nil, "")
}

func (n *Node) do(remote, method, path string, header http.Header, body string) *http.Response {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RemoteAddr = remote
	for k, v := range header {
		r.Header[k] = v
	}
	rec := httptest.NewRecorder()
	n.admin.ServeHTTP(rec, r)
	n.w.wait()
	return rec.Result()
}

func (n *Node) text(method, path, body string) (status int, text string) {
	n.w.T.Helper()
	r := n.Do(method, path, nil, body)
	b, err := io.ReadAll(r.Body)
	if err != nil {
		n.w.T.Error(err)
	}
	return r.StatusCode, string(b)
}

// Get asks the admin API and returns its status. into may be nil.
func (n *Node) Get(path string, into any) int {
	n.w.T.Helper()
	status, body := n.text("GET", path, "")
	if into != nil {
		if err := json.Unmarshal([]byte(body), into); err != nil {
			n.w.T.Fatalf("%s: %v in %q", path, err, body)
		}
	}
	return status
}

// Metric reads one metric without its prefix rollcall_; labels belong to the
// name.
func (n *Node) Metric(name string) float64 {
	n.w.T.Helper()
	_, text := n.text("GET", "/metrics", "")
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "rollcall_"+name+" "); ok {
			var v float64
			fmt.Sscan(rest, &v)
			return v
		}
	}
	n.w.T.Fatalf("no metric %s", name)
	return 0
}

// Put writes an XCAP document and lets that take effect.
func (n *Node) Put(selector, body string) { n.w.T.Helper(); n.change("PUT", selector, body) }

// Delete removes an XCAP document and lets that take effect.
func (n *Node) Delete(selector string) { n.w.T.Helper(); n.change("DELETE", selector, "") }

func (n *Node) change(method, selector, body string) {
	n.w.T.Helper()
	if status, text := n.text(method, "/xcap-root/"+selector, body); status >= 300 {
		n.w.T.Fatalf("%s %s: %d %s", method, selector, status, text)
	}
}

// List writes an rls-services document of one global service.
func (n *Node) List(uri string, members ...string) {
	n.w.T.Helper()
	n.Put("rls-services/global/index", Services(Service(uri, members...)))
}

// AddUser makes a user who may log in.
func (n *Node) AddUser(user, domain, password string) {
	n.w.T.Helper()
	secrets := map[string]string{}
	for a, s := range auth.Derive(user, domain, password) {
		secrets[auth.Algorithm(a).String()] = s
	}
	body, _ := json.Marshal(map[string]any{"user": user, "domain": domain, "secrets": secrets})
	if status, text := n.text("PUT", "/api/v1/user", string(body)); status >= 300 {
		n.w.T.Fatalf("PUT user: %d %s", status, text)
	}
}

// CheckIdle reports whatever is still held for a watcher (RL-37).
func (n *Node) CheckIdle() {
	n.w.T.Helper()
	n.w.wait()
	for _, name := range []string{"dialog_subscriptions", "dialog_remote_subscriptions", "rls_views", "rls_members", "pa_watchers"} {
		if v := n.Metric(name); v != 0 {
			n.w.T.Errorf("RL-37 server %v: %s is %v, want 0", n.Addr, name, v)
		}
	}
}

// Services is an rls-services document.
func Services(services ...string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>
<rls-services xmlns="urn:ietf:params:xml:ns:rls-services" xmlns:rl="urn:ietf:params:xml:ns:resource-lists">` +
		strings.Join(services, "") + `</rls-services>`
}

// Service is a service with an inline list for presence. A member is a URI, or
// a URI, a space and its display name.
func Service(uri string, members ...string) string { return ServiceFor("presence", uri, members...) }

// ServiceFor is a service for another package.
func ServiceFor(pkg, uri string, members ...string) string {
	return `<service uri="` + uri + `"><list>` + Entries(members...) + `</list><packages><package>` + pkg + `</package></packages></service>`
}

// ServiceRef is a service whose list is elsewhere.
func ServiceRef(uri, ref string) string {
	return `<service uri="` + uri + `"><resource-list>` + ref + `</resource-list></service>`
}

// Entries are the entries of a list, in the namespace that rl is bound to.
func Entries(members ...string) string {
	var b strings.Builder
	for _, m := range members {
		uri, name, named := strings.Cut(m, " ")
		fmt.Fprintf(&b, `<rl:entry uri="%s">`, uri)
		if named {
			fmt.Fprintf(&b, `<rl:display-name>%s</rl:display-name>`, name)
		}
		b.WriteString(`</rl:entry>`)
	}
	return b.String()
}

// ResourceLists is a resource-lists document with one list.
func ResourceLists(name string, members ...string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>
<rl:resource-lists xmlns:rl="urn:ietf:params:xml:ns:resource-lists"><rl:list name="` + name + `">` + Entries(members...) +
		`</rl:list></rl:resource-lists>`
}

// PIDF is a small presence document.
func PIDF(uri, basic, note string) string {
	return fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?>
<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="%s"><tuple id="t1"><status><basic>%s</basic></status><note>%s</note></tuple></presence>`,
		uri, basic, note)
}

// DialogInfo is a dialog information document with the state of one dialog.
func DialogInfo(uri, id, callID, state string) string {
	return fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?>
<dialog-info xmlns="urn:ietf:params:xml:ns:dialog-info" version="0" state="full" entity="%s"><dialog id="%s" call-id="%s" direction="recipient"><state>%s</state></dialog></dialog-info>`,
		uri, id, callID, state)
}
