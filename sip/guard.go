package sip

import (
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

	lines LogLimit
}

// Received takes a parsed message; its At is the time of arrival. It returns
// false when the message goes no further: then it was answered 503, over
// reply, or dropped, and is released.
func (g *Guard) Received(m *Message, reply Sender) bool {
	if g == nil {
		return true
	}
	g.Stats.received(m)
	v := g.Limit.Admit(m.At, m.Flow.Remote.Addr(), KindOf(m))
	if v == Pass {
		g.Trace.Received(m, "")
		return true
	}
	note := "over the rate, dropped"
	if v == Reject && m.Method() != ACK {
		note = "over the rate, answered 503"
	}
	g.Trace.Received(m, note)
	if n, ok := g.lines.Allow(m.At); ok && g.Log != nil {
		g.Log.Warn("request over the rate", "remote", m.Flow.Remote.String(), "method", m.Method().String(), "rejected", v == Reject, "suppressed", n)
	}
	if v == Reject && m.Method() != ACK {
		reply.Send(ResponseFlow(m), Overloaded(m), 0)
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
	b := AppendResponse(nil, m, 503, "", StatelessTag(m))
	b = AppendHeader(b, "Retry-After", strconv.Itoa(5+rand.IntN(6)))
	return AppendBody(b, "", nil)
}
