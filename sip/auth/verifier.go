package auth

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"slices"
	"strconv"
	"time"

	"rollcall/sip"
)

// Options of a Verifier; zero values stand for what is said.
type Options struct {
	// Algorithms are offered in this order, most preferred first, and no
	// others are accepted: SHA-256, then MD5 for old phones. A user without
	// the secret of the one its client picks cannot log in.
	Algorithms []Algorithm
	// NonceLife is how long a nonce can be used: 5 minutes. Then the client
	// gets a new one and repeats its request by itself.
	NonceLife time.Duration
	// MaxNonces bounds the memory of nonces in use, 40 octets and an index
	// entry each: 65536. Beyond, the ones used first are forgotten and their
	// clients get new ones.
	MaxNonces int
	// Key makes the nonces, 32 octets or more: random. A key that outlives the
	// process, or is shared with another, lets a request be replayed there
	// once within NonceLife.
	Key []byte
	// AllowNoQop accepts responses of RFC 2069, without qop and count. Each
	// nonce then works once.
	AllowNoQop bool
}

// Result says what came of a request's credentials.
type Result uint8

// The results. Only OK lets a request pass. Answer NoCredentials and Wrong
// with 401 and a challenge, Stale with 401 and a stale challenge, Malformed
// with 400.
const (
	NoCredentials Result = iota // none for our realms with a hash we offer
	Malformed                   // see Credentials.Reason
	Stale                       // nonce too old, not ours, or its count used before
	Wrong                       // user unknown or password wrong, which is not told apart
	Claimed                     // whole and fresh: look the secrets up, then Check
	OK
)

// String gives a word for logs and metrics.
func (r Result) String() string {
	return [...]string{"none", "malformed", "stale", "wrong", "claimed", "ok"}[r]
}

// Credentials are what a client claims. They hold no part of the message.
type Credentials struct {
	User       string // as the client wrote it: "alice" or "alice@example.com"
	Realm      string // one of ours
	Algorithm  Algorithm
	URI        string // a sip, sips or pres URI; proxies may have changed the Request-URI since (DG-03)
	URIMatches bool   // it is equal to the Request-URI
	Reason     string // why they are Malformed; for people, holds nothing the peer sent

	claimed  bool
	response [32]byte
	nonce    nonceID
	nc       uint32 // 0 without qop
	session  string // ":nonce:cnonce" of a -sess algorithm
	rest     string // what is hashed after HA1
}

// Verifier is the server's side. It may be used by several goroutines at once.
type Verifier struct {
	algorithms []Algorithm
	noQop      bool
	nonces     *nonces
	dummy      Secrets
}

// NewVerifier makes a Verifier. It panics when an Algorithm is none of the
// constants.
func NewVerifier(opt Options) *Verifier {
	v := &Verifier{noQop: opt.AllowNoQop}
	for _, a := range opt.Algorithms {
		_ = a.String()
		if !slices.Contains(v.algorithms, a) { // DG-01: each once
			v.algorithms = append(v.algorithms, a)
		}
	}
	if v.algorithms == nil {
		v.algorithms = []Algorithm{SHA256, MD5}
	}
	if opt.NonceLife <= 0 {
		opt.NonceLife = 5 * time.Minute
	}
	if opt.MaxNonces <= 0 {
		opt.MaxNonces = 65536
	}
	v.nonces = newNonces(opt.Key, opt.NonceLife, opt.MaxNonces)
	v.dummy = Derive("", "", rand.Text())
	return v
}

// Challenge gives the values of the WWW-Authenticate fields of a 401, one per
// algorithm in the order they must stand in (RFC 8760 section 2.3). stale
// tells the client to repeat its request without asking for a password.
//
// ACK and CANCEL are never challenged (RFC 3261 section 22.1).
func (v *Verifier) Challenge(now time.Time, realm string, stale bool) []string {
	var p params
	p[pRealm], p[pNonce], p[pQop] = []byte(realm), v.nonces.mint(now, realm), []byte("auth")
	if stale {
		p[pStale] = []byte("true")
	}
	values := make([]string, len(v.algorithms))
	buf := make([]byte, 0, 256)
	for i, a := range v.algorithms {
		p[pAlgorithm] = []byte(a.String())
		buf = p.append(buf[:0])
		values[i] = string(buf)
	}
	return values
}

// Parse finds the credentials of a request for one of our realms: the first
// Authorization field of the Digest scheme with such a realm and an algorithm
// that is offered. Others are passed over; of more than 8 fields the rest is
// not looked at. The empty nonce or response of RFC 8760 section 2.7 counts as
// no credentials.
//
// Parse gives NoCredentials, Malformed, Stale or Claimed. Whatever can be
// refused without the user's secret is refused here, so that a flood of
// forged or repeated credentials causes no look-ups.
//
// Not supported and Malformed: username* and userhash of RFC 7616, qop other
// than auth. None of them is ever offered.
func (v *Verifier) Parse(now time.Time, m *sip.Message, realm func(string) bool) (Credentials, Result) {
	var c Credentials
	n := 0
	for value := range m.Headers(sip.HdrAuthorization) {
		if n++; n > maxFields {
			break
		}
		p, digest, reason := parse(value)
		if !digest {
			continue
		}
		if reason == "" && p[pRealm] == nil {
			reason = "no realm"
		}
		if reason != "" {
			c.Reason = reason
			continue
		}
		if len(p[pNonce]) == 0 && p[pNonce] != nil || len(p[pResponse]) == 0 && p[pResponse] != nil {
			continue
		}
		a, session, known := MD5, false, true // DG-05
		if p[pAlgorithm] != nil {
			a, session, known = ParseAlgorithm(string(p[pAlgorithm]))
		}
		if !known || !slices.Contains(v.algorithms, a) {
			continue
		}
		if r := string(p[pRealm]); realm(r) {
			return v.claim(now, m, &p, Credentials{Realm: r, Algorithm: a}, session)
		}
	}
	if c.Reason != "" {
		return c, Malformed
	}
	return c, NoCredentials
}

func (v *Verifier) claim(now time.Time, m *sip.Message, p *params, c Credentials, session bool) (Credentials, Result) {
	malformed := func(reason string) (Credentials, Result) { return Credentials{Reason: reason}, Malformed }
	if p[pUsernameExt] != nil || p[pUserhash] != nil && !bytes.EqualFold(p[pUserhash], []byte("false")) {
		return malformed("username* and userhash are not supported")
	}
	if len(p[pUsername]) == 0 || p[pNonce] == nil || p[pURI] == nil {
		return malformed("no username, nonce or uri")
	}
	if len(p[pResponse]) != 2*c.Algorithm.size() {
		return malformed("response has not the length of the algorithm")
	}
	if _, err := hex.Decode(c.response[:], p[pResponse]); err != nil {
		return malformed("response is not hexadecimal")
	}
	if p[pQop] == nil {
		if !v.noQop {
			return malformed("no qop")
		}
	} else {
		nc, err := strconv.ParseUint(string(p[pNc]), 16, 32)
		if !bytes.EqualFold(p[pQop], []byte("auth")) || len(p[pNc]) != 8 || err != nil || nc == 0 || len(p[pCnonce]) == 0 {
			return malformed("qop is not auth, or has no cnonce or no count of 8 hexadecimal digits above 0")
		}
		c.nc = uint32(nc)
	}
	if session && len(p[pCnonce]) == 0 {
		return malformed("-sess without cnonce")
	}

	var fresh bool
	if c.nonce, fresh = v.nonces.open(now, p[pNonce], c.Realm); !fresh || !v.nonces.use(now, c.nonce, c.nc, false) {
		return Credentials{}, Stale
	}

	c.URI = string(p[pURI])
	u, err := sip.ParseURI(c.URI)
	if err != nil || u.Scheme != "sip" && u.Scheme != "sips" && u.Scheme != "pres" {
		return malformed("uri is not a sip, sips or pres URI")
	}
	if c.URIMatches = string(m.RequestURI()) == c.URI; !c.URIMatches {
		to, err := sip.ParseURI(string(m.RequestURI()))
		c.URIMatches = err == nil && u.Equal(to)
	}

	c.User, c.claimed = string(p[pUsername]), true
	c.digest(p, m.MethodToken(), session)
	return c, Claimed
}

// digest sets what is hashed besides HA1 (RFC 7616 section 3.4.1).
func (c *Credentials) digest(p *params, method []byte, session bool) {
	var a2, text [512]byte
	b := append(append(append(a2[:0], method...), ':'), p[pURI]...)
	t := append(append(text[:0], ':'), p[pNonce]...)
	if session {
		c.session = ":" + string(p[pNonce]) + ":" + string(p[pCnonce])
	}
	if p[pQop] != nil {
		for _, k := range [...]param{pNc, pCnonce, pQop} {
			t = append(append(t, ':'), p[k]...)
		}
	}
	c.rest = string(c.Algorithm.appendHex(append(t, ':'), b))
}

// matches compares the response with what HA1 gives, in constant time.
func (c *Credentials) matches(ha1 string) bool {
	var text, sess [512]byte
	t := append(text[:0], ha1...)
	if c.session != "" {
		t = c.Algorithm.appendHex(text[:0], append(append(sess[:0], ha1...), c.session...))
	}
	sum := c.Algorithm.sum(append(t, c.rest...))
	return subtle.ConstantTimeCompare(sum[:], c.response[:]) == 1
}

// Check compares the response with the secrets of the user, whatever name the
// caller looked them up by: the HA1 of a user with its domain was made of
// "alice@example.com:realm:password". Zero secrets stand for an unknown user,
// who takes as long to refuse as a wrong password.
//
// Check gives OK, Wrong or Stale. OK uses up the count of the nonce: a second
// Check of the same credentials, or of a copy of the message, gives Stale.
func (v *Verifier) Check(now time.Time, c Credentials, secrets Secrets) Result {
	ha1, known := secrets[c.Algorithm], c.claimed
	if ha1 == "" {
		ha1, known = v.dummy[c.Algorithm], false
	}
	if same := c.matches(ha1); !same || !known {
		return Wrong
	}
	if !v.nonces.young(now, c.nonce) || !v.nonces.use(now, c.nonce, c.nc, true) {
		return Stale
	}
	return OK
}
