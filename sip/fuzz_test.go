package sip

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"unsafe"
)

func seedMessages(f *testing.F) [][]byte {
	var seeds [][]byte
	for _, pattern := range []string{"testdata/messages/*.sip", "testdata/torture/*.dat"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			seeds = append(seeds, b)
		}
	}
	return append(seeds, []byte(subscribe768), []byte(request(map[string]string{"Via": "SIP / 2.0 / UDP [::1] : 1 ; rport , SIP/2.0/TCP b"})))
}

// facts is everything the accessors say, as text. It fails when something
// lies outside Raw.
func facts(t *testing.T, m *Message) (all []string) {
	base := uintptr(unsafe.Pointer(unsafe.SliceData(m.Raw)))
	add := func(what string, b []byte) {
		if len(b) > 0 {
			p := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
			if p < base || p+uintptr(len(b)) > base+uintptr(len(m.Raw)) {
				t.Fatalf("%s lies outside Raw: %q", what, b)
			}
		}
		all = append(all, what+"="+string(b))
	}
	add("method", m.MethodToken())
	add("uri", m.RequestURI())
	add("reason", m.Reason())
	add("body", m.Body())
	for _, n := range []*NameAddr{m.From(), m.To()} {
		add("display", n.Display)
		add("address", n.URI)
		add("params", n.Params)
		add("tag", n.Tag())
	}
	v := m.Via()
	add("transport", v.Transport)
	add("host", v.Host)
	add("branch", v.Branch)
	add("received", v.Received)
	add("rport", v.RPort)
	add("maddr", v.Maddr)
	add("via params", v.Params)
	for id := HdrOther; id < hdrCount; id++ {
		add(id.String(), m.Header(id))
		if (m.Header(id) != nil) != m.Has(id) {
			t.Fatalf("%v: Has and Header disagree", id)
		}
		for b := range m.Headers(id) {
			add("field", b)
		}
		for b := range m.Values(id) {
			add("item", b)
		}
		m.Uint(id)
	}
	for i := range m.n {
		f := m.field(i)
		add(string(m.Raw[f.name:f.nameEnd]), m.Raw[f.value:f.end])
	}
	mt, params := m.ContentType()
	add("media type", mt)
	add("media params", params)
	pkg, id, params := m.Event()
	add("event", pkg)
	add("event id", id)
	add("event params", params)
	add("subject", m.Other("Subject"))
	return append(all, m.Method().String(), string(rune(m.Status())), string(rune(m.CSeq()&0xffff)), string(rune(v.Port)))
}

func sameFacts(t *testing.T, what string, a, b []string) {
	t.Helper()
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Fatalf("%s: %q became %q", what, a[i], b[i])
		}
	}
	if len(a) != len(b) {
		t.Fatalf("%s: %d facts became %d", what, len(a), len(b))
	}
}

// FuzzParse: accessors stay within Raw; a message that is parsed, written out
// again field by field and parsed again says the same, so does a second Parse
// of Raw; Parse and FrameLen agree; a response can be made and read.
func FuzzParse(f *testing.F) {
	for _, s := range seedMessages(f) {
		f.Add(s, false)
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, in []byte, stream bool) {
		m := new(Message)
		err := m.Parse(bytes.Clone(in), stream)
		first := facts(t, m)
		var pe *ParseError
		if err != nil && (!errors.As(err, &pe) || pe.Code == 0 || pe.Reason == "") {
			t.Fatalf("error %v", err)
		}
		if stream {
			n, ferr := FrameLen(in)
			if err == nil && (ferr != nil || n != SkipLineEnds(in)+len(m.Raw)) {
				t.Fatalf("FrameLen %d %v, Parse %d", n, ferr, SkipLineEnds(in)+len(m.Raw))
			}
			if ferr != nil && err == nil {
				t.Fatalf("FrameLen %v, Parse well", ferr)
			}
		}
		if m.IsRequest() && (err == nil || pe.Answerable) {
			m.Flow.Remote = netip.MustParseAddrPort("192.0.2.1:40000")
			out := AppendBody(AppendResponse(nil, m, 200, "", "t1"), "", nil)
			r := new(Message)
			rerr := r.Parse(out, true)
			if err == nil && rerr != nil {
				t.Fatalf("response: %v\n%q", rerr, out)
			}
			if err == nil && (string(r.CallID()) != string(m.CallID()) || r.CSeq() != m.CSeq() || string(r.MethodToken()) != string(m.MethodToken()) ||
				string(r.Via().Branch) != string(m.Via().Branch) || string(r.Via().Host) != string(m.Via().Host) || r.To().Tag() == nil ||
				string(r.Via().Received) != "192.0.2.1" && string(m.Via().Host) != "192.0.2.1" || r.Via().HasRPort && string(r.Via().RPort) != "40000") {
				t.Fatalf("response %q", out)
			}
			if count(r, HdrVia) != count(m, HdrVia) {
				t.Fatalf("response has %d Via values, request %d", count(r, HdrVia), count(m, HdrVia))
			}
		}
		if err != nil {
			return
		}
		if stream && m.Header(HdrContentLength) == nil {
			t.Fatal("no Content-Length on a stream")
		}

		var out []byte
		out = append(out, m.Raw[:bytes.IndexByte(m.Raw, '\n')+1]...)
		for i := range m.n {
			f := m.field(i)
			out = append(out, m.Raw[f.name:f.nameEnd]...)
			out = append(out, ": "...)
			out = append(out, m.Raw[f.value:f.end]...)
			out = append(out, "\r\n"...)
		}
		out = append(out, "\r\n"...)
		out = append(out, m.Body()...)
		again := new(Message)
		if err := again.Parse(out, stream); err != nil {
			t.Fatalf("written again: %v\n%q", err, out)
		}
		sameFacts(t, "written again", first, facts(t, again))

		if err := m.Parse(m.Raw, stream); err != nil {
			t.Fatalf("parsed again: %v", err)
		}
		sameFacts(t, "parsed again", first, facts(t, m))
	})
}

func count(m *Message, h HeaderID) (n int) {
	for range m.Values(h) {
		n++
	}
	return n
}

// FuzzURI: String and ParseURI are inverse; a key is a URI and its own key;
// Equal is reflexive and symmetric, and what it finds equal has the same key
// but for parameters.
func FuzzURI(f *testing.F) {
	seeds := []string{
		"sip:alice@example.com", "sips:a:b@[2001:db8::1]:5061;transport=tcp;lr?a=b&c=d", "pres:a@example.com", "im:a@example.com",
		"tel:+1-201-555-0123;ext=1.2;phone-context=+1-2", "sip:%61%2B%c3;x@h.;%6C%72;a=b", "sip:h;gr;x=[y]?z",
		"sip:a@b.example.com:5070", "sip:a@h.:1", "sip:a@h;ttl=1;a=1;a=2;A=%31", "sip:a@h?b=2&a=1", "sip:a@h?a=1&B=2",
	}
	for i, s := range seeds {
		f.Add(s, seeds[(i+1)%len(seeds)])
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		read := func(s string) (URI, bool) {
			checkPlain(t, s)
			u, err := ParseURI(s)
			if err != nil {
				if u != (URI{}) {
					t.Fatalf("error and %+v", u)
				}
				return u, false
			}
			v, err := ParseURI(u.String())
			if err != nil || v != u {
				t.Fatalf("%+v became %+v by %s, %v", u, v, u, err)
			}
			k := u.Key()
			ku, err := ParseURI(k)
			if err != nil {
				t.Fatalf("key %q: %v", k, err)
			}
			if again := ku.Key(); again != k {
				t.Fatalf("key %q became %q", k, again)
			}
			if !u.Equal(v) || !v.Equal(u) {
				t.Fatalf("%s does not equal itself", u)
			}
			return u, true
		}
		u, ok := read(a)
		v, ok2 := read(b)
		if !ok || !ok2 {
			return
		}
		equal := u.Equal(v)
		if v.Equal(u) != equal {
			t.Fatalf("%s equals %s: %v, the other way round: %v", u, v, equal, !equal)
		}
		if equal {
			if u.Scheme != "tel" {
				u.Params, v.Params = "", ""
			}
			if u.Key() != v.Key() {
				t.Fatalf("%s and %s are equal but their keys are %s and %s", a, b, u.Key(), v.Key())
			}
		}
	})
}

// FuzzFrame: a stream splits into the same messages whatever its chunks.
func FuzzFrame(f *testing.F) {
	for _, s := range seedMessages(f) {
		f.Add(s, []byte(subscribe768), uint16(100))
		f.Add([]byte("\r\n\r\n"+subscribe768), s, uint16(7))
	}
	f.Fuzz(func(t *testing.T, a, b []byte, chunk uint16) {
		stream := append(bytes.Clone(a), b...)
		split := func(step int) (ends []int, fault string) {
			start := 0
			for have := 0; have < len(stream); {
				have = min(have+step, len(stream))
				for {
					n, err := FrameLen(stream[start:have])
					if err != nil {
						return ends, err.Error()
					}
					if n == 0 {
						break
					}
					if n < 0 || start+n > have {
						t.Fatalf("frame of %d in %d octets", n, have-start)
					}
					start += n
					ends = append(ends, start)
				}
			}
			return ends, ""
		}
		whole, fault := split(len(stream) + 1)
		pieces, fault2 := split(int(chunk) + 1)
		if len(whole) != len(pieces) || fault != fault2 {
			t.Fatalf("whole: %v %q, in pieces of %d: %v %q", whole, fault, chunk+1, pieces, fault2)
		}
		for i := range whole {
			if whole[i] != pieces[i] {
				t.Fatalf("whole: %v, in pieces of %d: %v", whole, chunk+1, pieces)
			}
		}
	})
}
