package server

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"rollcall/dialog"
	"rollcall/sip"
	"rollcall/sip/auth"
)

// users knows the secrets of those who may log in.
type users interface {
	// Cached answers without waiting; known is false when it cannot. A user who
	// does not exist is known and has no secrets.
	Cached(user, realm string) (s auth.Secrets, known bool)
	// Fetch may wait. Cached knows the answer afterwards.
	Fetch(ctx context.Context, user, realm string) (auth.Secrets, error)
}

// authStats counts requests by what came of their credentials (auth.Result).
type authStats [auth.OK + 1]atomic.Uint64

// trusts tells whether an address is one of trust.
func (s *Server) trusts(peer netip.Addr) bool {
	return slices.ContainsFunc(s.set.trust, func(p netip.Prefix) bool { return p.Contains(peer.Unmap()) })
}

// identify finds out who sent a request. Trusted peers, by address or by the
// verified name of their certificate, assert who (ID-01); a peer with the
// certificate of a domain may speak for that domain (TL-01); everybody else has
// to log in. fetch is there when a user must be looked up first.
func (s *Server) identify(m *sip.Message, now time.Time) (id dialog.Identity, fetch func(context.Context), err *dialog.Error) {
	trusted := s.trusts(m.Flow.Remote.Addr()) || slices.ContainsFunc(m.Names, func(n string) bool { return s.set.trustNames[hostKey(n)] })
	if !trusted && len(m.Names) == 0 {
		return s.authenticate(m, now)
	}
	uri := asserted(m)
	u, perr := sip.ParseURI(string(uri))
	if perr == nil && !trusted {
		if host := hostKey(u.Host); !slices.ContainsFunc(m.Names, func(n string) bool { return hostKey(n) == host }) {
			return s.authenticate(m, now)
		}
	}
	k, _, kerr := s.key(uri)
	if kerr != nil {
		return id, nil, &dialog.Error{Status: 400, Reason: "Bad From URI", Err: kerr}
	}
	return dialog.Identity{URI: k}, nil, nil
}

// asserted is who a trusted peer says that a request is from:
// P-Asserted-Identity before From.
func asserted(m *sip.Message) []byte {
	for v := range m.Values(sip.HdrPAssertedIdentity) {
		if n, err := sip.ParseNameAddr(v); err == nil {
			return n.URI
		}
	}
	return m.From().URI
}

// authenticate checks digest credentials (CORE-22, RFC 8760).
func (s *Server) authenticate(m *sip.Message, now time.Time) (id dialog.Identity, fetch func(context.Context), err *dialog.Error) {
	cred, res := s.verifier.Parse(now, m, s.local)
	if res == auth.Claimed {
		secrets, known := s.users.Cached(cred.User, cred.Realm)
		if !known {
			return id, func(ctx context.Context) {
				if _, err := s.users.Fetch(ctx, cred.User, cred.Realm); err != nil {
					s.userLog.Log(time.Now(), s.log, slog.LevelError, "users cannot be read", "realm", cred.Realm, "err", err)
				}
			}, nil
		}
		res = s.verifier.Check(now, cred, secrets)
	}
	s.auths[res].Add(1)
	switch res {
	case auth.OK:
		return s.loggedIn(m, cred)
	case auth.Malformed:
		return id, nil, &dialog.Error{Status: 400, Reason: "Bad Credentials: " + cred.Reason}
	}
	err = &dialog.Error{Status: 401, Quiet: res != auth.Wrong}
	if res == auth.Wrong {
		err.Err = wrongPassword
	}
	for _, c := range s.verifier.Challenge(now, s.realm(m), res == auth.Stale) {
		err.Headers = append(err.Headers, "WWW-Authenticate", c)
	}
	return id, nil, err
}

type authError string

func (e authError) Error() string { return string(e) }

const wrongPassword authError = "user unknown or password wrong"

// realm is the realm a request is challenged for: the domain of ours that it is
// from, else the one it is for.
func (s *Server) realm(m *sip.Message) string {
	for _, uri := range [][]byte{m.From().URI, m.RequestURI()} {
		if u, err := sip.ParseURI(string(uri)); err == nil && s.local(u.Host) {
			return hostKey(u.Host)
		}
	}
	return hostKey(s.cfg.Domain[0])
}

// loggedIn is the identity of a user with the right password. From must say the
// same, or be anonymous (RFC 3323 section 4.1.1.3): who logs in as one speaks for
// no other.
func (s *Server) loggedIn(m *sip.Message, cred auth.Credentials) (dialog.Identity, func(context.Context), *dialog.Error) {
	user, domain, _ := strings.Cut(cred.User, "@")
	if domain != "" && hostKey(domain) != hostKey(cred.Realm) {
		return dialog.Identity{}, nil, dialog.Refuse(403, "User Of Another Domain")
	}
	self := sip.URI{Scheme: "sip", User: user, Host: hostKey(cred.Realm)}.Key()
	from, err := sip.ParseURI(string(m.From().URI))
	if err != nil {
		return dialog.Identity{}, nil, &dialog.Error{Status: 400, Reason: "Bad From URI", Err: err}
	}
	if strings.EqualFold(from.Host, "anonymous.invalid") {
		return dialog.Identity{URI: self}, nil, nil
	}
	if key, _, err := s.key(m.From().URI); err != nil || key != self {
		return dialog.Identity{}, nil, &dialog.Error{Status: 403, Reason: "From Is Not Who Logged In", Err: authError("logged in as " + self)}
	}
	return dialog.Identity{URI: self}, nil, nil
}

// nobody is a source without users.
type nobody struct{}

func (nobody) Cached(string, string) (auth.Secrets, bool) { return auth.Secrets{}, true }
func (nobody) Fetch(context.Context, string, string) (auth.Secrets, error) {
	return auth.Secrets{}, nil
}
