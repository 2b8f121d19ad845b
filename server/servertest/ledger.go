package servertest

import (
	"slices"
	"sync"
	"testing"
	"time"

	"rollcall/sip"
)

// Ledger keeps account of the NOTIFYs that the nodes of a world send to UAs and
// to each other, those that the network loses too: no CSeq may be used again by
// whatever server a dialog lives in (CORE-12).
type Ledger struct {
	T testing.TB
	// Revives tells that a crash may bring subscriptions back that were over, as
	// in write-back.
	Revives bool

	mu      sync.Mutex
	dialogs map[ledgerKey]*ledgerDialog
	owner   map[string]*ledgerNotify // by branch
}

type ledgerKey struct{ callID, tag string }

type ledgerDialog struct {
	cseq uint32
	all  []*ledgerNotify
}

type ledgerNotify struct {
	gen    int
	at     time.Time // of the first transmission
	status int       // of the response that arrived, 0 for none
}

// NewLedger returns an empty one.
func NewLedger(t testing.TB) *Ledger {
	return &Ledger{T: t, dialogs: make(map[ledgerKey]*ledgerDialog), owner: make(map[string]*ledgerNotify)}
}

func (l *Ledger) sent(b []byte, gen int) {
	m := sip.NewMessage()
	defer m.Release()
	if err := m.Parse(slices.Clone(b), false); err != nil {
		l.T.Errorf("a server sends what cannot be parsed: %v\n%s", err, b)
		return
	}
	if !m.IsRequest() || m.Method() != sip.NOTIFY {
		return
	}
	branch := string(m.Via().Branch)
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.owner[branch]; n != nil && n.gen == gen {
		return
	}
	k := ledgerKey{string(m.CallID()), string(m.From().Tag())}
	d := l.dialogs[k]
	if d == nil {
		d = new(ledgerDialog)
		l.dialogs[k] = d
	}
	if m.CSeq() <= d.cseq {
		l.T.Errorf("CORE-12: CSeq %d sent after %d:\n%s", m.CSeq(), d.cseq, b)
	}
	n := &ledgerNotify{gen: gen, at: time.Now()}
	d.cseq, d.all = m.CSeq(), append(d.all, n)
	l.owner[branch] = n
}

func (l *Ledger) received(m *sip.Message) {
	if m.IsRequest() || m.Status() < 200 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.owner[string(m.Via().Branch)]; n != nil && n.status == 0 {
		n.status = m.Status()
	}
}

func (l *Ledger) generation(branch string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.owner[branch]; n != nil {
		return n.gen
	}
	return 0
}

// Lost tells whether a dialog has had a NOTIFY without an answer for as long as
// a transaction lives, or one whose answer ended the subscription: a server has
// reason to have forgotten it.
func (l *Ledger) Lost(callID, tag string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.dialogs[ledgerKey{callID, tag}]
	return d != nil && slices.ContainsFunc(d.all, func(n *ledgerNotify) bool {
		return n.status >= 300 && n.status != 500 || n.status == 0 && time.Since(n.at) >= sip.TimerF
	})
}
