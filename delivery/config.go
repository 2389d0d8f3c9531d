package delivery

import (
	"cmp"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/stormpost/stormpost/internal/message"
)

// Config is what a Worker works with. Ledger is required; every other field's
// zero stands for a default.
type Config struct {
	Ledger Ledger
	// Routes lists each channel's providers in order of preference. The first
	// one that takes its platform gets a message; messages that none takes wait.
	Routes map[message.Channel][]Route
	// Orders say to which of them what of a channel goes instead, and where it
	// goes on to when one defers it. The first that fits holds.
	Orders []Order
	// Senders is how many attempts a lane may have open at each provider: 64 for
	// transactional, 32 for the others by default.
	Senders map[message.Lane]int
	// Doubts says what becomes of messages whose provider's answer was lost.
	Doubts map[message.Lane]DoubtPolicy
	Retry  Schedule
	// ClaimValid is how old a claim may be at the last check: 30 s.
	ClaimValid time.Duration
	// ShutdownGrace is how long open replies are waited for at the end: 30 s.
	ShutdownGrace time.Duration
	// BeatEvery is the pause between heartbeats: 2 s.
	BeatEvery time.Duration
	// FeedAge is how long ago a message that nobody claimed must have been
	// accepted for the feed to take it, while Kafka brings them: 1 s.
	FeedAge time.Duration
	// KafkaAway says that Kafka brings nothing: then the feed takes everything
	// at once. Nil means never.
	KafkaAway func(message.Lane) bool
	// FeedRate bounds what the feed takes beside what is due, in messages a
	// second; 0: no bound. Nil: none.
	FeedRate func(message.Lane) float64

	Clock   func() Instant
	Log     *slog.Logger
	Meters  metric.MeterProvider
	Tracers trace.TracerProvider
}

func (c *Config) setDefaults() {
	c.ClaimValid = cmp.Or(c.ClaimValid, 30*time.Second)
	c.ShutdownGrace = cmp.Or(c.ShutdownGrace, 30*time.Second)
	c.BeatEvery = cmp.Or(c.BeatEvery, 2*time.Second)
	c.FeedAge = cmp.Or(c.FeedAge, time.Second)
	c.Retry = c.Retry.orDefault()
	if c.FeedRate == nil {
		c.FeedRate = func(message.Lane) float64 { return 0 }
	}
	if c.KafkaAway == nil {
		c.KafkaAway = func(message.Lane) bool { return false }
	}
	if c.Clock == nil {
		c.Clock = systemClock()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

func (c *Config) sendersOf(l message.Lane) int {
	if n := c.Senders[l]; n > 0 {
		return n
	}
	if l.Class == message.Transactional {
		return 64
	}
	return 32
}
