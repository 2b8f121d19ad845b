package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"

	"rollcall/server"
)

// setting is one thing an operator can set: a flag of serve, a variable
// (ROLLCALL_ and the name in capitals) and a key of the file (the name with
// underscores).
type setting struct {
	name     string
	category string
	usage    string // the word in backquotes stands for the value in the help
	fallback string // the default as people should read it
	// field points to a string, int, []string, map[string]string or *bool.
	field func(*server.Config) any
}

const (
	catNetwork = "Network"
	catState   = "State"
	catPolicy  = "Who may see what"
	catProcess = "Process"
)

// settings are in the order of the help.
var settings = []setting{
	{
		"listen", catNetwork, "listen on `TRANSPORT:HOST:PORT`; repeatable; udp, tcp, tls, ws, wss; port 0 picks one",
		"udp:127.0.0.1:5060, tcp:127.0.0.1:5060", func(c *server.Config) any { return &c.Listen },
	},
	{
		"tls-certificate", catNetwork, "certificate chain and private key as `CERT.pem[,KEY.pem]`, for tls and wss and for servers that ask; repeatable, chosen by the name a client asks for, else the first; read again on SIGHUP",
		"none", func(c *server.Config) any { return &c.TLSCertificate },
	},
	{
		"tls-ca", catNetwork, "`FILE` of the authorities that peers' certificates are verified by",
		"the system's", func(c *server.Config) any { return &c.TLSCA },
	},
	{
		"tls-client-auth", catNetwork, "certificates of those who connect, `MODE`: none (not asked for), optional (verified if there is one), require",
		"none", func(c *server.Config) any { return &c.TLSClientAuth },
	},
	{
		"ws-origin", catNetwork, "host `PATTERN` of web pages that may open a WebSocket, such as *.example.com; repeatable",
		"pages of the host they ask", func(c *server.Config) any { return &c.WSOrigin },
	},
	{
		"http", catNetwork, "admin API, health, metrics and XCAP on `HOST:PORT`; empty for none",
		"127.0.0.1:8080", func(c *server.Config) any { return &c.HTTP },
	},
	{
		"domain", catNetwork, "`NAME` of a domain whose presentities are local; repeatable",
		"localhost, 127.0.0.1", func(c *server.Config) any { return &c.Domain },
	},
	{
		"remote", catNetwork, "next hop for a remote domain as `DOMAIN=SIP-URI`, * for every other one; repeatable",
		"found by DNS (RFC 3263)", func(c *server.Config) any { return &c.Remote },
	},
	{
		"dns", catNetwork, "name server `HOST:PORT`; repeatable",
		"those of /etc/resolv.conf", func(c *server.Config) any { return &c.DNS },
	},
	{
		"notify-interval", catNetwork, "shortest gap between two NOTIFYs of one subscription as `PACKAGE=DURATION`; \"list\" for list subscriptions, 0 for none; repeatable",
		"that of the package", func(c *server.Config) any { return &c.NotifyInterval },
	},
	{
		"packages", catNetwork, "further event package as `NAME=MEDIA-TYPE`, whose newest publication is passed on as it is: as-feature-event=application/x-as-feature-event+xml, \"dialog;sla=application/dialog-info+xml\"; repeatable",
		"none", func(c *server.Config) any { return &c.Packages },
	},
	{
		"expires-jitter", catNetwork, "`PERCENT` that may be taken off a granted expiry at random, so that phones which started together do not refresh together",
		"0", func(c *server.Config) any { return &c.ExpiresJitter },
	},
	{
		"store", catState, "`DSN` of where state is kept: memory, sqlite:PATH, postgres://...",
		"a SQLite file in the user's state directory", func(c *server.Config) any { return &c.Store },
	},
	{
		"durability", catState, "when changes are written, `MODE`: memory (never), write-back (after the answer), write-through (before it)",
		"write-through", func(c *server.Config) any { return &c.Durability },
	},
	{
		"sync", catState, "what an acknowledged change survives, `MODE`: normal (kill -9) or full (a power cut too)",
		"normal", func(c *server.Config) any { return &c.Sync },
	},
	{
		"recovery-spread", catState, "`DURATION` over which the NOTIFYs after a crash go out, to watchers that may have missed something",
		"10s", func(c *server.Config) any { return &c.RecoverySpread },
	},
	{
		"users", catState, "`SOURCE` of users' passwords: store, file:PATH, or table subscriber of Kamailio or OpenSIPS in sqlite:PATH or postgres://...",
		"store", func(c *server.Config) any { return &c.Users },
	},
	{
		"xcap", catState, "`SOURCE` of lists and rules: a directory, an http(s) XCAP root, or store; repeatable, first match wins",
		"store", func(c *server.Config) any { return &c.XCAP },
	},
	{
		"xcap-server", catState, "serve XCAP at /xcap-root/ out of the store",
		"on when --xcap has store", func(c *server.Config) any { return &c.XCAPServer },
	},
	{
		"xcap-root", catState, "further root `URI` that means our own documents; repeatable",
		"none", func(c *server.Config) any { return &c.XCAPRoot },
	},
	{
		"presence-auth", catPolicy, "what a watcher without a matching rule gets, `MODE`: allow, confirm, block; open reads no rules at all",
		"confirm", func(c *server.Config) any { return &c.PresenceAuth },
	},
	{
		"default-rules", catPolicy, "`FILE` with the presence rules (RFC 5025) of everybody who has no document of his own; SIGHUP reads it again",
		"none", func(c *server.Config) any { return &c.DefaultRules },
	},
	{
		"package-auth", catPolicy, "what decides about an event package, `PACKAGE=BASIS`: rules (the presentity's), owner (nobody else), open (everybody); repeatable",
		"owner for watcher information, mailboxes and registrations, else rules", func(c *server.Config) any { return &c.PackageAuth },
	},
	{
		"message-auth", catPolicy, "whether a MESSAGE may come to who has no im-rules, `MODE`: allow, block",
		"block", func(c *server.Config) any { return &c.MessageAuth },
	},
	{
		"trust", catPolicy, "`CIDR`, or tls:NAME of a verified certificate, of peers whose asserted identity is believed without digest; repeatable",
		"loopback", func(c *server.Config) any { return &c.Trust },
	},
	{
		"digest", catPolicy, "`HASH` that users may log in with: SHA-256, SHA-512-256, MD5; repeatable, most preferred first. Every user needs the secrets of all",
		"SHA-256, MD5", func(c *server.Config) any { return &c.Digest },
	},
	{
		"remote-auth", catPolicy, "our credentials at a remote domain's servers as `DOMAIN=USER:PASSWORD`; better in the file or the environment; repeatable",
		"none", func(c *server.Config) any { return &c.RemoteAuth },
	},
	{
		"rate-per-source", catPolicy, "`REQUESTS` a second from one address (IPv6: /64) that --trust does not name, and ten seconds' worth at once; more get 503, then nothing; 0 for no limit",
		"100", func(c *server.Config) any { return &c.RatePerSource },
	},
	{
		"rate-total", catPolicy, "`REQUESTS` a second from all addresses together, and ten seconds' worth at once; 0 for no limit",
		"0", func(c *server.Config) any { return &c.RateTotal },
	},
	{
		"log-level", catProcess, "least `LEVEL` to log: debug, info, warn, error",
		"info", func(c *server.Config) any { return &c.LogLevel },
	},
}

func (s *setting) variable() string {
	return "ROLLCALL_" + strings.ToUpper(strings.ReplaceAll(s.name, "-", "_"))
}

func configFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "config", EnvVars: []string{"ROLLCALL_CONFIG"}, Category: catProcess,
		Usage: "YAML configuration `FILE`; every flag is a key of it, with _ for -",
	}
}

// configFlags are --config and a flag for each setting. No flag has a value of
// its own, so that only what somebody said wins over the file.
func configFlags() []cli.Flag {
	flags := []cli.Flag{configFlag()}
	for _, s := range settings {
		env := []string{s.variable()}
		switch s.field(&server.Config{}).(type) {
		case *string:
			flags = append(flags, &cli.StringFlag{Name: s.name, Usage: s.usage, Category: s.category, DefaultText: s.fallback, EnvVars: env})
		case *int:
			flags = append(flags, &cli.IntFlag{Name: s.name, Usage: s.usage, Category: s.category, DefaultText: s.fallback, EnvVars: env})
		case **bool:
			flags = append(flags, &cli.BoolFlag{Name: s.name, Usage: s.usage, Category: s.category, DefaultText: s.fallback, EnvVars: env})
		default:
			flags = append(flags, &cli.StringSliceFlag{Name: s.name, Usage: s.usage, Category: s.category, DefaultText: s.fallback, EnvVars: env})
		}
	}
	return flags
}

// loadConfig merges flags, environment, file and defaults, first wins, and
// checks the result. The error lists every fault and means exitUsage.
func loadConfig(c *cli.Context) (server.Config, error) {
	cfg := server.Default()
	var faults []error
	if file := c.String("config"); file != "" {
		broken := readConfig(file, &cfg)
		faults = append(faults, broken...)
	}
	for _, s := range settings {
		if !c.IsSet(s.name) {
			continue
		}
		switch p := s.field(&cfg).(type) {
		case *string:
			v := c.String(s.name)
			if set, ok := os.LookupEnv(s.variable()); v == "" && ok && set == "" {
				continue // an empty variable says nothing, as containers set them
			}
			*p = v
		case *int:
			*p = c.Int(s.name)
		case **bool:
			v := c.Bool(s.name)
			*p = &v
		case *[]string:
			if v := items(c.StringSlice(s.name)); len(v) > 0 {
				*p = v
			}
		case *map[string]string:
			m, bad := pairs(s.name, c.StringSlice(s.name))
			faults = append(faults, bad...)
			if len(m) > 0 {
				*p = m
			}
		}
	}
	if err := cfg.Validate(); err != nil {
		faults = append(faults, flatten(err)...)
	}
	if len(faults) > 0 {
		return cfg, coded(exitUsage, errors.Join(faults...))
	}
	return cfg, nil
}

// pairs reads the values of a flag that are NAME=VALUE.
func pairs(flag string, values []string) (m map[string]string, faults []error) {
	m = make(map[string]string)
	for _, item := range items(values) {
		k, v, ok := strings.Cut(item, "=")
		if !ok || k == "" || v == "" {
			faults = append(faults, fmt.Errorf("%s: %q is not NAME=VALUE", flag, item))
			continue
		}
		m[k] = v
	}
	return m, faults
}

func items(in []string) []string {
	var out []string
	for _, s := range in {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

var (
	yamlFault   = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)
	yamlUnknown = regexp.MustCompile(`^field (.+) not found in type .*$`)
)

// readConfig reads a file into cfg, strictly.
func readConfig(file string, cfg *server.Config) []error {
	b, err := os.ReadFile(file)
	if err != nil {
		return []error{fmt.Errorf("config: %w", err)}
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	err = dec.Decode(cfg)
	if errors.Is(err, io.EOF) { // nothing but comments
		return nil
	}
	var faults []error
	var typed *yaml.TypeError
	switch {
	case errors.As(err, &typed):
		for _, text := range typed.Errors {
			faults = append(faults, yamlError(file, text))
		}
	case err != nil:
		faults = append(faults, yamlError(file, err.Error()))
	default:
		if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
			faults = append(faults, fmt.Errorf("%s: more than one document", file))
		}
	}
	return faults
}

// yamlError words a fault of the YAML library as FILE:LINE: what.
func yamlError(file, text string) error {
	m := yamlFault.FindStringSubmatch(text)
	if m == nil {
		return fmt.Errorf("%s: %s", file, strings.TrimPrefix(text, "yaml: "))
	}
	what := m[2]
	if u := yamlUnknown.FindStringSubmatch(what); u != nil {
		what = fmt.Sprintf("unknown key %q", u[1])
		if key := strings.ReplaceAll(u[1], "-", "_"); key != u[1] && slices.Contains(keys(), key) {
			what += fmt.Sprintf(", did you mean %q?", key)
		}
	}
	return fmt.Errorf("%s:%s: %s", file, m[1], what)
}

// keys are the keys of the file.
func keys() []string {
	var out []string
	t := reflect.TypeFor[server.Config]()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		out = append(out, name)
	}
	return out
}

// masked is what may be shown of a configuration.
func masked(cfg server.Config) server.Config {
	cfg.Store, cfg.Users = server.Mask(cfg.Store), server.Mask(cfg.Users)
	cfg.XCAP = slices.Clone(cfg.XCAP)
	for i := range cfg.XCAP {
		cfg.XCAP[i] = server.Mask(cfg.XCAP[i])
	}
	cfg.RemoteAuth = maps.Clone(cfg.RemoteAuth)
	for d, v := range cfg.RemoteAuth {
		user, _, _ := strings.Cut(v, ":")
		cfg.RemoteAuth[d] = user + ":xxxxx"
	}
	if cfg.XCAPServer == nil {
		on := slices.Contains(cfg.XCAP, "store")
		cfg.XCAPServer = &on
	}
	return cfg
}

func configCommand() *cli.Command {
	return &cli.Command{
		Name: "config", Usage: "check and show the configuration of serve",
		Subcommands: []*cli.Command{
			{
				Name: "check", Usage: "tell every fault of a configuration", ArgsUsage: " ", Flags: configFlags(),
				Description: "Reads the file, the environment and the flags as serve does, but starts nothing. Exit code 2 when there is a fault.\n\n" +
					"Example:\n\n   rollcall config check --config /etc/rollcall.yaml",
				Action: func(c *cli.Context) error {
					if _, err := arguments(c); err != nil {
						return err
					}
					if _, err := loadConfig(c); err != nil {
						return err
					}
					from := c.String("config")
					if from == "" {
						from = "no file"
					}
					fmt.Fprintf(c.App.Writer, "%s: ok\n", from)
					return nil
				},
			},
			{
				Name: "dump", Usage: "print the values in effect as YAML, passwords hidden", ArgsUsage: " ", Flags: configFlags(),
				Description: "Example:\n\n   ROLLCALL_DOMAIN=example.com rollcall config dump --config /etc/rollcall.yaml",
				Action: func(c *cli.Context) error {
					if _, err := arguments(c); err != nil {
						return err
					}
					cfg, err := loadConfig(c)
					if err != nil {
						return err
					}
					enc := yaml.NewEncoder(c.App.Writer)
					enc.SetIndent(2)
					if err := enc.Encode(masked(cfg)); err != nil {
						return err
					}
					return enc.Close()
				},
			},
		},
	}
}
