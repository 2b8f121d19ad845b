package xcapclient

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
)

// Client is a Source made of others. It may be used by many goroutines.
type Client struct {
	sources []Source
	changes *changes

	mu       sync.Mutex
	watchers []func([]string)
	running  bool
}

// New layers sources, the first one on top. Without any, there is no document.
func New(sources ...Source) *Client {
	return &Client{sources: slices.Clone(sources), changes: newChanges()}
}

// Document returns the document of the first source that has it; see the package comment for what an error does.
func (c *Client) Document(ctx context.Context, selector string) (Document, error) {
	for _, s := range c.sources {
		d, err := s.Document(ctx, selector)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return d, err
		}
	}
	return Document{}, fmt.Errorf("document %.200q: %w", selector, fs.ErrNotExist)
}

// Selectors lists the documents of all sources, sorted and each once. With an error it is what the others have.
func (c *Client) Selectors(ctx context.Context, auid string) ([]string, error) {
	var all []string
	var errs []error
	for _, s := range c.sources {
		some, err := s.Selectors(ctx, auid)
		all = append(all, some...)
		errs = append(errs, err)
	}
	slices.Sort(all)
	return slices.Compact(all), errors.Join(errs...)
}

// Watch has f called with the selectors of documents that came, changed or went, sorted. The calls come from Run's
// goroutine, one after the other; a slow f delays the others, not the sources.
func (c *Client) Watch(f func(selectors []string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchers = append(slices.Clip(c.watchers), f)
}

// Refresh has every source look for changes now. Watchers hear of them through Run.
func (c *Client) Refresh(ctx context.Context) error {
	var errs []error
	for _, s := range c.sources {
		if r, ok := s.(Refresher); ok {
			changed, err := r.Refresh(ctx)
			c.changes.add(changed...)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Run watches the sources and calls the watchers until ctx ends, which is no error. When a source's Run fails, all end.
// It may run once at a time.
func (c *Client) Run(ctx context.Context) error {
	c.mu.Lock()
	if c.running {
		c.mu.Unlock()
		return errors.New("xcapclient: the client runs already")
	}
	c.running = true
	c.mu.Unlock()

	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel(nil)
		wg.Wait()
		c.mu.Lock()
		c.running = false
		c.mu.Unlock()
	}()
	for _, s := range c.sources {
		r, ok := s.(Runner)
		if !ok {
			continue
		}
		wg.Go(func() {
			err := r.Run(ctx, func(selectors []string) { c.changes.add(selectors...) })
			if err != nil && ctx.Err() == nil {
				cancel(sourceError{err})
			}
		})
	}
	for {
		select {
		case <-ctx.Done():
			if e, ok := errors.AsType[sourceError](context.Cause(ctx)); ok {
				return fmt.Errorf("xcapclient: %w", e.error)
			}
			return nil
		case <-c.changes.signal:
			selectors := c.changes.take()
			if len(selectors) == 0 {
				continue
			}
			c.mu.Lock()
			watchers := c.watchers
			c.mu.Unlock()
			for _, f := range watchers {
				f(slices.Clone(selectors))
			}
		}
	}
}

// sourceError tells a source's failure from the end of the caller's context.
type sourceError struct{ error }
