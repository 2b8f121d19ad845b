package auth

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/icholy/digest"

	"rollcall/sip"
)

// Login is a user at other servers.
type Login struct {
	User, Password string
	// Servers are the keys (see Client) that may ask for it; none means any.
	// Without them, whatever server names the realm gets a response, out of
	// which a weak password can be guessed.
	Servers []string
}

// ClientOptions of a Client; zero values stand for what is said.
type ClientOptions struct {
	// Algorithms are accepted: all. Somebody on the way can take the better
	// challenges away, so leave MD5 out where the servers do without (RFC 8760
	// section 3).
	Algorithms []Algorithm
	// MaxKeys bounds the servers whose challenges are remembered: 4096. Beyond,
	// any one is forgotten, which costs a further round trip.
	MaxKeys int
}

const (
	maxRealms   = 8 // challenges remembered of one key; the oldest is forgotten
	maxAttempts = 4 // challenges to one request: a server's, a proxy's, and each stale once
)

// Client answers challenges and remembers the newest of each server, so that
// later requests carry credentials from the start (RFC 3261 section 22.3). A
// server is named by a key of the caller's choice, for instance the host of the
// Request-URI or the next hop. What is known of a key is used for it alone. A
// Client may be used by several goroutines at once.
type Client struct {
	logins     map[string]Login
	algorithms []Algorithm
	maxKeys    int

	mu   sync.Mutex
	keys map[string][]challenge
}

// Attempt is what one request went through; the zero value is that of a request
// not yet sent. The same one goes with the request and its repetitions, as only
// it tells a refused password from a first challenge.
type Attempt struct {
	sent       []realm // with credentials for these
	challenged int     // responses
}

// realm is one of a server or of a proxy.
type realm struct {
	proxy bool
	name  string
}

// challenge is one that is answered.
type challenge struct {
	realm
	user          string
	nonce, opaque []byte
	algorithm     Algorithm
	session       bool
	qop           string // auth, auth-int or empty
	ha1           string
	cnonce        string // one for all counts, as -sess needs (RFC 7616 section 3.4.2)
	nc            uint32
}

// NewClient makes a Client with logins by realm; "*" is for any realm that has
// none of its own. The logins must not be changed afterwards.
func NewClient(logins map[string]Login, opt ClientOptions) *Client {
	c := &Client{logins: logins, algorithms: opt.Algorithms, maxKeys: opt.MaxKeys, keys: map[string][]challenge{}}
	if len(c.algorithms) == 0 {
		c.algorithms = []Algorithm{SHA256, SHA512256, MD5}
	}
	if c.maxKeys <= 0 {
		c.maxKeys = 4096
	}
	return c
}

// Challenged takes the 401 or 407 to a request and tells whether the request,
// with a higher CSeq and what Append writes now, may succeed. It is false when
// the response has no challenge with a login and an algorithm that are ours,
// when the credentials of the request were refused and not as stale (CORE-22),
// and after 4 responses. Refused credentials are forgotten, so that the next
// request starts without.
//
// Of each realm the topmost challenge that can be answered is taken (RFC 8760
// section 2.4), of more than 8 fields of a name the rest is not looked at. A
// field is one challenge (RFC 3261 section 25.1).
func (c *Client) Challenged(key string, resp *sip.Message, at *Attempt) (retry bool) {
	if s := resp.Status(); s != 401 && s != 407 {
		return false
	}
	at.challenged++
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.keys[key]
	var seen []realm
	for _, h := range [...]sip.HeaderID{sip.HdrWWWAuthenticate, sip.HdrProxyAuthenticate} {
		n := 0
		for value := range resp.Headers(h) {
			if n++; n > maxFields {
				break
			}
			ch, stale, ok := c.answerable(key, value, h == sip.HdrProxyAuthenticate)
			if !ok || slices.Contains(seen, ch.realm) {
				continue
			}
			seen = append(seen, ch.realm)
			known = slices.DeleteFunc(known, func(old challenge) bool { return old.realm == ch.realm })
			if refused := !stale && slices.Contains(at.sent, ch.realm); !refused {
				if len(known) == maxRealms {
					known = slices.Delete(known, 0, 1)
				}
				known = append(known, ch)
				retry = true
			}
		}
	}
	if len(known) == 0 {
		delete(c.keys, key)
		return false
	}
	if c.keys[key] == nil && len(c.keys) >= c.maxKeys {
		for other := range c.keys {
			delete(c.keys, other)
			break
		}
	}
	c.keys[key] = known
	return retry && at.challenged <= maxAttempts
}

// answerable reads a challenge; ok is false when it is to be ignored.
func (c *Client) answerable(key string, value []byte, proxy bool) (ch challenge, stale, ok bool) {
	p, digest, reason := parse(value)
	if !digest || reason != "" || p[pRealm] == nil || p[pNonce] == nil {
		return ch, false, false
	}
	ch.realm = realm{proxy, string(p[pRealm])}
	login, ok := c.logins[ch.realm.name]
	if !ok {
		login, ok = c.logins["*"]
	}
	if !ok || len(login.Servers) > 0 && !slices.Contains(login.Servers, key) {
		return ch, false, false
	}
	if ch.algorithm = MD5; p[pAlgorithm] != nil { // DG-05
		ch.algorithm, ch.session, ok = ParseAlgorithm(string(p[pAlgorithm]))
	}
	if !ok || !slices.Contains(c.algorithms, ch.algorithm) {
		return ch, false, false
	}
	switch {
	case p[pQop] == nil: // RFC 2069
	case hasItem(p[pQop], "auth"):
		ch.qop = "auth"
	case hasItem(p[pQop], "auth-int"):
		ch.qop = "auth-int"
	default:
		return ch, false, false
	}
	ch.user, ch.nonce, ch.opaque = login.User, bytes.Clone(p[pNonce]), bytes.Clone(p[pOpaque])
	ch.ha1 = ch.algorithm.Sum(login.User + ":" + ch.realm.name + ":" + login.Password)
	if ch.cnonce = rand.Text(); ch.session {
		ch.ha1 = ch.algorithm.Sum(ch.ha1 + ":" + string(ch.nonce) + ":" + ch.cnonce)
	}
	return ch, bytes.EqualFold(p[pStale], []byte("true")), true
}

// Append writes Authorization and Proxy-Authorization fields for a request,
// one per realm that the key is known to ask for; at most 8. method and uri
// are those of the request line, body is the request's. No field is
// written while nothing is known.
func (c *Client) Append(dst []byte, key, method, uri string, body []byte, at *Attempt) []byte {
	var buf [maxRealms]challenge
	c.mu.Lock()
	known := c.keys[key]
	for i := range known {
		known[i].nc++
	}
	todo := append(buf[:0], known...)
	c.mu.Unlock()
	at.sent = at.sent[:0]
	for i := range todo {
		at.sent = append(at.sent, todo[i].realm)
		dst = todo[i].append(dst, method, uri, body)
	}
	return dst
}

// append writes one field. The library makes only the response: it quotes
// strings as Go does and knows no -sess, which is in ha1 here.
func (ch *challenge) append(dst []byte, method, uri string, body []byte) []byte {
	chal := digest.Challenge{Realm: ch.realm.name, Nonce: string(ch.nonce), Algorithm: ch.algorithm.String()}
	opt := digest.Options{Method: method, URI: uri, Count: int(ch.nc), A1: ch.ha1, Cnonce: ch.cnonce}
	if ch.qop != "" {
		chal.QOP = []string{ch.qop}
		opt.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	cred, err := digest.Digest(&chal, opt)
	if err != nil {
		return dst // cannot happen: algorithm and qop are known ones
	}
	var p params
	name := ch.algorithm.String()
	if ch.session {
		name += "-sess"
	}
	p[pUsername], p[pRealm], p[pNonce], p[pURI] = []byte(ch.user), []byte(ch.realm.name), ch.nonce, []byte(uri)
	p[pResponse], p[pAlgorithm], p[pOpaque] = []byte(cred.Response), []byte(name), ch.opaque
	if ch.qop != "" {
		p[pQop], p[pNc] = []byte(ch.qop), fmt.Appendf(nil, "%08x", ch.nc)
	}
	if ch.qop != "" || ch.session {
		p[pCnonce] = []byte(ch.cnonce)
	}
	h := sip.HdrAuthorization
	if ch.proxy {
		h = sip.HdrProxyAuthorization
	}
	dst = append(append(dst, h.String()...), ':', ' ')
	return append(p.append(dst), '\r', '\n')
}
