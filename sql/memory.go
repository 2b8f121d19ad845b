package sql

import (
	"bytes"
	"slices"
	"strings"
	"sync"
)

// memory holds what a server must be able to read back while it runs; rows are not among that.
type memory struct {
	mu   sync.Mutex
	docs map[string]Document
	meta map[string]string
}

func newMemory() *memory {
	return &memory{docs: map[string]Document{}, meta: map[string]string{}}
}

func (m *memory) document(selector string) (Document, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.docs[selector]
	if !ok {
		return Document{}, ErrNotFound
	}
	d.Body = bytes.Clone(d.Body)
	return d, nil
}

func (m *memory) put(d Document, only Precondition) (created bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, ok := m.docs[d.Selector]
	if err := only.check(ok, old.ETag); err != nil {
		return false, err
	}
	d.Body = bytes.Clone(d.Body)
	m.docs[d.Selector] = d
	return !ok, nil
}

func (m *memory) remove(selector string, only Precondition) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, ok := m.docs[selector]
	if err := only.check(ok, old.ETag); err != nil {
		return err
	}
	if !ok {
		return ErrNotFound
	}
	delete(m.docs, selector)
	return nil
}

func (m *memory) selectors(auid string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for sel := range m.docs {
		if strings.HasPrefix(sel, auid+"/") {
			all = append(all, sel)
		}
	}
	slices.Sort(all)
	return all
}

func (m *memory) get(key string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.meta[key]
	if !ok {
		return "", ErrNotFound
	}
	return v, nil
}

func (m *memory) set(key, value string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.meta[key] = value
}
