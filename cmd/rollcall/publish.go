package main

import (
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"rollcall/pa/dialoginfo"
	"rollcall/pa/mwi"
	"rollcall/pa/pidf"
	"rollcall/sip"
)

// publisher publishes one document of one presentity (RFC 3903 section 4). event
// and bodyType are empty for presence.
type publisher struct {
	event, bodyType string

	a         *agent
	uri, from string
	limit     time.Duration
	callID    string
	tag       string
	cseq      uint32
	etag      string // of the last success
}

func newPublisher(a *agent, uri, from string, limit time.Duration) *publisher {
	return &publisher{a: a, uri: uri, from: from, limit: limit, callID: token(), tag: token()}
}

// publish sends a PUBLISH: body nil refreshes, expires 0 removes. It keeps the
// new entity tag and gives what the server granted.
func (p *publisher) publish(ctx context.Context, body []byte, expires time.Duration) (time.Duration, error) {
	p.cseq++
	o := outgoing{
		method: sip.PUBLISH, uri: p.uri, from: "<" + p.from + ">;tag=" + p.tag, to: "<" + p.uri + ">", callID: p.callID, cseq: p.cseq,
		headers: []string{"Event", cmp.Or(p.event, "presence"), "Expires", strconv.FormatInt(int64(expires/time.Second), 10)},
		body:    body,
	}
	if p.etag != "" {
		o.headers = append(o.headers, "SIP-If-Match", p.etag)
	}
	if body != nil {
		o.bodyType = cmp.Or(p.bodyType, pidf.MediaType)
	}
	m, err := p.a.do(ctx, p.limit, func(via string) ([]byte, netip.AddrPort) { return o.append(nil, via), p.a.server })
	if err != nil {
		return 0, err
	}
	if m.Status() >= 300 {
		return 0, refused(m)
	}
	p.etag = string(m.Header(sip.HdrSIPETag))
	if v, ok, err := m.Uint(sip.HdrExpires); ok && err == nil && (v > 0 || expires == 0) {
		return time.Duration(v) * time.Second, nil
	}
	return expires, nil
}

// document writes a presence document with one tuple.
func document(entity, basic, note string) []byte {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<presence xmlns="` + pidf.Space + `" entity="`)
	xml.EscapeText(&b, []byte(entity))
	b.WriteString(`"><tuple id="rollcall"><status><basic>` + basic + `</basic></status>`)
	if note != "" {
		b.WriteString("<note>")
		xml.EscapeText(&b, []byte(note))
		b.WriteString("</note>")
	}
	b.WriteString("</tuple></presence>\n")
	return []byte(b.String())
}

func publishCommand() *cli.Command {
	flags := append(clientFlags(),
		&cli.StringFlag{Name: "status", Usage: "`STATUS` to publish: open or closed"},
		&cli.StringFlag{Name: "note", Usage: "`TEXT` for people to read"},
		&cli.StringFlag{Name: "file", Usage: "publish this `FILE` instead; - is standard input"},
		&cli.StringFlag{Name: "event", Value: "presence", Usage: "event package; others than presence take a --file"},
		&cli.StringFlag{Name: "type", Usage: "media `TYPE` of the file", DefaultText: "that of the package"},
		&cli.IntFlag{Name: "expires", Value: 3600, Usage: "publish for `SECONDS`"},
		&cli.StringFlag{Name: "etag", Usage: "entity `TAG` of the publication to replace, refresh (no status) or remove"},
		&cli.BoolFlag{DisableDefaultText: true, Name: "remove", Usage: "remove the publication --etag"},
		&cli.BoolFlag{DisableDefaultText: true, Name: "keep", Usage: "stay, refresh in time, remove at the end (Ctrl-C)"},
	)
	return &cli.Command{
		Name: "publish", Usage: "publish the state of a presentity, its calls or its mail box", ArgsUsage: "URI", Flags: flags,
		Description: "Prints the entity tag and the time granted, which a later call needs to replace or remove the state.\n" +
			"Exit code 3 when the server says 404, 4 when it does not answer, 1 when it refuses.\n\n" +
			"Examples:\n\n   rollcall publish sip:bob@example.com --status open --note 'In a meeting' --keep\n" +
			"   rollcall publish sip:bob@example.com --etag 3f9a --remove\n" +
			"   rollcall publish sip:bob@example.com --event dialog --file call.xml",
		Action: publish,
	}
}

func publish(c *cli.Context) error {
	uri, err := resource(c)
	if err != nil {
		return err
	}
	body, err := publishBody(c, uri)
	if err != nil {
		return err
	}
	name, _, _ := strings.Cut(c.String("event"), ";")
	bodyType := cmp.Or(c.String("type"), bodyTypes[c.String("event")], bodyTypes[name])
	if body != nil && bodyType == "" {
		return usagef(c, "--type is missing: the media type of package %s is not known", name)
	}
	from := uri
	if f := c.String("from"); f != "" {
		if from, err = sipURI(c, f); err != nil {
			return err
		}
	}
	expires := time.Duration(c.Int("expires")) * time.Second
	a, err := dialServer(c, uri)
	if err != nil {
		return withCode(err)
	}
	defer a.close()
	p := newPublisher(a, uri, from, c.Duration("timeout"))
	p.etag, p.event, p.bodyType = c.String("etag"), c.String("event"), bodyType
	if c.Bool("remove") {
		expires = 0
	}
	granted, err := p.publish(c.Context, body, expires)
	var r *refusal
	if errors.As(err, &r) && r.status == 423 && time.Duration(r.min)*time.Second > expires {
		expires = time.Duration(r.min) * time.Second
		note(c, "the server wants at least %v", expires)
		granted, err = p.publish(c.Context, body, expires)
	}
	if err != nil {
		if c.Context.Err() != nil {
			return errors.New("interrupted")
		}
		return withCode(err)
	}
	if err := p.print(c, granted); err != nil || !c.Bool("keep") {
		return err
	}
	return p.keep(c, body, expires, granted)
}

// publishBody is the document to publish, nil to refresh or remove.
func publishBody(c *cli.Context, uri string) ([]byte, error) {
	status, file, remove, presence := c.String("status"), c.String("file"), c.Bool("remove"), c.String("event") == "presence"
	switch {
	case strings.ContainsAny(c.String("event")+c.String("type"), " \t\r\n"), c.String("event") == "":
		return nil, usagef(c, "--event and --type have no spaces")
	case !presence && (status != "" || c.String("note") != ""):
		return nil, usagef(c, "--status and --note are about presence; --event %s takes a --file", c.String("event"))
	case !presence && file == "" && c.String("etag") == "":
		return nil, usagef(c, "--file is missing")
	case c.String("type") != "" && file == "":
		return nil, usagef(c, "--type goes with --file")
	case c.Int("expires") <= 0:
		return nil, usagef(c, "--expires must be more than 0; --remove removes a publication")
	case remove && c.String("etag") == "":
		return nil, usagef(c, "--remove needs --etag, the tag that was printed when it was published")
	case remove && (status != "" || file != "" || c.String("note") != "" || c.Bool("keep")):
		return nil, usagef(c, "--remove goes with nothing but --etag")
	case status != "" && file != "":
		return nil, usagef(c, "--status and --file exclude each other")
	case file != "" && c.String("note") != "":
		return nil, usagef(c, "--note goes with --status; a --file has its own")
	case status != "" && status != "open" && status != "closed":
		return nil, usagef(c, "--status %q is neither open nor closed", status)
	case status == "" && file == "" && (c.String("etag") == "" || c.String("note") != ""):
		return nil, usagef(c, "--status open or --status closed is missing")
	case status != "":
		return document(uri, status, c.String("note")), nil
	case file == "":
		return nil, nil
	}
	var b []byte
	var err error
	if file == "-" {
		b, err = io.ReadAll(c.App.Reader)
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, coded(exitUsage, err)
	}
	if err := readable(c.String("event"), b); err != nil {
		note(c, "%s: %v; it is sent all the same", file, err)
	}
	return b, nil
}

// readable tells what is wrong with a document, as far as its package is known.
func readable(event string, body []byte) error {
	var err error
	switch event {
	case "presence":
		_, err = pidf.Parse(body, pidf.Limits{Bytes: 1 << 20})
	case "dialog":
		_, err = dialoginfo.Parse(body, dialoginfo.Limits{Bytes: 1 << 20})
	case "message-summary":
		_, err = mwi.Parse(body)
	}
	return err
}

func (p *publisher) print(c *cli.Context, granted time.Duration) error {
	if c.Bool("json") {
		return printJSON(c.App.Writer, struct {
			Time    string `json:"time"`
			URI     string `json:"uri"`
			ETag    string `json:"etag"`
			Expires int    `json:"expires"`
		}{stamp(time.Now()), p.uri, p.etag, int(granted / time.Second)})
	}
	_, err := fmt.Fprintf(c.App.Writer, "etag %s  expires %d\n", dash(clean(p.etag)), int(granted/time.Second))
	return err
}

// keep refreshes a publication until the context ends, then removes it.
func (p *publisher) keep(c *cli.Context, body []byte, expires, granted time.Duration) error {
	end := time.Now().Add(granted)
	timer := time.NewTimer(granted - refreshLead(granted))
	defer timer.Stop()
	wait := retryFirst
	for {
		select {
		case <-timer.C:
		case <-c.Context.Done():
			ctx, cancel := context.WithTimeout(context.Background(), endWait)
			defer cancel()
			if _, err := p.publish(ctx, nil, 0); err != nil {
				note(c, "not removed: %v", err)
			}
			return nil
		}
		again := []byte(nil) // a refresh has no body (PUB-07)
		if p.etag == "" || !time.Now().Before(end) {
			p.etag, again = "", body
		}
		// Not given up on Ctrl-C, because the tag to remove comes with the answer.
		ctx := context.WithoutCancel(c.Context)
		got, err := p.publish(ctx, again, expires)
		var r *refusal
		if errors.As(err, &r) && r.status == 412 && body != nil {
			note(c, "the server has forgotten the publication, publishing anew")
			p.etag = ""
			got, err = p.publish(ctx, body, expires)
		}
		if errors.As(err, &r) && r.status < 500 && r.status != 408 {
			return withCode(err)
		}
		if err != nil {
			note(c, "refresh: %v; next attempt in %v", err, wait)
			timer.Reset(wait)
			wait = min(2*wait, retryMost)
			continue
		}
		if err := p.print(c, got); err != nil {
			return err
		}
		wait, end = retryFirst, time.Now().Add(got)
		timer.Reset(got - refreshLead(got))
	}
}
