package list

import (
	"errors"
	"strings"
	"testing"
)

func TestSelect(t *testing.T) {
	// The document of RFC 4825 section 6.4, and one with attributes.
	const bindings = `<?xml version="1.0"?>
<foo xmlns="urn:test:default-namespace">
  <ns1:bar xmlns:ns1="urn:test:namespace1-uri" xmlns="urn:test:namespace1-uri">
    <baz/>
    <ns2:baz xmlns:ns2="urn:test:namespace2-uri"/>
  </ns1:bar>
  <ns3:hi xmlns:ns3="urn:test:namespace3-uri"><there/></ns3:hi>
</foo>`
	const lists = `<resource-lists xmlns="urn:ietf:params:xml:ns:resource-lists" xmlns:x="urn:x">
<!-- c --><list name="a" x:k="1"><entry uri="sip:1@example.com"/><entry uri='sip:"q"/&lt;&amp;@example.com'/><x:entry uri="sip:1@example.com"/></list>
text<list name="b" x:k="1"/><list name="a"/><x:list name="é"/></resource-lists>`
	for _, c := range []struct {
		doc, ns, node, query string
		want                 string // "{namespace}name attributes", or an error
	}{
		{bindings, "urn:test:default-namespace", "foo/a:bar/b:baz", "xmlns(a=urn:test:namespace1-uri)xmlns(b=urn:test:namespace1-uri)", "{urn:test:namespace1-uri}baz"},
		{bindings, "urn:test:default-namespace", "foo/a:bar/b:baz", "xmlns(a=urn:test:namespace1-uri)%20xmlns(b=urn:test:namespace2-uri)", "{urn:test:namespace2-uri}baz"},
		{bindings, "urn:test:default-namespace", "d:foo/a:bar/b:baz", "xmlns(a=urn:test:namespace1-uri) xmlns(b=urn:test:namespace2-uri) xmlns( d = urn:test:default-namespace )", "{urn:test:namespace2-uri}baz"},
		{bindings, "urn:test:default-namespace", "foo/*%5b2%5d/*", "", "{urn:test:default-namespace}there"},
		{bindings, "urn:test:default-namespace", "foo/bar", "", "no"},
		{bindings, "urn:other", "foo", "", "no"},
		{bindings, "urn:test:default-namespace", "foo/a:bar", "xmlns(a=urn:^(x^)^^)element(/1)", "no"},
		{bindings, "urn:test:default-namespace", "foo/a:bar", "xpointer(id('x(y)'))xmlns(a=urn:test:namespace1-uri)", "{urn:test:namespace1-uri}bar"},
		{lists, NamespaceLists, "resource-lists/list%5b@name=%22b%22%5d", "", "{" + NamespaceLists + "}list name=b k=1"},
		{lists, NamespaceLists, "resource-lists/list[1]", "", "{" + NamespaceLists + "}list name=a k=1"},
		{lists, NamespaceLists, "resource-lists/list[3]", "", "{" + NamespaceLists + "}list name=a"},
		{lists, NamespaceLists, "resource-lists/*[4]", "", "{urn:x}list name=é"},
		{lists, NamespaceLists, "resource-lists/*[@name=\"%C3%A9\"]", "", "{urn:x}list name=é"},
		{lists, NamespaceLists, "resource-lists/list[3][@name='a']", "", "{" + NamespaceLists + "}list name=a"},
		{lists, NamespaceLists, "resource-lists/list[2][@name='a']", "", "no"},
		{lists, NamespaceLists, "resource-lists/list[@name='a']", "", "several"},
		{lists, NamespaceLists, "resource-lists/list[@x:k='1']", "xmlns(x=urn:x)", "several"},
		{lists, NamespaceLists, "resource-lists/list[2][@x:k='1']", "xmlns(x=urn:x)", "{" + NamespaceLists + "}list name=b k=1"},
		{lists, NamespaceLists, "resource-lists/list[@k='1']", "", "no"},
		{lists, NamespaceLists, "resource-lists/list[@A='a']", "", "no"},
		{lists, NamespaceLists, "resource-lists/list", "", "several"},
		{lists, NamespaceLists, "resource-lists/list[4]", "", "no"},
		{lists, NamespaceLists, "list", "", "no"},
		{lists, NamespaceLists, "*", "", "{" + NamespaceLists + "}resource-lists"},
		{lists, NamespaceLists, "*[2]", "", "no"},
		{lists, NamespaceLists, "*[@xmlns='" + NamespaceLists + "']", "", "no"},
		{lists, NamespaceLists, "*/list[1]/entry[@uri='sip:\"q\"/%26lt;%26@example.com']", "", "{" + NamespaceLists + "}entry uri=sip:\"q\"/<&@example.com"},
		{lists, NamespaceLists, "*/list[1]/entry[@uri='sip:%22q%22%2f&#60;&#x26;@example.com']", "", "{" + NamespaceLists + "}entry uri=sip:\"q\"/<&@example.com"},
		{lists, NamespaceLists, "*/list[1]/entry[@uri='sip:1@example.com']", "", "{" + NamespaceLists + "}entry uri=sip:1@example.com"},
		{lists, NamespaceLists, "resource-lists/list[1]/@name", "", "error"},
		{lists, NamespaceLists, "resource-lists/namespace::*", "", "error"},
	} {
		root, _, err := parseXML([]byte(c.doc), "")
		if err != nil {
			t.Fatal(err)
		}
		got := "error"
		if s, err := ParseSelector(c.node, c.query, c.ns); err != nil {
			t.Errorf("XC-02 %s: %v", c.node, err)
		} else if e, err := s.Select(root); errors.Is(err, ErrNoMatch) {
			got = "no"
		} else if errors.Is(err, ErrAmbiguous) {
			got = "several"
		} else if err == nil {
			got = "{" + e.ns + "}" + e.name
			for _, a := range e.attrs {
				got += " " + a.name + "=" + a.value
			}
		}
		if got != c.want {
			t.Errorf("XC-02 XC-03 %s?%s selects %q, want %q", c.node, c.query, got, c.want)
		}
	}
}

func TestParseSelectorErrors(t *testing.T) {
	for _, c := range []struct{ name, node, query string }{
		{"empty", "", ""},
		{"empty step", "a//b", ""},
		{"leading slash", "/a", ""},
		{"trailing slash", "a/", ""},
		{"XC-03 unbound prefix", "p:a", ""},
		{"unbound prefix of an attribute", "a[@p:b='c']", ""},
		{"unbound prefix at the end", "a/@p:b", "xmlns(q=urn:x)"},
		{"position 0", "a[0]", ""},
		{"position -1", "a[-1]", ""},
		{"position too large", "a[99999999999999999999]", ""},
		{"no position", "a[]", ""},
		{"two positions", "a[1][2]", ""},
		{"position last", "a[@b='c'][1]", ""},
		{"two tests", "a[@b='c'][@d='e']", ""},
		{"open predicate", "a[1", ""},
		{"open value", "a[@b='c]", ""},
		{"no value", "a[@b]", ""},
		{"bare value", "a[@b=c]", ""},
		{"after a predicate", "a[1]b", ""},
		{"axis", "child::a", ""},
		{"parent", "..", ""},
		{"function", "a[last()]", ""},
		{"digit", "1a", ""},
		{"attribute alone", "@a", ""},
		{"after an attribute", "a/@b/c", ""},
		{"namespace alone", "namespace::*", ""},
		{"prefix only", "p:", "xmlns(p=urn:x)"},
		{"percent", "a%5", ""},
		{"percent digits", "a%zz", ""},
		{"not UTF-8", "a%ff", ""},
		{"long", strings.Repeat("a/", 3000) + "a", ""},
		{"query", "a", "x"},
		{"open query", "a", "xmlns(a=b"},
		{"query escape", "a", "xmlns(a=b^"},
		{"query binds nothing", "a", "xmlns(b)"},
		{"query percent", "a", "%"},
	} {
		if s, err := ParseSelector(c.node, c.query, NamespaceLists); err == nil {
			t.Errorf("%s: %q accepted: %+v", c.name, c.node, s)
		}
	}
}

func TestParseReference(t *testing.T) {
	roots := []string{"http://xcap.example.com", "https://ut.example.com/", "http://127.0.0.1:8080/xcap-root/", "http://127.0.0.1:8080/xcap%2droot/deep/er"}
	const d = "resource-lists/users/sip:joe@example.com/index"
	for uri, want := range map[string]string{
		"http://xcap.example.com/" + d:                                         d,
		"https://ut.example.com:443/" + d + "/~~/resource-lists":               d + " ~~ resource-lists",
		"http://127.0.0.1:8080/xcap-root/" + d:                                 d,
		"http://127.0.0.1:8080/xcap-root/deep/er/" + d:                         d,
		"http://xcap.example.com/resource-lists/global/index":                  "resource-lists/global/index",
		"http://xcap.example.com/a/users/u/dir/doc.xml":                        "a/users/u/dir/doc.xml",
		"http://xcap.example.com/a/users/u%2fv%252f/doc":                       "a/users/u%2Fv%252f/doc",
		"resource-lists/users/sip:bob%3fx@example.com/index/~~/resource-lists": "resource-lists/users/sip:bob?x@example.com/index ~~ resource-lists",
		d + "/~~/resource-lists/list%5b@name=%22~~/x%22%5d":                    d + ` ~~ resource-lists/list[@name="~~/x"]`,
		"http://xcap.example.com/a/users/u%2f..%2f../doc":                      "a/users/u%2F..%2F../doc",
	} {
		got, err := ParseReference(uri, roots)
		if err != nil || got.String() != want {
			t.Errorf("XC-01 %q: %q, %v", uri, got, err)
		}
	}
	for _, uri := range []string{
		"", " ", "x", "http://xcap.example.com", "http://xcap.example.com/", "http://xcap.example.com/a/users/u", "http://xcap.example.com/a/global",
		"http://xcap.example.com/a/other/u/doc", "http://xcap.example.com/a/users/../doc", "http://xcap.example.com/a/users/%2e%2e/doc/x",
		"http://xcap.example.com/a/users/./doc", "http://xcap.example.com/a/users//doc", "http://xcap.example.com//a/users/u/doc",
		"http://xcap.example.com/a/users/u/doc#f", "http://xcap.example.com/a/users/u%00/doc", "http://xcap.example.com/a/users/u%5cv/doc", "http://xcap.example.com/a/users/u%ff/doc",
		"http://xcap.example.com.evil.example.org/" + d, "http://xcap.example.com:81/" + d, "https://xcap.example.com/" + d, "ftp://xcap.example.com/" + d,
		"http://127.0.0.1:8080/" + d, "http://127.0.0.1:8080/xcap-rootless/" + d, "http://u@xcap.example.com/" + d, "//xcap.example.com/" + d,
		d + "/~~/", d + "/~~", "http://xcap.example.com/" + strings.Repeat("a", 5000),
	} {
		if got, err := ParseReference(uri, roots); err == nil {
			t.Errorf("XC-01 %q accepted as %q", uri, got)
		}
	}
	if _, err := ParseReference("http://xcap.example.com/"+d, nil); !errors.Is(err, errForeign) {
		t.Error(err)
	}
}

func TestCompactURI(t *testing.T) {
	for in, want := range map[string]string{
		"sip:a@example.com":              "sip:a@example.com",
		" \n sip:a@\r\n\texample.com \n": "sip:a@example.com",
		"a/list[@name=\"x y\"] /b c":     "a/list[@name=\"x y\"]/bc",
		"a[@n=%22x y%22]/ b":             "a[@n=%22x y%22]/b",
		"a[@n=\"x  y\"]":                 "a[@n=\"xy\"]",
		"a[@n='x\" y']b c":               "a[@n='x\" y']bc",
		"a%27x y%27z z%":                 "a%27x y%27zz%",
		"":                               "", " ": "",
	} {
		if got := compactURI(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}
