package pa_test

import (
	"os"
	"path/filepath"
	"testing"
)

// example is a document of an RFC.
type example struct{ name, body string }

// examples reads the documents that match a pattern.
func examples(t *testing.T, pattern string) []example {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	var all []example
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, example{filepath.Base(f), string(b)})
	}
	return all
}
