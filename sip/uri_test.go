package sip

import (
	"errors"
	"strings"
	"testing"
)

func mustURI(t testing.TB, s string) URI {
	t.Helper()
	u, err := ParseURI(s)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return u
}

func TestParseURI(t *testing.T) {
	for s, want := range map[string]URI{
		"sip:alice@example.com": {Scheme: "sip", User: "alice", Host: "example.com"},
		"SIPS:alice:secret@example.com:5061;transport=tcp;lr?subject=x&a=b": {Scheme: "sips", User: "alice", Password: "secret", Host: "example.com", Port: 5061, Params: "transport=tcp;lr", Headers: "subject=x&a=b"},
		"sip:[2001:db8::1]:5070;lr":                                         {Scheme: "sip", Host: "2001:db8::1", Port: 5070, Params: "lr"},
		"sip:a@[::1]":                                                       {Scheme: "sip", User: "a", Host: "::1"},
		"sip:192.0.2.1":                                                     {Scheme: "sip", Host: "192.0.2.1"},
		"sip:a;b=c?d/e@example.com":                                         {Scheme: "sip", User: "a;b=c?d/e", Host: "example.com"},
		"sip:%00@example.com":                                               {Scheme: "sip", User: "%00", Host: "example.com"},
		"sip:j\xc3\xbcrgen@example.com":                                     {Scheme: "sip", User: "j\xc3\xbcrgen", Host: "example.com"},
		"pres:alice@example.com":                                            {Scheme: "pres", User: "alice", Host: "example.com"},
		"im:alice@example.com":                                              {Scheme: "im", User: "alice", Host: "example.com"},
		"tel:+1-201-555-0123;phone-context=example.com":                     {Scheme: "tel", User: "+1-201-555-0123", Params: "phone-context=example.com"},
		"sip:example.com?x=y":                                               {Scheme: "sip", Host: "example.com", Headers: "x=y"},
		"sip:a_b.example.com.":                                              {Scheme: "sip", Host: "a_b.example.com."},
	} {
		u, err := ParseURI(s)
		if err != nil || u != want {
			t.Errorf("%s: got %+v %v, want %+v", s, u, err, want)
		}
		if again, err := ParseURI(u.String()); err != nil || again != u {
			t.Errorf("%s: String gives %s: %v", s, u, err)
		}
	}
	for _, s := range []string{
		"", "sip", ":", "sip:", ":a@example.com", "sip:@example.com", "sip::pw@example.com", "sip:alice@", "sip:a@b@example.com",
		"sip:a b@example.com", "sip:a@example.com ", " sip:a@example.com", "sip:a@exam\tple.com", "sip:a@example.com\r\n", "sip:a\x00@example.com",
		"<sip:a@example.com>", `sip:"a"@example.com`, "sip:a@example.com:65536", "sip:a@example.com:0", "sip:a@example.com:", "sip:a@example.com:5060x",
		"sip:a@example.com:-1", "sip:a@example.com:+5060", "sip:a%@example.com", "sip:a%4@example.com", "sip:a%zz@example.com", "sip:a@[::1", "sip:a@[zz]",
		"sip:a@[192.0.2.1]", "sip:a@[fe80::1%25eth0]", "sip:a@[::1]x", "sip:a@ex%61mple.com", "sip:a@ex,ample.com", "sip:a@.example.com", "sip:a@example..com",
		"sip:a@example.com;" + strings.Repeat("a;", 64) + "a", "sip:;lr", "tel:", "tel:+", "tel:12x", "tel:1+2", "tel:()", "alice@example.com",
	} {
		if u, err := ParseURI(s); err == nil {
			t.Errorf("%q accepted: %+v", s, u)
		} else if errors.Is(err, ErrScheme) && s != "alice@example.com" {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"http://example.com/", "mailto:a@example.com", "urn:service:sos", "nobodyKnowsThisScheme:totallyopaquecontent"} {
		if _, err := ParseURI(s); !errors.Is(err, ErrScheme) {
			t.Errorf("CORE-02 %s: %v", s, err)
		}
	}
}

func TestURIParam(t *testing.T) {
	u := mustURI(t, "sip:a@example.com;%6C%72;n%61me=v%61lue%25%34%31;Transport=TCP")
	for name, want := range map[string]string{"lr": "", "name": "value%41", "transport": "TCP"} {
		if v, ok := u.Param(name); !ok || v != want {
			t.Errorf("%s: %q %v", name, v, ok)
		}
	}
	if _, ok := u.Param("maddr"); ok {
		t.Error("maddr found")
	}
	if _, ok := mustURI(t, "sip:a@example.com").Param(""); ok {
		t.Error("parameter without a name found")
	}
}

// TestURIEqual has the examples of RFC 3261 section 19.1.4 first.
func TestURIEqual(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtLanTa.CoM;Transport=tcp", true},
		{"sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5", true},
		{"sip:carol@chicago.com", "sip:carol@chicago.com;security=on", true},
		{"sip:carol@chicago.com;newparam=5", "sip:carol@chicago.com;security=on", true},
		{"sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com", "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com", true},
		{"sip:alice@atlanta.com?subject=project%20x&priority=urgent", "sip:alice@atlanta.com?priority=urgent&subject=project%20x", true},
		{"SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP", false},
		{"sip:bob@biloxi.com", "sip:bob@biloxi.com:5060", false},
		{"sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp", false},
		{"sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp", false},
		{"sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting", false},
		{"sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4", false},
		{"sip:carol@chicago.com;security=on", "sip:carol@chicago.com;security=off", false},
		{"sip:carol@chicago.com", "sip:carol@chicago.com;security=off", true},

		{"sip:a@example.com", "sips:a@example.com", false},
		{"sip:a@example.com", "sip:example.com", false},
		{"sip:a:x@example.com", "sip:a:x@example.com", true},
		{"sip:a:x@example.com", "sip:a:X@example.com", false},
		{"sip:a:x@example.com", "sip:a@example.com", false},
		{"sip:a@example.com;user=phone", "sip:a@example.com", false},
		{"sip:a@example.com;ttl=1", "sip:a@example.com", false},
		{"sip:a@example.com", "sip:a@example.com;maddr=192.0.2.1", false},
		{"sip:a@example.com;m%65thod=NOTIFY", "sip:a@example.com", false},
		{"sip:a@example.com;lr", "sip:a@example.com;LR", true},
		{"sip:a%2Bb@example.com", "sip:a+b@example.com", false}, // + is reserved
		{"sip:a%2bb@example.com", "sip:a%2Bb@example.com", true},
		{"sip:a@[2001:db8::1]", "sip:a@[2001:DB8:0::1]", true},
		{"tel:+1-201-555-0123", "tel:+12015550123", true},
		{"tel:+12015550123", "tel:+12015550124", false},
	} {
		a, b := mustURI(t, tt.a), mustURI(t, tt.b)
		if a.Equal(b) != tt.want || b.Equal(a) != tt.want {
			t.Errorf("CORE-26 %s and %s: want %v", tt.a, tt.b, tt.want)
		}
		if !a.Equal(a) || !b.Equal(b) {
			t.Errorf("%s or %s does not equal itself", tt.a, tt.b)
		}
	}
}

func TestURIKey(t *testing.T) {
	for s, want := range map[string]string{
		"sip:alice@example.com":                                 "sip:alice@example.com",
		"SIP:Alice@Example.COM":                                 "sip:Alice@example.com",
		"sips:alice@example.com":                                "sip:alice@example.com",
		"pres:alice@example.com":                                "sip:alice@example.com",
		"im:alice@example.com":                                  "sip:alice@example.com",
		"sip:alice@example.com.":                                "sip:alice@example.com",
		"sip:alice:pw@example.com:5070;transport=tcp?subject=x": "sip:alice@example.com:5070",
		"sip:alice@example.com;lr;ob;gr=urn:uuid:1;maddr=192.0.2.1;ttl=1;method=SUBSCRIBE;Transport=TCP": "sip:alice@example.com",
		"sip:alice@example.com;%6C%72;z=1;A=B%43;user=phone;;z=1":                                        "sip:alice@example.com;a=bc;z=1",
		"sip:%61li%63e%40x@example.com":                                                                  "sip:alice%40x@example.com",
		"sip:%2b49%26a%3D%24%2C%3F%2F@example.com":                                                       "sip:+49&a=$,?/@example.com",
		"sip:a%3bb%3Ac@example.com":                                                                      "sip:a%3Bb%3Ac@example.com",
		"sip:a;b@example.com":                                                                            "sip:a;b@example.com",
		"sip:j\xc3\xbcrgen@example.com":                                                                  "sip:j%C3%BCrgen@example.com",
		"sip:j%c3%bcrgen@example.com":                                                                    "sip:j%C3%BCrgen@example.com",
		"sip:a[1]@example.com":                                                                           "sip:a%5B1%5D@example.com",
		"sip:a%5b1%5d@example.com":                                                                       "sip:a%5B1%5D@example.com",
		"sip:100%25@example.com":                                                                         "sip:100%25@example.com",
		"sip:null-%00-null@example.com":                                                                  "sip:null-%00-null@example.com",
		"sip:a@[2001:DB8:0:0::1]:5060":                                                                   "sip:a@[2001:db8::1]:5060",
		"sip:example.com":                                                                                "sip:example.com",
		"tel:+1-(201)-555.0123":                                                                          "tel:+12015550123",
		"tel:863-1234;phone-context=+1-914-555;ext=1.2;ISUB=A":                                           "tel:8631234;ext=12;isub=a;phone-context=+1914555",
		"tel:7042;phone-context=example.com":                                                             "tel:7042;phone-context=example.com",
	} {
		u := mustURI(t, s)
		k := u.Key()
		if k != want {
			t.Errorf("%s: got %s, want %s", s, k, want)
		}
		if again := mustURI(t, k).Key(); again != k {
			t.Errorf("%s is not its own key but %s", k, again)
		}
	}
}

// checkPlain compares Plain with the way it spares.
func checkPlain(t *testing.T, s string) (ok bool) {
	t.Helper()
	aor, host, ok := Plain(s)
	u, err := ParseURI(s)
	if !ok {
		if aor != "" || host != "" {
			t.Errorf("%q: %q and %q besides false", s, aor, host)
		}
		return false
	}
	if err != nil || u.Key() != s || u.Host != host {
		t.Errorf("%q is plain with host %q, but %v, key %q, host %q", s, host, err, u.Key(), u.Host)
	}
	if u.Port = 0; u.Key() != aor {
		t.Errorf("%q: %q, want %q", s, aor, u.Key())
	}
	if a, h, ok := Plain([]byte(s)); !ok || string(a) != aor || string(h) != host {
		t.Errorf("%q as octets: %q %q %v", s, a, h, ok)
	}
	return true
}

func TestPlain(t *testing.T) {
	for _, c := range []struct {
		uri  string
		want bool
	}{
		{"sip:alice@example.com", true},
		{"sip:Alice+1.x_y@a-b.example.com", true}, // a user keeps its case
		{"sip:a&=+$,?/b@example.com", true},
		{"sip:alice@192.0.2.1:5070", true},
		{"sip:a@h:1", true},
		{"sip:a@h:65535", true},
		{"sip:a@h:65536", false},
		{"sip:a@h:0", false},
		{"sip:a@h:05060", false},
		{"sip:a@h:", false},
		{"sip:a@h:5060x", false},
		{"sip:a@h:99999999999999999999", false},
		{"sip:example.com", false},
		{"sip:@example.com", false},
		{"sip:a@", false},
		{"sip:a@Example.com", false},
		{"sip:a@example.com.", false},
		{"sip:a@.example.com", false},
		{"sip:a@example..com", false},
		{"sip:a@[2001:db8::1]", false},
		{"sip:a:secret@example.com", false},
		{"sip:a;b@example.com", false},
		{"sip:%61@example.com", false},
		{"sip:a@example.com;transport=tcp", false},
		{"sip:a@example.com?a=b", false},
		{"sip:a@b@example.com", false},
		{"sip:a b@example.com", false},
		{"sip:\xc3\xa9@example.com", false},
		{"SIP:a@example.com", false},
		{"sips:a@example.com", false},
		{"tel:+12025550100", false},
		{"sip:", false},
		{"", false},
	} {
		if got := checkPlain(t, c.uri); got != c.want {
			t.Errorf("%q is plain: %v, want %v", c.uri, got, c.want)
		}
	}
}
