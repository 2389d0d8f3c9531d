package delivery

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// failing is a provider that lets everybody in and answers with one result
// while it is broken.
type failing struct {
	*fakeProvider
	broken trouble
	result message.Result
	takes  atomic.Int64 // nanoseconds
	tries  atomic.Int64 // while it was broken
}

func fail(p *fakeProvider, r message.Result) *failing {
	f := &failing{fakeProvider: p, result: r}
	p.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
		if !f.broken.on.Load() {
			return p.take(env, last)
		}
		f.tries.Add(1)
		if err := last(); err != nil {
			return message.Result{Outcome: message.Returned}
		}
		time.Sleep(time.Duration(f.takes.Load()))
		return f.result
	}
	return f
}

// The answers of a provider that is in trouble itself.
var faults = map[string]message.Result{
	"503":  {Outcome: message.Unknown, Code: "503", Fault: true},
	"421":  {Outcome: message.Deferred, Code: "421", Fault: true},
	"lost": {Outcome: message.Unknown},
	"401":  {Outcome: message.Returned, Code: "401", Fault: true},
}

// A provider that lets everybody in and fails all it gets is given few. The
// others go to the next of their order with no attempt spent, and when one of
// those that try it is taken, it has its turn again.
func TestBrokenProviderIsPassedOver(t *testing.T) {
	for name, result := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLedger(t)
				r, a, b := withOrders(t, l, nil)
				f := fail(a, result)
				f.broken.on.Store(true)
				const n = 3000
				for range n {
					r.mustOffer(l.accept(transactional, 24*time.Hour))
					idle(10 * time.Millisecond)
				}
				if tries := f.tries.Load(); tries > 40 {
					t.Errorf("the broken provider got %d of %d", tries, n)
				}
				spent := 0
				for _, m := range l.messages {
					if len(m.attempts) > 1 || len(m.attempts) == 1 && m.attempts[0].outcome != message.Sent {
						spent++
					}
				}
				if tries := int(f.tries.Load()); spent > tries || b.sent.Load() < n-f.tries.Load() {
					t.Errorf("%d tries, but %d messages had another attempt; b sent %d", tries, spent, b.sent.Load())
				}
				h := r.Providers()[0]
				if h.Name != "a" || !strings.Contains(h.Trouble, "by its own fault") || h.Since < 20*time.Second {
					t.Errorf("%+v", h)
				}
				f.broken.on.Store(false)
				for range 100 { // it is tried with what comes
					r.mustOffer(l.accept(transactional, 24*time.Hour))
					idle(200 * time.Millisecond)
				}
				for range 50 {
					it := l.accept(transactional, 24*time.Hour)
					r.mustOffer(it)
					idle(time.Second)
					for range 10 { // its pace may be slow yet
						if s, _, _ := l.view(it.Position); s == "sent" {
							break
						}
						idle(time.Second)
					}
					if s, _, _ := l.view(it.Position); s != "sent" || l.last(it.Position).report.Provider != "a" {
						t.Fatalf("after it was mended one is %s, and didn't go to it", s)
					}
				}
			})
		})
	}
}

// Alone, a provider that fails everything is tried once in some seconds, costs
// no other message an attempt, and gets everything when it is mended: also when
// those that try it get no answer for a long time.
func TestBrokenProviderAlone(t *testing.T) {
	for name, takes := range map[string]time.Duration{"at once": 0, "after minutes": 5 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLedger(t)
				var f *failing
				r := start(t, l, func(r *running, c *Config) {
					f = fail(r.provider, faults["421"])
				})
				f.broken.on.Store(true)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				const n = 400
				go func() {
					for range n {
						if r.Offer(ctx, transactional, l.accept(transactional, 24*time.Hour), nil) != nil {
							return
						}
					}
				}()
				idle(time.Minute)
				first := f.tries.Load()
				f.takes.Store(int64(takes))
				idle(10 * time.Minute)
				if got := f.tries.Load() - first; got < 8 || got > 80 {
					t.Errorf("%d tries in ten minutes", got)
				}
				if h := r.Providers()[0]; h.Trouble == "" || h.Since < 10*time.Minute || h.Waiting == 0 {
					t.Errorf("%+v", h)
				}
				f.broken.on.Store(false)
				idle(15 * time.Second)
				if h := r.Providers()[0]; h.Trouble != "" {
					t.Errorf("mended: %+v", h)
				}
				idle(2 * time.Hour)
				if s := l.states(); s["sent"] != n {
					t.Errorf("states: %v", s)
				}
				if h := r.Providers()[0]; h.Trouble != "" {
					t.Errorf("at the end: %+v", h)
				}
			})
		})
	}
}

// What doesn't open the breaker: few failures, what recipients or their messages
// are to blame for, and failures among which enough is taken.
func TestBreakerStaysClosed(t *testing.T) {
	greylisted := message.Result{Outcome: message.Deferred, Code: "450"}
	rejected := message.Result{Outcome: message.Rejected, Code: "550"}
	fault := faults["421"]
	for name, tt := range map[string]struct {
		result func(i int) message.Result
		n      int
	}{
		"a handful":  {func(int) message.Result { return fault }, breakEnough - 1},
		"greylisted": {func(int) message.Result { return greylisted }, 1000},
		"rejected":   {func(int) message.Result { return rejected }, 1000},
		"half": {func(i int) message.Result {
			if i%2 == 0 {
				return message.Result{Outcome: message.Sent}
			}
			return fault
		}, 1000},
		"a short row": {func(i int) message.Result {
			if i%300 < 250 {
				return message.Result{Outcome: message.Sent}
			}
			return fault
		}, 3000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := testGate(&fakeProvider{channel: message.ChannelEmail}, 4)
				defer g.stop()
				for i := range tt.n {
					(&lease{gate: g, breaker: g.breaker.Load()}).learn(tt.result(i), "", 0)
					time.Sleep(10 * time.Millisecond)
					if g.state.Load() != gateOpen {
						t.Fatalf("shut after %d: %v", i+1, g.trouble)
					}
				}
			})
		})
	}
}

// What was handed over before the breaker opened says nothing about the provider
// after it closed again.
func TestLateFaultsDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := testGate(&fakeProvider{channel: message.ChannelEmail}, 0)
		defer g.stop()
		take := func() lease {
			l, err := g.reserve(t.Context(), message.Transactional, time.Time{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		var before []lease
		for range 100 {
			before = append(before, take())
		}
		for _, l := range before[:breakEnough] {
			l.learn(faults["503"], "", 0)
			l.release()
		}
		if g.usable() {
			t.Fatal("it is still open")
		}
		before[50].learn(message.Result{Outcome: message.Sent}, "", 0) // nor does an answer open it
		if g.usable() {
			t.Error("a late answer opened it")
		}
		l := take()
		if g.usable() || l.breaker != nil {
			t.Error("it is open before the one that tried was answered")
		}
		l.learn(message.Result{Outcome: message.Sent}, "", 0)
		l.release()
		if g.state.Load() != gateOpen {
			t.Fatal("it is still shut")
		}
		for _, l := range before[breakEnough:] {
			l.learn(faults["503"], "", 0)
			l.release()
		}
		if g.state.Load() != gateOpen {
			t.Error("late faults shut it")
		}
	})
}

// One that tries and is held back, or isn't sent for another reason, leaves the
// trial to the next at once: a held lane keeps nobody from finding out.
func TestTrialWithoutVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(Route{Provider: &fakeProvider{ledger: newLedger(t), channel: message.ChannelEmail}, Rate: 10}, slog.New(slog.DiscardHandler))
		defer g.stop()
		reserve := func() lease {
			t.Helper()
			ctx, end := context.WithTimeout(t.Context(), time.Minute)
			defer end()
			l, err := g.reserve(ctx, message.Transactional, time.Time{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		for range breakEnough {
			l := reserve()
			l.learn(message.Result{Outcome: message.Deferred, Code: "503", Fault: true}, "", 0)
			l.release()
		}
		if g.usable() {
			t.Fatal("it isn't broken")
		}
		l := reserve()
		if l.breaker != nil || g.usable() {
			t.Fatal("that was no trial")
		}
		l.release() // held back
		if !g.usable() {
			t.Error("nobody else may try")
		}
		begun := time.Now()
		l = reserve()
		if took := time.Since(begun); took > 0 {
			t.Errorf("the next waited %s: the one that came to nothing has cost a turn", took)
		}
		l.learn(message.Result{Outcome: message.Sent}, "", 0)
		l.release()
		if g.state.Load() != gateOpen {
			t.Error("it is shut")
		}
	})
}

// A pause that the provider asks for holds for everybody: a short one slows
// the pace, a long one, asked for three times in a row, sends what comes to others.
func TestRetryAfterHoldsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r, a, b := withOrders(t, l, nil)
		var wish, times atomic.Int64
		a.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
			if d := time.Duration(wish.Load()); times.Add(-1) >= 0 {
				_ = last()
				return message.Result{Outcome: message.Deferred, Code: "429", RetryAfter: d, Fault: true}
			}
			return a.take(env, last)
		}
		give := func(n int) {
			for range n {
				r.mustOffer(l.accept(transactional, time.Hour))
				synctest.Wait()
			}
		}
		sent := func(wantA, wantB int64) {
			t.Helper()
			if gotA, gotB := a.sent.Load(), b.sent.Load(); gotA != wantA || gotB != wantB {
				t.Errorf("a sent %d and b %d, want %d and %d", gotA, gotB, wantA, wantB)
			}
		}
		ask := func(d time.Duration, n int64) {
			wish.Store(int64(d))
			times.Store(n)
		}
		ask(2*time.Second, 1)
		give(5)
		idle(1900 * time.Millisecond)
		sent(0, 0)
		idle(200 * time.Millisecond)
		sent(4, 0)
		idle(time.Minute) // the one comes again, at the next
		sent(4, 1)

		ask(2*time.Minute, restAfter)
		give(5)
		sent(4, 3)
		idle(119 * time.Second)
		give(1)
		sent(4, 4)
		idle(2 * time.Second) // and those that were deferred
		give(1)
		sent(5, 7)

		ask(time.Hour, restAfter) // that is too long for all
		give(restAfter)
		idle(restMost - time.Second)
		give(1)
		sent(5, 8)
		idle(2 * time.Second)
		give(1)
		sent(6, 8)
	})
}
