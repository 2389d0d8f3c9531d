package delivery

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// holding is a ledger that holds a lane or a provider until it is told.
type holding struct {
	Ledger
	held func(message.Item) bool
}

func (h holding) Claim(ctx context.Context, it message.Item) (message.Claim, error) {
	if h.held(it) {
		return message.Claim{Verdict: message.HeldBack}, nil
	}
	return h.Ledger.Claim(ctx, it)
}

// What is held back is neither finished nor lost: it is sent soon after the
// release, once, and the other lanes never waited.
func TestHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		var held atomic.Bool
		held.Store(true)
		var mu sync.Mutex
		var names []string
		r := start(t, l, func(_ *running, c *Config) {
			c.Ledger = holding{c.Ledger, func(it message.Item) bool {
				if it.Position.Lane() != transactional {
					return false
				}
				mu.Lock()
				defer mu.Unlock()
				names = append(names, it.Provider)
				return held.Load()
			}}
		})
		it, other := l.accept(transactional, time.Hour), l.accept(campaign, time.Hour)
		r.mustOffer(it)
		r.mustOffer(other)
		idle(10 * time.Second)
		synctest.Wait()
		r.want(it, "queued", 0, 0)
		r.want(other, "sent", 1, 1)
		if r.finished.Load() != 1 {
			t.Errorf("%d finished, want the other lane's alone", r.finished.Load())
		}
		mu.Lock()
		if n := len(names); n < 5 || n > 30 || names[0] != "fake" {
			t.Errorf("asked %d times in 10 s, for %q", n, names)
		}
		mu.Unlock()
		held.Store(false)
		idle(2 * time.Second)
		synctest.Wait()
		r.want(it, "sent", 1, 1)
		held.Store(true)
		stuck := l.accept(transactional, time.Hour)
		r.mustOffer(stuck)
		idle(time.Second)
		if err := r.stop(); err != nil { // a held message keeps nobody
			t.Error(err)
		}
		r.want(stuck, "queued", 0, 0)
	})
}
