package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/term"
)

// terminal makes a pseudo-terminal: a person's end and the program's.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	fd, err := syscall.Open("/dev/ptmx", syscall.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	person = os.NewFile(uintptr(fd), "ptmx")
	var unlock, number int32
	for request, arg := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &number} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg))); errno != 0 {
			t.Fatal(errno)
		}
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close(); program.Close() })
	return person, program
}

// On a terminal the password is asked for twice, and not shown.
func TestPasswordPrompt(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }))
	defer s.Close()
	const asks = "Password for alice@example.com: "
	for _, tt := range []struct {
		name, first, second string
		code                int
		out, errw           string
	}{
		{"same", "secret\n", "secret\n", 0, "added alice@example.com\n", asks + "\nAgain: \n"},
		{"different", "secret\n", "secrets\n", 1, "", asks + "\nAgain: \nrollcall: the passwords differ; nothing was changed\n"},
		{"empty", "\n", "", 2, "", asks + "\nrollcall: no password given\nRun 'rollcall user add --help' for its usage.\n"},
		{"interrupted", "secret\n", "interrupt", 1, "", asks + "\nAgain: \nrollcall: interrupted; nothing was changed\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			person, program := terminal(t)
			before, err := term.GetState(int(program.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var out, errw buffer
			done := make(chan int, 1)
			go func() {
				done <- run(ctx, []string{"rollcall", "user", "add", "alice@example.com", "--http", s.URL}, program, &out, &errw)
			}()
			quiet := func(what string) { // the prompt is out and the terminal does not echo
				t.Helper()
				eventually(t, what, func() bool {
					now, err := term.GetState(int(program.Fd()))
					return err == nil && *now != *before && strings.Contains(errw.String(), what)
				})
			}
			quiet("Password")
			person.WriteString(tt.first)
			if tt.second == "interrupt" {
				quiet("Again")
				cancel()
			} else if tt.second != "" {
				quiet("Again")
				person.WriteString(tt.second)
			}
			if code := <-done; code != tt.code || out.String() != tt.out || errw.String() != tt.errw {
				t.Errorf("exit code %d, %q, %q", code, &out, &errw)
			}
			if after, err := term.GetState(int(program.Fd())); err != nil || *after != *before {
				t.Error("the terminal is left without echo")
			}
			if tt.second == "interrupt" {
				person.WriteString("\n") // ends the read that was left behind
			}
		})
	}
}
