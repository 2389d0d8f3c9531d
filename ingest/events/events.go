package events

import (
	"strings"
	"time"
	"unicode"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	maxAge    = 5 * time.Minute // of a signed timestamp, either way
	maxDetail = 500             // bytes
	maxEvents = 5000            // in one request
	idTag     = "stormpost_id"  // that each message carries
)

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
