package crash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"rollcall/e2e/child"
)

// Options of a run.
type Options struct {
	Binary     string        // the built server
	Dir        string        // for documents, log and, with Store "", the database; must exist
	Store      string        // as --store; "": a new SQLite file
	Durability string        // write-through or write-back
	Window     time.Duration // how young an acknowledgement may be that write-back loses
	Kills      int           // kill -9
	Stops      int           // ends in order between them
	Seed       uint64        // of the moments and the load
	Rate       float64       // requests a second that are begun
	Load       time.Duration // the longest time under load between two kills
	Log        io.Writer     // one line per life; nil: none

	Presentities, Watchers, ListWatchers, Lists, Members, Owners int
}

// Default is the load of the long form.
func Default() Options {
	return Options{Durability: "write-through", Window: 500 * time.Millisecond, Kills: 50, Stops: 5, Rate: 200, Load: 1500 * time.Millisecond,
		Presentities: 60, Watchers: 200, ListWatchers: 60, Lists: 10, Members: 20, Owners: 30}
}

// Validate says what cannot be run.
func (o *Options) Validate() error {
	switch {
	case o.Durability != "write-through" && o.Durability != "write-back":
		return fmt.Errorf("durability %q is neither write-through nor write-back", o.Durability)
	case o.Kills < 0 || o.Stops < 0 || o.Kills+o.Stops < 1:
		return errors.New("nothing to do: kills and stops must not be negative, nor both 0")
	case o.Presentities < 1 || o.Watchers < 0 || o.ListWatchers < 0 || o.Owners < 0 || o.Watchers+o.ListWatchers+o.Owners < 1:
		return errors.New("there must be presentities and watchers")
	case o.ListWatchers > 0 && (o.Lists < 1 || o.Members < 1):
		return errors.New("list watchers need lists with members")
	case o.Rate <= 0 || o.Load <= 0:
		return errors.New("rate and time under load must be above 0")
	}
	return nil
}

// Report is what a run found.
type Report struct {
	Seed       uint64         `json:"seed"`
	Store      string         `json:"store"`
	Durability string         `json:"durability"`
	Kills      map[string]int `json:"kills"` // by moment
	Stops      int            `json:"stops"`
	Seconds    float64        `json:"seconds"`
	Ready      float64        `json:"longest_start_ms"` // until ready
	Counts
	Dialogs int            `json:"dialogs"` // that were opened or tried
	Lost    int            `json:"lost_within_promise"`
	Oldest  float64        `json:"oldest_lost_ms"` // how old such an acknowledgement was at most when the server was killed
	Faults  map[string]int `json:"errors"`
	Details []string       `json:"details,omitempty"` // of the first faults
}

// Moments of a kill.
const (
	momentAny      = "under load"
	momentAck      = "at an acknowledgement"
	momentRecovery = "during recovery"
	momentDrain    = "during SIGTERM"
	momentStop     = "stop in order"
)

// moment is when and how a life ends.
type moment struct {
	how   string
	after time.Duration // from ready; of momentRecovery from the start
	then  time.Duration // from the acknowledgement, or SIGTERM, to the kill
}

// plan chooses all moments of a run. It depends on the seed and the numbers
// alone.
func plan(o Options) []moment {
	rng := rand.New(rand.NewPCG(o.Seed, 0))
	within := func(d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }
	var all []moment
	for range o.Kills {
		m := moment{how: momentAny, after: within(o.Load)}
		switch n := rng.IntN(100); {
		case n < 35:
		case n < 65:
			m.how = momentAck
			if rng.IntN(2) == 0 { // otherwise at once
				m.then = within(3 * time.Millisecond)
			}
		case n < 85:
			m.how, m.after = momentRecovery, within(600*time.Millisecond)
		default:
			m.how, m.then = momentDrain, within(150*time.Millisecond)
		}
		all = append(all, m)
	}
	for range o.Stops {
		all = append(all, moment{how: momentStop, after: within(o.Load)})
	}
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if all[0].how == momentRecovery { // there must be something to recover
		all[0].how, all[0].after = momentAny, o.Load
	}
	return all
}

// settleLimit bounds the wait for requests under way: timer F and some.
const settleLimit = 45 * time.Second

// silence is how long no NOTIFY may come before all have: longer than the
// intervals that the server is given.
const silence = 700 * time.Millisecond

// Run runs a server and its phones through all moments and checks after each
// restart. An error says that it could not be done; what was wrong with the
// server is in the report.
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	r := &run{o: o, l: &ledger{began: time.Now()}, rep: &Report{Seed: o.Seed, Store: o.Store, Durability: o.Durability, Kills: map[string]int{}}}
	if r.o.Store == "" {
		r.o.Store, r.rep.Store = "sqlite:"+filepath.Join(o.Dir, "crash.db"), "sqlite"
	} else if kind, _, ok := strings.Cut(o.Store, ":"); ok {
		r.rep.Store = kind // the rest may hold a password
	}
	if o.Log == nil {
		r.o.Log = io.Discard
	}
	if o.Durability == "write-back" {
		r.l.window = o.Window
	}
	err := r.prepare()
	if err != nil {
		return nil, err
	}
	defer r.phones.close()
	defer func() {
		if r.proc != nil && !r.proc.ended() {
			r.proc.kill()
		}
	}()
	moments := plan(o)
	for i := 0; i < len(moments); i++ {
		m := moments[i]
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := r.life(i, m); err != nil {
			return nil, fmt.Errorf("life %d (%s): %w; the server's log is %s", i, m.how, err, r.logPath)
		}
		if r.spared { // another time then
			r.spared = false
			moments = append(moments, moment{how: momentAny, after: m.after})
		}
	}
	if err := r.start(); err == nil {
		err = r.verify()
	}
	if err != nil {
		return nil, fmt.Errorf("last life: %w; the server's log is %s", err, r.logPath)
	}
	r.proc.stop(10 * time.Second)
	r.phones.do(func(time.Time) {
		r.rep.Counts, r.rep.Dialogs = r.phones.count, len(r.phones.byCallID)
	})
	r.rep.Lost, r.rep.Oldest = r.l.lost, float64(r.l.oldest.Milliseconds())
	r.rep.Faults, r.rep.Details = r.l.faults, r.l.notes
	r.rep.Seconds = time.Since(r.l.began).Seconds()
	return r.rep, nil
}

type run struct {
	o       Options
	l       *ledger // of the phones' goroutine
	rep     *Report
	phones  *phones
	proc    *process
	args    []string
	http    string
	logPath string
	fresh   bool // the process has not been verified yet
	spared  bool // the process has ended in order before it was to be killed
}

func (r *run) prepare() error {
	port, err := child.FreePort()
	if err != nil {
		return err
	}
	http, err := child.FreePort()
	if err != nil {
		return err
	}
	server := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
	r.http = fmt.Sprintf("127.0.0.1:%d", http)
	r.logPath = filepath.Join(r.o.Dir, "server.log")
	if r.phones, err = newPhones(r.o, r.l, server); err != nil {
		return err
	}
	xcap := filepath.Join(r.o.Dir, "xcap")
	if err := writeLists(xcap, r.phones.lists); err != nil {
		r.phones.close()
		return err
	}
	r.args = []string{"serve", "--listen", "udp:" + server.String(), "--listen", "tcp:" + server.String(), "--http", r.http, "--domain", domain,
		"--presence-auth", "allow", "--xcap", xcap, "--store", r.o.Store, "--durability", r.o.Durability,
		"--notify-interval", "presence=50ms", "--notify-interval", "list=300ms", "--notify-interval", "presence.winfo=200ms"}
	return nil
}

// writeLists makes one rls-services document of all lists.
func writeLists(dir string, lists [][]int) error {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<rls-services xmlns="urn:ietf:params:xml:ns:rls-services" xmlns:rl="urn:ietf:params:xml:ns:resource-lists">`)
	for i, members := range lists {
		fmt.Fprintf(&b, `<service uri="%s"><list>`, listURI(i))
		for _, m := range members {
			fmt.Fprintf(&b, `<rl:entry uri="%s"/>`, presentityURI(m))
		}
		b.WriteString(`</list><packages><package>presence</package></packages></service>`)
	}
	b.WriteString(`</rls-services>`)
	at := filepath.Join(dir, "rls-services", "global")
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(at, "index"), []byte(b.String()), 0o644)
}

// startLimit is how long a start may take.
const startLimit = 30 * time.Second

// launch starts the server unless it runs.
func (r *run) launch() (err error) {
	if r.proc != nil && !r.proc.ended() {
		return nil
	}
	r.proc, err = launch(r.o.Binary, r.logPath, r.args)
	r.fresh = true
	return err
}

func (r *run) start() error {
	if err := r.launch(); err != nil {
		return err
	}
	if err := r.proc.await(startLimit); err != nil {
		return err
	}
	r.rep.Ready = max(r.rep.Ready, float64(r.proc.took.Milliseconds()))
	return nil
}

func (r *run) load(rate float64) { r.phones.do(func(time.Time) { r.phones.rate = rate }) }

// life is one life of the server: start under load, check, load, end.
func (r *run) life(i int, m moment) error {
	fmt.Fprintf(r.o.Log, "%4d %7.1fs  %s after %v, then %v\n", i, time.Since(r.l.began).Seconds(), m.how, m.after.Round(time.Millisecond), m.then.Round(time.Microsecond))
	r.load(r.o.Rate) // phones do not know that there is nobody
	if m.how == momentRecovery {
		if err := r.launch(); err != nil {
			return err
		}
		time.Sleep(m.after)
		return r.end(m.how, r.proc.kill())
	}
	if err := r.start(); err != nil {
		return err
	}
	time.Sleep(100 * time.Millisecond)
	if err := r.verify(); err != nil {
		return err
	}
	r.load(r.o.Rate)
	time.Sleep(m.after)
	switch m.how {
	case momentAny:
		return r.end(m.how, r.proc.kill())
	case momentAck:
		acked := make(chan struct{})
		r.phones.do(func(time.Time) { r.phones.onAck = func() { close(acked) } })
		select {
		case <-acked:
		case <-time.After(10 * time.Second):
			return errors.New("nothing is acknowledged any more")
		}
		for end := time.Now().Add(m.then); time.Now().Before(end); { // a sleep is not that exact
		}
		return r.end(m.how, r.proc.kill())
	case momentDrain:
		if r.proc.stop(m.then) {
			r.spared = true
			return r.end(momentStop, time.Time{})
		}
		return r.end(m.how, r.proc.kill())
	default:
		if !r.proc.stop(10 * time.Second) {
			return errors.New("the server did not end in order within 10 s of SIGTERM")
		}
		return r.end(m.how, time.Time{})
	}
}

// end notes the end of a process, when all that it has sent has arrived.
func (r *run) end(how string, at time.Time) error {
	received := &r.phones.ep.Stats().Received
	for n, still := received.Load(), 0; still < 3; still++ {
		time.Sleep(15 * time.Millisecond)
		if now := received.Load(); now != n {
			n, still = now, 0
		}
	}
	if how == momentStop {
		r.rep.Stops++
	} else {
		r.rep.Kills[how]++
	}
	r.phones.do(func(time.Time) { r.phones.died(at) })
	return nil
}

// settle waits until no request is under way and no NOTIFY has come for a while.
func (r *run) settle() error {
	for limit := time.Now().Add(settleLimit); ; time.Sleep(10 * time.Millisecond) {
		var busy int
		var heard time.Time
		var what string
		r.phones.do(func(time.Time) {
			if busy, heard = r.phones.underway, r.phones.heard; busy > 0 && time.Now().After(limit) {
				what = r.phones.waitsFor()
			}
		})
		switch {
		case busy == 0 && time.Since(heard) > silence:
			return nil
		case r.proc.ended():
			return errors.New("the server ended by itself")
		case time.Now().After(limit):
			return fmt.Errorf("not quiet after %v: %d requests under way:%s", settleLimit, busy, what)
		}
	}
}

// verify stops the load, waits until all is quiet and checks what everybody
// holds; then everything is refreshed, and checked again.
func (r *run) verify() error {
	if !r.fresh {
		return nil
	}
	r.fresh = false
	r.load(0)
	if err := r.settle(); err != nil {
		return err
	}
	r.phones.do(func(time.Time) { r.phones.check() })
	done := make(chan struct{})
	r.phones.do(func(time.Time) { r.phones.refreshAll(func() { close(done) }) })
	<-done
	if err := r.settle(); err != nil {
		return err
	}
	var kinds int
	r.phones.do(func(time.Time) {
		r.phones.check()
		kinds = len(r.l.faults)
	})
	m, err := metrics(r.http)
	if err != nil {
		return err
	}
	for _, name := range invariants {
		if v, ok := m[name]; !ok || v != 0 {
			r.phones.do(func(time.Time) { r.l.fault(name, "%v (there: %v)", v, ok) })
		}
	}
	if kinds > 0 {
		fmt.Fprintf(r.o.Log, "     %7.1fs  faults so far\n", time.Since(r.l.began).Seconds())
	}
	return nil
}
