package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"

	"github.com/urfave/cli/v2"

	"rollcall/server"
)

func importCommand() *cli.Command {
	flags := []cli.Flag{configFlag()}
	for _, f := range configFlags() {
		if slices.Contains([]string{"store", "domain", "sync", "users", "xcap", "presence-auth"}, f.Names()[0]) {
			flags = append(flags, f)
		}
	}
	flags = append(
		flags,
		&cli.BoolFlag{DisableDefaultText: true, Name: "dry-run", Usage: "change nothing, only report"},
		&cli.BoolFlag{DisableDefaultText: true, Name: "verbose", Aliases: []string{"v"}, Usage: "name each row that is not taken"},
		&cli.BoolFlag{DisableDefaultText: true, Name: "json", Usage: "print a JSON object for each row, then one for each table"},
	)
	peer := func(name, title, db string) *cli.Command {
		return &cli.Command{
			Name: name, Usage: "take over from " + title, ArgsUsage: "DSN", Flags: flags,
			Description: "DSN is " + title + "'s database: sqlite:PATH, postgres://..., or mysql://USER:PASSWORD@HOST/DATABASE (MySQL, MariaDB; ?socket=PATH).\n" +
				"Its tables presentity, active_watchers, rls_watchers, xcap and subscriber are taken into the store, and watchers is compared with the rules.\n" +
				"Stop " + title + " first, so that it writes out what it has, and start the server on its addresses afterwards: its dialogs go on. " +
				"A run again takes nothing twice.\n\n" +
				"Example:\n\n   rollcall import " + name + " " + db + " --store sqlite:/var/lib/rollcall/rollcall.db --domain example.com --dry-run -v",
			Action: importPeer,
		}
	}
	return &cli.Command{
		Name: "import", Usage: "take over subscriptions, publications, documents and users from another server",
		Subcommands: []*cli.Command{
			peer("kamailio", "Kamailio", "mysql://kamailioro:PASSWORD@localhost/kamailio"),
			peer("opensips", "OpenSIPS", "postgres://opensips:PASSWORD@localhost/opensips"),
		},
	}
}

func importPeer(c *cli.Context) error {
	args, err := arguments(c, "DSN")
	if err != nil {
		return err
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	if cfg.Store == "memory" {
		return usagef(c, "--store memory keeps nothing: name a database")
	}
	enc := json.NewEncoder(c.App.Writer)
	enc.SetEscapeHTML(false)
	var werr error
	opt := server.ImportOptions{DryRun: c.Bool("dry-run"), Each: func(r server.ImportRow) {
		switch {
		case c.Bool("json"):
			if werr == nil {
				werr = enc.Encode(r)
			}
		case c.Bool("verbose") && r.Outcome == "not taken":
			fmt.Fprintln(c.App.ErrWriter, clean(fmt.Sprintf("%s %s: %s: %s", r.Table, dash(r.ID), r.Row, r.Reason)))
		}
	}}
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelWarn}))
	tables, err := server.Import(c.Context, cfg, c.Command.Name, args[0], opt, log)
	if c.Bool("json") {
		for _, t := range tables {
			werr = errors.Join(werr, enc.Encode(t))
		}
	} else {
		werr = errors.Join(werr, importReport(c, tables))
	}
	if err == nil && opt.DryRun {
		note(c, "a dry run: nothing was changed")
	}
	return errors.Join(err, werr)
}

// importReport prints the counts and under them why rows were not taken.
func importReport(c *cli.Context, tables []*server.ImportTable) error {
	if len(tables) == 0 {
		return nil
	}
	t := &table{head: []string{"Table", "Rows", "Taken", "Already", "Expired", "Same", "Not taken"}}
	for _, x := range tables {
		t.add(x.Table, strconv.Itoa(x.Rows), strconv.Itoa(x.Taken), strconv.Itoa(x.Already), strconv.Itoa(x.Expired), strconv.Itoa(x.Same), strconv.Itoa(x.NotTaken))
	}
	if err := t.print(c.App.Writer); err != nil {
		return err
	}
	why := &table{head: []string{"Table", "Rows", "Not taken because"}}
	for _, x := range tables {
		if x.Fault != "" {
			why.add(x.Table, "all", x.Fault)
		}
		for _, reason := range slices.Sorted(maps.Keys(x.Reasons)) {
			why.add(x.Table, strconv.Itoa(x.Reasons[reason]), reason)
		}
	}
	if len(why.rows) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(c.App.Writer); err != nil {
		return err
	}
	return why.print(c.App.Writer)
}
