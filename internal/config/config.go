// Package config reads stormpost.yaml and STORMPOST_* settings into one
// Config. A setting that nobody knows is an error that names it.
package config

//go:generate go test -run TestSettingsDocument . -update

import (
	"slices"
	"strings"
	"time"
)

// Config is every setting. The key of a setting is its path in the YAML file,
// as smtp.addr; its variable is the same in capitals, as STORMPOST_SMTP_ADDR.
type Config struct {
	Listen        string            `koanf:"listen"`         // host:port of the API
	MetricsListen string            `koanf:"metrics_listen"` // host:port of /metrics, and of a /livez and /readyz; empty: none
	TLS           TLSFiles          `koanf:"tls"`            // of the API's listener
	Roles         []string          `koanf:"roles"`          // what the process does, some of api, worker, recovery and watch; recovery enters into the ledger what the journal kept while it was away, replays, and repairs the numbering
	DSN           Secret            `koanf:"dsn"`            // PostgreSQL, always the writer: postgres://user@host/database
	Brokers       []string          `koanf:"brokers"`        // Kafka, host:port each
	Clusters      map[string]string `koanf:"clusters"`       // further Kafka clusters by name, for stormpost evacuate: NAME=HOST:PORT HOST:PORT,…; all as kafka.* says, and the cluster of brokers is called main
	DataDir       string            `koanf:"data_dir"`       // folder of this process alone, which can be written to, of the API keys' snapshot, of the last incidents, and of what was seen of the ledger and of Kafka
	Log           Log               `koanf:"log"`
	Kafka         Kafka             `koanf:"kafka"`
	Ledger        Ledger            `koanf:"ledger"`
	Accept        Accept            `koanf:"accept"`
	Delivery      Delivery          `koanf:"delivery"`
	Retention     Retain            `koanf:"retention"`
	Guard         Guard             `koanf:"guard"`
	SMTP          SMTP              `koanf:"smtp"`
	SES           SES               `koanf:"ses"`
	Resend        Resend            `koanf:"resend"`
	Postmark      Postmark          `koanf:"postmark"`
	SendGrid      SendGrid          `koanf:"sendgrid"`
	FCM           FCM               `koanf:"fcm"`
	APNs          APNs              `koanf:"apns"`
	WebPush       WebPush           `koanf:"webpush"`
	Webhook       Receiver          `koanf:"webhook"`
	Secrets       Secrets           `koanf:"secrets"`
	Credentials   []Credential      `koanf:"credentials"` // passwords, tokens and keys that rotate, in the file only: a list, see below
	Incidents     Incident          `koanf:"incidents"`
}

// TLSFiles are PEM files; both or neither.
type TLSFiles struct {
	Cert string `koanf:"cert"` // certificate chain of the API's listener, a PEM file; read at start
	Key  string `koanf:"key"`  // its private key, a PEM file
}

// Log says what is logged: level debug, info, warn or error; format json or text.
type Log struct {
	Level  string `koanf:"level"`  // debug, info, warn or error
	Format string `koanf:"format"` // json or text
}

// Kafka is how topics are made and brokers are spoken to.
type Kafka struct {
	Prefix        string        `koanf:"prefix"`         // of the topics' names and the consumer group's
	Partitions    int           `koanf:"partitions"`     // of each lane's topic, when it is made
	Replication   int           `koanf:"replication"`    // of each topic, when it is made; 0: the lesser of 3 and the number of brokers
	TLS           bool          `koanf:"tls"`            // speak TLS with the brokers
	Mechanism     string        `koanf:"sasl_mechanism"` // PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty: none
	Username      string        `koanf:"sasl_username"`  // for SASL
	Password      Secret        `koanf:"sasl_password"`  // for SASL
	Standby       string        `koanf:"standby"`        // the cluster of clusters that lanes are moved to by themselves when theirs is gone; empty: none
	EvacuateAfter time.Duration `koanf:"evacuate_after"` // how long a cluster must have been away, without a break, to be gone
}

// Ledger is how PostgreSQL is used.
type Ledger struct {
	MaxConns  int           `koanf:"max_conns"`  // connections to PostgreSQL of one process
	Batch     int           `koanf:"batch"`      // rows a batch at most
	Flushers  int           `koanf:"flushers"`   // batches under way at once, of each kind
	Deadline  time.Duration `koanf:"deadline"`   // after which an operation's fate is unknown; the server gives up at four fifths of it
	BeatEvery time.Duration `koanf:"beat_every"` // heartbeat; a process is gone after three missed ones
}

// Accept is what the API takes.
type Accept struct {
	Timeout     time.Duration `koanf:"timeout"`      // until a request is answered, 1s to 1m
	Patience    time.Duration `koanf:"patience"`     // how long the ledger may take to accept before the journal in Kafka does instead; at most half of the timeout
	EmailLife   time.Duration `koanf:"email_life"`   // life of an email without expires_at
	PushLife    time.Duration `koanf:"push_life"`    // life of a push without expires_at
	MaxSchedule time.Duration `koanf:"max_schedule"` // how far ahead send_at may be

	Shield time.Duration `koanf:"shield"` // for how long before and after an incident a request without a key that has another's whole content and recipients counts as its repeat (stormpost tenants); 0: never

	Backlog       int64   `koanf:"backlog"`        // messages of a class and more urgent ones that may be ready and unsent: at half of it campaigns are refused with 429, at three quarters trigger, at all of it transactional ones; 0: no limit
	TenantBacklog int64   `koanf:"tenant_backlog"` // of those, what one tenant may have in one lane; 0: no limit
	TenantRate    float64 `koanf:"tenant_rate"`    // messages a second that one tenant may submit to one process, in a burst twice that; 0: no limit
}

// Delivery is how messages are handed over.
type Delivery struct {
	Email         []string          `koanf:"email"`          // providers for email in order of preference, of smtp, ses, resend, postmark, sendgrid and webhook; what one defers the next gets; empty: those that are configured, in this order
	Routes        []Route           `koanf:"routes"`         // see below
	Senders       map[string]int    `koanf:"senders"`        // attempts that a lane may have open at each provider, in one process: LANE=N,…; else 64 for transactional, 32 for the others
	ClaimValid    time.Duration     `koanf:"claim_valid"`    // how old a claim may be at the last check before the hand-over
	ShutdownGrace time.Duration     `koanf:"shutdown_grace"` // how long open replies are waited for on SIGTERM
	RetryBase     time.Duration     `koanf:"retry_base"`     // upper bound of the first wait before a retry; doubles with each; at most retry_max
	RetryMax      time.Duration     `koanf:"retry_max"`      // upper bound of every such wait
	Doubts        map[string]string `koanf:"doubts"`         // what becomes of a message whose provider's answer was lost: LANE=hold or LANE=resend,…; else hold
}

// Retain is how long things are kept, by age.
type Retain struct {
	Content  time.Duration `koanf:"content"`  // how long content is kept after its era has ended; 0: for ever
	Messages time.Duration `koanf:"messages"` // how long all else is kept, numbers and idempotency keys too, at least as long as content; 0: for ever
}

// Guard is how the numbering is watched.
type Guard struct {
	Every time.Duration `koanf:"every"` // between two checks of the numbering; 100ms to 1m; a fault is noticed and repaired within five of them
}

// SMTP is the relay for email; an empty Addr means none.
type SMTP struct {
	Addr        string        `koanf:"addr"`        // host:port of the relay for email; empty: none, and email waits
	Username    string        `koanf:"username"`    // for AUTH; empty: none
	Password    Live          `koanf:"password"`    // for AUTH: the password, or the access token; as `credential:NAME`, too
	Auth        string        `koanf:"auth"`        // xoauth2 or oauthbearer, which show an access token; empty: PLAIN or LOGIN
	TLS         string        `koanf:"tls"`         // starttls-if-offered, starttls-required or implicit
	ServerName  string        `koanf:"server_name"` // name in the relay's certificate, if it isn't that of addr
	LocalName   string        `koanf:"local_name"`  // name given in EHLO
	Connections int           `koanf:"connections"` // to the relay, of one process
	Rate        float64       `koanf:"rate"`        // hand-overs a second at most, of one process; 0: no bound
	ReplyLimit  time.Duration `koanf:"reply_limit"` // how long the reply to the final dot is waited for (RFC 5321 §4.5.3.2.6)
	DKIM        []DKIM        `koanf:"dkim"`        // keys that sign mail, in the file only: a list of domain, selector, key
}

// DKIM is the key that signs mail from a domain.
type DKIM struct {
	Domain   string `koanf:"domain"`   // of the From address
	Selector string `koanf:"selector"` // of the key in DNS
	Key      Secret `koanf:"key"`      // private key, PEM
}

// FCM is Firebase Cloud Messaging; an empty ServiceAccount and an empty Token
// mean none.
type FCM struct {
	ServiceAccount Live          `koanf:"service_account"` // content of the service account's JSON file; empty: none, and pushes wait; as `credential:NAME`, too
	Token          Live          `koanf:"token"`           // instead of a service account: access tokens, as `credential:NAME` or a file that somebody renews
	Project        string        `koanf:"project"`         // the Firebase project's id; default: the service account's, if that is a file
	BaseURL        string        `koanf:"base_url"`        // another base URL than FCM's
	TokenURL       string        `koanf:"token_url"`       // another token endpoint than the account's
	Concurrency    int           `koanf:"concurrency"`     // requests under way at once, of one process
	Rate           float64       `koanf:"rate"`            // hand-overs a second at most, of one process; 0: no bound
	ReplyLimit     time.Duration `koanf:"reply_limit"`     // how long an answer is waited for
}

// Incident is when something counts as wrong, and whom the role watch tells.
type Incident struct {
	Objective    Objective `koanf:"objective"`
	Webhook      Webhook   `koanf:"webhook"`
	Alertmanager []string  `koanf:"alertmanager"` // base URLs of Alertmanagers, as http://alertmanager:9093; each is told
	Runbook      string    `koanf:"runbook"`      // URL of the runbook that incidents link to
}

// Objective is how old the oldest message of a lane that is ready may become
// before the lane stalls, by class.
type Objective struct {
	Transactional time.Duration `koanf:"transactional"` // age at which a transactional lane in which nothing moves stalls, and ETA from which it does
	Trigger       time.Duration `koanf:"trigger"`       // the same, for trigger
	Campaign      time.Duration `koanf:"campaign"`      // the same, for campaign
}

// Webhook is a receiver of signed events; an empty URL means none.
type Webhook struct {
	URL    string `koanf:"url"`    // gets incidents by POST, signed as Standard Webhooks has it; https, or http to this machine; empty: none
	Secret Secret `koanf:"secret"` // that signs them: whsec_ and the base64 of 24 to 64 bytes
}

// Default is what holds where nothing is set.
func Default() Config {
	return Config{
		Listen:        "127.0.0.1:8080",
		MetricsListen: "127.0.0.1:9464",
		Roles:         slices.Clone(roles),
		Brokers:       []string{"127.0.0.1:9092"},
		DataDir:       "stormpost-data",
		Log:           Log{Level: "info", Format: "json"},
		Kafka:         Kafka{Prefix: "stormpost", Partitions: 4, EvacuateAfter: 30 * time.Second},
		Ledger:        Ledger{MaxConns: 24, Batch: 1000, Flushers: 2, Deadline: 5 * time.Second, BeatEvery: 2 * time.Second},
		Accept:        Accept{Timeout: 10 * time.Second, Patience: 2 * time.Second, EmailLife: 72 * time.Hour, PushLife: 24 * time.Hour, MaxSchedule: 30 * 24 * time.Hour, Shield: time.Hour, Backlog: 8_000_000, TenantBacklog: 2_000_000},
		Delivery: Delivery{
			ClaimValid: 30 * time.Second, ShutdownGrace: 30 * time.Second,
			RetryBase: 30 * time.Second, RetryMax: time.Hour,
		},
		Retention: Retain{Content: 14 * 24 * time.Hour, Messages: 180 * 24 * time.Hour},
		Guard:     Guard{Every: 2 * time.Second},
		SMTP:      SMTP{TLS: "starttls-if-offered", Connections: 24, ReplyLimit: 10 * time.Minute},
		SES:       SES{Concurrency: 50, ReplyLimit: time.Minute},
		Resend:    Resend{Concurrency: 20, ReplyLimit: time.Minute},
		Postmark:  Postmark{Stream: "outbound", Concurrency: 20, ReplyLimit: time.Minute},
		SendGrid:  SendGrid{Concurrency: 50, ReplyLimit: time.Minute},
		FCM:       FCM{Concurrency: 100, ReplyLimit: time.Minute},
		APNs:      APNs{Concurrency: 100, Connections: 4, ReplyLimit: time.Minute},
		WebPush:   WebPush{Concurrency: 100, Connections: 4, ReplyLimit: time.Minute},
		Webhook:   Receiver{Channel: "email", Concurrency: 20, ReplyLimit: time.Minute},
		Incidents: Incident{
			Objective: Objective{Transactional: 30 * time.Second, Trigger: 5 * time.Minute, Campaign: time.Hour},
			Runbook:   "https://github.com/stormpost/stormpost/blob/main/docs/runbook.md",
		},
	}
}

var roles = []string{"api", "worker", "recovery", "watch"}

// Has says whether the process has a role.
func (c *Config) Has(role string) bool { return slices.Contains(c.Roles, role) }

// Live is a secret that may change while the process runs. It shows itself as
// [redacted], or as the reference that it is. It is given as file:PATH, which is
// read again and again; as credential:NAME, one of Config.Credentials; as
// env:NAME; or as it is.
type Live string

const (
	filePrefix       = "file:"
	credentialPrefix = "credential:"
	// valuePrefix is before what is no reference, once it has been loaded.
	valuePrefix = "value:"
)

// File is the path that it is read from, if it is.
func (l Live) File() (path string, ok bool) { return strings.CutPrefix(string(l), filePrefix) }

// Credential is the name of the credential that it is, if it is one.
func (l Live) Credential() (name string, ok bool) {
	return strings.CutPrefix(string(l), credentialPrefix)
}

// Value is the secret itself, if it is no reference.
func (l Live) Value() string { return strings.TrimPrefix(string(l), valuePrefix) }

// String hides the secret.
func (l Live) String() string {
	_, file := l.File()
	_, named := l.Credential()
	if l == "" || file || named {
		return string(l)
	}
	return "[redacted]"
}

// GoString hides the secret from %#v.
func (l Live) GoString() string { return l.String() }

// MarshalText hides the secret from encoders and loggers.
func (l Live) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

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
