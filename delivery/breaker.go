package delivery

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// A provider is broken when of at least breakEnough hand-overs in breakWindow
	// three quarters failed by its own fault, or so many in a row for breakAfter.
	// One that takes a lot and breaks down for some seconds is its pace's to slow.
	breakEnough = 20
	breakWindow = 5 * time.Minute
	breakAfter  = 5 * time.Second
	breakBucket = 10 * time.Second // by which the window moves
)

const (
	// restShut is from what pause on that a provider asks for, it counts as one
	// that can't be used; shorter ones only slow its pace.
	restShut = 5 * time.Second
	// restAfter is how many in a row must fail for that: one answer among many that
	// were good may be about one message.
	restAfter = 3
	// restMost is how long its wish holds for everybody: then one asks again.
	restMost = 5 * time.Minute
)

// breaker judges a provider by how its hand-overs end. It closes the gate, and
// is renewed when that opens: the gate alone says who waits and who tries. For
// gobreaker's own half-open state lets few in and waits for their answers, which
// may take a reply limit; and its pauses don't grow.
type breaker = gobreaker.TwoStepCircuitBreaker[struct{}]

func newBreaker() *breaker {
	var row time.Time // when the failures in a row began
	return gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Interval: breakWindow, BucketPeriod: breakBucket, Timeout: math.MaxInt64, // it ends with the breaker
		ReadyToTrip: func(c gobreaker.Counts) bool {
			now := time.Now()
			if c.ConsecutiveFailures == 1 {
				row = now
			}
			ended := c.TotalSuccesses + c.TotalFailures
			return ended >= breakEnough && 4*c.TotalFailures >= 3*ended || c.ConsecutiveFailures >= breakEnough && now.Sub(row) >= breakAfter
		},
	})
}

var errFault = errors.New("by the provider's fault")

// judged counts one hand-over, and says whether the provider is broken by it. Both
// steps are made at its end: gobreaker forgets what took longer than its window.
func judged(b *breaker, fault bool) (broken bool) {
	done, err := b.Allow()
	if err != nil { // broken by others, or long ago
		return false
	}
	if !fault {
		done(nil)
		return false
	}
	done(errFault)
	return b.State() != gobreaker.StateClosed
}

// learn lets the gate know how a hand-over to a recipient of domain ended after
// so long: for its breaker, its pace, and the pause that the provider asks for.
// Trouble that is the domain's own counts for neither; good says that there was
// none at all.
func (l *lease) learn(r message.Result, domain string, took time.Duration) (good, own bool) {
	g := l.gate
	g.ended[r.Outcome].Add(1)
	taken := r.Outcome == message.Sent || r.Outcome == message.Rejected
	if r.Unasked || r.Outcome == message.Returned && !r.Fault {
		return false, false
	}
	l.judged = true
	good = taken && took <= slowAfter
	if domain != "" && !r.Fault {
		own = g.ownTrouble(domain, good) && l.breaker != nil
	}
	fault := !taken && (r.Fault || r.Outcome == message.Unknown && !own)
	code := cmp.Or(r.Code, r.Outcome.String())
	switch {
	case l.breaker == nil && !fault:
		g.mend()
	case l.breaker != nil && judged(l.breaker, fault):
		g.close(fmt.Errorf("most hand-overs fail by its own fault, the last with %q", code))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if fault && r.RetryAfter > 0 && (r.RetryAfter < restShut || l.row() >= restAfter) {
		g.rest(now, min(r.RetryAfter, restMost), fmt.Errorf("it asks to wait for %s, with %q", r.RetryAfter, code))
	}
	if r.Outcome == message.Returned || own && !taken || !g.rate.ended(now, taken) {
		return good, own
	}
	if g.rate.rate == 0 {
		g.log.Info("provider takes everything again; its pace is free")
	} else {
		g.log.Warn("provider takes less than it gets; its pace follows", "rate", g.rate.rate)
	}
	g.call()
	return good, own
}

// row is how many hand-overs in a row have failed: enough, for one that tries.
func (l *lease) row() uint32 {
	if l.breaker == nil || l.breaker.State() != gobreaker.StateClosed {
		return restAfter
	}
	return l.breaker.Counts().ConsecutiveFailures
}

// ownTrouble notes an answer, and says whether it is bad by the domain's own
// trouble: others do well.
func (g *gate) ownTrouble(domain string, good bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	g.recent.note(domain, good, now)
	return !good && g.recent.others(domain, now)
}
