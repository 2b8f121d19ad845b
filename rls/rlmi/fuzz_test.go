package rlmi

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// source makes values out of fuzzer bytes.
type source struct{ b []byte }

func (s *source) byte() byte {
	if len(s.b) == 0 {
		return 0
	}
	c := s.b[0]
	s.b = s.b[1:]
	return c
}

// text returns a string XML 1.0 can hold.
func (s *source) text() string {
	n := min(int(s.byte())%24, len(s.b))
	raw := string(s.b[:n])
	s.b = s.b[n:]
	return strings.Map(func(r rune) rune {
		if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r == utf8.RuneError || r == 0xFFFE || r == 0xFFFF {
			return 'x'
		}
		return r
	}, strings.ToValidUTF8(raw, "y"))
}

func (s *source) names() []Name {
	var out []Name
	for range s.byte() % 3 {
		out = append(out, Name{[]string{"", "en", "de-CH"}[s.byte()%3], s.text()})
	}
	return out
}

// notification makes a list that keeps the rules, with its parts.
func (s *source) notification(depth int) (*List, []Part) {
	l := &List{URI: "sip:" + s.text(), Version: uint32(s.byte()) << 24, FullState: s.byte()&1 == 0, Names: s.names()}
	var parts []Part
	part := func() string {
		cid := "p" + strconv.Itoa(len(parts)) + "@example.com"
		p := Part{CID: cid, ContentType: "text/plain", Body: []byte(s.text())}
		if depth > 0 && s.byte()&7 == 0 {
			inner, innerParts := s.notification(depth - 1)
			boundary := "in" + strconv.Itoa(depth)
			p.ContentType = ContentType(boundary, "root@example.com")
			p.Body = AppendMultipart(nil, boundary, "root@example.com", inner, innerParts)
		}
		parts = append(parts, p)
		return cid
	}
	for i := range int(s.byte() % 5) {
		r := Resource{URI: "sip:" + s.text() + strconv.Itoa(i), Names: s.names()}
		for j := range int(s.byte() % 3) {
			id := s.text() + strconv.Itoa(j)
			switch s.byte() % 3 {
			case 0:
				r.Instances = append(r.Instances, Active(id, part()))
			case 1:
				r.Instances = append(r.Instances, Pending(id))
			case 2:
				r.Instances = append(r.Instances, Terminated(id, "probation"))
			}
		}
		l.Resources = append(l.Resources, r)
	}
	return l, parts
}

// FuzzRoundTrip: what was written is read as it was, strictly.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("hello"))
	f.Add(bytes.Repeat([]byte{7, '<', '&', '\r', '\n', '-', '-', 'o', 3, 2, 1, 0}, 40))
	f.Add(bytes.Repeat([]byte{0}, 300))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &source{data}
		l, parts := s.notification(3)
		const boundary = "outer0"
		if BoundaryOccurs(boundary, parts) {
			t.Skip()
		}
		for _, p := range parts {
			if p.ContentType == "text/plain" && strings.Contains(string(p.Body), "--in") {
				t.Skip()
			}
		}
		n, err := Parse(ContentType(boundary, "root@example.com"), AppendMultipart(nil, boundary, "root@example.com", l, parts))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(n.List, l) {
			t.Fatalf("list %+v\nwant %+v", n.List, l)
		}
		if len(n.Parts) != len(parts) {
			t.Fatalf("%d parts, want %d", len(n.Parts), len(parts))
		}
		for i, p := range n.Parts {
			if p.CID != parts[i].CID || p.ContentType != parts[i].ContentType || !bytes.Equal(p.Body, parts[i].Body) {
				t.Fatalf("part %d %q\nwant %q", i, p, parts[i])
			}
			if _, nested := n.Nested[p.CID]; nested != strings.HasPrefix(p.ContentType, MultipartMediaType) {
				t.Fatalf("part %d nested: %v", i, nested)
			}
		}
	})
}

// FuzzParse: what is read strictly keeps the rules and survives being written;
// leniency reads no less.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/rfc4662-*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		line, _, _ := bytes.Cut(b, []byte("\n"))
		f.Add("multipart/related;boundary="+string(line[2:]), b)
		f.Add("multipart/signed;boundary=\""+string(line[2:])+"\"", b)
	}
	f.Add(ctype, []byte(head+bob+bPart+end))
	f.Add(ContentType("o", "r@example.com"), AppendMultipart(nil, "o", "r@example.com", friends(), friendsParts()))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		n, err := Parse(contentType, body)
		loose, looseErr := Options{Lenient: true}.Parse(contentType, body)
		if looseErr == nil && len(loose.Parts) > MaxParts {
			t.Fatalf("%d parts", len(loose.Parts))
		}
		if err != nil {
			return
		}
		if looseErr != nil {
			t.Fatalf("strictly readable, but leniently: %v", looseErr)
		}
		if err := n.List.Validate(); err != nil {
			t.Fatal(err)
		}
		const boundary = "outer0"
		if BoundaryOccurs(boundary, n.Parts) || n.Signed {
			return
		}
		again, err := Parse(ContentType(boundary, "fresh-root@example.com"), AppendMultipart(nil, boundary, "fresh-root@example.com", n.List, n.Parts))
		if err != nil {
			t.Fatalf("read, written, not read: %v", err)
		}
		if !reflect.DeepEqual(again.List, n.List) || len(again.Parts) != len(n.Parts) {
			t.Fatalf("read again %+v\nwant %+v", again.List, n.List)
		}
	})
}
