package pidf

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"rollcall/pa/pidf/xmltree"
)

// phone is a document as a desk phone publishes it.
const phone = `<?xml version="1.0" encoding="UTF-8"?>
<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:rpid="urn:ietf:params:xml:ns:pidf:rpid" entity="sip:alice@example.com">
  <tuple id="t8f1c2">
    <status><basic>open</basic></status>
    <contact priority="0.8">sip:alice@192.0.2.10:5060</contact>
    <timestamp>2026-03-01T10:00:00Z</timestamp>
  </tuple>
  <dm:person id="p1"><rpid:activities><rpid:on-the-phone/></rpid:activities><dm:note>On the phone</dm:note></dm:person>
</presence>
`

func mustParse(t testing.TB, body string) *Document {
	t.Helper()
	d, err := Parse([]byte(body), xmltree.Unlimited)
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, body)
	}
	return d
}

// body wraps children of <presence> into a document with the usual prefixes.
func body(children string) string {
	return `<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid" xmlns:x="urn:example:x" entity="sip:alice@example.com">` + children + `</presence>`
}

// validate runs xmllint over all documents at once; names are those of the map.
func validate(t *testing.T, docs map[string][]byte) {
	t.Helper()
	tool, err := exec.LookPath("xmllint")
	if err != nil {
		t.Fatal("xmllint is needed to check documents against the schemas (package libxml2-utils): ", err)
	}
	dir := t.TempDir()
	args := []string{"--nonet", "--noout", "--schema", filepath.Join("testdata", "schemas", "presence-all.xsd")}
	for name, doc := range docs {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, doc, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
	}
	out, err := exec.Command(tool, args...).CombinedOutput()
	if err == nil && bytes.Count(out, []byte(" validates")) == len(docs) {
		return
	}
	for line := range strings.SplitSeq(string(out), "\n") {
		if line != "" && !strings.HasSuffix(line, " validates") {
			t.Error(strings.ReplaceAll(line, dir+"/", ""))
			for name, doc := range docs {
				if strings.Contains(line, name+" fails") {
					t.Logf("%s", doc)
				}
			}
		}
	}
	t.Error("xmllint: ", err)
}

func corpus(t testing.TB, patterns ...string) map[string]*Document {
	t.Helper()
	docs := map[string]*Document{}
	for _, pattern := range patterns {
		files, err := filepath.Glob(filepath.Join("testdata", pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("no files %s: %v", pattern, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			d, err := Parse(b, Limits{})
			if err != nil {
				t.Fatalf("%s: %v", f, err)
			}
			docs[filepath.Base(f)] = d
		}
	}
	return docs
}

func TestParseFacts(t *testing.T) {
	tests := []struct {
		name, body          string
		entity, basic, note string
		spheres             string
		tuples              int
	}{
		{"phone", phone, "sip:alice@example.com", "open", "On the phone", "", 1},
		{"no entity", `<presence xmlns="urn:ietf:params:xml:ns:pidf"/>`, "", "", "", "", 0},
		{"byte order mark", "\ufeff" + phone, "sip:alice@example.com", "open", "On the phone", "", 1},
		{"declared as ASCII", strings.Replace(phone, "UTF-8", "us-ascii", 1), "sip:alice@example.com", "open", "On the phone", "", 1},
		{"P-03 one open tuple suffices", body(`<tuple id="a"><status><basic>closed</basic></status></tuple><tuple id="b"><status><basic> OPEN </basic></status></tuple>`), "sip:alice@example.com", "open", "", "", 2},
		{"P-03 basic unknown of baresip", body(`<tuple id="a"><status><basic>unknown</basic></status></tuple>`), "sip:alice@example.com", "", "", "", 1},
		{"P-03 closed", body(`<tuple id="1 a"><status><basic>closed</basic></status><note>gone <!-- c -->home</note></tuple>`), "sip:alice@example.com", "closed", "gone home", "", 1},
		{"PR-04 sphere as element", body(`<dm:person id="p"><r:sphere><r:Work/></r:sphere></dm:person>`), "sip:alice@example.com", "", "", "work", 0},
		{"PR-04 sphere as text", body(`<dm:person id="p"><r:sphere>Bowling League</r:sphere></dm:person>`), "sip:alice@example.com", "", "", "bowling league", 0},
		{"PR-04 two spheres", body(`<dm:person id="p"><r:sphere><r:work/></r:sphere><r:sphere><r:home/></r:sphere></dm:person>`), "sip:alice@example.com", "", "", "work home", 0},
		{"PR-04 only of a person", body(`<tuple id="t"><status><basic>open</basic></status><r:sphere><r:work/></r:sphere></tuple>`), "sip:alice@example.com", "open", "", "", 1},
		{"presence note first", body(`<tuple id="t"><status/><note>tuple</note></tuple><note>all</note>`), "sip:alice@example.com", "", "all", "", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := mustParse(t, tt.body)
			if d.Entity() != tt.entity || d.Basic() != tt.basic || d.Note() != tt.note || d.Tuples() != tt.tuples || strings.Join(d.Spheres(), " ") != tt.spheres {
				t.Errorf("entity %q basic %q note %q tuples %d spheres %q", d.Entity(), d.Basic(), d.Note(), d.Tuples(), d.Spheres())
			}
			if string(d.Bytes()) != tt.body {
				t.Error("Bytes differ from the body")
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	deep := strings.Repeat("<x:a>", 70) + strings.Repeat("</x:a>", 70)
	many := strings.Repeat("<x:a/>", 5000)
	tests := []struct {
		name, body string
		kind       xmltree.Kind
		code       int
	}{
		{"empty", "", xmltree.KindNotWellFormed, 400},
		{"text", "hello", xmltree.KindNotWellFormed, 400},
		{"DOCTYPE", `<!DOCTYPE presence [<!ENTITY a "b">]>` + body(""), xmltree.KindForbidden, 400},
		{"unknown entity", body("<note>&a;</note>"), xmltree.KindNotWellFormed, 400},
		{"P-01 wrong root", `<html xmlns="urn:ietf:params:xml:ns:pidf"/>`, xmltree.KindRoot, 400},
		{"P-01 namespace with a colon at its end", `<presence xmlns="urn:ietf:params:xml:ns:pidf:" entity="sip:a@example.com"/>`, xmltree.KindRoot, 400},
		{"P-01 no namespace", `<presence entity="sip:a@example.com"/>`, xmltree.KindRoot, 400},
		{"P-01 ISO 8859-1", `<?xml version="1.0" encoding="ISO-8859-1"?>` + body(""), xmltree.KindEncoding, 415},
		{"P-01 not UTF-8", body("<note>\xe4</note>"), xmltree.KindEncoding, 415},
		{"P-01 UTF-16", "\xff\xfe<\x00", xmltree.KindEncoding, 415},
		{"deep", body(deep), xmltree.KindTooLarge, 413},
		{"many elements", body(many), xmltree.KindTooLarge, 413},
		{"long", body("<note>" + strings.Repeat("a", 70000) + "</note>"), xmltree.KindTooLarge, 413},
		{"cut off", phone[:300], xmltree.KindNotWellFormed, 400},
		{"two roots", body("") + body(""), xmltree.KindNotWellFormed, 400},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.body), Limits{})
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v", err)
			}
			if e.Kind != tt.kind || e.Code() != tt.code {
				t.Errorf("%d %v", e.Code(), e)
			}
		})
	}
}

// P-07, IM lenience: every example of the RFCs and every client's document is
// accepted, the invalid ones too.
func TestCorpus(t *testing.T) {
	docs := corpus(t, "examples/*.xml", "clients/*.xml")
	if len(docs) < 35 {
		t.Fatalf("only %d documents", len(docs))
	}
	// Those that the schemas refuse: no entity, an id that begins with a digit,
	// <basic>unknown</basic>, person before tuple.
	invalid := regexp.MustCompile(`^rfc4479-s7\.1-1|^rfc4660-s7\.1(\.[13])?-|^baresip-tcp`)
	mended := map[string][]byte{}
	for name, d := range docs {
		one := Compose("sip:other@example.com", []*Document{d})
		switch same := bytes.Equal(one, d.Bytes()); {
		case invalid.MatchString(name) && !same:
			mended[name] = one
		case !same:
			t.Errorf("PUB-13 %s: one publication was changed", name)
		}
	}
	if len(mended) < 9 {
		t.Errorf("P-01: only %d documents were mended", len(mended))
	}
	validate(t, mended)
}

// P-01, P-02: what is shown has the shape of the schemas, also of a single
// publication that has not.
func TestOnePublicationMended(t *testing.T) {
	out := map[string][]byte{}
	for name, children := range map[string]string{
		"person-first":    `<dm:person id="p"/><tuple id="t"><status><basic>open</basic></status></tuple>`,
		"contact-first":   `<tuple id="t"><contact>sip:a@b</contact><status><basic>open</basic></status></tuple>`,
		"two-statuses":    `<tuple id="t"><status><basic>open</basic></status><status/></tuple>`,
		"empty-status":    `<tuple id="t"><status/></tuple>`,
		"no-status":       `<tuple id="t"/>`,
		"basic-capital":   `<tuple id="t"><status><basic>Open</basic></status></tuple>`,
		"same-id":         `<tuple id="t"><status><basic>open</basic></status></tuple><dm:person id="t"/>`,
		"no-id":           `<tuple><status><basic>open</basic></status></tuple>`,
		"bad-timestamp":   `<tuple id="t"><status><basic>open</basic></status><timestamp>now</timestamp></tuple>`,
		"device-bare":     `<dm:device id="d"/>`,
		"note-then-tuple": `<note>x</note><tuple id="t"><status><basic>open</basic></status></tuple>`,
		"own-namespace":   `<tuple id="t"><status><basic>open</basic></status></tuple><state>x</state>`,
	} {
		d := mustParse(t, body(children))
		one := Compose("sip:alice@example.com", []*Document{d})
		if bytes.Equal(one, d.Bytes()) {
			t.Errorf("%s: passed through", name)
		}
		out[name+".xml"] = one
	}
	validate(t, out)
}

func TestComposeSchema(t *testing.T) {
	docs := corpus(t, "examples/*.xml", "clients/*.xml")
	// Text in <sphere> is RFC 4480's own mistake and what a client published.
	delete(docs, "rfc4480-s4-1-presence.xml")
	out := map[string][]byte{}
	all := []*Document{mustParse(t, phone)}
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		d := docs[name]
		all = append(all, d)
		out["twice-"+name] = Compose("sip:alice@example.com", []*Document{d, d})
		out["filtered-"+name] = FromTree(d.Tree()).Bytes()
		if !strings.Contains(string(d.Bytes()), `"432sd"`) {
			continue
		}
		delete(out, "filtered-"+name) // FromTree keeps ids
	}
	out["all"] = Compose(`sip:"al ice"&<b>%zz@example.com`, all)
	out["offline"] = Offline(`sip:"al ice"&<b>%zz@example.com`)
	out["none"] = Compose("sip:alice@example.com", nil)
	for name, tt := range composeTests {
		if name == "names in xsi:type" {
			continue // of types that no schema defines
		}
		out["table-"+strings.ReplaceAll(name, " ", "-")] = Compose("sip:alice@example.com", parseAll(t, tt.docs))
	}
	validate(t, out)

	again := mustParse(t, string(out["all"]))
	if merged := Merge("", all); merged.Tuples() != again.Tuples() || merged.Basic() != "open" || Merge("sip:a@example.com", nil).Tuples() != 1 {
		t.Error("Merge gives another document than Compose")
	}
	n := 0
	for _, d := range all {
		n += d.Tuples()
	}
	if again.Tuples() != n {
		t.Errorf("%d tuples of %d", again.Tuples(), n)
	}
}

func parseAll(t testing.TB, bodies []string) []*Document {
	t.Helper()
	docs := make([]*Document, len(bodies))
	for i, b := range bodies {
		docs[i] = mustParse(t, b)
	}
	return docs
}

const empty = `<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:alice@example.com"/>`

// composeTests give the children of the composed root; declarations that come
// before them in the root are in attrs.
var composeTests = map[string]struct {
	docs  []string
	attrs string
	want  string
}{
	"P-01 order of the root": {
		docs: []string{
			`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:x="urn:example:x"><x:a/><dm:device id="d"><dm:deviceID>urn:uuid:1</dm:deviceID></dm:device><dm:person id="p"/><note>n</note><tuple id="t"><status><basic>open</basic></status></tuple></presence>`,
			`<presence xmlns="urn:ietf:params:xml:ns:pidf"><note xml:lang="de">m</note><tuple id="u"><status><basic>closed</basic></status></tuple></presence>`,
		},
		attrs: ` xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:x="urn:example:x"`,
		want: `<tuple id="t"><status><basic>open</basic></status></tuple><tuple id="u"><status><basic>closed</basic></status></tuple>` +
			`<note>n</note><note xml:lang="de">m</note><dm:person id="p"/><dm:device id="d"><dm:deviceID>urn:uuid:1</dm:deviceID></dm:device><x:a/>`,
	},
	"P-02 order of a tuple": {
		docs: []string{
			`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:x="urn:example:x"><tuple id="t"><timestamp>2026-03-01t10:00:00z</timestamp><note>n</note><contact priority="2">sip:a@192.0.2.1</contact><x:a/><status><x:b/><basic> Open</basic></status></tuple></presence>`,
			empty,
		},
		attrs: ` xmlns:x="urn:example:x"`,
		want:  `<tuple id="t"><status><basic>open</basic><x:b/></status><x:a/><contact>sip:a@192.0.2.1</contact><note>n</note><timestamp>2026-03-01T10:00:00Z</timestamp></tuple>`,
	},
	"P-02 what the schema cannot hold": {
		docs: []string{
			`<presence xmlns="urn:ietf:params:xml:ns:pidf" foo="1"><a/><b xmlns=""/>text<tuple id="t" foo="1"><c/><status a="b"><basic>unknown</basic></status><contact>sip:a b@192.0.2.1</contact><contact>sip:c@192.0.2.1</contact><note xml:lang="en_US" a="b">n</note><timestamp>yesterday</timestamp></tuple><tuple><note/></tuple></presence>`,
			empty,
		},
		want: `<tuple id="t"><status><basic>closed</basic></status><contact>sip:a%20b@192.0.2.1</contact><note>n</note></tuple><tuple id="tuple"><status><basic>closed</basic></status><note></note></tuple>`,
	},
	"P-10 person and device": {
		docs: []string{
			`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid"><dm:person id="p"><dm:timestamp>2026-03-01T10:00:00+01:00</dm:timestamp><dm:note>n</dm:note><r:mood><r:happy/></r:mood><dm:deviceID>urn:uuid:1</dm:deviceID></dm:person><dm:device id="d"><dm:note>n</dm:note><dm:deviceID>urn:uuid:2</dm:deviceID><r:user-input>idle</r:user-input></dm:device><dm:device id="e"/></presence>`,
			empty,
		},
		attrs: ` xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid"`,
		want:  `<dm:person id="p"><r:mood><r:happy/></r:mood><dm:note>n</dm:note><dm:timestamp>2026-03-01T10:00:00+01:00</dm:timestamp></dm:person><dm:device id="d"><r:user-input>idle</r:user-input><dm:deviceID>urn:uuid:2</dm:deviceID><dm:note>n</dm:note></dm:device>`,
	},
	"PUB-08 ids of two publications": {
		docs: []string{
			`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model"><tuple id="a"><status><basic>open</basic></status></tuple><dm:person id="p"/></presence>`,
			`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model"><tuple id="a"><status><basic>open</basic></status></tuple><tuple id="p"><status><basic>open</basic></status></tuple><tuple id="a-2"><status><basic>open</basic></status></tuple><dm:person id="p"/></presence>`,
		},
		attrs: ` xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model"`,
		want: `<tuple id="a"><status><basic>open</basic></status></tuple><tuple id="a-3"><status><basic>open</basic></status></tuple><tuple id="p"><status><basic>open</basic></status></tuple><tuple id="a-2"><status><basic>open</basic></status></tuple>` +
			`<dm:person id="p-2"/><dm:person id="p-3"/>`,
	},
	"PUB-08 ids of RPID elements count too": {
		docs: []string{
			`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid"><dm:person id="p"><r:mood id="a" ><r:happy/></r:mood></dm:person></presence>`,
			`<presence xmlns="urn:ietf:params:xml:ns:pidf"><tuple id="p"><status><basic>open</basic></status></tuple><tuple id="a"><status><basic>open</basic></status></tuple></presence>`,
		},
		attrs: ` xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid"`,
		want:  `<tuple id="p"><status><basic>open</basic></status></tuple><tuple id="a"><status><basic>open</basic></status></tuple><dm:person id="p-2"><r:mood id="a-2"><r:happy/></r:mood></dm:person>`,
	},
	"PUB-08 ids that are no xs:ID": {
		docs: []string{
			`<presence xmlns="urn:ietf:params:xml:ns:pidf"><tuple id="432sd"><status><basic>open</basic></status></tuple><tuple id=" a b"><status><basic>open</basic></status></tuple><tuple id=""><status><basic>open</basic></status></tuple></presence>`,
			`<presence xmlns="urn:ietf:params:xml:ns:pidf"><tuple id="_432sd"><status><basic>open</basic></status></tuple></presence>`,
		},
		want: `<tuple id="_432sd-2"><status><basic>open</basic></status></tuple><tuple id="a_b"><status><basic>open</basic></status></tuple><tuple id="_"><status><basic>open</basic></status></tuple><tuple id="_432sd"><status><basic>open</basic></status></tuple>`,
	},
	"one prefix for two namespaces": {
		docs: []string{
			`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:x="urn:example:one"><tuple id="a"><status><basic>open</basic><x:s/></status></tuple></presence>`,
			`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:x="urn:example:two"><tuple id="b"><status><basic>open</basic><x:s xmlns:x2="urn:example:2" x:a="1" a="2"><x:t/></x:s><x:s xmlns:x="urn:example:three"/></status></tuple></presence>`,
			`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:x="urn:example:two"><tuple id="c"><status><basic>open</basic><x:s/></status></tuple></presence>`,
		},
		attrs: ` xmlns:x="urn:example:one" xmlns:x3="urn:example:two"`,
		want: `<tuple id="a"><status><basic>open</basic><x:s/></status></tuple>` +
			`<tuple id="b"><status><basic>open</basic><x3:s xmlns:x2="urn:example:2" x3:a="1" a="2"><x3:t/></x3:s><x:s xmlns:x="urn:example:three"/></status></tuple>` +
			`<tuple id="c"><status><basic>open</basic><x3:s/></status></tuple>`,
	},
	"PIDF with a prefix and another default namespace": {
		docs: []string{
			`<p:presence xmlns:p="urn:ietf:params:xml:ns:pidf" xmlns="urn:example:x"><p:tuple id="a"><p:status><p:basic>open</p:basic><s/></p:status></p:tuple><p:note>n</p:note><e><f xmlns=""/></e></p:presence>`,
			`<p:presence xmlns:p="urn:ietf:params:xml:ns:pidf"><p:tuple id="b"><p:status/></p:tuple><p:tuple id="c"><p:status><q:s xmlns:q="urn:example:q"><none/></q:s></p:status></p:tuple></p:presence>`,
		},
		attrs: ` xmlns:p="urn:ietf:params:xml:ns:pidf" xmlns:ns="urn:example:x"`,
		want: `<p:tuple id="a"><p:status><p:basic>open</p:basic><ns:s/></p:status></p:tuple><p:tuple id="b"><p:status><p:basic>closed</p:basic></p:status></p:tuple>` +
			`<p:tuple xmlns="" id="c"><p:status><q:s xmlns:q="urn:example:q"><none/></q:s></p:status></p:tuple><p:note>n</p:note><ns:e><f xmlns=""/></ns:e>`,
	},
	"names in xsi:type": {
		docs: []string{
			`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:x="urn:example:one"/>`,
			`<p:presence xmlns:p="urn:ietf:params:xml:ns:pidf" xmlns="urn:example:d" xmlns:x="urn:example:two" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><x:a xsi:type="x:t"/><x:b xsi:type=" t"/><x:c xmlns:x="urn:example:two" xsi:type="x:t"/></p:presence>`,
		},
		attrs: ` xmlns:x="urn:example:one" xmlns:p="urn:ietf:params:xml:ns:pidf" xmlns:ns="urn:example:d" xmlns:x2="urn:example:two" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"`,
		want:  `<x2:a xsi:type="x2:t"/><x2:b xsi:type="ns:t"/><x:c xmlns:x="urn:example:two" xsi:type="x:t"/>`,
	},
	"P-07 mustUnderstand and unknown contents are kept": {
		docs: []string{
			`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:p="urn:ietf:params:xml:ns:pidf" xmlns:x="urn:example:x"><tuple id="a"><status><basic>open</basic><x:loc p:mustUnderstand="true" k="a&quot;b&#10;c"> <x:z>1 &lt; <![CDATA[2 > 1 & 3]]></x:z> </x:loc></status></tuple></presence>`,
			empty,
		},
		attrs: ` xmlns:p="urn:ietf:params:xml:ns:pidf" xmlns:x="urn:example:x"`,
		want:  `<tuple id="a"><status><basic>open</basic><x:loc p:mustUnderstand="true" k="a&quot;b c"> <x:z>1 &lt; 2 &gt; 1 &amp; 3</x:z> </x:loc></status></tuple>`,
	},
}

func TestCompose(t *testing.T) {
	for name, tt := range composeTests {
		t.Run(name, func(t *testing.T) {
			want := xmlDecl + `<presence xmlns="urn:ietf:params:xml:ns:pidf"` + tt.attrs + ` entity="sip:alice@example.com">` + tt.want + "</presence>\n"
			docs := parseAll(t, tt.docs)
			if got := Compose("sip:alice@example.com", docs); string(got) != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if got := Compose("sip:alice@example.com", docs); string(got) != want {
				t.Error("the second time it differs")
			}
			if string(docs[0].Bytes()) != tt.docs[0] {
				t.Error("a source was changed")
			}
		})
	}
}

func TestSphere(t *testing.T) {
	work := mustParse(t, body(`<dm:person id="p"><r:sphere><r:work/></r:sphere></dm:person>`))
	home := mustParse(t, body(`<dm:person id="p"><r:sphere>Home</r:sphere></dm:person>`))
	none := mustParse(t, phone)
	for _, tt := range []struct {
		name, want string
		docs       []*Document
	}{
		{"PR-04 none published", "", []*Document{none}},
		{"PR-04 one of two", "work", []*Document{none, work}},
		{"PR-04 agreed", "work", []*Document{work, none, work}},
		{"PR-04 inconsistent", "", []*Document{work, home, work}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Sphere(tt.docs); got != tt.want {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestOffline(t *testing.T) {
	d := mustParse(t, string(Offline("sip:alice@example.com")))
	if d.Basic() != "closed" || d.Tuples() != 1 || d.Entity() != "sip:alice@example.com" {
		t.Errorf("%+v", d)
	}
}

func TestFromTree(t *testing.T) {
	d := mustParse(t, phone)
	root := d.Tree()
	root.Children = root.Children[:2] // white space and the tuple
	f := FromTree(root)
	if f.Tuples() != 1 || f.Note() != "" || f.Entity() != d.Entity() {
		t.Errorf("%s", f.Bytes())
	}
	if again := FromTree(f.Tree()); !bytes.Equal(again.Bytes(), f.Bytes()) {
		t.Errorf("not stable:\n%s\n%s", f.Bytes(), again.Bytes())
	}
}

// clash binds the prefixes that documents usually have to other namespaces.
const clash = `<dm:presence xmlns:dm="urn:ietf:params:xml:ns:pidf" xmlns:rpid="urn:example:1" xmlns:r="urn:example:2" xmlns:x="urn:example:3" xmlns:p="urn:example:4" xmlns:c="urn:example:5" xmlns="urn:example:6" xmlns:ns="urn:example:7"><dm:tuple id="t"/></dm:presence>`

// extensions returns the expanded names of all elements and attributes in the
// children of the root that are of other namespaces.
func extensions(d *Document) []string {
	var names []string
	var walk func(e *xmltree.Element)
	walk = func(e *xmltree.Element) {
		names = append(names, e.Space+" "+e.Local)
		for _, a := range e.Attrs {
			if a.Space != xmltree.SpaceXMLNS {
				names = append(names, a.Space+" @"+a.Local)
			}
		}
		for c := range e.Elements() {
			walk(c)
		}
	}
	for e := range d.Tree().Elements() {
		if foreign(e, Space) && e.Space != SpaceData {
			walk(e)
		}
	}
	return names
}

func FuzzParse(f *testing.F) {
	for _, d := range corpus(f, "examples/*.xml", "clients/*.xml") {
		f.Add(d.Bytes())
	}
	for _, tt := range composeTests {
		for _, b := range tt.docs {
			f.Add([]byte(b))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Parse(b, Limits{})
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Error() == "" {
				t.Fatalf("error %v", err)
			}
			return
		}
		out := Compose("sip:alice@example.com", []*Document{d, d})
		again, err := Parse(out, xmltree.Unlimited)
		if err != nil {
			t.Fatalf("composed document: %v\n%s", err, out)
		}
		if again.Tuples() != 2*d.Tuples() {
			t.Fatalf("%d tuples, want %d\n%s", again.Tuples(), 2*d.Tuples(), out)
		}
		ids := map[string]bool{}
		collectIDs(again.Tree(), func(a *xmltree.Attr) {
			if ids[a.Value] || validID(a.Value) != a.Value {
				t.Fatalf("id %q in\n%s", a.Value, out)
			}
			ids[a.Value] = true
		})
		// Whatever the prefixes, extensions keep their names.
		mixed := mustParse(t, string(Compose("sip:alice@example.com", []*Document{mustParse(t, clash), d})))
		if was, is := extensions(d), extensions(mixed); mixed.Tuples() != d.Tuples()+1 || !slices.Equal(was, is) {
			t.Fatalf("%q became %q", was, is)
		}
		one := FromTree(d.Tree())
		if two := FromTree(one.Tree()); !bytes.Equal(one.Bytes(), two.Bytes()) {
			t.Fatalf("not stable:\n%s\n%s", one.Bytes(), two.Bytes())
		}
	})
}

func BenchmarkParse(b *testing.B) {
	in := []byte(phone)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(in, Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompose(b *testing.B) {
	for _, n := range []int{1, 2, 5} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			docs := make([]*Document, n)
			for i := range docs {
				docs[i] = mustParse(b, phone)
			}
			b.ReportAllocs()
			for b.Loop() {
				Compose("sip:alice@example.com", docs)
			}
		})
	}
}
