package rlmi

import (
	"bytes"
	"strconv"
	"unicode/utf8"
)

const (
	xmlHead  = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<list xmlns=\"" + Namespace + "\" uri=\""
	rlmiType = MediaType + ";charset=\"UTF-8\""
)

// AppendList appends the RLMI document of l, names before resources as the
// schema wants. It writes what it is given: use [List.Validate], or the
// constructors of [Instance], to be sure of the rules. No line of the result
// but the first begins with anything a string of l chose, so a boundary cannot
// occur in it.
func AppendList(dst []byte, l *List) []byte {
	dst = append(dst, xmlHead...)
	dst = appendEscaped(dst, l.URI)
	dst = append(dst, "\" version=\""...)
	dst = strconv.AppendUint(dst, uint64(l.Version), 10)
	if l.FullState {
		dst = append(dst, "\" fullState=\"true\""...)
	} else {
		dst = append(dst, "\" fullState=\"false\""...)
	}
	dst = appendAttr(dst, " cid=\"", l.CID)
	dst = append(dst, ">\n"...)
	dst = appendNames(dst, l.Names)
	for i := range l.Resources {
		r := &l.Resources[i]
		dst = append(dst, "<resource uri=\""...)
		dst = appendEscaped(dst, r.URI)
		if len(r.Names) == 0 && len(r.Instances) == 0 {
			dst = append(dst, "\"/>\n"...)
			continue
		}
		dst = append(dst, "\">"...)
		dst = appendNames(dst, r.Names)
		for j := range r.Instances {
			in := &r.Instances[j]
			dst = append(dst, "<instance id=\""...)
			dst = appendEscaped(dst, in.ID)
			dst = append(dst, "\" state=\""...)
			dst = appendEscaped(dst, in.State)
			dst = append(dst, '"')
			dst = appendAttr(dst, " reason=\"", in.Reason)
			dst = appendAttr(dst, " cid=\"", in.CID)
			dst = append(dst, "/>"...)
		}
		dst = append(dst, "</resource>\n"...)
	}
	return append(dst, "</list>"...)
}

func appendNames(dst []byte, names []Name) []byte {
	for i := range names {
		n := &names[i]
		if n.Lang == "" {
			dst = append(dst, "<name>"...)
		} else {
			dst = append(dst, "<name xml:lang=\""...)
			dst = appendEscaped(dst, n.Lang)
			dst = append(dst, "\">"...)
		}
		dst = appendEscaped(dst, n.Text)
		dst = append(dst, "</name>"...)
	}
	return dst
}

func appendAttr(dst []byte, open, value string) []byte {
	if value == "" {
		return dst
	}
	dst = append(dst, open...)
	dst = appendEscaped(dst, value)
	return append(dst, '"')
}

// special marks the bytes appendEscaped must look at: markup, controls and
// everything beyond ASCII.
var special = func() (t [256]bool) {
	for i := range t {
		t[i] = i < 0x20 || i >= 0x80
	}
	for _, c := range "&<>\"" {
		t[c] = true
	}
	return t
}()

// appendEscaped serves attribute values and text alike. Line ends become
// character references in text too, so that no string can start a line and
// with it imitate a boundary.
func appendEscaped(dst []byte, s string) []byte {
	from := 0
	for i := 0; i < len(s); {
		if !special[s[i]] {
			i++
			continue
		}
		var repl string
		size := 1
		switch c := s[i]; c {
		case '&':
			repl = "&amp;"
		case '<':
			repl = "&lt;"
		case '>':
			repl = "&gt;"
		case '"':
			repl = "&quot;"
		case '\t':
			repl = "&#9;"
		case '\n':
			repl = "&#10;"
		case '\r':
			repl = "&#13;"
		default:
			var r rune
			r, size = utf8.DecodeRuneInString(s[i:])
			if c >= utf8.RuneSelf && (r != utf8.RuneError || size > 1) && r != 0xFFFE && r != 0xFFFF {
				i += size
				continue
			}
			repl = "\uFFFD"
		}
		dst = append(dst, s[from:i]...)
		dst = append(dst, repl...)
		i += size
		from = i
	}
	return append(dst, s[from:]...)
}

// ContentType returns the Content-Type of a multipart made by
// [AppendMultipart] with the same boundary and rootCID (RFC 4662 section 5,
// RFC 2387). The boundary is a bare token, as some phones cannot read a quoted
// one.
func ContentType(boundary, rootCID string) string {
	return string(AppendContentType(make([]byte, 0, 72+len(boundary)+len(rootCID)), boundary, rootCID))
}

// AppendContentType appends what [ContentType] returns.
func AppendContentType(dst []byte, boundary, rootCID string) []byte {
	dst = append(dst, MultipartMediaType+";type=\""+MediaType+"\";start=\"<"...)
	dst = appendHeaderText(dst, rootCID)
	dst = append(dst, ">\";boundary="...)
	return append(dst, boundary...)
}

// AppendMultipart appends the multipart/related body: the RLMI document of l
// first, as the part rootCID, then the parts, each with Content-Transfer-
// Encoding, Content-ID and Content-Type, the bodies byte for byte
// (RFC 4662 section 7.3).
//
// The caller guarantees that boundary is a token of 1 to 70 characters
// (RFC 2045 section 5.1) which does not occur in any part (see
// [BoundaryOccurs]; l itself cannot hold it), that CIDs are globally unique
// addr-specs without quotes and without angle brackets (RFC 2392), and that
// each cid in l is the CID of one of parts.
func AppendMultipart(dst []byte, boundary, rootCID string, l *List, parts []Part) []byte {
	dst = appendPartHead(dst, boundary, rootCID, rlmiType)
	dst = AppendList(dst, l)
	for i := range parts {
		p := &parts[i]
		dst = append(dst, "\r\n"...)
		dst = appendPartHead(dst, boundary, p.CID, p.ContentType)
		dst = append(dst, p.Body...)
	}
	dst = append(dst, "\r\n--"...)
	dst = append(dst, boundary...)
	return append(dst, "--\r\n"...)
}

func appendPartHead(dst []byte, boundary, cid, contentType string) []byte {
	dst = append(dst, "--"...)
	dst = append(dst, boundary...)
	dst = append(dst, "\r\nContent-Transfer-Encoding: binary\r\nContent-ID: <"...)
	dst = appendHeaderText(dst, cid)
	dst = append(dst, ">\r\nContent-Type: "...)
	dst = appendHeaderText(dst, contentType)
	return append(dst, "\r\n\r\n"...)
}

// appendHeaderText keeps a value that came from elsewhere (the Content-Type of
// a remote NOTIFY, say) from starting a header field of its own.
func appendHeaderText(dst []byte, s string) []byte {
	at := len(dst)
	dst = append(dst, s...)
	for i, c := range dst[at:] {
		if c < 0x20 || c == 0x7F {
			dst[at+i] = ' '
		}
	}
	return dst
}

// BoundaryOccurs reports whether a delimiter line of boundary, or anything
// that starts like one, occurs in the body of a part.
func BoundaryOccurs(boundary string, parts []Part) bool {
	delim := append(append(make([]byte, 0, 80), "--"...), boundary...)
	for i := range parts {
		if bytes.Contains(parts[i].Body, delim) {
			return true
		}
	}
	return false
}
