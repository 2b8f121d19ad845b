package sip

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"net/netip"
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

// Sender puts one message on the wire. It never blocks. b is not kept. token
// identifies the client transaction, so that a failure found later (a refused
// connection, a write deadline) can be reported; 0 asks for no report.
type Sender interface {
	Send(f Flow, b []byte, token uint64) error
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

// Transactions holds the non-INVITE transactions (RFC 3261 sections 17.1.2 and
// 17.2.2) of one shard. It has one owner: no lock, no goroutine, no clock.
type Transactions struct {
	shard  uint8
	sender Sender
	wheel  *Wheel
	seed   maphash.Seed

	servers map[uint64]ServerID // key of RFC 3261 section 17.2.3 to slot
	server  []serverTx
	sfree   []uint32

	client []clientTx
	cfree  []uint32

	live struct{ servers, clients int }
}

type serverTx struct {
	key  uint64
	gen  uint32
	live bool
	flow Flow
	resp []byte // final response as sent; nil while the request is being worked on
}

type clientTx struct {
	gen      uint32
	live     bool
	nonce    uint32
	flow     Flow
	msg      []byte // kept for retransmission, nil on reliable transports
	user     uint64
	interval time.Duration // next timer E
	deadline time.Time     // timer F
	timer    Timer
}

const (
	timerServer = 1 << 56 // wheel keys: kind in the top byte, slot below
	timerClient = 2 << 56
)

// NewTransactions returns an empty table for a shard.
func NewTransactions(shard uint8, sender Sender, now time.Time) *Transactions {
	return &Transactions{
		shard: shard, sender: sender, wheel: NewWheel(now), seed: maphash.MakeSeed(),
		servers: make(map[uint64]ServerID),
	}
}

// Live is the number of server and client transactions held.
func (t *Transactions) Live() (servers, clients int) { return t.live.servers, t.live.clients }

// Next is when Advance must be called next.
func (t *Transactions) Next() (time.Time, bool) { return t.wheel.Next() }

// key computes the matching key of RFC 3261 section 17.2.3: branch, sent-by
// and method, or for a branch without the magic cookie the older set.
func (t *Transactions) key(m *Message, method []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	v := m.Via()
	h.Write(method)
	h.WriteByte(0)
	h.Write(v.Host)
	h.WriteByte(0)
	h.WriteByte(byte(v.Port))
	h.WriteByte(byte(v.Port >> 8))
	h.Write(v.Branch)
	if len(v.Branch) <= len(magicCookie) || string(v.Branch[:len(magicCookie)]) != magicCookie {
		h.WriteByte(0)
		h.Write(m.RequestURI())
		h.WriteByte(0)
		h.Write(m.To().Tag())
		h.WriteByte(0)
		h.Write(m.From().Tag())
		h.WriteByte(0)
		h.Write(m.CallID())
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], m.CSeq())
		h.Write(n[:])
	}
	return h.Sum64()
}

// Receive matches a request to a server transaction. A new request opens one
// and fresh is true. A retransmission is answered with the stored response, or
// absorbed while there is none yet (CORE-16).
func (t *Transactions) Receive(m *Message) (id ServerID, fresh bool) {
	key := t.key(m, m.MethodToken())
	if id, ok := t.servers[key]; ok {
		s := &t.server[uint32(id)-1]
		if s.resp != nil {
			t.sender.Send(s.flow, s.resp, 0)
		}
		return id, false
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
	s.key, s.live, s.flow, s.resp = key, true, ResponseFlow(m), nil
	s.gen++
	id = ServerID(uint64(s.gen)<<32 | uint64(i+1))
	t.servers[key] = id
	t.live.servers++
	return id, true
}

// Cancels tells whether a CANCEL matches a request that is being worked on or
// whose response is kept (RFC 3261 section 9.2).
func (t *Transactions) Cancels(m *Message) bool {
	for _, name := range methodNames {
		if _, ok := t.servers[t.key(m, []byte(name))]; ok && name != methodNames[CANCEL] {
			return true
		}
	}
	return false
}

// Respond sends the final response of a server transaction and keeps it until
// timer J ends the transaction: at once on reliable transports.
func (t *Transactions) Respond(now time.Time, id ServerID, resp []byte) {
	i := uint32(id) - 1
	if id == 0 || int(i) >= len(t.server) {
		return
	}
	s := &t.server[i]
	if !s.live || s.gen != uint32(id>>32) || s.resp != nil {
		return
	}
	t.sender.Send(s.flow, resp, 0)
	if s.flow.Proto.Reliable() {
		t.endServer(i)
		return
	}
	s.resp = resp
	t.wheel.Add(now.Add(TimerJ), timerServer|uint64(i))
}

func (t *Transactions) endServer(i uint32) {
	s := &t.server[i]
	delete(t.servers, s.key)
	s.live, s.resp = false, nil
	t.sfree = append(t.sfree, i)
	t.live.servers--
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
	c.gen = (c.gen + 1) & 0xffffff
	c.live, c.user = true, user
	var n [4]byte
	rand.Read(n[:])
	c.nonce = binary.BigEndian.Uint32(n[:])
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
// and F (CORE-17). msg must not change afterwards. An error is a transport
// error: the transaction is closed and its user is not called.
func (t *Transactions) Request(now time.Time, id ClientID, flow Flow, msg []byte) error {
	i, c := t.lookup(id)
	if c == nil {
		return nil
	}
	if err := t.sender.Send(flow, msg, uint64(id)); err != nil {
		t.endClient(i)
		return err
	}
	c.flow, c.deadline = flow, now.Add(TimerF)
	if flow.Proto.Reliable() {
		c.msg = nil
		c.timer = t.wheel.Add(c.deadline, timerClient|uint64(i))
		return nil
	}
	c.msg, c.interval = msg, T1
	c.timer = t.wheel.Add(now.Add(T1), timerClient|uint64(i))
	return nil
}

func (t *Transactions) endClient(i uint32) {
	c := &t.client[i]
	t.wheel.Cancel(c.timer)
	c.live, c.msg, c.timer = false, nil, 0
	t.cfree = append(t.cfree, i)
	t.live.clients--
}

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
		c.interval = T2
		return Outcome{User: c.user, Status: m.Status()}, false, true
	}
	out = Outcome{User: c.user, Status: m.Status()}
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
	t.wheel.Advance(now, func(key uint64) {
		i := uint32(key)
		if key&timerServer != 0 {
			t.endServer(i)
			return
		}
		c := &t.client[i]
		if !now.Before(c.deadline) {
			out := Outcome{User: c.user, Status: 408}
			c.timer = 0
			t.endClient(i)
			timeout(out)
			return
		}
		t.sender.Send(c.flow, c.msg, uint64(t.shard)<<56|uint64(c.gen)<<32|uint64(i+1))
		c.interval = min(2*c.interval, T2)
		next := now.Add(c.interval)
		if next.After(c.deadline) {
			next = c.deadline
		}
		c.timer = t.wheel.Add(next, timerClient|uint64(i))
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
	maddr, err := netip.ParseAddr(string(v.Maddr))
	switch {
	case err == nil:
		f.Remote = netip.AddrPortFrom(maddr.Unmap(), port)
	case !v.HasRPort:
		f.Remote = netip.AddrPortFrom(f.Remote.Addr(), port)
	}
	return f
}
