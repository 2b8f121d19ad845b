package pa_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rollcall/server"
	"rollcall/server/servertest"
	"rollcall/sip"
	"rollcall/sip/body"
)

const alice, bob = "sip:alice@example.com", "sip:bob@example.com"

// world runs f with a server that is open to everybody, unless change says
// otherwise.
func world(t *testing.T, change func(*server.Config), f func(w *servertest.World, n *servertest.Node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := servertest.New(t)
		f(w, w.Node("192.0.2.1", change))
	})
}

const head = "PUBLISH {aor} SIP/2.0\nVia: {via}\nMax-Forwards: 70\nFrom: <{aor}>;tag={tag}\nTo: <{aor}>\nCall-ID: {callid}\nCSeq: {cseq} PUBLISH\n"

// PUB-01 to PUB-07: each refused request changes nothing: the watcher hears
// nothing and the old entity tag is still good.
func TestPublishRefused(t *testing.T) {
	const body = "Content-Type: application/pidf+xml\n\n" +
		`<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:alice@example.com"><tuple id="x"><status><basic>closed</basic></status></tuple></presence>`
	other := strings.NewReplacer("PUBLISH {aor}", "PUBLISH sip:bob@example.com", "To: <{aor}>", "To: <sip:bob@example.com>").Replace(head)
	for _, c := range []struct {
		name, text string
		status     int
		headers    map[sip.HeaderID]string
	}{
		{"PUB-01 not our domain 404", strings.Replace(head, "PUBLISH {aor}", "PUBLISH sip:alice@example.net", 1) + "Event: presence\nExpires: 600\n" + body, 404, nil},
		{"CORE-02 scheme 416", strings.Replace(head, "PUBLISH {aor}", "PUBLISH mailto:alice@example.com", 1) + "Event: presence\nExpires: 600\n" + body, 416, nil},
		{"PUB-01 Event missing 489", head + "Expires: 600\n" + body, 489, map[sip.HeaderID]string{sip.HdrAllowEvents: "presence, presence.winfo, dialog, dialog.winfo, message-summary, message-summary.winfo"}},
		{"PUB-01 Event unknown 489", head + "Event: weather\nExpires: 600\n" + body, 489, map[sip.HeaderID]string{sip.HdrAllowEvents: "presence, presence.winfo, dialog, dialog.winfo, message-summary, message-summary.winfo"}},
		{"PUB-01 a document of another package 415", head + "Event: dialog\nExpires: 600\n" + body, 415, map[sip.HeaderID]string{sip.HdrAccept: "application/dialog-info+xml"}},
		{"PUB-01 Event case 489", head + "Event: Presence\nExpires: 600\n" + body, 489, nil},
		{"PUB-01 winfo cannot be published 489", head + "Event: presence.winfo\nExpires: 600\n" + body, 489, map[sip.HeaderID]string{sip.HdrAllowEvents: "presence, dialog, message-summary"}},
		{"PUB-05 an entity tag of another package 412", head + "Event: dialog\nExpires: 600\nSIP-If-Match: {etag}\n", 412, nil},
		{"DI-03 a dialog without a state 400", head + "Event: dialog\nExpires: 600\nContent-Type: application/dialog-info+xml\n\n<dialog-info xmlns=\"urn:ietf:params:xml:ns:dialog-info\" version=\"0\" state=\"full\" entity=\"sip:alice@example.com\"><dialog id=\"1\"/></dialog-info>", 400, nil},
		{"PUB-09 somebody else's presence 403", other + "Event: presence\nExpires: 600\n" + body, 403, nil},
		{"PUB-01 two entity tags 400", head + "Event: presence\nExpires: 600\nSIP-If-Match: {etag}, abc\n" + body, 400, nil},
		{"PUB-01 two entity tag fields 400", head + "Event: presence\nExpires: 600\nSIP-If-Match: {etag}\nSIP-If-Match: {etag}\n" + body, 400, nil},
		{"PUB-01 empty entity tag 400", head + "Event: presence\nExpires: 600\nSIP-If-Match:\n" + body, 400, nil},
		{"PUB-05 unknown entity tag 412", head + "Event: presence\nExpires: 600\nSIP-If-Match: 0123456789abcdef\n" + body, 412, nil},
		{"PUB-05 unknown entity tag, removal 412", head + "Event: presence\nExpires: 0\nSIP-If-Match: 0123456789abcdef\n", 412, nil},
		{"PUB-05 somebody else's entity tag 412", head + "Event: presence\nExpires: 600\nSIP-If-Match: {bobtag}\n" + body, 412, nil},
		{"PUB-05 entity tag goes before Expires 412", head + "Event: presence\nExpires: 1\nSIP-If-Match: 0123456789abcdef\n" + body, 412, nil},
		{"PUB-01 too short 423", head + "Event: presence\nExpires: 59\n" + body, 423, map[sip.HeaderID]string{sip.HdrMinExpires: "60"}},
		{"PUB-01 too short refresh 423", head + "Event: presence\nExpires: 1\nSIP-If-Match: {etag}\n", 423, map[sip.HeaderID]string{sip.HdrMinExpires: "60"}},
		{"PUB-01 Expires not a number 400", head + "Event: presence\nExpires: soon\n" + body, 400, nil},
		{"PUB-01 no body and no entity tag 400", head + "Event: presence\nExpires: 600\n", 400, nil},
		{"PUB-01 no body and no entity tag, removal 400", head + "Event: presence\nExpires: 0\n", 400, nil},
		{"PUB-01 wrong type 415", head + "Event: presence\nExpires: 600\nContent-Type: text/plain\n\nopen", 415, map[sip.HeaderID]string{sip.HdrAccept: "application/pidf+xml"}},
		{"PUB-01 wrong type, to be removed at once 415", head + "Event: presence\nExpires: 0\nContent-Type: text/plain\n\nopen", 415, nil},
		{"PUB-01 no type 415", head + "Event: presence\nExpires: 600\n\nopen", 415, nil},
		{"PP-05 partial publication 415", head + "Event: presence\nExpires: 600\nContent-Type: application/pidf-diff+xml\n\n<pidf-full xmlns=\"urn:ietf:params:xml:ns:pidf-diff\"/>", 415, nil},
		{"CORE-05 encoding 415", head + "Event: presence\nExpires: 600\nContent-Encoding: br\n" + body, 415, map[sip.HeaderID]string{sip.HdrAcceptEncoding: "deflate, gzip, identity"}},
		{"CORE-05 encoding of a modification 415", head + "Event: presence\nExpires: 600\nSIP-If-Match: {etag}\nContent-Encoding: gzip, br\n" + body, 415, nil},
		{"CORE-05 an encoding in a second field 415", head + "Event: presence\nExpires: 600\nContent-Encoding: identity\ne: br\n" + body, 415, nil},
		{"CORE-05 encoding that it is not 400", head + "Event: presence\nExpires: 600\nContent-Encoding: deflate\n" + body, 400, nil},
		{"CORE-23 a bomb 413", head + "Event: presence\nExpires: 600\nContent-Encoding: deflate\nContent-Type: application/pidf+xml\n\n" + encoded("deflate", servertest.PIDF(alice, "open", strings.Repeat("x", 4<<20))), 413, nil},
		{"CORE-05 multipart without a document 415", head + "Event: presence\nExpires: 600\nContent-Type: multipart/mixed;boundary=b\n\n--b\r\n\r\nopen\r\n--b--", 415, map[sip.HeaderID]string{sip.HdrAccept: "application/pidf+xml"}},
		{"not well-formed 400", head + "Event: presence\nExpires: 600\nContent-Type: application/pidf+xml\n\n<presence", 400, nil},
		{"not presence 400", head + "Event: presence\nExpires: 600\nContent-Type: application/pidf+xml\n\n<list xmlns=\"urn:ietf:params:xml:ns:rlmi\"/>", 400, nil},
		{"DTD 400", head + "Event: presence\nExpires: 600\nContent-Type: application/pidf+xml\n\n<!DOCTYPE presence [<!ENTITY e 'x'>]><presence xmlns=\"urn:ietf:params:xml:ns:pidf\" entity=\"x\"/>", 400, nil},
		{"too large 413", head + "Event: presence\nExpires: 600\nContent-Type: application/pidf+xml\n\n" + servertest.PIDF(alice, "open", strings.Repeat("x", 64<<10)), 413, nil},
		{"CORE-04 unknown extension 420", head + "Event: presence\nExpires: 600\nRequire: eventlist, magic\n" + body, 420, map[sip.HeaderID]string{sip.HdrUnsupported: "magic"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			world(t, nil, func(w *servertest.World, n *servertest.Node) {
				ua, ub := w.UA(alice), w.UA(bob)
				pa, pb := ua.Publication(n), ub.Publication(n)
				pa.Say("open", "here")
				pb.Say("open", "too")
				sub := ub.Watch(n, alice)
				sub.Next()
				m := ua.Raw(n.Addr, strings.NewReplacer("{etag}", pa.ETag, "{bobtag}", pb.ETag).Replace(c.text))
				if m.Status() != c.status {
					t.Errorf("status %d %s, want %d", m.Status(), m.Reason(), c.status)
				}
				for h, want := range c.headers {
					if m.H(h) != want {
						t.Errorf("%v is %q, want %q", h, m.H(h), want)
					}
				}
				if m.Has(sip.HdrSIPETag) {
					t.Errorf("an error has SIP-ETag %q", m.H(sip.HdrSIPETag))
				}
				sub.Quiet(10*time.Second, "a refused PUBLISH changes nothing")
				for _, p := range []*servertest.Publication{pa, pb} {
					if m := p.Send("", 600); m.Status() != 200 {
						t.Errorf("the entity tag is gone: %d", m.Status())
					}
				}
				if v := n.Metric("pa_publications"); v != 2 {
					t.Errorf("%v publications, want 2", v)
				}
			})
		})
	}
}

func encoded(coding, text string) string {
	b, err := body.Encode(coding, nil, []byte(text))
	if err != nil {
		panic(err)
	}
	return string(b)
}

// CORE-05: a document may come compressed, and as a part of something larger.
// What its watchers get is the document.
func TestPublishBodies(t *testing.T) {
	doc := servertest.PIDF(alice, "open", "here")
	part := "--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n--b\r\nContent-ID: <d@example.com>\r\nContent-Type: application/pidf+xml\r\n\r\n" + doc + "\r\n--b--\r\n"
	for _, c := range []struct{ name, headers, body string }{
		{"deflate", "Content-Encoding: deflate\nContent-Type: application/pidf+xml", encoded("deflate", doc)},
		{"gzip, compact", "e: GZIP\nc: Application/PIDF+xml;charset=utf-8", encoded("gzip", doc)},
		{"twice", "Content-Encoding: deflate\nContent-Encoding: gzip\nContent-Type: application/pidf+xml", encoded("gzip", encoded("deflate", doc))},
		{"identity", "Content-Encoding: identity\nContent-Type: application / pidf+xml", doc},
		{"mixed", "Content-Type: multipart/mixed;boundary=b", part},
		{"alternative", `Content-Type: multipart/alternative;boundary="b"`, part},
		{"related", `Content-Type: multipart/related;type="application/pidf+xml";start="<d@example.com>";boundary=b`, part},
		{"a multipart in deflate", "Content-Encoding: deflate\nContent-Type: multipart/mixed;boundary=b", encoded("deflate", part)},
	} {
		t.Run(c.name, func(t *testing.T) {
			world(t, nil, func(w *servertest.World, n *servertest.Node) {
				u := w.UA(alice)
				sub := w.UA(bob).Watch(n, alice)
				sub.Next()
				m := u.Raw(n.Addr, head+"Event: presence\nExpires: 600\n"+c.headers+"\n\n"+c.body)
				if m.Status() != 200 {
					t.Fatalf("CORE-05: %d %s", m.Status(), m.Reason())
				}
				notify := sub.Next()
				if got := string(notify.Body()); got != doc || notify.H(sip.HdrContentType) != "application/pidf+xml" || notify.Has(sip.HdrContentEncoding) {
					t.Errorf("watcher got %s %q", notify.H(sip.HdrContentType), got)
				}
			})
		})
	}
}

// The four operations of RFC 3903 section 4, by their watcher.
func TestPublishLife(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		sub := w.UA(bob).Watch(n, alice)
		if got := sub.Next().Text(); got != "closed" {
			t.Errorf("PUB-15: nothing published is %q, want closed", got)
		}
		p := w.UA(alice).Publication(n)
		used := map[string]bool{}
		tag := func(what string, m servertest.Msg, expires string) {
			t.Helper()
			etag := m.H(sip.HdrSIPETag)
			if m.Status() != 200 || etag == "" || used[etag] || m.H(sip.HdrExpires) != expires {
				t.Errorf("PUB-02 %s: %d with SIP-ETag %q (used before: %v) and Expires %q, want %s", what, m.Status(), etag, used[etag], m.H(sip.HdrExpires), expires)
			}
			if len(m.To().Tag()) == 0 || m.Has(sip.HdrContact) || m.Has(sip.HdrRecordRoute) {
				t.Errorf("PUB-04 %s: no To tag, or Contact, or Record-Route", what)
			}
			used[etag] = true
		}
		tag("initial", p.Send(servertest.PIDF(alice, "open", "one"), 600), "600")
		if got := sub.Next().Text(); got != "open: one" {
			t.Errorf("initial: %q", got)
		}
		tag("refresh", p.Send("", 1200), "1200")
		sub.Quiet(10*time.Second, "a refresh tells nobody")
		tag("modify", p.Send(servertest.PIDF(alice, "open", "two"), 600), "600")
		if got := sub.Next().Text(); got != "open: two" {
			t.Errorf("modify: %q", got)
		}
		tag("modify with an equal body", p.Send(servertest.PIDF(alice, "open", "two"), 600), "600")
		sub.Quiet(10*time.Second, "an equal body tells nobody")
		stale := *p
		tag("refresh", p.Send("", 600), "600")
		if m := stale.Send("", 600); m.Status() != 412 {
			t.Errorf("PUB-02: the old entity tag got %d, want 412", m.Status())
		}
		tag("remove", p.Send("", 0), "0")
		if got := sub.Next().Text(); got != "closed" {
			t.Errorf("PUB-15: after removal: %q", got)
		}
		if m := p.Send("", 600); m.Status() != 412 {
			t.Errorf("a removed publication is refreshed: %d", m.Status())
		}
		// PUB-07: a body in a removal is ignored; Expires over the limit is cut (PUB-06).
		p.ETag = ""
		tag("long", p.Send(servertest.PIDF(alice, "open", "three"), 1<<31), "7200")
		sub.Next()
		tag("remove with a body", p.Send(servertest.PIDF(alice, "open", "four"), 0), "0")
		if got := sub.Next().Text(); got != "closed" {
			t.Errorf("PUB-07: after removal with a body: %q", got)
		}
		// Expires 0 in an initial PUBLISH: an answer, and nothing stored.
		p.ETag = ""
		tag("nothing", p.Send(servertest.PIDF(alice, "open", "five"), 0), "0")
		sub.Quiet(10*time.Second, "PUB-01: nothing is stored")
		// Without Expires the package's default counts.
		m := w.UA(alice).Raw(n.Addr, head+"Event: presence\nContent-Type: APPLICATION/PIDF+XML;charset=UTF-8\n\n"+servertest.PIDF(alice, "open", "six"))
		tag("no Expires", m, "3600")
		if got := sub.Next().Text(); got != "open: six" {
			t.Errorf("no Expires: %q", got)
		}
		if v := n.Metric("pa_publications"); v != 1 {
			t.Errorf("%v publications, want 1", v)
		}
	})
}

// PUB-14: what is not refreshed ends at its time, and watchers are told.
func TestPublishExpires(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		sub := w.UA(bob).Watch(n, alice)
		sub.Next()
		p := w.UA(alice).Publication(n)
		p.Send(servertest.PIDF(alice, "open", "a while"), 60)
		sub.Next()
		w.Settle(50 * time.Second)
		p.Send("", 90)
		at := time.Now()
		sub.Quiet(89*time.Second, "a refreshed publication lives on")
		last := sub.Next()
		if last.Text() != "closed" {
			t.Errorf("PUB-14: expiry shows %q", last.Text())
		}
		if d := last.At.Sub(at); d < 90*time.Second || d > 91*time.Second {
			t.Errorf("PUB-14: expired after %v, want 90 s", d)
		}
		if m := p.Send("", 600); m.Status() != 412 {
			t.Errorf("an expired publication is refreshed: %d", m.Status())
		}
		if v := n.Metric("pa_expired_total"); v != 1 {
			t.Errorf("%v expired, want 1", v)
		}
		sub.Unsubscribe()
		if v := n.Metric("pa_presentities"); v != 0 {
			t.Errorf("%v presentities are kept, want 0", v)
		}
	})
}

// P-01, P-02, PUB-08: two publications with the same tuple id are shown as one
// document with two ids; each is changed and removed on its own.
func TestTwoPublications(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		sub := w.UA(bob).Watch(n, alice)
		sub.Next()
		phone, desk := w.UA(alice).Publication(n), w.UA(alice).Publication(n)
		phone.Say("open", "phone")
		sub.Next()
		desk.Say("closed", "desk")
		body := string(sub.Next().Body())
		if strings.Count(body, "<tuple") != 2 || strings.Count(body, `id="t1"`) != 1 || !strings.Contains(body, "phone") || !strings.Contains(body, "desk") {
			t.Errorf("PUB-08: composed document is\n%s", body)
		}
		if strings.Contains(body, "bob") {
			t.Errorf("P-05: the watcher is in the document\n%s", body)
		}
		phone.Say("open", "phone")
		sub.Quiet(10*time.Second, "an equal body tells nobody, also beside another publication")
		desk.Say("open", "desk two")
		if body := string(sub.Next().Body()); !strings.Contains(body, "phone") || !strings.Contains(body, "desk two") || strings.Contains(body, "desk<") {
			t.Errorf("PUB-08: after a modification\n%s", body)
		}
		phone.Send("", 0)
		if got := sub.Next().Text(); got != "open: desk two" {
			t.Errorf("after a removal %q", got)
		}
	})
}

// CORE-16: a repeated PUBLISH is answered from memory, with the same entity tag.
func TestPublishRetransmitted(t *testing.T) {
	world(t, nil, func(w *servertest.World, n *servertest.Node) {
		first, second := w.UA(alice).Retransmit(n.Addr, head+"Event: presence\nExpires: 600\nContent-Type: application/pidf+xml\n\n"+
			servertest.PIDF(alice, "open", "x"))
		if first.H(sip.HdrSIPETag) == "" || first.H(sip.HdrSIPETag) != second.H(sip.HdrSIPETag) {
			t.Errorf("CORE-16: entity tags %q and %q", first.H(sip.HdrSIPETag), second.H(sip.HdrSIPETag))
		}
		if v := n.Metric("pa_publications"); v != 1 {
			t.Errorf("%v publications, want 1", v)
		}
	})
}
