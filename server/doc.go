// Package server wires the parts into one process: it turns a Config into
// listeners, stores, document sources, the presence agent, the list server and
// the B2BUA, keeps the secrets of users from where they come, starts and stops
// all of them in order, and serves the admin HTTP API (health, metrics, what the
// command line asks).
//
// Only this package knows all of the others; they know each other through
// small interfaces of their own.
//
//	s, err := server.New(server.Default(), slog.Default())
//	err = s.Start(ctx); defer s.Stop(ctx)
package server
