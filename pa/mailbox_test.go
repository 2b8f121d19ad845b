package pa_test

import (
	"testing"
	"time"

	"rollcall/pa/mwi"
	"rollcall/server/servertest"
)

// MW-01, MW-02: what two mail boxes of a user say reaches a phone, added up, and
// no headers of messages do.
func TestMailbox(t *testing.T) {
	world(t, mode("confirm"), func(w *servertest.World, n *servertest.Node) {
		ua := w.UA(alice)
		voice, fax := ua.Publication(n), ua.Publication(n)
		voice.Event, voice.Type, fax.Event, fax.Type = "message-summary", mwi.MediaType, "message-summary", mwi.MediaType
		sub := ua.Dialog(n, alice)
		sub.Event = "message-summary"
		sub.MustSubscribe(3600)
		first := sub.Next()
		if first.State != "active" || first.Text() != "Messages-Waiting: no\r\n" {
			t.Errorf("nothing published: %s %q", first.State, first.Text())
		}
		say := func(p *servertest.Publication, body, want string) {
			t.Helper()
			w.Settle(2 * time.Second)
			if m := p.Send(body, 600); m.Status() != 200 {
				t.Fatalf("PUBLISH: %d %s", m.Status(), m.Reason())
			}
			if got := sub.Next().Text(); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		const account = "Message-Account: sip:alice@vmail.example.com\r\n"
		say(voice, "Messages-Waiting: yes\r\n"+account+"Voice-Message: 4/8 (1/2)\r\n\r\nTo: <alice@example.com>\r\nSubject: carpool\r\n",
			"Messages-Waiting: yes\r\n"+account+"Voice-Message: 4/8 (1/2)\r\n")
		say(fax, "Messages-Waiting: no\r\n"+account+"Fax-Message: 0/4\r\n", "Messages-Waiting: yes\r\n"+account+"Voice-Message: 4/8 (1/2)\r\nFax-Message: 0/4\r\n")
		voice.Send("Messages-Waiting: yes\r\n"+account+"Voice-Message: 4/8 (1/2)\r\n", 600)
		sub.Quiet(10*time.Second, "an equal summary is a refresh")
		for _, bad := range []string{"Messages-Waiting: perhaps\r\n", "Voice-Message: 1/2\r\n"} {
			if m := voice.Send(bad, 600); m.Status() != 400 {
				t.Errorf("%q: %d", bad, m.Status())
			}
		}
		w.Settle(10 * time.Minute)
		sub.Drain()
		all := sub.All()
		if got := all[len(all)-1].Text(); got != "Messages-Waiting: no\r\n" {
			t.Errorf("PUB-14: after all ran out: %q", got)
		}
		other := w.UA(bob).Dialog(n, alice)
		other.Event = "message-summary"
		if m := other.Subscribe(60); m.Status() != 403 {
			t.Errorf("somebody else gets %d: a mailbox is for its owner", m.Status())
		}
	})
}

// A list of mail boxes: those of which nothing is known say no (RL-17).
func TestMailboxList(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		const boxes = "sip:boxes@example.com"
		n.Put("rls-services/global/index", servertest.Services(servertest.ServiceFor("message-summary", boxes, alice, bob)))
		w.Settle(time.Second)
		p := w.UA(bob).Publication(n)
		p.Event, p.Type = "message-summary", mwi.MediaType
		sub := w.UA(alice).Dialog(n, boxes)
		sub.Event = "message-summary"
		sub.MustSubscribe(3600)
		sub.Next()
		p.Send("Messages-Waiting: yes\r\nVoice-Message: 1/0\r\n", 600)
		sub.Next()
		sub.WantView("a message", map[string]string{alice: "Messages-Waiting: no\r\n", bob: "Messages-Waiting: yes\r\nVoice-Message: 1/0\r\n"})
	})
}
