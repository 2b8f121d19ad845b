package dialog

import (
	"fmt"
	"time"
)

// Error is a failure a peer must see. It is made where the cause is known and
// becomes a response in one place. Reason is the reason phrase: short, and
// safe to show to anybody.
type Error struct {
	Status     int
	Reason     string // "" for the status code's own phrase
	RetryAfter time.Duration
	Headers    []string // name, value, name, value, ...
	Err        error    // cause, for the log only
	Quiet      bool     // nothing is wrong: a first challenge, for instance; not logged
}

// Error implements error.
func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%d %s: %v", e.Status, e.Reason, e.Err)
	}
	return fmt.Sprintf("%d %s", e.Status, e.Reason)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Refuse makes an Error.
func Refuse(status int, reason string, headers ...string) *Error {
	return &Error{Status: status, Reason: reason, Headers: headers}
}
