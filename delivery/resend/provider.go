package resend

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

var (
	_ delivery.Provider  = (*Provider)(nil)
	_ delivery.Slot      = (*slot)(nil)
	_ delivery.Accounted = (*slot)(nil)
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
	Key *credential.Credential // the API key
}

// Provider is one Resend account. It is safe for concurrent use.
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
		return nil, fmt.Errorf("resend: %w", errs)
	}
	s := overhttp.NewService(cfg.Options, base, nil)
	return &Provider{Service: s, key: cfg.Key, send: s.URL("emails")}, nil
}

// Channel is email.
func (p *Provider) Channel() message.Channel { return message.ChannelEmail }

// Capabilities says that repeats are absorbed for 24 h.
func (p *Provider) Capabilities() delivery.Capabilities {
	return delivery.Capabilities{Repeats: delivery.RepeatsAbsorbed, RepeatWindow: repeatWindow, MaxBytes: MaxBytes}
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
		URL: s.p.send, Body: body, Judge: judge, Account: env.Account,
		Header: func(key string) (http.Header, error) {
			return http.Header{
				"Authorization": {"Bearer " + key}, "Content-Type": {"application/json"}, "Idempotency-Key": {env.ID.String()},
			}, nil
		},
	}, last)
}
