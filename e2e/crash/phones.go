package crash

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"rollcall/pa/winfo"
	"rollcall/rls/rlmi"
	"rollcall/sip"
)

const domain = "example.com"

func presentityURI(i int) string { return fmt.Sprintf("sip:p%d@%s", i, domain) }
func listURI(i int) string       { return fmt.Sprintf("sip:list%d@%s", i, domain) }
func watcherURI(i int) string    { return fmt.Sprintf("sip:w%d@%s", i, domain) }

// phones are all clients: one goroutine owns them, their requests and what they
// remember.
type phones struct {
	opt    Options
	l      *ledger
	server netip.AddrPort
	ep     *sip.Endpoint
	tx     *sip.Transactions
	flow   sip.Flow
	seed   maphash.Seed
	rng    *rand.Rand
	name   string

	publishers []*publisher
	ofPresent  [][]*publisher // by presentity
	watchers   []*watcher
	lists      [][]int // presentities
	byCallID   map[string]*dialog
	ended      []*dialog // the newest last
	users      map[uint64]func(now time.Time, status int, m *sip.Message)
	nextUser   uint64
	underway   int // requests

	rate     float64 // requests a second; 0: none
	due      float64
	lastTick time.Time
	onAck    func() // called at the next acknowledgement, once
	heard    time.Time

	mu    sync.Mutex
	inbox []*sip.Message
	calls []func(now time.Time)
	fails []sip.ClientID
	wake  chan struct{}
	quit  chan struct{}
	over  sync.WaitGroup

	count Counts
}

// Counts is what the phones did and got.
type Counts struct {
	Requests      map[string]int `json:"requests"`       // by kind
	Acknowledged  map[string]int `json:"acknowledged"`   // of them
	InDoubt       map[string]int `json:"in_doubt"`       // of them: the server ended before it answered
	Refused       int            `json:"refused"`        // 503
	Notifies      int            `json:"notifies"`       // without repetitions
	NotifyRepeats int            `json:"notify_repeats"` // the same bytes again
	Forked        int            `json:"forked"`         // dialogs beside the one that was acknowledged
	Unanswered    int            `json:"unanswered"`     // timer F
	Probes        int            `json:"probes"`         // ended dialogs that were asked whether they are
}

// watcher is a user with at most one dialog at a time.
type watcher struct {
	kind   watchKind
	id     int
	target int
	d      *dialog
	twice  bool // had dialogs of which it does not know
}

func newPhones(opt Options, l *ledger, server netip.AddrPort) (*phones, error) {
	p := &phones{opt: opt, l: l, server: server, seed: maphash.MakeSeed(), rng: rand.New(rand.NewPCG(opt.Seed, 1)), name: fmt.Sprintf("c%x", time.Now().UnixNano()),
		byCallID: make(map[string]*dialog), users: make(map[uint64]func(time.Time, int, *sip.Message)), wake: make(chan struct{}, 1), quit: make(chan struct{}),
		count: Counts{Requests: map[string]int{}, Acknowledged: map[string]int{}, InDoubt: map[string]int{}}}
	p.ofPresent = make([][]*publisher, opt.Presentities)
	for i := range opt.Presentities + opt.Presentities/3 { // a third has two
		pub := newPublisher(l, i, i%opt.Presentities)
		p.publishers = append(p.publishers, pub)
		p.ofPresent[pub.of] = append(p.ofPresent[pub.of], pub)
	}
	for range opt.Lists {
		members := p.rng.Perm(opt.Presentities)[:min(opt.Members, opt.Presentities)]
		slices.Sort(members)
		p.lists = append(p.lists, members)
	}
	add := func(kind watchKind, n, targets int) {
		for i := range n {
			p.watchers = append(p.watchers, &watcher{kind: kind, id: len(p.watchers), target: i % targets})
		}
	}
	add(watchPresence, opt.Watchers, opt.Presentities)
	add(watchList, opt.ListWatchers, max(opt.Lists, 1))
	add(watchWatchers, opt.Owners, opt.Presentities)

	p.ep = sip.NewEndpoint(sip.EndpointOptions{Receive: p.receive, Failed: p.failed, PacketSockets: 1})
	var err error
	for range 20 { // both transports on one port
		var at netip.AddrPort
		if at, err = p.ep.Listen(sip.UDP, "127.0.0.1:0"); err != nil {
			break
		}
		if _, err = p.ep.Listen(sip.TCP, at.String()); err == nil {
			break
		}
		p.ep.Close()
		p.ep = sip.NewEndpoint(sip.EndpointOptions{Receive: p.receive, Failed: p.failed, PacketSockets: 1})
	}
	if err == nil {
		p.flow, err = p.ep.FlowTo(sip.UDP, server)
	}
	if err != nil {
		p.ep.Close()
		return nil, err
	}
	now := time.Now()
	p.tx, p.lastTick = sip.NewTransactions(0, p.ep, now), now
	p.over.Go(p.loop)
	return p, nil
}

func (p *phones) close() {
	close(p.quit)
	p.over.Wait()
	p.ep.Close()
}

func (p *phones) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *phones) receive(m *sip.Message) {
	p.mu.Lock()
	p.inbox = append(p.inbox, m)
	p.mu.Unlock()
	p.poke()
}

func (p *phones) failed(id sip.ClientID, _ error) {
	p.mu.Lock()
	p.fails = append(p.fails, id)
	p.mu.Unlock()
	p.poke()
}

// later runs f in the phones' goroutine.
func (p *phones) later(f func(now time.Time)) {
	p.mu.Lock()
	p.calls = append(p.calls, f)
	p.mu.Unlock()
	p.poke()
}

// do runs f in the phones' goroutine and waits for it.
func (p *phones) do(f func(now time.Time)) {
	done := make(chan struct{})
	p.later(func(now time.Time) { f(now); close(done) })
	<-done
}

// tickEvery is how often new requests are begun.
const tickEvery = 5 * time.Millisecond

func (p *phones) loop() {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	for {
		select {
		case <-p.quit:
			return
		case <-p.wake:
		case <-ticker.C:
		}
		p.mu.Lock()
		msgs, calls, fails := p.inbox, p.calls, p.fails
		p.inbox, p.calls, p.fails = nil, nil, nil
		p.mu.Unlock()
		now := time.Now()
		for _, m := range msgs {
			p.message(now, m)
			m.Release()
		}
		for _, id := range fails {
			if out, ok := p.tx.Fail(id); ok {
				p.outcome(now, out.User, 408, nil)
			}
		}
		p.tx.Advance(now, func(out sip.Outcome) { p.outcome(now, out.User, 408, nil) })
		for _, f := range calls {
			f(now)
		}
		p.due = min(p.due+now.Sub(p.lastTick).Seconds()*p.rate, 50)
		p.lastTick = now
		for ; p.due >= 1; p.due-- {
			p.act(now)
		}
	}
}

func (p *phones) message(now time.Time, m *sip.Message) {
	if m.IsRequest() {
		p.notify(now, m)
		return
	}
	if out, final, ok := p.tx.Response(now, m); ok && final {
		p.outcome(now, out.User, out.Status, m)
	}
}

func (p *phones) outcome(now time.Time, user uint64, status int, m *sip.Message) {
	f := p.users[user]
	delete(p.users, user)
	p.underway--
	switch status {
	case 408:
		p.count.Unanswered++
	case 503:
		p.count.Refused++
	}
	f(now, status, m)
}

// acknowledged counts an answer.
func (p *phones) acknowledged(kind string, status int, spanned bool) {
	if spanned {
		p.count.InDoubt[kind]++
	}
	if status != 200 {
		return
	}
	p.count.Acknowledged[kind]++
	if f := p.onAck; f != nil {
		p.onAck = nil
		f()
	}
}

// send sends a request; head is all of it behind the start line and Via up to
// the body's own fields.
func (p *phones) send(now time.Time, kind, method, uri, head, contentType string, doc []byte, then func(time.Time, int, *sip.Message)) {
	p.count.Requests[kind]++
	p.nextUser++
	p.users[p.nextUser] = then
	p.underway++
	id := p.tx.Open(p.nextUser)
	b := fmt.Appendf(nil, "%s %s SIP/2.0\r\nVia: SIP/2.0/UDP %v;rport;branch=", method, uri, p.flow.Local)
	b = append(p.tx.AppendBranch(b, id), "\r\nMax-Forwards: 70\r\n"...)
	b = append(b, head...)
	if p.tx.Request(now, id, p.flow, sip.AppendBody(b, contentType, doc), nil) != nil {
		user := p.nextUser // which learns it later: it is about to note the request
		p.later(func(now time.Time) { p.outcome(now, user, 408, nil) })
	}
}

// act begins one request that somebody may want.
func (p *phones) act(now time.Time) {
	if p.rng.IntN(100) < 55 {
		pub := p.publishers[p.rng.IntN(len(p.publishers))]
		switch n := p.rng.IntN(100); {
		case pub.kind != "":
		case pub.etag == "":
			p.publish(now, pub, pubInitial)
		case n < 75:
			p.publish(now, pub, pubModify)
		case n < 90:
			p.publish(now, pub, pubRefresh)
		default:
			p.publish(now, pub, pubRemove)
		}
		return
	}
	w := p.watchers[p.rng.IntN(len(p.watchers))]
	switch {
	case w.d == nil:
		p.subscribe(now, w)
	case w.d.req != "" || !w.d.open:
	case p.rng.IntN(100) < 70:
		p.resubscribe(now, w.d, subRefresh, nil)
	default:
		p.resubscribe(now, w.d, subEnd, nil)
	}
}

// lifetime of publications and subscriptions in seconds: nothing runs out
// during a run, so what is missing was lost.
const lifetime = 3600

func (p *phones) publish(now time.Time, pub *publisher, kind string) {
	pub.begin(kind, now)
	uri := presentityURI(pub.of)
	head := fmt.Sprintf("From: <%s>;tag=p%d\r\nTo: <%s>\r\nCall-ID: %s-pub-%d-%d\r\nCSeq: 1 PUBLISH\r\nEvent: presence\r\n", uri, pub.id, uri, p.name, pub.id, p.nextUser)
	expires := lifetime
	if kind == pubRemove {
		expires = 0
	}
	head += fmt.Sprintf("Expires: %d\r\n", expires)
	if kind != pubInitial {
		head += "SIP-If-Match: " + pub.etag + "\r\n"
	}
	contentType, doc := "", []byte(nil)
	if kind == pubInitial || kind == pubModify {
		contentType = "application/pidf+xml"
		doc = fmt.Appendf(nil, `<?xml version="1.0" encoding="UTF-8"?>
<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="%s"><tuple id="t%d"><status><basic>open</basic></status><note>%s</note></tuple></presence>`, uri, pub.id, mark(pub.id, pub.seq))
	}
	p.send(now, kind, "PUBLISH", uri, head, contentType, doc, func(now time.Time, status int, m *sip.Message) {
		etag := ""
		if m != nil {
			etag = string(m.Header(sip.HdrSIPETag))
		}
		p.acknowledged(kind, status, pub.epoch != p.l.epoch)
		pub.answered(status, etag, now)
	})
}

func (p *phones) subscribe(now time.Time, w *watcher) {
	p.nextUser++
	d := &dialog{l: p.l, kind: w.kind, watcher: w.id, target: w.target, legs: map[string]*leg{},
		callID: fmt.Sprintf("%s-%d-%d", p.name, w.id, p.nextUser), tag: fmt.Sprintf("w%d-%d", w.id, p.nextUser)}
	p.byCallID[d.callID] = d
	w.d = d
	p.resubscribe(now, d, subInitial, nil)
}

// who is the user of a dialog.
func (p *phones) who(d *dialog) string {
	if d.kind == watchWatchers {
		return presentityURI(d.target)
	}
	return watcherURI(d.watcher)
}

func (p *phones) resubscribe(now time.Time, d *dialog, req string, then func(status int)) {
	d.begin(req, now)
	uri := presentityURI(d.target)
	event, accept := "presence", "application/pidf+xml"
	switch d.kind {
	case watchList:
		uri = listURI(d.target)
		accept = "multipart/related, application/rlmi+xml, application/pidf+xml"
	case watchWatchers:
		event, accept = "presence.winfo", winfo.MediaType
	}
	to := d.to
	if to == "" {
		to = "<" + uri + ">"
	}
	if d.contact != "" {
		uri = d.contact
	}
	expires := lifetime
	if req == subEnd {
		expires = 0
	}
	head := fmt.Sprintf("From: <%s>;tag=%s\r\nTo: %s\r\nCall-ID: %s\r\nCSeq: %d SUBSCRIBE\r\nContact: <sip:ua@%v>\r\nEvent: %s\r\nAccept: %s\r\nExpires: %d\r\n",
		p.who(d), d.tag, to, d.callID, d.cseq, p.flow.Local, event, accept, expires)
	if d.kind == watchList {
		head += "Supported: eventlist\r\n"
	}
	p.send(now, req, "SUBSCRIBE", uri, head, "", nil, func(now time.Time, status int, m *sip.Message) {
		if status == 200 && req == subInitial {
			d.to, d.remote = string(m.Header(sip.HdrTo)), string(m.To().Tag())
			if c, err := sip.ParseNameAddr(m.Header(sip.HdrContact)); err == nil {
				d.contact = string(c.URI)
			}
		}
		p.acknowledged(req, status, d.epoch != p.l.epoch)
		again := d.answered(status, now)
		w := p.watchers[d.watcher]
		w.twice = w.twice || d.twice
		if d.ended && w.d == d || again && req == subInitial {
			w.d = nil
			p.ended = append(p.ended, d)
		}
		if then != nil {
			then(status)
		}
	})
}

// notify takes a request of the server.
func (p *phones) notify(now time.Time, m *sip.Message) {
	p.heard = now
	status := 200
	d := p.byCallID[string(m.CallID())]
	switch {
	case m.Method() != sip.NOTIFY:
		status = 405
		p.l.fault("request "+string(m.MethodToken()), "")
	case d == nil || string(m.To().Tag()) != d.tag:
		status = 481
		p.l.fault("NOTIFY for no dialog", "Call-ID %s", m.CallID())
	default:
		state, _, _ := strings.Cut(string(m.Header(sip.HdrSubscriptionState)), ";")
		fresh := false
		legs := len(d.legs)
		status = d.notified(string(m.From().Tag()), m.CSeq(), p.hash(m.Raw), strings.TrimSpace(state), func() (body, error) {
			fresh = true
			return parse(d.kind, m)
		})
		if fresh {
			p.count.Notifies++
		} else {
			p.count.NotifyRepeats++
		}
		if legs == 1 && len(d.legs) == 2 {
			p.count.Forked++
		}
		if w := p.watchers[d.watcher]; len(d.legs) > 1 {
			w.twice = true
		}
		if w := p.watchers[d.watcher]; w.d == d && d.ended && d.req == "" {
			w.d = nil
			p.ended = append(p.ended, d)
		}
	}
	p.ep.Send(sip.ResponseFlow(m), sip.AppendBody(sip.AppendResponse(nil, m, status, "", ""), "", nil), 0)
}

// hash is of a NOTIFY as it was sent, whichever way.
func (p *phones) hash(raw []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(p.seed)
	for line := range bytes.Lines(raw) {
		if !bytes.HasPrefix(line, []byte("Via:")) {
			h.Write(line)
		}
	}
	return h.Sum64()
}

// parse reads the body of a NOTIFY. It keeps nothing of the message.
func parse(kind watchKind, m *sip.Message) (b body, err error) {
	if len(m.Body()) == 0 {
		return b, nil
	}
	switch kind {
	case watchPresence:
		b.full, b.seen = true, marks(m.Body())
	case watchList:
		n, err := rlmi.Parse(string(m.Header(sip.HdrContentType)), bytes.Clone(m.Body()))
		if err != nil {
			return b, err
		}
		b.versioned, b.version, b.full = true, int64(n.List.Version), n.List.FullState
		b.members = make(map[string]map[[2]int]bool)
		for _, r := range n.List.Resources {
			b.members[r.URI] = nil
			if len(r.Instances) == 1 {
				part, _ := n.Part(r.Instances[0].CID)
				b.members[r.URI] = marks(part.Body)
			}
		}
	case watchWatchers:
		doc, err := winfo.Parse(bytes.Clone(m.Body()))
		if err != nil {
			return b, err
		}
		if !doc.Full {
			return b, fmt.Errorf("watcher information is partial")
		}
		b.versioned, b.version, b.full, b.who = true, int64(doc.Version), true, make(map[string]bool)
		for _, l := range doc.Lists {
			for _, w := range l.Watchers {
				if w.Status == winfo.Active {
					b.who[w.URI] = true
				}
			}
		}
	}
	return b, nil
}

// died notes that the server's process has ended, and how.
func (p *phones) died(at time.Time) {
	p.l.killed = append(p.l.killed, at)
	p.l.epoch++
	if at.IsZero() {
		return
	}
	for _, pub := range p.publishers {
		pub.died()
	}
	for _, w := range p.watchers {
		if _, risk := p.l.mayBeLost(p.lastAck(w)); risk { // its end, for instance
			w.twice = true
		}
	}
}

// check compares what everybody holds with the truth. Nothing may be under way.
func (p *phones) check() {
	names := make(map[int]map[string]bool) // certain watchers by presentity
	maybe := make(map[int]map[string]bool)
	note := func(to map[int]map[string]bool, presentity int, uri string) {
		if to[presentity] == nil {
			to[presentity] = map[string]bool{}
		}
		to[presentity][uri] = true
	}
	for _, w := range p.watchers {
		if w.kind == watchWatchers {
			continue
		}
		targets := []int{w.target}
		if w.kind == watchList {
			targets = p.lists[w.target]
		}
		for _, t := range targets {
			switch _, risk := p.l.mayBeLost(p.lastAck(w)); {
			case w.twice || risk:
				note(maybe, t, watcherURI(w.id))
			case w.d != nil && w.d.open:
				note(names, t, watcherURI(w.id))
			}
		}
	}
	for _, w := range p.watchers {
		d := w.d
		if d == nil || !d.open {
			continue
		}
		d.quiet()
		if _, risk := p.l.mayBeLost(d.acked.epoch, d.acked.at); risk {
			continue
		}
		g := d.own()
		if g == nil {
			p.l.fault("200 and no NOTIFY", "%v", d)
			continue
		}
		switch d.kind {
		case watchPresence:
			p.compare(d.String(), w.target, g.seen)
		case watchList:
			if len(g.members) != len(p.lists[w.target]) {
				p.l.fault("members missing", "%v has %d of %d", d, len(g.members), len(p.lists[w.target]))
			}
			for _, t := range p.lists[w.target] {
				p.compare(d.String(), t, g.members[presentityURI(t)])
			}
		case watchWatchers:
			var missing, extra []string
			for uri := range names[w.target] {
				if !g.who[uri] {
					missing = append(missing, uri)
				}
			}
			for uri := range g.who {
				if !names[w.target][uri] && !maybe[w.target][uri] {
					extra = append(extra, uri)
				}
			}
			if len(missing)+len(extra) > 0 {
				p.l.fault("watcher information is wrong", "%v: missing %v, not subscribed %v", d, missing, extra)
			}
		}
	}
}

// lastAck is when a watcher's state was acknowledged last.
func (p *phones) lastAck(w *watcher) (int, time.Time) {
	if w.d != nil {
		return w.d.acked.epoch, w.d.acked.at
	}
	for i := len(p.ended) - 1; i >= 0; i-- {
		if p.ended[i].watcher == w.id {
			return p.ended[i].acked.epoch, p.ended[i].acked.at
		}
	}
	return p.l.epoch, time.Time{}
}

func (p *phones) compare(who string, presentity int, seen map[[2]int]bool) {
	for _, pub := range p.ofPresent[presentity] {
		pub.check(who, seen)
	}
	for id := range seen {
		if id[0] >= len(p.publishers) || p.publishers[id[0]].of != presentity {
			p.l.fault("state of somebody else seen", "%s sees %v of presentity %d", who, id, presentity)
		}
	}
}

// probes is how many ended dialogs are asked after a restart.
const probes = 40

// refreshAll refreshes everything that is there and asks some of the ended
// dialogs, a few at a time: an acknowledgement of what is lost shows here.
func (p *phones) refreshAll(done func()) {
	var work []func(now time.Time)
	for _, pub := range p.publishers {
		if pub.etag != "" {
			work = append(work, func(now time.Time) { p.publish(now, pub, pubRefresh) })
		}
	}
	for _, w := range p.watchers {
		if d := w.d; d != nil && d.open {
			work = append(work, func(now time.Time) { p.resubscribe(now, d, subRefresh, nil) })
		}
	}
	p.ended = slices.DeleteFunc(p.ended, func(d *dialog) bool { return d.to == "" })
	if n := len(p.ended) - 4*probes; n > 0 {
		p.ended = slices.Delete(p.ended, 0, n)
	}
	for _, d := range p.ended[max(0, len(p.ended)-probes):] {
		if d.req == "" {
			p.count.Probes++
			work = append(work, func(now time.Time) { p.resubscribe(now, d, subRefresh, nil) })
		}
	}
	var more func(now time.Time)
	more = func(now time.Time) {
		for range min(20, len(work)) {
			work[0](now)
			work = work[1:]
		}
		if len(work) == 0 {
			done()
			return
		}
		time.AfterFunc(tickEvery, func() { p.later(more) })
	}
	more(time.Now())
}

// waitsFor names what is under way, for an error.
func (p *phones) waitsFor() string {
	kinds := map[string]int{}
	for _, pub := range p.publishers {
		if pub.kind != "" {
			kinds[pub.kind]++
		}
	}
	for _, d := range p.byCallID {
		if d.req != "" {
			kinds[d.req]++
		}
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(kinds)) {
		fmt.Fprintf(&b, " %d %s", kinds[k], k)
	}
	return b.String()
}
