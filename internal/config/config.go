// Package config reads stormpost.yaml and STORMPOST_* settings into one
// Config. A setting that nobody knows is an error that names it.
package config

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Config is every setting. The key of a setting is its path in the YAML file,
// as smtp.addr; its variable is the same in capitals, as STORMPOST_SMTP_ADDR.
type Config struct {
	Listen        string   `koanf:"listen"`         // host:port of the API
	MetricsListen string   `koanf:"metrics_listen"` // host:port of /metrics; empty: none
	TLS           TLSFiles `koanf:"tls"`            // of the API's listener
	Roles         []string `koanf:"roles"`          // of api and worker
	DSN           Secret   `koanf:"dsn"`            // PostgreSQL, the writer
	Brokers       []string `koanf:"brokers"`        // Kafka, host:port each
	DataDir       string   `koanf:"data_dir"`       // for the snapshot of the keys
	Log           Log      `koanf:"log"`
	Kafka         Kafka    `koanf:"kafka"`
	Ledger        Ledger   `koanf:"ledger"`
	Accept        Accept   `koanf:"accept"`
	Delivery      Delivery `koanf:"delivery"`
	Retention     Retain   `koanf:"retention"`
	SMTP          SMTP     `koanf:"smtp"`
	FCM           FCM      `koanf:"fcm"`
}

// TLSFiles are PEM files; both or neither.
type TLSFiles struct {
	Cert string `koanf:"cert"`
	Key  string `koanf:"key"`
}

// Log says what is logged: level debug, info, warn or error; format json or text.
type Log struct {
	Level  string `koanf:"level"`
	Format string `koanf:"format"`
}

// Kafka is how topics are made and brokers are spoken to.
type Kafka struct {
	Prefix      string `koanf:"prefix"`
	Partitions  int    `koanf:"partitions"`  // of each lane's topic
	Replication int    `koanf:"replication"` // 0: the lesser of 3 and the number of brokers
	TLS         bool   `koanf:"tls"`
	Mechanism   string `koanf:"sasl_mechanism"` // PLAIN, SCRAM-SHA-256, SCRAM-SHA-512; empty: none
	Username    string `koanf:"sasl_username"`
	Password    Secret `koanf:"sasl_password"`
}

// Ledger is how PostgreSQL is used.
type Ledger struct {
	MaxConns  int           `koanf:"max_conns"`
	Batch     int           `koanf:"batch"`      // rows a batch at most
	Flushers  int           `koanf:"flushers"`   // batches under way at once, of each kind
	Deadline  time.Duration `koanf:"deadline"`   // after which an operation's fate is unknown
	BeatEvery time.Duration `koanf:"beat_every"` // heartbeat
}

// Accept is what the API takes.
type Accept struct {
	Timeout     time.Duration `koanf:"timeout"`      // of a request
	EmailLife   time.Duration `koanf:"email_life"`   // without expires_at
	PushLife    time.Duration `koanf:"push_life"`    // without expires_at
	MaxSchedule time.Duration `koanf:"max_schedule"` // how far ahead send_at may be
}

// Delivery is how messages are handed over.
type Delivery struct {
	Senders       map[string]int    `koanf:"senders"`        // by lane, as transactional.email
	ClaimValid    time.Duration     `koanf:"claim_valid"`    // the last check's limit
	ShutdownGrace time.Duration     `koanf:"shutdown_grace"` // for open replies on SIGTERM
	RetryBase     time.Duration     `koanf:"retry_base"`     // upper bound of the first wait
	RetryMax      time.Duration     `koanf:"retry_max"`      // upper bound of every wait
	Doubts        map[string]string `koanf:"doubts"`         // by lane: hold or resend
}

// Retain is how long things are kept, by age.
type Retain struct {
	Content  time.Duration `koanf:"content"`
	Messages time.Duration `koanf:"messages"`
}

// SMTP is the relay for email; an empty Addr means none.
type SMTP struct {
	Addr        string        `koanf:"addr"`
	Username    string        `koanf:"username"`
	Password    Secret        `koanf:"password"`
	TLS         string        `koanf:"tls"` // starttls-if-offered, starttls-required or implicit
	ServerName  string        `koanf:"server_name"`
	LocalName   string        `koanf:"local_name"`
	Connections int           `koanf:"connections"`
	ReplyLimit  time.Duration `koanf:"reply_limit"`
	DKIM        []DKIM        `koanf:"dkim"`
}

// DKIM is the key that signs mail from a domain.
type DKIM struct {
	Domain   string `koanf:"domain"`
	Selector string `koanf:"selector"`
	Key      Secret `koanf:"key"` // PEM
}

// FCM is Firebase Cloud Messaging; an empty ServiceAccount means none.
type FCM struct {
	ServiceAccount Secret        `koanf:"service_account"` // the JSON file's content
	BaseURL        string        `koanf:"base_url"`
	TokenURL       string        `koanf:"token_url"`
	Concurrency    int           `koanf:"concurrency"`
	ReplyLimit     time.Duration `koanf:"reply_limit"`
}

// Default is what holds where nothing is set.
func Default() Config {
	return Config{
		Listen:        "127.0.0.1:8080",
		MetricsListen: "127.0.0.1:9464",
		Roles:         []string{"api", "worker"},
		Brokers:       []string{"127.0.0.1:9092"},
		DataDir:       "stormpost-data",
		Log:           Log{Level: "info", Format: "json"},
		Kafka:         Kafka{Prefix: "stormpost", Partitions: 4},
		Ledger:        Ledger{MaxConns: 24, Batch: 500, Flushers: 2, Deadline: 5 * time.Second, BeatEvery: 2 * time.Second},
		Accept:        Accept{Timeout: 10 * time.Second, EmailLife: 72 * time.Hour, PushLife: 24 * time.Hour, MaxSchedule: 30 * 24 * time.Hour},
		Delivery: Delivery{
			ClaimValid: 30 * time.Second, ShutdownGrace: 30 * time.Second,
			RetryBase: 30 * time.Second, RetryMax: time.Hour,
		},
		Retention: Retain{Content: 14 * 24 * time.Hour, Messages: 180 * 24 * time.Hour},
		SMTP:      SMTP{TLS: "starttls-if-offered", Connections: 16, ReplyLimit: 10 * time.Minute},
		FCM:       FCM{Concurrency: 100, ReplyLimit: time.Minute},
	}
}

// Has says whether the process has a role.
func (c *Config) Has(role string) bool { return slices.Contains(c.Roles, role) }

// Validate names every setting that is wrong.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	address := func(key, addr string, may bool) {
		if addr == "" && may {
			return
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			bad(key, "want HOST:PORT, not %q", addr)
		}
	}
	if c.DSN == "" {
		bad("dsn", "is required, as postgres://user@host/database")
	}
	if len(c.Brokers) == 0 {
		bad("brokers", "want at least one HOST:PORT")
	}
	for i, b := range c.Brokers {
		address(fmt.Sprintf("brokers[%d]", i), b, false)
	}
	if len(c.Roles) == 0 {
		bad("roles", "want api, worker or both")
	}
	for _, r := range c.Roles {
		if r != "api" && r != "worker" {
			bad("roles", "unknown role %q: want api or worker", r)
		}
	}
	address("listen", c.Listen, !c.Has("api"))
	address("metrics_listen", c.MetricsListen, true)
	address("smtp.addr", c.SMTP.Addr, true)
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		bad("tls", "want both cert and key, or neither")
	}
	if !slices.Contains([]string{"starttls-if-offered", "starttls-required", "implicit"}, c.SMTP.TLS) {
		bad("smtp.tls", "want starttls-if-offered, starttls-required or implicit, not %q", c.SMTP.TLS)
	}
	c.validateNumbers(bad)
	return errors.Join(errs...)
}

func (c *Config) validateNumbers(bad func(key, format string, args ...any)) {
	for key, d := range map[string]time.Duration{
		"ledger.deadline": c.Ledger.Deadline, "ledger.beat_every": c.Ledger.BeatEvery, "accept.timeout": c.Accept.Timeout,
		"accept.email_life": c.Accept.EmailLife, "accept.push_life": c.Accept.PushLife, "accept.max_schedule": c.Accept.MaxSchedule,
		"delivery.claim_valid": c.Delivery.ClaimValid, "delivery.shutdown_grace": c.Delivery.ShutdownGrace,
		"delivery.retry_base": c.Delivery.RetryBase, "delivery.retry_max": c.Delivery.RetryMax,
		"smtp.reply_limit": c.SMTP.ReplyLimit, "fcm.reply_limit": c.FCM.ReplyLimit,
	} {
		if d <= 0 {
			bad(key, "must be above 0, as 30s")
		}
	}
	for key, n := range map[string]int{
		"ledger.max_conns": c.Ledger.MaxConns, "ledger.batch": c.Ledger.Batch, "ledger.flushers": c.Ledger.Flushers,
		"kafka.partitions": c.Kafka.Partitions, "smtp.connections": c.SMTP.Connections, "fcm.concurrency": c.FCM.Concurrency,
	} {
		if n < 1 || n > 10_000 {
			bad(key, "want 1 to 10000, not %d", n)
		}
	}
	for lane, n := range c.Delivery.Senders {
		if _, err := message.ParseLane(lane); err != nil {
			bad("delivery.senders", "%v", err)
		} else if n < 1 || n > 10_000 {
			bad("delivery.senders."+lane, "want 1 to 10000, not %d", n)
		}
	}
	for lane, policy := range c.Delivery.Doubts {
		if _, err := message.ParseLane(lane); err != nil {
			bad("delivery.doubts", "%v", err)
		} else if policy != "hold" && policy != "resend" {
			bad("delivery.doubts."+lane, "want hold or resend, not %q", policy)
		}
	}
}

// Secret is a setting that must not be seen: it shows itself as [redacted].
// In the file it is given by reference, file:PATH or env:NAME, or as it is.
type Secret string

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "[redacted]"
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return s.String() }

// MarshalText hides the secret from encoders and loggers.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Reveal is the secret itself.
func (s Secret) Reveal() string { return string(s) }

func isReference(s Secret) bool {
	return strings.HasPrefix(string(s), "file:") || strings.HasPrefix(string(s), "env:")
}
