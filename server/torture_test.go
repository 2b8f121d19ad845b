package server_test

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server/servertest"
	"rollcall/sip"
)

// torture is what a whole server answers to each message of RFC 4475, as its
// appendix has it. Status 0 is silence. Many messages are INVITE or REGISTER,
// where this server's method inspection (RFC 3261 section 8.2.1)
// comes before what the message is about: CORE-01, 405 with Allow.
var torture = []struct {
	name, section string
	status        int
	why           string // where the RFC says something else, or leaves a choice
}{
	{"wsinv", "3.1.1.1", 405, ""},
	{"intmeth", "3.1.1.2", 501, ""},
	{"esc01", "3.1.1.3", 405, ""},
	{"escnull", "3.1.1.4", 405, ""},
	{"esc02", "3.1.1.5", 501, ""},
	{"lwsdisp", "3.1.1.6", 200, ""},
	{"longreq", "3.1.1.7", 405, ""},
	{"dblreq", "3.1.1.8", 405, ""},
	{"semiuri", "3.1.1.9", 200, ""},
	{"transports", "3.1.1.10", 200, ""},
	{"mpart01", "3.1.1.11", 404, "a MESSAGE to another domain: relayed to nobody"},
	{"unreason", "3.1.1.12", 0, "a response to nothing that we sent"},
	{"noreason", "3.1.1.13", 0, "a response to nothing that we sent"},

	{"badinv01", "3.1.2.1", 400, "its Via is answered as it is: where to can be read"},
	{"clerr", "3.1.2.2", 400, ""},
	{"ncl", "3.1.2.3", 400, ""},
	{"scalar02", "3.1.2.4", 400, ""},
	{"scalarlg", "3.1.2.5", 0, ""},
	{"quotbal", "3.1.2.6", 400, ""},
	{"ltgtruri", "3.1.2.7", 400, ""},
	{"lwsruri", "3.1.2.8", 400, ""},
	{"lwsstart", "3.1.2.9", 400, "may be ignored; a second SP in a start line reads as another URI elsewhere"},
	{"trws", "3.1.2.10", 400, "may be ignored; same"},
	{"escruri", "3.1.2.11", 405, "may be 400; header fields in a Request-URI are ignored, see TestURIKey"},
	{"baddate", "3.1.2.12", 405, "may be 400; Date has no meaning to us"},
	{"regbadct", "3.1.2.13", 405, "may be 400; the Contact of a REGISTER is never read. That of a SUBSCRIBE gets 400"},
	{"badaspec", "3.1.2.14", 200, "may be 400; spaces around an addr-spec hide nothing"},
	{"baddn", "3.1.2.15", 400, "the archive lacks the empty line at its end. With it 200: the unquoted name is taken as it is"},
	{"badvers", "3.1.2.16", 505, ""},
	{"mismatch01", "3.1.2.17", 400, ""},
	{"mismatch02", "3.1.2.18", 501, ""},
	{"bigcode", "3.1.2.19", 0, ""},

	{"badbranch", "3.2.1", 400, "statelessly"},
	{"insuf", "3.3.1", 400, "with the Via and CSeq that there are"},
	{"unkscm", "3.3.2", 416, ""},
	{"novelsc", "3.3.3", 416, ""},
	{"unksm2", "3.3.4", 405, "400 is for registrars"},
	{"bext01", "3.3.5", 420, ""},
	{"invut", "3.3.6", 405, "415 is for who takes INVITE"},
	{"regaut01", "3.3.7", 405, ""},
	{"multi01", "3.3.8", 400, ""},
	{"mcl01", "3.3.9", 400, ""},
	{"bcast", "3.3.10", 0, ""},
	{"zeromf", "3.3.11", 200, "CORE-14"},
	{"cparam01", "3.3.12", 405, "200 is for registrars"},
	{"cparam02", "3.3.13", 405, "200 is for registrars"},
	{"regescrt", "3.3.14", 405, "200 is for registrars"},
	{"sdp01", "3.3.15", 405, "406 is for who takes INVITE"},
	{"inv2543", "3.4.1", 405, "answered without branch and From tag"},
}

// TestTorture sends each message of RFC 4475 to a server that has a watched
// publication. One final response leaves, to where RFC 3261 section 18.2.2
// says, or nothing; the watcher hears nothing; nothing stays behind.
func TestTorture(t *testing.T) {
	files, err := filepath.Glob("../sip/testdata/torture/*.dat")
	if err != nil || len(files) != 49 || len(torture) != 49 {
		t.Fatalf("%d messages, %d in the table, %v", len(files), len(torture), err)
	}
	for _, c := range torture {
		t.Run(c.section+" "+c.name, func(t *testing.T) {
			raw, err := os.ReadFile("../sip/testdata/torture/" + c.name + ".dat")
			if err != nil {
				t.Fatal(err)
			}
			tortured(t, raw, c.status)
		})
	}
	t.Run("3.1.2.15 baddn with its empty line", func(t *testing.T) {
		raw, err := os.ReadFile("../sip/testdata/torture/baddn.dat")
		if err != nil {
			t.Fatal(err)
		}
		tortured(t, append(raw, "\r\n"...), 200)
	})
}

func tortured(t *testing.T, raw []byte, status int) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", nil)
		pub := w.UA(bob).Publication(n)
		pub.Say("open", "here")
		sub := w.UA(alice).Watch(n, bob)
		sub.Next()
		before := gauges(n)

		from := netip.MustParseAddrPort("192.0.2.77:40000")
		var answers []sip.Message
		var texts []string
		w.Net.Tap(func(src, dst netip.AddrPort, b []byte) {
			if src != n.Addr {
				return
			}
			texts = append(texts, string(b))
			if dst.Addr() != from.Addr() || dst.Port() != sentByPort(raw, from.Port()) {
				t.Errorf("sent to %v\n%s", dst, b)
			}
		})
		w.Net.Host(from, func(*sip.Message) {}).Send(sip.Flow{Remote: n.Addr}, bytes.Clone(raw), 0)
		w.Settle(40 * time.Second)
		w.Net.Tap(nil)

		for _, text := range texts {
			var m sip.Message
			m.Parse([]byte(text), true) // what was wrong with the request may be wrong with its echo
			answers = append(answers, m)
		}
		switch {
		case status == 0 && len(texts) != 0:
			t.Errorf("answered\n%s", texts[0])
		case status != 0 && len(texts) != 1:
			t.Errorf("%d answers, want 1\n%s", len(texts), strings.Join(texts, "\n"))
		case status != 0:
			m := &answers[0]
			if !strings.HasPrefix(texts[0], fmt.Sprintf("SIP/2.0 %d ", status)) {
				t.Errorf("want %d\n%s", status, texts[0])
			}
			// A tag with e- is of an answer without state, by the endpoint.
			if (status == 405 || status == 501 && !strings.HasPrefix(string(m.To().Tag()), "e-")) && m.Header(sip.HdrAllow) == nil {
				t.Errorf("CORE-01 no Allow\n%s", texts[0])
			}
			if want := "nothingSupportsThis, nothingSupportsThisEither"; status == 420 && string(m.Header(sip.HdrUnsupported)) != want {
				t.Errorf("CORE-04 Unsupported\n%s", texts[0])
			}
		}
		sub.Quiet(time.Minute, "nothing changed")
		if after := gauges(n); !maps.Equal(before, after) {
			t.Errorf("state was %v, is %v", before, after)
		}
		if m := pub.Send("", 600); m.Status() != 200 {
			t.Errorf("the publication is gone: %d", m.Status())
		}
		sub.Unsubscribe()
		n.CheckIdle()
	})
}

// sentByPort is the port of a request's topmost Via, the naive way.
func sentByPort(raw []byte, source uint16) uint16 {
	for line := range strings.SplitSeq(strings.ReplaceAll(string(raw), "\r\n ", " "), "\r\n") {
		name, value, _ := strings.Cut(line, ":")
		if name = strings.ToLower(strings.TrimSpace(name)); name != "via" && name != "v" {
			continue
		}
		if strings.Contains(value, ";rport") {
			return source
		}
		value, _, _ = strings.Cut(value, ";")
		if i := strings.LastIndexByte(value, ':'); i >= 0 {
			if p, err := strconv.ParseUint(strings.TrimSpace(value[i+1:]), 10, 16); err == nil {
				return uint16(p)
			}
		}
		break
	}
	return 5060
}

// gauges is what a server says it holds.
func gauges(n *servertest.Node) map[string]float64 {
	all := make(map[string]float64)
	for _, name := range []string{"dialog_subscriptions", "dialog_remote_subscriptions", "pa_publications", "pa_watchers", "rls_views", "rls_members"} {
		all[name] = n.Metric(name)
	}
	return all
}

// TestTortureTable: the table is in the order of the RFC.
func TestTortureTable(t *testing.T) {
	number := func(section string) (v []int) {
		for s := range strings.SplitSeq(section, ".") {
			n, _ := strconv.Atoi(s)
			v = append(v, n)
		}
		return v
	}
	for i := 1; i < len(torture); i++ {
		if slices.Compare(number(torture[i-1].section), number(torture[i].section)) >= 0 {
			t.Errorf("%s after %s", torture[i].section, torture[i-1].section)
		}
	}
}
