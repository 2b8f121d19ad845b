package policy

import (
	"maps"
	"net/url"
	"slices"
	"strings"

	"rollcall/pa/pidf/xmltree"
)

// identity is one <identity> condition. It is true when any member is.
type identity struct {
	empty bool                // no members: true for the unauthenticated only (RFC 5025, 3.1.1.2)
	ones  map[string]struct{} // canonical URIs
	many  []many
}

// many is <many>: any authenticated watcher, of one domain if it has one, but
// for the exceptions.
type many struct {
	domain  string // in ASCII form; "" for any
	ids     map[string]struct{}
	domains map[string]struct{}
}

// parseIdentity reads <identity>, also in the draft syntax (<id>, <domain>,
// <any-identity> with <except> beside them). Members it does not know are
// false, so they are left out.
func parseIdentity(e *xmltree.Element) identity {
	id := identity{empty: true, ones: map[string]struct{}{}}
	var beside *many // exceptions in draft syntax
	read := false
	for c := range e.Elements() {
		id.empty = false
		if c.Space != SpaceCommon {
			continue
		}
		switch c.Local {
		case "one":
			if uri, ok := attr(c, "id", "entity"); ok && isLeaf(c) {
				id.ones[identityKey(uri)] = struct{}{}
			}
		case "many":
			if m := exceptions(c, false); m != nil {
				domain, ok := c.Attr("domain")
				id.addMany(*m, domain, ok)
			}
		case "id":
			id.ones[identityKey(c.Content())] = struct{}{}
		case "domain":
			if !read {
				beside, read = exceptions(e, true), true
			}
			if beside != nil {
				id.addMany(*beside, c.Content(), true)
			}
		case "any-identity":
			if m := exceptions(c, false); m != nil {
				id.addMany(*m, "", false)
			}
		}
	}
	return id
}

// addMany adds a <many> with its exceptions.
func (id *identity) addMany(m many, domain string, hasDomain bool) {
	if hasDomain {
		var ok bool
		if m.domain, ok = asciiDomain(domain); !ok {
			return
		}
	}
	id.many = append(id.many, m)
}

// exceptions reads the exceptions among the children of e; nil when nobody can
// say what they are. Children that are not understood might be exceptions, too,
// unless e is an <identity> in draft syntax, where they are members of their own.
func exceptions(e *xmltree.Element, draft bool) *many {
	m := &many{ids: map[string]struct{}{}, domains: map[string]struct{}{}}
	for c := range e.Elements() {
		switch {
		case c.Is(SpaceCommon, "except"):
			if !m.except(c) {
				return nil
			}
		case c.Is(SpaceCommon, "except-domain"):
			m.exceptDomain(c.Content())
		case !draft:
			return nil
		}
	}
	return m
}

// except adds an <except>; false when nobody can say whom it means.
func (m *many) except(c *xmltree.Element) bool {
	uri, isID := attr(c, "id", "entity")
	domain, isDomain := c.Attr("domain")
	if !isID && !isDomain {
		if uri = c.Content(); uri == "" {
			return false
		}
		isID = true
	}
	if isID {
		m.ids[identityKey(uri)] = struct{}{}
	}
	if isDomain {
		m.exceptDomain(domain)
	}
	return true
}

func (m *many) exceptDomain(domain string) {
	if d, ok := asciiDomain(domain); ok {
		m.domains[d] = struct{}{}
	}
}

func attr(e *xmltree.Element, names ...string) (string, bool) {
	for _, n := range names {
		if v, ok := e.Attr(n); ok {
			return v, true
		}
	}
	return "", false
}

func isLeaf(e *xmltree.Element) bool {
	for range e.Elements() {
		return false
	}
	return true
}

// String is for a person.
func (id *identity) String() string {
	if id.empty {
		return "nobody who is authenticated"
	}
	all := slices.Sorted(maps.Keys(id.ones))
	for i := range id.many {
		m := &id.many[i]
		who := "anybody"
		if m.domain != "" {
			who += " of " + m.domain
		}
		if but := append(slices.Sorted(maps.Keys(m.ids)), slices.Sorted(maps.Keys(m.domains))...); len(but) > 0 {
			who += " but " + some(but, " and ")
		}
		all = append(all, who)
	}
	if len(all) == 0 {
		return "nobody"
	}
	return some(all, " or ")
}

// matches evaluates the condition for the identities of a watcher, none when
// it is not authenticated.
func (id *identity) matches(watchers []watcher) bool {
	if len(watchers) == 0 {
		return id.empty
	}
	for _, w := range watchers {
		if _, ok := id.ones[w.key]; ok {
			return true
		}
	}
	for i := range id.many {
		if id.many[i].matches(watchers) {
			return true
		}
	}
	return false
}

func (m *many) matches(watchers []watcher) bool {
	inside := m.domain == ""
	for _, w := range watchers {
		if w.domain != "" && w.domain == m.domain {
			inside = true
		}
		if _, ok := m.ids[w.key]; ok {
			return false
		}
		if _, ok := m.domains[w.domain]; ok {
			return false
		}
	}
	return inside
}

// watcher is one authenticated identity.
type watcher struct{ key, domain string }

func newWatcher(key string) watcher {
	w := watcher{key: key}
	scheme, rest, ok := strings.Cut(key, ":")
	if !ok || scheme != "sip" && scheme != "mailto" && scheme != "xmpp" {
		return w
	}
	rest, _, _ = strings.Cut(rest, ";")
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest = rest[at+1:]
	}
	if !strings.HasPrefix(rest, "[") {
		rest, _, _ = strings.Cut(rest, ":")
	}
	w.domain, _ = asciiDomain(rest)
	return w
}

// asciiDomain brings a domain into the form in which domains are compared (RFC
// 4745, 7.1.3): %-escapes undone, each label in lower case and, with other
// letters than ASCII, in Punycode. Normalisation beyond lower case is not done.
func asciiDomain(s string) (string, bool) {
	if plainDomain(s) {
		return s, true
	}
	s, err := url.PathUnescape(strings.TrimSpace(s))
	if err != nil || s == "" {
		return "", false
	}
	s = strings.ToLower(fullStops.Replace(s))
	labels := strings.Split(s, ".")
	for i, l := range labels {
		if isASCII(l) {
			continue
		}
		p, ok := punycode(l)
		if !ok || len(p) > 59 {
			return "", false
		}
		labels[i] = "xn--" + p
	}
	return strings.Join(labels, "."), true
}

// fullStops are the dots of other scripts (RFC 3490, 3.1).
var fullStops = strings.NewReplacer("\u3002", ".", "\uff0e", ".", "\uff61", ".")

// plainDomain tells that a domain is in its canonical form, as most are.
func plainDomain(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' {
			return false
		}
	}
	return s != ""
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// punycode encodes a label (RFC 3492, 6.3). It refuses labels no domain has.
func punycode(label string) (string, bool) {
	const base, tMin, tMax, skew, damp = 36, 1, 26, 38, 700
	in := []rune(label)
	if len(in) > 63 {
		return "", false
	}
	var out []byte
	for _, r := range in {
		if r < 0x80 {
			out = append(out, byte(r))
		}
	}
	basic := len(out)
	if basic > 0 {
		out = append(out, '-')
	}
	n, delta, bias := rune(128), 0, 72
	for h := basic; h < len(in); {
		m := rune(0x7fffffff)
		for _, r := range in {
			if r >= n && r < m {
				m = r
			}
		}
		delta += int(m-n) * (h + 1)
		n = m
		for _, r := range in {
			if r < n {
				delta++
			}
			if r != n {
				continue
			}
			q := delta
			for k := base; ; k += base {
				t := min(max(k-bias, tMin), tMax)
				if q < t {
					break
				}
				out = append(out, punyDigit(t+(q-t)%(base-t)))
				q = (q - t) / (base - t)
			}
			out = append(out, punyDigit(q))
			if h == basic {
				delta /= damp
			} else {
				delta /= 2
			}
			delta += delta / (h + 1)
			k := 0
			for ; delta > (base-tMin)*tMax/2; k += base {
				delta /= base - tMin
			}
			bias = k + (base-tMin+1)*delta/(delta+skew)
			delta = 0
			h++
		}
		delta++
		n++
	}
	return string(out), true
}

func punyDigit(d int) byte {
	if d < 26 {
		return byte('a' + d)
	}
	return byte('0' + d - 26)
}
