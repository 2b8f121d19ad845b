package locate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"rollcall/sip"
)

// nameServer is a DNS server on loopback, UDP and TCP.
type nameServer struct {
	addr string

	mu    sync.Mutex
	hook  hook
	zone  []dns.RR
	asked map[string]int // "A example.com."
	tcp   int
}

// hook sees a query first, and answers it itself if it returns true.
type hook func(w dns.ResponseWriter, q *dns.Msg) bool

func (s *nameServer) intercept(h hook) {
	s.mu.Lock()
	s.hook = h
	s.mu.Unlock()
}

const soa = "example.com. 60 IN SOA ns.example.com. root.example.com. 1 1 1 1 60\n"

func serve(t testing.TB, zone string) *nameServer {
	s := &nameServer{asked: map[string]int{}}
	s.load(t, zone)
	var pc net.PacketConn
	var l net.Listener
	for range 20 { // until a port is free for both
		var err error
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			break
		}
		pc.Close()
	}
	s.addr = pc.LocalAddr().String()
	for _, srv := range []*dns.Server{{PacketConn: pc, Handler: s}, {Listener: l, Handler: s}} {
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		go srv.ActivateAndServe()
		<-up
		t.Cleanup(func() { srv.Shutdown() })
	}
	return s
}

func (s *nameServer) load(t testing.TB, zone string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zone = nil
	p := dns.NewZoneParser(strings.NewReader(zone), ".", "")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		s.zone = append(s.zone, rr)
	}
	if p.Err() != nil {
		t.Fatal(p.Err())
	}
}

// count gives how often a question was asked, "A example.com.", or all with "".
func (s *nameServer) count(question string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if question != "" {
		return s.asked[question]
	}
	n := 0
	for _, c := range s.asked {
		n += c
	}
	return n
}

func (s *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.mu.Lock()
	s.asked[dns.TypeToString[q.Question[0].Qtype]+" "+q.Question[0].Name]++
	if w.RemoteAddr().Network() == "tcp" {
		s.tcp++
	}
	h := s.hook
	s.mu.Unlock()
	if h == nil || !h(w, q) {
		m := s.answer(q)
		if opt := q.IsEdns0(); w.RemoteAddr().Network() == "udp" && opt != nil {
			m.Truncate(int(opt.UDPSize()))
		}
		w.WriteMsg(m)
	}
}

// answer is what a recursive resolver would say.
func (s *nameServer) answer(q *dns.Msg) *dns.Msg {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	name, typ := q.Question[0].Name, q.Question[0].Qtype
	known := false
	for range 12 {
		next := name
		for _, rr := range s.zone {
			h := rr.Header()
			if !strings.EqualFold(h.Name, name) {
				continue
			}
			known = true
			if c, ok := rr.(*dns.CNAME); ok {
				next = c.Target
				m.Answer = append(m.Answer, rr)
			} else if h.Rrtype == typ {
				m.Answer = append(m.Answer, rr)
			}
		}
		if next == name {
			break
		}
		name = next
	}
	if n := len(m.Answer); n > 0 && m.Answer[n-1].Header().Rrtype == typ {
		return m
	}
	if !known {
		m.Rcode = dns.RcodeNameError
	}
	for _, rr := range s.zone {
		if rr.Header().Rrtype == dns.TypeSOA && dns.IsSubDomain(rr.Header().Name, name) {
			m.Ns = append(m.Ns, rr)
		}
	}
	return m
}

type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ns.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.ns.Load()) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

// seeded is a random source of which a failing test can be repeated.
func seeded() func(int) int {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(1, 2))
	return func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rng.IntN(n)
	}
}

// with makes a resolver of the given servers; set changes its options.
func with(t testing.TB, set func(*Options), servers ...string) *Resolver {
	o := Options{
		Servers: servers, Hosts: os.DevNull, Protos: []sip.Proto{sip.UDP, sip.TCP, sip.TLS}, Timeout: 20 * time.Second,
		Usable: func(netip.Addr) bool { return true }, Rand: seeded(),
	}
	if set != nil {
		set(&o)
	}
	r := New(o)
	t.Cleanup(r.Close)
	return r
}

func texts(ts []Target) []string {
	var out []string
	for _, t := range ts {
		out = append(out, t.Proto.String()+" "+t.Addr.String())
	}
	return out
}

func targets(t *testing.T, r *Resolver, uri string) []string {
	t.Helper()
	ts, err := r.Targets(context.Background(), uri)
	if err != nil {
		t.Fatalf("%s: %v", uri, err)
	}
	return texts(ts)
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

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

func TestHosts(t *testing.T) {
	ns := serve(t, zone)
	path := t.TempDir() + "/hosts"
	write := func(text string, age time.Duration) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		stamp := time.Now().Add(-age)
		if err := os.Chtimes(path, stamp, stamp); err != nil {
			t.Fatal(err)
		}
	}
	write("# comment\n198.51.100.1 H1.example.com h.local # x\n2001:db8::99\th1.example.com.\nnonsense x\n192.0.2.1\n::1%lo0 zone\n", time.Hour)
	clock := newClock()
	r := with(t, func(o *Options) { o.Hosts, o.Now = path, clock.now }, ns.addr)
	same(t, "a name", targets(t, r, "sip:h1.example.com:5060"), "UDP [2001:db8::99]:5060", "UDP 198.51.100.1:5060")
	same(t, "an SRV target", targets(t, r, "sip:full.example.com"), "TLS [2001:db8::99]:5061", "TLS 198.51.100.1:5061")
	if n := ns.count("A h1.example.com.") + ns.count("AAAA h1.example.com."); n != 0 {
		t.Errorf("a name of the hosts file was asked %d times", n)
	}
	write("198.51.100.2 h1.example.com\n", time.Minute)
	clock.advance(hostsTTL)
	same(t, "after a change", targets(t, r, "sip:h1.example.com:5060"), "UDP 198.51.100.2:5060")
	os.Remove(path)
	clock.advance(hostsTTL)
	same(t, "not readable", targets(t, r, "sip:h1.example.com:5060"), "UDP 198.51.100.2:5060")

	// Name servers that refuse to speak about it do not matter.
	ns.intercept(func(w dns.ResponseWriter, q *dns.Msg) bool {
		w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeRefused))
		return true
	})
	same(t, "DNS refuses", targets(t, r, "sip:h1.example.com;transport=tcp"), "TCP 198.51.100.2:5060")
}

func TestResolvConf(t *testing.T) {
	for text, want := range map[string]string{
		"": "127.0.0.1:53 [::1]:53",
		"# x\nnameserver 192.0.2.53\nsearch example.com\nnameserver 2001:db8::53\noptions ndots:2\n": "192.0.2.53:53 [2001:db8::53]:53",
		"nameserver": "127.0.0.1:53 [::1]:53",
	} {
		if got := strings.Join(parseResolvConf([]byte(text)), " "); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	r := New(Options{Servers: []string{"192.0.2.1", "192.0.2.1:5353", "2001:db8::1", "[2001:db8::2]", "ns.example.com:54"}})
	defer r.Close()
	same(t, "Servers", r.servers(), "192.0.2.1:53", "192.0.2.1:5353", "[2001:db8::1]:53", "[2001:db8::2]:53", "ns.example.com:54")
	d := New(Options{})
	defer d.Close()
	if len(d.servers()) == 0 || !slices.Equal(d.protos, []sip.Proto{sip.UDP, sip.TCP}) {
		t.Errorf("defaults: %v %v", d.servers(), d.protos)
	}
}

// TTLs: at least 5 s, at most 1 h; of negative answers the SOA's, at most 5 min.
func TestExpiry(t *testing.T) {
	for _, c := range []struct {
		name, zone string
		holds      time.Duration
	}{
		{"TTL", "t.example.com. 60 IN A 192.0.2.1", 60 * time.Second},
		{"smallest TTL of the set", "t.example.com. 60 IN A 192.0.2.1\nt.example.com. 40 IN A 192.0.2.2", 40 * time.Second},
		{"smallest TTL of the aliases", "t.example.com. 30 IN CNAME u.example.com.\nu.example.com. 60 IN A 192.0.2.1", 30 * time.Second},
		{"TTL 0", "t.example.com. 0 IN A 192.0.2.1", minTTL},
		{"negative TTL", "t.example.com. 4294967295 IN A 192.0.2.1", minTTL},
		{"very long TTL", "t.example.com. 864000 IN A 192.0.2.1", maxTTL},
		{"RFC 2308 no such name: minimum of the SOA", "example.com. 90 IN SOA a. b. 1 1 1 1 50", 50 * time.Second},
		{"RFC 2308 no such name: TTL of the SOA", "example.com. 20 IN SOA a. b. 1 1 1 1 50", 20 * time.Second},
		{"RFC 2308 no such type", "t.example.com. 60 IN TXT x\nexample.com. 90 IN SOA a. b. 1 1 1 1 50", 50 * time.Second},
		{"RFC 2308 alias of nothing", "t.example.com. 30 IN CNAME u.example.com.\nexample.com. 90 IN SOA a. b. 1 1 1 1 50", 30 * time.Second},
		{"RFC 2308 SOA very long", "example.com. 86400 IN SOA a. b. 1 1 1 1 86400", maxNegativeTTL},
		{"RFC 2308 without SOA", "t.example.com. 60 IN TXT x", minTTL},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := serve(t, c.zone)
			clock := newClock()
			r := with(t, func(o *Options) { o.Now = clock.now }, ns.addr)
			ask := func() {
				r.Targets(context.Background(), "sip:t.example.com:5060")
			}
			asked := func() int { return ns.count("A t.example.com.") }
			ask()
			clock.advance(c.holds - time.Second)
			if ask(); asked() != 1 {
				t.Fatalf("asked %d times before %v", asked(), c.holds)
			}
			clock.advance(time.Second)
			if _, ok := r.Cached("sip:t.example.com:5060"); ok {
				t.Error("still cached")
			}
			if ask(); asked() != 2 {
				t.Errorf("asked %d times after %v", asked(), c.holds)
			}
		})
	}
}

// fails is a hook that refuses, or says nothing, while on.
type fails struct {
	silent bool
	on     atomic.Bool
}

func (f *fails) hook(w dns.ResponseWriter, q *dns.Msg) bool {
	if f.on.Load() && !f.silent {
		w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
	}
	return f.on.Load()
}

// RFC 8767: what was known stands in while nobody answers, for an hour.
func TestStale(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprint("silent ", silent), func(t *testing.T) {
			ns := serve(t, zone)
			f := &fails{silent: silent}
			ns.intercept(f.hook)
			clock := newClock()
			r := with(t, func(o *Options) {
				o.Now = clock.now
				if silent {
					o.Timeout = 30 * time.Millisecond
				}
			}, ns.addr)
			const uri = "sip:full.example.com"
			want := []string{"TLS [2001:db8::1]:5061", "TLS 192.0.2.1:5061"}
			for len(want) > 0 { // a slow machine may need more than one time
				if ts, err := r.Targets(context.Background(), uri); err == nil {
					same(t, "fresh", texts(ts), want...)
					break
				}
				clock.advance(maxFailureTTL)
			}
			f.on.Store(true)
			clock.advance(time.Minute)
			same(t, "stale", targets(t, r, uri), want...)
			if _, ok := r.Cached(uri); !ok {
				t.Error("a stale answer does not hold")
			}
			clock.advance(staleTTL)
			same(t, "still stale", targets(t, r, uri), want...)
			if r.Stats().Stale < 6 {
				t.Errorf("stats: %+v", r.Stats())
			}
			clock.advance(maxStale)
			if ts, err := r.Targets(context.Background(), uri); !errors.Is(err, ErrUnavailable) {
				t.Errorf("an hour later: %v, %v", ts, err)
			}
			f.on.Store(false)
			clock.advance(maxFailureTTL)
			for range 20 {
				if _, err := r.Targets(context.Background(), uri); err == nil {
					return
				}
				clock.advance(maxFailureTTL)
			}
			t.Error("does not recover")
		})
	}
}

// A context that ends takes what was known.
func TestContext(t *testing.T) {
	ns := serve(t, zone)
	f := &fails{silent: true}
	ns.intercept(f.hook)
	clock := newClock()
	r := with(t, func(o *Options) { o.Now = clock.now }, ns.addr)
	targets(t, r, "sip:full.example.com")
	f.on.Store(true)
	clock.advance(time.Minute)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if ts, err := r.Targets(ctx, "sip:full.example.com"); err != nil || len(ts) != 2 {
		t.Errorf("known: %v, %v", ts, err)
	}
	if _, err := r.Targets(ctx, "sip:srv.example.com"); !errors.Is(err, context.Canceled) {
		t.Errorf("unknown: %v", err)
	}
	r.Close() // must not wait for the server
	if _, err := r.Targets(context.Background(), "sip:h2.example.com"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if n := r.Stats().Flights; n != 0 {
		t.Errorf("%d queries under way after Close", n)
	}
}

// RFC 9520: that nobody answered is remembered, longer each time.
func TestFailures(t *testing.T) {
	ns := serve(t, zone)
	f := &fails{}
	f.on.Store(true)
	ns.intercept(f.hook)
	clock := newClock()
	r := with(t, func(o *Options) { o.Now = clock.now }, ns.addr)
	ask := func() error {
		_, err := r.Targets(context.Background(), "sip:h2.example.com:5060")
		return err
	}
	asked := 0
	for _, wait := range []time.Duration{5, 10, 20, 40, 60, 60} {
		if err := ask(); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		asked += rounds
		clock.advance(wait*time.Second - 1)
		if err := ask(); !errors.Is(err, ErrUnavailable) || ns.count("A h2.example.com.") != asked {
			t.Fatalf("asked %d times before %v s, %v", ns.count("A h2.example.com."), int(wait), err)
		}
		clock.advance(1)
	}
	f.on.Store(false)
	if err := ask(); err != nil {
		t.Error(err)
	}
}

// A type that is not answered does not hide the others; SRV does, because the
// name may be quite another server's.
func TestOneTypeFails(t *testing.T) {
	for _, c := range []struct {
		typ  uint16
		uri  string
		want string
	}{
		{dns.TypeNAPTR, "sip:srv.example.com", "UDP [2001:db8::1]:5070"},
		{dns.TypeAAAA, "sip:h1.example.com", "UDP 192.0.2.1:5060"},
		{dns.TypeA, "sip:h1.example.com", "UDP [2001:db8::1]:5060"},
		{dns.TypeSRV, "sip:h1.example.com", ""},
		{dns.TypeA, "sip:h2.example.com", ""},
	} {
		ns := serve(t, zone)
		ns.intercept(func(w dns.ResponseWriter, q *dns.Msg) bool {
			if q.Question[0].Qtype == c.typ {
				w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
			}
			return q.Question[0].Qtype == c.typ
		})
		r := with(t, nil, ns.addr)
		ts, err := r.Targets(context.Background(), c.uri)
		if c.want == "" && !errors.Is(err, ErrUnavailable) || c.want != "" && (err != nil || texts(ts)[0] != c.want) {
			t.Errorf("%s fails: %v, %v, want %q", dns.TypeToString[c.typ], ts, err, c.want)
		}
	}
}

// Answers that are none: the next server is asked.
func TestServers(t *testing.T) {
	good := serve(t, zone)
	reply := func(f func(m *dns.Msg)) hook {
		return func(w dns.ResponseWriter, q *dns.Msg) bool {
			m := new(dns.Msg).SetReply(q)
			m.RecursionAvailable = true
			f(m)
			w.WriteMsg(m)
			return true
		}
	}
	pack := func(w dns.ResponseWriter, q *dns.Msg) []byte {
		b, _ := good.answer(q).Pack()
		return b
	}
	for _, c := range []struct {
		name string
		hook hook
	}{
		{"SERVFAIL", reply(func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure })},
		{"REFUSED", reply(func(m *dns.Msg) { m.Rcode = dns.RcodeRefused })},
		{"NOTIMP", reply(func(m *dns.Msg) { m.Rcode = dns.RcodeNotImplemented })},
		{"refusal without question", reply(func(m *dns.Msg) { m.Rcode, m.Question = dns.RcodeRefused, nil })},
		{"referral", reply(func(m *dns.Msg) { m.RecursionAvailable = false })},
		{"always truncated", reply(func(m *dns.Msg) { m.Truncated = true })},
		{"malformed", func(w dns.ResponseWriter, q *dns.Msg) bool {
			b := pack(w, q)
			w.Write(b[:len(b)-3])
			return true
		}},
		{"answer counts too high", func(w dns.ResponseWriter, q *dns.Msg) bool {
			b := pack(w, q)
			b[6], b[7] = 0xff, 0xff
			w.Write(b)
			return true
		}},
		{"silent", func(w dns.ResponseWriter, q *dns.Msg) bool { return true }},
		{"short", func(w dns.ResponseWriter, q *dns.Msg) bool { w.Write([]byte("x")); return true }},
		{"another question", reply(func(m *dns.Msg) { m.Question[0].Name = "evil.example.com." })},
		{"another type", reply(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT })},
		{"two questions", reply(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) })},
		{"no question", reply(func(m *dns.Msg) { m.Question = nil })},
		{"another id", reply(func(m *dns.Msg) { m.Id++ })},
		{"a query", reply(func(m *dns.Msg) { m.Response = false })},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := serve(t, zone)
			bad.intercept(c.hook)
			r := with(t, func(o *Options) { o.Timeout = 150 * time.Millisecond }, bad.addr, good.addr)
			same(t, "failover", targets(t, r, "sip:h2.example.com;transport=udp"), "UDP 192.0.2.2:5060")
			if bad.count("") == 0 {
				t.Error("the first server was not asked")
			}
		})
	}
	t.Run("the one that answered is the first from then on", func(t *testing.T) {
		bad := serve(t, zone)
		bad.intercept(reply(func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }))
		r := with(t, nil, bad.addr, good.addr)
		same(t, "failover", targets(t, r, "sip:h2.example.com;transport=udp"), "UDP 192.0.2.2:5060")
		targets(t, r, "sip:full.example.com")
		if n := bad.count(""); n != 1 {
			t.Errorf("the bad server was asked %d times", n)
		}
	})
	t.Run("unreachable", func(t *testing.T) {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc.Close()
		r := with(t, nil, pc.LocalAddr().String(), good.addr)
		same(t, "failover", targets(t, r, "sip:h2.example.com:5060"), "UDP 192.0.2.2:5060")
	})
	t.Run("a guess comes first", func(t *testing.T) {
		ns := serve(t, zone)
		ns.intercept(func(w dns.ResponseWriter, q *dns.Msg) bool {
			m := new(dns.Msg).SetReply(q)
			rr, _ := dns.NewRR("h2.example.com. 60 IN A 203.0.113.66")
			m.Answer = []dns.RR{rr}
			m.Id++
			w.WriteMsg(m)
			m.Id--
			m.Question[0].Name = "h3.example.com."
			w.WriteMsg(m)
			w.Write(nil)
			return false
		})
		r := with(t, nil, ns.addr)
		same(t, "the right one", targets(t, r, "sip:h2.example.com:5060"), "UDP 192.0.2.2:5060")
	})
}

func TestTruncated(t *testing.T) {
	ns := serve(t, zone)
	ns.intercept(func(w dns.ResponseWriter, q *dns.Msg) bool {
		if opt := q.IsEdns0(); opt == nil || opt.UDPSize() != ednsSize {
			t.Error("a query without EDNS0")
		}
		if w.RemoteAddr().Network() == "tcp" {
			return false
		}
		m := new(dns.Msg).SetReply(q)
		m.Truncated = true
		w.WriteMsg(m)
		return true
	})
	r := with(t, nil, ns.addr)
	same(t, "over TCP", targets(t, r, "sip:full.example.com"), "TLS [2001:db8::1]:5061", "TLS 192.0.2.1:5061")
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if ns.tcp != 4 {
		t.Errorf("%d queries over TCP, want 4", ns.tcp)
	}
}

func TestWithoutEDNS(t *testing.T) {
	ns := serve(t, zone)
	ns.intercept(func(w dns.ResponseWriter, q *dns.Msg) bool {
		if q.IsEdns0() == nil {
			return false
		}
		w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeFormatError))
		return true
	})
	r := with(t, nil, ns.addr)
	same(t, "RFC 6891", targets(t, r, "sip:h2.example.com:5060"), "UDP 192.0.2.2:5060")
}

// An alias that comes alone is asked for; a chain of these ends.
func TestAliasesAlone(t *testing.T) {
	text := zone
	for i := range 20 {
		text += fmt.Sprintf("c%d.example.com. 60 IN CNAME c%d.example.com.\n", i, i+1)
	}
	text += "c20.example.com. 60 IN A 192.0.2.20\n"
	ns := serve(t, text)
	ns.intercept(func(w dns.ResponseWriter, q *dns.Msg) bool {
		m := ns.answer(q)
		m.Answer = m.Answer[:min(1, len(m.Answer))]
		m.Ns = nil
		w.WriteMsg(m)
		return true
	})
	r := with(t, nil, ns.addr)
	same(t, "two", targets(t, r, "sip:alias.example.com:5060"), "UDP 192.0.2.2:5060")
	same(t, "few", targets(t, r, "sip:c14.example.com:5060"), "UDP 192.0.2.20:5060")
	for _, uri := range []string{"sip:c0.example.com:5060", "sip:loop.example.com:5060"} {
		if _, err := r.Targets(context.Background(), uri); !errors.Is(err, errAliases) {
			t.Errorf("%s: %v", uri, err)
		}
	}
	if n := ns.count("A c9.example.com."); n != 0 {
		t.Error("a long chain was followed")
	}
}

// Equal queries under way are one.
func TestSingleFlight(t *testing.T) {
	ns := serve(t, zone)
	arrived, release := make(chan struct{}, 100), make(chan struct{})
	ns.intercept(func(w dns.ResponseWriter, q *dns.Msg) bool {
		arrived <- struct{}{}
		<-release
		return false
	})
	r := with(t, nil, ns.addr)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			uri := "sip:" + strconv.Itoa(i) + "@h1.example.com:" + strconv.Itoa(5060+i%2)
			if ts, err := r.Targets(context.Background(), uri); err != nil || len(ts) != 2 {
				t.Error(ts, err)
			}
		})
	}
	<-arrived
	<-arrived
	x, y := r.start(key{"h1.example.com.", dns.TypeA}), r.start(key{"h1.example.com.", dns.TypeA})
	if x.flight == nil || x.flight != y.flight {
		t.Errorf("two flights: %v, %v", x, y)
	}
	close(release)
	wg.Wait()
	if a, aaaa := ns.count("A h1.example.com."), ns.count("AAAA h1.example.com."); a != 1 || aaaa != 1 {
		t.Errorf("asked %d and %d times", a, aaaa)
	}
}

// Caches and queries under way keep their bounds.
func TestBounds(t *testing.T) {
	t.Run("entries", func(t *testing.T) {
		ns := serve(t, "*.example.com. 60 IN A 192.0.2.1")
		ns.intercept(func(w dns.ResponseWriter, q *dns.Msg) bool {
			m := new(dns.Msg).SetReply(q)
			m.RecursionAvailable = true
			if q.Question[0].Qtype == dns.TypeA {
				m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(192, 0, 2, 1)}}
			}
			w.WriteMsg(m)
			return true
		})
		r := with(t, func(o *Options) { o.MaxEntries = 100 }, ns.addr)
		for i := range 500 {
			targets(t, r, fmt.Sprintf("sip:n%d.example.com:5060", i))
		}
		s := r.Stats()
		if s.Entries != 100 || s.Plans != 100 || s.Evicted != 900+400 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("flights", func(t *testing.T) {
		ns := serve(t, zone)
		ns.intercept(func(w dns.ResponseWriter, q *dns.Msg) bool { return true })
		r := with(t, nil, ns.addr)
		for i := range maxFlights {
			if w := r.start(key{fmt.Sprintf("n%d.example.com.", i), dns.TypeA}); w.flight == nil {
				t.Fatal("refused before the bound")
			}
		}
		for _, uri := range []string{"sip:h1.example.com", "sip:h1.example.com:5060"} {
			if _, err := r.Targets(context.Background(), uri); !errors.Is(err, ErrBusy) {
				t.Errorf("%s: %v", uri, err)
			}
		}
	})
}

// An answer with more than fits keeps the most preferred.
func TestManyRecords(t *testing.T) {
	m := new(dns.Msg)
	m.SetQuestion("_sip._udp.example.com.", dns.TypeSRV)
	for i := range 1000 {
		m.Answer = append(m.Answer, &dns.SRV{Hdr: dns.RR_Header{Name: "_sip._udp.example.com.", Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: 60},
			Priority: uint16(1000 - i), Port: 5060, Target: fmt.Sprintf("h%d.example.com.", i)})
		m.Extra = append(m.Extra, &dns.A{Hdr: dns.RR_Header{Name: fmt.Sprintf("h%d.example.com.", i), Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(192, 0, 2, 1)})
	}
	a, err := read(m, key{"_sip._udp.example.com.", dns.TypeSRV})
	if err != nil || len(a.srv) != maxRecords || a.srv[0].priority != 1 || a.srv[maxRecords-1].priority != maxRecords || len(a.glue) != maxRecords {
		t.Errorf("%v: %d records, %d glue", err, len(a.srv), len(a.glue))
	}
}

// Many goroutines at once, for the race detector.
func TestConcurrent(t *testing.T) {
	ns := serve(t, zone)
	clock := newClock()
	r := with(t, func(o *Options) { o.Now, o.MaxEntries = clock.now, 8 }, ns.addr)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				uri := []string{"sip:full.example.com", "sip:srv.example.com", "sip:h1.example.com", "sips:srv.example.com"}[(i+j)%4]
				ts, err := r.Targets(context.Background(), uri)
				if err != nil {
					t.Error(err)
					return
				}
				r.Failed(ts[0], time.Second)
				r.Cached(uri)
				r.Stats()
				clock.advance(time.Second)
			}
		})
	}
	wg.Wait()
}
