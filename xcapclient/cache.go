package xcapclient

import "container/list"

// cache keeps values by selector, the most recently used ones within a number of entries and of bytes. It is not safe
// for concurrent use.
type cache[V any] struct {
	maxEntries, maxBytes int
	bytes                int
	byName               map[string]*list.Element
	order                *list.List // front: used last
	dropped              func(name string)
}

type cached[V any] struct {
	name  string
	value V
	size  int
}

func newCache[V any](entries, bytes int) *cache[V] {
	return &cache[V]{maxEntries: entries, maxBytes: bytes, byName: map[string]*list.Element{}, order: list.New(), dropped: func(string) {}}
}

func (c *cache[V]) get(name string) (v V, ok bool) {
	e := c.byName[name]
	if e == nil {
		return v, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached[V]).value, true
}

// peek is get without using the value.
func (c *cache[V]) peek(name string) (v V, ok bool) {
	if e := c.byName[name]; e != nil {
		return e.Value.(*cached[V]).value, true
	}
	return v, false
}

// put adds a value as used last, or replaces one in its place, and makes room. A value larger than all of the room is
// not kept.
func (c *cache[V]) put(name string, v V, size int) {
	size += 2*len(name) + 200 // the bookkeeping, roughly
	if size > c.maxBytes {
		c.remove(name)
		return
	}
	if e := c.byName[name]; e != nil {
		it := e.Value.(*cached[V])
		c.bytes += size - it.size
		it.value, it.size = v, size
	} else {
		c.byName[name] = c.order.PushFront(&cached[V]{name, v, size})
		c.bytes += size
	}
	for len(c.byName) > c.maxEntries || c.bytes > c.maxBytes {
		c.remove(c.order.Back().Value.(*cached[V]).name)
	}
}

func (c *cache[V]) remove(name string) {
	e := c.byName[name]
	if e == nil {
		return
	}
	c.order.Remove(e)
	delete(c.byName, name)
	c.bytes -= e.Value.(*cached[V]).size
	c.dropped(name)
}

// each visits all without using them.
func (c *cache[V]) each(f func(name string, v V)) {
	for e := c.order.Front(); e != nil; e = e.Next() {
		it := e.Value.(*cached[V])
		f(it.name, it.value)
	}
}
