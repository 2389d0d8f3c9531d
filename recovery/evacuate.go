package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// EvacuationLedger knows where each lane is, and lets one evacuation at a time
// move them. See dedupe.Ledger.
type EvacuationLedger interface {
	Placements(ctx context.Context) (map[message.Lane]message.Placement, error)
	OpenEvacuation(ctx context.Context) (*message.Evacuation, error)
	BeginEvacuation(ctx context.Context, cluster, by string) (e message.Evacuation, done func(), err error)
	MoveLane(ctx context.Context, e message.Evacuation, p message.Placement) (message.Placement, error)
	EndEvacuation(ctx context.Context, e message.Evacuation) error
	LaneLeft(ctx context.Context, lane message.Lane, mark message.Position) (int64, error)
	Known(ctx context.Context, items []message.Item) ([]bool, error)
}

// EvacuationTarget is the cluster that lanes are moved to. See broker.Broker.
type EvacuationTarget interface {
	// EnsureTopics and EnsureJournals return once they are there, with leaders.
	EnsureTopics(ctx context.Context) error
	EnsureJournals(ctx context.Context) error
	// Strangers names what is under our topics' prefix and isn't ours, one line
	// each; nothing that is no topic yet.
	Strangers(ctx context.Context, known func(context.Context, []message.Item) ([]bool, error)) ([]string, error)
}

// EvacuatePlan says what to move where.
type EvacuatePlan struct {
	To        string         // the cluster's name
	Lanes     []message.Lane // none: all
	Rate      int            // of each lane's backlog, messages a second that workers feed themselves; 0: no bound
	By        string
	Automatic bool
}

// LaneMove is what becomes of one lane.
type LaneMove struct {
	Lane    message.Lane
	From    string
	Backlog int64 // when it was moved, or would be
	Moved   bool  // by this run; false: it was there already
	stays   bool
	mark    message.Position
}

// EvacuateProgress is how far an evacuation is.
type EvacuateProgress struct {
	Moved, Lanes int           // lanes that use the cluster, of those asked for
	Left, Of     int64         // of the backlog, when its lane was moved
	ETA          time.Duration // 0: not known
}

// ErrThere is returned when there is nothing to move.
var ErrThere = errors.New("is the active cluster: every lane asked for uses it already")

// moveLimit bounds all that has to happen at the cluster before lanes move.
const moveLimit = time.Minute

// PlanEvacuation says what p would move, in order, or why it may not be. It
// changes nothing. What it returns beside an error is what it knows.
func PlanEvacuation(ctx context.Context, l EvacuationLedger, target EvacuationTarget, p EvacuatePlan) (moves []LaneMove, resumed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, moveLimit)
	defer cancel()
	placed, err := l.Placements(ctx)
	if err != nil {
		return nil, false, err
	}
	open, err := l.OpenEvacuation(ctx)
	if err != nil {
		return nil, false, err
	}
	there := true
	for _, lane := range message.Lanes() { // most urgent first
		if len(p.Lanes) > 0 && !slices.Contains(p.Lanes, lane) {
			continue
		}
		m := LaneMove{Lane: lane, From: clusterOf(placed, lane), mark: placed[lane].Mark}
		// A person may confirm what was done automatically.
		m.stays = m.From == p.To && (p.Automatic || !placed[lane].Automatic)
		mark := m.mark
		if m.From != p.To {
			mark = 0
		}
		there = there && m.stays
		if m.Backlog, err = l.LaneLeft(ctx, lane, mark); err != nil {
			return nil, false, err
		}
		moves = append(moves, m)
	}
	resumed = open != nil && open.Cluster == p.To
	if there && !resumed {
		return moves, false, fmt.Errorf("%s %w", p.To, ErrThere)
	}
	strangers, err := target.Strangers(ctx, l.Known)
	switch {
	case err != nil:
		return moves, resumed, fmt.Errorf("cluster %s: %w", p.To, err)
	case len(strangers) > 0:
		return moves, resumed, fmt.Errorf("cluster %s holds other topics: %s", p.To, strangers[0])
	}
	return moves, resumed, nil
}

func clusterOf(placed map[message.Lane]message.Placement, l message.Lane) string {
	if at, ok := placed[l]; ok {
		return at.Cluster
	}
	return message.MainCluster
}

// Evacuate moves the lanes one by one, most urgent first, and then, unless
// progress is nil, tells it how it goes until their backlogs are gone: workers feed
// themselves with those from the ledger, so nothing is copied. Ended before, it
// is resumed by doing it again.
func Evacuate(ctx context.Context, l EvacuationLedger, target EvacuationTarget, p EvacuatePlan, log *slog.Logger, progress func(EvacuateProgress)) (moves []LaneMove, resumed bool, err error) {
	moves, resumed, err = PlanEvacuation(ctx, l, target, p)
	if err != nil {
		return nil, false, err
	}
	e, done, err := l.BeginEvacuation(ctx, p.To, p.By)
	if err != nil {
		return nil, false, err
	}
	defer done()
	mctx, cancel := context.WithTimeout(ctx, moveLimit)
	defer cancel()
	if err := errors.Join(target.EnsureTopics(mctx), target.EnsureJournals(mctx)); err != nil {
		return nil, false, fmt.Errorf("cluster %s: %w", p.To, err)
	}
	placed, err := l.Placements(mctx)
	if err != nil {
		return nil, false, err
	}
	for i := range moves {
		m := &moves[i]
		// Whoever has moved it since it was looked at is not overruled by a process.
		if m.stays || p.Automatic && clusterOf(placed, m.Lane) != m.From {
			continue
		}
		moved, err := l.MoveLane(ctx, e, message.Placement{Lane: m.Lane, By: p.By, Automatic: p.Automatic, Rate: p.Rate})
		if err != nil {
			return moves, resumed, err
		}
		m.Moved, m.mark = true, moved.Mark
		log.Info("a lane uses another Kafka cluster", "lane", m.Lane.String(), "from", m.From, "to", p.To, "by", p.By)
	}
	if progress != nil {
		if err := follow(ctx, l, moves, progress); err != nil {
			return moves, resumed, err
		}
	}
	return moves, resumed, l.EndEvacuation(ctx, e)
}

// followEvery is how often what is left is counted, at most.
const followEvery = time.Second

// follow tells progress until nothing is left of the backlogs.
func follow(ctx context.Context, l EvacuationLedger, moves []LaneMove, progress func(EvacuateProgress)) error {
	began, first, all := time.Now(), int64(-1), len(moves)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("the lanes are moved, and their backlogs are being delivered: %w; the same command follows it on", ctx.Err())
		}
		asked := time.Now()
		left := int64(0)
		var failed error
		for i := range moves {
			n, err := l.LaneLeft(ctx, moves[i].Lane, moves[i].mark)
			failed = errors.Join(failed, err)
			left += n
		}
		switch {
		case failed != nil && !errors.Is(failed, message.ErrUnavailable):
			return failed
		case failed == nil:
			if first < 0 {
				first = left
			}
			pr := EvacuateProgress{Moved: all, Lanes: all, Left: left, Of: first}
			if gone := first - left; gone > 0 {
				pr.ETA = time.Duration(float64(time.Since(began)) / float64(gone) * float64(left))
			}
			progress(pr)
			if left == 0 {
				return nil
			}
		}
		timer.Reset(max(followEvery, 4*time.Since(asked)))
	}
}
