package dialog

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"rollcall/sip"
	"rollcall/sip/auth"
)

// SubscribeTo describes a subscription to open at another server.
type SubscribeTo struct {
	Component uint8  // whose SubscriberUser is told
	User      uint64 // its own number for it
	URI       string // Request-URI and To
	From      string // our URI for this dialog
	NextHop   string // where to send, "" for URI itself
	Event     string
	Accept    string
	Expires   time.Duration
	Watcher   string // for whom it is; comes back with Restored
}

// SubscriberUser is told what a remote subscription brings.
type SubscriberUser interface {
	// Notified brings state; doc is nil when the NOTIFY had no body.
	Notified(t *Turn, user uint64, state SubState, doc *Document)
	// Ended is the last call for a subscription.
	Ended(t *Turn, user uint64, e Ending)
}

// Ending is why a remote subscription is over.
type Ending struct {
	Reason     Reason // of a terminated NOTIFY, or timeout
	Status     int    // of the response that ended it; 408 without answer, 503 when it could not be sent
	RetryAfter time.Duration
}

// remote is a subscriber-side dialog.
type remote struct {
	m       Subscriber
	id      uint64
	p       SubscribeTo
	callID  string
	tag     string // the peer's
	target  string
	routes  string
	routed  bool // routes are by the first NOTIFY
	cseq    uint32
	ceiling uint32 // reserved in the store
	peerSeq uint32
	created time.Time
	stored  bool
	saveAt  time.Time // not zero: the row is not up to date, and will be then
	flow    sip.Flow
	others  []sip.Flow   // where else the name of the next hop led
	found   bool         // flow is where the SUBSCRIBE goes
	widened bool         // the SUBSCRIBE in flight is too large for UDP and went to TCP
	attempt auth.Attempt // of the SUBSCRIBE in flight
	timer   sip.Timer
	doc     *Document // of the newest NOTIFY
	state   SubState
}

// Subscribe opens a remote subscription and returns its number.
func (t *Turn) Subscribe(p SubscribeTo) uint64 {
	sh := t.sh
	r := &remote{id: sh.newID(), p: p, callID: t.newTag() + t.newTag() + "@rollcall", target: p.URI, created: t.Now}
	r.m.want = p.Expires
	sh.uacs[r.id] = r
	sh.rt.stats.Remote.Add(1)
	sh.stepRemote(t, r, subscriberEvent{kind: suStart})
	return r.id
}

// Unsubscribe ends a remote subscription. Its user is not called any more.
func (t *Turn) Unsubscribe(id uint64) {
	if r := t.sh.uacs[id]; r != nil {
		r.p.User, r.doc = 0, nil
		t.sh.stepRemote(t, r, subscriberEvent{kind: suStop})
		t.sh.saveRemote(t, r)
	}
}

// RemoteInfo describes a remote subscription to an operator.
type RemoteInfo struct {
	Phase   string    `json:"phase"`
	URI     string    `json:"uri"`
	CallID  string    `json:"call_id"`
	CSeq    uint32    `json:"cseq"`
	Expires time.Time `json:"expires"`
}

// Remote describes a remote subscription of the running shard.
func (t *Turn) Remote(id uint64) (RemoteInfo, bool) {
	r := t.sh.uacs[id]
	if r == nil {
		return RemoteInfo{}, false
	}
	return RemoteInfo{Phase: r.m.phase.String(), URI: r.p.URI, CallID: r.callID, CSeq: r.cseq, Expires: r.m.expires.UTC()}, true
}

func (sh *shard) stepRemote(t *Turn, r *remote, ev subscriberEvent) {
	if !r.saveAt.IsZero() && !t.Now.Before(r.saveAt) {
		sh.saveRemote(t, r)
	}
	var fx []subscriberEffect
	r.m.step(t.Now, ev, &fx)
	for _, e := range fx {
		switch e.kind {
		case sfSubscribe:
			sh.sendSubscribe(t, r, e.expires)
		case sfTimer:
			sh.setRemoteTimer(t, r, e.at)
		}
	}
	user, _ := sh.components[r.p.Component].(SubscriberUser)
	for _, e := range fx { // last: the user may step the machine again
		switch e.kind {
		case sfDeliver:
			if r.p.User != 0 {
				user.Notified(t, r.p.User, r.state, r.doc)
			}
		case sfEnd:
			t.CancelTimer(r.timer)
			delete(sh.uacs, r.id)
			sh.rt.stats.Remote.Add(-1)
			sh.forgetRemote(t, r)
			if r.p.User != 0 {
				user.Ended(t, r.p.User, Ending{Reason: e.reason, Status: e.status, RetryAfter: e.retryAfter})
			}
		}
	}
}

// nextHop is the URI that decides where the SUBSCRIBE goes.
func (r *remote) nextHop() string {
	if first, _ := routeSet(r.routes); first != "" {
		return first
	}
	if r.tag == "" && r.p.NextHop != "" {
		return r.p.NextHop
	}
	return r.target
}

func (sh *shard) sendSubscribe(t *Turn, r *remote, expires time.Duration) {
	if sh.frozen {
		return
	}
	if !r.found {
		flow, err := sh.flowTo(r.nextHop())
		if err != nil {
			sh.seekHop(t, r, expires, err)
			return
		}
		r.flow, r.others = flow, nil
	}
	r.found = false
	user := uint64(subscriberComponent)<<56 | r.id
	client := sh.tx.Open(user)
	r.cseq++
	sh.reserveRemote(t, r)
	flow := r.flow
	b := sh.appendSubscribe(make([]byte, 0, 768), r, flow, client, expires)
	r.widened = false
	if len(b) > largeRequest && flow.Proto == sip.UDP {
		if wide, ok := sh.widen(flow); ok {
			r.widened, flow = true, wide
			b = sh.appendSubscribe(b[:0], r, flow, client, expires)
		}
	}
	t.sends = append(t.sends, send{client: client, user: user, flow: flow, head: b})
}

func (sh *shard) appendSubscribe(b []byte, r *remote, flow sip.Flow, client sip.ClientID, expires time.Duration) []byte {
	b, route := appendStart(b, "SUBSCRIBE", r.target, r.routes)
	b = sh.appendVia(b, flow, client)
	if route != "" {
		b = sip.AppendHeader(b, "Route", route)
	}
	b = appendAddr(b, "From: <", r.p.From, formatTag(r.id))
	b = appendAddr(b, "To: <", r.p.URI, r.tag)
	b = sip.AppendHeader(b, "Call-ID", r.callID)
	b = append(b, "CSeq: "...)
	b = strconv.AppendUint(b, uint64(r.cseq), 10)
	b = append(b, " SUBSCRIBE\r\n"...)
	b = appendContact(b, contactFor(flow, isSIPS(r.target) || isSIPS(r.nextHop())))
	b = sip.AppendHeader(b, "Event", r.p.Event)
	b = sip.AppendHeader(b, "Accept", r.p.Accept)
	b = sip.AppendHeader(b, "Expires", seconds(expires))
	b = sip.AppendHeader(b, "Allow", allow)
	if l := sh.rt.opt.Login; l != nil {
		b = l.Append(b, domainOf(r.p.URI), "SUBSCRIBE", r.target, nil, &r.attempt)
	}
	return sip.AppendBody(b, "", nil)
}

// subscribeFailed is the end of a SUBSCRIBE without response; cause is set when
// it did not leave.
func (sh *shard) subscribeFailed(t *Turn, r *remote, status int, cause error) {
	switch {
	case cause != nil && r.widened: // the refusal is remembered: now over UDP
		r.found = true
	case sh.elsewhere(status, &r.flow, &r.others):
		r.found = true
	default:
		sh.stepRemote(t, r, subscriberEvent{kind: suAnswer, status: status})
		return
	}
	sh.stepRemote(t, r, subscriberEvent{kind: suAgain})
}

// seekHop resolves a name and then sends, or ends like a transport error.
func (sh *shard) seekHop(t *Turn, r *remote, expires time.Duration, err error) {
	id, next := r.id, r.nextHop()
	var found []sip.Flow
	failed := func(t *Turn) {
		if r := t.sh.uacs[id]; r != nil {
			t.sh.stepRemote(t, r, subscriberEvent{kind: suAnswer, status: 503})
		}
	}
	if errors.Is(err, sip.ErrNotLiteral) && sh.rt.opt.Resolve != nil &&
		t.Async(func(ctx context.Context) { found, err = sh.rt.opt.Resolve(ctx, next) }, func(t *Turn) {
			r := t.sh.uacs[id]
			if r == nil || err != nil {
				failed(t)
				return
			}
			r.flow, r.others, r.found = found[0], found[1:], true
			t.sh.sendSubscribe(t, r, expires)
		}) {
		return
	}
	sh.rt.Post(sh.id, failed)
}

// subscribeAnswered gives the final response of a SUBSCRIBE to its machine.
func (sh *shard) subscribeAnswered(t *Turn, r *remote, m *sip.Message) {
	ev := subscriberEvent{kind: suAnswer, status: m.Status(), retryAfter: retryAfter(m)}
	if v, ok, err := m.Uint(sip.HdrExpires); ok && err == nil {
		ev.expires = time.Duration(v) * time.Second
	}
	if v, ok, err := m.Uint(sip.HdrMinExpires); ok && err == nil {
		ev.minExpires = time.Duration(min(v, 86400)) * time.Second
	}
	switch {
	case ev.status < 300:
		r.attempt = auth.Attempt{}
	case sh.challenged(r.p.URI, m, &r.attempt):
		r.found = true
		sh.stepRemote(t, r, subscriberEvent{kind: suAgain})
		return
	case sh.elsewhere(ev.status, &r.flow, &r.others):
		r.found = true
		sh.stepRemote(t, r, subscriberEvent{kind: suAgain})
		return
	default:
		r.attempt = auth.Attempt{}
	}
	tag := string(m.To().Tag())
	switch {
	case ev.status >= 300 || tag == "":
	case r.tag == tag: // target refresh (RFC 3261 section 12.2.1.2)
		r.target = contactOr(m, r.target)
		sh.saveRemoteSoon(t, r)
	case r.tag == "":
		sh.saveRemoteSoon(t, r)
		r.tag = tag
		r.target = contactOr(m, r.target)
		var routes []string
		for v := range m.Values(sip.HdrRecordRoute) {
			routes = append(routes, string(v))
		}
		slices.Reverse(routes)
		r.routes = strings.Join(routes, ", ")
	}
	sh.stepRemote(t, r, ev)
}

func contactOr(m *sip.Message, old string) string {
	if c, err := contactOf(m); err == nil {
		return string(c)
	}
	return old
}

// remoteDocument is the state that a NOTIFY's body gives, the one known when
// that is the same.
func (sh *shard) remoteDocument(r *remote, mediaType string, body []byte) (*Document, *Error) {
	doc := &Document{Type: mediaType, Body: body}
	if p := sh.rt.opt.Packages.Find(r.p.Event); p != nil && p.Whole != nil {
		var err error
		if doc, err = p.Whole(r.doc, mediaType, slices.Clone(body)); err != nil {
			return nil, &Error{Status: 400, Reason: "Bad Document", Err: err}
		}
	}
	if r.doc.Equal(doc) {
		return r.doc, nil
	}
	doc.Body = slices.Clone(doc.Body)
	return doc, nil
}

// notifyReceived handles a NOTIFY for one of our remote subscriptions.
func (sh *shard) notifyReceived(t *Turn, rq *Request) *Error {
	m := rq.Msg
	id, ok := parseTag(m.To().Tag())
	r := sh.uacs[id]
	if !ok || r == nil || r.callID != string(m.CallID()) {
		return Refuse(481, "")
	}
	from := string(m.From().Tag())
	if from == "" {
		return Refuse(400, "From Tag Missing")
	}
	if r.m.phase != suWaiting && r.m.phase != suLeaving && r.tag != from || r.tag != "" && r.tag != from {
		return Refuse(481, "") // a fork: presence and lists keep one dialog (EV-21)
	}
	if _, eventID, _ := m.Event(); eventID != nil || sh.rt.opt.Packages.Of(m) != sh.rt.opt.Packages.Find(r.p.Event) { // we never ask with an id (EV-02)
		return Refuse(489, "", "Allow-Events", sh.rt.opt.Packages.AllowEvents())
	}
	if r.peerSeq != 0 && m.CSeq() <= r.peerSeq {
		return Refuse(500, "CSeq Out Of Order")
	}
	ev, err := subscriptionState(m)
	if err != nil {
		return err
	}
	var doc *Document
	if len(m.Body()) > 0 {
		ctype, text, err := Body(m, sip.MaxBodyBytes, r.p.Accept)
		if err != nil {
			return err
		}
		if doc, err = sh.remoteDocument(r, ctype, text); err != nil {
			return err
		}
	}
	first := !r.routed
	if r.tag == "" { // the NOTIFY creates the dialog (EV-19)
		r.tag = from
	}
	if first {
		r.routes, r.routed = joined(m, sip.HdrRecordRoute), true
	}
	r.target = contactOr(m, r.target)
	r.peerSeq, r.state, r.doc = m.CSeq(), ev.state, doc
	t.reply(m, rq.Tx, 200, "", t.newTag())
	sh.saveRemoteSoon(t, r)
	sh.stepRemote(t, r, ev)
	if first && r.m.phase == suLive { // the 200 says that the dialog is known
		r.persist(t)
	}
	return nil
}

// subscriptionState reads Subscription-State (EV-08, EV-12).
func subscriptionState(m *sip.Message) (subscriberEvent, *Error) {
	ev := subscriberEvent{kind: suNotify}
	v := m.Header(sip.HdrSubscriptionState)
	if v == nil {
		return ev, Refuse(400, "Subscription-State Missing")
	}
	name, params, _ := strings.Cut(string(v), ";")
	switch strings.ToLower(strings.TrimSpace(name)) {
	case "active":
		ev.state = Active
	case "terminated":
		ev.state = Terminated
	default: // pending, and extensions are treated as pending
		ev.state = Pending
	}
	p := []byte(";" + params)
	if r, ok := sip.Param(p, "reason"); ok {
		ev.reason = Reason(strings.ToLower(string(r)))
	}
	ev.expires = secondsParam(p, "expires")
	ev.retryAfter = secondsParam(p, "retry-after")
	return ev, nil
}

func secondsParam(params []byte, name string) time.Duration {
	v, ok := sip.Param(params, name)
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(string(v), 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}
