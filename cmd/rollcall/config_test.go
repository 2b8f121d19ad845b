package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"rollcall/server"
	"rollcall/sip/siptest"
)

func writeFile(t *testing.T, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "rollcall.yaml")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// dump gives the configuration in effect as config dump prints it.
func dump(t *testing.T, args ...string) server.Config {
	t.Helper()
	code, out, errw := execute(t, append([]string{"config", "dump"}, args...)...)
	if code != 0 {
		t.Fatalf("exit code %d, %s", code, errw)
	}
	var cfg server.Config
	if err := yaml.Unmarshal([]byte(out), &cfg); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// Flag wins over environment, that over the file, that over the default.
func TestConfigPrecedence(t *testing.T) {
	dir := t.TempDir()
	cert, key := siptest.PEM(t, siptest.NewCA(t).Issue(t, siptest.Leaf{CommonName: "example.com"}))
	pem, other := writeFile(t, string(cert)+string(key)), writeFile(t, string(cert))
	var ruleFiles [3]string
	for i := range ruleFiles {
		ruleFiles[i] = writeFile(t, `<ruleset xmlns="urn:ietf:params:xml:ns:common-policy"/>`)
	}
	tests := []struct {
		name                       string // of the flag
		file, env                  string
		flag                       []string
		def, inFile, inEnv, inFlag string // what is in effect, by fmt.Sprint
		value                      func(server.Config) any
	}{
		{
			name: "listen", file: "[tcp:192.0.2.1:1, udp:192.0.2.1:1]", env: "udp:192.0.2.2:2, tcp:192.0.2.2:2", flag: []string{"udp:192.0.2.3:3", "tcp:192.0.2.3:3"},
			def: "[udp:127.0.0.1:5060 tcp:127.0.0.1:5060]", inFile: "[tcp:192.0.2.1:1 udp:192.0.2.1:1]", inEnv: "[udp:192.0.2.2:2 tcp:192.0.2.2:2]",
			inFlag: "[udp:192.0.2.3:3 tcp:192.0.2.3:3]", value: func(c server.Config) any { return c.Listen },
		},
		{
			name: "http", file: "192.0.2.1:1", env: "192.0.2.2:2", flag: []string{""}, def: "127.0.0.1:8080", inFile: "192.0.2.1:1", inEnv: "192.0.2.2:2", inFlag: "",
			value: func(c server.Config) any { return c.HTTP },
		},
		{
			name: "domain", file: "[example.com]", env: "example.net,example.org", flag: []string{"a.example"}, def: "[localhost 127.0.0.1]", inFile: "[example.com]",
			inEnv: "[example.net example.org]", inFlag: "[a.example]", value: func(c server.Config) any { return c.Domain },
		},
		{
			name: "tls-certificate", file: "[" + pem + "]", env: pem + "," + pem, flag: []string{pem + "," + pem, pem}, def: "[]", inFile: "[" + pem + "]",
			inEnv: "[" + pem + " " + pem + "]", inFlag: "[" + pem + " " + pem + " " + pem + "]", value: func(c server.Config) any { return c.TLSCertificate },
		},
		{
			name: "tls-ca", file: pem, env: other, flag: []string{""}, def: "", inFile: pem, inEnv: other, inFlag: "",
			value: func(c server.Config) any { return c.TLSCA },
		},
		{
			name: "tls-client-auth", file: "optional", env: "require", flag: []string{"none"}, def: "none", inFile: "optional", inEnv: "require", inFlag: "none",
			value: func(c server.Config) any { return c.TLSClientAuth },
		},
		{
			name: "ws-origin", file: "['*.a.example']", env: "b.example,https://c.example", flag: []string{"d.example"}, def: "[]", inFile: "[*.a.example]",
			inEnv: "[b.example https://c.example]", inFlag: "[d.example]", value: func(c server.Config) any { return c.WSOrigin },
		},
		{
			name: "store", file: "sqlite:/a", env: "sqlite:/b", flag: []string{"memory"}, def: server.Default().Store, inFile: "sqlite:/a", inEnv: "sqlite:/b", inFlag: "memory",
			value: func(c server.Config) any { return c.Store },
		},
		{
			name: "durability", file: "memory", env: "write-back", flag: []string{"write-through"}, def: "write-through", inFile: "memory", inEnv: "write-back",
			inFlag: "write-through", value: func(c server.Config) any { return c.Durability },
		},
		{
			name: "sync", file: "full", env: "normal", flag: []string{"full"}, def: "normal", inFile: "full", inEnv: "normal", inFlag: "full",
			value: func(c server.Config) any { return c.Sync },
		},
		{
			name: "users", file: "sqlite:/a", env: "sqlite:/b", flag: []string{"postgres://db/kamailio"}, def: "store", inFile: "sqlite:/a", inEnv: "sqlite:/b",
			inFlag: "postgres://db/kamailio", value: func(c server.Config) any { return c.Users },
		},
		{
			name: "xcap", file: "[store, " + dir + "]", env: dir + ",store", flag: []string{"store"}, def: "[store]", inFile: "[store " + dir + "]",
			inEnv: "[" + dir + " store]", inFlag: "[store]", value: func(c server.Config) any { return c.XCAP },
		},
		{
			name: "xcap-server", file: "false", env: "true", flag: []string{"false"}, def: "true", inFile: "false", inEnv: "true", inFlag: "false",
			value: func(c server.Config) any { return *c.XCAPServer },
		},
		{
			name: "xcap-root", file: "[http://a.example/x]", env: "http://b.example/x", flag: []string{"http://c.example/x"}, def: "[]", inFile: "[http://a.example/x]",
			inEnv: "[http://b.example/x]", inFlag: "[http://c.example/x]", value: func(c server.Config) any { return c.XCAPRoot },
		},
		{
			name: "presence-auth", file: "allow", env: "block", flag: []string{"open"}, def: "confirm", inFile: "allow", inEnv: "block", inFlag: "open",
			value: func(c server.Config) any { return c.PresenceAuth },
		},
		{
			name: "trust", file: "[192.0.2.0/24]", env: "198.51.100.0/24", flag: []string{"203.0.113.0/24"}, def: "[127.0.0.0/8 ::1/128]", inFile: "[192.0.2.0/24]",
			inEnv: "[198.51.100.0/24]", inFlag: "[203.0.113.0/24]", value: func(c server.Config) any { return c.Trust },
		},
		{
			name: "digest", file: "[SHA-256]", env: "MD5", flag: []string{"SHA-512-256", "SHA-256"}, def: "[SHA-256 MD5]", inFile: "[SHA-256]",
			inEnv: "[MD5]", inFlag: "[SHA-512-256 SHA-256]", value: func(c server.Config) any { return c.Digest },
		},
		{
			name: "dns", file: "['192.0.2.1:53']", env: "192.0.2.2:53,192.0.2.3:53", flag: []string{"192.0.2.4:53"}, def: "[]", inFile: "[192.0.2.1:53]",
			inEnv: "[192.0.2.2:53 192.0.2.3:53]", inFlag: "[192.0.2.4:53]", value: func(c server.Config) any { return c.DNS },
		},
		{
			name: "default-rules", file: ruleFiles[0], env: ruleFiles[1], flag: []string{ruleFiles[2]}, def: "", inFile: ruleFiles[0],
			inEnv: ruleFiles[1], inFlag: ruleFiles[2], value: func(c server.Config) any { return c.DefaultRules },
		},
		{
			name: "package-auth", file: "{presence: owner}", env: "presence=open,presence.winfo=open", flag: []string{"presence.winfo=owner"}, def: "map[]", inFile: "map[presence:owner]",
			inEnv: "map[presence:open presence.winfo:open]", inFlag: "map[presence.winfo:owner]", value: func(c server.Config) any { return c.PackageAuth },
		},
		{
			name: "message-auth", file: "allow", env: "block", flag: []string{"allow"}, def: "block", inFile: "allow", inEnv: "block", inFlag: "allow",
			value: func(c server.Config) any { return c.MessageAuth },
		},
		{
			name: "remote-auth", file: "{a.example: 'u:p'}", env: "b.example=v:q:r", flag: []string{"d.example=w:s"},
			def: "map[]", inFile: "map[a.example:u:xxxxx]", inEnv: "map[b.example:v:xxxxx]",
			inFlag: "map[d.example:w:xxxxx]", value: func(c server.Config) any { return c.RemoteAuth },
		},
		{
			name: "remote", file: "{a.example: 'sip:192.0.2.1'}", env: "b.example=sip:192.0.2.2,c.example=sip:192.0.2.3", flag: []string{"d.example=sip:192.0.2.4;transport=tcp"},
			def: "map[]", inFile: "map[a.example:sip:192.0.2.1]", inEnv: "map[b.example:sip:192.0.2.2 c.example:sip:192.0.2.3]",
			inFlag: "map[d.example:sip:192.0.2.4;transport=tcp]", value: func(c server.Config) any { return c.Remote },
		},
		{
			name: "notify-interval", file: "{presence: 1s}", env: "presence=2s,list=0", flag: []string{"list=3s", "presence=4s"}, def: "map[]", inFile: "map[presence:1s]",
			inEnv: "map[list:0 presence:2s]", inFlag: "map[list:3s presence:4s]", value: func(c server.Config) any { return c.NotifyInterval },
		},
		{
			name: "packages", file: "{a: 'a/b c/d'}", env: "b=c/d", flag: []string{"dialog;sla=application/dialog-info+xml", "e=f/g"}, def: "map[]", inFile: "map[a:a/b c/d]",
			inEnv: "map[b:c/d]", inFlag: "map[dialog;sla:application/dialog-info+xml e:f/g]", value: func(c server.Config) any { return c.Packages },
		},
		{
			name: "rate-per-source", file: "20", env: "30", flag: []string{"0"}, def: "100", inFile: "20", inEnv: "30", inFlag: "0",
			value: func(c server.Config) any { return c.RatePerSource },
		},
		{
			name: "recovery-spread", file: "20s", env: "30s", flag: []string{"0s"}, def: "10s", inFile: "20s", inEnv: "30s", inFlag: "0s",
			value: func(c server.Config) any { return c.RecoverySpread },
		},
		{
			name: "expires-jitter", file: "20", env: "30", flag: []string{"5"}, def: "0", inFile: "20", inEnv: "30", inFlag: "5",
			value: func(c server.Config) any { return c.ExpiresJitter },
		},
		{
			name: "rate-total", file: "20", env: "0", flag: []string{"40"}, def: "0", inFile: "20", inEnv: "0", inFlag: "40",
			value: func(c server.Config) any { return c.RateTotal },
		},
		{
			name: "log-level", file: "warn", env: "error", flag: []string{"debug"}, def: "info", inFile: "warn", inEnv: "error", inFlag: "debug",
			value: func(c server.Config) any { return c.LogLevel },
		},
	}
	var covered []string
	for _, tt := range tests {
		covered = append(covered, strings.ReplaceAll(tt.name, "-", "_"))
		t.Run(tt.name, func(t *testing.T) {
			key := strings.ReplaceAll(tt.name, "-", "_")
			want := func(where, want string, args ...string) {
				t.Helper()
				if got := fmt.Sprint(tt.value(dump(t, args...))); got != want {
					t.Errorf("%s: %q, want %q", where, got, want)
				}
			}
			want("default", tt.def)
			file := []string{"--config", writeFile(t, "# a comment\n"+key+": "+tt.file+"\n")}
			want("file", tt.inFile, file...)
			variable := "ROLLCALL_" + strings.ToUpper(key)
			t.Setenv(variable, "")
			want("empty variable", tt.inFile, file...)
			t.Setenv(variable, tt.env)
			want("environment", tt.inEnv, file...)
			args := file
			for _, f := range tt.flag {
				args = append(args, "--"+tt.name+"="+f)
			}
			want("flag", tt.inFlag, args...)
		})
	}
	// Every key of the file is a flag, and is tested here.
	slices.Sort(covered)
	all := keys()
	slices.Sort(all)
	if !reflect.DeepEqual(covered, all) {
		t.Errorf("tested: %v\nkeys:   %v", covered, all)
	}
}

func TestConfigFaults(t *testing.T) {
	tests := []struct {
		name, text string
		args       []string
		want       []string // lines on standard error; FILE is the file
	}{
		{
			"unknown keys", "listen: [udp:127.0.0.1:0]\nlisten_on: x\n\nnotify-interval: {}\n", nil,
			[]string{`FILE:2: unknown key "listen_on"`, `FILE:4: unknown key "notify-interval", did you mean "notify_interval"?`},
		},
		{
			"wrong types and values", "domain: example.com\nsync: maybe\nremote:\n  example.org: 'sip:'\n", nil,
			[]string{"FILE:1: cannot unmarshal !!str `example...` into []string", `sync: "maybe" is neither normal nor full`, "remote: example.org=sip:: "},
		},
		{"twice", "sync: full\nsync: normal\n", nil, []string{`FILE:2: mapping key "sync" already defined at line 1`}},
		{"no YAML", "listen: [\n", nil, []string{"FILE:"}},
		{"two documents", "sync: full\n---\nsync: normal\n", nil, []string{"FILE: more than one document"}},
		{
			"flags and file together", "sync: no\n",
			[]string{"--remote", "example.org", "--notify-interval", "list=soon", "--presence-auth", "x"},
			[]string{`remote: "example.org" is not NAME=VALUE`, `notify_interval: list=soon`, `presence_auth: "x"`, `sync: "no"`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := writeFile(t, tt.text)
			for _, command := range [][]string{{"config", "check"}, {"serve"}} {
				code, out, errw := execute(t, append(append(command, "--config", file), tt.args...)...)
				if code != 2 || out != "" {
					t.Errorf("exit code %d, %q", code, out)
				}
				got := strings.Split(strings.TrimSuffix(errw, "\n"), "\n")
				if len(got) != len(tt.want) {
					t.Errorf("%d faults:\n%s", len(got), errw)
				}
				for _, w := range tt.want {
					w = "rollcall: " + strings.ReplaceAll(w, "FILE", file)
					if !slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, w) }) {
						t.Errorf("no %q in\n%s", w, errw)
					}
				}
			}
		})
	}
	t.Run("no file", func(t *testing.T) {
		if code, _, errw := execute(t, "config", "check", "--config", "/nowhere/x.yaml"); code != 2 || !strings.HasPrefix(errw, "rollcall: config: open /nowhere/x.yaml: ") {
			t.Errorf("exit code %d, %q", code, errw)
		}
	})
	t.Run("good", func(t *testing.T) {
		file := writeFile(t, "# nothing\n")
		if code, out, errw := execute(t, "config", "check", "--config", file); code != 0 || out != file+": ok\n" || errw != "" {
			t.Errorf("exit code %d, %q %q", code, out, errw)
		}
	})
	t.Run("variable that is no number", func(t *testing.T) {
		t.Setenv("ROLLCALL_RATE_TOTAL", "many")
		if code, _, errw := execute(t, "serve"); code != 2 || !strings.Contains(errw, "many") {
			t.Errorf("exit code %d, %q", code, errw)
		}
	})
	t.Run("variable that is no boolean", func(t *testing.T) {
		t.Setenv("ROLLCALL_XCAP_SERVER", "perhaps")
		if code, _, errw := execute(t, "serve"); code != 2 || !strings.Contains(errw, "perhaps") {
			t.Errorf("exit code %d, %q", code, errw)
		}
	})
}

func TestMask(t *testing.T) {
	for in, want := range map[string]string{
		"memory":                            "memory",
		"sqlite:/var/lib/rollcall.db":       "sqlite:/var/lib/rollcall.db",
		"postgres://u:secret@db/x":          "postgres://u:xxxxx@db/x",
		"postgres://db/x?password=secret":   "postgres://db/x?password=xxxxx",
		"postgres://u@db/x?sslmode=disable": "postgres://u@db/x?sslmode=disable",
		"postgres://u:se%zzcret@db/x":       "postgres://xxxxx",
		"https://u:secret@xcap.example/x":   "https://u:xxxxx@xcap.example/x",
	} {
		if got := server.Mask(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	_, out, _ := execute(t, "config", "dump", "--store", "postgres://u:secret@db/x", "--users", "postgres://u:secret@db/y", "--xcap", "https://u:secret@xcap.example/x")
	if strings.Contains(out, "secret") {
		t.Error(out)
	}
}

// A dump is a configuration file that means the same.
func TestDumpRoundTrip(t *testing.T) {
	want := dump(t, "--sync", "full", "--remote", "example.org=sip:192.0.2.1", "--trust", "192.0.2.0/24")
	_, out, _ := execute(t, "config", "dump", "--sync", "full", "--remote", "example.org=sip:192.0.2.1", "--trust", "192.0.2.0/24")
	if got := dump(t, "--config", writeFile(t, out)); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\n%+v", got, want)
	}
}
