package events

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/message"
)

// Postmark reads Postmark's webhooks: bounce, spam complaint, delivery. User
// and Password stand in the URL that Postmark calls.
type Postmark struct{ User, Password string }

// hardBounces are the types after which Postmark itself sends no more to an
// address: https://postmarkapp.com/developer/api/bounce-api#bounce-types
var hardBounces = map[string]bool{"HardBounce": true, "BadEmailAddress": true, "ManuallyDeactivated": true, "Blocked": false}

// Read implements ingest.EventSource.
func (p Postmark) Read(_ context.Context, h http.Header, body []byte) ([]message.ProviderEvent, error) {
	user, password, _ := (&http.Request{Header: h}).BasicAuth()
	if p.Password == "" || subtle.ConstantTimeCompare([]byte(user), []byte(p.User))&subtle.ConstantTimeCompare([]byte(password), []byte(p.Password)) != 1 {
		return nil, ingest.ErrForged
	}
	var b struct {
		RecordType, Type, Description, Details string
		BouncedAt, DeliveredAt                 time.Time
		Metadata                               map[string]string
	}
	if err := json.Unmarshal(body, &b); err != nil {
		return nil, fmt.Errorf("%w: %v", ingest.ErrMalformed, err)
	}
	var kind message.EventKind
	at := b.BouncedAt
	switch {
	case b.RecordType == "Delivery":
		kind, at = message.EventDelivered, b.DeliveredAt
	case b.RecordType == "SpamComplaint":
		kind = message.EventComplained
	case b.RecordType == "Bounce" && hardBounces[b.Type]:
		kind = message.EventBounced
	case b.RecordType == "Bounce":
		kind = message.EventSoftBounce
	default:
		return nil, nil // opened, clicked: nothing to us
	}
	if e, ok := event("postmark", b.Metadata[idTag], kind, at, b.Type, b.Description, b.Details); ok {
		return []message.ProviderEvent{e}, nil
	}
	return nil, nil
}
