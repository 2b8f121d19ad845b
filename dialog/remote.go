package dialog

import (
	"errors"
	"math/rand/v2"
	"time"
)

// Remote subscriptions in the store. The row is there before the first
// SUBSCRIBE leaves, and the peer's tag before its first NOTIFY is answered
// (write-through), so that the peer has no dialog that we would not know after
// a crash. What later NOTIFYs bring is written behind them: nobody waits, and a
// restart asks again.

// saveDelay is how long news of a remote subscription may be missing in the
// store, and the shortest time between two writes of them.
const saveDelay = time.Second

// RecoveryGap is the time between two SUBSCRIBEs that a restart causes in one
// shard: there are at most 256 of them a second in all.
const RecoveryGap = time.Second

// Spread hands out instants RecoveryGap apart. The zero value is ready.
type Spread struct{ next time.Time }

// At is the earliest free instant, not before from.
func (s *Spread) At(from time.Time) time.Time {
	at := from
	if s.next.After(from) {
		at = s.next
	}
	s.next = at.Add(RecoveryGap)
	return at
}

// Restorer is a SubscriberUser that goes on with the subscriptions of before a
// restart.
type Restorer interface {
	// Restored gives the user's number for a subscription, 0 when it does not
	// want it: it is unsubscribed then. It must not call Unsubscribe.
	Restored(t *Turn, r Restored) (user uint64)
}

// Restored is a remote subscription of before a restart.
type Restored struct {
	SubscribeTo
	ID      uint64
	Package *Package
	State   SubState // by the newest NOTIFY, Unknown before the first
	Doc     *Document
	Created time.Time
}

// row is the subscription as it is stored.
func (r *remote) row() RemoteRow {
	row := RemoteRow{
		ID: formatTag(r.id), Shard: tagShard(r.id), Event: r.p.Event, Resource: r.p.URI, Watcher: r.p.Watcher,
		CallID: r.callID, LocalURI: r.p.From, RemoteTag: r.tag, RemoteTarget: r.target, RouteSet: r.routes, Accept: r.p.Accept,
		RemoteCSeq: r.peerSeq, CSeqCeiling: r.ceiling, State: r.state, Leaving: r.m.phase == suLeaving,
		WantMS: r.m.want.Milliseconds(), CreatedMS: r.created.UnixMilli(),
	}
	if !r.m.expires.IsZero() {
		row.ExpiresMS = r.m.expires.UnixMilli()
	}
	if r.doc != nil {
		row.Body, row.ContentType = r.doc.Render(nil, View{})
	}
	return row
}

// persist stores the subscription before this turn's messages leave.
func (r *remote) persist(t *Turn) {
	r.stored, r.saveAt = true, time.Time{}
	if t.stores() {
		t.persist(PutRemote{Row: r.row()})
	}
}

// reserveRemote sees to it that the CSeq about to be sent is below what is
// stored.
func (sh *shard) reserveRemote(t *Turn, r *remote) {
	if r.cseq <= r.ceiling {
		return
	}
	r.ceiling = r.cseq + cseqBlock - 1
	if r.stored {
		t.mustCommit = true
	}
	r.persist(t)
}

// saveRemoteSoon has the row written in a while.
func (sh *shard) saveRemoteSoon(t *Turn, r *remote) {
	if r.stored && r.saveAt.IsZero() && t.stores() {
		r.saveAt = t.Now.Add(saveDelay)
	}
}

// saveRemote writes the row now, and nobody waits for it.
func (sh *shard) saveRemote(t *Turn, r *remote) {
	r.saveAt = time.Time{}
	if r.stored && t.stores() {
		t.persistLater(PutRemote{Row: r.row()})
	}
}

func (sh *shard) forgetRemote(t *Turn, r *remote) {
	if r.stored {
		r.stored = false
		t.persist(DeleteRemote{ID: formatTag(r.id)})
	}
}

// settleRemote stores the exact CSeq: nothing will be sent any more.
func (sh *shard) settleRemote(t *Turn, r *remote) {
	if r.stored {
		r.ceiling = r.cseq
		r.persist(t)
	}
}

// setRemoteTimer keeps one timer for the machine and the row.
func (sh *shard) setRemoteTimer(t *Turn, r *remote, at time.Time) {
	t.CancelTimer(r.timer)
	if !r.saveAt.IsZero() {
		at = earlier(at, r.saveAt)
	}
	r.timer = t.SetTimer(subscriberComponent, r.id, at)
}

// RestoreRemote brings a stored remote subscription of a component back. The
// ones that expire first should come first. The component is a Restorer and is
// told, unless the subscription is over. All are refreshed, RecoveryGap apart:
// what a peer sent meanwhile is not known.
func (rt *Runtime) RestoreRemote(component uint8, row RemoteRow) error {
	pkg := rt.opt.Packages.Find(row.Event)
	id, ok := parseTag([]byte(row.ID))
	if pkg == nil || !ok {
		return errors.New("stored remote subscription " + row.ID + ": unknown package or bad id")
	}
	rt.Post(tagShard(id), func(t *Turn) { t.sh.restoreRemote(t, component, id, pkg, row) })
	return nil
}

func (sh *shard) restoreRemote(t *Turn, component uint8, id uint64, pkg *Package, row RemoteRow) {
	if sh.refreshes.next.IsZero() { // not all shards at once
		sh.refreshes.next = t.Now.Add(rand.N(RecoveryGap))
	}
	r := &remote{
		id: id, callID: row.CallID, tag: row.RemoteTag, target: row.RemoteTarget, routes: row.RouteSet, routed: row.State != Unknown,
		cseq: row.CSeqCeiling, ceiling: row.CSeqCeiling, state: row.State, created: time.UnixMilli(row.CreatedMS), stored: true,
		p: SubscribeTo{Component: component, URI: row.Resource, From: row.LocalURI, Event: row.Event, Accept: row.Accept,
			Expires: time.Duration(row.WantMS) * time.Millisecond, Watcher: row.Watcher},
	}
	if row.RemoteCSeq > 0 { // the newest one may come again: perhaps its 200 did not leave
		r.peerSeq = row.RemoteCSeq - 1
	}
	if row.ContentType != "" {
		r.doc = &Document{Type: row.ContentType, Body: row.Body}
		if pkg.Whole != nil {
			if doc, err := pkg.Whole(nil, row.ContentType, row.Body); err == nil {
				r.doc = doc
			} else { // of another program's version: the refresh brings it
				r.doc = nil
			}
		}
	}
	if !r.m.restored(t.Now, &row) {
		sh.forgetRemote(t, r)
		return
	}
	if r.m.dialog {
		r.m.resume(t.Now, sh.refreshes.At(t.Now))
	}
	sh.uacs[id] = r
	sh.rt.stats.Remote.Add(1)
	if user, ok := sh.components[component].(Restorer); ok && r.m.phase != suLeaving {
		r.p.User = user.Restored(t, Restored{SubscribeTo: r.p, ID: id, Package: pkg, State: r.state, Doc: r.doc, Created: r.created})
	}
	if r.p.User == 0 && r.m.phase != suLeaving {
		t.Unsubscribe(id)
		return
	}
	sh.setRemoteTimer(t, r, r.m.next())
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
