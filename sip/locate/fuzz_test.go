package locate

import (
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// FuzzRead: whatever a message says, what is kept of it is bounded and can be
// sent to or asked for.
func FuzzRead(f *testing.F) {
	ns := &nameServer{asked: map[string]int{}}
	ns.load(f, zone)
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeNAPTR}
	for _, name := range []string{"full.example.com.", "_sip._udp.srv.example.com.", "h1.example.com.", "alias.example.com.", "loop.example.com.", "none.example.com."} {
		for i, typ := range types {
			q := new(dns.Msg)
			q.SetQuestion(name, typ)
			m := ns.answer(q)
			for _, rr := range ns.zone {
				if rr.Header().Rrtype == dns.TypeA {
					m.Extra = append(m.Extra, rr)
				}
			}
			if b, err := m.Pack(); err == nil {
				f.Add(b, name, byte(i))
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, name string, typ byte) {
		var m dns.Msg
		if m.Unpack(b) != nil {
			return
		}
		k := key{dns.CanonicalName(name), types[int(typ)%len(types)]}
		a, err := read(&m, k)
		if err != nil {
			if !a.none() || a.alias != "" {
				t.Fatalf("an error and %+v", a)
			}
			return
		}
		if len(a.naptr)+len(a.srv)+len(a.addrs) > maxRecords || len(a.glue) > 2*maxRecords {
			t.Fatalf("%d+%d+%d records, %d glue", len(a.naptr), len(a.srv), len(a.addrs), len(a.glue))
		}
		if a.ttl < minTTL || a.ttl > maxTTL || a.none() && a.ttl > maxNegativeTTL && a.alias == "" {
			t.Fatalf("TTL %v", a.ttl)
		}
		if a.alias != "" && (!a.none() || !isTarget(a.alias) || strings.EqualFold(a.alias, k.name)) {
			t.Fatalf("alias %q of %q and %+v", a.alias, k.name, a.records)
		}
		for i, s := range a.srv {
			if s.target != "." && (!isTarget(s.target) || s.port == 0) || i > 0 && s.priority < a.srv[i-1].priority {
				t.Fatalf("SRV %+v", a.srv)
			}
		}
		for i, n := range a.naptr {
			if !isTarget(n.target) || i > 0 && n.order < a.naptr[i-1].order {
				t.Fatalf("NAPTR %+v", a.naptr)
			}
		}
		for _, g := range append(a.glue, glue{key: k, addrs: a.addrs, ttl: minTTL}) {
			if len(g.addrs) > maxRecords || g.ttl < minTTL || g.ttl > maxTTL {
				t.Fatalf("glue %+v", g)
			}
			for i, addr := range g.addrs {
				if !sendable(addr) || addr.Is4In6() {
					t.Fatalf("address %v", addr)
				}
				for _, other := range g.addrs[:i] {
					if other == addr {
						t.Fatalf("%v twice", addr)
					}
				}
			}
		}
	})
}
