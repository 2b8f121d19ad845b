package server

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/rls"
	"rollcall/rls/list"
	"rollcall/sql"
	"rollcall/xcapclient"
)

const xcapPath = "/xcap-root"

// maxDocument bounds an XCAP document in bytes.
const maxDocument = 4 << 20

// serveHTTP binds the admin listener.
func (s *Server) serveHTTP() error {
	l, err := net.Listen("tcp", s.cfg.HTTP)
	if err != nil {
		return err
	}
	s.web = &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute}
	s.addrs = append(s.addrs, "http="+l.Addr().String())
	s.over.Go(func() { s.web.Serve(l) })
	return nil
}

// Handler is the admin API: health, metrics, what the command line asks and,
// when enabled, XCAP.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case !s.ready.Load():
			http.Error(w, "starting or stopping", http.StatusServiceUnavailable)
		case !s.rt.Healthy():
			http.Error(w, "the store refuses writes", http.StatusServiceUnavailable)
		default:
			io.WriteString(w, "ready\n")
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics(), promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /api/v1/lists", s.apiLists)
	mux.HandleFunc("GET /api/v1/list", s.apiList)
	mux.HandleFunc("GET /api/v1/views", s.apiViews)
	mux.HandleFunc("GET /api/v1/presentity", s.apiPresentity)
	mux.HandleFunc("GET /api/v1/subscriptions", s.apiSubscriptions)
	if s.set.xcapServer {
		mux.HandleFunc(xcapPath+"/", s.xcap)
	}
	return s.trusted(mux)
}

// trusted lets only peers in that are trusted with identities, and this machine
// itself: what is served here tells, and changes, everything.
func (s *Server) trusted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !a.Addr().IsLoopback() && !slices.ContainsFunc(s.set.trust, func(p netip.Prefix) bool { return p.Contains(a.Addr().Unmap()) }) {
			http.Error(w, "peer not trusted", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.Encode(v)
}

func fail(w http.ResponseWriter, status int, text string) {
	reply(w, status, map[string]string{"error": text})
}

// resource reads the uri parameter.
func (s *Server) resource(w http.ResponseWriter, r *http.Request) (string, bool) {
	key, err := s.normalize(r.FormValue("uri"))
	if err != nil {
		fail(w, http.StatusBadRequest, "uri: "+err.Error())
		return "", false
	}
	return key, true
}

func (s *Server) apiLists(w http.ResponseWriter, _ *http.Request) {
	type row struct {
		URI string `json:"uri"`
	}
	out := []row{}
	for _, k := range s.catalog.Services() {
		out = append(out, row{k})
	}
	reply(w, http.StatusOK, map[string]any{"lists": out})
}

type jsonName struct {
	Lang string `json:"lang,omitempty"`
	Text string `json:"text"`
}

type jsonTree struct {
	URI      string        `json:"uri"`
	Names    []jsonName    `json:"names,omitempty"`
	Packages []string      `json:"packages"`
	Document string        `json:"document"`
	ETag     string        `json:"etag"`
	Members  int           `json:"members"`
	Error    string        `json:"error,omitempty"`
	Entries  []jsonEntry   `json:"entries"`
	Problems []jsonProblem `json:"problems"`
}

type jsonEntry struct {
	URI    string     `json:"uri"`
	Key    string     `json:"key"`
	Names  []jsonName `json:"names,omitempty"`
	Source string     `json:"source"`
	Route  string     `json:"route"`
	List   *jsonTree  `json:"list,omitempty"`
}

type jsonProblem struct {
	Source string `json:"source"`
	URI    string `json:"uri,omitempty"`
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
}

func (s *Server) tree(t *list.Tree) *jsonTree {
	out := &jsonTree{URI: t.URI, Names: jsonNames(t.Names), Packages: t.Packages, Document: t.Document, ETag: t.ETag, Members: t.Members,
		Entries: []jsonEntry{}, Problems: []jsonProblem{}}
	if t.Err != nil {
		out.Error = t.Err.Error()
	}
	for i := range t.Nodes {
		n := &t.Nodes[i]
		e := jsonEntry{URI: n.URI, Key: n.Key, Names: jsonNames(n.Names), Source: n.Source, Route: [...]string{"pa", "list", "b2b"}[s.route(n.Key)]}
		if n.List != nil {
			e.List = s.tree(n.List)
		}
		out.Entries = append(out.Entries, e)
	}
	for _, p := range t.Problems {
		out.Problems = append(out.Problems, jsonProblem(p))
	}
	return out
}

func jsonNames(in []list.Name) []jsonName {
	var out []jsonName
	for _, n := range in {
		out = append(out, jsonName(n))
	}
	return out
}

func (s *Server) apiList(w http.ResponseWriter, r *http.Request) {
	key, ok := s.resource(w, r)
	if !ok {
		return
	}
	t, err := s.catalog.Tree(r.Context(), key)
	switch {
	case errors.Is(err, list.ErrNotService):
		fail(w, http.StatusNotFound, "no such list: "+key)
	case err != nil:
		fail(w, http.StatusBadGateway, err.Error())
	default:
		reply(w, http.StatusOK, s.tree(t))
	}
}

func (s *Server) apiViews(w http.ResponseWriter, r *http.Request) {
	key, ok := s.resource(w, r)
	if !ok {
		return
	}
	out := []rls.ViewInfo{}
	s.rt.Do(key, func(t *dialog.Turn) { out = append(out, t.Component(rlsComponent).(*rls.Shard).Describe(key)...) })
	reply(w, http.StatusOK, map[string]any{"views": out})
}

func (s *Server) apiPresentity(w http.ResponseWriter, r *http.Request) {
	key, ok := s.resource(w, r)
	if !ok {
		return
	}
	var info pa.Info
	found := false
	s.rt.Do(key, func(t *dialog.Turn) { info, found = t.Component(paComponent).(*pa.Shard).Describe(key) })
	if !found {
		fail(w, http.StatusNotFound, "nobody publishes or watches "+key)
		return
	}
	reply(w, http.StatusOK, info)
}

func (s *Server) apiSubscriptions(w http.ResponseWriter, _ *http.Request) {
	out := []dialog.SubscriptionInfo{}
	s.rt.Each(func(t *dialog.Turn) { out = append(out, t.Subscriptions()...) })
	reply(w, http.StatusOK, map[string]any{"subscriptions": out})
}

// xcap serves whole documents out of the store (RFC 4825 sections 7 and 8).
func (s *Server) xcap(w http.ResponseWriter, r *http.Request) {
	sel := strings.TrimPrefix(r.URL.Path, xcapPath+"/")
	if strings.Contains(sel, "/~~") {
		http.Error(w, "only whole documents can be addressed here", http.StatusNotImplemented)
		return
	}
	part := strings.Split(sel, "/")
	known := len(part) == 4 && part[1] == "users" || len(part) == 3 && part[1] == "global"
	if !known || slices.Contains(part, "") || slices.Contains(part, "..") || !slices.Contains(documentAUIDs, part[0]) {
		http.NotFound(w, r)
		return
	}
	var pre sql.Precondition
	if m := r.Header.Get("If-Match"); m != "" {
		pre.Match = strings.Trim(m, `"`)
	}
	pre.Absent = r.Header.Get("If-None-Match") == "*"
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		d, err := s.store.Document(r.Context(), sel)
		if err != nil {
			s.xcapFault(w, err)
			return
		}
		w.Header().Set("ETag", `"`+d.ETag+`"`)
		if m := r.Header.Get("If-None-Match"); m != "" && strings.Trim(m, `"`) == d.ETag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("Content-Type", d.ContentType)
		w.Write(d.Body)
	case http.MethodPut:
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxDocument))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		if why := xcapclient.WellFormed(body); why != nil {
			w.Header().Set("Content-Type", "application/xcap-error+xml")
			w.WriteHeader(http.StatusConflict)
			io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+`<xcap-error xmlns="urn:ietf:params:xml:ns:xcap-error"><not-well-formed/></xcap-error>`)
			return
		}
		etag := xcapclient.ContentTag(body)
		created, err := s.store.PutDocument(r.Context(), sql.Document{Selector: sel, ETag: etag, Body: body,
			ContentType: r.Header.Get("Content-Type"), UpdatedMS: time.Now().UnixMilli()}, pre)
		if err != nil {
			s.xcapFault(w, err)
			return
		}
		s.stored.Changed(sel)
		w.Header().Set("ETag", `"`+etag+`"`)
		if created {
			w.WriteHeader(http.StatusCreated)
		}
	case http.MethodDelete:
		if err := s.store.DeleteDocument(r.Context(), sel, pre); err != nil {
			s.xcapFault(w, err)
			return
		}
		s.stored.Changed(sel)
	default:
		w.Header().Set("Allow", "GET, HEAD, PUT, DELETE")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	}
}

// documentAUIDs are the application usages served (interface: directory of
// documents).
var documentAUIDs = []string{"resource-lists", "rls-services", "pres-rules", "org.openmobilealliance.pres-rules", "im-rules", "pidf-manipulation"}

func (s *Server) xcapFault(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, sql.ErrNotFound):
		http.Error(w, "no such document", http.StatusNotFound)
	case errors.Is(err, sql.ErrConflict):
		http.Error(w, "the document is another version", http.StatusPreconditionFailed)
	default:
		s.log.Error("XCAP request failed", "err", err)
		http.Error(w, "the store does not answer", http.StatusInternalServerError)
	}
}
