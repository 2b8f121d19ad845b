package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/sql"
)

// StoreProblem is something wrong in a store.
type StoreProblem struct {
	Table   string `json:"table"` // "" for the database itself
	Key     string `json:"key"`
	Problem string `json:"problem"`
}

// expiredLong is how long ago a row must have ended to be a problem: a running
// server deletes it within seconds, the next start within minutes.
const expiredLong = 24 * time.Hour

// RowCheck gives a function that tells why a server with these further packages
// could not restore a row: of a subscription, here or at another server, or of a
// publication; others are not looked at.
func RowCheck(declared map[string]string) (func(row any) error, error) {
	served, err := pa.Declare(declared)
	if err != nil {
		return nil, fmt.Errorf("packages: %w", err)
	}
	reg := dialog.NewRegistry(pa.Events(served...)...)
	return func(row any) error {
		switch row := row.(type) {
		case dialog.SubscriptionRow:
			return row.Check(reg)
		case dialog.RemoteRow:
			return row.Check(reg)
		case pa.PublicationRow:
			return checkPublication(served, &row)
		}
		return nil
	}, nil
}

func checkPublication(served []*pa.Package, row *pa.PublicationRow) error {
	if row.Resource == "" || row.ID == "" || row.ETag == "" {
		return errors.New("resource, id or entity tag is empty")
	}
	return pa.Check(served, row)
}

// CheckStore looks at every row of a store and at the database, and calls report
// for each problem. check is from RowCheck. It gives the number of rows. A server
// may run meanwhile.
func CheckStore(ctx context.Context, st *sql.Store, check func(row any) error, now time.Time, report func(StoreProblem)) (sql.Counts, error) {
	var n sql.Counts
	found, err := st.Integrity(ctx)
	if err != nil {
		return n, err
	}
	for _, f := range found {
		report(StoreProblem{Problem: f})
	}
	expired := func(ms int64) error {
		if ago := now.Sub(time.UnixMilli(ms)); ago > expiredLong {
			return fmt.Errorf("expired %s ago", ago.Round(time.Hour))
		}
		return nil
	}
	err = st.Subscriptions(ctx, func(r dialog.SubscriptionRow) error {
		n.Subscriptions++
		if err := errors.Join(check(r), expired(r.ExpiresMS)); err != nil {
			report(StoreProblem{"subscription", r.ID, oneLine(err)})
		}
		return nil
	})
	if err != nil {
		return n, err
	}
	err = st.Remotes(ctx, func(r dialog.RemoteRow) error {
		n.Remotes++
		ends := r.ExpiresMS
		if ends == 0 { // nobody has answered yet
			ends = r.CreatedMS
		}
		if err := errors.Join(check(r), expired(ends)); err != nil {
			report(StoreProblem{"remote_subscription", r.ID, oneLine(err)})
		}
		return nil
	})
	if err != nil {
		return n, err
	}
	err = st.Publications(ctx, func(r pa.PublicationRow) error {
		n.Publications++
		if err := errors.Join(check(r), expired(r.ExpiresMS)); err != nil {
			report(StoreProblem{"publication", r.Resource + " " + r.Event + " " + r.ID, oneLine(err)})
		}
		return nil
	})
	if err != nil {
		return n, err
	}
	for _, auid := range documentAUIDs {
		all, err := st.Selectors(ctx, auid)
		if err != nil {
			return n, err
		}
		n.Documents += int64(len(all))
		for _, sel := range all {
			body, etag, err := st.DocumentBody(ctx, sel)
			switch {
			case errors.Is(err, sql.ErrNotFound): // gone meanwhile
			case err != nil:
				return n, err
			case etag == "":
				report(StoreProblem{"document", sel, "no entity tag"})
			case len(body) == 0:
				report(StoreProblem{"document", sel, "empty"})
			}
		}
	}
	err = st.Subscribers(ctx, "", func(u sql.Subscriber) error {
		n.Subscribers++
		if !u.Secrets.Known() {
			report(StoreProblem{"subscriber", u.Username + "@" + u.Domain, "no secret: nobody can log in as this user"})
		}
		return nil
	})
	return n, err
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
