package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/urfave/cli/v2"

	"rollcall/server"
)

func authCommand() *cli.Command {
	return &cli.Command{
		Name: "auth", Usage: "who may see what, and why",
		Subcommands: []*cli.Command{{
			Name: "explain", Usage: "decide for a pair and name the rules and conditions that decided", ArgsUsage: "WATCHER PRESENTITY",
			Flags: append(apiFlags(),
				&cli.StringFlag{Name: "package", Usage: "event `PACKAGE` that is subscribed to", DefaultText: "presence"},
				&cli.BoolFlag{Name: "message", Usage: "decide about a MESSAGE, by the im-rules, instead of a subscription"}),
			Description: "The pair need not have anything to do with each other yet. WATCHER may be several identities of one watcher, comma separated; who is not " +
				"authenticated is sip:anonymous@anonymous.invalid.\nExit code 3 when PRESENTITY is not local or a list, 4 when the server does not answer.\n\n" +
				"Example:\n\n   rollcall auth explain sip:bob@example.com sip:alice@example.com",
			Action: authExplain,
		}},
	}
}

func authExplain(c *cli.Context) error {
	args, err := arguments(c, "WATCHER", "PRESENTITY")
	if err != nil {
		return err
	}
	q := url.Values{}
	for w := range strings.SplitSeq(args[0], ",") {
		uri, err := sipURI(c, strings.TrimSpace(w))
		if err != nil {
			return err
		}
		q.Add("watcher", uri)
	}
	uri, err := sipURI(c, args[1])
	if err != nil {
		return err
	}
	q.Set("presentity", uri)
	if p := c.String("package"); p != "" {
		q.Set("package", p)
	}
	if c.Bool("message") {
		q.Set("method", "MESSAGE")
	}
	b, err := ask(c, "auth", q)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, json.RawMessage(b))
	}
	var a server.Authorization
	if err := decode(b, &a); err != nil {
		return err
	}
	return printAuth(c.App.Writer, &a)
}

func printAuth(w io.Writer, a *server.Authorization) error {
	line := func(format string, args ...any) { fmt.Fprintln(w, clean(fmt.Sprintf(format, args...))) }
	what := "MESSAGE"
	if a.Method != what {
		what = a.Package
	}
	line("%s to %s: %s, %s", strings.Join(append([]string{a.Watcher}, a.Aliases...), ", "), a.Presentity, a.Handling, a.Status)
	why := map[string]string{
		"owner": "the presentity asks for itself", "open": "everybody may, no rules are read", "owner-only": "for the presentity alone",
		"rules": "by rules", "default": "no rule counted",
	}[a.Basis]
	if why == "" {
		why = a.Basis
	}
	if a.Default != "" {
		why += ": " + a.Default
	}
	line("%s: %s", what, why)
	if a.Sphere != "" {
		line("sphere: %s", a.Sphere)
	}
	if len(a.Grants) > 0 {
		line("shows: %s", strings.Join(a.Grants, ", "))
	} else if a.Method != "MESSAGE" && a.Allowed {
		line("shows: nothing")
	}
	if a.NextChange != nil {
		line("time may change it at %s", moment(*a.NextChange))
	}
	if len(a.Rules) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	t := &table{head: []string{"Rule", "Counts", "Handling", "Document", "Why"}}
	for i := range a.Rules {
		r := &a.Rules[i]
		handling, counts := r.Handling, "no"
		if a.Method == "MESSAGE" {
			handling = r.Message
		}
		if r.Matched {
			counts = "yes"
		}
		t.add(dash(r.ID), counts, dash(handling), dash(r.Document), ruleReason(r))
	}
	return t.print(w)
}

// ruleReason says why a rule counted or not.
func ruleReason(r *server.RuleReport) string {
	var failed []string
	for _, c := range r.Conditions {
		if c.Holds {
			continue
		}
		text := c.Condition + " is " + dash(c.Is)
		if c.Wants != "" {
			text += ", not " + c.Wants
		}
		failed = append(failed, text)
	}
	switch {
	case len(failed) > 0:
		return strings.Join(failed, "; ")
	case r.Outranked:
		return "a rule that names the watcher more closely counts"
	case len(r.Conditions) == 0:
		return "for everybody"
	}
	return "all conditions hold"
}
