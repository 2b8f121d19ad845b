package dialog

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

// sym stands for a text in the interner; 0 is the empty one.
type sym uint32

// interner keeps one copy of the texts that many subscriptions share: watchers,
// resources, route sets, user agents. Each sym that intern or again gave is
// given back with drop. Reading one that is held takes no lock.
type interner struct {
	seed    maphash.Seed
	stripes [1 << stripeBits]stripe
}

const (
	stripeBits = 6
	pageBits   = 6
)

// stripe is a part of the interner with a lock of its own.
type stripe struct {
	mu    sync.Mutex
	index map[string]uint32
	pages atomic.Pointer[[]*page]
	next  uint32   // never used from here on
	free  []uint32 // given back
}

type page [1 << pageBits]interned

type interned struct {
	text string
	refs uint32 // under the stripe's lock
}

func newInterner() *interner {
	in := &interner{seed: maphash.MakeSeed()}
	for i := range in.stripes {
		in.stripes[i].index = make(map[string]uint32)
		in.stripes[i].pages.Store(new([]*page))
	}
	return in
}

func (s *stripe) at(i uint32) *interned { return &(*s.pages.Load())[i>>pageBits][i&(1<<pageBits-1)] }

// intern gives the sym of a text and holds it.
func (in *interner) intern(text []byte) sym {
	if len(text) == 0 {
		return 0
	}
	n := maphash.Bytes(in.seed, text) & (1<<stripeBits - 1)
	s := &in.stripes[n]
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.index[string(text)]
	if !ok {
		i = s.take()
		e := s.at(i)
		e.text = string(text)
		s.index[e.text] = i
	}
	s.at(i).refs++
	return sym(i+1)<<stripeBits | sym(n)
}

// take finds a place for a text.
func (s *stripe) take() uint32 {
	if n := len(s.free); n > 0 {
		i := s.free[n-1]
		s.free = s.free[:n-1]
		return i
	}
	i := s.next
	s.next++
	if i&(1<<pageBits-1) == 0 {
		old := *s.pages.Load()
		pages := append(old[:len(old):len(old)], new(page)) // readers have the old slice
		s.pages.Store(&pages)
	}
	return i
}

func (in *interner) split(y sym) (*stripe, uint32) {
	return &in.stripes[y&(1<<stripeBits-1)], uint32(y>>stripeBits) - 1
}

// text is what a sym stands for.
func (in *interner) text(y sym) string {
	if y == 0 {
		return ""
	}
	s, i := in.split(y)
	return s.at(i).text
}

// drop gives a sym back.
func (in *interner) drop(y sym) {
	if y == 0 {
		return
	}
	s, i := in.split(y)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.at(i)
	if e.refs--; e.refs > 0 {
		return
	}
	delete(s.index, e.text)
	e.text = ""
	s.free = append(s.free, i)
	if len(s.index) == 0 { // what was grown for a crowd goes with it
		s.index, s.free, s.next = make(map[string]uint32), nil, 0
		s.pages.Store(new([]*page))
	}
}

// len counts the texts.
func (in *interner) len() int {
	n := 0
	for i := range in.stripes {
		s := &in.stripes[i]
		s.mu.Lock()
		n += len(s.index)
		s.mu.Unlock()
	}
	return n
}
