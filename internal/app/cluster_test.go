package app

import (
	"context"
	"crypto/rand"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
)

// newBroker has topics of its own, which go with the test.
func newBroker(t *testing.T) *broker.Broker {
	t.Helper()
	b, err := broker.New(broker.Config{Brokers: teststack.Kafka(t), Prefix: "test-" + strings.ToLower(rand.Text()[:12])})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.RemoveTopics(context.Background()) })
	return b
}

// What a process saw of Kafka survives its restart: topics that vanished
// meanwhile are noticed, told, and made again; and are told after the next
// restart as well.
func TestClusterIsKnownAgainAfterARestart(t *testing.T) {
	b := newBroker(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir, log := t.TempDir(), slog.New(slog.NewTextHandler(t.Output(), nil))
	anew := 0
	start := func() *cluster {
		c := newCluster("main", b, dir, log)
		c.changed = func() { anew++ }
		return c
	}
	well := func(c *cluster) {
		for err := c.look(ctx); err != nil; err = c.look(ctx) {
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	c := start()
	well(c) // makes the topics
	well(c)
	if c.health().Changed != "" || !c.canKeep.Load() || anew != 0 {
		t.Errorf("%+v", c.health())
	}
	c.keep()

	if err := b.RemoveTopics(ctx); err != nil {
		t.Fatal(err)
	}
	for s, err := b.Look(ctx); err != nil || len(s.Missing) < 9; s, err = b.Look(ctx) {
		if ctx.Err() != nil {
			t.Fatal("the topics are not removed")
		}
	}
	c = start()
	well(c)
	if h := c.health(); !strings.Contains(h.Changed, "is gone") || anew != 1 {
		t.Errorf("%+v, read anew %d times", h, anew)
	}
	if missing, err := b.MissingTopics(ctx); err != nil || len(missing) > 0 {
		t.Errorf("not made again: %v %v", missing, err)
	}
	if h := start().health(); !strings.Contains(h.Changed, "is gone") || time.Since(h.ChangedAt) > time.Minute {
		t.Errorf("forgotten with the process: %+v", h)
	}

	// A file that can't be read is no reason not to start.
	if err := os.WriteFile(c.file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	c = start()
	if well(c); c.health().Changed != "" {
		t.Errorf("%+v", c.health())
	}
}
