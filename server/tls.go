package server

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"rollcall/sip"
)

// expiryNotice is how long before its end a certificate is warned about.
const expiryNotice = 14 * 24 * time.Hour

// tlsFiles is what the files behind tls_certificate and tls_ca held when they
// were read.
type tlsFiles struct {
	certs []tls.Certificate
	names []string       // of the certificates' files
	roots *x509.CertPool // nil: the system's
	auth  tls.ClientAuthType
}

// readTLS reads the files. fault gets what is wrong with a key's value.
func (c *Config) readTLS(fault func(key, format string, args ...any)) *tlsFiles {
	t := new(tlsFiles)
	var ok bool
	if t.auth, ok = map[string]tls.ClientAuthType{
		"none": tls.NoClientCert, "optional": tls.VerifyClientCertIfGiven, "require": tls.RequireAndVerifyClientCert,
	}[c.TLSClientAuth]; !ok {
		fault("tls_client_auth", "%q is none of none, optional, require", c.TLSClientAuth)
	}
	if err := t.readCertificates(c.TLSCertificate); err != nil {
		fault("tls_certificate", "%v", err)
	}
	if c.TLSCA != "" {
		b, err := os.ReadFile(c.TLSCA)
		if err != nil {
			fault("tls_ca", "%v", err)
		} else if t.roots = x509.NewCertPool(); !t.roots.AppendCertsFromPEM(b) {
			fault("tls_ca", "%s: no certificate in it", c.TLSCA)
		}
	}
	return t
}

// readCertificates reads certificate files, each with its chain, and with its
// private key in it or in the file named next. A comma divides files as well,
// because a flag's values are divided there.
func (t *tlsFiles) readCertificates(items []string) error {
	var name string
	var cert, key []byte
	pair := func() error {
		if cert == nil {
			return nil
		}
		if key == nil {
			return fmt.Errorf("%s: no private key in it, and none named after it", name)
		}
		c, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		t.certs, t.names = append(t.certs, c), append(t.names, name)
		cert, key = nil, nil
		return nil
	}
	for file := range strings.SplitSeq(strings.Join(items, ","), ",") {
		if file = strings.TrimSpace(file); file == "" {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		hasCert, hasKey := false, false
		for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
			hasCert = hasCert || block.Type == "CERTIFICATE"
			hasKey = hasKey || strings.HasSuffix(block.Type, "PRIVATE KEY")
		}
		switch {
		case hasCert:
			if err := pair(); err != nil {
				return err
			}
			if name, cert = file, b; hasKey {
				key = b
			}
		case !hasKey:
			return fmt.Errorf("%s: neither certificate nor private key in it", file)
		case cert == nil || key != nil:
			return fmt.Errorf("%s: a private key without its certificate before it", file)
		default:
			key = b
		}
	}
	return pair()
}

// configs are for connections that are accepted, nil without a certificate, and
// for those that we open.
func (t *tlsFiles) configs() (server, client *tls.Config) {
	client = &tls.Config{RootCAs: t.roots, Certificates: t.certs}
	if len(t.certs) > 0 {
		server = &tls.Config{GetCertificate: t.choose, ClientCAs: t.roots, ClientAuth: t.auth}
	}
	return server, client
}

// choose gives the first certificate for the name that a client asks for, else
// the first one.
func (t *tlsFiles) choose(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := hostKey(h.ServerName)
	for i := range t.certs {
		c := &t.certs[i]
		if name != "" && (slices.Contains(sip.CertificateNames(c.Leaf), name) || c.Leaf.VerifyHostname(name) == nil) {
			return c, nil
		}
	}
	return &t.certs[0], nil
}

// warnExpiry tells of certificates that have ended or will soon.
func (s *Server) warnExpiry(t *tlsFiles, now time.Time) {
	for i, c := range t.certs {
		switch end := c.Leaf.NotAfter; {
		case end.Before(now):
			s.log.Error("certificate has expired", "file", t.names[i], "not_after", end.UTC())
		case end.Sub(now) < expiryNotice:
			s.log.Warn("certificate expires soon", "file", t.names[i], "not_after", end.UTC())
		}
	}
}

// Reload reads the file of default_rules again, for all watchers at once, and
// those of tls_certificate and tls_ca, for connections from now on. When a file is
// bad, what it is about stays as it was.
func (s *Server) Reload() error {
	return errors.Join(s.reloadRules(), s.reloadTLS())
}

// reloadRules reads the default rules again.
func (s *Server) reloadRules() error {
	if s.cfg.DefaultRules == "" {
		return nil
	}
	sets, err := readDefaultRules(s.cfg.DefaultRules)
	if err != nil {
		s.log.Error("default rules not reloaded; the old ones stay", "err", err)
		return err
	}
	s.rules.setDefault(sets)
	s.decideAnew()
	s.log.Info("default rules reloaded", "rules", sets[0].Len())
	return nil
}

func (s *Server) reloadTLS() error {
	var faults []error
	t := s.cfg.readTLS(func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	})
	if err := errors.Join(faults...); err != nil {
		s.log.Error("certificates not reloaded; the old ones stay", "err", err)
		return err
	}
	if n, ok := s.network.(interface {
		SetTLS(server, client *tls.Config)
	}); ok {
		n.SetTLS(t.configs())
	}
	s.warnExpiry(t, time.Now())
	s.log.Info("certificates reloaded", "certificates", len(t.certs))
	return nil
}
