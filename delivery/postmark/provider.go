package postmark

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"

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
	// DefaultBaseURL is Postmark's.
	DefaultBaseURL = "https://api.postmarkapp.com"
	// MaxBytes is the limit for a message with its attachments, and maxText that
	// for each of its two texts: https://postmarkapp.com/developer/api/email-api
	MaxBytes = 10 << 20
	maxText  = 5 << 20
)

// Config says which server to use and how. Name and Key are required; BaseURL
// is DefaultBaseURL by default.
type Config struct {
	overhttp.Options
	Key    *credential.Credential // the server's API token
	Stream string                 // Postmark's message stream; default "outbound"
}

var streamForm = regexp.MustCompile(`^[a-z0-9-]{1,30}$`)

// Provider is one Postmark server. It is safe for concurrent use.
type Provider struct {
	*overhttp.Service
	cfg  Config
	send *url.URL
}

// New checks cfg, failing with message.FieldErrors, and makes
// a provider. It connects when it is first used. Close must be called.
func New(cfg Config) (*Provider, error) {
	if cfg.BaseURL == "" {
		cfg.BaseURL = DefaultBaseURL
	}
	if cfg.Stream == "" {
		cfg.Stream = "outbound"
	}
	base, errs := cfg.Check()
	if cfg.Key == nil {
		errs = append(errs, message.FieldError{Field: "key", Problem: "is required"})
	}
	if !streamForm.MatchString(cfg.Stream) {
		errs = append(errs, message.FieldError{Field: "stream", Problem: "want up to 30 lower-case letters, digits and hyphens"})
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("postmark: %w", errs)
	}
	s := overhttp.NewService(cfg.Options, base, nil)
	return &Provider{Service: s, cfg: cfg, send: s.URL("email")}, nil
}

// Channel is email.
func (p *Provider) Channel() message.Channel { return message.ChannelEmail }

// Capabilities says that a message can be looked up by its metadata.
func (p *Provider) Capabilities() delivery.Capabilities {
	return delivery.Capabilities{LookUp: true, MaxBytes: MaxBytes}
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
		URL: s.p.send, Body: body, Judge: judge,
		Header: func(key string) (http.Header, error) {
			return http.Header{
				"Accept": {"application/json"}, "Content-Type": {"application/json"}, "X-Postmark-Server-Token": {key},
			}, nil
		},
	}, last)
}
