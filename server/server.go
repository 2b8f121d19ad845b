package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rollcall/b2b"
	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/rls"
	"rollcall/sip"
	"rollcall/sip/auth"
	"rollcall/sip/locate"
	"rollcall/sql"
	"rollcall/xcapclient"
)

// Components of the runtime, by index.
const (
	paComponent = iota
	rlsComponent
	b2bComponent
)

// Server is a configured process.
type Server struct {
	cfg Config
	set *settings
	log *slog.Logger

	limit    sip.LogLimit // of what peers and users of XCAP can cause
	store    *sql.Store
	users    *userSource
	docs     *xcapclient.Client
	stored   *xcapclient.StoredSource
	rules    *ruleCache
	messages *ruleCache
	catalog  *rls.Catalog
	agent    *pa.Agent
	lists    *rls.Server
	gateway  *b2b.Gateway
	network  Network
	resolver *locate.Resolver
	verifier *auth.Verifier
	auths    authStats
	userLog  sip.LogLimit
	guard    *sip.Guard
	sources  []xcapclient.Source // on top of the configured ones
	remote   []*xcapclient.HTTPSource
	xcapVia  http.RoundTripper // nil: as the machine does
	commits  func(dialog.Store) dialog.Store
	random   func(shard uint8) io.Reader
	rt       *dialog.Runtime
	addrs    []string
	web      *http.Server
	open     chan struct{} // closed when messages may be handled
	ready    atomic.Bool
	over     sync.WaitGroup
	cancel   context.CancelFunc
	stopOnce sync.Once
}

// Network carries SIP messages between the server and its peers.
type Network interface {
	sip.Sender
	// Listen binds an address; what arrives there is received from then on.
	Listen(proto sip.Proto, addr string) (netip.AddrPort, error)
	// FlowTo is the flow for a new request to an address.
	FlowTo(proto sip.Proto, remote netip.AddrPort) (sip.Flow, error)
	Close()
}

// Option replaces a part of a server, so that whole ones run in a test.
type Option func(*Server)

// OnNetwork puts the server on another network than the machine's.
func OnNetwork(attach func(sip.Receiver) Network) Option {
	return func(s *Server) {
		n := &guarded{guard: s.guard}
		n.Network = attach(func(m *sip.Message) {
			if s.guard.Received(m, n) {
				s.receive(m)
			}
		})
		s.network = n
	}
}

// guarded is a network without an Endpoint's hooks.
type guarded struct {
	Network
	guard *sip.Guard
}

func (n *guarded) Send(f sip.Flow, b []byte, token uint64) error {
	n.guard.Sent(f, b, nil)
	return n.Network.Send(f, b, token)
}

// Refuse implements sip.Refuser.
func (n *guarded) Refuse(m *sip.Message) { n.Send(sip.ResponseFlow(m), sip.Overloaded(m), 0) }

// WithSource puts a source of documents on top of the configured ones.
func WithSource(src xcapclient.Source) Option {
	return func(s *Server) { s.sources = append(s.sources, src) }
}

// WithTransport carries the requests to XCAP servers.
func WithTransport(via http.RoundTripper) Option {
	return func(s *Server) { s.xcapVia = via }
}

// WithCommits has the runtime commit to what wrap makes of the store.
func WithCommits(wrap func(dialog.Store) dialog.Store) Option {
	return func(s *Server) { s.commits = wrap }
}

// WithRandom makes the names of dialogs repeat, for tests: each shard draws them
// from a reader of its own.
func WithRandom(source func(shard uint8) io.Reader) Option {
	return func(s *Server) { s.random = source }
}

// New opens the store and prepares the parts. Its errors are the operator's to
// mend: configuration, or a store that cannot be opened.
func New(cfg Config, log *slog.Logger, opts ...Option) (*Server, error) {
	set, err := cfg.settings()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, set: set, log: log, open: make(chan struct{})}
	s.guard = &sip.Guard{
		Stats: new(sip.Stats), Trace: new(sip.Trace), Log: log.With("component", "sip"),
		Limit: sip.NewLimiter(sip.LimiterOptions{PerSource: cfg.RatePerSource, Total: cfg.RateTotal, Exempt: set.trust}, time.Now()),
	}
	for _, opt := range opts {
		opt(s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	sync := sql.SyncNormal
	if set.fullSync {
		sync = sql.SyncFull
	}
	if s.store, err = sql.Open(ctx, cfg.Store, sql.Options{Sync: sync}); err != nil {
		return nil, fmt.Errorf("store %s: %w", Mask(cfg.Store), err)
	}
	if s.users, err = openUsers(ctx, cfg.Users, s.store, log.With("component", "users")); err != nil {
		s.store.Close()
		return nil, fmt.Errorf("users: %w", err)
	}
	if err := s.openDocuments(); err != nil {
		s.users.close()
		s.store.Close()
		return nil, err
	}
	s.wire()
	return s, nil
}

func (s *Server) openDocuments() error {
	sources := s.sources
	for _, x := range s.cfg.XCAP {
		switch {
		case x == "store":
			s.stored = xcapclient.Stored(s.store)
			sources = append(sources, s.stored)
		case strings.HasPrefix(x, "http://"), strings.HasPrefix(x, "https://"):
			h := xcapclient.HTTP(x, xcapclient.HTTPOptions{Log: s.log.With("component", "xcap"), Transport: s.xcapVia, Copies: copies{s.store, copyRoot(x)}})
			s.remote = append(s.remote, h)
			sources = append(sources, h)
		default:
			d, err := xcapclient.Dir(x, s.log.With("component", "xcap"))
			if err != nil {
				return fmt.Errorf("xcap %s: %w", x, err)
			}
			sources = append(sources, d)
		}
	}
	s.docs = xcapclient.New(sources...)
	return nil
}

// roots are the XCAP root URIs that mean our own documents.
func (s *Server) roots() []string {
	roots := slices.Clone(s.cfg.XCAPRoot)
	if s.cfg.HTTP != "" {
		roots = append(roots, "http://"+s.cfg.HTTP+xcapPath)
	}
	for _, x := range s.cfg.XCAP {
		if strings.HasPrefix(x, "http") {
			roots = append(roots, x)
		}
	}
	return roots
}

// wire makes the parts and connects them.
func (s *Server) wire() {
	s.rules = newRuleCache(s.docs, presenceRules, s.roots(), s.normalize)
	s.rules.setDefault(s.set.defaultRules)
	s.messages = newMessageRules(s.docs, s.roots(), s.cfg.Domain[0], s.normalize)
	s.catalog = rls.NewCatalog(xcapclient.Plain{Source: s.docs}, rls.CatalogOptions{
		Normalize: s.normalize, Roots: s.roots(), Log: s.log.With("component", "rls"),
		Changed: func(key string) {
			s.rt.Post(dialog.ShardOf(key), func(t *dialog.Turn) {
				t.Component(rlsComponent).(*rls.Shard).ListChanged(t, key)
				if s.catalog.IsService(key) {
					t.Component(paComponent).(*pa.Shard).Released(t, key)
				}
			})
		},
	})
	reg := pa.Events(s.set.packages...)
	s.agent = pa.New(pa.Options{Component: paComponent, Mode: s.set.mode, Rules: s.rules, Bases: s.set.packageAuth, Packages: s.set.packages,
		Messages: s.messages, MessageAllowed: s.set.messageAllowed, Log: s.log.With("component", "pa")})
	s.lists = rls.New(rls.Options{Component: rlsComponent, Catalog: s.catalog, Packages: reg, Open: s.set.mode == pa.Open, Local: s.local, Log: s.log.With("component", "rls")})
	s.gateway = b2b.New(b2b.Options{Component: b2bComponent, Routes: s.set.remote, Local: s.local,
		Self: "sip:rollcall@" + s.cfg.Domain[0], Log: s.log.With("component", "b2b")})
	if s.network == nil {
		serverTLS, clientTLS := s.set.tls.configs()
		s.network = sip.NewEndpoint(sip.EndpointOptions{
			Receive:   s.receive,
			Failed:    func(id sip.ClientID, err error) { s.rt.Failed(id, err) },
			Log:       s.log.With("component", "sip"),
			Guard:     s.guard,
			ServerTLS: serverTLS, ClientTLS: clientTLS, Origins: s.cfg.WSOrigin,
			Exempt: s.trusts,
		})
		s.warnExpiry(s.set.tls, time.Now())
	}
	s.resolver = locate.New(locate.Options{Servers: s.cfg.DNS, Protos: s.set.protos(), Usable: s.usable})
	s.verifier = auth.NewVerifier(auth.Options{Algorithms: s.set.digest, AllowNoQop: true})
	for _, p := range reg {
		if d, ok := s.set.intervals[p.Name]; ok {
			p.MinInterval = d
		}
	}
	pace, ok := s.set.intervals["list"]
	if !ok {
		pace = listInterval
	}
	var store dialog.Store = s.store
	if s.commits != nil {
		store = s.commits(store)
	}
	s.rt = dialog.New(dialog.Options{
		Sender: s.network, Packages: dialog.NewRegistry(reg...), Store: store, Durability: s.set.durability,
		Log:        s.log.With("component", "dialog"),
		Stats:      s.guard.Stats,
		Components: []func(uint8) dialog.Component{s.agent.Shard, s.lists.Shard, s.gateway.Shard},
		Route:      s.route, Key: s.key, Identify: s.identify,
		FlowTo:  s.network.FlowTo,
		Resolve: s.resolve, Unreachable: s.unreachable, StreamFlow: s.streamFlow(), Unsent: s.unsent(), Random: s.random,
		Login: s.logins(), ListPace: pace, ExpiresJitter: s.cfg.ExpiresJitter,
	})
	s.guard.Busy = s.rt.Admit
	s.docs.Watch(s.documentsChanged)
}

// receive takes a message from the network. While the server starts, what
// arrives waits: a refresh must find its dialog.
func (s *Server) receive(m *sip.Message) {
	<-s.open
	s.rt.Receive(m)
}

// local tells whether a host is one of our domains.
func (s *Server) local(host string) bool { return s.set.domains[hostKey(host)] }

// route picks who serves a resource: a list, a local domain, anything else.
func (s *Server) route(resource string) int {
	if s.catalog.IsService(resource) {
		return rlsComponent
	}
	_, host, ok := sip.Plain(resource)
	if !ok {
		u, err := sip.ParseURI(resource)
		if err != nil {
			return b2bComponent
		}
		host = u.Host
	}
	if s.local(host) {
		return paComponent
	}
	return b2bComponent
}

// key is the canonical key of a resource. The port of a local domain means
// nothing: it is how the client was told to reach us.
func (s *Server) key(uri []byte) (string, bool, error) {
	if aor, host, ok := sip.Plain(uri); ok {
		if s.set.domains[string(host)] { // which is hostKey of it
			return string(aor), true, nil
		}
		return string(uri), false, nil
	}
	u, err := sip.ParseURI(string(uri))
	if err != nil {
		return "", false, err
	}
	local := s.local(u.Host)
	if local {
		u.Port = 0
	}
	return u.Key(), local, nil
}

func (s *Server) normalize(uri string) (string, error) {
	k, _, err := s.key([]byte(uri))
	return k, err
}

// reload reads the list services again until that works.
func (s *Server) reload(ctx context.Context) {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if s.catalog.Load(ctx) == nil {
			s.log.Info("list services are readable now")
			return
		}
	}
}

// documentsChanged is called when XCAP documents came, changed or went.
func (s *Server) documentsChanged(selectors []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.catalog.Changed(ctx, selectors); err != nil {
		s.limit.Log(time.Now(), s.log, slog.LevelWarn, "list services not readable; they stay as they were", "err", err)
	}
	s.messages.changed(selectors) // no subscription depends on them
	keys, all := s.rules.changed(selectors)
	if all {
		s.decideAnew()
		return
	}
	for _, key := range keys {
		s.rt.Post(dialog.ShardOf(key), func(t *dialog.Turn) { t.Component(paComponent).(*pa.Shard).RulesChanged(t, key) })
	}
}

// decideAnew has every watcher of every presentity decided for.
func (s *Server) decideAnew() {
	for shard := range dialog.Shards {
		s.rt.Post(uint8(shard), func(t *dialog.Turn) { t.Component(paComponent).(*pa.Shard).AllRulesChanged(t) })
	}
}

// cleanMeta remembers in the store that the last stop was in order: "yes", then
// the dialogs that want a NOTIFY all the same.
const cleanMeta = "clean_stop"

// Start binds the listeners, recovers what is stored and begins to serve.
func (s *Server) Start(ctx context.Context) (err error) {
	run, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	defer func() {
		if err != nil {
			s.abort()
		}
	}()
	s.rt.Start()
	s.restoreDocuments(ctx)
	if err := s.catalog.Load(ctx); err != nil {
		s.log.Warn("list services not readable; trying again", "err", err)
		s.over.Go(func() { s.reload(run) })
	}
	s.over.Go(func() {
		if err := s.docs.Run(run); err != nil {
			s.log.Error("documents are not watched any more", "err", err)
		}
	})
	s.over.Go(func() { s.users.run(run) })
	restored, err := s.recover(ctx)
	if err != nil {
		return fmt.Errorf("recovery: %w", err)
	}
	for _, l := range s.set.listen {
		addr, err := s.network.Listen(l.proto, l.addr)
		if err != nil {
			return fmt.Errorf("listen %v:%s: %w", l.proto, l.addr, err)
		}
		s.addrs = append(s.addrs, strings.ToLower(l.proto.String())+"="+addr.String())
	}
	if s.cfg.HTTP != "" {
		if err := s.serveHTTP(); err != nil {
			return err
		}
	}
	if err := restored(); err != nil {
		return fmt.Errorf("recovery: %w", err)
	}
	close(s.open)
	s.ready.Store(true)
	return nil
}

// recover reads publications, then subscriptions, ours and those at other
// servers. The subscriptions are
// brought back by the function it returns, once there is something to send
// from. Until then nothing stored is changed, so that a start which fails is
// none.
func (s *Server) recover(ctx context.Context) (restored func() error, err error) {
	if s.set.durability == dialog.Memory {
		return func() error { return nil }, nil
	}
	stop, err := s.store.Meta(ctx, cleanMeta)
	if err != nil && !errors.Is(err, sql.ErrNotFound) {
		return nil, err
	}
	unsettled := strings.Fields(stop)
	clean := len(unsettled) > 0 && unsettled[0] == "yes"
	tell := make(map[string]bool, len(unsettled))
	for _, id := range unsettled {
		tell[id] = true
	}
	pubs := 0
	err = s.store.Publications(ctx, func(row pa.PublicationRow) error {
		pubs++
		s.rt.Post(dialog.ShardOf(row.Resource), func(t *dialog.Turn) {
			if err := t.Component(paComponent).(*pa.Shard).Restore(t, row); err != nil {
				s.log.Error("stored publication not usable", "presentity", row.Resource, "err", err)
			}
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	var remotes []dialog.RemoteRow
	err = s.store.Remotes(ctx, func(row dialog.RemoteRow) error {
		remotes = append(remotes, row)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(remotes, func(a, b dialog.RemoteRow) int { return cmp.Compare(a.ExpiresMS, b.ExpiresMS) })
	return func() error {
		if err := s.store.SetMeta(ctx, cleanMeta, "no"); err != nil {
			return err
		}
		for _, row := range remotes { // before those who want them
			if err := s.rt.RestoreRemote(b2bComponent, row); err != nil {
				s.log.Error("stored remote subscription not usable", "err", err)
			}
		}
		subs, rec := 0, s.rt.Recover(s.set.spread)
		err := s.store.Subscriptions(ctx, func(row dialog.SubscriptionRow) error {
			subs++
			if row.List {
				s.catalog.Expect(row.Resource)
			}
			if err := rec.Add(row, !clean || tell[row.ID]); err != nil {
				s.log.Error("stored subscription not usable", "err", err)
			}
			return nil
		})
		rec.Done()
		if err == nil {
			s.log.Info("recovered", "publications", pubs, "subscriptions", subs, "remote", len(remotes), "clean", clean)
		}
		return err
	}, nil
}

// Addrs are the bound listeners as KIND=ADDRESS.
func (s *Server) Addrs() []string { return s.addrs }

// Stop ends the server in order: not ready, no new requests, drain, flush,
// close. It is idempotent.
func (s *Server) Stop(ctx context.Context) error {
	var err error
	s.stopOnce.Do(func() {
		s.ready.Store(false)
		s.guard.Trace.Close() // else their requests would hold up Shutdown
		if s.web != nil {
			s.web.Shutdown(ctx)
		}
		err = s.rt.Stop(ctx)
		if err == nil && s.set.durability != dialog.Memory {
			err = s.store.SetMeta(ctx, cleanMeta, strings.Join(append([]string{"yes"}, s.rt.Unsettled()...), " "))
		}
		s.cancel()
		s.network.Close()
		s.resolver.Close()
		s.over.Wait()
		err = errors.Join(err, s.users.close(), s.store.Close())
	})
	return err
}

// abort takes back a start that failed.
func (s *Server) abort() {
	s.stopOnce.Do(func() {
		s.cancel()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.rt.Stop(ctx)
		close(s.open)
		s.guard.Trace.Close()
		if s.web != nil {
			s.web.Close()
		}
		s.network.Close()
		s.resolver.Close()
		s.over.Wait()
		s.users.close()
		s.store.Close()
	})
}

// Tables is how many entries each table of the running server holds; all are 0
// when nothing is subscribed, published or under way.
func (s *Server) Tables() map[string]int { return s.rt.Tables() }
