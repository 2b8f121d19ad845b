package dialog

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"rollcall/sip"
)

// The table, the arena and the interner together hold what a map would.
func TestRecords(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 3))
		sh := &shard{rt: &Runtime{shared: newInterner()}}
		type want struct {
			text [texts]string
			uri  string
		}
		wants := map[uint64]want{}
		s := func(id uint64) *subscription { return sh.subs.get(id) }
		text := func() (t [texts][]byte, w [texts]string) {
			for i := range t {
				w[i] = strings.Repeat(string(rune('a'+rng.IntN(26))), rng.IntN(60)*rng.IntN(2))
				if rng.IntN(400) == 0 {
					w[i] = strings.Repeat("long", 20_000)
				}
				t[i] = []byte(w[i])
			}
			return t, w
		}
		check := func(id uint64, w want) {
			r := s(id)
			if r == nil {
				t.Fatalf("seed %d: %x is not there", seed, id)
			}
			o := sh.own(r)
			for i, v := range o.t {
				if string(v) != w.text[i] {
					t.Fatalf("seed %d: text %d of %x is %.40q, want %.40q", seed, i, id, v, w.text[i])
				}
			}
			if o.watcher != w.uri {
				t.Fatalf("seed %d: watcher %q, want %q", seed, o.watcher, w.uri)
			}
		}
		ids := func() uint64 { return rng.Uint64() & 0x3ff } // they collide in the index
		grow := 8
		for step := range 6000 {
			if step == 3000 {
				grow = 3
			}
			id := ids()
			_, there := wants[id]
			switch {
			case there != (s(id) != nil):
				t.Fatalf("seed %d: %x there %v, want %v", seed, id, !there, there)
			case !there && rng.IntN(10) < grow:
				r := sh.subs.add(id)
				r.n.phase = phaseActive
				b, w := text()
				uri := fmt.Sprint("sip:", rng.IntN(50))
				sh.share(&r.watcher, []byte(uri))
				sh.keep(r, &b)
				wants[id] = want{w, uri}
			case there && rng.IntN(10) < grow/2:
				b, w := text()
				sh.keep(s(id), &b)
				wants[id] = want{w, wants[id].uri}
			case there:
				r := s(id)
				sh.subs.drop(id)
				sh.gone = append(sh.gone, r)
				r.n.phase = phaseGone
				if rng.IntN(3) == 0 {
					sh.bury()
				}
				delete(wants, id)
			}
			if step%500 == 0 {
				seen := 0
				for r := range sh.subs.all() {
					if _, ok := wants[r.id]; !ok {
						t.Fatalf("seed %d: %x is still there", seed, r.id)
					}
					seen++
				}
				if seen != len(wants) || sh.subs.len() != seen {
					t.Fatalf("seed %d: %d subscriptions, counted %d, want %d", seed, seen, sh.subs.len(), len(wants))
				}
				for id, w := range wants {
					check(id, w)
				}
				held := 0
				for _, c := range sh.arena.chunks {
					held += cap(c.b)
				}
				if held > 2*sh.arena.live+4*maxChunk {
					t.Fatalf("seed %d: the arena has %d octets for %d", seed, held, sh.arena.live)
				}
			}
		}
		for id := range wants {
			r := s(id)
			sh.subs.drop(id)
			sh.gone = append(sh.gone, r)
		}
		sh.bury()
		if n := sh.rt.shared.len(); n != 0 || sh.arena.chunks != nil || sh.subs.slabs != nil || sh.subs.index != nil || sh.subs.partial != nil {
			t.Fatalf("seed %d: left %d texts, arena %d, table %+v", seed, n, len(sh.arena.chunks), sh.subs)
		}
	}
}

// Texts are shared by all shards; -race watches.
func TestInterner(t *testing.T) {
	in := newInterner()
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, 4))
			held := map[sym]string{}
			for range 20_000 {
				if rng.IntN(2) == 0 {
					text := fmt.Sprint(rng.IntN(300))
					y := in.intern([]byte(text))
					if _, ok := held[y]; ok {
						in.drop(y)
					}
					held[y] = text
				} else {
					for y, text := range held {
						if in.text(y) != text {
							t.Errorf("%d stands for %q, want %q", y, in.text(y), text)
						}
						in.drop(y)
						delete(held, y)
						break
					}
				}
			}
			for y := range held {
				in.drop(y)
			}
		})
	}
	wg.Wait()
	if in.len() != 0 {
		t.Errorf("%d texts left", in.len())
	}
}

// A flow comes back from a record as it was.
func TestRecordedFlow(t *testing.T) {
	sh := &shard{rt: &Runtime{shared: newInterner()}}
	for _, f := range []sip.Flow{
		{Proto: sip.UDP, Local: netip.MustParseAddrPort("192.0.2.9:5060"), Remote: netip.MustParseAddrPort("192.0.2.1:5070")},
		{Proto: sip.TLS, Local: netip.MustParseAddrPort("[2001:db8::1]:5061"), Remote: netip.MustParseAddrPort("[2001:db8::2]:40000"), Conn: 7},
		{Proto: sip.UDP, Local: netip.MustParseAddrPort("[fe80::1%eth0]:5060"), Remote: netip.MustParseAddrPort("[fe80::2%eth1]:5060")},
		{Proto: sip.WSS, Local: netip.MustParseAddrPort("[::ffff:192.0.2.1]:443"), Remote: netip.MustParseAddrPort("[::ffff:192.0.2.2]:1"), Conn: goneConn},
		{Proto: sip.TLS, Local: netip.MustParseAddrPort("192.0.2.9:5061"), Remote: netip.MustParseAddrPort("192.0.2.1:5061"), Domain: "example.com", Conn: 3},
		{Proto: sip.TCP, Local: netip.MustParseAddrPort("192.0.2.9:5061"), Remote: netip.MustParseAddrPort("192.0.2.1:5061"), Upgraded: true},
	} {
		s := sh.subs.add(uint64(f.Remote.Port()))
		sh.storeFlow(s, f)
		if got := sh.flow(s); got != f {
			t.Errorf("%+v came back as %+v", f, got)
		}
		sh.storeFlow(s, sip.Flow{Remote: f.Remote})
		if got := sh.flow(s); got != (sip.Flow{Remote: f.Remote}) {
			t.Errorf("after another one: %+v", got)
		}
	}
}
