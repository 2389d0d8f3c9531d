package fcm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

var (
	_ delivery.Provider = (*Provider)(nil)
	_ delivery.Slot     = (*slot)(nil)

	_ delivery.Authenticator = (*Provider)(nil)
)

// Provider is one Firebase project. It is safe for concurrent use.
type Provider struct {
	cfg    settings
	client *overhttp.Client
}

// New checks cfg, failing with message.FieldErrors, and makes a provider. It
// connects when it is first used. Close must be called.
func New(cfg Config) (*Provider, error) {
	s, err := cfg.check()
	if err != nil {
		return nil, fmt.Errorf("fcm: %w", err)
	}
	client := overhttp.New(overhttp.Config{Base: s.send, Concurrency: s.Concurrency, ReplyLimit: s.ReplyLimit, RootCAs: s.RootCAs, Now: s.Now})
	return &Provider{cfg: s, client: client}, nil
}

// Name is Config.Name.
func (p *Provider) Name() string { return p.cfg.Name }

// Credential is Config.Token.
func (p *Provider) Credential() *credential.Credential { return p.cfg.Token }

// Channel is push.
func (p *Provider) Channel() message.Channel { return message.ChannelPush }

// ReplyLimit is Config.ReplyLimit.
func (p *Provider) ReplyLimit() time.Duration { return p.cfg.ReplyLimit }

// Capabilities promises nothing but the size: FCM has neither a key nor a look-up.
func (p *Provider) Capabilities() delivery.Capabilities {
	return delivery.Capabilities{MaxBytes: MaxPayload}
}

// Reserve waits for one of Config.Concurrency slots, a place on a connection
// and an access token.
func (p *Provider) Reserve(ctx context.Context) (delivery.Slot, error) {
	s, err := p.reserve(ctx)
	switch {
	case err == nil:
		return s, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("fcm provider %s: %w", p.cfg.Name, err)
}

func (p *Provider) reserve(ctx context.Context) (*slot, error) {
	place, err := p.client.Reserve(ctx)
	if err != nil {
		return nil, err
	}
	// The token comes last, so that it doesn't age while a slot is waited for.
	use, err := p.cfg.Token.Use(ctx)
	if err != nil {
		place.Release()
		return nil, err
	}
	return &slot{p: p, use: use, place: place}, nil
}

// checkBody asks FCM to look at a message, and to send nothing.
const checkBody = `{"validate_only":true,"message":{"topic":"stormpost"}}`

// Authenticate asks FCM to check a message that is for nobody. It fails with
// delivery.ErrUnreachable when nobody answers, which says nothing about the
// credential.
func (p *Provider) Authenticate(ctx context.Context) error {
	for try := 0; ; try++ {
		use, err := p.cfg.Token.Use(ctx)
		if err != nil {
			return err
		}
		a, err := p.check(ctx, use)
		switch {
		case err != nil:
			return err
		case a.status == http.StatusUnauthorized && a.code != codeThirdPartyAuth:
			use.Rejected(a.text)
			if try == 0 {
				continue
			}
		case a.vouches():
			use.Accepted()
			return nil
		}
		return errors.New("FCM answered " + overhttp.Line(a.text, use.Value()))
	}
}

func (p *Provider) check(ctx context.Context, use credential.Use) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.cfg.send.String(), strings.NewReader(checkBody))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+use.Value())
	req.Header.Set("Content-Type", "application/json")
	resp, err := p.client.HTTP().Do(req)
	if err != nil {
		return answer{}, fmt.Errorf("%w: %w", delivery.ErrUnreachable, err)
	}
	defer resp.Body.Close()
	return readAnswer(overhttp.ReadAnswer(resp, p.cfg.Now())), nil
}

// Close ends all connections and goroutines. Calling it again does nothing
// more.
func (p *Provider) Close() error {
	p.client.Close()
	return nil
}
