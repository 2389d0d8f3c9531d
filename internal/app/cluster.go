package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/internal/atomicfile"
	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/watch"
)

const (
	lookEvery = time.Second
	// lookLimit bounds one look: with lookEvery it is how soon a cluster that
	// hangs is noticed.
	lookLimit = 3500 * time.Millisecond
	// makeLimit is how long topics may take to be made before the next look.
	makeLimit = 4 * time.Second
	// keepEvery is how often what was seen is written down.
	keepEvery = 10 * time.Second
)

// cluster is a Kafka cluster as this process sees it: it is looked at every
// second, and a new connection decides where an old one fails, since clients believe
// in a dead cluster for a while. What was seen of it last is kept in a file, so that one which was
// wiped or rolled back is also known after a restart.
type cluster struct {
	clusterUse
	name   string
	broker *broker.Broker
	file   string
	log    *slog.Logger
	// changed is called when the cluster is another one than before.
	changed func()

	away    atomic.Bool
	cause   atomic.Pointer[error] // nil as long as nobody has looked
	since   atomic.Int64          // when away changed last, in Unix nanoseconds
	canKeep atomic.Bool           // whether the journals' topics are there
	bare    atomic.Bool           // none of them is, and they can't be made
	change  atomic.Pointer[clusterChange]
	left    atomic.Pointer[journalLeft] // nil as long as nobody has asked

	// The loop's.
	seen   broker.Sight
	kept   time.Time
	unkept bool // the file could not be written
}

// clusterChange is how the cluster became another one, last.
type clusterChange struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
}

// clusterState is the file.
type clusterState struct {
	Seen   broker.Sight   `json:"seen"`
	Change *clusterChange `json:"change,omitempty"`
}

// newCluster reads what an earlier process saw. A file that can't be read is
// begun anew: it only helps to notice.
func newCluster(name string, b *broker.Broker, dir string, log *slog.Logger) *cluster {
	c := &cluster{name: name, broker: b, file: filepath.Join(dir, "kafka-"+name+".json"), log: log.With("cluster", name), changed: func() {}}
	raw, err := os.ReadFile(c.file)
	var state clusterState
	if err == nil {
		err = json.Unmarshal(raw, &state)
	}
	switch {
	case err == nil:
		c.seen = state.Seen
		c.change.Store(state.Change)
	case !errors.Is(err, fs.ErrNotExist):
		c.log.Warn("what was seen of Kafka can't be read; it is begun anew", "file", c.file, "error", err)
	}
	return c
}

func (c *cluster) isAway() bool { return c.away.Load() }

// canJournal says whether the journals are there and Kafka answered when it was
// looked at last.
func (c *cluster) canJournal() bool {
	cause := c.cause.Load()
	return c.canKeep.Load() && cause != nil && *cause == nil
}

// health is what is known of the cluster.
func (c *cluster) health() (k watch.Kafka) {
	if cause := c.cause.Load(); c.away.Load() && cause != nil && *cause != nil {
		k.Away = *cause
		k.For = max(0, time.Since(time.Unix(0, c.since.Load())))
	}
	if change := c.change.Load(); change != nil {
		k.Changed, k.ChangedAt = change.What, change.At
	}
	return k
}

// run looks until ctx ends.
func (c *cluster) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		err := c.look(ctx)
		if ctx.Err() != nil {
			c.keep()
			return
		}
		c.cause.Store(&err)
		if was := c.away.Swap(err != nil); was != (err != nil) {
			c.since.Store(time.Now().UnixNano())
			if err != nil {
				c.log.Warn("Kafka is away; the ledger feeds the workers", "error", err)
			} else {
				c.log.Info("Kafka is back")
			}
		}
		if time.Since(c.kept) >= keepEvery {
			c.keep()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.keep()
			return
		}
	}
}

// look looks once, and makes what topics are missing.
func (c *cluster) look(ctx context.Context) error {
	lctx, cancel := context.WithTimeout(ctx, lookLimit)
	s, err := c.broker.Look(lctx)
	cancel()
	if err != nil {
		return err
	}
	c.saw(s)
	journals := c.journalsOf(s.Missing)
	c.canKeep.Store(len(journals) == 0)
	if c.trail != nil && s.Trailless {
		tctx, cancel := context.WithTimeout(ctx, makeLimit)
		if terr := c.broker.EnsureTrail(tctx); terr != nil {
			c.log.Warn("there is no trail of attempts, so no offset is committed; trying again", "error", terr)
		}
		cancel()
	}
	if len(s.Missing) == 0 {
		c.bare.Store(false)
		return nil
	}
	mctx, cancel := context.WithTimeout(ctx, makeLimit)
	defer cancel()
	err = nil
	if len(s.Missing) > len(journals) {
		err = c.broker.EnsureTopics(mctx)
	}
	// That journals can't be made is no reason to do without the lanes' topics.
	jerr := c.broker.EnsureJournals(mctx)
	c.bare.Store(jerr != nil && len(journals) == int(message.Campaign)) // one of each class
	if jerr != nil {
		c.log.Warn("there is no journal: with the ledger away, nothing is accepted; trying again", "error", jerr)
	} else {
		c.canKeep.Store(true)
	}
	return err
}

func (c *cluster) journalsOf(topics []string) (all []string) {
	for _, t := range topics {
		if strings.Contains(t, ".journal.") {
			all = append(all, t)
		}
	}
	return all
}

// saw compares what is seen with what was. A cluster that is another one than
// before has lost what only it held: the lanes' cursors find that, and whoever
// reads from it begins anew.
func (c *cluster) saw(s broker.Sight) {
	what := s.Since(&c.seen)
	c.seen = s.With(&c.seen)
	if what == "" {
		return
	}
	c.log.Warn("Kafka was wiped or rolled back; what it lost comes from the ledger", "change", what)
	c.change.Store(&clusterChange{time.Now(), what})
	c.keep()
	c.changed()
}

// keep writes down what was seen.
func (c *cluster) keep() {
	c.kept = time.Now()
	if c.seen.Cluster == "" {
		return
	}
	raw, err := json.Marshal(clusterState{c.seen, c.change.Load()})
	if err == nil {
		err = atomicfile.Write(c.file, raw)
	}
	if err != nil && !c.unkept {
		c.log.Warn("what was seen of Kafka can't be kept", "error", fmt.Errorf("%s: %w", c.file, err))
	}
	c.unkept = err != nil
}
