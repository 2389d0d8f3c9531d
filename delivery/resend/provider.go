package resend

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

var (
	_ delivery.Provider = (*Provider)(nil)
	_ delivery.Slot     = (*slot)(nil)
)

const (
	// DefaultBaseURL is Resend's.
	DefaultBaseURL = "https://api.resend.com"
	// repeatWindow is how long a key is remembered:
	// https://resend.com/docs/dashboard/emails/idempotency-keys
	repeatWindow = 24 * time.Hour
	// MaxBytes is the limit for an email, attachments in base64:
	// https://resend.com/docs/dashboard/emails/attachments
	MaxBytes = 40_000_000
)

// Config says which account to use and how. Name and Key are required; BaseURL
// is DefaultBaseURL by default.
type Config struct {
	overhttp.Options
	Key string // the API key
}

// Provider is one Resend account. It is safe for concurrent use.
type Provider struct {
	*overhttp.Service
	key  string
	send *url.URL
}

// New checks cfg, failing with message.FieldErrors that show no key, and makes
// a provider. It connects when it is first used. Close must be called.
func New(cfg Config) (*Provider, error) {
	if cfg.BaseURL == "" {
		cfg.BaseURL = DefaultBaseURL
	}
	base, errs := cfg.Check()
	if problem := overhttp.CheckKey(cfg.Key); problem != "" {
		errs = append(errs, message.FieldError{Field: "key", Problem: problem})
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("resend: %w", errs)
	}
	s := overhttp.NewService(cfg.Options, base, nil)
	return &Provider{Service: s, key: cfg.Key, send: s.URL("emails")}, nil
}

// Channel is email.
func (p *Provider) Channel() message.Channel { return message.ChannelEmail }

// Capabilities: repeats are absorbed for 24 h.
func (p *Provider) Capabilities() delivery.Capabilities {
	return delivery.Capabilities{Repeats: delivery.RepeatsAbsorbed, RepeatWindow: repeatWindow, MaxBytes: MaxBytes}
}

// Reserve waits for a slot and a place on a connection.
func (p *Provider) Reserve(ctx context.Context) (delivery.Slot, error) {
	place, err := p.Place(ctx)
	if err != nil {
		return nil, err
	}
	return &slot{Place: place, p: p}, nil
}

// slot is the right to hand over one message.
type slot struct {
	*overhttp.Place
	p *Provider
}

// Send hands env over in one request. The package comment says which answer
// makes which outcome.
func (s *slot) Send(ctx context.Context, env *message.Envelope, last func() error) message.Result {
	body, err := encode(env)
	if err != nil {
		return overhttp.Unfit(err)
	}
	return s.Post(ctx, overhttp.Request{
		URL: s.p.send, Body: body, Secrets: []string{s.p.key}, Judge: s.judge,
		Header: map[string][]string{
			"Authorization": {"Bearer " + s.p.key}, "Content-Type": {"application/json"}, "Idempotency-Key": {env.ID.String()},
		},
	}, last)
}
