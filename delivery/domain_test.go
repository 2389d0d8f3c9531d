package delivery

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// mailTo accepts an email for somebody at domain.
func (l *fakeLedger) mailTo(domain string, life time.Duration) message.Item {
	it := l.accept(transactional, life)
	return l.replace(it, bytes.Replace(it.Content, []byte("example.net"), []byte(domain), 1))
}

func at(env *message.Envelope, domain string) bool {
	return strings.HasSuffix(env.Content.Email.To[0], "@"+domain)
}

// One domain's mail hangs, or is deferred, with more of it than there is room for,
// from Kafka or from the feed. Mail to others is sent within two seconds, the
// provider stays usable at a free pace, and nothing is lost or doubled.
func TestDomainsDoNotDelayEachOther(t *testing.T) {
	for name, hangs := range map[string]bool{"hangs": true, "defers": false} {
		for feed, away := range map[string]bool{"kafka": false, "feed": true} {
			t.Run(name+"/"+feed, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newLedger(t)
					var sick trouble
					sick.on.Store(true)
					var tries atomic.Int64
					r := start(t, l, func(r *running, c *Config) {
						c.KafkaAway = func(message.Lane) bool { return away }
						c.Retry = Schedule{Base: time.Minute, Max: 10 * time.Minute}
						r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
							time.Sleep(20 * time.Millisecond)
							if !sick.on.Load() || !at(env, "sick.example") {
								return r.provider.take(env, last)
							}
							tries.Add(1)
							_ = last()
							if hangs {
								time.Sleep(30 * time.Second) // its reply limit
								return message.Result{Outcome: message.Unknown}
							}
							return message.Result{Outcome: message.Deferred, Code: "450"}
						}
					})
					give := func(it message.Item) {
						if !away {
							r.mustOffer(it)
						}
					}
					const many, others = 600, 100
					for i := range others {
						if i%2 == 0 { // a neighbour is there before
							give(l.mailTo("well.example", 24*time.Hour))
							idle(50 * time.Millisecond)
						}
					}
					for range many {
						give(l.mailTo("sick.example", 24*time.Hour))
					}
					var slowest time.Duration
					for i := range others {
						it := l.mailTo(fmt.Sprintf("well%d.example", i%7), 24*time.Hour)
						begun := time.Now()
						give(it)
						for s, _, _ := l.view(it.Position); s != "sent"; s, _, _ = l.view(it.Position) {
							if time.Since(begun) > 10*time.Second {
								t.Fatalf("%s after %s", s, time.Since(begun))
							}
							idle(10 * time.Millisecond)
						}
						slowest = max(slowest, time.Since(begun))
					}
					if slowest > 2*time.Second {
						t.Errorf("mail to others took up to %s", slowest)
					}
					g := r.gates[0]
					if g.state.Load() != gateOpen || g.rate.rate != 0 {
						t.Errorf("the provider's state is %d, its pace %.1f", g.state.Load(), g.rate.rate)
					}
					if n := tries.Load(); n > many/4 {
						t.Errorf("%d of %d were tried", n, many)
					}
					if ready, open := r.lanes[message.Transactional][message.ChannelEmail].hand.counts(); ready+open > 8+routers+3*64 {
						t.Errorf("%d in hand, %d open", ready, open)
					}
					sick.on.Store(false)
					idle(30 * time.Minute)
					s := l.states()
					if lost := s["unknown"]; !hangs && lost > 0 || lost > 8*4 || s["sent"]+lost != many+others*3/2 {
						t.Errorf("states: %v", s)
					}
					for _, d := range r.lanes[message.Transactional][message.ChannelEmail].tracks {
						if len(d.domains.of) > 0 {
							t.Errorf("%d domains are remembered", len(d.domains.of))
						}
					}
				})
			})
		}
	}
}

// Mail to one domain alone has all senders, whatever becomes of it, and is not set
// aside.
func TestOneDomainHasAllSenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, c *Config) {
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				time.Sleep(time.Minute)
				return r.provider.take(env, last)
			}
			r.process.fault = nothingAside(t)
		})
		for range 30 {
			r.mustOffer(l.mailTo("one.example", time.Hour))
		}
		idle(30 * time.Second)
		if n := r.provider.held.Load(); n != 8 {
			t.Errorf("it has %d of 8 senders", n)
		}
	})
}

// With fewer slots than senders, as an SMTP relay has by default, one domain that
// hangs still leaves some to the others: of a lane's share, not of all.
func TestHungDomainLeavesSlots(t *testing.T) {
	for _, class := range []message.Class{message.Transactional, message.Campaign} {
		t.Run(class.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLedger(t)
				lane := message.Lane{Class: class, Channel: message.ChannelEmail}
				mail := func(domain string) message.Item {
					it := l.accept(lane, time.Hour)
					return l.replace(it, bytes.Replace(it.Content, []byte("example.net"), []byte(domain), 1))
				}
				r := start(t, l, func(r *running, c *Config) {
					c.Senders[lane] = 64
					r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
						if at(env, "hang.example") {
							_ = last()
							time.Sleep(10 * time.Minute)
							return message.Result{Outcome: message.Unknown}
						}
						return r.provider.take(env, last)
					}
				})
				well := func() {
					t.Helper()
					it := mail("well.example")
					r.mustOffer(it)
					idle(2 * time.Second)
					if s, _, _ := l.view(it.Position); s != "sent" {
						t.Errorf("mail to another domain is %s", s)
					}
				}
				well()
				for range 100 {
					r.mustOffer(mail("hang.example"))
				}
				well()
				idle(2 * aroundFor) // nobody else's mail for a while
				well()
			})
		})
	}
}

// A push service that hangs leaves senders to the others, as a domain does.
func TestHungPushServiceLeavesSenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		to := func(host string) message.Item {
			it := l.accept(push, time.Hour)
			return l.replace(it, bytes.Replace(it.Content, []byte(`"token"`), []byte(`{"endpoint":"https://`+host+`/x"}`), 1))
		}
		var p *fakeProvider
		r := start(t, l, func(r *running, c *Config) {
			p = &fakeProvider{ledger: l, channel: message.ChannelPush}
			p.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				if strings.Contains(env.Content.Push.To.Endpoint, "hang.example") {
					_ = last()
					time.Sleep(time.Minute) // its reply limit
					return message.Result{Outcome: message.Unknown}
				}
				return p.take(env, last)
			}
			c.Routes[message.ChannelPush] = []Route{{Provider: p, Slots: 16}}
		})
		for range 20 {
			it := to("well.example")
			r.mustOffer(it)
			idle(2 * time.Second)
			r.want(it, "sent", 1, 1)
			for range 10 {
				r.mustOffer(to("hang.example"))
			}
		}
		if n := p.held.Load(); n > 6 {
			t.Errorf("the one that hangs has %d of 8 senders", n)
		}
	})
}

// A domain that does well, and has most of the mail, waits for its turn, and is not
// set aside.
func TestBusyDomainIsNotSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, c *Config) {
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				time.Sleep(200 * time.Millisecond)
				return r.provider.take(env, last)
			}
			r.process.fault = nothingAside(t)
		})
		begun := time.Now()
		const n = 1000
		for i := range n {
			name := "busy.example"
			if i%5 == 0 {
				name = fmt.Sprintf("other%d.example", i%15)
			}
			r.mustOffer(l.mailTo(name, time.Hour))
		}
		for r.provider.sent.Load() < n && time.Since(begun) < time.Hour {
			idle(100 * time.Millisecond)
		}
		if took := time.Since(begun); took > n/8*200*time.Millisecond*5/4 {
			t.Errorf("it took %s", took)
		}
	})
}

// A provider that hangs for all keeps Kafka waiting, as before: nothing is set aside.
func TestHungProviderIsNoDomains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, c *Config) {
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				time.Sleep(10 * time.Minute)
				return r.provider.take(env, last)
			}
			r.process.fault = nothingAside(t)
		})
		for i := range 60 {
			r.mustOffer(l.mailTo(fmt.Sprintf("d%d.example", i%3), time.Hour))
		}
		idle(9 * time.Minute)
		if n := r.provider.held.Load(); n != 8 {
			t.Errorf("it has %d of 8 senders", n)
		}
	})
}

// While a person holds the lane, it stands: nothing is set aside for a domain.
func TestHeldLaneSetsNothingAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, c *Config) {
			c.Ledger = heldLedger{r.process}
			r.process.fault = nothingAside(t)
		})
		for i := range 60 {
			r.mustOffer(l.mailTo(fmt.Sprintf("d%d.example", i%2), time.Hour))
			idle(100 * time.Millisecond)
		}
		idle(time.Minute)
	})
}

// heldLedger is one whose every lane is held.
type heldLedger struct{ *fakeProcess }

func (heldLedger) Claim(context.Context, message.Item) (message.Claim, error) {
	return message.Claim{Verdict: message.HeldBack}, nil
}

// When what it defers is not one domain's, the provider's pace is cut, and no
// domain has a limit for it.
func TestDeferralsOfAllAreTheProviders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, _ *Config) { r.provider.send = answer(message.Deferred) })
		for i := range 2000 {
			r.mustOffer(l.mailTo(fmt.Sprintf("d%d.example", i%50), time.Hour))
			time.Sleep(time.Millisecond)
		}
		idle(3 * time.Second)
		g := r.gates[0]
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.rate.rate == 0 {
			t.Error("its pace is free")
		}
		if g.state.Load() != gateOpen {
			t.Error("it is shut")
		}
	})
}

// A limit is halved by a bad answer, once for those under way together, grows by
// good ones, and goes away; what remembers them is bounded.
func TestDomainLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDomains(64, 40)
		enter := func(name string) (n int) {
			for ; ; n++ {
				if ok, _, _ := d.enter(name); !ok {
					return n
				}
				d.begin(name)
			}
		}
		leave := func(name string, n int, good, own bool) {
			for range n {
				d.ended(name, time.Millisecond, good, own)
				d.leave(name)
			}
		}
		d.enter("other")
		want := 30 // three quarters of 40
		for range 6 {
			time.Sleep(10 * time.Millisecond)
			if n := enter("x"); n != want {
				t.Fatalf("%d entered, want %d", n, want)
			}
			leave("x", want, false, true)
			want = max(1, want/2)
		}
		if _, ok, full := d.enter("x"); ok != nil || full != 0 { // entered
			t.Errorf("%v, full for %s", ok, full)
		}
		_, _, before := d.enter("x")
		time.Sleep(time.Second)
		if _, freed, full := d.enter("x"); freed != nil || full-before != time.Second {
			t.Errorf("full for %s, then %s; waits %v", before, full, freed != nil)
		}
		d.begin("x")
		leave("x", 1, true, false)
		for range 5 {
			leave("x", enter("x"), true, false)
		}
		if n := enter("x"); n != 30 {
			t.Errorf("after good answers %d entered", n)
		}
		leave("x", 30, true, false)

		for i := range 50_000 {
			name := fmt.Sprint(i)
			d.enter(name)
			d.begin(name)
			leave(name, 1, false, true)
		}
		if n := len(d.of); n > mostDomains+64 {
			t.Errorf("%d domains are remembered", n)
		}
	})
}

func TestDomainOf(t *testing.T) {
	c := &message.Content{Email: &message.Email{
		To: []string{"a@Example.NET", `"A @ B" <a@b.example>`}, Cc: []string{"c@c.example"}, Bcc: []string{"nobody"},
	}}
	for i, want := range []string{"example.net", "b.example", "c.example", "", ""} {
		if got := domainOf(c, i); got != want {
			t.Errorf("recipient %d is of %q, want %q", i, got, want)
		}
	}
	for endpoint, want := range map[string]string{"": "", "https://Push.Example/x?y=1": "push.example", "https://push.example:8443/x": "push.example:8443", "https://%": ""} {
		if got := domainOf(&message.Content{Push: &message.Push{To: message.Target{Endpoint: endpoint}}}, 0); got != want {
			t.Errorf("a push to %q is of %q, want %q", endpoint, got, want)
		}
	}
}
