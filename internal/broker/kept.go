package broker

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	keptIdle = 5 * time.Second         // a kept client that nobody uses is closed after this
	keptAge  = 15 * time.Second        // a name may stand for another cluster by then
	keptTry  = 1500 * time.Millisecond // then there's time for a new one
)

// kept are the connected clients of those who ask every second or two. To
// connect costs Kafka as much as some ten requests, and a handshake where there
// is TLS or SASL.
type kept struct {
	mu   sync.Mutex
	idle []*keptClient
}

type keptClient struct {
	*kafka.Client
	close func()
	born  time.Time
	idle  *time.Timer // closes it
}

// with is withClient with a client that may be connected already. What that one
// doesn't do within keptTry is done again with a new one, so a failure is never
// one that only an old connection saw: fn may run twice. What it is told of
// metadata may be some seconds old; leaders answer for themselves.
func (k *kept) with(ctx context.Context, b *Broker, fn func(context.Context, *kafka.Client) error) error {
	if c := k.take(); c != nil {
		tctx, cancel := context.WithTimeout(ctx, keptTry)
		err := fn(tctx, c.Client)
		cancel()
		if err == nil {
			k.give(c)
			return nil
		}
		c.close()
	}
	t := b.transport()
	t.MetadataTTL = 2 * time.Second
	c := &keptClient{Client: b.client(t), close: t.CloseIdleConnections, born: time.Now()}
	if err := fn(ctx, c.Client); err != nil {
		c.close()
		return err
	}
	k.give(c)
	return nil
}

// clear closes those that are idle: what they know is old.
func (k *kept) clear() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.idle {
		c.idle.Stop()
		c.close()
	}
	k.idle = nil
}

// take returns nil where none is idle.
func (k *kept) take() *keptClient {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := len(k.idle)
	if n == 0 {
		return nil
	}
	c := k.idle[n-1]
	k.idle = k.idle[:n-1]
	c.idle.Stop()
	return c
}

func (k *kept) give(c *keptClient) {
	if time.Since(c.born) > keptAge {
		c.close()
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.idle = append(k.idle, c)
	c.idle = time.AfterFunc(keptIdle, func() { k.end(c) })
}

// end closes a client that is idle still.
func (k *kept) end(c *keptClient) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if i := slices.Index(k.idle, c); i >= 0 {
		k.idle = slices.Delete(k.idle, i, i+1)
		c.close()
	}
}
