package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"rollcall/sip"
)

// traceWrite bounds how long the reader of a trace may take none of it.
const traceWrite = 30 * time.Second

// TraceLine is one line of GET /api/v1/trace: a message, or the end.
type TraceLine struct {
	Time      time.Time `json:"time,omitzero"`
	Direction string    `json:"direction,omitempty"` // in or out
	Transport string    `json:"transport,omitempty"`
	Local     string    `json:"local,omitempty"`
	Remote    string    `json:"remote,omitempty"`
	Bytes     int       `json:"bytes,omitempty"`
	Note      string    `json:"note,omitempty"`    // what became of it, when it was not handled
	Message   string    `json:"message,omitempty"` // the message, or
	Data      []byte    `json:"data,omitempty"`    // when it is not UTF-8, in base64
	Lost      uint64    `json:"lost,omitempty"`    // messages before this line that are missing
	End       string    `json:"end,omitempty"`     // why the trace is over; nothing follows
}

// apiTrace streams what goes over the wire until the time is over or the
// client goes. peer, uri and call_id pick the messages, for is a duration, 10
// minutes if missing, 24 hours at most.
func (s *Server) apiTrace(w http.ResponseWriter, r *http.Request) {
	f, d, err := traceQuery(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	tap, err := s.guard.Trace.Start(f, d)
	switch {
	case errors.Is(err, sip.ErrTraceCount), errors.Is(err, sip.ErrTraceClosed):
		fail(w, http.StatusServiceUnavailable, err.Error())
		return
	case err != nil:
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	defer tap.Stop()
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{}) // that of the server would end the stream
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	rc.Flush()
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for {
		e, err := tap.Next(r.Context())
		line := TraceLine{Lost: e.Lost}
		switch {
		case r.Context().Err() != nil:
			return
		case err != nil:
			line.End, line.Lost = err.Error(), tap.Lost()
		default:
			line.Time, line.Direction, line.Transport = e.Time.UTC(), directions[e.Dir], e.Flow.Proto.String()
			line.Local, line.Remote, line.Bytes, line.Note = e.Flow.Local.String(), e.Flow.Remote.String(), len(e.Raw), e.Note
			if utf8.Valid(e.Raw) {
				line.Message = string(e.Raw)
			} else {
				line.Data = e.Raw
			}
		}
		rc.SetWriteDeadline(time.Now().Add(traceWrite))
		if enc.Encode(&line) != nil || !tap.Waiting() && rc.Flush() != nil || err != nil {
			return
		}
	}
}

func traceQuery(r *http.Request) (f sip.TraceFilter, d time.Duration, err error) {
	if p := r.FormValue("peer"); p != "" {
		if f, err = sip.ParsePeer(p); err != nil {
			return f, 0, errors.New("peer: " + err.Error())
		}
	}
	f.CallID, f.URI = r.FormValue("call_id"), r.FormValue("uri")
	if f.URI != "" {
		if _, err := sip.ParseURI(f.URI); err != nil {
			return f, 0, errors.New("uri: " + err.Error())
		}
	}
	d = sip.DefaultTraceTime
	if v := r.FormValue("for"); v != "" {
		if d, err = time.ParseDuration(v); err != nil {
			return f, 0, errors.New("for: " + strings.TrimPrefix(err.Error(), "time: "))
		}
	}
	return f, d, nil
}
