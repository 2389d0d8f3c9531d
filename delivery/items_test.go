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

// Records that are no message of ours are parked, messages that nobody can send
// are held, and the lane goes on.
func TestBadItems(t *testing.T) {
	park := map[string]func(*message.Item){
		"another lane":      func(it *message.Item) { it.Position = message.PositionOf(campaign, 1, 0) },
		"no lane":           func(it *message.Item) { it.Position = 3 },
		"negative":          func(it *message.Item) { it.Position = -it.Position },
		"attempt 0":         func(it *message.Item) { it.Attempt = 0 },
		"attempt 40000":     func(it *message.Item) { it.Attempt = 40000 },
		"another recipient": func(it *message.Item) { it.ID = it.ID.Message(7) },
		"a submission":      func(it *message.Item) { it.ID = it.ID.Submission() },
		"other content":     func(it *message.Item) { it.Content = append(it.Content, ' ') },
		"a stranger":        func(it *message.Item) { it.Position += 64 * 1000 },
	}
	for name, spoil := range park {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLedger(t)
				it := l.accept(transactional, time.Hour)
				bad := it
				bad.Content = bytes.Clone(it.Content)
				spoil(&bad)
				r := start(t, l, func(_ *running, c *Config) { c.FeedAge = time.Hour })
				done := 0
				if err := r.Offer(t.Context(), transactional, bad, func() { done++ }); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if len(l.parked) != 1 || done != 1 || r.provider.sent.Load() != 0 {
					t.Errorf("parked %q, finished %d times, %d sent", l.parked, done, r.provider.sent.Load())
				}
				r.mustOffer(it)
				synctest.Wait()
				r.want(it, "sent", 1, 1)
			})
		})
	}
	hold := map[string]string{
		"unreadable":      `{"email":`,
		"two channels":    `{"email":{"from":"a@b.example","to":["c@d.example"]},"push":{"platform":"fcm","to":"t"}}`,
		"another channel": `{"push":{"platform":"fcm","to":"t"}}`,
	}
	for name, raw := range hold {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLedger(t)
				r := start(t, l, nil)
				it := l.replace(l.accept(transactional, time.Hour), []byte(raw))
				r.mustOffer(it)
				synctest.Wait()
				r.want(it, "hold", 2, 0)
				if reason := l.last(it.Position).reason; !strings.Contains(reason, "content") || r.finished.Load() != 1 {
					t.Errorf("held because %q", reason)
				}
			})
		})
	}
}

// Content that the item doesn't carry comes from the ledger; great content is
// not kept in queues.
func TestContentFromTheLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		var size int
		r := start(t, l, func(r *running, _ *Config) {
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				size = len(env.Content.Email.Text)
				return r.provider.take(env, last)
			}
		})
		bare := l.accept(transactional, time.Hour)
		bare.Content = nil
		r.mustOffer(bare)
		synctest.Wait()
		r.want(bare, "sent", 1, 1)

		c := &message.Content{Email: &message.Email{From: "a@b.example", To: []string{"c@d.example"}, Text: strings.Repeat("x", 1<<20)}}
		raw, _ := c.Encode()
		great := l.replace(l.accept(transactional, time.Hour), raw)
		r.mustOffer(great)
		synctest.Wait()
		r.want(great, "sent", 1, 1)
		fed := l.replace(l.accept(transactional, time.Hour), raw)
		idle(3 * time.Second)
		r.want(fed, "sent", 1, 1)
		if size != 1<<20 {
			t.Errorf("sent %d bytes", size)
		}

		gone := l.accept(transactional, time.Hour)
		gone.Content, l.messages[gone.Position].lost = nil, true
		r.mustOffer(gone)
		synctest.Wait()
		r.want(gone, "hold", 2, 0)
	})
}

// Queues keep little great content, and lose none: the ledger might not know
// the record.
func TestGreatContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		raw := bytes.Repeat([]byte{'x'}, 1<<20)
		var down trouble
		down.on.Store(true)
		r := start(t, l, func(r *running, c *Config) {
			c.FeedAge = time.Hour
			r.provider.reserve = func(context.Context) error { return down.err() }
		})
		small := make([]message.Item, 8+routers)
		for i := range small { // every sender and router has one
			small[i] = l.accept(transactional, time.Hour)
		}
		r.mustOffer(small...)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		n := 0
		for ; ; n++ {
			it := message.Item{Position: message.PositionOf(transactional, int64(1000+n), 0), Attempt: 1, Content: raw}
			it.ID = message.SubmissionID(message.KeyHash{}, message.FingerprintOf(raw)).Message(0)
			if err := r.Offer(ctx, transactional, it, nil); err != nil {
				break
			}
		}
		if n != maxGreat {
			t.Errorf("%d great items queued", n)
		}
		r.mustOffer(l.accept(transactional, time.Hour)) // there is room for others
		down.on.Store(false)
		idle(time.Minute)
		if len(l.parked) != n || !strings.HasSuffix(l.parked[0], ": 1048576 bytes") {
			t.Errorf("%d parked", len(l.parked))
		}
		if s := l.states(); s["sent"] != len(small)+1 || len(r.lanes[message.Transactional][message.ChannelEmail].great) != 0 {
			t.Errorf("states: %v", s)
		}
	})
}

// What Kafka lost the feed finds, within seconds, however much it is; with Kafka
// away it brings everything at once.
func TestFeed(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprint("away ", away), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLedger(t)
				r := start(t, l, func(_ *running, c *Config) {
					c.Senders[transactional] = 500
					c.KafkaAway = func(message.Lane) bool { return away }
				})
				limit := 3 * time.Second
				if away {
					limit = 1100 * time.Millisecond
				}
				idle(10 * time.Second)
				it := l.accept(transactional, time.Hour)
				idle(limit)
				r.want(it, "sent", 1, 1)
				for range 5000 {
					l.accept(transactional, time.Hour)
				}
				idle(2 * limit)
				synctest.Wait()
				if s := l.states(); s["sent"] != 5001 {
					t.Errorf("states: %v", s)
				}
				if fed := r.lanes[message.Transactional][message.ChannelEmail].fed.Load(); fed != 0 {
					t.Errorf("%d of the feed's items are unaccounted for", fed)
				}
			})
		})
	}
}

// A lane's rate bounds what its feed takes of the backlog.
func TestFeedRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		start(t, l, func(_ *running, c *Config) {
			c.Senders[transactional] = 500
			c.KafkaAway = func(message.Lane) bool { return true }
			c.FeedRate = func(message.Lane) float64 { return 10 }
		})
		for range 1000 {
			l.accept(transactional, time.Hour)
		}
		idle(20 * time.Second)
		synctest.Wait()
		if n := l.states()["sent"]; n < 180 || n > 220 {
			t.Errorf("in 20 s at 10 a second it took %d", n)
		}
	})
}

// The feed leaves out what is in hand, and looks beyond it.
func TestFeedLeavesOutWhatIsInHand(t *testing.T) {
	l := newLedger(t)
	w, err := New(Config{Ledger: l.process(), KafkaAway: func(message.Lane) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		it := l.accept(transactional, time.Hour)
		if m := l.messages[it.Position]; i < 100 {
			m.attempts, m.waiting = []*fakeAttempt{{kind: "send", outcome: message.Deferred}}, 2
		}
	}
	lane := w.lanes[message.Transactional][message.ChannelEmail]
	f := &feeder{Worker: w, lane: lane, share: feedShare}
	round := func() (due, unclaimed int) {
		if err := f.round(); err != nil {
			t.Fatal(err)
		}
		for range len(lane.feed) {
			o := <-lane.feed
			if o.item.Attempt == 2 {
				due++
			} else {
				unclaimed++
			}
		}
		return due, unclaimed
	}
	for range 3 { // all of it stays in hand, and nothing comes twice
		if due, unclaimed := round(); due != 32 || unclaimed != 32 {
			t.Errorf("%d due, %d unclaimed", due, unclaimed)
		}
	}
	if due, unclaimed := round(); due != 4 || unclaimed != 4 {
		t.Errorf("at last %d due, %d unclaimed", due, unclaimed)
	}
	if ready, _ := lane.hand.counts(); ready != 200 {
		t.Errorf("%d in hand", ready)
	}
}

// The feed has its share although Kafka has more than the senders can do.
func TestFeedShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, c *Config) {
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				time.Sleep(10 * time.Millisecond)
				return r.provider.take(env, last)
			}
		})
		lost := l.accept(transactional, time.Hour)
		stop := time.Now().Add(5 * time.Second)
		for time.Now().Before(stop) {
			r.mustOffer(l.accept(transactional, time.Hour))
		}
		r.want(lost, "sent", 1, 1)
	})
}

// The ledger's feed fails for a while, and is asked less and less often.
func TestFeedFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		var asked atomic.Int64
		var bad trouble
		bad.on.Store(true)
		r := start(t, l, func(r *running, c *Config) {
			r.process.fault = func(op string) error {
				if op == "due" {
					asked.Add(1)
					return bad.err()
				}
				return nil
			}
		})
		it := l.accept(transactional, time.Hour)
		idle(time.Minute)
		if n := asked.Load(); n < 6*10 || n > 6*30 {
			t.Errorf("asked %d times for 6 lanes in a minute", n)
		}
		bad.on.Store(false)
		idle(10 * time.Second)
		r.want(it, "sent", 1, 1)
	})
}
