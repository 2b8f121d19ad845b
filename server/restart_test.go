package server_test

import (
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server"
	"rollcall/server/servertest"
)

func TestTry(t *testing.T) {
	db := t.TempDir() + "/a.db"
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		n := w.Node("192.0.2.1", func(c *server.Config) { c.Store = "sqlite:" + db })
		n.List("sip:team@example.com", "sip:bob@example.com", "sip:carol@example.com")
		w.Settle(time.Second)
		bob := w.UA("sip:bob@example.com").Publication(n)
		bob.Say("open", "here")
		a := w.UA("sip:alice@example.com")
		sub := a.Watch(n, "sip:team@example.com")
		sub.Next()
		w.Settle(time.Second)
		sub.Unsubscribe()
		n.CheckIdle()
	})
}
