package sql

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rollcall/dialog"
	"rollcall/pa"
)

func TestMain(m *testing.M) {
	if dsn := os.Getenv("ROLLCALL_SQL_TEST_CHILD"); dsn != "" {
		child(dsn)
	}
	code := m.Run()
	stopPostgres()
	os.Exit(code)
}

// engines runs a test on a fresh database of each kind.
func engines(t *testing.T, f func(t *testing.T, dsn string)) {
	t.Run("sqlite", func(t *testing.T) { f(t, "sqlite:"+filepath.Join(t.TempDir(), "dir one", "a%20?#.db")) })
	t.Run("postgres", func(t *testing.T) { f(t, postgresDatabase(t)) })
}

func open(t testing.TB, dsn string, opt Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), dsn, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func subRow(i int) dialog.SubscriptionRow {
	return dialog.SubscriptionRow{
		ID: fmt.Sprintf("s%06d.%x", i, i*2654435761), Shard: uint8(i), Event: "presence", EventID: "", Resource: fmt.Sprintf("sip:user%d@example.com", i),
		Watcher: "sip:alice@example.com", CallID: fmt.Sprintf("a84b4c76e66710-%d@192.0.2.4", i), LocalURI: fmt.Sprintf("<sip:user%d@example.com>", i),
		RemoteURI: `"Alice" <sip:alice@example.com>`, LocalTag: "a6a1c5f60faecf035a1ae5b6e96e979a-0b0a", RemoteTag: "1928301774", RemoteTarget: "sip:alice@192.0.2.4:5062;transport=tcp",
		RouteSet: "<sip:p1.example.com;lr>, <sip:p2.example.com;lr>", LocalContact: "<sip:192.0.2.1:5060>", Flow: "udp:192.0.2.1:5060>192.0.2.4:5062",
		Accept: "application/pidf+xml, application/rlmi+xml, multipart/related", UserAgent: "Phone/1.0", RemoteCSeq: 4294967295, CSeqCeiling: 100,
		VersionOffset: 3, List: i%2 == 1, Told: 1<<63 - 1 - uint64(i), CreatedMS: 1790000000000, ExpiresMS: 1790003600000,
	}
}

func pubRow(i int) pa.PublicationRow {
	return pa.PublicationRow{
		Resource: fmt.Sprintf("sip:user%d@example.com", i), Event: "presence", ID: fmt.Sprintf("p%d", i), ETag: fmt.Sprintf("dx200xyz%d", i),
		ContentType: "application/pidf+xml", Body: []byte("<presence/>"), Seq: uint64(i) + 1, UpdatedMS: 1790000000000, ExpiresMS: 1790003600000,
	}
}

func puts(from, to int) []dialog.Write {
	var b []dialog.Write
	for i := from; i < to; i++ {
		b = append(b, dialog.PutSubscription{Row: subRow(i)})
	}
	return b
}

func loadSubs(t testing.TB, s *Store) map[string]dialog.SubscriptionRow {
	t.Helper()
	m := map[string]dialog.SubscriptionRow{}
	err := s.Subscriptions(t.Context(), func(r dialog.SubscriptionRow) error {
		if _, dup := m[r.ID]; dup {
			t.Errorf("%q twice", r.ID)
		}
		m[r.ID] = r
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func loadPubs(t testing.TB, s *Store) map[string]pa.PublicationRow {
	t.Helper()
	m := map[string]pa.PublicationRow{}
	err := s.Publications(t.Context(), func(r pa.PublicationRow) error {
		m[r.Resource+"|"+r.Event+"|"+r.ID] = r
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func commit(t testing.TB, s *Store, batch ...dialog.Write) {
	t.Helper()
	// Thousands of rows under -race on a busy machine may take longer than a call without a deadline has.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := s.Commit(ctx, batch); err != nil {
		t.Fatal(err)
	}
}

// What every engine must do. Memory keeps no rows, so it is asked for the rest only.
var conformance = []struct {
	name   string
	memory bool
	run    func(t *testing.T, s *Store, dsn string)
}{
	{"rows come back whole", false, testRows},
	{"last write of a key wins", false, testCollapse},
	{"all or nothing", false, testAtomic},
	{"unstorable", false, testUnstorable},
	{"unknown write", true, testUnknownWrite},
	{"any bytes", false, testBytes},
	{"concurrent", false, testConcurrent},
	{"large batch", false, testLarge},
	{"callback", false, testCallback},
	{"context", false, testContext},
	{"meta", true, testMeta},
	{"documents", true, testDocuments},
	{"lock", false, testLock},
	{"check", true, func(t *testing.T, s *Store, _ string) {
		if err := s.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}},
	{"closed", false, func(t *testing.T, s *Store, _ string) {
		s.Close()
		if err := s.Commit(t.Context(), puts(0, 1)); err == nil {
			t.Error("commit after close succeeded")
		}
		if err := s.Check(t.Context()); err == nil {
			t.Error("check after close succeeded")
		}
	}},
	{"closed twice", true, func(t *testing.T, s *Store, _ string) {
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}},
}

func TestConformance(t *testing.T) {
	run := func(t *testing.T, dsn string) {
		s := open(t, dsn, Options{})
		for _, c := range conformance {
			if dsn != "memory" || c.memory {
				t.Run(c.name, func(t *testing.T) { c.run(t, s, dsn) })
			}
		}
	}
	engines(t, run)
	t.Run("memory", func(t *testing.T) {
		s := open(t, "memory", Options{})
		commit(t, s, dialog.PutSubscription{Row: subRow(1)}, pa.PutPublication{Row: pubRow(1)})
		if len(loadSubs(t, s))+len(loadPubs(t, s)) != 0 {
			t.Error("memory kept rows")
		}
		if err := s.MigrateUp(t.Context()); err != nil {
			t.Error(err)
		}
		run(t, "memory")
	})
}

func testUnknownWrite(t *testing.T, s *Store, _ string) {
	bad := pubRow(1)
	bad.Seq = 1 << 63
	for _, w := range []dialog.Write{"nonsense", nil, &dialog.PutSubscription{}, pa.PutPublication{Row: bad}} {
		if err := s.Commit(t.Context(), append(puts(0, 3), w)); !errors.Is(err, dialog.ErrUnstorable) {
			t.Errorf("%T: %v", w, err)
		}
	}
}

// What comes of a row's values is told apart from what comes of the database.
func testUnstorable(t *testing.T, s *Store, _ string) {
	for _, st := range []struct {
		change, back map[engine]string
		forGood      bool
	}{
		{
			map[engine]string{
				engineSQLite:   `CREATE TRIGGER refuse BEFORE INSERT ON subscription BEGIN SELECT RAISE(ABORT, 'refused'); END`,
				enginePostgres: `ALTER TABLE subscription ADD CONSTRAINT refuse CHECK (event <> 'presence')`,
			}, map[engine]string{engineSQLite: `DROP TRIGGER refuse`, enginePostgres: `ALTER TABLE subscription DROP CONSTRAINT refuse`}, true,
		},
		{
			map[engine]string{engineSQLite: `ALTER TABLE subscription RENAME TO away`, enginePostgres: `ALTER TABLE subscription RENAME TO away`},
			map[engine]string{engineSQLite: `ALTER TABLE away RENAME TO subscription`, enginePostgres: `ALTER TABLE away RENAME TO subscription`}, false,
		},
	} {
		if _, err := s.w.Exec(st.change[s.engine]); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{1, 3} {
			if err := s.Commit(t.Context(), puts(0, n)); err == nil || errors.Is(err, dialog.ErrUnstorable) != st.forGood {
				t.Errorf("%s: %v", st.change[s.engine], err)
			}
		}
		if _, err := s.w.Exec(st.back[s.engine]); err != nil {
			t.Fatal(err)
		}
	}
	if s.engine == enginePostgres { // a key too large for an index
		row := subRow(1)
		b := make([]byte, 1<<14)
		rand.Read(b)
		row.ID = hex.EncodeToString(b)
		if err := s.Commit(t.Context(), []dialog.Write{dialog.PutSubscription{Row: row}}); !errors.Is(err, dialog.ErrUnstorable) {
			t.Errorf("a huge key: %v", err)
		}
	}
	commit(t, s, puts(0, 3)...)
	for i := range 3 {
		commit(t, s, dialog.DeleteSubscription{ID: subRow(i).ID})
	}
}

func testRows(t *testing.T, s *Store, dsn string) {
	full := subRow(1)
	full.EventID = "7"
	empty := dialog.SubscriptionRow{ID: "empty"}
	extreme := subRow(2)
	extreme.Shard, extreme.RemoteCSeq, extreme.CSeqCeiling, extreme.VersionOffset = 255, 1<<32-1, 1<<32-1, 1<<32-1
	extreme.CreatedMS, extreme.ExpiresMS = -1<<63, 1<<63-1
	pubs := []pa.PublicationRow{pubRow(1), {Resource: "sip:bob@example.com"}, pubRow(2)}
	pubs[2].Body, pubs[2].Seq = bytes.Repeat([]byte{0, 1, '\\', '"', 0xff}, 50000), 1<<63-1

	// A single write, a batch of one kind, a mixed batch: each has a path of its own.
	commit(t, s, dialog.PutSubscription{Row: full})
	commit(t, s, dialog.PutSubscription{Row: empty}, dialog.PutSubscription{Row: extreme}, pa.PutPublication{Row: pubs[0]})
	commit(t, s, pa.PutPublication{Row: pubs[1]}, pa.PutPublication{Row: pubs[2]})
	check := func(s *Store) {
		t.Helper()
		got := loadSubs(t, s)
		want := map[string]dialog.SubscriptionRow{full.ID: full, empty.ID: empty, extreme.ID: extreme}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		gotPubs := loadPubs(t, s)
		if len(gotPubs) != len(pubs) {
			t.Errorf("%d publications", len(gotPubs))
		}
		for _, want := range pubs {
			got := gotPubs[want.Resource+"|"+want.Event+"|"+want.ID]
			if !bytes.Equal(got.Body, want.Body) {
				t.Errorf("body of %d bytes, want %d", len(got.Body), len(want.Body))
			}
			got.Body, want.Body = nil, nil
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v\nwant %+v", got, want)
			}
		}
	}
	check(s)

	// The same again changes nothing; a tool beside the server sees the same.
	commit(t, s, dialog.PutSubscription{Row: full}, pa.PutPublication{Row: pubs[0]}, pa.PutPublication{Row: pubs[2]})
	check(s)
	beside := open(t, dsn, Options{Beside: true})
	check(beside)
	beside.Close()

	// Replacement reaches every column.
	changed := dialog.SubscriptionRow{
		ID: full.ID, Shard: 9, Event: "a", EventID: "b", Resource: "c", Watcher: "d", CallID: "e", LocalURI: "f", RemoteURI: "g", LocalTag: "x", RemoteTag: "h",
		RemoteTarget: "i", RouteSet: "j", LocalContact: "k", Flow: "l", Accept: "m", Encoding: "w", UserAgent: "n", RemoteCSeq: 1, CSeqCeiling: 2, VersionOffset: 4,
		List: false, Told: 10, CreatedMS: 5, ExpiresMS: 6,
	}
	for v, i := reflect.ValueOf(changed), 0; i < v.NumField(); i++ {
		if v.Field(i).IsZero() && v.Type().Field(i).Name != "List" {
			t.Fatalf("the test leaves field %s out, and so may the schema", v.Type().Field(i).Name)
		}
	}
	full = changed
	pubs[0] = pa.PublicationRow{
		Resource: pubs[0].Resource, Event: pubs[0].Event, ID: pubs[0].ID, ETag: "other", ContentType: "text/plain", Body: []byte("x"),
		Seq: 99, UpdatedMS: 7, ExpiresMS: 8,
	}
	commit(t, s, dialog.PutSubscription{Row: full}, pa.PutPublication{Row: pubs[0]})
	check(s)

	var wipe []dialog.Write
	for id := range loadSubs(t, s) {
		wipe = append(wipe, dialog.DeleteSubscription{ID: id})
	}
	commit(t, s, wipe...)
	for _, p := range pubs {
		commit(t, s, pa.DeletePublication{Resource: p.Resource, Event: p.Event, ID: p.ID})
	}
	if n := len(loadSubs(t, s)) + len(loadPubs(t, s)); n != 0 {
		t.Errorf("%d rows after deleting all", n)
	}
}

func testCollapse(t *testing.T, s *Store, _ string) {
	a, b := subRow(10), subRow(11)
	a2 := a
	a2.RemoteTarget, a2.CSeqCeiling = "sip:alice@192.0.2.9", 50
	put := func(r dialog.SubscriptionRow) dialog.Write { return dialog.PutSubscription{Row: r} }
	del := func(id string) dialog.Write { return dialog.DeleteSubscription{ID: id} }
	ceil := func(id string, n uint32) dialog.Write { return dialog.SetCSeqCeiling{ID: id, Ceiling: n} }
	with := func(r dialog.SubscriptionRow, n uint32) dialog.SubscriptionRow { r.CSeqCeiling = n; return r }
	tests := []struct {
		name    string
		batches [][]dialog.Write
		want    []dialog.SubscriptionRow
	}{
		{"nothing", [][]dialog.Write{nil}, nil},
		{"put put", [][]dialog.Write{{put(a), put(b), put(a2)}}, []dialog.SubscriptionRow{a2, b}},
		{"put delete", [][]dialog.Write{{put(a), put(b), del(a.ID)}}, []dialog.SubscriptionRow{b}},
		{"delete put", [][]dialog.Write{{put(a)}, {del(a.ID), put(a2)}}, []dialog.SubscriptionRow{a2}},
		{"delete of nothing", [][]dialog.Write{{del("none"), put(a)}, {del("none")}}, []dialog.SubscriptionRow{a}},
		{"ceiling after put", [][]dialog.Write{{put(a), ceil(a.ID, 200), ceil(a.ID, 150)}}, []dialog.SubscriptionRow{with(a, 200)}},
		{"lower ceiling after put", [][]dialog.Write{{put(a), ceil(a.ID, 20)}}, []dialog.SubscriptionRow{a}},
		{"ceiling before put", [][]dialog.Write{{put(a)}, {ceil(a.ID, 200), put(a2)}}, []dialog.SubscriptionRow{a2}},
		{"ceiling alone", [][]dialog.Write{{put(a), put(b)}, {ceil(a.ID, 300)}}, []dialog.SubscriptionRow{with(a, 300), b}},
		{"ceilings", [][]dialog.Write{{put(a), put(b)}, {ceil(a.ID, 300), ceil(b.ID, 400), ceil(a.ID, 299)}}, []dialog.SubscriptionRow{with(a, 300), with(b, 400)}},
		{"ceiling never falls", [][]dialog.Write{{put(a)}, {ceil(a.ID, 300)}, {ceil(a.ID, 200)}}, []dialog.SubscriptionRow{with(a, 300)}},
		{"ceiling of nothing", [][]dialog.Write{{ceil("none", 300)}, {put(a), ceil("none", 2)}}, []dialog.SubscriptionRow{a}},
		{"ceiling then delete", [][]dialog.Write{{put(a)}, {ceil(a.ID, 300), del(a.ID)}}, nil},
		{"delete then ceiling", [][]dialog.Write{{put(a)}, {del(a.ID), ceil(a.ID, 300)}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			commit(t, s, del(a.ID), del(b.ID))
			for _, batch := range tt.batches {
				commit(t, s, batch...)
			}
			want := map[string]dialog.SubscriptionRow{}
			for _, r := range tt.want {
				want[r.ID] = r
			}
			if got := loadSubs(t, s); !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
	commit(t, s, del(a.ID), del(b.ID))

	p := pubRow(10)
	p2 := p
	p2.ETag = "second"
	other := p
	other.ID = "other"
	gone := pa.DeletePublication{Resource: p.Resource, Event: p.Event, ID: p.ID}
	commit(t, s, pa.PutPublication{Row: p}, gone, pa.PutPublication{Row: other}, pa.PutPublication{Row: p2})
	if got := loadPubs(t, s); len(got) != 2 || got[p.Resource+"|presence|"+p.ID].ETag != "second" {
		t.Errorf("publications: %+v", got)
	}
	commit(t, s, pa.PutPublication{Row: p}, gone)
	if got := loadPubs(t, s); len(got) != 1 {
		t.Errorf("publications: %+v", got)
	}
	gone.ID = "other"
	commit(t, s, gone, pa.DeletePublication{Resource: "none"})
	if got := loadPubs(t, s); len(got) != 0 {
		t.Errorf("publications: %+v", got)
	}
}

func testAtomic(t *testing.T, s *Store, _ string) {
	// A fault that only the database notices, after rows have been written.
	_, err := s.w.Exec(map[engine]string{
		engineSQLite:   `CREATE TRIGGER refuse BEFORE INSERT ON publication BEGIN SELECT RAISE(ABORT, 'refused'); END`,
		enginePostgres: `ALTER TABLE publication ADD CONSTRAINT refuse CHECK (etag <> 'refused')`,
	}[s.engine])
	if err != nil {
		t.Fatal(err)
	}
	p := pubRow(1)
	p.ETag = "refused"
	if err := s.Commit(t.Context(), append(puts(0, 3), pa.PutPublication{Row: p})); err == nil || !strings.Contains(err.Error(), "refuse") {
		t.Errorf("got %v", err)
	}
	if got := loadSubs(t, s); len(got) != 0 {
		t.Errorf("%d rows of a failed batch", len(got))
	}
	_, err = s.w.Exec(map[engine]string{
		engineSQLite: `DROP TRIGGER refuse`, enginePostgres: `ALTER TABLE publication DROP CONSTRAINT refuse`,
	}[s.engine])
	if err != nil {
		t.Fatal(err)
	}
}

func testBytes(t *testing.T, s *Store, _ string) {
	for _, v := range []string{"caf\xe9", "a\x00b", "\U0010FF41", "\U0010FFFF\xff", `"\{},NULL'`, "\xf4\x8f", "ünï", "NULL", " x ", ""} {
		r := subRow(1)
		r.UserAgent, r.ID = v, "id"+v
		p := pubRow(1)
		p.ID, p.ETag = "id"+v, v
		commit(t, s, dialog.PutSubscription{Row: r}, pa.PutPublication{Row: p}, dialog.SetCSeqCeiling{ID: r.ID, Ceiling: 500})
		commit(t, s, dialog.SetCSeqCeiling{ID: r.ID, Ceiling: 600})
		r.CSeqCeiling = 600
		if got := loadSubs(t, s)[r.ID]; got != r {
			t.Errorf("%q: got %+v", v, got)
		}
		if got := loadPubs(t, s)[p.Resource+"|presence|"+p.ID]; got.ETag != v {
			t.Errorf("%q: got %+v", v, got)
		}
		commit(t, s, dialog.DeleteSubscription{ID: r.ID}, pa.DeletePublication{Resource: p.Resource, Event: p.Event, ID: p.ID})
		if n := len(loadSubs(t, s)) + len(loadPubs(t, s)); n != 0 {
			t.Errorf("%q: %d rows left", v, n)
		}
	}
}

func testConcurrent(t *testing.T, s *Store, _ string) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 20 {
				b := puts(1000*g+10*i, 1000*g+10*i+10)
				b = append(b, dialog.PutSubscription{Row: subRow(0)}, pa.PutPublication{Row: pubRow(i)}) // and some all want
				if err := s.Commit(t.Context(), b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(loadSubs(t, s)); n != 8*200 {
		t.Errorf("%d rows", n)
	}
	var wipe []dialog.Write
	for id := range loadSubs(t, s) {
		wipe = append(wipe, dialog.DeleteSubscription{ID: id})
	}
	for _, p := range loadPubs(t, s) {
		wipe = append(wipe, pa.DeletePublication{Resource: p.Resource, Event: p.Event, ID: p.ID})
	}
	commit(t, s, wipe...)
}

func testLarge(t *testing.T, s *Store, _ string) {
	b := puts(0, 5000) // more than one statement on PostgreSQL
	commit(t, s, b...)
	if n := len(loadSubs(t, s)); n != 5000 {
		t.Fatalf("%d rows", n)
	}
	for i := range b {
		b[i] = dialog.DeleteSubscription{ID: subRow(i).ID}
	}
	commit(t, s, b...)
	if n := len(loadSubs(t, s)); n != 0 {
		t.Errorf("%d rows left", n)
	}
}

func testCallback(t *testing.T, s *Store, _ string) {
	commit(t, s, puts(0, 50)...)
	stop := errors.New("stop")
	n := 0
	if err := s.Subscriptions(t.Context(), func(dialog.SubscriptionRow) error { n++; return stop }); err != stop || n != 1 {
		t.Errorf("got %v after %d rows", err, n)
	}
	// Writing while reading: the load sees one moment.
	n = 0
	err := s.Subscriptions(t.Context(), func(r dialog.SubscriptionRow) error {
		n++
		return s.Commit(t.Context(), []dialog.Write{dialog.DeleteSubscription{ID: r.ID}, dialog.PutSubscription{Row: subRow(100 + n)}})
	})
	if err != nil || n != 50 {
		t.Errorf("%d rows, %v", n, err)
	}
	for id := range loadSubs(t, s) {
		commit(t, s, dialog.DeleteSubscription{ID: id})
	}
}

func testContext(t *testing.T, s *Store, _ string) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, n := range []int{1, 10} {
		if err := s.Commit(ctx, puts(0, n)); !errors.Is(err, context.Canceled) {
			t.Errorf("commit of %d: %v", n, err)
		}
	}
	if err := s.Subscriptions(ctx, func(dialog.SubscriptionRow) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := s.Document(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := len(loadSubs(t, s)); n != 0 {
		t.Errorf("%d rows", n)
	}
}

func testMeta(t *testing.T, s *Store, _ string) {
	ctx := t.Context()
	if _, err := s.Meta(ctx, "secret"); !errors.Is(err, ErrNotFound) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing key: %v", err)
	}
	for _, v := range []string{"one", "", "tw\x00\xff"} {
		if err := s.SetMeta(ctx, "secret", v); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Meta(ctx, "secret"); got != v || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

func testDocuments(t *testing.T, s *Store, _ string) {
	ctx := t.Context()
	doc := func(selector, etag, body string) Document {
		return Document{Selector: selector, ETag: etag, ContentType: "application/resource-lists+xml", Body: []byte(body), UpdatedMS: 1790000000000}
	}
	const alice = "resource-lists/users/sip:alice@example.com/index"
	steps := []struct {
		name    string
		put     bool
		doc     Document
		only    Precondition
		created bool
		err     error
	}{
		{"XC-04 If-Match without a document", true, doc(alice, "1", "a"), Precondition{Match: "*"}, false, ErrConflict},
		{"XC-04 create", true, doc(alice, "1", "a"), Precondition{Absent: true}, true, nil},
		{"XC-04 create twice", true, doc(alice, "2", "b"), Precondition{Absent: true}, false, ErrConflict},
		{"XC-04 wrong tag", true, doc(alice, "2", "b"), Precondition{Match: "0"}, false, ErrConflict},
		{"XC-04 right tag", true, doc(alice, "2", "b"), Precondition{Match: "1"}, false, nil},
		{"no condition", true, doc(alice, "3", "c"), Precondition{}, false, nil},
		{"empty body", true, Document{Selector: "pres-rules/users/sip:bob@example.com/index", ETag: "x"}, Precondition{}, true, nil},
		{"delete with a wrong tag", false, doc(alice, "", ""), Precondition{Match: "2"}, false, ErrConflict},
		{"delete nothing", false, doc("resource-lists/global/none", "", ""), Precondition{}, false, ErrNotFound},
	}
	for _, st := range steps {
		var created bool
		var err error
		if st.put {
			created, err = s.PutDocument(ctx, st.doc, st.only)
		} else {
			err = s.DeleteDocument(ctx, st.doc.Selector, st.only)
		}
		if created != st.created || !errors.Is(err, st.err) {
			t.Errorf("%s: created %v, %v", st.name, created, err)
		}
	}
	if got, err := s.Document(ctx, alice); err != nil || !reflect.DeepEqual(got, doc(alice, "3", "c")) {
		t.Errorf("got %+v, %v", got, err)
	}
	if body, etag, err := s.DocumentBody(ctx, alice); string(body) != "c" || etag != "3" || err != nil {
		t.Errorf("got %q %q %v", body, etag, err)
	}

	for _, sel := range []string{
		"resource-lists/users/sip:Zoë@example.com/index", "resource-lists/global/index", "resource-lists-x/global/index",
		"resource-lists.x/global/index", "resource-lists0/global/index",
	} {
		if _, err := s.PutDocument(ctx, doc(sel, "1", "x"), Precondition{}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"resource-lists/global/index", "resource-lists/users/sip:Zoë@example.com/index", alice}
	if got, err := s.Selectors(ctx, "resource-lists"); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := s.Selectors(ctx, "none"); err != nil || len(got) != 0 {
		t.Errorf("got %q, %v", got, err)
	}
	if err := s.DeleteDocument(ctx, alice, Precondition{Match: "3"}); err != nil {
		t.Error(err)
	}
	if _, err := s.Document(ctx, alice); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}

	// Of many that create at once, or that change the same version, one wins.
	for _, only := range []Precondition{{Absent: true}, {Match: "0"}} {
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for i := range 8 {
			wg.Go(func() {
				_, err := s.PutDocument(ctx, doc(alice, fmt.Sprint("by", i), "x"), only)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if !errors.Is(err, ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Errorf("%+v: %d won", only, won)
		}
		if _, err := s.PutDocument(ctx, doc(alice, "0", "x"), Precondition{}); err != nil {
			t.Fatal(err)
		}
	}
}

func testLock(t *testing.T, s *Store, dsn string) {
	if _, err := Open(t.Context(), dsn, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("second server: %v", err)
	}
	if s.engine == engineSQLite {
		path, _ := strings.CutPrefix(dsn, "sqlite:")
		link := filepath.Join(t.TempDir(), "link.db")
		if err := os.Symlink(path, link); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), "sqlite:"+link, Options{})
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
			t.Errorf("second server by another name: %v", err)
		}
	}
	beside := open(t, dsn, Options{Beside: true})
	if err := beside.MigrateUp(t.Context()); err == nil {
		t.Error("a tool beside the server may migrate")
	}
	beside.Close()
}

func TestMigrations(t *testing.T) {
	engines(t, func(t *testing.T, dsn string) {
		ctx := t.Context()
		s := open(t, dsn, Options{NoMigrate: true})
		st, err := s.Status(ctx)
		if err != nil || st.Current != 0 || st.Target < 1 || len(st.Migrations) != int(st.Target) || !st.Migrations[0].Applied.IsZero() {
			t.Fatalf("empty: %+v, %v", st, err)
		}
		for range 2 { // up, down and up again: nothing is left behind
			if err := s.MigrateUp(ctx); err != nil {
				t.Fatal(err)
			}
			commit(t, s, puts(0, 2)...)
			if st, err = s.Status(ctx); err != nil || st.Current != st.Target || st.Migrations[0].Applied.IsZero() {
				t.Fatalf("up: %+v, %v", st, err)
			}
			if err := s.MigrateDown(ctx, 0); err != nil {
				t.Fatal(err)
			}
			if st, err = s.Status(ctx); err != nil || st.Current != 0 {
				t.Fatalf("down: %+v, %v", st, err)
			}
		}
		s.Close()
		if _, err := Open(ctx, dsn, Options{Beside: true}); err == nil || !strings.Contains(err.Error(), "migrate first") {
			t.Errorf("beside an empty database: %v", err)
		}
		s = open(t, dsn, Options{})
		if n := len(loadSubs(t, s)); n != 0 {
			t.Errorf("%d rows after down and up", n)
		}
		if _, err := s.w.Exec(`INSERT INTO schema_version (version_id, is_applied) VALUES (9999, true)`); err != nil {
			t.Fatal(err)
		}
		if err := s.MigrateUp(ctx); !errors.Is(err, ErrNewerSchema) {
			t.Errorf("up: %v", err)
		}
		if err := s.MigrateDown(ctx, 0); !errors.Is(err, ErrNewerSchema) {
			t.Errorf("down: %v", err)
		}
		s.Close()
		for _, opt := range []Options{{}, {Beside: true}} {
			if _, err := Open(ctx, dsn, opt); !errors.Is(err, ErrNewerSchema) || !strings.Contains(err.Error(), "9999") {
				t.Errorf("%+v: %v", opt, err)
			}
		}
		s = open(t, dsn, Options{NoMigrate: true}) // and the failed Opens let go of the lock
		if st, err = s.Status(ctx); err != nil || st.Current != 9999 {
			t.Errorf("status: %+v, %v", st, err)
		}
	})
}

// schema is the columns of each table as the database has them.
func schema(t *testing.T, s *Store) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, name := range []string{subscriptions.name, remotes.name, publications.name, documents.name, metas.name, exportedSubscriber.name} {
		rows, err := s.r.Queryx(`SELECT * FROM ` + name + ` LIMIT 0`)
		if err != nil {
			continue // no such table yet
		}
		if all[name], err = rows.Columns(); err != nil {
			t.Fatal(err)
		}
		rows.Close()
		slices.Sort(all[name])
	}
	return all
}

// lose clears what a table of these columns has no place for.
func lose[R any](t *table[R], row *R, columns []string) {
	for _, c := range t.columns {
		if !slices.Contains(columns, c.name) {
			reflect.ValueOf(c.at(row)).Elem().SetZero()
		}
	}
}

// Each step keeps what the schema below has a place for, down and up, and a database of any age opens.
func TestMigrateSteps(t *testing.T) {
	engines(t, func(t *testing.T, dsn string) {
		ctx := t.Context()
		s := open(t, dsn, Options{NoMigrate: true})
		st, err := s.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		up := make([]map[string][]string, st.Target+1) // by version
		for v := range up {
			if err := s.MigrateTo(ctx, int64(v)); err != nil {
				t.Fatal(err)
			}
			up[v] = schema(t, s)
		}
		if first, last := up[1], up[st.Target]; len(first[subscriptions.name]) == 0 || len(last[subscriptions.name]) != len(subscriptions.columns) || len(last) != 6 {
			t.Fatalf("from %v to %v", first, last)
		}
		s.Close()
		s = open(t, dsn, Options{})
		full, remote := subRow(1), remoteRow(1)
		full.Encoding, full.UserAgent = "gzip", "caf\xe9"
		commit(t, s, dialog.PutSubscription{Row: full}, dialog.PutRemote{Row: remote}, pa.PutPublication{Row: pubRow(1)})
		if _, err := s.PutDocument(ctx, Document{Selector: "rls-services/global/index", ETag: "1", Body: []byte("x")}, Precondition{}); err != nil {
			t.Fatal(err)
		}
		if err := s.SetMeta(ctx, "k", "v"); err != nil {
			t.Fatal(err)
		}
		want := full
		for v := st.Target - 1; v >= 1; v-- {
			if err := s.MigrateTo(ctx, v); err != nil {
				t.Fatal(err)
			}
			if now, err := s.Status(ctx); err != nil || now.Current != v {
				t.Fatalf("at %d: %+v, %v", v, now, err)
			}
			now := schema(t, s)
			for name, columns := range now {
				if name != exportedSubscriber.name && !slices.Equal(columns, up[v][name]) { // which is never dropped
					t.Errorf("at %d: going down leaves table %s with %v, going up gave %v", v, name, columns, up[v][name])
				}
			}
			s.Close()
			s = open(t, dsn, Options{}) // a new program on an old schema
			lose(subscriptions, &want, now[subscriptions.name])
			wantRemotes := map[string]dialog.RemoteRow{}
			if columns := now[remotes.name]; columns != nil {
				lose(remotes, &remote, columns)
				wantRemotes[remote.ID] = remote
			}
			if got := loadRemotes(t, s); !reflect.DeepEqual(got, wantRemotes) {
				t.Errorf("from %d: %+v", v, got)
			}
			if got := loadSubs(t, s); len(got) != 1 || got[want.ID] != want {
				t.Errorf("from %d: %+v", v, got)
			}
			if got := loadPubs(t, s); len(got) != 1 || got["sip:user1@example.com|presence|p1"].ETag != pubRow(1).ETag {
				t.Errorf("from %d: %+v", v, got)
			}
			if d, err := s.Document(ctx, "rls-services/global/index"); err != nil || string(d.Body) != "x" {
				t.Errorf("from %d: %+v, %v", v, d, err)
			}
			if m, err := s.Meta(ctx, "k"); err != nil || m != "v" {
				t.Errorf("from %d: %q, %v", v, m, err)
			}
			commit(t, s, dialog.PutSubscription{Row: want})
		}
		for _, v := range []int64{-1, st.Target + 1} {
			if err := s.MigrateTo(ctx, v); err == nil || !strings.Contains(err.Error(), "there is no version") {
				t.Errorf("to %d: %v", v, err)
			}
		}
	})
}

func TestSQLiteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state", "rollcall", "rollcall.db")
	if _, err := Open(t.Context(), "sqlite:"+path, Options{Beside: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("beside a missing file: %v", err)
	}
	s := open(t, "sqlite:"+path, Options{Sync: SyncFull})
	commit(t, s, puts(0, 10)...)
	for name, mode := range map[string]fs.FileMode{"..": 0o700, ".": 0o700, "rollcall.db": 0o600, "rollcall.db-wal": 0o600, "rollcall.db-shm": 0o600, "rollcall.db.lock": 0o600} {
		fi, err := os.Stat(filepath.Join(filepath.Dir(path), name))
		if err != nil {
			t.Error(err)
		} else if fi.Mode().Perm() != mode {
			t.Errorf("%s has mode %o", name, fi.Mode().Perm())
		}
	}
	for name, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "busy_timeout": "5000"} {
		var got string
		if err := s.w.Get(&got, "PRAGMA "+name); err != nil || got != want {
			t.Errorf("%s = %s, %v", name, got, err)
		}
	}
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context()); err == nil {
		t.Error("check does not notice that the file is gone")
	}
	s.Close()

	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, bytes.Repeat([]byte("no database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dsn := range []string{"sqlite:", "sqlite::memory:", "sqlite:" + dir, "sqlite:" + garbage, "mysql://x", "", "sqlite:" + garbage + "/x"} {
		if s, err := Open(t.Context(), dsn, Options{}); err == nil {
			s.Close()
			t.Errorf("%q opened", dsn)
		} else {
			t.Log(err)
		}
	}
}

func TestPostgresErrorsHidePassword(t *testing.T) {
	for _, dsn := range []string{
		"postgres://u:hush@127.0.0.1:1/x?sslmode=disable", "postgres://u@127.0.0.1:1/x?sslmode=disable&password=hush", "postgres://u:hush@[::1/x",
	} {
		if _, err := Open(t.Context(), dsn, Options{}); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%v", err)
		}
	}
}

// The lock of a PostgreSQL database is taken again when its connection broke.
func TestPostgresLockRenewed(t *testing.T) {
	dsn := postgresDatabase(t)
	s := open(t, dsn, Options{})
	if _, err := s.w.Exec(`SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), dsn, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("second server: %v", err)
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "a", "\x00", "\xff", "\U0010FF00", "\xf4\x8f\xbc", "a\xf4\x8f\xbf\xbf\xff", "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e := escape(s)
		if strings.ToValidUTF8(e, "?") != e || strings.Contains(e, "\x00") {
			t.Errorf("%q is escaped as %q", s, e)
		}
		if got := unescape(e); got != s {
			t.Errorf("%q came back as %q", s, got)
		}
	})
}

func BenchmarkCommit(b *testing.B) {
	for _, sync := range []Sync{SyncNormal, SyncFull} {
		for _, n := range []int{1, 64, 1000} {
			b.Run(fmt.Sprintf("sqlite/sync=%d/rows=%d", sync, n), func(b *testing.B) {
				benchmarkCommit(b, open(b, "sqlite:"+filepath.Join(b.TempDir(), "a.db"), Options{Sync: sync}), n)
			})
		}
	}
	for _, n := range []int{1, 64, 1000} {
		b.Run(fmt.Sprintf("postgres/rows=%d", n), func(b *testing.B) {
			benchmarkCommit(b, open(b, postgresDatabase(b), Options{}), n)
		})
	}
}

func benchmarkCommit(b *testing.B, s *Store, n int) {
	const population = 20000
	for i := 0; i < population; i += 1000 {
		commit(b, s, puts(i, i+1000)...)
	}
	var batches [][]dialog.Write
	for i := 0; i+n <= population; i += n {
		batches = append(batches, puts(i, i+n))
	}
	i := 0
	before := processorTime(b)
	for b.Loop() {
		if err := s.Commit(b.Context(), batches[i%len(batches)]); err != nil {
			b.Fatal(err)
		}
		i++
	}
	rows := float64(b.N) * float64(n)
	b.ReportMetric(rows/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64((processorTime(b)-before).Nanoseconds())/1000/rows, "cpu-µs/row") // ours: without PostgreSQL's
}

func BenchmarkLoad(b *testing.B) {
	const population = 20000
	load := func(b *testing.B, s *Store) {
		commit(b, s, puts(0, population)...)
		for b.Loop() {
			if err := s.Subscriptions(b.Context(), func(dialog.SubscriptionRow) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/population, "µs/row")
	}
	b.Run("sqlite", func(b *testing.B) { load(b, open(b, "sqlite:"+filepath.Join(b.TempDir(), "a.db"), Options{})) })
	b.Run("postgres", func(b *testing.B) { load(b, open(b, postgresDatabase(b), Options{})) })
}
