package events

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/message"
)

// SES reads Amazon SES's events, which come through a topic of Amazon SNS.
type SES struct {
	SNS *SNS
}

// Read implements ingest.EventSource.
func (s SES) Read(ctx context.Context, _ http.Header, body []byte) ([]message.ProviderEvent, error) {
	text, err := s.SNS.open(ctx, body)
	if err != nil || text == "" {
		return nil, err
	}
	// https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-contents.html
	var b struct {
		EventType        string `json:"eventType"`
		NotificationType string `json:"notificationType"`
		Mail             struct {
			Tags map[string][]string `json:"tags"`
		} `json:"mail"`
		Bounce struct {
			Type       string    `json:"bounceType"`
			SubType    string    `json:"bounceSubType"`
			At         time.Time `json:"timestamp"`
			Recipients []struct {
				Status     string `json:"status"`
				Diagnostic string `json:"diagnosticCode"`
			} `json:"bouncedRecipients"`
		} `json:"bounce"`
		Complaint struct {
			Type string    `json:"complaintFeedbackType"`
			At   time.Time `json:"timestamp"`
		} `json:"complaint"`
		Delivery struct {
			Response string    `json:"smtpResponse"`
			At       time.Time `json:"timestamp"`
		} `json:"delivery"`
	}
	if err := json.Unmarshal([]byte(text), &b); err != nil {
		return nil, fmt.Errorf("%w: %v", ingest.ErrMalformed, err)
	}
	id := ""
	if tags := b.Mail.Tags[idTag]; len(tags) == 1 {
		id = tags[0]
	}
	if b.EventType == "" {
		b.EventType = b.NotificationType
	}
	var e message.ProviderEvent
	var ok bool
	switch b.EventType {
	case "Delivery":
		e, ok = event("ses", id, message.EventDelivered, b.Delivery.At, b.Delivery.Response)
	case "Complaint":
		e, ok = event("ses", id, message.EventComplained, b.Complaint.At, b.Complaint.Type)
	case "Bounce":
		kind := message.EventSoftBounce
		if b.Bounce.Type == "Permanent" {
			kind = message.EventBounced
		}
		words := []string{b.Bounce.Type, b.Bounce.SubType}
		for _, r := range b.Bounce.Recipients {
			words = append(words, r.Status, r.Diagnostic)
		}
		e, ok = event("ses", id, kind, b.Bounce.At, words...)
	}
	if !ok {
		return nil, nil
	}
	return []message.ProviderEvent{e}, nil
}
