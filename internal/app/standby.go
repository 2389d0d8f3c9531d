package app

import (
	"context"
	"time"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/recovery"
)

const (
	standbyEvery = time.Second
	// standbyWell is for how long the standby must have been well.
	standbyWell = 5 * time.Second
	// sightingAge is how old what other processes see may be.
	sightingAge = 8 * time.Second
	// standbyAgain is how long after a failure it is tried again.
	standbyAgain = 15 * time.Second
)

// standBy moves lanes to the standby cluster once theirs is judged gone: away
// for kafka.evacuate_after as this process sees it, while no other process that
// tells sees it well, and the standby well. It never moves them back: a cluster
// that comes and goes moves nothing.
func (p *process) standBy(ctx context.Context) {
	name := p.cfg.Kafka.Standby
	if name == "" || !p.cfg.Has("recovery") {
		return
	}
	standby := p.clusters.named(name)
	v := newVigil(p.cfg.Kafka.EvacuateAfter)
	var well time.Time // since when the standby is
	var next time.Time
	tick := time.NewTicker(standbyEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		if standby.isAway() || standby.cause.Load() == nil {
			well = time.Time{}
		} else if well.IsZero() {
			well = now
		}
		away := make(map[string]bool)
		for _, c := range p.clusters.all {
			away[c.name] = c.isAway()
		}
		var lanes []message.Lane
		for cluster, its := range v.look(now, p.clusters.placed.where, away) {
			if cluster != name && p.gone(ctx, cluster, name) {
				lanes = append(lanes, its...)
			}
		}
		if len(lanes) == 0 || well.IsZero() || now.Sub(well) < standbyWell || now.Before(next) {
			continue
		}
		p.log.Warn("the Kafka cluster of lanes is gone; moving them to the standby", "lanes", len(lanes), "to", name)
		if _, _, err := recovery.Evacuate(ctx, p.ledger, standby.broker, recovery.EvacuatePlan{
			To: name, Lanes: lanes, By: "automatic", Automatic: true,
		}, p.log, nil); err != nil && ctx.Err() == nil {
			p.log.Warn("the lanes were not moved to the standby; trying again", "error", err)
		}
		next = time.Now().Add(standbyAgain)
	}
}

// vigil is since when clusters have been away, and lanes on them, as this process
// sees it.
type vigil struct {
	after time.Duration
	away  map[string]time.Time // without a break
	lanes map[message.Lane]use
}

type use struct {
	cluster string
	since   time.Time
}

func newVigil(after time.Duration) *vigil {
	return &vigil{after: after, away: make(map[string]time.Time), lanes: make(map[message.Lane]use)}
}

// look says, by cluster, which lanes have waited for one that is away for long
// enough: one that a person has just put there is given as long as any other.
func (v *vigil) look(now time.Time, where func(message.Lane) string, away map[string]bool) map[string][]message.Lane {
	for cluster, is := range away {
		if !is {
			delete(v.away, cluster)
		} else if v.away[cluster].IsZero() {
			v.away[cluster] = now
		}
	}
	waiting := make(map[string][]message.Lane)
	for _, l := range message.Lanes() {
		u := v.lanes[l]
		if at := where(l); u.since.IsZero() || u.cluster != at {
			u = use{at, now}
			v.lanes[l] = u
		}
		since, is := v.away[u.cluster]
		if is && now.Sub(since) >= v.after && now.Sub(u.since) >= v.after {
			waiting[u.cluster] = append(waiting[u.cluster], l)
		}
	}
	return waiting
}

// gone says that no process sees the cluster well, nor the standby away.
func (p *process) gone(ctx context.Context, name, standby string) bool {
	seen, err := p.ledger.Sightings(ctx, sightingAge)
	return err == nil && seen[name].Well == 0 && seen[name].Away > 0 && seen[standby].Away == 0
}
