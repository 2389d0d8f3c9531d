package events

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/message"
)

// Resend reads Resend's webhooks. Secret is the bytes of the endpoint's signing
// secret.
type Resend struct {
	Secret []byte
	Now    func() time.Time
}

// Read implements ingest.EventSource. Resend has the headers of Svix, whose names begin with
// svix-; those of Standard Webhooks, with webhook-, are the same otherwise.
func (r Resend) Read(_ context.Context, h http.Header, body []byte) ([]message.ProviderEvent, error) {
	prefix := "svix-"
	if h.Get("svix-id") == "" {
		prefix = "webhook-"
	}
	id, stamp := h.Get(prefix+"id"), h.Get(prefix+"timestamp")
	at, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || id == "" || len(r.Secret) == 0 || !fresh(time.Unix(at, 0), r.Now()) {
		return nil, ingest.ErrForged
	}
	mac := hmac.New(sha256.New, r.Secret)
	mac.Write([]byte(id + "." + stamp + "."))
	mac.Write(body)
	want := mac.Sum(nil)
	good := false
	for _, s := range strings.Fields(h.Get(prefix + "signature")) {
		got, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s, "v1,"))
		good = good || err == nil && strings.HasPrefix(s, "v1,") && hmac.Equal(got, want)
	}
	if !good {
		return nil, ingest.ErrForged
	}
	var b struct {
		Type      string    `json:"type"`
		CreatedAt time.Time `json:"created_at"`
		Data      struct {
			Tags   json.RawMessage `json:"tags"`
			Bounce struct {
				Type    string `json:"type"`
				SubType string `json:"subType"`
				Message string `json:"message"`
			} `json:"bounce"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &b); err != nil {
		return nil, fmt.Errorf("%w: %v", ingest.ErrMalformed, err)
	}
	var kind message.EventKind
	switch b.Type {
	case "email.delivered":
		kind = message.EventDelivered
	case "email.complained":
		kind = message.EventComplained
	case "email.bounced":
		kind = message.EventBounced
		if b.Data.Bounce.Type != "" && b.Data.Bounce.Type != "Permanent" {
			kind = message.EventSoftBounce
		}
	default:
		return nil, nil
	}
	if e, ok := event("resend", resendTag(b.Data.Tags), kind, b.CreatedAt, b.Data.Bounce.Type, b.Data.Bounce.SubType, b.Data.Bounce.Message); ok {
		return []message.ProviderEvent{e}, nil
	}
	return nil, nil
}

// resendTag finds our tag in either of the two forms that Resend has used: an
// object, and a list as it was sent.
func resendTag(raw json.RawMessage) string {
	var object map[string]string
	if json.Unmarshal(raw, &object) == nil {
		return object[idTag]
	}
	var list []struct{ Name, Value string }
	if json.Unmarshal(raw, &list) == nil {
		for _, t := range list {
			if t.Name == idTag {
				return t.Value
			}
		}
	}
	return ""
}
