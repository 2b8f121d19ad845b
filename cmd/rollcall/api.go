package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"rollcall/rls/rlmi"
	"rollcall/server"
)

// apiLimit bounds a request to the admin API, apiSize its answer.
const (
	apiLimit = 15 * time.Second
	apiSize  = 256 << 20
)

func httpFlag() cli.Flag {
	return &cli.StringFlag{Name: "http", Value: "127.0.0.1:8080", EnvVars: []string{"ROLLCALL_HTTP"}, Usage: "admin API of the server, `HOST:PORT`"}
}

func apiFlags() []cli.Flag { return []cli.Flag{httpFlag(), jsonFlag()} }

// apiFault is a refusal of the admin API.
type apiFault struct {
	status int
	line   string // the status with its name
	text   string
}

func (f *apiFault) Error() string { return f.line + ": " + f.text }

// ask reads from the admin API. The error has its exit code.
func ask(c *cli.Context, path string, params url.Values) ([]byte, error) {
	return call(c, http.MethodGet, path, params, nil, nil)
}

// call does a request to the admin API and reads the whole answer.
func call(c *cli.Context, method, path string, params url.Values, header http.Header, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(c.Context, apiLimit)
	defer cancel()
	resp, err := request(ctx, c, method, path, params, header, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, apiSize))
	if err != nil {
		return nil, coded(exitUnreachable, fmt.Errorf("answer from %s: %w", resp.Request.Host, err))
	}
	return b, nil
}

// request asks the admin API; whoever gets a response closes its body. An
// answer that is no success is an error with its exit code; it wraps an apiFault.
func request(ctx context.Context, c *cli.Context, method, path string, params url.Values, header http.Header, body []byte) (*http.Response, error) {
	base := strings.TrimRight(c.String("http"), "/")
	if base == "" {
		return nil, usagef(c, "--http is empty")
	}
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	target := base + "/api/v1/" + path
	if len(params) > 0 {
		target += "?" + params.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, usagef(c, "--http %q: %w", c.String("http"), err)
	}
	maps.Copy(req.Header, header)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, coded(exitUnreachable, &unreachable{base, err})
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, coded(exitUnreachable, fmt.Errorf("answer from %s: %w", base, err))
	}
	var fault struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(b, &fault) != nil || fault.Error == "" {
		fault.Error = strings.TrimSpace(string(b[:min(len(b), 200)]))
	}
	err = &apiFault{resp.StatusCode, resp.Status, fault.Error}
	switch {
	case resp.StatusCode == http.StatusNotFound && fault.Error != "" && json.Valid(b):
		return nil, coded(exitNotFound, errors.New(fault.Error))
	case resp.StatusCode == http.StatusBadRequest:
		return nil, coded(exitUsage, err)
	}
	return nil, err
}

// decode reads an answer into v.
func decode(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("the answer is not understood: %w", err)
	}
	return nil
}

// objects prints raw JSON objects, each on a line.
func objects(w io.Writer, all []json.RawMessage) error {
	for _, raw := range all {
		if err := printJSON(w, raw); err != nil {
			return err
		}
	}
	return nil
}

func firstName(names []server.Name) string {
	all := make([]rlmi.Name, len(names))
	for i, n := range names {
		all[i] = rlmi.Name(n)
	}
	return nameOf(all)
}

func listCommand() *cli.Command {
	return &cli.Command{
		Name: "list", Usage: "lists a running server knows",
		Subcommands: []*cli.Command{
			{
				Name: "show", Usage: "show a list with the source of every entry and its problems", ArgsUsage: "URI", Flags: apiFlags(),
				Description: "Exit code 3 when there is no such list, 4 when the server does not answer.\n\n" +
					"Example:\n\n   rollcall list show sip:friends@example.com",
				Action: listShow,
			},
			{
				Name: "ls", Usage: "name all list services", ArgsUsage: " ", Flags: apiFlags(),
				Description: "Example:\n\n   rollcall list ls --json", Action: listLs,
			},
		},
	}
}

// uriParam makes the query for the URI argument.
func uriParam(c *cli.Context) (url.Values, error) {
	uri, err := resource(c)
	return url.Values{"uri": {uri}}, err
}

func listShow(c *cli.Context) error {
	q, err := uriParam(c)
	if err != nil {
		return err
	}
	b, err := ask(c, "list", q)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, json.RawMessage(b))
	}
	var t server.List
	if err := decode(b, &t); err != nil {
		return err
	}
	return printList(c.App.Writer, &t)
}

func printList(w io.Writer, t *server.List) error {
	head := []string{t.URI}
	if n := firstName(t.Names); n != "" {
		head = append(head, strconv.Quote(n))
	}
	head = append(head, plural(t.Members, "member"))
	if t.Packages != nil {
		head = append(head, "packages "+dash(strings.Join(t.Packages, " ")))
	}
	head = append(head, "from "+dash(t.Document), "etag "+dash(t.ETag))
	fmt.Fprintln(w, clean(strings.Join(head, "  ")))
	rows := &table{head: []string{"Member", "Name", "Route", "Source"}}
	problems := &table{head: []string{"Problem", "URI", "Detail", "Source"}}
	collect(t, rows, problems, 0)
	if len(rows.rows) > 0 {
		if err := rows.print(w); err != nil {
			return err
		}
	}
	if len(problems.rows) > 0 {
		fmt.Fprintln(w)
		return problems.print(w)
	}
	return nil
}

// collect makes rows of a list and its nested lists.
func collect(t *server.List, rows, problems *table, depth int) {
	if t.Error != "" {
		problems.add("error", t.URI, t.Error, dash(t.Document))
	}
	for _, p := range t.Problems {
		problems.add(p.Kind, dash(p.URI), p.Detail, dash(p.Source))
	}
	for i := range t.Entries {
		e := &t.Entries[i]
		name := firstName(e.Names)
		if name == "" && e.List != nil {
			name = firstName(e.List.Names)
		}
		rows.add(strings.Repeat("  ", depth)+e.URI, dash(name), dash(e.Route), dash(e.Source))
		if e.List != nil {
			collect(e.List, rows, problems, depth+1)
		}
	}
}

func listLs(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	b, err := ask(c, "lists", nil)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		var all struct {
			Lists []json.RawMessage `json:"lists"`
		}
		if err := decode(b, &all); err != nil {
			return err
		}
		return objects(c.App.Writer, all.Lists)
	}
	var all server.Lists
	if err := decode(b, &all); err != nil {
		return err
	}
	for _, l := range all.Lists {
		fmt.Fprintln(c.App.Writer, clean(l.URI))
	}
	return nil
}

func presentityCommand() *cli.Command {
	return &cli.Command{
		Name: "presentity", Usage: "what a running server knows of a presentity",
		Subcommands: []*cli.Command{{
			Name: "show", Usage: "show publications and watchers", ArgsUsage: "URI", Flags: apiFlags(),
			Description: "Exit code 3 when nobody publishes or watches it, 4 when the server does not answer.\n\n" +
				"Example:\n\n   rollcall presentity show sip:alice@example.com",
			Action: presentityShow,
		}},
	}
}

func presentityShow(c *cli.Context) error {
	q, err := uriParam(c)
	if err != nil {
		return err
	}
	b, err := ask(c, "presentity", q)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, json.RawMessage(b))
	}
	var p server.Presentity
	if err := decode(b, &p); err != nil {
		return err
	}
	w := c.App.Writer
	fmt.Fprintln(w, clean(strings.TrimRight(p.URI+"  "+dash(p.Basic)+"  "+p.Note, " ")))
	if len(p.Publications) > 0 {
		t := &table{head: []string{"Publication", "Event", "State", "Note", "Updated", "Expires", "Bytes"}, max: []int{0, 0, 0, 40}}
		for _, x := range p.Publications {
			t.add(x.ETag, x.Event, dash(x.Basic), dash(x.Note), moment(x.Updated), moment(x.Expires), strconv.Itoa(x.Bytes))
		}
		fmt.Fprintln(w)
		if err := t.print(w); err != nil {
			return err
		}
	}
	if len(p.Watchers) > 0 {
		t := &table{head: []string{"Watcher", "Event", "Status", "Handling", "Since"}}
		for _, x := range p.Watchers {
			t.add(x.URI, x.Event, dash(x.Status), dash(x.Handling), moment(x.Since))
		}
		fmt.Fprintln(w)
		return t.print(w)
	}
	return nil
}

func subscriptionCommand() *cli.Command {
	return &cli.Command{
		Name: "subscription", Usage: "subscriptions at a running server",
		Subcommands: []*cli.Command{{
			Name: "list", Aliases: []string{"ls"}, Usage: "list the subscription dialogs", ArgsUsage: " ", Flags: apiFlags(),
			Description: "Example:\n\n   rollcall subscription list --json", Action: subscriptionList,
		}},
	}
}

func subscriptionList(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	b, err := ask(c, "subscriptions", nil)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		var all struct {
			Subscriptions []json.RawMessage `json:"subscriptions"`
		}
		if err := decode(b, &all); err != nil {
			return err
		}
		return objects(c.App.Writer, all.Subscriptions)
	}
	var all server.Subscriptions
	if err := decode(b, &all); err != nil {
		return err
	}
	t := &table{head: []string{"Resource", "Watcher", "Event", "State", "CSeq", "Expires", "Target", "User agent"}, max: []int{48, 48, 0, 0, 0, 0, 56, 32}}
	for _, s := range all.Subscriptions {
		state := s.State
		if s.InFlight {
			state += " *"
		}
		t.add(s.Resource, dash(s.Watcher), s.Event, dash(state), strconv.FormatUint(uint64(s.CSeq), 10), moment(s.Expires), dash(s.Target), dash(s.Agent))
	}
	if err := t.print(c.App.Writer); err != nil {
		return err
	}
	note(c, "%s; * waits for the answer to a NOTIFY", plural(len(t.rows), "subscription"))
	return nil
}

// moment writes a time for people.
func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}
