package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"rollcall/server"
	"rollcall/sql"
)

// openLimit bounds how long opening a store may take.
const openLimit = 30 * time.Second

// shownProblems bounds the problems, or bad lines, shown to a person.
const shownProblems = 100

func storeCommand() *cli.Command {
	return &cli.Command{
		Name: "store", Usage: "the database: its schema, its rows, moving it",
		Subcommands: []*cli.Command{
			{
				Name: "status", Usage: "show the engine, the schema's version and the migrations", ArgsUsage: " ", Flags: storeFlags(jsonFlag()),
				Description: "Works beside a running server. Exit code 3 when there is no such file, 4 when PostgreSQL does not answer.\n\n" +
					"Example:\n\n   rollcall store status --store sqlite:/var/lib/rollcall/rollcall.db",
				Action: storeStatus,
			},
			{
				Name: "check", Usage: "look for damage and for rows that no server can use", ArgsUsage: " ", Flags: storeFlags(jsonFlag()),
				Description: "Reads every row, and has SQLite check the file. Works beside a running server. Exit code 1 when something is wrong.\n\n" +
					"Example:\n\n   rollcall store check --config /etc/rollcall.yaml",
				Action: storeCheck,
			},
			{
				Name: "migrate", Usage: "bring the schema to this program's version, or another", ArgsUsage: " ",
				Flags: storeFlags(
					&cli.Int64Flag{Name: "to", Usage: "version `N`; 0 for none", DefaultText: "the newest"},
					&cli.BoolFlag{DisableDefaultText: true, Name: "down", Usage: "allow an older version, which loses what only the newer one can hold; without --to one step"},
				),
				Description: "Serve migrates by itself at start. Not while a server runs.\n\nExample, before going back to an older program:\n\n" +
					"   rollcall store migrate --store sqlite:rollcall.db --to 2 --down",
				Action: storeMigrate,
			},
			{
				Name: "export", Usage: "write all rows as lines of JSON", ArgsUsage: "[FILE]", Flags: storeFlags(),
				Description: "Writes to standard output without FILE, which must not exist. Works beside a running server and shows one moment of it. " +
					"What is written lets its reader log in as any user: keep it as you keep the database.\n\n" +
					"Example:\n\n   rollcall store export --store sqlite:rollcall.db rollcall.jsonl",
				Action: storeExport,
			},
			{
				Name: "import", Usage: "read what export wrote, into whatever engine", ArgsUsage: "[FILE]",
				Flags: storeFlags(
					&cli.BoolFlag{DisableDefaultText: true, Name: "merge", Usage: "into a store that has rows; those of the same keys are replaced"},
					&cli.BoolFlag{DisableDefaultText: true, Name: "dry-run", Usage: "read and check everything, write nothing; the store must be there"},
				),
				Description: "Reads standard input without FILE. The store is made when there is none; not while a server runs on it. Lines that no server could use " +
					"are left out and told with their numbers; exit code 1 then.\n\n" +
					"Example:\n\n   rollcall store export --store sqlite:old.db | rollcall store import --store postgres://rollcall@db/rollcall",
				Action: storeImport,
			},
		},
	}
}

func storeFlags(more ...cli.Flag) []cli.Flag {
	flags := []cli.Flag{configFlag()}
	for _, s := range settings {
		switch s.name {
		case "store":
			flags = append(flags, &cli.StringFlag{Name: s.name, Usage: s.usage, Category: s.category, DefaultText: s.fallback, EnvVars: []string{s.variable()}})
		case "packages":
			flags = append(flags, &cli.StringSliceFlag{Name: s.name, Usage: s.usage, Category: s.category, DefaultText: s.fallback, EnvVars: []string{s.variable()}})
		}
	}
	return append(flags, more...)
}

// storeConfig is what flags, the environment and the file say of the store.
func storeConfig(c *cli.Context) (server.Config, error) {
	cfg := server.Default()
	if file := c.String("config"); file != "" {
		if faults := readConfig(file, &cfg); len(faults) > 0 {
			return cfg, coded(exitUsage, errors.Join(faults...))
		}
	}
	if v := c.String("store"); v != "" {
		cfg.Store = v
	}
	m, faults := pairs("packages", c.StringSlice("packages"))
	if len(faults) > 0 {
		return cfg, coded(exitUsage, errors.Join(faults...))
	}
	if len(m) > 0 {
		cfg.Packages = m
	}
	return cfg, nil
}

// rowCheck tells which rows a server could not use.
func rowCheck(c *cli.Context) (func(row any) error, error) {
	cfg, err := storeConfig(c)
	if err != nil {
		return nil, err
	}
	check, err := server.RowCheck(cfg.Packages)
	if err != nil {
		return nil, coded(exitUsage, err)
	}
	return check, nil
}

// openStore opens the store that --store, the environment or the file names.
func openStore(c *cli.Context, opt sql.Options) (*sql.Store, error) {
	cfg, err := storeConfig(c)
	if err != nil {
		return nil, err
	}
	kind, rest, _ := strings.Cut(cfg.Store, ":")
	switch {
	case cfg.Store == "memory":
		return nil, usagef(c, "the store is memory: it ends with its server and has nothing to look at")
	case kind == "sqlite" && rest != "", kind == "postgres", kind == "postgresql":
	default:
		return nil, usagef(c, "--store %q is neither sqlite:PATH nor postgres://...", server.Mask(cfg.Store))
	}
	ctx, cancel := context.WithTimeout(c.Context, openLimit)
	defer cancel()
	st, err := sql.Open(ctx, cfg.Store, opt)
	return st, storeError(err)
}

// storeError gives an error of a store its exit code.
func storeError(err error) error {
	var network *net.OpError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return coded(exitNotFound, err)
	case errors.As(err, &network):
		return coded(exitUnreachable, err)
	case errors.Is(err, sql.ErrInUse):
		return fmt.Errorf("%w; stop it first", err)
	}
	return err
}

// openAlone opens a store for a command without arguments.
func openAlone(c *cli.Context, opt sql.Options) (*sql.Store, error) {
	if _, err := arguments(c); err != nil {
		return nil, err
	}
	return openStore(c, opt)
}

func storeStatus(c *cli.Context) error {
	st, err := openAlone(c, sql.Options{Beside: true, NoMigrate: true})
	if err != nil {
		return err
	}
	defer st.Close()
	s, err := st.Status(c.Context)
	if err != nil {
		return storeError(err)
	}
	return printStatus(c, s)
}

func printStatus(c *cli.Context, s sql.Status) error {
	if c.Bool("json") {
		return printJSON(c.App.Writer, s)
	}
	fmt.Fprintf(c.App.Writer, "%s, schema version %d, this program's is %d\n", clean(s.Store), s.Current, s.Target)
	t := &table{head: []string{"Version", "Migration", "Applied"}}
	for _, m := range s.Migrations {
		applied := "pending"
		if !m.Applied.IsZero() {
			applied = m.Applied.Format(time.RFC3339)
		}
		t.add(strconv.FormatInt(m.Version, 10), m.Name, applied)
	}
	return t.print(c.App.Writer)
}

func storeCheck(c *cli.Context) error {
	st, err := openAlone(c, sql.Options{Beside: true})
	if err != nil {
		return err
	}
	defer st.Close()
	check, err := rowCheck(c)
	if err != nil {
		return err
	}
	bad := 0
	n, err := server.CheckStore(c.Context, st, check, time.Now(), func(p server.StoreProblem) {
		bad++
		switch {
		case c.Bool("json"):
			printJSON(c.App.Writer, p)
		case bad <= shownProblems:
			fmt.Fprintln(c.App.Writer, clean(strings.TrimSpace(p.Table+" "+p.Key)+": "+p.Problem))
		case bad == shownProblems+1:
			note(c, "more problems are not shown; --json shows all")
		}
	})
	if err != nil {
		return storeError(err)
	}
	if !c.Bool("json") {
		fmt.Fprintf(c.App.Writer, "%s: %s\n", clean(st.String()), counts(n))
	}
	if bad > 0 {
		return fmt.Errorf("%s found", plural(bad, "problem"))
	}
	return nil
}

func counts(n sql.Counts) string {
	s := fmt.Sprintf("%s, %s, %s, %s, %s", plural(int(n.Subscriptions), "subscription"), plural(int(n.Remotes), "remote subscription"), plural(int(n.Publications), "publication"),
		plural(int(n.Documents), "document"), plural(int(n.Subscribers), "user"))
	if n.Meta > 0 {
		s += ", " + plural(int(n.Meta), "other value")
	}
	return s
}

func storeMigrate(c *cli.Context) error {
	st, err := openAlone(c, sql.Options{NoMigrate: true})
	if err != nil {
		return err
	}
	defer st.Close()
	s, err := st.Status(c.Context)
	if err != nil {
		return storeError(err)
	}
	to := s.Target
	switch {
	case c.IsSet("to"):
		to = c.Int64("to")
	case c.Bool("down"):
		to = max(s.Current-1, 0)
	}
	if to < 0 || to > s.Target {
		return usagef(c, "there is no version %d: this program knows 0 to %d", to, s.Target)
	}
	if to < s.Current && s.Current <= s.Target && !c.Bool("down") {
		return usagef(c, "version %d is older than the store's %d, and what only the newer one can hold would be lost; say --down if you mean it", to, s.Current)
	}
	if err := st.MigrateTo(c.Context, to); err != nil {
		return storeError(err)
	}
	fmt.Fprintf(c.App.Writer, "%s: schema version %d, was %d\n", clean(s.Store), to, s.Current)
	return nil
}

// optional gives the only argument, or "".
func optional(c *cli.Context, name string) (string, error) {
	if !c.Args().Present() {
		return "", nil
	}
	args, err := arguments(c, name)
	if err != nil {
		return "", err
	}
	return args[0], nil
}

func storeExport(c *cli.Context) (err error) {
	name, err := optional(c, "FILE")
	if err != nil {
		return err
	}
	st, err := openStore(c, sql.Options{Beside: true})
	if err != nil {
		return err
	}
	defer st.Close()
	to := c.App.Writer
	if name != "" {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		n, err := st.Export(c.Context, f)
		if err == nil {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			os.Remove(name) // half an export is none
			return storeError(err)
		}
		note(c, "%s", counts(n))
		return nil
	}
	n, err := st.Export(c.Context, to)
	if err != nil {
		return storeError(err)
	}
	note(c, "%s", counts(n))
	return nil
}

func storeImport(c *cli.Context) error {
	name, err := optional(c, "FILE")
	if err != nil {
		return err
	}
	from := c.App.Reader
	if name != "" {
		f, err := os.Open(name)
		if err != nil {
			return storeError(err)
		}
		defer f.Close()
		from = f
	}
	st, err := openStore(c, sql.Options{Beside: c.Bool("dry-run")})
	if err != nil {
		return err
	}
	defer st.Close()
	check, err := rowCheck(c)
	if err != nil {
		return err
	}
	bad := 0
	n, err := st.Import(c.Context, from, sql.ImportOptions{
		Merge: c.Bool("merge"), Check: c.Bool("dry-run"), Row: check,
		Bad: func(b *sql.BadLine) {
			if bad++; bad <= shownProblems {
				fmt.Fprintln(c.App.ErrWriter, clean(b.Error()))
			}
		},
	})
	if errors.Is(err, sql.ErrNotEmpty) {
		err = fmt.Errorf("%w; --merge puts the rows beside those", err)
	}
	done := "imported"
	if c.Bool("dry-run") {
		done = "would import"
	}
	if err == nil || n != (sql.Counts{}) {
		fmt.Fprintf(c.App.Writer, "%s %s\n", done, counts(n))
	}
	if err == nil && bad > 0 {
		err = fmt.Errorf("%s left out", plural(bad, "line"))
	}
	return storeError(err)
}
