package dialog

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"rollcall/sip"
	"rollcall/sip/auth"
	"rollcall/sip/body"
)

// allow is the methods this server takes (CORE-01), MESSAGE if a component does.
const allow = "SUBSCRIBE, NOTIFY, PUBLISH, OPTIONS"

func (sh *shard) allow() string {
	if sh.messenger() != nil {
		return allow + ", MESSAGE"
	}
	return allow
}

// messenger is who takes MESSAGE, nil when nobody does.
func (sh *shard) messenger() Messenger {
	for _, c := range sh.components {
		if m, ok := c.(Messenger); ok {
			return m
		}
	}
	return nil
}

// known are methods that exist but are not ours: 405 instead of 501.
func known(m sip.Method) bool { return m != sip.MethodUnknown }

// message handles one message from the network.
func (sh *shard) message(t *Turn, in *incoming) {
	m := in.m
	if !m.IsRequest() {
		sh.response(t, m)
		m.Release()
		return
	}
	if m.Method() == sip.ACK {
		m.Release()
		return
	}
	tx, arrival := sh.tx.Receive(t.Now, m)
	if arrival == sip.Repeat {
		m.Release()
		return
	}
	sh.rt.stats.Requests[int(m.Method())%len(sh.rt.stats.Requests)].Add(1)
	r := &Request{Msg: m, Tx: tx, in: *in}
	switch {
	case arrival == sip.Merged:
		sh.refuse(t, m, tx, Refuse(482, "Merged Request"))
		m.Release()
	case !m.At.IsZero() && t.Now.Sub(m.At) > maxWait && isNewWork(m):
		sh.rt.stats.Overload.Add(1)
		sh.refuse(t, m, tx, &Error{Status: 503, Reason: "Waited Too Long", RetryAfter: 10 * time.Second})
		m.Release()
	default:
		sh.handle(t, r)
	}
}

// handle works on a request, at once or again after what it waited for.
func (sh *shard) handle(t *Turn, r *Request) {
	r.kept = false
	sh.handling = r
	if err := sh.request(t, r); err != nil {
		sh.refuse(t, r.Msg, r.Tx, err)
	}
	sh.handling = nil
	if !r.kept {
		r.Msg.Release()
	} else {
		sh.tx.Keep(r.Tx, r.Msg)
	}
}

// identify finds out who sent a request. When that takes a look-up, the request
// waits for it and later is false.
func (sh *shard) identify(t *Turn, r *Request) (now bool, err *Error) {
	id, fetch, err := sh.rt.opt.Identify(r.Msg, t.Now)
	if fetch == nil {
		r.Watcher = id
		return true, err
	}
	if r.asked {
		return true, &Error{Status: 503, Reason: "Users Not Readable", RetryAfter: 10 * time.Second}
	}
	r.asked = true
	if !t.Async(fetch, func(t *Turn) { t.sh.handle(t, r) }) {
		sh.rt.stats.Overload.Add(1)
		return true, &Error{Status: 503, Reason: "Too Many Look-Ups", RetryAfter: 10 * time.Second}
	}
	r.Keep()
	return false, nil
}

// crashed answers the request whose handling panicked, if there is one. Who
// still refers to its message is not known, so that is not released.
func (sh *shard) crashed(t *Turn) {
	r := sh.handling
	sh.handling = nil
	if r != nil && !slices.ContainsFunc(t.sends, func(s send) bool { return s.server == r.Tx }) {
		t.reply(r.Msg, r.Tx, 500, "", t.newTag())
	}
}

// request follows the order of RFC 3261 section 8.2. An error changes nothing.
func (sh *shard) request(t *Turn, r *Request) *Error {
	m, rt := r.Msg, sh.rt
	switch m.Method() {
	case sip.MESSAGE:
		if sh.messenger() == nil {
			return Refuse(405, "", "Allow", sh.allow())
		}
		if len(m.To().Tag()) > 0 { // no dialog of ours has messages
			return Refuse(481, "")
		}
		if now, err := sh.identify(t, r); !now || err != nil {
			return err
		}
	case sip.SUBSCRIBE, sip.PUBLISH:
		if now, err := sh.identify(t, r); !now || err != nil {
			return err
		}
	case sip.NOTIFY:
	case sip.OPTIONS:
		if _, _, err := rt.opt.Key(m.RequestURI()); errors.Is(err, sip.ErrScheme) {
			return &Error{Status: 416, Err: err}
		}
		if err := unknownExtensions(m); err != nil {
			return err
		}
		t.Reply(r, 200, "", "Allow", sh.allow(), "Accept", strings.Join(rt.opt.Packages.Types(), ", "), "Accept-Encoding", body.AcceptEncoding,
			"Accept-Language", "en", "Supported", "eventlist", "Allow-Events", rt.opt.Packages.AllowEvents())
		return nil
	case sip.CANCEL: // of a non-INVITE request it has no effect (CORE-24)
		if !sh.tx.Cancels(m) {
			return Refuse(481, "")
		}
		t.Reply(r, 200, "")
		return nil
	default:
		if known(m.Method()) {
			return Refuse(405, "", "Allow", sh.allow())
		}
		return Refuse(501, "", "Allow", sh.allow())
	}
	if err := unknownExtensions(m); err != nil {
		return err
	}
	if m.Method() == sip.NOTIFY {
		return sh.notifyReceived(t, r)
	}
	within := m.Method() == sip.SUBSCRIBE && len(m.To().Tag()) > 0
	if !within {
		if !r.in.keyed { // it names a dialog that it is not in
			r.in.key, r.in.local, r.in.err = rt.opt.Key(m.RequestURI())
		}
		key, local, kerr := r.in.key, r.in.local, r.in.err
		switch {
		case errors.Is(kerr, sip.ErrScheme):
			return &Error{Status: 416, Err: kerr}
		case kerr != nil:
			return &Error{Status: 400, Reason: "Bad Request-URI", Err: kerr}
		case !local && m.Method() == sip.PUBLISH:
			return Refuse(404, "") // before anything else (PUB-01)
		case !local && m.Method() == sip.MESSAGE:
			return Refuse(404, "") // it is relayed to nobody
		}
		r.Resource = key
	}
	if m.Method() == sip.MESSAGE {
		sh.messenger().Message(t, r)
		return nil
	}
	pkg, err := sh.eventOf(m)
	if err != nil {
		return err
	}
	r.Package = pkg
	if err := sh.storable(m); err != nil {
		return err
	}
	if within {
		return sh.resubscribe(t, r)
	}
	if m.Method() == sip.PUBLISH {
		for _, c := range sh.components {
			if p, ok := c.(Publisher); ok {
				p.Publish(t, r)
				return nil
			}
		}
		return Refuse(405, "", "Allow", sh.allow())
	}
	return sh.subscribe(t, r)
}

// unknownExtensions is CORE-04: 420 with exactly the tags we do not know.
func unknownExtensions(m *sip.Message) *Error {
	var bad []string
	for v := range m.Values(sip.HdrRequire) {
		if !strings.EqualFold(string(v), "eventlist") && len(v) > 0 {
			bad = append(bad, string(v))
		}
	}
	if bad != nil {
		return Refuse(420, "", "Unsupported", strings.Join(bad, ", "))
	}
	return nil
}

// eventOf finds the package of SUBSCRIBE or PUBLISH (EV-03, PUB-01).
func (sh *shard) eventOf(m *sip.Message) (*Package, *Error) {
	name, _, _ := m.Event()
	reg := sh.rt.opt.Packages
	if len(name) == 0 {
		return nil, Refuse(489, "Event Header Missing", "Allow-Events", reg.AllowEvents())
	}
	if p := reg.Of(m); p != nil {
		return p, nil
	}
	return nil, Refuse(489, "", "Allow-Events", reg.AllowEvents())
}

// Expires reads the Expires of SUBSCRIBE or PUBLISH and applies the limits:
// 423 only between 0 and the minimum (EV-05).
func (t *Turn) Expires(m *sip.Message, def time.Duration) (time.Duration, *Error) {
	opt := &t.sh.rt.opt
	v, present, err := m.Uint(sip.HdrExpires)
	if err != nil {
		return 0, &Error{Status: 400, Reason: "Bad Expires", Err: err}
	}
	if !present {
		return min(def, opt.MaxExpires), nil
	}
	d := time.Duration(v) * time.Second
	if d > 0 && d < opt.MinExpires && d < time.Hour {
		return 0, Refuse(423, "", "Min-Expires", seconds(opt.MinExpires))
	}
	return min(d, opt.MaxExpires), nil
}

// refuseBody refuses a body that nobody here understands, unless the peer
// says that it is optional (CORE-05).
func refuseBody(m *sip.Message) *Error {
	if len(m.Body()) == 0 {
		return nil
	}
	if d := m.Header(sip.HdrContentDisposition); d != nil {
		_, params, _ := strings.Cut(string(d), ";")
		if h, ok := sip.Param([]byte(";"+params), "handling"); ok && strings.EqualFold(string(h), "optional") {
			return nil
		}
	}
	return Refuse(415, "No Body Taken In SUBSCRIBE", "Accept", "", "Accept-Encoding", body.AcceptEncoding)
}

// subscribe handles a SUBSCRIBE that opens a dialog, or polls.
func (sh *shard) subscribe(t *Turn, r *Request) *Error {
	m := r.Msg
	granted, err := t.Expires(m, r.Package.DefaultExpires)
	if err == nil {
		err = refuseBody(m)
	}
	if err != nil {
		return err
	}
	if sh.subs.len() >= sh.rt.opt.MaxPerShard {
		sh.rt.stats.Overload.Add(1)
		return &Error{Status: 503, Reason: "Too Many Subscriptions", RetryAfter: time.Minute}
	}
	if len(m.From().Tag()) == 0 {
		return Refuse(400, "From Tag Missing")
	}
	target, err := contactOf(m)
	if err != nil {
		return err
	}
	s := sh.subs.add(sh.freshID())
	_, eventID, _ := m.Event()
	s.pkg, s.remoteCSeq, s.created = sh.rt.opt.Packages.number(r.Package), m.CSeq(), uint32(t.Now.Unix())
	s.lists = hasToken(m, sip.HdrSupported, "eventlist") || hasToken(m, sip.HdrRequire, "eventlist")
	sh.share(&s.resource, []byte(r.Resource))
	sh.share(&s.watcher, []byte(r.Watcher.URI))
	sh.share(&s.agent, clipped(m.Header(sip.HdrUserAgent)))
	sh.headBuf = appendJoined(sh.headBuf[:0], m, sip.HdrRecordRoute)
	sh.share(&s.routes, sh.headBuf)
	sh.headBuf = appendJoined(sh.headBuf[:0], m, sip.HdrAccept)
	sh.share(&s.accept, sh.headBuf)
	sh.share(&s.encoding, []byte(encodingFor(m)))
	sh.keep(s, &[texts][]byte{
		txCallID: m.CallID(), txRemoteTag: m.From().Tag(), txTarget: target, txEventID: eventID,
		txRemoteURI: unless(m.From().URI, r.Watcher.URI), txLocalURI: unless(m.To().URI, r.Resource), txURI: unless(m.RequestURI(), r.Resource),
	})
	s.n.interval = millis(r.Package.MinInterval)
	s.n.offset, s.renewed, s.unseen = 1, true, true
	sh.setFlow(s, m, target)
	sh.rt.stats.Subscriptions.Add(1)
	granted = sh.jitter(granted)
	sh.await(s, r, granted)
	sh.step(t, s, notifierEvent{kind: evSubscribe, expires: granted})
	return nil
}

// jitter takes something off a granted expiry.
func (sh *shard) jitter(granted time.Duration) time.Duration {
	if most := min(granted*time.Duration(sh.rt.opt.ExpiresJitter)/100, granted-sh.rt.opt.MinExpires); most >= time.Second {
		granted -= rand.N(most/time.Second+1) * time.Second
	}
	return granted
}

// freshID is an id that no subscription of the shard has.
func (sh *shard) freshID() uint64 {
	for {
		if id := sh.newID(); sh.subs.get(id) == nil {
			return id
		}
	}
}

// unless is the text, or nothing if it is the other one.
func unless(text []byte, other string) []byte {
	if string(text) == other {
		return nil
	}
	return text
}

// millis is a duration as a machine keeps it.
func millis(d time.Duration) uint32 { return uint32(min(max(d.Milliseconds(), 0), 1<<32-1)) }

// await keeps the SUBSCRIBE until the machine answers it.
func (sh *shard) await(s *subscription, r *Request, granted time.Duration) {
	r.Keep()
	m := sh.extra(s)
	m.req, m.tx, m.granted = r.Msg, r.Tx, granted
}

// resubscribe handles a SUBSCRIBE within a dialog.
func (sh *shard) resubscribe(t *Turn, r *Request) *Error {
	m := r.Msg
	id, ok := sh.rt.dialogOf(m)
	s := sh.subs.get(id)
	if !ok || s == nil || s.n.phase == phaseTerminated {
		return Refuse(481, "")
	}
	o := sh.own(s)
	if tag := o.t[txLocalTag]; len(tag) > 0 && !bytes.Equal(tag, m.To().Tag()) {
		return Refuse(481, "")
	}
	if !bytes.Equal(o.t[txCallID], m.CallID()) || !bytes.Equal(o.t[txRemoteTag], m.From().Tag()) || o.watcher != r.Watcher.URI {
		return Refuse(481, "")
	}
	if _, eventID, _ := m.Event(); sh.pkgOf(s) != r.Package || !bytes.Equal(o.t[txEventID], eventID) {
		return Refuse(403, "Dialog Sharing Not Supported")
	}
	// The last one may come again after a restart: it was stored, its answer lost.
	if m.CSeq() < s.remoteCSeq || m.CSeq() == s.remoteCSeq && s.renewed {
		return Refuse(500, "CSeq Out Of Order")
	}
	granted, err := t.Expires(m, r.Package.DefaultExpires)
	if err == nil {
		err = refuseBody(m)
	}
	if err != nil {
		return err
	}
	if sh.ptr(s).more != nil && sh.ptr(s).more.req != nil {
		return &Error{Status: 500, Reason: "Earlier SUBSCRIBE Not Answered Yet", RetryAfter: time.Second}
	}
	if m.Has(sip.HdrContact) { // target refresh (CORE-13)
		target, err := contactOf(m)
		if err != nil {
			return err
		}
		if !bytes.Equal(o.t[txTarget], target) {
			o.t[txTarget] = target
			sh.keep(s, &o.t)
			o = sh.own(s)
		}
	}
	s.remoteCSeq, s.renewed = m.CSeq(), true
	sh.share(&s.encoding, []byte(encodingFor(m)))
	sh.setFlow(s, m, o.t[txTarget])
	granted = sh.jitter(granted)
	sh.await(s, r, granted)
	sh.step(t, s, notifierEvent{kind: evSubscribe, expires: granted})
	return nil
}

func contactOf(m *sip.Message) ([]byte, *Error) {
	for v := range m.Values(sip.HdrContact) {
		n, err := sip.ParseNameAddr(v)
		if err != nil {
			return nil, &Error{Status: 400, Reason: "Bad Contact", Err: err}
		}
		u, err := sip.ParseURI(string(n.URI))
		if err != nil || u.Scheme != "sip" && u.Scheme != "sips" {
			return nil, &Error{Status: 400, Reason: "Bad Contact", Err: err}
		}
		return n.URI, nil
	}
	return nil, Refuse(400, "Contact Missing")
}

func appendJoined(b []byte, m *sip.Message, h sip.HeaderID) []byte {
	start := len(b)
	for v := range m.Headers(h) {
		if len(b) > start {
			b = append(b, ", "...)
		}
		b = append(b, v...)
	}
	return b
}

func joined(m *sip.Message, h sip.HeaderID) string { return string(appendJoined(nil, m, h)) }

func hasToken(m *sip.Message, h sip.HeaderID, token string) bool {
	for v := range m.Values(h) {
		if strings.EqualFold(string(v), token) {
			return true
		}
	}
	return false
}

// setFlow decides where NOTIFYs go: on a reliable transport over the
// connection the SUBSCRIBE came in on; on UDP to its source when it came
// straight from a user agent that is behind its source address (it asked for
// rport, or sent from its sent-by port), which works through NAT; otherwise
// along the route set to the remote target (RFC 3261 section 12.2.1.1).
func (sh *shard) setFlow(s *subscription, m *sip.Message, target []byte) {
	s.direct, s.found = true, false
	if sh.ptr(s).more != nil {
		sh.ptr(s).more.others = nil
	}
	sh.storeFlow(s, m.Flow)
	vias := 0
	for range m.Values(sip.HdrVia) {
		vias++
	}
	if !m.Flow.Proto.Reliable() {
		v := m.Via()
		port := v.Port
		if port == 0 {
			port = 5060
		}
		s.direct = s.routes == 0 && vias == 1 && (v.HasRPort || port == m.Flow.Remote.Port())
	}
	if sh.contact == nil || sh.contactAt != m.Flow.Local || sh.contactProto != m.Flow.Proto {
		sh.contactAt, sh.contactProto, sh.contact = m.Flow.Local, m.Flow.Proto, []byte(contactFor(m.Flow, false))
	}
	contact := sh.contact
	if isSIPS(m.RequestURI()) || s.routes == 0 && isSIPS(target) || s.routes != 0 && isSIPS(sh.nextHop(s)) {
		contact = []byte(contactFor(m.Flow, true))
	}
	sh.share(&s.contact, contact)
}

// contactFor is our Contact on a flow; secure asks for a sips URI where the
// flow is TLS (CORE-10). A secure WebSocket is transport=ws too (RFC 7118
// section 5.2).
func contactFor(f sip.Flow, secure bool) string {
	c := "sip:" + f.Local.String()
	if secure && (f.Proto == sip.TLS || f.Proto == sip.WSS) {
		c = "sips:" + f.Local.String()
		if f.Proto == sip.TLS {
			return c
		}
	}
	switch f.Proto {
	case sip.UDP:
		return c
	case sip.WSS:
		return c + ";transport=ws"
	}
	return c + ";transport=" + strings.ToLower(f.Proto.String())
}

func isSIPS[T string | []byte](uri T) bool {
	return len(uri) > 5 && strings.EqualFold(string(uri[:5]), "sips:")
}

// goneConn is a connection number that no connection has any more.
const goneConn = 1<<32 - 1

// parseFlow reads a stored flow. A connection does not survive a restart: its
// flow leads nowhere.
func parseFlow(s string) (f sip.Flow, ok bool) {
	part := strings.Fields(s)
	if len(part) != 3 {
		return f, false
	}
	var err1, err2 error
	f.Local, err1 = netip.ParseAddrPort(part[1])
	f.Remote, err2 = netip.ParseAddrPort(part[2])
	for f.Proto = sip.UDP; f.Proto.String() != part[0]; f.Proto++ {
		if f.Proto > sip.WSS {
			return f, false
		}
	}
	if f.Proto.Reliable() {
		f.Conn = goneConn
	}
	return f, err1 == nil && err2 == nil
}

// step runs a subscription's machine and carries out its effects.
func (sh *shard) step(t *Turn, s *subscription, ev notifierEvent) {
	fx := sh.scratch[:0]
	sh.scratch = nil // effects may step another subscription
	before := s.n.phase
	s.n.step(t.now, ev, &fx)
	if before >= phaseTerminated && s.n.phase < before {
		sh.rt.stats.Revived.Add(1)
	}
	for i := range fx {
		sh.effect(t, s, &fx[i])
	}
	sh.scratch = fx
	if ev.kind != evFlush {
		sh.touch(s)
	}
	sh.slim(s)
}

// touch has the end of the turn look at a subscription.
func (sh *shard) touch(s *subscription) {
	if !s.dirty && s.n.owed && !s.n.inFlight {
		s.dirty = true
		sh.dirty = append(sh.dirty, s)
	}
}

func (sh *shard) effect(t *Turn, s *subscription, fx *notifierEffect) {
	switch fx.kind {
	case fxRespond:
		sh.answerSubscribe(t, s, fx.err)
	case fxAttach:
		t.Attach(sh.interest(s), s.ref(sh))
	case fxDetach:
		t.Detach(sh.interest(s), s.ref(sh))
	case fxStore:
		s.stored = true
		if t.stores() {
			t.persist(PutSubscription{Row: sh.row(t, s)})
		}
	case fxForget:
		if s.stored {
			s.stored = false
			t.persist(DeleteSubscription{ID: formatTag(s.id)})
			if s.n.cseq >= s.n.ceiling && sh.rt.opt.Durability == WriteBack { // the last NOTIFY has no ceiling any more to stay below
				sh.park(t, s)
			}
		}
	case fxCeiling:
		if s.stored {
			t.persist(SetCSeqCeiling{ID: formatTag(s.id), Ceiling: s.n.ceiling})
		}
	case fxNotify:
		if s.waiting {
			sh.rt.stats.TwoInFlight.Add(1)
		}
		s.waiting = true
		sh.ptr(s).content = sh.shown(s)
		sh.notify(t, s, fx.full)
	case fxTimer:
		sh.setTimer(t, s, fx.at)
	case fxRemove:
		sh.remove(t, s)
	}
}

// setTimer keeps one timer per subscription: the earliest that is wanted. The
// machine sets it again when it fires too early.
func (sh *shard) setTimer(t *Turn, s *subscription, at moment) {
	if due, ok := sh.wheel.When(s.timer); ok {
		if !t.at(at).Before(due) {
			return
		}
		t.CancelTimer(s.timer)
	}
	s.timer = t.SetTimer(notifierComponent, s.id, t.at(at))
}

func (sh *shard) interest(s *subscription) Interest {
	o := sh.own(s)
	return Interest{
		Package: sh.pkgOf(s), Resource: o.resource, URI: either(o.t[txURI], o.resource), Watcher: Identity{URI: o.watcher},
		Accept: sh.rt.shared.text(s.accept), EventList: s.lists, Resumed: s.n.recovery == silent,
	}
}

func (s *subscription) ref(sh *shard) SinkRef {
	return SinkRef{ID: s.id, Shard: sh.id, Component: notifierComponent}
}

// answerSubscribe sends the final response of the SUBSCRIBE that waits.
func (sh *shard) answerSubscribe(t *Turn, s *subscription, err *Error) {
	if sh.ptr(s).more == nil || sh.ptr(s).more.req == nil {
		return
	}
	m, tx := sh.ptr(s).more.req, sh.ptr(s).more.tx
	sh.ptr(s).more.req = nil
	defer m.Release()
	if err != nil {
		sh.refuse(t, m, tx, err)
		return
	}
	b := sip.AppendResponse(sh.headBuf[:0], m, 200, "OK", sh.localTag(s))
	for v := range m.Headers(sip.HdrRecordRoute) {
		b = sip.AppendHeader(b, "Record-Route", string(v))
	}
	b = appendContact(b, sh.rt.shared.text(s.contact))
	b = sip.AppendHeader(b, "Expires", strconv.FormatInt(int64(sh.ptr(s).more.granted/time.Second), 10))
	if sh.isList(s) {
		b = append(b, "Require: eventlist\r\n"...)
	}
	b = sip.AppendHeader(b, "Allow-Events", sh.rt.opt.Packages.AllowEvents())
	t.respond(tx, sip.AppendBody(b, "", nil))
	if len(m.To().Tag()) == 0 {
		t.sends[len(t.sends)-1].user = uint64(notifierComponent)<<56 | s.id
	}
}

func appendContact(b []byte, uri string) []byte {
	b = append(b, "Contact: <"...)
	b = append(b, uri...)
	return append(b, ">\r\n"...)
}

// isList: a source that renders for each NOTIFY is a list (RL-09); the kind
// was decided by the first Update and does not change. Of a restored one that
// has had none yet, the row knows.
func (sh *shard) isList(s *subscription) bool {
	c := sh.shown(s)
	if c == nil {
		return s.list
	}
	return eventList(c)
}

func eventList(c Content) bool {
	l, ok := c.(interface{ EventList() bool })
	return ok && l.EventList()
}

func (sh *shard) notifierUpdate(t *Turn, u Update) {
	s := sh.subs.get(u.To.ID)
	if s == nil {
		return
	}
	if u.Retrying { // a gateway lost its source and looks for it: nothing is known meanwhile
		u.State, u.Doc = Pending, nil
	}
	ev := notifierEvent{kind: evUpdate}
	back := s.n.recovery == silent || s.n.recovery == partly
	told := sh.before(s)
	sh.ptr(s).content = sh.shown(s)
	if back && u.State != Terminated && u.State != Unknown && eventList(u.View) != s.list {
		// What was a list before the restart is something else now, or the other
		// way. The watcher subscribes anew, and then to that (RL-09).
		s.list, sh.ptr(s).content = false, nil
		t.Detach(sh.interest(s), s.ref(sh))
		u = Update{State: Terminated, Reason: Deactivated}
	}
	switch {
	case u.View != nil:
		sh.ptr(s).content = u.View
	case u.Doc != nil:
		sh.ptr(s).content = u.Doc
	case u.State != Terminated && !sh.isList(s):
		sh.ptr(s).content = nil // nothing to show: no presence document while pending (PR-08)
	}
	s.list = sh.isList(s)
	if s.list && s.n.phase == phaseWaiting {
		s.n.interval = millis(sh.rt.opt.ListPace)
	}
	ev.state, ev.reason, ev.retryAfter, ev.err = u.State, u.Reason, u.RetryAfter, u.Err
	if back && u.State != Terminated {
		var sum uint64
		sum, ev.whole = sh.digest(u.State, sh.ptr(s).content)
		ev.whole = ev.whole && u.State != Unknown
		ev.same = told != 0 && sum == told
	}
	sh.step(t, s, ev)
	if told != 0 && s.n.recovery == partly {
		sh.ptr(s).content = &resuming{sh.ptr(s).content, told}
	}
}

// notify renders and sends the NOTIFY the machine decided on.
func (sh *shard) notify(t *Turn, s *subscription, full bool) {
	flow, ok := sh.via.flow, sh.via.ok
	if sh.via.s != s {
		flow, ok = sh.hop(t, s)
	}
	if !ok {
		return
	}
	sh.occupy(s, flow)
	var c carried
	c.body, c.ctype = sh.render(t, s, full)
	c.body, c.coded = sh.encode(s, c.body)
	sh.rt.stats.Notifies.Add(1)
	if s.n.cseq <= s.sent {
		sh.rt.stats.Repeated.Add(1)
	}
	s.sent = s.n.cseq
	sh.sendNotify(t, s, flow, c, true)
}

// carried is the body of a NOTIFY.
type carried struct {
	body  []byte
	ctype string
	coded bool // it has the subscription's encoding
}

// sendNotify writes and sends a NOTIFY with the machine's CSeq, over TCP if it
// is large and may be widened.
func (sh *shard) sendNotify(t *Turn, s *subscription, flow sip.Flow, c carried, widen bool) {
	user := uint64(notifierComponent)<<56 | s.id
	client := sh.tx.Open(user)
	write := func() {
		b := sh.appendNotify(sh.headBuf[:0], t, s, flow, client)
		if l := sh.rt.opt.Login; l != nil {
			x := sh.extra(s)
			if x.attempt == nil {
				x.attempt = new(auth.Attempt)
			}
			b = l.Append(b, domainOf(sh.nextHop(s)), "NOTIFY", string(sh.own(s).t[txTarget]), c.body, x.attempt)
		}
		if c.coded {
			b = sip.AppendHeader(b, "Content-Encoding", sh.rt.shared.text(s.encoding))
		}
		sh.headBuf = sip.AppendBodyHead(b, c.ctype, len(c.body))
	}
	write()
	if sh.ptr(s).more != nil {
		sh.ptr(s).more.widened = nil
	}
	if widen && len(sh.headBuf)+len(c.body) > largeRequest && flow.Proto == sip.UDP && (!s.direct || sh.openTo(s, flow)) {
		if wide, ok := sh.widen(flow); ok {
			wc := c
			sh.extra(s).widened, flow = &wc, wide
			write()
		}
	}
	t.sends = append(t.sends, send{client: client, user: user, flow: flow, head: bytes.Clone(sh.headBuf), body: c.body})
}

// smallBody is the size in bytes up to which a body is not worth compressing.
const smallBody = 512

// encodingFor is the coding for NOTIFYs that a SUBSCRIBE admits (RFC 3261
// section 20.2).
func encodingFor(m *sip.Message) string {
	if !m.Has(sip.HdrAcceptEncoding) {
		return ""
	}
	if c := body.Choose(joined(m, sip.HdrAcceptEncoding)); c != "identity" {
		return c
	}
	return ""
}

// packed is the body that was compressed last: often the next watcher's too.
type packed struct {
	from, to []byte
	encoding string
}

// encode compresses a body for a watcher that takes it.
func (sh *shard) encode(s *subscription, b []byte) (out []byte, coded bool) {
	if s.encoding == 0 || len(b) <= smallBody {
		return b, false
	}
	p, encoding := &sh.packed, sh.rt.shared.text(s.encoding)
	if p.encoding != encoding || len(p.from) != len(b) || &p.from[0] != &b[0] { // bodies do not change
		c, err := body.Encode(encoding, nil, b)
		if err != nil {
			return b, false
		}
		*p = packed{b, c, encoding}
	}
	if len(p.to) >= len(b) {
		return b, false
	}
	return p.to, true
}

// largeRequest is the size in bytes beyond which a request goes over TCP if the
// next hop takes it (RFC 3261 section 18.1.1, CORE-18).
const largeRequest = 1300

// widen gives the TCP flow to where a UDP flow leads. It is false when that is
// known to be in vain.
func (sh *shard) widen(f sip.Flow) (sip.Flow, bool) {
	if sh.rt.opt.StreamFlow == nil {
		return f, false
	}
	return sh.rt.opt.StreamFlow(f)
}

// openTo tells whether the watcher's Contact is the address its SUBSCRIBE came
// from: nothing between us translates addresses, so a new connection to the
// Contact reaches this watcher and nobody else.
func (sh *shard) openTo(s *subscription, f sip.Flow) bool {
	proto, addr, err := sip.LiteralHop(string(sh.own(s).t[txTarget]))
	if err != nil || addr.Addr() != f.Remote.Addr() {
		return false
	}
	switch f.Proto {
	case sip.UDP:
		return addr.Port() == f.Remote.Port()
	case sip.TCP:
		return proto == sip.TCP || proto == sip.UDP
	}
	return false
}

// hop is where the NOTIFY goes. When the name of the next hop must be looked
// up first, the NOTIFY is put back and sent when the answer is there.
func (sh *shard) hop(t *Turn, s *subscription) (sip.Flow, bool) {
	if s.direct || s.found {
		return sh.flow(s), true
	}
	next := sh.nextHop(s)
	flow, err := sh.flowTo(next)
	if err == nil {
		return flow, true
	}
	if !errors.Is(err, sip.ErrNotLiteral) || sh.rt.opt.Resolve == nil {
		t.unsent(s, err)
		return flow, false
	}
	if x := sh.extra(s); !x.seeking {
		x.seeking = true
		id := s.id
		var found []sip.Flow
		var ferr error
		ok := t.Async(func(ctx context.Context) { found, ferr = sh.rt.opt.Resolve(ctx, next) }, func(t *Turn) {
			sh := t.sh
			s := sh.subs.get(id)
			if s == nil {
				return
			}
			x := sh.extra(s)
			x.seeking = false
			switch {
			case s.direct || sh.nextHop(s) != next: // a SUBSCRIBE came in between
				ferr = nil
			case ferr == nil:
				s.found = true // until the next SUBSCRIBE or failure
				x.flow, x.others, x.named = found[0], found[1:], true
			}
			sh.notifyUnsent(t, s, ferr)
		})
		if !ok {
			x.seeking = false
			t.unsent(s, errors.New("too many look-ups"))
		}
	}
	return flow, false
}

// nextHop is the URI that decides where NOTIFYs go.
func (sh *shard) nextHop(s *subscription) string {
	if first, _ := routeSet(sh.rt.shared.text(s.routes)); first != "" {
		return first
	}
	return string(sh.own(s).t[txTarget])
}

// flowTo is the flow to a URI whose host is an address.
func (sh *shard) flowTo(uri string) (sip.Flow, error) {
	proto, remote, err := sip.LiteralHop(uri)
	if err != nil {
		return sip.Flow{}, err
	}
	return sh.rt.opt.FlowTo(proto, remote)
}

// unsent reports a NOTIFY that could not be sent, in a turn of its own: the
// machine is in the middle of a step.
func (t *Turn) unsent(s *subscription, err error) {
	id := s.id
	t.sh.rt.Post(t.sh.id, func(t *Turn) {
		if s := t.sh.subs.get(id); s != nil {
			t.sh.notifyUnsent(t, s, err)
		}
	})
}

// routeSet splits a stored route set into its first URI and whether that is a
// loose router.
func routeSet(set string) (first string, loose bool) {
	if set == "" {
		return "", true
	}
	n, err := sip.ParseNameAddr([]byte(firstValue(set)))
	if err != nil {
		return "", true
	}
	u, err := sip.ParseURI(string(n.URI))
	if err != nil {
		return "", true
	}
	_, loose = u.Param("lr")
	return string(n.URI), loose
}

// firstValue is the first of comma-separated name-addrs.
func firstValue(set string) string {
	v, _ := splitFirst(set)
	return v
}

func splitFirst(set string) (first, rest string) {
	angle, quote := false, false
	for i := 0; i < len(set); i++ {
		switch c := set[i]; {
		case c == '"':
			quote = !quote
		case quote:
		case c == '<':
			angle = true
		case c == '>':
			angle = false
		case c == ',' && !angle:
			return strings.TrimSpace(set[:i]), strings.TrimSpace(set[i+1:])
		}
	}
	return strings.TrimSpace(set), ""
}

// appendRoute writes Request-URI's rest of the start line and Route by the
// rules for loose and strict routers (CORE-11).
func appendStart(b []byte, method, target, routes string) (out []byte, route string) {
	uri, route := target, routes
	if first, loose := routeSet(routes); !loose {
		_, rest := splitFirst(routes)
		uri, route = first, rest
		if route != "" {
			route += ", "
		}
		route += "<" + target + ">"
	}
	b = append(b, method...)
	b = append(b, ' ')
	b = append(b, uri...)
	return append(b, " SIP/2.0\r\n"...), route
}

// appendVia writes our Via with the transaction's branch (CORE-09, NAT-02).
func (sh *shard) appendVia(b []byte, flow sip.Flow, client sip.ClientID) []byte {
	b = append(b, "Via: SIP/2.0/"...)
	b = append(b, flow.Proto.String()...)
	b = append(b, ' ')
	b = flow.Local.AppendTo(b)
	b = append(b, ";rport;branch="...)
	b = sh.tx.AppendBranch(b, client)
	return append(b, "\r\nMax-Forwards: 70\r\n"...)
}

// appendNotify writes a NOTIFY up to its body.
func (sh *shard) appendNotify(b []byte, t *Turn, s *subscription, flow sip.Flow, client sip.ClientID) []byte {
	o, routes := sh.own(s), sh.rt.shared.text(s.routes)
	var route string
	if routes == "" {
		b = append(append(append(b, "NOTIFY "...), o.t[txTarget]...), " SIP/2.0\r\n"...)
	} else {
		b, route = appendStart(b, "NOTIFY", string(o.t[txTarget]), routes)
	}
	b = sh.appendVia(b, flow, client)
	if route != "" {
		b = sip.AppendHeader(b, "Route", route)
	}
	b = append(appendEither(append(b, "From: <"...), o.t[txLocalURI], o.resource), ">;tag="...)
	if tag := o.t[txLocalTag]; len(tag) > 0 {
		b = append(b, tag...)
	} else {
		b = appendTag(b, s.id)
	}
	b = appendEither(append(b, "\r\nTo: <"...), o.t[txRemoteURI], o.watcher)
	b = append(append(b, ">;tag="...), o.t[txRemoteTag]...)
	b = append(append(b, "\r\nCall-ID: "...), o.t[txCallID]...)
	b = append(b, "\r\nCSeq: "...)
	b = strconv.AppendUint(b, uint64(s.n.cseq), 10)
	b = append(b, " NOTIFY\r\n"...)
	b = appendContact(b, sh.rt.shared.text(s.contact))
	b = append(b, "Event: "...)
	b = append(b, sh.pkgOf(s).Name...)
	if len(o.t[txEventID]) > 0 {
		b = append(b, ";id="...)
		b = append(b, o.t[txEventID]...)
	}
	b = append(b, "\r\nSubscription-State: "...)
	state := s.n.state()
	b = append(b, state.String()...)
	if state == Terminated {
		if why := s.n.reason(); why != "" {
			b = append(b, ";reason="...)
			b = append(b, why...)
		}
		if after := s.n.retryAfter(); after > 0 {
			b = append(b, ";retry-after="...)
			b = append(b, seconds(after)...)
		}
	} else {
		b = append(b, ";expires="...)
		b = append(b, seconds(max(s.n.expires.sub(t.now), 0))...)
	}
	b = append(b, "\r\n"...)
	if sh.isList(s) {
		b = append(b, "Require: eventlist\r\n"...)
	}
	return b
}

// render gives the body of the NOTIFY that is about to be sent. It does not
// change any more: the transaction keeps it.
func (sh *shard) render(t *Turn, s *subscription, full bool) (body []byte, contentType string) {
	state := s.n.state()
	if sh.ptr(s).content == nil || !sh.isList(s) && state == Terminated && s.n.reason() != Timeout {
		return nil, ""
	}
	if s.unseen { // versions begin with the first document, not with a pending NOTIFY
		s.unseen, s.n.offset = false, s.n.cseq
	}
	if d, ok := sh.ptr(s).content.(*Document); ok && d.Version == 0 {
		return d.Body, d.Type
	}
	b, contentType := sh.ptr(s).content.Render(sh.bodyBuf[:0], View{Version: s.n.cseq - s.n.offset, Full: full, State: state, Now: t.Now})
	if sh.bodyBuf = b[:0]; cap(b) > 1<<20 {
		sh.bodyBuf = nil
	}
	return bytes.Clone(b), contentType
}

func appendAddr(b []byte, name, uri, tag string) []byte {
	b = append(b, name...)
	b = append(b, uri...)
	b = append(b, '>')
	if tag != "" {
		b = append(b, ";tag="...)
		b = append(b, tag...)
	}
	return append(b, "\r\n"...)
}

// response gives a response to the transaction and dialog it belongs to.
func (sh *shard) response(t *Turn, m *sip.Message) {
	out, final, ok := sh.tx.Response(t.Now, m)
	if !ok || !final {
		return
	}
	id := out.User & idMask
	switch uint8(out.User >> 56) {
	case notifierComponent:
		if s := sh.subs.get(id); s != nil {
			sh.notifyAnswered(t, s, out.Status, m)
		}
	case subscriberComponent:
		if r := sh.uacs[id]; r != nil {
			sh.subscribeAnswered(t, r, m)
		}
	}
}

func retryAfter(m *sip.Message) time.Duration {
	v := m.Header(sip.HdrRetryAfter)
	n := 0
	for n < len(v) && v[n] >= '0' && v[n] <= '9' && n < 9 {
		n++
	}
	sec, _ := strconv.Atoi(string(v[:n]))
	return time.Duration(sec) * time.Second
}

// notifyAnswered tells the machine how its NOTIFY ended. m is nil when there was
// no response.
func (sh *shard) notifyAnswered(t *Turn, s *subscription, status int, m *sip.Message) {
	s.waiting = false
	defer sh.advance(t, sh.vacate(s, status != 408 && status != 503))
	ev := notifierEvent{kind: evAnswer, status: status}
	x := sh.ptr(s).more
	switch {
	case status < 300:
		sh.rt.stats.NotifyOK.Add(1)
		if x != nil {
			x.attempt, x.widened = nil, nil
		}
	case x != nil && x.attempt != nil && m != nil && sh.challenged(sh.nextHop(s), m, x.attempt):
		ev.kind = evAgain
	case s.found && sh.elsewhere(status, &x.flow, &x.others):
		ev.kind = evAgain
	default:
		sh.notifyFailed(t, s, status, nil)
		if x != nil {
			x.attempt, x.widened = nil, nil
		}
		sh.lookAgain(s)
		if m != nil {
			ev.retryAfter = retryAfter(m)
		}
	}
	sh.step(t, s, ev)
}

// challenged takes a 401 or 407 and tells whether to try again with
// credentials (RFC 3261 section 22.2).
func (sh *shard) challenged(uri string, m *sip.Message, at *auth.Attempt) bool {
	return (m.Status() == 401 || m.Status() == 407) && sh.rt.opt.Login != nil && sh.rt.opt.Login.Challenged(domainOf(uri), m, at)
}

// domainOf is the host of a URI.
func domainOf(uri string) string {
	u, err := sip.ParseURI(uri)
	if err != nil {
		return ""
	}
	return u.Host
}

// elsewhere moves on to the next target of a name after 503, a transport error
// or timer F (DNS-02).
func (sh *shard) elsewhere(status int, flow *sip.Flow, others *[]sip.Flow) bool {
	if status != 503 && status != 408 {
		return false
	}
	if sh.rt.opt.Unreachable != nil {
		sh.rt.opt.Unreachable(*flow)
	}
	if len(*others) == 0 {
		return false
	}
	*flow, *others = (*others)[0], (*others)[1:]
	return true
}

// notifyUnsent tells the machine that its NOTIFY did not leave. nil means that
// the way is known now. A NOTIFY of a connection goes over no other, but to a
// watcher that can be reached at its Contact.
func (sh *shard) notifyUnsent(t *Turn, s *subscription, err error) {
	s.waiting = false
	s.sent = min(s.sent, s.n.cseq-1)
	defer sh.advance(t, sh.vacate(s, err == nil))
	ev := notifierEvent{kind: evUnsent}
	switch {
	case err == nil:
	case sh.widened(s) != nil: // the same over UDP
		if flow, ok := sh.hop(t, s); ok {
			s.waiting, s.sent = true, s.n.cseq
			sh.occupy(s, flow)
			sh.sendNotify(t, s, flow, *sh.widened(s), false)
			return
		}
		err = nil
	case s.direct && sh.flow(s).Proto.Reliable() && sh.openTo(s, sh.flow(s)):
		s.direct = false
		err = nil
	case s.direct && sh.flow(s).Proto.Reliable():
		sh.notifyFailed(t, s, 503, err)
		sh.step(t, s, notifierEvent{kind: evLost})
		return
	case s.found && sh.elsewhere(503, &sh.ptr(s).more.flow, &sh.ptr(s).more.others):
		err = nil
	}
	if err != nil {
		sh.lookAgain(s)
		sh.notifyFailed(t, s, 503, err)
		ev.err = &Error{Status: 503, Err: err}
	}
	sh.step(t, s, ev)
}

// lookAgain forgets where the name of the next hop led (RFC 3263 section 4.3).
func (sh *shard) lookAgain(s *subscription) {
	if s.found {
		s.found = false
		sh.ptr(s).more.flow, sh.ptr(s).more.others, sh.ptr(s).more.named = sip.Flow{}, nil, false
	}
}

func (sh *shard) notifyFailed(t *Turn, s *subscription, status int, err error) {
	sh.rt.stats.NotifyFailed.Add(1)
	if n, ok := sh.rt.failed.Allow(t.Now); ok {
		sh.rt.opt.Log.Info("NOTIFY failed", "dialog", formatTag(s.id), "event", sh.pkgOf(s).Name, "resource", sh.rt.shared.text(s.resource),
			"watcher", sh.rt.shared.text(s.watcher), "status", status, "err", orDash(err), "suppressed", n)
	}
}

// SubscriptionInfo describes a subscription to an operator.
type SubscriptionInfo struct {
	Dialog   string    `json:"dialog"`
	Event    string    `json:"event"`
	Resource string    `json:"resource"`
	Watcher  string    `json:"watcher"`
	State    string    `json:"state"`
	Target   string    `json:"target"`
	CallID   string    `json:"call_id"`
	CSeq     uint32    `json:"cseq"`
	InFlight bool      `json:"notify_in_flight"`
	Expires  time.Time `json:"expires"`
	Agent    string    `json:"user_agent,omitempty"`
}

// Subscriptions lists the subscriptions of the running shard.
func (t *Turn) Subscriptions() []SubscriptionInfo {
	sh := t.sh
	out := make([]SubscriptionInfo, 0, sh.subs.len())
	for s := range sh.subs.all() {
		o := sh.own(s)
		out = append(out, SubscriptionInfo{
			Dialog: formatTag(s.id), Event: sh.pkgOf(s).Name, Resource: o.resource, Watcher: o.watcher,
			State: s.n.phase.String(), Target: string(o.t[txTarget]), CallID: string(o.t[txCallID]), CSeq: s.n.cseq, InFlight: s.n.inFlight,
			Expires: t.at(s.n.expires).UTC(), Agent: sh.rt.shared.text(s.agent),
		})
	}
	slices.SortFunc(out, func(a, b SubscriptionInfo) int { return strings.Compare(a.Dialog, b.Dialog) })
	return out
}
