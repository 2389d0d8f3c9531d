package app

import (
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/stormpost/stormpost/delivery"
)

// clockVariable names a file by which a drill turns a worker's wall clock.
const clockVariable = "STORMPOST_TEST_CLOCK"

// turnedClock is the machine's clocks, the wall clock set off by the Go duration
// that file has; looked up ten times a second. Nil without a file.
func turnedClock(file string, log *slog.Logger) func() delivery.Instant {
	if file == "" {
		return nil
	}
	var mu sync.Mutex
	var off, seen time.Duration
	start := time.Now()
	return func() delivery.Instant {
		now := time.Now()
		mono := now.Sub(start)
		mu.Lock()
		defer mu.Unlock()
		if mono-seen > 100*time.Millisecond {
			seen = mono
			b, _ := os.ReadFile(file)
			d, _ := time.ParseDuration(strings.TrimSpace(string(b)))
			if d != off {
				off = d
				log.Warn("the wall clock is turned, for a drill", "by", d)
			}
		}
		return delivery.Instant{Wall: now.Round(0).Add(off), Mono: mono}
	}
}
