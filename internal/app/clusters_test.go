package app

import (
	"context"
	"sync"
	"testing"
	"time"
)

// While a cluster is away for this process, another one may have journaled what
// this one hasn't read: nobody is told that all of it is known, and nobody waits.
func TestNothingIsCurrentWhileAClusterIsAway(t *testing.T) {
	b := newBroker(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := b.EnsureJournals(ctx); err != nil {
		t.Fatal(err)
	}
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
