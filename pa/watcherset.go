package pa

import (
	"encoding/binary"
	"encoding/hex"
	"iter"
	"math/bits"
	"slices"
	"time"

	"rollcall/dialog"
	"rollcall/pa/policy"
	"rollcall/pa/winfo"
)

// watcher is an attachment to presence: 48 octets without a pointer, because
// there may be millions.
type watcher struct {
	sinkID        uint64
	id            uint64 // in watcher information
	since         int64  // Unix milliseconds
	sinkMember    uint32
	uriAt, uriLen uint32 // in the set's text
	view          uint32 // see presentity.document
	told          uint32 // revision of the view's document it was told last
	sinkShard     uint8
	sinkComponent uint8
	handling      policy.Handling
	is            flags
}

type flags uint8

const (
	decided       flags = 1 << iota
	approved            // by a rule, after it was pending (winfo's event)
	resumed             // its subscription is of before a restart: winfo named it, and it has a state
	member              // of a list: stays when it is blocked, for the day it is not
	gone                // its place is free
	listedPending       // so the newest watcher information has it
	listedActive

	listedAs = listedPending | listedActive
)

// list notes that watcher information has the watcher with its status.
func (w *watcher) list() {
	w.is &^= listedAs
	if w.status() == winfo.Active {
		w.is |= listedActive
	} else {
		w.is |= listedPending
	}
}

// listed tells whether the newest watcher information has its status.
func (w *watcher) listed() bool {
	switch w.status() {
	case winfo.Active:
		return w.is&listedActive != 0
	case winfo.Pending:
		return w.is&listedPending != 0
	}
	return w.is&listedAs == 0
}

func (w *watcher) ref() dialog.SinkRef {
	return dialog.SinkRef{ID: w.sinkID, Member: w.sinkMember, Shard: w.sinkShard, Component: w.sinkComponent}
}

// status is the watcher's state as watcher information says it.
func (w *watcher) status() string {
	switch {
	case w.is&decided != 0 && w.handling >= policy.PoliteBlock:
		return winfo.Active
	case w.blocked():
		return winfo.Terminated
	}
	return winfo.Pending
}

// event is what brought it there.
func (w *watcher) event() string {
	if w.is&approved != 0 {
		return winfo.Approved
	}
	return winfo.Subscribe
}

func (w *watcher) blocked() bool { return w.is&decided != 0 && w.handling == policy.Block }

func (w *watcher) started() time.Time { return time.UnixMilli(w.since) }

// token is the id as watcher information shows it.
func (w *watcher) token() string {
	var b [8]byte
	return hex.EncodeToString(binary.BigEndian.AppendUint64(b[:0], w.id))
}

// watcherSet is the watchers of a presentity in the order of their arrival.
// Those that left leave a gap until compact.
type watcherSet struct {
	all   []watcher
	text  []byte   // the URIs, in the same order
	index []uint32 // places plus 1 by hash of the sink; nil while there are few
	live  int
}

// fewWatchers are looked through faster than an index.
const fewWatchers = 16

// maxWatcherText bounds the octets of the URIs of a presentity's watchers.
const maxWatcherText = 64 << 20

// fits tells whether one more watcher's URI has room.
func (ws *watcherSet) fits(uri string) bool { return len(ws.text)+len(uri) <= maxWatcherText }

func (ws *watcherSet) uri(w *watcher) string { return string(ws.text[w.uriAt : w.uriAt+w.uriLen]) }

// each gives the watchers in order.
func (ws *watcherSet) each() iter.Seq[*watcher] {
	return func(yield func(*watcher) bool) {
		for i := range ws.all {
			if w := &ws.all[i]; w.is&gone == 0 && !yield(w) {
				return
			}
		}
	}
}

// find is the place of a sink's watcher, -1 when there is none.
func (ws *watcherSet) find(to dialog.SinkRef) int {
	if ws.index == nil {
		for i := range ws.all {
			if w := &ws.all[i]; w.sinkID == to.ID && w.is&gone == 0 && w.ref() == to {
				return i
			}
		}
		return -1
	}
	for h := ws.hash(to); ; h++ {
		i := int(ws.index[h&(len(ws.index)-1)]) - 1
		if i < 0 || ws.all[i].is&gone == 0 && ws.all[i].ref() == to {
			return i
		}
	}
}

// hash is a place in the index. Sinks are numbered by us, so nobody can choose
// them to collide.
func (ws *watcherSet) hash(to dialog.SinkRef) int {
	const odd = 0x9e3779b97f4a7c15
	x := to.ID ^ bits.RotateLeft64((uint64(to.Member)<<16|uint64(to.Shard)<<8|uint64(to.Component))*odd, 32)
	return int(x * odd >> (64 - bits.Len(uint(len(ws.index)-1))))
}

// add appends a watcher and returns its place.
func (ws *watcherSet) add(to dialog.SinkRef, uri string) int {
	i := len(ws.all)
	w := watcher{
		sinkID: to.ID, sinkMember: to.Member, sinkShard: to.Shard, sinkComponent: to.Component,
		uriAt: uint32(len(ws.text)), uriLen: uint32(len(uri)),
	}
	ws.all = append(room(ws.all, 1), w)
	ws.text = append(room(ws.text, len(uri)), uri...)
	ws.live++
	switch {
	case len(ws.all) <= fewWatchers:
	case len(ws.all) > len(ws.index)/4*3:
		ws.reindex()
	default:
		ws.enter(i)
	}
	return i
}

// room makes room for n more. It wastes less than append does: most sets are
// small and stay as they are.
func room[T any](s []T, n int) []T {
	if len(s)+n <= cap(s) {
		return s
	}
	return append(slices.Grow([]T(nil), len(s)+n+len(s)/8), s...)
}

func (ws *watcherSet) enter(i int) {
	h := ws.hash(ws.all[i].ref())
	for ws.index[h&(len(ws.index)-1)] != 0 {
		h++
	}
	ws.index[h&(len(ws.index)-1)] = uint32(i + 1)
}

func (ws *watcherSet) reindex() {
	ws.index = nil
	if len(ws.all) > fewWatchers {
		ws.index = make([]uint32, 1<<bits.Len(uint(len(ws.all)*3/2)))
		for i := range ws.all {
			ws.enter(i)
		}
	}
}

// remove leaves a gap; no place moves.
func (ws *watcherSet) remove(i int) {
	ws.all[i].is |= gone
	ws.live--
}

// compact closes the gaps when they are half of the places, or these are few,
// so that a removal costs the same however many there are. It gives back the
// new place of what was at.
func (ws *watcherSet) compact(at int) int {
	n := len(ws.all)
	if ws.live == n || n > fewWatchers && ws.live > n/2 {
		return at
	}
	all, text := ws.all[:0], ws.text[:0]
	moved := at
	for i := range ws.all {
		w := ws.all[i]
		if w.is&gone != 0 {
			if i < at {
				moved--
			}
			continue
		}
		start := w.uriAt
		w.uriAt = uint32(len(text))
		text = append(text, ws.text[start:start+w.uriLen]...)
		all = append(all, w)
	}
	ws.all, ws.text = trim(all), trim(text)
	ws.reindex()
	return moved
}

// trim gives memory back after many have left.
func trim[T any](s []T) []T {
	switch {
	case len(s) == 0:
		return nil
	case cap(s) > 4*len(s):
		return append(slices.Grow([]T(nil), len(s)+len(s)/8), s...)
	}
	return s
}
