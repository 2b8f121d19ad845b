package main

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"rollcall/pa/dialoginfo"
	"rollcall/pa/mwi"
	"rollcall/pa/winfo"
	"rollcall/rls/rlmi"
	"rollcall/sip"
)

// interest is what a subscription asks for.
type interest struct {
	uri   string // Request-URI and To
	from  string // our URI
	event string // Event value, with its id parameter if any
	list  bool   // say that lists are understood (RFC 4662 section 4.1)
	limit time.Duration
}

// subscription is the subscriber's side of a subscription (RFC 6665 section
// 4.1) with its dialog (RFC 3261 section 12). One is enough for a client's
// life: a subscription that died is opened anew in another dialog.
type subscription struct {
	a *agent
	interest

	// events has NOTIFYs and lost connections. When the consumer is so slow
	// that it is full, NOTIFYs are answered 500, which keeps the subscription.
	events chan event

	// Only the agent's goroutine uses what follows.
	callID, localTag string
	cseq             uint32
	remoteTag        string
	remoteCSeq       uint32 // of the last NOTIFY, 0 before the first
	target           string
	routes           []string
	byNotify         bool // the dialog was made by a NOTIFY (EV-19)
}

// event is a NOTIFY, or the loss of the connection.
type event struct {
	notify *notify
	lost   error
}

// notify is a NOTIFY that was answered 200.
type notify struct {
	at          time.Time
	event       string
	state       string // active, pending, terminated or an extension
	reason      string
	expires     time.Duration // -1: not said
	retryAfter  time.Duration
	cseq        uint32
	contentType string
	body        []byte
}

// grant is the outcome of a SUBSCRIBE.
type grant struct {
	expires time.Duration
	err     error // *refusal, *unreachable
}

func newSubscription(a *agent, in interest) *subscription {
	return &subscription{a: a, interest: in, events: make(chan event, 1024)}
}

// subscribe sends a SUBSCRIBE: the first of a dialog when there is none or
// fresh is set, else one within it. Expires 0 ends the subscription.
func (s *subscription) subscribe(ctx context.Context, expires time.Duration, fresh bool) <-chan grant {
	out := make(chan grant, 1)
	var callID string
	answered := s.a.start(ctx, s.limit, func(via string) ([]byte, netip.AddrPort) {
		if fresh || s.callID == "" {
			s.reset()
		}
		callID = s.callID
		return s.request(via, expires)
	}, func(r reply) {
		if r.err == nil && callID == s.callID {
			s.answered(r.msg)
		}
	})
	s.a.over.Go(func() {
		r := <-answered
		out <- granted(r, expires)
	})
	return out
}

// granted reads the response to a SUBSCRIBE.
func granted(r reply, asked time.Duration) grant {
	switch {
	case r.err != nil:
		return grant{err: r.err}
	case r.msg.Status() >= 300:
		return grant{err: refused(r.msg)}
	}
	g := grant{expires: asked}
	if v, ok, err := r.msg.Uint(sip.HdrExpires); ok && err == nil {
		g.expires = time.Duration(v) * time.Second
	}
	return g
}

// reset forgets the dialog: the next SUBSCRIBE has a Call-ID and a From tag of
// its own (EV-17).
func (s *subscription) reset() {
	delete(s.a.dialogs, s.callID)
	s.callID, s.localTag = token(), token()
	s.cseq, s.remoteTag, s.remoteCSeq, s.routes, s.byNotify = 0, "", 0, nil, false
	s.target = s.uri
	s.a.dialogs[s.callID] = s
}

// request writes a SUBSCRIBE (RFC 3261 sections 8.1.1 and 12.2.1.1).
func (s *subscription) request(via string, expires time.Duration) ([]byte, netip.AddrPort) {
	s.cseq++
	o := outgoing{
		method: sip.SUBSCRIBE, uri: s.target, routes: s.routes,
		from: "<" + s.from + ">;tag=" + s.localTag, to: "<" + s.uri + ">",
		callID: s.callID, cseq: s.cseq,
		headers: []string{
			"Contact", "<" + s.a.contact("rollcall") + ">", "Event", s.event,
			"Expires", strconv.FormatInt(int64(expires/time.Second), 10),
		},
	}
	if accept := s.accept(); accept != "" {
		o.headers = append(o.headers, "Accept", accept)
	}
	if s.list {
		o.headers = append(o.headers, "Supported", "eventlist")
	}
	if s.remoteTag == "" { // not in a dialog: everything goes to the server
		return o.append(nil, via), s.a.server
	}
	o.to += ";tag=" + s.remoteTag
	next := o.uri
	if len(s.routes) > 0 {
		next = routeURI(s.routes[0])
		if u, err := sip.ParseURI(next); err == nil {
			if _, loose := u.Param("lr"); !loose { // a strict router (CORE-11)
				o.uri = next
				o.routes = append(slices.Clone(s.routes[1:]), "<"+s.target+">")
			}
		}
	}
	return o.append(nil, via), s.a.hop(next)
}

func routeURI(route string) string {
	n, err := sip.ParseNameAddr([]byte(route))
	if err != nil {
		return route
	}
	return string(n.URI)
}

// accept is the value of Accept, empty to take the package's default.
func (s *subscription) accept() string {
	name, _, _ := strings.Cut(s.event, ";")
	var types []string
	if strings.HasSuffix(name, ".winfo") {
		types = append(types, winfo.MediaType)
	} else if t := bodyTypes[name]; t != "" {
		types = append(types, t)
	} else if s.list {
		types = append(types, "*/*")
	}
	if s.list {
		types = append(types, rlmi.MediaType, rlmi.MultipartMediaType)
	}
	return strings.Join(types, ", ")
}

var bodyTypes = map[string]string{
	"presence":        "application/pidf+xml",
	"dialog":          dialoginfo.MediaType,
	"message-summary": mwi.MediaType,
	"reg":             "application/reginfo+xml",
	"conference":      "application/conference-info+xml",
}

// answered takes what a response says about the dialog. Until a NOTIFY came it
// is what we know; after that the NOTIFY's word stands, but for the target
// (RFC 6665 section 4.4.1).
func (s *subscription) answered(m *sip.Message) {
	if m.Status() >= 300 {
		return
	}
	if tag := string(m.To().Tag()); tag != "" && !s.byNotify {
		s.remoteTag = tag
		s.routes = values(m, sip.HdrRecordRoute)
		slices.Reverse(s.routes)
	}
	if string(m.To().Tag()) == s.remoteTag {
		s.retarget(m)
	}
}

func (s *subscription) retarget(m *sip.Message) {
	for v := range m.Values(sip.HdrContact) {
		if n, err := sip.ParseNameAddr(v); err == nil && len(n.URI) > 0 {
			s.target = string(n.URI)
		}
		return
	}
}

func values(m *sip.Message, h sip.HeaderID) []string {
	var out []string
	for v := range m.Values(h) {
		out = append(out, string(v))
	}
	return out
}

// notified takes a NOTIFY with our Call-ID and gives the response.
func (s *subscription) notified(m *sip.Message) (code int, reason string, headers []string) {
	const gone = "Subscription Does Not Exist"
	pkg, id, _ := m.Event()
	wantPkg, wantParams, _ := strings.Cut(s.event, ";")
	wantID, _ := sip.Param([]byte(wantParams), "id")
	if string(m.To().Tag()) != s.localTag || string(pkg) != wantPkg || string(id) != string(wantID) {
		return 481, gone, nil
	}
	from := string(m.From().Tag())
	switch {
	case s.byNotify && from != s.remoteTag: // a fork we do not keep (EV-21)
		return 481, gone, nil
	case s.remoteCSeq != 0 && m.CSeq() <= s.remoteCSeq:
		return 500, "CSeq Out Of Order", nil
	}
	n := &notify{at: m.At, event: string(pkg), expires: -1, cseq: m.CSeq(), contentType: string(m.Header(sip.HdrContentType)), body: m.Body()}
	n.substate(string(m.Header(sip.HdrSubscriptionState)))
	select {
	case s.events <- event{notify: n}:
	default:
		return 500, "Consumer Too Slow", []string{"Retry-After", "1"}
	}
	if !s.byNotify {
		s.byNotify, s.remoteTag = true, from
		s.routes = values(m, sip.HdrRecordRoute)
	}
	s.remoteCSeq = m.CSeq()
	s.retarget(m)
	return 200, "", nil
}

// substate reads Subscription-State (RFC 6665 section 4.1.3).
func (n *notify) substate(v string) {
	state, params, _ := strings.Cut(v, ";")
	n.state = strings.ToLower(strings.TrimSpace(state))
	p := []byte(params)
	if r, ok := sip.Param(p, "reason"); ok {
		n.reason = strings.ToLower(string(r))
	}
	if e, ok := seconds(p, "expires"); ok {
		n.expires = e
	}
	n.retryAfter, _ = seconds(p, "retry-after")
}

func seconds(params []byte, name string) (time.Duration, bool) {
	v, ok := sip.Param(params, name)
	if !ok {
		return 0, false
	}
	s, err := strconv.ParseUint(string(v), 10, 32)
	return time.Duration(s) * time.Second, err == nil
}

// disconnected tells the consumer that the connection is gone. It matters
// little when the queue is full: the next refresh will notice.
func (s *subscription) disconnected(err error) {
	select {
	case s.events <- event{lost: err}:
	default:
	}
}
