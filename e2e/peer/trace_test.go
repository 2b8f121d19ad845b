package peer

import (
	"reflect"
	"testing"
)

func TestTrace(t *testing.T) {
	m := Trace{Raw: []byte("NOTIFY sip:alice@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK1\r\nv: SIP/2.0/UDP 192.0.2.8\r\nCSEQ: 7 NOTIFY\r\n" +
		"o: presence\r\nSubject: one\r\n two\r\nSubscription-State: terminated;Reason=\"noresource\" ; retry-after=5\r\n\r\nVia: body\r\n\r\n")}
	if !m.IsRequest("NOTIFY") || m.Status() != 0 || m.CSeq() != 7 || m.Header("event") != "presence" || m.Header("To") != "" {
		t.Errorf("%+v", m)
	}
	if got := m.Headers("Via"); !reflect.DeepEqual(got, []string{"SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK1", "SIP/2.0/UDP 192.0.2.8"}) {
		t.Errorf("Via %q", got)
	}
	if got := m.Header("Subject"); got != "one two" {
		t.Errorf("Subject %q", got)
	}
	state, params := m.SubscriptionState()
	if state != "terminated" || params["reason"] != "noresource" || params["retry-after"] != "5" {
		t.Errorf("Subscription-State %q %v", state, params)
	}
	if string(m.Body()) != "Via: body\r\n\r\n" {
		t.Errorf("body %q", m.Body())
	}
	r := Trace{Raw: []byte("SIP/2.0 489 Bad Event\r\nCSeq: 1 SUBSCRIBE\r\n\r\n")}
	if r.Status() != 489 || r.Method() != "SUBSCRIBE" || r.IsRequest("SUBSCRIBE") {
		t.Errorf("%+v", r)
	}
	again := []Trace{m, {Sent: true, Raw: m.Raw}, m, r}
	if n := len(Notifies(again)); n != 1 {
		t.Errorf("%d NOTIFYs, want 1", n)
	}
	var none Trace
	if none.Status() != 0 || none.Header("Via") != "" || none.Body() != nil || none.CSeq() != 0 {
		t.Error("an empty message is not empty")
	}
}

func TestTraceFiles(t *testing.T) {
	const msg = "OK sip:x SIP/2.0\r\n\r\n"
	two := []Trace{{Sent: true, Raw: []byte(msg)}, {Raw: []byte(msg + "\n")}}
	for name, c := range map[string]struct {
		got, want []Trace
	}{
		"sipp": {parseSIPpTrace([]byte("---- 2026\nUDP message sent (20 bytes):\n\n" + msg + "\n---- 2026\nTCP message received [21] bytes :\n\n" + msg + "\n\n" +
			"UDP message received [500] bytes :\n\nnot all of it")), two},
		"sipdump": {parseSipdump([]byte("====================\ntag: snd\npid: 1\n~~~~~~~~~~~~~~~~~~~~\n" + msg + "||||||||||||||||||||\n" +
			"====================\ntag: rcv\n~~~~~~~~~~~~~~~~~~~~\n" + msg + "\n||||||||||||||||||||\n====================\ntag: rcv\n~~~~~~~~~~~~~~~~~~~~\nnot all")), two},
		"baresip": {parseBaresipTrace([]byte("ready\n\x1b[36;1m#\nUDP 127.0.0.1:9 -> 127.0.0.1:5060\n"+msg+"\x1b[;m\nnoise\n\x1b[36;1m#\n"+
			"TCP 127.0.0.1:3 -> 127.0.0.1:9\n"+msg+"\n\x1b[;m\n\x1b[36;1m#\nUDP 127.0.0.1:9 -> 127.0.0.1:5060\nnot all"), "127.0.0.1:5060"), two},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: %+v", name, c.got)
		}
	}
}
