package dedupe

import (
	"testing"
	"time"
)

// The clock is that of the quickest answer, while it isn't old; one that doesn't
// fit shows that it is another one by now.
func TestServerClock(t *testing.T) {
	var c serverClock
	start, ms := time.Now(), time.Millisecond
	knows := func(after, want time.Duration) {
		t.Helper()
		at, known := c.at(start.Add(after))
		if got := at.Sub(start); known != (want != 0) || known && got != want {
			t.Errorf("%v, %v, want %v", got, known, want)
		}
	}
	told := func(from, to, server time.Duration) { c.told(start.Add(from), start.Add(to), start.Add(server)) }
	knows(0, 0)
	told(0, 101*ms, 5000*ms)
	knows(0, 0)
	told(0, 100*ms, 5000*ms)
	knows(50*ms, 5000*ms)
	knows(1050*ms, 6000*ms)
	told(2000*ms, 4000*ms, 7500*ms) // somewhere in it
	knows(1050*ms, 6000*ms)
	told(2000*ms, 4000*ms, 10_000*ms) // another clock
	knows(1050*ms, 0)
	told(0, 2*ms, 5001*ms)
	knows(1000*ms, 6000*ms)
	told(1000*ms, 1090*ms, 6085*ms) // it was read late, 40 ms off the middle
	knows(1000*ms, 6000*ms)
	told(9000*ms, 9012*ms, 14_008*ms) // by now that may be wrong by 5.5 ms
	knows(9000*ms, 14_000*ms)
	told(11_000*ms, 11_012*ms, 16_008*ms)
	knows(11_000*ms, 16_002*ms)
	told(12_000*ms, 12_090*ms, 16_500*ms) // another one
	knows(12_045*ms, 16_500*ms)
	c.forget()
	knows(0, 0)
}
