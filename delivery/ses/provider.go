package ses

import (
	"context"
	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

var (
	_ delivery.Provider      = (*Provider)(nil)
	_ delivery.Authenticator = (*Provider)(nil)
)

// Provider is one SES account in one region. It is safe for concurrent use.
type Provider struct {
	*overhttp.Keyed
}

// New checks cfg, failing with message.FieldErrors, and makes a provider. It
// connects when it is first used. Close must be called.
func New(cfg Config) (*Provider, error) {
	k, err := overhttp.NewKeyed(&cfg.Options, cfg.Key, overhttp.API{
		Vendor: "SES", Path: []string{"v2", "email", "outbound-emails"}, SignIn: []string{"v2", "email", "account"},
		Encode: cfg.encode, Sign: cfg.sign, Judge: judge, Admits: admits, Hide: hide,
	}, cfg.check()...)
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

// Authenticate asks for the account's limits.
func (p *Provider) Authenticate(ctx context.Context) error {
	return p.LogIn(ctx, delivery.ErrUnreachable)
}
