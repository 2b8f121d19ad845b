package e2e

import (
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"

	"rollcall/e2e/peer"
)

// opensslPhone writes messages by hand on a TLS connection of openssl's.
type opensslPhone struct {
	*peer.OpenSSL
	t     testing.TB
	aor   string
	n     int
	queue []peer.Trace // NOTIFYs not asked for yet
}

func startOpenSSL(t testing.TB, in *instance, transport, aor string, certs certificates) phone {
	return dialOpenSSL(t, in, aor, peer.OpenSSLOptions{Name: "example.com", CA: certs.caFile})
}

func dialOpenSSL(t testing.TB, in *instance, aor string, o peer.OpenSSLOptions) *opensslPhone {
	t.Helper()
	o.Server = in.at["tls"]
	p := &opensslPhone{OpenSSL: peer.StartOpenSSL(t, o), t: t, aor: aor}
	p.WaitVerified(10 * time.Second)
	return p
}

// rawDialog is what requests in it repeat.
type rawDialog struct {
	p                       *opensslPhone
	uri, target, callID, to string
	cseq                    int
}

func (p *opensslPhone) dialog(uri string) *rawDialog {
	return &rawDialog{p: p, uri: uri, target: uri, callID: rand.Text(), to: "<" + uri + ">"}
}

// do sends a request with the next CSeq and returns its final answer.
func (d *rawDialog) do(method, body string, headers ...string) peer.Trace {
	p := d.p
	p.t.Helper()
	d.cseq++
	p.n++
	head := []string{
		method + " " + d.target + " SIP/2.0", fmt.Sprintf("Via: SIP/2.0/TLS client.invalid;rport;branch=z9hG4bK%s%d", d.callID, p.n), "Max-Forwards: 70",
		"From: <" + p.aor + ">;tag=t" + d.callID, "To: " + d.to, "Call-ID: " + d.callID, fmt.Sprintf("CSeq: %d %s", d.cseq, method),
		"Contact: <sip:phone@client.invalid;transport=tls>",
	}
	head = append(append(head, headers...), fmt.Sprintf("Content-Length: %d", len(body)), "", body)
	p.Send([]byte(strings.Join(head, "\r\n")))
	for deadline := time.Now().Add(10 * time.Second); ; {
		m, ok := p.read(time.Until(deadline))
		if !ok {
			p.t.Fatalf("no answer to %s", head[0])
		}
		if m.Status() >= 200 && m.Header("Call-ID") == d.callID && m.CSeq() == uint32(d.cseq) {
			if contact := strings.Trim(m.Header("Contact"), "<>"); contact != "" && m.Status() < 300 {
				d.target, d.to = contact, m.Header("To")
			}
			return m
		}
	}
}

// read gets one message and answers it when it is a NOTIFY.
func (p *opensslPhone) read(timeout time.Duration) (peer.Trace, bool) {
	m, ok := p.Message(timeout)
	if ok && m.IsRequest("NOTIFY") {
		p.Send(answer(m, "200 OK"))
		p.queue = append(p.queue, m)
	}
	return m, ok
}

func (p *opensslPhone) subscribe(uri string) (subscription, peer.Trace) {
	d := p.dialog(uri)
	return d, d.subscribe(600)
}

func (d *rawDialog) subscribe(expires int) peer.Trace {
	return d.do("SUBSCRIBE", "", append([]string{"Event: presence", fmt.Sprintf("Expires: %d", expires)}, listHeaders...)...)
}

func (d *rawDialog) refresh() peer.Trace     { return d.subscribe(600) }
func (d *rawDialog) unsubscribe() peer.Trace { return d.subscribe(0) }

func (d *rawDialog) next(timeout time.Duration) peer.Trace {
	p := d.p
	p.t.Helper()
	for deadline := time.Now().Add(timeout); ; {
		for i, m := range p.queue {
			if m.Header("Call-ID") == d.callID {
				p.queue = append(p.queue[:i:i], p.queue[i+1:]...)
				return m
			}
		}
		if _, ok := p.read(time.Until(deadline)); !ok {
			p.t.Fatal("openssl: no NOTIFY")
		}
	}
}

func (p *opensslPhone) publish(uri string, body []byte) (publication, peer.Trace) {
	r := &rawPublication{d: p.dialog(uri)}
	return r, r.do(string(body), 600)
}

type rawPublication struct {
	d   *rawDialog
	tag string
}

func (r *rawPublication) do(body string, expires int) peer.Trace {
	r.d.p.t.Helper()
	headers := []string{"Event: presence", fmt.Sprintf("Expires: %d", expires)}
	if body != "" {
		headers = append(headers, "Content-Type: application/pidf+xml")
	}
	if r.tag != "" {
		headers = append(headers, "SIP-If-Match: "+r.tag)
	}
	m := r.d.do("PUBLISH", body, headers...)
	r.tag = m.Header("SIP-ETag")
	return m
}

func (r *rawPublication) modify(body []byte) peer.Trace { return r.do(string(body), 600) }
func (r *rawPublication) remove() peer.Trace            { return r.do("", 0) }

func (p *opensslPhone) quit() { p.Stop() }

// TestTLSHandshake has openssl judge the handshake: the certificate is verified
// by authority and name, nothing before TLS 1.2 is spoken, a certificate is
// asked for when that is set; then OPTIONS and a ping (RFC 5626).
func TestTLSHandshake(t *testing.T) {
	certs := newCertificates(t)
	base := []string{"--domain", "example.com", "--store", "memory", "--presence-auth", "open", "--tls-certificate", certs.server, "--tls-ca", certs.caFile}
	in := startOn(t, []string{"tls"}, base...)
	o := peer.OpenSSLOptions{Name: "example.com", CA: certs.caFile}
	for _, version := range []string{"1_2", "1_3"} {
		o := o
		o.Args = []string{"-tls" + version}
		p := dialOpenSSL(t, in, "sip:adam@example.com", o)
		if want := "Protocol version: TLSv" + strings.Replace(version, "_", ".", 1); !strings.Contains(p.Log(), want) {
			t.Errorf("no %q in\n%s", want, p.Log())
		}
		if m := p.dialog("sip:example.com").do("OPTIONS", ""); m.Status() != 200 || !strings.Contains(m.Header("Allow"), "SUBSCRIBE") {
			t.Errorf("OPTIONS over TLS %s:\n%s", version, m.Raw)
		}
		p.Send([]byte("\r\n\r\n"))
		if m, ok := p.Message(5 * time.Second); !ok || m.Raw != nil {
			t.Errorf("no pong but %v %q", ok, m.Raw)
		}
		p.Stop()
	}

	for _, c := range []struct {
		name  string
		args  []string
		other string // name to verify
		log   string
	}{
		{"TLS 1.1", []string{"-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"}, "", "alert protocol version"},
		{"another name", nil, "example.net", "hostname mismatch"},
	} {
		o := o
		o.Server, o.Args = in.at["tls"], c.args
		if c.other != "" {
			o.Name = c.other
		}
		p := peer.StartOpenSSL(t, o)
		if code := p.Wait(t, 10*time.Second); code == 0 || !strings.Contains(p.Log(), c.log) {
			t.Errorf("%s: exit %d, log\n%s", c.name, code, p.Log())
		}
	}

	in.Stop()
	in = startOn(t, []string{"tls"}, append(base, "--tls-client-auth", "require")...)
	o.Cert = certs.client
	p := dialOpenSSL(t, in, "sip:adam@example.com", o)
	d := p.dialog("sip:joe@example.com")
	if m := d.subscribe(600); m.Status() != 200 {
		t.Errorf("SUBSCRIBE with a certificate:\n%s", m.Raw)
	}
	d.next(5 * time.Second)
	d.unsubscribe()
	d.next(5 * time.Second)
	d = p.dialog("sips:joe@example.com")
	if m := d.subscribe(600); m.Status() != 200 || !strings.HasPrefix(m.Header("Contact"), "<sips:") {
		t.Errorf("CORE-10: SUBSCRIBE to a sips URI:\n%s", m.Raw)
	}
	if n := d.next(5 * time.Second); !strings.HasPrefix(n.Header("Contact"), "<sips:") {
		t.Errorf("CORE-10: NOTIFY to who subscribed to a sips URI:\n%s", n.Raw)
	}
	d.unsubscribe()
	d.next(5 * time.Second)
	strangers := newCertificates(t)
	for name, cert := range map[string]string{"none": "", "another authority's": strangers.client} {
		o := o
		o.Server, o.Cert = in.at["tls"], cert
		// With TLS 1.3 a client knows only when it reads that it was refused.
		p := peer.StartOpenSSL(t, o)
		if p.Wait(t, 10*time.Second); !strings.Contains(p.Log(), "alert") {
			t.Errorf("client certificate %s: log\n%s", name, p.Log())
		}
	}
	in.idle()
}

// TestPhonesVerify: phones that know another authority do not speak to the
// server, so that TestPeers proves that they verified it.
func TestPhonesVerify(t *testing.T) {
	certs, strangers := newCertificates(t), newCertificates(t)
	in := startOn(t, []string{"tls", "wss"}, "--domain", "example.com", "--store", "memory", "--tls-certificate", certs.server)
	s := peer.StartSofia(t, peer.SofiaOptions{AOR: "sip:adam@example.com", Server: in.at["tls"], Transport: "tls", Certificates: strangers.sofia})
	s.TrySubscribe(peer.SofiaSubscribe{URI: "sip:joe@example.com"})
	s.WaitLog(t, "unable to get local issuer certificate", 10*time.Second)
	for _, transport := range []string{"tls", "wss"} {
		p := startSipgo(t, in, transport, "sip:adam@example.com", strangers).(*sipgoPhone)
		if m, err := p.dialog("sip:joe@example.com").try(sip.SUBSCRIBE, nil, "Event: presence"); err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("sipgo over %s: %v\n%s", transport, err, m.Raw)
		}
	}
	in.clean()
}
