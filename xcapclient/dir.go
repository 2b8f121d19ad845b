package xcapclient

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	maxFile   = 4 << 20   // of one document
	dirBytes  = 256 << 20 // of all bodies in memory; the rest is read when asked for
	dirGrace  = 5 * time.Second
	dirLinger = 100 * time.Millisecond
	dirRescan = 30 * time.Second
)

var errTooLarge = fmt.Errorf("larger than %d bytes", maxFile)

// DirSource has the documents of a directory: PATH/AUID/users/XUI/FILE and PATH/AUID/global/FILE, each name plain or
// percent-encoded. Left out are hidden names and those that editors and copying programs use for a while (*~, *.tmp,
// .part in the name), files over 4 MiB, whatever is no regular file, and links that lead out of the directory (also
// every absolute link).
//
// All documents are read at the start and kept in memory. Run notices changes within some 20 ms where the system tells
// of them, and looks through all of the directory every 30 s, or as often as takes a fiftieth of the time, for those it
// does not tell of: lost events, files behind links, network file systems. A file that is gone is missed after 100 ms, for
// some editors take it away before they write it anew.
type DirSource struct {
	path string
	log  *slog.Logger

	// Set before use; tests shorten them.
	grace, rescan time.Duration
	maxBytes      int

	scanMu     sync.Mutex // one scan at a time; taken before mu
	leaves     map[string]*leaf
	pending    map[string]bool // leaves to look at again soon
	warned     map[string]bool // what has been complained about
	lost       bool            // the directory itself is not there
	generation int             // of root
	running    bool

	mu    sync.RWMutex
	root  *os.Root           // written with scanMu held too
	docs  map[string][]*file // by selector; the first one counts
	bytes int
}

// leaf is a directory of documents.
type leaf struct {
	prefix string // of its selectors
	files  map[string]*file
	orphan bool // the last walk did not come by
}

// file is a document's file. Fields but served are scanMu's, served and what is below is mu's.
type file struct {
	rel      string // path below the root
	selector string
	info     fs.FileInfo
	readAt   time.Time
	badSince time.Time // the newest content is not well-formed; zero: it is
	pending  bool      // and it is not served yet
	gone     time.Time // when the file was missed first; zero: it is there

	served bool
	etag   string
	body   []byte // nil: not in memory
}

// Dir reads a directory of documents. A fault of one file is logged and leaves out that file.
func Dir(path string, log *slog.Logger) (*DirSource, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	s := &DirSource{
		path: abs, log: log, grace: dirGrace, rescan: dirRescan, maxBytes: dirBytes,
		leaves: map[string]*leaf{}, warned: map[string]bool{}, pending: map[string]bool{}, docs: map[string][]*file{},
	}
	if s.root, err = os.OpenRoot(abs); err != nil {
		return nil, err
	}
	s.scanMu.Lock()
	defer s.scanMu.Unlock()
	s.walk(nil, nothing, true)
	return s, nil
}

// Document returns a document from memory, or from its file where memory was short.
func (s *DirSource) Document(ctx context.Context, selector string) (Document, error) {
	selector, err := normalize(selector)
	if err != nil {
		return Document{}, err
	}
	s.mu.RLock()
	var d Document
	var name string
	for _, f := range s.docs[selector] {
		if f.served {
			d = Document{Selector: selector, Body: f.body, ETag: f.etag, Origin: filepath.Join(s.path, filepath.FromSlash(f.rel))}
			name = f.rel
			break
		}
	}
	root := s.root
	s.mu.RUnlock()
	if name == "" {
		return Document{}, fmt.Errorf("document %q: %w", selector, fs.ErrNotExist)
	}
	if d.Body == nil {
		body, _, err := readFile(root, name)
		if err != nil {
			return Document{}, fmt.Errorf("document %q: %w", selector, err)
		}
		d.Body, d.ETag = body, ContentTag(body)
	}
	return d, nil
}

// Selectors lists the documents of an application usage.
func (s *DirSource) Selectors(_ context.Context, auid string) ([]string, error) {
	prefix := keep(auid) + "/"
	var all []string
	s.mu.RLock()
	defer s.mu.RUnlock()
	for sel, fs := range s.docs {
		if strings.HasPrefix(sel, prefix) && slices.ContainsFunc(fs, func(f *file) bool { return f.served }) {
			all = append(all, sel)
		}
	}
	slices.Sort(all)
	return all, nil
}

// Refresh reads every file again.
func (s *DirSource) Refresh(context.Context) (changed []string, err error) {
	s.scanMu.Lock()
	defer s.scanMu.Unlock()
	return s.walk(nil, everything, true), nil
}

// hidden tells names that are no documents: dot files and what is there only while something is written.
func hidden(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") || strings.HasSuffix(name, ".tmp") || strings.Contains(name, ".part") ||
		strings.HasPrefix(name, "#")
}

// again tells which files are read though they look unchanged.
type again func(leaf, name string) bool

func everything(string, string) bool { return true }
func nothing(string, string) bool    { return false }

// walk looks through all of the directory and returns the selectors whose document changed. Files that are gone stay
// for dirLinger unless atOnce is set. w may be nil. scanMu is held.
func (s *DirSource) walk(w *dirWatch, read again, atOnce bool) (changed []string) {
	root, ok := s.reopen()
	if s.lost = !ok; s.lost {
		return nil // another volume may not be there yet: the old documents stay
	}
	w.follow(s.generation)
	found := map[string]bool{}
	visit := func(parent *os.Root, rel, prefix string) {
		found[rel] = true
		changed = append(changed, s.leaf(parent, w, rel, prefix, read, atOnce)...)
	}
	complete := true
	list := func(rel string) (dirs []string) {
		w.add(rel)
		entries, err := fs.ReadDir(root.FS(), rel)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			complete = false
			s.warn(rel, "directory cannot be read, its documents stay as they are", err)
		}
		for _, e := range entries {
			if name := path.Join(rel, e.Name()); !hidden(e.Name()) && s.isDir(root, name, e) {
				dirs = append(dirs, name)
			}
		}
		return dirs
	}
	for _, auid := range list(".") {
		for _, tree := range list(auid) {
			prefix := keep(decode(auid)) + "/" + path.Base(tree) + "/"
			switch path.Base(tree) {
			case "global":
				visit(nil, tree, prefix)
			case "users":
				all, err := root.OpenRoot(tree) // a path is walked step by step: this saves most of them
				if err != nil {
					all = nil
				}
				for _, user := range list(tree) {
					visit(all, user, prefix+keep(decode(path.Base(user)))+"/")
				}
				if all != nil {
					all.Close()
				}
			}
		}
	}
	if complete {
		for rel, l := range s.leaves {
			if l.orphan = !found[rel]; l.orphan {
				changed = append(changed, s.update(nil, rel, l, nil, read, atOnce)...)
			}
		}
	}
	return changed
}

// reopen opens the directory anew when another one has taken its name.
func (s *DirSource) reopen() (*os.Root, bool) {
	s.mu.RLock()
	root := s.root
	s.mu.RUnlock()
	now, err := os.Stat(s.path)
	if err == nil {
		if was, err := root.Stat("."); err == nil && os.SameFile(now, was) {
			delete(s.warned, ".")
			return root, true
		}
		if root, err = os.OpenRoot(s.path); err == nil {
			s.generation++
			s.mu.Lock()
			s.root = root // a reader may still use the old one; it closes with its last use
			s.mu.Unlock()
			return root, true
		}
	}
	s.warn(".", "directory of documents cannot be read, its documents stay as they are", err)
	return nil, false
}

func (s *DirSource) isDir(root *os.Root, rel string, e fs.DirEntry) bool {
	if e.Type()&fs.ModeSymlink == 0 {
		return e.IsDir()
	}
	fi, err := root.Stat(rel)
	if err != nil {
		s.warn(rel, "link leads out of the directory of documents or nowhere", err)
		return false
	}
	return fi.IsDir()
}

// leaf looks through one directory of documents. parent is what it lies in, nil where that is not open. scanMu is held.
func (s *DirSource) leaf(parent *os.Root, w *dirWatch, rel, prefix string, read again, atOnce bool) (changed []string) {
	var entries []fs.DirEntry
	var here *os.Root
	var err error
	if parent != nil {
		here, err = parent.OpenRoot(path.Base(rel))
	} else {
		here, err = s.root.OpenRoot(rel)
	}
	if err == nil {
		defer here.Close()
		w.add(rel) // before it is listed, so that nothing falls between
		entries, err = fs.ReadDir(here.FS(), ".")
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		s.warn(rel, "directory cannot be read, its documents stay as they are", err)
		return nil
	}
	delete(s.warned, rel)
	l := s.leaves[rel]
	if l == nil {
		l = &leaf{prefix: prefix, files: map[string]*file{}}
		s.leaves[rel] = l
	}
	return s.update(here, rel, l, entries, read, atOnce)
}

// update brings the documents of a leaf in line with its entries, which are in the directory here.
func (s *DirSource) update(here *os.Root, rel string, l *leaf, entries []fs.DirEntry, read again, atOnce bool) (changed []string) {
	now := time.Now()
	pending := false
	seen := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		if hidden(name) || e.IsDir() {
			continue
		}
		full := path.Join(rel, name)
		fi, err := here.Stat(name)
		if err != nil && e.Type()&fs.ModeSymlink != 0 {
			fi, err = s.root.Stat(full) // it may lead out of here, and not out of the root
		}
		switch {
		case errors.Is(err, fs.ErrNotExist), err == nil && !fi.Mode().IsRegular():
			continue
		case err == nil && fi.Size() > maxFile:
			err = errTooLarge
		}
		f := l.files[name]
		if f == nil {
			f = &file{rel: full, selector: l.prefix + keep(decode(name))}
		}
		if err == nil && (!f.unchanged(fi) || f.pending || read(rel, name)) {
			var ch bool
			if ch, err = s.read(s.root, f); ch {
				changed = append(changed, f.selector)
			}
		}
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				s.warn(full, "document cannot be read", err)
			}
			continue
		}
		seen[name], f.gone = true, time.Time{}
		pending = pending || f.pending
		if l.files[name] == nil {
			l.files[name] = f
			s.add(f)
		}
	}
	for name, f := range l.files {
		if seen[name] {
			continue
		}
		if f.gone.IsZero() {
			f.gone = now
		}
		if !atOnce && now.Sub(f.gone) < dirLinger {
			pending = true
			continue
		}
		delete(l.files, name)
		changed = append(changed, s.remove(f)...)
	}
	if len(l.files) == 0 {
		delete(s.leaves, rel)
	}
	if pending {
		s.pending[rel] = true
	} else {
		delete(s.pending, rel)
	}
	return changed
}

// retry looks again at the leaves that wait for something. scanMu is held.
func (s *DirSource) retry(w *dirWatch) (changed []string) {
	if s.lost {
		return s.walk(w, nothing, false)
	}
	for _, rel := range slices.Collect(maps.Keys(s.pending)) {
		l := s.leaves[rel]
		switch {
		case l == nil:
			delete(s.pending, rel)
		case l.orphan:
			changed = append(changed, s.update(nil, rel, l, nil, nothing, false)...)
		default:
			changed = append(changed, s.leaf(nil, w, rel, l.prefix, nothing, false)...)
		}
	}
	return changed
}

// unchanged tells by the file's looks. A change in the same tick of the file system's clock as the last reading would
// look the same, so a file that was young then is read again.
func (f *file) unchanged(fi fs.FileInfo) bool {
	return f.info != nil && os.SameFile(f.info, fi) && f.info.Size() == fi.Size() && f.info.ModTime().Equal(fi.ModTime()) &&
		f.readAt.Sub(fi.ModTime()) > 2*time.Second
}

// read brings a file's document up to date and tells whether what is served changed.
func (s *DirSource) read(root *os.Root, f *file) (changed bool, err error) {
	now := time.Now()
	body, fi, err := readFile(root, f.rel)
	if err != nil {
		return false, err
	}
	f.info, f.readAt, f.pending = fi, now, false
	tag := ContentTag(body)
	if err := WellFormed(body); err != nil {
		if f.badSince.IsZero() {
			f.badSince = now
			s.log.Warn("document is not well-formed; it is served when it stays so", "file", f.rel, "err", err)
		}
		if now.Sub(f.badSince) < s.grace {
			f.pending = true
			return false, nil
		}
	} else {
		f.badSince = time.Time{}
		delete(s.warned, f.rel)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.served && f.etag == tag {
		return false, nil
	}
	s.bytes -= len(f.body)
	f.served, f.etag, f.body = true, tag, nil
	if s.bytes+len(body) <= s.maxBytes {
		f.body = body
		s.bytes += len(body)
	}
	return true, nil
}

// add makes a file findable. Where two names mean one document the plain one wins.
func (s *DirSource) add(f *file) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := append(slices.Clip(s.docs[f.selector]), f)
	slices.SortFunc(all, func(a, b *file) int {
		return cmp.Or(cmp.Compare(strings.Count(a.rel, "%"), strings.Count(b.rel, "%")), cmp.Compare(a.rel, b.rel))
	})
	s.docs[f.selector] = all
	if len(all) > 1 && !s.warned[all[1].rel] {
		s.warned[all[1].rel] = true
		s.log.Warn("two files are the same document, the first one counts", "file", all[0].rel, "other", all[1].rel)
	}
}

func (s *DirSource) remove(f *file) (changed []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.warned, f.rel)
	s.bytes -= len(f.body)
	all := slices.DeleteFunc(slices.Clone(s.docs[f.selector]), func(o *file) bool { return o == f })
	if len(all) == 0 {
		delete(s.docs, f.selector)
	} else {
		s.docs[f.selector] = all
	}
	if f.served {
		changed = []string{f.selector}
	}
	return changed
}

func (s *DirSource) warn(rel, message string, err error) {
	if !s.warned[rel] {
		s.warned[rel] = true
		s.log.Warn(message, "file", rel, "err", err)
	}
}

func readFile(root *os.Root, rel string) ([]byte, fs.FileInfo, error) {
	f, err := root.OpenFile(rel, os.O_RDONLY|nonblock, 0) // a named pipe must not stop us
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is no regular file", rel)
	}
	var b bytes.Buffer
	b.Grow(int(min(fi.Size(), maxFile)) + bytes.MinRead)
	n, err := b.ReadFrom(io.LimitReader(f, maxFile+1))
	if err == nil && n > maxFile {
		err = errTooLarge
	}
	return b.Bytes(), fi, err
}

// WellFormed tells a whole document from one that is being written. It does not judge the encoding.
func WellFormed(body []byte) error {
	d := xml.NewDecoder(bytes.NewReader(body))
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	depth, roots := 0, 0
	for {
		t, err := d.Token()
		if err == io.EOF {
			if roots != 1 {
				return fmt.Errorf("%d root elements", roots)
			}
			return nil
		}
		if err != nil {
			return err
		}
		switch t.(type) {
		case xml.StartElement:
			if depth++; depth == 1 {
				roots++
			}
		case xml.EndElement:
			depth--
		}
	}
}
