package devstack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Overwrite writes noise over the data files of a node, over the first MiB of
// each and under its feet if it runs. It returns the bytes that it wrote.
func (k *Kafka) Overwrite(node int, seed uint64) (written int64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	rng := rand.New(rand.NewPCG(seed, uint64(node)))
	noise := make([]byte, 1<<20)
	err = filepath.WalkDir(k.nodes[node].data(), func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // Kafka removes files meanwhile
			return nil
		case err != nil || !d.Type().IsRegular():
			return err
		}
		n, err := overwrite(path, noise, rng)
		written += n
		return err
	})
	if err != nil {
		return written, fmt.Errorf("overwrite node %d: %w", node, err)
	}
	return written, nil
}

func overwrite(path string, noise []byte, rng *rand.Rand) (int64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return 0, errors.Join(err, f.Close())
	}
	b := noise[:min(int64(len(noise)), st.Size())]
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	n, err := f.WriteAt(b, 0)
	return int64(n), errors.Join(err, f.Close())
}

// Wipe ends all nodes by SIGKILL and starts another cluster in their place: on
// the same ports, with a new id, and empty. It returns once every node knows of
// every other.
func (k *Kafka) Wipe(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lock.f == nil {
		return errors.New("wipe Kafka: it was stopped for good")
	}
	err := k.each(func(n *kafkaNode) error {
		return errors.Join(n.kill(), os.RemoveAll(n.data()))
	})
	if err != nil {
		return fmt.Errorf("wipe Kafka: %w", err)
	}
	file := filepath.Join(k.dir, "cluster-id")
	if err := os.Remove(file); err != nil {
		return fmt.Errorf("wipe Kafka: %w", err)
	}
	if k.id, err = keptText(file, newClusterID); err != nil {
		return fmt.Errorf("wipe Kafka: %w", err)
	}
	if err := k.each(func(n *kafkaNode) error { return k.prepare(ctx, n) }); err != nil {
		return fmt.Errorf("wipe Kafka: %w", err)
	}
	return k.startAgain(ctx)
}

// RestartAll starts all nodes again that are down, on their ports and data.
func (k *Kafka) RestartAll(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lock.f == nil {
		return errors.New("restart Kafka: it was stopped for good")
	}
	return k.startAgain(ctx)
}

func (k *Kafka) startAgain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, kafkaReady)
	defer cancel()
	err := k.each(func(n *kafkaNode) error {
		if n.srv != nil && !n.srv.ended() {
			return nil
		}
		return k.launch(n)
	})
	if err == nil {
		err = k.each(func(n *kafkaNode) error { return k.ready(ctx, n, len(k.nodes)) })
	}
	if err != nil {
		return fmt.Errorf("restart Kafka: %w", err)
	}
	return nil
}

// Committed sums a consumer group's committed offsets by topic. A group that
// the cluster doesn't know has none.
func (k *Kafka) Committed(ctx context.Context, group string) (map[string]int64, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers()...))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Group = group
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = group
	req.Groups = append(req.Groups, g)
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("fetch committed offsets: %w", err)
	}
	sums := make(map[string]int64)
	add := func(topic string, offset int64) { sums[topic] += max(0, offset) }
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			add(t.Topic, p.Offset)
		}
	}
	for _, g := range resp.Groups {
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				add(t.Topic, p.Offset)
			}
		}
	}
	return sums, nil
}
