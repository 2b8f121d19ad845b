package policy

import "strings"

// Basis is what decides who may subscribe to an event package of a presentity.
type Basis uint8

// The bases, by the names they have in a configuration.
const (
	Rules   Basis = iota // rules: the presentity's rules, and where none matches the local policy
	Owner                // owner: the presentity itself, nobody else
	Anybody              // open: everybody; no rules are read
)

var bases = [...]string{Rules: "rules", Owner: "owner", Anybody: "open"}

// String returns the name.
func (b Basis) String() string { return bases[b] }

// ParseBasis reads a name.
func ParseBasis(s string) (Basis, bool) {
	for b, name := range bases {
		if s == name {
			return Basis(b), true
		}
	}
	return Rules, false
}

// BasisOf is what decides about a package when nobody has said otherwise.
// Watcher information is for whom it is about (RFC 3857, 4.6), that of watcher
// information too, to any depth; so are registrations (RFC 3680, 4.7), mailboxes
// and the features of a phone. Everything else tells what a presentity is doing,
// as presence does, so presence rules say who may know; their transformations
// apply to presence alone.
func BasisOf(pkg string) Basis {
	switch {
	case strings.HasSuffix(pkg, ".winfo"), pkg == "message-summary", pkg == "reg", pkg == "as-feature-event":
		return Owner
	}
	return Rules
}
