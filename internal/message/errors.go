package message

import (
	"errors"
	"strings"
)

// What the ledger, and whoever stands before it, may answer. Adapters turn
// these into their protocol's answers, once, at the edge.
var (
	// ErrNotFound: there is no such thing, or it is another tenant's.
	ErrNotFound = errors.New("not found")
	// ErrKeyReused: the idempotency key was used for another request.
	ErrKeyReused = errors.New("idempotency key was used for another request")
	// ErrTooLate: the message was handed over or has ended.
	ErrTooLate = errors.New("too late")
	// ErrDecided: the doubt was decided or resolved already.
	ErrDecided = errors.New("already decided")
	// ErrHeld: the lane, tenant, provider or tag is held already.
	ErrHeld = errors.New("held already")
	// ErrNotHeld: there is nothing to release: it was released, or never held.
	ErrNotHeld = errors.New("not held")
	// ErrUnavailable: no store can take or answer it now; nothing was promised.
	ErrUnavailable = errors.New("unavailable")
)

// FieldError is one thing that is wrong with a request.
type FieldError struct {
	Field   string // a path, as "to[2]"
	Problem string // for people, without the field's name
}

// FieldErrors is all that is wrong with a request.
type FieldErrors []FieldError

func (e FieldErrors) Error() string {
	var b strings.Builder
	for i, f := range e {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(f.Field + ": " + f.Problem)
	}
	return b.String()
}
