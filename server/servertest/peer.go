package servertest

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"rollcall/sip"
)

// Peer is a notifier whose every message a test writes.
type Peer struct {
	Addr netip.AddrPort
	w    *World
	host *sip.MemHost

	mu      sync.Mutex
	serial  int
	served  map[string][]byte // responses by branch, nil while there is none
	waiting map[string]chan Msg
	queue   []*Incoming
	wake    chan struct{}
	dialogs map[string]*peerDialog // by Call-ID
	gap     Gap
}

type peerDialog struct {
	tag  string
	cseq int
	last Msg // newest SUBSCRIBE
}

// Incoming is a SUBSCRIBE that a Peer received.
type Incoming struct {
	Msg
	At time.Time
	p  *Peer
	d  *peerDialog
}

// Peer puts a scripted server on the network.
func (w *World) Peer(addr string) *Peer {
	p := &Peer{Addr: netip.MustParseAddrPort(addr), w: w, served: make(map[string][]byte), waiting: make(map[string]chan Msg), wake: make(chan struct{}, 1), dialogs: make(map[string]*peerDialog)}
	p.host = w.Net.Host(p.Addr, p.receive)
	return p
}

func (p *Peer) receive(m *sip.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	branch := string(m.Via().Branch)
	if !m.IsRequest() {
		if ch := p.waiting[branch]; ch != nil {
			delete(p.waiting, branch)
			ch <- Msg{m}
		}
		return
	}
	if resp, seen := p.served[branch]; seen {
		if resp != nil {
			p.host.Send(sip.Flow{Local: p.Addr, Remote: m.Flow.Remote}, resp, 0)
		}
		return
	}
	p.served[branch] = nil
	if m.Method() != sip.SUBSCRIBE {
		p.w.T.Errorf("peer got %s", m.Raw)
		return
	}
	id := string(m.CallID())
	d := p.dialogs[id]
	if d == nil {
		d = &peerDialog{tag: "peer" + fmt.Sprint(len(p.dialogs))}
		p.dialogs[id] = d
	}
	if d.last.Message != nil && m.CSeq() != d.last.CSeq()+1 && !(p.gap == Crash && m.CSeq() > d.last.CSeq()) {
		p.w.T.Errorf("CORE-12: SUBSCRIBE with CSeq %d after %d", m.CSeq(), d.last.CSeq())
	}
	d.last = Msg{m}
	p.queue = append(p.queue, &Incoming{Msg: Msg{m}, At: time.Now(), p: p, d: d})
	poke(p.wake)
}

// Expect allows CSeq gaps from now on: after a Crash.
func (p *Peer) Expect(gap Gap) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gap = gap
}

// Dialogs is how many a server has tried to open here.
func (p *Peer) Dialogs() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.dialogs)
}

// Next waits for the next SUBSCRIBE.
func (p *Peer) Next(wait time.Duration) *Incoming {
	p.w.T.Helper()
	over := time.NewTimer(wait)
	defer over.Stop()
	for {
		p.mu.Lock()
		if len(p.queue) > 0 {
			in := p.queue[0]
			p.queue = p.queue[1:]
			p.mu.Unlock()
			return in
		}
		p.mu.Unlock()
		select {
		case <-p.wake:
		case <-over.C:
			p.w.T.Fatalf("no SUBSCRIBE within %v", wait)
		}
	}
}

// Quiet lets d pass, in which no SUBSCRIBE may arrive.
func (p *Peer) Quiet(d time.Duration, why string) {
	p.w.T.Helper()
	p.w.Settle(d)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, in := range p.queue {
		p.w.T.Errorf("%s: SUBSCRIBE at %v\n%s", why, in.At, in.Raw)
	}
	p.queue = nil
}

// Wants is the Expires of the SUBSCRIBE.
func (in *Incoming) Wants() int {
	v, _, _ := in.Uint(sip.HdrExpires)
	return int(v)
}

// InDialog tells whether the SUBSCRIBE is a refresh or the end.
func (in *Incoming) InDialog() bool { return len(in.To().Tag()) > 0 }

// Tag is the peer's tag in the dialog.
func (in *Incoming) Tag() string { return in.d.tag }

// Answer sends the final response. headers are lines with LF; a 2xx gets
// Contact, and Expires as asked for unless headers say otherwise.
func (in *Incoming) Answer(status int, headers string) {
	b := sip.AppendResponse(nil, in.Message, status, "", in.d.tag)
	if status < 300 {
		b = fmt.Appendf(b, "Contact: <sip:%v>\r\n", in.p.Addr)
		if !strings.Contains(headers, "Expires:") {
			b = fmt.Appendf(b, "Expires: %d\r\n", in.Wants())
		}
	}
	b = append(b, strings.ReplaceAll(headers, "\n", "\r\n")...)
	b = sip.AppendBody(b, "", nil)
	in.p.mu.Lock()
	defer in.p.mu.Unlock()
	in.p.served[string(in.Via().Branch)] = b
	in.p.host.Send(sip.Flow{Local: in.p.Addr, Remote: in.Flow.Remote}, b, 0)
}

// Notify sends a NOTIFY in the dialog of the SUBSCRIBE and returns the status
// of its response, 0 when there was none within four seconds.
func (in *Incoming) Notify(state, body string) int {
	p := in.p
	p.mu.Lock()
	in.d.cseq++
	p.serial++
	branch := fmt.Sprintf("z9hG4bKp%d", p.serial)
	ctype := ""
	if body != "" {
		ctype = "Content-Type: application/pidf+xml\r\n"
	}
	event := in.H(sip.HdrEvent)
	if event == "dialog" && body != "" {
		ctype = "Content-Type: application/dialog-info+xml\r\n"
	}
	c, err := sip.ParseNameAddr(in.Header(sip.HdrContact))
	if err != nil {
		p.w.T.Errorf("SUBSCRIBE with Contact %q", in.H(sip.HdrContact))
	}
	req := fmt.Sprintf("NOTIFY %s SIP/2.0\r\nVia: SIP/2.0/UDP %v;rport;branch=%s\r\nMax-Forwards: 70\r\nFrom: <%s>;tag=%s\r\nTo: <%s>;tag=%s\r\nCall-ID: %s\r\nCSeq: %d NOTIFY\r\nContact: <sip:%v>\r\nEvent: %s\r\nSubscription-State: %s\r\n%sContent-Length: %d\r\n\r\n%s",
		c.URI, p.Addr, branch, in.To().URI, in.d.tag, in.From().URI, in.From().Tag(), in.CallID(), in.d.cseq, p.Addr, event, state, ctype, len(body), body)
	ch := make(chan Msg, 1)
	p.waiting[branch] = ch
	p.host.Send(sip.Flow{Local: p.Addr, Remote: in.Flow.Remote}, []byte(req), 0)
	p.mu.Unlock()
	over := time.NewTimer(4 * time.Second)
	defer over.Stop()
	select {
	case m := <-ch:
		return m.Status()
	case <-over.C:
		return 0
	}
}
