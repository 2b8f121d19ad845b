package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rollcall/e2e/peer"
	"rollcall/sip/siptest"
)

// phone is a user agent of somebody else's making.
type phone interface {
	subscribe(uri string) (subscription, peer.Trace)
	publish(uri string, body []byte) (publication, peer.Trace)
	quit()
}

type subscription interface {
	// next waits for the next NOTIFY, in the order that they came in.
	next(timeout time.Duration) peer.Trace
	refresh() peer.Trace
	unsubscribe() peer.Trace
}

type publication interface {
	modify(body []byte) peer.Trace
	remove() peer.Trace
}

// peerProgram is a program, and the transports that it is tried over.
type peerProgram struct {
	name       string
	transports []string
	start      func(t testing.TB, in *instance, transport, aor string, certs certificates) phone
}

var peerPrograms = []peerProgram{
	{"Sofia-SIP", []string{"udp", "tcp", "tls"}, startSofia},
	{"sipgo", []string{"udp", "tcp", "tls", "ws", "wss"}, startSipgo},
	{"SIP.js", []string{"ws", "wss"}, startSIPJS},
	{"openssl", []string{"tls"}, startOpenSSL},
}

// certificates are an authority and certificates by it, as the programs want
// them.
type certificates struct {
	ca     *siptest.CA
	dir    string
	caFile string
	server string // certificate and key in one file, for example.com, localhost and 127.0.0.1
	client string // the same for a client
	sofia  string // a folder with cafile.pem and agent.pem
}

func newCertificates(t testing.TB) certificates {
	t.Helper()
	c := certificates{ca: siptest.NewCA(t), dir: t.TempDir()}
	put(t, c.dir, "cafile.pem", string(c.ca.PEM()))
	c.caFile, c.sofia = filepath.Join(c.dir, "cafile.pem"), c.dir
	c.server = c.issue(t, "server.pem", siptest.Leaf{CommonName: "127.0.0.1", DNS: []string{"example.com", "localhost"}, IPs: []string{"127.0.0.1"}})
	c.client = c.issue(t, "agent.pem", siptest.Leaf{CommonName: "phone"})
	return c
}

// issue writes a certificate and its key into one file.
func (c certificates) issue(t testing.TB, name string, l siptest.Leaf) string {
	t.Helper()
	cert, key := siptest.PEM(t, c.ca.Issue(t, l))
	put(t, c.dir, name, string(cert)+string(key))
	return filepath.Join(c.dir, name)
}

// TestPeers has each program do everything that a phone does with presence:
// subscribe to a presentity and to a list, be notified, refresh, unsubscribe;
// publish, modify, take back. Together with the tests of single programs it is
//
//	           watches             publishes           as well
//	Sofia-SIP  udp tcp tls         udp tcp tls         TestListEndToEnd, TestKamailioMember
//	sipgo      udp tcp tls ws wss  udp tcp tls ws wss
//	SIP.js     ws wss              ws wss              TestBrowserGoesAway, TestWebPages
//	openssl    tls                 tls                 TestTLSHandshake, with certificates of clients
//	SIPp       udp tcp             udp tcp             TestSIPp, TestSIPpWatchesRFCLists: no TLS in Debian's
//	baresip    udp tcp tls         udp tcp tls         TestBaresip, TestListEndToEnd: knows no lists
func TestPeers(t *testing.T) {
	certs := newCertificates(t)
	docs := map[string]string{}
	user := func(p peerProgram, transport string) string {
		return strings.ToLower(strings.ReplaceAll(p.name, ".", "")) + "-" + transport
	}
	for _, p := range peerPrograms {
		for _, transport := range p.transports {
			u := user(p, transport)
			docs["rls-services/users/sip:"+u+"-watcher@example.com/index"] = service("sip:"+u+"-friends@example.com", "sip:"+u+"@example.com", "sip:nancy@example.com")
		}
	}
	in := startOn(t, []string{"tls", "ws", "wss"}, "--domain", "example.com", "--store", "sqlite:"+t.TempDir()+"/p.db", "--presence-auth", "open",
		"--notify-interval", "presence=0", "--notify-interval", "list=0", "--xcap", documents(t, docs), "--tls-certificate", certs.server, "--tls-ca", certs.caFile)
	for _, p := range peerPrograms {
		for _, transport := range p.transports {
			t.Run(p.name+" "+transport, func(t *testing.T) {
				u := "sip:" + user(p, transport)
				exchange(t, u, p.start(t, in, transport, u+"-watcher@example.com", certs), p.start(t, in, transport, u+"@example.com", certs))
				in.t = t
				in.idle()
			})
		}
	}
	in.t = t
	in.clean()
}

// watch reads the NOTIFYs of one subscription.
type watch struct {
	t testing.TB
	subscription
	cseq uint32
}

func (w *watch) next(timeout time.Duration) peer.Trace {
	w.t.Helper()
	n := w.subscription.next(timeout)
	if w.cseq != 0 && n.CSeq() != w.cseq+1 {
		w.t.Errorf("CORE-12: CSeq %d after %d", n.CSeq(), w.cseq)
	}
	w.cseq = n.CSeq()
	return n
}

// until reads NOTIFYs to one with that state and document.
func (w *watch) until(state, document string) peer.Trace {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		n := w.next(time.Until(deadline))
		if s, _ := n.SubscriptionState(); s == state && (document == "" || describe(n.Body()) == document) {
			return n
		}
	}
}

func exchange(t *testing.T, user string, watcher, publisher phone) {
	uri, list := user+"@example.com", user+"-friends@example.com"
	ok := func(what string, m peer.Trace) peer.Trace {
		t.Helper()
		if m.Status() != 200 {
			t.Fatalf("%s: %s", what, m.Raw)
		}
		return m
	}
	sub, m := watcher.subscribe(uri)
	ok("SUBSCRIBE", m)
	direct := &watch{t: t, subscription: sub}
	if n := direct.until("active", "closed"); n.ContentType() != "application/pidf+xml" || n.Header("Event") != "presence" {
		t.Errorf("first NOTIFY:\n%s", n.Raw)
	}
	sub, m = watcher.subscribe(list)
	if ok("SUBSCRIBE to the list", m).Header("Require") != "eventlist" {
		t.Errorf("RL-01: %s", m.Raw)
	}
	members := &watch{t: t, subscription: sub}
	v := newView(t, list)
	see := func(state string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); v.next == 0 || !v.holds(map[string]string{uri: state, "sip:nancy@example.com": "active closed"}); {
			v.apply(members.next(time.Until(deadline)))
		}
	}
	see("active closed")

	pub, m := publisher.publish(uri, pidf(uri, "open", "one"))
	tag := ok("PUBLISH", m).Header("SIP-ETag")
	direct.until("active", "open: one")
	see("active open: one")
	if got := ok("PUBLISH that modifies", pub.modify(pidf(uri, "closed", "two"))).Header("SIP-ETag"); got == "" || got == tag {
		t.Errorf("PUB-04: entity-tag %q after %q", got, tag)
	}
	peer.ValidateXML(t, "presence-all", direct.until("active", "closed: two").Body())
	see("active closed: two")

	ok("refresh", direct.refresh())
	direct.until("active", "closed: two")
	ok("refresh of the list", members.refresh())
	if v.apply(members.next(10 * time.Second)); !v.full || v.state[uri] != "active closed: two" {
		t.Errorf("RL-14: after a refresh full %v, %v", v.full, v.state)
	}

	ok("PUBLISH that removes", pub.remove())
	direct.until("active", "closed")
	see("active closed")
	ok("unsubscribe", direct.unsubscribe())
	if n := direct.until("terminated", ""); !strings.Contains(n.Header("Subscription-State"), "reason=timeout") {
		t.Errorf("EV-09: Subscription-State %q", n.Header("Subscription-State"))
	}
	ok("unsubscribe from the list", members.unsubscribe())
	n := members.until("terminated", "")
	v.apply(n)
	publisher.quit()
	watcher.quit()
}

// Sofia-SIP as a phone.
type sofiaPhone struct{ *peer.Sofia }

func startSofia(t testing.TB, in *instance, transport, aor string, certs certificates) phone {
	o := peer.SofiaOptions{AOR: aor, Server: in.at[transport], Transport: transport}
	if transport == "tls" {
		o.Certificates = certs.sofia
	}
	return sofiaPhone{peer.StartSofia(t, o)}
}

func (p sofiaPhone) subscribe(uri string) (subscription, peer.Trace) {
	s, a := p.Subscribe(peer.SofiaSubscribe{URI: uri, Expires: 600})
	return sofiaSubscription{s}, a.Message
}

func (p sofiaPhone) publish(uri string, body []byte) (publication, peer.Trace) {
	pub, a := p.Publish(uri, body, 600)
	return sofiaPublication{pub}, a.Message
}

func (p sofiaPhone) quit() { p.Quit() }

type sofiaSubscription struct{ s *peer.SofiaSubscription }

func (s sofiaSubscription) next(timeout time.Duration) peer.Trace {
	return s.s.WaitNotify(nil, timeout)
}
func (s sofiaSubscription) refresh() peer.Trace     { return s.s.Refresh(600).Message }
func (s sofiaSubscription) unsubscribe() peer.Trace { return s.s.Unsubscribe().Message }

type sofiaPublication struct{ p *peer.SofiaPublication }

func (p sofiaPublication) modify(body []byte) peer.Trace { return p.p.Modify(body, 600).Message }
func (p sofiaPublication) remove() peer.Trace            { return p.p.Remove().Message }

// SIP.js as a phone.
type sipjsPhone struct {
	*peer.SIPJS
	t testing.TB
}

func startSIPJS(t testing.TB, in *instance, transport, aor string, certs certificates) phone {
	o := peer.SIPJSOptions{AOR: aor, URL: transport + "://" + in.at[transport]}
	if transport == "wss" {
		o.CA = certs.caFile
	}
	return sipjsPhone{peer.StartSIPJS(t, o), t}
}

func (p sipjsPhone) subscribe(uri string) (subscription, peer.Trace) {
	s, m := p.Subscribe(peer.SIPJSSubscribe{URI: uri})
	return sipjsSubscription{s, p.t}, m
}

func (p sipjsPhone) publish(uri string, body []byte) (publication, peer.Trace) {
	pub, m := p.Publish(uri, body, 600)
	return sipjsPublication{pub}, m
}

func (p sipjsPhone) quit() {
	p.t.Helper()
	for _, m := range p.Trace() {
		// Nobody can connect to what its Via and Contact name.
		if !m.Sent || m.Status() != 0 {
			continue
		}
		if !strings.Contains(m.Header("Via"), ".invalid") {
			p.t.Errorf("SIP.js is not what this test is about: it sent\n%s", m.Raw)
		}
	}
	p.Quit()
}

type sipjsSubscription struct {
	*peer.SIPJSSubscription
	t testing.TB
}

func (s sipjsSubscription) next(timeout time.Duration) peer.Trace {
	s.t.Helper()
	n := s.WaitNotify(nil, timeout)
	if n.Socket != 1 {
		s.t.Errorf("NOTIFY on connection %d, want that of the SUBSCRIBE", n.Socket)
	}
	return n.Trace
}
func (s sipjsSubscription) refresh() peer.Trace     { return s.Refresh() }
func (s sipjsSubscription) unsubscribe() peer.Trace { return s.Unsubscribe() }

type sipjsPublication struct{ *peer.SIPJSPublication }

func (p sipjsPublication) modify(body []byte) peer.Trace { return p.Modify(body) }
func (p sipjsPublication) remove() peer.Trace            { return p.Remove() }
