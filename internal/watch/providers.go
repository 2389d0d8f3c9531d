package watch

import (
	"context"
	"fmt"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/message"
)

const (
	// leastEnded is from how many hand-overs on their outcomes are judged, and
	// badShare the share of deferred and unknown ones at which a provider fails.
	leastEnded = 20
	badShare   = 0.5

	judgeSoon = 6 * time.Second
	judgeOver = time.Minute
	// shutFor is how long a provider can't be used before that is trouble.
	shutFor = time.Second
)

// Providers checks the providers of this process: whether they can be used, and
// what share of hand-overs they take. The last seconds are judged where they
// have enough of them, else the last minute.
func Providers(all func() []message.ProviderHealth, now func() time.Time) Check {
	p := &providers{all: all, now: now, past: make(map[string][]outcomes)}
	return Check{Kinds: []incident.Kind{incident.Provider}, Look: p.look}
}

type providers struct {
	all  func() []message.ProviderHealth
	now  func() time.Time
	past map[string][]outcomes // oldest first, a minute of them
}

type outcomes struct {
	at       time.Time
	all, bad int64
}

func (p *providers) look(context.Context) (found []incident.Condition, _ error) {
	now := p.now()
	for _, h := range p.all() {
		subject := h.Name
		if subject == "none" {
			subject += "." + h.Channel.String()
		}
		o := outcomes{now, h.Taken + h.Deferred + h.Rejected + h.Unknown, h.Deferred + h.Unknown}
		past := append(p.past[subject], o)
		for len(past) > 2 && now.Sub(past[1].at) >= judgeOver {
			past = past[1:]
		}
		p.past[subject] = past
		c := incident.Condition{
			Kind: incident.Provider, Subject: subject, Command: "stormpost messages --state waiting --channel " + h.Channel.String(),
		}
		if h.Trouble != "" && h.Since >= shutFor {
			c.Count, c.Oldest = int64(h.Waiting), h.Since
			c.Summary = fmt.Sprintf("provider %s (%s) can't be used: %s", h.Name, h.Channel, h.Trouble)
			found = append(found, c)
		} else if bad, all, over := judge(past, now); all >= leastEnded && float64(bad) >= badShare*float64(all) {
			c.Count = bad
			c.Summary = fmt.Sprintf("provider %s (%s) did not take %d of %d messages in the last %s", h.Name, h.Channel, bad, all, short(over))
			found = append(found, c)
		}
	}
	return found, nil
}

// judge is the hand-overs of the last seconds, or, if they are too few, of
// all that is remembered.
func judge(past []outcomes, now time.Time) (bad, all int64, over time.Duration) {
	last := past[len(past)-1]
	first := past[0]
	for _, o := range past {
		if now.Sub(o.at) >= judgeSoon && last.all-o.all >= leastEnded {
			first = o
		}
	}
	return last.bad - first.bad, last.all - first.all, now.Sub(first.at)
}
