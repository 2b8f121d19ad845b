package dialog

import (
	"testing"
	"time"

	"rollcall/sip"
)

// A dialog that another server began is found by the tag which that gave, and
// goes on with it. Other dialogs may have the same tag.
func TestForeignTag(t *testing.T) {
	for name, tag := range map[string]string{"Kamailio's": "a6a1c5f60faecf035a1ae5b6e96e979a-0b0a", "like ours": "00112233445566"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, p := phoneRig(t, nil)
				r.set(alice, active("first"))
				r.set(carol, active("other"))
				var all []*call
				var rows []SubscriptionRow
				for i, resource := range []string{alice, carol} {
					c := p.call(bob, resource)
					c.cseq, c.toTag, c.target = 4, tag, "sip:192.0.2.9:5060"
					row := SubscriptionRow{
						ID: TagFor(ShardOf(resource), 0xdeadbeef00000000|uint64(i)), Shard: ShardOf(resource), Event: "presence", Resource: resource, Watcher: bob,
						CallID: c.id, LocalURI: resource, RemoteURI: bob, LocalTag: tag, RemoteTag: c.tag, RemoteTarget: "sip:phone@192.0.2.1:5070",
						LocalContact: "sip:192.0.2.9:5060", RemoteCSeq: 4, CSeqCeiling: 40, VersionOffset: 1, ExpiresMS: time.Now().Add(10 * time.Minute).UnixMilli(),
					}
					all = append(all, c)
					if len(row.ID) != tagSize {
						t.Fatalf("tag %q", row.ID)
					}
					rows = append(rows, row)
					r.store.rows[row.ID] = row
				}
				for _, row := range rows {
					if err := restore(r, row, true); err != nil {
						t.Fatal(err)
					}
				}
				check := func(r *rig, cseq uint32) {
					t.Helper()
					for i, c := range all {
						if n := c.notified(); n == nil || n.CSeq() != cseq || string(n.From().Tag()) != tag || string(n.To().Tag()) != c.tag {
							t.Fatalf("NOTIFY of dialog %d is not CSeq %d in its dialog: %s", i, cseq, raw(n))
						}
						m := c.subscribe(200, "Event: presence")
						if string(m.To().Tag()) != tag {
							t.Errorf("To tag is %q", m.To().Tag())
						}
						if n := c.notified(); n == nil || n.CSeq() != cseq+1 || string(n.From().Tag()) != tag {
							t.Fatalf("no NOTIFY after the refresh: %s", raw(n))
						}
					}
				}
				time.Sleep(10 * time.Millisecond)
				settle()
				check(r, 41)

				for what, change := range map[string]func(c *call){
					"our own tag":      func(c *call) { c.toTag = TagFor(ShardOf(alice), 0) },
					"another From tag": func(c *call) { c.tag = "x" },
					"another Call-ID":  func(c *call) { c.id = "x" },
					"tag of no dialog": func(c *call) { c.toTag = "11112222333344" },
					"the other's tag":  func(c *call) { c.toTag = all[1].toTag + "0" },
				} {
					c := *all[0]
					change(&c)
					if m := c.ask("Event: presence"); m == nil || m.Status() != 481 {
						t.Errorf("%s: %s, want 481", what, raw(m))
					}
				}

				r.set(alice, active("second"))
				r.set(carol, active("second"))
				for _, c := range all {
					c.wantNotify("active;expires=3600", "second")
				}
				r = restart(t, r, true, nil) // the tag is stored with the rest
				time.Sleep(10 * time.Millisecond)
				settle()
				check(r, 298) // 41 was above the ceiling, which became 297
				for _, c := range all {
					c.subscribe(200, "Event: presence", "Expires: 0")
					if n := c.notified(); n == nil || string(n.From().Tag()) != tag {
						t.Errorf("no last NOTIFY: %s", raw(n))
					}
					if m := c.ask("Event: presence"); m == nil || m.Status() != 481 {
						t.Errorf("after the end: %s, want 481", raw(m))
					}
				}
				if len(r.store.rows) != 0 {
					t.Errorf("%d rows left", len(r.store.rows))
				}
			})
		})
	}
	if a, b := string(appendDialogKey(nil, "a", "b", "c")), string(appendDialogKey(nil, "a", "bc", "")); a == b {
		t.Error("two dialogs, one key")
	}
}

func raw(m *sip.Message) []byte {
	if m == nil {
		return []byte("nothing")
	}
	return m.Raw
}
