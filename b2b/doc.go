// Package b2b is the presence B2BUA: it holds subscriptions at other servers
// for resources of domains that are not ours, for lists and for direct
// watchers.
//
// # Invariants
//
// One remote subscription serves one watcher (with all its lists); it is never
// shared between watchers, because the remote server decides for each (RL-30).
// It starts with the first attachment and is unsubscribed with the last
// (RL-37). A failure that may pass is retried with back-off, and the members
// stay listed meanwhile (RL-36). After a restart a subscription goes on in its
// dialog and with its last state; if nobody attaches within a minute, it is
// unsubscribed.
//
//	g := b2b.New(b2b.Options{Routes: routes, Local: local, ...}) // g.Shard is a component factory
package b2b
