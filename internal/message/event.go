package message

import "time"

// EventKind is what a provider tells of a message that it took.
type EventKind string

// The kinds.
const (
	EventDelivered  EventKind = "delivered"
	EventBounced    EventKind = "bounced"     // for good: the recipient can't be reached
	EventSoftBounce EventKind = "soft_bounce" // the provider gave up, or goes on trying
	EventComplained EventKind = "complained"  // the recipient called it spam
)

// ProviderEvent is one thing that a provider told.
type ProviderEvent struct {
	ID       ID
	Provider string
	Kind     EventKind
	At       time.Time // by the provider's clock
	Detail   string    // its words, at most 500 bytes
}
