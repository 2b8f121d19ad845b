package pa

import (
	"context"
	"log/slog"
	"time"

	"rollcall/dialog"
	"rollcall/pa/policy"
)

// Message implements dialog.Messenger: whether a MESSAGE may come, by the
// recipient's im-rules. 403 says that it may not (IM-02). One that may is
// answered with 480, because nobody is reached through this server: it neither
// relays messages nor keeps them, and any 2xx would tell the sender that his
// message is on its way (RFC 3428, section 7). A proxy that asks by SIP takes
// the 480 for leave to deliver.
func (s *Shard) Message(t *dialog.Turn, r *dialog.Request) {
	if s.a.opt.Messages == nil {
		s.judge(t, r, nil)
		return
	}
	if sets, ok := s.a.opt.Messages.Cached(r.Resource); ok {
		s.judge(t, r, sets)
		return
	}
	var sets []*policy.Ruleset
	err := errNotRead
	key := r.Resource
	ok := t.Async(func(ctx context.Context) { sets, err = s.a.opt.Messages.Fetch(ctx, key) }, func(t *dialog.Turn) {
		if err != nil {
			s.a.limit.Log(t.Now, s.a.opt.Log, slog.LevelWarn, "rules not readable", "presentity", key, "err", err)
			t.Fail(r, rulesUnreadable)
			return
		}
		s.judge(t, r, sets)
	})
	if !ok {
		t.Fail(r, rulesUnreadable)
		return
	}
	r.Keep()
}

// rulesUnreadable asks the sender to try again: what the rules forbid is not
// known (PR-18).
var rulesUnreadable = &dialog.Error{Status: 503, Reason: "Rules Not Readable", RetryAfter: 10 * time.Second}

func (s *Shard) judge(t *dialog.Turn, r *dialog.Request, sets []*policy.Ruleset) {
	d, _ := s.a.Decide(Question{Message: true, Watcher: r.Watcher.URI, Resource: r.Resource, Sphere: s.Sphere(r.Resource), Sets: sets, Now: t.Now})
	if !d.Message {
		s.a.stats.MessagesDenied.Add(1)
		t.Fail(r, &dialog.Error{Status: 403, Quiet: true})
		return
	}
	s.a.stats.MessagesAllowed.Add(1)
	t.Fail(r, &dialog.Error{Status: 480, Reason: "Permitted But Not Delivered Here", Quiet: true})
}
