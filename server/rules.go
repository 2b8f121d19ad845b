package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"rollcall/pa/policy"
	"rollcall/rls/list"
	"rollcall/sip"
	"rollcall/xcapclient"
)

// Where rules stand: XCAP documents of these application usages and files.
var (
	presenceRules = [][2]string{{"pres-rules", "index"}, {"org.openmobilealliance.pres-rules", "pres-rules"}} // PR-02
	messageRules  = [][2]string{{"im-rules", "im-rules.xml"}, {"im-rules", "index"}}                          // IM-01
)

const listsAUID = "resource-lists"

// Bounds of what ruleCache keeps; beyond them all is forgotten and read again.
const (
	maxRuled    = 100_000   // presentities
	maxMembers  = 1_000_000 // members of external lists, of all of them
	maxGlobals  = 1000      // documents of lists for all; with more, any of them concerns everybody
	maxListSize = 10_000    // members of one list; a longer one is known in part only
)

// rulesLimit bounds how long reading the rules of a pair may take.
const rulesLimit = 8 * time.Second

// ruleCache keeps the parsed rules of presentities, with the lists that they
// name; it is pa.RuleSource.
type ruleCache struct {
	docs  *xcapclient.Client
	files [][2]string // AUID and file of each document
	roots []string    // XCAP roots that are ours
	// users are the names under which a presentity may have documents.
	users func(resource string) []string
	// resource is the presentity that a user name means.
	resource func(user string) (string, error)

	mu       sync.Mutex
	fallback []*policy.Ruleset // for presentities without a document
	known    map[string]ruled
	listed   int                 // members of lists in known
	reading  map[*reading]string // by presentity
	globals  map[string]bool     // documents of lists for all that some rules name
}

// ruled is what is known of a presentity.
type ruled struct {
	sets    []*policy.Ruleset
	members int
	lists   bool // the rules name external lists
}

// reading is a Fetch under way.
type reading struct{ stale bool }

func newRuleCache(docs *xcapclient.Client, files [][2]string, roots []string, normalize func(string) (string, error)) *ruleCache {
	return &ruleCache{
		docs: docs, files: files, roots: roots, resource: normalize, users: func(resource string) []string { return []string{resource} },
		known: make(map[string]ruled), reading: make(map[*reading]string), globals: make(map[string]bool),
	}
}

// newMessageRules keeps im-rules. SER has them by the name of a user without
// a domain (IM-01); here that means a user of the first domain.
func newMessageRules(docs *xcapclient.Client, roots []string, domain string, normalize func(string) (string, error)) *ruleCache {
	c := newRuleCache(docs, messageRules, roots, normalize)
	c.users = func(resource string) []string {
		if u, err := sip.ParseURI(resource); err == nil && u.User != "" && u.Scheme == "sip" && hostKey(u.Host) == hostKey(domain) {
			return []string{resource, u.User}
		}
		return []string{resource}
	}
	c.resource = func(user string) (string, error) {
		if _, err := sip.ParseURI(user); err != nil {
			user = sip.URI{Scheme: "sip", User: user, Host: domain}.String()
		}
		return normalize(user)
	}
	return c
}

// Cached implements pa.RuleSource.
func (c *ruleCache) Cached(resource string) ([]*policy.Ruleset, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.known[resource]
	return r.sets, ok
}

// Fetch implements pa.RuleSource. A document that is not understood is one that
// cannot be read: what it would forbid is not known (PR-18). Neither is what a
// list would say that cannot be read at the moment.
func (c *ruleCache) Fetch(ctx context.Context, resource string) ([]*policy.Ruleset, error) {
	for {
		r := &reading{}
		c.mu.Lock()
		c.reading[r] = resource
		fallback := c.fallback
		c.mu.Unlock()
		out, globals, err := c.read(ctx, resource, fallback)
		if c.keep(r, resource, out, globals, err) {
			return out.sets, err
		} // else something changed while it was read
	}
}

// keep ends a reading; false when it must be done again.
func (c *ruleCache) keep(r *reading, resource string, out ruled, globals []string, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.reading, r)
	switch {
	case err != nil:
		return true
	case r.stale:
		return false
	case len(c.known) >= maxRuled || c.listed+out.members > maxMembers:
		clear(c.known)
		c.listed = 0
	}
	for _, g := range globals {
		if len(c.globals) < maxGlobals {
			c.globals[g] = true
		}
	}
	c.listed += out.members - c.known[resource].members
	c.known[resource] = out
	return true
}

// read reads the documents of a presentity and the lists that they name.
func (c *ruleCache) read(ctx context.Context, resource string, fallback []*policy.Ruleset) (out ruled, globals []string, err error) {
	for _, user := range c.users(resource) {
		for _, f := range c.files {
			doc, err := c.docs.Document(ctx, xcapclient.Selector(f[0], user, f[1]))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return out, nil, err
			}
			set, err := policy.Parse(doc.Body)
			if err != nil {
				return out, nil, fmt.Errorf("%s: %w", doc.Selector, err)
			}
			set.Source = doc.Selector
			out.sets = append(out.sets, set)
		}
	}
	own := len(out.sets) > 0
	if !own {
		out.sets = append(out.sets, fallback...)
	}
	for i, set := range out.sets {
		from := set.Source
		if !own {
			from = ""
		}
		anchors := set.ExternalLists()
		if len(anchors) == 0 {
			continue
		}
		out.lists = true
		known := make(map[string]policy.List, len(anchors))
		for _, a := range anchors {
			l, docs, err := c.list(ctx, from, a)
			if err != nil {
				return out, nil, err
			}
			known[a] = l
			out.members += len(l.Members)
			for _, d := range docs {
				if strings.HasPrefix(d, listsAUID+"/global/") {
					globals = append(globals, d)
				}
			}
		}
		out.sets[i] = set.WithLists(known)
	}
	return out, globals, nil
}

// list resolves an external list that the rules in document from name ("" for the
// default rules), and tells which documents it depends on. A list under a foreign root, of another user,
// or one that is not to be understood stays unknown; one that is not there has
// no members. The error is that of a document which cannot be read now.
func (c *ruleCache) list(ctx context.Context, from, anchor string) (l policy.List, docs []string, err error) {
	src := &listSource{docs: c.docs}
	x := &list.Expander{Docs: src, Normalize: c.resource, Roots: c.roots, Permit: c.permit, MaxMembers: maxListSize}
	tree, err := x.ExpandService(ctx, &list.Service{URI: anchor, Key: anchor, Ref: anchor, Document: from})
	switch {
	case src.err != nil:
		return l, nil, src.err
	case err != nil && !errors.Is(err, list.ErrReference):
		return l, nil, err
	}
	l.Members = make(map[string]struct{}, len(tree.Nodes))
	for i := range tree.Nodes {
		l.Members[tree.Nodes[i].Key] = struct{}{}
	}
	for _, p := range tree.Problems {
		switch p.Kind {
		case list.KindBadURI: // not to be subscribed to, but a watcher may be a telephone number
			if u, err := sip.ParseURI(p.URI); err == nil {
				l.Members[u.Key()] = struct{}{}
			}
		case list.KindDuplicate, list.KindLoop:
		default:
			if p.Detail != list.NoDocument && p.Detail != list.ErrNoMatch.Error() {
				l.Missing = p.Detail
			}
		}
	}
	return l, tree.Documents, nil
}

// permit lets rules name lists of their owner and those for all. The default
// rules have no owner.
func (c *ruleCache) permit(from, to string) bool {
	owner, theirs := documentOwner(to)
	if !theirs {
		return true
	}
	name, ok := documentOwner(from)
	return ok && name == owner
}

// documentOwner is the user whose document a selector names.
func documentOwner(selector string) (user string, ok bool) {
	_, rest, ok := strings.Cut(selector, "/users/")
	user, _, _ = strings.Cut(rest, "/")
	return user, ok
}

// listSource remembers a document that could not be read, which is not the same
// as one that is not there.
type listSource struct {
	docs *xcapclient.Client
	err  error
}

func (s *listSource) Document(ctx context.Context, selector string) ([]byte, string, error) {
	d, err := s.docs.Document(ctx, selector)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && s.err == nil {
		s.err = err
	}
	return d.Body, d.ETag, err
}

// changed forgets what depends on documents that changed. It names the
// presentities to decide anew for, or says that these are all.
func (c *ruleCache) changed(selectors []string) (resources []string, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sel := range selectors {
		auid, _, _ := strings.Cut(sel, "/")
		rules, lists := c.has(auid), auid == listsAUID
		user, theirs := documentOwner(sel)
		switch {
		case !rules && !lists:
		case theirs:
			resource, err := c.resource(user)
			if err != nil {
				continue
			}
			if r, ok := c.known[resource]; lists && ok && !r.lists {
				continue
			}
			for r, of := range c.reading {
				r.stale = r.stale || of == resource
			}
			c.listed -= c.known[resource].members
			delete(c.known, resource)
			resources = append(resources, resource)
		case lists:
			for r := range c.reading {
				r.stale = true
			}
			all = all || c.globals[sel] || len(c.globals) >= maxGlobals
		}
	}
	if all {
		clear(c.known)
		c.listed = 0
	}
	return resources, all
}

func (c *ruleCache) has(auid string) bool {
	for _, f := range c.files {
		if f[0] == auid {
			return true
		}
	}
	return false
}

// setDefault gives presentities without a document other rules.
func (c *ruleCache) setDefault(sets []*policy.Ruleset) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fallback = sets
	for r := range c.reading {
		r.stale = true
	}
	clear(c.known)
	c.listed = 0
}

// readDefaultRules reads the file of rules for those who have none; "" is none.
func readDefaultRules(file string) ([]*policy.Ruleset, error) {
	if file == "" {
		return nil, nil
	}
	body, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	set, err := policy.Parse(body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	set.Source = "default rules " + file
	return []*policy.Ruleset{set}, nil
}
