package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sql"
)

// xcapServer is an XCAP server without a socket.
type xcapServer struct {
	mu   sync.Mutex
	docs map[string]string // by selector
	down bool
}

func (x *xcapServer) RoundTrip(r *http.Request) (*http.Response, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.down {
		return nil, errors.New("connection refused")
	}
	body, ok := x.docs[strings.TrimPrefix(r.URL.Path, "/root/")]
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r, ContentLength: int64(len(body))}
	if !ok {
		resp.StatusCode = 404
	}
	return resp, nil
}

func (x *xcapServer) set(down bool, selectorsAndBodies ...string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.down = down
	for i := 0; i < len(selectorsAndBodies); i += 2 {
		x.docs[selectorsAndBodies[i]] = selectorsAndBodies[i+1]
	}
}

// remoteDocuments runs f with a deployment whose lists and rules are at an XCAP
// server: a list with a part by reference and a nested one.
func remoteDocuments(t *testing.T, f func(d *deployment, x *xcapServer)) {
	t.Helper()
	db := "sqlite:" + t.TempDir() + "/rollcall.db"
	synctest.Test(t, func(t *testing.T) {
		x := &xcapServer{docs: map[string]string{
			"rls-services/global/index":            servertest.Services(servertest.ServiceRef(team, "http://xcap.example.com/root/resource-lists/global/index/~~/resource-lists/list%5b@name=%22l%22%5d"), servertest.Service(inner, bob)),
			"resource-lists/global/index":          servertest.ResourceLists("l", bob, carol, inner),
			"pres-rules/users/" + carol + "/index": rule("confirm", ""),
		}}
		w := servertest.New(t)
		n := w.Node("192.0.2.1", func(c *server.Config) {
			c.Store, c.PresenceAuth, c.XCAP = db, "allow", []string{"http://xcap.example.com/root"}
		}, server.WithTransport(x))
		d := &deployment{World: w, n: n, bob: w.UA(bob).Publication(n), carol: w.UA(carol).Publication(n)}
		d.bob.Say("open", "two")
		d.carol.Say("open", "hidden")
		d.list, d.direct, d.pend = w.UA(alice).Watch(n, team), w.UA(alice).Watch(n, bob), w.UA(alice).Watch(n, carol)
		d.info = w.UA(bob).Dialog(n, bob)
		d.info.Event, d.info.Headers = "presence.winfo;id=7", ""
		d.info.MustSubscribe(3600)
		w.Settle(5 * time.Second)
		d.list.WantView("at first", d.members("open: two"))
		for _, s := range d.all() {
			s.Drain()
		}
		f(d, x)
	})
}

// The XCAP server is down at the restart: lists and rules are as they were last,
// for those who watched before and for others, and what has changed is taken when
// it is back.
func TestXCAPDownAtStart(t *testing.T) {
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprint("crash ", crash), func(t *testing.T) {
			remoteDocuments(t, func(d *deployment, x *xcapServer) {
				x.set(true)
				for _, s := range d.all() {
					s.Expect(servertest.Crash)
				}
				if crash {
					d.n.Crash(time.Minute)
					d.Settle(15 * time.Second)
					for _, s := range d.all() {
						if s.Next(); s.Over() {
							t.Fatalf("%s is over", s.URI)
						}
					}
					d.list.WantView("after the crash", d.members("open: two"))
				} else {
					d.n.Restart(time.Minute)
				}
				d.quiet(5*time.Minute, "the XCAP server is down, which is nobody's business")
				if m := d.list.Refresh(); m.Status() != 200 {
					t.Errorf("refresh of the list: %d", m.Status())
				}
				d.list.Next()
				d.list.WantView("refreshed", d.members("open: two"))
				dave := d.UA("sip:dave@example.com")
				other := dave.Watch(d.n, team)
				other.Next()
				other.WantView("somebody else", d.members("open: two"))
				if got := dave.Watch(d.n, carol).Next(); got.State != "pending" {
					t.Errorf("rules of before do not count: %s", got.State)
				}
				if got := dave.Watch(d.n, bob).Next(); got.Text() != "open: two" {
					t.Errorf("the absence of rules is not known any more: %s %s", got.State, got.Text())
				}
				d.Settle(5 * time.Second)
				d.info.Drain()
				x.set(false, "resource-lists/global/index", servertest.ResourceLists("l", bob, carol), "pres-rules/users/"+carol+"/index", rule("allow", everything))
				d.Settle(2 * time.Minute)
				d.list.WantView("the XCAP server is back", state{bob: "open: two", carol: "open: hidden", inner: "terminated noresource"}) // RL-27: said once
				if got := d.pend.Next(); got.State != "active" || got.Text() != "open: hidden" {
					t.Errorf("after a change of rules: %s %s", got.State, got.Text())
				}
			})
		})
	}
}

// Not even the last known documents are there: nothing ends, nobody is told less
// than he has unless he asks, and all is as before when the server is back.
func TestXCAPDownAndNoCopies(t *testing.T) {
	for _, ask := range []bool{false, true} {
		t.Run(fmt.Sprint("refresh ", ask), func(t *testing.T) {
			remoteDocuments(t, func(d *deployment, x *xcapServer) {
				x.set(true)
				for _, s := range d.all() {
					s.Expect(servertest.Restart)
				}
				d.meanwhile(func(st *sql.Store) {
					if err := st.KeepCopies(context.Background()); err != nil {
						t.Fatal(err)
					}
				})
				d.Settle(30 * time.Second)
				d.info.Drain() // who watches is known no better
				d.quiet(3*time.Minute, "nobody knows anything")
				if ask {
					for _, s := range []*servertest.Sub{d.list, d.direct} {
						if m := s.Refresh(); m.Status() != 200 {
							t.Errorf("refresh of %s: %d", s.URI, m.Status())
						}
						if got := s.Next(); got.State != "pending" || len(got.Body()) > 0 {
							t.Errorf("refresh of %s while nothing is known: %s %q", s.URI, got.State, got.Body())
						}
					}
				}
				d.list.Expect(servertest.Crash) // its version has a gap where there was no list to show
				x.set(false)
				d.Settle(5 * time.Minute) // back-off
				d.info.Drain()
				if ask {
					d.list.Next()
					if got := d.direct.Next(); got.State != "active" || got.Text() != "open: two" {
						t.Errorf("back again: %s %s", got.State, got.Text())
					}
				}
				d.list.WantView("back again", d.members("open: two"))
				d.quiet(time.Minute, "all is as before")
				d.bob.Say("open", "three")
				d.Settle(5 * time.Second)
				d.list.WantView("a change", d.members("open: three"))
				for _, s := range d.all() {
					if s.Over() {
						t.Errorf("%s is over", s.URI)
					}
				}
			})
		})
	}
}

// A list that went while its documents could not be read ends when they can.
func TestListGoneWhileXCAPDown(t *testing.T) {
	remoteDocuments(t, func(d *deployment, x *xcapServer) {
		x.set(true)
		d.list.Expect(servertest.Restart)
		d.meanwhile(func(st *sql.Store) {
			if err := st.KeepCopies(context.Background()); err != nil {
				t.Fatal(err)
			}
		})
		d.list.Quiet(time.Minute, "not readable yet")
		x.set(false, "rls-services/global/index", servertest.Services(servertest.Service(inner, bob)))
		d.Settle(2 * time.Minute)
		d.list.Last("noresource")
	})
}
