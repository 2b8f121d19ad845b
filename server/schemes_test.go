package server_test

import (
	"testing"
	"testing/synctest"

	"rollcall/server"
	"rollcall/server/servertest"
)

// CORE-02: a presentity can be watched by any URI that names it; a scheme we
// know nothing of gets 416, whatever else the request is about. RFC 3856
// section 5, RFC 3859, RFC 3860.
func TestSchemes(t *testing.T) {
	for _, c := range []struct {
		uri    string
		status int
		text   string
	}{
		{"sip:bob@example.com", 200, "open: here"},
		{"sips:bob@example.com", 200, "open: here"},
		{"pres:bob@example.com", 200, "open: here"},
		{"PRES:bob@EXAMPLE.com", 200, "open: here"},
		{"im:bob@example.com", 200, "open: here"},
		{"sip:bob@[2001:db8::1]", 200, "open: here"},
		{"sip:bob@[2001:DB8:0::1]:5070", 200, "open: here"},
		{"sip:bob@example.com?subject=x", 200, "open: here"},
		{"pres:carol@example.com", 200, "closed"},
		{"mailto:bob@example.com", 416, ""},
		{"http://example.com/bob", 416, ""},
		{"urn:service:sos", 416, ""},
		{"sip:bob@", 400, ""},
		{"sip:b%4ob@example.com", 400, ""},
		{"sip:bob@example.com:99999", 400, ""},
	} {
		t.Run(c.uri, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := servertest.New(t)
				n := w.Node("192.0.2.1", func(cfg *server.Config) { cfg.Domain = append(cfg.Domain, "[2001:db8::1]") })
				for _, aor := range []string{bob, "sip:bob@[2001:db8::1]"} {
					w.UA(aor).Publication(n).Say("open", "here")
				}
				sub := w.UA(alice).Dialog(n, c.uri)
				if m := sub.Subscribe(600); m.Status() != c.status {
					t.Fatalf("CORE-02: %d %s, want %d", m.Status(), m.Reason(), c.status)
				}
				if c.status != 200 {
					n.CheckIdle()
					return
				}
				if got := sub.Next().Text(); got != c.text {
					t.Errorf("CORE-02: %q, want %q", got, c.text)
				}
				sub.Unsubscribe()
				n.CheckIdle()
			})
		})
	}
}
