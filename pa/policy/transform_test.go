package policy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"rollcall/pa/pidf"
)

// sample has one of everything. Texts and attribute values of the form Xnn
// mark what a transform may hide.
const sample = `<?xml version="1.0" encoding="UTF-8"?>
<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid" xmlns:c="urn:ietf:params:xml:ns:pidf:cipid" xmlns:o="urn:oma:xml:prs:pidf:oma-pres" xmlns:v="urn:example:v" entity="sip:alice@example.com">
 <tuple id="t1">
  <status><basic>open</basic><v:status>X01</v:status></status>
  <r:class>biz</r:class>
  <dm:deviceID>urn:uuid:F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6</dm:deviceID>
  <r:privacy><r:note>X02</r:note><r:audio/></r:privacy>
  <r:relationship><r:note>X03</r:note><r:self/></r:relationship>
  <r:service-class><r:note>X04</r:note><r:electronic/></r:service-class>
  <r:status-icon>http://example.com/X05</r:status-icon>
  <r:user-input idle-threshold="606" last-input="2026-03-01T10:07:07Z" id="X08">active</r:user-input>
  <c:card>http://example.com/X09</c:card>
  <o:willingness><o:basic>open</o:basic></o:willingness>
  <o:service-description><o:service-id>org.example:chat</o:service-id><o:version>1.0</o:version></o:service-description>
  <v:foo>X11</v:foo>
  <contact priority="0.8">sip:alice@EXAMPLE.com</contact>
  <note>X12</note>
  <timestamp>2026-03-01T10:13:13Z</timestamp>
 </tuple>
 <tuple id="t2"><status><v:only>X14</v:only></status><contact>mailto:X15@example.com</contact></tuple>
 <note>X16</note>
 <dm:person id="p1">
  <r:activities><r:note>X17</r:note><r:away/></r:activities>
  <r:class>X18</r:class>
  <r:mood><r:note>X19</r:note><r:happy/></r:mood>
  <r:place-is><r:note>X20</r:note><r:audio><r:ok/></r:audio></r:place-is>
  <r:place-type><r:other>X21</r:other></r:place-type>
  <r:sphere id="X22"><r:work/></r:sphere>
  <r:time-offset description="X23">60</r:time-offset>
  <v:foo>X24</v:foo>
  <dm:note>X25</dm:note>
  <dm:timestamp>2026-03-01T10:26:26Z</dm:timestamp>
 </dm:person>
 <dm:device id="d1">
  <v:foo>X27</v:foo>
  <dm:deviceID>urn:uuid:00000000-7dec-11d0-a765-00a0c91e6bf6</dm:deviceID>
  <dm:note>X28</dm:note>
 </dm:device>
 <v:bar>X29</v:bar>
</presence>
`

const (
	allServices = `<provide-services><all-services/></provide-services>`
	allPersons  = `<provide-persons><all-persons/></provide-persons>`
	allDevices  = `<provide-devices><all-devices/></provide-devices>`
	allOf       = allServices + allPersons + allDevices
)

func parseDoc(t testing.TB, body string) *pidf.Document {
	t.Helper()
	d, err := pidf.Parse([]byte(body), pidf.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func transformOf(t testing.TB, transformations string) Transform {
	t.Helper()
	return Evaluate([]*Ruleset{mustParse(t, rules(rule1("a", "", "allow", transformations)))}, Request{}).Transform
}

// marks returns the markers Xnn, the ids of components and a few other things
// that are in a document.
func marks(doc []byte) string {
	s := string(doc)
	var found []string
	for _, id := range []string{`id="t1"`, `id="t2"`, `id="p1"`, `id="d1"`} {
		if strings.Contains(s, id) {
			found = append(found, id[4:6])
		}
	}
	for i := 1; i < 30; i++ {
		if m := "X" + string(rune('0'+i/10)) + string(rune('0'+i%10)); strings.Contains(s, m) {
			found = append(found, m)
		}
	}
	for what, text := range map[string]string{
		"threshold": `"606"`, "last": "10:07:07", "time1": "10:13:13", "time2": "10:26:26", "biz": "biz", "service-id": "org.example:chat",
		"willing": "willingness", "dev1": "F81D4FAE", "dev2": "00000000-7dec", "input": "user-input", "contact": "sip:alice@EXAMPLE.com",
	} {
		if strings.Contains(s, text) {
			found = append(found, what)
		}
	}
	slices.Sort(found)
	return strings.Join(found, " ")
}

func TestApply(t *testing.T) {
	// what PR-12 always shows of each component
	const t1, t2, p1, d1 = "X04 contact service-id t1 time1", "X15 t2", "p1 time2", "d1 dev2"
	tests := []struct {
		name            string
		transformations string
		want            string
	}{
		{"PR-11 nothing", "", ""},
		{"PR-11 attributes without components", `<provide-all-attributes/><provide-note>true</provide-note>`, "X16 X29"},
		{"PR-12 all components, no attributes", allOf, t1 + " " + t2 + " " + p1 + " " + d1},
		{"PR-11 persons", allPersons, p1},
		{"PR-11 devices", allDevices, d1},
		{"PR-11 empty set", `<provide-services/>`, ""},
		{"PR-11 service by class", `<provide-services><class>biz</class></provide-services>`, t1},
		{"PR-11 class is case-sensitive", `<provide-services><class>Biz</class></provide-services>`, ""},
		{"PR-11 service by occurrence-id", `<provide-services><occurrence-id>t2</occurrence-id></provide-services>`, t2},
		{"PR-11 service by URI", `<provide-services><service-uri>sip:%61lice@example.COM</service-uri></provide-services>`, t1},
		{"PR-11 another URI", `<provide-services><service-uri>sips:alice@example.com</service-uri></provide-services>`, ""},
		{"PR-11 service by scheme", `<provide-services><service-uri-scheme>mailto</service-uri-scheme></provide-services>`, t2},
		{"PR-11 scheme is case-sensitive", `<provide-services><service-uri-scheme>SIP</service-uri-scheme></provide-services>`, ""},
		{"PR-11 union within a set", `<provide-services><service-uri-scheme>mailto</service-uri-scheme><class>biz</class></provide-services>`, t1 + " " + t2},
		{"PR-11 person by class", `<provide-persons><class>X18</class></provide-persons>`, p1},
		{"PR-11 person by occurrence-id", `<provide-persons><occurrence-id>p1</occurrence-id><occurrence-id>t1</occurrence-id></provide-persons>`, p1},
		{"PR-11 device by deviceID", `<provide-devices><deviceID>URN:UUID:00000000-7DEC-11d0-a765-00a0c91e6bf6</deviceID></provide-devices>`, d1},
		{"PR-11 a deviceID does not grant a service", `<provide-services><deviceID>urn:uuid:F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6</deviceID></provide-services>`, ""},
		{"PR-11 all-services is no person", `<provide-persons><all-services/></provide-persons>`, ""},
		{"OMA-03 service by service-id", `<provide-services><op:service-id>org.example:chat</op:service-id></provide-services>`, t1},
		{"PR-13 activities", allOf + `<provide-activities>true</provide-activities>`, t1 + " " + t2 + " " + p1 + " " + d1 + " X17"},
		{"PR-13 false", allOf + `<provide-activities>false</provide-activities>`, t1 + " " + t2 + " " + p1 + " " + d1},
		{"PR-13 class", allServices + allPersons + `<provide-class>1</provide-class>`, t1 + " " + t2 + " " + p1 + " biz X18"},
		{"PR-13 deviceID of a service", allServices + `<provide-deviceID>true</provide-deviceID>`, t1 + " " + t2 + " dev1"},
		{"PR-13 mood", allPersons + `<provide-mood> true </provide-mood>`, p1 + " X19"},
		{"PR-13 place-is", allPersons + `<provide-place-is>true</provide-place-is>`, p1 + " X20"},
		{"PR-13 place-type", allPersons + `<provide-place-type>true</provide-place-type>`, p1 + " X21"},
		{"PR-13 privacy", allServices + `<provide-privacy>true</provide-privacy>`, t1 + " " + t2 + " X02"},
		{"PR-13 relationship", allServices + `<provide-relationship>true</provide-relationship>`, t1 + " " + t2 + " X03"},
		{"PR-13 sphere", allPersons + `<provide-sphere>true</provide-sphere>`, p1 + " X22"},
		{"PR-13 status-icon", allServices + `<provide-status-icon>true</provide-status-icon>`, t1 + " " + t2 + " X05"},
		{"PR-13 time-offset", allPersons + `<provide-time-offset>true</provide-time-offset>`, p1 + " X23"},
		{"PR-14 note", allOf + `<provide-note>true</provide-note>`, t1 + " " + t2 + " " + p1 + " " + d1 + " X12 X16 X25 X28"},
		{"PR-13 user-input false", allServices + `<provide-user-input>false</provide-user-input>`, t1 + " " + t2},
		{"PR-13 user-input bare", allServices + `<provide-user-input>bare</provide-user-input>`, t1 + " " + t2 + " input"},
		{"PR-13 user-input thresholds", allServices + `<provide-user-input>thresholds</provide-user-input>`, t1 + " " + t2 + " input threshold"},
		{"PR-13 user-input full", allServices + `<provide-user-input>full</provide-user-input>`, t1 + " " + t2 + " input threshold last X08"},
		{"PR-13 user-input maximum", allServices + `<provide-user-input>thresholds</provide-user-input><provide-user-input>bare</provide-user-input>`, t1 + " " + t2 + " input threshold"},
		{"PR-15 unknown attribute", allOf + `<provide-unknown-attribute ns="urn:example:v" name="foo">true</provide-unknown-attribute>`, t1 + " " + t2 + " " + p1 + " " + d1 + " X11 X24 X27"},
		{"PR-15 unknown attribute false", allServices + `<provide-unknown-attribute ns="urn:example:v" name="foo">false</provide-unknown-attribute>`, t1 + " " + t2},
		{"PR-15 not for RPID", allServices + `<provide-unknown-attribute ns="urn:ietf:params:xml:ns:pidf:rpid" name="privacy">true</provide-unknown-attribute>`, t1 + " " + t2},
		{"PR-15 only children of components", allServices + `<provide-unknown-attribute ns="urn:example:v" name="status">true</provide-unknown-attribute><provide-unknown-attribute ns="urn:example:v" name="bar">true</provide-unknown-attribute>`, t1 + " " + t2},
		{"PR-15 cipid", allServices + `<provide-unknown-attribute ns="urn:ietf:params:xml:ns:pidf:cipid" name="card">true</provide-unknown-attribute>`, t1 + " " + t2 + " X09"},
		{"OMA-03 willingness", allServices + `<op:provide-willingness>true</op:provide-willingness>`, t1 + " " + t2 + " willing"},
		{"PR-13 all attributes of persons", allPersons + `<provide-all-attributes/>`, p1 + " X16 X17 X18 X19 X20 X21 X22 X23 X24 X25 X29"},
		{"PR-13 unknown transformation", allPersons + `<x:provide-all-attributes/><cr:provide-mood>true</cr:provide-mood>`, p1},
	}
	doc := parseDoc(t, sample)
	out := map[string][]byte{}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr := transformOf(t, tt.transformations)
			got, err := tr.Apply(doc)
			if err != nil {
				t.Fatal(err)
			}
			want := strings.Fields(tt.want)
			slices.Sort(want)
			if m := marks(got.Bytes()); m != strings.Join(want, " ") {
				t.Errorf("shown %s\nwant  %s\n%s", m, strings.Join(want, " "), got.Bytes())
			}
			if string(doc.Bytes()) != sample {
				t.Fatal("the document was changed")
			}
			if again, _ := tr.Apply(got); again != got && !strings.Contains(tt.transformations, "<class>") {
				t.Errorf("PR-16 the second application changed the document:\n%s\n%s", got.Bytes(), again.Bytes())
			}
			out[strings.Map(func(r rune) rune {
				if r == ' ' || r == '/' {
					return '-'
				}
				return r
			}, tt.name)] = got.Bytes()
		})
	}
	validate(t, out)
}

func TestApplyEverything(t *testing.T) {
	doc := parseDoc(t, sample)
	for name, tr := range map[string]Transform{
		"constant":            Everything(),
		"PR-13 all of a rule": transformOf(t, allOf+`<provide-all-attributes/>`),
	} {
		if got, err := tr.Apply(doc); got != doc || err != nil || !tr.IsEverything() || tr.Key() != "*" {
			t.Errorf("%s: the document did not pass untouched", name)
		}
	}
	simple := parseDoc(t, `<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:alice@example.com"><tuple id="432"><status><basic>open</basic></status></tuple></presence>`)
	if got, _ := transformOf(t, allServices).Apply(simple); got != simple {
		t.Error("PUB-13: nothing was hidden, but the document is another")
	}
}

func TestKey(t *testing.T) {
	a := transformOf(t, `<provide-services><class>a</class><class>b</class></provide-services><provide-mood>true</provide-mood>`)
	b := transformOf(t, `<provide-mood>1</provide-mood><provide-services><class>b</class></provide-services><provide-services><class>a</class><class>b</class></provide-services>`)
	c := transformOf(t, `<provide-services><class>a b</class></provide-services><provide-mood>true</provide-mood>`)
	if a.Key() != b.Key() || a.Key() == c.Key() {
		t.Errorf("%s\n%s\n%s", a.Key(), b.Key(), c.Key())
	}
}

// validate runs xmllint over all documents at once.
func validate(t *testing.T, docs map[string][]byte) {
	t.Helper()
	tool, err := exec.LookPath("xmllint")
	if err != nil {
		t.Fatal("xmllint is needed to check documents against the schemas (package libxml2-utils): ", err)
	}
	dir := t.TempDir()
	args := []string{"--nonet", "--noout", "--schema", filepath.Join("..", "pidf", "testdata", "schemas", "presence-all.xsd")}
	for name, doc := range docs {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, doc, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
	}
	out, err := exec.Command(tool, args...).CombinedOutput()
	if err != nil || bytes.Count(out, []byte(" validates")) != len(docs) {
		t.Errorf("PR-16 xmllint: %v\n%s", err, out)
	}
}

func BenchmarkApply(b *testing.B) {
	doc := parseDoc(b, sample)
	tr := transformOf(b, allOf+`<provide-activities>true</provide-activities><provide-note>true</provide-note>`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tr.Apply(doc); err != nil {
			b.Fatal(err)
		}
	}
}
