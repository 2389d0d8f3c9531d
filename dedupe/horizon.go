package dedupe

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/stormpost/stormpost/internal/message"
)

// A position is given out before its transaction commits, so a message may
// appear below others that are visible already. horizon knows up to where that
// can't happen any more.
//
// A probe reads, in this order, the last submission number and the clock, then
// (in a later statement, so in a later snapshot) the next transaction id X.
// Whoever took a number up to that one had his transaction id by then, since
// accept_batch gets it first; so it is below X. Once every transaction below X
// has ended, all those numbers are visible or will never be. The same holds for
// the clock and the attempts that claim_batch stamps with it.
type horizon struct {
	mu      sync.Mutex
	pending []probe
	safe    probe
}

type probe struct {
	submission int64
	at         time.Time
	xid        int64
}

// mostProbes bounds the probes that wait for a long transaction.
const mostProbes = 256

func (h *horizon) probe(ctx context.Context, pool *pgxpool.Pool, deadline time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	var p probe
	if err := pool.QueryRow(ctx, `select case when is_called then last_value else 0 end, clock_timestamp() from position`).Scan(&p.submission, &p.at); err != nil {
		return unavailable("probe", err)
	}
	var oldest int64
	if err := pool.QueryRow(ctx, `select pg_snapshot_xmax(s)::text::bigint, pg_snapshot_xmin(s)::text::bigint from pg_current_snapshot() s`).Scan(&p.xid, &oldest); err != nil {
		return unavailable("probe", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pending = append(h.pending, p)
	passed := 0
	for passed < len(h.pending) && h.pending[passed].xid <= oldest {
		h.safe = h.pending[passed]
		passed++
	}
	h.pending = append(h.pending[:0], h.pending[passed:]...)
	if len(h.pending) > mostProbes {
		// Every second one goes: the horizon only gets coarser.
		kept := h.pending[:0]
		for i := 0; i < len(h.pending); i += 2 {
			kept = append(kept, h.pending[i])
		}
		h.pending = kept
	}
	return nil
}

// position is up to where a lane's messages are all visible.
func (h *horizon) position(l message.Lane) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.safe.submission == 0 {
		return math.MinInt64
	}
	return int64(message.PositionOf(l, h.safe.submission, message.MaxRecipients))
}

// time is up to when all attempts are visible.
func (h *horizon) time() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.safe.at
}
