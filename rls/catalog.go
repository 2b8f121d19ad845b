package rls

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"rollcall/rls/list"
	"rollcall/sip"
)

// Documents is where XCAP documents come from. A selector is
// "AUID/users/XUI/FILE" or "AUID/global/FILE".
type Documents interface {
	list.Documents
	// Selectors names the documents of an application usage that are known.
	Selectors(ctx context.Context, auid string) ([]string, error)
}

// CatalogOptions configures a Catalog.
type CatalogOptions struct {
	Normalize  list.Normalize
	Roots      []string // XCAP root URIs that mean our own documents
	MaxDepth   int      // nested lists, default 8
	MaxMembers int      // of a list with its nested ones, default 10,000
	Log        *slog.Logger
	// Changed is called, outside any lock, with the key of a list that is no
	// longer what Tree returned before.
	Changed func(key string)
}

// Catalog knows every list service and, of those that were asked for, the
// expanded tree. It is safe for concurrent use; what it returns is immutable.
type Catalog struct {
	docs Documents
	opt  CatalogOptions
	// The lines are about documents, which users of XCAP write. What is wrong
	// with a list its expansion tells in full.
	limit sip.LogLimit

	reload   sync.Mutex // one reload at a time
	mu       sync.RWMutex
	byDoc    map[string][]list.Service
	services map[string]*list.Service
	trees    map[string]*list.Tree
	epoch    uint64 // changes with every change of documents
	loaded   bool   // every service was read once
	expected map[string]bool
}

// NewCatalog returns an empty catalog; Load fills it.
func NewCatalog(docs Documents, opt CatalogOptions) *Catalog {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Catalog{docs: docs, opt: opt, byDoc: make(map[string][]list.Service),
		services: make(map[string]*list.Service), trees: make(map[string]*list.Tree)}
}

const servicesAUID = "rls-services"

var errUnread = errors.New("the list services have not been read since the start")

// Load reads every rls-services document. With an error it has read what could
// be read, and should be called again later.
func (c *Catalog) Load(ctx context.Context) error {
	selectors, err := c.docs.Selectors(ctx, servicesAUID)
	err = errors.Join(err, c.Changed(ctx, selectors))
	if err == nil {
		c.settle()
	}
	return err
}

// Expect says that a key named a list before a restart. Until Load has succeeded
// it does so still, though nobody knows its members; then it is as it was read.
func (c *Catalog) Expect(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.loaded {
		if c.expected == nil {
			c.expected = make(map[string]bool)
		}
		c.expected[key] = true
	}
}

// settle ends the time of Expect.
func (c *Catalog) settle() {
	c.mu.Lock()
	var gone []string
	for key := range c.expected {
		if c.services[key] == nil {
			gone = append(gone, key)
		}
	}
	c.loaded, c.expected = true, nil
	c.mu.Unlock()
	if c.opt.Changed != nil {
		for _, key := range gone {
			c.opt.Changed(key)
		}
	}
}

// IsService tells whether a key names a list.
func (c *Catalog) IsService(key string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.services[key] != nil || c.expected[key]
}

// Services lists the keys of all services, sorted.
func (c *Catalog) Services() []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	keys := make([]string, 0, len(c.services))
	for k := range c.services {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Cached returns a tree without waiting. One whose top reference failed is not
// returned: it is worth another try.
func (c *Catalog) Cached(key string) (*list.Tree, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	t := c.trees[key]
	return t, t != nil && t.Err == nil
}

// Tree expands a service, or returns list.ErrNotService. It may wait for
// documents. A tree whose top reference failed is returned with the error in
// its Err; it is kept only to know which documents may mend it.
func (c *Catalog) Tree(ctx context.Context, key string) (*list.Tree, error) {
	e := &list.Expander{Docs: c.docs, Normalize: c.opt.Normalize, Roots: c.opt.Roots,
		MaxDepth: c.opt.MaxDepth, MaxMembers: c.opt.MaxMembers, Permit: permit,
		Services: func(_ context.Context, key string) (*list.Service, error) {
			c.mu.RLock()
			defer c.mu.RUnlock()
			return c.services[key], nil
		}}
	for {
		if t, ok := c.Cached(key); ok {
			return t, nil
		}
		c.mu.RLock()
		epoch, unread := c.epoch, c.expected[key] && c.services[key] == nil
		c.mu.RUnlock()
		if unread {
			return nil, errUnread
		}
		t, err := e.Expand(ctx, key)
		if err != nil && (t == nil || !errors.Is(err, list.ErrReference)) {
			return nil, err
		}
		if c.keep(t, epoch) {
			return t, nil
		} // else documents changed while they were read
	}
}

// keep stores a tree unless it is of an older epoch.
func (c *Catalog) keep(t *list.Tree, epoch uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch != epoch {
		return false
	}
	c.trees[t.Key] = t
	return true
}

// permit lets a list defined in a user's document refer to that user's
// documents and to global ones only: an XCAP user could not read others either
// (RFC 4825 section 5.7), and the server must not read them for him.
func permit(from, to string) bool {
	owner := func(sel string) string {
		_, rest, ok := strings.Cut(sel, "/users/")
		if !ok {
			return ""
		}
		xui, _, _ := strings.Cut(rest, "/")
		return xui
	}
	f, t := owner(from), owner(to)
	return f == "" || t == "" || f == t
}

// Changed takes the news that documents changed: services are read again, the
// trees that depend on them are dropped, and the owner of the lists is told.
// The error names documents that could not be read; they keep what they said.
func (c *Catalog) Changed(ctx context.Context, selectors []string) error {
	c.reload.Lock()
	defer c.reload.Unlock()
	touched := make(map[string]bool) // services that appeared, changed or vanished
	var errs []error
	for _, sel := range selectors {
		if strings.HasPrefix(sel, servicesAUID+"/") {
			errs = append(errs, c.reread(ctx, sel, touched))
		}
	}
	c.mu.Lock()
	c.epoch++
	var stale []string
	for key, t := range c.trees {
		if touched[key] || slices.ContainsFunc(t.Documents, func(d string) bool { return slices.Contains(selectors, d) }) ||
			len(touched) > 0 && mentions(t, touched) {
			delete(c.trees, key)
			stale = append(stale, key)
		}
	}
	c.mu.Unlock()
	for key := range touched {
		if !slices.Contains(stale, key) {
			stale = append(stale, key)
		}
	}
	if c.opt.Changed != nil {
		for _, key := range stale {
			c.opt.Changed(key)
		}
	}
	return errors.Join(errs...)
}

// mentions tells whether a member of a tree is one of the keys.
func mentions(t *list.Tree, keys map[string]bool) bool {
	for i := range t.Nodes {
		if keys[t.Nodes[i].Key] || t.Nodes[i].List != nil && mentions(t.Nodes[i].List, keys) {
			return true
		}
	}
	return false
}

// reread replaces the services of one document. A document that cannot be
// read, or not understood, keeps what it said before.
func (c *Catalog) reread(ctx context.Context, sel string, touched map[string]bool) error {
	body, etag, err := c.docs.Document(ctx, sel)
	var services []list.Service
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("%s: %w", sel, err)
	default:
		var problems []list.Problem
		services, problems, err = list.ParseServices(sel, etag, body, c.opt.Normalize)
		if err != nil {
			c.limit.Log(time.Now(), c.opt.Log, slog.LevelWarn, "list services not understood", "document", sel, "err", err)
			return nil
		}
		for _, p := range problems {
			c.limit.Log(time.Now(), c.opt.Log, slog.LevelWarn, "list service left out", "document", sel, "uri", p.URI, "kind", p.Kind, "detail", p.Detail)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.byDoc[sel] {
		touched[s.Key] = true
		if cur := c.services[s.Key]; cur != nil && cur.Document == sel {
			delete(c.services, s.Key)
		}
	}
	gone := c.byDoc[sel]
	delete(c.byDoc, sel)
	if len(services) > 0 {
		c.byDoc[sel] = services
	}
	for i := range services {
		s := &services[i]
		touched[s.Key] = true
		if cur := c.services[s.Key]; cur != nil { // LS-04: the first one stays
			c.limit.Log(time.Now(), c.opt.Log, slog.LevelWarn, "list service exists already", "document", sel, "uri", s.URI, "other", cur.Document)
			continue
		}
		c.services[s.Key] = s
	}
	for i := range gone {
		if key := gone[i].Key; c.services[key] == nil {
			c.inherit(key)
		}
	}
	return nil
}

// inherit gives a key whose service went to another document that defines it.
func (c *Catalog) inherit(key string) {
	for _, sel := range slices.Sorted(maps.Keys(c.byDoc)) {
		services := c.byDoc[sel]
		if i := slices.IndexFunc(services, func(s list.Service) bool { return s.Key == key }); i >= 0 {
			c.services[key] = &services[i]
			return
		}
	}
}
