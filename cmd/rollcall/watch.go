package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"rollcall/sip"
)

// clientFlags are those of every command that speaks SIP.
func clientFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name: "server", EnvVars: []string{"ROLLCALL_SERVER"}, DefaultText: "the address in URI if it has one, else " + defaultServer,
			Usage: "where to send requests, as `URI` sip:HOST[:PORT][;transport=tcp]",
		},
		&cli.StringFlag{Name: "from", EnvVars: []string{"ROLLCALL_FROM"}, Usage: "our own `URI`"},
		&cli.DurationFlag{Name: "timeout", Value: 10 * time.Second, Usage: "how long to wait for an answer, at most 32s"},
		&cli.BoolFlag{DisableDefaultText: true, Name: "trace", Usage: "show every SIP message on standard error"},
		jsonFlag(),
	}
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{DisableDefaultText: true, Name: "json", Usage: "print JSON, one object per line"}
}

// resource reads the URI argument; sip: may be left out.
func resource(c *cli.Context) (string, error) {
	args, err := arguments(c, "URI")
	if err != nil {
		return "", err
	}
	return sipURI(c, args[0])
}

func sipURI(c *cli.Context, s string) (string, error) {
	u, err := sip.ParseURI(s)
	if err != nil && !strings.Contains(strings.SplitN(s, "@", 2)[0], ":") {
		u, err = sip.ParseURI("sip:" + s)
	}
	if err != nil {
		return "", usagef(c, "%q is not a URI: %w", s, err)
	}
	return u.String(), nil
}

// dialServer makes the agent of a client command.
func dialServer(c *cli.Context, uri string) (*agent, error) {
	if c.Duration("timeout") <= 0 {
		return nil, usagef(c, "--timeout must be more than 0")
	}
	server := c.String("server")
	if server == "" {
		server = serverOf(uri)
	}
	var trace io.Writer
	if c.Bool("trace") {
		trace = c.App.ErrWriter
	}
	return newAgent(c.Context, server, trace)
}

// serverOf is the server to ask when none was named: the one a URI points at
// by an address or a port, else the default one.
func serverOf(uri string) string {
	u, err := sip.ParseURI(uri)
	if err != nil || u.Scheme != "sip" {
		return defaultServer
	}
	if _, _, err := sip.LiteralHop(uri); err != nil && u.Port == 0 {
		return defaultServer
	}
	return sip.URI{Scheme: "sip", Host: u.Host, Port: u.Port, Params: u.Params}.String()
}

func watchCommand() *cli.Command {
	flags := append(clientFlags(),
		&cli.StringFlag{Name: "event", Value: "presence", Usage: "event package, with ;id=... if wanted"},
		&cli.IntFlag{Name: "expires", Value: 600, Usage: "subscribe for `SECONDS`; 0 asks once"},
		&cli.DurationFlag{Name: "for", Usage: "end after this time", DefaultText: "no limit"},
		&cli.IntFlag{Name: "count", Usage: "end after `N` NOTIFYs", DefaultText: "no limit"},
		&cli.BoolFlag{DisableDefaultText: true, Name: "no-list", Usage: "do not say that lists are understood (Supported: eventlist)"},
	)
	return &cli.Command{
		Name: "watch", Usage: "subscribe to a presentity or list and print what comes", ArgsUsage: "URI", Flags: flags,
		Description: "A subscriber for any presence server: over UDP or TCP, refreshed in time, ended in order (Ctrl-C too). Every NOTIFY is " +
			"printed; partial lists are put together, lost versions are noticed and full state is asked for.\n" +
			"Exit code 3 when the server says 404, 4 when it does not answer, 1 when it refuses.\n\n" +
			"Examples:\n\n   rollcall watch sip:friends@example.com --from sip:alice@example.com\n" +
			"   rollcall watch sip:bob@example.com --server 'sip:192.0.2.1;transport=tcp' --json --count 1",
		Action: watch,
	}
}

func watch(c *cli.Context) error {
	uri, err := resource(c)
	if err != nil {
		return err
	}
	from, err := fromURI(c, uri)
	if err != nil {
		return err
	}
	if c.Int("expires") < 0 || c.Int("count") < 0 || c.Duration("for") < 0 {
		return usagef(c, "--expires, --count and --for cannot be negative")
	}
	a, err := dialServer(c, uri)
	if err != nil {
		return withCode(err)
	}
	defer a.close()
	ctx := c.Context
	if d := c.Duration("for"); d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	w := &watcher{
		sub:     newSubscription(a, interest{uri: uri, from: from, event: c.String("event"), list: !c.Bool("no-list"), limit: c.Duration("timeout")}),
		expires: time.Duration(c.Int("expires")) * time.Second, count: c.Int("count"),
		note: func(format string, args ...any) { note(c, format, args...) },
		show: func(s *sight) { c.App.Writer.Write(s.text()) },
	}
	if c.Bool("json") {
		w.show = func(s *sight) { printJSON(c.App.Writer, s.json()) }
	}
	if err := w.run(ctx); err != nil {
		return withCode(err)
	}
	if w.notifies == 0 && c.Context.Err() == nil {
		return fmt.Errorf("no NOTIFY came within %v", c.Duration("for"))
	}
	return nil
}

// fromURI is who we say we are: by default rollcall of the domain asked for.
func fromURI(c *cli.Context, uri string) (string, error) {
	if from := c.String("from"); from != "" {
		return sipURI(c, from)
	}
	u, err := sip.ParseURI(uri)
	if err != nil || u.Host == "" {
		return "sip:rollcall@localhost", nil
	}
	return sip.URI{Scheme: "sip", User: "rollcall", Host: u.Host}.String(), nil
}

// text is a NOTIFY for people: a line about it and a table.
func (s *sight) text() []byte {
	n := s.n
	head := []string{n.at.Local().Format("15:04:05.000"), clean(s.uri), dash(clean(n.state))}
	if n.reason != "" {
		head = append(head, "reason "+clean(n.reason))
	}
	if n.expires >= 0 {
		head = append(head, fmt.Sprintf("expires %v", n.expires))
	}
	var rows []member
	if s.known != nil {
		l := &s.known.root
		kind := "partial"
		if l.full {
			kind = "full"
		}
		head = append(head, fmt.Sprintf("version %d %s", l.version, kind), plural(len(l.rows), "member"))
		rows = s.known.members()
	} else if len(n.body) > 0 {
		head = append(head, clean(n.contentType))
	}
	b := append([]byte(strings.Join(head, "  ")), '\n')
	switch {
	case s.fault != "":
	case s.known != nil && len(n.body) > 0:
		b = buddies(rows).append(b)
	case s.known == nil && (s.basic != "" || s.note != ""):
		b = buddies([]member{{URI: s.uri, State: "active", Basic: s.basic, Note: s.note, since: n.at}}).append(b)
	case s.known == nil && len(n.body) > 0:
		for line := range strings.Lines(string(n.body)) {
			b = append(b, clean(strings.TrimRight(line, "\r\n"))...)
			b = append(b, '\n')
		}
	}
	return append(b, '\n')
}

// jsonNotify is what every NOTIFY says.
type jsonNotify struct {
	Time        string `json:"time"`
	URI         string `json:"uri"`
	Event       string `json:"event"`
	State       string `json:"state"`
	Reason      string `json:"reason"`
	Expires     *int   `json:"expires"` // seconds, null: not said
	CSeq        uint32 `json:"cseq"`
	ContentType string `json:"content_type"`
	Error       string `json:"error,omitempty"` // the body was not understood
}

// jsonSingle is a NOTIFY about one resource.
type jsonSingle struct {
	jsonNotify
	Basic string `json:"basic"`
	Note  string `json:"note"`
	Body  string `json:"body,omitempty"` // when it is no presence document
}

// jsonListed is a NOTIFY about a list: all that is known, not only what is new.
type jsonListed struct {
	jsonNotify
	List      string   `json:"list"`
	Name      string   `json:"name"`
	Version   uint32   `json:"version"`
	FullState bool     `json:"full_state"`
	Members   []member `json:"members"`
}

func (s *sight) json() any {
	n := s.n
	j := jsonNotify{Time: stamp(n.at), URI: s.uri, Event: n.event, State: n.state, Reason: n.reason, CSeq: n.cseq, ContentType: n.contentType, Error: s.fault}
	if n.expires >= 0 {
		e := int(n.expires / time.Second)
		j.Expires = &e
	}
	if s.known != nil {
		l := &s.known.root
		out := jsonListed{jsonNotify: j, List: l.uri, Name: l.name, Version: l.version, FullState: l.full, Members: s.known.members()}
		if out.Members == nil {
			out.Members = []member{}
		}
		return out
	}
	out := jsonSingle{jsonNotify: j, Basic: s.basic, Note: s.note}
	if s.basic == "" && s.note == "" {
		out.Body = string(n.body)
	}
	return out
}

// printJSON writes one object on one line.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
