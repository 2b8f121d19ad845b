package sip

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// wireLog is a Sender that remembers what it was given and when.
type wireLog struct {
	now  time.Time
	sent []wireSend
	err  error // of every Send
}

type wireSend struct {
	at    time.Time
	flow  Flow
	b     string
	token uint64
}

func (w *wireLog) Send(f Flow, b []byte, token uint64) error {
	if w.err != nil {
		return w.err
	}
	w.sent = append(w.sent, wireSend{w.now, f, string(b), token})
	return nil
}

// txBench is a table of transactions with a hand-driven clock.
type txBench struct {
	*Transactions
	wire     wireLog
	outcomes []Outcome
}

func newTxBench(shard uint8) *txBench {
	b := &txBench{wire: wireLog{now: wheelStart}}
	b.Transactions = NewTransactions(shard, &b.wire, wheelStart)
	return b
}

// runTo advances as a shard does: to each instant that Next names.
func (b *txBench) runTo(at time.Time) {
	for {
		next, ok := b.Next()
		if !ok || next.After(at) {
			break
		}
		b.wire.now = next
		b.Advance(next, func(o Outcome) { b.outcomes = append(b.outcomes, o) })
	}
	b.wire.now = at
	b.Advance(at, func(o Outcome) { b.outcomes = append(b.outcomes, o) })
}

// take gives the instants, since the start, of what was sent since last asked.
func (b *txBench) take() (at []time.Duration) {
	for _, s := range b.wire.sent {
		at = append(at, s.at.Sub(wheelStart))
	}
	b.wire.sent = nil
	return at
}

// receive tells whether a request opened a transaction.
func (b *txBench) receive(m *Message) (ServerID, bool) {
	id, how := b.Receive(b.wire.now, m)
	return id, how != Repeat
}

func (b *txBench) wantLive(t *testing.T, servers, clients int) {
	t.Helper()
	if s, c := b.Live(); s != servers || c != clients {
		t.Errorf("%d server and %d client transactions, want %d and %d", s, c, servers, clients)
	}
}

func seconds(s ...float64) (d []time.Duration) {
	for _, v := range s {
		d = append(d, time.Duration(v*float64(time.Second)))
	}
	return d
}

var (
	peerAddr = netip.MustParseAddrPort("192.0.2.1:5070")
	ourAddr  = netip.MustParseAddrPort("192.0.2.9:5060")
)

// notifyText is a request with the branch of a client transaction.
func notifyText(branch []byte) []byte {
	return []byte(request(map[string]string{
		"": "NOTIFY sip:bob@192.0.2.1:5070 SIP/2.0", "CSeq": "7 NOTIFY",
		"Via": "SIP/2.0/UDP 192.0.2.9:5060;rport;branch=" + string(branch),
	}))
}

// answerTo is a response as it comes back to the sender of req.
func answerTo(t testing.TB, req []byte, status int) *Message {
	t.Helper()
	m := parseText(t, string(req), false)
	return parseText(t, string(AppendBody(AppendResponse(nil, m, status, "", "x"), "", nil)), false)
}

// The instants of RFC 3261 section 17.1.2.2: timer E from T1 doubled to T2,
// timer F at 64*T1.
func TestClientTransactionTimers(t *testing.T) {
	for _, c := range []struct {
		name        string
		proto       Proto
		provisional time.Duration // when a 100 comes, if not 0
		answer      time.Duration // when a 200 comes, if not 0
		sent        []time.Duration
		status      int
		ends        time.Duration
	}{
		{
			name: "CORE-17 UDP, no answer", proto: UDP, status: 408, ends: 32 * time.Second,
			sent: seconds(0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5),
		},
		{name: "CORE-17 UDP, answered after 4 s", proto: UDP, answer: 4 * time.Second, status: 200, sent: seconds(0, 0.5, 1.5, 3.5)},
		{
			name: "CORE-17 UDP, 100 after 200 ms: E fires once more and then every T2", proto: UDP, provisional: 200 * time.Millisecond, status: 408,
			ends: 32 * time.Second, sent: seconds(0, 0.5, 4.5, 8.5, 12.5, 16.5, 20.5, 24.5, 28.5),
		},
		{name: "CORE-17 TCP, no answer", proto: TCP, status: 408, ends: 32 * time.Second, sent: seconds(0)},
		{name: "CORE-17 TCP, 100 and then nothing", proto: TCP, provisional: time.Second, status: 408, ends: 32 * time.Second, sent: seconds(0)},
		{name: "CORE-17 TCP, answered", proto: TCP, answer: time.Second, status: 200, sent: seconds(0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newTxBench(3)
			id := b.Open(77)
			req := notifyText(b.AppendBranch(nil, id))
			if err := b.Request(wheelStart, id, Flow{Proto: c.proto, Remote: peerAddr}, req, nil); err != nil {
				t.Fatal(err)
			}
			b.wantLive(t, 0, 1)
			if c.provisional > 0 {
				b.runTo(wheelStart.Add(c.provisional))
				if _, final, ok := b.Response(b.wire.now, answerTo(t, req, 100)); final || !ok {
					t.Fatalf("100: final %v, matched %v", final, ok)
				}
			}
			if c.answer > 0 {
				b.runTo(wheelStart.Add(c.answer))
				out, final, ok := b.Response(b.wire.now, answerTo(t, req, c.status))
				if !final || !ok {
					t.Fatalf("final %v, matched %v", final, ok)
				}
				b.outcomes = append(b.outcomes, out)
				if _, _, ok := b.Response(b.wire.now, answerTo(t, req, c.status)); ok {
					t.Error("the response matched twice")
				}
			}
			if c.ends > 0 {
				b.runTo(wheelStart.Add(c.ends - 1))
				if len(b.outcomes) != 0 {
					t.Fatalf("ended before %v", c.ends)
				}
				b.runTo(wheelStart.Add(c.ends))
			}
			if want := []Outcome{{User: 77, Status: c.status}}; !slices.Equal(b.outcomes, want) {
				t.Fatalf("outcome %v, want %v", b.outcomes, want)
			}
			for _, s := range b.wire.sent {
				if s.b != string(req) || s.flow.Remote != peerAddr || s.token != uint64(id) || s.flow.Proto != c.proto {
					t.Errorf("sent %+v", s)
				}
			}
			b.runTo(wheelStart.Add(time.Hour))
			if got := b.take(); !slices.Equal(got, c.sent) {
				t.Errorf("sent at %v, want %v", got, c.sent)
			}
			b.wantLive(t, 0, 0)
			if _, ok := b.Next(); ok {
				t.Error("a timer is left")
			}
		})
	}
}

func TestClientTransactionErrors(t *testing.T) {
	t.Run("CORE-17 transport error at once", func(t *testing.T) {
		b := newTxBench(0)
		id := b.Open(5)
		b.wire.err = errors.New("no route")
		if err := b.Request(wheelStart, id, Flow{Remote: peerAddr}, notifyText(b.AppendBranch(nil, id)), nil); !errors.Is(err, b.wire.err) {
			t.Fatalf("error %v", err)
		}
		b.wantLive(t, 0, 0)
		b.runTo(wheelStart.Add(time.Minute))
		if len(b.outcomes) != 0 {
			t.Errorf("the user was told twice: %v", b.outcomes)
		}
	})
	t.Run("CORE-17 transport error later is 503, once", func(t *testing.T) {
		b := newTxBench(200)
		id := b.Open(5)
		if id.Shard() != 200 {
			t.Fatalf("shard %d", id.Shard())
		}
		b.Request(wheelStart, id, Flow{Proto: TCP, Remote: peerAddr}, notifyText(b.AppendBranch(nil, id)), nil)
		if out, ok := b.Fail(id); !ok || out != (Outcome{5, 503}) {
			t.Fatalf("%v %v", out, ok)
		}
		if _, ok := b.Fail(id); ok {
			t.Error("failed twice")
		}
		b.wantLive(t, 0, 0)
	})
	t.Run("abandoned", func(t *testing.T) {
		b := newTxBench(0)
		id := b.Open(5)
		b.Request(wheelStart, id, Flow{Remote: peerAddr}, notifyText(b.AppendBranch(nil, id)), nil)
		b.Abandon(id)
		b.Abandon(id)
		b.runTo(wheelStart.Add(time.Minute))
		if len(b.wire.sent) != 1 || len(b.outcomes) != 0 {
			t.Errorf("sent %d, outcomes %v", len(b.wire.sent), b.outcomes)
		}
		b.wantLive(t, 0, 0)
	})
}

// A response counts only with the branch, generation and nonce we gave out
// (CORE-09).
func TestForgedResponses(t *testing.T) {
	b := newTxBench(0xab)
	old := b.Open(1)
	oldBranch := b.AppendBranch(nil, old)
	oldReq := notifyText(oldBranch)
	b.Request(wheelStart, old, Flow{Remote: peerAddr}, oldReq, nil)
	if _, final, ok := b.Response(wheelStart, answerTo(t, oldReq, 200)); !final || !ok {
		t.Fatal("the first answer does not match")
	}
	id := b.Open(2) // in the same slot
	branch := b.AppendBranch(nil, id)
	b.Request(wheelStart, id, Flow{Remote: peerAddr}, notifyText(branch), nil)
	if uint32(old) != uint32(id) || old == id {
		t.Fatalf("slot not used again: %x, %x", uint64(old), uint64(id))
	}
	if !bytes.HasPrefix(branch, []byte(magicCookie)) || len(branch) != branchLen || bytes.Equal(branch, oldBranch) {
		t.Fatalf("CORE-09: branch %s after %s", branch, oldBranch)
	}
	change := func(i int, c byte) string {
		s := slices.Clone(branch)
		if s[i] == c {
			c = '0'
		}
		s[i] = c
		return string(s)
	}
	n := len(branch)
	for _, c := range []struct{ name, branch string }{
		{"late answer to the transaction before", string(oldBranch)},
		{"another nonce", change(n-1, '1')},
		{"another nonce, first digit", change(n-8, '1')},
		{"another slot", change(n-9, '9')},
		{"another generation", change(n-17, '7')},
		{"not hexadecimal", change(n-1, 'g')},
		{"upper case", change(n-1, 'A')},
		{"longer", string(branch) + "0"},
		{"shorter", string(branch[:n-1])},
		{"no magic cookie", "z9hG4bk" + string(branch[7:])},
		{"of somebody else", "z9hG4bKabc"},
		{"slot 0", magicCookie + strings.Repeat("0", 24)},
	} {
		if _, _, ok := b.Response(wheelStart, answerTo(t, notifyText([]byte(c.branch)), 200)); ok {
			t.Errorf("%s: accepted", c.name)
		}
	}
	b.wantLive(t, 0, 1)
	if out, final, ok := b.Response(wheelStart, answerTo(t, notifyText(branch), 481)); !final || !ok || out != (Outcome{2, 481}) {
		t.Errorf("the true answer: %v %v %v", out, final, ok)
	}
	b.wantLive(t, 0, 0)
}

func TestBranchRoundTrip(t *testing.T) {
	for _, shard := range []uint8{0, 1, 127, 255} {
		b := newTxBench(shard)
		for range 300 {
			id := b.Open(9)
			got, nonce, ok := ParseBranch(b.AppendBranch([]byte("x;branch="), id)[9:])
			if !ok || got != id || got.Shard() != shard || nonce != b.client[uint32(id)-1].nonce {
				t.Fatalf("%x became %x, shard %d, %v", uint64(id), uint64(got), got.Shard(), ok)
			}
		}
	}
}

// serverRequest is a SUBSCRIBE from peerAddr with another Via or other lines.
func serverRequest(t testing.TB, proto Proto, change map[string]string) *Message {
	m := parseText(t, request(change), false)
	m.Flow = Flow{Proto: proto, Local: ourAddr, Remote: peerAddr}
	return m
}

func TestServerTransaction(t *testing.T) {
	const cookie = "SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bKabc"
	t.Run("CORE-16 absorbed, then the stored response until timer J", func(t *testing.T) {
		b := newTxBench(0)
		m := serverRequest(t, UDP, nil)
		id, fresh := b.receive(m)
		if !fresh || id == 0 {
			t.Fatal("not fresh")
		}
		if again, fresh := b.receive(m); fresh || again != id || len(b.wire.sent) != 0 {
			t.Fatalf("retransmission: fresh %v, sent %d", fresh, len(b.wire.sent))
		}
		b.runTo(wheelStart.Add(time.Second))
		b.Respond(b.wire.now, id, []byte("the response"))
		b.Respond(b.wire.now, id, []byte("another response"))
		for i := 1; i < 33; i++ { // J started with the response: it ends at 33 s
			b.runTo(wheelStart.Add(time.Duration(i) * time.Second))
			if _, fresh := b.receive(m); fresh {
				t.Fatalf("executed again after %d s", i)
			}
		}
		if len(b.wire.sent) != 33 {
			t.Errorf("%d responses, want 33", len(b.wire.sent))
		}
		for _, s := range b.wire.sent {
			if s.b != "the response" || s.token != 0 {
				t.Fatalf("sent %+v", s)
			}
		}
		b.wantLive(t, 1, 0)
		b.runTo(wheelStart.Add(33 * time.Second))
		b.wantLive(t, 0, 0)
		id2, fresh := b.receive(m)
		if !fresh || id2 == id {
			t.Errorf("after timer J: fresh %v, id %x then %x", fresh, id, id2)
		}
		b.wire.sent = nil
		b.Respond(b.wire.now, id, []byte("late")) // of the ended transaction, which had the same slot
		if len(b.wire.sent) != 0 {
			t.Error("an ended transaction sent a response")
		}
	})
	t.Run("CORE-16 reliable transports end at once", func(t *testing.T) {
		b := newTxBench(0)
		m := serverRequest(t, TCP, nil)
		id, _ := b.receive(m)
		if _, fresh := b.receive(m); fresh {
			t.Error("not absorbed while it is being worked on")
		}
		b.Respond(wheelStart, id, []byte("r"))
		b.wantLive(t, 0, 0)
		if _, ok := b.Next(); ok {
			t.Error("a timer is left")
		}
	})
	t.Run("responding to nothing", func(t *testing.T) {
		b := newTxBench(0)
		b.Respond(wheelStart, 0, []byte("r"))
		b.Respond(wheelStart, 1<<32|7, []byte("r"))
		if len(b.wire.sent) != 0 {
			t.Error("sent")
		}
	})
	for _, c := range []struct {
		name  string
		first map[string]string
		then  map[string]string
		same  bool
	}{
		{name: "CORE-16 equal", same: true},
		{name: "CORE-16 other branch", then: map[string]string{"Via": cookie + "d"}},
		{name: "CORE-16 other sent-by host", then: map[string]string{"Via": "SIP/2.0/UDP 192.0.2.2:5070;branch=z9hG4bKabc"}},
		{name: "CORE-16 other sent-by port", then: map[string]string{"Via": "SIP/2.0/UDP 192.0.2.1:5071;branch=z9hG4bKabc"}},
		{name: "CORE-16 other method", then: map[string]string{"": "PUBLISH sip:alice@example.com SIP/2.0", "CSeq": "7 PUBLISH"}},
		{name: "CORE-16 the branch decides, not the rest", then: map[string]string{"Call-ID": "other"}, same: true},
		{
			name: "RFC 2543 branch, equal", first: map[string]string{"Via": "SIP/2.0/UDP 192.0.2.1;branch=1"},
			then: map[string]string{"Via": "SIP/2.0/UDP 192.0.2.1;branch=1"}, same: true,
		},
		{
			name: "RFC 2543 branch, other Call-ID", first: map[string]string{"Via": "SIP/2.0/UDP 192.0.2.1;branch=1"},
			then: map[string]string{"Via": "SIP/2.0/UDP 192.0.2.1;branch=1", "Call-ID": "other"},
		},
		{
			name: "RFC 2543 branch, other CSeq", first: map[string]string{"Via": "SIP/2.0/UDP 192.0.2.1"},
			then: map[string]string{"Via": "SIP/2.0/UDP 192.0.2.1", "CSeq": "8 SUBSCRIBE"},
		},
		{
			name: "RFC 2543 branch, other tag", first: map[string]string{"Via": "SIP/2.0/UDP 192.0.2.1"},
			then: map[string]string{"Via": "SIP/2.0/UDP 192.0.2.1", "From": "<sip:bob@example.org>;tag=b2"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newTxBench(0)
			id1, _ := b.receive(serverRequest(t, UDP, c.first))
			id2, fresh := b.receive(serverRequest(t, UDP, c.then))
			if fresh == c.same || (id1 == id2) != c.same {
				t.Errorf("fresh %v, ids %x %x", fresh, id1, id2)
			}
		})
	}
}

// CORE-24: a CANCEL is matched like the request it cancels, but for the method.
func TestCancels(t *testing.T) {
	b := newTxBench(0)
	cancel := map[string]string{"": "CANCEL sip:alice@example.com SIP/2.0", "CSeq": "7 CANCEL"}
	if b.Cancels(serverRequest(t, UDP, cancel)) {
		t.Error("matched in an empty table")
	}
	id, _ := b.receive(serverRequest(t, UDP, nil))
	if !b.Cancels(serverRequest(t, UDP, cancel)) {
		t.Error("not matched while the request is being worked on")
	}
	b.Respond(wheelStart, id, []byte("r"))
	if !b.Cancels(serverRequest(t, UDP, cancel)) {
		t.Error("not matched after the response")
	}
	cancel["Via"] = "SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bKother"
	if b.Cancels(serverRequest(t, UDP, cancel)) {
		t.Error("matched with another branch")
	}
	b.wantLive(t, 1, 0)
}

// TestSlotsReturn opens and ends many transactions in random order: the tables
// end empty and no larger than what was live at a time.
func TestSlotsReturn(t *testing.T) {
	b := newTxBench(9)
	now := wheelStart
	const rounds, at = 50, 40
	for round := range rounds {
		var reqs [][]byte
		for i := range at {
			id := b.Open(uint64(i))
			req := notifyText(b.AppendBranch(nil, id))
			b.Request(now, id, Flow{Remote: peerAddr}, req, nil)
			reqs = append(reqs, req)
			sid, fresh := b.receive(serverRequest(t, UDP, map[string]string{"Via": fmt.Sprintf("SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK%d.%d", round, i)}))
			if !fresh {
				t.Fatal("not fresh")
			}
			b.Respond(now, sid, []byte("r"))
		}
		b.wantLive(t, at, at)
		for i, req := range reqs {
			if (i+round)%3 > 0 {
				b.Response(now, answerTo(t, req, 200))
			}
		}
		now = now.Add(33 * time.Second)
		b.runTo(now)
		b.wantLive(t, 0, 0)
		b.wire.sent = nil
	}
	if len(b.client) != at || len(b.server) != at || b.servers.n != 0 || b.wheel.Len() != 0 {
		t.Errorf("%d client and %d server slots, %d keys, %d timers", len(b.client), len(b.server), b.servers.n, b.wheel.Len())
	}
}

// Where a response goes (RFC 3261 section 18.2.2, RFC 3581 section 4).
func TestResponseFlow(t *testing.T) {
	for _, c := range []struct {
		name, via string
		proto     Proto
		want      string
	}{
		{"NAT-01 rport: the source port", "192.0.2.200:5062;rport;branch=z9hG4bK1", UDP, "192.0.2.1:5070"},
		{"CORE-19 no rport: the sent-by port", "192.0.2.200:5062;branch=z9hG4bK1", UDP, "192.0.2.1:5062"},
		{"CORE-19 no rport, no port", "client.example.org;branch=z9hG4bK1", UDP, "192.0.2.1:5060"},
		{"CORE-19 maddr", "192.0.2.200:5062;maddr=192.0.2.77;branch=z9hG4bK1", UDP, "192.0.2.77:5062"},
		{"CORE-19 maddr comes before rport", "192.0.2.200;maddr=192.0.2.77;rport;branch=z9hG4bK1", UDP, "192.0.2.77:5060"},
		{"CORE-19 maddr that is a name", "192.0.2.200:5062;maddr=sip.example.org;rport;branch=z9hG4bK1", UDP, "192.0.2.1:5070"},
		{"CORE-19 TCP: the connection, whatever Via says", "192.0.2.200:5062;maddr=192.0.2.77;branch=z9hG4bK1", TCP, "192.0.2.1:5070"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := serverRequest(t, c.proto, map[string]string{"Via": "SIP/2.0/UDP " + c.via})
			m.Flow.Conn = 4
			f := ResponseFlow(m)
			if f.Remote.String() != c.want || f.Local != ourAddr || f.Proto != c.proto || f.Conn != 4 {
				t.Errorf("%+v, want %s", f, c.want)
			}
		})
	}
}
