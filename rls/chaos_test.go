package rls_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sip"
)

// On a network that loses, doubles and reorders, with people who publish, lists
// that are edited and watchers that come and go, every NOTIFY keeps the rules
// and, when it is quiet, each watcher knows the truth.
func TestChaos(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { chaos(t, seed) })
		})
	}
}

const inner = "sip:inner@example.com"

type chaosWorld struct {
	*testing.T
	rng      *rand.Rand
	n        *servertest.Node
	people   []string
	said     map[string]string // what a person's document says, "closed" without one
	pubs     map[string]*servertest.Publication
	top, in  []string // members of the lists
	watchers []*servertest.Sub
}

func chaos(t *testing.T, seed uint64) {
	w := servertest.NewFaulty(t, seed, sip.Fault{})
	c := &chaosWorld{T: t, rng: rand.New(rand.NewPCG(seed, 7)), said: make(map[string]string), pubs: make(map[string]*servertest.Publication)}
	c.n = w.Node("192.0.2.1", func(cfg *server.Config) { cfg.NotifyInterval = map[string]string{"list": "200ms"} })
	for i := range 12 {
		p := fmt.Sprintf("sip:p%d@example.com", i)
		c.people, c.said[p] = append(c.people, p), "closed"
		c.pubs[p] = w.UA(p).Publication(c.n)
	}
	c.top, c.in = append(slices.Clone(c.people[:5]), inner), slices.Clone(c.people[3:8])
	c.edit()
	faults := sip.Fault{Loss: 0.2, Duplicate: 0.1, Reorder: 0.3, Jitter: 700 * time.Millisecond, Delay: 10 * time.Millisecond}
	w.Net.SetFault(faults)
	for i := range 200 {
		c.step(w, i)
		time.Sleep(time.Duration(c.rng.IntN(300)) * time.Millisecond)
		if i%50 == 49 { // a pause, in which everything that was lost is repeated
			w.Settle(2 * time.Minute)
			c.check(fmt.Sprint("step ", i), false)
		}
	}
	w.Net.SetFault(sip.Fault{})
	w.Settle(time.Minute)
	for _, s := range c.watchers {
		s.Refresh()
	}
	w.Settle(time.Second)
	c.check("end", true)
	for _, s := range c.watchers {
		s.Unsubscribe()
	}
	c.n.CheckIdle()
	if sent, lost, _ := w.Net.Counts(); lost*10 < sent {
		t.Errorf("only %d of %d datagrams were lost", lost, sent)
	}
}

// step does one thing at random.
func (c *chaosWorld) step(w *servertest.World, i int) {
	c.Helper()
	p := c.people[c.rng.IntN(len(c.people))]
	switch k := c.rng.IntN(20); {
	case len(c.watchers) < 2 || k == 0 && len(c.watchers) < 5:
		s := w.UA(fmt.Sprintf("sip:w%d@example.com", i)).Dialog(c.n, team)
		s.MustSubscribe(3600)
		c.watchers = append(c.watchers, s)
	case k == 1:
		at := c.rng.IntN(len(c.watchers))
		if m := c.watchers[at].Subscribe(0); m.Status() != 200 {
			c.Errorf("unsubscribe: %d", m.Status())
		}
		c.watchers = slices.Delete(c.watchers, at, at+1)
	case k == 2:
		if m := c.watchers[c.rng.IntN(len(c.watchers))].Refresh(); m.Status() != 200 {
			c.Errorf("refresh: %d", m.Status())
		}
	case k == 3:
		if m := c.pubs[p].Send("", 3600); m.Status() != 200 && c.said[p] != "closed" {
			c.Errorf("PUBLISH refresh: %d", m.Status())
		}
	case k == 4 && c.said[p] != "closed":
		if m := c.pubs[p].Send("", 0); m.Status() != 200 {
			c.Errorf("PUBLISH removal: %d", m.Status())
		}
		c.pubs[p].ETag, c.said[p] = "", "closed"
	case k < 8:
		c.toggle(&c.top, p)
		c.edit()
	case k < 11:
		c.toggle(&c.in, p)
		c.edit()
	case k == 11:
		c.toggle(&c.top, inner)
		c.edit()
	default:
		c.pubs[p].Say("open", fmt.Sprint("step ", i))
		c.said[p] = fmt.Sprint("open: step ", i)
	}
}

func (c *chaosWorld) toggle(list *[]string, p string) {
	if i := slices.Index(*list, p); i >= 0 {
		*list = slices.Delete(*list, i, i+1)
	} else {
		*list = slices.Insert(*list, c.rng.IntN(len(*list)+1), p)
	}
}

func (c *chaosWorld) edit() {
	c.n.Put("rls-services/global/index", servertest.Services(servertest.Service(team, c.top...), servertest.Service(inner, c.in...)))
}

// check compares what each watcher knows with what is so. Without exact, rows
// of members that left may still be there, as terminated.
func (c *chaosWorld) check(when string, exact bool) {
	c.Helper()
	want := state{}
	for _, p := range c.top {
		want[p] = c.said[p]
		if p == inner {
			want[p] = "list"
			for _, q := range c.in {
				want[inner+" > "+q] = c.said[q]
			}
		}
	}
	for i, s := range c.watchers {
		got := s.View()
		if !exact {
			maps.DeleteFunc(got, func(k, v string) bool { return want[k] == "" && v == "terminated noresource" })
		}
		if !maps.Equal(got, want) {
			for k := range got {
				if got[k] != want[k] {
					c.Errorf("%s: watcher %d has %s = %q, want %q", when, i, k, got[k], want[k])
				}
			}
			for k := range want {
				if _, ok := got[k]; !ok {
					c.Errorf("%s: watcher %d misses %s = %q", when, i, k, want[k])
				}
			}
		}
	}
}
