package dialoginfo

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"rollcall/pa/pidf/xmltree"
)

// Media type and namespace of dialog information.
const (
	MediaType = "application/dialog-info+xml"
	Space     = "urn:ietf:params:xml:ns:dialog-info"
)

// State is how far a dialog is.
type State uint8

// The states of RFC 4235 section 3.7.1, in the only order they can follow.
const (
	Trying State = iota + 1
	Proceeding
	Early
	Confirmed
	Terminated
)

var stateNames = [...]string{"", "trying", "proceeding", "early", "confirmed", "terminated"}

// String gives the state as it stands in documents.
func (s State) String() string { return stateNames[s] }

// stateOf reads a state, 0 when there is none of that name.
func stateOf(s string) State { return State(max(0, slices.Index(stateNames[:], trim(s)))) }

// Limits bounds what Parse accepts; a zero field means the default (64 KiB,
// 64 levels, 4096 elements).
type Limits = xmltree.Limits

// Error is why a body was refused; its Code is the status of the response.
type Error = xmltree.Error

// Document is what one publisher says. It is immutable.
type Document struct {
	body    []byte
	entity  string
	partial bool
	dialogs []*Dialog
	rest    []byte  // elements of other namespaces
	cuts    [3]span // version, state and entity in body, if it can be shown as it is
	whole   bool
}

// Dialog is a dialog as a document has it.
type Dialog struct {
	ID, CallID string
	State      State
	remoteTag  string
	rest       []byte // the element behind the value of its id
}

// maxID bounds the identifiers of a dialog, which are remembered after its end.
const maxID = 512

// span is an attribute's value in a body with its quotes.
type span struct{ from, to int }

// Parse reads a body, which the document keeps. Errors are *Error.
func Parse(body []byte, limits Limits) (*Document, error) {
	root, err := xmltree.Parse(body, limits)
	if err != nil {
		return nil, err
	}
	if !root.Is(Space, "dialog-info") {
		return nil, &Error{Kind: xmltree.KindRoot, Detail: "the root element is not <dialog-info> of " + Space}
	}
	d := &Document{body: body}
	entity, _ := root.Attr("entity")
	d.entity = trim(entity)
	state, ok := root.Attr("state")
	if !ok {
		state, _ = root.Attr("notify-state") // of an example in section 4.1
	}
	d.partial = trim(state) == "partial"

	var m mender
	for _, a := range root.Attrs {
		m.changed = m.changed || a.Space != xmltree.SpaceXMLNS && a.Space != spaceXSI &&
			(a.Space != "" || a.Local != "version" && a.Local != "state" && a.Local != "entity")
	}
	scope := with(nil, root.Declared()...)
	have := map[string]string{"": Space}
	for _, c := range root.Children {
		switch {
		case c.Local == "":
			m.changed = m.changed || trim(c.Text) != ""
		case c.Is(Space, "dialog"):
			m.changed = m.changed || len(d.rest) > 0
			if !m.mend(c, dialogShape) {
				return nil, &Error{Kind: xmltree.KindInvalid, Detail: "a dialog without an id, or without a state of RFC 4235"}
			}
			settle(c, scope, have)
			x := dialogOf(c)
			if len(x.ID) > maxID || len(x.CallID) > maxID || len(x.remoteTag) > maxID {
				return nil, &Error{Kind: xmltree.KindInvalid, Detail: "an identifier of a dialog is longer than " + strconv.Itoa(maxID) + " bytes"}
			}
			if !d.fork(x) {
				m.changed = true
			}
		case c.Space == "" || c.Space == Space:
			m.changed = true
		default:
			settle(c, scope, have)
			d.rest = c.Append(d.rest)
		}
	}
	// Namespaces are written out where they are needed: a small document must
	// not become a huge one.
	size := len(d.rest)
	for _, x := range d.dialogs {
		size += len(x.rest)
	}
	if limit := limits.Bytes; size > 2*max(limit, xmltree.DefaultBytes) {
		return nil, &Error{Kind: xmltree.KindTooLarge, Detail: "too long with its namespaces written out"}
	}
	if !m.changed {
		d.whole = d.findCuts()
	}
	return d, nil
}

// fork adds a dialog as put does, but one that differs from the one of the same
// id by its remote tag is another branch of the call, as in the example of
// section 6.1, and gets an id of its own.
func (d *Document) fork(x *Dialog) bool {
	if i := slices.IndexFunc(d.dialogs, func(o *Dialog) bool { return o.ID == x.ID }); i >= 0 && d.dialogs[i].remoteTag != x.remoteTag && x.remoteTag != "" {
		x.ID += "-" + x.remoteTag
		d.put(x)
		return false
	}
	return d.put(x)
}

// put adds a dialog, or replaces the one of the same id, which is false.
func (d *Document) put(x *Dialog) bool {
	if i := slices.IndexFunc(d.dialogs, func(o *Dialog) bool { return o.ID == x.ID }); i >= 0 {
		d.dialogs[i] = x
		return false
	}
	d.dialogs = append(d.dialogs, x)
	return true
}

// dialogOf takes a mended element.
func dialogOf(e *xmltree.Element) *Dialog {
	d := &Dialog{}
	d.ID, _ = e.Attr("id")
	d.CallID, _ = e.Attr("call-id")
	d.remoteTag, _ = e.Attr("remote-tag")
	for c := range e.Elements() {
		if c.Is(Space, "state") {
			d.State = stateOf(c.Content())
			break
		}
	}
	e.Attrs = slices.DeleteFunc(e.Attrs, func(a xmltree.Attr) bool { return a.Space == "" && a.Local == "id" })
	d.rest = append([]byte{'"'}, e.Append(nil)[len("<dialog"):]...)
	return d
}

func (d *Dialog) append(dst []byte, id string) []byte {
	dst = append(dst, `<dialog id="`...)
	dst = xmltree.AppendAttr(dst, id)
	return append(dst, d.rest...)
}

// findCuts finds the attributes of the root element that are not the
// publisher's. The body is known to be well-formed and to have no markup
// declarations. It is false when one is missing.
func (d *Document) findCuts() bool {
	b, i := d.body, 0
	for { // what may stand before the root element
		n := bytes.IndexByte(b[i:], '<')
		if n < 0 || i+n+1 >= len(b) {
			return false
		}
		i += n + 1
		end := ""
		switch {
		case b[i] == '?':
			end = "?>"
		case b[i] == '!':
			end = "-->"
		}
		if end == "" {
			break
		}
		n = bytes.Index(b[i:], []byte(end))
		if n < 0 {
			return false
		}
		i += n + len(end)
	}
	const space = " \t\r\n"
	for i < len(b) && strings.IndexByte(space+"/>", b[i]) < 0 {
		i++
	}
	found := 0
	for {
		for i < len(b) && strings.IndexByte(space, b[i]) >= 0 {
			i++
		}
		name := i
		for i < len(b) && strings.IndexByte(space+"=/>", b[i]) < 0 {
			i++
		}
		if name == i { // the tag ends
			return found == len(d.cuts)
		}
		key := string(b[name:i])
		q := bytes.IndexAny(b[i:], `"'`)
		if q < 0 {
			return false
		}
		from := i + q
		n := bytes.IndexByte(b[from+1:], b[from])
		if n < 0 {
			return false
		}
		i = from + n + 2
		if k := slices.Index([]string{"version", "state", "entity"}, key); k >= 0 {
			d.cuts[k] = span{from, i}
			found++
		}
	}
}

// Bytes returns the document as it is to be stored: as it was published if it
// says everything itself. The caller must not change it.
func (d *Document) Bytes() []byte { return d.body }

// Entity returns the URI that the document is about, as it has it.
func (d *Document) Entity() string { return d.entity }

// Basic is always "": dialogs are neither open nor closed.
func (d *Document) Basic() string { return "" }

// Note returns the states of the dialogs, for a person to read.
func (d *Document) Note() string {
	names := make([]string, len(d.dialogs))
	for i, x := range d.dialogs {
		names[i] = x.State.String()
	}
	return strings.Join(names, ", ")
}

// Dialogs returns the dialogs. The caller must not change them.
func (d *Document) Dialogs() []*Dialog { return d.dialogs }

// Apply gives what a publisher says by a new document, if it said held before,
// nil for nothing: a document of partial state changes some dialogs (RFC 4235
// section 4.3), and none goes back in the state machine. The result has full
// state. It is over limit octets at most.
func Apply(held, news *Document, limit int) (*Document, error) {
	out := &Document{entity: news.entity, rest: news.rest}
	same := !news.partial
	var before []*Dialog
	if held != nil {
		before = held.dialogs
	}
	if news.partial {
		for _, o := range before {
			if o.State != Terminated { // others may be forgotten
				out.dialogs = append(out.dialogs, o)
			}
		}
	}
	for _, x := range news.dialogs {
		if i := slices.IndexFunc(before, func(o *Dialog) bool { return o.ID == x.ID }); i >= 0 {
			o := before[i]
			if news.partial && x.CallID == "" && o.CallID != "" { // it says only what is new
				c := *x
				c.CallID = o.CallID
				x = &c
			}
			if o.CallID != "" && o.CallID == x.CallID && o.State > x.State {
				x, same = o, false
			}
		}
		out.put(x)
	}
	if same {
		return news, nil
	}
	out.body, _ = appendDocument(nil, out.entity, out.dialogs, nil, out.rest)
	if len(out.body) > limit {
		return nil, &Error{Kind: xmltree.KindTooLarge, Detail: "too many dialogs in one publication"}
	}
	out.whole = out.findCuts()
	return out, nil
}

// Whole returns the document as a body for watchers of entity, and where in it
// the version belongs.
func (d *Document) Whole(entity string) (body []byte, versionAt int) {
	if d.whole {
		return d.passed(entity)
	}
	return numbered(entity, d.dialogs, nil, d.rest)
}

// passed is the body as it was published, with our attributes.
func (d *Document) passed(entity string) (body []byte, versionAt int) {
	type cut struct {
		span
		kind int
	}
	cuts := [3]cut{{d.cuts[0], 0}, {d.cuts[1], 1}, {d.cuts[2], 2}}
	slices.SortFunc(cuts[:], func(a, b cut) int { return a.from - b.from })
	out := make([]byte, 0, len(d.body)+len(entity))
	at := 0
	for _, c := range cuts {
		out = append(out, d.body[at:c.from]...)
		out = append(out, '"')
		switch c.kind {
		case 0:
			versionAt = len(out)
		case 1:
			out = append(out, "full"...)
		case 2:
			out = xmltree.AppendAttr(out, xmltree.URI(entity))
		}
		out = append(out, '"')
		at = c.to
	}
	return append(out, d.body[at:]...), versionAt
}

// Empty returns the document of a presentity without dialogs, and where in it
// the version belongs.
func Empty(entity string) (body []byte, versionAt int) { return numbered(entity, nil, nil, nil) }

func numbered(entity string, dialogs []*Dialog, names []string, rest []byte) (body []byte, versionAt int) {
	b, at := appendDocument(nil, entity, dialogs, names, rest)
	return append(b[:at], b[at+1:]...), at
}

// appendDocument writes full state with version 0, and tells where that stands.
// names are the ids, nil: their own.
func appendDocument(dst []byte, entity string, dialogs []*Dialog, names []string, rest []byte) (out []byte, versionAt int) {
	size := 160 + len(entity) + len(rest)
	for _, d := range dialogs {
		size += 24 + len(d.ID) + len(d.rest)
	}
	dst = slices.Grow(dst, size)
	dst = append(dst, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+`<dialog-info xmlns="`+Space+`" version="`...)
	versionAt = len(dst)
	dst = append(dst, `0" state="full" entity="`...)
	dst = xmltree.AppendAttr(dst, xmltree.URI(entity))
	dst = append(dst, `">`...)
	for i, d := range dialogs {
		id := d.ID
		if names != nil {
			id = names[i]
		}
		dst = d.append(dst, id)
	}
	dst = append(dst, rest...)
	return append(dst, "</dialog-info>\n"...), versionAt
}
