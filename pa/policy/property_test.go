package policy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"rollcall/pa/pidf"
)

// A second evaluator, written from RFC 4745 and RFC 5025 word by word and as
// plainly as possible, on rules as data instead of XML.

type litMember struct {
	kind    string // one, many, unknown
	id      string
	domain  string
	exIDs   []string
	exDoms  []string
	unknown bool // <many> with a child nobody knows
}

type litRule struct {
	identity   *[]litMember // nil: no condition
	spheres    []string     // nil: no condition
	validity   [][2]int     // nil: no condition; hours after the epoch of the test
	unknown    bool         // an unknown condition
	handling   string
	components map[string][]string // services, persons, devices: "all" or classes
	booleans   map[string]bool
	input      string
	foo        bool // provide-unknown-attribute for v:foo
	all        bool
}

type litRequest struct {
	watcher string // user@domain or ""
	sphere  string
	hour    int
}

func (r litRule) matches(q litRequest) bool {
	if r.unknown {
		return false
	}
	if r.identity != nil {
		some := false
		for _, m := range *r.identity {
			switch m.kind {
			case "one":
				some = some || q.watcher != "" && q.watcher == m.id
			case "many":
				if q.watcher == "" || m.unknown {
					continue
				}
				domain := q.watcher[strings.Index(q.watcher, "@")+1:]
				ok := m.domain == "" || m.domain == domain
				for _, e := range m.exIDs {
					ok = ok && e != q.watcher
				}
				for _, e := range m.exDoms {
					ok = ok && e != domain
				}
				some = some || ok
			}
		}
		if len(*r.identity) == 0 {
			some = q.watcher == ""
		}
		if !some {
			return false
		}
	}
	if r.spheres != nil {
		some := false
		for _, s := range r.spheres {
			some = some || q.sphere != "" && strings.EqualFold(s, q.sphere)
		}
		if !some {
			return false
		}
	}
	if r.validity != nil {
		some := false
		for _, w := range r.validity {
			some = some || w[0] <= q.hour && q.hour < w[1]
		}
		if !some {
			return false
		}
	}
	return true
}

var litHandling = map[string]int{"": 0, "block": 0, "confirm": 10, "polite-block": 20, "allow": 30}

// litVisible tells which of the marks of litDoc the rules show.
func litVisible(rs []litRule, q litRequest) (handling int, visible map[string]bool) {
	visible = map[string]bool{}
	var on []litRule
	for _, r := range rs {
		if r.matches(q) {
			on = append(on, r)
			handling = max(handling, litHandling[r.handling])
		}
	}
	shown := func(component, class string) bool {
		for _, r := range on {
			for _, c := range r.components[component] {
				if c == "all" || c == class {
					return true
				}
			}
		}
		return false
	}
	all := false
	for _, r := range on {
		all = all || r.all
	}
	granted := func(permission string) bool {
		for _, r := range on {
			if r.booleans[permission] {
				return true
			}
		}
		return all
	}
	foo, input := all, 0
	for _, r := range on {
		foo = foo || r.foo
		switch r.input {
		case "bare":
			input = max(input, 10)
		case "thresholds":
			input = max(input, 20)
		case "full":
			input = max(input, 30)
		}
	}
	if all {
		input = 30
	}
	for _, class := range []string{"c1", "c2"} {
		if shown("services", class) {
			visible["T-"+class] = true
			for _, p := range []string{"privacy", "relationship", "status-icon", "note"} {
				visible["T-"+class+"-"+p] = granted(p)
			}
			visible["T-"+class+"-foo"] = foo
			visible["T-"+class+"-idle"] = input >= 20
			visible["T-"+class+"-last"] = input >= 30
		}
		if shown("persons", class) {
			visible["P-"+class] = true
			for _, p := range []string{"activities", "mood", "place-is", "place-type", "privacy", "sphere", "status-icon", "time-offset", "note"} {
				visible["P-"+class+"-"+p] = granted(p)
			}
			visible["P-"+class+"-foo"] = foo
		}
		if shown("devices", class) {
			visible["D-"+class] = true
			visible["D-"+class+"-note"] = granted("note")
			visible["D-"+class+"-foo"] = foo
		}
	}
	visible["N-note"] = granted("note")
	return handling, visible
}

// litDoc has two components of each kind, of classes c1 and c2; each mark
// stands in it once, followed by a dot.
func litDoc() (doc string, marks []string) {
	mark := func(m string) string {
		marks = append(marks, m)
		return m + "."
	}
	var b strings.Builder
	b.WriteString(`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid" xmlns:v="urn:example:v" entity="sip:alice@example.com">`)
	text := func(c, class string, names ...string) {
		for _, n := range names {
			fmt.Fprintf(&b, `<r:%s><r:note>%s</r:note></r:%s>`, n, mark(c+"-"+class+"-"+n), n)
		}
	}
	for _, class := range []string{"c1", "c2"} {
		fmt.Fprintf(&b, `<tuple id="%s"><status><basic>open</basic></status><r:class>%s</r:class>`, mark("T-"+class), class)
		text("T", class, "privacy", "relationship", "status-icon")
		fmt.Fprintf(&b, `<r:user-input idle-threshold="%s" last-input="%s">active</r:user-input>`, mark("T-"+class+"-idle"), mark("T-"+class+"-last"))
		fmt.Fprintf(&b, `<v:foo>%s</v:foo><note>%s</note></tuple>`, mark("T-"+class+"-foo"), mark("T-"+class+"-note"))
	}
	fmt.Fprintf(&b, `<note>%s</note>`, mark("N-note"))
	for _, class := range []string{"c1", "c2"} {
		fmt.Fprintf(&b, `<dm:person id="%s"><r:class>%s</r:class>`, mark("P-"+class), class)
		text("P", class, "activities", "mood", "place-is", "place-type", "privacy", "sphere", "status-icon", "time-offset")
		fmt.Fprintf(&b, `<v:foo>%s</v:foo><dm:note>%s</dm:note></dm:person>`, mark("P-"+class+"-foo"), mark("P-"+class+"-note"))
		fmt.Fprintf(&b, `<dm:device id="%s"><r:class>%s</r:class>`, mark("D-"+class), class)
		fmt.Fprintf(&b, `<v:foo>%s</v:foo><dm:deviceID>urn:uuid:1</dm:deviceID><dm:note>%s</dm:note></dm:device>`, mark("D-"+class+"-foo"), mark("D-"+class+"-note"))
	}
	b.WriteString(`</presence>`)
	return b.String(), marks
}

var litEpoch = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

func litTime(hour int) string {
	return litEpoch.Add(time.Duration(hour) * time.Hour).In(time.FixedZone("", 3600)).Format(time.RFC3339)
}

func (r litRule) xml(id int) string {
	var c, a, t strings.Builder
	if r.identity != nil {
		c.WriteString(`<cr:identity>`)
		for _, m := range *r.identity {
			switch m.kind {
			case "one":
				fmt.Fprintf(&c, `<cr:one id="sip:%s"/>`, m.id)
			case "many":
				c.WriteString(`<cr:many`)
				if m.domain != "" {
					fmt.Fprintf(&c, ` domain="%s"`, m.domain)
				}
				c.WriteString(`>`)
				for _, e := range m.exIDs {
					fmt.Fprintf(&c, `<cr:except id="sip:%s"/>`, e)
				}
				for _, e := range m.exDoms {
					fmt.Fprintf(&c, `<cr:except domain="%s"/>`, e)
				}
				if m.unknown {
					c.WriteString(`<x:only/>`)
				}
				c.WriteString(`</cr:many>`)
			default:
				c.WriteString(`<x:robots/>`)
			}
		}
		c.WriteString(`</cr:identity>`)
	}
	if r.spheres != nil {
		fmt.Fprintf(&c, `<cr:sphere value="%s"/>`, strings.Join(r.spheres, " "))
	}
	if r.validity != nil {
		c.WriteString(`<cr:validity>`)
		for _, w := range r.validity {
			fmt.Fprintf(&c, `<cr:from>%s</cr:from><cr:until>%s</cr:until>`, litTime(w[0]), litTime(w[1]))
		}
		c.WriteString(`</cr:validity>`)
	}
	if r.unknown {
		c.WriteString(`<x:weather/>`)
	}
	if r.handling != "" {
		fmt.Fprintf(&a, `<sub-handling>%s</sub-handling>`, r.handling)
	}
	for _, k := range []string{"services", "persons", "devices"} {
		members, ok := r.components[k]
		if !ok {
			continue
		}
		fmt.Fprintf(&t, `<provide-%s>`, k)
		for _, m := range members {
			if m == "all" {
				fmt.Fprintf(&t, `<all-%s/>`, k)
			} else {
				fmt.Fprintf(&t, `<class>%s</class>`, m)
			}
		}
		fmt.Fprintf(&t, `</provide-%s>`, k)
	}
	for name, v := range r.booleans {
		fmt.Fprintf(&t, `<provide-%s>%v</provide-%s>`, name, v, name)
	}
	if r.input != "" {
		fmt.Fprintf(&t, `<provide-user-input>%s</provide-user-input>`, r.input)
	}
	if r.foo {
		t.WriteString(`<provide-unknown-attribute ns="urn:example:v" name="foo">true</provide-unknown-attribute>`)
	}
	if r.all {
		t.WriteString(`<provide-all-attributes/>`)
	}
	return fmt.Sprintf(`<cr:rule id="r%d"><cr:conditions>%s</cr:conditions><cr:actions>%s</cr:actions><cr:transformations>%s</cr:transformations></cr:rule>`, id, &c, &a, &t)
}

var (
	litWatchers = []string{"", "bob@example.com", "carol@example.com", "bob@example.org", "dave@a.example.com"}
	litDomains  = []string{"example.com", "example.org", "a.example.com", "com"}
	litSpheres  = []string{"work", "home", "Travel"}
)

func pick[T any](r *rand.Rand, s []T) T { return s[r.IntN(len(s))] }

func randomRule(r *rand.Rand) litRule {
	one := func(n int) bool { return r.IntN(n) == 0 }
	var l litRule
	if !one(4) {
		members := []litMember{}
		for range r.IntN(4) {
			switch r.IntN(5) {
			case 0:
				members = append(members, litMember{kind: "unknown"})
			case 1, 2:
				members = append(members, litMember{kind: "one", id: pick(r, litWatchers[1:])})
			default:
				m := litMember{kind: "many", unknown: one(6)}
				if one(2) {
					m.domain = pick(r, litDomains)
				}
				for range r.IntN(3) {
					m.exIDs = append(m.exIDs, pick(r, litWatchers[1:]))
				}
				if one(3) {
					m.exDoms = append(m.exDoms, pick(r, litDomains))
				}
				members = append(members, m)
			}
		}
		l.identity = &members
	}
	if one(3) {
		l.spheres = []string{pick(r, litSpheres)}
		if one(2) {
			l.spheres = append(l.spheres, pick(r, litSpheres))
		}
	}
	if one(3) {
		l.validity = [][2]int{}
		for range r.IntN(3) {
			l.validity = append(l.validity, [2]int{r.IntN(24), r.IntN(24)})
		}
	}
	l.unknown = one(8)
	l.handling = pick(r, []string{"", "block", "confirm", "polite-block", "allow"})
	l.components = map[string][]string{}
	for _, k := range []string{"services", "persons", "devices"} {
		if one(2) {
			l.components[k] = nil
			for range r.IntN(3) {
				l.components[k] = append(l.components[k], pick(r, []string{"all", "c1", "c2", "c3"}))
			}
		}
	}
	l.booleans = map[string]bool{}
	for _, p := range []string{"activities", "mood", "place-is", "place-type", "privacy", "relationship", "sphere", "status-icon", "time-offset", "note"} {
		if one(3) {
			l.booleans[p] = one(2)
		}
	}
	if one(2) {
		l.input = pick(r, []string{"false", "bare", "thresholds", "full"})
	}
	l.foo = one(4)
	l.all = one(10)
	return l
}

// CP-07, PR-05, PR-11..16: both evaluators agree on generated rules; a
// decision stays as it is until NextChange; more rules never give less.
func TestAgainstLiteralEvaluator(t *testing.T) {
	body, marks := litDoc()
	doc, err := pidf.Parse([]byte(body), pidf.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	rounds := 1500
	if testing.Short() {
		rounds = 100
	}
	matched, shown := 0, 0
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 4745))
		var lits []litRule
		var sets []*Ruleset
		var text string
		for range 1 + r.IntN(2) {
			var xml []string
			for range r.IntN(4) {
				l := randomRule(r)
				lits = append(lits, l)
				xml = append(xml, l.xml(len(lits)))
			}
			sets = append(sets, mustParse(t, rules(xml...)))
			text += rules(xml...) + "\n"
		}
		for _, w := range litWatchers {
			q := litRequest{watcher: w, sphere: pick(r, append(litSpheres, "", "WORK")), hour: r.IntN(24)}
			at := func(hour int) Request {
				req := Request{Sphere: q.sphere, Now: litEpoch.Add(time.Duration(hour) * time.Hour)}
				if w != "" {
					req.Watcher = "sip:" + w
				}
				return req
			}
			d := Evaluate(sets, at(q.hour))
			handling, visible := litVisible(lits, q)
			if int(d.Handling) != handling {
				t.Fatalf("seed %d, %+v: handling %v, want %d\n%s", seed, q, d.Handling, handling, text)
			}
			out, err := d.Transform.Apply(doc)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range marks {
				if got := strings.Contains(string(out.Bytes()), m+"."); got != visible[m] {
					t.Fatalf("seed %d, %+v: %s shown %v, want %v\n%s\n%s", seed, q, m, got, visible[m], text, out.Bytes())
				}
				if visible[m] {
					shown++
				}
			}
			if d.Matched {
				matched++
			}
			for hour := q.hour; hour < 25; hour++ {
				if now := at(hour); d.NextChange.IsZero() || now.Now.Before(d.NextChange) {
					if e := Evaluate(sets, now); e.Handling != d.Handling || e.Transform.Key() != d.Transform.Key() {
						t.Fatalf("seed %d, %+v: CP-06 changed at hour %d, before %v\n%s", seed, q, hour, d.NextChange, text)
					}
				}
			}
			if len(sets) > 1 {
				if less := Evaluate(sets[:1], at(q.hour)); less.Handling > d.Handling {
					t.Fatalf("seed %d: a rule took something away", seed)
				}
			}
		}
	}
	if matched < rounds || shown < rounds {
		t.Errorf("too little was tested: %d matches, %d marks shown", matched, shown)
	}
}

func BenchmarkEvaluate(b *testing.B) {
	var many strings.Builder
	for i := range 500 {
		fmt.Fprintf(&many, `<cr:one id="sip:user%d@example.com"/>`, i)
	}
	rs := mustParse(b, rules(
		rule1("friends", `<cr:identity>`+many.String()+`</cr:identity>`, "allow", allOf+`<provide-all-attributes/>`),
		rule1("domain", `<cr:identity><cr:many domain="example.com"><cr:except id="sip:eve@example.com"/></cr:many></cr:identity>`, "confirm", allServices),
		rule1("work", `<cr:sphere value="work"/>`, "polite-block", ""),
	))
	req := Request{Watcher: "sip:user7@example.com", Sphere: "work", Now: litEpoch}
	b.ReportAllocs()
	for b.Loop() {
		Evaluate([]*Ruleset{rs}, req)
	}
}

func BenchmarkParse(b *testing.B) {
	body := []byte(rules(rule1("friends", `<cr:identity><cr:one id="sip:bob@example.com"/><cr:many domain="example.org"/></cr:identity>`, "allow", allOf+`<provide-all-attributes/>`)))
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(body); err != nil {
			b.Fatal(err)
		}
	}
}
