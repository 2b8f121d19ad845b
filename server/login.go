package server

import (
	"strings"

	"rollcall/dialog"
	"rollcall/sip"
	"rollcall/sip/auth"
)

// logins answer the challenges of other domains' servers. Each domain has its
// own, so that none can ask for the credentials meant for another.
type logins map[string]*auth.Client

// logins reads remote_auth; nil when it says nothing.
func (s *Server) logins() dialog.Login {
	if len(s.set.remoteAuth) == 0 {
		return nil
	}
	l := make(logins)
	for domain, login := range s.set.remoteAuth {
		l[domain] = auth.NewClient(map[string]auth.Login{"*": login}, auth.ClientOptions{})
	}
	return l
}

func (l logins) Challenged(domain string, resp *sip.Message, at *auth.Attempt) bool {
	c := l[hostKey(domain)]
	return c != nil && c.Challenged(domain, resp, at)
}

func (l logins) Append(b []byte, domain, method, uri string, body []byte, at *auth.Attempt) []byte {
	if c := l[hostKey(domain)]; c != nil {
		return c.Append(b, domain, method, uri, body, at)
	}
	return b
}

// parseLogin reads USER:PASSWORD; the password may hold colons.
func parseLogin(v string) (auth.Login, bool) {
	user, password, ok := strings.Cut(v, ":")
	return auth.Login{User: user, Password: password}, ok && user != ""
}
