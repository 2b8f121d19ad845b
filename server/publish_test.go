package server_test

import (
	"testing"
	"testing/synctest"

	"rollcall/server/servertest"
)

// PUB-01: the Request-URI is judged before the Event.
func TestPublishOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", nil)
		m := w.UA("sip:alice@example.com").Raw(n.Addr, "PUBLISH sip:alice@example.net SIP/2.0\nVia: {via}\nMax-Forwards: 70\nFrom: <{aor}>;tag={tag}\n"+
			"To: <{aor}>\nCall-ID: {callid}\nCSeq: {cseq} PUBLISH\nEvent: other\nExpires: 600\nContent-Type: application/pidf+xml\n\n"+
			servertest.PIDF("sip:alice@example.com", "open", "x"))
		if m.Status() != 404 {
			t.Errorf("PUB-01: %d, want 404", m.Status())
		}
	})
}
