package app

import (
	"context"
	"fmt"
	"path/filepath"
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
		watch.KafkaAway(p.health.kafka, time.Now),
		watch.Stalls(p.ledger, map[message.Class]time.Duration{
			message.Transactional: o.Transactional, message.Trigger: o.Trigger, message.Campaign: o.Campaign,
		}, time.Now),
		watch.Doubts(p.ledger.OpenDoubts),
		watch.NoWorker(p.ledger.Workers, time.Now),
		watch.Numbering(p.guard.Open),
		watch.Journal(p.kafka.JournalBacklog, time.Now),
	}
	if p.worker != nil {
		all = append(all, watch.Providers(p.worker.Providers, time.Now))
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

// run watches until ctx ends.
func (w *watching) run(ctx context.Context, g *group) {
	if w.engine == nil {
		return
	}
	g.run("watch", func() error { w.watch.Run(ctx); return nil })
	g.run("incidents", func() error { w.engine.Run(ctx); return nil })
	if w.sinks != nil {
		g.run("sinks", func() error { w.sinks.Run(ctx); return nil })
	}
}
