package dialog

import (
	"errors"
	"math/rand/v2"
	"time"

	"rollcall/sip"
)

// Recovery brings stored subscriptions back after a restart. It is used by one
// goroutine, before the first Receive.
type Recovery struct {
	rt     *Runtime
	spread time.Duration
	n      int
	rows   [Shards][]restoring
	places chan struct{} // for batches on their way: who reads rows waits for who takes them
}

type restoring struct {
	row    SubscriptionRow
	id     uint64
	pkg    *Package
	notify bool
	wait   time.Duration
}

const (
	restoreBatch   = 32
	restoreBatches = 512 // on their way
)

// Of few subscriptions the recovery's NOTIFYs take less time than the spread
// allows: one each restoreGap.
const restoreGap = time.Millisecond

// Recover begins a recovery. The NOTIFYs of those whose watchers may have
// missed something go out within spread, in no order: after a stop in order those
// for whom the row's Told is not the digest of what the source says now, after a
// crash all. What the row says is not enough then: a state that went from A to B
// and back to A may have left the watcher with B.
func (rt *Runtime) Recover(spread time.Duration) *Recovery {
	return &Recovery{rt: rt, spread: spread, places: make(chan struct{}, restoreBatches)}
}

// Add brings a subscription back, at the latest with Done. notify asks for a
// NOTIFY with full state, for when it is not known what was sent last.
func (r *Recovery) Add(row SubscriptionRow, notify bool) error {
	pkg := r.rt.opt.Packages.Find(row.Event)
	id, ok := parseTag([]byte(row.ID))
	if pkg == nil || !ok {
		return errors.New("stored subscription " + row.ID + ": unknown package or bad id")
	}
	if row.LocalTag != "" {
		if r.rt.foreign == nil {
			r.rt.foreign = make(map[string]uint64)
		}
		r.rt.foreign[string(appendDialogKey(nil, row.CallID, row.LocalTag, row.RemoteTag))] = id
	}
	e := restoring{row: row, id: id, pkg: pkg, notify: notify}
	r.n++
	if most := min(r.spread, time.Duration(r.n)*restoreGap); most > 0 {
		e.wait = rand.N(most)
	}
	shard := tagShard(id)
	rows := &r.rows[shard]
	if *rows == nil {
		*rows = make([]restoring, 0, restoreBatch)
	}
	if *rows = append(*rows, e); len(*rows) == restoreBatch {
		r.post(shard)
	}
	return nil
}

func (r *Recovery) post(shard uint8) {
	rows := r.rows[shard]
	r.rows[shard] = nil
	r.places <- struct{}{}
	r.rt.Post(shard, func(t *Turn) {
		defer func() { <-r.places }()
		for i := range rows {
			t.sh.restore(t, &rows[i])
		}
	})
}

// Done waits until every subscription that was added is there.
func (r *Recovery) Done() {
	for shard, rows := range r.rows {
		if len(rows) > 0 {
			r.post(uint8(shard))
		}
	}
	for range restoreBatches {
		r.places <- struct{}{}
	}
}

func (sh *shard) restore(t *Turn, e *restoring) {
	if sh.subs.get(e.id) != nil {
		return
	}
	rt, row := sh.rt, &e.row
	s := sh.subs.add(e.id)
	s.pkg, s.lists, s.list, s.stored = rt.opt.Packages.number(e.pkg), row.List, row.List, true
	s.remoteCSeq, s.created, s.sent = row.RemoteCSeq, uint32(row.CreatedMS/1000), row.CSeqCeiling
	b := sh.headBuf[:0]
	share := func(y *sym, text string) {
		b = append(b[:0], text...)
		sh.share(y, b)
	}
	share(&s.resource, row.Resource)
	share(&s.watcher, row.Watcher)
	share(&s.routes, row.RouteSet)
	share(&s.accept, row.Accept)
	share(&s.encoding, row.Encoding)
	share(&s.agent, row.UserAgent)
	share(&s.contact, row.LocalContact)
	sh.headBuf = b[:0]
	sh.keep(s, &[texts][]byte{
		txCallID: []byte(row.CallID), txRemoteTag: []byte(row.RemoteTag), txTarget: []byte(row.RemoteTarget), txEventID: []byte(row.EventID),
		txRemoteURI: unless([]byte(row.RemoteURI), row.Watcher), txLocalURI: unless([]byte(row.LocalURI), row.Resource),
		txLocalTag: []byte(row.LocalTag),
	})
	if row.Told != 0 && !e.notify {
		sh.ptr(s).content = &resuming{told: row.Told}
	}
	s.n.restored(row, t.now.add(time.UnixMilli(row.ExpiresMS).Sub(t.Now)), t.now.add(e.wait), e.notify) // no longer depends on the wall clock
	s.n.interval = millis(e.pkg.MinInterval)
	if row.List {
		s.n.interval = millis(rt.opt.ListPace)
	}
	var flow sip.Flow
	if flow, s.direct = parseFlow(row.Flow); s.direct {
		sh.storeFlow(s, flow)
	}
	rt.stats.Subscriptions.Add(1)
	sh.setTimer(t, s, s.n.expires)
	t.Attach(sh.interest(s), s.ref(sh))
}
