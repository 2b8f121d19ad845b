package rlmi

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The bodies of the NOTIFYs of RFC 4662 section 6, with its own defects: the
// boundaries are quoted (legal MIME, but see RL-10), the versions start at 1,
// step 3 is not well-formed and step 13 lacks a blank line.
func TestRFC4662Section6(t *testing.T) {
	related := func(start, boundary string) string {
		return "multipart/related;type=\"application/rlmi+xml\";\r\n    start=\"<" + start + ">\";\r\n    boundary=\"" + boundary + "\""
	}
	type test struct {
		name, contentType, body string
		list                    string
		resources, parts        int
		check                   func(t *testing.T, n *Notification)
	}
	step3 := read(t, "rfc4662-s6-step3.txt")
	step3Type := related("nXYxAE@pres.vancouver.example.com", "50UBfW7LSCVLtggUPe5z")
	if _, err := (Options{Lenient: true}).Parse(step3Type, []byte(step3)); !errors.Is(err, ErrNotWellFormed) {
		t.Errorf("step 3 as printed: %v", err)
	}
	stockholm := func(t *testing.T, n *Notification) {
		t.Helper()
		if !n.Signed || n.List.URI != "sip:adam-friends@stockholm.example.org" || len(n.List.Resources) != 2 {
			t.Fatalf("%+v", n.List)
		}
		p, ok := n.Part("mrEakg@stockholm.example.org")
		if !ok || !strings.HasSuffix(string(p.Body), "</presence>\n") {
			t.Errorf("joe's part %q", p)
		}
	}
	for _, c := range []test{
		{
			"step 3", step3Type, strings.Replace(step3, `.com"">`, `.com">`, 1),
			"sip:adam-friends@pres.vancouver.example.com", 4, 2,
			func(t *testing.T, n *Notification) {
				if len(n.List.Resources[2].Instances) != 0 || n.List.Names[1] != (Name{"de", "Liste der Freunde an COM"}) {
					t.Errorf("%+v", n.List)
				}
			},
		},
		{
			"step 11", `multipart/signed; protocol="application/pkcs7-signature"; micalg=sha1;boundary="l3WMZaaL8NpQWGnQ4mlU"`,
			read(t, "rfc4662-s6-step11.txt"), "sip:adam-friends@stockholm.example.org", 2, 2, stockholm,
		},
		{
			"step 13", related("2BEI83@pres.vancouver.example.com", "TfZxoxgAvLqgj4wRWPDL"),
			read(t, "rfc4662-s6-step13.txt"), "sip:adam-friends@pres.vancouver.example.com", 2, 1,
			func(t *testing.T, n *Notification) {
				inner := n.Nested["1KQhyE@pres.vancouver.example.com"]
				if inner == nil {
					t.Fatal("RL-19 no nested list")
				}
				stockholm(t, inner)
			},
		},
	} {
		for _, ends := range []string{"\n", "\r\n"} {
			t.Run(c.name, func(t *testing.T) {
				body := []byte(strings.ReplaceAll(c.body, "\n", ends))
				n, err := Options{Lenient: true}.Parse(c.contentType, body)
				if err != nil {
					t.Fatal(err)
				}
				if n.List.URI != c.list || len(n.List.Resources) != c.resources || len(n.Parts) != c.parts {
					t.Errorf("%+v, %d parts", n.List, len(n.Parts))
				}
				if ends == "\n" {
					c.check(t, n)
				}
				_, err = Options{First: true}.Parse(strings.ReplaceAll(c.contentType, `boundary="`, `x-boundary="`)+";boundary="+boundaryOf(c.contentType), body)
				wantRule(t, err, map[string]string{"step 3": "RL-13", "step 11": "RL-10", "step 13": "RL-10"}[c.name])
			})
		}
	}
}

func boundaryOf(ct string) string {
	_, b, _ := strings.Cut(ct, `boundary="`)
	return strings.TrimSuffix(b, `"`)
}

const (
	head  = "--b\r\nContent-Transfer-Encoding: binary\r\nContent-ID: <r@example.com>\r\nContent-Type: application/rlmi+xml\r\n\r\n"
	open  = `<list xmlns="urn:ietf:params:xml:ns:rlmi" uri="sip:l@example.com" version="0" fullState="true">`
	empty = `<list xmlns="urn:ietf:params:xml:ns:rlmi" uri="sip:l@example.com" version="0" fullState="true"/>`
	bob   = open + `<resource uri="sip:bob@example.com"><instance id="1" state="active" cid="b@example.com"/></resource></list>`
	bPart = "\r\n--b\r\nContent-Transfer-Encoding: binary\r\nContent-ID: <b@example.com>\r\nContent-Type: application/pidf+xml\r\n\r\n<presence/>"
	end   = "\r\n--b--\r\n"
	ctype = `multipart/related;type="application/rlmi+xml";start="<r@example.com>";boundary=b`
)

func TestParseStrict(t *testing.T) {
	ok := head + bob + bPart + end
	if _, err := Parse(ctype, []byte(ok)); err != nil {
		t.Fatal(err)
	}
	inner := strings.ReplaceAll(strings.ReplaceAll(head+bob+bPart+end, "--b", "--in"), "@example.com>", "@in.example.com>")
	nested := "\r\n--b\r\nContent-Transfer-Encoding: binary\r\nContent-ID: <n@example.com>\r\n" +
		`Content-Type: multipart/related;type="application/rlmi+xml";start="<r@in.example.com>";boundary=in` + "\r\n\r\n"
	for _, c := range []struct{ name, rule, contentType, body string }{
		{"other body", "RL-10", "application/pidf+xml", ok},
		{"no content type", "RL-10", "", ok},
		{"open quote", "RL-10", ctype + `;x="y`, ok},
		{"no type", "RL-10", `multipart/related;start="<r@example.com>";boundary=b`, ok},
		{"bare type", "RL-10", `multipart/related;type=application/rlmi+xml;start="<r@example.com>";boundary=b`, ok},
		{"other type", "RL-10", strings.Replace(ctype, "rlmi", "pidf", 1), ok},
		{"no start", "RL-10", `multipart/related;type="application/rlmi+xml";boundary=b`, ok},
		{"start without brackets", "RL-10", strings.NewReplacer("<", "", ">", "").Replace(ctype), ok},
		{"start nowhere", "RL-10", strings.Replace(ctype, "r@", "x@", 1), ok},
		{"start at a member", "RL-10", strings.Replace(ctype, "r@", "b@", 1), ok},
		{"no boundary", "RL-10", strings.TrimSuffix(ctype, ";boundary=b"), ok},
		{"bad boundary", "RL-10", ctype + "{", ok},
		{"quoted boundary", "RL-10", strings.TrimSuffix(ctype, "b") + `"b"`, ok},
		{"other boundary", "RL-10", ctype + "b", ok},
		{"not closed", "RL-10", ctype, strings.TrimSuffix(ok, end)},
		{"no parts", "RL-10", ctype, "--b--"},
		{"no Content-ID", "RL-11", ctype, strings.Replace(ok, "Content-ID: <b@example.com>\r\n", "", 1)},
		{"Content-ID without brackets", "RL-11", ctype, strings.Replace(ok, "<b@example.com>", "b@example.com", 1)},
		{"Content-ID twice", "RL-11", ctype, head + bob + bPart + bPart + end},
		{"Content-ID of the root twice", "RL-11", ctype, head + empty + strings.Replace(bPart, "<b@", "<r@", 1) + end},
		{"no Content-Type", "RL-11", ctype, strings.Replace(ok, "Content-Type: application/pidf+xml\r\n", "", 1)},
		{"no encoding", "RL-11", ctype, strings.Replace(ok, "Content-Transfer-Encoding: binary\r\n", "", 1)},
		{"base64", "RL-11", ctype, strings.Replace(ok, "binary", "base64", 1)},
		{"header line", "RL-11", ctype, strings.Replace(ok, "Content-ID: <b", "Content-ID <b", 1)},
		{"cid nowhere", "RL-18", ctype, head + bob + end},
		{"cid of the list nowhere", "RL-18", ctype, head + strings.Replace(bob, "uri", `cid="x" uri`, 1) + bPart + end},
		{"cid is the root", "RL-18", ctype, head + strings.Replace(bob, `"b@`, `"r@`, 1) + bPart + end},
		{"cid in brackets", "RL-18", ctype, head + strings.Replace(bob, `"b@example.com`, `"&lt;b@example.com>`, 1) + bPart + end},
		{"cid in a nested list", "RL-18", ctype, head + strings.Replace(bob, `"b@`, `"b@in.`, 1) + nested + strings.ReplaceAll(inner, `"b@`, `"b@in.`) + end},
		{"cid of a nested list in the outer one", "RL-18", ctype, head + bob + bPart + nested + inner + end},
		{"instance", "RL-17", ctype, head + strings.Replace(bob, ` cid="b@example.com"`, "", 1) + bPart + end},
	} {
		t.Run(c.rule+" "+c.name, func(t *testing.T) {
			_, err := Parse(c.contentType, []byte(c.body))
			wantRule(t, err, c.rule)
		})
	}
}

func TestParseLimits(t *testing.T) {
	many := head + empty + strings.Repeat("\r\n--b\r\n\r\n", MaxParts+1) + end
	if _, err := (Options{Lenient: true}).Parse(ctype, []byte(many)); !errors.Is(err, ErrLimit) {
		t.Errorf("parts: %v", err)
	}
	header := "--b\r\n" + strings.Repeat("X: y\r\n z\r\n", 2000) + "\r\n" + empty + end
	if _, err := (Options{Lenient: true}).Parse(ctype, []byte(header)); !errors.Is(err, ErrLimit) {
		t.Errorf("header: %v", err)
	}
	body := AppendMultipart(nil, "b0", "r@example.com", &List{URI: "sip:l0@example.com"}, nil)
	ct := ContentType("b0", "r@example.com")
	for i := range 9 {
		l := &List{URI: "sip:l@example.com", Resources: []Resource{{URI: "sip:in@example.com", Instances: []Instance{Active("1", "n@example.com")}}}}
		boundary := "b0" + strings.Repeat("x", i+1)
		body = AppendMultipart(nil, boundary, "r@example.com", l, []Part{{"n@example.com", ct, body}})
		ct = ContentType(boundary, "r@example.com")
		for _, o := range []Options{{}, {Lenient: true}} {
			if _, err := o.Parse(ct, body); (err == nil) != (i < 8) || err != nil && !errors.Is(err, ErrLimit) {
				t.Errorf("%d nested lists, %+v: %v", i+1, o, err)
			}
		}
	}
	if _, err := (Options{Depth: 9}).Parse(ct, body); err != nil {
		t.Error(err)
	}
}

func TestParseLenient(t *testing.T) {
	lenient := Options{Lenient: true, First: true}
	for _, c := range []struct{ name, contentType, body string }{
		{"Asterisk: no start", `multipart/related;type="application/rlmi+xml";boundary=b`, head + bob + bPart + end},
		{"RFC 4662: quoted boundary", strings.TrimSuffix(ctype, "b") + `"b"`, head + bob + bPart + end},
		{"Kamailio: version 1", ctype, head + strings.Replace(bob, `version="0"`, `version="1"`, 1) + bPart + end},
		{"no brackets", strings.NewReplacer("<", "", ">", "").Replace(ctype), strings.ReplaceAll(strings.ReplaceAll(head+bob+bPart+end, ": <", ": "), ">\r\nContent-Type", "\r\nContent-Type")},
		{"cid in brackets", ctype, head + strings.Replace(bob, `"b@example.com`, `"&lt;b@example.com>`, 1) + bPart + end},
		{"no type, no encoding, other order", "Multipart/Related; boundary=b", "\n--b\nContent-Id: <b@example.com>\ncontent-type: application/pidf+xml\n\n<presence/>\n--b  \nContent-Type:\n application/rlmi+xml\n\n" + bob + "\n--b--"},
		{"not closed", ctype, head + strings.ReplaceAll(bob, ` xmlns="urn:ietf:params:xml:ns:rlmi"`, "") + bPart},
		{"preamble and epilogue", ctype, "Text\r\n--bb\r\n" + head + bob + bPart + end + "--b\r\nmore"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, err := lenient.Parse(c.contentType, []byte(c.body))
			if err != nil {
				t.Fatal(err)
			}
			p, ok := n.Part(n.List.Resources[0].Instances[0].CID)
			if !ok || string(p.Body) != "<presence/>" || p.ContentType != pidf {
				t.Errorf("part %q", p)
			}
		})
	}
	for name, body := range map[string]string{
		"RL-17 active without cid":        strings.Replace(bob, ` cid="b@example.com"`, "", 1),
		"RL-17 terminated without reason": strings.Replace(bob, "active", "terminated", 1),
		"RL-18 cid nowhere":               strings.Replace(bob, `"b@`, `"x@`, 1),
	} {
		if _, err := lenient.Parse(ctype, []byte(head+body+bPart+end)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := lenient.Parse(ctype, []byte(head+strings.Replace(bob, "true", "false", 1)+bPart+end))
	wantRule(t, err, "RL-14")
	// What cannot be read as an inner list stays an opaque part.
	n, err := lenient.Parse(ctype, []byte(strings.Replace(head+bob+bPart+end, "Content-Type: application/pidf+xml", "Content-Type: "+ctype+"2", 1)))
	if err != nil || len(n.Nested) != 0 || len(n.Parts) != 1 {
		t.Errorf("%+v, %v", n, err)
	}
}

// A presence document with pictures is multipart/related too, but no list.
func TestParseOpaqueMultipart(t *testing.T) {
	part := strings.Replace(bPart, "application/pidf+xml", `multipart/related;type="application/pidf+xml";boundary=x`, 1)
	n, err := Parse(ctype, []byte(head+bob+part+end))
	if err != nil || len(n.Nested) != 0 || string(n.Parts[0].Body) != "<presence/>" {
		t.Errorf("%+v, %v", n, err)
	}
}

func TestParseEmptyBodies(t *testing.T) {
	part := "\r\n--b\r\nContent-Transfer-Encoding: binary\r\nContent-ID: <b@example.com>\r\nContent-Type: text/plain\r\n"
	for name, body := range map[string]string{
		"no blank line":  head + bob + part + "--b--",
		"blank line":     head + bob + part + "\r\n--b--",
		"two line ends":  head + bob + part + "\r\n\r\n--b--",
		"end after head": head + bob + strings.TrimSuffix(part, "\r\n") + "\r\n--b--\t",
	} {
		n, err := Parse(ctype, []byte(body))
		if err != nil || len(n.Parts) != 1 || len(n.Parts[0].Body) != 0 {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
}
