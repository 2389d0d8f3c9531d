package app

import (
	"context"
	"fmt"

	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/recovery"
)

func (p *process) buildRecovery() (err error) {
	if p.drain, err = recovery.NewDrain(recovery.DrainConfig{
		Ledger: p.ledger, Publisher: p.clusters, Backlog: p.clusters.backlog, Log: p.log, Meters: p.tel.MeterProvider,
	}); err != nil {
		return err
	}
	p.replayer = recovery.NewReplayer(p.ledger, p.log)
	return err
}

// drained hands what the journals bring to the drain.
type drained struct {
	drain   *recovery.Drain
	ledger  recovery.Ledger
	cluster *cluster
}

var _ broker.JournalHandler = drained{}

func (d drained) Enter(ctx context.Context, r broker.JournalRecord, finish func()) {
	d.drain.Enter(ctx, r.Journaled, d.cluster.source(r.Source), r.Value, finish)
}

func (d drained) Park(ctx context.Context, poison broker.Poison) error {
	source := fmt.Sprintf("%s/%d/%d", poison.Topic, poison.Partition, poison.Offset)
	parked := message.Parked{Source: d.cluster.source(source), Raw: poison.Value, Reason: poison.Reason}
	if j := poison.Journaled; j != nil {
		parked = j.Parked(parked.Source, parked.Raw, parked.Reason)
	}
	return d.ledger.ParkWhole(ctx, parked)
}
