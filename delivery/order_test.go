package delivery

import (
	"cmp"
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// withOrders runs a worker whose email goes to a, then b.
func withOrders(t *testing.T, l *fakeLedger, change func(*Config)) (r *running, a, b *fakeProvider) {
	a, b = &fakeProvider{ledger: l, channel: message.ChannelEmail}, &fakeProvider{ledger: l, channel: message.ChannelEmail}
	r = start(t, l, func(_ *running, c *Config) {
		c.Routes[message.ChannelEmail] = []Route{{Provider: named{a, "a"}, Slots: 16}, {Provider: named{b, "b"}, Slots: 16}}
		c.Orders = []Order{{Channel: message.ChannelEmail, Providers: []string{"a", "b"}}}
		if change != nil {
			change(c)
		}
	})
	return r, a, b
}

// answer is a provider's that takes nothing.
func answer(o message.Outcome) func(context.Context, *message.Envelope, func() error) message.Result {
	return func(_ context.Context, _ *message.Envelope, last func() error) message.Result {
		if err := last(); err != nil {
			return message.Result{Outcome: message.Returned}
		}
		return message.Result{Outcome: o, Code: o.String()}
	}
}

// What one provider defers goes to the next, in turns, and to nobody else
// whatever else became of it. Each outcome names who was asked.
func TestFailover(t *testing.T) {
	for name, tt := range map[string]struct {
		a, b   message.Outcome // 0: takes it
		change func(*Config)
		asked  string // by attempt
		state  string
	}{
		"deferred":      {message.Deferred, 0, nil, "ab", "sent"},
		"by both":       {message.Deferred, message.Deferred, nil, "abab", "waiting"},
		"rejected":      {message.Rejected, 0, nil, "a", "rejected"},
		"then rejected": {message.Deferred, message.Rejected, nil, "ab", "rejected"},
		"lost":          {message.Unknown, 0, nil, "a", "unknown"},
		"lost, resent": {message.Unknown, 0, func(c *Config) {
			c.Doubts = map[message.Lane]DoubtPolicy{transactional: ResendDoubts}
		}, "aaaa", "waiting"},
		"b can't take it": {message.Deferred, 0, func(c *Config) {
			c.Routes[message.ChannelEmail][1].Takes = func(*message.Content) bool { return false }
		}, "aaaa", "waiting"},
		"without an order": {message.Deferred, 0, func(c *Config) { c.Orders = nil }, "aaaa", "waiting"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLedger(t)
				r, a, b := withOrders(t, l, func(c *Config) {
					c.Retry = Schedule{Base: time.Second, Max: time.Second}
					if tt.change != nil {
						tt.change(c)
					}
				})
				if tt.a != 0 {
					a.send = answer(tt.a)
				}
				if tt.b != 0 {
					b.send = answer(tt.b)
				}
				it := l.accept(transactional, time.Hour)
				r.mustOffer(it)
				var asked string
				for range 600 {
					idle(100 * time.Millisecond)
					l.mu.Lock()
					asked = ""
					for _, at := range l.messages[it.Position].attempts {
						asked += at.report.Provider
					}
					l.mu.Unlock()
					if len(asked) >= 4 {
						break
					}
				}
				if s, _, _ := l.view(it.Position); len(asked) < len(tt.asked) || asked[:len(tt.asked)] != tt.asked || s != tt.state || len(tt.asked) < 4 && asked != tt.asked {
					t.Errorf("asked %q, and it is %s; want %q, %s", asked, s, tt.asked, tt.state)
				}
			})
		})
	}
}

// A repeat that only its provider absorbs is never made elsewhere, whatever that
// provider says in between.
func TestRepeatsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r, a, b := withOrders(t, l, func(c *Config) { c.Retry = Schedule{Base: time.Second, Max: time.Second} })
		a.window = 24 * time.Hour
		var down trouble
		a.send = func(ctx context.Context, env *message.Envelope, last func() error) message.Result {
			switch env.Attempt {
			case 1:
				return answer(message.Unknown)(ctx, env, last)
			case 2:
				down.on.Store(true)
				return answer(message.Deferred)(ctx, env, last)
			}
			return a.take(env, last)
		}
		a.reserve = func(context.Context) error { return down.err() }
		it := l.accept(transactional, 2*time.Hour)
		r.mustOffer(it)
		idle(time.Minute)
		r.want(it, "waiting", 2, 0)
		down.on.Store(false)
		idle(time.Minute)
		r.want(it, "sent", 3, 1)
		if b.reserved.Load() != 0 {
			t.Error("the other provider was asked")
		}
	})
}

// While one can't be used the next one takes all, at once and with no attempt
// spent; with none of them nothing ends, and who comes back first takes all.
func TestShutProviders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r, a, b := withOrders(t, l, nil)
		var downA, downB trouble
		a.reserve = func(context.Context) error { return downA.err() }
		b.reserve = func(context.Context) error { return downB.err() }
		sent := func(within time.Duration, wantA, wantB int64) {
			t.Helper()
			for range 100 {
				it := l.accept(transactional, time.Hour)
				r.mustOffer(it)
				synctest.Wait()
			}
			idle(within)
			if gotA, gotB := a.sent.Load(), b.sent.Load(); gotA != wantA || gotB != wantB {
				t.Errorf("a sent %d and b %d, want %d and %d", gotA, gotB, wantA, wantB)
			}
		}
		sent(0, 100, 0)
		downA.on.Store(true)
		sent(time.Second, 100, 100)
		downB.on.Store(true)
		sent(time.Minute, 100, 100)
		downB.on.Store(false)
		idle(mostAside)
		if b.sent.Load() != 200 || l.states()["sent"] != 300 {
			t.Errorf("b sent %d, states %v", b.sent.Load(), l.states())
		}
		downA.on.Store(false)
		idle(time.Minute)
		before := a.sent.Load()
		sent(10*time.Second, before+100, 200)
		for _, m := range l.messages {
			if len(m.attempts) != 1 {
				t.Fatalf("%d attempts", len(m.attempts))
			}
		}
	})
}

// A provider that gives no slot for long is one that can't be used while another
// can: it holds what it had to begin with for 10 s, and then one message at a
// time. With no other, its slots are waited for.
func TestHungReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r, a, b := withOrders(t, l, nil)
		var hung trouble
		hung.on.Store(true)
		a.reserve = func(ctx context.Context) error {
			if !hung.on.Load() {
				return nil
			}
			return cmp.Or(pause(ctx, 30*time.Second), errTrouble)
		}
		const n = 200
		for range n {
			r.mustOffer(l.accept(transactional, time.Hour))
		}
		idle(25 * time.Second)
		if sent := b.sent.Load(); sent < n-routers {
			t.Errorf("after 25 s the other one sent %d of %d", sent, n)
		}
		if h := r.Providers()[0]; !strings.Contains(h.Trouble, "no slot") {
			t.Errorf("%+v", h)
		}
		idle(5 * time.Minute)
		if sent := b.sent.Load(); sent != n {
			t.Errorf("the other one sent %d of %d", sent, n)
		}
		hung.on.Store(false)
		idle(time.Minute)
		for range 5 { // it is tried with what comes
			r.mustOffer(l.accept(transactional, time.Hour))
			idle(time.Minute)
		}
		if a.sent.Load() < 4 {
			t.Errorf("when it was mended it sent %d", a.sent.Load())
		}
		slow := func(ctx context.Context) error { return pause(ctx, 15*time.Second) }
		for name, other := range map[string]func(context.Context) error{"down": func(context.Context) error { return errTrouble }, "slow": slow} {
			a.reserve, b.reserve = slow, other
			it := l.accept(transactional, time.Hour)
			r.mustOffer(it)
			idle(time.Minute)
			if s, _, _ := l.view(it.Position); s != "sent" {
				t.Errorf("with the other one %s, a slow one wasn't waited for: %s", name, s)
			}
		}
	})
}

// Orders hold for a class, a tenant, and the platforms that their providers take.
func TestOrdersFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r, a, b := withOrders(t, l, func(c *Config) {
			c.Orders = []Order{
				{Channel: message.ChannelEmail, Tenant: "tenant-7", Providers: []string{"b"}},
				{Channel: message.ChannelEmail, Class: message.Campaign, Providers: []string{"b", "a"}},
			}
		})
		other := l.accept(transactional, time.Hour)
		other.Tenant = 6
		theirs := l.accept(transactional, time.Hour)
		theirs.Tenant = 7
		for i, it := range []message.Item{other, theirs, l.accept(campaign, time.Hour), l.accept(trigger, time.Hour)} {
			r.mustOffer(it)
			synctest.Wait()
			if want := [][2]int64{{1, 0}, {1, 1}, {1, 2}, {2, 2}}[i]; a.sent.Load() != want[0] || b.sent.Load() != want[1] {
				t.Errorf("after %d: a sent %d, b %d", i, a.sent.Load(), b.sent.Load())
			}
		}
	})
	fcm := &fakeProvider{channel: message.ChannelPush}
	_, err := New(Config{Ledger: newLedger(t).process(), Routes: map[message.Channel][]Route{message.ChannelPush: {{Provider: fcm}}},
		Orders: []Order{{Channel: message.ChannelPush, Providers: []string{"nobody"}}}})
	if err == nil {
		t.Error("an order with a provider that there isn't was taken")
	}
}
