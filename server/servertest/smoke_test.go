package servertest

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestWorld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(t)
		n := w.Node("192.0.2.1", nil)
		n.List("sip:team@example.com", "sip:bob@example.com", "sip:carol@example.com")
		bob := w.UA("sip:bob@example.com").Publication(n)
		bob.Say("open", "here")
		a := w.UA("sip:alice@example.com")
		sub := a.Watch(n, "sip:team@example.com")
		sub.Next()
		sub.WantView("first", map[string]string{"sip:bob@example.com": "open: here", "sip:carol@example.com": "closed"})
		bob.Say("closed", "gone")
		sub.Next()
		sub.WantView("change", map[string]string{"sip:bob@example.com": "closed: gone", "sip:carol@example.com": "closed"})
		sub.Quiet(30*time.Minute, "nothing changed")
		sub.Unsubscribe()
		n.CheckIdle()
	})
}
