package list

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Normalize returns the canonical key of a URI, by which members and services
// are compared, or an error for what is no URI. It is called with sip, sips and
// pres URIs only.
type Normalize func(uri string) (key string, err error)

// Name is a display name (RFC 4826 section 3.1). Lang is a valid language tag
// or empty.
type Name struct{ Lang, Text string }

// Kinds of [Problem].
const (
	KindLoop          = "loop"           // leads back to a list it is part of
	KindDepth         = "depth"          // nested deeper than allowed
	KindDuplicate     = "duplicate"      // there already
	KindLimit         = "limit"          // too many members or too much work
	KindBadURI        = "bad-uri"        // missing, not parseable, or of another scheme than sip, sips, pres
	KindReference     = "reference"      // points at nothing usable, or nowhere we go
	KindNotWellFormed = "not-wellformed" // a document that is not what it should be
)

// Problem is something left out of a list, for an operator to read. Source says
// where, as "document ~~ path"; URI is the member or reference as written.
type Problem struct{ Source, URI, Kind, Detail string }

// Service is a <service> of an rls-services document (RFC 4826 section 4.1).
// It is immutable once filled.
type Service struct {
	URI string // as written, without white space
	Key string // canonical
	// Packages are the event packages served; nil means any, empty none
	// (section 4.5).
	Packages []string
	// Ref is the absolute URI of the list, without white space; Inline is the
	// list itself. One of the two is set, or none when the service is broken.
	Ref    string
	Inline *Element
	// Document is the selector of the document that defines the service, from
	// which its owner can be told; ETag is the version of it.
	Document, ETag string
	// Path is where in the document it is.
	Path string
}

// Accepts reports whether the service is for the event package (LS-07).
func (s *Service) Accepts(pkg string) bool { return accepts(s.Packages, pkg) }

func accepts(packages []string, pkg string) bool {
	for _, p := range packages {
		if strings.EqualFold(p, pkg) {
			return true
		}
	}
	return packages == nil
}

// ParseServices reads the rls-services document named by selector, or a single
// <service> element of one (XC-07). Elements may be in either namespace, the
// rls-services or the resource-lists one (LS-03). A service without a usable
// URI, or with the same key as one before it, is left out with a Problem. The
// error wraps [ErrNotWellFormed].
func ParseServices(selector, etag string, body []byte, normalize Normalize) ([]Service, []Problem, error) {
	root, _, err := parseXML(body, NamespaceServices)
	if err != nil {
		return nil, nil, err
	}
	elements := []*Element{root}
	prefix := ""
	switch {
	case is(root, "rls-services"):
		elements, prefix = root.kids, "rls-services/"
	case !is(root, "service"):
		return nil, nil, fmt.Errorf("%w: root element <%s> is not rls-services", ErrNotWellFormed, root.name)
	}
	var (
		services []Service
		problems problemList
		seen     = make(map[string]bool, len(elements))
		position = 0
	)
	for _, e := range elements {
		if !is(e, "service") {
			continue
		}
		position++
		s := Service{Document: selector, ETag: etag, Path: prefix + "service"}
		if prefix != "" {
			s.Path += "[" + strconv.Itoa(position) + "]"
		}
		uri, _ := e.attr("uri")
		s.URI = compactURI(uri)
		if s.Key, err = key(s.URI, normalize); err != nil {
			problems.add(Problem{s.source(), s.URI, KindBadURI, err.Error()})
			continue
		}
		if seen[s.Key] {
			problems.add(Problem{s.source(), s.URI, KindDuplicate, "service defined twice"})
			continue
		}
		seen[s.Key] = true
		s.fill(e)
		if s.Ref == "" && s.Inline == nil {
			problems.add(Problem{s.source(), s.URI, KindReference, "service with neither resource-list nor list"})
		}
		services = append(services, s)
	}
	return services, problems.list, nil
}

func (s *Service) source() string { return s.Document + " ~~ " + s.Path }

// fill reads the children of a <service>. The schema has one of resource-list
// and list; the first one counts.
func (s *Service) fill(e *Element) {
	for _, c := range e.kids {
		switch {
		case is(c, "resource-list") && s.Inline == nil && s.Ref == "":
			s.Ref = compactURI(c.text)
		case is(c, "list") && s.Inline == nil && s.Ref == "":
			s.Inline = c
		case is(c, "packages"):
			if s.Packages == nil {
				s.Packages = []string{}
			}
			for _, p := range c.kids {
				t := strings.TrimSpace(p.text)
				if is(p, "package") && t != "" && len(s.Packages) < maxPackages && !slices.Contains(s.Packages, t) {
					s.Packages = append(s.Packages, t)
				}
			}
		}
	}
}

// is matches an element of either format by local name (LS-03: producers put
// <list>, its children and <packages> in either namespace).
func is(e *Element, name string) bool {
	return e.name == name && (e.ns == NamespaceServices || e.ns == NamespaceLists)
}

const (
	maxURI      = 2048 // bytes
	maxPackages = 64   // of one service
)

// key checks that a URI can be subscribed to and returns its canonical form.
func key(uri string, normalize Normalize) (string, error) {
	if uri == "" {
		return "", errors.New("no uri")
	}
	if len(uri) > maxURI {
		return "", fmt.Errorf("uri of %d bytes", len(uri))
	}
	scheme, rest, ok := strings.Cut(uri, ":")
	if !ok || rest == "" {
		return "", errors.New("not a URI")
	}
	switch strings.ToLower(scheme) {
	case "sip", "sips", "pres":
	default:
		return "", fmt.Errorf("scheme %q cannot be subscribed to", scheme)
	}
	if normalize == nil {
		return uri, nil
	}
	return normalize(uri)
}

// MaxProblems is how many Problems one parse or expansion reports; the last one
// says that there are more.
const MaxProblems = 1000

type problemList struct {
	list  []Problem
	total int
}

func (p *problemList) add(pr Problem) {
	if p.full() {
		return
	}
	p.total++
	if p.total == MaxProblems {
		pr = Problem{Source: pr.Source, Kind: KindLimit, Detail: "further problems are not listed"}
	}
	p.list = append(p.list, pr)
}

func (p *problemList) full() bool { return p.total >= MaxProblems }
