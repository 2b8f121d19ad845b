package sip

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of traces.
const (
	maxTraces  = 8       // at a time; Start refuses more
	traceQueue = 1024    // messages that wait for one reader; more are counted as lost
	traceBytes = 4 << 20 // octets that wait for one reader; more are counted as lost

	DefaultTraceTime = 10 * time.Minute
	MaxTraceTime     = 24 * time.Hour
)

// Errors of Trace.Start and Tap.Next.
var (
	ErrTraceFilter = errors.New("sip: a trace needs a peer, a URI or a Call-ID")
	ErrTraceCount  = errors.New("sip: " + strconv.Itoa(maxTraces) + " traces are running already")
	ErrTraceTime   = errors.New("sip: a trace runs for more than 0 and at most 24 h")
	ErrTraceOver   = errors.New("the time is over")
	ErrTraceClosed = errors.New("the server stops")
)

// TraceFilter picks messages; of the fields that are set, all must agree.
type TraceFilter struct {
	Peer   netip.Prefix // who sends to us or is sent to
	Port   uint16       // the peer's, 0 for any
	CallID string       // octet by octet
	// URI is named by the Request-URI, From, To, a Contact or a
	// P-Asserted-Identity. Scheme, user and host count as in URI.Key, parameters
	// do not, the port only if URI has one.
	URI string
}

// ParsePeer reads an address, a prefix, or an address and port into a filter.
func ParsePeer(s string) (f TraceFilter, err error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		f.Peer = netip.PrefixFrom(a.Unmap().WithZone(""), a.Unmap().BitLen())
		return f, nil
	}
	if a, err := netip.ParseAddrPort(s); err == nil {
		f.Peer, f.Port = netip.PrefixFrom(a.Addr().Unmap().WithZone(""), a.Addr().Unmap().BitLen()), a.Port()
		return f, nil
	}
	if f.Peer, err = netip.ParsePrefix(s); err != nil {
		return TraceFilter{}, errors.New(strconv.Quote(s) + " is not an address, ADDRESS:PORT or ADDRESS/BITS")
	}
	return f, nil
}

// TraceEntry is a message as it was on the wire, except that folded lines are
// joined and that the answers of digest authentication and other credentials
// are overwritten with x: with an answer and its nonce a password can be guessed
// at leisure, traces get passed around, and no fault is found by them.
type TraceEntry struct {
	Time time.Time
	Dir  Direction
	Flow Flow
	Raw  []byte // shared by all traces: not to be changed
	Note string // what became of it when that is not the usual, for people
	Lost uint64 // messages before it that found the queue full

}

// Trace copies messages to whoever wants to see them. While nobody does, a
// message costs one atomic load. A nil *Trace is always off. Any number of
// goroutines may use one.
type Trace struct {
	taps atomic.Pointer[[]*Tap] // never changed in place; nil while off

	mu     sync.Mutex
	closed bool
}

// Tap is one running trace. It has one reader.
type Tap struct {
	t      *Trace
	filter TraceFilter
	key    string // of filter.URI
	port   bool   // the port counts
	queue  chan TraceEntry
	waits  atomic.Int64 // octets in queue
	lost   atomic.Uint64
	over   chan struct{}
	why    error // set before over is closed
	timer  *time.Timer
}

// Start begins a trace that ends after d, at most 24 h, or with Stop. The
// error is one of ErrTraceFilter, ErrTraceCount, ErrTraceTime and
// ErrTraceClosed, or that of ParseURI.
func (t *Trace) Start(f TraceFilter, d time.Duration) (*Tap, error) {
	if !f.Peer.IsValid() && f.CallID == "" && f.URI == "" {
		return nil, ErrTraceFilter
	}
	if d <= 0 || d > MaxTraceTime {
		return nil, ErrTraceTime
	}
	p := &Tap{t: t, filter: f, queue: make(chan TraceEntry, traceQueue), over: make(chan struct{})}
	if f.URI != "" {
		u, err := ParseURI(f.URI)
		if err != nil {
			return nil, err
		}
		p.port = u.Port != 0
		p.key = traceKey(u, p.port)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	taps := t.running()
	switch {
	case t.closed:
		return nil, ErrTraceClosed
	case len(taps) >= maxTraces:
		return nil, ErrTraceCount
	}
	all := append(append(make([]*Tap, 0, len(taps)+1), taps...), p)
	t.taps.Store(&all)
	p.timer = time.AfterFunc(d, func() { p.end(ErrTraceOver) })
	return p, nil
}

// Running is the number of traces.
func (t *Trace) Running() int { return len(t.running()) }

func (t *Trace) running() []*Tap {
	if p := t.taps.Load(); p != nil {
		return *p
	}
	return nil
}

// Close ends every trace, and none can be started any more.
func (t *Trace) Close() {
	t.mu.Lock()
	t.closed = true
	taps := t.running()
	t.mu.Unlock()
	for _, p := range taps {
		p.end(ErrTraceClosed)
	}
}

// Stop ends the trace. It is idempotent.
func (p *Tap) Stop() { p.end(ErrTraceOver) }

func (p *Tap) end(why error) {
	t := p.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.why != nil {
		return
	}
	p.why = why
	p.timer.Stop()
	var rest []*Tap
	for _, o := range t.running() {
		if o != p {
			rest = append(rest, o)
		}
	}
	if rest == nil {
		t.taps.Store(nil)
	} else {
		t.taps.Store(&rest)
	}
	close(p.over)
}

// Next waits for the next message. When the trace is over and everything was
// read, the error is ErrTraceOver or ErrTraceClosed; that of ctx when it is
// done first.
func (p *Tap) Next(ctx context.Context) (TraceEntry, error) {
	select {
	case e := <-p.queue:
		return p.taken(e), nil
	default:
	}
	select {
	case e := <-p.queue:
		return p.taken(e), nil
	case <-ctx.Done():
		return TraceEntry{}, ctx.Err()
	case <-p.over:
	}
	select {
	case e := <-p.queue: // came in between
		return p.taken(e), nil
	default:
		return TraceEntry{}, p.why
	}
}

func (p *Tap) taken(e TraceEntry) TraceEntry {
	p.waits.Add(-int64(len(e.Raw)))
	return e
}

// Waiting tells whether Next has something at once.
func (p *Tap) Waiting() bool { return len(p.queue) > 0 }

// Lost is how many messages were lost since the last one that was not.
func (p *Tap) Lost() uint64 { return p.lost.Load() }

// offer queues a message, or counts it.
func (p *Tap) offer(e TraceEntry) {
	n := int64(len(e.Raw))
	if p.waits.Add(n) <= traceBytes {
		e.Lost = p.lost.Swap(0)
		select {
		case p.queue <- e:
			return
		default:
			p.lost.Add(e.Lost)
		}
	}
	p.waits.Add(-n)
	p.lost.Add(1)
}

// Received shows a message that came in, parsed as far as that was possible.
func (t *Trace) Received(m *Message, note string) {
	if t == nil {
		return
	}
	if taps := t.taps.Load(); taps != nil {
		t.show(*taps, m, TraceEntry{Time: m.At, Dir: In, Flow: m.Flow, Note: note}, m.Raw, nil)
	}
}

// Sent shows a message, head and body one after the other, that is given to the
// transport.
func (t *Trace) Sent(f Flow, head, body []byte) {
	if t == nil {
		return
	}
	if taps := t.taps.Load(); taps != nil {
		t.show(*taps, nil, TraceEntry{Time: time.Now(), Dir: Out, Flow: f}, head, body)
	}
}

// show offers a message to the taps that want it. m is nil while it is not
// parsed; parsing, which changes what it reads, is done on a copy.
func (t *Trace) show(taps []*Tap, m *Message, e TraceEntry, head, body []byte) {
	var own *Message
	for _, p := range taps {
		if !p.peer(e.Flow.Remote) {
			continue
		}
		if m == nil && (p.key != "" || p.filter.CallID != "") {
			own = NewMessage()
			own.Parse(append(append(own.Raw[:0], head...), body...), false) // what cannot be read names nobody
			m = own
		}
		if !p.names(m) {
			continue
		}
		if e.Raw == nil {
			e.Raw = maskSecrets(slices.Concat(head, body))
		}
		p.offer(e)
	}
	if own != nil {
		own.Release()
	}
}

func (p *Tap) peer(remote netip.AddrPort) bool {
	f := &p.filter
	return (!f.Peer.IsValid() || f.Peer.Contains(remote.Addr().Unmap())) && (f.Port == 0 || f.Port == remote.Port())
}

// names tells whether Call-ID and URI of the filter are in the message.
func (p *Tap) names(m *Message) bool {
	if p.filter.CallID != "" && string(m.CallID()) != p.filter.CallID {
		return false
	}
	if p.key == "" || p.is(m.RequestURI()) || p.is(m.From().URI) || p.is(m.To().URI) {
		return true
	}
	for _, h := range [...]HeaderID{HdrContact, HdrPAssertedIdentity} {
		for v := range m.Values(h) {
			if n, err := ParseNameAddr(v); err == nil && p.is(n.URI) {
				return true
			}
		}
	}
	return false
}

func (p *Tap) is(uri []byte) bool {
	if len(uri) == 0 {
		return false
	}
	u, err := ParseURI(string(uri))
	return err == nil && traceKey(u, p.port) == p.key
}

// traceKey is what a URI is recognized by.
func traceKey(u URI, port bool) string {
	if u.Params = ""; !port {
		u.Port = 0
	}
	return u.Key()
}

// secretFields hold credentials, or answers computed from them.
var secretFields = [...]string{"authorization", "proxy-authorization", "authentication-info", "proxy-authentication-info"}

// maskSecrets overwrites them in place. It goes by lines and not by what Parse
// found, so that it works in a message that cannot be parsed, too.
func maskSecrets(b []byte) []byte {
	for i := 0; i < len(b); {
		e := i
		for e < len(b) && b[e] != ':' && b[e] != '\r' && b[e] != '\n' {
			e++
		}
		end := lineEnd(b, e)
		name := trim(b[i:e])
		for _, s := range secretFields {
			if e < len(b) && b[e] == ':' && foldEqual(name, s) {
				for end < len(b) && (b[end] == ' ' || b[end] == '\t') { // folded
					end = lineEnd(b, end)
				}
				maskValue(b[e+1:end], strings.HasSuffix(s, "authorization"))
			}
		}
		i = end
	}
	return b
}

// lineEnd is the start of the next line.
func lineEnd(b []byte, i int) int {
	for i < len(b) && b[i] != '\r' && b[i] != '\n' {
		i++
	}
	if i+1 < len(b) && b[i] == '\r' && b[i+1] == '\n' {
		i++
	}
	return min(i+1, len(b))
}

// maskValue overwrites what follows response= and rspauth= of digest
// authentication (RFC 3261 section 25.1), and all that follows another scheme's
// name. It looks everywhere, and from the end, since a peer's quotes need not be
// in pairs.
func maskValue(v []byte, scheme bool) {
	if scheme {
		s := skipBlank(v, 0)
		i := s
		for i < len(v) && class[v[i]]&cToken != 0 {
			i++
		}
		if !foldEqual(v[s:i], "Digest") {
			cross(v[i:])
			return
		}
	}
	for s := len(v) - 1; s >= 0; s-- {
		if s > 0 && class[v[s-1]]&cToken != 0 {
			continue
		}
		for _, name := range [...]string{"response", "rspauth"} {
			if i := s + len(name); i < len(v) && foldEqual(v[s:i], name) {
				if i = skipBlank(v, i); i < len(v) && v[i] == '=' {
					maskParam(v, skipBlank(v, i+1))
				}
			}
		}
	}
}

// maskParam overwrites the quoted string or token at i.
func maskParam(v []byte, i int) {
	s := i
	if i < len(v) && v[i] == '"' {
		s++
		for i++; i < len(v) && v[i] != '"'; i++ {
			if v[i] == '\\' {
				i++
			}
		}
	} else {
		for i < len(v) && v[i] != ',' && v[i] > ' ' {
			i++
		}
	}
	cross(v[s:max(s, min(i, len(v)))])
}

func skipBlank(v []byte, i int) int {
	for i < len(v) && (v[i] == ' ' || v[i] == '\t' || v[i] == '\r' || v[i] == '\n') {
		i++
	}
	return i
}

func cross(b []byte) {
	for i, c := range b {
		if c > ' ' {
			b[i] = 'x'
		}
	}
}
