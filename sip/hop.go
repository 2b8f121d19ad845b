package sip

import (
	"errors"
	"net/netip"
	"strings"
)

// ErrNotLiteral means that a URI's host is a name.
var ErrNotLiteral = errors.New("sip: host is not an address")

// LiteralHop is where requests to a URI go when its host is an IP address: to
// its port or the default one, over its transport parameter or UDP (RFC 3263
// section 4.1). The error is ErrNotLiteral for a name.
func LiteralHop(uri string) (Proto, netip.AddrPort, error) {
	u, err := ParseURI(uri)
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	host := u.Host
	if maddr, ok := u.Param("maddr"); ok {
		host = maddr
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		return 0, netip.AddrPort{}, ErrNotLiteral
	}
	proto, err := TransportOf(u)
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	return proto, netip.AddrPortFrom(addr.Unmap(), HopPort(u)), nil
}

// TransportOf is the transport a URI asks for; UDP when it does not say, TLS
// for sips.
func TransportOf(u URI) (Proto, error) {
	name, ok := u.Param("transport")
	switch {
	case u.Scheme == "sips":
		return TLS, nil
	case !ok || strings.EqualFold(name, "udp"):
		return UDP, nil
	case strings.EqualFold(name, "tcp"):
		return TCP, nil
	case strings.EqualFold(name, "tls"):
		return TLS, nil
	}
	return 0, errors.New("sip: transport " + name + " is not supported")
}

// HopPort is the port of a URI or the default of its scheme.
func HopPort(u URI) uint16 {
	if u.Port != 0 {
		return u.Port
	}
	if p, _ := TransportOf(u); p == TLS {
		return 5061
	}
	return 5060
}
