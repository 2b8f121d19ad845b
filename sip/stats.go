package sip

import (
	"bytes"
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	protoCount  = int(WSS) + 1
	methodCount = int(REFER) + 1
	classCount  = 6 // 1xx to 6xx
)

// Direction is the way of a message as we see it.
type Direction uint8

// The directions.
const (
	In Direction = iota
	Out
)

// Failure is how a client transaction ends without a final response.
type Failure uint8

// The failures.
const (
	TimedOut    Failure = iota // timer F (RFC 3261 section 17.1.2.2)
	Undelivered                // the transport reported an error
)

// Stats counts messages and times transactions. All methods may be called by
// any number of goroutines and on a nil *Stats, which counts nothing. Labels are
// numbers, so counting is one atomic addition. Read what it holds with Requests,
// Responses and the like.
type Stats struct {
	requests  [2][protoCount][methodCount]atomic.Uint64
	responses [2][protoCount][methodCount][classCount]atomic.Uint64
	bytes     [2][protoCount]atomic.Uint64
	absorbed  [methodCount]atomic.Uint64
	failures  [methodCount][2]atomic.Uint64
	server    [methodCount]Histogram
	client    [methodCount]Histogram
}

// CountRequest counts a request on the wire, retransmissions included. m is
// MethodUnknown for methods without a number.
func (s *Stats) CountRequest(d Direction, p Proto, m Method) {
	if s != nil && int(p) < protoCount && int(m) < methodCount {
		s.requests[d&1][p][m].Add(1)
	}
}

// CountResponse counts a response on the wire by the method of its CSeq and
// its status, 100 to 699.
func (s *Stats) CountResponse(d Direction, p Proto, m Method, status int) {
	if c := status/100 - 1; s != nil && int(p) < protoCount && int(m) < methodCount && uint(c) < classCount {
		s.responses[d&1][p][m][c].Add(1)
	}
}

// CountBytes counts the octets of a message, without those of the transport.
func (s *Stats) CountBytes(d Direction, p Proto, n int) {
	if s != nil && int(p) < protoCount {
		s.bytes[d&1][p].Add(uint64(n))
	}
}

// CountAbsorbed counts a retransmission that a server transaction answered, or
// kept from being handled again (RFC 3261 section 17.2.2).
func (s *Stats) CountAbsorbed(m Method) {
	if s != nil && int(m) < methodCount {
		s.absorbed[m].Add(1)
	}
}

// ObserveServer records how long a server transaction took from the arrival of
// its request to the final response being handed to the transport.
func (s *Stats) ObserveServer(m Method, d time.Duration) {
	if s != nil && int(m) < methodCount {
		s.server[m].Observe(d)
	}
}

// ObserveClient records how long a client transaction took from sending its
// request to the arrival of its final response.
func (s *Stats) ObserveClient(m Method, d time.Duration) {
	if s != nil && int(m) < methodCount {
		s.client[m].Observe(d)
	}
}

// CountFailure counts a client transaction that ended without a response.
func (s *Stats) CountFailure(m Method, f Failure) {
	if s != nil && int(m) < methodCount {
		s.failures[m][f&1].Add(1)
	}
}

// received counts a parsed message.
func (s *Stats) received(m *Message) {
	if s == nil {
		return
	}
	if m.status == 0 {
		s.CountRequest(In, m.Flow.Proto, m.method)
	} else {
		s.CountResponse(In, m.Flow.Proto, m.method, m.status)
	}
	s.CountBytes(In, m.Flow.Proto, len(m.Raw))
}

// sent counts a message that was written here: its head, and how long its body
// is if that is not in b.
func (s *Stats) sent(p Proto, b []byte, body int) {
	if s == nil {
		return
	}
	if m, status := glance(b); status == 0 {
		s.CountRequest(Out, p, m)
	} else {
		s.CountResponse(Out, p, m, status)
	}
	s.CountBytes(Out, p, len(b)+body)
}

// glance reads the method and, of a response, the status out of a message that
// was written by this package's functions.
func glance(b []byte) (m Method, status int) {
	if len(b) > 12 && string(b[:8]) == "SIP/2.0 " {
		for _, c := range b[8:11] {
			status = status*10 + int(c-'0')
		}
		for {
			i := bytes.IndexByte(b, '\n')
			if i < 0 {
				return MethodUnknown, status
			}
			if b = b[i+1:]; len(b) > 6 && string(b[:6]) == "CSeq: " {
				break
			}
		}
		b = b[6:]
		b = b[bytes.IndexByte(b, ' ')+1:]
		return lookupMethod(b[:max(bytes.IndexByte(b, '\r'), 0)]), status
	}
	i := bytes.IndexByte(b, ' ')
	return lookupMethod(b[:max(i, 0)]), 0
}

// Bounds of a Histogram's buckets: 50 µs doubled up to 26.2 s, then 32 s, which
// is timer F, then any time.
const (
	histogramFirst = 50 * time.Microsecond
	histogramSteps = 20
)

// Histogram counts durations. It may be used by any number of goroutines.
type Histogram struct {
	sum    atomic.Int64
	counts [histogramSteps + 2]atomic.Uint64
}

// Observe adds a duration; a negative one counts as 0.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	i := bits.Len64(uint64(max(d-1, 0) / histogramFirst))
	if i >= histogramSteps {
		i = histogramSteps
		if d > TimerF {
			i++
		}
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// Read gives the number of durations, their sum, and for each upper bound in
// seconds how many were at or below it.
func (h *Histogram) Read() (count uint64, sum time.Duration, atMost map[float64]uint64) {
	atMost = make(map[float64]uint64, histogramSteps+1)
	for i := range histogramSteps + 1 {
		count += h.counts[i].Load()
		bound := histogramFirst << i
		if i == histogramSteps {
			bound = TimerF
		}
		atMost[bound.Seconds()] = count
	}
	return count + h.counts[histogramSteps+1].Load(), time.Duration(h.sum.Load()), atMost
}

// Requests calls f for every count of requests that is not 0.
func (s *Stats) Requests(f func(d Direction, p Proto, m Method, n uint64)) {
	for d := range s.requests {
		for p := range s.requests[d] {
			for m := range s.requests[d][p] {
				if n := s.requests[d][p][m].Load(); n > 0 {
					f(Direction(d), Proto(p), Method(m), n)
				}
			}
		}
	}
}

// Responses calls f for every count of responses that is not 0; class is 1 to
// 6, the first digit of the status.
func (s *Stats) Responses(f func(d Direction, p Proto, m Method, class int, n uint64)) {
	for d := range s.responses {
		for p := range s.responses[d] {
			for m := range s.responses[d][p] {
				for c := range s.responses[d][p][m] {
					if n := s.responses[d][p][m][c].Load(); n > 0 {
						f(Direction(d), Proto(p), Method(m), c+1, n)
					}
				}
			}
		}
	}
}

// Bytes calls f for every count of octets that is not 0.
func (s *Stats) Bytes(f func(d Direction, p Proto, n uint64)) {
	for d := range s.bytes {
		for p := range s.bytes[d] {
			if n := s.bytes[d][p].Load(); n > 0 {
				f(Direction(d), Proto(p), n)
			}
		}
	}
}

// Absorbed is how many retransmissions of requests were absorbed.
func (s *Stats) Absorbed(m Method) uint64 { return s.absorbed[m].Load() }

// Failures is how many client transactions ended without a response.
func (s *Stats) Failures(m Method, f Failure) uint64 { return s.failures[m][f&1].Load() }

// Server is the histogram of server transactions.
func (s *Stats) Server(m Method) *Histogram { return &s.server[m] }

// Client is the histogram of client transactions.
func (s *Stats) Client(m Method) *Histogram { return &s.client[m] }

// Methods are all methods there are counts of.
func Methods() []Method {
	all := make([]Method, methodCount)
	for i := range all {
		all[i] = Method(i)
	}
	return all
}
