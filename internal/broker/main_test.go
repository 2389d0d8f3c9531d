package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/message"
)

func TestMain(m *testing.M) { teststack.Main(m) }

// patience is how long a test waits for what must come.
const patience = 90 * time.Second

func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// newBroker has topics and a group of its own.
func newBroker(t testing.TB, brokers []string, change ...func(*Config)) *Broker {
	t.Helper()
	cfg := Config{Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Brokers: brokers, Prefix: "test-" + strings.ToLower(rand.Text()[:12]), Session: 6 * time.Second}
	for _, c := range change {
		c(&cfg)
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func withTopics(t testing.TB, b *Broker) *Broker {
	t.Helper()
	if err := b.EnsureTopics(patient(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := b.RemoveTopics(ctx); err != nil {
			t.Error(err)
		}
	})
	return b
}

func sharedBroker(t testing.TB, change ...func(*Config)) *Broker {
	t.Helper()
	return withTopics(t, newBroker(t, teststack.Kafka(t), change...))
}

var (
	urgent = message.Lane{Class: message.Transactional, Channel: message.ChannelEmail}
	later  = message.Lane{Class: message.Campaign, Channel: message.ChannelEmail}
)

// items makes n items of a lane, of submissions from first on.
func items(lane message.Lane, first, n, size int) []message.Item {
	all := make([]message.Item, n)
	for i := range all {
		number := first + i
		content := fmt.Appendf(nil, `{"email":{"subject":"%d","text":"%s"}}`, number, strings.Repeat("x", size))
		id := message.SubmissionID(message.HashKey(1, fmt.Sprint(lane, number)), message.FingerprintOf(content)).Message(0)
		all[i] = message.Item{
			Position: message.PositionOf(lane, int64(number), 0), ID: id, Attempt: 1, Content: content,
			Trace: fmt.Sprintf("00-%032x-%016x-01", number+1, number+1),
		}
	}
	return all
}

func publisher(t testing.TB, b *Broker) *Publisher {
	t.Helper()
	p, err := b.NewPublisher()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = p.Close(ctx) // with its broker gone it can only be cut
	})
	return p
}

// write writes records that are none of ours.
func write(t testing.TB, b *Broker, msgs ...kafka.Message) {
	t.Helper()
	tr := b.transport()
	defer tr.CloseIdleConnections()
	w := &kafka.Writer{Addr: b.address(), Transport: tr, RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond, Balancer: kafka.BalancerFunc(balance)}
	defer w.Close()
	if err := w.WriteMessages(patient(t), msgs...); err != nil {
		t.Fatal(err)
	}
}

// inbox is a Handler that remembers what it was given, and finishes it from
// other goroutines unless keep says otherwise.
type inbox struct {
	keep func(*Record) bool
	park func(Poison) error
	hold func(context.Context, message.Lane) // called in Handle

	finish chan *Record
	news   chan struct{}

	mu     sync.Mutex
	seen   map[message.Position]int
	last   map[message.Position]message.Item
	parked []Poison
}

func newInbox(t testing.TB) *inbox {
	in := &inbox{
		finish: make(chan *Record, 1000), news: make(chan struct{}, 1),
		seen: make(map[message.Position]int), last: make(map[message.Position]message.Item),
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for r := range in.finish {
				r.Finish()
				r.Finish() // again does nothing
				in.note(r)
			}
		})
	}
	t.Cleanup(func() {
		close(in.finish)
		wg.Wait()
	})
	return in
}

func (in *inbox) Handle(ctx context.Context, lane message.Lane, r *Record) {
	if in.hold != nil {
		in.hold(ctx, lane)
	}
	if ctx.Err() != nil {
		return
	}
	if in.keep != nil && in.keep(r) {
		in.note(r)
		return
	}
	in.finish <- r
}

// note counts a record as seen: when it is finished, or kept.
func (in *inbox) note(r *Record) {
	in.mu.Lock()
	in.seen[r.Position]++
	in.last[r.Position] = r.Item
	in.mu.Unlock()
	in.tell()
}

func (in *inbox) Park(_ context.Context, p Poison) error {
	if in.park != nil {
		if err := in.park(p); err != nil {
			return err
		}
	}
	in.mu.Lock()
	in.parked = append(in.parked, p)
	in.mu.Unlock()
	in.tell()
	return nil
}

func (in *inbox) tell() {
	select {
	case in.news <- struct{}{}:
	default:
	}
}

// until waits for done, which is called with the inbox locked.
func (in *inbox) until(t testing.TB, what string, done func() bool) {
	t.Helper()
	ctx := patient(t)
	for {
		in.mu.Lock()
		ok := done()
		in.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-in.news:
		case <-ctx.Done():
			in.mu.Lock()
			defer in.mu.Unlock()
			t.Fatalf("%s didn't come; %d positions seen", what, len(in.seen))
		}
	}
}

func (in *inbox) all(t testing.TB, want ...[]message.Item) {
	t.Helper()
	next := 0
	var flat []message.Item
	for _, w := range want {
		flat = append(flat, w...)
	}
	in.until(t, fmt.Sprintf("all of %d items", len(flat)), func() bool {
		for next < len(flat) && in.seen[flat[next].Position] > 0 {
			next++
		}
		return next == len(flat)
	})
}

// consume runs a consumer until stop or the test's end, whichever is first. It
// returns once partitions are assigned.
func consume(t testing.TB, b *Broker, h Handler) (c *Consumer, stop func()) {
	t.Helper()
	c, err := b.NewConsumer()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, h) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	if err := c.Joined(patient(t)); err != nil {
		t.Fatal(err)
	}
	return c, stop
}

func backlog(t testing.TB, b *Broker) (sum int64, each map[message.Lane]int64) {
	t.Helper()
	ctx := patient(t)
	each, err := b.Backlog(ctx)
	for passing := kafka.Error(0); errors.As(err, &passing) && passing.Temporary() && ctx.Err() == nil; {
		each, err = b.Backlog(ctx) // a coordinator that was just found, or lost
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range each {
		sum += n
	}
	return sum, each
}

// committed waits until all that was read is committed, which a cluster that
// was just away may refuse at first: the consumer joins again then, and has it
// once more.
func committed(t testing.TB, b *Broker) {
	t.Helper()
	ctx := patient(t)
	for n, each := backlog(t, b); n != 0; n, each = backlog(t, b) {
		select {
		case <-ctx.Done():
			t.Fatalf("a backlog of %v", each)
		case <-time.After(commitEvery):
		}
	}
}

// lines are what was logged.
type lines chan string

func newLines() lines { return make(lines, 1000) }

func (l lines) Enabled(context.Context, slog.Level) bool { return true }
func (l lines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l lines) WithGroup(string) slog.Handler            { return l }
func (l lines) Handle(_ context.Context, r slog.Record) error {
	select {
	case l <- r.Message:
	default:
	}
	return nil
}

func (l lines) wait(t testing.TB, part string) {
	t.Helper()
	ctx := patient(t)
	for {
		select {
		case line := <-l:
			if strings.Contains(line, part) {
				return
			}
		case <-ctx.Done():
			t.Fatalf("nothing logged with %q", part)
		}
	}
}
