package dialog

import (
	"bytes"
	"strconv"
	"time"
)

// Identity is who a request comes from, as authentication (not a header of an
// unknown peer) tells.
type Identity struct {
	URI string // canonical key, "" for anonymous
}

// Interest is what a sink wants to know.
type Interest struct {
	Package   *Package
	Resource  string // canonical key (sip.URI.Key) of the resource
	URI       string // the resource as the watcher wrote it
	Watcher   Identity
	Depth     uint8  // lists above this interest
	Accept    string // media ranges the watcher takes, "" for the default
	EventList bool   // the watcher supports eventlist (RFC 4662)
	Resumed   bool   // after a restart: the watcher has a state already, this one or an older one
}

// SinkRef names who gets the Updates of an attachment.
type SinkRef struct {
	ID        uint64 // the sink's own number, 56 bits
	Member    uint32 // a part of the sink
	Shard     uint8
	Component uint8
}

// SubState is the state of a subscription or of a list member's instance.
type SubState uint8

// The states of RFC 6665 section 4.1.3, and Unknown before anything was heard.
const (
	Unknown SubState = iota
	Pending
	Active
	Terminated
)

// String gives the state as it stands in Subscription-State and in RLMI.
func (s SubState) String() string {
	return [...]string{"unknown", "pending", "active", "terminated"}[s]
}

// Reason is why a subscription was terminated (EV-12).
type Reason string

// The reasons of RFC 6665 section 4.1.3.
const (
	Deactivated Reason = "deactivated"
	Probation   Reason = "probation"
	Rejected    Reason = "rejected"
	Timeout     Reason = "timeout"
	Giveup      Reason = "giveup"
	NoResource  Reason = "noresource"
	Invariant   Reason = "invariant"
)

// Update tells a sink the newest state of what it attached to. The first one
// follows every Attach soon; a source that must wait for somebody else answers
// Unknown first.
type Update struct {
	To         SinkRef
	State      SubState
	Reason     Reason // of Terminated
	RetryAfter time.Duration
	Doc        *Document // the state, nil when there is none to show
	View       Content   // instead of Doc: a source in the sink's own shard that renders for each NOTIFY
	Err        *Error    // of Terminated: how to answer a SUBSCRIBE that waits for this
	Retrying   bool      // of Terminated: not the end; the source keeps the attachment and tries again
}

// Source knows the state of resources of one shard. It is called by that
// shard's goroutine only and answers with Updates. After it has said
// Terminated, the attachment is over (unless Retrying).
type Source interface {
	Attach(t *Turn, in Interest, to SinkRef)
	Detach(t *Turn, in Interest, to SinkRef)
}

// Sink receives Updates.
type Sink interface {
	Update(t *Turn, u Update)
}

// Component is one shard's part of the presence agent, the list server or the
// B2BUA. Optional abilities are found by type assertion: Source, Sink,
// Publisher, Messenger, SubscriberUser.
type Component interface {
	// Timer is called for a timer set with Turn.SetTimer.
	Timer(t *Turn, id uint64)
}

// Publisher takes PUBLISH requests for local resources (RFC 3903). It answers
// each with Turn.Reply, at once or later.
type Publisher interface {
	Publish(t *Turn, r *Request)
}

// Messenger takes MESSAGE requests for local resources (RFC 3428). It answers
// each with Turn.Reply or Turn.Fail, at once or later.
type Messenger interface {
	Message(t *Turn, r *Request)
}

// Document is a body. It is immutable and shared by all who show it.
type Document struct {
	Type string // media type
	Body []byte

	// Version is where in Body the number of the document within its
	// subscription belongs (EV-25), for packages that have one; 0: nowhere.
	Version int
}

// Equal tells whether two documents are the same to who reads them; nil is none.
func (d *Document) Equal(o *Document) bool {
	if d == nil || o == nil {
		return d == o
	}
	return d.Type == o.Type && d.Version == o.Version && bytes.Equal(d.Body, o.Body)
}

// Render implements Content.
func (d *Document) Render(dst []byte, v View) ([]byte, string) {
	dst = append(dst, d.Body[:d.Version]...)
	if d.Version > 0 {
		dst = strconv.AppendUint(dst, uint64(v.Version), 10)
	}
	return append(dst, d.Body[d.Version:]...), d.Type
}

// Content renders the body of the NOTIFY that is about to be sent.
type Content interface {
	Render(dst []byte, v View) (body []byte, contentType string)
}

// Digester is a Content that can be compared with what a watcher was told before
// a restart.
type Digester interface {
	// Digest changes when the watcher is to be told something else, so it depends
	// on neither versions nor identifiers, and is the same in every process. While
	// whole is false, not all has come back after a restart; an Update follows.
	Digest() (sum uint64, whole bool)
}

// View is what a body depends on besides the state.
type View struct {
	Version uint32 // from 0, one more for each NOTIFY of the subscription (EV-25)
	Full    bool   // full state is due: first NOTIFY, after a SUBSCRIBE, after a failure
	State   SubState
	Now     time.Time
}
