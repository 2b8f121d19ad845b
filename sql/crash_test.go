package sql

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"rollcall/dialog"
	"rollcall/pa"
)

// child is the process that TestKill kills. It prints a number once everything up to it has been acknowledged.
func child(dsn string) {
	s, err := Open(context.Background(), dsn, Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for i := 0; ; i += 3 { // one row alone and two at once, both paths
		err := s.Commit(context.Background(), puts(i, i+1))
		if err == nil {
			err = s.Commit(context.Background(), append(puts(i+1, i+3), pa.PutPublication{Row: pubRow(i)}, dialog.SetCSeqCeiling{ID: subRow(i).ID, Ceiling: 1000}))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(i + 3)
	}
}

// What was acknowledged before kill -9 is there afterwards, batches are whole, and the lock is free.
func TestKill(t *testing.T) {
	engines(t, func(t *testing.T, dsn string) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		acked := 0
		for _, want := range []int{300, 900} { // the second child starts over a database that was not closed
			cmd := exec.CommandContext(ctx, os.Args[0])
			cmd.Env = append(os.Environ(), "ROLLCALL_SQL_TEST_CHILD="+dsn)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			last := 0
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if last, err = strconv.Atoi(lines.Text()); err != nil {
					t.Fatal(err)
				}
				if last == want/2 {
					if _, err := Open(ctx, dsn, Options{}); !errors.Is(err, ErrInUse) {
						t.Errorf("beside a living server: %v", err)
					}
				}
				if last == want {
					cmd.Process.Kill()
				}
			}
			cmd.Wait()
			if last < want {
				t.Fatalf("the child ended after %d rows", last)
			}
			acked = max(acked, last)

			s := open(t, dsn, Options{})
			subs, pubs := loadSubs(t, s), loadPubs(t, s)
			for i := range acked {
				if _, ok := subs[subRow(i).ID]; !ok {
					t.Errorf("row %d was acknowledged and is gone", i)
				}
			}
			for i := 0; i < acked || subs[subRow(i).ID].ID != ""; i += 3 {
				_, one := subs[subRow(i+1).ID]
				_, two := subs[subRow(i+2).ID]
				p := pubRow(i)
				_, pub := pubs[p.Resource+"|"+p.Event+"|"+p.ID]
				raised := subs[subRow(i).ID].CSeqCeiling == 1000
				if one != two || one != pub || one != raised {
					t.Errorf("half a batch at %d: %v %v %v %v", i, one, two, pub, raised)
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
