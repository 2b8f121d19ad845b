package xcapclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// upstream is an XCAP server without a socket.
type upstream struct {
	mu     sync.Mutex
	docs   map[string]string // by selector
	down   bool
	hangs  bool
	counts map[int]int
}

func (u *upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.hangs {
		u.mu.Unlock()
		<-r.Context().Done()
		u.mu.Lock()
		return nil, r.Context().Err()
	}
	if u.down {
		return nil, errors.New("connection refused")
	}
	body, ok := u.docs[strings.TrimPrefix(r.URL.Path, "/root/")]
	etag := fmt.Sprintf("%q", "v-"+body)
	resp := &http.Response{StatusCode: 200, Status: "200 OK", Header: http.Header{"Etag": {etag}}, Body: io.NopCloser(strings.NewReader(body)), Request: r, ContentLength: int64(len(body))}
	switch {
	case !ok:
		resp.StatusCode, resp.Header = 404, http.Header{}
	case r.Header.Get("If-None-Match") == etag:
		resp.StatusCode, resp.Body = 304, io.NopCloser(strings.NewReader(""))
	}
	u.counts[resp.StatusCode]++
	return resp, nil
}

func (u *upstream) do(f func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f()
}

// shelf is Copies in memory.
type shelf struct {
	mu   sync.Mutex
	kept map[string]Copy
	fail bool
}

func (s *shelf) Load(_ context.Context, f func(Copy) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.kept {
		if err := f(k); err != nil {
			return err
		}
	}
	return nil
}

func (s *shelf) Save(_ context.Context, put []Copy, gone []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail {
		return errors.New("full")
	}
	for _, k := range put {
		s.kept[k.Selector] = k
	}
	for _, sel := range gone {
		delete(s.kept, sel)
	}
	return nil
}

func (s *shelf) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.kept))
}

const (
	one  = "rls-services/global/index"
	two  = "pres-rules/users/sip:a@example.com/index"
	none = "pres-rules/users/sip:none@example.com/index"
)

// life runs f with a source that has begun, in virtual time, and then ends it.
func life(t *testing.T, u *upstream, k *shelf, opt HTTPOptions, f func(s *HTTPSource, changed func() []string)) {
	t.Helper()
	opt.Transport, opt.Copies = u, k
	s := HTTP("http://xcap.example/root", opt)
	if err := s.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var all []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx, func(sel []string) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, sel...)
		})
	}()
	f(s, func() []string {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		out := all
		all = nil
		return out
	})
	cancel()
	<-done
}

func TestCopiesOutliveTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstream{docs: map[string]string{one: "<a/>", two: "<b/>"}, counts: map[int]int{}}
		k := &shelf{kept: map[string]Copy{}}
		read := func(s *HTTPSource, sel, want string) {
			t.Helper()
			began := time.Now()
			d, err := s.Document(t.Context(), sel)
			if want == "" && !errors.Is(err, fs.ErrNotExist) || want != "" && (err != nil || string(d.Body) != want || d.ETag != "v-"+want || d.Origin != "http://xcap.example/root/"+strings.ReplaceAll(sel, "sip:", "sip:")) {
				t.Errorf("%s: %+v %v, want %q", sel, d, err, want)
			}
			if time.Since(began) != 0 {
				t.Errorf("%s: waited %v", sel, time.Since(began))
			}
		}
		life(t, u, k, HTTPOptions{}, func(s *HTTPSource, _ func() []string) {
			read(s, one, "<a/>")
			read(s, two, "<b/>")
			read(s, none, "")
		})
		if got := k.names(); !slices.Equal(got, []string{two, none, one}) {
			t.Fatalf("kept: %q", got)
		}
		for name, fault := range map[string]func(){"refused": func() { u.down = true }, "no answer": func() { u.hangs = true }} {
			u.do(fault)
			life(t, u, k, HTTPOptions{}, func(s *HTTPSource, changed func() []string) {
				for range 20 { // long after MaxAge too
					read(s, one, "<a/>")
					read(s, none, "")
					time.Sleep(7 * time.Second)
				}
				if _, err := s.Document(t.Context(), "pres-rules/users/sip:new@example.com/index"); err == nil || errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: of what was never heard: %v", name, err)
				}
				u.do(func() { u.down, u.hangs, u.docs[two], u.docs[none] = false, false, "<c/>", "<n/>"; clear(u.counts) })
				time.Sleep(time.Minute)
				got := changed()
				slices.Sort(got)
				if !slices.Equal(got, []string{two, none}) {
					t.Errorf("%s: changed %q", name, got)
				}
				read(s, one, "<a/>")
				read(s, two, "<c/>")
				read(s, none, "<n/>")
				u.do(func() {
					if u.counts[304] == 0 || u.counts[200] != 2 {
						t.Errorf("%s: the server was asked %v: an ETag is lost", name, u.counts)
					}
					u.docs[two] = "<b/>"
					delete(u.docs, none)
				})
				time.Sleep(time.Minute)
				changed()
			})
		}
	})
}

// A change while the server was there but we were not is noticed within MaxAge.
func TestCopiesRevalidated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstream{docs: map[string]string{}, counts: map[int]int{}}
		k := &shelf{kept: map[string]Copy{}}
		for i := range 100 {
			sel := fmt.Sprintf("pres-rules/users/sip:u%d@example.com/index", i)
			k.kept[sel] = Copy{Selector: sel, ETag: `"v-old"`, Body: []byte("old")}
			u.docs[sel] = "new"
		}
		life(t, u, k, HTTPOptions{}, func(s *HTTPSource, changed func() []string) {
			time.Sleep(3 * time.Second)
			if n := len(changed()); n == 0 || n > 50 {
				t.Errorf("%d are noticed at first: they are not spread", n)
			}
			time.Sleep(29 * time.Second)
			u.do(func() {
				if u.counts[200] != 100 {
					t.Errorf("asked: %v", u.counts)
				}
			})
		})
	})
}

// What is kept is bounded as the copies are, and a store that fails is tried again.
func TestCopiesBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstream{docs: map[string]string{}, counts: map[int]int{}}
		k := &shelf{kept: map[string]Copy{}, fail: true}
		life(t, u, k, HTTPOptions{CacheEntries: 5}, func(s *HTTPSource, _ func() []string) {
			for i := range 10 {
				s.Document(t.Context(), fmt.Sprintf("pres-rules/users/sip:u%d@example.com/index", i))
			}
			time.Sleep(5 * time.Second)
			if n := len(k.names()); n != 0 {
				t.Errorf("%d are kept", n)
			}
			k.mu.Lock()
			k.fail = false
			k.mu.Unlock()
			time.Sleep(15 * time.Second)
			if n := len(k.names()); n != 5 {
				t.Errorf("%d are kept, want 5", n)
			}
			for i := range 3 {
				s.Document(t.Context(), fmt.Sprintf("pres-rules/users/sip:v%d@example.com/index", i))
			}
		})
		if got := k.names(); len(got) != 5 || !slices.Contains(got, "pres-rules/users/sip:v2@example.com/index") {
			t.Errorf("kept: %q", got)
		}
		k.kept["../../x"] = Copy{Selector: "../../x", Body: []byte("x")} // what is not ours is left out
		for i := range 10 {
			sel := fmt.Sprintf("pres-rules/users/sip:w%d@example.com/index", i)
			k.kept[sel] = Copy{Selector: sel, Missing: true}
		}
		life(t, u, k, HTTPOptions{CacheEntries: 5}, func(s *HTTPSource, _ func() []string) { time.Sleep(2 * time.Second) })
		if n := len(k.names()); n != 6 {
			t.Errorf("%d are kept, want 5 and the bad one", n)
		}
	})
}
