package sip_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	other "github.com/emiago/sipgo/sip"

	"rollcall/sip"
)

// difference is a fact that two parsers do not agree on.
type difference struct{ fact, ours, theirs string }

// compared is a message that both parsers accepted.
type compared struct {
	ours   *sip.Message
	theirs other.Message
	head   string // start line and header fields as they were sent
}

// bothAccept reads a datagram with both parsers.
func bothAccept(raw []byte) (c compared, ok bool) {
	m := new(sip.Message)
	if m.Parse(bytes.Clone(raw), false) != nil {
		return c, false
	}
	o, err := other.ParseMessage(bytes.Clone(raw))
	if err != nil {
		return c, false
	}
	head := raw[:len(raw)-len(raw[sip.SkipLineEnds(raw):])+len(m.Raw)-len(m.Body())]
	return compared{m, o, string(head)}, true
}

// differences compares what both say.
func (c compared) differences() (all []difference) {
	add := func(fact, ours, theirs string) {
		if ours != theirs {
			all = append(all, difference{fact, ours, theirs})
		}
	}
	m := c.ours
	switch o := c.theirs.(type) {
	case *other.Request:
		add("status", strconv.Itoa(m.Status()), "0")
		add("method", string(m.MethodToken()), string(o.Method))
		all = append(all, uriDifferences("Request-URI", string(m.RequestURI()), &o.Recipient)...)
	case *other.Response:
		add("status", strconv.Itoa(m.Status()), strconv.Itoa(o.StatusCode))
	}
	o := c.theirs
	if o.CallID() == nil || o.CSeq() == nil || o.From() == nil || o.To() == nil || o.Via() == nil {
		return append(all, difference{"fields", "all there", "not all there"})
	}
	add("Call-ID", string(m.CallID()), string(*o.CallID()))
	add("CSeq", fmt.Sprint(m.CSeq(), " ", string(m.MethodToken())), fmt.Sprint(o.CSeq().SeqNo, " ", string(o.CSeq().MethodName)))
	all = append(all, uriDifferences("From", string(m.From().URI), &o.From().Address)...)
	all = append(all, uriDifferences("To", string(m.To().URI), &o.To().Address)...)
	add("From tag", string(m.From().Tag()), param(o.From().Params, "tag"))
	add("To tag", string(m.To().Tag()), param(o.To().Params, "tag"))
	v, w := m.Via(), o.Via()
	add("Via transport", string(v.Transport), w.Transport)
	add("Via host", string(v.Host), w.Host)
	add("Via port", strconv.Itoa(int(v.Port)), strconv.Itoa(w.Port))
	add("Via branch", string(v.Branch), param(w.Params, "branch"))
	add("Via received", string(v.Received), param(w.Params, "received"))
	add("Via rport", fmt.Sprint(v.HasRPort, " ", string(v.RPort)), fmt.Sprint(hasParam(w.Params, "rport"), " ", param(w.Params, "rport")))
	n := 0
	for range m.Values(sip.HdrVia) {
		n++
	}
	add("number of Via", strconv.Itoa(n), strconv.Itoa(len(o.GetHeaders("Via"))))
	add("body", string(m.Body()), string(o.Body()))
	return all
}

// uriDifferences compares by component where ParseURI takes the text, which is
// after Parse and may refuse it with another status.
func uriDifferences(what, ours string, o *other.Uri) (all []difference) {
	add := func(part, ours, theirs string) {
		if ours != theirs {
			all = append(all, difference{what + " " + part, ours, theirs})
		}
	}
	scheme, rest, _ := strings.Cut(ours, ":")
	if o.Scheme != "sip" && o.Scheme != "sips" {
		add("scheme", strings.ToLower(scheme), o.Scheme)
		add("text", rest, o.Raw())
		return all
	}
	u, err := sip.ParseURI(ours)
	if err != nil {
		return nil
	}
	add("scheme", u.Scheme, o.Scheme)
	add("user", u.User, o.User)
	add("password", u.Password, o.Password)
	add("host", u.Host, strings.Trim(o.Host, "[]"))
	add("port", strconv.Itoa(int(u.Port)), strconv.Itoa(o.Port))
	add("params", pairs(u.Params, ";"), list(o.UriParams))
	add("headers", pairs(u.Headers, "&"), list(o.Headers))
	return all
}

func pairs(s, sep string) string {
	if s == "" {
		return ""
	}
	var b strings.Builder
	for p := range strings.SplitSeq(s, sep) {
		n, v, _ := strings.Cut(p, "=")
		fmt.Fprintf(&b, "%q=%q ", n, v)
	}
	return b.String()
}

func list(p other.HeaderParams) string {
	var b strings.Builder
	for _, kv := range p {
		fmt.Fprintf(&b, "%q=%q ", kv.K, kv.V)
	}
	return b.String()
}

// param finds a parameter of theirs without regard to case and white space,
// which their user has to do by himself.
func param(p other.HeaderParams, name string) string {
	for _, kv := range p {
		if strings.EqualFold(strings.Trim(kv.K, " \t"), name) {
			return strings.Trim(kv.V, " \t")
		}
	}
	return ""
}

func hasParam(p other.HeaderParams, name string) bool {
	return slices.ContainsFunc(p, func(kv other.HeaderKV) bool { return strings.EqualFold(strings.Trim(kv.K, " \t"), name) })
}

// known are the differences there may be. In each we keep to the RFC, or to
// the leniency named in the package's documentation. example shows it in one
// message: lines that replace or follow those of an ordinary request.
var known = []struct {
	reason  string
	example []string
	is      func(c compared, d difference) bool
}{
	{
		"methods are case-sensitive (RFC 3261 section 7.1), theirs are in upper case",
		[]string{"subscribe sip:a@example.com SIP/2.0", "CSeq: 1 subscribe"},
		func(_ compared, d difference) bool { return d.fact == "method" && strings.ToUpper(d.ours) == d.theirs },
	},
	{
		"a bare line feed ends a line for us (lenient), and is an octet like others for them",
		[]string{"Subject: x\nVia: SIP/2.0/UDP 192.0.2.9"},
		func(c compared, _ difference) bool {
			return strings.Contains(strings.ReplaceAll(c.head, "\r\n", ""), "\n")
		},
	},
	{
		"white space around an addr-spec does not belong to it (SEMI, LAQUOT and RAQUOT of RFC 3261 section 25.1)",
		[]string{"To: sip:alice@example.com ;x"},
		func(_ compared, d difference) bool {
			what, part, _ := strings.Cut(d.fact, " ")
			return (what == "From" || what == "To") && part != "tag" && d.ours == strings.Trim(d.theirs, " \t")
		},
	},
	{
		"there is no // after the scheme: a user part may start with slashes (user-unreserved, RFC 3261 section 25.1)",
		[]string{"SUBSCRIBE sip://a@example.com SIP/2.0"},
		func(_ compared, d difference) bool {
			return strings.HasSuffix(d.fact, " user") && strings.TrimPrefix(d.ours, "//") == d.theirs
		},
	},
	{
		"a bracket before @ belongs to the user part (lenient); they take it for an IPv6 reference",
		[]string{"SUBSCRIBE sip:a[::1]@example.com SIP/2.0"},
		func(c compared, d difference) bool {
			before, _, at := strings.Cut(c.uriOf(d), "@")
			return at && strings.Contains(before, "[")
		},
	},
	{
		"the password starts at the first colon; they take the last (neither part may hold one, RFC 3261 section 25.1)",
		[]string{"SUBSCRIBE sip:a:b:c@example.com SIP/2.0"},
		func(c compared, d difference) bool {
			before, _, at := strings.Cut(c.uriOf(d), "@")
			return at && strings.Count(before, ":") > 2 && (strings.HasSuffix(d.fact, " user") || strings.HasSuffix(d.fact, " password"))
		},
	},
	{
		"parameters and headers of a URI without a name are nothing (lenient); they make names of the separators",
		[]string{"SUBSCRIBE sip:a@example.com;;lr; SIP/2.0"},
		func(_ compared, d difference) bool {
			return (strings.HasSuffix(d.fact, " params") || strings.HasSuffix(d.fact, " headers")) && strings.Contains(d.ours, `""=`)
		},
	},
	{
		"several spaces may stand before the method of CSeq (LWS of RFC 3261 section 25.1)",
		[]string{"CSeq: 7  SUBSCRIBE"},
		func(c compared, d difference) bool {
			return d.fact == "CSeq" && d.ours == strings.Join(strings.Fields(d.theirs), " ")
		},
	},
	{
		"a URI parameter that is there twice, which RFC 3261 section 19.1.1 forbids, stays for us and is one for them",
		[]string{"SUBSCRIBE sip:a@example.com;x;x SIP/2.0"},
		func(c compared, d difference) bool {
			u, err := sip.ParseURI(c.uriOf(d))
			if text := u.Params; err == nil && (strings.HasSuffix(d.fact, " params") || strings.HasSuffix(d.fact, " headers")) {
				sep := ";"
				if strings.HasSuffix(d.fact, " headers") {
					text, sep = u.Headers, "&"
				}
				seen := make(map[string]bool)
				for p := range strings.SplitSeq(text, sep) {
					name, _, _ := strings.Cut(p, "=")
					if seen[name] {
						return true
					}
					seen[name] = true
				}
			}
			return false
		},
	},
	{
		"a ? ends a URI parameter that has no value, too (RFC 3261 section 25.1)",
		[]string{"SUBSCRIBE sip:a@example.com;lr?a=b SIP/2.0"},
		func(c compared, d difference) bool {
			u, _, q := strings.Cut(c.uriOf(d), "?")
			return q && strings.HasSuffix(d.fact, " params") && !strings.Contains(u[strings.LastIndexByte(u, ';')+1:], "=")
		},
	},
	{
		"a quoted string may hold separators (RFC 3261 section 25.1); they split it",
		[]string{`From: <sip:bob@example.org>;tag=b1;x=";tag=9"`},
		func(c compared, d difference) bool { return strings.Contains(c.paramsOf(d), `"`) },
	},
	{
		"a parameter's value starts after the first =; they take the last (a token holds none, RFC 3261 section 25.1)",
		[]string{"From: <sip:bob@example.org>;tag=b=1"},
		func(c compared, d difference) bool {
			return strings.HasSuffix(d.fact, " tag") && strings.Contains(d.ours, "=")
		},
	},
	{
		"white space around the slashes and the colon and before the parameters of a Via (SLASH, COLON, SEMI of RFC 3261 section 25.1)",
		[]string{"Via: SIP/2.0/ UDP 192.0.2.1 : 5070;branch=z9hG4bKabc"},
		func(c compared, d difference) bool {
			return strings.HasPrefix(d.fact, "Via ") && strings.ContainsAny(c.topVia(), " \t")
		},
	},
	{
		"a comma separates Via values without parameters, too (RFC 3261 section 7.3.1)",
		[]string{"Via: SIP/2.0/UDP 192.0.2.1, SIP/2.0/UDP 192.0.2.9"},
		func(c compared, d difference) bool {
			if !strings.Contains(d.fact, "Via") {
				return false
			}
			for v := range c.ours.Headers(sip.HdrVia) {
				for i := bytes.IndexByte(v, ','); i >= 0; i = bytes.IndexByte(v, ',') {
					if !bytes.Contains(v[:i], []byte{';'}) {
						return true
					}
					v = v[i+1:]
				}
			}
			return false
		},
	},
	{
		"only SP and HTAB are white space (LWS of RFC 3261 section 25.1); theirs is that of Unicode",
		[]string{"Call-ID: c1\u00a0"},
		func(_ compared, d difference) bool {
			return d.ours != strings.TrimSpace(d.ours) && strings.TrimSpace(d.ours) == strings.TrimSpace(d.theirs)
		},
	},
}

// uriOf is the URI that a difference is about.
func (c compared) uriOf(d difference) string {
	switch what, _, _ := strings.Cut(d.fact, " "); what {
	case "Request-URI":
		return string(c.ours.RequestURI())
	case "From":
		return string(c.ours.From().URI)
	case "To":
		return string(c.ours.To().URI)
	}
	return ""
}

// paramsOf are the header parameters that a difference is about.
func (c compared) paramsOf(d difference) string {
	switch what, part, _ := strings.Cut(d.fact, " "); {
	case what == "From" && part == "tag":
		return string(c.ours.From().Params)
	case what == "To" && part == "tag":
		return string(c.ours.To().Params)
	case what == "Via":
		return string(c.ours.Via().Params)
	case d.fact == "number of Via":
		var b strings.Builder
		for v := range c.ours.Headers(sip.HdrVia) {
			b.Write(v)
		}
		return b.String()
	}
	return ""
}

// topVia is the top Via up to its parameters without its one necessary space.
func (c compared) topVia() string {
	v, _, _ := strings.Cut(string(c.ours.Header(sip.HdrVia)), ";")
	v, _, _ = strings.Cut(v, ",")
	return strings.Replace(v, " ", "", 1)
}

// explained tells why a difference is all right, "" if nobody knows.
func explained(c compared, d difference) string {
	for _, k := range known {
		if k.is(c, d) {
			return k.reason
		}
	}
	return ""
}

func seeds(t testing.TB) (all [][]byte) {
	for _, pattern := range []string{"testdata/messages/*.sip", "testdata/torture/*.dat"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) < 49 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, b)
		}
	}
	return all
}

// FuzzDiffer: where an independent parser accepts a message too, both read the
// same out of it, but for the differences in known.
func FuzzDiffer(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	for _, k := range known {
		f.Add(example(k.example))
	}
	f.Fuzz(agree)
}

// FuzzDifferFields is FuzzDiffer with the changes where they matter.
func FuzzDifferFields(f *testing.F) {
	f.Add("sips:a:b@[2001:db8::1]:5061;transport=tcp;lr?a=b&c=d", "SIP/2.0/TCP [::1]:5061;rport;received=192.0.2.1;branch=z9hG4bK1,SIP/2.0/UDP h",
		`"B \" <" <sip:bob@example.org:5;x=y>;a="b";tag=1`, "sip:alice@example.com;tag=2", "c1@192.0.2.1", "007\tSUBSCRIBE", "Via : SIP / 2.0/UDP h;branch=z9hG4bK2")
	f.Add("tel:+1-201-555-0123;ext=1", "SIP/2.0/UDP h:5060 ; branch = x ; RPORT=7", "Bob B<sip:h;lr?a=b>;TAG = 1", "pres:alice@example.com", "x", "1 SUBSCRIBE", "l: 0")
	f.Fuzz(func(t *testing.T, uri, via, from, to, callID, cseq, last string) {
		agree(t, []byte("SUBSCRIBE "+uri+" SIP/2.0\r\nVia: "+via+"\r\nf: "+from+"\r\nTO:"+to+"\r\nCall-Id: "+callID+"\r\nCSeq: "+cseq+"\r\n"+last+"\r\n\r\nbody"))
	})
}

func agree(t *testing.T, raw []byte) {
	c, ok := bothAccept(raw)
	if !ok {
		return
	}
	for _, d := range c.differences() {
		if explained(c, d) == "" {
			t.Errorf("%s: we say %q, they say %q", d.fact, d.ours, d.theirs)
		}
	}
	if t.Failed() {
		t.Logf("in\n%q", c.head)
	}
}

// example is an ordinary request with some lines replaced or added.
func example(lines []string) []byte {
	msg := []string{
		"SUBSCRIBE sip:alice@example.com SIP/2.0", "Via: SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bKabc", "From: <sip:bob@example.org>;tag=b1",
		"To: <sip:alice@example.com>", "Call-ID: c1@192.0.2.1", "CSeq: 7 SUBSCRIBE",
	}
	for _, l := range lines {
		name, _, _ := strings.Cut(l, ":")
		i := slices.IndexFunc(msg, func(m string) bool { return strings.HasPrefix(m, name+":") })
		switch {
		case strings.HasSuffix(l, " SIP/2.0"):
			msg[0] = l
		case i > 0:
			msg[i] = l
		default:
			msg = append(msg, l)
		}
	}
	return []byte(strings.Join(msg, "\r\n") + "\r\n\r\n")
}

// TestKnownDifferences: each has an example in which it is the only one.
func TestKnownDifferences(t *testing.T) {
	for _, k := range known {
		raw := example(k.example)
		c, ok := bothAccept(raw)
		if !ok {
			t.Errorf("%s: not accepted by both\n%s", k.reason, raw)
			continue
		}
		all := c.differences()
		if len(all) == 0 {
			t.Errorf("%s: no difference in\n%s", k.reason, raw)
		}
		for _, d := range all {
			if got := explained(c, d); got != k.reason {
				t.Errorf("%s: %s is %q, theirs %q, explained by %q", k.reason, d.fact, d.ours, d.theirs, got)
			}
		}
	}
}
