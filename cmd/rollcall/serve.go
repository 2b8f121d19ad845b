package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"rollcall/server"
)

// stopLimit is how long an orderly stop may take.
const stopLimit = 10 * time.Second

func serveCommand() *cli.Command {
	return &cli.Command{
		Name: "serve", Usage: "run the server", ArgsUsage: " ", Flags: configFlags(),
		Description: "A flag wins over its variable (comma separated for lists), that over the file, that over the default. A list replaces " +
			"the default list.\nPrints one line 'rollcall ready KIND=ADDRESS ...' when everything is bound and recovered; logs go to standard " +
			"error.\nSIGTERM and SIGINT stop it in order, a second one at once. SIGHUP reads the certificates and default rules again.\n\n" +
			"Example:\n\n   rollcall serve --domain example.com --xcap ./xcap --presence-auth allow",
		Action: serve,
	}
}

func serve(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return coded(exitUsage, fmt.Errorf("log_level: %w", err))
	}
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: level}))
	s, err := server.New(cfg, log)
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	ctx := c.Context
	if err := s.Start(ctx); err != nil {
		halt(s, log)
		if ctx.Err() != nil {
			return nil // asked to stop before it was up
		}
		return err
	}
	go paceGC(ctx)
	fmt.Fprintln(c.App.Writer, "rollcall ready", strings.Join(s.Addrs(), " "))
	log.Info("ready", "version", version(), "listen", strings.Join(s.Addrs(), " "))
	for {
		select {
		case <-hup:
			log.Info("reading certificates and default rules again; documents are picked up by themselves, other settings at a restart", "signal", "SIGHUP")
			s.Reload() // logs what is wrong
			continue
		case <-ctx.Done():
		}
		log.Info("stopping")
		err := halt(s, log)
		log.Info("stopped")
		return err
	}
}

// paceGC lets garbage grow more freely while the live heap is small: a busy
// server of a few thousand dialogs would collect many times a second. GOGC, when
// it is set, wins.
func paceGC(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	for {
		metrics.Read(live)
		percent := 100
		switch mib := live[0].Value.Uint64() >> 20; {
		case mib < 64:
			percent = 400
		case mib < 256:
			percent = 200
		}
		debug.SetGCPercent(percent)
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Second):
		}
	}
}

func halt(s *server.Server, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	err := s.Stop(ctx)
	if err != nil {
		log.Error("not stopped in order", "err", err)
		return fmt.Errorf("stop: %w", err)
	}
	return nil
}
