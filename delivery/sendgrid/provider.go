package sendgrid

import (
	"context"
	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

var (
	_ delivery.Provider      = (*Provider)(nil)
	_ delivery.Authenticator = (*Provider)(nil)
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
	*overhttp.Keyed
}

// New checks cfg, failing with message.FieldErrors, and makes a provider. It
// connects when it is first used. Close must be called.
func New(cfg Config) (*Provider, error) {
	k, err := overhttp.NewKeyed(&cfg.Options, cfg.Key, overhttp.API{
		Vendor: "SendGrid", BaseURL: DefaultBaseURL, Path: []string{"v3", "mail", "send"}, SignIn: []string{"v3", "scopes"},
		Encode: encode, Sign: overhttp.Bearer, Judge: judge, Admits: admits,
	})
	if err != nil {
		return nil, err
	}
	return &Provider{k}, nil
}

// Channel is email.
func (*Provider) Channel() message.Channel { return message.ChannelEmail }

// Capabilities promises nothing but the size.
func (*Provider) Capabilities() delivery.Capabilities {
	return delivery.Capabilities{MaxBytes: MaxBytes}
}

// Reserve waits for a slot, a place on a connection and a key.
func (p *Provider) Reserve(ctx context.Context) (delivery.Slot, error) {
	s, err := p.Slot(ctx)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Authenticate asks what the key may be used for.
func (p *Provider) Authenticate(ctx context.Context) error {
	return p.LogIn(ctx, delivery.ErrUnreachable)
}
