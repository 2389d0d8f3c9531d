package app

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/broker"
)

// health knows how Kafka is doing: it is asked every second, through a fresh
// connection, since clients believe in a dead cluster for a while.
type health struct {
	away  atomic.Bool
	cause atomic.Pointer[error]
}

func (h *health) kafkaAway() bool { return h.away.Load() }

// watchKafka makes the topics once the cluster answers, and keeps asking.
func (h *health) watchKafka(ctx context.Context, b *broker.Broker, log *slog.Logger) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	made := false
	for {
		err := func() error {
			pctx, cancel := context.WithTimeout(ctx, 4*time.Second)
			defer cancel()
			if !made {
				if err := b.EnsureTopics(pctx); err != nil {
					return err
				}
				made = true
			}
			_, err := b.Probe(pctx)
			return err
		}()
		if ctx.Err() != nil {
			return
		}
		h.cause.Store(&err)
		if was := h.away.Swap(err != nil); was != (err != nil) {
			if err != nil {
				log.Warn("Kafka is away; the ledger feeds the workers", "error", err)
			} else {
				log.Info("Kafka is back")
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// ready is what must work before requests should come here. Kafka needn't: what
// it can't carry is fed by the ledger.
func (p *process) ready(ctx context.Context) []httpapi.Check {
	return []httpapi.Check{
		{Name: "ledger", Err: p.ledger.Ping(ctx)},
		{Name: "numbering", Err: p.guard.Err()},
		{Name: "keys", Err: p.ring.Ready()},
	}
}
