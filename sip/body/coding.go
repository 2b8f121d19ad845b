package body

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
)

// AcceptEncoding is the header field value that says what Decode takes; it
// belongs into a 415 for ErrEncoding (RFC 3261 section 21.4.13) and into the
// answer to OPTIONS.
const AcceptEncoding = "deflate, gzip, identity"

// The errors of Decode and Encode, and the status each deserves.
var (
	ErrEncoding  = errors.New("body: content coding is not supported") // 415
	ErrTooLarge  = errors.New("body: too large")                       // 413
	ErrMalformed = errors.New("body: malformed")                       // 400
)

const maxCodings = 4 // in one Content-Encoding

// Decode undoes the codings of a Content-Encoding value, a list in the order
// in which they were applied: deflate, gzip, x-gzip and identity, in any case.
// What deflate means is settled by its first octets: the zlib format, as HTTP
// and RFC 3261 section 20.12 mean it, or bare RFC 1951, which some send.
//
// No result, also in between, has more than limit octets. Without anything to
// undo the result is body itself. An empty body is empty whatever encoding
// says: some clients repeat the field where there is no body any more. The error wraps
// ErrEncoding, ErrTooLarge or ErrMalformed; octets after the end of the
// compressed data are malformed.
func Decode(encoding string, body []byte, limit int) ([]byte, error) {
	if len(body) == 0 {
		return body, nil
	}
	limit = max(limit, 0)
	for n := 0; ; {
		var last string
		if i := strings.LastIndexByte(encoding, ','); i >= 0 {
			encoding, last = encoding[:i], encoding[i+1:]
		} else {
			encoding, last = "", encoding
		}
		coding := codingOf(last)
		switch {
		case coding == unknown || coding != identity && n == maxCodings:
			return nil, ErrEncoding
		case coding != identity:
			n++
			var err error
			if body, err = inflate(coding, body, limit); err != nil {
				return nil, err
			}
		case len(body) > limit:
			return nil, ErrTooLarge
		}
		if encoding == "" {
			return body, nil
		}
	}
}

type coding uint8

const (
	identity coding = iota
	deflated        // zlib, or bare
	gzipped
	unknown
)

func codingOf(name string) coding {
	switch name = strings.Trim(name, " \t"); {
	case name == "" || strings.EqualFold(name, "identity"):
		return identity
	case strings.EqualFold(name, "deflate"):
		return deflated
	case strings.EqualFold(name, "gzip") || strings.EqualFold(name, "x-gzip"):
		return gzipped
	}
	return unknown
}

// inflater has a reader of each kind once it was needed.
type inflater struct {
	src  bytes.Reader
	zlib io.ReadCloser
	bare io.ReadCloser
	gzip *gzip.Reader
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

func inflate(c coding, body []byte, limit int) ([]byte, error) {
	f := inflaters.Get().(*inflater)
	defer func() {
		f.src.Reset(nil) // the pool must not keep the message
		inflaters.Put(f)
	}()
	f.src.Reset(body)
	r, err := f.open(c, body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	out := make([]byte, 0, min(4*len(body), limit)+1)
	for {
		if len(out) > limit {
			return nil, ErrTooLarge
		}
		if len(out) == cap(out) {
			grown := make([]byte, len(out), min(2*cap(out), limit+1))
			copy(grown, out)
			out = grown
		}
		n, err := r.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
		switch {
		case err == io.EOF && len(out) <= limit && f.src.Len() > 0:
			return nil, fmt.Errorf("%w: octets after the compressed data", ErrMalformed)
		case err == io.EOF && len(out) <= limit:
			return out, nil
		case err != nil && err != io.EOF:
			return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
	}
}

// open resets the reader for a coding, or makes it.
func (f *inflater) open(c coding, body []byte) (r io.Reader, err error) {
	switch {
	case c == gzipped && f.gzip != nil:
		return f.gzip, f.gzip.Reset(&f.src)
	case c == gzipped:
		f.gzip, err = gzip.NewReader(&f.src)
		return f.gzip, err
	// A bare stream could begin like this only with a stored block whose
	// padding is not zero, which nobody writes.
	case len(body) >= 2 && body[0]&0x0f == 8 && (uint(body[0])<<8|uint(body[1]))%31 == 0:
		if f.zlib != nil {
			return f.zlib, f.zlib.(zlib.Resetter).Reset(&f.src, nil)
		}
		f.zlib, err = zlib.NewReader(&f.src)
		return f.zlib, err
	}
	if f.bare != nil {
		return f.bare, f.bare.(flate.Resetter).Reset(&f.src, nil)
	}
	f.bare = flate.NewReader(&f.src)
	return f.bare, nil
}

// deflater is an io.Writer to a slice with the compressors that write to it.
type deflater struct {
	dst  []byte
	zlib *zlib.Writer
	gzip *gzip.Writer
}

func (d *deflater) Write(p []byte) (int, error) {
	d.dst = append(d.dst, p...)
	return len(p), nil
}

var deflaters = sync.Pool{New: func() any { return new(deflater) }}

// Encode appends body to dst in one coding: deflate (the zlib format), gzip, or
// identity. The error is ErrEncoding for any other name.
func Encode(encoding string, dst, body []byte) ([]byte, error) {
	c := codingOf(encoding)
	switch c {
	case identity:
		return append(dst, body...), nil
	case unknown:
		return dst, ErrEncoding
	}
	d := deflaters.Get().(*deflater)
	d.dst = dst
	var w io.WriteCloser
	if c == gzipped {
		if d.gzip == nil {
			d.gzip, _ = gzip.NewWriterLevel(d, gzip.BestSpeed)
		} else {
			d.gzip.Reset(d)
		}
		w = d.gzip
	} else {
		if d.zlib == nil {
			d.zlib, _ = zlib.NewWriterLevel(d, zlib.BestSpeed)
		} else {
			d.zlib.Reset(d)
		}
		w = d.zlib
	}
	w.Write(body) // a slice takes everything
	w.Close()
	dst, d.dst = d.dst, nil
	deflaters.Put(d)
	return dst, nil
}

// Choose picks the coding to send to a peer with this Accept-Encoding: of
// deflate, gzip and identity the one with the highest q, in this order among
// equals, where identity comes last if it is not named. An empty or missing
// field means identity (RFC 3261 section 20.2). The result is "" when the peer
// forbids all three, as "identity;q=0" and "*;q=0" do. Items that cannot be
// read are ignored.
func Choose(acceptEncoding string) string {
	q := [3]int{-1, -1, -1} // thousandths of deflate, gzip and identity; -1 is not named
	const idn = 2
	others := -1
	for item := range strings.SplitSeq(acceptEncoding, ",") {
		name, params, _ := strings.Cut(item, ";")
		name = strings.Trim(name, " \t")
		v, ok := quality(params)
		if name == "" || !ok {
			continue
		}
		switch {
		case name == "*":
			others = v
		case codingOf(name) == deflated:
			q[0] = v
		case codingOf(name) == gzipped:
			q[1] = v
		case codingOf(name) == identity:
			q[idn] = v
		}
	}
	best, bestQ := "", 0
	for i, name := range [...]string{"deflate", "gzip", "identity"} {
		v := q[i]
		switch {
		case v < 0 && others >= 0:
			v = others
		case v < 0 && i == idn && bestQ == 0:
			return name
		}
		if v > bestQ {
			best, bestQ = name, v
		}
	}
	return best
}

// quality reads the q parameter in thousandths, 1000 if there is none.
func quality(params string) (q int, ok bool) {
	for p := range strings.SplitSeq(params, ";") {
		name, v, _ := strings.Cut(p, "=")
		if !strings.EqualFold(strings.Trim(name, " \t"), "q") {
			continue
		}
		v = strings.Trim(v, " \t")
		if v == "" || v[0] != '0' && v[0] != '1' || len(v) > 1 && v[1] != '.' || len(v) > 5 {
			return 0, false
		}
		q = int(v[0]-'0') * 1000
		for i, unit := 2, 100; i < len(v); i, unit = i+1, unit/10 {
			if v[i] < '0' || v[i] > '9' {
				return 0, false
			}
			q += int(v[i]-'0') * unit
		}
		return q, q <= 1000
	}
	return 1000, true
}
