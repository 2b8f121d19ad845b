package peer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BaresipOptions describe a baresip softphone.
type BaresipOptions struct {
	AOR       string   // "sip:alice@example.com"
	Server    string   // "127.0.0.1:PORT": its outbound proxy; it does not register
	Transport string   // "udp" (default), "tcp" or "tls"
	CA        string   // for tls: file of the authority that the server is verified by
	Password  string   // for digest; the user name is that of AOR
	Contacts  []string // URIs that it subscribes to at its start
	Publish   bool     // publish its own status from the start on
}

// What baresip calls the states of a contact. As its own status only online and offline can be set.
const (
	BaresipUnknown = "Unknown" // no NOTIFY yet
	BaresipOnline  = "Online"
	BaresipOffline = "Offline"
	BaresipBusy    = "Busy"
)

// Baresip is a softphone without sound or screen.
type Baresip struct {
	*Process
	t       testing.TB
	server  string
	publish bool
	login   bool // it has a password: a 401 is answered
	status  string
	conn    net.Conn
	in      *bufio.Reader
	token   int
}

const baresipConfig = `poll_method epoll
net_interface 127.0.0.1
module_path %s
ctrl_tcp_listen 127.0.0.1:%d
audio_player none
module g711.so
module_tmp account.so
module_app contact.so
module_app debug_cmd.so
module_app presence.so
module_app ctrl_tcp.so
`

// StartBaresip starts a softphone. It returns when the phone takes commands and, if it publishes, when its first PUBLISH, which
// has the status "unknown", was answered.
func StartBaresip(t testing.TB, o BaresipOptions) *Baresip {
	t.Helper()
	o.Transport = or(o.Transport, "udp")
	var err error
	for range 3 {
		var b *Baresip
		if b, err = startBaresip(t, o); err == nil {
			if o.Publish {
				b.status = BaresipUnknown
				b.waitPublished(1)
			}
			return b
		}
	}
	t.Fatal(err)
	return nil
}

func startBaresip(t testing.TB, o BaresipOptions) (*Baresip, error) {
	t.Helper()
	dir := t.TempDir()
	port := FreePort(t)
	modules := "/usr/lib/baresip/modules"
	if found, _ := filepath.Glob("/usr/lib/*/baresip/modules"); len(found) > 0 {
		modules = found[0]
	}
	if _, err := os.Stat(modules); err != nil {
		t.Fatalf("baresip's modules are not installed; run scripts/setup (%v)", err)
	}
	account := fmt.Sprintf(`<%s;transport=%s>;regint=0;auth_pass=%s;outbound="sip:%s;transport=%s"`,
		o.AOR, o.Transport, or(o.Password, "none"), o.Server, o.Transport)
	if o.Publish {
		account += ";pubint=120"
	}
	contacts := "" // an empty file, or else baresip makes one
	for i, uri := range o.Contacts {
		contacts += fmt.Sprintf("\"contact %d\" <%s>;presence=p2p\n", i, uri)
	}
	config := fmt.Sprintf(baresipConfig, modules, port)
	if o.CA != "" {
		config += "sip_cafile " + o.CA + "\n"
	}
	for name, text := range map[string]string{
		"config": config, "accounts": account + "\n", "contacts": contacts,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := start(Command{Path: "baresip", Args: []string{"-4", "-s", "-v", "-f", dir}, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	b := &Baresip{Process: p, t: t, server: o.Server, publish: o.Publish, login: o.Password != ""}
	if err := p.waitLog("baresip is ready.", 10*time.Second); err != nil {
		p.Stop()
		return nil, err
	}
	if b.conn, err = net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second); err != nil {
		p.Stop()
		return nil, fmt.Errorf("baresip: %w; log:\n%s", err, tail(p.log.bytes()))
	}
	b.in = bufio.NewReader(b.conn)
	t.Cleanup(func() {
		_ = b.conn.Close()
		p.cleanup(t)
	})
	return b, nil
}

// SetPresence sets the phone's own status to BaresipOnline or BaresipOffline and, when that is a change, waits until the
// PUBLISH was answered with success.
func (b *Baresip) SetPresence(status string) {
	b.t.Helper()
	command := map[string]string{BaresipOnline: "presence_online", BaresipOffline: "presence_offline"}[status]
	if command == "" {
		b.t.Fatalf("baresip cannot be set to %q", status)
	}
	if status == b.status {
		return
	}
	before := len(b.published())
	b.Command(command, "")
	b.status = status
	if b.publish {
		b.waitPublished(before + 1)
	}
}

// published are the final answers to its PUBLISHes, without first challenges.
func (b *Baresip) published() []Trace {
	return slices.DeleteFunc(Responses(b.Trace(), false, "PUBLISH"), func(m Trace) bool { return b.login && m.Status() == 401 })
}

func (b *Baresip) waitPublished(n int) {
	b.t.Helper()
	var answers []Trace
	ok := b.log.wait(10*time.Second, func([]byte) bool {
		answers = b.published()
		return len(answers) >= n || b.Exited()
	})
	if !ok || len(answers) < n {
		b.t.Fatal("baresip: its PUBLISH was not answered within 10 s")
	}
	if m := answers[n-1]; m.Status() >= 300 {
		b.t.Fatalf("baresip: its PUBLISH was answered %q", m.StartLine())
	}
}

// WaitContact waits until the phone shows a contact in that state; it fails the test at the deadline.
func (b *Baresip) WaitContact(uri, status string, timeout time.Duration) {
	b.t.Helper()
	last := ""
	err := poll(timeout, func() bool {
		last = b.Contact(uri)
		return last == status
	})
	if err != nil {
		b.t.Fatalf("baresip: %s is %q, not %q, after %v", uri, last, status, timeout)
	}
}

var (
	ansi           = regexp.MustCompile("\x1b\\[[0-9;]*m")
	baresipContact = regexp.MustCompile(`(?m)^>?\s*(\S+) .*<([^>]+)>`)
)

// Contact returns the state that the phone shows for a contact, "" when it has no such contact.
func (b *Baresip) Contact(uri string) string {
	b.t.Helper()
	for _, m := range baresipContact.FindAllStringSubmatch(ansi.ReplaceAllString(b.Command("contacts", ""), ""), -1) {
		if m[2] == uri {
			return m[1]
		}
	}
	return ""
}

// Quit lets the phone end by itself: it takes its publication back and ends its subscriptions, without waiting for answers.
func (b *Baresip) Quit() {
	b.t.Helper()
	b.Command("quit", "")
	b.Wait(b.t, 10*time.Second)
}

// Command gives the phone one of its long commands and returns its output.
func (b *Baresip) Command(name, params string) string {
	b.t.Helper()
	b.token++
	token := strconv.Itoa(b.token)
	msg, err := json.Marshal(map[string]string{"command": name, "params": params, "token": token})
	if err != nil {
		b.t.Fatal(err)
	}
	_ = b.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(b.conn, "%d:%s,", len(msg), msg); err != nil {
		b.t.Fatalf("baresip: %v", err)
	}
	for {
		text, err := b.readNetstring()
		if err != nil {
			if name == "quit" {
				return ""
			}
			b.t.Fatalf("baresip %s: %v", name, err)
		}
		var answer struct {
			Response, OK bool
			Data, Token  string
		}
		// Events have other fields; a bad one is no answer either.
		if json.Unmarshal(text, &answer) != nil || !answer.Response || answer.Token != token {
			continue
		}
		if !answer.OK {
			b.t.Fatalf("baresip %s: %s", name, answer.Data)
		}
		return answer.Data
	}
}

func (b *Baresip) readNetstring() ([]byte, error) {
	num, err := b.in.ReadString(':')
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(num, ":"))
	if err != nil || n < 0 || n > 1<<20 {
		return nil, fmt.Errorf("not a netstring: %q", num)
	}
	text := make([]byte, n+1)
	if _, err := io.ReadFull(b.in, text); err != nil {
		return nil, err
	}
	return text[:n], nil
}

// Trace returns all messages so far, oldest first, retransmissions included.
func (b *Baresip) Trace() []Trace { return parseBaresipTrace(b.log.bytes(), b.server) }

var baresipHead = regexp.MustCompile("\x1b\\[[0-9;]+m#\n(?:UDP|TCP|TLS) ([0-9.:]+) -> ([0-9.:]+)\n")

// parseBaresipTrace reads the log of a run with -s: a coloured "#", the addresses, the message, the colour's end.
func parseBaresipTrace(log []byte, server string) []Trace {
	var out []Trace
	for {
		at := baresipHead.FindSubmatchIndex(log)
		if at == nil {
			return out
		}
		m := Trace{Sent: string(log[at[4]:at[5]]) == server}
		raw, rest, ok := bytes.Cut(log[at[1]:], []byte("\x1b[;m\n"))
		if !ok {
			return out
		}
		log = rest
		if m.Raw = bytes.Clone(raw); m.Status() != 0 || len(bytes.TrimSpace(raw)) > 0 {
			out = append(out, m)
		}
	}
}
