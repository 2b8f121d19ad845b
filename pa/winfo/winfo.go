package winfo

import (
	"slices"
	"strconv"
	"time"

	"rollcall/pa/pidf/xmltree"
)

// Media type and namespace of watcher information.
const (
	MediaType = "application/watcherinfo+xml"
	Space     = "urn:ietf:params:xml:ns:watcherinfo"
)

// Values of Watcher.Status (RFC 3857, 4.7.1).
const (
	Pending    = "pending"
	Active     = "active"
	Waiting    = "waiting"
	Terminated = "terminated"
)

// Values of Watcher.Event: what moved the subscription into its status.
const (
	Subscribe   = "subscribe"
	Approved    = "approved"
	Deactivated = "deactivated"
	Probation   = "probation"
	Rejected    = "rejected"
	Timeout     = "timeout"
	Giveup      = "giveup"
	NoResource  = "noresource"
)

// Watcher is one subscription to the resource. ID, URI, Status and Event are
// mandatory.
type Watcher struct {
	ID          string // unique in the list and the same in all documents about this subscription
	URI         string // authenticated address of record, not a Contact
	Status      string
	Event       string
	DisplayName string
	Expiration  time.Duration // until the subscription expires, in whole seconds on the wire; not written when 0 or less
	Duration    time.Duration // since it was created; likewise
}

// List is the watchers of one resource and event package.
type List struct {
	Resource string
	Package  string
	Watchers []Watcher
}

// Document is a watcher information document.
type Document struct {
	Version uint32
	Full    bool // all watchers, not only those that changed
	Lists   []List
}

// Append appends a document about one resource and event package to dst.
func Append(dst []byte, version uint32, full bool, resource, pkg string, ws []Watcher) []byte {
	dst = slices.Grow(dst, 256+len(resource)+len(ws)*192)
	dst = append(dst, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+`<watcherinfo xmlns="`+Space+`" version="`...)
	dst = strconv.AppendUint(dst, uint64(version), 10)
	dst = append(dst, `" state="`...)
	if full {
		dst = append(dst, "full"...)
	} else {
		dst = append(dst, "partial"...)
	}
	dst = append(dst, `"><watcher-list`...)
	dst = appendAttr(dst, "resource", resource)
	dst = appendAttr(dst, "package", pkg)
	dst = append(dst, '>')
	for i := range ws {
		w := &ws[i]
		dst = append(dst, "<watcher"...)
		dst = appendAttr(dst, "id", w.ID)
		dst = appendAttr(dst, "status", w.Status)
		dst = appendAttr(dst, "event", w.Event)
		if w.DisplayName != "" {
			dst = appendAttr(dst, "display-name", w.DisplayName)
		}
		dst = appendSeconds(dst, "expiration", w.Expiration)
		dst = appendSeconds(dst, "duration-subscribed", w.Duration)
		dst = append(dst, '>')
		dst = xmltree.AppendText(dst, w.URI)
		dst = append(dst, "</watcher>"...)
	}
	return append(dst, "</watcher-list></watcherinfo>\n"...)
}

func appendAttr(dst []byte, name, value string) []byte {
	dst = append(dst, ' ')
	dst = append(dst, name...)
	dst = append(dst, '=', '"')
	dst = xmltree.AppendAttr(dst, value)
	return append(dst, '"')
}

func appendSeconds(dst []byte, name string, d time.Duration) []byte {
	if d <= 0 {
		return dst
	}
	dst = append(dst, ' ')
	dst = append(dst, name...)
	dst = append(dst, '=', '"')
	dst = strconv.AppendInt(dst, int64(d/time.Second), 10)
	return append(dst, '"')
}

// limits of a document: a full one lists every watcher of a resource.
var limits = xmltree.Limits{Bytes: 16 << 20, Depth: 16, Elements: 1 << 17}

// Error is why a document was refused.
type Error = xmltree.Error

// Parse reads a document. Elements and attributes of extensions are ignored,
// and watchers with the same id are let pass, as the examples of RFC 4660 have
// them.
// Durations beyond 200 years are cut to that. Errors are *Error.
func Parse(body []byte) (*Document, error) {
	root, err := xmltree.Parse(body, limits)
	if err != nil {
		return nil, err
	}
	if !root.Is(Space, "watcherinfo") {
		return nil, &Error{Kind: xmltree.KindRoot, Detail: "the root element is not <watcherinfo> of " + Space}
	}
	var d Document
	version, _ := root.Attr("version")
	v, err := strconv.ParseUint(version, 10, 32)
	if err != nil {
		return nil, invalid("version is not a number below 2^32")
	}
	d.Version = uint32(v)
	switch state, _ := root.Attr("state"); state {
	case "full":
		d.Full = true
	case "partial":
	default:
		return nil, invalid("state is neither full nor partial")
	}
	for e := range root.Elements() {
		if !e.Is(Space, "watcher-list") {
			continue
		}
		var l List
		var hasResource, hasPackage bool
		l.Resource, hasResource = e.Attr("resource")
		l.Package, hasPackage = e.Attr("package")
		if !hasResource || !hasPackage {
			return nil, invalid("a watcher-list without resource or package")
		}
		for c := range e.Elements() {
			if !c.Is(Space, "watcher") {
				continue
			}
			w, err := parseWatcher(c)
			if err != nil {
				return nil, err
			}
			l.Watchers = append(l.Watchers, w)
		}
		d.Lists = append(d.Lists, l)
	}
	return &d, nil
}

var (
	statuses = []string{Pending, Active, Waiting, Terminated}
	events   = []string{Subscribe, Approved, Deactivated, Probation, Rejected, Timeout, Giveup, NoResource}
)

func parseWatcher(e *xmltree.Element) (Watcher, error) {
	w := Watcher{URI: e.Content()}
	var hasID bool
	w.ID, hasID = e.Attr("id")
	w.Status, _ = e.Attr("status")
	w.Event, _ = e.Attr("event")
	w.DisplayName, _ = e.Attr("display-name")
	switch {
	case !hasID:
		return w, invalid("a watcher without id")
	case !slices.Contains(statuses, w.Status):
		return w, invalid("the status of a watcher is none of RFC 3858")
	case !slices.Contains(events, w.Event):
		return w, invalid("the event of a watcher is none of RFC 3858")
	}
	var err error
	if w.Expiration, err = seconds(e, "expiration"); err != nil {
		return w, err
	}
	w.Duration, err = seconds(e, "duration-subscribed")
	return w, err
}

func seconds(e *xmltree.Element, name string) (time.Duration, error) {
	const most = 200 * 365 * 24 * 3600
	s, ok := e.Attr(name)
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, invalid(name + " is not a number of seconds")
	}
	return time.Duration(min(n, most)) * time.Second, nil
}

func invalid(detail string) error { return &Error{Kind: xmltree.KindInvalid, Detail: detail} }
