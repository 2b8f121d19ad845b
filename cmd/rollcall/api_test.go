package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A scripted admin API: what the commands print for given answers.
func TestAPICommands(t *testing.T) {
	list := `{"uri":"sip:friends@example.com","names":[{"lang":"de","text":"Freunde"},{"text":"Friends"}],"packages":["presence"],"document":"rls-services/global/index","etag":"e1","members":3,
"entries":[{"uri":"sip:alice@example.com","key":"sip:alice@example.com","names":[{"text":"Alice\u001b[2J"}],"source":"doc ~~ entry[1]","route":"pa"},
{"uri":"sip:family@example.com","key":"sip:family@example.com","source":"doc ~~ entry[2]","route":"list","list":{"uri":"sip:family@example.com","names":[{"text":"Family"}],"error":"list: reference leads nowhere",
"entries":[{"uri":"sip:mum@example.org","source":"doc ~~ entry[3]","route":"b2b"}],"problems":[{"source":"doc ~~ entry[4]","uri":"sip:friends@example.com","kind":"loop","detail":"part of itself"}]}}],
"problems":[{"source":"doc ~~ entry[5]","kind":"bad-uri","detail":"not a URI"}]}`
	answers := map[string]string{
		"/api/v1/lists": "{\"lists\":[{\"uri\":\"sip:a@example.com\"},{\"uri\":\"sip:b@example.com\",\n \"more\":1}]}",
		"/api/v1/list?uri=sip%3Afriends%40example.com": list,
		"/api/v1/presentity?uri=sip%3Abob%40example.com": `{"uri":"sip:bob@example.com","basic":"open","note":"Here","publications":[{"event":"presence","etag":"t1","basic":"open","note":"Here","updated":"2026-01-02T03:04:05Z","expires":"0001-01-01T00:00:00Z","bytes":221}],
"watchers":[{"event":"dialog","uri":"sip:alice@example.com","status":"active","handling":"allow","since":"2026-01-02T03:04:05Z"}]}`,
		"/api/v1/auth?presentity=sip%3Aalice%40example.com&watcher=sip%3Abob%40example.com&watcher=tel%3A%2B1201": `{"watcher":"sip:bob@example.com","aliases":["tel:+1201"],"presentity":"sip:alice@example.com","package":"presence","method":"SUBSCRIBE","allowed":true,"status":"active","handling":"allow","basis":"rules","sphere":"work","grants":["all-services","provide-mood"],
"rules":[{"document":"pres-rules/users/sip:alice@example.com/index","id":"a","matched":true,"handling":"allow","im_handling":"block","conditions":[{"condition":"identity","holds":true,"wants":"sip:bob@example.com","is":"sip:bob@example.com"}]},
{"document":"d","id":"b\u001b","matched":false,"handling":"confirm","im_handling":"block","conditions":[{"condition":"sphere","holds":false,"wants":"home","is":"work"},{"condition":"{urn:x}moon","holds":false,"is":"not understood"}]},
{"document":"d","id":"c","matched":false,"outranked":true,"handling":"block","im_handling":"block","conditions":[{"condition":"other-identity","holds":true}]},{"document":"d","id":"","matched":true,"handling":"block","im_handling":"block"}]}`,
		"/api/v1/auth?method=MESSAGE&presentity=sip%3Aalice%40example.com&watcher=sip%3Abob%40example.com":         `{"watcher":"sip:bob@example.com","presentity":"sip:alice@example.com","method":"MESSAGE","allowed":false,"status":"terminated","handling":"block","basis":"default","default":"message-auth block","rules":[]}`,
		"/api/v1/auth?package=presence.winfo&presentity=sip%3Aalice%40example.com&watcher=sip%3Abob%40example.com": `{"watcher":"sip:bob@example.com","presentity":"sip:alice@example.com","package":"presence.winfo","method":"SUBSCRIBE","allowed":false,"status":"terminated","handling":"block","basis":"owner-only","rules":[]}`,
		"/api/v1/subscriptions": `{"subscriptions":[{"dialog":"d1","event":"presence","resource":"sip:bob@example.com","watcher":"sip:alice@example.com","state":"active","target":"sip:alice@192.0.2.1","call_id":"c","cseq":7,"notify_in_flight":true,"expires":"0001-01-01T00:00:00Z"}]}`,
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b, ok := answers[r.URL.RequestURI()]; ok {
			fmt.Fprint(w, b)
			return
		}
		switch r.FormValue("uri") {
		case "sip:forbidden@example.com":
			http.Error(w, "peer not trusted", http.StatusForbidden)
		case "sip:broken@example.com":
			fmt.Fprint(w, "<html>")
		case "sip:bad@example.com":
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error":"uri: not a URI"}`)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"error":"no such list: `+r.FormValue("uri")+`"}`)
		}
	}))
	defer s.Close()
	addr := strings.TrimPrefix(s.URL, "http://")
	tests := []struct {
		args      []string
		code      int
		out, errw string
	}{
		{[]string{"list", "ls"}, 0, "sip:a@example.com\nsip:b@example.com\n", ""},
		{[]string{"list", "ls", "--json"}, 0, "{\"uri\":\"sip:a@example.com\"}\n{\"uri\":\"sip:b@example.com\",\"more\":1}\n", ""},
		{[]string{"list", "show", "sip:friends@example.com"}, 0, `sip:friends@example.com  "Friends"  3 members  packages presence  from rls-services/global/index  etag e1
Member                  Name       Route  Source
sip:alice@example.com   Alice [2J  pa     doc ~~ entry[1]
sip:family@example.com  Family     list   doc ~~ entry[2]
  sip:mum@example.org   -          b2b    doc ~~ entry[3]

Problem  URI                      Detail                         Source
bad-uri  -                        not a URI                      doc ~~ entry[5]
error    sip:family@example.com   list: reference leads nowhere  -
loop     sip:friends@example.com  part of itself                 doc ~~ entry[4]
`, ""},
		{[]string{"list", "show", "friends@example.com", "--json"}, 0, strings.ReplaceAll(list, "\n", "") + "\n", ""},
		{[]string{"list", "show", "sip:nobody@example.com"}, 3, "", "rollcall: no such list: sip:nobody@example.com\n"},
		{[]string{"list", "show", "sip:forbidden@example.com"}, 1, "", "rollcall: 403 Forbidden: peer not trusted\n"},
		{[]string{"list", "show", "sip:bad@example.com"}, 2, "", "rollcall: 400 Bad Request: uri: not a URI\n"},
		{[]string{"list", "show", "sip:broken@example.com"}, 1, "", "rollcall: the answer is not understood: "},
		{[]string{"presentity", "show", "sip:bob@example.com", "--json"}, 0, strings.ReplaceAll(answers["/api/v1/presentity?uri=sip%3Abob%40example.com"], "\n", "") + "\n", ""},
		{[]string{"presentity", "show", "sip:nobody@example.com"}, 3, "", "rollcall: no such list: sip:nobody@example.com\n"},
		{[]string{"auth", "explain", "bob@example.com, tel:+1201", "alice@example.com"}, 0, `sip:bob@example.com, tel:+1201 to sip:alice@example.com: allow, active
presence: by rules
sphere: work
shows: all-services, provide-mood

Rule  Counts  Handling  Document                                      Why
a     yes     allow     pres-rules/users/sip:alice@example.com/index  all conditions hold
b     no      confirm   d                                             sphere is work, not home; {urn:x}moon is not understood
c     no      block     d                                             a rule that names the watcher more closely counts
-     yes     block     d                                             for everybody
`, ""},
		{[]string{"auth", "explain", "--message", "sip:bob@example.com", "sip:alice@example.com"}, 0, "sip:bob@example.com to sip:alice@example.com: block, terminated\nMESSAGE: no rule counted: message-auth block\n", ""},
		{[]string{"auth", "explain", "--package", "presence.winfo", "sip:bob@example.com", "sip:alice@example.com"}, 0, "sip:bob@example.com to sip:alice@example.com: block, terminated\npresence.winfo: for the presentity alone\n", ""},
		{[]string{"auth", "explain", "--json", "--message", "sip:bob@example.com", "sip:alice@example.com"}, 0, answers["/api/v1/auth?method=MESSAGE&presentity=sip%3Aalice%40example.com&watcher=sip%3Abob%40example.com"] + "\n", ""},
		{[]string{"auth", "explain", "sip:bob@example.com"}, 2, "", "rollcall: PRESENTITY is missing\n"},
		{[]string{"auth", "explain", "sip:bob@example.com", "b b"}, 2, "", "rollcall: \"b b\" is not a URI"},
		{[]string{"auth", "explain", "sip:bob@example.com", "sip:nobody@example.com"}, 3, "", "rollcall: no such list: \n"},
		{[]string{"subscription", "list", "--json"}, 0, strings.TrimSuffix(strings.TrimPrefix(answers["/api/v1/subscriptions"], `{"subscriptions":[`), "]}") + "\n", ""},
		{[]string{"subscription", "list"}, 0, `Resource             Watcher                Event     State     CSeq  Expires  Target               User agent
sip:bob@example.com  sip:alice@example.com  presence  active *  7     -        sip:alice@192.0.2.1  -
`, "note: 1 subscription; * waits for the answer to a NOTIFY\n"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			code, out, errw := execute(t, append(tt.args, "--http", addr)...)
			if code != tt.code || out != tt.out || !strings.HasPrefix(errw, tt.errw) || (errw == "") != (tt.errw == "") {
				t.Errorf("exit code %d\n%s\nwant\n%s\nstderr %q", code, out, tt.out, errw)
			}
		})
	}
	t.Run("presentity show", func(t *testing.T) {
		t.Setenv("ROLLCALL_HTTP", s.URL+"/")
		code, out, errw := execute(t, "presentity", "show", "bob@example.com")
		for _, want := range []string{
			"sip:bob@example.com  open  Here\n", "Publication  Event     State  Note  Updated              Expires  Bytes\nt1           presence  open   Here  ",
			"\nWatcher                Event   Status  Handling  Since\nsip:alice@example.com  dialog  active  allow     ",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		if code != 0 || errw != "" {
			t.Errorf("exit code %d, %q", code, errw)
		}
	})
	s.Close()
	for _, args := range [][]string{{"list", "ls"}, {"list", "show", "sip:a@example.com"}, {"presentity", "show", "sip:a@example.com"}, {"subscription", "list"}} {
		code, _, errw := execute(t, append(args, "--http", addr)...)
		if code != 4 || errw != "rollcall: no answer from http://"+addr+": connection refused\n" {
			t.Errorf("%v: exit code %d, %q", args, code, errw)
		}
	}
}
