package app

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/watch"
)

// health knows how Kafka is doing: it is asked every second, through a fresh
// connection, since clients believe in a dead cluster for a while.
type health struct {
	away    atomic.Bool
	cause   atomic.Pointer[error]
	since   atomic.Int64 // when away changed last, in Unix nanoseconds
	cluster atomic.Pointer[string]
	// journals is whether the journals are there.
	journals atomic.Bool
}

func (h *health) kafkaAway() bool { return h.away.Load() }

// kafka is what is known of Kafka.
func (h *health) kafka() (k watch.Kafka) {
	if h.away.Load() {
		if cause := h.cause.Load(); cause != nil && *cause != nil {
			k.Away = *cause
			k.For = max(0, time.Since(time.Unix(0, h.since.Load())))
		}
	}
	if id := h.cluster.Load(); id != nil {
		k.Cluster = *id
	}
	return k
}

// canJournal says whether the journals were made and Kafka answered when it was
// asked last.
func (h *health) canJournal() bool {
	cause := h.cause.Load()
	return h.journals.Load() && cause != nil && *cause == nil
}

// makeJournals makes the journals' topics. That they can't be made is no reason to
// do without the lanes'.
func (h *health) makeJournals(ctx context.Context, b *broker.Broker, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	if err := b.EnsureJournals(ctx); err != nil {
		log.Warn("there is no journal: with the ledger away, nothing is accepted; trying again", "error", err)
		return
	}
	h.journals.Store(true)
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
				made = true
			}
			c, err := b.Probe(pctx)
			if err == nil {
				h.cluster.Store(&c.ID)
			}
			return err
		}()
		if ctx.Err() != nil {
			return
		}
		if err == nil && !h.journals.Load() {
			h.makeJournals(ctx, b, log)
		}
		h.cause.Store(&err)
		if was := h.away.Swap(err != nil); was != (err != nil) {
			h.since.Store(time.Now().UnixNano())
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

// readyPatience is how long the ledger may take to say that it is well, when
// that decides nothing: whoever asks for readiness often waits for a second only.
const readyPatience = 700 * time.Millisecond

// ready is what must work before requests should come here: one of the stores.
// What Kafka can't carry is fed by the ledger, and what the ledger can't take is
// kept by the journal, also what it can't number. A ledger that refuses us is another matter: with such a
// DSN a new release shall not replace one that works.
func (p *process) ready(ctx context.Context) []httpapi.Check {
	journal := p.health.canJournal()
	if journal {
		limit, cancel := context.WithTimeout(ctx, readyPatience)
		defer cancel()
		ctx = limit
	}
	err := p.ledger.Ping(ctx)
	numbering := p.guard.Err()
	if journal && !errors.Is(err, dedupe.ErrRefused) {
		err = nil
	}
	if journal {
		numbering = nil
	}
	return []httpapi.Check{
		{Name: "ledger", Err: err},
		{Name: "numbering", Err: numbering},
		{Name: "keys", Err: p.ring.Ready()},
	}
}
