package sip

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkStreamReceive is one TCP connection full of SUBSCRIBEs of ordinary
// size.
func BenchmarkStreamReceive(b *testing.B) {
	var n atomic.Int64
	done := make(chan struct{})
	e := NewEndpoint(EndpointOptions{Receive: func(m *Message) {
		m.Release()
		if n.Add(1) == int64(b.N) {
			close(done)
		}
	}})
	defer e.Close()
	at, err := e.Listen(TCP, "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	one := []byte(framed(300, nil))
	b.SetBytes(int64(len(one)))
	w := bufio.NewWriterSize(c, 32<<10)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		w.Write(one)
	}
	w.Flush()
	<-done
}

// BenchmarkStreamSend is one TCP connection that NOTIFYs leave on, never more
// than the write queue takes.
func BenchmarkStreamSend(b *testing.B) {
	flow := make(chan Flow, 1)
	e := NewEndpoint(EndpointOptions{Receive: func(m *Message) { flow <- m.Flow }})
	defer e.Close()
	at, err := e.Listen(TCP, "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, framed(0, nil))
	f := <-flow
	one := []byte(framed(300, nil))
	b.SetBytes(int64(len(one)))
	var read atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for left := b.N * len(one); left > 0; {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			left -= n
			read.Add(int64(n))
		}
	}()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		for int64((i+1)*len(one))-read.Load() > 1<<20 {
			time.Sleep(50 * time.Microsecond)
		}
		if err := e.Send(f, one, 0); err != nil {
			b.Fatal(err)
		}
	}
	<-done
}

const idleHelper = "ROLLCALL_TEST_IDLE"

// TestIdleHelper is the other end of BenchmarkIdleConnections, in a process of
// its own: both ends in one would count twice.
func TestIdleHelper(t *testing.T) {
	var at string
	var n int
	if _, err := fmt.Sscan(os.Getenv(idleHelper), &at, &n); err != nil {
		t.Skip("only for BenchmarkIdleConnections")
	}
	text := []byte(framed(0, nil))
	for range n {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	io.Copy(io.Discard, os.Stdin)
}

// resident is the process's memory in bytes.
func resident(b *testing.B) int {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skip(err)
	}
	var size, pages int
	fmt.Sscan(string(bytes.TrimSpace(text)), &size, &pages)
	return pages * os.Getpagesize()
}

// BenchmarkIdleConnections tells what a TCP connection costs that had one
// request, got its answer and is quiet now: the growth of the process's memory,
// without any garbage collection asked for. -benchtime 1x: a second round finds
// memory that the first one left.
func BenchmarkIdleConnections(b *testing.B) {
	const n = 10000
	for range b.N {
		var got atomic.Int64
		all := make(chan struct{})
		var e *Endpoint
		e = NewEndpoint(EndpointOptions{MaxConns: n + 1, MaxConnsPerAddr: n, Receive: func(m *Message) {
			e.Send(ResponseFlow(m), AppendBody(AppendResponse(nil, m, 200, "", "t"), "", nil), 0)
			m.Release()
			if got.Add(1) == n {
				close(all)
			}
		}})
		at, err := e.Listen(TCP, "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		before := resident(b)
		end := others(b, at, n)
		select {
		case <-all:
		case <-time.After(time.Minute):
			b.Fatalf("%d of %d connections", got.Load(), n)
		}
		b.ReportMetric(float64(resident(b)-before)/n, "B/conn")
		end()
		e.Close()
	}
}

// others opens n connections from another process.
func others(b *testing.B, at netip.AddrPort, n int) (end func()) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestIdleHelper$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%v %d", idleHelper, at, n))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	return func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Errorf("%v\n%s", err, out.String())
		}
	}
}
