package resend

import (
	"context"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

var (
	_ delivery.Provider      = (*Provider)(nil)
	_ delivery.Authenticator = (*Provider)(nil)
	_ delivery.Accounted     = (*overhttp.Slot)(nil)
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
	*overhttp.Keyed
}

// New checks cfg, failing with message.FieldErrors, and makes a provider. It
// connects when it is first used. Close must be called.
func New(cfg Config) (*Provider, error) {
	k, err := overhttp.NewKeyed(&cfg.Options, cfg.Key, overhttp.API{
		Vendor: "Resend", BaseURL: DefaultBaseURL, Path: []string{"emails"}, SignIn: []string{"domains"}, IDHeader: "Idempotency-Key",
		Encode: encode, Sign: overhttp.Bearer, Judge: judge, Admits: admits,
	})
	if err != nil {
		return nil, err
	}
	return &Provider{k}, nil
}

// Channel is email.
func (*Provider) Channel() message.Channel { return message.ChannelEmail }

// Capabilities says that repeats are absorbed for 24 h.
func (*Provider) Capabilities() delivery.Capabilities {
	return delivery.Capabilities{Repeats: delivery.RepeatsAbsorbed, RepeatWindow: repeatWindow, MaxBytes: MaxBytes}
}

// Reserve waits for a slot, a place on a connection and a key.
func (p *Provider) Reserve(ctx context.Context) (delivery.Slot, error) {
	s, err := p.Slot(ctx)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Authenticate asks for the account's domains.
func (p *Provider) Authenticate(ctx context.Context) error {
	return p.LogIn(ctx, delivery.ErrUnreachable)
}
