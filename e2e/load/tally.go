package main

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"time"
)

// tally is what became of the exchanges of one phase.
type tally struct {
	started, done int
	errors        map[string]int // by final status, or by what was wrong
	took          []time.Duration
}

func (t *tally) fault(what string, n int) {
	if t.errors == nil {
		t.errors = make(map[string]int)
	}
	t.errors[what] += n
}

// end counts one exchange that ended with a status.
func (t *tally) end(status int, took time.Duration) {
	if status != 200 {
		t.fault(name(status), 1)
		return
	}
	t.done++
	t.took = append(t.took, took)
}

func name(status int) string {
	switch status {
	case statusUnsent:
		return "not sent"
	case statusNoNotify:
		return "no NOTIFY"
	}
	return strconv.Itoa(status)
}

func (t *tally) add(o *tally) {
	t.started += o.started
	t.done += o.done
	t.took = append(t.took, o.took...)
	for what, n := range o.errors {
		t.fault(what, n)
	}
}

// expected takes a status that is no fault here out of the errors.
func (t *tally) expected(status int) int {
	key := name(status)
	n := t.errors[key]
	delete(t.errors, key)
	return n
}

// latency is in milliseconds.
type latency struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// summary gives the nearest-rank percentiles. It sorts.
func summary(took []time.Duration) latency {
	if len(took) == 0 {
		return latency{}
	}
	slices.Sort(took)
	at := func(p float64) float64 {
		rank := int(math.Ceil(p * float64(len(took))))
		return round(took[max(rank, 1)-1].Seconds()*1000, 3)
	}
	return latency{at(0.50), at(0.95), at(0.99), at(1)}
}

// round keeps some digits after the point: the rest is noise in the report.
func round(v float64, digits int) float64 {
	f := math.Pow10(digits)
	return math.Round(v*f) / f
}

// rates gives the change per second between samples of a counter that are a
// second or more apart, and the lowest and mean of them.
type rates struct {
	at []time.Time
	n  []int64
}

func (r *rates) sample(now time.Time, n int64) {
	r.at, r.n = append(r.at, now), append(r.n, n)
}

// window is the rate over the last second that has been sampled; false while
// there is none.
func (r *rates) window() (float64, bool) {
	end := len(r.at) - 1
	for i := end - 1; i >= 0; i-- {
		if d := r.at[end].Sub(r.at[i]); d >= time.Second {
			return float64(r.n[end]-r.n[i]) / d.Seconds(), true
		}
	}
	return 0, false
}

// perSecond is the rate of each whole second.
func (r *rates) perSecond() []float64 {
	var out []float64
	from := 0
	for i := range r.at {
		if d := r.at[i].Sub(r.at[from]); d >= time.Second {
			out = append(out, round(float64(r.n[i]-r.n[from])/d.Seconds(), 1))
			from = i
		}
	}
	return out
}

// mean is the rate from the first sample to the last.
func (r *rates) mean() float64 {
	if len(r.at) < 2 {
		return 0
	}
	end := len(r.at) - 1
	return float64(r.n[end]-r.n[0]) / r.at[end].Sub(r.at[0]).Seconds()
}

// pacer spreads an open loop evenly.
type pacer struct {
	rate   float64 // a second; 0: nothing is due
	from   time.Time
	issued int64
	missed int64 // could not be offered in time
}

// lateLimit is how far a generator may be behind. A burst that makes up for
// more would offer another load than was asked for.
const lateLimit = 100 * time.Millisecond

func (p *pacer) start(now time.Time, rate float64) { *p = pacer{rate: rate, from: now} }

// due is how many are to be issued now; they count as issued.
func (p *pacer) due(now time.Time) int {
	if p.rate <= 0 {
		return 0
	}
	n := int64(now.Sub(p.from).Seconds()*p.rate) - p.issued
	if n <= 0 {
		return 0
	}
	p.issued += n
	if most := int64(max(1, p.rate*lateLimit.Seconds())); n > most {
		p.missed += n - most
		n = most
	}
	return int(n)
}

// next is when more is due.
func (p *pacer) next() (time.Time, bool) {
	if p.rate <= 0 {
		return time.Time{}, false
	}
	return p.from.Add(time.Duration(float64(p.issued+1) / p.rate * float64(time.Second))), true
}

func merged(tallies ...*tally) *tally {
	sum := &tally{errors: map[string]int{}}
	for _, t := range tallies {
		sum.add(t)
	}
	return sum
}

func total(errors map[string]int) int {
	n := 0
	for v := range maps.Values(errors) {
		n += v
	}
	return n
}
