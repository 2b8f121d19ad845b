// Package locate finds where a request to a SIP or SIPS URI goes: addresses,
// ports and transports in the order in which they are to be tried (RFC 3263
// section 4). It owns what DNS said, for as long as it may be kept, and which
// places did not answer lately.
//
// It asks NAPTR (RFC 3403), SRV (RFC 2782), A and AAAA (RFC 7984), behind CNAMEs,
// of the name servers it is given, over UDP with EDNS0 (RFC 6891) and over TCP
// when an answer is truncated. It sends no SIP and does no failover: who sends
// tries the next target with a new transaction, and tells Failed.
//
// Invariants:
//
//   - Cached, Failed and Stats never wait for the network; Targets waits as long
//     as its context allows, at most.
//   - A sips URI gives TLS targets and no others. Target.Domain is the host of
//     the URI, whatever names DNS led through.
//   - Equal queries under way are one query. Caches, queries under way, records
//     of an answer, aliases in a row and targets are bounded, each where its
//     constant stands.
//   - A name is asked as it is written: no search domains. What the hosts file
//     has is not asked for A and AAAA.
//   - What a cache holds is immutable; a Resolver is safe for concurrent use.
//
// What is kept: positive answers for their TTL, at least 5 s, at most 1 h; "no
// such record" for the SOA's time (RFC 2308), at most 5 min; that nobody answered
// for 5 s. When nobody answers, what was known stands in for up to 1 h more
// (RFC 8767).
//
// Addresses are not judged beyond being unicast. Which of them a URI from
// outside may lead to is for the caller to decide.
//
//	r := locate.New(locate.Options{Protos: []sip.Proto{sip.UDP, sip.TCP}})
//	targets, err := r.Targets(ctx, "sip:example.com")
package locate
