package delivery

import (
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Schedule is how long a message waits after an attempt that the provider
// didn't take: a random part ("full jitter") of Base·2^(k-1) after attempt k,
// and of Max at most. So messages that failed together don't come back
// together. The zero Schedule is 30 s and 1 h.
type Schedule struct{ Base, Max time.Duration }

func (s Schedule) orDefault() Schedule {
	if s.Base <= 0 {
		s.Base = 30 * time.Second
	}
	if s.Max <= 0 {
		s.Max = time.Hour
	}
	return s
}

// wait is the time to the attempt after attempt k. part is random, in [0, 1).
func (s Schedule) wait(k int, part float64) time.Duration {
	limit := s.Max
	if shift := k - 1; shift < 40 && s.Base<<shift>>shift == s.Base {
		limit = min(limit, s.Base<<max(shift, 0))
	}
	return time.Duration(part * float64(limit))
}

// lapse is how long after its message's end a last retry is due: past any doubt
// about whose clock is right, so that its claim ends the message as expired.
const lapse = time.Second

// retryIn is when the attempt after k is due: by schedule, not earlier than the
// provider asked for, and not later than the message lives, after which the
// next claim ends it. left is what is left of that life.
func (s Schedule) retryIn(k int, r message.Result, left time.Duration, part float64) time.Duration {
	return min(max(s.wait(k, part), r.RetryAfter), max(left, 0)+lapse)
}

// DoubtPolicy is what a lane does when a provider's answer was lost.
type DoubtPolicy string

const (
	// HoldDoubts leaves it to a person. It is the default.
	HoldDoubts DoubtPolicy = "hold"
	// ResendDoubts hands the message over again, by schedule: for messages that
	// had better come twice than not at all.
	ResendDoubts DoubtPolicy = "resend"
)
