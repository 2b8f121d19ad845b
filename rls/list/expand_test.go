package list

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const (
	joeDoc  = "resource-lists/users/sip:joe@example.com/index"
	billDoc = "resource-lists/users/sip:bill@example.com/index"
	aDoc    = "resource-lists/users/sip:a@example.org/index"
)

func expand(t *testing.T, e *Expander, name string) *Tree {
	t.Helper()
	tree, err := e.Expand(context.Background(), "sip:"+name+"@example.com")
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// The documents of RFC 4826 sections 4.3 and 3.3 together.
func TestRFC4826(t *testing.T) {
	friends := strings.Replace(read(t, "rfc4826-s3.3-1-resource-lists.xml"), `name="friends"`, `name="l1"`, 1)
	e, docs := expander(t, read(t, "rfc4826-s4.3-2-rls-services.xml"), map[string]string{
		joeDoc:  friends,
		billDoc: rlOpen + `<list name="list1"><entry uri="sip:other@example.com"/><entry uri="sip:petri@example.com"><display-name xml:lang="fi">Petri</display-name></entry></list>` + rlClose,
		aDoc:    rlOpen + `<list name="mkting"><entry uri="pres:m@example.org"/><entry uri="sip:joe@example.com"/></list>` + rlClose,
	})
	e.Roots = append(e.Roots, "http://xcap.example.org")
	tree := expand(t, e, "mybuddies")
	const base = joeDoc + ` ~~ resource-lists/list[@name="l1"]`
	want := []Node{
		{URI: "sip:bill@example.com", Key: "sip:bill@example.com", Names: []Name{{"", "Bill Doe"}}, Source: base + "/entry[1]"},
		{
			URI: "sip:petri@example.com", Key: "sip:petri@example.com", Names: []Name{{"fi", "Petri"}},
			Source: base + `/entry-ref[1] -> ` + billDoc + ` ~~ resource-lists/list[@name="list1"]/entry[@uri="sip:petri@example.com"]`,
		},
		{URI: "sip:joe@example.com", Key: "sip:joe@example.com", Names: []Name{{"", "Joe Smith"}}, Source: base + `/list[@name="close-friends"]/entry[1]`},
		{URI: "sip:nancy@example.com", Key: "sip:nancy@example.com", Names: []Name{{"", "Nancy Gross"}}, Source: base + `/list[@name="close-friends"]/entry[2]`},
		{URI: "pres:m@example.org", Key: "sip:m@example.org", Source: aDoc + ` ~~ resource-lists/list[@name="mkting"]/entry[1]`},
	}
	if !reflect.DeepEqual(tree.Nodes, want) {
		t.Errorf("LS-11 LS-12 nodes\n%+v\nwant\n%+v", tree.Nodes, want)
	}
	if !reflect.DeepEqual(tree.Problems, []Problem{{aDoc + ` ~~ resource-lists/list[@name="mkting"]/entry[2]`, "sip:joe@example.com", KindDuplicate, "listed already"}}) {
		t.Errorf("LS-09 problems %+v", tree.Problems)
	}
	if !reflect.DeepEqual(tree.Documents, []string{index, joeDoc, billDoc, aDoc}) {
		t.Errorf("documents %q", tree.Documents)
	}
	if tree.URI != "sip:mybuddies@example.com" || tree.Members != 5 || tree.Document != index || tree.ETag != "v1" || !tree.Accepts("presence") || tree.Accepts("dialog") {
		t.Errorf("%+v", tree)
	}
	if !reflect.DeepEqual(docs.asked, map[string]int{joeDoc: 1, billDoc: 1, aDoc: 1}) {
		t.Errorf("each document once: %v", docs.asked)
	}

	tree = expand(t, e, "marketing")
	if uris(tree) != "joe sudhir" || tree.Nodes[1].Source != index+" ~~ rls-services/service[2]/list/entry[2]" {
		t.Errorf("LS-03 inline %+v", tree.Nodes)
	}
}

func TestExamplesAsLists(t *testing.T) {
	for name, want := range map[string]string{
		"rfc4825-s13-3-resource-lists.xml":  "",
		"rfc4825-s13-5-resource-lists.xml":  "bob",
		"rfc5362-s6.4-2-resource-lists.xml": "bill joe nancy",
		"rfc5364-s6-1-resource-lists.xml":   "bill randy@example.net eddy joe@example.org carol@example.net ted@example.net andy",
		"rfc5367-s4-1-resource-lists.xml":   "bill joe@example.org ted@example.net",
	} {
		e, _ := expander(t, rlsOpen+`<service uri="sip:l@example.com"><resource-list>http://xcap.example.com/resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list</resource-list></service>`+rlsClose,
			map[string]string{joeDoc: read(t, name)})
		if tree := expand(t, e, "l"); uris(tree) != want || len(tree.Problems) != 0 {
			t.Errorf("%s: %q, %v", name, uris(tree), tree.Problems)
		}
	}
}

func TestExpandInline(t *testing.T) {
	service := func(list string) string {
		return rlsOpen + `<service uri="sip:l@example.com"><list>` + list + `</list></service>` + rlsClose
	}
	for _, c := range []struct{ name, list, want, problems string }{
		{"empty list", "", "", ""},
		{"LS-11 flattened", `<rl:entry uri="sip:a@example.com"/><rl:list><rl:entry uri="sip:b@example.com"/><rl:list name="x"><entry uri="sip:c@example.com"/></rl:list></rl:list><rl:entry uri="sip:d@example.com"/>`, "a b c d", ""},
		{"RL-16 LS-09 same string", `<rl:entry uri="sip:a@example.com"/><rl:list><rl:entry uri="sip:a@example.com"/></rl:list>`, "a", "duplicate"},
		{"RL-16 same key", `<rl:entry uri="sip:a@example.com"/><rl:entry uri="pres:a@EXAMPLE.com"/><rl:entry uri="SIPS:a@example.com"/>`, "a", "duplicate duplicate"},
		{"LS-09 schemes", `<rl:entry uri="tel:+15551234"/><rl:entry uri="mailto:a@example.com"/><rl:entry uri="im:a@example.com"/><rl:entry uri="pres:a@example.com"/><rl:entry uri="sips:b@example.com"/>`, "a b", "bad-uri bad-uri bad-uri"},
		{"bad entries", `<rl:entry/><rl:entry uri=""/><rl:entry uri="sip:"/><rl:entry uri="sip:nobody"/><rl:entry uri="sip:a@example.com"/>`, "a", "bad-uri bad-uri bad-uri bad-uri"},
		{"folded uri", "<rl:entry uri=\"sip:a@\n   example.com\"/>", "a", ""},
		{"foreign elements", `<x xmlns="urn:x"><rl:entry uri="sip:x@example.com"/></x><rl:entry uri="sip:a@example.com"><y xmlns="urn:x"/></rl:entry>`, "a", ""},
		{"references nowhere", `<rl:entry-ref/><rl:external/><rl:entry-ref ref="http://other.example.org/x"/><rl:entry uri="sip:a@example.com"/>`, "a", "reference reference reference"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, docs := expander(t, service(c.list), nil)
			tree := expand(t, e, "l")
			if uris(tree) != c.want || kinds(tree) != c.problems {
				t.Errorf("%q, %+v", uris(tree), tree.Problems)
			}
			if len(docs.asked) != 0 {
				t.Errorf("asked for %v", docs.asked)
			}
		})
	}
}

func TestNames(t *testing.T) {
	e, _ := expander(t, rlsOpen+`<service uri="sip:l@example.com"><list>
 <rl:display-name xml:lang="en">My
   Friends</rl:display-name>
 <rl:entry uri="sip:a@example.com"><rl:display-name xml:lang="no such lang">A &amp; B</rl:display-name><rl:display-name/><rl:display-name xml:lang="el">Άλφα</rl:display-name></rl:entry>
 <rl:entry-ref ref="resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list/entry%5b1%5d"><rl:display-name>Boss</rl:display-name></rl:entry-ref>
 <rl:entry uri="sip:team@example.com"/>
</list></service><service uri="sip:team@example.com"><list><display-name>Team</display-name></list></service>`+rlsClose,
		map[string]string{joeDoc: rlOpen + `<list><entry uri="sip:b@example.com"><display-name>Bea</display-name></entry></list>` + rlClose})
	tree := expand(t, e, "l")
	got := [][]Name{tree.Names}
	for _, n := range tree.Nodes {
		got = append(got, n.Names)
	}
	want := [][]Name{{{"en", "My Friends"}}, {{"", "A & B"}, {"el", "Άλφα"}}, {{"", "Boss"}}, {{"", "Team"}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("LS-12 names %+v", got)
	}
	if s := cut("ab€", 4); s != "ab" {
		t.Errorf("cut: %q", s)
	}
}

func TestNestedServices(t *testing.T) {
	for _, c := range []struct {
		name     string
		services []string
		want     string
		problems string
		members  int
	}{
		{"RL-19 nested", []string{"l: a team b", "team: c a"}, "a team(c a) b", "", 5},
		{"RL-34 names itself", []string{"l: a l b"}, "a b", "loop", 2},
		{"RL-34 loop of two", []string{"l: a m", "m: b l c"}, "a m(b c)", "(loop)", 4},
		{"RL-34 loop of three", []string{"l: m", "m: n", "n: l m x"}, "m(n(x))", "((loop loop))", 3},
		{"loop below the top", []string{"l: m", "m: n a", "n: m b"}, "m(n(b) a)", "((loop))", 4},
		{"diamond", []string{"l: m n", "m: d", "n: d", "d: a b"}, "m(d(a b)) n(d(a b))", "", 8},
		{"same list twice", []string{"l: m m", "m: a"}, "m(a)", "duplicate", 2},
		{"empty nested", []string{"l: m", "m:"}, "m()", "", 1},
		{
			"depth",
			[]string{"l: b0", "b0: b1", "b1: b2", "b2: b3", "b3: b4", "b4: b5", "b5: b6", "b6: b7", "b7: b8 a", "b8: z"},
			"b0(b1(b2(b3(b4(b5(b6(b7(a))))))))", "((((((((depth))))))))", 9,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, _ := expander(t, inline(c.services...), nil)
			tree := expand(t, e, "l")
			if uris(tree) != c.want || kinds(tree) != c.problems || tree.Members != c.members {
				t.Errorf("%q, problems %q, %d members", uris(tree), kinds(tree), tree.Members)
			}
		})
	}
	e, _ := expander(t, inline("l: m a", "m: b"), nil)
	e.MaxDepth = -1
	if tree := expand(t, e, "l"); uris(tree) != "a" || kinds(tree) != "depth" {
		t.Errorf("MaxDepth < 0: %q %q", uris(tree), kinds(tree))
	}
}

func TestExternalAndRef(t *testing.T) {
	ext := func(anchor string) string { return `<external anchor="` + anchor + `"/>` }
	const docURI = own + "/resource-lists/users/sip:joe@example.com/index/~~/resource-lists/"
	list := func(name string) string { return docURI + "list%5b@name=%22" + name + "%22%5d" }
	top := rlsOpen + `<service uri="sip:l@example.com"><resource-list>` + list("top") + `</resource-list></service>` + rlsClose
	entry := func(u string) string { return `<entry uri="sip:` + u + `@example.com"/>` }
	for _, c := range []struct{ name, doc, want, problems string }{
		{"LS-08 loop to itself", `<list name="top">` + entry("a") + ext(list("top")) + entry("b") + `</list>`, "a b", "loop"},
		{"LS-08 loop of two, spelled otherwise", `<list name="top">` + entry("a") + ext(list("x")) + `</list><list name="x">` + entry("b") + ext(docURI+"*%5b1%5d") + entry("c") + `</list>`, "a b c", "loop"},
		{"loop to the list around", `<list name="top"><list name="in">` + ext(list("top")) + entry("a") + `</list></list>`, "a", "loop"},
		{"diamond", `<list name="top">` + ext(list("x")) + ext(list("y")) + `</list><list name="x">` + entry("a") + ext(list("d")) + `</list><list name="y">` + ext(list("d")) + entry("b") + `</list><list name="d">` + entry("d") + `</list>`, "a d b", "duplicate"},
		{"own inner list again", `<list name="top"><list name="in">` + entry("a") + `</list>` + ext(list("top")+"/list%5b@name=%22in%22%5d") + `</list>`, "a", "duplicate"},
		{"inner list before its place", `<list name="top">` + ext(list("top")+"/list%5b@name=%22in%22%5d") + `<list name="in">` + entry("a") + `</list></list>`, "a", "duplicate"},
		{"not a list", `<list name="top">` + ext(docURI+"list/entry%5b1%5d") + entry("a") + `</list>`, "a", "reference"},
		{"several match", `<list name="top">` + ext(docURI+"list") + entry("a") + `</list><list/>`, "a", "reference"},
		{"no match", `<list name="top">` + ext(list("none")) + entry("a") + `</list>`, "a", "reference"},
		{"an attribute", `<list name="top">` + ext(docURI+"list/@name") + entry("a") + `</list>`, "a", "reference"},
		{"a whole document", `<list name="top">` + ext(own+"/resource-lists/users/sip:joe@example.com/index") + entry("a") + `</list>`, "a", "reference"},
		{"other usage", `<list name="top">` + ext(own+"/pres-rules/users/sip:joe@example.com/index/~~/ruleset") + entry("a") + `</list>`, "a", "reference"},
		{"no document", `<list name="top">` + ext(own+"/resource-lists/users/sip:none@example.com/index/~~/resource-lists/list") + entry("a") + `</list>`, "a", "reference"},
		{"no answer", `<list name="top">` + ext(own+"/resource-lists/users/sip:slow@example.com/index/~~/resource-lists/list") + entry("a") + `</list>`, "a", "reference"},
		{"bad document", `<list name="top">` + ext(own+"/resource-lists/users/sip:bad@example.com/index/~~/resource-lists/list") + entry("a") + `</list>`, "a", "not-wellformed"},
		{"foreign host", `<list name="top">` + ext("http://evil.example.org/resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list%5b1%5d") + entry("a") + `</list>`, "a", "reference"},
		{"out of the tree", `<list name="top">` + ext(own+"/resource-lists/users/../../../etc/passwd/~~/x") + entry("a") + `</list>`, "a", "reference"},
		{"LS-02 entry-ref", `<list name="top"><entry-ref ref="resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list%5b2%5d/entry%5b@uri=%22sip:b@example.com%22%5d"/>` + entry("a") + `</list><list>` + entry("b") + `</list>`, "b a", ""},
		{"LS-08 entry-ref to a list", `<list name="top"><entry-ref ref="resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list%5b2%5d"/>` + entry("a") + `</list><list/>`, "a", "reference"},
		{"LS-08 entry-ref to nothing", `<list name="top"><entry-ref ref="resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list/entry%5b9%5d"/>` + entry("a") + `</list>`, "a", "reference"},
		{"entry-ref to a bad uri", `<list name="top"><entry-ref ref="resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list%5b2%5d/entry"/>` + entry("a") + `</list><list><entry uri="tel:1"/></list>`, "a", "bad-uri"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, docs := expander(t, top, map[string]string{
				joeDoc: rlOpen + c.doc + rlClose,
				"resource-lists/users/sip:bad@example.com/index":  "<resource-lists>",
				"resource-lists/users/sip:slow@example.com/index": "timeout",
				"pres-rules/users/sip:joe@example.com/index":      "<ruleset/>",
			})
			tree := expand(t, e, "l")
			if uris(tree) != c.want || kinds(tree) != c.problems {
				t.Errorf("%q, %+v", uris(tree), tree.Problems)
			}
			for selector := range docs.asked {
				if !strings.HasPrefix(selector, "resource-lists/users/sip:") || !slices.Contains(tree.Documents, selector) {
					t.Errorf("asked for %q, documents %q", selector, tree.Documents)
				}
			}
		})
	}
}

func TestExternalDepth(t *testing.T) {
	var doc strings.Builder
	doc.WriteString(rlOpen)
	for i := range 12 {
		fmt.Fprintf(&doc, `<list><entry uri="sip:u%d@example.com"/><external anchor="%s/resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list%%5b%d%%5d"/></list>`, i, own, i+2)
	}
	e, _ := expander(t, rlsOpen+`<service uri="sip:l@example.com"><resource-list>`+own+`/resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list%5b1%5d</resource-list></service>`+rlsClose,
		map[string]string{joeDoc: doc.String() + rlClose})
	if tree := expand(t, e, "l"); uris(tree) != "u0 u1 u2 u3 u4 u5 u6 u7 u8" || kinds(tree) != "depth" {
		t.Errorf("%q %q", uris(tree), kinds(tree))
	}
}

func TestRootsAndEncodings(t *testing.T) {
	doc := rlOpen + `<list name="my friends"><entry uri="sip:a@example.com"/></list>` + rlClose
	for _, ref := range []string{
		`http://xcap.example.com/resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list%5b@name=%22my%20friends%22%5d`,
		`http://XCAP.example.com:80/resource-lists/users/sip%3ajoe%40example.com/index/~~/resource-lists/list%5B@name=%22my%20friends%22%5D`,
		`HTTP://127.0.0.1:8080/xcap-root/resource-lists/users/sip:joe@example.com/index/%7E%7E/resource-lists/list`,
		`http://127.0.0.1:8080/%78cap-root/resource-lists/users/sip%3Ajoe@example.com/%69ndex/~~/*/*`,
		`/resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list%5b1%5d`,
		`/xcap-root/resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list%5b1%5d`,
		`resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list[@name='my friends']`,
		`http://xcap.example.com/resource-lists/users/sip:joe@example.com/index/~~/r:resource-lists/r:list?xmlns(r=urn:ietf:params:xml:ns:resource-lists)`,
		"\n http://xcap.example.com/resource-lists/users/sip:joe@exam\n   ple.com/index/~~/\n resource-lists/list%5b@name=%22my fri\n ends%22%5d\n",
	} {
		in := rlsOpen + `<service uri="sip:l@example.com"><resource-list>` + ref + `</resource-list></service>` + rlsClose
		e, _ := expander(t, in, map[string]string{joeDoc: doc})
		tree, err := e.Expand(context.Background(), "sip:l@example.com")
		if err != nil || uris(tree) != "a" || !slices.Equal(tree.Documents, []string{index, joeDoc}) {
			t.Errorf("LS-13 XC-01 %q: %v", ref, err)
		}
	}
}

func TestTopErrors(t *testing.T) {
	const doc = "/resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list"
	for _, c := range []struct {
		name, ref, kind string
		documents       []string
	}{
		{"no document", own + "/resource-lists/users/sip:none@example.com/index/~~/resource-lists/list", KindReference, []string{index, "resource-lists/users/sip:none@example.com/index"}},
		{"no list", own + doc + "%5b2%5d", KindReference, []string{index, joeDoc}},
		{"an entry", own + doc + "/entry", KindReference, []string{index, joeDoc}},
		{"foreign", "https://xcap.example.com" + doc, KindReference, []string{index}},
		{"foreign port", "http://xcap.example.com:8080" + doc, KindReference, []string{index}},
		{"foreign by user part", "http://xcap.example.com@evil.example.org" + doc, KindReference, []string{index}},
		{"file", "file:///etc/passwd", KindReference, []string{index}},
		{"no answer", own + "/resource-lists/users/sip:slow@example.com/index/~~/resource-lists/list", KindReference, []string{index, "resource-lists/users/sip:slow@example.com/index"}},
		{"bad document", own + "/resource-lists/users/sip:bad@example.com/index/~~/resource-lists/list", KindNotWellFormed, []string{index, "resource-lists/users/sip:bad@example.com/index"}},
		{"empty", "", KindReference, []string{index}},
	} {
		t.Run("LS-08 "+c.name, func(t *testing.T) {
			e, _ := expander(t, rlsOpen+`<service uri="sip:l@example.com"><resource-list>`+c.ref+`</resource-list></service>`+
				`<service uri="sip:outer@example.com"><list><rl:entry uri="sip:l@example.com"/><rl:entry uri="sip:a@example.com"/></list></service>`+rlsClose,
				map[string]string{
					joeDoc: rlOpen + `<list><entry uri="sip:a@example.com"/></list>` + rlClose,
					"resource-lists/users/sip:bad@example.com/index":  "<",
					"resource-lists/users/sip:slow@example.com/index": "timeout",
				})
			tree, err := e.Expand(context.Background(), "sip:l@example.com")
			if !errors.Is(err, ErrReference) || tree == nil || tree.Err == nil || len(tree.Nodes) != 0 {
				t.Fatalf("%+v, %v", tree, err)
			}
			if kinds(tree) != c.kind || !slices.Equal(tree.Documents, c.documents) {
				t.Errorf("%+v", tree)
			}
			// Within another list it is listed empty, and tells so.
			outer := expand(t, e, "outer")
			if uris(outer) != "l() a" || !errors.Is(outer.Nodes[0].List.Err, ErrReference) || !slices.Equal(outer.Documents, c.documents) {
				t.Errorf("nested: %+v", outer)
			}
		})
	}
	e, _ := expander(t, inline("l: a"), nil)
	if tree, err := e.Expand(context.Background(), "sip:other@example.com"); !errors.Is(err, ErrNotService) || tree != nil {
		t.Errorf("%v, %v", tree, err)
	}
	if _, err := new(Expander).Expand(context.Background(), "sip:l@example.com"); !errors.Is(err, ErrNotService) {
		t.Error(err)
	}
	e.Services = func(context.Context, string) (*Service, error) { return nil, errors.New("index gone") }
	if _, err := e.Expand(context.Background(), "sip:l@example.com"); err == nil || errors.Is(err, ErrNotService) {
		t.Error(err)
	}
}

func TestServicesFailForMember(t *testing.T) {
	e, _ := expander(t, inline("l: a b"), nil)
	find := e.Services
	e.Services = func(ctx context.Context, key string) (*Service, error) {
		if key == "sip:a@example.com" {
			return nil, errors.New("index gone")
		}
		if key == "sip:b@example.com" {
			return nil, nil
		}
		return find(ctx, key)
	}
	if tree := expand(t, e, "l"); uris(tree) != "a b" || kinds(tree) != KindReference {
		t.Errorf("%q %+v", uris(tree), tree.Problems)
	}
}

func TestPermit(t *testing.T) {
	const ref = "/resource-lists/users/sip:bill@example.com/index/~~/resource-lists/list"
	e, docs := expander(t, rlsOpen+`<service uri="sip:l@example.com"><resource-list>`+own+ref+`</resource-list></service>`+
		`<service uri="sip:m@example.com"><list><rl:external anchor="`+own+ref+`"/><rl:entry uri="sip:a@example.com"/></list></service>`+rlsClose,
		map[string]string{billDoc: rlOpen + "<list/>" + rlClose})
	e.Permit = func(from, to string) bool {
		if from != index || to != billDoc {
			t.Errorf("Permit(%q, %q)", from, to)
		}
		return false
	}
	if _, err := e.Expand(context.Background(), "sip:l@example.com"); !errors.Is(err, ErrReference) {
		t.Error(err)
	}
	if tree := expand(t, e, "m"); uris(tree) != "a" || kinds(tree) != KindReference || len(docs.asked) != 0 {
		t.Errorf("%q, %v", uris(tree), docs.asked)
	}
}

func TestLimits(t *testing.T) {
	e, _ := expander(t, inline("l: a team b c d", "team: x y"), nil)
	for max, want := range map[int]string{1: "a", 2: "a team()", 3: "a team(x)", 4: "a team(x y)", 5: "a team(x y) b"} {
		e.MaxMembers = max
		tree := expand(t, e, "l")
		if uris(tree) != want || tree.Members != max || strings.Trim(kinds(tree), "()") != KindLimit {
			t.Errorf("%d: %q, %q", max, uris(tree), kinds(tree))
		}
	}
	e.MaxMembers = 7
	if tree := expand(t, e, "l"); kinds(tree) != "" || tree.Members != 7 {
		t.Errorf("%q, %+v", uris(tree), tree.Problems)
	}

	// Every list holds every other: without a limit this would not end.
	var lines []string
	for i := range 40 {
		line := fmt.Sprintf("s%d:", i)
		for j := range 40 {
			line += fmt.Sprintf(" s%d", j)
		}
		lines = append(lines, line)
	}
	e, _ = expander(t, inline(lines...), nil)
	tree := expand(t, e, "s0")
	if tree.Members != defaultMembers || count(tree) != defaultMembers {
		t.Errorf("%d members", tree.Members)
	}
}

func count(t *Tree) int {
	n := len(t.Nodes)
	for _, c := range t.Nodes {
		if c.List != nil {
			n += count(c.List)
		}
	}
	return n
}

// Large foreign content under many nested services costs work, not members.
func TestWorkLimit(t *testing.T) {
	var b strings.Builder
	b.WriteString(rlsOpen + `<service uri="sip:l@example.com"><list>`)
	for i := range 2000 {
		fmt.Fprintf(&b, `<rl:entry uri="sip:s%d@example.com"/>`, i)
	}
	b.WriteString(`</list></service>`)
	for i := range 2000 {
		fmt.Fprintf(&b, `<service uri="sip:s%d@example.com"><resource-list>%s/resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list</resource-list></service>`, i, own)
	}
	e, docs := expander(t, b.String()+rlsClose, map[string]string{joeDoc: rlOpen + "<list>" + strings.Repeat("<x/>", 200000) + "</list>" + rlClose})
	tree := expand(t, e, "l")
	if !strings.Contains(kinds(tree), KindLimit) || docs.asked[joeDoc] != 1 {
		t.Errorf("%d members, %.100q", tree.Members, kinds(tree))
	}
}

func TestDocumentLimit(t *testing.T) {
	var b strings.Builder
	b.WriteString(rlsOpen + `<service uri="sip:l@example.com"><list>`)
	for i := range 2 * maxDocuments {
		fmt.Fprintf(&b, `<rl:entry-ref ref="resource-lists/users/sip:u%d@example.com/index/~~/resource-lists/list/entry"/>`, i)
	}
	e, docs := expander(t, b.String()+`</list></service>`+rlsClose, nil)
	tree := expand(t, e, "l")
	if len(docs.asked) != maxDocuments || len(tree.Documents) != 2*maxDocuments+1 {
		t.Errorf("%d documents asked for, %d noted", len(docs.asked), len(tree.Documents))
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	e, _ := expander(t, rlsOpen+`<service uri="sip:l@example.com"><list><rl:external anchor="`+own+`/resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list"/></list></service>`+rlsClose, nil)
	cancel()
	if tree, err := e.Expand(ctx, "sip:l@example.com"); !errors.Is(err, context.Canceled) || tree != nil {
		t.Errorf("%v, %v", tree, err)
	}
}

func TestTreeIsIndependent(t *testing.T) {
	e, _ := expander(t, inline("l: a b", "m: c l"), nil)
	one, two := expand(t, e, "l"), expand(t, e, "l")
	if !reflect.DeepEqual(one, two) || &one.Nodes[0] == &two.Nodes[0] {
		t.Error("two expansions differ or share")
	}
}
