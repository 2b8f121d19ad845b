package xcapclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// HTTPOptions of HTTP. The zero value suits a server nearby.
type HTTPOptions struct {
	// MaxAge is how long a copy is used before the server is asked again; 0 means 30 s. It bounds how late a change
	// is noticed, and each copy costs one conditional request in that time.
	MaxAge time.Duration
	// MissingAge is MaxAge for a document that is not there, when somebody asks for it; 0 means 5 s.
	MissingAge time.Duration
	// Timeout bounds one request with its body; 0 means 5 s.
	Timeout time.Duration
	// MaxBody is the largest document in bytes; 0 means 4 MiB.
	MaxBody int
	// CacheEntries and CacheBytes bound the copies; 0 means 10,000 and 64 MiB. Changes of a document that had to go
	// are not noticed.
	CacheEntries, CacheBytes int
	// Concurrency is the most requests at once; 0 means 16.
	Concurrency int
	// Header is sent with each request, for instance Authorization or X-XCAP-Asserted-Identity.
	Header http.Header
	// Transport carries the requests; nil means one of its own.
	Transport http.RoundTripper
	// Copies keeps the copies beyond the process; nil means that they end with it. See HTTPSource.Restore.
	Copies Copies
	// Log hears of a server that fails, at most every 30 s; nil means nobody does.
	Log *slog.Logger
}

// HTTPSource has the documents of an XCAP server (RFC 4825 7).
type HTTPSource struct {
	root    string
	rootErr error
	opt     HTTPOptions
	client  *http.Client
	slots   chan struct{} // one value per request under way
	changes *changes

	mu      sync.Mutex
	cache   *cache[*copied]
	flights map[string]*flight
	trust   time.Time           // until then copies are used however old: we have just begun
	failing bool                // the newest request failed: nobody who can have a copy waits for the next one
	unsaved map[string]struct{} // copies that differ from those kept
	toSave  chan struct{}       // holds a value when there are any

	warnMu     sync.Mutex
	warned     time.Time
	suppressed int
}

// copied is what was last heard of a document. It is immutable.
type copied struct {
	doc     *Document // nil: there is none
	etag    string    // as the server wrote it, for If-None-Match; "" without
	checked time.Time // when the server last confirmed it
	retry   time.Time // the server failed since: not asked again before
}

// flight is a request that several callers wait for.
type flight struct {
	done chan struct{}
	to   *copied
	err  error
}

const (
	errorPause   = time.Second     // after a failure without a copy
	stalePause   = 5 * time.Second // after a failure with one
	warnInterval = 30 * time.Second
	maxRedirects = 3
	maxFlights   = 4096 // beyond, a call fails at once or gets its old copy
)

var errBusy = errors.New("too many documents are being asked for at once")

// HTTP gives the documents below an XCAP root URI such as "http://xcap.example.com/xcap-root". An unusable root is the
// error of every call.
//
// Answers: 200 and 304 are the document, 404 and 410 say that there is none. When the server fails (5xx, 408, 429, no
// answer, a broken one) the last known copy is served, however old, also that there was none; otherwise and for any other
// status the call fails. Redirects are followed only within the host.
func HTTP(root string, opt HTTPOptions) *HTTPSource {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	defTime := func(p *time.Duration, v time.Duration) {
		if *p <= 0 {
			*p = v
		}
	}
	defTime(&opt.MaxAge, 30*time.Second)
	defTime(&opt.MissingAge, 5*time.Second)
	opt.MissingAge = min(opt.MissingAge, opt.MaxAge)
	defTime(&opt.Timeout, 5*time.Second)
	def(&opt.MaxBody, 4<<20)
	def(&opt.CacheEntries, 10_000)
	def(&opt.CacheBytes, 64<<20)
	def(&opt.Concurrency, 16)
	if opt.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = opt.Concurrency
		opt.Transport = t
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	s := &HTTPSource{
		root: strings.TrimRight(root, "/"), opt: opt, slots: make(chan struct{}, opt.Concurrency), changes: newChanges(),
		cache: newCache[*copied](opt.CacheEntries, opt.CacheBytes), flights: map[string]*flight{},
		unsaved: map[string]struct{}{}, toSave: make(chan struct{}, 1),
	}
	s.cache.dropped = s.unsavedLocked
	u, err := url.Parse(root)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		s.rootErr = fmt.Errorf("XCAP root %q is not an http or https URI", root)
	}
	s.client = &http.Client{Transport: opt.Transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		from := via[0].URL
		if len(via) > maxRedirects || !strings.EqualFold(req.URL.Host, from.Host) || from.Scheme == "https" && req.URL.Scheme != "https" {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	return s
}

// Document returns the copy when it is fresh, otherwise what the server says. Callers that want the same document
// share one request, which goes on when they give up. While the server fails nobody waits for it who can have a copy.
func (s *HTTPSource) Document(ctx context.Context, selector string) (Document, error) {
	if s.rootErr != nil {
		return Document{}, s.rootErr
	}
	selector, err := normalize(selector)
	if err != nil {
		return Document{}, err
	}
	now := time.Now()
	s.mu.Lock()
	c, ok := s.cache.get(selector)
	if ok && (s.fresh(c, now) || now.Before(s.trust)) {
		s.mu.Unlock()
		return c.answer(selector)
	}
	f := s.startLocked(selector)
	failing := s.failing
	s.mu.Unlock()
	if ok && failing {
		return c.answer(selector)
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return Document{}, fmt.Errorf("document %q: %w", selector, ctx.Err())
	}
	if f.err != nil {
		return Document{}, fmt.Errorf("document %q: %w", selector, f.err)
	}
	return f.to.answer(selector)
}

func (s *HTTPSource) fresh(c *copied, now time.Time) bool {
	age := s.opt.MaxAge
	if c.doc == nil {
		age = s.opt.MissingAge
	}
	return now.Sub(c.checked) < age || now.Before(c.retry)
}

func (c *copied) answer(selector string) (Document, error) {
	if c.doc == nil {
		return Document{}, fmt.Errorf("document %q: %w", selector, fs.ErrNotExist)
	}
	return *c.doc, nil
}

// startLocked joins the request for a document or begins one. s.mu is held.
func (s *HTTPSource) startLocked(selector string) *flight {
	if f := s.flights[selector]; f != nil {
		return f
	}
	old, ok := s.cache.peek(selector)
	f := &flight{done: make(chan struct{}), to: old}
	if len(s.flights) >= maxFlights {
		if !ok {
			f.err = errBusy
		}
		close(f.done)
		return f
	}
	s.flights[selector] = f
	go s.fly(f, selector, old)
	return f
}

// fly carries out one request. It ends by itself: waiting and asking are bounded by the timeout.
func (s *HTTPSource) fly(f *flight, selector string, old *copied) {
	ctx, cancel := context.WithTimeout(context.Background(), s.opt.Timeout)
	defer cancel()
	var to *copied
	var err error
	select {
	case s.slots <- struct{}{}:
		to, err = s.fetch(ctx, selector, old)
		<-s.slots
	case <-ctx.Done():
		err = temporary{fmt.Errorf("%d requests are under way: %w", cap(s.slots), ctx.Err())}
	}
	now := time.Now()
	failed := false
	if err != nil {
		if _, failed = errors.AsType[temporary](err); failed && old != nil {
			s.warn("XCAP server failed, its last known documents are used", selector, err)
			to, err = &copied{doc: old.doc, etag: old.etag, checked: old.checked, retry: now.Add(min(stalePause, s.opt.MaxAge))}, nil
		}
	}
	f.to, f.err = to, err
	changed := false
	s.mu.Lock()
	s.failing = failed
	if err == nil {
		size := 0
		if to.doc != nil {
			size = len(to.doc.Body)
		}
		s.cache.put(selector, to, size)
		if old == nil || old.etag != to.etag || !same(old.doc, to.doc) {
			s.unsavedLocked(selector)
		}
		changed = old != nil && !same(old.doc, to.doc)
		delete(s.flights, selector)
	}
	s.mu.Unlock()
	if changed {
		s.changes.add(selector)
	}
	close(f.done)
	if err != nil { // whoever asks within the pause gets this answer
		time.AfterFunc(min(errorPause, s.opt.MaxAge), func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.flights, selector)
		})
	}
}

func same(a, b *Document) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a == b || a.ETag == b.ETag && bytes.Equal(a.Body, b.Body)
}

// temporary is a failure after which a copy is better than nothing (XC-05).
type temporary struct{ error }

func (t temporary) Unwrap() error { return t.error }

func (s *HTTPSource) fetch(ctx context.Context, selector string, old *copied) (*copied, error) {
	address, err := URL(s.root, selector)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range s.opt.Header {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	conditional := old != nil && old.doc != nil && old.etag != ""
	if conditional {
		req.Header.Set("If-None-Match", old.etag)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, temporary{err}
	}
	defer resp.Body.Close()
	now := time.Now()
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
	case code == http.StatusNotModified && conditional:
		return &copied{doc: old.doc, etag: old.etag, checked: now}, nil
	case code == http.StatusNotFound || code == http.StatusGone:
		io.CopyN(io.Discard, resp.Body, 4096) // lets the connection be used again
		return &copied{checked: now}, nil
	case code >= 500 || code == http.StatusTooManyRequests || code == http.StatusRequestTimeout:
		io.CopyN(io.Discard, resp.Body, 4096)
		return nil, temporary{fmt.Errorf("GET %s: %s", address, resp.Status)}
	default:
		return nil, fmt.Errorf("GET %s: %s", address, resp.Status)
	}
	if resp.ContentLength > int64(s.opt.MaxBody) {
		return nil, fmt.Errorf("GET %s: document of %d bytes, the limit is %d", address, resp.ContentLength, s.opt.MaxBody)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, int64(s.opt.MaxBody)+1))
	if err != nil {
		return nil, temporary{fmt.Errorf("GET %s: %w", address, err)}
	}
	if len(body) > s.opt.MaxBody {
		return nil, fmt.Errorf("GET %s: document larger than %d bytes", address, s.opt.MaxBody)
	}
	c := &copied{etag: resp.Header.Get("ETag"), checked: now}
	c.doc = document(selector, address, c.etag, slices.Clip(body))
	return c, nil
}

func document(selector, address, etag string, body []byte) *Document {
	d := &Document{Selector: selector, Body: body, ETag: unquote(etag), Origin: address}
	if d.ETag == "" {
		d.ETag = ContentTag(body)
	}
	return d
}

func unquote(etag string) string {
	etag = strings.TrimPrefix(etag, "W/")
	if len(etag) >= 2 && etag[0] == '"' && etag[len(etag)-1] == '"' {
		etag = etag[1 : len(etag)-1]
	}
	return etag
}

func (s *HTTPSource) warn(what, selector string, err error) {
	s.warnMu.Lock()
	now := time.Now()
	if now.Sub(s.warned) < warnInterval {
		s.suppressed++
		s.warnMu.Unlock()
		return
	}
	n := s.suppressed
	s.warned, s.suppressed = now, 0
	s.warnMu.Unlock()
	s.opt.Log.Warn(what, "selector", selector, "also_failed", n, "err", err)
}

// Selectors gives rls-services/global/index, which unites all services of an XCAP server (RFC 4826 4.4.5), whether it
// is there or not. Other application usages cannot be listed over XCAP.
func (s *HTTPSource) Selectors(_ context.Context, auid string) ([]string, error) {
	if s.rootErr != nil {
		return nil, s.rootErr
	}
	if auid == "rls-services" {
		return []string{"rls-services/global/index"}, nil
	}
	return nil, nil
}

// Refresh asks the server for every document of which there is a copy, also that it is missing. Changes are reported by
// Run, so it returns none.
func (s *HTTPSource) Refresh(ctx context.Context) (changed []string, err error) {
	return nil, s.revalidate(ctx, func(*copied) bool { return true })
}

// Run asks the server again for each document as its copy reaches MaxAge, and keeps the copies (HTTPOptions.Copies).
func (s *HTTPSource) Run(ctx context.Context, changed func([]string)) error {
	// Twenty steps spread the requests over MaxAge as the first ones were.
	tick := time.NewTicker(max(s.opt.MaxAge/20, time.Millisecond))
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	if s.opt.Copies != nil {
		wg.Go(func() { s.keep(ctx) })
	}
	busy := make(chan struct{}, 1)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.changes.signal:
			if all := s.changes.take(); len(all) > 0 {
				changed(all)
			}
		case <-tick.C:
			select {
			case busy <- struct{}{}:
				wg.Go(func() {
					now := time.Now()
					s.revalidate(ctx, func(c *copied) bool {
						early := rand.N(s.opt.MaxAge/10 + 1)
						return now.Sub(c.checked) >= s.opt.MaxAge-early && !now.Before(c.retry)
					})
					<-busy
				})
			default: // the last round is still under way
			}
		}
	}
}

// revalidate asks for all copies that are due, a few at a time so that callers find a slot.
func (s *HTTPSource) revalidate(ctx context.Context, due func(*copied) bool) error {
	if s.rootErr != nil {
		return s.rootErr
	}
	var names []string
	s.mu.Lock()
	s.cache.each(func(name string, c *copied) {
		if due(c) {
			names = append(names, name)
		}
	})
	s.mu.Unlock()
	var wg sync.WaitGroup
	next := make(chan string)
	for range min(max(s.opt.Concurrency/2, 1), len(names)) {
		wg.Go(func() {
			for name := range next {
				s.mu.Lock()
				f := s.startLocked(name)
				s.mu.Unlock()
				select {
				case <-f.done:
				case <-ctx.Done():
				}
			}
		})
	}
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		next <- name
	}
	close(next)
	wg.Wait()
	return ctx.Err()
}
