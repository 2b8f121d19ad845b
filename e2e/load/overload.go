package main

import (
	"errors"
	"flag"
	"math"
	"slices"
	"time"
)

type overloadReport struct {
	report
	Peak      float64 `json:"peak_per_second"` // of the closed loop
	PeakCPU   float64 `json:"peak_cpu"`        // of the server, in processors: a peak found while it had fewer than later is none
	OfferedPS float64 `json:"offered_per_second"`
	Missed    int64   `json:"missed"` // could not be offered in time, or not sent
	Goodput   struct {
		PerSecond []float64 `json:"per_second"`
		Mean      float64   `json:"mean"`
		Min       float64   `json:"min"`
		OfPeak    float64   `json:"of_peak"`
		CPU       float64   `json:"cpu"` // of the server, in processors
	} `json:"goodput"`
	Attempts int     `json:"attempts"`
	Done     int     `json:"completed"` // also after the overload
	Refused  int     `json:"refused"`   // 503
	Dropped  int     `json:"dropped"`   // timer F, or no NOTIFY after the 200
	Latency  latency `json:"latency_ms"`
	Recovery float64 `json:"recovery_seconds"` // until the second begins whose goodput is at least 0.9 of the peak; -1: never
	Ongoing  struct {
		Refreshes int     `json:"refreshes"`
		Skipped   int     `json:"skipped"` // the one before had not ended
		Refused   int     `json:"refused"`
		Dropped   int     `json:"dropped"`
		Success   float64 `json:"success"`
		Latency   latency `json:"latency_ms"`
		Before    latency `json:"latency_before_ms"` // at the peak
	} `json:"ongoing"`
}

// recoveryLimit is how long to wait for the peak to come back.
const recoveryLimit = time.Minute

// recovered is the part of the peak that counts as recovered.
const recovered = 0.9

// phase sums up the rounds of the closed or the open loop.
type phase struct {
	rates rates // of this round
	n     float64
	took  time.Duration
	cpu   time.Duration
	from  time.Duration // CPU time at the beginning of this round
	p     *process
}

func (p *phase) sample(now time.Time, n int64, proc *process) {
	if len(p.rates.at) == 0 {
		p.p = proc
		p.from, _ = proc.time()
	}
	p.rates.sample(now, n)
}

// end ends a round.
func (p *phase) end() {
	at := p.rates.at
	took := at[len(at)-1].Sub(at[0])
	p.n += p.rates.mean() * took.Seconds()
	p.took += took
	if now, err := p.p.time(); err == nil {
		p.cpu += now - p.from
	}
	p.rates = rates{}
}

// rate is what was completed in a second, and how many processors that took.
func (p *phase) rate() (perSecond, cpu float64) {
	return p.n / p.took.Seconds(), round(p.cpu.Seconds()/p.took.Seconds(), 3)
}

// overload finds the peak, offers more, and waits for the peak.
func overload(c *common, f *flag.FlagSet, args []string) (any, error) {
	outstanding := f.Int("c", 128, "exchanges under way at a time in the closed loop")
	presentities := f.Int("m", 1000, "presentities, published first")
	warm := f.Duration("warm", 5*time.Second, "closed loop to find the peak")
	factor := f.Float64("factor", 2, "offered load as a multiple of the peak")
	rounds := f.Int("rounds", 1, "divide both into as many parts that alternate: for a machine whose speed changes by the second")
	long := f.Duration("for", 30*time.Second, "time of overload")
	ongoing := f.Int("ongoing", 500, "established dialogs")
	refresh := f.Duration("refresh", 3*time.Second, "each of them is refreshed this often")
	most := f.Int("most", 1<<20, "attempts under way at a time; more are counted as missed")
	if err := c.parse(f, args); err != nil {
		return nil, err
	}
	if *outstanding < 1 || *presentities < 1 || *factor <= 0 || *refresh <= 0 || *warm <= 0 || *rounds < 1 {
		return nil, errors.New("-c, -m, -factor, -refresh, -warm and -rounds must be above 0")
	}
	streams, err := c.streams(*presentities)
	if err != nil {
		return nil, err
	}
	defer c.close()
	n := len(streams)
	for i, s := range streams {
		s.establish(share(*ongoing, i, n))
	}
	proc, err := watch(c.pid)
	if err != nil {
		return nil, err
	}
	var r overloadReport
	loops, open, kept, before := merged(), merged(), merged(), merged()
	closed := func(on bool) func(int, *stream, time.Time) {
		return func(i int, s *stream, now time.Time) {
			s.closed = 0
			if on {
				s.closed = share(*outstanding, i, n)
			}
		}
	}
	keep := func(s *stream) *tally { // of the next phase
		old := s.kept
		s.kept = &tally{}
		return old
	}

	// The peak. Its first quarter is warming up.
	c.each(func(_ int, s *stream, now time.Time) {
		s.most = int64(share(*most, 0, n))
		keep(s)
		s.renew.start(now, float64(len(s.ongoing))/refresh.Seconds())
	})
	var peak, seen phase
	var lasted time.Duration
	var peakKept, overKept []*tally // some of their refreshes end later
	for range *rounds {
		c.each(closed(true))
		began := time.Now()
		c.until(func(now time.Time) bool {
			if now.Sub(began) >= *warm/4/time.Duration(*rounds) {
				peak.sample(now, c.good(), proc)
			}
			return now.Sub(began) >= *warm/time.Duration(*rounds)
		})
		rate := peak.rates.mean()
		peak.end()
		if rate == 0 {
			return nil, errors.New("no pair was completed in the time to find the peak")
		}

		// The overload.
		c.each(closed(false))
		c.each(func(i int, s *stream, now time.Time) {
			peakKept = append(peakKept, keep(s))
			s.busy = 0
			s.pace.start(now, rate**factor/float64(n))
		})
		began = time.Now()
		c.until(func(now time.Time) bool {
			seen.sample(now, c.good(), proc)
			return now.Sub(began) >= *long/time.Duration(*rounds)
		})
		r.Goodput.PerSecond = append(r.Goodput.PerSecond, seen.rates.perSecond()...)
		seen.end()
		c.each(func(i int, s *stream, now time.Time) {
			r.Missed += s.pace.missed
			s.pace = pacer{}
			overKept = append(overKept, keep(s))
			r.Ongoing.Skipped += s.busy
		})
		lasted += time.Since(began)
	}
	r.Peak, r.PeakCPU = peak.rate()
	r.Goodput.Mean, r.Goodput.CPU = seen.rate()

	// The recovery.
	c.each(closed(true))
	began := time.Now()
	var after rates
	r.Recovery = -1
	c.until(func(now time.Time) bool {
		after.sample(now, c.good())
		if rate, ok := after.window(); ok && rate >= recovered*r.Peak {
			r.Recovery = round(max(0, now.Sub(began)-time.Second).Seconds(), 2)
		}
		return r.Recovery >= 0 || now.Sub(began) > recoveryLimit
	})
	c.each(func(_ int, s *stream, _ time.Time) { s.closed, s.renew = 0, pacer{} })
	c.settle()

	c.each(func(_ int, s *stream, _ time.Time) {
		loops.add(s.loop)
		open.add(s.open)
		loops.add(s.kept)
	})
	before.add(merged(peakKept...))
	kept.add(merged(overKept...))
	r.Attempts, r.Done, r.Latency = open.started, open.done, summary(open.took)
	r.Refused, r.Dropped = open.expected(503), open.expected(408)+open.expected(statusNoNotify)
	unsent := open.expected(statusUnsent)
	r.Missed += int64(unsent)
	loops.expected(503) // while it recovers
	r.Ongoing.Refused, r.Ongoing.Dropped = kept.expected(503), kept.expected(408)+kept.expected(statusNoNotify)
	if r.Ongoing.Refreshes = kept.started; kept.started > 0 {
		r.Ongoing.Success = round(float64(kept.done)/float64(kept.started), 5)
	}
	r.Ongoing.Latency, r.Ongoing.Before = summary(kept.took), summary(before.took)
	r.report = c.report(loops, open, kept, before)
	r.OfferedPS = round(float64(open.started-unsent)/lasted.Seconds(), 1)
	r.Goodput.OfPeak = round(r.Goodput.Mean/r.Peak, 3)
	r.Goodput.Mean = round(r.Goodput.Mean, 1)
	if r.Goodput.Min = r.Goodput.Mean; len(r.Goodput.PerSecond) > 0 {
		r.Goodput.Min = slices.Min(r.Goodput.PerSecond)
	}
	r.Peak = math.Round(r.Peak)
	r.Process = proc.used(loops.done + open.done + kept.done + before.done)
	return r, nil
}
