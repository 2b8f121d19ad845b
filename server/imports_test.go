package server_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// mayImport says which of our packages a package may import, besides those
// below itself. A name with "/..." means that package and those below it.
var mayImport = map[string][]string{
	"sip":               {},
	"sip/auth":          {"sip"},
	"sip/body":          {},
	"sip/siptest":       {},
	"sip/locate":        {"sip"},
	"dialog":            {"sip/..."},
	"pa":                {"dialog", "sip/..."},
	"pa/pidf":           {},
	"pa/pidf/xmltree":   {},
	"pa/winfo":          {"pa/pidf/..."},
	"pa/dialoginfo":     {"pa/pidf/xmltree"},
	"pa/mwi":            {},
	"pa/policy":         {"pa/pidf/...", "sip"},
	"rls":               {"dialog", "sip/..."},
	"rls/rlmi":          {"sip/body"},
	"rls/list":          {},
	"b2b":               {"dialog", "sip/..."},
	"xcapclient":        {},
	"sql":               {"dialog", "pa", "sip/auth"}, // the row types
	"server":            {"pa/...", "rls/...", "b2b", "xcapclient", "sql", "dialog", "sip/..."},
	"server/takeover":   {"pa", "pa/pidf", "xcapclient", "sql", "dialog", "sip/..."},
	"server/servertest": {"server", "dialog", "sip/...", "pa/dialoginfo", "pa/pidf", "rls/rlmi"},
	"cmd/rollcall":      {"server", "sip/...", "pa/dialoginfo", "pa/mwi", "pa/pidf", "pa/winfo", "rls/rlmi", "sql"},
	"e2e":               {"e2e/crash"},
	"e2e/child":         {},
	"e2e/peer":          {"e2e/child"},
	"e2e/crash":         {"sip", "pa/winfo", "rls/rlmi", "e2e/child"},
	"e2e/load":          {"sip", "e2e/child", "e2e/crash"},
}

// onlyIn names libraries that one of our packages hides from the others.
var onlyIn = map[string]string{
	"github.com/jmoiron/sqlx": "sql", "github.com/lib/pq": "sql", "modernc.org/sqlite": "sql", "github.com/go-sql-driver/mysql": "sql", "github.com/pressly/goose/v3": "sql", "database/sql": "sql",
	"github.com/fsnotify/fsnotify": "xcapclient", "github.com/prometheus/client_golang/prometheus": "server", "github.com/urfave/cli/v2": "cmd/rollcall",
	"github.com/emiago/sipgo":    "tests",
	"github.com/icholy/digest":   "sip/auth",
	"github.com/coder/websocket": "sip",
	"github.com/miekg/dns":       "sip/locate",
}

// codecs turn bytes into values and back: no I/O, no logger.
var codecs = []string{"pa/pidf", "pa/pidf/xmltree", "pa/winfo", "pa/dialoginfo", "pa/mwi", "pa/policy", "rls/rlmi", "rls/list", "sip/body"}

var effects = []string{"os", "io/ioutil", "net", "net/http", "log", "log/slog", "database/sql", "os/exec"}

// TestImports keeps the directions of imports that the design decides on, and
// that every package says what it is.
func TestImports(t *testing.T) {
	const module = "rollcall/"
	out, err := exec.Command("go", "list", "-json=ImportPath,GoFiles,Imports", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	type pkg struct {
		ImportPath       string
		GoFiles, Imports []string
	}
	seen := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; seen++ {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		if !slices.Contains(p.GoFiles, "doc.go") {
			t.Errorf("%s has no doc.go", name)
		}
		allowed, known := mayImport[name]
		if !known {
			t.Errorf("%s is new: say in mayImport what it may import", name)
		}
		for _, path := range p.Imports {
			if to, ours := strings.CutPrefix(path, module); ours {
				if to == "server/servertest" || to == "sip/siptest" && name != "server/servertest" {
					t.Errorf("%s must not import %s: it is for tests", name, to)
				} else if !within(to, name+"/...") && !slices.ContainsFunc(allowed, func(a string) bool { return within(to, a) }) {
					t.Errorf("%s must not import %s (allowed: %s)", name, to, strings.Join(allowed, ", "))
				}
				continue
			}
			for lib, owner := range onlyIn {
				if within(path, lib+"/...") && name != owner {
					t.Errorf("%s must not import %s: that is the business of %s", name, path, owner)
				}
			}
			if slices.Contains(codecs, name) && slices.Contains(effects, path) {
				t.Errorf("%s must not import %s: it is a codec, bytes in and values out", name, path)
			}
		}
	}
	if seen < 15 {
		t.Errorf("only %d packages were looked at", seen)
	}
}

// within tells whether a package is the one named, or below it when the name
// ends in "/...".
func within(path, name string) bool {
	root, all := strings.CutSuffix(name, "/...")
	return path == root || all && strings.HasPrefix(path, root+"/")
}
