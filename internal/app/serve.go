package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/telemetry"
	"github.com/stormpost/stormpost/recovery"
)

// Options are what the command line gives Serve beside the configuration.
type Options struct {
	Version string
	Output  io.Writer // for logs
	// Ready is called once, when every listener of the process's roles answers.
	Ready func(Addresses)
}

// Addresses are base URLs, without a trailing slash; empty for what is not there.
type Addresses struct {
	API     string
	Metrics string
}

// process is one process, as it is built up and taken down.
type process struct {
	cfg          config.Config
	opt          Options
	tel          *telemetry.Telemetry
	log          *slog.Logger
	ledger       *dedupe.Ledger
	ring         *keyring.Ring
	clusters     *clusters
	service      *ingest.Service
	admission    *ingest.Admission
	suppressions *ingest.Suppressions // the API's copy
	worker       *delivery.Worker
	drain        *recovery.Drain
	providers    []delivery.Provider
	creds        *credentials // nil without the role worker
	readiness    *readiness
	schema       schema
	loopback     delivery.Provider // instead of the configured ones; the bench's
	guard        *recovery.Guard
	replayer     *recovery.Replayer
	events       map[string]ingest.EventSource
	watching     watching
	tls          *tls.Config // of the API's listener; nil: plain
	addr         Addresses
}

// Serve runs a process of cfg's roles until ctx ends, and then stops it in
// order: no more requests, no more claims, open replies, records, publishing.
// It returns nil after an orderly stop, and a config.Error if cfg is wrong.
func Serve(ctx context.Context, cfg config.Config, opt Options) error {
	return serve(ctx, cfg, opt, nil, make(chan *process, 1))
}

// serve tells ready, which has room for it, when Options.Ready is called.
func serve(ctx context.Context, cfg config.Config, opt Options, loopback delivery.Provider, ready chan<- *process) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	tel, err := telemetry.Setup(ctx, telemetry.Options{
		Service: "stormpost", Version: opt.Version, LogLevel: cfg.Log.Level, LogFormat: cfg.Log.Format, Output: opt.Output,
	})
	if err != nil {
		return config.Wrong(err)
	}
	if os.Getenv("GOGC") == "" {
		// Messages are short-lived, and the live heap is small and bounded: a
		// third of the processor time would go into collecting it at 100.
		debug.SetGCPercent(400)
	}
	p := &process{cfg: cfg, opt: opt, tel: tel, log: tel.Logger, loopback: loopback}
	defer func() {
		sctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if err := tel.Shutdown(sctx); err != nil {
			p.log.Warn("telemetry was cut short", "error", err)
		}
	}()
	if err := p.build(); err != nil {
		p.teardown()
		return config.Wrong(err)
	}
	err = p.run(ctx, ready)
	p.teardown()
	return err
}

// build makes every part. None of them needs a store to answer yet: what fails is
// the configuration.
func (p *process) build() (err error) {
	if err := makeDataDir(p.cfg.DataDir); err != nil {
		return err
	}
	dsn := p.cfg.DSN.Reveal()
	p.ledger, err = dedupe.Open(dedupe.Config{
		DSN: dsn, MaxConns: int32(p.cfg.Ledger.MaxConns), Batch: p.cfg.Ledger.Batch, Flushers: p.cfg.Ledger.Flushers,
		Deadline: p.cfg.Ledger.Deadline, BeatEvery: p.cfg.Ledger.BeatEvery, GiveUp: p.giveUp(), Resend: p.resend(), Roles: p.cfg.Roles, Logger: p.log,
		StateFile: filepath.Join(p.cfg.DataDir, "ledger.json"), Journaled: func() (map[message.Lane]int64, time.Time) { return p.clusters.journaled() },
	})
	if err != nil {
		return err
	}
	if p.guard, err = recovery.NewGuard(recovery.GuardConfig{
		Numbering: p.ledger, Every: p.cfg.Guard.Every, Repair: p.cfg.Has("recovery"), Log: p.log, Meters: p.tel.MeterProvider,
	}); err != nil {
		return err
	}
	if p.events, err = eventSources(p.cfg); err != nil {
		return err
	}
	if err := p.buildClusters(); err != nil {
		return err
	}
	if p.cfg.Has("api") {
		if p.tls, err = tlsConfig(p.cfg.TLS); err != nil {
			return err
		}
		p.buildAPI()
	}
	if p.cfg.Has("recovery") {
		if err := p.buildRecovery(); err != nil {
			return err
		}
	}
	if p.cfg.Has("worker") {
		if err := p.buildWorker(); err != nil {
			return err
		}
		p.readiness = newReadiness(p.creds.uses)
		if err := credential.Measure(p.tel.MeterProvider, time.Now, p.creds.List); err != nil {
			return err
		}
	}
	return p.buildWatch()
}

func (p *process) buildAPI() {
	p.ring = keyring.Open(filepath.Join(p.cfg.DataDir, "keys.json"), p.ledger, p.log, time.Now)
	p.suppressions = ingest.NewSuppressions(p.ledger, p.log)
	p.admission = ingest.NewAdmission(p.ledger, ingest.AdmissionConfig{
		Backlog: p.cfg.Accept.Backlog, TenantBacklog: p.cfg.Accept.TenantBacklog, TenantRate: p.cfg.Accept.TenantRate, Log: p.log,
	})
	p.service = ingest.New(p.ledger, p.clusters, ingest.Config{
		EmailLife: p.cfg.Accept.EmailLife, PushLife: p.cfg.Accept.PushLife, MaxSchedule: p.cfg.Accept.MaxSchedule,
		Platforms: p.cfg.Platforms(), PushCheck: checkPush(p.cfg), EmailCheck: checkEmail(p.cfg.FirstEmail()), Suppressions: p.suppressions,
		Finder: p.ledger, Journal: p.clusters, JournalAway: func() bool { return !p.clusters.canJournal() },
		Patience: p.cfg.Accept.Patience, Log: p.log, Admission: p.admission, RepeatsSince: p.watching.shield(p.cfg.Accept.Shield),
		LedgerTime: p.ledger.ServerTime, Timeout: p.cfg.Accept.Timeout,
	})
}

// makeDataDir makes the folder, and sees that files can be made in it. A disk that
// is full is no mistake: what is only helped by the folder goes on without.
func makeDataDir(dir string) error {
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		var f *os.File
		if f, err = os.CreateTemp(dir, ".start-*"); err == nil {
			err = errors.Join(f.Close(), os.Remove(f.Name()))
		}
	}
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("data_dir: want a folder that can be written to: %w", err)
	}
	return nil
}

// buildClusters makes what the roles need of every cluster.
func (p *process) buildClusters() error {
	p.clusters = &clusters{placed: newPlacements(p.ledger, p.cfg.DataDir, p.log)}
	names, brokers := clusterBrokers(p.cfg)
	for _, name := range names {
		cfg := p.brokerConfig()
		cfg.Brokers = brokers[name]
		b, err := broker.New(cfg)
		if err != nil {
			return err // it is of kafka.*, which all clusters have
		}
		c := newCluster(name, b, p.cfg.DataDir, p.log)
		if err := c.use(p.cfg.Has("api"), p.cfg.Has("worker"), p.cfg.Has("recovery")); err != nil {
			return fmt.Errorf("cluster %s: %w", name, err)
		}
		c.changed = c.readAnew
		p.clusters.all = append(p.clusters.all, c)
	}
	p.clusters.placed.changed = p.clusters.assign
	p.clusters.assign()
	return nil
}

// giveUp is how long after its claim an attempt of this process may still end
// by itself.
func (p *process) giveUp() time.Duration {
	return p.cfg.Delivery.ClaimValid + p.cfg.ReplyLimit()
}

// resend is the lanes whose doubts are resent by policy. Configuration that is
// wrong is told by Validate.
func (p *process) resend() map[message.Lane]string {
	all := make(map[message.Lane]string)
	for name, policy := range p.cfg.Delivery.Doubts {
		if l, err := message.ParseLane(name); err == nil && policy == "resend" {
			all[l] = "policy:" + name
		}
	}
	return all
}

// run serves until ctx ends or a part fails for good.
func (p *process) run(ctx context.Context, ready chan<- *process) error {
	listeners, err := p.listen(ctx)
	if err != nil {
		return err
	}
	// Housekeeping outlives the requests and the worker, whose heartbeats and
	// records it serves.
	house, endHouse := context.WithCancel(context.WithoutCancel(ctx))
	back := newGroup()
	back.run("ledger", func() error { return p.ledger.Run(house, p.worker == nil) })
	back.run("guard", func() error { p.guard.Run(house); return nil })
	back.run("retention", func() error { p.retain(house); return nil })
	for _, c := range p.clusters.all {
		back.run("kafka "+c.name, func() error { c.run(house); return nil })
		if c.tail != nil {
			back.run("journal index "+c.name, func() error { return c.tail.Run(house) })
		}
	}
	back.run("placement", func() error { p.clusters.placed.run(house, p.clusters); return nil })
	back.run("standby", func() error { p.standBy(ctx); return nil })
	p.watching.run(ctx, house, back)
	if p.ring != nil {
		back.run("keys", func() error { p.ring.Run(house); return nil })
		back.run("admission", func() error { p.admission.Run(house); return nil })
		back.run("suppressions", func() error { p.suppressions.Run(house); return nil })
	}

	front := newGroup()
	fctx, endFront := context.WithCancel(ctx)
	defer endFront()
	for _, l := range listeners {
		front.run(l.name, func() error { return l.serve(fctx) })
	}
	front.run("schema", func() error { p.schema.look(fctx, p.ledger.Behind, p.log); return nil })
	if p.creds != nil {
		for _, u := range p.creds.uses {
			front.run("credential of "+u.route, func() error { p.readiness.prove(fctx, u); return nil })
		}
	}
	if p.worker != nil {
		front.run("worker", func() error { return p.worker.Run(fctx) })
		for _, c := range p.clusters.all {
			front.run("consumer "+c.name, func() error { return c.consumer.Run(fctx, consumed{p.worker, p.ledger, c}) })
		}
	}
	if p.drain != nil {
		front.run("drain", func() error { return p.drain.Run(fctx) })
		front.run("replay", func() error { return p.replayer.Run(fctx) })
		for _, c := range p.clusters.all {
			front.run("journal "+c.name, func() error { return c.journals.Run(fctx, drained{p.drain, p.ledger, c}) })
			front.run("recall "+c.name, func() error {
				return recovery.Recall{Ledger: p.ledger, Trail: c.broker.ReadTrail, Log: c.log}.Run(fctx)
			})
		}
	}
	if p.ring != nil {
		// The first answers should know the newest keys. With the ledger away,
		// those of the snapshot must do.
		rctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		if err := p.ring.Refresh(rctx); err != nil {
			p.log.Warn("API keys were not refreshed", "error", err)
		}
		cancel()
	}
	p.addr = addresses(listeners)
	p.log.Info("ready", "api", p.addr.API, "metrics", p.addr.Metrics, "roles", p.cfg.Roles, "version", p.opt.Version)
	if p.opt.Ready != nil {
		p.opt.Ready(p.addr)
	}
	ready <- p
	select {
	case <-ctx.Done():
		p.log.Info("stopping", "grace", p.cfg.Delivery.ShutdownGrace)
	case err = <-front.failed:
	}
	endFront()
	err = errors.Join(err, front.wait())
	if p.drain != nil {
		p.drain.Wait()
	}
	p.endPublishing()
	endHouse()
	return errors.Join(err, back.wait())
}

// endPublishing publishes what is left, for a moment.
func (p *process) endPublishing() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for _, c := range p.clusters.all {
		all.Go(func() {
			if c.publisher != nil {
				if err := c.publisher.Close(ctx); err != nil {
					// What is not published is found by the lanes' cursors.
					p.log.Warn("publishing was cut short", "cluster", c.name, "error", err)
				}
			}
			if c.journal != nil {
				if err := c.journal.Close(); err != nil {
					p.log.Warn("the journal did not close", "cluster", c.name, "error", err)
				}
			}
		})
	}
	all.Wait()
}

// teardown ends what build made, in reverse.
func (p *process) teardown() {
	if p.clusters != nil {
		defer p.clusters.endTrails() // after the last outcome
	}
	if p.ledger != nil {
		p.ledger.Close()
	}
	if p.worker != nil {
		p.worker.Wait()
	}
	for _, pr := range p.providers {
		if err := pr.Close(); err != nil {
			p.log.Warn("provider did not close", "provider", pr.Name(), "error", err)
		}
	}
	p.creds.close()
}

// retain drops what is past its age, once an hour.
func (p *process) retain(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		r := dedupe.Retention{Content: p.cfg.Retention.Content, Messages: p.cfg.Retention.Messages}
		if err := p.ledger.Retain(ctx, r); err != nil && ctx.Err() == nil {
			p.log.Warn("retention failed; it is tried again in an hour", "error", err)
		}
	}
}

func listen(ctx context.Context, key, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return l, nil
}

func (p *process) brokerConfig() broker.Config {
	c := kafkaConfig(p.cfg)
	c.Logger, c.Meters = p.log, p.tel.MeterProvider
	return c
}

// kafkaConfig is the broker's configuration without logs and metrics.
func kafkaConfig(cfg config.Config) broker.Config {
	k := cfg.Kafka
	c := broker.Config{
		Brokers: cfg.Brokers, Prefix: k.Prefix, Partitions: k.Partitions, Replication: k.Replication,
		Mechanism: k.Mechanism, Username: k.Username, Password: k.Password.Reveal(),
	}
	if k.TLS {
		c.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return c
}
