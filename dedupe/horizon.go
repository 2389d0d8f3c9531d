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
// A probe reads the last submission number, and then takes a transaction id X of
// its own. Whoever took a number up to that one had his transaction id by then,
// since accept_batch gets it first; so it is below X. Once every transaction below
// X has ended, all those numbers are visible or will never be. A snapshot's xmax
// would not do for X: it is one past the newest transaction that has ended, and
// says nothing of a newer one that runs.
//
// Numbers and ids that only a crash's victim knew are given out again. So a probe
// counts when it is on disk, and with it whatever it has read: it writes a message
// to the log, for its commit to wait.
type horizon struct {
	mu      sync.Mutex
	pending []probe
	passed  []probe   // safe ones of the last seconds, oldest first
	marks   *sync.Map // each lane's mark
	clock   serverClock
}

type probe struct {
	submission int64
	taken      time.Time
	xid        int64
}

// keepPassed is how far back a horizon can be asked for.
const keepPassed = 5 * time.Second

// mostProbes bounds the probes that wait for a long transaction.
const mostProbes = 256

func (h *horizon) probe(ctx context.Context, pool *pgxpool.Pool, deadline time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	var p probe
	var server time.Time
	asked := time.Now()
	if err := pool.QueryRow(ctx, `select case when is_called then last_value else 0 end, clock_timestamp() from position`).Scan(&p.submission, &server); err != nil {
		return unavailable("probe", err)
	}
	p.taken = time.Now()
	h.clock.told(asked, p.taken, server)
	var oldest int64
	if err := pool.QueryRow(ctx, `
		select pg_current_xact_id()::text::bigint, pg_snapshot_xmin(s)::text::bigint,
			pg_logical_emit_message(true, 'stormpost.probe', '')::text from pg_current_snapshot() s`,
	).Scan(&p.xid, &oldest, nil); err != nil {
		return unavailable("probe", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pending = append(h.pending, p)
	passed := 0
	for passed < len(h.pending) && h.pending[passed].xid <= oldest {
		h.passed = append(h.passed, h.pending[passed])
		passed++
	}
	h.pending = append(h.pending[:0], h.pending[passed:]...)
	for len(h.passed) > 1 && time.Since(h.passed[1].taken) > keepPassed {
		h.passed = h.passed[1:]
	}
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

// forget starts anew: what was probed is of another history.
func (h *horizon) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pending, h.passed, h.marks = nil, nil, nil
	h.clock.forget()
}

// position is up to where a lane's messages are all visible, of those that were
// numbered at least age ago, at most keepPassed. marks has each lane's mark, of this
// history: where the search above the horizon goes on.
func (h *horizon) position(l message.Lane, age time.Duration) (below int64, marks *sync.Map) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.marks == nil {
		h.marks = new(sync.Map)
	}
	for i := len(h.passed) - 1; i >= 0; i-- {
		if p := h.passed[i]; time.Since(p.taken) >= min(age, keepPassed) && p.submission > 0 {
			return int64(message.PositionOf(l, p.submission, message.MaxRecipients)), h.marks
		}
	}
	return math.MinInt64, h.marks
}
