// Package takeover brings the state of another presence server, Kamailio or OpenSIPS, into a store of ours, so that its
// phones need not notice the change: subscriptions go on in their dialogs and publications under their entity tags.
//
// It owns the meaning of the peers' tables. What it cannot take it reports, row by row, with the reason. It writes
// nothing into the peer's database, sends nothing and does not run beside a server.
//
//   - presentity: publications of packages that take them, with entity tag and expiry.
//   - active_watchers, rls_watchers: dialogs, those of lists in the second. They keep the peer's tag; the CSeq goes on
//     above all that the peer can have used, and so does the version of a list's documents (RFC 4662). A dialog that the
//     peer's list server had with the peer itself is of no use to anybody else.
//   - xcap: documents, named as the server looks for them.
//   - subscriber: what users log in with.
//   - watchers: who the peer remembered as active, pending or terminated. The server decides by rules and remembers
//     nobody, so nothing is taken; what differs is reported.
//
// Invariants: a run again takes nothing twice, not even what has ended since (but documents and users that were deleted
// since come back); what is there already is never replaced.
//
//	report, err := takeover.Run(ctx, peer, store, takeover.Options{Peer: takeover.Kamailio, Key: key, Package: find, ...})
package takeover
