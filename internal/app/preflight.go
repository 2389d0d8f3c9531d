package app

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/message"
)

// preflightLimit is how long one check of Preflight may take.
const preflightLimit = 10 * time.Second

// PreflightCheck is one thing that Preflight has looked at.
type PreflightCheck struct {
	Name     string   `json:"name"`
	Findings []string `json:"findings"` // what is wrong; empty: nothing
}

// Preflight looks whether a process with cfg could keep Stormpost's promises.
// It changes nothing, but may ask for tokens, which can replace a refresh token. An
// error is of the configuration.
func Preflight(ctx context.Context, cfg config.Config) ([]PreflightCheck, error) {
	dsn := cfg.DSN.Reveal()
	l, err := dedupe.Open(dedupe.Config{DSN: dsn, MaxConns: 4, Deadline: cfg.Ledger.Deadline})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	var checks []PreflightCheck
	add := func(name string, look func(context.Context) ([]string, error)) bool {
		cctx, cancel := context.WithTimeout(ctx, preflightLimit)
		defer cancel()
		findings, err := look(cctx)
		if err != nil {
			findings = append(findings, err.Error())
		}
		if findings == nil {
			findings = []string{}
		}
		checks = append(checks, PreflightCheck{name, findings})
		return err == nil
	}
	if add("ledger", func(ctx context.Context) ([]string, error) { return nil, l.Ping(ctx) }) {
		add("schema", func(ctx context.Context) (todo []string, err error) {
			pending, err := dedupe.Pending(ctx, dsn)
			for _, m := range pending {
				todo = append(todo, fmt.Sprintf("%s is not applied: run stormpost migrate", m.Name))
			}
			return todo, err
		})
		add("durability", l.Unsafe)
		add("numbering", func(ctx context.Context) (broken []string, err error) {
			faults, err := l.CheckNumbering(ctx)
			for _, f := range faults {
				broken = append(broken, f.String())
			}
			return broken, err
		})
	}
	if cfg.Has("worker") {
		checks = append(checks, preflightCredentials(ctx, cfg)...)
	}
	names, brokers := clusterBrokers(cfg)
	for _, name := range names {
		bc := kafkaConfig(cfg)
		bc.Brokers = brokers[name]
		b, err := broker.New(bc)
		if err != nil {
			return nil, config.Wrong(err)
		}
		check := "kafka"
		if name != message.MainCluster {
			check += " " + name
		}
		add(check, func(ctx context.Context) (lost []string, err error) {
			missing, err := b.MissingTopics(ctx)
			for _, topic := range missing {
				lost = append(lost, fmt.Sprintf("topic %s does not exist or has no leader: serve makes it at start", topic))
			}
			return lost, err
		})
	}
	return checks, nil
}

// preflightCredentials signs in on each route that has somebody to sign in to.
func preflightCredentials(ctx context.Context, cfg config.Config) (checks []PreflightCheck) {
	p := &process{cfg: cfg, log: slog.New(slog.DiscardHandler)}
	defer p.teardown()
	if _, err := p.buildProviders(); err != nil {
		return []PreflightCheck{{"credentials", []string{err.Error()}}}
	}
	for _, u := range p.creds.uses {
		check := PreflightCheck{fmt.Sprintf("credential %s of %s", u.credential.Name(), u.route), []string{}}
		cctx, cancel := context.WithTimeout(ctx, preflightLimit)
		if err := u.provider.Authenticate(cctx); err != nil {
			check.Findings = append(check.Findings, err.Error())
		}
		cancel()
		checks = append(checks, check)
	}
	return checks
}
