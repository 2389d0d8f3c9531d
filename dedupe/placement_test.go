package dedupe_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

func TestOneEvacuationAtATime(t *testing.T) {
	l := ledgertest.Open(t, ledgertest.DSN(t))
	ctx := t.Context()
	if all, err := l.Placements(ctx); err != nil || len(all) != 0 {
		t.Fatal(all, err)
	}
	e, done, err := l.BeginEvacuation(ctx, "b", "alice")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.BeginEvacuation(ctx, "c", "bob"); !errors.Is(err, message.ErrEvacuating) {
		t.Errorf("a second one: %v", err)
	}
	lane := message.Lane{Class: message.Trigger, Channel: message.ChannelPush}
	p, err := l.MoveLane(ctx, e, message.Placement{Lane: lane, By: "alice", Rate: 7})
	if err != nil || p.Cluster != "b" || p.Rate != 7 || p.Mark.Lane() != lane {
		t.Fatalf("%+v %v", p, err)
	}
	done() // as a crash does

	again, done, err := l.BeginEvacuation(ctx, "b", "alice")
	if err != nil || again.ID != e.ID {
		t.Fatalf("not gone on with: %+v %v", again, err)
	}
	done()
	other, done, err := l.BeginEvacuation(ctx, "c", "bob")
	if err != nil || other.ID == e.ID {
		t.Fatalf("%+v %v", other, err)
	}
	defer done()
	if _, err := l.MoveLane(ctx, e, message.Placement{Lane: lane, By: "alice"}); err == nil {
		t.Error("one that was overrun moves lanes")
	}
	if p, err = l.MoveLane(ctx, other, message.Placement{Lane: lane, By: "bob", Rate: 3}); err != nil || p.Cluster != "c" {
		t.Errorf("%+v %v", p, err)
	}
	if err := l.EndEvacuation(ctx, other); err != nil {
		t.Fatal(err)
	}
	if open, err := l.OpenEvacuation(ctx); open != nil || err != nil {
		t.Errorf("%+v %v", open, err)
	}
	if all, err := l.Placements(ctx); err != nil || len(all) != 1 || all[lane].Cluster != "c" || all[lane].Rate != 0 {
		t.Errorf("%+v %v", all, err)
	}
}

func TestSightings(t *testing.T) {
	l := ledgertest.Open(t, ledgertest.DSN(t))
	if err := l.Sight(t.Context(), map[string]bool{"main": true, "b": false}); err != nil {
		t.Fatal(err)
	}
	if err := l.Sight(t.Context(), map[string]bool{"main": true, "b": false}); err != nil {
		t.Fatal(err)
	}
	all, err := l.Sightings(t.Context(), time.Minute)
	if err != nil || all["main"] != (message.ClusterSeen{Away: 1}) || all["b"] != (message.ClusterSeen{Well: 1}) {
		t.Errorf("%+v %v", all, err)
	}
}
