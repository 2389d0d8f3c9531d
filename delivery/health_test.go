package delivery

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// A provider is in trouble while it can't be used and somebody needs it.
func TestGateHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		p := &fakeProvider{ledger: newLedger(t), channel: message.ChannelEmail, reserve: func(context.Context) error {
			if down.Load() {
				return errors.New("connection refused")
			}
			return nil
		}}
		g := testGate(p, 4)
		if h := g.health(); h.Trouble != "" || h.Waiting != 0 || h.Name != p.Name() || h.Channel != message.ChannelEmail {
			t.Errorf("at first: %+v", h)
		}
		down.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{}, 3)
		for range 3 {
			go func() {
				_, _ = g.reserve(ctx, message.Transactional, time.Time{}, nil)
				done <- struct{}{}
			}()
		}
		time.Sleep(20 * time.Second)
		if h := g.health(); h.Trouble != "connection refused" || h.Waiting != 3 || h.Since < 19*time.Second {
			t.Errorf("down: %+v", h)
		}
		cancel()
		for range 3 {
			<-done
		}
		if h := g.health(); h.Trouble != "" || h.Waiting != 0 {
			t.Errorf("down, but nobody needs it: %+v", h)
		}
		down.Store(false)
		time.Sleep(20 * time.Second)
		l, err := g.reserve(t.Context(), message.Transactional, time.Time{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if h := g.health(); h.Trouble != "" {
			t.Errorf("up: %+v", h)
		}
		l.release()
		g.stop()
	})
}

// What hand-overs end with is counted for each provider.
func TestOutcomesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, c *Config) {
			ends := []message.Outcome{message.Sent, message.Sent, message.Rejected, message.Unknown}
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				if err := last(); err != nil {
					return message.Result{Outcome: message.Returned}
				}
				end := ends[0]
				ends = ends[1:]
				return message.Result{Outcome: end}
			}
		})
		for range 4 {
			r.mustOffer(l.accept(transactional, time.Hour))
			synctest.Wait()
		}
		h := r.Providers()[0]
		if h.Taken != 2 || h.Rejected != 1 || h.Unknown != 1 || h.Deferred != 0 {
			t.Errorf("%+v", h)
		}
	})
}
