package server

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"rollcall/sql"
	"rollcall/xcapclient"
)

const xcapPath = "/xcap-root"

// maxDocument bounds an XCAP document in bytes.
const maxDocument = 4 << 20

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
		s.limit.Log(time.Now(), s.log, slog.LevelError, "XCAP request failed", "err", err)
		http.Error(w, "the store does not answer", http.StatusInternalServerError)
	}
}
