package crash

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rollcall/e2e/child"
)

// process is one life of the server.
type process struct {
	cmd   *exec.Cmd
	ready chan struct{} // closed at its ready line
	done  chan struct{} // closed at its end
	began time.Time
	took  time.Duration // from start to ready; valid after ready
}

// launch starts the server. Its log goes on in one file over all lives.
func launch(binary, logPath string, args []string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = w, log
	p := &process{cmd: cmd, ready: make(chan struct{}), done: make(chan struct{}), began: time.Now()}
	err = child.Start(cmd, syscall.SIGKILL)
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	go func() {
		defer r.Close()
		lines := bufio.NewScanner(r)
		if lines.Scan() && strings.HasPrefix(lines.Text(), "rollcall ready") {
			p.took = time.Since(p.began)
			close(p.ready)
		}
		io.Copy(io.Discard, r)
	}()
	go func() {
		cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// await waits until the server is ready.
func (p *process) await(limit time.Duration) error {
	select {
	case <-p.ready:
		return nil
	case <-p.done:
		return errors.New("the server ended before it was ready")
	case <-time.After(limit):
		return fmt.Errorf("the server was not ready after %v", limit)
	}
}

// kill is kill -9; it gives the moment.
func (p *process) kill() time.Time {
	at := time.Now()
	p.cmd.Process.Kill()
	<-p.done
	return at
}

// stop asks for an end in order. It is false when the server did not end in
// time or not with status 0.
func (p *process) stop(limit time.Duration) bool {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return p.cmd.ProcessState.Success()
	case <-time.After(limit):
		return false
	}
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// invariants are counters that stay 0 (README, Metrics).
var invariants = []string{"rollcall_dialog_panics_total", "rollcall_dialog_revived_total", "rollcall_dialog_two_in_flight_total"}

// metrics reads the server's counters.
func metrics(addr string) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+addr+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	all := make(map[string]float64)
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			all[name] = v
		}
	}
	return all, nil
}
