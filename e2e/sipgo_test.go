package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/emiago/sipgo"
	"github.com/emiago/sipgo/sip"

	"rollcall/e2e/peer"
)

func init() { sip.SetDefaultLogger(slog.New(slog.NewTextHandler(io.Discard, nil))) }

// sipgoPhone is a user agent on sipgo, which has transactions and transports but
// no subscriptions: the dialogs are ours. Over UDP it has a socket of its own;
// otherwise nobody can connect to what its Contact names.
type sipgoPhone struct {
	t                          testing.TB
	client                     *sipgo.Client
	transport, server, contact string
	aor                        string
	notifies                   chan peer.Trace
	queue                      []peer.Trace // not asked for yet
	close                      func()
}

func startSipgo(t testing.TB, in *instance, transport, aor string, certs certificates) phone {
	t.Helper()
	ua, err := sipgo.NewUA(sipgo.WithUserAgenTLSConfig(&tls.Config{RootCAs: certs.ca.Pool(), ServerName: "example.com"}))
	if err != nil {
		t.Fatal(err)
	}
	server, err := sipgo.NewServer(ua)
	if err != nil {
		t.Fatal(err)
	}
	p := &sipgoPhone{t: t, transport: transport, server: in.at[transport], aor: aor, notifies: make(chan peer.Trace, 64)}
	server.OnNotify(func(req *sip.Request, tx sip.ServerTransaction) {
		tx.Respond(sip.NewResponseFromRequest(req, 200, "OK", nil))
		p.notifies <- peer.Trace{Raw: []byte(req.String())}
	})
	name := transport
	if transport == "wss" {
		name = "ws" // RFC 7118 section 5.2
	}
	p.contact = "<sip:sipgo@client.invalid;transport=" + name + ">"
	p.close = func() { ua.Close() }
	options := []sipgo.ClientOption{sipgo.WithClientNAT()}
	if transport == "udp" {
		addr := fmt.Sprintf("127.0.0.1:%d", peer.FreePort(t))
		p.contact = "<sip:sipgo@" + addr + ">"
		options = append(options, sipgo.WithClientConnectionAddr(addr))
	}
	if p.client, err = sipgo.NewClient(ua, options...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.quit)
	return p
}

func (p *sipgoPhone) quit() {
	if p.close != nil {
		p.close()
		p.close = nil
	}
}

// sipgoDialog is what requests in it repeat.
type sipgoDialog struct {
	p                *sipgoPhone
	target           string
	from, to, callID string
	cseq             uint32
}

func (p *sipgoPhone) dialog(uri string) *sipgoDialog {
	return &sipgoDialog{p: p, target: uri, from: "<" + p.aor + ">;tag=" + sip.GenerateTagN(16), to: "<" + uri + ">", callID: sip.GenerateTagN(16) + "@sipgo"}
}

func (d *sipgoDialog) do(method sip.RequestMethod, body []byte, headers ...string) peer.Trace {
	d.p.t.Helper()
	m, err := d.try(method, body, headers...)
	if err != nil {
		d.p.t.Fatalf("sipgo over %s: %s: %v", d.p.transport, method, err)
	}
	return m
}

// try sends a request with the next CSeq and returns its final answer.
func (d *sipgoDialog) try(method sip.RequestMethod, body []byte, headers ...string) (peer.Trace, error) {
	p := d.p
	p.t.Helper()
	var uri sip.Uri
	if err := sip.ParseUri(d.target, &uri); err != nil {
		p.t.Fatal(err)
	}
	d.cseq++
	req := sip.NewRequest(method, uri)
	req.SetTransport(strings.ToUpper(p.transport))
	req.SetDestination(p.server)
	headers = append([]string{
		"From: " + d.from, "To: " + d.to, "Call-ID: " + d.callID, "CSeq: " + strconv.Itoa(int(d.cseq)) + " " + string(method),
		"Contact: " + p.contact,
	}, headers...)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.AppendHeader(parsed(p.t, name, value))
	}
	if body != nil {
		req.SetBody(body)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	resp, err := p.client.Do(ctx, req)
	if err != nil {
		return peer.Trace{}, err
	}
	m := peer.Trace{Raw: []byte(resp.String())}
	if contact := strings.Trim(m.Header("Contact"), "<>"); contact != "" && m.Status() < 300 {
		d.target, d.to = contact, m.Header("To")
	}
	return m, nil
}

// parsed makes the typed header that sipgo looks for.
func parsed(t testing.TB, name, value string) sip.Header {
	t.Helper()
	msg, err := sip.ParseMessage([]byte("OPTIONS sip:a SIP/2.0\r\n" + name + ": " + value + "\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	return msg.(*sip.Request).GetHeader(name)
}

func (p *sipgoPhone) subscribe(uri string) (subscription, peer.Trace) {
	d := p.dialog(uri)
	return d, d.subscribe(600)
}

func (d *sipgoDialog) subscribe(expires int) peer.Trace {
	d.p.t.Helper()
	return d.do(sip.SUBSCRIBE, nil, append([]string{"Event: presence", "Expires: " + strconv.Itoa(expires)}, listHeaders...)...)
}

func (d *sipgoDialog) refresh() peer.Trace     { return d.subscribe(600) }
func (d *sipgoDialog) unsubscribe() peer.Trace { return d.subscribe(0) }

func (d *sipgoDialog) next(timeout time.Duration) peer.Trace {
	p := d.p
	p.t.Helper()
	for deadline := time.After(timeout); ; {
		for i, m := range p.queue {
			if m.Header("Call-ID") == d.callID {
				p.queue = append(p.queue[:i:i], p.queue[i+1:]...)
				return m
			}
		}
		select {
		case m := <-p.notifies:
			p.queue = append(p.queue, m)
		case <-deadline:
			p.t.Fatalf("sipgo over %s: no NOTIFY", p.transport)
		}
	}
}

func (p *sipgoPhone) publish(uri string, body []byte) (publication, peer.Trace) {
	r := &sipgoPublication{d: p.dialog(uri)}
	return r, r.do(body, 600)
}

type sipgoPublication struct {
	d   *sipgoDialog
	tag string
}

func (r *sipgoPublication) do(body []byte, expires int) peer.Trace {
	r.d.p.t.Helper()
	headers := []string{"Event: presence", "Expires: " + strconv.Itoa(expires)}
	if body != nil {
		headers = append(headers, "Content-Type: application/pidf+xml")
	}
	if r.tag != "" {
		headers = append(headers, "SIP-If-Match: "+r.tag)
	}
	m := r.d.do(sip.PUBLISH, body, headers...)
	r.tag = m.Header("SIP-ETag")
	return m
}

func (r *sipgoPublication) modify(body []byte) peer.Trace { return r.do(body, 600) }
func (r *sipgoPublication) remove() peer.Trace            { return r.do(nil, 0) }
