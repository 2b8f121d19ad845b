package e2e

import (
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rollcall/e2e/child"
	"rollcall/e2e/crash"
)

// TestCrash is the short form of `go run ./e2e/load crash`: servers of its own
// are killed a few times on each engine and in each mode, and nothing that was
// acknowledged is lost. The last one answers before it stores, though that is
// not allowed, and must be found out. Most of the time is waiting, so all run
// at once.
func TestCrash(t *testing.T) {
	type run struct {
		name, store, durability string
		kills, stops            int
		found                   bool // loss is to be found

		opt  crash.Options
		rep  *crash.Report
		err  error
		took time.Duration
	}
	runs := []*run{
		{name: "SQLite write-through", durability: "write-through", kills: 3, stops: 1},
		{name: "SQLite write-back", durability: "write-back", kills: 2, stops: 1},
		{name: "PostgreSQL write-through", store: "postgres", durability: "write-through", kills: 2, stops: 1},
		{name: "PostgreSQL write-back", store: "postgres", durability: "write-back", kills: 2},
		{name: "loss is found", durability: "write-back", kills: 2, found: true},
	}
	var all sync.WaitGroup
	for _, r := range runs {
		o := crash.Default()
		o.Binary, o.Dir, o.Store, o.Durability, o.Kills, o.Stops = binary, t.TempDir(), r.store, r.durability, r.kills, r.stops
		o.Seed, o.Rate, o.Load = rand.Uint64(), 100, 700*time.Millisecond
		o.Presentities, o.Watchers, o.ListWatchers, o.Lists, o.Members, o.Owners = 20, 40, 12, 4, 10, 8
		o.Window = 2 * time.Second // they share the machine
		if r.found {
			o.Window, o.Rate, o.Seed = time.Nanosecond, 400, 101 // by which both kills are at an acknowledgement
		}
		r.opt = o
		all.Go(func() {
			began := time.Now()
			defer func() { r.took = time.Since(began) }()
			if r.opt.Store == "postgres" {
				var db *child.Postgres
				if db, r.err = child.NewPostgres(); r.err != nil {
					return
				}
				defer db.Close()
				if r.opt.Store, r.err = db.Database(); r.err != nil {
					return
				}
			}
			r.rep, r.err = crash.Run(t.Context(), r.opt)
		})
	}
	all.Wait()
	for _, r := range runs {
		t.Run(r.name, func(t *testing.T) {
			t.Logf("seed %d, %v", r.opt.Seed, r.took.Round(time.Millisecond))
			if r.err != nil {
				t.Fatal(r.err)
			}
			t.Logf("%d NOTIFYs, acknowledged %v, in doubt %v, killed %v, oldest lost %v ms", r.rep.Notifies, r.rep.Acknowledged, r.rep.InDoubt, r.rep.Kills, r.rep.Oldest)
			if r.rep.Acknowledged["initial SUBSCRIBE"] < 10 || r.rep.Acknowledged["modifying PUBLISH"] < 10 || r.rep.Notifies < 100 {
				t.Errorf("too little was done")
			}
			if r.found {
				lost := slices.ContainsFunc(r.rep.Details, func(d string) bool { return strings.Contains(d, "is lost") || strings.Contains(d, "is revived") })
				if !lost {
					t.Errorf("nothing is lost, or nobody noticed: %v", r.rep.Faults)
				}
				if r.rep.Faults["CSeq used again"]+r.rep.Faults["CSeq went down"]+r.rep.Faults["version used again"] > 0 {
					t.Errorf("CORE-12: %v", r.rep.Details)
				}
				return
			}
			for _, d := range r.rep.Details {
				t.Error(d)
			}
		})
	}
}
