package main

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"unicode"

	"github.com/urfave/cli/v2"
)

// Exit codes of every command.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2 // or configuration
	exitNotFound    = 3
	exitUnreachable = 4
)

// failure is an error with an exit code other than exitFailed.
type failure struct {
	code int
	err  error
	hint string // for a usage error: which command to ask for help
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// coded gives err an exit code.
func coded(code int, err error) error { return &failure{code: code, err: err} }

// usagef makes a usage error.
func usagef(c *cli.Context, format string, args ...any) error {
	return &failure{code: exitUsage, err: fmt.Errorf(format, args...), hint: helpName(c)}
}

func helpName(c *cli.Context) string {
	if c.Command == nil || c.Command.HelpName == "" {
		return c.App.Name
	}
	return c.Command.HelpName
}

func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	var f *failure
	if errors.As(err, &f) {
		return f.code
	}
	return exitFailed
}

// report prints an error, each of joined ones on its line.
func report(w io.Writer, err error) {
	if err == nil {
		return
	}
	for _, e := range flatten(err) {
		fmt.Fprintf(w, "rollcall: %s\n", clean(e.Error()))
	}
	var f *failure
	if errors.As(err, &f) && f.hint != "" {
		fmt.Fprintf(w, "Run '%s --help' for its usage.\n", f.hint)
	}
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	var f *failure
	if errors.As(err, &f) {
		err = f.err
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}

// note tells a person something beside the data.
func note(c *cli.Context, format string, args ...any) {
	fmt.Fprintf(c.App.ErrWriter, "note: %s\n", clean(fmt.Sprintf(format, args...)))
}

// clean makes text from the network safe to show on a terminal: control
// characters and those that change the direction of writing become spaces.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, s)
}

// version is that of the module the binary was built from.
func version() string {
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" && bi.Main.Version != "(devel)" {
		return bi.Main.Version
	}
	return "dev"
}

func newApp() *cli.App {
	app := &cli.App{
		Name: "rollcall", Usage: "SIP presence server, resource list server and their tools", Version: version(),
		Description: "Start with 'rollcall demo'. Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 not found, 4 server unreachable.",
		Commands: []*cli.Command{
			serveCommand(), demoCommand(), watchCommand(), publishCommand(), listCommand(), presentityCommand(),
			subscriptionCommand(), authCommand(), userCommand(), storeCommand(), importCommand(), traceCommand(), configCommand(), completionCommand(),
		},
		EnableBashCompletion: true,
		Suggest:              true,
		Action:               noCommand,
		OnUsageError:         usageError,
		ExitErrHandler:       func(*cli.Context, error) {}, // run reports and chooses the code
	}
	prepare(app.Commands)
	return app
}

// prepare gives every command the same handling of usage errors.
func prepare(commands []*cli.Command) {
	for _, cmd := range commands {
		cmd.OnUsageError = usageError
		if len(cmd.Subcommands) > 0 {
			cmd.Action = noCommand
			prepare(cmd.Subcommands)
		}
	}
}

// noCommand runs when what was asked for is no command.
func noCommand(c *cli.Context) error {
	if !c.Args().Present() {
		if c.Command != nil && len(c.Command.Subcommands) > 0 && c.Command.Name != c.App.Name {
			return cli.ShowSubcommandHelp(c)
		}
		return cli.ShowAppHelp(c)
	}
	commands := c.App.Commands
	if c.Command != nil && len(c.Command.Subcommands) > 0 {
		commands = c.Command.Subcommands
	}
	return usagef(c, "%q is no command of '%s'. %s", c.Args().First(), helpName(c), cli.SuggestCommand(commands, c.Args().First()))
}

var unknownFlag = regexp.MustCompile(`^flag provided but not defined: -+(.*)$`)

func usageError(c *cli.Context, err error, _ bool) error {
	if m := unknownFlag.FindStringSubmatch(err.Error()); m != nil {
		var flags []cli.Flag
		if c.Command != nil {
			flags = c.Command.Flags
		}
		return usagef(c, "no flag --%s. Did you mean %q?", m[1], cli.SuggestFlag(flags, m[1], false))
	}
	return usagef(c, "%w", err)
}

// arguments gives the arguments of a command that wants exactly the named
// ones.
func arguments(c *cli.Context, names ...string) ([]string, error) {
	got := c.Args().Slice()
	if len(got) < len(names) {
		return nil, usagef(c, "%s is missing", names[len(got)])
	}
	if len(got) > len(names) {
		return nil, usagef(c, "%q is one argument too many", got[len(names)])
	}
	return got, nil
}

// interleave puts the flags of a command before its arguments, so that people
// may write them in any order; the library wants them first. What follows "--"
// stays arguments.
func interleave(commands []*cli.Command, args []string) []string {
	const completion = "--generate-bash-completion"
	var cmd *cli.Command
	i := 1
	for i < len(args) && commands != nil {
		k := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[i]) })
		if k < 0 {
			break
		}
		cmd, commands = commands[k], commands[k].Subcommands
		i++
	}
	if cmd == nil || len(cmd.Subcommands) > 0 {
		return args
	}
	rest := args[i:]
	var flags, words, last []string
	if n := len(rest); n > 0 && rest[n-1] == completion {
		rest, last = rest[:n-1], rest[n-1:]
	}
	dashes := false
	for k := 0; k < len(rest); k++ {
		a := rest[k]
		switch {
		case a == "--":
			dashes = true
			words = append(words, rest[k+1:]...)
			k = len(rest)
		case len(a) < 2 || a[0] != '-':
			words = append(words, a)
		default:
			flags = append(flags, a)
			if takesValue(cmd, strings.TrimLeft(a, "-")) && k+1 < len(rest) {
				k++
				flags = append(flags, rest[k])
			}
		}
	}
	out := append(slices.Clone(args[:i]), flags...)
	if dashes {
		out = append(out, "--")
	}
	return append(append(out, words...), last...)
}

// takesValue tells whether the word after a flag belongs to it.
func takesValue(cmd *cli.Command, name string) bool {
	for _, f := range cmd.Flags {
		if slices.Contains(f.Names(), name) {
			v, ok := f.(cli.DocGenerationFlag)
			return ok && v.TakesValue()
		}
	}
	return false
}
