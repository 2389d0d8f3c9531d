package delivery

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Route is one provider that a channel's messages may go to.
type Route struct {
	Provider Provider
	// Platforms are the push platforms that the provider takes; empty: all.
	Platforms []string
	// Takes says whether the provider can take content at all; nil: it can. What
	// it can't is not failed over to it.
	Takes func(*message.Content) bool
	// Slots is how many hand-overs the provider takes at once: its connections,
	// its concurrency. The classes of the channel share them, so that neither a
	// campaign nor a provider that hangs can take them all: a quarter is kept
	// for transactional and an eighth each for trigger and campaign, at least
	// one; whatever nobody is kept from goes to the most urgent that waits.
	//
	// With fewer than 3 slots nothing can be kept for anybody, and the most
	// urgent goes first. With 0 the provider's own Reserve is the only limit.
	Slots int
	// Rate is how many hand-overs a second the provider gets at most, from this
	// process; 0: no bound.
	Rate float64
}

// takes says whether content can go to the provider.
func (r *Route) takes(content *message.Content) bool {
	if content.Push != nil && len(r.Platforms) > 0 && !slices.Contains(r.Platforms, content.Push.Platform) {
		return false
	}
	return r.Takes == nil || r.Takes(content)
}

// sandbox takes the messages of test-mode keys. They are claimed, checked and
// recorded as others are, and go nowhere.
type sandbox struct{ channel message.Channel }

var _ Provider = sandbox{}

func (sandbox) Name() string                            { return "sandbox" }
func (s sandbox) Channel() message.Channel              { return s.channel }
func (sandbox) ReplyLimit() time.Duration               { return 0 }
func (sandbox) Capabilities() Capabilities              { return Capabilities{} }
func (s sandbox) Reserve(context.Context) (Slot, error) { return s, nil }
func (sandbox) Close() error                            { return nil }
func (sandbox) Release()                                {}

func (sandbox) Send(_ context.Context, _ *message.Envelope, last func() error) message.Result {
	if err := last(); err != nil {
		return message.Result{Outcome: message.Returned}
	}
	return message.Result{Outcome: message.Sent, Code: "sandbox"}
}

var errNoProvider = errors.New("no provider is configured for this channel")

// nowhere stands for the provider of a channel that has none: its messages wait
// until there is one, or they expire.
type nowhere struct{ channel message.Channel }

func (nowhere) Name() string                          { return "none" }
func (n nowhere) Channel() message.Channel            { return n.channel }
func (nowhere) ReplyLimit() time.Duration             { return 0 }
func (nowhere) Capabilities() Capabilities            { return Capabilities{} }
func (nowhere) Reserve(context.Context) (Slot, error) { return nil, errNoProvider }
func (nowhere) Close() error                          { return nil }
