// Package bench measures the whole pipe: accept, publish, consume, claim, hand
// over to a loopback provider that takes everything at once, record. It runs
// the code of `serve`, with all safety on, in one process on the given stores.
package bench

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/message"
)

// Options say what to measure.
type Options struct {
	Count      int           // messages
	Rate       int           // messages a second; 0: as fast as it goes
	Payload    int           // bytes of each message's text
	Streams    int           // to spread the messages over
	Submitters int           // submitting at a time
	Timeout    time.Duration // for everything to be delivered
	Progress   io.Writer     // gets a line every two seconds; nil: nothing
	Logger     *slog.Logger
}

// Result is what was measured. Latencies are from just before a message was
// submitted: to its answer, and to its hand-over.
type Result struct {
	Messages     int           `json:"messages"`
	AcceptPerSec float64       `json:"accept_per_second"`
	EndPerSec    float64       `json:"end_to_end_per_second"`
	Accept       Latency       `json:"accept"`
	EndToEnd     Latency       `json:"end_to_end"`
	CPU          []CPU         `json:"cpu"`
	Elapsed      time.Duration `json:"-"`
}

// Latency is percentiles, in milliseconds.
type Latency struct {
	P50 float64 `json:"p50_ms"`
	P95 float64 `json:"p95_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

// CPU is the processor time of one part.
type CPU struct {
	Part      string  `json:"part"`
	Seconds   float64 `json:"seconds"`
	PerMicros float64 `json:"microseconds_per_message"`
}

// Submit is how a message gets in: by calling ingest, or through the API.
type Submit func(ctx context.Context, key string, c *message.Content) error

// Pipe is a running process to measure.
type Pipe struct {
	Submit   Submit
	Provider *Loopback
	Stores   []string // host:port of each store, whose processor time counts
}

// Run measures, and fails when a message was not delivered exactly once.
func Run(ctx context.Context, pipe Pipe, o Options) (*Result, error) {
	if o.Count < 1 || o.Submitters < 1 || o.Streams < 1 || o.Payload < 1 {
		return nil, errors.New("bench: counts must be above 0")
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	r := &run{Options: o, pipe: pipe, born: make([]time.Time, o.Count), accept: make([]time.Duration, o.Count)}
	pipe.Provider.begin(o.Count)
	cpu := readCPU(pipe.Stores)
	start := time.Now()
	stop := r.progress(start)
	defer stop()
	if err := r.submit(ctx, start); err != nil {
		return nil, err
	}
	accepted := time.Since(start)
	select {
	case <-pipe.Provider.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("bench: %d of %d were delivered: %w", pipe.Provider.count.Load(), o.Count, ctx.Err())
	}
	elapsed := time.Since(start)
	used := readCPU(pipe.Stores).since(cpu, o.Count)
	if err := pipe.Provider.Doubled(); err != nil {
		return nil, err
	}
	ends := make([]time.Duration, o.Count)
	for i := range ends {
		ends[i] = time.Duration(pipe.Provider.at[i].Load()) - r.born[i].Sub(pipe.Provider.start)
	}
	return &Result{
		Messages: o.Count, AcceptPerSec: float64(o.Count) / accepted.Seconds(), EndPerSec: float64(o.Count) / elapsed.Seconds(),
		Accept: latency(r.accept), EndToEnd: latency(ends), CPU: used, Elapsed: elapsed,
	}, nil
}

type run struct {
	Options
	pipe     Pipe
	born     []time.Time
	accept   []time.Duration
	accepted atomic.Int64
}

func (r *run) submit(ctx context.Context, start time.Time) error {
	text, err := incompressible(r.Payload)
	if err != nil {
		return err
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range r.Submitters {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= r.Count || ctx.Err() != nil {
					return
				}
				if r.Rate > 0 {
					sleepUntil(ctx, start.Add(time.Duration(i)*time.Second/time.Duration(r.Rate)))
				}
				r.born[i] = time.Now()
				if err := r.pipe.Submit(ctx, rand.Text(), r.content(i, text)); err != nil {
					select {
					case failed <- fmt.Errorf("bench: submit: %w", err):
						cancel()
					default:
					}
					return
				}
				r.accept[i] = time.Since(r.born[i])
				r.accepted.Add(1)
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return ctx.Err()
	}
}

func sleepUntil(ctx context.Context, at time.Time) {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// content is message i. Its recipient tells the provider which it is.
func (r *run) content(i int, text string) *message.Content {
	return &message.Content{Email: &message.Email{
		From: "bench@example.com", To: []string{recipient(i)}, Subject: "bench", Text: text,
		Options: message.Options{Stream: "bench-" + strconv.Itoa(i%r.Streams)},
	}}
}

func recipient(i int) string { return strconv.Itoa(i) + "@example.net" }

// incompressible is text of n bytes that no compression makes much shorter.
func incompressible(n int) (string, error) {
	b := make([]byte, (n+1)/2)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return hex.EncodeToString(b)[:n], nil
}

func (r *run) progress(start time.Time) (stop func()) {
	if r.Progress == nil {
		return func() {}
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				n := r.pipe.Provider.count.Load()
				fmt.Fprintf(r.Progress, "%4.0fs  accepted %d, delivered %d of %d\n", time.Since(start).Seconds(), r.accepted.Load(), n, r.Count)
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

func latency(d []time.Duration) Latency {
	slices.Sort(d)
	at := func(p float64) float64 {
		return float64(d[min(len(d)-1, int(float64(len(d))*p))].Microseconds()) / 1000
	}
	return Latency{P50: at(0.5), P95: at(0.95), P99: at(0.99), Max: at(1)}
}

// Loopback is the provider: it takes everything at once, and notes when.
type Loopback struct {
	start time.Time
	at    []atomic.Int64 // nanoseconds from start, by message
	count atomic.Int64
	twice atomic.Int64
	done  chan struct{}
}

var _ delivery.Provider = (*Loopback)(nil)

func (l *Loopback) begin(count int) {
	l.start, l.at, l.done = time.Now(), make([]atomic.Int64, count), make(chan struct{})
	l.count.Store(0)
	l.twice.Store(0)
}

// Doubled tells of hand-overs beyond the first of each message, so far.
func (l *Loopback) Doubled() error {
	if twice := l.twice.Load(); twice > 0 {
		return fmt.Errorf("bench: %d messages were delivered twice", twice)
	}
	return nil
}

// Name is loopback.
func (l *Loopback) Name() string { return "loopback" }

// Channel is email.
func (l *Loopback) Channel() message.Channel { return message.ChannelEmail }

// ReplyLimit is short: it answers at once.
func (l *Loopback) ReplyLimit() time.Duration { return time.Second }

// Capabilities implements delivery.Provider.
func (l *Loopback) Capabilities() delivery.Capabilities { return delivery.Capabilities{} }

// Reserve has no limit.
func (l *Loopback) Reserve(context.Context) (delivery.Slot, error) { return l, nil }

// Close does nothing.
func (l *Loopback) Close() error { return nil }

// Release does nothing.
func (l *Loopback) Release() {}

// Send notes the hand-over.
func (l *Loopback) Send(_ context.Context, env *message.Envelope, last func() error) message.Result {
	if err := last(); err != nil {
		return message.Result{Outcome: message.Returned}
	}
	number, _, _ := strings.Cut(env.Recipient, "@") // as recipient has it
	i, err := strconv.Atoi(number)
	if err != nil || i < 0 || i >= len(l.at) {
		return message.Result{Outcome: message.Rejected, Code: "stranger"}
	}
	if !l.at[i].CompareAndSwap(0, int64(time.Since(l.start))) {
		l.twice.Add(1)
	} else if l.count.Add(1) == int64(len(l.at)) {
		close(l.done)
	}
	return message.Result{Outcome: message.Sent, Code: "250"}
}
