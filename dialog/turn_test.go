package dialog

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// listener is a Sink in every shard that remembers what it is told.
type listener struct {
	mu  sync.Mutex
	got []string
}

func (l *listener) Timer(t *Turn, id uint64) {
	l.hear(fmt.Sprintf("timer %d in shard %d", id, t.Shard()))
}

func (l *listener) Update(t *Turn, u Update) {
	body := ""
	if u.Doc != nil {
		body = string(u.Doc.Body)
	}
	l.hear(fmt.Sprintf("%d/%d %s %s", u.To.ID, u.To.Member, u.State, body))
}

func (l *listener) hear(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got = append(l.got, s)
}

func (l *listener) want(t *testing.T, want ...string) {
	t.Helper()
	settle()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Equal(l.got, want) {
		t.Errorf("heard %q, want %q", l.got, want)
	}
	l.got = nil
}

// listenerRig has a listener as its second component, and people in two shards.
func listenerRig(t *testing.T) (r *rig, l *listener, here, there string) {
	l = &listener{}
	r = newRig(t, newNet(t), serverAddr, func(o *Options) {
		o.Components = append(o.Components, func(uint8) Component { return l })
	})
	here, there = alice, "sip:zoe@example.com"
	if ShardOf(here) == ShardOf(there) {
		t.Fatal("both in one shard")
	}
	return r, l, here, there
}

func interest(r *rig, resource string) Interest {
	return Interest{Package: r.opt.Packages.Find("presence"), Resource: resource, URI: resource}
}

// A sink in one shard follows resources in its own and in another one: state
// travels, and a newer one replaces an older one that was not read.
func TestAcrossShards(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, l, here, there := listenerRig(t)
		a := SinkRef{ID: 5, Member: 1, Shard: ShardOf(here), Component: 1}
		b := SinkRef{ID: 5, Member: 2, Shard: ShardOf(here), Component: 1}
		r.Do(here, func(t *Turn) {
			t.Attach(interest(r, here), a)
			t.Attach(interest(r, there), b)
		})
		l.want(t, "5/1 active first", "5/2 active first")
		r.set(here, active("second"))
		r.set(there, active("third"))
		l.want(t, "5/1 active second", "5/2 active third")

		step(t, "updates that were not read are replaced", func(t *testing.T) {
			block := make(chan struct{})
			r.Post(ShardOf(here), func(*Turn) { <-block })
			settle()
			before := r.Stats().Coalesced.Load()
			for i := range 10 {
				r.set(there, active(fmt.Sprint("quick ", i)))
			}
			close(block)
			l.want(t, "5/2 active quick 9")
			if n := r.Stats().Coalesced.Load() - before; n != 9 {
				t.Errorf("%d replaced", n)
			}
		})
		step(t, "nothing replaces the end", func(t *testing.T) {
			block := make(chan struct{})
			r.Post(ShardOf(here), func(*Turn) { <-block })
			settle()
			r.set(there, Update{State: Terminated, Reason: NoResource})
			r.Do(there, func(t *Turn) { t.Update(Update{To: b, State: Active}) })
			close(block)
			l.want(t, "5/2 terminated ")
		})
		step(t, "detached: silence", func(t *testing.T) {
			r.set(there, active("again"))
			r.Do(here, func(t *Turn) { t.Attach(interest(r, there), b) })
			l.want(t, "5/2 active again")
			r.Do(here, func(t *Turn) {
				t.Detach(interest(r, here), a)
				t.Detach(interest(r, there), b)
			})
			settle()
			r.set(here, active("x"))
			r.set(there, active("x"))
			l.want(t)
			if n := len(r.src.detached); n != 2 {
				t.Errorf("%d detached", n)
			}
		})
		step(t, "attached and detached in one turn: in that order", func(t *testing.T) {
			r.Do(here, func(t *Turn) {
				t.Attach(interest(r, there), b)
				t.Detach(interest(r, there), b)
			})
			settle()
			if n := len(r.src.detached); n != 3 {
				t.Errorf("%d detached", n)
			}
		})
	})
}

func TestComponentTimers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, l, here, _ := listenerRig(t)
		shard := ShardOf(here)
		r.Do(here, func(t *Turn) {
			t.SetTimer(1, 7, t.Now.Add(time.Second))
			t.CancelTimer(t.SetTimer(1, 8, t.Now.Add(time.Second)))
			t.SetTimer(1, 1<<56|9, t.Now.Add(time.Hour)) // the top byte is not the component's
		})
		time.Sleep(990 * time.Millisecond)
		l.want(t)
		time.Sleep(20 * time.Millisecond)
		l.want(t, fmt.Sprintf("timer 7 in shard %d", shard))
		time.Sleep(time.Hour)
		l.want(t, fmt.Sprintf("timer 9 in shard %d", shard))
	})
}

// Async runs a bounded amount of work beside the shards, each piece for a
// bounded time, and refuses more.
func TestAsync(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, l, here, _ := listenerRig(t)
		done, refused, expired := 0, 0, 0
		var mu sync.Mutex
		r.Do(here, func(turn *Turn) {
			for range 2000 {
				ok := turn.Async(func(ctx context.Context) {
					<-ctx.Done()
					mu.Lock()
					defer mu.Unlock()
					expired++
				}, func(turn *Turn) {
					if turn.Shard() != ShardOf(here) {
						t.Error("done in another shard")
					}
					done++
				})
				if !ok {
					refused++
				}
			}
		})
		time.Sleep(asyncTimeout + time.Millisecond)
		settle()
		mu.Lock()
		if expired != asyncWorkers || refused < 2000-cap(r.work)-asyncWorkers || refused > 2000-cap(r.work) {
			t.Errorf("%d ran, %d refused", expired, refused)
		}
		mu.Unlock()
		time.Sleep(time.Hour)
		settle()
		r.Do(here, func(*Turn) {
			if done+refused != 2000 {
				t.Errorf("%d done, %d refused", done, refused)
			}
		})
		l.want(t)
	})
}

func TestTags(t *testing.T) {
	seen := map[uint64]bool{}
	for i := range 256 {
		id := (&shard{id: uint8(i)}).newID()
		tag := formatTag(id)
		got, ok := parseTag([]byte(tag))
		if !ok || got != id || tagShard(id) != uint8(i) || len(tag) != tagSize || seen[id] {
			t.Errorf("shard %d: %x as %s became %x, shard %d", i, id, tag, got, tagShard(id))
		}
		seen[id] = true
	}
	for _, bad := range []string{"", "0011223344556", "001122334455667", "0011223344556g", (&Turn{sh: &shard{}}).newTag()} {
		if _, ok := parseTag([]byte(bad)); ok {
			t.Errorf("%q is taken for ours", bad)
		}
	}
}

func TestPackageAccepts(t *testing.T) {
	p := &Package{Types: []string{pidfType, "application/pidf-diff+xml"}}
	for accept, want := range map[string]bool{
		"":                                   true,
		pidfType:                             true,
		"text/plain, " + pidfType:            true,
		"Application/PIDF+XML;charset=utf-8": true,
		"application/pidf-diff+xml":          true,
		"application/*":                      true,
		"application / pidf+xml":             true,
		" * / * ; q = 1":                     true,
		"text / *, application\t/\t*":        true,
		"*/*":                                true,
		"*/*;q=0.1":                          true,
		"text/*":                             false,
		"text/plain":                         false,
		pidfType + ";q=0":                    false,
		pidfType + " ; Q = 0.000":            false,
		"application/pidf":                   false,
	} {
		if got := p.Accepts(accept); got != want {
			t.Errorf("EV-04 Accept %q: %v, want %v", accept, got, want)
		}
	}
}

func TestRegistry(t *testing.T) {
	a, b := &Package{Name: "presence", Types: []string{"x/1", "x/2"}}, &Package{Name: "presence.winfo", Types: []string{"x/2"}}
	r := NewRegistry(a, b)
	if r.Find("presence") != a || r.Find("presence.winfo") != b || r.Find("Presence") != nil || r.Find("") != nil {
		t.Error("EV-02 Find")
	}
	if r.AllowEvents() != "presence, presence.winfo" || !slices.Equal(r.Types(), []string{"x/1", "x/2"}) {
		t.Errorf("%s %v", r.AllowEvents(), r.Types())
	}
}

// Work in pieces: each piece has a turn of its own, what waits for the shard
// comes in between, and a stop waits for the last piece.
func TestLater(t *testing.T) {
	rt := New(Options{Packages: NewRegistry(), Durability: Memory})
	rt.Start()
	const pieces = 50
	done, seen := 0, 0
	var piece func(t *Turn)
	piece = func(t *Turn) {
		time.Sleep(time.Millisecond) // work
		if done++; done < pieces {
			t.Later(piece)
		}
		if done == 10 {
			rt.Post(t.Shard(), func(*Turn) { seen = done })
		}
	}
	rt.Do("x", piece)
	for over := false; !over; {
		rt.Do("x", func(*Turn) { over = done == pieces })
	}
	if seen != 11 {
		t.Errorf("what came with the 10th piece had its turn after the %dth, want the 11th", seen)
	}
	rt.Do("x", func(t *Turn) {
		done = 0
		t.Later(piece)
	})
	if err := rt.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if done != pieces {
		t.Errorf("stopped after %d of %d pieces", done, pieces)
	}
}
