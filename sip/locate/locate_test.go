package locate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"rollcall/sip"
)

const zone = soa + `
full.example.com.  60 IN NAPTR 50 50 "s" "SIPS+D2T" "" _sips._tcp.full.example.com.
full.example.com.  60 IN NAPTR 90 50 "s" "SIP+D2T" "" _sip._tcp.full.example.com.
full.example.com.  60 IN NAPTR 100 50 "s" "SIP+D2U" "" _sip._udp.full.example.com.
_sips._tcp.full.example.com. 60 IN SRV 0 0 5061 h1.example.com.
_sip._tcp.full.example.com.  60 IN SRV 0 0 5060 h1.example.com.
_sip._udp.full.example.com.  60 IN SRV 0 0 5062 h1.example.com.

same.example.com.  60 IN NAPTR 10 20 "S" "sip+d2u" "" _sip._udp.full.example.com.
same.example.com.  60 IN NAPTR 10 10 "s" "SIP+D2T" "" _sip._tcp.full.example.com.
same.example.com.  60 IN NAPTR 10 5 "s" "SIP+D2W" "" _sip._ws.full.example.com.
same.example.com.  60 IN NAPTR 5 5 "s" "SIP+D2S" "" _sip._sctp.full.example.com.
same.example.com.  60 IN NAPTR 5 5 "u" "E2U+sip" "!^.*$!sip:x@example.com!" .
same.example.com.  60 IN NAPTR 5 5 "" "SIP+D2U" "" naptr.example.com.
same.example.com.  60 IN NAPTR 5 5 "s" "SIP+D2U" "!.*!x!" _sip._udp.h2.example.com.

tie.example.com.   60 IN NAPTR 10 10 "s" "SIP+D2T" "" _sip._tcp.full.example.com.
tie.example.com.   60 IN NAPTR 10 10 "s" "SIP+D2U" "" _sip._udp.full.example.com.

direct.example.com. 60 IN NAPTR 10 10 "a" "SIPS+D2T" "" h2.example.com.
direct.example.com. 60 IN NAPTR 10 20 "a" "SIP+D2T" "" h2.example.com.

away.example.com.  60 IN NAPTR 10 10 "s" "SIPS+D2T" "" _sips._tcp.provider.example.org.
_sips._tcp.provider.example.org. 60 IN SRV 0 0 5071 sbc.provider.example.org.
sbc.provider.example.org. 60 IN A 192.0.2.71

ws.example.com.    60 IN NAPTR 10 10 "s" "SIP+D2W" "" _sip._ws.ws.example.com.
_sip._tcp.ws.example.com. 60 IN SRV 0 0 5064 h2.example.com.

nosrv.example.com. 60 IN NAPTR 10 10 "s" "SIP+D2T" "" _sip._tcp.nosrv.example.com.
nosrv.example.com. 60 IN A 192.0.2.9

srv.example.com.   60 IN A 192.0.2.99
_sip._udp.srv.example.com. 60 IN SRV 20 0 5060 h2.example.com.
_sip._udp.srv.example.com. 60 IN SRV 10 0 5070 h1.example.com.
_sip._tcp.srv.example.com. 60 IN SRV 0 0 5060 h1.example.com.
_sips._tcp.srv.example.com. 60 IN SRV 0 0 5061 h2.example.com.

off.example.com.   60 IN A 192.0.2.98
_sip._udp.off.example.com. 60 IN SRV 0 0 0 .
_sip._udp.part.example.com. 60 IN SRV 0 0 0 .
_sip._tcp.part.example.com. 60 IN SRV 0 0 5060 h2.example.com.
bad.example.com.   60 IN A 192.0.2.97
_sip._udp.bad.example.com. 60 IN SRV 0 0 0 h1.example.com.
_sip._udp.void.example.com. 60 IN SRV 0 0 5060 nothing.example.com.
void.example.com.  60 IN A 192.0.2.96

h1.example.com.    60 IN A 192.0.2.1
h1.example.com.    60 IN AAAA 2001:db8::1
h2.example.com.    60 IN A 192.0.2.2
v6.example.com.    60 IN AAAA 2001:db8::6
mapped.example.com. 60 IN AAAA ::ffff:192.0.2.3
nowhere.example.com. 60 IN A 0.0.0.0
nowhere.example.com. 60 IN A 224.0.1.75
nowhere.example.com. 60 IN AAAA ::
alias.example.com. 60 IN CNAME alias2.example.com.
alias2.example.com. 60 IN CNAME h2.example.com.
_sip._udp.asrv.example.com. 60 IN CNAME _sip._udp.srv.example.com.
loop.example.com.  60 IN CNAME loop2.example.com.
loop2.example.com. 60 IN CNAME loop.example.com.
self.example.com.  60 IN CNAME self.example.com.
`

func TestTargets(t *testing.T) {
	ns := serve(t, zone)
	r := with(t, nil, ns.addr)
	udpTCP := with(t, func(o *Options) { o.Protos = []sip.Proto{sip.UDP, sip.TCP} }, ns.addr)
	tcpTLS := with(t, func(o *Options) { o.Protos = []sip.Proto{sip.TCP, sip.TLS, sip.WS, sip.TCP} }, ns.addr)

	for _, c := range []struct {
		name, uri string
		r         *Resolver
		want      string
		err       error
		domain    string
	}{
		{name: "DNS-01 transport parameter before NAPTR", uri: "sip:a@full.example.com;transport=udp", want: "UDP [2001:db8::1]:5062, UDP 192.0.2.1:5062"},
		{name: "DNS-01 transport parameter in capitals, escaped", uri: "sip:full.example.com;Transport=T%43P", want: "TCP [2001:db8::1]:5060, TCP 192.0.2.1:5060"},
		{name: "DNS-01 transport=tls asks _sips", uri: "sip:srv.example.com;transport=tls", want: "TLS 192.0.2.2:5061"},
		{name: "DNS-01 transport without SRV: default port", uri: "sip:h2.example.com;transport=tcp", want: "TCP 192.0.2.2:5060"},
		{name: "DNS-01 transport=tls without SRV: 5061", uri: "sip:h2.example.com;transport=tls", want: "TLS 192.0.2.2:5061"},
		{name: "DNS-01 transport and port: no SRV", uri: "sip:srv.example.com:5080;transport=tcp", want: "TCP 192.0.2.99:5080"},
		{name: "DNS-01 unknown transport", uri: "sip:full.example.com;transport=ws", err: ErrTransport},
		{name: "DNS-01 transport we have not", r: udpTCP, uri: "sip:full.example.com;transport=tls", err: ErrTransport},
		{name: "DNS-01 numeric IPv4: UDP", uri: "sip:alice@192.0.2.7", want: "UDP 192.0.2.7:5060", domain: "192.0.2.7"},
		{name: "DNS-01 numeric IPv6, port", uri: "sip:[2001:DB8::7]:5080", want: "UDP [2001:db8::7]:5080", domain: "2001:db8::7"},
		{name: "DNS-01 numeric, transport", uri: "sip:192.0.2.7;transport=tcp", want: "TCP 192.0.2.7:5060"},
		{name: "DNS-01 numeric, sips", uri: "sips:192.0.2.7", want: "TLS 192.0.2.7:5061"},
		{name: "DNS-01 numeric, we have no UDP", r: tcpTLS, uri: "sip:192.0.2.7", want: "TCP 192.0.2.7:5060"},
		{name: "numeric, unspecified", uri: "sip:0.0.0.0", err: ErrName},
		{name: "numeric, multicast", uri: "sip:224.0.1.75", err: ErrName},
		{name: "numeric top label", uri: "sip:300.1.2.3", err: ErrName},
		{name: "DNS-01 port: UDP, no NAPTR or SRV", uri: "sip:srv.example.com:5060", want: "UDP 192.0.2.99:5060"},
		{name: "DNS-01 port, sips", uri: "sips:srv.example.com:5060", want: "TLS 192.0.2.99:5060"},
		{name: "DNS-01 NAPTR: only the first order we can use", uri: "sip:full.example.com", want: "TLS [2001:db8::1]:5061, TLS 192.0.2.1:5061"},
		{name: "DNS-01 NAPTR without TLS of ours", r: udpTCP, uri: "sip:full.example.com", want: "TCP [2001:db8::1]:5060, TCP 192.0.2.1:5060"},
		{name: "DNS-01 NAPTR, sips", uri: "sips:full.example.com", want: "TLS [2001:db8::1]:5061, TLS 192.0.2.1:5061"},
		{name: "DNS-01 NAPTR of one order by preference; D2W, D2S, ENUM, regexp, non-terminal skipped", uri: "sip:same.example.com",
			want: "TCP [2001:db8::1]:5060, TCP 192.0.2.1:5060, UDP [2001:db8::1]:5062, UDP 192.0.2.1:5062"},
		{name: "DNS-01 sips discards SIP services; nothing left", uri: "sips:same.example.com", err: ErrNotFound},
		{name: "DNS-01 NAPTR equal: our preference", uri: "sip:tie.example.com",
			want: "UDP [2001:db8::1]:5062, UDP 192.0.2.1:5062, TCP [2001:db8::1]:5060, TCP 192.0.2.1:5060"},
		{name: "DNS-01 NAPTR flag a", uri: "sip:direct.example.com", want: "TLS 192.0.2.2:5061, TCP 192.0.2.2:5060"},
		{name: "DNS-01 NAPTR to another domain: certificate of ours", uri: "sip:Away.example.com.", want: "TLS 192.0.2.71:5071", domain: "away.example.com"},
		{name: "DNS-01 NAPTR only of WebSocket: SRV", uri: "sip:ws.example.com", want: "TCP 192.0.2.2:5064"},
		{name: "DNS-01 NAPTR without SRV: its transport, A", uri: "sip:nosrv.example.com", want: "TCP 192.0.2.9:5060"},
		{name: "DNS-01 SRV of all ours, in our preference", uri: "sip:srv.example.com",
			want: "UDP [2001:db8::1]:5070, UDP 192.0.2.1:5070, UDP 192.0.2.2:5060, TCP [2001:db8::1]:5060, TCP 192.0.2.1:5060, TLS 192.0.2.2:5061"},
		{name: "DNS-01 SRV, another preference", r: tcpTLS, uri: "sip:srv.example.com",
			want: "TCP [2001:db8::1]:5060, TCP 192.0.2.1:5060, TLS 192.0.2.2:5061"},
		{name: "DNS-01 SRV, sips", uri: "sips:srv.example.com", want: "TLS 192.0.2.2:5061"},
		{name: "DNS-01 nothing but A: UDP", uri: "sip:h2.example.com", want: "UDP 192.0.2.2:5060"},
		{name: "DNS-01 nothing but A, sips", uri: "sips:h2.example.com", want: "TLS 192.0.2.2:5061"},
		{name: "DNS-01 nothing but A, sips;transport=tcp", uri: "sips:h2.example.com;transport=tcp", want: "TLS 192.0.2.2:5061"},
		{name: "DNS-01 sips over UDP", uri: "sips:h2.example.com;transport=udp", err: ErrTransport},
		{name: "DNS-01 sips without TLS of ours", r: udpTCP, uri: "sips:h2.example.com", err: ErrTransport},
		{name: "DNS-01 nothing but A, no UDP of ours", r: tcpTLS, uri: "sip:h2.example.com", want: "TCP 192.0.2.2:5060"},
		{name: "maddr name", uri: "sip:full.example.com;maddr=h2.example.com", want: "UDP 192.0.2.2:5060", domain: "full.example.com"},
		{name: "maddr address", uri: "sip:full.example.com:5090;maddr=192.0.2.8", want: "UDP 192.0.2.8:5090", domain: "full.example.com"},
		{name: "maddr IPv6 address", uri: "sip:full.example.com;maddr=[2001:db8::8]", want: "UDP [2001:db8::8]:5060"},
		{name: "maddr empty", uri: "sip:full.example.com;maddr", err: ErrName},
		{name: "maddr with a zone", uri: "sip:full.example.com;maddr=fe80::1%25lo", err: ErrName},
		{name: "maddr not a name", uri: "sip:full.example.com;maddr=a%20b", err: ErrName},
		{name: "label too long", uri: "sip:" + strings.Repeat("a", 64) + ".example.com", err: ErrName},
		{name: "name too long", uri: "sip:" + strings.Repeat("abcdefg.", 32) + "com", err: ErrName},
		{name: "longest name", uri: "sip:" + strings.Repeat("abcdefg.", 31) + "com:5060", err: ErrNotFound},
		{name: "name too long only with _sip._udp: no such SRV", uri: "sip:" + strings.Repeat("abcdefg.", 31) + "com", err: ErrNotFound},
		{name: "pres", uri: "pres:a@example.com", err: ErrScheme},
		{name: "im", uri: "im:a@example.com", err: ErrScheme},
		{name: "tel", uri: "tel:+1234", err: ErrScheme},
		{name: "https", uri: "https://example.com", err: sip.ErrScheme},
		{name: "DNS-02 SRV target . : not available, no A", uri: "sip:off.example.com", err: ErrNotFound},
		{name: "DNS-02 SRV target . of one transport", uri: "sip:part.example.com", want: "TCP 192.0.2.2:5060"},
		{name: "DNS-02 SRV with port 0 is none", uri: "sip:bad.example.com", want: "UDP 192.0.2.97:5060"},
		{name: "DNS-02 SRV whose host has no address", uri: "sip:void.example.com", err: ErrNotFound},
		{name: "DNS-03 AAAA only", uri: "sip:v6.example.com", want: "UDP [2001:db8::6]:5060"},
		{name: "DNS-03 mapped address", uri: "sip:mapped.example.com", want: "UDP 192.0.2.3:5060"},
		{name: "addresses of nobody", uri: "sip:nowhere.example.com", err: ErrNotFound},
		{name: "CNAMEs of a host", uri: "sip:alias.example.com", want: "UDP 192.0.2.2:5060", domain: "alias.example.com"},
		{name: "CNAME of SRV", uri: "sip:asrv.example.com", want: "UDP [2001:db8::1]:5070, UDP 192.0.2.1:5070, UDP 192.0.2.2:5060"},
		{name: "CNAME loop", uri: "sip:loop.example.com:5060", err: errAliases},
		{name: "CNAME to itself", uri: "sip:self.example.com:5060", err: errAliases},
		{name: "no such name", uri: "sip:none.example.com", err: ErrNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := r
			if c.r != nil {
				r = c.r
			}
			got, err := r.Targets(context.Background(), c.uri)
			if !errors.Is(err, c.err) || c.err == nil && err != nil {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if s := strings.Join(texts(got), ", "); s != c.want {
				t.Errorf("got  %s\nwant %s", s, c.want)
			}
			cached, ok := r.Cached(c.uri)
			if ok != (err == nil) || !slices.Equal(cached, got) {
				t.Errorf("Cached: %v, %v", texts(cached), ok)
			}
			for _, target := range got {
				if c.domain != "" && target.Domain != c.domain {
					t.Errorf("domain %q, want %q", target.Domain, c.domain)
				}
			}
		})
	}
}

// DNS-01, DNS-02: what is not needed is not asked.
func TestQuestions(t *testing.T) {
	for uri, want := range map[string]string{
		"sip:srv.example.com:5060":          "A srv, AAAA srv",
		"sip:h2.example.com;transport=tcp":  "A h2, AAAA h2, SRV _sip._tcp.h2",
		"sips:h2.example.com;transport=tcp": "A h2, AAAA h2, SRV _sips._tcp.h2",
		"sip:full.example.com":              "A h1, AAAA h1, NAPTR full, SRV _sips._tcp.full",
		"sips:srv.example.com":              "A h2, AAAA h2, NAPTR srv, SRV _sips._tcp.srv",
		"sip:h2.example.com":                "A h2, AAAA h2, NAPTR h2, SRV _sip._tcp.h2, SRV _sip._udp.h2, SRV _sips._tcp.h2",
		"sip:192.0.2.1":                     "",
	} {
		ns := serve(t, zone)
		r := with(t, nil, ns.addr)
		targets(t, r, uri)
		targets(t, r, uri)
		var asked []string
		ns.mu.Lock()
		counts := maps.Clone(ns.asked)
		ns.mu.Unlock()
		for q, n := range counts {
			asked = append(asked, strings.TrimSuffix(q, ".example.com."))
			if n != 1 {
				t.Errorf("%s: %s asked %d times", uri, q, n)
			}
		}
		slices.Sort(asked)
		if got := strings.Join(asked, ", "); got != want {
			t.Errorf("%s: asked %s, want %s", uri, got, want)
		}
	}
}

// DNS-02: servers of one priority take turns by weight, each call anew.
func TestWeights(t *testing.T) {
	const runs = 20000
	for _, c := range []struct {
		name    string
		weights []int
		first   []float64 // how often each is the first
	}{
		{"proportional", []int{10, 30, 60}, []float64{0.10, 0.30, 0.60}},
		{"weight 0 has a very small chance", []int{0, 99, 0}, []float64{0.005, 0.99, 0.005}},
		{"all 0 share", []int{0, 0, 0, 0}, []float64{0.25, 0.25, 0.25, 0.25}},
		{"the largest", []int{65535, 65535}, []float64{0.5, 0.5}},
		{"one", []int{7}, []float64{1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := soa
			for i, w := range c.weights {
				text += fmt.Sprintf("_sip._udp.w.example.com. 60 IN SRV 1 %d 5060 n%d.example.com.\nn%d.example.com. 60 IN A 192.0.2.%d\n", w, i, i, i)
			}
			text += "_sip._udp.w.example.com. 60 IN SRV 2 1000 5060 backup.example.com.\nbackup.example.com. 60 IN A 192.0.2.200\n"
			ns := serve(t, text)
			r := with(t, nil, ns.addr)
			counts := make([]int, len(c.weights))
			for range runs {
				ts, err := r.Targets(context.Background(), "sip:w.example.com;transport=udp")
				if err != nil || len(ts) != len(c.weights)+1 {
					t.Fatal(ts, err)
				}
				seen := map[byte]bool{}
				for _, target := range ts {
					seen[target.Addr.Addr().As4()[3]] = true
				}
				if last := ts[len(ts)-1].Addr.Addr().As4()[3]; last != 200 || len(seen) != len(ts) {
					t.Fatalf("not each once, the backup last: %v", texts(ts))
				}
				counts[ts[0].Addr.Addr().As4()[3]]++
			}
			for i, n := range counts {
				if p := float64(n) / runs; p < c.first[i]-0.02 || p > c.first[i]+0.02 || n == 0 {
					t.Errorf("weight %d was first in %.4f, want %.4f", c.weights[i], p, c.first[i])
				}
			}
		})
	}
}

// DNS-02: the second choice is by weight too.
func TestWeightsOfTheRest(t *testing.T) {
	g := group{hosts: []host{{weight: 50}, {weight: 10}, {weight: 40}}}
	intN := seeded()
	second := [3]int{}
	n := 0
	for range 50000 {
		if o := g.order(nil, intN); o[0] == 0 {
			n++
			second[o[1]]++
		}
	}
	if p := float64(second[2]) / float64(n); p < 0.78 || p > 0.82 {
		t.Errorf("40 came before 10 in %.3f, want 0.8", p)
	}
}

// DNS-02: targets that failed come last, for the time said.
func TestFailed(t *testing.T) {
	ns := serve(t, soa+`
_sip._udp.f.example.com. 600 IN SRV 1 0 5060 a.example.com.
_sip._udp.f.example.com. 600 IN SRV 2 0 5060 b.example.com.
_sip._udp.f.example.com. 600 IN SRV 3 0 5060 c.example.com.
a.example.com. 600 IN A 192.0.2.1
b.example.com. 600 IN A 192.0.2.2
c.example.com. 600 IN A 192.0.2.3
`)
	clock := newClock()
	r := with(t, func(o *Options) { o.Now = clock.now }, ns.addr)
	const uri = "sip:f.example.com;transport=udp"
	a, b, c := "UDP 192.0.2.1:5060", "UDP 192.0.2.2:5060", "UDP 192.0.2.3:5060"
	all, _ := r.Targets(context.Background(), uri)
	r.Failed(all[0], 30*time.Second)
	same(t, "a failed", targets(t, r, uri), b, c, a)
	r.Failed(all[1], 10*time.Second)
	same(t, "a and b failed", targets(t, r, uri), c, a, b)
	r.Failed(all[2], 10*time.Second)
	same(t, "all failed", targets(t, r, uri), a, b, c)
	clock.advance(10 * time.Second)
	same(t, "b and c are tried again", targets(t, r, uri), b, c, a)
	r.Failed(all[0], 0)
	same(t, "a is forgiven", targets(t, r, uri), a, b, c)
	r.Failed(Target{Proto: sip.TCP, Addr: all[0].Addr}, time.Minute)
	same(t, "another transport failed", targets(t, r, uri), a, b, c)
	for i := range 3 * maxAvoided {
		r.Failed(Target{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 5060)}, time.Minute)
	}
	if n := r.Stats().Avoided; n != maxAvoided {
		t.Errorf("%d failed targets are kept, want %d", n, maxAvoided)
	}
}

// DNS-03: addresses without a route are left out unless there are no others.
func TestFamilies(t *testing.T) {
	ns := serve(t, zone)
	only := func(ok func(netip.Addr) bool) *Resolver { return with(t, func(o *Options) { o.Usable = ok }, ns.addr) }
	v4, v6 := "UDP 192.0.2.1:5060", "UDP [2001:db8::1]:5060"
	same(t, "both", targets(t, only(func(netip.Addr) bool { return true }), "sip:h1.example.com:5060"), v6, v4)
	same(t, "IPv4 only", targets(t, only(netip.Addr.Is4), "sip:h1.example.com:5060"), v4)
	same(t, "IPv6 only", targets(t, only(netip.Addr.Is6), "sip:h1.example.com:5060"), v6)
	same(t, "neither", targets(t, only(func(netip.Addr) bool { return false }), "sip:h1.example.com:5060"), v6, v4)
	if !routed(netip.MustParseAddr("127.0.0.1")) {
		t.Error("no route to loopback")
	}
}

// Addresses of one host take turns, and no number of them hides other hosts.
func TestManyAddresses(t *testing.T) {
	text := soa + "_sip._udp.m.example.com. 60 IN SRV 1 0 5060 many.example.com.\n_sip._udp.m.example.com. 60 IN SRV 2 0 5060 h.example.com.\nh.example.com. 60 IN A 198.51.100.1\n"
	for i := range 100 {
		text += fmt.Sprintf("many.example.com. 60 IN A 192.0.2.%d\n", i+1)
		text += fmt.Sprintf("_sip._udp.all.example.com. 60 IN SRV %d 0 5060 n%d.example.com.\nn%d.example.com. 60 IN A 203.0.113.%d\n", i, i, i, i)
	}
	ns := serve(t, text)
	r := with(t, nil, ns.addr)
	first := map[string]bool{}
	for range 500 {
		got := targets(t, r, "sip:m.example.com;transport=udp")
		if len(got) != maxPerHost+1 || got[maxPerHost] != "UDP 198.51.100.1:5060" {
			t.Fatalf("got %q", got)
		}
		first[got[0]] = true
	}
	if len(first) != maxRecords {
		t.Errorf("%d addresses were the first, want %d", len(first), maxRecords)
	}
	if got := targets(t, r, "sip:all.example.com;transport=udp"); len(got) != maxTargets || got[0] != "UDP 203.0.113.0:5060" || got[15] != "UDP 203.0.113.15:5060" {
		t.Errorf("got %q", got)
	}
	if n := ns.count("A n16.example.com."); n != 0 {
		t.Error("a host past the bound was looked up")
	}
}

// More hosts and addresses than fit.
func TestTargetBound(t *testing.T) {
	text := soa
	for i := range 12 {
		for _, p := range []string{"_sip._udp", "_sip._tcp"} {
			text += fmt.Sprintf("%s.b.example.com. 60 IN SRV %d 0 5060 n%d.example.com.\n", p, i, i)
		}
		text += fmt.Sprintf("n%d.example.com. 60 IN A 192.0.2.%d\nn%d.example.com. 60 IN AAAA 2001:db8::%d\n", i, i, i, i)
	}
	ns := serve(t, text)
	got := targets(t, with(t, nil, ns.addr), "sip:b.example.com")
	if len(got) != maxTargets || got[0] != "UDP [2001:db8::]:5060" || got[15] != "UDP 192.0.2.7:5060" {
		t.Errorf("dual stack: %q", got)
	}
	got = targets(t, with(t, func(o *Options) { o.Usable = netip.Addr.Is4 }, ns.addr), "sip:b.example.com")
	if len(got) != maxTargets || got[11] != "UDP 192.0.2.11:5060" || got[15] != "TCP 192.0.2.3:5060" {
		t.Errorf("IPv4: %q", got)
	}
}

// DNS-03: addresses that come with SRV are used, of the domain's own hosts.
func TestGlue(t *testing.T) {
	ns := serve(t, soa+`
_sip._udp.g.example.com. 600 IN SRV 1 0 5060 in.g.example.com.
_sip._udp.g.example.com. 600 IN SRV 2 0 5060 www.example.org.
_sip._udp.g.example.com. 600 IN SRV 3 0 5060 half.g.example.com.
www.example.org. 600 IN A 192.0.2.10
half.g.example.com. 600 IN A 192.0.2.99
half.g.example.com. 600 IN AAAA 2001:db8::2
`)
	ns.intercept(func(w dns.ResponseWriter, q *dns.Msg) bool {
		m := ns.answer(q)
		if q.Question[0].Qtype == dns.TypeSRV {
			for _, s := range []string{
				"IN.g.example.com. 20 IN A 192.0.2.1", "in.g.example.com. 20 IN A 192.0.2.1", "in.g.example.com. 600 IN AAAA 2001:db8::1",
				"www.example.org. 600 IN A 203.0.113.66", "other.g.example.com. 600 IN A 203.0.113.67", "half.g.example.com. 20 IN A 192.0.2.2",
				"in.g.example.com. 600 IN A 0.0.0.0", "in.g.example.com. 600 IN TXT x",
			} {
				rr, _ := dns.NewRR(s)
				m.Extra = append(m.Extra, rr)
			}
		}
		w.WriteMsg(m)
		return true
	})
	clock := newClock()
	r := with(t, func(o *Options) { o.Now = clock.now }, ns.addr)
	const uri = "sip:g.example.com;transport=udp"
	same(t, "with glue", targets(t, r, uri), "UDP [2001:db8::1]:5060", "UDP 192.0.2.1:5060", "UDP 192.0.2.10:5060", "UDP [2001:db8::2]:5060", "UDP 192.0.2.2:5060")
	for q, want := range map[string]int{
		"A in.g.example.com.": 0, "AAAA in.g.example.com.": 0, "A www.example.org.": 1, "A half.g.example.com.": 0, "AAAA half.g.example.com.": 1,
	} {
		if n := ns.count(q); n != want {
			t.Errorf("%s asked %d times, want %d", q, n, want)
		}
	}
	clock.advance(20 * time.Second)
	if got := targets(t, r, uri); got[len(got)-1] != "UDP 192.0.2.99:5060" {
		t.Errorf("glue outlives its TTL: %q", got)
	}
	if n := ns.count("SRV _sip._udp.g.example.com."); n != 1 {
		t.Errorf("SRV was asked %d times: its TTL is its own", n)
	}
}

// TTLs: at least 5 s, at most 1 h; of negative answers the SOA's, at most 5 min.
// fails is a hook that refuses, or says nothing, while on.
// RFC 8767: what was known stands in while nobody answers, for an hour.
// A context that ends takes what was known.
// RFC 9520: that nobody answered is remembered, longer each time.
// A type that is not answered does not hide the others; SRV does, because the
// name may be quite another server's.
// Answers that are none: the next server is asked.
// An alias that comes alone is asked for; a chain of these ends.
// Equal queries under way are one.
// Caches and queries under way keep their bounds.
// An answer with more than fits keeps the most preferred.
// Many goroutines at once, for the race detector.
