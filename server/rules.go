package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"rollcall/pa/policy"
	"rollcall/xcapclient"
)

// ruleSelectors are the documents that hold a presentity's rules, after the
// AUID and before the file (PR-02).
var ruleSelectors = [][2]string{{"pres-rules", "index"}, {"org.openmobilealliance.pres-rules", "pres-rules"}}

// maxRules bounds the presentities whose rules are kept parsed; beyond it all
// are forgotten and read again.
const maxRules = 100_000

// ruleCache keeps the parsed rules of presentities; it is pa.RuleSource.
type ruleCache struct {
	docs *xcapclient.Client

	mu    sync.Mutex
	known map[string][]*policy.Ruleset
	epoch uint64
}

func newRuleCache(docs *xcapclient.Client) *ruleCache {
	return &ruleCache{docs: docs, known: make(map[string][]*policy.Ruleset)}
}

// Cached implements pa.RuleSource.
func (c *ruleCache) Cached(resource string) ([]*policy.Ruleset, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sets, ok := c.known[resource]
	return sets, ok
}

// Fetch implements pa.RuleSource. A document that is not understood is one that
// cannot be read: what it would forbid is not known (PR-18).
func (c *ruleCache) Fetch(ctx context.Context, resource string) ([]*policy.Ruleset, error) {
	c.mu.Lock()
	epoch := c.epoch
	c.mu.Unlock()
	var sets []*policy.Ruleset
	for _, s := range ruleSelectors {
		doc, err := c.docs.Document(ctx, xcapclient.Selector(s[0], resource, s[1]))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		set, err := policy.Parse(doc.Body)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doc.Selector, err)
		}
		sets = append(sets, set)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch == epoch {
		if len(c.known) >= maxRules {
			clear(c.known)
		}
		c.known[resource] = sets
	}
	return sets, nil
}

// changed forgets the rules of documents that changed and names their owners.
func (c *ruleCache) changed(selectors []string) []string {
	var owners []string
	for _, sel := range selectors {
		auid, rest, _ := strings.Cut(sel, "/users/")
		if auid != ruleSelectors[0][0] && auid != ruleSelectors[1][0] {
			continue
		}
		if xui, _, ok := strings.Cut(rest, "/"); ok {
			owners = append(owners, xui)
		}
	}
	if owners != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.epoch++
		for _, o := range owners {
			delete(c.known, o)
		}
	}
	return owners
}
