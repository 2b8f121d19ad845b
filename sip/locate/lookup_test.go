package locate

import (
	"context"
	"errors"
	"fmt"
	"net"
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
