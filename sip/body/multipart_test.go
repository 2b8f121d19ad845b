package body

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"
)

func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

func pidf(t string) bool { return t == "application/pidf+xml" }

const (
	pidfPart = "--b\nContent-Type: application/pidf+xml\n\n<presence/>\n"
	textPart = "--b\nContent-Type: text/plain\n\nhello\n"
	gifPart  = "--b\nContent-Type: image/gif\nContent-ID: <pic@example.com>\n\nGIF\n"
	end      = "--b--\n"
)

func TestParts(t *testing.T) {
	type part struct{ id, typ, encoding, body, bad string }
	for _, c := range []struct {
		name, contentType, body string
		want                    []part
		err                     error
	}{
		{"RFC 2046 section 5.1.1", "multipart/mixed; boundary=b", "preamble\n--b\n\nimplicit\n--b\nContent-type: text/plain; charset=us-ascii\n\nexplicit\n\n--b--\nepilogue\n--b\n\nno\n", []part{
			{"", "", "", "implicit", ""}, {"", "text/plain; charset=us-ascii", "", "explicit\n", ""},
		}, nil},
		{"header fields in any case, folded, of any kind", `multipart/related; boundary="b"`, "--b\nCONTENT-ID : <a@example.com>\ncontent-type:\n text/plain;\n\tx=y\nX: y\nContent-Transfer-Encoding:binary\n\nhi\n--b--", []part{
			{"<a@example.com>", "text/plain;\tx=y", "binary", "hi", ""},
		}, nil},
		{"the first of two header fields", "multipart/mixed;boundary=b", "--b\nContent-ID: 1\nContent-Id: 2\n\nx\n--b--\n", []part{{"1", "", "", "x", ""}}, nil},
		{"white space after the boundary", "multipart/mixed;boundary=b", "--b \t\n\nx\n--b-- \n", []part{{"", "", "", "x", ""}}, nil},
		{"a longer line is no delimiter", "multipart/mixed;boundary=b", "--b\n\n--bb\n --b\nx--b\n--b-\n--b--\n", []part{{"", "", "", "--bb\n --b\nx--b\n--b-", ""}}, nil},
		{"no body", "multipart/mixed;boundary=b", "--b\nContent-Type: text/plain\n--b\n--b--", []part{{"", "text/plain", "", "", ""}, {}}, nil},
		{"no empty line, as in RFC 4662 section 6 step 13", "multipart/mixed;boundary=b", "--b\nContent-Type: application/pidf+xml\n<presence/>\n--b--", []part{{"", "application/pidf+xml", "", "<presence/>", "<presence/>"}}, nil},
		{"a line that is no header field", "multipart/mixed;boundary=b", "--b\nhello\nContent-ID: x\n\ny\n--b--", []part{{"x", "", "", "y", "hello"}}, nil},
		{"no last delimiter", "multipart/mixed;boundary=b", "--b\n\none\n--b\n\ntwo\n", []part{{"", "", "", "one", ""}, {"", "", "", "two\n", ""}}, ErrOpen},
		{"no delimiter", "multipart/mixed;boundary=b", "hello", nil, ErrOpen},
		{"empty", "multipart/mixed;boundary=b", "", nil, ErrOpen},
		{"no part", "multipart/mixed;boundary=b", "--b--\n", nil, ErrNoParts},
		{"no boundary", "multipart/mixed", "--b\n\nx\n--b--", nil, ErrBoundary},
		{"empty boundary", `multipart/mixed;boundary=""`, "--\n\nx\n----", nil, ErrBoundary},
		{"boundary that is none", `multipart/mixed;boundary="a\"b"`, "--a\"b\n\nx\n--a\"b--", nil, ErrBoundary},
		{"boundary of 71", "multipart/mixed;boundary=" + strings.Repeat("b", 71), "", nil, ErrBoundary},
		{"boundary of 70 with spaces", `multipart/mixed;boundary="` + strings.Repeat("b ", 34) + `bb"`, "--" + strings.Repeat("b ", 34) + "bb\n\nx\n--" + strings.Repeat("b ", 34) + "bb--", []part{{"", "", "", "x", ""}}, nil},
		{"large header", "multipart/mixed;boundary=b", "--b\nX: " + strings.Repeat("x", maxHeader) + "\n\nx\n--b--", nil, ErrLimit},
	} {
		for _, ends := range []string{"\n", "\r\n"} {
			t.Run(c.name, func(t *testing.T) {
				m, err := ParseMedia(c.contentType)
				if err != nil {
					t.Fatal(err)
				}
				i := 0
				err = nil
				for p, e := range m.Parts([]byte(strings.ReplaceAll(c.body, "\n", ends))) {
					if err != nil {
						t.Fatal("something after an error")
					}
					if err = e; e != nil {
						continue
					}
					got := part{p.ID, p.Type, p.Encoding, strings.ReplaceAll(string(p.Body), "\r\n", "\n"), p.BadLine}
					if i >= len(c.want) || got != c.want[i] {
						t.Fatalf("part %d is %q", i, got)
					}
					i++
				}
				if i != len(c.want) || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
					t.Errorf("%d parts, %v; want %d, %v", i, err, len(c.want), c.err)
				}
			})
		}
	}
	t.Run("as many parts as may be", func(t *testing.T) {
		m, _ := ParseMedia("multipart/mixed;boundary=b")
		count := func(n int) (got int, err error) {
			for _, e := range m.Parts([]byte(strings.Repeat("--b\n\n", n) + "--b--")) {
				if err = e; e == nil {
					got++
				}
			}
			return got, err
		}
		if n, err := count(MaxParts); n != MaxParts || err != nil {
			t.Error(n, err)
		}
		if n, err := count(MaxParts + 1); n != MaxParts || !errors.Is(err, ErrLimit) {
			t.Error(n, err)
		}
	})
	t.Run("stops when told", func(t *testing.T) {
		m, _ := ParseMedia("multipart/mixed;boundary=b")
		for range m.Parts([]byte(textPart + textPart + end)) {
			break
		}
	})
}

func TestParseMedia(t *testing.T) {
	m, err := ParseMedia("Multipart / Related ; Type = \"application/rlmi+xml\";\r\n start=\"<a\\\"@b;c>\" ; boundary=x;empty; type=other;q=")
	if err != nil || m.Type != "multipart/related" {
		t.Fatalf("%+v %v", m, err)
	}
	for name, want := range map[string]string{"type": "application/rlmi+xml", "start": `<a"@b;c>`, "boundary": "x", "q": ""} {
		if v, ok := m.Param(name); !ok || v != want {
			t.Errorf("%s is %q %v", name, v, ok)
		}
		if m.Quoted(name) != (name == "type" || name == "start") {
			t.Errorf("%s quoted: %v", name, m.Quoted(name))
		}
	}
	if _, ok := m.Param("empty"); ok || m.Quoted("none") {
		t.Error("what is not there")
	}
	for _, s := range []string{"", " ", ";a=b", `text/plain;a="b`, `text/plain;a="b\"`, "text/plain" + manyParams(33)} {
		if m, err := ParseMedia(s); err == nil {
			t.Errorf("%q: %+v", s, m)
		}
	}
	if _, err := ParseMedia("text/plain" + manyParams(32)); err != nil {
		t.Error(err)
	}
}

func manyParams(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, ";p%d=x", i)
	}
	return b.String()
}

func TestFind(t *testing.T) {
	related := func(start string) string { return `multipart/related;type="application/pidf+xml";boundary=b` + start }
	rooted := "--b\nContent-Type: image/gif\nContent-ID: <pic@example.com>\n\nGIF\n--b\nContent-ID: <doc@example.com>\nContent-Type: application/pidf+xml\n\n<presence/>\n" + end
	nest := func(n int) (contentType, text string) {
		contentType, text = "application/pidf+xml", "<presence/>"
		for i := range n {
			b := fmt.Sprint("n", i)
			contentType, text = "multipart/mixed;boundary="+b, "--"+b+"\nContent-Type: "+contentType+"\n\n"+text+"\n--"+b+"--"
		}
		return contentType, text
	}
	deep, deepText := nest(MaxDepth)
	deeper, deeperText := nest(MaxDepth + 1)
	for _, c := range []struct {
		name, contentType, body string
		want                    string
		ok                      bool
	}{
		{"no multipart", "application/pidf+xml", "<presence/>", "<presence/>", true},
		{"no multipart, in another case, with parameters", "Application / PIDF+XML ; charset=UTF-8", "<presence/>", "<presence/>", true},
		{"another type", "text/plain", "hello", "", false},
		{"no type", "", "<presence/>", "", false},
		{"mixed: the first that will do", "multipart/mixed;boundary=b", textPart + pidfPart + "--b\nContent-Type: application/pidf+xml\n\n<second/>\n" + end, "<presence/>", true},
		{"mixed: none", "multipart/mixed;boundary=b", textPart + gifPart + end, "", false},
		{"mixed: no type is text/plain", "multipart/mixed;boundary=b", "--b\n\n<presence/>\n" + end, "", false},
		{"RFC 2046 section 5.1.7 unknown: as mixed", "multipart/x-new;boundary=b", textPart + pidfPart + end, "<presence/>", true},
		{"alternative: the last that will do", "multipart/alternative;boundary=b", pidfPart + "--b\nContent-Type: application/pidf+xml\n\n<second/>\n" + textPart + end, "<second/>", true},
		{"alternative: none", "multipart/alternative;boundary=b", textPart + end, "", false},
		{"related: the root", related(`;start="<doc@example.com>"`), rooted, "<presence/>", true},
		{"related: the root without angle brackets", related(`;start=doc@example.com`), rooted, "<presence/>", true},
		{"related: the first without a start", related(""), pidfPart + gifPart + end, "<presence/>", true},
		{"related: only the root", related(""), gifPart + pidfPart + end, "", false},
		{"related: another root", related(`;start="<pic@example.com>"`), rooted, "", false},
		{"related: no root", related(`;start="<none@example.com>"`), rooted, "", false},
		{"signed: the first", "multipart/signed;boundary=b", pidfPart + "--b\nContent-Type: application/pkcs7-signature\n\nxx\n" + end, "<presence/>", true},
		{"signed: nothing else", "multipart/signed;boundary=b", textPart + pidfPart + end, "", false},
		{"nested", "multipart/mixed;boundary=b", "--b\nContent-Type: multipart/alternative;boundary=c\n\n--c\n\nhello\n--c\nContent-Type: application/pidf+xml\n\n<presence/>\n--c--\n" + end, "<presence/>", true},
		{"nested as deep as may be", deep, deepText, "<presence/>", true},
		{"nested too deep", deeper, deeperText, "", false},
		{"quoted boundary", `multipart/mixed;boundary="b"`, pidfPart + end, "<presence/>", true},
		{"no last delimiter", "multipart/mixed;boundary=b", textPart + pidfPart, "<presence/>\n", true},
		{"8bit", "multipart/mixed;boundary=b", "--b\nContent-Type: application/pidf+xml\nContent-Transfer-Encoding: 8BIT\n\n<presence/>\n" + end, "<presence/>", true},
		{"base64", "multipart/mixed;boundary=b", "--b\nContent-Type: application/pidf+xml\nContent-Transfer-Encoding: base64\n\nPHByZXNlbmNlLz4=\n" + end, "", false},
		{"no boundary", "multipart/mixed", pidfPart + end, "", false},
	} {
		for _, ends := range []string{"\n", "\r\n"} {
			t.Run(c.name, func(t *testing.T) {
				typ, part, ok := Find(c.contentType, []byte(strings.ReplaceAll(c.body, "\n", ends)), pidf)
				if strings.ReplaceAll(string(part), "\r\n", "\n") != c.want || ok != c.ok || ok != (typ == "application/pidf+xml") {
					t.Errorf("got %q %q %v", typ, part, ok)
				}
			})
		}
	}
	if typ, part, ok := Find("multipart/mixed;boundary=b", []byte(pidfPart+end), func(t string) bool { return t == "multipart/mixed" }); !ok || typ != "multipart/mixed" || len(part) != len(pidfPart+end) {
		t.Error("a multipart that is wanted whole")
	}
}

// The MESSAGE of RFC 4475 section 3.1.1.11 has octets of all kinds in it.
func TestTortureMultipart(t *testing.T) {
	raw, err := os.ReadFile("../testdata/torture/mpart01.dat")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
	_, part, ok := Find("multipart/mixed;boundary=7a9cbec02ceef655", text, func(t string) bool { return t == "application/octet-stream" })
	if !ok || len(part) < 300 || part[0] != 0x30 || part[len(part)-1] != 0x05 || bytes.IndexByte(part, 0) < 0 {
		t.Errorf("%v %x", ok, part)
	}
}

// FuzzParts: parts lie within the body, in order and without a delimiter line,
// and written again they are read the same; Find gives what lies within and was accepted.
func FuzzParts(f *testing.F) {
	f.Add("multipart/mixed;boundary=b", []byte(crlf(textPart+pidfPart+gifPart+end)))
	f.Add(`multipart/related;boundary="b";start="<pic@example.com>"`, []byte("pre\n--b\nX: y\n z\n\n"+textPart+gifPart+end+"post"))
	f.Add("multipart/alternative;boundary=b", []byte("--b\nContent-Type: multipart/mixed;boundary=c\n\n--c\n\nhello\n--c--\n"+pidfPart))
	f.Add("multipart/signed;boundary=b", []byte("--b\nhello\n<x/>\n--b \n--b--"))
	files, _ := filepath.Glob("../../rls/rlmi/testdata/*.txt")
	for _, name := range files {
		if b, err := os.ReadFile(name); err == nil {
			boundary, _, _ := bytes.Cut(bytes.TrimPrefix(b, []byte("--")), []byte("\n"))
			f.Add("multipart/related;boundary="+strings.TrimSpace(string(boundary)), b)
		}
	}
	f.Fuzz(func(t *testing.T, contentType string, text []byte) {
		within := func(b []byte) int {
			if len(b) == 0 {
				return -1
			}
			at := uintptr(unsafe.Pointer(unsafe.SliceData(b))) - uintptr(unsafe.Pointer(unsafe.SliceData(text)))
			if at > uintptr(len(text)) || int(at)+len(b) > len(text) {
				t.Fatalf("%q lies outside", b)
			}
			return int(at)
		}
		asked := make(map[string]bool)
		typ, part, ok := Find(contentType, text, func(s string) bool {
			asked[s] = true
			return len(s)%2 == 0
		})
		if within(part); ok && (!asked[typ] || len(typ)%2 != 0) || !ok && (typ != "" || part != nil) {
			t.Fatalf("found %q, %q, %v", typ, part, ok)
		}
		for s := range asked {
			if s != strings.ToLower(s) || s == "" {
				t.Fatalf("asked about %q", s)
			}
		}
		m, err := ParseMedia(contentType)
		if err != nil {
			return
		}
		boundary, _ := m.Param("boundary")
		var out bytes.Buffer
		var parts []Part
		last := -1
		for p, e := range m.Parts(text) {
			if err != nil {
				t.Fatal("something after an error")
			}
			if err = e; e != nil {
				continue
			}
			if at := within(p.Body); at >= 0 {
				if at <= last {
					t.Fatal("parts out of order")
				}
				last = at
			}
			for line := range bytes.Lines(p.Body) {
				l, whole := bytes.CutSuffix(line, []byte("\n"))
				l = bytes.TrimRight(bytes.TrimSuffix(l, []byte("\r")), " \t")
				if whole && (string(l) == "--"+boundary || string(l) == "--"+boundary+"--") {
					t.Fatalf("delimiter within %q", p.Body)
				}
			}
			fmt.Fprintf(&out, "--%s\r\nContent-ID: %s\r\nContent-Type: %s\r\nContent-Transfer-Encoding: %s\r\n\r\n%s\r\n", boundary, p.ID, p.Type, p.Encoding, p.Body)
			parts = append(parts, p)
		}
		if len(parts) == 0 {
			return
		}
		fmt.Fprintf(&out, "--%s--\r\n", boundary)
		i := 0
		for p, e := range m.Parts(out.Bytes()) {
			q := parts[min(i, len(parts)-1)]
			if e != nil || i >= len(parts) || p.ID != q.ID || p.Type != q.Type || p.Encoding != q.Encoding || !bytes.Equal(p.Body, q.Body) {
				t.Fatalf("part %d is %+v, was %+v: %v", i, p, q, e)
			}
			i++
		}
		if i != len(parts) {
			t.Fatalf("%d parts became %d", len(parts), i)
		}
	})
}

func BenchmarkFind(b *testing.B) {
	plain := []byte("<presence/>")
	multi := []byte(crlf(textPart + pidfPart + end))
	for _, c := range []struct {
		name, contentType string
		body              []byte
	}{{"plain", "application/pidf+xml", plain}, {"mixed", "multipart/mixed;boundary=b", multi}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, ok := Find(c.contentType, c.body, pidf); !ok {
					b.Fatal()
				}
			}
		})
	}
}
