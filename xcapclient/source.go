package xcapclient

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"unicode/utf8"
)

// Document is one version of an XCAP document. It is immutable.
type Document struct {
	Selector string
	Body     []byte
	ETag     string // without quotes; another ETag is another version
	Origin   string // the file or URL it came from, or "store"; for people
}

// Source has documents.
type Source interface {
	// Document returns the newest version known. errors.Is(err, fs.ErrNotExist) says that there is none; any other
	// error that it is not known.
	Document(ctx context.Context, selector string) (Document, error)
	// Selectors lists the documents of an application usage, sorted. A source that cannot list its documents gives
	// those that RFC 4826 names.
	Selectors(ctx context.Context, auid string) ([]string, error)
}

// Runner is a Source that notices changes. Run blocks until ctx ends and calls changed, from any goroutine and without
// waiting for an effect, with selectors whose document came, changed or went.
type Runner interface {
	Run(ctx context.Context, changed func(selectors []string)) error
}

// Refresher is a Source that can be made to look for changes now. It returns those that it found.
type Refresher interface {
	Refresh(ctx context.Context) (changed []string, err error)
}

// Plain is a Source whose Document gives plain values, for consumers that do not know this package.
type Plain struct{ Source }

// Document is Source.Document without its origin.
func (p Plain) Document(ctx context.Context, selector string) (body []byte, etag string, err error) {
	d, err := p.Source.Document(ctx, selector)
	return d.Body, d.ETag, err
}

// Selector names a document from decoded parts; without a user it is a global one (RFC 4825 6.2).
func Selector(auid, user, file string) string {
	if user == "" {
		return keep(auid) + "/global/" + keep(file)
	}
	return keep(auid) + "/users/" + keep(user) + "/" + keep(file)
}

// URL is the address of a document below an XCAP root (XC-01).
func URL(root, selector string) (string, error) {
	selector, err := normalize(selector)
	if err != nil {
		return "", err
	}
	segments := strings.Split(selector, "/")
	for i, s := range segments {
		segments[i] = url.PathEscape(decode(s))
	}
	return strings.TrimRight(root, "/") + "/" + strings.Join(segments, "/"), nil
}

var keeper = strings.NewReplacer("%", "%25", "/", "%2F")

func keep(segment string) string { return keeper.Replace(segment) }

// decode undoes the percent-encoding of one segment; what is none stays as it is.
func decode(segment string) string {
	if s, err := url.PathUnescape(segment); err == nil && utf8.ValidString(s) {
		return s
	}
	return segment
}

// maxSelector is in bytes; a longer one fits no file system and no sensible URI.
const maxSelector = 2048

// normalize gives a selector's one spelling. What cannot name a document is an error that is fs.ErrNotExist.
func normalize(selector string) (string, error) {
	bad := func() (string, error) {
		return "", fmt.Errorf("selector %.200q names no document: %w", selector, fs.ErrNotExist)
	}
	if len(selector) > maxSelector || !utf8.ValidString(selector) {
		return bad()
	}
	segments := strings.Split(selector, "/")
	for i, s := range segments {
		s = decode(s)
		if s == "" || s == "." || s == ".." || s == "~~" || strings.ContainsAny(s, "\x00\\") {
			return bad()
		}
		segments[i] = keep(s)
	}
	switch {
	case len(segments) >= 4 && segments[1] == "users":
	case len(segments) >= 3 && segments[1] == "global":
	default:
		return bad()
	}
	return strings.Join(segments, "/"), nil
}

// ContentTag is an ETag for a body that came without.
func ContentTag(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:12])
}
