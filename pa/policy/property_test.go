package policy

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
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
	lists      []string     // nil: no external-list
	other      bool         // other-identity
	anonymous  bool         // anonymous-request
	spheres    []string     // nil: no condition
	validity   [][2]int     // nil: no condition; hours after the epoch of the test
	unknown    bool         // an unknown condition
	handling   string
	message    string              // im-handling
	components map[string][]string // services, persons, devices: "all", or what names some of them and its value
	booleans   map[string]bool
	input      string
	foo        bool // provide-unknown-attribute for v:foo
	all        bool
}

type litRequest struct {
	watcher   string // user@domain or ""
	alias     string // one more, or ""
	anonymous bool
	sphere    string
	hour      int
}

// litLists are the external lists; nobody can read "lost".
var litLists = map[string][]string{"friends": {"bob@example.com", "dave@a.example.com"}, "foes": {"carol@example.com", "bob@example.com"}, "lost": nil}

func (q litRequest) is(uri string) bool {
	return q.watcher != "" && (q.watcher == uri || q.alias == uri)
}

func (q litRequest) of(domain string) bool {
	return q.is(q.watcher) && (strings.HasSuffix(q.watcher, "@"+domain) || strings.HasSuffix(q.alias, "@"+domain))
}

// matches is whether all conditions hold; lost tells that some rule names a
// list which nobody can read.
func (r litRule) matches(q litRequest, lost bool) bool {
	if r.unknown {
		return false
	}
	if r.anonymous && !q.anonymous {
		return false
	}
	if r.other && (q.watcher == "" || lost) {
		return false
	}
	if r.lists != nil {
		some := false
		for _, l := range r.lists {
			for _, m := range litLists[l] {
				some = some || q.is(m)
			}
		}
		if !some {
			return false
		}
	}
	if r.identity != nil {
		some := false
		for _, m := range *r.identity {
			switch m.kind {
			case "one":
				some = some || q.is(m.id)
			case "many":
				if q.watcher == "" || m.unknown {
					continue
				}
				ok := m.domain == "" || q.of(m.domain)
				for _, e := range m.exIDs {
					ok = ok && !q.is(e)
				}
				for _, e := range m.exDoms {
					ok = ok && !q.of(e)
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

// litOn are the rules that count: all that match, but by OMA's order of rank
// where a rule uses one of its conditions on who somebody is.
func litOn(rs []litRule, q litRequest) []litRule {
	lost, oma := false, false
	for _, r := range rs {
		lost = lost || slices.Contains(r.lists, "lost")
		oma = oma || r.lists != nil || r.other
	}
	var on []litRule
	byIdentity, byList := false, false
	for _, r := range rs {
		if r.matches(q, lost) {
			on = append(on, r)
			byIdentity = byIdentity || r.identity != nil
			byList = byList || r.lists != nil
		}
	}
	return slices.DeleteFunc(on, func(r litRule) bool {
		switch {
		case !oma || r.identity != nil:
			return false
		case r.lists != nil:
			return byIdentity
		case r.other:
			return byIdentity || byList
		}
		return false
	})
}

// litVisible tells which of the marks of litDoc the rules show.
func litVisible(rs []litRule, q litRequest) (handling int, message bool, visible map[string]bool) {
	visible = map[string]bool{}
	on := litOn(rs, q)
	for _, r := range on {
		handling = max(handling, litHandling[r.handling])
		message = message || r.message == "allow"
	}
	shown := func(component string, names ...string) bool {
		for _, r := range on {
			for _, c := range r.components[component] {
				if c == "all" || slices.Contains(names, c) {
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
	for _, n := range []string{"c1", "c2"} {
		if shown("services", "class T-"+n+"-class.", "occurrence-id T-"+n+".", "service-uri "+litScheme[n]+":"+n+"@example.com", "service-uri-scheme "+litScheme[n], "op:service-id org.example."+n) {
			visible["T-"+n] = true
			visible["T-"+n+"-version"] = true
			for _, p := range []string{"class", "deviceID", "privacy", "relationship", "status-icon", "note", "op:willingness", "op:session-participation", "op:registration-state", "op:barring-state", "op:geopriv"} {
				visible["T-"+n+"-"+p] = granted(p)
			}
			visible["T-"+n+"-foo"] = foo
			visible["T-"+n+"-idle"] = input >= 20
			visible["T-"+n+"-last"] = input >= 30
		}
		if shown("persons", "class P-"+n+"-class.", "occurrence-id P-"+n+".") {
			visible["P-"+n] = true
			for _, p := range []string{"class", "activities", "mood", "place-is", "place-type", "privacy", "sphere", "status-icon", "time-offset", "note"} {
				visible["P-"+n+"-"+p] = granted(p)
			}
			visible["P-"+n+"-foo"] = foo
		}
		if shown("devices", "class D-"+n+"-class.", "occurrence-id D-"+n+".", "deviceID urn:uuid:"+n, "deviceID URN:UUID:"+strings.ToUpper(n)) {
			visible["D-"+n] = true
			visible["D-"+n+"-class"] = granted("class")
			visible["D-"+n+"-note"] = granted("note")
			visible["D-"+n+"-op:network-availability"] = granted("op:network-availability")
			visible["D-"+n+"-foo"] = foo
		}
	}
	visible["N-note"] = granted("note")
	visible["N-bar"] = all
	return handling, message, visible
}

// litScheme is the scheme of each tuple's contact.
var litScheme = map[string]string{"c1": "sip", "c2": "im"}

// litDoc has two components of each kind, c1 and c2; each mark stands in it
// once, followed by a dot.
func litDoc() (doc string, marks []string) {
	mark := func(m string) string {
		marks = append(marks, m)
		return m + "."
	}
	var b strings.Builder
	b.WriteString(`<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid" xmlns:o="urn:oma:xml:prs:pidf:oma-pres" xmlns:gp="urn:ietf:params:xml:ns:pidf:geopriv10" xmlns:v="urn:example:v" entity="sip:alice@example.com">`)
	text := func(c, class string, names ...string) {
		for _, n := range names {
			fmt.Fprintf(&b, `<r:%s><r:note>%s</r:note></r:%s>`, n, mark(c+"-"+class+"-"+n), n)
		}
	}
	for _, class := range []string{"c1", "c2"} {
		fmt.Fprintf(&b, `<tuple id="%s"><status><basic>open</basic></status><r:class>%s</r:class><dm:deviceID>%s</dm:deviceID>`, mark("T-"+class), mark("T-"+class+"-class"), mark("T-"+class+"-deviceID"))
		text("T", class, "privacy", "relationship", "status-icon")
		fmt.Fprintf(&b, `<r:user-input idle-threshold="%s" last-input="%s">active</r:user-input>`, mark("T-"+class+"-idle"), mark("T-"+class+"-last"))
		fmt.Fprintf(&b, `<o:service-description><o:service-id>org.example.%s</o:service-id><o:version>%s</o:version></o:service-description>`, class, mark("T-"+class+"-version"))
		for _, n := range []string{"willingness", "session-participation", "registration-state", "barring-state"} {
			fmt.Fprintf(&b, `<o:%s>%s</o:%s>`, n, mark("T-"+class+"-op:"+n), n)
		}
		fmt.Fprintf(&b, `<gp:geopriv>%s</gp:geopriv>`, mark("T-"+class+"-op:geopriv"))
		fmt.Fprintf(&b, `<v:foo>%s</v:foo><contact>%s:%s@example.com</contact><v:contact>`, mark("T-"+class+"-foo"), litScheme[class], class)
		fmt.Fprintf(&b, `</v:contact><note>%s</note></tuple>`, mark("T-"+class+"-note"))
	}
	fmt.Fprintf(&b, `<note>%s</note><v:bar>%s</v:bar>`, mark("N-note"), mark("N-bar"))
	for _, class := range []string{"c1", "c2"} {
		fmt.Fprintf(&b, `<dm:person id="%s"><r:class>%s</r:class>`, mark("P-"+class), mark("P-"+class+"-class"))
		text("P", class, "activities", "mood", "place-is", "place-type", "privacy", "sphere", "status-icon", "time-offset")
		fmt.Fprintf(&b, `<v:foo>%s</v:foo><dm:note>%s</dm:note></dm:person>`, mark("P-"+class+"-foo"), mark("P-"+class+"-note"))
		fmt.Fprintf(&b, `<dm:device id="%s"><r:class>%s</r:class>`, mark("D-"+class), mark("D-"+class+"-class"))
		fmt.Fprintf(&b, `<o:network-availability>%s</o:network-availability>`, mark("D-"+class+"-op:network-availability"))
		fmt.Fprintf(&b, `<v:foo>%s</v:foo><dm:deviceID>urn:uuid:%s</dm:deviceID><dm:note>%s</dm:note></dm:device>`, mark("D-"+class+"-foo"), class, mark("D-"+class+"-note"))
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
	if r.lists != nil {
		c.WriteString(`<ocp:external-list>`)
		for _, l := range r.lists {
			fmt.Fprintf(&c, `<ocp:entry anc="http://xcap.example.com/%s"/>`, l)
		}
		c.WriteString(`</ocp:external-list>`)
	}
	if r.other {
		c.WriteString(`<ocp:other-identity/>`)
	}
	if r.anonymous {
		c.WriteString(`<ocp:anonymous-request/>`)
	}
	if r.unknown {
		c.WriteString(`<x:weather/>`)
	}
	if r.handling != "" {
		fmt.Fprintf(&a, `<x:sub-handling>allow</x:sub-handling><sub-handling>%s</sub-handling><x:more/>`, r.handling)
	}
	if r.message != "" {
		fmt.Fprintf(&a, `<im:im-handling>%s</im:im-handling>`, r.message)
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
				name, value, _ := strings.Cut(m, " ")
				fmt.Fprintf(&t, `<%s>%s</%s>`, name, value, name)
			}
		}
		fmt.Fprintf(&t, `</provide-%s>`, k)
	}
	for name, v := range r.booleans {
		prefix, value := "", strconv.FormatBool(v)
		if n, ok := strings.CutPrefix(name, "op:"); ok {
			name, prefix = n, "op:"
		}
		if name == "geopriv" {
			value = map[bool]string{true: "full", false: "false"}[v]
		}
		fmt.Fprintf(&t, `<%sprovide-%s>%s</%sprovide-%s>`, prefix, name, value, prefix, name)
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
	parts := []string{`<cr:conditions>` + c.String() + `</cr:conditions>`, `<cr:actions>` + a.String() + `</cr:actions>`, `<cr:transformations>` + t.String() + `</cr:transformations>`}
	slices.Reverse(parts[id%3:]) // the order of the schema is not insisted on
	return fmt.Sprintf(`<cr:rule id="r%d">%s</cr:rule>`, id, strings.Join(parts, ""))
}

var unprefixed = regexp.MustCompile(`<(/?)([a-z][A-Za-z-]*[ />])`)

// litDocument is a document with either namespace as the default one.
func litDocument(other bool, rs []string) string {
	if !other {
		return rules(rs...)
	}
	text := unprefixed.ReplaceAllString(strings.Join(rs, ""), "<${1}pr:$2")
	return `<ruleset xmlns="urn:ietf:params:xml:ns:common-policy" xmlns:pr="urn:ietf:params:xml:ns:pres-rules" xmlns:ocp="urn:oma:xml:xdm:common-policy"` +
		` xmlns:op="urn:oma:xml:prs:pres-rules" xmlns:im="urn:iptel:xml:ns:im-rules" xmlns:x="urn:example:x">` +
		strings.NewReplacer("<cr:", "<", "</cr:", "</").Replace(text) + `</ruleset>`
}

// litMembers are what can name components, right and wrong ones.
var litMembers = map[string][]string{
	"services": {
		"all", "class T-c1-class.", "class t-c1-class.", "class P-c1-class.", "occurrence-id T-c2.", "occurrence-id P-c1.", "service-uri sip:c1@example.com",
		"service-uri sip:c2@example.com", "service-uri im:c2@example.com", "service-uri-scheme im", "service-uri-scheme SIP", "op:service-id org.example.c2", "service-id org.example.c1", "deviceID urn:uuid:c1",
	},
	"persons": {"all", "class P-c1-class.", "class P-c2-class.", "occurrence-id P-c2.", "occurrence-id T-c1.", "service-uri sip:c1@example.com"},
	"devices": {"all", "class D-c1-class.", "occurrence-id D-c2.", "deviceID urn:uuid:c1", "deviceID urn:uuid:c3", "deviceID URN:UUID:C2"},
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
	if one(5) {
		l.lists = []string{}
		for range r.IntN(3) {
			l.lists = append(l.lists, pick(r, []string{"friends", "foes", "friends", "foes", "friends", "lost"}))
		}
	}
	l.other, l.anonymous = one(7), one(12)
	l.message = pick(r, []string{"", "", "block", "allow", "maybe"})
	l.unknown = one(8)
	l.handling = pick(r, []string{"", "block", "confirm", "polite-block", "allow"})
	l.components = map[string][]string{}
	for _, k := range []string{"services", "persons", "devices"} {
		if one(2) {
			l.components[k] = nil
			for range r.IntN(3) {
				l.components[k] = append(l.components[k], pick(r, litMembers[k]))
			}
		}
	}
	l.booleans = map[string]bool{}
	for _, p := range []string{"class", "deviceID", "op:willingness", "op:network-availability", "op:session-participation", "op:registration-state", "op:barring-state", "op:geopriv", "activities", "mood", "place-is", "place-type", "privacy", "relationship", "sphere", "status-icon", "time-offset", "note"} {
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

// CP-01..07, PR-05, PR-11..16, OMA-01..03, IM-02: both evaluators agree on
// generated rules; a decision stays as it is until NextChange; more rules never
// give less.
func TestAgainstLiteralEvaluator(t *testing.T) {
	body, marks := litDoc()
	doc, err := pidf.Parse([]byte(body), pidf.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]List{"http://xcap.example.com/lost": {Missing: "another server's"}}
	for name, uris := range litLists {
		if name != "lost" {
			l := List{Members: map[string]struct{}{}}
			for _, u := range uris {
				l.Members["sip:"+u] = struct{}{}
			}
			known["http://xcap.example.com/"+name] = l
		}
	}
	rounds := 1500
	if testing.Short() {
		rounds = 100
	}
	matched, shown, outranked := 0, 0, 0
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 4745))
		var lits []litRule
		var sets []*Ruleset
		var text string
		oma := false
		for range 1 + r.IntN(2) {
			var xml []string
			for range r.IntN(4) {
				l := randomRule(r)
				lits = append(lits, l)
				oma = oma || l.lists != nil || l.other
				xml = append(xml, l.xml(len(lits)))
			}
			one := litDocument(r.IntN(2) == 0, xml)
			sets = append(sets, mustParse(t, one).WithLists(known))
			text += one + "\n"
		}
		for _, w := range litWatchers {
			q := litRequest{watcher: w, sphere: pick(r, append(litSpheres, "", "WORK")), hour: r.IntN(24), anonymous: r.IntN(3) == 0}
			if w != "" && r.IntN(3) == 0 {
				q.alias = pick(r, litWatchers[1:])
			}
			at := func(hour int) Request {
				req := Request{Sphere: q.sphere, Anonymous: q.anonymous, Now: litEpoch.Add(time.Duration(hour) * time.Hour)}
				if w != "" {
					req.Watcher = "sip:" + w
				}
				if q.alias != "" {
					req.Aliases = []string{"sip:" + q.alias}
				}
				return req
			}
			d := Evaluate(sets, at(q.hour))
			handling, message, visible := litVisible(lits, q)
			if int(d.Handling) != handling || d.Message != message {
				t.Fatalf("seed %d, %+v: handling %v %v, want %d %v\n%s", seed, q, d.Handling, d.Message, handling, message, text)
			}
			e, reports := Explain(sets, at(q.hour))
			if e.Handling != d.Handling || e.Transform.Key() != d.Transform.Key() {
				t.Fatalf("seed %d, %+v: Explain decides another thing", seed, q)
			}
			counted := 0
			for _, rep := range reports {
				all := true
				for _, c := range rep.Conditions {
					all = all && c.Holds
				}
				if all != (rep.Matched || rep.Outranked) {
					t.Fatalf("seed %d, %+v: %+v", seed, q, rep)
				}
				if rep.Matched {
					counted++
				}
				if rep.Outranked {
					outranked++
				}
			}
			if counted != len(litOn(lits, q)) {
				t.Fatalf("seed %d, %+v: %d rules counted: %+v", seed, q, counted, reports)
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
			if len(sets) > 1 && !oma {
				if less := Evaluate(sets[:1], at(q.hour)); less.Handling > d.Handling || less.Message && !d.Message {
					t.Fatalf("seed %d: a rule took something away", seed)
				}
			}
		}
	}
	if matched < rounds || shown < rounds || outranked < rounds/50 {
		t.Errorf("too little was tested: %d matches, %d marks shown, %d rules outranked", matched, shown, outranked)
	}
}

// PR-16: what transformations leave is idempotent, a part of what more of them
// leave, and valid by the schemas.
func TestTransformsOfGeneratedRules(t *testing.T) {
	body, marks := litDoc()
	doc := parseDoc(t, body)
	rich := parseDoc(t, sample)
	valid := map[string][]byte{}
	hidden, again := 0, 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 5025))
		transform := func() Transform {
			l := randomRule(r)
			l.identity, l.lists, l.spheres, l.validity, l.other, l.anonymous, l.unknown = nil, nil, nil, nil, false, false, false
			return Evaluate([]*Ruleset{mustParse(t, litDocument(r.IntN(2) == 0, []string{l.xml(1)}))}, Request{}).Transform
		}
		a, b := transform(), transform()
		both := a
		both.add(&b)
		both.settle()
		apply := func(tr Transform, d *pidf.Document) *pidf.Document {
			t.Helper()
			out, err := tr.Apply(d)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		less, more := string(apply(a, doc).Bytes()), string(apply(both, doc).Bytes())
		for _, m := range marks {
			if strings.Contains(less, m+".") && !strings.Contains(more, m+".") {
				t.Fatalf("seed %d: %s is shown by %v and hidden by %v", seed, m, a.Grants(), both.Grants())
			}
			if !strings.Contains(more, m+".") {
				hidden++
			}
		}
		for _, tr := range []Transform{a, both} {
			// A component shown by its class loses it, see Apply.
			if strings.Contains(strings.Join(tr.Grants(), " "), " with class ") && !tr.all && tr.attributes&classAttr == 0 {
				continue
			}
			again++
			if once := apply(tr, doc); string(apply(tr, once).Bytes()) != string(once.Bytes()) {
				t.Fatalf("seed %d: %v applied twice is not the same:\n%s\n%s", seed, tr.Grants(), once.Bytes(), apply(tr, once).Bytes())
			}
		}
		if seed%4 == 0 {
			out := apply(both, rich)
			valid[strconv.Itoa(len(valid))] = out.Bytes()
		}
	}
	if hidden < 1000 || again < 200 {
		t.Errorf("too little was tested: %d marks hidden, %d applied twice", hidden, again)
	}
	validate(t, valid)
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
