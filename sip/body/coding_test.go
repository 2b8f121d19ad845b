package body

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"strings"
	"testing"
)

const text = `<?xml version="1.0"?><presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:alice@example.com"><tuple id="t1"><status><basic>open</basic></status><note>here, here, here</note></tuple></presence>`

// The compressors of the standard library at their best, not those of Encode.
func zlibbed(s string) string {
	return compressed(s, func(w io.Writer) io.WriteCloser { z, _ := zlib.NewWriterLevel(w, 9); return z })
}

func bare(s string) string {
	return compressed(s, func(w io.Writer) io.WriteCloser { z, _ := flate.NewWriter(w, 9); return z })
}

func gzippedText(s string) string {
	return compressed(s, func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })
}

func compressed(s string, open func(io.Writer) io.WriteCloser) string {
	var b bytes.Buffer
	w := open(&b)
	io.WriteString(w, s)
	w.Close()
	return b.String()
}

func TestDecode(t *testing.T) {
	bomb := zlibbed(strings.Repeat("\x00", 64<<20))
	for _, c := range []struct {
		name, encoding, body string
		want                 string
		err                  error
	}{
		{"no coding", "", text, text, nil},
		{"CORE-05 identity", " Identity ", text, text, nil},
		{"CORE-05 deflate is zlib", "deflate", zlibbed(text), text, nil},
		{"CORE-05 deflate without its frame", "DEFLATE", bare(text), text, nil},
		{"stored blocks without a frame", "deflate", "\x01\x02\x00\xfd\xffab", "ab", nil},
		{"CORE-05 gzip", "gzip", gzippedText(text), text, nil},
		{"x-gzip", "x-gzip", gzippedText(text), text, nil},
		{"two members of gzip", "gzip", gzippedText("a") + gzippedText("b"), "ab", nil},
		{"a list is undone from its end", "deflate, gzip", gzippedText(zlibbed(text)), text, nil},
		{"a list the wrong way round", "gzip, deflate", gzippedText(zlibbed(text)), "", ErrMalformed},
		{"identity within a list", "gzip,identity,,deflate , identity", zlibbed(gzippedText(text)), text, nil},
		{"nothing compressed", "deflate", zlibbed(""), "", nil},
		{"an empty body, whatever it says", "br", "", "", nil},
		{"CORE-05 unknown", "br", text, "", ErrEncoding},
		{"CORE-05 compress is nothing we know", "compress", text, "", ErrEncoding},
		{"CORE-05 unknown in a list", "deflate, br", text, "", ErrEncoding},
		{"CORE-05 unknown first, not reached for nothing", "br, deflate", zlibbed(text), "", ErrEncoding},
		{"too many codings", "gzip,gzip,gzip,gzip,gzip", gzippedText(gzippedText(gzippedText(gzippedText(gzippedText("x"))))), "", ErrEncoding},
		{"four codings", "gzip,gzip,gzip,gzip", gzippedText(gzippedText(gzippedText(gzippedText("x")))), "x", nil},
		{"CORE-23 too large as it is", "", strings.Repeat("x", 1001), "", ErrTooLarge},
		{"as large as may be", "", strings.Repeat("x", 1000), strings.Repeat("x", 1000), nil},
		{"as large as may be when undone", "deflate", zlibbed(strings.Repeat("x", 1000)), strings.Repeat("x", 1000), nil},
		{"CORE-23 too large by one", "deflate", zlibbed(strings.Repeat("x", 1001)), "", ErrTooLarge},
		{"CORE-23 a bomb", "deflate", bomb, "", ErrTooLarge},
		{"CORE-23 a bomb in a gzip", "deflate, gzip", gzippedText(bomb), "", ErrTooLarge},
		{"not compressed at all", "deflate", text, "", ErrMalformed},
		{"not compressed at all", "gzip", text, "", ErrMalformed},
		{"cut off", "deflate", zlibbed(text)[:50], "", ErrMalformed},
		{"cut off without a frame", "deflate", bare(text)[:50], "", ErrMalformed},
		{"cut off in gzip", "gzip", gzippedText(text)[:50], "", ErrMalformed},
		{"one octet", "deflate", "\x78", "", ErrMalformed},
		{"bad checksum", "deflate", zlibbed(text)[:len(zlibbed(text))-1] + "\x00", "", ErrMalformed},
		{"with a dictionary", "deflate", "\x78\xbb\x00\x00\x00\x01\x00", "", ErrMalformed},
		{"something after the end", "deflate", zlibbed(text) + "x", "", ErrMalformed},
		{"something after the end without a frame", "deflate", bare(text) + "\r\n", "", ErrMalformed},
		{"something after the end of gzip", "gzip", gzippedText(text) + "x", "", ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 2 { // with readers that are used again
				got, err := Decode(c.encoding, []byte(c.body), 1000)
				if string(got) != c.want || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
					t.Fatalf("got %q %v, want %q %v", got, err, c.want, c.err)
				}
			}
		})
	}
	if b := []byte(text); &b[0] != func() *byte { got, _ := Decode("identity", b, 1000); return &got[0] }() {
		t.Error("identity was copied")
	}
	if _, err := Decode("deflate", []byte(zlibbed("x")), -5); !errors.Is(err, ErrTooLarge) {
		t.Errorf("negative limit: %v", err)
	}
}

func TestEncode(t *testing.T) {
	for _, coding := range []string{"deflate", "gzip", "identity", ""} {
		for _, s := range []string{"", "x", text, strings.Repeat(text, 100)} {
			got, err := Encode(coding, []byte("before"), []byte(s))
			if err != nil || !bytes.HasPrefix(got, []byte("before")) {
				t.Fatalf("%s: %v", coding, err)
			}
			back, err := Decode(coding, got[6:], 1<<20)
			if err != nil || string(back) != s {
				t.Errorf("%s of %d octets: %d octets, %v", coding, len(s), len(back), err)
			}
			if coding == "deflate" {
				if _, err := zlib.NewReader(bytes.NewReader(got[6:])); err != nil {
					t.Errorf("not the zlib format: %v", err)
				}
			}
		}
	}
	if got, err := Encode("br", []byte("before"), []byte(text)); string(got) != "before" || !errors.Is(err, ErrEncoding) {
		t.Errorf("unknown coding: %q %v", got, err)
	}
}

func TestChoose(t *testing.T) {
	for accept, want := range map[string]string{
		"":                                   "identity",
		" ":                                  "identity",
		"identity":                           "identity",
		"deflate":                            "deflate",
		"Deflate":                            "deflate",
		"gzip":                               "gzip",
		"x-gzip":                             "gzip",
		"gzip, deflate":                      "deflate",
		"gzip,deflate,identity":              "deflate",
		"deflate;q=0.5, gzip":                "gzip",
		"deflate;q=0.5, gzip;q=0.500":        "deflate",
		"deflate ; Q = 0.1 , gzip; q=0.101":  "gzip",
		"identity, gzip;q=0.5":               "identity",
		"gzip;q=0":                           "identity",
		"deflate;q=0.0, gzip;q=0.000":        "identity",
		"*":                                  "deflate",
		"*;q=0.5, gzip":                      "gzip",
		"*, deflate;q=0":                     "gzip",
		"*;q=0":                              "",
		"*;q=0, identity":                    "identity",
		"*;q=0, gzip;q=0.1":                  "gzip",
		"identity;q=0":                       "",
		"identity;q=0, br":                   "",
		"identity;q=0, gzip;q=0.001":         "gzip",
		"br":                                 "identity",
		"br, compress;q=1":                   "identity",
		"deflate;q=2":                        "identity",
		"deflate;q=1.001":                    "identity",
		"deflate;q=1.000":                    "deflate",
		"deflate;q=":                         "identity",
		"deflate;q=0.0001":                   "identity",
		"deflate;q=x, gzip":                  "gzip",
		"deflate;level=9;q=0.5, gzip;q=0.4,": "deflate",
	} {
		if got := Choose(accept); got != want {
			t.Errorf("%q: %q, want %q", accept, got, want)
		}
	}
}

// FuzzDecode: the limit holds whatever comes, what was encoded comes back, and
// the input stays as it is.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{text, "", zlibbed(text), bare(text), gzippedText(text), zlibbed(strings.Repeat("x", 5000))} {
		for _, e := range []string{"deflate", "gzip", "deflate, gzip", ""} {
			f.Add(e, []byte(s), uint16(1000))
		}
	}
	f.Fuzz(func(t *testing.T, encoding string, in []byte, limit uint16) {
		before := bytes.Clone(in)
		out, err := Decode(encoding, in, int(limit))
		switch {
		case !bytes.Equal(before, in):
			t.Fatal("input changed")
		case err == nil && len(out) > int(limit):
			t.Fatalf("%d octets, limit %d", len(out), limit)
		case err != nil && (out != nil || !errors.Is(err, ErrEncoding) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrMalformed)):
			t.Fatalf("%q %v", out, err)
		}
		if err == nil {
			if more, err := Decode(encoding, in, int(limit)+1000); err != nil || !bytes.Equal(more, out) {
				t.Fatalf("another limit: %q %v", more, err)
			}
		}
		for _, coding := range []string{"deflate", "gzip"} {
			b, err := Encode(coding, nil, in)
			if err != nil {
				t.Fatal(err)
			}
			if back, err := Decode(coding, b, len(in)); err != nil || !bytes.Equal(back, in) {
				t.Fatalf("%s: %v", coding, err)
			}
			if len(in) > 0 {
				if _, err := Decode(coding, b, len(in)-1); !errors.Is(err, ErrTooLarge) {
					t.Fatalf("%s with too small a limit: %v", coding, err)
				}
			}
		}
	})
}

// FuzzChoose: what is chosen is not forbidden.
func FuzzChoose(f *testing.F) {
	f.Add("deflate;q=0.5, gzip, *;q=0")
	f.Fuzz(func(t *testing.T, accept string) {
		got := Choose(accept)
		switch got {
		case "", "deflate", "gzip", "identity":
		default:
			t.Fatal(got)
		}
		if got != "" && Choose(accept+","+got) != got && !strings.Contains(accept, ",") {
			t.Fatalf("%q gives %s, and something else when that is named again", accept, got)
		}
		if never := Choose(accept + ",*;q=0,deflate;q=0,gzip;q=0,identity;q=0"); never != "" {
			t.Fatalf("everything is forbidden, and %q chosen", never)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for _, coding := range []string{"deflate", "gzip"} {
		in, _ := Encode(coding, nil, []byte(strings.Repeat(text, 5)))
		b.Run(coding, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(5 * len(text)))
			for b.Loop() {
				if _, err := Decode(coding, in, 64<<10); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	in := []byte(strings.Repeat(text, 5))
	for _, coding := range []string{"deflate", "gzip"} {
		b.Run(coding, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(in)))
			var buf []byte
			for b.Loop() {
				buf, _ = Encode(coding, buf[:0], in)
			}
			b.ReportMetric(float64(len(buf))/float64(len(in)), "size")
		})
	}
}

func BenchmarkChoose(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if Choose("deflate, gzip;q=0.5") != "deflate" {
			b.Fatal()
		}
	}
}
