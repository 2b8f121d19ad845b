//go:build !linux

package sip

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

const canShareAddress = false

func shareAddress(_, _ string, _ syscall.RawConn) error { return nil }

func (s *packetSocket) prepare(e *Endpoint) error {
	if err := s.conn.SetReadBuffer(e.opt.ReadBuffer); err != nil {
		e.opt.Log.Warn("UDP receive buffer not set", "err", err)
	}
	return nil
}

func (s *packetSocket) drops() uint64 { return 0 }

func (e *Endpoint) readPackets(s *packetSocket) {
	buf := make([]byte, maxDatagram)
	answers := newRefused(e, s)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || shortPacket(n) { // err: an ICMP error of an earlier send
			continue
		}
		m := NewMessage()
		m.Raw = append(m.Raw[:0], buf[:n]...)
		e.receivePacket(s, m, unmap(from), netip.Addr{}, answers)
		answers.flush()
	}
}

const writeBatch = 64

type packetWriter struct {
	s   *packetSocket
	buf []byte
}

func newPacketWriter(s *packetSocket) *packetWriter { return &packetWriter{s: s} }

func (w *packetWriter) write(batch []datagram, _ bool, failed func(*datagram, error)) (rest []datagram) {
	for i := range batch {
		d := &batch[i]
		w.buf = append(append(w.buf[:0], d.head...), d.body...)
		if _, err := w.s.conn.WriteToUDPAddrPort(w.buf, d.to); err != nil {
			failed(d, err)
		}
	}
	return nil
}
