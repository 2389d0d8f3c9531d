package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

var (
	_ delivery.Provider  = (*Provider)(nil)
	_ delivery.Slot      = (*slot)(nil)
	_ delivery.Accounted = (*slot)(nil)
)

// Config says which receiver to use and how. Name, BaseURL and Secrets are
// required. BaseURL is the whole URL of the receiver.
type Config struct {
	overhttp.Options
	// Secrets sign each request, all of them, so that a receiver can change from
	// one to the next: whsec_ and the base64 of 24 to 64 bytes, at most 3.
	Secrets []string
	Channel message.Channel // whose messages it takes; default email
	// RepeatWindow is for how long the receiver drops repeats by their
	// webhook-id; 0 if it doesn't.
	RepeatWindow time.Duration
	// AllowPrivate allows receivers in private networks and on this machine, and
	// plain http to the latter.
	AllowPrivate bool
}

// Provider is one receiver. It is safe for concurrent use.
type Provider struct {
	*overhttp.Service
	cfg  Config
	keys [][]byte
}

// New checks cfg, failing with message.FieldErrors that show no secret, and
// makes a provider. It connects when it is first used. Close must be called.
func New(cfg Config) (*Provider, error) {
	if cfg.Channel == 0 {
		cfg.Channel = message.ChannelEmail
	}
	base, errs := cfg.Check()
	add := func(field, problem string) {
		errs = append(errs, message.FieldError{Field: field, Problem: problem})
	}
	if base != nil && base.Scheme == "http" && !cfg.AllowPrivate {
		add("base_url", "is plain http to this machine, which allow_private would have to allow")
	}
	if len(cfg.Secrets) < 1 || len(cfg.Secrets) > 3 {
		add("secrets", "want 1 to 3")
	}
	keys := make([][]byte, len(cfg.Secrets))
	for i, s := range cfg.Secrets {
		var err error
		if keys[i], err = overhttp.ParseSecret(s); err != nil {
			add(fmt.Sprintf("secrets[%d]", i), err.Error())
		}
	}
	if cfg.Channel != message.ChannelEmail && cfg.Channel != message.ChannelPush {
		add("channel", "want email or push")
	}
	if cfg.RepeatWindow < 0 {
		add("repeat_window", "is negative")
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("webhook: %w", errs)
	}
	control := overhttp.OnlyPublic
	if cfg.AllowPrivate {
		control = func(string, string, syscall.RawConn) error { return nil }
	}
	return &Provider{Service: overhttp.NewService(cfg.Options, base, control), cfg: cfg, keys: keys}, nil
}

// Channel is Config.Channel.
func (p *Provider) Channel() message.Channel { return p.cfg.Channel }

// Capabilities says that repeats are absorbed if Config.RepeatWindow says so.
func (p *Provider) Capabilities() delivery.Capabilities {
	if p.cfg.RepeatWindow == 0 {
		return delivery.Capabilities{}
	}
	return delivery.Capabilities{Repeats: delivery.RepeatsAbsorbed, RepeatWindow: p.cfg.RepeatWindow}
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

// Account is the receiver, whatever secret signs.
func (s *slot) Account() string { return s.p.Account("") }

// Send hands env over in one request. The package comment says which answer
// makes which outcome.
func (s *slot) Send(ctx context.Context, env *message.Envelope, last func() error) message.Result {
	body, err := encode(env, s.p.cfg.Channel)
	if err != nil {
		return overhttp.Unfit(err)
	}
	header := http.Header{"Content-Type": {"application/json"}}
	at := strconv.FormatInt(s.p.Now().Unix(), 10)
	header.Set("webhook-id", env.ID.String())
	header.Set("webhook-timestamp", at)
	header.Set("webhook-signature", s.p.sign(env.ID.String(), at, body))
	return s.Post(ctx, overhttp.Request{URL: s.p.Base(), Header: header, Body: body, Judge: s.judge, Secrets: s.p.cfg.Secrets}, last)
}

// sign is one signature by each key, separated by spaces.
func (p *Provider) sign(id, at string, body []byte) string {
	all := make([]string, len(p.keys))
	for i, key := range p.keys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + at + "."))
		mac.Write(body)
		all[i] = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return strings.Join(all, " ")
}
