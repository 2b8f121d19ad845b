package sip

import (
	"bytes"
	"log/slog"
	"math/rand/v2"
	"strconv"
)

// Guard is what every message passes on its way in and out: counters, traces
// and limits. It sits between a transport and its Receiver and Sender, so it
// works the same on sockets and in memory. Each part may be nil, and so may the
// Guard, which then lets everything pass. Any number of goroutines may use one.
type Guard struct {
	Stats *Stats
	Trace *Trace
	Limit *Limiter
	Log   *slog.Logger

	// Busy tells whether there is time for a message that Limit lets pass; nil:
	// always. Whoever says no counts it.
	Busy func(m *Message) Verdict

	lines LogLimit
}

// Refuser answers a request 503 (Overloaded). It does not keep it.
type Refuser interface {
	Refuse(m *Message)
}

// Received takes a parsed message; its At is the time of arrival. It returns
// false when the message goes no further: then it was answered by no, or dropped,
// and is released.
func (g *Guard) Received(m *Message, no Refuser) bool {
	if g == nil {
		return true
	}
	g.Stats.received(m)
	v := g.Limit.Admit(m.At, m.Flow.Remote.Addr(), KindOf(m))
	rejected, dropped := "over the rate, answered 503", "over the rate, dropped"
	switch {
	case v != Pass:
		if n, ok := g.lines.Allow(m.At); ok && g.Log != nil {
			g.Log.Warn("request over the rate", "remote", m.Flow.Remote.String(), "method", m.Method().String(), "rejected", v == Reject, "suppressed", n)
		}
	case g.Busy != nil:
		v = g.Busy(m)
		rejected, dropped = "busy, answered 503", "busy, dropped"
	}
	switch {
	case v == Pass:
		g.Trace.Received(m, "")
		return true
	case v == Reject && m.Method() != ACK:
		g.Trace.Received(m, rejected)
		no.Refuse(m)
	default:
		g.Trace.Received(m, dropped)
	}
	m.Release()
	return false
}

// Malformed takes a message that could not be parsed, for the reason given. It
// returns whether it may be answered.
func (g *Guard) Malformed(m *Message, reason string) bool {
	if g == nil {
		return true
	}
	g.Trace.Received(m, "malformed: "+reason)
	src := m.Flow.Remote.Addr()
	return g.Limit.Admit(m.At, src, KindNew) == Pass && g.Limit.Answer(m.At, src)
}

// Sent takes a message, head and body one after the other, that is about to be
// given to the transport.
func (g *Guard) Sent(f Flow, head, body []byte) {
	if g == nil {
		return
	}
	g.Stats.sent(f.Proto, head, len(body))
	g.Trace.Sent(f, head, body)
}

// Overloaded is a refusal without state: 503 with Retry-After. Who is refused
// comes back after 5 to 10 seconds, in which a source's bucket fills by half at
// least, and not at the same time as the others.
func Overloaded(m *Message) []byte {
	var buf [1024]byte // most fit, so that there is one allocation and it is no larger than need be
	return bytes.Clone(appendOverloaded(buf[:0], m))
}

func appendOverloaded(dst []byte, m *Message) []byte {
	var tag [statelessTagLen]byte
	dst = AppendResponse(dst, m, 503, "", string(appendStatelessTag(tag[:0], m)))
	dst = AppendHeader(dst, "Retry-After", strconv.Itoa(5+rand.IntN(6)))
	return AppendBody(dst, "", nil)
}
