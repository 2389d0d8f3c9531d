package credential

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// fetchTimeout ends one try to get a generation.
	fetchTimeout = 10 * time.Second
	// retryMin and retryMax bound the pause after a failed try; it doubles.
	retryMin = time.Second
	retryMax = 30 * time.Second
)

// loop refreshes when it is due, also if nobody uses the credential.
func (c *Credential) loop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-c.life.Done():
			c.keep()
			return
		case <-timer.C:
		case <-c.wake:
		}
		c.keep()
		c.mu.Lock()
		now := c.cfg.Now()
		wait := time.Duration(-1)
		if at := c.nextFetch(); !at.IsZero() {
			if wait = at.Sub(now); wait <= 0 {
				_, _ = c.begin(now) // its end wakes the loop
				wait = -1
			}
		}
		c.mu.Unlock()
		if wait >= 0 {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
	}
}

// nextFetch is when the next fetch is to begin; zero means at nobody's wish. c.mu
// is held.
func (c *Credential) nextFetch() time.Time {
	if c.due.IsZero() || c.fetch != nil {
		return time.Time{}
	}
	if c.pauseTo.After(c.due) {
		return c.pauseTo
	}
	return c.due
}

// nudge has the loop look again. c.mu may be held.
func (c *Credential) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// begin joins the fetch under way or starts one. c.mu is held.
func (c *Credential) begin(now time.Time) (*fetch, error) {
	switch {
	case c.life.Err() != nil:
		return nil, errClosed
	case c.fetch != nil:
		return c.fetch, nil
	case now.Before(c.pauseTo):
		return nil, c.failure
	}
	f := &fetch{done: make(chan struct{})}
	c.fetch = f
	c.fetches++
	c.wg.Go(func() { c.run(f, now) })
	return f, nil
}

func (c *Credential) run(f *fetch, asked time.Time) {
	ctx, cancel := context.WithTimeout(c.life, fetchTimeout)
	defer cancel()
	m, err := c.cfg.Source.Fetch(ctx)

	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(f.done)
	defer c.nudge()
	c.fetch = nil
	now := c.cfg.Now()
	c.asked = true
	if err != nil {
		f.err = err
		c.failures++
		c.failed++
		c.cfg.Logger.Warn("credential can't be refreshed", "credential", c.cfg.Name, "source", c.cfg.Source.String(), "error", err, "failures", c.failures)
		c.failure, c.due = err, now
		c.pauseTo = now.Add(jitter(min(retryMin<<min(c.failures-1, 10), retryMax)))
		return
	}
	if c.failures > 0 {
		c.cfg.Logger.Info("credential can be refreshed again", "credential", c.cfg.Name, "failures", c.failures)
	}
	c.failures, c.failure, c.pauseTo, c.fetched = 0, nil, time.Time{}, now
	c.take(m, now)
	c.due = next(m, asked)
	if (c.current == nil || !c.current.usable(now)) && c.candidate(now) == nil {
		if len(c.all) > 0 && c.all[0].Value == m.Value && c.all[0].rejections == 1 {
			c.all[0].retryAt = now.Add(jitter(rejectOnce))
		}
		// Asking again at once is no help, and whatever else there is must do.
		c.uselessFor(now, errRefused)
	}
}

// next is when to ask the source again.
func next(m Material, asked time.Time) time.Time {
	switch {
	case !m.Next.IsZero():
		return m.Next
	case m.Expires.IsZero():
		return time.Time{}
	}
	life := m.Expires.Sub(asked)
	if life <= 0 {
		return asked.Add(retryMax)
	}
	// Many processes that started together should not renew together.
	return asked.Add(life*3/4 - rand.N(life/10+1))
}

// take adds what the source gave, unless it is the newest already. c.mu is held.
func (c *Credential) take(m Material, now time.Time) {
	if len(c.all) > 0 && c.all[0].Value == m.Value {
		c.confirm(c.all[0], m)
		if c.all[0].usable(now) && !c.all[0].older {
			c.refused = "" // what it had meanwhile was no generation at all
		}
		return
	}
	if c.cfg.Check != nil {
		if err := c.cfg.Check(m.Value.Reveal()); err != nil {
			c.refuse(m, "the newest one can't be used: "+clean(err.Error(), m.Value.Reveal()))
			return
		}
	}
	g := &generation{Material: m, got: now}
	if i := slices.IndexFunc(c.all, func(g *generation) bool { return g.Value == m.Value }); i >= 0 {
		g = c.all[i] // the source went back to it
		c.all = slices.Delete(c.all, i, i+1)
		c.confirm(g, m)
	}
	c.numbered++
	g.number = c.numbered
	c.all = slices.Insert(c.all, 0, g)
	c.forget()
	switch {
	case g == c.current:
		c.refused = ""
	case !g.Expires.IsZero() && !now.Before(g.Expires):
		c.refuse(m, "the newest one expired at "+g.Expires.UTC().Format(time.RFC3339))
	case c.current != nil && c.current.usable(now) && g.before(c.current):
		g.older = true // no candidate, as long as that one works
		c.refuse(m, "the newest one is older than the one in use")
	case !g.rejected.IsZero():
		c.refuse(m, "the newest one was refused by the service: "+g.why)
	default:
		c.refused = ""
		c.cfg.Logger.Info("credential has a new generation", "credential", c.cfg.Name, "generation", g.number, "label", g.Label, "expires", g.Expires)
		for _, f := range c.followers {
			f.keyChanged(now)
		}
		c.prove()
	}
}

// proveTimeout ends one try to sign in with a candidate.
const proveTimeout = 15 * time.Second

// prove has one prover try the candidate. c.mu is held, by a goroutine that Close
// waits for.
func (c *Credential) prove() {
	if c.current == nil || len(c.provers) == 0 {
		return // everyone tries it
	}
	f := c.provers[0]
	c.wg.Go(func() {
		ctx, cancel := context.WithTimeout(c.life, proveTimeout)
		defer cancel()
		_ = f(ctx) // it says Accepted or Rejected; else the next use is the canary
	})
}

// keyChanged refreshes what was made of another credential's earlier
// generation.
func (c *Credential) keyChanged(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.all) > 0 || c.failures > 0 {
		c.pauseTo = time.Time{}
		c.refreshNow(now)
	}
}

// refuse notes why the source's newest is not used. c.mu is held.
func (c *Credential) refuse(m Material, why string) {
	if c.refused != why {
		c.cfg.Logger.Warn("credential's new generation is not used", "credential", c.cfg.Name, "source", c.cfg.Source.String(), "label", m.Label, "reason", why)
	}
	c.notUsed(why)
}

// forget drops the oldest generations beyond maxGenerations, but never the
// current one. c.mu is held.
func (c *Credential) forget() {
	for i := len(c.all) - 1; i > 0 && len(c.all) > maxGenerations; i-- {
		if c.all[i] != c.current {
			c.all = slices.Delete(c.all, i, i+1)
		}
	}
}

// jitter is between d/2 and d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
