package sql

import (
	"context"
	"fmt"

	"github.com/jmoiron/sqlx"

	"rollcall/dialog"
	"rollcall/pa"
)

// Subscriptions calls f with every stored subscription, in no particular order, as of one moment. It stops with f's
// error. f may use the Store; no more than three loads may run at once if it does. There is no time limit but ctx.
func (s *Store) Subscriptions(ctx context.Context, f func(dialog.SubscriptionRow) error) error {
	return load(ctx, s, subscriptions, f)
}

// Publications calls f with every stored publication; see Subscriptions.
func (s *Store) Publications(ctx context.Context, f func(pa.PublicationRow) error) error {
	return load(ctx, s, publications, f)
}

// Remotes calls f with every stored subscription at another server; see Subscriptions.
func (s *Store) Remotes(ctx context.Context, f func(dialog.RemoteRow) error) error {
	return load(ctx, s, remotes, f)
}

func load[R any](ctx context.Context, s *Store, t *table[R], f func(R) error) error {
	if s.mem != nil {
		return nil
	}
	return loadFrom(ctx, s, s.r, t, f)
}

func loadFrom[R any](ctx context.Context, s *Store, q sqlx.QueryerContext, t *table[R], f func(R) error) error {
	rows, err := q.QueryxContext(ctx, t.sel)
	if err != nil {
		return fmt.Errorf("sql: load %s: %w", t.name, err)
	}
	defer rows.Close()
	var row R
	to := make([]any, len(t.columns))
	for i, c := range t.columns {
		to[i] = c.at(&row)
	}
	for rows.Next() {
		var zero R
		row = zero
		if err := rows.Scan(to...); err != nil {
			return fmt.Errorf("sql: load %s: %w", t.name, err)
		}
		if s.engine == enginePostgres {
			for _, p := range to {
				if p, ok := p.(*string); ok {
					*p = unescape(*p)
				}
			}
		}
		if err := f(row); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("sql: load %s: %w", t.name, err)
	}
	return nil
}
