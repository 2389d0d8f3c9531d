package fcm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
)

var (
	_ delivery.Provider = (*Provider)(nil)
	_ delivery.Slot     = (*slot)(nil)

	_ delivery.Authenticator = (*Provider)(nil)
)

// Provider is one Firebase project. It is safe for concurrent use.
type Provider struct {
	cfg       settings
	transport *http.Transport
	conns     *conns
	slots     chan struct{} // one value for each slot in use
}

// New checks cfg, failing with message.FieldErrors, and makes a provider. It
// connects when it is first used. Close must be called.
func New(cfg Config) (*Provider, error) {
	s, err := cfg.check()
	if err != nil {
		return nil, fmt.Errorf("fcm: %w", err)
	}
	tr := newTransport(s)
	return &Provider{
		cfg:       s,
		transport: tr,
		conns:     &conns{transport: tr, scheme: s.send.Scheme, addr: hostPort(s.send), now: s.Now, turn: make(chan struct{}, 1)},
		slots:     make(chan struct{}, s.Concurrency),
	}, nil
}

func newTransport(s settings) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true) // over TLS alone
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        &tls.Config{RootCAs: s.RootCAs, MinVersion: tls.VersionTLS12},
		Protocols:              protocols,
		DisableCompression:     true,
		IdleConnTimeout:        idleLimit,
		MaxResponseHeaderBytes: 64 << 10,
		// A connection that went silent is found out within half a minute, so
		// that few messages are lost to doubt on it.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second, WriteByteTimeout: handOver},
	}
}

// Name is Config.Name.
func (p *Provider) Name() string { return p.cfg.Name }

// Channel is push.
func (p *Provider) Channel() message.Channel { return message.ChannelPush }

// ReplyLimit is Config.ReplyLimit.
func (p *Provider) ReplyLimit() time.Duration { return p.cfg.ReplyLimit }

// Reserve waits for one of Config.Concurrency slots, an access token and a
// place on a connection.
func (p *Provider) Reserve(ctx context.Context) (delivery.Slot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s, err := p.reserve(ctx)
	if err != nil {
		<-p.slots
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("fcm provider %s: %w", p.cfg.Name, err)
	}
	return s, nil
}

func (p *Provider) reserve(ctx context.Context) (*slot, error) {
	use, err := p.cfg.Token.Use(ctx)
	if err != nil {
		return nil, err
	}
	c, err := p.conns.reserve(ctx)
	if err != nil {
		return nil, err
	}
	return &slot{p: p, use: use, conn: c}, nil
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
		return errors.New("FCM answered " + line(a.text, use.Value()))
	}
}

func (p *Provider) check(ctx context.Context, use credential.Use) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.cfg.send.String(), strings.NewReader(checkBody))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+use.Value())
	req.Header.Set("Content-Type", "application/json")
	resp, err := p.transport.RoundTrip(req)
	if err != nil {
		return answer{}, fmt.Errorf("%w: %w", delivery.ErrUnreachable, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	return readAnswer(resp, raw, err == nil && len(raw) <= maxAnswer, p.cfg.Now()), nil
}

// Close ends all connections and goroutines. Calling it again does nothing
// more.
func (p *Provider) Close() error {
	p.conns.close()
	p.transport.CloseIdleConnections()
	return nil
}
