package server

import (
	"errors"
	"net/http"

	"rollcall/dialog"
	"rollcall/pa"
	"rollcall/rls"
	"rollcall/rls/list"
)

// Name is a display name in the admin API.
type Name struct {
	Lang string `json:"lang,omitempty"`
	Text string `json:"text"`
}

// List is an expanded list in the admin API.
type List struct {
	URI      string    `json:"uri"`
	Names    []Name    `json:"names,omitempty"`
	Packages []string  `json:"packages"`
	Document string    `json:"document"`
	ETag     string    `json:"etag"`
	Members  int       `json:"members"`
	Error    string    `json:"error,omitempty"`
	Entries  []Entry   `json:"entries"`
	Problems []Problem `json:"problems"`
}

// Entry is a member of a List.
type Entry struct {
	URI    string `json:"uri"`
	Key    string `json:"key"`
	Names  []Name `json:"names,omitempty"`
	Source string `json:"source"`
	Route  string `json:"route"` // pa, b2b or list
	List   *List  `json:"list,omitempty"`
}

// Problem is something left out of a List.
type Problem struct {
	Source string `json:"source"`
	URI    string `json:"uri,omitempty"`
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
}

// Lists, Views and Subscriptions are answers of the admin API.
type (
	Lists struct {
		Lists []ListName `json:"lists"`
	}
	ListName struct {
		URI string `json:"uri"`
	}
	Views struct {
		Views []rls.ViewInfo `json:"views"`
	}
	Subscriptions struct {
		Subscriptions []dialog.SubscriptionInfo `json:"subscriptions"`
	}
	Presentity = pa.Info
)

func (s *Server) apiLists(w http.ResponseWriter, _ *http.Request) {
	out := Lists{Lists: []ListName{}}
	for _, k := range s.catalog.Services() {
		out.Lists = append(out.Lists, ListName{k})
	}
	reply(w, http.StatusOK, out)
}

func (s *Server) tree(t *list.Tree) *List {
	out := &List{URI: t.URI, Names: apiNames(t.Names), Packages: t.Packages, Document: t.Document, ETag: t.ETag, Members: t.Members,
		Entries: []Entry{}, Problems: []Problem{}}
	if t.Err != nil {
		out.Error = t.Err.Error()
	}
	for i := range t.Nodes {
		n := &t.Nodes[i]
		e := Entry{URI: n.URI, Key: n.Key, Names: apiNames(n.Names), Source: n.Source, Route: [...]string{"pa", "list", "b2b"}[s.route(n.Key)]}
		if n.List != nil {
			e.List = s.tree(n.List)
		}
		out.Entries = append(out.Entries, e)
	}
	for _, p := range t.Problems {
		out.Problems = append(out.Problems, Problem(p))
	}
	return out
}

func apiNames(in []list.Name) []Name {
	var out []Name
	for _, n := range in {
		out = append(out, Name(n))
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
	out := Views{Views: []rls.ViewInfo{}}
	s.rt.Do(key, func(t *dialog.Turn) {
		out.Views = append(out.Views, t.Component(rlsComponent).(*rls.Shard).Describe(key)...)
	})
	reply(w, http.StatusOK, out)
}

func (s *Server) apiPresentity(w http.ResponseWriter, r *http.Request) {
	key, ok := s.resource(w, r)
	if !ok {
		return
	}
	var info Presentity
	found := false
	s.rt.Do(key, func(t *dialog.Turn) { info, found = t.Component(paComponent).(*pa.Shard).Describe(key) })
	if !found {
		fail(w, http.StatusNotFound, "nobody publishes or watches "+key)
		return
	}
	reply(w, http.StatusOK, info)
}

func (s *Server) apiSubscriptions(w http.ResponseWriter, _ *http.Request) {
	out := Subscriptions{Subscriptions: []dialog.SubscriptionInfo{}}
	s.rt.Each(func(t *dialog.Turn) { out.Subscriptions = append(out.Subscriptions, t.Subscriptions()...) })
	reply(w, http.StatusOK, out)
}
