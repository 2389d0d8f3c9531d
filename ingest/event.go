package ingest

import (
	"context"
	"errors"
	"net/http"

	"github.com/stormpost/stormpost/internal/message"
)

// MaxEventBody bounds what a provider tells at once, in bytes: SendGrid sends
// batches of up to 768 KB.
const MaxEventBody = 1 << 20

var (
	// ErrForged means that a request isn't the provider's.
	ErrForged = errors.New("the signature is missing or wrong")
	// ErrMalformed means that it is, and can't be read.
	ErrMalformed = errors.New("the event can't be read")
)

// EventSource is one provider's way of telling of messages that it took. Its
// methods are safe for concurrent use.
type EventSource interface {
	// Read checks that a request is the provider's and says what it tells. Its
	// errors wrap ErrForged or ErrMalformed; any other is temporary.
	Read(ctx context.Context, h http.Header, body []byte) ([]message.ProviderEvent, error)
}
