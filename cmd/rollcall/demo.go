package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"rollcall/server"
)

const (
	demoDomain = "demo.example"
	demoList   = "sip:friends@" + demoDomain
	demoFirst  = 5 * time.Second        // until the first NOTIFY
	demoPrint  = 300 * time.Millisecond // between two tables that are not redrawn in place
)

// demoServices are the lists of the demo; the directory names no owner, so
// that anybody may subscribe.
const demoServices = `<?xml version="1.0" encoding="UTF-8"?>
<rls-services xmlns="urn:ietf:params:xml:ns:rls-services" xmlns:rl="urn:ietf:params:xml:ns:resource-lists">
  <service uri="sip:friends@demo.example">
    <list name="friends">
      <rl:entry uri="sip:alice@demo.example"><rl:display-name>Alice</rl:display-name></rl:entry>
      <rl:entry uri="sip:bob@demo.example"><rl:display-name>Bob</rl:display-name></rl:entry>
      <rl:entry uri="sip:carol@demo.example"><rl:display-name>Carol</rl:display-name></rl:entry>
      <rl:entry uri="sip:dave@demo.example"><rl:display-name>Dave</rl:display-name></rl:entry>
      <rl:entry uri="sip:family@demo.example"><rl:display-name>Family</rl:display-name></rl:entry>
    </list>
    <packages><package>presence</package></packages>
  </service>
  <service uri="sip:family@demo.example">
    <list name="family">
      <rl:entry uri="sip:mum@demo.example"><rl:display-name>Mum</rl:display-name></rl:entry>
      <rl:entry uri="sip:dad@demo.example"><rl:display-name>Dad</rl:display-name></rl:entry>
    </list>
    <packages><package>presence</package></packages>
  </service>
</rls-services>
`

var demoBuddies = []string{"alice", "bob", "carol", "dave", "mum", "dad"}

// mood is a state of a buddy.
type mood struct{ basic, note string }

var moods = []mood{
	{"open", "Available"},
	{"open", "In a meeting"},
	{"open", "On the phone"},
	{"open", "Working from home"},
	{"open", ""},
	{"closed", "Out for lunch"},
	{"closed", "On the train"},
	{"closed", ""},
}

func demoCommand() *cli.Command {
	return &cli.Command{
		Name: "demo", Usage: "run a server with simulated buddies and show a live list", ArgsUsage: " ",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "for", Usage: "end after this time", DefaultText: "at Ctrl-C"},
			&cli.StringSliceFlag{
				Name: "listen", Usage: "listen on `TRANSPORT:HOST:PORT` instead; one has to be udp; repeatable",
				DefaultText: "udp and tcp on free loopback ports",
			},
		},
		Description: "Everything is real but the people: buddies publish over UDP from sockets of their own, one SUBSCRIBE to the list " +
			demoList + " brings all of them, " + "a nested list included. Nothing is kept.\n\n" +
			"Example:\n\n   rollcall demo --for 20s",
		Action: demo,
	}
}

func demo(c *cli.Context) (err error) {
	if _, err := arguments(c); err != nil {
		return err
	}
	if c.Duration("for") < 0 {
		return usagef(c, "--for cannot be negative")
	}
	ctx := c.Context
	out := &screen{w: c.App.Writer, terminal: isTerminal(c.App.Writer)}
	addr, stop, err := demoServer(c, out.terminal)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if d := c.Duration("for"); d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	begun := time.Now()
	server := "sip:" + addr.String()
	tally := &tally{sent: make(map[string][]sending)}
	leave, err := demoPublish(ctx, server, tally)
	if err != nil {
		return plain(err)
	}
	defer leave()
	tally.forget()
	a, err := newAgent(ctx, server, nil)
	if err != nil {
		return plain(err)
	}
	defer a.close()
	w := &watcher{
		sub:     newSubscription(a, interest{uri: demoList, from: "sip:you@" + demoDomain, event: "presence", list: true, limit: demoFirst}),
		expires: time.Hour,
		note:    func(format string, args ...any) { note(c, format, args...) },
	}
	w.show = func(s *sight) {
		if s.known == nil || len(s.n.body) == 0 {
			return
		}
		members := s.known.members()
		tally.seen(members, s.n.at)
		out.offer(demoTable(s, members, w.notifies, tally))
	}
	err = w.run(ctx)
	out.flush()
	if err != nil {
		return plain(err)
	}
	fmt.Fprintln(c.App.Writer, tally.summary(time.Since(begun), w.notifies))
	if w.notifies == 0 && c.Context.Err() == nil {
		return fmt.Errorf("no NOTIFY came within %v", c.Duration("for"))
	}
	return nil
}

// plain takes an error's exit code away: here it would mislead, because the
// server is our own.
func plain(err error) error { return errors.New(err.Error()) }

// demoServer starts a server on a directory of its own. stop ends it and takes
// the directory away.
func demoServer(c *cli.Context, quiet bool) (addr netip.AddrPort, stop func() error, err error) {
	dir, err := os.MkdirTemp("", "rollcall-demo-")
	if err != nil {
		return addr, nil, err
	}
	tidy := func() error { return os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			tidy()
		}
	}()
	file := filepath.Join(dir, "rls-services", "global", "index")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return addr, nil, err
	}
	if err := os.WriteFile(file, []byte(demoServices), 0o644); err != nil {
		return addr, nil, err
	}
	cfg := server.Default()
	cfg.Listen = []string{"udp:127.0.0.1:0", "tcp:127.0.0.1:0"}
	if l := items(c.StringSlice("listen")); len(l) > 0 {
		cfg.Listen = l
	}
	cfg.HTTP, cfg.Domain = "127.0.0.1:0", []string{demoDomain}
	cfg.Store, cfg.Durability, cfg.XCAP = "memory", "memory", []string{dir}
	cfg.PresenceAuth, cfg.NotifyInterval = "open", map[string]string{"list": "0"}
	if !slices.ContainsFunc(cfg.Listen, func(l string) bool { return strings.HasPrefix(strings.ToLower(l), "udp:") }) {
		return addr, nil, usagef(c, "--listen has no udp address, which the buddies need")
	}
	if err := cfg.Validate(); err != nil {
		return addr, nil, coded(exitUsage, err)
	}
	level := slog.LevelWarn
	if quiet {
		level = slog.LevelError // a line of log would tear the table
	}
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: level}))
	s, err := server.New(cfg, log)
	if err != nil {
		return addr, nil, err
	}
	if err := s.Start(c.Context); err != nil {
		halt(s, log)
		return addr, nil, err
	}
	addrs := make(map[string]string)
	for _, a := range s.Addrs() {
		kind, at, _ := strings.Cut(a, "=")
		if _, have := addrs[kind]; !have {
			addrs[kind] = at
		}
	}
	if addr, err = netip.ParseAddrPort(addrs["udp"]); err != nil {
		halt(s, log)
		return addr, nil, fmt.Errorf("udp listener: %w", err)
	}
	if addr.Addr().IsUnspecified() {
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if addr.Addr().Is6() {
			loopback = netip.IPv6Loopback()
		}
		addr = netip.AddrPortFrom(loopback, addr.Port())
	}
	note(c, "from another terminal: rollcall watch %s --server sip:%s", demoList, addr)
	note(c, "from another terminal: rollcall list show %s --http %s", demoList, addrs["http"])
	return addr, func() error { return errors.Join(halt(s, log), tidy()) }, nil
}

// demoPublish has every buddy publish once, then go on by itself until leave
// is called.
func demoPublish(ctx context.Context, server string, t *tally) (leave func(), err error) {
	var agents []*agent
	var over sync.WaitGroup
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	leave = func() {
		cancel()
		over.Wait()
		for _, a := range agents {
			a.close()
		}
	}
	defer func() {
		if err != nil {
			leave()
		}
	}()
	var first sync.WaitGroup
	failed := make(chan error, len(demoBuddies))
	for _, user := range demoBuddies {
		a, err := newAgent(ctx, server, nil)
		if err != nil {
			return nil, err
		}
		agents = append(agents, a)
		uri := "sip:" + user + "@" + demoDomain
		b := &buddy{p: newPublisher(a, uri, uri, demoFirst), tally: t}
		first.Add(1)
		over.Go(func() {
			err := b.change(life)
			if err != nil {
				failed <- fmt.Errorf("PUBLISH of %s: %w", uri, err)
			}
			first.Done()
			b.live(life)
		})
	}
	first.Wait()
	select {
	case err := <-failed:
		return nil, err
	default:
		return leave, nil
	}
}

// buddy is one simulated person.
type buddy struct {
	p     *publisher
	tally *tally
	now   mood
}

// change takes another mood and publishes it.
func (b *buddy) change(ctx context.Context) error {
	next := b.now
	for next == b.now {
		next = moods[rand.IntN(len(moods))]
	}
	b.now = next
	b.tally.sending(b.p.uri, next)
	_, err := b.p.publish(ctx, document(b.p.uri, next.basic, next.note), time.Hour)
	if err != nil && ctx.Err() == nil {
		b.tally.failed.Add(1)
	}
	return err
}

// live changes the mood every one to three seconds.
func (b *buddy) live(ctx context.Context) {
	timer := time.NewTimer(pause())
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			b.change(ctx)
			timer.Reset(pause())
		case <-ctx.Done():
			return
		}
	}
}

func pause() time.Duration { return time.Second + rand.N(2*time.Second) }

// tally measures how long changes take from PUBLISH to NOTIFY.
type tally struct {
	published, failed atomic.Int64

	mu     sync.Mutex
	sent   map[string][]sending // not seen yet, by URI, oldest first
	newest time.Duration        // of the change sent last among those seen
	all    []time.Duration
}

type sending struct {
	mood
	at time.Time
}

func (t *tally) sending(uri string, m mood) {
	t.published.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sent[uri] = append(t.sent[uri], sending{m, time.Now()})
}

// forget drops what was sent before anybody watched.
func (t *tally) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.sent)
}

// seen matches what a NOTIFY shows with what was sent. Changes that a newer
// one overtook are never shown and do not count.
func (t *tally) seen(members []member, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var last time.Time
	for _, m := range members {
		if !m.Changed {
			continue
		}
		sent := t.sent[m.URI]
		for i := len(sent) - 1; i >= 0; i-- {
			s := sent[i]
			if s.basic != m.Basic || s.note != m.Note {
				continue
			}
			t.all = append(t.all, at.Sub(s.at))
			if s.at.After(last) {
				last, t.newest = s.at, at.Sub(s.at)
			}
			t.sent[m.URI] = sent[i+1:]
			break
		}
	}
}

func (t *tally) latency() (newest time.Duration, any bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.newest, len(t.all) > 0
}

func (t *tally) summary(d time.Duration, notifies int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := fmt.Sprintf("%v: %d PUBLISH sent, %s received", d.Round(100*time.Millisecond), t.published.Load(), plural(notifies, "NOTIFY"))
	if n := len(t.all); n > 0 {
		slices.Sort(t.all)
		s += fmt.Sprintf(", change to NOTIFY median %s, slowest %s", millis(t.all[n/2]), millis(t.all[n-1]))
	}
	if f := t.failed.Load(); f > 0 {
		s += fmt.Sprintf(", %d PUBLISH failed", f)
	}
	return s
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// demoTable is the header and the list.
func demoTable(s *sight, members []member, notifies int, t *tally) []byte {
	latency := "-"
	if d, ok := t.latency(); ok {
		latency = millis(d)
	}
	b := fmt.Appendf(nil, "%s  version %d  %s  newest change took %s\n\n", clean(s.uri), s.known.root.version, plural(notifies, "NOTIFY"), latency)
	return buddies(members).append(b)
}

// screen shows frames: in place on a terminal, else one after the other but
// not too often, the newest last.
type screen struct {
	w        io.Writer
	terminal bool

	mu      sync.Mutex
	lines   int // of the frame on the terminal
	last    time.Time
	waiting []byte
	timer   *time.Timer
}

func (s *screen) offer(frame []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terminal {
		s.draw(frame)
		return
	}
	wait := demoPrint - time.Since(s.last)
	if wait <= 0 && s.waiting == nil {
		s.draw(frame)
		return
	}
	s.waiting = frame
	if s.timer == nil {
		s.timer = time.AfterFunc(wait, s.flush)
	}
}

// flush shows the frame that waits.
func (s *screen) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if s.waiting != nil {
		s.draw(s.waiting)
		s.waiting = nil
	}
}

func (s *screen) draw(frame []byte) {
	s.last = time.Now()
	if !s.terminal {
		s.w.Write(append(slices.Clip(frame), '\n'))
		return
	}
	var b []byte
	if s.lines > 0 {
		b = fmt.Appendf(b, "\x1b[%dA\x1b[J", s.lines)
	}
	// Without wrapping a frame has as many rows as lines.
	b = append(append(append(b, "\x1b[?7l"...), frame...), "\x1b[?7h"...)
	s.lines = bytes.Count(frame, []byte{'\n'})
	s.w.Write(b)
}

// isTerminal tells whether a person is looking.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}
