package dialog

import "context"

// Write is one change to stored state: PutSubscription, DeleteSubscription,
// SetCSeqCeiling, PutRemote, DeleteRemote, or a write that another package
// declares for its own rows.
type Write any

// Store applies changes. Commit is all or nothing and returns only when the
// batch is as durable as the store promises.
type Store interface {
	Commit(ctx context.Context, batch []Write) error
}

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

	CreatedMS int64
	ExpiresMS int64
}

// PutSubscription inserts or replaces a row.
type PutSubscription struct{ Row SubscriptionRow }

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

// PutRemote inserts or replaces a row.
type PutRemote struct{ Row RemoteRow }

// DeleteRemote removes a row; a missing one is no error.
type DeleteRemote struct{ ID string }
