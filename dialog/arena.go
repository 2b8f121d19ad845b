package dialog

import "encoding/binary"

// arena holds the texts of one shard's subscriptions outside the sight of the
// garbage collector. Blocks are written one after the other into chunks; those
// of a chunk in which little is left are moved.
type arena struct {
	chunks []chunk
	free   []uint32 // indexes of chunks that are nil
	fill   uint32   // the chunk that is being filled
	live   int      // octets in blocks, with their heads
}

type chunk struct {
	b    []byte
	live int
}

// block names a block of an arena. The zero block is none.
type block struct {
	chunk  uint32 // index plus 1
	offset uint32
}

const (
	blockHead = 8 // owner and length
	deadBlock = 1<<32 - 1
	minChunk  = 2 << 10
	maxChunk  = 32 << 10
)

// put stores a text for an owner, whose number is not deadBlock.
func (a *arena) put(owner uint32, text []byte) block {
	need := blockHead + len(text)
	if a.fill == 0 || cap(a.chunks[a.fill-1].b)-len(a.chunks[a.fill-1].b) < need {
		a.grow(need)
	}
	c := &a.chunks[a.fill-1]
	r := block{a.fill, uint32(len(c.b))}
	c.b = binary.LittleEndian.AppendUint32(c.b, owner)
	c.b = binary.LittleEndian.AppendUint32(c.b, uint32(len(text)))
	c.b = append(c.b, text...)
	c.live += need
	a.live += need
	return r
}

func (a *arena) grow(need int) {
	size := max(min(max(a.live/8, minChunk), maxChunk), need)
	c := chunk{b: make([]byte, 0, size)}
	if n := len(a.free); n > 0 {
		a.fill = a.free[n-1] + 1
		a.free = a.free[:n-1]
		a.chunks[a.fill-1] = c
		return
	}
	a.chunks = append(a.chunks, c)
	a.fill = uint32(len(a.chunks))
}

// get is the text of a block, valid until the next put or drop.
func (a *arena) get(r block) []byte {
	b := a.chunks[r.chunk-1].b[r.offset:]
	n := binary.LittleEndian.Uint32(b[4:])
	return b[blockHead : blockHead+n]
}

// drop frees a block. moved is told of others that have another place now.
func (a *arena) drop(r block, moved func(owner uint32, to block)) {
	c := &a.chunks[r.chunk-1]
	b := c.b[r.offset:]
	n := blockHead + int(binary.LittleEndian.Uint32(b[4:]))
	binary.LittleEndian.PutUint32(b, deadBlock)
	c.live -= n
	a.live -= n
	switch {
	case a.live == 0:
		*a = arena{}
	case r.chunk == a.fill:
	case c.live == 0:
		a.release(r.chunk)
	case c.live < cap(c.b)/2:
		old := c.b
		for len(old) > 0 {
			n := blockHead + int(binary.LittleEndian.Uint32(old[4:]))
			if owner := binary.LittleEndian.Uint32(old); owner != deadBlock {
				a.live -= n
				moved(owner, a.put(owner, old[blockHead:n]))
			}
			old = old[n:]
		}
		a.release(r.chunk)
	}
}

func (a *arena) release(n uint32) {
	a.chunks[n-1] = chunk{}
	a.free = append(a.free, n-1)
}
