package auth

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/icholy/digest"

	"rollcall/sip"
)

const body = "hello"

// request parses a SUBSCRIBE with further lines.
func request(t testing.TB, lines ...string) *sip.Message {
	return message(t, "SUBSCRIBE sip:bob@example.com SIP/2.0", lines...)
}

func message(t testing.TB, first string, lines ...string) *sip.Message {
	t.Helper()
	text := first + "\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1\r\nFrom: <sip:alice@example.com>;tag=1\r\nTo: <sip:bob@example.com>\r\nCall-ID: 1\r\nCSeq: 1 SUBSCRIBE\r\n"
	for _, l := range lines {
		text += strings.TrimSuffix(l, "\r\n") + "\r\n"
	}
	m := &sip.Message{}
	if err := m.Parse([]byte(text+"Content-Length: 5\r\n\r\n"+body), false); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return m
}

func ours(realm string) bool { return realm == "example.com" || realm == "example.net" }

// users answers for alice with the password secret; nobody else is known.
func users(user, realm string) Secrets {
	if user == "alice" || user == "alice@example.com" {
		return Derive(user, realm, "secret")
	}
	return Secrets{}
}

// judge is what a server does with a request.
func judge(v *Verifier, now time.Time, m *sip.Message) Result {
	c, res := v.Parse(now, m, ours)
	if res == Claimed {
		res = v.Check(now, c, users(c.User, c.Realm))
	}
	return res
}

// answer computes credentials by an implementation that is not ours.
func answer(t testing.TB, challenge, user, password string, nc int) string {
	t.Helper()
	chal, err := digest.ParseChallenge(challenge)
	if err != nil {
		t.Fatal(err)
	}
	cred, err := digest.Digest(chal, digest.Options{Method: "SUBSCRIBE", URI: "sip:bob@example.com", Username: user, Password: password, Count: nc,
		GetBody: bodyReader})
	if err != nil {
		t.Fatal(err)
	}
	return "Authorization: " + cred.String()
}

func bodyReader() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }

// TestChallenge: DG-01 order and different algorithms, DG-02 qop, one nonce.
func TestChallenge(t *testing.T) {
	v := NewVerifier(Options{Algorithms: []Algorithm{SHA512256, MD5, SHA512256, SHA256}})
	got := v.Challenge(start, `a "b" \c`, true)
	if len(got) != 3 {
		t.Fatalf("%d challenges, want 3", len(got))
	}
	first, _ := digest.ParseChallenge(got[0])
	for i, want := range []string{"SHA-512-256", "MD5", "SHA-256"} {
		c, err := digest.ParseChallenge(got[i])
		if err != nil {
			t.Fatal(err)
		}
		if c.Algorithm != want || !c.SupportsQOP("auth") || !c.Stale || c.Realm != `a "b" \c` || c.Nonce == "" || c.Nonce != first.Nonce {
			t.Errorf("challenge %d is %s", i, got[i])
		}
	}
	if got := NewVerifier(Options{}).Challenge(start, "r", false); len(got) != 2 || !strings.Contains(got[0], "algorithm=SHA-256") ||
		!strings.Contains(got[1], "algorithm=MD5") || !strings.Contains(got[0], `qop="auth"`) || strings.Contains(got[0], "stale") {
		t.Errorf("the usual challenges are %q", got)
	}
}

// TestOtherClient: every algorithm against another implementation, counts that
// overtake each other, replays (DG-04), wrong passwords and unknown users.
func TestOtherClient(t *testing.T) {
	for a := range algorithms {
		t.Run(a.String(), func(t *testing.T) {
			v := NewVerifier(Options{Algorithms: []Algorithm{a}})
			c := v.Challenge(start, "example.com", false)[0]
			for i, step := range []struct {
				user, password string
				nc             int
				after          time.Duration
				want           Result
			}{
				{"alice", "secret", 1, 0, OK},
				{"alice", "secret", 1, 0, Stale},
				{"alice", "secret", 3, 0, OK},
				{"alice", "secret", 2, 0, OK},
				{"alice@example.com", "secret", 4, 0, OK},
				{"alice", "wrong", 5, 0, Wrong},
				{"mallory", "secret", 5, 0, Wrong},
				{"alice", "secret", 5, 5 * time.Minute, OK}, // 5 was not used up by the wrong ones
				{"alice", "secret", 6, 5*time.Minute + 1, Stale},
				{"alice", "wrong", 6, 5*time.Minute + 1, Stale},
			} {
				m := request(t, answer(t, c, step.user, step.password, step.nc))
				if got := judge(v, start.Add(step.after), m); got != step.want {
					t.Errorf("step %d: %v, want %v", i, got, step.want)
				}
			}
		})
	}
}

// TestParsedFacts: what the caller is told, and that it outlives the message.
func TestParsedFacts(t *testing.T) {
	v := NewVerifier(Options{})
	line := answer(t, v.Challenge(start, "example.net", false)[0], `al"i\ce`, "secret", 1)
	m := request(t, line)
	c, res := v.Parse(start, m, ours)
	clear(m.Raw)
	if res != Claimed || c.User != `al"i\ce` || c.Realm != "example.net" || c.Algorithm != SHA256 || c.URI != "sip:bob@example.com" || !c.URIMatches {
		t.Errorf("%v %+v", res, c)
	}
	if got := v.Check(start, c, Derive(`al"i\ce`, "example.net", "secret")); got != OK {
		t.Errorf("user with escapes is %v", got)
	}
	if got := v.Check(start, c, Derive(`al"i\ce`, "example.net", "secret")); got != Stale {
		t.Errorf("second check is %v", got)
	}
	if got := v.Check(start, Credentials{}, Secrets{}); got != Wrong {
		t.Errorf("check of nothing is %v", got)
	}
	c, _ = v.Parse(start, request(t, handmade(v, nil)), ours)
	if got := v.Check(start.Add(time.Hour), c, users("alice", "example.com")); got != Stale {
		t.Errorf("check after a long look-up is %v", got)
	}

	// DG-03: another uri is accepted, and told.
	for requestURI, matches := range map[string]bool{"sip:bob@EXAMPLE.com": true, "sip:bob@192.0.2.7": false, "urn:x": false} {
		line := answer(t, v.Challenge(start, "example.com", false)[0], "alice", "secret", 1)
		m := message(t, "SUBSCRIBE "+requestURI+" SIP/2.0", line)
		if c, res := v.Parse(start, m, ours); res != Claimed || c.URIMatches != matches {
			t.Errorf("%s: %v, matches %v", requestURI, res, c.URIMatches)
		} else if got := v.Check(start, c, users(c.User, c.Realm)); got != OK {
			t.Errorf("%s: %v", requestURI, got)
		}
	}
}

// TestUnknownUser: no secret, whatever the client sends, never passes, and is
// the same as a wrong password.
func TestUnknownUser(t *testing.T) {
	v := NewVerifier(Options{})
	c, res := v.Parse(start, request(t, answer(t, v.Challenge(start, "example.com", false)[0], "nobody", "", 1)), ours)
	if res != Claimed {
		t.Fatal(res)
	}
	for name, s := range map[string]Secrets{"unknown": {}, "other hash only": {MD5: "x"}, "wrong": Derive("nobody", "example.com", "y")} {
		if got := v.Check(start, c, s); got != Wrong {
			t.Errorf("%s: %v", name, got)
		}
	}
	// Even the secret that stands in for unknown users does not let them in.
	c.response = c.Algorithm.sum([]byte(v.dummy[c.Algorithm] + c.rest))
	if !c.matches(v.dummy[c.Algorithm]) {
		t.Fatal("test is wrong")
	}
	if got := v.Check(start, c, Secrets{}); got != Wrong {
		t.Errorf("stand-in: %v", got)
	}
}

// handmade gives credentials with changes; a value "-" removes a parameter, and
// the response is right for what is there in the end unless it is changed.
func handmade(v *Verifier, changes map[string]string) string {
	p := map[string]string{"username": `"alice"`, "realm": `"example.com"`, "uri": `"sip:bob@example.com"`, "algorithm": "MD5",
		"cnonce": `"c"`, "qop": "auth", "nc": "00000001", "nonce": `"` + string(v.nonces.mint(start, "example.com")) + `"`}
	for k, val := range changes {
		if p[k] = val; val == "-" {
			delete(p, k)
		}
	}
	if _, ok := p["response"]; !ok && changes["response"] == "" {
		un := func(k string) string { return strings.Trim(p[k], `"`) }
		a, session, _ := ParseAlgorithm(un("algorithm"))
		if p["algorithm"] == "" {
			a = MD5
		}
		ha1 := users(un("username"), un("realm"))[a]
		if session {
			ha1 = a.Sum(ha1 + ":" + un("nonce") + ":" + un("cnonce"))
		}
		text := ha1 + ":" + un("nonce")
		if p["qop"] != "" {
			text += ":" + un("nc") + ":" + un("cnonce") + ":" + un("qop")
		}
		p["response"] = `"` + a.Sum(text+":"+a.Sum("SUBSCRIBE:"+un("uri"))) + `"`
	}
	line := "Authorization: Digest "
	sep := ""
	for k, val := range p {
		line += sep + k + "=" + val
		sep = ", "
	}
	return line
}

func TestCredentials(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, tc := range []struct {
		name    string
		changes map[string]string
		want    Result
	}{
		{"ordinary", nil, OK},
		{"DG-05 algorithm absent is MD5", map[string]string{"algorithm": "-"}, OK},
		{"algorithm in quotes and lower case", map[string]string{"algorithm": `"md5"`}, OK},
		{"qop and nc in quotes", map[string]string{"qop": `"auth"`, "nc": `"00000001"`}, OK},
		{"SHA-256", map[string]string{"algorithm": "SHA-256"}, OK},
		{"MD5-sess", map[string]string{"algorithm": "MD5-sess"}, OK},
		{"SHA-256-sess", map[string]string{"algorithm": "SHA-256-sess"}, OK},
		{"other parameters", map[string]string{"opaque": `"x"`, "auth-param": `"a,b=\"c\""`, "userhash": "false"}, OK},
		{"sips", map[string]string{"uri": `"sips:bob@example.com"`}, OK},
		{"pres", map[string]string{"uri": `"pres:bob@example.com"`}, OK},
		{"uri of another resource", map[string]string{"uri": `"sip:10@192.0.2.9:5080;transport=tcp"`}, OK},
		{"uri without quotes", map[string]string{"uri": "sip:bob@example.com"}, OK},
		{"high count", map[string]string{"nc": "ffffffff"}, OK},

		{"algorithm not offered", map[string]string{"algorithm": "SHA-512-256"}, NoCredentials},
		{"algorithm not known", map[string]string{"algorithm": "SHA-1"}, NoCredentials},
		{"realm not ours", map[string]string{"realm": `"elsewhere"`}, NoCredentials},
		{"nonce not yet known", map[string]string{"nonce": `""`}, NoCredentials},
		{"response not yet known", map[string]string{"response": `""`}, NoCredentials},

		{"nonce of another realm", map[string]string{"realm": `"example.net"`}, Stale},
		{"nonce forged", map[string]string{"nonce": `"AAAA"`}, Stale},

		{"no realm", map[string]string{"realm": "-"}, Malformed},
		{"no username", map[string]string{"username": "-"}, Malformed},
		{"empty username", map[string]string{"username": `""`}, Malformed},
		{"no nonce", map[string]string{"nonce": "-"}, Malformed},
		{"no response", map[string]string{"response": "-"}, Malformed},
		{"no uri", map[string]string{"uri": "-"}, Malformed},
		{"no cnonce", map[string]string{"cnonce": "-"}, Malformed},
		{"empty cnonce", map[string]string{"cnonce": `""`}, Malformed},
		{"no nc", map[string]string{"nc": "-"}, Malformed},
		{"short nc", map[string]string{"nc": "1"}, Malformed},
		{"signed nc", map[string]string{"nc": "+0000001"}, Malformed},
		{"nc is no number", map[string]string{"nc": "0000000g"}, Malformed},
		{"nc is 0", map[string]string{"nc": "00000000"}, Malformed},
		{"DG-02 qop absent, not allowed", map[string]string{"qop": "-"}, Malformed},
		{"qop auth-int", map[string]string{"qop": "auth-int"}, Malformed},
		{"response too short", map[string]string{"response": `"dfe56131d1958046689d83306477ecc"`}, Malformed}, // RFC 3665 section 2.1
		{"MD5 response to SHA-256", map[string]string{"algorithm": "SHA-256", "response": `"00000000000000000000000000000000"`}, Malformed},
		{"response not hexadecimal", map[string]string{"response": `"0000000000000000000000000000000g"`}, Malformed},
		{"username*", map[string]string{"username*": "UTF-8''alice"}, Malformed},
		{"userhash", map[string]string{"userhash": "true"}, Malformed},
		{"uri tel", map[string]string{"uri": `"tel:+15551234"`}, Malformed},
		{"uri is none", map[string]string{"uri": `"bob"`}, Malformed},
		{"parameter twice", map[string]string{"NC": "00000001"}, Malformed},
		{"quote not closed", map[string]string{"opaque": `"x`}, Malformed},
		{"escape at the end", map[string]string{"opaque": `"x\"`}, Malformed},
		{"empty value", map[string]string{"opaque": ""}, Malformed},
		{"text after a value", map[string]string{"opaque": `"x" y`}, Malformed},
		{"control character", map[string]string{"opaque": "\"x\x01\""}, Malformed},
		{"too long", map[string]string{"opaque": `"` + long + `"`}, Malformed},

		{"wrong response", map[string]string{"response": `"00000000000000000000000000000000"`}, Wrong},
		{"unknown user", map[string]string{"username": `"bob"`}, Wrong},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := NewVerifier(Options{})
			m := request(t, handmade(v, tc.changes))
			if got := judge(v, start, m); got != tc.want {
				t.Errorf("%v, want %v: %s", got, tc.want, m.Header(sip.HdrAuthorization))
			}
			if c, res := v.Parse(start, m, ours); (res == Malformed) != (c.Reason != "") {
				t.Errorf("%v with reason %q", res, c.Reason)
			}
		})
	}
	many := "Authorization: Digest "
	for i := range maxParams + 1 {
		many += fmt.Sprintf("p%d=x,", i)
	}
	if got := judge(NewVerifier(Options{}), start, request(t, many)); got != Malformed {
		t.Errorf("33 parameters: %v", got)
	}
}

// TestFields: which of several Authorization fields counts. CORE-22: Basic never.
func TestFields(t *testing.T) {
	v := NewVerifier(Options{})
	good := func() string { return handmade(v, nil) }
	bad := "Authorization: Digest realm"
	basic := "Authorization: Basic YWxpY2U6c2VjcmV0"
	other := func() string { return handmade(v, map[string]string{"realm": `"elsewhere"`}) }
	unknown := func() string { return handmade(v, map[string]string{"algorithm": "SHA-512-256"}) }
	wrong := func() string { return handmade(v, map[string]string{"response": `"00000000000000000000000000000000"`}) }
	filler := strings.Split(strings.Repeat(basic+"\n", maxFields), "\n")[:maxFields]
	for _, tc := range []struct {
		name  string
		lines []string
		want  Result
	}{
		{"none", nil, NoCredentials},
		{"Basic", []string{basic}, NoCredentials},
		{"scheme alone", []string{"Authorization: Digest"}, Malformed},
		{"empty", []string{"Authorization:"}, NoCredentials},
		{"another scheme that starts alike", []string{"Authorization: Digests x=y"}, NoCredentials},
		{"for a proxy", []string{"Proxy-" + good()}, NoCredentials},
		{"after others", []string{bad, basic, other(), unknown(), good()}, OK},
		{"before others", []string{good(), bad, wrong()}, OK},
		{"first of ours", []string{wrong(), good()}, Wrong},
		{"malformed only", []string{basic, bad}, Malformed},
		{"beyond the eighth", append(filler, good()), NoCredentials},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := judge(v, start, request(t, tc.lines...)); got != tc.want {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}

// TestNoQop: DG-02, a client of RFC 2069 gets in with each nonce once.
func TestNoQop(t *testing.T) {
	v := NewVerifier(Options{AllowNoQop: true})
	nonce := `"` + string(v.nonces.mint(start, "example.com")) + `"`
	old := map[string]string{"qop": "-", "nc": "-", "cnonce": "-", "algorithm": "-", "nonce": nonce}
	for i, step := range []struct {
		changes map[string]string
		want    Result
	}{
		{old, OK}, {old, Stale}, {map[string]string{"nonce": nonce}, Stale}, {nil, OK},
		{map[string]string{"algorithm": "MD5-sess", "qop": "-", "cnonce": "-"}, Malformed},
		{map[string]string{"algorithm": "MD5-sess", "qop": "-"}, OK},
	} {
		if got := judge(v, start, request(t, handmade(v, step.changes))); got != step.want {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
}

// TestNoLookUps: replays and aged nonces end in Parse.
func TestNoLookUps(t *testing.T) {
	v := NewVerifier(Options{})
	m := request(t, handmade(v, nil))
	if got := judge(v, start, m); got != OK {
		t.Fatal(got)
	}
	if _, res := v.Parse(start, m, ours); res != Stale {
		t.Errorf("replay: %v", res)
	}
	if _, res := v.Parse(start.Add(time.Hour), request(t, handmade(v, nil)), ours); res != Stale {
		t.Errorf("aged: %v", res)
	}
}

// TestConcurrentReplay: of many copies of a request at once, one passes (DG-04).
func TestConcurrentReplay(t *testing.T) {
	v := NewVerifier(Options{MaxNonces: 2048})
	var wg sync.WaitGroup
	for range 20 {
		m := request(t, handmade(v, nil))
		var passed atomic.Int32
		for range 8 {
			wg.Go(func() {
				if judge(v, start, m) == OK {
					passed.Add(1)
				}
				v.Challenge(start, "example.com", true)
			})
		}
		wg.Wait()
		if got := passed.Load(); got != 1 {
			t.Fatalf("%d copies passed", got)
		}
	}
}
