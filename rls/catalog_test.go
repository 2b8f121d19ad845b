package rls

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"

	"rollcall/dialog"
	"rollcall/rls/list"
)

// shelf is documents in memory.
type shelf struct {
	mu     sync.Mutex
	bodies map[string]string
	errs   map[string]error
}

func (d *shelf) Document(_ context.Context, sel string) ([]byte, string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.errs[sel]; err != nil {
		return nil, "", err
	}
	b, ok := d.bodies[sel]
	if !ok {
		return nil, "", fs.ErrNotExist
	}
	return []byte(b), fmt.Sprint(len(b)), nil
}

func (d *shelf) Selectors(_ context.Context, auid string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []string
	for sel := range d.bodies {
		if strings.HasPrefix(sel, auid+"/") {
			all = append(all, sel)
		}
	}
	slices.Sort(all)
	return all, d.errs[auid]
}

func (d *shelf) put(sel, body string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bodies[sel] = body
}

func service(uri string, members ...string) string {
	var b strings.Builder
	b.WriteString(`<rls-services xmlns="urn:ietf:params:xml:ns:rls-services" xmlns:rl="urn:ietf:params:xml:ns:resource-lists"><service uri="` + uri + `"><list>`)
	for _, m := range members {
		b.WriteString(`<rl:entry uri="` + m + `"/>`)
	}
	return b.String() + `</list></service></rls-services>`
}

// The catalog tells which lists changed, and no others, and keeps what a
// document said that cannot be read or understood.
func TestCatalog(t *testing.T) {
	const a, b, c = "rls-services/global/a", "rls-services/global/b", "rls-services/users/sip:x@example.com/index"
	docs := &shelf{bodies: map[string]string{
		a: service("sip:a@example.com", "sip:1@example.com", "sip:b@example.com"), b: service("sip:b@example.com", "sip:2@example.com"), c: service("sip:c@example.com", "sip:3@example.com"),
	}, errs: map[string]error{}}
	var told []string
	cat := NewCatalog(docs, CatalogOptions{Changed: func(key string) { told = append(told, key) }})
	changed := func(what string, want []string, selectors ...string) {
		t.Helper()
		told = nil
		cat.Changed(t.Context(), selectors)
		slices.Sort(told)
		if !slices.Equal(told, want) {
			t.Errorf("%s: told of %v, want %v", what, told, want)
		}
	}
	docs.errs["rls-services"], docs.errs[b] = errors.New("half of them"), errors.New("not now")
	if err := cat.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "half of them") || !strings.Contains(err.Error(), "not now") {
		t.Errorf("Load: %v", err)
	}
	if got := cat.Services(); !slices.Equal(got, []string{"sip:a@example.com", "sip:c@example.com"}) {
		t.Errorf("after half a Load: %v", got)
	}
	clear(docs.errs)
	tree, err := cat.Tree(t.Context(), "sip:a@example.com")
	if err != nil || tree.Nodes[1].List != nil {
		t.Fatalf("tree: %v, %v", tree, err)
	}
	if err := cat.Load(t.Context()); err != nil {
		t.Errorf("Load: %v", err)
	}
	if tree, _ = cat.Tree(t.Context(), "sip:a@example.com"); tree.Nodes[1].List == nil {
		t.Error("a member that became a list is not one in the tree")
	}
	if again, _ := cat.Tree(t.Context(), "sip:a@example.com"); again != tree {
		t.Error("a tree that did not change was expanded again")
	}
	changed("a document of no list", nil, "resource-lists/users/sip:x@example.com/index", "pres-rules/users/sip:x@example.com/index")
	docs.put(b, service("sip:b@example.com", "sip:4@example.com"))
	changed("a nested list", []string{"sip:a@example.com", "sip:b@example.com"}, b)
	if tree, _ = cat.Tree(t.Context(), "sip:a@example.com"); tree.Nodes[1].List.Nodes[0].Key != "sip:4@example.com" {
		t.Error("the nested list is the old one")
	}
	docs.put(b, "<broken")
	cat.Changed(t.Context(), []string{b})
	docs.put(b, `<other xmlns="urn:x"/>`)
	cat.Changed(t.Context(), []string{b})
	docs.errs[b] = errors.New("not now")
	if err := cat.Changed(t.Context(), []string{b}); err == nil || !strings.Contains(err.Error(), b) {
		t.Errorf("not readable: %v", err)
	}
	if tree, _ = cat.Tree(t.Context(), "sip:a@example.com"); tree.Nodes[1].List == nil {
		t.Error("a document that is not understood takes its lists away")
	}
	if !cat.IsService("sip:b@example.com") {
		t.Error("a document that is not understood takes its lists away")
	}
	clear(docs.errs)
	delete(docs.bodies, b)
	changed("deleted", []string{"sip:a@example.com", "sip:b@example.com"}, b)
	if _, err := cat.Tree(t.Context(), "sip:b@example.com"); !errors.Is(err, list.ErrNotService) {
		t.Errorf("tree of what is no list: %v", err)
	}
}

// Readers and a writer at once: whoever asks last has the newest.
func TestCatalogConcurrent(t *testing.T) {
	const sel, key = "rls-services/global/index", "sip:team@example.com"
	docs := &shelf{bodies: map[string]string{sel: service(key, "sip:0@example.com")}}
	cat := NewCatalog(docs, CatalogOptions{})
	if err := cat.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			last := -1
			for {
				select {
				case <-stop:
					return
				default:
				}
				tree, err := cat.Tree(t.Context(), key)
				if err != nil || len(tree.Nodes) != 1 {
					t.Errorf("tree: %v, %v", tree, err)
					return
				}
				var n int
				fmt.Sscanf(tree.Nodes[0].Key, "sip:%d@", &n)
				if n < last {
					t.Errorf("version %d after %d", n, last)
				}
				last = n
				cat.Services()
				cat.IsService(key)
			}
		})
	}
	const versions = 300
	for i := range versions {
		docs.put(sel, service(key, fmt.Sprintf("sip:%d@example.com", i+1)))
		cat.Changed(t.Context(), []string{sel})
		if tree, err := cat.Tree(t.Context(), key); err != nil || tree.Nodes[0].Key != fmt.Sprintf("sip:%d@example.com", i+1) {
			t.Errorf("after version %d: %v", i+1, tree.Nodes[0].Key)
		}
	}
	close(stop)
	wg.Wait()
}

// LS-08, RFC 4825 section 5.7: a user's list leads to documents of his own and
// to global ones only.
func TestPermit(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"rls-services/users/sip:a@example.com/index", "resource-lists/users/sip:a@example.com/index", true},
		{"rls-services/users/sip:a@example.com/index", "resource-lists/users/sip:a@example.com/other", true},
		{"rls-services/users/sip:a@example.com/index", "resource-lists/users/sip:b@example.com/index", false},
		{"rls-services/users/sip:a@example.com/index", "resource-lists/users/sip:a@example.co/index", false},
		{"rls-services/users/sip:a@example.com/index", "resource-lists/global/index", true},
		{"rls-services/global/index", "resource-lists/users/sip:b@example.com/index", true},
		{"resource-lists/users/sip:a@example.com/users", "resource-lists/users/sip:b@example.com/users", false},
	} {
		if got := permit(c.from, c.to); got != c.want {
			t.Errorf("permit(%q, %q) = %v", c.from, c.to, got)
		}
	}
}

// Names of Content-IDs are hosts whatever the list's URI is.
func TestHostOf(t *testing.T) {
	for key, want := range map[string]string{
		"sip:team@example.com": "example.com", "sip:team@example.com:5070;x=y": "example.com", "sip:example.com": "example.com", "sip:team@[2001:db8::1]": "invalid", "tel:+123": "tel", "": "invalid",
	} {
		if got := hostOf(key); got != want {
			t.Errorf("hostOf(%q) = %q, want %q", key, got, want)
		}
	}
}

// admit refuses before anything is read (RL-02, RL-04), and beyond MaxViews.
func TestAdmit(t *testing.T) {
	pkg := &dialog.Package{Name: "presence", Types: []string{"application/pidf+xml"}, Lists: true}
	s := New(Options{MaxViews: 1}).Shard(0).(*Shard)
	in := dialog.Interest{Package: pkg, EventList: true, Accept: "multipart/related, application/rlmi+xml, application/pidf+xml"}
	if err := s.admit(in); err != nil {
		t.Errorf("first: %v", err)
	}
	s.views[1] = &view{}
	if err := s.admit(in); err == nil || err.Status != 503 || err.RetryAfter == 0 {
		t.Errorf("beyond MaxViews: %v", err)
	}
}
