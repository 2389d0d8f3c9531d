package broker

import (
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	keptIdle = 5 * time.Second  // a kept client that nobody uses is closed after this
	keptAge  = 15 * time.Second // a name may stand for another cluster by then
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

// withKept is withClient with a client that may be connected already. What that
// one can't do is done again with a new one, so a failure is never one that only
// an old connection saw: fn may run twice. What it asks of metadata may be two
// seconds old; leaders answer for themselves.
func (b *Broker) withKept(fn func(*kafka.Client) error) error {
	if c := b.kept.take(); c != nil {
		if fn(c.Client) == nil {
			b.kept.give(c)
			return nil
		}
		c.close()
	}
	t := b.transport()
	t.MetadataTTL = 2 * time.Second
	c := &keptClient{Client: b.client(t), close: t.CloseIdleConnections, born: time.Now()}
	if err := fn(c.Client); err != nil {
		c.close()
		return err
	}
	b.kept.give(c)
	return nil
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
