package policy

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"rollcall/pa/pidf/xmltree"
)

// Every condition says what it asks for and what was there.
func TestExplain(t *testing.T) {
	const list = `<ocp:external-list><ocp:entry anc="http://x/l"/><ocp:entry anc="http://x/lost"/></ocp:external-list>`
	rs := mustParse(t, rules(rule1("r", `<cr:identity><cr:one id="sip:bob@example.com"/><cr:many domain="example.org"><cr:except id="sip:eve@example.org"/><cr:except domain="a.example"/></cr:many></cr:identity>`+
		`<cr:sphere value="work home"/><cr:validity><cr:from>2026-03-01T10:00:00+01:00</cr:from><cr:until>2026-03-01T11:00:00+01:00</cr:until></cr:validity>`+
		list+`<ocp:other-identity/><ocp:anonymous-request/><x:moon/>`, "allow", `<provide-services><class>a</class><all-services/></provide-services><provide-persons><class>c</class></provide-persons>`+
		`<provide-mood>true</provide-mood><provide-activities>1</provide-activities><op:provide-geopriv>full</op:provide-geopriv><provide-user-input>bare</provide-user-input><provide-unknown-attribute ns="urn:v" name="foo">true</provide-unknown-attribute>`)))
	rs.Source = "the document"
	rs = rs.WithLists(map[string]List{"http://x/l": {Members: members("sip:eve@example.org")}, "http://x/lost": {Missing: "another server's"}})
	_, reports := Explain([]*Ruleset{rs}, Request{Watcher: "sip:eve@example.org", Aliases: []string{"tel:+1201"}, Now: at(t, "2026-03-01T12:00:00Z")})
	r := reports[0]
	if r.Document != "the document" || r.Handling != "allow" || r.Message != "block" || r.Matched || r.Outranked {
		t.Errorf("%+v", r)
	}
	if got, want := strings.Join(r.Grants, "; "), "all-services; persons with class c; provide-activities; provide-mood; provide-geopriv full; provide-user-input bare; provide-unknown-attribute {urn:v}foo"; got != want {
		t.Errorf("grants %s\nwant   %s", got, want)
	}
	const eve = "sip:eve@example.org and tel:+1201"
	for i, want := range []ConditionReport{
		{"identity", false, "sip:bob@example.com or anybody of example.org but sip:eve@example.org and a.example", eve},
		{"sphere", false, "work or home", "undefined"},
		{"validity", false, "2026-03-01T09:00:00Z to 2026-03-01T10:00:00Z", "2026-03-01T12:00:00Z"},
		{"external-list", true, "one of 1 in http://x/l, or one of 0 in http://x/lost (another server's)", eve},
		{"other-identity", false, "an identity that no other rule names", eve + ", but an external list is not readable"},
		{"anonymous-request", false, "a request for anonymity", "none"},
		{"{urn:example:x}moon", false, "", "not understood"},
	} {
		if r.Conditions[i] != want {
			t.Errorf("%+v\nwant %+v", r.Conditions[i], want)
		}
	}
	_, reports = Explain([]*Ruleset{rs}, Request{Anonymous: true, Sphere: "work"})
	if c := reports[0].Conditions; c[0].Is != "not authenticated" || c[1].Is != "work" || c[5].Is != "a request for anonymity" {
		t.Errorf("%+v", c)
	}
	var many strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&many, `<cr:one id="sip:u%04d@example.com"/>`, i)
	}
	_, reports = Explain([]*Ruleset{mustParse(t, rules(rule1("r", `<cr:identity>`+many.String()+`</cr:identity>`, "allow", "")))}, Request{})
	if got := reports[0].Conditions[0].Wants; len(got) > 400 || !strings.HasSuffix(got, " or one of 9992 more") {
		t.Errorf("%d octets: %q", len(got), got)
	}
}

// IM-02, IM-04: the example of the draft; the highest of several wins, what is
// not understood is a block.
func TestMessageRules(t *testing.T) {
	body, err := os.ReadFile("testdata/examples/ser-im-rules-draft-syntax.xml")
	if err != nil {
		t.Fatal(err)
	}
	im := func(id, who, what string) string {
		return `<cr:rule id="` + id + `"><cr:conditions><cr:identity>` + who + `</cr:identity></cr:conditions><cr:actions><im:im-handling>` + what + `</im:im-handling></cr:actions></cr:rule>`
	}
	const bob = `<cr:one id="sip:bob@example.com"/>`
	for _, c := range []struct {
		name, doc, from string
		allowed, match  bool
	}{
		{"IM-04 on the white list", string(body), "sip:jan@example.com", true, true},
		{"IM-04 on the black list", string(body), "sip:smith@example.com", false, true},
		{"IM-05 on neither", string(body), "sip:bob@example.com", false, false},
		{"IM-02 the highest wins", rules(im("a", `<cr:many/>`, "block"), im("b", bob, " allow ")), "sip:bob@example.com", true, true},
		{"IM-02 whatever the order", rules(im("b", bob, "allow"), im("a", `<cr:many/>`, "block")), "sip:bob@example.com", true, true},
		{"IM-02 an unknown value", rules(im("b", bob, "yes")), "sip:bob@example.com", false, true},
		{"IM-02 no action", rules(rule1("a", "", "allow", "")), "sip:bob@example.com", false, true},
		{"CP-01 the action of another namespace", rules(`<cr:rule id="a"><cr:actions><im-handling>allow</im-handling></cr:actions></cr:rule>`), "sip:bob@example.com", false, true},
		{"CP-02 an unauthenticated sender", rules(im("a", `<cr:many/>`, "allow")), "", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Evaluate([]*Ruleset{mustParse(t, c.doc)}, Request{Watcher: c.from})
			if d.Message != c.allowed || d.Matched != c.match {
				t.Errorf("%+v", d)
			}
		})
	}
}

// Transformations are about presence; of other packages an allowed watcher sees
// everything, any other nothing.
func TestPackages(t *testing.T) {
	rs := []*Ruleset{mustParse(t, rules(rule1("a", `<cr:identity><cr:one id="sip:bob@example.com"/></cr:identity>`, "allow", allServices), rule1("b", `<cr:identity><cr:many/></cr:identity>`, "confirm", allServices)))}
	for _, c := range []struct {
		pkg, watcher, want string
	}{
		{"", "sip:bob@example.com", "all-services"},
		{"presence", "sip:bob@example.com", "all-services"},
		{"dialog", "sip:bob@example.com", "all-services all-persons all-devices provide-all-attributes"},
		{"dialog", "sip:carol@example.com", ""},
	} {
		d := Evaluate(rs, Request{Watcher: c.watcher, Package: c.pkg})
		if got := strings.Join(d.Transform.Grants(), " "); got != c.want {
			t.Errorf("%s of %s: %s, want %s", c.pkg, c.watcher, got, c.want)
		}
	}
	for pkg, want := range map[string]Basis{
		"presence": Rules, "dialog": Rules, "conference": Rules, "presence.winfo": Owner, "dialog.winfo": Owner, "presence.winfo.winfo": Owner,
		"message-summary": Owner, "reg": Owner, "as-feature-event": Owner, "winfo": Rules,
	} {
		if got := BasisOf(pkg); got != want {
			t.Errorf("%s: %v, want %v", pkg, got, want)
		}
	}
	for _, b := range []Basis{Rules, Owner, Anybody} {
		if got, ok := ParseBasis(b.String()); !ok || got != b {
			t.Errorf("%v reads as %v", b, got)
		}
	}
	if _, ok := ParseBasis("all"); ok {
		t.Error("an unknown basis is taken")
	}
}

// Common policy is read by namespaces: which is the default one, and in what
// order the parts of a rule stand, does not matter.
func TestTolerance(t *testing.T) {
	const common, pres = `"urn:ietf:params:xml:ns:common-policy"`, `"urn:ietf:params:xml:ns:pres-rules"`
	for name, doc := range map[string]string{
		"CP-01 common policy is the default": `<ruleset xmlns=` + common + ` xmlns:p=` + pres + `><rule id="a"><conditions><identity><one id="sip:bob@example.com"/></identity></conditions>` +
			`<actions><p:sub-handling>allow</p:sub-handling></actions><transformations><p:provide-mood>true</p:provide-mood></transformations></rule></ruleset>`,
		"CP-01 presence rules are the default": `<c:ruleset xmlns:c=` + common + ` xmlns=` + pres + `><c:rule id="a"><c:conditions><c:identity><c:one id="sip:bob@example.com"/></c:identity></c:conditions>` +
			`<c:actions><sub-handling>allow</sub-handling></c:actions><c:transformations><provide-mood>true</provide-mood></c:transformations></c:rule></c:ruleset>`,
		"CP-01 declared where it is used": `<ruleset xmlns=` + common + `><rule id="a"><conditions><identity><one id="sip:bob@example.com"/></identity></conditions>` +
			`<actions><sub-handling xmlns=` + pres + `>allow</sub-handling></actions><transformations><provide-mood xmlns=` + pres + `>true</provide-mood></transformations></rule></ruleset>`,
		"CP-01 another order": `<ruleset xmlns=` + common + ` xmlns:p=` + pres + `><rule id="a"><transformations><p:provide-mood>true</p:provide-mood></transformations>` +
			`<actions><p:sub-handling>allow</p:sub-handling></actions><conditions><identity><one id="sip:bob@example.com"/></identity></conditions></rule></ruleset>`,
		"CP-01 in two pieces": `<ruleset xmlns=` + common + ` xmlns:p=` + pres + `><rule id="a"><conditions><identity><one id="sip:bob@example.com"/></identity></conditions><actions/>` +
			`<actions><p:sub-handling>block</p:sub-handling><p:sub-handling>allow</p:sub-handling></actions><conditions/><transformations><p:provide-mood>true</p:provide-mood></transformations></rule></ruleset>`,
	} {
		rs := []*Ruleset{mustParse(t, doc)}
		d := Evaluate(rs, Request{Watcher: "sip:bob@example.com"})
		if d.Handling != Allow || strings.Join(d.Transform.Grants(), " ") != "provide-mood" {
			t.Errorf("%s: %+v", name, d)
		}
		if d := Evaluate(rs, Request{Watcher: "sip:carol@example.com"}); d.Matched {
			t.Errorf("%s: it matches anybody", name)
		}
	}
}

// Bounds: what is within is taken, one more is refused, and neither costs much.
func TestBounds(t *testing.T) {
	n := func(count int, what string) string { return strings.Repeat(what, count) }
	identity := func(members string) string { return rule1("a", `<cr:identity>`+members+`</cr:identity>`, "allow", "") }
	window := `<cr:from>2026-03-01T10:00:00Z</cr:from><cr:until>2026-03-01T11:00:00Z</cr:until>`
	for _, c := range []struct {
		name string
		most int
		doc  func(n int) string
	}{
		{"rules", maxRules, func(k int) string { return rules(n(k, `<cr:rule id="a"/>`)) }},
		{"elements <many>", maxMany, func(k int) string { return rules(identity(n(k, `<cr:many/>`))) }},
		{"elements <many>", maxMany, func(k int) string { return rules(identity(n(k, `<cr:domain>a</cr:domain>`))) }},
		{"windows of validity", maxWindows, func(k int) string {
			return rules(rule1("a", `<cr:validity>`+n(k, window)+`</cr:validity>`, "allow", ""))
		}},
		{"spheres", maxSpheres, func(k int) string { return rules(rule1("a", `<cr:sphere value="`+n(k, "w ")+`"/>`, "allow", "")) }},
		{"external lists", maxLists, func(k int) string {
			return rules(rule1("a", `<ocp:external-list>`+n(k, `<ocp:entry anc="http://x/"/>`)+`</ocp:external-list>`, "allow", ""))
		}},
		{"members of transformations", maxSelectors, func(k int) string {
			var b strings.Builder
			for i := range k {
				fmt.Fprintf(&b, `<provide-persons><class>%d</class></provide-persons>`, i)
			}
			return rules(rule1("a", "", "allow", b.String()))
		}},
		{"nested elements", 32, func(k int) string { return rules(n(k-1, `<x:a>`) + n(k-1, `</x:a>`)) }},
	} {
		if _, err := Parse([]byte(c.doc(c.most))); err != nil {
			t.Errorf("%d %s: %v", c.most, c.name, err)
		}
		var e *Error
		if _, err := Parse([]byte(c.doc(c.most + 1))); !errors.As(err, &e) || e.Kind != xmltree.KindTooLarge || !strings.Contains(err.Error(), c.name) {
			t.Errorf("%d %s: %v", c.most+1, c.name, err)
		}
	}
	// Documents as large as they may be, made to be slow.
	for name, doc := range map[string]string{
		"identities":      rules(identity(n(65_000, `<cr:one id="a"/>`))),
		"exceptions":      rules(identity(n(500, `<cr:domain>a</cr:domain>`) + n(32_000, `<cr:except id="b"/>`))),
		"bad exceptions":  rules(identity(n(40_000, `<cr:domain>a</cr:domain>`) + `<cr:except/>`)),
		"attributes":      rules(rule1("a", "", "allow", n(10_000, `<provide-unknown-attribute ns="urn:v" name="foo">1</provide-unknown-attribute>`))),
		"transformations": rules(rule1("a", "", "allow", n(30_000, `<provide-services><class>1</class></provide-services>`))),
	} {
		start := time.Now()
		rs, err := Parse([]byte(doc))
		if err == nil {
			for range 100 {
				Evaluate([]*Ruleset{rs}, Request{Watcher: "sip:bob@example.com"})
			}
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%s: %v for %d octets", name, d, len(doc))
		}
	}
}
