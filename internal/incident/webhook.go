package incident

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/stormpost/stormpost/internal/overhttp"
)

// Webhook is the sink that posts signed events, as Standard Webhooks has it
// (https://www.standardwebhooks.com).
type Webhook struct {
	url    string
	key    []byte
	client *http.Client
	now    func() time.Time
}

var _ Sink = (*Webhook)(nil)

// NewWebhook makes a webhook of a URL and a secret that are good by CheckURL and
// overhttp.ParseSecret.
func NewWebhook(url, secret string) (*Webhook, error) {
	if err := CheckURL(url, false); err != nil {
		return nil, err
	}
	key, err := overhttp.ParseSecret(secret)
	if err != nil {
		return nil, err
	}
	return &Webhook{url: url, key: key, client: newClient(), now: time.Now}, nil
}

// Name implements Sink.
func (w *Webhook) Name() string { return "webhook" }

// webhookBody is the payload.
type webhookBody struct {
	Type      string    `json:"type"` // incident.opened, incident.updated, incident.resolved
	Timestamp time.Time `json:"timestamp"`
	Data      Incident  `json:"data"`
}

// Send implements Sink. The id stays the same when an event is sent again; the
// time and the signature are those of the try.
func (w *Webhook) Send(ctx context.Context, e Event) error {
	body, err := json.Marshal(webhookBody{"incident." + string(e.Change), e.Incident.UpdatedAt, e.Incident})
	if err != nil {
		return err
	}
	at := strconv.FormatInt(w.now().Unix(), 10)
	mac := hmac.New(sha256.New, w.key)
	mac.Write([]byte(e.ID + "." + at + "."))
	mac.Write(body)
	header := http.Header{}
	header.Set("webhook-id", e.ID)
	header.Set("webhook-timestamp", at)
	header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return post(ctx, w.client, w.url, header, body)
}
