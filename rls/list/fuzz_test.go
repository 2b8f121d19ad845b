package list

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
)

// FuzzExpand reads two documents from the fuzzer. Whatever they say, members
// and problems stay within their bounds, nobody is listed twice, and no list
// is part of itself.
func FuzzExpand(f *testing.F) {
	f.Add(read(f, "rfc4826-s4.3-2-rls-services.xml"), strings.ReplaceAll(read(f, "rfc4826-s3.3-1-resource-lists.xml"), "friends", "l1"))
	f.Add(inline("a: b c a", "b: c d", "c: a e", "e: a b c d e f"), "")
	f.Add(rlsOpen+`<service uri="sip:a@example.com"><resource-list>/resource-lists/users/u/d/~~/*/list</resource-list></service>`+rlsClose,
		rlOpen+`<list><list name="x"><entry uri="sip:a@example.com"/><external anchor="/resource-lists/users/u/d/~~/*/list"/></list><external anchor="resource-lists/users/u/e/~~/*/*/list[@name='x']"/><entry-ref ref="resource-lists/users/u/e/~~/*/*/*/entry[1]"/></list>`+rlClose)
	f.Fuzz(func(t *testing.T, services, lists string) {
		parsed, problems, err := ParseServices(index, "", []byte(services), canon)
		if err != nil && len(parsed) > 0 || len(problems) > MaxProblems {
			t.Fatalf("%d services, %d problems, %v", len(parsed), len(problems), err)
		}
		byKey := make(map[string]*Service)
		for i := range parsed {
			if byKey[parsed[i].Key] != nil {
				t.Fatalf("service %q twice", parsed[i].Key)
			}
			byKey[parsed[i].Key] = &parsed[i]
		}
		const maxMembers = 100
		e := &Expander{
			Docs: anyDocument(lists), Normalize: canon, Roots: []string{"http://xcap.example.com", "http://xcap.example.org"}, MaxMembers: maxMembers,
			Services: func(_ context.Context, key string) (*Service, error) { return byKey[key], nil },
		}
		for i := range parsed {
			if i == 4 {
				break
			}
			tree, err := e.Expand(context.Background(), parsed[i].Key)
			if err != nil && !errors.Is(err, ErrReference) || tree == nil {
				t.Fatal(err)
			}
			if tree.Members > maxMembers || count(tree) != tree.Members {
				t.Fatalf("%d members, %d counted", tree.Members, count(tree))
			}
			if n := check(t, tree, nil); n > MaxProblems {
				t.Fatalf("%d problems", n)
			}
		}
	})
}

// check returns the number of problems.
func check(t *testing.T, tree *Tree, path []string) int {
	for _, p := range path {
		if p == tree.Key {
			t.Fatalf("%q within itself", p)
		}
	}
	if len(path) > defaultDepth {
		t.Fatalf("%d lists deep", len(path))
	}
	path = append(path, tree.Key)
	seen := make(map[string]bool)
	problems := len(tree.Problems)
	for _, n := range tree.Nodes {
		if seen[n.Key] {
			t.Fatalf("%q listed twice", n.Key)
		}
		seen[n.Key] = true
		if k, err := canon(n.URI); err != nil || k != n.Key || n.Source == "" {
			t.Fatalf("node %+v", n)
		}
		if n.List != nil {
			problems += check(t, n.List, path)
		}
	}
	return problems
}

// anyDocument is every document of user trees, and nothing else.
type anyDocument string

func (d anyDocument) Document(_ context.Context, selector string) ([]byte, string, error) {
	if strings.HasPrefix(selector, "resource-lists/users/") {
		return []byte(d), "", nil
	}
	return nil, "", fs.ErrNotExist
}

// FuzzReference: an accepted reference names a document within its tree, reads
// the same when written again, and selects at most one element, whose name is
// that of the last step.
func FuzzReference(f *testing.F) {
	const d = "resource-lists/users/sip:joe@example.com/index"
	for _, s := range []string{
		"http://xcap.example.com/" + d + "/~~/resource-lists/list%5b@name=%22a%22%5d/entry[2][@uri='x']",
		d + "/~~/*/p:list[1]?xmlns(p=urn:ietf:params:xml:ns:resource-lists)", d + "/~~/a/@b", d + "/~~/a/namespace::*", "a/global/b%2f%25", "/../x", "%7e%7e",
	} {
		f.Add(s)
	}
	root, _, err := parseXML([]byte(rlOpen+`<list name="a"><entry uri="x"/><entry uri="x"/></list><list/>`+rlClose), "")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		ref, err := ParseReference(uri, []string{"http://xcap.example.com"})
		if err != nil {
			return
		}
		segments := strings.Split(ref.Document, "/")
		if len(segments) < 3 {
			t.Fatalf("%q", ref.Document)
		}
		for _, s := range segments {
			if s == "" || s == "." || s == ".." || strings.ContainsAny(s, "\x00\\") {
				t.Fatalf("%q", ref.Document)
			}
		}
		again, err := ParseReference(strings.NewReplacer("?", "%3f", "#", "%23", " ", "%20", "\t", "%09", "\r", "%0d", "\n", "%0a", "://", ":%2f/").Replace(ref.Document), nil)
		if err == nil && again.Document != ref.Document && !strings.Contains(ref.Document, "://") {
			t.Fatalf("%q read again as %q", ref.Document, again.Document)
		}
		if ref.Node == nil {
			return
		}
		e, n, err := ref.Node.selectCounted(root)
		if (e == nil) != (err != nil) || n > 6 {
			t.Fatalf("%v, %d, %v", e, n, err)
		}
		if e != nil {
			last := &ref.Node.steps[len(ref.Node.steps)-1]
			if !last.any && e.name != last.name || last.byAttr && len(e.attrs) == 0 {
				t.Fatalf("%+v selects %+v", last, e)
			}
		}
	})
}
