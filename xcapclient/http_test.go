package xcapclient

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// xcap is an XCAP server that counts what it is asked and answers as told.
type xcap struct {
	*httptest.Server
	mu       sync.Mutex
	docs     map[string]string // by request path as sent
	answer   func(w http.ResponseWriter, r *http.Request) bool
	requests map[int]int // by status
	paths    []string
	header   http.Header // of the last request
	noTags   bool
	answered chan int // statuses, as many as fit
}

func newXCAP(t testing.TB) *xcap {
	x := &xcap{docs: map[string]string{}, requests: map[int]int{}, answered: make(chan int, 1000)}
	x.Server = httptest.NewServer(x)
	t.Cleanup(x.Close)
	return x
}

func (x *xcap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x.mu.Lock()
	answer := x.answer
	x.paths = append(x.paths, r.RequestURI)
	x.header = r.Header
	x.mu.Unlock()
	rec := &statusWriter{ResponseWriter: w, status: 200}
	if answer == nil || !answer(rec, r) {
		x.mu.Lock()
		body, ok := x.docs[r.RequestURI]
		etag := fmt.Sprintf("%q", "v-"+body)
		if x.noTags {
			etag = ""
		}
		x.mu.Unlock()
		switch {
		case !ok:
			rec.WriteHeader(404)
		case etag != "" && r.Header.Get("If-None-Match") == etag:
			rec.WriteHeader(304)
		default:
			if etag != "" {
				rec.Header().Set("ETag", etag)
			}
			rec.Write([]byte(body))
		}
	}
	x.mu.Lock()
	x.requests[rec.status]++
	x.mu.Unlock()
	select {
	case x.answered <- rec.status:
	default:
	}
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(code int) {
	w.status = code
	w.ResponseWriter.WriteHeader(code)
}

func (x *xcap) set(path, body string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if body == "" {
		delete(x.docs, path)
	} else {
		x.docs[path] = body
	}
}

func (x *xcap) answering(f func(w http.ResponseWriter, r *http.Request) bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.answer = f
}

func (x *xcap) count(status int) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.requests[status]
}

// wait returns when the server has given an answer from now on.
func (x *xcap) wait(t testing.TB, status int) {
	t.Helper()
	for len(x.answered) > 0 {
		<-x.answered
	}
	deadline := time.After(10 * time.Second)
	for {
		select {
		case got := <-x.answered:
			if got == status {
				return
			}
		case <-deadline:
			t.Fatalf("no answer %d", status)
		}
	}
}

const alicePath = "/root/resource-lists/users/sip:alice@example.com/index"

// at once is a MaxAge with which every call asks the server.
const atOnce = time.Nanosecond

func (x *xcap) source(t testing.TB, opt HTTPOptions) *HTTPSource {
	if opt.Log == nil {
		opt.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return HTTP(x.URL+"/root/", opt)
}

func TestHTTPGet(t *testing.T) {
	x := newXCAP(t)
	x.set(alicePath, "one")
	x.set("/root/resource-lists/users/sip:a%2Fb%3Fc@example.com/a%25b%20c", "odd")
	s := x.source(t, HTTPOptions{Header: http.Header{"X-XCAP-Asserted-Identity": {`"sip:rls@example.com"`}}})
	d, err := s.Document(t.Context(), alice)
	if err != nil || string(d.Body) != "one" || d.ETag != "v-one" || d.Selector != alice || d.Origin != x.URL+alicePath {
		t.Errorf("%+v, %v", d, err)
	}
	if got := x.header.Get("X-XCAP-Asserted-Identity"); got != `"sip:rls@example.com"` {
		t.Errorf("header %q", got)
	}
	if got := body(t, s, Selector("resource-lists", "sip:a/b?c@example.com", "a%b c")); got != "odd" {
		t.Errorf("XC-01: %q, asked for %q", got, x.paths)
	}
	for range 5 { // within MaxAge nobody is asked
		if got := body(t, s, alice); got != "one" {
			t.Errorf("got %q", got)
		}
	}
	if n := x.count(200); n != 2 {
		t.Errorf("%d requests", n)
	}
	// What names no document is not asked for.
	for _, sel := range []string{"", "../x", "a/users/../../admin", "a/users/b/~~/c"} {
		if got := body(t, s, sel); got != "" {
			t.Errorf("got %q", got)
		}
	}
	if len(x.paths) != 2 {
		t.Errorf("asked for %q", x.paths)
	}
	for auid, want := range map[string]string{"rls-services": "[rls-services/global/index]", "resource-lists": "[]"} {
		if got, err := s.Selectors(t.Context(), auid); fmt.Sprint(got) != want || err != nil {
			t.Errorf("%s: %q, %v", auid, got, err)
		}
	}
	for _, root := range []string{"", "ftp://x/", "/path", "http://", "http://x/?q", "http://x/%zz"} {
		if _, err := HTTP(root, HTTPOptions{}).Document(t.Context(), alice); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", root, err)
		}
	}
}

func TestHTTPConditional(t *testing.T) {
	t.Run("XC-04 304 keeps the copy", func(t *testing.T) {
		x := newXCAP(t)
		x.set(alicePath, "one")
		s := x.source(t, HTTPOptions{MaxAge: atOnce})
		for range 4 {
			if got := body(t, s, alice); got != "one" {
				t.Errorf("got %q", got)
			}
		}
		x.set(alicePath, "two")
		for range 2 {
			if got := body(t, s, alice); got != "two" {
				t.Errorf("got %q", got)
			}
		}
		if x.count(200) != 2 || x.count(304) != 4 {
			t.Errorf("%v", x.requests)
		}
	})
	t.Run("without ETag", func(t *testing.T) {
		x := newXCAP(t)
		x.noTags = true
		x.set(alicePath, "one")
		s := x.source(t, HTTPOptions{MaxAge: atOnce})
		one, _ := s.Document(t.Context(), alice)
		same, _ := s.Document(t.Context(), alice)
		x.set(alicePath, "two")
		two, err := s.Document(t.Context(), alice)
		if err != nil || one.ETag == "" || one.ETag != same.ETag || one.ETag == two.ETag || string(two.Body) != "two" {
			t.Errorf("%+v %+v %+v %v", one, same, two, err)
		}
	})
}

func TestHTTPFailures(t *testing.T) {
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	released := make(chan struct{})
	defer close(released)
	other := newXCAP(t)
	other.set(alicePath, "another host's")
	tests := []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request) bool
		stale  bool
	}{
		{"XC-05 500", status(500), true},
		{"XC-05 503", status(503), true},
		{"429", status(429), true},
		{"XC-05 no answer in time", func(_ http.ResponseWriter, r *http.Request) bool {
			select {
			case <-released:
			case <-r.Context().Done():
			}
			return true
		}, true},
		{"connection breaks within the body", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("only this"))
			return true
		}, true},
		{"connection breaks at once", func(w http.ResponseWriter, _ *http.Request) bool {
			c, _, err := w.(*statusWriter).ResponseWriter.(http.Hijacker).Hijack()
			if err == nil {
				c.Close()
			}
			return true
		}, true},
		{"403", status(403), false},
		{"401", status(401), false},
		{"a document too large, announced", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Write(make([]byte, 1001))
			return true
		}, false},
		{"a document too large, not announced", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Write(make([]byte, 600))
			w.(*statusWriter).ResponseWriter.(http.Flusher).Flush()
			w.Write(make([]byte, 600))
			return true
		}, false},
		{"redirect to another host", func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, other.URL+alicePath, http.StatusFound)
			return true
		}, false},
		{"redirect without end", func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, r.RequestURI+"x", http.StatusFound)
			return true
		}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x := newXCAP(t)
			x.set(alicePath, "one")
			opt := HTTPOptions{MaxAge: atOnce, Timeout: 200 * time.Millisecond, MaxBody: 1000}
			s := x.source(t, opt)
			body(t, s, alice)
			x.answering(tt.answer)
			d, err := s.Document(t.Context(), alice)
			if tt.stale && (err != nil || string(d.Body) != "one") || !tt.stale && err == nil {
				t.Errorf("with a copy: %q, %v", d.Body, err)
			}
			// Without a copy it is an error, never "there is none".
			d, err = x.source(t, opt).Document(t.Context(), alice)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("without a copy: %q, %v", d.Body, err)
			}
		})
	}
	if n := other.count(200); n != 0 {
		t.Errorf("another host was asked %d times", n)
	}
}

func TestHTTPRedirectWithinHost(t *testing.T) {
	x := newXCAP(t)
	x.set("/moved", "one")
	x.answering(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/moved" {
			return false
		}
		http.Redirect(w, r, "/moved", http.StatusTemporaryRedirect)
		return true
	})
	if got := body(t, x.source(t, HTTPOptions{}), alice); got != "one" {
		t.Errorf("got %q", got)
	}
}

// Of a failure without a copy nobody asks again for a while; of one with a copy nobody waits again for a while; the log
// hears of it once.
func TestHTTPFailurePause(t *testing.T) {
	x := newXCAP(t)
	x.set(alicePath, "one")
	var log syncBuffer
	s := x.source(t, HTTPOptions{MissingAge: time.Hour, MaxAge: time.Hour, Log: slog.New(slog.NewTextHandler(&log, nil))})
	body(t, s, alice)
	body(t, s, "resource-lists/global/none")
	x.answering(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true })
	if _, err := s.Refresh(t.Context()); err != nil { // all copies are due now
		t.Fatal(err)
	}
	for range 5 {
		if got := body(t, s, alice); got != "one" {
			t.Errorf("got %q", got)
		}
		if got := body(t, s, "resource-lists/global/none"); got != "" { // also the last known
			t.Errorf("got %q", got)
		}
		if _, err := s.Document(t.Context(), "resource-lists/global/unknown"); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	if n := x.count(500); n != 3 {
		t.Errorf("%d requests", n)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, log.String())
	}
}

func TestHTTPMissing(t *testing.T) {
	x := newXCAP(t)
	s := x.source(t, HTTPOptions{})
	for range 5 {
		if _, err := s.Document(t.Context(), alice); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	if n := x.count(404); n != 1 {
		t.Errorf("%d requests", n)
	}
	x.set(alicePath, "one")
	s = x.source(t, HTTPOptions{MissingAge: atOnce})
	x.set(alicePath, "")
	body(t, s, alice)
	x.set(alicePath, "one")
	if got := body(t, s, alice); got != "one" {
		t.Errorf("got %q", got)
	}
}

// Callers of one document share a request; one that gives up leaves it to the others.
func TestHTTPSingleFlight(t *testing.T) {
	x := newXCAP(t)
	x.set(alicePath, "one")
	entered, release := make(chan struct{}, 10), make(chan struct{})
	x.answering(func(http.ResponseWriter, *http.Request) bool {
		entered <- struct{}{}
		<-release
		return false
	})
	s := x.source(t, HTTPOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() {
		_, err := s.Document(ctx, alice)
		gaveUp <- err
	}()
	<-entered
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got := body(t, s, alice); got != "one" {
				t.Errorf("got %q", got)
			}
		})
	}
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(release)
	wg.Wait()
	if n := x.count(200); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestHTTPBounds(t *testing.T) {
	x := newXCAP(t)
	var now, most int
	x.answering(func(w http.ResponseWriter, r *http.Request) bool {
		x.mu.Lock()
		now++
		most = max(most, now)
		x.mu.Unlock()
		w.Write([]byte(strings.Repeat("x", 100)))
		w.(*statusWriter).ResponseWriter.(http.Flusher).Flush()
		x.mu.Lock()
		now--
		x.mu.Unlock()
		return true
	})
	s := x.source(t, HTTPOptions{CacheEntries: 10, CacheBytes: 1 << 20, Concurrency: 3})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() { body(t, s, fmt.Sprintf("a/global/%d", i)) })
	}
	wg.Wait()
	if len(s.cache.byName) != 10 || len(s.flights) != 0 || most > 3 {
		t.Errorf("%d copies, %d requests under way, %d at once", len(s.cache.byName), len(s.flights), most)
	}
}

// Changes on the server are noticed without anybody asking, with one conditional request for each copy and MaxAge.
func TestHTTPLive(t *testing.T) {
	x := newXCAP(t)
	x.set(alicePath, "one")
	s := x.source(t, HTTPOptions{MaxAge: 100 * time.Millisecond})
	w := watch(t, s)
	body(t, s, alice)
	const bob, bobPath = "resource-lists/users/sip:bob@example.com/index", "/root/resource-lists/users/sip:bob@example.com/index"
	body(t, s, bob) // missing, and watched for
	x.set(alicePath, "two")
	t.Log("changed, noticed after", w.until(alice, "two"))
	x.set(bobPath, "bob")
	t.Log("created, noticed after", w.until(bob, "bob"))
	x.set(alicePath, "")
	t.Log("deleted, noticed after", w.until(alice, ""))
	x.answering(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true })
	x.wait(t, 503)
	if got := body(t, s, bob); got != "bob" {
		t.Errorf("got %q", got)
	}
	x.answering(nil)
	x.set(bobPath, "bob is back")
	w.until(bob, "bob is back")
	x.wait(t, 304) // nothing changes, and nobody is told
	x.wait(t, 404)
	select {
	case got := <-w.events:
		t.Errorf("told of %q", got)
	default:
	}
}

func TestHTTPRefresh(t *testing.T) {
	x := newXCAP(t)
	x.set(alicePath, "one")
	s := x.source(t, HTTPOptions{MaxAge: time.Hour})
	w := watch(t, s)
	body(t, s, alice)
	x.set(alicePath, "two")
	if err := w.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.until(alice, "two")
}

// An upper layer that is out of reach does not open the lower one.
func TestHTTPOverDir(t *testing.T) {
	x := newXCAP(t)
	d := t.TempDir()
	write(t, d, "pres-rules/users/sip:alice@example.com/index", "<allow-all/>")
	write(t, d, alice, "<lower/>")
	c := New(x.source(t, HTTPOptions{}), dir(t, d))
	if got := body(t, c, alice); got != "<lower/>" {
		t.Errorf("got %q", got)
	}
	x.Close()
	if _, err := c.Document(t.Context(), "pres-rules/users/sip:alice@example.com/index"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("XC-05 fails open: %v", err)
	}
}
