package credential

import (
	"fmt"
	"time"
)

// Health is how a credential is doing.
type Health string

// What a credential's Health can be, the worst first.
const (
	Missing      Health = "missing"   // there is none that may work
	Refused      Health = "rejected"  // the service refuses what there is
	FellBack     Health = "fell_back" // the last good one is used instead of the source's newest
	Failing      Health = "refresh_failing"
	ExpiringSoon Health = "expiring_soon"
	Unproven     Health = "unproven" // no service has accepted it yet
	Working      Health = "working"
)

// Status is what people may see of a credential: no secret.
type Status struct {
	Name        string
	Source      string
	Health      Health
	Trouble     string    // for people; empty with Working and Unproven
	Expires     time.Time // of what is in use; zero: not known
	LastUse     time.Time
	LastOK      time.Time          // when a service last accepted it
	LastRefresh time.Time          // when the source last answered
	NextRefresh time.Time          // zero: when it is needed
	Refreshes   int64              // how often the source was asked
	Failures    int64              // how often it had none
	Rejections  int64              // how often a service said no
	Fallbacks   int64              // how often its newest turned out to be of no use
	Generations []GenerationStatus // newest first
}

// GenerationStatus is one generation.
type GenerationStatus struct {
	Number    int
	State     string // current, candidate, spare, older, rejected, expired or early
	Label     string
	Kept      bool // on disk, by an earlier process; the source has not given it to this one
	Got       time.Time
	NotBefore time.Time // zero: at once
	Expires   time.Time // zero: not known
	LastOK    time.Time // zero: never
	Why       string    // it was rejected: the service's words
}

// Status is a snapshot.
func (c *Credential) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.cfg.Now()
	s := Status{
		Name: c.cfg.Name, Source: c.cfg.Source.String(), LastUse: c.lastUse, LastOK: c.lastOK,
		LastRefresh: c.fetched, NextRefresh: c.nextFetch(), Refreshes: c.fetches, Failures: c.failed, Rejections: c.rejects, Fallbacks: c.fallbacks,
	}
	var use, refused *generation
	for _, g := range c.all {
		v := GenerationStatus{
			Number: g.number, State: c.state(g, now), Label: g.Label, Kept: g.kept, Got: g.got, NotBefore: g.NotBefore, Expires: g.end(), LastOK: g.accepted, Why: g.why,
		}
		s.Generations = append(s.Generations, v)
		if use == nil && g.usable(now) {
			use = g
		}
		if refused == nil && !g.rejected.IsZero() && g.fit(now) {
			refused = g
		}
	}
	if c.current != nil && c.current.usable(now) {
		use = c.current
	}
	if use != nil {
		s.Expires = use.end()
	}
	s.Health, s.Trouble = c.health(use, refused, now)
	return s
}

func (c *Credential) state(g *generation, now time.Time) string {
	switch {
	case now.Before(g.NotBefore):
		return "early"
	case !g.fit(now):
		return "expired"
	case !g.rejected.IsZero():
		return "rejected"
	case g == c.current:
		return "current"
	case g.older:
		return "older"
	case g.proven:
		return "spare"
	}
	return "candidate"
}

// health judges by use, the generation that serves, if any, and refused, one
// that was rejected. c.mu is held.
func (c *Credential) health(use, refused *generation, now time.Time) (Health, string) {
	failing := ""
	if c.failures > 0 && c.failure != nil {
		failing = clean(c.failure.Error(), "")
	}
	switch {
	case use == nil && refused != nil:
		return Refused, "the service refuses it: " + refused.why
	case use == nil && failing != "":
		return Missing, "none can be had: " + failing
	case use == nil && c.refused != "":
		return Missing, c.refused
	case use == nil && c.fetched.IsZero():
		return Missing, "it was not fetched yet"
	case use == nil:
		return Missing, "the last one expired"
	case c.refused != "":
		return FellBack, c.refused + "; the last good one" + where(use) + " is in use" + until(use)
	case failing != "":
		return Failing, "it can't be refreshed: " + failing + "; the last one" + where(use) + " is in use" + until(use)
	case c.ending(use, now):
		return ExpiringSoon, "nothing follows the one in use" + until(use)
	case !use.proven:
		return Unproven, ""
	}
	return Working, ""
}

func where(g *generation) string {
	if g.kept {
		return ", kept on disk,"
	}
	return ""
}

func until(g *generation) string {
	if g.end().IsZero() {
		return ""
	}
	return fmt.Sprintf(", until %s", g.end().UTC().Format(time.RFC3339))
}

// ending says whether g is in the last eighth of its life. Whatever is
// refreshed in time was by then.
func (c *Credential) ending(g *generation, now time.Time) bool {
	end := g.end()
	if end.IsZero() || c.all[0] != g {
		return false
	}
	from := g.got
	if !g.Issued.IsZero() && g.Issued.Before(from) {
		from = g.Issued
	}
	if !g.renewed.IsZero() {
		from = g.renewed
	}
	return end.Sub(now) < end.Sub(from)/8
}
