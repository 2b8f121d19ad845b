package sip

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What cannot be parsed, and what is over its rate, gives ten lines a second,
// however much there is of it.
func TestEndpointLogIsBounded(t *testing.T) {
	for name, text := range map[string]string{
		"no SIP":      "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
		"no Via":      request(map[string]string{"Via": "-"}),
		"bad CSeq":    request(map[string]string{"CSeq": "x SUBSCRIBE"}),
		"bad reply":   "SIP/2.0 200 OK\r\n\r\n",
		"version":     request(map[string]string{"": "SUBSCRIBE sip:alice@example.com SIP/3.0"}),
		"well-formed": request(nil),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logs := make(logLines, 20_000)
				log := slog.New(logs)
				taken := 0
				e := NewEndpoint(EndpointOptions{
					Log: log, Receive: func(m *Message) { taken++; m.Release() },
					Guard: &Guard{Log: log, Limit: NewLimiter(LimiterOptions{PerSource: 1}, time.Now())},
				})
				defer e.Close()
				for range 10_000 {
					m := NewMessage()
					m.Raw = append(m.Raw[:0], text...)
					m.Flow = traceFlow
					e.parse(m, false)
				}
				close(logs)
				kinds := map[string]int{}
				for l := range logs {
					kind, _, _ := strings.Cut(l, " remote=")
					kinds[kind]++
				}
				want := "map[malformed message:10]"
				if name == "well-formed" {
					want = "map[request over the rate:10]"
				}
				if got := fmt.Sprint(kinds); got != want || (taken == 7) != (name == "well-formed") {
					t.Errorf("%s, want %s; %d taken", got, want, taken)
				}
			})
		})
	}
}
