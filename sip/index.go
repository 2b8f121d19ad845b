package sip

// index finds slots by keys that are hashes already. The slots hold their keys,
// so an entry takes five octets and not the 16 and more of a map, and after a
// burst it shrinks again. A key may be there once.
type index struct {
	key   func(slot uint32) uint64
	tags  []uint8 // tagEmpty, tagGone, or seven bits of the key
	slots []uint32
	n     int // entries
	used  int // entries and what is gone
}

const (
	tagEmpty = 0
	tagGone  = 1 // was used: what comes after it may belong before it
	tagUsed  = 0x80

	indexLeast = 16 // a power of two
)

func tagOf(key uint64) uint8 { return uint8(key>>57) | tagUsed }

// find gives the slot of a key.
func (x *index) find(key uint64) (slot uint32, ok bool) {
	if x.n == 0 {
		return 0, false
	}
	mask, tag := len(x.tags)-1, tagOf(key)
	for i := int(key) & mask; x.tags[i] != tagEmpty; i = (i + 1) & mask {
		if x.tags[i] == tag && x.key(x.slots[i]) == key {
			return x.slots[i], true
		}
	}
	return 0, false
}

// add enters a key that is not there.
func (x *index) add(key uint64, slot uint32) {
	if 8*(x.used+1) > 7*len(x.tags) {
		x.resize()
	}
	mask := len(x.tags) - 1
	i := int(key) & mask
	for x.tags[i] >= tagUsed {
		i = (i + 1) & mask
	}
	if x.tags[i] == tagEmpty {
		x.used++
	}
	x.tags[i], x.slots[i] = tagOf(key), slot
	x.n++
}

// remove takes out the entry of a slot, which is there.
func (x *index) remove(key uint64, slot uint32) {
	mask, tag := len(x.tags)-1, tagOf(key)
	i := int(key) & mask
	for x.tags[i] != tag || x.slots[i] != slot {
		i = (i + 1) & mask
	}
	x.n--
	x.tags[i] = tagGone
	if x.tags[(i+1)&mask] == tagEmpty { // nothing comes after it
		for ; x.tags[i] == tagGone; i = (i - 1) & mask {
			x.tags[i] = tagEmpty
			x.used--
		}
	}
	if len(x.tags) > indexLeast && 16*x.n < len(x.tags) {
		x.resize()
	}
}

// resize makes room for a third more than there is.
func (x *index) resize() {
	size := indexLeast
	for 4*(x.n+1) > 3*size {
		size *= 2
	}
	tags, slots := x.tags, x.slots
	x.tags, x.slots = make([]uint8, size), make([]uint32, size)
	x.n, x.used = 0, 0
	for i, tag := range tags {
		if tag >= tagUsed {
			x.add(x.key(slots[i]), slots[i])
		}
	}
}
