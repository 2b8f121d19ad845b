package server_test

import (
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server"
	"rollcall/server/servertest"
)

// A PUBLISH whose change the store does not take is refused, and taken back: its
// publisher's entity tag is good as before, and watchers end with what it knows
// (PUB-05).
func TestWithdrawnPublish(t *testing.T) {
	for _, c := range []struct {
		name, body string
		expires    int
	}{{"modify", "two", 3600}, {"refresh", "", 3600}, {"remove", "", 0}} {
		t.Run(c.name, func(t *testing.T) {
			db := "sqlite:" + t.TempDir() + "/rollcall.db"
			synctest.Test(t, func(t *testing.T) {
				w := servertest.New(t)
				disk := servertest.NewDisk(1)
				n := w.NodeOn(disk, "192.0.2.1", func(c *server.Config) { c.Store, c.PresenceAuth = db, "open" })
				pub := w.UA(bob).Publication(n)
				pub.Say("open", "one")
				watch := w.UA(alice).Watch(n, bob)
				w.Settle(5 * time.Second)
				watch.Drain()
				tag := pub.ETag
				disk.SetFault(servertest.DiskFault{Refuse: true})
				doc := ""
				if c.body != "" {
					doc = servertest.PIDF(bob, "open", c.body)
				}
				if m := pub.Send(doc, c.expires); m.Status() != 503 {
					t.Fatalf("PUBLISH on a broken store: %d", m.Status())
				}
				disk.SetFault(servertest.DiskFault{})
				w.Settle(20 * time.Second)
				pub.ETag = tag
				if m := pub.Send("", 3600); m.Status() != 200 {
					t.Errorf("a refresh with the tag that is known: %d", m.Status())
				}
				w.Settle(5 * time.Second)
				if all := watch.All(); len(all) > 0 && all[len(all)-1].Text() != "open: one" {
					t.Errorf("the watcher has %q at last", all[len(all)-1].Text())
				}
				n.Restart(0)
				if m := pub.Send("", 3600); m.Status() != 200 {
					t.Errorf("a refresh after a restart: %d", m.Status())
				}
			})
		})
	}
}
