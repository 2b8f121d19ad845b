package e2e

import (
	"strings"
	"testing"
	"time"

	"rollcall/e2e/peer"
	"rollcall/sip/siptest"
)

// TestFederation: servers of two domains speak TLS with each other. Each shows
// a certificate for its domain and wants one by the same authority; the one that
// connects looks for the name of the next hop in the other's (RFC 5922). A
// certificate for another name is refused, which the list says of its member
// and the log of the server.
func TestFederation(t *testing.T) {
	certs, strangers := newCertificates(t), newCertificates(t)
	const list, joe, ann = "sip:team@example.com", "sip:joe@example.com", "sip:ann@example.org"
	dir := documents(t, map[string]string{"rls-services/global/index": service(list, joe, ann)})
	serve := func(t *testing.T, domain, cert string, more ...string) *instance {
		t.Helper()
		return startOn(t, []string{"tls"}, append([]string{
			"--domain", domain, "--store", "memory", "--presence-auth", "open", "--notify-interval", "list=0",
			"--tls-certificate", cert, "--tls-ca", certs.caFile, "--tls-client-auth", "require",
		}, more...)...)
	}
	// Nobody resolves example.org here: the next hop is this machine, by its
	// address or by the one name that it is sure to have.
	good := certs.issue(t, "org.pem", siptest.Leaf{URIs: []string{"sip:example.org", "sip:localhost"}, IPs: []string{"127.0.0.1"}})
	com := certs.issue(t, "com.pem", siptest.Leaf{URIs: []string{"sip:example.com"}})
	for _, c := range []struct {
		name, com, org, hop, state string
		log                        string // of example.com's server, if it is refused
		refused                    string // of example.org's server
	}{
		{"by name", com, good, "sips:localhost:PORT", "active open: In Berlin", "", ""},
		{"by address", com, good, "sip:127.0.0.1:PORT;transport=tls", "active open: In Berlin", "", ""},
		{
			"another name", com, certs.issue(t, "net.pem", siptest.Leaf{URIs: []string{"sip:example.net"}, DNS: []string{"localhost"}}),
			"sips:localhost:PORT", "terminated probation", `the certificate is for [\"example.net\"], not for \"localhost\"`, "bad certificate",
		},
		{
			"a wildcard", com, certs.issue(t, "wild.pem", siptest.Leaf{DNS: []string{"*.localhost", "*"}}),
			"sips:localhost:PORT", "terminated probation", `not for \"localhost\"`, "bad certificate",
		},
		{
			"another authority", com, strangers.issue(t, "org.pem", siptest.Leaf{URIs: []string{"sip:localhost"}}),
			"sips:localhost:PORT", "terminated probation", "unknown authority", "bad certificate",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			org := serve(t, "example.org", c.org)
			port := org.at["tls"][strings.LastIndexByte(org.at["tls"], ':')+1:]
			com := serve(t, "example.com", c.com, "--xcap", dir,
				"--remote", "example.org="+strings.Replace(c.hop, "PORT", port, 1))
			a := peer.StartSofia(t, peer.SofiaOptions{AOR: ann, Server: org.addr})
			pub, m := a.Publish(ann, pidf(ann, "open", "In Berlin"), 600)
			if m.Status != 200 {
				t.Fatalf("PUBLISH: %d", m.Status)
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
			if c.log == "" {
				if m := pub.Modify(pidf(ann, "closed", "Asleep"), 600); m.Status != 200 {
					t.Fatalf("PUBLISH that modifies: %d", m.Status)
				}
				see("active closed: Asleep")
			} else {
				com.WaitLog(t, c.log, 5*time.Second)
				org.WaitLog(t, c.refused, 5*time.Second)
				if n := org.metric("rollcall_dialog_subscriptions"); n != 0 {
					t.Errorf("%v subscriptions at a server that is not who it should be", n)
				}
			}
			a.Quit()
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
		org := serve(t, "example.org", good)
		com := serve(t, "example.com", strangers.issue(t, "com.pem", siptest.Leaf{URIs: []string{"sip:example.com"}}),
			"--remote", "example.org=sips:localhost:"+org.at["tls"][strings.LastIndexByte(org.at["tls"], ':')+1:])
		u := newUA(t, com.addr)
		u.write(u.request(u.dialog("sip:adam@example.com", ann), "SUBSCRIBE", ann, "", "Event: presence", "Expires: 600"))
		org.WaitLog(t, "unknown authority", 10*time.Second)
		if n := org.metric("rollcall_dialog_subscriptions"); n != 0 {
			t.Errorf("%v subscriptions of a stranger", n)
		}
	})
}
