package main

import (
	stdsql "database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"rollcall/sql"
)

// kamailioDB is a small database of Kamailio's.
func kamailioDB(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kamailio.db")
	db, err := stdsql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	later := time.Now().Add(time.Hour).Unix()
	statements := []string{
		`INSERT INTO presentity (username, domain, event, etag, expires, received_time, body, sender) VALUES ('alice', 'example.com', 'presence', 'e1', %[1]d, 1, '<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:alice@example.com"/>', '')`,
		`INSERT INTO presentity (username, domain, event, etag, expires, received_time, body, sender) VALUES ('bob', 'example.net', 'presence', 'e2', %[1]d, 1, 'x', '')`,
		`INSERT INTO active_watchers (presentity_uri, watcher_username, watcher_domain, to_user, to_domain, event, to_tag, from_tag, callid, local_cseq, remote_cseq, contact, expires, status, version,
			socket_info, local_contact, from_user, from_domain, updated, updated_winfo) VALUES ('sip:alice@example.com', 'bob', 'example.com', 'alice', 'example.com', 'presence', 'tt', 'ft', 'call', 3, 2, 'sip:bob@192.0.2.1', %[1]d, 1, 1,
			'udp:192.0.2.9:5060', 'sip:192.0.2.9', 'bob', 'example.com', 0, 0)`,
		`INSERT INTO xcap (username, domain, doc, doc_type, etag, source, doc_uri, port) VALUES ('alice', 'example.com', '<cr:ruleset xmlns:cr="urn:ietf:params:xml:ns:common-policy" xmlns:pr="urn:ietf:params:xml:ns:pres-rules">
			<cr:rule id="a"><cr:conditions><cr:identity><cr:one id="sip:bob@example.com"/></cr:identity></cr:conditions><cr:actions><pr:sub-handling>allow</pr:sub-handling></cr:actions></cr:rule></cr:ruleset>', 2, 'e', 0, '/xcap-root/pres-rules/users/sip:alice@example.com/index', 0)`,
		`INSERT INTO watchers (presentity_uri, watcher_username, watcher_domain, event, status, inserted_time) VALUES ('sip:alice@example.com', 'bob', 'example.com', 'presence', 1, 0)`,
		`INSERT INTO watchers (presentity_uri, watcher_username, watcher_domain, event, status, inserted_time) VALUES ('sip:alice@example.com', 'eve', 'example.com', 'presence', 1, 0)`,
		`INSERT INTO subscriber (username, domain, password) VALUES ('alice', 'example.com', 'secret')`,
	}
	for _, name := range []string{"standard", "presence", "rls", "auth_db"} {
		text, err := os.ReadFile(filepath.Join("/usr/share/kamailio/db_sqlite", name+"-create.sql"))
		if err != nil {
			t.Fatalf("%v (package kamailio-sqlite-modules)", err)
		}
		if _, err := db.Exec(string(text)); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range statements {
		if strings.Contains(text, "%[1]d") {
			text = fmt.Sprintf(text, later)
		}
		if _, err := db.Exec(text); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
	}
	return "sqlite:" + file
}

const importCounts = `Table            Rows  Taken  Already  Expired  Same  Not taken
xcap             1     1      0        0        0     0
presentity       2     1      0        0        0     1
rls_watchers     0     0      0        0        0     0
active_watchers  1     1      0        0        0     0
subscriber       1     1      0        0        0     0
watchers         2     0      0        0        1     1

Table       Rows  Not taken because
presentity  1     domain example.net is not one of ours; name it with --domain
watchers    1     active there, but pending by the rules here
`

func TestImport(t *testing.T) {
	dsn, path := kamailioDB(t), filepath.Join(t.TempDir(), "store.db")
	store := []string{"--store", "sqlite:" + path, "--domain", "example.com"}
	command := func(args ...string) (int, string, string) {
		return input(t, "", append(append([]string{"import", "kamailio"}, args...), store...)...)
	}
	code, out, errw := command(dsn, "--dry-run", "-v")
	if code != 0 || out != importCounts {
		t.Errorf("dry run: exit code %d\n%s", code, out)
	}
	for _, want := range []string{
		"presentity 2: bob@example.net (presence): domain example.net is not one of ours; name it with --domain\n",
		"watchers 2: eve@example.com watches sip:alice@example.com (presence): active there, but pending by the rules here\n",
		"note: a dry run: nothing was changed\n",
	} {
		if !strings.Contains(errw, want) {
			t.Errorf("no %q in\n%s", want, errw)
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a dry run made the store")
	}

	// Into a store that was stopped in order: its dialogs are notified all the same.
	st, err := sql.Open(t.Context(), "sqlite:"+path, sql.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.SetMeta(t.Context(), "clean_stop", "yes"); err != nil {
		t.Fatal(err)
	}
	if code, _, errw := command(dsn); code != 1 || !strings.Contains(errw, "a server is running on") {
		t.Errorf("beside a server: exit code %d, %s", code, errw)
	}
	if code, out, _ := command(dsn, "--dry-run"); code != 0 || out != importCounts {
		t.Errorf("dry run beside a server: exit code %d\n%s", code, out)
	}
	st.Close()
	if code, out, errw := command(dsn); code != 0 || out != importCounts || errw != "" {
		t.Errorf("exit code %d\n%s%s", code, out, errw)
	}
	st, err = sql.Open(t.Context(), "sqlite:"+path, sql.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := st.Meta(t.Context(), "clean_stop"); v != "no" || err != nil {
		t.Errorf("clean stop is %q, %v", v, err)
	}
	st.Close()

	code, out, _ = command(dsn, "--json")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || len(lines) != 7+6 {
		t.Fatalf("JSON: exit code %d\n%s", code, out)
	}
	for _, l := range lines {
		var o struct {
			Table, Outcome string
			Taken, Rows    int
		}
		if err := json.Unmarshal([]byte(l), &o); err != nil || o.Table == "" || o.Outcome == "taken" || o.Taken != 0 {
			t.Errorf("%s: %v", l, err)
		}
	}

	for _, c := range []struct {
		name string
		args []string
		code int
		errw string
	}{
		{"no database", []string{"import", "kamailio"}, 2, "DSN is missing"},
		{"no such peer", []string{"import", "asterisk", dsn}, 2, "no command"},
		{"memory", []string{"import", "kamailio", dsn, "--store", "memory"}, 2, "--store memory keeps nothing"},
		{"no such file", []string{"import", "kamailio", "sqlite:" + path + "x", "--store", "sqlite:" + path}, 1, "no such file"},
		{"unknown kind", []string{"import", "kamailio", "oracle://x", "--store", "sqlite:" + path}, 1, "unknown kind of database"},
		{"another database", []string{"import", "kamailio", "sqlite:" + path, "--store", "sqlite:" + path + "2"}, 0, ""},
		{"bad configuration", []string{"import", "kamailio", dsn, "--presence-auth", "perhaps"}, 2, "presence_auth"},
	} {
		if code, _, errw := input(t, "", c.args...); code != c.code || !strings.Contains(errw, c.errw) {
			t.Errorf("%s: exit code %d, want %d; %q in %q", c.name, code, c.code, c.errw, errw)
		}
	}
}
