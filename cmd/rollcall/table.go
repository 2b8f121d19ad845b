package main

import (
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// table is for people: columns in line, cells cut to a width, text made safe.
type table struct {
	head []string
	max  []int // runes of a column, 0 for any
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// append writes the table. No line ends in spaces.
func (t *table) append(dst []byte) []byte {
	width := make([]int, len(t.head))
	all := append([][]string{t.head}, t.rows...)
	for r, row := range all {
		for i := range row {
			if r > 0 {
				row[i] = clean(row[i])
			}
			if i < len(t.max) && t.max[i] > 0 {
				row[i] = clip(row[i], t.max[i])
			}
			width[i] = max(width[i], utf8.RuneCountInString(row[i]))
		}
	}
	for _, row := range all {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		dst = append(dst, strings.TrimRight(line.String(), " ")...)
		dst = append(dst, '\n')
	}
	return dst
}

func (t *table) print(w io.Writer) error {
	_, err := w.Write(t.append(nil))
	return err
}

func clip(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// dash stands for nothing.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// clock writes a time of day for people.
func clock(t time.Time) string { return t.Local().Format("15:04:05") }

// buddies is the table of a list's members.
func buddies(members []member) *table {
	t := &table{head: []string{"Buddy", "State", "Note", "Since"}, max: []int{40, 12, 40, 0}}
	for _, m := range members {
		name := m.Name
		if name == "" {
			name = m.URI
		}
		state, note := m.Basic, m.Note
		switch {
		case m.List:
			state = "list"
			if note == "" {
				note = plural(m.members, "member")
			}
		case m.State == "":
			state = "unknown"
		case m.State != "active" || state == "":
			state = m.State
		}
		if note == "" && m.Reason != "" {
			note = "(" + m.Reason + ")"
		}
		t.add(strings.Repeat("  ", m.Depth)+name, state, note, clock(m.since))
	}
	return t
}
