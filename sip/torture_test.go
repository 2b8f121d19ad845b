package sip

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTortureStream sends the messages of RFC 4475 over TCP, where it matters
// most where a message ends (CORE-20). What lost the framing is answered and
// the connection closed (sections 3.1.2.2, 3.1.2.3 and 3.3.9).
func TestTortureStream(t *testing.T) {
	const (
		whole  = iota // framed to its last octet
		closed        // 400 and closed
		waits         // for octets that never come
		two           // two requests
	)
	special := map[string]int{"ncl": closed, "mcl01": closed, "inv2543": closed, "clerr": waits, "baddn": waits, "dblreq": two}
	files, err := filepath.Glob("testdata/torture/*.dat")
	if err != nil || len(files) != 49 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	w := newWireEnd(t, EndpointOptions{})
	to := w.listen(TCP)
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".dat")
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			n, err := FrameLen(raw)
			switch special[name] {
			case whole:
				if n != len(raw) || err != nil {
					t.Errorf("%d of %d octets, %v", n, len(raw), err)
				}
			case closed:
				p := dialPeer(t, "tcp", to)
				p.write(string(raw))
				if s := p.closed(); !strings.HasPrefix(s, "SIP/2.0 400 ") || strings.Count(s, "\r\n\r\n") != 1 || err == nil {
					t.Errorf("read %q, %v", s, err)
				}
			case waits:
				p := dialPeer(t, "tcp", to)
				p.write(string(raw))
				p.Conn.(*net.TCPConn).CloseWrite()
				if s := p.closed(); s != "" || n != 0 || err != nil {
					t.Errorf("read %q, %d, %v", s, n, err)
				}
			case two:
				p := dialPeer(t, "tcp", to)
				p.write(string(raw))
				w.t = t
				if a, b := w.receive(), w.receive(); a.Method() != REGISTER || b.Method() != INVITE {
					t.Errorf("%s and %s", a.MethodToken(), b.MethodToken())
				}
			}
		})
	}
	w.none()
}
