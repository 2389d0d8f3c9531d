package delivery

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// frail is a provider that takes rate a second. Above that it breaks down:
// it defers everything, slowly, until it gets less than half of it.
type frail struct {
	rate int

	mu     sync.Mutex
	came   []time.Time // in the last second
	broken bool
	tries  int
	breaks int
	most   int // that came in a second after the first five
	began  time.Time
}

func (f *frail) arrive() (broken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for len(f.came) > 0 && now.Sub(f.came[0]) >= time.Second {
		f.came = f.came[1:]
	}
	if f.began.IsZero() {
		f.began = now
	}
	f.came = append(f.came, now)
	f.tries++
	if now.Sub(f.began) > 5*time.Second {
		f.most = max(f.most, len(f.came))
	}
	switch {
	case len(f.came) > f.rate:
		if !f.broken {
			f.breaks++
		}
		f.broken = true
	case len(f.came) < f.rate/2:
		f.broken = false
	}
	return f.broken
}

// A provider that breaks down above 100 a second recovers while a backlog of
// 12,000 is drained into it, and takes most of what it can.
func TestPaceFollowsAFrailProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		f := &frail{rate: 100}
		r := start(t, l, func(r *running, c *Config) {
			c.Senders = map[message.Lane]int{campaign: 256}
			c.Routes[message.ChannelEmail][0].Slots = 256
			c.Retry = Schedule{Base: time.Second, Max: 5 * time.Second}
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				if f.arrive() {
					time.Sleep(200 * time.Millisecond)
					return message.Result{Outcome: message.Deferred, Code: "421", Fault: true}
				}
				time.Sleep(20 * time.Millisecond)
				return r.provider.take(env, last)
			}
		})
		const n = 12000
		began := time.Now()
		go func() {
			for range n {
				if r.Offer(t.Context(), campaign, l.accept(campaign, time.Hour), nil) != nil {
					return
				}
			}
		}()
		for r.provider.sent.Load() < n && time.Since(began) < 5*time.Minute {
			idle(time.Second)
		}
		synctest.Wait()
		took := time.Since(began)
		f.mu.Lock()
		defer f.mu.Unlock()
		t.Logf("%d of %d sent in %s by %d tries, %d breakdowns, at most %d a second", r.provider.sent.Load(), n, took, f.tries, f.breaks, f.most)
		if r.provider.sent.Load() != n {
			t.Fatal("it never recovered")
		}
		if limit := time.Duration(n/f.rate) * time.Second * 3 / 2; took > limit {
			t.Errorf("it took %s, want at most %s", took, limit)
		}
		if f.tries > n*4/3 {
			t.Errorf("%d tries for %d messages", f.tries, n)
		}
	})
}

// After a provider was away altogether the pace is free again within a minute.
func TestPaceIsLifted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pace
		run := func(speed float64, lasts time.Duration, taken bool) (most float64) {
			for end := time.Now().Add(lasts); time.Now().Before(end); {
				rate := speed
				if p.rate > 0 {
					rate = min(p.rate, speed)
				}
				time.Sleep(time.Duration(float64(time.Second) / rate))
				p.ended(time.Now(), taken)
				most = max(most, rate)
			}
			return most
		}
		run(500, 5*time.Second, true)
		if p.rate != 0 {
			t.Fatalf("the pace is %.1f, although everything was taken", p.rate)
		}
		run(500, time.Minute, false)
		if p.rate == 0 || p.rate > 5 {
			t.Errorf("after a minute of deferrals the pace is %.1f", p.rate)
		}
		run(2000, time.Minute, true)
		if p.rate != 0 {
			t.Errorf("a minute later the pace is still %.1f", p.rate)
		}
	})
}

// A provider that refused 40 % now and then for an hour, of the little that it got,
// takes a backlog afterwards: within two minutes it gets several times as much.
func TestPaceIsNotTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pace
		n := 0
		run := func(lasts time.Duration, speed float64, bad int) {
			for end := time.Now().Add(lasts); time.Now().Before(end); n++ {
				rate := speed
				if p.rate > 0 {
					rate = min(p.rate, speed)
				}
				time.Sleep(time.Duration(float64(time.Second) / rate))
				p.ended(time.Now(), n%10 >= bad)
			}
		}
		for range 100 {
			run(8*time.Second, 25, 4)
			run(28*time.Second, 25, 0)
		}
		run(2*time.Minute, 1000, 0)
		if p.rate > 0 && p.rate < 100 {
			t.Errorf("two minutes later the pace is %.1f; %.1f was too much %d times", p.rate, p.knee, p.fails)
		}
	})
}

// A provider with a rate gets no more than that in any second, and not much less,
// whatever waits for it.
func TestRate(t *testing.T) {
	for _, rate := range []float64{2, 10, 500, 5000} {
		synctest.Test(t, func(t *testing.T) {
			l := newLedger(t)
			var mu sync.Mutex
			var came []time.Time
			r := start(t, l, func(r *running, c *Config) {
				c.Routes[message.ChannelEmail][0].Rate = rate
				r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
					mu.Lock()
					came = append(came, time.Now())
					mu.Unlock()
					return r.provider.take(env, last)
				}
			})
			n := int(4 * rate)
			idle(time.Minute) // which gives no credit
			for range n {
				go func() { r.mustOffer(l.accept(transactional, time.Hour)) }()
			}
			idle(time.Minute)
			if len(came) != n {
				t.Fatalf("%d of %d came", len(came), n)
			}
			for i := range came {
				if j := i + int(rate*1.005) + 1; j < n && came[j].Sub(came[i]) < time.Second {
					t.Fatalf("at %v a second, %d came within %s", rate, j-i+1, came[j].Sub(came[i]))
				}
			}
			if took := came[n-1].Sub(came[0]); took > 4200*time.Millisecond {
				t.Errorf("at %v a second, %d took %s", rate, n, took)
			}
		})
	}
	if _, err := New(Config{Ledger: newLedger(t).process(), Routes: map[message.Channel][]Route{
		message.ChannelEmail: {{Provider: &fakeProvider{channel: message.ChannelEmail}, Rate: -1}},
	}}); err == nil {
		t.Error("a rate below 0 was taken")
	}
}
