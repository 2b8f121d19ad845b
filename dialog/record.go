package dialog

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"net/netip"
	"time"

	"rollcall/sip"
	"rollcall/sip/auth"
)

// subscription is a notifier-side dialog: the machine and what its messages
// are made of. There may be a million of them, so that it holds no pointer: its
// own texts lie in the shard's arena, those it shares with others in the runtime's
// interner, and what must be a pointer beside it in the slab.
type subscription struct {
	n     Notifier
	id    uint64
	text  block
	timer sip.Timer

	resource, watcher, routes, accept, encoding, agent, contact, way sym

	remote     [16]byte // the peer's address on the flow, its port and the connection
	conn       uint32
	slot       uint32
	created    uint32 // Unix seconds
	remoteCSeq uint32
	sent       uint32 // CSeq of the last NOTIFY that was handed to the network
	window     uint32 // of the NOTIFY in flight; index plus 1
	port       uint16
	pkg        uint8 // index in the registry
	v4         bool  // remote is an IPv4 address
	direct     bool  // NOTIFYs go to the flow; otherwise by route set and remote target
	found      bool  // ... whose name led to the flow
	lists      bool  // the watcher supports eventlist
	list       bool  // it is a list: of one without content yet, by the stored row
	stored     bool
	renewed    bool // there was a SUBSCRIBE since the start
	unseen     bool // no document was sent yet
	dirty      bool
	queued     bool // its NOTIFY waits for the window of its next hop
	waiting    bool // a NOTIFY was sent and has no answer yet
}

// pointers are a subscription's.
type pointers struct {
	content Content
	more    *more // nil while nothing is going on
}

// ptr gives a subscription's pointers.
func (sh *shard) ptr(s *subscription) *pointers {
	return &sh.subs.slabs[s.slot/slabSize].ptr[s.slot%slabSize]
}

// more is what a subscription needs only at times.
type more struct {
	req     *sip.Message // the SUBSCRIBE that waits for its answer
	tx      sip.ServerID
	granted time.Duration

	flow    sip.Flow // instead of remote, conn and way
	named   bool     // ... when this is set
	others  []sip.Flow
	seeking bool          // the next hop is being resolved
	widened *carried      // by the NOTIFY in flight, which is too large for UDP and went to TCP
	attempt *auth.Attempt // of the NOTIFY in flight, where we have credentials for anybody
}

// extra gives a subscription's more, made if need be.
func (sh *shard) extra(s *subscription) *more {
	p := sh.ptr(s)
	if p.more == nil {
		if n := len(sh.spareMore); n > 0 {
			p.more, sh.spareMore = sh.spareMore[n-1], sh.spareMore[:n-1]
		} else {
			p.more = new(more)
		}
	}
	return p.more
}

// slim takes away what is not needed any more.
func (sh *shard) slim(s *subscription) {
	p := sh.ptr(s)
	if m := p.more; m != nil && m.req == nil && !m.named && !m.seeking && m.widened == nil && m.attempt == nil {
		p.more = nil
		if *m = (more{}); len(sh.spareMore) < 64 {
			sh.spareMore = append(sh.spareMore, m)
		}
	}
}

func (sh *shard) widened(s *subscription) *carried {
	if m := sh.ptr(s).more; m != nil {
		return m.widened
	}
	return nil
}

// A subscription's own texts, in the order in which they are stored.
const (
	txCallID = iota
	txRemoteTag
	txTarget
	txEventID
	txRemoteURI // empty: that of the watcher
	txLocalURI  // empty: that of the resource
	txURI       // of the resource as the watcher wrote it; empty: as it is
	txLocalTag  // of a dialog that another server began; empty: by the id
	texts
)

// own are the texts of a subscription. They are valid until the next
// subscription of the shard is added, changed or removed.
type own struct {
	t                 [texts][]byte
	watcher, resource string
}

func (sh *shard) own(s *subscription) own {
	o := own{watcher: sh.rt.shared.text(s.watcher), resource: sh.rt.shared.text(s.resource)}
	b := sh.arena.get(s.text)
	var size [texts]int
	for i := range size {
		n, k := binary.Uvarint(b)
		size[i], b = int(n), b[k:]
	}
	for i, n := range size {
		o.t[i], b = b[:n], b[n:]
	}
	return o
}

// either is the text, or if it is empty the other one.
func either(text []byte, other string) string {
	if len(text) == 0 {
		return other
	}
	return string(text)
}

func appendEither(b, text []byte, other string) []byte {
	if len(text) == 0 {
		return append(b, other...)
	}
	return append(b, text...)
}

// localTag is our tag in a dialog.
func (sh *shard) localTag(s *subscription) string {
	if tag := sh.own(s).t[txLocalTag]; len(tag) > 0 {
		return string(tag)
	}
	return formatTag(s.id)
}

// keep stores a subscription's own texts.
func (sh *shard) keep(s *subscription, t *[texts][]byte) {
	b := sh.textBuf[:0]
	for _, v := range t {
		b = binary.AppendUvarint(b, uint64(len(v)))
	}
	for _, v := range t {
		b = append(b, v...)
	}
	old := s.text
	s.text = sh.arena.put(s.slot, b)
	sh.textBuf = b[:0]
	if old != (block{}) {
		sh.forget(old)
	}
}

func (sh *shard) forget(b block) {
	sh.arena.drop(b, func(slot uint32, to block) { sh.subs.at(slot).text = to })
}

// share makes *y stand for a text.
func (sh *shard) share(y *sym, text []byte) {
	if old := *y; old == 0 || sh.rt.shared.text(old) != string(text) {
		*y = sh.rt.shared.intern(text)
		sh.rt.shared.drop(old)
	}
}

func (sh *shard) pkgOf(s *subscription) *Package { return sh.rt.opt.Packages.list[s.pkg] }

// remove forgets a subscription. Its memory is used again after the turn.
func (sh *shard) remove(t *Turn, s *subscription) {
	t.CancelTimer(s.timer)
	if w := sh.vacate(s, true); w != 0 {
		t.sh.rt.Post(sh.id, func(t *Turn) { sh.advance(t, w) })
	}
	sh.subs.drop(s.id)
	delete(sh.parkedBy, s.id)
	sh.gone = append(sh.gone, s)
	sh.rt.stats.Subscriptions.Add(-1)
}

// bury frees the subscriptions that were removed in this turn.
func (sh *shard) bury() {
	for i, s := range sh.gone {
		sh.forget(s.text)
		for _, y := range []sym{s.resource, s.watcher, s.routes, s.accept, s.encoding, s.agent, s.contact, s.way} {
			sh.rt.shared.drop(y)
		}
		sh.subs.release(s)
		sh.gone[i] = nil
	}
	sh.gone = sh.gone[:0]
}

// storeFlow stores where a subscription's NOTIFYs go.
func (sh *shard) storeFlow(s *subscription, f sip.Flow) {
	if f.Domain != "" || f.Upgraded {
		m := sh.extra(s)
		m.flow, m.named = f, true
		return
	}
	if m := sh.ptr(s).more; m != nil {
		m.flow, m.named = sip.Flow{}, false
	}
	s.remote, s.v4, s.port, s.conn = f.Remote.Addr().As16(), f.Remote.Addr().Is4(), f.Remote.Port(), f.Conn
	b := append(sh.textBuf[:0], byte(f.Proto), 0)
	b, _ = f.Local.AppendBinary(b)
	b[1] = byte(len(b) - 2)
	b = append(b, f.Remote.Addr().Zone()...)
	sh.share(&s.way, b)
	sh.textBuf = b[:0]
}

// flow is where a subscription's NOTIFYs go, or where its SUBSCRIBE came from.
func (sh *shard) flow(s *subscription) (f sip.Flow) {
	if m := sh.ptr(s).more; m != nil && m.named {
		return m.flow
	}
	way := sh.rt.shared.text(s.way)
	if way == "" {
		return f
	}
	f.Proto, f.Conn = sip.Proto(way[0]), s.conn
	local, zone := way[2:2+way[1]], way[2+way[1]:]
	f.Local.UnmarshalBinary([]byte(local))
	a := netip.AddrFrom16(s.remote)
	if s.v4 {
		a = a.Unmap()
	} else if zone != "" {
		a = a.WithZone(zone)
	}
	f.Remote = netip.AddrPortFrom(a, s.port)
	return f
}

// row is a subscription as it is stored.
func (sh *shard) row(t *Turn, s *subscription) SubscriptionRow {
	o, in := sh.own(s), sh.rt.shared
	r := SubscriptionRow{
		ID: formatTag(s.id), LocalTag: string(o.t[txLocalTag]), Shard: sh.id, Event: sh.pkgOf(s).Name, EventID: string(o.t[txEventID]),
		Resource: o.resource, Watcher: o.watcher,
		CallID: string(o.t[txCallID]), RemoteTag: string(o.t[txRemoteTag]), RemoteTarget: string(o.t[txTarget]),
		LocalURI: either(o.t[txLocalURI], o.resource), RemoteURI: either(o.t[txRemoteURI], o.watcher),
		RouteSet: in.text(s.routes), LocalContact: in.text(s.contact), Accept: in.text(s.accept), Encoding: in.text(s.encoding),
		UserAgent: in.text(s.agent), RemoteCSeq: s.remoteCSeq, CSeqCeiling: s.n.ceiling, VersionOffset: s.n.offset, List: sh.isList(s),
		CreatedMS: int64(s.created) * 1000, ExpiresMS: t.at(s.n.expires).UnixMilli(),
	}
	if s.direct {
		f := sh.flow(s)
		r.Flow = f.Proto.String() + " " + f.Local.String() + " " + f.Remote.String()
	}
	return r
}

// table is the subscriptions of a shard.
type table struct {
	slabs   []*slab
	partial []uint32 // slabs that have a free place, or have gone
	holes   []uint32 // of slabs: nil
	index   []uint32 // slot plus 1, by id; a power of two of them
	n       int
}

// slabSize is such that both parts of a slab fill what the allocator gives.
const slabSize = 31

type slab struct {
	sub  *[slabSize]subscription
	ptr  [slabSize]pointers
	used uint32 // a bit per place
}

// len counts the subscriptions.
func (tb *table) len() int { return tb.n }

func (tb *table) at(slot uint32) *subscription { return &tb.slabs[slot/slabSize].sub[slot%slabSize] }

// get finds a subscription, nil if there is none.
func (tb *table) get(id uint64) *subscription {
	if i, ok := tb.find(id); ok {
		return tb.at(tb.index[i] - 1)
	}
	return nil
}

// find gives the position of an id in the index, or where it would be. Ids are
// random: they need no hash.
func (tb *table) find(id uint64) (uint64, bool) {
	if len(tb.index) == 0 {
		return 0, false
	}
	mask := uint64(len(tb.index) - 1)
	for i := id & mask; ; i = (i + 1) & mask {
		slot := tb.index[i]
		if slot == 0 {
			return i, false
		}
		if tb.at(slot-1).id == id {
			return i, true
		}
	}
}

// add makes a subscription. The id must not be there yet.
func (tb *table) add(id uint64) *subscription {
	if 4*(tb.n+1) > 3*len(tb.index) {
		tb.rehash(max(8, 2*len(tb.index)))
	}
	slot := tb.place()
	s := tb.at(slot)
	s.id, s.slot = id, slot
	i, _ := tb.find(id)
	tb.index[i] = slot + 1
	tb.n++
	return s
}

func (tb *table) rehash(size int) {
	old := tb.index
	tb.index = make([]uint32, size)
	for _, slot := range old {
		if slot != 0 {
			i, _ := tb.find(tb.at(slot - 1).id)
			tb.index[i] = slot
		}
	}
}

// place finds a free slot and takes it.
func (tb *table) place() uint32 {
	for len(tb.partial) > 0 {
		n := tb.partial[len(tb.partial)-1]
		if sl := tb.slabs[n]; sl != nil && sl.used != 1<<slabSize-1 {
			i := uint32(bits.TrailingZeros32(^sl.used))
			if sl.used |= 1 << i; sl.used == 1<<slabSize-1 {
				tb.partial = tb.partial[:len(tb.partial)-1]
			}
			return n*slabSize + i
		}
		tb.partial = tb.partial[:len(tb.partial)-1]
	}
	var n uint32
	if h := len(tb.holes); h > 0 {
		n, tb.holes = tb.holes[h-1], tb.holes[:h-1]
	} else {
		n = uint32(len(tb.slabs))
		tb.slabs = append(tb.slabs, nil)
	}
	tb.slabs[n] = &slab{sub: new([slabSize]subscription)}
	tb.partial = append(tb.partial, n)
	tb.slabs[n].used = 1
	return n * slabSize
}

// drop takes a subscription out of the index: it is not found any more.
func (tb *table) drop(id uint64) {
	hole, ok := tb.find(id)
	if !ok {
		return
	}
	mask := uint64(len(tb.index) - 1)
	for i := hole; ; {
		i = (i + 1) & mask
		slot := tb.index[i]
		if slot == 0 {
			break
		}
		// What would be found earlier if it stood in the hole moves there.
		if home := tb.at(slot-1).id & mask; (i-home)&mask >= (i-hole)&mask {
			tb.index[hole] = slot
			hole = i
		}
	}
	tb.index[hole] = 0
	if tb.n--; tb.n == 0 {
		tb.index = nil
	} else if len(tb.index) > 64 && 8*tb.n < len(tb.index) {
		tb.rehash(len(tb.index) / 4)
	}
}

// release frees the memory of a subscription that was dropped.
func (tb *table) release(s *subscription) {
	slot := s.slot
	n := slot / slabSize
	*s = subscription{}
	sl := tb.slabs[n]
	sl.ptr[slot%slabSize] = pointers{}
	if sl.used == 1<<slabSize-1 {
		tb.partial = append(tb.partial, n)
	}
	if sl.used &^= 1 << (slot % slabSize); sl.used == 0 {
		tb.slabs[n] = nil
		tb.holes = append(tb.holes, n)
		if len(tb.holes) == len(tb.slabs) {
			tb.slabs, tb.holes, tb.partial = nil, nil, nil
		}
	}
}

// all goes through the subscriptions. They may be removed meanwhile.
func (tb *table) all() iter.Seq[*subscription] {
	return func(yield func(*subscription) bool) {
		for _, sl := range tb.slabs {
			if sl == nil {
				continue
			}
			for used := sl.used; used != 0; used &= used - 1 {
				s := &sl.sub[bits.TrailingZeros32(used)]
				if s.n.phase != phaseGone && !yield(s) {
					return
				}
			}
		}
	}
}
