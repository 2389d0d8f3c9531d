package smtp

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	firstPause = 250 * time.Millisecond
	maxPause   = 30 * time.Second
)

// outage is what all of a provider's Reserves know about a server that can't be
// reached: after a failed dial nobody dials for a while, then one tries for all.
type outage struct {
	mu       sync.Mutex
	failures int
	until    time.Time
	err      error
	trying   bool // only meant while failures > 0
}

// enter says whether a dial may begin. If so, leave or abandon must follow;
// else it says until when not, and the error to give.
func (o *outage) enter(now time.Time) (until time.Time, ok bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failures == 0 {
		return time.Time{}, true, nil
	}
	if o.trying || now.Before(o.until) {
		return o.until, false, o.err
	}
	o.trying = true
	return time.Time{}, true, nil
}

// leave records a dial's result, and says how the outage changed by it.
func (o *outage) leave(now time.Time, err error) (until time.Time, began, ended bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.trying = false
	if err == nil {
		ended = o.failures > 0
		o.failures, o.err = 0, nil
		return time.Time{}, false, ended
	}
	o.err = err
	if o.failures > 0 && now.Before(o.until) {
		return o.until, false, false // one of many dials that began together
	}
	o.failures++
	// Half of the pause is random: the workers of many hosts must not return as one.
	pause := min(firstPause<<min(o.failures-1, 20), maxPause)
	pause = pause/2 + rand.N(pause/2+1)
	o.until = now.Add(pause)
	return o.until, o.failures == 1, false
}

// abandon ends a dial that says nothing about the server.
func (o *outage) abandon() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.trying = false
}
