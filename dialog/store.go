package dialog

import (
	"context"
	"errors"
	"fmt"
	"math"

	"rollcall/sip"
)

// Write is one change to stored state: PutSubscription, DeleteSubscription,
// SetCSeqCeiling, PutRemote, DeleteRemote, or a write that another package
// declares for its own rows.
type Write any

// Store applies changes. Commit is all or nothing and returns only when the
// batch is as durable as the store promises.
type Store interface {
	Commit(ctx context.Context, batch []Write) error
}

// Checker is a Store that can tell whether it is there without writing. It is
// asked now and then while nothing is written.
type Checker interface {
	Check(ctx context.Context) error
}

// ErrUnstorable is wrapped by the error of a Commit that fails because of what
// is written and would fail again at any time.
var ErrUnstorable = errors.New("the store will never take this write")

// SubscriptionRow is a notifier-side subscription dialog as it is stored.
// Times are Unix milliseconds.
type SubscriptionRow struct {
	ID      string // our tag: unique, and carries the shard
	Shard   uint8
	Event   string // event package
	EventID string // "id" parameter of Event, "" when absent

	Resource string // canonical key of the resource
	Watcher  string // canonical key of the watcher, "" when anonymous

	CallID       string
	LocalURI     string // To of the SUBSCRIBE, without tag
	RemoteURI    string // From of the SUBSCRIBE, without tag
	LocalTag     string // our tag as the peer knows it, when another server gave it; "": ID
	RemoteTag    string
	RemoteTarget string // Contact of the newest SUBSCRIBE
	RouteSet     string // Record-Route values in order, joined by ", "
	LocalContact string
	Flow         string // where the newest SUBSCRIBE came from
	Accept       string
	Encoding     string // content coding of NOTIFYs by the newest SUBSCRIBE's Accept-Encoding, "" for none
	UserAgent    string

	RemoteCSeq    uint32 // of the newest SUBSCRIBE
	CSeqCeiling   uint32 // no CSeq above this was ever sent
	VersionOffset uint32 // CSeq minus document version
	List          bool   // the subscription has eventlist in Require
	Told          uint64 // digest of what the watcher has confirmed, by a stop in order, below 2^63; 0: not known

	CreatedMS int64
	ExpiresMS int64
}

// checkOwner tells what is wrong with the part of a row that says whose it is.
func checkOwner(tag string, shard uint8, resource, event string, packages *Registry) error {
	id, ok := parseTag([]byte(tag))
	switch {
	case !ok:
		return errors.New("the id is no tag of ours")
	case tagShard(id) != shard:
		return fmt.Errorf("shard %d, but the id is of shard %d", shard, tagShard(id))
	case resource == "":
		return errors.New("no resource")
	case ShardOf(resource) != shard:
		return fmt.Errorf("shard %d, but the resource belongs to shard %d", shard, ShardOf(resource))
	case packages.Find(event) == nil:
		return fmt.Errorf("unknown event package %q", event)
	}
	return nil
}

// Check tells why a row cannot be restored, or what in it contradicts itself.
func (r *SubscriptionRow) Check(packages *Registry) error {
	if err := checkOwner(r.ID, r.Shard, r.Resource, r.Event, packages); err != nil {
		return err
	}
	switch {
	case r.CallID == "", r.LocalURI == "", r.RemoteURI == "", r.RemoteTag == "", r.RemoteTarget == "":
		return errors.New("the dialog is not complete: Call-ID, URIs, tag or target is empty")
	case r.CSeqCeiling >= 1<<31:
		return fmt.Errorf("CSeq ceiling %d is above 2^31-1", r.CSeqCeiling)
	}
	return nil
}

// PutSubscription inserts or replaces a row.
type PutSubscription struct{ Row SubscriptionRow }

// String names the write for logs.
func (w PutSubscription) String() string { return "subscription " + w.Row.ID }

// DeleteSubscription removes a row; a missing one is no error.
type DeleteSubscription struct{ ID string }

// SetCSeqCeiling raises a row's ceiling; a missing row is no error.
type SetCSeqCeiling struct {
	ID      string
	Ceiling uint32
}

// RemoteRow is a subscriber-side dialog as it is stored. Times are Unix
// milliseconds, 0 when not known yet.
type RemoteRow struct {
	ID    string // our tag: unique, and carries the shard
	Shard uint8
	Event string // event package

	Resource string // Request-URI and To of the first SUBSCRIBE
	Watcher  string // for whom: SubscribeTo.Watcher

	CallID       string
	LocalURI     string // From, without tag
	RemoteTag    string // "" while nobody has answered
	RemoteTarget string
	RouteSet     string // in the order of Route, joined by ", "
	Accept       string

	RemoteCSeq  uint32 // of the newest NOTIFY
	CSeqCeiling uint32 // no CSeq above this was ever sent

	State       SubState // by the newest NOTIFY, Unknown before the first
	Leaving     bool     // unsubscribed, but the end was not heard yet
	ContentType string   // of the newest document, "" when there is none
	Body        []byte

	WantMS    int64 // expiry that is asked for
	CreatedMS int64 // of the first SUBSCRIBE
	ExpiresMS int64
}

// Check tells why a row cannot be restored, or what in it contradicts itself.
func (r *RemoteRow) Check(packages *Registry) error {
	if err := checkOwner(r.ID, r.Shard, r.Resource, r.Event, packages); err != nil {
		return err
	}
	switch {
	case r.CallID == "", r.LocalURI == "", r.RemoteTarget == "": // nobody need have answered yet
		return errors.New("the dialog is not complete: Call-ID, URI or target is empty")
	case r.CSeqCeiling >= 1<<31:
		return fmt.Errorf("CSeq ceiling %d is above 2^31-1", r.CSeqCeiling)
	case r.State > Terminated:
		return fmt.Errorf("there is no state %d", r.State)
	case r.ContentType == "" && len(r.Body) > 0:
		return errors.New("a document without a type")
	case len(r.Body) > sip.MaxBodyBytes:
		return fmt.Errorf("the document has %d bytes, the most is %d", len(r.Body), sip.MaxBodyBytes)
	case r.WantMS <= 0, r.WantMS > math.MaxUint32*1000:
		return fmt.Errorf("an expiry of %d ms is asked for", r.WantMS)
	}
	return nil
}

// PutRemote inserts or replaces a row.
type PutRemote struct{ Row RemoteRow }

// DeleteRemote removes a row; a missing one is no error.
type DeleteRemote struct{ ID string }
