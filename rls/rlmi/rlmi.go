package rlmi

import "strconv"

// Media types of the container and of its root part (RFC 4662 section 5).
const (
	MediaType          = "application/rlmi+xml"
	MultipartMediaType = "multipart/related"
)

// Namespace is the XML namespace of RLMI documents.
const Namespace = "urn:ietf:params:xml:ns:rlmi"

// Values of [Instance.State] (RFC 4662 section 5.5).
const (
	StateActive     = "active"
	StatePending    = "pending"
	StateTerminated = "terminated"
)

// Name is a human-readable name (RFC 4662 section 5.4). Lang is a language tag
// or empty.
type Name struct{ Lang, Text string }

// Instance is one virtual subscription of a resource (RFC 4662 section 5.5).
// ID is unique within the resource. Reason must be set if and only if State is
// terminated; CID, without angle brackets, must be set when State is active.
// [Active], [Pending] and [Terminated] make instances that keep these rules.
type Instance struct{ ID, State, Reason, CID string }

// Active returns an instance whose state is in the part named cid, which must
// not be empty.
func Active(id, cid string) Instance { return Instance{ID: id, State: StateActive, CID: cid} }

// Pending returns an instance that waits for authorization; it has no part.
func Pending(id string) Instance { return Instance{ID: id, State: StatePending} }

// Terminated returns an instance that ended for reason, a token of RFC 6665
// section 4.1.3. As a reason is mandatory, an empty one becomes "noresource".
func Terminated(id, reason string) Instance {
	if reason == "" {
		reason = "noresource"
	}
	return Instance{ID: id, State: StateTerminated, Reason: reason}
}

// Resource is one member of a list (RFC 4662 section 5.3). Without instances
// its state is not known yet (section 4.5).
type Resource struct {
	URI       string
	Names     []Name
	Instances []Instance
}

// List is an RLMI document. Version is 0 in the first NOTIFY of a subscription
// and grows by exactly one with each (RFC 4662 section 5.2). CID is empty, or
// names a part with state of the list as a whole.
type List struct {
	URI       string
	Version   uint32
	FullState bool
	CID       string
	Names     []Name
	Resources []Resource
}

// Part is a part of the multipart other than the root. CID has no angle
// brackets. ContentType is a whole header value and must not be empty.
type Part struct {
	CID         string
	ContentType string
	Body        []byte
}

// RuleError reports a document that breaks a rule of RFC 4662. Rule is the
// rule's handle in the project's checklist, such as "RL-18".
type RuleError struct{ Rule, Detail string }

func (e *RuleError) Error() string { return "rlmi: " + e.Rule + ": " + e.Detail }

func broken(rule, detail string) error { return &RuleError{Rule: rule, Detail: detail} }

// Validate reports the first broken rule of RFC 4662 sections 5.2 to 5.5 as a
// [*RuleError]: RL-12 (list), RL-16 (resources), RL-17 (instances). Whether the
// cids resolve is seen only with the parts at hand: see [Parse].
func (l *List) Validate() error {
	if l.URI == "" {
		return broken("RL-12", "list without uri")
	}
	if err := validNames(l.Names, "RL-12"); err != nil {
		return err
	}
	seen := make(map[string]struct{}, len(l.Resources))
	for i := range l.Resources {
		r := &l.Resources[i]
		if r.URI == "" {
			return broken("RL-16", "resource "+strconv.Itoa(i)+" without uri")
		}
		if _, dup := seen[r.URI]; dup {
			return broken("RL-16", "resource "+strconv.Quote(r.URI)+" listed twice")
		}
		seen[r.URI] = struct{}{}
		if err := validNames(r.Names, "RL-16"); err != nil {
			return err
		}
		if err := r.validInstances(); err != nil {
			return err
		}
	}
	return nil
}

func (r *Resource) validInstances() error {
	var seen map[string]struct{}
	if len(r.Instances) > 1 {
		seen = make(map[string]struct{}, len(r.Instances))
	}
	for i := range r.Instances {
		in := &r.Instances[i]
		what := "instance " + strconv.Quote(in.ID) + " of " + strconv.Quote(r.URI)
		if in.ID == "" {
			return broken("RL-17", what+" has no id")
		}
		if seen != nil {
			if _, dup := seen[in.ID]; dup {
				return broken("RL-17", what+" appears twice")
			}
			seen[in.ID] = struct{}{}
		}
		switch in.State {
		case StateActive:
			if in.CID == "" {
				return broken("RL-17", what+" is active without cid")
			}
		case StatePending:
		case StateTerminated:
			if in.Reason == "" {
				return broken("RL-17", what+" is terminated without reason")
			}
		default:
			return broken("RL-17", what+" has state "+strconv.Quote(in.State))
		}
		if in.Reason != "" && in.State != StateTerminated {
			return broken("RL-17", what+" is "+in.State+" with a reason")
		}
	}
	return nil
}

func validNames(names []Name, rule string) error {
	for _, n := range names {
		if n.Lang != "" && !validLang(n.Lang) {
			return broken(rule, "name with xml:lang "+strconv.Quote(n.Lang))
		}
	}
	return nil
}

// validLang accepts what xs:language does: subtags of one to eight letters,
// digits too after the first.
func validLang(s string) bool {
	n, first := 0, true
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9' && !first:
			n++
			if n > 8 {
				return false
			}
		case c == '-' && n > 0:
			n, first = 0, false
		default:
			return false
		}
	}
	return n > 0
}
