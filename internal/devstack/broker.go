package devstack

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/twmb/franz-go/pkg/kfake"
)

// brokerRecordLimit lets a record hold the largest request that the API takes
// (10 MiB, more as JSON), for journals; real clusters set it per topic.
const brokerRecordLimit = "20971520"

// BrokerConfig says how to run the in-process broker. Only Dir must be set.
type BrokerConfig struct {
	Dir    string       // the broker's own folder, made when missing
	Logger *slog.Logger // nil logs nothing
}

// Broker is franz-go's kfake: a single node that speaks Kafka's protocol inside
// this process, writes every batch to disk before it answers, and finds it all
// again after a kill. It is for development: it replicates nothing, and shows a
// few versions and timings that Apache Kafka doesn't.
type Broker struct {
	cluster *kfake.Cluster
	addr    string
	id      string
	lock    *folderLock
}

// StartBroker starts the broker of cfg.Dir. The folder keeps its cluster id (so
// that a wiped folder is another cluster) and its port, which is used again
// unless somebody else has it. It fails with ErrInUse when a living process
// runs a broker there.
func StartBroker(cfg BrokerConfig) (_ *Broker, err error) {
	dir, err := ownFolder(cfg.Dir)
	if err != nil {
		return nil, err
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("start the broker: %w", err)
	}
	b := &Broker{lock: lock}
	defer func() {
		if err != nil {
			b.lock.release()
		}
	}()
	if b.id, err = keptText(filepath.Join(dir, "cluster-id"), newClusterID); err != nil {
		return nil, fmt.Errorf("start the broker: its cluster id: %w", err)
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	portFile := filepath.Join(dir, "port")
	kept, err := keptText(portFile, func() string { return "0" })
	if err != nil {
		return nil, fmt.Errorf("start the broker: its port: %w", err)
	}
	port, _ := strconv.Atoi(kept) // nonsense is 0: a new one
	for try := 0; ; try++ {
		if port <= 0 || try > 0 {
			if port, err = FreePort(); err != nil {
				return nil, fmt.Errorf("start the broker: %w", err)
			}
		}
		b.cluster, err = kfake.NewCluster(
			kfake.Ports(port),
			kfake.DataDir(filepath.Join(dir, "data")),
			kfake.SyncWrites(),
			kfake.ClusterID(b.id),
			kfake.BrokerConfigs(map[string]string{"message.max.bytes": brokerRecordLimit}),
			kfake.WithLogger(kfakeLog{log}),
		)
		if err == nil || try == 5 || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("start the broker: %w", err)
	}
	b.addr = loopback(port)
	if err := keepText(portFile, strconv.Itoa(port)); err != nil {
		b.cluster.Close()
		return nil, fmt.Errorf("start the broker: keep its port: %w", err)
	}
	return b, nil
}

// Addr is the broker's address, HOST:PORT.
func (b *Broker) Addr() string { return b.addr }

// ClusterID is the id that the broker's folder was given.
func (b *Broker) ClusterID() string { return b.id }

// Close saves the broker's state and ends it. Closing again does nothing.
func (b *Broker) Close() {
	b.cluster.Close()
	b.lock.release()
}

// kfakeLog passes kfake's warnings on; its information is one line per request.
type kfakeLog struct{ log *slog.Logger }

func (l kfakeLog) Logf(level kfake.LogLevel, format string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.log.Error("kafka broker", "message", fmt.Sprintf(format, args...))
	case kfake.LogLevelWarn:
		l.log.Warn("kafka broker", "message", fmt.Sprintf(format, args...))
	}
}
