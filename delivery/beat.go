package delivery

import (
	"context"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// beatTimeout bounds one heartbeat, so that a lost answer doesn't end them.
const beatTimeout = 10 * time.Second

// beat tells the ledger every BeatEvery that this worker lives, and which
// attempts it may have open: from before each claim is asked for until its end
// is durable. So neither a slow commit nor an outage of the ledger makes doubts
// of attempts that somebody still knows about.
func (w *Worker) beat(ctx context.Context) {
	tick := time.NewTicker(w.cfg.BeatEvery)
	defer tick.Stop()
	var open []message.AttemptKey
	for {
		open = open[:0]
		for _, l := range w.all {
			open = l.hand.appendOpen(open)
		}
		bctx, cancel := context.WithTimeout(ctx, beatTimeout)
		err := w.cfg.Ledger.Beat(bctx, open, w.giveUp)
		cancel()
		if ctx.Err() != nil {
			return
		}
		w.note(opBeat, err)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
