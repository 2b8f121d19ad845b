package locate

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"rollcall/sip"
)

// plan is where requests to a destination go, before the choice by weight.
type plan struct {
	groups []group // best first
	until  time.Time
	size   int // addresses in all
}

// group is the servers of one transport and priority. Those of weight 0 are the
// first, as RFC 2782 wants them for its choice.
type group struct {
	proto sip.Proto
	zeros int
	hosts []host
}

type host struct {
	name   string
	port   uint16
	weight uint16
	addrs  [2][]netip.Addr // IPv6, IPv4
}

// route is a way to find servers: the SRV records of a name, or with port its
// addresses.
type route struct {
	proto sip.Proto
	name  string
	port  uint16
}

// service is the first labels of a transport's SRV records (RFC 3263 section
// 4.2: a SIP URI over TLS uses _sips too).
func service(p sip.Proto) string {
	switch p {
	case sip.UDP:
		return "_sip._udp."
	case sip.TCP:
		return "_sip._tcp."
	}
	return "_sips._tcp."
}

// builder makes a plan out of lookups.
type builder struct {
	*Resolver
	ctx    context.Context
	plan   *plan
	names  int   // hosts in the plan
	failed error // the first query that had no answer
}

func (r *Resolver) build(ctx context.Context, d planKey) (*plan, error) {
	b := &builder{Resolver: r, ctx: ctx, plan: &plan{until: r.now().Add(maxTTL)}}
	fqdn := d.target + "."
	if d.port != 0 {
		b.add(true, d.proto, srv{target: fqdn, port: d.port})
	} else if err := b.servers(d, fqdn); err != nil {
		return nil, err
	}
	if err := b.addresses(); err != nil {
		return nil, err
	}
	return b.plan, nil
}

// get looks names up, all at a time. The error is one that says nothing about
// the names; what is unknown about one is in its entry.
func (b *builder) get(keys ...key) ([]*entry, error) {
	waits := make([]wait, len(keys))
	for i, k := range keys {
		waits[i] = b.start(k)
	}
	entries := make([]*entry, len(keys))
	for i, w := range waits {
		e, err := b.await(b.ctx, w)
		if err != nil {
			return nil, fmt.Errorf("%w while looking up %.80s", err, w.key.name)
		}
		entries[i] = e
		b.ends(e.until)
	}
	return entries, nil
}

func (b *builder) ends(t time.Time) {
	if t.Before(b.plan.until) {
		b.plan.until = t
	}
}

// routes are RFC 3263 section 4.1 for a name without port: the transport that
// the URI names, those of NAPTR, or all of ours.
func (b *builder) routes(d planKey, fqdn string) (routes []route, proto sip.Proto, err error) {
	if d.fixed {
		return appendSRV(nil, d.proto, fqdn), d.proto, nil
	}
	// A NAPTR query without answer is not the end: some forwarders know no such
	// type, and what SRV says is for all transports good enough.
	e, err := b.get(key{fqdn, dns.TypeNAPTR})
	if err != nil {
		return nil, 0, err
	}
	var chosen []naptr
	for _, n := range e[0].naptr {
		if d.sips && !n.sips || !slices.Contains(b.protos, n.proto) {
			continue
		}
		// Once a rule matches, those of other orders must not be looked at
		// (RFC 3403 section 4.1), or a lost TLS connection would turn into UDP.
		if len(chosen) > 0 && n.order != chosen[0].order {
			break
		}
		chosen = append(chosen, n)
	}
	slices.SortStableFunc(chosen, func(x, y naptr) int {
		return cmp.Or(cmp.Compare(x.pref, y.pref), slices.Index(b.protos, x.proto)-slices.Index(b.protos, y.proto))
	})
	for _, n := range chosen {
		rt := route{proto: n.proto, name: n.target}
		if n.direct {
			rt.port = defaultPort(n.proto)
		}
		routes = append(routes, rt)
	}
	if len(routes) > 0 {
		return routes, routes[0].proto, nil
	}
	for _, p := range b.protos {
		if !d.sips || p == sip.TLS {
			routes = appendSRV(routes, p, fqdn)
		}
	}
	return routes, d.proto, nil
}

// appendSRV appends the SRV records of a transport, unless their name would be
// longer than names are.
func appendSRV(routes []route, p sip.Proto, fqdn string) []route {
	if name := service(p) + fqdn; len(name) <= maxName {
		routes = append(routes, route{proto: p, name: name})
	}
	return routes
}

// servers finds the servers of a name without port (RFC 3263 section 4.2).
func (b *builder) servers(d planKey, fqdn string) error {
	routes, proto, err := b.routes(d, fqdn)
	if err != nil {
		return err
	}
	var keys []key
	for _, rt := range routes {
		if rt.port == 0 {
			keys = append(keys, key{rt.name, dns.TypeSRV})
		}
	}
	entries, err := b.get(keys...)
	if err != nil {
		return err
	}
	found := false
	for _, rt := range routes {
		if rt.port != 0 {
			b.add(true, rt.proto, srv{target: rt.name, port: rt.port})
			found = true
			continue
		}
		e := entries[0]
		entries = entries[1:]
		b.failed = cmp.Or(b.failed, e.err)
		for i, s := range e.srv {
			found = true
			if s.target != "." { // "decidedly not available at this domain" (RFC 2782)
				b.add(i == 0 || s.priority != e.srv[i-1].priority, rt.proto, s)
			}
		}
	}
	if found {
		return nil
	}
	if _, pinned := b.hosts.get(b.now())[fqdn]; b.failed != nil && !pinned {
		return b.failed // the name itself may be quite another server
	}
	b.add(true, proto, srv{target: fqdn, port: defaultPort(proto)})
	return nil
}

// add appends a server, to a group of its own if fresh.
func (b *builder) add(fresh bool, proto sip.Proto, s srv) {
	if b.names == maxTargets {
		return
	}
	b.names++
	if fresh {
		b.plan.groups = append(b.plan.groups, group{proto: proto})
	}
	g := &b.plan.groups[len(b.plan.groups)-1]
	at := len(g.hosts)
	if s.weight == 0 {
		at = g.zeros
		g.zeros++
	}
	g.hosts = slices.Insert(g.hosts, at, host{name: s.target, port: s.port, weight: s.weight})
}

// addresses looks up those of all hosts, and drops hosts without.
func (b *builder) addresses() error {
	now := b.now()
	known := b.hosts.get(now)
	var keys []key
	for _, g := range b.plan.groups {
		for _, h := range g.hosts {
			if known[h.name] == nil {
				keys = append(keys, key{h.name, dns.TypeAAAA}, key{h.name, dns.TypeA})
			}
		}
	}
	entries, err := b.get(keys...)
	if err != nil {
		return err
	}
	reachable := map[netip.Addr]bool{}
	anyReachable := false
	for _, g := range b.plan.groups {
		for i := range g.hosts {
			h := &g.hosts[i]
			addrs := known[h.name]
			if addrs != nil {
				b.ends(now.Add(hostsTTL))
			} else {
				addrs = slices.Concat(entries[0].addrs, entries[1].addrs)
				b.failed = cmp.Or(b.failed, entries[0].err, entries[1].err)
				entries = entries[2:]
			}
			for _, a := range addrs {
				if _, done := reachable[a]; !done {
					reachable[a] = b.usable(a)
					anyReachable = anyReachable || reachable[a]
				}
				family := 0
				if a.Is4() {
					family = 1
				}
				h.addrs[family] = append(h.addrs[family], a)
			}
		}
	}
	for i := range b.plan.groups {
		g := &b.plan.groups[i]
		for j := range g.hosts {
			for f := range g.hosts[j].addrs {
				g.hosts[j].addrs[f] = slices.DeleteFunc(g.hosts[j].addrs[f], func(a netip.Addr) bool { return anyReachable && !reachable[a] })
			}
		}
		g.hosts = slices.DeleteFunc(g.hosts, func(h host) bool { return len(h.addrs[0])+len(h.addrs[1]) == 0 })
		g.zeros = 0
		for _, h := range g.hosts {
			b.plan.size += len(h.addrs[0]) + len(h.addrs[1])
			if h.weight == 0 {
				g.zeros++
			}
		}
	}
	if b.plan.size > 0 {
		return nil
	}
	return cmp.Or(b.failed, ErrNotFound)
}

// choose orders a plan for one transaction.
func (r *Resolver) choose(p *plan, domain string, now time.Time) []Target {
	out := make([]Target, 0, min(p.size, maxTargets))
	for i := range p.groups {
		g := &p.groups[i]
		var buf [maxTargets]uint8
		for _, n := range g.order(buf[:0], r.intN) {
			h := &g.hosts[n]
			for _, addrs := range h.addrs {
				at := 0
				if len(addrs) > 1 {
					at = r.intN(len(addrs))
				}
				for range min(len(addrs), maxPerHost) {
					if len(out) == maxTargets {
						return r.demote(out, now)
					}
					out = append(out, Target{g.proto, netip.AddrPortFrom(addrs[at], h.port), domain})
					if at++; at == len(addrs) {
						at = 0
					}
				}
			}
		}
	}
	return r.demote(out, now)
}

// order is the choice by weight of RFC 2782: of those not yet chosen, those of
// weight 0 first, the first whose running sum of weights reaches a random number
// from 0 to the sum of all. Those of weight 0 are shuffled before, to share too.
func (g *group) order(idx []uint8, intN func(int) int) []uint8 {
	sum := 0
	for i := range g.hosts {
		idx = append(idx, uint8(i))
		sum += int(g.hosts[i].weight)
	}
	for i := g.zeros - 1; i > 0; i-- {
		j := intN(i + 1)
		idx[i], idx[j] = idx[j], idx[i]
	}
	for i := 0; i < len(idx)-1 && sum > 0; i++ {
		r := intN(sum + 1)
		at, running := i, int(g.hosts[idx[i]].weight)
		for running < r {
			at++
			running += int(g.hosts[idx[at]].weight)
		}
		chosen := idx[at]
		copy(idx[i+1:at+1], idx[i:at])
		idx[i] = chosen
		sum -= int(g.hosts[chosen].weight)
	}
	return idx
}

// demote moves the targets that failed lately behind the others.
func (r *Resolver) demote(ts []Target, now time.Time) []Target {
	if len(ts) < 2 || now.UnixNano() >= r.avoid.Load() {
		return ts
	}
	var bad [maxTargets]Target
	n, kept := 0, ts[:0]
	r.hot.RLock()
	for _, t := range ts {
		if now.Before(r.avoided.m[place{t.Proto, t.Addr}]) {
			bad[n] = t
			n++
		} else {
			kept = append(kept, t)
		}
	}
	r.hot.RUnlock()
	return append(kept, bad[:n]...)
}
