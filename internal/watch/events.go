package watch

import (
	"context"
	"sync"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
)

// Events turns what other parts notice now and then, such as an accept that
// could not be numbered, into conditions that hold for a while. It is the hook
// for parts that have no state to be looked at. Its methods are safe for
// concurrent use, and cheap.
type Events struct {
	kinds []incident.Kind
	hold  time.Duration
	now   func() time.Time

	mu   sync.Mutex
	seen map[string]*noted
}

type noted struct {
	incident.Condition
	first, last time.Time
}

const mostNoted = 50

// NewEvents makes the hook for kinds. Each condition holds for hold after it was
// last noticed.
func NewEvents(hold time.Duration, now func() time.Time, kinds ...incident.Kind) *Events {
	return &Events{kinds: kinds, hold: hold, now: now, seen: make(map[string]*noted)}
}

// Notice says that c was the case just now. Beyond 50 causes it is left out.
func (e *Events) Notice(c incident.Condition) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	n := e.seen[c.Cause()]
	if n == nil {
		if len(e.seen) >= mostNoted {
			return
		}
		n = &noted{first: now}
		e.seen[c.Cause()] = n
	}
	count := n.Count
	n.Condition, n.last = c, now
	n.Count = count + max(1, c.Count)
}

// Check is what New takes.
func (e *Events) Check() Check {
	return Check{Kinds: e.kinds, Look: func(context.Context) (found []incident.Condition, _ error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		now := e.now()
		for cause, n := range e.seen {
			if now.Sub(n.last) >= e.hold {
				delete(e.seen, cause)
				continue
			}
			c := n.Condition
			c.Oldest = now.Sub(n.first)
			found = append(found, c)
		}
		return found, nil
	}}
}
