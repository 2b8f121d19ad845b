// Package sql keeps the rows of a server in a database: subscriptions here and at other servers (RFC 6665), publications
// (RFC 3903), XCAP documents (RFC 4825), users' digest secrets (RFC 8760) and a few values about the database itself.
//
// It owns the schema and its migrations, the connections, and the lock that keeps a second server out. It owns no
// meaning: what a row says belongs to packages dialog and pa, and expired rows stay until they are deleted.
//
// Invariants:
//
//   - A Commit is all or nothing. When it returns nil on SQLite the rows survive kill -9, with SyncFull a power cut too;
//     on PostgreSQL they are as safe as the server's synchronous_commit makes them, with SyncFull always on disk.
//   - Writes of one key in one batch count in their order; only the last state is written.
//   - Every string comes back byte for byte, also where it is not UTF-8: it came from the wire.
//   - One Store at a time serves a database, unless it was opened with Options.Beside. The lock goes with the process. On
//     PostgreSQL commits run in the session that has the lock, so none is done after another Store has it.
//   - No call outlasts its deadline by more than a few seconds, whatever the database does: PostgreSQL's connections do not
//     wait for a silent server.
//   - Table subscriber may be shared with Kamailio or OpenSIPS, whose columns it has: one that is there already is used as
//     it is, it is never dropped, and a password in plain text is read but never written.
//   - A PeerDB, the database of another server, is never written to; MySQL is known for that only.
//   - A schema newer than the program is an error, never a guess.
//
// A Store may be used by many goroutines. It starts none, reads nothing on its own and does no SIP.
//
//	st, err := sql.Open(ctx, "sqlite:/var/lib/rollcall/rollcall.db", sql.Options{})
//	err = st.Commit(ctx, []dialog.Write{dialog.PutSubscription{Row: row}})
package sql
