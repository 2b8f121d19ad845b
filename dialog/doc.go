// Package dialog is RFC 6665: the notifier and subscriber machines of event
// subscriptions, the registry of event packages, and the shard runtime that
// runs them together with the presence agent, the list server and the B2BUA.
//
// # Ownership
//
// There are 256 shards. Everything about a resource (its publications, its
// direct subscriptions, the list subscriptions to it, the remote subscriptions
// for it) belongs to the shard its canonical key hashes to, and only that
// shard's goroutine touches it, so nothing here is locked. A dialog's tag
// carries its shard, so an in-dialog request finds its owner without a search.
//
// # Flow
//
// A turn takes what is in the shard's mailbox, steps the machines and collects
// effects. Writes are committed before the sends of the same and later turns
// (durability write-through). State travels between shards as Updates: a newer
// one for the same sink replaces an older one that was not read yet.
//
// # Invariants
//
// One NOTIFY is in flight per dialog; its body is rendered when it is sent, so
// changes collapse and the newest state wins. A CSeq is never used twice, also
// after kill -9: the store holds a ceiling that is raised before it is reached.
// A terminated subscription stays terminated.
//
//	rt := dialog.New(dialog.Options{Sender: endpoint, Packages: packages, ...})
//	endpoint receives with rt.Receive; rt.Start() runs the shards.
package dialog
