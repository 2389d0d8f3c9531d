package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/internal/atomicfile"
	"github.com/stormpost/stormpost/internal/message"
)

// placedEvery is how often the ledger is asked where the lanes are.
const placedEvery = time.Second

// placementLedger is what placements ask.
type placementLedger interface {
	Placements(ctx context.Context) (map[message.Lane]message.Placement, error)
	Sight(ctx context.Context, away map[string]bool) error
	Workers(ctx context.Context) (int, error)
}

// placements know which cluster each lane uses, as the ledger said last; while it
// is away, also after a restart.
type placements struct {
	ledger  placementLedger
	file    string
	log     *slog.Logger
	changed func()
	current atomic.Pointer[map[message.Lane]message.Placement]
	workers atomic.Int64
}

func newPlacements(ledger placementLedger, dir string, log *slog.Logger) *placements {
	p := &placements{ledger: ledger, file: filepath.Join(dir, "placement.json"), log: log, changed: func() {}}
	lanes := make(map[message.Lane]message.Placement)
	raw, err := os.ReadFile(p.file)
	var kept []message.Placement
	if err == nil {
		err = json.Unmarshal(raw, &kept)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("where the lanes are can't be read; the ledger will tell", "file", p.file, "error", err)
	}
	for _, at := range kept {
		lanes[at.Lane] = at
	}
	p.current.Store(&lanes)
	return p
}

func (p *placements) empty() bool { return len(*p.current.Load()) == 0 }

// where is the name of the cluster that a lane uses.
func (p *placements) where(l message.Lane) string {
	if at, ok := (*p.current.Load())[l]; ok {
		return at.Cluster
	}
	return message.MainCluster
}

// rate is what a worker may feed itself of the lane, in messages a second.
func (p *placements) rate(l message.Lane) float64 {
	at := (*p.current.Load())[l]
	return float64(at.Rate) / float64(max(1, p.workers.Load()))
}

// run keeps to what the ledger says until ctx ends, and tells it how the clusters
// are, where there are several.
func (p *placements) run(ctx context.Context, cs *clusters) {
	tick := time.NewTicker(placedEvery)
	defer tick.Stop()
	for {
		p.look(ctx)
		if len(cs.all) > 1 {
			away := make(map[string]bool)
			for _, c := range cs.all {
				if c.cause.Load() != nil { // looked at
					away[c.name] = c.isAway()
				}
			}
			_ = p.ledger.Sight(ctx, away) // told again in a second
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look asks once. What the ledger doesn't answer stays as it was.
func (p *placements) look(ctx context.Context) {
	lanes, err := p.ledger.Placements(ctx)
	if err != nil {
		return
	}
	bounded := false
	for _, at := range lanes {
		bounded = bounded || at.Rate > 0
	}
	if bounded {
		if n, err := p.ledger.Workers(ctx); err == nil {
			p.workers.Store(int64(n))
		}
	}
	was := *p.current.Load()
	if maps.EqualFunc(was, lanes, func(a, b message.Placement) bool {
		return a.Cluster == b.Cluster && a.At.Equal(b.At) && a.Rate == b.Rate
	}) {
		return
	}
	p.current.Store(&lanes)
	for _, l := range message.Lanes() {
		if from, to := nameOf(was, l), nameOf(lanes, l); from != to {
			p.log.Info("a lane uses another Kafka cluster now", "lane", l.String(), "from", from, "to", to, "by", lanes[l].By)
		}
	}
	p.keep(lanes)
	p.changed()
}

func nameOf(lanes map[message.Lane]message.Placement, l message.Lane) string {
	if at, ok := lanes[l]; ok {
		return at.Cluster
	}
	return message.MainCluster
}

func (p *placements) keep(lanes map[message.Lane]message.Placement) {
	all := make([]message.Placement, 0, len(lanes))
	for _, at := range lanes {
		all = append(all, at)
	}
	raw, err := json.Marshal(all)
	if err == nil {
		err = atomicfile.Write(p.file, raw)
	}
	if err != nil {
		p.log.Warn("where the lanes are can't be kept; while the ledger is away it would be forgotten", "error", fmt.Errorf("%s: %w", p.file, err))
	}
}
