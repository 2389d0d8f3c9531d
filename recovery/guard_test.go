package recovery_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/recovery"
)

// brief is a numbering that is lost at the second look, until it is repaired.
type brief struct{ looks, repairs int }

func (b *brief) Numbering(context.Context) ([]message.Fault, error) {
	if b.looks++; b.looks > 1 && b.repairs == 0 {
		return []message.Fault{{Name: "sequence position is missing"}}, nil
	}
	return nil, nil
}

func (b *brief) RepairNumbering(context.Context) ([]message.Fault, error) {
	b.repairs++
	return []message.Fault{{Name: "sequence position is missing"}}, nil
}

func (b *brief) Repaired(context.Context, int64, time.Duration) ([]message.Fault, int64, error) {
	return nil, 0, nil
}

// mended is a numbering that another process repaired between two looks.
type mended struct{ asked int64 }

func (*mended) Numbering(context.Context) ([]message.Fault, error)       { return nil, nil }
func (*mended) RepairNumbering(context.Context) ([]message.Fault, error) { return nil, nil }
func (m *mended) Repaired(_ context.Context, after int64, _ time.Duration) (faults []message.Fault, last int64, err error) {
	if m.asked++; m.asked > 1 && after < 7 {
		return []message.Fault{{Name: "sequence position is missing"}}, 7, nil
	}
	return nil, after, nil
}

// What is repaired at once is told of for a while all the same, whoever did.
func TestGuardTellsOfWhatWasRepaired(t *testing.T) {
	for name, n := range map[string]recovery.Numbering{"by itself": new(brief), "by another": new(mended)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, err := recovery.NewGuard(recovery.GuardConfig{
					Numbering: n, Every: time.Second, Repair: true, Log: slog.New(slog.DiscardHandler), Meters: noop.NewMeterProvider(),
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, end := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { g.Run(ctx); close(done) }()
				for _, look := range []struct {
					after time.Duration
					want  int
				}{{500 * time.Millisecond, 0}, {time.Second, 1}, {8 * time.Second, 1}, {3 * time.Second, 0}} {
					time.Sleep(look.after)
					synctest.Wait()
					faults, open := g.Lately()
					if len(faults) != look.want || open != 0 || g.Err() != nil {
						t.Errorf("after another %s: %v, %d open", look.after, faults, open)
					}
				}
				end()
				<-done
			})
		})
	}
}

// many is a numbering with several faults.
type many struct{ mended }

func (*many) Numbering(context.Context) (faults []message.Fault, _ error) {
	for _, name := range []string{"d", "b", "a", "c", "e"} {
		faults = append(faults, message.Fault{Name: name})
	}
	return faults, nil
}

// Faults that stay are told of in the same order: else whoever listens hears of news.
func TestGuardKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, err := recovery.NewGuard(recovery.GuardConfig{
			Numbering: new(many), Every: time.Second, Log: slog.New(slog.DiscardHandler), Meters: noop.NewMeterProvider(),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, end := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { g.Run(ctx); close(done) }()
		for range 20 {
			time.Sleep(time.Second)
			synctest.Wait()
			if faults, open := g.Lately(); open != 5 || faults[0].Name != "a" || faults[4].Name != "e" {
				t.Fatalf("%d open: %v", open, faults)
			}
		}
		end()
		<-done
	})
}
