package locate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rollcall/sip"
)

// Errors of Targets, besides those of sip.ParseURI and of the context.
var (
	ErrScheme      = errors.New("locate: only sip and sips URIs lead to a server")
	ErrTransport   = errors.New("locate: transport cannot be used")
	ErrName        = errors.New("locate: bad host")
	ErrNotFound    = errors.New("locate: no server found")                    // DNS says so
	ErrUnavailable = errors.New("locate: name servers did not answer")        // it may work later
	ErrBusy        = errors.New("locate: too many queries are under way")     // see maxFlights
	errAliases     = fmt.Errorf("%w: too many aliases in a row", ErrNotFound) // see maxAliases
)

const (
	// maxTargets bounds what Targets gives and the names that are looked up for
	// it. Further ones, which are those of the lowest preference, are left out.
	maxTargets = 16
	// maxPerHost is how many addresses of one family one host contributes, so
	// that a host of many does not hide those behind it. They rotate.
	maxPerHost = 4
	// maxAvoided bounds what Failed remembers. At the bound the one of a few
	// taken at random that is forgotten first makes room.
	maxAvoided = 1024
)

// Target is one place to send a request to.
type Target struct {
	Proto sip.Proto // UDP, TCP or TLS
	Addr  netip.AddrPort
	// Domain is the host of the URI before resolution, in lower case without a
	// final dot: what the certificate of a TLS server must name (RFC 5922 section
	// 7.3). Of a URI with maddr it is still the host.
	Domain string
}

// Options are what New wants to know. The zero value is usable.
type Options struct {
	// Servers are the name servers, "host:port" or a host, tried in this order
	// until one answers, from then on beginning with that one. Default: those of
	// /etc/resolv.conf, which is read again when it changes.
	Servers []string
	// Hosts is the path of a hosts file (hosts(5)), read again when it changes.
	// Default /etc/hosts; os.DevNull for none.
	Hosts string
	// Protos are the transports we can open connections with, most preferred
	// first: UDP, TCP, TLS. The preference counts where the domain has none.
	// Default UDP, TCP.
	Protos []sip.Proto
	// Timeout is how long one name server has to answer one query. It is asked
	// twice, so a query with all servers silent takes 2 * Timeout * servers, and
	// what DNS said before stands in after one Timeout.
	// Default 2 s.
	Timeout time.Duration
	// MaxEntries bounds each of two caches, of DNS answers and of destinations.
	// At the bound the one of a few taken at random that expires first makes
	// room. Default 10000, which is some 10 MB.
	MaxEntries int
	// Usable tells whether an address can be sent to. Those that cannot are left
	// out unless there are no others. Default: the host has a route to it.
	Usable func(netip.Addr) bool
	// Now is the clock of all that expires. Default time.Now.
	Now func() time.Time
	// Rand gives a number from 0 to n-1, and is safe for concurrent use. Default
	// rand.IntN.
	Rand func(n int) int
}

// Resolver finds targets and remembers them. Make it with New.
type Resolver struct {
	protos  []sip.Proto
	timeout time.Duration
	usable  func(netip.Addr) bool
	now     func() time.Time
	intN    func(int) int
	servers func() []string
	hosts   *watched[map[string][]netip.Addr]
	dialer  net.Dialer
	first   atomic.Int32 // the name server that answered last
	ctx     context.Context
	cancel  context.CancelFunc
	over    sync.WaitGroup // flights

	mu      sync.Mutex // of what DNS said; never held together with hot
	entries bounded[key, *entry]
	flights map[key]*flight
	closed  bool

	hot     sync.RWMutex // of what each request looks at
	plans   bounded[planKey, *plan]
	avoided bounded[place, time.Time]
	avoid   atomic.Int64 // when the last of avoided ends, in Unix nanoseconds

	hits, misses, queries, unanswered, stale atomic.Uint64
}

// place is what Failed remembers of a target.
type place struct {
	proto sip.Proto
	addr  netip.AddrPort
}

// New makes a Resolver. It reads files and sends nothing yet.
func New(o Options) *Resolver {
	r := &Resolver{
		timeout: o.Timeout, usable: o.Usable, now: o.Now, intN: o.Rand,
		flights: map[key]*flight{},
	}
	for _, p := range o.Protos {
		if p <= sip.TLS && !slices.Contains(r.protos, p) {
			r.protos = append(r.protos, p)
		}
	}
	if len(r.protos) == 0 {
		r.protos = []sip.Proto{sip.UDP, sip.TCP}
	}
	if r.timeout <= 0 {
		r.timeout = 2 * time.Second
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = 10000
	}
	if r.usable == nil {
		r.usable = routed
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.intN == nil {
		r.intN = rand.IntN
	}
	if o.Hosts == "" {
		o.Hosts = "/etc/hosts"
	}
	r.hosts = watch(o.Hosts, parseHosts)
	if len(o.Servers) > 0 {
		var servers []string
		for _, s := range o.Servers {
			if _, _, err := net.SplitHostPort(s); err != nil {
				s = net.JoinHostPort(strings.Trim(s, "[]"), "53")
			}
			servers = append(servers, s)
		}
		r.servers = func() []string { return servers }
	} else {
		conf := watch("/etc/resolv.conf", parseResolvConf)
		r.servers = func() []string { return conf.get(r.now()) }
	}
	r.entries = newBounded(o.MaxEntries, func(k key, e *entry) time.Time { return e.until })
	r.plans = newBounded(o.MaxEntries, func(k planKey, p *plan) time.Time { return p.until })
	r.avoided = newBounded(maxAvoided, func(p place, until time.Time) time.Time { return until })
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Close ends the queries under way and waits for that. Targets of what is not
// cached fails from then on.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.over.Wait()
}

// dest is what the way to a URI depends on.
type dest struct {
	planKey
	domain string
	addr   netip.Addr // if the target is one
}

type planKey struct {
	target string // TARGET of RFC 3263 section 4, in lower case without final dot
	port   uint16 // 0 if the URI has none
	proto  sip.Proto
	fixed  bool // the URI names its transport
	sips   bool
}

// dest reads a URI and chooses a transport as far as that needs no DNS.
func (r *Resolver) dest(uri string) (d dest, err error) {
	u, err := sip.ParseURI(uri)
	if err != nil {
		return d, err
	}
	if u.Scheme != "sip" && u.Scheme != "sips" {
		return d, ErrScheme
	}
	d.sips = u.Scheme == "sips"
	d.domain = strings.TrimSuffix(strings.ToLower(u.Host), ".")
	d.target, d.port = d.domain, u.Port
	if u.Params != "" {
		if maddr, ok := u.Param("maddr"); ok {
			d.target = strings.TrimSuffix(strings.ToLower(strings.Trim(maddr, "[]")), ".")
		}
		var name string
		if name, d.fixed = u.Param("transport"); d.fixed {
			switch {
			case strings.EqualFold(name, "udp"):
				d.proto = sip.UDP
			case strings.EqualFold(name, "tcp"):
				d.proto = sip.TCP
			case strings.EqualFold(name, "tls"):
				d.proto = sip.TLS
			default:
				return d, fmt.Errorf("%w: %.20q", ErrTransport, name)
			}
		}
	}
	switch {
	case d.sips && d.fixed && d.proto == sip.UDP:
		return d, fmt.Errorf("%w: sips over UDP", ErrTransport)
	case d.sips:
		d.proto = sip.TLS
	case !d.fixed && !slices.Contains(r.protos, sip.UDP):
		d.proto = r.protos[0]
	}
	if !slices.Contains(r.protos, d.proto) {
		return d, fmt.Errorf("%w: %v is not enabled", ErrTransport, d.proto)
	}
	if strings.IndexByte(d.target, ':') >= 0 || isDigit(d.target[strings.LastIndexByte(d.target, '.')+1:]) {
		d.addr, err = netip.ParseAddr(d.target)
		d.addr = d.addr.Unmap()
		if err != nil || !sendable(d.addr) {
			return d, fmt.Errorf("%w: %.60q", ErrName, d.target)
		}
	} else if !isName(d.target) {
		return d, fmt.Errorf("%w: %.60q", ErrName, d.target)
	}
	return d, nil
}

// isDigit tells a top label that no name has (RFC 3261 section 25.1).
func isDigit(label string) bool { return label != "" && label[0] >= '0' && label[0] <= '9' }

// maxName is the length of the longest name with its final dot (RFC 1035).
const maxName = 254

// isName tells whether DNS can be asked for s, which has no final dot: letters,
// digits, '-' and '_' in labels of 1 to 63 octets, 253 in all (RFC 1035).
func isName(s string) bool {
	if len(s) >= maxName {
		return false
	}
	label := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_':
			if label++; label > 63 {
				return false
			}
		case c == '.' && label > 0:
			label = 0
		default:
			return false
		}
	}
	return label > 0
}

// sendable tells whether an address may be one server's.
func sendable(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast() && a != broadcast
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// routed tells whether the host has a route to an address. Connecting a UDP
// socket sends nothing.
func routed(a netip.Addr) bool {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 5060)))
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func defaultPort(p sip.Proto) uint16 {
	if p == sip.TLS {
		return 5061
	}
	return 5060
}

func (d *dest) literal() []Target {
	port := d.port
	if port == 0 {
		port = defaultPort(d.proto)
	}
	return []Target{{d.proto, netip.AddrPortFrom(d.addr, port), d.domain}}
}

// Targets gives where requests to a sip or sips URI go, best first (RFC 3263
// section 4): 1 to 16 targets, anew for each transaction, because servers of
// equal priority take turns by their weights (RFC 2782). It waits for name
// servers as long as ctx allows.
func (r *Resolver) Targets(ctx context.Context, uri string) ([]Target, error) {
	d, err := r.dest(uri)
	if err != nil {
		return nil, err
	}
	if d.addr.IsValid() {
		return d.literal(), nil
	}
	now := r.now()
	if p := r.plan(d.planKey, now); p != nil {
		return r.choose(p, d.domain, now), nil
	}
	r.misses.Add(1)
	p, err := r.build(ctx, d.planKey)
	if err != nil {
		return nil, err
	}
	now = r.now()
	if p.until.After(now) {
		r.hot.Lock()
		r.plans.put(d.planKey, p)
		r.hot.Unlock()
	}
	return r.choose(p, d.domain, now), nil
}

// Cached is Targets without waiting. It is false when Targets must be asked:
// for a query, or for the error.
func (r *Resolver) Cached(uri string) ([]Target, bool) {
	d, err := r.dest(uri)
	if err != nil {
		return nil, false
	}
	if d.addr.IsValid() {
		return d.literal(), true
	}
	now := r.now()
	p := r.plan(d.planKey, now)
	if p == nil {
		return nil, false
	}
	return r.choose(p, d.domain, now), true
}

func (r *Resolver) plan(k planKey, now time.Time) *plan {
	r.hot.RLock()
	p := r.plans.m[k]
	r.hot.RUnlock()
	if p == nil || !now.Before(p.until) {
		return nil
	}
	r.hits.Add(1)
	return p
}

// Failed says that a target did not answer: a 503, a transport error or timer F
// (RFC 3263 section 4.3). For the time d it comes after all others; 0 forgets
// the failure.
func (r *Resolver) Failed(t Target, d time.Duration) {
	k := place{t.Proto, t.Addr}
	until := r.now().Add(d)
	r.hot.Lock()
	defer r.hot.Unlock()
	if d <= 0 {
		delete(r.avoided.m, k)
		return
	}
	r.avoided.put(k, until)
	r.avoid.Store(max(r.avoid.Load(), until.UnixNano()))
}

// Stats are counts since New, and sizes.
type Stats struct {
	Hits       uint64 // destinations answered from the cache
	Misses     uint64 // destinations that had to be worked out
	Queries    uint64 // messages sent to name servers
	Unanswered uint64 // queries that no name server answered
	Stale      uint64 // expired answers that stood in
	Evicted    uint64 // entries that made room for others
	Entries    int    // DNS answers kept
	Plans      int    // destinations kept
	Avoided    int    // failed targets kept, those whose time is over too
	Flights    int    // queries under way
}

// Stats tells how the Resolver does.
func (r *Resolver) Stats() Stats {
	s := Stats{
		Hits: r.hits.Load(), Misses: r.misses.Load(), Queries: r.queries.Load(),
		Unanswered: r.unanswered.Load(), Stale: r.stale.Load(),
	}
	r.mu.Lock()
	s.Entries, s.Flights, s.Evicted = len(r.entries.m), len(r.flights), r.entries.evicted
	r.mu.Unlock()
	r.hot.RLock()
	s.Plans, s.Avoided = len(r.plans.m), len(r.avoided.m)
	s.Evicted += r.plans.evicted + r.avoided.evicted
	r.hot.RUnlock()
	return s
}
