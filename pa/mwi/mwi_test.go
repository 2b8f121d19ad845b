package mwi

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

const alice = "sip:alice@example.com"

// The bodies of RFC 3842 sections 3.5 and 4.1, and what is refused.
func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, in string
		line     int    // of the fault, 0 for none
		kept     string // what is stored, "" for all
		note     string
	}{
		{"MW-01 a status alone", "Messages-Waiting: yes\r\n", 0, "", "messages waiting"},
		{"MW-01 RFC 3842 A3", "Messages-Waiting: yes\r\nMessage-Account: sip:alice@vmail.example.com\r\nVoice-Message: 2/8 (0/2)\r\n", 0, "", "messages waiting, Voice-Message: 2/8 (0/2)"},
		{"MW-02 RFC 3842 A5, without the headers", "Messages-Waiting: yes\r\nMessage-Account: sip:alice@vmail.example.com\r\nVoice-Message: 4/8 (1/2)\r\n\r\nTo: <alice@atlanta.example.com>\r\nFrom: <bob@biloxi.example.com>\r\n",
			0, "Messages-Waiting: yes\r\nMessage-Account: sip:alice@vmail.example.com\r\nVoice-Message: 4/8 (1/2)\r\n", "messages waiting, Voice-Message: 4/8 (1/2)"},
		{"RFC 3842 A9", "Messages-Waiting: no\r\n", 0, "", "no messages waiting"},
		{"case, space and bare line ends", "messages-waiting : NO\nVOICE-message:0 / 3( 0/1 )\n", 0, "", "no messages waiting, VOICE-message: 0/3 (0/1)"},
		{"no line end", "Messages-Waiting: no", 0, "Messages-Waiting: no\r\n", "no messages waiting"},
		{"MW-01 more than 2^32-1", "Messages-Waiting: yes\r\nFax-Message: 4294967296/99999999999999999999\r\n", 0, "", "messages waiting, Fax-Message: 4294967295/4294967295"},
		{"empty", "", 1, "", ""},
		{"headers only", "\r\nTo: x\r\n", 1, "", ""},
		{"no status", "Voice-Message: 1/2\r\n", 1, "", ""},
		{"status unknown", "Messages-Waiting: perhaps\r\n", 1, "", ""},
		{"an account in brackets", "Messages-Waiting: no\r\nMessage-Account: <sip:a@b>\r\n", 2, "", ""},
		{"an account that is none", "Messages-Waiting: no\r\nMessage-Account: alice\r\n", 2, "", ""},
		{"counts", "Messages-Waiting: no\r\nVoice-Message: 1\r\n", 2, "", ""},
		{"negative", "Messages-Waiting: no\r\nVoice-Message: -1/2\r\n", 2, "", ""},
		{"urgent open", "Messages-Waiting: no\r\nVoice-Message: 1/2 (1/2\r\n", 2, "", ""},
		{"twice", "Messages-Waiting: no\r\nVoice-Message: 1/2\r\nvoice-message: 1/2\r\n", 3, "", ""},
		{"no colon", "Messages-Waiting: no\r\nhello\r\n", 2, "", ""},
		{"XML", "<dialog-info/>", 1, "", ""},
		{"too many classes", "Messages-Waiting: no\r\n" + classes(maxClasses+1), maxClasses + 2, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Parse([]byte(c.in))
			var e *Error
			if c.line > 0 {
				if !errors.As(err, &e) || e.Line != c.line {
					t.Errorf("error %v, want one of line %d", err, c.line)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.kept == "" {
				c.kept = c.in
			}
			if string(d.Bytes()) != c.kept || d.Note() != c.note {
				t.Errorf("%q, %q", d.Bytes(), d.Note())
			}
		})
	}
}

func classes(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("x" + strings.Repeat("y", i) + ": 0/0\r\n")
	}
	return b.String()
}

// RFC 3842 section 3.10: summaries are added up.
func TestCompose(t *testing.T) {
	const account = "Message-Account: sip:alice@vmail.example.com\r\n"
	for _, c := range []struct {
		name string
		docs []string
		want string
	}{
		{"none", nil, "Messages-Waiting: no\r\n"},
		{"one as it is", []string{"messages-waiting : NO\nVOICE-message:0 / 3( 0/1 )\n"}, "messages-waiting : NO\nVOICE-message:0 / 3( 0/1 )\n"},
		{"sums", []string{"Messages-Waiting: no\r\nFax-Message: 0/1\r\nVoice-Message: 0/3 (0/1)\r\n", "Messages-Waiting: yes\r\nvoice-message: 2/8\r\nX-Note: 1/0\r\n"},
			"Messages-Waiting: yes\r\nVoice-Message: 2/11 (0/1)\r\nFax-Message: 0/1\r\nX-Note: 1/0\r\n"},
		{"MW-01 the account they agree on", []string{"Messages-Waiting: no\r\n" + account, "Messages-Waiting: no\r\n" + account}, "Messages-Waiting: no\r\n" + account},
		{"MW-01 accounts of their own", []string{"Messages-Waiting: no\r\n" + account, "Messages-Waiting: no\r\nMessage-Account: sip:sales@example.com\r\n"},
			"Messages-Waiting: no\r\nMessage-Account: sip:alice@example.com\r\n"},
		{"no counts where one has none", []string{"Messages-Waiting: yes\r\n", "Messages-Waiting: no\r\nVoice-Message: 0/3\r\n"}, "Messages-Waiting: yes\r\n"},
		{"MW-01 at most 2^32-1", []string{"Messages-Waiting: yes\r\nVoice-Message: 4294967295/1\r\n", "Messages-Waiting: yes\r\nVoice-Message: 1/1\r\n"},
			"Messages-Waiting: yes\r\nVoice-Message: 4294967295/2\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var docs []*Document
			for _, s := range c.docs {
				d, err := Parse([]byte(s))
				if err != nil {
					t.Fatal(err)
				}
				docs = append(docs, d)
			}
			if got := string(Compose(alice, docs)); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// What is read is shown, and added to itself, as what can be read.
func FuzzParse(f *testing.F) {
	f.Add([]byte("Messages-Waiting: yes\r\nMessage-Account: sip:a@b\r\nVoice-Message: 2/8 (0/2)\r\n\r\nTo: x\r\n"))
	f.Add([]byte("messages-waiting:no\nnone:1/2"))
	f.Fuzz(func(t *testing.T, body []byte) {
		d, err := Parse(bytes.Clone(body))
		if err != nil {
			return
		}
		again, err := Parse(d.Bytes())
		if err != nil || again.Note() != d.Note() || !bytes.Equal(again.Bytes(), d.Bytes()) {
			t.Fatalf("kept as %q: %v", d.Bytes(), err)
		}
		sum, err := Parse(Compose(alice, []*Document{d, again}))
		if err != nil || sum.Waiting() != d.Waiting() || len(sum.classes) != len(d.classes) {
			t.Fatalf("added up to %q: %v", Compose(alice, []*Document{d, again}), err)
		}
	})
}
