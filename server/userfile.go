package server

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"rollcall/sip/auth"
	"rollcall/sql"
)

const (
	maxUserFile  = 64 << 20 // bytes; a larger file is refused
	maxUserFault = 10       // faults of a file that are told
	userFilePoll = 2 * time.Second
)

// userFile is a file of users, one a line, as htdigest writes it or with a hash
// for each algorithm; # begins a comment line:
//
//	alice:example.com:939e7578ed9e3c518a452acee763bce9
//	bob:example.com:MD5=...,SHA-256=...,SHA-512-256=...
//
// The user is what clients write as their name; what one writes with its domain
// needs a line of its own.
type userFile struct {
	path    string
	changed func(user, realm string) // both empty: any of them
	log     *slog.Logger

	mu    sync.Mutex // held while the file is written
	users map[userKey]auth.Secrets
	seen  os.FileInfo // of the users; nil: read again
	fault string      // told last
}

// userText is a file as read.
type userText struct {
	text  []byte
	users map[userKey]auth.Secrets
	info  os.FileInfo
}

// openUserFile reads the file, which must be good.
func openUserFile(path string, changed func(user, realm string), log *slog.Logger) (*userFile, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	t, err := readUserFile(path)
	if err != nil {
		return nil, err
	}
	f := &userFile{path: path, changed: changed, log: log}
	f.take(t)
	return f, nil
}

// take makes a text the one in effect.
func (f *userFile) take(t *userText) {
	f.users, f.seen, f.fault = t.users, t.info, ""
	// A second change within the resolution of the clock would not show.
	if time.Since(t.info.ModTime()) < userFilePoll {
		f.seen = nil
	}
}

func readUserFile(path string) (*userText, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	t := &userText{}
	if t.info, err = file.Stat(); err != nil { // before the text: a change in between is seen later
		return nil, err
	}
	if !t.info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a file", path)
	}
	if t.text, err = io.ReadAll(io.LimitReader(file, maxUserFile+1)); err != nil {
		return nil, err
	}
	if len(t.text) > maxUserFile {
		return nil, fmt.Errorf("%s: longer than %d MiB", path, maxUserFile>>20)
	}
	if t.users, err = parseUsers(path, t.text); err != nil {
		return nil, &userFault{err, t.info}
	}
	return t, nil
}

// userFault is a fault in the text of a file that can be read.
type userFault struct {
	error
	info os.FileInfo
}

func (f *userFault) Unwrap() error { return f.error }

// parseUsers reads all lines. The error has the first faults by line.
func parseUsers(path string, text []byte) (map[userKey]auth.Secrets, error) {
	users, at := make(map[userKey]auth.Secrets), make(map[userKey]int)
	var faults []error
	n := 0
	for line := range bytes.Lines(text) {
		n++
		key, secrets, err := parseUser(string(line))
		if err == nil && at[key] != 0 {
			err = fmt.Errorf("%s of %s is there already, in line %d", key.user, key.realm, at[key])
		}
		switch {
		case err != nil && len(faults) == maxUserFault:
			return nil, errors.Join(append(faults, fmt.Errorf("%s: more faults follow", path))...)
		case err != nil:
			faults = append(faults, fmt.Errorf("%s:%d: %w", path, n, err))
		case key.user != "":
			users[key], at[key] = secrets, n
		}
	}
	return users, errors.Join(faults...)
}

// parseUser reads a line; it has no user when that is empty or a comment. What
// is wrong is told without the line, which may hold a secret.
func parseUser(line string) (key userKey, secrets auth.Secrets, err error) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return key, secrets, nil
	}
	user, rest, _ := strings.Cut(line, ":")
	i := strings.LastIndexByte(rest, ':') // the realm may be an IPv6 address
	if user == "" || i <= 0 {
		return key, secrets, errors.New("not user:realm:hash")
	}
	key = userKey{user, rest[:i]}
	hashes := rest[i+1:]
	if !strings.Contains(hashes, "=") {
		hashes = auth.MD5.String() + "=" + hashes
	}
	for item := range strings.SplitSeq(hashes, ",") {
		name, hash, _ := strings.Cut(strings.TrimSpace(item), "=")
		if err := setSecret(&secrets, name, hash); err != nil {
			return userKey{}, secrets, err
		}
	}
	return key, secrets, nil
}

// setSecret sets the hash of an algorithm by its name.
func setSecret(s *auth.Secrets, name, hash string) error {
	for i := range s {
		a := auth.Algorithm(i)
		if !strings.EqualFold(a.String(), name) {
			continue
		}
		hash = strings.ToLower(hash)
		if digits := len(a.Sum("")); len(hash) != digits || strings.Trim(hash, "0123456789abcdef") != "" {
			return fmt.Errorf("the hash of %v is not %d hexadecimal digits", a, digits)
		}
		if s[a] != "" {
			return fmt.Errorf("%v is given twice", a)
		}
		s[a] = hash
		return nil
	}
	return fmt.Errorf("%q is none of the algorithms MD5, SHA-256, SHA-512-256", name)
}

// formatUser writes a line.
func formatUser(key userKey, s auth.Secrets) string {
	if s == (auth.Secrets{auth.MD5: s[auth.MD5]}) {
		return key.user + ":" + key.realm + ":" + s[auth.MD5]
	}
	var all []string
	for i, hash := range s {
		if hash != "" {
			all = append(all, auth.Algorithm(i).String()+"="+hash)
		}
	}
	return key.user + ":" + key.realm + ":" + strings.Join(all, ",")
}

// watch looks for changes of the file until ctx ends.
func (f *userFile) watch(ctx context.Context) {
	tick := time.NewTicker(userFilePoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f.look()
		}
	}
}

// look takes a changed file, unless it is bad: then the users stay as they
// were, and the log says so once.
func (f *userFile) look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(f.path)
	if err == nil && f.seen != nil && os.SameFile(info, f.seen) && info.ModTime().Equal(f.seen.ModTime()) && info.Size() == f.seen.Size() {
		return
	}
	t, err := readUserFile(f.path)
	if err != nil {
		if bad, ok := errors.AsType[*userFault](err); ok {
			f.seen = bad.info
		}
		if err.Error() != f.fault {
			f.fault = err.Error()
			f.log.Warn("users not readable; they stay as they were", "err", err)
		}
		return
	}
	same := maps.Equal(t.users, f.users)
	f.take(t)
	if !same {
		f.log.Info("users read again", "users", len(t.users))
		f.changed("", "")
	}
}

// Subscriber implements userOrigin.
func (f *userFile) Subscriber(_ context.Context, user, realm string) (auth.Secrets, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.users[userKey{user, realm}]
	if !ok {
		return s, sql.ErrNotFound
	}
	return s, nil
}

// Subscribers implements userOrigin.
func (f *userFile) Subscribers(_ context.Context, realm string, do func(sql.Subscriber) error) error {
	f.mu.Lock()
	users := f.users // never changed, only replaced
	f.mu.Unlock()
	keys := slices.SortedFunc(maps.Keys(users), func(a, b userKey) int {
		return cmp.Or(strings.Compare(a.realm, b.realm), strings.Compare(a.user, b.user))
	})
	for _, k := range keys {
		if realm != "" && k.realm != realm {
			continue
		}
		if err := do(sql.Subscriber{Username: k.user, Domain: k.realm, Secrets: users[k]}); err != nil {
			return err
		}
	}
	return nil
}

// PutSubscriber implements userWriter.
func (f *userFile) PutSubscriber(_ context.Context, sub sql.Subscriber, only sql.Precondition) (created bool, err error) {
	key := userKey{sub.Username, sub.Domain}
	err = f.edit(key, formatUser(key, sub.Secrets), func(exists bool) error {
		created = !exists
		if only.Absent && exists || only.Match != "" && !exists {
			return sql.ErrConflict
		}
		return nil
	})
	return created, err
}

// DeleteSubscriber implements userWriter.
func (f *userFile) DeleteSubscriber(_ context.Context, user, realm string) error {
	return f.edit(userKey{user, realm}, "", func(exists bool) error {
		if !exists {
			return sql.ErrNotFound
		}
		return nil
	})
}

// edit replaces a user's line, with nothing when it is empty, or adds it. All
// other lines stay as they are. A bad file is not touched.
func (f *userFile) edit(key userKey, line string, check func(exists bool) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := readUserFile(f.path)
	if err != nil {
		return err
	}
	_, exists := t.users[key]
	if err := check(exists); err != nil {
		return err
	}
	if line != "" {
		line += "\n"
	}
	var out []byte
	for l := range bytes.Lines(t.text) {
		if k, _, _ := parseUser(string(l)); k == key {
			out = append(out, line...)
			continue
		}
		out = append(out, l...)
	}
	if !exists {
		if len(out) > 0 && out[len(out)-1] != '\n' {
			out = append(out, '\n')
		}
		out = append(out, line...)
	}
	if len(out) > maxUserFile {
		return fmt.Errorf("%s: longer than %d MiB", f.path, maxUserFile>>20)
	}
	if err := replaceFile(f.path, out); err != nil {
		return err
	}
	if t, err = readUserFile(f.path); err != nil {
		return err
	}
	f.take(t)
	return nil
}

// replaceFile writes a file so that it is there whole, old or new, whatever
// happens, and only we may read it.
func replaceFile(path string, text []byte) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(text)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
