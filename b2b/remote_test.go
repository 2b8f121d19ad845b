package b2b_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sip"
)

const (
	team  = "sip:team@example.com"
	two   = "sip:two@example.com"
	alice = "sip:alice@example.com"
	bob   = "sip:bob@example.com"
	ann   = "sip:ann@example.org"
)

type state = map[string]string

// remoteAt is where example.org is.
const remoteAt = "192.0.2.99"

// pair runs f with two servers: example.com and, as its remote, example.org.
func pair(t *testing.T, f func(w *servertest.World, com, org *servertest.Node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		org := w.Node(remoteAt, func(c *server.Config) { c.Domain, c.Remote = []string{"example.org"}, nil })
		f(w, w.Node("192.0.2.1", nil), org)
	})
}

// scripted runs f with a server and a scripted example.org.
func scripted(t *testing.T, f func(w *servertest.World, com *servertest.Node, p *servertest.Peer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		f(w, w.Node("192.0.2.1", nil), w.Peer(remoteAt+":5060"))
	})
}

const active = "active;expires=3600"

func doc(note string) string { return servertest.PIDF(ann, "open", note) }

// A remote member from its first state to the end of the last list: RL-15,
// RL-31, RL-37.
func TestRemoteMember(t *testing.T) {
	pair(t, func(w *servertest.World, com, org *servertest.Node) {
		pub := w.UA(ann).Publication(org)
		pub.Say("open", "one")
		com.List(team, bob, ann)
		sub := w.UA(alice).Watch(com, team)
		sub.Next()
		if v := sub.View(); v[bob] != "closed" || v[ann] == "" {
			t.Errorf("RL-15: first NOTIFY has %v", v)
		}
		w.Settle(time.Second)
		sub.WantView("state arrives", state{bob: "closed", ann: "open: one"})
		pub.Say("open", "two")
		w.Settle(2 * time.Second)
		sub.WantView("change arrives", state{bob: "closed", ann: "open: two"})
		sub.Drain()
		pub.Send("", 3600)
		sub.Quiet(10*time.Second, "a refresh there changes nothing here")
		var there struct{ Watchers []struct{ URI string } }
		org.Get("/api/v1/presentity?uri="+ann, &there)
		if len(there.Watchers) != 1 || there.Watchers[0].URI != alice {
			t.Errorf("RL-31: the watcher there is %v", there.Watchers)
		}
		sub.Unsubscribe()
		w.Settle(time.Second)
		com.CheckIdle()
		org.CheckIdle()
	})
}

// On a network that loses, doubles and reorders, what the other server says
// arrives here, and everything ends with the last list.
func TestRemoteChaos(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			pair(t, func(w *servertest.World, com, org *servertest.Node) {
				rng := rand.New(rand.NewPCG(seed, 3))
				com.List(team, bob, ann, "sip:art@example.org")
				pubs := map[string]*servertest.Publication{bob: w.UA(bob).Publication(com), ann: w.UA(ann).Publication(org), "sip:art@example.org": w.UA("sip:art@example.org").Publication(org)}
				want := state{bob: "closed", ann: "closed", "sip:art@example.org": "closed"}
				w.Net.SetFault(sip.Fault{Loss: 0.2, Duplicate: 0.1, Reorder: 0.3, Jitter: 700 * time.Millisecond, Delay: 10 * time.Millisecond})
				one, other := w.UA(alice).Watch(com, team), w.UA(bob).Watch(com, team)
				for i := range 60 {
					for uri, p := range pubs {
						if rng.IntN(3) == 0 {
							p.Say("open", fmt.Sprint("step ", i))
							want[uri] = fmt.Sprint("open: step ", i)
						}
					}
					if rng.IntN(10) == 0 {
						one.Refresh()
					}
					w.Settle(time.Duration(rng.IntN(2000)) * time.Millisecond)
				}
				w.Net.SetFault(sip.Fault{})
				w.Settle(20 * time.Minute) // a subscription that was lost is tried again by then
				one.WantView("quiet", want)
				other.WantView("quiet", want)
				one.Unsubscribe()
				other.Unsubscribe()
				w.Settle(time.Minute)
				com.CheckIdle()
				org.CheckIdle()
			})
		})
	}
}

// RL-30: one subscription there for one watcher, however many lists; one each
// for two watchers. It ends with the last list.
func TestSharing(t *testing.T) {
	pair(t, func(w *servertest.World, com, org *servertest.Node) {
		com.Put("rls-services/global/index", servertest.Services(servertest.Service(team, ann), servertest.Service(two, ann, bob)))
		live := func(what string, want float64) {
			t.Helper()
			w.Settle(time.Second)
			if a, b := com.Metric("dialog_remote_subscriptions"), org.Metric("dialog_subscriptions"); a != want || b != want {
				t.Errorf("RL-30 %s: %v subscriptions here and %v there, want %v", what, a, b, want)
			}
		}
		ua := w.UA(alice)
		first, second := ua.Watch(com, team), ua.Watch(com, two)
		live("two lists", 1)
		direct := ua.Watch(com, ann)
		live("and directly", 1)
		other := w.UA(bob).Watch(com, team)
		live("two watchers", 2)
		w.UA(ann).Publication(org).Say("open", "here")
		w.Settle(2 * time.Second)
		first.WantView("all are told", state{ann: "open: here"})
		second.WantView("all are told", state{ann: "open: here", bob: "closed"})
		other.WantView("all are told", state{ann: "open: here"})
		direct.Drain()
		if all := direct.All(); all[len(all)-1].Text() != "open: here" {
			t.Errorf("direct watcher has %q", all[len(all)-1].Text())
		}
		first.Unsubscribe()
		live("one list left", 2)
		direct.Unsubscribe()
		live("directly no more", 2)
		second.Unsubscribe()
		live("the last of alice", 1)
		com.Put("rls-services/global/index", servertest.Services(servertest.Service(team, bob)))
		live("RL-37 member removed", 0)
		other.Unsubscribe()
		com.CheckIdle()
		org.CheckIdle()
	})
}

// RL-31, RL-32: in whose name we subscribe.
func TestIdentity(t *testing.T) {
	for watcher, from := range map[string]string{alice: alice, "sip:Zoe@example.net": "sip:rollcall@example.com"} {
		t.Run(watcher, func(t *testing.T) {
			scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
				com.List(team, ann)
				w.UA(watcher).Watch(com, team)
				in := p.Next(time.Second)
				if got := string(in.From().URI); got != from {
					t.Errorf("RL-31, RL-32: From %s, want %s", got, from)
				}
				if got := string(in.RequestURI()); got != ann || string(in.To().URI) != ann || in.InDialog() {
					t.Errorf("Request-URI %s, To %s", got, in.To().URI)
				}
				if in.H(sip.HdrAccept) != "application/pidf+xml" || in.H(sip.HdrEvent) != "presence" || in.Wants() != 3600 || in.Has(sip.HdrSupported) {
					t.Errorf("RL-34, RL-35: SUBSCRIBE is\n%s", in.Raw)
				}
				in.Answer(404, "")
			})
		})
	}
}

// RL-36: how a member ends, by the answer to the first SUBSCRIBE.
func TestFirstAnswer(t *testing.T) {
	for status, want := range map[int]string{
		400: "terminated probation", 401: "terminated rejected", 403: "terminated rejected", 404: "terminated noresource", 405: "terminated noresource",
		406: "terminated noresource", 407: "terminated rejected", 408: "terminated probation", 410: "terminated noresource", 415: "terminated noresource",
		420: "terminated noresource", 480: "terminated probation", 489: "terminated noresource", 500: "terminated probation", 501: "terminated noresource",
		503: "terminated probation", 603: "terminated rejected", 604: "terminated noresource",
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
				com.List(team, bob, ann)
				sub := w.UA(alice).Watch(com, team)
				p.Next(time.Second).Answer(status, "")
				w.Settle(2 * time.Second)
				sub.WantView("RL-36", state{bob: "closed", ann: want})
				if n := com.Metric("dialog_remote_subscriptions"); n != 0 {
					t.Errorf("%v subscriptions are kept", n)
				}
				if strings.HasSuffix(want, "probation") {
					in := p.Next(7 * time.Second)
					in.Answer(200, "")
					in.Notify(active, doc("back"))
					w.Settle(2 * time.Second)
					sub.WantView("recovery", state{bob: "closed", ann: "open: back"})
				} else {
					p.Quiet(time.Hour-time.Minute, "RL-36: not again")
				}
				sub.Drain()
			})
		})
	}
}

// 423 is tried once more with what the other server wants.
func TestTooBrief(t *testing.T) {
	scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
		com.List(team, ann)
		sub := w.UA(alice).Watch(com, team)
		p.Next(time.Second).Answer(423, "Min-Expires: 7200\n")
		in := p.Next(time.Second)
		if in.Wants() != 7200 {
			t.Errorf("EV-05: second attempt wants %d, want 7200", in.Wants())
		}
		in.Answer(200, "")
		in.Notify("active;expires=7200", doc("here"))
		w.Settle(time.Second)
		sub.WantView("after 423", state{ann: "open: here"})
	})
}

// EV-12, RL-36: how a member goes on after the other server ended a live
// subscription, by the reason it gave.
func TestTerminated(t *testing.T) {
	for _, c := range []struct {
		params string
		want   string        // state of the member
		after  time.Duration // when it is tried again, 0 for never
		before time.Duration
	}{
		{";reason=deactivated", "open: here", time.Nanosecond, time.Second},
		{";reason=timeout", "open: here", time.Nanosecond, time.Second},
		{";reason=probation", "terminated probation", 4 * time.Second, 6 * time.Second},
		{";reason=probation;retry-after=300", "terminated probation", 300 * time.Second, 301 * time.Second},
		{";reason=giveup;retry-after=60", "terminated probation", time.Minute, 61 * time.Second},
		{";reason=giveup", "terminated probation", 4 * time.Second, 6 * time.Second},
		{";reason=something", "terminated probation", 4 * time.Second, 6 * time.Second},
		{"", "terminated probation", 4 * time.Second, 6 * time.Second},
		{";reason=rejected", "terminated rejected", 0, 0},
		{";reason=noresource", "terminated noresource", 0, 0},
		{";reason=invariant", "terminated noresource", 0, 0},
	} {
		t.Run(c.params, func(t *testing.T) {
			scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
				com.List(team, ann)
				sub := w.UA(alice).Watch(com, team)
				in := p.Next(time.Second)
				in.Answer(200, "")
				in.Notify(active, doc("here"))
				w.Settle(time.Minute)
				sub.WantView("live", state{ann: "open: here"})
				sub.Drain()
				at := time.Now()
				if status := in.Notify("terminated"+c.params, ""); status != 200 {
					t.Errorf("last NOTIFY: %d", status)
				}
				if c.after == time.Nanosecond {
					sub.Quiet(500*time.Millisecond, "RL-36: recovered quickly, nothing to report")
				}
				w.Settle(time.Second)
				sub.WantView("RL-36", state{ann: c.want})
				if c.after == 0 {
					p.Quiet(time.Hour-2*time.Minute, "RL-36: not again")
					return
				}
				again := p.Next(c.before + time.Second)
				if d := again.At.Sub(at); d < c.after-time.Nanosecond || d > c.before {
					t.Errorf("EV-12: tried again after %v, want %v to %v", d, c.after, c.before)
				}
				if again.InDialog() || string(again.CallID()) == string(in.CallID()) {
					t.Errorf("EV-17: the new subscription is in the old dialog")
				}
				again.Answer(200, "")
				again.Notify(active, doc("again"))
				w.Settle(time.Second)
				sub.WantView("recovery", state{ann: "open: again"})
			})
		})
	}
}

// RL-36: a server that does not answer is tried again with growing gaps; the
// member stays listed.
func TestRemoteDown(t *testing.T) {
	scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
		com.List(team, bob, ann)
		sub := w.UA(alice).Dialog(com, team)
		sub.MustSubscribe(7200)
		sub.Next()
		sub.WantView("RL-15", state{bob: "closed", ann: "unknown"})
		p.Next(time.Second)
		gone := time.Now().Add(32 * time.Second) // timer F
		w.Settle(33 * time.Second)
		sub.WantView("RL-36", state{bob: "closed", ann: "terminated probation"})
		sub.Drain()
		var in *servertest.Incoming
		for wait := 5 * time.Second; wait < 10*time.Minute; wait *= 2 {
			in = p.Next(wait*2 + 40*time.Second)
			if d := in.At.Sub(gone); d < wait*4/5-time.Second || d > wait*6/5+2*time.Second {
				t.Errorf("RL-36: tried again after %v, want about %v", d, wait)
			}
			gone = in.At.Add(32 * time.Second)
		}
		sub.Quiet(time.Minute, "nothing new")
		in = p.Next(15 * time.Minute)
		in.Answer(200, "")
		in.Notify(active, doc("back"))
		w.Settle(time.Second)
		sub.WantView("recovery", state{bob: "closed", ann: "open: back"})
		// The next failure is the first again.
		w.Settle(time.Minute)
		in.Notify("terminated;reason=probation", "")
		p.Next(8*time.Second).Answer(403, "")
		w.Settle(time.Second)
		sub.WantView("refused", state{bob: "closed", ann: "terminated rejected"})
		sub.Unsubscribe()
		com.CheckIdle()
	})
}

// A server that ends each subscription at once is not asked all the time.
func TestNotHammered(t *testing.T) {
	for _, reason := range []string{"deactivated", "timeout", "probation"} {
		t.Run(reason, func(t *testing.T) {
			scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
				com.List(team, ann)
				w.UA(alice).Watch(com, team)
				n := 0
				for start := time.Now(); n < 50 && time.Since(start) < 20*time.Minute; n++ {
					in := p.Next(15 * time.Minute)
					in.Answer(200, "")
					in.Notify(active, doc(fmt.Sprint(n)))
					in.Notify("terminated;reason="+reason, "")
				}
				if n > 12 {
					t.Errorf("%d attempts in 20 minutes", n)
				}
			})
		})
	}
}

// EV-19: the NOTIFY may come before the 2xx, which may be lost altogether.
func TestNotifyBeforeAnswer(t *testing.T) {
	scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
		com.List(team, ann)
		sub := w.UA(alice).Watch(com, team)
		in := p.Next(time.Second)
		if status := in.Notify(active, doc("early")); status != 200 {
			t.Errorf("EV-19: NOTIFY before the 200 got %d", status)
		}
		w.Settle(time.Second)
		sub.WantView("EV-19", state{ann: "open: early"})
		in.Answer(200, "Expires: 600\n")
		in.Notify("active;expires=600", doc("later"))
		w.Settle(time.Second)
		sub.WantView("EV-19", state{ann: "open: later"})
		if again := p.Next(10 * time.Minute); !again.InDialog() || again.Wants() != 3600 {
			t.Errorf("refresh in dialog %v wants %d", again.InDialog(), again.Wants())
		}
	})
}

// A subscription is refreshed for hours; refreshes say nothing new to the
// watcher; one that is answered 481 is replaced without a word (EV-17).
func TestRefresh(t *testing.T) {
	scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
		com.List(team, ann)
		sub := w.UA(alice).Watch(com, team)
		in := p.Next(time.Second)
		in.Answer(200, "Expires: 1800\n")
		in.Notify("active;expires=1800", doc("here"))
		sub.Next()
		w.Settle(time.Second)
		sub.Drain()
		last := in.At
		for range 20 {
			if sub.Refresh(); sub.Next() == nil {
				break
			}
			again := p.Next(30 * time.Minute)
			if d := again.At.Sub(last); !again.InDialog() || d > 25*time.Minute || d < 20*time.Minute {
				t.Errorf("refreshed after %v, in dialog %v", d, again.InDialog())
			}
			last = again.At
			again.Answer(200, "Expires: 1800\n")
			again.Notify("active;expires=1800", doc("here"))
			sub.Quiet(10*time.Second, "a refresh of the same state is no change")
			in = again
		}
		sub.WantView("hours later", state{ann: "open: here"})
		lost := p.Next(30 * time.Minute)
		sub.Drain()
		lost.Answer(481, "")
		fresh := p.Next(time.Second)
		if fresh.InDialog() || string(fresh.CallID()) == string(lost.CallID()) {
			t.Errorf("EV-17: not a new dialog")
		}
		fresh.Answer(200, "")
		fresh.Notify(active, doc("here"))
		sub.Quiet(10*time.Second, "EV-17: recovered quickly, nothing to report")
		sub.WantView("EV-17", state{ann: "open: here"})
		if status := lost.Notify(active, doc("ghost")); status != 481 {
			t.Errorf("EV-20: NOTIFY in the old dialog got %d, want 481", status)
		}
	})
}

// EV-17: a refresh that fails for a while leaves the subscription as it is until
// it expires.
func TestRefreshFails(t *testing.T) {
	scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
		com.List(team, ann)
		sub := w.UA(alice).Dialog(com, team)
		sub.MustSubscribe(7200)
		in := p.Next(time.Second)
		in.Answer(200, "Expires: 600\n")
		in.Notify("active;expires=600", doc("here"))
		at := time.Now()
		w.Settle(time.Second)
		sub.Drain()
		for time.Since(at) < 590*time.Second {
			again := p.Next(10 * time.Minute)
			if !again.InDialog() {
				break
			}
			again.Answer(500, "")
		}
		w.Settle(time.Until(at.Add(599 * time.Second)))
		sub.Quiet(0, "EV-17: still valid")
		in = p.Next(time.Minute)
		if d := in.At.Sub(at); in.InDialog() || d < 600*time.Second {
			t.Errorf("EV-17: replaced after %v, in dialog %v", d, in.InDialog())
		}
		in.Answer(200, "")
		in.Notify(active, doc("fresh"))
		w.Settle(time.Second)
		sub.WantView("EV-17", state{ann: "open: fresh"})
	})
}

// RL-36: an active NOTIFY without a body gives a neutral document in the list,
// where an active member must have one; pending has none.
func TestNoBody(t *testing.T) {
	scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
		com.List(team, ann)
		sub := w.UA(alice).Watch(com, team)
		in := p.Next(time.Second)
		in.Answer(200, "")
		in.Notify("pending;expires=3600", "")
		w.Settle(time.Second)
		sub.WantView("RL-36 pending", state{ann: "pending"})
		in.Notify(active, "")
		w.Settle(time.Second)
		sub.WantView("RL-36 no body", state{ann: "closed"})
		in.Notify(active, doc("here"))
		w.Settle(time.Second)
		sub.WantView("RL-36 body", state{ann: "open: here"})
		in.Notify("pending;expires=3600", doc("must not be shown"))
		w.Settle(time.Second)
		sub.WantView("RL-36 pending again", state{ann: "pending"})
	})
}

// What the other server sends is passed on byte for byte (RL-33).
func TestBodyVerbatim(t *testing.T) {
	scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
		com.List(team, ann)
		ua := w.UA(alice)
		sub, direct := ua.Watch(com, team), ua.Watch(com, ann)
		if got := direct.Next(); got.State != "pending" || len(got.Body()) > 0 {
			t.Errorf("before anything is known: %s with %d bytes", got.State, len(got.Body()))
		}
		in := p.Next(time.Second)
		in.Answer(200, "")
		body := "<?xml version='1.0'?>\r\n<!-- a -->" + `<p:presence xmlns:p="urn:ietf:params:xml:ns:pidf" entity='pres:ann@example.org' ><p:tuple id="x"><p:status><p:basic>open</p:basic></p:status></p:tuple></p:presence>` + "\n\n"
		in.Notify(active, body)
		got := direct.Next()
		if got.State != "active" || string(got.Body()) != body {
			t.Errorf("RL-33: direct watcher got\n%s", got.Body())
		}
		w.Settle(time.Second)
		row := sub.All()[len(sub.All())-1]
		part, _ := row.RLMI.Part(row.RLMI.List.Resources[0].Instances[0].CID)
		if string(part.Body) != body {
			t.Errorf("RL-33: list watcher got\n%q", part.Body)
		}
		in.Notify("terminated;reason=noresource", "")
		direct.Last("noresource")
	})
}

// NOTIFYs that are not of our subscriptions, or not in order, change nothing.
func TestBadNotify(t *testing.T) {
	scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
		com.List(team, ann)
		sub := w.UA(alice).Watch(com, team)
		in := p.Next(time.Second)
		in.Answer(200, "")
		in.Notify(active, doc("here"))
		w.Settle(time.Second)
		sub.Drain()
		ua := w.UA("sip:mallory@example.org")
		good := fmt.Sprintf("NOTIFY sip:192.0.2.1:5060 SIP/2.0\nVia: {via}\nMax-Forwards: 70\nFrom: <%s>;tag=%s\nTo: <%s>;tag=%s\nCall-ID: %s\nCSeq: 9 NOTIFY\nContact: <sip:192.0.2.99>\nEvent: presence\nSubscription-State: active;expires=9\nContent-Type: application/pidf+xml\n\n%s",
			ann, in.Tag(), in.From().URI, in.From().Tag(), in.CallID(), doc("forged"))
		for _, c := range []struct {
			name, old, new string
			status         int
		}{
			{"EV-20 another Call-ID", "Call-ID: ", "Call-ID: x", 481},
			{"EV-20 another tag of ours", ";tag=" + string(in.From().Tag()), ";tag=00000000000000", 481},
			{"EV-21 another tag of theirs", ";tag=" + in.Tag(), ";tag=fork", 481},
			{"another package", "Event: presence", "Event: dialog", 489},
			{"CORE-13 old CSeq", "CSeq: 9", "CSeq: 1", 500},
			{"no Subscription-State", "Subscription-State: active;expires=9\n", "", 400},
			{"another type", "application/pidf+xml", "text/plain", 415},
			{"an encoding", "Content-Type:", "Content-Encoding: br\nContent-Type:", 415},
			{"CORE-05 an encoding that it is not", "Content-Type:", "Content-Encoding: gzip\nContent-Type:", 400},
		} {
			if m := ua.Raw(com.Addr, strings.Replace(good, c.old, c.new, 1)); m.Status() != c.status {
				t.Errorf("%s: %d, want %d", c.name, m.Status(), c.status)
			}
		}
		sub.Quiet(10*time.Second, "refused NOTIFYs change nothing")
	})
}

// RL-37: what is given up before it was answered is unsubscribed from as soon
// as that can be said.
func TestLeaveEarly(t *testing.T) {
	scripted(t, func(w *servertest.World, com *servertest.Node, p *servertest.Peer) {
		com.List(team, ann)
		sub := w.UA(alice).Watch(com, team)
		in := p.Next(time.Second)
		sub.Unsubscribe()
		in.Answer(200, "")
		in.Notify(active, doc("late"))
		bye := p.Next(time.Second)
		if !bye.InDialog() || bye.Wants() != 0 {
			t.Errorf("RL-37: in dialog %v, Expires %d", bye.InDialog(), bye.Wants())
		}
		bye.Answer(200, "")
		if status := bye.Notify("terminated;reason=timeout", ""); status != 200 {
			t.Errorf("RL-37: the last NOTIFY got %d, want 200", status)
		}
		com.CheckIdle()
		if status := bye.Notify(active, ""); status != 481 {
			t.Errorf("EV-20: NOTIFY after the end got %d", status)
		}
	})
}

// An outbound proxy takes what has no route of its own.
func TestOutboundProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		org := w.Node(remoteAt, func(c *server.Config) { c.Domain, c.Remote = []string{"example.org"}, nil })
		com := w.Node("192.0.2.1", func(c *server.Config) {
			c.Remote = map[string]string{"example.net": "sip:192.0.2.66", "*": "sip:" + remoteAt}
		})
		w.UA(ann).Publication(org).Say("open", "one")
		com.List(team, ann)
		sub := w.UA(alice).Watch(com, team)
		sub.Next()
		w.Settle(time.Second)
		sub.WantView("by the outbound proxy", state{ann: "open: one"})
	})
}
