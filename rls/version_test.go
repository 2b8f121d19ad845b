package rls

import "testing"

// DI-02: a member's documents are numbered by what is really sent.
func TestMemberVersion(t *testing.T) {
	for _, c := range []struct {
		name    string
		resumed bool
		list    []uint32 // versions of the lists that have the member
		want    []uint32
	}{
		{"each NOTIFY", false, []uint32{0, 1, 2}, []uint32{0, 1, 2}},
		{"some NOTIFYs", false, []uint32{0, 4, 9}, []uint32{0, 1, 2}},
		{"one that did not leave", false, []uint32{0, 1, 1, 2}, []uint32{0, 1, 1, 2}},
		{"the first did not leave", false, []uint32{0, 0, 1}, []uint32{0, 0, 1}},
		{"after a restart", true, []uint32{7, 8, 8, 11}, []uint32{7, 8, 8, 9}},
	} {
		var m member
		for i, l := range c.list {
			if got := m.take(l, c.resumed); got != c.want[i] {
				t.Errorf("%s: version %d in list %d, want %d", c.name, got, l, c.want[i])
			}
		}
	}
}
