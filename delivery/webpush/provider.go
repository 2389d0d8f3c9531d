package webpush

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"net/url"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

var (
	_ delivery.Provider = (*Provider)(nil)
	_ delivery.Slot     = (*slot)(nil)
)

// Provider pushes to any browser's push service. It is safe for concurrent use.
type Provider struct {
	cfg      *settings
	vapid    *vapid
	services *services
	slots    chan struct{} // one value for each slot in use
	life     context.Context
	end      context.CancelFunc
}

// New checks cfg, failing with message.FieldErrors, and makes a provider. Close
// must be called.
func New(cfg Config) (*Provider, error) {
	s, err := cfg.check()
	if err != nil {
		return nil, fmt.Errorf("webpush: %w", err)
	}
	v, err := newVAPID(s.key, s.Subject, s.Now)
	if err != nil {
		return nil, fmt.Errorf("webpush: %w", err)
	}
	p := &Provider{cfg: s, vapid: v, services: &services{cfg: s, open: make(map[string]*service)}, slots: make(chan struct{}, s.Concurrency)}
	p.life, p.end = context.WithCancel(context.Background())
	return p, nil
}

// Name is Config.Name.
func (p *Provider) Name() string { return p.cfg.Name }

// Channel is push.
func (p *Provider) Channel() message.Channel { return message.ChannelPush }

// ReplyLimit is Config.ReplyLimit.
func (p *Provider) ReplyLimit() time.Duration { return p.cfg.ReplyLimit }

// Capabilities promises that a repeat replaces what is undelivered if each
// message has a Topic.
func (p *Provider) Capabilities() delivery.Capabilities {
	c := delivery.Capabilities{MaxBytes: maxBody}
	if p.cfg.ReplaceRepeats {
		c.Repeats = delivery.RepeatsReplaced
	}
	return c
}

// PublicKey is what pages make subscriptions with, as their
// applicationServerKey: an uncompressed point in base64url.
func (p *Provider) PublicKey() string { return p.vapid.public }

// Reserve waits for one of Config.Concurrency slots. Which push service a
// message goes to, only Send knows.
func (p *Provider) Reserve(ctx context.Context) (delivery.Slot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if p.life.Err() != nil {
		return nil, fmt.Errorf("webpush provider %s: %w", p.cfg.Name, errClosed)
	}
	select {
	case p.slots <- struct{}{}:
		return &slot{p}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.life.Done():
		return nil, fmt.Errorf("webpush provider %s: %w", p.cfg.Name, errClosed)
	}
}

// Close ends all connections. Calling it again does nothing more.
func (p *Provider) Close() error {
	p.end()
	p.services.close()
	return nil
}

// slot is the right to hand over one message.
type slot struct{ p *Provider }

// Release gives the slot back.
func (s *slot) Release() { <-s.p.slots }

// Send hands env over in one request. It connects to the push service first, so
// that a service that can't be reached has certainly not been handed anything.
func (s *slot) Send(ctx context.Context, env *message.Envelope, last func() error) message.Result {
	if env.Content == nil || env.Content.Push == nil || env.Content.Push.To.Endpoint == "" {
		return message.Result{Outcome: message.Rejected, Code: "invalid", Reply: "not sent: it is not a push to a subscription"}
	}
	push := env.Content.Push
	to, err := endpoint(push.To.Endpoint, s.p.cfg.AllowPrivate)
	if err != nil {
		return message.Result{Outcome: message.Rejected, Code: "invalid", Reply: "not sent: its endpoint: " + err.Error()}
	}
	body, err := s.p.seal(env)
	if err != nil {
		return message.Result{Outcome: message.Rejected, Code: "invalid", Reply: overhttp.Line("not sent: " + err.Error())}
	}
	audience := origin(to)
	authorization, err := s.p.vapid.authorization(audience)
	if err != nil {
		return message.Result{Outcome: message.Deferred, Code: "vapid", Reply: overhttp.Line(err.Error())}
	}
	service, err := s.p.services.get(to)
	if err != nil {
		return message.Result{Outcome: message.Deferred, Code: "not connected", Reply: err.Error()}
	}
	defer s.p.services.put(service)
	place, err := service.place(ctx)
	if err != nil {
		return unreachable(ctx, err, to)
	}
	defer place.Release()
	header := s.p.header(env)
	header["Authorization"] = []string{authorization}
	secrets := []string{to.String(), to.RequestURI(), to.EscapedPath(), authorization}
	return place.Post(ctx, overhttp.Request{
		URL: to, Header: header, Body: body, Secrets: secrets,
		Judge: func(a overhttp.Answer) (message.Result, bool) {
			return judge(a, secrets...), false
		},
	}, last)
}

// unreachable is the result of a message that has no connection. A name that has
// no public address now may have one later: resolvers answer so in trouble.
func unreachable(ctx context.Context, err error, to *url.URL) message.Result {
	res := message.Result{Outcome: message.Deferred, Code: "not connected", Reply: overhttp.Line(err.Error(), to.RequestURI())}
	if ctx.Err() != nil {
		res.Outcome = message.Returned
	}
	return res
}

// seal is env's payload, encrypted for its subscription. Both the key and the
// salt are new each time: a repeat is not the same bytes.
func (p *Provider) seal(env *message.Envelope) ([]byte, error) {
	to, err := readKeys(env.Content.Push.To.Keys)
	if err != nil {
		return nil, err
	}
	plain, err := encode(env.Content.Push, env.ID)
	if err != nil {
		return nil, err
	}
	sender, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	salt := make([]byte, saltSize)
	if _, err := rand.Read(salt); err != nil {
		return nil, err
	}
	return to.encrypt(plain, sender, salt)
}
