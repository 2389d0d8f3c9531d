package broker

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/stormpost/stormpost/internal/message"
)

// Config says where Kafka is and how its topics are made.
type Config struct {
	Brokers     []string      // host:port each
	Prefix      string        // of topics and the group; default stormpost
	Partitions  int           // of each lane's topic; default 4
	Replication int           // default the lesser of 3 and the number of brokers
	Session     time.Duration // after which a silent member is out; default 10 s
	TLS         *tls.Config   // nil: none
	Mechanism   string        // PLAIN, SCRAM-SHA-256, SCRAM-SHA-512; empty: none
	Username    string
	Password    string
	Logger      *slog.Logger
	Meters      metric.MeterProvider
}

// maxContent is the content that a record carries, in bytes. Greater content
// is left in the ledger, and the record refers to it by its position.
const maxContent = 1 << 20

// Broker is one Kafka cluster as one process uses it.
type Broker struct {
	cfg            Config
	log            *slog.Logger
	meter          metric.Meter
	sasl           sasl.Mechanism
	sights, audits kept // of Look, so that what it sees only gets newer; and of the others
}

// New checks cfg. It connects to nothing yet.
func New(cfg Config) (*Broker, error) {
	if len(cfg.Brokers) == 0 {
		return nil, fmt.Errorf("brokers: want at least one HOST:PORT")
	}
	for _, b := range cfg.Brokers {
		if _, _, err := net.SplitHostPort(b); err != nil {
			return nil, fmt.Errorf("brokers: want HOST:PORT, not %q", b)
		}
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "stormpost"
	}
	if cfg.Partitions <= 0 {
		cfg.Partitions = 4
	}
	if cfg.Replication <= 0 {
		cfg.Replication = min(3, len(cfg.Brokers))
	}
	if cfg.Session <= 0 {
		cfg.Session = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Meters == nil {
		cfg.Meters = noop.NewMeterProvider()
	}
	b := &Broker{cfg: cfg, log: cfg.Logger, meter: cfg.Meters.Meter("github.com/stormpost/stormpost/internal/broker")}
	var err error
	switch strings.ToUpper(cfg.Mechanism) {
	case "":
	case "PLAIN":
		b.sasl = plain.Mechanism{Username: cfg.Username, Password: cfg.Password}
	case "SCRAM-SHA-256":
		b.sasl, err = scram.Mechanism(scram.SHA256, cfg.Username, cfg.Password)
	case "SCRAM-SHA-512":
		b.sasl, err = scram.Mechanism(scram.SHA512, cfg.Username, cfg.Password)
	default:
		err = fmt.Errorf("want PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, not %q", cfg.Mechanism)
	}
	if err != nil {
		return nil, fmt.Errorf("kafka.sasl_mechanism: %w", err)
	}
	return b, nil
}

// dialer is for readers and groups, transport for writers and clients: they
// share nothing, so both are told how to sign in.
func (b *Broker) dialer() *kafka.Dialer {
	return &kafka.Dialer{Timeout: 5 * time.Second, DualStack: true, TLS: b.cfg.TLS, SASLMechanism: b.sasl, ClientID: "stormpost"}
}

func (b *Broker) transport() *kafka.Transport {
	return &kafka.Transport{
		DialTimeout: 5 * time.Second, IdleTimeout: 30 * time.Second, MetadataTTL: time.Second,
		TLS: b.cfg.TLS, SASL: b.sasl, ClientID: "stormpost",
	}
}

// address passes the brokers one by one: in one string they would panic.
func (b *Broker) address() net.Addr { return kafka.TCP(b.cfg.Brokers...) }

// withClient runs fn with a client of its own, so that no answer comes from
// what another one has cached.
func (b *Broker) withClient(fn func(*kafka.Client) error) error {
	t := b.transport()
	defer t.CloseIdleConnections()
	return fn(b.client(t))
}

func (b *Broker) client(t *kafka.Transport) *kafka.Client {
	return &kafka.Client{Addr: b.address(), Timeout: 5 * time.Second, Transport: t}
}

// Topic is a lane's topic.
func (b *Broker) Topic(l message.Lane) string { return b.cfg.Prefix + "." + l.String() }

// group is the workers' consumer group.
func (b *Broker) group() string { return b.cfg.Prefix + ".delivery" }

// sub is topics that are read together, by a group.
type sub struct {
	topics []string
	group  string
	config func(ctx context.Context, c *kafka.Client) (replicas int, entries []kafka.ConfigEntry, err error)
	// partitions is how many each topic is made with.
	partitions int
	// readAhead is how many records of a partition are read before they are asked
	// for. With content of the greatest size it is what the process holds of them.
	readAhead int
	maxBytes  int // of one fetch
	// Of one partition, handed out and unfinished at a time.
	inflightRecords, inflightBytes int
}

// lanes are the lanes' topics.
func (b *Broker) lanes() sub {
	return sub{
		topics: slices.Sorted(maps.Keys(b.topics())), group: b.group(), config: b.laneConfig, partitions: b.cfg.Partitions,
		readAhead: 32, maxBytes: 4 << 20, inflightRecords: inflightRecords, inflightBytes: inflightBytes,
	}
}

func (b *Broker) topics() map[string]message.Lane {
	topics := make(map[string]message.Lane)
	for _, l := range message.Lanes() {
		topics[b.Topic(l)] = l
	}
	return topics
}
