package dialog

import "rollcall/sip"

// How many NOTIFYs of one shard may be without an answer at one next hop: at
// first, and at most. Each answer adds one, each failure of the next hop takes
// half, so that a proxy that is down gets a few NOTIFYs at a time and not, with
// all their retransmissions, one for each of its phones.
const (
	firstWindow = 512
	maxWindow   = 8192
)

// windows are those of the next hops that have NOTIFYs in flight.
type windows struct {
	index map[place]uint32
	all   []window
	free  []uint32
}

// place names a next hop.
type place struct {
	addr [16]byte
	conn uint32
	port uint16
}

type window struct {
	at       place
	inFlight int32
	size     int32
	waiting  []uint64 // subscriptions, some of which may have gone
}

func placeOf(f sip.Flow) place {
	return place{f.Remote.Addr().As16(), f.Conn, f.Remote.Port()}
}

// via is the flow that was found for the subscription whose turn it is.
type via struct {
	s    *subscription
	flow sip.Flow
	ok   bool
}

// hasRoom tells whether a subscription's NOTIFY may go to its next hop now. If
// not, it goes when others are answered. What a SUBSCRIBE asked for does not
// wait: who sent it is there.
func (sh *shard) hasRoom(t *Turn, s *subscription) bool {
	if !s.n.mayFlush(t.now) {
		return true // to be told when
	}
	var at place
	if s.direct && (sh.ptr(s).more == nil || !sh.ptr(s).more.named) {
		at = place{s.remote, s.conn, s.port}
	} else {
		flow, ok := sh.hop(t, s)
		sh.via = via{s, flow, ok}
		if !ok {
			return true // it must be looked up, or cannot be sent
		}
		at = placeOf(flow)
	}
	i, ok := sh.windows.index[at]
	if !ok {
		return true
	}
	w := &sh.windows.all[i]
	if w.inFlight < w.size || s.n.urgent && s.n.full && s.n.phase != phaseTerminated {
		return true
	}
	if !s.queued {
		s.queued = true
		w.waiting = append(w.waiting, s.id)
	}
	sh.via.s = nil
	return false
}

// occupy counts a NOTIFY that goes to a next hop.
func (sh *shard) occupy(s *subscription, f sip.Flow) {
	ws, at := &sh.windows, placeOf(f)
	i, ok := ws.index[at]
	if !ok {
		if n := len(ws.free); n > 0 {
			i, ws.free = ws.free[n-1], ws.free[:n-1]
		} else {
			i = uint32(len(ws.all))
			ws.all = append(ws.all, window{})
		}
		ws.all[i] = window{at: at, size: firstWindow, waiting: ws.all[i].waiting[:0]}
		if ws.index == nil {
			ws.index = make(map[place]uint32)
		}
		ws.index[at] = i
	}
	ws.all[i].inFlight++
	s.window = i + 1
}

// vacate counts the end of a subscription's NOTIFY. It returns the window if
// there is one, for advance.
func (sh *shard) vacate(s *subscription, well bool) uint32 {
	n := s.window
	if n == 0 {
		return 0
	}
	s.window = 0
	w := &sh.windows.all[n-1]
	w.inFlight--
	if well {
		w.size = min(w.size+1, maxWindow)
	} else {
		w.size = max(w.size/2, 1)
	}
	return n
}

// advance sends NOTIFYs that waited for a window, and forgets it when nothing
// is under way.
func (sh *shard) advance(t *Turn, n uint32) {
	ws := &sh.windows
	for i := n - 1; n > 0 && int(i) < len(ws.all); {
		w := &ws.all[i]
		if w.inFlight >= w.size {
			return
		}
		if len(w.waiting) == 0 || sh.frozen {
			if at, ok := ws.index[w.at]; ok && at == i && w.inFlight == 0 {
				delete(ws.index, w.at)
				ws.free = append(ws.free, i)
				if len(ws.index) == 0 {
					*ws = windows{}
				}
			}
			return
		}
		id := w.waiting[0]
		if w.waiting = w.waiting[1:]; len(w.waiting) == 0 {
			w.waiting = nil
		}
		if s := sh.subs.get(id); s != nil {
			s.queued = false
			if s.n.owed && !s.n.inFlight && !s.dirty { // else the end of the turn sees to it
				if !sh.parks(t, s) && sh.hasRoom(t, s) {
					sh.flush(t, s)
				}
			}
		}
	}
}
