package fcm

import (
	"crypto/x509"
	"log/slog"
	"net/url"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

const (
	defaultBaseURL     = "https://fcm.googleapis.com"
	defaultConcurrency = 100
	maxConcurrency     = 10_000
	// defaultReplyLimit: Google asks senders to wait for 10 s at least
	// (https://firebase.google.com/docs/cloud-messaging/scale-fcm). Waiting
	// costs a slot, giving up makes a doubt, so this is longer.
	defaultReplyLimit = time.Minute
	minReplyLimit     = 10 * time.Millisecond
)

// Scope is what access tokens are to be asked for:
// https://developers.google.com/identity/protocols/oauth2/scopes#fcm
const Scope = "https://www.googleapis.com/auth/firebase.messaging"

// Config says which project's FCM to use and how. Only Name, Project and Token
// are required.
type Config struct {
	Name    string
	Project string                 // the Firebase project's id
	Token   *credential.Credential // its values are access tokens for Scope

	// BaseURL replaces FCM's address. Plain http is for loopback addresses alone,
	// and is HTTP/1.1; https is HTTP/2 where the server has it.
	BaseURL string

	Concurrency int // hand-overs at a time; default 100
	// ReplyLimit is the time allowed for the answer, counted from last and over
	// both tries where there are two; default a minute.
	ReplyLimit time.Duration

	RootCAs *x509.CertPool   // default: the system's
	Now     func() time.Time // default time.Now
	Logger  *slog.Logger     // default: discards
}

// settings is a Config that was checked.
type settings struct {
	Config
	send *url.URL // of messages:send
}

// check fails with message.FieldErrors. None of them shows a key.
func (c Config) check() (settings, error) {
	s := settings{Config: c}
	var errs message.FieldErrors
	add := func(field, problem string) {
		errs = append(errs, message.FieldError{Field: field, Problem: problem})
	}
	if c.Name == "" {
		add("name", "is required")
	}
	if s.BaseURL == "" {
		s.BaseURL = defaultBaseURL
	}
	base, problem := overhttp.CheckURL(s.BaseURL)
	if problem != "" {
		add("base_url", problem)
	}
	if s.Project == "" {
		add("project", "is required")
	}
	if s.Token == nil {
		add("token", "is required")
	}
	if s.Concurrency == 0 {
		s.Concurrency = defaultConcurrency
	}
	if s.Concurrency < 1 || s.Concurrency > maxConcurrency {
		add("concurrency", "want 1 to 10000")
	}
	if s.ReplyLimit == 0 {
		s.ReplyLimit = defaultReplyLimit
	}
	if s.ReplyLimit < minReplyLimit {
		add("reply_limit", "is too short for any answer")
	}
	if len(errs) > 0 {
		return settings{}, errs
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	s.send = overhttp.Join(base, "v1", "projects", url.PathEscape(s.Project), "messages:send")
	return s, nil
}
