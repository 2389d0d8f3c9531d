package delivery

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Campaign messages hang at the provider, and more of them wait than there is
// room for; the more urgent lanes of the same provider go on.
func TestLanesDoNotDelayEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, c *Config) {
			c.Senders = map[message.Lane]int{campaign: 50}
			r.provider.send = func(ctx context.Context, env *message.Envelope, last func() error) message.Result {
				if env.Position.Lane() == campaign {
					_ = last()
					<-ctx.Done()
					return message.Result{Outcome: message.Unknown}
				}
				return r.provider.take(env, last)
			}
		})
		hung, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for hung.Err() == nil {
				it := l.accept(campaign, time.Hour)
				_ = r.Offer(hung, campaign, it, nil)
			}
		}()
		idle(time.Minute)
		synctest.Wait()
		if n := r.provider.held.Load(); n != 16-4-2 {
			t.Fatalf("campaign holds %d of 16 slots", n)
		}
		for _, lane := range []message.Lane{transactional, trigger, push} {
			for range 100 {
				it := l.accept(lane, time.Hour)
				r.mustOffer(it)
				synctest.Wait() // no time passes
				r.want(it, "sent", 1, 1)
			}
		}
	})
}

// A provider that can't be used costs no attempt and no memory, is not asked in
// a hot loop, and gets everything once it is back. What expires meanwhile ends.
func TestProviderDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		var down trouble
		down.on.Store(true)
		r := start(t, l, func(r *running, _ *Config) {
			r.provider.reserve = func(context.Context) error { return down.err() }
		})
		dying := []message.Item{l.accept(transactional, time.Minute), l.accept(transactional, time.Minute)}
		r.mustOffer(dying...)
		synctest.Wait()
		waiting, cancel := context.WithTimeout(t.Context(), 50*time.Second)
		defer cancel()
		n := 2
		for ; ; n++ {
			if err := r.Offer(waiting, transactional, l.accept(transactional, time.Hour), nil); err != nil {
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
				break
			}
		}
		if most := 8 + routers + 64; n != most { // senders, routers and the queue
			t.Errorf("%d items taken, want %d", n, most)
		}
		ready, open := r.lanes[message.Transactional][message.ChannelEmail].hand.counts()
		if ready > 8+routers+64+64 || open != 0 || r.process.claims.Load() != 0 || r.finished.Load() != 0 {
			t.Errorf("%d in hand, %d open, %d claims, %d finished", ready, open, r.process.claims.Load(), r.finished.Load())
		}
		idle(9 * time.Minute)
		if n := r.provider.reserved.Load(); n < 50 || n > 150 {
			t.Errorf("asked %d times in 10 minutes", n)
		}
		for _, it := range dying {
			r.want(it, "expire", 1, 0)
		}
		if r.finished.Load() != 2 {
			t.Errorf("%d finished, want the 2 expired", r.finished.Load())
		}
		down.on.Store(false)
		idle(time.Minute)
		if s := l.states(); s["sent"] != n-1 { // the one that Offer refused came by the feed
			t.Errorf("%d messages: %v", n+1, s)
		}
	})
}

// Offer waits for room until its context or the worker ends, and leaves nothing
// behind then.
func TestOfferWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, c *Config) {
			c.FeedAge = time.Hour
			r.provider.reserve = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		})
		for range 8 + routers + 64 {
			r.mustOffer(l.accept(trigger, time.Hour))
			synctest.Wait()
		}
		ready := func() int {
			n, _ := r.lanes[message.Trigger][message.ChannelEmail].hand.counts()
			return n
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Offer(ctx, trigger, l.accept(trigger, time.Hour), nil); !errors.Is(err, context.DeadlineExceeded) || ready() != 72+routers {
			t.Errorf("%v, %d in hand", err, ready())
		}
		result := make(chan error)
		go func() { result <- r.offer(l.accept(trigger, time.Hour)) }()
		synctest.Wait()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if err := <-result; !errors.Is(err, ErrStopping) || ready() != 64 {
			t.Errorf("%v, %d in hand", err, ready())
		}
	})
}

// A channel without a provider keeps its messages.
func TestNoProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(_ *running, c *Config) { delete(c.Routes, message.ChannelPush) })
		it, other := l.accept(push, time.Hour), l.accept(transactional, time.Hour)
		r.mustOffer(it, other)
		idle(30 * time.Minute)
		r.want(it, "queued", 0, 0)
		r.want(other, "sent", 1, 1)
		idle(time.Hour)
		r.want(it, "expire", 1, 0)
	})
}

// Deferred messages come back by the schedule, never before the provider allows
// it, and until their life ends.
func TestDeferred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		var last time.Time
		tries := 0
		r := start(t, l, func(r *running, c *Config) {
			r.provider.send = func(_ context.Context, env *message.Envelope, _ func() error) message.Result {
				tries++
				if tries > 1 && time.Since(last) < 5*time.Minute {
					t.Errorf("attempt %d after %s", env.Attempt, time.Since(last))
				}
				last = time.Now()
				return message.Result{Outcome: message.Deferred, Code: "450", RetryAfter: 5 * time.Minute}
			}
		})
		it := l.accept(transactional, 62*time.Minute)
		r.mustOffer(it)
		idle(2 * time.Hour)
		r.want(it, "expire", tries+1, 0)
		if tries < 5 || tries > 13 {
			t.Errorf("%d attempts in an hour", tries)
		}
		if late := l.last(it.Position).at.Sub(l.messages[it.Position].expires); late > 3*time.Second {
			t.Errorf("ended %s after its life", late)
		}
	})
}

// A lost answer is held, or resent where a policy says so.
func TestDoubts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, c *Config) {
			c.Doubts = map[message.Lane]DoubtPolicy{trigger: ResendDoubts}
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				if env.Attempt == 1 {
					_ = last()
					return message.Result{Outcome: message.Unknown}
				}
				return r.provider.take(env, last)
			}
		})
		held, resent := l.accept(transactional, time.Hour), l.accept(trigger, time.Hour)
		r.mustOffer(held, resent)
		idle(10 * time.Minute)
		r.want(held, "unknown", 1, 0)
		r.want(resent, "sent", 2, 1)
		if by := l.messages[resent.Position].attempts[0].report.Resend; by != "policy:trigger.email" {
			t.Errorf("resent by %q", by)
		}
	})
	if _, err := New(Config{Ledger: newLedger(t).process(), Doubts: map[message.Lane]DoubtPolicy{trigger: "guess"}}); err == nil {
		t.Error("a policy that there isn't was taken")
	}
}

func TestTestMessagesReachNoProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, nil)
		it := l.accept(transactional, time.Hour)
		l.messages[it.Position].test = true
		r.mustOffer(it)
		synctest.Wait()
		r.want(it, "sent", 1, 0)
		if got := l.last(it.Position).report; got.Provider != "sandbox" || r.provider.sent.Load() != 0 {
			t.Errorf("sent by %q", got.Provider)
		}
	})
}
