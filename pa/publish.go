package pa

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"rollcall/dialog"
	"rollcall/sip"
)

// recoveryGrace is how long a publication that ran out while the server was
// down is kept after the start: its publisher could not refresh it.
const recoveryGrace = time.Minute

// Publish implements dialog.Publisher: RFC 3903 section 6, in its order
// (PUB-01). A refused request changes nothing.
func (s *Shard) Publish(t *dialog.Turn, r *dialog.Request) {
	if err := s.publish(t, r); err != nil {
		t.Fail(r, err)
	}
}

func (s *Shard) publish(t *dialog.Turn, r *dialog.Request) *dialog.Error {
	m := r.Msg
	pkg, winfo, ok := s.a.find(r.Package.Name)
	if !ok || winfo {
		return dialog.Refuse(489, "", "Allow-Events", s.a.events())
	}
	if r.Watcher.URI != r.Resource {
		return dialog.Refuse(403, "Not Your Presence")
	}
	p := s.all[pkg][r.Resource]
	var pub *publication
	if m.Has(sip.HdrSIPIfMatch) {
		tags := slices.Collect(m.Values(sip.HdrSIPIfMatch))
		if len(tags) != 1 {
			return dialog.Refuse(400, "One Entity Tag Only")
		}
		if pub = p.byTag(string(tags[0])); pub == nil {
			return dialog.Refuse(412, "")
		}
	}
	expires, err := t.Expires(m, r.Package.DefaultExpires)
	if err != nil {
		return err
	}
	if expires == 0 {
		return s.unpublish(t, r, pkg, p, pub)
	}
	if len(m.Body()) == 0 {
		if pub == nil {
			return dialog.Refuse(400, "Body Missing")
		}
		s.refresh(t, r, p, pub, expires)
		return nil
	}
	var held content
	if pub != nil {
		held = pub.doc
	}
	mediaType, doc, err := s.body(r, pkg, held)
	if err != nil {
		return err
	}
	if pub != nil && mediaType == pub.row.ContentType && bytes.Equal(doc.Bytes(), pub.row.Body) { // keeps its place among the others
		s.refresh(t, r, p, pub, expires)
		return nil
	}
	if pub == nil {
		if p != nil && len(p.pubs) >= s.a.opt.MaxPublications {
			return &dialog.Error{Status: 503, Reason: "Too Many Publications", RetryAfter: time.Minute}
		}
		p = s.presentity(pkg, r.Resource)
		pub = &publication{row: PublicationRow{Resource: p.key, Event: r.Package.Name, ID: s.newToken()}}
		s.a.stats.Publications.Add(1)
	}
	before := pub.now()
	s.a.stats.Published.Add(1)
	p.seq++
	pub.doc = doc
	pub.row.ContentType, pub.row.Body = mediaType, doc.Bytes()
	pub.row.Seq, pub.row.UpdatedMS = p.seq, t.Now.UnixMilli()
	p.pubs = append(slices.DeleteFunc(p.pubs, func(o *publication) bool { return o == pub }), pub)
	s.keep(t, p, pub, expires)
	s.published(t, r, pub.row.ETag, expires)
	s.orTakeBack(t, p.pkg, pub, before)
	s.changed(t, p)
	return nil
}

func (s *Shard) refresh(t *dialog.Turn, r *dialog.Request, p *presentity, pub *publication, expires time.Duration) {
	before := pub.now()
	s.a.stats.Refreshed.Add(1)
	s.keep(t, p, pub, expires)
	s.published(t, r, pub.row.ETag, expires)
	s.orTakeBack(t, p.pkg, pub, before)
}

// now is a publication as it is before it changes.
func (p *publication) now() publication { return publication{row: p.row, doc: p.doc} }

// orTakeBack makes a publication what it was when the answer just given could
// not be stored: its publisher will come again with the entity tag he knows, or
// with none.
func (s *Shard) orTakeBack(t *dialog.Turn, pkg uint8, pub *publication, before publication) {
	key, tag := pub.row.Resource, pub.row.ETag
	t.OnWithdraw(func(t *dialog.Turn) {
		p := s.all[pkg][key]
		if p == nil || p.byTag(tag) != pub {
			return
		}
		if before.row.ETag == "" {
			s.drop(t, p, pub)
			return
		}
		pub.row, pub.doc = before.row, before.doc
		p.sort()
		s.arm(t, p, pub)
		t.Persist(PutPublication{Row: pub.row})
		s.changed(t, p)
	})
}

// sort puts the publications in the order of their last changes.
func (p *presentity) sort() {
	slices.SortStableFunc(p.pubs, func(a, b *publication) int { return cmp.Compare(a.row.Seq, b.row.Seq) })
}

// byTag finds a publication of this presentity, and of no other (PUB-05).
func (p *presentity) byTag(tag string) *publication {
	if p == nil {
		return nil
	}
	for _, pub := range p.pubs {
		if pub.row.ETag == tag {
			return pub
		}
	}
	return nil
}

// body reads the published document.
func (s *Shard) body(r *dialog.Request, pkg uint8, held content) (mediaType string, doc content, refusal *dialog.Error) {
	p := s.a.opt.Packages[pkg]
	mediaType, text, refusal := dialog.Body(r.Msg, s.a.opt.MaxBody, strings.Join(p.Types, ", "))
	if refusal != nil {
		return "", nil, refusal
	}
	if _, ok := p.code.(opaque); ok {
		mediaType = parameters(string(r.Msg.Header(sip.HdrContentType)), mediaType)
	}
	doc, err := p.code.read(mediaType, slices.Clone(text), s.a.opt.MaxBody, held)
	if err != nil {
		status, reason := 400, "Bad Document"
		var coded interface{ Code() int }
		if errors.As(err, &coded) {
			status = coded.Code()
			if status != 400 {
				reason = ""
			}
		}
		return "", nil, &dialog.Error{Status: status, Reason: reason, Err: err}
	}
	return mediaType, doc, nil
}

// published answers with the new entity tag.
func (s *Shard) published(t *dialog.Turn, r *dialog.Request, tag string, expires time.Duration) {
	t.Reply(r, 200, "", "SIP-ETag", tag, "Expires", strconv.FormatInt(int64(expires/time.Second), 10))
}

// keep gives a publication a new entity tag and expiry, and stores it.
func (s *Shard) keep(t *dialog.Turn, p *presentity, pub *publication, expires time.Duration) {
	pub.row.ETag = s.newToken()
	pub.row.ExpiresMS = t.Now.Add(expires).UnixMilli()
	s.arm(t, p, pub)
	t.Persist(PutPublication{Row: pub.row})
}

// arm sets the publication's expiry timer.
func (s *Shard) arm(t *dialog.Turn, p *presentity, pub *publication) {
	if pub.id == 0 {
		s.nextID++
		pub.id = s.nextID
		s.timers[pub.id] = timed{p: p, pub: pub}
	}
	t.CancelTimer(pub.timer)
	pub.timer = t.SetTimer(s.a.opt.Component, pub.id, time.UnixMilli(pub.row.ExpiresMS))
}

// unpublish handles Expires: 0. The body of a removal is ignored (PUB-07);
// without an entity tag there is nothing to remove, so a body is looked at as
// in any other request, but nothing is stored and nothing changes.
func (s *Shard) unpublish(t *dialog.Turn, r *dialog.Request, pkg uint8, p *presentity, pub *publication) *dialog.Error {
	if pub == nil {
		if len(r.Msg.Body()) == 0 {
			return dialog.Refuse(400, "Entity Tag Missing")
		}
		if _, _, err := s.body(r, pkg, nil); err != nil {
			return err
		}
	}
	s.published(t, r, s.newToken(), 0) // the tag is required and of no use (PUB-02)
	if pub != nil {
		t.OnWithdraw(func(t *dialog.Turn) { s.revive(t, pkg, pub) })
		s.drop(t, p, pub)
	}
	return nil
}

// revive brings a publication back whose removal could not be stored: its
// publisher was refused and knows it as it was.
func (s *Shard) revive(t *dialog.Turn, pkg uint8, pub *publication) {
	p := s.presentity(pkg, pub.row.Resource)
	if p.byTag(pub.row.ETag) != nil {
		return
	}
	pub.id = 0
	p.pubs = append(p.pubs, pub)
	p.sort()
	p.seq = max(p.seq, pub.row.Seq)
	s.a.stats.Publications.Add(1)
	s.arm(t, p, pub)
	t.Persist(PutPublication{Row: pub.row})
	s.changed(t, p)
}

// expired removes a publication that was not refreshed; watchers are told
// (PUB-14).
func (s *Shard) expired(t *dialog.Turn, p *presentity, pub *publication) {
	if t.Now.UnixMilli() < pub.row.ExpiresMS {
		s.arm(t, p, pub)
		return
	}
	s.a.stats.Expired.Add(1)
	s.drop(t, p, pub)
}

func (s *Shard) drop(t *dialog.Turn, p *presentity, pub *publication) {
	t.CancelTimer(pub.timer)
	delete(s.timers, pub.id)
	p.pubs = slices.DeleteFunc(p.pubs, func(o *publication) bool { return o == pub })
	s.a.stats.Publications.Add(-1)
	t.Persist(DeletePublication{Resource: pub.row.Resource, Event: pub.row.Event, ID: pub.row.ID})
	s.changed(t, p)
	s.tidy(p)
}

// Restore brings a stored publication back after a restart.
func (s *Shard) Restore(t *dialog.Turn, row PublicationRow) error {
	doc, err := s.a.restored(&row)
	if err != nil {
		return err
	}
	pkg, _, _ := s.a.find(row.Event)
	p := s.presentity(pkg, row.Resource)
	pub := &publication{row: row, doc: doc}
	if grace := t.Now.Add(recoveryGrace).UnixMilli(); row.ExpiresMS < grace {
		pub.row.ExpiresMS = grace
	}
	p.pubs = append(p.pubs, pub)
	p.sort()
	p.seq = max(p.seq, row.Seq)
	s.observe(t, p)
	s.a.stats.Publications.Add(1)
	s.arm(t, p, pub)
	return nil
}

// restored reads the document of a stored publication.
func (a *Agent) restored(row *PublicationRow) (content, error) {
	pkg, winfo, ok := a.find(row.Event)
	if !ok || winfo {
		return nil, fmt.Errorf("event package %q cannot be published", row.Event)
	}
	doc, err := a.opt.Packages[pkg].code.read(row.ContentType, row.Body, max(a.opt.MaxBody, len(row.Body)), nil)
	if err != nil {
		return nil, fmt.Errorf("the body is no %s document: %w", row.Event, err)
	}
	return doc, nil
}
