package sip

import (
	"net/netip"
	"testing"
)

// A listener on a wildcard names itself by the address that its peers see.
func TestFlowToFromWildcard(t *testing.T) {
	e := NewEndpoint(EndpointOptions{Receive: func(m *Message) { m.Release() }})
	defer e.Close()
	for _, p := range []Proto{UDP, TCP} {
		bound, err := e.Listen(p, "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		remote := netip.MustParseAddrPort("127.0.0.1:5070")
		f, err := e.FlowTo(p, remote)
		if want := netip.AddrPortFrom(remote.Addr(), bound.Port()); err != nil || f.Local != want || f.Remote != remote || f.Proto != p {
			t.Errorf("%v: %+v, %v, want from %v", p, f, err, want)
		}
		if f, err := e.FlowTo(p, netip.MustParseAddrPort("[::1]:5070")); err == nil {
			t.Errorf("%v: an IPv4 listener reaches IPv6 from %v", p, f.Local)
		}
	}
	if f, err := e.FlowTo(TLS, netip.MustParseAddrPort("127.0.0.1:5061")); err == nil {
		t.Errorf("TLS without a listener: %+v", f)
	}
}
