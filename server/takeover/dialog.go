package takeover

import (
	"math"
	"strings"

	"rollcall/dialog"
	"rollcall/sip"
	"rollcall/sql"
)

var (
	dialogColumns = []string{
		"presentity_uri", "watcher_username", "watcher_domain", "to_user", "to_domain", "event", "to_tag", "from_tag", "callid",
		"local_cseq", "remote_cseq", "contact", "expires", "status", "version", "local_contact",
	}
	dialogExtras = []string{"event_id", "record_route", "from_user", "from_domain", "socket_info", "user_agent", "reason"}
)

// What the peers' column status means.
const (
	statusActive     = 1
	statusPending    = 2
	statusTerminated = 3
	statusWaiting    = 4
)

// cseqReserve is how far above the peer's last known CSeq and version we go on. A peer in write-back stores them only
// now and then, every 100 s unless it is told otherwise.
const cseqReserve = 1024

// listAccept is what a watcher of a list must have said that it takes (RL-04), besides the package's own type; the peers
// do not remember it.
const listAccept = "multipart/related, application/rlmi+xml, "

// loadBackEnds reads the Call-IDs of subscriptions that the peer's list server has itself.
func (r *run) loadBackEnds() error {
	has, err := r.src.Columns(r.ctx, "pua")
	if err != nil || len(has) == 0 {
		return err
	}
	return r.src.Each(r.ctx, "pua", []string{"call_id"}, nil, func(v []sql.NullString) error {
		if id := strings.TrimRight(v[0].String, " "); id != "" {
			r.backEnds[id] = true
		}
		return nil
	})
}

// dialog takes a row of active_watchers or rls_watchers.
func (r *run) dialog(v row, list bool) (Outcome, string) {
	expires, over, err := r.expires(v)
	if err != nil {
		return NotTaken, err.Error()
	}
	if over {
		return Expired, ""
	}
	status, err := v.number("status")
	switch {
	case err != nil:
		return NotTaken, err.Error()
	case status == statusTerminated:
		return NotTaken, "the subscription has ended"
	case status == statusWaiting:
		return NotTaken, "a watcher without a subscription"
	case status != statusActive && status != statusPending && !(list && status == 0): // Kamailio's list server sets none
		return NotTaken, "status is neither active nor pending"
	}
	pkg := r.Package(v.text("event"))
	switch {
	case pkg == nil:
		return NotTaken, "package " + clip(v.text("event")) + " is not served here"
	case list && !pkg.Lists:
		return NotTaken, "package " + pkg.Name + " has no lists here"
	}
	resource, reason := r.local(v.text("presentity_uri"))
	if reason != "" {
		return NotTaken, reason
	}
	watcher, _, err := r.Key("sip:" + v.text("watcher_username") + "@" + v.text("watcher_domain"))
	if err != nil {
		return NotTaken, "the watcher is not a SIP address"
	}
	row := dialog.SubscriptionRow{
		Shard: dialog.ShardOf(resource), Event: pkg.Name, EventID: v.text("event_id"), Resource: resource, Watcher: watcher,
		CallID: v.text("callid"), LocalTag: v.text("to_tag"), RemoteTag: v.text("from_tag"), UserAgent: v.text("user_agent"),
		List: list, CreatedMS: r.now, ExpiresMS: expires,
	}
	if list {
		row.Accept = listAccept + pkg.Types[0]
	}
	if reason := r.ends(v, &row); reason != "" {
		return NotTaken, reason
	}
	if reason := numbers(v, &row); reason != "" {
		return NotTaken, reason
	}
	if !list && (r.backEnds[row.CallID] || sameHop(row.RemoteTarget, row.LocalContact)) {
		return NotTaken, "a subscription of the peer's own list server"
	}
	h := hash("dialog", row.CallID, row.LocalTag, row.RemoteTag)
	row.ID = dialog.TagFor(row.Shard, h)
	if r.dialogs[row.ID] || r.calls[[3]string{row.CallID, row.LocalTag, row.RemoteTag}] || !r.once(h, expires) {
		return Already, ""
	}
	r.dialogs[row.ID] = true
	r.batch = append(r.batch, dialog.PutSubscription{Row: row})
	return Taken, ""
}

// ends fills in how the two ends are addressed, or tells what is wrong. All of it goes into NOTIFYs, so nothing may be
// there that ends a line or a value.
func (r *run) ends(v row, row *dialog.SubscriptionRow) (reason string) {
	user, domain := v.text("from_user"), v.text("from_domain")
	if domain == "" { // OpenSIPS has one address of a watcher
		user, domain = v.text("watcher_username"), v.text("watcher_domain")
	}
	row.LocalURI, row.RemoteURI = address(v.text("to_user"), v.text("to_domain")), address(user, domain)
	row.RemoteTarget, row.LocalContact = bare(v.text("contact")), bare(v.text("local_contact"))
	for _, u := range []struct{ uri, column string }{
		{row.LocalURI, "to_user or to_domain"}, {row.RemoteURI, "from_user or from_domain"}, {row.RemoteTarget, "contact"}, {row.LocalContact, "local_contact"},
	} {
		p, err := sip.ParseURI(u.uri)
		if err != nil || p.Scheme != "sip" && p.Scheme != "sips" || strings.ContainsAny(u.uri, "<>\" \r\n\t\x00") {
			return "column " + u.column + " is not a SIP address"
		}
	}
	switch {
	case !isToken(row.LocalTag):
		return "column to_tag is not a tag"
	case !isToken(row.RemoteTag):
		return "column from_tag is not a tag"
	case row.CallID == "" || !visible(row.CallID):
		return "column callid is not a Call-ID"
	case row.EventID != "" && !isToken(row.EventID):
		return "column event_id is not a token"
	}
	if !visible(strings.ReplaceAll(row.UserAgent, " ", "")) {
		row.UserAgent = ""
	}
	var ok bool
	if row.RouteSet, ok = routes(v.text("record_route")); !ok {
		return "column record_route is not a route set"
	}
	return ""
}

// numbers fills in CSeq and version.
func numbers(v row, row *dialog.SubscriptionRow) (reason string) {
	var n [3]int64
	for i, c := range []string{"local_cseq", "remote_cseq", "version"} {
		var err error
		if n[i], err = v.number(c); err != nil {
			return err.Error()
		}
		if n[i] < 0 || n[i] > math.MaxInt32-2*cseqReserve {
			return "column " + c + " is not below 2^31"
		}
	}
	row.RemoteCSeq, row.CSeqCeiling = uint32(n[1]), uint32(n[0])+cseqReserve
	row.VersionOffset = uint32(n[0]) - uint32(n[2]) // modulo 2^32, as a version is CSeq minus this
	return ""
}

func address(user, domain string) string {
	if user == "" {
		return "sip:" + domain
	}
	return "sip:" + user + "@" + domain
}

// bare is a URI that may stand in angle brackets.
func bare(uri string) string {
	uri = strings.TrimSpace(uri)
	if strings.HasPrefix(uri, "<") && strings.HasSuffix(uri, ">") {
		return uri[1 : len(uri)-1]
	}
	return uri
}

// routes reads a route set as the peers keep it, "<uri>,<uri>", in the order of Route.
func routes(s string) (string, bool) {
	s = strings.TrimSpace(s)
	if s == "" {
		return "", true
	}
	if !visible(strings.ReplaceAll(s, " ", "")) {
		return "", false
	}
	var all []string
	for s != "" {
		end := strings.IndexByte(s, '>')
		if s[0] != '<' || end < 0 {
			return "", false
		}
		u, err := sip.ParseURI(s[1:end])
		if err != nil || u.Scheme != "sip" && u.Scheme != "sips" {
			return "", false
		}
		one := s[:end+1]
		s = s[end+1:]
		params, rest, _ := strings.Cut(s, ",")
		if strings.ContainsAny(params, "<>\"") {
			return "", false
		}
		all = append(all, one+strings.TrimSpace(params))
		s = strings.TrimSpace(rest)
	}
	return strings.Join(all, ", "), true
}

// sameHop tells whether two URIs lead to one host and port.
func sameHop(a, b string) bool {
	u, err1 := sip.ParseURI(a)
	w, err2 := sip.ParseURI(b)
	port := func(u sip.URI) int {
		if u.Port != 0 {
			return int(u.Port)
		}
		return 5060
	}
	return err1 == nil && err2 == nil && strings.EqualFold(u.Host, w.Host) && port(u) == port(w)
}

// visible tells whether a text has neither control characters nor white space.
func visible(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c == 0x7f })
}

// isToken is token of RFC 3261 section 25.1.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-.!%*_+`'~", c))
	})
}
