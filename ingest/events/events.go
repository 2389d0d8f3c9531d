package events

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/stormpost/stormpost/internal/message"
)

// MaxBody bounds a request, in bytes: SendGrid sends batches of up to 768 KB.
const MaxBody = 1 << 20

const (
	maxAge    = 5 * time.Minute // of a signed timestamp, either way
	maxDetail = 500             // bytes
	maxEvents = 5000            // in one request
	idTag     = "stormpost_id"  // that each message carries
)

var (
	// ErrForged means that the request isn't the provider's: 401.
	ErrForged = errors.New("the signature is missing or wrong")
	// ErrMalformed means that it is, and can't be read: 400.
	ErrMalformed = errors.New("the event can't be read")
)

// Source is one provider's way of telling. Its methods are safe for concurrent use.
type Source interface {
	// Read checks that a request is the provider's and says what it tells. Its
	// errors wrap ErrForged or ErrMalformed; any other is temporary.
	Read(ctx context.Context, h http.Header, body []byte) ([]message.ProviderEvent, error)
}

// event makes an event of a message that may not be ours; then ok is false.
func event(provider, id string, kind message.EventKind, at time.Time, detail ...string) (e message.ProviderEvent, ok bool) {
	parsed, err := message.ParseID(id)
	if err != nil || parsed.IsSubmission() {
		return e, false
	}
	words := strings.Join(strings.FieldsFunc(strings.Join(detail, " "), func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if len(words) > maxDetail {
		words = strings.ToValidUTF8(words[:maxDetail], "")
	}
	return message.ProviderEvent{ID: parsed, Provider: provider, Kind: kind, At: at, Detail: words}, true
}

// fresh says whether a signed timestamp is near enough, so that an old request
// can't be played again. (Played within these minutes it changes nothing.)
func fresh(at, now time.Time) bool { return now.Sub(at).Abs() <= maxAge }
