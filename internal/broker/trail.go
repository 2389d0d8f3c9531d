package broker

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/metric"

	"github.com/stormpost/stormpost/internal/message"
)

// The trail is the topic PREFIX.events: what became of attempts, told by whoever
// made them, so that a ledger that was rolled back can be told again. A record is a
// CloudEvent in Kafka's binary mode of type attemptsType, whose data is steps as
// JSON, up to stepsEach of them. Their order means nothing, and repeats do no harm.
const (
	attemptsType = "dev.stormpost.attempts.v1"
	stepsEach    = 500
	// mostSteps bounds what waits for Kafka, some 50 MB. Beyond it steps are
	// left out; their attempts are in doubt if the ledger is rolled back.
	mostSteps = 200_000
	trailAge  = 7 * 24 * time.Hour
	// trailLinger is how long the first step waits for others: each record costs
	// Kafka more than its steps do.
	trailLinger = 50 * time.Millisecond
)

type trailData struct {
	Steps []trailStep `json:"steps"`
}

type trailStep struct {
	Position string     `json:"position"` // decimal: more than a JSON number holds
	ID       message.ID `json:"id"`
	Attempt  int        `json:"attempt"`
	Kind     string     `json:"kind"`
	At       time.Time  `json:"at"`
	Provider string     `json:"provider,omitempty"`
	Code     string     `json:"code,omitempty"`
}

func (b *Broker) trailTopic() string { return b.cfg.Prefix + ".events" }

func (b *Broker) trail() sub {
	return sub{topics: []string{b.trailTopic()}, config: b.trailConfig, partitions: b.cfg.Partitions, maxBytes: 4 << 20}
}

func (b *Broker) trailConfig(ctx context.Context, c *kafka.Client) (int, []kafka.ConfigEntry, error) {
	replicas, entries, err := b.laneConfig(ctx, c)
	return replicas, append(entries, kafka.ConfigEntry{ConfigName: "retention.ms", ConfigValue: strconv.FormatInt(trailAge.Milliseconds(), 10)}), err
}

// EnsureTrail is EnsureTopics for the trail.
func (b *Broker) EnsureTrail(ctx context.Context) error { return b.ensure(ctx, b.trail()) }

// Trail writes steps to Kafka without ever blocking whoever tells them. It is
// safe for concurrent use.
type Trail struct {
	writer  *kafka.Writer
	trans   *kafka.Transport
	log     *slog.Logger
	dropped metric.Int64Counter
	life    context.Context
	end     context.CancelFunc
	done    chan struct{}

	mu     sync.Mutex
	steps  []message.Step
	thens  []func()
	wake   chan struct{}
	closed bool
}

// NewTrail makes a trail; one for a process. Close ends it.
func (b *Broker) NewTrail() (*Trail, error) {
	dropped, err := b.meter.Int64Counter("stormpost.trail.dropped", metric.WithUnit("{step}"), metric.WithDescription("Steps of attempts that Kafka was not told of."))
	if err != nil {
		return nil, fmt.Errorf("trail: %w", err)
	}
	trans := b.transport()
	t := &Trail{log: b.log, trans: trans, dropped: dropped, done: make(chan struct{}), wake: make(chan struct{}, 1), writer: &kafka.Writer{
		Addr: b.address(), Topic: b.trailTopic(), Balancer: &kafka.RoundRobin{}, Transport: trans,
		RequiredAcks: kafka.RequireAll, // the zero value asks for none
		BatchTimeout: 2 * time.Millisecond, BatchBytes: maxBatch,
		MaxAttempts: 2, WriteBackoffMin: 20 * time.Millisecond, WriteBackoffMax: 100 * time.Millisecond,
		ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second,
	}}
	t.life, t.end = context.WithCancel(context.Background())
	go t.run()
	return t, nil
}

// Note tells a step, soon.
func (t *Trail) Note(s message.Step) {
	t.mu.Lock()
	full := len(t.steps) >= mostSteps || t.closed
	if !full {
		t.steps = append(t.steps, s)
	}
	t.mu.Unlock()
	if full {
		t.dropped.Add(context.Background(), 1)
		return
	}
	t.rouse()
}

// Then calls fn, from anywhere, once Kafka has all that was noted before. After
// Close it may not.
func (t *Trail) Then(fn func()) {
	t.mu.Lock()
	t.thens = append(t.thens, fn)
	t.mu.Unlock()
	t.rouse()
}

func (t *Trail) rouse() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run writes what there is, all of it at once, and then what came meanwhile.
func (t *Trail) run() {
	defer close(t.done)
	for {
		t.mu.Lock()
		steps, thens, closed := t.steps, t.thens, t.closed
		t.steps, t.thens = nil, nil
		t.mu.Unlock()
		if len(steps) == 0 && len(thens) == 0 {
			if closed {
				return
			}
			<-t.wake
			t.linger()
			continue
		}
		if !t.write(steps) {
			return
		}
		for _, fn := range thens {
			fn()
		}
	}
}

// linger waits for further steps, unless there are many.
func (t *Trail) linger() {
	end := time.NewTimer(trailLinger)
	defer end.Stop()
	for {
		t.mu.Lock()
		hurry := t.closed || len(t.steps) >= stepsEach || len(t.thens) >= stepsEach
		t.mu.Unlock()
		if hurry {
			return
		}
		select {
		case <-end.C:
			return
		case <-t.wake:
		}
	}
}

// write tries until Kafka has them, or the trail's end.
func (t *Trail) write(steps []message.Step) bool {
	var msgs []kafka.Message
	for len(steps) > 0 {
		n := min(len(steps), stepsEach)
		msgs = append(msgs, encodeTrail(steps[:n]))
		steps = steps[n:]
	}
	if len(msgs) == 0 {
		return true
	}
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval, wait.MaxElapsedTime = 50*time.Millisecond, 2*time.Second, 0
	told := false
	err := backoff.RetryNotify(func() error {
		err := t.writer.WriteMessages(t.life, msgs...)
		msgs = failed(msgs, err)
		if len(msgs) == 0 {
			return nil
		}
		return err
	}, backoff.WithContext(wait, t.life), func(err error, _ time.Duration) {
		if !told {
			told = true
			t.log.Warn("Kafka does not take the trail of attempts; trying again", "error", err)
		}
	})
	return err == nil
}

func encodeTrail(steps []message.Step) kafka.Message {
	v := append(make([]byte, 0, 200*len(steps)), `{"steps":[`...)
	for i := range steps {
		if i > 0 {
			v = append(v, ',')
		}
		v = appendStep(v, &steps[i])
	}
	v = append(v, "]}"...)
	head := func(k, v string) kafka.Header { return kafka.Header{Key: k, Value: []byte(v)} }
	return kafka.Message{Value: v, Headers: []kafka.Header{
		head("ce_specversion", "1.0"), head("ce_type", attemptsType), head("ce_source", "/stormpost"), head("ce_id", rand.Text()),
		head("ce_time", time.Now().UTC().Format(time.RFC3339Nano)), head("content-type", "application/json"),
	}}
}

// appendStep writes a trailStep: there are two for each message.
func appendStep(b []byte, s *message.Step) []byte {
	b = strconv.AppendInt(append(b, `{"position":"`...), int64(s.Position), 10)
	b, _ = s.ID.AppendText(append(b, `","id":"`...))
	b = strconv.AppendInt(append(b, `","attempt":`...), int64(s.Attempt), 10)
	b = append(append(b, `,"kind":"`...), s.Kind.String()...)
	b = s.At.UTC().AppendFormat(append(b, `","at":"`...), time.RFC3339Nano)
	b = append(b, '"')
	if s.Provider != "" {
		b, _ = jsontext.AppendQuote(append(b, `,"provider":`...), s.Provider)
	}
	if s.Code != "" {
		b, _ = jsontext.AppendQuote(append(b, `,"code":`...), s.Code)
	}
	return append(b, '}')
}

// decodeTrail reads the steps of a record. Another type's has none.
func decodeTrail(m *kafka.Message) ([]message.Step, error) {
	ours := false
	for _, h := range m.Headers {
		ours = ours || h.Key == "ce_type" && string(h.Value) == attemptsType
	}
	if !ours {
		return nil, nil
	}
	var d trailData
	if err := json.Unmarshal(m.Value, &d); err != nil {
		return nil, fmt.Errorf("its data can't be read: %w", err)
	}
	steps := make([]message.Step, 0, len(d.Steps))
	for _, s := range d.Steps {
		n, err := strconv.ParseInt(s.Position, 10, 64)
		kind, ok := message.ParseStepKind(s.Kind)
		if err != nil || !ok || s.ID.IsSubmission() || s.Attempt < 1 || s.Attempt > 1<<15-1 {
			return nil, errors.New("it has a step that is none")
		}
		steps = append(steps, message.Step{Position: message.Position(n), ID: s.ID, Attempt: s.Attempt, Kind: kind, At: s.At, Provider: s.Provider, Code: s.Code})
	}
	return steps, nil
}

// Close writes what is left, until ctx ends.
func (t *Trail) Close(ctx context.Context) error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.rouse()
	var err error
	select {
	case <-t.done:
	case <-ctx.Done():
		err = fmt.Errorf("trail: %w", ctx.Err())
	}
	t.end()
	<-t.done
	defer t.trans.CloseIdleConnections()
	return errors.Join(err, t.writer.Close())
}
