// Package rls is the resource list server (RFC 4662): it lets a phone watch a
// whole list with one SUBSCRIBE.
//
// The Catalog knows the list services (rls-services documents, RFC 4826) and
// their expanded trees, for all shards. A Shard holds the list subscriptions
// of one shard as views: the members of a view are attached to whoever serves
// them (the presence agent, the B2BUA) with the watcher's own identity, and
// are rendered into one RLMI multipart for each NOTIFY.
//
// # Invariants
//
// Member state is never shared between watchers (RL-30). Every attachment ends
// with its view (RL-37). The first NOTIFY, and the one after each SUBSCRIBE,
// lists every member (RL-14); the first one waits a moment, at most
// readyTimeout, for members that have not answered. A nested list is expanded
// by the view that holds it, so that its version, too, grows by exactly one
// with each NOTIFY that carries it (RL-13, RL-19).
//
//	cat := rls.NewCatalog(docs, rls.CatalogOptions{...})
//	srv := rls.New(rls.Options{Catalog: cat, ...}) // srv.Shard is a component factory
package rls
