package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/stormpost/stormpost/internal/message"
)

// Numbering is the ledger, as far as it numbers.
type Numbering interface {
	// Numbering looks at what numbers are given out by, within bounds, and says
	// what is wrong. Nothing found is nil.
	Numbering(ctx context.Context) ([]message.Fault, error)
	// RepairNumbering repairs what it can. err joins what it can't. Only one
	// process at a time does; the others get nothing.
	RepairNumbering(ctx context.Context) (repaired []message.Fault, err error)
	// Repaired is what any process repaired within the time before now, after the
	// one that an earlier call gave as last.
	Repaired(ctx context.Context, after int64, within time.Duration) (faults []message.Fault, last int64, err error)
}

// GuardConfig is what a Guard works with.
type GuardConfig struct {
	Numbering Numbering
	Every     time.Duration // between two checks
	Repair    bool          // else it only watches
	Log       *slog.Logger
	Meters    metric.MeterProvider
}

const (
	// slowest is how long a repair that fails is not tried again, at most. Each
	// try has others queue behind its locks, for 2 s.
	slowest = 30 * time.Second
	// mostTold bounds the log lines of one check.
	mostTold = 20
	// lately is for how long a fault that is over is still told of: what is repaired
	// within a moment was lost all the same.
	lately = 10 * time.Second
	// mostRounds bounds repairs without a pause between.
	mostRounds = 100
)

// Guard watches the numbering, and repairs it.
type Guard struct {
	cfg GuardConfig

	mu   sync.Mutex
	open map[string]message.Fault // by name
	over map[string]ended         // likewise, for a while
	down bool                     // the ledger could not be asked

	repaired int64 // the last of Repaired; the loop's
}

type ended struct {
	fault message.Fault
	at    time.Time
}

// NewGuard makes a Guard and registers its metric.
func NewGuard(cfg GuardConfig) (*Guard, error) {
	g := &Guard{cfg: cfg, open: make(map[string]message.Fault), over: make(map[string]ended)}
	_, err := cfg.Meters.Meter("github.com/stormpost/stormpost/recovery").Int64ObservableGauge("stormpost.numbering.broken",
		metric.WithUnit("{fault}"), metric.WithDescription("Faults of the numbering that are open, as this process saw them last."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(int64(len(g.Open())))
			return nil
		}))
	return g, err
}

// Open is the faults that the last check found.
func (g *Guard) Open() []message.Fault {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Values(g.open))
}

// Lately is the faults of Open, and behind them those that were over within the
// last seconds.
func (g *Guard) Lately() (faults []message.Fault, open int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(g.open)) {
		faults = append(faults, g.open[name])
	}
	open = len(faults)
	for _, name := range slices.Sorted(maps.Keys(g.over)) {
		e := g.over[name]
		if time.Since(e.at) >= lately {
			delete(g.over, name)
		} else if _, again := g.open[name]; !again {
			faults = append(faults, e.fault)
		}
	}
	return faults, open
}

// Err is nil while the numbering is sound, as far as the last check knows.
func (g *Guard) Err() error {
	open := g.Open()
	if len(open) == 0 {
		return nil
	}
	return fmt.Errorf("numbering is broken: %s (%d faults)", open[0], len(open))
}

// Run checks at once and then every so often, until ctx ends. After a repair it
// checks again without waiting.
func (g *Guard) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var patience time.Duration // after a repair that failed
	var tryAt time.Time
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		for range mostRounds {
			faults, ok := g.check(ctx)
			if !ok || len(faults) == 0 || !g.cfg.Repair || time.Now().Before(tryAt) {
				break
			}
			repaired, err := g.cfg.Numbering.RepairNumbering(ctx)
			g.told(ctx, "numbering was repaired", slog.LevelWarn, repaired)
			if err != nil && ctx.Err() == nil {
				patience = min(max(2*patience, g.cfg.Every), slowest)
				tryAt = time.Now().Add(patience)
				g.cfg.Log.ErrorContext(ctx, "numbering could not be repaired", "error", err, "again_in", patience)
			} else {
				patience = 0
			}
			if len(repaired) == 0 {
				break
			}
		}
		timer.Reset(g.cfg.Every)
	}
}

// check asks the ledger, and tells what is new and what has gone.
func (g *Guard) check(ctx context.Context) (faults []message.Fault, ok bool) {
	faults, err := g.cfg.Numbering.Numbering(ctx)
	var repaired []message.Fault // by others, between two looks
	if err == nil {
		var rerr error
		if repaired, g.repaired, rerr = g.cfg.Numbering.Repaired(ctx, g.repaired, lately); rerr != nil && ctx.Err() == nil {
			g.cfg.Log.WarnContext(ctx, "what was repaired can't be read", "error", rerr)
		}
	}
	if ctx.Err() != nil {
		return nil, false
	}
	var opened, closed []message.Fault
	g.mu.Lock()
	was := g.down
	g.down = err != nil
	if err == nil {
		now := make(map[string]message.Fault, len(faults))
		for _, f := range faults {
			now[f.Name] = f
			if _, known := g.open[f.Name]; !known {
				opened = append(opened, f)
			}
		}
		for name, f := range g.open {
			if _, still := now[name]; !still {
				closed = append(closed, f)
				if len(g.over) < mostTold {
					g.over[name] = ended{f, time.Now()}
				}
			}
		}
		for _, f := range repaired {
			if len(g.over) < mostTold {
				g.over[f.Name] = ended{f, time.Now()}
			}
		}
		g.open = now
	}
	g.mu.Unlock()
	if err != nil && !was && !errors.Is(err, context.Canceled) {
		g.cfg.Log.WarnContext(ctx, "numbering could not be checked", "error", err)
	}
	g.told(ctx, "numbering is broken", slog.LevelError, opened)
	g.told(ctx, "numbering is sound again", slog.LevelInfo, closed)
	return faults, err == nil
}

func (g *Guard) told(ctx context.Context, what string, level slog.Level, faults []message.Fault) {
	for i, f := range faults {
		if i == mostTold {
			g.cfg.Log.Log(ctx, level, what, "further_faults", len(faults)-mostTold)
			return
		}
		g.cfg.Log.Log(ctx, level, what, "fault", f.Name, "detail", f.Detail)
	}
}
