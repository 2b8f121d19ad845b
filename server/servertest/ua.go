package servertest

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"rollcall/pa/dialoginfo"
	"rollcall/pa/pidf"
	"rollcall/rls/rlmi"
	"rollcall/sip"
)

// Msg is a received message. It is never given back to the pool.
type Msg struct{ *sip.Message }

// H is a header field's value, "" when absent.
func (m Msg) H(h sip.HeaderID) string { return string(m.Header(h)) }

// UA is a phone.
type UA struct {
	AOR  string
	Addr netip.AddrPort
	w    *World
	host sip.Sender

	mu      sync.Mutex
	serial  int
	waiting map[string]chan Msg // by branch
	served  map[string][]byte   // responses by branch of a NOTIFY
	subs    map[string]*Sub     // by Call-ID
}

// UA puts a phone on the network.
func (w *World) UA(aor string) *UA {
	u := &UA{AOR: aor, w: w, waiting: make(map[string]chan Msg), served: make(map[string][]byte), subs: make(map[string]*Sub)}
	if w.Net != nil {
		u.Addr = w.nextAddr()
		u.host = w.Net.Host(u.Addr, u.receive)
		return u
	}
	e := sip.NewEndpoint(sip.EndpointOptions{Receive: u.receive})
	var err error
	if u.Addr, err = e.Listen(sip.UDP, "127.0.0.1:0"); err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(e.Close)
	u.host = e
	return u
}

func (w *World) nextAddr() netip.AddrPort {
	w.last++
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + w.last%150)}), uint16(5060+w.last/150))
}

// Raw sends a request written as a test writes it, with LF line ends, and
// returns its final response. {via}, {tag}, {callid}, {cseq}, {contact} and
// {aor} are replaced, Content-Length is added.
func (u *UA) Raw(to netip.AddrPort, text string) Msg {
	u.w.T.Helper()
	id := u.newID()
	return u.send(to, id, text)
}

// Retransmit is Raw, twice the same.
func (u *UA) Retransmit(to netip.AddrPort, text string) (first, second Msg) {
	u.w.T.Helper()
	id := u.newID()
	return u.send(to, id, text), u.send(to, id, text)
}

func (u *UA) newID() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.nextID()
}

func (u *UA) nextID() string {
	u.serial++
	return strconv.Itoa(u.serial) + "-" + strings.NewReplacer(":", "-", ".", "-").Replace(u.Addr.String())
}

func (u *UA) send(to netip.AddrPort, id, text string) Msg {
	u.w.T.Helper()
	branch := "z9hG4bK" + id
	head, body, _ := strings.Cut(strings.TrimLeft(text, "\n"), "\n\n")
	head = strings.NewReplacer("{via}", "SIP/2.0/UDP "+u.Addr.String()+";rport;branch="+branch, "{tag}", "t"+id, "{callid}", "c"+id,
		"{cseq}", "1", "{contact}", "<sip:"+u.Addr.String()+">", "{aor}", u.AOR).Replace(head)
	req := strings.ReplaceAll(strings.TrimRight(head, "\n"), "\n", "\r\n") + fmt.Sprintf("\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	return u.exchange(to, branch, []byte(req))
}

// exchange is a non-INVITE client transaction (RFC 3261 section 17.1.2).
func (u *UA) exchange(to netip.AddrPort, branch string, req []byte) Msg {
	u.w.T.Helper()
	ch := make(chan Msg, 1)
	u.mu.Lock()
	u.waiting[branch] = ch
	u.mu.Unlock()
	over := time.NewTimer(sip.TimerF)
	defer over.Stop()
	for wait := sip.T1; ; wait = min(2*wait, sip.T2) {
		u.host.Send(sip.Flow{Local: u.Addr, Remote: to}, req, 0)
		again := time.NewTimer(wait)
		select {
		case m := <-ch:
			again.Stop()
			return m
		case <-again.C:
		case <-over.C:
			again.Stop()
			if u.w.Ledger == nil {
				u.w.T.Errorf("no answer to\n%s", req)
			}
			u.mu.Lock()
			delete(u.waiting, branch)
			u.mu.Unlock()
			return Msg{&sip.Message{}}
		}
	}
}

func (u *UA) receive(m *sip.Message) {
	u.mu.Lock()
	defer u.mu.Unlock()
	branch := string(m.Via().Branch)
	if !m.IsRequest() {
		if ch := u.waiting[branch]; ch != nil && m.Status() >= 200 {
			delete(u.waiting, branch)
			ch <- Msg{m}
		}
		return
	}
	resp, seen := u.served[branch]
	if !seen {
		status := 481
		extra := ""
		if s := u.subs[string(m.CallID())]; s != nil && m.Method() == sip.NOTIFY {
			status, extra = s.notify(Msg{m})
		}
		if status != 0 {
			resp = sip.AppendResponse(nil, m, status, "", "")
			resp = append(resp, extra...)
			resp = sip.AppendBody(resp, "", nil)
		}
		u.served[branch] = resp
	}
	if resp != nil {
		u.host.Send(sip.Flow{Local: u.Addr, Remote: m.Flow.Remote}, resp, 0)
	}
}

// Publication is a soft state that a UA publishes for itself.
type Publication struct {
	ETag        string
	Event, Type string // the package, and its bodies' type
	u           *UA
	to          netip.AddrPort
}

// Publication returns one that is not published yet.
func (u *UA) Publication(n *Node) *Publication {
	return &Publication{Event: "presence", Type: pidf.MediaType, u: u, to: n.Addr}
}

// Send publishes, modifies (body and a known tag), refreshes (no body) or
// removes (expires 0), and remembers the new entity tag.
func (p *Publication) Send(body string, expires int) Msg {
	p.u.w.T.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "PUBLISH {aor} SIP/2.0\nVia: {via}\nMax-Forwards: 70\nFrom: <{aor}>;tag={tag}\nTo: <{aor}>\nCall-ID: {callid}\nCSeq: {cseq} PUBLISH\nEvent: %s\nExpires: %d\n", p.Event, expires)
	if p.ETag != "" {
		fmt.Fprintf(&b, "SIP-If-Match: %s\n", p.ETag)
	}
	if body != "" {
		fmt.Fprintf(&b, "Content-Type: %s\n\n%s", p.Type, body)
	}
	m := p.u.Raw(p.to, b.String())
	if m.Status() == 200 {
		p.ETag = m.H(sip.HdrSIPETag)
	}
	return m
}

// Say publishes a small document and fails the test when that is refused.
func (p *Publication) Say(basic, note string) {
	p.u.w.T.Helper()
	if m := p.Send(PIDF(p.u.AOR, basic, note), 3600); m.Status() != 200 {
		p.u.w.T.Errorf("PUBLISH of %s: %d", p.u.AOR, m.Status())
	}
}

// Lines is a publication of dialogs that is not published yet.
func (u *UA) Lines(n *Node) *Publication {
	p := u.Publication(n)
	p.Event, p.Type = "dialog", dialoginfo.MediaType
	return p
}

// Call publishes one dialog and fails the test when that is refused.
func (p *Publication) Call(id, callID, state string) {
	p.u.w.T.Helper()
	if m := p.Send(DialogInfo(p.u.AOR, id, callID, state), 3600); m.Status() != 200 {
		p.u.w.T.Errorf("PUBLISH of %s: %d %s", p.u.AOR, m.Status(), m.Reason())
	}
}

// ListHeaders are what a phone says that knows lists.
const ListHeaders = "Supported: eventlist\nAccept: application/pidf+xml, application/dialog-info+xml, application/simple-message-summary, application/rlmi+xml, multipart/related, multipart/signed, application/pkcs7-mime\n"

// Sub is a subscription of a UA.
type Sub struct {
	URI, Event string
	Target     netip.AddrPort
	Headers    string // further header lines of each SUBSCRIBE
	// Answer, if set, gives the status of the response to a NOTIFY and further
	// header lines with CRLF; status 0 is silence.
	Answer func(n *Notify) (status int, headers string)

	u       *UA
	list    *View // of a list
	gap     Gap
	callID  string
	tag     string
	peer    string // tag
	contact string // of the server
	cseq    uint32
	granted time.Duration

	all    []*Notify
	read   int
	wake   chan struct{}
	seen   uint32 // CSeq
	gen    int    // of the server that sent the newest NOTIFY, or that was there at first
	over   bool   // terminated
	isList int    // 1 list, -1 single
	docs   uint32 // that had a version
}

// Notify is a NOTIFY a Sub got.
type Notify struct {
	Msg
	State, Reason string
	At            time.Time
	RLMI          *rlmi.Notification // of a list

	describe func([]byte) string
}

// Text is the document in short: of presence "open: note", of dialogs
// "ID STATE, ...", others as they are.
func (n *Notify) Text() string { return n.describe(n.Body()) }

func (w *World) describe(body []byte) string {
	if w.Describe != nil {
		return w.Describe(body)
	}
	if len(body) == 0 {
		return ""
	}
	if d, err := dialoginfo.Parse(slices.Clone(body), dialoginfo.Limits{}); err == nil {
		var all []string
		for _, x := range d.Dialogs() {
			all = append(all, x.ID+" "+x.State.String())
		}
		return strings.Join(all, ", ")
	}
	if bytes.HasPrefix(body, []byte("Messages-")) {
		return string(body)
	}
	d, err := pidf.Parse(slices.Clone(body), pidf.Limits{})
	if err != nil {
		return "bad: " + err.Error()
	}
	if d.Note() == "" {
		return d.Basic()
	}
	return d.Basic() + ": " + d.Note()
}

// Dialog prepares a subscription without sending anything.
func (u *UA) Dialog(n *Node, uri string) *Sub {
	u.mu.Lock()
	defer u.mu.Unlock()
	id := u.nextID()
	s := &Sub{URI: uri, Event: "presence", Target: n.Addr, Headers: ListHeaders, u: u, wake: make(chan struct{}, 1), callID: "s" + id, tag: "w" + id, gen: n.Starts()}
	u.subs[s.callID] = s
	return s
}

// Watch subscribes for an hour and fails the test when that is refused.
func (u *UA) Watch(n *Node, uri string) *Sub {
	u.w.T.Helper()
	s := u.Dialog(n, uri)
	s.MustSubscribe(3600)
	return s
}

// MustSubscribe is Subscribe that must be accepted.
func (s *Sub) MustSubscribe(expires int) {
	s.u.w.T.Helper()
	if m := s.Subscribe(expires); m.Status() != 200 {
		s.u.w.T.Fatalf("SUBSCRIBE %s by %s: %d %s", s.URI, s.u.AOR, m.Status(), m.Reason())
	}
}

// Subscribe opens the dialog, refreshes it or, with expires 0, ends it.
func (s *Sub) Subscribe(expires int) Msg {
	s.u.w.T.Helper()
	s.u.mu.Lock()
	s.cseq++
	branch := "z9hG4bK" + s.u.nextID()
	var b bytes.Buffer
	uri, to := s.URI, "<"+s.URI+">"
	if s.peer != "" {
		to += ";tag=" + s.peer
		if s.contact != "" {
			uri = s.contact
		}
	}
	fmt.Fprintf(&b, "SUBSCRIBE %s SIP/2.0\r\nVia: SIP/2.0/UDP %v;rport;branch=%s\r\nMax-Forwards: 70\r\nFrom: <%s>;tag=%s\r\nTo: %s\r\nCall-ID: %s\r\nCSeq: %d SUBSCRIBE\r\n",
		uri, s.u.Addr, branch, s.u.AOR, s.tag, to, s.callID, s.cseq)
	fmt.Fprintf(&b, "Contact: <sip:%v>\r\nEvent: %s\r\nExpires: %d\r\n%sContent-Length: 0\r\n\r\n", s.u.Addr, s.Event, expires, strings.ReplaceAll(s.Headers, "\n", "\r\n"))
	s.granted = max(s.granted, time.Duration(expires)*time.Second)
	s.u.mu.Unlock()
	m := s.u.exchange(s.Target, branch, b.Bytes())
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	if m.Status() == 200 && s.u.w.Ledger != nil && s.peer != "" && s.peer != string(m.To().Tag()) {
		return m // a fork; the NOTIFY that was first decides
	}
	if m.Status() == 200 {
		s.learn(string(m.To().Tag()))
		got, _, _ := m.Uint(sip.HdrExpires)
		if int(got) > expires || m.H(sip.HdrExpires) == "" {
			s.u.w.T.Errorf("EV-01: Expires %q for %d", m.H(sip.HdrExpires), expires)
		}
		if c, err := sip.ParseNameAddr(m.Header(sip.HdrContact)); err == nil {
			s.contact = string(c.URI)
		} else {
			s.u.w.T.Errorf("CORE-10: 200 with Contact %q", m.H(sip.HdrContact))
		}
		list := 1
		if m.H(sip.HdrRequire) != "eventlist" {
			list = -1
		}
		s.nature(list, "200")
		if m.Has(sip.HdrEvent) {
			s.u.w.T.Errorf("EV-02: Event in a 200")
		}
	}
	return m
}

// learn checks that the dialog has one remote tag.
func (s *Sub) learn(tag string) {
	if s.peer == "" {
		s.peer = tag
	}
	if s.peer != tag || tag == "" {
		s.u.w.T.Errorf("EV-07: tag %q, before %q", tag, s.peer)
	}
}

// nature is list 1 or single -1 and must never change (RL-09).
func (s *Sub) nature(kind int, where string) {
	if s.isList == 0 {
		s.isList = kind
	}
	if s.isList != kind {
		s.u.w.T.Errorf("RL-01, RL-09: %s of %s changed the nature of the subscription", where, s.URI)
	}
}

// Refresh asks for another hour.
func (s *Sub) Refresh() Msg { s.u.w.T.Helper(); return s.Subscribe(3600) }

// Unsubscribe ends the subscription and checks the last NOTIFY (EV-09).
func (s *Sub) Unsubscribe() *Notify {
	s.u.w.T.Helper()
	s.Drain()
	if m := s.Subscribe(0); m.Status() != 200 {
		s.u.w.T.Fatalf("unsubscribe from %s: %d", s.URI, m.Status())
	}
	return s.Last("timeout")
}

// Last reads up to the last NOTIFY, which must have the reason.
func (s *Sub) Last(reason string) *Notify {
	s.u.w.T.Helper()
	for {
		n := s.Next()
		if n.State != "terminated" {
			continue
		}
		if n.Reason != reason {
			s.u.w.T.Errorf("%s ended with reason %q, want %q", s.URI, n.Reason, reason)
		}
		return n
	}
}

// bear gives the status of a NOTIFY that a faulty network or a crash excuses, 0
// for any other. It allows a gap before the first one after a restart.
func (s *Sub) bear(m Msg) int {
	l := s.u.w.Ledger
	if l == nil {
		return 0
	}
	gen := l.generation(string(m.Via().Branch))
	switch {
	case s.peer != "" && string(m.From().Tag()) != s.peer: // a SUBSCRIBE that two servers took (EV-21)
		return 481
	case s.seen != 0 && m.CSeq() <= s.seen && gen <= s.gen: // late; that none is used again the Ledger watches
		return 500
	case s.over && l.Revives && gen > s.gen:
		return 481
	case gen > s.gen:
		s.gap = Crash
	}
	s.gen = max(s.gen, gen)
	return 0
}

// Silence makes the phone answer no NOTIFY of a subscription any more.
func (s *Sub) Silence() {
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	s.Answer = func(*Notify) (int, string) { return 0, "" }
}

// Forget makes the phone know nothing of a subscription any more.
func (s *Sub) Forget() {
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	delete(s.u.subs, s.callID)
}

// Reboot makes the phone forget all subscriptions and transactions.
func (u *UA) Reboot() {
	u.mu.Lock()
	defer u.mu.Unlock()
	clear(u.subs)
	clear(u.served)
}

// Newest is the newest NOTIFY, nil before the first.
func (s *Sub) Newest() *Notify {
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	if len(s.all) == 0 {
		return nil
	}
	return s.all[len(s.all)-1]
}

// Dialog names the subscription as the server's tables do: its Call-ID and the
// server's tag, "" while there is none.
func (s *Sub) Dialog() (callID, tag string) {
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	return s.callID, s.peer
}

// notify takes a NOTIFY; the UA is locked.
func (s *Sub) notify(m Msg) (int, string) {
	t := s.u.w.T
	if status := s.bear(m); status != 0 {
		return status, ""
	}
	n := &Notify{Msg: m, At: time.Now(), describe: s.u.w.describe}
	if name, id, _ := m.Event(); !s.sameEvent(string(name), string(id)) {
		t.Errorf("EV-23: NOTIFY with Event %q, want %q", m.H(sip.HdrEvent), s.Event)
	}
	if string(m.To().Tag()) != s.tag || string(m.To().URI) != s.u.AOR || string(m.From().URI) != s.URI {
		t.Errorf("CORE-11: NOTIFY From %s To %s, want %s and %s", m.From().URI, m.To().URI, s.URI, s.u.AOR)
	}
	if s.over {
		t.Errorf("EV-15: NOTIFY for %s after the last one:\n%s", s.URI, m.Raw)
	}
	if s.seen != 0 && m.CSeq() != s.seen+1 && !(s.gap == Crash && m.CSeq() > s.seen) {
		t.Errorf("CORE-12: NOTIFY for %s with CSeq %d after %d", s.URI, m.CSeq(), s.seen)
	}
	s.seen = m.CSeq()
	s.learn(string(m.From().Tag()))
	state, params, _ := strings.Cut(m.H(sip.HdrSubscriptionState), ";")
	p := []byte(";" + params)
	exp, timed := sip.Param(p, "expires")
	reason, _ := sip.Param(p, "reason")
	n.State, n.Reason = state, string(reason)
	switch state {
	case "active", "pending":
		left, err := strconv.Atoi(string(exp))
		if !timed || err != nil || time.Duration(left)*time.Second > s.granted || n.Reason != "" {
			t.Errorf("EV-08: Subscription-State %q, granted %v", m.H(sip.HdrSubscriptionState), s.granted)
		}
	case "terminated":
		s.over = true
		if timed || n.Reason == "" {
			t.Errorf("EV-08: Subscription-State %q", m.H(sip.HdrSubscriptionState))
		}
	default:
		t.Errorf("EV-08: Subscription-State %q", m.H(sip.HdrSubscriptionState))
	}
	kind := 1
	if m.H(sip.HdrRequire) != "eventlist" {
		kind = -1
	}
	if n.Reason == "deactivated" && len(n.Body()) == 0 { // it may be another thing since a restart
		kind = s.isList
	}
	s.nature(kind, "NOTIFY")
	if m.Has(sip.HdrSupported) {
		t.Errorf("RL-03: NOTIFY with Supported")
	}
	s.body(n, kind == 1)
	status, headers := 200, ""
	if s.Answer != nil {
		status, headers = s.Answer(n)
	}
	s.gap = NoGap
	s.all = append(s.all, n)
	poke(s.wake)
	return status, headers
}

// dialogVersion reads the version of a document with the state of all dialogs.
func dialogVersion(body []byte) (uint32, bool) {
	var root struct {
		Version uint32 `xml:"version,attr"`
		State   string `xml:"state,attr"`
	}
	err := xml.Unmarshal(body, &root)
	_, bad := dialoginfo.Parse(slices.Clone(body), dialoginfo.Limits{})
	return root.Version, err == nil && bad == nil && root.State == "full"
}

func (s *Sub) sameEvent(name, id string) bool {
	want, params, _ := strings.Cut(s.Event, ";")
	wantID, _ := sip.Param([]byte(";"+params), "id")
	return name == want && id == string(wantID)
}

// body checks and reads the body of a NOTIFY.
func (s *Sub) body(n *Notify, list bool) {
	t := s.u.w.T
	ctype := n.H(sip.HdrContentType)
	if !list {
		switch {
		case len(n.Body()) == 0:
			if ctype != "" {
				t.Errorf("Content-Type %q without a body", ctype)
			}
			if s.docs > 0 && n.State != "terminated" {
				s.docs++ // versions count NOTIFYs (EV-25) from the first document on
			}
		case s.Event == "dialog":
			want := s.docs
			if got, ok := dialogVersion(n.Body()); !ok || ctype != dialoginfo.MediaType || got != want && !(s.gap == Crash && got > want) {
				t.Errorf("DI-02: version %d, want %d\n%s", got, want, n.Body())
			} else {
				s.docs = got + 1
			}
		case !strings.HasPrefix(s.Event, "presence"), strings.HasPrefix(s.Event, "presence.winfo"):
		default:
			if _, err := pidf.Parse(slices.Clone(n.Body()), pidf.Limits{}); err != nil || ctype != pidf.MediaType {
				t.Errorf("P-01: body %q: %v\n%s", ctype, err, n.Body())
			}
		}
		return
	}
	if len(n.Body()) == 0 && (n.State == "pending" || n.State == "terminated" && n.Reason != "timeout") {
		return // there is no list to show, after a restart
	}
	msg, err := rlmi.Options{First: s.list == nil && s.gap != Crash}.Parse(ctype, n.Body())
	if err != nil {
		t.Errorf("list NOTIFY: %v\n%s", err, n.Raw)
		return
	}
	n.RLMI = msg
	if s.list == nil {
		s.list = &View{t: t, URI: s.URI, describe: s.u.w.describe}
	}
	s.list = s.list.apply(msg, s.gap)
}

// All are the NOTIFYs so far.
func (s *Sub) All() []*Notify {
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	return slices.Clone(s.all)
}

// Next waits up to ten seconds for the next NOTIFY that was not read yet.
func (s *Sub) Next() *Notify {
	s.u.w.T.Helper()
	over := time.NewTimer(10 * time.Second)
	defer over.Stop()
	for {
		s.u.mu.Lock()
		if s.read < len(s.all) {
			n := s.all[s.read]
			s.read++
			s.u.mu.Unlock()
			return n
		}
		s.u.mu.Unlock()
		select {
		case <-s.wake:
		case <-over.C:
			s.u.w.T.Fatalf("no NOTIFY for %s to %s", s.URI, s.u.AOR)
		}
	}
}

func poke(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// Drain reads what is there.
func (s *Sub) Drain() {
	s.u.w.wait()
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	s.read = len(s.all)
}

// Quiet lets d pass, in which no NOTIFY may arrive.
func (s *Sub) Quiet(d time.Duration, why string) {
	s.u.w.T.Helper()
	s.u.w.Settle(d)
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	for ; s.read < len(s.all); s.read++ {
		s.u.w.T.Errorf("%s: NOTIFY for %s at %v:\n%s", why, s.URI, s.all[s.read].At, s.all[s.read].Raw)
	}
}

// Over tells whether the last NOTIFY has come.
func (s *Sub) Over() bool {
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	return s.over
}
