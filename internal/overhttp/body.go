package overhttp

import (
	"errors"
	"io"
	"sync/atomic"
	"time"
)

var (
	errSealed = errors.New("request body was sealed")
	errStale  = errors.New("too long after the last check")
)

// body is a request's body that knows whether anybody has read from it. A
// transport may go on in a goroutine of its own after RoundTrip has returned,
// so seal decides between it and us.
type body struct {
	state atomic.Int32
	rest  []byte // of the reading transport alone
	since time.Time
	now   func() time.Time
}

const (
	bodyFresh int32 = iota
	bodyRead        // its bytes may be anywhere
	bodySealed
)

// newBody is a body whose first read must come within handOver after since.
func newBody(b []byte, since time.Time, now func() time.Time) *body {
	return &body{rest: b, since: since, now: now}
}

func (b *body) Read(p []byte) (int, error) {
	if b.state.Load() == bodyFresh {
		if passed(b.since, b.now()) > handOver {
			b.seal()
			return 0, errStale
		}
		b.state.CompareAndSwap(bodyFresh, bodyRead)
	}
	if b.state.Load() == bodySealed {
		return 0, errSealed
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	if len(b.rest) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// Close does nothing: transports close bodies that they didn't read, too.
func (b *body) Close() error { return nil }

// seal says whether no byte was ever read, and sees to it that none will be.
func (b *body) seal() bool {
	return b.state.CompareAndSwap(bodyFresh, bodySealed) || b.state.Load() == bodySealed
}

// passed is the time from one to the other, by whichever of the monotonic and
// the wall clock says more: the one stands still while the machine sleeps, the
// other can be set back.
func passed(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)))
}
