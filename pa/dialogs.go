package pa

import (
	"time"

	"rollcall/dialog"
	"rollcall/pa/dialoginfo"
)

// Dialog is the event package of RFC 4235, which busy lamp fields use. Watchers
// get full state always: NOTIFYs are joined, and a lost one is repaired by the
// next. A lamp must not lag, so NOTIFYs may be closer together than the second
// of RFC 4235 section 3.10.
func Dialog() *Package {
	return &Package{dialog.Package{
		Name: "dialog", Types: []string{dialoginfo.MediaType}, DefaultExpires: time.Hour, MinInterval: 100 * time.Millisecond,
		Publish: true, Lists: true, Whole: wholeDialogs,
		Empty: func(entity string) *dialog.Document { return dialogDocument(dialoginfo.Empty(entity)) },
	}, dialogs{}}
}

type dialogs struct{}

func dialogDocument(body []byte, versionAt int) *dialog.Document {
	return &dialog.Document{Type: dialoginfo.MediaType, Body: exact(body), Version: versionAt}
}

func (dialogs) read(_ string, body []byte, limit int, held content) (content, error) {
	doc, err := dialoginfo.Parse(body, dialoginfo.Limits{Bytes: limit})
	if err != nil {
		return nil, err
	}
	before, _ := held.(*dialoginfo.Document)
	doc, err = dialoginfo.Apply(before, doc, limit)
	if err != nil {
		return nil, err
	}
	return doc, nil
}

func (dialogs) observe(kept any, pubs []*publication, now time.Time, linger time.Duration) any {
	t, _ := kept.(*dialoginfo.Table)
	if t == nil {
		t = new(dialoginfo.Table)
	}
	t.Observe(contents[*dialoginfo.Document](pubs), now, linger)
	return t
}

func (dialogs) compose(entity string, kept any, _ []*publication, before *dialog.Document) (*dialog.Document, bool) {
	t, _ := kept.(*dialoginfo.Table)
	if t == nil { // nothing was ever published
		return dialogDocument(dialoginfo.Empty(entity)), before == nil
	}
	differs := before == nil || t.News()
	return dialogDocument(t.Render(entity)), differs
}

// wholeDialogs implements dialog.Package.Whole.
func wholeDialogs(known *dialog.Document, _ string, body []byte) (*dialog.Document, error) {
	news, err := dialoginfo.Parse(body, dialoginfo.Limits{Bytes: maxRemoteDialogs})
	if err != nil {
		return nil, err
	}
	var before *dialoginfo.Document
	if known != nil {
		b, _ := known.Render(nil, dialog.View{})
		if before, err = dialoginfo.Parse(b, dialoginfo.Limits{Bytes: len(b)}); err != nil {
			return nil, err
		}
	}
	doc, err := dialoginfo.Apply(before, news, maxRemoteDialogs)
	if err != nil {
		return nil, err
	}
	return dialogDocument(doc.Whole(doc.Entity())), nil
}

// maxRemoteDialogs bounds, in bytes, the dialogs of a resource elsewhere.
const maxRemoteDialogs = 64 << 10
