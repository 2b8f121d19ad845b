package winfo

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"rollcall/pa/pidf/xmltree"
)

var watchers = []Watcher{
	{ID: "w1", URI: "sip:bob@example.com", Status: Active, Event: Approved, DisplayName: `Bob "B" <b> & Co`, Expiration: 3599*time.Second + 999*time.Millisecond, Duration: 2 * time.Minute},
	{ID: "w2", URI: "sip:carol@example.org;x=a&b", Status: Pending, Event: Subscribe, Expiration: time.Hour},
	{ID: "w3", URI: "tel:+12015550123", Status: Waiting, Event: Timeout, Expiration: -1},
	{ID: "w4", URI: "sip:dave@example.com", Status: Terminated, Event: NoResource, Duration: 500 * time.Millisecond},
}

func TestAppend(t *testing.T) {
	const want = `<?xml version="1.0" encoding="UTF-8"?>
<watcherinfo xmlns="urn:ietf:params:xml:ns:watcherinfo" version="0" state="full"><watcher-list resource="sip:alice@example.com" package="presence">` +
		`<watcher id="w1" status="active" event="approved" display-name="Bob &quot;B&quot; &lt;b> &amp; Co" expiration="3599" duration-subscribed="120">sip:bob@example.com</watcher>` +
		`<watcher id="w2" status="pending" event="subscribe" expiration="3600">sip:carol@example.org;x=a&amp;b</watcher>` +
		`<watcher id="w3" status="waiting" event="timeout">tel:+12015550123</watcher>` +
		`<watcher id="w4" status="terminated" event="noresource" duration-subscribed="0">sip:dave@example.com</watcher></watcher-list></watcherinfo>
`
	got := Append(nil, 0, true, "sip:alice@example.com", "presence", watchers)
	if string(got) != want {
		t.Errorf("WI-09 got\n%s\nwant\n%s", got, want)
	}
	if again := Append([]byte("x"), 0, true, "sip:alice@example.com", "presence", watchers); string(again) != "x"+want {
		t.Errorf("second time\n%s", again)
	}
}

func TestSchema(t *testing.T) {
	docs := map[string][]byte{
		"WI-08-full":    Append(nil, 0, true, "sip:alice@example.com", "presence", watchers),
		"WI-08-partial": Append(nil, 1<<32-1, false, "sip:alice@example.com", "presence.winfo", watchers[:1]),
		"empty":         Append(nil, 7, false, "sip:alice@example.com;x=%22", "presence", nil),
	}
	var all []Watcher
	for _, s := range statuses {
		for _, e := range events {
			all = append(all, Watcher{ID: s + "-" + e, URI: "sip:bob@example.com", Status: s, Event: e})
		}
	}
	docs["WI-09-all"] = Append(nil, 1, true, "sip:alice@example.com", "presence", all)
	validate(t, docs)
}

// validate runs xmllint over all documents at once.
func validate(t *testing.T, docs map[string][]byte) {
	t.Helper()
	tool, err := exec.LookPath("xmllint")
	if err != nil {
		t.Fatal("xmllint is needed to check documents against the schemas (package libxml2-utils): ", err)
	}
	dir := t.TempDir()
	args := []string{"--nonet", "--noout", "--schema", filepath.Join("testdata", "schemas", "watcherinfo.xsd")}
	for name, doc := range docs {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, doc, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
	}
	out, err := exec.Command(tool, args...).CombinedOutput()
	if err != nil || bytes.Count(out, []byte(" validates")) != len(docs) {
		t.Errorf("xmllint: %v\n%s", err, out)
	}
}

func TestRoundTrip(t *testing.T) {
	d, err := Parse(Append(nil, 42, false, "sip:alice@example.com", "presence", watchers))
	if err != nil {
		t.Fatal(err)
	}
	want := append([]Watcher(nil), watchers...)
	want[0].Expiration = 3599 * time.Second
	want[2].Expiration, want[3].Duration = 0, 0
	if d.Version != 42 || d.Full || len(d.Lists) != 1 || d.Lists[0].Resource != "sip:alice@example.com" || d.Lists[0].Package != "presence" || !reflect.DeepEqual(d.Lists[0].Watchers, want) {
		t.Errorf("%+v", d)
	}
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob("testdata/examples/*.xml")
	if err != nil || len(files) < 9 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	n := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		d, err := Parse(b)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		for _, l := range d.Lists {
			n += len(l.Watchers)
		}
	}
	if n < 9 {
		t.Errorf("only %d watchers in all examples", n)
	}
}

func TestParseRefuses(t *testing.T) {
	doc := func(attrs, list, watcher string) string {
		return `<watcherinfo xmlns="urn:ietf:params:xml:ns:watcherinfo" ` + attrs + `><watcher-list ` + list + `>` + watcher + `</watcher-list></watcherinfo>`
	}
	const attrs, list, watcher = `version="0" state="full"`, `resource="sip:alice@example.com" package="presence"`, `<watcher id="a" status="active" event="approved">sip:b@example.com</watcher>`
	if _, err := Parse([]byte(doc(attrs, list, watcher))); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"not XML":                 "watcherinfo",
		"another root":            `<watcherinfo version="0" state="full"/>`,
		"WI-08 no version":        doc(`state="full"`, list, watcher),
		"WI-08 version too large": doc(`version="4294967296" state="full"`, list, watcher),
		"WI-08 negative version":  doc(`version="-1" state="full"`, list, watcher),
		"WI-08 state":             doc(`version="0" state="whole"`, list, watcher),
		"WI-09 no package":        doc(attrs, `resource="sip:alice@example.com"`, watcher),
		"WI-09 no resource":       doc(attrs, `package="presence"`, watcher),
		"WI-09 no id":             doc(attrs, list, `<watcher status="active" event="approved">sip:b@example.com</watcher>`),
		"WI-09 status":            doc(attrs, list, strings.Replace(watcher, "active", "busy", 1)),
		"WI-09 event":             doc(attrs, list, strings.Replace(watcher, "approved", "Approved", 1)),
		"WI-09 expiration":        doc(attrs, list, strings.Replace(watcher, "<watcher", `<watcher expiration="1h"`, 1)),
	} {
		t.Run(name, func(t *testing.T) {
			var e *Error
			if _, err := Parse([]byte(body)); !errors.As(err, &e) || e.Kind != xmltree.KindInvalid && !strings.Contains(name, "not") && name != "another root" {
				t.Errorf("error %v", err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Append(nil, 42, false, "sip:alice@example.com", "presence", watchers))
	files, _ := filepath.Glob("testdata/examples/*.xml")
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Parse(b)
		if err != nil {
			return
		}
		for _, l := range d.Lists {
			out := Append(nil, d.Version, d.Full, l.Resource, l.Package, l.Watchers)
			again, err := Parse(out)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if again.Version != d.Version || again.Full != d.Full || len(again.Lists) != 1 || len(again.Lists[0].Watchers) != len(l.Watchers) {
				t.Fatalf("%+v is not %+v", again, d)
			}
			if once := Append(nil, d.Version, d.Full, again.Lists[0].Resource, again.Lists[0].Package, again.Lists[0].Watchers); !bytes.Equal(once, out) {
				t.Fatalf("not stable:\n%s\n%s", out, once)
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ws := make([]Watcher, n)
			for i := range ws {
				ws[i] = watchers[i%2]
			}
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				buf = Append(buf[:0], 1, true, "sip:alice@example.com", "presence", ws)
			}
		})
	}
}
