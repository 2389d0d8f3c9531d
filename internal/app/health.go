package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/ingest/httpapi"
)

// readyPatience is how long the ledger may take to say that it is well, when
// that decides nothing: whoever asks for readiness often waits for a second only.
const readyPatience = 700 * time.Millisecond

// ready is what must work before requests should come here: one of the stores,
// the ledger's schema, if it can be asked, and, of a process that delivers, that each route has signed in once.
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
	if cause, _ := p.ledger.RolledBack(); cause != "" && err == nil {
		err = dedupe.ErrRolledBack
	}
	numbering := p.guard.Err()
	if journal && !errors.Is(err, dedupe.ErrRefused) {
		err = nil
	}
	if journal {
		numbering = nil
	}
	all := []httpapi.Check{{Name: "ledger", Err: err}, {Name: "schema", Err: p.schema.err()}, {Name: "numbering", Err: numbering}}
	if p.ring != nil {
		all = append(all, httpapi.Check{Name: "keys", Err: p.ring.Ready()})
	}
	return append(all, p.readiness.checks()...)
}

// ledgerStands says that nothing is known that keeps the ledger from taking what
// the journals have.
func (p *process) ledgerStands(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	cause, _ := p.ledger.RolledBack()
	return cause == "" && p.guard.Err() == nil && p.ledger.Ping(ctx) == nil
}

const (
	schemaLimit = 2 * time.Second
	schemaEvery = 2 * time.Second
)

// schema is whether the ledger has what this release's migrations make. What a
// process without it accepts waits in the journal, and nothing is sent; so it shall
// not replace one that works. A ledger that can't be asked says nothing.
type schema struct{ lack atomic.Pointer[error] }

var errNotAsked = errors.New("it has not been asked yet")

func (s *schema) err() error {
	if lack := s.lack.Load(); lack != nil {
		return *lack
	}
	return errNotAsked
}

// look asks until nothing is lacking.
func (s *schema) look(ctx context.Context, behind func(context.Context) (string, error), log *slog.Logger) {
	tick := time.NewTicker(schemaEvery)
	defer tick.Stop()
	for told := false; ; {
		limit, cancel := context.WithTimeout(ctx, schemaLimit)
		step, err := behind(limit)
		cancel()
		var lack error
		if step != "" {
			lack = fmt.Errorf("%s is not applied: run stormpost migrate", step)
			if !told {
				told = true
				log.ErrorContext(ctx, "the ledger's schema is older than this release; not ready until it is migrated", "step", step)
			}
		}
		if err == nil || s.lack.Load() == nil { // what is known to be lacking stays so
			s.lack.Store(&lack)
		}
		if err == nil && step == "" {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
