package pa

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"rollcall/dialog"
)

// Opaque is an event package whose bodies nobody here understands: the newest
// publication is the state, octet for octet. Without one there is no document.
// The name may have a parameter, as in "dialog;sla".
func Opaque(name string, types ...string) *Package {
	return &Package{dialog.Package{Name: name, Types: types, DefaultExpires: time.Hour, MinInterval: time.Second, Publish: true, Lists: true}, opaque{}}
}

// maxPackages bounds the packages of a server.
const maxPackages = 64

// Declare adds opaque packages, as name and types with spaces between, to those
// served by themselves. The error names what cannot be a package.
func Declare(declared map[string]string) ([]*Package, error) {
	all := Packages()
	for _, name := range sortedKeys(declared) {
		event, param, told := strings.Cut(name, ";")
		types := strings.Fields(strings.ToLower(declared[name]))
		switch {
		case !token(event) || told && (!token(param) || param == "id"):
			return nil, fmt.Errorf("%q is not an event type, or one with a parameter", name)
		case slices.ContainsFunc(all, func(p *Package) bool { return p.Name == name }):
			return nil, fmt.Errorf("%q is served already", name)
		case strings.HasSuffix(event, winfoSuffix) || name == "list":
			return nil, fmt.Errorf("%q has a meaning of its own", name)
		case len(types) == 0 || slices.ContainsFunc(types, func(t string) bool { return !mediaType(t) }):
			return nil, fmt.Errorf("%q: %q is not a media type, or some with spaces between", name, declared[name])
		case len(all) == maxPackages:
			return nil, fmt.Errorf("%q: more than %d packages", name, maxPackages)
		}
		all = append(all, Opaque(name, types...))
	}
	return all, nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func mediaType(s string) bool {
	major, minor, ok := strings.Cut(s, "/")
	return ok && token(major) && token(minor) && major != "*" && minor != "*"
}

// token is that of RFC 3261, section 25.1.
func token(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && strings.IndexByte("-.!%*_+`'~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// parameters is the Content-Type of a body with its parameters, which an opaque
// one may need, if mediaType is that of the whole body.
func parameters(contentType, mediaType string) string {
	bare, _, _ := strings.Cut(contentType, ";")
	if strings.EqualFold(strings.TrimSpace(bare), mediaType) && !strings.ContainsAny(contentType, "\r\n\x00") {
		return strings.TrimSpace(contentType)
	}
	return mediaType
}

// opaque shows the newest publication.
type opaque struct{}

// octets is a body that is not understood.
type octets struct {
	mediaType string
	body      []byte
}

func (o *octets) Bytes() []byte { return o.body }
func (o *octets) Basic() string { return "" }
func (o *octets) Note() string  { return o.mediaType }

func (opaque) read(mediaType string, body []byte, _ int, _ content) (content, error) {
	return &octets{mediaType, body}, nil
}

func (opaque) observe(any, []*publication, time.Time, time.Duration) any { return nil }

func (opaque) compose(_ string, _ any, pubs []*publication, before *dialog.Document) (*dialog.Document, bool) {
	if len(pubs) == 0 {
		return nil, before != nil
	}
	o := pubs[len(pubs)-1].doc.(*octets)
	doc := &dialog.Document{Type: o.mediaType, Body: o.body}
	if before.Equal(doc) {
		return before, false
	}
	return doc, true
}
