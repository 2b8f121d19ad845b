package main

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"rollcall/sip"
)

// generator is one goroutine with a socket and a table of transactions of its
// own: a phone, many times over. What a scenario adds are tick and ended.
type generator struct {
	run    string // names the presentities, so that those of an earlier run are others
	name   string // makes Call-IDs unique
	domain string
	ep     *sip.Endpoint
	tx     *sip.Transactions
	wheel  *sip.Wheel
	flow   sip.Flow
	tick   func(now time.Time) (time.Time, bool) // starts what is due and says when it wants to be called again
	ended  func(now time.Time, i uint32, status int)
	later  func(now time.Time, key uint32)                 // a timer of the scenario
	state  func(now time.Time, i uint32, m *sip.Message)   // a NOTIFY in order; may be nil
	posted func(now time.Time, target int, m *sip.Message) // the answer to a PUBLISH, nil for none

	mu     sync.Mutex
	inbox  []*sip.Message
	calls  []func(now time.Time)
	failed []sip.ClientID // found not to have left
	wake   chan struct{}
	quit   chan struct{}
	over   sync.WaitGroup

	lost   []uint64 // users of requests that did not leave
	subs   []subscription
	gone   []uint32 // ended, the longest ago first
	oldest int      // of gone
	buf    []byte
	seed   maphash.Seed
	etags  map[int]string // of the publications that prepare made
	misc   tally          // faults that belong to no exchange

	// Live, for whoever watches from outside.
	requests atomic.Int64 // without retransmissions
	sent     atomic.Int64 // with them
	notifies atomic.Int64
	repeats  atomic.Int64 // NOTIFYs that came again
	underway atomic.Int64 // exchanges
	backlog  atomic.Int64 // most messages that waited here
}

// subscription is one dialog, or the place of one that is over.
type subscription struct {
	gen      uint32 // 24 bits
	cseq     uint32 // of our last SUBSCRIBE
	notified uint32 // CSeq of the last NOTIFY, 0 for none
	target   int
	branch   uint64 // hash of the last NOTIFY's
	tag      uint64 // hash of the server's tag, 0 while unknown
	began    time.Time
	over     time.Time // when it ended; zero while it lives
	tally    *tally    // of the exchange that is under way
	timer    sip.Timer
	to       string // To with the server's tag, and where requests go, of one that stays
	contact  string
	expires  int
	kind     uint8
	version  int // of the newest state seen
	answered bool
	seen     bool // the NOTIFY of this exchange
}

// patience is how long a NOTIFY may take after the 200, and how long the place
// of a dialog that is over is kept to know what comes late.
const patience = 64 * sip.T1

// Outcomes of exchanges besides the statuses of SIP.
const (
	statusUnsent   = 0  // the request could not be sent: the generator or its machine has no room
	statusNoNotify = -1 // a 200, and then no NOTIFY
)

const (
	userSubscribe = 1 + iota
	userPublish
)

const (
	timerPatience = iota
	timerScenario
)

func newGenerator(server netip.AddrPort, domain, run string, shard uint8) (*generator, error) {
	g := &generator{
		run: run, name: fmt.Sprintf("%s-%d", run, shard), domain: domain, wake: make(chan struct{}, 1), quit: make(chan struct{}), seed: maphash.MakeSeed(),
		ended: func(time.Time, uint32, int) {}, later: func(time.Time, uint32) {},
		tick: func(time.Time) (time.Time, bool) { return time.Time{}, false },
	}
	g.ep = sip.NewEndpoint(sip.EndpointOptions{Receive: g.receive, Failed: g.unsent, PacketSockets: 1})
	if _, err := g.ep.Listen(sip.UDP, netip.AddrPortFrom(server.Addr(), 0).String()); err != nil {
		g.ep.Close()
		return nil, err
	}
	var err error
	if g.flow, err = g.ep.FlowTo(sip.UDP, server); err != nil {
		g.ep.Close()
		return nil, err
	}
	now := time.Now()
	g.tx, g.wheel = sip.NewTransactions(shard, counting{g}, now), sip.NewWheel(now)
	g.over.Go(g.loop)
	return g, nil
}

func (g *generator) close() {
	close(g.quit)
	g.over.Wait()
	g.ep.Close()
}

// counting counts requests with their retransmissions.
type counting struct{ g *generator }

func (c counting) Send(f sip.Flow, b []byte, token uint64) error {
	return c.SendParts(f, b, nil, token)
}

func (c counting) SendParts(f sip.Flow, head, body []byte, token uint64) error {
	if token != 0 {
		c.g.sent.Add(1)
	}
	return c.g.ep.SendParts(f, head, body, token)
}

func (g *generator) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

func (g *generator) receive(m *sip.Message) {
	g.mu.Lock()
	g.inbox = append(g.inbox, m)
	n := len(g.inbox)
	g.mu.Unlock()
	if n == 1 {
		g.poke()
	}
}

func (g *generator) unsent(id sip.ClientID, _ error) {
	g.mu.Lock()
	g.failed = append(g.failed, id)
	g.mu.Unlock()
	g.poke()
}

// do runs f in the generator's goroutine and waits for it.
func (g *generator) do(f func(now time.Time)) {
	done := make(chan struct{})
	g.mu.Lock()
	g.calls = append(g.calls, func(now time.Time) { f(now); close(done) })
	g.mu.Unlock()
	g.poke()
	<-done
}

// breath is the shortest time a generator waits for a timer. What is due within
// it goes together, so that an open loop costs little of the processor that the
// server shares.
const breath = 200 * time.Microsecond

func (g *generator) loop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var msgs []*sip.Message
	for {
		g.mu.Lock()
		msgs, g.inbox = g.inbox, msgs[:0]
		calls, failed := g.calls, g.failed
		g.calls, g.failed = nil, nil
		g.mu.Unlock()
		g.backlog.Store(max(g.backlog.Load(), int64(len(msgs))))
		now := time.Now()
		for i, m := range msgs {
			g.message(now, m)
			m.Release()
			msgs[i] = nil
		}
		for _, id := range failed {
			if out, ok := g.tx.Fail(id); ok {
				g.lost = append(g.lost, out.User)
			}
		}
		lost := g.lost
		g.lost = nil
		for _, user := range lost {
			g.outcome(now, sip.Outcome{User: user, Status: statusUnsent}, nil)
		}
		g.tx.Advance(now, func(out sip.Outcome) { g.outcome(now, out, nil) })
		g.wheel.Advance(now, func(key uint64) { g.timer(now, key) })
		for _, f := range calls {
			f(now)
		}
		wait := time.Hour
		sooner := func(at time.Time, ok bool) {
			if ok {
				wait = min(wait, time.Until(at))
			}
		}
		sooner(g.tick(now))
		sooner(now, len(g.lost) > 0)
		sooner(g.tx.Next())
		sooner(g.wheel.Next())
		timer.Reset(max(wait, breath))
		select {
		case <-g.quit:
			return
		case <-g.wake:
		case <-timer.C:
		}
	}
}

// tagLen is a tag of ours: generation and place, so no search is needed.
const tagLen = 14

func (g *generator) appendTag(b []byte, i uint32) []byte {
	v := uint64(g.subs[i].gen)<<32 | uint64(i)
	for shift := tagLen*4 - 4; shift >= 0; shift -= 4 {
		b = append(b, "0123456789abcdef"[v>>shift&15])
	}
	return b
}

// of finds the subscription of a tag, or the one that is over.
func (g *generator) of(tag []byte) (uint32, *subscription) {
	v, err := strconv.ParseUint(string(tag), 16, 64)
	i := uint32(v)
	if err != nil || len(tag) != tagLen || int(i) >= len(g.subs) || g.subs[i].gen != uint32(v>>32) {
		return 0, nil
	}
	return i, &g.subs[i]
}

// subscribe opens a subscription. kind is the scenario's own.
func (g *generator) subscribe(now time.Time, target, expires int, kind uint8, t *tally) uint32 {
	var i uint32
	if g.oldest < len(g.gone) && now.Sub(g.subs[g.gone[g.oldest]].over) > patience {
		i = g.gone[g.oldest]
		if g.oldest++; g.oldest > len(g.gone)/2 {
			g.gone = append(g.gone[:0], g.gone[g.oldest:]...)
			g.oldest = 0
		}
	} else {
		g.subs = append(g.subs, subscription{})
		i = uint32(len(g.subs) - 1)
	}
	g.subs[i] = subscription{gen: (g.subs[i].gen + 1) & 0xffffff, target: target, expires: expires, kind: kind}
	g.refresh(now, i, t)
	return i
}

// refresh sends the next SUBSCRIBE of a subscription.
func (g *generator) refresh(now time.Time, i uint32, t *tally) {
	s := &g.subs[i]
	s.cseq++
	s.began, s.tally, s.answered, s.seen = now, t, false, false
	t.started++
	g.underway.Add(1)
	user := uint64(userSubscribe)<<56 | uint64(s.gen)<<32 | uint64(i)
	id := g.tx.Open(user)
	b := append(g.buf[:0], "SUBSCRIBE "...)
	if s.contact != "" {
		b = append(b, s.contact...)
	} else {
		b = g.appendPresentity(b, s.target)
	}
	b = g.appendVia(b, id)
	b = append(b, "From: <sip:w"...)
	b = strconv.AppendUint(b, uint64(i), 10)
	b = append(b, '@')
	b = append(b, g.domain...)
	b = append(b, ">;tag="...)
	b = g.appendTag(b, i)
	b = append(b, "\r\nTo: "...)
	if s.to != "" {
		b = append(b, s.to...)
	} else {
		b = append(b, '<')
		b = g.appendPresentity(b, s.target)
		b = append(b, '>')
	}
	b = append(b, "\r\nCall-ID: "...)
	b = append(b, g.name...)
	b = append(b, '-')
	b = g.appendTag(b, i)
	b = append(b, "\r\nCSeq: "...)
	b = strconv.AppendUint(b, uint64(s.cseq), 10)
	b = append(b, " SUBSCRIBE\r\nMax-Forwards: 70\r\nContact: <sip:load@"...)
	b = g.flow.Local.AppendTo(b)
	b = append(b, ">\r\nEvent: presence\r\nAccept: application/pidf+xml\r\nExpires: "...)
	b = strconv.AppendUint(b, uint64(s.expires), 10)
	b = append(b, "\r\n"...)
	g.request(now, id, user, sip.AppendBody(b, "", nil))
}

// publish sends a PUBLISH with a numbered state; etag is that of the one before.
func (g *generator) publish(now time.Time, target, version int, etag string) {
	user := uint64(userPublish)<<56 | uint64(target)
	id := g.tx.Open(user)
	b := append(g.buf[:0], "PUBLISH "...)
	b = g.appendPresentity(b, target)
	b = g.appendVia(b, id)
	b = append(b, "From: <"...)
	b = g.appendPresentity(b, target)
	b = append(b, ">;tag=p"...)
	b = strconv.AppendInt(b, int64(version), 10)
	b = append(b, "\r\nTo: <"...)
	b = g.appendPresentity(b, target)
	b = append(b, ">\r\nCall-ID: "...)
	b = append(b, g.name...)
	b = fmt.Appendf(b, "-p%d-%d\r\nCSeq: 1 PUBLISH\r\nMax-Forwards: 70\r\nEvent: presence\r\nExpires: 3600\r\n", target, version)
	if etag != "" {
		b = append(b, "SIP-If-Match: "...)
		b = append(b, etag...)
		b = append(b, "\r\n"...)
	}
	body := fmt.Appendf(nil, `<?xml version="1.0" encoding="UTF-8"?>
<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:rpid="urn:ietf:params:xml:ns:pidf:rpid" entity="%s"><tuple id="t1"><status><basic>open</basic></status><contact priority="0.8">sip:p%d@192.0.2.1:5060</contact><note>%s%d;</note><timestamp>2026-01-01T00:00:00Z</timestamp></tuple><dm:person id="p1"><rpid:activities><rpid:away/></rpid:activities></dm:person></presence>
`, g.appendPresentity(nil, target), target, versionMark, version)
	g.request(now, id, user, sip.AppendBody(b, "application/pidf+xml", body))
}

// versionMark stands before the number of a state.
const versionMark = "load state "

// versionOf reads the number of a state; -1 for none.
func versionOf(body []byte) int {
	_, rest, ok := bytes.Cut(body, []byte(versionMark))
	if !ok {
		return -1
	}
	number, _, _ := bytes.Cut(rest, []byte{';'})
	v, err := strconv.Atoi(string(number))
	if err != nil {
		return -1
	}
	return v
}

func (g *generator) appendPresentity(b []byte, target int) []byte {
	b = append(b, "sip:p"...)
	b = strconv.AppendInt(b, int64(target), 10)
	b = append(b, '-')
	b = append(b, g.run...)
	b = append(b, '@')
	return append(b, g.domain...)
}

func (g *generator) appendVia(b []byte, id sip.ClientID) []byte {
	b = append(b, " SIP/2.0\r\nVia: SIP/2.0/UDP "...)
	b = g.flow.Local.AppendTo(b)
	b = append(b, ";rport;branch="...)
	b = g.tx.AppendBranch(b, id)
	return append(b, "\r\n"...)
}

// request sends the request in b, which is g.buf.
func (g *generator) request(now time.Time, id sip.ClientID, user uint64, b []byte) {
	g.buf = b[:0]
	g.requests.Add(1)
	if g.tx.Request(now, id, g.flow, bytes.Clone(b), nil) != nil {
		// As if it were lost on its way, but without anybody to repeat it.
		g.lost = append(g.lost, user)
	}
}

func (g *generator) message(now time.Time, m *sip.Message) {
	if m.IsRequest() {
		g.answer(now, m)
		return
	}
	if out, final, ok := g.tx.Response(now, m); ok && final {
		g.outcome(now, out, m)
	}
}

// outcome is how a request of ours ended; m is nil without a response.
func (g *generator) outcome(now time.Time, out sip.Outcome, m *sip.Message) {
	i := uint32(out.User)
	if out.User>>56 == userPublish {
		if out.Status != 200 {
			g.misc.fault("PUBLISH "+strconv.Itoa(out.Status), 1)
			m = nil
		}
		if g.posted != nil {
			g.posted(now, int(i), m)
		}
		return
	}
	s := &g.subs[i]
	if s.gen != uint32(out.User>>32)&0xffffff || s.tally == nil {
		return
	}
	if out.Status != 200 {
		g.end(now, i, out.Status)
		return
	}
	s.answered = true
	if tag := g.hash(m.To().Tag()); s.tag == 0 {
		s.tag = tag
	} else if s.tag != tag {
		s.tally.fault("200: another dialog's To tag", 1)
	}
	if s.expires > 0 && s.to == "" {
		s.to = string(m.Header(sip.HdrTo))
		if c, err := sip.ParseNameAddr(m.Header(sip.HdrContact)); err == nil {
			s.contact = string(c.URI)
		} else {
			s.tally.fault("200: no Contact", 1)
		}
	}
	if s.seen {
		g.end(now, i, 200)
	} else {
		s.timer = g.wheel.Add(now.Add(patience), timerPatience<<56|uint64(s.gen)<<32|uint64(i))
	}
}

func (g *generator) hash(b []byte) uint64 { return maphash.Bytes(g.seed, b) | 1 }

// end ends an exchange, and the subscription unless it stays.
func (g *generator) end(now time.Time, i uint32, status int) {
	s := &g.subs[i]
	g.wheel.Cancel(s.timer)
	s.timer = 0
	s.tally.end(status, now.Sub(s.began))
	s.tally = nil
	g.underway.Add(-1)
	if s.expires == 0 || s.to == "" || status == 481 {
		s.over, s.to, s.contact = now, "", ""
		g.gone = append(g.gone, i)
	}
	g.ended(now, i, status)
}

func (g *generator) timer(now time.Time, key uint64) {
	i := uint32(key)
	if key>>56 == timerScenario {
		g.later(now, i)
		return
	}
	if s := &g.subs[i]; s.gen == uint32(key>>32)&0xffffff && s.tally != nil && s.answered && !s.seen {
		s.timer = 0
		g.end(now, i, statusNoNotify)
	}
}

// after has later called with a key.
func (g *generator) after(now time.Time, d time.Duration, key uint32) {
	g.wheel.Add(now.Add(d), timerScenario<<56|uint64(key))
}

// answer takes a request of the server.
func (g *generator) answer(now time.Time, m *sip.Message) {
	status := 200
	if m.Method() != sip.NOTIFY {
		status = 405
		g.misc.fault("request "+string(m.MethodToken()), 1)
	} else if i, s := g.of(m.To().Tag()); s == nil {
		status = 481
		g.misc.fault("NOTIFY for no dialog", 1)
	} else if branch := g.hash(m.Via().Branch); s.notified == m.CSeq() && s.branch == branch {
		g.repeats.Add(1) // its dialog's only one with this CSeq: the answer is the same again
	} else {
		defer g.notified(now, i, m, branch) // after the answer has left, as it must not wait
	}
	b := sip.AppendBody(sip.AppendResponse(make([]byte, 0, 512), m, status, "", ""), "", nil)
	g.ep.Send(sip.ResponseFlow(m), b, 0)
}

// notified checks a NOTIFY.
func (g *generator) notified(now time.Time, i uint32, m *sip.Message, branch uint64) {
	s := &g.subs[i]
	t := s.tally
	if t == nil {
		t = &g.misc
	}
	g.notifies.Add(1)
	if s.notified != 0 && m.CSeq() != s.notified+1 {
		t.fault("NOTIFY: CSeq not one more", 1)
	}
	s.notified, s.branch = m.CSeq(), branch
	if tag := g.hash(m.From().Tag()); s.tag == 0 {
		s.tag = tag
	} else if s.tag != tag {
		t.fault("NOTIFY: another dialog's From tag", 1)
	}
	if id := m.CallID(); len(id) <= tagLen || string(id[len(id)-tagLen:]) != string(m.To().Tag()) {
		t.fault("NOTIFY: another dialog's Call-ID", 1)
	}
	want := "active"
	if s.expires == 0 {
		want = "terminated"
	}
	state, _, _ := bytes.Cut(m.Header(sip.HdrSubscriptionState), []byte{';'})
	if string(bytes.TrimSpace(state)) != want {
		t.fault("NOTIFY: Subscription-State "+string(state), 1)
	}
	if kind, _ := m.ContentType(); string(kind) != "application/pidf+xml" || len(m.Body()) == 0 {
		t.fault("NOTIFY: no body", 1)
	} else if v := versionOf(m.Body()); v < s.version {
		t.fault("NOTIFY: older state than before", 1)
	} else {
		s.version = v
	}
	if g.state != nil {
		g.state(now, i, m)
	}
	s = &g.subs[i] // state may have begun another
	if s.seen = true; s.answered && s.tally != nil {
		g.end(now, i, 200)
	}
}

// window is how many requests of a preparation are under way at a time.
const window = 32

// prepare publishes a first state of presentities and waits. It stops at the
// first that is refused or not answered.
func (g *generator) prepare(targets []int) error {
	if len(targets) == 0 {
		return nil
	}
	done := make(chan error, 1)
	g.do(func(now time.Time) {
		next := min(window, len(targets))
		left := len(targets)
		g.etags = make(map[int]string, left)
		g.posted = func(now time.Time, target int, m *sip.Message) {
			if m == nil {
				next = len(targets)
				select {
				case done <- errors.New("a presentity could not be published"):
				default:
				}
				return
			}
			g.etags[target] = string(m.Header(sip.HdrSIPETag))
			if left--; left == 0 {
				done <- nil
			}
			if next < len(targets) {
				g.publish(now, targets[next], 0, "")
				next++
			}
		}
		for _, target := range targets[:next] {
			g.publish(now, target, 0, "")
		}
	})
	return <-done
}
