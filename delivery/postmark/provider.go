package postmark

import (
	"context"
	"net/http"
	"regexp"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

var (
	_ delivery.Provider      = (*Provider)(nil)
	_ delivery.Authenticator = (*Provider)(nil)
)

const (
	// DefaultBaseURL is Postmark's.
	DefaultBaseURL = "https://api.postmarkapp.com"
	// MaxBytes is the limit for a message with its attachments in base64, and
	// maxText that for each of its two texts:
	// https://postmarkapp.com/developer/api/email-api
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
	*overhttp.Keyed
}

// New checks cfg, failing with message.FieldErrors, and makes a provider. It
// connects when it is first used. Close must be called.
func New(cfg Config) (*Provider, error) {
	if cfg.Stream == "" {
		cfg.Stream = "outbound"
	}
	var bad message.FieldErrors
	if !streamForm.MatchString(cfg.Stream) {
		bad = message.FieldErrors{{Field: "stream", Problem: "want up to 30 lower-case letters, digits and hyphens"}}
	}
	k, err := overhttp.NewKeyed(&cfg.Options, cfg.Key, overhttp.API{
		Vendor: "Postmark", BaseURL: DefaultBaseURL, Path: []string{"email"}, SignIn: []string{"server"},
		Encode: func(env *message.Envelope) ([]byte, error) { return encode(env, cfg.Stream) },
		Sign:   sign, Judge: judge, Admits: admits,
	}, bad...)
	if err != nil {
		return nil, err
	}
	return &Provider{k}, nil
}

// Channel is email.
func (*Provider) Channel() message.Channel { return message.ChannelEmail }

// Capabilities says that a message can be looked up by its metadata.
func (*Provider) Capabilities() delivery.Capabilities {
	return delivery.Capabilities{LookUp: true, MaxBytes: MaxBytes}
}

// Reserve waits for a slot, a place on a connection and a key.
func (p *Provider) Reserve(ctx context.Context) (delivery.Slot, error) {
	s, err := p.Slot(ctx)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Authenticate asks for the server that the token belongs to.
func (p *Provider) Authenticate(ctx context.Context) error {
	return p.LogIn(ctx, delivery.ErrUnreachable)
}

func sign(r *http.Request, _ []byte, key string) error {
	r.Header.Set("X-Postmark-Server-Token", key)
	return nil
}
