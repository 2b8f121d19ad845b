package server_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/pa/winfo"
	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sql"
)

// rule is a rule document for everybody.
func rule(handling, transformations string) string {
	return `<cr:ruleset xmlns:cr="urn:ietf:params:xml:ns:common-policy" xmlns:pr="urn:ietf:params:xml:ns:pres-rules">
<cr:rule id="a"><cr:conditions/><cr:actions><pr:sub-handling>` + handling + `</pr:sub-handling></cr:actions>
<cr:transformations>` + transformations + `</cr:transformations></cr:rule></cr:ruleset>`
}

const everything = `<pr:provide-devices><pr:all-devices/></pr:provide-devices><pr:provide-persons><pr:all-persons/></pr:provide-persons>
<pr:provide-services><pr:all-services/></pr:provide-services><pr:provide-all-attributes/>`

const nothing = `<pr:provide-services><pr:all-services/></pr:provide-services>`

// meanwhile restarts the server, with a change of its store while it is down.
func (d *deployment) meanwhile(f func(*sql.Store)) {
	d.T.Helper()
	if err := d.n.Stop(context.Background()); err != nil {
		d.T.Errorf("stop: %v", err)
	}
	st, err := sql.Open(context.Background(), d.n.Config().Store, sql.Options{})
	if err != nil {
		d.T.Fatal(err)
	}
	f(st)
	if err := st.Close(); err != nil {
		d.T.Fatal(err)
	}
	d.n.Restart(0)
}

func put(t *testing.T, st *sql.Store, selector, body string) {
	t.Helper()
	if _, err := st.PutDocument(context.Background(), sql.Document{Selector: selector, ETag: "meanwhile", Body: []byte(body)}, sql.Precondition{}); err != nil {
		t.Fatal(err)
	}
}

func commit(t *testing.T, st *sql.Store, w ...dialog.Write) {
	t.Helper()
	if err := st.Commit(context.Background(), w); err != nil {
		t.Fatal(err)
	}
}

// What changed while the server was down is told soon after the start, once, to
// those whom it concerns; nobody else hears anything (EV-30).
func TestChangedWhileDown(t *testing.T) {
	const bobsRules = "pres-rules/users/" + bob + "/index"
	with := func(d *deployment, change func(state)) state {
		s := d.members("open: two")
		change(s)
		return s
	}
	type told struct {
		direct, pend, info string // what the watcher is told: "STATE[ REASON][ text]"; "": nothing
		list               func(d *deployment) state
		last               string // reason of the list's end
	}
	for _, c := range []struct {
		name   string
		change func(t *testing.T, st *sql.Store)
		want   told

		unpublished bool
	}{
		{name: "nothing", change: func(*testing.T, *sql.Store) {}},
		{
			name:   "the same documents, written again",
			change: func(t *testing.T, st *sql.Store) { put(t, st, "pres-rules/users/"+carol+"/index", rule("confirm", "")) },
		},
		{
			name: "confirm becomes allow",
			change: func(t *testing.T, st *sql.Store) {
				put(t, st, "pres-rules/users/"+carol+"/index", rule("allow", everything))
			},
			want: told{pend: "active open: hidden", list: func(d *deployment) state {
				return with(d, func(s state) { s[carol] = "open: hidden" })
			}},
		},
		{
			name:   "allow becomes block",
			change: func(t *testing.T, st *sql.Store) { put(t, st, bobsRules, rule("block", "")) },
			want: told{direct: "terminated rejected", info: "active", list: func(d *deployment) state {
				return with(d, func(s state) { s[bob], s[inner+" > "+bob] = "terminated rejected", "terminated rejected" })
			}},
		},
		{
			name:   "allow becomes confirm",
			change: func(t *testing.T, st *sql.Store) { put(t, st, bobsRules, rule("confirm", "")) },
			want: told{direct: "pending", info: "active", list: func(d *deployment) state {
				return with(d, func(s state) { s[bob], s[inner+" > "+bob] = "pending", "pending" })
			}},
		},
		{
			name:   "another transformation",
			change: func(t *testing.T, st *sql.Store) { put(t, st, bobsRules, rule("allow", nothing)) },
			want: told{direct: "active open", list: func(d *deployment) state {
				return with(d, func(s state) { s[bob], s[inner+" > "+bob] = "open", "open" })
			}},
		},
		{
			name: "a publication is gone", unpublished: true,
			change: func(t *testing.T, st *sql.Store) {
				var gone pa.PublicationRow
				if err := st.Publications(context.Background(), func(r pa.PublicationRow) error {
					if r.Resource == bob {
						gone = r
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				commit(t, st, pa.DeletePublication{Resource: gone.Resource, Event: gone.Event, ID: gone.ID})
			},
			want: told{direct: "active closed", list: func(d *deployment) state { return d.members("closed") }},
		},
		{
			name: "entries came, went and were renamed",
			change: func(t *testing.T, st *sql.Store) {
				put(t, st, "rls-services/global/index", servertest.Services(servertest.Service(team, carol+" Carol", inner, "sip:new@example.com"), servertest.Service(inner, bob)))
			},
			want: told{info: "active", list: func(d *deployment) state { // bob has a watcher less
				return with(d, func(s state) {
					delete(s, bob)
					s["sip:new@example.com"] = "closed"
				})
			}},
		},
		{
			name: "only a name",
			change: func(t *testing.T, st *sql.Store) {
				put(t, st, "rls-services/global/index", servertest.Services(servertest.Service(team, bob, carol, inner+" Inner"), servertest.Service(inner, bob)))
			},
			want: told{list: func(d *deployment) state { return d.members("open: two") }},
		},
		{
			name: "entries of a nested list",
			change: func(t *testing.T, st *sql.Store) {
				put(t, st, "rls-services/global/index", servertest.Services(servertest.Service(team, bob, carol, inner), servertest.Service(inner, bob, carol)))
			},
			want: told{list: func(d *deployment) state {
				return with(d, func(s state) { s[inner+" > "+carol] = "pending" })
			}},
		},
		{
			name: "the list is gone",
			change: func(t *testing.T, st *sql.Store) {
				put(t, st, "rls-services/global/index", servertest.Services(servertest.Service(inner, bob)))
			},
			want: told{last: "deactivated", info: "active"},
		},
		{
			name: "a user became a list",
			change: func(t *testing.T, st *sql.Store) {
				put(t, st, "rls-services/global/index", servertest.Services(servertest.Service(team, bob, carol, inner), servertest.Service(inner, bob), servertest.Service(carol, bob)))
			},
			want: told{pend: "terminated deactivated", info: "active", list: func(d *deployment) state {
				return with(d, func(s state) { s[carol], s[carol+" > "+bob] = "list", "open: two" })
			}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			deployed(t, nil, func(d *deployment) {
				before := map[*servertest.Sub]int{}
				for _, s := range d.all() {
					before[s] = len(s.All())
					s.Expect(servertest.Restart)
				}
				if c.want.list != nil { // nested lists that are new begin above 0
					d.list.Expect(servertest.Crash)
				}
				d.meanwhile(func(st *sql.Store) { c.change(t, st) })
				d.Settle(30 * time.Second)
				one := func(s *servertest.Sub, want string) {
					t.Helper()
					news := s.All()[before[s]:]
					s.Drain()
					got := ""
					for i, n := range news {
						got = n.State
						for _, more := range []string{n.Reason, n.Text()} {
							if more != "" && s != d.info {
								got += " " + more
							}
						}
						if i > 0 {
							t.Errorf("%s of %s is told more than once", s.Event, s.URI)
						}
					}
					if got != want {
						t.Errorf("%s of %s: %q, want %q", s.Event, s.URI, got, want)
					}
				}
				one(d.direct, c.want.direct)
				one(d.pend, c.want.pend)
				one(d.info, c.want.info)
				switch {
				case c.want.last != "":
					d.list.Last(c.want.last)
				case c.want.list == nil:
					d.list.Quiet(0, "the list has not changed")
				default:
					n := d.list.Next()
					if !d.list.List().Full {
						t.Errorf("%s: a partial list", n.State)
					}
					d.list.WantView(c.name, c.want.list(d))
				}
				d.quiet(5*time.Minute, "nothing more")
				for _, s := range d.all() { // and all is well
					if !s.Over() {
						if m := s.Refresh(); m.Status() != 200 {
							t.Errorf("refresh of %s: %d", s.URI, m.Status())
						}
						s.Next()
					}
				}
				if c.unpublished {
					d.bob.ETag = ""
				}
				d.bob.Say("open", "three")
				d.carol.Say("open", "shown")
				d.Settle(5 * time.Second)
				for _, s := range d.all() {
					s.Drain()
					s.Expect(servertest.Restart)
				}
				d.n.Restart(0)
				d.quiet(time.Minute, "after another restart")
			})
		})
	}
}

// A store of an older version does not know what was told: everybody is, once.
func TestToldUnknown(t *testing.T) {
	deployed(t, nil, func(d *deployment) {
		d.meanwhile(func(st *sql.Store) {
			if err := st.MigrateTo(context.Background(), 5); err != nil {
				t.Fatal(err)
			}
		})
		d.list.Expect(servertest.Restart)
		d.Settle(30 * time.Second)
		d.list.Next()
		d.list.WantView("after the upgrade", d.members("open: two"))
		if got := d.direct.Next().Text(); got != "open: two" {
			t.Errorf("direct watcher: %q", got)
		}
		d.pend.Next()
		d.info.Next()
		d.quiet(time.Minute, "nothing more")
		d.list.Expect(servertest.Restart)
		d.n.Restart(0)
		d.quiet(time.Minute, "now it is known")
	})
}

// Many watchers of what changed are told over a while, not all at once, and a
// crash tells all within the spread.
func TestToldSpread(t *testing.T) {
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprint("crash ", crash), func(t *testing.T) {
			deployed(t, func(c *server.Config) { c.RecoverySpread = "20s" }, func(d *deployment) {
				var subs []*servertest.Sub
				for i := range 200 {
					subs = append(subs, d.UA(fmt.Sprintf("sip:w%d@example.com", i)).Watch(d.n, bob))
				}
				d.Settle(5 * time.Second)
				for _, s := range subs {
					s.Drain()
					s.Expect(servertest.Crash)
				}
				for _, s := range d.all() {
					s.Expect(servertest.Crash)
				}
				if crash {
					d.n.Crash(0)
				} else {
					d.meanwhile(func(st *sql.Store) { put(t, st, "pres-rules/users/"+bob+"/index", rule("allow", nothing)) })
				}
				began := time.Now()
				instants := map[time.Duration]int{}
				for _, s := range subs {
					n := s.Next()
					at := n.At.Sub(began)
					if instants[at]++; at > 21*time.Second {
						t.Errorf("told after %v", at)
					}
				}
				if len(instants) < 20 {
					t.Errorf("%d watchers are told at %d instants: %v", len(subs), len(instants), instants)
				}
			})
		})
	}
}

// The owner's watcher information is compared when all watchers are back, in
// whatever order.
func TestWatcherInfoWhileDown(t *testing.T) {
	deployed(t, nil, func(d *deployment) {
		for i := range 20 {
			d.UA(fmt.Sprintf("sip:w%d@example.com", i)).Watch(d.n, bob)
		}
		d.Settle(5 * time.Second)
		d.info.Drain()
		d.n.Restart(0)
		d.info.Quiet(time.Minute, "they are all back")
		d.meanwhile(func(st *sql.Store) {
			var rows []dialog.SubscriptionRow
			st.Subscriptions(context.Background(), func(r dialog.SubscriptionRow) error {
				if r.Watcher == "sip:w7@example.com" {
					rows = append(rows, r)
				}
				return nil
			})
			if len(rows) != 1 {
				t.Fatalf("%d rows", len(rows))
			}
			commit(t, st, dialog.DeleteSubscription{ID: rows[0].ID})
		})
		d.Settle(30 * time.Second)
		doc, err := winfo.Parse(d.info.Next().Body())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(doc.Lists[0].Watchers); n != 22 { // 19, and alice thrice: by herself, and by the list with the one in it
			t.Errorf("%d watchers", n)
		}
		d.info.Quiet(time.Minute, "once")
	})
}
