package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"rollcall/server"
	"rollcall/sip"
)

func traceCommand() *cli.Command {
	return &cli.Command{
		Name: "trace", Usage: "show the SIP messages of a user, peer or dialog at a running server", ArgsUsage: "[URI]",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "peer", Usage: "messages from and to `ADDRESS`, ADDRESS:PORT or ADDRESS/BITS"},
			&cli.StringFlag{Name: "call-id", Usage: "messages with this Call-ID"},
			&cli.DurationFlag{Name: "for", Value: 10 * time.Minute, Usage: "end after this time, at most 24h"},
		}, apiFlags()...),
		Description: "Prints each message as it happens, with time, direction, transport, addresses and size, until the time is over or Ctrl-C. URI is " +
			"looked for in the Request-URI, From, To, Contact and P-Asserted-Identity. Of URI, --peer and --call-id all that are given must agree. " +
			"What authenticates a user is replaced by x.\n" +
			"Exit code 4 when the server does not answer or goes away, 1 when too many traces are running.\n\n" +
			"Examples:\n\n   rollcall trace sip:alice@example.com --for 1m\n   rollcall trace --peer 192.0.2.17 --json",
		Action: traceMessages,
	}
}

func traceMessages(c *cli.Context) error {
	q := url.Values{"for": {c.Duration("for").String()}}
	if c.Args().Present() {
		uri, err := resource(c)
		if err != nil {
			return err
		}
		q.Set("uri", uri)
	}
	for flag, key := range map[string]string{"peer": "peer", "call-id": "call_id"} {
		if v := c.String(flag); v != "" {
			q.Set(key, v)
		}
	}
	if len(q) == 1 {
		return usagef(c, "URI, --peer or --call-id is missing")
	}
	ctx, cancel := context.WithCancel(c.Context)
	defer cancel()
	resp, err := request(ctx, c, "GET", "trace", q, nil, nil)
	if err != nil {
		if c.Context.Err() != nil {
			return nil
		}
		return err
	}
	defer resp.Body.Close()
	messages, dec := 0, json.NewDecoder(resp.Body)
	for {
		var raw json.RawMessage
		var line server.TraceLine
		err := dec.Decode(&raw)
		switch {
		case c.Context.Err() != nil: // Ctrl-C
			return nil
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return coded(exitUnreachable, errors.New("the server has gone"))
		case err != nil:
			return coded(exitUnreachable, fmt.Errorf("answer from %s: %w", resp.Request.Host, err))
		}
		if err := decode(raw, &line); err != nil {
			return err
		}
		if line.Lost > 0 {
			note(c, "%s missing here: more came than could be shown", plural(int(line.Lost), "message"))
		}
		if line.End != "" {
			note(c, "%s, %s", line.End, plural(messages, "message"))
			if line.End != sip.ErrTraceOver.Error() {
				return coded(exitUnreachable, errors.New(line.End))
			}
			return nil
		}
		messages++
		if c.Bool("json") {
			err = printJSON(c.App.Writer, raw)
		} else {
			_, err = c.App.Writer.Write(traceText(&line))
		}
		if err != nil {
			return err
		}
	}
}

// traceText is a message for people: a line about it, the message, an empty
// line.
func traceText(l *server.TraceLine) []byte {
	from, to := l.Remote, l.Local
	if l.Direction == "out" {
		from, to = to, from
	}
	head := fmt.Sprintf("--- %s %-3s %s %s -> %s %d bytes", l.Time.Local().Format("15:04:05.000"), l.Direction, l.Transport, from, to, l.Bytes)
	if l.Note != "" {
		head += " (" + l.Note + ")"
	}
	b := append([]byte(clean(head)), '\n')
	text := l.Message
	if text == "" {
		text = strings.ToValidUTF8(string(l.Data), "\ufffd")
	}
	for line := range strings.Lines(strings.TrimRight(text, "\r\n")) {
		b = append(b, clean(strings.TrimRight(line, "\r\n"))...)
		b = append(b, '\n')
	}
	return append(b, '\n')
}
