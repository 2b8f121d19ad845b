package server_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sip"
	"rollcall/sql"
)

var (
	simSeeds = flag.Int("sim.seeds", 3, "how many seeds TestSimulation runs")
	simFirst = flag.Uint64("sim.first", 1, "the first of them")
	simTrace = flag.String("sim.trace", "", "a file for every datagram that the simulation delivers")
)

// A seed is a script: phones and publishers that come, change their minds, fall
// silent and start again, rules and lists that change, a network and disks with
// faults, and two servers, one with subscriptions at the other, that are
// stopped and killed. When all is quiet again, what each phone was told last
// must be the truth; when all has run out, nothing may be left. A seed that
// fails runs alone with -run TestSimulation -sim.first N -sim.seeds 1.
func TestSimulation(t *testing.T) {
	for seed := *simFirst; seed < *simFirst+uint64(*simSeeds); seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { simulate(t, seed) })
	}
}

// simulate runs a seed. Its script, the faults, tags and crashes repeat. Which
// changes of one instant share a NOTIFY is up to the scheduler, less so on one
// processor; the course it logs tells runs apart.
func simulate(t *testing.T, seed uint64) {
	if !crowd(seed) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	}
	cryptotest.SetGlobalRandom(t, seed)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, seed, dir)
		defer func() {
			t.Logf("course %016x", s.digest)
			if t.Failed() || *simTrace != "" {
				t.Logf("seed %d, %s:\n%s", seed, s.home.mode, strings.Join(s.log, "\n"))
			}
		}()
		s.play()
		s.calm()
		s.check("quiet")
		s.publish()
		s.check("published")
		s.refresh()
		s.check("refreshed")
		s.expire()
	})
}

// The cast of a simulation.
const (
	simStaff = "sip:staff@example.com" // a list with a list in it
	simDesk  = "sip:desk@example.com"  // the list in it
	simRound = "sip:round@example.com" // a list
	simLong  = 12 * time.Minute
)

var (
	simUsers = []string{"sip:u0@example.com", "sip:u1@example.com", "sip:u2@example.com", "sip:u3@example.com"}
	simFar   = "sip:far@example.org"
	simLists = []string{simStaff, simDesk, simRound}
)

type sim struct {
	t          *testing.T
	w          *servertest.World
	seed       uint64
	start      time.Time
	home, away *simSite
	devices    []*simDevice
	phones     []*simPhone
	lists      map[string][]string          // members by service
	rules      map[string]map[string]string // handling by presentity and watcher

	mu     sync.Mutex
	log    []string
	trace  *os.File
	digest uint64
}

// simSite is a server with its disk.
type simSite struct {
	n       *servertest.Node
	disk    *servertest.Disk
	mode    string
	started time.Time
	killed  time.Time
}

func newSim(t *testing.T, seed uint64, dir string) *sim {
	s := &sim{t: t, seed: seed, start: time.Now(), lists: make(map[string][]string), rules: make(map[string]map[string]string)}
	s.w = servertest.NewFaulty(t, seed, s.net(sip.Fault{}))
	s.w.Describe = func(body []byte) string { return simText(simNotes(body)) }
	mode := [...]string{"write-through", "write-back"}[seed%2]
	s.w.Ledger = servertest.NewLedger(t)
	s.w.Ledger.Revives = mode == "write-back"
	s.w.Net.Tap(s.tap)
	if *simTrace != "" {
		s.trace, _ = os.Create(*simTrace)
		t.Cleanup(func() { s.trace.Close() })
	}
	site := func(ip, domain, auth string) *simSite {
		x := &simSite{mode: mode, disk: servertest.NewDisk(seed), started: time.Now()}
		x.disk.SetFault(simDisk)
		x.n = s.w.NodeOn(x.disk, ip, func(c *server.Config) {
			c.Store, c.PresenceAuth, c.Durability = "sqlite:"+filepath.Join(dir, domain+".db"), auth, mode
			c.Domain = []string{domain}
			c.RatePerSource = 0
		})
		return x
	}
	s.away = site("192.0.2.99", "example.org", "allow")
	s.home = site("192.0.2.1", "example.com", "confirm")
	for _, u := range simUsers {
		s.rules[u] = make(map[string]string)
	}
	rng := s.rng(1)
	for _, u := range append(slices.Clone(simUsers), simUsers[0], simFar) {
		d := &simDevice{s: s, name: fmt.Sprint("device", len(s.devices)), aor: u, site: s.home}
		if u == simFar {
			d.site = s.away
		}
		d.ua = s.w.UA(u)
		d.p = d.ua.Publication(d.site.n)
		s.devices = append(s.devices, d)
	}
	phone := func(aor, event, target string) {
		p := &simPhone{s: s, name: fmt.Sprint("phone", len(s.phones)), ua: s.w.UA(aor), event: event, target: target}
		s.phones = append(s.phones, p)
	}
	for i := range 7 {
		w := fmt.Sprintf("sip:w%d@example.com", i%4)
		targets := append(append(slices.Clone(simUsers), simLists...), simFar)
		phone(w, "presence", targets[rng.IntN(len(targets))])
	}
	for i := range 3 {
		phone(fmt.Sprintf("sip:w%d@example.com", i), "presence", simLists[i])
	}
	for _, u := range simUsers[:2] {
		phone(u, "presence.winfo", u)
	}
	for _, u := range simUsers {
		for i := range 4 {
			s.rules[u][fmt.Sprintf("sip:w%d@example.com", i)] = simHandling[rng.IntN(len(simHandling))]
		}
		s.putRules(u)
	}
	s.lists[simDesk] = []string{simUsers[0], simUsers[1]}
	s.lists[simStaff] = []string{simUsers[2], simDesk, simFar}
	s.lists[simRound] = []string{simUsers[0], simUsers[3], simFar}
	s.putLists()
	return s
}

var (
	simHandling = []string{"allow", "allow", "allow", "confirm", "polite-block", "block"}
	// A disk without faults takes no time: what is written at one instant is stored
	// at one instant, however the shards that want them are scheduled.
	simDisk servertest.DiskFault
)

// net is a network on which no two datagrams arrive at one instant; in a crowd
// many do.
func (s *sim) net(f sip.Fault) sip.Fault {
	f.Delay, f.Spread = 2*time.Millisecond, time.Millisecond
	if crowd(s.seed) {
		f.Spread = 0
	}
	return f
}

// crowd tells the seeds in which what happens happens at few instants, so that
// shards race for it.
func crowd(seed uint64) bool { return seed%3 == 0 }

func (s *sim) rng(part uint64) *rand.Rand { return rand.New(rand.NewPCG(s.seed, part)) }

func (s *sim) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf("%10.3f ", time.Since(s.start).Seconds())+fmt.Sprintf(format, args...))
}

// tap adds a datagram to the digest. What arrives at one instant has no order.
func (s *sim) tap(from, to netip.AddrPort, b []byte) {
	first, _, _ := bytes.Cut(b, []byte("\r\n"))
	if !bytes.HasPrefix(first, []byte("SIP/2.0 ")) {
		first, _, _ = bytes.Cut(first, []byte(" "))
	}
	_, cseq, _ := bytes.Cut(b, []byte("\r\nCSeq: "))
	cseq, _, _ = bytes.Cut(cseq, []byte("\r\n"))
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %v %v %s %s %d", time.Since(s.start), from, to, first, cseq, len(b))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.digest += h.Sum64()
	if s.trace != nil {
		fmt.Fprintf(s.trace, "---- %.6f %v > %v\n%s\n", time.Since(s.start).Seconds(), from, to, b)
	}
}

var simNote = regexp.MustCompile(`<(?:[a-z0-9]+:)?note>([^<]*)</`)

func simNotes(body []byte) []string {
	var notes []string
	for _, m := range simNote.FindAllSubmatch(body, -1) {
		notes = append(notes, string(m[1]))
	}
	return notes
}

func simText(notes []string) string {
	if len(notes) == 0 {
		return "closed"
	}
	slices.Sort(notes)
	return strings.Join(notes, " + ")
}

func (s *sim) putRules(presentity string) {
	var b strings.Builder
	b.WriteString(`<cr:ruleset xmlns:cr="urn:ietf:params:xml:ns:common-policy" xmlns:pr="urn:ietf:params:xml:ns:pres-rules">`)
	for _, w := range slices.Sorted(maps.Keys(s.rules[presentity])) {
		h := s.rules[presentity][w]
		fmt.Fprintf(&b, `<cr:rule id="%s"><cr:conditions><cr:identity><cr:one id="%s"/></cr:identity></cr:conditions><cr:actions><pr:sub-handling>%s</pr:sub-handling></cr:actions>`, w[4:6], w, h)
		if h == "allow" {
			b.WriteString(`<cr:transformations><pr:provide-services><pr:all-services/></pr:provide-services><pr:provide-persons><pr:all-persons/></pr:provide-persons><pr:provide-devices><pr:all-devices/></pr:provide-devices><pr:provide-note>true</pr:provide-note><pr:provide-all-attributes/></cr:transformations>`)
		}
		b.WriteString(`</cr:rule>`)
	}
	b.WriteString(`</cr:ruleset>`)
	s.home.n.Put("pres-rules/users/"+presentity+"/index", b.String())
}

func (s *sim) putLists() {
	var services []string
	for _, uri := range slices.Sorted(maps.Keys(s.lists)) {
		services = append(services, servertest.Service(uri, s.lists[uri]...))
	}
	s.home.n.Put("rls-services/global/index", servertest.Services(services...))
}

// play carries out the script: that of each actor, and the world's here.
func (s *sim) play() {
	var over sync.WaitGroup
	for i, d := range s.devices {
		over.Go(func() { d.run(s.rng(100 + uint64(i))) })
	}
	for i, p := range s.phones {
		over.Go(func() { p.run(s.rng(200 + uint64(i))) })
	}
	rng := s.rng(2)
	for time.Since(s.start) < simLong {
		time.Sleep(s.pause(rng, 12*time.Second))
		s.event(rng)
	}
	over.Wait()
}

// pause is a random time; in a crowd whole seconds.
func (s *sim) pause(rng *rand.Rand, mean time.Duration) time.Duration {
	d := time.Duration(rng.ExpFloat64()*float64(mean)) + time.Duration(rng.IntN(1e6))
	if crowd(s.seed) {
		d = time.Since(s.start).Truncate(time.Second) + d.Truncate(time.Second) + time.Second - time.Since(s.start)
	}
	return d
}

// event is something that happens to the servers or between them and the rest.
func (s *sim) event(rng *rand.Rand) {
	site := s.home
	if rng.IntN(5) == 0 {
		site = s.away
	}
	pause := []time.Duration{0, time.Second, time.Second, time.Minute}[rng.IntN(4)]
	switch rng.IntN(14) {
	case 0, 1, 2:
		f := sip.Fault{Loss: rng.Float64() * 0.2, Duplicate: rng.Float64() * 0.2, Reorder: rng.Float64() * 0.3, Jitter: time.Duration(rng.IntN(1500)+1) * time.Millisecond}
		if rng.IntN(3) == 0 {
			f = sip.Fault{}
		}
		s.note("network %+v", f)
		s.w.Net.SetFault(s.net(f))
	case 3, 4:
		addrs := []netip.AddrPort{s.away.n.Addr}
		for _, p := range s.phones {
			addrs = append(addrs, p.ua.Addr)
		}
		for _, d := range s.devices {
			addrs = append(addrs, d.ua.Addr)
		}
		addr, d := addrs[rng.IntN(len(addrs))], time.Duration(rng.IntN(90)+1)*time.Second
		s.note("%v cut off for %v", addr, d)
		s.w.Net.Isolate(addr, true)
		time.AfterFunc(d, func() { s.w.Net.Isolate(addr, false) })
	case 5, 6:
		d := time.Duration(rng.IntN(8000)+1) * time.Millisecond
		f := []servertest.DiskFault{{Refuse: true}, {Lie: true}, {Slow: 200 * time.Millisecond}}[rng.IntN(3)]
		s.note("disk of %v %+v for %v", site.n.Addr, f, d)
		site.disk.SetFault(f)
		time.AfterFunc(d, func() { site.disk.SetFault(simDisk) })
	case 7:
		s.note("restart %v, pause %v", site.n.Addr, pause)
		site.n.Restart(pause)
		s.began(site)
	case 8, 9:
		if rng.IntN(2) == 0 { // between a commit and what waits for it
			site.disk.SetFault(servertest.DiskFault{Slow: 100 * time.Millisecond})
			time.Sleep(s.pause(rng, 3*time.Second))
		}
		since := site.disk.Behind()
		s.note("kill %v, pause %v", site.n.Addr, pause)
		if site.mode == "write-back" {
			s.doubt(site, since)
		}
		site.n.Crash(pause)
		site.disk.SetFault(simDisk)
		s.began(site)
	case 10, 11:
		u, w := simUsers[rng.IntN(len(simUsers))], fmt.Sprintf("sip:w%d@example.com", rng.IntN(4))
		h := simHandling[rng.IntN(len(simHandling))]
		s.note("rule of %s for %s: %s", u, w, h)
		s.rules[u][w] = h
		s.putRules(u)
	default:
		uri := simLists[rng.IntN(len(simLists))]
		members, exists := s.lists[uri]
		pool := append(slices.Clone(simUsers), simFar)
		if uri != simDesk {
			pool = append(pool, simDesk)
		}
		m := pool[rng.IntN(len(pool))]
		switch i := slices.Index(members, m); {
		case !exists, rng.IntN(5) == 0 && i < 0:
			s.lists[uri] = []string{m}
		case rng.IntN(6) == 0:
			delete(s.lists, uri)
		case i >= 0:
			s.lists[uri] = slices.Delete(slices.Clone(members), i, i+1)
		default:
			s.lists[uri] = append(slices.Clone(members), m)
		}
		_, exists = s.lists[uri]
		s.note("list %s: exists %v, members %v", uri, exists, s.lists[uri])
		s.putLists()
	}
}

// began says that a site works again.
func (s *sim) began(site *simSite) {
	s.mu.Lock()
	site.started = time.Now()
	s.mu.Unlock()
	s.note("%v is up", site.n.Addr)
}

// doubt takes into account what a write-back server that is killed may lose.
func (s *sim) doubt(site *simSite, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	site.killed = time.Now()
	for _, d := range s.devices {
		if d.site != site {
			continue
		}
		if d.cur != nil && !d.cur.acked.Before(since) {
			d.cur.sure = false
		}
		for _, b := range d.past {
			if !b.dropped.Before(since) {
				d.maybe = append(d.maybe, b)
			}
		}
	}
	for _, p := range s.phones {
		if site == s.home && !p.acked.Before(since) {
			p.doubt = true
		}
	}
}

// calm ends all faults and waits until nobody has anything to repeat.
func (s *sim) calm() {
	s.w.Net.SetFault(s.net(sip.Fault{}))
	for _, site := range []*simSite{s.home, s.away} {
		site.disk.SetFault(simDisk)
		s.w.Net.Isolate(site.n.Addr, false)
	}
	for _, p := range s.phones {
		s.w.Net.Isolate(p.ua.Addr, false)
	}
	for _, d := range s.devices {
		s.w.Net.Isolate(d.ua.Addr, false)
	}
	s.note("calm")
	// A server that lost a subscriber says nothing: the other one finds out when
	// it refreshes, after four fifths of an hour, and tries again every ten minutes.
	s.w.Settle(62 * time.Minute)
}

// belief is what a publisher knows of a publication.
type belief struct {
	note           string
	acked, dropped time.Time
	surely, until  time.Time // it lasts surely, and at most
	sure           bool
}

// simDevice publishes.
type simDevice struct {
	s     *sim
	name  string
	aor   string
	site  *simSite
	ua    *servertest.UA
	p     *servertest.Publication
	words int

	cur   *belief  // the publication that the entity tag is of
	past  []belief // replaced or removed
	maybe []belief // may be there: nobody knows what came of a request
}

func (d *simDevice) run(rng *rand.Rand) {
	for {
		time.Sleep(d.s.pause(rng, 25*time.Second))
		if time.Since(d.s.start) >= simLong {
			return
		}
		op := []string{"publish", "publish", "publish", "refresh", "refresh", "remove", "wrong", "reboot"}[rng.IntN(8)]
		d.do(op, []int{60, 120, 3600, 3600}[rng.IntN(4)])
	}
}

func (d *simDevice) do(op string, expires int) {
	s := d.s
	s.mu.Lock()
	cur := d.cur
	s.mu.Unlock()
	body, note := "", ""
	switch {
	case op == "reboot":
		s.note("%s reboots", d.name)
		s.mu.Lock()
		if cur != nil {
			d.maybe = append(d.maybe, *cur)
		}
		d.cur, d.p.ETag = nil, ""
		s.mu.Unlock()
		return
	case op == "wrong":
		keep := d.p.ETag
		d.p.ETag = "0123456789abcdef"
		m := d.p.Send(servertest.PIDF(d.aor, "open", "wrong"), expires)
		d.p.ETag = keep
		s.note("%s publishes with a wrong entity tag: %d", d.name, m.Status())
		if st := m.Status(); st != 412 && st != 0 && st != 503 { // 503: the store is down
			s.t.Errorf("PUB-05: %s: wrong entity tag answered %d", d.name, st)
		}
		return
	case op == "remove" && cur != nil:
		expires = 0
	case op == "refresh" && cur != nil:
		note = cur.note
	default:
		d.words++
		note = fmt.Sprintf("%s-%d", d.name, d.words)
		body = servertest.PIDF(d.aor, "open", note)
	}
	had, starts, from := d.p.ETag != "", d.site.n.Starts(), time.Now()
	m := d.p.Send(body, expires)
	again := d.site.n.Starts() != starts // another server may have had the request before
	s.note("%s %s %q for %d s since %.3f: %d", d.name, op, note, expires, from.Sub(s.start).Seconds(), m.Status())
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	next := &belief{note: note, acked: now, surely: from.Add(time.Duration(expires) * time.Second), until: now.Add(time.Duration(expires) * time.Second), sure: true}
	drop := func() {
		if d.cur != nil {
			d.cur.dropped = now
			d.past = append(d.past, *d.cur)
		}
		d.cur = nil
	}
	if d.site.mode == "write-back" && !d.site.killed.Before(from) { // the answer may be of a server that was killed before it wrote
		next.sure = false
		if d.cur != nil {
			d.maybe = append(d.maybe, *d.cur)
		}
	}
	switch st := m.Status(); {
	case st == 200 && expires == 0:
		drop()
		d.p.ETag = ""
	case st == 200:
		drop()
		d.cur = next
		if again && !had {
			d.maybe = append(d.maybe, *next)
		}
	case st == 412 && !had || st != 412 && st != 503 && st != 0:
		s.t.Errorf("%s: PUBLISH answered %d", d.name, st)
	case st == 503 && !again:
	default:
		if st == 412 && !again && d.cur != nil && d.cur.sure && now.Before(d.cur.surely) {
			s.t.Errorf("PUB-05: %s: a good entity tag is refused", d.name)
		}
		if d.cur != nil {
			d.maybe = append(d.maybe, *d.cur)
		}
		if note != "" {
			d.maybe = append(d.maybe, *next)
		}
		d.cur, d.p.ETag = nil, ""
	}
}

// simPhone watches something.
type simPhone struct {
	s             *sim
	name          string
	ua            *servertest.UA
	event, target string
	sub           *servertest.Sub
	refused       int

	acked time.Time // the subscription, by 200
	doubt bool      // the server may have forgotten it
}

func (p *simPhone) run(rng *rand.Rand) {
	for {
		time.Sleep(p.s.pause(rng, 30*time.Second))
		if time.Since(p.s.start) >= simLong {
			return
		}
		switch op := rng.IntN(10); {
		case op < 7:
			p.watch([]int{60, 300, 7200, 7200}[rng.IntN(4)])
		case op < 8:
			p.leave()
		case op < 9:
			p.s.note("%s reboots", p.name)
			p.ua.Reboot()
			p.sub = nil
		}
	}
}

// watch subscribes or refreshes.
func (p *simPhone) watch(expires int) {
	s := p.s
	for range 2 {
		fresh := p.sub == nil || p.sub.Over()
		if fresh {
			p.sub = p.ua.Dialog(s.home.n, p.target)
			p.sub.Event = p.event
			if p.event != "presence" {
				p.sub.Headers = ""
			}
			s.mu.Lock()
			p.doubt = false
			s.mu.Unlock()
		}
		from := time.Now()
		m := p.sub.Subscribe(expires)
		s.note("%s (%s) watches %s for %d s since %.3f, new %v: %d", p.name, p.ua.AOR, p.target, expires, from.Sub(s.start).Seconds(), fresh, m.Status())
		st := m.Status()
		p.refused = st
		switch {
		case st == 200:
			if fresh {
				s.mu.Lock()
				p.acked = time.Now()
				p.doubt = s.home.mode == "write-back" && !s.home.killed.Before(from)
				s.mu.Unlock()
			}
			return
		case !fresh && (st == 500 || st == 503): // still there
			return
		}
		p.sub.Forget()
		p.sub = nil
		if fresh {
			return
		}
	}
}

func (p *simPhone) leave() {
	if p.sub == nil || p.sub.Over() {
		return
	}
	m := p.sub.Subscribe(0)
	p.s.note("%s leaves: %d", p.name, m.Status())
	if m.Status() != 200 {
		p.sub.Forget()
	}
	p.sub = nil
}

// handling is what a watcher gets from a presentity.
func (s *sim) handling(watcher, presentity string) string {
	switch {
	case strings.HasSuffix(presentity, "@example.org"), watcher == presentity:
		return "allow"
	case s.rules[presentity][watcher] != "":
		return s.rules[presentity][watcher]
	}
	return "confirm"
}

// published is what a server knows of a presentity.
func (s *sim) published(uri string) []string {
	n := s.home.n
	if uri == simFar {
		n = s.away.n
	}
	var info pa.Info
	if n.Get("/api/v1/presentity?uri="+url.QueryEscape(uri), nil) != 200 {
		return nil
	}
	n.Get("/api/v1/presentity?uri="+url.QueryEscape(uri), &info)
	var notes []string
	for _, p := range info.Publications {
		notes = append(notes, p.Note)
	}
	return notes
}

// members is the truth about a list for a watcher, as View.Flat has it.
func (s *sim) members(watcher, uri, path string, out map[string]string) {
	for _, m := range s.lists[uri] {
		if _, nested := s.lists[m]; nested {
			out[path+m] = "list"
			s.members(watcher, m, path+m+" > ", out)
			continue
		}
		switch s.handling(watcher, m) {
		case "allow":
			out[path+m] = simText(s.published(m))
		case "confirm":
			out[path+m] = "pending"
		case "polite-block":
			out[path+m] = "closed"
		case "block":
			out[path+m] = "terminated rejected"
		}
	}
}

// watchers counts how often a list shows a presentity.
func (s *sim) occurs(uri, presentity string) int {
	n := 0
	for _, m := range s.lists[uri] {
		if _, nested := s.lists[m]; nested {
			n += s.occurs(m, presentity)
		} else if m == presentity {
			n++
		}
	}
	return n
}

// truth is what a phone should have been told; ok is false when there should be
// no subscription.
func (s *sim) truth(p *simPhone, live []dialog.SubscriptionInfo) (state, text string, ok bool) {
	if p.event == "presence.winfo" {
		var rows []string
		for _, x := range live {
			if x.Event != "presence" {
				continue
			}
			n := 0
			if _, list := s.lists[x.Resource]; list {
				n = s.occurs(x.Resource, p.target)
			} else if x.Resource == p.target {
				n = 1
			}
			status := map[string]string{"allow": "active", "polite-block": "active", "confirm": "pending"}[s.handling(x.Watcher, p.target)]
			for range n {
				if status != "" {
					rows = append(rows, x.Watcher+" "+status)
				}
			}
		}
		slices.Sort(rows)
		return "active", strings.Join(rows, "\n"), true
	}
	if _, list := s.lists[p.target]; list {
		rows := make(map[string]string)
		s.members(p.ua.AOR, p.target, "", rows)
		return "active", simLines(rows), true
	}
	switch s.handling(p.ua.AOR, p.target) {
	case "allow":
		return "active", simText(s.published(p.target)), true
	case "polite-block":
		return "active", "closed", true
	case "confirm":
		return "pending", "", true
	}
	return "", "", false
}

func simLines(m map[string]string) string {
	var rows []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		rows = append(rows, k+" = "+m[k])
	}
	return strings.Join(rows, "\n")
}

var simWatcher = regexp.MustCompile(`<watcher ([^>]*)>([^<]*)</watcher>`)

// told is what a phone was told last.
func (p *simPhone) told() (state, text string) {
	n := p.sub.Newest()
	if n == nil {
		return "nothing", ""
	}
	switch {
	case p.event == "presence.winfo":
		var rows []string
		for _, m := range simWatcher.FindAllStringSubmatch(string(n.Body()), -1) {
			status, _ := sip.Param([]byte(";"+strings.ReplaceAll(m[1], " ", ";")), "status")
			if st := strings.Trim(string(status), `"`); st != "terminated" {
				rows = append(rows, m[2]+" "+st)
			}
		}
		slices.Sort(rows)
		return n.State, strings.Join(rows, "\n")
	case n.RLMI != nil:
		rows := p.sub.View()
		maps.DeleteFunc(rows, func(_, state string) bool { return state == "terminated noresource" }) // said once to be off the list
		return n.State, simLines(rows)
	case len(n.Body()) == 0:
		return n.State, ""
	}
	return n.State, n.Text()
}

// check compares what servers, publishers and phones know.
func (s *sim) check(when string) {
	s.t.Helper()
	now := time.Now()
	for _, u := range append(slices.Clone(simUsers), simFar) {
		may, must := make(map[string]bool), make(map[string]bool)
		for _, d := range s.devices {
			if d.aor != u {
				continue
			}
			lasts := func(b belief) bool { // a restart gives a minute
				return now.Before(b.until.Add(2*time.Second)) || now.Before(d.site.started.Add(62*time.Second))
			}
			for _, b := range d.maybe {
				may[b.note] = may[b.note] || lasts(b)
			}
			if b := d.cur; b != nil {
				may[b.note] = may[b.note] || lasts(*b)
				must[b.note] = b.sure && now.Before(b.surely)
			}
		}
		there := s.published(u)
		for _, note := range there {
			if !may[note] {
				s.t.Errorf("%s: %s has publication %q, which is over", when, u, note)
			}
		}
		for note, m := range must {
			if m && !slices.Contains(there, note) {
				s.t.Errorf("%s: %s lost publication %q", when, u, note)
			}
		}
	}
	var subs server.Subscriptions
	s.home.n.Get("/api/v1/subscriptions", &subs)
	live := make(map[string]dialog.SubscriptionInfo)
	var list []dialog.SubscriptionInfo
	for _, x := range subs.Subscriptions {
		if x.State == "active" || x.State == "pending" {
			live[x.CallID+" "+x.Dialog] = x
			list = append(list, x)
		}
	}
	for _, p := range s.phones {
		if p.sub == nil || p.sub.Over() {
			continue
		}
		callID, tag := p.sub.Dialog()
		if _, ok := live[callID+" "+tag]; !ok {
			if !p.doubt && !s.w.Ledger.Lost(callID, tag) {
				s.t.Errorf("%s: the server forgot the subscription of %s to %s (%s %s)", when, p.name, p.target, callID, tag)
			}
			continue
		}
		wantState, want, ok := s.truth(p, list)
		state, text := p.told()
		if !ok || state != wantState || text != want {
			s.t.Errorf("%s: %s (%s, %s %s) was told of %s: %s\n%s\nthe truth: %s\n%s", when, p.name, p.ua.AOR, callID, tag, p.target, state, text, wantState, want)
		}
	}
}

// publish has everybody say something new.
func (s *sim) publish() {
	for _, d := range s.devices {
		d.do("publish", 3600)
		if d.cur == nil { // the old one had run out
			d.do("publish", 3600)
		}
		if d.cur == nil {
			s.t.Errorf("%s cannot publish in calm weather", d.name)
		}
	}
	s.w.Settle(10 * time.Second)
}

// refresh has every phone subscribe or refresh, and everybody publish.
func (s *sim) refresh() {
	s.note("refresh")
	var over sync.WaitGroup
	for _, p := range s.phones {
		over.Go(func() {
			p.watch(7200)
			_, _, ok := s.truth(p, nil)
			if want := map[bool]int{true: 200, false: 403}[ok]; p.refused != want {
				s.t.Errorf("%s: SUBSCRIBE to %s in calm weather: %d, want %d", p.name, p.target, p.refused, want)
			}
		})
		over.Wait() // truth asks the servers, one at a time
	}
	s.publish()
}

// expire lets everything run out and looks for remains.
func (s *sim) expire() {
	for i, p := range s.phones {
		if i%3 == 0 {
			p.leave()
		}
	}
	s.note("all runs out")
	s.w.Settle(2*time.Hour + 10*time.Minute)
	for _, p := range s.phones {
		if p.sub != nil && !p.sub.Over() {
			s.t.Errorf("%s was not told the end of its subscription to %s", p.name, p.target)
		}
	}
	for _, site := range []*simSite{s.home, s.away} {
		site.n.CheckEmpty("in the end")
		site.n.Restart(0)
		s.w.Settle(2 * time.Minute)
		site.n.CheckEmpty("after a restart in the end")
		site.n.Stop(context.Background())
		db, err := sql.Open(context.Background(), site.n.Config().Store, sql.Options{Beside: true})
		if err != nil {
			s.t.Fatal(err)
		}
		db.Subscriptions(context.Background(), func(r dialog.SubscriptionRow) error {
			s.t.Errorf("a subscription is left in the store: %+v", r)
			return nil
		})
		db.Publications(context.Background(), func(r pa.PublicationRow) error {
			s.t.Errorf("a publication is left in the store: %+v", r)
			return nil
		})
		db.Close()
	}
}
