package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"rollcall/e2e/child"
	"rollcall/e2e/crash"
)

// crashes starts a server of its own, kills it again and again under load, and
// reports what was lost.
func crashes(c *common, f *flag.FlagSet, args []string) (_ any, err error) {
	o := crash.Default()
	f.StringVar(&o.Binary, "binary", "", "the server; \"\": built from here")
	f.StringVar(&o.Store, "store", "", "as --store of the server, and empty; \"\": a new SQLite file; \"postgres\": a PostgreSQL of its own")
	f.StringVar(&o.Durability, "durability", o.Durability, "write-through or write-back")
	f.DurationVar(&o.Window, "window", o.Window, "how young an acknowledgement may be that write-back loses")
	f.IntVar(&o.Kills, "kills", o.Kills, "kill -9")
	f.IntVar(&o.Stops, "stops", o.Stops, "ends in order between them")
	f.Uint64Var(&o.Seed, "seed", 0, "of moments and load; 0: any")
	f.Float64Var(&o.Rate, "rate", o.Rate, "requests a second that are begun")
	f.DurationVar(&o.Load, "load", o.Load, "the longest time under load between two kills")
	f.IntVar(&o.Presentities, "m", o.Presentities, "presentities; every third has two publishers")
	f.IntVar(&o.Watchers, "w", o.Watchers, "watchers of one presentity each")
	f.IntVar(&o.ListWatchers, "lw", o.ListWatchers, "watchers of one list each")
	f.IntVar(&o.Lists, "lists", o.Lists, "lists")
	f.IntVar(&o.Members, "members", o.Members, "members of each list")
	f.IntVar(&o.Owners, "owners", o.Owners, "presentities that watch their watchers")
	f.StringVar(&o.Dir, "dir", "", "where the database and the server's log stay; \"\": nowhere, unless something was wrong")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64()
	}
	keep := o.Dir != ""
	if keep {
		err = os.MkdirAll(o.Dir, 0o755)
	} else {
		o.Dir, err = os.MkdirTemp("", "rollcall-crash")
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if !keep {
			os.RemoveAll(o.Dir)
		}
	}()
	if o.Store == "postgres" {
		db, err := child.NewPostgres()
		if err != nil {
			return nil, err
		}
		defer db.Close()
		if o.Store, err = db.Database(); err != nil {
			return nil, err
		}
	}
	if o.Binary == "" {
		o.Binary = filepath.Join(o.Dir, "rollcall")
		if out, err := exec.Command("go", "build", "-o", o.Binary, "rollcall/cmd/rollcall").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build: %w\n%s", err, out)
		}
	}
	o.Log = os.Stderr
	fmt.Fprintf(o.Log, "seed %d\n", o.Seed)
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	rep, err := crash.Run(ctx, o)
	if err != nil {
		keep = keep || !errors.Is(err, context.Canceled)
		return nil, fmt.Errorf("seed %d: %w", o.Seed, err)
	}
	if c.faults = total(rep.Faults); c.faults > 0 {
		keep = true
		fmt.Fprintf(o.Log, "the server's log and database are in %s\n", o.Dir)
	}
	return struct {
		Scenario string `json:"scenario"`
		*crash.Report
	}{c.scenario, rep}, nil
}
