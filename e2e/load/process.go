package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// userHZ is the unit of CPU times in /proc, which Linux fixes at 100 a second.
const userHZ = 100

// process reads what a server costs: the CPU time of all its threads and the
// memory it holds. A pid of 0 is none.
type process struct {
	pid  int
	cpu  time.Duration // when it was first looked at
	from int64         // resident bytes then
	mu   sync.Mutex
	max  int64
	stop chan struct{}
	over sync.WaitGroup
}

// watch begins to sample.
func watch(pid int) (*process, error) {
	p := &process{pid: pid, stop: make(chan struct{})}
	if pid == 0 {
		return p, nil
	}
	var err error
	if p.cpu, err = p.time(); err != nil {
		return nil, err
	}
	if p.from, err = p.resident(); err != nil {
		return nil, err
	}
	p.max = p.from
	p.over.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-p.stop:
				return
			case <-tick.C:
				p.resident()
			}
		}
	})
	return p, nil
}

// time is utime and stime together.
func (p *process) time() (time.Duration, error) {
	if p.pid == 0 {
		return 0, nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0, err
	}
	// The second field is a name in parentheses that may hold anything.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 13 {
		return 0, fmt.Errorf("process %d: %d fields in stat", p.pid, len(f))
	}
	var ticks int64
	for _, v := range f[11:13] {
		n, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / userHZ, nil
}

// resident is the resident set in bytes.
func (p *process) resident() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.pid))
	if err != nil {
		return 0, err
	}
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0, fmt.Errorf("process %d: %d fields in statm", p.pid, len(f))
	}
	pages, err := strconv.ParseInt(string(f[1]), 10, 64)
	n := pages * int64(os.Getpagesize())
	p.mu.Lock()
	p.max = max(p.max, n)
	p.mu.Unlock()
	return n, err
}

// usage is the process's part of the report.
type usage struct {
	CPU      float64 `json:"cpu_seconds"`
	PerOp    float64 `json:"cpu_us_per_op,omitempty"`
	RSSStart int64   `json:"rss_start"`
	RSSMax   int64   `json:"rss_max"`
	RSSEnd   int64   `json:"rss_end"`
}

// used ends the sampling; nil when there is no process.
func (p *process) used(ops int) *usage {
	close(p.stop)
	p.over.Wait()
	if p.pid == 0 {
		return nil
	}
	end, err := p.resident()
	cpu, err2 := p.time()
	if err != nil || err2 != nil {
		return nil // it has died, which the requests have shown
	}
	u := &usage{CPU: (cpu - p.cpu).Seconds(), RSSStart: p.from, RSSMax: p.max, RSSEnd: end}
	if ops > 0 {
		u.PerOp = round(u.CPU*1e6/float64(ops), 2)
	}
	return u
}
