package sip

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

type packetSocket struct {
	conn  *net.UDPConn
	local netip.AddrPort
	cache sync.Map // of a wildcard socket: remote address to the local one that reaches it
	size  atomic.Int32
}

func (e *Endpoint) listenPackets(family, addr string) (netip.AddrPort, error) {
	ua, err := net.ResolveUDPAddr("udp"+family, addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	c, err := net.ListenUDP("udp"+family, ua)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if err := c.SetReadBuffer(e.opt.ReadBuffer); err != nil {
		e.opt.Log.Warn("receive buffer not set", "err", err)
	}
	local := unmap(c.LocalAddr().(*net.UDPAddr).AddrPort())
	s := &packetSocket{conn: c, local: local}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		c.Close()
		return netip.AddrPort{}, net.ErrClosed
	}
	e.packets = append(e.packets, s)
	e.over.Go(func() { e.readPackets(s) })
	return local, nil
}

func (e *Endpoint) readPackets(s *packetSocket) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of an earlier send
		}
		if n < 12 { // keep-alive: CRLF, CRLFCRLF or a few zero bytes
			continue
		}
		e.stats.Received.Add(1)
		m := NewMessage()
		m.Raw = append(m.Raw[:0], buf[:n]...)
		from = unmap(from)
		m.Flow = Flow{Proto: UDP, Local: s.localFor(from), Remote: from}
		e.parse(m, false)
	}
}

// localFor is the address a peer sees us at. A socket bound to a wildcard asks
// the routing table once per peer address; the memory of it is bounded.
func (s *packetSocket) localFor(remote netip.AddrPort) netip.AddrPort {
	if !s.local.Addr().IsUnspecified() {
		return s.local
	}
	if a, ok := s.cache.Load(remote.Addr()); ok {
		return netip.AddrPortFrom(a.(netip.Addr), s.local.Port())
	}
	local := routed(s.local, remote)
	if s.size.Add(1) > 4096 {
		s.cache.Clear()
		s.size.Store(1)
	}
	s.cache.Store(remote.Addr(), local.Addr())
	return local
}

// routed is the local address that packets to a peer leave from, with the port
// of a listener on a wildcard.
func routed(listener, remote netip.AddrPort) netip.AddrPort {
	c, err := net.Dial("udp", remote.String()) // sends nothing
	if err != nil {
		return listener
	}
	defer c.Close()
	return netip.AddrPortFrom(unmap(c.LocalAddr().(*net.UDPAddr).AddrPort()).Addr(), listener.Port())
}

func (e *Endpoint) packetFor(local netip.AddrPort) *packetSocket {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.packets {
		if s.local == local || s.local.Addr().IsUnspecified() && s.local.Port() == local.Port() {
			return s
		}
	}
	if !local.IsValid() && len(e.packets) > 0 {
		return e.packets[0]
	}
	return nil
}
