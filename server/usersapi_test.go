package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sip/auth"
)

// change is the body that rollcall user add sends.
func change(user, domain, password string) server.UserChange {
	c := server.UserChange{User: user, Domain: domain, Secrets: map[string]string{}}
	for i, hash := range auth.Derive(user, domain, password) {
		c.Secrets[auth.Algorithm(i).String()] = hash
	}
	return c
}

// userAPI gives functions to ask a node with.
func userAPI(t *testing.T, n *servertest.Node) (put func(c server.UserChange, header ...string) (int, string), del func(user, domain string) (int, string), list func(domain string) string) {
	do := func(method, path string, header http.Header, body string) (int, string) {
		t.Helper()
		resp := n.Do(method, path, header, body)
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, strings.TrimSpace(string(b))
	}
	put = func(c server.UserChange, header ...string) (int, string) {
		t.Helper()
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{}
		for _, name := range header {
			h.Set(name, "*")
		}
		return do("PUT", "/api/v1/user", h, string(b))
	}
	del = func(user, domain string) (int, string) {
		t.Helper()
		return do("DELETE", "/api/v1/user?user="+user+"&domain="+domain, nil, "")
	}
	list = func(domain string) string {
		t.Helper()
		code, text := do("GET", "/api/v1/users?domain="+domain, nil, "")
		var out server.Users
		if err := json.Unmarshal([]byte(text), &out); err != nil || code != 200 {
			t.Errorf("list: %d %s, %v", code, text, err)
		}
		for _, s := range change("alice", "example.com", "secret").Secrets {
			if strings.Contains(text, s) {
				t.Errorf("a hash is shown: %s", text)
			}
		}
		return fmt.Sprint(out.Users)
	}
	return put, del, list
}

// The users of the store and of a file can be changed.
func TestUsersAPI(t *testing.T) {
	file := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(file, []byte("# ours\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{"store", "file:" + file} {
		t.Run(source[:4], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := servertest.New(t).Node("192.0.2.1", func(c *server.Config) { c.Users = source })
				put, del, list := userAPI(t, n)
				if got := list(""); got != "[]" {
					t.Errorf("nobody: %s", got)
				}
				alice := change("alice", "example.com", "secret")
				if code, text := put(alice, "If-Match"); code != 404 || text != `{"error":"no such user: alice@example.com"}` {
					t.Errorf("replace of nobody: %d %s", code, text)
				}
				if code, text := put(alice, "If-None-Match"); code != 201 || text != `{"created":true}` {
					t.Errorf("add: %d %s", code, text)
				}
				if code, text := put(alice, "If-None-Match"); code != 412 || text != `{"error":"there is a user alice@example.com already"}` {
					t.Errorf("add again: %d %s", code, text)
				}
				if code, _ := put(alice, "If-Match"); code != 200 {
					t.Errorf("replace: %d", code)
				}
				abroad := change("bob", "example.net", "x")
				if code, text := put(abroad); code != 400 || !strings.Contains(text, "example.net is not one of this server's domains") {
					t.Errorf("another domain: %d %s", code, text)
				}
				abroad.Force = true
				abroad.Secrets = map[string]string{"MD5": abroad.Secrets["MD5"]}
				if code, _ := put(abroad); code != 201 {
					t.Errorf("another domain, forced: %d", code)
				}
				if got := list(""); got != "[{alice example.com [SHA-256 SHA-512-256 MD5]} {bob example.net [MD5]}]" {
					t.Errorf("list: %s", got)
				}
				if got := list("example.net"); got != "[{bob example.net [MD5]}]" {
					t.Errorf("list of a domain: %s", got)
				}
				for _, tt := range []struct {
					name string
					edit func(*server.UserChange)
					want string
				}{
					{"no user", func(c *server.UserChange) { c.User = "" }, "user: empty"},
					{"long user", func(c *server.UserChange) { c.User = strings.Repeat("x", 65) }, "user: longer than 64 bytes"},
					{"user with domain", func(c *server.UserChange) { c.User = "a@b" }, "user: '@' cannot be in a name"},
					{"user with colon", func(c *server.UserChange) { c.User = "a:b" }, "user: ':' cannot"},
					{"user with newline", func(c *server.UserChange) { c.User = "a\nb" }, `user: '\\n' cannot`},
					{"comment", func(c *server.UserChange) { c.User = "#a" }, "user: '#' cannot"},
					{"no domain", func(c *server.UserChange) { c.Domain = "" }, "domain: empty"},
					{"spelling", func(c *server.UserChange) { c.Domain = "Example.COM" }, "domain: write example.com for Example.COM"},
					{"no host", func(c *server.UserChange) { c.Domain = "a/b" }, "domain: "},
					{"no secrets", func(c *server.UserChange) { c.Secrets = nil }, "secrets: none given"},
					{"short", func(c *server.UserChange) { c.Secrets = map[string]string{"MD5": "abc"} }, "secrets: the hash of MD5 is not 32 hexadecimal digits"},
					{"unknown algorithm", func(c *server.UserChange) { c.Secrets = map[string]string{"SHA-1": "abc"} }, `secrets: \"SHA-1\" is none of the algorithms`},
					{"ha1b", func(c *server.UserChange) { c.HA1B = "abc" }, "ha1b: the hash of MD5 is not"},
				} {
					c := change("carol", "example.com", "x")
					tt.edit(&c)
					if code, text := put(c); code != 400 || !strings.Contains(text, tt.want) {
						t.Errorf("%s: %d %s", tt.name, code, text)
					}
				}
				for _, body := range []string{"", "[]", `{"password":"secret"}`, `{"user":"` + strings.Repeat("x", 65<<10) + `"}`} {
					if resp := n.Do("PUT", "/api/v1/user", nil, body); resp.StatusCode != 400 {
						t.Errorf("%.30q: %d", body, resp.StatusCode)
					}
				}
				if code, _ := del("alice", "example.com"); code != 200 {
					t.Errorf("delete: %d", code)
				}
				if code, text := del("alice", "example.com"); code != 404 || text != `{"error":"no such user: alice@example.com"}` {
					t.Errorf("delete again: %d %s", code, text)
				}
				if code, _ := del("alice", ""); code != 400 {
					t.Errorf("delete of half a user: %d", code)
				}
				del("bob", "example.net")
				if got := list(""); got != "[]" {
					t.Errorf("at the end: %s", got)
				}
			})
		})
	}
	if b, err := os.ReadFile(file); string(b) != "# ours\n" {
		t.Errorf("the file has %q, %v", b, err)
	}
}

// Users of another program's database are shown and not changed.
func TestUsersAPIForeign(t *testing.T) {
	path := filepath.Join(t.TempDir(), "theirs.db")
	synctest.Test(t, func(t *testing.T) { // some server's store is as good as a proxy's
		n := servertest.New(t).Node("192.0.2.1", func(c *server.Config) { c.Store = "sqlite:" + path })
		put, _, _ := userAPI(t, n)
		if code, text := put(change("alice", "example.com", "secret")); code != 201 {
			t.Errorf("put: %d %s", code, text)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		n := servertest.New(t).Node("192.0.2.1", func(c *server.Config) { c.Users = "sqlite:" + path })
		put, del, list := userAPI(t, n)
		if got := list(""); got != "[{alice example.com [SHA-256 SHA-512-256 MD5]}]" {
			t.Errorf("list: %s", got)
		}
		for i := range 2 {
			code, text := put(change("bob", "example.com", "x"))
			if i == 1 {
				code, text = del("alice", "example.com")
			}
			if code != 409 || !strings.Contains(text, "users come from sqlite:"+path+", which is only read here") {
				t.Errorf("change: %d %s", code, text)
			}
		}
	})
	cfg := server.Default()
	cfg.Store, cfg.Users = "memory", "sqlite:"+path+".none"
	if _, err := server.New(cfg, servertest.Log(t)); err == nil || !strings.Contains(err.Error(), "users: sql: open sqlite:") {
		t.Errorf("a missing database: %v", err)
	}
}
