package server

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"rollcall/sip"
	"rollcall/sip/auth"
)

// metrics is the registry behind /metrics. Every value is read from the
// parts' own counters when it is asked for.
func (s *Server) metrics() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	counter := func(name, help string, labels prometheus.Labels, read func() uint64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "rollcall_" + name, Help: help, ConstLabels: labels},
			func() float64 { return float64(read()) }))
	}
	gauge := func(name, help string, read func() int64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "rollcall_" + name, Help: help},
			func() float64 { return float64(read()) }))
	}
	reg.MustRegister(traffic{s.guard.Stats})
	d, p, l, b := s.rt.Stats(), s.agent.Stats(), s.lists.Stats(), s.gateway.Stats()
	for m := sip.MethodUnknown; m <= sip.REFER; m++ {
		name := strings.ToLower(m.String())
		counter("dialog_requests_total", "Requests handled, without retransmissions.", prometheus.Labels{"method": name}, d.Requests[m].Load)
	}
	if e, ok := s.network.(*sip.Endpoint); ok {
		w := e.Stats()
		counter("sip_messages_received_total", "Messages received.", nil, w.Received.Load)
		counter("sip_messages_sent_total", "Messages sent.", nil, w.Sent.Load)
		counter("sip_malformed_total", "Messages that could not be parsed.", nil, w.Malformed.Load)
		counter("sip_send_errors_total", "Messages that could not be sent.", nil, w.SendErrors.Load)
		counter("sip_connections_accepted_total", "Stream connections accepted.", nil, w.Accepted.Load)
		counter("sip_connections_refused_total", "Stream connections closed on accept because there were too many.", nil, w.Refused.Load)
		counter("sip_tls_handshake_errors_total", "TLS handshakes that failed, both ways.", nil, w.TLSHandshakeErrors.Load)
		for r := range sip.CloseReasons {
			counter("sip_connections_closed_total", "Stream connections closed.", prometheus.Labels{"reason": r.String()}, w.Closed[r].Load)
		}
		counter("sip_kernel_drops_total", "Datagrams that the kernel dropped because a receive buffer was full.", nil, e.KernelDrops)
		gauge("sip_connections", "Open stream connections.", func() int64 { return int64(e.Conns()) })
	}
	lim := s.guard.Limit.Stats()
	for _, c := range []struct {
		limit, verdict string
		read           func() uint64
	}{
		{"source", "rejected", lim.SourceRejected.Load}, {"source", "dropped", lim.SourceDropped.Load},
		{"total", "rejected", lim.TotalRejected.Load}, {"total", "dropped", lim.TotalDropped.Load},
	} {
		counter("sip_limited_total", "Requests over a rate, answered 503 or dropped.", prometheus.Labels{"limit": c.limit, "verdict": c.verdict}, c.read)
	}
	gauge("sip_traces", "Wire traces that are running.", func() int64 { return int64(s.guard.Trace.Running()) })
	for r := range s.auths {
		counter("sip_authentications_total", "Requests of peers that are not trusted by what came of their credentials.",
			prometheus.Labels{"result": auth.Result(r).String()}, s.auths[r].Load)
	}
	counter("dialog_rejected_total", "Requests answered with an error.", nil, d.Rejected.Load)
	counter("dialog_overload_total", "Requests refused or dropped because a queue was full.", nil, d.Overload.Load)
	counter("dialog_notifies_total", "NOTIFYs sent, without retransmissions.", nil, d.Notifies.Load)
	counter("dialog_notify_answers_total", "NOTIFYs by result.", prometheus.Labels{"result": "ok"}, d.NotifyOK.Load)
	counter("dialog_notify_answers_total", "NOTIFYs by result.", prometheus.Labels{"result": "failed"}, d.NotifyFailed.Load)
	counter("dialog_updates_coalesced_total", "State updates replaced by a newer one before they were read.", nil, d.Coalesced.Load)
	counter("dialog_panics_total", "Panics caught in shard turns; must be 0.", nil, d.Panics.Load)
	counter("dialog_revived_total", "Terminated subscriptions that came back; must be 0.", nil, d.Revived.Load)
	counter("dialog_two_in_flight_total", "NOTIFYs sent while another was unanswered; must be 0.", nil, d.TwoInFlight.Load)
	counter("dialog_repeated_total", "NOTIFYs whose CSeq was not above the last one of their dialog; must be 0.", nil, d.Repeated.Load)
	counter("dialog_orphan_timers_total", "Timers that fired for nothing; must be 0.", nil, d.Orphans.Load)
	gauge("dialog_subscriptions", "Live subscriptions.", d.Subscriptions.Load)
	gauge("dialog_remote_subscriptions", "Subscriptions held at other servers.", d.Remote.Load)
	counter("store_commits_total", "Transactions stored.", nil, d.Commits.Load)
	counter("store_commit_errors_total", "Transactions that failed and were repeated.", nil, d.CommitErrors.Load)
	gauge("store_up", "1 while the store takes writes.", func() int64 {
		if s.rt.Healthy() {
			return 1
		}
		return 0
	})
	gauge("store_waiting_writes", "Writes that are not stored yet.", func() int64 { return int64(s.rt.StoreState().Waiting) })
	counter("store_refused_total", "Requests answered 503 because the store was down.", nil, d.StoreRefused.Load)
	counter("store_withdrawn_total", "Answers that became refusals while they waited for the store.", nil, d.Withdrawn.Load)
	counter("store_unstorable_total", "Writes left out because the store will never take them; must be 0.", nil, d.Unstorable.Load)
	gauge("pa_presentities", "Presentities that are published or watched.", p.Presentities.Load)
	gauge("pa_publications", "Live publications.", p.Publications.Load)
	gauge("pa_watchers", "Attachments to local presentities.", p.Watchers.Load)
	counter("pa_published_total", "Publications stored or modified.", nil, p.Published.Load)
	counter("pa_refreshed_total", "Publications refreshed.", nil, p.Refreshed.Load)
	counter("pa_expired_total", "Publications that were not refreshed.", nil, p.Expired.Load)
	counter("pa_denied_total", "Watchers blocked.", nil, p.Denied.Load)
	counter("pa_messages_total", "MESSAGE requests by the decision of the recipient's rules.", prometheus.Labels{"verdict": "allow"}, p.MessagesAllowed.Load)
	counter("pa_messages_total", "MESSAGE requests by the decision of the recipient's rules.", prometheus.Labels{"verdict": "block"}, p.MessagesDenied.Load)
	counter("pa_rendered_total", "Presence documents rendered: the whole, and each view of a change.", nil, p.Rendered.Load)
	gauge("rls_views", "List subscriptions.", l.Views.Load)
	gauge("rls_members", "Attachments of list members.", l.Members.Load)
	counter("rls_rendered_total", "List documents rendered.", nil, l.Rendered.Load)
	counter("b2b_opened_total", "Remote subscriptions opened, retries included.", nil, b.Opened.Load)
	counter("b2b_retried_total", "Remote subscriptions opened again.", nil, b.Retried.Load)
	counter("b2b_refused_total", "Remote subscriptions refused because there are too many.", nil, b.Refused.Load)
	return reg
}
