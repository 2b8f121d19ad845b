package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/urfave/cli/v2"
)

func TestUsageErrors(t *testing.T) {
	tests := []struct {
		args []string
		want string // beginning of standard error
	}{
		{[]string{"serv"}, "rollcall: \"serv\" is no command of 'rollcall'. Did you mean \"serve\"?\nRun 'rollcall --help' for its usage.\n"},
		{[]string{"list", "shw"}, "rollcall: \"shw\" is no command of 'rollcall list'. Did you mean \"show\"?\n"},
		{[]string{"serve", "--lissen", "x"}, "rollcall: no flag --lissen. Did you mean \"--listen\"?\nRun 'rollcall serve --help' for its usage.\n"},
		{[]string{"serve", "x"}, "rollcall: \"x\" is one argument too many\n"},
		{[]string{"demo", "x"}, "rollcall: \"x\" is one argument too many\n"},
		{[]string{"demo", "--for", "soon"}, "rollcall: invalid value \"soon\" for flag -for"},
		{[]string{"demo", "--for", "-1s"}, "rollcall: --for cannot be negative\n"},
		{[]string{"demo", "--listen", "tcp:127.0.0.1:0"}, "rollcall: --listen has no udp address, which the buddies need\n"},
		{[]string{"watch"}, "rollcall: URI is missing\nRun 'rollcall watch --help' for its usage.\n"},
		{[]string{"watch", "sip:"}, "rollcall: \"sip:\" is not a URI: "},
		{[]string{"watch", "http://example.com"}, "rollcall: \"http://example.com\" is not a URI: "},
		{[]string{"watch", "sip:a@example.com", "sip:b@example.com"}, "rollcall: \"sip:b@example.com\" is one argument too many\n"},
		{[]string{"watch", "sip:a@example.com", "--count", "-1"}, "rollcall: --expires, --count and --for cannot be negative\n"},
		{[]string{"watch", "sip:a@example.com", "--timeout", "0"}, "rollcall: "},
		{[]string{"watch", "sip:a@example.com", "--server", "sip:192.0.2.1;transport=tls"}, "rollcall: server \"sip:192.0.2.1;transport=tls\": transport TLS is not supported here"},
		{[]string{"publish", "sip:a@example.com"}, "rollcall: --status open or --status closed is missing\n"},
		{[]string{"publish", "sip:a@example.com", "--status", "away"}, "rollcall: --status \"away\" is neither open nor closed\n"},
		{[]string{"publish", "sip:a@example.com", "--remove"}, "rollcall: --remove needs --etag"},
		{[]string{"publish", "sip:a@example.com", "--status", "open", "--file", "x"}, "rollcall: --status and --file exclude each other\n"},
		{[]string{"publish", "sip:a@example.com", "--file", "/nowhere/x"}, "rollcall: open /nowhere/x: "},
		{[]string{"publish", "sip:a@example.com", "--event", "dialog"}, "rollcall: --file is missing\n"},
		{[]string{"publish", "sip:a@example.com", "--event", "dialog", "--status", "open"}, "rollcall: --status and --note are about presence; --event dialog takes a --file\n"},
		{[]string{"publish", "sip:a@example.com", "--event", "a b", "--file", "-"}, "rollcall: --event and --type have no spaces\n"},
		{[]string{"publish", "sip:a@example.com", "--event", "weather", "--file", "-"}, "rollcall: --type is missing: the media type of package weather is not known\n"},
		{[]string{"publish", "sip:a@example.com", "--status", "open", "--type", "a/b"}, "rollcall: --type goes with --file\n"},
		{[]string{"publish", "sip:a@example.com", "--status", "open", "--expires", "0"}, "rollcall: --expires must be more than 0"},
		{[]string{"list", "show"}, "rollcall: URI is missing\n"},
		{[]string{"list", "ls", "x"}, "rollcall: \"x\" is one argument too many\n"},
		{[]string{"trace"}, "rollcall: URI, --peer or --call-id is missing\n"},
		{[]string{"trace", "a b"}, "rollcall: \"a b\" is not a URI"},
		{[]string{"trace", "sip:a@example.com", "x"}, "rollcall: \"x\" is one argument too many\n"},
		{[]string{"user", "ad"}, "rollcall: \"ad\" is no command of 'rollcall user'. Did you mean \"add\"?\n"},
		{[]string{"user", "add"}, "rollcall: USER@DOMAIN is missing\n"},
		{[]string{"user", "add", "alice@example.com", "secret"}, "rollcall: \"secret\" is one argument too many\n"},
		{[]string{"user", "add", "alice"}, "rollcall: \"alice\" is not USER@DOMAIN\n"},
		{[]string{"user", "passwd", "alice@"}, "rollcall: \"alice@\" is not USER@DOMAIN\n"},
		{[]string{"user", "rm", "@example.com"}, "rollcall: \"@example.com\" is not USER@DOMAIN\n"},
		{[]string{"user", "add", "alice@example.com"}, "rollcall: no password on standard input\n"},
		{[]string{"user", "list", "x"}, "rollcall: \"x\" is one argument too many\n"},
		{[]string{"config", "dump", "x"}, "rollcall: \"x\" is one argument too many\n"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			code, out, errw := execute(t, tt.args...)
			if code != 2 || out != "" || !strings.HasPrefix(errw, tt.want) {
				t.Errorf("exit code %d\nstdout %q\nstderr %q", code, out, errw)
			}
		})
	}
}

// Help goes to standard output, and every command that does something has an
// example.
func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"list"}, {"list", "--help"}, {"--version"}} {
		if code, out, errw := execute(t, args...); code != 0 || !strings.Contains(out, "rollcall") || errw != "" {
			t.Errorf("%v: exit code %d\n%s\n%s", args, code, out, errw)
		}
	}
	var visit func(path []string, commands []*cli.Command)
	visit = func(path []string, commands []*cli.Command) {
		for _, cmd := range commands {
			full := append(slices.Clone(path), cmd.Name)
			if len(cmd.Subcommands) > 0 {
				visit(full, cmd.Subcommands)
				continue
			}
			if full[0] == "completion" {
				continue
			}
			code, out, errw := execute(t, append(full, "--help")...)
			if code != 0 || errw != "" || !strings.Contains(out, "Example") || !strings.Contains(out, "rollcall "+full[0]) {
				t.Errorf("%v: exit code %d\n%s\n%s", full, code, out, errw)
			}
		}
	}
	visit(nil, newApp().Commands)
}

func TestCompletion(t *testing.T) {
	saved := os.Args // where the library looks for what is being completed
	defer func() { os.Args = saved }()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--generate-bash-completion"}, "serve"},
		{[]string{"list", "--generate-bash-completion"}, "show"},
		{[]string{"user", "--generate-bash-completion"}, "passwd"},
		{[]string{"watch", "sip:a@example.com", "--no", "--generate-bash-completion"}, "--no-list"},
		{[]string{"completion", "bash"}, "complete -o bashdefault"},
		{[]string{"completion", "zsh"}, "#compdef rollcall"},
		{[]string{"completion", "fish"}, "complete -c rollcall"},
	} {
		os.Args = append([]string{"rollcall"}, tt.args...)
		if code, out, errw := execute(t, tt.args...); code != 0 || !strings.Contains(out, tt.want) || errw != "" {
			t.Errorf("%v: exit code %d\n%s\n%s", tt.args, code, out, errw)
		}
	}
}

func TestInterleave(t *testing.T) {
	tests := []struct{ in, want string }{
		{"watch sip:a --count 1 --json", "watch --count 1 --json sip:a"},
		{"watch --json sip:a --count=1", "watch --json --count=1 sip:a"},
		{"watch -- --json", "watch -- --json"},
		{"watch a -- --json --count", "watch -- a --json --count"},
		{"watch sip:a --count", "watch --count sip:a"},
		{"watch sip:a --unknown b", "watch --unknown sip:a b"},
		{"publish a --file - --keep", "publish --file - --keep a"},
		{"list show a --json", "list show --json a"},
		{"list nonsense --json", "list nonsense --json"},
		{"--help watch a --json", "--help watch a --json"},
		{"watch a --json --generate-bash-completion", "watch --json a --generate-bash-completion"},
		{"", ""},
	}
	for _, tt := range tests {
		got := interleave(newApp().Commands, append([]string{"rollcall"}, strings.Fields(tt.in)...))
		if s := strings.Join(got[1:], " "); s != tt.want {
			t.Errorf("%q: %q, want %q", tt.in, s, tt.want)
		}
	}
}

// Nothing is lost or made up, but a "--" may move.
func FuzzInterleave(f *testing.F) {
	f.Add("watch sip:a --count 1 --json")
	f.Add("watch a -- --json -- --count")
	f.Add("list show - --json")
	commands := newApp().Commands
	f.Fuzz(func(t *testing.T, line string) {
		in := append([]string{"rollcall"}, strings.Split(line, " ")...)
		out := interleave(commands, in)
		a, b := slices.Sorted(slices.Values(in)), slices.Sorted(slices.Values(out))
		if !slices.Equal(a, b) {
			t.Errorf("%q became %q", in, out)
		}
		// Once in order, it stays so.
		if again := interleave(commands, out); !slices.Equal(again, out) {
			t.Errorf("%q became %q", out, again)
		}
	})
}

func TestExitCode(t *testing.T) {
	wrapped := fmt.Errorf("demo: %w", coded(exitNotFound, fs.ErrNotExist))
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{coded(exitUsage, errors.New("x")), 2},
		{wrapped, 3},
		{withCode(&refusal{status: 404}), 3},
		{withCode(&refusal{status: 403}), 1},
		{withCode(&unreachable{"x", errTimeout}), 4},
	} {
		if got := exitCode(tt.err); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.err, got, tt.want)
		}
	}
}

// What a person sees holds no control characters, and a table is as wide as
// its widest cells.
func FuzzTable(f *testing.F) {
	f.Add("Alice", "In a \x1b[31mmeeting\n", "\u202eevil")
	f.Add("", "\x9b2J", strings.Repeat("é", 100))
	f.Fuzz(func(t *testing.T, a, b, c string) {
		tb := &table{head: []string{"A", "B", "C"}, max: []int{0, 10, 5}}
		tb.add(a, b, c)
		tb.add(c, a, b)
		out := string(tb.append(nil))
		rows := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		if len(rows) != 3 {
			t.Fatalf("%d lines in %q", len(rows), out)
		}
		for _, r := range rows {
			if strings.ContainsFunc(r, unicode.IsControl) || strings.HasSuffix(r, " ") {
				t.Errorf("line %q", r)
			}
		}
	})
}
