package dedupe_test

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// drained is a backlog and how it goes.
type drained struct {
	ready, rate         int // messages, and how many a second the provider takes
	journaled, entering int // messages, and how many a second come out of the journal
}

// A backlog is drained at a steady rate. From a fifth of the drain on, what is said of
// its end is within a tenth of what comes true, and nothing before the drain
// spoils it: neither that it stood still, nor how fast the backlog came. Nor does
// what is still in the journal and comes out of it meanwhile, faster than it goes.
func TestDrainETA(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]drained{
		"a backlog":               {ready: 6000, rate: 200},
		"a backlog and a journal": {ready: 2000, rate: 200, journaled: 6000, entering: 300},
		"counted as whole ranges": {ready: 36_000, rate: 1000},
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); d.run(t) })
	}
}

// index knows the journal as the API's does: what has left it, some seconds late.
type index struct {
	mu   sync.Mutex
	lane message.Lane
	left int64
	told int64
	at   time.Time
}

func (x *index) entered() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.left--
}

func (x *index) journaled() (map[message.Lane]int64, time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if now := time.Now(); now.Sub(x.at) > 2*time.Second {
		x.told, x.at = x.left, now
	}
	return map[message.Lane]int64{x.lane: x.told}, x.at
}

// atPace calls do n times, at a rate, some of them at once.
func atPace(n, rate int, do func(i int)) {
	began := time.Now()
	busy := make(chan struct{}, 128)
	for i := range n {
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		busy <- struct{}{}
		go func() {
			defer func() { <-busy }()
			do(i)
		}()
	}
	for range cap(busy) {
		busy <- struct{}{}
	}
}

func (d drained) run(t *testing.T) {
	lane := message.Lane{Class: message.Transactional, Channel: message.ChannelEmail}
	x := &index{lane: lane, left: int64(d.journaled)}
	l := ledgertest.OpenWith(t, dedupe.Config{DSN: ledgertest.DSN(t), Journaled: x.journaled})
	tenant := ledgertest.Tenant(t, l, "acme")
	look := func() message.LaneView {
		views, err := l.Lanes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if push := views[1]; push.Journaled >= 0 || push.ETA >= 0 {
			t.Errorf("nobody knows what the journal has of %s: %+v", push.Lane, push)
		}
		return views[0]
	}
	looks := time.NewTicker(500 * time.Millisecond)
	defer looks.Stop()
	piled := make(chan []message.Item, 1)
	go func() { piled <- pile(t, l, tenant, "s", d.ready) }()
	late := time.After(2 * time.Minute)
	for v := look(); v.Depth < int64(d.ready); v = look() { // as the incidents' watch does
		select {
		case <-looks.C:
		case <-late:
			t.Fatalf("before the drain: %+v", v)
		}
	}
	first := <-piled
	slices.SortFunc(first, func(a, b message.Item) int { return int(a.Position - b.Position) })
	items := make(chan message.Item, d.ready+d.journaled)
	for _, it := range first {
		items <- it
	}

	type guess struct {
		at time.Time
		v  message.LaneView
	}
	var guesses []guess
	began := time.Now()
	end := make(chan time.Time, 1)
	if d.journaled > 0 {
		go atPace(d.journaled, d.entering, func(i int) {
			s := ledgertest.Email(t, tenant, fmt.Sprintf("j-%d", i), "s", "a@example.com")
			r, err := l.Enter(t.Context(), message.Journaled{Submission: s, AcceptedAt: time.Now().Add(-time.Minute)})
			if err != nil {
				t.Error(err)
			}
			x.entered()
			items <- ledgertest.Items(s, r)[0]
		})
	}
	go func() {
		atPace(cap(items), d.rate, func(int) {
			if _, err := l.Claim(t.Context(), <-items); err != nil {
				t.Error(err)
			}
		})
		end <- time.Now()
	}()
	var finish time.Time
	for finish.IsZero() {
		select {
		case finish = <-end:
		case <-looks.C:
			v := look()
			guesses = append(guesses, guess{time.Now(), v})
		}
	}
	whole := finish.Sub(began)
	judged, large, worst := 0, 0, 0.0
	for _, g := range guesses {
		left := finish.Sub(g.at)
		if g.at.Sub(began) < whole/5 || left < whole/10 {
			continue
		}
		judged++
		if g.v.Depth > dedupe.CountedOne {
			large++
		}
		off := math.Abs(g.v.ETA.Seconds()-left.Seconds()) / left.Seconds()
		worst = max(worst, off)
		if off > 0.1 || g.v.ETA < 0 {
			t.Errorf("after %s: said %s, came true %s: %+v", g.at.Sub(began), g.v.ETA, left, g.v)
		}
		if g.v.InRate != 0 {
			t.Errorf("after %s: %v new a second: %+v", g.at.Sub(began), g.v.InRate, g.v)
		}
	}
	t.Logf("a drain of %s: %d looks, %d at a large backlog, the worst was off by %.1f %%", whole.Round(time.Second), judged, large, 100*worst)
	if judged < 10 || d.ready > dedupe.CountedOne && large < 5 {
		t.Errorf("only %d looks were judged, %d at a large backlog", judged, large)
	}
}
