package dialog

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden transcripts in testdata")

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// TestTranscripts plays testdata/*.txt: lines without a tab are commands or
// comments, the lines with a tab after a command are the effects and, after
// "=", the state it leads to. Instants are seconds since the start.
//
// Commands to the notifier machine: interval D; subscribe SECONDS;
// update STATE [REASON] [retry-after D] [error STATUS]; answer STATUS
// [retry-after D]; unsent; unsent error; tick D; cseq N (as if that many
// NOTIFYs were sent); restore CEILING OFFSET EXPIRES [notify|notify+SECONDS].
//
// Commands to the subscriber machine: start SECONDS; answer STATUS
// [expires SECONDS] [min-expires SECONDS] [retry-after D]; notify STATE
// [expires SECONDS] [reason REASON] [retry-after D]; stop; tick D; restore
// early AGE, restore live EXPIRES AT or restore leaving AT (asked for 600 s;
// AT is its turn).
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		t.Run(name, func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var m transcript
			switch kind, _, _ := strings.Cut(name, "_"); kind {
			case "notifier":
				m = &notifierScript{}
			case "subscriber":
				m = &subscriberScript{}
			default:
				t.Fatalf("which machine is %s for?", name)
			}
			var got bytes.Buffer
			for n, line := range strings.Split(strings.TrimRight(string(want), "\n"), "\n") {
				if strings.HasPrefix(line, "\t") {
					continue
				}
				got.WriteString(line + "\n")
				if args := strings.Fields(line); len(args) > 0 && !strings.HasPrefix(line, "#") {
					if err := m.do(&got, args); err != nil {
						t.Fatalf("line %d: %s: %v", n+1, line, err)
					}
				}
			}
			switch {
			case bytes.Equal(got.Bytes(), want):
			case *update:
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			default:
				t.Errorf("differs (rewrite with -update, and review):\n%s", diff(string(want), got.String()))
			}
		})
	}
}

// diff shows the first lines that differ with what stands before them.
func diff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	i := 0
	for i < len(w) && i < len(g) && w[i] == g[i] {
		i++
	}
	from := max(i-8, 0)
	return fmt.Sprintf("%s\nwant\n%s\ngot\n%s", strings.Join(w[from:i], "\n"), strings.Join(w[i:min(i+6, len(w))], "\n"),
		strings.Join(g[i:min(i+6, len(g))], "\n"))
}

type transcript interface {
	do(out *bytes.Buffer, args []string) error
}

// options reads "name value" pairs; a word that is no name is a reason.
func options(args []string) (o struct {
	wait, expires, minExpires time.Duration
	reason                    Reason
	status                    int
	same, partly              bool
}, err error,
) {
	for i := 0; i < len(args); i++ {
		name := args[i]
		switch name {
		case "retry-after", "expires", "min-expires", "error", "reason":
			if i++; i == len(args) {
				return o, fmt.Errorf("%s of what?", name)
			}
		case "same", "partly":
			o.same, o.partly = o.same || name == "same", o.partly || name == "partly"
			continue
		default:
			o.reason = Reason(name)
			continue
		}
		switch name {
		case "retry-after":
			o.wait, err = time.ParseDuration(args[i])
		case "expires":
			o.expires, err = parseSeconds(args[i])
		case "min-expires":
			o.minExpires, err = parseSeconds(args[i])
		case "error":
			o.status, err = strconv.Atoi(args[i])
		case "reason":
			o.reason = Reason(args[i])
		}
		if err != nil {
			return o, err
		}
	}
	return o, nil
}

func parseSeconds(s string) (time.Duration, error) {
	n, err := strconv.Atoi(s)
	return time.Duration(n) * time.Second, err
}

func parseState(s string) (SubState, error) {
	for st := Unknown; st <= Terminated; st++ {
		if st.String() == s {
			return st, nil
		}
	}
	return 0, fmt.Errorf("no state %q", s)
}

func since[T time.Time | moment](t T) string {
	var d time.Duration
	switch t := any(t).(type) {
	case time.Time:
		d = t.Sub(epoch)
	case moment:
		d = t.sub(start)
	}
	return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s"
}

// start is the moment at which scripts and walks begin.
const start moment = 1

// notifierScript plays the runtime's part for a Notifier: one timer, the
// earliest that is wanted, and a flush after each event.
type notifierScript struct {
	n       Notifier
	elapsed time.Duration
	timer   moment // zero: none
	gone    bool
}

func (s *notifierScript) now() moment { return start.add(s.elapsed) }

func (s *notifierScript) do(out *bytes.Buffer, args []string) error {
	cmd, args := args[0], args[1:]
	if len(args) == 0 && cmd != "unsent" {
		return fmt.Errorf("no argument")
	}
	var ev notifierEvent
	var err error
	switch cmd {
	case "interval":
		d, err := time.ParseDuration(args[0])
		s.n.interval = millis(d)
		return err
	case "cseq":
		n, err := strconv.Atoi(args[0])
		s.n.cseq = uint32(n)
		s.state(out)
		return err
	case "restore":
		if len(args) < 3 {
			return fmt.Errorf("restore CEILING OFFSET EXPIRES [notify|notify+SECONDS|within+SECONDS]")
		}
		ceiling, _ := strconv.Atoi(args[0])
		offset, _ := strconv.Atoi(args[1])
		expires, err := parseSeconds(args[2])
		at, notify := s.now(), false
		if len(args) > 3 {
			var wait string
			_, wait, _ = strings.Cut(args[3], "+")
			d, _ := parseSeconds(wait)
			at, notify = at.add(d), strings.HasPrefix(args[3], "notify")
		}
		s.n.restored(&SubscriptionRow{CSeqCeiling: uint32(ceiling), VersionOffset: uint32(offset)}, s.now().add(expires), at, notify)
		s.setTimer(s.n.expires)
		s.state(out)
		return err
	case "tick":
		d, err := time.ParseDuration(args[0])
		s.tick(out, d)
		s.state(out)
		return err
	case "subscribe":
		ev.kind = evSubscribe
		ev.expires, err = parseSeconds(args[0])
	case "update":
		o, oerr := options(args[1:])
		ev = notifierEvent{kind: evUpdate, reason: o.reason, retryAfter: o.wait, whole: !o.partly, same: o.same}
		if o.status != 0 {
			ev.err = Refuse(o.status, "")
		}
		if ev.state, err = parseState(args[0]); err == nil {
			err = oerr
		}
	case "answer":
		o, oerr := options(args[1:])
		ev = notifierEvent{kind: evAnswer, retryAfter: o.wait}
		if ev.status, err = strconv.Atoi(args[0]); err == nil {
			err = oerr
		}
	case "unsent":
		ev.kind = evUnsent
		if len(args) > 0 {
			ev.err = Refuse(503, "")
		}
	default:
		return fmt.Errorf("unknown command")
	}
	s.step(out, ev)
	s.state(out)
	return err
}

func (s *notifierScript) setTimer(at moment) {
	if s.timer == 0 || at < s.timer {
		s.timer = at
	}
}

func (s *notifierScript) tick(out *bytes.Buffer, d time.Duration) {
	end := s.elapsed + d
	for s.timer != 0 && s.timer <= start.add(end) {
		s.elapsed = max(s.elapsed, s.timer.sub(start))
		s.timer = 0
		var b bytes.Buffer
		s.step(&b, notifierEvent{kind: evTimer})
		if b.Len() > 0 {
			fmt.Fprintf(out, "\tat %s:\n%s", since(s.now()), &b)
		}
	}
	s.elapsed = end
}

func (s *notifierScript) step(out *bytes.Buffer, ev notifierEvent) {
	var fx effects
	s.n.step(s.now(), ev, &fx)
	if s.n.owed && !s.n.inFlight {
		s.n.step(s.now(), notifierEvent{kind: evFlush}, &fx)
	}
	for _, e := range fx {
		switch e.kind {
		case fxRespond:
			status, after := 200, time.Duration(0)
			if e.err != nil {
				status, after = e.err.Status, e.err.RetryAfter
			}
			fmt.Fprintf(out, "\trespond %d", status)
			if after > 0 {
				fmt.Fprintf(out, " retry-after %v", after)
			}
			out.WriteByte('\n')
		case fxAttach:
			out.WriteString("\tattach\n")
		case fxDetach:
			out.WriteString("\tdetach\n")
		case fxStore:
			fmt.Fprintf(out, "\tstore expires %s, ceiling %d\n", since(s.n.expires), s.n.ceiling)
		case fxForget:
			out.WriteString("\tforget\n")
		case fxCeiling:
			fmt.Fprintf(out, "\tstore ceiling %d\n", s.n.ceiling)
		case fxNotify:
			fmt.Fprintf(out, "\tNOTIFY %d %s", s.n.cseq, s.n.state())
			if s.n.state() == Terminated {
				fmt.Fprintf(out, ";reason=%s", s.n.reason())
				if s.n.retryAfter() > 0 {
					fmt.Fprintf(out, ";retry-after=%s", seconds(s.n.retryAfter()))
				}
			} else {
				fmt.Fprintf(out, ";expires=%s", seconds(s.n.expires.sub(s.now())))
			}
			fmt.Fprintf(out, " version %d", s.n.cseq-s.n.offset)
			if e.full {
				out.WriteString(" full")
			}
			out.WriteByte('\n')
		case fxTimer:
			s.setTimer(e.at)
		case fxRemove:
			s.timer, s.gone = 0, true
			out.WriteString("\tremove\n")
		}
	}
}

func (s *notifierScript) state(out *bytes.Buffer) {
	fmt.Fprintf(out, "\t= %s", s.n.phase)
	if s.n.recovery == silent {
		out.WriteString(", source silent")
	}
	if s.n.owed {
		out.WriteString(", owed")
	}
	if s.n.inFlight {
		out.WriteString(", in flight")
	}
	if s.timer != 0 {
		fmt.Fprintf(out, ", timer %s", since(s.timer))
	}
	out.WriteByte('\n')
}

// subscriberScript plays the runtime's part for a Subscriber.
type subscriberScript struct {
	s       Subscriber
	elapsed time.Duration
	timer   time.Time
}

func (s *subscriberScript) now() time.Time { return epoch.Add(s.elapsed) }

func (s *subscriberScript) do(out *bytes.Buffer, args []string) error {
	cmd, args := args[0], args[1:]
	if len(args) == 0 && cmd != "stop" {
		return fmt.Errorf("no argument")
	}
	var ev subscriberEvent
	var err error
	switch cmd {
	case "start":
		ev.kind = suStart
		s.s.want, err = parseSeconds(args[0])
	case "restore":
		row, at := RemoteRow{WantMS: 600_000, RemoteTag: "far"}, args[len(args)-1]
		d, err := parseSeconds(args[1])
		if err != nil {
			return err
		}
		switch args[0] {
		case "early":
			row.RemoteTag, row.CreatedMS = "", epoch.Add(-d).UnixMilli()
		case "live":
			row.ExpiresMS = epoch.Add(d).UnixMilli()
		case "leaving":
			row.Leaving = true
		default:
			return fmt.Errorf("restore what?")
		}
		if !s.s.restored(s.now(), &row) {
			out.WriteString("\tover\n")
			return nil
		}
		turn, err := parseSeconds(at)
		if err != nil {
			return err
		}
		if s.s.dialog {
			s.s.resume(s.now(), epoch.Add(turn))
		}
		s.timer = s.s.next()
		s.state(out)
		return nil
	case "stop":
		ev.kind = suStop
	case "answer":
		o, oerr := options(args[1:])
		ev = subscriberEvent{kind: suAnswer, expires: o.expires, minExpires: o.minExpires, retryAfter: o.wait}
		if ev.status, err = strconv.Atoi(args[0]); err == nil {
			err = oerr
		}
	case "notify":
		o, oerr := options(args[1:])
		ev = subscriberEvent{kind: suNotify, expires: o.expires, reason: o.reason, retryAfter: o.wait}
		if ev.state, err = parseState(args[0]); err == nil {
			err = oerr
		}
	case "tick":
		d, err := time.ParseDuration(args[0])
		end := s.elapsed + d
		for !s.timer.IsZero() && !s.timer.After(epoch.Add(end)) {
			if at := s.timer.Sub(epoch); at > s.elapsed {
				s.elapsed = at
			}
			s.timer = time.Time{}
			var b bytes.Buffer
			s.step(&b, subscriberEvent{kind: suTimer})
			if b.Len() > 0 {
				fmt.Fprintf(out, "\tat %s:\n%s", since(s.now()), &b)
			} else if s.timer.Equal(s.now()) {
				return fmt.Errorf("the timer at %s does nothing and is set again", since(s.timer))
			}
		}
		s.elapsed = end
		s.state(out)
		return err
	default:
		return fmt.Errorf("unknown command")
	}
	s.step(out, ev)
	s.state(out)
	return err
}

func (s *subscriberScript) step(out *bytes.Buffer, ev subscriberEvent) {
	var fx []subscriberEffect
	s.s.step(s.now(), ev, &fx)
	for _, e := range fx {
		switch e.kind {
		case sfSubscribe:
			fmt.Fprintf(out, "\tSUBSCRIBE %s\n", seconds(e.expires))
		case sfTimer:
			s.timer = e.at
		case sfDeliver:
			fmt.Fprintf(out, "\tdeliver %s\n", ev.state)
		case sfEnd:
			s.timer = time.Time{}
			fmt.Fprintf(out, "\tend")
			if e.status != 0 {
				fmt.Fprintf(out, " %d", e.status)
			}
			if e.reason != "" {
				fmt.Fprintf(out, " %s", e.reason)
			}
			if e.retryAfter != 0 {
				fmt.Fprintf(out, " retry-after %v", e.retryAfter)
			}
			out.WriteByte('\n')
		}
	}
}

func (s *subscriberScript) state(out *bytes.Buffer) {
	fmt.Fprintf(out, "\t= %s", s.s.phase)
	if s.s.busy {
		out.WriteString(", SUBSCRIBE in flight")
	}
	if !s.s.expires.IsZero() && s.s.phase != suGone {
		fmt.Fprintf(out, ", expires %s", since(s.s.expires))
	}
	if !s.timer.IsZero() {
		fmt.Fprintf(out, ", timer %s", since(s.timer))
	}
	out.WriteByte('\n')
}
