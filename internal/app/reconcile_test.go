package app

import (
	"testing"
	"time"
)

func TestJournalsAreReadFromEarlier(t *testing.T) {
	now := time.Now()
	since := now.Add(-time.Hour)
	for retention, want := range map[time.Duration]time.Time{
		0: since.Add(-journalMargin), 180 * 24 * time.Hour: since.Add(-journalMargin), 24 * time.Hour: now.Add(-24 * time.Hour), time.Minute: since,
	} {
		if got := journalsSince(since, now, retention); !got.Equal(want) {
			t.Errorf("with a retention of %s: %s, want %s", retention, got, want)
		}
	}
}
