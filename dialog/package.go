package dialog

import (
	"slices"
	"strings"
	"time"

	"rollcall/sip"
)

// Package is an event package (RFC 6665 section 5) as data.
type Package struct {
	// Name is the event type, compared byte by byte (EV-02). With a parameter, as
	// in "dialog;sla", it is a package of its own for events that have that.
	Name           string
	Types          []string      // body media types; the first is the default
	DefaultExpires time.Duration // when SUBSCRIBE or PUBLISH has no Expires
	MinInterval    time.Duration // shortest gap between two NOTIFYs of one subscription
	Publish        bool          // PUBLISH is accepted
	Lists          bool          // lists can be subscribed to with it

	// Empty makes the document that stands for "nothing known" in a list, where
	// an active member must have one (RL-17); nil when the package has none.
	Empty func(entity string) *Document

	// Whole makes the state of a resource of the state known before, nil for
	// none, and the body of another notifier's NOTIFY, which it may keep: that
	// may tell changes only. nil: a body is the state.
	Whole func(known *Document, mediaType string, body []byte) (*Document, error)
}

// Accepts tells whether an Accept header field value admits one of the
// package's media types. No Accept at all admits the default (EV-04).
func (p *Package) Accepts(accept string) bool {
	if accept == "" {
		return true
	}
	return slices.ContainsFunc(p.Types, func(t string) bool { return AcceptsType(accept, t) })
}

// AcceptsType tells whether an Accept value, a comma-separated list of media
// ranges, admits a media type. A range with q=0 does not.
func AcceptsType(accept, mediaType string) bool {
	major, minor, _ := strings.Cut(mediaType, "/")
	for item := range strings.SplitSeq(accept, ",") {
		r, params, _ := strings.Cut(item, ";")
		a, b, _ := strings.Cut(r, "/") // with white space around it (CORE-21)
		a, b = strings.TrimSpace(a), strings.TrimSpace(b)
		if (a != "*" || b != "*") && (!strings.EqualFold(a, major) || b != "*" && !strings.EqualFold(b, minor)) {
			continue
		}
		if zeroQ(params) {
			continue
		}
		return true
	}
	return false
}

func zeroQ(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(strings.TrimSpace(k), "q") {
			v = strings.TrimSpace(v)
			return v != "" && strings.Trim(v, "0.") == ""
		}
	}
	return false
}

// Registry is the closed set of packages a server knows. It does not change
// after the runtime has started.
type Registry struct {
	list   []*Package
	names  string // as Allow-Events has them
	params bool   // some packages are told by a parameter
}

// NewRegistry registers packages in the order Allow-Events shows them.
func NewRegistry(packages ...*Package) *Registry {
	r := &Registry{list: packages}
	names := make([]string, len(packages))
	for i, p := range packages {
		names[i] = p.Name
		r.params = r.params || strings.Contains(p.Name, ";")
	}
	r.names = AllowEvents(names)
	return r
}

// AllowEvents is the Allow-Events of packages by name: their event types.
func AllowEvents(names []string) string {
	types := make([]string, 0, len(names))
	for _, n := range names {
		if n, _, _ = strings.Cut(n, ";"); !slices.Contains(types, n) {
			types = append(types, n)
		}
	}
	return strings.Join(types, ", ")
}

// Of is the package of an Event header field, nil when there is none.
func (r *Registry) Of(m *sip.Message) *Package {
	name, _, params := m.Event()
	if r.params && params != nil {
		for _, p := range r.list {
			if event, param, ok := strings.Cut(p.Name, ";"); ok && event == string(name) {
				if _, has := sip.Param(params, param); has {
					return p
				}
			}
		}
	}
	return r.Find(string(name))
}

// Find returns the package of that name, nil when there is none.
func (r *Registry) Find(name string) *Package {
	for _, p := range r.list {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// number is where a package of the registry stands.
func (r *Registry) number(p *Package) uint8 { return uint8(slices.Index(r.list, p)) }

// AllowEvents is the value of Allow-Events: every package we notify (EV-03).
func (r *Registry) AllowEvents() string { return r.names }

// Types lists every media type of the packages, each once.
func (r *Registry) Types() []string {
	var out []string
	for _, p := range r.list {
		for _, t := range p.Types {
			if !slices.Contains(out, t) {
				out = append(out, t)
			}
		}
	}
	return out
}
