package sql

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// Copies of XCAP documents, on both engines.
func TestCopies(t *testing.T) {
	engines(t, func(t *testing.T, dsn string) {
		const a, b = "http://a.example/xcap", "http://b.example/xcap"
		s := open(t, dsn, Options{})
		save := func(root string, put []Copy, gone ...string) {
			t.Helper()
			if err := s.SaveCopies(t.Context(), root, put, gone); err != nil {
				t.Fatal(err)
			}
		}
		want := map[string]Copy{}
		check := func(what string) {
			t.Helper()
			got := map[string]Copy{}
			if err := s.Copies(t.Context(), func(c Copy) error { got[c.Root+" "+c.Selector] = c; return nil }); err != nil {
				t.Fatal(err)
			}
			for _, c := range want {
				g := got[c.Root+" "+c.Selector]
				if !bytes.Equal(g.Body, c.Body) {
					t.Errorf("%s: %s: body of %d bytes, want %d", what, c.Selector, len(g.Body), len(c.Body))
				}
				g.Body, c.Body = nil, nil
				if !reflect.DeepEqual(g, c) {
					t.Errorf("%s: %+v, want %+v", what, g, c)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%s: %d copies, want %d", what, len(got), len(want))
			}
		}
		put := func(c ...Copy) []Copy {
			for _, c := range c {
				want[c.Root+" "+c.Selector] = c
			}
			return c
		}
		save(a, put(
			Copy{Root: a, Selector: "rls-services/global/index", ETag: `W/"1\x00"`, Body: bytes.Repeat([]byte{0, 0xff}, 1000)},
			Copy{Root: a, Selector: "pres-rules/users/sip:caf\xe9@example.com/index", Missing: true},
			Copy{Root: a, Selector: "pres-rules/users/sip:bob@example.com/index", Body: []byte("x")},
		))
		save(b, put(Copy{Root: b, Selector: "rls-services/global/index", ETag: "b"}))
		check("added")
		delete(want, a+" pres-rules/users/sip:bob@example.com/index")
		save(a, put(Copy{Root: a, Selector: "rls-services/global/index", ETag: "2", Body: []byte("y")}), "pres-rules/users/sip:bob@example.com/index", "none/global/index")
		check("replaced and removed")
		var many []Copy
		for i := range 300 {
			many = append(many, Copy{Root: b, Selector: fmt.Sprintf("pres-rules/users/sip:u%d@example.com/index", i), Missing: i%2 == 0})
		}
		save(b, put(many...))
		save(b, nil)
		check("many")
		text, _ := export(t, s)
		if strings.Contains(text, "xcap_copy") {
			t.Error("copies are exported")
		}
		s.Close()
		s = open(t, dsn, Options{})
		check("opened again")
		if err := s.KeepCopies(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		for _, k := range slices.Collect(maps.Keys(want)) {
			if strings.HasPrefix(k, b) {
				delete(want, k)
			}
		}
		check("of one root")
		if err := s.KeepCopies(t.Context()); err != nil {
			t.Fatal(err)
		}
		clear(want)
		check("of none")
	})
	m := open(t, "memory", Options{})
	if err := m.SaveCopies(t.Context(), "r", []Copy{{Root: "r"}}, nil); err != nil {
		t.Error(err)
	}
	if err := m.Copies(t.Context(), func(Copy) error { t.Error("memory keeps copies"); return nil }); err != nil {
		t.Error(err)
	}
	if err := m.KeepCopies(t.Context()); err != nil {
		t.Error(err)
	}
}
