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

// kafkaAnswers says whether Kafka did when it was asked last.
func (h *health) kafkaAnswers() bool {
	cause := h.cause.Load()
	return cause != nil && *cause == nil
}

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
				if err := b.EnsureJournals(pctx); err != nil {
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

// readyPatience is how long the ledger may take to say that it is well.
const readyPatience = 2 * time.Second

// ready is what must work before requests should come here: one of the stores.
// What Kafka can't carry is fed by the ledger, and what the ledger can't take is
// kept by the journal.
func (p *process) ready(ctx context.Context) []httpapi.Check {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	err := p.ledger.Ping(ctx)
	if p.health.kafkaAnswers() {
		err = nil
	}
	return []httpapi.Check{
		{Name: "ledger", Err: err},
		{Name: "keys", Err: p.ring.Ready()},
	}
}
