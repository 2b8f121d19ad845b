package peer

import (
	"bytes"
	_ "embed"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"
)

//go:embed kamailio.cfg.tmpl
var kamailioConfig string

// Kamailio is a presence server for one domain that answers PUBLISH and SUBSCRIBE for the package presence, over UDP and TCP on
// one address. It keeps its state in memory alone, unless it has a database, and lets everybody watch.
type Kamailio struct {
	Addr   string // "127.0.0.1:PORT", for UDP and TCP
	Domain string
	DB     string // address of a database as Kamailio writes it, "" for none

	t    testing.TB
	dir  string
	runs int
	p    *Process
}

// StartKamailio starts a server for the domain and returns when it answers over both transports.
func StartKamailio(t testing.TB, domain string) *Kamailio {
	t.Helper()
	return startKamailio(t, &Kamailio{Domain: domain})
}

// StartKamailioOn is StartKamailio with a database, sqlite:///PATH or postgres://..., which has Kamailio's tables. On
// PostgreSQL the server has lists, too; on SQLite Kamailio 5.6 calls a function that is not there when it serves one.
func StartKamailioOn(t testing.TB, domain, db string) *Kamailio {
	t.Helper()
	return startKamailio(t, &Kamailio{Domain: domain, DB: db})
}

func startKamailio(t testing.TB, k *Kamailio) *Kamailio {
	t.Helper()
	k.t, k.dir = t, t.TempDir()
	// Somebody may take the port between its choice and its use.
	var err error
	for range 3 {
		k.Addr = fmt.Sprintf("127.0.0.1:%d", FreePort(t))
		if err = k.start(); err == nil {
			return k
		}
	}
	t.Fatal(err)
	return nil
}

func (k *Kamailio) start() error {
	k.runs++
	var cfg bytes.Buffer
	driver, lists := "db_sqlite", ""
	if strings.HasPrefix(k.DB, "postgres:") {
		driver, lists = "db_postgres", "yes"
	}
	if err := template.Must(template.New("cfg").Parse(kamailioConfig)).Execute(&cfg, map[string]string{
		"Domain": k.Domain, "Addr": k.Addr, "Dir": k.dir, "DB": k.DB, "Driver": driver, "Lists": lists,
		// The module ends the name with a time in seconds; a restart is faster.
		"Trace": fmt.Sprintf("trace-%03d-", k.runs),
	}); err != nil {
		return err
	}
	file := filepath.Join(k.dir, "kamailio.cfg")
	if err := os.WriteFile(file, cfg.Bytes(), 0o600); err != nil {
		return err
	}
	p, err := start(Command{
		Path: "kamailio",
		Args: []string{
			"-f", file, "-w", k.dir, "-Y", k.dir, "-P", filepath.Join(k.dir, "kamailio.pid"),
			"-m", "64", "-M", "8", "-DD", "-E",
		},
		// It ends within milliseconds, or hangs on a lock of its own.
		Grace: 500 * time.Millisecond,
		// The attendant passes SIGTERM on to its workers; SIGKILL would orphan them.
		DeathSignal: syscall.SIGTERM,
	})
	if err != nil {
		return err
	}
	up := func() bool { return p.Exited() || pingUDP(k.Addr) && dialTCP(k.Addr) }
	if poll(15*time.Second, up) != nil || p.Exited() {
		p.Stop()
		return fmt.Errorf("kamailio does not answer on %s; log:\n%s", k.Addr, tail(p.log.bytes()))
	}
	k.p = p
	k.t.Cleanup(func() { p.cleanup(k.t) })
	return nil
}

// Log is the log of the current run.
func (k *Kamailio) Log() string { return k.p.Log() }

// Stop ends the server at once and without a word to its watchers. Restart brings it back.
func (k *Kamailio) Stop() { k.p.Stop() }

// Restart stops the server when it runs and starts it on the same address, with nothing in its memory.
func (k *Kamailio) Restart() {
	k.t.Helper()
	k.p.Stop()
	if err := k.start(); err != nil {
		k.t.Fatal(err)
	}
}

// Pause makes the server hang: its sockets stay, nothing is answered. Resume ends that.
func (k *Kamailio) Pause() { _ = k.p.Signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (k *Kamailio) Resume() { _ = k.p.Signal(syscall.SIGCONT) }

// Trace returns all messages since the first start, oldest first, except OPTIONS. A message shows up a few milliseconds after
// it was on the wire.
func (k *Kamailio) Trace() []Trace {
	files, _ := filepath.Glob(filepath.Join(k.dir, "trace-*.data"))
	sort.Strings(files)
	var out []Trace
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			k.t.Errorf("kamailio trace: %v", err)
		}
		out = append(out, parseSipdump(b)...)
	}
	return out
}

// WaitTrace waits until the condition holds for the trace and returns it; it fails the test at the deadline.
func (k *Kamailio) WaitTrace(timeout time.Duration, what string, cond func([]Trace) bool) []Trace {
	k.t.Helper()
	var all []Trace
	Eventually(k.t, timeout, "kamailio: "+what, func() bool {
		all = k.Trace()
		return cond(all)
	})
	return all
}

// parseSipdump reads the format of Kamailio's sipdump module. A record that is not written to its end yet is left out.
func parseSipdump(b []byte) []Trace {
	var out []Trace
	for {
		record, rest, ok := bytes.Cut(b, []byte("||||||||||||||||||||\n"))
		if !ok {
			return out
		}
		b = rest
		head, raw, ok := bytes.Cut(record, []byte("~~~~~~~~~~~~~~~~~~~~\n"))
		if !ok {
			continue
		}
		m := Trace{Sent: bytes.Contains(head, []byte("tag: snd\n")), Raw: raw}
		if m.Method() != "OPTIONS" {
			out = append(out, m)
		}
	}
}

// pingUDP asks with an OPTIONS and reports whether any answer came within 200 ms.
func pingUDP(addr string) bool {
	conn, err := net.Dial("udp4", addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	local := conn.LocalAddr().String()
	id := fmt.Sprint(time.Now().UnixNano())
	msg := strings.Join([]string{
		"OPTIONS sip:" + addr + " SIP/2.0", "Via: SIP/2.0/UDP " + local + ";branch=z9hG4bK" + id, "Max-Forwards: 70",
		"From: <sip:ping@" + local + ">;tag=" + id, "To: <sip:" + addr + ">", "Call-ID: " + id, "CSeq: 1 OPTIONS",
		"Content-Length: 0", "", "",
	}, "\r\n")
	if _, err := conn.Write([]byte(msg)); err != nil {
		return false
	}
	_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	_, err = conn.Read(make([]byte, 65536))
	return err == nil
}

func dialTCP(addr string) bool {
	conn, err := net.DialTimeout("tcp4", addr, time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}
