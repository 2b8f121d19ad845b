package main

import (
	"strings"
	"testing"
)

// input runs a command with text on standard input.
func input(t *testing.T, text string, args ...string) (code int, out, errw string) {
	t.Helper()
	s := beginInput(t, text, args...)
	code = s.wait()
	return code, s.out.String(), s.errw.String()
}

// The user commands against a real server.
func TestUserCommands(t *testing.T) {
	srv := begin(t, "serve", "--listen", "udp:127.0.0.1:0", "--http", "127.0.0.1:0", "--domain", "example.com", "--store", "memory")
	http := ""
	eventually(t, "the server", func() bool {
		_, rest, ok := strings.Cut(srv.out.String(), "http=")
		http, _, _ = strings.Cut(rest, "\n")
		return ok && strings.HasSuffix(rest, "\n")
	})
	for _, tt := range []struct {
		name, in  string
		args      []string
		code      int
		out, errw string
	}{
		{"nobody", "", []string{"list"}, 0, "User  Domain  Algorithms\n", ""},
		{"passwd of nobody", "secret\n", []string{"passwd", "alice@example.com"}, 3, "", "rollcall: no such user: alice@example.com\n"},
		{"rm of nobody", "", []string{"rm", "alice@example.com"}, 3, "", "rollcall: no such user: alice@example.com\n"},
		{"add", "secret\n", []string{"add", "alice@example.com"}, 0, "added alice@example.com\n", ""},
		{"add again", "secret\n", []string{"add", "sip:alice@Example.COM"}, 1, "", "rollcall: there is a user alice@example.com already; 'rollcall user passwd' changes the password\n"},
		{"passwd", "other", []string{"passwd", "alice@example.com"}, 0, "changed the password of alice@example.com\n", ""},
		{
			"another domain", "secret", []string{"add", "bob@example.net"}, 2, "",
			"rollcall: 400 Bad Request: domain: example.net is not one of this server's domains; force it when that is meant\n",
		},
		{"another domain, forced", "secret", []string{"add", "bob@example.net", "--force"}, 0, "added bob@example.net\n", ""},
		{"passwd in another domain", "secret", []string{"passwd", "bob@example.net"}, 0, "changed the password of bob@example.net\n", ""},
		{"bad name", "secret", []string{"add", "a:b@example.com"}, 2, "", "rollcall: 400 Bad Request: user: ':' cannot be in a name\n"},
		{"no password", "\n", []string{"passwd", "alice@example.com"}, 2, "", "rollcall: no password on standard input\nRun 'rollcall user passwd --help' for its usage.\n"},
		{"long password", strings.Repeat("x", 2000), []string{"passwd", "alice@example.com"}, 2, "", "rollcall: the password is longer than 1024 bytes\nRun 'rollcall user passwd --help' for its usage.\n"},
		{
			"list", "", []string{"ls"}, 0,
			"User   Domain       Algorithms\nalice  example.com  SHA-256 SHA-512-256 MD5\nbob    example.net  SHA-256 SHA-512-256 MD5\n", "",
		},
		{"list as JSON", "", []string{"list", "--json", "--domain", "example.net"}, 0, `{"user":"bob","domain":"example.net","algorithms":["SHA-256","SHA-512-256","MD5"]}` + "\n", ""},
		{"rm", "", []string{"rm", "alice@example.com"}, 0, "removed alice@example.com\n", ""},
		{"empty domain", "", []string{"list", "--json", "--domain", "example.com"}, 0, "", ""},
	} {
		code, out, errw := input(t, tt.in, append(append([]string{"user"}, tt.args...), "--http", http)...)
		if code != tt.code || out != tt.out || errw != tt.errw {
			t.Errorf("%s: exit code %d, %q, %q", tt.name, code, out, errw)
		}
	}
	srv.interrupt()
	if code := srv.wait(); code != 0 {
		t.Errorf("serve: exit code %d", code)
	}
	for _, args := range [][]string{{"list"}, {"add", "alice@example.com"}, {"passwd", "alice@example.com"}, {"rm", "alice@example.com"}} {
		code, _, errw := input(t, "secret\n", append(append([]string{"user"}, args...), "--http", http)...)
		if code != 4 || errw != "rollcall: no answer from http://"+http+": connection refused\n" {
			t.Errorf("%v: exit code %d, %q", args, code, errw)
		}
	}
}
