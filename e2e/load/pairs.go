package main

import (
	"errors"
	"flag"
	"time"
)

type pairsReport struct {
	report
	Pairs     int     `json:"pairs"`
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"pairs_per_second"`
	Latency   latency `json:"latency_ms"`
}

// pairs is a closed loop of new subscriptions or fetches.
func pairs(c *common, f *flag.FlagSet, args []string) (any, error) {
	outstanding := f.Int("c", 64, "exchanges under way at a time")
	presentities := f.Int("m", 1000, "presentities, published first")
	n := f.Int("n", 0, "end after `N` pairs")
	long := f.Duration("for", 10*time.Second, "end after this time unless -n is given")
	fetch := f.Bool("fetch", false, "Expires: 0 instead of dialogs that stay")
	if err := c.parse(f, args); err != nil {
		return nil, err
	}
	if *outstanding < 1 || *presentities < 1 {
		return nil, errors.New("-c and -m must be at least 1")
	}
	streams, err := c.streams(*presentities)
	if err != nil {
		return nil, err
	}
	defer c.close()
	proc, err := watch(c.pid)
	if err != nil {
		return nil, err
	}
	c.each(func(i int, s *stream, _ time.Time) {
		if !*fetch {
			s.expires = 3600
		}
		s.left = -1
		if *n > 0 {
			s.left = share(*n, i, len(streams))
		}
		s.closed = share(*outstanding, i, len(streams))
	})
	began := time.Now()
	var seen rates
	c.until(func(now time.Time) bool {
		seen.sample(now, c.good())
		return *n > 0 && c.tried() >= int64(*n) || *n == 0 && now.Sub(began) >= *long
	})
	c.each(func(_ int, s *stream, _ time.Time) { s.closed = 0 })
	c.settle()
	loops := merged()
	c.each(func(_ int, s *stream, _ time.Time) { loops.add(s.loop) })
	r := pairsReport{report: c.report(loops), Pairs: loops.done, Latency: summary(loops.took)}
	end := len(seen.at) - 1
	r.Seconds, r.PerSecond = round(seen.at[end].Sub(seen.at[0]).Seconds(), 3), round(seen.mean(), 1)
	r.Process = proc.used(loops.done)
	return r, nil
}
