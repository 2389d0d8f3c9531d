package delivery

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stormpost/stormpost/internal/message"
)

func TestSchedule(t *testing.T) {
	s := Schedule{}.orDefault()
	for k, want := range map[int]time.Duration{
		1: 30 * time.Second, 2: time.Minute, 3: 2 * time.Minute, 7: 32 * time.Minute,
		8: time.Hour, 9: time.Hour, 40: time.Hour, 63: time.Hour, 64: time.Hour, 32767: time.Hour,
	} {
		if got := s.wait(k, 1); got != want {
			t.Errorf("attempt %d: at most %s, want %s", k, got, want)
		}
		if got := s.wait(k, 0); got != 0 {
			t.Errorf("attempt %d: at least %s", k, got)
		}
	}
	if got := (Schedule{Base: 2 * time.Hour, Max: time.Hour}).wait(1, 1); got != time.Hour {
		t.Errorf("a base above the maximum: %s", got)
	}
	for _, tt := range []struct {
		after, left, want time.Duration
	}{
		{0, time.Hour, 15 * time.Second},
		{time.Minute, time.Hour, time.Minute},
		{time.Second, time.Hour, 15 * time.Second},
		{0, 10 * time.Second, 11 * time.Second}, // its claim ends the message
		{time.Hour, time.Minute, time.Minute + lapse},
		{0, -time.Minute, lapse},
	} {
		r := message.Result{Outcome: message.Deferred, RetryAfter: tt.after}
		if got := s.retryIn(1, r, tt.left, 0.5); got != tt.want {
			t.Errorf("asked for %s with %s left: %s, want %s", tt.after, tt.left, got, tt.want)
		}
	}
}

func FuzzPlain(f *testing.F) {
	for _, s := range []string{"", "250 ok", "a\x00b\r\nc", "\xff\xfe", strings.Repeat("ü", 300), strings.Repeat("\xf0\x9f\x98\x80", 200) + "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := plain(s, maxReply)
		if len(got) > maxReply || !utf8.ValidString(got) || strings.ContainsAny(got, "\x00\r\n\x7f") {
			t.Errorf("%q", got)
		}
		if utf8.ValidString(s) && len(s) <= maxReply && !strings.ContainsFunc(s, unfit) && got != s {
			t.Errorf("%q became %q", s, got)
		}
	})
}
