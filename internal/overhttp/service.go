package overhttp

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/url"
	"syscall"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	maxConcurrency = 10_000
	minReplyLimit  = 10 * time.Millisecond
)

// Options are what every provider over HTTP is configured with. Name and
// BaseURL are required.
type Options struct {
	Name string
	// BaseURL is https anywhere, or plain http to a loopback address. Over https,
	// HTTP/2 is spoken where the service has it.
	BaseURL     string
	Concurrency int // hand-overs at a time; default 20
	// ReplyLimit is the time allowed for the answer, counted from last; default a
	// minute. Waiting costs a slot, giving up makes a doubt.
	ReplyLimit time.Duration

	RootCAs *x509.CertPool   // default: the system's
	Now     func() time.Time // default time.Now
	Logger  *slog.Logger     // default: discards
}

// Service is what providers over HTTP have in common. It is safe for concurrent
// use.
type Service struct {
	opt    Options // with defaults
	base   *url.URL
	client *Client
}

// Check fills in defaults, and says what is wrong.
func (o *Options) Check() (base *url.URL, errs message.FieldErrors) {
	add := func(field, problem string) {
		errs = append(errs, message.FieldError{Field: field, Problem: problem})
	}
	if o.Name == "" {
		add("name", "is required")
	}
	base, problem := CheckURL(o.BaseURL)
	if problem != "" {
		add("base_url", problem)
	}
	if o.Concurrency == 0 {
		o.Concurrency = 20
	}
	if o.Concurrency < 1 || o.Concurrency > maxConcurrency {
		add("concurrency", "want 1 to 10000")
	}
	if o.ReplyLimit == 0 {
		o.ReplyLimit = time.Minute
	}
	if o.ReplyLimit < minReplyLimit {
		add("reply_limit", "is too short for any answer")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return base, errs
}

// NewService makes the service that o, which was checked, describes. Control is
// as in Config, or nil. Close must be called.
func NewService(o Options, base *url.URL, control func(network, address string, c syscall.RawConn) error) *Service {
	return &Service{opt: o, base: base, client: New(Config{
		Base: base, Concurrency: o.Concurrency, ReplyLimit: o.ReplyLimit, RootCAs: o.RootCAs, Control: control, Now: o.Now,
	})}
}

// Name is Options.Name.
func (s *Service) Name() string { return s.opt.Name }

// ReplyLimit is Options.ReplyLimit.
func (s *Service) ReplyLimit() time.Duration { return s.opt.ReplyLimit }

// Base is Options.BaseURL.
func (s *Service) Base() *url.URL { return s.base }

// URL is that of a path under the base.
func (s *Service) URL(elem ...string) *url.URL { return Join(s.base, elem...) }

// Now is Options.Now.
func (s *Service) Now() time.Time { return s.opt.Now() }

// Account is a name for whoever is at Base and known by secret, which may be
// empty. It doesn't show the secret, which must be a long random one.
func (s *Service) Account(secret string) string {
	sum := sha256.Sum256([]byte("stormpost account\x00" + s.base.String() + "\x00" + secret))
	return hex.EncodeToString(sum[:8])
}

// Place waits for a slot and a place on a connection.
func (s *Service) Place(ctx context.Context) (*Place, error) {
	p, err := s.client.Reserve(ctx)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("provider %s: %w", s.opt.Name, err)
	}
	return p, err
}

// Close ends all connections and goroutines. Calling it again does nothing
// more.
func (s *Service) Close() error {
	s.client.Close()
	return nil
}
