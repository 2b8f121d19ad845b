package pa

import (
	"bytes"
	"strings"
	"time"

	"rollcall/dialog"
	"rollcall/pa/pidf"
	"rollcall/pa/policy"
	"rollcall/pa/winfo"
)

// Package is an event package as the agent serves it: data, and the code that
// knows its documents.
//
// Who may watch is decided as Options.Bases and policy.BasisOf say.
// Transformations take parts out of presence documents only; other packages show
// the whole or nothing.
type Package struct {
	dialog.Package
	code composer
}

// composer is the code of a package. It is pure: bodies in, bodies out.
type composer interface {
	// read checks a published body, which it may keep. held is what the
	// publication held until now, nil for a new one. Errors with a Code are
	// answered by it.
	read(mediaType string, body []byte, limit int, held content) (content, error)

	// observe is called after each change of what is published, oldest change
	// first, also when nobody watches. kept is what it returned before; linger is
	// how long pacing may hold a watcher up.
	observe(kept any, pubs []*publication, now time.Time, linger time.Duration) any

	// compose makes the document of all that is published. before is the one it
	// made last, nil when there is none; differs tells whether watchers should
	// hear of the new one. No document is possible.
	compose(entity string, kept any, pubs []*publication, before *dialog.Document) (doc *dialog.Document, differs bool)
}

// transformer is a composer whose documents rules can take parts out of.
type transformer interface {
	transform(entity string, pubs []*publication, by policy.Transform) (*dialog.Document, error)
}

// content is what one publication holds. It is immutable.
type content interface {
	Bytes() []byte // as stored; equal ones are equal state
	Basic() string // open or closed, where there is such a thing
	Note() string  // the state for a person to read
}

// contents are the documents of publications.
func contents[T content](pubs []*publication) []T {
	all := make([]T, len(pubs))
	for i, pub := range pubs {
		all[i] = pub.doc.(T)
	}
	return all
}

// winfoSuffix makes the name of a package that of its watcher information.
const winfoSuffix = ".winfo"

// Events gives the packages as the runtime registers them, each followed by its
// watcher information (RFC 3857).
func Events(packages ...*Package) []*dialog.Package {
	var out []*dialog.Package
	for _, p := range packages {
		out = append(out, &p.Package)
		if !strings.Contains(p.Name, ";") { // which has no place for a template
			out = append(out, &dialog.Package{Name: p.Name + winfoSuffix, Types: []string{winfo.MediaType}, DefaultExpires: time.Hour, MinInterval: time.Second})
		}
	}
	return out
}

// find is the number of the package of that name, or of the one whose watcher
// information it is.
func (a *Agent) find(event string) (n uint8, winfo, ok bool) {
	for i, p := range a.opt.Packages {
		if p.Name == event {
			return uint8(i), false, true
		}
	}
	if parent, cut := strings.CutSuffix(event, winfoSuffix); cut {
		for i, p := range a.opt.Packages {
			if p.Name == parent {
				return uint8(i), true, true
			}
		}
	}
	return 0, false, false
}

// events names the packages that can be published.
func (a *Agent) events() string {
	names := make([]string, len(a.opt.Packages))
	for i, p := range a.opt.Packages {
		names[i] = p.Name
	}
	return dialog.AllowEvents(names)
}

// Check tells why a stored publication could not be restored.
func Check(packages []*Package, row *PublicationRow) error {
	_, err := New(Options{Packages: packages}).restored(row)
	return err
}

// pkg is the package of a presentity.
func (s *Shard) pkg(p *presentity) *Package { return s.a.opt.Packages[p.pkg] }

// transformer is nil when the rules of a presentity's package only decide who
// sees it.
func (s *Shard) transformer(p *presentity) transformer {
	tr, _ := s.pkg(p).code.(transformer)
	return tr
}

// observe tells a package's code of a change.
func (s *Shard) observe(t *dialog.Turn, p *presentity) {
	pkg := s.pkg(p)
	p.kept = pkg.code.observe(p.kept, p.pubs, t.Now, pkg.MinInterval)
}

// empty is the document that says nothing of a presentity, nil when its package
// has none.
func (s *Shard) empty(p *presentity) *dialog.Document {
	if f := s.pkg(p).Empty; f != nil {
		return f(p.key)
	}
	return nil
}

// sphere is what presence remembers of a presentity.
type sphere string

func (p *presentity) sphere() string {
	v, _ := p.kept.(sphere)
	return string(v)
}

// sphereOf is the sphere of a presentity's resource (RFC 5025 section 3.1.2),
// which its presence says for all packages.
func (s *Shard) sphereOf(p *presentity) string {
	if int(p.pkg) == s.a.sphere {
		return p.sphere()
	}
	return s.Sphere(p.key)
}

const presenceName = "presence"

// Packages gives those served by themselves.
func Packages() []*Package { return []*Package{Presence(), Dialog(), MessageSummary()} }

// Presence is the event package of RFC 3856.
func Presence() *Package {
	return &Package{dialog.Package{
		Name: presenceName, Types: []string{pidf.MediaType}, DefaultExpires: time.Hour,
		MinInterval: time.Second, Publish: true, Lists: true, Empty: func(entity string) *dialog.Document { return presenceDocument(pidf.Offline(entity)) },
	}, presence{}}
}

type presence struct{}

func presenceDocument(body []byte) *dialog.Document {
	return &dialog.Document{Type: pidf.MediaType, Body: body}
}

func (presence) read(_ string, body []byte, limit int, _ content) (content, error) {
	return pidf.Parse(body, pidf.Limits{Bytes: limit})
}

func (presence) observe(_ any, pubs []*publication, _ time.Time, _ time.Duration) any {
	if v := pidf.Sphere(contents[*pidf.Document](pubs)); v != "" {
		return sphere(v)
	}
	return nil
}

func (presence) compose(entity string, _ any, pubs []*publication, before *dialog.Document) (*dialog.Document, bool) {
	body := exact(pidf.Compose(entity, contents[*pidf.Document](pubs)))
	if before != nil && bytes.Equal(before.Body, body) {
		return before, false
	}
	return presenceDocument(body), true
}

func (presence) transform(entity string, pubs []*publication, by policy.Transform) (*dialog.Document, error) {
	doc, err := by.Apply(pidf.Merge(entity, contents[*pidf.Document](pubs)))
	if err != nil {
		return nil, err
	}
	return presenceDocument(exact(doc.Bytes())), nil
}
