package dialog

import (
	"strings"
	"testing"

	"rollcall/sip"
)

func TestRemoteRowCheck(t *testing.T) {
	shard := ShardOf(carol)
	packages := NewRegistry(&Package{Name: "presence"})
	for _, c := range []struct {
		name   string
		change func(*RemoteRow)
		err    string // "": none
	}{
		{"live", func(*RemoteRow) {}, ""},
		{"nobody has answered", func(r *RemoteRow) {
			r.RemoteTag, r.State, r.ExpiresMS, r.ContentType, r.Body = "", Unknown, 0, "", nil
		}, ""},
		{"for an anonymous watcher", func(r *RemoteRow) { r.Watcher = "" }, ""},
		{"the largest document", func(r *RemoteRow) { r.Body = make([]byte, sip.MaxBodyBytes) }, ""},
		{"the longest expiry", func(r *RemoteRow) { r.WantMS = (1<<32 - 1) * 1000 }, ""},
		{"no tag", func(r *RemoteRow) { r.ID = "x" }, "no tag of ours"},
		{"no hexadecimal tag", func(r *RemoteRow) { r.ID = strings.Repeat("g", tagSize) }, "no tag of ours"},
		{"shard", func(r *RemoteRow) { r.Shard++ }, "the id is of shard"},
		{"no resource", func(r *RemoteRow) { r.Resource = "" }, "no resource"},
		{"resource", func(r *RemoteRow) { r.Resource = alice }, "the resource belongs to shard"},
		{"package", func(r *RemoteRow) { r.Event = "dialog" }, `unknown event package "dialog"`},
		{"no Call-ID", func(r *RemoteRow) { r.CallID = "" }, "not complete"},
		{"no URI of ours", func(r *RemoteRow) { r.LocalURI = "" }, "not complete"},
		{"no target", func(r *RemoteRow) { r.RemoteTarget = "" }, "not complete"},
		{"CSeq", func(r *RemoteRow) { r.CSeqCeiling = 1 << 31 }, "CSeq ceiling 2147483648"},
		{"state", func(r *RemoteRow) { r.State = Terminated + 1 }, "no state 4"},
		{"document without type", func(r *RemoteRow) { r.ContentType = "" }, "without a type"},
		{"document too large", func(r *RemoteRow) { r.Body = make([]byte, sip.MaxBodyBytes+1) }, "has 1048577 bytes"},
		{"no expiry", func(r *RemoteRow) { r.WantMS = 0 }, "an expiry of 0 ms"},
		{"expiry too long", func(r *RemoteRow) { r.WantMS = (1<<32-1)*1000 + 1 }, "an expiry of 4294967295001 ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			row := RemoteRow{
				ID: formatTag(uint64(shard)<<48 | 77), Shard: shard, Event: "presence", Resource: carol, Watcher: alice, CallID: "c@rollcall", LocalURI: bob,
				RemoteTag: "far", RemoteTarget: "sip:192.0.2.50", RemoteCSeq: 1<<32 - 1, CSeqCeiling: 1<<31 - 1, State: Active, ContentType: pidfType,
				Body: []byte("x"), WantMS: 600_000, ExpiresMS: 1,
			}
			c.change(&row)
			if err := row.Check(packages); (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, want %q", err, c.err)
			}
		})
	}
}
