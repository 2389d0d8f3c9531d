package dedupe_test

import (
	"math"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// A backlog is drained at a steady rate. From a fifth of the drain on, what is said of
// its end is within a tenth of what comes true, and nothing before the drain
// spoils it: neither that it stood still, nor how fast the backlog came.
func TestDrainETA(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	lane := message.Lane{Class: message.Transactional, Channel: message.ChannelEmail}
	const n, rate = 6000, 200
	look := func() message.LaneView {
		views, err := l.Lanes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return views[0]
	}
	looks := time.NewTicker(500 * time.Millisecond)
	defer looks.Stop()
	done := make(chan struct{})
	go func() { // as the incidents' watch does
		defer close(done)
		pile(t, l, ledgertest.Tenant(t, l, "acme"), "s", n)
	}()
	for v := look(); v.Depth < n; v = look() {
		select {
		case <-looks.C:
		case <-t.Context().Done():
			t.Fatalf("before the drain: %+v", v)
		}
	}
	<-done
	var items []message.Item
	for deadline := time.Now().Add(10 * time.Second); len(items) < n; {
		var err error
		if items, err = l.Unclaimed(t.Context(), lane, 0, n); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d are unclaimed", len(items), n)
		}
	}

	type guess struct {
		at  time.Time
		eta time.Duration
		v   message.LaneView
	}
	var guesses []guess
	began := time.Now()
	end := make(chan time.Time, 1)
	go func() {
		defer func() { end <- time.Now() }()
		gone := make(chan struct{}, 64)
		for i, it := range items {
			time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / rate))) // the provider's pace
			gone <- struct{}{}
			go func() {
				defer func() { <-gone }()
				if _, err := l.Claim(t.Context(), it); err != nil {
					t.Error(err)
				}
			}()
		}
		for range cap(gone) {
			gone <- struct{}{}
		}
	}()
	var finish time.Time
	for finish.IsZero() {
		select {
		case finish = <-end:
		case <-looks.C:
			v := look()
			guesses = append(guesses, guess{time.Now(), v.ETA, v})
		}
	}
	whole := finish.Sub(began)
	judged, worst := 0, 0.0
	for _, g := range guesses {
		left := finish.Sub(g.at)
		if g.at.Sub(began) < whole/5 || left < whole/10 {
			continue
		}
		judged++
		off := math.Abs(g.eta.Seconds()-left.Seconds()) / left.Seconds()
		worst = max(worst, off)
		if off > 0.1 || g.eta < 0 {
			t.Errorf("after %s: said %s, came true %s: %+v", g.at.Sub(began), g.eta, left, g.v)
		}
	}
	t.Logf("a drain of %s: %d looks, the worst was off by %.1f %%", whole.Round(time.Second), judged, 100*worst)
	if judged < 10 {
		t.Errorf("only %d looks were judged", judged)
	}
}
