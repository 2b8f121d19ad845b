package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"rollcall/rls/rlmi"
)

// told makes a notification; parts are by cid.
func told(version uint32, full bool, resources ...rlmi.Resource) *rlmi.Notification {
	return &rlmi.Notification{List: &rlmi.List{URI: "sip:friends@example.com", Version: version, FullState: full, Resources: resources}}
}

func row(uri string, in ...rlmi.Instance) rlmi.Resource {
	return rlmi.Resource{URI: uri, Instances: in}
}

// brief writes a roster on one line.
func brief(r *roster) string {
	var out []string
	for _, m := range r.members() {
		s := strings.Repeat(">", m.Depth) + m.URI + "=" + m.State
		if m.Reason != "" {
			s += "/" + m.Reason
		}
		if m.Changed {
			s += "*"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestRoster(t *testing.T) {
	a, b := rlmi.Pending("1"), rlmi.Terminated("1", "rejected")
	nest := func(version uint32, full bool, id string, rows ...rlmi.Resource) *rlmi.Notification {
		n := told(version, false, row("f", rlmi.Active(id, "cf")))
		n.List.Version = version + 10
		n.Nested = map[string]*rlmi.Notification{"cf": {List: &rlmi.List{URI: "f", Version: version, FullState: full, Resources: rows}}}
		return n
	}
	type step struct {
		n    *rlmi.Notification
		gap  bool
		note string
		want string
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"5.6.1 full state replaces the table", []step{
			{told(0, true, row("a", a), row("b")), false, "", "a=pending* b=*"},
			{told(1, true, row("c", a)), false, "", "c=pending*"},
			{told(1, true, row("d", a)), false, "version 1 after 1, ignored", "c=pending"},
		}},
		{"5.6.2 partial state", []step{
			{told(7, true, row("a", a), row("b", a)), false, "", "a=pending* b=pending*"},
			{told(8, false, row("b", b), row("c")), false, "", "a=pending b=terminated/rejected* c=*"},
			{told(8, false, row("a", b)), false, "ignored", "a=pending b=terminated/rejected c="},
			{told(10, false, row("a", b)), true, "version 10 after 8, updates were lost", "a=terminated/rejected* b=terminated/rejected c="},
			{told(11, false), false, "", "a=terminated/rejected b=terminated/rejected c="},
		}},
		{"first is partial", []step{{told(3, false, row("a", a)), true, "begins with partial state", "a=pending*"}}},
		{"the same resource twice", []step{{told(0, true, row("a", a), row("a", b)), false, "", "a=terminated/rejected*"}}},
		{"empty list", []step{{told(0, true), false, "", ""}}},
		{"RL-17 several instances, the most alive counts", []step{
			{told(0, true, row("a", b, rlmi.Instance{ID: "2", State: "active"}, a)), false, "", "a=active*"},
		}},
		{"RL-19 nested lists have versions of their own", []step{
			{nest(0, true, "i1", row("m", a)), true, "begins with partial", "f=active* >m=pending*"},
			{nest(1, false, "i1", row("n")), false, "", "f=active* >m=pending >n=*"},
			{nest(5, false, "i1", row("n", a)), true, "list f: version 5 after 1", "f=active* >m=pending >n=pending*"},
			{func() *rlmi.Notification { n := nest(0, true, "i2", row("o")); n.List.Version = 16; return n }(), false, "", "f=active* >o=*"},
			{func() *rlmi.Notification { n := told(17, false, row("f", b)); return n }(), false, "", "f=terminated/rejected*"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r roster
			for i, s := range tt.steps {
				notes, gap := r.apply(s.n, time.Now())
				text := strings.Join(notes, "; ")
				if gap != s.gap || (text == "") != (s.note == "") || !strings.Contains(text, s.note) {
					t.Errorf("step %d: gap %v, notes %q", i, gap, text)
				}
				if got := brief(&r); got != s.want {
					t.Errorf("step %d: %s\nwant    %s", i, got, s.want)
				}
			}
		})
	}
}

// Since is when the row last changed, not when it was last named.
func TestRosterSince(t *testing.T) {
	var r roster
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r.apply(told(0, true, row("a", rlmi.Pending("1")), row("b")), t0)
	r.apply(told(1, true, row("a", rlmi.Pending("1")), row("b", rlmi.Pending("1"))), t0.Add(time.Second))
	m := r.members()
	if m[0].Since != "2026-01-02T03:04:05.000Z" || m[1].Since != "2026-01-02T03:04:06.000Z" {
		t.Errorf("%v", m)
	}
}

// Whatever a server sends, every row is shown once per list, a discarded
// document changes nothing, and full state leaves exactly its own rows.
func FuzzRoster(f *testing.F) {
	ctype, body := multipart(`<list xmlns="urn:ietf:params:xml:ns:rlmi" uri="sip:l@example.com" version="0" fullState="true"><resource uri="a"><instance id="1" state="active" cid="b"/></resource></list>`,
		map[string]string{"b": pidfOf("open", "x")})
	_, next := multipart(`<list xmlns="urn:ietf:params:xml:ns:rlmi" uri="sip:l@example.com" version="1" fullState="false"><resource uri="a"/><resource uri="c"/></list>`, nil)
	f.Add(ctype, body, next)
	f.Fuzz(func(t *testing.T, ctype, first, second string) {
		var r roster
		for _, b := range []string{first, second} {
			n, err := rlmi.Options{Lenient: true}.Parse(ctype, []byte(b))
			if err != nil {
				return
			}
			was, before := r.root.known && n.List.Version <= r.root.version, fmt.Sprint(uris(&r.root))
			notes, _ := r.apply(n, time.Time{})
			rows := uris(&r.root)
			if was && (fmt.Sprint(rows) != before || len(notes) == 0) {
				t.Errorf("a stale document changed %s to %v", before, rows)
			}
			sorted := slices.Sorted(slices.Values(rows))
			if len(slices.Compact(sorted)) != len(rows) {
				t.Errorf("a row twice in %v", rows)
			}
			if !was && n.List.FullState {
				var want []string
				for _, res := range n.List.Resources {
					if !slices.Contains(want, res.URI) {
						want = append(want, res.URI)
					}
				}
				if !slices.Equal(rows, want) {
					t.Errorf("full state %v left %v", want, rows)
				}
			}
		}
	})
}

func uris(l *rosterList) []string {
	var out []string
	for _, r := range l.rows {
		out = append(out, r.uri)
	}
	return out
}
