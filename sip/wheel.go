package sip

import (
	"math/bits"
	"time"
)

const (
	wheelTick   = 4 * time.Millisecond
	wheelBits   = 6
	wheelSlots  = 1 << wheelBits
	wheelLevels = 6 // 64^6 ticks of 4 ms: more than eight years
)

// Timer names a pending entry of a Wheel. The zero Timer names none.
type Timer uint64 // generation in the high half, index+1 in the low half

// Wheel is a hierarchical timer wheel with one owner: it has no lock, no
// goroutine and no clock. Entries fire at or up to 4 ms after their instant,
// never before. Adding and cancelling cost the same however many are pending.
type Wheel struct {
	now   int64 // in ticks; every entry before it has fired
	base  time.Time
	slots [wheelLevels][wheelSlots]int32 // head of a list, index+1
	used  [wheelLevels]uint64            // bit per non-empty slot
	nodes []wheelNode
	free  int32  // index+1
	gen   uint32 // of the newest entry
	count int
}

type wheelNode struct {
	at         int64
	key        uint64
	gen        uint32
	next, prev int32 // index+1
	level      int8  // -1: free
	slot       uint8
}

// NewWheel returns an empty wheel that starts at now.
func NewWheel(now time.Time) *Wheel { return &Wheel{base: now} }

// Len is the number of pending entries.
func (w *Wheel) Len() int { return w.count }

// Add arranges for key to be given to Advance's callback at or soon after at.
func (w *Wheel) Add(at time.Time, key uint64) Timer {
	d := at.Sub(w.base) // at most math.MaxInt64: do not add to it
	ticks := int64(d / wheelTick)
	if d%wheelTick > 0 {
		ticks++
	}
	if ticks <= w.now {
		ticks = w.now + 1
	}
	i := w.free - 1
	if i < 0 {
		w.nodes = append(w.nodes, wheelNode{})
		i = int32(len(w.nodes) - 1)
	} else {
		w.free = w.nodes[i].next
	}
	n := &w.nodes[i]
	w.gen++
	n.at, n.key, n.gen = ticks, key, w.gen
	w.link(i)
	w.count++
	return Timer(uint64(n.gen)<<32 | uint64(i+1))
}

// Cancel removes an entry; one that has fired or was cancelled is ignored.
func (w *Wheel) Cancel(t Timer) {
	i := int32(uint32(t)) - 1
	if i < 0 || int(i) >= len(w.nodes) {
		return
	}
	n := &w.nodes[i]
	if n.level < 0 || n.gen != uint32(t>>32) {
		return
	}
	w.unlink(i)
	w.release(i)
}

func (w *Wheel) release(i int32) {
	n := &w.nodes[i]
	n.level = -1
	n.next = w.free
	w.free = i + 1
	if w.count--; w.count == 0 { // what was grown for a crowd goes with it
		w.nodes, w.free = nil, 0
	}
}

// When is the instant of a pending entry, rounded up to the wheel's grain.
func (w *Wheel) When(t Timer) (time.Time, bool) {
	i := int32(uint32(t)) - 1
	if i < 0 || int(i) >= len(w.nodes) || w.nodes[i].level < 0 || w.nodes[i].gen != uint32(t>>32) {
		return time.Time{}, false
	}
	return w.base.Add(time.Duration(w.nodes[i].at) * wheelTick), true
}

// link puts a node into the lowest level whose current turn reaches it.
func (w *Wheel) link(i int32) {
	n := &w.nodes[i]
	level, slot := wheelLevels-1, 0
	for l := range wheelLevels {
		shift := uint(l * wheelBits)
		if (n.at>>shift)-(w.now>>shift) < wheelSlots {
			level, slot = l, int(n.at>>shift)&(wheelSlots-1)
			break
		}
		if l == wheelLevels-1 { // beyond the horizon: as late as can be said
			slot = int((w.now>>shift)+wheelSlots-1) & (wheelSlots - 1)
		}
	}
	n.level, n.slot = int8(level), uint8(slot)
	head := &w.slots[level][slot]
	n.next, n.prev = *head, 0
	if *head != 0 {
		w.nodes[*head-1].prev = i + 1
	}
	*head = i + 1
	w.used[level] |= 1 << uint(slot)
}

func (w *Wheel) unlink(i int32) {
	n := &w.nodes[i]
	if n.next != 0 {
		w.nodes[n.next-1].prev = n.prev
	}
	if n.prev != 0 {
		w.nodes[n.prev-1].next = n.next
		return
	}
	w.slots[n.level][n.slot] = n.next
	if n.next == 0 {
		w.used[n.level] &^= 1 << n.slot
	}
}

// nextTick is the first tick at which something must be done: an entry fires
// or a slot of a higher level is spread over the lower ones.
func (w *Wheel) nextTick() (int64, bool) {
	best, found := int64(0), false
	for l := range wheelLevels {
		if w.used[l] == 0 {
			continue
		}
		shift := uint(l * wheelBits)
		cur := w.now >> shift
		// The slot of the current turn was emptied when it was entered, so
		// what stands in it belongs to the turn after.
		rot := bits.RotateLeft64(w.used[l], -int((cur+1)&(wheelSlots-1)))
		t := (cur + 1 + int64(bits.TrailingZeros64(rot))) << shift
		if !found || t < best {
			best, found = t, true
		}
	}
	return best, found
}

// Next is the instant at which Advance should be called next; false when
// nothing is pending. It may be earlier than the first entry.
func (w *Wheel) Next() (time.Time, bool) {
	t, ok := w.nextTick()
	if !ok {
		return time.Time{}, false
	}
	return w.base.Add(time.Duration(t) * wheelTick), true
}

// Advance moves the wheel to now and calls fire for each entry that is due.
// fire may add and cancel entries.
func (w *Wheel) Advance(now time.Time, fire func(key uint64)) {
	target := int64(now.Sub(w.base) / wheelTick)
	for {
		t, ok := w.nextTick()
		if !ok || t > target {
			break
		}
		w.now = t
		for l := wheelLevels - 1; l > 0; l-- {
			shift := uint(l * wheelBits)
			if t&(1<<shift-1) != 0 {
				continue
			}
			slot := int(t>>shift) & (wheelSlots - 1)
			for w.slots[l][slot] != 0 {
				i := w.slots[l][slot] - 1
				w.unlink(i)
				w.link(i)
			}
		}
		slot := int(t) & (wheelSlots - 1)
		for w.slots[0][slot] != 0 {
			i := w.slots[0][slot] - 1
			key := w.nodes[i].key
			w.unlink(i)
			w.release(i)
			fire(key)
		}
	}
	if target > w.now {
		w.now = target
	}
}
