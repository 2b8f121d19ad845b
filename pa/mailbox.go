package pa

import (
	"bytes"
	"time"

	"rollcall/dialog"
	"rollcall/pa/mwi"
)

// MessageSummary is the event package of RFC 3842, message waiting.
func MessageSummary() *Package {
	return &Package{dialog.Package{
		Name: "message-summary", Types: []string{mwi.MediaType}, DefaultExpires: time.Hour, MinInterval: time.Second, Publish: true, Lists: true,
		Empty: func(entity string) *dialog.Document { return summary(mwi.Compose(entity, nil)) },
	}, mailboxes{}}
}

type mailboxes struct{}

func summary(body []byte) *dialog.Document { return &dialog.Document{Type: mwi.MediaType, Body: body} }

func (mailboxes) read(_ string, body []byte, _ int, _ content) (content, error) {
	doc, err := mwi.Parse(body)
	if err != nil {
		return nil, err
	}
	return doc, nil
}

func (mailboxes) observe(any, []*publication, time.Time, time.Duration) any { return nil }

func (mailboxes) compose(entity string, _ any, pubs []*publication, before *dialog.Document) (*dialog.Document, bool) {
	body := mwi.Compose(entity, contents[*mwi.Document](pubs))
	if before != nil && bytes.Equal(before.Body, body) {
		return before, false
	}
	return summary(body), true
}
