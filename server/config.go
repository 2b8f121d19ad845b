package server

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/pa/policy"
	"rollcall/sip"
	"rollcall/sip/auth"
)

// Config is everything an operator can set. Each field is a flag of `rollcall
// serve` and a key of the configuration file. Default gives the defaults.
type Config struct {
	Listen         []string          `yaml:"listen"`          // TRANSPORT:HOST:PORT
	TLSCertificate []string          `yaml:"tls_certificate"` // CERT.pem[,KEY.pem]; the first is the default, others by SNI
	TLSCA          string            `yaml:"tls_ca"`          // file of the authorities that peers are verified by; "": the system's
	TLSClientAuth  string            `yaml:"tls_client_auth"` // certificates of those who connect: none, optional, require
	WSOrigin       []string          `yaml:"ws_origin"`       // pages that may open a WebSocket, besides those of the host they ask
	HTTP           string            `yaml:"http"`            // HOST:PORT of the admin API; "" for none
	Domain         []string          `yaml:"domain"`          // domains whose presentities are local
	Store          string            `yaml:"store"`           // memory, sqlite:PATH, postgres://...
	Durability     string            `yaml:"durability"`      // memory, write-back, write-through
	Sync           string            `yaml:"sync"`            // normal or full
	Users          string            `yaml:"users"`           // store, file:PATH, sqlite:PATH, postgres://...; "": store
	XCAP           []string          `yaml:"xcap"`            // directory, http(s):// root, or store; first match wins
	XCAPServer     *bool             `yaml:"xcap_server"`     // serve XCAP out of the store; nil: when xcap has store
	XCAPRoot       []string          `yaml:"xcap_root"`       // further root URIs that mean our own documents
	PresenceAuth   string            `yaml:"presence_auth"`   // allow, confirm, block, open
	DefaultRules   string            `yaml:"default_rules"`   // file of rules for presentities that have no document
	PackageAuth    map[string]string `yaml:"package_auth"`    // what decides by package: rules, owner, open
	MessageAuth    string            `yaml:"message_auth"`    // MESSAGE to those without im-rules: allow, block
	Trust          []string          `yaml:"trust"`           // peers whose asserted identity is believed: CIDRs, tls:NAME
	Digest         []string          `yaml:"digest"`          // hashes that users log in with, most preferred first
	RemoteAuth     map[string]string `yaml:"remote_auth"`     // USER:PASSWORD by remote domain, for its servers' challenges
	DNS            []string          `yaml:"dns"`             // name servers as HOST:PORT; none: those of resolv.conf
	Remote         map[string]string `yaml:"remote"`          // next hop by remote domain
	NotifyInterval map[string]string `yaml:"notify_interval"` // duration by package, or "list"
	Packages       map[string]string `yaml:"packages"`        // media types by further event package, whose bodies are opaque
	RecoverySpread string            `yaml:"recovery_spread"` // duration over which NOTIFYs after a crash are spread
	ExpiresJitter  int               `yaml:"expires_jitter"`  // per cent that may be taken off a granted expiry
	RatePerSource  int               `yaml:"rate_per_source"` // requests a second from one address that is not in Trust; 0 for no limit
	RateTotal      int               `yaml:"rate_total"`      // requests a second from all addresses; 0 for no limit
	LogLevel       string            `yaml:"log_level"`       // debug, info, warn, error
}

// maxRate bounds both rates; more is no limit.
const maxRate = 1_000_000

// maxSpread bounds how long a watcher may wait for what it missed in a crash.
const maxSpread = 10 * time.Minute

// Default is the configuration of a server that was told nothing.
func Default() Config {
	return Config{
		Listen: []string{"udp:127.0.0.1:5060", "tcp:127.0.0.1:5060"}, HTTP: "127.0.0.1:8080",
		Domain: []string{"localhost", "127.0.0.1"}, Store: "sqlite:" + filepath.Join(stateDir(), "rollcall.db"),
		Durability: "write-through", Sync: "normal", Users: "store", XCAP: []string{"store"}, PresenceAuth: "confirm", MessageAuth: "block",
		Trust: []string{"127.0.0.0/8", "::1/128"}, Digest: []string{"SHA-256", "MD5"}, TLSClientAuth: "none", RatePerSource: 100, LogLevel: "info",
		RecoverySpread: "10s",
	}
}

// stateDir is the user's state directory (XDG).
func stateDir() string {
	if d := os.Getenv("XDG_STATE_HOME"); d != "" {
		return filepath.Join(d, "rollcall")
	}
	if h, err := os.UserHomeDir(); err == nil {
		return filepath.Join(h, ".local", "state", "rollcall")
	}
	return filepath.Join(os.TempDir(), "rollcall")
}

// settings is a Config that was understood.
type settings struct {
	listen     []listenSpec
	durability dialog.Durability
	fullSync   bool
	mode       pa.Mode

	defaultRules   []*policy.Ruleset
	packageAuth    map[string]policy.Basis
	messageAllowed bool

	trust      []netip.Prefix
	trustNames map[string]bool
	digest     []auth.Algorithm
	remoteAuth map[string]auth.Login
	domains    map[string]bool
	remote     map[string]string
	packages   []*pa.Package // those served
	intervals  map[string]time.Duration
	spread     time.Duration
	xcapServer bool
	tls        *tlsFiles
}

type listenSpec struct {
	proto sip.Proto
	addr  string
}

// Validate reports every fault at once.
func (c *Config) Validate() error {
	_, err := c.settings()
	return err
}

func (c *Config) settings() (*settings, error) {
	var errs []error
	fault := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	s := &settings{domains: make(map[string]bool), remote: make(map[string]string), intervals: make(map[string]time.Duration)}
	if len(c.Listen) == 0 {
		fault("listen", "at least one listener is needed")
	}
	for _, l := range c.Listen {
		p, addr, err := sip.ParseListen(l)
		if err != nil {
			fault("listen", "%v", err)
		}
		s.listen = append(s.listen, listenSpec{p, addr})
		if (p == sip.TLS || p == sip.WSS) && len(c.TLSCertificate) == 0 {
			fault("listen", "listener %q needs a tls_certificate", l)
		}
	}
	s.tls = c.readTLS(fault)
	for _, o := range c.WSOrigin {
		if _, err := path.Match(o, ""); err != nil {
			fault("ws_origin", "%q is not a pattern such as *.example.com", o)
		}
	}
	if c.HTTP != "" {
		if _, _, err := net.SplitHostPort(c.HTTP); err != nil {
			fault("http", "%v", err)
		}
	}
	if len(c.Domain) == 0 {
		fault("domain", "at least one domain is needed")
	}
	for _, d := range c.Domain {
		if d == "" || strings.ContainsAny(d, " @/") {
			fault("domain", "%q is not a domain", d)
		}
		s.domains[hostKey(d)] = true
	}
	switch c.Durability {
	case "write-through":
		s.durability = dialog.WriteThrough
	case "write-back":
		s.durability = dialog.WriteBack
	case "memory":
		s.durability = dialog.Memory
	default:
		fault("durability", "%q is none of memory, write-back, write-through", c.Durability)
	}
	switch {
	case c.Store == "memory":
		s.durability = dialog.Memory
	case strings.HasPrefix(c.Store, "sqlite:") && len(c.Store) > len("sqlite:"), strings.HasPrefix(c.Store, "postgres://"), strings.HasPrefix(c.Store, "postgresql://"):
	default:
		fault("store", "%q is none of memory, sqlite:PATH, postgres://...", Mask(c.Store))
	}
	switch c.Sync {
	case "normal":
	case "full":
		s.fullSync = true
	default:
		fault("sync", "%q is neither normal nor full", c.Sync)
	}
	switch path, file := strings.CutPrefix(c.Users, "file:"); {
	case c.Users == "", c.Users == "store":
	case file && path != "":
		if _, err := readUserFile(path); err != nil {
			fault("users", "%v", err)
		}
	case strings.HasPrefix(c.Users, "sqlite:") && len(c.Users) > len("sqlite:"), strings.HasPrefix(c.Users, "postgres://"), strings.HasPrefix(c.Users, "postgresql://"):
	default:
		fault("users", "%q is none of store, file:PATH, sqlite:PATH, postgres://...", Mask(c.Users))
	}
	stored := false
	for _, x := range c.XCAP {
		switch {
		case x == "store":
			stored = true
		case strings.HasPrefix(x, "http://"), strings.HasPrefix(x, "https://"):
			if u, err := url.Parse(x); err != nil || u.Host == "" {
				fault("xcap", "%q is not a root URI", x)
			}
		default:
			if fi, err := os.Stat(x); err != nil || !fi.IsDir() {
				fault("xcap", "%q is not a directory, an http(s) root or store", x)
			}
		}
	}
	s.xcapServer = stored
	if c.XCAPServer != nil {
		s.xcapServer = *c.XCAPServer
	}
	if s.xcapServer && !stored {
		fault("xcap_server", "needs xcap: store")
	}
	var ok bool
	if s.mode, ok = pa.ParseMode(c.PresenceAuth); !ok {
		fault("presence_auth", "%q is none of allow, confirm, block, open", c.PresenceAuth)
	}
	var err error
	if s.defaultRules, err = readDefaultRules(c.DefaultRules); err != nil {
		fault("default_rules", "%v", err)
	}
	switch c.MessageAuth {
	case "allow":
		s.messageAllowed = true
	case "block":
	default:
		fault("message_auth", "%q is neither allow nor block", c.MessageAuth)
	}
	s.trustNames = make(map[string]bool)
	for _, t := range c.Trust {
		if name, ok := strings.CutPrefix(t, "tls:"); ok {
			if name == "" || strings.ContainsAny(name, " @/*") {
				fault("trust", "%q is not tls:NAME", t)
			}
			s.trustNames[hostKey(name)] = true
			continue
		}
		p, err := netip.ParsePrefix(t)
		if err != nil {
			a, err2 := netip.ParseAddr(t)
			if err2 != nil {
				fault("trust", "%v", err)
				continue
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		s.trust = append(s.trust, p.Masked())
	}
	for d, hop := range c.Remote {
		if _, err := sip.ParseURI(hop); err != nil {
			fault("remote", "%s=%s: %v", d, hop, err)
		}
		s.remote[hostKey(d)] = hop
	}
	for _, name := range c.Digest {
		a, session, ok := auth.ParseAlgorithm(name)
		if !ok || session {
			fault("digest", "%q is none of SHA-256, SHA-512-256, MD5", name)
			continue
		}
		s.digest = append(s.digest, a)
	}
	if len(c.Digest) == 0 {
		fault("digest", "at least one hash is needed")
	}
	s.remoteAuth = make(map[string]auth.Login)
	for d, v := range c.RemoteAuth {
		login, ok := parseLogin(v)
		if !ok {
			fault("remote_auth", "%s: not USER:PASSWORD", d)
		}
		s.remoteAuth[hostKey(d)] = login
	}
	for _, a := range c.DNS {
		if _, _, err := net.SplitHostPort(a); err != nil {
			fault("dns", "%v", err)
		}
	}
	if s.packages, err = pa.Declare(c.Packages); err != nil {
		fault("packages", "%v", err)
	}
	reg := dialog.NewRegistry(pa.Events(s.packages...)...)
	for name, v := range c.NotifyInterval {
		d, err := time.ParseDuration(v)
		if v == "0" {
			d, err = 0, nil
		}
		if err != nil || d < 0 {
			fault("notify_interval", "%s=%s is not a duration such as 500ms", name, v)
			continue
		}
		if name != "list" && reg.Find(name) == nil {
			fault("notify_interval", "%q is not a package", name)
		}
		s.intervals[name] = d
	}
	s.packageAuth = make(map[string]policy.Basis)
	for name, v := range c.PackageAuth {
		b, ok := policy.ParseBasis(v)
		switch {
		case reg.Find(name) == nil:
			fault("package_auth", "%q is not a package", name)
		case !ok:
			fault("package_auth", "%s=%s: %q is none of rules, owner, open", name, v, v)
		case b == policy.Rules && strings.HasSuffix(name, ".winfo"):
			fault("package_auth", "%s=%s: presence rules do not speak of watcher information: owner or open", name, v)
		case b == policy.Rules && s.mode == pa.Open:
			fault("package_auth", "%s=%s: presence_auth open reads no rules", name, v)
		}
		s.packageAuth[name] = b
	}
	if d, err := time.ParseDuration(c.RecoverySpread); err != nil || d < 0 || d > maxSpread {
		fault("recovery_spread", "%q is not a duration such as 10s, at most %v", c.RecoverySpread, maxSpread)
	} else {
		s.spread = d
	}
	if c.ExpiresJitter < 0 || c.ExpiresJitter > 90 {
		fault("expires_jitter", "%d is not between 0 and 90 per cent", c.ExpiresJitter)
	}
	for _, r := range []struct {
		key   string
		value int
	}{{"rate_per_source", c.RatePerSource}, {"rate_total", c.RateTotal}} {
		if r.value < 0 || r.value > maxRate {
			fault(r.key, "%d is not between 0, for no limit, and %d requests a second", r.value, maxRate)
		}
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		fault("log_level", "%q is none of debug, info, warn, error", c.LogLevel)
	}
	return s, errors.Join(errs...)
}

// hostKey is a host in one spelling: lower case, without brackets or final dot.
func hostKey(host string) string {
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if strings.IndexByte(host, ':') >= 0 { // IPv6 has many spellings
		if a, err := netip.ParseAddr(host); err == nil {
			return a.String()
		}
	}
	return host
}

// listInterval is the shortest gap between two NOTIFYs of a list subscription
// when nothing else is said.
const listInterval = 500 * time.Millisecond

// Mask hides the passwords in a store's or an XCAP root's address.
func Mask(dsn string) string {
	if !strings.Contains(dsn, "://") {
		return dsn
	}
	u, err := url.Parse(dsn)
	if err != nil {
		scheme, _, _ := strings.Cut(dsn, "://")
		return scheme + "://xxxxx"
	}
	if q := u.Query(); len(q) > 0 {
		hidden := false
		for k := range q {
			if l := strings.ToLower(k); strings.Contains(l, "password") || strings.Contains(l, "secret") || strings.Contains(l, "token") {
				q.Set(k, "xxxxx")
				hidden = true
			}
		}
		if hidden {
			u.RawQuery = q.Encode()
		}
	}
	return u.Redacted()
}
