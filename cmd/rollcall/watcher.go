package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"rollcall/rls/rlmi"
	"rollcall/sip"
)

// watcher keeps a subscription going: it refreshes before expiry, asks for
// full state after a loss, opens a new subscription when the old one died, and
// ends it in order.
//
// States and what leads on (RFC 6665 section 4.1.2):
//
//	opening   2xx or NOTIFY -> open; refused or silent -> end, or opening again later when it was open before
//	open      time to refresh, gap, lost connection -> SUBSCRIBE in the dialog
//	          refresh refused by one of deadCodes, expired, NOTIFY terminated -> opening
//	          NOTIFY terminated with a reason that forbids it -> end
//	ending    2xx and NOTIFY terminated, or a short wait -> end
type watcher struct {
	sub     *subscription
	expires time.Duration // to ask for; 0 polls
	count   int           // NOTIFYs after which to end, 0 for no limit
	show    func(*sight)
	note    func(format string, args ...any)

	known     roster
	notifies  int
	ever      bool // something was granted once
	open      bool
	raised    bool // Expires was raised after a 423
	tries     int  // attempts to open that failed in a row
	pending   <-chan grant
	openedAt  time.Time
	wakeAt    time.Time // when to send the next SUBSCRIBE
	expiresAt time.Time
	again     bool      // refresh when the SUBSCRIBE under way is answered
	silentAt  time.Time // when a subscription without any NOTIFY has failed (EV-18)
	lastAsked time.Time // for full state
	died      bool      // the last NOTIFY ended the subscription
}

// sight is what a NOTIFY let us see.
type sight struct {
	n     *notify
	uri   string
	known *roster // nil: not a list
	basic string
	note  string
	fault string // why the body was not understood
}

// deadCodes end a subscription when they answer a refresh (EV-17).
var deadCodes = []int{404, 405, 410, 416, 480, 481, 482, 483, 484, 485, 489, 501, 604}

const (
	retryFirst = 2 * time.Second
	retryMost  = time.Minute
	endWait    = 2 * time.Second // for the last NOTIFY
	gapWait    = time.Second     // between two requests for full state
)

// run watches until ctx ends, count is reached or the subscription ends.
func (w *watcher) run(ctx context.Context) error {
	w.openNow(ctx)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if at := earliest(w.wakeAt, w.silentAt); at.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(at))
		}
		var err error
		var over bool
		select {
		case g := <-w.pending:
			w.pending = nil
			over, err = w.granted(ctx, g)
		case ev := <-w.sub.events:
			over, err = w.event(ctx, ev)
		case <-timer.C:
			over, err = w.due(ctx)
		case <-ctx.Done():
			w.end(ctx)
			return nil
		}
		if err != nil || over {
			w.end(ctx)
			return err
		}
	}
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// openNow starts a new subscription.
func (w *watcher) openNow(ctx context.Context) {
	w.open, w.died, w.known = false, false, roster{}
	w.openedAt = time.Now()
	w.wakeAt, w.silentAt = time.Time{}, w.openedAt.Add(w.silence())
	w.ask(ctx, true)
}

// ask sends a SUBSCRIBE. It is not given up when ctx ends, because then
// nobody would know whether there is a subscription to end.
func (w *watcher) ask(ctx context.Context, fresh bool) {
	w.again = false
	w.pending = w.sub.subscribe(context.WithoutCancel(ctx), w.expires, fresh)
}

// silence is how long to wait for the first NOTIFY (EV-18).
func (w *watcher) silence() time.Duration {
	if w.sub.limit > 0 {
		return min(w.sub.limit, sip.TimerF)
	}
	return sip.TimerF
}

// refresh sends a SUBSCRIBE in the dialog. While one is under way, whose
// answer may be on its way to us, it waits.
func (w *watcher) refresh(ctx context.Context) {
	if w.pending != nil {
		w.again = true
		return
	}
	w.wakeAt = time.Time{}
	w.ask(ctx, false)
}

// extend notes how long the subscription lasts and when to refresh it.
func (w *watcher) extend(d time.Duration) {
	w.expiresAt = time.Now().Add(d)
	w.wakeAt = w.expiresAt.Add(-refreshLead(d))
}

// refreshLead is how long before expiry a refresh is sent: long enough to try
// again.
func refreshLead(d time.Duration) time.Duration { return min(d/4, time.Minute) }

// later tries again after a while.
func (w *watcher) later(atLeast time.Duration) time.Duration {
	d := max(atLeast, min(retryFirst<<min(w.tries, 10), retryMost))
	w.tries++
	w.wakeAt = time.Now().Add(d)
	return d
}

// granted takes the outcome of a SUBSCRIBE.
func (w *watcher) granted(ctx context.Context, g grant) (over bool, err error) {
	var r *refusal
	switch {
	case g.err == nil:
		w.ever, w.open, w.tries = true, !w.died, 0
		if w.open && w.expires > 0 {
			w.extend(g.expires)
		}
		if w.open && w.again {
			w.refresh(ctx)
		}
		return false, nil
	case errors.As(g.err, &r) && r.status == 423 && !w.raised && time.Duration(r.min)*time.Second > w.expires:
		w.raised = true
		w.expires = time.Duration(r.min) * time.Second
		w.note("the server wants at least %v", w.expires)
		w.ask(ctx, !w.open)
		return false, nil
	case !w.open && (!w.ever || r != nil && r.status < 500 || r != nil && r.status >= 600):
		return true, g.err
	}
	var wait time.Duration
	if r != nil {
		wait = r.retryAfter
	}
	switch {
	case !w.open:
		w.silentAt = time.Time{}
		w.note("%v; next attempt in %v", g.err, w.later(wait))
	case r != nil && slices.Contains(deadCodes, r.status):
		w.note("the subscription is gone (%d %s), opening a new one", r.status, r.reason)
		w.openNow(ctx)
	default:
		w.note("refresh: %v; next attempt in %v", g.err, w.later(wait))
	}
	return false, nil
}

// due runs when a timer did.
func (w *watcher) due(ctx context.Context) (over bool, err error) {
	now := time.Now()
	if !w.silentAt.IsZero() && !now.Before(w.silentAt) {
		if w.pending != nil { // not even answered: the transaction will tell
			w.silentAt = now.Add(time.Second)
			return false, nil
		}
		w.silentAt = time.Time{}
		if w.notifies == 0 {
			return true, fmt.Errorf("the server accepted the subscription, but no NOTIFY came within %v", w.silence())
		}
		w.note("no NOTIFY came, opening a new subscription")
		w.openNow(ctx)
		return false, nil
	}
	if w.wakeAt.IsZero() || now.Before(w.wakeAt) {
		return false, nil
	}
	switch {
	case w.pending != nil:
		w.wakeAt = time.Time{}
	case w.open && now.Before(w.expiresAt):
		w.refresh(ctx)
	case w.open:
		w.note("the subscription expired, opening a new one")
		w.openNow(ctx)
	default:
		w.openNow(ctx)
	}
	return false, nil
}

// event takes a NOTIFY or the loss of the connection.
func (w *watcher) event(ctx context.Context, ev event) (over bool, err error) {
	if ev.notify == nil {
		if w.open {
			w.note("%v; connecting again", ev.lost)
			w.refresh(ctx)
		}
		return false, nil
	}
	n := ev.notify
	gap := w.take(n)
	if n.state != "terminated" {
		w.ever, w.open, w.tries = true, true, 0
		if n.expires > 0 && w.expires > 0 {
			w.extend(n.expires)
		}
	}
	over = w.count > 0 && w.notifies >= w.count
	if n.state == "terminated" {
		w.died, w.open = true, false
		if w.expires == 0 {
			over = true
		}
		if over {
			return true, nil
		}
		return w.ended(ctx, n)
	}
	if gap && !over {
		if wait := gapWait - time.Since(w.lastAsked); wait > 0 {
			w.wakeAt = earliest(w.wakeAt, time.Now().Add(wait))
		} else {
			w.lastAsked = time.Now()
			w.refresh(ctx)
		}
	}
	return over, nil
}

// take learns from a NOTIFY and shows it.
func (w *watcher) take(n *notify) (gap bool) {
	w.notifies++
	w.silentAt = time.Time{}
	s := &sight{n: n, uri: w.sub.uri}
	var notes []string
	if strings.HasPrefix(strings.ToLower(n.contentType), "multipart/") {
		doc, err := rlmi.Options{Lenient: true}.Parse(n.contentType, n.body)
		if err != nil {
			s.fault = err.Error()
			notes = append(notes, "body not understood: "+err.Error())
		} else {
			notes, gap = w.known.apply(doc, n.at)
		}
	} else {
		s.basic, s.note = presence(n.contentType, n.body)
		w.known.root.forget()
	}
	if w.known.root.known {
		s.known = &w.known
	}
	w.show(s)
	for _, text := range notes {
		w.note("%s", text)
	}
	return gap
}

// ended decides what follows a NOTIFY that ended the subscription (EV-12).
func (w *watcher) ended(ctx context.Context, n *notify) (over bool, err error) {
	switch n.reason {
	case "rejected", "invariant":
		return true, fmt.Errorf("the server ended the subscription: %s", n.reason)
	case "noresource":
		return true, coded(exitNotFound, errors.New("the server ended the subscription: noresource"))
	}
	why := n.reason
	if why == "" {
		why = "no reason"
	}
	wait := n.retryAfter
	if n.reason == "deactivated" || n.reason == "timeout" {
		wait = 0
	}
	if wait == 0 && time.Since(w.openedAt) > time.Second { // else we would go in circles
		w.note("the server ended the subscription (%s), opening a new one", why)
		w.openNow(ctx)
		return false, nil
	}
	w.pending = nil
	w.note("the server ended the subscription (%s); next attempt in %v", why, w.later(wait))
	return false, nil
}

// end un-subscribes and waits a little for the last NOTIFY.
func (w *watcher) end(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	wait := endWait
	if !w.ever {
		wait /= 4
	}
	limit := time.NewTimer(wait)
	defer limit.Stop()
	// A SUBSCRIBE under way comes first: there must not be two in a dialog.
	for w.pending != nil {
		select {
		case g := <-w.pending:
			w.pending = nil
			w.open = w.open || g.err == nil
		case ev := <-w.sub.events:
			w.last(ev)
		case <-limit.C:
			w.pending = nil
		}
	}
	if w.died || !w.open {
		return
	}
	w.sub.limit = endWait
	w.pending = w.sub.subscribe(ctx, 0, false)
	limit.Reset(endWait)
	for w.pending != nil || !w.died {
		select {
		case g := <-w.pending:
			w.pending = nil
			if g.err != nil {
				w.note("un-subscribe: %v", g.err)
				return
			}
		case ev := <-w.sub.events:
			w.last(ev)
		case <-limit.C:
			w.note("no NOTIFY ended the subscription")
			return
		}
	}
}

// last takes a NOTIFY while the subscription ends.
func (w *watcher) last(ev event) {
	if ev.notify == nil {
		return
	}
	if ev.notify.state == "terminated" {
		w.died = true
	} else {
		w.open = true
	}
	if w.count == 0 || w.notifies < w.count {
		w.take(ev.notify)
	}
}
