package takeover_test

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/server/takeover"
	"rollcall/sip"
	"rollcall/sip/auth"
	"rollcall/sql"
)

const (
	scripts = "/usr/share/kamailio/db_sqlite"
	doc     = `<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:alice@example.com"/>`
	rules   = `<ruleset xmlns="urn:ietf:params:xml:ns:common-policy"/>`
)

var now = time.Unix(1_800_000_000, 0)

const (
	later  = 1_800_003_600
	before = 1_799_999_999
)

// peer is a database of the other server and a store of ours.
type peer struct {
	t     *testing.T
	kind  takeover.Peer
	file  string
	db    *stdsql.DB
	store *sql.Store
	dirty int
}

// newPeer makes a database with Debian's scripts, OpenSIPS's tables are in testdata.
func newPeer(t *testing.T, kind takeover.Peer) *peer {
	t.Helper()
	p := &peer{t: t, kind: kind, file: filepath.Join(t.TempDir(), "peer.db")}
	var err error
	if p.db, err = stdsql.Open("sqlite", p.file); err != nil {
		t.Fatal(err)
	}
	files := []string{"testdata/opensips.sql"}
	if kind == takeover.Kamailio {
		files = nil
		for _, n := range []string{"standard", "presence", "rls", "auth_db"} {
			files = append(files, filepath.Join(scripts, n+"-create.sql"))
		}
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatalf("%v (package kamailio-sqlite-modules)", err)
		}
		p.exec(string(text))
	}
	if p.store, err = sql.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "store.db"), sql.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.db.Close(); p.store.Close() })
	return p
}

func (p *peer) exec(text string, args ...any) {
	p.t.Helper()
	if _, err := p.db.Exec(text, args...); err != nil {
		p.t.Fatalf("%s: %v", text, err)
	}
}

// insert adds a row; values win over those of base.
func (p *peer) insert(table string, base map[string]any, values map[string]any) {
	p.t.Helper()
	row := map[string]any{}
	maps.Copy(row, base)
	maps.Copy(row, values)
	var names, marks []string
	var args []any
	for _, k := range slices.Sorted(maps.Keys(row)) {
		names, marks, args = append(names, k), append(marks, "?"), append(args, row[k])
	}
	p.exec("INSERT INTO "+table+" ("+strings.Join(names, ", ")+") VALUES ("+strings.Join(marks, ", ")+")", args...)
}

func (p *peer) run(change func(*takeover.Options)) (tables map[string]*takeover.Table, rows []takeover.Row) {
	p.t.Helper()
	src, err := sql.OpenPeer(p.t.Context(), "sqlite:"+p.file)
	if err != nil {
		p.t.Fatal(err)
	}
	defer src.Close()
	reg := dialog.NewRegistry(pa.Events(pa.Presence())...)
	opt := takeover.Options{
		Peer: p.kind, Now: now, Package: reg.Find, Check: func(row *pa.PublicationRow) error { return pa.Check([]*pa.Package{pa.Presence()}, row) }, Each: func(r takeover.Row) { rows = append(rows, r) },
		Key: func(uri string) (string, bool, error) {
			u, err := sip.ParseURI(uri)
			if err != nil {
				return "", false, err
			}
			return u.Key(), strings.EqualFold(u.Host, "example.com"), nil
		},
		Decide: func(ctx context.Context, docs *sql.Store, presentity, watcher string) (string, error) {
			if watcher == "sip:err@example.com" {
				return "", errors.New("broken")
			}
			if _, err := docs.Document(ctx, "pres-rules/users/"+presentity+"/index"); err == nil {
				return "active", nil
			}
			return "pending", nil
		},
		Unclean: func(context.Context) error { p.dirty++; return nil },
	}
	if change != nil {
		change(&opt)
	}
	list, err := takeover.Run(p.t.Context(), src, p.store, opt)
	if err != nil {
		p.t.Fatal(err)
	}
	tables = make(map[string]*takeover.Table)
	for _, x := range list {
		tables[x.Table] = x
	}
	return tables, rows
}

func (p *peer) dialogs() (all []dialog.SubscriptionRow) {
	p.store.Subscriptions(p.t.Context(), func(r dialog.SubscriptionRow) error { all = append(all, r); return nil })
	slices.SortFunc(all, func(a, b dialog.SubscriptionRow) int { return strings.Compare(a.CallID, b.CallID) })
	return all
}

func (p *peer) publications() (all []pa.PublicationRow) {
	p.store.Publications(p.t.Context(), func(r pa.PublicationRow) error { all = append(all, r); return nil })
	slices.SortFunc(all, func(a, b pa.PublicationRow) int { return int(a.Seq) - int(b.Seq) })
	return all
}

// dialogRow is a row of active_watchers that is fine.
func dialogRow(kind takeover.Peer) map[string]any {
	m := map[string]any{
		"presentity_uri": "sip:alice@example.com", "watcher_username": "bob", "watcher_domain": "example.org", "to_user": "alice", "to_domain": "example.com",
		"event": "presence", "event_id": nil, "to_tag": "a6a1c5f60faecf035a1ae5b6e96e979a-0b0a", "from_tag": "f1", "callid": "c@192.0.2.1", "local_cseq": 7, "remote_cseq": 3,
		"contact": "sip:bob@192.0.2.1:5070;transport=tcp", "record_route": "<sip:p1.example.org;lr;x=1>,<sip:192.0.2.7;lr=on>;a=b", "expires": later, "status": 1, "reason": nil,
		"version": 2, "socket_info": "udp:192.0.2.9:5060", "local_contact": "sip:192.0.2.9:5060",
	}
	if kind == takeover.Kamailio {
		m["from_user"], m["from_domain"], m["updated"], m["updated_winfo"], m["user_agent"] = "robert", "example.org", 0, 0, "Phone/1 (x)"
	}
	return m
}

func TestDialogs(t *testing.T) {
	for _, kind := range []takeover.Peer{takeover.Kamailio, takeover.OpenSIPS} {
		t.Run(string(kind), func(t *testing.T) {
			p := newPeer(t, kind)
			for i, c := range []map[string]any{
				{},
				{"record_route": nil, "event_id": "7", "event": "presence.winfo", "status": 2, "contact": "<sip:bob@192.0.2.1>", "local_cseq": 0, "version": 9},
			} {
				c["callid"] = fmt.Sprintf("ok%d", i)
				p.insert("active_watchers", dialogRow(kind), c)
			}
			reasons := map[string]int{}
			for i, c := range []struct {
				change map[string]any
				reason string // "" for expired
			}{
				{map[string]any{"expires": before}, ""},
				{map[string]any{"expires": 1_800_000_000}, ""},
				{map[string]any{"status": 3}, "the subscription has ended"},
				{map[string]any{"status": 4}, "a watcher without a subscription"},
				{map[string]any{"status": 0}, "status is neither active nor pending"},
				{map[string]any{"event": "dialog"}, "package dialog is not served here"},
				{map[string]any{"event": "message-summary"}, "package message-summary is not served here"},
				{map[string]any{"presentity_uri": "sip:alice@example.net"}, "domain example.net is not one of ours; name it with --domain"},
				{map[string]any{"presentity_uri": "alice"}, "not a SIP URI: alice"},
				{map[string]any{"contact": ""}, "column contact is not a SIP address"},
				{map[string]any{"contact": "sip:a@b>\r\nX: y"}, "column contact is not a SIP address"},
				{map[string]any{"local_contact": "tel:1"}, "column local_contact is not a SIP address"},
				{map[string]any{"to_domain": ""}, "column to_user or to_domain is not a SIP address"},
				{map[string]any{"to_tag": ""}, "column to_tag is not a tag"},
				{map[string]any{"to_tag": "a b"}, "column to_tag is not a tag"},
				{map[string]any{"from_tag": "x;y"}, "column from_tag is not a tag"},
				{map[string]any{"event_id": "a\nb"}, "column event_id is not a token"},
				{map[string]any{"callid": "a\r\nVia: x"}, "column callid is not a Call-ID"},
				{map[string]any{"record_route": "sip:p1"}, "column record_route is not a route set"},
				{map[string]any{"record_route": "<sip:p1>\r\nX: y"}, "column record_route is not a route set"},
				{map[string]any{"record_route": "<http://p1>"}, "column record_route is not a route set"},
				{map[string]any{"local_cseq": -1}, "column local_cseq is not below 2^31"},
				{map[string]any{"local_cseq": 1<<31 - 1}, "column local_cseq is not below 2^31"},
				{map[string]any{"remote_cseq": "x"}, "column remote_cseq is not a number"},
				{map[string]any{"expires": "soon"}, "column expires is not a number"},
				{map[string]any{"expires": int64(1) << 50}, "column expires is not a time in seconds"},
				{map[string]any{"contact": "sip:rls@192.0.2.9"}, "a subscription of the peer's own list server"},
				{map[string]any{"callid": "back-end"}, "a subscription of the peer's own list server"},
			} {
				row := map[string]any{"callid": fmt.Sprintf("bad%d", i)}
				maps.Copy(row, c.change)
				p.insert("active_watchers", dialogRow(kind), row)
				reasons[c.reason]++
			}
			p.insert("pua", map[string]any{
				"pres_uri": "x", "pres_id": "x", "event": 1, "expires": 1, "desired_expires": 1, "flag": 1, "etag": "", "watcher_uri": "x", "call_id": "back-end",
				"to_tag": "x", "from_tag": "x", "cseq": 1, "contact": "x", "remote_contact": "x", "version": 1, "extra_headers": "",
			}, nil)
			list := dialogRow(kind)
			delete(list, "updated_winfo")
			delete(list, "user_agent")
			p.insert("rls_watchers", list, map[string]any{"callid": "z-list", "status": 0, "reason": "", "presentity_uri": "sip:team@example.com", "local_cseq": 5, "version": 5})
			p.insert("rls_watchers", list, map[string]any{"callid": "z-other", "reason": "", "event": "presence.winfo"})

			tables, rows := p.run(func(o *takeover.Options) { o.DryRun = true })
			if len(p.dialogs()) != 0 || p.dirty != 0 {
				t.Errorf("a dry run stored %v", p.dialogs())
			}
			again, rows2 := p.run(nil)
			if !reflect.DeepEqual(tables, again) || !reflect.DeepEqual(rows, rows2) {
				t.Errorf("a dry run says\n%+v\n%+v\nand the run\n%+v\n%+v", tables, rows, again, rows2)
			}
			if p.dirty != 1 {
				t.Errorf("told to notify %d times", p.dirty)
			}
			aw := again["active_watchers"]
			expired := reasons[""]
			delete(reasons, "")
			if aw.Taken != 2 || aw.Expired != expired || !maps.Equal(aw.Reasons, reasons) {
				t.Errorf("got  %+v\nwant %+v", aw, reasons)
			}
			if rl := again["rls_watchers"]; rl.Taken != 1 || rl.Reasons["package presence.winfo has no lists here"] != 1 {
				t.Errorf("lists: %+v", rl)
			}

			from, agent := "sip:robert@example.org", "Phone/1 (x)"
			if kind == takeover.OpenSIPS {
				from, agent = "sip:bob@example.org", ""
			}
			ok := dialog.SubscriptionRow{
				Shard: dialog.ShardOf("sip:alice@example.com"), Event: "presence", Resource: "sip:alice@example.com", Watcher: "sip:bob@example.org", CallID: "ok0",
				LocalURI: "sip:alice@example.com", RemoteURI: from, LocalTag: "a6a1c5f60faecf035a1ae5b6e96e979a-0b0a", RemoteTag: "f1",
				RemoteTarget: "sip:bob@192.0.2.1:5070;transport=tcp", RouteSet: "<sip:p1.example.org;lr;x=1>, <sip:192.0.2.7;lr=on>;a=b", LocalContact: "sip:192.0.2.9:5060",
				UserAgent: agent, RemoteCSeq: 3, CSeqCeiling: 7 + 1024, VersionOffset: 5, CreatedMS: now.UnixMilli(), ExpiresMS: later * 1000,
			}
			info := ok
			info.CallID, info.Event, info.EventID, info.RouteSet, info.RemoteTarget = "ok1", "presence.winfo", "7", "", "sip:bob@192.0.2.1"
			var nine uint32 = 9
			info.CSeqCeiling, info.VersionOffset = 1024, -nine // version 9 at CSeq 0
			team := ok
			team.CallID, team.Resource, team.Shard, team.List, team.UserAgent = "z-list", "sip:team@example.com", dialog.ShardOf("sip:team@example.com"), true, ""
			team.Accept, team.CSeqCeiling, team.VersionOffset = "multipart/related, application/rlmi+xml, application/pidf+xml", 5+1024, 0
			want := []dialog.SubscriptionRow{ok, info, team}
			got := p.dialogs()
			for i := range got {
				if len(got[i].ID) != 14 || got[i].ID[:2] != fmt.Sprintf("%02x", got[i].Shard) {
					t.Errorf("ID %q of shard %d", got[i].ID, got[i].Shard)
				}
				got[i].ID = ""
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}

			// Again, and again when they have ended here.
			for i := range 2 {
				tables, _ = p.run(nil)
				if x := tables["active_watchers"]; x.Taken != 0 || x.Already != 2 || tables["rls_watchers"].Already != 1 || p.dirty != 1 {
					t.Errorf("run %d: %+v", i+2, x)
				}
				for _, d := range p.dialogs() {
					if err := p.store.Commit(t.Context(), []dialog.Write{dialog.DeleteSubscription{ID: d.ID}}); err != nil {
						t.Fatal(err)
					}
				}
			}
			if got := p.dialogs(); len(got) != 0 {
				t.Errorf("ended dialogs are back: %+v", got)
			}
			// What is remembered is forgotten when the peer's rows have expired.
			p.run(func(o *takeover.Options) { o.Now = time.Unix(later+1, 0) })
			p.insert("active_watchers", dialogRow(kind), map[string]any{"callid": "new", "expires": later + 100})
			p.run(func(o *takeover.Options) { o.Now = time.Unix(later+1, 0) })
			if m, err := p.store.Meta(t.Context(), "import_taken"); err != nil || strings.Count(m, "\n") != 1 || strings.Count(m, " ") != 1 {
				t.Errorf("remembered: %q, %v", m, err)
			}
		})
	}
}

func TestPublications(t *testing.T) {
	for _, kind := range []takeover.Peer{takeover.Kamailio, takeover.OpenSIPS} {
		t.Run(string(kind), func(t *testing.T) {
			p := newPeer(t, kind)
			ok := map[string]any{
				"username": "alice", "domain": "example.com", "event": "presence", "etag": "a.1795680497.7.1.0", "expires": later, "received_time": 1_799_999_000,
				"body": []byte(doc), "sender": "",
			}
			p.insert("presentity", ok, map[string]any{"etag": "second", "received_time": 1_799_999_500})
			p.insert("presentity", ok, map[string]any{"body": []byte(doc + "\x00")}) // some versions store the end of the string
			p.insert("presentity", ok, map[string]any{"etag": "utf8", "username": "zoë", "body": []byte(strings.Replace(doc, "/>", "><note>Zoë</note></presence>", 1))})
			reasons := map[string]int{}
			for i, c := range []struct {
				change map[string]any
				reason string
			}{
				{map[string]any{"expires": before}, ""},
				{map[string]any{"event": "dialog"}, "package dialog is not served here"},
				{map[string]any{"event": "presence.winfo"}, "nobody publishes for package presence.winfo here"},
				{map[string]any{"domain": "example.net"}, "domain example.net is not one of ours; name it with --domain"},
				{map[string]any{"etag": "a b"}, "column etag is not an entity tag"},
				{map[string]any{"body": []byte{}}, "the document is empty"},
				{map[string]any{"body": []byte("<presence>")}, "*"},
				{map[string]any{"body": []byte("<!DOCTYPE a [<!ENTITY b 'c'>]>" + doc)}, "*"},
				{map[string]any{"body": []byte("<a>" + strings.Repeat("x", 70000) + "</a>")}, "*"},
			} {
				row := map[string]any{"etag": fmt.Sprintf("bad%d", i)}
				maps.Copy(row, c.change)
				p.insert("presentity", ok, row)
				reasons[c.reason]++
			}
			if kind == takeover.OpenSIPS {
				p.insert("presentity", ok, map[string]any{"etag": "null", "body": nil})
				reasons["column body is NULL"]++
			}
			for i := range 70 {
				p.insert("presentity", ok, map[string]any{"username": "many", "etag": fmt.Sprint("m", i), "received_time": 1_799_000_000 + i})
			}
			reasons["more than 64 publications of one presentity"] = 6
			tables, _ := p.run(nil)
			x := tables["presentity"]
			got := map[string]int{"": x.Expired}
			for r, n := range x.Reasons {
				if strings.HasPrefix(r, "the body is no presence document: ") {
					r = "*"
				}
				got[r] += n
			}
			if x.Taken != 3+64 || !maps.Equal(got, reasons) {
				t.Errorf("got  %+v\nwant %v", x, reasons)
			}
			var alice []pa.PublicationRow
			for _, r := range p.publications() {
				if r.Resource == "sip:alice@example.com" {
					if len(r.ID) != 16 {
						t.Errorf("ID %q", r.ID)
					}
					r.ID = ""
					alice = append(alice, r)
				}
			}
			first := pa.PublicationRow{
				Resource: "sip:alice@example.com", Event: "presence", ETag: "a.1795680497.7.1.0", ContentType: "application/pidf+xml", Body: []byte(doc), Seq: 1,
				UpdatedMS: 1_799_999_000_000, ExpiresMS: later * 1000,
			}
			second := first
			second.ETag, second.Seq, second.UpdatedMS = "second", 2, 1_799_999_500_000
			if !reflect.DeepEqual(alice, []pa.PublicationRow{first, second}) {
				t.Errorf("got %+v", alice)
			}
			// One is refreshed here, one ends: neither comes back.
			for _, r := range p.publications() {
				switch r.ETag {
				case first.ETag:
					r.ETag = "ours"
					err := p.store.Commit(t.Context(), []dialog.Write{pa.PutPublication{Row: r}})
					if err != nil {
						t.Fatal(err)
					}
				case "second":
					err := p.store.Commit(t.Context(), []dialog.Write{pa.DeletePublication{Resource: r.Resource, Event: r.Event, ID: r.ID}})
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			n := len(p.publications())
			tables, _ = p.run(nil)
			if x := tables["presentity"]; x.Taken != 0 || x.Already != 3+64 || len(p.publications()) != n {
				t.Errorf("again: %+v, %d publications, had %d", x, len(p.publications()), n)
			}
		})
	}
}

func TestDocuments(t *testing.T) {
	lists := `<rls-services xmlns="urn:ietf:params:xml:ns:rls-services"/>`
	type row struct {
		typ       int
		uri, body string
		user      string
		selector  string // "" when it is not taken
		reason    string
	}
	for kind, rows := range map[takeover.Peer][]row{
		takeover.Kamailio: {
			{2, "/xcap-root/pres-rules/users/sip:alice@example.com/presrules.xml", rules, "alice", "pres-rules/users/sip:alice@example.com/index", ""},
			{2, "/xcap-root/org.openmobilealliance.pres-rules/users/sip:alice@example.com/pres-rules", rules, "alice", "org.openmobilealliance.pres-rules/users/sip:alice@example.com/pres-rules", ""},
			{4, "http://xcap.example.com/root/resource-lists/users/sip%3Aalice%40example.com/index.xml", lists, "alice", "resource-lists/users/sip:alice@example.com/index.xml", ""},
			{8, "/xcap-root/rls-services/users/sip:alice@example.com/index", lists, "alice", "rls-services/users/sip:alice@example.com/index", ""},
			{8, "/xcap-root/rls-services/global/index", lists, "alice", "rls-services/global/index", ""},
			{16, "/xcap-root/pidf-manipulation/users/sip:alice@example.com/index", doc, "alice", "pidf-manipulation/users/sip:alice@example.com/index", ""},
			{2, "/xcap-root/pres-rules/users/sip:alice@example.com/other", `<ruleset xmlns="urn:ietf:params:xml:ns:common-policy"><a/></ruleset>`, "alice", "", "there is another document of this name here: pres-rules/users/sip:alice@example.com/index"},
			{32, "/xcap-root/xcap-caps/global/index", doc, "alice", "", "documents of type 32 are not used here"},
			{4, "/xcap-root/resource-lists/users/sip:bob@example.com/index", "<a>", "bob", "", "not well-formed XML: *"},
			{4, "/xcap-root/resource-lists/users/sip:bob@example.com/a/b", lists, "bob", "", "column doc_uri does not name a document"},
			{4, "/xcap-root/resource-lists/users/sip:bob@example.com/%zz", lists, "bob", "", "column doc_uri does not name a document"},
			{4, "/xcap-root/resource-lists/users/sip:bob@example.com/..", lists, "bob", "", "column doc_uri does not name a document"},
			{4, "", lists, "bob", "", "column doc_uri does not name a document"},
		},
		takeover.OpenSIPS: {
			{2, "index.xml", rules, "alice", "pres-rules/users/sip:alice@example.com/index", ""},
			{32, "index.xml", rules, "alice", "org.openmobilealliance.pres-rules/users/sip:alice@example.com/pres-rules", ""},
			{4, "index.xml", lists, "alice", "resource-lists/users/sip:alice@example.com/index.xml", ""},
			{8, "index", lists, "alice", "rls-services/users/sip:alice@example.com/index", ""},
			{64, "pres-content", doc, "alice", "", "documents of type 64 are not used here"},
		},
	} {
		t.Run(string(kind), func(t *testing.T) {
			p := newPeer(t, kind)
			want, reasons := map[string]string{}, map[string]int{}
			for _, r := range rows {
				p.insert("xcap", map[string]any{"username": r.user, "domain": "example.com", "doc": []byte(r.body), "doc_type": r.typ, "etag": "e", "source": 0, "doc_uri": r.uri, "port": 0}, nil)
				if r.selector != "" {
					want[r.selector] = r.body
				} else {
					reasons[r.reason]++
				}
			}
			p.insert("xcap", map[string]any{"username": "x", "domain": "example.net", "doc": []byte(doc), "doc_type": 2, "etag": "e", "source": 0, "doc_uri": "elsewhere", "port": 0}, nil)
			reasons["domain example.net is not one of ours; name it with --domain"]++
			check := func(tables map[string]*takeover.Table, taken, already int) {
				t.Helper()
				x := tables["xcap"]
				got := map[string]int{}
				for r, n := range x.Reasons {
					if head, _, ok := strings.Cut(r, "XML: "); ok {
						r = head + "XML: *"
					}
					got[r] += n
				}
				if x.Taken != taken || x.Already != already || !maps.Equal(got, reasons) {
					t.Errorf("got  %+v\nwant %d, %d, %v", x, taken, already, reasons)
				}
			}
			tables, _ := p.run(func(o *takeover.Options) { o.DryRun = true })
			check(tables, len(want), 0)
			for sel := range want {
				if _, err := p.store.Document(t.Context(), sel); !errors.Is(err, sql.ErrNotFound) {
					t.Errorf("a dry run stored %s: %v", sel, err)
				}
			}
			tables, _ = p.run(nil)
			check(tables, len(want), 0)
			for sel, body := range want {
				if d, err := p.store.Document(t.Context(), sel); err != nil || string(d.Body) != body || d.ETag == "" || !strings.HasSuffix(d.ContentType, "+xml") {
					t.Errorf("%s: %+v, %v", sel, d, err)
				}
			}
			tables, _ = p.run(nil)
			check(tables, 0, len(want))
			tables, _ = p.run(func(o *takeover.Options) { o.DryRun = true })
			check(tables, 0, len(want))
		})
	}
}

func TestUsers(t *testing.T) {
	for _, kind := range []takeover.Peer{takeover.Kamailio, takeover.OpenSIPS} {
		t.Run(string(kind), func(t *testing.T) {
			p := newPeer(t, kind)
			hash := strings.Repeat("ab", 16)
			for _, r := range []map[string]any{
				{"username": "alice", "domain": "example.com", "password": "secret"},
				{"username": "bob", "domain": "example.com", "ha1": hash},
				{"username": "none", "domain": "example.com"},
				{"username": "nowhere", "domain": "", "password": "x"},
				{"username": "", "domain": "example.com", "password": "x"},
				{"username": "carol", "domain": "example.net", "password": "x"},
				{"username": "dave", "domain": "EXAMPLE.com", "password": "x"},
			} {
				p.insert("subscriber", nil, r)
			}
			reasons := map[string]int{
				"neither a password nor a hash": 1, "the user has no domain: its realm is not known": 1, "the user has no name": 1,
				"domain example.net is not one of ours; name it with --domain":             1,
				"the domain is spelled otherwise here, so the hashes are of another realm": 1,
			}
			for i, dry := range []bool{true, false, false, true} {
				tables, _ := p.run(func(o *takeover.Options) { o.DryRun = dry })
				taken := 2
				if i > 1 {
					taken = 0
				}
				if x := tables["subscriber"]; x.Taken != taken || x.Already != 2-taken || !maps.Equal(x.Reasons, reasons) {
					t.Errorf("run %d: %+v", i, x)
				}
			}
			if s, err := p.store.Subscriber(t.Context(), "bob", "example.com"); err != nil || s[auth.MD5] != hash {
				t.Errorf("bob: %v, %v", s, err)
			}
			if s, err := p.store.Subscriber(t.Context(), "alice", "example.com"); err != nil || s != auth.Derive("alice", "example.com", "secret") {
				t.Errorf("alice: %v, %v", s, err)
			}
			// Who has another password here keeps it.
			p.exec("UPDATE subscriber SET ha1 = ? WHERE username = 'bob'", strings.Repeat("cd", 16))
			for _, dry := range []bool{true, false} {
				tables, _ := p.run(func(o *takeover.Options) { o.DryRun = dry })
				if x := tables["subscriber"]; x.Already != 1 || x.Reasons["there is a user of this name here, with another password"] != 1 {
					t.Errorf("another password: %+v", x)
				}
			}
			tables, _ := p.run(func(o *takeover.Options) { o.NoUsers = "elsewhere" })
			if x := tables["subscriber"]; x.Fault != "elsewhere" || x.Rows != 0 {
				t.Errorf("users elsewhere: %+v", x)
			}
		})
	}
}

// The state that the peer remembers is compared with what the rules say, those of a dry run included.
func TestWatchers(t *testing.T) {
	p := newPeer(t, takeover.Kamailio)
	p.insert("xcap", map[string]any{"username": "alice", "domain": "example.com", "doc": []byte(rules), "doc_type": 2, "etag": "e", "source": 0, "doc_uri": "/xcap-root/pres-rules/users/sip:alice@example.com/index", "port": 0}, nil)
	ok := map[string]any{"presentity_uri": "sip:alice@example.com", "watcher_domain": "example.com", "event": "presence", "status": 1, "inserted_time": 0}
	for i, c := range []map[string]any{
		{}, {"status": 2}, {"status": 3}, {"status": 4}, {"status": 9}, {"event": "dialog"}, {"presentity_uri": "sip:a@example.net"},
		{"watcher_username": "err"}, {"presentity_uri": "sip:carol@example.com"}, {"presentity_uri": "sip:carol@example.com", "status": 2},
	} {
		row := map[string]any{"watcher_username": fmt.Sprint("w", i)}
		maps.Copy(row, c)
		p.insert("watchers", ok, row)
	}
	reasons := map[string]int{
		"pending there, but active by the rules here": 1, "terminated there, but active by the rules here": 1, "active there, but pending by the rules here": 1,
		"a watcher without a subscription; such are not remembered here": 1, "status is none of active, pending, terminated": 1,
		"nobody decides about watchers of package dialog here": 1, "domain example.net is not one of ours; name it with --domain": 1, "the rules cannot be read: broken": 1,
	}
	for _, dry := range []bool{true, false} {
		tables, _ := p.run(func(o *takeover.Options) { o.DryRun = dry })
		if x := tables["watchers"]; x.Same != 2 || !maps.Equal(x.Reasons, reasons) {
			t.Errorf("dry %v: got  %+v\nwant %v", dry, x, reasons)
		}
	}
}

// Tables that are missing or other than they should be are told, the others taken.
func TestTables(t *testing.T) {
	p := newPeer(t, takeover.OpenSIPS)
	p.exec(`DROP TABLE xcap; DROP TABLE subscriber; CREATE TABLE subscriber (name TEXT); DROP TABLE pua; DROP TABLE watchers`)
	p.insert("active_watchers", dialogRow(takeover.OpenSIPS), nil)
	tables, _ := p.run(nil)
	if tables["xcap"].Fault != "there is no such table" || tables["subscriber"].Fault != "the table has no column username" || tables["active_watchers"].Taken != 1 {
		t.Errorf("%+v %+v %+v", tables["xcap"], tables["subscriber"], tables["active_watchers"])
	}
	p.exec(`DROP TABLE presentity; DROP TABLE active_watchers; DROP TABLE rls_watchers`)
	src, err := sql.OpenPeer(t.Context(), "sqlite:"+p.file)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if _, err := takeover.Run(t.Context(), src, p.store, takeover.Options{Peer: takeover.OpenSIPS}); err == nil || !strings.Contains(err.Error(), "right database") {
		t.Errorf("an empty database: %v", err)
	}
	if _, err := takeover.Run(t.Context(), src, p.store, takeover.Options{Peer: "asterisk"}); err == nil {
		t.Error("an unknown peer was taken")
	}
}

// Many rows are many batches, and each row is told once.
func TestManyRows(t *testing.T) {
	p := newPeer(t, takeover.Kamailio)
	tx, err := p.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	base := dialogRow(takeover.Kamailio)
	names := slices.Sorted(maps.Keys(base))
	for i := range 1203 {
		base["callid"] = fmt.Sprint("c", i)
		var args []any
		for _, n := range names {
			args = append(args, base[n])
		}
		if _, err := tx.Exec("INSERT INTO active_watchers ("+strings.Join(names, ",")+") VALUES (?"+strings.Repeat(",?", len(names)-1)+")", args...); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	tables, rows := p.run(nil)
	if x := tables["active_watchers"]; x.Rows != 1203 || x.Taken != 1203 || len(rows) != 1203 || len(p.dialogs()) != 1203 || p.dirty != 1 {
		t.Errorf("%+v, %d told, %d stored, %d", x, len(rows), len(p.dialogs()), p.dirty)
	}
	for i, r := range rows {
		if r.ID != fmt.Sprint(i+1) || r.Row != "bob@example.org watches sip:alice@example.com (presence)" {
			t.Fatalf("row %d is told as %+v", i, r)
		}
	}
}
