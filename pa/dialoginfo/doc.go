// Package dialoginfo reads dialog information documents (RFC 4235) and makes one
// of several: what a phone, or a proxy, says of its calls, and a presentity's
// calls as all its publishers say it.
//
// A document in the shape of the schema can be shown as it was published, octet
// for octet, but for version, state and entity of its root element, which are
// the notifier's. Others are mended (names that an earlier draft or the RFC's own
// examples have are taken for what they mean) or, where nothing can be made of
// them, refused.
//
// # The state machine
//
// RFC 4235 section 3.7.1 per dialog: trying, proceeding, early, confirmed,
// terminated, and never back, in whatever order publications come. Table
// remembers the dialogs that ended: they stay so, and are shown once. A dialog is
// known by its id and Call-ID. One without Call-ID has no identity over time
// (some publishers have one id for a line, and use it for every call), so of
// several publications about it the newest counts.
//
// The package does no I/O and reads no clock.
//
//	doc, err := dialoginfo.Parse(body, dialoginfo.Limits{})
//	table.Observe([]*dialoginfo.Document{doc}, now, linger)
//	body, at := table.Render("sip:alice@example.com") // the version belongs at
package dialoginfo
