package pa

import (
	"context"
	"fmt"
	"testing"
	"time"

	"rollcall/dialog"
	"rollcall/pa/policy"
	"rollcall/sip"
)

// panicking rules cannot be read to their end.
type panicking struct{}

func (panicking) Cached(string) ([]*policy.Ruleset, bool) { return nil, false }

func (panicking) Fetch(context.Context, string) ([]*policy.Ruleset, error) { panic("a bug") }

// PR-18: rules that were not read to their end are not the same as no rules.
func TestRulesPanic(t *testing.T) {
	inShard(t, Options{Mode: Allow, Rules: panicking{}}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) { s.Attach(tn, interest("sip:bob@example.com"), sink(1)) })
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			if u := out.last(sink(1)); u.State != dialog.Pending || u.Doc != nil {
				t.Errorf("%v %v, want pending without a document although the default is allow", u.State, u.Doc)
			}
		})
	})
}

// PR-18: nor does a MESSAGE come because its rules were not read to their end.
func TestMessageRulesPanic(t *testing.T) {
	const text = "MESSAGE sip:alice@example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.9:5060;branch=z9hG4bK1\r\nMax-Forwards: 70\r\nFrom: <sip:bob@example.com>;tag=1\r\nTo: <sip:alice@example.com>\r\nCall-ID: 1\r\nCSeq: 1 MESSAGE\r\nContent-Length: 0\r\n\r\n"
	for _, c := range []struct {
		rules           RuleSource
		allowed, denied uint64
	}{{panicking{}, 0, 0}, {nil, 1, 0}, {&stillRules{sets: mustRules(t, "")}, 0, 1}} {
		opt := Options{Messages: c.rules, MessageAllowed: true}
		var st *Stats
		inShard(t, opt, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
			turn(func(tn *dialog.Turn, s *Shard, _ *sinks) {
				st = s.a.Stats()
				m := sip.NewMessage()
				m.Raw = []byte(text)
				if err := m.Parse(m.Raw, false); err != nil {
					t.Fatal(err)
				}
				s.Message(tn, &dialog.Request{Msg: m, Resource: alice, Watcher: dialog.Identity{URI: "sip:bob@example.com"}})
			})
		})
		if a, d := st.MessagesAllowed.Load(), st.MessagesDenied.Load(); a != c.allowed || d != c.denied {
			t.Errorf("%T: %d allowed, %d denied, want %d and %d", c.rules, a, d, c.allowed, c.denied)
		}
	}
}

// PR-17: after a change that concerns everybody each watched presentity is
// decided for, in turns of their own, and nobody else.
func TestAllRulesChanged(t *testing.T) {
	rules := &stillRules{sets: mustRules(t, `<cr:rule id="a"><cr:actions><pr:sub-handling>confirm</pr:sub-handling></cr:actions></cr:rule>`)}
	inShard(t, Options{Rules: rules}, func(turn func(func(*dialog.Turn, *Shard, *sinks))) {
		const many = 5*changePiece + 3
		to := func(i int) dialog.SinkRef {
			return dialog.SinkRef{ID: uint64(i + 1), Shard: dialog.ShardOf(alice), Component: 1}
		}
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			for i := range many {
				in := interest("sip:bob@example.com")
				in.Resource = fmt.Sprintf("sip:u%d@example.com", i)
				s.Attach(tn, in, to(i))
			}
			s.presentity(0, "sip:nobody@example.com")
		})
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			for i := range many {
				if u := out.last(to(i)); u.State != dialog.Pending {
					t.Fatalf("watcher %d is %v", i, u.State)
				}
			}
			rules.mu.Lock()
			rules.sets = mustRules(t, `<cr:rule id="a"><cr:actions><pr:sub-handling>polite-block</pr:sub-handling></cr:actions></cr:rule>`)
			rules.mu.Unlock()
			s.AllRulesChanged(tn)
		})
		turn(func(tn *dialog.Turn, s *Shard, out *sinks) {
			told := 0
			for i := range many {
				if u := out.last(to(i)); u.State == dialog.Active {
					told++
				}
			}
			if told != many {
				t.Errorf("PR-17: %d of %d were decided for", told, many)
			}
		})
	})
}

// What a decision rests on, in every mode, for subscriptions and messages.
func TestDecideBasis(t *testing.T) {
	allow := mustRules(t, `<cr:rule id="a"><cr:conditions><cr:identity><cr:one id="sip:bob@example.com"/></cr:identity></cr:conditions><cr:actions><pr:sub-handling>allow</pr:sub-handling></cr:actions></cr:rule>`)
	for _, c := range []struct {
		mode              Mode
		watcher, pkg      string
		sets              []*policy.Ruleset
		message, messages bool
		want              string // basis, status, default
	}{
		{Confirm, alice, "", nil, false, false, "owner active "},
		{Block, alice, "presence.winfo", nil, false, false, "owner active "},
		{Block, "", "", nil, false, false, "default terminated presence-auth block"},
		{Allow, "", "", nil, false, false, "default active presence-auth allow"},
		{Confirm, "sip:bob@example.com", "", allow, false, false, "rules active "},
		{Confirm, "sip:bob@example.com", "dialog", allow, false, false, "rules active "},
		{Confirm, "sip:carol@example.com", "dialog", allow, false, false, "default pending presence-auth confirm"},
		{Allow, "sip:bob@example.com", "presence.winfo.winfo", allow, false, false, "owner-only terminated "},
		{Allow, "sip:bob@example.com", "message-summary", allow, false, false, "owner-only terminated "},
		{Open, "sip:bob@example.com", "presence.winfo", nil, false, false, "open active presence-auth open"},
		{Confirm, "sip:bob@example.com", "conference", allow, false, false, "open active package-auth conference=open"},
		{Open, "sip:bob@example.com", "reg", nil, false, false, "owner-only terminated package-auth reg=owner"},
		{Open, "sip:bob@example.com", "", nil, true, false, "default terminated message-auth block"},
		{Block, "sip:bob@example.com", "", nil, true, true, "default active message-auth allow"},
		{Block, "sip:carol@example.com", "", allow, true, true, "default terminated block, because the recipient has rules"},
		{Block, alice, "", allow, true, false, "owner active "},
	} {
		a := New(Options{Mode: c.mode, MessageAllowed: c.messages, Bases: map[string]policy.Basis{"conference": policy.Anybody, "reg": policy.Owner}})
		e := a.Explain(Question{Watcher: c.watcher, Resource: alice, Package: c.pkg, Sets: c.sets, Message: c.message, Now: time.Unix(0, 0)})
		if got := e.Basis + " " + e.Status + " " + e.Default; got != c.want {
			t.Errorf("%+v: %s, want %s", c, got, c.want)
		}
		d, basis := a.Decide(Question{Watcher: c.watcher, Resource: alice, Package: c.pkg, Sets: c.sets, Message: c.message, Now: time.Unix(0, 0)})
		if basis != e.Basis || e.Allowed != (c.message && d.Message || !c.message && d.Handling == policy.Allow) {
			t.Errorf("%+v: Decide says %v by %s", c, d, basis)
		}
	}
}
