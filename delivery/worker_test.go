package delivery

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/stormpost/stormpost/internal/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Every message once: offered by Kafka, by Kafka twice, by the feed, or all of
// that at the same time.
func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		r := start(t, l, func(r *running, c *Config) { c.FeedAge = time.Millisecond })
		offered := 0
		for i := range 1000 {
			it := l.accept(message.Lanes()[i%6], time.Hour)
			for range i % 3 { // a third is left to the feed
				r.mustOffer(it)
				offered++
			}
		}
		idle(10 * time.Second)
		synctest.Wait()
		if n := l.states(); n["sent"] != 1000 {
			t.Errorf("states: %v", n)
		}
		if n := r.finished.Load(); n != int64(offered) {
			t.Errorf("%d of %d records finished", n, offered)
		}
		for p := range l.messages {
			if _, attempts, handed := l.view(p); attempts != 1 || handed != 1 {
				t.Errorf("%s: %d attempts, %d hand-overs", p, attempts, handed)
			}
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if len(*r.process.beaten.Load()) != 0 || r.process.giveUp.Load() != int64(30*time.Second+10*time.Minute) {
			t.Errorf("beat: %d open, %s", len(*r.process.beaten.Load()), time.Duration(r.process.giveUp.Load()))
		}
	})
}
