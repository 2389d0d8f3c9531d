package sendgrid

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

var (
	_ delivery.Provider = (*Provider)(nil)
	_ delivery.Slot     = (*slot)(nil)
)

const (
	// DefaultBaseURL is SendGrid's; accounts in the EU use
	// https://api.eu.sendgrid.com.
	DefaultBaseURL = "https://api.sendgrid.com"
	// MaxBytes is the limit for a message with its attachments:
	// https://www.twilio.com/docs/sendgrid/api-reference/mail-send/limitations
	MaxBytes = 30_000_000
)

// Config says which account to use and how. Name and Key are required; BaseURL
// is DefaultBaseURL by default.
type Config struct {
	overhttp.Options
	Key *credential.Credential // the API key
}

// Provider is one SendGrid account. It is safe for concurrent use.
type Provider struct {
	*overhttp.Service
	key  *credential.Credential
	send *url.URL
}

// New checks cfg, failing with message.FieldErrors, and makes
// a provider. It connects when it is first used. Close must be called.
func New(cfg Config) (*Provider, error) {
	if cfg.BaseURL == "" {
		cfg.BaseURL = DefaultBaseURL
	}
	base, errs := cfg.Check()
	if cfg.Key == nil {
		errs = append(errs, message.FieldError{Field: "key", Problem: "is required"})
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("sendgrid: %w", errs)
	}
	s := overhttp.NewService(cfg.Options, base, nil)
	return &Provider{Service: s, key: cfg.Key, send: s.URL("v3", "mail", "send")}, nil
}

// Channel is email.
func (p *Provider) Channel() message.Channel { return message.ChannelEmail }

// Capabilities promises nothing but the size.
func (p *Provider) Capabilities() delivery.Capabilities {
	return delivery.Capabilities{MaxBytes: MaxBytes}
}

// Reserve waits for a slot, a place on a connection and a key.
func (p *Provider) Reserve(ctx context.Context) (delivery.Slot, error) {
	keyed, err := p.Keyed(ctx, p.key)
	if err != nil {
		return nil, err
	}
	return &slot{Keyed: keyed, p: p}, nil
}

// slot is the right to hand over one message.
type slot struct {
	*overhttp.Keyed
	p *Provider
}

// Send hands env over in one request, or in two where the first was refused for
// its key alone. The package comment says which answer makes which outcome.
func (s *slot) Send(ctx context.Context, env *message.Envelope, last func() error) message.Result {
	body, err := encode(env)
	if err != nil {
		return overhttp.Unfit(err)
	}
	return s.Hand(ctx, overhttp.KeyedRequest{
		URL: s.p.send, Body: body, Judge: s.judge,
		Header: func(key string) (http.Header, error) {
			return http.Header{
				"Authorization": {"Bearer " + key}, "Content-Type": {"application/json"}, "Accept": {"application/json"},
			}, nil
		},
	}, last)
}
