package xcapclient

import (
	"context"
	"math/rand/v2"
	"time"
)

// Copies keeps what an XCAP server said last beyond the process, so that a server which is down at a restart costs no
// list and no rules. Which copies there are is the HTTPSource's business; see HTTPOptions.CacheEntries.
type Copies interface {
	// Load calls f with every copy and stops with its error.
	Load(ctx context.Context, f func(Copy) error) error
	// Save adds or replaces copies and forgets others, all or nothing. No selector is in both.
	Save(ctx context.Context, put []Copy, gone []string) error
}

// Copy is what was last heard of a document.
type Copy struct {
	Selector string
	Missing  bool   // there is none
	ETag     string // as the server wrote it, "" without
	Body     []byte
}

const (
	saveDelay = time.Second // for others to come along; what is lost in it is asked for again
	saveRetry = 10 * time.Second
	saveLast  = 2 * time.Second // for the save at the end
	saveDocs  = 256             // at once
	saveBytes = 4 << 20         // after which a save has enough
)

// Restore takes the copies of before a restart, if there are any. They are used without asking for MaxAge, in which Run
// asks for all of them, so it is called at the start.
func (s *HTTPSource) Restore(ctx context.Context) error {
	if s.opt.Copies == nil {
		return nil
	}
	now := time.Now()
	return s.opt.Copies.Load(ctx, func(k Copy) error {
		selector, err := normalize(k.Selector)
		address, uerr := URL(s.root, selector)
		if err != nil || uerr != nil || len(k.Body) > s.opt.MaxBody {
			return nil
		}
		c := &copied{etag: k.ETag, checked: now.Add(-rand.N(s.opt.MaxAge))}
		if !k.Missing {
			c.doc = document(selector, address, k.ETag, k.Body)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.trust = now.Add(s.opt.MaxAge)
		if _, ok := s.cache.peek(selector); !ok {
			s.cache.put(selector, c, len(k.Body))
		}
		return nil
	})
}

// unsavedLocked notes that a copy is not as it is kept. s.mu is held.
func (s *HTTPSource) unsavedLocked(selector string) {
	if s.opt.Copies == nil {
		return
	}
	s.unsaved[selector] = struct{}{}
	select {
	case s.toSave <- struct{}{}:
	default:
	}
}

// keep saves copies as they change, until ctx ends.
func (s *HTTPSource) keep(ctx context.Context) {
	for wait := saveDelay; ; {
		select {
		case <-ctx.Done():
		case <-s.toSave:
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
		}
		last := ctx.Err() != nil
		limit := s.opt.Timeout
		if last {
			limit = saveLast
		}
		if err := s.save(limit); err != nil {
			s.warn("XCAP documents not kept for the next start", "", err)
			wait = saveRetry
		} else {
			wait = saveDelay
		}
		if last {
			return
		}
	}
}

// save saves what has changed. What could not be saved waits.
func (s *HTTPSource) save(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		var put []Copy
		var gone []string
		size := 0
		s.mu.Lock()
		for name := range s.unsaved {
			if len(put)+len(gone) >= saveDocs || size >= saveBytes {
				break
			}
			delete(s.unsaved, name)
			c, ok := s.cache.peek(name)
			if !ok {
				gone = append(gone, name)
				continue
			}
			k := Copy{Selector: name, Missing: c.doc == nil, ETag: c.etag}
			if c.doc != nil {
				k.Body = c.doc.Body
				size += len(k.Body)
			}
			put = append(put, k)
		}
		s.mu.Unlock()
		if len(put)+len(gone) == 0 {
			return nil
		}
		if err := s.opt.Copies.Save(ctx, put, gone); err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, k := range put {
				s.unsavedLocked(k.Selector)
			}
			for _, name := range gone {
				s.unsavedLocked(name)
			}
			return err
		}
	}
}
