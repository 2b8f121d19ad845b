package rlmi

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"rollcall/sip/body"
)

// MaxParts bounds the parts of one multipart that [Parse] reads.
const MaxParts = body.MaxParts

const defaultDepth = 8

// ErrLimit reports a body with more parts, larger part headers or deeper
// nesting than allowed.
var ErrLimit = errors.New("rlmi: too large or too deeply nested")

// Notification is a decoded body of a list NOTIFY.
type Notification struct {
	List    *List
	RootCID string
	// Parts are the top-level parts without the root, in the order received.
	// Their bodies alias the bytes given to Parse.
	Parts []Part
	// Nested has the decoded form of each part that is a list itself, by CID.
	Nested map[string]*Notification
	// Signed tells that the list came inside multipart/signed (RFC 4662
	// section 7.3). The signature has not been looked at.
	Signed bool

	byCID map[string]int
}

// Part returns the top-level part with the given CID.
func (n *Notification) Part(cid string) (Part, bool) {
	i, ok := n.byCID[cid]
	if !ok {
		return Part{}, false
	}
	return n.Parts[i], true
}

// Options of reading. The zero value is strict, also with nested lists, which
// a list server may have passed on as it received them.
type Options struct {
	// Lenient takes what servers in the field send: quoted boundaries, no type
	// or start parameter, Content-IDs without angle brackets or missing, active
	// instances without state, terminated ones without reason, cids that
	// resolve to nothing, a missing last delimiter. What cannot be read as a
	// list is still an error.
	Lenient bool
	// First tells that this is the first NOTIFY of its subscription: it must
	// have full state and, unless Lenient (Kamailio starts at 1, as the example
	// of RFC 4662 section 6 does), version 0.
	First bool
	// Depth is how many lists may be nested within the outermost; 0 means 8.
	Depth int
}

// Parse reads the body of a list NOTIFY strictly: see [Options.Parse].
func Parse(contentType string, text []byte) (*Notification, error) {
	return Options{}.Parse(contentType, text)
}

// Parse reads the body of a list NOTIFY. The root part is the one the start
// parameter names; if Lenient, failing that, the first RLMI part. Lines may end in LF alone.
// Nested lists are decoded too, through multipart/signed if need be.
//
// Errors are a [*RuleError] for a broken rule of RFC 4662 (RL-10 to RL-18), or
// wrap [ErrNotWellFormed] or [ErrLimit]; the message of an error in a nested
// list starts with the CID of its part.
func (o Options) Parse(contentType string, text []byte) (*Notification, error) {
	if o.Depth == 0 {
		o.Depth = defaultDepth
	}
	n, err := o.parse(contentType, text, 0)
	if err != nil {
		return nil, err
	}
	if o.First {
		if !n.List.FullState {
			return nil, broken("RL-14", "first NOTIFY without full state")
		}
		if n.List.Version != 0 && !o.Lenient {
			return nil, broken("RL-13", "first NOTIFY with version "+strconv.FormatUint(uint64(n.List.Version), 10))
		}
	}
	return n, nil
}

func (o Options) parse(contentType string, text []byte, depth int) (*Notification, error) {
	if depth > o.Depth {
		return nil, fmt.Errorf("%w: more than %d lists within each other", ErrLimit, o.Depth)
	}
	ct, err := body.ParseMedia(contentType)
	if err != nil {
		return nil, broken("RL-10", err.Error())
	}
	if ct.Type == "multipart/signed" {
		return o.parseSigned(&ct, text, depth)
	}
	if ct.Type != MultipartMediaType {
		return nil, broken("RL-10", "body is "+strconv.Quote(ct.Type))
	}
	if typ, ok := ct.Param("type"); !strings.EqualFold(typ, MediaType) && (ok || !o.Lenient) {
		return nil, broken("RL-10", "multipart/related with type "+strconv.Quote(typ))
	}
	if !ct.Quoted("type") && !o.Lenient {
		return nil, broken("RL-10", "type parameter without quotes")
	}
	parts, err := o.parts(&ct, text)
	if err != nil {
		return nil, err
	}
	root, err := o.root(&ct, parts)
	if err != nil {
		return nil, err
	}
	n := &Notification{RootCID: parts[root].CID, byCID: make(map[string]int, len(parts))}
	if n.List, err = parseList(parts[root].Body, o.Lenient); err != nil {
		return nil, err
	}
	n.Parts = append(parts[:root:root], parts[root+1:]...)
	for i := range n.Parts {
		p := &n.Parts[i]
		if p.CID == "" {
			continue
		}
		if _, dup := n.byCID[p.CID]; dup || p.CID == n.RootCID {
			if !o.Lenient {
				return nil, broken("RL-11", "Content-ID <"+p.CID+"> appears twice")
			}
			continue
		}
		n.byCID[p.CID] = i
	}
	if err := o.nested(n, depth); err != nil {
		return nil, err
	}
	if !o.Lenient {
		if err := n.resolve(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// parseSigned reads the signed part of a multipart/signed, the first one
// (RFC 1847 section 2.1).
func (o Options) parseSigned(ct *body.Media, text []byte, depth int) (*Notification, error) {
	raw, err := o.split(ct, text)
	if err != nil {
		return nil, err
	}
	inner := raw[0]
	if in, err := body.ParseMedia(inner.Type); err != nil || in.Type != MultipartMediaType {
		return nil, broken("RL-10", "signed body is "+strconv.Quote(inner.Type))
	}
	n, err := o.parse(inner.Type, inner.Body, depth)
	if err != nil {
		return nil, err
	}
	n.Signed = true
	return n, nil
}

func (o Options) nested(n *Notification, depth int) error {
	for i := range n.Parts {
		p := &n.Parts[i]
		ct, err := body.ParseMedia(p.ContentType)
		if err != nil || !o.isList(&ct, p.Body) {
			continue
		}
		sub, err := o.parse(p.ContentType, p.Body, depth+1)
		if err != nil {
			if o.Lenient && !errors.Is(err, ErrLimit) {
				continue
			}
			return fmt.Errorf("in part <%s>: %w", p.CID, err)
		}
		if at, ok := n.byCID[p.CID]; !ok || at != i {
			continue
		}
		if n.Nested == nil {
			n.Nested = make(map[string]*Notification)
		}
		n.Nested[p.CID] = sub
	}
	return nil
}

// isList tells a nested list from other multiparts, such as a presence
// document with pictures.
func (o Options) isList(ct *body.Media, text []byte) bool {
	switch ct.Type {
	case MultipartMediaType:
		typ, _ := ct.Param("type")
		return strings.EqualFold(typ, MediaType)
	case "multipart/signed":
		raw, err := o.split(ct, text)
		if err != nil {
			return false
		}
		in, err := body.ParseMedia(raw[0].Type)
		// Signed within signed is left alone: nothing says what it means.
		return err == nil && in.Type == MultipartMediaType && o.isList(&in, raw[0].Body)
	}
	return false
}

// resolve checks RFC 4662 section 5.5: a cid refers to a top-level part of the
// same multipart.
func (n *Notification) resolve() error {
	check := func(cid, of string) error {
		if cid == "" {
			return nil
		}
		if _, ok := n.byCID[cid]; ok {
			return nil
		}
		why := " resolves to no part"
		switch {
		case cid == n.RootCID:
			why = " is the RLMI part itself"
		case n.holds(cid):
			why = " is a part of a nested list"
		}
		return broken("RL-18", "cid "+strconv.Quote(cid)+" of "+strconv.Quote(of)+why)
	}
	if err := check(n.List.CID, n.List.URI); err != nil {
		return err
	}
	for i := range n.List.Resources {
		r := &n.List.Resources[i]
		for j := range r.Instances {
			if err := check(r.Instances[j].CID, r.URI); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *Notification) holds(cid string) bool {
	for _, sub := range n.Nested {
		if _, ok := sub.byCID[cid]; ok || sub.RootCID == cid || sub.holds(cid) {
			return true
		}
	}
	return false
}

func (o Options) root(ct *body.Media, parts []Part) (int, error) {
	isRLMI := func(i int) bool {
		m, err := body.ParseMedia(parts[i].ContentType)
		return err == nil && m.Type == MediaType
	}
	start, ok := ct.Param("start")
	cid, bracketed := unbracket(start)
	if o.Lenient && !bracketed {
		cid, bracketed = start, start != ""
	}
	if bracketed {
		for i := range parts {
			if parts[i].CID != cid {
				continue
			}
			if !isRLMI(i) {
				return 0, broken("RL-10", "root part is "+strconv.Quote(parts[i].ContentType))
			}
			return i, nil
		}
	}
	if !o.Lenient {
		if !ok {
			return 0, broken("RL-10", "no start parameter")
		}
		return 0, broken("RL-10", "start "+strconv.Quote(start)+" names no part")
	}
	for i := range parts {
		if isRLMI(i) {
			return i, nil
		}
	}
	return 0, broken("RL-10", "no RLMI part")
}

func (o Options) parts(ct *body.Media, text []byte) ([]Part, error) {
	raw, err := o.split(ct, text)
	if err != nil {
		return nil, err
	}
	parts := make([]Part, len(raw))
	for i, r := range raw {
		cid, ok := unbracket(r.ID)
		if !ok {
			if !o.Lenient {
				return nil, broken("RL-11", "part "+strconv.Itoa(i)+" with Content-ID "+strconv.Quote(r.ID))
			}
			cid = r.ID
		}
		if r.Type == "" && !o.Lenient {
			return nil, broken("RL-11", "part "+strconv.Itoa(i)+" without Content-Type")
		}
		switch strings.ToLower(r.Encoding) {
		case "binary", "8bit", "7bit":
		case "":
			if !o.Lenient {
				return nil, broken("RL-11", "part "+strconv.Itoa(i)+" without Content-Transfer-Encoding")
			}
		default:
			return nil, broken("RL-11", "part "+strconv.Itoa(i)+" with Content-Transfer-Encoding "+strconv.Quote(r.Encoding))
		}
		parts[i] = Part{CID: cid, ContentType: r.Type, Body: r.Body}
	}
	return parts, nil
}

// split takes a multipart apart. There is at least one part when it returns no
// error.
func (o Options) split(ct *body.Media, text []byte) ([]body.Part, error) {
	boundary, _ := ct.Param("boundary")
	// multipart/signed is somebody else's work; the bare token is our rule.
	if ct.Quoted("boundary") && !o.Lenient && ct.Type == MultipartMediaType {
		return nil, broken("RL-10", "quoted boundary")
	}
	var parts []body.Part
	for p, err := range ct.Parts(text) {
		switch {
		case err == nil && p.BadLine != "" && !o.Lenient:
			return nil, broken("RL-11", "part "+strconv.Itoa(len(parts))+" with header line "+strconv.Quote(p.BadLine))
		case err == nil:
			parts = append(parts, p)
		case errors.Is(err, body.ErrLimit):
			return nil, fmt.Errorf("%w: part %d: %w", ErrLimit, len(parts), err)
		case errors.Is(err, body.ErrOpen) && o.Lenient && len(parts) > 0:
		default:
			return nil, broken("RL-10", err.Error()+", boundary "+strconv.Quote(boundary))
		}
	}
	return parts, nil
}

func unbracket(s string) (string, bool) {
	if len(s) > 2 && s[0] == '<' && s[len(s)-1] == '>' {
		return s[1 : len(s)-1], true
	}
	return "", false
}
