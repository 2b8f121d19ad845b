package e2e

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestLoad runs the load command against the server for a moment: everything is
// answered, every NOTIFY is right. How fast is not looked at.
func TestLoad(t *testing.T) {
	load := filepath.Join(t.TempDir(), "load")
	if out, err := exec.Command("go", "build", "-o", load, "rollcall/e2e/load").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	in := start(t, "--domain", "example.com", "--store", "memory", "--durability", "memory", "--presence-auth", "open", "--notify-interval", "presence=0")
	for _, c := range []struct {
		name, args string
		want       map[string]float64
	}{
		{"dialogs", "pairs -c 4 -m 10 -n 100 -g 2", map[string]float64{"pairs": 100, "notifies": 100}},
		{"fetches", "pairs -c 4 -m 10 -n 100 -fetch", map[string]float64{"pairs": 100, "notifies": 100}},
		{"overload", "overload -c 2 -m 10 -warm 500ms -for 1500ms -factor 0.2 -ongoing 10 -refresh 500ms", map[string]float64{"refused": 0, "dropped": 0}},
		{"fan-out", "fanout -k 2 -w 10 -n 5 -g 2", map[string]float64{"changes": 10, "notifies": 120}},
		{"idle connections", "idle -n 50 -sample 10 -settle 1ms", map[string]float64{"connections": 50, "sample_answered": 10}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append(strings.Fields(c.args), "-server", in.addr, "-pid", strconv.Itoa(in.PID()))
			cmd := exec.Command(load, args...)
			var errs bytes.Buffer
			cmd.Stderr = &errs
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s%s", err, out, errs.Bytes())
			}
			var got map[string]any
			if err := json.Unmarshal(out, &got); err != nil || bytes.Count(out, []byte{'\n'}) != 1 {
				t.Fatalf("%v in %q", err, out)
			}
			if faults, _ := got["errors"].(map[string]any); len(faults) > 0 {
				t.Errorf("errors %v", faults)
			}
			if p, _ := got["process"].(map[string]any); p == nil || p["rss_max"].(float64) == 0 {
				t.Errorf("process %v", got["process"])
			}
			for name, want := range c.want {
				if got[name] != want {
					t.Errorf("%s is %v, want %v", name, got[name], want)
				}
			}
			if v, ok := got["attempts"]; ok && (v.(float64) == 0 || got["completed"] != v || got["ongoing"].(map[string]any)["success"] != 1.0) {
				t.Errorf("attempts %v, completed %v, ongoing %v", v, got["completed"], got["ongoing"])
			}
		})
	}
	in.clean()
}
