package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A scripted server: what the command prints, and its exit codes.
func TestTrace(t *testing.T) {
	const first = `{"time":"2026-01-02T03:04:05.678Z","direction":"in","transport":"UDP","local":"192.0.2.1:5060","remote":"192.0.2.17:5062","bytes":40,"note":"malformed: \u001b[2J","message":"OPTIONS sip:a SIP/2.0\r\nX: \u001b]0;evil\u0007\u202e\r\n\r\n"}`
	const second = `{"time":"2026-01-02T03:04:06Z","direction":"out","transport":"TCP","local":"192.0.2.1:5060","remote":"[2001:db8::1]:5062","bytes":3,"data":"/0Ex","lost":2}`
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.RequestURI() {
		case "/api/v1/trace?for=1m0s&uri=sip%3Abob%40example.com":
			fmt.Fprint(w, first+"\n"+second+"\n"+`{"end":"the time is over","lost":1}`+"\n")
		case "/api/v1/trace?call_id=c1&for=10m0s&peer=192.0.2.1":
			fmt.Fprint(w, `{"end":"the server stops"}`+"\n")
		case "/api/v1/trace?for=10m0s&peer=192.0.2.2":
			fmt.Fprint(w, first+"\n")
		case "/api/v1/trace?for=10m0s&peer=192.0.2.3":
			fmt.Fprint(w, "<html>")
		case "/api/v1/trace?for=10m0s&peer=192.0.2.4":
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"error":"sip: 8 traces are running already"}`)
		default:
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error":"peer: `+r.FormValue("peer")+`"}`)
		}
	}))
	defer s.Close()
	addr := strings.TrimPrefix(s.URL, "http://")
	text := "--- HH:MM:SS.mmm in  UDP 192.0.2.17:5062 -> 192.0.2.1:5060 40 bytes (malformed:  [2J)\nOPTIONS sip:a SIP/2.0\nX:  ]0;evil  \n\n"
	for _, tt := range []struct {
		args      []string
		code      int
		out, errw string
	}{
		{
			[]string{"sip:bob@example.com", "--for", "1m"}, 0, text + "--- HH:MM:SS.mmm out TCP 192.0.2.1:5060 -> [2001:db8::1]:5062 3 bytes\n\ufffdA1\n\n",
			"note: 2 messages missing here: more came than could be shown\nnote: 1 message missing here: more came than could be shown\nnote: the time is over, 2 messages\n",
		},
		{
			[]string{"bob@example.com", "--for", "1m", "--json"}, 0, first + "\n" + second + "\n",
			"note: 2 messages missing here: more came than could be shown\nnote: 1 message missing here: more came than could be shown\nnote: the time is over, 2 messages\n",
		},
		{[]string{"--peer", "192.0.2.1", "--call-id", "c1"}, 4, "", "note: the server stops, 0 messages\nrollcall: the server stops\n"},
		{[]string{"--peer", "192.0.2.2"}, 4, text, "rollcall: the server has gone\n"},
		{[]string{"--peer", "192.0.2.3"}, 4, "", "rollcall: answer from " + addr + ": invalid character '<' looking for beginning of value\n"},
		{[]string{"--peer", "192.0.2.4"}, 1, "", "rollcall: 503 Service Unavailable: sip: 8 traces are running already\n"},
		{[]string{"--peer", "x"}, 2, "", "rollcall: 400 Bad Request: peer: x\n"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			code, out, errw := execute(t, append([]string{"trace", "--http", addr}, tt.args...)...)
			if !strings.Contains(tt.out, `"time"`) {
				out = normal(out)
			}
			if code != tt.code || out != tt.out || errw != tt.errw {
				t.Errorf("exit code %d\n%q\nwant\n%q\nstderr %q", code, out, tt.out, errw)
			}
		})
	}
	s.Close()
	if code, _, errw := execute(t, "trace", "--peer", "192.0.2.1", "--http", addr); code != 4 || errw != "rollcall: no answer from http://"+addr+": connection refused\n" {
		t.Errorf("nobody there: exit code %d, %q", code, errw)
	}
}

// The command against the real server: messages come while it runs, Ctrl-C
// ends it.
func TestTraceServe(t *testing.T) {
	srv, addrs := start(t, "--store", "memory")
	traces := func(n string) { // one after the other: commands in one process share the library's flags while they parse theirs
		eventually(t, n+" traces", func() bool {
			resp, err := http.Get("http://" + addrs["http"] + "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var b strings.Builder
			resp.Write(&b)
			return strings.Contains(b.String(), "rollcall_sip_traces "+n+"\n")
		})
	}
	tr := begin(t, "trace", "sip:alice@example.com", "--http", addrs["http"])
	traces("1")
	other := begin(t, "trace", "--peer", "127.0.0.1", "--http", addrs["http"], "--json")
	traces("2")
	if code, _, _ := execute(t, "publish", "sip:alice@example.com", "--status", "open", "--server", "sip:"+addrs["udp"]); code != 0 {
		t.Fatalf("publish: exit code %d", code)
	}
	eventually(t, "both messages", func() bool {
		return strings.Count(tr.out.String(), "--- ") == 2 && strings.Count(other.out.String(), "\n") == 2
	})
	if out := tr.out.String(); !strings.Contains(out, "\nPUBLISH sip:alice@example.com SIP/2.0\n") || !strings.Contains(out, "\nSIP/2.0 200 OK\n") {
		t.Errorf("shown:\n%s", out)
	}
	tr.interrupt()
	if code := tr.wait(); code != 0 {
		t.Errorf("interrupted: exit code %d, %s", code, tr.errw.String())
	}
	srv.interrupt()
	if code := srv.wait(); code != 0 {
		t.Errorf("serve: exit code %d", code)
	}
	if code := other.wait(); code != 4 {
		t.Errorf("after the end of the server: exit code %d, %s", code, other.errw.String())
	}
	for _, m := range lines(t, other.out.String()) {
		if m["message"] == "" || m["direction"] == "" {
			t.Errorf("line %v", m)
		}
	}
}
