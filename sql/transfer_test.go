package sql

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/sip/auth"
)

// filled puts rows of all kinds into a store, with every octet that may come.
func filled(t *testing.T, s *Store) Counts {
	t.Helper()
	var all [256]byte
	for i := range all {
		all[i] = byte(i)
	}
	odd := []string{"", string(all[:]), "caf\xe9", "a\x00b", "\U0010FF41", "<&>\u2028\"\\", "ünï", "\xed\xa0\x80"}
	var batch []dialog.Write
	for i, v := range odd {
		r, p := subRow(i), pubRow(i)
		r.UserAgent, r.CallID, r.Encoding = v, v, "gzip"
		p.ETag, p.Body = "e"+v, []byte(v)
		f := remoteRow(i)
		f.RemoteTag, f.RouteSet, f.Body, f.State = v, v, []byte(v), dialog.SubState(i%4)
		batch = append(batch, dialog.PutSubscription{Row: r}, pa.PutPublication{Row: p}, dialog.PutRemote{Row: f})
		if i > 0 {
			r.ID, f.ID = v, v
			batch = append(batch, dialog.PutSubscription{Row: r}, dialog.PutRemote{Row: f})
		}
	}
	big := pubRow(100)
	big.Body, big.Seq, big.ExpiresMS = bytes.Repeat([]byte("x\xff"), 1<<20), 1<<63-1, -1<<63
	batch = append(batch, pa.PutPublication{Row: big})
	for i := 1000; i < 3500; i++ { // more than one piece
		batch = append(batch, dialog.PutSubscription{Row: subRow(i)})
	}
	for i := 1000; i < 2500; i++ {
		batch = append(batch, dialog.PutRemote{Row: remoteRow(i)})
	}
	commit(t, s, batch...)
	for i, v := range odd[1:] {
		d := Document{Selector: fmt.Sprint("rls-services/users/", v), ETag: v, ContentType: v, Body: []byte(v), UpdatedMS: int64(i)}
		if _, err := s.PutDocument(t.Context(), d, Precondition{}); err != nil {
			t.Fatal(err)
		}
		if err := s.SetMeta(t.Context(), "k"+v, v); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"alice", "zoë", "b\xff"} {
		if _, err := s.PutSubscriber(t.Context(), derived(name, "example.com", "secret"), Precondition{}); err != nil {
			t.Fatal(err)
		}
	}
	n := int64(len(odd))
	return Counts{Subscriptions: 2*n - 1 + 2500, Remotes: 2*n - 1 + 1500, Publications: n + 1, Documents: n - 1, Meta: n - 1, Subscribers: 3}
}

// export gives the lines of a store, but for the header, in an order of their own.
func export(t *testing.T, s *Store) (text string, rows []string) {
	t.Helper()
	var b bytes.Buffer
	if _, err := s.Export(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	rows = strings.SplitAfter(strings.TrimSuffix(b.String(), "\n"), "\n")[1:]
	slices.Sort(rows)
	return b.String(), rows
}

func TestTransfer(t *testing.T) {
	a := open(t, "sqlite:"+t.TempDir()+"/a.db", Options{})
	want := filled(t, a)
	subs, remotes := loadSubs(t, a), loadRemotes(t, a)
	text, rows := export(t, a)
	for i, dsn := range []string{postgresDatabase(t), "sqlite:" + t.TempDir() + "/c.db"} {
		s := open(t, dsn, Options{})
		n, err := s.Import(t.Context(), strings.NewReader(text), ImportOptions{})
		if err != nil || n != want {
			t.Fatalf("store %d: %+v, %v; want %+v", i, n, err, want)
		}
		if !reflect.DeepEqual(loadSubs(t, s), subs) || !reflect.DeepEqual(loadRemotes(t, s), remotes) {
			t.Errorf("store %d: other rows", i)
		}
		var now []string
		if text, now = export(t, s); !slices.Equal(now, rows) {
			t.Errorf("store %d: other lines", i)
		}
		if _, err := s.Import(t.Context(), strings.NewReader(text), ImportOptions{}); !errors.Is(err, ErrNotEmpty) {
			t.Errorf("into a full store: %v", err)
		}
		if n, err := s.Import(t.Context(), strings.NewReader(text), ImportOptions{Merge: true}); err != nil || n != want {
			t.Errorf("merge: %+v, %v", n, err)
		}
		if _, now = export(t, s); !slices.Equal(now, rows) {
			t.Errorf("store %d: merging the same changed something", i)
		}
		if found, err := s.Integrity(t.Context()); err != nil || len(found) != 0 {
			t.Errorf("integrity: %q, %v", found, err)
		}
	}
}

func TestImportBad(t *testing.T) {
	src := open(t, "sqlite:"+t.TempDir()+"/a.db", Options{})
	commit(t, src, puts(0, 3)...)
	commit(t, src, pa.PutPublication{Row: pubRow(1)})
	st, err := src.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, _ := export(t, src)
	lines := strings.SplitAfter(text, "\n") // header, 3, 1, end, ""
	join := func(l ...string) string { return strings.Join(l, "") }
	whole := join(lines[1:5]...)
	for _, c := range []struct {
		name, text string
		err        string // "": none
		bad        []string
		n          Counts
	}{
		{"nothing", "", "nothing to read", nil, Counts{}},
		{"no header", join(lines[1:]...), "line 1 is not the header", nil, Counts{}},
		{"other format", strings.Replace(text, `"rollcall_store":1`, `"rollcall_store":2`, 1), "format 2, this program knows 1", nil, Counts{}},
		{"newer schema", strings.Replace(text, fmt.Sprintf(`"schema":%d`, st.Target), fmt.Sprintf(`"schema":%d`, st.Target+1), 1), fmt.Sprint("version ", st.Target+1), nil, Counts{}},
		{"cut off", lines[0] + whole, "cut off", nil, Counts{Subscriptions: 3, Publications: 1}},
		{"cut off in a line", text[:len(text)-10], "cut off", []string{"line 6: "}, Counts{Subscriptions: 3, Publications: 1}},
		{"a line is lost", join(lines[0], lines[1], lines[3], lines[4], lines[5]), "has lost lines", nil, Counts{}},
		{"after the end", text + lines[1], "line 7: there is something after the end", nil, Counts{}},
		{"empty lines", strings.ReplaceAll(text, "\n", "\n\n"), "", nil, Counts{Subscriptions: 3, Publications: 1}},
		{"no JSON", join(lines[0], lines[1], "oops\n", lines[2], lines[3], lines[4], lines[5]), "", []string{"line 3: invalid character"}, Counts{Subscriptions: 3, Publications: 1}},
		{"unknown table", join(lines[0], `{"tables":{}}`+"\n", whole, lines[5]), "", []string{`line 2: no table is called "tables"`}, Counts{Subscriptions: 3, Publications: 1}},
		{"two tables", join(lines[0], `{"meta":{},"document":{}}`+"\n", whole, lines[5]), "", []string{"line 2: 2 keys"}, Counts{Subscriptions: 3, Publications: 1}},
		{"unknown column", strings.Replace(text, `"watcher"`, `"watchers"`, 1), "", []string{"line 2: subscription: watcher is missing"}, Counts{Subscriptions: 2, Publications: 1}},
		{"further column", strings.Replace(text, `"watcher"`, `"x":1,"watcher"`, 1), "", []string{`line 2: subscription: there is no column "x"`}, Counts{Subscriptions: 2, Publications: 1}},
		{"wrong type", strings.Replace(text, `"shard":0`, `"shard":"0"`, 1), "", []string{"line 4: subscription: shard: "}, Counts{Subscriptions: 2, Publications: 1}},
		{"too large", strings.Replace(text, `"shard":0`, `"shard":256`, 1), "", []string{"line 4: subscription: shard: "}, Counts{Subscriptions: 2, Publications: 1}},
		{"null", strings.Replace(text, `"event":"presence"`, `"event":null`, 1), "", []string{"line 2: subscription: event: null"}, Counts{Subscriptions: 2, Publications: 1}},
		{"null number", strings.Replace(text, `"shard":0`, `"shard":null`, 1), "", []string{"line 4: subscription: shard: null"}, Counts{Subscriptions: 2, Publications: 1}},
		{"bad base64", strings.Replace(text, `"event":"presence"`, `"event":{"base64":"*"}`, 1), "", []string{"line 2: subscription: event: "}, Counts{Subscriptions: 2, Publications: 1}},
		{"refused", strings.Replace(text, `sip:user2@`, `sip:refused@`, 1), "", []string{"line 2: subscription: refused"}, Counts{Subscriptions: 2, Publications: 1}},
		{"sequence number", strings.Replace(text, `"seq":2`, `"seq":9223372036854775808`, 1), "", []string{"line 5: publication: seq"}, Counts{Subscriptions: 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, check := range []bool{true, false} {
				s := open(t, "sqlite:"+t.TempDir()+"/b.db", Options{})
				var bad []string
				n, err := s.Import(t.Context(), strings.NewReader(c.text), ImportOptions{
					Check: check,
					Bad:   func(b *BadLine) { bad = append(bad, b.Error()) },
					Row: func(row any) error {
						if r, ok := row.(dialog.SubscriptionRow); ok && strings.Contains(r.Resource, "refused") {
							return errors.New("refused")
						}
						return nil
					},
				})
				if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				same := len(bad) == len(c.bad)
				for i := 0; same && i < len(bad); i++ {
					same = strings.HasPrefix(bad[i], c.bad[i])
				}
				if !same {
					t.Errorf("bad lines %q, want %q", bad, c.bad)
				}
				if c.n != (Counts{}) && n != c.n {
					t.Errorf("%+v, want %+v", n, c.n)
				}
				if stored := int64(len(loadSubs(t, s))); check && stored != 0 || !check && c.err == "" && stored != c.n.Subscriptions {
					t.Errorf("check %v: %d rows", check, stored)
				}
			}
		})
	}
	t.Run("without a listener the first bad line ends it", func(t *testing.T) {
		s := open(t, "sqlite:"+t.TempDir()+"/b.db", Options{})
		_, err := s.Import(t.Context(), strings.NewReader(lines[0]+"oops\n"), ImportOptions{})
		if bad, ok := errors.AsType[*BadLine](err); !ok || bad.Line != 2 {
			t.Errorf("%v", err)
		}
	})
	t.Run("into a store of remote subscriptions alone", func(t *testing.T) {
		s := open(t, "sqlite:"+t.TempDir()+"/b.db", Options{})
		mine := remoteRow(7)
		commit(t, s, dialog.PutRemote{Row: mine})
		if _, err := s.Import(t.Context(), strings.NewReader(text), ImportOptions{}); !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), "remote_subscription") {
			t.Errorf("%v", err)
		}
		other, _ := export(t, s)
		commit(t, s, dialog.PutRemote{Row: remoteRow(8)})
		mine.CSeqCeiling++
		commit(t, s, dialog.PutRemote{Row: mine})
		if n, err := s.Import(t.Context(), strings.NewReader(other), ImportOptions{Merge: true}); err != nil || n != (Counts{Remotes: 1}) {
			t.Errorf("%+v, %v", n, err)
		}
		if got := loadRemotes(t, s); len(got) != 2 || got[mine.ID].CSeqCeiling != mine.CSeqCeiling-1 {
			t.Errorf("merged: %+v", got)
		}
	})
	m := open(t, "memory", Options{})
	if _, err := m.Import(t.Context(), strings.NewReader(text), ImportOptions{}); err == nil {
		t.Error("imported into memory")
	}
	if _, err := m.Export(t.Context(), io.Discard); err == nil {
		t.Error("exported memory")
	}
}

// What the program of schema version 3 wrote can be read for good.
func TestImportOld(t *testing.T) {
	text, err := os.ReadFile("testdata/schema3.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	engines(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Options{})
		n, err := s.Import(t.Context(), bytes.NewReader(text), ImportOptions{})
		if want := (Counts{Subscriptions: 2, Publications: 1, Documents: 1, Meta: 1, Subscribers: 1}); err != nil || n != want {
			t.Fatalf("%+v, %v", n, err)
		}
		a, b := subRow(1), subRow(2)
		a.Encoding, b.CallID, a.LocalTag, b.LocalTag = "gzip", "caf\xe9", "", ""
		a.Told, b.Told = 0, 0
		if got, want := loadSubs(t, s), (map[string]dialog.SubscriptionRow{a.ID: a, b.ID: b}); !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if got := loadPubs(t, s); len(got) != 1 || !reflect.DeepEqual(got["sip:user1@example.com|presence|p1"], pubRow(1)) {
			t.Errorf("%+v", got)
		}
		if m, err := s.Meta(t.Context(), "k"); err != nil || m != "v" {
			t.Errorf("%q, %v", m, err)
		}
		if got, err := s.Subscriber(t.Context(), "alice", "example.com"); err != nil || got != derived("alice", "example.com", "secret").Secrets {
			t.Errorf("%v, %v", got, err)
		}
		// A column may be missing in what is older only.
		st, err := s.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Import(t.Context(), strings.NewReader(strings.Replace(string(text), `"schema":3`, fmt.Sprintf(`"schema":%d`, st.Target), 1)), ImportOptions{Merge: true}); err == nil || !strings.Contains(err.Error(), "local_tag is missing") {
			t.Errorf("%v", err)
		}
	})
}

// A password that another program keeps in plain text leaves as hashes.
func TestExportPlaintext(t *testing.T) {
	dsn := "sqlite:" + t.TempDir() + "/a.db"
	s := open(t, dsn, Options{})
	execute(t, s.w, `INSERT INTO subscriber (username, domain, password) VALUES ('alice', 'example.com', 'hush')`)
	text, _ := export(t, s)
	if strings.Contains(text, "hush") {
		t.Error("the password is in the export")
	}
	b := open(t, "sqlite:"+t.TempDir()+"/b.db", Options{})
	if _, err := b.Import(t.Context(), strings.NewReader(text), ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	want := derived("alice", "example.com", "hush")
	for name, secrets := range map[string]auth.Secrets{"alice": want.Secrets, "alice@example.com": {auth.MD5: want.HA1B}} {
		if got, err := b.Subscriber(t.Context(), name, "example.com"); err != nil || got != secrets {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// Export and import hold a piece of a store, not all of it.
func TestTransferMemory(t *testing.T) {
	a := open(t, "sqlite:"+t.TempDir()+"/a.db", Options{})
	const rows = 30000
	for i := 0; i < rows; i += 5000 {
		commit(t, a, puts(i, i+5000)...)
	}
	b := open(t, "sqlite:"+t.TempDir()+"/b.db", Options{})
	r, w := io.Pipe()
	go func() {
		_, err := a.Export(context.Background(), w)
		w.CloseWithError(err)
	}()
	var peak uint64
	seen := 0
	n, err := b.Import(t.Context(), r, ImportOptions{Row: func(any) error {
		if seen++; seen%10000 == 0 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
		}
		return nil
	}})
	if err != nil || n.Subscriptions != rows {
		t.Fatal(n, err)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	if peak > m.HeapAlloc+8<<20 { // the rows are 20 MiB
		t.Errorf("%d MiB while it ran, %d MiB after", peak>>20, m.HeapAlloc>>20)
	}
}

func TestIntegrity(t *testing.T) {
	path := t.TempDir() + "/a.db"
	s := open(t, "sqlite:"+path, Options{})
	commit(t, s, puts(0, 2000)...)
	execute(t, s.w, `PRAGMA wal_checkpoint(truncate)`)
	execute(t, s.w, `PRAGMA writable_schema = 1`)
	execute(t, s.w, `UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'meta') WHERE name = 'sqlite_autoindex_subscription_1'`)
	s.Close()
	s = open(t, "sqlite:"+path, Options{Beside: true})
	found, err := s.Integrity(t.Context())
	if err == nil && len(found) == 0 {
		t.Error("damage not found")
	}
	t.Log(len(found), err)
}
