package main

import (
	"fmt"
	"mime"
	"strings"
	"time"

	"rollcall/pa/dialoginfo"
	"rollcall/pa/mwi"
	"rollcall/pa/pidf"
	"rollcall/rls/rlmi"
)

// roster is what a subscriber knows of a list (RFC 4662 section 5.6).
type roster struct{ root rosterList }

// rosterList is a list: the one subscribed to, or one nested in it.
type rosterList struct {
	uri, name string
	version   uint32
	full      bool // of the document applied last
	known     bool // a document was applied
	rows      []*rosterRow
}

type rosterRow struct {
	uri, name, instance   string
	state, reason         string // state is empty when it is not known yet
	basic, note, bodyType string
	since                 time.Time // when any of these changed, as seen here
	changed               bool      // named in the last NOTIFY
	list                  *rosterList
}

// apply brings the roster up to a NOTIFY. gap tells that something was missed
// and full state should be asked for; notes are for a person.
func (r *roster) apply(n *rlmi.Notification, now time.Time) (notes []string, gap bool) {
	r.root.forget()
	return r.root.apply(n, now)
}

// forget clears the marks of the NOTIFY before.
func (l *rosterList) forget() {
	for _, row := range l.rows {
		row.changed = false
		if row.list != nil {
			row.list.forget()
		}
	}
}

func (l *rosterList) apply(n *rlmi.Notification, now time.Time) (notes []string, gap bool) {
	d := n.List
	switch {
	case l.known && d.Version <= l.version:
		return []string{fmt.Sprintf("list %s: version %d after %d, ignored", d.URI, d.Version, l.version)}, false
	case !l.known && !d.FullState:
		notes, gap = append(notes, fmt.Sprintf("list %s: begins with partial state", d.URI)), true
	case !d.FullState && d.Version > l.version+1:
		notes, gap = append(notes, fmt.Sprintf("list %s: version %d after %d, updates were lost", d.URI, d.Version, l.version)), true
	}
	old := make(map[string]*rosterRow, len(l.rows))
	for _, row := range l.rows {
		old[row.uri] = row
	}
	l.uri, l.version, l.full, l.known = d.URI, d.Version, d.FullState, true
	if name := nameOf(d.Names); name != "" || d.FullState {
		l.name = name
	}
	listed := make(map[*rosterRow]bool, len(d.Resources))
	if d.FullState {
		l.rows = make([]*rosterRow, 0, len(d.Resources))
	}
	for i := range d.Resources {
		res := &d.Resources[i]
		row, known := old[res.URI]
		if !known {
			row = &rosterRow{uri: res.URI, since: now}
			old[res.URI] = row
		}
		if !known || d.FullState && !listed[row] {
			l.rows = append(l.rows, row)
		}
		listed[row] = true
		more, g := row.apply(res, n, now)
		notes, gap = append(notes, more...), gap || g
	}
	return notes, gap
}

// apply replaces a row (RL-21).
func (row *rosterRow) apply(res *rlmi.Resource, n *rlmi.Notification, now time.Time) (notes []string, gap bool) {
	was := *row
	row.name, row.changed = nameOf(res.Names), true
	in := best(res.Instances)
	row.instance, row.state, row.reason = in.ID, in.State, in.Reason
	row.basic, row.note, row.bodyType = "", "", ""
	nested := n.Nested[in.CID]
	switch {
	case in.CID == "":
		row.list = nil
	case nested != nil:
		// Another instance is another virtual subscription, whose versions
		// begin anew.
		if row.list == nil || was.instance != in.ID {
			row.list = &rosterList{}
		}
		notes, gap = row.list.apply(nested, now)
	default:
		row.list = nil
		if part, ok := n.Part(in.CID); ok {
			row.bodyType = part.ContentType
			row.basic, row.note = summary(part.ContentType, part.Body)
		}
	}
	if was.state != row.state || was.reason != row.reason || was.basic != row.basic || was.note != row.note {
		row.since = now
	}
	return notes, gap
}

// best picks the instance to show when a resource has several: the most alive.
func best(all []rlmi.Instance) rlmi.Instance {
	var out rlmi.Instance
	rank := func(s string) int {
		switch s {
		case rlmi.StateActive:
			return 3
		case rlmi.StatePending:
			return 2
		case rlmi.StateTerminated:
			return 1
		}
		return 0
	}
	for _, in := range all {
		if rank(in.State) > rank(out.State) {
			out = in
		}
	}
	return out
}

// nameOf picks a name to show: one without a language, else the first.
func nameOf(names []rlmi.Name) string {
	for _, n := range names {
		if n.Lang == "" {
			return n.Text
		}
	}
	if len(names) > 0 {
		return names[0].Text
	}
	return ""
}

// summary reads what a person wants to know from a member's document.
func summary(contentType string, body []byte) (basic, note string) {
	t, _, err := mime.ParseMediaType(contentType)
	switch {
	case err != nil:
	case strings.EqualFold(t, dialoginfo.MediaType):
		doc, err := dialoginfo.Parse(body, dialoginfo.Limits{Bytes: 4 << 20, Elements: 1 << 16})
		if err != nil {
			return "", "not readable: " + err.Error()
		}
		if note = doc.Note(); note == "" {
			note = "idle"
		}
		return "", note
	case strings.EqualFold(t, mwi.MediaType):
		doc, err := mwi.Parse(body)
		if err != nil {
			return "", "not readable: " + err.Error()
		}
		return "", doc.Note()
	}
	return presence(contentType, body)
}

// presence reads what a person wants to know from a presence document.
func presence(contentType string, body []byte) (basic, note string) {
	if t, _, err := mime.ParseMediaType(contentType); err != nil || !strings.EqualFold(t, pidf.MediaType) {
		return "", ""
	}
	doc, err := pidf.Parse(body, pidf.Limits{Bytes: 4 << 20, Elements: 1 << 16})
	if err != nil {
		return "", "not readable: " + err.Error()
	}
	return doc.Basic(), doc.Note()
}

// member is a row as it is printed; nested lists follow their row, deeper.
type member struct {
	URI     string `json:"uri"`
	Name    string `json:"name"`
	State   string `json:"state"` // active, pending, terminated; empty: not known yet
	Reason  string `json:"reason"`
	Basic   string `json:"basic"` // open, closed
	Note    string `json:"note"`
	Depth   int    `json:"depth"`
	List    bool   `json:"list"`    // a nested list
	Changed bool   `json:"changed"` // named in this NOTIFY
	Since   string `json:"since"`   // when it was seen to change

	since   time.Time
	members int // of a nested list
}

// members flattens the roster.
func (r *roster) members() []member { return r.root.members(nil, 0) }

func (l *rosterList) members(out []member, depth int) []member {
	for _, row := range l.rows {
		m := member{
			URI: row.uri, Name: row.name, State: row.state, Reason: row.reason, Basic: row.basic, Note: row.note,
			Depth: depth, Changed: row.changed, Since: stamp(row.since), since: row.since,
		}
		if row.list != nil {
			m.List, m.members = true, len(row.list.rows)
			if m.Name == "" {
				m.Name = row.list.name
			}
		}
		out = append(out, m)
		if row.list != nil {
			out = row.list.members(out, depth+1)
		}
	}
	return out
}

// stamp writes a time for programs.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
