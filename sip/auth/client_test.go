package auth

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/icholy/digest"

	"rollcall/sip"
)

func response(t testing.TB, status int, lines ...string) *sip.Message {
	return message(t, fmt.Sprintf("SIP/2.0 %d x", status), lines...)
}

func fields(name string, values []string) []string {
	lines := make([]string, len(values))
	for i, v := range values {
		lines[i] = name + ": " + v
	}
	return lines
}

func alice() map[string]Login {
	return map[string]Login{"example.com": {User: "alice", Password: "secret"}}
}

// send writes a request's credentials and gives the request.
func send(t testing.TB, c *Client, key string, at *Attempt) *sip.Message {
	t.Helper()
	text := string(c.Append(nil, key, "SUBSCRIBE", "sip:bob@example.com", []byte(body), at))
	return request(t, strings.Split(strings.TrimSuffix("X: y\r\n"+text, "\r\n"), "\r\n")...)
}

// credentials reads what a request carries, by an implementation that is not ours.
func credentials(t testing.TB, m *sip.Message, h sip.HeaderID) (all []*digest.Credentials) {
	t.Helper()
	for v := range m.Headers(h) {
		c, err := digest.ParseCredentials(string(v))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// TestOwnServer: our client gets in at our server with every algorithm, keeps
// the nonce for later requests, and gets through when it is stale.
func TestOwnServer(t *testing.T) {
	for a := range algorithms {
		for _, session := range []bool{false, true} {
			t.Run(fmt.Sprint(a, session), func(t *testing.T) {
				v := NewVerifier(Options{Algorithms: []Algorithm{a}})
				c := NewClient(alice(), ClientOptions{})
				var at Attempt
				if got := judge(v, start, send(t, c, "k", &at)); got != NoCredentials {
					t.Fatalf("first request: %v", got)
				}
				challenges := v.Challenge(start, "example.com", false)
				if session {
					challenges[0] = strings.Replace(challenges[0], a.String(), a.String()+"-sess", 1)
				}
				if !c.Challenged("k", response(t, 401, fields("WWW-Authenticate", challenges)...), &at) {
					t.Fatal("no retry")
				}
				if got := judge(v, start, send(t, c, "k", &at)); got != OK {
					t.Fatalf("with credentials: %v", got)
				}
				for range 100 {
					if got := judge(v, start, send(t, c, "k", &Attempt{})); got != OK {
						t.Fatalf("later request: %v", got)
					}
				}
				later := start.Add(v.nonces.life + 1)
				at = Attempt{}
				if got := judge(v, later, send(t, c, "k", &at)); got != Stale {
					t.Fatalf("after the nonce's life: %v", got)
				}
				if !c.Challenged("k", response(t, 401, fields("WWW-Authenticate", v.Challenge(later, "example.com", true))...), &at) {
					t.Fatal("no retry after stale")
				}
				if got := judge(v, later, send(t, c, "k", &at)); got != OK {
					t.Fatalf("after stale: %v", got)
				}
			})
		}
	}
}

// TestRefused: CORE-22, a refused password is not tried again for the request.
func TestRefused(t *testing.T) {
	v := NewVerifier(Options{})
	c := NewClient(map[string]Login{"example.com": {User: "alice", Password: "wrong"}}, ClientOptions{})
	challenge := func(stale bool) *sip.Message {
		return response(t, 401, fields("WWW-Authenticate", v.Challenge(start, "example.com", stale))...)
	}
	var at, other Attempt
	send(t, c, "k", &at)
	send(t, c, "k", &other)
	if !c.Challenged("k", challenge(false), &at) {
		t.Fatal("no retry of the first request")
	}
	// The other one was under way without credentials: its 401 refuses nothing.
	if !c.Challenged("k", challenge(false), &other) {
		t.Fatal("no retry of a request that crossed")
	}
	if got := judge(v, start, send(t, c, "k", &at)); got != Wrong {
		t.Fatal(got)
	}
	send(t, c, "k", &other)
	for _, a := range []*Attempt{&at, &other} {
		if c.Challenged("k", challenge(false), a) {
			t.Error("retry of refused credentials")
		}
	}
	// What went without credentials is no refusal, whatever went before.
	last := at
	send(t, c, "k", &last)
	if !c.Challenged("k", challenge(false), &last) {
		t.Error("no retry of a request without credentials")
	}
	send(t, c, "k", &last)
	c.Challenged("k", challenge(false), &last)

	// The next request starts anew.
	at = Attempt{}
	if got := judge(v, start, send(t, c, "k", &at)); got != NoCredentials {
		t.Errorf("refused credentials are sent again: %v", got)
	}

	// A server that says stale for ever is left after 4 answers.
	at = Attempt{}
	tries := 0
	for send(t, c, "k", &at); c.Challenged("k", challenge(true), &at); send(t, c, "k", &at) {
		tries++
	}
	if tries != maxAttempts {
		t.Errorf("%d retries, want %d", tries, maxAttempts)
	}
}

// TestChoice: RFC 8760 section 2.4 and DG-01, which challenge is answered.
func TestChoice(t *testing.T) {
	const md5, sha, sha512 = `Digest realm="example.com", nonce="m", algorithm=MD5, qop="auth"`,
		`Digest realm="example.com", nonce="s", algorithm=SHA-256, qop="auth"`,
		`Digest realm="example.com", nonce="5", algorithm=SHA-512-256, qop="auth"`
	for _, tc := range []struct {
		name       string
		challenges []string
		opt        ClientOptions
		want       []string // nonces; none means no retry
	}{
		{"topmost", []string{sha, md5}, ClientOptions{}, []string{"s"}},
		{"topmost, though weaker", []string{md5, sha}, ClientOptions{}, []string{"m"}},
		{"unknown algorithm", []string{`Digest realm="example.com", nonce="x", algorithm=SHA-3, qop="auth"`, sha512}, ClientOptions{}, []string{"5"}},
		{"unknown scheme", []string{`Basic realm="example.com"`, `Bearer x`, md5}, ClientOptions{}, []string{"m"}},
		{"malformed", []string{`Digest realm="example.com", nonce=`, sha}, ClientOptions{}, []string{"s"}},
		{"qop not known", []string{`Digest realm="example.com", nonce="x", qop="other"`, sha}, ClientOptions{}, []string{"s"}},
		{"MD5 switched off", []string{md5, sha}, ClientOptions{Algorithms: []Algorithm{SHA256}}, []string{"s"}},
		{"MD5 switched off, downgraded", []string{md5}, ClientOptions{Algorithms: []Algorithm{SHA256}}, nil},
		{"MD5 switched off, algorithm absent", []string{`Digest realm="example.com", nonce="x"`}, ClientOptions{Algorithms: []Algorithm{SHA256}}, nil},
		{"MD5-sess switched off", []string{strings.Replace(md5, "MD5", "MD5-sess", 1)}, ClientOptions{Algorithms: []Algorithm{SHA256}}, nil},
		{"other realm", []string{`Digest realm="bank.example.org", nonce="x", qop="auth"`}, ClientOptions{}, nil},
		{"realm in other case", []string{`Digest realm="EXAMPLE.com", nonce="x", qop="auth"`}, ClientOptions{}, nil},
		{"two realms", []string{`Digest realm="bank.example.org", nonce="x"`, `Digest realm="example.net", nonce="n", qop="auth"`, sha, md5}, ClientOptions{}, []string{"n", "s"}},
		{"Basic only", []string{`Basic realm="example.com"`}, ClientOptions{}, nil},
		{"no nonce", []string{`Digest realm="example.com"`}, ClientOptions{}, nil},
		{"none", nil, ClientOptions{}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			logins := alice()
			logins["example.net"] = Login{User: "a", Password: "b"}
			c := NewClient(logins, tc.opt)
			var at Attempt
			if got := c.Challenged("k", response(t, 401, fields("WWW-Authenticate", tc.challenges)...), &at); got != (tc.want != nil) {
				t.Errorf("retry is %v", got)
			}
			var nonces []string
			for _, c := range credentials(t, send(t, c, "k", &at), sip.HdrAuthorization) {
				nonces = append(nonces, c.Nonce)
			}
			if !slices.Equal(nonces, tc.want) {
				t.Errorf("answered are %q, want %q", nonces, tc.want)
			}
		})
	}
}

// TestWritten: what stands in the credentials, made again by another
// implementation.
func TestWritten(t *testing.T) {
	for _, tc := range []struct{ name, challenge, qop string }{
		{"auth", `Digest realm="a\"b\\c", nonce="n/+=", opaque="o\"p", qop="auth", algorithm=SHA-256`, "auth"},
		{"auth before auth-int", `Digest realm="a\"b\\c", nonce="n", qop="auth-int , auth"`, "auth"},
		{"auth-int", `Digest realm="a\"b\\c", nonce="n", qop="auth-int", algorithm=sha-512-256`, "auth-int"},
		{"RFC 2069", `Digest realm="a\"b\\c", nonce="n", domain="sip:x", opaque=""`, ""},
		{"loose", `digest realm = "a\"b\\c" ,, nonce=n,qop=auth , Algorithm="MD5", `, "auth"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := NewClient(map[string]Login{"*": {User: `al"ice`, Password: "secret"}}, ClientOptions{})
			var at Attempt
			if !c.Challenged("k", response(t, 407, "Proxy-Authenticate: "+tc.challenge), &at) {
				t.Fatal("no retry")
			}
			for nc := 1; nc <= 2; nc++ {
				m := send(t, c, "k", &at)
				if m.Has(sip.HdrAuthorization) {
					t.Error("a proxy's challenge is answered to a server")
				}
				got := credentials(t, m, sip.HdrProxyAuthorization)[0]
				p, _, _ := parse([]byte(tc.challenge))
				chal := &digest.Challenge{Realm: `a"b\c`, Nonce: string(p[pNonce]), Algorithm: string(p[pAlgorithm]), Opaque: string(p[pOpaque])}
				if tc.qop != "" {
					chal.QOP = []string{tc.qop}
				}
				again := answerTo(t, chal, `al"ice`, got.Cnonce, nc)
				if tc.qop == "" {
					again.Nc, again.Cnonce = 0, ""
				}
				again.Algorithm = got.Algorithm
				if *got != *again {
					t.Errorf("got  %+v\nwant %+v", got, again)
				}
				if tc.qop != "" && len(got.Cnonce) < 16 {
					t.Errorf("cnonce is %q", got.Cnonce)
				}
			}
		})
	}
}

func answerTo(t testing.TB, chal *digest.Challenge, user, cnonce string, nc int) *digest.Credentials {
	t.Helper()
	cred, err := digest.Digest(chal, digest.Options{Method: "SUBSCRIBE", URI: "sip:bob@example.com", Username: user, Password: "secret", Count: nc, Cnonce: cnonce, GetBody: bodyReader})
	if err != nil {
		t.Fatal(err)
	}
	return cred
}

// TestProxyAndServer: RFC 3261 section 22.3, credentials for both at once, also
// when one response carries both challenges.
func TestProxyAndServer(t *testing.T) {
	const server, proxy = `WWW-Authenticate: Digest realm="example.com", nonce="s", qop="auth"`, `Proxy-Authenticate: Digest realm="example.com", nonce="p", qop="auth"`
	for _, tc := range []struct {
		name      string
		responses []*sip.Message
	}{
		{"one after the other", []*sip.Message{response(t, 407, proxy), response(t, 401, server)}},
		{"forked", []*sip.Message{response(t, 401, server, proxy)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := NewClient(alice(), ClientOptions{})
			var at Attempt
			for _, r := range tc.responses {
				if send(t, c, "k", &at); !c.Challenged("k", r, &at) {
					t.Fatal("no retry")
				}
			}
			m := send(t, c, "k", &at)
			s, p := credentials(t, m, sip.HdrAuthorization), credentials(t, m, sip.HdrProxyAuthorization)
			if len(s) != 1 || len(p) != 1 || s[0].Nonce != "s" || p[0].Nonce != "p" {
				t.Errorf("credentials are %v and %v", s, p)
			}
			// The proxy was content; the server is not.
			if c.Challenged("k", response(t, 401, server), &at) {
				t.Error("retry of refused credentials")
			}
		})
	}
	c := NewClient(alice(), ClientOptions{})
	for _, status := range []int{200, 403, 494} {
		if c.Challenged("k", response(t, status, server), &Attempt{}) || send(t, c, "k", &Attempt{}).Has(sip.HdrAuthorization) {
			t.Errorf("a challenge in a %d is answered", status)
		}
	}
}

// TestKeys: what one server asks for is not shown to another, and a login may
// be kept for its servers.
func TestKeys(t *testing.T) {
	challenge := response(t, 401, `WWW-Authenticate: Digest realm="example.com", nonce="x", qop="auth"`)
	c := NewClient(map[string]Login{"example.com": {User: "alice", Password: "secret", Servers: []string{"good", "fine"}}}, ClientOptions{})
	if c.Challenged("evil", challenge, &Attempt{}) || send(t, c, "evil", &Attempt{}).Has(sip.HdrAuthorization) {
		t.Error("a login is used for a server that it is not for")
	}
	if !c.Challenged("fine", challenge, &Attempt{}) || !send(t, c, "fine", &Attempt{}).Has(sip.HdrAuthorization) {
		t.Error("a login is not used for its server")
	}
	if send(t, c, "good", &Attempt{}).Has(sip.HdrAuthorization) {
		t.Error("credentials go to a server that did not ask")
	}
}

// TestClientBounds: keys, realms of a key, and fields of a response.
func TestClientBounds(t *testing.T) {
	c := NewClient(map[string]Login{"*": {User: "a", Password: "b"}}, ClientOptions{MaxKeys: 3})
	realm := func(i int) string {
		return fmt.Sprintf(`WWW-Authenticate: Digest realm="r%d", nonce="x", qop="auth"`, i)
	}
	for i := range 10 {
		key := fmt.Sprint(i)
		if !c.Challenged(key, response(t, 401, realm(i)), &Attempt{}) || !send(t, c, key, &Attempt{}).Has(sip.HdrAuthorization) {
			t.Error("the newest challenge is not known")
		}
		if len(c.keys) > 3 {
			t.Fatalf("%d keys", len(c.keys))
		}
	}
	var lines []string
	for i := range maxFields + 2 {
		lines = append(lines, realm(i))
	}
	c.Challenged("k", response(t, 401, lines...), &Attempt{})
	c.Challenged("k", response(t, 401, realm(99)), &Attempt{})
	got := credentials(t, send(t, c, "k", &Attempt{}), sip.HdrAuthorization)
	if len(got) != maxRealms || got[0].Realm != "r1" || got[maxRealms-1].Realm != "r99" {
		t.Errorf("%d credentials, from %+v to %+v", len(got), got[0], got[len(got)-1])
	}
}

// TestConcurrentClient: each request has a count of its own.
func TestConcurrentClient(t *testing.T) {
	v := NewVerifier(Options{})
	c := NewClient(alice(), ClientOptions{})
	c.Challenged("k", response(t, 401, fields("WWW-Authenticate", v.Challenge(start, "example.com", false))...), &Attempt{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				if got := judge(v, start, send(t, c, "k", &Attempt{})); got != OK {
					t.Error(got)
				}
				c.Challenged("other", response(t, 401, fields("WWW-Authenticate", v.Challenge(start, "example.com", false))...), &Attempt{})
			}
		})
	}
	wg.Wait()
}
