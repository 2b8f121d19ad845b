package server

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"rollcall/dialog"
)

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
		text, ok := s.readiness()
		if !ok {
			http.Error(w, text, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, text)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics(), promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /api/v1/lists", s.apiLists)
	mux.HandleFunc("GET /api/v1/list", s.apiList)
	mux.HandleFunc("GET /api/v1/views", s.apiViews)
	mux.HandleFunc("GET /api/v1/presentity", s.apiPresentity)
	mux.HandleFunc("GET /api/v1/auth", s.apiAuth)
	mux.HandleFunc("GET /api/v1/subscriptions", s.apiSubscriptions)
	mux.HandleFunc("GET /api/v1/trace", s.apiTrace)
	mux.HandleFunc("GET /api/v1/users", s.apiUsers)
	mux.HandleFunc("PUT /api/v1/user", s.apiPutUser)
	mux.HandleFunc("DELETE /api/v1/user", s.apiDeleteUser)
	if s.set.xcapServer {
		mux.HandleFunc(xcapPath+"/", s.xcap)
	}
	return s.trusted(mux)
}

// readiness says whether requests are served, and how the store does. In
// write-back they are while it is down, until too much waits for it.
func (s *Server) readiness() (text string, ok bool) {
	st := s.rt.StoreState()
	switch {
	case !s.ready.Load():
		return "starting or stopping", false
	case st.Down:
		text = fmt.Sprintf("the store is down since %s, %d writes wait: %v", st.Since.UTC().Format(time.RFC3339), st.Waiting, st.Err)
		ok = s.set.durability == dialog.WriteBack && !st.Full
		if ok {
			text = "ready; " + text
		}
		return text, ok
	case st.Full:
		return fmt.Sprintf("the store is too slow, %d writes wait", st.Waiting), false
	}
	return "ready", true
}

// trusted lets only peers in that are trusted with identities, and this machine
// itself: what is served here tells, and changes, everything.
func (s *Server) trusted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !a.Addr().IsLoopback() && !s.trusts(a.Addr()) {
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
