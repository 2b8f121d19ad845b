package locate

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"
)

func BenchmarkCached(b *testing.B) {
	ns := serve(b, zone+`
_sip._udp.big.example.com. 600 IN SRV 1 10 5060 h1.example.com.
_sip._udp.big.example.com. 600 IN SRV 1 20 5060 h2.example.com.
_sip._udp.big.example.com. 600 IN SRV 1 30 5060 v6.example.com.
_sip._udp.big.example.com. 600 IN SRV 2 0 5060 mapped.example.com.
`)
	now := time.Now()
	r := with(b, func(o *Options) { o.Rand = rand.IntN; o.Now = func() time.Time { return now } }, ns.addr)
	for _, c := range []struct{ name, uri string }{
		{"naptr", "sip:alice@full.example.com"},
		{"weights", "sip:alice@big.example.com;transport=udp"},
		{"port", "sip:alice@h2.example.com:5060"},
		{"address", "sip:alice@192.0.2.1:5060;transport=tcp"},
	} {
		b.Run(c.name, func(b *testing.B) {
			if _, err := r.Targets(context.Background(), c.uri); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := r.Cached(c.uri); !ok {
					b.Fatal("not cached")
				}
			}
		})
	}
	b.Run("failed", func(b *testing.B) {
		ts, _ := r.Targets(context.Background(), "sip:big.example.com;transport=udp")
		r.Failed(ts[0], time.Hour)
		b.ReportAllocs()
		for b.Loop() {
			r.Cached("sip:big.example.com;transport=udp")
		}
	})
}
