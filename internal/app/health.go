package app

import (
	"context"
	"errors"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/ingest/httpapi"
)

// readyPatience is how long the ledger may take to say that it is well, when
// that decides nothing: whoever asks for readiness often waits for a second only.
const readyPatience = 700 * time.Millisecond

// ready is what must work before requests should come here: one of the stores,
// and, of a process that delivers, that each route has signed in once.
// What Kafka can't carry is fed by the ledger, and what the ledger can't take is
// kept by the journal, also what it can't number. A ledger that refuses us is another matter: with such a
// DSN a new release shall not replace one that works.
func (p *process) ready(ctx context.Context) []httpapi.Check {
	journal := p.clusters.canJournal()
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
	all := []httpapi.Check{{Name: "ledger", Err: err}, {Name: "numbering", Err: numbering}}
	if p.ring != nil {
		all = append(all, httpapi.Check{Name: "keys", Err: p.ring.Ready()})
	}
	return append(all, p.readiness.checks()...)
}
