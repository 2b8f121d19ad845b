package sip

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// While much waits in a socket, its messages say so.
func TestCrowded(t *testing.T) {
	begin := make(chan struct{})
	in := make(chan bool, 1024)
	e := NewEndpoint(EndpointOptions{ReadBuffer: 256 << 10, PacketSockets: 1, Receive: func(m *Message) {
		in <- m.Crowded
		m.Release()
		<-begin
	}})
	defer e.Close()
	at, err := e.Listen(UDP, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPort(at)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	next := func() bool {
		select {
		case crowded := <-in:
			return crowded
		case <-time.After(patience):
			t.Fatal("nothing received")
			return false
		}
	}
	c.Write([]byte(request(nil)))
	if next() {
		t.Error("one message is a crowd")
	}
	sent := 0 // until the buffer is full
	for e.KernelDrops() == 0 && sent < 10_000 {
		c.Write([]byte(request(nil)))
		sent++
	}
	close(begin)
	kept := sent - int(e.KernelDrops())
	var crowded []bool
	for range kept {
		crowded = append(crowded, next())
	}
	if kept < 4*readBatch || !crowded[0] || crowded[kept-1] {
		t.Errorf("%d messages, the first in a crowd: %v, the last: %v", kept, crowded[0], crowded[kept-1])
	}
}
