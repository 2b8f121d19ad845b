package policy

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"rollcall/pa/pidf"
)

func at(t testing.TB, s string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mustParse(t testing.TB, body string) *Ruleset {
	t.Helper()
	rs, err := Parse([]byte(body))
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, body)
	}
	return rs
}

// rules wraps rules into a document with the usual prefixes.
func rules(rules ...string) string {
	return `<cr:ruleset xmlns="urn:ietf:params:xml:ns:pres-rules" xmlns:cr="urn:ietf:params:xml:ns:common-policy"` +
		` xmlns:ocp="urn:oma:xml:xdm:common-policy" xmlns:op="urn:oma:xml:prs:pres-rules" xmlns:im="urn:iptel:xml:ns:im-rules" xmlns:x="urn:example:x">` + strings.Join(rules, "") + `</cr:ruleset>`
}

func rule1(id, conditions, handling, transformations string) string {
	r := `<cr:rule id="` + id + `">`
	if conditions != "" {
		r += `<cr:conditions>` + conditions + `</cr:conditions>`
	}
	if handling != "" {
		r += `<cr:actions><sub-handling>` + handling + `</sub-handling></cr:actions>`
	}
	return r + `<cr:transformations>` + transformations + `</cr:transformations></cr:rule>`
}

func TestConditions(t *testing.T) {
	const bob, carol = "sip:bob@example.com", "sip:carol@example.org"
	id := func(members string) string { return `<cr:identity>` + members + `</cr:identity>` }
	tests := []struct {
		name       string
		conditions string
		request    Request
		want       string // "" matched, else what failed
	}{
		{"CP-02 no conditions", "", Request{}, ""},
		{"CP-02 no conditions, authenticated", "", Request{Watcher: bob}, ""},
		{"CP-02 all must hold", id(`<cr:one id="sip:bob@example.com"/>`) + `<cr:sphere value="work"/>`, Request{Watcher: bob}, "sphere"},
		{"CP-01 unknown condition", `<x:moon phase="full"/>`, Request{Watcher: bob}, "{urn:example:x}moon"},
		{"CP-01 unknown condition in the common-policy namespace", `<cr:moon/>`, Request{Watcher: bob}, "{urn:ietf:params:xml:ns:common-policy}moon"},
		{"CP-01 sphere of another namespace", `<x:sphere value="work"/>`, Request{Sphere: "work"}, "{urn:example:x}sphere"},
		{"CP-01 unknown identity", id(`<x:robot/>`), Request{Watcher: bob}, "identity"},
		{"CP-01 unknown identity beside a known one", id(`<x:robot/><cr:one id="sip:bob@example.com"/>`), Request{Watcher: bob}, ""},
		{"CP-01 one with an unknown restriction", id(`<cr:one id="sip:bob@example.com"><x:only/></cr:one>`), Request{Watcher: bob}, "identity"},

		{"CP-03 one", id(`<cr:one id="sip:carol@example.org"/><cr:one id="sip:bob@example.com"/>`), Request{Watcher: bob}, ""},
		{"CP-03 one, another", id(`<cr:one id="sip:carol@example.org"/>`), Request{Watcher: bob}, "identity"},
		{"CP-03 one, not authenticated", id(`<cr:one id="sip:carol@example.org"/>`), Request{}, "identity"},
		{"CP-03 one, other spellings", id(`<cr:one id=" pres:b%6fb@EXAMPLE.com;transport=tcp "/>`), Request{Watcher: bob}, ""},
		{"CP-03 many", id(`<cr:many/>`), Request{Watcher: bob}, ""},
		{"CP-03 many, not authenticated", id(`<cr:many/>`), Request{}, "identity"},
		{"CP-03 many of a domain", id(`<cr:many domain="example.com"/>`), Request{Watcher: bob}, ""},
		{"CP-03 many of another domain", id(`<cr:many domain="example.com"/>`), Request{Watcher: carol}, "identity"},
		{"CP-03 many except one", id(`<cr:many><cr:except id="sip:bob@example.com"/></cr:many>`), Request{Watcher: bob}, "identity"},
		{"CP-03 many except a domain", id(`<cr:many><cr:except domain="example.com"/></cr:many>`), Request{Watcher: bob}, "identity"},
		{"CP-03 many except others", id(`<cr:many><cr:except domain="example.com"/><cr:except id="sip:bob@example.org"/></cr:many>`), Request{Watcher: carol}, ""},
		{"CP-03 many with an unknown exception", id(`<cr:many><x:except id="sip:bob@example.com"/></cr:many>`), Request{Watcher: carol}, "identity"},
		{"CP-03 many with an empty exception", id(`<cr:many><cr:except/></cr:many>`), Request{Watcher: carol}, "identity"},
		{"CP-03 empty identity, not authenticated", id(``), Request{}, ""},
		{"CP-03 empty identity, authenticated", id(``), Request{Watcher: bob}, "identity"},

		{"PR-03 any of several identities", id(`<cr:one id="tel:+1-201-555-0123"/>`), Request{Watcher: bob, Aliases: []string{"tel:+12015550123"}}, ""},
		{"PR-03 an exception for any of several", id(`<cr:many><cr:except id="sip:bob@example.com"/></cr:many>`), Request{Watcher: carol, Aliases: []string{bob}}, "identity"},
		{"PR-03 tel is not sip", id(`<cr:one id="tel:+12015550123"/>`), Request{Watcher: "sip:+12015550123@example.com"}, "identity"},
		{"PR-03 aliases do not authenticate", id(`<cr:many/>`), Request{Aliases: []string{bob}}, "identity"},

		{"CP-04 case and escapes", id(`<cr:many domain="EX%41mple.COM"/>`), Request{Watcher: bob}, ""},
		{"CP-04 no sub-domains", id(`<cr:many domain="example.com"/>`), Request{Watcher: "sip:bob@a.example.com"}, "identity"},
		{"CP-04 not by length", id(`<cr:many domain="ple.com"/>`), Request{Watcher: bob}, "identity"},
		{"CP-04 internationalised", id(`<cr:many domain="Bücher.example"/>`), Request{Watcher: "sip:a@xn--bcher-kva.example"}, ""},
		{"CP-04 port of the watcher", id(`<cr:many domain="example.com"/>`), Request{Watcher: "sip:bob@example.com:5070;x=y"}, ""},
		{"CP-04 tel has no domain", id(`<cr:many domain="example.com"/>`), Request{Watcher: "tel:+12015550123"}, "identity"},
		{"CP-04 empty domain", id(`<cr:many domain=""/>`), Request{Watcher: bob}, "identity"},
		{"CP-04 bad escape", id(`<cr:many domain="example.com%"/>`), Request{Watcher: bob}, "identity"},

		{"CP-05 sphere", `<cr:sphere value="home  WORK"/>`, Request{Sphere: "work"}, ""},
		{"CP-05 another sphere", `<cr:sphere value="home work"/>`, Request{Sphere: "travel"}, "sphere"},
		{"PR-04 sphere undefined", `<cr:sphere value=""/>`, Request{}, "sphere"},

		{"CP-06 inside", `<cr:validity><cr:from>2026-03-01T10:00:00+01:00</cr:from><cr:until>2026-03-01T11:00:00+01:00</cr:until></cr:validity>`, Request{Now: at(t, "2026-03-01T09:00:00Z")}, ""},
		{"CP-06 until is outside", `<cr:validity><cr:from>2026-03-01T10:00:00+01:00</cr:from><cr:until>2026-03-01T11:00:00+01:00</cr:until></cr:validity>`, Request{Now: at(t, "2026-03-01T10:00:00Z")}, "validity"},
		{"CP-06 second pair", `<cr:validity><cr:from>2025-03-01T10:00:00Z</cr:from><cr:until>2025-03-01T11:00:00Z</cr:until><cr:from>2026-03-01T08:00:00.5Z</cr:from><cr:until>2026-03-01T10:00:00Z</cr:until></cr:validity>`, Request{Now: at(t, "2026-03-01T09:00:00Z")}, ""},
		{"CP-06 no zone", `<cr:validity><cr:from>2026-03-01T08:00:00</cr:from><cr:until>2026-03-01T10:00:00</cr:until></cr:validity>`, Request{Now: at(t, "2026-03-01T09:00:00Z")}, "validity"},
		{"CP-06 half a pair", `<cr:validity><cr:from>2026-03-01T08:00:00Z</cr:from></cr:validity>`, Request{Now: at(t, "2026-03-01T09:00:00Z")}, "validity"},

		{"IM-04 draft syntax", id(`<cr:id>sip:carol@example.org</cr:id><cr:id> sip:bob@example.com </cr:id>`), Request{Watcher: bob}, ""},
		{"IM-04 draft syntax, another", id(`<cr:id>sip:carol@example.org</cr:id>`), Request{Watcher: bob}, "identity"},
		{"IM-04 draft domain", id(`<cr:domain>example.com</cr:domain>`), Request{Watcher: bob}, ""},
		{"IM-04 draft domain with exception", id(`<cr:domain>example.com</cr:domain><cr:except entity="sip:bob@example.com"/>`), Request{Watcher: bob}, "identity"},
		{"IM-04 draft any-identity", id(`<cr:any-identity><cr:except-domain>example.com</cr:except-domain></cr:any-identity>`), Request{Watcher: carol}, ""},
		{"IM-04 draft any-identity with exception", `<cr:any-identity><cr:except-domain>example.com</cr:except-domain></cr:any-identity>`, Request{Watcher: bob}, "any-identity"},

		{"OMA-01 external list", `<ocp:external-list><ocp:entry anc="http://xcap.example.com/l"/></ocp:external-list>`, Request{Watcher: bob}, ""},
		{"OMA-01 an alias in the list", `<ocp:external-list><ocp:entry anc="http://xcap.example.com/other"/><ocp:entry anc=" http://xcap.example.com/l "/></ocp:external-list>`, Request{Watcher: carol, Aliases: []string{bob}}, ""},
		{"OMA-01 not in the list", `<ocp:external-list><ocp:entry anc="http://xcap.example.com/l"/></ocp:external-list>`, Request{Watcher: carol}, "external-list"},
		{"OMA-01 not authenticated", `<ocp:external-list><ocp:entry anc="http://xcap.example.com/l"/></ocp:external-list>`, Request{}, "external-list"},
		{"OMA-01 no entry", `<ocp:external-list/>`, Request{Watcher: bob}, "external-list"},
		{"OMA-01 an entry of another namespace", `<ocp:external-list><x:entry anc="http://xcap.example.com/l"/></ocp:external-list>`, Request{Watcher: bob}, "external-list"},
		{"OMA-01 nobody knows the list", `<ocp:external-list><ocp:entry anc="http://xcap.example.com/secret"/></ocp:external-list>`, Request{Watcher: bob}, "external-list"},
		{"OMA-01 a list known in part", `<ocp:external-list><ocp:entry anc="http://xcap.example.com/part"/></ocp:external-list>`, Request{Watcher: bob}, ""},
		{"OMA-01 anonymous", `<ocp:anonymous-request/>`, Request{Watcher: bob, Anonymous: true}, ""},
		{"OMA-01 not anonymous", `<ocp:anonymous-request/>`, Request{Watcher: bob}, "anonymous-request"},
		{"OMA-01 other identity", `<ocp:other-identity/>`, Request{Watcher: bob}, ""},
		{"OMA-01 anonymous by its URI", `<ocp:anonymous-request/>`, Request{Watcher: "sip:anonymous@anonymous.invalid"}, ""},
		{"PR-03 anonymous is not authenticated", id(`<cr:many/>`), Request{Watcher: "sip:anonymous@anonymous.invalid", Aliases: []string{bob}}, "identity"},
		{"OMA-01 other identity, anonymous", `<ocp:other-identity/>`, Request{Watcher: "sip:anonymous@anonymous.invalid"}, "other-identity"},
		{"OMA-01 other identity, not authenticated", `<ocp:other-identity/>`, Request{}, "other-identity"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rs := mustParse(t, rules(rule1("a", tt.conditions, "allow", "")))
			rs = rs.WithLists(map[string]List{
				"http://xcap.example.com/l": {Members: members(bob)}, "http://xcap.example.com/other": {},
				"http://xcap.example.com/part": {Members: members(bob), Missing: "too long"},
			})
			d, reports := Explain([]*Ruleset{rs}, tt.request)
			failed := ""
			for _, c := range reports[0].Conditions {
				if !c.Holds && failed == "" {
					failed = c.Condition
				}
			}
			if len(reports) != 1 || reports[0].ID != "a" || failed != tt.want {
				t.Fatalf("%+v", reports)
			}
			if matched := tt.want == ""; d.Matched != matched || reports[0].Matched != matched || (d.Handling == Allow) != matched {
				t.Errorf("%+v", d)
			}
			if e := Evaluate([]*Ruleset{rs}, tt.request); e.Matched != d.Matched {
				t.Error("Evaluate and Explain differ")
			}
		})
	}
}

func TestCombining(t *testing.T) {
	block := rule1("block", "", "block", "")
	confirm := rule1("confirm", `<cr:identity><cr:many/></cr:identity>`, "confirm", `<provide-persons><class>a</class></provide-persons><provide-mood>true</provide-mood>`)
	allow := rule1("allow", `<cr:identity><cr:one id="sip:bob@example.com"/></cr:identity>`, "allow", `<provide-persons><class>b</class></provide-persons><provide-mood>false</provide-mood>`)
	polite := rule1("polite", "", " polite-block ", "")
	odd := rule1("odd", "", "permit", `<x:everything/>`)
	tests := []struct {
		name  string
		docs  []string
		watch string
		want  Handling
		match bool
	}{
		{"PR-05 nothing matches", []string{rules(allow)}, "sip:carol@example.com", Block, false},
		{"PR-05 no rules", []string{rules()}, "sip:carol@example.com", Block, false},
		{"PR-05 maximum", []string{rules(block, confirm, allow, polite)}, "sip:bob@example.com", Allow, true},
		{"PR-05 block is no veto", []string{rules(allow, block)}, "sip:bob@example.com", Allow, true},
		{"PR-05 polite-block over confirm", []string{rules(confirm, polite, block)}, "sip:bob@example.com", PoliteBlock, true},
		{"PR-05 confirm", []string{rules(confirm, allow)}, "sip:carol@example.com", Confirm, true},
		{"PR-05 unknown value grants nothing", []string{rules(odd)}, "sip:carol@example.com", Block, true},
		{"PR-02 several documents", []string{rules(confirm), rules(), rules(allow)}, "sip:bob@example.com", Allow, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var sets []*Ruleset
			for _, doc := range tt.docs {
				sets = append(sets, mustParse(t, doc))
			}
			r := Request{Watcher: tt.watch}
			d := Evaluate(sets, r)
			if d.Handling != tt.want || d.Matched != tt.match {
				t.Errorf("%+v", d)
			}
			slices.Reverse(sets)
			if e := Evaluate(sets, r); e.Handling != d.Handling || e.Transform.Key() != d.Transform.Key() {
				t.Error("CP-07 the order of documents matters")
			}
		})
	}
	t.Run("CP-07 union of sets, OR of booleans", func(t *testing.T) {
		d := Evaluate([]*Ruleset{mustParse(t, rules(confirm, allow))}, Request{Watcher: "sip:bob@example.com"})
		if want := []member{{"class", "a"}, {"class", "b"}}; !slices.Equal(d.Transform.persons.members, want) || d.Transform.attributes != mood {
			t.Errorf("%+v", d.Transform)
		}
	})
}

// CP-07: the example of RFC 4745, 10.3, with provide-mood for X and
// sub-handling for Y.
func TestCombiningExample(t *testing.T) {
	when := func(from, until string) string {
		return `<cr:validity><cr:from>2003-12-` + from + `:00+01:00</cr:from><cr:until>2003-12-` + until + `:00+01:00</cr:until></cr:validity>`
	}
	who := func(name, sphere string) string {
		return `<cr:identity><cr:one id="sip:` + name + `@example.com"/></cr:identity><cr:sphere value="` + sphere + `"/>`
	}
	const yes, no = `<provide-mood>true</provide-mood>`, `<provide-mood>false</provide-mood>`
	rs := mustParse(t, rules(
		rule1("1", who("bob", "home")+when("24T17:00", "24T21:00"), "allow", yes),
		rule1("2", who("alice", "work")+when("24T17:00", "24T21:00"), "allow", no),
		rule1("3", who("bob", "work")+when("24T17:00", "24T21:00"), "block", yes),
		rule1("4", who("tom", "work")+when("24T17:00", "24T21:00"), "allow", yes),
		rule1("5", who("bob", "work")+when("24T17:00", "24T23:30"), "confirm", ""),
		rule1("6", who("bob", "work")+when("22T17:00", "23T17:00"), "allow", no),
	))
	d, reports := Explain([]*Ruleset{rs}, Request{Watcher: "sip:bob@example.com", Sphere: "work", Now: at(t, "2003-12-24T17:15:00+01:00")})
	fired := matched(reports)
	if strings.Join(fired, " ") != "3 5" || d.Handling != Confirm || d.Transform.attributes != mood {
		t.Errorf("fired %v: %+v", fired, d)
	}
	if !d.NextChange.Equal(at(t, "2003-12-24T21:00:00+01:00")) {
		t.Errorf("CP-06 next change %v", d.NextChange)
	}
}

func TestNextChange(t *testing.T) {
	const bob = `<cr:identity><cr:one id="sip:bob@example.com"/></cr:identity>`
	window := func(from, until string) string {
		return `<cr:from>2026-03-` + from + `T00:00:00Z</cr:from><cr:until>2026-03-` + until + `T00:00:00Z</cr:until>`
	}
	tests := []struct{ name, conditions, now, want string }{
		{"CP-06 none", bob, "05", ""},
		{"CP-06 before", bob + `<cr:validity>` + window("10", "12") + `</cr:validity>`, "05", "10"},
		{"CP-06 inside", bob + `<cr:validity>` + window("10", "12") + `</cr:validity>`, "10", "12"},
		{"CP-06 after", bob + `<cr:validity>` + window("10", "12") + `</cr:validity>`, "12", ""},
		{"CP-06 next pair", bob + `<cr:validity>` + window("10", "12") + window("14", "16") + `</cr:validity>`, "12", "14"},
		{"CP-06 pairs that are no interval", bob + `<cr:validity>` + window("12", "10") + window("12", "12") + `</cr:validity>`, "05", ""},
		{"CP-06 two conditions", bob + `<cr:validity>` + window("10", "12") + `</cr:validity><cr:validity>` + window("08", "11") + `</cr:validity>`, "09", "10"},
		{"CP-06 another watcher's rule", `<cr:validity>` + window("10", "12") + `</cr:validity><cr:identity><cr:one id="sip:carol@example.com"/></cr:identity>`, "05", ""},
		{"CP-06 other sphere", `<cr:validity>` + window("10", "12") + `</cr:validity><cr:sphere value="work"/>`, "05", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rs := mustParse(t, rules(rule1("a", tt.conditions, "allow", "")))
			d := Evaluate([]*Ruleset{rs}, Request{Watcher: "sip:bob@example.com", Now: at(t, "2026-03-"+tt.now+"T00:00:00Z")})
			want := time.Time{}
			if tt.want != "" {
				want = at(t, "2026-03-"+tt.want+"T00:00:00Z")
			}
			if !d.NextChange.Equal(want) {
				t.Errorf("%v", d.NextChange)
			}
		})
	}
}

// OMA-02: identity before external-list before other-identity, as the default
// rules of RCS use them.
func TestOMAPrecedence(t *testing.T) {
	list := func(name string) string {
		return `<ocp:external-list><ocp:entry anc="http://xcap.example.com/` + name + `"/></ocp:external-list>`
	}
	rs := mustParse(t, rules(
		rule1("wp_prs_allow_own", `<cr:identity><cr:one id="sip:alice@example.com"/></cr:identity>`, "allow", ""),
		rule1("wp_prs_grantedcontacts", list("granted"), "allow", ""),
		rule1("wp_prs_blockedcontacts", list("blocked"), "block", ""),
		rule1("wp_prs_unlisted", `<ocp:other-identity/>`, "confirm", ""),
		rule1("wp_prs_block_anonymous", `<ocp:anonymous-request/>`, "block", ""),
		rule1("enemy", `<cr:identity><cr:one id="sip:eve@example.com"/></cr:identity>`, "block", ""),
	))
	if got := rs.ExternalLists(); len(got) != 2 || got[0] != "http://xcap.example.com/granted" {
		t.Errorf("lists %q", got)
	}
	known := map[string]List{
		"http://xcap.example.com/granted": {Members: members("sip:bob@example.com", "sip:eve@example.com")},
		"http://xcap.example.com/blocked": {Members: members("sip:mallory@example.com")},
	}
	for _, tt := range []struct {
		name, watcher, fired string
		want                 Handling
	}{
		{"OMA-02 self", "sip:alice@example.com", "wp_prs_allow_own", Allow},
		{"OMA-02 granted", "sip:bob@example.com", "wp_prs_grantedcontacts", Allow},
		{"OMA-02 blocked list outranks other-identity", "sip:mallory@example.com", "wp_prs_blockedcontacts", Block},
		{"OMA-02 unlisted", "sip:carol@example.com", "wp_prs_unlisted", Confirm},
		{"OMA-02 identity outranks a list", "sip:eve@example.com", "enemy", Block},
		{"OMA-02 not authenticated", "", "", Block},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, reports := Explain([]*Ruleset{rs.WithLists(known)}, Request{Watcher: tt.watcher})
			fired := matched(reports)
			if strings.Join(fired, " ") != tt.fired || d.Handling != tt.want {
				t.Errorf("fired %v, %v: %+v", fired, d.Handling, reports)
			}
		})
	}
	t.Run("PR-18 a list that cannot be read makes nobody another", func(t *testing.T) {
		for _, lists := range []map[string]List{
			nil,
			{"http://xcap.example.com/granted": known["http://xcap.example.com/granted"]},
			{"http://xcap.example.com/granted": known["http://xcap.example.com/granted"], "http://xcap.example.com/blocked": {Missing: "another server's"}},
		} {
			set := rs
			if lists != nil {
				set = rs.WithLists(lists)
			}
			for _, w := range []string{"sip:mallory@example.com", "sip:carol@example.com"} {
				if d := Evaluate([]*Ruleset{set}, Request{Watcher: w}); d.Matched {
					t.Errorf("%s counts as another although a list is not known: %v", w, d.Handling)
				}
			}
			if d := Evaluate([]*Ruleset{set}, Request{Watcher: "sip:alice@example.com"}); d.Handling != Allow {
				t.Error("an identity has nothing to do with lists")
			}
		}
	})
}

// matched are the rules that counted.
func matched(reports []RuleReport) (ids []string) {
	for _, r := range reports {
		if r.Matched {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

func members(uris ...string) map[string]struct{} {
	m := map[string]struct{}{}
	for _, u := range uris {
		m[u] = struct{}{}
	}
	return m
}

func TestParseRefuses(t *testing.T) {
	for name, body := range map[string]string{
		"PR-18 not XML":         "rules",
		"PR-18 another root":    `<rules xmlns="urn:ietf:params:xml:ns:common-policy"/>`,
		"PR-18 no namespace":    `<ruleset/>`,
		"PR-18 DOCTYPE":         `<!DOCTYPE a>` + rules(),
		"PR-18 pres-rules root": `<ruleset xmlns="urn:ietf:params:xml:ns:pres-rules"/>`,
	} {
		t.Run(name, func(t *testing.T) {
			var e *Error
			if _, err := Parse([]byte(body)); !errors.As(err, &e) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob("testdata/examples/*.xml")
	if err != nil || len(files) < 9 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	now := at(t, "2003-12-24T17:15:00+01:00")
	want := map[string]string{ // rules that match, for each file by watcher
		"rfc4745-s12-7-ruleset.xml":         "",
		"rfc4745-s7.1.2-1-ruleset.xml":      "sip:alice@example.com f3g44r1",
		"rfc4745-s7.1.3.1-2-ruleset.xml":    "sip:zoe@example.org f3g44r5",
		"rfc4745-s7.1.3.2-3-ruleset.xml":    "sip:zoe@example.net f3g44r1",
		"rfc4745-s7.1.3.3-4-ruleset.xml":    "sip:carol@example.com f3g44r1",
		"rfc4745-s7.3-5-ruleset.xml":        "sip:john@doe.example.com z6y55r2",
		"rfc4745-s7.4-6-ruleset.xml":        "",
		"rfc5025-s6-1-ruleset.xml":          "sip:user@example.com a",
		"oma-rcs-pres-rules.xml":            "sip:alice@example.com wp_prs_allow_own",
		"oma-rcs-pres-rules.xml (2)":        "sip:bob@example.com wp_prs_grantedcontacts",
		"oma-rcs-pres-rules.xml (3)":        "sip:mallory@example.com wp_prs_blockedcontacts",
		"oma-rcs-pres-rules.xml (4)":        "sip:carol@example.com wp_prs_unlisted",
		"oma-rcs-pres-rules.xml (5)":        "sip:anonymous@anonymous.invalid rcs_allow_services_anonymous",
		"ser-im-rules-draft-syntax.xml":     "sip:smith@example.com blacklist",
		"ser-im-rules-draft-syntax.xml (2)": "sip:jan@example.com whitelist",
	}
	for name, w := range want {
		file, _, _ := strings.Cut(name, " ")
		body, err := os.ReadFile(filepath.Join("testdata", "examples", file))
		if err != nil {
			t.Fatal(err)
		}
		rs := mustParse(t, string(body))
		if rs.Len() == 0 {
			t.Errorf("%s: no rules", name)
		}
		const contacts = "http://xcap.example.com/resource-lists/users/sip:alice@example.com/index/~~/resource-lists/list%5B@name=%22oma_"
		rs = rs.WithLists(map[string]List{
			contacts + "grantedcontacts%22%5D": {Members: members("sip:bob@example.com")},
			contacts + "blockedcontacts%22%5D": {Members: members("sip:mallory@example.com")},
		})
		watcher, id, _ := strings.Cut(w, " ")
		_, reports := Explain([]*Ruleset{rs}, Request{Watcher: watcher, Sphere: "work", Now: now})
		fired := matched(reports)
		if strings.Join(fired, " ") != id {
			t.Errorf("%s: fired %v, want %q: %+v", name, fired, id, reports)
		}
	}
	t.Run("PR-13 RFC 5025 section 6", func(t *testing.T) {
		body, err := os.ReadFile("testdata/examples/rfc5025-s6-1-ruleset.xml")
		if err != nil {
			t.Fatal(err)
		}
		d := Evaluate([]*Ruleset{mustParse(t, string(body))}, Request{Watcher: "sip:user@example.com"})
		if d.Handling != Allow || len(d.Transform.services.members) != 2 || !d.Transform.persons.all || d.Transform.devices.all ||
			d.Transform.attributes != activities || d.Transform.input != inputBare || len(d.Transform.unknown) != 1 {
			t.Errorf("%+v", d)
		}
	})
}

func TestPoliteBlock(t *testing.T) {
	// PR-10: the same shape as that of a presentity of whom nothing is published.
	if string(PoliteBlockDocument("sip:a@example.com")) != string(pidf.Offline("sip:a@example.com")) {
		t.Error("a watcher can tell polite-block from offline")
	}
}

func TestPunycode(t *testing.T) {
	// Samples of RFC 3492, 7.1 (A, B, I, L) and common names.
	for in, want := range map[string]string{
		"ليهمابتكلموشعربي؟":            "egbpdaj6bu4bxfgehfvwxn",
		"他们为什么不说中文":                    "ihqwcrb4cv8a8dqg056pqjye",
		"почемужеонинеговорятпорусски": "b1abfaaepdrnnbgefbadotcwatmq2g4l",
		"3年b組金八先生":                     "3b-ww4c5e180e575a65lsy2b",
		"bücher":                       "bcher-kva",
		"münchen":                      "mnchen-3ya",
	} {
		if got, ok := punycode(in); !ok || got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/examples/*.xml")
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil {
			f.Add(b)
		}
	}
	f.Add([]byte(rules(rule1("a", `<ocp:other-identity/><cr:validity><cr:from>2026-03-01T10:00:00Z</cr:from><cr:until>2027-03-01T10:00:00Z</cr:until></cr:validity>`, "allow",
		`<provide-services><all-services/></provide-services><provide-persons><occurrence-id>p1</occurrence-id></provide-persons><provide-all-attributes/><op:provide-willingness>1</op:provide-willingness>`))))
	now := at(f, "2026-06-01T00:00:00Z")
	doc, err := pidf.Parse([]byte(sample), pidf.Limits{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		rs, err := Parse(b)
		if err != nil {
			return
		}
		anchors := rs.ExternalLists()
		if rs.Len() > maxRules || len(anchors) > maxLists {
			t.Fatalf("%d rules, %d lists", rs.Len(), len(anchors))
		}
		known := map[string]List{}
		for i, a := range anchors {
			known[a] = List{Members: members("sip:user@example.com")}
			if i == 7 {
				known[a] = List{Missing: "lost"}
			}
		}
		rs = rs.WithLists(known)
		for _, w := range []string{"", "sip:alice@example.com", "sip:user@example.com", "sip:anonymous@anonymous.invalid"} {
			r := Request{Watcher: w, Sphere: "work", Now: now}
			once, twice := Evaluate([]*Ruleset{rs}, r), Evaluate([]*Ruleset{rs, rs}, r)
			if once.Handling != twice.Handling || once.Matched != twice.Matched || once.Transform.Key() != twice.Transform.Key() || !once.NextChange.Equal(twice.NextChange) {
				t.Fatalf("a document counted twice differs: %+v %+v", once, twice)
			}
			if once.Handling.String() == "unknown" || !once.NextChange.IsZero() && !once.NextChange.After(now) {
				t.Fatalf("%+v", once)
			}
			explained, reports := Explain([]*Ruleset{rs}, r)
			for _, rep := range reports {
				if rep.Matched && rep.Outranked {
					t.Fatalf("%+v", rep)
				}
			}
			if len(reports) != rs.Len() || explained.Handling != once.Handling || explained.Matched != once.Matched {
				t.Fatalf("%d reports of %d rules, %+v", len(reports), rs.Len(), explained)
			}
			out, err := once.Transform.Apply(doc)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := pidf.Parse(out.Bytes(), pidf.Limits{}); err != nil {
				t.Fatalf("%v\n%s", err, out.Bytes())
			}
			if !once.Matched && out.Tuples() != 0 {
				t.Fatal("no rule matched, but something is shown")
			}
		}
	})
}
