package server_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server"
	"rollcall/sip"
	"rollcall/xcapclient"
)

// counter is a slog.Handler that counts lines by their text.
type counter struct{ lines *[]string }

func (counter) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (c counter) WithAttrs([]slog.Attr) slog.Handler         { return c }
func (c counter) WithGroup(string) slog.Handler              { return c }
func (c counter) Handle(_ context.Context, r slog.Record) error {
	mu <- struct{}{}
	*c.lines = append(*c.lines, r.Message)
	<-mu
	return nil
}

var mu = make(chan struct{}, 1)

// hostile is a network whose only peer answers every request with one status.
type hostile struct {
	recv   sip.Receiver
	answer int // 0: sending fails
	sent   atomic.Int64
}

func (h *hostile) Listen(_ sip.Proto, addr string) (netip.AddrPort, error) {
	return netip.ParseAddrPort(addr)
}
func (h *hostile) FlowTo(p sip.Proto, to netip.AddrPort) (sip.Flow, error) {
	return sip.Flow{Proto: p, Local: ourAddr, Remote: to}, nil
}
func (h *hostile) Close() {}

var ourAddr, hostileAddr = netip.MustParseAddrPort("192.0.2.1:5060"), netip.MustParseAddrPort("192.0.2.66:5060")

func (h *hostile) Send(f sip.Flow, b []byte, _ uint64) error {
	h.sent.Add(1)
	if strings.HasPrefix(string(b), "SIP/2.0 ") {
		return nil
	}
	if h.answer == 0 {
		return errors.New("no route to host")
	}
	req := sip.NewMessage()
	if err := req.Parse(append([]byte(nil), b...), false); err != nil {
		return err
	}
	h.put(sip.AppendBody(sip.AppendResponse(nil, req, h.answer, "", "x"), "", nil))
	return nil
}

// put hands the server a message.
func (h *hostile) put(b []byte) {
	m := sip.NewMessage()
	m.Flow, m.At = sip.Flow{Proto: sip.UDP, Local: ourAddr, Remote: hostileAddr}, time.Now()
	if err := m.Parse(b, false); err != nil {
		panic(fmt.Sprintf("%v in\n%s", err, b))
	}
	h.recv(m)
}

// unreadable is a source of documents that always fails.
type unreadable struct{ xcapclient.Source }

func (unreadable) Document(context.Context, string) (xcapclient.Document, error) {
	return xcapclient.Document{}, errors.New("disk on fire")
}
func (unreadable) Selectors(context.Context, string) ([]string, error) { return nil, nil }

// Whatever a peer does ten thousand times, the log gets ten lines a second of
// it, and no fewer than one.
func TestLogIsBounded(t *testing.T) {
	const (
		subscribe = "Event: presence\nContact: <sip:x@192.0.2.66>\n"
		pidf      = "Event: presence\nContent-Type: application/pidf+xml\n"
	)
	for _, c := range []struct {
		name            string
		method, uri, to string
		rest            string // of the head; after an empty line the body
		answer          int
		change          func(*server.Config)
		quiet           bool // nothing needs to be told
	}{
		{name: "not trusted", method: "SUBSCRIBE", rest: subscribe, quiet: true, change: func(c *server.Config) { c.Trust = nil }},
		{name: "over the rate", method: "SUBSCRIBE", rest: subscribe, change: func(c *server.Config) { c.Trust, c.RatePerSource = nil, 1 }},
		{name: "over the rate for all", method: "SUBSCRIBE", rest: subscribe, change: func(c *server.Config) { c.RateTotal = 1 }},
		{name: "another package", method: "SUBSCRIBE", rest: "Event: nothing\nContact: <sip:x@192.0.2.66>\n"},
		{name: "another scheme", method: "SUBSCRIBE", uri: "http://example.com/%d", rest: subscribe},
		{name: "no such dialog", method: "SUBSCRIBE", to: ";tag=x", rest: subscribe},
		{name: "too brief", method: "SUBSCRIBE", rest: subscribe + "Expires: 1\n"},
		{name: "no Contact", method: "SUBSCRIBE", rest: "Event: presence\n"},
		{name: "unknown extension", method: "SUBSCRIBE", rest: subscribe + "Require: magic\n"},
		{name: "unknown method", method: "FROB"},
		{name: "method of others", method: "INVITE"},
		{name: "CANCEL of nothing", method: "CANCEL"},
		{name: "NOTIFY out of nowhere", method: "NOTIFY", to: ";tag=x", rest: "Event: presence\nSubscription-State: active\n"},
		{name: "PUBLISH of another domain", method: "PUBLISH", uri: "sip:%d@example.net", rest: pidf},
		{name: "PUBLISH of no presence document", method: "PUBLISH", rest: pidf + "\n<presence"},
		{name: "PUBLISH of another type", method: "PUBLISH", rest: "Event: presence\nContent-Type: text/plain\n\nx"},
		{name: "PUBLISH with an old tag", method: "PUBLISH", rest: pidf + "SIP-If-Match: x\n"},
		{name: "NOTIFY refused", method: "SUBSCRIBE", rest: subscribe, answer: 500},
		{name: "NOTIFY of an unknown dialog", method: "SUBSCRIBE", rest: subscribe, answer: 481},
		{name: "NOTIFY cannot be sent", method: "SUBSCRIBE", rest: subscribe},
		{name: "refused elsewhere", method: "SUBSCRIBE", uri: "sip:%d@example.org", rest: subscribe, answer: 403},
		{name: "failed elsewhere", method: "SUBSCRIBE", uri: "sip:%d@example.org", rest: subscribe, answer: 500},
		{name: "unreachable elsewhere", method: "SUBSCRIBE", uri: "sip:%d@example.org", rest: subscribe},
		{name: "rules not readable", method: "SUBSCRIBE", rest: subscribe, answer: 200, change: func(c *server.Config) { c.PresenceAuth = "confirm" }},
		{name: "late response", quiet: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := server.Default()
				cfg.Listen, cfg.HTTP, cfg.Store, cfg.Domain = []string{"udp:" + ourAddr.String()}, "", "memory", []string{"example.com"}
				cfg.Trust, cfg.PresenceAuth, cfg.Remote = []string{"192.0.2.0/24"}, "open", map[string]string{"example.org": "sip:" + hostileAddr.String()}
				cfg.RatePerSource = 0
				if c.change != nil {
					c.change(&cfg)
				}
				var lines []string
				h := &hostile{answer: c.answer}
				s, err := server.New(cfg, slog.New(counter{&lines}), server.WithSource(unreadable{}),
					server.OnNetwork(func(recv sip.Receiver) server.Network { h.recv = recv; return h }))
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Start(context.Background()); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				lines = nil
				start := time.Now()
				uri, rest := c.uri, c.rest
				if uri == "" {
					uri = "sip:%d@example.com"
				}
				if head, _, ok := strings.Cut(rest, "\n\n"); ok {
					rest = head + "\r\n\r\n" + rest[len(head)+2:]
				} else {
					rest += "\n"
				}
				for i := range 2000 {
					if c.method == "" {
						h.put(fmt.Appendf(nil, "SIP/2.0 200 OK\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK%024x\nFrom: <sip:a@example.com>;tag=a\nTo: <sip:b@example.com>\nCall-ID: c%d\nCSeq: 1 NOTIFY\n\n", i, i))
					} else {
						u := strings.ReplaceAll(uri, "%d", fmt.Sprint(i))
						h.put(fmt.Appendf(nil, "%s %s SIP/2.0\nVia: SIP/2.0/UDP 192.0.2.66;branch=z9hG4bK%d\nFrom: <sip:x@example.com>;tag=f%d\nTo: <%s>%s\nCall-ID: c%d\nCSeq: 1 %s\n%s", c.method, u, i, i, u, c.to, i, c.method, rest))
					}
					if i%500 == 0 {
						synctest.Wait()
					}
				}
				synctest.Wait()
				seconds := int(time.Since(start)/time.Second) + 1
				mu <- struct{}{}
				kinds := map[string]int{}
				for _, l := range lines {
					kinds[l]++
				}
				<-mu
				for text, n := range kinds {
					if n > 10*seconds {
						t.Errorf("%d lines %q in %d s", n, text, seconds)
					}
				}
				if len(kinds) > 3 || len(kinds) == 0 && !c.quiet {
					t.Errorf("lines: %v", kinds)
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				s.Stop(ctx)
			})
		})
	}
}
