package sip

import (
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const canShareAddress = true

func shareAddress(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); cerr != nil {
		return cerr
	}
	return err
}

// prepare sets the receive buffer and, on a wildcard, asks for the address each
// datagram was sent to, so that the answer can leave from it (NAT-01).
func (s *packetSocket) prepare(e *Endpoint) error {
	var err error
	got := 0
	cerr := s.raw.Control(func(fd uintptr) {
		f := int(fd)
		if unix.SetsockoptInt(f, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, e.opt.ReadBuffer) != nil {
			unix.SetsockoptInt(f, unix.SOL_SOCKET, unix.SO_RCVBUF, e.opt.ReadBuffer)
		}
		if unix.SetsockoptInt(f, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, e.opt.ReadBuffer) != nil {
			unix.SetsockoptInt(f, unix.SOL_SOCKET, unix.SO_SNDBUF, e.opt.ReadBuffer)
		}
		got, err = unix.GetsockoptInt(f, unix.SOL_SOCKET, unix.SO_RCVBUF)
		if err != nil || !s.wildcard {
			return
		}
		if s.local.Addr().Is4() {
			err = unix.SetsockoptInt(f, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		} else {
			err = unix.SetsockoptInt(f, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	})
	if cerr != nil {
		return cerr
	}
	e.checkBuffer(got / 2) // the kernel doubles it for its own needs, and says so
	return err
}

// memory reads what the kernel tells about the socket (SO_MEMINFO), zeros where
// it does not.
func (s *packetSocket) memory() (info [9]uint32) {
	n := uint32(unsafe.Sizeof(info))
	var errno syscall.Errno
	err := s.raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&n)), 0)
	})
	if err != nil || errno != 0 || int(n) < int(unsafe.Sizeof(info)) {
		return [9]uint32{}
	}
	return info
}

// drops counts what did not fit into the receive buffer (SK_MEMINFO_DROPS).
func (s *packetSocket) drops() uint64 { return uint64(s.memory()[8]) }

// crowded tells whether a quarter of the receive buffer is full
// (SK_MEMINFO_RMEM_ALLOC, SK_MEMINFO_RCVBUF).
func (s *packetSocket) crowded() bool {
	info := s.memory()
	return info[1] > 0 && info[0] > info[1]/4
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

const (
	readBatch  = 32
	writeBatch = 64
	firstBytes = 4096 // of a datagram go straight into its Message
	controlLen = 64   // holds one in6_pktinfo
)

// packetBuffers are what recvmmsg and sendmmsg work on, for n datagrams.
type packetBuffers struct {
	hdrs  []mmsghdr
	iovs  [][2]unix.Iovec
	names []unix.RawSockaddrInet6 // large enough for both families
	ctrls [][controlLen]byte
}

func newPacketBuffers(n int) packetBuffers {
	b := packetBuffers{make([]mmsghdr, n), make([][2]unix.Iovec, n), make([]unix.RawSockaddrInet6, n), make([][controlLen]byte, n)}
	for i := range b.hdrs {
		h := &b.hdrs[i].hdr
		h.Iov = &b.iovs[i][0]
		h.Name = (*byte)(unsafe.Pointer(&b.names[i]))
	}
	return b
}

func (e *Endpoint) readPackets(s *packetSocket) {
	b := newPacketBuffers(readBatch)
	msgs := make([]*Message, readBatch)
	over := make([]byte, readBatch*(maxDatagram-firstBytes)) // touched by long datagrams only
	rest := func(i int) []byte {
		return over[i*(maxDatagram-firstBytes) : (i+1)*(maxDatagram-firstBytes)]
	}
	answers := newRefused(e, s)
	n := 0
	var errno syscall.Errno
	receive := func(fd uintptr) bool {
		r, _, en := syscall.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.hdrs[0])), readBatch, unix.MSG_DONTWAIT, 0, 0)
		if en == unix.EAGAIN {
			return false
		}
		n, errno = int(r), en
		return true
	}
	for {
		for i := range msgs {
			h := &b.hdrs[i].hdr
			h.Namelen = unix.SizeofSockaddrInet6
			if s.wildcard {
				h.Control = &b.ctrls[i][0]
				h.SetControllen(controlLen)
			}
			if msgs[i] != nil {
				continue
			}
			m := NewMessage()
			if cap(m.Raw) < firstBytes {
				m.Raw = make([]byte, firstBytes)
			}
			m.Raw = m.Raw[:firstBytes]
			msgs[i] = m
			b.iovs[i][0].Base = &m.Raw[0]
			b.iovs[i][0].SetLen(firstBytes)
			b.iovs[i][1].Base = &rest(i)[0]
			b.iovs[i][1].SetLen(maxDatagram - firstBytes)
			h.SetIovlen(2)
		}
		if err := s.raw.Read(receive); err != nil {
			return // closed
		}
		if errno != 0 { // an ICMP error of an earlier send
			continue
		}
		crowded := n == readBatch && s.crowded()
		for i := range n {
			size := int(b.hdrs[i].len)
			if shortPacket(size) {
				continue
			}
			m := msgs[i]
			msgs[i] = nil
			m.Raw = m.Raw[:min(size, firstBytes)]
			if size > firstBytes {
				m.Raw = append(m.Raw, rest(i)[:size-firstBytes]...)
			}
			from := sockaddr(&b.names[i])
			var to netip.Addr
			if s.wildcard {
				to = pktinfo(b.ctrls[i][:b.hdrs[i].hdr.Controllen])
			}
			m.Crowded = crowded
			e.receivePacket(s, m, from, to, answers)
		}
		answers.flush()
	}
}

// sockaddr reads a sockaddr_in or sockaddr_in6.
func sockaddr(a *unix.RawSockaddrInet6) netip.AddrPort {
	port := a.Port<<8 | a.Port>>8
	if a.Family == unix.AF_INET {
		a4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		return netip.AddrPortFrom(netip.AddrFrom4(a4.Addr), port)
	}
	addr := netip.AddrFrom16(a.Addr).Unmap()
	if a.Scope_id != 0 && addr.Is6() {
		addr = addr.WithZone(strconv.Itoa(int(a.Scope_id)))
	}
	return netip.AddrPortFrom(addr, port)
}

// setSockaddr writes to as the socket's family wants it and gives its size.
func setSockaddr(a *unix.RawSockaddrInet6, to netip.AddrPort, v4 bool) uint32 {
	port := to.Port()
	port = port<<8 | port>>8
	if v4 {
		a4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		*a4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: to.Addr().As4()}
		return unix.SizeofSockaddrInet4
	}
	*a = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: to.Addr().As16()}
	if z := to.Addr().Zone(); z != "" {
		a.Scope_id = zoneIndex(z)
	}
	return unix.SizeofSockaddrInet6
}

// pktinfo finds the address a datagram was sent to among control messages.
func pktinfo(b []byte) netip.Addr {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		if h.Len < unix.SizeofCmsghdr || uint64(h.Len) > uint64(len(b)) {
			break
		}
		data := b[unix.CmsgLen(0):h.Len]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			return netip.AddrFrom4((*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0])).Addr)
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			return netip.AddrFrom16((*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0])).Addr).Unmap()
		}
		next := (int(h.Len) + 7) &^ 7
		if next > len(b) {
			break
		}
		b = b[next:]
	}
	return netip.Addr{}
}

// setPktinfo writes the source address of a datagram and gives its size.
func setPktinfo(b *[controlLen]byte, from netip.Addr, v4 bool) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	data := unsafe.Pointer(&b[unix.CmsgLen(0)])
	if v4 {
		*h = unix.Cmsghdr{Level: unix.IPPROTO_IP, Type: unix.IP_PKTINFO}
		h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		*(*unix.Inet4Pktinfo)(data) = unix.Inet4Pktinfo{Spec_dst: from.As4()}
		return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	}
	*h = unix.Cmsghdr{Level: unix.IPPROTO_IPV6, Type: unix.IPV6_PKTINFO}
	h.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	*(*unix.Inet6Pktinfo)(data) = unix.Inet6Pktinfo{Addr: from.As16()}
	return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
}

// packetWriter sends datagrams in batches.
type packetWriter struct {
	s  *packetSocket
	b  packetBuffers
	v4 bool
}

func newPacketWriter(s *packetSocket) *packetWriter {
	return &packetWriter{s: s, b: newPacketBuffers(writeBatch), v4: s.local.Addr().Is4()}
}

// write sends batch in order; failed is told of those that could not be sent.
// Without wait it stops where the kernel has no room and gives the rest.
func (w *packetWriter) write(batch []datagram, wait bool, failed func(*datagram, error)) (rest []datagram) {
	for len(batch) > 0 {
		n := min(len(batch), writeBatch)
		for i := range n {
			w.load(i, &batch[i])
		}
		for done := 0; done < n; {
			sent := 0
			var errno syscall.Errno
			send := func(fd uintptr) bool {
				r, _, en := syscall.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&w.b.hdrs[done])), uintptr(n-done), unix.MSG_DONTWAIT, 0, 0)
				if en == unix.EAGAIN && wait {
					return false
				}
				sent, errno = int(r), en
				return true
			}
			var err error
			if wait {
				err = w.s.raw.Write(send)
			} else { // nor for somebody who waits in Write
				err = w.s.raw.Control(func(fd uintptr) { send(fd) })
			}
			switch {
			case errno == unix.EAGAIN:
				return batch[done:]
			case err != nil: // closed
				for ; done < n; done++ {
					failed(&batch[done], err)
				}
			case errno == unix.EINTR:
			case errno != 0:
				failed(&batch[done], errno)
				done++
			default:
				done += sent
			}
		}
		for i := range n {
			w.b.iovs[i] = [2]unix.Iovec{}
		}
		batch = batch[n:]
	}
	return nil
}

func (w *packetWriter) load(i int, d *datagram) {
	h := &w.b.hdrs[i].hdr
	h.Namelen = setSockaddr(&w.b.names[i], d.to, w.v4)
	w.b.iovs[i][0].Base = &d.head[0]
	w.b.iovs[i][0].SetLen(len(d.head))
	h.SetIovlen(1)
	if len(d.body) > 0 {
		w.b.iovs[i][1].Base = &d.body[0]
		w.b.iovs[i][1].SetLen(len(d.body))
		h.SetIovlen(2)
	}
	if d.from.IsValid() && !d.from.IsUnspecified() {
		h.Control = &w.b.ctrls[i][0]
		h.SetControllen(setPktinfo(&w.b.ctrls[i], d.from, w.v4))
	} else {
		h.Control = nil
		h.SetControllen(0)
	}
}

// zoneIndex reads the zone of an IPv6 address, a number or an interface's name.
func zoneIndex(zone string) uint32 {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	return 0
}
