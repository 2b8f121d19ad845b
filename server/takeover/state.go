package takeover

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"

	"rollcall/pa"
	"rollcall/sip/auth"
	"rollcall/sql"
	"rollcall/xcapclient"
)

// Bounds of what is taken; those of the running server.
const (
	maxPublications = 64       // of one presentity and package
	maxBody         = 64 << 10 // bytes of a publication
	maxDocument     = 4 << 20  // bytes of an XCAP document
)

// publication takes a row of presentity.
func (r *run) publication(v row) (Outcome, string) {
	expires, over, err := r.expires(v)
	if err != nil {
		return NotTaken, err.Error()
	}
	if over {
		return Expired, ""
	}
	pkg := r.Package(v.text("event"))
	switch {
	case pkg == nil:
		return NotTaken, "package " + clip(v.text("event")) + " is not served here"
	case !pkg.Publish:
		return NotTaken, "nobody publishes for package " + pkg.Name + " here"
	}
	resource, reason := r.local(address(v.text("username"), v.text("domain")))
	if reason != "" {
		return NotTaken, reason
	}
	etag := v.text("etag")
	if !isToken(etag) {
		return NotTaken, "column etag is not an entity tag"
	}
	body := bytes.Trim([]byte(v.value("body").String), "\x00")
	if len(body) == 0 {
		return NotTaken, "the document is empty"
	}
	row := pa.PublicationRow{Resource: resource, Event: pkg.Name, ETag: etag, ContentType: pkg.Types[0], Body: body}
	if err := r.Check(&row); err != nil {
		return NotTaken, clip(err.Error())
	}
	h := hash("publication", resource, pkg.Name, etag)
	st := r.published(resource, pkg.Name)
	id := fmt.Sprintf("%016x", h)
	if st.ids[id] || st.tags[etag] || r.known[id] {
		return Already, ""
	}
	if len(st.ids) >= maxPublications {
		return NotTaken, fmt.Sprintf("more than %d publications of one presentity", maxPublications)
	}
	r.once(h, expires)
	updated := r.now
	if sec, err := v.number("received_time"); err == nil && sec > 0 && sec*1000 < r.now {
		updated = sec * 1000
	}
	st.seq++
	st.ids[id], st.tags[etag] = true, true
	row.ID, row.Seq, row.UpdatedMS, row.ExpiresMS = id, st.seq, updated, expires
	r.batch = append(r.batch, pa.PutPublication{Row: row})
	return Taken, ""
}

// Names of application usages.
const (
	presRules    = "pres-rules"
	omaPresRules = "org.openmobilealliance.pres-rules"
)

// documentType is an application usage and its documents' media type.
type documentType struct{ auid, media string }

// documentTypes are the values of column doc_type. Those of both peers agree up to 16; 32 is Kamailio's number for
// xcap-caps, which nobody stores.
var documentTypes = map[Peer]map[int64]documentType{
	Kamailio: {
		2:  {presRules, "application/auth-policy+xml"},
		4:  {"resource-lists", "application/resource-lists+xml"},
		8:  {"rls-services", "application/rls-services+xml"},
		16: {"pidf-manipulation", "application/pidf+xml"},
	},
	OpenSIPS: {
		2:  {presRules, "application/auth-policy+xml"},
		4:  {"resource-lists", "application/resource-lists+xml"},
		8:  {"rls-services", "application/rls-services+xml"},
		16: {"pidf-manipulation", "application/pidf+xml"},
		32: {omaPresRules, "application/auth-policy+xml"},
	},
}

// document takes a row of xcap.
func (r *run) document(v row) (Outcome, string) {
	n, err := v.number("doc_type")
	if err != nil {
		return NotTaken, err.Error()
	}
	typ, ok := documentTypes[r.Peer][n]
	if !ok {
		return NotTaken, fmt.Sprintf("documents of type %d are not used here", n)
	}
	owner, reason := r.local(address(v.text("username"), v.text("domain")))
	if reason != "" {
		return NotTaken, reason
	}
	auid, global, file, reason := place(v.text("doc_uri"), typ.auid)
	if reason != "" {
		return NotTaken, reason
	}
	switch auid { // the peers take a user's rules whatever the file's name is
	case presRules:
		file = "index"
	case omaPresRules:
		file = "pres-rules"
	}
	selector := auid + "/global/" + file
	if !global {
		selector = xcapclient.Selector(auid, owner, file)
	}
	body := bytes.TrimRight([]byte(v.value("doc").String), "\x00")
	if len(body) > maxDocument {
		return NotTaken, fmt.Sprintf("longer than %d MiB", maxDocument>>20)
	}
	if err := xcapclient.WellFormed(body); err != nil {
		return NotTaken, "not well-formed XML: " + clip(err.Error())
	}
	only := sql.Precondition{Absent: true}
	doc := sql.Document{Selector: selector, ETag: xcapclient.ContentTag(body), ContentType: typ.media, Body: body, UpdatedMS: r.now}
	if r.docs != r.dst { // what is there wins over what would be taken
		_, err = r.dst.Document(r.ctx, selector)
		if err == nil {
			err = sql.ErrConflict
		} else if errors.Is(err, sql.ErrNotFound) {
			err = nil
		}
	}
	if err == nil {
		_, err = r.docs.PutDocument(r.ctx, doc, only)
	}
	switch {
	case errors.Is(err, sql.ErrConflict):
		there, err := r.dst.Document(r.ctx, selector)
		if errors.Is(err, sql.ErrNotFound) {
			there, err = r.docs.Document(r.ctx, selector)
		}
		if err != nil {
			return "", err.Error()
		}
		if bytes.Equal(there.Body, body) {
			return Already, ""
		}
		return NotTaken, "there is another document of this name here: " + clip(selector)
	case err != nil:
		return "", err.Error()
	}
	return Taken, ""
}

// place finds application usage and file in column doc_uri: a whole path or URI of XCAP as Kamailio has it
// (ROOT/AUID/users/XUI/FILE), or the file alone as OpenXCAP writes it for OpenSIPS.
func place(docURI, auid string) (usage string, global bool, file, reason string) {
	const bad = "column doc_uri does not name a document"
	p := docURI
	if i := strings.Index(p, "://"); i >= 0 {
		_, p, _ = strings.Cut(p[i+3:], "/")
	}
	p, err := url.PathUnescape(p)
	if err != nil || p == "" || strings.Contains(p, "~~") || !visible(strings.ReplaceAll(p, " ", "")) {
		return "", false, "", bad
	}
	seg := strings.Split(strings.Trim(p, "/"), "/")
	file = seg[len(seg)-1]
	switch n := len(seg); {
	case n == 1:
	case n >= 4 && seg[n-3] == "users":
		auid, file = use(seg[n-4], auid), seg[n-1]
	case n >= 3 && seg[n-2] == "global":
		auid, global = use(seg[n-3], auid), true
	case n >= 3: // folders below a user are not looked into
		return "", false, "", bad
	}
	if file == "" || file == "." || file == ".." || path.Base(file) != file {
		return "", false, "", bad
	}
	return auid, global, file, ""
}

// use is the usage that a path names where it is a kind of what the type says: Kamailio has one type for both rules.
func use(named, typed string) string {
	if named == omaPresRules && typed == presRules {
		return named
	}
	return typed
}

// subscriber takes a user.
func (r *run) subscriber(v row) (Outcome, string) {
	domain := v.text("domain")
	if domain == "" {
		return NotTaken, "the user has no domain: its realm is not known"
	}
	if v.text("username") == "" {
		return NotTaken, "the user has no name"
	}
	key, reason := r.local(address(v.text("username"), domain))
	if reason != "" {
		return NotTaken, reason
	}
	if !strings.HasSuffix(key, "@"+domain) {
		return NotTaken, "the domain is spelled otherwise here, so the hashes are of another realm"
	}
	sub := sql.PeerSubscriber(v.text("username"), domain, v.text("password"), v.text("ha1"), v.text("ha1b"), v.text("ha1_sha256"), v.text("ha1_sha512t256"))
	if !sub.Secrets.Known() {
		return NotTaken, "neither a password nor a hash"
	}
	if r.DryRun {
		there, err := r.dst.Subscriber(r.ctx, sub.Username, sub.Domain)
		switch {
		case errors.Is(err, sql.ErrNotFound):
			return Taken, ""
		case err != nil:
			return "", err.Error()
		}
		return known(there, sub)
	}
	_, err := r.dst.PutSubscriber(r.ctx, sub, sql.Precondition{Absent: true})
	switch {
	case errors.Is(err, sql.ErrConflict), errors.Is(err, sql.ErrPlaintext):
		there, err := r.dst.Subscriber(r.ctx, sub.Username, sub.Domain)
		if err != nil && !errors.Is(err, sql.ErrNotFound) {
			return "", err.Error()
		}
		return known(there, sub)
	case err != nil:
		return "", err.Error()
	}
	return Taken, ""
}

// known is the outcome of a user who is there.
func known(there auth.Secrets, sub sql.Subscriber) (Outcome, string) {
	for i, h := range sub.Secrets {
		if h != "" && there[i] != "" && h != there[i] {
			return NotTaken, "there is a user of this name here, with another password"
		}
	}
	return Already, ""
}

// watcher compares a row of watchers with what the rules say here.
func (r *run) watcher(v row) (Outcome, string) {
	status, err := v.number("status")
	if err != nil {
		return NotTaken, err.Error()
	}
	if status == statusWaiting {
		return NotTaken, "a watcher without a subscription; such are not remembered here"
	}
	if event := v.text("event"); r.Package(event) == nil || !r.Package(event).Publish {
		return NotTaken, "nobody decides about watchers of package " + clip(event) + " here"
	}
	resource, reason := r.local(v.text("presentity_uri"))
	if reason != "" {
		return NotTaken, reason
	}
	watcher, _, err := r.Key(address(v.text("watcher_username"), v.text("watcher_domain")))
	if err != nil {
		return NotTaken, "the watcher is not a SIP address"
	}
	there, ok := map[int64]string{statusActive: "active", statusPending: "pending", statusTerminated: "terminated"}[status]
	if !ok {
		return NotTaken, "status is none of active, pending, terminated"
	}
	here, err := r.Decide(r.ctx, r.docs, resource, watcher)
	switch {
	case err != nil:
		return NotTaken, "the rules cannot be read: " + clip(err.Error())
	case here != there:
		return NotTaken, there + " there, but " + here + " by the rules here"
	}
	return Same, ""
}
