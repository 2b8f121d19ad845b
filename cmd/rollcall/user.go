package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"rollcall/server"
	"rollcall/sip/auth"
)

// passwordSize bounds a password, in bytes.
const passwordSize = 1024

func userCommand() *cli.Command {
	const password = "\nThe password is asked for twice on a terminal, else it is the first line of standard input. Only its hashes are sent."
	force := &cli.BoolFlag{DisableDefaultText: true, Name: "force", Usage: "take a domain that is not the server's"}
	return &cli.Command{
		Name: "user", Usage: "users of a running server and their passwords",
		Subcommands: []*cli.Command{
			{
				Name: "add", Usage: "make a user", ArgsUsage: "USER@DOMAIN", Flags: []cli.Flag{httpFlag(), force},
				Description: "Exit code 1 when there is such a user already." + password + "\n\n" +
					"Example:\n\n   rollcall user add alice@example.com\n   pwgen 20 1 | tee /dev/tty | rollcall user add bob@example.com",
				Action: func(c *cli.Context) error { return userPut(c, true) },
			},
			{
				Name: "passwd", Usage: "change a user's password", ArgsUsage: "USER@DOMAIN", Flags: []cli.Flag{httpFlag()},
				Description: "Exit code 3 when there is no such user." + password + "\n\n" +
					"Example:\n\n   rollcall user passwd alice@example.com",
				Action: func(c *cli.Context) error { return userPut(c, false) },
			},
			{
				Name: "rm", Usage: "remove a user", ArgsUsage: "USER@DOMAIN", Flags: []cli.Flag{httpFlag()},
				Description: "Exit code 3 when there is no such user. His documents stay.\n\nExample:\n\n   rollcall user rm alice@example.com",
				Action:      userRemove,
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list the users", ArgsUsage: " ",
				Flags:       append(apiFlags(), &cli.StringFlag{Name: "domain", Usage: "only those of domain `NAME`"}),
				Description: "Example:\n\n   rollcall user list --domain example.com --json", Action: userList,
			},
		},
	}
}

// address reads the argument USER@DOMAIN; sip: may stand before it. The domain
// gets the spelling that the server hashes.
func address(c *cli.Context) (user, domain string, err error) {
	args, err := arguments(c, "USER@DOMAIN")
	if err != nil {
		return "", "", err
	}
	a := args[0]
	if len(a) > 4 && strings.EqualFold(a[:4], "sip:") {
		a = a[4:]
	}
	i := strings.LastIndexByte(a, '@')
	if i <= 0 || i == len(a)-1 {
		return "", "", usagef(c, "%q is not USER@DOMAIN", args[0])
	}
	return a[:i], strings.ToLower(strings.Trim(a[i+1:], "[]")), nil
}

func userPut(c *cli.Context, add bool) error {
	user, domain, err := address(c)
	if err != nil {
		return err
	}
	name := user + "@" + domain
	password, err := readPassword(c, name)
	if err != nil {
		return err
	}
	change := server.UserChange{
		User: user, Domain: domain, Secrets: make(map[string]string), HA1B: auth.MD5.Sum(name + ":" + domain + ":" + password),
		Force: !add || c.Bool("force"), // who is there may stay
	}
	for i, hash := range auth.Derive(user, domain, password) {
		change.Secrets[auth.Algorithm(i).String()] = hash
	}
	body, err := json.Marshal(change)
	if err != nil {
		return err
	}
	only, done := "If-Match", "changed the password of "
	if add {
		only, done = "If-None-Match", "added "
	}
	_, err = call(c, http.MethodPut, "user", nil, http.Header{only: {"*"}, "Content-Type": {"application/json"}}, body)
	var fault *apiFault
	if errors.As(err, &fault) && fault.status == http.StatusPreconditionFailed {
		return fmt.Errorf("%s; 'rollcall user passwd' changes the password", fault.text)
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(c.App.Writer, clean(done+name))
	return nil
}

func userRemove(c *cli.Context) error {
	user, domain, err := address(c)
	if err != nil {
		return err
	}
	if _, err := call(c, http.MethodDelete, "user", url.Values{"user": {user}, "domain": {domain}}, nil, nil); err != nil {
		return err
	}
	fmt.Fprintln(c.App.Writer, clean("removed "+user+"@"+domain))
	return nil
}

func userList(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	var q url.Values
	if d := c.String("domain"); d != "" {
		q = url.Values{"domain": {d}}
	}
	b, err := ask(c, "users", q)
	if err != nil {
		return err
	}
	var all struct {
		Users []json.RawMessage `json:"users"`
		More  bool              `json:"more"`
	}
	if err := decode(b, &all); err != nil {
		return err
	}
	if c.Bool("json") {
		err = objects(c.App.Writer, all.Users)
	} else {
		var users server.Users
		if err := decode(b, &users); err != nil {
			return err
		}
		t := &table{head: []string{"User", "Domain", "Algorithms"}}
		for _, u := range users.Users {
			t.add(u.User, u.Domain, dash(strings.Join(u.Algorithms, " ")))
		}
		err = t.print(c.App.Writer)
	}
	if all.More {
		note(c, "only the first %s; --domain shows those of one domain", plural(len(all.Users), "user"))
	}
	return err
}

// readPassword asks a person twice, or takes a line of the input.
func readPassword(c *cli.Context, name string) (string, error) {
	f, ok := c.App.Reader.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		line, err := bufio.NewReader(io.LimitReader(c.App.Reader, passwordSize+2)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		return line, checkPassword(c, line, "no password on standard input")
	}
	first, err := prompt(c.Context, int(f.Fd()), c.App.ErrWriter, "Password for "+clean(name)+": ")
	if err != nil {
		return "", err
	}
	if err := checkPassword(c, first, "no password given"); err != nil {
		return "", err
	}
	again, err := prompt(c.Context, int(f.Fd()), c.App.ErrWriter, "Again: ")
	if err == nil && first != again {
		err = errors.New("the passwords differ; nothing was changed")
	}
	return first, err
}

func checkPassword(c *cli.Context, password, empty string) error {
	switch {
	case password == "":
		return usagef(c, "%s", empty)
	case len(password) > passwordSize:
		return usagef(c, "the password is longer than %d bytes", passwordSize)
	}
	return nil
}

// prompt reads a line from a terminal without echo. When ctx ends, the terminal
// is as it was; the read itself cannot be stopped and ends with the process.
func prompt(ctx context.Context, fd int, w io.Writer, text string) (string, error) {
	state, err := term.GetState(fd)
	if err != nil {
		return "", err
	}
	fmt.Fprint(w, text)
	defer fmt.Fprintln(w)
	type answer struct {
		line []byte
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		line, err := term.ReadPassword(fd)
		got <- answer{line, err}
	}()
	select {
	case a := <-got:
		return string(a.line), a.err
	case <-ctx.Done():
		term.Restore(fd, state)
		return "", errors.New("interrupted; nothing was changed")
	}
}
