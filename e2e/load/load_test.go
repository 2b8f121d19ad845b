package main

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSummary(t *testing.T) {
	ms := func(values ...int) (l []time.Duration) {
		for _, v := range values {
			l = append(l, time.Duration(v)*time.Millisecond)
		}
		return l
	}
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = 100 - i
	}
	for _, c := range []struct {
		name string
		took []time.Duration
		want latency
	}{
		{"none", nil, latency{}},
		{"one", ms(7), latency{7, 7, 7, 7}},
		{"two: the median is the lower", ms(9, 1), latency{1, 9, 9, 9}},
		{"a hundred, out of order", ms(hundred...), latency{50, 95, 99, 100}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := summary(c.took); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func TestTally(t *testing.T) {
	var a, b tally
	a.end(200, time.Second)
	a.end(503, time.Second)
	b.end(408, 0)
	b.end(statusUnsent, 0)
	b.end(statusNoNotify, 0)
	sum := merged(&a, &b)
	if n := sum.expected(503); n != 1 || sum.done != 1 || len(sum.took) != 1 {
		t.Errorf("refused %d, %+v", n, sum)
	}
	if n := sum.expected(503); n != 0 || total(sum.errors) != 3 || sum.errors["408"] != 1 || sum.errors["not sent"] != 1 || sum.errors["no NOTIFY"] != 1 {
		t.Errorf("%d, %v", n, sum.errors)
	}
}

func TestPacer(t *testing.T) {
	start := time.Unix(0, 0)
	for _, c := range []struct {
		name   string
		rate   float64
		at     []time.Duration
		want   []int
		missed int64
	}{
		{"off", 0, []time.Duration{time.Hour}, []int{0}, 0},
		{"even", 1000, []time.Duration{0, 500 * time.Microsecond, time.Millisecond, 10 * time.Millisecond}, []int{0, 0, 1, 9}, 0},
		{"slow rates are not rounded away", 0.5, []time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second}, []int{0, 1, 0, 1}, 0},
		{"the clock stands", 10, []time.Duration{time.Second, time.Second}, []int{1, 0}, 9},
		{"late beyond the limit: missed, not caught up", 1000, []time.Duration{time.Second, time.Second + 50*time.Millisecond}, []int{100, 50}, 900},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p pacer
			p.start(start, c.rate)
			var got []int
			for _, at := range c.at {
				got = append(got, p.due(start.Add(at)))
			}
			if !slices.Equal(got, c.want) || p.missed != c.missed {
				t.Errorf("due %v, want %v; missed %d, want %d", got, c.want, p.missed, c.missed)
			}
		})
	}
	t.Run("next is when something is due, and not before", func(t *testing.T) {
		var p pacer
		p.start(start, 3000)
		n := 0
		for now, end := start, start.Add(time.Second); now.Before(end); {
			at, ok := p.next()
			if !ok || !at.After(now) {
				t.Fatalf("next is %v after %v", at, now)
			}
			if early := p.due(at.Add(-time.Microsecond)); early != 0 {
				t.Fatalf("%d due before %v", early, at)
			}
			now = at.Add(time.Nanosecond) // the instant is rounded
			n += p.due(now)
		}
		if n < 2999 || n > 3001 || p.missed != 0 {
			t.Errorf("%d in a second, %d missed", n, p.missed)
		}
	})
}

func TestRates(t *testing.T) {
	start := time.Unix(0, 0)
	var r rates
	if _, ok := r.window(); ok || r.mean() != 0 || r.perSecond() != nil {
		t.Error("rates of nothing")
	}
	n := int64(0)
	for i := range 31 { // 3 s: 100, then 200, then 300 a second
		r.sample(start.Add(time.Duration(i)*100*time.Millisecond), n)
		n += int64(10 * (1 + i/10))
	}
	if got := r.perSecond(); !slices.Equal(got, []float64{100, 200, 300}) {
		t.Errorf("per second %v", got)
	}
	if got, ok := r.window(); !ok || got != 300 {
		t.Errorf("window %v %v", got, ok)
	}
	if r.mean() != 200 {
		t.Errorf("mean %v", r.mean())
	}
}

func TestShare(t *testing.T) {
	for _, c := range []struct{ n, generators int }{{10, 3}, {1, 4}, {0, 2}, {64, 1}} {
		sum := 0
		for i := range c.generators {
			got := share(c.n, i, c.generators)
			if sum += got; got < c.n/c.generators || got > c.n/c.generators+1 {
				t.Errorf("%d of %d among %d", got, c.n, c.generators)
			}
		}
		if sum != c.n {
			t.Errorf("%d among %d: %d in all", c.n, c.generators, sum)
		}
	}
}

func TestProcess(t *testing.T) {
	p, err := watch(os.Getpid())
	if err != nil {
		t.Skip(err) // no /proc here
	}
	for begin := time.Now(); time.Since(begin) < 50*time.Millisecond; { // five ticks of CPU
	}
	u := p.used(2)
	if u == nil || u.CPU < 0.01 || u.PerOp != round(u.CPU*1e6/2, 2) || u.RSSMax < u.RSSStart || u.RSSMax < u.RSSEnd || u.RSSStart < 1<<20 {
		t.Errorf("%+v", u)
	}
	if _, err := watch(1 << 30); err == nil {
		t.Error("watches a process that is not there")
	}
}

func TestUsage(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()) // crash keeps what it had made when it fails
	for _, c := range []struct{ name, args, want string }{
		{"no scenario", "", "usage"},
		{"another scenario", "flood", "usage"},
		{"help", "pairs -h", "-fetch"},
		{"unknown flag", "pairs -x", "-x"},
		{"argument", "pairs -c 1 more", "unknown argument"},
		{"not loopback", "pairs -server 192.0.2.1:5060", "not a loopback address"},
		{"no address", "idle -server example.com:5060", "example.com"},
		{"no generators", "fanout -g 0", "-g must be"},
		{"no rate", "overload -factor 0", "must be above 0"},
		{"no watchers", "fanout -w 0", "at least 1"},
		{"no connections", "idle -n 0", "at least 1"},
		{"nothing to lose", "crash -durability memory", "neither write-through nor write-back"},
		{"no kills", "crash -kills 0 -stops 0", "nothing to do"},
		{"no server", "crash -kills 1 -binary /nowhere/rollcall", "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if code := run(strings.Fields(c.args), &out, &errs); code != 2 || out.Len() > 0 || !strings.Contains(errs.String(), c.want) {
				t.Errorf("exit %d, %q, %q", code, out.String(), errs.String())
			}
		})
	}
}

// TestReportIsFlat: the embedded part stands beside the scenario's own.
func TestReportIsFlat(t *testing.T) {
	b, err := json.Marshal(pairsReport{report: report{Scenario: "pairs"}, Pairs: 3})
	var got map[string]any
	if err != nil || json.Unmarshal(b, &got) != nil || got["scenario"] != "pairs" || got["pairs"] != 3.0 {
		t.Errorf("%s %v", b, err)
	}
}
