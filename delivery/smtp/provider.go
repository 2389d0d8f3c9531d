package smtp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
)

var (
	_ delivery.Provider      = (*Provider)(nil)
	_ delivery.Authenticator = (*Provider)(nil)
)

// Provider is one SMTP relay. It is safe for concurrent use.
//
// Every open connection, and every one being opened, holds one permit; the
// connections that nobody uses lie in idle. So there are never more than
// Config.Connections, and both channels serve who waits in order of arrival.
type Provider struct {
	cfg    Config
	limits timeouts
	dialer net.Dialer
	keys   map[string][]DKIMKey // by domain

	permits chan struct{}
	idle    chan *conn
	opened  atomic.Int32 // connections
	outage  outage

	closing context.Context // ends with Close
	end     context.CancelFunc
	closed  sync.Once
	wg      sync.WaitGroup // the sweeper and QUITs on their way
}

// New checks cfg and makes a provider. It connects when it is first used. Close
// must be called.
func New(cfg Config) (*Provider, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("smtp: %w", err)
	}
	cfg = cfg.withDefaults()
	p := &Provider{
		cfg: cfg, limits: cfg.timeouts(), keys: make(map[string][]DKIMKey),
		permits: make(chan struct{}, cfg.Connections), idle: make(chan *conn, cfg.Connections),
	}
	for _, k := range cfg.DKIM {
		p.keys[k.Domain] = append(p.keys[k.Domain], k)
	}
	for range cfg.Connections {
		p.permits <- struct{}{}
	}
	p.closing, p.end = context.WithCancel(context.Background())
	p.wg.Go(p.sweep)
	return p, nil
}

// Name is Config.Name.
func (p *Provider) Name() string { return p.cfg.Name }

// Credential is Config.Credential, which may be nil.
func (p *Provider) Credential() *credential.Credential { return p.cfg.Credential }

// Channel is email.
func (p *Provider) Channel() message.Channel { return message.ChannelEmail }

// ReplyLimit is Config.ReplyLimit.
func (p *Provider) ReplyLimit() time.Duration { return p.cfg.ReplyLimit }

// Capabilities promises nothing: SMTP has neither a key nor a look-up, and what
// a relay says of its size limit (RFC 1870) is known on a connection alone.
func (p *Provider) Capabilities() delivery.Capabilities { return delivery.Capabilities{} }

// Authenticate connects and signs in, and hands nothing over. It fails with
// delivery.ErrUnreachable when nobody answers, which says nothing about the
// credential.
func (p *Provider) Authenticate(ctx context.Context) error {
	c, err := p.dial(ctx)
	switch {
	case errors.Is(err, errConnect):
		return fmt.Errorf("%w: %w", delivery.ErrUnreachable, err)
	case err != nil:
		return err
	}
	c.quit(quitLimit)
	return nil
}

// Close ends all connections with QUIT, waits for slots still in use, and for
// every goroutine of the provider. Calling it again does nothing more.
func (p *Provider) Close() error {
	p.closed.Do(func() {
		p.end()
		for held := 0; held < p.cfg.Connections; {
			select {
			case <-p.permits:
				held++
			case c := <-p.idle:
				p.retire(c)
			}
		}
		p.wg.Wait()
	})
	return nil
}
