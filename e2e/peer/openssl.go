package peer

import (
	"bytes"
	"strconv"
	"strings"
	"testing"
	"time"
)

// OpenSSLOptions describe a TLS connection made by "openssl s_client".
type OpenSSLOptions struct {
	Server string // "127.0.0.1:PORT"
	Name   string // asked for by SNI, and the host name that the certificate must have
	CA     string // file of the authority that the server must be verified by; empty: it is not verified
	Cert   string // of the client, with the key in the same file; empty: none
	Args   []string
}

// OpenSSL is a TLS connection as a pipe: what is written goes to the server, what the server sends is taken apart into messages.
type OpenSSL struct {
	*Process
	t      testing.TB
	out    *logBuffer
	parsed int
	queue  []Trace
}

// StartOpenSSL starts s_client. The log says what the handshake came to.
func StartOpenSSL(t testing.TB, o OpenSSLOptions) *OpenSSL {
	t.Helper()
	args := []string{
		"s_client", "-connect", o.Server,
		"-brief", // which also takes lines that begin with Q or R for data
	}
	if o.CA != "" {
		args = append(args, "-servername", o.Name, "-verify_hostname", o.Name, "-verify_return_error", "-CAfile", o.CA)
	}
	if o.Cert != "" {
		args = append(args, "-cert", o.Cert, "-key", o.Cert)
	}
	s := &OpenSSL{t: t, out: newLogBuffer()}
	s.Process = Start(t, Command{Path: "openssl", Args: append(args, o.Args...), Stdout: s.out})
	return s
}

// WaitVerified waits for the end of a handshake in which the server was found to be who it should be.
func (s *OpenSSL) WaitVerified(timeout time.Duration) {
	s.t.Helper()
	s.WaitLog(s.t, "Verification: OK", timeout)
}

// Send writes to the server.
func (s *OpenSSL) Send(text []byte) {
	s.t.Helper()
	if _, err := s.Stdin.Write(text); err != nil {
		s.t.Fatalf("openssl: %v", err)
	}
}

// Message waits for the next message, or keep-alive (an empty Trace), from the server; false at the deadline or when the connection
// is gone.
func (s *OpenSSL) Message(timeout time.Duration) (Trace, bool) {
	s.out.wait(timeout, func(b []byte) bool {
		for s.take(b) {
		}
		return len(s.queue) > 0 || s.Exited()
	})
	if len(s.queue) == 0 {
		return Trace{}, false
	}
	m := s.queue[0]
	s.queue = s.queue[1:]
	return m, true
}

// take moves one whole message to the queue.
func (s *OpenSSL) take(b []byte) bool {
	b = b[s.parsed:]
	if bytes.HasPrefix(b, []byte("\r\n")) {
		s.parsed += 2
		s.queue = append(s.queue, Trace{})
		return true
	}
	head, rest, ok := bytes.Cut(b, []byte("\r\n\r\n"))
	if !ok {
		return false
	}
	n, err := strconv.Atoi(strings.TrimSpace(Trace{Raw: b[:len(head)+4]}.Header("Content-Length")))
	if err != nil {
		s.t.Errorf("openssl: a message without Content-Length on a stream:\n%s", head)
	}
	if len(rest) < n {
		return false
	}
	end := len(head) + 4 + n
	s.parsed += end
	s.queue = append(s.queue, Trace{Raw: b[:end:end]})
	return true
}
