package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"rollcall/sip/auth"
	"rollcall/sql"
)

// maxListed bounds the users in an answer; Users.More says that there are more.
const maxListed = 100_000

// maxUserBody is in bytes; a longer request to change a user is refused.
const maxUserBody = 64 << 10

// Users, User and UserChange are of the admin API.
type (
	Users struct {
		Users []User `json:"users"`
		More  bool   `json:"more,omitempty"`
	}
	// User is a user without secrets.
	User struct {
		User       string   `json:"user"`
		Domain     string   `json:"domain"`
		Algorithms []string `json:"algorithms"` // of which there is a hash, preferred first
	}
	// UserChange is the body of PUT /api/v1/user.
	UserChange struct {
		User    string            `json:"user"`
		Domain  string            `json:"domain"`
		Secrets map[string]string `json:"secrets"`         // by algorithm: the hash of user:domain:password in hexadecimal digits
		HA1B    string            `json:"ha1b,omitempty"`  // MD5 of user@domain:domain:password
		Force   bool              `json:"force,omitempty"` // take a domain that is not ours
	}
)

func (s *Server) apiUsers(w http.ResponseWriter, r *http.Request) {
	out, full := Users{Users: []User{}}, errors.New("full")
	err := s.users.origin.Subscribers(r.Context(), r.FormValue("domain"), func(sub sql.Subscriber) error {
		if len(out.Users) == maxListed {
			out.More = true
			return full
		}
		u := User{User: sub.Username, Domain: sub.Domain, Algorithms: []string{}}
		for i, hash := range sub.Secrets {
			if hash != "" {
				u.Algorithms = append(u.Algorithms, auth.Algorithm(i).String())
			}
		}
		out.Users = append(out.Users, u)
		return nil
	})
	if err != nil && err != full {
		s.userFault(w, "", err)
		return
	}
	reply(w, http.StatusOK, out)
}

// apiPutUser makes a user or replaces his secrets: only one of both with
// If-None-Match: * or If-Match: * (RFC 9110 section 13.1).
func (s *Server) apiPutUser(w http.ResponseWriter, r *http.Request) {
	if !s.writable(w) {
		return
	}
	var in UserChange
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxUserBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "body: "+err.Error())
		return
	}
	sub, err := s.subscriber(&in)
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	var only sql.Precondition
	if r.Header.Get("If-Match") == "*" {
		only.Match = "*"
	}
	only.Absent = r.Header.Get("If-None-Match") == "*"
	created, err := s.users.writer.PutSubscriber(r.Context(), sub, only)
	address := sub.Username + "@" + sub.Domain
	switch {
	case errors.Is(err, sql.ErrConflict) && only.Absent:
		fail(w, http.StatusPreconditionFailed, "there is a user "+address+" already")
		return
	case errors.Is(err, sql.ErrConflict):
		err = sql.ErrNotFound
	}
	if err != nil {
		s.userFault(w, address, err)
		return
	}
	s.users.forget(sub.Username, sub.Domain)
	s.log.Info("user changed", "user", address, "created", created)
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	reply(w, status, map[string]bool{"created": created})
}

func (s *Server) apiDeleteUser(w http.ResponseWriter, r *http.Request) {
	if !s.writable(w) {
		return
	}
	q := r.URL.Query()
	user, domain := q.Get("user"), q.Get("domain")
	if user == "" || domain == "" {
		fail(w, http.StatusBadRequest, "user and domain are needed")
		return
	}
	address := user + "@" + domain
	if err := s.users.writer.DeleteSubscriber(r.Context(), user, domain); err != nil {
		s.userFault(w, address, err)
		return
	}
	s.users.forget(user, domain)
	s.log.Info("user removed", "user", address)
	reply(w, http.StatusOK, map[string]bool{"deleted": true})
}

// writable refuses what would change another program's users.
func (s *Server) writable(w http.ResponseWriter) bool {
	if s.users.writer == nil {
		fail(w, http.StatusConflict, "users come from "+s.users.name+", which is only read here; change them there")
		return false
	}
	return true
}

func (s *Server) userFault(w http.ResponseWriter, address string, err error) {
	switch {
	case errors.Is(err, sql.ErrNotFound):
		fail(w, http.StatusNotFound, "no such user: "+address)
	case errors.Is(err, sql.ErrPlaintext):
		fail(w, http.StatusConflict, "the password of "+address+" is in plain text in the database; change it with the program that put it there")
	default:
		s.log.Error("users not accessible", "err", err)
		fail(w, http.StatusBadGateway, err.Error())
	}
}

// subscriber checks a change and makes the row of it.
func (s *Server) subscriber(in *UserChange) (sql.Subscriber, error) {
	sub := sql.Subscriber{Username: in.User, Domain: in.Domain}
	if err := checkUser(in.User); err != nil {
		return sub, fmt.Errorf("user: %w", err)
	}
	if err := checkDomain(in.Domain); err != nil {
		return sub, fmt.Errorf("domain: %w", err)
	}
	if !in.Force && !s.local(in.Domain) {
		return sub, fmt.Errorf("domain: %s is not one of this server's domains; force it when that is meant", in.Domain)
	}
	if len(in.Secrets) == 0 {
		return sub, errors.New("secrets: none given")
	}
	for name, hash := range in.Secrets {
		if err := setSecret(&sub.Secrets, name, hash); err != nil {
			return sub, fmt.Errorf("secrets: %w", err)
		}
	}
	if in.HA1B != "" {
		var s auth.Secrets
		if err := setSecret(&s, auth.MD5.String(), in.HA1B); err != nil {
			return sub, fmt.Errorf("ha1b: %w", err)
		}
		sub.HA1B = s[auth.MD5]
	}
	return sub, nil
}

// checkUser says what keeps a name from being a user's: it must stand as it is
// in a SIP URI, in credentials, in a hash and in a file of users.
func checkUser(name string) error {
	switch {
	case name == "":
		return errors.New("empty")
	case len(name) > 64:
		return errors.New("longer than 64 bytes")
	case !utf8.ValidString(name):
		return errors.New("not UTF-8")
	}
	for _, r := range name {
		if unicode.IsSpace(r) || !unicode.IsPrint(r) || strings.ContainsRune(`:@#"\<>`, r) {
			return fmt.Errorf("%q cannot be in a name", r)
		}
	}
	return nil
}

// checkDomain says what keeps a name from being a user's domain. There is one
// spelling of each, because the hashes have it in them.
func checkDomain(name string) error {
	switch {
	case name == "":
		return errors.New("empty")
	case len(name) > 253:
		return errors.New("longer than 253 bytes")
	case hostKey(name) != name:
		return fmt.Errorf("write %s for %s, in the hashes too", hostKey(name), name)
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return nil
	}
	for _, r := range name {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-._", r) {
			return fmt.Errorf("%q cannot be in a domain", r)
		}
	}
	return nil
}
