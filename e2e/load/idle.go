package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"rollcall/sip"
)

type idleReport struct {
	report
	Connections int     `json:"connections"`
	Seconds     float64 `json:"seconds"` // to open them
	PerConn     float64 `json:"rss_per_connection"`
	Sampled     int     `json:"sampled"` // connections asked once more
	Answered    int     `json:"sample_answered"`
	Latency     latency `json:"sample_latency_ms"`
}

// perSource is how many connections come from one source address: there are
// fewer ports than that are held here.
const perSource = 20000

// settled is how little the memory may move in a second to be at rest.
const settled = 0.002

// idle opens TCP connections that then do nothing. They are no Endpoint's: that
// has one connection to a peer.
func idle(c *common, f *flag.FlagSet, args []string) (any, error) {
	n := f.Int("n", 10000, "connections")
	sample := f.Int("sample", 100, "connections that are asked once more at the end")
	wait := f.Duration("settle", 30*time.Second, "longest wait for the server's memory to be at rest")
	if err := c.parse(f, args); err != nil {
		return nil, err
	}
	if *n < 1 {
		return nil, errors.New("-n must be at least 1")
	}
	if *n > perSource && !c.server.Addr().Is4() {
		return nil, errors.New("more connections than one address has ports need a server on an IPv4 address")
	}
	raiseFiles(uint64(*n) + 100)
	proc, err := watch(c.pid)
	if err != nil {
		return nil, err
	}
	var r idleReport
	var all tally
	var mu sync.Mutex
	conns := make([]*idleConn, *n)
	defer func() {
		for _, ic := range conns {
			if ic != nil {
				ic.Close()
			}
		}
	}()
	began := time.Now()
	next := make(chan int)
	var dialers sync.WaitGroup
	for range window {
		dialers.Go(func() {
			for i := range next {
				ic, err := c.dial(i)
				if err == nil {
					conns[i] = ic
					_, err = ic.options(c)
				}
				mu.Lock()
				if all.started++; err == nil {
					all.done++
				} else {
					all.fault(reason(err), 1)
				}
				mu.Unlock()
			}
		})
	}
	for i := range *n {
		next <- i
	}
	close(next)
	dialers.Wait()
	r.Connections, r.Seconds = all.done, round(time.Since(began).Seconds(), 3)

	if c.pid > 0 {
		asked := time.Now()
		last, at := proc.from, asked
		end := last
		c.until(func(now time.Time) bool {
			if now.Sub(at) >= time.Second {
				end, _ = proc.resident()
				at = now
				if d := float64(end - last); d < settled*float64(end) && -d < settled*float64(end) {
					return true
				}
				last = end
			}
			return now.Sub(asked) > *wait
		})
		r.PerConn = round(float64(end-proc.from)/float64(max(r.Connections, 1)), 0)
	}

	var took []time.Duration
	for _, i := range rand.Perm(*n)[:min(*sample, *n)] {
		r.Sampled++
		if conns[i] == nil {
			continue
		}
		d, err := conns[i].options(c)
		if err != nil {
			all.fault("sample: "+reason(err), 1)
			continue
		}
		r.Answered++
		took = append(took, d)
	}
	r.Latency = summary(took)
	r.report = c.report(&all)
	r.Requests = int64(all.started + r.Sampled)
	r.Process = proc.used(r.Connections)
	return r, nil
}

// reason is an error without addresses, so that equal ones are counted together.
func reason(err error) string {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}

type idleConn struct {
	net.Conn
	i, cseq int
}

// dialTime bounds opening a connection and waiting for an answer.
const dialTime = 10 * time.Second

func (c *common) dial(i int) (*idleConn, error) {
	d := net.Dialer{Timeout: dialTime}
	if k := i / perSource; k > 0 {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + k)}), 0))
	}
	nc, err := d.Dial("tcp", c.server.String())
	if err != nil {
		return nil, err
	}
	return &idleConn{Conn: nc, i: i}, nil
}

// options sends OPTIONS and waits for the answer.
func (ic *idleConn) options(c *common) (time.Duration, error) {
	ic.cseq++
	began := time.Now()
	ic.SetDeadline(began.Add(dialTime))
	_, err := fmt.Fprintf(ic, "OPTIONS sip:%s SIP/2.0\r\nVia: SIP/2.0/TCP %s;rport;branch=z9hG4bKload%d-%d\r\nFrom: <sip:w%d@%s>;tag=i%d\r\n"+
		"To: <sip:%s>\r\nCall-ID: idle-%d\r\nCSeq: %d OPTIONS\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n",
		c.domain, ic.LocalAddr(), ic.i, ic.cseq, ic.i, c.domain, ic.i, c.domain, ic.i, ic.cseq)
	if err != nil {
		return 0, err
	}
	var b []byte
	buf := make([]byte, 2048)
	for {
		n, err := ic.Read(buf)
		if b = append(b, buf[:n]...); err != nil {
			return 0, err
		}
		size, err := sip.FrameLen(b)
		if err != nil {
			return 0, err
		}
		if size == 0 || size > len(b) {
			continue
		}
		var m sip.Message
		if err := m.Parse(b[:size], true); err != nil {
			return 0, err
		}
		if m.Status() != 200 || int(m.CSeq()) != ic.cseq {
			return 0, fmt.Errorf("OPTIONS %d", m.Status())
		}
		return time.Since(began), nil
	}
}
