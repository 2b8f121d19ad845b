package peer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// moduleRoot is the folder with go.mod above the working directory; tests run in their package's folder.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("the test does not run inside the module")
		}
		dir = filepath.Dir(dir)
	}
}

// cacheDir is where what was built or installed once is kept for the next run.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = filepath.Join(os.TempDir(), "cache-"+strconv.Itoa(os.Getuid()))
	}
	dir := filepath.Join(base, "rollcall-e2e")
	return dir, os.MkdirAll(dir, 0o700)
}

// TestData returns the path of a file in e2e/testdata.
func TestData(t testing.TB, elem ...string) string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(append([]string{root, "e2e", "testdata"}, elem...)...)
}

// ReadTestData reads a file in e2e/testdata.
func ReadTestData(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(TestData(t, elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ValidateXML fails the test when the document is not valid. The schema is the name of a file in e2e/testdata/schemas without
// its ending: presence-all (PIDF, data model, RPID, CIPID, capabilities, timed status), dialog-info, rlmi, watcherinfo, resource-lists
// or rls-services.
func ValidateXML(t testing.TB, schema string, doc []byte) {
	t.Helper()
	if err := CheckXML(t, schema, doc); err != nil {
		t.Errorf("%v\n%s", err, tail(doc))
	}
}

// CheckXML is ValidateXML for documents that may be invalid: it returns what xmllint found, nil for a valid document.
func CheckXML(t testing.TB, schema string, doc []byte) error {
	t.Helper()
	file := TestData(t, "schemas", schema+".xsd")
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
	if _, err := lookPath("xmllint"); err != nil {
		t.Fatal(err)
	}
	out, err := run(20*time.Second, doc, "xmllint", "--nonet", "--noout", "--schema", file, "-")
	if err != nil {
		return fmt.Errorf("not valid by %s: %w\n%s", schema, err, out)
	}
	return nil
}
