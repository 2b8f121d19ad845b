package xmltree

import (
	"bytes"
	"encoding/xml"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	const in = `<?xml version="1.0" encoding="utf-8"?><!-- c --><a xmlns="urn:a" xmlns:p="urn:p" k="1 &lt; &quot;2&quot;"
	p:k='x'><p:b xml:lang="en"/>t<!-- c --><![CDATA[<u>]]>&#13;<?pi x?><c xmlns=""><d xmlns:p="urn:q" p:e="1"/></c></a>
`
	root, err := Parse([]byte(in), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	const want = `<a xmlns="urn:a" xmlns:p="urn:p" k="1 &lt; &quot;2&quot;" p:k="x"><p:b xml:lang="en"/>t&lt;u&gt;&#xD;<c xmlns=""><d xmlns:p="urn:q" p:e="1"/></c></a>`
	if got := string(root.Append(nil)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if k, ok := root.Attr("k"); !ok || k != `1 < "2"` || !root.Is("urn:a", "a") {
		t.Errorf("%+v", root)
	}
	if c := root.Content(); c != "t<u>" {
		t.Errorf("content %q", c)
	}
	var names []string
	for e := range root.Elements() {
		names = append(names, e.Space+" "+e.Local)
		for e := range e.Elements() {
			names = append(names, e.Space+" "+e.Local, e.Attrs[1].Space)
		}
	}
	if strings.Join(names, ",") != "urn:p b, c, d,urn:q" {
		t.Errorf("names %q", names)
	}
}

func TestParseRefuses(t *testing.T) {
	decls := func(n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(` xmlns:p` + strconv.Itoa(i) + `="urn:x"`)
		}
		return b.String()
	}
	tests := []struct {
		name, in, detail string
		kind             Kind
	}{
		{"nothing", " \n", "no element", KindNotWellFormed},
		{"crossed tags", `<a><b></a></b>`, "does not fit", KindNotWellFormed},
		{"same local name, other prefix", `<a xmlns:p="urn:p"><p:b></b></a>`, "does not fit", KindNotWellFormed},
		{"stray end tag", `<a/></a>`, "does not fit", KindNotWellFormed},
		{"not closed", `<a><b></b>`, "never closed", KindNotWellFormed},
		{"undeclared prefix", `<p:a/>`, "not declared", KindNotWellFormed},
		{"undeclared prefix of an attribute", `<a p:b="1"/>`, "not declared", KindNotWellFormed},
		{"prefix out of scope", `<a><b xmlns:p="urn:p"/><p:c/></a>`, "not declared", KindNotWellFormed},
		{"prefix undeclared again", `<a xmlns:p=""/>`, "declaration", KindNotWellFormed},
		{"prefix xmlns", `<xmlns:a/>`, "not declared", KindNotWellFormed},
		{"prefix xmlns declared", `<a xmlns:xmlns="urn:p"/>`, "declaration", KindNotWellFormed},
		{"prefix xml declared otherwise", `<a xmlns:xml="urn:p"/>`, "declaration", KindNotWellFormed},
		{"the xml namespace as default", `<a xmlns="` + SpaceXML + `"/>`, "declaration", KindNotWellFormed},
		{"attribute twice", `<a b="1" b="1"/>`, "twice", KindNotWellFormed},
		{"attribute twice by namespace", `<a xmlns:p="urn:p" xmlns:q="urn:p" p:b="1" q:b="1"/>`, "twice", KindNotWellFormed},
		{"declaration twice", `<a xmlns="urn:p" xmlns="urn:p"/>`, "twice", KindNotWellFormed},
		{"no space between attributes", `<a b="1"c="2"/>`, "space", KindNotWellFormed},
		{"two colons", `<a:b:c/>`, "", KindNotWellFormed},
		{"colon at the end", `<a:/>`, "name", KindNotWellFormed},
		{"digit after a colon", `<p:1 xmlns:p="urn:p"/>`, "name", KindNotWellFormed},
		{"text before", `x<a/>`, "outside", KindNotWellFormed},
		{"text after", `<a/>x`, "outside", KindNotWellFormed},
		{"second root", `<a/><b/>`, "after the root", KindNotWellFormed},
		{"declaration not at the start", ` <?xml version="1.0"?><a/>`, "declaration", KindNotWellFormed},
		{"XML 1.1", `<?xml version="1.1"?><a/>`, "version", KindNotWellFormed},
		{"control character", "<a>\x01</a>", "", KindNotWellFormed},
		{"entity", `<a>&nbsp;</a>`, "entity", KindNotWellFormed},
		{"DOCTYPE", `<!DOCTYPE a SYSTEM "http://192.0.2.1/a.dtd"><a/>`, "declaration", KindForbidden},
		{"encoding", `<?xml version="1.0" encoding="ISO-8859-1"?><a/>`, "encoding", KindEncoding},
		{"UTF-16", "\xfe\xff\x00<", "UTF-16", KindEncoding},
		{"broken UTF-8", "<a>\xc0\x80</a>", "UTF-8", KindEncoding},
		{"bytes", "<a>" + strings.Repeat(" ", 200) + "</a>", "200 bytes", KindTooLarge},
		{"depth", `<a><a><a><a><a/></a></a></a></a>`, "4 nested", KindTooLarge},
		{"elements", `<a><b/><b/><b/><b/><b/></a>`, "5 elements", KindTooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := Limits{Bytes: 200, Depth: 4, Elements: 5}
			_, err := Parse([]byte(tt.in), l)
			var e *Error
			if !errors.As(err, &e) || e.Kind != tt.kind || !strings.Contains(e.Error(), tt.detail) {
				t.Errorf("error %v", err)
			}
		})
	}
	for name, in := range map[string]string{
		"attributes":   `<a` + strings.ReplaceAll(decls(DefaultAttrs+1), "xmlns:", "") + `/>`,
		"declarations": `<a` + decls(DefaultScopes/2) + `><b` + decls(DefaultScopes/2+1) + `/></a>`,
	} {
		var e *Error
		if _, err := Parse([]byte(in), Limits{}); !errors.As(err, &e) || e.Kind != KindTooLarge || e.Code() != 413 {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestErrorLine(t *testing.T) {
	_, err := Parse([]byte("<a>\n\n<b>\n</c></a>"), Limits{})
	var e *Error
	if !errors.As(err, &e) || e.Line != 4 {
		t.Errorf("%v", err)
	}
}

// What Parse accepts, it writes so that it reads the same again, and
// encoding/xml reads it too.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`<a xmlns:p="urn:p" b="&#9;1"><p:b xmlns="urn:q">t<![CDATA[<u>]]>&#13;</p:b><c/></a>`))
	f.Add([]byte(`<?xml version="1.0"?><a xml:lang="de" xmlns="urn:a"><b xmlns=""/></a>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		root, err := Parse(b, Limits{})
		if err != nil {
			return
		}
		out := root.Append(nil)
		again, err := Parse(out, Limits{Bytes: 1 << 24})
		if err != nil {
			t.Fatalf("%v\n%q", err, out)
		}
		if twice := again.Append(nil); !bytes.Equal(out, twice) {
			t.Fatalf("%q\n%q", out, twice)
		}
		var v struct {
			XMLName xml.Name
		}
		if err := xml.Unmarshal(out, &v); err != nil || v.XMLName.Local != root.Local || !reflect.DeepEqual(v.XMLName.Space, root.Space) {
			t.Fatalf("%v %v\n%q", err, v, out)
		}
	})
}
