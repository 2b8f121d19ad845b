package locate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxFlights bounds the queries under way, and so sockets and goroutines. At
	// the bound expired answers stand in, and where there is none it is ErrBusy.
	maxFlights = 512
	// rounds is how often each name server is asked.
	rounds = 2
	// ednsSize is the datagram that passes anywhere without fragments.
	ednsSize = 1232

	// failureTTL is how long nobody is asked again after nobody answered. It
	// doubles while that goes on, up to maxFailureTTL (RFC 9520 section 3.2): a
	// forwarder that drops queries for NAPTR or AAAA, without which there may be
	// targets all the same, must not delay requests all the time.
	failureTTL    = 5 * time.Second
	maxFailureTTL = time.Minute
	// maxStale is how long an expired answer may stand in when nobody answers,
	// staleTTL how long it then holds (RFC 8767 section 5).
	maxStale = time.Hour
	staleTTL = 30 * time.Second
)

// entry is what is known of a key. Immutable.
type entry struct {
	records
	err     error         // nobody answered
	wait    time.Duration // with err, failureTTL to maxFailureTTL
	until   time.Time
	expired time.Time // it may stand in for maxStale from then on; zero if never
}

func (e *entry) staleAt(now time.Time) bool {
	return !e.expired.IsZero() && now.Before(e.expired.Add(maxStale))
}

// flight is one query under way.
type flight struct {
	began time.Time // by the real clock, which the network has
	done  chan struct{}
	got   *entry // once done
}

// wait is what start gives: either an entry or a flight, or else the number of
// flights is at its bound. Stale may stand in for a flight.
type wait struct {
	key    key
	entry  *entry
	flight *flight
	stale  *entry
}

// start takes a key from the cache, joins a query for it or begins one.
func (r *Resolver) start(k key) wait {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	w := wait{key: k}
	if e := r.entries.m[k]; e != nil {
		if now.Before(e.until) {
			w.entry = e
			return w
		}
		if e.staleAt(now) {
			w.stale = e
		}
	}
	if w.flight = r.flights[k]; w.flight != nil || len(r.flights) >= maxFlights || r.closed {
		return w
	}
	w.flight = &flight{began: time.Now(), done: make(chan struct{})}
	r.flights[k] = w.flight
	r.over.Go(func() { r.fly(k, w.flight) })
	return w
}

// await gives the entry. A stale one stands in when one server had its time.
func (r *Resolver) await(ctx context.Context, w wait) (*entry, error) {
	if w.entry != nil {
		return w.entry, nil
	}
	err := ErrBusy
	if r.ctx.Err() != nil {
		err = net.ErrClosed
	}
	if w.flight != nil {
		var patience <-chan time.Time
		if w.stale != nil {
			t := time.NewTimer(r.timeout - time.Since(w.flight.began))
			defer t.Stop()
			patience = t.C
		}
		select {
		case <-w.flight.done:
			return w.flight.got, nil
		case <-patience:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if w.stale == nil {
		return nil, err
	}
	return r.standIn(w.key, w.stale), nil
}

// standIn makes a stale entry hold a little longer, so that those who come
// next need not wait.
func (r *Resolver) standIn(k key, stale *entry) *entry {
	r.stale.Add(1)
	e := *stale
	e.until = r.now().Add(staleTTL)
	r.mu.Lock()
	if r.entries.m[k] == stale { // else the flight has landed
		r.entries.put(k, &e)
	}
	r.mu.Unlock()
	return &e
}

// fly asks for a key and keeps what it learns.
func (r *Resolver) fly(k key, f *flight) {
	a, err := r.fetch(k)
	now := r.now()
	e := &entry{records: a.records, until: now.Add(a.ttl)}
	if err == nil && !a.none() {
		e.expired = e.until
	}
	r.mu.Lock()
	switch old := r.entries.m[k]; {
	case err == nil:
	case old != nil && old.staleAt(now):
		s := *old
		s.until = now.Add(staleTTL)
		e = &s
		r.stale.Add(1)
	default:
		e.err, e.wait = err, failureTTL
		if old != nil && old.err != nil {
			e.wait = min(2*old.wait, maxFailureTTL)
		}
		e.until = now.Add(e.wait)
	}
	r.entries.put(k, e)
	for _, g := range a.glue {
		if old := r.entries.m[g.key]; old == nil || !now.Before(old.until) {
			until := now.Add(g.ttl)
			r.entries.put(g.key, &entry{records: records{addrs: g.addrs}, until: until, expired: until})
		}
	}
	delete(r.flights, k)
	r.mu.Unlock()
	f.got = e
	close(f.done)
}

// fetch asks name servers, and again for aliases that came alone.
func (r *Resolver) fetch(k key) (answer, error) {
	ttl := maxTTL
	asked := k
	for range maxAliases {
		m, err := r.exchange(asked)
		if err != nil {
			return answer{}, err
		}
		a, err := read(m, asked)
		if err != nil {
			return answer{}, fmt.Errorf("%w: %.80s", err, k.name)
		}
		ttl = min(ttl, a.ttl)
		a.ttl = ttl
		if a.alias == "" {
			return a, nil
		}
		asked.name = a.alias
	}
	return answer{}, fmt.Errorf("%w: %.80s", errAliases, k.name)
}

// exchange asks the name servers in turn until one answers.
func (r *Resolver) exchange(k key) (*dns.Msg, error) {
	servers := r.servers()
	first := int(r.first.Load())
	var err error
	for i := range rounds * len(servers) {
		n := (first + i) % len(servers)
		var m *dns.Msg
		if m, err = r.query(servers[n], k); err == nil {
			if i > 0 {
				r.first.Store(int32(n))
			}
			return m, nil
		}
		if r.ctx.Err() != nil {
			break
		}
	}
	r.unanswered.Add(1)
	return nil, fmt.Errorf("%w for %s %.80s: %w", ErrUnavailable, dns.TypeToString[k.typ], k.name, err)
}

// query asks one name server. What it gives says something about the name.
func (r *Resolver) query(server string, k key) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.SetQuestion(k.name, k.typ)
	q.SetEdns0(ednsSize, false)
	m, err := r.send("udp", server, q)
	if err == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		q.Extra = nil // it knows no EDNS (RFC 6891 section 7)
		m, err = r.send("udp", server, q)
	}
	if err == nil && m.Truncated {
		m, err = r.send("tcp", server, q)
	}
	switch {
	case err != nil:
		return nil, err
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		return nil, errors.New(dns.RcodeToString[m.Rcode])
	case m.Truncated:
		return nil, errors.New("truncated over TCP")
	case m.Rcode == dns.RcodeSuccess && !m.RecursionAvailable && !m.Authoritative && len(m.Answer) == 0:
		return nil, errors.New("neither answer nor recursion")
	}
	return m, nil
}

// send sends a query from a port of its own and waits for the response to it.
func (r *Resolver) send(network, server string, q *dns.Msg) (*dns.Msg, error) {
	q.Id = dns.Id()
	r.queries.Add(1)
	ctx, cancel := context.WithTimeout(r.ctx, r.timeout)
	defer cancel()
	c, err := r.dialer.DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	conn := dns.Conn{Conn: c, UDPSize: dns.DefaultMsgSize}
	if err := conn.WriteMsg(q); err != nil {
		return nil, err
	}
	for {
		m, err := conn.ReadMsg()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case m == nil && errors.Is(err, dns.ErrShortRead) && network == "udp":
		case m == nil:
			return nil, err
		case m.Id != q.Id || !m.Response: // a guess from elsewhere; ours may still come
		case err != nil:
			return nil, err
		case responds(m, q):
			return m, nil
		}
	}
}

// responds tells whether a message repeats the question, which one that refuses
// it need not.
func responds(m, q *dns.Msg) bool {
	if len(m.Question) == 0 {
		return m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError
	}
	x, y := m.Question[0], q.Question[0]
	return len(m.Question) == 1 && x.Qtype == y.Qtype && x.Qclass == y.Qclass && dns.CanonicalName(x.Name) == y.Name
}
