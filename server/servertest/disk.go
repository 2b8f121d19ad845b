package servertest

import (
	"context"
	"errors"
	"hash/fnv"
	"sync"
	"time"

	"rollcall/dialog"
)

// DiskFault says what a Disk does to commits.
type DiskFault struct {
	Refuse bool          // none happens
	Lie    bool          // each happens and reports an error
	Slow   time.Duration // each takes up to twice this, before and after it happens
}

// Disk stands between a node and its store. Its faults are drawn from the seed
// and the time. What was not committed when the node crashes is lost.
type Disk struct {
	seed uint64

	mu      sync.Mutex
	fault   DiskFault
	begun   time.Time // the commit under way, from its first try; zero: none is
	before  time.Time // the same of the one before
	settled time.Time // when that was done
	life    *diskLife
}

// diskLife is a Disk in one life of its node.
type diskLife struct {
	d     *Disk
	store dialog.Store
	mu    sync.Mutex // held while a commit happens
	dead  bool
}

// NewDisk returns one without faults.
func NewDisk(seed uint64) *Disk { return &Disk{seed: seed} }

// SetFault changes the faults for commits from now on.
func (d *Disk) SetFault(f DiskFault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
}

// Behind is since when, at the latest, what the node wanted to write may not be
// stored: it gathers writes while a commit is under way, and a moment longer.
func (d *Disk) Behind() time.Time {
	const moment = 300 * time.Millisecond
	d.mu.Lock()
	defer d.mu.Unlock()
	from := time.Now()
	if !d.begun.IsZero() {
		from = d.begun
	}
	if from.Sub(d.settled) < moment {
		return d.before.Add(-moment)
	}
	return from.Add(-moment)
}

func (d *Disk) begin(s dialog.Store) dialog.Store {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.life, d.begun = &diskLife{d: d, store: s}, time.Time{}
	return d.life
}

// end lets no commit happen any more.
func (d *Disk) end() {
	d.mu.Lock()
	l := d.life
	d.mu.Unlock()
	l.mu.Lock()
	l.dead = true
	l.mu.Unlock()
}

// pause lets up to twice the fault's Slow pass.
func (d *Disk) pause(ctx context.Context, f DiskFault, salt byte) error {
	if f.Slow == 0 {
		return nil
	}
	h := fnv.New64a()
	h.Write(time.Now().AppendFormat([]byte{salt, byte(d.seed), byte(d.seed >> 8), byte(d.seed >> 16)}, time.RFC3339Nano))
	select {
	case <-time.After(time.Duration(h.Sum64() % uint64(2*f.Slow))):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Commit implements dialog.Store.
func (l *diskLife) Commit(ctx context.Context, batch []dialog.Write) error {
	d := l.d
	d.mu.Lock()
	f := d.fault
	if d.begun.IsZero() {
		d.begun = time.Now()
	}
	d.mu.Unlock()
	if err := d.pause(ctx, f, 'b'); err != nil {
		return err
	}
	if f.Refuse {
		return errors.New("the disk refuses")
	}
	l.mu.Lock()
	var err error
	if !l.dead {
		err = l.store.Commit(ctx, batch)
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if err := d.pause(ctx, f, 'a'); err != nil {
		return err
	}
	if f.Lie {
		return errors.New("the disk lies")
	}
	d.mu.Lock()
	d.before, d.settled, d.begun = d.begun, time.Now(), time.Time{}
	d.mu.Unlock()
	return nil
}
