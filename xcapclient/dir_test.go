package xcapclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const alice = "resource-lists/users/sip:alice@example.com/index"

func lists(name string) string {
	return `<?xml version="1.0" encoding="UTF-8"?><resource-lists xmlns="urn:ietf:params:xml:ns:resource-lists"><list name="` + name + `"/></resource-lists>`
}

func write(t testing.TB, dir, name, body string) string {
	t.Helper()
	p := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// replace writes a file as careful programs do.
func replace(t testing.TB, dir, name, body string) {
	t.Helper()
	tmp := write(t, dir, name+".part1", body)
	if err := os.Rename(tmp, filepath.Join(dir, filepath.FromSlash(name))); err != nil {
		t.Fatal(err)
	}
}

// watched is a client that runs for the test, with what its watcher heard.
type watched struct {
	*Client
	t      testing.TB
	events chan []string
}

func watch(t testing.TB, sources ...Source) *watched {
	t.Helper()
	w := &watched{New(sources...), t, make(chan []string, 1000)}
	w.Watch(func(s []string) { w.events <- s })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w
}

// until waits for a change of selector after which the document is as wanted; "" is none. It returns how long it took.
func (w *watched) until(selector, want string) time.Duration {
	w.t.Helper()
	start := time.Now()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case got := <-w.events:
			if !slices.IsSorted(got) || len(got) == 0 {
				w.t.Errorf("told of %q", got)
			}
			if slices.Contains(got, selector) && body(w.t, w, selector) == want {
				return time.Since(start)
			}
		case <-deadline:
			w.t.Fatalf("no change of %s to %.80q; it is %.80q", selector, want, body(w.t, w, selector))
		}
	}
}

// running waits until the source's watches are there, proven by a change that is noticed.
func (w *watched) running(dir string) {
	w.t.Helper()
	write(w.t, dir, "resource-lists/global/started", "<x/>")
	w.until("resource-lists/global/started", "<x/>")
}

func body(t testing.TB, s Source, selector string) string {
	t.Helper()
	d, err := s.Document(context.Background(), selector)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(d.Body)
}

func dir(t testing.TB, path string) *DirSource {
	t.Helper()
	s, err := Dir(path, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDirNames(t *testing.T) {
	d := t.TempDir()
	outside := t.TempDir()
	write(t, outside, "secret", "<secret/>")
	write(t, outside, "users/sip:eve@example.com/index", "<secret/>")
	for name, body := range map[string]string{
		"resource-lists/users/sip:alice@example.com/index":         "<alice/>",
		"resource-lists/users/sip%3Abob%40example.com/index":       "<bob/>",
		"resource-lists/users/sip%3aboth@example.com/index":        "<encoded/>",
		"resource-lists/users/sip:both@example.com/index":          "<plain/>",
		"resource-lists/users/sip:a%2Fb@example.com/in%25dex":      "<slash/>",
		"resource-lists/users/100%/index":                          "<percent/>",
		"resource-lists/users/sip:alice@example.com/deeper/index":  "<deeper/>",
		"resource-lists/users/sip:alice@example.com/.index.swp":    "<hidden/>",
		"resource-lists/users/sip:alice@example.com/index~":        "<hidden/>",
		"resource-lists/users/sip:alice@example.com/index.tmp":     "<hidden/>",
		"resource-lists/users/sip:alice@example.com/index.part123": "<hidden/>",
		"resource-lists/users/stray":                               "<stray/>",
		"resource-lists/stray":                                     "<stray/>",
		"resource-lists/other/x/index":                             "<stray/>",
		"rls-services/global/index":                                "<global/>",
		".git/users/x/index":                                       "<hidden/>",
		"resource-lists/users/.hidden/index":                       "<hidden/>",
		"resource-lists/users/sip:large@example.com/fits":          "<a>" + strings.Repeat(" ", maxFile-7) + "</a>",
		"resource-lists/users/sip:large@example.com/large":         "<a>" + strings.Repeat(" ", maxFile-6) + "</a>",
	} {
		write(t, d, name, body)
	}
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(d, filepath.FromSlash(name))); err != nil {
			t.Fatal(err)
		}
	}
	up, err := filepath.Rel(filepath.Join(d, "resource-lists/users/sip:alice@example.com"), outside)
	if err != nil {
		t.Fatal(err)
	}
	link(filepath.Join(outside, "secret"), "resource-lists/users/sip:alice@example.com/absolute")
	link(filepath.Join(up, "secret"), "resource-lists/users/sip:alice@example.com/relative")
	link(filepath.Join(outside, "users"), "pres-rules")
	link(filepath.Join(outside, "users", "sip:eve@example.com"), "resource-lists/users/sip:eve@example.com")
	link("index", "resource-lists/users/sip:alice@example.com/inside")
	link("loop", "resource-lists/users/sip:alice@example.com/loop")
	link("sip:alice@example.com", "resource-lists/users/sip:alias@example.com")
	if err := syscall.Mkfifo(filepath.Join(d, "resource-lists/users/sip:alice@example.com/pipe"), 0o644); err != nil {
		t.Fatal(err)
	}

	s := dir(t, d)
	tests := []struct{ selector, want string }{
		{alice, "<alice/>"},
		{"resource-lists/users/sip%3Aalice%40example.com/index", "<alice/>"},
		{"resource-lists/users/sip:bob@example.com/index", "<bob/>"},
		{"resource-lists/users/sip:both@example.com/index", "<plain/>"},
		{"resource-lists/users/sip:a%2Fb@example.com/in%25dex", "<slash/>"},
		{"resource-lists/users/sip:a%2fb@example.com/in%25dex", "<slash/>"},
		{Selector("resource-lists", "sip:a/b@example.com", "in%dex"), "<slash/>"},
		{Selector("resource-lists", "100%", "index"), "<percent/>"},
		{"resource-lists/users/sip:alice@example.com/inside", "<alice/>"},
		{"resource-lists/users/sip:alias@example.com/index", "<alice/>"},
		{"rls-services/global/index", "<global/>"},
		{"resource-lists/users/sip:alice@example.com/deeper/index", ""},
		{"resource-lists/users/sip:alice@example.com/.index.swp", ""},
		{"resource-lists/users/sip:alice@example.com/index~", ""},
		{"resource-lists/users/sip:alice@example.com/index.tmp", ""},
		{"resource-lists/users/sip:alice@example.com/index.part123", ""},
		{"resource-lists/users/sip:alice@example.com/absolute", ""},
		{"resource-lists/users/sip:alice@example.com/relative", ""},
		{"resource-lists/users/sip:alice@example.com/loop", ""},
		{"resource-lists/users/sip:alice@example.com/pipe", ""},
		{"resource-lists/users/sip:eve@example.com/index", ""},
		{"resource-lists/users/sip:large@example.com/large", ""},
		{"pres-rules/users/sip:eve@example.com/index", ""},
		{"resource-lists/users/sip:alice@example.com/../sip:bob@example.com/index", ""},
		{"resource-lists/users/%2e%2e/index", ""},
		{"../../etc/passwd", ""},
		{"/etc/passwd", ""},
		{"resource-lists/users//index", ""},
		{"resource-lists/users/sip:alice@example.com/~~", ""},
		{"", ""},
		{strings.Repeat("a/", 5000), ""},
		{"resource-lists/users/\xff/index", ""},
	}
	for _, tt := range tests {
		if got := body(t, s, tt.selector); got != tt.want {
			t.Errorf("%.80q: got %.80q, want %.80q", tt.selector, got, tt.want)
		}
	}
	if n := len(body(t, s, "resource-lists/users/sip:large@example.com/fits")); n != maxFile {
		t.Errorf("a file of the largest size gives %d bytes", n)
	}
	want := []string{
		"resource-lists/users/100%25/index", "resource-lists/users/sip:a%2Fb@example.com/in%25dex", "resource-lists/users/sip:alias@example.com/index",
		"resource-lists/users/sip:alias@example.com/inside", alice, "resource-lists/users/sip:alice@example.com/inside",
		"resource-lists/users/sip:bob@example.com/index", "resource-lists/users/sip:both@example.com/index", "resource-lists/users/sip:large@example.com/fits",
	}
	if got, err := s.Selectors(t.Context(), "resource-lists"); err != nil || !slices.Equal(got, want) {
		t.Errorf("selectors %q, %v", got, err)
	}
	one, err := s.Document(t.Context(), alice)
	if err != nil || one.Selector != alice || one.ETag == "" || one.Origin != filepath.Join(d, alice) {
		t.Errorf("%+v, %v", one, err)
	}
	if two, _ := s.Document(t.Context(), "rls-services/global/index"); two.ETag == one.ETag {
		t.Error("two contents with one ETag")
	}
	if _, err := Dir(filepath.Join(d, "none"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Dir(filepath.Join(outside, "secret"), nil); err == nil {
		t.Error("a file is a directory")
	}
}

func TestDirLive(t *testing.T) {
	d := t.TempDir()
	write(t, d, alice, lists("one"))
	w := watch(t, dir(t, d))
	w.running(d)

	step := func(name string, f func(), selector, want string) {
		t.Run(name, func(t *testing.T) {
			w.t = t
			f()
			t.Log("noticed after", w.until(selector, want))
		})
	}
	const bob = "resource-lists/users/sip:bob@example.com/index"
	const rules = "pres-rules/users/sip:alice@example.com/index"
	at := func(name string) string { return filepath.Join(d, filepath.FromSlash(name)) }
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	step("replaced by rename", func() { replace(t, d, alice, lists("two")) }, alice, lists("two"))
	step("edited in place", func() { write(t, d, alice, lists("three")) }, alice, lists("three"))
	step("edited in place, same size", func() { write(t, d, alice, lists("eerht")) }, alice, lists("eerht"))
	step("replaced by an older file", func() {
		p := write(t, d, alice+".tmp", lists("tower"))
		do(os.Chtimes(p, time.Unix(1e9, 0), time.Unix(1e9, 0)))
		do(os.Rename(p, at(alice)))
	}, alice, lists("tower"))
	step("deleted", func() { do(os.Remove(at(alice))) }, alice, "")
	step("created again", func() { write(t, d, alice, lists("four")) }, alice, lists("four"))
	step("new user", func() { write(t, d, bob, lists("bob")) }, bob, lists("bob"))
	step("new user edited", func() { write(t, d, bob, lists("bob two")) }, bob, lists("bob two"))
	step("new application usage", func() { write(t, d, rules, "<ruleset/>") }, rules, "<ruleset/>")
	step("new application usage edited", func() { write(t, d, rules, "<ruleset >x</ruleset>") }, rules, "<ruleset >x</ruleset>")
	step("user's directory deleted", func() { do(os.RemoveAll(filepath.Dir(at(bob)))) }, bob, "")
	step("and made again", func() { write(t, d, bob, lists("bob again")) }, bob, lists("bob again"))
	step("and edited", func() { write(t, d, bob, lists("bob edited")) }, bob, lists("bob edited"))
	step("user's directory moved in", func() {
		write(t, d, "stage/index", lists("carol"))
		do(os.Rename(at("stage"), at("resource-lists/users/sip:carol@example.com")))
	}, "resource-lists/users/sip:carol@example.com/index", lists("carol"))
	step("user's directory renamed", func() {
		do(os.Rename(at("resource-lists/users/sip:carol@example.com"), at("resource-lists/users/sip:dave@example.com")))
	}, "resource-lists/users/sip:dave@example.com/index", lists("carol"))
	step("and the old name is gone", func() {
		write(t, d, "resource-lists/users/sip:dave@example.com/index", lists("dave"))
	}, "resource-lists/users/sip:dave@example.com/index", lists("dave"))
	if carol := "resource-lists/users/sip:carol@example.com/index"; body(t, w, carol) != "" {
		w.t = t
		w.until(carol, "")
	}
	step("application usage moved away", func() { do(os.Rename(at("pres-rules"), at(".pres-rules"))) }, rules, "")
	step("and back", func() { do(os.Rename(at(".pres-rules"), at("pres-rules"))) }, rules, "<ruleset >x</ruleset>")
	step("and edited", func() { write(t, d, rules, "<ruleset />") }, rules, "<ruleset />")
	step("the link of a link farm moved", func() {
		write(t, d, "rls-services/global/..one/index", "<one/>")
		write(t, d, "rls-services/global/..two/index", "<two/>")
		do(os.Symlink("..one", at("rls-services/global/..data")))
		do(os.Symlink("..data/index", at("rls-services/global/index")))
	}, "rls-services/global/index", "<one/>")
	step("to another", func() {
		do(os.Symlink("..two", at("rls-services/global/..data_tmp")))
		do(os.Rename(at("rls-services/global/..data_tmp"), at("rls-services/global/..data")))
	}, "rls-services/global/index", "<two/>")
	step("replaced by a link that leads out", func() {
		do(os.Remove(at(bob)))
		do(os.Symlink("/etc/passwd", at(bob)))
	}, bob, "")
}

// The whole directory is exchanged for another one: by renaming, and by pointing a link elsewhere.
func TestDirExchanged(t *testing.T) {
	top := t.TempDir()
	d := filepath.Join(top, "docs")
	write(t, d, alice, lists("one"))
	write(t, filepath.Join(top, "next"), alice, lists("two"))
	w := watch(t, dir(t, d))
	w.running(d)
	if err := os.Rename(d, filepath.Join(top, "old")); err != nil {
		t.Fatal(err)
	}
	if got := body(t, w, alice); got != lists("one") {
		t.Errorf("without the directory: %q", got)
	}
	if err := os.Rename(filepath.Join(top, "next"), d); err != nil {
		t.Fatal(err)
	}
	w.until(alice, lists("two"))
	write(t, filepath.Join(top, "old"), alice, lists("stale"))
	write(t, d, alice, lists("three"))
	w.until(alice, lists("three"))

	link := filepath.Join(top, "link")
	write(t, filepath.Join(top, "r1"), alice, lists("r1"))
	write(t, filepath.Join(top, "r2"), alice, lists("r2"))
	if err := os.Symlink("r1", link); err != nil {
		t.Fatal(err)
	}
	w = watch(t, dir(t, link))
	w.running(link)
	if err := errors.Join(os.Symlink("r2", link+"2"), os.Rename(link+"2", link)); err != nil {
		t.Fatal(err)
	}
	w.until(alice, lists("r2"))
	write(t, link, alice, lists("r3"))
	w.until(alice, lists("r3"))
}

// A file that is written slowly in place is never seen half-way; one that stays broken is served in the end.
func TestDirHalfWritten(t *testing.T) {
	d := t.TempDir()
	write(t, d, alice, lists("one"))
	var log syncBuffer
	s, err := Dir(d, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	s.grace = 700 * time.Millisecond
	w := watch(t, s)
	w.running(d)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // a reader never sees anything but whole versions
		for {
			select {
			case <-stop:
				return
			default:
				if b := body(t, s, alice); b != lists("one") && b != lists("two") {
					t.Errorf("saw %q", b)
					return
				}
				time.Sleep(time.Millisecond)
			}
		}
	})
	f, err := os.OpenFile(filepath.Join(d, alice), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	next := lists("two")
	for i := 0; i < len(next); i += 16 { // some 300 ms
		if _, err := f.WriteString(next[i:min(i+16, len(next))]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Millisecond)
	}
	f.Close()
	w.until(alice, next)
	close(stop)
	wg.Wait()

	// A new file is not there until it is whole; other files are served meanwhile.
	const bob = "resource-lists/users/sip:bob@example.com/index"
	write(t, d, bob, next[:50])
	write(t, d, alice, lists("three"))
	w.until(alice, lists("three"))
	if got := body(t, s, bob); got != "" {
		t.Errorf("half a file: %q", got)
	}
	write(t, d, bob, next)
	w.until(bob, next)

	// Broken for good.
	write(t, d, alice, "<a><b></a>")
	if took := w.until(alice, "<a><b></a>"); took < s.grace {
		t.Errorf("served after %v", took)
	}
	if n := strings.Count(log.String(), "sip:alice@example.com/index"); n != 2 { // the slow writing and this
		t.Errorf("complained %d times:\n%s", n, log.String())
	}
	write(t, d, alice, lists("four"))
	w.until(alice, lists("four"))
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// What the system does not tell of is found by looking.
func TestDirRescan(t *testing.T) {
	d := t.TempDir()
	target := write(t, d, ".store/list", lists("one"))
	write(t, d, "resource-lists/global/x", "<x/>")
	if err := os.Symlink("../../.store/list", filepath.Join(d, "resource-lists/global/linked")); err != nil {
		t.Fatal(err)
	}
	s := dir(t, d)
	s.rescan = 50 * time.Millisecond
	w := watch(t, s)
	w.running(d)
	if err := os.WriteFile(target, []byte(lists("two and more")), 0o644); err != nil {
		t.Fatal(err)
	}
	w.until("resource-lists/global/linked", lists("two and more"))
}

func TestDirRefresh(t *testing.T) {
	d := t.TempDir()
	p := write(t, d, alice, lists("one"))
	write(t, d, "resource-lists/global/gone", "<x/>")
	s := dir(t, d)
	before, err := os.Stat(p)
	if err != nil {
		t.Fatal(err)
	}
	write(t, d, alice, lists("two")) // made to look unchanged
	write(t, d, "resource-lists/global/new", "<x/>")
	if err := errors.Join(os.Chtimes(p, before.ModTime(), before.ModTime()), os.Remove(filepath.Join(d, "resource-lists/global/gone"))); err != nil {
		t.Fatal(err)
	}
	c := New(s)
	heard := make(chan []string, 10)
	c.Watch(func(sel []string) { heard <- sel })
	c.Watch(func(sel []string) { heard <- sel })
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := body(t, c, alice); got != lists("two") {
		t.Errorf("got %q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	want := []string{"resource-lists/global/gone", "resource-lists/global/new", alice}
	for range 2 {
		if got := <-heard; !slices.Equal(got, want) {
			t.Errorf("heard of %q", got)
		}
	}
	if err := c.Run(ctx); err == nil {
		t.Error("runs twice")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDirMemoryBound(t *testing.T) {
	d := t.TempDir()
	s := dir(t, d)
	s.maxBytes = 1000
	for i := range 20 {
		write(t, d, fmt.Sprintf("resource-lists/global/d%d", i), fmt.Sprintf("<a>%0200d</a>", i))
	}
	if _, err := s.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.bytes > 1000 || s.bytes < 700 {
		t.Errorf("%d bytes in memory", s.bytes)
	}
	tags := map[string]bool{}
	for i := range 20 {
		doc, err := s.Document(t.Context(), fmt.Sprintf("resource-lists/global/d%d", i))
		if want := fmt.Sprintf("<a>%0200d</a>", i); err != nil || string(doc.Body) != want {
			t.Errorf("%d: %q %v", i, doc.Body, err)
		}
		tags[doc.ETag] = true
	}
	if len(tags) != 20 {
		t.Errorf("%d tags", len(tags))
	}
	for i := range 20 {
		if err := os.Remove(filepath.Join(d, fmt.Sprintf("resource-lists/global/d%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if changed, err := s.Refresh(t.Context()); err != nil || len(changed) != 20 || s.bytes != 0 {
		t.Errorf("%d changed, %d bytes, %v", len(changed), s.bytes, err)
	}
}

// Many changes at once, some while directories come and go: in the end all is as it is on disk.
func TestDirStorm(t *testing.T) {
	d := t.TempDir()
	w := watch(t, dir(t, d))
	w.running(d)
	const users = 200
	sel := func(i int) string { return fmt.Sprintf("resource-lists/users/sip:u%d@example.com/index", i) }
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := g; i < users; i += 4 {
				write(t, d, sel(i), lists("first"))
				switch i % 3 {
				case 0:
					replace(t, d, sel(i), lists("second"))
				case 1:
					if err := os.RemoveAll(filepath.Dir(filepath.Join(d, sel(i)))); err != nil {
						t.Error(err)
					}
				case 2:
					if err := os.RemoveAll(filepath.Dir(filepath.Join(d, sel(i)))); err != nil {
						t.Error(err)
					}
					write(t, d, sel(i), lists("third"))
				}
			}
		})
	}
	wg.Wait()
	deadline := time.After(10 * time.Second)
	for {
		wrong := ""
		for i := range users {
			if got, want := body(t, w, sel(i)), []string{lists("second"), "", lists("third")}[i%3]; got != want {
				wrong = fmt.Sprintf("%s is %q, want %q", sel(i), got, want)
			}
		}
		if wrong == "" {
			break
		}
		select {
		case <-w.events:
		case <-deadline:
			t.Fatal(wrong)
		}
	}
	for _, i := range []int{0, 1, 2} { // and it still watches
		write(t, d, sel(i), lists("last"))
		w.until(sel(i), lists("last"))
	}
}

func FuzzSelector(f *testing.F) {
	for _, s := range []string{alice, "rls-services/global/index", "a/users/%2e%2e/x", "a/users/a%2Fb/100%", "a/global/%", "a/users/x/y/z", "a//b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := normalize(s)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			return
		}
		if again, err := normalize(n); err != nil || again != n {
			t.Errorf("%q becomes %q becomes %q (%v)", s, n, again, err)
		}
		if slices.ContainsFunc(strings.Split(n, "/"), func(p string) bool { return p == "" || p == "." || p == ".." }) {
			t.Errorf("%q becomes %q", s, n)
		}
		u, err := URL("http://xcap.example.com/root/", n)
		if err != nil {
			t.Fatal(err)
		}
		rest, ok := strings.CutPrefix(u, "http://xcap.example.com/root/")
		if back, err := normalize(rest); !ok || err != nil || back != n || strings.ContainsAny(rest, "?#[]\" ") {
			t.Errorf("%q has URL %q, which is %q (%v)", n, u, back, err)
		}
	})
}

func BenchmarkDirDocument(b *testing.B) {
	d := b.TempDir()
	write(b, d, alice, lists("one"))
	s := dir(b, d)
	for b.Loop() {
		if _, err := s.Document(b.Context(), alice); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDirScan(b *testing.B) {
	d := b.TempDir()
	const users = 2000
	for i := range users {
		p := write(b, d, fmt.Sprintf("resource-lists/users/sip:u%d@example.com/index", i), lists("x"))
		if err := os.Chtimes(p, time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
			b.Fatal(err)
		}
	}
	s := dir(b, d)
	for b.Loop() {
		s.scanMu.Lock()
		s.walk(nil, nothing, true)
		s.scanMu.Unlock()
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/users, "µs/document")
}
