package server

import (
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"rollcall/sip"
)

// traffic exports sip.Stats. Series without a count are left out: there are
// 1,200 of them, of which a server uses thirty.
type traffic struct{ stats *sip.Stats }

var (
	requestsDesc = prometheus.NewDesc("rollcall_sip_requests_total",
		"Requests received from and given to the transport, retransmissions included.", []string{"direction", "transport", "method"}, nil)
	responsesDesc = prometheus.NewDesc("rollcall_sip_responses_total",
		"Responses received from and given to the transport, retransmissions included.", []string{"direction", "transport", "method", "class"}, nil)
	bytesDesc = prometheus.NewDesc("rollcall_sip_bytes_total",
		"Bytes of SIP messages received from and given to the transport.", []string{"direction", "transport"}, nil)
	absorbedDesc = prometheus.NewDesc("rollcall_sip_retransmissions_total",
		"Retransmissions of requests that were absorbed by their transaction.", []string{"method"}, nil)
	failuresDesc = prometheus.NewDesc("rollcall_sip_client_failures_total",
		"Requests sent that ended without a final response.", []string{"method", "reason"}, nil)
	serverDesc = prometheus.NewDesc("rollcall_sip_server_transaction_seconds",
		"Time from a request's arrival to its final response.", []string{"method"}, nil)
	clientDesc = prometheus.NewDesc("rollcall_sip_client_transaction_seconds",
		"Time from sending a request to the arrival of its final response.", []string{"method"}, nil)
)

var (
	directions = [...]string{sip.In: "in", sip.Out: "out"}
	reasons    = [...]string{sip.TimedOut: "timeout", sip.Undelivered: "transport"}
)

// Describe implements prometheus.Collector.
func (traffic) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requestsDesc, responsesDesc, bytesDesc, absorbedDesc, failuresDesc, serverDesc, clientDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (t traffic) Collect(ch chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		if n > 0 {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
		}
	}
	t.stats.Requests(func(d sip.Direction, p sip.Proto, m sip.Method, n uint64) {
		count(requestsDesc, n, directions[d], label(p), label(m))
	})
	t.stats.Responses(func(d sip.Direction, p sip.Proto, m sip.Method, class int, n uint64) {
		count(responsesDesc, n, directions[d], label(p), label(m), strconv.Itoa(class)+"xx")
	})
	t.stats.Bytes(func(d sip.Direction, p sip.Proto, n uint64) { count(bytesDesc, n, directions[d], label(p)) })
	for _, m := range sip.Methods() {
		count(absorbedDesc, t.stats.Absorbed(m), label(m))
		for f, reason := range reasons {
			count(failuresDesc, t.stats.Failures(m, sip.Failure(f)), label(m), reason)
		}
		for _, h := range []struct {
			desc *prometheus.Desc
			*sip.Histogram
		}{{serverDesc, t.stats.Server(m)}, {clientDesc, t.stats.Client(m)}} {
			if n, sum, atMost := h.Read(); n > 0 {
				ch <- prometheus.MustNewConstHistogram(h.desc, n, sum.Seconds(), atMost, label(m))
			}
		}
	}
}

// label is a method or transport as it stands in a label.
func label(v interface{ String() string }) string { return strings.ToLower(v.String()) }
