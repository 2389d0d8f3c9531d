package delivery

import "time"

// Instant is one moment by two clocks. A process that was stopped, or a machine
// that slept, finds at least one of them moved on.
type Instant struct {
	Wall time.Time     // without a monotonic part
	Mono time.Duration // since any fixed moment
}

// Since is the time from before to i, by the clock that shows more of it.
func (i Instant) Since(before Instant) time.Duration {
	return max(i.Mono-before.Mono, i.Wall.Sub(before.Wall))
}

// systemClock reads both of the machine's clocks at once.
func systemClock() func() Instant {
	start := time.Now()
	return func() Instant {
		now := time.Now()
		return Instant{Wall: now.Round(0), Mono: now.Sub(start)}
	}
}
