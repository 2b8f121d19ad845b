package list

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"testing"
)

// canon is a small stand-in for the canonicalization of RFC 4826 section 5.
func canon(uri string) (string, error) {
	scheme, rest, _ := strings.Cut(uri, ":")
	user, host, ok := strings.Cut(rest, "@")
	if !ok || user == "" || host == "" {
		return "", errors.New("no user or host")
	}
	if strings.EqualFold(scheme, "pres") || strings.EqualFold(scheme, "sips") {
		scheme = "sip"
	}
	return strings.ToLower(scheme) + ":" + user + "@" + strings.ToLower(host), nil
}

// store is a set of documents by selector. It counts what was asked for.
type store struct {
	docs  map[string]string
	asked map[string]int
}

func (s *store) Document(ctx context.Context, selector string) ([]byte, string, error) {
	if err := ctx.Err(); err != nil {
		return nil, "", err
	}
	if s.asked == nil {
		s.asked = make(map[string]int)
	}
	s.asked[selector]++
	body, ok := s.docs[selector]
	switch {
	case !ok:
		return nil, "", fmt.Errorf("%s: %w", selector, fs.ErrNotExist)
	case body == "timeout":
		return nil, "", errors.New("source does not answer")
	}
	return []byte(body), "etag", nil
}

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const (
	index    = "rls-services/global/index"
	own      = "http://xcap.example.com"
	rlsOpen  = `<rls-services xmlns="urn:ietf:params:xml:ns:rls-services" xmlns:rl="urn:ietf:params:xml:ns:resource-lists">`
	rlsClose = `</rls-services>`
	rlOpen   = `<resource-lists xmlns="urn:ietf:params:xml:ns:resource-lists">`
	rlClose  = `</resource-lists>`
)

// expander serves the services of an index document and the other documents.
func expander(t testing.TB, services string, docs map[string]string) (*Expander, *store) {
	t.Helper()
	parsed, _, err := ParseServices(index, "v1", []byte(services), canon)
	if err != nil {
		t.Fatal(err)
	}
	byKey := make(map[string]*Service, len(parsed))
	for i := range parsed {
		byKey[parsed[i].Key] = &parsed[i]
	}
	s := &store{docs: docs}
	return &Expander{
		Docs: s, Normalize: canon, Roots: []string{own, "http://127.0.0.1:8080/xcap-root/"},
		Services: func(_ context.Context, key string) (*Service, error) {
			if svc, ok := byKey[key]; ok {
				return svc, nil
			}
			return nil, ErrNotService
		},
	}, s
}

// uris shows a tree as "a b(c d)".
func uris(t *Tree) string {
	var b strings.Builder
	for i, n := range t.Nodes {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(strings.TrimSuffix(strings.TrimPrefix(n.Key, "sip:"), "@example.com"))
		if n.List != nil {
			b.WriteString("(" + uris(n.List) + ")")
		}
	}
	return b.String()
}

// kinds shows the problems of a tree and its nested lists.
func kinds(t *Tree) string {
	var out []string
	for _, p := range t.Problems {
		out = append(out, p.Kind)
	}
	for _, n := range t.Nodes {
		if n.List != nil {
			if k := kinds(n.List); k != "" {
				out = append(out, "("+k+")")
			}
		}
	}
	return strings.Join(out, " ")
}

// inline makes a service document of inline lists: "friends: a b team" per line.
func inline(lines ...string) string {
	var b strings.Builder
	b.WriteString(rlsOpen)
	for _, l := range lines {
		name, members, _ := strings.Cut(l, ":")
		fmt.Fprintf(&b, `<service uri="sip:%s@example.com"><list>`, name)
		for _, m := range strings.Fields(members) {
			fmt.Fprintf(&b, `<rl:entry uri="sip:%s@example.com"/>`, m)
		}
		b.WriteString(`</list></service>`)
	}
	return b.String() + rlsClose
}

func TestParseServices(t *testing.T) {
	services, problems, err := ParseServices(index, "v1", []byte(read(t, "rfc4826-s4.3-2-rls-services.xml")), canon)
	if err != nil || len(problems) != 0 || len(services) != 2 {
		t.Fatalf("%+v, %+v, %v", services, problems, err)
	}
	buddies, marketing := services[0], services[1]
	if buddies.Inline != nil || buddies.Ref != "http://xcap.example.com/resource-lists/users/sip:joe@example.com/index/~~/resource-lists/list%5b@name=%22l1%22%5d" {
		t.Errorf("LS-03 folded resource-list: %q", buddies.Ref)
	}
	if marketing.Inline == nil || marketing.Ref != "" || !reflect.DeepEqual(marketing.Packages, []string{"presence"}) {
		t.Errorf("LS-03 inline list: %+v", marketing)
	}
	if marketing.URI != "sip:marketing@example.com" || marketing.Key != marketing.URI || marketing.Document != index ||
		marketing.ETag != "v1" || marketing.Path != "rls-services/service[2]" {
		t.Errorf("%+v", marketing)
	}

	services, problems, err = ParseServices(index, "", []byte(read(t, "rfc4825-s13-4-rls-services.xml")), canon)
	if err != nil || len(problems) != 0 || len(services) != 1 ||
		services[0].Ref != "http://xcap.example.com/resource-lists/users/sip:bill@example.com/index/~~/resource-lists/list%5b@name=%22friends%22%5d" {
		t.Errorf("RFC 4825 section 13: %+v, %v, %v", services, problems, err)
	}
}

func TestParseServicesVariants(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     string // keys, packages, members
		problems string
	}{
		{"LS-03 all in rls-services", `<rls-services xmlns="urn:ietf:params:xml:ns:rls-services"><service uri="sip:l@example.com"><list><entry uri="sip:a@example.com"/></list><packages><package>presence</package></packages></service></rls-services>`, "sip:l@example.com [presence] a", ""},
		{"LS-03 list in resource-lists", rlsOpen + `<service uri="sip:l@example.com"><list xmlns="urn:ietf:params:xml:ns:resource-lists"><entry uri="sip:a@example.com"/></list><rl:packages><package> dialog </package><rl:package>presence</rl:package><package>dialog</package><package/></rl:packages></service>` + rlsClose, "sip:l@example.com [dialog presence] a", ""},
		{"LS-03 all in resource-lists", `<rls-services xmlns="urn:ietf:params:xml:ns:resource-lists"><service uri="sip:l@example.com"><list><entry uri="sip:a@example.com"/></list></service></rls-services>`, "sip:l@example.com any a", ""},
		{"XC-07 fragment", `<service uri="sip:l@example.com"><list><rl:entry uri="sip:a@example.com"/></list></service>`, "sip:l@example.com any a", ""},
		{"RFC 4826 section 4.4.8 without namespaces", `<rls-services><service uri="sip:l@example.com"><list name="m"><rl:entry uri="sip:a@example.com"/></list></service></rls-services>`, "sip:l@example.com any a", ""},
		{"foreign namespace", rlsOpen + `<service uri="sip:l@example.com"><list><entry xmlns="urn:x" uri="sip:b@example.com"/><entry xmlns="" uri="sip:c@example.com"/><rl:entry uri="sip:a@example.com"/></list><x xmlns="urn:x"/></service><service xmlns="urn:x" uri="sip:m@example.com"/>` + rlsClose, "sip:l@example.com any a", ""},
		{"LS-07 no package allowed", rlsOpen + `<service uri="sip:l@example.com"><list/><packages/></service>` + rlsClose, "sip:l@example.com [] ", ""},
		{"LS-10 canonical uri", rlsOpen + "<service uri=\"\n sip:l@EXAMPLE.com \"><list/></service>" + rlsClose, "sip:l@example.com any ", ""},
		{"LS-04 defined twice", rlsOpen + `<service uri="sip:l@example.com"><list/></service><service uri="pres:l@Example.COM"><list/></service>` + rlsClose, "sip:l@example.com any ", KindDuplicate},
		{"bad uris", rlsOpen + `<service><list/></service><service uri="tel:+1555"/><service uri="sip:l"/><service uri="sip:"/><service uri="x"/>` + rlsClose, "", "bad-uri bad-uri bad-uri bad-uri bad-uri"},
		{"no list", rlsOpen + `<service uri="sip:l@example.com"/>` + rlsClose, "sip:l@example.com any !", KindReference},
		{"empty", rlsOpen + rlsClose, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			services, problems, err := ParseServices(index, "v1", []byte(c.in), canon)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i := range services {
				s := &services[i]
				packages := "any"
				if s.Packages != nil {
					packages = fmt.Sprint(s.Packages)
				}
				tree, err := (&Expander{Normalize: canon}).ExpandService(context.Background(), s)
				members := "!"
				if err == nil {
					members = uris(tree)
				}
				got = append(got, s.Key+" "+packages+" "+members)
			}
			var ps []string
			for _, p := range problems {
				ps = append(ps, p.Kind)
				if !strings.HasPrefix(p.Source, index+" ~~ rls-services/service[") {
					t.Errorf("Source %q", p.Source)
				}
			}
			if strings.Join(got, "; ") != c.want || strings.Join(ps, " ") != c.problems {
				t.Errorf("got %q, %q", got, ps)
			}
		})
	}
}

func TestParseServicesErrors(t *testing.T) {
	for name, in := range map[string]string{
		"empty": "", "text": "hello", "cut": rlsOpen, "two roots": "<rls-services/><rls-services/>", "text after": "<rls-services/>x",
		"other root": rlOpen + rlClose, "foreign root": `<rls-services xmlns="urn:x"/>`,
		"DTD":    `<!DOCTYPE rls-services><rls-services/>`,
		"entity": `<rls-services>&a;</rls-services>`,
		"deep":   strings.Repeat("<rls-services>", 65) + strings.Repeat("</rls-services>", 65),
		"large":  "<rls-services>" + strings.Repeat(" ", MaxBytes) + "</rls-services>",
		"tags":   "<rls-services>" + strings.Repeat("<a/>", maxXMLTags) + "</rls-services>",
		"latin1": "<rls-services><a b='\xe9'/></rls-services>",
	} {
		if _, _, err := ParseServices(index, "", []byte(in), canon); !errors.Is(err, ErrNotWellFormed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAccepts(t *testing.T) {
	for _, c := range []struct {
		packages []string
		pkg      string
		want     bool
	}{
		{nil, "presence", true},
		{[]string{}, "presence", false},
		{[]string{"dialog", "presence"}, "Presence", true},
		{[]string{"presence"}, "presence.winfo", false},
	} {
		s, tree := Service{Packages: c.packages}, Tree{Packages: c.packages}
		if s.Accepts(c.pkg) != c.want || tree.Accepts(c.pkg) != c.want {
			t.Errorf("LS-07 %q accepts %q: not %v", c.packages, c.pkg, c.want)
		}
	}
}

func TestProblemsAreBounded(t *testing.T) {
	in := rlsOpen + strings.Repeat(`<service uri="tel:1"/>`, MaxProblems+10) + rlsClose
	_, problems, err := ParseServices(index, "", []byte(in), canon)
	if err != nil || len(problems) != MaxProblems || problems[MaxProblems-1].Kind != KindLimit {
		t.Errorf("%d problems, %v", len(problems), err)
	}
	in = rlsOpen + `<service uri="sip:l@example.com"><list>` + strings.Repeat(`<rl:entry uri="tel:1"/>`, MaxProblems+10) + `</list></service>` + rlsClose
	e, _ := expander(t, in, nil)
	tree, err := e.Expand(context.Background(), "sip:l@example.com")
	if err != nil || len(tree.Problems) != MaxProblems || tree.Problems[MaxProblems-1].Kind != KindLimit {
		t.Errorf("%v, %v", tree, err)
	}
}
