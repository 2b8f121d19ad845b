// Package pa is the presence agent: it owns the publications of the local
// presentities (RFC 3903), composes them into one document, decides what each
// watcher may see (RFC 5025) and tells watchers what changed (RFC 3856), and
// whom it tells (watcher information, RFC 3857). It does so for every event
// package alike: presence, dialogs (RFC 4235), mailboxes (RFC 3842) and those
// declared in a configuration. A Package is data and its code.
//
// A Shard is one shard's part. It has one owner, does no I/O and no waiting:
// rules are read through RuleSource, cached ones in the turn, others
// asynchronously.
//
// # Invariants
//
// Entity tags are never used twice, and the old one is invalid at once (PUB-02).
// A document is rendered once per view (the whole, what one set of
// transformations leaves, the polite-block one), never once per watcher. When
// rules cannot be read, watchers get less, never more (PR-18). Watchers are told
// of changes only: a refresh, or a publication of equal content, tells nobody.
// Packages of a resource share nothing but its rules and its sphere. A
// presentity with many watchers is walked in pieces, see walk: each watcher ends
// with the newest state.
//
//	c := pa.New(pa.Options{Mode: pa.Confirm, Rules: rules, ...}) // a factory
//	rt := dialog.New(dialog.Options{Components: []func(uint8) dialog.Component{c.Shard, ...}})
package pa
