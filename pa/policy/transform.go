package policy

import (
	"slices"
	"strconv"
	"strings"

	"rollcall/pa/pidf"
	"rollcall/pa/pidf/xmltree"
)

// Namespaces of presence attributes that rules can grant.
const (
	spaceOMAPres = "urn:oma:xml:prs:pidf:oma-pres"
	spaceGeopriv = "urn:ietf:params:xml:ns:pidf:geopriv10"
)

// attribute is a set of presence attributes that a rule grants one by one.
type attribute uint32

const (
	activities attribute = 1 << iota
	classAttr
	deviceID
	mood
	placeIs
	placeType
	privacy
	relationship
	sphere
	statusIcon
	timeOffset
	note
	willingness
	networkAvailability
	sessionParticipation
	registrationState
	barringState
	geopriv
	always // no permission needed
)

// booleans are the permissions of RFC 5025, 3.3.2, and their OMA additions.
var booleans = map[name]attribute{
	{SpaceRules, "provide-activities"}:   activities,
	{SpaceRules, "provide-class"}:        classAttr,
	{SpaceRules, "provide-deviceID"}:     deviceID,
	{SpaceRules, "provide-mood"}:         mood,
	{SpaceRules, "provide-place-is"}:     placeIs,
	{SpaceRules, "provide-place-type"}:   placeType,
	{SpaceRules, "provide-privacy"}:      privacy,
	{SpaceRules, "provide-relationship"}: relationship,
	{SpaceRules, "provide-sphere"}:       sphere,
	{SpaceRules, "provide-status-icon"}:  statusIcon,
	{SpaceRules, "provide-time-offset"}:  timeOffset,
	{SpaceRules, "provide-note"}:         note,

	{SpaceOMARules, "provide-willingness"}:           willingness,
	{SpaceOMARules, "provide-network-availability"}:  networkAvailability,
	{SpaceOMARules, "provide-session-participation"}: sessionParticipation,
	{SpaceOMARules, "provide-registration-state"}:    registrationState,
	{SpaceOMARules, "provide-barring-state"}:         barringState,
}

// known are the children of tuple, person and device whose permission is not
// provide-unknown-attribute. user-input is graded and handled apart.
var known = map[name]attribute{
	{pidf.SpaceRPID, "activities"}:    activities,
	{pidf.SpaceRPID, "class"}:         classAttr,
	{pidf.SpaceRPID, "mood"}:          mood,
	{pidf.SpaceRPID, "place-is"}:      placeIs,
	{pidf.SpaceRPID, "place-type"}:    placeType,
	{pidf.SpaceRPID, "privacy"}:       privacy,
	{pidf.SpaceRPID, "relationship"}:  relationship,
	{pidf.SpaceRPID, "service-class"}: always,
	{pidf.SpaceRPID, "sphere"}:        sphere,
	{pidf.SpaceRPID, "status-icon"}:   statusIcon,
	{pidf.SpaceRPID, "time-offset"}:   timeOffset,

	{pidf.Space, "basic"}:         always,
	{pidf.Space, "contact"}:       always,
	{pidf.Space, "timestamp"}:     always,
	{pidf.Space, "note"}:          note,
	{pidf.SpaceData, "note"}:      note,
	{pidf.SpaceData, "timestamp"}: always,

	{spaceOMAPres, "service-description"}:    always, // what service-id selects by
	{spaceOMAPres, "willingness"}:            willingness,
	{spaceOMAPres, "overriding-willingness"}: willingness,
	{spaceOMAPres, "network-availability"}:   networkAvailability,
	{spaceOMAPres, "session-participation"}:  sessionParticipation,
	{spaceOMAPres, "registration-state"}:     registrationState,
	{spaceOMAPres, "barring-state"}:          barringState,
	{spaceGeopriv, "geopriv"}:                geopriv,
}

type name struct{ space, local string }

// userInput grades provide-user-input.
type userInput uint8

const (
	inputFalse      userInput = 0
	inputBare       userInput = 10
	inputThresholds userInput = 20
	inputFull       userInput = 30
)

// occurrences is the set of components a rule grants: all, or those a member
// names.
type occurrences struct {
	all     bool
	members []member // sorted, without duplicates
}

// member names components by one property: class, occurrence-id, deviceID,
// service-uri, service-uri-scheme or service-id.
type member struct{ kind, value string }

func (m member) compare(o member) int {
	if c := strings.Compare(m.kind, o.kind); c != 0 {
		return c
	}
	return strings.Compare(m.value, o.value)
}

// add adds what p names; settle follows.
func (o *occurrences) add(p *occurrences) {
	o.all = o.all || p.all
	o.members = joinMembers(o.members, p.members)
}

// settle sorts what add has joined.
func (o *occurrences) settle() {
	if o.all {
		o.members = nil
	}
	o.members = sortedMembers(o.members)
}

// joinMembers appends more, which it may take over when there is nothing yet,
// but never writes to.
func joinMembers(all, more []member) []member {
	if len(all) == 0 {
		return slices.Clip(more)
	}
	return append(all, more...)
}

// sortedMembers sorts members and leaves out what is there twice. It leaves
// alone what is in order: that may belong to a rule.
func sortedMembers(ms []member) []member {
	for i := 1; i < len(ms); i++ {
		if ms[i-1].compare(ms[i]) >= 0 {
			ms = slices.Clone(ms)
			slices.SortFunc(ms, member.compare)
			return slices.Compact(ms)
		}
	}
	return ms
}

// Transform is what of a presence document a watcher may see (RFC 5025, 3.3).
// The zero value shows nothing. It is immutable once Evaluate returned it.
type Transform struct {
	services, persons, devices occurrences

	attributes attribute
	input      userInput
	unknown    []member // provide-unknown-attribute: kind is the namespace
	all        bool     // provide-all-attributes
}

// Everything is the transform that shows the whole document.
func Everything() Transform {
	return Transform{services: occurrences{all: true}, persons: occurrences{all: true}, devices: occurrences{all: true}, all: true}
}

// IsEverything reports whether Apply passes every document untouched.
func (t Transform) IsEverything() bool {
	return t.services.all && t.persons.all && t.devices.all && t.all
}

// Key returns a string that is equal for equal transforms, to share what was
// rendered for one watcher with others.
func (t Transform) Key() string { return string(t.AppendKey(nil)) }

// AppendKey appends Key to dst.
func (t Transform) AppendKey(dst []byte) []byte {
	if t.IsEverything() {
		return append(dst, '*')
	}
	for _, o := range [...]*occurrences{&t.services, &t.persons, &t.devices} {
		dst = strconv.AppendBool(dst, o.all)
		dst = appendMembers(dst, o.members)
	}
	if t.all {
		return append(dst, "all"...)
	}
	dst = strconv.AppendUint(dst, uint64(t.attributes), 16)
	dst = append(dst, ' ')
	dst = strconv.AppendUint(dst, uint64(t.input), 10)
	return appendMembers(dst, t.unknown)
}

// Grants lists what is granted, for a person: names as they stand in rules.
func (t Transform) Grants() []string {
	var out []string
	for _, o := range [...]struct {
		name string
		set  *occurrences
	}{{"services", &t.services}, {"persons", &t.persons}, {"devices", &t.devices}} {
		switch {
		case o.set.all:
			out = append(out, "all-"+o.name)
		default:
			for _, m := range o.set.members {
				out = append(out, o.name+" with "+m.kind+" "+m.value)
			}
		}
	}
	if t.all {
		return append(out, "provide-all-attributes")
	}
	var names []string
	for n, bit := range booleans {
		if t.attributes&bit != 0 {
			names = append(names, n.local)
		}
	}
	slices.Sort(names)
	out = append(out, names...)
	if t.attributes&geopriv != 0 {
		out = append(out, "provide-geopriv full")
	}
	if in := t.input; in != inputFalse {
		out = append(out, "provide-user-input "+map[userInput]string{inputBare: "bare", inputThresholds: "thresholds", inputFull: "full"}[in])
	}
	for _, m := range t.unknown {
		out = append(out, "provide-unknown-attribute {"+m.kind+"}"+m.value)
	}
	return out
}

// appendMembers appends the members such that none can be read as others.
func appendMembers(dst []byte, ms []member) []byte {
	for _, m := range ms {
		for _, s := range [...]string{m.kind, m.value} {
			dst = append(dst, ' ')
			dst = strconv.AppendInt(dst, int64(len(s)), 10)
			dst = append(dst, ':')
			dst = append(dst, s...)
		}
	}
	return append(dst, '|')
}

// add adds what u grants; settle follows.
func (t *Transform) add(u *Transform) {
	t.services.add(&u.services)
	t.persons.add(&u.persons)
	t.devices.add(&u.devices)
	t.attributes |= u.attributes
	t.input = max(t.input, u.input)
	t.all = t.all || u.all
	t.unknown = joinMembers(t.unknown, u.unknown)
}

// settle puts what add has joined in order.
func (t *Transform) settle() {
	t.services.settle()
	t.persons.settle()
	t.devices.settle()
	t.unknown = sortedMembers(t.unknown)
}

// grant adds one child of <transformations>.
func (t *Transform) grant(e *xmltree.Element) {
	if bit, ok := booleans[name{e.Space, e.Local}]; ok {
		if isTrue(e) {
			t.attributes |= bit
		}
		return
	}
	switch {
	case e.Is(SpaceRules, "provide-services"):
		t.services.add(parseOccurrences(e, "all-services", "class", "occurrence-id", "service-uri", "service-uri-scheme"))
	case e.Is(SpaceRules, "provide-persons"):
		t.persons.add(parseOccurrences(e, "all-persons", "class", "occurrence-id"))
	case e.Is(SpaceRules, "provide-devices"):
		t.devices.add(parseOccurrences(e, "all-devices", "class", "occurrence-id", "deviceID"))
	case e.Is(SpaceRules, "provide-user-input"):
		switch e.Content() {
		case "bare":
			t.input = max(t.input, inputBare)
		case "thresholds":
			t.input = max(t.input, inputThresholds)
		case "full":
			t.input = max(t.input, inputFull)
		}
	case e.Is(SpaceRules, "provide-unknown-attribute"):
		space, _ := e.Attr("ns")
		local, _ := e.Attr("name")
		if isTrue(e) && local != "" {
			t.unknown = append(t.unknown, member{space, local})
		}
	case e.Is(SpaceRules, "provide-all-attributes"):
		t.all = true
	case e.Is(SpaceOMARules, "provide-geopriv"):
		if e.Content() == "full" {
			t.attributes |= geopriv
		}
	}
}

func isTrue(e *xmltree.Element) bool {
	v := e.Content()
	return v == "true" || v == "1"
}

func parseOccurrences(e *xmltree.Element, all string, kinds ...string) *occurrences {
	o := &occurrences{}
	for c := range e.Elements() {
		switch {
		case c.Is(SpaceRules, all):
			o.all = true
		case c.Space == SpaceRules && slices.Contains(kinds, c.Local),
			c.Is(SpaceOMARules, "service-id") && all == "all-services":
			o.members = append(o.members, member{c.Local, c.Content()})
		}
	}
	return o
}

// Apply returns the document as the watcher may see it. It returns doc itself
// when nothing has to be taken away. Applied again it changes nothing, with
// one exception that RFC 5025 leaves open (3.3.2.2 against 4): a component
// granted by a class that is itself not shown is not recognised again.
//
// A <note> of <presence> itself is governed by provide-note, its other
// children are shown only with provide-all-attributes.
func (t Transform) Apply(doc *pidf.Document) (*pidf.Document, error) {
	if t.IsEverything() {
		return doc, nil
	}
	root := doc.Tree()
	f := filter{t: &t}
	f.keep(root, func(c *xmltree.Element) bool {
		switch {
		case c.Is(pidf.Space, "tuple"):
			return f.component(c, &t.services)
		case c.Is(pidf.SpaceData, "person"):
			return f.component(c, &t.persons)
		case c.Is(pidf.SpaceData, "device"):
			return f.component(c, &t.devices)
		case c.Is(pidf.Space, "note"):
			return t.all || t.attributes&note != 0
		}
		return t.all
	})
	if !f.changed {
		return doc, nil
	}
	return pidf.FromTree(root), nil
}

// filter takes out of a tree what a transform does not grant.
type filter struct {
	t       *Transform
	changed bool
}

// keep drops the child elements for which ok is false.
func (f *filter) keep(e *xmltree.Element, ok func(*xmltree.Element) bool) {
	n := len(e.Children)
	e.Children = slices.DeleteFunc(e.Children, func(c *xmltree.Element) bool { return c.Local != "" && !ok(c) })
	f.changed = f.changed || len(e.Children) != n
}

// component filters a tuple, person or device and reports whether it is shown.
func (f *filter) component(c *xmltree.Element, granted *occurrences) bool {
	if !granted.has(c) {
		return false
	}
	if f.t.all {
		return true
	}
	f.keep(c, func(a *xmltree.Element) bool {
		switch {
		case a.Is(pidf.Space, "status"):
			f.keep(a, func(s *xmltree.Element) bool { return f.shows(c, s, false) })
			return true
		case a.Is(pidf.SpaceRPID, "user-input"):
			return f.userInput(a)
		}
		return f.shows(c, a, true)
	})
	return true
}

// shows reports whether attribute a of component c is granted. Unknown ones
// are granted one by one as children of a component only (RFC 5025, 3.3.2.14).
func (f *filter) shows(c, a *xmltree.Element, child bool) bool {
	bit, ok := known[name{a.Space, a.Local}]
	switch {
	case a.Is(pidf.SpaceData, "deviceID"):
		return c.Local == "device" || f.t.attributes&deviceID != 0
	case a.Is(pidf.SpaceRPID, "user-input"):
		return false // of a status, where no rule grants it
	case ok && (bit == always || f.t.attributes&bit != 0):
		return true
	case ok && a.Space != spaceOMAPres && a.Space != spaceGeopriv:
		return false
	}
	_, found := slices.BinarySearchFunc(f.t.unknown, member{a.Space, a.Local}, member.compare)
	return child && found
}

// userInput strips the attributes that the grade does not show. RFC 5025 calls
// last-input (RFC 4480) "since". Each grade shows what the ones below it show.
func (f *filter) userInput(a *xmltree.Element) bool {
	switch f.t.input {
	case inputFalse:
		return false
	case inputFull:
		return true
	}
	n := len(a.Attrs)
	a.Attrs = slices.DeleteFunc(a.Attrs, func(x xmltree.Attr) bool {
		threshold := x.Space == "" && x.Local == "idle-threshold" && f.t.input == inputThresholds
		return !threshold && x.Space != xmltree.SpaceXMLNS
	})
	f.changed = f.changed || len(a.Attrs) != n
	return true
}

// has reports whether the set names component c (RFC 5025, 3.3.1).
func (o *occurrences) has(c *xmltree.Element) bool {
	return o.all || slices.ContainsFunc(o.members, func(m member) bool { return m.names(c) })
}

func (m member) names(c *xmltree.Element) bool {
	switch m.kind {
	case "occurrence-id":
		id, ok := c.Attr("id")
		return ok && strings.TrimSpace(id) == m.value
	case "class":
		return anyChild(c, pidf.SpaceRPID, "class", func(v string) bool { return v == m.value })
	case "deviceID":
		id, ok := firstChild(c, pidf.SpaceData, "deviceID")
		return ok && equivalent(id, m.value)
	case "service-uri":
		contact, ok := firstChild(c, pidf.Space, "contact")
		return ok && equivalent(contact, m.value)
	case "service-uri-scheme":
		contact, _ := firstChild(c, pidf.Space, "contact")
		scheme, _, ok := strings.Cut(contact, ":")
		return ok && scheme == m.value
	case "service-id":
		for d := range c.Elements() {
			if d.Is(spaceOMAPres, "service-description") && anyChild(d, spaceOMAPres, "service-id", func(v string) bool { return v == m.value }) {
				return true
			}
		}
	}
	return false
}

// firstChild returns the content of the first such child: of what may occur
// once, no other is shown.
func firstChild(e *xmltree.Element, space, local string) (string, bool) {
	for c := range e.Elements() {
		if c.Is(space, local) {
			return c.Content(), true
		}
	}
	return "", false
}

func anyChild(e *xmltree.Element, space, local string, ok func(string) bool) bool {
	for c := range e.Elements() {
		if c.Is(space, local) && ok(c.Content()) {
			return true
		}
	}
	return false
}

// PoliteBlockDocument returns the document for a watcher who must not learn that he is
// blocked: that of a presentity of whom nothing is published (RFC 5025,
// 3.2.1), the same bytes at every time.
func PoliteBlockDocument(entity string) []byte { return pidf.Offline(entity) }
