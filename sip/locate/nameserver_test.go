package locate

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
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
