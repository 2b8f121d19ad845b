package sip

import "net/netip"

// Proto is a transport protocol of RFC 3261 section 18.
type Proto uint8

// The transports.
const (
	UDP Proto = iota
	TCP
	TLS
	WS
	WSS
)

// String gives the name as it stands in a Via header field.
func (p Proto) String() string {
	switch p {
	case UDP:
		return "UDP"
	case TCP:
		return "TCP"
	case TLS:
		return "TLS"
	case WS:
		return "WS"
	case WSS:
		return "WSS"
	}
	return "unknown"
}

// Reliable tells whether the transport retransmits by itself, which makes
// timers E and K unnecessary (RFC 3261 section 17.1.2.2).
func (p Proto) Reliable() bool { return p != UDP }

// Flow names the path between a local socket and a peer. A message is
// answered, and a NOTIFY sent, on the flow its request came in on.
type Flow struct {
	Proto  Proto
	Local  netip.AddrPort
	Remote netip.AddrPort
	Conn   uint32 // stream connection number, 0 for UDP or "any connection"

	// Domain is whom the certificate of a TLS connection that we open must
	// name: the host of the URI before it was resolved (RFC 5922 section 7.3).
	// Empty: the address in Remote.
	Domain   string
	Upgraded bool // from StreamFlow
}
