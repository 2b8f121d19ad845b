package server

import (
	"context"
	"net/http"

	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/pa/policy"
)

// Authorization is an answer of the admin API: what a pair may, and why.
type (
	Authorization = pa.Explanation
	RuleReport    = policy.RuleReport
)

// apiAuth decides for a pair as a SUBSCRIBE or a MESSAGE would be: GET
// /api/v1/auth?watcher=URI&presentity=URI[&package=NAME | &method=MESSAGE]. More
// than one watcher are identities of the same one. It is what a proxy asks that
// has to let a request through or not, so it answers for pairs which never
// subscribed; rules that are not readable are 503, which is no permission.
func (s *Server) apiAuth(w http.ResponseWriter, r *http.Request) {
	q := pa.Question{Package: "presence"}
	watchers := r.URL.Query()["watcher"]
	if len(watchers) == 0 {
		fail(w, http.StatusBadRequest, "watcher: missing; who is not authenticated is sip:anonymous@anonymous.invalid")
		return
	}
	if len(watchers) > maxAliases {
		fail(w, http.StatusBadRequest, "watcher: too many identities")
		return
	}
	for i, uri := range watchers {
		key, err := s.normalize(uri)
		switch {
		case err != nil:
			fail(w, http.StatusBadRequest, "watcher: "+err.Error())
			return
		case i == 0:
			q.Watcher = key
		default:
			q.Aliases = append(q.Aliases, key)
		}
	}
	key, local, err := s.key([]byte(r.FormValue("presentity")))
	switch {
	case err != nil:
		fail(w, http.StatusBadRequest, "presentity: "+err.Error())
		return
	case !local:
		fail(w, http.StatusNotFound, key+" is of no domain of ours")
		return
	case s.catalog.IsService(key):
		fail(w, http.StatusNotFound, key+" is a list: it is for its owner, one for all is for every watcher who is known")
		return
	}
	q.Resource = key
	pkg := r.FormValue("package")
	switch method := r.FormValue("method"); {
	case method == "MESSAGE" && pkg == "":
		q.Message, q.Package = true, ""
	case method == "MESSAGE":
		fail(w, http.StatusBadRequest, "package: a MESSAGE has none")
		return
	case method != "" && method != "SUBSCRIBE":
		fail(w, http.StatusBadRequest, "method: neither SUBSCRIBE nor MESSAGE")
		return
	case pkg == "":
	case dialog.NewRegistry(pa.Events(s.set.packages...)...).Find(pkg) == nil:
		fail(w, http.StatusBadRequest, "package: there is none of this name")
		return
	default:
		q.Package = pkg
	}
	ctx, cancel := context.WithTimeout(r.Context(), rulesLimit)
	defer cancel()
	if q.Sets, err = s.rulesFor(ctx, &q); err != nil {
		fail(w, http.StatusServiceUnavailable, "rules not readable: "+err.Error())
		return
	}
	s.rt.Do(key, func(t *dialog.Turn) {
		q.Now, q.Sphere = t.Now, t.Component(paComponent).(*pa.Shard).Sphere(key)
	})
	reply(w, http.StatusOK, s.agent.Explain(q))
}

// maxAliases bounds the identities of one watcher.
const maxAliases = 16

// rulesFor are the rules that a question is decided by.
func (s *Server) rulesFor(ctx context.Context, q *pa.Question) ([]*policy.Ruleset, error) {
	from := s.rules
	switch {
	case q.Message:
		from = s.messages
	case s.set.mode == pa.Open:
		return nil, nil
	}
	if sets, ok := from.Cached(q.Resource); ok {
		return sets, nil
	}
	return from.Fetch(ctx, q.Resource)
}
