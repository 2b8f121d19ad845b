package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, release := untilSignal()
	code := run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
	release()
	os.Exit(code)
}

// untilSignal gives a context that ends with the first SIGINT or SIGTERM. The
// second ends the process at once.
func untilSignal() (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan os.Signal, 2)
	signal.Notify(got, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-got
		cancel()
		<-got
		os.Exit(exitFailed)
	}()
	return ctx, func() { signal.Stop(got) }
}

// run is the whole program: it returns the exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errw io.Writer) int {
	app := newApp()
	app.Reader, app.Writer, app.ErrWriter = in, out, errw
	err := app.RunContext(ctx, interleave(app.Commands, args))
	report(errw, err)
	return exitCode(err)
}
