package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAuthorization asks a server about pairs while its documents change: the
// rules of a user with a list, the default rules, those for MESSAGE.
func TestAuthorization(t *testing.T) {
	const anchor = "http://xcap.example.com/resource-lists/users/sip:alice@example.com/index/~~/resource-lists/list%5b@name=%22oma_grantedcontacts%22%5d"
	ruleset := func(rules string) string {
		return `<ruleset xmlns="urn:ietf:params:xml:ns:common-policy" xmlns:pr="urn:ietf:params:xml:ns:pres-rules" xmlns:im="urn:iptel:xml:ns:im-rules" xmlns:ocp="urn:oma:xml:xdm:common-policy">` + rules + `</ruleset>`
	}
	rule := func(id, conditions, action string) string {
		return `<rule id="` + id + `"><conditions>` + conditions + `</conditions><actions>` + action + `</actions><transformations/></rule>`
	}
	list := func(member string) string {
		return `<resource-lists xmlns="urn:ietf:params:xml:ns:resource-lists"><list name="oma_grantedcontacts"><entry uri="` + member + `"/></list></resource-lists>`
	}
	dir := documents(t, map[string]string{
		"org.openmobilealliance.pres-rules/users/sip:alice@example.com/pres-rules": ruleset(rule("granted", `<ocp:external-list><ocp:entry anc="`+anchor+`"/></ocp:external-list>`, `<pr:sub-handling>allow</pr:sub-handling>`)),
		"resource-lists/users/sip:alice@example.com/index":                         list("sip:bob@example.com"),
		"im-rules/users/alice/im-rules.xml":                                        ruleset(rule("friends", `<identity><id>sip:bob@example.com</id></identity>`, `<im:im-handling>allow</im:im-handling>`)),
	})
	defaults := filepath.Join(t.TempDir(), "default-rules.xml")
	write := func(body string) {
		t.Helper()
		if err := os.WriteFile(defaults+".new", []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(defaults+".new", defaults); err != nil {
			t.Fatal(err)
		}
	}
	write(ruleset(rule("colleagues", `<identity><many domain="example.com"/></identity>`, `<pr:sub-handling>allow</pr:sub-handling>`)))
	in := start(t, "--domain", "example.com", "--store", "memory", "--xcap", dir, "--xcap-root", "http://xcap.example.com", "--default-rules", defaults)
	wait := func(what, want string, args ...string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			out, code := command(t, append([]string{"auth", "explain", "--json", "--http", in.http}, args...)...)
			var a struct {
				Status, Basis string
				Rules         []struct {
					ID      string
					Matched bool
				}
			}
			if err := json.Unmarshal([]byte(out), &a); err != nil || code != 0 {
				t.Fatalf("%s: exit %d, %v", what, code, err)
			}
			got := a.Status + " by " + a.Basis
			for _, r := range a.Rules {
				if r.Matched {
					got += " " + r.ID
				}
			}
			if got == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %s, want %s", what, got, want)
			}
		}
	}
	wait("on the list", "active by rules granted", "sip:bob@example.com", "sip:alice@example.com")
	wait("not on the list", "pending by default", "sip:carol@example.com", "sip:alice@example.com")
	put(t, dir, "resource-lists/users/sip:alice@example.com/index", list("sip:carol@example.com"))
	wait("the list changed", "active by rules granted", "sip:carol@example.com", "sip:alice@example.com")
	wait("the list changed", "pending by default", "sip:bob@example.com", "sip:alice@example.com")
	wait("default rules", "active by rules colleagues", "sip:bob@example.com", "sip:dave@example.com")
	write(ruleset(rule("nobody", "", `<pr:sub-handling>block</pr:sub-handling>`)))
	if err := in.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	wait("default rules again", "terminated by rules nobody", "sip:bob@example.com", "sip:dave@example.com")
	wait("message", "active by rules friends", "--message", "sip:bob@example.com", "sip:alice@example.com")
	wait("message", "terminated by default", "--message", "sip:carol@example.com", "sip:alice@example.com")
	wait("watcher information", "terminated by owner-only", "--package", "presence.winfo", "sip:bob@example.com", "sip:alice@example.com")
	out, code := command(t, "auth", "explain", "--http", in.http, "sip:bob@example.com", "sip:alice@example.com")
	if code != 0 || !strings.Contains(out, "sip:bob@example.com to sip:alice@example.com: confirm, pending\n") || !strings.Contains(out, "external-list is sip:bob@example.com, not one of 1 in "+anchor) {
		t.Errorf("exit %d", code)
	}
	if _, code := command(t, "auth", "explain", "--http", in.http, "sip:bob@example.com", "sip:alice@example.org"); code != 3 {
		t.Errorf("a presentity of another domain: exit %d, want 3", code)
	}
	in.idle()
}
