package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rollcall/server"
	"rollcall/server/servertest"
)

// Every fault of a configuration is found, named by its key, and all at once.
func TestConfigFaults(t *testing.T) {
	yes := true
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("alice:secret\n# ok\nbob\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(c *server.Config)
		want   []string // in the error; none: no fault
	}{
		{"default", func(*server.Config) {}, nil},
		{"everything", func(c *server.Config) {
			c.Listen, c.HTTP, c.Domain = []string{"udp:0.0.0.0:5060", "tcp:[::]:5060", "UDP::0"}, "", []string{"example.com", "192.0.2.1", "[2001:db8::1]"}
			c.Store, c.Durability, c.Sync, c.PresenceAuth = "postgres://u:p@db/x", "write-back", "full", "open"
			c.XCAP, c.XCAPServer, c.Trust = []string{t.TempDir(), "https://xcap.example.com/root", "store"}, &yes, []string{"10.0.0.0/8", "192.0.2.7", "::1/128"}
			c.Remote = map[string]string{"example.org": "sip:192.0.2.9:5070;transport=tcp"}
			c.NotifyInterval = map[string]string{"presence": "5s", "presence.winfo": "0", "list": "250ms"}
			c.LogLevel, c.Users = "debug", "postgres://u:p@db/kamailio"
		}, nil},
		{"no listener", func(c *server.Config) { c.Listen = nil }, []string{"listen: at least one"}},
		{"listener without transport", func(c *server.Config) { c.Listen = []string{"127.0.0.1:5060"} }, []string{"listen:"}},
		{"listener without port", func(c *server.Config) { c.Listen = []string{"udp:127.0.0.1"} }, []string{"listen:"}},
		{"listener that needs a certificate", func(c *server.Config) { c.Listen = []string{"tls:127.0.0.1:5061"} }, []string{"listen:", "tls_certificate"}},
		{"http", func(c *server.Config) { c.HTTP = "localhost" }, []string{"http:"}},
		{"no domain", func(c *server.Config) { c.Domain = nil }, []string{"domain:"}},
		{"domain that is an address of record", func(c *server.Config) { c.Domain = []string{"alice@example.com", ""} }, []string{`"alice@example.com" is not a domain`, `"" is not a domain`}},
		{"store", func(c *server.Config) { c.Store = "mysql://root:secret@db/x" }, []string{"store:"}},
		{"sqlite without a file", func(c *server.Config) { c.Store = "sqlite:" }, []string{"store:"}},
		{"users", func(c *server.Config) { c.Users = "mysql://root:secret@db/x" }, []string{"users:"}},
		{"users nowhere", func(c *server.Config) { c.Users = "file:" + file + ".none" }, []string{"users: open"}},
		{"users without a file", func(c *server.Config) { c.Users = "file:" }, []string{"users:"}},
		{"users with bad lines", func(c *server.Config) { c.Users = "file:" + bad }, []string{bad + ":1: ", bad + ":3: "}},
		{"durability", func(c *server.Config) { c.Durability = "eventually" }, []string{"durability:"}},
		{"sync", func(c *server.Config) { c.Sync = "off" }, []string{"sync:"}},
		{"xcap is a file", func(c *server.Config) { c.XCAP = []string{file} }, []string{"xcap:"}},
		{"xcap is nothing", func(c *server.Config) { c.XCAP = []string{file + "/none", "http://", "ftp://x"} }, []string{`none" is not`, `"http://" is not`, `"ftp://x" is not`}},
		{"xcap server without store", func(c *server.Config) { c.XCAP, c.XCAPServer = []string{t.TempDir()}, &yes }, []string{"xcap_server:"}},
		{"presence_auth", func(c *server.Config) { c.PresenceAuth = "yes" }, []string{"presence_auth:"}},
		{"default rules nowhere", func(c *server.Config) { c.DefaultRules = file + ".none" }, []string{"default_rules: open"}},
		{"default rules that are none", func(c *server.Config) { c.DefaultRules = bad }, []string{"default_rules: " + bad + ": not well-formed"}},
		{"package_auth", func(c *server.Config) {
			c.PackageAuth = map[string]string{"weather": "owner", "presence": "all", "presence.winfo": "rules"}
		}, []string{`"weather" is not a package`, `presence=all: "all" is none of`, "presence.winfo=rules: presence rules do not"}},
		{"package_auth without rules", func(c *server.Config) {
			c.PresenceAuth, c.PackageAuth = "open", map[string]string{"presence": "rules"}
		}, []string{"presence_auth open reads no rules"}},
		{"package_auth in order", func(c *server.Config) {
			c.PackageAuth = map[string]string{"presence": "owner", "presence.winfo": "open"}
		}, nil},
		{"message_auth", func(c *server.Config) { c.MessageAuth = "open" }, []string{"message_auth:"}},
		{"trust", func(c *server.Config) { c.Trust = []string{"10.0.0.0/33", "example.com"} }, []string{"trust:", "10.0.0.0/33", "example.com"}},
		{"remote", func(c *server.Config) { c.Remote = map[string]string{"example.org": "192.0.2.9"} }, []string{"remote: example.org=192.0.2.9"}},
		{"interval", func(c *server.Config) { c.NotifyInterval = map[string]string{"presence": "5", "list": "-1s"} }, []string{"presence=5", "list=-1s"}},
		{"spread", func(c *server.Config) { c.RecoverySpread = "11m" }, []string{`"11m" is not a duration`}},
		{"jitter", func(c *server.Config) { c.ExpiresJitter = 91 }, []string{"91 is not between 0 and 90"}},
		{"interval of no package", func(c *server.Config) { c.NotifyInterval = map[string]string{"weather": "5s"} }, []string{`"weather" is not a package`}},
		{"rates", func(c *server.Config) { c.RatePerSource, c.RateTotal = -1, 1_000_001 }, []string{"rate_per_source: -1", "rate_total: 1000001"}},
		{"no rates", func(c *server.Config) { c.RatePerSource, c.RateTotal = 0, 1_000_000 }, nil},
		{"log level", func(c *server.Config) { c.LogLevel = "loud" }, []string{"log_level:"}},
		{"all at once", func(c *server.Config) { c.Listen, c.Sync, c.Durability, c.LogLevel = nil, "x", "x", "x" }, []string{"listen:", "sync:", "durability:", "log_level:"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := server.Default()
			c.change(&cfg)
			err := cfg.Validate()
			if len(c.want) == 0 {
				if err != nil {
					t.Fatalf("fault found: %v", err)
				}
				return
			}
			if err == nil {
				t.Fatalf("no fault found, want %q", c.want)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("fault %q is not in:\n%v", want, err)
				}
			}
			if got := strings.Count(err.Error(), "\n") + 1; got > len(c.want)+1 {
				t.Errorf("%d faults, want about %d:\n%v", got, len(c.want), err)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("a password is shown: %v", err)
			}
			if _, err := server.New(cfg, servertest.Log(t)); err == nil {
				t.Errorf("New takes it")
			}
		})
	}
}
