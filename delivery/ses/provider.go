package ses

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

var (
	_ delivery.Provider = (*Provider)(nil)
	_ delivery.Slot     = (*slot)(nil)
)

// Provider is one SES account in one region. It is safe for concurrent use.
type Provider struct {
	*overhttp.Service
	cfg  Config
	send *url.URL
}

// New checks cfg, failing with message.FieldErrors, and makes a provider. It
// connects when it is first used. Close must be called.
func New(cfg Config) (*Provider, error) {
	errs := cfg.check()
	base, more := cfg.Check()
	if errs = append(errs, more...); len(errs) > 0 {
		return nil, fmt.Errorf("ses: %w", errs)
	}
	s := overhttp.NewService(cfg.Options, base, nil)
	return &Provider{Service: s, cfg: cfg, send: s.URL("v2", "email", "outbound-emails")}, nil
}

// Channel is email.
func (p *Provider) Channel() message.Channel { return message.ChannelEmail }

// Capabilities promises nothing but the size.
func (p *Provider) Capabilities() delivery.Capabilities {
	return delivery.Capabilities{MaxBytes: MaxBytes}
}

// Reserve waits for a slot, a place on a connection and a key.
func (p *Provider) Reserve(ctx context.Context) (delivery.Slot, error) {
	keyed, err := p.Keyed(ctx, p.cfg.Key)
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
	body, err := s.p.encode(env)
	if err != nil {
		return overhttp.Unfit(err)
	}
	return s.Hand(ctx, overhttp.KeyedRequest{
		URL: s.p.send, Body: body, Judge: judge, Hide: hide,
		Header: func(key string) (http.Header, error) { return s.p.sign(ctx, body, key) },
	}, last)
}
