package events

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/message"
)

// SendGrid reads SendGrid's signed event webhook.
type SendGrid struct {
	Key *ecdsa.PublicKey
	Now func() time.Time
}

// ParseSendGridKey reads the verification key as SendGrid shows it: the base64
// of a public key in PKIX form.
func ParseSendGridKey(text string) (*ecdsa.PublicKey, error) {
	der, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		return nil, errors.New("want the base64 of a public key, as SendGrid shows it")
	}
	any, err := x509.ParsePKIXPublicKey(der)
	key, ok := any.(*ecdsa.PublicKey)
	if err != nil || !ok {
		return nil, errors.New("want an ECDSA public key in PKIX form, as SendGrid shows it")
	}
	return key, nil
}

// Read implements ingest.EventSource.
func (s SendGrid) Read(_ context.Context, h http.Header, body []byte) ([]message.ProviderEvent, error) {
	stamp := h.Get("X-Twilio-Email-Event-Webhook-Timestamp")
	sig, err := base64.StdEncoding.DecodeString(h.Get("X-Twilio-Email-Event-Webhook-Signature"))
	at, aerr := strconv.ParseInt(stamp, 10, 64)
	if err != nil || aerr != nil || s.Key == nil || !fresh(time.Unix(at, 0), s.Now()) {
		return nil, ingest.ErrForged
	}
	digest := sha256.New()
	digest.Write([]byte(stamp))
	digest.Write(body)
	if !ecdsa.VerifyASN1(s.Key, digest.Sum(nil), sig) {
		return nil, ingest.ErrForged
	}
	var list []struct {
		Event     string `json:"event"`
		Type      string `json:"type"`
		Timestamp int64  `json:"timestamp"`
		Reason    string `json:"reason"`
		Status    string `json:"status"`
		Response  string `json:"response"`
		ID        string `json:"stormpost_id"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("%w: %v", ingest.ErrMalformed, err)
	}
	if len(list) > maxEvents {
		return nil, fmt.Errorf("%w: it has %d events, want at most %d", ingest.ErrMalformed, len(list), maxEvents)
	}
	var all []message.ProviderEvent
	for _, b := range list {
		var kind message.EventKind
		switch {
		case b.Event == "delivered":
			kind = message.EventDelivered
		case b.Event == "spamreport":
			kind = message.EventComplained
		case b.Event == "bounce" && b.Type != "blocked":
			kind = message.EventBounced
		case b.Event == "bounce", b.Event == "dropped":
			kind = message.EventSoftBounce
		default:
			continue
		}
		if e, ok := event("sendgrid", b.ID, kind, time.Unix(b.Timestamp, 0), b.Status, b.Reason, b.Response); ok {
			all = append(all, e)
		}
	}
	return all, nil
}
