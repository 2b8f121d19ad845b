package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
	"math"
	"sync"
	"time"
)

// A nonce is the base64 text of
//
//	8 octets  time of issue, nanoseconds since 1970
//	8 octets  random
//	14 octets HMAC-SHA-256, cut, of these and the realm
//
// which needs no padding, so that every nonce has one text only. The algorithm
// is not part of it: all challenges of a response share a nonce, and a count
// used with one algorithm is used up for the others too.
const (
	nonceIDLen = 16
	nonceLen   = 30
	nonceText  = nonceLen / 3 * 4
)

type nonceID struct {
	at int64 // nanoseconds since 1970
	id uint64
}

// window holds which of the 64 newest counts of a nonce were used: bit i is
// count top-i.
type window struct {
	top  uint32
	bits uint64
}

// use tells whether a count is fresh, and with mark uses it up.
func (w *window) use(nc uint32, mark bool) bool {
	next := *w
	if nc > w.top {
		next.bits = w.bits<<(nc-w.top) | 1
		next.top = nc
	} else {
		bit := uint64(1) << (w.top - nc) // 0 when nc has left the window
		if nc == 0 || bit == 0 || w.bits&bit != 0 {
			return false
		}
		next.bits |= bit
	}
	if mark {
		*w = next
	}
	return true
}

// nonces makes nonces, knows its own again and remembers the counts of those
// that were used. It locks itself.
type nonces struct {
	life    time.Duration
	macs    sync.Pool // of *mac
	stripes []stripe
}

type mac struct {
	h   hash.Hash
	buf []byte
	sum [sha256.Size]byte
}

// stripe is a ring of the nonces in order of their first use. A full one
// forgets the oldest. From then on every nonce that is not in the ring and not
// younger than a forgotten one is stale, as it might be the forgotten one.
type stripe struct {
	mu        sync.Mutex
	watermark int64 // newest time of issue of what was forgotten
	index     map[nonceID]uint32
	ring      []slot
	head, n   uint32
	_         [8]byte // keeps the locks of two stripes out of one cache line
}

type slot struct {
	nonceID
	window
}

func newNonces(key []byte, life time.Duration, limit int) *nonces {
	if key == nil {
		key = make([]byte, 32)
		rand.Read(key)
	}
	count := 1
	if limit >= 1024 {
		count = 16
	}
	t := &nonces{life: life, stripes: make([]stripe, count)}
	t.macs.New = func() any { return &mac{h: hmac.New(sha256.New, key)} }
	for i := range t.stripes {
		t.stripes[i] = stripe{watermark: math.MinInt64, index: map[nonceID]uint32{}, ring: make([]slot, limit/count)}
	}
	return t
}

func (t *nonces) stripe(k nonceID) *stripe { return &t.stripes[k.id%uint64(len(t.stripes))] }

// appendMAC appends the nonce's last octets to its first ones.
func (t *nonces) appendMAC(id []byte, realm string) []byte {
	m := t.macs.Get().(*mac)
	defer t.macs.Put(m)
	m.h.Reset()
	m.buf = append(append(m.buf[:0], id[:nonceIDLen]...), realm...)
	m.h.Write(m.buf)
	m.h.Sum(m.sum[:0])
	return append(id, m.sum[:nonceLen-nonceIDLen]...)
}

// mint makes a nonce.
func (t *nonces) mint(now time.Time, realm string) []byte {
	var b [nonceLen]byte
	rand.Read(b[8:nonceIDLen])
	k := nonceID{now.UnixNano(), binary.BigEndian.Uint64(b[8:])}
	s := t.stripe(k)
	s.mu.Lock()
	k.at = max(k.at, s.watermark+1) // else all would be stale after the clock was set back
	s.mu.Unlock()
	binary.BigEndian.PutUint64(b[:], uint64(k.at))
	return base64.URLEncoding.AppendEncode(nil, t.appendMAC(b[:nonceIDLen], realm))
}

// open tells which nonce a text is: one of ours for the realm that is not too old.
func (t *nonces) open(now time.Time, text []byte, realm string) (nonceID, bool) {
	if len(text) != nonceText {
		return nonceID{}, false
	}
	var b, want [nonceLen]byte
	if n, err := base64.URLEncoding.Decode(b[:], text); err != nil || n != nonceLen {
		return nonceID{}, false
	}
	copy(want[:], b[:nonceIDLen])
	t.appendMAC(want[:nonceIDLen], realm)
	if !hmac.Equal(want[:], b[:]) {
		return nonceID{}, false
	}
	k := nonceID{int64(binary.BigEndian.Uint64(b[:])), binary.BigEndian.Uint64(b[8:])}
	return k, t.young(now, k)
}

func (t *nonces) young(now time.Time, k nonceID) bool { return now.UnixNano()-k.at <= int64(t.life) }

// use tells whether a count of a nonce is fresh, and with mark uses it up.
// Count 0 stands for the nonce as a whole: it must be unused, and is used up.
func (t *nonces) use(now time.Time, k nonceID, nc uint32, mark bool) bool {
	s := t.stripe(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, ok := s.index[k]; ok {
		return s.ring[i].use(nc, mark)
	}
	if k.at <= s.watermark {
		return false
	}
	if !mark {
		return true
	}
	size := uint32(len(s.ring))
	for s.n > 0 && (s.n == size || !t.young(now, s.ring[s.head].nonceID)) {
		old := &s.ring[s.head]
		s.watermark = max(s.watermark, old.at)
		delete(s.index, old.nonceID)
		s.head, s.n = (s.head+1)%size, s.n-1
	}
	i := (s.head + s.n) % size
	s.n++
	w := window{nc, 1}
	if nc == 0 {
		w = window{math.MaxUint32, math.MaxUint64}
	}
	s.ring[i] = slot{k, w}
	s.index[k] = i
	return true
}
