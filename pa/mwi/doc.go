// Package mwi reads message summaries (RFC 3842), which tell a phone that
// messages wait, and adds up those of several mail boxes.
//
// Only the summary is kept. What may follow it, headers of new messages, is for
// whoever is told of them the first time (RFC 3842 section 3.5), which a
// document that is shown again and again cannot know.
//
// The package does no I/O and keeps no state.
//
//	doc, err := mwi.Parse(body)
//	body := mwi.Compose("sip:alice@example.com", []*mwi.Document{doc, other})
package mwi
