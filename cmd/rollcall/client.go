package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rollcall/sip"
)

// agent is a user agent client: a socket towards one server, its transactions
// and the one goroutine (run) that owns them. Requests of the server are
// answered there too, by the subscription they belong to, so that a NOTIFY is
// answered whatever the consumer is doing.
type agent struct {
	proto  sip.Proto
	server netip.AddrPort
	asked  string    // the server as the user wrote it
	trace  io.Writer // nil: off

	calls chan func() // unbuffered: work for run
	in    chan *sip.Message
	lost  chan lost
	quit  chan struct{}
	once  sync.Once
	over  sync.WaitGroup
	dial  sync.Mutex // one connection attempt at a time
	up    atomic.Bool

	// Only run uses what follows.
	tx      *sip.Transactions
	udp     *net.UDPConn
	tcp     net.Conn
	conn    uint32 // number of the TCP connection
	local   netip.AddrPort
	pending map[uint64]*exchange
	last    uint64
	dialogs map[string]*subscription // by Call-ID
}

// exchange is a request under way.
type exchange struct {
	id   sip.ClientID
	done func(reply)
}

// reply is how a request ended: a final response or an error.
type reply struct {
	msg *sip.Message
	err error
}

// lost is the news that the transport failed.
type lost struct {
	conn uint32
	err  error
}

// unreachable wraps what kept a server from answering.
type unreachable struct {
	server string
	err    error
}

func (e *unreachable) Error() string {
	return fmt.Sprintf("no answer from %s: %v", e.server, cause(e.err))
}
func (e *unreachable) Unwrap() error { return e.err }

// cause is what a person wants to know of a network error: neither the system
// call nor our own port.
func cause(err error) error {
	var op *net.OpError
	var call *os.SyscallError
	if errors.As(err, &op) {
		err = op.Err
	}
	if errors.As(err, &call) {
		err = call.Err
	}
	return err
}

var (
	errTimeout = errors.New("timeout")
	errClosed  = errors.New("closed")
)

// defaultServer is the first listener of serve when nothing else is said.
const defaultServer = "sip:127.0.0.1:5060"

const (
	dialLimit  = 5 * time.Second
	writeLimit = 5 * time.Second
)

// parseServer reads sip:HOST[:PORT][;transport=udp|tcp]; sip: may be left out.
func parseServer(s string) (sip.Proto, string, uint16, error) {
	if !strings.HasPrefix(strings.ToLower(s), "sip:") {
		s = "sip:" + s
	}
	u, err := sip.ParseURI(s)
	if err != nil {
		return 0, "", 0, err
	}
	p, err := sip.TransportOf(u)
	if err != nil {
		return 0, "", 0, err
	}
	if p != sip.UDP && p != sip.TCP {
		return 0, "", 0, fmt.Errorf("transport %v is not supported here, only udp and tcp", p)
	}
	return p, strings.Trim(u.Host, "[]"), sip.HopPort(u), nil
}

// newAgent opens the socket. What keeps it from that is *unreachable, or a
// server that cannot be read.
func newAgent(ctx context.Context, server string, trace io.Writer) (*agent, error) {
	proto, host, port, err := parseServer(server)
	if err != nil {
		return nil, coded(exitUsage, fmt.Errorf("server %q: %w", server, err))
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		ctx, cancel := context.WithTimeout(ctx, dialLimit)
		defer cancel()
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return nil, &unreachable{server, err}
		}
		addr = addrs[0]
	}
	a := &agent{
		proto: proto, server: netip.AddrPortFrom(addr.Unmap(), port), asked: server, trace: trace,
		calls: make(chan func()), in: make(chan *sip.Message, 64), lost: make(chan lost), quit: make(chan struct{}),
		pending: make(map[uint64]*exchange), dialogs: make(map[string]*subscription),
	}
	a.tx = sip.NewTransactions(0, a, time.Now())
	if proto == sip.UDP {
		if err := a.listenUDP(); err != nil {
			return nil, &unreachable{server, err}
		}
	}
	a.over.Go(a.run)
	if err := a.connect(ctx); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

// listenUDP binds a port at the address from which the server is reached. The
// socket is not connected: a NOTIFY may come from another address than the one
// the SUBSCRIBE went to.
func (a *agent) listenUDP() error {
	probe, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(a.server))
	if err != nil {
		return err
	}
	from := probe.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
	probe.Close()
	if a.udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))); err != nil {
		return err
	}
	reportRefused(a.udp)
	a.udp.SetReadBuffer(4 << 20)
	local := a.udp.LocalAddr().(*net.UDPAddr).AddrPort()
	a.local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	a.up.Store(true)
	a.over.Go(a.readUDP)
	return nil
}

// connect makes the TCP connection when there is none.
func (a *agent) connect(ctx context.Context) error {
	a.dial.Lock()
	defer a.dial.Unlock()
	if a.up.Load() {
		return nil
	}
	d := net.Dialer{Timeout: dialLimit}
	c, err := d.DialContext(ctx, "tcp", a.server.String())
	if err != nil {
		return &unreachable{a.asked, err}
	}
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()
	taken := make(chan struct{})
	if !a.post(func() {
		defer close(taken)
		a.conn++
		a.tcp, a.local = c, netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
		a.up.Store(true)
		n := a.conn
		a.over.Go(func() { a.readTCP(c, n) })
	}) {
		c.Close()
		return errClosed
	}
	<-taken // or the next caller would not see that we are up
	return nil
}

// close ends the agent. Requests under way get errClosed.
func (a *agent) close() {
	a.once.Do(func() { close(a.quit) })
	a.over.Wait()
}

// post has run call f. It is false when the agent is closed.
func (a *agent) post(f func()) bool {
	select {
	case a.calls <- f:
		return true
	case <-a.quit:
		return false
	}
}

// run owns the transactions and dialogs.
func (a *agent) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if at, ok := a.tx.Next(); ok {
			timer.Reset(time.Until(at))
		} else {
			timer.Stop()
		}
		select {
		case f := <-a.calls:
			f()
		case m := <-a.in:
			a.receive(m)
		case l := <-a.lost:
			a.fail(l)
		case <-timer.C:
			a.tx.Advance(time.Now(), func(o sip.Outcome) { a.finish(o.User, reply{err: &unreachable{a.asked, errTimeout}}) })
		case <-a.quit:
			if a.udp != nil {
				a.udp.Close()
			}
			if a.tcp != nil {
				a.tcp.Close()
			}
			for user := range a.pending {
				a.finish(user, reply{err: errClosed})
			}
			return
		}
	}
}

// readUDP reads datagrams until the socket is closed.
func (a *agent) readUDP() {
	buf := make([]byte, 65536)
	for faults := 0; ; {
		n, from, err := a.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Almost always the ICMP answer to something sent. A socket that
			// does nothing else any more must not keep a processor busy.
			if faults++; faults > 1000 || !a.down(lost{err: err}) {
				return
			}
			continue
		}
		faults = 0
		b := append([]byte(nil), buf[:n]...)
		if !a.deliver(b, false, sip.Flow{Proto: sip.UDP, Remote: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}) {
			return
		}
	}
}

// readTCP reads messages until the connection ends.
func (a *agent) readTCP(c net.Conn, conn uint32) {
	flow := sip.Flow{Proto: sip.TCP, Local: a.server, Remote: a.server, Conn: conn}
	var b []byte
	chunk := make([]byte, 32<<10)
	for {
		n, err := c.Read(chunk)
		b = append(b, chunk[:n]...)
		for {
			b = b[sip.SkipLineEnds(b):]
			length, ferr := sip.FrameLen(b)
			if ferr != nil {
				err = ferr
				break
			}
			if length == 0 {
				break
			}
			if !a.deliver(append([]byte(nil), b[:length]...), true, flow) {
				return
			}
			b = b[length:]
		}
		if err != nil {
			c.Close()
			if errors.Is(err, io.EOF) {
				err = errors.New("connection closed by the server")
			}
			a.down(lost{conn, err})
			return
		}
	}
}

func (a *agent) down(l lost) bool {
	select {
	case a.lost <- l:
		return true
	case <-a.quit:
		return false
	}
}

// deliver parses a message and hands it to run. What cannot be parsed is
// dropped: the server will ask again.
func (a *agent) deliver(b []byte, stream bool, flow sip.Flow) bool {
	a.show("received from", flow.Remote, b)
	m := &sip.Message{Flow: flow, At: time.Now()}
	if m.Parse(b, stream) != nil {
		return true
	}
	select {
	case a.in <- m:
		return true
	case <-a.quit:
		return false
	}
}

// show writes a message to the trace in one piece.
func (a *agent) show(what string, peer netip.AddrPort, b []byte) {
	if a.trace == nil {
		return
	}
	var out strings.Builder
	fmt.Fprintf(&out, "--- %s %s %s %v\n", time.Now().Format("15:04:05.000"), what, peer, a.proto)
	for line := range strings.Lines(string(b)) {
		out.WriteString(clean(strings.TrimRight(line, "\r\n")))
		out.WriteByte('\n')
	}
	io.WriteString(a.trace, out.String())
}

// Send implements sip.Sender.
func (a *agent) Send(f sip.Flow, b []byte, _ uint64) error {
	a.show("sent to", f.Remote, b)
	if a.proto == sip.UDP {
		_, err := a.udp.WriteToUDPAddrPort(b, f.Remote)
		return err
	}
	if a.tcp == nil || f.Conn != a.conn {
		return sip.ErrFlowGone
	}
	a.tcp.SetWriteDeadline(time.Now().Add(writeLimit))
	_, err := a.tcp.Write(b)
	return err
}

// fail ends every request under way: there is only one server.
func (a *agent) fail(l lost) {
	if l.conn != a.conn {
		return
	}
	if a.proto != sip.UDP {
		a.tcp = nil
		a.up.Store(false)
	}
	for user, x := range a.pending {
		a.tx.Fail(x.id)
		a.finish(user, reply{err: &unreachable{a.asked, l.err}})
	}
	if a.proto != sip.UDP {
		for _, s := range a.dialogs {
			s.disconnected(l.err)
		}
	}
}

func (a *agent) finish(user uint64, r reply) {
	if x := a.pending[user]; x != nil {
		delete(a.pending, user)
		x.done(r)
	}
}

// receive handles one message (RFC 3261 sections 17.1.2 and 17.2.2).
func (a *agent) receive(m *sip.Message) {
	now := time.Now()
	if !m.IsRequest() {
		if o, final, ok := a.tx.Response(now, m); ok && final {
			a.finish(o.User, reply{msg: m})
		}
		return
	}
	if m.Method() == sip.ACK {
		return
	}
	id, arrival := a.tx.Receive(now, m)
	if arrival == sip.Repeat {
		return // answered from the stored response
	}
	a.tx.Respond(now, id, a.answer(m))
}

// answer makes the response to a request.
func (a *agent) answer(m *sip.Message) []byte {
	code, reason, headers := 405, "", []string{"Allow", "NOTIFY, OPTIONS"}
	switch m.Method() {
	case sip.NOTIFY:
		code, reason, headers = 481, "Subscription Does Not Exist", nil
		if s := a.dialogs[string(m.CallID())]; s != nil {
			code, reason, headers = s.notified(m)
		}
	case sip.OPTIONS:
		code = 200
	case sip.CANCEL:
		code, headers = 481, nil
	}
	b := sip.AppendResponse(nil, m, code, reason, token())
	for i := 0; i+1 < len(headers); i += 2 {
		b = sip.AppendHeader(b, headers[i], headers[i+1])
	}
	return sip.AppendBody(b, "", nil)
}

// start sends a request. build runs on run's goroutine and gets the value of
// the Via field; done, which may be nil, runs there with the outcome before
// the channel gets it. limit bounds the wait, 0 means timer F alone.
func (a *agent) start(ctx context.Context, limit time.Duration, build func(via string) ([]byte, netip.AddrPort), done func(reply)) <-chan reply {
	out := make(chan reply, 1)
	a.over.Go(func() {
		if err := a.connect(ctx); err != nil {
			out <- reply{err: err}
			return
		}
		if limit <= 0 || limit > sip.TimerF {
			limit = sip.TimerF + time.Second
		}
		timer := time.NewTimer(limit)
		defer timer.Stop()
		got := make(chan reply, 1)
		var user uint64
		a.post(func() {
			user = a.request(build, func(r reply) {
				if done != nil {
					done(r)
				}
				got <- r
			})
		})
		err := errTimeout
		select {
		case r := <-got:
			out <- r
			return
		case <-a.quit:
			out <- reply{err: errClosed}
			return
		case <-timer.C:
		case <-ctx.Done():
			err = ctx.Err()
		}
		a.post(func() {
			if x := a.pending[user]; x != nil {
				a.tx.Abandon(x.id)
				a.finish(user, reply{err: &unreachable{a.asked, err}})
			}
		})
		select {
		case r := <-got:
			out <- r
		case <-a.quit:
			out <- reply{err: errClosed}
		}
	})
	return out
}

// do sends a request and waits for its end.
func (a *agent) do(ctx context.Context, limit time.Duration, build func(via string) ([]byte, netip.AddrPort)) (*sip.Message, error) {
	r := <-a.start(ctx, limit, build, nil)
	return r.msg, r.err
}

// request sends a request from run's goroutine.
func (a *agent) request(build func(via string) ([]byte, netip.AddrPort), done func(reply)) uint64 {
	a.last++
	user := a.last
	id := a.tx.Open(user)
	via := append([]byte("SIP/2.0/"), a.proto.String()...)
	via = append(via, ' ')
	via = a.local.AppendTo(via)
	via = append(via, ";branch="...)
	via = a.tx.AppendBranch(via, id)
	msg, to := build(string(append(via, ";rport"...))) // NAT-02
	a.pending[user] = &exchange{id, done}
	if err := a.tx.Request(time.Now(), id, sip.Flow{Proto: a.proto, Local: a.local, Remote: to, Conn: a.conn}, msg, nil); err != nil {
		a.finish(user, reply{err: &unreachable{a.asked, err}})
	}
	return user
}

// contact is the URI at which the server reaches us.
func (a *agent) contact(user string) string {
	c := "sip:" + user + "@" + a.local.String()
	if a.proto != sip.UDP {
		c += ";transport=" + strings.ToLower(a.proto.String())
	}
	return c
}

// hop is where a request to a URI goes: to the address it names when it can
// be reached over our transport, else to the server, which then acts as an
// outbound proxy. A TCP connection leads to the server alone.
func (a *agent) hop(uri string) netip.AddrPort {
	proto, remote, err := sip.LiteralHop(uri)
	if err != nil || a.proto != sip.UDP || proto != sip.UDP || remote.Addr().Is4() != a.local.Addr().Is4() {
		return a.server
	}
	return remote
}

// outgoing is a request to write.
type outgoing struct {
	method   sip.Method
	uri      string
	from, to string // whole values, tags included
	callID   string
	cseq     uint32
	routes   []string
	headers  []string // name, value, ...
	bodyType string
	body     []byte
}

// product is the value of User-Agent.
var product = sync.OnceValue(func() string { return "rollcall/" + strings.Trim(version(), "()") })

func (o *outgoing) append(b []byte, via string) []byte {
	b = append(b, o.method.String()...)
	b = append(b, ' ')
	b = append(b, o.uri...)
	b = append(b, " SIP/2.0\r\n"...)
	b = sip.AppendHeader(b, "Via", via)
	b = sip.AppendHeader(b, "Max-Forwards", "70")
	for _, r := range o.routes {
		b = sip.AppendHeader(b, "Route", r)
	}
	b = sip.AppendHeader(b, "From", o.from)
	b = sip.AppendHeader(b, "To", o.to)
	b = sip.AppendHeader(b, "Call-ID", o.callID)
	b = sip.AppendHeader(b, "CSeq", strconv.FormatUint(uint64(o.cseq), 10)+" "+o.method.String())
	for i := 0; i+1 < len(o.headers); i += 2 {
		b = sip.AppendHeader(b, o.headers[i], o.headers[i+1])
	}
	b = sip.AppendHeader(b, "User-Agent", product())
	return sip.AppendBody(b, o.bodyType, o.body)
}

// token is a fresh tag or Call-ID.
func token() string { return strings.ToLower(rand.Text()) }

// refusal is a final response that is no success.
type refusal struct {
	status     int
	reason     string
	warning    string
	min        uint32        // Min-Expires
	retryAfter time.Duration // 0: none
}

func (e *refusal) Error() string {
	s := fmt.Sprintf("refused: %d %s", e.status, e.reason)
	if e.warning != "" {
		s += " (" + e.warning + ")"
	}
	return s
}

// refused reads a response other than 2xx.
func refused(m *sip.Message) *refusal {
	e := &refusal{status: m.Status(), reason: string(m.Reason()), warning: string(m.Header(sip.HdrWarning))}
	if e.reason == "" {
		e.reason = sip.ReasonPhrase(e.status)
	}
	e.min, _, _ = m.Uint(sip.HdrMinExpires)
	if v, ok, err := m.Uint(sip.HdrRetryAfter); ok && err == nil {
		e.retryAfter = time.Duration(v) * time.Second
	}
	return e
}

// withCode gives an error of a client command its exit code.
func withCode(err error) error {
	var r *refusal
	var u *unreachable
	switch {
	case errors.As(err, &r) && r.status == 404:
		return coded(exitNotFound, err)
	case errors.As(err, &u):
		return coded(exitUnreachable, err)
	}
	return err
}
