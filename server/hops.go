package server

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"rollcall/sip"
	"rollcall/sip/locate"
)

// avoidFor is how long a target that failed is tried after its fellows.
const avoidFor = time.Minute

// protos are the transports that we can send new requests over, in the order
// of preference where DNS has none.
func (set *settings) protos() []sip.Proto {
	var out []sip.Proto
	for _, p := range []sip.Proto{sip.UDP, sip.TCP, sip.TLS} {
		for _, l := range set.listen {
			if l.proto == p {
				out = append(out, p)
				break
			}
		}
	}
	return out
}

// usable tells whether a listener can reach an address.
func (s *Server) usable(a netip.Addr) bool {
	for _, p := range s.set.protos() {
		if _, err := s.network.FlowTo(p, netip.AddrPortFrom(a, 5060)); err == nil {
			return true
		}
	}
	return false
}

// resolve finds where the requests to a URI go (RFC 3263).
func (s *Server) resolve(ctx context.Context, uri string) ([]sip.Flow, error) {
	targets, err := s.resolver.Targets(ctx, uri)
	if err != nil {
		return nil, err
	}
	var flows []sip.Flow
	for _, t := range targets {
		flow, ferr := s.network.FlowTo(t.Proto, t.Addr)
		if err = ferr; err == nil {
			flow.Domain = t.Domain
			flows = append(flows, flow)
		}
	}
	if len(flows) == 0 {
		return nil, fmt.Errorf("no usable address for %s: %w", uri, err)
	}
	return flows, nil
}

// unreachable remembers where a request failed, so that others go elsewhere
// first (DNS-02).
func (s *Server) unreachable(f sip.Flow) {
	s.resolver.Failed(locate.Target{Proto: f.Proto, Addr: f.Remote, Domain: f.Domain}, avoidFor)
}

// streamFlow is the network's way to TCP for large requests, nil if it has none.
func (s *Server) streamFlow() func(sip.Flow) (sip.Flow, bool) {
	if n, ok := s.network.(interface {
		StreamFlow(sip.Flow) (sip.Flow, bool)
	}); ok {
		return n.StreamFlow
	}
	return nil
}

// unsent is the network's count of messages to be written, nil if it has none.
func (s *Server) unsent() func() int {
	if n, ok := s.network.(interface{ Unsent() int }); ok {
		return n.Unsent
	}
	return nil
}
