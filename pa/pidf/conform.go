package pidf

import (
	"slices"

	"rollcall/pa/pidf/xmltree"
)

// conforms reports whether a document has the shape that the schemas of RFC
// 3863 and RFC 4479 demand, so that it can be shown as it was published:
// entity, the order of elements, one status per tuple, unique xs:IDs. What
// extensions hold is their publisher's.
func conforms(root *xmltree.Element) bool {
	if e, _ := root.Attr("entity"); e == "" {
		return false
	}
	last, ok := 0, true
	for c := range root.Elements() {
		class := classOther
		switch {
		case c.Is(Space, "tuple"):
			class, ok = classTuple, hasID(c) && inOrder(c, Space, "status", "", "contact", "note", "timestamp") && statusConforms(c)
		case c.Is(Space, "note"):
			class = classNote
		case c.Is(SpaceData, "person"):
			ok = hasID(c) && inOrder(c, SpaceData, "", "note", "timestamp")
		case c.Is(SpaceData, "device"):
			ok = hasID(c) && inOrder(c, SpaceData, "", "deviceID", "note", "timestamp")
		default:
			ok = foreign(c, Space)
		}
		if !ok || class < last {
			return false
		}
		last = class
	}
	return uniqueIDs(root)
}

// uniqueIDs reports whether every id is an xs:ID and stands once.
func uniqueIDs(root *xmltree.Element) bool {
	var ids []string
	ok := true
	collectIDs(root, func(a *xmltree.Attr) {
		ok = ok && len(ids) < 256 && validID(a.Value) == a.Value && !slices.Contains(ids, a.Value)
		ids = append(ids, a.Value)
	})
	return ok
}

func hasID(e *xmltree.Element) bool {
	_, ok := e.Attr("id")
	return ok
}

// inOrder reports whether the children of e come in the order of names, where
// "" stands for extensions. Only notes and extensions may be repeated.
func inOrder(e *xmltree.Element, space string, names ...string) bool {
	at := 0
	seen := make([]bool, len(names))
	for c := range e.Elements() {
		name := ""
		if c.Space == space {
			name = c.Local
		} else if !foreign(c, space) {
			return false
		}
		i := slices.Index(names, name)
		if i < at || seen[i] && name != "" && name != "note" || name == "timestamp" && timestampInvalid(c) {
			return false
		}
		at, seen[i] = i, true
	}
	for _, must := range [...]string{"status", "deviceID"} {
		if i := slices.Index(names, must); i >= 0 && !seen[i] {
			return false
		}
	}
	return true
}

func timestampInvalid(t *xmltree.Element) bool {
	c := &xmltree.Element{Space: t.Space, Local: t.Local, Children: slices.Clone(t.Children)}
	return timestamp(c) == nil
}

// statusConforms looks into the status of a tuple: something in it, and basic
// only once and either open or closed.
func statusConforms(t *xmltree.Element) bool {
	for s := range t.Elements() {
		if !s.Is(Space, "status") {
			continue
		}
		n, basics := 0, 0
		for c := range s.Elements() {
			n++
			if c.Is(Space, "basic") {
				basics++
				if v := c.Content(); v != "open" && v != "closed" {
					return false
				}
			} else if !foreign(c, Space) {
				return false
			}
		}
		return n > 0 && basics <= 1
	}
	return false
}
