package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/sql"
)

// good puts rows into a store as a server writes them, and gives the schema's version.
func good(t *testing.T, dsn string) int64 {
	t.Helper()
	const alice = "sip:alice@example.com"
	st, err := sql.Open(t.Context(), dsn, sql.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	shard := dialog.ShardOf(alice)
	row := dialog.SubscriptionRow{
		ID: strings.ToLower(hexByte(shard)) + "112233445566", Shard: shard, Event: "presence", Resource: alice, Watcher: "sip:bob@example.com", CallID: "c\xff@x",
		LocalURI: alice, RemoteURI: "sip:bob@example.com", RemoteTag: "t", RemoteTarget: "sip:bob@192.0.2.1", CSeqCeiling: 256, VersionOffset: 1, ExpiresMS: 4102444800000,
	}
	pub := pa.PublicationRow{
		Resource: alice, Event: "presence", ID: "p1", ETag: "e1", ContentType: "application/pidf+xml", ExpiresMS: 4102444800000,
		Body: []byte(`<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:alice@example.com"><tuple id="x"><status><basic>open</basic></status></tuple></presence>`),
	}
	if err := st.Commit(t.Context(), []dialog.Write{dialog.PutSubscription{Row: row}, dialog.PutRemote{Row: goodRemote(1)}, pa.PutPublication{Row: pub}}); err != nil {
		t.Fatal(err)
	}
	s, err := st.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.Target
}

// goodRemote is a subscription at another server of which nothing was heard yet.
func goodRemote(n byte) dialog.RemoteRow {
	const carol, bob = "sip:carol@example.org", "sip:bob@example.com"
	return dialog.RemoteRow{
		ID: hexByte(dialog.ShardOf(carol)) + "0000000000" + hexByte(n), Shard: dialog.ShardOf(carol), Event: "presence", Resource: carol, Watcher: bob, CallID: "r@x",
		LocalURI: bob, RemoteTarget: carol, Accept: "application/pidf+xml", CSeqCeiling: 256, WantMS: 3600000, CreatedMS: 4102444800000,
	}
}

func hexByte(b uint8) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[b>>4], digits[b&15]})
}

func TestStoreCommands(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	a, b := "sqlite:"+at("a.db"), "sqlite:"+at("b.db")
	target := good(t, a)
	config := at("c.yaml")
	if err := os.WriteFile(config, []byte("store: "+a+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	export := at("a.jsonl")
	const rows, kept = "1 subscription, 1 remote subscription, 1 publication, 0 documents, 0 users", "1 subscription, 0 remote subscriptions, 1 publication, 0 documents, 0 users"
	version := func(now, was int64) string { return fmt.Sprintf("schema version %d, was %d\n", now, was) }
	for _, tt := range []struct {
		name, args string
		code       int
		out, errw  string // contained
	}{
		{"status", "status --store " + a, 0, fmt.Sprintf("schema version %d, this program's is %[1]d\n", target), ""},
		{"status by configuration", "status --json --config " + config, 0, `"engine":"sqlite"`, ""},
		{"no such file", "status --store sqlite:" + at("none.db"), 3, "", "no such file"},
		{"no such server", "status --store postgres://u:hush@127.0.0.1:1/x?sslmode=disable", 4, "", "refused"},
		{"memory", "status --store memory", 2, "", "the store is memory"},
		{"nonsense", "check --store mysql://u:hush@x/y", 2, "", "neither sqlite:PATH nor postgres://"},
		{"bad configuration", "check --config " + at("none.yaml"), 2, "", "no such file"},
		{"argument", "check --store " + a + " more", 2, "", "one argument too many"},
		{"check", "check --store " + a, 0, rows, ""},
		{"export", "export --store " + a + " " + export, 0, "", rows},
		{"export over a file", "export --store " + a + " " + export, 1, "", "file exists"},
		{"export to standard output", "export --store " + a, 0, `{"subscription":{"id":"`, rows},
		{"dry run without a store", "import --dry-run --store " + b + " " + export, 3, "", "no such file"},
		{"import", "import --store " + b + " " + export, 0, "imported " + rows, ""},
		{"dry run", "import --dry-run --store " + b + " " + export, 0, "would import " + rows, ""},
		{"import again", "import --store " + b + " " + export, 1, "", "--merge puts the rows beside"},
		{"merge", "import --merge --store " + b + " " + export, 0, "imported " + rows, ""},
		{"import nothing", "import --merge --store " + b + " " + at("none.jsonl"), 3, "", "no such file"},
		{"check of the import", "check --json --store " + b, 0, "", ""},
		{"down without saying so", "migrate --to 2 --store " + b, 2, "", "say --down"},
		{"down one", "migrate --down --store " + b, 0, version(target-1, target), ""},
		{"check of an old schema", "check --store " + b, 1, "", "migrate first"},
		{"down to", "migrate --down --to 1 --store " + b, 0, version(1, target-1), ""},
		{"status of an old schema", "status --store " + b, 0, "pending", ""},
		{"up to", "migrate --to 2 --store " + b, 0, version(2, 1), ""},
		{"up", "migrate --store " + b, 0, version(target, 2), ""},
		{"nowhere", "migrate --to 99 --store " + b, 2, "", "there is no version 99"},
		{"rows are there", "check --store " + b, 0, kept, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, out, errw := execute(t, append([]string{"store"}, strings.Fields(tt.args)...)...)
			if code != tt.code || !strings.Contains(out, tt.out) || !strings.Contains(errw, tt.errw) || strings.Contains(errw, "hush") || tt.errw == "" && errw != "" {
				t.Errorf("exit code %d\n%s\n%s", code, out, errw)
			}
		})
	}
	if fi, err := os.Stat(export); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("export: %v, %v", fi, err)
	}
	lines, err := os.ReadFile(export)
	if err != nil {
		t.Fatal(err)
	}
	broken := strings.Replace(string(lines), `"event":"presence"`, `"event":"conference"`, 1)
	code, out, errw := input(t, broken, "store", "import", "--store", "sqlite:"+at("d.db"))
	if code != 1 || !strings.Contains(errw, `line 2: subscription: unknown event package "conference"`) || !strings.Contains(errw, "1 line left out") || !strings.Contains(out, "imported 0 subscriptions, 1 remote subscription, 1 publication") {
		t.Errorf("exit code %d\n%s\n%s", code, out, errw)
	}
}

// What check finds.
func TestStoreCheck(t *testing.T) {
	dsn := "sqlite:" + filepath.Join(t.TempDir(), "a.db")
	good(t, dsn)
	st, err := sql.Open(t.Context(), dsn, sql.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var batch []dialog.Write
	sub := func(change func(*dialog.SubscriptionRow)) {
		r := dialog.SubscriptionRow{
			Event: "presence", Resource: "sip:alice@example.com", CallID: "c", LocalURI: "l", RemoteURI: "r", RemoteTag: "t", RemoteTarget: "x", ExpiresMS: 4102444800000,
			Shard: dialog.ShardOf("sip:alice@example.com"),
		}
		r.ID = hexByte(r.Shard) + "00000000000" + string(rune('0'+len(batch)))
		change(&r)
		batch = append(batch, dialog.PutSubscription{Row: r})
	}
	sub(func(r *dialog.SubscriptionRow) { r.ID = "bad id" })
	sub(func(r *dialog.SubscriptionRow) { r.Shard++ })
	sub(func(r *dialog.SubscriptionRow) { r.Resource = "" })
	sub(func(r *dialog.SubscriptionRow) { r.Resource = "sip:carol@example.com" })
	sub(func(r *dialog.SubscriptionRow) { r.Event = "weather" })
	sub(func(r *dialog.SubscriptionRow) { r.CallID = "" })
	sub(func(r *dialog.SubscriptionRow) { r.ExpiresMS = 1 })
	remote := func(change func(*dialog.RemoteRow)) {
		r := goodRemote(byte(len(batch)))
		change(&r)
		batch = append(batch, dialog.PutRemote{Row: r})
	}
	remote(func(r *dialog.RemoteRow) { r.ID = "bad id" })
	remote(func(r *dialog.RemoteRow) { r.Event = "other" })
	remote(func(r *dialog.RemoteRow) { r.Body, r.ContentType = make([]byte, 1<<20+1), "text/plain" })
	remote(func(r *dialog.RemoteRow) { r.CreatedMS = 1 })                                               // and nobody has answered
	remote(func(r *dialog.RemoteRow) { r.RemoteTag, r.ExpiresMS, r.CreatedMS = "t", 1+36e5, 1 })        // over
	remote(func(r *dialog.RemoteRow) { r.RemoteTag, r.ExpiresMS, r.CreatedMS = "t", 4102444800000, 1 }) // refreshed for long: no problem
	pub := func(change func(*pa.PublicationRow)) {
		r := pa.PublicationRow{Resource: "sip:alice@example.com", Event: "presence", ID: "x" + string(rune('0'+len(batch))), ETag: "e", ExpiresMS: 4102444800000,
			Body: []byte(`<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="x"/>`)}
		change(&r)
		batch = append(batch, pa.PutPublication{Row: r})
	}
	pub(func(r *pa.PublicationRow) { r.Body = []byte("<presence") })
	pub(func(r *pa.PublicationRow) { r.Event = "presence.winfo" })
	pub(func(r *pa.PublicationRow) { r.ETag = "" })
	pub(func(r *pa.PublicationRow) { r.ExpiresMS = 1 })
	if err := st.Commit(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if _, err := st.PutDocument(t.Context(), sql.Document{Selector: "rls-services/global/index", ETag: "1"}, sql.Precondition{}); err != nil {
		t.Fatal(err)
	}
	st.Close()
	code, out, errw := execute(t, "store", "check", "--store", dsn, "--json")
	var found []string
	for line := range strings.Lines(out) {
		var p struct{ Table, Key, Problem string }
		if err := json.Unmarshal([]byte(line), &p); err != nil || p.Table == "" || p.Key == "" {
			t.Errorf("%q: %v", line, err)
		}
		found = append(found, p.Problem)
	}
	all := strings.Join(found, "\n")
	for _, want := range []string{
		"no tag of ours", "the id is of shard", "no resource", "the resource belongs to shard", `unknown event package "weather"`, "the dialog is not complete",
		"expired", `unknown event package "other"`, "1048577 bytes", "no presence document", `"presence.winfo" cannot be published`, "entity tag is empty", "empty",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("%q not found in\n%s", want, all)
		}
	}
	if code != 1 || len(found) != 17 || !strings.Contains(errw, "17 problems found") {
		t.Errorf("exit code %d, %d problems, %s", code, len(found), errw)
	}
	if _, out, errw := execute(t, "store", "check", "--store", dsn, "--packages", "weather=text/plain"); strings.Contains(out, "weather") || !strings.Contains(errw, "16 problems found") {
		t.Errorf("with the package declared: %s%s", out, errw)
	}
	if code, _, errw := execute(t, "store", "check", "--store", dsn, "--packages", "weather=text"); code != 2 || !strings.Contains(errw, "not a media type") {
		t.Errorf("exit code %d, %s", code, errw)
	}
}

// Beside a running server reading commands work, and the others are refused.
func TestStoreBeside(t *testing.T) {
	dsn := "sqlite:" + filepath.Join(t.TempDir(), "a.db")
	srv := begin(t, "serve", "--listen", "udp:127.0.0.1:0", "--http", "", "--store", dsn)
	eventually(t, "the server", func() bool { return strings.Contains(srv.out.String(), "rollcall ready") })
	for args, code := range map[string]int{"status": 0, "check": 0, "export": 0, "migrate": 1, "migrate --down": 1, "import": 1} {
		c, out, errw := execute(t, append([]string{"store", "--store", dsn}[:1], append(strings.Fields(args), "--store", dsn)...)...)
		if c != code || code == 1 && !strings.Contains(errw, "database is in use by another server") {
			t.Errorf("%s: exit code %d\n%s\n%s", args, c, out, errw)
		}
	}
	srv.interrupt()
	if code := srv.wait(); code != 0 {
		t.Errorf("serve ended with %d", code)
	}
}
