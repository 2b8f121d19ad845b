package sql

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"rollcall/dialog"
)

func remoteRow(i int) dialog.RemoteRow {
	return dialog.RemoteRow{
		ID: fmt.Sprintf("%014x", i), Shard: uint8(i), Event: "presence", Resource: fmt.Sprintf("sip:ann%d@example.org", i), Watcher: "sip:alice@example.com",
		CallID: fmt.Sprintf("call%d@rollcall", i), LocalURI: "sip:alice@example.com", RemoteTag: "far", RemoteTarget: "sip:192.0.2.99:5060",
		RouteSet: "<sip:p1.example.org;lr>, <sip:p2.example.org;lr>", Accept: "application/pidf+xml", RemoteCSeq: 1<<32 - 1, CSeqCeiling: 256,
		State: dialog.Active, Leaving: i%2 == 1, ContentType: "application/pidf+xml", Body: []byte("<presence/>"),
		WantMS: 3600000, CreatedMS: 1790000000000, ExpiresMS: 1790003600000,
	}
}

func loadRemotes(t testing.TB, s *Store) map[string]dialog.RemoteRow {
	t.Helper()
	m := map[string]dialog.RemoteRow{}
	err := s.Remotes(t.Context(), func(r dialog.RemoteRow) error {
		if _, dup := m[r.ID]; dup {
			t.Errorf("%q twice", r.ID)
		}
		if len(r.Body) == 0 {
			r.Body = nil
		}
		m[r.ID] = r
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRemotes(t *testing.T) {
	put := func(r dialog.RemoteRow) dialog.Write { return dialog.PutRemote{Row: r} }
	del := func(id string) dialog.Write { return dialog.DeleteRemote{ID: id} }
	engines(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Options{})
		want := func(t *testing.T, rows ...dialog.RemoteRow) {
			t.Helper()
			m := map[string]dialog.RemoteRow{}
			for _, r := range rows {
				m[r.ID] = r
			}
			if got := loadRemotes(t, s); !reflect.DeepEqual(got, m) {
				t.Errorf("got  %+v\nwant %+v", got, m)
			}
		}
		full, empty, odd := remoteRow(1), dialog.RemoteRow{ID: "empty"}, remoteRow(2)
		odd.ID, odd.Body, odd.RemoteTag = "caf\xe9\x00", bytes.Repeat([]byte{0, '\\', 0xff}, 30000), "\U0010FFFF\xff\x00"
		odd.Shard, odd.CSeqCeiling, odd.WantMS, odd.CreatedMS, odd.ExpiresMS = 255, 1<<32-1, 1, -1<<63, 1<<63-1
		// One write, and several of all kinds.
		commit(t, s, put(full))
		commit(t, s, put(empty), put(odd), dialog.PutSubscription{Row: subRow(1)})
		want(t, full, empty, odd)
		changed := dialog.RemoteRow{
			ID: full.ID, Shard: 9, Event: "a", Resource: "b", Watcher: "c", CallID: "d", LocalURI: "e", RemoteTag: "f", RemoteTarget: "g", RouteSet: "h",
			Accept: "i", RemoteCSeq: 1, CSeqCeiling: 2, State: dialog.Pending, Leaving: false, ContentType: "j", Body: []byte("k"), WantMS: 3, CreatedMS: 4, ExpiresMS: 5,
		}
		for v, i := reflect.ValueOf(changed), 0; i < v.NumField(); i++ {
			if v.Field(i).IsZero() && v.Type().Field(i).Name != "Leaving" {
				t.Fatalf("the test leaves field %s out, and so may the schema", v.Type().Field(i).Name)
			}
		}
		commit(t, s, put(changed))
		want(t, changed, empty, odd)
		commit(t, s, del(odd.ID), del(empty.ID))
		want(t, changed)
		commit(t, s, del(full.ID))
		want(t)

		a, b := remoteRow(10), remoteRow(11)
		a2 := a
		a2.CSeqCeiling, a2.Body = 50, []byte("newer")
		for _, tt := range []struct {
			name    string
			batches [][]dialog.Write
			want    []dialog.RemoteRow
		}{
			{"put put", [][]dialog.Write{{put(a), put(b), put(a2)}}, []dialog.RemoteRow{a2, b}},
			{"put delete", [][]dialog.Write{{put(a), put(b), del(a.ID)}}, []dialog.RemoteRow{b}},
			{"delete put", [][]dialog.Write{{put(a)}, {del(a.ID), put(a2)}}, []dialog.RemoteRow{a2}},
			{"delete of nothing", [][]dialog.Write{{del("none"), put(a)}, {del("none")}}, []dialog.RemoteRow{a}},
			{"the id of a subscription", [][]dialog.Write{{put(a), dialog.DeleteSubscription{ID: a.ID}}}, []dialog.RemoteRow{a}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				commit(t, s, del(a.ID), del(b.ID))
				for _, batch := range tt.batches {
					commit(t, s, batch...)
				}
				want(t, tt.want...)
			})
		}
		commit(t, s, del(a.ID), del(b.ID))

		// More than one statement on PostgreSQL; and all or nothing.
		var all []dialog.Write
		many := 100
		if s.engine == enginePostgres {
			many = pgRows + 1
		}
		for i := range many {
			all = append(all, put(remoteRow(i)))
		}
		if err := s.Commit(t.Context(), append(all, "nonsense")); err == nil || !strings.Contains(err.Error(), "string") {
			t.Errorf("unknown write: %v", err)
		}
		want(t)
		commit(t, s, all...)
		if n := len(loadRemotes(t, s)); n != many {
			t.Errorf("%d rows", n)
		}
		for i := range all {
			all[i] = del(remoteRow(i).ID)
		}
		commit(t, s, all...)
		want(t)
	})
}
