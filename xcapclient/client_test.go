package xcapclient

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"time"
)

// fake is a source from a map; a value of "!" is an error.
type fake map[string]string

var errFake = errors.New("source is broken")

func (f fake) Document(_ context.Context, selector string) (Document, error) {
	switch b, ok := f[selector]; {
	case !ok:
		return Document{}, fmt.Errorf("no: %w", fs.ErrNotExist)
	case b == "!":
		return Document{}, errFake
	default:
		return Document{Selector: selector, Body: []byte(b), ETag: b, Origin: "fake"}, nil
	}
}

func (f fake) Selectors(_ context.Context, auid string) ([]string, error) {
	var all []string
	var err error
	for s, b := range f {
		if b == "!" {
			err = errFake
		} else {
			all = append(all, s)
		}
	}
	return all, err
}

func (f fake) DocumentBody(ctx context.Context, selector string) ([]byte, string, error) {
	return Plain{f}.Document(ctx, selector)
}

func TestClientLayers(t *testing.T) {
	c := New(fake{"a/global/x": "upper", "a/global/broken": "!"}, fake{"a/global/x": "lower", "a/global/y": "lower", "a/global/broken": "lower"})
	tests := []struct {
		name, selector, want string
		err                  error
	}{
		{"first match wins", "a/global/x", "upper", nil},
		{"the next one is asked", "a/global/y", "lower", nil},
		{"nobody has it", "a/global/z", "", fs.ErrNotExist},
		{"XC-05 an error ends the search", "a/global/broken", "", errFake},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, etag, err := Plain{c}.Document(t.Context(), tt.selector)
			if string(got) != tt.want || etag != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q %q %v", got, etag, err)
			}
		})
	}
	got, err := c.Selectors(t.Context(), "a")
	if !errors.Is(err, errFake) || !slices.Equal(got, []string{"a/global/broken", "a/global/x", "a/global/y"}) {
		t.Errorf("selectors %q, %v", got, err)
	}
	if _, err := New().Document(t.Context(), "a/global/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

type failing struct{ fake }

func (failing) Run(context.Context, func([]string)) error { return errFake }

func TestClientRunFails(t *testing.T) {
	if err := New(dir(t, t.TempDir()), failing{}).Run(t.Context()); !errors.Is(err, errFake) {
		t.Error(err)
	}
}

func TestURL(t *testing.T) {
	const root = "http://xcap.example.com/xcap-root"
	tests := []struct{ name, root, selector, want string }{
		{"XC-01 user", root, alice, root + "/resource-lists/users/sip:alice@example.com/index"},
		{"XC-01 global", root + "/", "rls-services/global/index", root + "/rls-services/global/index"},
		{"XC-01 reserved characters", root, Selector("resource-lists", "sip:a/b?c@example.com", "a%b c"), root + "/resource-lists/users/sip:a%2Fb%3Fc@example.com/a%25b%20c"},
		{"XC-02 brackets, quotes and UTF-8", root, `resource-lists/users/sip:zoë@example.com/[1]"`, root + "/resource-lists/users/sip:zo%C3%AB@example.com/%5B1%5D%22"},
		{"encoded already", root, "resource-lists/users/sip%3Aalice%40example.com/index", root + "/resource-lists/users/sip:alice@example.com/index"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := URL(tt.root, tt.selector); got != tt.want || err != nil {
				t.Errorf("got  %s (%v)\nwant %s", got, err, tt.want)
			}
		})
	}
	for _, s := range []string{"", "a", "a/global", "a/users/b", "a/else/b/c", "a/users/../b", "a/users/b/%2e", "a/users/b/~~"} {
		if got, err := URL(root, s); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %s, %v", s, got, err)
		}
	}
}

// counting is a database that counts reads and can be held up in one.
type counting struct {
	mu    sync.Mutex
	docs  fake
	reads int
	hold  chan struct{}
}

func (c *counting) DocumentBody(ctx context.Context, selector string) ([]byte, string, error) {
	c.mu.Lock()
	c.reads++
	body, etag, err := c.docs.DocumentBody(ctx, selector)
	hold := c.hold
	c.mu.Unlock()
	if hold != nil {
		hold <- struct{}{}
		<-hold
	}
	return body, etag, err
}

func (c *counting) Selectors(ctx context.Context, auid string) ([]string, error) {
	return c.docs.Selectors(ctx, auid)
}

func (c *counting) set(selector, body string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.docs[selector] = body
}

func TestStored(t *testing.T) {
	db := &counting{docs: fake{alice: "one", "a/global/broken": "!"}}
	s := Stored(db)
	w := watch(t, s)
	for range 3 {
		if got := body(t, s, alice); got != "one" {
			t.Errorf("got %q", got)
		}
		if got := body(t, s, "a/global/none"); got != "" {
			t.Errorf("got %q", got)
		}
	}
	if db.reads != 2 {
		t.Errorf("%d reads", db.reads)
	}
	for range 2 { // a failure is not remembered
		if _, err := s.Document(t.Context(), "a/global/broken"); !errors.Is(err, errFake) {
			t.Error(err)
		}
	}
	if db.reads != 4 {
		t.Errorf("%d reads", db.reads)
	}
	db.set(alice, "two")
	s.Changed("resource-lists/users/sip%3aalice@example.com/index")
	w.until(alice, "two")
	db.set("a/global/none", "some")
	s.Changed("a/global/none", "nonsense")
	w.until("a/global/none", "some")

	// A read that was under way when the document changed is not kept.
	s.Changed(alice)
	hold := make(chan struct{})
	db.mu.Lock()
	db.hold = hold
	db.mu.Unlock()
	done := make(chan string)
	go func() { done <- body(t, s, alice) }()
	<-hold
	db.mu.Lock()
	db.hold = nil
	db.mu.Unlock()
	db.set(alice, "three")
	s.Changed(alice)
	hold <- struct{}{}
	if got := <-done; got != "two" {
		t.Errorf("got %q", got)
	}
	if got := body(t, s, alice); got != "three" {
		t.Errorf("an old version stayed: %q", got)
	}

	db.set(alice, "four")
	if err := w.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.until(alice, "four")
}

func TestCache(t *testing.T) {
	c := newCache[int](3, 5000)
	for i := range 4 {
		c.put(fmt.Sprint(i), i, 10)
		c.get("0") // keeps it
	}
	if _, ok := c.get("1"); ok {
		t.Error("1 was used least and stayed")
	}
	if v, ok := c.get("0"); v != 0 || !ok {
		t.Error("0 was used and went")
	}
	c.put("2", 22, 20) // a replacement is no use
	c.put("4", 4, 10)
	if _, ok := c.peek("2"); ok {
		t.Error("2 stayed")
	}
	c.put("5", 5, 4000)
	c.put("6", 6, 4000)
	c.put("7", 7, 6000)
	var names []string
	c.each(func(name string, _ int) { names = append(names, name) })
	if !slices.Equal(names, []string{"6"}) || c.bytes > 5000 {
		t.Errorf("%q, %d bytes", names, c.bytes)
	}
	c.put("6", 6, 6000)
	if c.bytes != 0 || len(c.byName) != 0 {
		t.Errorf("%d bytes, %d entries", c.bytes, len(c.byName))
	}
}

// However changes come, the last one is heard of.
func TestChanges(t *testing.T) {
	c := newChanges()
	c.add()
	select {
	case <-c.signal:
		t.Error("signal for nothing")
	default:
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 100 {
				c.add(fmt.Sprintf("%d/%d", g, i))
			}
		})
	}
	seen := map[string]bool{}
	deadline := time.After(10 * time.Second)
	for len(seen) < 400 {
		select {
		case <-c.signal:
			for _, s := range c.take() {
				if seen[s] {
					t.Errorf("%s twice", s)
				}
				seen[s] = true
			}
		case <-deadline:
			t.Fatalf("%d of 400", len(seen))
		}
	}
	wg.Wait()
}
