package locate

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"rollcall/sip"
)

const (
	// maxRecords bounds the records kept of one name and type. Of SRV and NAPTR
	// those least preferred are dropped, of addresses the last.
	maxRecords = 16
	// maxAliases is how many CNAMEs in a row are followed.
	maxAliases = 8

	// minTTL spares name servers a query per request of a fan-out to a domain
	// with TTL 0. It is shorter than a transaction (32 s), so nobody who waits
	// for a change of DNS waits noticeably longer.
	minTTL = 5 * time.Second
	// maxTTL lets a mistake in a zone that was corrected heal within the hour.
	maxTTL = time.Hour
	// maxNegativeTTL is shorter, because who adds a record tries it at once.
	maxNegativeTTL = 5 * time.Minute
)

// key names what is asked: the name in lower case with final dot.
type key struct {
	name string
	typ  uint16
}

// records are what is known of a key, those of its type. All empty means that
// there are none.
type records struct {
	naptr []naptr // by order and preference
	srv   []srv   // by priority; the target "." means no such service
	addrs []netip.Addr
}

func (r *records) none() bool { return len(r.naptr)+len(r.srv)+len(r.addrs) == 0 }

type naptr struct {
	order, pref uint16
	proto       sip.Proto
	sips        bool
	direct      bool   // flag "a": target is a host, not the name of SRV records
	target      string // like key.name
}

type srv struct {
	priority, weight, port uint16
	target                 string // like key.name
}

// answer is what a message says of a key.
type answer struct {
	records
	ttl   time.Duration // minTTL to maxTTL
	alias string        // not empty: ask for this name, nothing is known yet
	glue  []glue
}

// glue is the addresses of a host that came along with SRV records.
type glue struct {
	key
	addrs []netip.Addr
	ttl   time.Duration
}

// read takes out of a message what it says of a key. The message answered the
// question k with NOERROR or NXDOMAIN.
func read(m *dns.Msg, k key) (answer, error) {
	var a answer
	a.ttl = maxTTL
	name := k.name
	for hops := 0; ; hops++ {
		alias := ""
		for _, rr := range m.Answer {
			h := rr.Header()
			if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, name) {
				continue
			}
			if c, ok := rr.(*dns.CNAME); ok && isTarget(c.Target) {
				alias = dns.CanonicalName(c.Target)
			} else if h.Rrtype != k.typ || !a.add(rr) {
				continue
			}
			a.ttl = min(a.ttl, lifetime(h.Ttl))
		}
		if alias == "" || !a.none() {
			break
		}
		if hops == maxAliases {
			return answer{}, errAliases
		}
		name = alias
	}
	a.ttl = max(a.ttl, minTTL)
	if a.none() {
		ttl, said := negative(m)
		if name != k.name && m.Rcode == dns.RcodeSuccess && !said {
			a.alias = name
			return a, nil
		}
		a.ttl = min(a.ttl, ttl)
		return a, nil
	}
	slices.SortStableFunc(a.naptr, func(x, y naptr) int {
		return cmp.Or(cmp.Compare(x.order, y.order), cmp.Compare(x.pref, y.pref))
	})
	slices.SortStableFunc(a.srv, func(x, y srv) int { return cmp.Compare(x.priority, y.priority) })
	a.naptr = a.naptr[:min(len(a.naptr), maxRecords)]
	a.srv = a.srv[:min(len(a.srv), maxRecords)]
	a.addrs = a.addrs[:min(len(a.addrs), maxRecords)]
	if k.typ == dns.TypeSRV {
		a.glue = readGlue(m, k, a.srv)
	}
	return a, nil
}

// add takes a record if it can be used.
func (r *records) add(rr dns.RR) bool {
	switch rr := rr.(type) {
	case *dns.A:
		return addAddr(&r.addrs, rr.A)
	case *dns.AAAA:
		return addAddr(&r.addrs, rr.AAAA)
	case *dns.SRV:
		s := srv{rr.Priority, rr.Weight, rr.Port, dns.CanonicalName(rr.Target)}
		if s.target != "." && (s.port == 0 || !isTarget(s.target)) {
			return false
		}
		r.srv = append(r.srv, s)
		return true
	case *dns.NAPTR:
		n := naptr{order: rr.Order, pref: rr.Preference, direct: strings.EqualFold(rr.Flags, "a"), target: dns.CanonicalName(rr.Replacement)}
		if rr.Regexp != "" || !n.direct && !strings.EqualFold(rr.Flags, "s") || !isTarget(n.target) {
			return false
		}
		// Others are of transports we cannot connect with, such as SIP+D2S (SCTP)
		// or SIP+D2W (WebSocket, RFC 7118), or not about SIP.
		switch strings.ToUpper(rr.Service) {
		case "SIP+D2U":
			n.proto = sip.UDP
		case "SIP+D2T":
			n.proto = sip.TCP
		case "SIPS+D2T":
			n.proto, n.sips = sip.TLS, true
		default:
			return false
		}
		r.naptr = append(r.naptr, n)
		return true
	}
	return false
}

func addAddr(addrs *[]netip.Addr, ip []byte) bool {
	a, ok := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !ok || !sendable(a) {
		return false
	}
	if len(*addrs) < maxRecords && !slices.Contains(*addrs, a) {
		*addrs = append(*addrs, a)
	}
	return true
}

// readGlue takes addresses of SRV targets from the additional section, only
// below the domain that was asked for: it may speak for them.
func readGlue(m *dns.Msg, k key, targets []srv) (out []glue) {
	domain := k.name
	for strings.HasPrefix(domain, "_") {
		_, domain, _ = strings.Cut(domain, ".")
	}
	if domain == "" {
		return nil
	}
	for _, rr := range m.Extra {
		h := rr.Header()
		if h.Class != dns.ClassINET || h.Rrtype != dns.TypeA && h.Rrtype != dns.TypeAAAA {
			continue
		}
		k := key{dns.CanonicalName(h.Name), h.Rrtype}
		if !dns.IsSubDomain(domain, k.name) || !slices.ContainsFunc(targets, func(s srv) bool { return s.target == k.name }) {
			continue
		}
		var r records
		if !r.add(rr) {
			continue
		}
		i := slices.IndexFunc(out, func(g glue) bool { return g.key == k })
		if i < 0 {
			i = len(out)
			out = append(out, glue{key: k, ttl: maxTTL})
		}
		g := &out[i]
		addAddr(&g.addrs, r.addrs[0].AsSlice())
		g.ttl = max(minTTL, min(g.ttl, lifetime(h.Ttl)))
	}
	return out
}

// negative is how long "there is none" holds, and whether the message says that
// (RFC 2308 section 5).
func negative(m *dns.Msg) (ttl time.Duration, said bool) {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(maxNegativeTTL, max(minTTL, min(lifetime(soa.Hdr.Ttl), lifetime(soa.Minttl)))), true
		}
	}
	return minTTL, false
}

// lifetime of a TTL, where the highest bit means 0 (RFC 2181 section 8).
func lifetime(ttl uint32) time.Duration {
	if ttl >= 1<<31 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}

// isTarget tells whether a name from a message can be asked for.
func isTarget(name string) bool {
	_, ok := dns.IsDomainName(name)
	return ok && name != "."
}
