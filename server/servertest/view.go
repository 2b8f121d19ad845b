package servertest

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"rollcall/pa/dialoginfo"
	"rollcall/rls/rlmi"
)

// View is what a phone knows about a list after the NOTIFYs so far. It is
// immutable.
type View struct {
	URI     string
	Name    string
	Full    bool     // the newest document was full
	Changed []string // URIs in the newest document
	Rows    map[string]*Row
	Next    uint32 // version of the next document

	t        testing.TB
	describe func([]byte) string
}

// Row is one resource.
type Row struct {
	Name     string
	State    string // "active", "pending", "terminated REASON" or "unknown"
	Text     string // of active: "open: note"
	Instance string
	List     *View  // of a nested list
	docs     uint32 // that had a version
}

// apply checks a document against the rules and returns what is known with it.
// gap lets full documents skip versions: of nested lists, or of all.
func (v *View) apply(msg *rlmi.Notification, gap Gap) *View {
	l := msg.List
	if l.Version != v.Next && !(gap == Crash && l.FullState && l.Version > v.Next) {
		v.t.Errorf("RL-13: version %d of %s, want %d", l.Version, l.URI, v.Next)
	}
	if l.Version == 0 && !l.FullState {
		v.t.Errorf("RL-14: first document of %s is partial", l.URI)
	}
	if l.URI != v.URI {
		v.t.Errorf("RL-12: list uri %q, want %q", l.URI, v.URI)
	}
	now := &View{URI: v.URI, Name: firstName(l.Names), Full: l.FullState, Rows: make(map[string]*Row), Next: l.Version + 1, t: v.t, describe: v.describe}
	if !l.FullState {
		maps.Copy(now.Rows, v.Rows)
	}
	cids := make(map[string]bool)
	for _, r := range l.Resources {
		now.Changed = append(now.Changed, r.URI)
		row := &Row{Name: firstName(r.Names), State: "unknown"}
		now.Rows[r.URI] = row
		if len(r.Instances) == 0 { // RL-15
			continue
		}
		if len(r.Instances) > 1 {
			v.t.Errorf("RL-17: %d instances of %s", len(r.Instances), r.URI)
		}
		in := r.Instances[0]
		row.Instance, row.State = in.ID, strings.TrimSpace(in.State+" "+in.Reason)
		if in.State != rlmi.StateActive {
			if in.CID != "" {
				v.t.Errorf("PR-08: %s is %s and has state", r.URI, in.State)
			}
			continue
		}
		cids[in.CID] = true
		part, _ := msg.Part(in.CID) // resolves: Parse has seen to that
		sub := msg.Nested[in.CID]
		if sub == nil {
			row.Text = v.describe(part.Body)
			if before := v.Rows[r.URI]; before != nil && before.Instance == in.ID {
				row.docs = before.docs
			}
			if strings.HasPrefix(part.ContentType, dialoginfo.MediaType) {
				if got, ok := dialogVersion(part.Body); !ok || got != row.docs && !(gap != NoGap && got > row.docs) {
					v.t.Errorf("DI-02: version %d of %s, want %d\n%s", got, r.URI, row.docs, part.Body)
				} else {
					row.docs = got + 1
				}
			}
			continue
		}
		nested := &View{t: v.t, URI: r.URI, describe: v.describe}
		if before := v.Rows[r.URI]; before != nil && before.List != nil && before.Instance == in.ID {
			nested = before.List
		}
		if gap == Restart {
			row.List = nested.apply(sub, Crash)
		} else {
			row.List = nested.apply(sub, gap)
		}
	}
	if len(cids) != len(msg.Parts) {
		v.t.Errorf("RL-18: %d parts for %d instances", len(msg.Parts), len(cids))
	}
	return now
}

// Gap is what the next NOTIFY may skip.
type Gap uint8

// The gaps: after a restart in order the versions of nested lists, which are
// not stored; after a crash those of all lists, and CSeq.
const (
	NoGap Gap = iota
	Restart
	Crash
)

// Expect allows a gap before the next NOTIFY.
func (s *Sub) Expect(gap Gap) {
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	s.gap = gap
}

func firstName(names []rlmi.Name) string {
	if len(names) == 0 {
		return ""
	}
	return names[0].Text
}

// Flat is the view as path of URIs to state: "open: note" when active, "list"
// for a nested list, whose rows follow.
func (v *View) Flat() map[string]string {
	out := make(map[string]string)
	for uri, r := range v.Rows {
		switch {
		case r.List != nil:
			out[uri] = "list"
			for k, s := range r.List.Flat() {
				out[uri+" > "+k] = s
			}
		case r.State == "active":
			out[uri] = r.Text
		default:
			out[uri] = r.State
		}
	}
	return out
}

// List is what the watcher of a list knows now, nil before the first NOTIFY.
func (s *Sub) List() *View {
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	return s.list
}

// View gives what the watcher knows now, as Flat does.
func (s *Sub) View() map[string]string {
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	if s.list == nil {
		return nil
	}
	return s.list.Flat()
}

// WantView compares what the watcher knows with what it should.
func (s *Sub) WantView(what string, want map[string]string) {
	s.u.w.T.Helper()
	if got := s.View(); !maps.Equal(got, want) {
		s.u.w.T.Errorf("%s: list %s is\n%s\nwant\n%s", what, s.URI, lines(got), lines(want))
	}
}

func lines(m map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b.WriteString("  " + k + " = " + m[k] + "\n")
	}
	return b.String()
}
