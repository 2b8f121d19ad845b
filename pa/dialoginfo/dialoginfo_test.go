package dialoginfo

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const alice = "sip:alice@example.com"

// at puts a version into a rendered document.
func at(body []byte, versionAt int, version string) string {
	return string(body[:versionAt]) + version + string(body[versionAt:])
}

func mustParse(t testing.TB, body string) *Document {
	t.Helper()
	d, err := Parse([]byte(body), Limits{})
	if err != nil {
		t.Fatalf("%v\n%s", err, body)
	}
	return d
}

// info is a document of one publisher: full state, or partial with "partial" first.
func info(dialogs ...string) string {
	state := "full"
	if len(dialogs) > 0 && dialogs[0] == "partial" {
		state, dialogs = "partial", dialogs[1:]
	}
	return `<dialog-info xmlns="` + Space + `" version="7" state="` + state + `" entity="sip:x@y">` + strings.Join(dialogs, "") + `</dialog-info>`
}

// call is a dialog with a Call-ID, line one that has none.
func call(id, callID, state string) string {
	return `<dialog id="` + id + `" call-id="` + callID + `"><state>` + state + `</state></dialog>`
}

func line(id, state string) string {
	return `<dialog id="` + id + `"><state>` + state + `</state></dialog>`
}

// states is what a rendered document says: "id state" of each dialog.
func states(t testing.TB, body []byte, versionAt int) string {
	t.Helper()
	d := mustParse(t, at(body, versionAt, "0"))
	var out []string
	for _, x := range d.Dialogs() {
		out = append(out, x.ID+" "+x.State.String())
	}
	return strings.Join(out, ", ")
}

// validate runs xmllint over documents by name.
func validate(t *testing.T, docs map[string]string) {
	t.Helper()
	tool, err := exec.LookPath("xmllint")
	if err != nil {
		t.Fatal("xmllint is needed to check documents against the schema (package libxml2-utils): ", err)
	}
	dir := t.TempDir()
	args := []string{"--nonet", "--noout", "--schema", filepath.Join("testdata", "schemas", "dialog-info.xsd")}
	for name, doc := range docs {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil || bytes.Count(out, []byte(" validates")) != len(docs) {
		t.Errorf("xmllint: %v\n%s", err, out)
	}
}

// DI-03: the examples of RFC 4235 are read. Those in the schema's shape pass
// through octet for octet but for the notifier's attributes, the others are
// mended; all become valid.
func TestExamples(t *testing.T) {
	files, _ := filepath.Glob("testdata/rfc4235/*.xml")
	if len(files) != 21 {
		t.Fatalf("%d examples", len(files))
	}
	valid := make(map[string]string)
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(file)
		d, err := Parse(body, Limits{})
		if strings.HasPrefix(name, "rfc4235-s4.1.1-3-") { // has dots where its state was
			if err == nil {
				t.Errorf("%s: read, though it has no state", name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		out, where := d.Whole("sip:alice@example.com")
		doc := at(out, where, "0")
		valid[name] = doc
		bad := slices.ContainsFunc([]string{"s4.1-2-", "s4.2-4-", "s6.1-7-", "s6.2-14-", "s6.2-15-", "s6.2-16-", "s6.2-18-"}, func(s string) bool { return strings.Contains(name, s) })
		if bad {
			if d.whole {
				t.Errorf("%s passes as it is, though it is not valid", name)
			}
			continue
		}
		want := string(body)
		for _, r := range []string{`version="1"`, `version="2"`, `version="3"`, `version="4"`, `version="5"`, `version="6"`, `version="7"`, `version="8"`, `version="9"`} {
			want = strings.Replace(want, r, `version="0"`, 1)
		}
		want = strings.Replace(want, `state="partial"`, `state="full"`, 1)
		want = strings.Replace(want, `entity="sip:presentity@example.com"`, `entity="sip:alice@example.com"`, 1)
		want = strings.Replace(want, `entity="sip:alice@pc33.example.com"`, `entity="sip:alice@example.com"`, 1)
		if doc != want {
			t.Errorf("%s is not passed as it is:\n%s\nwant\n%s", name, doc, want)
		}
	}
	validate(t, valid)
	if d := mustParse(t, read(t, "rfc4235-s6.1-7-dialog-info.xml")); len(d.dialogs) != 2 || d.dialogs[0].ID != "as7d900as8" || d.dialogs[1].ID != "as7d900as8-hh76a" {
		t.Errorf("DI-02: two branches of one id: %v", d.dialogs)
	}
	if d := mustParse(t, read(t, "rfc4235-s6.2-18-dialog-info.xml")); !strings.Contains(string(d.dialogs[0].rest), `direction="recipient"`) ||
		!strings.Contains(string(d.dialogs[0].rest), `<state event="remote-bye">`) || d.Note() != "terminated, trying" {
		t.Errorf("mended to %s, %s", d.dialogs[0].rest, d.Note())
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "rfc4235", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What the RFC's section 6.1 call looks like to a watcher, one publication per step.
func TestExampleCall(t *testing.T) {
	var table Table
	var held *Document
	now := time.Unix(0, 0)
	for i, want := range []string{"as7d900as8 trying", "as7d900as8 early", "as7d900as8 confirmed", "as7d900as8 terminated"} {
		files, _ := filepath.Glob("testdata/rfc4235/rfc4235-s6.1-*.xml")
		slices.SortFunc(files, func(a, b string) int { return step(a) - step(b) })
		body, err := os.ReadFile(files[[]int{0, 1, 3, 4}[i]])
		if err != nil {
			t.Fatal(err)
		}
		news := mustParse(t, string(body))
		if held, err = Apply(held, news, 1<<16); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Second)
		table.Observe([]*Document{held}, now, 0)
		if !table.News() {
			t.Errorf("%s: no news", want)
		}
		if got := states(t, first2(table.Render(alice)), second2(table.Render(alice))); !strings.Contains(got, want) {
			t.Errorf("step %d shows %q, want %q", i, got, want)
		}
	}
}

func step(file string) (n int) {
	fmt.Sscanf(filepath.Base(file), "rfc4235-s6.1-%d-", &n)
	return n
}

func first2(b []byte, _ int) []byte { return b }
func second2(_ []byte, n int) int   { return n }

// Bodies that are refused, and why.
func TestRefused(t *testing.T) {
	many := strings.Repeat(`<x:e xmlns:x="urn:`+strings.Repeat("n", 200)+`"/>`, 20)
	for _, c := range []struct {
		name, body string
		code       int
	}{
		{"empty", "", 400},
		{"not XML", "hello", 400},
		{"a presence document", `<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:x@y"/>`, 400},
		{"no namespace", `<dialog-info version="0" state="full" entity="sip:x@y"/>`, 400},
		{"DI-03 no id", info(`<dialog><state>early</state></dialog>`), 400},
		{"DI-03 no state", info(`<dialog id="1"/>`), 400},
		{"an id that is too long", info(line(strings.Repeat("1", 513), "early")), 400},
		{"DI-03 a state that is none", info(line("1", "ringing")), 400},
		{"entities", `<!DOCTYPE d [<!ENTITY a "b">]>` + info(), 400},
		{"UTF-16", "\xfe\xff\x00<", 415},
		{"too long", info(line("1", "early")) + strings.Repeat(" ", 70000), 413},
		{"too many elements", info(strings.Repeat(many, 210)), 413},
		{"namespaces that would be written out a thousand times", strings.Replace(info(strings.Repeat(`<dialog id="1"><state>early</state><n:a/></dialog>`, 1)+numberedDialogs(800)), "xmlns=", `xmlns:n="urn:`+strings.Repeat("n", 2000)+`" xmlns=`, 1), 413},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(c.body), Limits{})
			var e *Error
			if !errors.As(err, &e) || e.Code() != c.code {
				t.Errorf("error %v, want one of code %d", err, c.code)
			}
		})
	}
}

func numberedDialogs(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `<dialog id="n%d"><state>early</state><n:a/></dialog>`, i)
	}
	return b.String()
}

// What cannot stand in the schema is mended, what others add is kept.
func TestMended(t *testing.T) {
	docs := make(map[string]string)
	for i, c := range []struct{ name, in, want string }{
		{"order", info(`<dialog id="1"><remote/><state>early</state></dialog>`), `<dialog id="1"><state>early</state><remote/></dialog>`},
		{"a second state", info(`<dialog id="1"><state>early</state><state>confirmed</state></dialog>`), `<dialog id="1"><state>early</state></dialog>`},
		{"display-name", info(`<dialog id="1"><state>early</state><local><identity display-name="A &amp; B"> sip:a b@c </identity></local></dialog>`),
			`<dialog id="1"><state>early</state><local><identity display="A &amp; B">sip:a%20b@c</identity></local></dialog>`},
		{"bad values", info(`<dialog id="1" direction="up" x="y"><state code="99" event="bye">early</state><duration>-1</duration><replaces call-id="a"/></dialog>`),
			`<dialog id="1"><state>early</state></dialog>`},
		{"unknown elements", info(`<dialog id="1"><state>early</state><mood>odd</mood><e:x xmlns:e="urn:e"><y xmlns="urn:y"/></e:x></dialog><hello/>`),
			`<dialog id="1"><state>early</state><e:x xmlns:e="urn:e"><y xmlns="urn:y"/></e:x></dialog>`},
		{"the same id again", info(line("1", "early"), line("1", "confirmed")), line("1", "confirmed")},
		{"prefix", strings.NewReplacer("<dialog", "<d:dialog", "</dialog", "</d:dialog", "<state", "<d:state", "</state", "</d:state", "xmlns=", "xmlns:d=").
			Replace(info(`<dialog id="1" a="b"><state>early</state><x:y xmlns:x="urn:x"/></dialog>`)), `<dialog id="1"><state>early</state><x:y xmlns:x="urn:x"/></dialog>`},
		{"no attributes", `<dialog-info xmlns="` + Space + `">` + line("1", "early") + `</dialog-info>`, line("1", "early")},
		{"a type by its prefix", strings.Replace(info(`<dialog id="1" q="r"><state>early</state><n:a xmlns:i="http://www.w3.org/2001/XMLSchema-instance" i:type="t:b"/></dialog>`), "xmlns=", `xmlns:t="urn:t" xmlns:n="urn:n" xmlns=`, 1),
			`<dialog id="1"><state>early</state><n:a i:type="t:b" xmlns:n="urn:n" xmlns:i="http://www.w3.org/2001/XMLSchema-instance" xmlns:t="urn:t"/></dialog>`},
	} {
		d := mustParse(t, c.in)
		if d.whole {
			t.Errorf("%s: passes as it is", c.name)
		}
		out, where := d.Whole(alice)
		want := `<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<dialog-info xmlns="` + Space + `" version="3" state="full" entity="sip:alice@example.com">` + c.want + "</dialog-info>\n"
		if got := at(out, where, "3"); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, want)
		}
		if !strings.Contains(c.name, "type") { // of which there is no schema
			docs[fmt.Sprint(i)] = at(out, where, "3")
		}
	}
	validate(t, docs)
}

// One publication in the schema's shape passes as it is, whatever is around
// the attributes that are the notifier's.
func TestPassedAsItIs(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"\xef\xbb\xbf<?xml version='1.0'?><!-- <dialog-info version='9'> --><?pi version=\"1\"?>\n<d:dialog-info\n entity = 'sip:o@p' xmlns:d='" + Space + "'\tstate='partial' version='44' ><!-- kept --></d:dialog-info>",
			"\xef\xbb\xbf<?xml version='1.0'?><!-- <dialog-info version='9'> --><?pi version=\"1\"?>\n<d:dialog-info\n entity = \"sip:alice@example.com\" xmlns:d='" + Space + "'\tstate=\"full\" version=\"5\" ><!-- kept --></d:dialog-info>"},
		{`<dialog-info xmlns="` + Space + `" version="0" state="full" entity=""/>`, `<dialog-info xmlns="` + Space + `" version="5" state="full" entity="sip:alice@example.com"/>`},
	} {
		d := mustParse(t, c.in)
		out, where := d.Whole(alice)
		if got := at(out, where, "5"); got != c.want {
			t.Errorf("\n%s\nwant\n%s", got, c.want)
		}
	}
}

// DI-02, DI-03: in whatever order the publications of a call by two devices
// come, as publications of their own or as changes of one, the end is the same:
// terminated is final, is news once, and is no longer shown afterwards.
func TestEveryOrder(t *testing.T) {
	steps := []string{"trying", "early", "confirmed", "terminated"}
	type step struct {
		device int
		doc    *Document
	}
	var all []step
	for device := range 2 {
		for _, s := range steps {
			all = append(all, step{device, mustParse(t, info(call("d", "c1", s)))})
		}
	}
	n := 0
	permute(all, func(order []step) {
		n++
		for _, own := range []bool{true, false} { // each a publication, or two that change
			if !own && n%7 != 0 { // for the time
				continue
			}
			var table Table
			var docs []*Document
			held := make([]*Document, 2)
			now := time.Unix(0, 0)
			told, ended, last := 0, false, ""
			for _, s := range order {
				now = now.Add(time.Second)
				if own {
					docs = append(docs, s.doc)
				} else {
					h, err := Apply(held[s.device], s.doc, 1<<16)
					if err != nil {
						t.Fatal(err)
					}
					held[s.device] = h
					docs = slices.DeleteFunc(slices.Clone(held), func(d *Document) bool { return d == nil })
				}
				table.Observe(docs, now, 100*time.Millisecond)
				news := table.News()
				body, where := table.Render(alice)
				last = at(body, where, "0")
				switch shows := strings.Contains(last, "terminated"); {
				case shows && news:
					told++
				case shows, ended && news:
					t.Fatalf("terminated again, or news after it: %v", order)
				}
				ended = ended || strings.Contains(last, "terminated")
				if ended && (strings.Contains(last, "early") || strings.Contains(last, "confirmed") || strings.Contains(last, "trying")) {
					t.Fatalf("revived: %v\n%s", order, last)
				}
			}
			empty, where := Empty(alice)
			lastIsEnd := order[len(order)-1].doc.dialogs[0].State == Terminated && told == 1 && strings.Contains(last, "terminated")
			if told != 1 || last != at(empty, where, "0") && !lastIsEnd {
				t.Fatalf("told %d times, shown at the end:\n%s", told, last)
			}
		}
	})
	if n != 40320 {
		t.Errorf("%d orders", n)
	}
}

func permute[T any](all []T, f func([]T)) {
	var walk func(int)
	walk = func(k int) {
		if k == len(all) {
			f(all)
			return
		}
		for i := k; i < len(all); i++ {
			all[k], all[i] = all[i], all[k]
			walk(k + 1)
			all[k], all[i] = all[i], all[k]
		}
	}
	walk(0)
}

// Several publications, in time.
func TestTable(t *testing.T) {
	type pub struct {
		name, body string // "" takes it away
	}
	for _, c := range []struct {
		name  string
		steps []pub
		want  []string // states after each; "=" in front: no news
	}{
		{"DI-02 two devices, their calls side by side", []pub{{"a", info(call("1", "x", "early"))}, {"b", info(call("2", "y", "confirmed"))}, {"a", ""}},
			[]string{"1 early", "1 early, 2 confirmed", "2 confirmed"}},
		{"DI-02 the same id of two calls: each its own, and it stays so", []pub{{"a", info(call("1", "x", "early"))}, {"b", info(call("1", "a", "confirmed"))}, {"c", info(call("1", "b", "trying"))}, {"a", ""}},
			[]string{"1 early", "1-2 confirmed, 1 early", "1-2 confirmed, 1-3 trying, 1 early", "1-2 confirmed, 1-3 trying"}},
		{"the most advanced counts", []pub{{"a", info(call("1", "x", "confirmed"))}, {"b", info(call("1", "x", "early"))}, {"a", ""}},
			[]string{"1 confirmed", "=1 confirmed", "1 early"}},
		{"a call that ended does not come back when its end expires", []pub{{"a", info(call("1", "x", "terminated"))}, {"a", ""}, {"b", info(call("1", "x", "early"))}, {"b", info(call("2", "y", "early"))}},
			[]string{"1 terminated", "=", "=", "2 early"}},
		{"a line has one id for every call", []pub{{"a", info(line("0000", "confirmed"))}, {"a", info(line("0000", "terminated"))}, {"a", info(line("0000", "early"))}, {"a", info(line("0000", "terminated"))}, {"a", ""}, {"b", info(line("0000", "confirmed"))}},
			[]string{"0000 confirmed", "0000 terminated", "0000 early", "0000 terminated", "=", "0000 confirmed"}},
		{"of two about one line the newest counts", []pub{{"a", info(line("0000", "terminated"))}, {"b", info(line("0000", "confirmed"))}, {"a", info(line("0000", "trying"))}},
			[]string{"0000 terminated", "0000 confirmed", "0000 trying"}},
		{"partial state changes some", []pub{{"a", info(call("1", "x", "early"), call("2", "y", "early"))}, {"a", info("partial", call("2", "y", "confirmed"))}, {"a", info("partial", call("1", "x", "terminated"), call("3", "z", "trying"))}, {"a", info("partial")}},
			[]string{"1 early, 2 early", "1 early, 2 confirmed", "1 terminated, 2 confirmed, 3 trying", "=2 confirmed, 3 trying"}},
		{"partial state without the Call-ID", []pub{{"a", info(call("1", "x", "confirmed"))}, {"a", info("partial", line("1", "terminated"))}, {"a", info(call("1", "x", "confirmed"))}},
			[]string{"1 confirmed", "1 terminated", "="}},
		{"full state without a dialog ends it", []pub{{"a", info(call("1", "x", "confirmed"))}, {"a", info()}}, []string{"1 confirmed", ""}},
		{"another version or white space is nobody's news", []pub{{"a", info(call("1", "x", "early"))}, {"a", strings.NewReplacer(`"7"`, `"8"`, "><", ">\n<").Replace(info(call("1", "x", "early")))}},
			[]string{"1 early", "=1 early"}},
		{"more about a dialog is", []pub{{"a", info(call("1", "x", "early"))}, {"a", info(`<dialog id="1" call-id="x"><state>early</state><duration>3</duration></dialog>`)}},
			[]string{"1 early", "1 early"}},
		{"so are other elements", []pub{{"a", info()}, {"a", info(`<e:x xmlns:e="urn:e"/>`)}}, []string{"=", ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var table Table
			docs := map[string]*Document{}
			var order []string
			now := time.Unix(0, 0)
			for i, s := range c.steps {
				order = slices.DeleteFunc(order, func(o string) bool { return o == s.name })
				if s.body == "" {
					delete(docs, s.name)
				} else {
					d, err := Apply(docs[s.name], mustParse(t, s.body), 1<<16)
					if err != nil {
						t.Fatal(err)
					}
					if again := mustParse(t, string(d.Bytes())); again.Note() != d.Note() || again.partial {
						t.Errorf("stored as %s", d.Bytes())
					}
					docs[s.name], order = d, append(order, s.name)
				}
				var all []*Document
				for _, o := range order {
					all = append(all, docs[o])
				}
				now = now.Add(time.Minute)
				table.Observe(all, now, 100*time.Millisecond)
				want, quiet := strings.CutPrefix(c.want[i], "=")
				if table.News() == quiet {
					t.Errorf("step %d: news %v", i, table.News())
				}
				body, where := table.Render(alice)
				if got := states(t, body, where); got != want {
					t.Errorf("step %d shows %q, want %q", i, got, want)
				}
			}
		})
	}
}

// The end of a call stays in view for as long as pacing may hold a watcher up.
func TestLinger(t *testing.T) {
	var table Table
	now := time.Unix(0, 0)
	over, other := mustParse(t, info(call("1", "x", "terminated"))), mustParse(t, info(call("2", "y", "early")))
	for i, c := range []struct {
		after time.Duration
		docs  []*Document
		want  string
	}{
		{0, []*Document{over}, "1 terminated"},
		{0, nil, "1 terminated"}, // the same turn
		{90 * time.Millisecond, []*Document{other}, "1 terminated, 2 early"},
		{10 * time.Millisecond, []*Document{over, other}, "2 early"},
	} {
		now = now.Add(c.after)
		table.Observe(c.docs, now, 100*time.Millisecond)
		body, where := table.Render(alice)
		if got := states(t, body, where); got != c.want {
			t.Errorf("step %d shows %q, want %q", i, got, c.want)
		}
	}
}

// What is remembered has bounds.
func TestForget(t *testing.T) {
	var table Table
	now := time.Unix(0, 0)
	for i := range 1000 {
		table.Observe([]*Document{mustParse(t, info(call("d", fmt.Sprint(i), "terminated")))}, now, 0)
		now = now.Add(time.Millisecond)
	}
	if n := len(table.ended); n != rememberMost {
		t.Errorf("%d are remembered", n)
	}
	if e := table.ended[key{"d", "999"}]; e == nil || e.dialog == nil {
		t.Error("the newest is forgotten")
	}
	if e := table.ended[key{"d", "990"}]; e == nil || e.dialog != nil {
		t.Error("more than its identity is kept of a dialog that is no longer shown")
	}
	table.Observe(nil, now.Add(rememberFor+time.Second), 0)
	if n := len(table.ended); n != 0 {
		t.Errorf("%d are remembered for ever", n)
	}
}

// A publication that grows by partial state has a bound.
func TestApplyBound(t *testing.T) {
	var held *Document
	for i := range 10000 {
		d, err := Apply(held, mustParse(t, info("partial", call(fmt.Sprint(i), "c", "early"))), 4096)
		var e *Error
		if errors.As(err, &e) {
			if e.Code() != 413 || i < 20 {
				t.Errorf("after %d: %v", i, err)
			}
			return
		}
		held = d
	}
	t.Error("no bound")
}

// Random publishers: ids are unique, the document is valid and stable, and does
// not depend on the order of publications that do not contradict each other.
func TestRandomPublishers(t *testing.T) {
	docs := make(map[string]string)
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var pubs []*Document
		for range 1 + r.IntN(4) {
			var ds []string
			for range r.IntN(4) {
				ds = append(ds, call(fmt.Sprint(r.IntN(3)), fmt.Sprint(r.IntN(3)), stateNames[1+r.IntN(4)]))
			}
			pubs = append(pubs, mustParse(t, info(ds...)))
		}
		now := time.Unix(0, 0)
		var a, b Table
		a.Observe(pubs, now, 0)
		body, where := a.Render(alice)
		if seed < 40 {
			docs[fmt.Sprint(seed)] = at(body, where, "0")
		}
		ids := map[string]bool{}
		for _, d := range mustParse(t, at(body, where, "0")).Dialogs() {
			if ids[d.ID] {
				t.Fatalf("seed %d: id %s twice", seed, d.ID)
			}
			ids[d.ID] = true
		}
		a.Observe(pubs, now.Add(time.Second), 0)
		if a.News() {
			t.Fatalf("seed %d: news of nothing", seed)
		}
		slices.Reverse(pubs)
		b.Observe(pubs, now, 0)
		other, where2 := b.Render(alice)
		if len(pubs) > 1 && states(t, body, where) != states(t, other, where2) {
			t.Fatalf("seed %d: %s, or in another order %s", seed, states(t, body, where), states(t, other, where2))
		}
	}
	validate(t, docs)
}

// What is read is bounded, shown as valid XML with one version, and read again
// as the same.
func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/rfc4235/*.xml")
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil {
			f.Add(b)
		}
	}
	f.Add([]byte(info(call("1", "x", "early"), `<e:x xmlns:e="urn:e" e:a='"'/>`)))
	f.Add([]byte(info("partial", line("&quot;&lt;", "trying"))))
	f.Fuzz(func(t *testing.T, body []byte) {
		d, err := Parse(body, Limits{})
		if err != nil {
			return
		}
		out, where := d.Whole(alice)
		again, err := Parse([]byte(at(out, where, "12")), Limits{Bytes: 1 << 22, Elements: 1 << 16, Scopes: 1 << 12})
		if err != nil {
			t.Fatalf("shown as what is not read: %v\n%s", err, at(out, where, "12"))
		}
		if again.Entity() != alice || again.partial || again.Note() != d.Note() || !again.whole {
			t.Fatalf("shown as another document\n%s", at(out, where, "12"))
		}
		var table Table
		table.Observe([]*Document{d}, time.Unix(0, 0), 0)
		out, where = table.Render(alice)
		if _, err := Parse([]byte(at(out, where, "12")), Limits{Bytes: 1 << 22, Elements: 1 << 16, Scopes: 1 << 12}); err != nil {
			t.Fatalf("composed to what is not read: %v\n%s", err, out)
		}
	})
}

// BenchmarkCompose is one change of one of three publishers with two calls each.
func BenchmarkCompose(b *testing.B) {
	for _, n := range []int{1, 3} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var docs []*Document
			for i := range n {
				docs = append(docs, mustParse(b, info(call("1", fmt.Sprint("x", i), "early"), call("2", fmt.Sprint("y", i), "confirmed"))))
			}
			change := [2]*Document{docs[0], mustParse(b, info(call("1", "x0", "confirmed"), call("2", "y0", "confirmed")))}
			var table Table
			now := time.Unix(0, 0)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				docs[0] = change[i%2]
				now = now.Add(time.Second)
				table.Observe(docs, now, 0)
				if !table.News() {
					b.Fatal("no news")
				}
				table.Render(alice)
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	body := []byte(info(call("1", "x", "early"), `<dialog id="2" call-id="y" direction="initiator"><state>confirmed</state><local><identity display="A">sip:a@b</identity><target uri="sip:a@c"/></local></dialog>`))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(body, Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}
