package policy

import (
	"fmt"
	"slices"
)

// List is what an OMA external-list names: watchers.
type List struct {
	Members map[string]struct{} // canonical URIs
	// Missing is why the list is not known, or not to its end; empty when it is.
	// Then nobody counts as another identity: whom it would name is not known.
	Missing string
}

// lists are the entries of one external-list condition.
type lists []external

type external struct {
	anchor string
	List
}

// ExternalLists returns the XCAP URIs of the lists that the rules name, as they
// are written, each once. Until WithLists gives them, nobody is in them.
func (rs *Ruleset) ExternalLists() []string {
	var all []string
	for i := range rs.rules {
		for _, c := range rs.rules[i].conditions {
			for _, l := range c.lists {
				if !slices.Contains(all, l.anchor) {
					all = append(all, l.anchor)
				}
			}
		}
	}
	return all
}

// WithLists returns the same rules with the lists that they name, by anchor.
// The lists must not change afterwards.
func (rs *Ruleset) WithLists(known map[string]List) *Ruleset {
	out := *rs
	out.rules, out.doubt = slices.Clone(rs.rules), false
	for i := range out.rules {
		r := &out.rules[i]
		r.conditions = slices.Clone(r.conditions)
		for j := range r.conditions {
			c := &r.conditions[j]
			c.lists = slices.Clone(c.lists)
			for k := range c.lists {
				if l, ok := known[c.lists[k].anchor]; ok {
					c.lists[k].List = l
				}
				out.doubt = out.doubt || c.lists[k].Missing != ""
			}
		}
	}
	return &out
}

// has tells whether one of a watcher's identities is in one of the lists.
func (ls lists) has(watchers []watcher) bool {
	for i := range ls {
		for _, w := range watchers {
			if _, ok := ls[i].Members[w.key]; ok {
				return true
			}
		}
	}
	return false
}

// String is for a person.
func (ls lists) String() string {
	if len(ls) == 0 {
		return "nobody"
	}
	all := make([]string, len(ls))
	for i, l := range ls {
		all[i] = fmt.Sprintf("one of %d in %s", len(l.Members), l.anchor)
		if l.Missing != "" {
			all[i] += " (" + l.Missing + ")"
		}
	}
	return some(all, ", or ")
}
