package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime/debug"
	"time"
)

func main() {
	debug.SetGCPercent(400) // the processor is the server's
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

var scenarios = map[string]func(c *common, f *flag.FlagSet, args []string) (any, error){
	"pairs": pairs, "overload": overload, "idle": idle, "fanout": fanout, "crash": crashes,
}

// run is the command; it gives its exit status.
func run(args []string, out, errs io.Writer) int {
	if len(args) == 0 || scenarios[args[0]] == nil {
		fmt.Fprintln(errs, "usage: load pairs|overload|idle|fanout|crash [flags]; -h after a scenario tells its flags")
		return 2
	}
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	f.SetOutput(errs)
	c := &common{scenario: args[0]}
	result, err := scenarios[args[0]](c, f, args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return 2
	}
	if err != nil {
		fmt.Fprintln(errs, "load:", err)
		return 2
	}
	line, err := json.Marshal(result)
	if err != nil {
		fmt.Fprintln(errs, "load:", err)
		return 2
	}
	fmt.Fprintf(out, "%s\n", line)
	if c.faults > 0 {
		return 1
	}
	return 0
}

// common is what all scenarios have.
type common struct {
	scenario   string
	server     netip.AddrPort
	domain     string
	pid        int
	generators int
	offered    map[string]string

	gens   []*generator
	flows  []*stream
	faults int
}

// report is what all scenarios print.
type report struct {
	Scenario        string            `json:"scenario"`
	Offered         map[string]string `json:"offered"` // every flag as it was in effect
	Errors          map[string]int    `json:"errors"`
	Requests        int64             `json:"requests"`
	Retransmissions int64             `json:"retransmissions"`
	Notifies        int64             `json:"notifies"`
	NotifyRepeats   int64             `json:"notify_repeats"`
	Drops           uint64            `json:"generator_drops"`   // datagrams lost for want of a buffer here
	Backlog         int64             `json:"generator_backlog"` // most messages that waited here: many mean that the generator is what was measured
	Process         *usage            `json:"process,omitempty"`
}

func (c *common) parse(f *flag.FlagSet, args []string) error {
	server := f.String("server", "127.0.0.1:5060", "address of the server")
	f.StringVar(&c.domain, "domain", "example.com", "domain of the presentities, local to the server")
	f.IntVar(&c.pid, "pid", 0, "process id of the server, for its CPU and memory")
	f.IntVar(&c.generators, "g", 1, "generators, each a goroutine with a socket")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	var err error
	if c.server, err = netip.ParseAddrPort(*server); err != nil {
		return err
	}
	if !c.server.Addr().IsLoopback() {
		return fmt.Errorf("%v is not a loopback address", c.server.Addr())
	}
	if c.generators < 1 || c.generators > 256 {
		return errors.New("-g must be 1 to 256")
	}
	c.offered = make(map[string]string)
	f.VisitAll(func(v *flag.Flag) { c.offered[v.Name] = v.Value.String() })
	return nil
}

// start makes the generators and publishes presentities, each by the generator
// with its number.
func (c *common) start(presentities int) error {
	run := fmt.Sprintf("%08x", rand.Uint32())
	for i := range c.generators {
		g, err := newGenerator(c.server, c.domain, run, uint8(i))
		if err != nil {
			c.close()
			return err
		}
		c.gens = append(c.gens, g)
	}
	for i, g := range c.gens {
		if err := g.prepare(c.targets(i, presentities)); err != nil {
			c.close()
			return fmt.Errorf("%v: %w", c.server, err)
		}
	}
	return nil
}

// targets are the presentities of a generator.
func (c *common) targets(generator, presentities int) []int {
	var list []int
	for t := generator; t < presentities; t += c.generators {
		list = append(list, t)
	}
	return list
}

func (c *common) close() {
	for _, g := range c.gens {
		g.close()
	}
}

// streams starts one stream per generator.
func (c *common) streams(presentities int) ([]*stream, error) {
	if err := c.start(presentities); err != nil {
		return nil, err
	}
	for i, g := range c.gens {
		c.flows = append(c.flows, newStream(g, presentities, i*presentities/len(c.gens)))
	}
	return c.flows, nil
}

// each runs f in the goroutine of each stream's generator.
func (c *common) each(f func(i int, s *stream, now time.Time)) {
	for i, s := range c.flows {
		s.g.do(func(now time.Time) { f(i, s, now) })
	}
}

// share divides n among generators.
func share(n, i, generators int) int { return n*(i+1)/generators - n*i/generators }

func (c *common) good() (n int64) {
	for _, s := range c.flows {
		n += s.good.Load()
	}
	return n
}

func (c *common) tried() (n int64) {
	for _, s := range c.flows {
		n += s.tried.Load()
	}
	return n
}

func (c *common) underway() (n int64) {
	for _, g := range c.gens {
		n += g.underway.Load()
	}
	return n
}

// sampling is how often the live counters are read.
const sampling = 50 * time.Millisecond

// until reads counters until stop says so.
func (c *common) until(stop func(now time.Time) bool) {
	tick := time.NewTicker(sampling)
	defer tick.Stop()
	for !stop(time.Now()) {
		<-tick.C
	}
}

// settle waits until every exchange has ended, which it does within the time of
// timer F and of a NOTIFY after that.
func (c *common) settle() {
	end := time.Now().Add(2*patience + time.Second)
	c.until(func(now time.Time) bool { return c.underway() == 0 || now.After(end) })
}

// report sums up, with the faults of given tallies.
func (c *common) report(tallies ...*tally) report {
	all := merged(tallies...)
	all.took = nil
	r := report{Scenario: c.scenario, Offered: c.offered}
	for _, g := range c.gens {
		g.do(func(time.Time) { all.add(&g.misc) })
		r.Requests += g.requests.Load()
		r.Retransmissions += g.sent.Load() - g.requests.Load()
		r.Notifies += g.notifies.Load()
		r.NotifyRepeats += g.repeats.Load()
		r.Drops += g.ep.KernelDrops()
		r.Backlog = max(r.Backlog, g.backlog.Load())
	}
	if n := c.underway(); n > 0 {
		all.fault("not ended", int(n))
	}
	r.Errors = all.errors
	c.faults = total(r.Errors)
	return r
}
