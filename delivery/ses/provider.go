package ses

import (
	"context"
	"fmt"
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
	body, err := s.p.encode(env)
	if err != nil {
		return overhttp.Unfit(err)
	}
	header, err := s.p.sign(ctx, body)
	if err != nil {
		return message.Result{Outcome: message.Deferred, Code: "not sent", Reply: overhttp.Line("the request can't be signed: "+err.Error(), s.p.secrets()...)}
	}
	return s.Post(ctx, overhttp.Request{URL: s.p.send, Header: header, Body: body, Judge: s.judge, Secrets: s.p.secrets()}, last)
}

// secrets are never shown. An access key's id isn't one.
func (p *Provider) secrets() []string { return []string{p.cfg.SecretKey, p.cfg.SessionToken} }
