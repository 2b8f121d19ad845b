package dialog

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"time"

	"rollcall/sip"
)

// Turn is what the machines of a shard may do while they are being run. It is
// valid only inside the call it was given to.
type Turn struct {
	Now time.Time
	now moment // the same
	sh  *shard

	sends      []send
	writes     []Write
	relies     bool // the sends rely on the writes
	mustCommit bool // ... in every mode
	hurry      bool // somebody waits for the writes, but not the sends
	hold       bool

	out      []outbox // per destination shard, in the order of outShard
	outShard []uint8
	outIndex [Shards]uint16 // position in outShard plus 1
}

type outbox struct {
	calls   []func(*Turn)
	updates []Update
}

// at is when a moment is on the wall clock.
func (t *Turn) at(m moment) time.Time { return t.Now.Add(m.sub(t.now)) }

// Shard is the number of the shard that is running.
func (t *Turn) Shard() uint8 { return t.sh.id }

// Component gives another component of the same shard by its index.
func (t *Turn) Component(i int) Component { return t.sh.components[i] }

func (t *Turn) outbox(shard uint8) *outbox {
	i := t.outIndex[shard]
	if i == 0 {
		t.outShard = append(t.outShard, shard)
		i = uint16(len(t.outShard))
		t.outIndex[shard] = i
		if len(t.out) < int(i) {
			t.out = append(t.out, outbox{})
		}
	}
	return &t.out[i-1]
}

// Update tells a sink the newest state. Within the shard it arrives in this
// turn.
func (t *Turn) Update(u Update) {
	if u.To.Shard == t.sh.id {
		t.sh.local = append(t.sh.local, u)
		return
	}
	o := t.outbox(u.To.Shard)
	o.updates = append(o.updates, u)
}

// Attach asks whoever serves a resource for its state, now and on each change,
// until Detach.
func (t *Turn) Attach(in Interest, to SinkRef) {
	if s := ShardOf(in.Resource); s != t.sh.id {
		o := t.outbox(s)
		o.calls = append(o.calls, func(t *Turn) { t.attach(in, to) })
		return
	}
	t.attach(in, to)
}

func (t *Turn) attach(in Interest, to SinkRef) {
	c := t.sh.components[t.sh.rt.opt.Route(in.Resource)]
	c.(Source).Attach(t, in, to)
}

// Detach ends an attachment. No Update is sent for it afterwards, but one may
// be on its way.
func (t *Turn) Detach(in Interest, to SinkRef) {
	if s := ShardOf(in.Resource); s != t.sh.id {
		o := t.outbox(s)
		o.calls = append(o.calls, func(t *Turn) { t.detach(in, to) })
		return
	}
	t.detach(in, to)
}

// detach tells every source: what a resource is may have changed since.
func (t *Turn) detach(in Interest, to SinkRef) {
	for _, c := range t.sh.components {
		if src, ok := c.(Source); ok {
			src.Detach(t, in, to)
		}
	}
}

// Persist stores a write. It is committed before the sends of this turn and of
// later ones leave.
func (t *Turn) Persist(w Write) { t.persist(w) }

func (t *Turn) persist(w Write) {
	if t.stores() {
		t.writes, t.relies = append(t.writes, w), true
	}
}

// persistLater stores a write for which nobody waits; it is committed within
// flushInterval in every mode.
func (t *Turn) persistLater(w Write) {
	if t.stores() {
		t.writes = append(t.writes, w)
	}
}

// stores tells whether writes are kept at all: making one of a row costs.
func (t *Turn) stores() bool { return t.sh.rt.opt.Durability != Memory }

// SetTimer calls the component's Timer with id (56 bits) at or soon after at.
func (t *Turn) SetTimer(component uint8, id uint64, at time.Time) sip.Timer {
	return t.sh.wheel.Add(at, uint64(component)<<56|id&idMask)
}

// CancelTimer cancels a timer; one that fired is ignored.
func (t *Turn) CancelTimer(tm sip.Timer) { t.sh.wheel.Cancel(tm) }

// Async runs work outside the shard, among a bounded number of workers, and
// then, even if work panicked, done in a turn of the shard. It returns false, and runs nothing, when
// too much is waiting.
func (t *Turn) Async(work func(ctx context.Context), done func(*Turn)) bool {
	sh := t.sh
	f := func() {
		ctx, cancel := context.WithTimeout(context.Background(), asyncTimeout)
		defer cancel()
		defer sh.rt.Post(sh.id, done)
		sh.guard(func() { work(ctx) })
	}
	select {
	case sh.rt.work <- f:
		return true
	default:
		return false
	}
}

// Later runs f in a turn of this shard to come, for work that is done in
// pieces. A turn runs one such f, so what waits for the shard comes in between,
// and while the server is crowded only one in laterMost, so that the others'
// requests are not refused for it. Stop waits for them.
func (t *Turn) Later(f func(*Turn)) { t.sh.later = append(t.sh.later, f) }

// asyncTimeout bounds a resolution or a fetch; it is shorter than sourceTimeout.
const asyncTimeout = 8 * time.Second

// Request is a request that waits for its answer.
type Request struct {
	Msg      *sip.Message
	Tx       sip.ServerID
	Resource string // canonical key of the Request-URI
	Package  *Package
	Watcher  Identity // who sent it
	in       incoming
	kept     bool
	asked    bool // who sent it was looked up
}

// Keep holds the message until Reply, for an answer that comes in a later turn.
func (r *Request) Keep() { r.kept = true }

// Reply answers a request outside a dialog. headers are name, value pairs.
func (t *Turn) Reply(r *Request, status int, reason string, headers ...string) {
	t.reply(r.Msg, r.Tx, status, reason, t.newTag(), headers...)
	if r.kept {
		r.Msg.Release()
	}
}

// Fail answers a request with an error.
func (t *Turn) Fail(r *Request, err *Error) {
	t.sh.refuse(t, r.Msg, r.Tx, err)
	if r.kept {
		r.Msg.Release()
	}
}

func (t *Turn) reply(m *sip.Message, tx sip.ServerID, status int, reason, tag string, headers ...string) {
	if reason == "" {
		reason = sip.ReasonPhrase(status)
	}
	b := sip.AppendResponse(t.sh.headBuf[:0], m, status, reason, tag)
	for i := 0; i+1 < len(headers); i += 2 {
		b = sip.AppendHeader(b, headers[i], headers[i+1])
	}
	t.respond(tx, sip.AppendBody(b, "", nil))
}

// respond sends the response in b, which is the shard's buffer.
func (t *Turn) respond(tx sip.ServerID, b []byte) {
	t.sh.headBuf = b[:0]
	resp := bytes.Clone(b) // exactly as long: it is kept for timer J
	t.sh.tx.Answered(tx, resp)
	t.sends = append(t.sends, send{server: tx, head: resp})
}

// refuse turns an Error into a response and one log line.
func (sh *shard) refuse(t *Turn, m *sip.Message, tx sip.ServerID, err *Error) {
	rt := sh.rt
	headers := err.Headers
	if err.RetryAfter > 0 {
		headers = append(headers[:len(headers):len(headers)], "Retry-After", seconds(err.RetryAfter))
	}
	t.reply(m, tx, err.Status, err.Reason, t.newTag(), headers...)
	t.sends[len(t.sends)-1].now = err.Status == 503
	rt.stats.Rejected.Add(1)
	if err.Quiet {
		return
	}
	if n, ok := rt.limit.Allow(t.Now); ok {
		reason := err.Reason
		if reason == "" {
			reason = sip.ReasonPhrase(err.Status)
		}
		rt.opt.Log.Info("request refused", "method", string(m.MethodToken()), "status", err.Status, "reason", reason,
			"uri", clip(m.RequestURI()), "remote", m.Flow.Remote.String(), "call_id", clip(m.CallID()), "err", orDash(err.Err), "suppressed", n)
	}
}

// orDash makes an absent cause short.
func orDash(err error) string {
	if err == nil {
		return "-"
	}
	return err.Error()
}

// clip bounds what a peer can put into a log line.
func clip(b []byte) string { return string(clipped(b)) }

func clipped(b []byte) []byte { return b[:min(len(b), 120)] }

// seconds rounds up, so that nobody comes back too early.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

// Our tags are 56-bit numbers in hex: the shard, then 48 random bits.
const (
	idMask  = 1<<56 - 1
	tagSize = 14
)

func (sh *shard) newID() uint64 {
	return uint64(sh.id)<<48 | binary.BigEndian.Uint64(sh.random.Next(8))>>16
}

func tagShard(id uint64) uint8 { return uint8(id >> 48) }

// TagFor is the tag of a dialog whose resource a shard owns, made of 48 bits
// that nobody can guess.
func TagFor(shard uint8, random uint64) string {
	return formatTag(uint64(shard)<<48 | random&(1<<48-1))
}

func formatTag(id uint64) string { return string(appendTag(nil, id)) }

func appendTag(dst []byte, id uint64) []byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], id<<8)
	return hex.AppendEncode(dst, b[:7])
}

func parseTag(tag []byte) (uint64, bool) {
	if len(tag) != tagSize {
		return 0, false
	}
	var b [8]byte
	if _, err := hex.Decode(b[:7], tag); err != nil {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[:]) >> 8, true
}

// newTag is a tag of no dialog. Its length differs from a dialog's.
func (t *Turn) newTag() string { return hex.EncodeToString(t.sh.random.Next(6)) }
