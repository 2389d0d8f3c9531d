package app

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/watch"
)

// watching is a process's view of what is wrong. A process with the role watch
// tells the sinks, too; one with the API alone only answers who asks.
type watching struct {
	engine *incident.Engine
	watch  *watch.Watch
	sinks  *incident.Dispatcher // nil without the role watch
}

// buildWatch is the last of build: it looks at what the others made.
func (p *process) buildWatch() error {
	if p.cfg.Has("worker") && !p.cfg.Has("watch") && p.loopback == nil {
		p.log.Warn("nobody is told of this worker's failing providers and credentials: only it knows them, and it hasn't the role watch")
	}
	if !p.cfg.Has("api") && !p.cfg.Has("watch") {
		return nil
	}
	w := &p.watching
	w.engine = incident.New(incident.Config{
		File: filepath.Join(p.cfg.DataDir, "incidents.json"), Runbook: p.cfg.Incidents.Runbook, Log: p.log,
	})
	if err := incident.Measure(w.engine, p.tel.MeterProvider); err != nil {
		return fmt.Errorf("incidents: %w", err)
	}
	if p.cfg.Has("watch") {
		sinks, err := p.sinks()
		if err != nil {
			return err
		}
		w.sinks, err = incident.NewDispatcher(incident.DispatchConfig{Engine: w.engine, Sinks: sinks, Log: p.log, Meters: p.tel.MeterProvider})
		if err != nil {
			return fmt.Errorf("incidents: %w", err)
		}
	}
	w.watch = watch.New(w.engine, p.log, p.checks()...)
	return nil
}

// checks is all that is looked at. A part that has its own to tell adds a check.
func (p *process) checks() []watch.Check {
	o := p.cfg.Incidents.Objective
	all := []watch.Check{
		watch.LedgerAway(p.ledger.Ping, time.Now),
		watch.KafkaAway(p.clusters.health, time.Now),
		watch.Evacuated(p.ledger.Placements),
		watch.Stalls(p.ledger, map[message.Class]time.Duration{
			message.Transactional: o.Transactional, message.Trigger: o.Trigger, message.Campaign: o.Campaign,
		}, time.Now),
		watch.Doubts(p.ledger.OpenDoubts),
		watch.NoWorker(p.ledger.Workers, time.Now),
		watch.Numbering(p.guard.Lately),
		watch.RolledBack(p.ledger.RolledBack, time.Now),
		watch.Journal(p.clusters.backlog, p.ledgerStands, time.Now),
		watch.Replays(p.ledger.StuckReplays),
		watch.Held(p.ledger.Held),
	}
	if p.worker != nil {
		all = append(all, watch.Providers(p.worker.Providers, time.Now), watch.Credentials(p.creds.List, time.Now))
	}
	return all
}

func (p *process) sinks() ([]incident.Sink, error) {
	all := []incident.Sink{incident.Log{Logger: p.log}}
	if hook := p.cfg.Incidents.Webhook; hook.URL != "" {
		s, err := incident.NewWebhook(hook.URL, hook.Secret.Reveal())
		if err != nil {
			return nil, fmt.Errorf("incidents.webhook: %w", err)
		}
		all = append(all, s)
	}
	for i, url := range p.cfg.Incidents.Alertmanager {
		s, err := incident.NewAlertmanager(url)
		if err != nil {
			return nil, fmt.Errorf("incidents.alertmanager[%d]: %w", i, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// longestShield is how far back a repeat's first may be, however long an incident is.
const longestShield = 24 * time.Hour

// shield answers from when on, now, requests without a key count as repeats: the
// margin before the first incident that isn't over for so long; zero: never. It
// looks once a second.
func (w *watching) shield(margin time.Duration) func() time.Time {
	if margin <= 0 {
		return nil
	}
	var asked, since atomic.Int64 // Unix nanoseconds
	return func() time.Time {
		now := time.Now()
		if at := asked.Load(); now.UnixNano()-at >= int64(time.Second) && w.engine != nil && asked.CompareAndSwap(at, now.UnixNano()) {
			first := w.engine.Since(now.Add(-margin))
			if first.IsZero() {
				since.Store(0)
			} else {
				since.Store(max(first.Add(-margin).UnixNano(), now.Add(-longestShield).UnixNano()))
			}
		}
		if at := since.Load(); at != 0 {
			return time.Unix(0, at)
		}
		return time.Time{}
	}
}

// run watches until ctx ends, and tells until house does: what a process sees while
// it stops is its own end. A provider that nobody waits for any more isn't well, and
// no worker is to be seen; what is open stays open for the next one to judge.
func (w *watching) run(ctx, house context.Context, g *group) {
	if w.engine == nil {
		return
	}
	g.run("watch", func() error { w.watch.Run(ctx); return nil })
	g.run("incidents", func() error { w.engine.Run(house); return nil })
	if w.sinks != nil {
		g.run("sinks", func() error { w.sinks.Run(house); return nil })
	}
}
