package sip

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

type tlsConfigs struct{ server, client *tls.Config }

// SetTLS replaces ServerTLS and ClientTLS for the connections from now on. A
// nil server configuration refuses new ones. TLS before 1.2 is never spoken,
// and every server is verified (RFC 5922), whatever the configuration says.
func (e *Endpoint) SetTLS(server, client *tls.Config) {
	if client == nil {
		client = new(tls.Config)
	}
	e.tls.Store(&tlsConfigs{atLeast12(server), atLeast12(client)})
}

func atLeast12(c *tls.Config) *tls.Config {
	if c != nil {
		c = c.Clone()
		c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	}
	return c
}

// domainOf is whom a certificate must name on a connection that we open.
func domainOf(f Flow) string {
	if f.Domain == "" {
		return f.Remote.Addr().String()
	}
	return hostText(f.Domain)
}

// hostText is a host in one spelling.
func hostText(h string) string {
	return strings.TrimSuffix(strings.ToLower(strings.Trim(h, "[]")), ".")
}

// secure does the TLS handshake on an open connection.
func (c *streamConn) secure(raw net.Conn) (net.Conn, error) {
	var tc *tls.Conn
	configs := c.e.tls.Load()
	switch {
	case !c.accepted:
		cfg := configs.client.Clone()
		domain := domainOf(c.flow)
		cfg.ServerName = domain
		// The chain is verified below: the library would compare names by the
		// rules of HTTP.
		cfg.InsecureSkipVerify = true
		also := cfg.VerifyConnection
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			if err := verifyServer(&cs, cfg, domain); err != nil || also == nil {
				return err
			}
			return also(cs)
		}
		tc = tls.Client(raw, cfg)
	case configs.server == nil:
		return raw, errors.New("sip: no certificate to accept TLS with")
	default:
		tc = tls.Server(raw, configs.server)
	}
	raw.SetDeadline(time.Now().Add(c.e.opt.HandshakeTimeout))
	if err := tc.Handshake(); err != nil {
		c.e.stats.TLSHandshakeErrors.Add(1)
		if n, ok := c.e.limit.Allow(time.Now()); ok {
			c.e.opt.Log.Warn("TLS handshake failed", "remote", c.flow.Remote.String(), "domain", c.flow.Domain, "err", err, "suppressed", n)
		}
		return raw, err
	}
	raw.SetDeadline(time.Time{})
	if cs := tc.ConnectionState(); len(cs.PeerCertificates) > 0 && (!c.accepted || len(cs.VerifiedChains) > 0) {
		c.names = CertificateNames(cs.PeerCertificates[0])
	}
	return tc, nil
}

// verifyServer checks the chain of a server and that it is who we meant to
// reach (RFC 5922 sections 7.1 to 7.3). An address, which that RFC does not
// know, is looked for in the certificate's addresses too.
func verifyServer(cs *tls.ConnectionState, cfg *tls.Config, domain string) error {
	leaf := cs.PeerCertificates[0]
	opt := x509.VerifyOptions{Roots: cfg.RootCAs, Intermediates: x509.NewCertPool()}
	if cfg.Time != nil {
		opt.CurrentTime = cfg.Time()
	}
	for _, c := range cs.PeerCertificates[1:] {
		opt.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(opt); err != nil {
		return err
	}
	names := CertificateNames(leaf)
	if slices.Contains(names, domain) {
		return nil
	}
	if a, err := netip.ParseAddr(domain); err == nil {
		for _, ip := range leaf.IPAddresses {
			if b, ok := netip.AddrFromSlice(ip); ok && b.Unmap() == a.Unmap() {
				return nil
			}
		}
	}
	return fmt.Errorf("sip: the certificate is for %q, not for %q", names, domain)
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// CertificateNames are the SIP domains that a certificate, which somebody has
// verified, stands for (RFC 5922 section 7.1), in lower case: the hosts of sip
// URIs without user part among its alternative names; its DNS names if there is
// no such URI; the common name if it has no alternative names at all. Wildcards
// are left out: they match nothing (section 7.2). Compare whole names.
func CertificateNames(c *x509.Certificate) []string {
	var names []string
	add := func(host string) {
		if host = hostText(host); host != "" && !strings.ContainsAny(host, "* @/") && !slices.Contains(names, host) {
			names = append(names, host)
		}
	}
	sip := false
	for _, u := range c.URIs {
		text := u.String()
		if u.Scheme != "sip" || strings.Contains(text, "@") {
			continue
		}
		if p, err := ParseURI(text); err == nil {
			sip = true
			add(p.Host)
		}
	}
	if sip {
		return names
	}
	for _, d := range c.DNSNames {
		add(d)
	}
	if !slices.ContainsFunc(c.Extensions, func(x pkix.Extension) bool { return x.Id.Equal(oidSubjectAltName) }) {
		add(c.Subject.CommonName)
	}
	return names
}
