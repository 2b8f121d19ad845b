package sip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// RFC 3261 timer values (table 4).
const (
	T1 = 500 * time.Millisecond
	T2 = 4 * time.Second
	T4 = 5 * time.Second

	TimerF = 64 * T1 // non-INVITE transaction timeout, client side
	TimerJ = 64 * T1 // wait for request retransmissions, unreliable transports
)

// ErrFlowGone is returned by Sender.Send when the connection a flow names no
// longer exists.
var ErrFlowGone = errors.New("sip: connection is gone")

// ErrAnswerLost is given to EndpointOptions.Failed for a request that was sent
// over a connection which ended since. The peer may have got it.
var ErrAnswerLost = errors.New("sip: connection ended before the answer")

// Sender puts one message on the wire. It never blocks. b may be kept until it
// is sent, so it must not change any more. token identifies the client transaction, so that a failure found later (a refused
// connection, a write deadline) can be reported; 0 asks for no report.
type Sender interface {
	Send(f Flow, b []byte, token uint64) error
}

// PartsSender is a Sender that takes a message in two pieces, so that one body
// serves many messages.
type PartsSender interface {
	SendParts(f Flow, head, body []byte, token uint64) error
}

// joinParts makes a Sender a PartsSender.
type joinParts struct{ Sender }

func (j joinParts) SendParts(f Flow, head, body []byte, token uint64) error {
	if len(body) > 0 {
		head = append(append(make([]byte, 0, len(head)+len(body)), head...), body...)
	}
	return j.Send(f, head, token)
}

// ServerID names a non-INVITE server transaction; 0 names none.
type ServerID uint64

// ClientID names a non-INVITE client transaction and, with Shard, the shard it
// belongs to; 0 names none. It is the token given to Sender.Send.
type ClientID uint64

// Shard is the owner of the transaction.
func (c ClientID) Shard() uint8 { return uint8(c >> 56) }

const (
	magicCookie = "z9hG4bK"
	branchLen   = len(magicCookie) + 24
)

// Outcome is how a client transaction ended.
type Outcome struct {
	User   uint64 // what the transaction user gave to Request
	Status int    // final status; 408 for timer F, 503 for a transport error (RFC 3261 section 8.1.3.1)
}

// tryingAfter is when a request without final response gets 100 (RFC 4320
// section 4.1): the client's timer E has reached T2 by then.
const tryingAfter = T1 + 2*T1 + 4*T1

// Transactions holds the non-INVITE transactions (RFC 3261 sections 17.1.2 and
// 17.2.2) of one shard. It has one owner: no lock, no goroutine, no clock.
type Transactions struct {
	Stats *Stats // may be nil; set before use

	shard  uint8
	sender PartsSender
	wheel  *Wheel // timers E and F
	seed   maphash.Seed
	base   time.Time
	places places

	servers index // by the key of RFC 3261 section 17.2.3
	merged  index // requests without To tag by From, Call-ID and CSeq
	server  []serverTx
	sfree   []uint32
	waiting queue // requests without an answer in the order of their arrival, for 100
	done    queue // timer J: answered requests in the order of their answers
	keyBuf  []byte

	client []clientTx
	cfree  []uint32
	gen    uint32 // of the newest transaction: a slot that is used again has another

	random Random

	live struct{ servers, clients int }
}

// serverTx is kept for long: it is laid out without gaps.
type serverTx struct {
	key        uint64
	merged     uint64   // 0: not in that index
	at         int64    // when the request came, then when it was answered, in nanoseconds since base
	resp       []byte   // final response
	req        *Message // of a request that is kept by its user, until it is answered
	place      place
	state      serverState
	method     Method
	gen        uint32
	next, prev uint32 // slot+1 in the queue it stands in
}

type serverState uint8

const (
	serverFree serverState = iota
	serverTrying
	serverCompleted // the final response was sent and is kept
)

type clientTx struct {
	gen      uint32
	nonce    uint32
	user     uint64
	head     []byte // kept for retransmission, nil on reliable transports
	body     []byte
	at       int64 // when it was sent, in nanoseconds since base; timer F counts from here
	timer    Timer
	place    place
	live     bool
	method   Method
	interval int32 // next timer E, in milliseconds
}

// place is a Flow without what only an opening connection needs. There may be
// millions, hence its halves of a number: it fits where alignment leaves room.
type place struct {
	addr  [16]byte
	conn  [2]uint16
	port  uint16
	local uint16 // index into places
	proto Proto
	is4   bool
}

// places are the local ends of flows: the addresses this process listens on,
// so few.
type places struct {
	list []localEnd
	last uint16
}

type localEnd struct {
	addr netip.AddrPort
	zone string // of a link-local peer
}

func (p *places) pack(f Flow) place {
	a := f.Remote.Addr()
	end := localEnd{f.Local, a.Zone()}
	if int(p.last) >= len(p.list) || p.list[p.last] != end {
		i := slices.Index(p.list, end)
		if i < 0 && len(p.list) <= 0xffff {
			p.list = append(p.list, end)
			i = len(p.list) - 1
		}
		p.last = uint16(max(i, 0))
	}
	return place{addr: a.As16(), conn: [2]uint16{uint16(f.Conn), uint16(f.Conn >> 16)}, port: f.Remote.Port(), local: p.last, proto: f.Proto, is4: a.Is4()}
}

func (p *places) unpack(l place) Flow {
	end := p.list[l.local]
	a := netip.AddrFrom16(l.addr)
	if l.is4 {
		a = a.Unmap()
	}
	if end.zone != "" {
		a = a.WithZone(end.zone)
	}
	return Flow{Proto: l.proto, Local: end.addr, Remote: netip.AddrPortFrom(a, l.port), Conn: uint32(l.conn[0]) | uint32(l.conn[1])<<16}
}

// queue is a list of server transactions that are due in the order they came in.
type queue struct{ first, last uint32 } // slot+1

func (t *Transactions) enter(q *queue, i uint32) {
	s := &t.server[i]
	if s.next, s.prev = 0, q.last; q.last != 0 {
		t.server[q.last-1].next = i + 1
	} else {
		q.first = i + 1
	}
	q.last = i + 1
}

func (t *Transactions) leave(q *queue, i uint32) {
	s := &t.server[i]
	if s.prev != 0 {
		t.server[s.prev-1].next = s.next
	} else if q.first == i+1 {
		q.first = s.next
	} else {
		return // it does not stand there
	}
	if s.next != 0 {
		t.server[s.next-1].prev = s.prev
	} else {
		q.last = s.prev
	}
	s.next, s.prev = 0, 0
}

// due gives the first of a queue if its time has come.
func (t *Transactions) due(q *queue, wait time.Duration, at int64) (uint32, bool) {
	if q.first == 0 || t.server[q.first-1].at+int64(wait) > at {
		return 0, false
	}
	return q.first - 1, true
}

// NewTransactions returns an empty table for a shard.
func NewTransactions(shard uint8, sender Sender, now time.Time) *Transactions {
	parts, ok := sender.(PartsSender)
	if !ok {
		parts = joinParts{sender}
	}
	t := &Transactions{shard: shard, sender: parts, wheel: NewWheel(now), seed: maphash.MakeSeed(), base: now}
	t.servers.key = func(i uint32) uint64 { return t.server[i].key }
	t.merged.key = func(i uint32) uint64 { return t.server[i].merged }
	return t
}

// Live is the number of server and client transactions held.
func (t *Transactions) Live() (servers, clients int) { return t.live.servers, t.live.clients }

// since is an instant in nanoseconds since base.
func (t *Transactions) since(now time.Time) int64 { return int64(now.Sub(t.base)) }

// Next is when Advance must be called next.
func (t *Transactions) Next() (time.Time, bool) {
	next, ok := t.wheel.Next()
	earlier := func(q queue, wait time.Duration) {
		if q.first == 0 {
			return
		}
		if at := t.base.Add(time.Duration(t.server[q.first-1].at) + wait); !ok || at.Before(next) {
			next, ok = at, true
		}
	}
	earlier(t.waiting, tryingAfter)
	earlier(t.done, TimerJ)
	return next, ok
}

// key computes the matching key of RFC 3261 section 17.2.3: branch, sent-by
// and method, or for a branch without the magic cookie the older set.
func (t *Transactions) key(m *Message, method []byte) uint64 {
	v := m.Via()
	b := append(t.keyBuf[:0], method...)
	b = append(b, 0)
	b = append(b, v.Host...)
	b = append(b, 0, byte(v.Port), byte(v.Port>>8))
	b = append(b, v.Branch...)
	if len(v.Branch) <= len(magicCookie) || string(v.Branch[:len(magicCookie)]) != magicCookie {
		for _, part := range [][]byte{m.RequestURI(), m.To().Tag(), m.From().Tag(), m.CallID()} {
			b = append(b, 0)
			b = append(b, part...)
		}
		b = binary.BigEndian.AppendUint32(b, m.CSeq())
	}
	t.keyBuf = b
	return maphash.Bytes(t.seed, b)
}

// mergeKey names a request whatever way it took (RFC 3261 section 8.2.2.2). The
// From URI is part of it because there are clients whose random numbers repeat
// those of another user's.
func (t *Transactions) mergeKey(m *Message) uint64 {
	b := t.keyBuf[:0]
	for _, part := range [][]byte{m.MethodToken(), m.CallID(), m.From().Tag(), m.From().URI} {
		b = append(b, part...)
		b = append(b, 0)
	}
	b = binary.BigEndian.AppendUint32(b, m.CSeq())
	t.keyBuf = b
	return maphash.Bytes(t.seed, b) | 1
}

// Arrival is what a request is to its transactions.
type Arrival uint8

// The arrivals.
const (
	Fresh  Arrival = iota // opened a transaction
	Repeat                // a retransmission: answered or absorbed here (CORE-16)
	Merged                // opened a transaction, but the same request came another way before: 482 (CORE-03)
)

// Receive matches a request to a server transaction. A new request opens one.
// A retransmission is answered with the stored response, or absorbed while
// there is none yet.
func (t *Transactions) Receive(now time.Time, m *Message) (ServerID, Arrival) {
	key := t.key(m, m.MethodToken())
	if i, ok := t.servers.find(key); ok {
		s := &t.server[i]
		t.Stats.CountAbsorbed(m.Method())
		if s.state == serverCompleted {
			t.sender.SendParts(t.places.unpack(s.place), s.resp, nil, 0)
		}
		return serverID(s.gen, i), Repeat
	}
	var i uint32
	if n := len(t.sfree); n > 0 {
		i = t.sfree[n-1]
		t.sfree = t.sfree[:n-1]
	} else {
		t.server = append(t.server, serverTx{})
		i = uint32(len(t.server) - 1)
	}
	s := &t.server[i]
	came := now
	if !m.At.IsZero() { // its wait in the mailbox counts
		came = m.At
	}
	t.gen++
	*s = serverTx{key: key, at: t.since(came), place: t.places.pack(ResponseFlow(m)), gen: t.gen, state: serverTrying, method: m.Method()}
	t.servers.add(key, i)
	t.live.servers++
	if !m.Flow.Proto.Reliable() {
		t.enter(&t.waiting, i)
	}
	arrival := Fresh
	if len(m.To().Tag()) == 0 && m.Method() != CANCEL {
		k := t.mergeKey(m)
		if _, ok := t.merged.find(k); ok {
			arrival = Merged
		} else {
			s.merged = k
			t.merged.add(k, i)
		}
	}
	return serverID(s.gen, i), arrival
}

func serverID(gen, slot uint32) ServerID { return ServerID(uint64(gen)<<32 | uint64(slot+1)) }

// serverOf finds a live server transaction.
func (t *Transactions) serverOf(id ServerID) (uint32, *serverTx) {
	i := uint32(id) - 1
	if id == 0 || int(i) >= len(t.server) {
		return 0, nil
	}
	s := &t.server[i]
	if s.state == serverFree || s.gen != uint32(id>>32) {
		return 0, nil
	}
	return i, s
}

// Cancels tells whether a CANCEL matches a request that is being worked on or
// whose response is kept (RFC 3261 section 9.2).
func (t *Transactions) Cancels(m *Message) bool {
	for _, name := range methodNames {
		if _, ok := t.servers.find(t.key(m, []byte(name))); ok && name != methodNames[CANCEL] {
			return true
		}
	}
	return false
}

// Keep remembers the message of a request whose answer takes time: 100 is made
// of it. The message must stay as it is until Answered or Respond.
func (t *Transactions) Keep(id ServerID, m *Message) {
	if _, s := t.serverOf(id); s != nil && s.state == serverTrying {
		s.req = m
	}
}

// Answered gives the final response of a server transaction before it may be
// sent. The request's message may go.
func (t *Transactions) Answered(id ServerID, resp []byte) {
	if _, s := t.serverOf(id); s != nil && s.state == serverTrying {
		s.req, s.resp = nil, resp
	}
}

// Respond sends the final response of a server transaction and keeps it until
// timer J ends the transaction: at once on reliable transports. resp must not
// change afterwards. It gives how long the request has waited, 0 when there is
// nothing to answer.
func (t *Transactions) Respond(now time.Time, id ServerID, resp []byte) time.Duration {
	i, s := t.serverOf(id)
	if s == nil || s.state != serverTrying {
		return 0
	}
	t.sender.SendParts(t.places.unpack(s.place), resp, nil, 0)
	s.req, s.state = nil, serverCompleted
	if s.merged != 0 && len(resp) > 8 && resp[8] >= '3' { // what was refused may be tried again, with credentials for instance
		t.merged.remove(s.merged, i)
		s.merged = 0
	}
	took := t.since(now) - s.at
	t.Stats.ObserveServer(s.method, time.Duration(took))
	if s.place.proto.Reliable() {
		t.endServer(i)
	} else {
		t.leave(&t.waiting, i)
		s.resp, s.at = resp, t.since(now)
		t.enter(&t.done, i)
	}
	return time.Duration(max(took, 1))
}

// trying sends 100 to a request that has waited for long.
func (t *Transactions) trying(s *serverTx) {
	var b []byte
	switch {
	case s.resp != nil: // waits for the store
		b = tryingFrom(s.resp)
	case s.req != nil:
		b = AppendBody(AppendResponse(nil, s.req, 100, "", ""), "", nil)
	}
	if b != nil {
		t.sender.SendParts(t.places.unpack(s.place), b, nil, 0)
	}
}

// tryingFrom makes a 100 of a response that AppendResponse began.
func tryingFrom(resp []byte) []byte {
	b := startFrom(resp, 100)
	if b == nil {
		return nil
	}
	return AppendBody(b, "", nil)
}

// RefusalFrom makes a refusal of a response that AppendResponse began and that
// was not sent. retryAfter, in whole seconds, is left out when it is 0.
func RefusalFrom(resp []byte, status int, retryAfter time.Duration) []byte {
	b := startFrom(resp, status)
	if retryAfter > 0 {
		b = AppendHeader(b, "Retry-After", strconv.Itoa(int(retryAfter/time.Second)))
	}
	return AppendBody(b, "", nil)
}

// startFrom is another response to the same request, up to CSeq.
func startFrom(resp []byte, status int) []byte {
	start := bytes.Index(resp, []byte("\r\n"))
	cseq := bytes.Index(resp, []byte("\r\nCSeq: "))
	if start < 0 || cseq < 0 {
		return nil
	}
	end := cseq + 2 + bytes.Index(resp[cseq+2:], []byte("\r\n"))
	b := append([]byte("SIP/2.0 "), strconv.Itoa(status)...)
	b = append(append(b, ' '), ReasonPhrase(status)...)
	return append(b, resp[start:end+2]...)
}

func (t *Transactions) endServer(i uint32) {
	s := &t.server[i]
	t.servers.remove(s.key, i)
	if s.merged != 0 {
		t.merged.remove(s.merged, i)
	}
	s.state, s.resp, s.req = serverFree, nil, nil
	t.sfree = append(t.sfree, i)
	if t.live.servers--; t.live.servers == 0 && len(t.server) > restSlots { // what was grown for a burst goes with it
		t.server, t.sfree = nil, nil
	}
}

// Open reserves a client transaction. Its branch (Branch) goes into the
// request's Via; Request then sends it.
func (t *Transactions) Open(user uint64) ClientID {
	var i uint32
	if n := len(t.cfree); n > 0 {
		i = t.cfree[n-1]
		t.cfree = t.cfree[:n-1]
	} else {
		t.client = append(t.client, clientTx{})
		i = uint32(len(t.client) - 1)
	}
	c := &t.client[i]
	t.gen++
	c.gen = t.gen & 0xffffff
	c.live, c.user = true, user
	c.nonce = binary.BigEndian.Uint32(t.random.Next(4))
	t.live.clients++
	return ClientID(uint64(t.shard)<<56 | uint64(c.gen)<<32 | uint64(i+1))
}

// lookup finds a live client transaction.
func (t *Transactions) lookup(id ClientID) (uint32, *clientTx) {
	i := uint32(id) - 1
	if id == 0 || int(i) >= len(t.client) {
		return 0, nil
	}
	c := &t.client[i]
	if !c.live || c.gen != uint32(id>>32)&0xffffff {
		return 0, nil
	}
	return i, c
}

// AppendBranch appends the branch parameter's value. It names shard, slot and
// generation, so a response finds its transaction without a search, and holds
// 32 random bits, so nobody off the path can forge one.
func (t *Transactions) AppendBranch(dst []byte, id ClientID) []byte {
	_, c := t.lookup(id)
	dst = append(dst, magicCookie...)
	dst = appendHex(dst, uint64(id), 16)
	var nonce uint32
	if c != nil {
		nonce = c.nonce
	}
	return appendHex(dst, uint64(nonce), 8)
}

func appendHex(dst []byte, v uint64, digits int) []byte {
	const hex = "0123456789abcdef"
	for i := digits - 1; i >= 0; i-- {
		dst = append(dst, hex[v>>(4*uint(i))&15])
	}
	return dst
}

// ParseBranch reads a branch made by AppendBranch.
func ParseBranch(branch []byte) (id ClientID, nonce uint32, ok bool) {
	if len(branch) != branchLen || string(branch[:len(magicCookie)]) != magicCookie {
		return 0, 0, false
	}
	v, ok1 := parseHex(branch[len(magicCookie) : len(magicCookie)+16])
	n, ok2 := parseHex(branch[len(magicCookie)+16:])
	return ClientID(v), uint32(n), ok1 && ok2
}

func parseHex(b []byte) (v uint64, ok bool) {
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			v = v<<4 | uint64(c-'0')
		case c >= 'a' && c <= 'f':
			v = v<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return v, true
}

// Request sends the request of an open client transaction and starts timers E
// and F (CORE-17). head and body, which together are the message, must not
// change afterwards. An error is a transport error: the transaction is closed
// and its user is not called.
func (t *Transactions) Request(now time.Time, id ClientID, flow Flow, head, body []byte) error {
	i, c := t.lookup(id)
	if c == nil {
		return nil
	}
	c.method, _ = glance(head)
	if err := t.sender.SendParts(flow, head, body, uint64(id)); err != nil {
		t.Stats.CountFailure(c.method, Undelivered)
		t.endClient(i)
		return err
	}
	c.at = t.since(now)
	if flow.Proto.Reliable() {
		c.timer = t.wheel.Add(now.Add(TimerF), uint64(i))
		return nil
	}
	c.place, c.head, c.body, c.interval = t.places.pack(flow), head, body, int32(T1/time.Millisecond)
	c.timer = t.wheel.Add(now.Add(T1), uint64(i))
	return nil
}

func (t *Transactions) endClient(i uint32) {
	c := &t.client[i]
	t.wheel.Cancel(c.timer)
	c.live, c.head, c.body, c.timer = false, nil, nil, 0
	t.cfree = append(t.cfree, i)
	if t.live.clients--; t.live.clients == 0 && len(t.client) > restSlots {
		t.client, t.cfree = nil, nil
	}
}

// restSlots is how many slots are kept while there are no transactions.
const restSlots = 64

// Response gives a response to its transaction. ok is false when it belongs to
// none: late, repeated or forged. final is false for a provisional one, which
// slows timer E to T2. Late retransmissions of a final response are absorbed
// because the branch names no live transaction, so timer K keeps nothing.
func (t *Transactions) Response(now time.Time, m *Message) (out Outcome, final, ok bool) {
	id, nonce, good := ParseBranch(m.Via().Branch)
	if !good {
		return Outcome{}, false, false
	}
	i, c := t.lookup(id)
	if c == nil || c.nonce != nonce {
		return Outcome{}, false, false
	}
	if m.Status() < 200 {
		c.interval = int32(T2 / time.Millisecond)
		return Outcome{User: c.user, Status: m.Status()}, false, true
	}
	out = Outcome{User: c.user, Status: m.Status()}
	t.Stats.ObserveClient(c.method, time.Duration(t.since(now)-c.at))
	t.endClient(i)
	return out, true, true
}

// Fail ends a client transaction after its transport reported an error.
func (t *Transactions) Fail(id ClientID) (Outcome, bool) {
	i, c := t.lookup(id)
	if c == nil {
		return Outcome{}, false
	}
	out := Outcome{User: c.user, Status: 503}
	t.Stats.CountFailure(c.method, Undelivered)
	t.endClient(i)
	return out, true
}

// Abandon forgets a client transaction without telling anybody.
func (t *Transactions) Abandon(id ClientID) {
	if i, c := t.lookup(id); c != nil {
		t.endClient(i)
	}
}

// Advance runs the timers up to now: J ends server transactions, E retransmits,
// F ends client transactions and calls timeout with status 408.
func (t *Transactions) Advance(now time.Time, timeout func(Outcome)) {
	at := t.since(now)
	for {
		i, ok := t.due(&t.waiting, tryingAfter, at)
		if !ok {
			break
		}
		t.leave(&t.waiting, i)
		t.trying(&t.server[i])
	}
	for {
		i, ok := t.due(&t.done, TimerJ, at)
		if !ok {
			break
		}
		t.leave(&t.done, i)
		t.endServer(i)
	}
	t.wheel.Advance(now, func(key uint64) {
		i := uint32(key)
		c := &t.client[i]
		left := c.at + int64(TimerF) - at
		if left <= 0 {
			out := Outcome{User: c.user, Status: 408}
			c.timer = 0
			t.Stats.CountFailure(c.method, TimedOut)
			t.endClient(i)
			timeout(out)
			return
		}
		id := uint64(t.shard)<<56 | uint64(c.gen)<<32 | uint64(i+1)
		t.sender.SendParts(t.places.unpack(c.place), c.head, c.body, id)
		c.interval = min(2*c.interval, int32(T2/time.Millisecond))
		c.timer = t.wheel.Add(now.Add(min(time.Duration(c.interval)*time.Millisecond, time.Duration(left))), uint64(i))
	})
}

// ResponseFlow is where the response to a request goes (RFC 3261 section
// 18.2.2, RFC 3581 section 4): the connection on reliable transports; on UDP
// maddr if that is an address, else the source address, at the source port when
// rport was asked for, otherwise at the sent-by port.
func ResponseFlow(m *Message) Flow {
	f := m.Flow
	if f.Proto.Reliable() {
		return f
	}
	v := m.Via()
	port := v.Port
	if port == 0 {
		port = 5060
	}
	var maddr netip.Addr
	if v.Maddr != nil {
		maddr, _ = netip.ParseAddr(string(v.Maddr))
	}
	switch {
	case maddr.IsValid():
		f.Remote = netip.AddrPortFrom(maddr.Unmap(), port)
	case !v.HasRPort:
		f.Remote = netip.AddrPortFrom(f.Remote.Addr(), port)
	}
	return f
}
