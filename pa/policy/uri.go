package policy

import (
	"strings"

	"rollcall/sip"
)

// identityKey brings an identity in a rule into the form of Request.Watcher.
// What is no URI we know, such as mailto, is compared as it is written.
func identityKey(uri string) string {
	uri = strings.TrimSpace(uri)
	if u, err := sip.ParseURI(uri); err == nil {
		return u.Key()
	}
	return uri
}

// equivalent reports whether two URIs mean the same by the rules of their
// scheme.
func equivalent(a, b string) bool {
	if a == b {
		return true
	}
	u, err1 := sip.ParseURI(a)
	v, err2 := sip.ParseURI(b)
	if err1 == nil && err2 == nil {
		return u.Equal(v)
	}
	return normalURN(a) == normalURN(b)
}

// normalURN puts the scheme of a URI, the namespace of a URN (RFC 8141, 3.1)
// and a UUID (RFC 9562, 4) into lower case.
func normalURN(s string) string {
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok {
		return s
	}
	scheme = strings.ToLower(scheme)
	if nid, nss, ok := strings.Cut(rest, ":"); ok && scheme == "urn" {
		nid = strings.ToLower(nid)
		if nid == "uuid" {
			nss = strings.ToLower(nss)
		}
		rest = nid + ":" + nss
	}
	return scheme + ":" + rest
}
