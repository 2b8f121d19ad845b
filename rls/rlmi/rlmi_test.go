package rlmi

import (
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const pidf = "application/pidf+xml"

// friends has every form of member: active, unknown, pending, terminated and
// an inner list.
func friends() *List {
	return &List{
		URI: "sip:friends@example.com", Version: 7, FullState: true, CID: "all@example.com",
		Names: []Name{{"en", "Friends"}, {"de", "Freunde & <Familie>"}},
		Resources: []Resource{
			{URI: "sip:bob@example.com", Names: []Name{{"", "Bob \"B\" Smith"}}, Instances: []Instance{Active("1", "bob@example.com")}},
			{URI: "sip:carol@example.com?a=1&b=2"},
			{URI: "sip:dave@example.org", Instances: []Instance{Pending("x")}},
			{URI: "sip:eve@example.org", Names: []Name{{"fr", "Ève"}}, Instances: []Instance{Terminated("1", "rejected"), Terminated("2", "")}},
			{URI: "sip:team@example.com", Instances: []Instance{Active("n", "team@example.com")}},
		},
	}
}

func team() *List {
	return &List{
		URI: "sip:team@example.com", FullState: true,
		Resources: []Resource{{URI: "sip:zoe@example.com", Instances: []Instance{Active("1", "zoe@example.com")}}},
	}
}

func friendsParts() []Part {
	zoe := []Part{{"zoe@example.com", pidf, []byte("<presence/>")}}
	return []Part{
		{"all@example.com", "text/plain", nil},
		{"bob@example.com", pidf + ";charset=\"UTF-8\"", []byte("<presence>\r\n--b\r\n</presence>\r\n")},
		{"team@example.com", ContentType("inner1", "r2@example.com"), AppendMultipart(nil, "inner1", "r2@example.com", team(), zoe)},
	}
}

func TestAppendMultipart(t *testing.T) {
	l := &List{URI: "sip:friends@example.com", FullState: true, Names: []Name{{"en", "Friends"}}, Resources: []Resource{
		{URI: "sip:bob@example.com", Instances: []Instance{Active("1", "b@example.com")}},
		{URI: "sip:carol@example.com"},
	}}
	got := string(AppendMultipart(nil, "b7", "root@example.com", l, []Part{{"b@example.com", pidf, []byte("<presence/>")}}))
	want := strings.ReplaceAll(`--b7
Content-Transfer-Encoding: binary
Content-ID: <root@example.com>
Content-Type: application/rlmi+xml;charset="UTF-8"

`, "\n", "\r\n") + `<?xml version="1.0" encoding="UTF-8"?>
<list xmlns="urn:ietf:params:xml:ns:rlmi" uri="sip:friends@example.com" version="0" fullState="true">
<name xml:lang="en">Friends</name><resource uri="sip:bob@example.com"><instance id="1" state="active" cid="b@example.com"/></resource>
<resource uri="sip:carol@example.com"/>
</list>` + strings.ReplaceAll(`
--b7
Content-Transfer-Encoding: binary
Content-ID: <b@example.com>
Content-Type: application/pidf+xml

<presence/>
--b7--
`, "\n", "\r\n")
	if got != want {
		t.Errorf("RL-10 RL-11 body:\n%s\nwant:\n%s", got, want)
	}
	const ct = `multipart/related;type="application/rlmi+xml";start="<root@example.com>";boundary=b7`
	if got := ContentType("b7", "root@example.com"); got != ct {
		t.Errorf("RL-10 ContentType %s, want %s", got, ct)
	}
	n, err := Options{First: true}.Parse(ct, []byte(got))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(n.List, l) {
		t.Errorf("parsed %+v", n.List)
	}
}

func TestAppendOnlyAppends(t *testing.T) {
	prefix := []byte("kept")
	got := AppendMultipart(prefix, "b7", "r@example.com", friends(), nil)
	if !strings.HasPrefix(string(got), "kept--b7\r\n") {
		t.Errorf("got %.20q", got)
	}
}

func TestHeaderInjection(t *testing.T) {
	l := &List{URI: "sip:l@example.com"}
	got := string(AppendMultipart(nil, "b", "r@example.com", l, []Part{{"x@example.com\r\nX-A: 1", pidf + "\r\nX-B: 2\n", nil}}))
	if strings.Contains(got, "\nX-") {
		t.Errorf("a header field of its own:\n%s", got)
	}
}

func TestBoundaryOccurs(t *testing.T) {
	parts := friendsParts()
	for boundary, want := range map[string]bool{"b": true, "inner": true, "inner1": true, "inner12": false, "zzz": false} {
		if got := BoundaryOccurs(boundary, parts); got != want {
			t.Errorf("BoundaryOccurs(%q) = %v", boundary, got)
		}
	}
	// The list cannot hold a boundary, whatever its strings are.
	l := &List{URI: "sip:l@example.com\n--b\n", Names: []Name{{"", "x\n--b--\n"}}}
	n, err := Parse(ContentType("b", "r@example.com"), AppendMultipart(nil, "b", "r@example.com", l, nil))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(n.List, l) {
		t.Errorf("parsed %+v", n.List)
	}
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"plain":             "plain",
		"a&b<c>d\"e'":       "a&amp;b&lt;c&gt;d&quot;e'",
		"\t\r\n":            "&#9;&#13;&#10;",
		"\x00\x1f":          "\uFFFD\uFFFD",
		"é\u20ac\U0001F600": "é\u20ac\U0001F600",
		"bad\xff\xc3":       "bad\uFFFD\uFFFD",
		"\uFFFD":            "\uFFFD",
		"\uFFFE\uFFFF":      "\uFFFD\uFFFD",
		"\xed\xa0\x80":      "\uFFFD\uFFFD\uFFFD", // a surrogate
	} {
		if got := string(appendEscaped(nil, in)); got != want {
			t.Errorf("%q escaped to %q, want %q", in, got, want)
		}
	}
}

func TestSchema(t *testing.T) {
	xmllint, err := exec.LookPath("xmllint")
	if err != nil {
		t.Fatalf("this test needs xmllint (libxml2): %v", err)
	}
	lists := map[string]*List{
		"empty":    {URI: "sip:none@example.com", FullState: true},
		"partial":  {URI: "sip:l@example.com", Version: math.MaxUint32},
		"friends":  friends(),
		"team":     team(),
		"hostile":  {URI: "sip:<>&\"'\x00\xff@example.com", Names: []Name{{"en-GB", "]]>\n<\x01\uFFFF"}}, Resources: []Resource{{URI: "sip:%22@example.com", Names: []Name{{"", "\r"}}}}},
		"nonASCII": {URI: "sip:zoë@example.com", Names: []Name{{"el", "Φίλοι"}, {"ja", "友達"}}},
	}
	for name, l := range lists {
		t.Run("P48 "+name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "list.xml")
			if err := os.WriteFile(file, AppendList(nil, l), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(xmllint, "--nonet", "--noout", "--schema", "testdata/rlmi.xsd", file).CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s\n%s", err, out, AppendList(nil, l))
			}
		})
	}
}

func TestRoundTrip(t *testing.T) {
	l, parts := friends(), friendsParts()
	n, err := Parse(ContentType("outer", "r@example.com"), AppendMultipart(nil, "outer", "r@example.com", l, parts))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(n.List, l) {
		t.Errorf("list:\n%+v\nwant\n%+v", n.List, l)
	}
	if len(n.Parts) != len(parts) {
		t.Fatalf("%d parts", len(n.Parts))
	}
	for i, p := range n.Parts {
		if p.CID != parts[i].CID || p.ContentType != parts[i].ContentType || string(p.Body) != string(parts[i].Body) {
			t.Errorf("part %d: %q", i, p)
		}
	}
	if p, ok := n.Part("bob@example.com"); !ok || !strings.HasPrefix(string(p.Body), "<presence>") {
		t.Errorf("Part: %v %q", ok, p)
	}
	if _, ok := n.Part("zoe@example.com"); ok {
		t.Error("RL-18 an inner part seen from outside")
	}
	inner := n.Nested["team@example.com"]
	if inner == nil || !reflect.DeepEqual(inner.List, team()) {
		t.Fatalf("RL-19 nested list %+v", inner)
	}
	if p, ok := inner.Part("zoe@example.com"); !ok || string(p.Body) != "<presence/>" {
		t.Errorf("nested part %q", p)
	}
}

func TestValidate(t *testing.T) {
	good := friends()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, rule string
		spoil      func(l *List)
	}{
		{"no uri", "RL-12", func(l *List) { l.URI = "" }},
		{"bad lang", "RL-12", func(l *List) { l.Names[0].Lang = "en_GB" }},
		{"bad lang of a member", "RL-16", func(l *List) { l.Resources[0].Names[0].Lang = "-" }},
		{"member without uri", "RL-16", func(l *List) { l.Resources[1].URI = "" }},
		{"member twice", "RL-16", func(l *List) { l.Resources[1].URI = l.Resources[0].URI }},
		{"no id", "RL-17", func(l *List) { l.Resources[0].Instances[0].ID = "" }},
		{"id twice", "RL-17", func(l *List) { l.Resources[3].Instances[1].ID = "1" }},
		{"active without cid", "RL-17", func(l *List) { l.Resources[0].Instances[0].CID = "" }},
		{"terminated without reason", "RL-17", func(l *List) { l.Resources[3].Instances[0].Reason = "" }},
		{"pending with reason", "RL-17", func(l *List) { l.Resources[2].Instances[0].Reason = "noresource" }},
		{"unknown state", "RL-17", func(l *List) { l.Resources[2].Instances[0].State = "Active" }},
	} {
		t.Run(c.rule+" "+c.name, func(t *testing.T) {
			l := friends()
			c.spoil(l)
			wantRule(t, l.Validate(), c.rule)
			_, err := ParseList(AppendList(nil, l))
			wantRule(t, err, c.rule)
		})
	}
}

func wantRule(t *testing.T, err error, rule string) {
	t.Helper()
	var re *RuleError
	if !errors.As(err, &re) || re.Rule != rule {
		t.Errorf("error %v, want a broken %s", err, rule)
	}
}

func TestParseList(t *testing.T) {
	const ns = `xmlns="urn:ietf:params:xml:ns:rlmi"`
	l, err := ParseList([]byte(`<r:list xmlns:r="urn:ietf:params:xml:ns:rlmi" r:x="" uri="sip:l@example.com" version=" 1 " fullState="0">` +
		`<!-- c --><r:name>a<![CDATA[<b>]]></r:name><r:resource uri="sip:a@example.com"><r:instance id="1" state="pending"><x/></r:instance></r:resource></r:list>`))
	if err != nil || l.Version != 1 || l.FullState || l.Names[0].Text != "a<b>" || l.Resources[0].Instances[0] != Pending("1") {
		t.Errorf("%+v, %v", l, err)
	}
	for _, c := range []struct{ name, rule, in string }{
		{"version missing", "RL-12", `<list ` + ns + ` uri="sip:l@example.com" fullState="true"/>`},
		{"version too large", "RL-12", `<list ` + ns + ` uri="sip:l@example.com" version="4294967296" fullState="true"/>`},
		{"fullState missing", "RL-12", `<list ` + ns + ` uri="sip:l@example.com" version="0"/>`},
		{"name after resource", "RL-12", `<list ` + ns + ` uri="sip:l@example.com" version="0" fullState="1"><resource uri="sip:a@example.com"/><name/></list>`},
		{"foreign child", "RL-12", `<list ` + ns + ` uri="sip:l@example.com" version="0" fullState="1"><x/></list>`},
		{"name after instance", "RL-16", `<list ` + ns + ` uri="sip:l@example.com" version="0" fullState="1"><resource uri="sip:a@example.com"><instance id="1" state="pending"/><name/></resource></list>`},
		{"no namespace", "RL-10", `<list uri="sip:l@example.com" version="0" fullState="1"/>`},
		{"other root", "RL-10", `<resource ` + ns + `/>`},
	} {
		t.Run(c.rule+" "+c.name, func(t *testing.T) {
			_, err := ParseList([]byte(c.in))
			wantRule(t, err, c.rule)
		})
	}
	for name, in := range map[string]string{
		"empty": "", "text": "x", "cut": "<list", "two roots": "<list/><list/>", "trailing text": "<list/>x",
		"DTD":        `<!DOCTYPE list [<!ENTITY a "b">]><list ` + ns + ` uri="sip:l@example.com" version="0" fullState="1"/>`,
		"deep":       strings.Repeat("<list>", 65) + strings.Repeat("</list>", 65),
		"large":      "<list>" + strings.Repeat(" ", maxXMLBytes) + "</list>",
		"many tags":  "<list>" + strings.Repeat("<a/>", maxXMLTags) + "</list>",
		"attributes": "<list " + strings.Repeat("a:b='' ", 1) + manyAttributes() + "/>",
		"latin1":     "<list uri='sip:\xe9@example.com'/>",
	} {
		if _, err := ParseList([]byte(in)); !errors.Is(err, ErrNotWellFormed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func manyAttributes() string {
	var b strings.Builder
	for i := range maxXMLAttrs + 1 {
		b.WriteString(" a")
		b.WriteString(strings.Repeat("x", i))
		b.WriteString("=''")
	}
	return b.String()
}

// The documents of RFC 4662 that are well-formed XML are read strictly.
func TestRFC4662Lists(t *testing.T) {
	files, err := filepath.Glob("testdata/rfc4662-*-list.xml")
	if err != nil || len(files) != 4 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		l, err := ParseList(b)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		again, err := ParseList(AppendList(nil, l))
		if err != nil || !reflect.DeepEqual(again, l) {
			t.Errorf("%s: written and read again: %+v, %v", f, again, err)
		}
	}
}
