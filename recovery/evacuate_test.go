package recovery_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/recovery"
)

// another is a cluster that is somebody else's.
type another struct{ *broker.Broker }

func (another) Strangers(context.Context, func(context.Context, []message.Item) ([]bool, error)) ([]string, error) {
	return []string{"a topic x.orders"}, nil
}

// What is refused, on real stores; and that an evacuation which was ended before
// its backlog was gone is resumed by the same command.
func TestEvacuate(t *testing.T) {
	l := ledgertest.Open(t, ledgertest.DSN(t))
	b, err := broker.New(broker.Config{Brokers: teststack.Kafka(t), Prefix: "test-" + strings.ToLower(rand.Text()[:12])})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	defer func() { _ = b.RemoveTopics(context.Background()) }()
	log := slog.New(slog.DiscardHandler)
	s := ledgertest.Email(t, ledgertest.Tenant(t, l, "acme"), "k", "", "a@example.net", "b@example.net")
	receipt, err := l.Accept(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	lane := s.Lane
	plan := recovery.EvacuatePlan{To: "b", Lanes: []message.Lane{lane}, By: "alice"}

	if _, _, err := recovery.PlanEvacuation(ctx, l, b, recovery.EvacuatePlan{To: "main"}); !errors.Is(err, recovery.ErrThere) {
		t.Errorf("to the active cluster: %v", err)
	}
	if _, _, err := recovery.Evacuate(ctx, l, another{b}, plan, log, nil); err == nil || !strings.Contains(err.Error(), "cluster b holds other topics: a topic x.orders") {
		t.Errorf("to somebody else's cluster: %v", err)
	}
	moves, resumed, err := recovery.PlanEvacuation(ctx, l, b, plan)
	if err != nil || resumed || len(moves) != 1 || moves[0].From != "main" || moves[0].Backlog != 2 {
		t.Errorf("%+v %v %v", moves, resumed, err)
	}
	if missing, err := b.MissingTopics(ctx); err != nil || len(missing) != 6 {
		t.Errorf("a plan has made topics: %v %v", missing, err)
	}

	// Its person goes away in the middle.
	fctx, leave := context.WithCancel(ctx)
	_, _, err = recovery.Evacuate(fctx, l, b, plan, log, func(p recovery.EvacuateProgress) {
		if p.Left != 2 || p.Of != 2 {
			t.Errorf("%+v", p)
		}
		_, _, err := recovery.Evacuate(ctx, l, b, recovery.EvacuatePlan{To: "main", By: "bob"}, log, nil)
		if !errors.Is(err, message.ErrEvacuating) || !strings.Contains(err.Error(), "by alice") {
			t.Errorf("two at once: %v", err)
		}
		leave()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	placed, err := l.Placements(ctx)
	if err != nil || placed[lane].Cluster != "b" || len(placed) != 1 {
		t.Fatalf("%+v %v", placed, err)
	}

	// A worker claims them while it is resumed.
	claimed := false
	moves, resumed, err = recovery.Evacuate(ctx, l, b, plan, log, func(p recovery.EvacuateProgress) {
		for _, it := range ledgertest.Items(s, receipt) {
			if c, err := l.Claim(ctx, it); !claimed && (err != nil || c.Verdict != message.Claimed) {
				t.Errorf("%+v %v", c, err)
			}
		}
		claimed = true
	})
	if err != nil || !resumed || moves[0].Moved {
		t.Errorf("%+v %v %v", moves, resumed, err)
	}
	if _, _, err := recovery.Evacuate(ctx, l, b, plan, log, nil); !errors.Is(err, recovery.ErrThere) {
		t.Errorf("to where it is: %v", err)
	}
}

// What was done automatically can be confirmed by a person, once.
func TestEvacuationIsConfirmed(t *testing.T) {
	l := ledgertest.Open(t, ledgertest.DSN(t))
	b, err := broker.New(broker.Config{Brokers: teststack.Kafka(t), Prefix: "test-" + strings.ToLower(rand.Text()[:12])})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	defer func() { _ = b.RemoveTopics(context.Background()) }()
	log := slog.New(slog.DiscardHandler)
	plan := recovery.EvacuatePlan{To: "b", By: "automatic", Automatic: true}
	if _, _, err := recovery.Evacuate(ctx, l, b, plan, log, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := recovery.Evacuate(ctx, l, b, plan, log, nil); !errors.Is(err, recovery.ErrThere) {
		t.Errorf("again: %v", err)
	}
	plan.By, plan.Automatic = "alice", false
	if _, _, err := recovery.Evacuate(ctx, l, b, plan, log, nil); err != nil {
		t.Error(err)
	}
	placed, err := l.Placements(ctx)
	if err != nil || len(placed) != 6 {
		t.Fatal(placed, err)
	}
	for lane, p := range placed {
		if p.Automatic || p.By != "alice" || p.Cluster != "b" {
			t.Errorf("%s: %+v", lane, p)
		}
	}
	if _, _, err := recovery.Evacuate(ctx, l, b, plan, log, nil); !errors.Is(err, recovery.ErrThere) {
		t.Errorf("twice: %v", err)
	}
}

// moving is a ledger in which a person moves the lanes just before the process that
// has looked at them.
type moving struct {
	recovery.EvacuationLedger
	where map[message.Lane]message.Placement
	moved []message.Lane
}

func (m *moving) Placements(context.Context) (map[message.Lane]message.Placement, error) {
	return maps.Clone(m.where), nil
}
func (m *moving) OpenEvacuation(context.Context) (*message.Evacuation, error) { return nil, nil }
func (m *moving) LaneLeft(context.Context, message.Lane, message.Position) (int64, error) {
	return 0, nil
}
func (m *moving) EndEvacuation(context.Context, message.Evacuation) error { return nil }
func (m *moving) BeginEvacuation(context.Context, string, string) (message.Evacuation, func(), error) {
	m.where[message.Lanes()[0]] = message.Placement{Lane: message.Lanes()[0], Cluster: "c", By: "alice"}
	return message.Evacuation{}, func() {}, nil
}
func (m *moving) MoveLane(_ context.Context, _ message.Evacuation, p message.Placement) (message.Placement, error) {
	m.moved = append(m.moved, p.Lane)
	return p, nil
}

// empty is a cluster without anything in it.
type empty struct{}

func (empty) EnsureTopics(context.Context) error   { return nil }
func (empty) EnsureJournals(context.Context) error { return nil }
func (empty) Strangers(context.Context, func(context.Context, []message.Item) ([]bool, error)) ([]string, error) {
	return nil, nil
}

// What a person has moved meanwhile a process leaves where it is.
func TestNoPersonIsOverruled(t *testing.T) {
	m := &moving{where: make(map[message.Lane]message.Placement)}
	lanes := message.Lanes()[:2]
	plan := recovery.EvacuatePlan{To: "b", Lanes: lanes, By: "automatic", Automatic: true}
	if _, _, err := recovery.Evacuate(t.Context(), m, empty{}, plan, slog.New(slog.DiscardHandler), nil); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(m.moved, lanes[1:]) {
		t.Errorf("moved %v", m.moved)
	}
}
