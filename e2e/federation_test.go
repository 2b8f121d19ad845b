package e2e

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"rollcall/e2e/peer"
	"rollcall/sip/siptest"
)

// startDNS serves a zone on loopback.
func startDNS(t testing.TB, zone string) string {
	t.Helper()
	records := make(map[dns.Question][]dns.RR)
	for p := dns.NewZoneParser(strings.NewReader(zone), ".", ""); ; {
		rr, ok := p.Next()
		if !ok {
			if p.Err() != nil {
				t.Fatal(p.Err())
			}
			break
		}
		q := dns.Question{Name: rr.Header().Name, Qtype: rr.Header().Rrtype, Qclass: dns.ClassINET}
		records[q] = append(records[q], rr)
	}
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	up := make(chan struct{})
	s := &dns.Server{PacketConn: conn, NotifyStartedFunc: func() { close(up) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		r.Answer = records[dns.Question{Name: strings.ToLower(q.Question[0].Name), Qtype: q.Question[0].Qtype, Qclass: dns.ClassINET}]
		w.WriteMsg(r)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ActivateAndServe()
	}()
	<-up
	t.Cleanup(func() {
		s.Shutdown()
		<-done
	})
	return conn.LocalAddr().String()
}

// TestFederation: the servers of two domains find each other in DNS (RFC 3263)
// and speak TLS. The one that connects looks for the other's domain in its
// certificate, not for the host that DNS named (RFC 5922); the other believes
// what it is told about users of the domain of who connected, and about nobody
// else. What fails is in the list and in the log.
func TestFederation(t *testing.T) {
	certs, strangers := newCertificates(t), newCertificates(t)
	const list, joe, ann = "sip:team@example.com", "sip:joe@example.com", "sip:ann@example.org"
	dir := documents(t, map[string]string{"rls-services/global/index": service(list, joe, ann)})
	serve := func(t *testing.T, cert string, args ...string) *instance {
		t.Helper()
		return startOn(t, []string{"tls"}, append([]string{"--store", "memory", "--presence-auth", "open", "--notify-interval", "list=0",
			"--tls-certificate", cert, "--tls-ca", certs.caFile}, args...)...)
	}
	com := certs.issue(t, "com.pem", siptest.Leaf{URIs: []string{"sip:example.com"}})
	org := certs.issue(t, "org.pem", siptest.Leaf{URIs: []string{"sip:example.org", "sip:localhost"}, IPs: []string{"127.0.0.1"}})
	for _, c := range []struct {
		name, com, org string
		remote         string // next hop; empty: DNS
		state          string
		log, refused   string // of example.com's server and of example.org's, when that is not "active"
	}{
		{name: "DNS", com: com, org: org, state: "active open: In Berlin"},
		{name: "a next hop's name", com: com, org: org, remote: "sips:localhost:PORT", state: "active open: In Berlin"},
		{name: "a next hop's address", com: com, org: org, remote: "sip:127.0.0.1:PORT;transport=tls", state: "active open: In Berlin"},
		{
			name: "a certificate for the host in DNS", com: com, org: certs.issue(t, "sip.pem", siptest.Leaf{DNS: []string{"sip.example.org"}}),
			state: "terminated probation", log: `the certificate is for [\"sip.example.org\"], not for \"example.org\"`, refused: "bad certificate",
		},
		{
			name: "URIs before names", com: com, org: certs.issue(t, "net.pem", siptest.Leaf{URIs: []string{"sip:example.net"}, DNS: []string{"example.org"}}),
			state: "terminated probation", log: `the certificate is for [\"example.net\"], not for \"example.org\"`, refused: "bad certificate",
		},
		{
			name: "a wildcard", com: com, org: certs.issue(t, "wild.pem", siptest.Leaf{DNS: []string{"*.org", "*"}}),
			state: "terminated probation", log: `not for \"example.org\"`, refused: "bad certificate",
		},
		{
			name: "another authority", com: com, org: strangers.issue(t, "org.pem", siptest.Leaf{URIs: []string{"sip:example.org"}}),
			state: "terminated probation", log: "unknown authority", refused: "bad certificate",
		},
		{
			name: "who connects is another domain", com: certs.issue(t, "other.pem", siptest.Leaf{URIs: []string{"sip:example.net"}}), org: org,
			state: "terminated rejected",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Nobody is trusted by address; ann's phone shows her domain's certificate.
			org := serve(t, c.org, "--domain", "example.org", "--trust", "192.0.2.1", "--tls-client-auth", "require")
			port := org.at["tls"][strings.LastIndexByte(org.at["tls"], ':')+1:]
			args := []string{"--domain", "example.com", "--xcap", dir}
			if c.remote != "" {
				args = append(args, "--remote", "example.org="+strings.Replace(c.remote, "PORT", port, 1))
			} else {
				args = append(args, "--dns", startDNS(t, `
example.org. 60 IN NAPTR 10 10 "s" "SIPS+D2T" "" _sips._tcp.example.org.
_sips._tcp.example.org. 60 IN SRV 1 1 `+port+` sip.example.org.
sip.example.org. 60 IN A 127.0.0.1
`))
			}
			com := serve(t, c.com, args...)
			phone := peer.StartOpenSSL(t, peer.OpenSSLOptions{
				Server: org.at["tls"], Cert: certs.issue(t, "ann.pem", siptest.Leaf{URIs: []string{"sip:example.org"}}),
			})
			phone.WaitLog(t, "CONNECTION ESTABLISHED", 10*time.Second)
			a := &opensslPhone{OpenSSL: phone, t: t, aor: ann}
			pub, m := a.publish(ann, pidf(ann, "open", "In Berlin"))
			if m.Status() != 200 {
				t.Fatalf("TL-01: PUBLISH: %s", m.Raw)
			}
			u := newUA(t, com.addr)
			d := u.dialog("sip:adam@example.com", list)
			if m := u.subscribe(d, 600, listHeaders...); m.Status() != 200 {
				t.Fatalf("SUBSCRIBE: %s", m.Raw)
			}
			v := newView(t, list)
			see := func(state string) {
				t.Helper()
				for deadline := time.Now().Add(10 * time.Second); !v.holds(map[string]string{joe: "active closed", ann: state}); {
					n, ok := u.notify(d, time.Until(deadline))
					if !ok {
						t.Fatalf("the list is %v, want %s %s\n%s", v.state, ann, state, com.Log())
					}
					v.apply(n)
				}
			}
			see(c.state)
			if strings.HasPrefix(c.state, "active") {
				if m := pub.modify(pidf(ann, "closed", "Asleep")); m.Status() != 200 {
					t.Fatalf("PUBLISH that modifies: %s", m.Raw)
				}
				see("active closed: Asleep")
			} else {
				com.WaitLog(t, c.log, 5*time.Second)
				org.WaitLog(t, c.refused, 5*time.Second)
				if n := org.metric("rollcall_dialog_subscriptions"); n != 0 {
					t.Errorf("%v subscriptions between servers one of which is not who it should be", n)
				}
			}
			u.subscribe(d, 0)
			for end := time.Now().Add(10 * time.Second); ; {
				n, ok := u.notify(d, time.Until(end))
				if state, _ := n.SubscriptionState(); !ok || state == "terminated" {
					break
				}
			}
			com.idle()
			org.idle()
		})
	}

	t.Run("a stranger connects", func(t *testing.T) {
		org := serve(t, org, "--domain", "example.org", "--tls-client-auth", "require")
		com := serve(t, strangers.issue(t, "com.pem", siptest.Leaf{URIs: []string{"sip:example.com"}}), "--domain", "example.com",
			"--remote", "example.org=sips:localhost:"+org.at["tls"][strings.LastIndexByte(org.at["tls"], ':')+1:])
		u := newUA(t, com.addr)
		u.write(u.request(u.dialog("sip:adam@example.com", ann), "SUBSCRIBE", ann, "", "Event: presence", "Expires: 600"))
		org.WaitLog(t, "unknown authority", 10*time.Second)
		if n := org.metric("rollcall_dialog_subscriptions"); n != 0 {
			t.Errorf("%v subscriptions of a stranger", n)
		}
	})
}
