package sip

import (
	"strings"
	"testing"
)

func TestFrameLen(t *testing.T) {
	body := func(l string, b string) string { return request(nil, l) + b }
	for _, tt := range []struct {
		name, text string
		rest       int // octets after the frame; -1 for none yet
		reason     string
	}{
		{"empty", "", -1, ""},
		{"line ends only", "\r\n\r\n", -1, ""},
		{"half", request(nil)[:100], -1, ""},
		{"CORE-20 missing", request(nil), 0, "Content-Length is missing"},
		{"no body", body("Content-Length: 0", ""), 0, ""},
		{"body", body("l : 4", "body"), 0, ""},
		{"part of body", body("Content-Length: 4", "bod"), -1, ""},
		{"next", body("CONTENT-LENGTH:4", "bodyNOTIFY"), 6, ""},
		{"keep-alive first", "\r\n\r\n" + body("Content-Length: 4", "body"), 0, ""},
		{"folded", body("Content-Length:\r\n 4", "body"), 0, ""},
		{"in a fold", body("X: y\r\n Content-Length: 9\r\nl: 4", "body"), 0, ""},
		{"line feeds", strings.ReplaceAll(body("Content-Length: 4", "body"), "\r\n", "\n"), 0, ""},
		{"same twice", body("Content-Length: 4\r\nl: 4", "body"), 0, ""},
		{"twice", body("Content-Length: 4\r\nl: 3", "body"), 0, "Content-Length is there twice with different values"},
		{"list", body("Content-Length: 4, 4", "body"), 0, "Content-Length is not a number"},
		{"negative", body("Content-Length: -4", "body"), 0, "Content-Length is not a number"},
		{"empty value", body("Content-Length:", "body"), 0, "Content-Length is not a number"},
		{"huge", body("Content-Length: 1048577", ""), 0, "body is longer than 1 MiB"},
		{"absurd", body("Content-Length: 99999999999999999999", ""), 0, "body is longer than 1 MiB"},
		{"unended header", "SUBSCRIBE " + strings.Repeat("x", 65536), 0, "header fields are longer than 65535 octets"},
		{"long header", body("l: 0\r\nX: "+strings.Repeat("x", 65536), ""), 0, "header fields are longer than 65535 octets"},
		{"start line only looks like it", "l: 5\r\n\r\n", 0, "Content-Length is missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, err := FrameLen([]byte(tt.text))
			if tt.reason != "" {
				if pe, ok := err.(*ParseError); !ok || pe.Reason != tt.reason || n != 0 {
					t.Errorf("got %d %v", n, err)
				}
				return
			}
			want := len(tt.text) - tt.rest
			if tt.rest < 0 {
				want = 0
			}
			if n != want || err != nil {
				t.Errorf("got %d %v, want %d", n, err, want)
			}
		})
	}
}
