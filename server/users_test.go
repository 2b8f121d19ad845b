package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/sip/auth"
	"rollcall/sql"
)

// scripted is an origin that counts what it is asked.
type scripted struct {
	users map[string]auth.Secrets // by name
	err   error
	asked int
	read  func() // called in the middle of an answer
}

func (o *scripted) Subscriber(_ context.Context, user, _ string) (auth.Secrets, error) {
	o.asked++
	s, ok := o.users[user]
	if o.read != nil {
		o.read()
	}
	if o.err != nil {
		return auth.Secrets{}, o.err
	}
	if !ok {
		return s, sql.ErrNotFound
	}
	return s, nil
}

func (o *scripted) Subscribers(context.Context, string, func(sql.Subscriber) error) error { return nil }

func sourceOf(o userOrigin, life time.Duration) *userSource {
	return &userSource{origin: o, life: life, known: make(map[userKey]userEntry), strangers: make(map[userKey]time.Time)}
}

func TestUserCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		alice, bob := auth.Derive("alice", "example.com", "a"), auth.Derive("bob", "example.com", "b")
		o := &scripted{users: map[string]auth.Secrets{"alice": alice}}
		u := sourceOf(o, foreignLife)
		cached := func(name string, want auth.Secrets, known bool) {
			t.Helper()
			if got, ok := u.Cached(name, "example.com"); got != want || ok != known {
				t.Errorf("cached %s: %v, %v", name, got, ok)
			}
		}
		fetch := func(name string, want auth.Secrets) {
			t.Helper()
			if got, err := u.Fetch(t.Context(), name, "example.com"); got != want || err != nil {
				t.Errorf("fetch %s: %v, %v", name, got, err)
			}
		}
		cached("alice", auth.Secrets{}, false)
		fetch("alice", alice)
		cached("alice", alice, true)
		if _, known := u.Cached("alice", "example.org"); known {
			t.Error("known in another realm")
		}
		fetch("bob", auth.Secrets{})
		cached("bob", auth.Secrets{}, true)
		o.users["bob"] = bob
		time.Sleep(strangerLife)
		cached("bob", auth.Secrets{}, false)
		fetch("bob", bob)
		cached("bob", bob, true)

		time.Sleep(foreignLife - strangerLife)
		cached("alice", auth.Secrets{}, false)
		o.err = errors.New("no connection")
		if _, err := u.Fetch(t.Context(), "alice", "example.com"); err == nil {
			t.Error("trouble taken for an unknown user")
		}
		cached("alice", auth.Secrets{}, false)
		o.err = nil
		delete(o.users, "alice")
		fetch("alice", auth.Secrets{})
		cached("alice", auth.Secrets{}, true)

		// Names that nobody can have are not asked for.
		o.asked = 0
		long := strings.Repeat("x", maxUserName)
		cached(long, auth.Secrets{}, true)
		fetch(long, auth.Secrets{})
		if o.asked != 0 {
			t.Error("a long name was asked for")
		}

		// Without a life, secrets stay until they are forgotten.
		u = sourceOf(o, 0)
		fetch("bob", bob)
		time.Sleep(24 * time.Hour)
		cached("bob", bob, true)
		o.users["bob@example.com"] = alice
		fetch("bob@example.com", alice)
		u.forget("bob", "example.com")
		cached("bob", auth.Secrets{}, false)
		cached("bob@example.com", auth.Secrets{}, false)

		// What was read while it changed is not kept.
		o.read = func() { u.forget("bob", "example.com") }
		fetch("bob", bob)
		cached("bob", auth.Secrets{}, false)
	})
}

func TestUserCacheBounds(t *testing.T) {
	o := &scripted{users: map[string]auth.Secrets{}}
	u := sourceOf(o, 0)
	secrets := auth.Secrets{auth.MD5: "x"}
	for i := range maxUsers + 10 {
		name := fmt.Sprint("u", i)
		clear(o.users)
		o.users[name] = secrets
		u.Fetch(t.Context(), name, "example.com")
	}
	for i := range maxStrangers + 10 {
		u.Fetch(t.Context(), fmt.Sprint("s", i), "example.com")
	}
	if len(u.known) != maxUsers || len(u.strangers) != maxStrangers {
		t.Errorf("%d known, %d strangers", len(u.known), len(u.strangers))
	}
}

const md5Hash, shaHash = "939e7578ed9e3c518a452acee763bce9", "7987c64c30e25f1b74be53f966b49b90f2808aa92faf9a00262392d7b4794232"

func TestParseUsers(t *testing.T) {
	full := "MD5=" + md5Hash + ",SHA-256=" + shaHash + ",SHA-512-256=" + shaHash
	for _, tt := range []struct {
		line  string
		key   userKey
		want  auth.Secrets
		fault string
	}{
		{"alice:example.com:" + md5Hash, userKey{"alice", "example.com"}, auth.Secrets{auth.MD5: md5Hash}, ""},
		{" alice:example.com:" + strings.ToUpper(md5Hash) + "\r\n", userKey{"alice", "example.com"}, auth.Secrets{auth.MD5: md5Hash}, ""},
		{"alice:::1:" + full, userKey{"alice", "::1"}, auth.Secrets{auth.MD5: md5Hash, auth.SHA256: shaHash, auth.SHA512256: shaHash}, ""},
		{"a@x:x:sha-256=" + shaHash + ", MD5=" + md5Hash, userKey{"a@x", "x"}, auth.Secrets{auth.MD5: md5Hash, auth.SHA256: shaHash}, ""},
		{"  # alice:example.com:x", userKey{}, auth.Secrets{}, ""},
		{"", userKey{}, auth.Secrets{}, ""},
		{"alice", userKey{}, auth.Secrets{}, "not user:realm:hash"},
		{"alice:" + md5Hash, userKey{}, auth.Secrets{}, "not user:realm:hash"},
		{":example.com:" + md5Hash, userKey{}, auth.Secrets{}, "not user:realm:hash"},
		{"alice::" + md5Hash, userKey{}, auth.Secrets{}, "not user:realm:hash"},
		{"alice:example.com:", userKey{}, auth.Secrets{}, "MD5 is not 32 hexadecimal digits"},
		{"alice:example.com:" + shaHash, userKey{}, auth.Secrets{}, "MD5 is not 32 hexadecimal digits"},
		{"alice:example.com:SHA-256=" + md5Hash, userKey{}, auth.Secrets{}, "SHA-256 is not 64 hexadecimal digits"},
		{"alice:example.com:MD5=" + md5Hash + ",md5=" + md5Hash, userKey{}, auth.Secrets{}, "MD5 is given twice"},
		{"alice:example.com:MD5=" + md5Hash + ",", userKey{}, auth.Secrets{}, `"" is none of the algorithms`},
		{"alice:example.com:SHA-1=" + md5Hash, userKey{}, auth.Secrets{}, `"SHA-1" is none of the algorithms`},
	} {
		key, got, err := parseUser(tt.line)
		if tt.fault != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fault) || strings.Contains(err.Error(), md5Hash) {
				t.Errorf("%q: %v", tt.line, err)
			}
			continue
		}
		if key != tt.key || got != tt.want || err != nil {
			t.Errorf("%q: %v %v, %v", tt.line, key, got, err)
		}
		if key.user != "" {
			if k, again, err := parseUser(formatUser(key, got)); k != key || again != got || err != nil {
				t.Errorf("%q: comes back as %v %v, %v", tt.line, k, again, err)
			}
		}
	}
	text := "# users\nalice:example.com:" + md5Hash + "\n\nbob\nalice:example.com:" + md5Hash + "\n" + strings.Repeat("x\n", 20)
	_, err := parseUsers("users", []byte(text))
	lines := strings.Split(fmt.Sprint(err), "\n")
	if len(lines) != maxUserFault+1 || lines[0] != "users:4: not user:realm:hash" || lines[1] != "users:5: alice of example.com is there already, in line 2" ||
		lines[maxUserFault] != "users: more faults follow" {
		t.Errorf("%v", err)
	}
}

func FuzzParseUser(f *testing.F) {
	f.Add("alice:example.com:" + md5Hash)
	f.Add("alice:::1:SHA-256=" + shaHash + ",MD5=" + md5Hash)
	f.Fuzz(func(t *testing.T, line string) {
		key, s, err := parseUser(line)
		if err != nil || key.user == "" {
			return
		}
		if k, again, err := parseUser(formatUser(key, s)); k != key || again != s || err != nil {
			t.Errorf("%q: %v %v became %v %v, %v", line, key, s, k, again, err)
		}
	})
}

// The file is looked at while the server runs; a bad one changes nothing.
func TestUserFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	write := func(text string, age time.Duration) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		at := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC).Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	line := func(user, password string) string {
		return formatUser(userKey{user, "example.com"}, auth.Derive(user, "example.com", password)) + "\n"
	}
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		if _, err := openUsers(t.Context(), "file:"+path, nil, log); err == nil {
			t.Error("a missing file opened")
		}
		write("alice\n", 0)
		if _, err := openUsers(t.Context(), "file:"+path, nil, log); err == nil || !strings.Contains(err.Error(), "users:1: not user:realm:hash") {
			t.Errorf("bad file: %v", err)
		}
		write(line("alice", "1"), 0)
		u, err := openUsers(t.Context(), "file:"+path, nil, log)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go u.run(ctx)
		check := func(what, user, password string) {
			t.Helper()
			time.Sleep(userFilePoll)
			synctest.Wait()
			want := auth.Secrets{}
			if password != "" {
				want = auth.Derive(user, "example.com", password)
			}
			got, known := u.Cached(user, "example.com")
			if !known {
				got, _ = u.Fetch(ctx, user, "example.com")
			}
			if got != want {
				t.Errorf("%s: %s has %v", what, user, got)
			}
		}
		warnings := func(want int) {
			t.Helper()
			if n := strings.Count(out.String(), "level=WARN"); n != want {
				t.Errorf("%d warnings, want %d:\n%s", n, want, &out)
			}
		}
		check("start", "alice", "1")
		check("start", "bob", "")
		write(line("alice", "2")+line("bob", "3"), time.Hour)
		check("change", "alice", "2")
		check("change", "bob", "3")
		write(line("alice", "4")+"nonsense\n", 2*time.Hour)
		check("bad file", "alice", "2")
		check("bad file, later", "bob", "3")
		warnings(1)
		sub := sql.Subscriber{Username: "carol", Domain: "example.com", Secrets: auth.Derive("carol", "example.com", "5")}
		if _, err := u.writer.PutSubscriber(ctx, sub, sql.Precondition{}); err == nil || !strings.Contains(err.Error(), "users:2: ") {
			t.Errorf("a bad file was written: %v", err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		check("no file", "alice", "2")
		check("no file, later", "alice", "2")
		warnings(2)
		write(line("alice", "6"), 3*time.Hour)
		check("good again", "alice", "6")
		check("good again", "bob", "")
		warnings(2)
	})
}

// A change keeps all other lines and the mode keeps others out.
func TestUserFileEdit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "users")
	const head = "# people\n\n  carol:example.org:" + md5Hash + "\n# last line has no end\nalice:example.com:" + md5Hash
	if err := os.WriteFile(path, []byte(head), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("users", link); err != nil {
		t.Fatal(err)
	}
	f, err := openUserFile(link, func(string, string) {}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	bob := sql.Subscriber{Username: "bob", Domain: "example.com", Secrets: auth.Secrets{auth.MD5: md5Hash, auth.SHA256: shaHash}}
	alice := sql.Subscriber{Username: "alice", Domain: "example.com", Secrets: auth.Secrets{auth.SHA256: shaHash}}
	if _, err := f.PutSubscriber(ctx, bob, sql.Precondition{Match: "*"}); !errors.Is(err, sql.ErrConflict) {
		t.Errorf("replace of nobody: %v", err)
	}
	if created, err := f.PutSubscriber(ctx, bob, sql.Precondition{Absent: true}); !created || err != nil {
		t.Errorf("put: %v, %v", created, err)
	}
	if _, err := f.PutSubscriber(ctx, bob, sql.Precondition{Absent: true}); !errors.Is(err, sql.ErrConflict) {
		t.Errorf("second insert: %v", err)
	}
	if created, err := f.PutSubscriber(ctx, alice, sql.Precondition{Match: "*"}); created || err != nil {
		t.Errorf("replace: %v, %v", created, err)
	}
	if s, err := f.Subscriber(ctx, "alice", "example.com"); s != alice.Secrets || err != nil {
		t.Errorf("alice: %v, %v", s, err)
	}
	if err := f.DeleteSubscriber(ctx, "carol", "example.org"); err != nil {
		t.Error(err)
	}
	if err := f.DeleteSubscriber(ctx, "carol", "example.org"); !errors.Is(err, sql.ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
	got, err := os.ReadFile(path)
	want := "# people\n\n# last line has no end\nalice:example.com:SHA-256=" + shaHash + "\nbob:example.com:SHA-256=" + shaHash + ",MD5=" + md5Hash + "\n"
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if fi, err := os.Lstat(link); err != nil || fi.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}
	if all, _ := os.ReadDir(dir); len(all) != 2 {
		t.Errorf("left behind: %v", all)
	}
	var names []string
	f.Subscribers(ctx, "example.com", func(s sql.Subscriber) error { names = append(names, s.Username); return nil })
	if fmt.Sprint(names) != "[alice bob]" {
		t.Errorf("%v", names)
	}
}
