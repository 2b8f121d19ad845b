package server_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server/servertest"
)

// A watcher that answers nothing does not make a stop unclean: the others hear
// nothing after the start, and it gets its whole state again.
func TestStopWithDeadWatcher(t *testing.T) {
	deployed(t, nil, func(d *deployment) {
		dead := d.UA("sip:dead@example.com").Watch(d.n, carol)
		dead.Next()
		dead.Answer = mute
		d.n.Delete("pres-rules/users/sip:carol@example.com/index")
		d.Settle(time.Second)
		for _, s := range append(d.all(), dead) {
			s.Drain()
		}
		at := time.Now()
		if err := d.n.Stop(context.Background()); err != nil {
			t.Errorf("stop with one dead watcher: %v", err)
		}
		if took := time.Since(at); took > 4*time.Second {
			t.Errorf("stop took %v", took)
		}
		synctest.Wait()
		dead.Answer = nil
		dead.Expect(servertest.Crash)
		d.n.Restart(0)
		d.quiet(time.Minute, "watchers that were up to date")
		if got := dead.Next(); got.Text() != "open: hidden" {
			t.Errorf("the dead watcher is told %q", got.Text())
		}
	})
}
