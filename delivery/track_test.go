package delivery

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// twoPlatforms runs a worker whose pushes go to fcm and apns.
func twoPlatforms(t *testing.T, l *fakeLedger, change func(*Config)) (r *running, fcm, apns *fakeProvider) {
	fcm, apns = &fakeProvider{ledger: l, channel: message.ChannelPush}, &fakeProvider{ledger: l, channel: message.ChannelPush}
	r = start(t, l, func(_ *running, c *Config) {
		c.Routes[message.ChannelPush] = []Route{
			{Provider: named{fcm, "fcm"}, Slots: 16, Platforms: []string{"fcm"}},
			{Provider: named{apns, "apns"}, Slots: 16, Platforms: []string{"apns"}},
		}
		if change != nil {
			change(c)
		}
	})
	return r, fcm, apns
}

// platform accepts a push for one.
func (l *fakeLedger) platform(name string, life time.Duration) message.Item {
	it := l.accept(push, life)
	return l.replace(it, bytes.Replace(it.Content, []byte(`"fcm"`), []byte(`"`+name+`"`), 1))
}

// nothingAside is a fault that fails the test for what is set aside.
func nothingAside(t *testing.T) func(op string) error {
	return func(op string) error {
		if op == "postpone" {
			t.Error("set aside")
		}
		return nil
	}
}

// One provider hangs, or can't be used, with more of its messages than there is
// room for, from Kafka or, with Kafka away, from the feed: the lane's other
// provider gets its messages within a second. None is lost or doubled, and what
// was handed to the one that hangs is in doubt, no more of it than it has senders.
func TestProvidersDoNotDelayEachOther(t *testing.T) {
	for name, dead := range map[string]bool{"hangs": false, "is dead": true} {
		for feed, away := range map[string]bool{"kafka": false, "feed": true} {
			t.Run(name+"/"+feed, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newLedger(t)
					var sick atomic.Bool
					sick.Store(true)
					r, fcm, apns := twoPlatforms(t, l, func(c *Config) { c.KafkaAway = func(message.Lane) bool { return away } })
					fcm.send = func(ctx context.Context, env *message.Envelope, last func() error) message.Result {
						if !sick.Load() {
							return fcm.take(env, last)
						}
						_ = last()
						time.Sleep(30 * time.Second) // its reply limit
						return message.Result{Outcome: message.Unknown}
					}
					fcm.reserve = func(context.Context) error {
						if dead && sick.Load() {
							return errTrouble
						}
						return nil
					}
					give := func(its ...message.Item) {
						if !away {
							r.mustOffer(its...)
						}
					}
					const many = 2000
					for range many {
						give(l.platform("fcm", 24*time.Hour))
					}
					idle(time.Second)
					for range 100 {
						it := l.platform("apns", 24*time.Hour)
						begun := time.Now()
						give(it)
						for s, _, _ := l.view(it.Position); s != "sent"; s, _, _ = l.view(it.Position) {
							if time.Since(begun) > time.Second {
								t.Fatalf("%s after %s", s, time.Since(begun))
							}
							idle(10 * time.Millisecond)
						}
					}
					lane := r.lanes[message.Transactional][message.ChannelPush]
					if ready, open := lane.hand.counts(); ready+open > 8+routers+3*64 {
						t.Errorf("%d in hand, %d open", ready, open)
					}
					if !away && r.finished.Load() < many+100-8-routers-64 {
						t.Errorf("%d finished", r.finished.Load())
					}
					sick.Store(false)
					idle(mostAside + time.Minute)
					s := l.states()
					if lost := s["unknown"]; dead && lost > 0 || lost > 4*8 || s["sent"]+lost != many+100 {
						t.Errorf("states: %v", s)
					}
					if fcm.held.Load()+apns.held.Load() > 0 {
						t.Error("slots are held")
					}
				})
			})
		}
	}
}

// What no Kafka brings is fed, though as much as the feed takes at once is in the
// hands of senders whose provider can't be used.
func TestFeedLooksBehindWhatIsInHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r, fcm, _ := twoPlatforms(t, l, func(c *Config) { c.Senders = map[message.Lane]int{push: 2 * feedShare} })
		fcm.reserve = func(context.Context) error { return errTrouble }
		for range feedShare {
			r.mustOffer(l.platform("fcm", 24*time.Hour))
		}
		idle(time.Second)
		it := l.platform("apns", 24*time.Hour) // and Kafka loses it
		begun := time.Now()
		for s, _, _ := l.view(it.Position); s != "sent"; s, _, _ = l.view(it.Position) {
			if time.Since(begun) > 10*time.Second {
				t.Fatalf("%s after %s", s, time.Since(begun))
			}
			idle(10 * time.Millisecond)
		}
	})
}

// A provider that is just busy has nothing set aside while the lane has messages
// for nobody else; once it has, those pass.
func TestBusyIsNotStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		var aside atomic.Int64
		r, fcm, _ := twoPlatforms(t, l, func(c *Config) {
			c.Ledger.(*fakeProcess).fault = func(op string) error {
				if op == "postpone" {
					aside.Add(1)
				}
				return nil
			}
		})
		fcm.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
			time.Sleep(300 * time.Millisecond)
			return fcm.take(env, last)
		}
		flood := func() {
			for range 600 {
				r.mustOffer(l.platform("fcm", time.Hour))
			}
		}
		flood()
		idle(5 * time.Second)
		if n := aside.Load(); n > 0 {
			t.Errorf("%d were set aside in vain", n)
		}
		r.mustOffer(l.platform("apns", time.Hour))
		idle(5 * time.Second)
		flood()
		idle(time.Second)
		if aside.Load() == 0 {
			t.Error("nothing is set aside for the other provider")
		}
		idle(mostAside)
		if s := l.states(); s["sent"] != 1201 {
			t.Errorf("states: %v", s)
		}
	})
}

// What is set aside ends when its life does, as anything else.
func TestSetAsideExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r, fcm, _ := twoPlatforms(t, l, nil)
		fcm.reserve = func(context.Context) error { return errTrouble }
		var its []message.Item
		for range 200 {
			its = append(its, l.platform("fcm", time.Minute))
		}
		r.mustOffer(its...)
		idle(62 * time.Second)
		if s := l.states(); s["expire"] != 200 || r.finished.Load() != 200 {
			t.Errorf("states: %v, %d finished", s, r.finished.Load())
		}
	})
}

// With a provider alone in its lane there is nobody to make way for: Kafka's
// records wait, and nothing is written for them.
func TestNothingIsSetAsideInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, _ *Config) {
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				time.Sleep(time.Minute)
				return r.provider.take(env, last)
			}
			r.process.fault = nothingAside(t)
		})
		for range 60 {
			r.mustOffer(l.accept(transactional, time.Hour))
		}
		idle(30 * time.Second)
	})
}
