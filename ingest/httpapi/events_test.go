package httpapi_test

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/ingest/events"
	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/message"
)

// The door for providers: no key, but their own signature; what is forged,
// malformed, too large or of nobody is refused, and nothing of it is kept.
func TestProviderEventsAtTheDoor(t *testing.T) {
	id := message.SubmissionID(message.HashKey(1, "k"), message.FingerprintOf(nil)).Message(0).String()
	f := newFixture(t, func(c *httpapi.Config) {
		c.Events = map[string]ingest.EventSource{"postmark": events.Postmark{User: "postmark", Password: "a long password"}}
	})
	good := "Basic " + base64.StdEncoding.EncodeToString([]byte("postmark:a long password"))
	body := `{"RecordType":"Delivery","DeliveredAt":"2026-05-01T12:00:00Z","Metadata":{"stormpost_id":"` + id + `"}}`
	for _, c := range []struct {
		path, auth, body string
		status           int
	}{
		{"/events/postmark", "", body, http.StatusUnauthorized},
		{"/events/postmark", good, "{", http.StatusBadRequest},
		{"/events/postmark", good, strings.Repeat(" ", ingest.MaxEventBody+1), http.StatusRequestEntityTooLarge},
		{"/events/ses", good, body, http.StatusNotFound},
	} {
		if a := f.do(http.MethodPost, c.path, "", c.body, "Authorization", c.auth); a.StatusCode != c.status {
			t.Errorf("%s %.40q: %d, want %d: %s", c.path, c.body, a.StatusCode, c.status, a.body)
		}
	}
	if len(f.told) != 0 {
		t.Errorf("kept %v", f.told)
	}
	if a := f.do(http.MethodPost, "/events/postmark", "", body, "Authorization", good); a.StatusCode != http.StatusNoContent || len(f.told) != 1 {
		t.Errorf("%d, kept %v: %s", a.StatusCode, f.told, a.body)
	}
}
