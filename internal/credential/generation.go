package credential

import (
	"time"
)

const (
	// canaryPatience is how long one user may take to prove a candidate before
	// another may try.
	canaryPatience = 10 * time.Second
	// A rejected generation is tried again after a pause that doubles from
	// rejectMin to rejectMax, if there is nothing else, or if it is the newest.
	rejectMin = 10 * time.Second
	rejectMax = 5 * time.Minute
	// rejectOnce is the first pause where the source has nothing else: the service
	// may have been mistaken.
	rejectOnce = 100 * time.Millisecond
	// maxGenerations are kept; the oldest go.
	maxGenerations = 6
)

// generation is one Material and what became of it. Its fields but Material are
// guarded by Credential.mu.
type generation struct {
	Material
	number   int
	got      time.Time
	older    bool      // than one that worked when it came
	kept     bool      // by an earlier process; the source has not given it to this one
	renewed  time.Time // when it last got a later end; zero: never
	told     time.Time // its end as the service has it, see Use.Ends; zero: none
	proven   bool
	canary   time.Time // when it was given to whom it shall prove itself to; zero: to nobody
	shown    time.Time // last use
	accepted time.Time // last time

	rejected   time.Time // last time, if not accepted since
	rejections int       // in a row
	epoch      int       // counts the rejections: what was said of an earlier one is old news
	retryAt    time.Time
	why        string // the service's words
}

// fit says whether g's time is now.
func (g *generation) fit(now time.Time) bool {
	return !now.Before(g.NotBefore) && (g.Expires.IsZero() || now.Before(g.Expires))
}

// end is when g ends, as far as anyone knows; zero: nobody does.
func (g *generation) end() time.Time {
	if g.Expires.IsZero() || !g.told.IsZero() && g.told.Before(g.Expires) {
		return g.told
	}
	return g.Expires
}

// usable is fit and not rejected.
func (g *generation) usable(now time.Time) bool { return g.rejected.IsZero() && g.fit(now) }

// mayTry says whether nobody else is trying g just now.
func (g *generation) mayTry(now time.Time) bool {
	return g.canary.IsZero() || now.Sub(g.canary) >= canaryPatience
}

// before says whether g is older than o, as far as they tell: by when they were
// issued, else by when they end.
func (g *generation) before(o *generation) bool {
	if !g.Issued.IsZero() && !o.Issued.IsZero() {
		return g.Issued.Before(o.Issued)
	}
	return !g.Expires.IsZero() && !o.Expires.IsZero() && g.Expires.Before(o.Expires)
}
