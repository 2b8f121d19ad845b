package auth

import (
	"testing"

	"rollcall/sip"
)

// BenchmarkVerify is Parse and Check, the secret at hand, fresh nonce each.
func BenchmarkVerify(b *testing.B) {
	for a := range algorithms {
		b.Run(a.String(), func(b *testing.B) {
			v := NewVerifier(Options{Algorithms: []Algorithm{a}})
			secrets := users("alice", "example.com")
			m := request(b, answer(b, v.Challenge(start, "example.com", false)[0], "alice", "secret", 1))
			b.ReportAllocs()
			for b.Loop() {
				c, res := v.Parse(start, m, ours)
				if res == Claimed {
					res = v.Check(start, c, secrets)
				}
				if res != OK {
					b.Fatal(res)
				}
				s := v.nonces.stripe(c.nonce) // as if it had not been there
				s.ring[s.head].window = window{}
			}
		})
	}
}

// BenchmarkFlood is a request with a forged nonce.
func BenchmarkFlood(b *testing.B) {
	v := NewVerifier(Options{})
	other := NewVerifier(Options{})
	m := request(b, answer(b, other.Challenge(start, "example.com", false)[0], "alice", "secret", 1))
	b.ReportAllocs()
	for b.Loop() {
		if _, res := v.Parse(start, m, ours); res != Stale {
			b.Fatal(res)
		}
	}
}

func BenchmarkChallenge(b *testing.B) {
	v := NewVerifier(Options{})
	b.ReportAllocs()
	for b.Loop() {
		v.Challenge(start, "example.com", false)
	}
}

// BenchmarkUse fills and evicts: a new nonce each time.
func BenchmarkUse(b *testing.B) {
	n := newNonces(nil, start.Sub(start.Add(-1e12)), 65536)
	b.ReportAllocs()
	var k nonceID
	for b.Loop() {
		k.at++
		k.id += 0x9e3779b97f4a7c15
		n.use(start, k, 1, true)
	}
}

// BenchmarkAppend is the client's credentials for one realm.
func BenchmarkAppend(b *testing.B) {
	for a := range algorithms {
		b.Run(a.String(), func(b *testing.B) {
			v := NewVerifier(Options{Algorithms: []Algorithm{a}})
			c := NewClient(alice(), ClientOptions{})
			var at Attempt
			c.Challenged("k", response(b, 401, fields("WWW-Authenticate", v.Challenge(start, "example.com", false))...), &at)
			buf := make([]byte, 0, 1024)
			b.ReportAllocs()
			for b.Loop() {
				c.Append(buf, "k", sip.SUBSCRIBE.String(), "sip:bob@example.com", nil, &at)
			}
		})
	}
}
