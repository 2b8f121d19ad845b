package rls

import (
	"testing"

	"rollcall/dialog"
	"rollcall/rls/rlmi"
)

// A NOTIFY that did not leave is rendered again, with the version that it had:
// to the watcher the nested list's versions have no gap either (RL-13).
func TestRenderAgain(t *testing.T) {
	inner := &node{items: []*member{{num: 2, uri: "sip:bob@example.com", state: dialog.Pending, dirty: true}}}
	v := &view{
		s: &Shard{s: new(Server)}, token: "t",
		in:   dialog.Interest{Resource: "sip:team@example.com", URI: "sip:team@example.com"},
		root: &node{items: []*member{{num: 1, uri: "sip:inner@example.com", child: inner, dirty: true}}},
	}
	for i, c := range []struct {
		version uint32
		full    bool
		nested  uint32
	}{{0, true, 0}, {0, true, 0}, {1, false, 1}, {2, true, 2}, {2, true, 2}, {2, true, 2}, {3, true, 3}} {
		inner.items[0].dirty = true
		body, ctype := v.Render(nil, dialog.View{Version: c.version, Full: c.full, State: dialog.Active})
		m, err := rlmi.Options{First: i == 0}.Parse(ctype, body)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range m.Nested {
			if n.List.Version != c.nested {
				t.Errorf("NOTIFY %d, of version %d, has version %d of the nested list, want %d", i, c.version, n.List.Version, c.nested)
			}
		}
		if len(m.Nested) != 1 {
			t.Errorf("NOTIFY %d has %d nested lists", i, len(m.Nested))
		}
	}
}
