package rlmi

import (
	"bytes"
	"strconv"
	"testing"
)

// members makes a list of n members, each with a name and a document of size
// bytes.
func members(n, size int) (*List, []Part) {
	l := &List{URI: "sip:friends@example.com", FullState: true, Names: []Name{{"en", "Friends"}}}
	parts := make([]Part, n)
	body := bytes.Repeat([]byte("x"), size)
	for i := range n {
		u := "user" + strconv.Itoa(i)
		cid := u + ".1@rls.example.com"
		l.Resources = append(l.Resources, Resource{
			URI: "sip:" + u + "@example.com", Names: []Name{{"", "User " + strconv.Itoa(i)}},
			Instances: []Instance{Active("i"+strconv.Itoa(i), cid)},
		})
		parts[i] = Part{cid, pidf, body}
	}
	return l, parts
}

func BenchmarkAppendMultipart(b *testing.B) {
	for _, n := range []int{50, 10000} {
		b.Run(strconv.Itoa(n)+"x540B", func(b *testing.B) {
			l, parts := members(n, 540)
			dst := AppendMultipart(nil, "bd8f1", "root@rls.example.com", l, parts)
			b.SetBytes(int64(len(dst)))
			b.ReportAllocs()
			for b.Loop() {
				dst = AppendMultipart(dst[:0], "bd8f1", "root@rls.example.com", l, parts)
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/op")
		})
	}
}

func BenchmarkAppendList(b *testing.B) {
	l, _ := members(10000, 0)
	dst := AppendList(nil, l)
	b.SetBytes(int64(len(dst)))
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendList(dst[:0], l)
	}
}

func BenchmarkParse(b *testing.B) {
	for _, n := range []int{50, 10000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			l, parts := members(n, 540)
			ct := ContentType("bd8f1", "root@rls.example.com")
			body := AppendMultipart(nil, "bd8f1", "root@rls.example.com", l, parts)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(ct, body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The hot path allocates nothing when dst is large enough.
func TestAppendAllocs(t *testing.T) {
	l, parts := members(50, 540)
	dst := AppendMultipart(nil, "bd8f1", "root@rls.example.com", l, parts)
	if n := testing.AllocsPerRun(100, func() {
		dst = AppendMultipart(dst[:0], "bd8f1", "root@rls.example.com", l, parts)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		dst = AppendContentType(dst[:0], "bd8f1", "root@rls.example.com")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
