// Package teststack gives tests the real PostgreSQL and the real Apache Kafka.
//
// Where they come from, in this order, for each of the two by itself:
//
//  1. STORMPOST_TEST_DSN (a postgres:// URL of a superuser) and
//     STORMPOST_TEST_KAFKA (HOST:PORT, separated by commas), when set.
//  2. Containers, when a local Docker answers and has or gets the images.
//  3. Processes of this machine, by package devstack.
//
// One of each is started per test binary, when a test first asks, and stopped
// by Main. A store that can't be had fails the test; it is never skipped.
// The command internal/devstack/cmd/teststack starts them once for a whole
// `go test ./...`.
//
// With -short, meant for quick looks while working, Kafka is franz-go's broker
// inside the test binary, and tests that want a cluster of their own are left
// out.
//
// Tests that kill, freeze or wipe a server take one of their own by NewPostgres
// or NewKafka, always processes.
package teststack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Environment variables that name running stores.
const (
	DSNVariable   = "STORMPOST_TEST_DSN"
	KafkaVariable = "STORMPOST_TEST_KAFKA"
)

// startLimit bounds a start, fetching images or jars included.
const startLimit = 10 * time.Minute

// shared are the stores of this test binary. They are the one global here: a
// test binary has no other place that all its tests can reach.
var shared struct{ postgres, kafka lazyStore }

type lazyStore struct {
	mu      sync.Mutex
	started bool
	store   store
	err     error
}

// store is a running store.
type store struct {
	addr string // a DSN, or brokers separated by commas
	stop func(context.Context) error
}

func (l *lazyStore) get(start func(context.Context) (store, error)) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started {
		ctx, cancel := context.WithTimeout(context.Background(), startLimit)
		defer cancel()
		l.started = true
		l.store, l.err = start(ctx)
	}
	return l.store.addr, l.err
}

func (l *lazyStore) stop(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started || l.err != nil {
		return nil
	}
	l.err = errors.New("the store has been stopped")
	return l.store.stop(ctx)
}

// Main is for a package's TestMain. It runs the tests, stops the stores that
// they had started, fails the run when goroutines are left (see goleak for what
// leaks may except), and exits.
func Main(m *testing.M, leaks ...goleak.Option) {
	goleak.VerifyTestMain(runner{m}, append(leaks, containerLeaks()...)...)
}

type runner struct{ m *testing.M }

func (r runner) Run() int {
	code := r.m.Run()
	if err := stopShared(); err != nil {
		fmt.Fprintln(os.Stderr, "teststack:", err)
		code = max(code, 1)
	}
	return code
}

func stopShared() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return errors.Join(shared.kafka.stop(ctx), shared.postgres.stop(ctx))
}

// Start starts the stores for tests in other processes, as far as the
// environment doesn't name them already, and returns both addresses as their
// environment variables take them; brokers is empty without withKafka. The
// function stop ends what was started.
func Start(ctx context.Context, withKafka bool) (dsn, brokers string, stop func(context.Context) error, err error) {
	var pg, kafka store
	var pgErr, kafkaErr error
	var wg sync.WaitGroup
	wg.Go(func() { pg, pgErr = startPostgres(ctx) })
	if withKafka {
		wg.Go(func() { kafka, kafkaErr = startKafka(ctx) })
	}
	wg.Wait()
	stop = func(ctx context.Context) error {
		var errs []error
		for _, s := range []store{kafka, pg} {
			if s.stop != nil {
				errs = append(errs, s.stop(ctx))
			}
		}
		return errors.Join(errs...)
	}
	if err := errors.Join(pgErr, kafkaErr); err != nil {
		return "", "", nil, errors.Join(err, stop(context.WithoutCancel(ctx)))
	}
	return pg.addr, kafka.addr, stop, nil
}

// Postgres is the DSN of a superuser of the shared server, in its default
// database. Tests want a Database of their own.
func Postgres(t testing.TB) string {
	t.Helper()
	dsn, err := shared.postgres.get(startPostgres)
	if err != nil {
		t.Fatalf("teststack: no PostgreSQL: %v", err)
	}
	return dsn
}

// Kafka are the brokers of the shared cluster, a single node unless the
// environment names another. Tests use topics and groups of their own names.
func Kafka(t testing.TB) []string {
	t.Helper()
	brokers, err := shared.kafka.get(startKafka)
	if err != nil {
		t.Fatalf("teststack: no Kafka: %v", err)
	}
	return strings.Split(brokers, ",")
}

func startPostgres(ctx context.Context) (store, error) {
	if dsn := os.Getenv(DSNVariable); dsn != "" {
		return store{dsn, func(context.Context) error { return nil }}, nil
	}
	return containerElseProcess(ctx, postgresContainer, postgresProcess)
}

func startKafka(ctx context.Context) (store, error) {
	if brokers := os.Getenv(KafkaVariable); brokers != "" {
		return store{brokers, func(context.Context) error { return nil }}, nil
	}
	if testing.Testing() && testing.Short() {
		return broker()
	}
	return containerElseProcess(ctx, kafkaContainer, kafkaProcess)
}

// containerElseProcess falls back to a process where Docker answers but hasn't
// got the image, as on a machine that reaches no image registry.
func containerElseProcess(ctx context.Context, container, process func(context.Context) (store, error)) (store, error) {
	if !dockerAnswers(ctx) {
		return process(ctx)
	}
	s, containerErr := container(ctx)
	if containerErr == nil {
		return s, nil
	}
	s, err := process(ctx)
	if err != nil {
		return store{}, errors.Join(containerErr, err)
	}
	return s, nil
}
