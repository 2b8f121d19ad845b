package auth

import (
	"encoding/hex"
	"strings"
	"testing"
)

// TestVectors proves the hashes on both sides with the worked examples of RFC 7616
// section 3.9 (the second as corrected by its erratum), RFC 2617 section 3.5,
// and RFC 2069 section 2.4 (as corrected).
func TestVectors(t *testing.T) {
	lion := params{pUsername: []byte("Mufasa"), pRealm: []byte("http-auth@example.org"), pURI: []byte("/dir/index.html"),
		pNonce:  []byte("7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"),
		pCnonce: []byte("f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"), pQop: []byte("auth"), pNc: []byte("00000001")}
	doe := params{pUsername: []byte("J\u00e4s\u00f8n Doe"), pRealm: []byte("api@example.org"), pURI: []byte("/doe.json"),
		pNonce:  []byte("5TsQWLVdgBdmrQ0XsxbDODV+57QdFR34I9HAbC/RVvkK"),
		pCnonce: []byte("NTg6RKcb9boFIAS3KrFK9BGeh+iDa/sm6jUMp2wds69v"), pQop: []byte("auth"), pNc: []byte("00000001")}
	old := params{pUsername: []byte("Mufasa"), pRealm: []byte("testrealm@host.com"), pURI: []byte("/dir/index.html"),
		pNonce: []byte("dcd98b7102dd2f0e8b11d0f600bfb0c093"), pCnonce: []byte("0a4f113b"), pQop: []byte("auth"), pNc: []byte("00000001")}
	oldest := old
	oldest[pQop], oldest[pNc], oldest[pCnonce] = nil, nil, nil

	for _, tc := range []struct {
		name      string
		algorithm string
		p         params
		password  string
		want      string
	}{
		{"7616 3.9.1 MD5", "MD5", lion, "Circle of Life", "8ca523f5e9506fed4657c9700eebdbec"},
		{"7616 3.9.1 SHA-256", "SHA-256", lion, "Circle of Life", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"},
		{"7616 3.9.2 SHA-512-256", "SHA-512-256", doe, "Secret, or not?", "3798d4131c277846293534c3edc11bd8a5e4cdcbff78b05db9d95eeb1cec68a5"},
		{"2617 3.5", "MD5", old, "Circle Of Life", "6629fae49393a05397450978507c4ef1"},
		{"2069 2.4", "MD5", oldest, "CircleOfLife", "1949323746fe6a43ef61f9606e7febea"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, session, ok := ParseAlgorithm(tc.algorithm)
			if !ok {
				t.Fatal("algorithm is not known")
			}
			ha1 := Derive(string(tc.p[pUsername]), string(tc.p[pRealm]), tc.password)[a]
			c := Credentials{Algorithm: a}
			hex.Decode(c.response[:], []byte(tc.want))
			c.digest(&tc.p, []byte("GET"), session)
			if !c.matches(ha1) {
				t.Error("the server does not accept it")
			}
			c.response[0] ^= 1
			if c.matches(ha1) {
				t.Error("the server accepts it with one bit changed")
			}

			ch := challenge{realm: realm{name: string(tc.p[pRealm])}, user: string(tc.p[pUsername]), nonce: tc.p[pNonce], algorithm: a,
				qop: string(tc.p[pQop]), ha1: ha1, cnonce: string(tc.p[pCnonce]), nc: 1}
			if got := string(ch.append(nil, "GET", string(tc.p[pURI]), nil)); !strings.Contains(got, `response="`+tc.want+`"`) {
				t.Errorf("the client writes %s", got)
			}
		})
	}
}

// TestSession has the -sess variants of RFC 7616 section 3.4.2 made by hand.
func TestSession(t *testing.T) {
	for a := range algorithms {
		p := params{pNonce: []byte("n"), pCnonce: []byte("c"), pQop: []byte("auth"), pNc: []byte("00000001"), pURI: []byte("sip:b")}
		ha1 := Derive("u", "r", "p")[a]
		want := a.Sum(a.Sum(ha1+":n:c") + ":n:00000001:c:auth:" + a.Sum("SUBSCRIBE:sip:b"))
		c := Credentials{Algorithm: a}
		hex.Decode(c.response[:], []byte(want))
		if c.digest(&p, []byte("SUBSCRIBE"), true); !c.matches(ha1) {
			t.Errorf("%v-sess does not match", a)
		}
	}
}
