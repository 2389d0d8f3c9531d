package devstack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// KafkaVersion is the release of Apache Kafka that StartKafka runs.
const KafkaVersion = "4.3.1"

// kafkaReady bounds the start of one or all nodes.
const kafkaReady = 2 * time.Minute

// KafkaConfig says how to run Apache Kafka. Only Dir must be set.
type KafkaConfig struct {
	Dir       string            // the cluster's own folder, made when missing
	Nodes     int               // each is broker and controller; 0 is 1
	Ports     []int             // one per node, on loopback; nil or 0 takes a free one at each start
	Advertise []string          // of each node, HOST:PORT that clients and the other nodes are told; nil: its own
	Settings  map[string]string // over the defaults, as in server.properties, for every node
	Heap      int               // of each node, in MiB; 0 is 512
	// ShortLived is for a cluster of minutes: its code is compiled quickly, not
	// well, which would take most of a small machine for that long.
	ShortLived bool
	Cache      string       // where the jars are kept; "" is DefaultCache
	Logger     *slog.Logger // nil logs nothing
}

// Kafka is a KRaft cluster of Apache Kafka run as child processes. Its methods
// are safe for concurrent use; nodes are numbered from 0.
//
// In its folder: cluster-id, lock, and for each node node-N with data,
// server.properties and server.log.
type Kafka struct {
	log      *slog.Logger
	dir      string
	id       string
	java     string
	jars     string
	settings map[string]string
	heap     int
	quick    bool // compiled quickly
	was      bool // up before
	lock     *folderLock

	mu    sync.Mutex
	nodes []*kafkaNode
}

// StartKafka starts the cluster of cfg.Dir and returns once every node knows of
// every other. On first use it gives the cluster an id and formats the nodes'
// folders; nodes that a killed process left running there are ended first. It
// fetches Kafka's jars by Maven when the cache hasn't got them. It fails with
// ErrInUse when a living process runs a cluster there, with ErrNoJava or
// ErrNoMaven when a program is missing.
func StartKafka(ctx context.Context, cfg KafkaConfig) (_ *Kafka, err error) {
	n := max(cfg.Nodes, 1)
	if cfg.Ports != nil && len(cfg.Ports) != n {
		return nil, fmt.Errorf("start Kafka: %d ports for %d nodes", len(cfg.Ports), n)
	}
	if cfg.Advertise != nil && len(cfg.Advertise) != n {
		return nil, fmt.Errorf("start Kafka: %d addresses for %d nodes", len(cfg.Advertise), n)
	}
	k := &Kafka{log: cfg.Logger, settings: cfg.Settings, heap: cmp.Or(cfg.Heap, 512), quick: cfg.ShortLived}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	if k.java, err = findJava(); err != nil {
		return nil, fmt.Errorf("start Kafka: %w", err)
	}
	if k.jars, err = kafkaJars(ctx, cfg.Cache, k.log); err != nil {
		return nil, fmt.Errorf("start Kafka: %w", err)
	}
	if k.dir, err = ownFolder(cfg.Dir); err != nil {
		return nil, err
	}
	if k.lock, err = lockFolder(k.dir); err != nil {
		return nil, fmt.Errorf("start Kafka: %w", err)
	}
	defer func() {
		if err != nil {
			k.lock.release()
		}
	}()
	if k.id, err = keptText(filepath.Join(k.dir, "cluster-id"), newClusterID); err != nil {
		return nil, fmt.Errorf("start Kafka: the cluster's id: %w", err)
	}
	for i := range n {
		node := &kafkaNode{id: i, dir: filepath.Join(k.dir, "node-"+strconv.Itoa(i))}
		if cfg.Ports != nil {
			node.port = cfg.Ports[i]
		}
		if cfg.Advertise != nil {
			node.told = cfg.Advertise[i]
		}
		k.nodes = append(k.nodes, node)
	}
	if err := k.startAll(ctx); err != nil {
		return nil, fmt.Errorf("start Kafka: %w", err)
	}
	return k, nil
}

// startAll prepares and starts all nodes. When a free port was taken by
// somebody else in between, everything is tried again with others.
func (k *Kafka) startAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, kafkaReady)
	defer cancel()
	given := make([]int, len(k.nodes))
	for i, node := range k.nodes {
		given[i] = node.port
	}
	for try := 0; ; try++ {
		err := k.choosePorts(given)
		if err == nil {
			err = k.each(func(n *kafkaNode) error { return k.prepare(ctx, n) })
		}
		if err == nil {
			err = k.each(k.launch)
		}
		if err == nil {
			err = k.each(func(n *kafkaNode) error { return k.ready(ctx, n, len(k.nodes)) })
		}
		if err == nil {
			k.was = true
			k.log.Info("kafka ready", "brokers", k.brokers(), "dir", k.dir)
			return nil
		}
		taken := slices.ContainsFunc(k.nodes, func(n *kafkaNode) bool {
			return n.srv != nil && n.srv.ended() && !(portFree(n.port) && portFree(n.ctlPort))
		})
		err = errors.Join(err, k.each(func(n *kafkaNode) error { return n.kill() }))
		if !taken || try == 3 || slices.Index(given, 0) < 0 {
			return err
		}
	}
}

func (k *Kafka) choosePorts(given []int) error {
	used := map[int]bool{}
	for i, node := range k.nodes {
		for _, port := range []*int{&node.port, &node.ctlPort} {
			if port == &node.port && given[i] != 0 {
				continue
			}
			for *port = 0; *port == 0 || used[*port]; {
				var err error
				if *port, err = FreePort(); err != nil {
					return err
				}
			}
			used[*port] = true
		}
	}
	return nil
}

// each runs f for all nodes at once and waits for all.
func (k *Kafka) each(f func(*kafkaNode) error) error {
	errs := make([]error, len(k.nodes))
	var wg sync.WaitGroup
	for i, node := range k.nodes {
		wg.Go(func() {
			if err := f(node); err != nil {
				errs[i] = fmt.Errorf("node %d: %w", node.id, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Brokers are the addresses of all nodes, HOST:PORT, by number.
func (k *Kafka) Brokers() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.brokers()
}

func (k *Kafka) brokers() []string {
	addrs := make([]string, len(k.nodes))
	for i, node := range k.nodes {
		addrs[i] = loopback(node.port)
	}
	return addrs
}

// ClusterID is the id that the cluster was given; Wipe gives it another.
func (k *Kafka) ClusterID() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.id
}

// Pid is the process id of a node, 0 while it is down.
func (k *Kafka) Pid(node int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := k.nodes[node]; n.srv != nil && !n.srv.ended() {
		return n.srv.pid()
	}
	return 0
}

// Signal sends sig to a node.
func (k *Kafka) Signal(node int, sig syscall.Signal) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.nodes[node].srv.signal(sig)
}

// Kill ends a node by SIGKILL and waits until it is gone.
func (k *Kafka) Kill(node int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.nodes[node].kill()
}

// Restart starts a node again on its port and data, after stopping it if it
// still runs, and waits until it answers. It needs a majority of the nodes:
// with fewer it fails when ctx ends, or after two minutes.
func (k *Kafka) Restart(ctx context.Context, node int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lock.f == nil {
		return errors.New("restart Kafka: it was stopped for good")
	}
	ctx, cancel := context.WithTimeout(ctx, kafkaReady)
	defer cancel()
	n := k.nodes[node]
	if err := n.stop(ctx); err != nil {
		return fmt.Errorf("restart Kafka: %w", err)
	}
	if err := k.launch(n); err != nil {
		return fmt.Errorf("restart Kafka: %w", err)
	}
	if err := k.ready(ctx, n, 1); err != nil {
		return errors.Join(fmt.Errorf("restart Kafka: %w", err), n.kill())
	}
	return nil
}

// Stop shuts all nodes down (SIGTERM; after 10 s, or when ctx ends, SIGKILL)
// and gives the folder back. Stopping again does nothing.
func (k *Kafka) Stop(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lock.f == nil {
		return nil
	}
	defer k.lock.release()
	return k.each(func(n *kafkaNode) error { return n.stop(ctx) })
}
