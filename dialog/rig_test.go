package dialog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/sip"
)

var (
	serverAddr = netip.MustParseAddrPort("192.0.2.9:5060")
	phoneAddr  = netip.MustParseAddrPort("192.0.2.1:5070")
	proxyAddr  = netip.MustParseAddrPort("192.0.2.7:5060")
)

const pidfType = "application/pidf+xml"

// bubble runs a test of whole messages: time is virtual, and everything that
// can happen at an instant has happened when settle returns.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func settle() { synctest.Wait() }

// rig is a Runtime on a memory network, with a component that does what the
// test says and a store that can be slow or broken.
type rig struct {
	*Runtime
	t       *testing.T
	net     *sip.MemNet
	addr    netip.AddrPort
	src     *fakeSource
	store   *fakeStore
	wire    *wire
	stopped bool
}

func newNet(t *testing.T) *sip.MemNet {
	n := sip.NewMemNet(1, sip.Fault{})
	t.Cleanup(n.Close)
	return n
}

// newRig starts a Runtime at addr. change may alter its options.
func newRig(t *testing.T, net *sip.MemNet, addr netip.AddrPort, change func(*Options)) *rig {
	r := &rig{t: t, net: net, addr: addr, src: &fakeSource{state: map[string]Update{}}, store: &fakeStore{rows: map[string]SubscriptionRow{}, remotes: map[string]RemoteRow{}}}
	r.wire = &wire{t: t, cseq: map[string]uint32{}, last: map[string]string{}}
	opt := Options{
		Store: r.store,
		Packages: NewRegistry(
			&Package{Name: "presence", Types: []string{pidfType}, DefaultExpires: time.Hour, Publish: true, Lists: true},
			&Package{Name: "presence.winfo", Types: []string{"application/watcherinfo+xml"}, DefaultExpires: 50 * time.Minute, MinInterval: 5 * time.Second}),
		Components: []func(uint8) Component{r.src.shard},
		Route:      func(string) int { return 0 },
		Key: func(uri []byte) (string, bool, error) {
			u, err := sip.ParseURI(string(uri))
			return u.Key(), u.Host == "example.com", err
		},
		Identify: func(m *sip.Message, _ time.Time) (Identity, func(context.Context), *Error) {
			u, err := sip.ParseURI(string(m.From().URI))
			if err != nil || u.User == "mallory" {
				return Identity{}, nil, &Error{Status: 403, Err: err}
			}
			return Identity{URI: u.Key()}, nil, nil
		},
		FlowTo: func(p sip.Proto, remote netip.AddrPort) (sip.Flow, error) {
			return sip.Flow{Proto: p, Local: addr, Remote: remote}, nil
		},
	}
	if change != nil {
		change(&opt)
	}
	if opt.Sender == nil {
		r.wire.next = net.Host(addr, func(m *sip.Message) { r.Receive(m) })
		opt.Sender = r.wire
	}
	r.Runtime = New(opt)
	r.Start()
	t.Cleanup(r.stop)
	return r
}

// stop ends the runtime and checks what must never happen.
func (r *rig) stop() {
	if r.stopped {
		return
	}
	r.stopped = true
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	r.Stop(ctx)
	s := r.Stats()
	if n := s.Panics.Load(); n != 0 && !r.src.panics {
		r.t.Errorf("%d panics", n)
	}
	if s.TwoInFlight.Load() != 0 || s.Revived.Load() != 0 {
		r.t.Errorf("two in flight: %d, revived: %d", s.TwoInFlight.Load(), s.Revived.Load())
	}
}

// kill ends the runtime as kill -9 would: nothing is flushed.
func (r *rig) kill() {
	r.stopped = true
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r.store.fail(errors.New("killed"))
	r.Stop(ctx)
}

// empty checks that no dialog and no transaction is left when timer J is over.
func (r *rig) empty() {
	r.t.Helper()
	time.Sleep(sip.TimerJ + time.Second)
	subs, uacs, servers, clients, sinks := 0, 0, 0, 0, 0
	r.Each(func(t *Turn) {
		subs += t.sh.subs.len()
		uacs += len(t.sh.uacs)
		s, c := t.sh.tx.Live()
		servers += s
		clients += c
		if s, ok := t.sh.components[0].(*fakeShard); ok {
			sinks += len(s.sinks)
		}
		if len(t.sh.held) > 0 {
			r.t.Errorf("shard %d holds %d messages", t.sh.id, len(t.sh.held))
		}
		if n := t.sh.wheel.Len(); n > 0 && t.sh.subs.len()+len(t.sh.uacs) == 0 {
			r.t.Errorf("shard %d has %d timers", t.sh.id, n)
		}
	})
	st := r.Stats()
	if subs+uacs+servers+clients+sinks != 0 || st.Subscriptions.Load() != 0 || st.Remote.Load() != 0 {
		r.t.Errorf("left: %d subscriptions, %d remote, %d server and %d client transactions, %d attachments; counted %d and %d",
			subs, uacs, servers, clients, sinks, st.Subscriptions.Load(), st.Remote.Load())
	}
}

// errLater is the error of a send that fails, but of which the runtime is told
// later (Runtime.Failed).
var errLater = errors.New("not sent, told later")

// wire checks every request that leaves the runtime: CORE-09, CORE-12, EV-08,
// NAT-02. It stands between the runtime and the network.
type wire struct {
	t    *testing.T
	next sip.Sender
	mu   sync.Mutex
	fail func(f sip.Flow, m *sip.Message) error // nil: nothing fails
	jump bool                                   // CSeq may jump up once, after a restart
	cseq map[string]uint32                      // by dialog
	last map[string]string                      // branch of the last request of a dialog
	sent int
}

func (w *wire) Send(f sip.Flow, b []byte, token uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := parse(w.t, b)
	if w.fail != nil {
		if err := w.fail(f, m); err != nil {
			return err
		}
	}
	if err := w.next.Send(f, b, token); errors.Is(err, errLater) {
		return nil
	} else if err != nil {
		return err
	}
	w.sent++
	if m.IsRequest() {
		w.request(m, token)
	}
	return nil
}

func (w *wire) request(m *sip.Message, token uint64) {
	id := string(m.CallID()) + " " + string(m.From().Tag())
	v := m.Via()
	if id2, _, ok := sip.ParseBranch(v.Branch); !ok || uint64(id2) != token || !v.HasRPort || len(v.RPort) > 0 {
		w.t.Errorf("CORE-09, NAT-02: Via of\n%s", m.Raw)
	}
	if string(m.Header(sip.HdrMaxForwards)) != "70" || m.CSeq() >= 1<<31 || len(m.From().Tag()) == 0 {
		w.t.Errorf("CORE-09: Max-Forwards, CSeq or From tag of\n%s", m.Raw)
	}
	last, seen := w.cseq[id]
	switch {
	case seen && m.CSeq() == last:
		if w.last[id] != string(v.Branch) {
			w.t.Errorf("CORE-12: CSeq %d used twice\n%s", last, m.Raw)
		}
	case seen && m.CSeq() != last+1 && !(w.jump && m.CSeq() > last):
		w.t.Errorf("CORE-12: CSeq %d after %d\n%s", m.CSeq(), last, m.Raw)
	}
	w.cseq[id], w.last[id] = m.CSeq(), string(v.Branch)
	if m.Method() != sip.NOTIFY {
		return
	}
	state, params, _ := strings.Cut(string(m.Header(sip.HdrSubscriptionState)), ";")
	_, expires := sip.Param([]byte(params), "expires")
	_, reason := sip.Param([]byte(params), "reason")
	switch state {
	case "active", "pending":
		if !expires || reason {
			w.t.Errorf("EV-08: %s;%s", state, params)
		}
	case "terminated":
		if expires || !reason {
			w.t.Errorf("EV-08: %s;%s", state, params)
		}
	default:
		w.t.Errorf("EV-08: state %q", state)
	}
	if m.Header(sip.HdrContact) == nil || m.Header(sip.HdrEvent) == nil {
		w.t.Errorf("no Contact or Event\n%s", m.Raw)
	}
}

func parse(t testing.TB, b []byte) *sip.Message {
	t.Helper()
	m := new(sip.Message)
	if err := m.Parse(bytes.Clone(b), false); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	return m
}

// fakeSource is a component of all shards: a Source that answers what state
// says, a Publisher, and a SubscriberUser that remembers.
type fakeSource struct {
	mu       sync.Mutex
	state    map[string]Update // by resource; none: active, with a document
	attached []Interest        // in the order of attaching
	detached []Interest
	silent   bool // Attach is not answered
	panics   bool // Attach panics, and Publish after its answer
	shards   [Shards]*fakeShard

	published int
	publish   func(t *Turn, r *Request) // instead of the answer 200
	heard     map[uint64][]string       // by user of a remote subscription
}

type fakeShard struct {
	src   *fakeSource
	id    uint8
	sinks map[SinkRef]Interest
}

func (f *fakeSource) shard(id uint8) Component {
	f.shards[id] = &fakeShard{f, id, map[SinkRef]Interest{}}
	return f.shards[id]
}

func (s *fakeShard) Timer(*Turn, uint64) {}

func (s *fakeShard) Attach(t *Turn, in Interest, to SinkRef) {
	f := s.src
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.panics {
		panic("Attach")
	}
	f.attached = append(f.attached, in)
	s.sinks[to] = in
	if !f.silent {
		s.tell(t, to, in.Resource)
	}
}

func (s *fakeShard) Detach(t *Turn, in Interest, to SinkRef) {
	s.src.mu.Lock()
	defer s.src.mu.Unlock()
	if _, ok := s.sinks[to]; ok {
		s.src.detached = append(s.src.detached, in)
		delete(s.sinks, to)
	}
}

func (s *fakeShard) tell(t *Turn, to SinkRef, resource string) {
	u, ok := s.src.state[resource]
	if !ok {
		u = Update{State: Active, Doc: &Document{Type: pidfType, Body: []byte("first")}}
	}
	u.To = to
	if u.State == Terminated && !u.Retrying {
		delete(s.sinks, to)
	}
	t.Update(u)
}

func (s *fakeShard) Publish(t *Turn, r *Request) {
	s.src.mu.Lock()
	defer s.src.mu.Unlock()
	s.src.published++
	if ShardOf(r.Resource) != t.Shard() {
		panic("PUBLISH in the wrong shard")
	}
	if s.src.publish != nil {
		s.src.publish(t, r)
		return
	}
	r.Keep()
	t.Reply(r, 200, "", "SIP-ETag", fmt.Sprint("e", s.src.published))
	if s.src.panics {
		panic("Publish")
	}
}

func (s *fakeShard) hear(user uint64, what string) {
	s.src.mu.Lock()
	defer s.src.mu.Unlock()
	if s.src.heard == nil {
		s.src.heard = map[uint64][]string{}
	}
	s.src.heard[user] = append(s.src.heard[user], what)
}

func (s *fakeShard) Notified(t *Turn, user uint64, state SubState, doc *Document) {
	body := ""
	if doc != nil {
		body = " " + string(doc.Body)
	}
	s.hear(user, state.String()+body)
}

func (s *fakeShard) Ended(t *Turn, user uint64, e Ending) {
	s.hear(user, strings.TrimSpace(fmt.Sprintf("ended %d %s", e.Status, e.Reason)))
}

// set changes a resource's state and tells all who are attached.
func (r *rig) set(resource string, u Update) {
	r.Do(resource, func(t *Turn) { r.src.set(t, resource, u) })
	settle()
}

// set is the same within a turn.
func (f *fakeSource) set(t *Turn, resource string, u Update) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state[resource] = u
	s := f.shards[ShardOf(resource)]
	for to, in := range s.sinks {
		if in.Resource == resource {
			s.tell(t, to, resource)
		}
	}
}

// active is the update with a document of that text.
func active(text string) Update {
	return Update{State: Active, Doc: &Document{Type: pidfType, Body: []byte(text)}}
}

// fakeStore keeps rows. block makes Commit wait, err makes it fail.
type fakeStore struct {
	mu      sync.Mutex
	rows    map[string]SubscriptionRow
	remotes map[string]RemoteRow
	block   chan struct{}
	err     error
	poison  func(Write) bool // what is refused for good
	commits int
	entered int
	batches [][]Write
}

func (s *fakeStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// hold makes every Commit wait until the channel it returns is closed.
func (s *fakeStore) hold() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.block = make(chan struct{})
	return s.block
}

// release ends a hold, and has later Commits not wait.
func (s *fakeStore) release(held chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.block = nil
	close(held)
}

func (s *fakeStore) Commit(ctx context.Context, batch []Write) error {
	s.mu.Lock()
	block := s.block
	s.entered++
	s.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if s.poison != nil && slices.ContainsFunc(batch, s.poison) {
		return fmt.Errorf("constraint: %w", ErrUnstorable)
	}
	s.commits++
	s.batches = append(s.batches, slices.Clone(batch))
	for _, w := range batch {
		switch w := w.(type) {
		case PutSubscription:
			s.rows[w.Row.ID] = w.Row
		case DeleteSubscription:
			delete(s.rows, w.ID)
		case PutRemote:
			s.remotes[w.Row.ID] = w.Row
		case DeleteRemote:
			delete(s.remotes, w.ID)
		case SetCSeqCeiling:
			if row, ok := s.rows[w.ID]; ok {
				row.CSeqCeiling = w.Ceiling
				s.rows[w.ID] = row
			}
		}
	}
	return nil
}

// row gives the only row.
func (s *fakeStore) row(t *testing.T) SubscriptionRow {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.rows) != 1 {
		t.Fatalf("%d rows", len(s.rows))
	}
	for _, r := range s.rows {
		return r
	}
	panic("unreachable")
}

// begun and done count the commits.
func (s *fakeStore) begun() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entered
}

func (s *fakeStore) done() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commits
}

func (s *fakeStore) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.rows)
}

// phone is a user agent that sends what the test writes and keeps what it gets.
type phone struct {
	t      *testing.T
	host   *sip.MemHost
	addr   netip.AddrPort
	to     netip.AddrPort // where requests go
	mu     sync.Mutex
	in     []*sip.Message
	notify func(m *sip.Message) int // status for a NOTIFY, 0: none; nil: always 200
	branch int
}

func newPhone(t *testing.T, net *sip.MemNet, addr netip.AddrPort) *phone {
	p := &phone{t: t, addr: addr, to: serverAddr}
	p.host = net.Host(addr, p.receive)
	return p
}

func (p *phone) receive(m *sip.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.in = append(p.in, m)
	if m.IsRequest() {
		status := 200
		if p.notify != nil {
			status = p.notify(m)
		}
		if status > 0 {
			p.respond(m, status)
		}
	}
}

// respond answers a request; headers are whole lines.
func (p *phone) respond(m *sip.Message, status int, headers ...string) {
	b := sip.AppendResponse(nil, m, status, "", "phone")
	for _, h := range headers {
		b = append(b, h+"\r\n"...)
	}
	p.host.Send(sip.Flow{Remote: m.Flow.Remote}, sip.AppendBody(b, "", nil), 0)
}

// text builds a request from defaults that header lines replace or, with a '-'
// before the name, remove. A line that starts with "body:" is the body.
func (p *phone) text(line string, defaults []string, headers ...string) string {
	body := ""
	fields := slices.Clone(defaults)
	for _, h := range headers {
		name, text, _ := strings.Cut(strings.TrimPrefix(h, "-"), ":")
		if name == "body" {
			body = text
			continue
		}
		if i := slices.IndexFunc(fields, func(f string) bool { return strings.HasPrefix(f, name+":") }); i >= 0 && (h[0] == '-' || i < len(defaults) && fields[i] == defaults[i]) {
			fields[i] = ""
		}
		if h[0] != '-' {
			fields = append(fields, h)
		}
	}
	fields = slices.DeleteFunc(fields, func(f string) bool { return f == "" })
	return line + "\r\n" + strings.Join(fields, "\r\n") + fmt.Sprintf("\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func (p *phone) send(text string) {
	p.host.Send(sip.Flow{Remote: p.to}, []byte(text), 0)
	settle()
}

// take removes and returns the first message that matches, nil if there is none.
func (p *phone) take(match func(*sip.Message) bool) *sip.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.in, match)
	if i < 0 {
		return nil
	}
	m := p.in[i]
	p.in = slices.Delete(p.in, i, i+1)
	return m
}

// call is one dialog, or attempt at one, as the phone sees it.
type call struct {
	p                *phone
	id, tag, toTag   string
	from, to, target string
	cseq             uint32
	method           string
}

var calls int

func (p *phone) call(from, to string) *call {
	calls++
	return &call{p: p, id: fmt.Sprintf("call%d@192.0.2.1", calls), tag: fmt.Sprintf("phone%d", calls), from: from, to: to, target: to, method: "SUBSCRIBE"}
}

// text is the next request of the call.
func (c *call) text(headers ...string) string {
	c.cseq++
	c.p.branch++
	to := "<" + c.to + ">"
	if c.toTag != "" {
		to += ";tag=" + c.toTag
	}
	return c.p.text(c.method+" "+c.target+" SIP/2.0", []string{
		fmt.Sprintf("Via: SIP/2.0/UDP %s;rport;branch=z9hG4bK%s.%d", c.p.addr, c.tag, c.p.branch), "Max-Forwards: 70",
		fmt.Sprintf("From: <%s>;tag=%s", c.from, c.tag), "To: " + to, "Call-ID: " + c.id, fmt.Sprintf("CSeq: %d %s", c.cseq, c.method),
		fmt.Sprintf("Contact: <sip:phone@%s>", c.p.addr), "Event: presence", "Expires: 3600", "Accept: " + pidfType,
	}, headers...)
}

// ask sends a request and gives its final response; nil if there is none yet.
func (c *call) ask(headers ...string) *sip.Message {
	c.p.send(c.text(headers...))
	return c.answer()
}

// wantTrying waits 3.5 s: RFC 4320 section 4.1 has the one provisional response
// go out then (CORE-07), and no earlier.
func (c *call) wantTrying() {
	c.p.t.Helper()
	time.Sleep(3490 * time.Millisecond)
	settle()
	if m := c.answer(); m != nil {
		c.p.t.Fatalf("CORE-07: early\n%s", m.Raw)
	}
	time.Sleep(10 * time.Millisecond)
	settle()
	m := c.answer()
	if m == nil || m.Status() != 100 {
		c.p.t.Fatalf("CORE-07: no 100 after 3.5 s: %v", m)
	}
	if string(m.CallID()) != c.id || m.CSeq() != c.cseq || m.Has(sip.HdrContact) {
		c.p.t.Errorf("CORE-07: 100 is\n%s", m.Raw)
	}
}

func (c *call) answer() *sip.Message {
	m := c.p.take(func(m *sip.Message) bool { return !m.IsRequest() && string(m.CallID()) == c.id && m.CSeq() == c.cseq })
	if m != nil && m.Status() >= 200 && m.Status() < 300 && c.toTag == "" {
		c.toTag = string(m.To().Tag())
		if t, err := sip.ParseNameAddr(m.Header(sip.HdrContact)); err == nil {
			c.target = string(t.URI)
		}
	}
	return m
}

// subscribe asks and wants a status.
func (c *call) subscribe(status int, headers ...string) *sip.Message {
	c.p.t.Helper()
	m := c.ask(headers...)
	if m == nil {
		c.p.t.Fatalf("no answer, want %d", status)
	}
	if m.Status() != status {
		c.p.t.Fatalf("got\n%s\nwant %d", m.Raw, status)
	}
	return m
}

// notified gives the next NOTIFY of the call, nil if there is none.
func (c *call) notified() *sip.Message {
	return c.p.take(func(m *sip.Message) bool { return m.IsRequest() && string(m.CallID()) == c.id })
}

// wantNotify takes the next NOTIFY and checks its state and body.
func (c *call) wantNotify(state, body string) *sip.Message {
	c.p.t.Helper()
	m := c.notified()
	if m == nil {
		c.p.t.Fatalf("no NOTIFY, want %s %q", state, body)
	}
	if got := string(m.Header(sip.HdrSubscriptionState)); got != state || string(m.Body()) != body {
		c.p.t.Fatalf("NOTIFY %s with %q, want %s with %q", got, m.Body(), state, body)
	}
	return m
}

func (c *call) wantSilence() {
	c.p.t.Helper()
	if m := c.notified(); m != nil {
		c.p.t.Fatalf("unexpected\n%s", m.Raw)
	}
}

func header(m *sip.Message, h sip.HeaderID) string { return string(m.Header(h)) }

func wantHeader(t *testing.T, m *sip.Message, h sip.HeaderID, want string) {
	t.Helper()
	if got := header(m, h); got != want {
		t.Errorf("%s: %q, want %q", h, got, want)
	}
}

// step is a part of a test inside a bubble, where there are no subtests: it
// names what failed.
func step(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	defer func(before bool) {
		if t.Failed() && !before {
			t.Errorf("in: %s", name)
		}
	}(t.Failed())
	f(t)
}
