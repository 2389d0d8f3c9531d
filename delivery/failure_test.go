package delivery

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// A process killed at any point leaves open exactly what it may have handed
// over, and another one sends exactly the rest.
func TestKilled(t *testing.T) {
	tests := map[string]struct {
		at     func(r *running, die func()) // installs the kill
		state  string                       // of the message, after another worker came
		handed int
	}{
		"before the claim": {func(r *running, die func()) {
			r.provider.reserve = func(context.Context) error { die(); return nil }
		}, "sent", 1},
		"at the claim's door": {func(r *running, die func()) {
			r.process.fault = func(op string) error {
				if op == "claim" {
					die()
					return errKilled
				}
				return nil
			}
		}, "sent", 1},
		"after the claim": {func(r *running, die func()) {
			r.provider.send = func(ctx context.Context, _ *message.Envelope, _ func() error) message.Result {
				die()
				return message.Result{Outcome: message.Deferred}
			}
		}, "open", 0},
		"in the middle of the write": {func(r *running, die func()) {
			r.provider.send = func(ctx context.Context, _ *message.Envelope, last func() error) message.Result {
				if err := last(); err != nil {
					r.t.Error(err)
				}
				die()
				return message.Result{Outcome: message.Unknown}
			}
		}, "open", 0},
		"after the reply": {func(r *running, die func()) {
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				res := r.provider.take(env, last)
				die()
				return res
			}
		}, "open", 1},
		"after the record": {func(r *running, die func()) {
			r.process.fault = func(op string) error {
				if op == "record" {
					time.AfterFunc(time.Millisecond, die)
				}
				return nil
			}
		}, "sent", 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLedger(t)
				it := l.accept(transactional, time.Hour)
				r := start(t, l, func(r *running, c *Config) {
					c.ShutdownGrace = time.Millisecond
					tt.at(r, r.process.kill)
				})
				r.mustOffer(it)
				idle(5 * time.Second)
				if err := r.stop(); (err != nil) != (tt.state == "open") {
					t.Errorf("the killed worker's Run: %v", err)
				}
				second := start(t, l, nil)
				second.mustOffer(it)
				idle(time.Minute)
				second.want(it, tt.state, 1, tt.handed)
			})
		})
	}
}

// A process that was stopped between its claim and the last check finds that
// out by either clock, and gives the message back; then it is sent.
func TestStopped(t *testing.T) {
	clocks := map[string]func(*jumpClock, time.Duration){
		"wall":      func(c *jumpClock, d time.Duration) { c.wall.Add(int64(d)) },
		"monotonic": func(c *jumpClock, d time.Duration) { c.mono.Add(int64(d)) },
	}
	for name, jump := range clocks {
		for _, tt := range []struct {
			asleep   time.Duration
			attempts int
		}{{29 * time.Second, 1}, {31 * time.Second, 2}} {
			t.Run(name+"/"+tt.asleep.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newLedger(t)
					it := l.accept(transactional, time.Hour)
					clock := &jumpClock{read: systemClock()}
					r := start(t, l, func(r *running, c *Config) {
						c.Clock = clock.now
						r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
							if env.Attempt == 1 {
								jump(clock, tt.asleep)
							}
							return r.provider.take(env, last)
						}
					})
					r.mustOffer(it)
					idle(time.Second)
					r.want(it, "sent", tt.attempts, 1)
					if first := l.messages[it.Position].attempts[0].report; tt.attempts == 2 && (first.Outcome != message.Returned || first.Code != "claim_too_old" || first.RetryIn != 0) {
						t.Errorf("the first attempt: %+v", first)
					}
				})
			})
		}
	}
}

// A provider that uses up each claim before the last check gets no message, and
// is one that defers by its own fault: the next of the order has its turn, and
// soon most go there at once.
func TestSlowBeforeLastCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r, a, b := withOrders(t, l, nil)
		a.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
			time.Sleep(40 * time.Second)
			return a.take(env, last)
		}
		const n = 100
		for range n {
			r.mustOffer(l.accept(transactional, time.Hour))
		}
		idle(10 * time.Minute)
		if b.sent.Load() != n {
			t.Errorf("the next provider sent %d of %d", b.sent.Load(), n)
		}
		spent := 0
		for _, m := range l.messages {
			for _, at := range m.attempts {
				if at.outcome == message.Sent {
					continue
				}
				spent++
				if at.report.Outcome != message.Deferred || at.report.Code != "claim_too_old" || !at.report.Fault {
					t.Errorf("an attempt: %+v", at.report)
				}
			}
		}
		if spent == 0 || spent > 60 { // some until the breaker opens, then one at a time
			t.Errorf("%d attempts were spent", spent)
		}
	})
}

// A claim that took too long isn't even begun to be handed over.
func TestSlowClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		it := l.accept(transactional, time.Hour)
		sends, slow := 0, true
		r := start(t, l, func(r *running, c *Config) {
			c.FeedAge = time.Hour
			r.process.fault = func(op string) error {
				if op == "claim" && slow {
					slow = false
					time.Sleep(31 * time.Second)
				}
				return nil
			}
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				sends++
				return r.provider.take(env, last)
			}
		})
		r.mustOffer(it)
		idle(33 * time.Second)
		r.want(it, "sent", 2, 1)
		if sends != 1 {
			t.Errorf("%d sends", sends)
		}
	})
}

// What a slow claim leaves too little time for is not the provider's fault, and
// comes again at once.
func TestSlowClaimIsNotTheProviders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		it := l.accept(transactional, time.Hour)
		slow := true
		r := start(t, l, func(r *running, c *Config) {
			c.FeedAge = time.Hour
			r.process.fault = func(op string) error {
				if op == "claim" && slow {
					slow = false
					time.Sleep(25 * time.Second)
				}
				return nil
			}
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				if left := time.Until(env.Until); left < 15*time.Second {
					t.Errorf("it has %v", left)
				}
				time.Sleep(10 * time.Second)
				return r.provider.take(env, last)
			}
		})
		r.mustOffer(it)
		idle(46 * time.Second)
		r.want(it, "sent", 2, 1)
		if first := l.messages[it.Position].attempts[0].report; first.Outcome != message.Returned || first.Code != "claim_too_old" || first.RetryIn != 0 {
			t.Errorf("the first attempt: %+v", first)
		}
	})
}

// The message's life ends between the claim and the last check.
func TestExpiresInHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		it := l.accept(transactional, 10*time.Second)
		r := start(t, l, func(r *running, _ *Config) {
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				time.Sleep(11 * time.Second)
				return r.provider.take(env, last)
			}
		})
		r.mustOffer(it)
		idle(20 * time.Second)
		r.want(it, "expire", 2, 0)
		if first := l.messages[it.Position].attempts[0].report; first.Outcome != message.Returned || first.Code != "expired" || first.RetryIn > lapse {
			t.Errorf("the first attempt: %+v", first)
		}
		late := l.accept(transactional, time.Second)
		idle(2 * time.Second)
		r.mustOffer(late)
		synctest.Wait()
		r.want(late, "expire", 1, 0)
	})
}

func TestPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		before, after, refused, sent := l.accept(transactional, time.Hour), l.accept(transactional, time.Hour), l.accept(transactional, time.Hour), l.accept(transactional, time.Hour)
		clock := &jumpClock{read: systemClock()}
		r := start(t, l, func(r *running, c *Config) {
			c.Clock = clock.now
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				switch env.Position {
				case before.Position:
					panic("before\x00")
				case after.Position:
					_ = last()
					panic(errors.New("after"))
				case refused.Position:
					clock.mono.Add(int64(time.Minute))
					_ = last()
					panic("refused")
				}
				return r.provider.take(env, last)
			}
		})
		for _, it := range []message.Item{before, after, refused, sent} { // one by one: a clock jumps
			r.mustOffer(it)
			synctest.Wait()
		}
		r.want(before, "hold", 2, 0)
		r.want(after, "unknown", 1, 0)
		r.want(refused, "hold", 2, 0)
		r.want(sent, "sent", 1, 1)
		if got := l.last(before.Position).reason; got != "panic: before " {
			t.Errorf("held because %q", got)
		}
		if got := l.last(after.Position).report; got.Code != "panic" || got.Reply != "panic: after" || got.Poison {
			t.Errorf("after the last check: %+v", got)
		}
	})
}

// A provider that keeps the last check, asks twice, or says nothing.
func TestBrokenContracts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		twice, silent, unasked, poison, next := l.accept(transactional, time.Hour), l.accept(transactional, time.Hour), l.accept(transactional, time.Hour), l.accept(transactional, time.Hour), l.accept(transactional, time.Hour)
		var kept func() error
		r := start(t, l, func(r *running, c *Config) {
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				switch env.Position {
				case twice.Position:
					if first, second := last(), last(); first != nil || !errors.Is(second, errAsked) {
						t.Errorf("asked twice: %v, %v", first, second)
					}
					return message.Result{Outcome: message.Deferred}
				case silent.Position:
					return message.Result{}
				case unasked.Position:
					kept = last
					return message.Result{Outcome: message.Sent}
				case poison.Position:
					_ = last()
					return message.Result{Outcome: message.Returned, Poison: true}
				}
				if err := kept(); !errors.Is(err, errAsked) {
					t.Errorf("another attempt's last check: %v", err)
				}
				return r.provider.take(env, last)
			}
		})
		for _, it := range []message.Item{twice, silent, unasked, poison, next} {
			r.mustOffer(it)
			synctest.Wait()
		}
		r.want(twice, "waiting", 1, 0)
		r.want(silent, "unknown", 1, 0)
		r.want(unasked, "sent", 1, 0)
		r.want(poison, "unknown", 1, 0)
		r.want(next, "sent", 1, 1)
	})
}

// The ledger is away: claims that it refuses are asked again, their items stay
// unfinished; ends wait to be recorded, their attempts in each heartbeat.
func TestLedgerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		it := l.accept(transactional, time.Hour)
		var claims, records trouble
		r := start(t, l, func(r *running, _ *Config) {
			r.process.fault = func(op string) error {
				switch op {
				case "claim":
					return claims.err()
				case "record":
					return records.err()
				}
				return nil
			}
		})
		claims.on.Store(true)
		records.on.Store(true)
		r.mustOffer(it)
		idle(time.Minute)
		r.want(it, "queued", 0, 0)
		if r.finished.Load() != 0 || r.provider.held.Load() != 0 {
			t.Error("finished, or a slot held, without a claim")
		}
		claims.on.Store(false)
		idle(time.Minute)
		r.want(it, "open", 1, 1)
		if r.finished.Load() != 1 {
			t.Error("not finished although claimed")
		}
		if k := (message.AttemptKey{Position: it.Position, Attempt: 1}); len(*r.process.beaten.Load()) != 1 || (*r.process.beaten.Load())[0] != k || r.process.beats.Load() < 50 {
			t.Errorf("heartbeat: %v", *r.process.beaten.Load())
		}
		records.on.Store(false)
		idle(10 * time.Second)
		r.want(it, "sent", 1, 1)
		if len(*r.process.beaten.Load()) != 0 {
			t.Errorf("heartbeat after the record: %v", *r.process.beaten.Load())
		}
	})
}
