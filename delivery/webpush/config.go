package webpush

import (
	"crypto/ecdsa"
	"crypto/x509"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	defaultConcurrency = 100
	maxConcurrency     = 10_000
	defaultConnections = 4
	defaultReplyLimit  = time.Minute
	minReplyLimit      = 10 * time.Millisecond
	// connectLimit bounds how long a message waits for a connection to its push
	// service, with its claim made.
	connectLimit = 10 * time.Second
)

// Config says who we are to push services. Name, VAPIDKey and Subject are
// required.
type Config struct {
	Name     string
	VAPIDKey string // private key on P-256, PEM or 32 bytes in base64url; subscriptions are made with its public key
	Subject  string // mailto:ADDRESS or an https link, where push services can reach us

	Concurrency int           // hand-overs at a time; default 100, three quarters of it to one push service
	Connections int           // to one push service at a time; default 4
	ReplyLimit  time.Duration // time allowed for the answer; default a minute

	// AllowPrivate lets endpoints be on private networks and on this machine.
	AllowPrivate bool
	// ReplaceRepeats gives each message without a collapse key a Topic of its own,
	// so that a repeat replaces it where it is undelivered.
	ReplaceRepeats bool

	RootCAs *x509.CertPool   // default: the system's
	Now     func() time.Time // default time.Now
}

// settings is a Config that was checked.
type settings struct {
	Config
	key *ecdsa.PrivateKey
}

// perService is how many hand-overs one push service may have at a time, so that
// one that hangs in all lanes at once leaves some to the others. Within a lane
// package delivery sees to that, before the claim.
func (s *settings) perService() int { return max(1, s.Concurrency*3/4) }

// check fails with message.FieldErrors. None of them shows a key.
func (c Config) check() (*settings, error) {
	s := &settings{Config: c}
	var errs message.FieldErrors
	add := func(field, problem string) {
		errs = append(errs, message.FieldError{Field: field, Problem: problem})
	}
	if c.Name == "" {
		add("name", "is required")
	}
	var err error
	if s.key, err = parseVAPIDKey(c.VAPIDKey); err != nil {
		add("vapid_key", err.Error())
	}
	if problem := checkSubject(c.Subject); problem != "" {
		add("subject", problem)
	}
	if s.Concurrency == 0 {
		s.Concurrency = defaultConcurrency
	}
	if s.Concurrency < 1 || s.Concurrency > maxConcurrency {
		add("concurrency", "want 1 to 10000")
	}
	if s.Connections == 0 {
		s.Connections = defaultConnections
	}
	if s.Connections < 1 || s.Connections > 100 {
		add("connections", "want 1 to 100")
	}
	if s.ReplyLimit == 0 {
		s.ReplyLimit = defaultReplyLimit
	}
	if s.ReplyLimit < minReplyLimit {
		add("reply_limit", "is too short for any answer")
	}
	if len(errs) > 0 {
		return nil, errs
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	return s, nil
}
