package delivery

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// forgetful is a provider that absorbs repeats for a day, and whose answers to
// the first lost hand-overs don't arrive.
func forgetful(r *running, lost int, change func(*fakeProvider)) {
	r.provider.window = 24 * time.Hour
	r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
		if err := last(); err != nil {
			return message.Result{Outcome: message.Returned}
		}
		r.ledger.handOver(env)
		if env.Attempt <= lost {
			return message.Result{Outcome: message.Unknown}
		}
		return message.Result{Outcome: message.Sent}
	}
	if change != nil {
		change(r.provider)
	}
}

// settled waits until p neither waits nor is open, in the bubble's time.
func settled(t *testing.T, l *fakeLedger, p message.Position, most time.Duration) (state string, attempts, handed int) {
	t.Helper()
	for begun := time.Now(); time.Since(begun) < most; time.Sleep(time.Second) {
		synctest.Wait()
		if state, attempts, handed = l.view(p); state != "waiting" && state != "open" && state != "queued" {
			return state, attempts, handed
		}
	}
	t.Fatalf("after %v it is %s, with %d attempts", most, state, attempts)
	return "", 0, 0
}

// A lost answer resolves itself where the repeat is absorbed, by a policy that
// names provider and account.
func TestRepeatResolvesDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, _ *Config) { forgetful(r, 2, nil) })
		it := l.accept(transactional, 48*time.Hour)
		if err := r.offer(it); err != nil {
			t.Fatal(err)
		}
		state, attempts, handed := settled(t, l, it.Position, time.Hour)
		if state != "sent" || attempts != 3 || handed != 3 {
			t.Errorf("it is %s after %d attempts, %d of them handed over", state, attempts, handed)
		}
		if by := l.messages[it.Position].attempts[0].report.Resend; by != "policy:repeat@fake:account" {
			t.Errorf("decided by %q", by)
		}
	})
}

// Where the repeat might not be absorbed, none is made, and a person is asked.
func TestRepeatIsNotRisked(t *testing.T) {
	other := "another"
	for name, tc := range map[string]struct {
		change func(*fakeProvider)
		after  func(*running)
		handed int
	}{
		"nothing is absorbed":  {func(p *fakeProvider) { p.window = 0 }, nil, 1},
		"the window is over":   {func(p *fakeProvider) { p.window = time.Second }, nil, 1},
		"another account":      {nil, func(r *running) { r.provider.account.Store(&other) }, 1},
		"it won't tell more":   {func(p *fakeProvider) { sayNoMore(p) }, nil, 1},
		"the window ends soon": {func(p *fakeProvider) { p.window = 3 * time.Minute }, nil, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLedger(t)
				var last time.Time // of the hand-overs
				r := start(t, l, func(r *running, c *Config) {
					c.Retry = Schedule{Base: time.Minute, Max: time.Hour}
					forgetful(r, 100, tc.change)
					send := r.provider.send
					r.provider.send = func(ctx context.Context, env *message.Envelope, check func() error) message.Result {
						last = time.Now()
						return send(ctx, env, check)
					}
				})
				it := l.accept(transactional, 48*time.Hour)
				if err := r.offer(it); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if tc.after != nil {
					tc.after(r)
				}
				state, _, handed := settled(t, l, it.Position, 3*time.Hour)
				if state != "unknown" || handed < 1 || handed > 4 || tc.handed == 1 && handed != 1 {
					t.Errorf("it is %s, handed over %d times", state, handed)
				}
				if age := last.Sub(l.messages[it.Position].attempts[0].at); r.provider.window > 0 && age > r.provider.window*7/8 {
					t.Errorf("the last hand-over was %v after the first", age)
				}
			})
		})
	}
}

func sayNoMore(p *fakeProvider) {
	send := p.send
	p.send = func(ctx context.Context, env *message.Envelope, last func() error) message.Result {
		r := send(ctx, env, last)
		r.NoRepeat = true
		return r
	}
}

// Another worker, whose provider has the same name and another account, doesn't
// hand over what rests on the first one's policy, nor what was deferred since.
func TestRepeatOutlivesItsWorker(t *testing.T) {
	for name, second := range map[string]message.Outcome{"lost": 0, "then deferred": message.Deferred} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLedger(t)
				first := start(t, l, func(r *running, c *Config) {
					forgetful(r, 1, nil)
					send := r.provider.send
					r.provider.send = func(ctx context.Context, env *message.Envelope, last func() error) message.Result {
						if env.Attempt == 2 && env.Account != "account" {
							t.Errorf("the repeat is tied to account %q", env.Account)
						}
						res := send(ctx, env, last)
						if env.Attempt == 2 && second != 0 {
							res.Outcome = second
						}
						return res
					}
				})
				it := l.accept(transactional, 48*time.Hour)
				if err := first.offer(it); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if second != 0 {
					for state, attempts, _ := l.view(it.Position); state != "waiting" || attempts != 2; state, attempts, _ = l.view(it.Position) {
						time.Sleep(time.Second)
						synctest.Wait()
					}
				}
				if err := first.stop(); err != nil {
					t.Fatal(err)
				}
				_, _, before := l.view(it.Position)
				start(t, l, func(r *running, _ *Config) {
					forgetful(r, 0, nil)
					other := "another"
					r.provider.account.Store(&other)
				})
				state, _, handed := settled(t, l, it.Position, 3*time.Hour)
				if state != "unknown" || handed != before || l.last(it.Position).report.Code != "repeat_not_absorbed" {
					t.Errorf("it is %s (%s), handed over %d times, want %d", state, l.last(it.Position).report.Code, handed, before)
				}
			})
		})
	}
}
