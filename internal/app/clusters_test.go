package app

import (
	"context"
	"crypto/rand"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
)

// While a cluster is away for this process, another one may have journaled what
// this one hasn't read: nobody is told that all of it is known, and nobody waits.
func TestNothingIsCurrentWhileAClusterIsAway(t *testing.T) {
	b, err := broker.New(broker.Config{Brokers: teststack.Kafka(t), Prefix: "test-" + strings.ToLower(rand.Text()[:12])})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := b.EnsureJournals(ctx); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.RemoveTopics(context.Background()) }()
	tail := b.NewTail()
	running, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = tail.Run(running) })
	defer wg.Wait()
	defer end()
	cs := &clusters{all: []*cluster{{broker: b, clusterUse: clusterUse{tail: tail}}}}
	began := time.Now()
	if err := cs.Current(ctx, began); err != nil {
		t.Fatal(err)
	}

	end()
	wg.Wait() // it reads no further, as with a cluster that is away
	cs.all[0].away.Store(true)
	if err := cs.Current(ctx, began); err != nil {
		t.Errorf("what was read before: %v", err)
	}
	asked := time.Now()
	if err := cs.Current(ctx, asked); err == nil || time.Since(asked) > time.Second {
		t.Errorf("after %s: %v", time.Since(asked), err)
	}
}
