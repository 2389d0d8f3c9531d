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
	since := make(map[*cluster]time.Time) // away without a break
	var well time.Time                    // since when the standby is
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
		var lanes []message.Lane
		for _, c := range p.clusters.all {
			if !c.isAway() {
				delete(since, c)
			} else if since[c].IsZero() {
				since[c] = now
			}
			if c != standby && !since[c].IsZero() && now.Sub(since[c]) >= p.cfg.Kafka.EvacuateAfter && p.gone(ctx, c.name, name) {
				lanes = append(lanes, p.clusters.lanesOf(c)...)
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

// gone says that no process sees the cluster well, nor the standby away.
func (p *process) gone(ctx context.Context, name, standby string) bool {
	seen, err := p.ledger.Sightings(ctx, sightingAge)
	return err == nil && seen[name].Well == 0 && seen[name].Away > 0 && seen[standby].Away == 0
}
