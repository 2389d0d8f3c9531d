package app

import (
	"context"
	"log/slog"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/recovery"
)

// Clusters are the names of cfg's Kafka clusters.
func Clusters(cfg config.Config) []string {
	names, _ := clusterBrokers(cfg)
	return names
}

// Evacuate moves lanes to another Kafka cluster of cfg, as plan says; with dryRun
// it only says what it would do. resumed tells that it goes on with one that was
// ended before. progress is as recovery.Evacuate has it.
func Evacuate(ctx context.Context, cfg config.Config, plan recovery.EvacuatePlan, dryRun bool, progress func(recovery.EvacuateProgress)) (moves []recovery.LaneMove, resumed bool, err error) {
	_, brokers := clusterBrokers(cfg)
	l, err := dedupe.Open(dedupe.Config{DSN: cfg.DSN.Reveal(), MaxConns: 4, Deadline: cfg.Ledger.Deadline})
	if err != nil {
		return nil, false, err
	}
	defer l.Close()
	bc := kafkaConfig(cfg)
	bc.Brokers = brokers[plan.To]
	target, err := broker.New(bc)
	if err != nil {
		return nil, false, config.Wrong(err)
	}
	if dryRun {
		return recovery.PlanEvacuation(ctx, l, target, plan)
	}
	return recovery.Evacuate(ctx, l, target, plan, slog.New(slog.DiscardHandler), progress)
}
