package xcapclient

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
)

// Database holds documents. A missing one is fs.ErrNotExist to errors.Is.
type Database interface {
	DocumentBody(ctx context.Context, selector string) (body []byte, etag string, err error)
	Selectors(ctx context.Context, auid string) ([]string, error)
}

const (
	storedEntries = 100_000
	storedBytes   = 64 << 20
)

// StoredSource has the documents of a database. It reads each once and relies on being told of changes: whoever writes
// a document calls Changed afterwards.
type StoredSource struct {
	db      Database
	changes *changes

	mu    sync.Mutex
	gen   uint64 // of the last change, so that a read begun before it is not kept
	cache *cache[*Document]
}

// Stored gives the documents of a database. Missing ones are remembered too.
func Stored(db Database) *StoredSource {
	return &StoredSource{db: db, changes: newChanges(), cache: newCache[*Document](storedEntries, storedBytes)}
}

// Document returns a document from the copy in memory or from the database.
func (s *StoredSource) Document(ctx context.Context, selector string) (Document, error) {
	selector, err := normalize(selector)
	if err != nil {
		return Document{}, err
	}
	s.mu.Lock()
	gen := s.gen
	d, ok := s.cache.get(selector)
	s.mu.Unlock()
	if !ok {
		body, etag, err := s.db.DocumentBody(ctx, selector)
		switch {
		case err == nil:
			d = &Document{Selector: selector, Body: body, ETag: etag, Origin: "store"}
		case errors.Is(err, fs.ErrNotExist):
			d = nil
		default:
			return Document{}, fmt.Errorf("document %q: %w", selector, err)
		}
		s.mu.Lock()
		if s.gen == gen {
			s.cache.put(selector, d, len(body))
		}
		s.mu.Unlock()
	}
	if d == nil {
		return Document{}, fmt.Errorf("document %q: %w", selector, fs.ErrNotExist)
	}
	return *d, nil
}

// Selectors lists the documents of an application usage in the database.
func (s *StoredSource) Selectors(ctx context.Context, auid string) ([]string, error) {
	return s.db.Selectors(ctx, auid)
}

// Changed says that documents were written or deleted. After it returns the old versions are not served any more.
func (s *StoredSource) Changed(selectors ...string) {
	var known []string
	s.mu.Lock()
	s.gen++
	for _, sel := range selectors {
		if sel, err := normalize(sel); err == nil {
			s.cache.remove(sel)
			known = append(known, sel)
		}
	}
	s.mu.Unlock()
	s.changes.add(known...)
}

// Refresh forgets every copy in memory and calls all of them changed.
func (s *StoredSource) Refresh(context.Context) (changed []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	s.cache.each(func(name string, _ *Document) { changed = append(changed, name) })
	s.cache = newCache[*Document](storedEntries, storedBytes)
	return changed, nil
}

// Run hands on what Changed was told.
func (s *StoredSource) Run(ctx context.Context, changed func([]string)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.changes.signal:
			if all := s.changes.take(); len(all) > 0 {
				changed(all)
			}
		}
	}
}
