package sql

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
	"sync"
)

// memory holds what a server must be able to read back while it runs; rows are not among that.
type memory struct {
	mu   sync.Mutex
	docs map[string]Document
	meta map[string]string
	subs map[[2]string]Subscriber // by user name and domain
}

func newMemory() *memory {
	return &memory{docs: map[string]Document{}, meta: map[string]string{}, subs: map[[2]string]Subscriber{}}
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

func (m *memory) subscriber(username, domain string) Subscriber {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.subs[[2]string{username, domain}]
}

func (m *memory) subscribers(domain string) []Subscriber {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Subscriber
	for _, sub := range m.subs {
		if domain == "" || sub.Domain == domain {
			all = append(all, sub)
		}
	}
	slices.SortFunc(all, func(a, b Subscriber) int {
		return cmp.Or(strings.Compare(a.Domain, b.Domain), strings.Compare(a.Username, b.Username))
	})
	return all
}

func (m *memory) putSubscriber(sub Subscriber, only Precondition) (created bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := [2]string{sub.Username, sub.Domain}
	_, ok := m.subs[key]
	if err := only.check(ok, ""); err != nil {
		return false, err
	}
	m.subs[key] = sub
	return !ok, nil
}

func (m *memory) deleteSubscriber(username, domain string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := [2]string{username, domain}
	if _, ok := m.subs[key]; !ok {
		return ErrNotFound
	}
	delete(m.subs, key)
	return nil
}
