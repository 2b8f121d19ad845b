package auth

import (
	"bytes"
	"testing"

	"rollcall/sip"
)

// FuzzCredentials: a field value in a request and in a 401. What is read can
// be written and read again the same, never twice the size; what the client
// makes of it is a message that parses, and a forged value never gets in.
func FuzzCredentials(f *testing.F) {
	v := NewVerifier(Options{Key: make([]byte, 32), AllowNoQop: true})
	f.Add(`Digest username="alice", realm="example.com", nonce="x", uri="sip:b", response="0123", algorithm=MD5, cnonce="c", qop=auth, nc=00000001`)
	f.Add(`Digest realm="example.com", nonce="n", opaque="o", qop="auth,auth-int", algorithm=SHA-256-sess, stale=TRUE`)
	f.Add("Digest other=0")
	f.Add(handmade(v, nil)[len("Authorization: "):])
	f.Add("digest realm=\"\\\"\\\\\xff\" ,,nonce = n,\tusername*=UTF-8''x, userhash=true")
	f.Fuzz(func(t *testing.T, value string) {
		p, digest, reason := parse([]byte(value))
		if text := p.append(nil); digest && reason == "" && string(text) != "Digest" { // none of the known parameters
			if len(text) > 2*len(value)+200 {
				t.Fatalf("%d octets out of %d", len(text), len(value))
			}
			again, _, reason := parse(text)
			if reason != "" && len(text) <= maxValue {
				t.Fatalf("%q, written as %q, is refused: %s", value, text, reason)
			}
			for k := range p {
				if reason == "" && (!bytes.Equal(p[k], again[k]) || (p[k] == nil) != (again[k] == nil)) {
					t.Fatalf("%s is %q, written as %q it is %q", paramNames[k], p[k], text, again[k])
				}
			}
		}

		var m sip.Message
		const head = "Via: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:a@b>\r\nCall-ID: 1\r\nCSeq: 1 SUBSCRIBE\r\n"
		if m.Parse([]byte("SUBSCRIBE sip:bob@example.com SIP/2.0\r\n"+head+"Authorization: "+value+"\r\n\r\n"), false) == nil {
			c, res := v.Parse(start, &m, func(string) bool { return true })
			if res == OK || res == Wrong || (res == Claimed) != c.claimed || (res == Malformed) != (c.Reason != "") {
				t.Fatalf("%v %+v", res, c)
			}
			if res == Claimed && v.Check(start, c, Secrets{}) != Wrong {
				t.Fatal("unknown user gets in")
			}
		}
		if m.Parse([]byte("SIP/2.0 401 x\r\n"+head+"WWW-Authenticate: "+value+"\r\n\r\n"), false) == nil {
			c := NewClient(map[string]Login{"*": {User: `a"b`, Password: "c"}}, ClientOptions{})
			var at Attempt
			retry := c.Challenged("k", &m, &at)
			fields := c.Append(nil, "k", "SUBSCRIBE", "sip:b", nil, &at)
			if retry != (len(fields) > 0) {
				t.Fatalf("retry %v with %q", retry, fields)
			}
			if err := m.Parse([]byte("SUBSCRIBE sip:b SIP/2.0\r\n"+head+string(fields)+"\r\n"), false); err != nil {
				t.Fatalf("%v in %q", err, fields)
			}
			n := 0
			for f := range m.Headers(sip.HdrAuthorization) {
				n++
				if _, digest, reason := parse(f); !digest || reason != "" && len(f) <= maxValue {
					t.Fatalf("own credentials %q: %s", f, reason)
				}
			}
			if n > 16 || retry && n == 0 {
				t.Fatalf("%d fields", n)
			}
		}
	})
}
