package apns

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
	_ delivery.Provider = (*Provider)(nil)
	_ delivery.Slot     = (*slot)(nil)
)

// Apple's addresses. Device tokens of apps that Xcode installed are for Sandbox.
const (
	Production = "https://api.push.apple.com"
	Sandbox    = "https://api.sandbox.push.apple.com"
)

const (
	defaultConcurrency = 100
	defaultConnections = 4
)

// Config says whose app's pushes to send and how. Name, Token and Topic are
// required; BaseURL is Production by default, Concurrency 100.
type Config struct {
	overhttp.Options
	Token       *credential.Credential // provider tokens, of a credential.APNs; the caller's to close
	Topic       string                 // the app's bundle id
	Connections int                    // at a time; default 4, since each takes a thousand requests at a time
}

// Provider is one app. It is safe for concurrent use.
type Provider struct {
	cfg    Config
	base   *url.URL
	client *overhttp.Client
}

// New checks cfg, failing with message.FieldErrors that show no key, and makes
// a provider. It connects when it is first used. Close must be called.
func New(cfg Config) (*Provider, error) {
	if cfg.BaseURL == "" {
		cfg.BaseURL = Production
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = defaultConcurrency
	}
	if cfg.Connections == 0 {
		cfg.Connections = defaultConnections
	}
	base, errs := cfg.Check()
	more := cfg.check()
	if base != nil && base.Scheme != "https" {
		more = append(more, message.FieldError{Field: "base_url", Problem: "want https: APNs is HTTP/2 over TLS"})
	}
	if errs = append(errs, more...); len(errs) > 0 {
		return nil, fmt.Errorf("apns: %w", errs)
	}
	return &Provider{
		cfg: cfg, base: base,
		client: overhttp.New(overhttp.Config{
			Base: base, Concurrency: cfg.Concurrency, MaxConns: cfg.Connections, HTTP2: true, Bound: true,
			ReplyLimit: cfg.ReplyLimit, RootCAs: cfg.RootCAs, Now: cfg.Now,
		}),
	}, nil
}

// check is of what is APNs' own.
func (c *Config) check() (errs message.FieldErrors) {
	add := func(field, problem string) {
		errs = append(errs, message.FieldError{Field: field, Problem: problem})
	}
	if c.Token == nil {
		add("token", "is required")
	}
	if c.Topic == "" {
		add("topic", "is required: the app's bundle id")
	}
	for i := range len(c.Topic) {
		if c.Topic[i] <= ' ' || c.Topic[i] > '~' {
			add("topic", "is no bundle id")
			break
		}
	}
	if c.Connections < 1 || c.Connections > 100 {
		add("connections", "want 1 to 100")
	}
	return errs
}

// Name is Config.Name.
func (p *Provider) Name() string { return p.cfg.Name }

// Credential is Config.Token.
func (p *Provider) Credential() *credential.Credential { return p.cfg.Token }

// Channel is push.
func (p *Provider) Channel() message.Channel { return message.ChannelPush }

// ReplyLimit is Config.ReplyLimit.
func (p *Provider) ReplyLimit() time.Duration { return p.cfg.ReplyLimit }

// Capabilities says that a repeat replaces, by its collapse id.
func (p *Provider) Capabilities() delivery.Capabilities {
	return delivery.Capabilities{Repeats: delivery.RepeatsReplaced, MaxBytes: MaxPayload}
}

// Reserve waits for one of Config.Concurrency slots, a place on one of few
// connections, and a provider token.
func (p *Provider) Reserve(ctx context.Context) (delivery.Slot, error) {
	place, err := p.client.Reserve(ctx)
	if err == nil {
		// The token comes last, so that it doesn't age while a slot is waited for.
		var use credential.Use
		if use, err = p.cfg.Token.Use(ctx); err == nil {
			return &slot{p: p, place: place, token: use}, nil
		}
		place.Release()
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("apns provider %s: %w", p.cfg.Name, err)
}

// Close ends all connections. Calling it again does nothing more.
func (p *Provider) Close() error {
	p.client.Close()
	return nil
}

// slot is the right to hand over one message, with token.
type slot struct {
	p     *Provider
	place *overhttp.Place
	token credential.Use
}

// Release gives the slot back.
func (s *slot) Release() { s.place.Release() }

// Send hands env over in one request, or in two where the first was certainly
// not taken: refused for its token, not processed before a GOAWAY, or lost
// before its body was touched.
func (s *slot) Send(ctx context.Context, env *message.Envelope, last func() error) message.Result {
	if err := fit(env); err != nil {
		return overhttp.Unfit(err)
	}
	body, err := encode(env.Content.Push, env.ID)
	if err != nil {
		return overhttp.Unfit(err)
	}
	device := env.Content.Push.To.Token
	unrelated := false // the token is of another key than the connection
	return s.place.Post(ctx, overhttp.Request{
		URL: overhttp.Join(s.p.base, "3", "device", device), Header: s.p.header(env, s.token.Value()), Body: body,
		Judge: func(a overhttp.Answer) (message.Result, bool) {
			res, refused := judge(a, s.token.Value(), device)
			switch unrelated = res.Code == unrelatedKey; {
			case refused && !unrelated:
				s.token.Rejected(res.Reply)
			case letIn(a, res):
				s.token.Accepted()
			}
			return res, refused
		},
		Renew: func(ctx context.Context) (http.Header, error) {
			if unrelated { // the next connection is for its key
				return s.p.header(env, s.token.Value()), nil
			}
			use, err := s.p.cfg.Token.Use(ctx)
			if err != nil {
				return nil, err
			}
			s.token = use
			return s.p.header(env, use.Value()), nil
		},
		Secrets: []string{s.token.Value(), device},
	}, last)
}
