package pa

import (
	"slices"
	"strings"
	"time"

	"rollcall/pa/pidf"
)

// Info describes a resource to an operator, all packages together.
type Info struct {
	URI          string            `json:"uri"`
	Basic        string            `json:"basic"`          // of presence: open or closed
	Note         string            `json:"note,omitempty"` // of presence
	Publications []PublicationInfo `json:"publications"`
	Watchers     []WatcherInfoRow  `json:"watchers"`
}

// PublicationInfo describes a publication.
type PublicationInfo struct {
	Event   string    `json:"event"`
	ETag    string    `json:"etag"`
	Basic   string    `json:"basic"` // of presence: open or closed
	Note    string    `json:"note,omitempty"`
	Updated time.Time `json:"updated"`
	Expires time.Time `json:"expires"`
	Bytes   int       `json:"bytes"`
}

// WatcherInfoRow describes a watcher and what was decided for it.
type WatcherInfoRow struct {
	Event    string    `json:"event"`
	URI      string    `json:"uri"`
	Status   string    `json:"status"`
	Handling string    `json:"handling"`
	Since    time.Time `json:"since"`
}

// Describe tells what is known of a resource; false when nobody publishes or
// watches it.
func (s *Shard) Describe(resource string) (Info, bool) {
	in := Info{URI: resource, Publications: []PublicationInfo{}, Watchers: []WatcherInfoRow{}}
	known := false
	for p := range s.packagesOf(resource) {
		known = true
		event := s.pkg(p).Name
		if event == presenceName {
			doc := pidf.Merge(p.key, contents[*pidf.Document](p.pubs))
			in.Basic, in.Note = doc.Basic(), doc.Note()
		}
		for _, pub := range p.pubs {
			in.Publications = append(in.Publications, PublicationInfo{Event: event, ETag: pub.row.ETag, Basic: pub.doc.Basic(), Note: pub.doc.Note(),
				Updated: time.UnixMilli(pub.row.UpdatedMS).UTC(), Expires: time.UnixMilli(pub.row.ExpiresMS).UTC(), Bytes: len(pub.row.Body)})
		}
		from := len(in.Watchers)
		for w := range p.watchers.each() {
			in.Watchers = append(in.Watchers, WatcherInfoRow{Event: event, URI: p.watchers.uri(w), Status: w.status(), Handling: w.handling.String(), Since: w.started().UTC()})
		}
		slices.SortFunc(in.Watchers[from:], func(a, b WatcherInfoRow) int { return strings.Compare(a.URI, b.URI) })
	}
	return in, known
}
