package teststack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stormpost/stormpost/internal/devstack"
)

// pgSettings leave room for the connections of several packages at a time.
// Commits stay durable, as in production.
func pgSettings() map[string]string { return map[string]string{"max_connections": "300"} }

// NewPostgres starts a server for this test alone, which it may kill, freeze
// and restart. It is gone, with its folder, at the test's end.
func NewPostgres(t testing.TB) *devstack.Postgres {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	p, dir, err := newPostgres(ctx)
	if err != nil {
		t.Fatalf("teststack: no PostgreSQL: %v", err)
	}
	t.Cleanup(func() {
		if err := endPostgres(context.Background(), p, dir); err != nil {
			t.Errorf("teststack: stop PostgreSQL: %v", err)
		}
	})
	return p
}

// NewKafka starts a cluster for this test alone, whose nodes it may kill,
// freeze and restart. It is gone, with its folder, at the test's end. With
// -short the test is left out.
func NewKafka(t testing.TB, nodes int) *devstack.Kafka {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: this test needs real Apache Kafka")
	}
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	k, dir, err := newKafka(ctx, nodes, true)
	if err != nil {
		t.Fatalf("teststack: no Kafka: %v", err)
	}
	t.Cleanup(func() {
		if err := endKafka(context.Background(), k, dir); err != nil {
			t.Errorf("teststack: stop Kafka: %v", err)
		}
	})
	return k
}

func postgresProcess(ctx context.Context) (store, error) {
	p, dir, err := newPostgres(ctx)
	if err != nil {
		return store{}, err
	}
	return store{p.DSN(), func(ctx context.Context) error { return endPostgres(ctx, p, dir) }}, nil
}

func kafkaProcess(ctx context.Context) (store, error) {
	k, dir, err := newKafka(ctx, 1, false)
	if err != nil {
		return store{}, err
	}
	return store{strings.Join(k.Brokers(), ","), func(ctx context.Context) error { return endKafka(ctx, k, dir) }}, nil
}

// broker is the in-process stand-in for Kafka.
func broker() (store, error) {
	dir, err := folder("broker")
	if err != nil {
		return store{}, err
	}
	b, err := devstack.StartBroker(devstack.BrokerConfig{Dir: dir})
	if err != nil {
		return store{}, errors.Join(err, os.RemoveAll(dir))
	}
	return store{b.Addr(), func(context.Context) error {
		b.Close()
		return os.RemoveAll(dir)
	}}, nil
}

func newPostgres(ctx context.Context) (*devstack.Postgres, string, error) {
	dir, err := folder("postgres")
	if err != nil {
		return nil, "", err
	}
	p, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{Dir: filepath.Join(dir, "pg"), Settings: pgSettings()})
	if err != nil {
		return nil, "", errors.Join(err, os.RemoveAll(dir))
	}
	return p, dir, nil
}

func newKafka(ctx context.Context, nodes int, shortLived bool) (*devstack.Kafka, string, error) {
	dir, err := folder("kafka")
	if err != nil {
		return nil, "", err
	}
	k, err := devstack.StartKafka(ctx, devstack.KafkaConfig{Dir: filepath.Join(dir, "kafka"), Nodes: nodes, ShortLived: shortLived})
	if err != nil {
		return nil, "", errors.Join(err, os.RemoveAll(dir))
	}
	return k, dir, nil
}

// folder makes a temporary folder that PostgreSQL can reach also where it has
// to run as another user: testing's own lies under one that others can't enter.
func folder(name string) (string, error) {
	dir, err := os.MkdirTemp("", "stormpost-test-"+name+"-*")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return "", fmt.Errorf("open the folder to others: %w", err)
	}
	return dir, nil
}

// endPostgres shuts down in good order, since only that gives back the small
// System V segment that a killed server leaves.
func endPostgres(ctx context.Context, p *devstack.Postgres, dir string) error {
	return errors.Join(p.Stop(ctx), os.RemoveAll(dir))
}

// endKafka kills: the data goes with it, and good order takes seconds.
func endKafka(ctx context.Context, k *devstack.Kafka, dir string) error {
	var errs []error
	for node := range k.Brokers() {
		errs = append(errs, k.Kill(node))
	}
	return errors.Join(append(errs, k.Stop(ctx), os.RemoveAll(dir))...)
}
