package sip

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Where the requirements on messages are proved, in this package unless another
// one is named.
//
//	CORE-01  server TestTorture, dialog TestRefusals
//	CORE-02  TestSchemes, TestParseURI; server TestSchemes, TestTorture (unkscm, novelsc); dialog TestRefusals
//	CORE-03  dialog TestMergedRequest
//	CORE-04  dialog TestRefusals; server TestTorture (bext01)
//	CORE-05  sip/body TestDecode, TestFind; pa TestPublishBodies, TestPublishRefused; dialog TestRemoteNotifyRefused, TestRefusals
//	CORE-06  rls TestListRefused (421), server TestResourceKeys (Require of a list)
//	CORE-07  dialog TestSilentSource and its rig (no early 100)
//	CORE-08  TestAppendResponse, TestAppendResponseTag, FuzzParse, TestEndpointUDP; dialog TestSubscribe, TestRetransmittedSubscribe
//	CORE-09  TestBranchRoundTrip; dialog's rig, which checks each request that leaves
//	CORE-10  dialog TestSubscribe, TestRouteSet; the order of values TestLists
//	CORE-11, CORE-12, CORE-13  dialog TestSubscribe, TestNotifyRoute, TestRefresh, TestRefusals, its rig
//	CORE-14  server TestTorture (zeromf), dialog TestOptions
//	CORE-15  nowhere: nothing is forwarded, so the Route of a request means nothing to us
//	CORE-16  TestServerTransaction; dialog TestRetransmittedPublish; pa publish tests
//	CORE-17  TestClientTransactionTimers, TestClientTransactionErrors
//	CORE-18  TestLimits, TestEndpointUDP; dialog TestLargeNotify
//	CORE-19  TestAppendResponse, TestResponseFlow, TestEndpointResponseRouting
//	CORE-20  TestTortureStream, TestStreamNeedsContentLength, TestParseErrors, TestFrameLen, FuzzParse, FuzzFrame, TestEndpointTCPRefusals
//	CORE-21  TestWhiteSpaceAnywhere, TestLists, TestHeaderNames, TestParseRequest; server TestTorture (wsinv, longreq)
//	CORE-22  package sip/auth; dialog TestChallenged
//	CORE-23  TestLimits, TestParseErrors, TestFrameLen, TestEndpointTCPRefusals; sip/body TestDecode; pa TestPublishRefused
//	CORE-24  TestCancels; dialog TestCancel
//	CORE-25  dialog TestOptions; server TestUntrusted
//	CORE-26  TestURIEqual (each example of RFC 3261 section 19.1.4), TestURIKey, FuzzURI; server TestResourceKeys
//	NAT-01   TestAppendResponse, TestResponseFlow, TestEndpointResponseRouting
//	NAT-02   dialog's rig

// TestWhiteSpaceAnywhere is CORE-21: at each place where the grammar has SWS,
// a message with none, with spaces and folded in each way means the same.
func TestWhiteSpaceAnywhere(t *testing.T) {
	// ~ is SWS, which may be nothing and may fold; ^ is LWS, which is something
	// and may fold; | is HCOLON's white space before the colon, which does not fold.
	const template = "SUBSCRIBE sip:alice@example.com SIP/2.0\r\n" +
		"Via|:~SIP~/~2.0~/~UDP^[2001:db8::1]~:~5070~;~branch~=~z9hG4bKabc~;~rport~;~x~=~\"a,;b\"~,~SIP~/~2.0~/~TCP^h.example.com~;~branch~=~z9hG4bK2~\r\n" +
		"v|:~SIP/2.0/UDP^192.0.2.7~\r\n" +
		"From|:~\"Bob \\\"<\\\\\"~<sip:bob@example.org;x=y>~;~tag~=~b1~;~x~\r\n" +
		"t|:~sip:alice@example.com~;~x~=~\"y;tag=no\"~\r\n" +
		"Call-ID|:~c1@192.0.2.1~\r\n" +
		"CSeq|:~007^SUBSCRIBE~\r\n" +
		"Contact|:~<sip:a,b@[::1]:5060>~;~expires~=~60~,~B^C^<sip:b@h>~;~q~=~0.5~\r\n" +
		"Event|:~presence~;~id~=~a~\r\n" +
		"Supported|:~eventlist~,~,~gruu~\r\n" +
		"Content-Type|:~multipart~/~related~;~boundary~=~\"b\"~;~type~=~x~\r\n" +
		"Subscription-State|:~active~;~expires~=~5~\r\n" +
		"Expires|:~600~\r\n" +
		"L|:~4~\r\n" +
		"\r\nbody"
	meaning := func(m *Message) (all []string) {
		add := func(v ...any) { all = append(all, fmt.Sprintf("%q", v)) }
		v := m.Via()
		add(v.Transport, v.Host, v.Port, v.Branch, v.HasRPort, v.RPort, v.Received, v.Maddr)
		for _, n := range []*NameAddr{m.From(), m.To()} {
			x, ok := Param(n.Params, "X")
			add(n.Display, n.URI, n.Tag(), x, ok)
		}
		for s := range m.Values(HdrVia) {
			v, err := ParseVia(s)
			add(v.Transport, v.Host, v.Port, v.Branch, err)
		}
		for s := range m.Values(HdrContact) {
			n, err := ParseNameAddr(s)
			e, _ := Param(n.Params, "expires")
			q, _ := Param(n.Params, "q")
			add(strings.Join(strings.Fields(string(n.Display)), " "), n.URI, e, q, err)
		}
		for s := range m.Values(HdrSupported) {
			add(s)
		}
		pkg, id, _ := m.Event()
		add(pkg, id)
		mt, params := m.ContentType()
		b, _ := Param(params, "boundary")
		ty, _ := Param(params, "type")
		add(mt, b, ty)
		state, params := splitParams(m.Header(HdrSubscriptionState))
		e, _ := Param(params, "expires")
		add(state, e)
		expires, _, err := m.Uint(HdrExpires)
		add(expires, err, m.CallID(), m.CSeq(), m.MethodToken(), m.RequestURI(), m.Body())
		return all
	}
	fill := func(sws, lws, before string) string {
		return strings.NewReplacer("~", sws, "^", lws, "|", before).Replace(template)
	}
	want := meaning(parseText(t, fill("", " ", ""), true))
	folds := []string{" ", "\t", " \t ", "\r\n ", "\r\n\t", " \r\n ", "\t\r\n \t", "\n "}
	check := func(name, text string) {
		t.Helper()
		if n, err := FrameLen([]byte(text)); n != len(text) || err != nil {
			t.Errorf("%s: FrameLen %d of %d, %v", name, n, len(text), err)
		}
		m := new(Message)
		if err := m.Parse([]byte(text), true); err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
			return
		}
		if got := meaning(m); !slices.Equal(got, want) {
			for i := range got {
				if i >= len(want) || got[i] != want[i] {
					t.Errorf("%s: %s, want %s", name, got[i], want[i])
				}
			}
		}
	}
	for _, fold := range folds {
		check(fmt.Sprintf("%q everywhere", fold), fill(fold, fold, strings.NewReplacer("\r", "", "\n", "").Replace(fold)))
		for i := range template {
			if c := template[i]; c != '~' && c != '^' {
				continue
			}
			one := template[:i] + fold + template[i+1:]
			check(fmt.Sprintf("%q after %q", fold, template[max(0, i-10):i]), strings.NewReplacer("~", "", "^", " ", "|", "").Replace(one))
		}
	}
}

// TestLists is CORE-21: a comma list is the same as the field repeated, in
// order, and a comma in a quoted string or a URI is none. Fields that are no
// lists stay whole.
func TestLists(t *testing.T) {
	values := func(m *Message, h HeaderID) (all []string) {
		for v := range m.Values(h) {
			all = append(all, string(v))
		}
		return all
	}
	for _, c := range []struct {
		h     HeaderID
		items []string
	}{
		{HdrVia, []string{"SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bKabc", `SIP/2.0/TCP [2001:db8::1];x="a,b"`, "SIP/2.0/TLS h"}},
		{HdrRoute, []string{"<sip:p1.example.com;lr>", `"P, 2" <sip:a,b@[2001:db8::1]:5070;lr>;x="<,>"`, "<sip:[2001:db8::2];lr>"}},
		{HdrRecordRoute, []string{"<sip:p1.example.com;lr>", "<sip:p2.example.com;lr>"}},
		{HdrContact, []string{"<sip:a@[2001:db8::1]>", "sip:b@192.0.2.1;expires=5", "*"}},
		{HdrAccept, []string{"application/pidf+xml;q=0.5", "multipart/related", "*/*"}},
		{HdrAcceptEncoding, []string{"deflate", "gzip;q=0.1"}},
		{HdrSupported, []string{"eventlist", "gruu"}},
		{HdrRequire, []string{"eventlist", "100rel"}},
		{HdrAllowEvents, []string{"presence", "presence.winfo"}},
		{HdrPAssertedIdentity, []string{`"Alice, A." <sip:alice@example.com>`, "<tel:+12025550100>"}},
	} {
		t.Run(c.h.String(), func(t *testing.T) {
			base := map[string]string{}
			if c.h == HdrVia {
				base["Via"] = "-"
			}
			repeated := make([]string, len(c.items))
			for i, v := range c.items {
				repeated[i] = c.h.String() + ": " + v
			}
			for name, lines := range map[string][]string{
				"repeated": repeated, "one list": {c.h.String() + ":" + strings.Join(c.items, ",")},
				"one list with spaces and empty items": {c.h.String() + ": ," + strings.Join(c.items, " , \t,  ") + " , "},
				"a list and another field":             {c.h.String() + ": " + c.items[0], strings.ToLower(c.h.String()) + ": " + strings.Join(c.items[1:], ", ")},
			} {
				if c.h == HdrVia && strings.Contains(name, "empty") {
					continue // the first value must be one
				}
				if got := values(parseText(t, request(base, lines...), false), c.h); !slices.Equal(got, c.items) {
					t.Errorf("CORE-21 %s: %q", name, got)
				}
			}
		})
	}
	m := parseText(t, request(nil, `Authorization: Digest username="bob", realm="a"`, "Authorization: Digest username=x, realm=y", "Date: Sat, 15 Oct 2005 04:44:56 GMT"), false)
	var all []string
	for v := range m.Headers(HdrAuthorization) {
		all = append(all, string(v))
	}
	if want := []string{`Digest username="bob", realm="a"`, "Digest username=x, realm=y"}; !slices.Equal(all, want) {
		t.Errorf("CORE-21 Authorization: %q", all)
	}
	if got := string(m.Header(HdrDate)); got != "Sat, 15 Oct 2005 04:44:56 GMT" {
		t.Errorf("CORE-21 Date: %q", got)
	}
}

// TestSchemes: the URIs of all schemes we know, wherever a URI may stand, with
// and without angle brackets; others in From and To do no harm (CORE-02).
func TestSchemes(t *testing.T) {
	for _, c := range []struct {
		uri, key string // key "" for a scheme that is not ours
	}{
		{"sip:alice@example.com", "sip:alice@example.com"},
		{"sip:alice@example.com:5070", "sip:alice@example.com:5070"},
		{"sips:alice@example.com", "sip:alice@example.com"},
		{"sip:alice@[2001:db8::1]", "sip:alice@[2001:db8::1]"},
		{"sip:alice@[2001:DB8:0::1]:5070", "sip:alice@[2001:db8::1]:5070"},
		{"sip:[::ffff:192.0.2.1]:5060", "sip:[::ffff:192.0.2.1]:5060"},
		{"sip:null-%00-null@example.com", "sip:null-%00-null@example.com"},
		{"pres:alice@example.com", "sip:alice@example.com"},
		{"PRES:%61lice@EXAMPLE.com", "sip:alice@example.com"},
		{"im:alice@example.com", "sip:alice@example.com"},
		{"tel:+1-201-555-0123", "tel:+12015550123"},
		{"tel:7042", "tel:7042"},
		{"http://example.com/a", ""},
		{"isbn:2983792873", ""},
		{"urn:service:sos", ""},
	} {
		line := "SUBSCRIBE " + c.uri + " SIP/2.0"
		for _, form := range []string{"%s;tag=%s", "<%s>;tag=%s", "%s ; x=y ; tag = %s", "A <%s>;tag=%s", `"<sip:x@y>" <%s>;x;tag=%s`} {
			m := parseText(t, request(map[string]string{"": line, "From": fmt.Sprintf(form, c.uri, "1"), "To": fmt.Sprintf(form, c.uri, "2")}), false)
			for _, got := range []string{string(m.RequestURI()), string(m.From().URI), string(m.To().URI)} {
				if got != c.uri {
					t.Errorf("%s in %s: %q", c.uri, form, got)
				}
			}
			if string(m.From().Tag()) != "1" || string(m.To().Tag()) != "2" {
				t.Errorf("%s in %s: tags %q %q", c.uri, form, m.From().Tag(), m.To().Tag())
			}
		}
		u, err := ParseURI(c.uri)
		if (c.key == "") != (err == ErrScheme) || err == nil && u.Key() != c.key {
			t.Errorf("CORE-02 %s: %s %v", c.uri, u.Key(), err)
		}
	}
	// RFC 3261 section 20.10: without brackets a comma, semicolon or question mark ends the URI.
	m := parseText(t, request(map[string]string{"From": "sip:bob@example.org;transport=tcp;tag=1", "To": "<sip:alice@example.com;transport=tcp?a=b>;x"}), false)
	if string(m.From().URI) != "sip:bob@example.org" || string(m.To().URI) != "sip:alice@example.com;transport=tcp?a=b" {
		t.Errorf("%q %q", m.From().URI, m.To().URI)
	}
}

// TestIPv6References: with and without a port, in Via, Contact and Route.
func TestIPv6References(t *testing.T) {
	for _, c := range []struct {
		text, host string
		port       uint16
	}{
		{"[2001:db8::1]", "2001:db8::1", 0}, {"[2001:db8::1]:5070", "2001:db8::1", 5070}, {"[::]:1", "::", 1}, {"[::ffff:192.0.2.1]", "::ffff:192.0.2.1", 0},
	} {
		m := parseText(t, request(map[string]string{"Via": "SIP/2.0/UDP " + c.text + ";branch=z9hG4bK1;received=2001:db8::9"},
			"Contact: <sip:a@"+c.text+";transport=tcp>", "Route: <sip:"+c.text+";lr>"), false)
		if v := m.Via(); string(v.Host) != c.host || v.Port != c.port || string(v.Received) != "2001:db8::9" {
			t.Errorf("Via %s: %q %d %q", c.text, v.Host, v.Port, v.Received)
		}
		for _, h := range []HeaderID{HdrContact, HdrRoute} {
			n, err := ParseNameAddr(m.Header(h))
			if err != nil {
				t.Fatal(err)
			}
			if u, err := ParseURI(string(n.URI)); err != nil || u.Host != c.host || u.Port != c.port {
				t.Errorf("%v %s: %+v %v", h, c.text, u, err)
			}
		}
	}
}

// TestLimits: what is just small enough is taken, and read right at its end;
// one octet or field more is refused (CORE-18, CORE-23).
func TestLimits(t *testing.T) {
	base := len(request(nil, "X: "))
	head := func(n int) string { return request(nil, "X: "+strings.Repeat("y", n-base)) }
	m := parseText(t, head(MaxHeaderBytes), false)
	if len(m.Other("X")) != MaxHeaderBytes-base || len(m.Body()) != 0 {
		t.Errorf("a header of 65,535 octets: %d, body %d", len(m.Other("X")), len(m.Body()))
	}
	m = parseText(t, head(MaxHeaderBytes)+"body", false)
	if string(m.Body()) != "body" {
		t.Errorf("a body after a header of 65,535 octets: %q", m.Body())
	}
	var bad Message
	for n := 1; n < 20; n++ { // cut off anywhere in the last line
		text := strings.TrimSuffix(head(MaxHeaderBytes+n-9), "\r\n") + "Abc : x\r\n\r\n"
		if len(text) != MaxHeaderBytes+n {
			t.Fatal(len(text))
		}
		if err := bad.Parse([]byte(text), false); err == nil || err.(*ParseError).Code != 513 || !err.(*ParseError).Answerable {
			t.Errorf("CORE-23 a header of %d octets: %v", len(text), err)
		}
	}
	start := request(nil, "Content-Length: 65000")
	text := start + strings.Repeat("z", 65535-len(start))
	if m = parseText(t, request(nil)+strings.Repeat("z", 65535-len(request(nil))), false); len(m.Raw) != 65535 {
		t.Errorf("CORE-18 a datagram of 65,535 octets: %d", len(m.Raw))
	}
	if m = parseText(t, text, true); len(m.Body()) != 65000 {
		t.Errorf("CORE-18 a body of 65,000 octets in a datagram of 65,535: %d", len(m.Body()))
	}
	long := strings.Repeat("l", 20000)
	m = parseText(t, request(map[string]string{
		"": "SUBSCRIBE sip:" + long + "@example.com SIP/2.0", "From": `"` + long[:10000] + `" <sip:bob@example.org>;tag=` + long[:10000], "Call-ID": long[:10000],
	}), false)
	if len(m.RequestURI()) != 20016 || len(m.From().Tag()) != 10000 || len(m.From().Display) != 10000 || len(m.CallID()) != 10000 {
		t.Error("long values")
	}
	fields := slices.Repeat([]string{"X: y"}, MaxFields-5)
	parseText(t, request(nil, fields...), false)
	if err := bad.Parse([]byte(request(nil, append(fields, "X: y")...)), false); err == nil || err.(*ParseError).Code != 513 {
		t.Errorf("CORE-23 257 fields: %v", err)
	}
}
