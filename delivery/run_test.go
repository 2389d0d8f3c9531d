package delivery

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Stopping with a prompt provider leaves nothing open and nothing in doubt;
// what was not begun goes to the next worker.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		slow := func(r *running) {
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				time.Sleep(300 * time.Millisecond) // to connect
				res := r.provider.take(env, last)
				time.Sleep(time.Second) // to answer
				return res
			}
		}
		r := start(t, l, func(r *running, _ *Config) { slow(r) })
		var items []message.Item
		for range 60 {
			items = append(items, l.accept(transactional, time.Hour))
		}
		r.mustOffer(items...)
		idle(1500 * time.Millisecond) // 8 answered, 8 connecting
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if s := l.states(); s["sent"] != 8 || s["waiting"] != 8 || s["queued"] != 44 {
			t.Errorf("states: %v", s)
		}
		if n := r.finished.Load(); n != 16 {
			t.Errorf("%d records finished", n)
		}
		if err := r.offer(items[59]); !errors.Is(err, ErrStopping) {
			t.Errorf("Offer after the end: %v", err)
		}
		second := start(t, l, func(r *running, _ *Config) { slow(r) })
		second.mustOffer(items...)
		idle(time.Minute)
		if s := l.states(); s["sent"] != 60 {
			t.Errorf("states: %v", s)
		}
	})
}

// A provider that doesn't answer is waited for no longer than the grace; what it
// was handed is recorded as unknown, and listed in heartbeats until then.
func TestDrainHanging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, _ *Config) {
			r.provider.send = func(ctx context.Context, env *message.Envelope, last func() error) message.Result {
				_ = last()
				<-ctx.Done()
				return message.Result{Outcome: message.Unknown}
			}
		})
		it := l.accept(transactional, time.Hour)
		r.mustOffer(it)
		idle(time.Second)
		begun := time.Now()
		r.end()
		idle(29 * time.Second)
		if len(*r.process.beaten.Load()) != 1 {
			t.Errorf("heartbeat while stopping: %v", *r.process.beaten.Load())
		}
		if err := r.stop(); err != nil || time.Since(begun) != 30*time.Second {
			t.Errorf("stopped after %s: %v", time.Since(begun), err)
		}
		r.want(it, "unknown", 1, 0)
	})
}

// A ledger that never takes the end: Run says so, and doesn't wait for ever.
func TestDrainWithoutLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, _ *Config) {
			r.process.fault = func(op string) error {
				if op == "record" {
					return errors.New("away")
				}
				return nil
			}
		})
		it := l.accept(transactional, time.Hour)
		r.mustOffer(it)
		idle(time.Second)
		begun := time.Now()
		if err := r.stop(); err == nil || time.Since(begun) > 36*time.Second {
			t.Errorf("stopped after %s: %v", time.Since(begun), err)
		}
		r.want(it, "open", 1, 1)
	})
}

// A Send that outlasts every limit is cut off, and the sender goes on.
func TestLeash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, c *Config) {
			c.Senders[transactional] = 1
			r.provider.send = func(ctx context.Context, env *message.Envelope, last func() error) message.Result {
				if env.Position.Submission() == 2 {
					_ = last()
					<-ctx.Done()
					return message.Result{Outcome: message.Unknown}
				}
				if ctx.Err() != nil {
					t.Error("the cut reached the next attempt")
				}
				return r.provider.take(env, last)
			}
		})
		r.mustOffer(l.accept(transactional, time.Hour)) // the leash has been used before
		idle(time.Minute)
		hung, next := l.accept(transactional, time.Hour), l.accept(transactional, time.Hour)
		r.mustOffer(hung, next)
		idle(10*time.Minute + 34*time.Second)
		r.want(hung, "open", 1, 0)
		idle(2 * time.Second)
		r.want(hung, "unknown", 1, 0)
		r.want(next, "sent", 1, 1)
	})
}

func TestRunsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newLedger(t), nil)
		synctest.Wait()
		if err := r.Run(t.Context()); err == nil {
			t.Error("a second Run was let")
		}
		if err := r.Offer(t.Context(), message.Lane{}, message.Item{}, nil); err == nil {
			t.Error("an item for no lane was taken")
		}
	})
	if _, err := New(Config{}); err == nil {
		t.Error("a worker without a ledger")
	}
	wrong := map[message.Channel][]Route{message.ChannelPush: {{Provider: &fakeProvider{channel: message.ChannelEmail}}}}
	if _, err := New(Config{Ledger: newLedger(t).process(), Routes: wrong}); err == nil {
		t.Error("pushes routed to an email provider")
	}
}
