package drill

import (
	"testing"
	"time"
)

func TestOptions(t *testing.T) {
	good := Options{Messages: 1000, Rate: 100}
	if err := good.Validate(corruptCluster); err != nil {
		t.Error(err)
	}
	for name, o := range map[string]Options{
		"no messages":   {Rate: 100},
		"negative rate": {Messages: 1000, Rate: -1},
		"Kafka given":   {Messages: 1000, Rate: 100, Brokers: []string{"127.0.0.1:1"}},
		"stores to use": {Messages: 1000, Rate: 100, DSN: "postgres://x/y", Brokers: []string{"127.0.0.1:1"}},
	} {
		if o.Validate(frontDoor) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := Find("nothing"); err == nil {
		t.Error("an unknown drill was found")
	}
}

// A backlog of 3,000 is drained at 400/s while the drill did 500/s at best.
func TestDrainRates(t *testing.T) {
	var ticks []Tick
	sent := 0
	for i := range 60 {
		backlog := 0
		switch {
		case i < 20:
			sent += 500
		case i < 30: // nothing is sent
			backlog = 300 * (i - 19)
		default:
			sent += 400
			backlog = max(0, 3000-300*(i-29))
		}
		ticks = append(ticks, Tick{T: float64(i), Sent: sent, Backlog: backlog}, Tick{T: float64(i), Event: "x"})
	}
	if top, mean, most := drainRates(ticks, 25, 100); top != 500 || mean != 400 || most != 3000 {
		t.Errorf("top %v, mean %v, backlog %d", top, mean, most)
	}
}

func TestTheRateIsGrownTo(t *testing.T) {
	const n, rate = 100_000, 200
	in := func(from, until time.Duration) (offered int) {
		for i := range n {
			if at := due(i, n, rate); at >= from && at < until {
				offered++
			}
		}
		return offered
	}
	for second, want := range map[int]int{0: 5, 9: 95, 19: 195, 20: 200, 400: 200} {
		from := time.Duration(second) * time.Second
		if got := in(from, from+time.Second); got < want-1 || got > want+1 {
			t.Errorf("%d in second %d, want %d", got, second, want)
		}
	}
	if last := due(n-1, n, rate); last > 510*time.Second || last < 509*time.Second {
		t.Errorf("the last one is due after %s, want 510 s", last)
	}
}
