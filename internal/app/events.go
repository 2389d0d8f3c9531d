package app

import (
	"fmt"
	"time"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/ingest/events"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// leastEventsPassword is how long a password is that nobody may guess.
const leastEventsPassword = 16

// eventSources are the providers that may tell of messages.
func eventSources(cfg config.Config) (map[string]ingest.EventSource, error) {
	all := make(map[string]ingest.EventSource)
	if topic := cfg.SES.EventsTopic; topic != "" {
		sns, err := events.NewSNS(topic, nil, time.Now)
		if err != nil {
			return nil, fmt.Errorf("ses.events_topic: %w", err)
		}
		all["ses"] = events.SES{SNS: sns}
	}
	if secret := cfg.Resend.EventsSecret.Reveal(); secret != "" {
		key, err := overhttp.ParseSecret(secret)
		if err != nil {
			return nil, fmt.Errorf("resend.events_secret: %w", err)
		}
		all["resend"] = events.Resend{Secret: key, Now: time.Now}
	}
	if password := cfg.Postmark.EventsPassword.Reveal(); password != "" {
		if len(password) < leastEventsPassword {
			return nil, fmt.Errorf("postmark.events_password: want at least %d characters", leastEventsPassword)
		}
		all["postmark"] = events.Postmark{User: "postmark", Password: password}
	}
	if text := cfg.SendGrid.EventsKey; text != "" {
		key, err := events.ParseSendGridKey(text)
		if err != nil {
			return nil, fmt.Errorf("sendgrid.events_key: %w", err)
		}
		all["sendgrid"] = events.SendGrid{Key: key, Now: time.Now}
	}
	return all, nil
}
