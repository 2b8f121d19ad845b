package main

import (
	"net"
	"syscall"
)

// reportRefused has ICMP errors reported on a socket that is not connected, so
// that a server that is not there is noticed at once and not after timer F.
func reportRefused(c *net.UDPConn) {
	const ipv6RecvErr = 25 // IPV6_RECVERR
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	// A socket of the other family refuses the option, which does no harm.
	raw.Control(func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_RECVERR, 1)
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, ipv6RecvErr, 1)
	})
}
