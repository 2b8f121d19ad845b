package server

import (
	"testing"

	"rollcall/sip"
)

var keyed = &Server{set: &settings{domains: map[string]bool{"example.com": true, "192.0.2.1": true}}}

// TestKey: the short way of an ordinary URI leads to where the long one does.
func TestKey(t *testing.T) {
	for _, c := range []struct {
		uri, key string
		local    bool
	}{
		{"sip:alice@example.com", "sip:alice@example.com", true},
		{"sip:alice@example.com:5070", "sip:alice@example.com", true},
		{"sip:alice@192.0.2.1:5060", "sip:alice@192.0.2.1", true},
		{"sip:alice@example.org", "sip:alice@example.org", false},
		{"sip:alice@example.org:5070", "sip:alice@example.org:5070", false},
		{"sips:%61lice@EXAMPLE.com.:5061;transport=tls", "sip:alice@example.com", true},
		{"sip:alice@Example.org:5070;lr", "sip:alice@example.org:5070", false},
		{"sip:example.com:5060", "sip:example.com", true},
		{"tel:+1-202-555-0100", "tel:+12025550100", false},
	} {
		key, local, err := keyed.key([]byte(c.uri))
		if err != nil || key != c.key || local != c.local {
			t.Errorf("%s: %s local %v, %v", c.uri, key, local, err)
		}
		u, err := sip.ParseURI(c.uri)
		if err != nil {
			t.Fatal(err)
		}
		if u.Port = 0; keyed.local(u.Host) != c.local || c.local && u.Key() != c.key {
			t.Errorf("%s: the long way gives %s, local %v", c.uri, u.Key(), keyed.local(u.Host))
		}
	}
	for _, bad := range []string{"", "sip:", "sip:a@", "sip:a@h:0", "sip:a@.h", "mailto:a@example.com"} {
		if key, _, err := keyed.key([]byte(bad)); err == nil {
			t.Errorf("%q has the key %q", bad, key)
		}
	}
}

func BenchmarkKey(b *testing.B) {
	for name, uri := range map[string]string{"plain": "sip:alice@example.com", "other": "sip:alice@example.com;transport=tcp"} {
		b.Run(name, func(b *testing.B) {
			text := []byte(uri)
			b.ReportAllocs()
			for b.Loop() {
				if key, local, err := keyed.key(text); err != nil || !local || len(key) != len("sip:alice@example.com") {
					b.Fatal(key, local, err)
				}
			}
		})
	}
}
