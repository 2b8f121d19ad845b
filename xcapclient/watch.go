package xcapclient

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	settle    = 20 * time.Millisecond  // quiet time after a change before it is looked at
	settleMax = 100 * time.Millisecond // and the longest wait when there is none
	retryWait = 100 * time.Millisecond
	scanShare = 50              // a scan takes at most one part in so many of the time
	blindScan = 2 * time.Second // instead of the rescan time where the system tells of no changes
)

// dirWatch has the system tell of changes in directories. A nil one does nothing. It is Run's alone.
type dirWatch struct {
	s          *DirSource
	w          *fsnotify.Watcher
	on         map[string]bool // by path below the root
	generation int
}

func (d *dirWatch) add(rel string) {
	if d == nil || d.w == nil || d.on[rel] {
		return
	}
	err := d.w.Add(filepath.Join(d.s.path, filepath.FromSlash(rel)))
	switch {
	case err == nil:
		d.on[rel] = true
	case errors.Is(err, fs.ErrNotExist):
	default:
		d.s.warn("watch", "directory cannot be watched, changes in it are found by looking", err)
	}
}

// follow starts over when another directory has taken the root's name.
func (d *dirWatch) follow(generation int) {
	if d == nil || d.generation == generation {
		return
	}
	d.generation = generation
	d.forget(".")
}

// forget stops watching a directory and what is below: its name may stand for another one now.
func (d *dirWatch) forget(rel string) {
	drop := func(rel string) {
		if d.on[rel] {
			delete(d.on, rel)
			_ = d.w.Remove(filepath.Join(d.s.path, filepath.FromSlash(rel))) // mostly gone by itself
		}
	}
	drop(rel)
	if rel != "." && strings.Count(rel, "/") >= 2 {
		return // a user's directory: nothing below is watched
	}
	for other := range d.on {
		if rel == "." || strings.HasPrefix(other, rel+"/") {
			drop(other)
		}
	}
}

// dirty is what events have named since the last look.
type dirty struct {
	all    bool
	leaves map[string]map[string]bool // and the files in them
}

func (d *dirty) leaf(rel, name string) {
	if d.leaves[rel] == nil {
		d.leaves[rel] = map[string]bool{}
	}
	if name != "" {
		d.leaves[rel][name] = true
	}
}

// Run watches the directory. It may run once at a time.
func (s *DirSource) Run(ctx context.Context, changed func([]string)) error {
	s.scanMu.Lock()
	if s.running {
		s.scanMu.Unlock()
		return errors.New("directory is watched already")
	}
	s.running = true
	s.scanMu.Unlock()
	defer func() {
		s.scanMu.Lock()
		s.running = false
		s.scanMu.Unlock()
	}()

	w := &dirWatch{s: s, on: map[string]bool{}}
	var events chan fsnotify.Event
	var faults chan error
	every := s.rescan
	var err error
	if w.w, err = fsnotify.NewWatcher(); err != nil {
		s.log.Warn("changes of documents are found by looking, the system does not tell of them", "interval", blindScan, "err", err)
		every = min(every, blindScan)
	} else {
		defer w.w.Close()
		events, faults = w.w.Events, w.w.Errors
		if fi, err := os.Lstat(s.path); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
			_ = w.w.Add(filepath.Dir(s.path)) // where the link may be pointed elsewhere; without it the rescan finds out
		}
	}

	named := dirty{all: true, leaves: map[string]map[string]bool{}} // what changed before the watches were there
	look := time.NewTimer(0)
	defer look.Stop()
	var since time.Time // of the first event not looked at
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	rescan := time.NewTimer(jitter(every))
	defer rescan.Stop()
	for {
		var scan func() []string
		select {
		case <-ctx.Done():
			return nil
		case e := <-events:
			if !s.note(w, &named, e) {
				continue
			}
			now := time.Now()
			if since.IsZero() {
				since = now
			}
			look.Reset(max(0, min(settle, since.Add(settleMax).Sub(now))))
			continue
		case <-faults: // events were lost
			named.all = true
			look.Reset(settle)
			continue
		case <-look.C:
			scan = func() []string { return s.look(w, &named) }
			since = time.Time{}
		case <-retry.C:
			scan = func() []string { return s.retry(w) }
		case <-rescan.C:
			scan = func() []string {
				start := time.Now()
				defer func() { rescan.Reset(jitter(max(every, scanShare*time.Since(start)))) }()
				return s.walk(w, nothing, false)
			}
		}
		s.scanMu.Lock()
		found := scan()
		again := s.lost || len(s.pending) > 0
		s.scanMu.Unlock()
		if again {
			retry.Reset(retryWait)
		}
		if len(found) > 0 {
			changed(found)
		}
	}
}

// note keeps what an event is about and tells whether it is about anything.
func (s *DirSource) note(w *dirWatch, named *dirty, e fsnotify.Event) bool {
	rel, err := filepath.Rel(s.path, e.Name)
	if err != nil {
		return false
	}
	rel = filepath.ToSlash(rel)
	if rel == ".." || strings.HasPrefix(rel, "../") {
		return false // beside the root
	}
	moved := e.Has(fsnotify.Create) || e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename)
	base := path.Base(rel)
	if rel != "." && hidden(base) && !moved {
		return false
	}
	// A hidden name that moves may be what links lead through: look, but at nothing in particular.
	if hidden(base) {
		base = ""
	}
	parts := strings.Split(rel, "/")
	if moved && w.on[rel] {
		w.forget(rel)
	}
	switch {
	case len(parts) >= 3 && parts[1] == "global":
		named.leaf(path.Join(parts[:2]...), base)
	case len(parts) == 3 && parts[1] == "users" && base != "":
		named.leaf(rel, "")
	case len(parts) >= 4 && parts[1] == "users":
		named.leaf(path.Join(parts[:3]...), base)
	default:
		named.all = true
	}
	return true
}

// look scans what events have named.
func (s *DirSource) look(w *dirWatch, named *dirty) (changed []string) {
	read := func(leaf, name string) bool { return named.leaves[leaf][name] }
	defer func() { *named = dirty{leaves: map[string]map[string]bool{}} }()
	if named.all {
		return s.walk(w, read, false)
	}
	for rel := range named.leaves {
		parts := strings.Split(rel, "/")
		if hidden(parts[0]) || hidden(parts[len(parts)-1]) {
			continue
		}
		prefix := keep(decode(parts[0])) + "/" + parts[1] + "/"
		if len(parts) == 3 {
			prefix += keep(decode(parts[2])) + "/"
		}
		changed = append(changed, s.leaf(nil, w, rel, prefix, read, false)...)
	}
	return changed
}

// jitter keeps many servers from looking at one file server in step.
func jitter(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5+1) }
