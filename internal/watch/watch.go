// Package watch looks, every two seconds, at what the process can see of its
// stores, lanes, providers and workers, and tells the incidents' engine what is
// wrong. Each check runs by itself, so that one that hangs hides nothing but
// what it looks at; while a check fails, what was known of its kinds stays.
package watch

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
)

const (
	// tellAfter is how many looks in a row must fail to be told: one does while
	// a store starts.
	tellAfter = 2
	lookEvery = 2 * time.Second
	tellEvery = 500 * time.Millisecond
)

// Check is one thing that is looked at. It is called again and again, by one
// goroutine, with a deadline. An error means that it could not look.
type Check struct {
	Kinds   []incident.Kind // all that Look may tell of; two checks share none
	Look    func(ctx context.Context) ([]incident.Condition, error)
	Timeout time.Duration // default 4 s
	Costs   bool          // a look that takes long is made less often, so that it doesn't become the load
}

// Watch runs checks. It is made by New.
type Watch struct {
	engine *incident.Engine
	log    *slog.Logger
	checks []*check
}

type check struct {
	Check
	mu    sync.Mutex
	found []incident.Condition
	blind bool
}

// New makes a watch of the checks, which tells log when one can't look.
func New(e *incident.Engine, log *slog.Logger, checks ...Check) *Watch {
	w := &Watch{engine: e, log: log}
	for _, c := range checks {
		if c.Timeout <= 0 {
			c.Timeout = 4 * time.Second
		}
		w.checks = append(w.checks, &check{Check: c, blind: true})
	}
	return w
}

// Run watches until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, c := range w.checks {
		wg.Go(func() { c.run(ctx, w.log) })
	}
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			w.tell()
		case <-ctx.Done():
			return
		}
	}
}

// tell gives the engine what the checks found last.
func (w *Watch) tell() {
	var all []incident.Condition
	blind := make(map[incident.Kind]bool)
	for _, c := range w.checks {
		c.mu.Lock()
		all = append(all, c.found...)
		for _, k := range c.Kinds {
			blind[k] = c.blind
		}
		c.mu.Unlock()
	}
	w.engine.Observe(all, blind)
}

// run looks every two seconds.
func (c *check) run(ctx context.Context, log *slog.Logger) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failures := 0 // in a row
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		lctx, cancel := context.WithTimeout(ctx, c.Timeout)
		found, err := c.Look(lctx)
		cancel()
		if ctx.Err() != nil {
			return
		}
		switch {
		case err != nil:
			if failures++; failures == tellAfter {
				log.Warn("the watch can't look; what it knows of these stays", "kinds", c.Kinds, "error", err)
			}
		case failures >= tellAfter:
			log.Info("the watch can look again", "kinds", c.Kinds)
			failures = 0
		default:
			failures = 0
		}
		c.mu.Lock()
		if c.blind = err != nil; err == nil {
			c.found = found
		} else {
			c.found = nil
		}
		c.mu.Unlock()
		took := time.Since(began)
		pause := max(lookEvery-took, tellEvery)
		if c.Costs {
			pause = max(pause, min(9*took, 3*lookEvery))
		}
		timer.Reset(pause)
	}
}
